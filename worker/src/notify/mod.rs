//! Tells people what became of jobs.
//!
//! A record that may have to be told goes, in few words, to this worker's disk ([`outbox`]) before the record itself can leave it; what is told
//! is decided by a compare-and-swap of the job's state in the store ([`state`]), so that of many workers one tells; the messages go to disk
//! again and from there to their channels ([`delivery`], [`channels`]). What becomes of it when this process dies:
//!
//! | When | Then |
//! |---|---|
//! | the record is on disk, what is told of it is not | the next process of this data directory reads the record back and tells |
//! | before it is decided | that process decides |
//! | it is decided, and the messages are not on disk | it asks again under the same name, and is answered the same |
//! | a message is delivered, and still on disk | it is sent once more, under the same id |
//! | the record is not on disk either | survivors write `lost`, and tell of that |
//!
//! Jobs that nobody wants to be told of cost a look into a map.

mod channels;
mod delivery;
mod message;
mod outbox;
mod state;
#[cfg(test)]
mod tests;
mod watched;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use common::channels::Channels;
use common::clock::{self, Clock, Stopwatch};
use common::domain::audit::{Entry, EntryId};
use common::domain::job::JobName;
use common::domain::notify::{Notified, Told};
use common::domain::output::Chunk;
use common::domain::record::Record;
use common::domain::run::RunId;
use common::history::{History, Query, Shelf};
use common::ids::{backoff, random_id};
use common::keys;
use common::kv::{self, Compare, Kv, Op, Span, Txn};
use common::run_log::{self, Appended, Place, RecordQuery, Removal, RunLog};
use common::secrets::{Aws, Cached};
use futures::StreamExt as _;
use futures::stream;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::follow::{News, follow};
use crate::retries::Retries;
use crate::scheduler::Event;

use channels::Sender;
use delivery::Queue;
use message::Message;
use outbox::{Found, Group, Outbox, Outgoing};
use state::{Happened, apply};
use watched::Watched;

/// What is undecided: beyond, news of further ends is given up. The store was away for long, or another thousand jobs fail each second.
const UNDECIDED_MAX: usize = 10_000;
/// Jobs whose states are changed at once.
const DECIDED_AT_ONCE: usize = 16;
/// Records that an earlier process has left wait so long for what is known of their jobs.
const KNOWN_WITHIN: Duration = Duration::from_secs(10);
/// Jobs are looked at this often for how long they have not succeeded.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// States whose jobs may be gone are looked at this often.
const TIDY_EVERY: Duration = Duration::from_secs(3600);
/// A worker that leaves waits so long for its messages; the rest is its next process's.
const LAST_WORDS_MAX: Duration = Duration::from_secs(5);
/// Pauses between attempts double from the first to the second, in ms.
const RETRY_MIN_MS: u64 = 100;
const RETRY_MAX_MS: u64 = 5_000;

/// What is counted, for the metrics.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Messages taken by their channels.
    pub(crate) sent: AtomicU64,
    /// Attempts that were not.
    pub(crate) failed: AtomicU64,
    /// News and messages that were given up.
    pub(crate) dropped: AtomicU64,
    /// Messages that wait.
    pub(crate) waiting: AtomicUsize,
    /// Jobs that name a channel that this worker does not have.
    pub(crate) unknown: AtomicUsize,
}

impl Counters {
    /// Gives them as metrics: name, kind, help, value.
    pub(crate) fn put(&self, put: &mut dyn FnMut(&str, &str, &str, String)) {
        let count = |counter: &AtomicU64| counter.load(Relaxed).to_string();
        put(
            "fleetcron_notifications_total",
            "counter",
            "Notifications taken by their channels.",
            count(&self.sent),
        );
        put(
            "fleetcron_notifications_failed_total",
            "counter",
            "Attempts at which a channel did not take a notification; it is sent again.",
            count(&self.failed),
        );
        put(
            "fleetcron_notifications_dropped_total",
            "counter",
            "Notifications given up: too old, too many, or refused for good.",
            count(&self.dropped),
        );
        let waiting = self.waiting.load(Relaxed).to_string();
        put(
            "fleetcron_notifications_waiting",
            "gauge",
            "Notifications that wait for their channel.",
            waiting,
        );
        put(
            "fleetcron_notify_unknown_channels",
            "gauge",
            "Jobs that name a channel which this worker's CRON_NOTIFY_FILE does not have.",
            self.unknown.load(Relaxed).to_string(),
        );
    }
}

/// The handle that is told what happens.
#[derive(Clone)]
pub(crate) struct Notices(Arc<Inner>);

struct Inner {
    channels: Arc<Channels>,
    kv: Arc<dyn Kv>,
    clock: Arc<dyn Clock>,
    outbox: Outbox,
    queues: BTreeMap<String, Arc<Queue>>,
    counters: Arc<Counters>,
    watched: Mutex<Watched>,
    /// Not decided yet, the oldest first.
    groups: Mutex<Vec<Group>>,
    /// There is something to be decided.
    came: Notify,
    /// What is known of the jobs is whole now.
    known: Notify,
    /// Names this process's groups.
    name: String,
    next: AtomicU64,
    undecided: AtomicUsize,
    /// The disk was said to take none.
    unwritable: AtomicBool,
    /// More was said to be undecided than there is room for.
    overfull: AtomicBool,
}

impl Notices {
    /// Begins with what an earlier process has left in the directory. The tasks are [`Self::start`]'s.
    pub(crate) fn new(
        channels: Arc<Channels>,
        dir: Option<&Path>,
        kv: Arc<dyn Kv>,
        clock: Arc<dyn Clock>,
        counters: Arc<Counters>,
    ) -> Self {
        let dir = dir.filter(|_| !channels.channels.is_empty());
        let (outbox, found) = Outbox::open(dir).unwrap_or_else(|why| {
            tracing::error!(%why, "notifications cannot be kept on disk: a crash of this worker loses those that wait");
            (Outbox::in_memory(), Found::default())
        });
        let queue = |name: &String| {
            (name.clone(), Arc::new(Queue::new(name.clone(), outbox.clone(), Arc::clone(&counters))))
        };
        let queues: BTreeMap<_, _> = channels.channels.keys().map(queue).collect();
        let Found { groups, messages } = found;
        for outgoing in messages {
            match queues.get(&outgoing.channel) {
                Some(queue) => queue.put(outgoing),
                None => {
                    let (channel, job) = (&outgoing.channel, &outgoing.message.job);
                    tracing::error!(%channel, %job, "notification given up: its channel is not there any more");
                    counters.dropped.fetch_add(1, Relaxed);
                    let _found_again = outbox.done(&outgoing);
                }
            }
        }
        let undecided = groups.iter().map(|group| group.happened.len()).sum();
        Self(Arc::new(Inner {
            watched: Mutex::new(Watched::new(Arc::clone(&channels))),
            channels,
            kv,
            name: format!("{:013}-{}", clock.now().ms(), random_id()),
            clock,
            outbox,
            queues,
            counters,
            groups: Mutex::new(groups),
            came: Notify::new(),
            known: Notify::new(),
            next: AtomicU64::new(0),
            undecided: AtomicUsize::new(undecided),
            unwritable: AtomicBool::new(false),
            overfull: AtomicBool::new(false),
        }))
    }

    /// Without channels.
    #[cfg(test)]
    pub(crate) fn none(kv: Arc<dyn Kv>) -> Self {
        Self::new(Arc::default(), None, kv, Arc::new(clock::SystemClock), Arc::default())
    }

    /// Starts what decides and delivers. Without channels there is nothing to do.
    pub(crate) fn start(&self) -> Vec<JoinHandle<()>> {
        if self.is_idle() {
            return Vec::new();
        }
        let client = match channels::client() {
            Ok(client) => client,
            Err(why) => {
                tracing::error!(%why, "no HTTP client: nobody is notified");
                return Vec::new();
            }
        };
        let vault = Arc::new(Cached::new(Arc::new(Aws)));
        let mut tasks = Vec::new();
        for (name, channel) in &self.0.channels.channels {
            let Some(queue) = self.0.queues.get(name).cloned() else { continue };
            let sender = Sender::new(channel.clone(), client.clone(), Arc::clone(&vault));
            let clock = Arc::clone(&self.0.clock);
            let per_minute = self.0.channels.per_minute;
            tasks.push(tokio::spawn(async move { queue.deliver(sender, per_minute, clock).await }));
        }
        let (deciding, looking) = (self.clone(), self.clone());
        tasks.push(tokio::spawn(async move { deciding.decide_all().await }));
        tasks.push(tokio::spawn(async move { looking.look_often().await }));
        tasks
    }

    /// Follows what is told of jobs by whomever; `None` = nobody is to be told anything here.
    pub(crate) fn follow(&self) -> Option<JoinHandle<()>> {
        if self.is_idle() {
            return None;
        }
        let notices = self.clone();
        Some(tokio::spawn(async move {
            let kv = Arc::clone(&notices.0.kv);
            follow(kv, Span::prefix(keys::NOTIFY), |news| {
                let notices = notices.clone();
                async move {
                    notices.take_states(news).await;
                    true
                }
            })
            .await;
        }))
    }

    fn is_idle(&self) -> bool {
        self.0.queues.is_empty()
    }

    fn watched(&self) -> MutexGuard<'_, Watched> {
        self.0.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // --- what happens ---------------------------------------------------------------------------------------------

    /// Sees what the scheduler is told, before it is: which jobs there are, and whether the fleet is paused.
    pub(crate) fn see(&self, event: &Event) {
        let deleted = match event {
            Event::JobDeleted(job) => Some(job.clone()),
            _ => None,
        };
        let matters = matches!(
            event,
            Event::JobPut(_)
                | Event::JobDeleted(_)
                | Event::JobsListBegins
                | Event::JobsListed
                | Event::Paused(_)
                | Event::Base(_)
        );
        if !matters {
            return;
        }
        let now = self.0.clock.now();
        let mut watched = self.watched();
        let (happened, is_known) = (watched.see(event, now), watched.is_known());
        self.0.counters.unknown.store(watched.unknown_channels(), Relaxed);
        drop(watched);
        if self.is_idle() {
            return;
        }
        if is_known {
            self.0.known.notify_waiters();
        }
        self.keep_in_background(happened);
        if let Some(job) = deleted {
            let notices = self.clone();
            tokio::spawn(async move {
                // Again within the hour, should it not work.
                let _away = notices.forget(&job).await;
            });
        }
    }

    /// These records are on this worker's disk, or on their way to the record store without having been: what must be told of them is on disk
    /// when it returns. Blocks for that.
    pub(crate) fn take<'a>(&self, records: impl IntoIterator<Item = &'a Record>) {
        if self.is_idle() {
            return;
        }
        let now = self.0.clock.now();
        let mut watched = self.watched();
        let happened: Vec<Happened> =
            records.into_iter().filter_map(|record| watched.take(record, now)).collect();
        drop(watched);
        self.keep(happened);
    }

    /// Whether anybody wants to be told of the record's job.
    fn wants(&self, record: &Record) -> bool {
        !self.is_idle() && self.watched().wants(record)
    }

    /// As [`Self::take`], of records that an earlier process has left, or that never were on disk: waits for what must be known of their jobs,
    /// though not for ever, since records must not wait for etcd.
    pub(crate) async fn take_left(&self, records: &[Record]) {
        if self.is_idle() {
            return;
        }
        let known = self.0.known.notified();
        if !self.watched().is_known() {
            let _known_or_time = clock::timeout(KNOWN_WITHIN, known).await;
        }
        self.take(records);
    }

    fn keep_in_background(&self, happened: Vec<Happened>) {
        if !happened.is_empty() {
            let notices = self.clone();
            drop(tokio::task::spawn_blocking(move || notices.keep(happened)));
        }
    }

    /// Puts what happened on disk, to be decided.
    fn keep(&self, happened: Vec<Happened>) {
        if happened.is_empty() {
            return;
        }
        let inner = &self.0;
        let undecided = inner.undecided.fetch_add(happened.len(), Relaxed);
        if undecided + happened.len() > UNDECIDED_MAX {
            inner.undecided.fetch_sub(happened.len(), Relaxed);
            inner.counters.dropped.fetch_add(happened.len() as u64, Relaxed);
            if inner.overfull.swap(true, Relaxed) {
                return;
            }
            tracing::error!(news = happened.len(), undecided, "too much is undecided: news of jobs given up");
            return;
        }
        inner.overfull.store(false, Relaxed);
        let number = inner.next.fetch_add(1, Relaxed);
        let group = Group::new(format!("{}/{number:010}", inner.name), happened);
        match inner.outbox.put_group(&group) {
            Ok(()) => inner.unwritable.store(false, Relaxed),
            Err(why) => {
                if !inner.unwritable.swap(true, Relaxed) {
                    tracing::error!(%why, "notifications cannot be written to disk: a crash of this worker loses those that wait");
                }
            }
        }
        inner.groups.lock().unwrap_or_else(PoisonError::into_inner).push(group);
        inner.came.notify_one();
    }

    /// What is told of jobs changed, by this worker or another.
    async fn take_states(&self, news: News) {
        let happened = self.watched().take_states(&news);
        if self.watched().is_known() {
            self.0.known.notify_waiters();
        }
        if !happened.is_empty() {
            let notices = self.clone();
            let _kept = tokio::task::spawn_blocking(move || notices.keep(happened)).await;
        }
    }

    // --- deciding -------------------------------------------------------------------------------------------------

    async fn decide_all(&self) {
        let retries = Retries::new("not decided what is told of jobs");
        // What an earlier process has left is decided when it is known who wants to be told.
        loop {
            let known = self.0.known.notified();
            if self.watched().is_known() {
                break;
            }
            known.await;
        }
        loop {
            let first = self.0.groups.lock().unwrap_or_else(PoisonError::into_inner).first().cloned();
            let Some(group) = first else {
                self.0.came.notified().await;
                continue;
            };
            let mut by_job: BTreeMap<JobName, Vec<Happened>> = BTreeMap::new();
            for happened in &group.happened {
                by_job.entry(happened.job.clone()).or_default().push(happened.clone());
            }
            let deciding = by_job.into_iter().map(|(job, happened)| {
                let (by, retries) = (&group.by, &retries);
                async move { self.decide(by, &job, &happened, retries).await }
            });
            let decided: Vec<Vec<Outgoing>> =
                stream::iter(deciding).buffer_unordered(DECIDED_AT_ONCE).collect().await;
            self.finish(&group, decided.concat()).await;
        }
    }

    /// What is told of one job's part of a group.
    async fn decide(
        &self,
        by: &str,
        job: &JobName,
        happened: &[Happened],
        retries: &Retries,
    ) -> Vec<Outgoing> {
        let mut failures = 0;
        loop {
            match self.swap(by, job, happened).await {
                Ok(told) => {
                    retries.worked();
                    return told.into_iter().flat_map(|told| self.messages(by, told, happened)).collect();
                }
                Err(why) => {
                    failures += 1;
                    retries.failed(&why);
                    clock::sleep(backoff(failures - 1, RETRY_MIN_MS, RETRY_MAX_MS)).await;
                }
            }
        }
    }

    /// Changes the job's state by what happened, as often as others come between. An answer that was lost is no different: asked again, the
    /// state says what was decided.
    async fn swap(&self, by: &str, job: &JobName, happened: &[Happened]) -> Result<Vec<Told>, kv::Error> {
        let (state_key, job_key) = (keys::notify(job), keys::job(job));
        let (mut state, mut revision) = self.watched().state(job);
        loop {
            let (after, told) = apply(&state, by, happened, self.0.clock.now());
            if after == state {
                return Ok(told);
            }
            let swap = Txn {
                when: vec![
                    Compare::unchanged(state_key.as_str(), revision),
                    Compare::exists(job_key.as_str()),
                ],
                then: vec![Op::put(state_key.as_str(), after.encode())],
                otherwise: vec![Op::get(state_key.as_str()), Op::get(job_key.as_str())],
            };
            let reply = self.0.kv.txn(swap).await?;
            if reply.succeeded {
                self.watched().note_state(job, after, reply.revision);
                return Ok(told);
            }
            if reply.pair(1).is_none() {
                return Ok(Vec::new()); // the job is deleted: nobody waits for news of it
            }
            (state, revision) = match reply.pair(0) {
                None => (Notified::default(), 0),
                Some(pair) => match Notified::decode(&pair.value) {
                    Ok(state) => (state, pair.mod_revision),
                    Err(why) => {
                        tracing::error!(%job, %why, "what was told of the job cannot be read: nothing is told");
                        return Ok(Vec::new());
                    }
                },
            };
        }
    }

    /// A message for each channel that wants to be told of this.
    fn messages(&self, by: &str, told: Told, happened: &[Happened]) -> Vec<Outgoing> {
        let Some(of) = happened.get(told.index) else { return Vec::new() };
        let to = self.watched().channels_for(&of.job, &told, of.what);
        let message = Message::new(by, told, of, self.0.channels.console.as_deref());
        let now = self.0.clock.now();
        to.into_iter().map(|channel| Outgoing::new(channel, now, message.clone())).collect()
    }

    /// A group is decided: its messages go to disk, and then to their channels.
    async fn finish(&self, group: &Group, messages: Vec<Outgoing>) {
        let notices = self.clone();
        let by = group.by.clone();
        let writing = tokio::task::spawn_blocking(move || {
            let written = notices.0.outbox.decided(&by, &messages);
            (written, messages)
        });
        let (written, messages) = writing.await.expect("writing does not panic, and the runtime goes on");
        if let Err(why) = written {
            tracing::error!(%why, "notifications cannot be written to disk: a crash of this worker loses or repeats them");
        }
        self.0.groups.lock().unwrap_or_else(PoisonError::into_inner).retain(|other| other.by != group.by);
        self.0.undecided.fetch_sub(group.happened.len(), Relaxed);
        for outgoing in messages {
            let (job, kind) = (&outgoing.message.job, outgoing.message.told.kind.as_str());
            tracing::info!(%job, kind, channel = %outgoing.channel, "notification");
            if let Some(queue) = self.0.queues.get(&outgoing.channel) {
                queue.put(outgoing);
            }
        }
    }

    // --- time -----------------------------------------------------------------------------------------------------

    /// Looks now and then for jobs that have not succeeded for long, and for states whose jobs are gone.
    async fn look_often(&self) {
        let tidied = Retries::new("what is kept of deleted jobs' notifications not taken away");
        let mut tidy = Stopwatch::start();
        loop {
            clock::sleep(LOOK_EVERY).await;
            let happened = self.watched().overdue(&self.0.name, self.0.clock.now());
            self.keep_in_background(happened);
            if tidy.elapsed() < TIDY_EVERY {
                continue;
            }
            tidy = Stopwatch::start();
            let strays = self.watched().strays();
            for job in strays {
                match self.forget(&job).await {
                    Ok(()) => tidied.worked(),
                    Err(why) => tidied.failed(&why),
                }
            }
        }
    }

    /// Takes the state of a job away, if the job is not there.
    async fn forget(&self, job: &JobName) -> Result<(), kv::Error> {
        let txn = Txn {
            when: vec![Compare::absent(keys::job(job))],
            then: vec![Op::delete(keys::notify(job))],
            otherwise: Vec::new(),
        };
        self.0.kv.txn(txn).await.map(|_done_or_not| ())
    }

    /// Waits for what is to be told, at most for `limit`, and not for long either: what is on disk is not lost.
    pub(crate) async fn last_words(&self, limit: Duration) {
        let waited = Stopwatch::start();
        let is_waiting =
            || self.0.undecided.load(Relaxed) > 0 || self.0.queues.values().any(|queue| !queue.is_empty());
        while is_waiting() && waited.elapsed() < limit.min(LAST_WORDS_MAX) {
            clock::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl std::fmt::Debug for Notices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Notices").field("channels", &self.0.queues.keys()).finish_non_exhaustive()
    }
}

/// The record store as whoever closes the runs of others sees it: what is stored there is told, too.
pub(crate) struct Noticing {
    pub(crate) inner: Arc<dyn RunLog>,
    pub(crate) notices: Notices,
}

#[async_trait]
impl RunLog for Noticing {
    async fn append(&self, records: &[Record]) -> Result<Appended, run_log::Error> {
        let appended = self.inner.append(records).await?;
        // If this process dies here, whoever closes these runs next tells of them: their open runs are still in the store.
        for record in records.iter().filter(|record| self.notices.wants(record)) {
            // Of a run that has its real record by now, `lost` is not told: whoever wrote that one tells.
            let stored = self.inner.get(record.id.as_str()).await?;
            if stored.is_some_and(|stored| stored.status == record.status) {
                self.notices.take([record]);
            }
        }
        Ok(appended)
    }

    async fn prepare(&self) -> Result<(), run_log::Error> {
        self.inner.prepare().await
    }

    async fn list(&self, query: &RecordQuery) -> Result<Vec<Record>, run_log::Error> {
        self.inner.list(query).await
    }

    async fn place(&self, query: &RecordQuery) -> Result<Option<Place>, run_log::Error> {
        self.inner.place(query).await
    }

    async fn get(&self, id: &str) -> Result<Option<Record>, run_log::Error> {
        self.inner.get(id).await
    }

    async fn put_output(&self, chunks: &[Chunk]) -> Result<(), run_log::Error> {
        self.inner.put_output(chunks).await
    }

    async fn output(&self, run_id: &RunId, after: u64) -> Result<Vec<Chunk>, run_log::Error> {
        self.inner.output(run_id, after).await
    }

    async fn jobs(&self, after: &str, limit: u32) -> Result<Vec<String>, run_log::Error> {
        self.inner.jobs(after, limit).await
    }

    async fn remove(&self, what: &Removal, limit: u32) -> Result<u64, run_log::Error> {
        self.inner.remove(what, limit).await
    }
}

#[async_trait]
impl History for Noticing {
    async fn prepare_history(&self) -> Result<(), run_log::Error> {
        self.inner.prepare_history().await
    }

    async fn keep(&self, entries: &[Entry]) -> Result<(), run_log::Error> {
        self.inner.keep(entries).await
    }

    async fn kept(&self, shelf: Shelf, query: &Query) -> Result<Vec<Entry>, run_log::Error> {
        self.inner.kept(shelf, query).await
    }

    async fn kept_jobs(&self, after: &str, limit: u32) -> Result<Vec<String>, run_log::Error> {
        self.inner.kept_jobs(after, limit).await
    }

    async fn forget(
        &self,
        shelf: Shelf,
        name: Option<&str>,
        below: &EntryId,
        limit: u32,
    ) -> Result<u64, run_log::Error> {
        self.inner.forget(shelf, name, below, limit).await
    }
}
