//! The functions as Lambda runs them: real processes on a Runtime API and real stores.

use std::process::Command;

use common::clock::{Clock as _, SystemClock};
use common::config::EtcdSettings;
use common::domain::access::Role;
use common::domain::record::Record;
use common::domain::token::{Grant, Secret, Token};
use common::keys;
use common::kv::etcd::EtcdKv;
use common::kv::{Kv as _, Op, Range, Txn};
use common::run_log::RunLog as _;
use common::run_log::mongo::MongoRunLog;
use functions::http::{HANDLER_MAX, LAMBDA_BYTES_MAX};
use local_dev::native::process::Process;
use serde_json::{Value, json};
use tests::fixtures::{Fleet, SOON, Store, TestDir, program, site, wait_for};
use tests::runtime_api::{Answer, RuntimeApi, event, start_function};

/// One function, in processes with one log.
struct Served {
    api: RuntimeApi,
    processes: Vec<Process>,
    _dir: TestDir,
}

impl Served {
    /// Starts so many processes of a function.
    async fn start(function: &str, number: usize, environment: &[(&str, &str)]) -> Self {
        let dir = TestDir::new(&format!("lambda-{function}"));
        let api = RuntimeApi::start().await;
        let mut processes = Vec::new();
        for _ in 0..number {
            processes.push(start_function(&site(&dir), function, &api, environment).await);
        }
        wait_for("the functions ask for events", SOON, async || (api.asked() >= number).then_some(())).await;
        Self { api, processes, _dir: dir }
    }

    async fn get(&self, path: &str) -> Answer {
        self.api.invoke(event("GET", path, &[], "").to_string()).await
    }

    async fn post(&self, path: &str, body: &Value, key: Option<&str>) -> Answer {
        self.api.invoke(post(path, body, key)).await
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.processes[0].log()).unwrap()
    }

    /// The lines of the log, each an object.
    fn lines(&self) -> Vec<Value> {
        let text = self.log();
        // The first line of each process was written by whoever started it.
        let lines = text.lines().filter(|line| !line.starts_with("--- "));
        lines.map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"))).collect()
    }

    /// The lines that tell of requests.
    fn requests(&self) -> Vec<Value> {
        self.lines().into_iter().filter(|line| line["message"] == "request").collect()
    }
}

fn post(path: &str, body: &Value, key: Option<&str>) -> String {
    let mut headers = vec![("content-type", "application/json")];
    headers.extend(key.map(|key| ("idempotency-key", key)));
    event("POST", path, &headers, &body.to_string()).to_string()
}

fn job(name: &str, command: &str) -> Value {
    json!({"name": name, "command": command, "cronExpr": "@daily"})
}

fn example(file: &str) -> String {
    let events = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/api/events");
    std::fs::read_to_string(events.join(file)).unwrap()
}

// ---- events and answers ----

#[tokio::test(flavor = "multi_thread")]
async fn a_function_without_stores_answers_event_after_event() {
    let served = Served::start("console", 1, &[]).await;
    for _ in 0..2 {
        let page = served.get("/").await;
        assert_eq!((page.failed, page.status()), (false, 200), "{}", page.posted());
    }
    let wrong = served.post("/", &json!({}), None).await;
    assert_eq!((wrong.status(), &wrong.envelope()["errno"]), (405, &json!(-1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_with_a_named_stage_is_served() {
    let served = Served::start("console", 1, &[]).await;
    let script = served.api.invoke(example("console_named_stage.json")).await;
    assert_eq!(script.status(), 200, "{}", script.posted());
    assert!(script.header("content-type").unwrap().starts_with("text/javascript"));
    assert_eq!(served.requests()[0]["route"], "/console/{file}");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_other_gateways_fail_with_a_reason_and_the_function_goes_on() {
    let served = Served::start("console", 1, &[]).await;
    for file in ["other/rest_api_v1.json", "other/load_balancer.json", "other/queue.json"] {
        let answer = served.api.invoke(example(file)).await;
        let said = answer.posted();
        assert!(answer.failed, "{file}: {said}");
        let why = said["errorMessage"].as_str().unwrap();
        assert!(why.contains("doesn't match any of those services' events"), "{file}: {said}");
    }
    assert_eq!(served.get("/").await.status(), 200);
    let errors: Vec<Value> = served.lines().into_iter().filter(|line| line["level"] == "ERROR").collect();
    assert_eq!(errors.len(), 3, "{errors:?}");
    assert!(errors.iter().all(|line| line["requestId"].is_string()), "{errors:?}");
}

// ---- the log ----

#[tokio::test(flavor = "multi_thread")]
async fn each_request_is_a_line_of_json_with_its_ids() {
    let Some(etcd) = Store::etcd("lambda-log-lines", &[]).await else { return };
    let served = Served::start("save", 1, &[("CRON_ETCD_ENDPOINTS", &etcd.server.url())]).await;
    let secret = "hunter2";
    let good = served.post(&format!("/job/save?a={secret}"), &job("a", secret), Some(secret)).await;
    let bad = served.post("/job/save", &json!({"name": "a", "command": secret}), None).await;
    assert_eq!((good.status(), bad.status()), (200, 400), "{}", good.envelope());
    let lines = served.requests();
    let expected = [(&good, 200, 0, true), (&bad, 400, -1, false)];
    assert_eq!(lines.len(), expected.len(), "{lines:?}");
    for (line, (answer, status, errno, cold)) in lines.iter().zip(expected) {
        assert_eq!(line["requestId"], answer.request_id.as_str(), "{line}");
        assert_eq!(answer.header("x-request-id").unwrap(), answer.request_id);
        let told = json!([line["gatewayRequestId"], line["method"], line["route"], line["level"]]);
        assert_eq!(told, json!(["JKJaXmPLvHcESHA=", "POST", "/job/save", "INFO"]), "{line}");
        assert_eq!((&line["status"], &line["errno"]), (&json!(status), &json!(errno)), "{line}");
        assert_eq!((&line["cold"], line["durationMs"].is_u64()), (&json!(cold), true), "{line}");
        assert!(line["timestamp"].is_string() && line["target"].is_string(), "{line}");
    }
    let all = served.log();
    assert!(!all.contains(secret), "queries, bodies and keys are none of the log's business: {all}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_level_is_lambdas_and_the_id_survives_it() {
    // Nobody listens there, so that the store's failure is logged.
    let nowhere = ("CRON_ETCD_ENDPOINTS", "http://127.0.0.1:1");
    for (level, lines) in [("WARN", 1), ("ERROR", 0)] {
        let served = Served::start("list", 1, &[nowhere, ("AWS_LAMBDA_LOG_LEVEL", level)]).await;
        let answer = served.get("/job/list").await;
        assert_eq!(answer.status(), 503);
        let logged = served.lines();
        assert_eq!(logged.len(), lines, "{level}: {logged:?}");
        assert!(logged.iter().all(|line| line["requestId"] == answer.request_id.as_str()), "{logged:?}");
    }
    let filter = [nowhere, ("AWS_LAMBDA_LOG_LEVEL", "ERROR"), ("RUST_LOG", "functions::invocation=info")];
    let served = Served::start("list", 1, &filter).await;
    served.get("/job/list").await;
    assert_eq!(served.requests().len(), 1, "RUST_LOG says more, so it wins");
}

// ---- who may call ----

#[tokio::test(flavor = "multi_thread")]
async fn a_function_asks_for_a_token_and_a_revoked_one_is_none() {
    let Some(etcd) = Store::etcd("lambda-token", &[]).await else { return };
    let url = etcd.server.url();
    let stored = EtcdKv::new(
        &EtcdSettings { endpoints: Some(vec![url.clone()]), ..EtcdSettings::default() },
        functions::ports::STORE_CALL_MAX,
    );
    let stored = stored.unwrap();
    let secret = Secret::random().unwrap();
    let grant = Grant { name: "ci".to_owned(), role: Role::Viewer, prefix: String::new(), expires_at: None };
    let token = Token::new(&secret, grant, "a test".to_owned(), SystemClock.now());
    let put = Txn { then: vec![Op::put(keys::token(secret.id()), token.encode())], ..Txn::default() };
    stored.txn(put).await.unwrap();
    // Nothing is said about who may call.
    let served = Served::start("list", 1, &[("CRON_ETCD_ENDPOINTS", &url), ("CRON_AUTH", "")]).await;
    let bearer = format!("Bearer {}", secret.reveal());
    let with = event("GET", "/job/list", &[("authorization", &bearer)], "").to_string();
    let bare = served.get("/job/list").await;
    assert_eq!((bare.status(), &bare.envelope()["errno"]), (401, &json!(-2)), "{}", bare.envelope());
    assert!(bare.header("www-authenticate").unwrap().starts_with("Bearer "));
    assert_eq!(served.api.invoke(with.clone()).await.status(), 200);
    // The function is called whatever the path says: its own right counts.
    let elsewhere = event("GET", "/console/app.js", &[], "").to_string();
    assert_eq!(served.api.invoke(elsewhere).await.status(), 401);
    wait_for("the use is noted", SOON, async || {
        let used = stored.range(Range::key(keys::token_used(secret.id()))).await.unwrap();
        (!used.pairs.is_empty()).then_some(())
    })
    .await;
    let delete = Txn { then: vec![Op::delete(keys::token(secret.id()))], ..Txn::default() };
    stored.txn(delete).await.unwrap();
    wait_for("the token is worth nothing", SOON, async || {
        (served.api.invoke(with.clone()).await.status() == 401).then_some(())
    })
    .await;
    assert!(!served.log().contains(&secret.reveal()[17..]), "the log tells the token");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_function_is_open_where_aws_runs_it() {
    let api = RuntimeApi::start().await;
    for variable in ["AWS_LAMBDA_INITIALIZATION_TYPE", "LAMBDA_TASK_ROOT"] {
        let mut command = Command::new(program("list").await);
        command.env("CRON_AUTH", "open").env(variable, "x").env("AWS_LAMBDA_RUNTIME_API", api.address());
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(!output.status.success() && said.contains("CRON_AUTH=open"), "{variable}: {said}");
    }
}

// ---- concurrency ----

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_given_several_requests_at_once_serves_them_at_once() {
    let Some(mut etcd) = Store::etcd("lambda-at-once", &[]).await else { return };
    let url = etcd.server.url();
    for most in ["1", "4"] {
        let environment = [("CRON_ETCD_ENDPOINTS", url.as_str()), ("AWS_LAMBDA_MAX_CONCURRENCY", most)];
        let served = Served::start("list", 1, &environment).await;
        assert_eq!(served.get("/job/list").await.status(), 200);
        etcd.server.freeze();
        let mut answers = Vec::new();
        for _ in 0..4 {
            answers.push(served.api.queue(event("GET", "/job/list", &[], "").to_string()).await);
        }
        // One poll for each event that it has taken: none of them is answered while etcd is frozen.
        let taken = if most == "1" { 1 } else { 4 };
        wait_for("the events are taken", SOON, async || (served.api.left() == 4 - taken).then_some(())).await;
        etcd.server.thaw();
        for answer in answers {
            assert!([200, 503].contains(&answer.await.unwrap().status()));
        }
        assert!(!served.log().contains("concurrency-tokio"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_processes_change_one_job_and_many_without_losing_a_change() {
    let Some(etcd) = Store::etcd("lambda-processes", &[]).await else { return };
    let url = etcd.server.url();
    let environment = [("CRON_ETCD_ENDPOINTS", url.as_str())];
    let save = Served::start("save", 8, &environment).await;
    let delete = Served::start("delete", 8, &environment).await;
    let kill = Served::start("kill", 8, &environment).await;

    // On one job: every definition but the last one is somebody's previous one, or lost the race five times and says so.
    let mut saving = Vec::new();
    for n in 0..64 {
        saving.push(save.api.queue(post("/job/save", &job("one", &format!("echo {n}")), None)).await);
    }
    let (mut previous, mut refused) = (Vec::new(), Vec::new());
    for (n, answer) in saving.into_iter().enumerate() {
        let answer = answer.await.unwrap();
        let envelope = answer.envelope();
        match answer.status() {
            200 => previous.push(envelope["data"]["command"].as_str().unwrap_or("none").to_owned()),
            409 => refused.push(format!("echo {n}")),
            other => panic!("{other}: {envelope}"),
        }
    }
    let mut deleted = Vec::new();
    let mut deleting = Vec::new();
    for _ in 0..16 {
        deleting.push(delete.api.queue(post("/job/delete", &json!({"name": "one"}), None)).await);
    }
    for answer in deleting {
        let answer = answer.await.unwrap();
        assert_eq!(answer.status(), 200, "{}", answer.envelope());
        deleted.extend(answer.envelope()["data"]["command"].as_str().map(str::to_owned));
    }
    assert_eq!(deleted.len(), 1, "one of them deleted it: {deleted:?}");
    let mut accounted: Vec<String> = previous.into_iter().chain(deleted).chain(refused).collect();
    let mut sent: Vec<String> = (0..64).map(|n| format!("echo {n}")).chain(["none".to_owned()]).collect();
    accounted.sort();
    sent.sort();
    assert_eq!(accounted, sent, "each save is seen by exactly one other change");

    // On many jobs: nobody is in the way of anybody.
    let mut answers = Vec::new();
    for n in 0..64 {
        let name = format!("many-{n}");
        answers.push(save.api.queue(post("/job/save", &job(&name, "true"), None)).await);
        answers.push(kill.api.queue(post("/job/kill", &json!({"name": name}), None)).await);
    }
    for answer in answers {
        assert_eq!(answer.await.unwrap().status(), 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_fifty_requests_with_one_key_to_eight_processes_one_applies() {
    let Some(etcd) = Store::etcd("lambda-idempotency", &[]).await else { return };
    let url = etcd.server.url();
    let settings = EtcdSettings { endpoints: Some(vec![url.clone()]), ..EtcdSettings::default() };
    let kv = EtcdKv::new(&settings, SOON).unwrap();
    let revision = async || kv.range(Range::key("none")).await.unwrap().revision;
    let rows = [
        ("save", "/job/save", job("a", "echo once")),
        ("kill", "/job/kill", json!({"name": "a"})),
        ("delete", "/job/delete", json!({"name": "a"})),
        ("delete", "/job/delete", json!({"name": "nobody"})),
    ];
    for (number, (function, path, sent)) in rows.into_iter().enumerate() {
        let served = Served::start(function, 8, &[("CRON_ETCD_ENDPOINTS", &url)]).await;
        let (key, before) = (format!("\"key-{number}\""), revision().await);
        let mut waiting = Vec::new();
        for _ in 0..50 {
            waiting.push(served.api.queue(post(path, &sent, Some(&key))).await);
        }
        let mut answers = Vec::new();
        for answer in waiting {
            answers.push(answer.await.unwrap());
        }
        let first = answers.iter().filter(|a| a.header("idempotent-replayed").is_none()).count();
        assert_eq!(first, 1, "{function}");
        let bodies: std::collections::BTreeSet<String> =
            answers.iter().map(|answer| format!("{} {}", answer.status(), answer.envelope())).collect();
        assert_eq!(bodies.len(), 1, "{bodies:?}");
        assert!(bodies.first().unwrap().starts_with("200 "), "{bodies:?}");
        assert_eq!(revision().await, before + 1, "{function}: one change");
        let other = json!({"name": "b", "command": "true", "cronExpr": "@daily"});
        let other = served.post(path, &other, Some(&key)).await;
        assert_eq!(other.status(), if function == "save" { 422 } else { 400 });
    }
}

// ---- limits ----

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_pages_arrive_through_lambda() {
    let Some(fleet) = Fleet::start("lambda-sizes").await else { return };
    let stores = fleet.stores();
    let environment =
        [("CRON_ETCD_ENDPOINTS", stores.etcd.as_str()), ("CRON_MONGODB_URI", stores.mongodb.as_str())];
    let list = Served::start("list", 1, &environment).await;
    let log = Served::start("log", 1, &environment).await;
    let workers = Served::start("workers", 1, &environment).await;
    let delete = Served::start("delete", 1, &environment).await;

    // Texts that grow on their way: a quote fourfold, a control character sevenfold; and keys of which each is a warning.
    for n in 0..60 {
        let text = if n % 2 == 0 { "\"\\".repeat(32_000) } else { "\u{1}".repeat(64_000) };
        fleet.put(format!("/cron/jobs/job{n:03}"), job(&format!("job{n:03}"), &text).to_string()).await;
        fleet.put(format!("/cron/workers/w{n:03}"), format!("{{\"v\":\"{}\"}}", "x".repeat(1000))).await;
    }
    for n in 0..120 {
        fleet.put(format!("/cron/jobs/x{n:03}{}", "\u{1}".repeat(5000)), "no job").await;
    }
    // `\u0001`: of its six bytes in etcd one is a backslash, which Lambda doubles. This job alone is more than an answer.
    let huge = job("huge", &"\u{1}".repeat(200_000)).to_string();
    assert!(huge.len() < 1_500_000);
    fleet.put("/cron/jobs/huge", huge).await;

    let mut seen = Vec::new();
    let (mut path, mut pages) = ("/job/list".to_owned(), 0);
    loop {
        let page = list.get(&path).await;
        assert!(!page.failed && page.bytes.len() <= LAMBDA_BYTES_MAX, "{} bytes", page.bytes.len());
        let envelope = page.envelope();
        seen.extend(envelope["data"].as_array().unwrap().iter().map(|job| job["name"].clone()));
        pages += 1;
        match envelope["next"].as_str() {
            Some(next) => path = format!("/job/list?after={next}"),
            None => break,
        }
    }
    let all: Vec<Value> =
        [json!("huge")].into_iter().chain((0..60).map(|n| json!(format!("job{n:03}")))).collect();
    assert_eq!(seen, all);
    assert!(pages > 2, "{pages} pages");
    let page = workers.get("/worker/list?detail=1").await;
    assert!(page.status() == 200 && page.bytes.len() <= LAMBDA_BYTES_MAX, "{} bytes", page.bytes.len());
    let deleted = delete.post("/job/delete", &json!({"name": "huge"}), Some("k")).await;
    assert!(deleted.status() == 200 && deleted.bytes.len() <= LAMBDA_BYTES_MAX, "{}", deleted.bytes.len());

    let run_log = MongoRunLog::new(&stores.mongodb, SOON).unwrap();
    for n in 0..8 {
        let text = ["\0", "\"", "\n", "x"][n % 4].repeat(1024 * 1024);
        let record = json!({"_id": format!("big/{n}/1"), "jobName": "big", "command": "\u{1}".repeat(65_536), "output": text,
            "startTime": 1_000 * n, "v": 1, "claim": format!("a-{n}"), "status": "succeeded"});
        let record: Record = serde_json::from_value(record).unwrap();
        run_log.append(&[record]).await.unwrap();
    }
    let (mut seen, mut cut, mut path) = (Vec::new(), Vec::new(), "/job/log?name=big&limit=0".to_owned());
    loop {
        let page = log.get(&path).await;
        assert!(!page.failed && page.bytes.len() <= LAMBDA_BYTES_MAX, "{} bytes", page.bytes.len());
        let envelope = page.envelope();
        for record in envelope["data"].as_array().unwrap() {
            seen.push(record["startTime"].as_i64().unwrap() / 1000);
            if record["outputTruncated"] == true {
                cut.push(record["startTime"].as_i64().unwrap() / 1000);
                // What is cut fills the page: the answer is as long as it may be.
                assert!(page.bytes.len() > 4_900_000, "{} bytes", page.bytes.len());
                assert!(
                    envelope["warnings"][0].as_str().unwrap().contains("is cut"),
                    "{}",
                    envelope["warnings"]
                );
            }
        }
        match envelope["next"].as_str() {
            Some(next) => path = format!("/job/log?name=big&limit=0&skip={next}"),
            None => break,
        }
    }
    assert_eq!(seen, (0..8).rev().collect::<Vec<i64>>());
    assert_eq!(cut, [4, 0], "only a megabyte of NULs does not fit");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_answers_in_time_while_its_store_is_frozen() {
    let Some(mut fleet) = Fleet::start("lambda-frozen").await else { return };
    let stores = fleet.stores();
    let environment =
        [("CRON_ETCD_ENDPOINTS", stores.etcd.as_str()), ("CRON_MONGODB_URI", stores.mongodb.as_str())];
    let rows = [
        ("save", post("/job/save", &job("a", "true"), None)),
        ("save", post("/job/save", &job("a", "true"), Some("save-1"))),
        ("delete", post("/job/delete", &json!({"name": "a"}), Some("delete-1"))),
        ("kill", post("/job/kill", &json!({"name": "a"}), None)),
        ("list", event("GET", "/job/list", &[], "").to_string()),
        ("workers", event("GET", "/worker/list", &[], "").to_string()),
        ("log", event("GET", "/job/log?name=a", &[], "").to_string()),
    ];
    let mut served = Vec::new();
    for (function, event) in rows {
        let served_one = Served::start(function, 1, &environment).await;
        // A first request, so that a connection stands when the store freezes.
        let first = served_one.api.invoke(event.clone()).await;
        assert_eq!(first.status(), 200, "{function}: {}", first.posted());
        served.push((function, served_one, event));
    }
    fleet.etcd.freeze();
    fleet.mongo.freeze();
    let mut waiting = Vec::new();
    for (_, one, event) in &served {
        waiting.push(one.api.queue(event.clone()).await);
    }
    for (answer, (function, one, _)) in waiting.into_iter().zip(&served) {
        let answer = answer.await.unwrap();
        assert_eq!(answer.status(), 503, "{function}: {}", answer.posted());
        let took = one.requests().last().unwrap()["durationMs"].as_u64().unwrap();
        // What the function itself measured: the limit is a promise to API Gateway, which gives up after 29 s.
        assert!(u128::from(took) < HANDLER_MAX.as_millis() + 500, "{function}: {took} ms");
    }
    fleet.etcd.thaw();
    fleet.mongo.thaw();
    for (function, one, event) in &served {
        assert_eq!(one.api.invoke(event.clone()).await.status(), 200, "{function} works again");
    }
}
