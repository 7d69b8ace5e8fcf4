//! From text to schedule. Every field is read and checked here; the `cron` crate, which takes things that crontab does not and numbers the days
//! of the week its own way, is handed nothing but plain lists of numbers and day names.

use std::fmt;
use std::str::FromStr;

use super::fields::{DAY_OF_MONTH, DAY_OF_WEEK, Field, HOUR, Kind, MINUTE, MONTH, SECOND, Set, YEAR};
use super::{Schedule, next};
use crate::clock::Timestamp;

/// Longest expression, in bytes: all sixty minutes written out are 170.
pub const EXPRESSION_BYTES_MAX: usize = 1_000;

/// As much of a faulty text as a message repeats, in characters.
const QUOTED_CHARS_MAX: usize = 60;

/// What is wrong with an expression, where, and what to write instead.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Error {
    /// Name of the field (`minute`, `day of month`, …); empty for the expression as a whole.
    pub field: &'static str,
    /// The text at fault.
    pub text: String,
    /// Where it starts in the expression: the first character is 1.
    pub position: usize,
    /// What is wrong with it and what to write instead.
    pub message: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        if !self.text.is_empty() {
            let cut: String = self.text.chars().take(QUOTED_CHARS_MAX).collect();
            let dots = if cut.len() < self.text.len() { "…" } else { "" };
            write!(f, "{cut:?}{dots} at character {} ", self.position)?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// A piece of the expression and where it starts: an offset in bytes, which are characters since all is ASCII by then.
#[derive(Clone, Copy)]
struct Piece<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Piece<'a> {
    /// The pieces between separators of one byte; where each starts comes with it.
    fn split(self, separator: impl Fn(char) -> bool) -> impl Iterator<Item = Piece<'a>> {
        self.text.split(separator).scan(self.at, |next, text| {
            let at = *next;
            *next += text.len() + 1;
            Some(Piece { text, at })
        })
    }

    fn split_once(self, separator: char) -> Option<(Piece<'a>, Piece<'a>)> {
        let (head, tail) = self.text.split_once(separator)?;
        let at = self.at + head.len() + separator.len_utf8();
        Some((Piece { text: head, at: self.at }, Piece { text: tail, at }))
    }

    fn error(self, field: &'static str, message: impl Into<String>) -> Error {
        Error { field, text: self.text.to_owned(), position: self.at + 1, message: message.into() }
    }
}

/// Reads an expression.
pub(super) fn parse(expression: &str) -> Result<Schedule, Error> {
    let pieces = check_whole(expression)?;
    let form = match *pieces.as_slice() {
        [word] if word.text.starts_with('@') => return parse(nickname(word)?),
        [_, _, _, _, _] => Form { second: None, crontab: &pieces, year: None, warning: None },
        [_, _, _, _, _, last] if only_a_year(last.text) => Form {
            second: None,
            crontab: &pieces[..5],
            year: Some(last),
            warning: Some(format!(
                "read as six fields with a trailing year (minute hour day-of-month month day-of-week year), since {:?} can only be a year; \
                 so read the library of the seed (owenliang/crontab), other six fields are read with seconds first",
                last.text
            )),
        },
        [second, _, _, _, _, _] => Form {
            second: Some(second),
            crontab: &pieces[1..],
            year: None,
            warning: Some(format!(
                "read as six fields with seconds first (second minute hour day-of-month month day-of-week); the library of the seed \
                 (owenliang/crontab) read six fields with a trailing year, which would be {:?} here; seven fields, {:?}, say without doubt what is meant now",
                format!("0 {}", join(&pieces)),
                format!("{} *", join(&pieces))
            )),
        },
        [second, .., year] if pieces.len() == 7 => {
            Form { second: Some(second), crontab: &pieces[1..6], year: Some(year), warning: None }
        }
        _ => return Err(wrong_count(expression, &pieces)),
    };
    form.read()
}

/// What can be said before the fields are known; gives the words.
fn check_whole(expression: &str) -> Result<Vec<Piece<'_>>, Error> {
    let whole = |message: String| Error { field: "", text: String::new(), position: 1, message };
    if expression.len() > EXPRESSION_BYTES_MAX {
        return Err(whole(format!(
            "the expression is {} bytes long: shorten it to {EXPRESSION_BYTES_MAX}, with ranges and steps in place of lists",
            expression.len()
        )));
    }
    if let Some((n, c)) = expression.chars().enumerate().find(|(_, c)| !c.is_ascii()) {
        return Err(Error {
            field: "",
            text: c.to_string(),
            position: n + 1,
            message: "is not ASCII: write digits, letters, spaces and * , - / only".to_owned(),
        });
    }
    let trimmed = expression.trim_ascii();
    let at = expression.len() - expression.trim_ascii_start().len();
    let trimmed = Piece { text: trimmed, at };
    if trimmed.text.is_empty() {
        return Err(whole(format!("the expression is empty: give {FORMS}")));
    }
    if let Some((n, c)) = trimmed.text.char_indices().find(|(_, c)| matches!(c, ';' | '|' | '\n' | '\r')) {
        let piece = Piece { text: &trimmed.text[n..n + c.len_utf8()], at: at + n };
        return Err(piece.error(
            "",
            "separates several expressions, which is not built yet in this version: save a job for each",
        ));
    }
    let pieces: Vec<_> =
        trimmed.split(|c| c.is_ascii_whitespace()).filter(|word| !word.text.is_empty()).collect();
    refuse_prefix(pieces[0])?;
    Ok(pieces)
}

const FORMS: &str = "5 fields (minute hour day-of-month month day-of-week), 6 (second first, or a year last), \
                     7 (second first and year last), or one of @hourly @daily @weekly @monthly @yearly";

fn wrong_count(expression: &str, pieces: &[Piece<'_>]) -> Error {
    let many = pieces.len();
    let noun = if many == 1 { "field" } else { "fields" };
    let text = expression.trim_ascii();
    Piece { text, at: pieces[0].at }.error("", format!("has {many} {noun}: give {FORMS}"))
}

/// What design calls by name and this version does not have, where it shows in the first word.
fn refuse_prefix(first: Piece<'_>) -> Result<(), Error> {
    let lower = first.text.to_ascii_lowercase();
    let why = if lower.starts_with("tz=") || lower.starts_with("cron_tz=") {
        "is a time zone, which is not built yet in this version: leave it out and write the fields in UTC"
    } else if lower.starts_with("@every") {
        "is not built yet in this version: write a step, such as \"*/5 * * * *\" for every 5 minutes"
    } else if lower.starts_with("@at") {
        "is not built yet in this version: write the date with a trailing year in UTC, such as \"30 8 24 12 * 2030\""
    } else if lower == "@reboot" {
        "is refused: a fleet has no single boot; start the command from the machine's own init system, or write a schedule"
    } else {
        return Ok(());
    };
    Err(first.error("", why))
}

const NICKNAMES: [(&str, &str); 7] = [
    ("@hourly", "0 * * * *"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@weekly", "0 0 * * 0"),
    ("@monthly", "0 0 1 * *"),
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
];

/// The five fields that a nickname stands for.
fn nickname(word: Piece<'_>) -> Result<&'static str, Error> {
    let known = NICKNAMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(word.text));
    known.map(|(_, fields)| *fields).ok_or_else(|| {
        let names: Vec<_> = NICKNAMES.iter().map(|(name, _)| *name).collect();
        word.error("", format!("is not known: write one of {}, or fields", names.join(" ")))
    })
}

/// Whether a last field is a year and nothing else: a number of four digits, not led by a zero, stands in it.
fn only_a_year(text: &str) -> bool {
    text.split([',', '-', '/'])
        .any(|n| n.len() == 4 && !n.starts_with('0') && n.bytes().all(|b| b.is_ascii_digit()))
}

/// The words of an expression in their places.
struct Form<'a> {
    second: Option<Piece<'a>>,
    /// minute hour day-of-month month day-of-week
    crontab: &'a [Piece<'a>],
    year: Option<Piece<'a>>,
    warning: Option<String>,
}

impl Form<'_> {
    fn read(self) -> Result<Schedule, Error> {
        let &[minute, hour, day, month, weekday] = self.crontab else {
            return Err(internal("five fields were expected"));
        };
        let second =
            self.second.map_or(Ok("0".to_owned()), |piece| Ok(written(&SECOND, &set(&SECOND, piece)?)))?;
        let minutes = written(&MINUTE, &set(&MINUTE, minute)?);
        let hours = written(&HOUR, &set(&HOUR, hour)?);
        let days = written(&DAY_OF_MONTH, &set(&DAY_OF_MONTH, day)?);
        let months = written(&MONTH, &set(&MONTH, month)?);
        let weekdays = written(&DAY_OF_WEEK, &set(&DAY_OF_WEEK, weekday)?);
        let years = self.year.map_or(Ok(Set::all(&YEAR)), |piece| set(&YEAR, piece))?;
        // Crontab's rule: a field that begins with `*` restricts nothing of its own, so both have to match; else either does. The crate
        // always wants both, hence two parts.
        let either = !day.text.starts_with('*') && !weekday.text.starts_with('*');
        let day_rules: &[(&str, &str)] =
            if either { &[(&days, "*"), ("*", &weekdays)] } else { &[(&days, &weekdays)] };
        let mut parts = Vec::new();
        for (days, weekdays) in day_rules {
            let text = format!("{second} {minutes} {hours} {days} {months} {weekdays}");
            let part = [cron::Schedule::from_str(&text).map_err(|e| internal(&e.to_string()))?];
            // A part that never fires would be searched to the end of time at every question.
            if next::next_after(&part, &years, Timestamp::from_ms(-1)).is_some() {
                parts.extend(part);
            }
        }
        if parts.is_empty() {
            return Err(never(day, month, weekday, self.year));
        }
        let warning = self.warning.map(Into::into);
        Ok(Schedule { parts: parts.into(), years, window: super::Window::default(), warning })
    }
}

/// What checked text cannot come to; an error all the same, since no text from etcd may end a worker.
fn internal(what: &str) -> Error {
    let message = format!("the expression was not understood ({what}): write it in a simpler form");
    Error { field: "", text: String::new(), position: 1, message }
}

fn never(day: Piece<'_>, month: Piece<'_>, weekday: Piece<'_>, year: Option<Piece<'_>>) -> Error {
    let year = year.map(|year| format!(" in year {:?}", year.text)).unwrap_or_default();
    day.error(
        DAY_OF_MONTH.name,
        format!(
            "with month {:?} and day of week {:?}{year} never comes, so the job would never fire: write a date that exists",
            month.text, weekday.text
        ),
    )
}

/// A field for the crate: every number written out, since its steps and names mean other things than ours.
fn written(field: &Field, set: &Set) -> String {
    if *set == Set::all(field) {
        return "*".to_owned();
    }
    let word = |n: u32| match field.kind {
        Kind::DayOfWeek => ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"][n as usize % 7].to_owned(),
        _ => n.to_string(),
    };
    set.iter().map(word).collect::<Vec<_>>().join(",")
}

/// The numbers that a field's text stands for.
fn set(field: &Field, piece: Piece<'_>) -> Result<Set, Error> {
    let mut set = Set::empty(field);
    for item in piece.split(|c| c == ',') {
        if item.text.is_empty() {
            let at = Error { position: item.at + 1, ..piece.error(field.name, "") };
            return Err(Error {
                message: "has an empty item in its list: leave out the extra comma".to_owned(),
                ..at
            });
        }
        let (first, last, step) = item_bounds(field, item)?;
        // Only here is Sunday's 7 a number above the set's last.
        (first..=last)
            .step_by(step as usize)
            .for_each(|n| set.insert(if field.kind == Kind::DayOfWeek { n % 7 } else { n }));
    }
    Ok(set)
}

/// First number, last number and step of one item of a list.
fn item_bounds(field: &Field, item: Piece<'_>) -> Result<(u32, u32, u32), Error> {
    refuse_by_name(field, item)?;
    let (body, step) = match item.split_once('/') {
        Some((body, step)) => (body, Some(step)),
        None => (item, None),
    };
    if body.text.is_empty() {
        let hint = format!("has nothing before \"/\": write *{}", item.text);
        return Err(item.error(field.name, hint));
    }
    let (first, last) = body_bounds(field, item, body, step.is_some())?;
    let step = step.map_or(Ok(1), |step| step_of(field, item, body, first, step))?;
    Ok((first, last, step))
}

fn body_bounds(field: &Field, item: Piece<'_>, body: Piece<'_>, stepped: bool) -> Result<(u32, u32), Error> {
    if body.text == "*" {
        return Ok((field.min, field.last()));
    }
    if let Some((start, end)) = body.split_once('-').filter(|(start, _)| !start.text.is_empty()) {
        return range_bounds(field, item, value(field, item, start)?, value(field, item, end)?, stepped);
    }
    let n = value(field, item, body)?;
    let n = if field.kind == Kind::DayOfWeek { n % 7 } else { n };
    Ok((n, if stepped { field.last() } else { n }))
}

fn range_bounds(
    field: &Field,
    item: Piece<'_>,
    mut start: u32,
    mut end: u32,
    stepped: bool,
) -> Result<(u32, u32), Error> {
    if field.kind == Kind::DayOfWeek {
        // Sunday ends the week as 7 and begins it as 0, whichever was written.
        if start == 7 {
            (start, end) = (0, end % 7);
        } else if end == 0 && start > 0 {
            end = 7;
        }
    }
    if start <= end {
        return Ok((start, end));
    }
    if field.kind == Kind::Year {
        return Err(item.error(field.name, format!("ends before it starts: write {end}-{start}")));
    }
    let instead = if stepped {
        "write the values as a list".to_owned()
    } else {
        format!("write {start}-{},{}-{end}", field.last(), field.min)
    };
    Err(item.error(
        field.name,
        format!("is a range that wraps around, which is not built yet in this version: {instead}"),
    ))
}

/// A step has to be able to land twice: `*/60` minutes is one minute only, and surely meant otherwise.
fn step_of(
    field: &Field,
    item: Piece<'_>,
    body: Piece<'_>,
    first: u32,
    step: Piece<'_>,
) -> Result<u32, Error> {
    let Some(n) = number(step.text) else {
        let hint = if step.text.is_empty() {
            format!("has no step after \"/\": write one, or {} alone", body.text)
        } else {
            format!("has a step that is not a number: write digits, such as {}/2", body.text)
        };
        return Err(item.error(field.name, hint));
    };
    if n == 0 {
        return Err(item.error(field.name, "has a step of 0: write a step of 1 or more"));
    }
    if n > field.max {
        return Err(item.error(
            field.name,
            format!(
                "has a step larger than the field, which goes from {} to {}: write {first} for one time only, or a smaller step",
                field.min, field.max
            ),
        ));
    }
    Ok(n)
}

/// One number or name, which the field must have. Errors show the whole item that it stands in.
fn value(field: &Field, item: Piece<'_>, piece: Piece<'_>) -> Result<u32, Error> {
    let allowed = field.allowed();
    if let Some(n) = number(piece.text) {
        if (field.min..=field.max).contains(&n) {
            return Ok(n);
        }
        return Err(piece.error(field.name, format!("is out of bounds: write {allowed}")));
    }
    if let Some(n) = field.named(piece.text) {
        return Ok(n);
    }
    let unsigned = piece.text.strip_prefix(['+', '-']).filter(|rest| number(rest).is_some());
    let why = match unsigned {
        Some(rest) => {
            format!("has a sign: write {}", if allowed_number(field, rest) { rest } else { &allowed })
        }
        None if piece.text.is_empty() => {
            return Err(item.error(field.name, format!("is half a range: write both ends, each {allowed}")));
        }
        None => format!("is not understood: write {allowed}, *, or ranges, lists and steps of them"),
    };
    Err(piece.error(field.name, why))
}

fn allowed_number(field: &Field, text: &str) -> bool {
    number(text).is_some_and(|n| (field.min..=field.max).contains(&n))
}

/// Digits and nothing else, zero-padded or not (`str::parse` would take a sign); too many for a `u32` are its largest.
fn number(text: &str) -> Option<u32> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().unwrap_or(u32::MAX))
}

/// Items that the design has and this version does not.
fn refuse_by_name(field: &Field, item: Piece<'_>) -> Result<(), Error> {
    let upper = item.text.to_ascii_uppercase();
    let body = upper.split('/').next().unwrap_or_default();
    let days = matches!(field.kind, Kind::DayOfMonth | Kind::DayOfWeek);
    let last = body.strip_suffix('L').is_some_and(|rest| rest.is_empty() || is_day(rest));
    let workday = body.strip_suffix('W').is_some_and(|rest| rest == "L" || number(rest).is_some());
    let (what, instead) = if body == "?" {
        ("\"?\" (no particular value)", "write * instead")
    } else if body == "H" || body.starts_with("H(") {
        ("H (a value from the job's name)", "write a number of your own")
    } else if days && (last || body.starts_with("L-")) {
        ("L (the last)", "write the days out, such as 28 in the day of month, or 22-28 for a last week")
    } else if field.kind == Kind::DayOfMonth && workday {
        ("W (the nearest working day)", "write the days out, such as 15-17, or 1-5 in the day of week")
    } else if field.kind == Kind::DayOfWeek
        && body.split_once('#').is_some_and(|(day, nth)| is_day(day) && number(nth).is_some())
    {
        ("# (the n-th weekday of the month)", "write the weekday alone and let the command look at the date")
    } else {
        return Ok(());
    };
    Err(item.error(field.name, format!("uses {what}, which is not built yet in this version: {instead}")))
}

fn is_day(text: &str) -> bool {
    number(text).is_some() || DAY_OF_WEEK.named(text).is_some()
}

fn join(pieces: &[Piece<'_>]) -> String {
    pieces.iter().map(|piece| piece.text).collect::<Vec<_>>().join(" ")
}
