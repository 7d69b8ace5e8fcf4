//! What is kept of changes in the file of the embedded store of records.

use async_trait::async_trait;
use rusqlite::types::Value;
use rusqlite::{OptionalExtension as _, TransactionBehavior, params, params_from_iter};

use super::{History, Query, Shelf};
use crate::domain::audit::{Entry, EntryId};
use crate::run_log::Error;
use crate::run_log::embedded::EmbeddedRunLog;

/// The tables, as format 3 of the file has them. A row's key is its number, as with records.
pub(crate) const TABLES: &str = "
    CREATE TABLE audit (
        row INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        thing TEXT NOT NULL,
        name TEXT NOT NULL,
        action TEXT NOT NULL,
        caller TEXT,
        body TEXT NOT NULL
    );
    CREATE INDEX audit_by_name ON audit (thing, name, id);
    CREATE TABLE versions (
        row INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        thing TEXT NOT NULL,
        name TEXT NOT NULL,
        action TEXT NOT NULL,
        caller TEXT,
        body TEXT NOT NULL
    );
    CREATE INDEX versions_by_name ON versions (name, id);
";

const fn table(shelf: Shelf) -> &'static str {
    match shelf {
        Shelf::Audit => "audit",
        Shelf::Versions => "versions",
    }
}

#[async_trait]
impl History for EmbeddedRunLog {
    /// The indexes were made with the tables.
    async fn prepare_history(&self) -> Result<(), Error> {
        Ok(())
    }

    async fn keep(&self, entries: &[Entry]) -> Result<(), Error> {
        let entries = entries.to_vec();
        self.call(move |connection| {
            let txn = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            for entry in &entries {
                let body = serde_json::to_string(entry).expect("plain data with string keys is always JSON");
                let by = entry.origin.by.as_ref().map(|by| by.name.as_str());
                let shelves: &[Shelf] =
                    if entry.is_version() { &[Shelf::Audit, Shelf::Versions] } else { &[Shelf::Audit] };
                for shelf in shelves {
                    let sql = format!(
                        "INSERT OR IGNORE INTO {} (id, thing, name, action, caller, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                        table(*shelf)
                    );
                    let touched = &entry.touched;
                    let values =
                        params![entry.id.as_str(), touched.thing, touched.name, entry.action, by, body];
                    txn.prepare_cached(&sql)?.execute(values)?;
                }
            }
            txn.commit()
        })
        .await
    }

    async fn kept(&self, shelf: Shelf, query: &Query) -> Result<Vec<Entry>, Error> {
        let (filter, mut values) = found(query);
        let sql =
            format!("SELECT id, body FROM {} WHERE {filter} ORDER BY id DESC LIMIT ? OFFSET ?", table(shelf));
        values.extend([Value::from(query.limit), query.skip.into()]);
        let bodies: Vec<(String, String)> = self
            .call(move |connection| {
                let mut select = connection.prepare_cached(&sql)?;
                let rows = select.query_map(params_from_iter(values), |r| Ok((r.get(0)?, r.get(1)?)))?;
                rows.collect()
            })
            .await?;
        let entry = |(id, body): &(String, String)| {
            let unread = |why: &serde_json::Error| {
                tracing::warn!(event = "entry_unreadable", id, %why, "a stored entry is left out");
            };
            serde_json::from_str(body).inspect_err(unread).ok()
        };
        Ok(bodies.iter().filter_map(entry).collect())
    }

    async fn kept_jobs(&self, after: &str, limit: u32) -> Result<Vec<String>, Error> {
        let mut last = after.to_owned();
        self.call(move |connection| {
            let mut next = connection
                .prepare_cached("SELECT name FROM versions WHERE name > ?1 ORDER BY name LIMIT 1")?;
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

    async fn forget(
        &self,
        shelf: Shelf,
        name: Option<&str>,
        below: &EntryId,
        limit: u32,
    ) -> Result<u64, Error> {
        let query = Query { name: name.map(str::to_owned), below: Some(below.clone()), ..Query::default() };
        let (filter, mut values) = found(&query);
        values.push(limit.into());
        let table = table(shelf);
        let old = format!("SELECT row FROM {table} WHERE {filter} ORDER BY id LIMIT ?");
        let sql = format!("DELETE FROM {table} WHERE row IN ({old})");
        self.call(move |connection| {
            Ok(connection.prepare_cached(&sql)?.execute(params_from_iter(values))? as u64)
        })
        .await
    }
}

/// The entries that a query asks for, as a condition and what is put for its question marks.
fn found(query: &Query) -> (String, Vec<Value>) {
    let id = |id: &Option<EntryId>| id.as_ref().map(|id| id.as_str().to_owned());
    let conditions = [
        ("id = ?", id(&query.id)),
        ("thing = ?", query.thing.clone()),
        ("name = ?", query.name.clone()),
        ("action = ?", query.action.clone()),
        ("caller = ?", query.by.clone()),
        ("id >= ?", id(&query.from)),
        ("id < ?", id(&query.below)),
    ];
    let mut filter = "TRUE".to_owned();
    let mut values = Vec::new();
    for (condition, value) in conditions {
        if let Some(value) = value {
            filter.push_str(" AND ");
            filter.push_str(condition);
            values.push(Value::Text(value));
        }
    }
    (filter, values)
}
