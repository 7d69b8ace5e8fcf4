//! End to end on real parts: etcd, a MongoDB-protocol server, worker processes, the functions under `cargo lambda watch`.
//!
//! Without these parts each test says SKIPPED; `cargo run -p tests` provisions them.

use std::collections::BTreeSet;
use std::time::Duration;

use common::clock::sleep;
use local_dev::native::ports::free_port;
use mongodb::bson::Document;
use serde_json::{Value, json};
use tests::account::{Account, all_running, finish, ran_after};
use tests::fixtures::{Fleet, SOON, http, now_ms, number, processes_of, program, status, wait_for};

const MULTI: [(&str, &str); 1] = [("CRON_SESSION_TTL_SECONDS", "4")];

/// Starts a fleet, or leaves the test (it has said why).
macro_rules! fleet {
    ($test:literal) => {
        match Fleet::start($test).await {
            Some(fleet) => fleet,
            None => return,
        }
    };
}

/// Starts the functions, or leaves the test (it has said why).
macro_rules! watch {
    ($fleet:ident, $test:literal) => {
        match $fleet.watch($test).await {
            Some(url) => url,
            None => return,
        }
    };
}

/// The envelope of an answer, its status checked.
async fn answer(request: reqwest::RequestBuilder, expected: u16) -> Value {
    let response = request.send().await.unwrap();
    let (status, text) = (response.status().as_u16(), response.text().await.unwrap());
    assert_eq!(status, expected, "{text}");
    let body: Value = serde_json::from_str(&text).unwrap();
    match expected {
        200 => {
            assert_eq!(body["errno"], 0, "{body}");
            assert_eq!(body["msg"], "success", "{body}");
        }
        _ => {
            assert!(body["errno"].as_i64().unwrap() < 0, "{body}");
            assert_eq!(body["data"], Value::Null, "{body}");
            assert_ne!(body["msg"], "", "{body}");
        }
    }
    body
}

fn save(url: &str, job: &Value) -> reqwest::RequestBuilder {
    http().post(format!("{url}/job/save")).form(&[("job", job.to_string())])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_saved_by_form_post_is_fired_by_workers_and_read_back_from_its_log() {
    let mut fleet = fleet!("main-job");
    let url = watch!(fleet, "main-job");
    fleet.worker("w1", &[]).await;
    fleet.worker("w2", &[]).await;

    let ids = answer(http().get(format!("{url}/worker/list")), 200).await["data"].clone();
    assert_eq!(ids, json!(["w1", "w2"]));

    let job = json!({"name": "hello", "command": "echo out; echo err >&2", "cronExpr": "*/2 * * * * * *"});
    let before = now_ms();
    assert_eq!(answer(save(&url, &job), 200).await["data"], Value::Null, "there was no such job");
    let list = answer(http().get(format!("{url}/job/list")), 200).await["data"].clone();
    assert_eq!(list, json!([job]));

    let log = format!("{url}/job/log?name=hello&skip=0&limit=10");
    let records = wait_for("three records", SOON, async || {
        let data = answer(http().get(&log), 200).await["data"].clone();
        let records = data.as_array().unwrap().clone();
        (records.len() >= 3).then_some(records)
    })
    .await;
    let times: Vec<i64> = records.iter().map(|r| r["startTime"].as_i64().unwrap()).collect();
    assert!(times.is_sorted_by(|newer, older| newer >= older), "newest first: {times:?}");
    for record in &records {
        assert_eq!(record["jobName"], "hello");
        assert_eq!(record["command"], job["command"]);
        assert_eq!(record["err"], "");
        assert_eq!(record["output"], "out\nerr\n");
        let time = |field: &str| record[field].as_i64().unwrap();
        let plan = time("planTime");
        assert_eq!(plan % 2000, 0, "every second second: {record}");
        assert!(plan > before && plan < before + 60_000, "milliseconds since 1970: {record}");
        assert!(time("startTime") >= plan, "no run starts before its time: {record}");
        assert!(time("endTime") >= time("startTime"), "{record}");
        assert!((time("scheduleTime") - plan).abs() < 30_000, "{record}");
        assert!(["w1", "w2"].contains(&record["worker"].as_str().unwrap()), "{record}");
    }
    let plans: BTreeSet<i64> = records.iter().map(|r| r["planTime"].as_i64().unwrap()).collect();
    assert_eq!(plans.len(), records.len(), "each time once");

    let previous =
        answer(save(&url, &json!({"name": "hello", "command": "true", "cronExpr": "@yearly"})), 200).await;
    assert_eq!(previous["data"], job, "the job that was replaced");
    let delete = http().post(format!("{url}/job/delete"));
    let deleted = answer(delete.form(&[("name", "hello")]), 200).await;
    assert_eq!(deleted["data"]["command"], "true", "the job that was deleted");
    assert_eq!(answer(http().get(format!("{url}/job/list")), 200).await["data"], json!([]));

    let page = http().get(format!("{url}/")).send().await.unwrap();
    assert_eq!(page.status(), 200);
    assert!(page.text().await.unwrap().to_lowercase().contains("<html"), "the console is a page");
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_every_second_jobs_on_three_workers_run_once_in_each_second_of_a_minute() {
    let mut fleet = fleet!("fifty-jobs");
    for id in ["w1", "w2", "w3"] {
        fleet.worker(id, &[]).await;
    }
    let jobs = fleet.put_counting_jobs(50).await;
    let first = all_running(&jobs).await;
    wait_for("a minute", Duration::from_secs(90), async || (now_ms() / 1000 > first + 61).then_some(()))
        .await;
    let last = finish(&fleet, &jobs).await;
    assert!(last - first >= 59, "a minute was watched");

    let records = fleet.all_records().await;
    for job in &jobs {
        let account = Account::of(job, &records);
        account.assert_ran_in_each(first..=last, job);
        for second in first..=last {
            assert_eq!(account.ran.get(&second).map(String::as_str), Some("succeeded"), "{}", job.name);
        }
    }
    let workers: BTreeSet<&str> = records.iter().filter_map(|r| r.get_str("worker").ok()).collect();
    assert_eq!(workers, BTreeSet::from(["w1", "w2", "w3"]), "the work is shared");
    let late: Vec<i64> = records
        .iter()
        .filter(|r| status(r) == "succeeded")
        .map(|r| number(r, "startTime") - number(r, "planTime"))
        .collect();
    assert!(late.iter().all(|ms| *ms >= 0), "no run starts before its time");
    println!(
        "{} runs; late by {} ms in the mean, at most {} ms",
        late.len(),
        late.iter().sum::<i64>() / i64::try_from(late.len()).unwrap(),
        late.iter().max().unwrap()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_in_the_middle_doubles_nothing_and_every_second_is_accounted_for() {
    let mut fleet = fleet!("kill-worker");
    for id in ["w1", "w2", "w3"] {
        fleet.worker(id, &MULTI).await;
    }
    let jobs = fleet.put_counting_jobs(50).await;
    let first = all_running(&jobs).await;
    let middle = first + 10;
    wait_for("some seconds", SOON, async || (now_ms() / 1000 > middle).then_some(())).await;
    fleet.workers[1].crash();
    let killed = now_ms() / 1000;
    // All jobs run again, also those of the dead worker, and for a while.
    ran_after(&jobs, killed + 15).await;
    let last = finish(&fleet, &jobs).await;

    let records = wait_for("the sweep of the dead session", Duration::from_secs(90), async || {
        let records = fleet.all_records().await;
        let complete = jobs.iter().all(|job| {
            let account = Account::of(job, &records);
            account.runs.keys().all(|second| account.ran.contains_key(second))
        });
        complete.then_some(records)
    })
    .await;
    for job in &jobs {
        let account = Account::of(job, &records);
        account.assert_consistent(job);
        for second in first..=last {
            let accounted = account.ran.contains_key(&second) || account.is_skipped(second);
            assert!(
                accounted,
                "{}: nothing says what became of second {second} (killed at {killed})",
                job.name
            );
        }
    }
    assert!(fleet.get("/cron/workers/w2").await.is_none(), "the dead worker is out of the fleet");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_takes_the_grandchild_too() {
    let mut fleet = fleet!("kill-grandchild");
    let url = watch!(fleet, "kill-grandchild");
    fleet.worker("w1", &[]).await;
    // Numbers that nobody else sleeps for.
    let (child, grandchild) =
        (format!("1000.{}1", std::process::id()), format!("1000.{}2", std::process::id()));
    let command = format!("bash -c 'echo started; sleep {grandchild} & sleep {child}'");
    let sleeping = || [&child, &grandchild].map(|time| processes_of(&["sleep", time]).len());
    answer(save(&url, &json!({"name": "family", "command": command, "cronExpr": "* * * * * * *"})), 200)
        .await;
    wait_for("child and grandchild", SOON, async || (sleeping() == [1, 1]).then_some(())).await;
    // So that the next second does not start it again.
    let delete = http().post(format!("{url}/job/delete"));
    answer(delete.form(&[("name", "family")]), 200).await;

    let kill = http().post(format!("{url}/job/kill"));
    answer(kill.form(&[("name", "family")]), 200).await;

    wait_for("the end of the whole group", SOON, async || (sleeping() == [0, 0]).then_some(())).await;
    let record = fleet.record("family", |record| status(record) == "killed").await;
    assert_eq!(record.get_str("err").unwrap(), "signal: terminated");
    assert_eq!(record.get_str("output").unwrap(), "started\n");
    // Nobody starts it again, and nothing stays locked.
    wait_for("no lock", SOON, async || fleet.get("/cron/lock/family").await.is_none().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_told_to_end_finishes_its_runs_first() {
    let mut fleet = fleet!("drain");
    fleet.worker("w1", &[]).await;
    let out = fleet.dir.path().join("out");
    let command = format!("touch '{0}.started'; sleep 3; echo done > '{0}'; echo finished", out.display());
    fleet.put_job("slow", &command, "* * * * * * *").await;
    wait_for("the run", SOON, async || out.with_extension("started").exists().then_some(())).await;

    fleet.workers[0].drain();

    wait_for("the registration's end", SOON, async || {
        fleet.get("/cron/workers/w1").await.is_none().then_some(())
    })
    .await;
    assert!(!out.exists(), "it left the fleet before its run ended, so that others take over");
    let status_code = fleet.workers[0].process().wait(SOON).await.unwrap();
    assert!(status_code.success(), "{status_code}");
    assert!(out.exists(), "the run was finished");
    let records = fleet.records("slow").await;
    let runs: Vec<&Document> = records.iter().filter(|r| status(r) != "skipped").collect();
    assert_eq!(runs.len(), 1, "{records:?}");
    assert_eq!((status(runs[0]), runs[0].get_str("output").unwrap()), ("succeeded", "finished\n"));
    assert!(fleet.keys("/cron/sessions/").await.is_empty(), "the session was ended, not left to expire");
    assert!(fleet.keys("/cron/lock/").await.is_empty());
    assert!(fleet.keys("/cron/runs/").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_worker_kills_what_runs_longer_than_it_may_wait() {
    let mut fleet = fleet!("drain-limit");
    fleet.worker("w1", &[("CRON_DRAIN_SECONDS", "1")]).await;
    let time = format!("1000.{}4", std::process::id());
    fleet.put_job("endless", &format!("echo started; sleep {time}"), "* * * * * * *").await;
    wait_for("the run", SOON, async || (!processes_of(&["sleep", &time]).is_empty()).then_some(())).await;

    fleet.workers[0].drain();

    let status_code = fleet.workers[0].process().wait(SOON).await.unwrap();
    assert!(status_code.success(), "{status_code}");
    let record = fleet.record("endless", |record| status(record) == "killed").await;
    assert_eq!(record.get_str("output").unwrap(), "started\n");
    assert!(processes_of(&["sleep", &time]).is_empty());
    assert!(fleet.keys("/cron/runs/").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_seed_writes_into_etcd_is_understood() {
    let mut fleet = fleet!("seed");
    let url = watch!(fleet, "seed");
    // Before the worker starts, and after: from the list, and from the watch.
    for (key, value) in [
        ("not-json", "not json"),
        ("list", "[]"),
        ("empty", ""),
        ("no-fields", "{}"),
        ("no-schedule", r#"{"name":"no-schedule","command":"true"}"#),
        ("bad-schedule", r#"{"name":"bad-schedule","command":"true","cronExpr":"61 * * * *"}"#),
        ("never", r#"{"name":"never","command":"true","cronExpr":"0 0 30 2 *"}"#),
        ("past", r#"{"name":"past","command":"true","cronExpr":"0 0 0 1 1 * 1999"}"#),
        ("option", r#"{"name":"option","command":"true","cronExpr":"* * * * * * *","newer":true}"#),
        ("other-name", r#"{"name":"another","command":"true","cronExpr":"* * * * * * *"}"#),
    ] {
        fleet.put(format!("/cron/jobs/{key}"), value).await;
    }
    fleet.put(b"/cron/jobs/\xff\xfe".to_vec(), "{}").await;
    fleet.worker("w1", &[]).await;
    fleet.put("/cron/jobs/later-not-json", "{").await;
    fleet.put("/cron/killer/no-such-job", "").await;
    fleet.put_job("good", "echo fine", "*/2 * * * * * *").await;
    fleet.record("good", |record| status(record) == "succeeded").await;

    // A seed worker: an empty value, on a lease.
    fleet.put_leased("/cron/workers/10.0.0.9", "", 600).await;
    let ids = answer(http().get(format!("{url}/worker/list")), 200).await["data"].clone();
    assert_eq!(ids, json!(["10.0.0.9", "w1"]));
    let seen = now_ms();
    fleet
        .record("good", |record| status(record) == "succeeded" && number(record, "planTime") > seen + 2000)
        .await;

    // The seed's kill: an empty value with a lease of one second.
    let time = format!("1000.{}3", std::process::id());
    fleet.put_job("long", &format!("sleep {time}"), "* * * * * * *").await;
    wait_for("the long run", SOON, async || (!processes_of(&["sleep", &time]).is_empty()).then_some(()))
        .await;
    fleet.kv().await.delete("/cron/jobs/long", None).await.unwrap();
    fleet.put_leased("/cron/killer/long", "", 1).await;
    let record = fleet.record("long", |record| status(record) == "killed").await;
    assert_eq!(record.get_str("err").unwrap(), "signal: terminated");
    wait_for("the end of the run", SOON, async || processes_of(&["sleep", &time]).is_empty().then_some(()))
        .await;

    let others = fleet.all_records().await;
    let names: BTreeSet<&str> = others.iter().filter_map(|r| r.get_str("jobName").ok()).collect();
    assert_eq!(names, BTreeSet::from(["good", "long"]), "nothing else ran");
    assert!(fleet.get("/cron/jobs/not-json").await.is_some(), "what is not understood is left alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_come_back_by_themselves_after_etcd_was_restarted() {
    let mut fleet = fleet!("etcd-restart");
    fleet.worker("w1", &MULTI).await;
    fleet.worker("w2", &MULTI).await;
    let jobs = fleet.put_counting_jobs(5).await;
    let first = all_running(&jobs).await;
    wait_for("some seconds", SOON, async || (now_ms() / 1000 > first + 3).then_some(())).await;

    fleet.etcd.kill();
    sleep(Duration::from_secs(6)).await; // longer than the sessions' leases: the absence itself is what is tried
    fleet.etcd.restart().await.unwrap();

    let back = now_ms() / 1000;
    ran_after(&jobs, back + 5).await;
    // And once more, frozen: connections stay, answers do not come.
    fleet.etcd.freeze();
    sleep(Duration::from_secs(6)).await;
    fleet.etcd.thaw();
    let back = now_ms() / 1000;
    ran_after(&jobs, back + 5).await;
    wait_for("both registrations", SOON, async || {
        (fleet.keys("/cron/workers/").await.len() == 2).then_some(())
    })
    .await;
    let last = finish(&fleet, &jobs).await;
    let records = fleet.all_records().await;
    for job in &jobs {
        Account::of(job, &records).assert_accounted(first..=last, job);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fires_go_on_while_mongodb_is_away_and_every_record_arrives_once() {
    let mut fleet = fleet!("mongodb-down");
    fleet.worker("w1", &[]).await;
    fleet.worker("w2", &[]).await;
    let jobs = fleet.put_counting_jobs(5).await;
    let first = all_running(&jobs).await;

    fleet.mongo.kill();
    let down = now_ms() / 1000;
    ran_after(&jobs, down + 8).await;
    fleet.mongo.restart().await.unwrap();

    let last = finish(&fleet, &jobs).await;
    let records = fleet.all_records().await;
    for job in &jobs {
        Account::of(job, &records).assert_ran_in_each(first..=last, job);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_says_503_while_a_store_is_away_and_works_again_afterwards() {
    let mut fleet = fleet!("api-stores-down");
    let url = watch!(fleet, "api-stores-down");
    let job = json!({"name": "j", "command": "true", "cronExpr": "@daily"});
    let list = || http().get(format!("{url}/job/list"));
    let log = || http().get(format!("{url}/job/log?name=j"));
    answer(save(&url, &job), 200).await;
    answer(log(), 200).await;

    fleet.etcd.kill();
    answer(list(), 503).await;
    answer(save(&url, &job), 503).await;
    answer(http().get(format!("{url}/worker/list")), 503).await;
    answer(log(), 200).await; // it opens no etcd
    fleet.etcd.restart().await.unwrap();
    assert_eq!(answer(list(), 200).await["data"], json!([job]), "the next call works");
    assert_eq!(answer(save(&url, &job), 200).await["data"], job);

    fleet.etcd.freeze();
    answer(list(), 503).await;
    fleet.etcd.thaw();
    answer(list(), 200).await;

    fleet.mongo.kill();
    answer(log(), 503).await;
    answer(list(), 200).await; // it opens no MongoDB
    fleet.mongo.restart().await.unwrap();
    assert_eq!(answer(log(), 200).await["data"], json!([]), "the next call works");

    fleet.mongo.freeze();
    answer(log(), 503).await;
    fleet.mongo.thaw();
    answer(log(), 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_native_stack_is_one_command_and_ends_as_one() {
    let fleet = fleet!("stack");
    let port = free_port().unwrap();
    let program = program("local-dev").await;
    let mut command = std::process::Command::new(&program);
    command
        .arg("stack")
        .env("CRON_LISTEN", format!("127.0.0.1:{port}"))
        .env("CRON_DATA_DIR", fleet.dir.path())
        .current_dir(fleet.dir.path());
    let mut stack = fleet.site.start("stack", command).unwrap();
    let url = format!("http://127.0.0.1:{port}");
    wait_for("two workers", Duration::from_secs(300), async || {
        if let Some(status) = stack.ended() {
            panic!("the stack ended ({status}): {}", stack.tail());
        }
        let answer = http().get(format!("{url}/worker/list")).send().await.ok()?;
        let body: Value = answer.json().await.ok()?;
        (body["data"] == json!(["worker-1", "worker-2"])).then_some(())
    })
    .await;
    let out = fleet.dir.path().join("out");
    let job = json!({"name": "j", "command": format!("echo x >> '{}'", out.display()), "cronExpr": "* * * * * * *"});
    answer(save(&url, &job), 200).await;
    wait_for("a run", SOON, async || out.exists().then_some(())).await;
    // Busy now: the second one says so in one line.
    let second = std::process::Command::new(&program)
        .arg("stack")
        .env("CRON_LISTEN", format!("127.0.0.1:{port}"))
        .current_dir(fleet.dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && said.trim().lines().count() == 1 && said.contains("busy"), "{said}");

    let family = descendants(stack.pid());
    assert!(family.len() >= 6, "guard, etcd, mongo, watch and two workers: {family:?}");
    stack.signal(rustix::process::Signal::INT);
    let ended = stack.wait(Duration::from_secs(60)).await.unwrap();
    assert!(ended.success(), "{ended}: {}", stack.tail());
    for pid in family {
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "{pid} was left behind");
    }
}

/// The processes that a process has started, and those that they have.
fn descendants(pid: u32) -> Vec<u32> {
    // Each thread has a list of those that it started.
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten();
    let lists =
        threads.filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("children")).ok());
    let mut found: Vec<u32> = lists
        .flat_map(|list| list.split_whitespace().filter_map(|child| child.parse().ok()).collect::<Vec<_>>())
        .collect();
    for child in found.clone() {
        found.extend(descendants(child));
    }
    found
}
