//! Fires that nobody could claim in time, and jobs bound to labels, on real parts: etcd, a MongoDB-protocol server, worker processes.
//!
//! Without these parts each test says SKIPPED; `cargo run -p tests` provisions them.

use std::time::Duration;

use common::clock::Timestamp;
use mongodb::bson::Document;
use serde_json::json;
use tests::fixtures::{Fleet, SOON, now_ms, number, status, wait_for};

/// How soon a dead worker's session ends.
const TTL: [(&str, &str); 1] = [("CRON_SESSION_TTL_SECONDS", "4")];

/// The plan times, in seconds after `start`, of the records with this status.
fn plan_times(records: &[Document], wanted: &str, start: i64) -> Vec<i64> {
    let of = records.iter().filter(|record| status(record) == wanted);
    of.map(|record| number(record, "planTime") / 1000 - start).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_missed_while_every_worker_was_gone_runs_as_each_job_says() {
    let Some(mut fleet) = Fleet::start("misfire").await else { return };
    fleet.worker("w1", &[]).await;
    // Three fires of one minute, soon and never again, in a time without workers.
    let mut start = now_ms() / 1000;
    if (start + 10) % 60 > 55 {
        start += 5;
    }
    let missed = [10, 12, 14];
    let seconds = missed.map(|after| ((start + after) % 60).to_string()).join(",");
    let minute = Timestamp::from_ms((start + missed[0]) * 1000).rfc3339();
    let [year, month, day, hour, minute] = [0..4, 5..7, 8..10, 11..13, 14..16].map(|at| &minute[at]);
    let cron = format!("{seconds} {minute} {hour} {day} {month} * {year}");
    let dir = fleet.dir.path().to_path_buf();
    let file = |job: &str| dir.join(job);
    for (job, misfire) in [("usual", None), ("all", Some("all")), ("skip", Some("skip"))] {
        let command = format!("echo $(($CRON_PLAN_TIME / 1000 - {start})) >> '{}'", file(job).display());
        // However slowly the second worker starts here, it is in time.
        let mut value =
            json!({"name": job, "command": command, "cronExpr": cron, "startDeadlineSeconds": 600});
        if let Some(misfire) = misfire {
            value["misfire"] = misfire.into();
        }
        fleet.put(format!("/cron/jobs/{job}"), value.to_string()).await;
    }
    wait_for("the jobs' marks", SOON, async || (fleet.keys("/cron/fired/").await.len() == 3).then_some(()))
        .await;
    fleet.workers[0].crash();
    assert!(now_ms() / 1000 < start + missed[0], "the worker is gone before the first fire");
    // The absence itself is what is tried: the last fire is then older than a fire that simply starts late.
    wait_for("the time without workers", SOON, async || (now_ms() / 1000 > start + 30).then_some(())).await;

    fleet.worker("w2", &[]).await;
    let finished = async |job: &str, records: usize| {
        wait_for(&format!("the records of {job}"), SOON, async || {
            let found = fleet.records(job).await;
            (found.len() >= records).then_some(found)
        })
        .await
    };
    let runs = |job: &str| std::fs::read_to_string(file(job)).unwrap_or_default();
    let range = |records: &[Document]| {
        let skip =
            records.iter().find(|record| status(record) == "skipped")?.get_document("skipped").ok()?.clone();
        assert_eq!(skip.get_str("reason").unwrap(), "misfire");
        Some((
            number(&skip, "from") / 1000 - start,
            number(&skip, "to") / 1000 - start,
            number(&skip, "count"),
        ))
    };

    let usual = finished("usual", 2).await;
    assert_eq!(
        (plan_times(&usual, "succeeded", start), range(&usual)),
        (vec![14], Some((10, 12, 2))),
        "{usual:?}"
    );
    assert_eq!(runs("usual"), "14\n");

    let all = finished("all", 3).await;
    assert_eq!((plan_times(&all, "succeeded", start), range(&all)), (vec![10, 12, 14], None), "{all:?}");
    assert_eq!(runs("all"), "10\n12\n14\n", "in order");

    let skip = finished("skip", 1).await;
    assert_eq!(
        (plan_times(&skip, "succeeded", start), range(&skip)),
        (vec![], Some((10, 14, 3))),
        "{skip:?}"
    );
    assert_eq!(runs("skip"), "");
}

/// The workers of the runs planned after a time, once every job has had such a run.
async fn workers_after(fleet: &Fleet, jobs: &[String], since: i64) -> Vec<String> {
    wait_for("a run of every job", Duration::from_secs(60), async || {
        let records = fleet.all_records().await;
        let of = |name: &String| -> Vec<String> {
            let of = records.iter().filter(|r| r.get_str("jobName").is_ok_and(|job| job == name));
            let since = of.filter(|r| status(r) == "succeeded" && number(r, "planTime") > since);
            since.map(|r| r.get_str("worker").unwrap().to_owned()).collect()
        };
        let by_job: Vec<Vec<String>> = jobs.iter().map(of).collect();
        by_job.iter().all(|workers| !workers.is_empty()).then(|| by_job.concat())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_runs_on_workers_with_its_labels_and_moves_among_them_when_one_dies() {
    let Some(mut fleet) = Fleet::start("labels").await else { return };
    for (id, labels) in [("w1", "zone=a,gpu=yes"), ("w2", "zone=a"), ("w3", "zone=b")] {
        fleet.worker(id, &[TTL[0], ("CRON_WORKER_LABELS", labels)]).await;
    }
    let names: Vec<String> = (0..12).map(|n| format!("zone-a-{n}")).collect();
    for name in &names {
        let job =
            json!({"name": name, "command": "true", "cronExpr": "* * * * * * *", "selector": {"zone": "a"}});
        fleet.put(format!("/cron/jobs/{name}"), job.to_string()).await;
    }
    let nowhere = json!({"name": "nowhere", "command": "true", "cronExpr": "* * * * * * *",
        "selector": {"zone": "c"}, "startDeadlineSeconds": 1});
    fleet.put("/cron/jobs/nowhere", nowhere.to_string()).await;

    let workers = workers_after(&fleet, &names, 0).await;
    assert!(workers.iter().all(|id| id == "w1" || id == "w2"), "{workers:?}");
    assert!(["w1", "w2"].iter().all(|id| workers.iter().any(|worker| worker == id)), "the work is shared");

    fleet.workers[0].crash();
    wait_for("the end of its session", SOON, async || {
        fleet.get("/cron/workers/w1").await.is_none().then_some(())
    })
    .await;
    let workers = workers_after(&fleet, &names, now_ms()).await;
    assert!(workers.iter().all(|id| id == "w2"), "{workers:?}");

    let record = fleet.record("nowhere", |record| status(record) == "skipped").await;
    let skipped = record.get_document("skipped").unwrap();
    assert_eq!(
        (skipped.get_str("reason").unwrap(), skipped.get_str("selector").unwrap()),
        ("noWorker", "zone=c"),
        "{record}"
    );
    let range = match number(skipped, "count") {
        1 => String::new(),
        count => {
            let last = Timestamp::from_ms(number(skipped, "to"));
            format!(" ({count} fires, the last at {last})")
        }
    };
    assert!(record.get_str("err").unwrap().ends_with(&format!(": zone=c{range}")), "{record}");
    assert!(fleet.records("nowhere").await.iter().all(|record| status(record) == "skipped"));
}
