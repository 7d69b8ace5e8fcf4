//! Jobs: what the seed calls `Job`, and what may be submitted as one.

use std::fmt;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::schedule::Schedule;

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

/// A job as it is stored at `/cron/jobs/{name}`: the seed's three fields, and whatever else is in the value.
#[derive(Clone, PartialEq, Debug)]
pub struct Job {
    /// Its name.
    pub name: JobName,
    /// Shell command.
    pub command: String,
    /// Cron expression, as written.
    pub cron_expr: String,
    /// Fields of the stored value that this version does not know, kept as they are. A worker never runs a job that has any.
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

/// The job options of the design that a later version will have: refused by name, with the reason, until then.
const PLANNED_OPTIONS: [&str; 23] = [
    "enabled",
    "description",
    "labels",
    "timezone",
    "dialect",
    "dst",
    "timeoutSeconds",
    "retry",
    "concurrency",
    "misfire",
    "startDeadlineSeconds",
    "jitterSeconds",
    "startAt",
    "endAt",
    "env",
    "workingDir",
    "selector",
    "mode",
    "user",
    "http",
    "after",
    "outputLimitBytes",
    "notify",
];

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
        Ok(Self { name, command, cron_expr, extra: fields })
    }

    /// Checks a job that somebody wants to save.
    ///
    /// # Errors
    /// Every fault at once, each with its field.
    pub fn from_submitted(value: Value) -> Result<Submitted, Vec<Fault>> {
        let Value::Object(mut fields) = value else {
            return Err(vec![Fault::new(
                "",
                "the job is not a JSON object like {\"name\":…,\"command\":…,\"cronExpr\":…}",
            )]);
        };
        let mut faults = Vec::new();
        let mut text = |field: &str, what: &str| match fields.shift_remove(field) {
            Some(Value::String(text)) if !text.trim().is_empty() => Some(text),
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
        let command = text("command", "the shell command to run");
        let cron_expr = text("cronExpr", "a cron expression, such as \"*/5 * * * *\"");
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
        let mut warnings = Vec::new();
        let schedule = cron_expr.as_ref().and_then(|expr| match Schedule::parse(expr) {
            Ok(schedule) => {
                warnings.extend(schedule.warning().map(str::to_owned));
                Some(schedule)
            }
            Err(why) => {
                faults.push(Fault::new("cronExpr", why.to_string()));
                None
            }
        });
        for field in fields.keys() {
            faults.push(Fault::new(field, unknown_option(field)));
        }
        match (name, command, cron_expr, schedule) {
            (Some(name), Some(command), Some(cron_expr), Some(schedule)) if faults.is_empty() => {
                Ok(Submitted {
                    job: Self { name, command, cron_expr, extra: Map::new() },
                    schedule,
                    warnings,
                })
            }
            _ => Err(faults),
        }
    }

    /// The JSON that is stored and served: the seed's fields first, in the seed's order.
    #[must_use]
    pub fn to_value(&self) -> Value {
        let mut fields = Map::new();
        fields.insert("name".to_owned(), self.name.as_str().into());
        fields.insert("command".to_owned(), self.command.as_str().into());
        fields.insert("cronExpr".to_owned(), self.cron_expr.as_str().into());
        fields.extend(self.extra.iter().map(|(k, v)| (k.clone(), v.clone())));
        Value::Object(fields)
    }

    /// What the fire times depend on, hashed (XXH3, 16 hex digits): an edit that leaves it alone does not move the catch-up base.
    #[must_use]
    pub fn schedule_hash(&self) -> String {
        format!("{:016x}", xxhash_rust::xxh3::xxh3_64(self.cron_expr.as_bytes()))
    }

    /// Options that this version does not understand: such a job is left to workers that do.
    #[must_use]
    pub fn options_not_understood(&self) -> Vec<&str> {
        self.extra.keys().map(String::as_str).collect()
    }
}

fn unknown_option(field: &str) -> String {
    if PLANNED_OPTIONS.contains(&field) || field == "fence" {
        return "this option is not built yet in this version: leave it out".to_owned();
    }
    let known = ["name", "command", "cronExpr"];
    let nearest =
        known.iter().find(|k| strsim::damerau_levenshtein(&k.to_lowercase(), &field.to_lowercase()) <= 2);
    match nearest {
        Some(near) => format!("unknown field: did you mean {near:?}?"),
        None => "unknown field: a job has name, command and cronExpr".to_owned(),
    }
}
