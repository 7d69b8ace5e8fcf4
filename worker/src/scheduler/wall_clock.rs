//! A wall clock that is put back, and marks that a clock which was ahead has left behind (design P8).

use common::clock::Timestamp;
use common::domain::job::JobName;
use common::domain::mark::Mark;

use super::event::{Action, Report};
use super::job_state::Pending;
use super::{RETRY_MS, STALE_RETRY_MS, Scheduler};

/// Times that are waited for are moved when the clock goes back by more than this, in ms; less is waited for.
const BACK_MIN_MS: i64 = 1_000;
/// A mark further ahead than this, in ms, was put there by a wrong clock.
const MARK_AHEAD_MAX_MS: i64 = 60_000;

impl Scheduler {
    /// What waits for a moment shortly after one that was (a retry, news of an edit) must not wait for as long as the clock was put back. Fires
    /// do: those up to the mark were claimed, and their time coming again is not another fire.
    pub(super) fn notice_step_back(&mut self, now: Timestamp) {
        let before = std::mem::replace(&mut self.last_now, now);
        if now >= before.plus_ms(-BACK_MIN_MS) {
            return;
        }
        for state in self.jobs.values_mut() {
            state.set_seen_by(now);
            let Some(busy) = state.busy_mut() else { continue };
            if let Pending::Claiming { claim, resend_at: Some(at), .. } = &mut busy.pending {
                // Not before its time: none is sent so early.
                *at = (*at).min(now.plus_ms(RETRY_MS).max(claim.mark.plan_time));
            }
            busy.stale_until = busy.stale_until.map(|until| until.min(now.plus_ms(STALE_RETRY_MS)));
        }
        self.requests.on_step_back(now);
        self.unrecorded.on_step_back(now);
        self.look_at_all(now);
    }

    /// What happened while the clock was not trusted happened at no time that can be relied upon: a clock that was behind would have fires of
    /// long ago caught up on, of a job that has just been put or of before a store went back. It counts as of now.
    pub(super) fn on_clock_trusted(&mut self, now: Timestamp, trusted: bool, out: &mut Vec<Action>) {
        let before = std::mem::replace(&mut self.clock_trusted, trusted);
        if trusted && !before {
            for state in self.jobs.values_mut().filter(|state| state.seen_in_doubt) {
                state.seen_in_doubt = false;
                state.set_seen_at(now);
            }
            if std::mem::take(&mut self.went_back_in_doubt) {
                self.keep_floor_in_bounds(now);
                self.raise_floor(now);
                out.push(Action::NoteRestore { known: self.told_before, floor: self.floor });
            }
        }
        self.look_at_all_if(before != trusted, now);
    }

    /// Says once of each job that its mark is far ahead. Everything up to it has its record, as run or as skipped, so that nothing is lost
    /// silently; but until then the job does nothing.
    pub(super) fn note_mark(&mut self, name: &JobName, mark: &Mark, now: Timestamp, out: &mut Vec<Action>) {
        let until = mark.plan_time.max(mark.base);
        if until <= now.plus_ms(MARK_AHEAD_MAX_MS) {
            self.marks_ahead.remove(name);
        } else if self.marks_ahead.insert(name.clone()) {
            out.push(Action::Report(Report::MarkAhead(name.clone(), until)));
        }
    }

    /// Jobs whose mark is far ahead, of those that this worker looks after.
    #[must_use]
    pub fn marks_ahead(&self) -> usize {
        self.marks_ahead.len()
    }
}
