//! What a worker runs does not outlive it, however it dies; and with a fence, not even its lease. Real workers, real signals.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::clock::sleep;
use local_dev::native::ports::free_port;
use local_dev::native::process::{Process, get};
use local_dev::native::provision::search;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tests::fixtures::{Fleet, SOON, TestDir, http, processes_of, program, site, skip, status, wait_for};

/// What a guardian is called.
const GUARDIAN: &[u8] = b"fleetcron-guardian\0";

/// The guardians that this process has started.
fn guardians_of(process: u32) -> Vec<i32> {
    processes(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let parent: u32 = stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()?;
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        (parent == process && line.starts_with(GUARDIAN)).then_some(())
    })
}

/// The word by which a guardian knows its worker's commands.
fn word_of(guardian: i32) -> String {
    let line = std::fs::read(format!("/proc/{guardian}/cmdline")).unwrap();
    let word = line.split(|byte| *byte == 0).nth(2).unwrap();
    String::from_utf8(word.to_vec()).unwrap()
}

/// Processes with this word in their environment.
fn marked(word: &str) -> Vec<i32> {
    let mark = format!("CRON_GUARDIAN={word}-").into_bytes();
    processes(|pid| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
        environment.split(|byte| *byte == 0).any(|entry| entry.starts_with(&mark)).then_some(())
    })
}

fn processes(is_meant: impl Fn(i32) -> Option<()>) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").unwrap();
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid| is_meant(*pid).is_some()).collect()
}

fn is_gone(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.map_or(true, |stat| stat.contains(") Z"))
}

/// A number of seconds that nobody else sleeps for.
fn nap(number: usize) -> String {
    format!("1000.{}{number}", std::process::id())
}

fn sleeps(nap: &str) -> bool {
    !processes_of(&["sleep", nap]).is_empty()
}

async fn all_sleep(naps: &[String]) {
    wait_for("all commands", SOON, async || naps.iter().all(|nap| sleeps(nap)).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_a_killed_worker_ran_is_left() {
    let Some(mut fleet) = Fleet::start("orphans").await else { return };
    fleet.worker("w1", &[("CRON_SESSION_TTL_SECONDS", "4")]).await;
    let naps: Vec<String> = (0..7).map(nap).collect();
    let up = fleet.dir.path().join("daemon");
    let commands = [
        format!("sleep {}", naps[0]),
        format!("bash -c 'bash -c \"sleep {} & sleep {}\" & wait'", naps[1], naps[2]),
        format!("sleep {} & exec env -i sleep {}", naps[3], naps[4]),
        // Exits, while what it has started goes on and has its output.
        format!("(trap '' HUP TERM INT; exec env -i sleep {}) & exit 3", naps[5]),
        format!("trap '' TERM HUP; sleep {}; :", naps[6]),
        // It leaves the group, on purpose.
        format!(
            "setsid bash -c '>{0}; while [ -e {0} ]; do sleep 0.1; done' </dev/null >/dev/null 2>&1 & sleep 1",
            up.display()
        ),
    ];
    for (number, command) in commands.iter().enumerate() {
        fleet.put_job(&format!("job-{number}"), command, "* * * * * * *").await;
    }
    all_sleep(&naps).await;
    wait_for("the daemon", SOON, async || up.exists().then_some(())).await;
    fleet.delete_prefix("/cron/jobs/").await; // so that no other worker begins them again
    let worker = fleet.workers[0].process().pid();
    let [guardian] = guardians_of(worker)[..] else { panic!("no guardian, or several") };
    let word = word_of(guardian);
    // A replacement knows what was begun before it.
    kill_process(Pid::from_raw(guardian).unwrap(), Signal::KILL).unwrap();
    let second = wait_for("another guardian", SOON, async || {
        guardians_of(worker).into_iter().find(|other| *other != guardian && !is_gone(*other))
    })
    .await;
    assert!(naps.iter().all(|nap| sleeps(nap)), "its guardian's death is nothing to a run");

    fleet.workers[0].crash();

    wait_for("the guardian's end", SOON, async || is_gone(second).then_some(())).await;
    wait_for("the end of all commands", SOON, async || (!naps.iter().any(|nap| sleeps(nap))).then_some(()))
        .await;
    assert_ne!(marked(&word), [0; 0], "what left its group on purpose stays");
    std::fs::remove_file(&up).unwrap();
    fleet.worker("w2", &[]).await;
    for number in 0..5 {
        let record = fleet.record(&format!("job-{number}"), |record| status(record) == "lost").await;
        assert_eq!(record.get_str("worker").unwrap(), "w1");
    }
}

/// As a process that is put into a container without a session of its own: its session and its group have no number in there.
#[test]
fn nothing_is_left_where_the_session_began_outside_of_the_namespace() {
    let name = "nothing_is_left_where_the_session_began_outside_of_the_namespace";
    let ours = std::env::current_exe().unwrap();
    if !rustix::process::geteuid().is_root() || search("unshare").is_none() {
        skip(name, "no root rights, or no unshare, for a pid namespace");
        return;
    }
    let mut inside = Command::new("unshare");
    inside.args(["--pid", "--fork", "--mount-proc"]).arg(ours);
    inside.args(["--exact", "nothing_that_a_killed_worker_ran_is_left", "--nocapture"]);
    assert!(inside.status().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_with_a_fence_is_gone_before_the_lease_of_a_frozen_worker() {
    let Some(mut fleet) = Fleet::start("fence").await else { return };
    fleet.worker("w1", &[]).await;
    let (fenced, plain) = (nap(1), nap(2));
    let begun = fleet.dir.path().join("begun");
    let command = format!("echo $CRON_RUN_ID >>{}; sleep {fenced}; :", begun.display());
    let job = json!({"name": "fenced", "command": command, "cronExpr": "* * * * * * *", "fence": true});
    fleet.put("/cron/jobs/fenced", job.to_string()).await;
    fleet.put_job("plain", &format!("sleep {plain}; :"), "* * * * * * *").await;
    all_sleep(&[fenced.clone(), plain.clone()]).await;
    let [first_plain] = processes_of(&["sleep", &plain])[..] else { panic!("one worker has one run") };
    let sessions = fleet.keys("/cron/sessions/").await;
    let [session] = &sessions[..] else { panic!("one worker has one session: {sessions:?}") };
    let first = std::fs::read_to_string(&begun).unwrap();

    fleet.workers[0].freeze();

    wait_for("the guardian", SOON, async || (!sleeps(&fenced)).then_some(())).await;
    let began = std::fs::read_to_string(&begun).unwrap();
    assert!(fleet.get(session).await.is_some(), "the lease is still there when the run is gone");
    assert_eq!(began, first, "and nobody has started the next");
    assert!(sleeps(&plain), "only a fence is a fence");
    fleet.worker("w2", &[]).await;
    wait_for("the next run, elsewhere", SOON, async || sleeps(&fenced).then_some(())).await;
    assert!(fleet.get(session).await.is_none());

    fleet.delete_prefix("/cron/jobs/").await;
    fleet.workers[0].thaw();
    let run_id = first.trim().to_owned();
    let of_first =
        |record: &mongodb::bson::Document| record.get_str("claim").is_ok_and(|claim| claim == run_id);
    let record = fleet.record("fenced", |record| of_first(record) && status(record) != "lost").await;
    let err = "signal: killed (fence: its worker's lease was about to end)";
    assert_eq!((status(&record), record.get_str("err").unwrap()), ("killed", err));
    wait_for("the other run's end: it was closed as lost", SOON, async || is_gone(first_plain).then_some(()))
        .await;
}

/// local-dev on the embedded stores, with jobs of a test's own.
struct Local {
    process: Process,
    url: String,
}

impl Local {
    async fn start(dir: &TestDir) -> Self {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port().unwrap()));
        let mut command = Command::new(program("local-dev").await);
        command
            .env("CRON_LISTEN", address.to_string())
            .env("CRON_DATA_DIR", dir.path().join("data"))
            .env("CRON_WORKERS", "2")
            .env("CRON_SESSION_TTL_SECONDS", "2");
        let mut process =
            Process::start("local-dev", command, &dir.path().join("log"), site(dir).guard.as_ref()).unwrap();
        process.ready(async || get(address, "/worker/list").await.is_some()).await.unwrap();
        Self { process, url: format!("http://{address}") }
    }

    async fn save(&self, name: &str, command: &str, jitter_seconds: u32) {
        let job = json!({"name": name, "command": command, "cronExpr": "* * * * * * *", "jitterSeconds": jitter_seconds});
        let save = http().post(format!("{}/job/save", self.url)).form(&[("job", job.to_string())]);
        assert_eq!(save.send().await.unwrap().status(), 200);
    }
}

fn lines(file: &Path) -> usize {
    std::fs::read_to_string(file).unwrap_or_default().lines().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_when_hundreds_of_runs_a_second_begin_and_end() {
    let dir = TestDir::new("orphans-of-many");
    let (begun, ended) = (dir.path().join("begun"), dir.path().join("ended"));
    let mut local = Local::start(&dir).await;
    for number in 0..200 {
        // One half is told apart by what it has in its environment, the other clears that at once and has no time for anything else.
        let command = match number % 2 {
            0 => format!("echo >>{}; sleep 0.3; echo >>{}", begun.display(), ended.display()),
            _ => format!(
                "exec env -i bash -c 'echo >>{}; sleep 0.3; echo >>{}'",
                begun.display(),
                ended.display()
            ),
        };
        local.save(&format!("short-{number}"), &command, number / 2 % 2).await;
    }
    let mut seen = BTreeSet::new();
    for round in 1..=6 {
        let before = lines(&begun);
        wait_for("runs", SOON, async || (lines(&begun) > before + 150 * round).then_some(())).await;
        let [guardian] = guardians_of(local.process.pid())[..] else { panic!("no guardian, or several") };
        let word = word_of(guardian);
        assert!(seen.insert(word.clone()), "each process has a word of its own");

        local.process.crash();

        wait_for("the guardian's end", SOON, async || is_gone(guardian).then_some(())).await;
        // Whatever has its SIGKILL does nothing any more, even if it is not gone yet.
        let at_its_end = (lines(&begun), lines(&ended));
        sleep(Duration::from_millis(500)).await; // longer than any of them takes
        assert_eq!((lines(&begun), lines(&ended)), at_its_end, "round {round}: something went on");
        assert_eq!(marked(&word), [0; 0], "round {round}");
        local = Local::start(&dir).await;
    }
    // Told to end, it leaves nothing either.
    let [guardian] = guardians_of(local.process.pid())[..] else { panic!("no guardian, or several") };
    local.process.signal(Signal::TERM);
    assert!(local.process.wait(SOON).await.unwrap().success());
    assert!(is_gone(guardian), "it has waited for its guardian");
}
