//! How the library of the seed (gorhill/cronexpr) reads an expression and finds its next time, with its faults: only so can be said what a fleet of
//! seed workers does today. Nothing is scheduled by this.

use std::collections::BTreeSet;

use common::clock::Timestamp;
use common::schedule::{Zone, date_of, day_of};

/// Steps from month to month and year to year after which a search is over: there are 130 years of 12 months.
const STEPS_MAX: u32 = 2_000;

/// What comes of asking it for the next time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Next {
    /// A time, which need not be later than the one asked about. In seconds.
    At(i64),
    /// No time. The seed's worker takes that for a time long ago, which is due.
    Never,
    /// The program ends.
    Panic,
}

/// A list of numbers was empty where its first was wanted.
struct Panic;

/// An expression as the library holds it.
pub(super) struct Cronexpr {
    seconds: Vec<u32>,
    minutes: Vec<u32>,
    hours: Vec<u32>,
    months: Vec<u32>,
    years: Vec<u32>,
    days: BTreeSet<u32>,
    workdays: BTreeSet<u32>,
    last_day: bool,
    last_workday: bool,
    days_restricted: bool,
    weekdays: BTreeSet<u32>,
    /// `(week - 1) * 7 + weekday`
    weekdays_of_weeks: BTreeSet<u32>,
    last_weekdays: BTreeSet<u32>,
    weekdays_restricted: bool,
}

#[derive(Clone, Copy)]
struct Field {
    name: &'static str,
    min: u32,
    max: u32,
    /// The values of names; what is a valid text and has none is 0.
    tokens: Tokens,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Tokens {
    Numbers,
    Months,
    Weekdays,
}

const SECOND: Field = Field { name: "second", min: 0, max: 59, tokens: Tokens::Numbers };
const MINUTE: Field = Field { name: "minute", ..SECOND };
const HOUR: Field = Field { name: "hour", max: 23, ..SECOND };
const DAY: Field = Field { name: "day-of-month", min: 1, max: 31, ..SECOND };
const MONTH: Field = Field { name: "month", min: 1, max: 12, tokens: Tokens::Months };
const WEEKDAY: Field = Field { name: "day-of-week", min: 0, max: 6, tokens: Tokens::Weekdays };
const YEAR: Field = Field { name: "year", min: 1970, max: 2099, ..SECOND };

const MONTHS: [&str; 12] = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
];
const WEEKDAYS: [&str; 7] = ["sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"];

/// Its nicknames, which it replaces wherever they stand.
const NICKNAMES: [(&str, &str); 6] = [
    ("@yearly", "0 0 0 1 1 * *"),
    ("@annually", "0 0 0 1 1 * *"),
    ("@monthly", "0 0 0 1 * * *"),
    ("@weekly", "0 0 0 * * 0 *"),
    ("@daily", "0 0 0 * * * *"),
    ("@hourly", "0 0 * * * * *"),
];

/// An item of a list.
enum Item {
    All,
    One(u32),
    Span(u32, u32, u32),
    /// None of the forms that every field has; in lower case.
    Other(String),
}

impl Field {
    /// The value of a text that the field's pattern takes; zero-padded months and weekdays are taken, and stand for 0.
    fn value(self, text: &str) -> Option<u32> {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if digits {
            let (wide, n) = (if self.min == YEAR.min { 4..=4 } else { 1..=2 }, text.parse::<u32>().ok()?);
            let max = if self.tokens == Tokens::Weekdays { 7 } else { self.max };
            if !wide.contains(&text.len()) || !(self.min..=max).contains(&n) {
                return None;
            }
            let padded = text.len() == 2 && text.starts_with('0');
            return Some(match self.tokens {
                Tokens::Numbers => n,
                _ if padded => 0,
                Tokens::Months => n,
                Tokens::Weekdays => n % 7,
            });
        }
        let names: &[&str] = match self.tokens {
            Tokens::Numbers => &[],
            Tokens::Months => &MONTHS,
            Tokens::Weekdays => &WEEKDAYS,
        };
        let named =
            names.iter().position(|name| *name == text || (text.len() == 3 && name.starts_with(text)))?;
        Some(u32::try_from(named).ok()? + self.min)
    }

    fn items(self, text: &str) -> Result<Vec<Item>, String> {
        let items: Vec<&str> = text.split(',').filter(|item| !item.is_empty()).collect();
        if items.is_empty() {
            return Err(format!("{} field: missing directive", self.name));
        }
        items.into_iter().map(|item| self.item(&item.to_ascii_lowercase())).collect()
    }

    fn item(self, item: &str) -> Result<Item, String> {
        if item == "*" || item == "?" {
            return Ok(Item::All);
        }
        if let Some(value) = self.value(item) {
            return Ok(Item::One(value));
        }
        let (body, step) = match item.split_once('/') {
            Some((body, step)) => (body, Some(step)),
            None => (item, None),
        };
        let span = if body == "*" {
            Some((self.min, self.max))
        } else if let Some((first, last)) = body.split_once('-') {
            self.value(first).zip(self.value(last))
        } else {
            self.value(body).filter(|_| step.is_some()).map(|first| (first, self.max))
        };
        let Some((first, last)) = span else { return Ok(Item::Other(item.to_owned())) };
        match step {
            None => Ok(Item::Span(first, last, 1)),
            Some(step) if !step.is_empty() && step.bytes().all(|byte| byte.is_ascii_digit()) => {
                // It knows the numbers to 59, with two digits at most, and the years.
                let known = step.len() <= 2 && step.parse::<u32>().is_ok_and(|n| n <= 59);
                let n = step.parse().ok().filter(|n| known && (1..=self.max).contains(n));
                n.map(|n| Item::Span(first, last, n)).ok_or_else(|| format!("invalid interval {item}"))
            }
            Some(_) => Ok(Item::Other(item.to_owned())),
        }
    }

    /// A field without forms of its own.
    fn list(self, text: &str) -> Result<Vec<u32>, String> {
        let mut values = BTreeSet::new();
        for item in self.items(text)? {
            match item {
                Item::All => return Ok((self.min..=self.max).collect()),
                Item::One(n) => drop(values.insert(n)),
                Item::Span(first, last, step) => values.extend((first..=last).step_by(step as usize)),
                Item::Other(item) => return Err(self.syntax(&item)),
            }
        }
        Ok(values.into_iter().collect())
    }

    fn syntax(self, item: &str) -> String {
        format!("syntax error in {} field: '{item}'", self.name)
    }
}

impl Cronexpr {
    /// Reads an expression.
    ///
    /// # Errors
    /// As the library says it: the seed's worker passes over such a job without a word.
    pub(super) fn parse(expression: &str) -> Result<Self, String> {
        let mut text = expression.to_owned();
        for (nickname, fields) in NICKNAMES {
            text = text.replace(nickname, fields);
        }
        let words: Vec<&str> = text.split_ascii_whitespace().take(7).collect();
        let (second, rest) = match words.as_slice() {
            [second, rest @ ..] if rest.len() == 6 => (Some(*second), rest),
            rest if rest.len() >= 5 => (None, rest),
            _ => return Err("missing field(s)".to_owned()),
        };
        let mut read = Self {
            seconds: second.map_or(Ok(vec![0]), |second| SECOND.list(second))?,
            minutes: MINUTE.list(rest[0])?,
            hours: HOUR.list(rest[1])?,
            months: Vec::new(),
            years: Vec::new(),
            days: BTreeSet::new(),
            workdays: BTreeSet::new(),
            last_day: false,
            last_workday: false,
            days_restricted: true,
            weekdays: BTreeSet::new(),
            weekdays_of_weeks: BTreeSet::new(),
            last_weekdays: BTreeSet::new(),
            weekdays_restricted: true,
        };
        read.read_days(rest[2])?;
        read.months = MONTH.list(rest[3])?;
        read.read_weekdays(rest[4])?;
        read.years =
            rest.get(5).map_or_else(|| Ok((YEAR.min..=YEAR.max).collect()), |year| YEAR.list(year))?;
        Ok(read)
    }

    fn read_days(&mut self, text: &str) -> Result<(), String> {
        for item in DAY.items(text)? {
            match item {
                Item::All => self.days_restricted = false,
                Item::One(n) => drop(self.days.insert(n)),
                Item::Span(first, last, step) => self.days.extend((first..=last).step_by(step as usize)),
                Item::Other(item) if item == "l" => self.last_day = true,
                Item::Other(item) if item == "lw" => self.last_workday = true,
                Item::Other(item) => {
                    let day = item.strip_suffix('w').and_then(|day| DAY.value(day));
                    self.workdays.insert(day.ok_or_else(|| DAY.syntax(&item))?);
                }
            }
        }
        Ok(())
    }

    fn read_weekdays(&mut self, text: &str) -> Result<(), String> {
        for item in WEEKDAY.items(text)? {
            match item {
                Item::All => self.weekdays_restricted = false,
                Item::One(n) => drop(self.weekdays.insert(n)),
                Item::Span(first, last, step) => self.weekdays.extend((first..=last).step_by(step as usize)),
                Item::Other(item) => {
                    if let Some(day) = item.strip_suffix('l').and_then(|day| WEEKDAY.value(day)) {
                        self.last_weekdays.insert(day);
                        continue;
                    }
                    let of_week = item.split_once('#').and_then(|(day, week)| {
                        let week =
                            week.parse::<u32>().ok().filter(|n| week.len() == 1 && (1..=5).contains(n))?;
                        Some((week - 1) * 7 + WEEKDAY.value(day)?)
                    });
                    self.weekdays_of_weeks.insert(of_week.ok_or_else(|| WEEKDAY.syntax(&item))?);
                }
            }
        }
        Ok(())
    }

    /// What it answers for the next time after `t`, in seconds, where the machine's clock is of this zone.
    pub(super) fn next(&self, t: i64, zone: &Zone) -> Next {
        Search { of: self, zone, steps: 0 }.next(t).unwrap_or(Next::Panic)
    }

    /// The days of a month that fire; months may be 0, which is the December before.
    fn days_of(&self, year: u32, month: u32) -> Vec<u32> {
        let (year, month) = normal(year, month);
        let first = day_of(year, month, 1);
        let next = if month == 12 { day_of(year + 1, 1, 1) } else { day_of(year, month + 1, 1) };
        let long = u32::try_from(next - first).unwrap_or(31);
        let weekday =
            |day: u32| u32::try_from((first + i64::from(day) + 3).rem_euclid(7)).unwrap_or_default();
        let workday = |day: u32| match weekday(day) {
            6 if day > 1 => day - 1,
            6 => day + 2,
            0 if day < long => day + 1,
            0 => day - 2,
            _ => day,
        };
        let has = |day: &u32| {
            let day = *day;
            let unrestricted = !self.days_restricted && !self.weekdays_restricted;
            let by_date = self.days_restricted
                && (self.days.contains(&day)
                    || (self.last_day && day == long)
                    || (self.last_workday && day == workday(long))
                    || self.workdays.iter().any(|near| *near <= long && workday(*near) == day));
            let by_weekday = self.weekdays_restricted
                && (self.weekdays.contains(&weekday(day))
                    || self.weekdays_of_weeks.contains(&((day - 1) / 7 * 7 + weekday(day)))
                    || (day + 7 > long && self.last_weekdays.contains(&weekday(day))));
            unrestricted || by_date || by_weekday
        };
        (1..=long).filter(has).collect()
    }
}

/// Month 0 is the December of the year before.
fn normal(year: u32, month: u32) -> (u32, u32) {
    if month == 0 { (year - 1, 12) } else { (year, month) }
}

/// The first number of a list that is not below this one.
fn from(list: &[u32], n: u32) -> Option<u32> {
    list.iter().copied().find(|value| *value >= n)
}

fn first(list: &[u32]) -> Result<u32, Panic> {
    list.first().copied().ok_or(Panic)
}

/// One search. What the library does is followed step by step, its faults come by themselves.
struct Search<'a> {
    of: &'a Cronexpr,
    zone: &'a Zone,
    steps: u32,
}

/// A time as a clock in the zone shows it.
struct Shown {
    year: u32,
    month: u32,
    day: u32,
    hour: u32,
    minute: u32,
    second: u32,
}

impl Search<'_> {
    fn offset(&self, t: i64) -> i64 {
        self.zone.offset_at(Timestamp::from_ms(t.saturating_mul(1000)))
    }

    fn shown(&self, t: i64) -> Shown {
        let wall = (t + self.offset(t)).max(0);
        let (year, month, day) = date_of(wall.div_euclid(86_400)).unwrap_or((YEAR.max, 12, 31));
        let second = u32::try_from(wall.rem_euclid(86_400)).unwrap_or_default();
        Shown { year, month, day, hour: second / 3600, minute: second / 60 % 60, second: second % 60 }
    }

    /// `time.Date` of Go: where clocks jump it takes one of two offsets, by looking twice.
    fn date(&self, year: u32, month: u32, day: u32, (hour, minute, second): (u32, u32, u32)) -> Next {
        let (year, month) = normal(year, month);
        let wall = day_of(year, month, day) * 86_400 + i64::from(hour * 3600 + minute * 60 + second);
        Next::At(match self.offset(wall) {
            0 => wall,
            offset => wall - self.offset(wall - offset),
        })
    }

    fn first_time(&self) -> Result<(u32, u32, u32), Panic> {
        Ok((first(&self.of.hours)?, first(&self.of.minutes)?, first(&self.of.seconds)?))
    }

    fn next(&mut self, t: i64) -> Result<Next, Panic> {
        let now = self.shown(t);
        let of = self.of;
        match from(&of.years, now.year) {
            None => return Ok(Next::Never),
            Some(year) if year != now.year => return self.next_year(&now),
            Some(_) => {}
        }
        match from(&of.months, now.month) {
            None => return self.next_year(&now),
            Some(month) if month != now.month => return self.next_month(&now),
            Some(_) => {}
        }
        let days = of.days_of(now.year, now.month);
        match from(&days, now.day) {
            None => return self.next_month(&now),
            Some(day) if day != now.day => return self.next_day(&now),
            Some(_) => {}
        }
        match from(&of.hours, now.hour) {
            None => return self.next_day(&now),
            Some(hour) if hour != now.hour => return self.next_hour(&now),
            Some(_) => {}
        }
        match from(&of.minutes, now.minute) {
            None => return self.next_hour(&now),
            Some(minute) if minute != now.minute => return self.next_minute(&now),
            Some(_) => {}
        }
        match from(&of.seconds, now.second + 1) {
            None => self.next_minute(&now),
            Some(second) => Ok(self.date(now.year, now.month, now.day, (now.hour, now.minute, second))),
        }
    }

    fn next_minute(&mut self, now: &Shown) -> Result<Next, Panic> {
        match from(&self.of.minutes, now.minute + 1) {
            None => self.next_hour(now),
            Some(minute) => {
                let second = first(&self.of.seconds)?;
                Ok(self.date(now.year, now.month, now.day, (now.hour, minute, second)))
            }
        }
    }

    fn next_hour(&mut self, now: &Shown) -> Result<Next, Panic> {
        match from(&self.of.hours, now.hour + 1) {
            None => self.next_day(now),
            Some(hour) => {
                let (_, minute, second) = (0, first(&self.of.minutes)?, first(&self.of.seconds)?);
                Ok(self.date(now.year, now.month, now.day, (hour, minute, second)))
            }
        }
    }

    fn next_day(&mut self, now: &Shown) -> Result<Next, Panic> {
        match from(&self.of.days_of(now.year, now.month), now.day + 1) {
            None => self.next_month(now),
            Some(day) => Ok(self.date(now.year, now.month, day, self.first_time()?)),
        }
    }

    fn next_month(&mut self, now: &Shown) -> Result<Next, Panic> {
        match from(&self.of.months, now.month + 1) {
            None => self.next_year(now),
            Some(month) => self.first_of(now.year, month),
        }
    }

    fn next_year(&mut self, now: &Shown) -> Result<Next, Panic> {
        match from(&self.of.years, now.year + 1) {
            None => Ok(Next::Never),
            Some(year) => self.first_of(year, first(&self.of.months)?),
        }
    }

    fn first_of(&mut self, year: u32, month: u32) -> Result<Next, Panic> {
        self.steps += 1;
        let time = self.first_time()?;
        match self.of.days_of(year, month).first() {
            Some(day) => Ok(self.date(year, month, *day, time)),
            // From the month's first day it looks on; where that is in an earlier year (month 0) it comes here again and again.
            None if self.steps > STEPS_MAX => Ok(Next::Never),
            None => {
                let Next::At(t) = self.date(year, month, 1, time) else { return Ok(Next::Never) };
                let then = self.shown(t);
                self.next_month(&then)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(year: u32, month: u32, day: u32, hour: i64, minute: i64) -> i64 {
        day_of(year, month, day) * 86_400 + hour * 3600 + minute * 60
    }

    fn zone(name: &str) -> Zone {
        Zone::parse(name).unwrap()
    }

    fn next(expression: &str, t: i64, zone_name: &str) -> Next {
        Cronexpr::parse(expression).unwrap().next(t, &zone(zone_name))
    }

    #[test]
    fn what_it_does_right() {
        let t = at(2024, 1, 15, 0, 0);
        for (expression, expected) in [
            ("*/5 * * * *", at(2024, 1, 15, 0, 5)),
            ("*/5 * * * * *", at(2024, 1, 15, 0, 5)),
            ("*/5 * * * * * *", t + 5),
            ("0 9 * * MON-fri", at(2024, 1, 15, 9, 0)),
            ("0 0 L * *", at(2024, 1, 31, 0, 0)),
            ("0 0 LW 3 *", at(2024, 3, 29, 0, 0)),
            ("0 0 * * 5L", at(2024, 1, 26, 0, 0)),
            ("0 0 * * 1#2", at(2024, 2, 12, 0, 0)),
            ("0 0 14W * * 2024", at(2024, 2, 14, 0, 0)),
            ("0 0 */10 * FRI", at(2024, 1, 19, 0, 0)),
            ("@monthly", at(2024, 2, 1, 0, 0)),
            ("0 0 1 1 * 2030 extra fields", at(2030, 1, 1, 0, 0)),
        ] {
            let (expression, expected) = match expression {
                // Seven words begin with the second.
                "0 0 1 1 * 2030 extra fields" => ("0 0 0 1 1 * 2030 extra fields", expected),
                _ => (expression, expected),
            };
            assert_eq!(next(expression, t, "UTC"), Next::At(expected), "{expression}");
        }
    }

    #[test]
    fn its_faults() {
        let t = at(2024, 1, 15, 0, 0);
        // No time is a zero time to it.
        for never in ["0 0 30 2 *", "0 0 * * 5-7", "0 0 1 1 * 2020"] {
            assert_eq!(next(never, t, "UTC"), Next::Never, "{never}");
        }
        for panics in ["0 22-2 * * *", "0 0 1 DEC-FEB *", "50-10 * * * *"] {
            assert_eq!(next(panics, t, "UTC"), Next::Panic, "{panics}");
        }
        // A zero-padded month is December, a zero-padded weekday Sunday; 0-7 is Sunday only.
        assert_eq!(next("0 0 1 01 *", t, "UTC"), Next::At(at(2024, 12, 1, 0, 0)));
        assert_eq!(next("0 0 * * 05", t, "UTC"), Next::At(at(2024, 1, 21, 0, 0)));
        assert_eq!(next("0 0 * * 0-7", t, "UTC"), Next::At(at(2024, 1, 21, 0, 0)));
        for refused in
            ["0 0 * *", "*/60 * * * *", "@midnight", "0 0 * * 8", "1,2,+3 * * * *", "0 0 * * L", ", * * * *"]
        {
            assert!(Cronexpr::parse(refused).is_err(), "{refused}");
        }
    }

    #[test]
    fn it_is_stuck_where_clocks_jump() {
        // New York, 2026-03-08: from 02:00 to 03:00 is skipped, at 07:00 UTC.
        let new_york = "America/New_York";
        for (expression, stuck_for) in [("0 2 * * *", 3600), ("*/30 * * * *", 1800), ("0 * * * *", 3600)] {
            let read = Cronexpr::parse(expression).unwrap();
            let is_stuck = |t: &i64| matches!(read.next(*t, &zone(new_york)), Next::At(next) if next <= *t);
            let stuck = (at(2026, 3, 8, 0, 0)..at(2026, 3, 8, 12, 0)).filter(is_stuck).count();
            assert_eq!(stuck, stuck_for, "{expression}");
        }
        // Autumn: the first pass in New York, the second in London.
        assert_eq!(next("30 1 * * *", at(2026, 11, 1, 0, 0), new_york), Next::At(at(2026, 11, 1, 5, 30)));
        assert_eq!(
            next("30 1 * * *", at(2026, 10, 24, 12, 0), "Europe/London"),
            Next::At(at(2026, 10, 25, 1, 30))
        );
    }
}
