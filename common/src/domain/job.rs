//! Jobs: what the seed calls `Job`, and what may be submitted as one.

use std::fmt;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::http;
use super::options::JobOptions;
use super::settings::FleetSettings;
use crate::schedule::{Dialect, Dst, Schedule, ScheduleSettings, Window};

/// Longest job name, in bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// Longest command, in bytes: half of what Linux takes as one argument (128 KiB), in which it is handed to the shell.
pub const COMMAND_BYTES_MAX: usize = 64 * 1024;

/// A job's name: 1 to 255 bytes, without control characters and without `/`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobName(Arc<str>);

impl JobName {
    /// Checks a name.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it and how to mend it.
    pub fn parse(name: &str) -> Result<Self, String> {
        if name.is_empty() {
            return Err("the job has no name: give one of 1 to 255 bytes".to_owned());
        }
        if name.len() > NAME_BYTES_MAX {
            return Err(format!("the name is {} bytes long: shorten it to {NAME_BYTES_MAX}", name.len()));
        }
        if let Some(bad) = name.chars().find(|c| c.is_control() || *c == '/') {
            return Err(format!("the name contains {bad:?}: leave out control characters and \"/\""));
        }
        Ok(Self(name.into()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for JobName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for JobName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

impl serde::Serialize for JobName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for JobName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// A job as it is stored at `/cron/jobs/{name}`: the seed's three fields, its options, and whatever else is in the value.
#[derive(Clone, PartialEq, Debug)]
pub struct Job {
    /// Its name.
    pub name: JobName,
    /// Shell command.
    pub command: String,
    /// Cron expression, as written.
    pub cron_expr: String,
    /// Its options.
    pub options: JobOptions,
    /// Fields of the stored value that this version does not know, and options with a value that it does not know, kept as they are. A
    /// worker never runs a job that has any.
    pub extra: Map<String, Value>,
}

/// One thing wrong with a submitted or a stored job.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// The field's name in the JSON; empty for the whole.
    pub field: String,
    /// What is wrong and how to mend it.
    pub message: String,
}

impl Fault {
    /// It says that a calendar is not known: whoever has not looked for it knows better than to tell.
    #[must_use]
    pub fn is_of_missing_calendar(&self) -> bool {
        self.field == "calendars" && self.message.starts_with(NO_CALENDAR)
    }

    /// A fault of one field.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.field, self.message)
        }
    }
}

/// See [`Job::schedule_hash`]. XXH3, stored as 16 hex digits; a number, since every worker holds two for each job.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct ScheduleHash(u64);

impl ScheduleHash {
    /// The hash of a schedule that is read with these settings. Under the default ones it is the same, as in versions that had no others.
    #[must_use]
    pub fn under(self, settings: &ScheduleSettings<'_>) -> Self {
        let mut text = String::new();
        if settings.zone.name() != "UTC" {
            text = format!("\0timezone {}", settings.zone);
        }
        // Chosen or not, the standard dialect is the same one.
        if settings.dialect == Some(Dialect::Seed) {
            text.push_str("\0dialect seed");
        }
        match settings.dst {
            Dst::Debian => {}
            Dst::Skip => text.push_str("\0dst skip"),
            Dst::Twice => text.push_str("\0dst twice"),
        }
        text.extend(settings.days.as_ref().map(|days| days.text_to_hash()));
        if text.is_empty() {
            return self;
        }
        Self(xxhash_rust::xxh3::xxh3_64_with_seed(text.as_bytes(), self.0))
    }
}

impl fmt::Display for ScheduleHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl serde::Serialize for ScheduleHash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for ScheduleHash {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        // What is no such number is the hash of nothing: its job is adopted anew.
        Ok(Self(
            u64::from_str_radix(&text, 16)
                .unwrap_or_else(|_no_number| xxhash_rust::xxh3::xxh3_64(text.as_bytes())),
        ))
    }
}

/// A job that was accepted, its schedule, and what its author should know.
#[derive(Clone, Debug)]
pub struct Submitted {
    /// The job.
    pub job: Job,
    /// Its schedule.
    pub schedule: Schedule,
    /// Sentences about readings that the author may not have meant.
    pub warnings: Vec<String>,
}

/// How the fault begins that says that a job's calendar is not known.
const NO_CALENDAR: &str = "there is no calendar ";

/// Stands for the expression of a job that runs after others: the window of such a job is empty, so that it has no fires.
const NO_TIMES: &str = "@yearly";

/// Takes the place of `cronExpr` where the job runs after others; false when it does not.
fn take_no_times(fields: &mut Map<String, Value>, faults: &mut Vec<Fault>) -> bool {
    if !fields.contains_key("after") {
        return false;
    }
    let is_empty =
        |value: &Value| value.is_null() || value.as_str().is_some_and(|text| text.trim().is_empty());
    if fields.shift_remove("cronExpr").is_some_and(|value| !is_empty(&value)) {
        let beside =
            "is given beside \"after\": leave it out, or let the job have times and leave out \"after\"";
        faults.push(Fault::new("cronExpr", beside));
    }
    true
}

impl Job {
    /// Reads a stored value; `key_name` is what follows `/cron/jobs/`.
    ///
    /// # Errors
    /// What keeps it from being a job; it is reported and skipped, not fatal.
    pub fn from_stored(key_name: &str, value: &[u8]) -> Result<Self, Fault> {
        let name = JobName::parse(key_name).map_err(|why| Fault::new("name", why))?;
        let value: Value = serde_json::from_slice(value)
            .map_err(|e| Fault::new("", format!("the value is not JSON: {e}")))?;
        let Value::Object(mut fields) = value else {
            return Err(Fault::new("", "the value is not a JSON object"));
        };
        let mut text = |field: &str| match fields.shift_remove(field) {
            Some(Value::String(text)) => Ok(text),
            Some(_) => Err(Fault::new(field, "is not a string")),
            None => Ok(String::new()),
        };
        let (inner, command, cron_expr) = (text("name")?, text("command")?, text("cronExpr")?);
        if !inner.is_empty() && inner != key_name {
            return Err(Fault::new("name", format!("says {inner:?}, but the key says {key_name:?}")));
        }
        let options = JobOptions::taken_from(&mut fields);
        Ok(Self { name, command, cron_expr, options, extra: fields })
    }

    /// Checks a job that somebody wants to save in a fleet of these settings.
    ///
    /// # Errors
    /// Every fault at once, each with its field.
    pub fn from_submitted(value: Value, fleet: &FleetSettings) -> Result<Submitted, Vec<Fault>> {
        let Value::Object(mut fields) = value else {
            return Err(vec![Fault::new(
                "",
                "the job is not a JSON object like {\"name\":…,\"command\":…,\"cronExpr\":…}",
            )]);
        };
        let mut faults = Vec::new();
        // What is sent stands in the place of the command.
        let is_blank =
            |value: &Value| value.is_null() || value.as_str().is_some_and(|text| text.trim().is_empty());
        let no_command = fields.contains_key("http") && fields.get("command").is_none_or(is_blank);
        if no_command {
            fields.insert("command".to_owned(), Value::from(""));
        }
        let is_timeless = take_no_times(&mut fields, &mut faults);
        let mut text = |field: &str, what: &str| match fields.shift_remove(field) {
            Some(Value::String(text)) if !text.trim().is_empty() || (no_command && field == "command") => {
                Some(text)
            }
            Some(Value::String(_) | Value::Null) | None => {
                faults.push(Fault::new(field, format!("is missing: give {what}")));
                None
            }
            Some(_) => {
                faults.push(Fault::new(field, format!("is not a string: give {what}")));
                None
            }
        };
        let name = text("name", "the job a name of 1 to 255 bytes");
        let command = text("command", "the shell command to run, or the option http");
        let cron_expr = if is_timeless {
            Some(String::new())
        } else {
            text("cronExpr", "a cron expression, such as \"*/5 * * * *\"")
        };
        let name = name
            .and_then(|name| JobName::parse(&name).map_err(|why| faults.push(Fault::new("name", why))).ok());
        if let Some(command) = &command {
            if command.len() > COMMAND_BYTES_MAX {
                let long = format!(
                    "is {} bytes long: put it into a script file, {COMMAND_BYTES_MAX} fit here",
                    command.len()
                );
                faults.push(Fault::new("command", long));
            }
            if command.contains('\0') {
                faults.push(Fault::new("command", "contains a NUL character: leave it out"));
            }
        }
        let options = JobOptions::taken_from(&mut fields);
        faults.extend(options.contradictions());
        // Under another zone or dialect than the one that was meant, what is said of the expression would mislead.
        let readable =
            ["timezone", "dialect", "dst", "calendars"].iter().all(|option| !fields.contains_key(*option));
        let settings = fleet.under(
            options.timezone.as_ref(),
            options.dialect,
            options.dst,
            options.calendars.as_deref(),
        );
        let settings = ScheduleSettings { name: name.as_ref().map(JobName::as_str), ..settings };
        let missing = settings.days.as_ref().map(|days| days.missing()).unwrap_or_default();
        let missing = if is_timeless { Vec::new() } else { missing };
        // Beside `after` the option is a fault by itself.
        let readable = readable && missing.is_empty() && !(is_timeless && settings.days.is_some());
        faults.extend(missing.iter().map(|name| {
            let message =
                format!("{NO_CALENDAR}{name:?}: see /calendar/list for their names, or save it first");
            Fault::new("calendars", message)
        }));
        let mut warnings = Vec::new();
        let times = cron_expr.as_deref().map(|expr| if is_timeless { NO_TIMES } else { expr });
        let expression = times.filter(|_| readable);
        let schedule = expression.and_then(|expr| match Schedule::parse(expr, &settings) {
            Ok(schedule) => {
                warnings.extend(schedule.warning().map(str::to_owned));
                Some(schedule.within(options.window()))
            }
            Err(why) => {
                faults.push(Fault::new("cronExpr", why.to_string()));
                None
            }
        });
        faults.extend(http::contradictions(command.as_deref().unwrap_or_default(), &options.execution));
        for (field, value) in &fields {
            let wrong = JobOptions::fault(field, value);
            faults.push(wrong.unwrap_or_else(|| Fault::new(field, unknown_option(field))));
        }
        match (name, command, cron_expr, schedule) {
            (Some(name), Some(command), Some(cron_expr), Some(schedule)) if faults.is_empty() => {
                Ok(Submitted {
                    job: Self { name, command, cron_expr, options, extra: Map::new() },
                    schedule,
                    warnings,
                })
            }
            _ => Err(faults),
        }
    }

    /// The expression that gives the job its fires, within [`JobOptions::window`].
    #[must_use]
    pub fn times(&self) -> &str {
        if self.options.after.is_some() { NO_TIMES } else { &self.cron_expr }
    }

    /// The JSON that is stored and served: the seed's fields first, in the seed's order; of the options what was given.
    #[must_use]
    pub fn to_value(&self) -> Value {
        let mut fields = Map::new();
        fields.insert("name".to_owned(), self.name.as_str().into());
        fields.insert("command".to_owned(), self.command.as_str().into());
        fields.insert("cronExpr".to_owned(), self.cron_expr.as_str().into());
        fields.extend(self.options.given());
        fields.extend(self.extra.iter().map(|(k, v)| (k.clone(), v.clone())));
        Value::Object(fields)
    }

    /// What the fire times depend on under the fleet's settings, hashed: an edit that leaves it alone does not move the catch-up base.
    #[must_use]
    pub fn schedule_hash(&self, fleet: &FleetSettings) -> ScheduleHash {
        self.own_hash().under(&fleet.of_job(self))
    }

    /// What of it the job says itself, without the options that the fleet's settings may say in its place.
    #[must_use]
    pub fn own_hash(&self) -> ScheduleHash {
        let mut text = self.cron_expr.clone();
        // With less jitter than before, a fire that waited for its start would be overdue at once, and an edit fires nothing by itself.
        if let Some(seconds) = self.options.jitter_seconds.filter(|seconds| *seconds > 0) {
            text = format!("{text}\0jitter {seconds}");
        }
        // Enabled again, or moved to earlier times, the job has fires that it had not: nothing of before is caught up on.
        let Window { from, until } = self.options.window();
        for (bound, at) in [("from", from), ("until", until)] {
            if let Some(at) = at {
                text = format!("{text}\0{bound} {}", at.ms());
            }
        }
        if !self.options.is_enabled() {
            text.push_str("\0disabled");
        }
        ScheduleHash(xxhash_rust::xxh3::xxh3_64(text.as_bytes()))
    }

    /// Why nobody can run what it says, though every part of it is understood.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check_work(&self) -> Result<(), Fault> {
        let is_command = self.options.execution.http.is_none();
        if is_command && (self.command.is_empty() || self.command.contains('\0')) {
            return Err(Fault::new("command", "is missing or contains a NUL character"));
        }
        http::contradictions(&self.command, &self.options.execution).into_iter().next().map_or(Ok(()), Err)
    }

    /// Options that this version does not understand, with what is wrong about those that it knows: such a job is left to workers that do.
    #[must_use]
    pub fn options_not_understood(&self) -> Vec<String> {
        let told = |(field, value): (&String, &Value)| {
            JobOptions::fault(field, value)
                .map_or_else(|| field.clone(), |fault| format!("{field} ({})", fault.message))
        };
        self.extra.iter().map(told).collect()
    }
}

fn unknown_option(field: &str) -> String {
    let mut known = ["name", "command", "cronExpr"].into_iter().chain(JobOptions::names());
    let nearest = known.find(|k| strsim::damerau_levenshtein(&k.to_lowercase(), &field.to_lowercase()) <= 2);
    match nearest {
        Some(near) => format!("unknown field: did you mean {near:?}?"),
        None => {
            let options: Vec<&str> = JobOptions::names().collect();
            format!("unknown field: a job has name, command, cronExpr and may have {}", options.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn submitted(value: Value) -> Result<Submitted, Vec<String>> {
        Job::from_submitted(value, &FleetSettings::default()).map_err(|faults| {
            faults.iter().map(|fault| format!("{}: {}", fault.field, fault.message)).collect()
        })
    }

    fn good(extra: &Value) -> Value {
        let mut job = json!({"name": "backup", "command": "true", "cronExpr": "*/5 * * * *"});
        let fields = job.as_object_mut().unwrap();
        fields.extend(extra.as_object().unwrap().clone());
        job
    }

    /// The fields at fault, in order, and what each message has to say.
    fn refused(value: Value, expected: &[(&str, &str)]) {
        let shown = value.to_string();
        let faults = Job::from_submitted(value, &FleetSettings::default()).expect_err(&shown);
        let fields: Vec<_> = faults.iter().map(|fault| fault.field.as_str()).collect();
        let expected_fields: Vec<_> = expected.iter().map(|(field, _)| *field).collect();
        assert_eq!(fields, expected_fields, "{shown}: {faults:?}");
        for (fault, (_, says)) in faults.iter().zip(expected) {
            assert!(fault.message.contains(says), "{shown}: {:?} does not say {says:?}", fault.message);
        }
    }

    #[test]
    fn a_good_job_is_taken_as_it_is() {
        let taken = submitted(good(&json!({}))).unwrap();
        assert_eq!((taken.job.name.as_str(), taken.job.command.as_str()), ("backup", "true"));
        assert_eq!(taken.job.cron_expr, "*/5 * * * *");
        assert!(taken.job.extra.is_empty() && taken.warnings.is_empty());
        // The seed's page sends what was typed; the command is the author's, blanks and all.
        let taken = submitted(good(&json!({"command": "  echo a\n echo 好 "}))).unwrap();
        assert_eq!(taken.job.command, "  echo a\n echo 好 ");
    }

    #[test]
    fn six_fields_are_taken_with_a_warning() {
        let taken = submitted(good(&json!({"cronExpr": "*/5 * * * * *"}))).unwrap();
        assert_eq!(taken.warnings.len(), 1);
        assert!(taken.warnings[0].contains("seconds first"), "{:?}", taken.warnings);
    }

    #[test]
    fn every_fault_is_told_at_once() {
        refused(
            json!({"name": "a/b", "command": 5, "cronExpr": "61 * * * *", "comand": "ls", "mode": {}}),
            &[
                ("command", "not a string"),
                ("name", "\"/\""),
                ("cronExpr", "minute: \"61\" at character 1"),
                ("comand", "did you mean \"command\""),
                ("mode", "neither"),
            ],
        );
        refused(json!({}), &[("name", "missing"), ("command", "missing"), ("cronExpr", "missing")]);
        refused(
            json!({"name": null, "command": " ", "cronExpr": ""}),
            &[("name", "missing"), ("command", "missing"), ("cronExpr", "missing")],
        );
        for not_an_object in [json!([]), json!("x"), json!(null), json!(3)] {
            refused(not_an_object, &[("", "not a JSON object")]);
        }
    }

    #[test]
    fn a_job_after_others_has_no_times_of_its_own() {
        let job = |more: Value| {
            let mut job = json!({"name": "report", "command": "true", "after": ["load"]});
            job.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            job
        };
        for more in [json!({}), json!({"cronExpr": ""}), json!({"cronExpr": " "}), json!({"cronExpr": null})]
        {
            let taken = submitted(job(more)).unwrap();
            assert_eq!((taken.job.cron_expr.as_str(), taken.job.times()), ("", NO_TIMES));
            assert_eq!(taken.schedule.next_after(crate::clock::Timestamp::ZERO), None);
            let value = taken.job.to_value();
            assert_eq!((&value["cronExpr"], &value["after"]), (&json!(""), &json!(["load"])));
        }
        refused(job(json!({"cronExpr": "* * * * *"})), &[("cronExpr", "beside \"after\"")]);
        refused(job(json!({"cronExpr": 5})), &[("cronExpr", "beside \"after\"")]);
        refused(job(json!({"after": []})), &[("after", "names 0 jobs")]);
        refused(job(json!({"endAt": "2027-01-01T00:00:00Z"})), &[("endAt", "beside \"after\"")]);
    }

    #[test]
    fn names_are_checked() {
        for good_name in ["a", "a b", "备份", "a.b-c_d:e", "..", &"x".repeat(255)] {
            assert_eq!(JobName::parse(good_name).unwrap().as_str(), good_name);
        }
        for (bad, says) in [
            ("", "no name"),
            ("a/b", "contains '/'"),
            ("a\nb", "contains '\\n'"),
            ("a\0", "contains '\\0'"),
            ("\u{85}", "control characters"),
            (&"x".repeat(256), "256 bytes"),
            (&"备".repeat(86), "258 bytes"),
        ] {
            let why = JobName::parse(bad).unwrap_err();
            assert!(why.contains(says), "{bad:?}: {why:?} does not say {says:?}");
        }
        assert!(serde_json::from_str::<JobName>("\"a/b\"").is_err());
        assert_eq!(serde_json::to_string(&JobName::parse("a").unwrap()).unwrap(), "\"a\"");
    }

    #[test]
    fn commands_are_checked() {
        submitted(good(&json!({"command": "x".repeat(COMMAND_BYTES_MAX)}))).unwrap();
        refused(good(&json!({"command": "x".repeat(COMMAND_BYTES_MAX + 1)})), &[("command", "65537 bytes")]);
        refused(good(&json!({"command": "a\0b"})), &[("command", "NUL")]);
    }

    #[test]
    fn schedules_that_do_not_parse_or_never_fire_are_refused() {
        refused(good(&json!({"cronExpr": "* * * *"})), &[("cronExpr", "has 4 fields")]);
        refused(good(&json!({"cronExpr": "0 0 30 2 *"})), &[("cronExpr", "never fire")]);
        refused(good(&json!({"cronExpr": "@reboot"})), &[("cronExpr", "no single boot")]);
        refused(good(&json!({"cronExpr": 5})), &[("cronExpr", "not a string")]);
    }

    #[test]
    fn options_are_taken_and_wrong_ones_told_with_all_other_faults() {
        let options = json!({"misfire": "all", "startDeadlineSeconds": 300, "jitterSeconds": 5, "selector": {"zone": "a"}});
        let taken = submitted(good(&options)).unwrap();
        assert!(taken.job.extra.is_empty() && taken.warnings.is_empty());
        assert_eq!(taken.job.to_value(), good(&options));
        refused(
            json!({"name": "a/b", "command": "c", "cronExpr": "@daily", "misfire": "never", "mode": 1, "jitterSeconds": -1}),
            &[("name", "\"/\""), ("misfire", "none of"), ("mode", "neither"), ("jitterSeconds", "0 to 3600")],
        );
    }

    #[test]
    fn a_request_stands_in_the_place_of_the_command() {
        let http = json!({"url": "https://example.com/"});
        let alone = json!({"name": "ping", "cronExpr": "@daily", "http": http});
        let with = |field: &str, value: Value| {
            let mut job = alone.clone();
            job[field] = value;
            job
        };
        for job in [
            alone.clone(),
            with("command", json!("")),
            with("command", json!(null)),
            with("command", json!(" \n")),
        ] {
            let job = submitted(job).unwrap().job;
            let stored = json!({"name": "ping", "command": "", "cronExpr": "@daily", "http": http});
            assert_eq!(job.to_value().to_string(), stored.to_string(), "the seed's fields are there");
            assert_eq!(job.check_work(), Ok(()));
            assert_eq!(Job::from_stored("ping", stored.to_string().as_bytes()).unwrap(), job);
        }
        refused(with("command", json!("true")), &[("command", "beside http")]);
        refused(with("command", json!(5)), &[("command", "not a string")]);
        refused(with("http", json!({})), &[("http", "has no url")]);
        for (option, value) in [
            ("env", json!({"A": "b"})),
            ("workingDir", json!("/")),
            ("user", json!("deploy")),
            ("limits", json!({})),
            ("killGraceSeconds", json!(1)),
            ("fence", json!(true)),
        ] {
            refused(with(option, value.clone()), &[(option, "beside http")]);
            let stored = Job::from_stored("ping", with(option, value).to_string().as_bytes()).unwrap();
            assert_eq!(stored.check_work().unwrap_err().field, option, "put by other hands it is not run");
        }
        let both = Job::from_stored("ping", with("command", json!("true")).to_string().as_bytes()).unwrap();
        assert_eq!(both.check_work().unwrap_err().field, "command");
        submitted(with("fence", json!(false))).unwrap();
        let mut neither = alone.clone();
        neither.as_object_mut().unwrap().shift_remove("http");
        refused(neither, &[("command", "or the option http")]);
    }

    #[test]
    fn a_jobs_schedule_has_the_fires_of_its_window_alone() {
        let window = json!({"cronExpr": "@hourly", "startAt": "2027-01-15T08:00:00Z", "endAt": "2027-01-15T10:00:00Z"});
        let taken = submitted(good(&window)).unwrap();
        let hour = |hours: i64| crate::clock::Timestamp::from_ms(1_800_000_000_000 + hours * 3_600_000);
        assert_eq!(taken.schedule.next_after(hour(-100)), Some(hour(0)));
        assert_eq!(taken.schedule.next_after(hour(1)), None);
        let backwards = json!({"startAt": "2027-01-15T08:00:00Z", "endAt": "2027-01-15T08:00:00Z"});
        refused(good(&backwards), &[("endAt", "not after startAt")]);
        refused(good(&json!({"endAt": "soon"})), &[("endAt", "RFC 3339")]);
    }

    #[test]
    fn a_stored_option_with_an_unknown_value_is_kept_and_keeps_the_job_from_being_run() {
        let stored =
            br#"{"name":"x","command":"c","cronExpr":"@daily","jitterSeconds":9,"misfire":"latest"}"#;
        let job = Job::from_stored("x", stored).unwrap();
        let told = job.options_not_understood();
        assert!(told.len() == 1 && told[0].starts_with("misfire (is none of"), "{told:?}");
        assert_eq!(job.to_value().to_string().as_bytes(), stored);
    }

    #[test]
    fn unknown_fields_are_refused_with_the_nearest() {
        for (field, says) in [
            ("nmae", "\"name\""),
            ("Command", "\"command\""),
            ("cronexpr", "\"cronExpr\""),
            ("cron_expr", "\"cronExpr\""),
            ("jitter_seconds", "\"jitterSeconds\""),
            ("schedule", "a job has name, command, cronExpr and may have misfire"),
        ] {
            refused(good(&json!({field: 1})), &[(field, says)]);
        }
    }

    #[test]
    fn stored_values_of_other_hands_are_read() {
        let seed = br#"{"name":"x","command":"echo hi","cronExpr":"*/2 * * * * * *"}"#;
        let job = Job::from_stored("x", seed).unwrap();
        assert_eq!((job.command.as_str(), job.cron_expr.as_str()), ("echo hi", "*/2 * * * * * *"));
        assert!(job.options_not_understood().is_empty());
        // The key has the name; the seed's worker asked no more of the value than that it be JSON.
        let job = Job::from_stored("x", b"{}").unwrap();
        assert_eq!((job.name.as_str(), job.command.as_str()), ("x", ""));
        // Options of a newer version are kept, and keep the job from being run here.
        let newer =
            br#"{"later":["y"],"name":"x","command":"c","cronExpr":"@daily","mode":{"on":"failure"}}"#;
        let job = Job::from_stored("x", newer).unwrap();
        let unknown = job.options_not_understood();
        assert!(
            unknown.len() == 2 && unknown[0] == "later" && unknown[1].starts_with("mode ("),
            "{unknown:?}"
        );
        assert_eq!(job.to_value()["mode"], json!({"on": "failure"}));
    }

    #[test]
    fn bad_stored_values_are_faults_and_nothing_worse() {
        for (key, value, field, says) in [
            ("x", &b""[..], "", "not JSON"),
            ("x", b"{", "", "not JSON"),
            ("x", b"\xff\xfe", "", "not JSON"),
            ("x", b"[]", "", "not a JSON object"),
            ("x", b"null", "", "not a JSON object"),
            ("x", br#"{"command":5}"#, "command", "not a string"),
            ("x", br#"{"name":null}"#, "name", "not a string"),
            ("x", br#"{"name":"y"}"#, "name", "\"y\", but the key says \"x\""),
            ("a/b", b"{}", "name", "\"/\""),
            ("", b"{}", "name", "no name"),
        ] {
            let shown = format!("{key:?} {:?}", String::from_utf8_lossy(value));
            let fault = Job::from_stored(key, value).expect_err(&shown);
            assert_eq!(fault.field, field, "{shown}: {fault}");
            assert!(fault.to_string().contains(says), "{shown}: {fault} does not say {says:?}");
        }
    }

    #[test]
    fn the_seeds_fields_come_first_and_in_its_order() {
        let stored = br#"{"zone":1,"cronExpr":"@daily","command":"c","alpha":2,"name":"x"}"#;
        let text = Job::from_stored("x", stored).unwrap().to_value().to_string();
        assert_eq!(text, r#"{"name":"x","command":"c","cronExpr":"@daily","zone":1,"alpha":2}"#);
    }

    #[test]
    fn the_schedule_hash_is_the_same_in_every_version() {
        let job = |name: &str, command: &str, cron_expr: &str| Job {
            name: JobName::parse(name).unwrap(),
            command: command.to_owned(),
            cron_expr: cron_expr.to_owned(),
            options: JobOptions::default(),
            extra: Map::new(),
        };
        let hash = job("x", "c", "@daily").schedule_hash(&FleetSettings::default());
        // It stands in marks that outlive this version: another number here would move every job's catch-up base.
        assert_eq!(hash.to_string(), "42aeae407b2e0878");
        assert_eq!(serde_json::to_value(hash).unwrap(), json!("42aeae407b2e0878"));
        assert_eq!(serde_json::from_value::<ScheduleHash>(json!("42aeae407b2e0878")).unwrap(), hash);
        assert_ne!(serde_json::from_value::<ScheduleHash>(json!("of another version")).unwrap(), hash);
        assert_eq!(
            job("x", "c", "").schedule_hash(&FleetSettings::default()).to_string(),
            "2d06800538d394c2"
        );
        assert_eq!(job("y", "other", "@daily").schedule_hash(&FleetSettings::default()), hash);
        assert_ne!(job("x", "c", "@hourly").schedule_hash(&FleetSettings::default()), hash);
        // Of the options these move fires: jitter, and whether and between which times there are any.
        let with = |options| Job { options, ..job("x", "c", "@daily") };
        let given = |options: &Value| JobOptions::taken_from(&mut options.as_object().unwrap().clone());
        let others =
            json!({"misfire": "all", "startDeadlineSeconds": 1, "jitterSeconds": 0, "selector": {"a": "b"}});
        assert_eq!(with(given(&others)).schedule_hash(&FleetSettings::default()), hash);
        assert_eq!(
            with(given(&json!({"jitterSeconds": 60}))).schedule_hash(&FleetSettings::default()).to_string(),
            "8cedf0930ead3080"
        );
        assert_eq!(with(given(&json!({"enabled": true}))).schedule_hash(&FleetSettings::default()), hash);
        for chosen in [json!({"dialect": "standard"}), json!({"timezone": "UTC"}), json!({"dst": "debian"})] {
            assert_eq!(
                with(given(&chosen)).schedule_hash(&FleetSettings::default()),
                hash,
                "{chosen}: the default"
            );
        }
        // Whether the job says it or the fleet.
        for said in [
            json!({"timezone": "Europe/Berlin"}),
            json!({"dialect": "seed"}),
            json!({"dst": "twice", "timezone": "Etc/UTC"}),
        ] {
            let fleet = FleetSettings::from_submitted(&said).unwrap();
            let by_fleet = job("x", "c", "@daily").schedule_hash(&fleet);
            assert_eq!(with(given(&said)).schedule_hash(&FleetSettings::default()), by_fleet, "{said}");
            assert_ne!(by_fleet, hash);
        }
        for (moving, expected) in [
            (json!({"timezone": "Europe/Berlin"}), "8f4e09fa2dd8be25"),
            (json!({"dialect": "seed"}), "95486ee189f6d621"),
            (json!({"dst": "skip"}), "2e436ca3f7297b5e"),
            (json!({"enabled": false}), "6dd06f8f1a41eb79"),
            (json!({"startAt": "2027-01-15T08:00:00Z"}), "5dd18d79f64c3a09"),
            (json!({"endAt": "2027-01-15T09:00:00+01:00"}), "e7b04ca55bc7b7f2"),
        ] {
            assert_eq!(
                with(given(&moving)).schedule_hash(&FleetSettings::default()).to_string(),
                expected,
                "{moving}"
            );
        }
    }
}
