//! The operator's file of secrets (`CRON_SECRETS_FILE`): which secrets jobs may name, where each is kept, and which jobs may use it. Only what
//! stands here can be had, so that whoever saves jobs reads no other file of the machine and no other secret of the AWS account.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde_json::{Map, Value};

use crate::domain::job::JobName;
use crate::domain::secret::SecretName;
use crate::secrets::Reference;

/// Most secrets.
const SECRETS_MAX: usize = 10_000;
/// Longest file, in bytes.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// The file, read and checked.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct JobSecrets(BTreeMap<SecretName, Entry>);

#[derive(Clone, PartialEq, Eq, Debug)]
struct Entry {
    kept: Kept,
    /// What the names of jobs begin with that may use it; `None` = all may.
    jobs: Option<Vec<String>>,
}

/// Where a secret is kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Kept {
    /// In a file of its own, which is the secret.
    File(PathBuf),
    /// By AWS.
    Reference(Reference),
}

/// Why a job may not have a secret.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Withheld {
    /// The file names none such.
    #[error("is not in this worker's CRON_SECRETS_FILE")]
    Unknown,
    /// It is for others.
    #[error("is not for this job: this worker's CRON_SECRETS_FILE names others")]
    OtherJobs,
}

impl JobSecrets {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(path: &Path) -> Result<Self, String> {
        let of_file = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
        Self::parse(&text(path, FILE_BYTES_MAX).map_err(|why| of_file(&why))?).map_err(|why| of_file(&why))
    }

    /// Where a secret is kept, for this job.
    ///
    /// # Errors
    /// Why it may not know.
    pub fn of(&self, name: &SecretName, job: &JobName) -> Result<&Kept, Withheld> {
        let entry = self.0.get(name).ok_or(Withheld::Unknown)?;
        let is_for = |jobs: &Vec<String>| jobs.iter().any(|prefix| job.as_str().starts_with(prefix.as_str()));
        if entry.jobs.as_ref().is_none_or(is_for) { Ok(&entry.kept) } else { Err(Withheld::OtherJobs) }
    }

    /// What it says is said without values: who takes this for a file of secrets must not find them in a log.
    fn parse(text: &str) -> Result<Self, String> {
        let like = "write {\"name\": {\"file\": \"/run/secrets/name\", \"jobs\": [\"billing-\"]}}";
        let given: Map<String, Value> = serde_json::from_str(text).map_err(|why| {
            format!("is no JSON object (line {}, column {}): {like}", why.line(), why.column())
        })?;
        if given.len() > SECRETS_MAX {
            return Err(format!("has {} secrets: {SECRETS_MAX} are the most", given.len()));
        }
        let mut secrets = BTreeMap::new();
        for (name, value) in given {
            let entry = Entry::parse(&value).map_err(|why| format!("{name:?}: {why}"))?;
            let name = SecretName::parse(&name).map_err(|why| format!("{name:?}: {why}"))?;
            secrets.insert(name, entry);
        }
        Ok(Self(secrets))
    }
}

impl Entry {
    fn parse(value: &Value) -> Result<Self, String> {
        const LIKE: &str = "write {\"file\": \"/an/absolute/path\"}, or a reference that begins with \"secretsmanager:\" or \"ssm:\"; not the secret itself";
        match value {
            Value::String(text) => Ok(Self { kept: reference(text, LIKE)?, jobs: None }),
            Value::Object(fields) => {
                if let Some(unknown) =
                    fields.keys().find(|key| !["file", "from", "jobs"].contains(&key.as_str()))
                {
                    return Err(format!("{unknown:?} is no field: there are file, from and jobs"));
                }
                let kept = match (fields.get("file"), fields.get("from")) {
                    (Some(Value::String(path)), None) if path.starts_with('/') => Kept::File(path.into()),
                    (None, Some(Value::String(text))) => reference(text, LIKE)?,
                    _ => return Err(LIKE.to_owned()),
                };
                Ok(Self { kept, jobs: fields.get("jobs").map(prefixes).transpose()? })
            }
            _ => Err(LIKE.to_owned()),
        }
    }
}

fn reference(text: &str, like: &str) -> Result<Kept, String> {
    Reference::parse(text).unwrap_or_else(|| Err(like.to_owned())).map(Kept::Reference)
}

fn prefixes(value: &Value) -> Result<Vec<String>, String> {
    let text = |one: &Value| one.as_str().filter(|prefix| !prefix.is_empty()).map(str::to_owned);
    let all = value.as_array().filter(|all| !all.is_empty());
    all.and_then(|all| all.iter().map(text).collect()).ok_or_else(|| {
        "jobs is no list of what names of jobs begin with, like [\"billing-\"]: leave it out for all jobs"
            .to_owned()
    })
}

/// The text of a file that is one, and not longer than `max` bytes: a pipe would be waited for without end.
///
/// # Errors
/// It cannot be read, or is something else.
pub fn text(path: &Path, max: u64) -> io::Result<String> {
    let found = fs::metadata(path)?;
    if !found.is_file() {
        return Err(io::Error::other("not a file"));
    }
    if found.len() > max {
        return Err(io::Error::other(format!("longer than {max} bytes")));
    }
    fs::read_to_string(path)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn name(name: &str) -> SecretName {
        SecretName::parse(name).unwrap()
    }

    fn job(name: &str) -> JobName {
        JobName::parse(name).unwrap()
    }

    #[test]
    fn a_secret_is_where_the_operator_says_and_for_whom() {
        let file = json!({
            "a": {"file": "/run/a"},
            "b": "ssm:/fleetcron/jobs/b",
            "team/c": {"from": "secretsmanager:fleetcron/jobs/c#key", "jobs": ["billing-", "report"]},
        });
        let read = JobSecrets::parse(&file.to_string()).unwrap();
        assert_eq!(read.of(&name("a"), &job("x")), Ok(&Kept::File("/run/a".into())));
        let Ok(Kept::Reference(b)) = read.of(&name("b"), &job("x")) else { panic!("{read:?}") };
        assert_eq!(b.to_string(), "ssm:/fleetcron/jobs/b");
        for (of, expected) in [
            ("billing-daily", None),
            ("report", None),
            ("reports", None),
            ("billing", Some(Withheld::OtherJobs)),
        ] {
            assert_eq!(read.of(&name("team/c"), &job(of)).err(), expected, "{of}");
        }
        assert_eq!(read.of(&name("d"), &job("x")), Err(Withheld::Unknown));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_name_and_without_what_may_be_a_secret() {
        for (file, says) in [
            (json!("geheim"), "no JSON object"),
            (json!({"a b": "ssm:/a"}), "\"a b\": secret: names no secret"),
            (json!({"a": "geheim"}), "\"a\": write {\"file\""),
            (json!({"a": 5}), "not the secret itself"),
            (json!({"a": {}}), "not the secret itself"),
            (json!({"a": {"file": "geheim"}}), "not the secret itself"),
            (json!({"a": {"file": "/a", "from": "ssm:/a"}}), "not the secret itself"),
            (json!({"a": {"value": "geheim"}}), "\"value\" is no field"),
            (json!({"a": "ssm:"}), "names nothing"),
            (json!({"a": {"file": "/a", "jobs": []}}), "jobs is no list"),
            (json!({"a": {"file": "/a", "jobs": [""]}}), "jobs is no list"),
            (json!({"a": {"file": "/a", "jobs": "x"}}), "jobs is no list"),
        ] {
            let why = JobSecrets::parse(&file.to_string()).expect_err(&file.to_string());
            assert!(why.contains(says) && !why.contains("geheim"), "{file}: {why}");
        }
        assert!(JobSecrets::parse("{\"a\": geheim}").unwrap_err().contains("line 1, column 7"));
        assert!(JobSecrets::read(Path::new("/nowhere/file")).unwrap_err().starts_with("/nowhere/file: "));
        assert!(text(Path::new("/dev/null"), 1).unwrap_err().to_string().contains("not a file"));
    }
}
