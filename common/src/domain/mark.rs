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
    /// A run that was claimed without the lock may be going (`concurrency: allow`): whoever takes the lock next makes sure that none is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unlocked: bool,
    /// This version writes for it the very value that was read.
    #[serde(skip)]
    is_whole: bool,
}

impl Mark {
    /// A mark for a job whose catch-up begins at `base`; `previous` keeps its plan time, which must never go back.
    #[must_use]
    pub fn based(previous: Option<&Self>, base: Timestamp, hash: ScheduleHash) -> Self {
        let (plan_time, run_id, sid) =
            previous.map_or((Timestamp::ZERO, None, None), |m| (m.plan_time, m.run_id.clone(), m.sid));
        let unlocked = previous.is_some_and(|mark| mark.unlocked);
        Self { v: VERSION, plan_time, run_id, sid, base, hash, unlocked, is_whole: true }
    }

    /// The mark moved to `plan_time` by a claim.
    #[must_use]
    pub fn claimed(&self, plan_time: Timestamp, run_id: RunId, sid: Sid) -> Self {
        debug_assert!(plan_time > self.plan_time, "a mark only moves forward");
        Self { v: VERSION, plan_time, run_id: Some(run_id), sid: Some(sid), is_whole: true, ..self.clone() }
    }

    /// Reads a stored mark.
    ///
    /// # Errors
    /// See [`stored::decode`].
    pub fn decode(bytes: &[u8]) -> Result<Self, stored::Error> {
        let mark: Self = stored::decode(bytes, VERSION)?;
        let is_whole = mark.encode() == bytes;
        Ok(Self { is_whole, ..mark })
    }

    /// The value that is stored for it now; `None` when other hands or another version have put it there with more than this one knows.
    #[must_use]
    pub fn stored_value(&self) -> Option<Vec<u8>> {
        self.is_whole.then(|| self.encode())
    }

    /// The value to store.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        stored::encode(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_with_more_than_is_known_is_read_and_not_taken_for_what_is_written() {
        let mark = Mark::based(None, Timestamp::from_ms(5), ScheduleHash::default());
        let value = mark.encode();
        assert_eq!(Mark::decode(&value).unwrap().stored_value(), Some(value.clone()));
        let claimed = mark.claimed(Timestamp::from_ms(9), RunId::from_text("a-1"), Sid(10));
        let value = claimed.encode();
        assert_eq!((Mark::decode(&value).unwrap(), claimed.stored_value()), (claimed, Some(value.clone())));
        let newer = String::from_utf8(value).unwrap().replacen('{', "{\"backlog\":3,", 1);
        assert_eq!(Mark::decode(newer.as_bytes()).unwrap().stored_value(), None);
    }
}
