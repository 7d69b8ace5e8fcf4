//! What the scheduler knows to be in the store: for the audit (design P5).

use common::domain::job::JobName;
use common::domain::run::{OpenRun, RunId};
use common::domain::worker::Sid;

use super::Scheduler;
use super::job_state::{JobState, Pending};

impl Scheduler {
    /// Runs are on their way to a new session: what they leave and what they take there is in the store, and known here by one name only.
    #[must_use]
    pub fn is_moving(&self) -> bool {
        self.runs.values().any(|run| run.moving)
    }

    /// Whether an open run under number `seq` of session `sid` is one that is claimed or going here, that grows with skips, or whose claim
    /// may have committed.
    #[must_use]
    pub fn knows_open(&self, sid: Sid, seq: u64, open: &OpenRun) -> bool {
        let run = self.runs.get(&open.run_id).is_some_and(|run| (run.sid, run.seq) == (sid, seq));
        run || self.requests.knows_open(sid, seq, open)
            || self.jobs.get(&open.job).is_some_and(|state| state.claims(seq) || state.skips_under(sid, seq))
    }

    /// Whether this worker holds the job's lock, frees it, or may be taking it.
    #[must_use]
    pub fn knows_lock(&self, job: &JobName) -> bool {
        let held =
            |state: &JobState| state.run.is_some() || matches!(state.pending, Pending::Claiming { .. });
        self.jobs.get(job).is_some_and(held) || self.requests.may_lock(job)
    }

    /// Whether a run that holds a key in the place of the lock is one that is claimed or going here, or whose claim may have committed.
    #[must_use]
    pub fn knows_shared(&self, job: &JobName, run_id: &RunId) -> bool {
        let claimed_or_going = self.runs.contains_key(run_id) || self.requests.claims_run(job, run_id);
        claimed_or_going || self.jobs.get(job).is_some_and(|state| state.claims_run(run_id))
    }
}

impl JobState {
    /// A claim in flight, or one that it replaces, has this number. Claims are of the present session only.
    fn claims(&self, seq: u64) -> bool {
        match &self.pending {
            Pending::Claiming { claim, earlier, .. } => {
                claim.seq == seq || earlier.as_ref().is_some_and(|earlier| earlier.seq == seq)
            }
            Pending::None | Pending::Adopting => false,
        }
    }

    /// A claim in flight, or one that it replaces, is of this run.
    fn claims_run(&self, run_id: &RunId) -> bool {
        match &self.pending {
            Pending::Claiming { claim, earlier, .. } => {
                claim.open.run_id == *run_id
                    || earlier.as_ref().is_some_and(|earlier| earlier.open.run_id == *run_id)
            }
            Pending::None | Pending::Adopting => false,
        }
    }

    fn skips_under(&self, sid: Sid, seq: u64) -> bool {
        self.streak.as_ref().is_some_and(|streak| (streak.sid, streak.seq) == (sid, seq))
    }
}
