//! Schedules: expressions in, fire times out. Pure: no clock, no I/O.

mod calendar;
mod days;
mod describe;
mod expression;
mod fields;
mod next;
mod parse;
mod settings;
#[cfg(test)]
mod tests;
mod zone;

use std::sync::Arc;

use crate::clock::Timestamp;

pub use calendar::{date_of, day_of};
pub use days::{DAYS, DaySet, Days, NamedDays};
pub use describe::Language;
pub use expression::{
    DaysOfMonth, DaysOfWeek, Expression, Fields, Place, SpecialDay, SpecialDays, SpecialWeekdays,
};
pub use parse::{EXPRESSION_BYTES_MAX, EXPRESSIONS_MAX, Error};
pub use settings::{Dialect, Dst, ScheduleSettings};
pub use zone::Zone;

/// What a job's `cronExpr` stands for: one expression, or several in lines, any of which fires.
#[derive(Clone, Debug)]
pub struct Schedule {
    expressions: Arc<[Expression]>,
    zone: Zone,
    window: Window,
    days: Option<Arc<Days>>,
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
    /// Parses expressions, one a line. Each has 5 fields (minute hour day-of-month month day-of-week), 6 (seconds first, unless the last field can
    /// only be a year) or 7 (seconds … year), or is one of `@hourly @daily @midnight @weekly @monthly @yearly @annually`, `@every 1h30m` or
    /// `@at 2027-01-31T08:00:00+01:00`; `CRON_TZ=Europe/Berlin` before it is a zone of its own. Takes any text, in bounded work.
    ///
    /// # Errors
    /// Which line and field is wrong, what is wrong with it, what to write instead; also for what has no fire at all from 1970 to 2199. Whether
    /// the last fire has gone by is not asked here, nor whether any is on the days of `settings`: that is `next_after(now)`.
    pub fn parse(text: &str, settings: &ScheduleSettings<'_>) -> Result<Self, Error> {
        let parsed = parse::parse(text, settings)?;
        let warning = (!parsed.warnings.is_empty()).then(|| parsed.warnings.join("; ").into());
        Ok(Self {
            expressions: parsed.expressions.into(),
            zone: settings.zone.clone(),
            window: Window::default(),
            days: settings.days.clone(),
            warning,
        })
    }

    /// On which days it has fires; `None` = on any.
    #[must_use]
    pub fn days(&self) -> Option<&Days> {
        self.days.as_deref()
    }

    /// Whether a text may give different jobs different times, by `H`.
    #[must_use]
    pub fn depends_on_name(text: &str) -> bool {
        parse::may_be_hashed(text)
    }

    /// What it was read as, in the order of its lines.
    #[must_use]
    pub fn expressions(&self) -> &[Expression] {
        &self.expressions
    }

    /// The zone that it was read in; an expression may have another (see [`Fields::zone`]).
    #[must_use]
    pub fn zone(&self) -> &Zone {
        &self.zone
    }

    /// What the author should know about how the expressions were read.
    #[must_use]
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    /// The schedule in words, without its window.
    #[must_use]
    pub fn describe(&self, language: Language) -> String {
        describe::describe(self, language)
    }

    /// The same schedule with no fires outside of `window`. What is large of it is shared, and the search is no longer.
    #[must_use]
    pub fn within(self, window: Window) -> Self {
        Self { window, ..self }
    }

    /// The first fire after `t`: always later than `t`; on a whole second, unless `@at` says otherwise; `None` when there is none. Bounded work.
    #[must_use]
    pub fn next_after(&self, t: Timestamp) -> Option<Timestamp> {
        let Window { from, until } = self.window;
        let t = from.map_or(t, |from| t.max(from.plus_ms(-1)));
        let fire = self.expressions.iter().filter_map(|expression| self.next_of(expression, t)).min();
        fire.filter(|fire| until.is_none_or(|until| *fire < until))
    }

    /// The first fire of one expression after `t` that is on a day with fires: by the date that clocks of the expression's zone show at that
    /// moment. Bounded: each turn passes a stretch of days without fires, and one of days with fires in which the expression has none.
    fn next_of(&self, expression: &Expression, mut t: Timestamp) -> Option<Timestamp> {
        let Some(days) = &self.days else { return expression.next_after(t) };
        let zone = match expression {
            Expression::Fields(fields) => fields.zone(),
            Expression::Every { .. } | Expression::At(_) => &self.zone,
        };
        loop {
            let fire = expression
                .next_after(t)
                .filter(|fire| self.window.until.is_none_or(|until| *fire < until))?;
            let second = fire.ms().div_euclid(1000);
            let allowed = days.next_second(second, zone)?;
            if allowed == second {
                return Some(fire);
            }
            t = Timestamp::from_ms(allowed * 1000 - 1);
        }
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
