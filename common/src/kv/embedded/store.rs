//! The store's state and its operations: etcd's semantics over the tables, the leases' time, compaction.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;

use super::rules::compared_key;
use super::tables::{Fault, Tables, broken};
use crate::clock::Stopwatch;
use crate::ids;
use crate::kv::{
    Compare, Error, Is, Key, LeaseId, Op, OpReply, Pair, Range, RangeReply, Revision, Room, Span, Txn,
    TxnReply, WatchBatch,
};

/// Changes that a watch is told at once; a single revision with more is told whole all the same.
const BATCH_MAX: usize = 1000;
/// How often the thread looks around when nobody asks for anything.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Compaction by itself happens this often, ...
const COMPACT_EVERY: Duration = Duration::from_secs(30);
/// ... and keeps what is younger than five minutes, as etcd is usually told to (`--auto-compaction-retention=5m`), ...
const KEEP_TIME: Duration = Duration::from_secs(300);
/// ... and in any case so many revisions: a few megabytes, which let somebody who looks into a small quiet store see its past.
const KEEP_REVISIONS: Revision = 10_000;
/// What compaction has given up is removed in pieces, a piece with each group: that of half a minute of 1,500 fires a second takes eight
/// seconds, and sessions would end meanwhile. A piece is twice as many revisions as the last group has made, so that it keeps up, and at least these.
const PIECE_MIN: Revision = 32;
/// Longest lease, as in etcd.
const LEASE_SECONDS_MAX: i64 = 9_000_000_000;
/// Revision of an empty store, as in etcd.
const FIRST_REVISION: Revision = 1;

/// The state behind the port. Its methods write within the SQLite transaction of the group.
pub(super) struct Store {
    tables: Tables,
    revision: Revision,
    /// The oldest revision that can be read and watched.
    oldest: Revision,
    /// What nobody can ask for any more is removed up to this revision.
    removed: Revision,
    /// How many revisions the last group has made.
    made: Revision,
    /// The three revisions as they are on disk.
    saved: (Revision, Revision, Revision),
    leases: BTreeMap<LeaseId, Lease>,
    /// Revisions of the last minutes with their age, oldest first.
    ages: VecDeque<(Stopwatch, Revision)>,
    looked: Stopwatch,
    /// Held while the directory is ours.
    _lock: Option<File>,
}

struct Lease {
    ttl: Duration,
    renewed: Stopwatch,
}

impl Lease {
    fn left(&self) -> Duration {
        self.ttl.saturating_sub(self.renewed.elapsed())
    }
}

impl Store {
    pub(super) fn open(dir: &Path) -> Result<Self, Error> {
        let cannot = |e: &dyn std::fmt::Display| {
            Error::Internal(format!("the store in {} cannot be opened: {e}", dir.display()))
        };
        std::fs::create_dir_all(dir).map_err(|e| cannot(&e))?;
        let lock = File::create(dir.join("kv.lock")).map_err(|e| cannot(&e))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::Unavailable(format!("another process uses {}", dir.display())));
            }
            Err(TryLockError::Error(e)) => return Err(cannot(&e)),
        }
        let connection = Connection::open(dir.join("kv.sqlite")).map_err(|e| cannot(&e))?;
        Self::new(connection, Some(lock)).map_err(|e| cannot(&e))
    }

    pub(super) fn in_memory() -> Result<Self, Error> {
        Self::new(Connection::open_in_memory().map_err(broken)?, None)
    }

    fn new(connection: Connection, lock: Option<File>) -> Result<Self, Error> {
        let mut store = Self {
            tables: Tables::new(connection)?,
            revision: FIRST_REVISION,
            oldest: 0,
            removed: 0,
            made: 0,
            saved: (0, 0, 0),
            leases: BTreeMap::new(),
            ages: VecDeque::new(),
            looked: Stopwatch::start(),
            _lock: lock,
        };
        store.load().map_err(broken)?;
        Ok(store)
    }

    /// Takes the state from the file; leases that are known keep their time, others begin it.
    fn load(&mut self) -> rusqlite::Result<()> {
        self.revision = self.tables.counter("revision")?.unwrap_or(FIRST_REVISION);
        self.oldest = self.tables.counter("oldest")?.unwrap_or(0);
        // A file without it is of a version that removed all at once.
        self.removed = self.tables.counter("removed")?.unwrap_or(self.oldest);
        self.saved = self.revisions();
        let mut known = std::mem::take(&mut self.leases);
        for (id, seconds) in self.tables.leases()? {
            let begun = || Lease { ttl: Duration::from_secs(seconds), renewed: Stopwatch::start() };
            self.leases.insert(id, known.remove(&id).unwrap_or_else(begun));
        }
        Ok(())
    }

    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    fn revisions(&self) -> (Revision, Revision, Revision) {
        (self.revision, self.oldest, self.removed)
    }

    /// How long the thread may sleep: until the next lease expires; not while there is something left to remove.
    pub(super) fn idle_limit(&self) -> Duration {
        if self.removed < self.oldest {
            return Duration::ZERO;
        }
        self.leases.values().map(Lease::left).min().unwrap_or(LOOK_EVERY).min(LOOK_EVERY)
    }

    /// Begins a group: one SQLite transaction.
    pub(super) fn begin(&mut self) -> rusqlite::Result<()> {
        self.tables.begin()?;
        self.do_what_is_due()
    }

    /// Ends a group: then it is on disk.
    pub(super) fn commit(&mut self) -> rusqlite::Result<()> {
        if self.saved != self.revisions() {
            self.tables.set_counter("revision", self.revision)?;
            self.tables.set_counter("oldest", self.oldest)?;
            self.tables.set_counter("removed", self.removed)?;
        }
        self.tables.commit()?;
        self.made = self.revision - self.saved.0;
        self.saved = self.revisions();
        Ok(())
    }

    /// Goes back to before the group.
    pub(super) fn undo(&mut self) -> rusqlite::Result<()> {
        self.tables.roll_back()?;
        self.load()
    }

    fn do_what_is_due(&mut self) -> rusqlite::Result<()> {
        let expired: Vec<LeaseId> =
            self.leases.iter().filter(|(_, lease)| lease.left().is_zero()).map(|(id, _)| *id).collect();
        for lease in expired {
            self.end_lease(lease)?;
        }
        if self.looked.elapsed() >= COMPACT_EVERY {
            self.looked = Stopwatch::start();
            while self.ages.get(1).is_some_and(|(age, _)| age.elapsed() >= KEEP_TIME) {
                self.ages.pop_front();
            }
            let old = self.ages.front().map(|(age, revision)| (age.elapsed(), *revision));
            let revision = compactable(old, self.revision);
            self.oldest = self.oldest.max(revision);
            self.ages.push_back((Stopwatch::start(), self.revision));
        }
        self.remove_a_piece()
    }

    /// Removes some of what compaction has given up. Until it is gone nobody can tell: reading and watching begin at `oldest`.
    fn remove_a_piece(&mut self) -> rusqlite::Result<()> {
        if self.removed < self.oldest {
            let until = self.oldest.min(self.removed + PIECE_MIN.max(2 * self.made));
            self.tables.compact(self.removed, until)?;
            self.removed = until;
        }
        Ok(())
    }

    pub(super) fn range(&self, range: &Range) -> Result<RangeReply, Fault> {
        self.check_readable(range)?;
        Ok(self.read(range, self.revision)?)
    }

    /// Whether the state that a range asks for is still, and already, there.
    fn check_readable(&self, range: &Range) -> Result<(), Error> {
        match range.revision {
            Some(at) if at > self.revision => {
                Err(Error::Invalid("required revision is a future revision".to_owned()))
            }
            Some(at) if at > 0 && at < self.oldest => Err(Error::Compacted(self.oldest)),
            _ => Ok(()),
        }
    }

    fn read(&self, range: &Range, revision: Revision) -> rusqlite::Result<RangeReply> {
        // One more than is wanted tells whether there are more; -1 is SQLite's "all".
        let limit = match range.limit {
            0 => -1,
            limit => i64::try_from(limit).map_or(-1, |limit| limit.saturating_add(1)),
        };
        let mut pairs = match range.revision {
            Some(at) if at > 0 => self.tables.range_at(&range.span, at, limit)?,
            _ => self.tables.range(&range.span, limit)?,
        };
        let more = range.limit > 0 && pairs.len() > range.limit;
        if more {
            pairs.truncate(range.limit);
        }
        Ok(RangeReply { pairs, more, revision })
    }

    /// Does a transaction that `rules::check` has passed.
    pub(super) fn txn(&mut self, txn: &Txn) -> Result<TxnReply, Fault> {
        let taken = self.decide(txn)?;
        self.check_taken(txn, &taken)?;
        // From here on only SQLite can fail, which undoes everything.
        let mut writing = Writing { revision: self.revision + 1, steps: 0 };
        let mut reply = self.take(txn, &taken, &mut writing)?;
        if writing.steps > 0 {
            self.revision = writing.revision;
        }
        set_revision(&mut reply, self.revision);
        Ok(reply)
    }

    /// Evaluates all compares of the branches taken, before any operation.
    fn decide(&self, txn: &Txn) -> rusqlite::Result<Taken> {
        let mut succeeded = true;
        for compare in &txn.when {
            succeeded = succeeded && self.holds(compare)?;
        }
        let nested = branch(txn, succeeded).iter().filter_map(|op| match op {
            Op::Txn(txn) => Some(self.decide(txn)),
            Op::Put { .. } | Op::Delete(_) | Op::Range(_) => None,
        });
        Ok(Taken { succeeded, nested: nested.collect::<Result<_, _>>()? })
    }

    fn holds(&self, compare: &Compare) -> rusqlite::Result<bool> {
        let pair = || self.tables.get(compared_key(compare));
        Ok(match compare {
            Compare::CreateRevision(_, is, number) => {
                is.holds(pair()?.map_or(0, |p| p.create_revision), *number)
            }
            Compare::ModRevision(_, is, number) => is.holds(pair()?.map_or(0, |p| p.mod_revision), *number),
            Compare::Lease(_, lease) => pair()?.and_then(|p| p.lease) == some_lease(*lease),
            Compare::Value(_, value) => pair()?.is_some_and(|p| p.value == *value),
            Compare::NoneIn(span) => self.tables.range(span, 1)?.is_empty(),
        })
    }

    /// Refuses the whole for a dead lease, or for a revision that cannot be read, in the branches taken.
    fn check_taken(&self, txn: &Txn, taken: &Taken) -> Result<(), Error> {
        let mut nested = taken.nested.iter();
        for op in branch(txn, taken.succeeded) {
            match op {
                Op::Put { lease, .. } => {
                    if some_lease(*lease).is_some_and(|lease| !self.leases.contains_key(&lease)) {
                        return Err(Error::LeaseGone);
                    }
                }
                Op::Range(range) => self.check_readable(range)?,
                Op::Delete(_) => {}
                Op::Txn(txn) => {
                    self.check_taken(txn, nested.next().expect("each nested transaction has an entry"))?;
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, txn: &Txn, taken: &Taken, writing: &mut Writing) -> rusqlite::Result<TxnReply> {
        let mut nested = taken.nested.iter();
        let mut replies = Vec::new();
        for op in branch(txn, taken.succeeded) {
            replies.push(match op {
                Op::Put { key, value, lease } => {
                    OpReply::Put(self.put(key, value, some_lease(*lease), writing)?)
                }
                Op::Delete(span) => OpReply::Delete(self.delete(span, writing)?),
                Op::Range(range) => {
                    let revision = self.revision + i64::from(writing.steps > 0);
                    OpReply::Range(self.read(range, revision)?)
                }
                Op::Txn(txn) => {
                    let taken = nested.next().expect("each nested transaction has an entry");
                    OpReply::Txn(self.take(txn, taken, writing)?)
                }
            });
        }
        Ok(TxnReply { succeeded: taken.succeeded, revision: 0, replies })
    }

    fn put(
        &mut self,
        key: &Key,
        value: &[u8],
        lease: Option<LeaseId>,
        writing: &mut Writing,
    ) -> rusqlite::Result<Option<Pair>> {
        let previous = self.tables.get(key)?;
        let pair = Pair {
            key: key.clone(),
            value: value.to_vec(),
            create_revision: previous.as_ref().map_or(writing.revision, |p| p.create_revision),
            mod_revision: writing.revision,
            version: previous.as_ref().map_or(1, |p| p.version + 1),
            lease,
        };
        self.tables.put(&pair, writing.step())?;
        Ok(previous)
    }

    fn delete(&mut self, span: &Span, writing: &mut Writing) -> rusqlite::Result<Vec<Pair>> {
        let pairs = self.tables.range(span, -1)?;
        for pair in &pairs {
            let tombstone = Pair {
                key: pair.key.clone(),
                value: Vec::new(),
                create_revision: 0,
                mod_revision: writing.revision,
                version: 0,
                lease: None,
            };
            self.tables.delete(&tombstone, writing.step())?;
        }
        Ok(pairs)
    }

    /// The changes of whole revisions from `from` on; the batch's revision says up to where it looked.
    pub(super) fn changes(&self, span: &Span, from: Revision) -> Result<WatchBatch, Fault> {
        if from < self.oldest {
            return Err(Error::Compacted(self.oldest).into());
        }
        let limit = i64::try_from(BATCH_MAX).unwrap_or(i64::MAX).saturating_add(1);
        let mut changes = self.tables.changes(span, from, self.revision, limit)?;
        let mut revision = self.revision;
        if changes.len() > BATCH_MAX {
            // The last revision may not be complete: left for the next batch, unless it is all that there is.
            let cut = changes.last().map_or(from, |change| change.pair.mod_revision);
            changes.retain(|change| change.pair.mod_revision < cut);
            revision = cut - 1;
            if changes.is_empty() {
                changes = self.tables.changes(span, cut, cut, -1)?;
                revision = cut;
            }
        }
        Ok(WatchBatch { revision, changes })
    }

    pub(super) fn grant(&mut self, seconds: u64) -> Result<LeaseId, Fault> {
        let ttl = Duration::from_secs(seconds);
        let seconds = i64::try_from(seconds)
            .ok()
            .filter(|seconds| *seconds <= LEASE_SECONDS_MAX)
            .ok_or_else(|| Error::Invalid(format!("a lease of {seconds} s is too long")))?;
        let id = loop {
            let id = LeaseId(ids::random_below(i64::MAX.unsigned_abs()).cast_signed() + 1);
            if !self.leases.contains_key(&id) {
                break id;
            }
        };
        self.tables.add_lease(id, seconds)?;
        self.leases.insert(id, Lease { ttl, renewed: Stopwatch::start() });
        Ok(id)
    }

    pub(super) fn keep_alive(&mut self, lease: LeaseId) -> Result<Duration, Fault> {
        let lease = self.leases.get_mut(&lease).ok_or(Error::LeaseGone)?;
        lease.renewed = Stopwatch::start();
        Ok(lease.ttl)
    }

    pub(super) fn lease_keys(&self, lease: LeaseId) -> Result<Vec<Key>, Fault> {
        if !self.leases.contains_key(&lease) {
            return Err(Error::LeaseGone.into());
        }
        Ok(self.tables.lease_keys(lease)?)
    }

    pub(super) fn revoke(&mut self, lease: LeaseId) -> Result<(), Fault> {
        if !self.leases.contains_key(&lease) {
            return Err(Error::LeaseGone.into());
        }
        Ok(self.end_lease(lease)?)
    }

    /// Removes a lease and, at one revision, its keys.
    fn end_lease(&mut self, lease: LeaseId) -> rusqlite::Result<()> {
        let mut writing = Writing { revision: self.revision + 1, steps: 0 };
        for key in self.tables.lease_keys(lease)? {
            self.delete(&Span::key(key.as_bytes()), &mut writing)?;
        }
        self.tables.remove_lease(lease)?;
        self.leases.remove(&lease);
        if writing.steps > 0 {
            self.revision = writing.revision;
        }
        Ok(())
    }

    pub(super) fn compact(&mut self, revision: Revision) -> Result<(), Fault> {
        if revision <= self.oldest {
            return Err(Error::Compacted(self.oldest).into());
        }
        if revision > self.revision {
            return Err(Error::Invalid("required revision is a future revision".to_owned()).into());
        }
        self.oldest = revision;
        Ok(())
    }

    pub(super) fn room(&self) -> Result<Room, Fault> {
        let (bytes, bytes_in_use) = self.tables.bytes()?;
        Ok(Room { bytes, bytes_in_use, quota_bytes: 0, is_full: false, revision: self.revision })
    }
}

/// The newest revision that may be the oldest to be kept; `old` is one of which the age is known.
fn compactable(old: Option<(Duration, Revision)>, revision: Revision) -> Revision {
    match old {
        Some((age, old)) if age >= KEEP_TIME => old.min(revision - KEEP_REVISIONS),
        _ => 0,
    }
}

/// Which branch a transaction takes, and each nested one in it.
struct Taken {
    succeeded: bool,
    nested: Vec<Taken>,
}

/// The revision being written, and the number of changes in it so far.
struct Writing {
    revision: Revision,
    steps: i64,
}

impl Writing {
    fn step(&mut self) -> i64 {
        self.steps += 1;
        self.steps
    }
}

fn branch(txn: &Txn, succeeded: bool) -> &[Op] {
    if succeeded { &txn.then } else { &txn.otherwise }
}

fn some_lease(lease: Option<LeaseId>) -> Option<LeaseId> {
    lease.filter(|lease| lease.0 != 0)
}

fn set_revision(reply: &mut TxnReply, revision: Revision) {
    reply.revision = revision;
    for reply in &mut reply.replies {
        if let OpReply::Txn(nested) = reply {
            set_revision(nested, revision);
        }
    }
}

impl Is {
    fn holds(self, stored: i64, asked: i64) -> bool {
        match self {
            Self::Equal => stored == asked,
            Self::NotEqual => stored != asked,
            Self::Greater => stored > asked,
            Self::Less => stored < asked,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compaction_by_itself_keeps_minutes_and_thousands() {
        let check = |old, revision, expected| assert_eq!(compactable(old, revision), expected, "{old:?}");
        check(None, 1_000_000, 0);
        check(Some((KEEP_TIME / 2, 500_000)), 1_000_000, 0);
        check(Some((KEEP_TIME, 500_000)), 1_000_000, 500_000);
        check(Some((KEEP_TIME, 999_000)), 1_000_000, 1_000_000 - KEEP_REVISIONS);
        assert!(compactable(Some((KEEP_TIME, 5)), 10) < 0, "nothing of a small store goes");
    }

    #[test]
    fn compaction_removes_in_pieces_and_goes_on_where_a_process_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        let group = |store: &mut Store, puts: i64| {
            store.begin().unwrap();
            for n in 0..puts {
                let put = Op::put(if n % 2 == 0 { "even" } else { "odd" }, "");
                assert!(store.txn(&Txn { then: vec![put], ..Txn::default() }).is_ok());
            }
            store.commit().unwrap();
        };
        group(&mut store, 10 * PIECE_MIN);
        let newest = store.revision();
        assert!(store.compact(newest).is_ok());
        let past = Range { revision: Some(newest - 1), ..Range::key("odd") };
        assert!(
            matches!(store.range(&past), Err(Fault::Refused(Error::Compacted(oldest))) if oldest == newest)
        );

        store.made = 1;
        group(&mut store, 1);
        let left = store.tables.history_len().unwrap();
        assert!((8 * PIECE_MIN..10 * PIECE_MIN).contains(&left), "{left} are left by the first piece");
        drop(store);
        let mut store = Store::open(dir.path()).unwrap();
        let mut pieces = 0;
        while store.idle_limit().is_zero() {
            group(&mut store, 0);
            pieces += 1;
        }
        assert_eq!(
            store.tables.history_len().unwrap(),
            3,
            "both keys as they were then, and what came since"
        );
        assert!(pieces > 2, "{pieces} pieces");
    }
}
