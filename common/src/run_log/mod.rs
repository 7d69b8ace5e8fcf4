//! The port to the store of records: idempotent inserts, newest first; what runs that are going have printed so far; and what is removed again.
//!
//! Two implementations, [`mongo::MongoRunLog`] and (feature `embedded`) [`embedded::EmbeddedRunLog`]; both pass the one conformance suite in
//! `tests/src/conformance/run_log.rs`.

use std::fmt;

use async_trait::async_trait;

use crate::clock::Timestamp;
use crate::domain::output::Chunk;
use crate::domain::record::{Record, RecordId, SkipReason, Status};
use crate::domain::run::RunId;
use crate::history::History;

mod batch;
#[cfg(feature = "embedded")]
pub mod embedded;
pub mod mongo;
mod renewing;

/// What a run printed is kept for so many days after it was stored, should nobody remove it before: its worker does, unless it dies.
pub const OUTPUT_KEPT_DAYS: u64 = 7;

/// Which records to list: those that every given filter lets through. The seed's `JobLogFilter`, with its sort order (`startTime` descending)
/// built in.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RecordQuery {
    /// Of this job.
    pub job_name: String,
    /// Only with this status.
    pub status: Option<Status>,
    /// Only those that started at this time or later.
    pub from: Option<Timestamp>,
    /// Only those that started before this time.
    pub to: Option<Timestamp>,
    /// Only of this worker.
    pub worker: Option<String>,
    /// Only of this claim.
    pub run_id: Option<RunId>,
    /// Only those with these very characters in `output`, `err` or `command`. Every record that the other filters let through is read for it:
    /// bound them by `until`.
    pub text: Option<String>,
    /// Only what comes behind this place.
    pub after: Option<Place>,
    /// Only what comes up to this place, that one too.
    pub until: Option<Place>,
    /// Leave out so many of the newest.
    pub skip: u64,
    /// At most so many.
    pub limit: u32,
}

/// A place in the order of a job's records (newest `startTime` first; equal ones by descending plan time, then by `_id`): that of a record, whether
/// it is still there or not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// See [`Record::start_time`].
    pub start_time: Timestamp,
    /// See [`Record::plan_time`].
    pub plan_time: Timestamp,
    /// See [`Record::id`].
    pub id: RecordId,
}

impl Place {
    /// The place of a record.
    #[must_use]
    pub fn of(record: &Record) -> Self {
        Self { start_time: record.start_time, plan_time: record.plan_time, id: record.id.clone() }
    }

    /// Reads what [`fmt::Display`] wrote.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, ',');
        let mut time = || Some(Timestamp::from_ms(parts.next()?.parse().ok()?));
        let (start_time, plan_time) = (time()?, time()?);
        let id = parts.next().filter(|id| !id.is_empty())?;
        Some(Self { start_time, plan_time, id: RecordId::from_text(id) })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{},{}", self.start_time.ms(), self.plan_time.ms(), self.id)
    }
}

/// What is to be removed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Removal {
    /// What these runs printed: their records are stored, or are not worth keeping it for.
    OutputOf(Vec<RunId>),
    /// What runs printed before this time and have not printed over since.
    OutputBefore(Timestamp),
    /// Records of runs that ended before this time, of every job.
    RecordsBefore(Timestamp),
    /// Records of a job behind a place, if they ended before this time.
    RecordsBehind(String, Place, Timestamp),
}

/// What became of a batch, by the records' ids.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Appended {
    /// Records stored for the first time, or in place of the provisional one of their own claim.
    pub stored: usize,
    /// Records that were there already, in this or a later form.
    pub replayed: usize,
    /// Records whose id was taken by another claim: a fire that ran twice. Kept aside, not lost; somebody must look.
    pub conflicts: Vec<Record>,
}

/// What to do with a record whose id is taken (design P11).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Duplicate {
    /// The stored one stays: the new one is a replay, or knows less.
    Replay,
    /// The new one takes its place.
    Replace,
    /// They are of different claims: keep both, the new one aside, and wake somebody.
    Conflict,
}

/// Compares a stored record with a new one of the same id. Of one claim, the record that knows more stays: `lost` is
/// provisional, so is the skip of what may have run in a store that went back, and a range of skipped fires may have grown; so the order in
/// which records come does not matter.
#[must_use]
pub fn duplicate(stored: &Record, new: &Record) -> Duplicate {
    if stored.claim != new.claim {
        return Duplicate::Conflict;
    }
    let grown = |record: &Record| record.skipped.as_ref().map_or(0, |s| s.count);
    match (stored.status, new.status) {
        (Some(Status::Lost), Some(status)) if status != Status::Lost => Duplicate::Replace,
        (Some(Status::Skipped), Some(status)) if may_have_run(stored) && status != Status::Skipped => {
            Duplicate::Replace
        }
        (Some(Status::Skipped), Some(Status::Skipped)) if grown(new) > grown(stored) => Duplicate::Replace,
        _ => Duplicate::Replay,
    }
}

/// It was let go because nobody knew whether it had run.
fn may_have_run(record: &Record) -> bool {
    record.skipped.as_ref().is_some_and(|skipped| skipped.reason == SkipReason::StoreWentBack)
}

/// Why records were not stored or read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Error {
    /// Try again: nothing, some or all of the batch is stored, and sending it again is harmless.
    #[error("record store unavailable: {0}")]
    Unavailable(String),
    /// The credentials are refused.
    #[error("record store denied access: {0}")]
    Denied(String),
    /// The settings refer to secrets that cannot be read: nothing was asked of the store. Try again once that is mended.
    #[error("the configuration cannot be read: {0}")]
    Unconfigured(String),
    /// The request itself is wrong: a bug of the caller.
    #[error("invalid request to the record store: {0}")]
    Invalid(String),
    /// The store is full or broken: report it, try again later.
    #[error("record store failed: {0}")]
    Internal(String),
}

/// The store of records. It also keeps what is known of changes, with the same connections.
#[async_trait]
pub trait RunLog: History {
    /// Creates what queries need (indexes). Idempotent; called once by whoever writes.
    ///
    /// # Errors
    /// Try again; appending works without.
    async fn prepare(&self) -> Result<(), Error>;

    /// Stores a batch. Records of one id within a batch are taken in order; the rules are those of [`duplicate`].
    ///
    /// # Errors
    /// Send the identical batch again: that is harmless.
    async fn append(&self, records: &[Record]) -> Result<Appended, Error>;

    /// The records of a job, newest `startTime` first; equal ones by descending plan time, then by `_id`.
    ///
    /// # Errors
    /// Try again.
    async fn list(&self, query: &RecordQuery) -> Result<Vec<Record>, Error>;

    /// The place of the record that [`Self::list`] would answer first; `text` and `limit` are not looked at. Cheap also for a large `skip`: it
    /// reads no record.
    ///
    /// # Errors
    /// Try again.
    async fn place(&self, query: &RecordQuery) -> Result<Option<Place>, Error>;

    /// The record with this `_id`, or of the claim of this name.
    ///
    /// # Errors
    /// Try again.
    async fn get(&self, id: &str) -> Result<Option<Record>, Error>;

    /// Stores what runs have printed, each chunk in its slot, in place of what was there. All or some of them, when it fails.
    ///
    /// # Errors
    /// Send it again: that is harmless.
    async fn put_output(&self, chunks: &[Chunk]) -> Result<(), Error>;

    /// The stored chunks of a run that have bytes behind the first `after` of what it printed, in the order in which they were printed.
    ///
    /// # Errors
    /// Try again.
    async fn output(&self, run_id: &RunId, after: u64) -> Result<Vec<Chunk>, Error>;

    /// The first `limit` jobs that have records and come behind `after` in the order of their names.
    ///
    /// # Errors
    /// Try again.
    async fn jobs(&self, after: &str, limit: u32) -> Result<Vec<String>, Error>;

    /// Removes, at most `limit` records (output is removed whole), and answers how many. Fewer than `limit` are all.
    ///
    /// # Errors
    /// Try again.
    async fn remove(&self, what: &Removal, limit: u32) -> Result<u64, Error>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_read_back_as_it_was_written() {
        for id in ["job/1000/1", "任务, with a comma/5/2", "64c0ffee64c0ffee64c0ffee"] {
            let (start_time, plan_time) = (Timestamp::from_ms(-7), Timestamp::from_ms(i64::MAX));
            let place = Place { start_time, plan_time, id: RecordId::from_text(id) };
            assert_eq!(Place::parse(&place.to_string()), Some(place));
        }
        for bad in ["", "1", "1,2", "1,2,", "a,2,x", "1.5,2,x", ",,"] {
            assert_eq!(Place::parse(bad), None, "{bad}");
        }
    }
}
