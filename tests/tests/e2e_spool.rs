//! Records while MongoDB is away: on the worker's disk, through a kill -9, and no more of them than there is room for.
//!
//! Without etcd and a MongoDB-protocol server each test says SKIPPED; `cargo run -p tests` provisions them.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use common::clock::sleep;
use local_dev::native::process::get;
use local_dev::native::provision::search;
use tests::account::{Account, all_running, assert_nothing_lost, finish, ran_after};
use tests::fixtures::{Fleet, SOON, now_ms, program, skip, status, wait_for};

const SETTINGS: [(&str, &str); 1] = [("CRON_SESSION_TTL_SECONDS", "4")];

macro_rules! fleet {
    ($test:literal) => {
        match Fleet::start($test).await {
            Some(fleet) => fleet,
            None => return,
        }
    };
}

/// Two workers; MongoDB hangs, one of them is killed, the other closes what that one has left open as `lost`, and then it comes back with its
/// disk.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_while_mongodb_hangs_brings_the_true_records_when_it_is_back() {
    let mut fleet = fleet!("spool-killed");
    fleet.worker("w1", &SETTINGS).await;
    fleet.worker("w2", &SETTINGS).await;
    let jobs = fleet.put_counting_jobs(8).await;
    let first = all_running(&jobs).await;

    fleet.mongo.freeze();
    let frozen = now_ms() / 1000;
    ran_after(&jobs, frozen + 4).await;
    fleet.workers[0].crash();
    let killed = now_ms() / 1000;
    // The other one sweeps when the session has ended, and stores what it has of both, once MongoDB answers.
    ran_after(&jobs, killed + 6).await;
    fleet.mongo.thaw();
    let lost = wait_for("records of lost runs", SOON, async || {
        let records = fleet.all_records().await;
        Some(records.iter().filter(|record| status(record) == "lost").count()).filter(|lost| *lost > 0)
    })
    .await;
    fleet.workers[0].restart().await.unwrap();
    let back = now_ms() / 1000;
    ran_after(&jobs, back + 2).await;

    let last = finish(&fleet, &jobs).await;
    let records = fleet.all_records().await;
    let mut still_lost = 0;
    for job in &jobs {
        let account = Account::of(job, &records);
        account.assert_consistent(job);
        account.assert_accounted(first..=last, job);
        for (second, status) in account.ran.iter().filter(|(_, status)| *status == "lost") {
            // What was going, or just over, or just claimed, when it was killed.
            assert!(
                (killed - 1..=killed + 1).contains(second),
                "{}: {status} at {second}, killed at {killed}",
                job.name
            );
            still_lost += 1;
        }
    }
    println!("{lost} runs were lost before the worker came back, {still_lost} are");
    assert!(still_lost < lost, "the worker had none of {lost} runs on its disk");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_runs_while_mongodb_is_stopped_have_each_their_record_afterwards() {
    let mut fleet = fleet!("spool-many");
    fleet.worker("w1", &SETTINGS).await;
    let jobs = fleet.put_counting_jobs(60).await;
    let first = all_running(&jobs).await;

    fleet.mongo.kill();
    let down = now_ms() / 1000;
    ran_after(&jobs, down + 8).await;
    fleet.mongo.restart().await.unwrap();
    let back = now_ms() / 1000;
    ran_after(&jobs, back + 3).await;

    assert_nothing_lost(&fleet, &jobs, first).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spool_that_is_full_stops_claims_says_so_and_loses_nothing() {
    let mut fleet = fleet!("spool-full");
    let settings = [SETTINGS[0], ("CRON_SPOOL_MAX_BYTES", "1048576")];
    let listen = fleet.worker("w1", &settings).await.listen();
    let ready = async |expected: u16| {
        wait_for(&format!("/readyz to say {expected}"), SOON, async || {
            get(listen, "/readyz").await.filter(|(status, _)| *status == expected)
        })
        .await
        .1
    };
    ready(200).await;
    fleet.mongo.kill();
    for number in 0..4 {
        let command = "head -c 60000 /dev/zero | tr '\\0' x";
        fleet.put_job(&format!("loud{number}"), command, "* * * * * * *").await;
    }
    let why = ready(507).await;
    assert!(why.contains("nothing is claimed"), "{why}");
    let (_, metrics) = get(listen, "/metrics").await.unwrap();
    assert!(metrics.contains("\nfleetcron_records_full 1\n"), "{metrics}");
    // What was going has its record on disk all the same, and then nothing comes any more.
    let waiting = async || {
        let (_, metrics) = get(listen, "/metrics").await?;
        let line = metrics.lines().find(|line| line.starts_with("fleetcron_records_waiting "))?.to_owned();
        Some(line)
    };
    let before = wait_for("nothing to be claimed", SOON, async || {
        let before = waiting().await?;
        sleep(Duration::from_secs(3)).await;
        (waiting().await? == before).then_some(before)
    })
    .await;
    fleet.mongo.restart().await.unwrap();
    ready(200).await;
    let number: usize = before.rsplit_once(' ').unwrap().1.parse().unwrap();
    assert!(number > 10, "{before}");
    wait_for("all records", SOON, async || {
        let records = fleet.all_records().await;
        let ran = records.iter().filter(|record| status(record) == "succeeded").count();
        (ran > number).then_some(())
    })
    .await;
    let records = fleet.all_records().await;
    assert!(!records.iter().any(|record| status(record) == "lost"), "{records:?}");
}

/// A disk of two megabytes that somebody else fills: records go from memory to MongoDB, and without that either nothing new begins.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_is_survived_with_mongodb_and_stops_claims_without_it() {
    let test = "spool-disk";
    if !rustix::process::geteuid().is_root() || search("unshare").is_none() {
        skip(test, "no root rights, or no unshare, to mount a small disk");
        return;
    }
    let mut fleet = fleet!("spool-disk");
    // The disk is mounted for this worker alone, and goes with it.
    let wrapper = fleet.dir.path().join("worker-on-a-small-disk");
    let mount = "mkdir -p \"$CRON_DATA_DIR\" && mount -t tmpfs -o size=2m tmpfs \"$CRON_DATA_DIR\" && exec \"$0\" \"$@\"";
    let worker = program("worker").await;
    let script = format!(
        "#!/bin/sh\nexec unshare --mount --propagation private sh -c '{mount}' '{}' \"$@\"\n",
        worker.display()
    );
    std::fs::write(&wrapper, script).unwrap();
    std::fs::set_permissions(&wrapper, std::fs::Permissions::from_mode(0o755)).unwrap();
    // More than the disk has: it is the disk that says no.
    let settings = [SETTINGS[0], ("CRON_SPOOL_MAX_BYTES", "104857600")];
    let worker = fleet.worker_of(&wrapper, "w1", &settings).await;
    let listen = worker.listen();
    let pid = worker.process().pid();
    let environment = std::fs::read_to_string(format!("/proc/{pid}/environ")).unwrap();
    let data = environment.split('\0').find_map(|entry| entry.strip_prefix("CRON_DATA_DIR=")).unwrap();
    let filler = format!("/proc/{pid}/root{data}/filler");
    let says = async |wanted: &str| {
        wait_for(&format!("the worker to say {wanted}"), SOON, async || {
            get(listen, "/metrics").await.filter(|(_, text)| text.contains(&format!("\n{wanted}\n")))
        })
        .await;
    };
    let jobs = fleet.put_counting_jobs(4).await;
    let first = all_running(&jobs).await;
    says("fleetcron_spool_fault 0").await;

    let full = std::fs::write(&filler, vec![0; 4 << 20]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    says("fleetcron_spool_fault 1").await;
    ran_after(&jobs, now_ms() / 1000 + 2).await; // MongoDB takes them
    fleet.mongo.kill();
    says("fleetcron_records_full 1").await;
    let (status_code, why) = get(listen, "/readyz").await.unwrap();
    assert_eq!(status_code, 507, "{why}");
    fleet.mongo.restart().await.unwrap();
    says("fleetcron_records_full 0").await;
    ran_after(&jobs, now_ms() / 1000 + 1).await;
    std::fs::remove_file(&filler).unwrap();
    says("fleetcron_spool_fault 0").await;
    ran_after(&jobs, now_ms() / 1000 + 1).await;

    assert_nothing_lost(&fleet, &jobs, first).await;
}
