//! The record sink: records go to disk first, then in batches (the seed's `LogBatch`) to the record store, and only then are their open runs
//! settled. What becomes of a record when this process dies:
//!
//! | When | Then |
//! |---|---|
//! | before it is on disk | its open run is in etcd: a survivor writes `lost` |
//! | on disk, not in the store | the next process of this data directory stores it; it takes the place of `lost` (design P11) |
//! | and its open run is gone from etcd (design P12) | the same; should the disk be lost too, nothing tells of the run but its mark |
//! | in the store, its open run still in etcd | a survivor's `lost` is refused by the record; the open run goes |
//! | and the spool does not know yet | the next process stores it again, which is a replay |

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use common::clock;
use common::domain::record::Record;
use common::ids::backoff;
use common::kv::Kv;
use common::run_log::{self, RunLog};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::claims::settle;
use crate::histogram::{Histogram, REQUESTS_MS};
use crate::live::Live;
use crate::notify::Notices;
use crate::pace::Pace;
use crate::retries::Retries;
use crate::spool::{self, Amount, Chunk, Writer, frame};
use crate::waiting::{Batch, Entry, OpenKey, Waiting};

/// Bytes of one batch: a record with full output is 1 MiB, and MongoDB takes 48 MB in one message.
const BATCH_BYTES_MAX: usize = 16 << 20;
/// Records of one batch that is read back from disk: the store was away, and many small batches would take longer.
const CATCH_UP_BATCH: usize = 2_000;
/// Pauses between attempts double from the first to the second, in ms.
const RETRY_MIN_MS: u64 = 100;
const RETRY_MAX_MS: u64 = 5_000;

/// Pause before settling again what could not be settled.
const SETTLE_AGAIN: Duration = Duration::from_secs(1);
/// After records were brought to disk, those that come within this go together: a disk that etcd may share is not asked with each run.
const GROUP_FOR: Duration = Duration::from_millis(20);
/// A disk that takes nothing is tried again after this.
const DISK_AGAIN: Duration = Duration::from_secs(2);
/// A segment that cannot be read is tried so often before those behind it go first.
const READINGS_MAX: u32 = 5;

/// The handle that takes records.
#[derive(Debug)]
pub(crate) struct Sink {
    waiting: Arc<Waiting>,
    stored: watch::Receiver<u64>,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.waiting.close();
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// When a batch is stored, and where it waits for that.
#[derive(Clone, Debug)]
pub(crate) struct SinkSettings {
    /// Records of a batch.
    pub(crate) size: usize,
    /// An incomplete one is stored after so long.
    pub(crate) timeout: Duration,
    /// Where the spool is; `None` = records wait in memory alone.
    pub(crate) spool: Option<PathBuf>,
    /// What it may take on disk; `None` = see [`spool::open`].
    pub(crate) spool_bytes_max: Option<u64>,
    /// Told how the record store does.
    pub(crate) appends: Arc<Appends>,
}

/// How the record store has taken what it was sent.
#[derive(Debug)]
pub(crate) struct Appends {
    /// How long it took for what was sent at once, also where no answer came.
    pub(crate) times: Histogram,
    /// How often it has failed.
    pub(crate) failed: AtomicU64,
    /// Records of two claims for one fire.
    pub(crate) conflicts: AtomicU64,
}

impl Default for Appends {
    fn default() -> Self {
        Self { times: Histogram::new(REQUESTS_MS), failed: AtomicU64::new(0), conflicts: AtomicU64::new(0) }
    }
}

impl Sink {
    /// Starts the thread that writes to disk and the tasks that store and settle; `live` is told of each record that is stored, `notices` of each
    /// before it can be.
    pub(crate) fn start(
        kv: Arc<dyn Kv>,
        run_log: Arc<dyn RunLog>,
        settings: SinkSettings,
        live: Live,
        notices: Notices,
    ) -> Self {
        let waiting = Arc::new(Waiting::new(settings.spool.is_some()));
        let (told, stored) = watch::channel(0);
        if let Some(dir) = settings.spool.clone() {
            let (waiting, max, notices) = (Arc::clone(&waiting), settings.spool_bytes_max, notices.clone());
            // A thread of its own: a disk may take its time, and a runtime that ends waits for blocking tasks.
            std::thread::spawn(move || write_spool(&waiting, &dir, max, &notices));
        }
        let thinning = tokio::spawn(thin_out(Arc::clone(&kv), Arc::clone(&waiting)));
        let storing = Storing {
            kv,
            run_log,
            settings,
            waiting: Arc::clone(&waiting),
            live,
            notices,
            storing: Retries::new("records not stored"),
            settling: Retries::new("open runs not settled"),
            trimming: Retries::new("spool not made smaller"),
            pace: Pace::new(),
            unsettled: Vec::new(),
        };
        Self { waiting, stored, tasks: [thinning, tokio::spawn(storing.run(told))] }
    }

    /// Hands a record on. Never blocks.
    pub(crate) fn put(&self, entry: Entry) {
        self.waiting.put(entry);
    }

    /// What waits.
    pub(crate) fn waiting(&self) -> &Waiting {
        &self.waiting
    }

    /// Returns whenever a batch was stored.
    pub(crate) async fn stored_some(&mut self) {
        let _closed = self.stored.changed().await;
    }
}

// --- to disk ----------------------------------------------------------------------------------------------------------

/// Writes what is put to disk, one sync for all that has come meanwhile. Ends when nothing more is put.
fn write_spool(waiting: &Waiting, dir: &Path, max_bytes: Option<u64>, notices: &Notices) {
    let retries = Retries::new(format!("records not written to {}", dir.display()));
    let Some(mut writer) = open_spool(waiting, dir, max_bytes, &retries) else { return };
    while let Some(group) = waiting.next_group() {
        let (frames, lengths) = frames(&group);
        // If this process dies here, these runs are open in etcd: survivors write `lost`. A frame of which a part is on disk is none.
        match writer.append(&frames) {
            Ok(place) => {
                retries.worked();
                // If this process dies here, the next one tells of these records when it reads them back. Until they are told of, none is stored.
                notices.take(group.iter().map(|entry| entry.record.as_ref()));
                waiting.written(group, place, &lengths);
                std::thread::sleep(GROUP_FOR);
            }
            Err(why) => {
                say_unwritable(dir, &why);
                retries.failed(&why);
                waiting.not_written(group, &why);
                // Tried also when nothing is left to be written: as long as neither disk nor store take anything, nothing new comes.
                while !waiting.is_closed() {
                    std::thread::sleep(DISK_AGAIN);
                    match writer.probe() {
                        Ok(()) => {
                            waiting.is_mended();
                            break;
                        }
                        Err(why) => retries.failed(&why),
                    }
                }
            }
        }
    }
}

/// Opens the spool, trying until it can be.
fn open_spool(waiting: &Waiting, dir: &Path, max_bytes: Option<u64>, retries: &Retries) -> Option<Writer> {
    let mut said = false;
    loop {
        match spool::open(dir, max_bytes) {
            Ok((writer, reader, found)) => {
                retries.worked();
                if found.records > 0 {
                    let records = found.records;
                    tracing::info!(records, dir = %dir.display(), "records of an earlier process are stored now");
                }
                waiting.opened(reader, found);
                return Some(writer);
            }
            Err(why) => {
                if !std::mem::replace(&mut said, true) {
                    say_unwritable(dir, &why);
                }
                retries.failed(&why);
                waiting.not_written(Vec::new(), &why);
            }
        }
        if waiting.is_closed() {
            return None;
        }
        std::thread::sleep(DISK_AGAIN);
    }
}

fn say_unwritable(dir: &Path, why: &std::io::Error) {
    tracing::error!(
        dir = %dir.display(),
        %why,
        "records cannot be written to disk: until they can, a crash of this worker loses those that the record store does not have"
    );
}

/// The frames of a group, and how long each is.
fn frames(group: &[Entry]) -> (Vec<u8>, Vec<u64>) {
    let (mut bytes, mut lengths) = (Vec::new(), Vec::new());
    for entry in group {
        let before = bytes.len();
        frame::write(&mut bytes, &entry.record, entry.settles);
        lengths.push((bytes.len() - before) as u64);
    }
    (bytes, lengths)
}

// --- to the record store ----------------------------------------------------------------------------------------------

/// The task that stores.
struct Storing {
    kv: Arc<dyn Kv>,
    run_log: Arc<dyn RunLog>,
    settings: SinkSettings,
    waiting: Arc<Waiting>,
    live: Live,
    notices: Notices,
    storing: Retries,
    settling: Retries,
    trimming: Retries,
    pace: Pace,
    /// Open runs whose records are stored.
    unsettled: Vec<OpenKey>,
}

impl Storing {
    async fn run(mut self, told: watch::Sender<u64>) {
        loop {
            let Some(batch) = self.next_batch().await else {
                // Open runs that could not be settled are tried again also when no record comes.
                if self.unsettled.is_empty() {
                    self.waiting.came().await;
                } else if clock::timeout(SETTLE_AGAIN, self.waiting.came()).await.is_err() {
                    self.settle_all().await;
                }
                continue;
            };
            if batch.is_untold() {
                self.notices.take_left(&batch.records).await;
            }
            self.store(&batch.records).await;
            for run_id in batch.records.iter().filter_map(|record| record.claim.as_ref()) {
                self.live.recorded(run_id);
            }
            // If this process dies here, a survivor inserts `lost` for the open runs, which the stored records refuse, and settles them.
            self.unsettled.extend(self.waiting.keys_of(&batch));
            self.settle_all().await;
            // If this process dies here, the next one stores the batch again: a replay.
            self.trim(&batch).await;
            told.send_modify(|batches| *batches += 1);
        }
    }

    /// The next batch, if there is anything: of what must be read from disk, else of what is in memory, full or as old as the commit timeout.
    async fn next_batch(&self) -> Option<Batch> {
        if let Some(batch) = self.read_back().await {
            return Some(batch);
        }
        let mut batch = Batch::default();
        let mut started = None;
        while batch.records.len() < self.settings.size && batch.bytes < BATCH_BYTES_MAX {
            if self.waiting.take_into(&mut batch) {
                continue;
            }
            if batch.records.is_empty() || self.waiting.has_backlog() {
                break;
            }
            let started = started.get_or_insert_with(clock::Stopwatch::start);
            let left = self.settings.timeout.saturating_sub(started.elapsed());
            if clock::timeout(left, self.waiting.came()).await.is_err() {
                break;
            }
        }
        (!batch.records.is_empty()).then_some(batch)
    }

    /// Reads a batch from disk, if that is where the next records are. What cannot be read after some attempts is left for another process:
    /// the records behind it must not wait for it.
    async fn read_back(&self) -> Option<Batch> {
        let amount = Amount { records: self.settings.size.max(CATCH_UP_BATCH), bytes: BATCH_BYTES_MAX };
        let mut failures = 0;
        loop {
            let (from, end, inherited, mut reader) = self.waiting.backlog()?;
            let last = failures == READINGS_MAX;
            let reading = tokio::task::spawn_blocking(move || {
                let read = reader.read(from, end, amount);
                if last && read.is_err() {
                    reader.give_up(from.segment);
                }
                (reader, read)
            });
            let (reader, read) = reading.await.expect("reading does not panic, and the runtime goes on");
            self.waiting.give_back(reader);
            let chunk = match read {
                Ok(chunk) => chunk,
                Err(why) if !last => {
                    failures += 1;
                    tracing::warn!(segment = from.segment, %why, failures, "the spool cannot be read; trying again");
                    clock::sleep(backoff(failures - 1, RETRY_MIN_MS, RETRY_MAX_MS)).await;
                    continue;
                }
                Err(why) => {
                    tracing::error!(segment = from.segment, %why, "the spool cannot be read here: left for the next process to try");
                    Chunk::nothing(from.segment, end)
                }
            };
            failures = 0;
            let batch = Batch::read(chunk, inherited);
            self.waiting.took(&batch);
            if !batch.records.is_empty() {
                return Some(batch);
            }
            self.trim(&batch).await;
        }
    }

    /// A batch is stored: keeps how far that is, and gives back the room of segments that are done with.
    async fn trim(&self, batch: &Batch) {
        let Some((up_to, done, mut reader)) = self.waiting.stored(batch) else { return };
        let trimming = tokio::task::spawn_blocking(move || {
            let trimmed = reader.stored(up_to, &done);
            (reader, done, trimmed)
        });
        let (reader, done, trimmed) =
            trimming.await.expect("removing does not panic, and the runtime goes on");
        self.waiting.give_back(reader);
        match trimmed {
            Ok(()) => {
                self.waiting.removed(&done);
                self.trimming.worked();
            }
            Err(why) => self.trimming.failed(&why), // again with the next batch
        }
    }

    /// Stores a batch, trying until it is stored.
    async fn store(&mut self, records: &[Record]) {
        let Err(why) = self.append(records).await else { return };
        // The store refuses one of them, whatever is done: the others must not wait for it.
        tracing::error!(%why, "the record store refuses a record; storing them one by one");
        for record in records {
            let Err(why) = self.append(std::slice::from_ref(record)).await else { continue };
            tracing::error!(record = %record.id, %why, "record refused: stored without its output and command");
            let record = Record {
                err: format!("{} (the record store refused output and command: {why})", record.err),
                output: String::new(),
                command: String::new(),
                output_truncated: true,
                ..record.clone()
            };
            if let Err(why) = self.append(std::slice::from_ref(&record)).await {
                tracing::error!(record = %record.id, %why, "record refused even so: it is lost");
            }
        }
    }

    /// Sends records until all are stored; the error is that the store refuses some as such.
    async fn append(&mut self, records: &[Record]) -> Result<(), run_log::Error> {
        let (mut left, mut failures) = (records, 0);
        while !left.is_empty() {
            let (some, rest) = left.split_at(self.pace.at_once().min(left.len()));
            let asked = clock::Stopwatch::start();
            let answer = self.run_log.append(some).await;
            let took = asked.elapsed();
            let appends = &self.settings.appends;
            appends.times.count(took);
            match answer {
                Ok(appended) => {
                    appends.conflicts.fetch_add(appended.conflicts.len() as u64, Relaxed);
                    for conflict in &appended.conflicts {
                        tracing::error!(record = %conflict.id, claim = ?conflict.claim, "a fire has records of two claims: it was run twice");
                    }
                    self.storing.worked();
                    self.waiting.note_store(true);
                    (left, failures) = (rest, 0);
                    self.pace.stored(some.len(), took);
                }
                Err(why @ run_log::Error::Invalid(_)) => return Err(why),
                Err(why) => {
                    failures += 1;
                    appends.failed.fetch_add(1, Relaxed);
                    self.pace.failed(some.len());
                    self.storing.failed(&why);
                    self.waiting.note_store(false);
                    clock::sleep(backoff(failures - 1, RETRY_MIN_MS, RETRY_MAX_MS)).await;
                }
            }
        }
        Ok(())
    }

    /// Settles open runs whose records are stored; what fails stays in the list. Should this process die first, they are swept with their
    /// session, harmlessly.
    async fn settle_all(&mut self) {
        match settle(self.kv.as_ref(), &self.unsettled).await {
            Ok(()) => {
                self.waiting.settled(&self.unsettled);
                self.unsettled.clear();
                self.settling.worked();
            }
            Err(why) => self.settling.failed(&why),
        }
    }
}

/// Keeps etcd small while the record store is away (design P12): beyond this worker's share of what the fleet may leave there, open runs go
/// whose records are on disk.
async fn thin_out(kv: Arc<dyn Kv>, waiting: Arc<Waiting>) {
    let retries = Retries::new("open runs not settled");
    loop {
        let keys = waiting.excess();
        if keys.is_empty() {
            waiting.too_many().await;
            continue;
        }
        // If this process dies here, or halfway, nothing is lost: the records are on disk, and what is left open ends as `lost` until they
        // come.
        match settle(kv.as_ref(), &keys).await {
            Ok(()) => {
                waiting.settled(&keys);
                retries.worked();
            }
            Err(why) => {
                retries.failed(&why);
                clock::sleep(SETTLE_AGAIN).await;
            }
        }
    }
}
