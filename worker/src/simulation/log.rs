//! The records' store: the rule of every store, in memory, with lines of its own that may be cut.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use common::clock::{Clock, Timestamp};
use common::domain::audit::{Entry, EntryId};
use common::domain::output::Chunk;
use common::domain::record::{Record, RecordId};
use common::domain::run::RunId;
use common::history::{History, Query, Shelf};
use common::run_log::{Appended, Duplicate, Error, Place, RecordQuery, Removal, RunLog, duplicate};

/// What is stored.
#[derive(Default)]
pub(super) struct Stored {
    pub(super) records: BTreeMap<RecordId, Record>,
    /// Records of another claim of the same fire, each beside the one that was there.
    pub(super) conflicts: Vec<(Record, Record)>,
}

/// One worker's line to it.
#[derive(Clone, Default)]
pub(super) struct Log {
    pub(super) stored: Arc<Mutex<Stored>>,
    away: Arc<AtomicBool>,
}

impl Log {
    /// Another line to the same store.
    pub(super) fn beside(&self) -> Self {
        Self { stored: Arc::clone(&self.stored), away: Arc::default() }
    }

    pub(super) fn set_away(&self, away: bool) {
        self.away.store(away, Ordering::Relaxed);
    }

    pub(super) fn is_away(&self) -> bool {
        self.away.load(Ordering::Relaxed)
    }

    /// As long as the line is there.
    pub(super) fn store(&self, records: &[Record]) {
        let stored = &mut *self.stored.lock().unwrap();
        for record in records {
            let before = stored.records.get(&record.id);
            match before.map(|before| (before, duplicate(before, record))) {
                None | Some((_, Duplicate::Replace)) => {
                    stored.records.insert(record.id.clone(), record.clone());
                }
                Some((_, Duplicate::Replay)) => {}
                Some((before, Duplicate::Conflict)) => {
                    stored.conflicts.push((before.clone(), record.clone()));
                }
            }
        }
    }
}

#[async_trait]
impl RunLog for Log {
    async fn prepare(&self) -> Result<(), Error> {
        Ok(())
    }
    async fn append(&self, records: &[Record]) -> Result<Appended, Error> {
        if self.is_away() {
            return Err(Error::Unavailable("cut".to_owned()));
        }
        self.store(records);
        Ok(Appended::default())
    }
    async fn list(&self, _query: &RecordQuery) -> Result<Vec<Record>, Error> {
        Ok(Vec::new())
    }
    async fn place(&self, _query: &RecordQuery) -> Result<Option<Place>, Error> {
        Ok(None)
    }
    async fn get(&self, _id: &str) -> Result<Option<Record>, Error> {
        Ok(None)
    }
    async fn put_output(&self, _chunks: &[Chunk]) -> Result<(), Error> {
        Ok(())
    }
    async fn output(&self, _run_id: &RunId, _after: u64) -> Result<Vec<Chunk>, Error> {
        Ok(Vec::new())
    }
    async fn jobs(&self, _after: &str, _limit: u32) -> Result<Vec<String>, Error> {
        Ok(Vec::new())
    }
    async fn remove(&self, _what: &Removal, _limit: u32) -> Result<u64, Error> {
        Ok(0)
    }
}

/// Changes are not what is simulated.
#[async_trait]
impl History for Log {
    async fn prepare_history(&self) -> Result<(), Error> {
        Ok(())
    }
    async fn keep(&self, _entries: &[Entry]) -> Result<(), Error> {
        Ok(())
    }
    async fn kept(&self, _shelf: Shelf, _query: &Query) -> Result<Vec<Entry>, Error> {
        Ok(Vec::new())
    }
    async fn kept_jobs(&self, _after: &str, _limit: u32) -> Result<Vec<String>, Error> {
        Ok(Vec::new())
    }
    async fn forget(
        &self,
        _shelf: Shelf,
        _name: Option<&str>,
        _below: &EntryId,
        _limit: u32,
    ) -> Result<u64, Error> {
        Ok(0)
    }
}

/// A clock that stands.
#[derive(Clone, Copy)]
pub(super) struct At(pub(super) Timestamp);

#[async_trait]
impl Clock for At {
    fn now(&self) -> Timestamp {
        self.0
    }
    async fn sleep_until(&self, _deadline: Timestamp) {}
}
