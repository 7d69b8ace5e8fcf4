//! A store that remembers how far it has been seen, and notices when it went back: a restored backup (design P16).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use common::kv::{
    self, Key, Kv, LeaseId, Range, RangeReply, Revision, Room, Span, Txn, TxnReply, WatchStream,
};
use futures::{StreamExt as _, TryStreamExt as _};
use tokio::sync::{Notify, watch};

use crate::seen;

/// How often the store was found to have gone back. What was asked for in one era and answered in a later one is not to be trusted.
pub(crate) type Era = u64;

/// The store, watched for going back.
///
/// A linearizable answer has at least the revision of whatever was seen before its request was sent; one that has less comes from
/// another history. Members that lag answer serializable reads and watches from an older revision, which is lawful: those only raise
/// what has been seen, and such a read is asked again of all members together, since one member cannot tell whether it lags or is of another
/// history. The answer that shows it is never handed on, so that nothing is decided from a mixture of two histories.
pub(crate) struct Witness {
    inner: Arc<dyn Kv>,
    /// Shared with the watches, which outlive the calls that opened them.
    seen: Arc<Mutex<Seen>>,
    went_back: watch::Sender<WentBack>,
    full: Arc<Notify>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    era: Era,
    revision: Revision,
    cluster: u64,
}

/// The news that the store went back.
#[derive(Clone, Debug, Default)]
pub(crate) struct WentBack {
    /// The era that began with it; 0 = it never did.
    pub(crate) era: Era,
    /// What shows it.
    pub(crate) why: String,
}

impl Witness {
    /// A witness that has seen so much already: an earlier process of this worker has.
    pub(crate) fn new(inner: Arc<dyn Kv>, before: Option<seen::Seen>) -> Self {
        let seen =
            before.map_or_else(Seen::default, |s| Seen { era: 0, revision: s.revision, cluster: s.cluster });
        let went_back = watch::channel(WentBack::default()).0;
        Self { inner, seen: Arc::new(Mutex::new(seen)), went_back, full: Arc::default() }
    }

    /// What has been seen, for a process that comes after this one; `None` = nothing in this era.
    pub(crate) fn seen(&self) -> Option<seen::Seen> {
        let seen = self.before();
        (seen.revision > 0).then(|| seen::Seen::new(seen.revision, seen.cluster))
    }

    /// Tells whenever the store went back.
    pub(crate) fn news(&self) -> watch::Receiver<WentBack> {
        self.went_back.subscribe()
    }

    /// Told whenever the store has refused something for want of room.
    pub(crate) fn full(&self) -> Arc<Notify> {
        Arc::clone(&self.full)
    }

    fn note_refusal(&self, why: &kv::Error) {
        if matches!(why, kv::Error::Full(_)) {
            self.full.notify_one();
        }
    }

    /// Begins a new era for a reason that its caller has seen in `era`; nothing when that is over.
    pub(crate) fn accuse(&self, era: Era, why: String) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.era == era {
            // What was seen counts no more: the next answer begins the count.
            *seen = Seen { era: era + 1, ..Seen::default() };
            self.went_back.send_replace(WentBack { era: era + 1, why });
        }
    }

    fn before(&self) -> Seen {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the revision of an answer to a request that was sent when `before` was seen. `Err` says why it is not to be used.
    fn after(&self, before: Seen, revision: Revision, linearizable: bool) -> Result<(), String> {
        let cluster = self.inner.cluster_id();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.era != before.era {
            return Err("the store went back while this was on its way".to_owned());
        }
        let other = linearizable && before.cluster != 0 && cluster != 0 && cluster != before.cluster;
        let behind = linearizable && revision < before.revision;
        if !other && !behind {
            seen.revision = seen.revision.max(revision);
            // A client that was just made knows none yet: what is known stays.
            if linearizable && cluster != 0 {
                seen.cluster = cluster;
            }
            return Ok(());
        }
        let why = if other {
            format!("the store is another cluster: {:x} where {:x} was", cluster, before.cluster)
        } else {
            format!("the store went back from revision {} to {revision}", before.revision)
        };
        *seen = Seen { era: seen.era + 1, revision, cluster };
        self.went_back.send_replace(WentBack { era: seen.era, why: why.clone() });
        Err(why)
    }
}

#[async_trait]
impl Kv for Witness {
    async fn range(&self, range: Range) -> Result<RangeReply, kv::Error> {
        let before = self.before();
        if range.serializable {
            let reply = self.inner.range(range.clone()).await?;
            if reply.revision >= before.revision {
                self.after(before, reply.revision, false).map_err(kv::Error::Unavailable)?;
                return Ok(reply);
            }
        }
        // A read of the past is not asked for its present.
        let linearizable = range.revision.is_none();
        let reply = self.inner.range(Range { serializable: false, ..range }).await?;
        self.after(before, reply.revision, linearizable).map_err(kv::Error::Unavailable)?;
        Ok(reply)
    }

    async fn txn(&self, txn: Txn) -> Result<TxnReply, kv::Error> {
        let before = self.before();
        let reply = self.inner.txn(txn).await.inspect_err(|why| self.note_refusal(why))?;
        // It may well have been done, in a history that its sender does not know yet.
        self.after(before, reply.revision, true).map_err(kv::Error::Indeterminate)?;
        Ok(reply)
    }

    async fn watch(&self, span: Span, start: Revision) -> Result<WatchStream, kv::Error> {
        let era = self.before().era;
        let stream = self.inner.watch(span, start).await?;
        let mut news = self.news();
        // A watch of an era that is over ends, also one that is silent for ever since its revision is in the future.
        let over = async move {
            let _gone = news.wait_for(|news| news.era != era).await;
        };
        let seen = Arc::clone(&self.seen);
        let stream = stream.inspect_ok(move |batch| {
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            if seen.era == era {
                seen.revision = seen.revision.max(batch.revision);
            }
        });
        let ended = futures::stream::once(async {
            Err(kv::Error::Unavailable("the store went back: this watch is of before".to_owned()))
        });
        Ok(stream.take_until(over).chain(ended).boxed())
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, kv::Error> {
        self.inner.grant(ttl).await.inspect_err(|why| self.note_refusal(why))
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, kv::Error> {
        self.inner.keep_alive(lease).await
    }

    async fn lease_keys(&self, lease: LeaseId) -> Result<Vec<Key>, kv::Error> {
        self.inner.lease_keys(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), kv::Error> {
        self.inner.revoke(lease).await
    }

    async fn compact(&self, revision: Revision) -> Result<(), kv::Error> {
        self.inner.compact(revision).await
    }

    async fn room(&self) -> Result<Room, kv::Error> {
        self.inner.room().await
    }

    fn cluster_id(&self) -> u64 {
        self.inner.cluster_id()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::kv::embedded::EmbeddedKv;
    use common::kv::{Op, WatchBatch};
    use std::sync::atomic::{AtomicU64, Ordering};

    /// A store that can be put back to another, and whose members lag.
    struct Restorable {
        now: Mutex<Arc<EmbeddedKv>>,
        /// Answers serializable reads, and watches.
        lagging: Arc<EmbeddedKv>,
        cluster: AtomicU64,
    }

    impl Restorable {
        fn now(&self) -> Arc<EmbeddedKv> {
            Arc::clone(&self.now.lock().unwrap())
        }
    }

    #[async_trait]
    impl Kv for Restorable {
        async fn range(&self, range: Range) -> Result<RangeReply, kv::Error> {
            if range.serializable { self.lagging.range(range).await } else { self.now().range(range).await }
        }
        async fn txn(&self, txn: Txn) -> Result<TxnReply, kv::Error> {
            self.now().txn(txn).await
        }
        async fn watch(&self, span: Span, start: Revision) -> Result<WatchStream, kv::Error> {
            self.lagging.watch(span, start).await
        }
        async fn grant(&self, ttl: Duration) -> Result<LeaseId, kv::Error> {
            self.now().grant(ttl).await
        }
        async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, kv::Error> {
            self.now().keep_alive(lease).await
        }
        async fn lease_keys(&self, lease: LeaseId) -> Result<Vec<Key>, kv::Error> {
            self.now().lease_keys(lease).await
        }
        async fn revoke(&self, lease: LeaseId) -> Result<(), kv::Error> {
            self.now().revoke(lease).await
        }
        async fn compact(&self, revision: Revision) -> Result<(), kv::Error> {
            self.now().compact(revision).await
        }
        async fn room(&self) -> Result<Room, kv::Error> {
            self.now().room().await
        }
        fn cluster_id(&self) -> u64 {
            self.cluster.load(Ordering::Relaxed)
        }
    }

    async fn with_puts(puts: usize) -> Arc<EmbeddedKv> {
        let kv = Arc::new(EmbeddedKv::in_memory().unwrap());
        for _ in 0..puts {
            kv.txn(put()).await.unwrap();
        }
        kv
    }

    fn put() -> Txn {
        Txn { then: vec![Op::put("/x", "1")], ..Txn::default() }
    }

    async fn at_revision(puts: usize) -> (Arc<Restorable>, Witness) {
        let kv = Arc::new(Restorable {
            now: Mutex::new(with_puts(puts).await),
            lagging: with_puts(1).await,
            cluster: AtomicU64::new(7),
        });
        (Arc::clone(&kv), Witness::new(kv, None))
    }

    fn era(witness: &Witness) -> Era {
        witness.news().borrow().era
    }

    #[tokio::test]
    async fn members_that_lag_are_lawful() {
        let (_, witness) = at_revision(5).await;
        let now = witness.range(Range::key("/x")).await.unwrap();
        let read = witness.range(Range::key("/x").serializable()).await.unwrap();
        assert_eq!(read.revision, now.revision, "what is older than what was seen is not handed on");
        let mut watch = witness.watch(Span::key("/x"), 1).await.unwrap();
        let batch: WatchBatch = watch.next().await.unwrap().unwrap();
        assert!(batch.revision < 5);
        witness.range(Range::key("/x")).await.unwrap();
        assert_eq!(era(&witness), 0);
    }

    #[tokio::test]
    async fn an_answer_of_an_earlier_state_is_not_handed_on_and_begins_an_era() {
        for write in [false, true] {
            let (kv, witness) = at_revision(5).await;
            witness.range(Range::key("/x")).await.unwrap();
            let mut watch = witness.watch(Span::key("/x"), 100).await.unwrap();
            *kv.now.lock().unwrap() = with_puts(2).await;
            let answer = match write {
                false => witness.range(Range::key("/x")).await.map(drop),
                true => witness.txn(put()).await.map(drop),
            };
            match answer {
                Err(kv::Error::Unavailable(_)) if !write => {}
                Err(kv::Error::Indeterminate(_)) if write => {}
                other => panic!("{other:?}"),
            }
            assert_eq!(era(&witness), 1);
            // The silent watch of the era before ends, and what is asked from now on is answered.
            assert!(matches!(watch.next().await, Some(Err(kv::Error::Unavailable(_)))));
            witness.range(Range::key("/x")).await.unwrap();
            witness.txn(put()).await.unwrap();
            assert_eq!(era(&witness), 1);
        }
    }

    #[tokio::test]
    async fn a_member_s_answer_of_an_earlier_state_is_asked_again_and_not_taken_for_that_of_one_that_lags() {
        let (kv, witness) = at_revision(5).await;
        witness.range(Range::key("/x")).await.unwrap();
        *kv.now.lock().unwrap() = with_puts(2).await;
        let answer = witness.range(Range::key("/x").serializable()).await;
        assert!(matches!(answer, Err(kv::Error::Unavailable(_))), "{answer:?}");
        assert_eq!(era(&witness), 1);
        witness.range(Range::key("/x").serializable()).await.unwrap();
        assert_eq!(era(&witness), 1);
    }

    #[tokio::test]
    async fn a_member_that_lags_is_believed_by_whoever_has_seen_nothing_newer() {
        let (_, witness) = at_revision(5).await;
        let read = witness.range(Range::key("/x").serializable()).await.unwrap();
        assert!(read.revision < 5);
    }

    #[tokio::test]
    async fn what_was_on_its_way_when_an_era_began_is_not_handed_on() {
        let (_, witness) = at_revision(5).await;
        let before = witness.before();
        witness.accuse(0, "a mark went back".to_owned());
        assert!(witness.after(before, 900, true).is_err());
        witness.accuse(0, "the same, seen by another".to_owned());
        assert_eq!(era(&witness), 1);
        assert_eq!(witness.before().revision, 0, "nor does it count");
    }

    #[tokio::test]
    async fn what_a_watch_has_brought_was_seen() {
        let store = with_puts(5).await;
        let kv = Arc::new(Restorable {
            now: Mutex::new(Arc::clone(&store)),
            lagging: store,
            cluster: AtomicU64::new(7),
        });
        let witness = Witness::new(Arc::clone(&kv) as Arc<dyn Kv>, None);
        let mut watch = witness.watch(Span::key("/x"), 1).await.unwrap();
        while watch.next().await.unwrap().unwrap().revision < 5 {}
        // Put back to what no read of ours has ever been past.
        *kv.now.lock().unwrap() = with_puts(2).await;
        assert!(witness.range(Range::key("/x")).await.is_err());
        assert_eq!(era(&witness), 1);
    }

    #[tokio::test]
    async fn a_store_that_went_back_between_two_processes_is_noticed_by_the_second() {
        for (cluster, puts) in [(7, 2), (8, 9), (7, 5)] {
            let (kv, witness) = at_revision(5).await;
            witness.range(Range::key("/x")).await.unwrap();
            let before = witness.seen();
            kv.cluster.store(cluster, Ordering::Relaxed);
            *kv.now.lock().unwrap() = with_puts(puts).await;
            let witness = Witness::new(kv, before);
            let went_back = (cluster, puts) != (7, 5);
            assert_eq!(witness.range(Range::key("/x")).await.is_err(), went_back);
            assert_eq!(era(&witness), u64::from(went_back));
            witness.range(Range::key("/x")).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_client_that_does_not_know_its_cluster_yet_makes_nothing_forgotten() {
        let (kv, witness) = at_revision(5).await;
        witness.range(Range::key("/x")).await.unwrap();
        kv.cluster.store(0, Ordering::Relaxed);
        witness.range(Range::key("/x")).await.unwrap();
        kv.cluster.store(8, Ordering::Relaxed);
        assert!(witness.range(Range::key("/x")).await.is_err());
        assert_eq!(era(&witness), 1);
    }

    #[tokio::test]
    async fn another_cluster_is_another_history_whatever_its_revision() {
        let (kv, witness) = at_revision(5).await;
        witness.range(Range::key("/x")).await.unwrap();
        kv.cluster.store(8, Ordering::Relaxed);
        *kv.now.lock().unwrap() = with_puts(9).await;
        assert!(witness.range(Range::key("/x")).await.is_err());
        assert_eq!(era(&witness), 1);
        witness.range(Range::key("/x")).await.unwrap();
    }
}
