//! Records in a file of SQLite: the store of local-dev, and one in memory for tests.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension as _, Transaction, TransactionBehavior, params};

use super::batch::{Stored, fold, kept_aside};
use super::{Appended, Duplicate, Error, RecordQuery, RunLog};
use crate::domain::record::{Record, Status};

/// The database's name in its directory.
const FILE: &str = "records.sqlite";
/// Format of the tables, kept in `user_version`.
const VERSION: i64 = 1;
/// How long another process's transaction is waited for; ours take milliseconds.
const BUSY_MAX: Duration = Duration::from_secs(3);

/// A row's key is its number and not its id: with bodies of up to a megabyte that is three times as fast.
/// `by_job` serves the query of `list`; `status` is in it so that the filter needs no body.
const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS records (
        row INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        job TEXT NOT NULL,
        status TEXT,
        start INTEGER NOT NULL,
        plan INTEGER NOT NULL,
        body TEXT NOT NULL
    );
    CREATE INDEX IF NOT EXISTS by_job ON records (job, start DESC, plan DESC, id, status);
    CREATE TABLE IF NOT EXISTS conflicts (
        row INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        job TEXT NOT NULL,
        status TEXT,
        start INTEGER NOT NULL,
        plan INTEGER NOT NULL,
        body TEXT NOT NULL
    );
";

/// The store of records in one file. What `append` acknowledged survives the loss of power. Clones share the store.
#[derive(Clone)]
pub struct EmbeddedRunLog {
    connection: Arc<Mutex<Connection>>,
}

impl EmbeddedRunLog {
    /// Opens or creates the store in directory `dir`. Blocks while it does.
    ///
    /// # Errors
    /// When the directory or file cannot be used, or a newer version wrote it.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let path = dir.join(FILE);
        let fault = |what: String| Error::Internal(format!("{}: {what}", path.display()));
        std::fs::create_dir_all(dir).map_err(|e| fault(e.to_string()))?;
        let connection = Connection::open(&path).map_err(|e| fault(e.to_string()))?;
        Self::with(connection).map_err(|e| fault(e.to_string()))
    }

    /// An empty store that goes with its last clone.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn in_memory() -> Result<Self, Error> {
        Self::with(Connection::open_in_memory().map_err(|e| failure(&e))?)
    }

    fn with(mut connection: Connection) -> Result<Self, Error> {
        set_up(&mut connection).map_err(|e| failure(&e))?;
        let version = connection.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0));
        let version = version.map_err(|e| failure(&e))?;
        if version != VERSION {
            return Err(Error::Invalid(format!(
                "the records are of format {version}, and this version reads {VERSION}"
            )));
        }
        Ok(Self { connection: Arc::new(Mutex::new(connection)) })
    }

    /// Runs `work` on a thread that may block.
    async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let connection = Arc::clone(&self.connection);
        let done = tokio::task::spawn_blocking(move || {
            // A panic in a call rolled its transaction back: the connection is as good as before.
            work(&mut connection.lock().unwrap_or_else(PoisonError::into_inner))
        });
        let done = done.await.map_err(|e| Error::Internal(format!("the call ended early: {e}")))?;
        done.map_err(|e| failure(&e))
    }
}

fn set_up(connection: &mut Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_MAX)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    let txn = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let version: i64 = txn.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if version == 0 {
        txn.execute_batch(TABLES)?;
        txn.pragma_update(None, "user_version", VERSION)?;
    }
    txn.commit()
}

#[async_trait]
impl RunLog for EmbeddedRunLog {
    /// The indexes were made with the tables.
    async fn prepare(&self) -> Result<(), Error> {
        Ok(())
    }

    async fn append(&self, records: &[Record]) -> Result<Appended, Error> {
        if records.is_empty() {
            return Ok(Appended::default());
        }
        let folded = fold(records);
        let superseded = folded.superseded;
        let records: Vec<Record> = folded.passes.concat().into_iter().cloned().collect();
        self.call(move |connection| {
            let txn = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let mut outcome = Appended { replayed: superseded, ..Appended::default() };
            for record in records {
                match store(&txn, Table::Records, &record)? {
                    Kept::New => outcome.stored += 1,
                    Kept::Before => outcome.replayed += 1,
                    Kept::Not => {
                        store(&txn, Table::Conflicts, &kept_aside(&record))?;
                        outcome.conflicts.push(record);
                    }
                }
            }
            txn.commit()?;
            Ok(outcome)
        })
        .await
    }

    async fn list(&self, query: &RecordQuery) -> Result<Vec<Record>, Error> {
        let RecordQuery { job_name, status, skip, limit } = query.clone();
        let skip = i64::try_from(skip).unwrap_or(i64::MAX);
        let bodies: Vec<(String, String)> = self
            .call(move |connection| {
                let mut select = connection.prepare_cached(
                    "SELECT id, body FROM records WHERE job = ?1 AND (?2 IS NULL OR status = ?2)
                     ORDER BY start DESC, plan DESC, id LIMIT ?3 OFFSET ?4",
                )?;
                let status = status.map(Status::as_str);
                let rows = select
                    .query_map(params![job_name, status, limit, skip], |r| Ok((r.get(0)?, r.get(1)?)))?;
                rows.collect()
            })
            .await?;
        Ok(bodies.iter().filter_map(|(id, body)| readable(id, body)).collect())
    }
}

#[derive(Clone, Copy)]
enum Table {
    Records,
    Conflicts,
}

/// What became of one record.
enum Kept {
    /// It is stored now.
    New,
    /// It, or a better one, was there.
    Before,
    /// Its place is taken by another claim.
    Not,
}

fn store(txn: &Transaction<'_>, table: Table, record: &Record) -> rusqlite::Result<Kept> {
    let (select, upsert) = match table {
        Table::Records => (
            "SELECT body FROM records WHERE id = ?1",
            "INSERT INTO records (id, job, status, start, plan, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT (id) DO UPDATE SET job = ?2, status = ?3, start = ?4, plan = ?5, body = ?6",
        ),
        Table::Conflicts => (
            "SELECT body FROM conflicts WHERE id = ?1",
            "INSERT INTO conflicts (id, job, status, start, plan, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT (id) DO UPDATE SET job = ?2, status = ?3, start = ?4, plan = ?5, body = ?6",
        ),
    };
    let id = record.id.as_str();
    let body: Option<String> = txn.prepare_cached(select)?.query_row([id], |row| row.get(0)).optional()?;
    match body.map(|body| stored(&body).compare(record)) {
        Some(Duplicate::Replay) => return Ok(Kept::Before),
        Some(Duplicate::Conflict) => return Ok(Kept::Not),
        Some(Duplicate::Replace) | None => {}
    }
    let body = serde_json::to_string(record).expect("plain data with string keys is always JSON");
    txn.prepare_cached(upsert)?.execute(params![
        id,
        record.job_name,
        record.status.map(Status::as_str),
        record.start_time.ms(),
        record.plan_time.ms(),
        body
    ])?;
    Ok(Kept::New)
}

fn stored(body: &str) -> Stored {
    serde_json::from_str(body).map_or_else(
        |_newer| {
            let value: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
            Stored::Foreign(value["claim"].as_str().map(str::to_owned))
        },
        |record| Stored::Known(Box::new(record)),
    )
}

fn readable(id: &str, body: &str) -> Option<Record> {
    let record = serde_json::from_str(body);
    record
        .inspect_err(|error| {
            tracing::warn!(event = "record_unreadable", id, %error, "a stored record is left out");
        })
        .ok()
}

/// Sorts SQLite's errors by what the caller does next.
fn failure(error: &rusqlite::Error) -> Error {
    use rusqlite::ErrorCode::{DatabaseBusy, DatabaseLocked, OperationInterrupted, TooBig};
    let text = error.to_string();
    match error.sqlite_error_code() {
        Some(DatabaseBusy | DatabaseLocked | OperationInterrupted) => Error::Unavailable(text),
        Some(TooBig) => Error::Invalid(text),
        _ => Error::Internal(text),
    }
}
