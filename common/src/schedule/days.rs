//! Sets of days, and on which days a schedule has fires: a schedule may leave out days (holidays), or be limited to some.

use std::sync::Arc;

use super::zone::{DAY, Zone};

/// As many days as there are from 1970 to 2199: day 0 is 1970-01-01.
pub const DAYS: i64 = 84_006;
const WORDS: usize = 1_313;
const BITS: i64 = 64;

/// Days from 1970 to 2199, one bit each: 10 kB, however many.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct DaySet(Box<[u64]>);

impl Default for DaySet {
    fn default() -> Self {
        Self(vec![0; WORDS].into())
    }
}

impl DaySet {
    /// Adds the days from `first` to `last`, both in it. What is before 1970 or after 2199 is left out.
    pub fn add(&mut self, first: i64, last: i64) {
        for day in first.max(0)..=last.min(DAYS - 1) {
            if let Some((word, bit)) = place(day) {
                self.0[word] |= 1 << bit;
            }
        }
    }

    /// Whether a day is in it.
    #[must_use]
    pub fn has(&self, day: i64) -> bool {
        place(day).is_some_and(|(word, bit)| (self.0[word] >> bit) & 1 == 1)
    }

    /// How many days are in it.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// Its days as stretches, first and last, in order.
    #[must_use]
    pub fn stretches(&self) -> Vec<(i64, i64)> {
        let mut stretches: Vec<(i64, i64)> = Vec::new();
        for day in (0..DAYS).filter(|day| self.has(*day)) {
            match stretches.last_mut() {
                Some((_, last)) if *last + 1 == day => *last = day,
                _ => stretches.push((day, day)),
            }
        }
        stretches
    }

    /// The same for equal sets, in every version: it is part of what stands in marks.
    fn digest(&self) -> u64 {
        let bytes: Vec<u8> = self.0.iter().flat_map(|word| word.to_le_bytes()).collect();
        xxhash_rust::xxh3::xxh3_64(&bytes)
    }
}

/// The word and the bit of a day.
fn place(day: i64) -> Option<(usize, u32)> {
    let in_range = (0..DAYS).contains(&day);
    in_range.then(|| Some((usize::try_from(day / BITS).ok()?, u32::try_from(day % BITS).ok()?))).flatten()
}

/// A set of days by the name that people gave it; `None` = there is none of this name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct NamedDays {
    /// The name.
    pub name: Arc<str>,
    /// The days.
    pub days: Option<Arc<DaySet>>,
}

/// On which days a schedule has fires: in none of `exclude`, and in one of `only` unless that is empty.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Days {
    /// Sets of days without fires.
    pub exclude: Vec<NamedDays>,
    /// All other days are without fires; empty = that is not asked for.
    pub only: Vec<NamedDays>,
}

impl Days {
    /// The names that there is no set for.
    #[must_use]
    pub fn missing(&self) -> Vec<&str> {
        let all = self.exclude.iter().chain(&self.only);
        all.filter(|named| named.days.is_none()).map(|named| &*named.name).collect()
    }

    /// What fires depend on, for the hash of a schedule: the days, whatever the sets are called.
    #[must_use]
    pub fn text_to_hash(&self) -> String {
        let told = |what: &str, sets: &[NamedDays]| -> String {
            let digest = |named: &NamedDays| match &named.days {
                Some(days) => format!("\0{what} {:016x}", days.digest()),
                None => format!("\0{what} nothing"),
            };
            sets.iter().map(digest).collect()
        };
        told("exclude", &self.exclude) + &told("only", &self.only)
    }

    /// The days of a word that have fires.
    fn word(&self, index: usize) -> u64 {
        let of = |named: &NamedDays| named.days.as_ref().map_or(0, |days| days.0[index]);
        let any = |sets: &[NamedDays]| sets.iter().fold(0, |all, named| all | of(named));
        let only = if self.only.is_empty() { u64::MAX } else { any(&self.only) };
        only & !any(&self.exclude)
    }

    /// The first day with fires from `day` on.
    fn next_day(&self, day: i64) -> Option<i64> {
        let (first, bit) = place(day.max(0))?;
        let mut mask = u64::MAX << bit;
        for index in first..WORDS {
            let word = self.word(index) & mask;
            if word != 0 {
                let day = i64::try_from(index).ok()? * BITS + i64::from(word.trailing_zeros());
                return (day < DAYS).then_some(day);
            }
            mask = u64::MAX;
        }
        None
    }

    /// The first second from `t` on that is on a day with fires, by the clocks of this zone. Bounded by the zone's jumps until 2199.
    pub(super) fn next_second(&self, t: i64, zone: &Zone) -> Option<i64> {
        let (mut at, mut period) = (t, zone.period_at(t));
        loop {
            let today = period.wall(at).div_euclid(DAY);
            let day = self.next_day(today);
            if day == Some(today) {
                return Some(at);
            }
            // Clocks that are put back may show a day again that was over, so a jump is looked at whatever comes after it.
            let begins = day.map(|day| day * DAY - period.offset);
            if let Some(begins) = begins.filter(|begins| *begins < period.end) {
                return Some(begins);
            }
            period = zone.period_after(&period)?;
            at = period.start;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Schedule, ScheduleSettings, Window};
    use super::*;
    use crate::clock::Timestamp;

    fn set(stretches: &[(i64, i64)]) -> DaySet {
        let mut set = DaySet::default();
        stretches.iter().for_each(|(first, last)| set.add(*first, *last));
        set
    }

    fn named(sets: &[DaySet]) -> Vec<NamedDays> {
        sets.iter().map(|set| NamedDays { name: "some".into(), days: Some(Arc::new(set.clone())) }).collect()
    }

    fn schedule(text: &str, zone: &str, days: Days) -> Schedule {
        let settings = ScheduleSettings {
            zone: Zone::parse(zone).unwrap(),
            days: Some(Arc::new(days)),
            ..ScheduleSettings::default()
        };
        Schedule::parse(text, &settings).unwrap()
    }

    #[test]
    fn a_set_has_what_was_added_and_ends_with_2199() {
        let set = set(&[(-5, 0), (63, 64), (100, 99), (DAYS - 1, DAYS + 5)]);
        assert_eq!(set.stretches(), [(0, 0), (63, 64), (DAYS - 1, DAYS - 1)]);
        assert_eq!(set.count(), 4);
        assert!(!set.has(-1) && set.has(63) && !set.has(DAYS));
        assert_eq!(super::super::date_of(DAYS - 1), Some((2199, 12, 31)));
        assert!(usize::try_from(DAYS).unwrap() <= WORDS * 64);
    }

    #[test]
    fn the_digest_is_the_same_in_every_version() {
        // It is in the marks' hashes: another number here would move the base of every job with calendars.
        let days = Days { exclude: named(&[set(&[(20_000, 20_001)])]), only: named(&[set(&[])]) };
        assert_eq!(days.text_to_hash(), "\0exclude 09a6ddee264d2b1a\0only 20364f6c069fe299");
        let missing = Days { only: vec![NamedDays { name: "gone".into(), days: None }], ..Days::default() };
        assert_eq!((missing.text_to_hash().as_str(), missing.missing()), ("\0only nothing", vec!["gone"]));
    }

    /// Held against the schedule without days: of its fires those whose date, by the zone's clocks, is a day with fires.
    #[test]
    fn fires_are_those_of_the_days_that_are_left() {
        // 2011, 2016 and 2018 with a skipped day, a day of two halves, and midnights that are skipped or come twice.
        let begins = [(2011, 12, 26), (2018, 2, 14), (2018, 11, 1), (2026, 10, 30), (2027, 3, 12)];
        let expressions = [
            "0 0 * * *",
            "*/30 * * * *",
            "30 23 * * *",
            "0 12 * * 1-5",
            "@every 7h",
            "CRON_TZ=Asia/Tokyo 0 1 * * *",
        ];
        let mut seen = 0;
        for zone in ["UTC", "Pacific/Apia", "America/Sao_Paulo", "America/New_York", "Asia/Tokyo"] {
            for (year, month, day) in begins {
                let first = super::super::day_of(year, month, day);
                for pattern in 0..32_u32 {
                    let some: Vec<(i64, i64)> = (0..10)
                        .filter(|n| (pattern >> (n % 5)) & 1 == 1)
                        .map(|n| (first + n, first + n))
                        .collect();
                    let other = set(&[(first + 3, first + 4)]);
                    for days in [
                        Days { exclude: named(&[set(&some), other.clone()]), only: Vec::new() },
                        Days { exclude: Vec::new(), only: named(&[set(&some), other.clone()]) },
                        Days { exclude: named(std::slice::from_ref(&other)), only: named(&[set(&some)]) },
                    ] {
                        let text = expressions[seen % expressions.len()];
                        seen += 1;
                        check(text, zone, first, days);
                    }
                }
            }
        }
    }

    fn check(text: &str, zone: &str, first: i64, days: Days) {
        let with = schedule(text, zone, days.clone());
        let without = schedule(text, zone, Days::default());
        let own = if text.starts_with("CRON_TZ") { "Asia/Tokyo" } else { zone };
        let clocks = Zone::parse(own).unwrap();
        let until = Timestamp::from_ms((first + 14) * DAY * 1000);
        let has_fires = |t: &Timestamp| {
            let today = (t.ms().div_euclid(1000) + clocks.offset_at(*t)).div_euclid(DAY);
            let any = |sets: &[NamedDays]| sets.iter().any(|set| set.days.as_ref().unwrap().has(today));
            (days.only.is_empty() || any(&days.only)) && !any(&days.exclude)
        };
        let fires = |schedule: &Schedule| -> Vec<Timestamp> {
            let next = |t: &Timestamp| schedule.next_after(*t).filter(|fire| *fire <= until);
            std::iter::successors(next(&Timestamp::from_ms((first - 2) * DAY * 1000)), next).collect()
        };
        let expected: Vec<Timestamp> = fires(&without).into_iter().filter(has_fires).collect();
        assert_eq!(fires(&with), expected, "{text} in {zone}: {days:?}");
    }

    #[test]
    fn what_never_fires_is_found_out_and_a_window_ends_the_search() {
        let never = Days { only: named(&[set(&[(20_000, 20_400)])]), ..Days::default() };
        let past = Timestamp::from_ms(20_401 * DAY * 1000);
        assert_eq!(schedule("* * * * * *", "Europe/Berlin", never.clone()).next_after(past), None);
        let nothing = Days { only: named(&[DaySet::default()]), ..Days::default() };
        assert_eq!(schedule("* * * * * *", "Africa/Casablanca", nothing).next_after(Timestamp::ZERO), None);
        let all = Days { exclude: named(&[set(&[(0, DAYS)])]), ..Days::default() };
        assert_eq!(schedule("@every 1s", "UTC", all).next_after(Timestamp::ZERO), None);
        // Every other day has none: the search goes from one to the next.
        let odd: Vec<(i64, i64)> = (0..10_000).map(|n| (n * 2 + 1, n * 2 + 1)).collect();
        let only = Days { only: named(&[set(&odd)]), ..Days::default() };
        let window = Window { from: None, until: Some(Timestamp::from_ms(19_999 * DAY * 1000)) };
        let even = schedule("0 0 31 12 1", "UTC", only).within(window);
        assert!(even.next_after(Timestamp::ZERO).is_some());
    }

    #[test]
    fn a_schedule_with_an_unknown_set_of_days_is_none() {
        let days = Days { exclude: vec![NamedDays { name: "gone".into(), days: None }], ..Days::default() };
        let settings = ScheduleSettings { days: Some(Arc::new(days)), ..ScheduleSettings::default() };
        let why = Schedule::parse("* * * * *", &settings).unwrap_err();
        assert_eq!(why.of_job(), "calendars: there is no calendar gone");
        let wrong = Schedule::parse("61 * * * *", &ScheduleSettings::default()).unwrap_err();
        assert!(wrong.of_job().starts_with("cronExpr: minute: "), "{}", wrong.of_job());
    }

    #[test]
    fn the_days_are_told_in_words() {
        use super::super::Language::{Chinese, English};
        let of = |name: &str| NamedDays { name: name.into(), days: Some(Arc::default()) };
        let days =
            Days { exclude: vec![of("holidays"), of("节假日")], only: vec![of("a"), of("b"), of("c")] };
        let told = schedule("0 9 * * *", "UTC", days);
        assert_eq!(
            told.describe(English),
            "at 09:00 every day, UTC, only on days of the calendar \"a\", \"b\" or \"c\", not on days of the calendar \"holidays\" or \"节假日\""
        );
        let chinese = told.describe(Chinese);
        assert!(
            chinese.ends_with("，仅在日历“a”、“b”或“c”中的日子，日历“holidays”或“节假日”中的日子除外"),
            "{chinese}"
        );
    }
}
