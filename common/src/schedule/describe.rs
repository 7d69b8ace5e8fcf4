//! Schedules in words, English and Chinese. They are made of what was read, not of what was written, so that they say what will happen:
//! `0-59/5`, `*/5` and twelve numbers in a list are one and the same.

use super::expression::{Expression, Fields, Place, SpecialDay};
use super::{Days, NamedDays, Schedule, fields};

/// A language in which schedules are described.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Language {
    /// English.
    #[default]
    English,
    /// Simplified Chinese.
    Chinese,
}

impl Language {
    /// By a tag such as `en` or `zh-CN`, in any case; `None` for other languages.
    #[must_use]
    pub fn of_tag(tag: &str) -> Option<Self> {
        match tag.trim().split(['-', '_']).next()?.to_ascii_lowercase().as_str() {
            "en" => Some(Self::English),
            "zh" => Some(Self::Chinese),
            _ => None,
        }
    }
}

/// So many times of a day are written out: more are easier told by their rule.
const CLOCK_TIMES_MAX: usize = 6;

/// A schedule in words.
pub(super) fn describe(schedule: &Schedule, language: Language) -> String {
    let said: Vec<String> = schedule.expressions().iter().map(|one| expression(one, language)).collect();
    let said = said.join(match language {
        Language::English => "; also ",
        Language::Chinese => "；以及",
    });
    schedule.days().map_or(said.clone(), |days| said + &on_days(days, language))
}

/// On which days alone, by the names of the calendars.
fn on_days(days: &Days, language: Language) -> String {
    let names = |sets: &[NamedDays], and: &str| {
        let quoted: Vec<String> = sets
            .iter()
            .map(|set| match language {
                Language::English => format!("\"{}\"", set.name),
                Language::Chinese => format!("“{}”", set.name),
            })
            .collect();
        joined(&quoted, if language == Language::English { ", " } else { "、" }, and)
    };
    let (only, exclude) = match language {
        Language::English => (names(&days.only, " or "), names(&days.exclude, " or ")),
        Language::Chinese => (names(&days.only, "或"), names(&days.exclude, "或")),
    };
    let mut said = String::new();
    match language {
        Language::English => {
            if !only.is_empty() {
                said += &format!(", only on days of the calendar {only}");
            }
            if !exclude.is_empty() {
                said += &format!(", not on days of the calendar {exclude}");
            }
        }
        Language::Chinese => {
            if !only.is_empty() {
                said += &format!("，仅在日历{only}中的日子");
            }
            if !exclude.is_empty() {
                said += &format!("，日历{exclude}中的日子除外");
            }
        }
    }
    said
}

fn expression(expression: &Expression, language: Language) -> String {
    match (expression, language) {
        (Expression::Fields(fields), Language::English) => english::fields(fields),
        (Expression::Fields(fields), Language::Chinese) => chinese::fields(fields),
        (Expression::Every { seconds }, Language::English) => {
            format!("every {}", english::duration(*seconds))
        }
        (Expression::Every { seconds }, Language::Chinese) => format!("每 {}", chinese::duration(*seconds)),
        (Expression::At(at), Language::English) => format!("once, at {at}"),
        (Expression::At(at), Language::Chinese) => format!("仅一次，{at}"),
    }
}

/// How the numbers of a field are best told.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Shape {
    All,
    One(u32),
    /// Each `step`-th from `first` on, to `last`; `whole` = up to the end of the field, and `even` = there the next round goes on in step.
    Steps {
        first: u32,
        step: u32,
        last: u32,
        whole: bool,
        even: bool,
    },
    /// Single numbers and stretches, from and to.
    Spans(Vec<(u32, u32)>),
}

impl Shape {
    fn of(fields: &Fields, place: Place) -> Self {
        let field = match place {
            Place::Second => &fields::SECOND,
            Place::Minute => &fields::MINUTE,
            Place::Hour => &fields::HOUR,
            Place::DayOfMonth => &fields::DAY_OF_MONTH,
            Place::Month => &fields::MONTH,
            Place::DayOfWeek => &fields::DAY_OF_WEEK,
            Place::Year => &fields::YEAR,
        };
        if fields.is_all(place) {
            return Self::All;
        }
        let mut values = fields.values(place);
        if place == Place::DayOfWeek {
            // The week of most people begins with Monday, and a weekend is one stretch.
            values = values.into_iter().map(|day| if day == 0 { 7 } else { day }).collect();
            values.sort_unstable();
        }
        let step = match values.as_slice() {
            [one] => return Self::One(*one),
            [first, second, ..] => second - first,
            [] => return Self::Spans(Vec::new()),
        };
        let in_step = values.windows(2).all(|pair| pair[1] - pair[0] == step);
        // The names of weekdays and months are few, and are rather told than counted.
        let counted = !matches!(place, Place::DayOfWeek | Place::Month | Place::Year);
        if counted && in_step && step > 1 && values.len() > 2 {
            let (first, last) = (values[0], values[values.len() - 1]);
            let whole = first < field.min + step && last + step > field.last();
            let even = whole && (field.last() - field.min + 1).is_multiple_of(step);
            return Self::Steps { first, step, last, whole, even };
        }
        let mut spans: Vec<(u32, u32)> = Vec::new();
        for value in values {
            match spans.last_mut() {
                Some((_, last)) if *last + 1 == value => *last = value,
                _ => spans.push((value, value)),
            }
        }
        // Two neighbours are two, not a stretch.
        let spans = spans.into_iter().flat_map(|(first, last)| {
            let parted = first + 1 == last;
            let pairs =
                if parted { [Some((first, first)), Some((last, last))] } else { [Some((first, last)), None] };
            pairs.into_iter().flatten()
        });
        Self::Spans(spans.collect())
    }

    /// Whether it tells where in the larger unit, and not how often on and on.
    fn is_place(&self) -> bool {
        matches!(self, Self::One(_) | Self::Spans(_) | Self::Steps { even: false, .. })
    }
}

/// The parts of the time of day.
struct Time {
    second: Shape,
    minute: Shape,
    hour: Shape,
    /// The times of a day, where they are few.
    clock: Option<Vec<String>>,
}

impl Time {
    fn of(fields: &Fields) -> Self {
        let [second, minute, hour] =
            [Place::Second, Place::Minute, Place::Hour].map(|place| Shape::of(fields, place));
        let whole_step = matches!(hour, Shape::Steps { whole: true, .. });
        let [seconds, minutes, hours] =
            [Place::Second, Place::Minute, Place::Hour].map(|place| fields.values(place));
        let few = seconds.len() * minutes.len() * hours.len() <= CLOCK_TIMES_MAX;
        let clock = (few && !whole_step && hour != Shape::All).then(|| {
            let with_seconds = seconds != [0];
            let mut times = Vec::new();
            for hour in &hours {
                for minute in &minutes {
                    for second in &seconds {
                        let time = format!("{hour:02}:{minute:02}");
                        times.push(if with_seconds { format!("{time}:{second:02}") } else { time });
                    }
                }
            }
            times
        });
        Self { second, minute, hour, clock }
    }

    /// Whether the second has to be told.
    fn has_seconds(&self) -> bool {
        self.second != Shape::One(0)
    }
}

/// Whether the times depend on the zone, so that it has to be told.
fn depends_on_zone(fields: &Fields) -> bool {
    let places = [Place::Hour, Place::DayOfMonth, Place::Month, Place::DayOfWeek, Place::Year];
    !places.into_iter().all(|place| fields.is_all(place)) || !fields.special_days().is_empty()
}

/// The days that depend on the month: those of the field day of month, and those of the day of week.
fn special_days(fields: &Fields) -> (Vec<SpecialDay>, Vec<SpecialDay>) {
    let of_week = |day: &SpecialDay| matches!(day, SpecialDay::LastWeekday(_) | SpecialDay::NthWeekday(..));
    fields.special_days().into_iter().partition(|day| !of_week(day))
}

/// `a, b and c`.
fn joined(parts: &[String], comma: &str, and: &str) -> String {
    match parts {
        [] => String::new(),
        [one] => one.clone(),
        [all @ .., last] => format!("{}{and}{last}", all.join(comma)),
    }
}

mod english {
    use super::{Fields, Place, Shape, SpecialDay, Time, depends_on_zone, joined, special_days};

    const DAYS: [&str; 8] =
        ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
    const MONTHS: [&str; 13] = [
        "",
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];

    pub(super) fn fields(fields: &Fields) -> String {
        let of_day = Time::of(fields);
        let mut text = time(&of_day);
        match days(fields) {
            Some(days) => text = format!("{text} {days}"),
            None if of_day.clock.is_some() => text.push_str(" every day"),
            None => {}
        }
        let name = |n: u32| MONTHS.get(n as usize).copied().unwrap_or_default().to_owned();
        if let Some(months) = list(&Shape::of(fields, Place::Month), name) {
            text = format!("{text} in {months}");
        }
        if let Some(years) = list(&Shape::of(fields, Place::Year), |n| n.to_string()) {
            text = format!("{text} in {years}");
        }
        if depends_on_zone(fields) { format!("{text}, {}", fields.zone()) } else { text }
    }

    pub(super) fn duration(seconds: u32) -> String {
        let units = [(86_400, "day"), (3600, "hour"), (60, "minute"), (1, "second")];
        let mut rest = seconds;
        let mut parts = Vec::new();
        for (unit, name) in units {
            let many = rest / unit;
            rest %= unit;
            if many == 1 && seconds == unit {
                return name.to_owned();
            }
            if many > 0 {
                parts.push(format!("{many} {name}{}", if many == 1 { "" } else { "s" }));
            }
        }
        joined(&parts, ", ", " and ")
    }

    fn time(of_day: &Time) -> String {
        if let Some(times) = &of_day.clock {
            return format!("at {}", joined(times, ", ", " and "));
        }
        let minute = &of_day.minute;
        let mut text;
        // Whether what was said last is a place in an hour, of which the hour is then said.
        let mut places = minute.is_place();
        if of_day.has_seconds() {
            text = often(&of_day.second, "second");
            match minute {
                Shape::All if of_day.second.is_place() => text.push_str(" of every minute"),
                Shape::All => {}
                _ => {
                    let of = if of_day.second.is_place() { "of" } else { "in" };
                    text = format!("{text} {of} {}", which(minute, "minute"));
                }
            }
            places = *minute != Shape::All;
        } else {
            text = often(minute, "minute");
        }
        match &of_day.hour {
            Shape::All if places => text.push_str(" of every hour"),
            Shape::All => {}
            hour if places => text = format!("{text} of {}", which(hour, "hour")),
            hour => text = format!("{text} in {}", which(hour, "hour")),
        }
        text
    }

    /// How often, or when: `every 5 minutes`, `at minutes 9 and 39`.
    fn often(shape: &Shape, unit: &str) -> String {
        match shape {
            Shape::All => format!("every {unit}"),
            Shape::Steps { first: 0, step, even: true, .. } => format!("every {step} {unit}s"),
            Shape::Steps { first, step, even: true, .. } => {
                format!("every {step} {unit}s from {unit} {first} on")
            }
            Shape::Steps { first, step, last, .. } => {
                format!("at every {} {unit} from {first} through {last}", nth(*step))
            }
            _ => format!("at {}", which(shape, unit)),
        }
    }

    /// `minute 5`, `hours 8 through 18`, `every 2nd hour`.
    fn which(shape: &Shape, unit: &str) -> String {
        match shape {
            Shape::All => format!("every {unit}"),
            Shape::One(n) => format!("{unit} {n}"),
            Shape::Steps { first: 0, step, even: true, .. } => format!("every {} {unit}", nth(*step)),
            Shape::Steps { first, step, last, .. } => {
                format!("every {} {unit} from {first} through {last}", nth(*step))
            }
            Shape::Spans(_) => {
                format!("{unit}s {}", list(shape, |n| n.to_string()).unwrap_or_default())
            }
        }
    }

    /// Numbers or names; nothing for all of them.
    fn list(shape: &Shape, name: impl Fn(u32) -> String) -> Option<String> {
        let spans = match shape {
            Shape::All => return None,
            Shape::One(n) => return Some(name(*n)),
            Shape::Steps { first, step, last, .. } => {
                (*first..=*last).step_by(*step as usize).map(|n| (n, n)).collect()
            }
            Shape::Spans(spans) => spans.clone(),
        };
        let told = |(first, last): &(u32, u32)| {
            if first == last { name(*first) } else { format!("{} through {}", name(*first), name(*last)) }
        };
        Some(joined(&spans.iter().map(told).collect::<Vec<_>>(), ", ", " and "))
    }

    /// The days; nothing when each will do.
    fn days(fields: &Fields) -> Option<String> {
        let (of_month, of_week) = special_days(fields);
        let mut month_parts = match Shape::of(fields, Place::DayOfMonth) {
            Shape::All => Vec::new(),
            Shape::Spans(spans) if spans.is_empty() => Vec::new(),
            shape => vec![format!("{} of the month", which(&shape, "day"))],
        };
        month_parts.extend(of_month.into_iter().map(special));
        let weekday = |n: u32| DAYS.get(n as usize).copied().unwrap_or_default().to_owned();
        let mut week_parts = Vec::new();
        week_parts
            .extend(list(&Shape::of(fields, Place::DayOfWeek), weekday).filter(|days| !days.is_empty()));
        week_parts.extend(of_week.into_iter().map(special));
        let or = |parts: &[String]| joined(parts, ", ", " or ");
        match (month_parts.as_slice(), week_parts.as_slice()) {
            ([], []) => None,
            (days, []) => Some(format!("on {}", or(days))),
            ([], days) => Some(format!("on {}", or(days))),
            (of_month, of_week) if fields.is_either_day() => {
                Some(format!("on {} or on {}", or(of_month), or(of_week)))
            }
            (of_month, of_week) => Some(format!("on {} if that is {}", or(of_month), or(of_week))),
        }
    }

    fn special(day: SpecialDay) -> String {
        let weekday = |n: u32| DAYS.get(n as usize).copied().unwrap_or_default();
        let from_last = |n: u32| match n {
            0 => "the last day of the month".to_owned(),
            1 => "the day before the last of the month".to_owned(),
            _ => format!("the day {n} days before the last of the month"),
        };
        match day {
            SpecialDay::FromLast(n) => from_last(n),
            SpecialDay::Workday(n) => format!("the working day nearest to day {n} of the month"),
            SpecialDay::WorkdayFromLast(0) => "the last working day of the month".to_owned(),
            SpecialDay::WorkdayFromLast(n) => format!("the working day nearest to {}", from_last(n)),
            SpecialDay::LastWeekday(day) => format!("the last {} of the month", weekday(day)),
            SpecialDay::NthWeekday(day, n) => format!("the {} {} of the month", nth(n), weekday(day)),
        }
    }

    fn nth(n: u32) -> String {
        let ending = match (n % 10, n % 100) {
            (_, 11..=13) => "th",
            (1, _) => "st",
            (2, _) => "nd",
            (3, _) => "rd",
            _ => "th",
        };
        format!("{n}{ending}")
    }
}

mod chinese {
    use super::{Fields, Place, Shape, SpecialDay, Time, depends_on_zone, special_days};

    const DAYS: [&str; 8] = ["周日", "周一", "周二", "周三", "周四", "周五", "周六", "周日"];

    pub(super) fn fields(fields: &Fields) -> String {
        let of_day = Time::of(fields);
        let mut parts = Vec::new();
        parts.extend(list(&Shape::of(fields, Place::Year), |n| format!("{n} 年")));
        parts.extend(list(&Shape::of(fields, Place::Month), |n| format!("{n} 月")));
        match days(fields) {
            Some(days) => parts.push(days),
            None if of_day.clock.is_some() => parts.push("每天".to_owned()),
            None => {}
        }
        let when = time(&of_day);
        let text = match (parts.join("，"), &of_day.clock) {
            (days, _) if days.is_empty() => when,
            (days, Some(_)) => format!("{days} {when}"),
            (days, None) => format!("{days}，{when}"),
        };
        if depends_on_zone(fields) { format!("{text}（{}）", fields.zone()) } else { text }
    }

    pub(super) fn duration(seconds: u32) -> String {
        let units = [(86_400, "天"), (3600, "小时"), (60, "分钟"), (1, "秒")];
        let mut rest = seconds;
        let mut parts = Vec::new();
        for (unit, name) in units {
            let many = rest / unit;
            rest %= unit;
            if many > 0 {
                parts.push(format!("{many} {name}"));
            }
        }
        parts.join(" ")
    }

    fn time(of_day: &Time) -> String {
        if let Some(times) = &of_day.clock {
            return series(times, "和");
        }
        let Time { second, minute, hour, .. } = of_day;
        let (smallest, unit) = if of_day.has_seconds() { (second, "秒") } else { (minute, "分钟") };
        let minute_is_told = of_day.has_seconds() && *minute != Shape::All;
        let mut parts = Vec::new();
        let minute_goes_on = matches!(minute, Shape::Steps { even: true, .. }) && second.is_place();
        // What the hour is told for is one moment of it, or what goes on within it.
        let is_moment = if minute_is_told { !minute_goes_on } else { smallest.is_place() };
        match hour {
            Shape::All if is_moment => parts.push("每小时".to_owned()),
            Shape::All => {}
            Shape::Steps { first, step, even: true, .. } if is_moment => {
                parts.push(format!("从 {first} 点起每 {step} 小时"));
            }
            hour => parts.extend(list(hour, |n| format!("{n} 点"))),
        }
        if minute_is_told {
            parts.push(if minute_goes_on {
                often(minute, "分钟")
            } else {
                format!("第 {} 分钟", list(minute, |n| n.to_string()).unwrap_or_default())
            });
        } else if of_day.has_seconds() && second.is_place() {
            parts.push("每分钟".to_owned());
        }
        let told = often(smallest, unit);
        match (parts.join("的"), smallest.is_place()) {
            (within, _) if within.is_empty() => told,
            (within, true) => format!("{within}的{told}"),
            (within, false) => format!("{within}内{told}"),
        }
    }

    fn often(shape: &Shape, unit: &str) -> String {
        match shape {
            Shape::All if unit == "秒" => "每秒".to_owned(),
            Shape::All => format!("每{unit}"),
            Shape::Steps { first: 0, step, even: true, .. } => format!("每 {step} {unit}"),
            Shape::Steps { first, step, even: true, .. } => format!("从第 {first} {unit}起每 {step} {unit}"),
            Shape::Steps { first, step, last, .. } => {
                format!("第 {first} 至 {last} {unit}中的每 {step} {unit}")
            }
            _ => format!("第 {} {unit}", list(shape, |n| n.to_string()).unwrap_or_default()),
        }
    }

    fn list(shape: &Shape, name: impl Fn(u32) -> String) -> Option<String> {
        let spans = match shape {
            Shape::All => return None,
            Shape::One(n) => return Some(name(*n)),
            Shape::Steps { first, step, last, .. } => {
                (*first..=*last).step_by(*step as usize).map(|n| (n, n)).collect()
            }
            Shape::Spans(spans) => spans.clone(),
        };
        let told = |(first, last): &(u32, u32)| {
            if first == last { name(*first) } else { with("至", &name(*first), &name(*last)) }
        };
        Some(series(&spans.iter().map(told).collect::<Vec<_>>(), "和"))
    }

    /// Two parts with a word between, and with a space where a number meets it.
    fn with(word: &str, left: &str, right: &str) -> String {
        let space = |number: bool| if number { " " } else { "" };
        let before = space(left.ends_with(|c: char| c.is_ascii_digit()));
        let behind = space(right.starts_with(|c: char| c.is_ascii_digit()));
        format!("{left}{before}{word}{behind}{right}")
    }

    /// `甲、乙和丙`.
    fn series(parts: &[String], and: &str) -> String {
        match parts {
            [all @ .., last] if !all.is_empty() => with(and, &all.join("、"), last),
            parts => parts.concat(),
        }
    }

    fn days(fields: &Fields) -> Option<String> {
        let (of_month, of_week) = special_days(fields);
        let mut month_parts = match Shape::of(fields, Place::DayOfMonth) {
            Shape::All => Vec::new(),
            Shape::Spans(spans) if spans.is_empty() => Vec::new(),
            Shape::Steps { first, step, whole: true, .. } => vec![format!("每月 {first} 日起每 {step} 天")],
            Shape::Steps { first, step, last, .. } => {
                vec![format!("每月 {first} 日至 {last} 日中的每 {step} 天")]
            }
            shape => vec![format!("每月 {}", list(&shape, |n| format!("{n} 日")).unwrap_or_default())],
        };
        month_parts.extend(of_month.into_iter().map(special));
        let weekday = |n: u32| DAYS.get(n as usize).copied().unwrap_or_default().to_owned();
        let plain = list(&Shape::of(fields, Place::DayOfWeek), weekday).filter(|days| !days.is_empty());
        // Where both must hold, the weekday says which of the days are meant.
        let each = if month_parts.is_empty() || fields.is_either_day() { "每" } else { "" };
        let mut week_parts: Vec<String> = plain.into_iter().map(|days| format!("{each}{days}")).collect();
        week_parts.extend(of_week.into_iter().map(special));
        let or = |parts: &[String]| series(parts, "或");
        match (month_parts.as_slice(), week_parts.as_slice()) {
            ([], []) => None,
            (days, []) | ([], days) => Some(or(days)),
            (of_month, of_week) if fields.is_either_day() => Some(with("或", &or(of_month), &or(of_week))),
            (of_month, of_week) => Some(format!("{}，且须为{}", or(of_month), or(of_week))),
        }
    }

    fn special(day: SpecialDay) -> String {
        let weekday = |n: u32| DAYS.get(n as usize).copied().unwrap_or_default();
        match day {
            SpecialDay::FromLast(0) => "每月最后一天".to_owned(),
            SpecialDay::FromLast(n) => format!("每月倒数第 {} 天", n + 1),
            SpecialDay::Workday(n) => format!("每月离 {n} 日最近的工作日"),
            SpecialDay::WorkdayFromLast(0) => "每月最后一个工作日".to_owned(),
            SpecialDay::WorkdayFromLast(n) => format!("每月离倒数第 {} 天最近的工作日", n + 1),
            SpecialDay::LastWeekday(day) => format!("每月最后一个{}", weekday(day)),
            SpecialDay::NthWeekday(day, n) => format!("每月第 {n} 个{}", weekday(day)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::ScheduleSettings;

    #[test]
    fn schedules_are_told_in_words() {
        for (expression, english, chinese) in [
            ("* * * * *", "every minute", "每分钟"),
            ("*/5 * * * *", "every 5 minutes", "每 5 分钟"),
            ("0-59/5 * * * *", "every 5 minutes", "每 5 分钟"),
            ("5-55/10 * * * *", "every 10 minutes from minute 5 on", "从第 5 分钟起每 10 分钟"),
            (
                "*/7 * * * *",
                "at every 7th minute from 0 through 56 of every hour",
                "每小时的第 0 至 56 分钟中的每 7 分钟",
            ),
            ("17 * * * *", "at minute 17 of every hour", "每小时的第 17 分钟"),
            ("09,39 * * * *", "at minutes 9 and 39 of every hour", "每小时的第 9 和 39 分钟"),
            ("25 6 * * *", "at 06:25 every day, UTC", "每天 06:25（UTC）"),
            ("47 6 * * 7", "at 06:47 on Sunday, UTC", "每周日 06:47（UTC）"),
            ("52 6 1 * *", "at 06:52 on day 1 of the month, UTC", "每月 1 日 06:52（UTC）"),
            ("30 7-23 * * *", "at minute 30 of hours 7 through 23, UTC", "7 点至 23 点的第 30 分钟（UTC）"),
            (
                "*/15 8-18 * * 1-5",
                "every 15 minutes in hours 8 through 18 on Monday through Friday, UTC",
                "每周一至周五，8 点至 18 点内每 15 分钟（UTC）",
            ),
            ("12 */12 * * *", "at 00:12 and 12:12 every day, UTC", "每天 00:12 和 12:12（UTC）"),
            ("0 */4 * * *", "at minute 0 of every 4th hour, UTC", "从 0 点起每 4 小时的第 0 分钟（UTC）"),
            ("18 */3 * * *", "at minute 18 of every 3rd hour, UTC", "从 0 点起每 3 小时的第 18 分钟（UTC）"),
            (
                "18 1-23/2 * * *",
                "at minute 18 of every 2nd hour from 1 through 23, UTC",
                "从 1 点起每 2 小时的第 18 分钟（UTC）",
            ),
            (
                "18 */5 * * *",
                "at minute 18 of every 5th hour from 0 through 20, UTC",
                "0 点、5 点、10 点、15 点和 20 点的第 18 分钟（UTC）",
            ),
            (
                "*/20 */6 * * *",
                "every 20 minutes in every 6th hour, UTC",
                "0 点、6 点、12 点和 18 点内每 20 分钟（UTC）",
            ),
            (
                "*/10 5,50 * * * * *",
                "every 10 seconds in minutes 5 and 50 of every hour",
                "每小时的第 5 和 50 分钟内每 10 秒",
            ),
            (
                "0 0 L-2 * *",
                "at 00:00 on the day 2 days before the last of the month, UTC",
                "每月倒数第 3 天 00:00（UTC）",
            ),
            (
                "0 0 1-15/3 * *",
                "at 00:00 on every 3rd day from 1 through 13 of the month, UTC",
                "每月 1 日至 13 日中的每 3 天 00:00（UTC）",
            ),
            ("0 8,20 * * *", "at 08:00 and 20:00 every day, UTC", "每天 08:00 和 20:00（UTC）"),
            (
                "0 0 13 * 5",
                "at 00:00 on day 13 of the month or on Friday, UTC",
                "每月 13 日或每周五 00:00（UTC）",
            ),
            (
                "0 0 */2 * 5",
                "at 00:00 on every 2nd day from 1 through 31 of the month if that is Friday, UTC",
                "每月 1 日起每 2 天，且须为周五 00:00（UTC）",
            ),
            (
                "0 0 * jan,mar-may sat,sun",
                "at 00:00 on Saturday and Sunday in January and March through May, UTC",
                "1 月和 3 月至 5 月，每周六和周日 00:00（UTC）",
            ),
            (
                "0 0 * * FRI-MON",
                "at 00:00 on Monday and Friday through Sunday, UTC",
                "每周一和周五至周日 00:00（UTC）",
            ),
            ("0 0 L * *", "at 00:00 on the last day of the month, UTC", "每月最后一天 00:00（UTC）"),
            (
                "0 0 15W * *",
                "at 00:00 on the working day nearest to day 15 of the month, UTC",
                "每月离 15 日最近的工作日 00:00（UTC）",
            ),
            (
                "0 0 LW * *",
                "at 00:00 on the last working day of the month, UTC",
                "每月最后一个工作日 00:00（UTC）",
            ),
            ("0 0 * * 5L", "at 00:00 on the last Friday of the month, UTC", "每月最后一个周五 00:00（UTC）"),
            ("0 0 * * 5#2", "at 00:00 on the 2nd Friday of the month, UTC", "每月第 2 个周五 00:00（UTC）"),
            ("*/10 * * * * * *", "every 10 seconds", "每 10 秒"),
            ("30 0 9 * * * *", "at 09:00:30 every day, UTC", "每天 09:00:30（UTC）"),
            ("15 */5 * * * * *", "at second 15 of every 5th minute of every hour", "每 5 分钟的第 15 秒"),
            ("* * 3 * * * 2030", "every second in hour 3 in 2030, UTC", "2030 年，3 点内每秒（UTC）"),
            ("@every 90s", "every 1 minute and 30 seconds", "每 1 分钟 30 秒"),
            ("@hourly", "at minute 0 of every hour", "每小时的第 0 分钟"),
            (
                "0 9 * * *\n@hourly",
                "at 09:00 every day, UTC; also at minute 0 of every hour",
                "每天 09:00（UTC）；以及每小时的第 0 分钟",
            ),
            ("CRON_TZ=Asia/Tokyo 0 9 * * *", "at 09:00 every day, Asia/Tokyo", "每天 09:00（Asia/Tokyo）"),
            (
                "@at 2030-01-01T09:00:00+09:00",
                "once, at 2030-01-01T00:00:00.000Z",
                "仅一次，2030-01-01T00:00:00.000Z",
            ),
        ] {
            let settings = ScheduleSettings { name: Some("backup"), ..ScheduleSettings::default() };
            let schedule = Schedule::parse(expression, &settings).unwrap();
            assert_eq!(schedule.describe(Language::English), english, "{expression:?}");
            assert_eq!(schedule.describe(Language::Chinese), chinese, "{expression:?}");
        }
    }
}
