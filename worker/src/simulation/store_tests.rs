//! The store in maps against the embedded one: the same transactions, the same answers.

use std::collections::BTreeMap;
use std::time::Duration;

use common::kv::embedded::EmbeddedKv;
use common::kv::{
    Change, Compare, Error, Is, Kv, LeaseId, Op, OpReply, Pair, Range, RangeReply, Span, Txn, TxnReply,
};
use futures::StreamExt as _;

use super::dice::Dice;
use super::store::Store;

const KEYS: [&str; 6] = ["a", "b", "b/1", "b/2", "c", "d"];
const TTL: Duration = Duration::from_secs(3600);

/// Draws requests; `leases` are those of one of the two stores.
struct Requests<'a> {
    dice: &'a mut Dice,
    revision: i64,
}

/// A lease by its number; each store has its own id for it.
const LEASES: i64 = 4;

impl Requests<'_> {
    fn key(&mut self) -> &'static str {
        self.dice.one_of::<&'static str>(&KEYS)
    }

    fn span(&mut self) -> Span {
        let key = self.key();
        match self.dice.below(4) {
            0 => Span::prefix(key),
            1 => Span::between(key, self.key()),
            2 => Span::prefix(""),
            _ => Span::key(key),
        }
    }

    /// One that begins with a key, as every compare does.
    fn some_span(&mut self) -> Span {
        let key = self.key();
        if self.dice.percent(50) { Span::prefix(key) } else { Span::between(key, "z") }
    }

    fn lease(&mut self) -> Option<LeaseId> {
        let number = self.dice.below(LEASES + 3);
        (number > 0 && number <= LEASES).then_some(LeaseId(number))
    }

    fn compare(&mut self) -> Compare {
        let key = self.key().into();
        let is = *self.dice.one_of(&[Is::Equal, Is::NotEqual, Is::Greater, Is::Less]);
        let number = if self.dice.percent(40) { 0 } else { self.dice.between(1, self.revision) };
        match self.dice.below(7) {
            6 => Compare::NoneIn(self.some_span()),
            0 | 1 => Compare::CreateRevision(key, is, number),
            2 | 3 => Compare::ModRevision(key, is, number),
            4 => Compare::Lease(key, self.lease()),
            _ => Compare::Value(key, self.value()),
        }
    }

    fn value(&mut self) -> Vec<u8> {
        vec![u8::try_from(self.dice.below(3)).unwrap()]
    }

    fn range(&mut self) -> Range {
        let mut range = Range::all(self.span());
        if self.dice.percent(30) {
            range = range.limit(usize::try_from(self.dice.below(4)).unwrap());
        }
        if self.dice.percent(25) {
            range = range.at(self.dice.between(0, self.revision + 1));
        }
        range
    }

    fn txn(&mut self, depth: u32) -> Txn {
        let list = |dice: &mut Dice| 0..dice.below(4);
        let when = list(self.dice).map(|_| self.compare()).collect();
        let then = list(self.dice).map(|_| self.op(depth)).collect();
        let otherwise = list(self.dice).map(|_| self.op(depth)).collect();
        Txn { when, then, otherwise }
    }

    fn op(&mut self, depth: u32) -> Op {
        match self.dice.below(8) {
            0..=2 => Op::Put { key: self.key().into(), value: self.value(), lease: self.lease() },
            3 => Op::Delete(self.span()),
            4 | 5 if depth > 0 => Op::Txn(self.txn(depth - 1)),
            _ => Op::Range(self.range()),
        }
    }
}

/// The request with the leases that a store knows by these numbers.
fn with_leases(mut txn: Txn, leases: &[LeaseId]) -> Txn {
    let id = |lease: &mut Option<LeaseId>| {
        *lease = lease.map(|number| leases[usize::try_from(number.0).unwrap() - 1]);
    };
    for compare in &mut txn.when {
        if let Compare::Lease(_, lease) = compare {
            id(lease);
        }
    }
    for op in txn.then.iter_mut().chain(&mut txn.otherwise) {
        match op {
            Op::Put { lease, .. } => id(lease),
            Op::Txn(nested) => *nested = with_leases(std::mem::take(nested), leases),
            Op::Delete(_) | Op::Range(_) => {}
        }
    }
    txn
}

/// Numbers in the place of leases.
struct Numbers(BTreeMap<LeaseId, LeaseId>);

impl Numbers {
    fn of(leases: &[LeaseId]) -> Self {
        Self((1..).zip(leases).map(|(number, lease)| (*lease, LeaseId(number))).collect())
    }

    fn pairs(&self, mut pairs: Vec<Pair>) -> Vec<Pair> {
        for pair in &mut pairs {
            // One that was revoked has no number any more.
            pair.lease = pair.lease.map(|lease| self.0.get(&lease).copied().unwrap_or(LeaseId(0)));
        }
        pairs
    }

    fn range(&self, reply: RangeReply) -> RangeReply {
        RangeReply { pairs: self.pairs(reply.pairs), ..reply }
    }

    fn txn(&self, reply: TxnReply) -> TxnReply {
        let one = |reply| match reply {
            OpReply::Put(pair) => OpReply::Put(self.pairs(pair.into_iter().collect()).pop()),
            OpReply::Delete(pairs) => OpReply::Delete(self.pairs(pairs)),
            OpReply::Range(reply) => OpReply::Range(self.range(reply)),
            OpReply::Txn(reply) => OpReply::Txn(self.txn(reply)),
        };
        TxnReply { replies: reply.replies.into_iter().map(one).collect(), ..reply }
    }
}

#[tokio::test]
async fn it_answers_as_the_embedded_store_does() {
    for seed in 1..=12 {
        let mut dice = Dice::new(seed);
        let (embedded, mut store) = (EmbeddedKv::in_memory().unwrap(), Store::new());
        let (mut theirs, mut ours) = (Vec::new(), Vec::new());
        for _ in 0..LEASES {
            theirs.push(embedded.grant(TTL).await.unwrap());
            ours.push(store.grant(TTL, 0));
        }
        let (mut refused, mut compacted) = (0, 1);
        for _ in 0..400 {
            let mut requests = Requests { dice: &mut dice, revision: store.revision() };
            let (their_numbers, our_numbers) = (Numbers::of(&theirs), Numbers::of(&ours));
            match requests.dice.below(40) {
                0 => {
                    let index = usize::try_from(requests.dice.below(LEASES)).unwrap();
                    assert_eq!(embedded.revoke(theirs[index]).await, store.revoke(ours[index]));
                    assert_eq!(store.lease_keys(ours[index]), Err(Error::LeaseGone));
                    theirs[index] = embedded.grant(TTL).await.unwrap();
                    ours[index] = store.grant(TTL, 0);
                }
                1 => {
                    let revision = requests.dice.between(1, requests.revision + 1);
                    assert_eq!(embedded.compact(revision).await, store.compact(revision));
                    compacted = compacted.max(revision.min(store.revision()));
                }
                2..=4 => {
                    let range = requests.range();
                    let their = embedded.range(range.clone()).await.map(|r| their_numbers.range(r));
                    assert_eq!(their, store.range(&range).map(|r| our_numbers.range(r)), "{range:?}");
                }
                5 => {
                    let index = usize::try_from(requests.dice.below(LEASES)).unwrap();
                    let their = embedded.lease_keys(theirs[index]).await;
                    assert_eq!(their, store.lease_keys(ours[index]));
                }
                _ => {
                    let txn = requests.txn(2);
                    let their = embedded.txn(with_leases(txn.clone(), &theirs)).await;
                    let our = store.txn(&with_leases(txn.clone(), &ours));
                    refused += u32::from(our.is_err());
                    let their = their.map(|reply| their_numbers.txn(reply));
                    assert_eq!(their, our.map(|reply| our_numbers.txn(reply)), "seed {seed}: {txn:?}");
                }
            }
        }
        assert!(refused > 20, "only {refused} requests were refused");
        // Of a change at the very revision of the compaction etcd has no previous value any more.
        let compacted = compacted + 1;
        let all = Span::prefix("");
        let since = store.changes(&all, compacted).unwrap();
        let mut stream = embedded.watch(all, compacted).await.unwrap();
        let mut told = Vec::new();
        while told.len() < since.changes.len() {
            told.extend(stream.next().await.unwrap().unwrap().changes);
        }
        // Leases that were revoked have no number any more.
        let without_leases = |changes: Vec<Change>| -> Vec<Change> {
            let pair = |pair: Pair| Pair { lease: None, ..pair };
            let change = |c: Change| Change { pair: pair(c.pair), previous: c.previous.map(pair) };
            changes.into_iter().map(change).collect()
        };
        assert_eq!(without_leases(told), without_leases(since.changes));
    }
}
