//! The thread that owns the file: takes requests in groups, and answers them once they are on disk.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot, watch};

use super::store::Store;
use super::tables::{Fault, broken};
use crate::clock::timeout;
use crate::kv::{Error, Revision};

/// Requests done as one SQLite transaction: enough to share the cost of a sync among all who wait, few enough that the first of
/// them does not wait long for the last.
const GROUP_MAX: usize = 256;
type Deliver = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// Says whether SQLite failed, and how to deliver the answer once the group's fate is known.
type Work = Box<dyn FnOnce(&mut Store) -> (Result<(), Error>, Deliver) + Send>;

/// One request.
pub(super) struct Request(Work);

impl Request {
    pub(super) fn new<T: Send + 'static>(
        work: impl FnOnce(&mut Store) -> Result<T, Fault> + Send + 'static,
    ) -> (Self, oneshot::Receiver<Result<T, Error>>) {
        let (reply, answer) = oneshot::channel();
        let request = Self(Box::new(move |store| {
            let (failed, result) = match work(store) {
                Ok(value) => (Ok(()), Ok(value)),
                Err(Fault::Refused(error)) => (Ok(()), Err(error)),
                Err(Fault::Broken(error)) => (Err(broken(error)), Err(Error::Internal(String::new()))),
            };
            let deliver: Deliver = Box::new(move |fate| {
                // The caller may have given up.
                let _gone = reply.send(fate.and(result));
            });
            (failed, deliver)
        }));
        (request, answer)
    }
}

pub(super) fn spawn(
    store: Store,
    queue: mpsc::Receiver<Request>,
    closing: oneshot::Receiver<()>,
    news: watch::Sender<Revision>,
) -> Result<JoinHandle<()>, Error> {
    let no_thread = |e| Error::Internal(format!("no thread for the embedded store: {e}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(no_thread)?;
    std::thread::Builder::new()
        .name("kv".to_owned())
        .spawn(move || runtime.block_on(run(store, queue, closing, news)))
        .map_err(no_thread)
}

async fn run(
    mut store: Store,
    mut queue: mpsc::Receiver<Request>,
    mut closing: oneshot::Receiver<()>,
    news: watch::Sender<Revision>,
) {
    loop {
        let first = tokio::select! {
            biased;
            _dropped = &mut closing => break,
            first = timeout(store.idle_limit(), queue.recv()) => first.unwrap_or_default(),
        };
        group(&mut store, first, &mut queue, &news);
    }
    queue.close();
    while let Ok(first) = queue.try_recv() {
        group(&mut store, Some(first), &mut queue, &news);
    }
}

/// Does what is due and what is queued in one SQLite transaction, then answers.
fn group(
    store: &mut Store,
    first: Option<Request>,
    queue: &mut mpsc::Receiver<Request>,
    news: &watch::Sender<Revision>,
) {
    let mut deliveries = Vec::new();
    let requests = first.into_iter().chain(std::iter::from_fn(|| queue.try_recv().ok())).take(GROUP_MAX);
    // A panic is a bug in one request; neither the file nor later requests need suffer from it.
    let done = catch_unwind(AssertUnwindSafe(|| work(store, requests, &mut deliveries)))
        .unwrap_or_else(|_panic| Err(Error::Internal("a request to the embedded store panicked".to_owned())));
    // If the process dies before the commit, nothing of the group is on disk, and nobody was told otherwise.
    if let Err(error) = &done {
        tracing::error!(%error, "kv_group_undone");
        if let Err(error) = store.undo() {
            tracing::error!(%error, "kv_group_not_undone");
        }
    }
    news.send_if_modified(|revision| std::mem::replace(revision, store.revision()) != store.revision());
    for deliver in deliveries {
        deliver(done.clone());
    }
}

fn work(
    store: &mut Store,
    requests: impl Iterator<Item = Request>,
    deliveries: &mut Vec<Deliver>,
) -> Result<(), Error> {
    store.begin().map_err(broken)?;
    for request in requests {
        let (failed, deliver) = request.0(store);
        deliveries.push(deliver);
        failed?;
    }
    store.commit().map_err(broken)
}
