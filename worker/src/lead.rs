//! How long before its time a fire is claimed: as long as claims have lately taken, so that they are answered by then.

use std::time::Duration;

use common::clock::Stopwatch;

use crate::scheduler::{LEAD_MAX_MS, LEAD_MIN_MS};

/// A slow answer counts for one to two of these.
const WINDOW: Duration = Duration::from_secs(30);

/// The lead changes by multiples of this, in ms.
const STEP_MS: i64 = 25;

/// The slowest claims of this window and of the one before.
#[derive(Debug)]
pub(crate) struct Lead {
    slowest: [Duration; 2],
    window: Stopwatch,
}

impl Lead {
    pub(crate) fn new() -> Self {
        Self { slowest: [Duration::ZERO; 2], window: Stopwatch::start() }
    }

    /// Claims took so long from being decided to being answered.
    pub(crate) fn note(&mut self, took: Duration) {
        if self.window.elapsed() >= WINDOW {
            self.window = Stopwatch::start();
            self.slowest = [Duration::ZERO, self.slowest[0]];
        }
        self.slowest[0] = self.slowest[0].max(took);
    }

    /// Half as long again as the slowest, within bounds; in steps, so that it does not change with every answer.
    pub(crate) fn ms(&self) -> i64 {
        let [now, before] = self.slowest;
        let slowest = i64::try_from(now.max(before).as_millis()).unwrap_or(i64::MAX);
        let wanted = slowest.saturating_add(slowest / 2).saturating_add(STEP_MS);
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
}
