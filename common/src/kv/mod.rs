//! The port to the store that all agree upon: etcd's semantics and no others.
//!
//! Two implementations, [`etcd::EtcdKv`] and (feature `embedded`) [`embedded::EmbeddedKv`]; both pass the one conformance suite in
//! `tests/src/conformance/kv.rs`. A new behaviour enters that suite first.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::stream::BoxStream;

#[cfg(feature = "embedded")]
pub mod embedded;
pub mod etcd;
mod renewing;

/// A store revision: grows by one with every write request, shared by all keys that the request wrote. 0 = before any write.
pub type Revision = i64;

/// A lease's length in whole seconds: rounded up, at least 1.
fn lease_seconds(ttl: Duration) -> u64 {
    ttl.as_secs().saturating_add(u64::from(ttl.subsec_nanos() > 0)).max(1)
}

/// A lease's id; never 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LeaseId(pub i64);

/// A key: any bytes (other hands may write what is not UTF-8); shown with replacement characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Vec<u8>);

impl Key {
    /// The key's bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// What follows `prefix`, when the key begins with it and the rest is UTF-8.
    #[must_use]
    pub fn strip_prefix(&self, prefix: &str) -> Option<&str> {
        std::str::from_utf8(self.0.strip_prefix(prefix.as_bytes())?).ok()
    }
}

impl<T: Into<Vec<u8>>> From<T> for Key {
    fn from(bytes: T) -> Self {
        Self(bytes.into())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

/// A stored key with its value and etcd's bookkeeping.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pair {
    /// The key.
    pub key: Key,
    /// The value; in a delete event empty.
    pub value: Vec<u8>,
    /// Revision of the put that created the key since it was last absent; 0 in a delete event.
    pub create_revision: Revision,
    /// Revision of the last put (in a delete event, of the delete).
    pub mod_revision: Revision,
    /// Puts since creation, from 1; 0 in a delete event.
    pub version: i64,
    /// The lease that the key hangs on.
    pub lease: Option<LeaseId>,
}

/// A half-open range of keys in byte order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Span {
    /// First key of the range.
    pub from: Key,
    /// First key behind the range; `None` = to the end of the key space.
    pub to: Option<Key>,
}

impl Span {
    /// Just this key.
    #[must_use]
    pub fn key(key: impl Into<Key>) -> Self {
        let from = key.into();
        let mut behind = from.0.clone();
        behind.push(0);
        Self { from, to: Some(Key(behind)) }
    }

    /// Every key that begins with `prefix`.
    #[must_use]
    pub fn prefix(prefix: impl Into<Key>) -> Self {
        let from = prefix.into();
        let mut behind = from.0.clone();
        while let Some(last) = behind.pop() {
            if last < u8::MAX {
                behind.push(last + 1);
                return Self { from, to: Some(Key(behind)) };
            }
        }
        Self { from, to: None }
    }

    /// `from` up to, not including, `to`.
    #[must_use]
    pub fn between(from: impl Into<Key>, to: impl Into<Key>) -> Self {
        Self { from: from.into(), to: Some(to.into()) }
    }

    /// The same range, beginning just behind `key`: the next page.
    #[must_use]
    pub fn after(mut self, key: &Key) -> Self {
        let mut behind = key.0.clone();
        behind.push(0);
        self.from = Key(behind);
        self
    }

    /// Whether no key can lie in the range.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        // The empty key does not exist: a range up to the first key is empty as well.
        self.to.as_ref().is_some_and(|to| *to <= self.from || to.0 == [0])
    }

    /// Whether `key` lies in the range.
    #[must_use]
    pub fn contains(&self, key: &Key) -> bool {
        *key >= self.from && self.to.as_ref().is_none_or(|to| key < to)
    }
}

/// What to read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Range {
    /// Which keys.
    pub span: Span,
    /// At most so many pairs; 0 = all.
    pub limit: usize,
    /// Read the state as of this revision; `None` = now. Compacted revisions answer [`Error::Compacted`].
    pub revision: Option<Revision>,
    /// Answer from any member without a round of agreement: may be stale, never torn.
    pub serializable: bool,
}

impl Range {
    /// Everything in `span`, as of now.
    #[must_use]
    pub fn all(span: Span) -> Self {
        Self { span, limit: 0, revision: None, serializable: false }
    }

    /// One key, as of now.
    #[must_use]
    pub fn key(key: impl Into<Key>) -> Self {
        Self::all(Span::key(key))
    }

    /// Every key that begins with `prefix`, as of now.
    #[must_use]
    pub fn prefix(prefix: impl Into<Key>) -> Self {
        Self::all(Span::prefix(prefix))
    }

    /// At most `limit` pairs.
    #[must_use]
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }

    /// As of `revision`.
    #[must_use]
    pub fn at(mut self, revision: Revision) -> Self {
        self.revision = Some(revision);
        self
    }

    /// A stale answer will do.
    #[must_use]
    pub fn serializable(mut self) -> Self {
        self.serializable = true;
        self
    }
}

/// What was read.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RangeReply {
    /// In key order.
    pub pairs: Vec<Pair>,
    /// There are more pairs than `limit` let through.
    pub more: bool,
    /// The store's revision when it answered: a watch from `revision + 1` misses nothing.
    pub revision: Revision,
}

/// How a number is compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Is {
    /// The same.
    Equal,
    /// Not the same.
    NotEqual,
    /// The stored number is greater.
    Greater,
    /// The stored number is less.
    Less,
}

/// One condition of a transaction. An absent key counts as create revision 0, mod revision 0 and no lease; a compare of
/// an absent key's value never holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Compare {
    /// On the create revision.
    CreateRevision(Key, Is, Revision),
    /// On the mod revision.
    ModRevision(Key, Is, Revision),
    /// The key hangs on this lease (`None`: exists without one, or is absent).
    Lease(Key, Option<LeaseId>),
    /// The key has exactly this value.
    Value(Key, Vec<u8>),
    /// No key lies in the span.
    NoneIn(Span),
}

impl Compare {
    /// The key is absent.
    #[must_use]
    pub fn absent(key: impl Into<Key>) -> Self {
        Self::CreateRevision(key.into(), Is::Equal, 0)
    }

    /// The key is there.
    #[must_use]
    pub fn exists(key: impl Into<Key>) -> Self {
        Self::CreateRevision(key.into(), Is::Greater, 0)
    }

    /// The key was last put at `revision`; 0 = it is absent.
    #[must_use]
    pub fn unchanged(key: impl Into<Key>, revision: Revision) -> Self {
        Self::ModRevision(key.into(), Is::Equal, revision)
    }
}

/// One operation of a transaction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Op {
    /// Writes a key; the reply carries the pair that was there before. The key then hangs on `lease`, or on none.
    Put {
        /// The key.
        key: Key,
        /// Its new value.
        value: Vec<u8>,
        /// The lease to hang it on; a dead one refuses the whole transaction with [`Error::LeaseGone`].
        lease: Option<LeaseId>,
    },
    /// Deletes every key in the span; the reply carries the pairs that were there.
    Delete(Span),
    /// Reads.
    Range(Range),
    /// A nested transaction. Its compares see the state before any operation of the whole request.
    Txn(Txn),
}

impl Op {
    /// Writes a key without a lease.
    #[must_use]
    pub fn put(key: impl Into<Key>, value: impl Into<Vec<u8>>) -> Self {
        Self::Put { key: key.into(), value: value.into(), lease: None }
    }

    /// Writes a key that goes with its lease.
    #[must_use]
    pub fn put_leased(key: impl Into<Key>, value: impl Into<Vec<u8>>, lease: LeaseId) -> Self {
        Self::Put { key: key.into(), value: value.into(), lease: Some(lease) }
    }

    /// Deletes one key.
    #[must_use]
    pub fn delete(key: impl Into<Key>) -> Self {
        Self::Delete(Span::key(key))
    }

    /// Reads one key.
    #[must_use]
    pub fn get(key: impl Into<Key>) -> Self {
        Self::Range(Range::key(key))
    }
}

/// `when` all compares hold, the operations of `then`, else those of `otherwise`; all at one revision. At most
/// [`OPS_MAX`] operations in either branch, and no key put twice in the whole request.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Txn {
    /// The conditions.
    pub when: Vec<Compare>,
    /// Done when all hold.
    pub then: Vec<Op>,
    /// Done when one does not.
    pub otherwise: Vec<Op>,
}

/// etcd's default limit on compares, and on operations of a branch, in one transaction.
pub const OPS_MAX: usize = 128;

/// What one operation answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OpReply {
    /// The pair that the put replaced.
    Put(Option<Pair>),
    /// The pairs that were deleted.
    Delete(Vec<Pair>),
    /// What was read.
    Range(RangeReply),
    /// The nested transaction's reply.
    Txn(TxnReply),
}

impl OpReply {
    /// The first pair that the operation read, replaced or deleted.
    #[must_use]
    pub fn first(&self) -> Option<&Pair> {
        match self {
            Self::Put(previous) => previous.as_ref(),
            Self::Delete(pairs) => pairs.first(),
            Self::Range(reply) => reply.pairs.first(),
            Self::Txn(_) => None,
        }
    }
}

/// A transaction's answer.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TxnReply {
    /// All compares held, so `then` was done; else `otherwise`.
    pub succeeded: bool,
    /// The store's revision afterwards: that of the writes, when there were any.
    pub revision: Revision,
    /// One reply for each operation of the branch taken, in order.
    pub replies: Vec<OpReply>,
}

impl TxnReply {
    /// The first pair of the reply at `index`.
    #[must_use]
    pub fn pair(&self, index: usize) -> Option<&Pair> {
        self.replies.get(index).and_then(OpReply::first)
    }

    /// All pairs that the reply at `index` has read.
    #[must_use]
    pub fn pairs(&self, index: usize) -> &[Pair] {
        match self.replies.get(index) {
            Some(OpReply::Range(reply)) => &reply.pairs,
            _ => &[],
        }
    }
}

/// What happened to a key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// The key as it is now; a deleted key has version 0, an empty value and the delete's revision.
    pub pair: Pair,
    /// The key as it was, `None` when it was created by this change (or, with etcd, when compaction has taken it).
    pub previous: Option<Pair>,
}

impl Change {
    /// The key is gone.
    #[must_use]
    pub fn is_delete(&self) -> bool {
        self.pair.version == 0
    }
}

/// All changes of one or more whole revisions, in order; empty = a progress notification.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WatchBatch {
    /// Everything up to and including this revision has been delivered.
    pub revision: Revision,
    /// The changes, in the order of their revisions.
    pub changes: Vec<Change>,
}

/// Ends with an error ([`Error::Compacted`]: list again; anything else: watch again from the revision behind the last batch);
/// never ends silently.
pub type WatchStream = BoxStream<'static, Result<WatchBatch, Error>>;

/// The batches that `next` brings, up to and including its first error.
fn until_error<W, F>(watching: W, next: fn(W) -> F) -> WatchStream
where
    W: Send + 'static,
    F: Future<Output = (Result<WatchBatch, Error>, W)> + Send + 'static,
{
    let stream = futures::stream::unfold(Some(watching), move |watching| async move {
        let (batch, watching) = next(watching?).await;
        let ended = batch.is_err();
        Some((batch, (!ended).then_some(watching)))
    });
    stream.boxed()
}

/// Why the store did not do what was asked; variants differ where the caller does something different next.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Error {
    /// Not applied: try again.
    #[error("store unavailable: {0}")]
    Unavailable(String),
    /// A write whose answer did not come: applied, or not, or applied later. Send the identical transaction again (design P2).
    #[error("no answer from the store, the write may still be applied: {0}")]
    Indeterminate(String),
    /// The revision asked for is gone: list again. Holds the oldest revision that is still there, 0 when unknown.
    #[error("revision compacted, the oldest is {0}")]
    Compacted(Revision),
    /// The lease is not there (any more): register anew.
    #[error("lease gone")]
    LeaseGone,
    /// The request itself is wrong (too many operations, a key put twice): a bug of the caller.
    #[error("invalid request: {0}")]
    Invalid(String),
    /// The credentials are refused.
    #[error("access denied: {0}")]
    Denied(String),
    /// No connection that both sides trust (TLS), or none of the kind that the settings want: nothing was asked of the store. Try again once
    /// that is mended.
    #[error("no secure connection to the store: {0}")]
    Insecure(String),
    /// The settings refer to secrets that cannot be read: nothing was asked of the store. Try again once that is mended.
    #[error("the configuration cannot be read: {0}")]
    Unconfigured(String),
    /// The store has used up its room and says no to all that could make it grow, until somebody has made room. A write may be applied all
    /// the same: etcd does the one that crosses its quota, and answers it so. Treat it as [`Error::Indeterminate`].
    #[error("store full: {0}")]
    Full(String),
    /// The store is broken: report it, try again later.
    #[error("store failed: {0}")]
    Internal(String),
}

/// How much room the store has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Room {
    /// Bytes on the disk of whoever answered: what a quota is compared with. Compaction does not make it smaller, defragmenting does.
    pub bytes: u64,
    /// Of these, the bytes that hold something.
    pub bytes_in_use: u64,
    /// Bytes at which the store refuses to grow; 0 = unknown, or there is no such limit.
    pub quota_bytes: u64,
    /// It refuses to grow, until somebody makes room and says so ([`Error::Full`]).
    pub is_full: bool,
    /// The store's revision, or (with etcd) an earlier one, of a member that lags.
    pub revision: Revision,
}

/// The store.
#[async_trait]
pub trait Kv: Send + Sync {
    /// Reads.
    ///
    /// # Errors
    /// [`Error::Compacted`] for a compacted revision; else try again.
    async fn range(&self, range: Range) -> Result<RangeReply, Error>;

    /// Does a transaction. One without writes does not move the revision.
    ///
    /// # Errors
    /// [`Error::Indeterminate`] as said there; [`Error::LeaseGone`] when a put of the branch taken names a dead lease (nothing is applied).
    async fn txn(&self, txn: Txn) -> Result<TxnReply, Error>;

    /// All changes of the keys in `span` from revision `start` on, whole revisions at a time, each once, in order, with previous values, and a
    /// progress notification now and then while nothing changes. The watch is set up when this returns.
    ///
    /// # Errors
    /// Try again. A compacted `start` is told by the stream's first item.
    async fn watch(&self, span: Span, start: Revision) -> Result<WatchStream, Error>;

    /// A new lease of `ttl` (whole seconds, at least 1). Does not move the revision.
    ///
    /// # Errors
    /// Try again.
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, Error>;

    /// Renews a lease to its full time, which it answers.
    ///
    /// # Errors
    /// [`Error::LeaseGone`]; else try again.
    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, Error>;

    /// The keys that hang on the lease, in order.
    ///
    /// # Errors
    /// [`Error::LeaseGone`]; else try again.
    async fn lease_keys(&self, lease: LeaseId) -> Result<Vec<Key>, Error>;

    /// Ends a lease and deletes its keys, at one revision.
    ///
    /// # Errors
    /// [`Error::LeaseGone`] when there is none; else try again.
    async fn revoke(&self, lease: LeaseId) -> Result<(), Error>;

    /// Forgets history before `revision`: watches and reads from there answer [`Error::Compacted`].
    ///
    /// # Errors
    /// [`Error::Compacted`] when that was done already; else try again.
    async fn compact(&self, revision: Revision) -> Result<(), Error>;

    /// How much room there is. Cheap: whoever answers knows it, without a round of agreement.
    ///
    /// # Errors
    /// Try again.
    async fn room(&self) -> Result<Room, Error>;

    /// Names the cluster that answered last; 0 = none has, or the store has no such name. A backup may be restored under another.
    fn cluster_id(&self) -> u64 {
        0
    }
}
