//! How long before its time a fire is claimed: as long as claims have lately taken, so that they are answered by then, and as long as the
//! shells that wait for one moment take to be ready.

use std::num::NonZero;
use std::time::Duration;

use common::clock::Stopwatch;

use crate::scheduler::{LEAD_MAX_MS, LEAD_MIN_MS};

/// A slow answer counts for one to two of these.
const WINDOW: Duration = Duration::from_secs(30);

/// The lead changes by multiples of this, in ms.
const STEP_MS: i64 = 25;

/// A processor starts a shell in so long, in µs: 1.1 ms were measured.
const SHELL_US: usize = 1_200;

/// What was most in this window and in the one before.
#[derive(Debug)]
pub(crate) struct Lead {
    slowest: [Duration; 2],
    /// Shells that waited for one moment.
    shells: [usize; 2],
    processors: usize,
    window: Stopwatch,
}

impl Lead {
    pub(crate) fn new() -> Self {
        Self::of(std::thread::available_parallelism().map_or(1, NonZero::get))
    }

    fn of(processors: usize) -> Self {
        Self { slowest: [Duration::ZERO; 2], shells: [0; 2], processors, window: Stopwatch::start() }
    }

    /// Claims took so long from being decided to being answered.
    pub(crate) fn note(&mut self, took: Duration) {
        self.turn();
        self.slowest[0] = self.slowest[0].max(took);
    }

    /// So many shells wait for one moment.
    pub(crate) fn note_shells(&mut self, shells: usize) {
        self.turn();
        self.shells[0] = self.shells[0].max(shells);
    }

    fn turn(&mut self) {
        if self.window.elapsed() >= WINDOW {
            self.window = Stopwatch::start();
            self.slowest = [Duration::ZERO, self.slowest[0]];
            self.shells = [0, self.shells[0]];
        }
    }

    /// Half as long again as the slowest claims and then what the shells take, within bounds; in steps, so that it does not change with
    /// every answer.
    pub(crate) fn ms(&self) -> i64 {
        let [now, before] = self.slowest;
        let slowest = i64::try_from(now.max(before).as_millis()).unwrap_or(i64::MAX);
        let shells_us = self.shells[0].max(self.shells[1]) * SHELL_US / self.processors;
        let shells = i64::try_from(shells_us / 1000).unwrap_or(i64::MAX);
        let wanted = slowest.saturating_add(slowest / 2).saturating_add(shells).saturating_add(STEP_MS);
        (wanted / STEP_MS * STEP_MS).clamp(LEAD_MIN_MS, LEAD_MAX_MS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_near_store_has_the_shortest_lead_and_a_slow_one_no_endless_one() {
        let mut lead = Lead::new();
        assert_eq!(lead.ms(), LEAD_MIN_MS);
        lead.note(Duration::from_millis(3));
        assert_eq!(lead.ms(), LEAD_MIN_MS);
        lead.note(Duration::from_millis(100));
        assert_eq!(lead.ms(), 175);
        lead.note(Duration::from_millis(20));
        assert_eq!(lead.ms(), 175, "the slowest counts");
        lead.note(Duration::from_secs(30));
        assert_eq!(lead.ms(), LEAD_MAX_MS);
    }

    #[test]
    fn shells_that_wait_together_are_started_in_time() {
        for (processors, ms) in [(1, 275), (2, 150), (8, LEAD_MIN_MS)] {
            let mut lead = Lead::of(processors);
            lead.note_shells(3);
            lead.note_shells(210);
            lead.note_shells(1);
            assert_eq!(lead.ms(), ms, "{processors} processors");
        }
    }
}
