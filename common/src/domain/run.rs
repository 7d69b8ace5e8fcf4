//! Runs: claimed fires on their way to a record.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::domain::execution::Environment;
use crate::domain::job::JobName;
use crate::domain::record::{RecordId, Skipped};
use crate::domain::retry::Retry;
use crate::domain::stored;
use crate::domain::trace::{self, TraceContext};
use crate::domain::worker::Sid;

/// Format version that is written.
const VERSION: u64 = 1;

/// One occurrence falling due; with the attempt it is the idempotency key that every run hands to its command.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Fire {
    /// The job.
    pub job: JobName,
    /// Its nominal time.
    pub plan_time: Timestamp,
}

/// Names one claim, and with it the run that it started: `{sid}-{seq}` of a fire, random digits of a run that somebody asked for, and of a
/// retry the id of the first attempt with `.{attempt}`. Where a job runs on every worker, `~{sid}` of the worker comes between. Opaque: compared, and taken apart only to guess where to look first.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(Arc<str>);

impl RunId {
    /// The run of claim number `seq` of session `sid`.
    #[must_use]
    pub fn new(sid: Sid, seq: u64) -> Self {
        Self(format!("{sid}-{seq}").into())
    }

    /// From its text, as somebody sent it.
    #[must_use]
    pub fn from_text(text: &str) -> Self {
        Self(text.into())
    }

    /// A later attempt at what this run attempts: of all its attempts the same, so that nobody can ask for one twice.
    #[must_use]
    pub fn of_attempt(&self, attempt: u32) -> Self {
        let first = self.0.split_once('.').map_or(&*self.0, |(first, _)| first);
        Self(format!("{first}.{attempt}").into())
    }

    /// The run of the job `dependent` that the success of this one leads to: the same whoever asks for it, and of no other two.
    #[must_use]
    pub fn of_dependent(&self, dependent: &JobName) -> Self {
        // Run ids have no NUL character.
        let both = format!("{self}\0{dependent}");
        Self(format!("{:032x}", xxhash_rust::xxh3::xxh3_128(both.as_bytes())).into())
    }

    /// Of what this names (the claim of a fire, or a request) the run on the worker of this session.
    #[must_use]
    pub fn of_worker(&self, sid: Sid) -> Self {
        Self(format!("{self}~{sid}").into())
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The session and the number of the claim that made it, which is where its open run was put. That may have moved to another session since.
    #[must_use]
    pub fn claim(&self) -> Option<(Sid, u64)> {
        let (sid, seq) = self.0.split_once('-')?;
        Some((Sid::parse(sid)?, seq.parse().ok()?))
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What started a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Trigger {
    /// Its schedule.
    Schedule,
    /// Somebody asked for it.
    Manual,
    /// The attempt before did not succeed.
    Retry,
    /// The jobs that it waits for have succeeded.
    After,
    /// Its schedule, on every worker.
    Broadcast,
}

impl Trigger {
    /// Every trigger, in the order of its declaration.
    pub const ALL: [Self; 5] = [Self::Schedule, Self::Manual, Self::Retry, Self::After, Self::Broadcast];

    /// The trigger as it is stored.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Schedule => "schedule",
            Self::Manual => "manual",
            Self::Retry => "retry",
            Self::After => "after",
            Self::Broadcast => "broadcast",
        }
    }

    /// A fire of its job's schedule.
    #[must_use]
    pub fn is_of_schedule(self) -> bool {
        matches!(self, Self::Schedule | Self::Broadcast)
    }
}

/// Longest command that an open run carries for the record of its loss; the rest is cut, since etcd must stay small.
const OPEN_COMMAND_BYTES_MAX: usize = 4096;

/// A run (or a range of skipped fires) that is claimed and whose record is not yet safely stored: enough for a survivor
/// to write that record.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OpenRun {
    /// The claim.
    pub run_id: RunId,
    /// The job.
    pub job: JobName,
    /// The fire's time.
    pub plan_time: Timestamp,
    /// 1, 2, …
    pub attempt: u32,
    /// When it was claimed.
    pub schedule_time: Timestamp,
    /// The worker's id.
    pub worker: String,
    /// The command, cut to 4 KiB.
    pub command: String,
    /// What started it.
    pub trigger: Trigger,
    /// Set when the fires were let go: nothing runs, and the record of a lost session is this skip and not a loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<Skipped>,
    /// It holds no lock, only a key of its own under [`crate::keys::SHARED`]: its job's `concurrency` was `allow` when it was claimed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unlocked: bool,
    /// The request of a person, or of jobs that have succeeded, that it goes back to, itself or that of the first attempt; absent = a fire of
    /// the schedule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<RunId>,
    /// The run whose success led to it: of the jobs that its job waits for the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<RunId>,
    /// Variables that came with that request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<Arc<Environment>>,
    /// What whoever finds its session gone does beside writing the record: ask for the next attempt. Absent = nothing; also once the run has
    /// ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_lost: Option<Retry>,
    /// The id of the worker that it is for: of a job that runs on every worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The trace that it goes on with: of whoever asked for it. Absent = it begins one of its own, see [`TraceContext::of_run`].
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "trace::stored")]
    pub trace: Option<TraceContext>,
}

impl OpenRun {
    /// The id of the record that this run will end in.
    #[must_use]
    pub fn record_id(&self) -> RecordId {
        let id = match &self.asked {
            None => RecordId::new(&self.job, self.plan_time, self.attempt),
            Some(asked) => RecordId::asked_for(&self.job, self.plan_time, asked, self.attempt),
        };
        match &self.target {
            None => id,
            Some(worker) => id.of_worker(worker),
        }
    }

    /// The command as an open run carries it.
    #[must_use]
    pub fn cut_command(command: &str) -> String {
        if command.len() <= OPEN_COMMAND_BYTES_MAX {
            return command.to_owned();
        }
        let mut end = OPEN_COMMAND_BYTES_MAX;
        while !command.is_char_boundary(end) {
            end -= 1;
        }
        format!("{}…", &command[..end])
    }
}

/// Value of `/cron/runs/{sid}/{seq}`: the open runs of one claim.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct OpenRuns {
    v: u64,
    /// The runs.
    pub runs: Vec<OpenRun>,
}

impl OpenRuns {
    /// The value for these runs.
    #[must_use]
    pub fn new(runs: Vec<OpenRun>) -> Self {
        Self { v: VERSION, runs }
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

/// Value of `/cron/lock/{name}` when one of our workers holds it (a seed worker's is empty), and of `/cron/shared/{name}/{run id}`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LockHolder {
    v: u64,
    /// The holding session.
    pub sid: Sid,
    /// The run that it is held for.
    pub run_id: RunId,
}

impl LockHolder {
    /// A lock held by `run_id` of session `sid`.
    #[must_use]
    pub fn new(sid: Sid, run_id: RunId) -> Self {
        Self { v: VERSION, sid, run_id }
    }

    /// Reads a stored lock; `None` is a seed worker's (an empty value).
    ///
    /// # Errors
    /// See [`stored::decode`].
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, stored::Error> {
        if bytes.is_empty() { Ok(None) } else { stored::decode(bytes, VERSION).map(Some) }
    }

    /// The value to store.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        stored::encode(self)
    }
}
