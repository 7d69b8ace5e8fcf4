//! From text to expressions: what crontab takes, and what its kin have besides. Everything is checked here, field by field, and what is wrong is
//! told with its place and what was expected there.

use std::fmt;

use super::expression::{DaysOfMonth, DaysOfWeek, Expression, Fields, Place, SpecialDays, SpecialWeekdays};
use super::fields::{DAY_OF_MONTH, DAY_OF_WEEK, Field, Kind, YEARS, Years};
use super::settings::{Dialect, ScheduleSettings};
use super::zone::Zone;
use crate::clock::Timestamp;

/// Longest expression, in bytes: all sixty minutes written out are 170.
pub const EXPRESSION_BYTES_MAX: usize = 1_000;
/// Most expressions of one schedule: each is asked for its next fire whenever one of them is.
pub const EXPRESSIONS_MAX: usize = 32;
/// Seed of the hashes behind `H`. Never changed: each job would fire at another time.
const HASH_SEED: u64 = 0x6372_6f6e_4820_0001;

/// As much of a faulty text as a message repeats, in characters.
const QUOTED_CHARS_MAX: usize = 60;

/// The field of an error that is about the calendars beside the expression.
const CALENDARS: &str = "calendars";

/// What is wrong with an expression, where, and what to write instead.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Error {
    /// The line that it stands in, from 1; 0 where there is only one.
    pub line: usize,
    /// Name of the field (`minute`, `day of month`, …); empty for the expression as a whole; `calendars` for days that are not known.
    pub field: &'static str,
    /// The text at fault.
    pub text: String,
    /// Where it starts in its line: the first character is 1.
    pub position: usize,
    /// What is wrong with it and what to write instead.
    pub message: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "line {}: ", self.line)?;
        }
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

impl Error {
    /// The same behind the name of the job's option that is to be mended.
    #[must_use]
    pub fn of_job(&self) -> String {
        if self.field == CALENDARS { self.to_string() } else { format!("cronExpr: {self}") }
    }
}

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
        Error { line: 0, field, text: self.text.to_owned(), position: self.at + 1, message: message.into() }
    }
}

/// What a text was read as.
pub(super) struct Parsed {
    pub(super) expressions: Vec<Expression>,
    pub(super) warnings: Vec<String>,
}

/// Reads a schedule: an expression in each line.
pub(super) fn parse(text: &str, settings: &ScheduleSettings<'_>) -> Result<Parsed, Error> {
    let lines: Vec<(usize, &str)> = (1..)
        .zip(text.split('\n'))
        .map(|(n, line)| (n, line.strip_suffix('\r').unwrap_or(line)))
        .filter(|(_, line)| !line.trim().is_empty())
        .collect();
    if lines.is_empty() {
        return Err(whole(format!("the expression is empty: give {FORMS}")));
    }
    if lines.len() > EXPRESSIONS_MAX {
        let many = lines.len();
        return Err(whole(format!(
            "there are {many} expressions: give {EXPRESSIONS_MAX} at most, and the rest to another job"
        )));
    }
    if let Some(missing) =
        settings.days.as_ref().map(|days| days.missing()).filter(|missing| !missing.is_empty())
    {
        // Whoever does not know the days must not take all of them for days with fires.
        let message = format!("there is no calendar {}", missing.join(", "));
        return Err(Error { field: CALENDARS, ..whole(message) });
    }
    let mut parsed = Parsed { expressions: Vec::new(), warnings: Vec::new() };
    for (n, line) in &lines {
        let n = if lines.len() > 1 { *n } else { 0 };
        let (expression, warning) = read_line(line, settings).map_err(|error| Error { line: n, ..error })?;
        let place = if n > 0 { format!("line {n}: ") } else { String::new() };
        parsed.warnings.extend(warning.map(|warning| format!("{place}{warning}")));
        parsed.expressions.push(expression);
    }
    Ok(parsed)
}

fn whole(message: String) -> Error {
    Error { line: 0, field: "", text: String::new(), position: 1, message }
}

/// Reads one expression; what its author should know comes with it.
fn read_line(line: &str, settings: &ScheduleSettings<'_>) -> Result<(Expression, Option<String>), Error> {
    let words = check_whole(line)?;
    let (zone, pieces) = match zone_of(words[0])? {
        Some(zone) => (zone, &words[1..]),
        None => (settings.zone.clone(), &words[..]),
    };
    let Some(first) = pieces.first() else {
        return Err(words[0].error("", format!("is a time zone with nothing after it: add {FORMS}")));
    };
    if first.text.starts_with('@') {
        return read_nickname(*first, pieces, line, settings, zone).map(|expression| (expression, None));
    }
    let form = Form::of(line, pieces, settings.dialect)?;
    let fields = form.read(settings, zone)?;
    if fields.next_from(0).is_none() {
        return Err(form.never());
    }
    Ok((Expression::Fields(Box::new(fields)), form.warning))
}

/// What can be said before the fields are known; gives the words, of which there is at least one.
fn check_whole(line: &str) -> Result<Vec<Piece<'_>>, Error> {
    if line.len() > EXPRESSION_BYTES_MAX {
        return Err(whole(format!(
            "the expression is {} bytes long: shorten it to {EXPRESSION_BYTES_MAX}, with ranges and steps in place of lists",
            line.len()
        )));
    }
    if let Some((n, c)) = line.chars().enumerate().find(|(_, c)| !c.is_ascii()) {
        return Err(Error {
            line: 0,
            field: "",
            text: c.to_string(),
            position: n + 1,
            message: "is not ASCII: write digits, letters, spaces and * , - / ? # only".to_owned(),
        });
    }
    if let Some((n, c)) = line.char_indices().find(|(_, c)| matches!(c, ';' | '|' | '\r')) {
        let piece = Piece { text: &line[n..n + c.len_utf8()], at: n };
        return Err(
            piece.error("", "does not belong here: write each of several expressions on a line of its own")
        );
    }
    let line = Piece { text: line, at: 0 };
    Ok(line.split(|c| c.is_ascii_whitespace()).filter(|word| !word.text.is_empty()).collect())
}

const FORMS: &str = "5 fields (minute hour day-of-month month day-of-week), 6 (second first, or a year last), \
                     7 (second first and year last), @every 90s, @at 2027-01-31T08:00:00+01:00, or one of \
                     @hourly @daily @weekly @monthly @yearly";

/// The zone that a word says for its expression: `CRON_TZ=…` or `TZ=…`.
fn zone_of(word: Piece<'_>) -> Result<Option<Zone>, Error> {
    let Some((key, name)) = word.split_once('=') else { return Ok(None) };
    if !key.text.eq_ignore_ascii_case("tz") && !key.text.eq_ignore_ascii_case("cron_tz") {
        return Ok(None);
    }
    Zone::parse(name.text).map(Some).map_err(|why| name.error("", why))
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

/// What begins with `@`.
fn read_nickname(
    word: Piece<'_>,
    pieces: &[Piece<'_>],
    line: &str,
    settings: &ScheduleSettings<'_>,
    zone: Zone,
) -> Result<Expression, Error> {
    let rest = || {
        let start = word.at + word.text.len();
        let text = line[start..].trim_ascii();
        Piece { text, at: start + line[start..].len() - line[start..].trim_ascii_start().len() }
    };
    let is = |name: &str| word.text.eq_ignore_ascii_case(name);
    if is("@every") {
        return read_every(rest());
    }
    if is("@at") {
        return read_at(rest());
    }
    if is("@reboot") {
        return Err(word.error(
            "",
            "is refused: a fleet has no single boot; start the command from the machine's own init system, or write a schedule",
        ));
    }
    let Some((_, fields)) = NICKNAMES.iter().find(|(name, _)| is(name)) else {
        let names: Vec<_> = NICKNAMES.iter().map(|(name, _)| *name).collect();
        let known = names.join(" ");
        return Err(word.error(
            "",
            format!("is not known: write one of {known}, @every 90s, @at and a time, or fields"),
        ));
    };
    if let Some(more) = pieces.get(1) {
        return Err(more.error("", format!("does not belong after {}: leave it out", word.text)));
    }
    let fields = check_whole(fields)?;
    let form = Form { second: None, crontab: &fields, year: None, warning: None };
    form.read(settings, zone).map(|fields| Expression::Fields(Box::new(fields)))
}

/// The units of `@every`, in seconds.
const UNITS: [(char, u64); 4] = [('d', 86_400), ('h', 3_600), ('m', 60), ('s', 1)];

/// The period of `@every`: `90s`, `1h30m`.
fn read_every(period: Piece<'_>) -> Result<Expression, Error> {
    let wrong = |why: &str| {
        period.error(
            "",
            format!(
                "{why}: write whole days, hours, minutes and seconds, such as @every 90s or @every 1h30m"
            ),
        )
    };
    if period.text.is_empty() {
        return Err(wrong("@every has no period"));
    }
    let (mut rest, mut seconds, mut used) = (period.text, 0_u64, String::new());
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (count, tail) = rest.split_at(digits);
        let unit = tail.chars().next().and_then(|c| UNITS.iter().find(|(unit, _)| *unit == c));
        let (Some(count), Some((unit, length))) = (number(count), unit) else {
            return Err(wrong("is no period"));
        };
        if used.contains(*unit) {
            return Err(wrong("has a unit twice"));
        }
        used.push(*unit);
        seconds = seconds.saturating_add(u64::from(count).saturating_mul(*length));
        rest = &tail[1..];
    }
    match u32::try_from(seconds) {
        Ok(0) => Err(wrong("is no time at all")),
        // Its first multiple has to lie within the years of schedules.
        Ok(seconds) if u64::from(seconds) < u64::from(YEARS.1 - YEARS.0) * 365 * 86_400 => {
            Ok(Expression::Every { seconds })
        }
        _ => Err(wrong("is so long that the job would never fire")),
    }
}

/// The moment of `@at`.
fn read_at(moment: Piece<'_>) -> Result<Expression, Error> {
    let form = "write it with its offset from UTC, such as @at 2027-01-31T08:00:00+01:00";
    if moment.text.is_empty() {
        return Err(moment.error("", format!("@at has no time: {form}")));
    }
    let Ok(time) = chrono::DateTime::parse_from_rfc3339(moment.text) else {
        return Err(moment.error("", format!("is not a time in RFC 3339: {form}")));
    };
    if time.timestamp_subsec_nanos() % 1_000_000 != 0 {
        return Err(moment.error("", "is finer than a millisecond: leave out the rest of the fraction"));
    }
    let year = chrono::Datelike::year(&time);
    if !(YEARS.0..=YEARS.1).contains(&year.unsigned_abs()) || time.timestamp() < 0 {
        return Err(
            moment.error("", format!("never comes: write a time of the years {} to {}", YEARS.0, YEARS.1))
        );
    }
    Ok(Expression::At(Timestamp::from_ms(time.timestamp_millis())))
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

impl<'a> Form<'a> {
    /// Tells the places by the number of words.
    fn of(line: &str, pieces: &'a [Piece<'a>], dialect: Option<Dialect>) -> Result<Self, Error> {
        let plain = Self { second: None, crontab: pieces, year: None, warning: None };
        let told = |warning: String| dialect.is_none().then_some(warning);
        Ok(match *pieces {
            [_, _, _, _, _] => plain,
            [_, _, _, _, _, last] if dialect == Some(Dialect::Seed) => {
                Self { crontab: &pieces[..5], year: Some(last), ..plain }
            }
            [_, _, _, _, _, last] if only_a_year(last.text) => Self {
                crontab: &pieces[..5],
                year: Some(last),
                warning: told(format!(
                    "read as six fields with a trailing year (minute hour day-of-month month day-of-week year), since {:?} can only be a year; \
                     so read the library of the seed (owenliang/crontab), other six fields are read with seconds first",
                    last.text
                )),
                ..plain
            },
            [second, _, _, _, _, _] => Self {
                second: Some(second),
                crontab: &pieces[1..],
                year: None,
                warning: told(format!(
                    "read as six fields with seconds first (second minute hour day-of-month month day-of-week); the library of the seed \
                     (owenliang/crontab) read six fields with a trailing year, which would be {:?} here; seven fields, {:?}, say without doubt \
                     what is meant now, and so does the option dialect",
                    format!("0 {}", join(pieces)),
                    format!("{} *", join(pieces))
                )),
            },
            [second, _, _, _, _, _, year] => {
                Self { second: Some(second), crontab: &pieces[1..6], year: Some(year), ..plain }
            }
            [second, _, _, _, _, _, year, more, ..] if dialect == Some(Dialect::Seed) => Self {
                second: Some(second),
                crontab: &pieces[1..6],
                year: Some(year),
                warning: Some(format!(
                    "what follows the seventh field, from {:?} on, is passed over, as the seed did",
                    more.text
                )),
            },
            _ => return Err(wrong_count(line, pieces)),
        })
    }

    fn read(&self, settings: &ScheduleSettings<'_>, zone: Zone) -> Result<Fields, Error> {
        let &[minute, hour, day, month, weekday] = self.crontab else {
            return Err(whole("the expression was not understood: write it in a simpler form".to_owned()));
        };
        let read = |place, piece| Reader { place, field: place.field(), settings }.read(piece);
        // Without a field of their own, seconds are 0.
        let second = self
            .second
            .map_or(Ok(Read { numbers: 1, ..Read::default() }), |piece| read(Place::Second, piece))?;
        let (minute_read, hour_read) = (read(Place::Minute, minute)?, read(Place::Hour, hour)?);
        let (days, months) = (read(Place::DayOfMonth, day)?, read(Place::Month, month)?);
        let weekdays = read(Place::DayOfWeek, weekday)?;
        let years = self.year.map(|year| read(Place::Year, year)).transpose()?;
        // Debian's rule is by the letter: what begins with `*` is no fixed time. A step says "every" as well. Ranges do where there is a field
        // for the second, which Debian has not and others read so.
        let ranges = self.second.is_some();
        let interval = [&second, &minute_read, &hour_read]
            .iter()
            .any(|field| field.star || field.stepped || (ranges && field.ranged));
        let low = |numbers: u64| u32::try_from(numbers).unwrap_or_default();
        Ok(Fields {
            second: second.numbers,
            minute: minute_read.numbers,
            hour: low(hour_read.numbers),
            month: u16::try_from(months.numbers).unwrap_or_default(),
            either_day: days.restricts(settings) && weekdays.restricts(settings),
            day_of_month: DaysOfMonth { plain: low(days.numbers), special: days.special_days.map(Box::new) },
            day_of_week: DaysOfWeek {
                plain: u8::try_from(weekdays.numbers).unwrap_or_default(),
                special: weekdays.special_weekdays.map(Box::new),
            },
            years: years.filter(|years| !years.everything).map(|years| Box::new(years.years)),
            zone,
            dst: settings.dst,
            interval,
        })
    }

    /// What is wrong with fields that have no fire at all.
    fn never(&self) -> Error {
        let &[_, _, day, month, weekday] = self.crontab else { return whole("never fires".to_owned()) };
        let year = self.year.map(|year| format!(" in year {:?}", year.text)).unwrap_or_default();
        day.error(
            DAY_OF_MONTH.name,
            format!(
                "with month {:?} and day of week {:?}{year} never comes, so the job would never fire: write a date that exists",
                month.text, weekday.text
            ),
        )
    }
}

fn wrong_count(line: &str, pieces: &[Piece<'_>]) -> Error {
    let many = pieces.len();
    let noun = if many == 1 { "field" } else { "fields" };
    let at = pieces.first().map_or(0, |piece| piece.at);
    Piece { text: line[at..].trim_ascii(), at }.error("", format!("has {many} {noun}: give {FORMS}"))
}

/// What a field's text stands for.
#[derive(Default)]
struct Read {
    /// Its plain numbers, as bits; not of the year.
    numbers: u64,
    years: Years,
    special_days: Option<SpecialDays>,
    special_weekdays: Option<SpecialWeekdays>,
    /// It begins with `*`, or is `?`.
    star: bool,
    /// One of its items is `*` or `?`.
    everything: bool,
    /// One of its items has a step.
    stepped: bool,
    /// One of its items is a range.
    ranged: bool,
}

impl Read {
    /// Whether a day field restricts the days, so that the other one's days fire as well. By crontab's rule one that begins with `*` does not.
    fn restricts(&self, settings: &ScheduleSettings<'_>) -> bool {
        if settings.dialect == Some(Dialect::Seed) { !self.everything } else { !self.star }
    }
}

/// Reads one field.
struct Reader<'a> {
    place: Place,
    field: &'static Field,
    settings: &'a ScheduleSettings<'a>,
}

impl Reader<'_> {
    fn read(&self, piece: Piece<'_>) -> Result<Read, Error> {
        let mut read = Read { star: piece.text.starts_with('*') || piece.text == "?", ..Read::default() };
        let seed = self.settings.dialect == Some(Dialect::Seed);
        let (mut items, mut first_empty) = (0, None);
        for item in piece.split(|c| c == ',') {
            if item.text.is_empty() {
                first_empty = first_empty.or(Some(item.at));
            } else {
                items += 1;
                self.item(item, &mut read)?;
            }
        }
        if let Some(at) = first_empty
            && !(seed && items > 0)
        {
            let message = "has an empty item in its list: leave out the extra comma".to_owned();
            return Err(Error { position: at + 1, message, ..piece.error(self.field.name, "") });
        }
        Ok(read)
    }

    fn error(&self, piece: Piece<'_>, message: impl Into<String>) -> Error {
        piece.error(self.field.name, message)
    }

    fn insert(&self, read: &mut Read, n: u32) {
        match self.field.kind {
            Kind::Year => read.years.insert(n),
            Kind::DayOfWeek => read.numbers |= 1 << (n % 7),
            Kind::Plain | Kind::DayOfMonth => read.numbers |= 1 << n,
        }
    }

    /// Reads one item of a list.
    fn item(&self, item: Piece<'_>, read: &mut Read) -> Result<(), Error> {
        let upper = item.text.to_ascii_uppercase();
        let days = matches!(self.field.kind, Kind::DayOfMonth | Kind::DayOfWeek);
        if days && self.special(item, &upper, read)? {
            return Ok(());
        }
        if upper.starts_with('H') && (upper.len() == 1 || upper[1..].starts_with(['/', '('])) {
            return self.hashed(item, read);
        }
        let (body, step) = match item.split_once('/') {
            Some((body, step)) => (body, Some(step)),
            None => (item, None),
        };
        if body.text.is_empty() {
            return Err(self.error(item, format!("has nothing before \"/\": write *{}", item.text)));
        }
        if body.text == "?" {
            if step.is_some() {
                return Err(self.error(item, "has a step after \"?\": write * in its place"));
            }
            read.everything = true;
        }
        let (first, last) = self.bounds(item, body, step.is_some(), read)?;
        let step = step.map_or(Ok(1), |step| self.step(item, body, first, step))?;
        read.stepped |= item.text.contains('/');
        self.fill(read, first, last, step);
        Ok(())
    }

    /// Puts every `step`-th number in from `first` to `last`; where the last is before the first, on from the field's end to its beginning.
    fn fill(&self, read: &mut Read, first: u32, last: u32, step: u32) {
        let field = self.field;
        if first <= last {
            (first..=last).step_by(step as usize).for_each(|n| self.insert(read, n));
            return;
        }
        let size = field.last() - field.min + 1;
        let until = last + size;
        for n in (first..=until).step_by(step as usize) {
            self.insert(read, if n > field.last() { n - size } else { n });
        }
    }

    /// First and last number of an item without its step.
    fn bounds(
        &self,
        item: Piece<'_>,
        body: Piece<'_>,
        stepped: bool,
        read: &mut Read,
    ) -> Result<(u32, u32), Error> {
        let field = self.field;
        if body.text == "*" || body.text == "?" {
            read.everything |= !stepped;
            return Ok((field.min, field.last()));
        }
        if let Some((start, end)) = body.split_once('-').filter(|(start, _)| !start.text.is_empty()) {
            read.ranged = true;
            return self.range(item, self.value(item, start)?, self.value(item, end)?);
        }
        let n = self.value(item, body)?;
        let n = if field.kind == Kind::DayOfWeek { n % 7 } else { n };
        Ok((n, if stepped { field.last() } else { n }))
    }

    fn range(&self, item: Piece<'_>, mut start: u32, mut end: u32) -> Result<(u32, u32), Error> {
        if self.field.kind == Kind::DayOfWeek {
            // Sunday ends the week as 7 and begins it as 0, whichever was written.
            if start == 7 {
                (start, end) = (0, end % 7);
            } else if end == 0 && start > 0 {
                end = 7;
            }
        }
        if start > end && self.field.kind == Kind::Year {
            return Err(self.error(item, format!("ends before it starts: write {end}-{start}")));
        }
        Ok((start, end))
    }

    /// A step has to be able to land twice: `*/60` minutes is one minute only, and surely meant otherwise.
    fn step(&self, item: Piece<'_>, body: Piece<'_>, first: u32, step: Piece<'_>) -> Result<u32, Error> {
        let Some(n) = number(step.text) else {
            let hint = if step.text.is_empty() {
                format!("has no step after \"/\": write one, or {} alone", body.text)
            } else {
                format!("has a step that is not a number: write digits, such as {}/2", body.text)
            };
            return Err(self.error(item, hint));
        };
        if n == 0 {
            return Err(self.error(item, "has a step of 0: write a step of 1 or more"));
        }
        let field = self.field;
        if n > field.max {
            return Err(self.error(
                item,
                format!(
                    "has a step larger than the field, which goes from {} to {}: write {first} for one time only, or a smaller step",
                    field.min, field.max
                ),
            ));
        }
        Ok(n)
    }

    /// One number or name, which the field must have. Errors show the whole item that it stands in.
    fn value(&self, item: Piece<'_>, piece: Piece<'_>) -> Result<u32, Error> {
        let field = self.field;
        let allowed = field.allowed();
        if let Some(n) = number(piece.text) {
            if (field.min..=field.max).contains(&n) {
                return Ok(n);
            }
            return Err(self.error(piece, format!("is out of bounds: write {allowed}")));
        }
        if let Some(n) = field.named(piece.text) {
            return Ok(n);
        }
        let unsigned = piece.text.strip_prefix(['+', '-']).filter(|rest| number(rest).is_some());
        let why = match unsigned {
            Some(rest) => {
                let good = number(rest).is_some_and(|n| (field.min..=field.max).contains(&n));
                format!("has a sign: write {}", if good { rest } else { &allowed })
            }
            None if piece.text.is_empty() => {
                return Err(self.error(item, format!("is half a range: write both ends, each {allowed}")));
            }
            None => format!(
                "is not understood: write {allowed}, *, or ranges, lists and steps of them{}",
                self.forms()
            ),
        };
        Err(self.error(piece, why))
    }

    /// The forms that only some fields have, for messages.
    fn forms(&self) -> &'static str {
        match self.field.kind {
            Kind::DayOfMonth => {
                "; or L (the last day), L-2 (two before it), 15W (the working day nearest to the 15th), LW"
            }
            Kind::DayOfWeek => "; or 5L (the last Friday), 5#2 (the second Friday)",
            Kind::Plain | Kind::Year => "",
        }
    }

    /// Days that depend on the month; false when the item is no such day.
    fn special(&self, item: Piece<'_>, upper: &str, read: &mut Read) -> Result<bool, Error> {
        if self.field.kind == Kind::DayOfMonth {
            self.special_day(item, upper, read)
        } else {
            self.special_weekday(item, upper, read)
        }
    }

    /// `L`, `L-2`, `LW`, `L-2W`, `15W`.
    fn special_day(&self, item: Piece<'_>, upper: &str, read: &mut Read) -> Result<bool, Error> {
        let (day, workday) = upper.strip_suffix('W').map_or((upper, false), |day| (day, true));
        let special = read.special_days.get_or_insert_default();
        let back = match day.strip_prefix('L') {
            Some("") => Some(0),
            Some(back) => match back.strip_prefix('-').and_then(number) {
                Some(back) if back < DAY_OF_MONTH.max => Some(back),
                Some(_) => return Err(self.error(item, "goes back too far: write L-0 to L-30")),
                None => return Err(self.error(item, "is not understood: write L, L-2, LW or L-2W")),
            },
            None => None,
        };
        match (back, workday) {
            (Some(back), false) => special.last |= 1 << back,
            (Some(back), true) => special.last_workdays |= 1 << back,
            (None, true) => match number(day) {
                Some(day) if (1..=DAY_OF_MONTH.max).contains(&day) => special.workdays |= 1 << day,
                Some(_) => return Err(self.error(item, "is out of bounds: write 1W to 31W")),
                None => {
                    return Err(
                        self.error(item, "is not understood: write one day before W, such as 15W, or LW")
                    );
                }
            },
            (None, false) => {
                if *special == SpecialDays::default() {
                    read.special_days = None;
                }
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// `5L`, `FRIL`, `5#2`, `FRI#2`.
    fn special_weekday(&self, item: Piece<'_>, upper: &str, read: &mut Read) -> Result<bool, Error> {
        let weekday = |text: &str| {
            let n = number(text).filter(|n| *n <= DAY_OF_WEEK.max);
            n.or_else(|| DAY_OF_WEEK.named(text)).map(|n| n % 7)
        };
        if let Some((day, nth)) = upper.split_once('#') {
            let Some(day) = weekday(day) else {
                return Err(self.error(
                    item,
                    "has no weekday before \"#\": write one, such as 5#2 or FRI#2 for the second Friday",
                ));
            };
            let Some(nth) = number(nth).filter(|nth| (1..=5).contains(nth)) else {
                return Err(self.error(
                    item,
                    "has no week from 1 to 5 after \"#\": write one, such as 5#2 for the second Friday",
                ));
            };
            read.special_weekdays.get_or_insert_default().nth[nth as usize - 1] |= 1 << day;
            return Ok(true);
        }
        if let Some(day) = upper.strip_suffix('L') {
            let Some(day) = weekday(day) else {
                return Err(self.error(item, "has no weekday before \"L\": write one, such as 5L or FRIL for the last Friday, or 6 for Saturdays"));
            };
            read.special_weekdays.get_or_insert_default().last |= 1 << day;
            return Ok(true);
        }
        Ok(false)
    }

    /// `H`, `H/15`, `H(0-29)`, `H(0-29)/10`: as in Jenkins a number that the job's name decides, so that jobs that run as often do not all
    /// start at once.
    fn hashed(&self, item: Piece<'_>, read: &mut Read) -> Result<(), Error> {
        let field = self.field;
        if field.kind == Kind::Year {
            return Err(self.error(item, "cannot be taken from the job's name: write years"));
        }
        let Some(name) = self.settings.name else {
            return Err(self
                .error(item, "takes its value from the job's name, which is not known here: give the name"));
        };
        let (body, step) = match item.split_once('/') {
            Some((body, step)) => (body, Some(step)),
            None => (item, None),
        };
        // Every month has a 28th.
        let every_month = if field.kind == Kind::DayOfMonth { 28 } else { field.last() };
        let (first, last) = if body.text.len() == 1 {
            (field.min, every_month)
        } else {
            let inner = Piece { text: &body.text[1..], at: body.at + 1 };
            let range = inner.text.strip_prefix('(').and_then(|text| text.strip_suffix(')'));
            let range = range.and_then(|text| Piece { text, at: inner.at + 1 }.split_once('-'));
            let Some((start, end)) = range else {
                return Err(self.error(item, "is not understood: write H, H/15, H(0-29) or H(0-29)/10"));
            };
            let (start, end) = (self.value(item, start)?, self.value(item, end)?);
            if start > end {
                return Err(self.error(item, format!("ends before it starts: write H({end}-{start})")));
            }
            (start, end)
        };
        let hash = xxhash_rust::xxh3::xxh3_64_with_seed(name.as_bytes(), HASH_SEED + self.place as u64);
        let below = |bound: u32| u32::try_from(hash % u64::from(bound)).unwrap_or_default();
        match step {
            None => self.insert(read, first + below(last - first + 1)),
            Some(step) => {
                let step = self.step(item, body, first, step)?;
                read.stepped = true;
                self.fill(read, first + below(step.min(last - first + 1)), last, step);
            }
        }
        Ok(())
    }
}

/// Digits and nothing else, zero-padded or not (`str::parse` would take a sign); too many for a `u32` are its largest.
fn number(text: &str) -> Option<u32> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().unwrap_or(u32::MAX))
}

/// Whether a text may have an item `H`, so that its schedule depends on the job's name.
pub(super) fn may_be_hashed(text: &str) -> bool {
    let item =
        |item: &str| item.starts_with(['H', 'h']) && (item.len() == 1 || item[1..].starts_with(['/', '(']));
    text.split(|c: char| c.is_ascii_whitespace() || c == ',').any(item)
}

fn join(pieces: &[Piece<'_>]) -> String {
    pieces.iter().map(|piece| piece.text).collect::<Vec<_>>().join(" ")
}
