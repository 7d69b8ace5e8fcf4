//! The store in one SQLite file: etcd's semantics for local-dev and the tests.
//!
//! One thread owns the file. Requests queue for it; it does all that wait as one SQLite transaction, and answers once that is
//! on disk. Watches hold no changes: they read the history table, each at its own pace.

mod rules;
mod store;
mod tables;
mod thread;

use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot, watch};

pub use self::rules::check;
use self::store::Store;
use self::tables::Fault;
use self::thread::Request;
use super::{
    Error, Key, Kv, LeaseId, Range, RangeReply, Revision, Room, Span, Txn, TxnReply, WatchBatch, WatchStream,
};
use crate::clock::{Stopwatch, timeout};

/// Requests that may wait for the thread; further callers wait for a place.
const QUEUE_MAX: usize = 1024;
/// A watch that has told nothing for so long tells how far it is.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// The store in a directory of its own, or in memory. Dropping it closes the file.
pub struct EmbeddedKv {
    requests: mpsc::Sender<Request>,
    committed: watch::Receiver<Revision>,
    /// Dropped to tell the thread to finish what is queued and end.
    open: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl EmbeddedKv {
    /// Opens the store in `dir`, which is created when it is not there. Its leases begin their time anew.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when another process (or another store of this one) uses the directory; [`Error::Internal`] when the file
    /// cannot be opened or was written by a newer version.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        Self::start(Store::open(dir)?)
    }

    /// An empty store that goes when it is dropped.
    ///
    /// # Errors
    /// [`Error::Internal`] when SQLite gives no memory, or the system no thread.
    pub fn in_memory() -> Result<Self, Error> {
        Self::start(Store::in_memory()?)
    }

    fn start(store: Store) -> Result<Self, Error> {
        let (requests, queue) = mpsc::channel(QUEUE_MAX);
        let (open, closing) = oneshot::channel();
        let (news, committed) = watch::channel(store.revision());
        let thread = thread::spawn(store, queue, closing, news)?;
        Ok(Self { requests, committed, open: Some(open), thread: Some(thread) })
    }

    async fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Store) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Error> {
        ask(&self.requests, work).await
    }
}

impl Drop for EmbeddedKv {
    fn drop(&mut self) {
        self.open = None;
        if let Some(thread) = self.thread.take() {
            // It catches the panics of its work; one beyond that has been reported by the panic hook.
            let _panicked = thread.join();
        }
    }
}

/// Has the thread do `work`; the answer comes when what it wrote is on disk.
async fn ask<T: Send + 'static>(
    requests: &mpsc::Sender<Request>,
    work: impl FnOnce(&mut Store) -> Result<T, Fault> + Send + 'static,
) -> Result<T, Error> {
    let (request, answer) = Request::new(work);
    // Both fail only when the thread has dropped the request, undone.
    let dropped = || Error::Unavailable("the embedded store is closed".to_owned());
    requests.send(request).await.map_err(|_request| dropped())?;
    answer.await.map_err(|_dropped| dropped())?
}

#[async_trait]
impl Kv for EmbeddedKv {
    async fn range(&self, range: Range) -> Result<RangeReply, Error> {
        self.ask(move |store| store.range(&range)).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnReply, Error> {
        rules::check(&txn)?;
        self.ask(move |store| store.txn(&txn)).await
    }

    async fn watch(&self, span: Span, start: Revision) -> Result<WatchStream, Error> {
        if span.is_empty() {
            return Err(Error::Invalid("the watched range is empty".to_owned()));
        }
        let committed = self.committed.clone();
        // As etcd has it, 0 is "from now on".
        let next = if start > 0 { start } else { *committed.borrow() + 1 };
        let requests = self.requests.downgrade();
        let watching = Watching { requests, committed, span, next, quiet: Stopwatch::start() };
        Ok(super::until_error(watching, |mut watching| async move { (watching.next().await, watching) }))
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, Error> {
        let seconds = super::lease_seconds(ttl);
        self.ask(move |store| store.grant(seconds)).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, Error> {
        self.ask(move |store| store.keep_alive(lease)).await
    }

    async fn lease_keys(&self, lease: LeaseId) -> Result<Vec<Key>, Error> {
        self.ask(move |store| store.lease_keys(lease)).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), Error> {
        self.ask(move |store| store.revoke(lease)).await
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.ask(move |store| store.compact(revision)).await
    }

    async fn room(&self) -> Result<Room, Error> {
        self.ask(|store| store.room()).await
    }
}

/// An open watch: where it is in the history. It does not keep the store open.
struct Watching {
    requests: mpsc::WeakSender<Request>,
    committed: watch::Receiver<Revision>,
    span: Span,
    /// Everything before this revision has been told.
    next: Revision,
    quiet: Stopwatch,
}

impl Watching {
    async fn next(&mut self) -> Result<WatchBatch, Error> {
        let closed = || Error::Unavailable("the embedded store is closed".to_owned());
        loop {
            let committed = *self.committed.borrow_and_update();
            if committed >= self.next {
                let (span, from) = (self.span.clone(), self.next);
                let requests = self.requests.upgrade().ok_or_else(closed)?;
                let batch = ask(&requests, move |store| store.changes(&span, from)).await?;
                self.next = batch.revision + 1;
                if !batch.changes.is_empty() {
                    self.quiet = Stopwatch::start();
                    return Ok(batch);
                }
                continue;
            }
            let wait = PROGRESS_EVERY.saturating_sub(self.quiet.elapsed());
            match timeout(wait, self.committed.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_thread_ended)) => return Err(closed()),
                Err(_quiet) => {
                    self.quiet = Stopwatch::start();
                    // A watch that begins in the future is not further than the store.
                    let revision = committed.min(self.next - 1);
                    return Ok(WatchBatch { revision, changes: Vec::new() });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::Op;

    #[tokio::test]
    async fn a_panic_undoes_its_group_and_nothing_else() {
        let kv = EmbeddedKv::in_memory().unwrap();
        let put = |key: &str| Txn { then: vec![Op::put(key, "")], ..Txn::default() };
        let revision = kv.txn(put("before")).await.unwrap().revision;
        let half_done = put("half done");
        let panicked: Result<(), Error> = kv
            .ask(move |store| {
                store.txn(&half_done)?;
                panic!("a bug")
            })
            .await;
        assert!(matches!(panicked, Err(Error::Unavailable(_))), "{panicked:?}");
        assert_eq!(kv.txn(put("after")).await.unwrap().revision, revision + 1);
        let pairs = kv.range(Range::prefix("")).await.unwrap().pairs;
        assert_eq!(pairs.iter().map(|pair| pair.key.to_string()).collect::<Vec<_>>(), ["after", "before"]);
    }

    #[tokio::test]
    async fn a_failure_of_sqlite_undoes_the_group_and_is_told() {
        let kv = EmbeddedKv::in_memory().unwrap();
        let lease = kv.grant(Duration::from_secs(60)).await.unwrap();
        let txn = Txn { then: vec![Op::put_leased("k", "", lease)], ..Txn::default() };
        let failed: Result<(), Error> = kv
            .ask(move |store| {
                store.txn(&txn)?;
                store.revoke(lease)?;
                Err(Fault::Broken(rusqlite::Error::QueryReturnedNoRows))
            })
            .await;
        assert!(matches!(failed, Err(Error::Internal(_))), "{failed:?}");
        assert!(kv.range(Range::prefix("")).await.unwrap().pairs.is_empty());
        assert_eq!(kv.lease_keys(lease).await.unwrap(), []);
    }
}
