//! What a worker knows of a job's mark, and the few bytes in which most of it is kept.

use common::domain::job::ScheduleHash;
use common::domain::mark::Mark;
use common::domain::run::RunId;
use common::kv::Revision;

use super::packed::{Packed, Rev, Time};
use super::sessions::{SessionNumber, Sessions};

/// A job's mark as far as this worker knows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum MarkView {
    Unknown,
    Absent,
    Known(Mark, Revision),
    Unreadable(String),
}

/// The same in 24 bytes, since most marks are of a few kinds.
#[derive(Debug)]
pub(super) enum KeptMark {
    Unknown,
    Absent,
    Usual(UsualMark),
    /// It is an [`OtherMark`], kept elsewhere.
    Other,
}

/// A mark that this version has written with the hash of the job's definition.
#[derive(Debug)]
pub(super) struct UsualMark {
    plan_time: Time,
    base: Time,
    revision: Rev,
    /// What has claimed the plan time: number `seq` of that session; nothing yet, and no session, when `seq` is 0.
    session: SessionNumber,
    seq: Packed<4>,
    unlocked: bool,
}

/// Any other mark.
#[derive(Debug)]
pub(super) enum OtherMark {
    Known(Mark, Revision),
    Unreadable(Box<str>),
}

impl UsualMark {
    /// `None` = it is no such mark.
    pub(super) fn of(
        mark: &Mark,
        revision: Revision,
        hash: ScheduleHash,
        sessions: &mut Sessions,
    ) -> Option<Self> {
        let claim = match &mark.run_id {
            None => None,
            Some(run_id) => Some(run_id.claim().filter(|(_, seq)| *seq > 0)?),
        };
        let seq = Packed::of(claim.map_or(Some(0), |(_, seq)| i64::try_from(seq).ok())?)?;
        let (plan_time, base) = (Time::of_time(mark.plan_time)?, Time::of_time(mark.base)?);
        let (revision, unlocked) = (Rev::of(revision)?, mark.unlocked);
        let session = claim.map_or(Some(SessionNumber::ZERO), |(sid, _)| sessions.enter(sid))?;
        let usual = Self { plan_time, base, revision, session, seq, unlocked };
        if usual.mark(hash, sessions) == *mark {
            return Some(usual);
        }
        usual.leave(sessions);
        None
    }

    pub(super) fn mark(&self, hash: ScheduleHash, sessions: &Sessions) -> Mark {
        let mut mark = Mark::based(None, self.base.time(), hash);
        let (plan_time, seq) = (self.plan_time.time(), self.seq());
        if seq > 0 && plan_time > mark.plan_time {
            let sid = sessions.get(self.session);
            mark = mark.claimed(plan_time, RunId::new(sid, seq), sid);
        }
        mark.unlocked = self.unlocked;
        mark
    }

    pub(super) fn revision(&self) -> Revision {
        self.revision.get()
    }

    /// It is forgotten.
    pub(super) fn leave(&self, sessions: &mut Sessions) {
        if self.seq() > 0 {
            sessions.leave(self.session);
        }
    }

    fn seq(&self) -> u64 {
        u64::try_from(self.seq.get()).unwrap_or_default()
    }
}
