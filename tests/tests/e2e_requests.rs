//! Runs that are asked for, and retries, on real parts: etcd, a MongoDB-protocol server, worker processes. The requests go through the function
//! itself, in this process.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use common::clock::SystemClock;
use common::config::EtcdSettings;
use common::domain::access::Principal;
use common::keys;
use common::kv::etcd::EtcdKv;
use futures::future::join_all;
use lambda_http::{Body, Request};
use mongodb::bson::Document;
use serde_json::{Value, json};
use tests::fixtures::{Fleet, SOON, number, processes_of, status, wait_for};

const SHORT_SESSION: [(&str, &str); 1] = [("CRON_SESSION_TTL_SECONDS", "3")];
/// A schedule that does not fire while a test goes.
const NEVER: &str = "0 0 0 29 2 *";

/// Starts a fleet, or leaves the test (it has said why).
macro_rules! fleet {
    ($test:literal) => {
        match Fleet::start($test).await {
            Some(fleet) => fleet,
            None => return,
        }
    };
}

fn api(fleet: &Fleet) -> EtcdKv {
    let settings = EtcdSettings { endpoints: Some(vec![fleet.etcd.url()]), ..EtcdSettings::default() };
    EtcdKv::new(&settings, Duration::from_secs(3)).unwrap()
}

/// `POST /job/run`; answers the run's id.
async fn run_now(kv: &EtcdKv, asked: Value) -> String {
    let request =
        lambda_http::http::Request::builder().extension(Principal::anybody()).method("POST").uri("/job/run");
    let request: Request =
        request.header("content-type", "application/json").body(Body::Text(asked.to_string())).unwrap();
    let response = functions::endpoints::run::handle(kv, &SystemClock, request).await;
    let Body::Text(text) = response.body() else { panic!("no text") };
    assert_eq!(response.status(), 200, "{text}");
    let reply: Value = serde_json::from_str(text).unwrap();
    reply["data"]["runId"].as_str().unwrap().to_owned()
}

/// `POST /job/save`.
async fn save(kv: &EtcdKv, job: Value) {
    let request =
        lambda_http::http::Request::builder().extension(Principal::anybody()).method("POST").uri("/job/save");
    let request: Request =
        request.header("content-type", "application/json").body(Body::Text(job.to_string())).unwrap();
    let response = functions::endpoints::save::handle(kv, &SystemClock, request).await;
    assert_eq!(response.status(), 200, "{:?}", response.body());
}

async fn put_job(fleet: &Fleet, name: &str, command: &str, cron: &str, options: Value) {
    let mut job = options;
    (job["name"], job["command"], job["cronExpr"]) = (name.into(), command.into(), cron.into());
    fleet.put(format!("/cron/jobs/{name}"), job.to_string()).await;
}

fn claim(record: &Document) -> &str {
    record.get_str("claim").unwrap_or_default()
}

fn trigger(record: &Document) -> &str {
    record.get_str("trigger").unwrap_or_default()
}

fn lines(file: &Path) -> Vec<String> {
    std::fs::read_to_string(file).unwrap_or_default().lines().map(str::to_owned).collect()
}

async fn nothing_is_left(fleet: &Fleet) {
    for prefix in [keys::REQUESTS, keys::RUNS, keys::LOCK] {
        wait_for(prefix, SOON, async || fleet.keys(prefix).await.is_empty().then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_hundred_runs_asked_of_two_workers_begin_once_each() {
    let mut fleet = fleet!("run-now-many");
    for id in ["w1", "w2"] {
        fleet.worker(id, &[]).await;
    }
    let file = fleet.dir.path().join("runs");
    let command = format!("echo $CRON_RUN_ID $CRON_ATTEMPT $N >> '{}'", file.display());
    for job in 0..30 {
        put_job(&fleet, &format!("job{job}"), &command, NEVER, json!({})).await;
    }
    let kv = &api(&fleet);
    let asking = (0..300).map(|n| {
        let asked = json!({"name": format!("job{}", n % 30), "env": {"N": n.to_string()}});
        async move { (run_now(kv, asked).await, n) }
    });
    let asked: BTreeMap<String, i32> = join_all(asking).await.into_iter().collect();
    assert_eq!(asked.len(), 300);

    let ran = wait_for("300 runs", Duration::from_secs(120), async || {
        let ran = lines(&file);
        (ran.len() >= 300).then_some(ran)
    })
    .await;
    let expected: BTreeSet<String> = asked.iter().map(|(run_id, n)| format!("{run_id} 1 {n}")).collect();
    assert_eq!(ran.iter().cloned().collect::<BTreeSet<_>>(), expected);
    nothing_is_left(&fleet).await;
    let records = fleet.all_records().await;
    let recorded: BTreeSet<&str> = records.iter().map(claim).collect();
    assert_eq!((records.len(), recorded), (300, asked.keys().map(String::as_str).collect()));
    assert!(records.iter().all(|record| status(record) == "succeeded"));
    let triggers: BTreeSet<&str> = records.iter().map(|record| record.get_str("trigger").unwrap()).collect();
    assert_eq!(triggers, BTreeSet::from(["manual"]));
    assert_eq!(lines(&file).len(), 300, "each began once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broadcast_runs_on_every_worker_that_is_there_once_a_fire() {
    let mut fleet = fleet!("broadcast");
    let ids = ["w1", "w2", "w3"];
    for id in ids {
        fleet.worker(id, &SHORT_SESSION).await;
    }
    let kv = &api(&fleet);
    let job = |name: &str, cron: &str| json!({"name": name, "command": "true", "cronExpr": cron, "mode": "broadcast"});
    save(kv, job("asked", NEVER)).await;
    save(kv, job("every", "* * * * * *")).await;
    let asked = run_now(kv, json!({"name": "asked"})).await;
    let of = async |name: &str| {
        let mut records = fleet.all_records().await;
        records.retain(|record| record.get_str("jobName").is_ok_and(|job| job == name));
        records
    };
    let by_fire = |records: &[Document]| {
        let mut by_fire: BTreeMap<i64, Vec<(String, String)>> = BTreeMap::new();
        for record in records {
            let worker = record.get_str("worker").unwrap().to_owned();
            by_fire.entry(number(record, "planTime")).or_default().push((worker, status(record).to_owned()));
        }
        by_fire.values_mut().for_each(|workers| workers.sort());
        by_fire
    };
    wait_for("five fires on all", Duration::from_secs(60), async || {
        let all = |workers: &Vec<(String, String)>| workers.len() == 3;
        (by_fire(&of("every").await).values().filter(|workers| all(workers)).count() >= 5).then_some(())
    })
    .await;
    let told = wait_for("the run that was asked for", SOON, async || {
        let told = of("asked").await;
        (told.len() == 3).then_some(told)
    })
    .await;
    for record in &told {
        assert!(claim(record).starts_with(&format!("{asked}~")), "{record}");
    }
    assert_eq!(
        told.iter().map(|record| record.get_str("worker").unwrap()).collect::<BTreeSet<_>>(),
        ids.into()
    );
    fleet.delete_prefix("/cron/jobs/every").await;
    nothing_is_left(&fleet).await;
    for (fire, workers) in by_fire(&of("every").await) {
        let names: Vec<&str> = workers.iter().map(|(worker, _)| worker.as_str()).collect();
        assert_eq!(names, ids, "the fire at {fire} has one record of each: {workers:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_asked_for_while_the_job_runs_waits_for_its_end_and_the_schedule_goes_on() {
    let mut fleet = fleet!("run-now-waits");
    fleet.worker("w1", &[]).await;
    let gate = fleet.dir.path().join("gate");
    let command = format!("while [ ! -e '{}' ]; do sleep 0.05; done", gate.display());
    put_job(&fleet, "slow", &command, NEVER, json!({})).await;
    put_job(&fleet, "each-second", "true", "* * * * * * *", json!({})).await;
    let kv = api(&fleet);
    let first = run_now(&kv, json!({"name": "slow"})).await;
    let lock = keys::LOCK.to_owned() + "slow";
    wait_for("the first run", SOON, async || fleet.get(&lock).await).await;
    let second = run_now(&kv, json!({"name": "slow"})).await;
    let key = format!("{}{second}", keys::REQUESTS);
    let manual = run_now(&kv, json!({"name": "each-second"})).await;
    fleet.record("each-second", |record| claim(record) == manual).await;
    // Fires of the other job go on beside its run that was asked for.
    let scheduled = |record: &&Document| record.get_str("trigger").is_ok_and(|trigger| trigger == "schedule");
    wait_for("three fires", SOON, async || {
        (fleet.records("each-second").await.iter().filter(scheduled).count() >= 3).then_some(())
    })
    .await;
    assert!(fleet.get(&key).await.is_some(), "the second run waits");
    std::fs::write(&gate, "").unwrap();
    let record_of = async |run_id: &str| fleet.record("slow", |record| claim(record) == run_id).await;
    let (first, second) = (record_of(&first).await, record_of(&second).await);
    assert!(number(&first, "endTime") <= number(&second, "startTime"), "{first} {second}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_fails_is_tried_again_until_it_succeeds() {
    let mut fleet = fleet!("retry");
    for id in ["w1", "w2"] {
        fleet.worker(id, &[]).await;
    }
    let file = fleet.dir.path().join("attempts");
    let command =
        format!("echo $CRON_ATTEMPT $CRON_PLAN_TIME $DAY >> '{}'; [ $CRON_ATTEMPT = 3 ]", file.display());
    let retry = json!({"retry": {"attempts": 5, "backoff": 1}});
    put_job(&fleet, "shaky", &command, NEVER, retry).await;
    let run_id = run_now(&api(&fleet), json!({"name": "shaky", "env": {"DAY": "monday"}})).await;
    fleet.record("shaky", |record| status(record) == "succeeded").await;
    nothing_is_left(&fleet).await;
    let records = fleet.records("shaky").await;
    let plan_time = number(&records[0], "planTime");
    let mut told: Vec<(i64, &str, &str, &str)> = records
        .iter()
        .map(|record| {
            assert_eq!(number(record, "planTime"), plan_time);
            let text = |field| record.get_str(field).unwrap();
            (number(record, "attempt"), text("status"), text("trigger"), text("_id"))
        })
        .collect();
    told.sort_unstable();
    let id = |attempt| format!("shaky/{plan_time}/{run_id}/{attempt}");
    let expected =
        [(1, "failed", "manual", id(1)), (2, "failed", "retry", id(2)), (3, "succeeded", "retry", id(3))];
    let expected: Vec<(i64, &str, &str, &str)> = expected
        .iter()
        .map(|(attempt, status, trigger, id)| (*attempt, *status, *trigger, id.as_str()))
        .collect();
    assert_eq!(told, expected);
    assert_eq!(lines(&file), [1, 2, 3].map(|attempt| format!("{attempt} {plan_time} monday")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_while_it_runs_what_was_asked_for_leaves_one_record_and_at_most_one_retry() {
    let mut fleet = fleet!("run-now-crash");
    fleet.worker("w1", &SHORT_SESSION).await;
    let file = fleet.dir.path().join("begun");
    // The first attempts hang, so that their worker dies with them; the next ones end.
    let time = format!("1000.{}5", std::process::id());
    let command = format!(
        "echo $CRON_JOB_NAME $CRON_ATTEMPT >> '{}'; [ $CRON_ATTEMPT != 1 ] || exec sleep {time}",
        file.display()
    );
    let again = json!({"retry": {"attempts": 2, "backoff": 0, "onLost": true}});
    put_job(&fleet, "again", &command, NEVER, again).await;
    put_job(&fleet, "once", &command, NEVER, json!({"retry": {"attempts": 2, "backoff": 0}})).await;
    let kv = api(&fleet);
    for job in ["again", "once"] {
        run_now(&kv, json!({"name": job})).await;
    }
    wait_for("both runs", SOON, async || (lines(&file).len() == 2).then_some(())).await;
    fleet.worker("w2", &SHORT_SESSION).await;
    fleet.workers[0].crash();
    fleet.record("again", |record| status(record) == "succeeded").await;
    fleet.record("once", |record| status(record) == "lost").await;
    nothing_is_left(&fleet).await;
    let told = async |job: &str| {
        let records = fleet.records(job).await;
        let mut told: Vec<(i64, String)> =
            records.iter().map(|record| (number(record, "attempt"), status(record).to_owned())).collect();
        told.sort_unstable();
        told
    };
    assert_eq!(told("again").await, [(1, "lost".to_owned()), (2, "succeeded".to_owned())]);
    assert_eq!(told("once").await, [(1, "lost".to_owned())]);
    let mut begun = lines(&file);
    begun.sort_unstable();
    assert_eq!(begun, ["again 1", "again 2", "once 1"]);
    for orphan in processes_of(&["sleep", &time]) {
        let _gone_already = std::process::Command::new("kill").arg(orphan.to_string()).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_pair_of_successes_leads_to_one_run_also_when_a_worker_is_killed() {
    const PAIRS: usize = 40;
    let mut fleet = fleet!("after");
    fleet.worker("w1", &SHORT_SESSION).await;
    // It must not lose its session, however busy the machine is: what it runs would be closed as lost, and tell nobody.
    fleet.worker("w2", &[("CRON_SESSION_TTL_SECONDS", "60")]).await;
    let kv = api(&fleet);
    for n in 0..PAIRS {
        for job in ["extract", "load"] {
            put_job(&fleet, &format!("{job}{n}"), "sleep 0.$((RANDOM % 5))", NEVER, json!({})).await;
        }
        let after = [format!("extract{n}"), format!("load{n}")];
        save(&kv, json!({"name": format!("report{n}"), "command": "true", "after": after})).await;
    }
    let asking = (0..2 * PAIRS).map(|n| {
        let job = if n % 2 == 0 { "extract" } else { "load" };
        run_now(&kv, json!({"name": format!("{job}{}", n / 2)}))
    });
    join_all(asking).await;
    // However fast they run: what is recorded as succeeded by now stays so.
    let succeeded = |records: &[Document], job: String| {
        records
            .iter()
            .any(|one| one.get_str("jobName").is_ok_and(|name| name == job) && status(one) == "succeeded")
    };
    wait_for("some pairs", SOON, async || {
        let records = fleet.all_records().await;
        let both = |n: &usize| ["extract", "load"].iter().all(|job| succeeded(&records, format!("{job}{n}")));
        ((0..PAIRS).filter(both).count() >= 3).then_some(())
    })
    .await;
    fleet.workers[0].crash();
    wait_for("a record of each", Duration::from_secs(60), async || {
        let records = fleet.all_records().await;
        (records.iter().filter(|record| trigger(record) == "manual").count() == 2 * PAIRS).then_some(())
    })
    .await;
    nothing_is_left(&fleet).await;
    let mut pairs = 0;
    for n in 0..PAIRS {
        let reports = fleet.records(&format!("report{n}")).await;
        let mut led_by = Vec::new();
        for job in ["extract", "load"] {
            let records = fleet.records(&format!("{job}{n}")).await;
            led_by.extend(
                records.iter().filter(|one| status(one) == "succeeded").map(|one| claim(one).to_owned()),
            );
        }
        let known_to_have_succeeded = led_by.len() == 2;
        pairs += usize::from(known_to_have_succeeded);
        // Of a worker that is killed between the end of a run and its record, the record says `lost`, and the others were told.
        assert!(
            reports.len() <= 1 && (!known_to_have_succeeded || reports.len() == 1),
            "report{n}: {reports:?}"
        );
        if known_to_have_succeeded {
            assert!(
                led_by.iter().any(|run_id| reports[0].get_str("after").is_ok_and(|after| after == run_id))
            );
            assert!(fleet.keys(&format!("{}report{n}/", keys::AFTER)).await.is_empty());
        }
    }
    assert!(pairs >= 3, "only {pairs} pairs have succeeded");
}
