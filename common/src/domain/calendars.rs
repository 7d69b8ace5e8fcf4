//! Calendars: named sets of days, holidays for instance, and the option `calendars` of the jobs that leave them out or are limited to them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::job::Fault;
use super::labelling::description;
use super::stored;
use crate::schedule::{DAYS, DaySet, Days, NamedDays, date_of, day_of};

/// Format version that is written.
const VERSION: u64 = 1;
/// Longest name, in bytes.
const NAME_BYTES_MAX: usize = 100;
/// Most calendars of one job: what a fire depends on should fit on a screen.
pub const OF_A_JOB_MAX: usize = 8;
/// Most calendars of a fleet: each worker holds 10 kB for each, and reads all of them when one changes.
pub const CALENDARS_MAX: usize = 100;
/// Most stretches of days of one calendar: thirty holidays in each year until 2199. Its value has 120 kB at most.
pub const STRETCHES_MAX: usize = 5_000;

/// The name of a calendar: 1 to 100 bytes, without control characters, `/`, `,` and outer blanks.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct CalendarName(Arc<str>);

impl CalendarName {
    /// Checks a name.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(name: &str) -> Result<Self, String> {
        let is_bad = |c: char| c.is_control() || matches!(c, '/' | ',');
        if name.is_empty() || name.len() > NAME_BYTES_MAX || name.trim() != name || name.contains(is_bad) {
            return Err(format!(
                "{name:?} is no name of a calendar: give 1 to {NAME_BYTES_MAX} bytes without control characters, \"/\", \",\" and outer blanks"
            ));
        }
        Ok(Self(name.into()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CalendarName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Value of `/cron/calendars/{name}`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Calendar {
    /// What it is for.
    pub description: Option<String>,
    /// Its days.
    pub days: DaySet,
}

impl Calendar {
    /// Reads the fields `description` and `dates` of a calendar that somebody wants to have; others are faults.
    ///
    /// # Errors
    /// Every fault at once, each with its field.
    pub fn from_submitted(fields: &Map<String, Value>) -> Result<Self, Vec<Fault>> {
        let (mut calendar, mut faults) = (Self::default(), Vec::new());
        for (name, value) in fields {
            let read = match name.as_str() {
                "description" if value.is_null() => Ok(()),
                "description" => description(value).map(|text| calendar.description = Some(text)),
                "dates" => dates(value).map(|days| calendar.days = days),
                _ => Err("unknown field: a calendar has name, dates and may have description".to_owned()),
            };
            faults.extend(read.err().map(|why| Fault::new(name, why)));
        }
        if !fields.contains_key("dates") {
            let missing = "is missing: give a list like [\"2027-01-01\",\"2027-12-24/2027-12-26\"]";
            faults.push(Fault::new("dates", missing));
        }
        if faults.is_empty() { Ok(calendar) } else { Err(faults) }
    }

    /// As it is stored and served: dates, and stretches of them as `first/last`.
    #[must_use]
    pub fn to_value(&self) -> Map<String, Value> {
        let mut fields = Map::new();
        fields.extend(
            self.description.as_ref().map(|text| ("description".to_owned(), Value::from(text.as_str()))),
        );
        let told = |(first, last): (i64, i64)| match first == last {
            true => date_text(first),
            false => format!("{}/{}", date_text(first), date_text(last)),
        };
        let dates: Vec<Value> =
            self.days.stretches().into_iter().map(|stretch| told(stretch).into()).collect();
        fields.insert("dates".to_owned(), dates.into());
        fields
    }

    /// The value to store.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut fields = Map::from_iter([("v".to_owned(), Value::from(VERSION))]);
        fields.extend(self.to_value());
        stored::encode(&fields)
    }

    /// Reads a stored value.
    ///
    /// # Errors
    /// See [`stored::decode`]; also when it has a field that this version does not know: by other days a job would fire when it should not.
    pub fn decode(bytes: &[u8]) -> Result<Self, stored::Error> {
        let mut fields: Map<String, Value> = stored::decode(bytes, VERSION)?;
        fields.remove("v");
        Self::from_submitted(&fields).map_err(|faults| {
            let told: Vec<String> = faults.iter().map(Fault::to_string).collect();
            stored::Error::Malformed(told.join("; "))
        })
    }

    /// Checks that it is not too large to be kept.
    ///
    /// # Errors
    /// What to do.
    pub fn check_size(&self) -> Result<(), String> {
        let many = self.days.stretches().len();
        if many <= STRETCHES_MAX {
            return Ok(());
        }
        Err(format!(
            "has {many} dates and stretches of dates: {STRETCHES_MAX} fit in (what comes every week is better said by the day of week of an expression)"
        ))
    }
}

/// A day as `2027-01-31`.
#[must_use]
pub fn date_text(day: i64) -> String {
    date_of(day).map(|(year, month, day)| format!("{year:04}-{month:02}-{day:02}")).unwrap_or_default()
}

/// The day of `2027-01-31`, from 1970 to 2199.
fn day_of_text(text: &str) -> Option<i64> {
    let digits = |part: &str, len: usize| {
        let is_number = part.len() == len && part.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| part.parse::<u32>().ok()).flatten()
    };
    let mut parts = text.split('-');
    let (year, month, day) =
        (digits(parts.next()?, 4)?, digits(parts.next()?, 2)?, digits(parts.next()?, 2)?);
    if parts.next().is_some() || year < 1970 || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // There is such a date if it comes back.
    let found = day_of(year, month, day);
    (found < DAYS && date_of(found) == Some((year, month, day))).then_some(found)
}

fn dates(value: &Value) -> Result<DaySet, String> {
    let form =
        "write dates like \"2027-01-31\", from 1970 to 2199, or stretches like \"2027-12-24/2027-12-26\"";
    let Value::Array(given) = value else { return Err(format!("is not a list: {form}")) };
    if given.len() > usize::try_from(DAYS).unwrap_or(usize::MAX) {
        return Err(format!("has {} entries: {STRETCHES_MAX} fit in", given.len()));
    }
    let mut days = DaySet::default();
    for value in given {
        let text = value.as_str().ok_or_else(|| format!("{value} is no date: {form}"))?;
        let (first, last) = text.split_once('/').unwrap_or((text, text));
        match (day_of_text(first), day_of_text(last)) {
            (Some(first), Some(last)) if first <= last => days.add(first, last),
            (Some(_), Some(_)) => return Err(format!("{text:?} ends before it begins: {form}")),
            _ => return Err(format!("{text:?} is no date: {form}")),
        }
    }
    Ok(days)
}

/// The option `calendars`: a job has no fires on the days of `exclude`, and none but on those of `only` where any is named there.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct JobCalendars {
    exclude: Vec<CalendarName>,
    only: Vec<CalendarName>,
}

impl JobCalendars {
    /// Reads the option.
    ///
    /// # Errors
    /// What is wrong with it and what to write instead.
    pub fn parse(value: &Value) -> Result<Self, String> {
        let form = "write it like {\"exclude\":[\"holidays\"]} or {\"only\":[\"working days\"]}";
        let Value::Object(fields) = value else { return Err(format!("is not an object: {form}")) };
        let mut calendars = Self::default();
        for (field, value) in fields {
            let names = match field.as_str() {
                "exclude" => &mut calendars.exclude,
                "only" => &mut calendars.only,
                _ => return Err(format!("has {field:?}, which means nothing here: {form}")),
            };
            let Value::Array(given) = value else { return Err(format!("{field:?} is not a list: {form}")) };
            for value in given {
                let name = value.as_str().ok_or_else(|| format!("{value} is not a string: {form}"))?;
                names.push(CalendarName::parse(name)?);
            }
        }
        let many = calendars.names().count();
        if !(1..=OF_A_JOB_MAX).contains(&many) {
            return Err(format!("names {many} calendars: name 1 to {OF_A_JOB_MAX}, or leave it out"));
        }
        if calendars.names().collect::<BTreeSet<_>>().len() < many {
            return Err("names a calendar twice: name it once".to_owned());
        }
        Ok(calendars)
    }

    /// The calendars that it names.
    pub fn names(&self) -> impl Iterator<Item = &CalendarName> {
        self.exclude.iter().chain(&self.only)
    }

    /// As it is stored: what is empty is left out.
    #[must_use]
    pub fn to_value(&self) -> Value {
        let list =
            |names: &[CalendarName]| names.iter().map(|name| Value::from(name.as_str())).collect::<Value>();
        let parts = [("exclude", &self.exclude), ("only", &self.only)];
        let given = parts.into_iter().filter(|(_, names)| !names.is_empty());
        given.map(|(field, names)| (field.to_owned(), list(names))).collect::<Map<_, _>>().into()
    }
}

/// The days of the fleet's calendars, as far as whoever has this needs them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Calendars(BTreeMap<CalendarName, Arc<DaySet>>);

impl Calendars {
    /// Takes one more.
    pub fn insert(&mut self, name: CalendarName, days: DaySet) {
        self.0.insert(name, Arc::new(days));
    }

    /// The days that a job's option leaves it. Of a calendar that is not known it says so, and no schedule is read with it.
    #[must_use]
    pub fn days(&self, of_job: &JobCalendars) -> Arc<Days> {
        let named = |names: &[CalendarName]| {
            let known = |name: &CalendarName| NamedDays {
                name: Arc::clone(&name.0),
                days: self.0.get(name).cloned(),
            };
            names.iter().map(known).collect()
        };
        Arc::new(Days { exclude: named(&of_job.exclude), only: named(&of_job.only) })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn calendar(value: Value) -> Result<Calendar, Vec<String>> {
        Calendar::from_submitted(value.as_object().unwrap())
            .map_err(|faults| faults.iter().map(Fault::to_string).collect())
    }

    #[test]
    fn a_calendar_is_stored_in_one_form_whatever_the_order() {
        let given = json!({"description": "two days off", "dates":
            ["2027-12-26", "2027-01-01", "2027-12-24/2027-12-25", "1970-01-01", "2199-12-31", "2028-02-29"]});
        let read = calendar(given).unwrap();
        let stored = json!({"description": "two days off", "dates":
            ["1970-01-01", "2027-01-01", "2027-12-24/2027-12-26", "2028-02-29", "2199-12-31"]});
        assert_eq!(Value::Object(read.to_value()), stored);
        assert_eq!(Calendar::decode(&read.encode()).unwrap(), read);
        assert!(read.encode().starts_with(br#"{"v":1,"description":"#));
        assert_eq!(read.days.count(), 7);
        assert_eq!(calendar(json!({"dates": []})).unwrap(), Calendar::default());
    }

    #[test]
    fn what_is_no_date_is_told() {
        for bad in [
            "2027-02-29",
            "2027-13-01",
            "2027-1-01",
            "1969-12-31",
            "2200-01-01",
            "2027-01-01-",
            "",
            "+027-01-01",
            "2027-01-02/2027-01-01",
            "/",
        ] {
            let told = calendar(json!({"dates": [bad]})).unwrap_err();
            assert!(told.len() == 1 && told[0].contains(&format!("{bad:?}")), "{bad}: {told:?}");
        }
        assert_eq!(calendar(json!({"date": [], "description": 5})).unwrap_err().len(), 3);
        let days: Vec<String> = (0..STRETCHES_MAX as i64 + 1).map(|n| date_text(2 * n)).collect();
        let large = calendar(json!({ "dates": days })).unwrap();
        assert!(large.check_size().unwrap_err().contains("5001 dates"));
    }

    #[test]
    fn a_newer_versions_calendar_is_not_guessed_at() {
        for newer in
            [&br#"{"v":2,"dates":[]}"#[..], br#"{"v":1,"dates":[],"yearly":["12-25"]}"#, br#"{"dates":[]}"#]
        {
            assert!(Calendar::decode(newer).is_err());
        }
    }

    #[test]
    fn the_option_is_read_and_written_again() {
        for given in [
            json!({"exclude": ["holidays", "节假日"]}),
            json!({"only": ["working days"]}),
            json!({"exclude": ["a"], "only": ["b", "c"]}),
        ] {
            assert_eq!(JobCalendars::parse(&given).unwrap().to_value(), given);
        }
        for (bad, says) in [
            (json!([]), "not an object"),
            (json!({}), "names 0 calendars"),
            (json!({"exclude": []}), "names 0 calendars"),
            (json!({"exclude": "a"}), "not a list"),
            (json!({"except": ["a"]}), "means nothing here"),
            (json!({"only": ["a"], "exclude": ["a"]}), "twice"),
            (json!({"only": [1]}), "not a string"),
            (json!({"only": ["a,b"]}), "no name of a calendar"),
            (json!({"only": [" a"]}), "no name of a calendar"),
            (json!({"only": ["a/b"]}), "no name of a calendar"),
            (json!({"only": ["1", "2", "3", "4", "5", "6", "7", "8", "9"]}), "names 9"),
        ] {
            let told = JobCalendars::parse(&bad).unwrap_err();
            assert!(told.contains(says), "{bad}: {told}");
        }
    }
}
