//! What was read of an expression: sets of numbers, in which the search for fires is fast and of which a description can be made.

use super::calendar::bits;
use super::fields::{self, Field, YEARS, Years};
use super::settings::Dst;
use super::zone::Zone;
use crate::clock::Timestamp;

/// One expression, read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Expression {
    /// Fields, or a nickname of fields.
    Fields(Box<Fields>),
    /// `@every`: each multiple of so many seconds since 1970, whoever asks and since whenever.
    Every {
        /// The period, at least 1.
        seconds: u32,
    },
    /// `@at`: once.
    At(Timestamp),
}

/// The fields of an expression.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fields {
    pub(super) second: u64,
    pub(super) minute: u64,
    pub(super) hour: u32,
    pub(super) month: u16,
    pub(super) day_of_month: DaysOfMonth,
    pub(super) day_of_week: DaysOfWeek,
    /// `None` = every year.
    pub(super) years: Option<Box<Years>>,
    pub(super) zone: Zone,
    pub(super) dst: Dst,
    pub(super) either_day: bool,
    pub(super) interval: bool,
}

/// The place of a field in an expression.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// 0 to 59.
    Second,
    /// 0 to 59.
    Minute,
    /// 0 to 23.
    Hour,
    /// 1 to 31.
    DayOfMonth,
    /// 1 to 12.
    Month,
    /// 0 to 6, Sunday is 0.
    DayOfWeek,
    /// 1970 to 2199.
    Year,
}

impl Place {
    pub(super) fn field(self) -> &'static Field {
        match self {
            Self::Second => &fields::SECOND,
            Self::Minute => &fields::MINUTE,
            Self::Hour => &fields::HOUR,
            Self::DayOfMonth => &fields::DAY_OF_MONTH,
            Self::Month => &fields::MONTH,
            Self::DayOfWeek => &fields::DAY_OF_WEEK,
            Self::Year => &fields::YEAR,
        }
    }
}

/// The field day of month: a day that any of these has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DaysOfMonth {
    /// Day `n` is bit `n`.
    pub(super) plain: u32,
    pub(super) special: Option<Box<SpecialDays>>,
}

/// Days of a month that depend on the month; in each set `n` is bit `n`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SpecialDays {
    /// `L-n`: so many days before the last.
    pub(super) last: u32,
    /// `nW`: the working day nearest to the day `n`.
    pub(super) workdays: u32,
    /// `L-nW`: the working day nearest to the day so many before the last.
    pub(super) last_workdays: u32,
}

/// The field day of week: a day that any of these has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DaysOfWeek {
    /// Sunday is bit 0.
    pub(super) plain: u8,
    pub(super) special: Option<Box<SpecialWeekdays>>,
}

/// Weekdays by their place in the month; Sunday is bit 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SpecialWeekdays {
    /// `5L`: the last Friday.
    pub(super) last: u8,
    /// `5#2`: the second Friday; the first ones are at 0.
    pub(super) nth: [u8; 5],
}

/// A day that only the month itself decides, for a description.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SpecialDay {
    /// So many days before the month's last; 0 is the last.
    FromLast(u32),
    /// The day from Monday to Friday that is nearest to this day of the month.
    Workday(u32),
    /// The same, nearest to the day so many before the last.
    WorkdayFromLast(u32),
    /// The last of this weekday (Sunday is 0).
    LastWeekday(u32),
    /// The n-th of this weekday (Sunday is 0), from 1 on.
    NthWeekday(u32, u32),
}

impl Fields {
    /// The plain numbers of a field, in order. What depends on the month is in [`Self::special_days`].
    #[must_use]
    pub fn values(&self, place: Place) -> Vec<u32> {
        let few = |set: u64| (0..64).filter(|n| (set >> n) & 1 == 1).collect();
        match place {
            Place::Second => few(self.second),
            Place::Minute => few(self.minute),
            Place::Hour => few(self.hour.into()),
            Place::DayOfMonth => few(self.day_of_month.plain.into()),
            Place::Month => few(self.month.into()),
            Place::DayOfWeek => few(self.day_of_week.plain.into()),
            Place::Year => (YEARS.0..=YEARS.1).filter(|year| self.has_year(*year)).collect(),
        }
    }

    /// Whether a field has all its numbers, and so says nothing.
    #[must_use]
    pub fn is_all(&self, place: Place) -> bool {
        let field = place.field();
        self.values(place).len() == (field.last() - field.min + 1) as usize
    }

    /// The days that depend on the month: of the day of month first, then of the day of week.
    #[must_use]
    pub fn special_days(&self) -> Vec<SpecialDay> {
        let mut days = Vec::new();
        if let Some(special) = &self.day_of_month.special {
            days.extend(bits(special.last).map(SpecialDay::FromLast));
            days.extend(bits(special.workdays).map(SpecialDay::Workday));
            days.extend(bits(special.last_workdays).map(SpecialDay::WorkdayFromLast));
        }
        if let Some(special) = &self.day_of_week.special {
            days.extend(bits(special.last.into()).map(SpecialDay::LastWeekday));
            for (nth, weekdays) in (1..).zip(special.nth) {
                days.extend(bits(weekdays.into()).map(|weekday| SpecialDay::NthWeekday(weekday, nth)));
            }
        }
        days
    }

    /// A day fires when either day field has it; else both must.
    #[must_use]
    pub fn is_either_day(&self) -> bool {
        self.either_day
    }

    /// It follows elapsed time where clocks jump, since it says how often and not when: its second, minute or hour is `*` or has a step (or, in
    /// expressions with a second, a range). Else its times are fixed, and [`Dst`] decides.
    #[must_use]
    pub fn is_interval(&self) -> bool {
        self.interval
    }

    /// The zone of its times.
    #[must_use]
    pub fn zone(&self) -> &Zone {
        &self.zone
    }

    pub(super) fn has_year(&self, year: u32) -> bool {
        match &self.years {
            Some(years) => years.contains(year),
            None => (YEARS.0..=YEARS.1).contains(&year),
        }
    }
}
