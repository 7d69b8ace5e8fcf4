//! A store that went back to an earlier state, as after a restored backup (design P16).

use common::clock::Timestamp;
use common::domain::mark::Mark;
use common::domain::pause::Base;
use common::domain::record::Record;
use common::kv::Revision;

use super::event::{Action, Claim, MarkSeen};
use super::job_state::{JobState, Pending};
use super::marks::MarkView;
use super::runs::Stage;
use super::{LEAD_MAX_MS, Scheduler};

/// Fires so long after the moment of noticing are let go with those before it, in ms: beside the lead, a worker whose clock is ahead, as far
/// as it may be (P8), could have claimed them in what the store was before.
pub(crate) const CLAIMED_AHEAD_MAX_MS: i64 = LEAD_MAX_MS + 2_000;
/// Workers notice one after the other, each for itself: those that only step in for a job's owner do not put a mark again whose base is so
/// little, in ms, before their own.
const NOTICED_APART_MS: i64 = 30_000;

/// What `/cron/base` says of a store that was put back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Told {
    restored: Timestamp,
    /// What it said before that.
    before: Timestamp,
    /// When this worker was told.
    at: Timestamp,
}

impl Told {
    /// What it said in the history that is over. What was told shortly before this worker notices is of others who have noticed the same.
    fn of_before(self, now: Timestamp) -> Timestamp {
        if self.at < now.plus_ms(-NOTICED_APART_MS) { self.restored } else { self.before }
    }
}

impl Scheduler {
    /// Forgets what the store said. Marks went back with it, so that old fires look unclaimed: nothing from before now is caught up.
    pub(super) fn on_store_went_back(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        self.raise_floor(now);
        self.told_before = self.restore_told.map(|told| told.of_before(now));
        if self.clock_trusted {
            out.push(Action::NoteRestore { known: self.told_before, floor: self.floor });
        } else {
            self.went_back_in_doubt = true; // said once the clock is right
        }
        for busy in self.jobs.values_mut().filter_map(JobState::busy_mut) {
            busy.pending = Pending::None;
        }
        self.end_all_streaks(out);
        // What was claimed and not started ends here: its open key may not be in the store any more, so that nobody else would say so.
        for run in self.runs.values().filter(|run| run.stage == Stage::Claimed) {
            let record = Box::new(Record::left_behind(&run.open, now));
            out.push(Action::Record { record, settles: Some((run.sid, run.seq)) });
        }
        self.on_session_lost(now, out);
        self.forget_requests(out);
        // Runs that go on keep going. Until they are rescued, whatever kill request comes is younger than they are.
        for run in self.runs.values_mut() {
            (run.rescue, run.claim_revision) = (true, Revision::MIN);
        }
        self.jobs.for_each_mut(|_, mut state| {
            // Revisions name other contents now: every job is news.
            state.set_definition(None);
            state.set_mark(MarkView::Unknown);
            if let Some(busy) = state.busy_mut() {
                (busy.stale_until, busy.due) = (None, None);
            }
        });
        for name in self.jobs.names_of(|_| true) {
            self.forget_job_if_done(&name);
        }
        self.kills_seen.clear();
        self.jobs_listed = false;
        (self.paused, self.base) = (false, Timestamp::ZERO);
        self.settings_revision = None;
    }

    /// Fires up to this time may have run in what the store was before.
    #[must_use]
    pub fn floor(&self) -> Timestamp {
        self.floor.max(self.told_floor)
    }

    /// Since when fires count: of a fleet that was paused, and of a store that was put back before this worker began, or while it did not notice.
    pub(super) fn on_base(&mut self, now: Timestamp, base: &Base) {
        let restored = base.restored.unwrap_or(Timestamp::ZERO);
        let before = (self.base, self.restore_told);
        let told = Told { restored, before: restored, at: now };
        self.restore_told = Some(before.1.map_or(told, |before| match before.restored == restored {
            true => before,
            false => Told { before: before.restored, ..told },
        }));
        self.base = base.at;
        self.told_floor = self.told_floor.max(restored);
        if self.clock_trusted {
            self.keep_floor_in_bounds(now);
        }
        self.look_at_all_if(before != (self.base, self.restore_told), now);
    }

    pub(super) fn raise_floor(&mut self, now: Timestamp) {
        self.floor = self.floor.max(now.plus_ms(CLAIMED_AHEAD_MAX_MS));
    }

    /// Time goes on from the moment of noticing: a floor that is further ahead was set by a clock that has been put back since. Not to be asked
    /// of a clock that is not trusted: it may be put forward again, and the floor would be gone.
    pub(super) fn keep_floor_in_bounds(&mut self, now: Timestamp) {
        let most = now.plus_ms(CLAIMED_AHEAD_MAX_MS);
        self.floor = self.floor.min(most);
        self.told_floor = self.told_floor.min(most);
    }
}

/// This mark leaves open fires up to `floor`, which may have run before the store went back. Its owner puts the base into it, so that
/// workers that start later, and have noticed nothing, do not take them for missed.
pub(super) fn is_from_before(mark: &Mark, floor: Timestamp, rank: u8) -> bool {
    let apart = if rank == 0 { 0 } else { NOTICED_APART_MS };
    mark.plan_time.max(mark.base) < floor.plus_ms(-apart)
}

/// Why a refusal shows that the store went back: revisions of one key only grow, so that the claim was decided from what is not (yet) there.
/// It shows also when the store's own revision is higher than ever (a backup that was restored with raised revisions). And one revision has one
/// value.
pub(super) fn gone_back(claim: &Claim, seen: Option<&MarkSeen>, job: Revision) -> Option<String> {
    let name = &claim.open.job;
    let mark = seen.map_or(0, |seen| seen.revision);
    let value = seen.and_then(|seen| seen.mark.as_ref().ok()).and_then(Mark::stored_value);
    if (1..claim.mark_revision).contains(&mark) {
        Some(format!("the mark of {name} is of revision {mark}, and was of {}", claim.mark_revision))
    } else if mark == claim.mark_revision && value != claim.mark_value {
        Some(format!("the mark of {name} has another value than before under its revision {mark}"))
    } else if (1..claim.job_revision).contains(&job) {
        Some(format!("job {name} is of revision {job}, and was of {}", claim.job_revision))
    } else {
        None
    }
}
