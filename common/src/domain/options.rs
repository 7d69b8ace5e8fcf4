//! A job's options beyond the seed's three fields: what each says when it is left out, its bounds, and how it is read and written.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::after::After;
use super::broadcast::Mode;
use super::calendars::JobCalendars;
use super::execution::{
    Environment, Execution, KILL_GRACE_SECONDS_DEFAULT, KILL_GRACE_SECONDS_MAX, Limits,
    OUTPUT_LIMIT_BYTES_DEFAULT, OUTPUT_LIMIT_BYTES_MAX, TIMEOUT_SECONDS_MAX, user, working_dir,
};
use super::http::Http;
use super::job::{Fault, JobName};
use super::labelling::{Labelling, description, labels};
use super::notify::Notify;
use super::retry::Retry;
use super::settings;
use crate::clock::Timestamp;
use crate::schedule::{Dialect, Dst, Window, Zone};

/// Labels of a worker: `CRON_WORKER_LABELS`.
pub type Labels = BTreeMap<String, String>;

/// `startDeadlineSeconds` of a job that gives none.
pub const START_DEADLINE_SECONDS_DEFAULT: u32 = 60;
/// Most of it: a week. What is older is not a late start any more but a backfill, which somebody should ask for. It also bounds the fires
/// that `misfire: "all"` may have before it.
pub const START_DEADLINE_SECONDS_MAX: u32 = 7 * 24 * 3600;
/// Most of `jitterSeconds`: spreading the jobs of an hour over that hour is what it is for.
pub const JITTER_SECONDS_MAX: u32 = 3600;
/// Most labels of a selector, and the longest label or value, in bytes: each job's is kept in memory by every worker.
const SELECTOR_LABELS_MAX: usize = 16;
const LABEL_BYTES_MAX: usize = 200;
/// Seed of the hash that gives a job its jitter, so that it says nothing about the job's slot. Never changed: each job would start at
/// another time.
const JITTER_SEED: u64 = 0x6a69_7474_6572_0001;

/// What becomes of fires whose time passed while nobody could claim them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Misfire {
    /// They are let go.
    Skip,
    /// One run stands for all of them.
    #[default]
    Once,
    /// Each runs, one after the other.
    All,
}

impl Misfire {
    pub(super) const ALL: [(Self, &'static str); 3] =
        [(Self::Skip, "skip"), (Self::Once, "once"), (Self::All, "all")];
}

/// What becomes of a fire whose job is still running.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Concurrency {
    /// It is let go: two runs of the job do not overlap.
    #[default]
    Forbid,
    /// It runs beside the others.
    Allow,
    /// The run that goes is killed, and the fire runs when it is over.
    Replace,
}

impl Concurrency {
    const ALL: [(Self, &'static str); 3] =
        [(Self::Forbid, "forbid"), (Self::Allow, "allow"), (Self::Replace, "replace")];
}

/// What a word stands for.
pub(super) fn of_word<T: Copy>(words: &[(T, &'static str)], value: &Value) -> Option<T> {
    let word = value.as_str()?;
    words.iter().find(|(_, known)| *known == word).map(|(meant, _)| *meant)
}

/// The word for it.
pub(super) fn word_of<T: PartialEq>(words: &[(T, &'static str)], meant: &T) -> &'static str {
    words.iter().find(|(known, _)| known == meant).map_or("", |(_, word)| word)
}

/// The labels that a worker must have to run a job: all of them, each with this value.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Selector(Labels);

impl Selector {
    /// Whether a worker with these labels may run the job.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|(label, value)| labels.get(label) == Some(value))
    }

    fn parse(value: &Value) -> Result<Self, String> {
        let Value::Object(wanted) = value else {
            return Err("is not an object of labels: write it like {\"zone\":\"a\"}".to_owned());
        };
        if wanted.len() > SELECTOR_LABELS_MAX {
            return Err(format!("has {} labels: give at most {SELECTOR_LABELS_MAX}", wanted.len()));
        }
        let mut labels = Labels::new();
        for (label, value) in wanted {
            let Value::String(value) = value else {
                return Err(format!("the value of {label:?} is not a string: write it like \"a\""));
            };
            let fits =
                |text: &str| text.len() <= LABEL_BYTES_MAX && text.trim() == text && !text.contains(',');
            if label.is_empty() || label.contains('=') || !fits(label) || !fits(value) {
                // No worker can have such a label: see CRON_WORKER_LABELS.
                return Err(format!(
                    "{label:?}: {value:?} fits no worker: write a label without \"=\" and a value, both without \",\" and outer blanks, of at most {LABEL_BYTES_MAX} bytes"
                ));
            }
            labels.insert(label.clone(), value.clone());
        }
        Ok(Self(labels))
    }
}

/// As in `CRON_WORKER_LABELS`: `gpu=yes,zone=a`.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let labels: Vec<String> = self.0.iter().map(|(label, value)| format!("{label}={value}")).collect();
        f.write_str(&labels.join(","))
    }
}

/// A moment that a job gives in RFC 3339, kept as it was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Moment {
    text: String,
    at: Timestamp,
}

impl Moment {
    /// The moment; a part of a millisecond is rounded up, so that no fire is taken for one that is not before it.
    #[must_use]
    pub fn at(&self) -> Timestamp {
        self.at
    }

    fn parse(value: &Value) -> Result<Self, String> {
        let parsed =
            value.as_str().and_then(|text| Some((text, chrono::DateTime::parse_from_rfc3339(text).ok()?)));
        let Some((text, time)) = parsed else {
            return Err("is not a time in RFC 3339: write it with its offset from UTC, like \"2027-01-31T08:00:00+01:00\"".to_owned());
        };
        let rest = i64::from(time.timestamp_subsec_nanos() % 1_000_000 != 0);
        Ok(Self { text: text.to_owned(), at: Timestamp::from_ms(time.timestamp_millis() + rest) })
    }
}

/// The options that a job gives; `None` = left out. Only what was given is written again.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct JobOptions {
    /// See [`Misfire`].
    pub misfire: Option<Misfire>,
    /// How late a fire may still start, in seconds.
    pub start_deadline_seconds: Option<u32>,
    /// The job starts so much later than its times say, by a part of this that its name decides, in seconds.
    pub jitter_seconds: Option<u32>,
    /// Which workers may run it.
    pub selector: Option<Selector>,
    /// How its command is run.
    pub execution: Execution,
    /// Whether it has any fires.
    pub enabled: Option<bool>,
    /// It has no fires before this time.
    pub start_at: Option<Moment>,
    /// It has no fires from this time on.
    pub end_at: Option<Moment>,
    /// See [`Concurrency`].
    pub concurrency: Option<Concurrency>,
    /// How often it is tried again.
    pub retry: Option<Retry>,
    /// What people say about it.
    pub labelling: Labelling,
    /// The zone of its times.
    pub timezone: Option<Zone>,
    /// How its expressions are read.
    pub dialect: Option<Dialect>,
    /// What becomes of times that clocks skip or repeat.
    pub dst: Option<Dst>,
    /// On which days it has fires.
    pub calendars: Option<Arc<JobCalendars>>,
    /// Who is told of its failures.
    pub notify: Option<Arc<Notify>>,
    /// It runs once these jobs have succeeded, in place of any times.
    pub after: Option<After>,
    /// See [`Mode`].
    pub mode: Option<Mode>,
}

/// One option: its name in the JSON, how it is read, how it is written.
struct Field {
    name: &'static str,
    read: fn(&mut JobOptions, &Value) -> Result<(), String>,
    write: fn(&JobOptions) -> Option<Value>,
}

/// Every option, in the order in which they are written.
const FIELDS: &[Field] = &[
    Field {
        name: "misfire",
        read: |options, value| {
            let misfire = of_word(&Misfire::ALL, value);
            let wrong =
                "is none of \"skip\", \"once\" and \"all\": write one of them, or leave it out for \"once\"";
            options.misfire = Some(misfire.ok_or_else(|| wrong.to_owned())?);
            Ok(())
        },
        write: |options| options.misfire.map(|misfire| word_of(&Misfire::ALL, &misfire).into()),
    },
    Field {
        name: "startDeadlineSeconds",
        read: |options, value| {
            let default = START_DEADLINE_SECONDS_DEFAULT.to_string();
            options.start_deadline_seconds = Some(seconds(value, START_DEADLINE_SECONDS_MAX, &default)?);
            Ok(())
        },
        write: |options| options.start_deadline_seconds.map(Value::from),
    },
    Field {
        name: "jitterSeconds",
        read: |options, value| {
            options.jitter_seconds = Some(seconds(value, JITTER_SECONDS_MAX, "none")?);
            Ok(())
        },
        write: |options| options.jitter_seconds.map(Value::from),
    },
    Field {
        name: "selector",
        read: |options, value| {
            options.selector = Some(Selector::parse(value)?);
            Ok(())
        },
        write: |options| {
            let labels = &options.selector.as_ref()?.0;
            Some(
                labels
                    .iter()
                    .map(|(label, value)| (label.clone(), value.as_str().into()))
                    .collect::<Map<_, _>>()
                    .into(),
            )
        },
    },
    Field {
        name: "env",
        read: |options, value| {
            options.execution.env = Some(Environment::parse(value)?);
            Ok(())
        },
        write: |options| options.execution.env.as_ref().map(Environment::to_value),
    },
    Field {
        name: "workingDir",
        read: |options, value| {
            options.execution.working_dir = Some(working_dir(value)?);
            Ok(())
        },
        write: |options| options.execution.working_dir.as_deref().map(Value::from),
    },
    Field {
        name: "user",
        read: |options, value| {
            options.execution.user = Some(user(value)?);
            Ok(())
        },
        write: |options| options.execution.user.as_deref().map(Value::from),
    },
    Field {
        name: "limits",
        read: |options, value| {
            options.execution.limits = Some(Limits::parse(value)?);
            Ok(())
        },
        write: |options| options.execution.limits.as_ref().map(Limits::to_value),
    },
    Field {
        name: "outputLimitBytes",
        read: |options, value| {
            let default = OUTPUT_LIMIT_BYTES_DEFAULT.to_string();
            let bytes = whole_number(value, "bytes", 0, OUTPUT_LIMIT_BYTES_MAX, &default)?;
            options.execution.output_limit_bytes = Some(bytes);
            Ok(())
        },
        write: |options| options.execution.output_limit_bytes.map(Value::from),
    },
    Field {
        name: "timeoutSeconds",
        read: |options, value| {
            let seconds = whole_number(value, "seconds", 1, TIMEOUT_SECONDS_MAX, "no time limit")?;
            options.execution.timeout_seconds = Some(seconds);
            Ok(())
        },
        write: |options| options.execution.timeout_seconds.map(Value::from),
    },
    Field {
        name: "killGraceSeconds",
        read: |options, value| {
            let default = KILL_GRACE_SECONDS_DEFAULT.to_string();
            options.execution.kill_grace_seconds = Some(seconds(value, KILL_GRACE_SECONDS_MAX, &default)?);
            Ok(())
        },
        write: |options| options.execution.kill_grace_seconds.map(Value::from),
    },
    Field {
        name: "enabled",
        read: |options, value| {
            let wrong = "is neither true nor false: write one of them, or leave it out for true";
            options.enabled = Some(value.as_bool().ok_or_else(|| wrong.to_owned())?);
            Ok(())
        },
        write: |options| options.enabled.map(Value::from),
    },
    Field {
        name: "startAt",
        read: |options, value| {
            options.start_at = Some(Moment::parse(value)?);
            Ok(())
        },
        write: |options| options.start_at.as_ref().map(|moment| moment.text.as_str().into()),
    },
    Field {
        name: "endAt",
        read: |options, value| {
            options.end_at = Some(Moment::parse(value)?);
            Ok(())
        },
        write: |options| options.end_at.as_ref().map(|moment| moment.text.as_str().into()),
    },
    Field {
        name: "fence",
        read: |options, value| {
            let fence = value.as_bool();
            options.execution.fence =
                Some(fence.ok_or("is neither true nor false: write one of them, or leave it out for false")?);
            Ok(())
        },
        write: |options| options.execution.fence.map(Value::from),
    },
    Field {
        name: "http",
        read: |options, value| {
            options.execution.http = Some(Box::new(Http::parse(value)?));
            Ok(())
        },
        write: |options| options.execution.http.as_deref().map(Http::to_value),
    },
    Field {
        name: "concurrency",
        read: |options, value| {
            let concurrency = of_word(&Concurrency::ALL, value);
            let wrong = "is none of \"forbid\", \"allow\" and \"replace\": write one of them, or leave it out for \"forbid\"";
            options.concurrency = Some(concurrency.ok_or_else(|| wrong.to_owned())?);
            Ok(())
        },
        write: |options| {
            options.concurrency.map(|concurrency| word_of(&Concurrency::ALL, &concurrency).into())
        },
    },
    Field {
        name: "retry",
        read: |options, value| {
            options.retry = Some(Retry::parse(value)?);
            Ok(())
        },
        write: |options| options.retry.map(Retry::to_value),
    },
    Field {
        name: "description",
        read: |options, value| {
            options.labelling.description = Some(description(value)?);
            Ok(())
        },
        write: |options| options.labelling.description.as_deref().map(Value::from),
    },
    Field {
        name: "labels",
        read: |options, value| {
            options.labelling.labels = Some(labels(value)?);
            Ok(())
        },
        write: |options| {
            let labels = options.labelling.labels.as_ref()?;
            Some(labels.iter().map(|(label, value)| (label.clone(), Value::from(value.as_str()))).collect())
        },
    },
    Field {
        name: "timezone",
        read: |options, value| settings::timezone(value).map(|zone| options.timezone = Some(zone)),
        write: |options| options.timezone.as_ref().map(|zone| zone.name().into()),
    },
    Field {
        name: "dialect",
        read: |options, value| settings::dialect(value).map(|dialect| options.dialect = Some(dialect)),
        write: |options| options.dialect.map(|dialect| word_of(&Dialect::ALL, &dialect).into()),
    },
    Field {
        name: "dst",
        read: |options, value| settings::dst(value).map(|dst| options.dst = Some(dst)),
        write: |options| options.dst.map(|dst| word_of(&Dst::ALL, &dst).into()),
    },
    Field {
        name: "calendars",
        read: |options, value| {
            options.calendars = Some(Arc::new(JobCalendars::parse(value)?));
            Ok(())
        },
        write: |options| options.calendars.as_deref().map(JobCalendars::to_value),
    },
    Field {
        name: "notify",
        read: |options, value| {
            options.notify = Some(Arc::new(Notify::parse(value)?));
            Ok(())
        },
        write: |options| options.notify.as_deref().map(Notify::to_value),
    },
    Field {
        name: "after",
        read: |options, value| {
            options.after = Some(After::parse(value)?);
            Ok(())
        },
        write: |options| options.after.as_ref().map(After::to_value),
    },
    Field {
        name: "mode",
        read: |options, value| {
            let mode = of_word(&Mode::ALL, value);
            let wrong =
                "is neither \"single\" nor \"broadcast\": write one of them, or leave it out for \"single\"";
            options.mode = Some(mode.ok_or_else(|| wrong.to_owned())?);
            Ok(())
        },
        write: |options| options.mode.map(|mode| word_of(&Mode::ALL, &mode).into()),
    },
];

fn seconds(value: &Value, max: u32, left_out: &str) -> Result<u32, String> {
    whole_number(value, "seconds", 0, max, left_out)
}

fn whole_number(value: &Value, of: &str, min: u32, max: u32, left_out: &str) -> Result<u32, String> {
    let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
    number.filter(|number| (min..=max).contains(number)).ok_or_else(|| {
        format!(
            "is not a whole number of {of} from {min} to {max}: write one, or leave it out for {left_out}"
        )
    })
}

impl JobOptions {
    /// The names of all options.
    pub fn names() -> impl Iterator<Item = &'static str> {
        FIELDS.iter().map(|field| field.name)
    }

    /// Takes the options out of a job's fields. What is not an option, or has no value that it may have, stays there.
    #[must_use]
    pub(super) fn taken_from(fields: &mut Map<String, Value>) -> Self {
        let mut options = Self::default();
        for field in FIELDS {
            if fields.get(field.name).is_some_and(|value| (field.read)(&mut options, value).is_ok()) {
                fields.shift_remove(field.name);
            }
        }
        options
    }

    /// What is wrong with the value of this option; `None` when there is no such option.
    pub(super) fn fault(name: &str, value: &Value) -> Option<Fault> {
        let field = FIELDS.iter().find(|field| field.name == name)?;
        (field.read)(&mut Self::default(), value).err().map(|wrong| Fault::new(name, wrong))
    }

    /// The options given, as they are stored.
    pub(super) fn given(&self) -> impl Iterator<Item = (String, Value)> {
        FIELDS.iter().filter_map(|field| Some((field.name.to_owned(), (field.write)(self)?)))
    }

    /// What becomes of missed fires.
    #[must_use]
    pub fn misfire(&self) -> Misfire {
        self.misfire.unwrap_or_default()
    }

    /// What becomes of a fire whose job is still running.
    #[must_use]
    pub fn concurrency(&self) -> Concurrency {
        self.concurrency.unwrap_or_default()
    }

    /// Whether a fire runs on every worker.
    #[must_use]
    pub fn is_broadcast(&self) -> bool {
        self.mode == Some(Mode::Broadcast)
    }

    /// How late a fire may still start, in ms.
    #[must_use]
    pub fn start_deadline_ms(&self) -> i64 {
        i64::from(self.start_deadline_seconds.unwrap_or(START_DEADLINE_SECONDS_DEFAULT)) * 1000
    }

    /// Whether the job has any fires: one that is disabled has none, and none of the time when it was are caught up on.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.enabled != Some(false)
    }

    /// The stretch of time in which the job has fires. One that runs after others has none: an empty one.
    #[must_use]
    pub fn window(&self) -> Window {
        if self.after.is_some() {
            return Window { from: None, until: Some(Timestamp::ZERO) };
        }
        let at = |moment: &Option<Moment>| moment.as_ref().map(Moment::at);
        Window { from: at(&self.start_at), until: at(&self.end_at) }
    }

    /// What is wrong with how the options go together.
    pub(super) fn contradictions(&self) -> Vec<Fault> {
        if self.after.is_some() {
            let given = [
                ("misfire", self.misfire.is_some()),
                ("jitterSeconds", self.jitter_seconds.is_some()),
                ("timezone", self.timezone.is_some()),
                ("dialect", self.dialect.is_some()),
                ("dst", self.dst.is_some()),
                ("calendars", self.calendars.is_some()),
                ("startAt", self.start_at.is_some()),
                ("endAt", self.end_at.is_some()),
            ];
            let beside = "is given beside \"after\", which leaves the job no times of its own: leave out one of the two";
            return given
                .into_iter()
                .filter(|(_, is_given)| *is_given)
                .map(|(field, _)| Fault::new(field, beside))
                .collect();
        }
        let (Some(start), Some(end)) = (&self.start_at, &self.end_at) else { return Vec::new() };
        if start.at < end.at {
            return Vec::new();
        }
        let never =
            format!("is not after startAt ({}), so the job would never fire: give a later time", start.text);
        vec![Fault::new("endAt", never)]
    }

    /// How much later than its times say the job of this name starts, in ms: the same for each of its fires, on every worker and in every
    /// version.
    #[must_use]
    pub fn jitter_ms(&self, name: &JobName) -> i64 {
        let most = u64::from(self.jitter_seconds.unwrap_or(0)) * 1000;
        let hash = xxhash_rust::xxh3::xxh3_64_with_seed(name.as_str().as_bytes(), JITTER_SEED);
        hash.checked_rem(most).and_then(|ms| i64::try_from(ms).ok()).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOTHING: [&str; 0] = [];

    fn taken(mut value: Value) -> (JobOptions, Value) {
        let options = JobOptions::taken_from(value.as_object_mut().unwrap());
        (options, value)
    }

    #[test]
    fn options_are_read_and_written_again_as_they_were_given() {
        for given in [
            json!({}),
            json!({"misfire": "skip"}),
            json!({"misfire": "once", "startDeadlineSeconds": 0, "jitterSeconds": 0, "selector": {}}),
            json!({"misfire": "all", "startDeadlineSeconds": 604_800, "jitterSeconds": 3600}),
            json!({"selector": {"gpu": "", "zone": "a=b"}}),
            json!({"env": {"A": "", "_b1": "x y\n$A"}, "workingDir": "/", "user": "deploy", "limits": {}}),
            json!({"limits": {"cpuSeconds": 1, "memoryBytes": 2, "openFiles": 3, "fileBytes": 0, "processes": 5}}),
            json!({"outputLimitBytes": 0, "timeoutSeconds": 1, "killGraceSeconds": 0}),
            json!({"enabled": false, "startAt": "2027-01-31T08:00:00+01:00", "endAt": "2027-03-01T00:00:00.5Z"}),
            json!({"enabled": true}),
            json!({"calendars": {"exclude": ["holidays"], "only": ["a", "b"]}}),
            json!({"fence": true}),
            json!({"fence": false}),
            json!({"concurrency": "forbid"}),
            json!({"misfire": "all", "concurrency": "allow"}),
            json!({"concurrency": "replace"}),
            json!({"retry": {"attempts": 3, "backoff": 0, "onLost": true}}),
            json!({"description": "Rotates logs.\nSee 手册.", "labels": {"team": "ops", "app.kubernetes.io/name": ""}}),
            json!({"description": "", "labels": {}}),
            json!({"timezone": "Europe/Berlin", "dialect": "seed", "dst": "skip"}),
            json!({"timezone": "UTC", "dialect": "standard", "dst": "debian"}),
            json!({"http": {"method": "POST", "url": "https://example.com/", "body": "{}"}}),
            json!({"notify": {"on": ["failure"], "to": ["ops"]}}),
            json!({"after": ["extract", "load"]}),
        ] {
            let (options, left) = taken(given.clone());
            assert_eq!((Value::from_iter(options.given()), left), (given, json!({})));
        }
        let (options, left) = taken(json!({"notify": "me", "misfire": "all"}));
        assert_eq!((options.misfire(), left), (Misfire::All, json!({"notify": "me"})));
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        let options = JobOptions::default();
        assert_eq!((options.misfire(), options.start_deadline_ms()), (Misfire::Once, 60_000));
        assert_eq!(options.jitter_ms(&JobName::parse("a").unwrap()), 0);
    }

    #[test]
    fn a_value_that_an_option_cannot_have_stays_where_it_is_and_is_told() {
        for (name, value, says) in [
            ("misfire", json!("often"), "\"once\" and \"all\""),
            ("misfire", json!(null), "leave it out"),
            ("misfire", json!("Once"), "none of"),
            ("concurrency", json!("Allow"), "\"forbid\", \"allow\" and \"replace\""),
            ("concurrency", json!(false), "leave it out for \"forbid\""),
            ("startDeadlineSeconds", json!(-1), "0 to 604800"),
            ("startDeadlineSeconds", json!(604_801), "for 60"),
            ("startDeadlineSeconds", json!(1.5), "whole number"),
            ("startDeadlineSeconds", json!("60"), "whole number"),
            ("jitterSeconds", json!(3601), "0 to 3600"),
            ("fence", json!("true"), "neither true nor false"),
            ("fence", json!(null), "leave it out"),
            ("selector", json!("zone=a"), "{\"zone\":\"a\"}"),
            ("selector", json!({"zone": 1}), "\"zone\" is not a string"),
            ("selector", json!({"": "a"}), "fits no worker"),
            ("selector", json!({"a=b": "a"}), "fits no worker"),
            ("selector", json!({"zone": "a,b"}), "fits no worker"),
            ("selector", json!({"zone": " a"}), "fits no worker"),
            ("env", json!(["A=b"]), "{\"NAME\":\"value\"}"),
            ("env", json!({"A": 1}), "\"A\" is not a string"),
            ("env", json!({"": "x"}), "no name of a variable"),
            ("env", json!({"1A": "x"}), "no digit first"),
            ("env", json!({"A=B": "x"}), "no name of a variable"),
            ("env", json!({"A": "x\0"}), "NUL"),
            ("env", json!({"CRON_RUN_ID": "x"}), "Fleetcron's own"),
            ("env", json!({"BASH_ENV": "x"}), "source the file"),
            ("env", json!({"A": "x".repeat(8192)}), "8193 bytes"),
            ("workingDir", json!("srv"), "absolute"),
            ("workingDir", json!("/a\0"), "absolute"),
            ("workingDir", json!(format!("/{}", "x".repeat(4095))), "4096 bytes"),
            ("user", json!(0), "CRON_USERS"),
            ("user", json!("a:b"), "CRON_USERS"),
            ("user", json!("-x"), "CRON_USERS"),
            ("limits", json!(5), "{\"cpuSeconds\":60}"),
            ("limits", json!({"memory": 5}), "there are cpuSeconds, memoryBytes"),
            ("limits", json!({"openFiles": 0}), "openFiles is not a whole number from 1"),
            ("limits", json!({"fileBytes": "5k"}), "fileBytes is not"),
            ("outputLimitBytes", json!(8 * 1024 * 1024 + 1), "0 to 8388608"),
            ("timeoutSeconds", json!(0), "1 to 31622400"),
            ("killGraceSeconds", json!(3601), "for 5"),
            ("notify", json!({"to": ["a b"]}), "letters, digits"),
            ("selector", Value::from_iter((0..17).map(|n| (n.to_string(), "x"))), "17 labels"),
            ("enabled", json!("false"), "leave it out for true"),
            ("enabled", json!(0), "neither true nor false"),
            ("startAt", json!("2027-01-31T08:00:00"), "offset from UTC"),
            ("startAt", json!("2027-02-30T08:00:00Z"), "RFC 3339"),
            ("endAt", json!(1_800_000_000_000_i64), "RFC 3339"),
            ("endAt", json!(""), "RFC 3339"),
            ("description", json!(5), "is not a text"),
            ("description", json!("字".repeat(1001)), "1001 characters"),
            ("description", json!("a\0"), "control character"),
            ("labels", json!(["a"]), "{\"team\":\"ops\"}"),
            ("labels", json!({"team": 1}), "\"team\" is not a string"),
            ("labels", json!({"": "a"}), "letters"),
            ("labels", json!({"a=b": "a"}), "letters"),
            ("labels", json!({"a": "x".repeat(201)}), "200 bytes"),
            ("labels", json!({"a": "x\n"}), "control"),
            ("labels", Value::from_iter((0..33).map(|n| (n.to_string(), "x"))), "33 labels"),
            ("timezone", json!("europe/berlin"), "did you mean \"Europe/Berlin\""),
            ("timezone", json!(2), "not a string"),
            ("dialect", json!("quartz"), "\"standard\" and \"seed\""),
            ("dst", json!("Debian"), "none of \"debian\""),
            ("http", json!("https://example.com/"), "is not an object"),
            ("http", json!({"url": "https://u:p@example.com/"}), "Authorization"),
            ("mode", json!("all"), "neither \"single\""),
            ("after", json!("extract"), "[\"extract\",\"load\"]"),
            ("after", json!([]), "names 0 jobs: name 1 to 32"),
            ("after", Value::from_iter((0..33).map(|n| n.to_string())), "33 jobs"),
            ("after", json!([1]), "not a string"),
            ("after", json!(["a/b"]), "names no job"),
            ("after", json!(["a", "b", "a"]), "names \"a\" twice"),
        ] {
            let given = json!({name: value});
            let (options, left) = taken(given.clone());
            assert_eq!((options, left), (JobOptions::default(), given.clone()));
            let fault = JobOptions::fault(name, &given[name]).unwrap_or_else(|| panic!("{given} is taken"));
            assert_eq!(fault.field, name);
            assert!(fault.message.contains(says), "{given}: {:?} does not say {says:?}", fault.message);
        }
        assert_eq!(JobOptions::fault("nothing", &json!(1)), None);
    }

    #[test]
    fn moments_are_kept_as_written_and_known_to_the_millisecond() {
        for (text, ms) in [
            ("1970-01-01T01:00:00+01:00", 0),
            ("2027-01-15T08:00:00Z", 1_800_000_000_000),
            ("2027-01-15T08:00:00.001Z", 1_800_000_000_001),
            ("2027-01-15T08:00:00.0000001Z", 1_800_000_000_001),
            ("0001-01-01T00:00:00-23:59", -62_135_510_460_000),
        ] {
            let moment = Moment::parse(&json!(text)).unwrap();
            assert_eq!((moment.at(), moment.text.as_str()), (Timestamp::from_ms(ms), text));
        }
    }

    #[test]
    fn a_window_that_ends_before_it_begins_is_told() {
        let told = |start: &str, end: &str| {
            taken(json!({"startAt": start, "endAt": end}))
                .0
                .contradictions()
                .into_iter()
                .map(|fault| fault.field)
                .collect::<Vec<_>>()
        };
        assert_eq!(told("2027-01-01T00:00:00Z", "2027-01-01T00:00:00.001Z"), NOTHING);
        assert_eq!(told("2027-01-01T00:00:00Z", "2027-01-01T01:00:00+01:00"), ["endAt"], "the same moment");
        assert_eq!(told("2027-01-01T00:00:00Z", "2026-01-01T00:00:00Z"), ["endAt"]);
        assert_eq!(JobOptions::default().contradictions(), []);
        let beside =
            json!({"after": ["a"], "misfire": "all", "jitterSeconds": 1, "startAt": "2027-01-01T00:00:00Z"});
        let told: Vec<String> =
            taken(beside).0.contradictions().into_iter().map(|fault| fault.field).collect();
        assert_eq!(told, ["misfire", "jitterSeconds", "startAt"]);
    }

    #[test]
    fn jitter_is_the_same_in_every_version_and_spreads_names() {
        let jitter = |name: &str, seconds| {
            let options = JobOptions { jitter_seconds: Some(seconds), ..JobOptions::default() };
            options.jitter_ms(&JobName::parse(name).unwrap())
        };
        // Another number here would move every job with jitter.
        assert_eq!([jitter("a", 60), jitter("b", 60), jitter("backup", 3600)], [13_593, 23_788, 1_321_959]);
        let tenths: std::collections::BTreeSet<i64> =
            (0..200).map(|n| jitter(&format!("job{n}"), 10) / 1000).collect();
        assert_eq!(tenths.len(), 10, "spread over all the time: {tenths:?}");
        assert!((0..200).all(|n| (0..1000).contains(&jitter(&format!("job{n}"), 1))));
    }

    #[test]
    fn a_selector_wants_all_its_labels() {
        let labels = |text: &str| -> Labels {
            let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
            pairs.map(|(label, value)| (label.to_owned(), value.to_owned())).collect()
        };
        let selector = Selector(labels("zone=a,gpu=yes"));
        assert_eq!(selector.to_string(), "gpu=yes,zone=a");
        for (worker, fits) in
            [("gpu=yes,zone=a,more=1", true), ("zone=a", false), ("zone=b,gpu=yes", false), ("", false)]
        {
            assert_eq!(selector.matches(&labels(worker)), fits, "{worker}");
        }
        assert!(Selector(Labels::new()).matches(&labels("")));
    }
}
