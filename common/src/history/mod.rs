//! The port to what is kept of changes: who changed what, and the versions of every job. The store of records keeps it, in collections of its
//! own: whoever implements [`crate::run_log::RunLog`] implements this.
//!
//! Both implementations pass the one conformance suite in `tests/src/conformance/history.rs`.

use async_trait::async_trait;

use crate::domain::audit::{Entry, EntryId};
use crate::run_log::Error;

#[cfg(feature = "embedded")]
pub(crate) mod embedded;
mod mongo;
pub mod moving;

/// Where an entry is kept. The two are apart because they are kept for different times.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Shelf {
    /// All changes of whatever kind.
    Audit,
    /// Changes after which a job's definition was another (see [`Entry::is_version`]).
    Versions,
}

/// Which entries to list, newest first: those that every given filter lets through.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Query {
    /// Only this one.
    pub id: Option<EntryId>,
    /// Only things of this kind.
    pub thing: Option<String>,
    /// Only things of this name.
    pub name: Option<String>,
    /// Only what was done by this function.
    pub action: Option<String>,
    /// Only what was done by the caller of this name.
    pub by: Option<String>,
    /// Only this one and later ones.
    pub from: Option<EntryId>,
    /// Only earlier ones.
    pub below: Option<EntryId>,
    /// Leave out so many of the newest.
    pub skip: u32,
    /// At most so many.
    pub limit: u32,
}

impl Query {
    /// The versions of a job.
    #[must_use]
    pub fn of_job(name: &str) -> Self {
        Self { name: Some(name.to_owned()), ..Self::default() }
    }
}

/// What is kept of changes.
#[async_trait]
pub trait History: Send + Sync {
    /// Creates what queries need (indexes). Idempotent.
    ///
    /// # Errors
    /// Try again; keeping works without.
    async fn prepare_history(&self) -> Result<(), Error>;

    /// Keeps entries, each on the shelves where it belongs. One whose id is there already stays as it was.
    ///
    /// # Errors
    /// All or some or none are kept. Send them again: that is harmless.
    async fn keep(&self, entries: &[Entry]) -> Result<(), Error>;

    /// The entries of a shelf that the query asks for, newest first.
    ///
    /// # Errors
    /// Try again.
    async fn kept(&self, shelf: Shelf, query: &Query) -> Result<Vec<Entry>, Error>;

    /// The first `limit` jobs that have versions and come behind `after` in the order of their names.
    ///
    /// # Errors
    /// Try again.
    async fn kept_jobs(&self, after: &str, limit: u32) -> Result<Vec<String>, Error>;

    /// Removes the entries of a shelf before `below`, of one name or of all; at most `limit` of them, and answers how many. Fewer than `limit`
    /// are all.
    ///
    /// # Errors
    /// Try again.
    async fn forget(
        &self,
        shelf: Shelf,
        name: Option<&str>,
        below: &EntryId,
        limit: u32,
    ) -> Result<u64, Error>;
}
