//! Schedules: a cron expression in, fire times out. Pure: no clock, no I/O.

mod fields;
mod next;
mod parse;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::clock::Timestamp;
use fields::Years;

pub use parse::{EXPRESSION_BYTES_MAX, Error};

/// A parsed cron expression, in UTC.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// A time fires when any part has it: two parts where either the day of month or the day of week suffices, else one. They know no years:
    /// those are ours, since the `cron` crate's end with 2100.
    parts: Arc<[cron::Schedule]>,
    years: Years,
    window: Window,
    warning: Option<Arc<str>>,
}

/// A stretch of time outside of which a schedule has no fires.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Window {
    /// Its start, which is in it; `None` = it has always been.
    pub from: Option<Timestamp>,
    /// Its end, which is not; `None` = it never ends.
    pub until: Option<Timestamp>,
}

impl Schedule {
    /// Parses an expression of 5 fields (minute hour day-of-month month day-of-week), 6 (seconds first, unless the last field can only be a
    /// year) or 7 (seconds … year), or one of `@hourly @daily @midnight @weekly @monthly @yearly @annually`. Takes any text, in bounded work.
    ///
    /// # Errors
    /// Which field is wrong, what is wrong with it, what to write instead; also for what has no fire at all from 1970 to 2199. Whether the last
    /// fire has gone by is not asked here: that is `next_after(now)`.
    pub fn parse(expression: &str) -> Result<Self, Error> {
        parse::parse(expression)
    }

    /// What the author should know about how the expression was read.
    #[must_use]
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    /// The same schedule with no fires outside of `window`. What is large of it is shared, and the search is no longer.
    #[must_use]
    pub fn within(self, window: Window) -> Self {
        Self { window, ..self }
    }

    /// The first fire after `t`: always later than `t`, on a whole second; `None` when there is none. Bounded work.
    #[must_use]
    pub fn next_after(&self, t: Timestamp) -> Option<Timestamp> {
        let Window { from, until } = self.window;
        let t = from.map_or(t, |from| t.max(from.plus_ms(-1)));
        next::next_after(&self.parts, &self.years, t).filter(|fire| until.is_none_or(|until| *fire < until))
    }

    /// The last fire in (`after`, `until`], and how many there are, counted up to `count_max` (`more` says that there are more);
    /// `None` when there is none. Bounded work, however long the time.
    #[must_use]
    pub fn fires_between(&self, after: Timestamp, until: Timestamp, count_max: u64) -> Option<Fires> {
        next::fires_between(|t| self.next_after(t), after, until, count_max)
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
