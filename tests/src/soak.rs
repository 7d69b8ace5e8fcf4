//! The soak: many fires on one worker (release programs), first on etcd with a MongoDB-protocol server, then on the embedded stores of
//! `local-dev`. Prints how large the stores become, and holds the number of fires against their records. The shell of the jobs is `/bin/true`:
//! the machine's time goes to claims and records.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::bench::{machine, release};
use anyhow::{Context, ensure};
use common::clock::{Stopwatch, sleep};
use common::domain::record::Record;
use common::run_log::embedded::EmbeddedRunLog;
use common::run_log::{RecordQuery, RunLog};
use futures::TryStreamExt;
use local_dev::native::ports::free_port;
use local_dev::native::process::{POLL, Process, get};
use local_dev::native::workspace;
use mongodb::bson::{Document, doc};
use serde_json::json;
use tests::fixtures::{Fleet, guard, http, number, status, wait_for};

/// The stores, as they are called.
const ETCD: &str = "etcd";
const EMBEDDED: &str = "embedded";
/// Every-second jobs when nothing else is said: so many fires a second.
const JOBS: u64 = 200;
/// Fires on each pair of stores when nothing else is said.
const FIRES: u64 = 100_000;
/// What the worker starts in the place of a shell.
const SHELL: (&str, &str) = ("CRON_SHELL", "/bin/true");
/// How often the sizes are printed.
const PRINT_EVERY: Duration = Duration::from_secs(20);
/// What is left to do when the jobs are gone is done in this time.
const REST: Duration = Duration::from_secs(300);
/// Records read at once from the embedded store.
const PAGE: u32 = 1000;

/// What the records say of one job.
#[derive(Default)]
struct Account {
    first: i64,
    last: i64,
    runs: i64,
    skipped: i64,
    /// Of the runs, those that were closed for their worker: what their records say of it, with their planned times.
    lost: Vec<(String, i64)>,
}

impl Account {
    fn add(
        &mut self,
        (from_ms, to_ms): (i64, i64),
        skipped: Option<i64>,
        status: &str,
        err: &str,
    ) -> anyhow::Result<()> {
        ensure!(["succeeded", "lost", "skipped"].contains(&status), "a run of `:` that {status}");
        if status == "lost" {
            self.lost.push((err.to_owned(), from_ms));
        }
        let fresh = self.runs + self.skipped == 0;
        self.first = if fresh { from_ms } else { self.first.min(from_ms) };
        self.last = self.last.max(to_ms);
        match skipped {
            Some(count) => self.skipped += count,
            None => self.runs += 1,
        }
        Ok(())
    }

    /// One record for each second from the first to the last, no more and no fewer.
    fn is_whole(&self) -> bool {
        (self.last - self.first) / 1000 + 1 == self.runs + self.skipped
    }
}

/// Runs it: `words` say how many fires, and how many a second.
///
/// # Errors
/// When something does not start, or fires and records differ.
pub async fn run(words: &[String]) -> anyhow::Result<()> {
    let number = |word: &String| word.parse::<u64>().with_context(|| format!("{word}: not a number"));
    let (stores, words) = match words.split_first() {
        Some((word, rest)) if [ETCD, EMBEDDED].contains(&word.as_str()) => (vec![word.as_str()], rest),
        _ => (vec![ETCD, EMBEDDED], words),
    };
    let (fires, jobs) = match words {
        [] => (FIRES, JOBS),
        [fires] => (number(fires)?, JOBS),
        [fires, jobs] => (number(fires)?, number(jobs)?),
        _ => anyhow::bail!(
            "soak takes the word {ETCD} or {EMBEDDED} or none, and two numbers: how many fires, and how many of them a second"
        ),
    };
    ensure!((1..=10_000).contains(&jobs), "{jobs} a second: wants 1 to 10000");
    release()?;
    let seconds = Duration::from_secs(fires / jobs);
    println!("{jobs} jobs, each every second, for {} s; {}", seconds.as_secs(), machine::load());
    if stores.contains(&ETCD) {
        on_etcd(jobs, seconds).await?;
    }
    if stores.contains(&EMBEDDED) {
        on_the_embedded_store(jobs, seconds).await?;
    }
    Ok(())
}

/// Where the release programs are.
fn built() -> PathBuf {
    workspace().join("target/release")
}

fn name(number: u64) -> String {
    format!("soak-{number}")
}

async fn on_etcd(jobs: u64, time: Duration) -> anyhow::Result<()> {
    // Without compaction of its own, so that it is the worker's doing that it stays small.
    let fleet = Fleet::start_with("soak", &["--auto-compaction-retention=0"]).await;
    let mut fleet = fleet.context("the servers are missing: run the tests once")?;
    fleet.worker_of(&built().join("worker"), "w1", &[SHELL]).await;
    println!("\netcd and MongoDB's protocol\n  s      fires   etcd MB  in use MB  worker MB");
    for number in 0..jobs {
        fleet.put_job(&name(number), ":", "* * * * * * *").await;
    }
    let started = Stopwatch::start();
    let mut kv = fleet.kv().await;
    while started.elapsed() < time {
        sleep(PRINT_EVERY.min(time.saturating_sub(started.elapsed()))).await;
        let room = kv.status().await.context("etcd's status")?;
        let metrics =
            http().get(format!("http://{}/metrics", fleet.workers[0].listen())).send().await?.text().await?;
        let fires = metrics.lines().find_map(|line| line.strip_prefix("fleetcron_lateness_seconds_count "));
        println!(
            "{:>5} {:>9} {:>9} {:>10} {:>10.0}",
            started.elapsed().as_secs(),
            fires.unwrap_or("?"),
            room.db_size() / 1_000_000,
            room.raft_used_db_size() / 1_000_000,
            machine::memory(fleet.workers[0].process().pid())?.now,
        );
    }
    fleet.delete_prefix("/cron/jobs/").await;
    // However far the store of records is behind: as long as ever fewer wait, they all come.
    let listen = fleet.workers[0].listen();
    let waiting = async || {
        let (_, metrics) = get(listen, "/metrics").await?;
        let line = metrics.lines().find_map(|line| line.strip_prefix("fleetcron_records_waiting "))?;
        line.parse::<u64>().ok()
    };
    let mut left = u64::MAX;
    while left > 0 {
        let before = left;
        left =
            wait_for("fewer records that wait", REST, async || waiting().await.filter(|now| *now < before))
                .await;
        sleep(POLL).await;
    }
    wait_for("no open runs", REST, async || fleet.keys("/cron/runs/").await.is_empty().then_some(())).await;
    let client = mongodb::Client::with_uri_str(fleet.mongo.url()).await?;
    let log = client.database("cron").collection::<Document>("log");
    let mut records = log.find(doc! {}).projection(doc! {"output": 0, "command": 0}).await?;
    let mut accounts = BTreeMap::<String, Account>::new();
    while let Some(record) = records.try_next().await? {
        let account = accounts.entry(record.get_str("jobName")?.to_owned()).or_default();
        let at = number(&record, "planTime");
        let (from, to, skipped) = match record.get_document("skipped") {
            Ok(range) => (number(range, "from"), number(range, "to"), Some(number(range, "count"))),
            Err(_none) => (at, at, None),
        };
        account.add((from, to), skipped, status(&record), record.get_str("err")?)?;
    }
    let conflicts = client.database("cron").collection::<Document>("log_conflicts");
    ensure!(conflicts.count_documents(doc! {}).await? == 0, "a fire has records of two claims");
    report(jobs, &accounts)
}

async fn on_the_embedded_store(jobs: u64, time: Duration) -> anyhow::Result<()> {
    let dir = tests::fixtures::TestDir::new("soak-embedded");
    let data = dir.path().join("data");
    std::fs::create_dir_all(&data).context("create its directory")?;
    // Else it would begin with jobs of its own.
    std::fs::write(data.join("samples-made"), "").context("mark the samples as made")?;
    let url = format!("127.0.0.1:{}", free_port()?);
    let mut command = Command::new(built().join("local-dev"));
    command.env("CRON_LISTEN", &url).env("CRON_DATA_DIR", &data).env(SHELL.0, SHELL.1).stdin(Stdio::null());
    let mut process =
        Process::start("local-dev", command, &dir.path().join("local-dev.log"), guard().as_ref())?;
    let client = http();
    wait_for("local-dev", REST, async || client.get(format!("http://{url}/job/list")).send().await.ok())
        .await;
    println!("\nthe embedded stores\n  s   store MB  records MB  process MB");
    for number in 0..jobs {
        let job = json!({"name": name(number), "command": ":", "cronExpr": "* * * * * * *"});
        let saved =
            client.post(format!("http://{url}/job/save")).form(&[("job", job.to_string())]).send().await?;
        ensure!(saved.status().is_success(), "save: {}", saved.text().await?);
    }
    let started = Stopwatch::start();
    while started.elapsed() < time {
        sleep(PRINT_EVERY.min(time.saturating_sub(started.elapsed()))).await;
        println!(
            "{:>5} {:>8} {:>11} {:>11.0}",
            started.elapsed().as_secs(),
            megabytes(&data, "kv"),
            megabytes(&data, "records"),
            machine::memory(process.pid())?.now,
        );
    }
    for number in 0..jobs {
        let form = [("name", name(number))];
        client.post(format!("http://{url}/job/delete")).form(&form).send().await?;
    }
    process.signal(rustix::process::Signal::TERM);
    wait_for("local-dev's end", REST, async || process.ended()).await;
    let run_log = EmbeddedRunLog::open(&data)?;
    let mut accounts = BTreeMap::<String, Account>::new();
    for number in 0..jobs {
        for skip in (0..).step_by(PAGE as usize) {
            let query = RecordQuery { job_name: name(number), skip, limit: PAGE, ..RecordQuery::default() };
            let page = run_log.list(&query).await?;
            for record in &page {
                add(accounts.entry(name(number)).or_default(), record)?;
            }
            if page.len() < PAGE as usize {
                break;
            }
        }
    }
    report(jobs, &accounts)
}

fn add(account: &mut Account, record: &Record) -> anyhow::Result<()> {
    let at = record.plan_time;
    let (from, to, skipped) = match &record.skipped {
        Some(range) => (range.from, range.to, Some(i64::try_from(range.count)?)),
        None => (at, at, None),
    };
    let status = record.status.map_or("", |status| status.as_str());
    account.add((from.ms(), to.ms()), skipped, status, &record.err)
}

fn report(jobs: u64, accounts: &BTreeMap<String, Account>) -> anyhow::Result<()> {
    let sum = |of: fn(&Account) -> i64| accounts.values().map(of).sum::<i64>();
    let lost = accounts.values().flat_map(|account| &account.lost);
    println!(
        "{} jobs: {} runs with a record ({} lost), {} fires skipped; {}",
        accounts.len(),
        sum(|account| account.runs),
        lost.clone().count(),
        sum(|account| account.skipped),
        machine::load()
    );
    let mut times = BTreeMap::<&str, BTreeSet<i64>>::new();
    for (why, at) in lost {
        times.entry(why).or_default().insert(*at);
    }
    for (why, times) in times {
        let (Some(first), Some(last)) = (times.first(), times.last()) else { continue };
        println!("{why}; planned for {} seconds from {first} to {last} ms", times.len());
    }
    for (job, account) in accounts {
        let (runs, skipped) = (account.runs, account.skipped);
        let seconds = (account.last - account.first) / 1000 + 1;
        ensure!(account.is_whole(), "{job}: {seconds} s, {runs} runs and {skipped} skipped");
    }
    ensure!(accounts.len() as u64 == jobs, "some jobs have no record");
    println!("every second of every job has exactly one record, or is in one of a range");
    Ok(())
}

/// Size of the files in a directory whose names begin so.
fn megabytes(dir: &Path, prefix: &str) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let ours = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    ours.filter_map(|entry| Some(entry.metadata().ok()?.len())).sum::<u64>() / 1_000_000
}
