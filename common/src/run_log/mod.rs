//! The port to the store of records: idempotent inserts, newest first.
//!
//! Two implementations, [`mongo::MongoRunLog`] and (feature `embedded`) [`embedded::EmbeddedRunLog`]; both pass the one conformance suite in
//! `tests/src/conformance/run_log.rs`.

use async_trait::async_trait;

use crate::domain::record::{Record, Status};

mod batch;
#[cfg(feature = "embedded")]
pub mod embedded;
pub mod mongo;
mod renewing;

/// Which records to list. The seed's `JobLogFilter`, with its sort order (`startTime` descending) built in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecordQuery {
    /// Of this job.
    pub job_name: String,
    /// Only with this status.
    pub status: Option<Status>,
    /// Leave out so many of the newest.
    pub skip: u64,
    /// At most so many.
    pub limit: u32,
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
/// provisional, and a range of skipped fires may have grown; so the order in which records come does not matter.
#[must_use]
pub fn duplicate(stored: &Record, new: &Record) -> Duplicate {
    if stored.claim != new.claim {
        return Duplicate::Conflict;
    }
    let grown = |record: &Record| record.skipped.as_ref().map_or(0, |s| s.count);
    match (stored.status, new.status) {
        (Some(Status::Lost), Some(status)) if status != Status::Lost => Duplicate::Replace,
        (Some(Status::Skipped), Some(Status::Skipped)) if grown(new) > grown(stored) => Duplicate::Replace,
        _ => Duplicate::Replay,
    }
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

/// The store of records.
#[async_trait]
pub trait RunLog: Send + Sync {
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
}
