//! `cargo run -p tests -- bench [what…] [--seconds N] [--jobs N] [--workers N] [--shell PATH]`: measures the release programs on real stores, all
//! on this machine, and prints tables. The flags are those of `every-second`: seconds of planned times in a row, a row of one's own, and another
//! shell than bash; of `burst`: the same, without seconds; of `catch-up`: how long the store is away, and fires a second; of `search`: how many jobs have 10,000 records each.
//! Nothing here passes or fails: a figure depends on the machine, so the machine stands above it.

mod burst;
mod catch_up;
mod every_second;
mod failover;
mod figures;
mod fleet;
mod floor;
mod load;
pub(crate) mod machine;
mod schedules;
mod search;

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use local_dev::native::servers::without_cargo_variables;
use local_dev::native::{provision, workspace};
use tokio::signal::unix::{SignalKind, signal};

/// What can be measured, with what it is.
const BENCHES: [(&str, &str); 8] = [
    ("floor", "what the machine itself can do: shells started by a loop, without any store"),
    (
        "every-second",
        "lateness, fires missing or run twice, proposals and CPU time of jobs that are due every second",
    ),
    ("burst", "the largest number of jobs due in one second that all start within it"),
    ("failover", "from the kill -9 of one of two workers to the next starts of its jobs"),
    ("catch-up", "the store of records is away for a while: what waits then, and how fast it is stored"),
    ("load", "a worker's start with 100,000 and with a million jobs: time and memory"),
    ("search", "a job's history is read where ten million records are stored: pages, filters, a run"),
    ("schedules", "finding the next fire of a schedule, parsing and holding it; in this process"),
];

/// Numbers that are said in place of the usual ones.
#[derive(Clone, Debug, Default)]
struct Flags {
    jobs: Option<usize>,
    workers: Option<usize>,
    seconds: Option<usize>,
    shell: Option<PathBuf>,
}

/// Builds the programs, measures what the words name (nothing: all), and prints.
///
/// # Errors
/// A word is unknown, a program is missing or does not start, or a store does not answer.
pub async fn run(words: &[String]) -> anyhow::Result<()> {
    let (chosen, flags) = parse(words)?;
    if chosen == ["schedules"] {
        return schedules::measure(); // it needs no programs and no stores
    }
    release()?;
    let (etcd, mongo) = tokio::task::spawn_blocking(|| anyhow::Ok((provision::etcd()?, provision::mongo()?)))
        .await
        .context("get the stores")??;
    println!("{}", machine::describe(&etcd.origin, &mongo.origin)?);
    let mut interrupt = signal(SignalKind::interrupt()).context("listen to SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen to SIGTERM")?;
    for (name, what) in BENCHES.iter().filter(|(name, _)| chosen.contains(name)) {
        println!("\n## {name}: {what}\n");
        // Dropped in the middle, a fleet ends its servers.
        tokio::select! {
            measured = measure(name, &flags) => measured.with_context(|| (*name).to_owned())?,
            _ = interrupt.recv() => bail!("interrupted"),
            _ = terminate.recv() => bail!("told to end"),
        }
    }
    Ok(())
}

async fn measure(name: &str, flags: &Flags) -> anyhow::Result<()> {
    match name {
        "floor" => floor::measure(),
        "every-second" => every_second::measure(flags).await,
        "burst" => burst::measure(flags).await,
        "failover" => failover::measure().await,
        "catch-up" => catch_up::measure(flags).await,
        "schedules" => schedules::measure(),
        "search" => search::measure(flags).await,
        _ => load::measure().await,
    }
}

fn parse(words: &[String]) -> anyhow::Result<(Vec<&'static str>, Flags)> {
    let mut chosen = Vec::new();
    let mut flags = Flags::default();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if let Some((name, _)) = BENCHES.iter().find(|(name, _)| name == word) {
            chosen.push(*name);
            continue;
        }
        let names: Vec<&str> = BENCHES.iter().map(|(name, _)| *name).collect();
        let unknown =
            || format!("nothing is measured under the name {word:?}; there are: {}", names.join(", "));
        let flag = word.strip_prefix("--").with_context(unknown)?;
        if flag == "shell" {
            flags.shell = Some(words.next().context("--shell wants the path of a shell")?.into());
            continue;
        }
        let number = words.next().with_context(|| format!("{word} wants a number"))?;
        let number: usize = number.parse().with_context(|| format!("{word} {number}"))?;
        ensure!((1..=10_000).contains(&number), "{word} wants 1 to 10000");
        match flag {
            "seconds" => flags.seconds = Some(number),
            "jobs" => flags.jobs = Some(number),
            "workers" => flags.workers = Some(number),
            _ => bail!("{word} is no flag: see the top of tests/src/bench/mod.rs"),
        }
    }
    if chosen.is_empty() {
        chosen.extend(BENCHES.iter().map(|(name, _)| *name));
    }
    Ok((chosen, flags))
}

/// The programs as they are deployed: a debug build is no measure of anything.
pub(crate) fn release() -> anyhow::Result<()> {
    let mut build = Command::new("cargo");
    let built = without_cargo_variables(&mut build)
        .current_dir(workspace())
        .args(["build", "--locked", "--release", "-p", "worker", "-p", "local-dev"])
        .status()
        .context("run cargo")?;
    ensure!(built.success(), "the programs were not built");
    Ok(())
}

/// Waits until `probe` answers something.
///
/// # Errors
/// It did not within `limit`.
async fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut probe: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let waited = common::clock::Stopwatch::start();
    loop {
        if let Some(found) = probe().await? {
            return Ok(found);
        }
        ensure!(waited.elapsed() < limit, "waited {limit:?} in vain for {what}");
        common::clock::sleep(Duration::from_millis(20)).await;
    }
}
