//! The store in plain maps: etcd's semantics as [`common::kv`] has them, in one thread. Its leases end when their time in the world has come.

use std::collections::BTreeMap;
use std::time::Duration;

use common::kv::embedded::check;
use common::kv::{
    Change, Compare, Error, Is, Key, LeaseId, Op, OpReply, Pair, Range, RangeReply, Revision, Span, Txn,
    TxnReply, WatchBatch,
};

/// Revision of an empty store, as in etcd.
const FIRST_REVISION: Revision = 1;

/// The whole state. A clone is a backup.
#[derive(Clone)]
pub(super) struct Store {
    pairs: BTreeMap<Key, Pair>,
    /// Every change since the last compaction, in order.
    history: Vec<Change>,
    revision: Revision,
    /// The oldest revision that can be read and watched.
    oldest: Revision,
    leases: BTreeMap<LeaseId, Lease>,
    leases_granted: i64,
}

#[derive(Clone)]
struct Lease {
    ttl_ms: i64,
    /// When it ends, unless it is renewed.
    ends_at: i64,
}

/// Which branch a transaction takes, and each nested one in it: decided before any operation.
struct Taken {
    succeeded: bool,
    nested: Vec<Taken>,
}

impl Store {
    pub(super) fn new() -> Self {
        Self {
            pairs: BTreeMap::new(),
            history: Vec::new(),
            revision: FIRST_REVISION,
            oldest: 0,
            leases: BTreeMap::new(),
            leases_granted: 0,
        }
    }

    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    pub(super) fn get(&self, key: impl Into<Key>) -> Option<&Pair> {
        self.pairs.get(&key.into())
    }

    /// The pairs whose keys begin with `prefix`, in order.
    pub(super) fn prefix<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a Pair> {
        let from = self.pairs.range(Key::from(prefix)..).map(|(_, pair)| pair);
        from.take_while(move |pair| pair.key.as_bytes().starts_with(prefix.as_bytes()))
    }

    pub(super) fn range(&self, range: &Range) -> Result<RangeReply, Error> {
        self.check_readable(range)?;
        Ok(self.read(range, self.revision))
    }

    /// That revision, or the oldest one that can be read.
    pub(super) fn readable(&self, revision: Revision) -> Revision {
        revision.max(self.oldest).max(FIRST_REVISION)
    }

    fn check_readable(&self, range: &Range) -> Result<(), Error> {
        match range.revision {
            Some(at) if at > self.revision => {
                Err(Error::Invalid("required revision is a future revision".to_owned()))
            }
            Some(at) if at > 0 && at < self.oldest => Err(Error::Compacted(self.oldest)),
            _ => Ok(()),
        }
    }

    fn read(&self, range: &Range, revision: Revision) -> RangeReply {
        let mut pairs = match range.revision {
            Some(at) if at > 0 => self.as_of(&range.span, at),
            _ => self.within(&range.span),
        };
        let more = range.limit > 0 && pairs.len() > range.limit;
        if more {
            pairs.truncate(range.limit);
        }
        RangeReply { pairs, more, revision }
    }

    fn within(&self, span: &Span) -> Vec<Pair> {
        let from = self.pairs.range(&span.from..).map(|(_, pair)| pair);
        from.take_while(|pair| span.contains(&pair.key)).cloned().collect()
    }

    /// The present, with every later change undone.
    fn as_of(&self, span: &Span, at: Revision) -> Vec<Pair> {
        let mut pairs: BTreeMap<Key, Pair> =
            self.within(span).into_iter().map(|pair| (pair.key.clone(), pair)).collect();
        for change in self.history.iter().rev().take_while(|change| change.pair.mod_revision > at) {
            let key = &change.pair.key;
            if span.contains(key) {
                match &change.previous {
                    Some(previous) => pairs.insert(key.clone(), previous.clone()),
                    None => pairs.remove(key),
                };
            }
        }
        pairs.into_values().collect()
    }

    pub(super) fn txn(&mut self, txn: &Txn) -> Result<TxnReply, Error> {
        check(txn)?;
        let taken = self.decide(txn);
        self.check_taken(txn, &taken)?;
        let writing = self.revision + 1;
        let changes = self.history.len();
        let mut reply = self.take(txn, &taken, writing, changes);
        if self.history.len() > changes {
            self.revision = writing;
        }
        set_revision(&mut reply, self.revision);
        Ok(reply)
    }

    fn decide(&self, txn: &Txn) -> Taken {
        let succeeded = txn.when.iter().all(|compare| self.holds(compare));
        let nested = branch(txn, succeeded).iter().filter_map(|op| match op {
            Op::Txn(nested) => Some(self.decide(nested)),
            Op::Put { .. } | Op::Delete(_) | Op::Range(_) => None,
        });
        Taken { succeeded, nested: nested.collect() }
    }

    fn holds(&self, compare: &Compare) -> bool {
        let is = |is: &Is, stored: i64, asked: &i64| match is {
            Is::Equal => stored == *asked,
            Is::NotEqual => stored != *asked,
            Is::Greater => stored > *asked,
            Is::Less => stored < *asked,
        };
        let pair = |key| self.pairs.get(key);
        match compare {
            Compare::CreateRevision(key, how, number) => {
                is(how, pair(key).map_or(0, |p| p.create_revision), number)
            }
            Compare::ModRevision(key, how, number) => {
                is(how, pair(key).map_or(0, |p| p.mod_revision), number)
            }
            Compare::Lease(key, lease) => pair(key).and_then(|p| p.lease) == some_lease(*lease),
            Compare::Value(key, value) => pair(key).is_some_and(|p| p.value == *value),
            Compare::NoneIn(span) => self.within(span).is_empty(),
        }
    }

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
                Op::Txn(txn) => self.check_taken(txn, nested.next().unwrap())?,
            }
        }
        Ok(())
    }

    /// `changes`: how many there were before the request.
    fn take(&mut self, txn: &Txn, taken: &Taken, writing: Revision, changes: usize) -> TxnReply {
        let mut nested = taken.nested.iter();
        let mut replies = Vec::new();
        for op in branch(txn, taken.succeeded) {
            replies.push(match op {
                Op::Put { key, value, lease } => {
                    OpReply::Put(self.put(key, value, some_lease(*lease), writing))
                }
                Op::Delete(span) => OpReply::Delete(self.delete(span, writing)),
                Op::Range(range) => {
                    let wrote = self.history.len() > changes;
                    OpReply::Range(self.read(range, if wrote { writing } else { self.revision }))
                }
                Op::Txn(txn) => OpReply::Txn(self.take(txn, nested.next().unwrap(), writing, changes)),
            });
        }
        TxnReply { succeeded: taken.succeeded, revision: 0, replies }
    }

    fn put(&mut self, key: &Key, value: &[u8], lease: Option<LeaseId>, writing: Revision) -> Option<Pair> {
        let previous = self.pairs.get(key).cloned();
        let pair = Pair {
            key: key.clone(),
            value: value.to_vec(),
            create_revision: previous.as_ref().map_or(writing, |p| p.create_revision),
            mod_revision: writing,
            version: previous.as_ref().map_or(1, |p| p.version + 1),
            lease,
        };
        self.pairs.insert(key.clone(), pair.clone());
        self.history.push(Change { pair, previous: previous.clone() });
        previous
    }

    fn delete(&mut self, span: &Span, writing: Revision) -> Vec<Pair> {
        let gone = self.within(span);
        for previous in &gone {
            let key = previous.key.clone();
            self.pairs.remove(&key);
            let pair = Pair {
                key,
                value: Vec::new(),
                create_revision: 0,
                mod_revision: writing,
                version: 0,
                lease: None,
            };
            self.history.push(Change { pair, previous: Some(previous.clone()) });
        }
        gone
    }

    /// Every change from `from` on.
    pub(super) fn changes_since(&self, from: Revision) -> &[Change] {
        let begin = self.history.partition_point(|change| change.pair.mod_revision < from);
        &self.history[begin..]
    }

    /// What a watch is told.
    pub(super) fn changes(&self, span: &Span, from: Revision) -> Result<WatchBatch, Error> {
        if from < self.oldest {
            return Err(Error::Compacted(self.oldest));
        }
        let told = self.changes_since(from).iter().filter(|change| span.contains(&change.pair.key));
        Ok(WatchBatch { revision: self.revision, changes: told.map(|change| self.told(change)).collect() })
    }

    /// A watch is told the value as it was before the whole revision, which may have changed the key twice.
    fn told(&self, change: &Change) -> Change {
        let of_revision = self.changes_since(change.pair.mod_revision);
        let first = of_revision.iter().find(|other| other.pair.key == change.pair.key).unwrap_or(change);
        Change { pair: change.pair.clone(), previous: first.previous.clone() }
    }

    pub(super) fn grant(&mut self, ttl: Duration, now: i64) -> LeaseId {
        self.leases_granted += 1;
        let id = LeaseId(self.leases_granted);
        let ttl_ms = i64::try_from(ttl.as_millis()).unwrap();
        self.leases.insert(id, Lease { ttl_ms, ends_at: now + ttl_ms });
        id
    }

    pub(super) fn keep_alive(&mut self, lease: LeaseId, now: i64) -> Result<Duration, Error> {
        let lease = self.leases.get_mut(&lease).ok_or(Error::LeaseGone)?;
        lease.ends_at = now + lease.ttl_ms;
        Ok(Duration::from_millis(lease.ttl_ms.unsigned_abs()))
    }

    /// When the lease ends; `None` = it has.
    pub(super) fn lease_ends_at(&self, lease: LeaseId) -> Option<i64> {
        self.leases.get(&lease).map(|lease| lease.ends_at)
    }

    pub(super) fn lease_keys(&self, lease: LeaseId) -> Result<Vec<Key>, Error> {
        if !self.leases.contains_key(&lease) {
            return Err(Error::LeaseGone);
        }
        let hang_on_it = self.pairs.values().filter(|pair| pair.lease == Some(lease));
        Ok(hang_on_it.map(|pair| pair.key.clone()).collect())
    }

    pub(super) fn revoke(&mut self, lease: LeaseId) -> Result<(), Error> {
        let keys = self.lease_keys(lease)?;
        let writing = self.revision + 1;
        for key in &keys {
            self.delete(&Span::key(key.clone()), writing);
        }
        self.leases.remove(&lease);
        self.revision += i64::from(!keys.is_empty());
        Ok(())
    }

    pub(super) fn compact(&mut self, revision: Revision) -> Result<(), Error> {
        if revision <= self.oldest {
            return Err(Error::Compacted(self.oldest));
        }
        if revision > self.revision {
            return Err(Error::Invalid("required revision is a future revision".to_owned()));
        }
        self.history.retain(|change| change.pair.mod_revision >= revision);
        self.oldest = revision;
        Ok(())
    }

    /// The state as it was at the backup, over which what the store is now is put. Leases begin their time anew; ids that were given
    /// since are not given again.
    pub(super) fn restored(&self, backup: &Self, now: i64) -> Self {
        let mut restored = backup.clone();
        restored.leases_granted = self.leases_granted;
        for lease in restored.leases.values_mut() {
            lease.ends_at = now + lease.ttl_ms;
        }
        restored
    }

    /// Every lease with its end.
    pub(super) fn leases(&self) -> impl Iterator<Item = (LeaseId, i64)> + '_ {
        self.leases.iter().map(|(id, lease)| (*id, lease.ends_at))
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
