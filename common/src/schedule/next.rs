//! Time in, time out: the search for fires.

use chrono::{DateTime, Datelike, NaiveDate, Utc};

use super::Fires;
use super::fields::{YEARS, Years};
use crate::clock::Timestamp;

/// The last year that the `cron` crate knows: from there on we ask it about a year with the same calendar.
const CRATE_YEAR_LAST: i32 = 2100;

/// The first fire after `t`.
pub(super) fn next_after(parts: &[cron::Schedule], years: &Years, t: Timestamp) -> Option<Timestamp> {
    // Nothing fires before 1970, and the crate takes a year before 0 for a late one.
    let first_second = t.ms().div_euclid(1000).saturating_add(1).max(0);
    let mut from = DateTime::from_timestamp(first_second, 0)?;
    // Each round ends the search or moves it to a later year, so there are at most as many rounds as years.
    loop {
        let year = (year_of(&from)..=YEARS.1).find(|year| years.contains(*year))?;
        from = from.max(start_of(year)?);
        match search(parts, year, from)? {
            Found::Fire(fire) if years.contains(year_of(&fire)) => {
                return Some(Timestamp::from_ms(fire.timestamp() * 1000));
            }
            // The crate does not know our years: go on from the year that it came to, which is later than `year`.
            Found::Fire(fire) => from = fire,
            Found::NothingBefore(year) => from = start_of(year)?,
        }
    }
}

enum Found {
    Fire(DateTime<Utc>),
    /// No fire from where the search began to the start of this later year.
    NothingBefore(u32),
}

/// The first fire at or after `from`, which lies in `year`, whatever the years of the schedule.
fn search(parts: &[cron::Schedule], year: u32, from: DateTime<Utc>) -> Option<Found> {
    let year_signed = i32::try_from(year).ok()?;
    if year_signed <= CRATE_YEAR_LAST {
        let fire = earliest(parts, from);
        return Some(fire.map_or(Found::NothingBefore(CRATE_YEAR_LAST.unsigned_abs() + 1), Found::Fire));
    }
    let model = model_year(year_signed)?;
    let fire = earliest(parts, from.with_year(model)?).filter(|fire| fire.year() == model);
    Some(match fire {
        Some(fire) => Found::Fire(fire.with_year(year_signed)?),
        None => Found::NothingBefore(year + 1),
    })
}

/// The first time at or after `from` that one of the parts has, up to the end of the crate's years.
fn earliest(parts: &[cron::Schedule], from: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let before = from - chrono::TimeDelta::seconds(1);
    parts.iter().filter_map(|part| part.after(&before).next()).min()
}

/// A year known to the crate whose days fall on the same weekdays: among 28 years in a row without a skipped leap year each kind is found.
fn model_year(year: i32) -> Option<i32> {
    let kind = |year| NaiveDate::from_ymd_opt(year, 1, 1).map(|day| (day.weekday(), day.leap_year()));
    (2001..=2028).find(|model| kind(*model) == kind(year))
}

fn year_of(t: &DateTime<Utc>) -> u32 {
    // Never negative: the search starts in 1970.
    t.year().unsigned_abs()
}

fn start_of(year: u32) -> Option<DateTime<Utc>> {
    let day = NaiveDate::from_ymd_opt(i32::try_from(year).ok()?, 1, 1)?;
    Some(day.and_hms_opt(0, 0, 0)?.and_utc())
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
