//! Runs of a job beside each other and in the place of each other, and kills that are acknowledged, on real parts: etcd, a
//! MongoDB-protocol server, worker processes.
//!
//! Without these parts each test says SKIPPED; `cargo run -p tests` provisions them.

use std::collections::BTreeSet;
use std::sync::Arc;

use common::clock::SystemClock;
use common::config::EtcdSettings;
use common::kv::etcd::EtcdKv;
use common::run_log::embedded::EmbeddedRunLog;
use functions::Ports;
use lambda_http::{Body, RequestExt as _};
use mongodb::bson::Document;
use serde_json::{Value, json};
use tests::fixtures::{Fleet, SOON, number, processes_of, status, wait_for};

/// The kill function's answer to this body.
async fn kill(fleet: &Fleet, body: &Value) -> Value {
    let settings = EtcdSettings { endpoints: Some(vec![fleet.stores().etcd]), ..EtcdSettings::default() };
    let ports = Ports {
        kv: Arc::new(EtcdKv::new(&settings, SOON).unwrap()),
        run_log: Arc::new(EmbeddedRunLog::in_memory().unwrap()),
        clock: Arc::new(SystemClock),
    };
    let request = lambda_http::http::Request::post("/job/kill")
        .extension(common::domain::access::Principal::anybody())
        .header("content-type", "application/json")
        .header("user-agent", "somebody/1.0")
        .body(Body::Text(body.to_string()))
        .unwrap()
        .with_raw_http_path("/job/kill");
    let response = functions::handle(&ports, request).await;
    let Body::Text(text) = response.body() else { panic!("{response:?}") };
    serde_json::from_str(text).unwrap()
}

/// A length of time that nobody else sleeps for.
fn own_seconds(number: u32) -> String {
    format!("1000.{}{number}", std::process::id())
}

async fn put_job(fleet: &Fleet, name: &str, command: &str, cron: &str, concurrency: &str) {
    let job = json!({"name": name, "command": command, "cronExpr": cron, "concurrency": concurrency});
    fleet.put(format!("/cron/jobs/{name}"), job.to_string()).await;
}

async fn nothing_is_held(fleet: &Fleet, job: &str) {
    wait_for("nothing held", SOON, async || {
        let shared = fleet.keys(&format!("/cron/shared/{job}/")).await;
        let lock = fleet.get(&format!("/cron/lock/{job}")).await;
        (shared.is_empty() && lock.is_none()).then_some(())
    })
    .await;
}

fn text<'a>(record: &'a Document, field: &str) -> &'a str {
    record.get_str(field).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_beside_each_other_are_killed_by_name_and_their_records_say_who_asked() {
    let Some(mut fleet) = Fleet::start("concurrency-allow").await else { return };
    fleet.worker("w1", &[]).await;
    fleet.worker("w2", &[]).await;
    let time = own_seconds(11);
    put_job(&fleet, "beside", &format!("sleep {time}"), "* * * * * * *", "allow").await;
    let sleeping = || processes_of(&["sleep", &time]).len();
    wait_for("three runs", SOON, async || (sleeping() >= 3).then_some(())).await;
    assert_eq!(fleet.get("/cron/lock/beside").await, None);
    fleet.kv().await.delete("/cron/jobs/beside", None).await.unwrap();
    // A run that was claimed before its worker heard of it does not start: then there are as many as are held.
    wait_for("the job's end", SOON, async || {
        let held = fleet.keys("/cron/shared/beside/").await.len();
        (held == sleeping()).then_some(())
    })
    .await;

    let one = fleet.keys("/cron/shared/beside/").await.remove(0);
    let one = one.rsplit('/').next().unwrap();
    let answer = kill(&fleet, &json!({"name": "beside", "runId": one})).await;
    assert_eq!(answer["data"], json!({"runIds": [one]}), "{answer}");
    let first = fleet.record("beside", |record| status(record) == "killed").await;
    assert_eq!((text(&first, "claim"), text(&first, "err")), (one, "signal: terminated"));
    assert!(sleeping() >= 2, "the others go on");

    let answer = kill(&fleet, &json!({"name": "beside"})).await;
    let named: BTreeSet<String> = serde_json::from_value(answer["data"]["runIds"].clone()).unwrap();
    assert!(named.len() >= 2, "{answer}");
    wait_for("the end of all", SOON, async || (sleeping() == 0).then_some(())).await;
    let records = wait_for("their records", SOON, async || {
        let records = fleet.records("beside").await;
        let killed: Vec<Document> = records.into_iter().filter(|record| status(record) == "killed").collect();
        (killed.len() > named.len()).then_some(killed)
    })
    .await;
    let claims: BTreeSet<String> = records.iter().map(|record| text(record, "claim").to_owned()).collect();
    assert!(named.is_subset(&claims), "{named:?} {claims:?}");
    for record in &records {
        assert!(text(record, "killedBy").ends_with("(somebody/1.0)"), "{record}");
        assert!(number(record, "killedAt") >= number(record, "startTime"), "{record}");
    }
    nothing_is_held(&fleet, "beside").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fire_takes_the_place_of_the_run_before_whichever_worker_has_it() {
    let Some(mut fleet) = Fleet::start("concurrency-replace").await else { return };
    fleet.worker("w1", &[]).await;
    // So many that the second worker becomes the owner of some.
    let jobs: Vec<String> = (0..8).map(|number| format!("replaced-{number}")).collect();
    let time = own_seconds(12);
    for job in &jobs {
        put_job(&fleet, job, &format!("sleep {time}"), "*/3 * * * * * *", "replace").await;
    }
    wait_for("all runs", SOON, async || (processes_of(&["sleep", &time]).len() == jobs.len()).then_some(()))
        .await;
    fleet.worker("w2", &[]).await;
    let replaced = async |job: &str| -> Vec<Document> {
        let records = fleet.records(job).await;
        records.into_iter().filter(|record| status(record) == "killed").collect()
    };
    let mut changed_hands = 0;
    for job in &jobs {
        let records = wait_for("replaced runs", SOON, async || {
            let records = replaced(job).await;
            let hands: BTreeSet<&str> = records.iter().map(|record| text(record, "worker")).collect();
            (records.len() >= 4 || hands.len() > 1).then_some(records)
        })
        .await;
        for pair in records.windows(2) {
            assert!(number(&pair[0], "endTime") <= number(&pair[1], "startTime"), "they overlap: {pair:?}");
            changed_hands += usize::from(text(&pair[0], "worker") != text(&pair[1], "worker"));
        }
        for record in &records {
            assert!(text(record, "killedBy").starts_with("replaced by the run of 2"), "{record}");
        }
    }
    assert!(changed_hands > 0, "no run was replaced by one on the other worker");
    assert!(processes_of(&["sleep", &time]).len() <= jobs.len());
    for job in &jobs {
        fleet.kv().await.delete(format!("/cron/jobs/{job}"), None).await.unwrap();
        wait_for("its end", SOON, async || {
            kill(&fleet, &json!({"name": job})).await;
            fleet.get(&format!("/cron/lock/{job}")).await.is_none().then_some(())
        })
        .await;
    }
    wait_for("the end of all", SOON, async || processes_of(&["sleep", &time]).is_empty().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn once_runs_may_not_overlap_any_more_none_starts_beside_those_that_still_go() {
    let Some(mut fleet) = Fleet::start("concurrency-edit").await else { return };
    fleet.worker("w1", &[]).await;
    let time = own_seconds(13);
    let command = format!("sleep {time}");
    put_job(&fleet, "edited", &command, "* * * * * * *", "allow").await;
    wait_for("two runs", SOON, async || (processes_of(&["sleep", &time]).len() >= 2).then_some(())).await;
    put_job(&fleet, "edited", &command, "* * * * * * *", "forbid").await;
    // Also a worker that knows nothing of those runs starts none beside them.
    fleet.worker("w2", &[]).await;
    let overlap = |record: &Document| {
        let skipped = record.get_document("skipped");
        skipped.is_ok_and(|skipped| text(skipped, "reason") == "overlap" && number(skipped, "count") >= 3)
    };
    fleet.record("edited", overlap).await;
    assert_eq!(fleet.get("/cron/lock/edited").await, None, "none that holds the lock has begun");
    let before = fleet.keys("/cron/shared/edited/").await.len();
    assert_eq!(processes_of(&["sleep", &time]).len(), before);

    kill(&fleet, &json!({"name": "edited"})).await;
    wait_for("a run with the lock", SOON, async || fleet.get("/cron/lock/edited").await).await;
    wait_for("no other", SOON, async || (processes_of(&["sleep", &time]).len() == 1).then_some(())).await;
    assert!(fleet.keys("/cron/shared/edited/").await.is_empty());
    fleet.kv().await.delete("/cron/jobs/edited", None).await.unwrap();
    kill(&fleet, &json!({"name": "edited"})).await;
    nothing_is_held(&fleet, "edited").await;
}
