//! Moves what changes have left in etcd to the store of records. Anybody may, at any time, and several at once: the store of records knows an
//! entry by its id, and a note goes only once its entries are acknowledged.

use crate::clock::Timestamp;
use crate::domain::audit::Note;
use crate::history::History;
use crate::keys;
use crate::kv::{self, Compare, Key, Kv, Op, Pair, Range, Span, Txn};
use crate::run_log;

/// Notes read at once: of an import each may have a megabyte.
const PAGE: usize = 16;

/// So many notes may wait. Somebody who changes something each second for five hours leaves fewer.
pub const WAITING_MAX: u64 = 20_000;
/// So many bytes of notes may wait: a sixteenth of what etcd takes by default.
pub const WAITING_BYTES_MAX: u64 = 128 << 20;

/// Why not all was moved; what was is moved.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store of jobs.
    #[error(transparent)]
    Kv(#[from] kv::Error),
    /// The store of records.
    #[error(transparent)]
    RunLog(#[from] run_log::Error),
}

/// What was moved.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Moved {
    /// So many notes.
    pub notes: usize,
    /// So many were left because they cannot be read: a newer version has put them, or other hands.
    pub unread: usize,
    /// There were more than were to be moved.
    pub more: bool,
}

/// Moves what waits, oldest first, and no more than `most` notes. Once nothing waits, changes are let through again if they were not.
///
/// # Errors
/// What the stores say; those that were moved before are moved.
pub async fn move_waiting(kv: &dyn Kv, history: &dyn History, most: usize) -> Result<Moved, Error> {
    let mut moved = Moved::default();
    let mut span = Span::prefix(keys::AUDIT);
    loop {
        let page = Op::Range(Range::all(span.clone()).limit(PAGE));
        let look = Txn { then: vec![page, Op::get(keys::AUDIT_FULL)], ..Txn::default() };
        let found = kv.txn(look).await?;
        let pairs = found.pairs(0);
        moved.more = match found.replies.first() {
            Some(kv::OpReply::Range(read)) => read.more,
            _ => false,
        };
        let mut entries = Vec::new();
        let mut read = Vec::new();
        for pair in pairs {
            match Note::decode(&pair.value) {
                Ok(note) => {
                    entries.extend(note.into_entries(pair.create_revision));
                    read.push(pair.key.clone());
                }
                Err(why) => {
                    moved.unread += 1;
                    tracing::warn!(key = %pair.key, %why, "what a change left for the audit cannot be read: left alone");
                }
            }
        }
        history.keep(&entries).await?;
        // If this process dies here, whoever moves next keeps the same entries again, which is harmless, and deletes.
        moved.notes += read.len();
        delete(kv, read).await?;
        let Some(last) = pairs.last().filter(|_| moved.more) else {
            if found.pair(1).is_some() {
                let then = vec![Op::delete(keys::AUDIT_FULL)];
                kv.txn(Txn { then, ..Txn::default() }).await?;
            }
            return Ok(moved);
        };
        if moved.notes >= most {
            return Ok(moved);
        }
        span = span.after(&last.key);
    }
}

/// A note never changes: it goes whoever put it, and also when it was put again by a request that had been on its way.
async fn delete(kv: &dyn Kv, notes: Vec<Key>) -> Result<(), kv::Error> {
    if notes.is_empty() {
        return Ok(());
    }
    let then = notes.into_iter().map(|key| Op::Delete(Span::key(key))).collect();
    kv.txn(Txn { then, ..Txn::default() }).await.map(|_| ())
}

/// What waits.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Waiting {
    /// So many notes.
    pub notes: u64,
    /// So many bytes, keys and values.
    pub bytes: u64,
    /// When the oldest was left, by its key; `None` = none waits.
    oldest: Option<Key>,
}

impl Waiting {
    /// Counts what waits.
    ///
    /// # Errors
    /// What the store says.
    pub async fn count(kv: &dyn Kv) -> Result<Self, kv::Error> {
        let mut waiting = Self::default();
        let mut span = Span::prefix(keys::AUDIT);
        loop {
            let found = kv.range(Range::all(span.clone()).limit(PAGE * PAGE).serializable()).await?;
            waiting.notes += found.pairs.len() as u64;
            waiting.bytes += found.pairs.iter().map(size).sum::<u64>();
            if waiting.oldest.is_none() {
                waiting.oldest = found.pairs.first().map(|pair| pair.key.clone());
            }
            match found.pairs.last().filter(|_| found.more) {
                Some(last) => span = span.after(&last.key),
                None => return Ok(waiting),
            }
        }
    }

    /// Whether changes are to be refused until some of it is moved.
    #[must_use]
    pub fn is_too_much(&self) -> bool {
        self.notes >= WAITING_MAX || self.bytes >= WAITING_BYTES_MAX
    }

    /// Has changes refused, but for those that end something. Not if the oldest note is gone by now: whoever moved it has moved others, and
    /// might have looked for this before it was there.
    ///
    /// # Errors
    /// What the store says.
    pub async fn refuse_changes(&self, kv: &dyn Kv, now: Timestamp) -> Result<(), kv::Error> {
        let when = self.oldest.iter().cloned().map(Compare::exists).collect();
        let then = vec![Op::put(keys::AUDIT_FULL, now.ms().to_string())];
        kv.txn(Txn { when, then, otherwise: Vec::new() }).await.map(|_| ())
    }
}

fn size(pair: &Pair) -> u64 {
    (pair.key.as_bytes().len() + pair.value.len()) as u64
}
