//! Every route with good and bad input, through the handlers in this process on the embedded stores. The replies are golden files in
//! `testdata/api`: `UPDATE_GOLDEN=1 cargo test -p tests --test api_golden` writes them anew, to be read as a diff.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use common::clock::{Clock, Timestamp};
use common::domain::job::{Job, JobName};
use common::domain::kill::{KILL_TTL_SECONDS, KillRequest};
use common::domain::mark::Mark;
use common::domain::record::Record;
use common::domain::run::{LockHolder, RunId};
use common::domain::worker::Sid;
use common::keys;
use common::kv::embedded::EmbeddedKv;
use common::kv::{
    self, Key, Kv, LeaseId, Op, Pair, Range, RangeReply, Revision, Span, Txn, TxnReply, WatchStream,
};
use common::run_log::embedded::EmbeddedRunLog;
use common::run_log::{self, Appended, RecordQuery, RunLog};
use functions::http::{BODY_BYTES_MAX, Response};
use functions::{Ports, ROUTES};
use lambda_http::{Body, Request, RequestExt as _};
use serde_json::{Map, Value, json};

/// 2026-11-21T00:00:00Z, when all these tests play.
const NOW: Timestamp = Timestamp::from_ms(1_795_219_200_000);

/// A clock that stands still until it is put forward.
struct StoppedClock(AtomicI64);

#[async_trait]
impl Clock for StoppedClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_ms(self.0.load(Ordering::Relaxed))
    }

    async fn sleep_until(&self, _deadline: Timestamp) {}
}

/// Embedded stores behind something that can fail, and a stopped clock.
struct Stage {
    kv: Arc<FaultyKv>,
    run_log: Arc<FaultyRunLog>,
    clock: Arc<StoppedClock>,
}

impl Stage {
    fn new() -> Self {
        Self {
            kv: Arc::new(FaultyKv {
                inner: EmbeddedKv::in_memory().unwrap(),
                down: AtomicBool::new(false),
                writes: std::sync::Mutex::new(Vec::new()),
            }),
            run_log: Arc::new(FaultyRunLog {
                inner: EmbeddedRunLog::in_memory().unwrap(),
                down: AtomicBool::new(false),
            }),
            clock: Arc::new(StoppedClock(AtomicI64::new(NOW.ms()))),
        }
    }

    fn ports(&self) -> Ports {
        Ports { kv: self.kv.clone(), run_log: self.run_log.clone(), clock: self.clock.clone() }
    }

    async fn send(&self, request: Request) -> (u16, Value) {
        let response = functions::handle(&self.ports(), request).await;
        (response.status().as_u16(), body(&response))
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        self.send(request("GET", path, None, "")).await
    }

    async fn post(&self, path: &str, json: Value) -> (u16, Value) {
        self.send(request("POST", path, Some("application/json"), &json.to_string())).await
    }

    async fn put(&self, key: impl Into<Key>, value: impl Into<Vec<u8>>) {
        let put = Txn { then: vec![Op::put(key, value)], ..Txn::default() };
        self.kv.inner.txn(put).await.unwrap();
    }

    async fn pair(&self, key: &str) -> Option<Pair> {
        self.kv.inner.range(Range::key(key)).await.unwrap().pairs.pop()
    }

    async fn mark(&self, name: &str) -> Option<Mark> {
        let key = keys::fired(&JobName::parse(name).unwrap());
        self.pair(&key).await.map(|pair| Mark::decode(&pair.value).unwrap())
    }

    async fn revision(&self) -> Revision {
        self.kv.inner.range(Range::key("nothing")).await.unwrap().revision
    }

    fn pass(&self, ms: i64) {
        self.clock.0.fetch_add(ms, Ordering::Relaxed);
    }
}

fn request(method: &str, path: &str, content_type: Option<&str>, body: &str) -> Request {
    let mut builder = lambda_http::http::Request::builder().method(method).uri(path);
    if let Some(content_type) = content_type {
        builder = builder.header("content-type", content_type);
    }
    let body = if body.is_empty() { Body::Empty } else { Body::Text(body.to_owned()) };
    let request = builder.body(body).unwrap();
    let raw_path = request.uri().path().to_owned();
    request.with_raw_http_path(raw_path)
}

fn body(response: &Response) -> Value {
    let json = response.headers().get("content-type").is_some_and(|t| t == "application/json");
    match response.body() {
        Body::Text(text) if json => serde_json::from_str(text).unwrap(),
        _ => Value::Null,
    }
}

fn job(name: &str) -> Value {
    json!({"name": name, "command": "echo hello", "cronExpr": "*/5 * * * *"})
}

fn name(name: &str) -> JobName {
    JobName::parse(name).unwrap()
}

fn record(job: &str, n: i64, output: &str) -> Record {
    let at = NOW.plus_ms(n * 1000).ms();
    serde_json::from_value(json!({
        "_id": format!("{job}/{at}/1"), "jobName": job, "command": "true", "err": "", "output": output,
        "planTime": at, "scheduleTime": at, "startTime": at, "endTime": at + 5,
        "v": 1, "claim": format!("a-{n}"), "status": "succeeded", "exitCode": 0, "worker": "w1", "attempt": 1, "trigger": "schedule",
    }))
    .unwrap()
}

// ---- the tables ----

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/api")
}

fn read_json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn tables() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(testdata()).unwrap().map(|entry| entry.unwrap().path());
    let mut tables: Vec<PathBuf> = entries.filter(|p| p.extension().is_some_and(|e| e == "json")).collect();
    tables.sort();
    assert!(!tables.is_empty());
    tables
}

/// What stands in the stores before the first step.
async fn given(stage: &Stage, given: &Value) {
    let object = |field: &str| given[field].as_object().cloned().unwrap_or_default();
    let bytes = |value: Value| match value {
        Value::String(text) => text.into_bytes(),
        other => other.to_string().into_bytes(),
    };
    for (key, value) in object("keys") {
        stage.put(key.as_str(), bytes(value)).await;
    }
    for (job, value) in object("marks") {
        stage.put(keys::fired(&name(&job)), bytes(value)).await;
    }
    let records: Vec<Record> = serde_json::from_value(given["records"].clone()).unwrap_or_default();
    assert_eq!(records.len(), given["records"].as_array().map_or(0, Vec::len), "a record is not readable");
    stage.run_log.inner.append(&records).await.unwrap();
}

/// Sends a step's request; answers what the golden file is to say.
async fn golden(stage: &Stage, step: &Value) -> Map<String, Value> {
    let text = |field: &str| step[field].as_str();
    let sent = match &step["json"] {
        Value::Null => text("body").unwrap_or_default().to_owned(),
        json => json.to_string(),
    };
    let content_type = text("contentType").or(step.get("json").map(|_| "application/json"));
    let before = stage.revision().await;
    let mut request = request(text("method").unwrap_or("GET"), text("path").unwrap(), content_type, &sent);
    if let Some(site) = text("secFetchSite") {
        request.headers_mut().insert("sec-fetch-site", site.parse().unwrap());
    }
    let response = functions::handle(&stage.ports(), request).await;
    let status = response.status().as_u16();
    if status != 200 {
        assert_eq!(stage.revision().await, before, "{step}: refused, and something was written");
    }
    let mut golden = Map::from_iter([("status".to_owned(), status.into())]);
    let header = |name: &str| response.headers().get(name).map(|v| v.to_str().unwrap().to_owned());
    if let Some(allow) = header("allow") {
        golden.insert("allow".to_owned(), allow.into());
    }
    match header("content-type").unwrap() {
        json if json == "application/json" => golden.insert("reply".to_owned(), body(&response)),
        other => golden.insert("replyType".to_owned(), other.into()),
    };
    golden
}

#[tokio::test]
async fn the_replies_are_the_golden_ones() {
    #[expect(clippy::disallowed_methods, reason = "a switch for whoever edits the tables, no setting")]
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut faults = Vec::new();
    for path in tables() {
        let mut table = read_json(&path);
        let stage = Stage::new();
        given(&stage, &table["given"]).await;
        for step in table["steps"].as_array_mut().unwrap() {
            let got = golden(&stage, step).await;
            let object = step.as_object_mut().unwrap();
            let expected: Map<String, Value> = object
                .iter()
                .filter(|(k, _)| ["status", "allow", "reply", "replyType"].contains(&k.as_str()))
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect();
            if got != expected {
                let named = object["name"].as_str().unwrap_or_default().to_owned();
                faults.push(format!("{} / {named}: got {}", path.display(), Value::Object(got.clone())));
            }
            if update {
                object.retain(|k, _| !expected.contains_key(k));
                object.extend(got);
            }
        }
        if update {
            std::fs::write(&path, serde_json::to_string_pretty(&table).unwrap() + "\n").unwrap();
        }
    }
    assert!(update || faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_tables_have_good_and_bad_input_for_every_route() {
    let mut seen = BTreeSet::new();
    for path in tables() {
        for step in read_json(&path)["steps"].as_array().unwrap() {
            let path = step["path"].as_str().unwrap().split('?').next().unwrap().to_owned();
            let path = if path.starts_with("/console/") { "/console/{file}".to_owned() } else { path };
            seen.insert((path, step["status"].as_u64().unwrap()));
        }
    }
    for route in &ROUTES {
        let wrong = if route.path == "/console/{file}" { [200, 405, 404] } else { [200, 405, 405] };
        for status in wrong {
            assert!(seen.contains(&(route.path.to_owned(), status)), "{} lacks a {status}", route.path);
        }
        let takes_input = !route.path.starts_with("/console") && !["/", "/worker/list"].contains(&route.path);
        assert!(
            !takes_input || seen.contains(&(route.path.to_owned(), 400)),
            "{} lacks bad input",
            route.path
        );
    }
}

#[test]
fn every_change_is_refused_to_a_page_of_another_site() {
    let mut refused = BTreeSet::new();
    for path in tables() {
        let table = read_json(&path);
        let steps = table["steps"].as_array().unwrap().iter();
        let foreign = steps.filter(|step| step["secFetchSite"] == "cross-site" && step["status"] == 403);
        refused.extend(foreign.map(|step| step["path"].as_str().unwrap().to_owned()));
    }
    for route in ROUTES.iter().filter(|route| route.methods.contains(&"POST")) {
        assert!(refused.contains(route.path), "{} lacks a 403", route.path);
    }
}

// ---- events of API Gateway ----

#[tokio::test]
async fn events_of_api_gateway_are_decoded() {
    let stage = Stage::new();
    stage.run_log.inner.append(&[record("job 1", 0, "out")]).await.unwrap();
    let event = |file: &str| {
        let text = std::fs::read_to_string(testdata().join("events").join(file)).unwrap();
        lambda_http::request::from_str(&text).unwrap()
    };
    let (status, reply) = stage.send(event("save_form_base64.json")).await;
    assert_eq!((status, &reply["errno"]), (200, &json!(0)), "{reply}");
    let stored = stage.pair("/cron/jobs/job 1").await.unwrap();
    assert_eq!(
        serde_json::from_slice::<Value>(&stored.value).unwrap(),
        json!({"name": "job 1", "command": "echo 100% && echo 任务+1", "cronExpr": "*/5 * * * *"})
    );
    let (status, reply) = stage.send(event("save_json.json")).await;
    assert_eq!((status, &reply["data"]["name"]), (200, &json!("job 1")), "{reply}");
    let (status, reply) = stage.send(event("log_query.json")).await;
    assert_eq!((status, &reply["data"][0]["output"]), (200, &json!("out")), "{reply}");
    let (status, reply) = stage.send(event("list_wrong_method.json")).await;
    assert_eq!((status, &reply["errno"]), (405, &json!(-1)), "{reply}");
}

// ---- limits ----

#[tokio::test]
async fn a_body_over_the_limit_is_refused() {
    let stage = Stage::new();
    let body = format!("job={}", "a".repeat(BODY_BYTES_MAX));
    let form = Some("application/x-www-form-urlencoded");
    let (status, reply) = stage.send(request("POST", "/job/save", form, &body)).await;
    assert_eq!((status, &reply["errno"], &reply["data"]), (413, &json!(-1), &Value::Null));
}

#[tokio::test]
async fn a_list_that_does_not_fit_says_where_it_goes_on() {
    let stage = Stage::new();
    for n in 0..120 {
        // Quotes and backslashes double on their way through Lambda.
        let value =
            json!({"name": format!("job{n:03}"), "command": "\"\\".repeat(16_000), "cronExpr": "@daily"});
        stage.put(format!("/cron/jobs/job{n:03}"), value.to_string()).await;
    }
    let (mut listed, mut pages, mut after) = (Vec::new(), 0, String::new());
    loop {
        let response =
            functions::handle(&stage.ports(), request("GET", &format!("/job/list?after={after}"), None, ""))
                .await;
        let Body::Text(text) = response.body() else { panic!("no text") };
        assert!(serde_json::to_string(text).unwrap().len() < 6 * 1024 * 1024, "Lambda would refuse it");
        let reply = body(&response);
        pages += 1;
        listed.extend(reply["data"].as_array().unwrap().iter().map(|job| job["name"].clone()));
        match reply["next"].as_str() {
            Some(next) => after = next.to_owned(),
            None => break,
        }
    }
    let all: Vec<Value> = (0..120).map(|n| json!(format!("job{n:03}"))).collect();
    assert_eq!(listed, all);
    assert!(pages > 1 && pages < 10, "{pages} pages");
}

#[tokio::test]
async fn a_log_that_does_not_fit_says_where_it_goes_on() {
    let stage = Stage::new();
    let records: Vec<Record> = (0..600)
        .map(|n| record("big", n, &if n == 300 { "\u{1}".repeat(2_000_000) } else { "x".repeat(20_000) }))
        .collect();
    for batch in records.chunks(50) {
        stage.run_log.inner.append(batch).await.unwrap();
    }
    let (mut listed, mut skip, mut cut) = (Vec::new(), "0".to_owned(), 0);
    loop {
        let path = format!("/job/log?name=big&limit=1000&skip={skip}");
        let response = functions::handle(&stage.ports(), request("GET", &path, None, "")).await;
        let Body::Text(text) = response.body() else { panic!("no text") };
        assert!(serde_json::to_string(text).unwrap().len() < 6 * 1024 * 1024, "Lambda would refuse it");
        let reply = body(&response);
        for record in reply["data"].as_array().unwrap() {
            cut += usize::from(record["outputTruncated"] == json!(true));
            listed.push(record["startTime"].as_i64().unwrap());
        }
        match reply["next"].as_str() {
            Some(next) => skip = next.to_owned(),
            None => break,
        }
    }
    let all: Vec<i64> = (0..600).rev().map(|n| NOW.plus_ms(n * 1000).ms()).collect();
    assert_eq!(listed, all);
    assert_eq!(cut, 1, "only the record that fits no page is cut");
}

// ---- what a save does to the mark (design P7), a delete (P6) ----

#[tokio::test]
async fn a_save_moves_the_base_only_when_the_fire_times_change() {
    let stage = Stage::new();
    stage.post("/job/save", job("a")).await;
    let new = stage.mark("a").await.unwrap();
    assert_eq!((new.base, new.plan_time), (NOW, Timestamp::ZERO));

    let claimed = new.claimed(NOW.plus_ms(300_000), RunId::new(Sid(7), 1), Sid(7));
    stage.put(keys::fired(&name("a")), claimed.encode()).await;
    stage.pass(400_000);
    let mut edited = job("a");
    edited["command"] = json!("echo other");
    let (_, reply) = stage.post("/job/save", edited.clone()).await;
    assert_eq!(reply["data"], job("a"));
    assert_eq!(reply.get("warnings"), None);
    assert_eq!(stage.mark("a").await.unwrap(), claimed, "an edit of the command leaves the mark alone");

    edited["cronExpr"] = json!("0 * * * *");
    stage.post("/job/save", edited).await;
    let rebased = stage.mark("a").await.unwrap();
    assert_eq!(rebased.base, NOW.plus_ms(400_000));
    assert_eq!(
        (rebased.plan_time, rebased.run_id),
        (claimed.plan_time, claimed.run_id),
        "the mark does not go back"
    );
}

#[tokio::test]
async fn a_job_deleted_and_saved_again_keeps_its_mark() {
    let stage = Stage::new();
    stage.post("/job/save", job("a")).await;
    let claimed = stage.mark("a").await.unwrap().claimed(NOW.plus_ms(1000), RunId::new(Sid(7), 1), Sid(7));
    stage.put(keys::fired(&name("a")), claimed.encode()).await;
    let (_, reply) = stage.post("/job/delete", json!({"name": "a"})).await;
    assert_eq!(reply["data"], job("a"));
    assert_eq!(stage.pair("/cron/jobs/a").await, None);
    assert_eq!(stage.mark("a").await.unwrap(), claimed);

    let (_, reply) = stage.post("/job/save", job("a")).await;
    let warnings = reply["warnings"].to_string();
    assert!(warnings.contains("2026-11-21T00:00:01.000Z was already claimed"), "{warnings}");
    assert_eq!(stage.mark("a").await.unwrap().plan_time, claimed.plan_time);
}

#[tokio::test]
async fn a_mark_of_a_newer_version_is_not_written_over() {
    let stage = Stage::new();
    stage.put(keys::fired(&name("a")), r#"{"v":99}"#).await;
    let before = stage.revision().await;
    let (status, reply) = stage.post("/job/save", job("a")).await;
    assert_eq!(status, 409);
    assert!(reply["msg"].as_str().unwrap().contains("newer"), "{reply}");
    assert_eq!(stage.revision().await, before);
}

#[tokio::test]
async fn what_never_fires_again_is_refused() {
    let stage = Stage::new();
    let past = json!({"name": "a", "command": "true", "cronExpr": "0 0 0 1 1 * 2020"});
    let (status, reply) = stage.post("/job/save", past).await;
    assert_eq!(status, 400);
    assert!(reply["msg"].as_str().unwrap().starts_with("cronExpr: "), "{reply}");
    assert_eq!(stage.pair("/cron/jobs/a").await, None);
}

// ---- kill ----

#[tokio::test]
async fn a_kill_names_the_open_run_and_goes_with_its_lease() {
    let stage = Stage::new();
    let run = RunId::new(Sid(7), 3);
    stage.put(keys::lock(&name("a")), LockHolder::new(Sid(7), run.clone()).encode()).await;
    let (status, reply) = stage.post("/job/kill", json!({"name": "a", "runId": "7-3"})).await;
    assert_eq!((status, &reply["data"]), (200, &json!({"runIds": ["7-3"]})), "{reply}");
    let put = stage.pair("/cron/killer/a").await.unwrap();
    assert_eq!(KillRequest::decode(&put.value).unwrap().unwrap().run_ids, [run]);
    let left = stage.kv.inner.keep_alive(put.lease.unwrap()).await.unwrap();
    assert_eq!(left, Duration::from_secs(KILL_TTL_SECONDS));
}

// ---- stores that fail ----

/// What becomes of a write.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// Applied, and the answer lost.
    AnswerLost,
    /// Not applied, and nobody knows.
    RequestLost,
    /// Somebody else puts the job first.
    Overtaken,
}

struct FaultyKv {
    inner: EmbeddedKv,
    down: AtomicBool,
    /// What becomes of the next writes; afterwards they are done.
    writes: std::sync::Mutex<Vec<Fault>>,
}

impl FaultyKv {
    fn up(&self) -> Result<&EmbeddedKv, kv::Error> {
        match self.down.load(Ordering::Relaxed) {
            true => Err(kv::Error::Unavailable("down".to_owned())),
            false => Ok(&self.inner),
        }
    }

    fn fail(&self, faults: &[Fault]) {
        *self.writes.lock().unwrap() = faults.to_vec();
    }
}

#[async_trait]
impl Kv for FaultyKv {
    async fn range(&self, range: Range) -> Result<RangeReply, kv::Error> {
        self.up()?.range(range).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnReply, kv::Error> {
        let kv = self.up()?;
        let writes = txn.then.iter().any(|op| !matches!(op, Op::Range(_)));
        let fault = if writes { self.writes.lock().unwrap().pop() } else { None };
        match fault {
            None => kv.txn(txn).await,
            Some(Fault::AnswerLost) => {
                kv.txn(txn).await?;
                Err(kv::Error::Indeterminate("the answer is lost".to_owned()))
            }
            Some(Fault::RequestLost) => Err(kv::Error::Indeterminate("the request is lost".to_owned())),
            Some(Fault::Overtaken) => {
                let put = Op::put("/cron/jobs/a", job("a").to_string());
                kv.txn(Txn { then: vec![put], ..Txn::default() }).await?;
                kv.txn(txn).await
            }
        }
    }

    async fn watch(&self, span: Span, start: Revision) -> Result<WatchStream, kv::Error> {
        self.up()?.watch(span, start).await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, kv::Error> {
        self.up()?.grant(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, kv::Error> {
        self.up()?.keep_alive(lease).await
    }

    async fn lease_keys(&self, lease: LeaseId) -> Result<Vec<Key>, kv::Error> {
        self.up()?.lease_keys(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), kv::Error> {
        self.up()?.revoke(lease).await
    }

    async fn compact(&self, revision: Revision) -> Result<(), kv::Error> {
        self.up()?.compact(revision).await
    }
}

struct FaultyRunLog {
    inner: EmbeddedRunLog,
    down: AtomicBool,
}

impl FaultyRunLog {
    fn up(&self) -> Result<&EmbeddedRunLog, run_log::Error> {
        match self.down.load(Ordering::Relaxed) {
            true => Err(run_log::Error::Unavailable("down".to_owned())),
            false => Ok(&self.inner),
        }
    }
}

#[async_trait]
impl RunLog for FaultyRunLog {
    async fn prepare(&self) -> Result<(), run_log::Error> {
        self.up()?.prepare().await
    }

    async fn append(&self, records: &[Record]) -> Result<Appended, run_log::Error> {
        self.up()?.append(records).await
    }

    async fn list(&self, query: &RecordQuery) -> Result<Vec<Record>, run_log::Error> {
        self.up()?.list(query).await
    }
}

#[tokio::test]
async fn a_store_that_is_down_is_503_and_the_next_call_works() {
    let stage = Stage::new();
    for down in [true, false] {
        stage.kv.down.store(down, Ordering::Relaxed);
        stage.run_log.down.store(down, Ordering::Relaxed);
        let replies = [
            ("save", stage.post("/job/save", job("a")).await),
            ("list", stage.get("/job/list").await),
            ("kill", stage.post("/job/kill", json!({"name": "a"})).await),
            ("delete", stage.post("/job/delete", json!({"name": "a"})).await),
            ("workers", stage.get("/worker/list").await),
            ("log", stage.get("/job/log?name=a").await),
        ];
        for (function, (status, reply)) in replies {
            assert_eq!(status, if down { 503 } else { 200 }, "{function}: {reply}");
            assert_eq!(reply["errno"], json!(if down { -1 } else { 0 }), "{function}");
            assert!(!down || reply["data"].is_null(), "{function}");
        }
    }
}

#[tokio::test]
async fn each_endpoint_uses_its_own_store_alone() {
    let stage = Stage::new();
    stage.kv.down.store(true, Ordering::Relaxed);
    assert_eq!(stage.get("/job/log?name=a").await.0, 200, "log opens no etcd");
    stage.kv.down.store(false, Ordering::Relaxed);
    stage.run_log.down.store(true, Ordering::Relaxed);
    assert_eq!(stage.post("/job/kill", json!({"name": "a"})).await.0, 200, "kill opens no MongoDB");
}

#[tokio::test]
async fn a_write_whose_answer_is_lost_is_settled() {
    for fault in [Fault::AnswerLost, Fault::RequestLost] {
        let stage = Stage::new();
        stage.kv.fail(&[fault]);
        let (status, reply) = stage.post("/job/save", job("a")).await;
        assert_eq!(
            (status, &reply["data"]),
            (200, &Value::Null),
            "the first save has nothing before it: {reply}"
        );
        assert_eq!(stage.mark("a").await.unwrap().base, NOW);
        let stored = stage.pair("/cron/jobs/a").await.unwrap();
        assert_eq!(stored.version, 1, "it was applied once");

        stage.kv.fail(&[fault]);
        let (status, reply) = stage.post("/job/delete", json!({"name": "a"})).await;
        assert_eq!((status, &reply["data"]), (200, &job("a")), "the deleted job is known: {reply}");
        assert_eq!(stage.pair("/cron/jobs/a").await, None);

        stage.kv.fail(&[fault]);
        let (status, reply) = stage.post("/job/kill", json!({"name": "a"})).await;
        assert_eq!((status, &reply["data"]), (200, &json!({"runIds": []})), "{reply}");
        assert!(stage.pair("/cron/killer/a").await.is_some());
    }
}

#[tokio::test]
async fn a_save_that_is_overtaken_looks_again_and_gives_up_after_five_times() {
    let stage = Stage::new();
    let mut wanted = job("a");
    wanted["command"] = json!("mine");
    stage.kv.fail(&[Fault::Overtaken; 4]);
    let (status, reply) = stage.post("/job/save", wanted.clone()).await;
    assert_eq!((status, &reply["data"]), (200, &job("a")), "{reply}");
    let stored = stage.pair("/cron/jobs/a").await.unwrap();
    assert_eq!(Job::from_stored("a", &stored.value).unwrap().command, "mine");

    stage.kv.fail(&[Fault::Overtaken; 5]);
    let (status, reply) = stage.post("/job/save", wanted).await;
    assert_eq!((status, &reply["errno"]), (409, &json!(-1)), "{reply}");
    let stored = stage.pair("/cron/jobs/a").await.unwrap();
    assert_eq!(Job::from_stored("a", &stored.value).unwrap().command, "echo hello", "nothing was written");
}

// ---- the console ----

#[tokio::test]
async fn the_console_runs_no_script_but_its_own() {
    let stage = Stage::new();
    let page = functions::handle(&stage.ports(), request("GET", "/", None, "")).await;
    let policy = page.headers()["content-security-policy"].to_str().unwrap();
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    assert!(policy.contains("require-trusted-types-for 'script'"), "{policy}");
    let Body::Text(html) = page.body() else { panic!("no page") };
    assert!(
        !html.contains("onclick") && !html.contains("style=") && !html.contains("://"),
        "inline code, or a CDN"
    );
    let parts: Vec<&str> = html.split('"').filter(|part| part.starts_with("console/")).collect();
    assert!(parts.len() > 3, "the page has no files");
    for part in parts {
        let file = functions::handle(&stage.ports(), request("GET", &format!("/{part}"), None, "")).await;
        assert_eq!(file.status(), 200, "{part}");
        let Body::Text(text) = file.body() else { panic!("{part} is empty") };
        // The browser's trusted types hold the libraries; these words are how our own code would ask them for markup.
        let ours = !part.contains("preact") && !part.contains("htm.js");
        let markup = ["innerHTML", "InnerHTML", "outerHTML", "insertAdjacentHTML", "document.write"];
        for word in markup.iter().filter(|_| ours).chain(&["eval(", "new Function"]) {
            assert!(!text.contains(word), "{part}: {word} would take what jobs print for markup or code");
        }
    }
}
