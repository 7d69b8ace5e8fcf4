//! The mark: how far a job's fires have been claimed.

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::domain::job::ScheduleHash;
use crate::domain::run::RunId;
use crate::domain::stored;
use crate::domain::worker::Sid;

/// Format version that is written.
const VERSION: u64 = 1;

/// Value of `/cron/fired/{slot}/{name}`. Its plan time only grows, and a claim needs a later one: that, and not any lease, is what keeps a
/// fire from being started twice.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mark {
    v: u64,
    /// The last fire claimed or let go; [`Timestamp::ZERO`] before the first.
    pub plan_time: Timestamp,
    /// The claim that put it there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_id: Option<RunId>,
    /// The session that claimed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sid: Option<Sid>,
    /// Fires up to and including this time are nobody's: the job was saved, enabled or adopted then.
    pub base: Timestamp,
    /// [`crate::domain::job::Job::schedule_hash`] of the definition that `base` belongs to.
    pub hash: ScheduleHash,
}

impl Mark {
    /// A mark for a job whose catch-up begins at `base`; `previous` keeps its plan time, which must never go back.
    #[must_use]
    pub fn based(previous: Option<&Self>, base: Timestamp, hash: ScheduleHash) -> Self {
        let (plan_time, run_id, sid) =
            previous.map_or((Timestamp::ZERO, None, None), |m| (m.plan_time, m.run_id.clone(), m.sid));
        Self { v: VERSION, plan_time, run_id, sid, base, hash }
    }

    /// The mark moved to `plan_time` by a claim.
    #[must_use]
    pub fn claimed(&self, plan_time: Timestamp, run_id: RunId, sid: Sid) -> Self {
        debug_assert!(plan_time > self.plan_time, "a mark only moves forward");
        Self { v: VERSION, plan_time, run_id: Some(run_id), sid: Some(sid), base: self.base, hash: self.hash }
    }

    /// Reads a stored mark.
    ///
    /// # Errors
    /// See [`stored::decode`].
    pub fn decode(bytes: &[u8]) -> Result<Self, stored::Error> {
        stored::decode(bytes, VERSION)
    }

    /// The value to store.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        stored::encode(self)
    }
}
