//! Jobs and fleets that are paused and resumed, and jobs with a start and an end, on real parts: etcd, a MongoDB-protocol server, worker
//! processes; the functions' handlers in this process.
//!
//! Without these parts each test says SKIPPED; `cargo run -p tests` provisions them.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use common::clock::{SystemClock, Timestamp};
use common::config::EtcdSettings;
use common::domain::access::Principal;
use common::kv::etcd::EtcdKv;
use common::run_log::embedded::EmbeddedRunLog;
use functions::Ports;
use lambda_http::{Body, RequestExt as _};
use local_dev::native::{provision, workspace};
use mongodb::bson::Document;
use serde_json::{Value, json};
use tests::fixtures::{Fleet, SOON, etcd_programs, now_ms, number, skip, status, wait_for};

/// A claim is made at most so long before its fire's time, in ms; what was claimed before a pause may start in it.
const LEAD_MS: i64 = 1_000;

struct Api(Ports);

impl Api {
    fn of(fleet: &Fleet) -> Self {
        let settings = EtcdSettings { endpoints: Some(vec![fleet.etcd.url()]), ..EtcdSettings::default() };
        let kv = EtcdKv::new(&settings, Duration::from_secs(3)).unwrap();
        let run_log = EmbeddedRunLog::in_memory().unwrap(); // these routes read no record
        Self(Ports { kv: Arc::new(kv), run_log: Arc::new(run_log), clock: Arc::new(SystemClock) })
    }

    async fn post(&self, path: &str, sent: &Value) -> Value {
        let request =
            lambda_http::http::Request::builder().extension(Principal::anybody()).method("POST").uri(path);
        let request = request.header("content-type", "application/json").body(Body::Text(sent.to_string()));
        let response = functions::handle(&self.0, request.unwrap().with_raw_http_path(path)).await;
        let Body::Text(text) = response.body() else { panic!("{path}: no text") };
        assert_eq!(response.status(), 200, "{path}: {text}");
        serde_json::from_str::<Value>(text).unwrap()["data"].clone()
    }
}

fn every_second(name: &str) -> Value {
    json!({"name": name, "command": "true", "cronExpr": "* * * * * * *", "misfire": "all", "startDeadlineSeconds": 600})
}

/// The first run that is planned after a time.
async fn runs_after(fleet: &Fleet, job: &str, time: i64) -> Document {
    fleet.record(job, |record| status(record) == "succeeded" && number(record, "planTime") > time).await
}

/// The absence itself is what is tried: so long that fires which were caught up on would be seen.
async fn some_fires_pass() {
    let until = now_ms() + 5_000;
    wait_for("some fires' times", SOON, async || (now_ms() > until).then_some(())).await;
}

/// Nothing ran, and nothing was recorded as skipped, of what was planned between the two, but for what was claimed before them.
async fn nothing_of(fleet: &Fleet, job: &str, from: i64, until: i64) {
    for record in fleet.records(job).await {
        let plan_time = number(&record, "planTime");
        assert!(plan_time <= from + LEAD_MS || plan_time > until, "{from} to {until}: {record}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_paused_does_not_fire_and_is_not_caught_up_on() {
    let Some(mut fleet) = Fleet::start("pause").await else { return };
    for id in ["w1", "w2"] {
        fleet.worker(id, &[]).await;
    }
    let api = Api::of(&fleet);
    for job in ["one", "other"] {
        api.post("/job/save", &every_second(job)).await;
    }
    for job in ["one", "other"] {
        runs_after(&fleet, job, 0).await;
    }

    let paused = api.post("/job/pause", &json!({"name": "one"})).await;
    let from = now_ms();
    assert_eq!(paused["enabled"], false, "{paused}");
    some_fires_pass().await;
    let until = now_ms();
    let resumed = api.post("/job/resume", &json!({"name": "one"})).await;
    assert_eq!(resumed, every_second("one"));
    runs_after(&fleet, "one", until).await;
    nothing_of(&fleet, "one", from, until).await;
    let others = fleet.records("other").await;
    let meanwhile = |record: &&Document| (from..until).contains(&number(record, "planTime"));
    assert!(others.iter().filter(meanwhile).count() >= 4, "only the one was paused: {others:?}");

    // By other hands.
    let mut off = every_second("one");
    off["enabled"] = false.into();
    fleet.put("/cron/jobs/one", off.to_string()).await;
    let from = now_ms();
    some_fires_pass().await;
    let until = now_ms();
    fleet.put("/cron/jobs/one", every_second("one").to_string()).await;
    runs_after(&fleet, "one", until).await;
    nothing_of(&fleet, "one", from, until).await;

    let paused = api.post("/fleet/pause", &json!({"reason": "this test"})).await;
    let from = now_ms();
    assert_eq!(paused["paused"]["reason"], "this test", "{paused}");
    some_fires_pass().await;
    // Nobody forgets it by starting anew.
    fleet.worker("w3", &[]).await;
    let until = now_ms();
    let resumed = api.post("/fleet/resume", &json!({})).await;
    assert_eq!(resumed["ended"], paused["paused"], "{resumed}");
    for job in ["one", "other"] {
        runs_after(&fleet, job, until).await;
        nothing_of(&fleet, job, from, until).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_fires_from_its_start_to_before_its_end() {
    let Some(mut fleet) = Fleet::start("window").await else { return };
    fleet.worker("w1", &[]).await;
    let second = now_ms() / 1000 + 5;
    let moment = |after: i64| Timestamp::from_ms((second + after) * 1000).rfc3339();
    let mut job = every_second("window");
    (job["startAt"], job["endAt"]) = (moment(0).into(), moment(4).into());
    Api::of(&fleet).post("/job/save", &job).await;
    wait_for("the end and more", SOON, async || (now_ms() / 1000 > second + 7).then_some(())).await;
    let records = wait_for("the records", SOON, async || {
        let records = fleet.records("window").await;
        (records.len() >= 4).then_some(records)
    })
    .await;
    let mut planned: Vec<i64> =
        records.iter().map(|record| number(record, "planTime") / 1000 - second).collect();
    planned.sort_unstable();
    assert_eq!(planned, [0, 1, 2, 3], "{records:?}");
    assert!(records.iter().all(|record| status(record) == "succeeded"), "{records:?}");
}

fn run(programs: &Path, program: &Path, words: &[&str]) {
    let path = provision::path_with(&[programs]).unwrap();
    let done = Command::new(program).args(words).env("PATH", path).output().unwrap();
    assert!(done.status.success(), "{} {words:?}: {done:?}", program.display());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_put_back_paused_runs_nothing_until_the_pause_is_lifted() {
    let Some(mut fleet) = Fleet::start("pause-snapshot").await else { return };
    let Some(programs) = etcd_programs(fleet.dir.path()) else {
        skip("pause-snapshot", "etcdctl and etcdutl beside the installed etcd");
        return;
    };
    for id in ["w1", "w2"] {
        fleet.worker(id, &[("CRON_SESSION_TTL_SECONDS", "4")]).await;
    }
    let api = Api::of(&fleet);
    let out = fleet.dir.path().join("out");
    let mut job = every_second("one");
    job["command"] = format!("echo $CRON_PLAN_TIME >> '{}'", out.display()).into();
    api.post("/job/save", &job).await;
    runs_after(&fleet, "one", 0).await;

    let file = |name: &str| fleet.dir.path().join(name).display().to_string();
    let (snapshot, paused, data) = (file("snapshot"), file("paused"), file("etcd"));
    run(
        &programs,
        &programs.join("etcdctl"),
        &["--endpoints", &fleet.etcd.url(), "snapshot", "save", &snapshot],
    );
    let saved = now_ms();
    runs_after(&fleet, "one", saved + 3_000).await; // fires that the snapshot knows nothing of
    fleet.etcd.kill();
    run(&programs, &workspace().join("infra/pause-snapshot.sh"), &[&snapshot, &paused]);
    std::fs::remove_dir_all(&data).unwrap();
    run(&programs, &programs.join("etcdutl"), &["snapshot", "restore", &paused, "--data-dir", &data]);
    fleet.etcd.restart().await.unwrap();

    let from = now_ms();
    some_fires_pass().await;
    let until = now_ms();
    let resumed = api.post("/fleet/resume", &json!({})).await;
    assert_eq!(resumed["ended"]["by"], "pause-snapshot.sh", "{resumed}");
    runs_after(&fleet, "one", until).await;
    nothing_of(&fleet, "one", from, until).await;
    let started = std::fs::read_to_string(&out).unwrap();
    let times: BTreeSet<&str> = started.lines().collect();
    assert_eq!(times.len(), started.lines().count(), "no time twice: {started}");
}
