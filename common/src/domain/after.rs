//! Jobs that have no times of their own and run once others have succeeded: the option `after`.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::job::JobName;
use super::run::RunId;
use super::stored;
use crate::clock::Timestamp;

/// Format version that is written.
const VERSION: u64 = 1;

/// Most jobs that one waits for: the end of a run compares a key for each, in a request that has room for 128.
pub const PREDECESSORS_MAX: usize = 32;

/// The jobs that must have succeeded, each at least once, since they last led to a run: all of them, in the order given.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct After(Arc<[JobName]>);

impl After {
    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &JobName> {
        self.0.iter()
    }

    /// Reads the option.
    ///
    /// # Errors
    /// What is wrong with it and what to write instead.
    pub fn parse(value: &Value) -> Result<Self, String> {
        let Value::Array(given) = value else {
            return Err("is not a list of job names: write it like [\"extract\",\"load\"]".to_owned());
        };
        if !(1..=PREDECESSORS_MAX).contains(&given.len()) {
            return Err(format!("names {} jobs: name 1 to {PREDECESSORS_MAX}", given.len()));
        }
        let mut names: Vec<JobName> = Vec::new();
        for value in given {
            let name = value.as_str().ok_or_else(|| format!("{value} is not a string: name a job"))?;
            let name = JobName::parse(name).map_err(|why| format!("{name:?} names no job: {why}"))?;
            if names.contains(&name) {
                return Err(format!("names {:?} twice: name it once", name.as_str()));
            }
            names.push(name);
        }
        Ok(Self(names.into()))
    }

    /// As it is stored.
    #[must_use]
    pub fn to_value(&self) -> Value {
        self.names().map(|name| Value::from(name.as_str())).collect()
    }
}

/// Value of `/cron/after/{name}/{predecessor}`: the predecessor has succeeded since successes last led to a run of the job.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Success {
    v: u64,
    /// The last run of the predecessor that did.
    pub run_id: RunId,
    /// When it had ended.
    pub at: Timestamp,
}

impl Success {
    /// The success of a run.
    #[must_use]
    pub fn new(run_id: RunId, at: Timestamp) -> Self {
        Self { v: VERSION, run_id, at }
    }

    /// The value to store.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        stored::encode(self)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_stored_of_a_success_is_as_in_version_1() {
        let success = Success::new(RunId::from_text("7f-12"), Timestamp::from_ms(1_800_000_000_000));
        assert_eq!(success.encode(), br#"{"v":1,"runId":"7f-12","at":1800000000000}"#);
    }

    #[test]
    fn the_jobs_are_kept_in_the_order_given() {
        let given = json!(["load", "extract"]);
        let after = After::parse(&given).unwrap();
        assert_eq!(after.names().map(JobName::as_str).collect::<Vec<_>>(), ["load", "extract"]);
        assert_eq!(after.to_value(), given);
        let most: Vec<String> = (0..PREDECESSORS_MAX).map(|n| n.to_string()).collect();
        assert!(After::parse(&json!(most)).is_ok());
    }
}
