//! Notifications of real workers: to an address that is away, through a kill -9, one for each outage.
//!
//! Without etcd and a MongoDB-protocol server each test says SKIPPED; `cargo run -p tests` provisions them.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use axum::extract::State;
use axum::http::HeaderMap;
use axum::routing::post;
use local_dev::native::ports::free_port;
use local_dev::native::process::get;
use serde_json::{Value, json};
use tests::fixtures::{Fleet, SOON, status, wait_for};
use tokio::net::TcpListener;

/// What came, and by which secret.
type Got = Arc<Mutex<Vec<(String, Value)>>>;

/// Takes webhooks from now on.
async fn receive(at: SocketAddr) -> Got {
    let listener = TcpListener::bind(at).await.unwrap();
    let got = Got::default();
    let taking = async |State(got): State<Got>, headers: HeaderMap, body: String| {
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(headers["idempotency-key"], body["id"].as_str().unwrap());
        let secret = headers["authorization"].to_str().unwrap().to_owned();
        got.lock().unwrap().push((secret, body));
    };
    let app = axum::Router::new().route("/", post(taking)).with_state(Arc::clone(&got));
    tokio::spawn(async move { axum::serve(listener, app).await });
    got
}

/// What was told of jobs, by how their names begin: kinds and jobs.
fn told(got: &Got, prefix: &str) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let got = got.lock().unwrap();
    let all = got.iter().map(|(_, body)| (text(&body["kind"]), text(&body["job"])));
    all.filter(|(_, job)| job.starts_with(prefix)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_outage_is_told_once_though_the_address_is_away_and_its_worker_killed() {
    let Some(mut fleet) = Fleet::start("notify").await else { return };
    // Nobody listens there yet.
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port().unwrap()));
    let file = fleet.dir.path().join("channels.json");
    let secret = fleet.dir.path().join("hook-secret");
    std::fs::write(&secret, "Bearer before\n").unwrap();
    let hook = json!({"kind": "webhook", "url": format!("http://{address}/"), "headers": {"Authorization": {"file": secret}}});
    let channels = json!({"channels": {"hook": hook}});
    std::fs::write(&file, channels.to_string()).unwrap();
    let settings = [("CRON_SESSION_TTL_SECONDS", "4"), ("CRON_NOTIFY_FILE", file.to_str().unwrap())];
    let listens =
        [fleet.worker("w1", &settings).await.listen(), fleet.worker("w2", &settings).await.listen()];

    let works = fleet.dir.path().join("works");
    let put = async |name: &str, command: &str, on: Value| {
        let notify = json!({"on": on, "to": ["hook"]});
        let job = json!({"name": name, "command": command, "cronExpr": "* * * * * * *", "notify": notify});
        fleet.put(format!("/cron/jobs/{name}"), job.to_string()).await;
    };
    put("fails", &format!("test -e {}", works.display()), json!(["failure", "recovery"])).await;
    for number in 0..6 {
        put(&format!("long{number}"), "sleep 1000", json!(["lost"])).await;
    }
    let has_tried = async |listen| {
        let (_, metrics) = get(listen, "/metrics").await?;
        let failed =
            metrics.lines().find_map(|line| line.strip_prefix("fleetcron_notifications_failed_total "));
        (failed?.parse::<u64>().ok()? > 0).then_some(())
    };
    let teller = wait_for("an attempt", SOON, async || {
        for (number, listen) in listens.iter().enumerate() {
            if has_tried(*listen).await.is_some() {
                return Some(number);
            }
        }
        None
    })
    .await;
    fleet.workers[teller].crash();
    let lost = async |fleet: &Fleet| -> BTreeSet<String> {
        let records = fleet.all_records().await;
        let lost = records.iter().filter(|record| status(record) == "lost");
        let jobs = lost.map(|record| record.get_str("jobName").unwrap().to_owned());
        jobs.filter(|job| job.starts_with("long")).collect()
    };
    wait_for("records of lost runs", SOON, async || (!lost(&fleet).await.is_empty()).then_some(())).await;
    fleet.workers[teller].restart().await.unwrap();
    let got = receive(address).await;
    wait_for("the outage to be told", SOON, async || (!told(&got, "fails").is_empty()).then_some(())).await;
    // A new secret where the old one was: the next message has it.
    std::fs::write(&secret, "Bearer after\n").unwrap();
    std::fs::write(&works, "").unwrap();
    wait_for("its end", SOON, async || (told(&got, "fails").len() > 1).then_some(())).await;
    wait_for("more runs", SOON, async || {
        let records = fleet.all_records().await;
        (records.iter().filter(|record| status(record) == "succeeded").count() > 4).then_some(())
    })
    .await;
    let pair = |kind: &str, job: &str| (kind.to_owned(), job.to_owned());
    assert_eq!(told(&got, "fails"), [pair("failure", "fails"), pair("recovery", "fails")]);
    let lost = lost(&fleet).await;
    wait_for("all that was lost", SOON, async || (told(&got, "long").len() >= lost.len()).then_some(()))
        .await;
    let mut long = told(&got, "long");
    long.sort();
    assert_eq!(long, lost.iter().map(|job| pair("lost", job)).collect::<Vec<_>>());
    let of_kind =
        |kind: &str| got.lock().unwrap().iter().find(|(_, body)| body["kind"] == kind).cloned().unwrap();
    let (secret_before, first) = of_kind("failure");
    assert_eq!((secret_before.as_str(), of_kind("recovery").0.as_str()), ("Bearer before", "Bearer after"));
    assert_eq!((&first["exitCode"], &first["err"]), (&json!(1), &json!("exit status 1")));
    // A file that names no channels stops a worker before it has begun.
    std::fs::write(&file, "{\"channels\":{}}").unwrap();
    let program = tests::fixtures::program("worker").await;
    let check =
        std::process::Command::new(program).arg("--check-config").env("CRON_NOTIFY_FILE", &file).output();
    let check = check.unwrap();
    assert!(!check.status.success());
    assert!(String::from_utf8_lossy(&check.stderr).contains("it has 0 channels"), "{check:?}");
}
