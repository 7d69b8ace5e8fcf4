//! A store whose requests are timed, and counted where they fail; tells of those that it denies.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use common::clock::Stopwatch;
use common::kv::{
    self, Key, Kv, LeaseId, Range, RangeReply, Revision, Room, Span, Txn, TxnReply, WatchStream,
};
use tokio::sync::Notify;

use crate::histogram::{Histogram, REQUESTS_MS};

/// What is told apart: the requests that a fire waits for, and the one that a session lives by.
const OPERATIONS: [&str; 4] = ["txn", "range", "keep_alive", "other"];
const TXN: usize = 0;
const RANGE: usize = 1;
const KEEP_ALIVE: usize = 2;
const OTHER: usize = 3;

/// How long the store took, by operation.
#[derive(Debug)]
pub(crate) struct Times([(Histogram, AtomicU64); OPERATIONS.len()]);

impl Default for Times {
    fn default() -> Self {
        Self(OPERATIONS.map(|_| (Histogram::new(REQUESTS_MS), AtomicU64::new(0))))
    }
}

impl Times {
    /// For each operation its name, its times, and how many of them failed.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'static str, &Histogram, u64)> {
        OPERATIONS.into_iter().zip(&self.0).map(|(name, (times, failed))| (name, times, failed.load(Relaxed)))
    }

    async fn of<T>(
        &self,
        operation: usize,
        request: impl Future<Output = Result<T, kv::Error>>,
    ) -> Result<T, kv::Error> {
        let since = Stopwatch::start();
        let answer = request.await;
        let (times, failed) = &self.0[operation];
        times.count(since.elapsed());
        // That a lease is gone, or a revision, is an answer.
        if !matches!(answer, Ok(_) | Err(kv::Error::LeaseGone | kv::Error::Compacted(_))) {
            failed.fetch_add(1, Relaxed);
        }
        answer
    }
}

/// The store, timed.
pub(crate) struct Timed {
    inner: Arc<dyn Kv>,
    times: Arc<Times>,
    denied: Arc<Notify>,
}

impl Timed {
    pub(crate) fn new(inner: Arc<dyn Kv>, times: Arc<Times>) -> Self {
        Self { inner, times, denied: Arc::default() }
    }

    /// Told whenever the store has denied something that a worker needs its keys for.
    pub(crate) fn denied(&self) -> Arc<Notify> {
        Arc::clone(&self.denied)
    }

    async fn of<T>(
        &self,
        operation: usize,
        request: impl Future<Output = Result<T, kv::Error>>,
    ) -> Result<T, kv::Error> {
        let answer = self.times.of(operation, request).await;
        if matches!(answer, Err(kv::Error::Denied(_))) {
            self.denied.notify_one();
        }
        answer
    }
}

#[async_trait]
impl Kv for Timed {
    async fn range(&self, range: Range) -> Result<RangeReply, kv::Error> {
        self.of(RANGE, self.inner.range(range)).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnReply, kv::Error> {
        self.of(TXN, self.inner.txn(txn)).await
    }

    async fn watch(&self, span: Span, start: Revision) -> Result<WatchStream, kv::Error> {
        self.of(OTHER, self.inner.watch(span, start)).await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, kv::Error> {
        self.of(OTHER, self.inner.grant(ttl)).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, kv::Error> {
        self.of(KEEP_ALIVE, self.inner.keep_alive(lease)).await
    }

    async fn lease_keys(&self, lease: LeaseId) -> Result<Vec<Key>, kv::Error> {
        self.of(OTHER, self.inner.lease_keys(lease)).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), kv::Error> {
        self.of(OTHER, self.inner.revoke(lease)).await
    }

    // What comes here is no matter of keys: an etcd with users lets nobody but root compact.
    async fn compact(&self, revision: Revision) -> Result<(), kv::Error> {
        self.times.of(OTHER, self.inner.compact(revision)).await
    }

    async fn room(&self) -> Result<Room, kv::Error> {
        self.times.of(OTHER, self.inner.room()).await
    }

    fn cluster_id(&self) -> u64 {
        self.inner.cluster_id()
    }
}
