//! Ranges of skipped fires: consecutive skips of a job for one reason share one open run, and one record that grows.

use std::collections::{BTreeMap, BTreeSet};

use common::clock::Timestamp;
use common::domain::job::JobName;
use common::domain::record::Record;
use common::domain::run::OpenRun;
use common::domain::worker::Sid;

use super::event::{Action, Claim, Report};
use super::job_state::Pending;
use super::{LOOKS_PER_STEP, Scheduler};

/// A range is recorded so long after its first fire at the latest, in ms. One that ends sooner is written once: to store a record and then its
/// like with more in it costs MongoDB a look-up and a replacement, and a busy worker has many ranges of a single fire.
const FIRST_RECORD_MS: i64 = 2_000;
/// And what comes to it is in its record so much later at most, in ms.
const NEXT_RECORD_MS: i64 = 10_000;

/// Consecutive skips for one reason, under one open run.
#[derive(Clone, Debug)]
pub(super) struct Streak {
    pub(super) sid: Sid,
    pub(super) seq: u64,
    pub(super) open: OpenRun,
}

impl Streak {
    /// Its record so far; the last one settles the open run.
    fn record(&self, last: bool) -> Action {
        let skipped = self.open.skipped.clone().expect("a streak's open run says what was skipped");
        Action::Record {
            record: Box::new(Record::skipped(&self.open, skipped)),
            settles: last.then_some((self.sid, self.seq)),
        }
    }
}

/// The jobs whose range has fires that are not in its record, and by when they will be.
#[derive(Debug, Default)]
pub(super) struct Unrecorded {
    jobs: BTreeMap<JobName, Timestamp>,
    /// The same, the earliest first.
    times: BTreeSet<(Timestamp, JobName)>,
}

impl Unrecorded {
    /// The earliest time.
    pub(super) fn first_due(&self) -> Option<Timestamp> {
        self.times.first().map(|(at, _)| *at)
    }

    /// A job's range has grown: a time that it has already stays.
    fn put(&mut self, name: &JobName, at: Timestamp) {
        if !self.jobs.contains_key(name) {
            self.jobs.insert(name.clone(), at);
            self.times.insert((at, name.clone()));
        }
    }

    /// All of a job's range is in its record.
    fn remove(&mut self, name: &JobName) {
        if let Some((name, at)) = self.jobs.remove_entry(name) {
            self.times.remove(&(at, name));
        }
    }

    /// Takes the earliest, if its time has come.
    fn take_due(&mut self, now: Timestamp) -> Option<JobName> {
        let (_, name) = self.times.first().filter(|(at, _)| *at <= now)?.clone();
        self.remove(&name);
        Some(name)
    }

    /// No range is this worker's any more.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// The clock was put back: nothing waits for as long as that.
    pub(super) fn on_step_back(&mut self, now: Timestamp) {
        let within = now.plus_ms(NEXT_RECORD_MS);
        self.jobs.values_mut().for_each(|at| *at = (*at).min(within));
        self.times = self.jobs.iter().map(|(name, at)| (*at, name.clone())).collect();
    }
}

impl Scheduler {
    pub(super) fn on_skip_won(&mut self, now: Timestamp, claim: &Claim, out: &mut Vec<Action>) {
        let name = &claim.open.job;
        let Some(mut state) = self.jobs.get_mut(name) else { return };
        let over = self.draining || !state.has_fires();
        let first = state.streak.is_none();
        let streak = state.streak.get_or_insert_with(|| {
            Box::new(Streak { sid: claim.sid, seq: claim.seq, open: claim.open.clone() })
        });
        streak.open = claim.open.clone();
        if first {
            out.push(Action::Report(Report::Skipped(streak.open.clone())));
        }
        let within = now.plus_ms(if first { FIRST_RECORD_MS } else { NEXT_RECORD_MS });
        // With the next fire the range ends, or grows: what comes by then anyway need not come before.
        let schedule = state.terms().and_then(|terms| terms.runnable.as_ref().ok());
        let next = schedule.and_then(|schedule| schedule.next_after(claim.mark.plan_time));
        let jitter = state.jitter_ms();
        if over {
            self.end_streak(name, out);
        } else if next.is_some_and(|next| next.plus_ms(jitter) <= within) {
            self.unrecorded.put(name, within);
        } else {
            out.extend(state.streak.as_ref().map(|streak| streak.record(false)));
            self.unrecorded.remove(name);
        }
    }

    /// Not while a skip that goes on with the range is in flight: the settling could delete the open key that it puts, and with it the
    /// only trace of its fires, should the session end before the answer comes.
    pub(super) fn end_streak(&mut self, name: &JobName, out: &mut Vec<Action>) {
        let Some(mut state) = self.jobs.get_mut(name) else { return };
        let grows = |streak: &Streak| matches!(&state.pending, Pending::Claiming { claim, .. } if claim.seq == streak.seq);
        if state.streak.as_ref().is_some_and(|streak| !grows(streak)) {
            out.extend(state.streak.take().map(|streak| streak.record(true)));
            self.unrecorded.remove(name);
        }
    }

    pub(super) fn end_all_streaks(&mut self, out: &mut Vec<Action>) {
        for name in self.jobs.names_of(|state| state.streak.is_some()) {
            self.end_streak(&name, out);
        }
    }

    /// Hands on the records of ranges that have gone on for long enough.
    pub(super) fn record_streaks(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        for _ in 0..LOOKS_PER_STEP {
            let Some(name) = self.unrecorded.take_due(now) else { return };
            let streak = self.jobs.get(&name).and_then(|state| state.streak.as_deref());
            out.extend(streak.map(|streak| streak.record(false)));
        }
    }
}
