//! What programs do that lack something, where no other test has it: file descriptors, and stores that answer quickly. What needs it fails
//! with a word or takes longer, all else goes on, and all is well by itself afterwards. ARCHITECTURE.md, "Degradation", has the table.
//!
//! Without etcd and a MongoDB-protocol server the tests of workers say SKIPPED; `cargo run -p tests` provisions them.

use std::net::SocketAddr;
use std::time::Duration;

use common::clock::Stopwatch;
use local_dev::native::process::{Process, get};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use serde_json::{Value, json};
use tests::account::{all_running, assert_nothing_lost, ran_after};
use tests::chaos::link::{Link, Passing};
use tests::embedded::Embedded;
use tests::fixtures::{Fleet, SOON, http, now_ms, number, status, wait_for};

/// So much later both stores get what is sent to them, and so much later what they answer arrives.
const SLOWLY: Duration = Duration::from_millis(150);
/// What the system says, and what records say.
const WORDS: &str = "Too many open files";
/// Standard input, output and error: every further one is refused.
const STANDARD: u64 = 3;
/// A call that takes so long is not going to be answered.
const IMPATIENT: Duration = Duration::from_secs(5);
/// The API's server tries so often in a second to take a connection that it is refused, and no more.
const TRIES_A_SECOND: u64 = 10;

/// Lets a process open no further file, and returns its limits as they were.
fn take(process: &Process) -> (Pid, Rlimit) {
    let pid = Pid::from_raw(process.pid().cast_signed()).unwrap();
    let none = Rlimit { current: Some(STANDARD), maximum: getrlimit(Resource::Nofile).maximum };
    (pid, prlimit(Some(pid), Resource::Nofile, none).unwrap())
}

fn give_back((pid, before): (Pid, Rlimit)) {
    prlimit(Some(pid), Resource::Nofile, before).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_without_descriptors_fails_its_runs_with_a_word_and_goes_on_when_it_has_some() {
    let Some(mut fleet) = Fleet::start("degraded-worker").await else { return };
    let listen = fleet.worker("w1", &[]).await.listen();
    let jobs = fleet.put_counting_jobs(4).await;
    let first = all_running(&jobs).await;
    let sessions = fleet.keys("/cron/sessions/").await;

    let taken = take(fleet.workers[0].process());
    for job in &jobs {
        // Stored while there are none: the lines to both stores are open.
        let failed = fleet.record(&job.name, |record| status(record) == "failed").await;
        assert!(failed.get_str("err").unwrap().contains(WORDS), "{failed}");
    }
    give_back(taken);
    let back = now_ms() / 1000;
    ran_after(&jobs, back).await;
    let (code, why) = get(listen, "/readyz").await.unwrap();
    assert_eq!(code, 200, "{why}");
    assert_eq!(fleet.keys("/cron/sessions/").await, sessions, "it kept its session");

    assert_nothing_lost(&fleet, &jobs, first).await;
    let worker = fleet.workers[0].process();
    assert!(worker.ended().is_none());
    let log = std::fs::read_to_string(worker.log()).unwrap();
    assert!(!log.contains("panicked"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn stores_that_are_slow_cost_no_fire_no_session_and_no_record() {
    let Some(mut fleet) = Fleet::start("degraded-slow").await else { return };
    let (etcd, mongo) =
        (Link::to(fleet.etcd.address()).await.unwrap(), Link::to(fleet.mongo.address()).await.unwrap());
    let through = |url: String, server: SocketAddr, link: &Link| {
        url.replace(&server.to_string(), &link.address().to_string())
    };
    let etcd_url = through(fleet.etcd.url(), fleet.etcd.address(), &etcd);
    let mongo_url = through(fleet.mongo.url(), fleet.mongo.address(), &mongo);
    assert!(etcd_url != fleet.etcd.url() && mongo_url != fleet.mongo.url());
    let settings = [("CRON_ETCD_ENDPOINTS", etcd_url.as_str()), ("CRON_MONGODB_URI", mongo_url.as_str())];
    let listen = fleet.worker("w1", &settings).await.listen();
    let jobs = fleet.put_counting_jobs(4).await;
    let first = all_running(&jobs).await;
    let sessions = fleet.keys("/cron/sessions/").await;

    etcd.set(Passing::Slow(SLOWLY));
    mongo.set(Passing::Slow(SLOWLY));
    let slow = now_ms() / 1000;
    ran_after(&jobs, slow + 8).await;
    let (code, why) = get(listen, "/readyz").await.unwrap();
    assert_eq!(code, 200, "{why}");
    // Their records come while it lasts.
    let seen = slow * 1000 + 2000;
    for job in &jobs {
        fleet
            .record(&job.name, |record| status(record) == "succeeded" && number(record, "planTime") > seen)
            .await;
    }
    etcd.set(Passing::Open);
    mongo.set(Passing::Open);
    // What was on its way in the last slow second is decided: a job that is deleted before that owes nothing.
    let back = now_ms() / 1000;
    ran_after(&jobs, back + 1).await;

    assert_eq!(fleet.keys("/cron/sessions/").await, sessions, "it kept its session");
    assert_nothing_lost(&fleet, &jobs, first).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn local_dev_without_descriptors_answers_those_that_are_there_and_others_when_it_has_some() {
    let mut api = Embedded::start("degraded-api", &[]).await;
    let (process, url) = (&mut api.process, &api.url);
    let http = http();
    // A client may open a connection although it has one: while there are no descriptors nobody would answer on that. Then it asks again.
    let answer = async |request: reqwest::RequestBuilder| {
        let answer = request.timeout(IMPATIENT).send().await.ok()?;
        let code = answer.status().as_u16();
        Some((code, answer.json::<Value>().await.ok()?))
    };
    let save = async |command: &str| {
        let job = json!({"name": "each-second", "command": command, "cronExpr": "* * * * * * *"});
        wait_for("an answer", SOON, async || answer(http.post(format!("{url}/job/save")).json(&job)).await)
            .await
    };
    let records = async |wanted: &str| {
        let (_, body) = answer(http.get(format!("{url}/job/log?name=each-second&limit=200"))).await?;
        let records = body["data"].as_array().cloned().unwrap_or_default();
        Some(records.into_iter().filter(|record| record["status"] == wanted).collect::<Vec<_>>())
    };
    let (code, saved) = save("true").await;
    assert_eq!(code, 200, "{saved}");
    wait_for("a run", SOON, async || records("succeeded").await?.pop()).await;

    let (taken, since) = (take(process), Stopwatch::start());
    // The client's connection is open. What the stores need they have open, too.
    let failed = wait_for("a run that fails", SOON, async || records("failed").await?.pop()).await;
    assert!(failed["err"].as_str().unwrap().contains(WORDS), "{failed}");
    let (code, saved) = save("echo").await;
    assert_eq!(code, 200, "{saved}");
    // A new one is not refused: it waits in the system's queue.
    let waiting = tokio::spawn(tests::fixtures::http().get(format!("{url}/job/list")).send());
    let refused = || {
        let log = std::fs::read_to_string(process.log()).unwrap();
        (log.matches("no connection could be accepted").count() as u64, log)
    };
    wait_for("the server to be refused", SOON, async || (refused().0 > 0).then_some(())).await;
    give_back(taken);
    let (tries, log) = refused();
    assert!(
        tries <= TRIES_A_SECOND * (since.elapsed() + Duration::from_secs(1)).as_secs().max(1),
        "{tries}: {log}"
    );
    assert_eq!(waiting.await.unwrap().unwrap().status(), 200, "who waited is answered");
    wait_for("a run of the new command", SOON, async || {
        records("succeeded").await?.into_iter().find(|record| record["command"] == "echo").map(|_| ())
    })
    .await;
    let (_, log) = refused();
    assert!(!log.contains("panicked"), "{log}");
    assert!(process.ended().is_none());
}
