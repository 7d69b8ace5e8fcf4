//! What runs print, seen while they go, on real parts: etcd, a MongoDB-protocol server, worker processes; the handlers in this process.

use std::time::Duration;

use common::clock::{Stopwatch, sleep};
use futures::TryStreamExt as _;
use mongodb::bson::{Document, doc};
use serde_json::{Value, json};
use tests::api::Api;
use tests::fixtures::{Fleet, SOON, now_ms, wait_for};

/// The `data` of an answer; `None` when it is no success.
async fn ask(api: &Api, path: &str) -> Option<Value> {
    let (status, mut reply) = api.get(path).await;
    (status == 200).then(|| reply["data"].take())
}

/// The run of a job that is going, once there is one.
async fn going(api: &Api, job: &str) -> Value {
    wait_for("a run that is going", SOON, async || {
        let runs = ask(api, &format!("/job/running?name={job}")).await?;
        runs.as_array()?.iter().find(|run| run["planTime"].as_i64().unwrap() <= now_ms()).cloned()
    })
    .await
}

/// Reads on from `known` until `enough`; every answer must go on where the one before has ended.
async fn follow(api: &Api, id: &str, known: &mut String, enough: impl Fn(&str, bool) -> bool) {
    let waited = Stopwatch::start();
    loop {
        let after = known.len();
        let piece = ask(api, &format!("/run/output?id={id}&after={after}&wait=2")).await.unwrap();
        assert_eq!(piece["from"], after, "{piece} after {known:?}");
        known.push_str(piece["output"].as_str().unwrap());
        assert_eq!(piece["next"], known.len(), "{piece}");
        if enough(known, piece["ended"].as_bool().unwrap()) {
            return;
        }
        assert!(waited.elapsed() < SOON, "waited in vain for more than {known:?}");
        sleep(Duration::from_millis(100)).await;
    }
}

async fn stored_output(fleet: &Fleet) -> Vec<Document> {
    let client = mongodb::Client::with_uri_str(fleet.mongo.url()).await.unwrap();
    let output = client.database("cron").collection::<Document>("output");
    output.find(doc! {}).await.unwrap().try_collect().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_seen_while_it_goes_and_afterwards() {
    let Some(mut fleet) = Fleet::start("live-output").await else { return };
    fleet.worker("w1", &[]).await;
    let api = Api::of(&fleet);
    let end = fleet.dir.path().join("end");
    let end = end.display();
    // A character comes in two halves, seconds apart.
    let command = format!(
        "echo begin; printf 'gr\\303'; sleep 2.5; printf '\\274n\\n'; until [ -e {end} ]; do sleep 0.1; done; echo end"
    );
    fleet.put_job("live", &command, "* * * * * * *").await;
    let run = going(&api, "live").await;
    let id = run["runId"].as_str().unwrap().to_owned();
    assert_eq!((&run["worker"], &run["attempt"]), (&json!("w1"), &json!(1)), "{run}");
    assert_eq!(ask(&api, &format!("/run/get?id={id}")).await.unwrap(), json!({"open": run, "record": null}));

    let mut known = String::new();
    follow(&api, &id, &mut known, |known, ended| {
        assert!(!ended);
        known == "begin\ngrün\n"
    })
    .await;
    fleet.delete_prefix("/cron/jobs/").await;
    tokio::fs::write(fleet.dir.path().join("end"), "").await.unwrap();
    follow(&api, &id, &mut known, |_, ended| ended).await;
    assert_eq!(known, "begin\ngrün\nend\n");

    let ended = ask(&api, &format!("/run/get?id={id}")).await.unwrap();
    let record = &ended["record"];
    assert_eq!((&ended["open"], &record["claim"]), (&Value::Null, &json!(id)));
    assert_eq!((&record["output"], &record["status"]), (&json!(known), &json!("succeeded")));
    let by_id = format!("/run/get?id={}", record["_id"].as_str().unwrap());
    assert_eq!(ask(&api, &by_id).await.unwrap(), ended);
    let found = ask(&api, &format!("/job/log?name=live&runId={id}&text=gr%C3%BCn")).await.unwrap();
    assert_eq!(found, json!([record]));
    wait_for("no run is open", SOON, async || (ask(&api, "/job/running").await? == json!([])).then_some(()))
        .await;
    wait_for("no output is stored apart", SOON, async || {
        stored_output(&fleet).await.is_empty().then_some(())
    })
    .await;
    assert_eq!(ask(&api, "/run/get?id=nobody-1").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_lost_run_has_printed_is_still_there() {
    let Some(mut fleet) = Fleet::start("live-lost").await else { return };
    let ttl = [("CRON_SESSION_TTL_SECONDS", "2")];
    fleet.worker("w1", &ttl).await;
    let api = Api::of(&fleet);
    let end = fleet.dir.path().join("end");
    let command = format!("echo before; until [ -e {} ]; do sleep 0.1; done", end.display());
    fleet.put_job("lost", &command, "* * * * * * *").await;
    let run = going(&api, "lost").await;
    let id = run["runId"].as_str().unwrap().to_owned();
    follow(&api, &id, &mut String::new(), |known, _| known == "before\n").await;
    fleet.delete_prefix("/cron/jobs/").await;
    fleet.workers[0].crash();
    fleet.worker("w2", &ttl).await;
    let mut known = String::new();
    follow(&api, &id, &mut known, |_, ended| ended).await;
    assert_eq!(known, "before\n");
    let record = ask(&api, &format!("/run/get?id={id}")).await.unwrap()["record"].clone();
    assert_eq!((&record["status"], &record["output"]), (&json!("lost"), &json!("")), "{record}");
    tokio::fs::write(end, "").await.unwrap();
}
