//! Jobs that are due in every second: how late they start, whether any is missing or runs twice, and what they cost beside the commands.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use ::tests::fixtures::{now_ms, number, status};
use anyhow::Context;
use common::clock::{Clock, SystemClock, Timestamp, sleep};
use common::domain::record::Status;
use mongodb::bson::Document;

use super::figures::{Spread, head, row, short};
use super::fleet::{Fleet, NewJob, Stamp, Used, starts};
use super::{Flags, machine, wait_for};

/// Rows when nothing else is said.
const JOBS: &[usize] = &[100, 200, 500, 1000];
const WORKERS: &[usize] = &[1, 2];
/// Seconds of planned times that are counted, unless another number is said.
const SECONDS: usize = 30;
/// After every job's first fire, these seconds pass before fires are counted.
const WARM_UP_SECONDS: i64 = 5;
/// And these after the last counted fire, before the jobs are deleted: so late a fire still starts.
pub(super) const LAST_STARTS: Duration = Duration::from_secs(6);
/// By then every job has fired, or the machine is too slow for so many.
const FIRST_FIRES_LIMIT: Duration = Duration::from_secs(60);

/// What the jobs run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Runs {
    /// `true`; lateness is that of the records, which have whole milliseconds.
    True,
    /// A stamp; lateness is by the command's own clock, so that the start of the shell is in it.
    Stamp,
}

/// Measures and prints.
///
/// # Errors
/// A server does not start or answer.
pub(super) async fn measure(flags: &Flags) -> anyhow::Result<()> {
    let seconds = flags.seconds.unwrap_or(SECONDS);
    println!(
        "Each row: a new fleet, all jobs due at the same millisecond of each second, {seconds} s of planned times after the warm-up. `true`: \
         startTime − planTime of the records; stamp: the first thing that the command does is to write down its own clock, so that starting \
         the shell is in it. CPU: utime and stime of the processes, without their children; proposals: etcd's own count.\n"
    );
    head(&[
        "jobs",
        "workers",
        "command",
        "due",
        "run",
        "skipped",
        "missing",
        "twice",
        "p50 ms",
        "p99 ms",
        "max ms",
        "proposals per 1,000",
        "worker CPU s per 1,000",
        "etcd CPU s per 1,000",
        "records' store CPU s per 1,000",
        "load before",
    ]);
    for &workers in flags.workers.as_ref().map_or(WORKERS, std::slice::from_ref) {
        for &jobs in flags.jobs.as_ref().map_or(JOBS, std::slice::from_ref) {
            // Only bash tells the time without a further process.
            let all = [Runs::True, Runs::Stamp];
            for runs in if flags.shell.is_none() { &all[..] } else { &all[..1] } {
                let load = machine::load();
                let mut cells = one(jobs, workers, *runs, seconds, flags.shell.clone()).await?;
                cells.push(load);
                row(&cells);
            }
        }
    }
    Ok(())
}

async fn one(
    jobs: usize,
    workers: usize,
    runs: Runs,
    seconds: usize,
    shell: Option<PathBuf>,
) -> anyhow::Result<Vec<String>> {
    let mut fleet = Fleet::start("every-second").await?;
    fleet.shell = shell;
    fleet.workers(workers).await?;
    let command = match runs {
        Runs::True => "true".to_owned(),
        Runs::Stamp => Stamp::command(&fleet.stamps_file()),
    };
    let new = |n: usize| NewJob::every_second(format!("every-second-{n:04}"), command.clone());
    fleet.save_jobs((0..jobs).map(new)).await?;
    wait_for("the first fire of every job", FIRST_FIRES_LIMIT, async || {
        let mut started = 0.0;
        for worker in &fleet.workers {
            started += worker.metric("fleetcron_lateness_seconds_count").await?.unwrap_or_default();
        }
        Ok((started >= jobs as f64).then_some(()))
    })
    .await?;
    let from = (now_ms() / 1000 + 1 + WARM_UP_SECONDS) * 1000;
    let to = from + i64::try_from(seconds).context("a length of time")? * 1000;
    SystemClock.sleep_until(Timestamp::from_ms(from)).await;
    let before = fleet.used().await?;
    SystemClock.sleep_until(Timestamp::from_ms(to)).await;
    let after = fleet.used().await?;
    sleep(LAST_STARTS).await;
    fleet.delete_jobs().await?;
    let records = fleet.records().await?;
    let counted = Window { from, to }.count(&records)?;
    let due = jobs * seconds;
    let run = counted.run.len();
    let (lateness, twice) = match runs {
        Runs::True => (counted.lateness, "–".to_owned()),
        Runs::Stamp => {
            let mut stamps = fleet.stamps()?;
            stamps.retain(|stamp| (from..to).contains(&stamp.plan_time));
            let twice = starts(&stamps).values().filter(|number| **number > 1).count();
            (Spread::of(stamps.iter().map(Stamp::lateness)), twice.to_string())
        }
    };
    let mut cells = vec![
        jobs.to_string(),
        workers.to_string(),
        if runs == Runs::True { "`true`" } else { "stamp" }.to_owned(),
        due.to_string(),
        run.to_string(),
        counted.skipped.difference(&counted.run).count().to_string(),
        (due - counted.run.union(&counted.skipped).count().min(due)).to_string(),
        twice,
    ];
    cells.extend(lateness.columns());
    let per_thousand =
        |figure: fn(&Used) -> f64| short((figure(&after) - figure(&before)) * 1000.0 / run.max(1) as f64);
    cells.extend([
        per_thousand(|used| used.proposals),
        per_thousand(|used| used.workers),
        per_thousand(|used| used.etcd),
        per_thousand(|used| used.mongo),
    ]);
    Ok(cells)
}

/// The planned times that are counted: from the first, and before the last.
pub(super) struct Window {
    /// In ms since 1970.
    pub(super) from: i64,
    /// In ms since 1970.
    pub(super) to: i64,
}

/// A fire: its job and its planned time.
pub(super) type Fire = (String, i64);

/// What records say of the fires in a window.
pub(super) struct Counted {
    /// Fires that were claimed to be run, whatever came of it.
    pub(super) run: BTreeSet<Fire>,
    /// Fires that were let go with a record.
    pub(super) skipped: BTreeSet<Fire>,
    /// Of those that were run, by their records, in ms.
    pub(super) lateness: Spread,
}

impl Window {
    /// Counts fires of every-second jobs, each once, whatever the records.
    ///
    /// # Errors
    /// A record lacks a field.
    pub(super) fn count(&self, records: &[Document]) -> anyhow::Result<Counted> {
        let (mut run, mut skipped, mut lateness) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
        for record in records {
            let job = record.get_str("jobName").context("a record without its job")?;
            if status(record) == Status::Skipped.as_str() {
                let range = record.get_document("skipped").context("a skip that does not say what")?;
                let from = number(range, "from").max(self.from);
                let to = number(range, "to").min(self.to - 1);
                skipped.extend((from..=to).step_by(1000).map(|plan_time| (job.to_owned(), plan_time)));
            } else if let plan_time = number(record, "planTime")
                && (self.from..self.to).contains(&plan_time)
            {
                run.insert((job.to_owned(), plan_time));
                if status(record) != Status::Lost.as_str() {
                    lateness.push((number(record, "startTime") - plan_time) as f64);
                }
            }
        }
        Ok(Counted { run, skipped, lateness: Spread::of(lateness) })
    }
}
