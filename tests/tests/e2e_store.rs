//! End to end: what befalls a real etcd besides its absence.
//!
//! Without the servers each test says SKIPPED; `cargo run -p tests` provisions them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use tests::fixtures::{Counting, Fleet, SOON, now_ms, number, status, wait_for};

const SHORT_SESSIONS: [(&str, &str); 1] = [("CRON_SESSION_TTL_SECONDS", "4")];

/// Starts a fleet, or leaves the test (it has said why).
macro_rules! fleet {
    ($test:literal) => {
        match Fleet::start($test).await {
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

async fn all_ran_after(jobs: &[Counting], second: i64) {
    wait_for("every job's runs", SOON, async || {
        let after = |job: &Counting| job.seconds().last().is_some_and(|last| *last > second);
        jobs.iter().all(after).then_some(())
    })
    .await;
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
    all_ran_after(&jobs, 0).await;
    wait_for("the long run", SOON, async || out.exists().then_some(())).await;
    let saved = now_ms() / 1000;
    all_ran_after(&jobs, saved + 2).await;

    // The backup: the data directory of a stopped etcd.
    let (data, backup) = (fleet.dir.path().join("etcd"), fleet.dir.path().join("backup"));
    fleet.etcd.stop().await;
    copy_dir(&data, &backup);
    fleet.etcd.restart().await.unwrap();
    let backed_up = now_ms() / 1000;
    all_ran_after(&jobs, backed_up + 6).await; // fires that the backup knows nothing of

    fleet.etcd.stop().await;
    std::fs::remove_dir_all(&data).unwrap();
    copy_dir(&backup, &data);
    fleet.etcd.restart().await.unwrap();

    let restored = now_ms() / 1000;
    all_ran_after(&jobs, restored + 8).await;
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
