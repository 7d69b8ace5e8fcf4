//! What an expression does not say itself: in which zone, by which dialect and by which rule for daylight saving it is read.

use std::sync::Arc;

use super::days::Days;
use super::zone::Zone;

/// How the fields of an expression are read.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Dialect {
    /// Crontab's reading; six fields begin with the second, unless the last can only be a year.
    #[default]
    Standard,
    /// As the library of the seed read: six fields end with the year, `*/n` in a day field is a restriction, empty items of lists and fields
    /// after the seventh are passed over.
    Seed,
}

impl Dialect {
    /// Every dialect and its name.
    pub const ALL: [(Self, &'static str); 2] = [(Self::Standard, "standard"), (Self::Seed, "seed")];
}

/// What becomes of fires at times that the clocks skip, or show twice. Jobs that follow elapsed time (see [`super::Fields::is_interval`]) are the
/// same under each: they fire whenever a clock on the wall shows one of their times.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Dst {
    /// Debian's rule: skipped times fire once right after the gap, repeated ones the first time only.
    #[default]
    Debian,
    /// Skipped times do not fire, repeated ones the first time only.
    Skip,
    /// Skipped times do not fire, repeated ones fire both times.
    Twice,
}

impl Dst {
    /// Every rule and its name.
    pub const ALL: [(Self, &'static str); 3] =
        [(Self::Debian, "debian"), (Self::Skip, "skip"), (Self::Twice, "twice")];
}

/// With what an expression is read. The default is UTC, no dialect chosen, Debian's rule, no name, every day.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct ScheduleSettings<'a> {
    /// The zone of its times; `CRON_TZ=…` in front of an expression is another for that one.
    pub zone: Zone,
    /// The dialect that somebody chose; `None` is the standard one, with a word of warning where the seed read otherwise.
    pub dialect: Option<Dialect>,
    /// The rule for daylight saving.
    pub dst: Dst,
    /// The job's name, from which `H` takes its value; without one `H` is refused.
    pub name: Option<&'a str>,
    /// On which days there are fires; `None` = on any.
    pub days: Option<Arc<Days>>,
}
