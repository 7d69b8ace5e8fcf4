//! One of two workers is killed (SIGKILL): how long until the other starts its jobs, and whether any fire is unaccounted for.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ::tests::fixtures::now_ms;
use anyhow::Context;
use common::clock::{Clock, SystemClock, Timestamp, sleep};

use super::every_second::Window;
use super::figures::{Spread, head, row};
use super::fleet::{Fleet, NewJob, Stamp, starts};
use super::machine;

/// Jobs, each due every second, shared by both.
const JOBS: usize = 100;
/// Kills, each at another part of a second and of the session's renewals.
const KILLS: i64 = 5;
/// Before a kill all is as usual for so long, in ms.
const USUAL_MS: i64 = 8_000;
/// What follows a kill is over by then, with the default session: it ends, and misfires of up to a minute are settled.
const OVER: Duration = Duration::from_secs(30);

/// Measures and prints.
///
/// # Errors
/// A server does not start or answer.
pub(super) async fn measure() -> anyhow::Result<()> {
    println!(
        "{JOBS} every-second jobs on two workers, default session. After each kill, for each job that the killed worker had: the time to its \
         next start (by the commands' own clocks), whatever its planned time. Fires of all {JOBS} jobs from 5 s before the kill to 20 s after \
         it: run, let go with a `skipped` record, lost with the worker (`lost` record and no trace of a start), unaccounted for, started twice.\n"
    );
    head(&[
        "kill",
        "its jobs",
        "p50 ms",
        "p99 ms",
        "max ms",
        "due",
        "run",
        "skipped",
        "lost",
        "unaccounted for",
        "twice",
        "load before",
    ]);
    let mut all = Vec::new();
    for kill in 0..KILLS {
        let (gaps, mut cells) = one(kill).await?;
        all.extend(gaps);
        cells.insert(0, (kill + 1).to_string());
        row(&cells);
    }
    let all = Spread::of(all);
    let [p50, p99, max] = all.columns();
    println!("\nall {} jobs of the killed workers: p50 {p50} ms, p99 {p99} ms, max {max} ms", all.count());
    Ok(())
}

/// One kill; for each job of the killed worker the ms to its next start, and the row.
async fn one(kill: i64) -> anyhow::Result<(Vec<f64>, Vec<String>)> {
    let load = machine::load();
    let mut fleet = Fleet::start("failover").await?;
    fleet.workers(2).await?;
    let command = Stamp::command(&fleet.stamps_file());
    let new = |n: usize| NewJob::every_second(format!("failover-{n:03}"), command.clone());
    fleet.save_jobs((0..JOBS).map(new)).await?;
    // Between two fires, shortly before one, right after one, …
    let kill_at = (now_ms() / 1000) * 1000 + USUAL_MS + kill * 1000 * 3 + kill * 1000 / KILLS;
    SystemClock.sleep_until(Timestamp::from_ms(kill_at)).await;
    let victim = fleet.workers.first_mut().context("two workers were started")?;
    let pid = victim.process.pid();
    victim.process.crash();
    let killed_at = now_ms() as f64;
    sleep(OVER).await;
    fleet.delete_jobs().await?;

    let window = Window { from: kill_at / 1000 * 1000 - 5_000, to: kill_at / 1000 * 1000 + 20_000 };
    let mut stamps = fleet.stamps()?;
    let its_jobs: BTreeSet<String> =
        stamps.iter().filter(|stamp| stamp.worker == pid).map(|stamp| stamp.job.clone()).collect();
    let mut next: BTreeMap<&str, f64> = BTreeMap::new();
    for stamp in stamps.iter().filter(|stamp| stamp.worker != pid && its_jobs.contains(&stamp.job)) {
        let first = next.entry(&stamp.job).or_insert(f64::INFINITY);
        *first = first.min(stamp.at);
    }
    let gaps: Vec<f64> = its_jobs
        .iter()
        .map(|job| next.get(job.as_str()).map_or(f64::INFINITY, |at| at - killed_at))
        .collect();

    stamps.retain(|stamp| (window.from..window.to).contains(&stamp.plan_time));
    let starts = starts(&stamps);
    let counted = window.count(&fleet.records().await?)?;
    let traced: BTreeSet<(String, i64)> =
        starts.keys().map(|(job, plan_time)| ((*job).to_owned(), *plan_time)).collect();
    let lost = counted.run.difference(&traced).count();
    let accounted = counted.run.union(&traced).chain(&counted.skipped).collect::<BTreeSet<_>>().len();
    let due = JOBS * usize::try_from((window.to - window.from) / 1000).context("a length of time")?;
    let [p50, p99, max] = Spread::of(gaps.iter().copied()).columns();
    let cells = vec![
        its_jobs.len().to_string(),
        p50,
        p99,
        max,
        due.to_string(),
        traced.len().to_string(),
        counted.skipped.len().to_string(),
        lost.to_string(),
        (due - accounted.min(due)).to_string(),
        starts.values().filter(|number| **number > 1).count().to_string(),
        load,
    ];
    Ok((gaps, cells))
}
