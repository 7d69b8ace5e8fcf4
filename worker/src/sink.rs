//! The record sink: gathers records into batches (the seed's `LogBatch`), stores them, and only then settles their open runs.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use common::clock;
use common::domain::record::Record;
use common::domain::worker::Sid;
use common::ids::backoff;
use common::kv::Kv;
use common::run_log::{self, RunLog};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use crate::claims::settle;
use crate::live::Live;
use crate::retries::Retries;

/// Records waiting in memory: beyond so many bytes nothing more is claimed until the store takes some. Half of what a small
/// container has.
const WAITING_BYTES_MAX: usize = 256 * 1024 * 1024;
/// What a record weighs beside its texts.
const RECORD_OVERHEAD_BYTES: usize = 1024;
/// Bytes of one batch: a record with full output is 1 MiB, and MongoDB takes 48 MB in one message.
const BATCH_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Pauses between attempts double from the first to the second, in ms.
const RETRY_MIN_MS: u64 = 100;
const RETRY_MAX_MS: u64 = 5_000;

/// Pause before settling again what could not be settled.
const SETTLE_AGAIN: Duration = Duration::from_secs(1);

/// A record and the open key that it settles.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) record: Box<Record>,
    pub(crate) settles: Option<(Sid, u64)>,
}

impl Entry {
    fn bytes(&self) -> usize {
        self.record.output.len() + self.record.command.len() + RECORD_OVERHEAD_BYTES
    }
}

/// How much waits, seen from outside.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    records: AtomicUsize,
    bytes: AtomicUsize,
    /// The open keys that are to be settled.
    unsettled: Mutex<BTreeSet<(Sid, u64)>>,
}

impl Waiting {
    /// Records not yet stored.
    pub(crate) fn records(&self) -> usize {
        self.records.load(Ordering::Relaxed)
    }

    /// Bytes of them.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// There is no room for more.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes() >= WAITING_BYTES_MAX
    }

    /// The record that settles this open key waits, or is stored and the key about to be settled.
    pub(crate) fn settles(&self, sid: Sid, seq: u64) -> bool {
        self.unsettled().contains(&(sid, seq))
    }

    fn unsettled(&self) -> MutexGuard<'_, BTreeSet<(Sid, u64)>> {
        self.unsettled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, entry: &Entry) {
        self.unsettled().extend(entry.settles);
        self.records.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(entry.bytes(), Ordering::Relaxed);
    }

    fn subtract(&self, entries: &[Entry]) {
        self.records.fetch_sub(entries.len(), Ordering::Relaxed);
        self.bytes.fetch_sub(entries.iter().map(Entry::bytes).sum(), Ordering::Relaxed);
    }
}

/// Records on their way to the task. Never blocks the scheduler's loop: its bound is [`WAITING_BYTES_MAX`], beyond which nothing is claimed.
#[derive(Debug, Default)]
struct Queue {
    entries: Mutex<VecDeque<Entry>>,
    came: Notify,
}

impl Queue {
    fn put(&self, entry: Entry) {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).push_back(entry);
        self.came.notify_one();
    }

    /// The next one; cancel safe.
    async fn take(&self) -> Entry {
        loop {
            let next = self.entries.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            match next {
                Some(entry) => return entry,
                None => self.came.notified().await,
            }
        }
    }
}

/// The handle that takes records.
#[derive(Debug)]
pub(crate) struct Sink {
    queue: Arc<Queue>,
    waiting: Arc<Waiting>,
    stored: watch::Receiver<u64>,
    task: JoinHandle<()>,
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// When a batch is stored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchSettings {
    pub(crate) size: usize,
    pub(crate) timeout: Duration,
}

impl Sink {
    /// Starts the task that stores; `live` is told of each record that is.
    pub(crate) fn start(
        kv: Arc<dyn Kv>,
        run_log: Arc<dyn RunLog>,
        settings: BatchSettings,
        live: Live,
    ) -> Self {
        let (queue, waiting) = (Arc::<Queue>::default(), Arc::<Waiting>::default());
        let (told, stored) = watch::channel(0);
        let task = tokio::spawn(store_all(
            kv,
            run_log,
            settings,
            Arc::clone(&queue),
            Arc::clone(&waiting),
            told,
            live,
        ));
        Self { queue, waiting, stored, task }
    }

    /// Hands a record on.
    pub(crate) fn put(&self, entry: Entry) {
        self.waiting.add(&entry);
        self.queue.put(entry);
    }

    /// How much waits.
    pub(crate) fn waiting(&self) -> &Waiting {
        &self.waiting
    }

    /// Returns whenever a batch was stored.
    pub(crate) async fn stored_some(&mut self) {
        let _closed = self.stored.changed().await;
    }
}

async fn store_all(
    kv: Arc<dyn Kv>,
    run_log: Arc<dyn RunLog>,
    settings: BatchSettings,
    queue: Arc<Queue>,
    waiting: Arc<Waiting>,
    told: watch::Sender<u64>,
    live: Live,
) {
    let (storing, settling) = (Retries::new("records not stored"), Retries::new("open runs not settled"));
    let mut unsettled: Vec<(Sid, u64)> = Vec::new();
    loop {
        let first = if unsettled.is_empty() {
            queue.take().await
        } else {
            // Open runs that could not be settled are tried again also when no record comes.
            match clock::timeout(SETTLE_AGAIN, queue.take()).await {
                Ok(first) => first,
                Err(_elapsed) => {
                    settle_all(kv.as_ref(), &mut unsettled, &waiting, &settling).await;
                    continue;
                }
            }
        };
        let batch = gather(first, &queue, settings).await;
        store(run_log.as_ref(), &batch, &storing).await;
        for run_id in batch.iter().filter_map(|entry| entry.record.claim.as_ref()) {
            live.recorded(run_id);
        }
        // If this process dies here, a survivor inserts `lost` for the open runs, which the stored records refuse, and settles them.
        unsettled.extend(batch.iter().filter_map(|entry| entry.settles));
        settle_all(kv.as_ref(), &mut unsettled, &waiting, &settling).await;
        waiting.subtract(&batch);
        told.send_modify(|batches| *batches += 1);
    }
}

/// The batch that begins with `first`: full, or as old as the commit timeout.
async fn gather(first: Entry, queue: &Queue, settings: BatchSettings) -> Vec<Entry> {
    let mut bytes = first.bytes();
    let mut batch = vec![first];
    let started = clock::Stopwatch::start();
    while batch.len() < settings.size && bytes < BATCH_BYTES_MAX {
        let left = settings.timeout.saturating_sub(started.elapsed());
        match clock::timeout(left, queue.take()).await {
            Ok(entry) => {
                bytes += entry.bytes();
                batch.push(entry);
            }
            Err(_elapsed) => break,
        }
    }
    batch
}

/// Stores a batch, trying until it is stored.
async fn store(run_log: &dyn RunLog, batch: &[Entry], retries: &Retries) {
    let records: Vec<Record> = batch.iter().map(|entry| (*entry.record).clone()).collect();
    let Err(why) = append(run_log, &records, retries).await else { return };
    // The store refuses one of them, whatever is done: the others must not wait for it.
    tracing::error!(%why, "the record store refuses a record; storing them one by one");
    for mut record in records {
        let Err(why) = append(run_log, std::slice::from_ref(&record), retries).await else { continue };
        tracing::error!(record = %record.id, %why, "record refused: stored without its output and command");
        record.err = format!("{} (the record store refused output and command: {why})", record.err);
        (record.output, record.command, record.output_truncated) = (String::new(), String::new(), true);
        if let Err(why) = append(run_log, std::slice::from_ref(&record), retries).await {
            tracing::error!(record = %record.id, %why, "record refused even so: it is lost");
        }
    }
}

/// Sends records until all are stored; the error is that the store refuses some as such. A store that is too slow for as many at once is sent
/// fewer, down to one: the same number again would be as slow again, for ever.
async fn append(run_log: &dyn RunLog, records: &[Record], retries: &Retries) -> Result<(), run_log::Error> {
    let (mut left, mut size, mut failures) = (records, records.len(), 0);
    while !left.is_empty() {
        let (some, rest) = left.split_at(size.min(left.len()));
        match run_log.append(some).await {
            Ok(appended) => {
                for conflict in &appended.conflicts {
                    tracing::error!(record = %conflict.id, claim = ?conflict.claim, "a fire has records of two claims: it was run twice");
                }
                retries.worked();
                (left, size, failures) = (rest, some.len() * 2, 0);
            }
            Err(why @ run_log::Error::Invalid(_)) => return Err(why),
            Err(why) => {
                failures += 1;
                size = (some.len() / 2).max(1);
                retries.failed(&why);
                clock::sleep(backoff(failures - 1, RETRY_MIN_MS, RETRY_MAX_MS)).await;
            }
        }
    }
    Ok(())
}

/// Settles open runs whose records are stored; what fails stays in the list. Should this process die first, they are swept with
/// their session, harmlessly.
async fn settle_all(kv: &dyn Kv, unsettled: &mut Vec<(Sid, u64)>, waiting: &Waiting, retries: &Retries) {
    match settle(kv, unsettled).await {
        Ok(()) => {
            let mut known = waiting.unsettled();
            for key in unsettled.drain(..) {
                known.remove(&key);
            }
            retries.worked();
        }
        Err(why) => retries.failed(&why),
    }
}
