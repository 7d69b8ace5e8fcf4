//! Records: what is kept of a run. The seed's `JobLog`, and our fields beside it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::domain::job::JobName;
use crate::domain::kill::Killed;
use crate::domain::run::{OpenRun, RunId, Trigger};
use crate::schedule::Fires;

/// Format version that is written.
const VERSION: u32 = 1;

/// A record's `_id`: `{job}/{plan time in ms}/{attempt}`. Job names have no `/`, so it is unique to the run. Of a run that somebody asked for
/// it is `{job}/{plan time in ms}/{its id}/{attempt}`: two may be asked for in one millisecond, which may be that of a fire.
/// Of a job that runs on every worker, `/{the worker's id}` comes behind.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RecordId(String);

impl RecordId {
    /// The id of a run's record.
    #[must_use]
    pub fn new(job: &JobName, plan_time: Timestamp, attempt: u32) -> Self {
        Self(format!("{job}/{}/{attempt}", plan_time.ms()))
    }

    /// The id of the record of a run that goes back to somebody's request.
    #[must_use]
    pub fn asked_for(job: &JobName, plan_time: Timestamp, asked: &RunId, attempt: u32) -> Self {
        Self(format!("{job}/{}/{asked}/{attempt}", plan_time.ms()))
    }

    /// Of the records that a fire has on every worker, that of this one.
    #[must_use]
    pub fn of_worker(self, worker: &str) -> Self {
        Self(format!("{}/{worker}", self.0))
    }

    /// From the store's text; of a seed record the hex form of its object id.
    #[must_use]
    pub fn from_text(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How a run ended. Written once; only `lost` is provisional.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Status {
    /// Exit code 0.
    Succeeded,
    /// Another exit code, a signal that nobody asked for, or it could not be started.
    Failed,
    /// Killed on request.
    Killed,
    /// It took longer than its job's `timeoutSeconds`.
    TimedOut,
    /// Claimed, and its worker's session died before a record was written.
    Lost,
    /// One or more fires that were let go, with the reason.
    Skipped,
}

impl Status {
    /// Every status.
    pub const ALL: [Self; 6] =
        [Self::Succeeded, Self::Failed, Self::Killed, Self::TimedOut, Self::Lost, Self::Skipped];

    /// The status as it is stored.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Killed => "killed",
            Self::TimedOut => "timedOut",
            Self::Lost => "lost",
            Self::Skipped => "skipped",
        }
    }

    /// Whether a run that ended so is tried again, if its job has attempts left. One that is `lost` is not this question: nobody knows how it
    /// ended.
    #[must_use]
    pub fn is_worth_a_retry(self) -> bool {
        match self {
            Self::Failed | Self::TimedOut => true,
            Self::Succeeded | Self::Killed | Self::Lost | Self::Skipped => false,
        }
    }

    /// Reads the stored form.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == text)
    }
}

/// Why fires were let go.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SkipReason {
    /// The previous run was still going at the fire's time (`concurrency: forbid`).
    Overlap,
    /// Nobody could claim it in time.
    Misfire,
    /// The job was deleted after the claim and before the start.
    Deleted,
    /// The job was disabled after the claim and before the start.
    Disabled,
    /// The job was edited after the claim and before the start, and its new schedule does not have this time.
    Superseded,
    /// No worker has the labels that the job wants.
    NoWorker,
    /// A newer fire came before it could start (`concurrency: replace`).
    Replaced,
    /// The store was put back to an earlier state since it was asked for, so that it may have run before.
    StoreWentBack,
    /// Somebody asked that it be killed before anybody had claimed it.
    Cancelled,
    /// The worker that it was for left before it had claimed it (`mode: broadcast`).
    WorkerGone,
}

impl SkipReason {
    /// Every reason, in the order of its declaration.
    pub const ALL: [Self; 10] = [
        Self::Overlap,
        Self::Misfire,
        Self::Deleted,
        Self::Disabled,
        Self::Superseded,
        Self::NoWorker,
        Self::Replaced,
        Self::StoreWentBack,
        Self::Cancelled,
        Self::WorkerGone,
    ];

    /// The reason as it is stored.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Overlap => "overlap",
            Self::Misfire => "misfire",
            Self::Deleted => "deleted",
            Self::Disabled => "disabled",
            Self::Superseded => "superseded",
            Self::NoWorker => "noWorker",
            Self::Replaced => "replaced",
            Self::StoreWentBack => "storeWentBack",
            Self::Cancelled => "cancelled",
            Self::WorkerGone => "workerGone",
        }
    }

    /// For `err`, where the seed's web page shows it.
    #[must_use]
    pub fn sentence(self) -> &'static str {
        match self {
            Self::Overlap => "skipped: the previous run was still going",
            Self::Misfire => "skipped: no worker could claim it in time",
            Self::Deleted => "skipped: the job was deleted before its start",
            Self::Disabled => "skipped: the job was disabled before its start",
            Self::Superseded => "skipped: the job was edited before its start",
            Self::NoWorker => "skipped: no worker has the labels that the job wants",
            Self::Replaced => "skipped: a newer fire came before it could start",
            Self::Cancelled => "skipped: it was cancelled before its start",
            Self::WorkerGone => "skipped: the worker that was to run it is not there any more",
            Self::StoreWentBack => {
                "skipped: the store was put back to an earlier state, and it may have run before"
            }
        }
    }
}

/// A range of consecutive fires of one job that were let go for one reason.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Skipped {
    /// The first.
    pub from: Timestamp,
    /// The last.
    pub to: Timestamp,
    /// How many.
    pub count: u64,
    /// There were more than `count`: they were not counted to the end.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
    /// Why.
    pub reason: SkipReason,
    /// For [`SkipReason::NoWorker`]: the labels wanted, as in `CRON_WORKER_LABELS`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// For [`SkipReason::Cancelled`]: who asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancelled: Option<Killed>,
}

impl Skipped {
    /// Just the fire at `at`.
    #[must_use]
    pub fn one(at: Timestamp, reason: SkipReason) -> Self {
        Self { from: at, to: at, count: 1, more: false, reason, selector: None, cancelled: None }
    }

    /// The fires of a stretch of time.
    #[must_use]
    pub fn all(fires: Fires, reason: SkipReason) -> Self {
        let (from, to) = (fires.first, fires.last);
        Self { from, to, count: fires.count, more: fires.more, reason, selector: None, cancelled: None }
    }
}

/// A run's record: the document in MongoDB and the object in `/job/log`. All times are milliseconds since 1970, UTC.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// See [`RecordId`].
    #[serde(rename = "_id")]
    pub id: RecordId,
    /// The seed's field: the job's name.
    pub job_name: String,
    /// The seed's field: the command that ran.
    #[serde(default)]
    pub command: String,
    /// The seed's field: empty on success, else in Go's words (`exit status 1`, `signal: killed`).
    #[serde(default)]
    pub err: String,
    /// The seed's field: stdout and stderr in the order they were written.
    #[serde(default)]
    pub output: String,
    /// The seed's field: when it should have started.
    #[serde(default)]
    pub plan_time: Timestamp,
    /// The seed's field: when it was claimed.
    #[serde(default)]
    pub schedule_time: Timestamp,
    /// The seed's field: when the command was started.
    #[serde(default)]
    pub start_time: Timestamp,
    /// The seed's field: when it ended.
    #[serde(default)]
    pub end_time: Timestamp,
    /// Format version; absent in seed records, as is all that follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v: Option<u32>,
    /// The claim that wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<RunId>,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
    /// The exit code, when the command exited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The signal's number, when one ended the command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// The status of the answer, when the job sends a request and got one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_status: Option<u16>,
    /// The worker's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// 1, 2, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// What started it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trigger: Option<Trigger>,
    /// The run whose success led to it, for trigger `after`: of the jobs that its job waits for the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<RunId>,
    /// The trace that it belongs to: that of whoever asked for it, or one that it has begun and that is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    /// There was more output than the limit.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub output_truncated: bool,
    /// Bytes printed in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_bytes: Option<u64>,
    /// Who had it killed, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub killed_by: Option<String>,
    /// When that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub killed_at: Option<Timestamp>,
    /// The fires let go, for status `skipped`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<Skipped>,
}

impl Record {
    /// The record of an open run, to be filled by its end.
    fn of(open: &OpenRun, status: Status, at: Timestamp) -> Self {
        Self {
            id: open.record_id(),
            job_name: open.job.as_str().to_owned(),
            command: open.command.clone(),
            err: String::new(),
            output: String::new(),
            plan_time: open.plan_time,
            schedule_time: open.schedule_time,
            start_time: at,
            end_time: at,
            v: Some(VERSION),
            claim: Some(open.run_id.clone()),
            status: Some(status),
            exit_code: None,
            signal: None,
            http_status: None,
            // Who writes it may be another, where the worker that was to run it is gone.
            worker: Some(open.target.as_ref().unwrap_or(&open.worker).clone()),
            attempt: Some(open.attempt),
            trigger: Some(open.trigger),
            after: open.after.clone(),
            trace_id: open.trace.map(|asked| asked.trace.to_string()),
            output_truncated: false,
            output_bytes: None,
            killed_by: None,
            killed_at: None,
            skipped: None,
        }
    }

    /// The record of a run that ended.
    #[must_use]
    pub fn ended(open: &OpenRun, ending: Ending) -> Self {
        Self {
            command: ending.command,
            err: ending.err,
            output: ending.output,
            start_time: ending.start_time,
            end_time: ending.end_time,
            exit_code: ending.exit_code,
            signal: ending.signal,
            http_status: ending.http_status,
            output_truncated: ending.output_truncated,
            output_bytes: Some(ending.output_bytes),
            ..Self::of(open, ending.status, ending.end_time)
        }
    }

    /// The same, of a run that somebody had killed, or cancelled before its start.
    #[must_use]
    pub fn killed(self, killed: Killed) -> Self {
        Self { killed_by: Some(killed.by), killed_at: Some(killed.at), ..self }
    }

    /// The record of fires that were let go; its time is that of the first, so that it keeps its place while the range grows.
    #[must_use]
    pub fn skipped(open: &OpenRun, skipped: Skipped) -> Self {
        let mut err = skipped.reason.sentence().to_owned();
        if let Some(selector) = &skipped.selector {
            err = format!("{err}: {selector}");
        }
        if skipped.count > 1 {
            let more = if skipped.more { "more than " } else { "" };
            err = format!("{err} ({more}{} fires, the last at {})", skipped.count, skipped.to);
        }
        let (from, to) = (skipped.from, skipped.to);
        let record = Self { err, start_time: from, end_time: to, ..Self::of(open, Status::Skipped, from) };
        let record = match skipped.cancelled.clone() {
            Some(cancelled) => record.killed(cancelled),
            None => record,
        };
        Self { skipped: Some(skipped), ..record }
    }

    /// The record that a survivor writes for an open run whose session is gone: `lost`, or the skip that the run stands for.
    #[must_use]
    pub fn left_behind(open: &OpenRun, noticed: Timestamp) -> Self {
        let why = format!("the session of worker {} ended before the run's record was written", open.worker);
        Self::lost(open, noticed, &why)
    }

    /// The record that a worker writes for an open run of its own of which it knows nothing: as [`Self::left_behind`].
    #[must_use]
    pub fn forgotten(open: &OpenRun, noticed: Timestamp) -> Self {
        Self::lost(open, noticed, &format!("worker {} knows nothing of this run", open.worker))
    }

    fn lost(open: &OpenRun, noticed: Timestamp, why: &str) -> Self {
        match &open.skipped {
            Some(skipped) => Self::skipped(open, skipped.clone()),
            None => Self {
                err: format!("lost: {why}"),
                start_time: open.plan_time,
                end_time: noticed,
                ..Self::of(open, Status::Lost, noticed)
            },
        }
    }
}

/// What the end of a run adds to its record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ending {
    /// How.
    pub status: Status,
    /// See [`Record::err`].
    pub err: String,
    /// The command as it was run.
    pub command: String,
    /// See [`Record::output`].
    pub output: String,
    /// See [`Record::output_truncated`].
    pub output_truncated: bool,
    /// See [`Record::output_bytes`].
    pub output_bytes: u64,
    /// See [`Record::start_time`].
    pub start_time: Timestamp,
    /// See [`Record::end_time`].
    pub end_time: Timestamp,
    /// See [`Record::exit_code`].
    pub exit_code: Option<i32>,
    /// See [`Record::signal`].
    pub signal: Option<i32>,
    /// See [`Record::http_status`].
    pub http_status: Option<u16>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_the_one_that_is_stored() {
        let stored = |value: serde_json::Value| value.as_str().map(str::to_owned);
        for (place, reason) in SkipReason::ALL.into_iter().enumerate() {
            assert_eq!(stored(serde_json::to_value(reason).unwrap()).as_deref(), Some(reason.as_str()));
            assert_eq!(reason as usize, place);
        }
        for (place, trigger) in Trigger::ALL.into_iter().enumerate() {
            assert_eq!(stored(serde_json::to_value(trigger).unwrap()).as_deref(), Some(trigger.as_str()));
            assert_eq!(trigger as usize, place);
        }
    }
}
