//! End to end: what befalls a real etcd besides its absence.
//!
//! Without the servers each test says SKIPPED; `cargo run -p tests` provisions them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use common::clock::sleep;
use etcd_client::{AlarmAction, AlarmOptions, AlarmType, CompactionOptions, Permission};
use local_dev::native::process::get;
use tests::account::{Account, all_running, finish, ran_after};
use tests::fixtures::{Counting, Fleet, SOON, now_ms, number, status, wait_for};
use tests::line::Line;

const SHORT_SESSIONS: [(&str, &str); 1] = [("CRON_SESSION_TTL_SECONDS", "4")];

/// Starts a fleet, or leaves the test (it has said why).
macro_rules! fleet {
    ($test:literal) => {
        fleet!($test, &[])
    };
    ($test:literal, $etcd:expr) => {
        match Fleet::start_with($test, $etcd).await {
            Some(fleet) => fleet,
            None => return,
        }
    };
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn log_of(fleet: &mut Fleet, worker: usize) -> String {
    std::fs::read_to_string(fleet.workers[worker].process().log()).unwrap()
}

/// No second of a job ran twice.
fn assert_none_twice(jobs: &[Counting]) {
    for job in jobs {
        let mut times: BTreeMap<i64, usize> = BTreeMap::new();
        for second in job.seconds() {
            *times.entry(second).or_default() += 1;
        }
        let twice: Vec<_> = times.iter().filter(|(_, times)| **times > 1).collect();
        assert!(twice.is_empty(), "{} ran more than once at {twice:?}", job.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_notice_an_etcd_that_was_restored_from_a_backup_and_run_nothing_again() {
    let mut fleet = fleet!("etcd-restored");
    fleet.worker("w1", &SHORT_SESSIONS).await;
    fleet.worker("w2", &SHORT_SESSIONS).await;
    let jobs = fleet.put_counting_jobs(5).await;
    // A run that goes on through all of it.
    let out = fleet.dir.path().join("long");
    let command = format!("echo x >> '{0}'; sleep 40; echo done >> '{0}'", out.display());
    fleet.put_job("long", &command, "* * * * * * *").await;
    ran_after(&jobs, 0).await;
    wait_for("the long run", SOON, async || out.exists().then_some(())).await;
    let saved = now_ms() / 1000;
    ran_after(&jobs, saved + 2).await;

    // The backup: the data directory of an etcd that does not run.
    let (data, backup) = (fleet.dir.path().join("etcd"), fleet.dir.path().join("backup"));
    fleet.etcd.kill(); // told to end, it would take longer than a lease while watches are open
    copy_dir(&data, &backup);
    fleet.etcd.restart().await.unwrap();
    let backed_up = now_ms() / 1000;
    ran_after(&jobs, backed_up + 6).await; // fires that the backup knows nothing of

    fleet.etcd.kill();
    std::fs::remove_dir_all(&data).unwrap();
    copy_dir(&backup, &data);
    fleet.etcd.restart().await.unwrap();

    let restored = now_ms() / 1000;
    ran_after(&jobs, restored + 8).await;
    for worker in 0..2 {
        let log = log_of(&mut fleet, worker);
        assert!(log.contains("the store was put back to an earlier state"), "worker {worker}: {log}");
        assert!(fleet.workers[worker].process().ended().is_none());
    }
    fleet.delete_prefix("/cron/jobs/long").await; // or it would run again at its end
    let long = fleet.record("long", |record| status(record) == "succeeded").await;
    assert!(number(&long, "planTime") / 1000 <= backed_up, "it went on: {long}");
    fleet.delete_prefix("/cron/jobs/").await;
    wait_for("no open runs", Duration::from_secs(90), async || {
        fleet.keys("/cron/runs/").await.is_empty().then_some(())
    })
    .await;
    assert_none_twice(&jobs);
    let runs = std::fs::read_to_string(&out).unwrap();
    assert_eq!(runs.matches("done").count(), 1, "no other long run: {runs}");

    // Every run has its record, and none has two claims.
    let records = fleet.all_records().await;
    for job in &jobs {
        let of_job =
            records.iter().filter(|record| record.get_str("jobName").is_ok_and(|name| name == job.name));
        let recorded: BTreeSet<i64> = of_job
            .filter(|record| status(record) == "succeeded")
            .map(|record| number(record, "planTime") / 1000)
            .collect();
        let missing: Vec<i64> = job.seconds().into_iter().filter(|s| !recorded.contains(s)).collect();
        assert!(missing.is_empty(), "{}: no record of {missing:?}", job.name);
    }
    for worker in 0..2 {
        assert!(!log_of(&mut fleet, worker).contains("it was run twice"), "worker {worker}");
    }
}

/// Lets the jobs go, and holds files, records and the seconds since `first` against each other.
async fn assert_every_second_accounted(fleet: &mut Fleet, jobs: &[Counting], first: i64) {
    let last = finish(fleet, jobs).await;
    let records = fleet.all_records().await;
    for job in jobs {
        Account::of(job, &records).assert_accounted(first..=last, job);
    }
    for worker in 0..fleet.workers.len() {
        let log = log_of(fleet, worker);
        assert!(!log.contains("it was run twice"), "worker {worker}: {log}");
        assert!(fleet.workers[worker].process().ended().is_none(), "worker {worker} lives");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_was_down_while_etcd_was_put_back_runs_nothing_again() {
    let mut fleet = fleet!("etcd-restored-worker-down");
    fleet.worker("w1", &SHORT_SESSIONS).await;
    let jobs = fleet.put_counting_jobs(5).await;
    ran_after(&jobs, 0).await;
    let (data, backup) = (fleet.dir.path().join("etcd"), fleet.dir.path().join("backup"));
    fleet.etcd.kill();
    copy_dir(&data, &backup);
    fleet.etcd.restart().await.unwrap();
    let backed_up = now_ms() / 1000;
    ran_after(&jobs, backed_up + 6).await; // fires that the backup knows nothing of

    fleet.workers[0].crash();
    fleet.etcd.kill();
    std::fs::remove_dir_all(&data).unwrap();
    copy_dir(&backup, &data);
    fleet.etcd.restart().await.unwrap();
    fleet.workers[0].restart().await.unwrap();

    let restored = now_ms() / 1000;
    ran_after(&jobs, restored + 5).await;
    let log = log_of(&mut fleet, 0);
    assert!(log.contains("the store was put back to an earlier state"), "{log}");
    assert_none_twice(&jobs);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_etcd_is_full_everything_waits_and_afterwards_goes_on() {
    let mut fleet = fleet!("etcd-full", &["--quota-backend-bytes=16777216"]);
    fleet.worker("w1", &SHORT_SESSIONS).await;
    fleet.worker("w2", &SHORT_SESSIONS).await;
    let jobs = fleet.put_counting_jobs(5).await;
    let first = all_running(&jobs).await;
    let sessions = fleet.keys("/cron/sessions/").await;
    // A run that begins before and ends while etcd is full.
    let out = fleet.dir.path().join("long");
    let command = format!("echo >> '{}'; sleep 8; echo done", out.display());
    fleet.put_job("long", &command, "* * * * * * *").await;
    wait_for("the long run", SOON, async || out.exists().then_some(())).await;
    fleet.delete_prefix("/cron/jobs/long").await;

    // Many at once, so that some are on their way when the quota is crossed.
    let filler = "x".repeat(1_000_000);
    let kv = fleet.kv().await;
    let fill = |n: u32| {
        let (mut kv, filler) = (kv.clone(), filler.clone());
        async move { kv.put(format!("/fill/{n}"), filler, None).await }
    };
    // etcd compares the quota with what is on its disk, where a burst of writes comes a moment later.
    let mut filled = Vec::new();
    while !filled.iter().any(Result::is_err) {
        assert!(filled.len() < 400, "etcd is not full");
        let from = u32::try_from(filled.len()).unwrap();
        filled.extend(futures::future::join_all((from..from + 40).map(fill)).await);
    }
    let refused: Vec<usize> = (0..filled.len()).filter(|n| filled[*n].is_err()).collect();
    let there = fleet.keys("/fill/").await;
    let done_all_the_same = refused.iter().filter(|n| there.contains(&format!("/fill/{n}"))).count();
    let puts = filled.len();
    println!(
        "of {puts} puts etcd refused {}, and did {done_all_the_same} of these all the same",
        refused.len()
    );

    let record = fleet.record("long", |record| status(record) == "succeeded").await;
    assert_eq!(record.get_str("output").unwrap(), "done\n");
    wait_for("both say that the store is full", SOON, async || {
        (0..2).all(|worker| log_of(&mut fleet, worker).contains("the store is full")).then_some(())
    })
    .await;
    sleep(Duration::from_secs(10)).await; // longer than the leases: that they are renewed is what is tried
    let (_, metrics) = get(fleet.workers[0].listen(), "/metrics").await.unwrap();
    assert!(metrics.contains("\nfleetcron_store_full 1\n"), "{metrics}");
    assert_eq!(fleet.keys("/cron/sessions/").await, sessions, "no session was lost");

    // What its operator does.
    fleet.delete_prefix("/fill/").await;
    let mut kv = fleet.kv().await;
    let revision = kv.get("x", None).await.unwrap().header().unwrap().revision();
    kv.compact(revision, Some(CompactionOptions::new().with_physical())).await.unwrap();
    kv.defragment().await.unwrap();
    let alarms = kv.alarm(AlarmAction::Get, AlarmType::Nospace, None).await.unwrap();
    for alarm in alarms.alarms() {
        let mut member = AlarmOptions::new();
        member.with_member(alarm.member_id());
        kv.alarm(AlarmAction::Deactivate, AlarmType::Nospace, Some(member)).await.unwrap();
    }

    let back = now_ms() / 1000;
    ran_after(&jobs, back + 5).await;
    assert_eq!(fleet.keys("/cron/sessions/").await, sessions, "nor was one lost by coming back");
    assert_every_second_accounted(&mut fleet, &jobs, first).await;
    assert!(fleet.keys("/cron/lock/").await.is_empty(), "no lock is left behind");
    for worker in 0..2 {
        let log = log_of(&mut fleet, worker);
        let lines = log.lines().filter(|line| line.contains("WARN") || line.contains("ERROR")).count();
        println!("worker {worker} said {lines} lines");
        assert!(lines < 100, "{log}");
    }
}

/// Makes etcd ask for users.
async fn enable_users(fleet: &mut Fleet) {
    let mut kv = fleet.kv().await;
    for name in ["root", "worker"] {
        kv.user_add(name, "secret", None).await.unwrap();
        kv.role_add(name).await.unwrap();
        kv.user_grant_role(name, name).await.unwrap();
    }
    let all = Permission::read_write("/cron/").with_range_end("/cron0");
    kv.role_grant_permission("worker", all).await.unwrap();
    kv.auth_enable().await.unwrap();
    fleet.credentials = Some(("root", "secret"));
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_expire_are_renewed_and_what_somebody_leaves_in_a_session_is_closed() {
    const USER: [(&str, &str); 3] = [
        ("CRON_SESSION_TTL_SECONDS", "4"),
        ("CRON_ETCD_USERNAME", "worker"),
        ("CRON_ETCD_PASSWORD", "secret"),
    ];
    let mut fleet = fleet!("etcd-tokens", &["--auth-token-ttl=3"]);
    enable_users(&mut fleet).await;
    fleet.worker("w1", &USER).await;
    let jobs = fleet.put_counting_jobs(5).await;
    let first = all_running(&jobs).await;
    // By other hands: a lock and an open run of which the worker knows nothing, in its session.
    let sessions = fleet.keys("/cron/sessions/").await;
    let sid = sessions[0].strip_prefix("/cron/sessions/").unwrap();
    let lease = i64::from_str_radix(sid, 16).unwrap();
    let mut kv = fleet.kv().await;
    let leased = etcd_client::PutOptions::new().with_lease(lease);
    kv.put("/cron/lock/nobody", format!("{{\"v\":1,\"sid\":\"{sid}\",\"runId\":\"x\"}}"), Some(leased))
        .await
        .unwrap();
    let open = serde_json::json!({"v": 1, "runs": [{
        "runId": "x", "job": "nobody", "planTime": 1_000, "attempt": 1, "scheduleTime": 1_000, "worker": "w1",
        "command": ":", "trigger": "schedule",
    }]});
    fleet.put(format!("/cron/runs/{sid}/00000000ffffffff"), open.to_string()).await;

    let record = wait_for("the record of what nobody knows", Duration::from_secs(120), async || {
        fleet.records("nobody").await.pop()
    })
    .await;
    assert_eq!(status(&record), "lost", "{record}");
    wait_for("the lock's end", SOON, async || fleet.get("/cron/lock/nobody").await.is_none().then_some(()))
        .await;
    // Some ten tokens have expired since, and the session lives.
    ran_after(&jobs, now_ms() / 1000).await;
    assert_eq!(fleet.keys("/cron/sessions/").await, sessions);
    // An etcd that starts again knows no token of before.
    fleet.etcd.restart().await.unwrap();
    let back = now_ms() / 1000;
    ran_after(&jobs, back + 5).await;
    assert_every_second_accounted(&mut fleet, &jobs, first).await;
    let log = log_of(&mut fleet, 0);
    assert_eq!(log.matches("it knows nothing of it").count(), 2, "nothing else was found: {log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_missed_changes_which_were_compacted_lists_again() {
    let mut fleet = fleet!("etcd-compacted");
    let line = Line::to(fleet.etcd.address()).await;
    let through = format!("http://{}", line.address());
    fleet.worker("w1", &[("CRON_ETCD_ENDPOINTS", &through)]).await;
    let mut jobs = fleet.put_counting_jobs(5).await;
    let first = all_running(&jobs).await;

    line.fall_silent();
    // What happens now the worker's watches do not see, and cannot be told afterwards.
    let gone = jobs.remove(0);
    fleet.delete_prefix(&format!("/cron/jobs/{}", gone.name)).await;
    let out = fleet.dir.path().join("new");
    fleet.put_job("new", &format!("echo >> '{}'", out.display()), "* * * * * * *").await;
    let mut kv = fleet.kv().await;
    let revision = kv.get("x", None).await.unwrap().header().unwrap().revision();
    kv.compact(revision, Some(CompactionOptions::new().with_physical())).await.unwrap();

    wait_for("the new job's run", SOON, async || out.exists().then_some(())).await;
    let seen = now_ms() / 1000;
    ran_after(&jobs, seen + 3).await;
    assert!(gone.seconds().last().is_none_or(|last| *last <= seen), "the deleted job runs no more");
    let log = log_of(&mut fleet, 0);
    assert!(log.contains("history is gone; listing again"), "{log}");
    assert_every_second_accounted(&mut fleet, &jobs, first).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_minute_without_etcd_costs_the_fires_of_that_time_and_nothing_else() {
    let mut fleet = fleet!("etcd-away");
    fleet.worker("w1", &[]).await;
    fleet.worker("w2", &[]).await;
    let jobs = fleet.put_counting_jobs(5).await;
    let first = all_running(&jobs).await;
    let out = fleet.dir.path().join("long");
    fleet
        .put_job("long", &format!("echo >> '{}'; sleep 20; echo done", out.display()), "* * * * * * *")
        .await;
    wait_for("the long run", SOON, async || out.exists().then_some(())).await;
    fleet.delete_prefix("/cron/jobs/long").await;
    let before: Vec<usize> = (0..2).map(|worker| log_of(&mut fleet, worker).lines().count()).collect();

    fleet.etcd.kill();
    sleep(Duration::from_secs(30)).await; // the absence itself is what is tried
    let during: Vec<String> = (0..2).map(|worker| log_of(&mut fleet, worker)).collect();
    for worker in &fleet.workers {
        let (code, why) = get(worker.listen(), "/readyz").await.unwrap();
        assert_eq!((code, why.as_str()), (503, "no session\n"));
        let (_, metrics) = get(worker.listen(), "/metrics").await.unwrap();
        assert!(metrics.contains("\nfleetcron_session 0\n"), "{metrics}");
    }
    fleet.etcd.restart().await.unwrap();

    let back = now_ms() / 1000;
    ran_after(&jobs, back + 5).await;
    // Its run went on through all of it. Whether its record says so depends on who comes first once etcd is back: its worker or a sweep.
    let long = fleet.record("long", |record| status(record) != "skipped").await;
    assert!(["succeeded", "killed", "lost"].contains(&status(&long)), "{long}");
    assert_every_second_accounted(&mut fleet, &jobs, first).await;
    for (worker, log) in during.iter().enumerate() {
        let lines = log.lines().count() - before[worker];
        println!("worker {worker} said {lines} lines while etcd was away");
        assert!(lines < 100, "{log}");
        assert!(log.contains("session lost"), "{log}");
    }
}
