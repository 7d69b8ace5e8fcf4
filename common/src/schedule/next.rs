//! Time in, time out: the search for fires.
//!
//! The fields are about what a clock on the wall shows; [`Fields::search`] finds the next wall time that they have, in sets of bits, month by
//! month at most. Where the clocks of a zone jump, a wall time stands for no moment or for two: [`Fields::elapsed`] and [`Fields::once`] say for
//! which ones. All times here are whole seconds; wall times are counted as if they were UTC.

use super::calendar::{Month, date_of, day_of};
use super::expression::{Expression, Fields};
use super::fields::YEARS;
use super::settings::Dst;
use super::zone::{DAY, Period};
use super::{Fires, Timestamp};

impl Expression {
    /// The first fire after `t`, which is not before 1970.
    pub(super) fn next_after(&self, t: Timestamp) -> Option<Timestamp> {
        let second = t.ms().div_euclid(1000).saturating_add(1).max(0);
        let found = match self {
            Self::At(at) => return Some(*at).filter(|at| *at > t),
            Self::Every { seconds } => {
                let period = i64::from(*seconds);
                let up = second.checked_add(period - 1)?;
                Some(up / period * period).filter(|fire| *fire < END)
            }
            Self::Fields(fields) => fields.next_from(second),
        };
        found.and_then(|second| second.checked_mul(1000)).map(Timestamp::from_ms)
    }
}

/// The end of the year 2199, in UTC: for what has no zone.
const END: i64 = 7_258_118_400;

impl Fields {
    /// The first fire at or after `t`.
    pub(super) fn next_from(&self, t: i64) -> Option<i64> {
        if t > END + DAY {
            return None;
        }
        let period = self.zone.period_at(t);
        if self.interval || self.dst == Dst::Twice { self.elapsed(t, period) } else { self.once(t, period) }
    }

    /// The first moment from `t` on at which clocks on the wall show one of the times: each time that is shown twice fires twice, what is never
    /// shown does not. `period` is the one of `t`.
    fn elapsed(&self, t: i64, mut period: Period) -> Option<i64> {
        // `found` is the first wall time that the fields have from the wall time `searched` on; that holds for all between the two.
        let mut searched = period.wall(t);
        let mut found = self.search(searched);
        loop {
            if let Some(wall) = found
                && wall - period.offset < period.end
            {
                return Some(wall - period.offset);
            }
            period = self.zone.period_after(&period)?;
            let begins = period.wall(period.start);
            let known = searched <= begins && found.is_none_or(|wall| begins <= wall);
            if !known {
                (searched, found) = (begins, self.search(begins));
            }
        }
    }

    /// The first moment from `t` on at which clocks show one of the times for the first time; a time that they skip counts as shown at the end of
    /// the gap, unless such times are let go. `period` is the one of `t`.
    fn once(&self, t: i64, mut period: Period) -> Option<i64> {
        // What clocks showed before `t`, and what they skipped by then, is over: in the second pass of a repeated hour those are its times. At
        // the first second after a gap the times in the gap are not.
        let mut over = if t > period.start { period.wall(t - 1) } else { i64::MIN };
        if let Some(before) = self.zone.period_before(&period)
            && t - period.start < 2 * DAY
        {
            over = over.max(before.wall(period.start - 1));
        }
        let mut wall = self.search(over.saturating_add(1))?;
        loop {
            // The period in which clocks first show `wall` or more.
            while wall - period.offset >= period.end {
                period = self.zone.period_after(&period)?;
            }
            let moment = (wall - period.offset).max(period.start);
            let skipped = period.wall(moment) != wall;
            if !skipped || self.dst != Dst::Skip {
                return Some(moment);
            }
            wall = self.search(period.wall(moment))?;
        }
    }

    /// The first wall time at or after `from` that the fields have, up to the end of 2199. Bounded: by the months of 230 years.
    fn search(&self, from: i64) -> Option<i64> {
        let from = from.max(0);
        let (day, second_of_day) = (from.div_euclid(DAY), from.rem_euclid(DAY));
        let (year, month, day_of_month) = date_of(day)?;
        if self.has_year(year)
            && (self.month >> month) & 1 == 1
            && (self.days(year, month) >> day_of_month) & 1 == 1
            && let Some(time) = self.time_from(u32::try_from(second_of_day).ok()?)
        {
            return Some(day * DAY + i64::from(time));
        }
        let day = self.day_after(year, month, day_of_month)?;
        Some(day * DAY + i64::from(self.time_from(0)?))
    }

    /// The days of a month that fire, day `n` as bit `n`.
    fn days(&self, year: u32, month: u32) -> u32 {
        let month = Month::new(year, month);
        let (by_date, by_weekday) =
            (month.days_of_month(&self.day_of_month), month.days_of_week(&self.day_of_week));
        if self.either_day { by_date | by_weekday } else { by_date & by_weekday }
    }

    /// The first day after this date that fires, counted from 1970.
    fn day_after(&self, year: u32, month: u32, day: u32) -> Option<i64> {
        let mut months_from = month;
        // Of the month that it begins with, only the days that are left.
        let mut days_from = !1_u32 << day;
        for year in year.max(YEARS.0)..=YEARS.1 {
            let mut months =
                if self.has_year(year) { u32::from(self.month) >> months_from << months_from } else { 0 };
            while months != 0 {
                let month = months.trailing_zeros();
                months &= months - 1;
                if month != months_from {
                    days_from = u32::MAX;
                }
                let days = self.days(year, month) & days_from;
                if days != 0 {
                    return Some(day_of(year, month, days.trailing_zeros()));
                }
            }
            (months_from, days_from) = (0, u32::MAX);
        }
        None
    }

    /// The first time of a day at or after this second of the day.
    fn time_from(&self, second_of_day: u32) -> Option<u32> {
        let (hour, minute, second) = (second_of_day / 3600, second_of_day / 60 % 60, second_of_day % 60);
        let first_second = self.second.trailing_zeros();
        if (self.hour >> hour) & 1 == 1 {
            if (self.minute >> minute) & 1 == 1
                && let Some(second) = first_from(self.second, second)
            {
                return Some(hour * 3600 + minute * 60 + second);
            }
            if let Some(minute) = first_from(self.minute, minute + 1) {
                return Some(hour * 3600 + minute * 60 + first_second);
            }
        }
        let hour = first_from(self.hour.into(), hour + 1)?;
        Some(hour * 3600 + self.minute.trailing_zeros() * 60 + first_second)
    }
}

/// The first number of a set that is not below `from`, which is at most 63.
fn first_from(set: u64, from: u32) -> Option<u32> {
    let rest = set >> from << from;
    (rest != 0).then(|| rest.trailing_zeros())
}

/// The fires in (`after`, `until`], found with `next` alone: some forty calls for the last, at most `count_max` for the count.
pub(super) fn fires_between(
    next: impl Fn(Timestamp) -> Option<Timestamp>,
    after: Timestamp,
    until: Timestamp,
    count_max: u64,
) -> Option<Fires> {
    let in_time = |t| next(t).filter(|fire| *fire <= until);
    let first = in_time(after)?;
    let last = last_fire(in_time, first, until);
    let (mut count, mut at) = (count_max.min(1), first);
    while count < count_max
        && at < last
        && let Some(fire) = in_time(at)
    {
        (count, at) = (count + 1, fire);
    }
    Some(Fires { first, last, count, more: count == 0 || at < last })
}

/// The last fire up to `until`, given one of them. Fires have no regular distance, but "there is one after `t`" changes only once from yes
/// to no as `t` grows, so it can be bisected.
fn last_fire(
    in_time: impl Fn(Timestamp) -> Option<Timestamp>,
    first: Timestamp,
    until: Timestamp,
) -> Timestamp {
    // `last` is a fire; none lies in (`none_after`, `until`].
    let (mut last, mut none_after) = (first, until);
    while last < none_after {
        let middle = last.plus_ms(none_after.ms_since(last) / 2);
        match in_time(middle) {
            Some(fire) => last = fire,
            None => none_after = middle,
        }
    }
    last
}
