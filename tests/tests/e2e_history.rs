//! What changes leave behind on real parts: etcd, a MongoDB-protocol server that is away for a while, a worker; the handlers in this process.

use local_dev::native::process::get;
use serde_json::{Value, json};
use tests::api::Api;
use tests::fixtures::{Fleet, SOON, wait_for};

/// The commands of a job's versions, the newest first.
async fn commands(api: &Api, job: &str) -> Vec<Value> {
    let (_, reply) = api.get(&format!("/job/versions?name={job}")).await;
    let versions = reply["data"].as_array().unwrap();
    versions.iter().map(|version| version["definition"]["command"].clone()).collect()
}

/// The same request, sent again with this key, is answered alike and not done twice.
async fn once(api: &Api, path: &str, body: &Value, key: &str) {
    let (status, reply) = api.call("POST", path, &[("idempotency-key", key)], body).await;
    assert_eq!(status, 200, "{path}: {reply}");
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
            once(&api, "/job/save", &job(name, command), &format!("{name} {n}")).await;
        }
    }
    once(&api, "/job/delete", &json!({"name": "largest"}), "gone").await;
    // Twice, so that both what was and what is are left behind.
    for round in 0..2 {
        let jobs = (0..60).map(|n| job(&format!("j{n:03}"), &format!("{round}{}", "\"".repeat(n * 120))));
        let text = Value::Array(jobs.collect()).to_string();
        api.done("/job/import?apply=1&format=json", &json!({ "text": text })).await;
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
    assert_eq!(commands(&api, "large").await, [json!(large[1]), json!(large[0])]);
    assert_eq!(
        commands(&api, "largest").await,
        [const { Value::Null }; 3],
        "too large to be kept, and then deleted"
    );
    assert_eq!(
        commands(&api, "j059").await,
        ["1", "0"].map(|n| json!(format!("{n}{}", "\"".repeat(59 * 120))))
    );
    let (_, first) = api.get("/job/versions?name=large&limit=2").await;
    let version = first["data"][1]["version"].clone();
    api.done("/job/rollback", &json!({"name": "large", "version": version})).await;
    assert_eq!(commands(&api, "large").await, [json!(large[0]), json!(large[1]), json!(large[0])], "at once");
    let (_, audit) = api.get("/audit/list?job=large").await;
    let actions: Vec<_> =
        audit["data"].as_array().unwrap().iter().map(|entry| entry["action"].clone()).collect();
    assert_eq!(actions, ["rollback", "save", "save"]);
}
