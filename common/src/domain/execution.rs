//! How the command of a job is run: the options that only who runs it looks at.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::http::{self, Http};
use super::secret::{SECRETS_MAX, SecretName};

/// `outputLimitBytes` of a job that gives none.
pub const OUTPUT_LIMIT_BYTES_DEFAULT: u32 = 1024 * 1024;
/// Most of it: half of what MongoDB takes as one document.
pub const OUTPUT_LIMIT_BYTES_MAX: u32 = 8 * 1024 * 1024;
/// Most of `timeoutSeconds`: a year. What is meant to run for longer is no job.
pub const TIMEOUT_SECONDS_MAX: u32 = 366 * 24 * 3600;
/// `killGraceSeconds` of a job that gives none.
pub const KILL_GRACE_SECONDS_DEFAULT: u32 = 5;
/// Most of it.
pub const KILL_GRACE_SECONDS_MAX: u32 = 3600;
/// Most of `env`: names and values together, in bytes. Each job's is kept in memory by every worker; larger things belong into files.
pub const ENV_BYTES_MAX: usize = 8 * 1024;
/// Longest path that Linux takes, with the byte that ends it.
const PATH_BYTES_MAX: usize = 4096;
/// Longest name of a user on Linux.
const USER_BYTES_MAX: usize = 32;

/// Environment variables that a job or a request gives to the command.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// Reads `{"NAME":"value", …}`.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it and how to mend it.
    pub fn parse(value: &Value) -> Result<Self, String> {
        let Value::Object(given) = value else {
            return Err("is not an object of variables: write it like {\"NAME\":\"value\"}".to_owned());
        };
        let mut variables = BTreeMap::new();
        let mut bytes = 0;
        for (name, value) in given {
            let Value::String(value) = value else {
                return Err(format!("the value of {name:?} is not a string: write it in quotes"));
            };
            check_name(name)?;
            if value.contains('\0') {
                return Err(format!("the value of {name:?} contains a NUL character: leave it out"));
            }
            if let Some(Err(why)) = SecretName::in_value(value) {
                return Err(format!("the value of {name:?}: {why}"));
            }
            bytes += name.len() + value.len();
            variables.insert(name.clone(), value.clone());
        }
        if bytes > ENV_BYTES_MAX {
            return Err(format!(
                "has {bytes} bytes: put what is large into a file, {ENV_BYTES_MAX} fit here"
            ));
        }
        let environment = Self(variables);
        let secrets = environment.secrets().collect::<BTreeSet<_>>().len();
        if secrets > SECRETS_MAX {
            return Err(format!("names {secrets} secrets: {SECRETS_MAX} are the most"));
        }
        Ok(environment)
    }

    /// The secrets that values stand for.
    pub fn secrets(&self) -> impl Iterator<Item = SecretName> {
        self.iter().filter_map(|(_, value)| SecretName::in_value(value)?.ok())
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The variables, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    pub(super) fn to_value(&self) -> Value {
        Value::Object(self.iter().map(|(name, value)| (name.to_owned(), value.into())).collect())
    }
}

fn check_name(name: &str) -> Result<(), String> {
    let is_good = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) || !name.chars().all(is_good) {
        return Err(format!(
            "{name:?} is no name of a variable: use letters, digits and \"_\", no digit first"
        ));
    }
    if name.starts_with("CRON_") {
        return Err(format!("{name:?} may not be set: variables named CRON_… are Fleetcron's own"));
    }
    if name == "BASH_ENV" {
        let why = "workers use it for shells that they start ahead of time";
        return Err(format!("\"BASH_ENV\" may not be set, {why}: source the file in the command"));
    }
    Ok(())
}

/// What a run may use of its machine (see setrlimit(2)); `None` = what the worker may.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Limits {
    /// Seconds of a processor, of each process.
    pub cpu_seconds: Option<u64>,
    /// Address space of each process, in bytes.
    pub memory_bytes: Option<u64>,
    /// File descriptors of each process.
    pub open_files: Option<u64>,
    /// The size to which a file may be written, in bytes.
    pub file_bytes: Option<u64>,
    /// Processes and threads of the user, beyond which the command starts no other. Not heeded where that user is root.
    pub processes: Option<u64>,
}

type LimitField = fn(&mut Limits) -> &mut Option<u64>;

/// Names, where they are kept, and the least that each may be.
const LIMITS: [(&str, LimitField, u64); 5] = [
    ("cpuSeconds", |limits| &mut limits.cpu_seconds, 1),
    ("memoryBytes", |limits| &mut limits.memory_bytes, 1),
    ("openFiles", |limits| &mut limits.open_files, 1),
    ("fileBytes", |limits| &mut limits.file_bytes, 0),
    ("processes", |limits| &mut limits.processes, 1),
];
/// Most of each: what fits a number of every store and language that reads it. Beyond any machine.
const LIMIT_MAX: u64 = 1 << 53;

impl Limits {
    pub(super) fn parse(value: &Value) -> Result<Self, String> {
        let names = LIMITS.map(|(name, ..)| name).join(", ");
        let Value::Object(given) = value else {
            return Err(format!("is not an object: write it like {{\"cpuSeconds\":60}}; there are {names}"));
        };
        let mut limits = Self::default();
        for (name, value) in given {
            let Some((_, field, min)) = LIMITS.iter().find(|(known, ..)| known == name) else {
                return Err(format!("{name:?} is no limit: there are {names}"));
            };
            let number = value.as_u64().filter(|number| (*min..=LIMIT_MAX).contains(number));
            let wrong = || format!("{name} is not a whole number from {min} to {LIMIT_MAX}: write one");
            *field(&mut limits) = Some(number.ok_or_else(wrong)?);
        }
        Ok(limits)
    }

    pub(super) fn to_value(&self) -> Value {
        let mut given = self.clone();
        let fields = LIMITS.iter().filter_map(|(name, field, _)| {
            let number = (*field(&mut given))?;
            Some(((*name).to_owned(), number.into()))
        });
        Value::Object(fields.collect())
    }
}

/// The options that only who runs the command looks at; `None` = left out.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Execution {
    /// Variables for the command.
    pub env: Option<Environment>,
    /// The directory that it starts in; absolute.
    pub working_dir: Option<String>,
    /// The user that it runs as, of those that the worker allows.
    pub user: Option<String>,
    /// What it may use.
    pub limits: Option<Limits>,
    /// Most bytes of output that are kept.
    pub output_limit_bytes: Option<u32>,
    /// It is ended after so long.
    pub timeout_seconds: Option<u32>,
    /// Who is to end has so long between SIGTERM and SIGKILL.
    pub kill_grace_seconds: Option<u32>,
    /// A run is killed before its worker's lease can end.
    pub fence: Option<bool>,
    /// What is sent in place of running a command.
    pub http: Option<Box<Http>>,
}

impl Execution {
    /// The secrets that it names.
    pub fn secrets(&self) -> impl Iterator<Item = SecretName> {
        let variables = self.env.iter().flat_map(Environment::secrets);
        variables.chain(self.http.iter().flat_map(|http| http.secrets()))
    }

    /// Most bytes of output that are kept.
    #[must_use]
    pub fn output_limit(&self) -> usize {
        let bytes = self.output_limit_bytes.unwrap_or(OUTPUT_LIMIT_BYTES_DEFAULT);
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }

    /// How long the command may take, in seconds.
    #[must_use]
    pub fn timeout_seconds(&self) -> Option<u32> {
        self.timeout_seconds.or(self.http.as_ref().map(|_| http::TIMEOUT_SECONDS_DEFAULT))
    }

    /// The same.
    #[must_use]
    pub fn timeout(&self) -> Option<Duration> {
        self.timeout_seconds().map(|seconds| Duration::from_secs(seconds.into()))
    }

    /// Whether a run is killed before its worker's lease can end, so that it never overlaps the next one, not even where its worker is cut
    /// off.
    #[must_use]
    pub fn has_fence(&self) -> bool {
        self.fence.unwrap_or(false)
    }

    /// How long it has between SIGTERM and SIGKILL.
    #[must_use]
    pub fn kill_grace(&self) -> Duration {
        Duration::from_secs(self.kill_grace_seconds.unwrap_or(KILL_GRACE_SECONDS_DEFAULT).into())
    }
}

/// Reads `workingDir`.
///
/// # Errors
/// As [`Environment::parse`].
pub(super) fn working_dir(value: &Value) -> Result<String, String> {
    let path = value.as_str().filter(|path| path.starts_with('/') && !path.contains('\0'));
    let path = path.ok_or("is not an absolute path: write one like \"/srv/app\"")?;
    if path.len() >= PATH_BYTES_MAX {
        return Err(format!("is {} bytes long: Linux takes {}", path.len(), PATH_BYTES_MAX - 1));
    }
    Ok(path.to_owned())
}

/// Reads `user`.
///
/// # Errors
/// As [`Environment::parse`].
pub(super) fn user(value: &Value) -> Result<String, String> {
    value.as_str().filter(|name| is_user(name)).map(str::to_owned).ok_or_else(|| {
        "is no name of a user: write one that workers allow in CRON_USERS, like \"deploy\"".to_owned()
    })
}

/// Whether this may be the name of a user.
#[must_use]
pub fn is_user(name: &str) -> bool {
    let is_good = |c: char| c.is_alphanumeric() || "_.-$@".contains(c);
    (1..=USER_BYTES_MAX).contains(&name.len()) && !name.starts_with('-') && name.chars().all(is_good)
}
