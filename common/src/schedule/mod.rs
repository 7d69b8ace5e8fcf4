//! Schedules: a cron expression in, fire times out. Pure: no clock, no I/O.

mod next;
mod parse;

use crate::clock::Timestamp;

pub use parse::Error;

/// A parsed cron expression, in UTC.
#[derive(Clone, Debug)]
pub struct Schedule {
    parts: Vec<cron::Schedule>,
    warning: Option<String>,
}

impl Schedule {
    /// Parses an expression of 5 fields (minute hour day-of-month month day-of-week), 6 (seconds first, unless the last field can only be a
    /// year) or 7 (seconds … year), or one of `@hourly @daily @weekly @monthly @yearly`.
    ///
    /// # Errors
    /// Which field is wrong, what is wrong with it, what to write instead.
    pub fn parse(expression: &str) -> Result<Self, Error> {
        parse::parse(expression)
    }

    /// What the author should know about how the expression was read.
    #[must_use]
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    /// The first fire after `t`: always later than `t`, on a whole second; `None` when there is none.
    #[must_use]
    pub fn next_after(&self, t: Timestamp) -> Option<Timestamp> {
        next::next_after(&self.parts, t)
    }

    /// The last fire in (`after`, `until`], and how many there are, counted up to `count_max` (`more` says that there are more);
    /// `None` when there is none. Bounded work, however long the time.
    #[must_use]
    pub fn fires_between(&self, after: Timestamp, until: Timestamp, count_max: u64) -> Option<Fires> {
        next::fires_between(self, after, until, count_max)
    }
}

/// The fires in a stretch of time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fires {
    /// The first.
    pub first: Timestamp,
    /// The last.
    pub last: Timestamp,
    /// How many, at most the bound given.
    pub count: u64,
    /// There are more than `count`.
    pub more: bool,
}
