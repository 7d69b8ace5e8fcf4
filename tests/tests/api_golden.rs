//! Every route with good and bad input, through the handlers in this process on the embedded stores. The replies are golden files in
//! `testdata/api`: `UPDATE_GOLDEN=1 cargo test -p tests --test api_golden` writes them anew, to be read as a diff.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use common::clock::{Clock, Timestamp};
use common::domain::access::Principal;
use common::domain::audit::{Entry, EntryId};
use common::domain::execution::Environment;
use common::domain::job::{Job, JobName};
use common::domain::kill::{KILL_TTL_SECONDS, KillRequest};
use common::domain::mark::Mark;
use common::domain::output::Chunk;
use common::domain::pause::{Base, Pause};
use common::domain::record::Record;
use common::domain::request::Request as RunRequest;
use common::domain::run::{LockHolder, RunId};
use common::domain::settings::FleetSettings;
use common::domain::worker::{Identity, Registration, Sid};
use common::history::{History, Query, Shelf};
use common::keys;
use common::kv::embedded::EmbeddedKv;
use common::kv::{
    self, Key, Kv, LeaseId, Op, Pair, Range, RangeReply, Revision, Span, Txn, TxnReply, WatchStream,
};
use common::run_log::embedded::EmbeddedRunLog;
use common::run_log::{self, Appended, Place, RecordQuery, Removal, RunLog};
use functions::http::{BODY_BYTES_MAX, Response};
use functions::{Ports, ROUTES};
use lambda_http::http::HeaderValue;
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
                grants: AtomicUsize::new(0),
                txns: AtomicUsize::new(0),
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

    async fn send(&self, mut request: Request) -> (u16, Value) {
        request.extensions_mut().insert(Principal::anybody());
        let response = functions::handle(&self.ports(), request).await;
        (response.status().as_u16(), body(&response))
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        self.send(request("GET", path, None, "")).await
    }

    async fn post(&self, path: &str, json: Value) -> (u16, Value) {
        self.send(request("POST", path, Some("application/json"), &json.to_string())).await
    }

    /// Posts with an `Idempotency-Key`; whether the answer is said to be the first one again stands beside it.
    async fn post_once(&self, path: &str, json: Value, key: &str) -> (u16, Value, bool) {
        let mut request = request("POST", path, Some("application/json"), &json.to_string());
        request.headers_mut().insert("idempotency-key", HeaderValue::from_str(key).unwrap());
        let response = functions::handle(&self.ports(), request).await;
        let replayed = response.headers().contains_key("idempotent-replayed");
        (response.status().as_u16(), body(&response), replayed)
    }

    async fn kept(&self) -> Vec<Pair> {
        self.kv.inner.range(Range::prefix(keys::IDEMPOTENCY)).await.unwrap().pairs
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
    let mut builder =
        lambda_http::http::Request::builder().method(method).uri(path).extension(Principal::anybody());
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
    for chunk in given["output"].as_array().into_iter().flatten() {
        let number = |field: &str| chunk[field].as_u64().unwrap();
        let chunk = Chunk {
            run_id: RunId::from_text(chunk["runId"].as_str().unwrap()),
            slot: u32::try_from(number("slot")).unwrap(),
            from: number("from"),
            bytes: chunk["text"].as_str().unwrap().as_bytes().to_vec(),
            at: NOW,
        };
        stage.run_log.inner.put_output(&[chunk]).await.unwrap();
    }
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
    if let Some(key) = text("idempotencyKey") {
        request.headers_mut().insert("idempotency-key", HeaderValue::from_str(key).unwrap());
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
    if let Some(replayed) = header("idempotent-replayed") {
        assert_eq!(stage.revision().await, before, "{step}: answered again, and something was written");
        golden.insert("replayed".to_owned(), replayed.into());
    }
    match header("content-type").unwrap() {
        json if json == "application/json" => golden.insert("reply".to_owned(), masked(body(&response))),
        other => golden.insert("replyType".to_owned(), other.into()),
    };
    golden
}

/// The id of a run that was asked for is drawn, and so is a token.
fn masked(mut reply: Value) -> Value {
    if let Some(token) = reply.pointer("/data/token").cloned() {
        let id = reply["data"]["id"].clone();
        let (token, id) = (token.as_str().unwrap(), id.as_str().unwrap());
        assert!(token.len() == 60 && token.starts_with(&format!("fct_{id}_")), "{token}");
        reply["data"]["token"] = "…".into();
        reply["data"]["id"] = "…".into();
    }
    if let Some(run_id) = reply.pointer_mut("/data/runId") {
        let text = run_id.as_str().unwrap();
        assert!(text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit()), "{text}");
        *run_id = "…".into();
    }
    reply
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
                .filter(|(k, _)| ["status", "allow", "replayed", "reply", "replyType"].contains(&k.as_str()))
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
    let (status, reply) = stage.send(event("list_named_stage.json")).await;
    assert_eq!((status, &reply["data"][0]["name"]), (200, &json!("job 1")), "a stage is no part of the path");
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
async fn workers_that_do_not_fit_are_on_the_next_page() {
    let stage = Stage::new();
    // Ids alone, as other hands may put them: of 1000 bytes, of which Lambda makes 4000.
    let ids: Vec<String> = (0..2500).map(|n| format!("w{n:04}{}", "\"".repeat(1000))).collect();
    for id in &ids {
        stage.put(keys::worker(id), "").await;
    }
    let (mut listed, mut pages, mut path) = (Vec::new(), 0, "/worker/list".to_owned());
    loop {
        let (status, reply) = stage.get(&path).await;
        assert_eq!(status, 200, "{reply}");
        pages += 1;
        listed.extend(reply["data"].as_array().unwrap().iter().map(|id| id.as_str().unwrap().to_owned()));
        match reply["next"].as_str() {
            Some(next) => path = format!("/worker/list?after={}", next.replace('"', "%22")),
            None => break,
        }
    }
    assert!(listed == ids, "{} of {}", listed.len(), ids.len());
    assert_eq!(pages, 3);
}

/// Asks for a page and the one behind it: what each warns of.
async fn warnings_of_two_pages(stage: &Stage, path: &str, next: &str) -> [usize; 2] {
    let (_, first) = stage.get(path).await;
    assert_eq!(first["next"], next, "{path}");
    let (_, second) = stage.get(&format!("{path}&after={next}")).await;
    assert_eq!(second["next"], Value::Null, "{path}");
    [first, second].map(|reply| reply["warnings"].as_array().map_or(0, Vec::len))
}

#[tokio::test]
async fn a_warning_is_said_on_one_page_alone() {
    let stage = Stage::new();
    let host = |bytes: usize| {
        let (instance, address, labels) = ("i".to_owned(), String::new(), BTreeMap::new());
        let identity =
            Identity { instance, host: "h".repeat(bytes), address, labels, max_runs: 1, started_at: NOW };
        Registration::new(&identity, Sid(1), NOW).encode()
    };
    stage.put(keys::worker("a1"), host(0)).await;
    let (_, alone) = stage.get("/worker/list?detail=1").await;
    let bytes = json!(alone["data"][0].to_string()).to_string().len();
    // A page has 5,000,000 bytes, and of these too few are left for the sixth worker, whose registration cannot be read.
    for n in 1..=5 {
        stage.put(keys::worker(&format!("a{n}")), host(1_000_000 - bytes)).await;
    }
    stage.put(keys::worker("a6"), "{").await;
    assert_eq!(warnings_of_two_pages(&stage, "/worker/list?detail=1", "a5").await, [0, 1]);

    for (name, value) in [("a", job("a").to_string()), ("b", "{".to_owned()), ("c", job("c").to_string())] {
        stage.put(format!("{}{name}", keys::JOBS), value).await;
    }
    assert_eq!(warnings_of_two_pages(&stage, "/job/list?limit=1", "b").await, [1, 0]);
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
    let asked = KillRequest::decode(&put.value).unwrap().unwrap();
    assert_eq!((asked.run_ids, asked.at), (vec![run], Some(NOW)));
    assert_eq!(asked.by.as_deref(), Some("an unknown address"), "no gateway has told it");
    let left = stage.kv.inner.keep_alive(put.lease.unwrap()).await.unwrap();
    assert_eq!(left, Duration::from_secs(KILL_TTL_SECONDS));
}

#[tokio::test]
async fn a_run_that_waits_is_shown_and_can_be_cancelled_once() {
    let stage = Stage::new();
    stage.post("/job/save", job("a")).await;
    let asked = async || stage.post("/job/run", json!({"name": "a"})).await.1["data"]["runId"].clone();
    let (mut ids, now) = ([asked().await, asked().await], NOW.ms());
    ids.sort_by_key(ToString::to_string);
    let [first, second] = ids;
    let shown = |run_id: &Value| {
        json!({
            "runId": run_id, "status": "waiting", "job": "a", "planTime": now, "attempt": 1, "trigger": "manual", "asked": run_id, "by": "api", "at": now
        })
    };
    let (_, reply) = stage.get("/job/running?name=a").await;
    assert_eq!(reply["data"], json!([shown(&first), shown(&second)]), "{reply}");
    assert_eq!(stage.get("/job/running?name=b").await.1["data"], json!([]));
    // In pages, behind a run that goes.
    stage.put("/cron/runs/7/1", open_runs("7-1")).await;
    let (mut after, mut seen) = (String::new(), Vec::new());
    for _ in 0..3 {
        let (_, reply) = stage.get(&format!("/job/running?limit=1&after={after}")).await;
        seen.push(reply["data"][0]["runId"].clone());
        after = reply["next"].as_str().unwrap_or_default().to_owned();
    }
    assert_eq!((seen[1..].to_vec(), after.as_str()), (vec![first.clone(), second], ""));

    let kill = json!({"name": "a", "runId": first});
    for _ in 0..2 {
        let (status, reply) = stage.post("/job/kill", kill.clone()).await;
        assert_eq!((status, &reply["data"]), (200, &json!({"runIds": [first]})), "{reply}");
    }
    assert_eq!(stage.pair("/cron/killer/a").await, None, "no worker runs it");
    let killed = json!({"by": "an unknown address", "at": now});
    assert_eq!(stage.get("/job/running").await.1["data"][1]["killed"], killed);
    let of_other = json!({"name": "b", "runId": first});
    assert_eq!(stage.post("/job/kill", of_other).await.0, 400);
    stage
        .kv
        .inner
        .txn(Txn {
            then: vec![Op::delete(keys::request(&RunId::from_text(first.as_str().unwrap())))],
            ..Txn::default()
        })
        .await
        .unwrap();
    assert_eq!(stage.post("/job/kill", kill).await.0, 400, "it was claimed, and is over");
}

// ---- broadcast ----

#[tokio::test]
async fn nobody_waits_for_a_job_that_runs_on_every_worker() {
    let stage = Stage::new();
    let save = async |name: &str, options: Value| {
        let mut job = job(name);
        job.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
        if options.get("after").is_some() {
            job.as_object_mut().unwrap().remove("cronExpr");
        }
        let (status, reply) = stage.post("/job/save", job).await;
        (status, reply["msg"].as_str().unwrap().to_owned(), reply["warnings"].to_string())
    };
    assert_eq!(save("all", json!({"mode": "broadcast"})).await.0, 200);
    let (status, why, _) = save("later", json!({"after": ["all"]})).await;
    assert!(status == 400 && why.contains("\"all\" runs on every worker"), "{why}");
    assert_eq!(save("one", json!({"mode": "single"})).await.0, 200);
    assert_eq!(save("later", json!({"after": ["one"]})).await.0, 200);
    let (status, why, _) = save("one", json!({"mode": "broadcast"})).await;
    assert!(status == 400 && why.contains("jobs wait for this one (after: \"later\")"), "{why}");
    // One that waits for others may itself run everywhere.
    assert_eq!(save("later", json!({"after": ["one"], "mode": "broadcast"})).await.0, 200);

    stage.put("/cron/workers/seed", "").await;
    let (_, _, warnings) = save("all", json!({"mode": "broadcast"})).await;
    assert!(warnings.contains("worker of the older kind"), "{warnings}");
    let (_, reply) = stage.post("/job/run", json!({"name": "all"})).await;
    let said = format!("begins with {}~", reply["data"]["runId"].as_str().unwrap());
    assert!(reply["warnings"][0].as_str().unwrap().ends_with(&said), "{reply}");
}

// ---- run ----

async fn requests(stage: &Stage) -> Vec<(RunId, RunRequest)> {
    let pairs = stage.kv.inner.range(Range::prefix(keys::REQUESTS)).await.unwrap().pairs;
    pairs
        .iter()
        .map(|pair| (keys::parse_request(&pair.key).unwrap(), RunRequest::decode(&pair.value).unwrap()))
        .collect()
}

#[tokio::test]
async fn a_run_is_asked_for_under_the_id_that_it_will_have() {
    let stage = Stage::new();
    stage.post("/job/save", job("a")).await;
    let (status, reply) = stage.post("/job/run", json!({"name": "a", "env": {"DAY": "monday"}})).await;
    assert_eq!(status, 200, "{reply}");
    let [(run_id, request)] = requests(&stage).await.try_into().unwrap();
    assert_eq!(reply["data"], json!({"runId": run_id}));
    let env = Environment::parse(&json!({"DAY": "monday"})).unwrap();
    assert_eq!(request, RunRequest::manual(run_id, name("a"), env, NOW));
    assert_eq!(stage.mark("a").await.unwrap().plan_time, Timestamp::ZERO, "the schedule goes on as it was");
}

#[tokio::test]
async fn a_run_is_asked_for_once_also_when_the_answer_is_lost_and_the_run_has_begun() {
    for named in [false, true] {
        for fault in [Fault::AnswerLost, Fault::RequestLost] {
            let stage = Stage::new();
            stage.post("/job/save", job("a")).await;
            stage.kv.fail(&[fault]);
            let before = stage.revision().await;
            let sent = json!({"name": "a"});
            let (status, reply) = match named {
                true => {
                    let (status, reply, replayed) = stage.post_once("/job/run", sent, "k").await;
                    assert!(!replayed);
                    (status, reply)
                }
                false => stage.post("/job/run", sent).await,
            };
            assert_eq!(status, 200, "{reply}");
            let [(run_id, _)] = requests(&stage).await.try_into().unwrap();
            assert_eq!(reply["data"], json!({"runId": run_id}));
            // Put again, it could come when its run has begun and its key is gone.
            assert_eq!(stage.revision().await, before + 1, "it was put once");
            let [kept] = stage.kept().await.try_into().unwrap();
            let left = stage.kv.inner.keep_alive(kept.lease.unwrap()).await.unwrap();
            assert_eq!(left, Duration::from_secs(if named { 3600 } else { 60 }));
        }
    }
}

#[tokio::test]
async fn a_job_that_is_deleted_just_then_is_not_asked_to_run() {
    let stage = Stage::new();
    stage.post("/job/save", job("a")).await;
    stage.kv.fail(&[Fault::Deleted]);
    let (status, reply) = stage.post("/job/run", json!({"name": "a"})).await;
    assert_eq!(status, 404, "{reply}");
    assert_eq!(requests(&stage).await, []);
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
    /// Somebody else deletes the job first.
    Deleted,
}

struct FaultyKv {
    inner: EmbeddedKv,
    down: AtomicBool,
    /// What becomes of the next writes; afterwards they are done.
    writes: std::sync::Mutex<Vec<Fault>>,
    /// Calls so far.
    grants: AtomicUsize,
    txns: AtomicUsize,
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
        self.txns.fetch_add(1, Ordering::Relaxed);
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
            Some(Fault::Deleted) => {
                let delete = Op::delete("/cron/jobs/a");
                kv.txn(Txn { then: vec![delete], ..Txn::default() }).await?;
                kv.txn(txn).await
            }
        }
    }

    async fn watch(&self, span: Span, start: Revision) -> Result<WatchStream, kv::Error> {
        self.up()?.watch(span, start).await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, kv::Error> {
        self.grants.fetch_add(1, Ordering::Relaxed);
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

    async fn room(&self) -> Result<kv::Room, kv::Error> {
        self.up()?.room().await
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

    async fn place(&self, query: &RecordQuery) -> Result<Option<Place>, run_log::Error> {
        self.up()?.place(query).await
    }

    async fn get(&self, id: &str) -> Result<Option<Record>, run_log::Error> {
        self.up()?.get(id).await
    }

    async fn put_output(&self, chunks: &[Chunk]) -> Result<(), run_log::Error> {
        self.up()?.put_output(chunks).await
    }

    async fn output(&self, run_id: &RunId, after: u64) -> Result<Vec<Chunk>, run_log::Error> {
        self.up()?.output(run_id, after).await
    }

    async fn jobs(&self, after: &str, limit: u32) -> Result<Vec<String>, run_log::Error> {
        self.up()?.jobs(after, limit).await
    }

    async fn remove(&self, what: &Removal, limit: u32) -> Result<u64, run_log::Error> {
        self.up()?.remove(what, limit).await
    }
}

#[async_trait]
impl History for FaultyRunLog {
    async fn prepare_history(&self) -> Result<(), run_log::Error> {
        self.up()?.prepare_history().await
    }

    async fn keep(&self, entries: &[Entry]) -> Result<(), run_log::Error> {
        self.up()?.keep(entries).await
    }

    async fn kept(&self, shelf: Shelf, query: &Query) -> Result<Vec<Entry>, run_log::Error> {
        self.up()?.kept(shelf, query).await
    }

    async fn kept_jobs(&self, after: &str, limit: u32) -> Result<Vec<String>, run_log::Error> {
        self.up()?.kept_jobs(after, limit).await
    }

    async fn forget(
        &self,
        shelf: Shelf,
        name: Option<&str>,
        below: &EntryId,
        limit: u32,
    ) -> Result<u64, run_log::Error> {
        self.up()?.forget(shelf, name, below, limit).await
    }
}

#[tokio::test]
async fn a_store_that_is_down_is_503_and_the_next_call_works() {
    let stage = Stage::new();
    stage.run_log.inner.append(&[record("a", 0, "out")]).await.unwrap();
    for down in [true, false] {
        stage.kv.down.store(down, Ordering::Relaxed);
        stage.run_log.down.store(down, Ordering::Relaxed);
        let replies = [
            ("save", stage.post("/job/save", job("a")).await),
            ("list", stage.get("/job/list").await),
            ("kill", stage.post("/job/kill", json!({"name": "a"})).await),
            ("run", stage.post("/job/run", json!({"name": "a"})).await),
            ("pause", stage.post("/job/pause", json!({"name": "a"})).await),
            ("resume", stage.post("/job/resume", json!({"name": "a"})).await),
            ("fleet_pause", stage.post("/fleet/pause", json!({})).await),
            ("fleet_status", stage.get("/fleet/status").await),
            ("fleet_settings", stage.get("/fleet/settings").await),
            ("fleet_settings", stage.post("/fleet/settings", json!({"timezone": "UTC"})).await),
            ("fleet_resume", stage.post("/fleet/resume", json!({})).await),
            ("calendar_save", stage.post("/calendar/save", json!({"name": "c", "dates": []})).await),
            ("calendar_list", stage.get("/calendar/list").await),
            ("calendar_delete", stage.post("/calendar/delete", json!({"name": "c"})).await),
            ("delete", stage.post("/job/delete", json!({"name": "a"})).await),
            ("workers", stage.get("/worker/list").await),
            ("log", stage.get("/job/log?name=a").await),
            ("running", stage.get("/job/running").await),
            ("get", stage.get("/run/get?id=a-0").await),
            ("output", stage.get("/run/output?id=a-0").await),
        ];
        for (function, (status, reply)) in replies {
            assert_eq!(status, if down { 503 } else { 200 }, "{function}: {reply}");
            assert_eq!(reply["errno"], json!(if down { -1 } else { 0 }), "{function}");
            assert!(!down || reply["data"].is_null(), "{function}");
        }
    }
}

/// Answers so many calls as an empty store would, and no more.
struct HangingKv {
    answers: AtomicI64,
}

impl HangingKv {
    async fn pass<T>(&self, answer: T) -> Result<T, kv::Error> {
        if self.answers.fetch_sub(1, Ordering::Relaxed) <= 0 {
            std::future::pending::<()>().await;
        }
        Ok(answer)
    }
}

#[async_trait]
impl Kv for HangingKv {
    async fn range(&self, _range: Range) -> Result<RangeReply, kv::Error> {
        self.pass(RangeReply::default()).await
    }

    async fn txn(&self, _txn: Txn) -> Result<TxnReply, kv::Error> {
        self.pass(TxnReply { succeeded: true, ..TxnReply::default() }).await
    }

    async fn watch(&self, _span: Span, _start: Revision) -> Result<WatchStream, kv::Error> {
        std::future::pending().await
    }

    async fn grant(&self, _ttl: Duration) -> Result<LeaseId, kv::Error> {
        self.pass(LeaseId(1)).await
    }

    async fn keep_alive(&self, _lease: LeaseId) -> Result<Duration, kv::Error> {
        std::future::pending().await
    }

    async fn lease_keys(&self, _lease: LeaseId) -> Result<Vec<Key>, kv::Error> {
        std::future::pending().await
    }

    async fn revoke(&self, _lease: LeaseId) -> Result<(), kv::Error> {
        std::future::pending().await
    }

    async fn compact(&self, _revision: Revision) -> Result<(), kv::Error> {
        std::future::pending().await
    }

    async fn room(&self) -> Result<kv::Room, kv::Error> {
        std::future::pending().await
    }
}

#[tokio::test]
async fn wherever_a_store_hangs_there_is_an_answer() {
    assert!(functions::http::HANDLER_MAX < Duration::from_secs(10), "what README promises");
    let stage = Stage::new();
    // How many calls each makes; all hang at once, so that the limit is waited for once.
    let rows = [
        ("GET", "/job/list", json!(null), false, 1),
        ("GET", "/worker/list", json!(null), false, 1),
        ("GET", "/job/running", json!(null), false, 2),
        ("POST", "/job/save", job("a"), false, 2),
        ("POST", "/job/save", job("a"), true, 3),
        ("POST", "/job/delete", json!({"name": "a"}), false, 1),
        ("POST", "/job/delete", json!({"name": "a"}), true, 3),
        ("POST", "/job/kill", json!({"name": "a"}), false, 3),
        ("POST", "/job/kill", json!({"name": "a"}), true, 4),
        ("GET", "/fleet/status", json!(null), false, 1),
        ("GET", "/fleet/settings", json!(null), false, 1),
        ("POST", "/fleet/settings", json!({"dst": "skip"}), false, 2),
        ("POST", "/fleet/settings", json!({"dst": "skip"}), true, 3),
        ("GET", "/calendar/list", json!(null), false, 1),
        ("POST", "/calendar/save", json!({"name": "c", "dates": []}), false, 3),
        ("POST", "/calendar/save", json!({"name": "c", "dates": []}), true, 4),
        ("POST", "/calendar/delete", json!({"name": "c"}), false, 1),
        ("POST", "/fleet/pause", json!({}), false, 2),
        ("POST", "/fleet/pause", json!({}), true, 3),
        ("POST", "/fleet/resume", json!({}), false, 1),
        ("POST", "/fleet/resume", json!({}), true, 3),
    ];
    let mut serving = tokio::task::JoinSet::new();
    for (method, path, sent, named, calls) in rows {
        for answered in 0..=calls {
            let kv = Arc::new(HangingKv { answers: AtomicI64::new(answered) });
            let ports = Ports { kv, ..stage.ports() };
            let mut request = request(method, path, Some("application/json"), &sent.to_string());
            if named {
                request.headers_mut().insert("idempotency-key", HeaderValue::from_static("k"));
            }
            serving.spawn(async move {
                let response = functions::handle(&ports, request).await;
                let msg = body(&response)["msg"].as_str().unwrap().to_owned();
                let wanted = if answered == calls { 200 } else { 503 };
                assert_eq!(response.status().as_u16(), wanted, "{path}, {answered} of {calls} calls: {msg}");
                let safe = msg.contains("send it again with the same Idempotency-Key");
                assert_eq!(safe, named && wanted == 503, "{path}: {msg}");
            });
        }
    }
    serving.join_all().await;
}

#[tokio::test]
async fn each_endpoint_uses_its_own_store_alone() {
    let stage = Stage::new();
    stage.kv.down.store(true, Ordering::Relaxed);
    assert_eq!(stage.get("/job/log?name=a").await.0, 200, "log opens no etcd");
    let stored = record("a", 0, "out");
    stage.run_log.inner.append(std::slice::from_ref(&stored)).await.unwrap();
    assert_eq!(
        stage.get(&format!("/run/get?id={}", stored.id)).await.0,
        200,
        "a record is found without etcd"
    );
    stage.kv.down.store(false, Ordering::Relaxed);
    stage.run_log.down.store(true, Ordering::Relaxed);
    assert_eq!(stage.post("/job/kill", json!({"name": "a"})).await.0, 200, "kill opens no MongoDB");
    stage.post("/job/save", job("a")).await;
    assert_eq!(stage.post("/job/run", json!({"name": "a"})).await.0, 200, "nor does run");
    assert_eq!(stage.get("/job/running").await.0, 200, "running opens no MongoDB");
    stage.put(keys::runs(Sid(7), 1), open_runs("7-1")).await;
    assert_eq!(stage.get("/run/get?id=7-1").await.0, 200, "an open run is found without MongoDB");
    assert_eq!(stage.get("/run/output?id=7-1").await.0, 503);
}

/// The value of a key that has one open run.
fn open_runs(run_id: &str) -> String {
    let run = json!({
        "runId": run_id, "job": "a", "planTime": NOW.ms(), "attempt": 1, "scheduleTime": NOW.ms(), "worker": "w1", "command": "true",
        "trigger": "schedule",
    });
    json!({"v": 1, "runs": [run]}).to_string()
}

#[tokio::test]
async fn who_waits_for_output_gets_it_when_it_comes_and_is_told_of_the_end() {
    let stage = Arc::new(Stage::new());
    let key = keys::runs(Sid(7), 1);
    stage.put(key.as_str(), open_runs("7-1")).await;
    let asking = |after: u64| {
        let stage = Arc::clone(&stage);
        tokio::spawn(async move { stage.get(&format!("/run/output?id=7-1&after={after}&wait=8")).await })
    };
    let waiting = asking(0);
    tokio::task::yield_now().await;
    let (run_id, bytes) = (RunId::from_text("7-1"), b"one".to_vec());
    let chunk = Chunk { run_id: run_id.clone(), slot: 0, from: 0, bytes, at: NOW };
    stage.run_log.inner.put_output(&[chunk]).await.unwrap();
    let (status, reply) = waiting.await.unwrap();
    assert_eq!(
        (status, &reply["data"]["output"], &reply["data"]["ended"]),
        (200, &json!("one"), &json!(false))
    );

    let waiting = asking(3);
    tokio::task::yield_now().await;
    // As its worker does it: the record first, then the open run goes.
    let ended = Record { claim: Some(run_id), ..record("a", 1, "one two") };
    stage.run_log.inner.append(&[ended]).await.unwrap();
    stage.kv.inner.txn(Txn { then: vec![Op::delete(key)], ..Txn::default() }).await.unwrap();
    let (status, reply) = waiting.await.unwrap();
    assert_eq!(
        (status, &reply["data"]["output"], &reply["data"]["ended"]),
        (200, &json!(" two"), &json!(true))
    );
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

        stage.post("/job/save", job("a")).await;
        let paused =
            json!({"name": "a", "command": "echo hello", "cronExpr": "*/5 * * * *", "enabled": false});
        for (path, sent, data) in [
            ("/job/pause", json!({"name": "a"}), paused),
            ("/job/resume", json!({"name": "a"}), job("a")),
            ("/fleet/pause", json!({}), json!({"paused": {"since": NOW.ms()}, "resumedAt": null})),
            (
                "/fleet/resume",
                json!({}),
                json!({"paused": null, "resumedAt": NOW.ms(), "ended": {"since": NOW.ms()}}),
            ),
        ] {
            let before = stage.revision().await;
            stage.kv.fail(&[fault]);
            let (status, reply) = stage.post(path, sent).await;
            assert_eq!((status, &reply["data"]), (200, &data), "{path}: {reply}");
            assert_eq!(reply["warnings"], Value::Null, "{path}: nobody else did it");
            assert_eq!(stage.revision().await, before + 1, "{path}: it was applied once");
        }
    }
}

#[tokio::test]
async fn pausing_and_resuming_move_the_base_and_nothing_of_the_time_between_is_caught_up_on() {
    let stage = Stage::new();
    stage.post("/job/save", job("a")).await;
    let saved = stage.mark("a").await.unwrap();
    for (path, passes) in [("/job/pause", 60_000), ("/job/resume", 3_600_000)] {
        stage.pass(passes);
        stage.post(path, json!({"name": "a"})).await;
        let (job, mark) = (stage.pair("/cron/jobs/a").await.unwrap(), stage.mark("a").await.unwrap());
        assert_eq!(mark.base, stage.clock.now(), "{path}");
        let pair = stage.pair(&keys::fired(&name("a"))).await.unwrap();
        assert_eq!(job.mod_revision, pair.mod_revision, "{path}: one transaction");
        assert_eq!(
            mark.hash,
            Job::from_stored("a", &job.value).unwrap().schedule_hash(&FleetSettings::default())
        );
        let before = stage.revision().await;
        stage.pass(60_000);
        stage.post(path, json!({"name": "a"})).await;
        assert_eq!(stage.revision().await, before, "{path}: it is so already");
    }
    assert_eq!(stage.mark("a").await.unwrap().hash, saved.hash);
    // Saving does it as well.
    let mut off = job("a");
    off["enabled"] = json!(false);
    for job in [off, job("a")] {
        stage.pass(60_000);
        stage.post("/job/save", job).await;
        assert_eq!(stage.mark("a").await.unwrap().base, stage.clock.now());
    }
}

#[tokio::test]
async fn the_fleets_pause_says_who_and_why_and_its_end_leaves_a_base() {
    let stage = Stage::new();
    let event = std::fs::read_to_string(testdata().join("events/fleet_pause_iam.json")).unwrap();
    let (status, reply) = stage.send(lambda_http::request::from_str(&event).unwrap()).await;
    let by = "arn:aws:iam::123456789012:user/ada from 203.0.113.7";
    let pause = json!({"since": NOW.ms(), "by": by, "reason": "etcd moves"});
    assert_eq!((status, &reply["data"]["paused"]), (200, &pause), "{reply}");
    let stored = stage.pair(keys::PAUSED).await.unwrap();
    assert_eq!(Pause::decode(&stored.value).unwrap().reason.as_deref(), Some("etcd moves"));
    stage.pass(600_000);
    let (_, reply) = stage.post("/fleet/resume", json!({})).await;
    assert_eq!(reply["data"]["ended"], pause);
    let base = stage.pair(keys::BASE).await.unwrap();
    assert_eq!(Base::decode(&base.value).unwrap().at, stage.clock.now());
    assert_eq!((stage.pair(keys::PAUSED).await, base.mod_revision), (None, stage.revision().await));
}

#[tokio::test]
async fn a_switch_that_is_overtaken_looks_again_and_keeps_what_the_other_saved() {
    let stage = Stage::new();
    let mut other = job("a");
    other["command"] = json!("mine");
    stage.post("/job/save", other).await;
    stage.kv.fail(&[Fault::Overtaken]);
    let (status, reply) = stage.post("/job/pause", json!({"name": "a"})).await;
    assert_eq!((status, &reply["data"]["command"]), (200, &json!("echo hello")), "{reply}");
    let stored = stage.pair("/cron/jobs/a").await.unwrap();
    assert!(!Job::from_stored("a", &stored.value).unwrap().options.is_enabled());
    stage.kv.fail(&[Fault::Overtaken; 5]);
    assert_eq!(stage.post("/job/resume", json!({"name": "a"})).await.0, 200, "the others had it enabled");
    stage.kv.fail(&[Fault::Overtaken; 5]);
    assert_eq!(stage.post("/job/pause", json!({"name": "a"})).await.0, 409);
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

// ---- changes with an Idempotency-Key ----

#[tokio::test]
async fn without_a_key_there_is_no_lease_and_no_further_call() {
    let stage = Stage::new();
    let calls = |stage: &Stage| {
        (stage.kv.grants.swap(0, Ordering::Relaxed), stage.kv.txns.swap(0, Ordering::Relaxed))
    };
    stage.post("/job/save", job("a")).await;
    assert_eq!(calls(&stage), (0, 2), "a look and a write");
    stage.post("/job/delete", json!({"name": "a"})).await;
    assert_eq!(calls(&stage), (0, 2));
    stage.post("/job/delete", json!({"name": "a"})).await;
    assert_eq!(calls(&stage), (0, 1), "there is nothing to delete");
    stage.post("/job/kill", json!({"name": "a"})).await;
    assert_eq!(calls(&stage), (1, 2), "the kill request's own lease");
    assert_eq!(stage.kept().await, []);
    stage.post_once("/job/save", job("a"), "k").await;
    assert_eq!(calls(&stage), (1, 2), "a lease, and the answer goes with the change");
    stage.post_once("/job/save", job("a"), "k").await;
    assert_eq!(calls(&stage), (0, 1), "a replay is one look");
}

#[tokio::test]
async fn a_kept_answer_goes_with_its_lease_of_an_hour() {
    let stage = Stage::new();
    stage.post_once("/job/save", job("a"), "k").await;
    let [kept] = stage.kept().await.try_into().unwrap();
    assert_eq!(stage.pair("/cron/jobs/a").await.unwrap().mod_revision, kept.mod_revision, "one transaction");
    let lease = kept.lease.unwrap();
    assert_eq!(stage.kv.inner.keep_alive(lease).await.unwrap(), Duration::from_secs(3600));
    stage.kv.inner.revoke(lease).await.unwrap();
    let mut other = job("a");
    other["command"] = json!("other");
    let (status, reply, replayed) = stage.post_once("/job/save", other, "k").await;
    assert_eq!((status, replayed, &reply["data"]), (200, false, &job("a")), "the key is free again: {reply}");
}

#[tokio::test]
async fn a_replay_changes_nothing_whatever_happened_since() {
    let stage = Stage::new();
    let run = RunId::new(Sid(7), 3);
    stage.put(keys::lock(&name("a")), LockHolder::new(Sid(7), run).encode()).await;
    let kill = json!({"name": "a", "runId": "7-3"});
    let requests = [
        ("/job/save", job("a"), "save"),
        ("/job/kill", kill, "kill"),
        ("/job/delete", json!({"name": "a"}), "delete"),
        ("/job/delete", json!({"name": "a"}), "delete nothing"),
    ];
    let mut first = Vec::new();
    for (path, body, key) in requests.clone() {
        let (status, reply, replayed) = stage.post_once(path, body, key).await;
        assert_eq!((status, replayed), (200, false), "{key}: {reply}");
        first.push(reply);
    }
    // Somebody saves the job anew, the run ends and its kill request is gone.
    let mut other = job("a");
    other["command"] = json!("of somebody else");
    stage.post("/job/save", other.clone()).await;
    let gone = [keys::lock(&name("a")), keys::killer(&name("a"))].map(Op::delete).to_vec();
    stage.kv.inner.txn(Txn { then: gone, ..Txn::default() }).await.unwrap();
    let before = stage.revision().await;
    for ((path, body, key), first) in requests.into_iter().zip(first) {
        let (status, reply, replayed) = stage.post_once(path, body, key).await;
        assert_eq!((status, replayed, reply), (200, true, first), "{key}");
    }
    assert_eq!(stage.revision().await, before);
    let stored = stage.pair("/cron/jobs/a").await.unwrap();
    assert_eq!(Job::from_stored("a", &stored.value).unwrap().to_value(), other);
}

#[tokio::test]
async fn a_replay_comes_even_where_the_request_would_be_refused_by_now() {
    let stage = Stage::new();
    let soon = json!({"name": "a", "command": "true", "cronExpr": "0 5 0 21 11 * 2026"});
    let (status, first, _) = stage.post_once("/job/save", soon.clone(), "k").await;
    assert_eq!(status, 200, "{first}");
    stage.pass(600_000);
    assert_eq!(stage.post_once("/job/save", soon.clone(), "k").await, (200, first, true));
    assert_eq!(stage.post_once("/job/save", soon, "another").await.0, 400, "its only time is over");
}

#[tokio::test]
async fn a_lost_answer_is_settled_by_the_kept_one() {
    for fault in [Fault::AnswerLost, Fault::RequestLost] {
        let stage = Stage::new();
        let rows = [
            ("/job/save", job("a"), Value::Null),
            ("/job/kill", json!({"name": "a"}), json!({"runIds": []})),
            ("/job/delete", json!({"name": "a"}), job("a")),
            ("/job/delete", json!({"name": "b"}), Value::Null),
        ];
        for (path, sent, data) in rows {
            let key = format!("{path} {sent}");
            let before = stage.revision().await;
            stage.kv.fail(&[fault]);
            let (status, reply, replayed) = stage.post_once(path, sent.clone(), &key).await;
            assert_eq!((status, replayed, &reply["data"]), (200, false, &data), "{key}: {reply}");
            assert_eq!(stage.revision().await, before + 1, "{key}: it was applied once");
            assert_eq!(stage.post_once(path, sent, &key).await, (200, reply, true), "{key}");
        }
        assert_eq!(stage.kept().await.len(), 4);
    }
}

#[tokio::test]
async fn what_was_refused_is_not_kept() {
    let stage = Stage::new();
    let mut wrong = job("a");
    wrong["cronExpr"] = json!("never");
    assert_eq!(stage.post_once("/job/save", wrong, "k").await.0, 400);
    let not_open = json!({"name": "a", "runId": "7-3"});
    assert_eq!(stage.post_once("/job/kill", not_open, "k").await.0, 400);
    stage.kv.down.store(true, Ordering::Relaxed);
    assert_eq!(stage.post_once("/job/save", job("a"), "k").await.0, 503);
    stage.kv.down.store(false, Ordering::Relaxed);
    stage.kv.fail(&[Fault::Overtaken; 5]);
    assert_eq!(stage.post_once("/job/save", job("a"), "k").await.0, 409);
    assert_eq!(stage.kept().await, []);
    let (status, reply, replayed) = stage.post_once("/job/save", job("a"), "k").await;
    assert_eq!((status, replayed), (200, false), "the key is still free: {reply}");
}

#[tokio::test]
async fn of_many_requests_with_one_key_one_applies() {
    let stage = Arc::new(Stage::new());
    let rows = [
        ("/job/save", job("a"), "/cron/jobs/a"),
        // Nothing but the kept answer keeps a second kill or a second delete of nothing from being applied.
        ("/job/kill", json!({"name": "a"}), "/cron/killer/a"),
        ("/job/run", json!({"name": "a"}), "/cron/jobs/a"),
        ("/job/delete", json!({"name": "b"}), "/cron/jobs/b"),
    ];
    for (path, sent, key) in rows {
        let before = stage.revision().await;
        let mut sending = tokio::task::JoinSet::new();
        for _ in 0..50 {
            let (stage, sent) = (Arc::clone(&stage), sent.clone());
            sending.spawn(async move { stage.post_once(path, sent, path).await });
        }
        let answers = sending.join_all().await;
        let first = answers.iter().filter(|(_, _, replayed)| !replayed).count();
        assert_eq!(first, 1, "{path}: one is the first");
        let same = answers.iter().all(|(status, reply, _)| *status == 200 && *reply == answers[0].1);
        assert!(same, "{path}: {answers:?}");
        assert_eq!(stage.revision().await, before + 1, "{path}");
        assert!(stage.pair(key).await.is_none_or(|pair| pair.version == 1), "{path}");
    }
}

#[tokio::test]
async fn an_answer_of_a_newer_version_is_left_alone() {
    let stage = Stage::new();
    stage.post_once("/job/save", job("a"), "k").await;
    let key = stage.kept().await[0].key.clone();
    stage.put(key, r#"{"v":99}"#).await;
    let (status, reply, _) = stage.post_once("/job/save", job("a"), "k").await;
    assert_eq!(status, 409);
    assert!(reply["msg"].as_str().unwrap().contains("newer"), "{reply}");
}

#[tokio::test]
async fn a_key_that_is_given_twice_is_refused() {
    let stage = Stage::new();
    let mut twice = request("POST", "/job/delete", None, "name=a");
    twice.headers_mut().append("idempotency-key", HeaderValue::from_static("a"));
    twice.headers_mut().append("idempotency-key", HeaderValue::from_static("b"));
    let (status, reply) = stage.send(twice).await;
    assert_eq!(status, 400);
    assert!(reply["msg"].as_str().unwrap().contains("given twice"), "{reply}");
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
