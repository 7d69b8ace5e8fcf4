//! Wrong clocks, end to end on real parts: worker processes that are shown another time than the machine's (libfaketime).
//!
//! Without these parts each test says SKIPPED; `cargo run -p tests` provisions them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use local_dev::native::ports::free_port;
use local_dev::native::process::{Process, get};
use local_dev::native::{programs, provision, servers};
use mongodb::bson::Document;
use tests::fixtures::{Counting, Fleet, SOON, number, skip, status, wait_for};
use tokio::sync::OnceCell;

const YEAR_SECONDS: i64 = 365 * 24 * 3600;

/// Starts a fleet, or leaves the test (it has said why).
macro_rules! fleet {
    ($test:literal) => {{
        if !provision::faketime_path().exists() {
            return skip($test, "no libfaketime in target/tools");
        }
        match Fleet::start($test).await {
            Some(fleet) => fleet,
            None => return,
        }
    }};
}

/// A worker whose wall clock the test sets, while it runs. Its boot clock is the machine's.
struct Clocked {
    id: String,
    listen: SocketAddr,
    clock: PathBuf,
    process: Process,
}

impl Drop for Clocked {
    fn drop(&mut self) {
        self.process.kill();
        // What libfaketime has made for it and its commands, and leaves behind when it is killed.
        for kind in ["faketime_shm", "sem.faketime_sem"] {
            let _gone = std::fs::remove_file(format!("/dev/shm/{kind}_{}", self.process.pid()));
        }
    }
}

impl Clocked {
    /// Starts it, and does not wait until it is ready: it may never be.
    async fn start(fleet: &Fleet, id: &str, seconds_off: i64) -> Self {
        static BUILT: OnceCell<()> = OnceCell::const_new();
        BUILT.get_or_init(async || servers::build(&["--workspace", "--bin", "worker"]).await.unwrap()).await;
        let dir = fleet.dir.path();
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port().unwrap()));
        let clock = dir.join(format!("{id}.clock"));
        let stores = fleet.stores();
        std::fs::write(&clock, offset(seconds_off)).unwrap();
        let mut command = Command::new(programs().unwrap().join("worker"));
        command
            .env("CRON_ETCD_ENDPOINTS", stores.etcd)
            .env("CRON_MONGODB_URI", stores.mongodb)
            .env("CRON_WORKER_ID", id)
            .env("CRON_WORKER_LISTEN", listen.to_string())
            .env("CRON_DATA_DIR", dir.join(id))
            .env("LD_PRELOAD", provision::faketime_path())
            .env("FAKETIME_TIMESTAMP_FILE", &clock)
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        let process =
            Process::start(id, command, &dir.join(format!("{id}.log")), fleet.site.guard.as_ref()).unwrap();
        let worker = Self { id: id.to_owned(), listen, clock, process };
        let key = format!("/cron/workers/{id}");
        wait_for("the worker's registration", SOON, async || fleet.get(&key).await).await;
        worker
    }

    /// Sets its wall clock, so far from the machine's.
    fn set(&self, seconds_off: i64) {
        // Put in its place whole: the worker reads it at any moment.
        let fresh = self.clock.with_extension("new");
        std::fs::write(&fresh, offset(seconds_off)).unwrap();
        std::fs::rename(fresh, &self.clock).unwrap();
    }

    async fn until_ready(&self) {
        wait_for(&format!("{} to be ready", self.id), SOON, async || {
            get(self.listen, "/readyz").await.filter(|(status, _)| *status == 200)
        })
        .await;
    }

    /// Waits until it says that its clock is wrong, and by how much.
    async fn until_it_says_how_wrong_it_is(&self, seconds_off: i64) {
        let (_, why) = wait_for(&format!("{} to be not ready", self.id), SOON, async || {
            get(self.listen, "/readyz").await.filter(|(status, why)| *status == 503 && why.contains("clock"))
        })
        .await;
        let how = if seconds_off > 0 { "ahead of" } else { "behind" };
        assert!(why.contains(&format!("ms {how} the median of the fleet")), "{why}");
        let metrics = get(self.listen, "/metrics").await.unwrap().1;
        let gauge = |name: &str| {
            let line = metrics.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().parse::<f64>().unwrap()
        };
        assert_eq!(gauge("fleetcron_clock_trusted "), 0.0);
        let offset = gauge("fleetcron_clock_offset_seconds ");
        assert!((offset - seconds_off as f64).abs() < 1.0, "{offset} s, and is {seconds_off} s");
    }
}

/// As libfaketime reads it.
fn offset(seconds: i64) -> String {
    format!("{seconds:+}\n")
}

/// Waits until every job has run in so many more seconds.
async fn seconds_pass(jobs: &[Counting], more: usize) {
    let before: Vec<usize> = jobs.iter().map(|job| job.seconds().len()).collect();
    wait_for("further runs of every job", Duration::from_secs(120), async || {
        jobs.iter().zip(&before).all(|(job, before)| job.seconds().len() >= before + more).then_some(())
    })
    .await;
}

/// Waits until this worker has run something after this many records of it.
async fn until_it_runs(fleet: &Fleet, id: &str, before: usize) {
    wait_for(&format!("runs by {id}"), SOON, async || {
        (ran_by(&fleet.all_records().await, id) > before).then_some(())
    })
    .await;
}

fn ran_by(records: &[Document], id: &str) -> usize {
    let by_it = |record: &&Document| record.get_str("worker").is_ok_and(|worker| worker == id);
    records.iter().filter(by_it).filter(|record| status(record) == "succeeded").count()
}

/// No more fires; then: in no second did a job run twice, and each second from its first to its last run has either a run or a skip that
/// says why not. Returns how many seconds were skipped.
async fn account(fleet: &Fleet, jobs: &[Counting]) -> usize {
    fleet.delete_prefix("/cron/jobs/").await;
    wait_for("no open runs", SOON, async || fleet.keys("/cron/runs/").await.is_empty().then_some(())).await;
    let records = fleet.all_records().await;
    let mut skipped_in_all = 0;
    for job in jobs {
        let mut runs: BTreeMap<i64, usize> = BTreeMap::new();
        for second in job.seconds() {
            *runs.entry(second).or_default() += 1;
        }
        let mut skipped = BTreeSet::new();
        for record in records.iter().filter(|r| r.get_str("jobName").is_ok_and(|name| name == job.name)) {
            if let Ok(range) = record.get_document("skipped") {
                skipped.extend(number(range, "from") / 1000..=number(range, "to") / 1000);
            }
        }
        let (first, last) = (*runs.keys().next().unwrap(), *runs.keys().last().unwrap());
        for second in first..=last {
            let (ran, was_skipped) = (runs.get(&second).copied().unwrap_or(0), skipped.contains(&second));
            assert_eq!(
                ran + usize::from(was_skipped),
                1,
                "{} at {second}: ran {ran}, skipped {was_skipped}",
                job.name
            );
            skipped_in_all += usize::from(was_skipped);
        }
    }
    skipped_in_all
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_with_wrong_clocks_start_nothing_say_so_and_work_once_they_are_mended() {
    let mut fleet = fleet!("wrong-clocks");
    for id in ["good-1", "good-2"] {
        fleet.worker(id, &[]).await;
    }
    let jobs = fleet.put_counting_jobs(20).await;
    seconds_pass(&jobs, 2).await;
    let wrong = [("a-year-ahead", YEAR_SECONDS), ("ahead", 10), ("behind", -10)];
    let mut workers = Vec::new();
    for (id, seconds_off) in wrong {
        workers.push(Clocked::start(&fleet, id, seconds_off).await);
    }
    for (worker, (_, seconds_off)) in workers.iter().zip(wrong) {
        worker.until_it_says_how_wrong_it_is(seconds_off).await;
    }
    seconds_pass(&jobs, 8).await;
    let records = fleet.all_records().await;
    for (id, _) in wrong {
        assert_eq!(ran_by(&records, id), 0, "{id} ran something");
    }

    for worker in &workers {
        worker.set(0);
        worker.until_ready().await;
    }
    for (id, _) in wrong {
        until_it_runs(&fleet, id, 0).await;
    }
    assert_eq!(account(&fleet, &jobs).await, 0, "the good ones lacked nothing meanwhile");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_of_a_running_workers_clock_moves_its_jobs_to_the_others_until_it_is_mended() {
    let mut fleet = fleet!("stepped-clock");
    for id in ["good-1", "good-2"] {
        fleet.worker(id, &[]).await;
    }
    let stepped = Clocked::start(&fleet, "stepped", 0).await;
    stepped.until_ready().await;
    let jobs = fleet.put_counting_jobs(20).await;
    until_it_runs(&fleet, "stepped", 0).await;
    for seconds_off in [60, -60] {
        stepped.set(seconds_off);
        stepped.until_it_says_how_wrong_it_is(seconds_off).await;
        seconds_pass(&jobs, 5).await;
        stepped.set(0);
        stepped.until_ready().await;
        let ran = ran_by(&fleet.all_records().await, "stepped");
        until_it_runs(&fleet, "stepped", ran).await;
    }
    account(&fleet, &jobs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_alone_goes_by_its_clock_and_runs_nothing_twice_when_that_is_put_back() {
    let fleet = fleet!("alone-clock");
    let alone = Clocked::start(&fleet, "alone", 0).await;
    alone.until_ready().await;
    let jobs = fleet.put_counting_jobs(5).await;
    seconds_pass(&jobs, 2).await;
    let sessions = fleet.keys("/cron/sessions/").await;
    alone.set(20);
    seconds_pass(&jobs, 3).await;
    // Its marks are 20 s ahead now: it goes on when their time has come again, and its loop does not stand still until then.
    alone.set(0);
    seconds_pass(&jobs, 3).await;
    alone.until_ready().await;
    assert_eq!(fleet.keys("/cron/sessions/").await, sessions, "it renewed its lease meanwhile");
    assert!(account(&fleet, &jobs).await > 0, "what the step forward passed over has a record");
}
