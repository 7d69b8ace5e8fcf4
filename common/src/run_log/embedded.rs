//! Records in a file of SQLite: the store of local-dev, and one in memory for tests.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rusqlite::types::Value;
use rusqlite::{
    Connection, OptionalExtension as _, Transaction, TransactionBehavior, params, params_from_iter,
};

use super::batch::{Stored, fold, kept_aside};
use super::{Appended, Duplicate, Error, Place, RecordQuery, Removal, RunLog};
use crate::clock::Timestamp;
use crate::domain::output::Chunk;
use crate::domain::record::{Record, RecordId, Status};
use crate::domain::run::RunId;
use crate::history::embedded as history;

/// The database's name in its directory.
const FILE: &str = "records.sqlite";
/// Format of the tables, kept in `user_version`.
const VERSION: i64 = 3;
/// How long another process's transaction is waited for; ours take milliseconds.
const BUSY_MAX: Duration = Duration::from_secs(3);

/// The tables of format 1. A row's key is its number and not its id: with bodies of up to a megabyte that is three times as fast.
const TABLES: &str = "
    CREATE TABLE records (
        row INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        job TEXT NOT NULL,
        status TEXT,
        start INTEGER NOT NULL,
        plan INTEGER NOT NULL,
        body TEXT NOT NULL
    );
    CREATE INDEX by_job ON records (job, start DESC, plan DESC, id, status);
    CREATE TABLE conflicts (
        row INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        job TEXT NOT NULL,
        status TEXT,
        start INTEGER NOT NULL,
        plan INTEGER NOT NULL,
        body TEXT NOT NULL
    );
";

/// What format 2 adds. `newest_first` serves the query of `list` and keeps it from reading bodies for its filters; `by_claim` finds one run;
/// `by_start` finds what is old enough to be removed.
const SEARCH_AND_OUTPUT: &str = "
    ALTER TABLE records ADD COLUMN claim TEXT;
    ALTER TABLE records ADD COLUMN worker TEXT;
    UPDATE records SET claim = json_extract(body, '$.claim'), worker = json_extract(body, '$.worker');
    DROP INDEX by_job;
    CREATE INDEX newest_first ON records (job, start DESC, plan DESC, id, status, worker);
    CREATE INDEX by_claim ON records (claim) WHERE claim IS NOT NULL;
    CREATE INDEX by_start ON records (start);
    CREATE TABLE output (
        run TEXT NOT NULL,
        slot INTEGER NOT NULL,
        first INTEGER NOT NULL,
        until INTEGER NOT NULL,
        at INTEGER NOT NULL,
        bytes BLOB NOT NULL,
        PRIMARY KEY (run, slot)
    );
    CREATE INDEX output_by_age ON output (at);
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
    pub(crate) async fn call<T: Send + 'static>(
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
    if version < 1 {
        txn.execute_batch(TABLES)?;
    }
    if version < 2 {
        txn.execute_batch(SEARCH_AND_OUTPUT)?;
    }
    if version < 3 {
        txn.execute_batch(history::TABLES)?;
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
        let Found { filter, mut values } = found(query);
        let mut sql = format!("SELECT id, body FROM records WHERE {filter}");
        if let Some(text) = &query.text {
            let has = |field| format!("instr(json_extract(body, '$.{field}'), ?) > 0");
            sql.push_str(&format!(" AND ({} OR {} OR {})", has("output"), has("err"), has("command")));
            values.extend([(); 3].map(|()| Value::Text(text.clone())));
        }
        sql.push_str(NEWEST_FIRST);
        values.extend([integer(query.limit.into()), integer(query.skip)]);
        let bodies: Vec<(String, String)> = self
            .call(move |connection| {
                let mut select = connection.prepare_cached(&sql)?;
                let rows = select.query_map(params_from_iter(values), |r| Ok((r.get(0)?, r.get(1)?)))?;
                rows.collect()
            })
            .await?;
        Ok(bodies.iter().filter_map(|(id, body)| readable(id, body)).collect())
    }

    async fn place(&self, query: &RecordQuery) -> Result<Option<Place>, Error> {
        let Found { filter, mut values } = found(query);
        let sql = format!("SELECT start, plan, id FROM records WHERE {filter}{NEWEST_FIRST}");
        values.extend([integer(1), integer(query.skip)]);
        self.call(move |connection| {
            let mut select = connection.prepare_cached(&sql)?;
            let place = |row: &rusqlite::Row<'_>| {
                Ok(Place {
                    start_time: Timestamp::from_ms(row.get(0)?),
                    plan_time: Timestamp::from_ms(row.get(1)?),
                    id: RecordId::from_text(row.get::<_, String>(2)?),
                })
            };
            select.query_row(params_from_iter(values), place).optional()
        })
        .await
    }

    async fn get(&self, id: &str) -> Result<Option<Record>, Error> {
        let id = id.to_owned();
        let body: Option<(String, String)> = self
            .call(move |connection| {
                let mut select = connection
                    .prepare_cached("SELECT id, body FROM records WHERE id = ?1 OR claim = ?1 LIMIT 1")?;
                select.query_row([id], |row| Ok((row.get(0)?, row.get(1)?))).optional()
            })
            .await?;
        Ok(body.and_then(|(id, body)| readable(&id, &body)))
    }

    async fn put_output(&self, chunks: &[Chunk]) -> Result<(), Error> {
        let chunks = chunks.to_vec();
        self.call(move |connection| {
            let txn = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            for chunk in chunks {
                txn.prepare_cached(
                    "INSERT OR REPLACE INTO output (run, slot, first, until, at, bytes) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                )?
                .execute(params![
                    chunk.run_id.as_str(),
                    chunk.slot,
                    integer(chunk.from),
                    integer(chunk.to()),
                    chunk.at.ms(),
                    chunk.bytes
                ])?;
            }
            txn.commit()
        })
        .await
    }

    async fn output(&self, run_id: &RunId, after: u64) -> Result<Vec<Chunk>, Error> {
        let run_id = run_id.clone();
        self.call(move |connection| {
            let mut select = connection.prepare_cached(
                "SELECT slot, first, at, bytes FROM output WHERE run = ?1 AND until > ?2 ORDER BY first",
            )?;
            let chunk = |row: &rusqlite::Row<'_>| {
                Ok(Chunk {
                    run_id: run_id.clone(),
                    slot: row.get(0)?,
                    from: row.get::<_, i64>(1)?.unsigned_abs(),
                    at: Timestamp::from_ms(row.get(2)?),
                    bytes: row.get(3)?,
                })
            };
            select.query_map(params![run_id.as_str(), integer(after)], chunk)?.collect()
        })
        .await
    }

    async fn jobs(&self, after: &str, limit: u32) -> Result<Vec<String>, Error> {
        let mut last = after.to_owned();
        self.call(move |connection| {
            // One look into the index for each: DISTINCT would walk over all entries of a job to come to the next.
            let mut next =
                connection.prepare_cached("SELECT job FROM records WHERE job > ?1 ORDER BY job LIMIT 1")?;
            let mut jobs = Vec::new();
            while jobs.len() < limit as usize
                && let Some(job) = next.query_row([&last], |row| row.get::<_, String>(0)).optional()?
            {
                last.clone_from(&job);
                jobs.push(job);
            }
            Ok(jobs)
        })
        .await
    }

    async fn remove(&self, what: &Removal, limit: u32) -> Result<u64, Error> {
        const ENDED: &str = "json_extract(body, '$.endTime') <";
        let statements: Vec<(String, Vec<Value>)> = match what {
            Removal::OutputOf(runs) => {
                let of = |run: &RunId| ("run = ?".to_owned(), vec![Value::Text(run.as_str().to_owned())]);
                let of = runs.iter().map(of);
                of.map(|(filter, values)| (format!("DELETE FROM output WHERE {filter}"), values)).collect()
            }
            Removal::OutputBefore(time) => {
                vec![("DELETE FROM output WHERE at < ?".to_owned(), vec![time.ms().into()])]
            }
            Removal::RecordsBefore(time) => {
                let old = format!("start < ? AND {ENDED} ? ORDER BY start LIMIT ?");
                let sql = format!("DELETE FROM records WHERE row IN (SELECT row FROM records WHERE {old})");
                vec![(sql, vec![time.ms().into(), time.ms().into(), integer(limit.into())])]
            }
            Removal::RecordsBehind(job, place, time) => {
                let (job_name, after, to) = (job.clone(), Some(place.clone()), Some(*time));
                let query = RecordQuery { job_name, after, to, ..RecordQuery::default() };
                let Found { filter, mut values } = found(&query);
                values.extend([time.ms().into(), integer(limit.into()), integer(0)]);
                let old = format!("{filter} AND {ENDED} ?{NEWEST_FIRST}");
                let sql = format!("DELETE FROM records WHERE row IN (SELECT row FROM records WHERE {old})");
                vec![(sql, values)]
            }
        };
        self.call(move |connection| {
            let txn = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let mut removed = 0;
            for (sql, values) in statements {
                removed += txn.prepare_cached(&sql)?.execute(params_from_iter(values))? as u64;
            }
            txn.commit()?;
            Ok(removed)
        })
        .await
    }
}

/// The order of `list`, a limit, and how many are left out.
const NEWEST_FIRST: &str = " ORDER BY start DESC, plan DESC, id LIMIT ? OFFSET ?";

/// The records that a query asks for, as a condition and what is put for its question marks.
struct Found {
    filter: String,
    values: Vec<Value>,
}

/// All of the query that the index can tell.
fn found(query: &RecordQuery) -> Found {
    // An equal claim is one record: better found by that than by looking at all of the job, which the plus sign keeps it from.
    let job = if query.run_id.is_some() { "+job = ?" } else { "job = ?" };
    let mut found = Found { filter: job.to_owned(), values: vec![Value::Text(query.job_name.clone())] };
    let mut and = |condition: &str, values: Vec<Value>| {
        found.filter.push_str(" AND ");
        found.filter.push_str(condition);
        found.values.extend(values);
    };
    if let Some(status) = query.status {
        and("status = ?", vec![Value::Text(status.as_str().to_owned())]);
    }
    if let Some(from) = query.from {
        and("start >= ?", vec![from.ms().into()]);
    }
    if let Some(to) = query.to {
        and("start < ?", vec![to.ms().into()]);
    }
    if let Some(worker) = &query.worker {
        and("worker = ?", vec![Value::Text(worker.clone())]);
    }
    if let Some(run_id) = &query.run_id {
        and("claim = ?", vec![Value::Text(run_id.as_str().to_owned())]);
    }
    // The first comparison is what the index is entered by; the others decide among equal times.
    let at = |place: &Place| -> Vec<Value> {
        let (start, plan) = (place.start_time.ms(), place.plan_time.ms());
        let id = Value::Text(place.id.as_str().to_owned());
        vec![start.into(), start.into(), plan.into(), plan.into(), id]
    };
    if let Some(place) = &query.after {
        and("start <= ? AND (start < ? OR plan < ? OR (plan = ? AND id > ?))", at(place));
    }
    if let Some(place) = &query.until {
        and("start >= ? AND (start > ? OR plan > ? OR (plan = ? AND id <= ?))", at(place));
    }
    found
}

fn integer(number: u64) -> Value {
    i64::try_from(number).unwrap_or(i64::MAX).into()
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
            "INSERT INTO records (id, job, status, start, plan, body, claim, worker) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
             ON CONFLICT (id) DO UPDATE SET job = ?2, status = ?3, start = ?4, plan = ?5, body = ?6, claim = ?7, worker = ?8",
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
    let mut values: Vec<Value> = vec![
        Value::Text(id.to_owned()),
        Value::Text(record.job_name.clone()),
        text_or_null(record.status.map(Status::as_str)),
        record.start_time.ms().into(),
        record.plan_time.ms().into(),
        Value::Text(body),
    ];
    if let Table::Records = table {
        values.push(text_or_null(record.claim.as_ref().map(RunId::as_str)));
        values.push(text_or_null(record.worker.as_deref()));
    }
    txn.prepare_cached(upsert)?.execute(params_from_iter(values))?;
    Ok(Kept::New)
}

fn text_or_null(text: Option<&str>) -> Value {
    text.map_or(Value::Null, |text| Value::Text(text.to_owned()))
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
