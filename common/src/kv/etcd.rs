//! The store in etcd.

mod tls;

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{
    Client, CompareOp, ConnectOptions, DeleteOptions, EventType, GetOptions, KeyValue,
    LeaseTimeToLiveOptions, PutOptions, TxnOp, TxnOpResponse, TxnResponse, WatchOptions, WatchRequestSender,
    WatchResponse, WatchResponseStream,
};
use futures::StreamExt;
use tonic::Code;

use super::{
    Change, Compare, Error, Is, Key, Kv, LeaseId, Op, OpReply, Pair, Range, RangeReply, Revision, Room, Span,
    Txn, TxnReply, WatchBatch, WatchStream,
};
use crate::causes;
use crate::clock::{Clock, Stopwatch, SystemClock, Timestamp, timeout};
use crate::config::EtcdSettings;

/// HTTP/2 pings go out this often while a request or a watch is open. etcd counts pings below five seconds apart
/// (`--grpc-keepalive-min-time`), and any on an idle connection, as abuse and hangs up: hence ten, and none while idle.
const PING_EVERY: Duration = Duration::from_secs(10);
/// A ping without an answer for so long ends the connection, and with it every watch on it.
const PING_ANSWER: Duration = Duration::from_secs(5);
/// A watch that heard nothing for so long asks for a progress notification.
const WATCH_SILENCE: Duration = Duration::from_secs(5);
/// A watch that then hears nothing for so long ends with an error.
const WATCH_ANSWER: Duration = Duration::from_secs(10);
/// A connection that was idle for so long is replaced before the next call: a thawed Lambda's may be dead without knowing it, and a
/// new one costs milliseconds where a silent one costs the time of an attempt.
const IDLE_MS: i64 = 10_000;
/// Largest answer. etcd sends what a range or a watch asks for, however large; gRPC's default of 4 MB is less than ten thousand jobs.
const ANSWER_BYTES_MAX: usize = 512 << 20;
/// Longest lease that etcd grants.
const LEASE_SECONDS_MAX: u64 = 9_000_000_000;

/// A client of etcd 3.5.8 or later (older ones answer a request for progress before the changes that it counts).
///
/// It connects on first use, to one endpoint at a time; when a call fails on the way, the next attempt goes to the next endpoint over
/// a new connection.
pub struct EtcdKv {
    endpoints: Vec<String>,
    tls: tls::Tls,
    /// Name and password.
    user: Option<(String, String)>,
    /// It was said that etcd asks nobody for a name, though there is one.
    open_said: AtomicBool,
    call_limit: Duration,
    current: Mutex<Current>,
    /// Held while connecting, so that callers who find no connection make one and not many.
    connecting: tokio::sync::Mutex<()>,
    /// Of the last answer with a header.
    cluster_id: AtomicU64,
}

/// The connection in use, and whose turn it is when another one is needed.
struct Current {
    connection: Option<Connection>,
    connected: usize,
    /// When it was made, or last brought an answer.
    heard: Timestamp,
    /// It has brought an answer.
    proven: bool,
}

#[derive(Clone)]
struct Connection {
    client: Client,
    /// It has logged in as nobody, though there is a user: etcd asked for none.
    nameless: bool,
    /// Tells connections apart: whoever finds one broken must not throw away its successor.
    number: usize,
}

/// Whether a request may be sent again when its answer did not come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Repeat {
    Allowed,
    Never,
}

/// What came of one attempt that failed.
#[derive(Debug, PartialEq, Eq)]
enum Failure {
    /// etcd did not do it, another attempt may succeed.
    NotDone(String),
    /// It did not do it, for want of TLS that both sides like: what to do, in words. Another member may be better.
    Insecure(String),
    /// The connection ended before it brought any answer: as [`Self::NoAnswer`], and what to look at.
    Cut(String),
    /// It did not do it, since the connection has no user: one with a user may.
    Nobody,
    /// No answer: etcd may have done it, or may still do it.
    NoAnswer(String),
    /// etcd refuses, and will refuse again.
    Refused(Error),
}

impl EtcdKv {
    /// A client with these settings; every call takes at most `call_limit`, connecting included. Does not connect yet.
    ///
    /// # Errors
    /// [`Error::Invalid`] when a PEM file cannot be read, or is not what its setting wants.
    pub fn new(settings: &EtcdSettings, call_limit: Duration) -> Result<Self, Error> {
        let current = Current { connection: None, connected: 0, heard: Timestamp::ZERO, proven: false };
        Ok(Self {
            endpoints: settings.endpoints_or_default(),
            tls: tls::Tls::read(settings)?,
            user: settings.username.clone().zip(settings.password.clone()),
            open_said: AtomicBool::new(false),
            call_limit,
            current: Mutex::new(current),
            connecting: tokio::sync::Mutex::new(()),
            cluster_id: AtomicU64::new(0),
        })
    }

    /// Does one request: anew over another connection when an attempt failed and that is safe, within the limit.
    async fn call<T, F>(
        &self,
        repeat: Repeat,
        request: impl Fn(Client) -> F + Send + Sync,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, etcd_client::Error>> + Send,
    {
        let started = Stopwatch::start();
        self.retire_when_idle();
        // A new connection may not pass etcd's check of certificates, and a write that is lost on it would be in doubt: a read goes first.
        if repeat == Repeat::Never && !self.is_proven() {
            self.attempts(started, Repeat::Allowed, |client| async move {
                client.kv_client().get([0], Some(GetOptions::new().with_count_only())).await
            })
            .await
            .map(drop)
            // A user without rights on that key is an answer as well.
            .or_else(|e| if matches!(e, Error::Denied(_)) { Ok(()) } else { Err(e) })?;
        }
        self.attempts(started, repeat, request).await
    }

    async fn attempts<T, F>(
        &self,
        started: Stopwatch,
        repeat: Repeat,
        request: impl Fn(Client) -> F + Send + Sync,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, etcd_client::Error>> + Send,
    {
        let attempts = attempts(self.endpoints.len());
        let step = self.call_limit / attempts;
        let mut why = Error::Unavailable(format!("no answer within {:?}", self.call_limit));
        for _ in 0..attempts {
            let left = self.call_limit.saturating_sub(started.elapsed());
            if left.is_zero() {
                break;
            }
            let connection = match timeout(left.min(step), self.connection()).await {
                Ok(Ok(connection)) => connection,
                Ok(Err(Failure::Refused(e))) => return Err(e),
                Ok(Err(failure)) => {
                    why = failure.lasting();
                    continue;
                }
                Err(elapsed) => {
                    why = Error::Unavailable(format!("connecting: {elapsed}"));
                    continue;
                }
            };
            let left = self.call_limit.saturating_sub(started.elapsed());
            let limit = if repeat == Repeat::Allowed { left.min(step) } else { left };
            let failure = match timeout(limit, Box::pin(request(connection.client))).await {
                Ok(Ok(answer)) => {
                    self.answered(connection.number);
                    return Ok(answer);
                }
                Ok(Err(e)) => self.failure(connection.number, e),
                Err(elapsed) => Failure::NoAnswer(elapsed.to_string()),
            };
            match failure {
                // Now it asks. It may have taken the name in the client certificate for a user's.
                Failure::Refused(Error::Denied(w)) if connection.nameless => {
                    self.discard(connection.number);
                    why = Error::Denied(w);
                }
                Failure::Refused(e) => {
                    self.answered(connection.number);
                    return Err(e);
                }
                // Whoever has no user will have none with the next connection.
                Failure::Nobody if self.user.is_none() => {
                    self.answered(connection.number);
                    return Err(failure.lasting());
                }
                Failure::NoAnswer(w) | Failure::Cut(w) if repeat == Repeat::Never => {
                    self.discard(connection.number);
                    return Err(Error::Indeterminate(w));
                }
                failure => {
                    self.discard(connection.number);
                    why = failure.lasting();
                }
            }
        }
        Err(why)
    }

    /// The connection in use, or a new one to the next endpoint.
    async fn connection(&self) -> Result<Connection, Failure> {
        if let Some(connection) = &self.current().connection {
            return Ok(connection.clone());
        }
        let _turn = self.connecting.lock().await;
        let number = {
            let mut current = self.current();
            if let Some(connection) = &current.connection {
                return Ok(connection.clone());
            }
            // Counted before the attempt: should it fail or be given up, then the next one goes elsewhere.
            current.connected += 1;
            current.connected
        };
        let (client, nameless) = match Box::pin(self.connect(number, self.user.as_ref())).await {
            Ok(client) => {
                self.open_said.store(false, Ordering::Relaxed);
                (client, false)
            }
            // Whoever gives users to an etcd that is in use gives the programs theirs first, and etcd asks for them once all have one. Who lets
            // everybody in is not protected by our going away.
            Err(e) if self.user.is_some() && asks_for_no_user(&e) => {
                if !self.open_said.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        "etcd asks nobody for a name, though CRON_ETCD_USERNAME is set: `etcdctl auth enable` makes it ask"
                    );
                }
                let connecting = Box::pin(self.connect(number, None));
                (connecting.await.map_err(|e| self.failure(number, e))?, true)
            }
            Err(e) => return Err(self.failure(number, e)),
        };
        let connection = Connection { client, nameless, number };
        let mut current = self.current();
        current.connection = Some(connection.clone());
        current.heard = SystemClock.now();
        current.proven = false;
        Ok(connection)
    }

    /// A new connection; logs in, if with a user.
    async fn connect(
        &self,
        number: usize,
        user: Option<&(String, String)>,
    ) -> Result<Client, etcd_client::Error> {
        let endpoint = self.endpoint(number);
        let mut options = ConnectOptions::new()
            .with_connect_timeout(self.call_limit / attempts(self.endpoints.len()))
            .with_keep_alive(PING_EVERY, PING_ANSWER)
            .with_keep_alive_while_idle(false)
            .with_tcp_keepalive(PING_EVERY)
            .with_auto_token_refresh(true)
            // Else a member that is cut off from its leader keeps a watch open that sees nothing.
            .with_require_leader(true);
        if endpoint.starts_with("https://") {
            options = options.with_tls(self.tls.options());
        }
        if let Some((name, password)) = user {
            options = options.with_user(name, password);
        }
        Client::connect([endpoint], Some(options)).await
    }

    /// Where connection number `number` leads.
    fn endpoint(&self, number: usize) -> &str {
        &self.endpoints[number.saturating_sub(1) % self.endpoints.len()]
    }

    fn failure(&self, number: usize, error: etcd_client::Error) -> Failure {
        let endpoint = self.endpoint(number);
        if let Some(why) = self.tls.in_words(endpoint, &error) {
            return Failure::Insecure(format!("{endpoint}: {why}"));
        }
        let current = self.current();
        let answered = current.proven && current.connection.as_ref().is_some_and(|c| c.number == number);
        drop(current);
        // What etcd itself says has no cause. Whoever is not let in hears of it in an alert, unless the end of the connection is faster.
        let cut = matches!(&error, etcd_client::Error::GRpcStatus(status) if std::error::Error::source(status).is_some());
        match failure(error) {
            Failure::Refused(Error::Denied(words)) => Failure::Refused(Error::Denied(denied(
                &words,
                self.user.as_ref().map(|(name, _)| name.as_str()),
            ))),
            Failure::NoAnswer(_) if cut && !answered => {
                Failure::Cut(format!("{endpoint}: {}", self.tls.of_a_cut(endpoint)))
            }
            Failure::NotDone(why) if why.starts_with(CLOSED) && !answered => {
                Failure::Insecure(format!("{endpoint}: {}", self.tls.of_a_cut(endpoint)))
            }
            failure => failure,
        }
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        // No step of a change to it can panic.
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn discard(&self, number: usize) {
        let mut current = self.current();
        if current.connection.as_ref().is_some_and(|c| c.number == number) {
            current.connection = None;
        }
    }

    fn answered(&self, number: usize) {
        let mut current = self.current();
        if current.connection.as_ref().is_some_and(|c| c.number == number) {
            current.heard = SystemClock.now();
            if !std::mem::replace(&mut current.proven, true) {
                self.tls.agreed();
            }
        }
    }

    /// The revision of an answer, and whose it is.
    fn note(&self, header: Option<&etcd_client::ResponseHeader>) -> Revision {
        let Some(header) = header else { return 0 };
        self.cluster_id.store(header.cluster_id(), Ordering::Relaxed);
        header.revision()
    }

    /// Puts a connection away over which nothing has come for a while; calls on their way and watches keep it. By the wall clock, in either
    /// direction: the monotonic clock may stand still while a Lambda is frozen.
    fn retire_when_idle(&self) {
        let mut current = self.current();
        if current.connection.is_some() && SystemClock.now().ms_since(current.heard).abs() > IDLE_MS {
            current.connection = None;
            // The next one goes to the same endpoint, which has done nothing wrong.
            current.connected += self.endpoints.len() - 1;
        }
    }

    fn is_proven(&self) -> bool {
        let current = self.current();
        current.connection.is_some() && current.proven
    }
}

/// At least one repetition; with several endpoints each has its turn.
fn attempts(endpoints: usize) -> u32 {
    u32::try_from(endpoints).unwrap_or(u32::MAX).max(2)
}

impl Failure {
    /// What it is called when no other attempt follows.
    fn lasting(self) -> Error {
        match self {
            Self::NotDone(why) | Self::NoAnswer(why) => Error::Unavailable(why),
            Self::Insecure(why) | Self::Cut(why) => Error::Insecure(why),
            Self::Nobody => Error::Denied(denied("user name is empty", None)),
            Self::Refused(error) => error,
        }
    }
}

fn asks_for_no_user(error: &etcd_client::Error) -> bool {
    let etcd_client::Error::GRpcStatus(status) = error else { return false };
    status.message().contains("authentication is not enabled")
}

/// etcd's words, and what to do about them.
fn denied(words: &str, user: Option<&str>) -> String {
    let advice = if words.contains("authentication failed") {
        "CRON_ETCD_USERNAME and CRON_ETCD_PASSWORD are no user and password of it"
    } else if words.contains("user name is empty") {
        "it asks for a user, set CRON_ETCD_USERNAME and CRON_ETCD_PASSWORD"
    } else if let Some(user) = user {
        return format!("{words}: the roles of its user {user} do not allow this, see infra/etcd-roles.sh");
    } else {
        "the roles of its user do not allow this, see infra/etcd-roles.sh" // whom the client certificate names, if anybody
    };
    format!("{words}: {advice}")
}

#[async_trait]
impl Kv for EtcdKv {
    async fn range(&self, range: Range) -> Result<RangeReply, Error> {
        let (key, options) = get_options(&range);
        let mut reply = self
            .call(Repeat::Allowed, |client| {
                let (key, options) = (key.clone(), options.clone());
                async move { kv_client(&client).get(key, Some(options)).await }
            })
            .await?;
        let revision = self.note(reply.header());
        Ok(RangeReply { pairs: pairs(reply.take_kvs()), more: reply.more(), revision })
    }

    async fn txn(&self, txn: Txn) -> Result<TxnReply, Error> {
        let repeat = if writes(&txn) { Repeat::Never } else { Repeat::Allowed };
        let txn = etcd_txn(txn)?;
        let reply = self
            .call(repeat, |client| {
                let txn = txn.clone();
                async move { kv_client(&client).txn(txn).await }
            })
            .await?;
        let revision = self.note(reply.header());
        Ok(txn_reply(&reply, revision))
    }

    async fn watch(&self, span: Span, start: Revision) -> Result<WatchStream, Error> {
        if span.is_empty() {
            return Err(Error::Invalid("the watched range is empty".to_owned()));
        }
        let (key, end) = key_and_end(&span);
        let mut options =
            WatchOptions::new().with_start_revision(start).with_prev_key().with_progress_notify();
        if let Some(end) = end {
            options = options.with_range(end);
        }
        let watching = self
            .call(Repeat::Allowed, |client| {
                let (key, options) = (key.clone(), options.clone());
                Watching::open(client, key, options)
            })
            .await?;
        Ok(super::until_error(watching, |mut watching| async move { (watching.next().await, watching) }))
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, Error> {
        let seconds = super::lease_seconds(ttl);
        if seconds > LEASE_SECONDS_MAX {
            return Err(Error::Invalid(format!("a lease of {seconds} s is too long")));
        }
        // A grant whose answer was lost leaves a lease that expires by itself.
        let reply = self
            .call(Repeat::Allowed, |mut client| async move {
                client.lease_grant(seconds.cast_signed(), None).await
            })
            .await?;
        Ok(LeaseId(reply.id()))
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, Error> {
        let ttl = self
            .call(Repeat::Allowed, |mut client| async move {
                // Opening the stream renews the lease, but keeps the time it got to itself.
                let (mut keeper, mut answers) = client.lease_keep_alive(lease.0).await?;
                keeper.keep_alive().await?;
                let answer = answers.message().await?;
                Ok(answer.map_or(0, |a| a.ttl()))
            })
            .await?;
        match u64::try_from(ttl) {
            Ok(seconds) if seconds > 0 => Ok(Duration::from_secs(seconds)),
            _ => Err(Error::LeaseGone),
        }
    }

    async fn lease_keys(&self, lease: LeaseId) -> Result<Vec<Key>, Error> {
        let reply = self
            .call(Repeat::Allowed, |mut client| async move {
                let options = LeaseTimeToLiveOptions::new().with_keys();
                client.lease_time_to_live(lease.0, Some(options)).await
            })
            .await?;
        if reply.ttl() < 0 {
            return Err(Error::LeaseGone);
        }
        let mut keys: Vec<Key> = reply.keys().iter().map(|key| Key::from(key.as_slice())).collect();
        keys.sort();
        Ok(keys)
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), Error> {
        self.call(Repeat::Never, |mut client| async move { client.lease_revoke(lease.0).await })
            .await
            .map(drop)
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        // Not `Repeat::Never`: whoever hears that it was done already is as well off.
        self.call(Repeat::Allowed, |mut client| async move { client.compact(revision, None).await })
            .await
            .map(drop)
    }

    async fn room(&self) -> Result<Room, Error> {
        let status = self.call(Repeat::Allowed, |mut client| async move { client.status().await }).await?;
        Ok(Room {
            bytes: status.db_size().unsigned_abs(),
            // An older etcd does not say.
            bytes_in_use: status.raft_used_db_size().unsigned_abs(),
            quota_bytes: status.db_size_quota().unsigned_abs(),
            is_full: status.errors().iter().any(|error| error.contains("NOSPACE")),
            revision: self.note(status.header()),
        })
    }

    fn cluster_id(&self) -> u64 {
        self.cluster_id.load(Ordering::Relaxed)
    }
}

fn kv_client(client: &Client) -> etcd_client::KvClient {
    client.kv_client().max_decoding_message_size(ANSWER_BYTES_MAX)
}

/// An open watch. The client stays with it: throwing the connection of the calls away must not end it.
struct Watching {
    _client: Client,
    requests: WatchRequestSender,
    answers: WatchResponseStream,
}

impl Watching {
    /// Returns once etcd has said that the watch is set up.
    async fn open(client: Client, key: Vec<u8>, options: WatchOptions) -> Result<Self, etcd_client::Error> {
        let mut watch_client = client.watch_client().max_decoding_message_size(ANSWER_BYTES_MAX);
        let (requests, mut answers) = watch_client.watch(key, Some(options)).await?.split();
        match answers.next().await {
            Some(Ok(answer)) if answer.canceled() => {
                Err(etcd_client::Error::WatchError(answer.cancel_reason().to_owned()))
            }
            Some(Ok(_created)) => Ok(Self { _client: client, requests, answers }),
            Some(Err(e)) => Err(e),
            None => Err(etcd_client::Error::WatchError("the watch ended at once".to_owned())),
        }
    }

    /// The next batch. Nothing is lost when the future is dropped.
    async fn next(&mut self) -> Result<WatchBatch, Error> {
        let mut asked = false;
        loop {
            let wait = if asked { WATCH_ANSWER } else { WATCH_SILENCE };
            match timeout(wait, self.answers.next()).await {
                Ok(Some(Ok(answer))) if answer.canceled() => return Err(cancelled(&answer)),
                Ok(Some(Ok(answer))) if answer.created() => {}
                Ok(Some(Ok(answer))) => return Ok(batch(&answer)),
                Ok(Some(Err(e))) => return Err(watch_error(failure(e))),
                Ok(None) => return Err(Error::Unavailable("the watch ended".to_owned())),
                Err(_silence) if !asked => {
                    asked = true;
                    // It fails only when the stream is at its end, which the next turn sees.
                    let _ended = self.requests.request_progress().await;
                }
                Err(elapsed) => return Err(Error::Unavailable(format!("the watch fell silent: {elapsed}"))),
            }
        }
    }
}

fn cancelled(answer: &WatchResponse) -> Error {
    match answer.compact_revision() {
        0 => watch_error(by_message(Code::Unknown, answer.cancel_reason())),
        oldest => Error::Compacted(oldest),
    }
}

fn watch_error(failure: Failure) -> Error {
    match failure.lasting() {
        Error::Unavailable(why) => Error::Unavailable(format!("the watch ended: {why}")),
        error => error,
    }
}

/// etcd ends a message within a revision only for those who ask for fragments; so every message is a batch.
fn batch(answer: &WatchResponse) -> WatchBatch {
    let changes: Vec<Change> = answer
        .events()
        .iter()
        .filter_map(|event| {
            let now = pair(event.kv()?.clone());
            let pair = match event.event_type() {
                EventType::Put => now,
                EventType::Delete => {
                    Pair { value: Vec::new(), create_revision: 0, version: 0, lease: None, ..now }
                }
            };
            Some(Change { pair, previous: event.prev_kv().cloned().map(self::pair) })
        })
        .collect();
    let revision = match changes.last() {
        // While a watch catches up, the header is ahead of the changes.
        Some(change) => change.pair.mod_revision,
        None => answer.header().map_or(0, etcd_client::ResponseHeader::revision),
    };
    WatchBatch { revision, changes }
}

fn writes(txn: &Txn) -> bool {
    txn.then.iter().chain(&txn.otherwise).any(|op| match op {
        Op::Put { .. } | Op::Delete(_) => true,
        Op::Range(_) => false,
        Op::Txn(txn) => writes(txn),
    })
}

/// The key, and the end of the range unless it is just that key, in etcd's way of writing: `\0` for "to the end of the key space".
fn key_and_end(span: &Span) -> (Vec<u8>, Option<Vec<u8>>) {
    if span.is_empty() {
        return (vec![1], Some(vec![1]));
    }
    let from = span.from.as_bytes();
    // No key is empty, and etcd takes none.
    let key = if from.is_empty() { vec![0] } else { from.to_vec() };
    match span.to.as_ref().map(Key::as_bytes) {
        None => (key, Some(vec![0])),
        Some(to) if to.strip_suffix(&[0]) == Some(from) => (key, None),
        Some(to) => (key, Some(to.to_vec())),
    }
}

fn get_options(range: &Range) -> (Vec<u8>, GetOptions) {
    let (key, end) = key_and_end(&range.span);
    let mut options = GetOptions::new()
        .with_limit(i64::try_from(range.limit).unwrap_or(i64::MAX))
        .with_revision(range.revision.unwrap_or(0));
    if let Some(end) = end {
        options = options.with_range(end);
    }
    if range.serializable {
        options = options.with_serializable();
    }
    (key, options)
}

fn etcd_txn(txn: Txn) -> Result<etcd_client::Txn, Error> {
    let when: Vec<_> = txn.when.into_iter().map(compare).collect();
    let then = txn.then.into_iter().map(op).collect::<Result<Vec<_>, _>>()?;
    let otherwise = txn.otherwise.into_iter().map(op).collect::<Result<Vec<_>, _>>()?;
    Ok(etcd_client::Txn::new().when(when).and_then(then).or_else(otherwise))
}

fn compare(compare: Compare) -> etcd_client::Compare {
    let how = |is| match is {
        Is::Equal => CompareOp::Equal,
        Is::NotEqual => CompareOp::NotEqual,
        Is::Greater => CompareOp::Greater,
        Is::Less => CompareOp::Less,
    };
    match compare {
        Compare::CreateRevision(key, is, revision) => {
            etcd_client::Compare::create_revision(key.as_bytes(), how(is), revision)
        }
        Compare::ModRevision(key, is, revision) => {
            etcd_client::Compare::mod_revision(key.as_bytes(), how(is), revision)
        }
        Compare::Lease(key, lease) => {
            etcd_client::Compare::lease(key.as_bytes(), CompareOp::Equal, lease.map_or(0, |l| l.0))
        }
        Compare::Value(key, value) => etcd_client::Compare::value(key.as_bytes(), CompareOp::Equal, value),
        Compare::NoneIn(span) => {
            // Of a range each key is compared, and one without keys counts as an absent key.
            let (key, end) = key_and_end(&span);
            let absent = etcd_client::Compare::create_revision(key, CompareOp::Equal, 0);
            match end {
                Some(end) => absent.with_range(end),
                None => absent,
            }
        }
    }
}

fn op(op: Op) -> Result<TxnOp, Error> {
    Ok(match op {
        Op::Put { key, value, lease } => {
            let options = PutOptions::new().with_prev_key().with_lease(lease.map_or(0, |l| l.0));
            TxnOp::put(key.as_bytes(), value, Some(options))
        }
        Op::Delete(span) => {
            let (key, end) = key_and_end(&span);
            let mut options = DeleteOptions::new().with_prev_key();
            if let Some(end) = end {
                options = options.with_range(end);
            }
            TxnOp::delete(key, Some(options))
        }
        Op::Range(range) => {
            let (key, options) = get_options(&range);
            TxnOp::get(key, Some(options))
        }
        Op::Txn(txn) => TxnOp::txn(etcd_txn(txn)?),
    })
}

fn txn_reply(reply: &TxnResponse, revision: Revision) -> TxnReply {
    let replies = reply.op_responses().into_iter().map(|reply| match reply {
        TxnOpResponse::Put(mut put) => OpReply::Put(put.take_prev_key().map(pair)),
        TxnOpResponse::Delete(mut delete) => OpReply::Delete(pairs(delete.take_prev_kvs())),
        TxnOpResponse::Get(mut get) => OpReply::Range(RangeReply {
            pairs: pairs(get.take_kvs()),
            more: get.more(),
            // Before the transaction's first write its reads see the revision before.
            revision: get.header().map_or(revision, etcd_client::ResponseHeader::revision),
        }),
        TxnOpResponse::Txn(txn) => OpReply::Txn(txn_reply(&txn, revision)),
    });
    TxnReply { succeeded: reply.succeeded(), revision, replies: replies.collect() }
}

fn pairs(kvs: Vec<KeyValue>) -> Vec<Pair> {
    kvs.into_iter().map(pair).collect()
}

fn pair(kv: KeyValue) -> Pair {
    let (create_revision, mod_revision, version) = (kv.create_revision(), kv.mod_revision(), kv.version());
    let lease = (kv.lease() != 0).then_some(LeaseId(kv.lease()));
    let (key, value) = kv.into_key_value();
    Pair { key: key.into(), value, create_revision, mod_revision, version, lease }
}

fn failure(error: etcd_client::Error) -> Failure {
    match error {
        etcd_client::Error::GRpcStatus(status) => {
            match never_sent(&status) {
                // Before the message: that does not say where it went wrong.
                Some(why) => Failure::NotDone(why),
                None => {
                    match (by_message(status.code(), status.message()), std::error::Error::source(&status)) {
                        (Failure::NoAnswer(why), Some(cause)) => {
                            Failure::NoAnswer(format!("{why}: {}", causes::in_words(cause)))
                        }
                        (failure, _) => failure,
                    }
                }
            }
        }
        etcd_client::Error::LeaseKeepAliveError(why) if why.contains("not found") => {
            Failure::Refused(Error::LeaseGone)
        }
        etcd_client::Error::WatchError(why) | etcd_client::Error::LeaseKeepAliveError(why) => {
            by_message(Code::Unknown, &why)
        }
        etcd_client::Error::InvalidArgs(why) => Failure::Refused(Error::Invalid(why)),
        etcd_client::Error::InvalidUri(e) => {
            Failure::Refused(Error::Invalid(format!("the endpoint is not an address: {e}")))
        }
        other => Failure::NoAnswer(causes::in_words(&other)),
    }
}

/// How the story of a request begins that was not written any more.
const CLOSED: &str = "the connection was closed";

/// The whole story, when there was no connection or it ended before the request was written to it.
fn never_sent(status: &tonic::Status) -> Option<String> {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if let Some(connect) = error.downcast_ref::<tonic::ConnectError>() {
            return Some(format!("connecting: {}", causes::in_words(connect)));
        }
        if let Some(transport) = error.downcast_ref::<hyper::Error>().filter(|e| e.is_canceled()) {
            return Some(format!("{CLOSED}: {}", causes::in_words(transport)));
        }
        cause = error.source();
    }
    None
}

/// What etcd's words mean (its `api/v3rpc/rpctypes/error.go`); the codes alone do not tell, and gRPC itself uses the same ones.
fn by_message(code: Code, message: &str) -> Failure {
    let says = |words: &str| message.contains(words);
    let text = || message.trim_start_matches("etcdserver: ").to_owned();
    if says("requested lease not found") {
        Failure::Refused(Error::LeaseGone)
    } else if says("required revision has been compacted") {
        Failure::Refused(Error::Compacted(0))
    } else if says("invalid auth token") || says("auth store is old") {
        // The next attempt logs in anew.
        Failure::NotDone(text())
    } else if says("user name is empty") {
        Failure::Nobody
    } else if says("permission denied")
        || says("authentication failed")
        || says("authentication is not enabled")
    {
        Failure::Refused(Error::Denied(text()))
    } else if says("no leader") || says("not supported for learner") {
        // The next attempt goes to another member.
        Failure::NotDone(text())
    } else if says("database space exceeded") {
        Failure::Refused(Error::Full(text()))
    } else if says("too many requests") {
        // Not at once and not elsewhere: it has more to do than it can.
        Failure::Refused(Error::Unavailable(text()))
    } else if says("received message larger than max") || (says("etcdserver: ") && is_definite(code)) {
        Failure::Refused(Error::Invalid(text()))
    } else {
        Failure::NoAnswer(format!("{message} ({code:?})"))
    }
}

/// Codes by which etcd (but not gRPC on our side, which uses some of them too) says that it did not do it.
fn is_definite(code: Code) -> bool {
    matches!(code, Code::InvalidArgument | Code::OutOfRange | Code::FailedPrecondition | Code::NotFound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etcds_words_mean_what_the_caller_does_next() {
        let refused = |error| Failure::Refused(error);
        let text = |words: &str| words.trim_start_matches("etcdserver: ").to_owned();
        let check = |code, words: &str, expected| assert_eq!(by_message(code, words), expected, "{words}");
        let lease = "etcdserver: requested lease not found";
        check(Code::NotFound, lease, refused(Error::LeaseGone));
        let compacted = "etcdserver: mvcc: required revision has been compacted";
        check(Code::OutOfRange, compacted, refused(Error::Compacted(0)));
        let full = "etcdserver: mvcc: database space exceeded";
        check(Code::ResourceExhausted, full, refused(Error::Full(text(full))));
        let busy = "etcdserver: too many requests";
        check(Code::ResourceExhausted, busy, refused(Error::Unavailable(text(busy))));
        for words in [
            "etcdserver: permission denied",
            "etcdserver: authentication failed, invalid user ID or password",
        ] {
            let said = by_message(Code::PermissionDenied, words);
            let Failure::Refused(Error::Denied(said)) = said else { panic!("{words}: {said:?}") };
            assert!(said.starts_with(&text(words)), "{said}");
        }
        check(Code::InvalidArgument, "etcdserver: user name is empty", Failure::Nobody);
        let moved_on = "etcdserver: revision of auth store is old";
        check(Code::InvalidArgument, moved_on, Failure::NotDone(text(moved_on)));
        for words in ["etcdserver: duplicate key given in txn request", "etcdserver: request is too large"] {
            check(Code::InvalidArgument, words, refused(Error::Invalid(text(words))));
        }
        check(Code::Unavailable, "etcdserver: no leader", Failure::NotDone("no leader".to_owned()));
        // The server took these in and may still do them, or did.
        for (code, words) in [
            (Code::Unavailable, "etcdserver: request timed out"),
            (Code::Unavailable, "etcdserver: leader changed"),
            (Code::Unavailable, "etcdserver: server stopped"),
            (Code::OutOfRange, "Error, decoded message length too large"),
            (Code::Unknown, "h2 protocol error"),
        ] {
            assert!(matches!(by_message(code, words), Failure::NoAnswer(_)), "{words}");
        }
    }
}
