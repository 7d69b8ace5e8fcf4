//! End to end beside the seed: its worker and its master (our stand-in of them, tests/servers/seed) on the same etcd and MongoDB.
//!
//! Without these parts each test says SKIPPED; `cargo run -p tests` provisions them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use mongodb::bson::{Bson, Document, doc};
use rustix::process::Signal;
use serde_json::{Value, json};
use tests::fixtures::{Fleet, SOON, http, now_ms, number, processes_of, status, wait_for};
use tests::seed;

const MULTI: [(&str, &str); 1] = [("CRON_SESSION_TTL_SECONDS", "4")];
/// The seed's record, no more and no less.
const SEED_FIELDS: [&str; 8] =
    ["jobName", "command", "err", "output", "planTime", "scheduleTime", "startTime", "endTime"];
/// How long the mixed fleet is watched, in seconds.
const MIXED_SECONDS: i64 = 6;

/// Starts a fleet, or leaves the test (it has said why).
macro_rules! fleet {
    ($test:literal) => {
        match (seed::program($test), Fleet::start($test).await) {
            (Some(_), Some(fleet)) => fleet,
            _ => return,
        }
    };
}

/// The `data` of an answer that says success.
async fn data(request: reqwest::RequestBuilder) -> Value {
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 200);
    let body: Value = response.json().await.unwrap();
    assert_eq!((&body["errno"], &body["msg"]), (&json!(0), &json!("success")), "{body}");
    body["data"].clone()
}

async fn post(url: &str, path: &str, form: &[(&str, &str)]) -> Value {
    data(http().post(format!("{url}{path}")).form(form)).await
}

async fn save(url: &str, job: &Value) -> Value {
    post(url, "/job/save", &[("job", &job.to_string())]).await
}

async fn read(url: &str, path: &str) -> Value {
    data(http().get(format!("{url}{path}"))).await
}

/// Waits for records that a log shows, newest first.
async fn log_with(url: &str, job: &str, enough: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let path = format!("/job/log?name={job}");
    wait_for(&format!("records of {job}"), SOON, async || {
        let records = read(url, &path).await.as_array().unwrap().clone();
        let newest_first = records.is_sorted_by_key(|r| std::cmp::Reverse(r["startTime"].as_i64()));
        assert!(newest_first, "{records:?}");
        enough(&records).then_some(records)
    })
    .await
}

fn has_err(err: &'static str) -> impl Fn(&[Value]) -> bool {
    move |records| records.iter().any(|record| record["err"] == err)
}

#[tokio::test(flavor = "multi_thread")]
async fn our_api_serves_a_seed_worker() {
    let fleet = fleet!("seed-worker");
    let worker = fleet.seed_worker("10.1.2.3").await;
    let api = fleet.our_api().await;
    let url = api.url.clone();

    assert_eq!(read(&url, "/worker/list").await, json!(["10.1.2.3"]));
    assert_eq!(read(&url, "/worker/list?detail=1").await, json!([{"id": "10.1.2.3", "seed": true}]));

    let job = json!({"name": "hi", "command": "echo out; echo err >&2", "cronExpr": "* * * * * * *"});
    assert_eq!(save(&url, &job).await, Value::Null);
    let records = log_with(&url, "hi", |records| records.len() >= 2).await;
    for record in &records {
        let fields: BTreeSet<&str> = record.as_object().unwrap().keys().map(String::as_str).collect();
        let expected = SEED_FIELDS.into_iter().chain(["_id"]).collect();
        assert_eq!(fields, expected, "a seed record is served as it is: {record}");
        assert_eq!((&record["err"], &record["output"]), (&json!(""), &json!("out\nerr\n")));
        assert!(record["_id"].as_str().is_some_and(|id| id.len() == 24), "its ObjectId in hex: {record}");
        let time = |field: &str| record[field].as_i64().unwrap();
        assert!(time("planTime") <= time("startTime") && time("startTime") <= time("endTime"), "{record}");
    }
    // Edited: the answer has the job as it was, and the worker runs the new command.
    let edited = json!({"name": "hi", "command": "exit 3", "cronExpr": "* * * * * * *"});
    assert_eq!(save(&url, &edited).await, job);
    log_with(&url, "hi", has_err("exit status 3")).await;
    assert_eq!(post(&url, "/job/delete", &[("name", "hi")]).await, edited);

    // Our kill, which names runs of ours and knows none of the seed's.
    let pause = format!("1000.{}3", std::process::id());
    let long = json!({"name": "long", "command": format!("exec sleep {pause}"), "cronExpr": "* * * * * * *"});
    save(&url, &long).await;
    let sleeping = || processes_of(&["sleep", &pause]).len();
    wait_for("its run", SOON, async || (sleeping() == 1).then_some(())).await;
    post(&url, "/job/delete", &[("name", "long")]).await;
    assert_eq!(post(&url, "/job/kill", &[("name", "long")]).await, json!({"runIds": []}));
    wait_for("its end", SOON, async || (sleeping() == 0).then_some(())).await;
    log_with(&url, "long", has_err("signal: killed")).await;
    drop(worker);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seed_master_serves_our_workers() {
    let mut fleet = fleet!("seed-master");
    let master = fleet.seed_master().await;
    let url = master.url.clone();
    // What it has put before our first start, and records that its workers have written.
    save(&url, &json!({"name": "old", "command": "echo old", "cronExpr": "* * * * * * *"})).await;
    save(&url, &json!({"name": "six", "command": "echo six", "cronExpr": "*/5 * * * * *"})).await;
    save(&url, &json!({"name": "bad-cron", "command": "true", "cronExpr": "often"})).await;
    save(&url, &json!({"name": "never", "command": "true", "cronExpr": "0 0 0 30 2 * *"})).await;
    save(&url, &json!({"name": "", "command": "true", "cronExpr": "* * * * * * *"})).await;
    save(&url, &json!({"name": "a/b", "command": "true", "cronExpr": "* * * * * * *"})).await;
    fleet.put("/cron/jobs/not-json", "{").await;
    let other_name = json!({"name": "other", "command": "true", "cronExpr": "* * * * * * *"});
    fleet.put("/cron/jobs/this-name", other_name.to_string()).await;
    put_seed_records(&fleet, "old", 30).await;
    fleet.worker("w1", &MULTI).await;
    fleet.worker("w2", &MULTI).await;
    let api = fleet.our_api().await;
    let ours = api.url.clone();

    assert_eq!(read(&url, "/worker/list").await, json!(["w1", "w2"]));
    let records = log_with(&url, "old", |records| records[0]["command"] == "echo old").await;
    assert_eq!(records.len(), 20, "the seed's default limit");
    assert_eq!(records[0]["output"], "old\n");
    // One log, ours and theirs, whoever serves it.
    let pages: Vec<Value> = {
        post(&url, "/job/delete", &[("name", "old")]).await;
        wait_for("its last record", SOON, async || {
            let settled = fleet.keys("/cron/runs/").await.is_empty();
            (settled && fleet.get("/cron/lock/old").await.is_none()).then_some(())
        })
        .await;
        let mut pages = Vec::new();
        for skip in [0, 15, 30, 45, 60] {
            let path = format!("/job/log?name=old&skip={skip}&limit=15");
            let (theirs, ours) = (read(&url, &path).await, read(&ours, &path).await);
            let seed_fields = |record: &Value| SEED_FIELDS.map(|field| record[field].clone());
            let of = |page: &Value| page.as_array().unwrap().iter().map(seed_fields).collect::<Vec<_>>();
            assert_eq!(of(&theirs), of(&ours), "skip {skip}");
            pages.extend(ours.as_array().unwrap().clone());
        }
        pages
    };
    assert_eq!(pages.iter().filter(|r| r["command"] == "seed").count(), 30);
    let ids: BTreeSet<&str> = pages.iter().map(|r| r["_id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), pages.len(), "no record twice, none left out");
    assert!(pages.is_sorted_by_key(|r| std::cmp::Reverse(r["startTime"].as_i64())));

    // What cannot be run is said and left alone; the six fields are read seconds first.
    log_with(&url, "six", |records| records.iter().any(|r| r["planTime"].as_i64().unwrap() % 60_000 != 0))
        .await;
    let said = std::fs::read_to_string(fleet.workers[0].process().log()).unwrap();
    for name in ["bad-cron", "never", "not-json", "this-name", "a/b"] {
        assert!(said.contains(name), "{name} is not told of:\n{said}");
    }
    let listed = read(&ours, "/job/list").await;
    let names: Vec<&str> =
        listed.as_array().unwrap().iter().map(|job| job["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["bad-cron", "never", "six"]);
    for name in ["bad-cron", "not-json", "this-name"] {
        post(&ours, "/job/delete", &[("name", name)]).await; // what cannot be run can be taken away
        assert_eq!(fleet.get(&format!("/cron/jobs/{name}")).await, None);
    }
    for name in ["bad-cron", "never", "not-json", "this-name", "other", "a/b", ""] {
        assert_eq!(read(&url, &format!("/job/log?name={name}")).await, json!([]), "{name:?} did not run");
    }

    // Saved, edited, deleted: each at once.
    let job = json!({"name": "hi", "command": "echo hi", "cronExpr": "* * * * * * *"});
    assert_eq!(save(&url, &job).await, Value::Null);
    let records = log_with(&url, "hi", |records| !records.is_empty()).await;
    for record in fleet.records("hi").await {
        // As the seed's documents have them: its driver knows no other number as an int64.
        let (texts, times) = SEED_FIELDS.split_at(4);
        assert!(texts.iter().all(|field| matches!(record.get(field), Some(Bson::String(_)))), "{record}");
        assert!(times.iter().all(|field| matches!(record.get(field), Some(Bson::Int64(_)))), "{record}");
    }
    assert_eq!((&records[0]["err"], &records[0]["output"]), (&json!(""), &json!("hi\n")));
    let edited = json!({"name": "hi", "command": "echo no; exit 3", "cronExpr": "* * * * * * *"});
    let edited_at = now_ms();
    assert_eq!(save(&url, &edited).await, job);
    let records = log_with(&url, "hi", has_err("exit status 3")).await;
    assert!(
        records.iter().all(|r| r["err"] != "" || r["startTime"].as_i64().unwrap() < edited_at + 1000),
        "the old command ran after the edit: {records:?}"
    );
    assert_eq!(post(&url, "/job/delete", &[("name", "hi")]).await, edited);
    let deleted_at = now_ms();

    // Its kill: an empty value that lives a second. The grandchild goes too.
    let (child, grandchild) =
        (format!("1000.{}4", std::process::id()), format!("1000.{}5", std::process::id()));
    let command = format!("sleep {grandchild} & sleep {child}");
    save(&url, &json!({"name": "long", "command": command, "cronExpr": "* * * * * * *"})).await;
    let sleeping = || [&child, &grandchild].map(|pause| processes_of(&["sleep", pause]).len());
    wait_for("the run", SOON, async || (sleeping() == [1, 1]).then_some(())).await;
    post(&url, "/job/delete", &[("name", "long")]).await;
    assert_eq!(post(&url, "/job/kill", &[("name", "long")]).await, Value::Null);
    wait_for("its end", SOON, async || (sleeping() == [0, 0]).then_some(())).await;
    log_with(&url, "long", has_err("signal: terminated")).await;

    for record in log_with(&url, "hi", |_| true).await {
        assert!(
            record["startTime"].as_i64().unwrap() < deleted_at + 1000,
            "ran after its deletion: {record}"
        );
    }
}

/// Records as the seed's driver writes them, long ago and a second apart.
async fn put_seed_records(fleet: &Fleet, job: &str, number: i64) {
    let client = mongodb::Client::with_uri_str(fleet.mongo.url()).await.unwrap();
    let records: Vec<Document> = (0..number)
        .map(|n| {
            let at = Bson::Int64(1_540_000_000_000 + n * 1000);
            doc! {
                "jobName": job, "command": "seed", "err": "", "output": format!("{n}"),
                "planTime": &at, "scheduleTime": &at, "startTime": &at, "endTime": &at,
            }
        })
        .collect();
    client.database("cron").collection::<Document>("log").insert_many(records).await.unwrap();
}

/// A job that all share, whose runs leave a line each.
struct Shared {
    name: String,
    every: i64,
    file: PathBuf,
}

/// What became of each second of a job.
#[derive(Default, Debug)]
struct Seconds {
    /// Plan times of runs of ours and of the seed's, and how many there were.
    ours: BTreeMap<i64, usize>,
    seeds: BTreeMap<i64, usize>,
    skipped: BTreeSet<i64>,
    lateness_ms: Vec<i64>,
}

impl Seconds {
    fn of(records: &[Document], job: &Shared) -> Self {
        let mut seconds = Self::default();
        for record in records.iter().filter(|r| r.get_str("jobName").is_ok_and(|name| name == job.name)) {
            let second = number(record, "planTime") / 1000;
            match status(record) {
                "" => *seconds.seeds.entry(second).or_default() += 1,
                "skipped" => {
                    let range = record.get_document("skipped").unwrap();
                    let (from, to) = (number(range, "from") / 1000, number(range, "to") / 1000);
                    seconds.skipped.extend((from..=to).filter(|second| second % job.every == 0));
                }
                _ => {
                    *seconds.ours.entry(second).or_default() += 1;
                    seconds.lateness_ms.push(number(record, "startTime") - number(record, "planTime"));
                }
            }
        }
        seconds
    }

    fn runs_of_ours(&self) -> usize {
        self.ours.values().sum()
    }

    fn doubled_among_ours(&self) -> BTreeSet<i64> {
        self.ours.iter().filter(|(_, runs)| **runs > 1).map(|(second, _)| *second).collect()
    }

    fn both(&self) -> BTreeSet<i64> {
        self.ours.keys().copied().filter(|second| self.seeds.contains_key(second)).collect()
    }

    fn missing(&self, from: i64, to: i64, every: i64) -> BTreeSet<i64> {
        let known = |s: &i64| [&self.ours, &self.seeds].iter().any(|runs| runs.contains_key(s));
        (from..=to).filter(|s| s % every == 0 && !known(s) && !self.skipped.contains(s)).collect()
    }
}

impl std::fmt::Display for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (ours, seeds, skipped) = (self.ours.len(), self.seeds.len(), self.skipped.len());
        let late = &self.lateness_ms;
        let mean = late.iter().sum::<i64>() / i64::try_from(late.len().max(1)).unwrap_or(1);
        let worst = late.iter().max().copied().unwrap_or_default();
        write!(
            f,
            "ours {ours}, the seed's {seeds}, skipped {skipped}; late {mean} ms in the mean, {worst} at most"
        )
    }
}

/// Runs of ours that have left their line. (The seed's leave another, and may lose their records when it ends.)
fn lines(file: &Path) -> usize {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().filter(|line| *line != "seed").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_of_ours_and_one_of_the_seeds_share_jobs() {
    let mut fleet = fleet!("seed-mixed");
    let mut seed_worker = fleet.seed_worker("10.1.2.3").await;
    // What it is running when ours come is left to it: fires meanwhile are its own, and the first one afterwards is ours.
    fleet.put_job("busy", "sleep 3", "* * * * * * *").await;
    let lock = || fleet.get("/cron/lock/busy");
    wait_for("its lock", SOON, async || lock().await.filter(Vec::is_empty)).await;
    fleet.worker("w1", &MULTI).await;
    fleet.worker("w2", &MULTI).await;
    fleet.record("busy", |record| status(record) == "succeeded").await;
    fleet.kv().await.delete("/cron/jobs/busy", None).await.unwrap();
    let mut jobs = Vec::new();
    for (every, expression) in [(1, "* * * * * * *"), (5, "*/5 * * * * * *")] {
        for n in 0..5 {
            let name = format!("every-{every}-{n}");
            let file = fleet.dir.path().join(&name);
            let command = format!("echo \"${{CRON_PLAN_TIME:-seed}}\" >> '{}'", file.display());
            fleet.put_job(&name, &command, expression).await;
            jobs.push(Shared { name, every, file });
        }
    }
    let first = now_ms() / 1000 + 2;
    let last = first + MIXED_SECONDS;
    let said = std::fs::read_to_string(fleet.workers[0].process().log()).unwrap()
        + &std::fs::read_to_string(fleet.workers[1].process().log()).unwrap();
    assert!(said.contains("a seed worker holds the job's lock"), "{said}");
    wait_for("the mixed fleet", Duration::from_secs(120), async || (now_ms() / 1000 > last).then_some(()))
        .await;

    seed_worker.stop(Signal::TERM, SOON).await;
    wait_for("the end of its registration", SOON, async || {
        fleet.get("/cron/workers/10.1.2.3").await.is_none().then_some(())
    })
    .await;
    let alone = now_ms() / 1000 + 2;
    wait_for("some seconds without it", SOON, async || (now_ms() / 1000 > alone + 3).then_some(())).await;
    fleet.delete_prefix("/cron/jobs/").await;
    wait_for("the end of what runs", SOON, async || {
        (fleet.keys("/cron/runs/").await.is_empty() && fleet.keys("/cron/lock/").await.is_empty())
            .then_some(())
    })
    .await;

    let records = settled_records(&fleet, &jobs).await;
    let (mut both, mut ran) = (0, 0);
    for job in &jobs {
        let seconds = Seconds::of(&records, job);
        println!("{}: {seconds}", job.name);
        assert_eq!(seconds.doubled_among_ours(), BTreeSet::new(), "{}", job.name);
        both += seconds.both().len();
        ran += seconds.runs_of_ours();
        assert_eq!(seconds.missing(first, alone + 2, job.every), BTreeSet::new(), "{}", job.name);
        assert!(seconds.skipped.is_empty(), "{}: {:?}", job.name, seconds.skipped);
        assert!((alone..alone + 3).filter(|s| s % job.every == 0).all(|s| seconds.ours.contains_key(&s)));
        assert_eq!(lines(&job.file), seconds.runs_of_ours(), "{}: each run has one record", job.name);
    }
    // The lock is kept for half a second longer than the seed sleeps before it tries; on a busy machine it may come later still.
    assert!(both * 20 <= ran, "{both} of {ran} runs were doubled by the seed's");
    for worker in &mut fleet.workers {
        let log = std::fs::read_to_string(worker.process().log()).unwrap();
        assert!(log.contains("seed workers are registered"), "{log}");
        assert!(log.lines().count() < 20 && !log.contains("ERROR"), "no flood:\n{log}");
    }
}

/// Every record, once there is one for each line that a run has left.
async fn settled_records(fleet: &Fleet, jobs: &[Shared]) -> Vec<Document> {
    wait_for("a record of every run", SOON, async || {
        let records = fleet.all_records().await;
        jobs.iter()
            .all(|job| Seconds::of(&records, job).runs_of_ours() >= lines(&job.file))
            .then_some(records)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seed_worker_that_takes_our_address_ends_no_run() {
    let mut fleet = fleet!("seed-same-address");
    fleet.worker("10.1.2.3", &[]).await; // what both take by themselves on one machine
    let out = fleet.dir.path().join("started");
    let command = format!("touch '{}'; sleep 3; echo finished", out.display());
    fleet.put_job("long", &command, "* * * * * * *").await;
    wait_for("the run", SOON, async || out.exists().then_some(())).await;
    fleet.kv().await.delete("/cron/jobs/long", None).await.unwrap();

    let seed_worker = fleet.seed_worker("10.1.2.3").await;

    wait_for("another name", SOON, async || fleet.get("/cron/workers/10.1.2.3~2").await).await;
    let record = fleet.record("long", |record| status(record) != "skipped").await;
    assert_eq!((status(&record), record.get_str("output").unwrap()), ("succeeded", "finished\n"));
    drop(seed_worker);
}
