//! Log lines about what is tried again and again: the first failure, then ever more rarely, and once when it is good again.

use std::fmt::Display;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// One thing that is tried again and again, by one task or by many.
#[derive(Debug)]
pub(crate) struct Retries {
    /// What does not work, for people.
    what: String,
    /// Since it was good.
    failures: AtomicU32,
}

impl Retries {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), failures: AtomicU32::new(0) }
    }

    /// It failed once more. Of a thousand failures ten are said: a store that is away for an hour must not fill a disk.
    pub(crate) fn failed(&self, why: &dyn Display) {
        let failures = self.count();
        if is_said(failures) {
            tracing::warn!(%why, failures, "{}; trying again", self.what);
        }
    }

    /// It worked.
    pub(crate) fn worked(&self) {
        if let Some(failures) = self.end() {
            tracing::info!(failures, "no longer: {}", self.what);
        }
    }

    fn count(&self) -> u32 {
        self.failures.fetch_add(1, Relaxed).saturating_add(1)
    }

    /// How often it had failed, if it had.
    fn end(&self) -> Option<u32> {
        // The usual case is a read: many tasks share one of these.
        (self.failures.load(Relaxed) > 0)
            .then(|| self.failures.swap(0, Relaxed))
            .filter(|failures| *failures > 0)
    }
}

fn is_said(failures: u32) -> bool {
    failures.is_power_of_two()
}

/// What the worker's loop has tried again by others.
#[derive(Debug)]
pub(crate) struct LoopRetries {
    pub(crate) renewal: Retries,
    pub(crate) marks: Retries,
    pub(crate) retiring: Retries,
    pub(crate) replacing: Retries,
    pub(crate) locks: Retries,
    pub(crate) moves: Retries,
    pub(crate) closing: Retries,
    pub(crate) registration: Retries,
    pub(crate) registration_renewal: Retries,
    pub(crate) ahead: Retries,
    pub(crate) audit: Retries,
    pub(crate) restore: Retries,
}

impl Default for LoopRetries {
    fn default() -> Self {
        Self {
            renewal: Retries::new("session not renewed"),
            marks: Retries::new("marks not read"),
            retiring: Retries::new("mark of a deleted job not retired"),
            replacing: Retries::new("run elsewhere that is to be replaced not asked to end"),
            locks: Retries::new("lock not freed"),
            moves: Retries::new("run not moved to the new session"),
            closing: Retries::new("open run not closed, nor its next attempt asked for"),
            registration: Retries::new("not registered anew"),
            registration_renewal: Retries::new("registration not put again"),
            ahead: Retries::new("claim of a time that is too far ahead not sent"),
            audit: Retries::new("own keys not audited"),
            restore: Retries::new("not written down for other workers that the store was put back"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_that_lasts_is_said_ever_more_rarely_and_its_end_once() {
        let retries = Retries::new("marks not read");
        let said = (0..3000).filter(|_| is_said(retries.count())).count();
        assert_eq!(said, 12);
        assert_eq!(retries.end(), Some(3000));
        assert_eq!(retries.end(), None);
        assert!(is_said(retries.count()), "the first of the next time is said at once");
    }
}
