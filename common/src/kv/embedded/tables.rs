//! The tables, and the only module that speaks SQL to them.
//!
//! `pairs` is the present, `history` every change since the last compaction (and of each key the last one before it, so that the state at
//! every later revision can be told). Nothing here decides anything.

use rusqlite::{CachedStatement, Connection, OptionalExtension, Row, params};

use crate::kv::{Change, Error, Key, LeaseId, Pair, Revision, Span};

/// Why a request was not done.
pub(super) enum Fault {
    /// It is refused, and nothing was written for it.
    Refused(Error),
    /// SQLite failed: what the group has written so far is undone.
    Broken(rusqlite::Error),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Broken(error)
    }
}

/// What SQLite said, for the caller.
#[expect(clippy::needless_pass_by_value, reason = "it is called by map_err")]
pub(super) fn broken(error: rusqlite::Error) -> Error {
    Error::Internal(format!("SQLite: {error}"))
}

type Result<T> = rusqlite::Result<T>;

/// Version of the tables below; a file with a higher one is left alone.
const SCHEMA: i64 = 1;

const TABLES: &str = "
    CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE pairs (
        key BLOB PRIMARY KEY, value BLOB NOT NULL, create_revision INTEGER NOT NULL, revision INTEGER NOT NULL,
        version INTEGER NOT NULL, lease INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX pairs_by_lease ON pairs (lease, key) WHERE lease <> 0;
    CREATE TABLE history (
        revision INTEGER NOT NULL, step INTEGER NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL,
        create_revision INTEGER NOT NULL, version INTEGER NOT NULL, lease INTEGER NOT NULL, PRIMARY KEY (revision, step)
    ) WITHOUT ROWID;
    CREATE INDEX history_by_key ON history (key, revision, step);
    CREATE TABLE leases (id INTEGER PRIMARY KEY, seconds INTEGER NOT NULL);
";

const COLUMNS: &str = "key, value, create_revision, revision, version, lease";

/// The connection.
pub(super) struct Tables {
    connection: Connection,
}

impl Tables {
    /// Makes the tables, or finds them.
    pub(super) fn new(connection: Connection) -> std::result::Result<Self, Error> {
        connection.set_prepared_statement_cache_capacity(64); // more than there are statements below
        connection
            // The answer to a write says that it is on disk: FULL syncs the log with every commit.
            .execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;")
            .map_err(broken)?;
        let version: i64 =
            connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(broken)?;
        match version {
            0 => connection
                .execute_batch(&format!("BEGIN; {TABLES} PRAGMA user_version = {SCHEMA}; COMMIT;"))
                .map_err(broken)?,
            SCHEMA => {}
            newer => {
                return Err(Error::Internal(format!(
                    "the file has format {newer}, this program knows {SCHEMA}"
                )));
            }
        }
        Ok(Self { connection })
    }

    pub(super) fn begin(&self) -> Result<()> {
        self.connection.execute_batch("BEGIN")
    }

    pub(super) fn commit(&self) -> Result<()> {
        self.connection.execute_batch("COMMIT")
    }

    pub(super) fn roll_back(&self) -> Result<()> {
        // SQLite has ended it by itself after some failures.
        if self.connection.is_autocommit() { Ok(()) } else { self.connection.execute_batch("ROLLBACK") }
    }

    fn sql(&self, text: &str) -> Result<CachedStatement<'_>> {
        self.connection.prepare_cached(text)
    }

    pub(super) fn counter(&self, name: &str) -> Result<Option<i64>> {
        self.sql("SELECT value FROM counters WHERE name = ?1")?.query_row([name], |row| row.get(0)).optional()
    }

    pub(super) fn set_counter(&self, name: &str, value: i64) -> Result<()> {
        self.sql("INSERT OR REPLACE INTO counters VALUES (?1, ?2)")?.execute(params![name, value]).map(drop)
    }

    pub(super) fn get(&self, key: &Key) -> Result<Option<Pair>> {
        self.sql(&format!("SELECT {COLUMNS} FROM pairs WHERE key = ?1"))?
            .query_row([key.as_bytes()], pair)
            .optional()
    }

    /// The present pairs of a range, in key order.
    pub(super) fn range(&self, span: &Span, limit: i64) -> Result<Vec<Pair>> {
        let text = format!("SELECT {COLUMNS} FROM pairs WHERE {} ORDER BY key LIMIT ?3", within(span));
        let (from, to) = bounds(span);
        self.sql(&text)?.query_map(params![from, to, limit], pair)?.collect()
    }

    /// The pairs of a range as they were at `revision`, in key order.
    pub(super) fn range_at(&self, span: &Span, revision: Revision, limit: i64) -> Result<Vec<Pair>> {
        let text = format!(
            "SELECT {COLUMNS} FROM history WHERE {} AND revision <= ?4 AND version > 0 AND NOT EXISTS (
                 SELECT 1 FROM history AS newer WHERE newer.key = history.key AND newer.revision <= ?4
                 AND (newer.revision, newer.step) > (history.revision, history.step)
             ) ORDER BY key LIMIT ?3",
            within(span)
        );
        let (from, to) = bounds(span);
        self.sql(&text)?.query_map(params![from, to, limit, revision], pair)?.collect()
    }

    pub(super) fn put(&self, pair: &Pair, step: i64) -> Result<()> {
        self.sql("INSERT OR REPLACE INTO pairs VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?.execute(params![
            pair.key.as_bytes(),
            pair.value,
            pair.create_revision,
            pair.mod_revision,
            pair.version,
            pair.lease.map_or(0, |lease| lease.0)
        ])?;
        self.record(pair, step)
    }

    /// Deletes a present key; `tombstone` is what the history keeps of it.
    pub(super) fn delete(&self, tombstone: &Pair, step: i64) -> Result<()> {
        self.sql("DELETE FROM pairs WHERE key = ?1")?.execute([tombstone.key.as_bytes()])?;
        self.record(tombstone, step)
    }

    fn record(&self, pair: &Pair, step: i64) -> Result<()> {
        self.sql("INSERT INTO history VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?
            .execute(params![
                pair.mod_revision,
                step,
                pair.key.as_bytes(),
                pair.value,
                pair.create_revision,
                pair.version,
                pair.lease.map_or(0, |lease| lease.0)
            ])
            .map(drop)
    }

    /// At most `limit` changes of a range from revision `from` through `through`, with the pairs that they replaced.
    pub(super) fn changes(
        &self,
        span: &Span,
        from: Revision,
        through: Revision,
        limit: i64,
    ) -> Result<Vec<Change>> {
        let text = format!(
            "SELECT {COLUMNS} FROM history WHERE {} AND revision BETWEEN ?4 AND ?5
             ORDER BY revision, step LIMIT ?3",
            // The unary plus keeps SQLite from sorting all changes of the range that ever were.
            within(span).replace("key", "+key")
        );
        let (first, behind) = bounds(span);
        let now: Vec<Pair> = self
            .sql(&text)?
            .query_map(params![first, behind, limit, from, through], pair)?
            .collect::<Result<_>>()?;
        now.into_iter().map(|pair| Ok(Change { previous: self.before(&pair)?, pair })).collect()
    }

    /// The key as it was before the revision of `pair`, unless compaction has taken that.
    fn before(&self, pair: &Pair) -> Result<Option<Pair>> {
        let text = format!(
            "SELECT {COLUMNS} FROM history WHERE key = ?1 AND revision < ?2 ORDER BY revision DESC, step DESC LIMIT 1"
        );
        let before = self
            .sql(&text)?
            .query_row(params![pair.key.as_bytes(), pair.mod_revision], self::pair)
            .optional()?;
        Ok(before.filter(|pair| pair.version > 0))
    }

    /// Forgets what nobody can ask for any more once `revision` is the oldest; for `done` this was done before.
    pub(super) fn compact(&self, done: Revision, revision: Revision) -> Result<()> {
        // What has been replaced since then and until `revision`. Replaced before: an earlier compaction took it.
        self.sql(
            "DELETE FROM history WHERE (revision, step) IN (
                 SELECT older.revision, older.step FROM history AS newer JOIN history AS older ON older.key = newer.key
                 WHERE newer.revision BETWEEN ?1 AND ?2 AND older.revision < ?2
                 AND (older.revision, older.step) < (newer.revision, newer.step)
             )",
        )?
        .execute([done, revision])?;
        self.sql("DELETE FROM history WHERE revision >= ?1 AND revision < ?2 AND version = 0")?
            .execute([done, revision])
            .map(drop)
    }

    /// Rows of the history.
    #[cfg(test)]
    pub(super) fn history_len(&self) -> Result<i64> {
        self.sql("SELECT count(*) FROM history")?.query_row([], |row| row.get(0))
    }

    /// Bytes of the file without its journal, and how many of them are in use.
    pub(super) fn bytes(&self) -> Result<(u64, u64)> {
        let ask = |what| self.sql(what)?.query_row([], |row| Ok(row.get::<_, i64>(0)?.unsigned_abs()));
        let page = ask("PRAGMA page_size")?;
        let (pages, free) = (ask("PRAGMA page_count")?, ask("PRAGMA freelist_count")?);
        Ok((pages * page, pages.saturating_sub(free) * page))
    }

    pub(super) fn leases(&self) -> Result<Vec<(LeaseId, u64)>> {
        self.sql("SELECT id, seconds FROM leases")?
            .query_map([], |row| Ok((LeaseId(row.get(0)?), row.get::<_, i64>(1)?.unsigned_abs())))?
            .collect()
    }

    pub(super) fn add_lease(&self, lease: LeaseId, seconds: i64) -> Result<()> {
        self.sql("INSERT INTO leases VALUES (?1, ?2)")?.execute([lease.0, seconds]).map(drop)
    }

    pub(super) fn remove_lease(&self, lease: LeaseId) -> Result<()> {
        self.sql("DELETE FROM leases WHERE id = ?1")?.execute([lease.0]).map(drop)
    }

    /// The keys that hang on a lease, in order.
    pub(super) fn lease_keys(&self, lease: LeaseId) -> Result<Vec<Key>> {
        self.sql("SELECT key FROM pairs WHERE lease = ?1 AND lease <> 0 ORDER BY key")?
            .query_map([lease.0], |row| Ok(Key::from(row.get::<_, Vec<u8>>(0)?)))?
            .collect()
    }
}

/// A condition for each of the two kinds of range: SQLite reads to the end of the table when the bound is an OR.
fn within(span: &Span) -> &'static str {
    if span.to.is_some() { "key >= ?1 AND key < ?2" } else { "key >= ?1 AND ?2 IS NULL" }
}

fn bounds(span: &Span) -> (&[u8], Option<&[u8]>) {
    (span.from.as_bytes(), span.to.as_ref().map(Key::as_bytes))
}

fn pair(row: &Row<'_>) -> Result<Pair> {
    let lease: i64 = row.get(5)?;
    Ok(Pair {
        key: Key::from(row.get::<_, Vec<u8>>(0)?),
        value: row.get(1)?,
        create_revision: row.get(2)?,
        mod_revision: row.get(3)?,
        version: row.get(4)?,
        lease: (lease != 0).then_some(LeaseId(lease)),
    })
}
