//! What becomes of records while the record store, the disk or the process is away.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use common::clock::Timestamp;
use common::domain::record::{Record, Status};
use common::domain::worker::Sid;
use common::keys;
use common::kv::Range;
use common::kv::embedded::EmbeddedKv;
use common::kv::{self, Kv};
use common::run_log::embedded::EmbeddedRunLog;
use common::run_log::{RecordQuery, RunLog};

use crate::live::Live;
use crate::notify::Notices;
use crate::sink::{Sink, SinkSettings};
use crate::spool::tests::record;
use crate::store_tests::{Picky, put, wait_for};
use crate::waiting::{Entry, Figures};

const SID: Sid = Sid(7);

/// The stores, and a directory for the spool.
struct World {
    kv: Arc<EmbeddedKv>,
    log: Arc<Picky>,
    log_is_away: Arc<AtomicBool>,
    dir: tempfile::TempDir,
}

impl World {
    /// The record store is away.
    fn new() -> Self {
        let log_is_away = Arc::new(AtomicBool::new(true));
        let is_away = Arc::clone(&log_is_away);
        let takes = Box::new(move |_| !is_away.load(SeqCst));
        let log = Picky { inner: EmbeddedRunLog::in_memory().unwrap(), takes };
        Self {
            log_is_away,
            kv: Arc::new(EmbeddedKv::in_memory().unwrap()),
            log: Arc::new(log),
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn spool(&self) -> std::path::PathBuf {
        self.dir.path().join("spool")
    }

    fn sink(&self, spool_bytes_max: u64) -> Sink {
        let settings = SinkSettings {
            size: 100,
            timeout: Duration::from_millis(10),
            spool: Some(self.spool()),
            spool_bytes_max: Some(spool_bytes_max),
            appends: Arc::default(),
        };
        let kv = Arc::clone(&self.kv) as Arc<dyn Kv>;
        let notices = Notices::none(Arc::clone(&kv));
        Sink::start(kv, Arc::clone(&self.log) as Arc<dyn RunLog>, settings, Live::default(), notices)
    }

    fn store_is_back(&self) {
        self.log_is_away.store(false, SeqCst);
    }

    /// Runs claimed by this worker's session: their open keys are there.
    async fn claim(&self, numbers: std::ops::RangeInclusive<i64>) {
        for number in numbers {
            put(self.kv.as_ref(), keys::runs(SID, number.unsigned_abs()), "open").await;
        }
    }

    async fn open_keys(&self) -> Vec<kv::Key> {
        let pairs = self.kv.range(Range::prefix(keys::RUNS)).await.unwrap().pairs;
        pairs.into_iter().map(|pair| pair.key).collect()
    }

    /// The plan times of the records that are stored; all of them are real ones.
    async fn stored(&self) -> Vec<i64> {
        let query = RecordQuery { job_name: "a".to_owned(), limit: 1_000_000, ..RecordQuery::default() };
        let records = self.log.list(&query).await.unwrap();
        assert!(records.iter().all(|record| record.status == Some(Status::Succeeded)));
        let mut numbers: Vec<i64> =
            records.iter().map(|record| (record.plan_time.ms() - 1_800_000_000_000) / 1000).collect();
        numbers.sort_unstable();
        numbers
    }
}

fn ended(sink: &Sink, numbers: std::ops::RangeInclusive<i64>, output: &str) {
    for number in numbers {
        let mut record = Box::new(record(number));
        record.output.push_str(output);
        sink.put(Entry { record, settles: Some((SID, number.unsigned_abs())) });
    }
}

async fn until(sink: &Sink, what: &str, holds: impl Fn(&Figures) -> bool) -> Figures {
    wait_for(what, async || Some(sink.waiting().figures()).filter(&holds)).await
}

async fn on_disk(sink: &Sink) -> Figures {
    until(sink, "all records on disk", |figures| figures.memory_bytes == 0).await
}

async fn all_stored(sink: &Sink) {
    until(sink, "all records stored", |figures| figures.records == 0).await;
}

fn spool_files(dir: &Path) -> usize {
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    files.filter(|name| name.to_str().unwrap().ends_with(".spool")).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_on_disk_outlives_its_process_and_takes_the_place_of_lost() {
    let world = World::new();
    world.claim(1..=500).await;
    let sink = world.sink(1 << 30);
    ended(&sink, 1..=500, "");
    let figures = on_disk(&sink).await;
    assert_eq!(figures.records, 500);
    assert!(figures.oldest.is_some() && figures.fault.is_none() && !figures.is_full);
    drop(sink); // as by kill -9: nothing that it holds is written any more
    // Survivors have closed some of its runs; the others are closed by whoever comes first.
    let lost = |number: i64| Record { status: Some(Status::Lost), output: String::new(), ..record(number) };
    world.store_is_back();
    let some: Vec<Record> = (1..=100).map(lost).collect();
    world.log.append(&some).await.unwrap();

    let sink = world.sink(1 << 30);
    until(&sink, "what was left behind", |figures| figures.spool_bytes_max > 0).await;
    all_stored(&sink).await;
    assert_eq!(world.stored().await, (1..=500).collect::<Vec<i64>>());
    wait_for("no open run", async || world.open_keys().await.is_empty().then_some(())).await;
    wait_for("an empty spool", async || (spool_files(&world.spool()) == 0).then_some(())).await;
    drop(sink);
    // Nothing is stored a second time, nor would it matter.
    let sink = world.sink(1 << 30);
    let figures = until(&sink, "the spool", |figures| figures.spool_bytes_max > 0).await;
    assert_eq!((figures.records, figures.spool_bytes), (0, 0));
}

/// What a process leaves that dies after it has stored a batch: the whole spool, and the open runs of some of it.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_dies_between_storing_and_forgetting_stores_it_again_harmlessly() {
    let world = World::new();
    world.claim(1..=100).await;
    let sink = world.sink(1 << 30);
    ended(&sink, 1..=100, "");
    on_disk(&sink).await;
    let copy = world.dir.path().join("copy");
    std::fs::create_dir(&copy).unwrap();
    for entry in std::fs::read_dir(world.spool()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
    }
    world.store_is_back();
    all_stored(&sink).await;
    wait_for("no open run", async || world.open_keys().await.is_empty().then_some(())).await;
    drop(sink);
    world.claim(51..=100).await; // not settled yet
    std::fs::remove_dir_all(world.spool()).unwrap();
    std::fs::rename(&copy, world.spool()).unwrap();

    let before = world.stored().await;
    let sink = world.sink(1 << 30);
    until(&sink, "what was left behind", |figures| figures.spool_bytes_max > 0).await;
    all_stored(&sink).await;
    wait_for("no open run", async || world.open_keys().await.is_empty().then_some(())).await;
    assert_eq!(world.stored().await, before);
    assert_eq!(before, (1..=100).collect::<Vec<i64>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_memory_should_hold_is_read_back_and_stored_once() {
    let world = World::new();
    let sink = world.sink(1 << 30);
    let long = "x".repeat(20_000);
    ended(&sink, 1..=3_000, &long);
    let figures = on_disk(&sink).await;
    assert!(figures.spool_bytes > 60_000_000, "{figures:?}");
    assert!(spool_files(&world.spool()) > 2);
    world.store_is_back();
    // New ones come while it catches up.
    ended(&sink, 3_001..=3_100, "");
    all_stored(&sink).await;
    assert_eq!(world.stored().await, (1..=3_100).collect::<Vec<i64>>());
    // And it goes on from memory.
    ended(&sink, 3_101..=3_200, "");
    all_stored(&sink).await;
    assert_eq!(world.stored().await, (1..=3_200).collect::<Vec<i64>>());
    wait_for("room given back", async || (spool_files(&world.spool()) <= 1).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn open_runs_beyond_the_share_go_from_etcd_once_their_records_are_on_disk() {
    let world = World::new();
    world.claim(1..=300).await;
    let sink = world.sink(1 << 30);
    sink.waiting().share_among(1_000_000);
    ended(&sink, 1..=300, "");
    let left =
        wait_for("fewer open runs", async || Some(world.open_keys().await).filter(|keys| keys.len() <= 50))
            .await;
    let expected: Vec<kv::Key> = (251..=300).map(|seq| keys::runs(SID, seq).into()).collect();
    assert_eq!(left, expected, "the oldest have gone, and no more than had to");
    // The sink hears of it after the store.
    wait_for("the oldest to be forgotten", async || (!sink.waiting().settles((SID, 1))).then_some(())).await;
    assert!(sink.waiting().settles((SID, 300)));
    assert_eq!(sink.waiting().figures().records, 300);
    drop(sink);
    world.store_is_back();
    let sink = world.sink(1 << 30);
    until(&sink, "what was left behind", |figures| figures.spool_bytes_max > 0).await;
    all_stored(&sink).await;
    assert_eq!(world.stored().await, (1..=300).collect::<Vec<i64>>());
    wait_for("no open run", async || world.open_keys().await.is_empty().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_leaves_etcd_for_a_record_that_is_in_memory_alone() {
    let world = World::new();
    std::fs::write(world.spool(), "in the way").unwrap();
    world.claim(1..=300).await;
    let sink = world.sink(1 << 30);
    sink.waiting().share_among(1_000_000);
    ended(&sink, 1..=300, "");
    until(&sink, "the fault", |figures| figures.fault.is_some()).await;
    tokio::task::yield_now().await;
    assert_eq!(world.open_keys().await.len(), 300);
    assert_eq!(sink.waiting().excess(), []);
    std::fs::remove_file(world.spool()).unwrap();
    let figures = until(&sink, "the disk", |figures| figures.fault.is_none()).await;
    assert!(figures.records >= 300);
    wait_for("fewer open runs", async || (world.open_keys().await.len() <= 150).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_takes_nothing_stops_claims_only_when_the_store_takes_nothing_either() {
    let world = World::new();
    std::fs::write(world.spool(), "in the way").unwrap();
    world.store_is_back();
    let sink = world.sink(1 << 30);
    until(&sink, "the fault", |figures| figures.fault.is_some()).await;
    ended(&sink, 1..=200, "");
    all_stored(&sink).await;
    assert!(!sink.waiting().figures().is_full, "they reach the store all the same");
    world.log_is_away.store(true, SeqCst);
    ended(&sink, 201..=400, "");
    let figures = until(&sink, "no room", |figures| figures.is_full).await;
    assert_eq!(figures.records, 200);
    // It comes back by itself.
    std::fs::remove_file(world.spool()).unwrap();
    until(&sink, "room", |figures| !figures.is_full && figures.fault.is_none()).await;
    world.store_is_back();
    all_stored(&sink).await;
    assert_eq!(world.stored().await, (1..=400).collect::<Vec<i64>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spool_that_is_full_stops_claims_and_still_takes_what_runs() {
    let world = World::new();
    let sink = world.sink(1 << 20);
    ended(&sink, 1..=100, &"x".repeat(10_000));
    let figures = on_disk(&sink).await;
    assert!(!figures.is_full, "{figures:?}");
    ended(&sink, 101..=110, &"x".repeat(10_000));
    until(&sink, "a full spool", |figures| figures.is_full && figures.memory_bytes == 0).await;
    ended(&sink, 111..=200, &"x".repeat(10_000)); // of runs that were going
    let figures = on_disk(&sink).await;
    assert!(figures.is_full && figures.spool_bytes > 2_000_000, "{figures:?}");
    world.store_is_back();
    all_stored(&sink).await;
    assert!(!sink.waiting().figures().is_full);
    assert_eq!(world.stored().await, (1..=200).collect::<Vec<i64>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_that_waits_is_known() {
    let world = World::new();
    let sink = world.sink(1 << 30);
    assert_eq!(sink.waiting().figures().oldest, None);
    ended(&sink, 5..=5, "");
    ended(&sink, 6..=500, "");
    on_disk(&sink).await;
    assert_eq!(sink.waiting().figures().oldest, Some(record(5).end_time));
    world.store_is_back();
    all_stored(&sink).await;
    assert_eq!(sink.waiting().figures().oldest, None);
    assert_ne!(record(5).end_time, Timestamp::ZERO);
}
