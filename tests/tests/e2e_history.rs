//! What changes leave behind on real parts: etcd, a MongoDB-protocol server that is away for a while, a worker; the handlers in this process.

use std::sync::Arc;
use std::time::Duration;

use common::clock::SystemClock;
use common::config::EtcdSettings;
use common::kv::etcd::EtcdKv;
use common::run_log::mongo::MongoRunLog;
use functions::Ports;
use lambda_http::{Body, RequestExt as _};
use local_dev::native::process::get;
use serde_json::{Value, json};
use tests::fixtures::{Fleet, SOON, wait_for};

const CALL_LIMIT: Duration = Duration::from_secs(20);

struct Api(Ports);

impl Api {
    fn of(fleet: &Fleet) -> Self {
        let etcd = EtcdSettings { endpoints: Some(vec![fleet.etcd.url()]), ..EtcdSettings::default() };
        Self(Ports {
            kv: Arc::new(EtcdKv::new(&etcd, CALL_LIMIT).unwrap()),
            run_log: Arc::new(MongoRunLog::new(&fleet.mongo.url(), CALL_LIMIT).unwrap()),
            clock: Arc::new(SystemClock),
        })
    }

    async fn ask(&self, method: &str, path: &str, sent: &Value, key: Option<&str>) -> Value {
        let mut request = lambda_http::http::Request::builder().method(method).uri(path);
        request = request.extension(common::domain::access::Principal::anybody());
        request = request.header("content-type", "application/json");
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        let request = request.body(Body::Text(sent.to_string())).unwrap();
        let raw = request.uri().path().to_owned();
        let response = functions::handle(&self.0, request.with_raw_http_path(raw)).await;
        let Body::Text(text) = response.body() else { panic!("{path}: no text") };
        assert_eq!(response.status(), 200, "{path}: {text}");
        serde_json::from_str(text).unwrap()
    }

    async fn commands(&self, job: &str) -> Vec<Value> {
        let versions = self.ask("GET", &format!("/job/versions?name={job}"), &Value::Null, None).await;
        let versions = versions["data"].as_array().unwrap().clone();
        versions.into_iter().map(|version| version["definition"]["command"].clone()).collect()
    }
}

fn job(name: &str, command: &str) -> Value {
    json!({"name": name, "command": command, "cronExpr": "0 0 0 29 2 *"})
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_the_record_store_delays_what_is_known_of_changes_and_loses_nothing() {
    let Some(mut fleet) = Fleet::start("history").await else { return };
    fleet.mongo.kill();
    let listen = fleet.worker("w1", &[]).await.listen();
    let api = Api::of(&fleet);
    // As large as a job can be, one in the place of another, with an answer that is kept: etcd takes 1.5 MiB at a time.
    let largest = ["\u{1}", "\u{2}"].map(|character| character.repeat(64 * 1024));
    let large = ["\"", "\\"].map(|character| character.repeat(64 * 1024));
    for (name, commands) in [("largest", &largest), ("large", &large)] {
        for (n, command) in commands.iter().enumerate() {
            api.ask("POST", "/job/save", &job(name, command), Some(&format!("{name} {n}"))).await;
        }
    }
    api.ask("POST", "/job/delete", &json!({"name": "largest"}), Some("gone")).await;
    // Twice, so that both what was and what is are left behind.
    for round in 0..2 {
        let jobs = (0..60).map(|n| job(&format!("j{n:03}"), &format!("{round}{}", "\"".repeat(n * 120))));
        let text = Value::Array(jobs.collect()).to_string();
        api.ask("POST", "/job/import?apply=1&format=json", &json!({ "text": text }), None).await;
    }
    let waiting = async || {
        let (_, metrics) = get(listen, "/metrics").await?;
        let line = metrics.lines().find_map(|line| line.strip_prefix("fleetcron_audit_waiting "))?;
        line.parse::<u64>().ok()
    };
    let notes = fleet.keys("/cron/audit/").await.len() as u64;
    assert!((7..20).contains(&notes), "{notes}");
    wait_for("the worker to say how much waits", SOON, async || (waiting().await? == notes).then_some(()))
        .await;
    fleet.mongo.restart().await.unwrap();
    wait_for("the worker to move it", SOON, async || {
        fleet.keys("/cron/audit/").await.is_empty().then_some(())
    })
    .await;
    wait_for("the worker to say so", SOON, async || (waiting().await? == 0).then_some(())).await;
    assert_eq!(api.commands("large").await, [json!(large[1]), json!(large[0])]);
    assert_eq!(
        api.commands("largest").await,
        [const { Value::Null }; 3],
        "too large to be kept, and then deleted"
    );
    assert_eq!(
        api.commands("j059").await,
        ["1", "0"].map(|n| json!(format!("{n}{}", "\"".repeat(59 * 120))))
    );
    let first = api.ask("GET", "/job/versions?name=large&limit=2", &Value::Null, None).await;
    let version = first["data"][1]["version"].clone();
    api.ask("POST", "/job/rollback", &json!({"name": "large", "version": version}), None).await;
    assert_eq!(api.commands("large").await, [json!(large[0]), json!(large[1]), json!(large[0])], "at once");
    let audit = api.ask("GET", "/audit/list?job=large", &Value::Null, None).await;
    let actions: Vec<_> =
        audit["data"].as_array().unwrap().iter().map(|entry| entry["action"].clone()).collect();
    assert_eq!(actions, ["rollback", "save", "save"]);
}
