//! Requests: runs that somebody asks for, retries, and runs of jobs that wait for others. Each is claimed as a fire is, and goes with its claim.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::broadcast::Target;
use super::execution::Environment;
use super::job::JobName;
use super::kill::Killed;
use super::retry::Retry;
use super::run::{OpenRun, RunId, Trigger};
use super::stored;
use super::trace::{self, TraceContext};
use crate::clock::Timestamp;

/// Format version that is written.
const VERSION: u64 = 1;

/// A run that was asked for and cannot be started for so long is let go, in ms: by then whoever asked has helped himself.
pub const MANUAL_WAITS_MS: i64 = 24 * 3600 * 1000;

/// Value of `/cron/requests/{runId}`. The run has the request's id, so that whoever asked knows the run that comes of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    v: u64,
    /// The job.
    pub job: JobName,
    /// Of a retry that of the first attempt; else when it was asked for.
    pub plan_time: Timestamp,
    /// Which attempt it is.
    pub attempt: u32,
    /// It is not claimed earlier; absent = at once, whatever the claiming worker's clock says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    /// What asks for it.
    pub trigger: Trigger,
    /// Variables for this run (and its retries) alone; they win over the job's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<Arc<Environment>>,
    /// The request of a person, or of jobs that have succeeded, that it goes back to: itself, or that of the first attempt; absent = a fire of
    /// the schedule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<RunId>,
    /// The run whose success led to it: of the jobs that its job waits for the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<RunId>,
    /// The run that it tries again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<RunId>,
    /// Who put it: whoever asked (`api` where that is not known), or a worker's id.
    pub by: String,
    /// When.
    pub at: Timestamp,
    /// Somebody has had it killed before it was claimed: it is not to run, and whoever claims it writes a record that says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub killed: Option<Killed>,
    /// The one worker that it is for: of a job that runs on every worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    /// The workers that are still to get a request each of it: it is not run itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<Target>,
    /// Where in which trace whoever asked for it was, or for what it goes back to; absent = nobody said.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "trace::stored")]
    pub trace: Option<TraceContext>,
}

impl Request {
    /// A run that somebody asks for, under the id `run_id`.
    #[must_use]
    pub fn manual(run_id: RunId, job: JobName, env: Environment, at: Timestamp) -> Self {
        Self {
            v: VERSION,
            job,
            plan_time: at,
            attempt: 1,
            not_before: None,
            trigger: Trigger::Manual,
            env: Some(env).filter(|env| *env != Environment::default()).map(Arc::new),
            asked: Some(run_id),
            after: None,
            retries: None,
            by: "api".to_owned(),
            at,
            killed: None,
            target: None,
            targets: Vec::new(),
            trace: None,
        }
    }

    /// A fire of a job that runs on every worker, of these workers: see [`super::broadcast::spread`].
    #[must_use]
    pub fn broadcast(
        job: JobName,
        plan_time: Timestamp,
        start_at: Timestamp,
        targets: Vec<Target>,
        by: &str,
        at: Timestamp,
    ) -> Self {
        Self {
            v: VERSION,
            job,
            plan_time,
            attempt: 1,
            not_before: Some(start_at),
            trigger: Trigger::Broadcast,
            env: None,
            asked: None,
            after: None,
            retries: None,
            by: by.to_owned(),
            at,
            killed: None,
            target: None,
            targets,
            trace: None,
        }
    }

    /// The attempt after that of `open`, which ended at `ended` (or was found to be lost then), with the id that it has, whoever puts it.
    #[must_use]
    pub fn after(open: &OpenRun, retry: &Retry, by: &str, ended: Timestamp) -> (RunId, Self) {
        let attempt = open.attempt.saturating_add(1);
        let request = Self {
            v: VERSION,
            job: open.job.clone(),
            plan_time: open.plan_time,
            attempt,
            not_before: Some(ended.plus_ms(retry.pause_ms(open.attempt, &open.run_id))),
            trigger: Trigger::Retry,
            env: open.env.clone(),
            asked: open.asked.clone(),
            after: open.after.clone(),
            retries: Some(open.run_id.clone()),
            by: by.to_owned(),
            at: ended,
            killed: None,
            target: None,
            targets: Vec::new(),
            trace: open.trace,
        };
        (open.run_id.of_attempt(attempt), request)
    }

    /// The run of the job `dependent` that the success of `predecessor` leads to, which ended at `ended`, with the id that it has.
    #[must_use]
    pub fn following(predecessor: &RunId, dependent: JobName, by: &str, ended: Timestamp) -> (RunId, Self) {
        let run_id = predecessor.of_dependent(&dependent);
        let request = Self {
            v: VERSION,
            job: dependent,
            plan_time: ended,
            attempt: 1,
            not_before: None,
            trigger: Trigger::After,
            env: None,
            asked: Some(run_id.clone()),
            after: Some(predecessor.clone()),
            retries: None,
            by: by.to_owned(),
            at: ended,
            killed: None,
            target: None,
            targets: Vec::new(),
            trace: None,
        };
        (run_id, request)
    }

    /// Reads a stored value.
    ///
    /// # Errors
    /// See [`stored::decode`].
    pub fn decode(bytes: &[u8]) -> Result<Self, stored::Error> {
        stored::decode(bytes, VERSION)
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

    fn name() -> JobName {
        JobName::parse("backup").unwrap()
    }

    #[test]
    fn values_of_version_1_are_read() {
        let at = Timestamp::from_ms(1_800_000_000_000);
        let env = Environment::parse(&json!({"DAY": "monday"})).unwrap();
        let manual = Request::manual(RunId::from_text("0a"), name(), env, at);
        let stored = br#"{"v":1,"job":"backup","planTime":1800000000000,"attempt":1,"trigger":"manual","env":{"DAY":"monday"},"asked":"0a","by":"api","at":1800000000000}"#;
        assert_eq!(Request::decode(stored).unwrap(), manual);
        assert_eq!(manual.encode(), stored);
        let plain = Request::manual(RunId::from_text("0a"), name(), Environment::default(), at);
        assert_eq!(plain.env, None);
        let traced = |trace: &str| {
            let stored = std::str::from_utf8(stored).unwrap();
            let stored = format!(r#"{},"trace":"{trace}"}}"#, stored.strip_suffix('}').unwrap());
            Request::decode(stored.as_bytes()).unwrap().trace.map(|trace| trace.to_string())
        };
        let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(traced(trace).as_deref(), Some(trace));
        assert_eq!(traced("nonsense"), None, "it is not worth the run");
        assert!(matches!(Request::decode(br#"{"v":2}"#), Err(stored::Error::Newer { .. })));
    }

    #[test]
    fn what_follows_a_run_has_an_id_that_no_other_has() {
        let (at, before) = (Timestamp::from_ms(1_800_000_000_000), RunId::from_text("7f-12"));
        let (run_id, request) = Request::following(&before, name(), "w1", at);
        assert_eq!(run_id.as_str(), "299e1c1a877907dc54cbc7854305df57");
        assert_eq!((&request.asked, &request.after), (&Some(run_id.clone()), &Some(before.clone())));
        assert_eq!(Request::decode(&request.encode()).unwrap(), request);
        let other = JobName::parse("other").unwrap();
        let others =
            [Request::following(&before, other, "w1", at).0, before.of_attempt(2).of_dependent(&name())];
        assert!(!others.contains(&run_id) && others[0] != others[1]);
    }

    #[test]
    fn every_attempt_has_the_id_of_the_first_one_with_its_number() {
        let fire = RunId::from_text("7f-12");
        assert_eq!(fire.of_attempt(2).as_str(), "7f-12.2");
        assert_eq!(fire.of_attempt(2).of_attempt(3).as_str(), "7f-12.3");
    }
}
