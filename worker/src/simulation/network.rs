//! The line of one process to the store: its calls become requests that the world carries, loses, delays and answers.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use common::kv::{
    Error, Key, Kv, LeaseId, Range, RangeReply, Revision, Room, Span, Txn, TxnReply, WatchBatch, WatchStream,
};
use futures::StreamExt as _;

use super::store::Store;

/// Names a call of one process.
pub(super) type CallId = u64;

#[derive(Clone, Debug)]
pub(super) enum Request {
    Range(Range),
    Txn(Txn),
    Grant(Duration),
    KeepAlive(LeaseId),
    LeaseKeys(LeaseId),
    Revoke(LeaseId),
    Compact(Revision),
}

#[derive(Clone, Debug)]
pub(super) enum Reply {
    Range(RangeReply),
    Txn(TxnReply),
    Lease(LeaseId),
    Ttl(Duration),
    Keys(Vec<Key>),
    Done,
}

impl Request {
    /// What its sender is told when no answer comes.
    pub(super) fn unanswered(&self) -> Error {
        let why = "no answer".to_owned();
        if matches!(self, Self::Txn(_)) { Error::Indeterminate(why) } else { Error::Unavailable(why) }
    }

    /// A store without space refuses it.
    pub(super) fn takes_space(&self) -> bool {
        matches!(self, Self::Txn(_) | Self::Grant(_))
    }

    /// The store does it.
    pub(super) fn apply(&self, store: &mut Store, now: i64) -> Result<Reply, Error> {
        match self {
            Self::Range(range) => store.range(range).map(Reply::Range),
            Self::Txn(txn) => store.txn(txn).map(Reply::Txn),
            Self::Grant(ttl) => Ok(Reply::Lease(store.grant(*ttl, now))),
            Self::KeepAlive(lease) => store.keep_alive(*lease, now).map(Reply::Ttl),
            Self::LeaseKeys(lease) => store.lease_keys(*lease).map(Reply::Keys),
            Self::Revoke(lease) => store.revoke(*lease).map(|()| Reply::Done),
            Self::Compact(revision) => store.compact(*revision).map(|()| Reply::Done),
        }
    }
}

/// What is between a process and the world.
#[derive(Default)]
struct Calls {
    calls: CallId,
    /// Not yet fetched by the world.
    sent: Vec<(CallId, Request)>,
    /// Not yet fetched by the caller.
    answered: BTreeMap<CallId, Result<Reply, Error>>,
    /// Names the cluster that answered last.
    cluster: u64,
    watches: u64,
    told: BTreeMap<u64, VecDeque<Result<WatchBatch, Error>>>,
}

/// The line's end in the process, and (cloned) the world's.
#[derive(Clone, Default)]
pub(super) struct Line(Arc<Mutex<Calls>>);

impl Line {
    /// What was sent since this was last asked.
    pub(super) fn sent(&self) -> Vec<(CallId, Request)> {
        std::mem::take(&mut self.0.lock().unwrap().sent)
    }

    pub(super) fn answer(&self, call: CallId, answer: Result<Reply, Error>) {
        self.0.lock().unwrap().answered.insert(call, answer);
    }

    /// The cluster that answers now.
    pub(super) fn reached(&self, cluster: u64) {
        self.0.lock().unwrap().cluster = cluster;
    }

    /// The store has answered.
    pub(super) fn has_reached_any(&self) -> bool {
        self.0.lock().unwrap().cluster != 0
    }

    /// The number of the watch that was opened last.
    pub(super) fn last_watch(&self) -> u64 {
        self.0.lock().unwrap().watches
    }

    pub(super) fn tell(&self, watch: u64, batch: Result<WatchBatch, Error>) {
        self.0.lock().unwrap().told.entry(watch).or_default().push_back(batch);
    }

    async fn ask(&self, request: Request) -> Result<Reply, Error> {
        let call = {
            let mut calls = self.0.lock().unwrap();
            calls.calls += 1;
            let call = calls.calls;
            calls.sent.push((call, request));
            call
        };
        // The world polls whoever it has answered.
        futures::future::poll_fn(|_| {
            self.0.lock().unwrap().answered.remove(&call).map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

#[async_trait]
impl Kv for Line {
    async fn range(&self, range: Range) -> Result<RangeReply, Error> {
        let Reply::Range(reply) = self.ask(Request::Range(range)).await? else { unreachable!() };
        Ok(reply)
    }

    async fn txn(&self, txn: Txn) -> Result<TxnReply, Error> {
        let Reply::Txn(reply) = self.ask(Request::Txn(txn)).await? else { unreachable!() };
        Ok(reply)
    }

    /// The world knows the range and from where on: it says what comes.
    async fn watch(&self, _span: Span, _start: Revision) -> Result<WatchStream, Error> {
        let watch = {
            let mut calls = self.0.lock().unwrap();
            calls.watches += 1;
            calls.watches
        };
        let line = self.clone();
        Ok(futures::stream::poll_fn(move |_| {
            let next = line.0.lock().unwrap().told.get_mut(&watch).and_then(VecDeque::pop_front);
            next.map_or(Poll::Pending, |batch| Poll::Ready(Some(batch)))
        })
        .boxed())
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, Error> {
        let Reply::Lease(lease) = self.ask(Request::Grant(ttl)).await? else { unreachable!() };
        Ok(lease)
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, Error> {
        let Reply::Ttl(ttl) = self.ask(Request::KeepAlive(lease)).await? else { unreachable!() };
        Ok(ttl)
    }

    async fn lease_keys(&self, lease: LeaseId) -> Result<Vec<Key>, Error> {
        let Reply::Keys(keys) = self.ask(Request::LeaseKeys(lease)).await? else { unreachable!() };
        Ok(keys)
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), Error> {
        self.ask(Request::Revoke(lease)).await.map(|_done| ())
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.ask(Request::Compact(revision)).await.map(|_done| ())
    }

    /// Nobody here asks for it.
    async fn room(&self) -> Result<Room, Error> {
        Ok(Room::default())
    }

    fn cluster_id(&self) -> u64 {
        self.0.lock().unwrap().cluster
    }
}

/// A store that answers at once: for whoever comes after the end.
pub(super) struct Direct(Mutex<Store>);

impl Direct {
    pub(super) fn new(store: Store) -> Self {
        Self(Mutex::new(store))
    }

    pub(super) fn into_store(self) -> Store {
        self.0.into_inner().unwrap()
    }

    fn ask(&self, request: &Request) -> Result<Reply, Error> {
        request.apply(&mut self.0.lock().unwrap(), 0)
    }
}

#[async_trait]
impl Kv for Direct {
    async fn range(&self, range: Range) -> Result<RangeReply, Error> {
        let Reply::Range(reply) = self.ask(&Request::Range(range))? else { unreachable!() };
        Ok(reply)
    }

    async fn txn(&self, txn: Txn) -> Result<TxnReply, Error> {
        let Reply::Txn(reply) = self.ask(&Request::Txn(txn))? else { unreachable!() };
        Ok(reply)
    }

    async fn watch(&self, span: Span, start: Revision) -> Result<WatchStream, Error> {
        let batch = self.0.lock().unwrap().changes(&span, start);
        Ok(futures::stream::iter([batch]).boxed())
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, Error> {
        let Reply::Lease(lease) = self.ask(&Request::Grant(ttl))? else { unreachable!() };
        Ok(lease)
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, Error> {
        let Reply::Ttl(ttl) = self.ask(&Request::KeepAlive(lease))? else { unreachable!() };
        Ok(ttl)
    }

    async fn lease_keys(&self, lease: LeaseId) -> Result<Vec<Key>, Error> {
        let Reply::Keys(keys) = self.ask(&Request::LeaseKeys(lease))? else { unreachable!() };
        Ok(keys)
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), Error> {
        self.ask(&Request::Revoke(lease)).map(|_done| ())
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.ask(&Request::Compact(revision)).map(|_done| ())
    }

    async fn room(&self) -> Result<Room, Error> {
        Ok(Room::default())
    }
}
