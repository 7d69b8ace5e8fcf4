//! Who waits for room for a run, and gets it when some is there: whoever has waited longest. Fires of the schedule and this worker's parts of
//! fires for every worker stand in one line. *Closes*: a worker with more fires than room always has one that waits; were parts served behind
//! these, none would ever run, while a fire that is left waiting is taken by another worker, which a part cannot be. What is asked for can wait
//! and goes behind the line, but not for ever: one place of every few is its. *Closes*: where all workers have more fires than room, somebody who
//! asks for a run waits for a day and gets none.

use std::collections::{BTreeSet, VecDeque};

use common::domain::job::JobName;

/// When so many places in a row went to the line, the next one is for what is asked for.
const IN_A_ROW_MAX: u32 = 4;

/// What waits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Waiter {
    /// The job's next fire.
    Fire,
    /// What is first of the job's requests that are for this worker alone.
    Part,
}

/// Those that wait, each once.
#[derive(Debug, Default)]
pub(super) struct Line {
    order: VecDeque<(Waiter, JobName)>,
    waiting: BTreeSet<(Waiter, JobName)>,
    /// Whoever is looked at now has its turn.
    serving: bool,
    /// Places that went to it since the last one for what is asked for.
    in_a_row: u32,
}

impl Line {
    /// Stands at the end of the line, or where it stands already.
    pub(super) fn wait(&mut self, waiter: Waiter, job: &JobName) {
        let one = (waiter, job.clone());
        if self.waiting.insert(one.clone()) {
            self.order.push_back(one);
        }
    }

    /// Whose turn it is, until [`Self::served`]. One that needs no room any more is looked at for nothing.
    pub(super) fn next(&mut self) -> Option<(Waiter, JobName)> {
        let first = self.order.pop_front()?;
        self.waiting.remove(&first);
        self.serving = true;
        Some(first)
    }

    /// The turn is over; whether it took a place.
    pub(super) fn served(&mut self, took: bool) {
        self.serving = false;
        self.in_a_row = self.in_a_row.saturating_add(u32::from(took));
    }

    /// The next place is for what is asked for, where anything is.
    pub(super) fn gives_way(&self) -> bool {
        self.in_a_row >= IN_A_ROW_MAX
    }

    /// What is asked for is looked at now and has its turn, until [`Self::gave_way`].
    pub(super) fn give_way(&mut self) {
        self.serving = true;
    }

    /// That turn is over; whether it took a place.
    pub(super) fn gave_way(&mut self, took: bool) {
        self.serving = false;
        if took {
            self.in_a_row = 0;
        }
    }

    /// Whoever is looked at stands behind nobody. *Closes*: a run ends, and its job, which has another fire due, takes the room again each time.
    pub(super) fn lets_by(&self) -> bool {
        self.serving || self.order.is_empty()
    }

    /// The job is gone, and no fire of it waits.
    pub(super) fn leave(&mut self, job: &JobName) {
        let one = (Waiter::Fire, job.clone());
        if self.waiting.remove(&one) {
            self.order.retain(|other| *other != one);
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}
