//! The calendar: days since 1970 and dates, and which days of a month the day fields mean.

use super::expression::{DaysOfMonth, DaysOfWeek};

/// The day of a date, counted from 1970-01-01.
#[must_use]
pub fn day_of(year: u32, month: u32, day: u32) -> i64 {
    // Years are counted from March on, so that the leap day is a year's last.
    let (year, month) =
        if month > 2 { (i64::from(year), month - 3) } else { (i64::from(year) - 1, month + 9) };
    let in_year = i64::from((153 * month + 2) / 5 + day) - 1;
    365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + in_year - 719_468
}

/// The date of a day counted from 1970-01-01: year, month, day; `None` when it is before that, or thousands of years after.
#[must_use]
pub fn date_of(day: i64) -> Option<(u32, u32, u32)> {
    // 400 years have 146,097 days.
    let days = u64::try_from(day).ok()?.checked_add(719_468)?;
    let (era, in_era) = (days / 146_097, days % 146_097);
    let year_of_era = (in_era - in_era / 1_460 + in_era / 36_524 - in_era / 146_096) / 365;
    let in_year = in_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * in_year + 2) / 153;
    let day = in_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    Some((u32::try_from(year).ok()?, u32::try_from(month).ok()?, u32::try_from(day).ok()?))
}

/// One month: its length, and the weekday with which it begins.
#[derive(Clone, Copy)]
pub(super) struct Month {
    /// How many days it has.
    pub(super) days: u32,
    /// The weekday of its first day; Sunday is 0.
    first: u32,
}

impl Month {
    pub(super) fn new(year: u32, month: u32) -> Self {
        let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        let days = match month {
            2 => 28 + u32::from(leap),
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        // 1970 began with a Thursday.
        let first = (day_of(year, month, 1) + 4).rem_euclid(7);
        Self { days, first: u32::try_from(first).unwrap_or_default() }
    }

    /// Every day of it, day `n` as bit `n`.
    pub(super) fn all(self) -> u32 {
        (u32::MAX >> (31 - self.days)) & !1
    }

    fn weekday(self, day: u32) -> u32 {
        (self.first + day - 1) % 7
    }

    /// The days that the field day of month means, day `n` as bit `n`.
    pub(super) fn days_of_month(self, field: &DaysOfMonth) -> u32 {
        let mut days = field.plain;
        if let Some(special) = &field.special {
            for back in bits(special.last).filter(|back| *back < self.days) {
                days |= 1 << (self.days - back);
            }
            for day in bits(special.workdays).filter(|day| *day <= self.days) {
                days |= 1 << self.workday_near(day);
            }
            for back in bits(special.last_workdays).filter(|back| *back < self.days) {
                days |= 1 << self.workday_near(self.days - back);
            }
        }
        days & self.all()
    }

    /// The day from Monday to Friday that is nearest to this one, in the same month.
    fn workday_near(self, day: u32) -> u32 {
        match self.weekday(day) {
            6 if day > 1 => day - 1,
            6 => day + 2,
            0 if day < self.days => day + 1,
            0 => day - 2,
            _ => day,
        }
    }

    /// The days that the field day of week means, day `n` as bit `n`.
    pub(super) fn days_of_week(self, field: &DaysOfWeek) -> u32 {
        // A week that begins with the month's first weekday, five times over.
        let week = u64::from(field.plain);
        let week = ((week >> self.first) | (week << (7 - self.first))) & 0x7f;
        let month = (week * 0x1020_4081) << 1;
        let mut days = u32::try_from(month & 0xffff_ffff).unwrap_or_default();
        if let Some(special) = &field.special {
            let first_of = |weekday: u32| 1 + (weekday + 7 - self.first) % 7;
            for (nth, weekdays) in (0..).zip(special.nth) {
                for day in bits(weekdays.into()).map(|weekday| first_of(weekday) + 7 * nth) {
                    days |= if day <= self.days { 1 << day } else { 0 };
                }
            }
            for first in bits(special.last.into()).map(first_of) {
                days |= 1 << (first + (self.days - first) / 7 * 7);
            }
        }
        days & self.all()
    }
}

/// The numbers in a set.
pub(super) fn bits(set: u32) -> impl Iterator<Item = u32> {
    (0..32).filter(move |n| (set >> n) & 1 == 1)
}
