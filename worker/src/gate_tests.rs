//! Shells that wait for their time, with the whole worker: what comes between the claim and that time.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use common::clock::{self, Clock, Timestamp};
use common::domain::job::JobName;
use common::domain::kill::{KillRequest, Killed};
use common::domain::record::{Record, Status};
use common::domain::run::{OpenRun, OpenRuns};
use common::keys;
use common::kv::Range;

use crate::driver::{Options, Ports, Worker};
use crate::store_tests::{get, options, ports, put, put_job, records, wait_for};

/// The fire that all is about.
const T: Timestamp = Timestamp::from_ms(1_800_000_000_000);

/// A clock that is moved by hand.
struct Hand(AtomicI64);

#[async_trait]
impl Clock for Hand {
    fn now(&self) -> Timestamp {
        Timestamp::from_ms(self.0.load(Ordering::SeqCst))
    }

    async fn sleep_until(&self, _deadline: Timestamp) {
        clock::sleep(Duration::from_millis(10)).await; // whoever waits looks again
    }
}

struct Lead {
    clock: Arc<Hand>,
    ports: Ports,
    worker: Worker,
    dir: tempfile::TempDir,
    runs: Vec<OpenRun>,
    /// Processes of the shells that wait.
    shells: Vec<String>,
}

impl Lead {
    /// Jobs `a` and `b` are claimed, their shells wait, and the time stands still. Their commands write into a file who they are.
    async fn entered() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(Hand(AtomicI64::new(T.plus_ms(-500).ms())));
        let ports = Ports { clock: Arc::clone(&clock) as Arc<dyn Clock>, ..ports() };
        let worker =
            Worker::start(ports.clone(), Options { data_dir: Some(dir.path().to_owned()), ..options() });
        let kv = ports.kv.as_ref();
        wait_for("the gate", async || dir.path().join("gate").exists().then_some(())).await;
        let mut lead =
            Self { clock, ports: ports.clone(), worker, dir, runs: Vec::new(), shells: Vec::new() };
        for name in ["a", "b"] {
            put_job(kv, name, &lead.command("first")).await;
            lead.adopted(name).await;
        }
        // The gate is used once it is known to hold; until then fires start without.
        for second in 0.. {
            lead.move_to(second * 1000 - 40);
            lead.runs = wait_for("claims", async || {
                let pairs = kv.range(Range::prefix(keys::RUNS)).await.unwrap().pairs;
                let runs = pairs.iter().flat_map(|pair| OpenRuns::decode(&pair.value).unwrap().runs);
                let runs: Vec<_> = runs.filter(|run| run.plan_time == T.plus_ms(second * 1000)).collect();
                (runs.len() == 2).then_some(runs)
            })
            .await;
            for _ in 0..50 {
                lead.shells = waiting(lead.dir.path());
                if lead.shells.len() == 2 {
                    return lead;
                }
                clock::sleep(Duration::from_millis(20)).await;
            }
            lead.begin().await;
        }
        unreachable!("there is always another second")
    }

    fn output(&self) -> PathBuf {
        self.dir.path().join("output")
    }

    fn command(&self, version: &str) -> String {
        format!("echo $CRON_JOB_NAME $CRON_PLAN_TIME {version} $$ >> {}", self.output().display())
    }

    fn move_to(&self, ms: i64) {
        self.clock.0.store(T.plus_ms(ms).ms(), Ordering::SeqCst);
    }

    fn plan_time(&self) -> Timestamp {
        self.runs[0].plan_time
    }

    /// The worker knows the job as it is now, and whatever was put before it.
    async fn adopted(&self, name: &str) {
        let job = JobName::parse(name).unwrap();
        wait_for("its mark", async || get(self.ports.kv.as_ref(), keys::fired(&job)).await).await;
    }

    /// The time comes; returns the records of the two runs.
    async fn begin(&self) -> Vec<Record> {
        self.clock.0.store(self.plan_time().ms(), Ordering::SeqCst);
        self.records().await
    }

    async fn records(&self) -> Vec<Record> {
        let mut found = Vec::new();
        for run in &self.runs {
            let record = async || {
                let records = records(self.ports.run_log.as_ref(), run.job.as_str()).await;
                records.into_iter().find(|record| record.plan_time == run.plan_time)
            };
            found.push(wait_for("its record", record).await);
        }
        found
    }

    /// What the commands of these runs have written, in order: job, version, process.
    fn written(&self) -> Vec<(String, String, String)> {
        let text = std::fs::read_to_string(self.output()).unwrap_or_default();
        let mut lines: Vec<_> = text
            .lines()
            .map(|line| line.split(' ').map(str::to_owned).collect::<Vec<_>>())
            .filter(|words| words[1] == self.plan_time().ms().to_string())
            .map(|words| (words[0].clone(), words[2].clone(), words[3].clone()))
            .collect();
        lines.sort();
        lines
    }

    /// The worker leaves; no shell waits any more, and none is a zombie.
    async fn over(mut self) {
        for pid in &self.shells {
            wait_for("the end of its shell", async || (!Path::new("/proc").join(pid).exists()).then_some(()))
                .await;
        }
        self.worker.drain().await;
        clock::timeout(Duration::from_secs(30), self.worker.left()).await.unwrap().unwrap();
    }
}

/// Processes of runs that were started with the gate of this directory.
fn waiting(dir: &Path) -> Vec<String> {
    let gate = format!("BASH_ENV={}/gate", dir.display());
    let waits = |pid: &String| {
        std::fs::read(Path::new("/proc").join(pid).join("environ")).is_ok_and(|environment| {
            let environment = String::from_utf8_lossy(&environment).into_owned();
            environment.split('\0').any(|variable| variable == gate) && environment.contains("CRON_JOB_NAME=")
        })
    };
    let names = std::fs::read_dir("/proc")
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    names.filter(waits).collect()
}

fn lines(of: &[(String, String, String)]) -> Vec<(&str, &str)> {
    of.iter().map(|(job, version, _)| (job.as_str(), version.as_str())).collect()
}

#[tokio::test]
async fn at_its_time_the_command_begins_in_the_shell_that_has_waited() {
    let lead = Lead::entered().await;
    assert_eq!(lead.written(), []);
    for record in lead.begin().await {
        assert_eq!((record.status, record.start_time), (Some(Status::Succeeded), lead.plan_time()));
    }
    let written = lead.written();
    assert_eq!(lines(&written), [("a", "first"), ("b", "first")]);
    for (_, _, pid) in &written {
        assert!(lead.shells.contains(pid), "{pid} is none of {:?}", lead.shells);
    }
    lead.over().await;
}

#[tokio::test]
async fn an_edit_in_the_lead_runs_once_as_edited() {
    let lead = Lead::entered().await;
    put_job(lead.ports.kv.as_ref(), "a", &lead.command("second")).await;
    put_job(lead.ports.kv.as_ref(), "c", "true").await;
    lead.adopted("c").await; // so the edit has been seen
    for record in lead.begin().await {
        assert_eq!(record.status, Some(Status::Succeeded), "{record:?}");
    }
    assert_eq!(lines(&lead.written()), [("a", "second"), ("b", "first")]);
    lead.over().await;
}

fn by_test() -> Killed {
    Killed { by: "a test".to_owned(), at: Timestamp::from_ms(7) }
}

#[tokio::test]
async fn what_is_killed_in_the_lead_never_begins() {
    let lead = Lead::entered().await;
    let killed = lead.runs.iter().find(|run| run.job.as_str() == "a").unwrap();
    let request = KillRequest::new(vec![killed.run_id.clone()], by_test()).encode();
    put(lead.ports.kv.as_ref(), keys::killer(&killed.job), request).await;
    let record = wait_for("its record", async || {
        let records = records(lead.ports.run_log.as_ref(), "a").await;
        records.into_iter().find(|record| record.err == "killed before its start")
    })
    .await;
    let asked = by_test();
    assert_eq!((record.killed_by, record.killed_at), (Some(asked.by), Some(asked.at)));
    lead.begin().await;
    assert_eq!(lines(&lead.written()), [("b", "first")]);
    lead.over().await;
}

#[tokio::test]
async fn what_is_claimed_under_a_session_that_is_lost_never_begins() {
    let lead = Lead::entered().await;
    let kv = lead.ports.kv.as_ref();
    let (sid, _) = lead.runs[0].run_id.as_str().split_once('-').unwrap();
    kv.revoke(common::domain::worker::Sid::parse(sid).unwrap().lease()).await.unwrap();
    // Its shells end before the time comes, and others close the runs.
    for pid in &lead.shells {
        wait_for("the end of its shell", async || (!Path::new("/proc").join(pid).exists()).then_some(()))
            .await;
    }
    for record in lead.begin().await {
        assert_eq!(record.status, Some(Status::Lost), "{record:?}");
    }
    lead.over().await;
}
