//! A worker that starts with very many jobs in the store: how long until it fires them, and what it holds in memory.

use std::time::Duration;

use anyhow::Context;
use common::clock::{Stopwatch, sleep};
use common::keys;

use super::figures::{head, row};
use super::fleet::{Fleet, NewJob, Stamp};
use super::{machine, wait_for};

/// Jobs in the store, and how many distinct expressions they have: as many as people write, or nearly each job its own.
const JOBS: [(usize, usize); 3] = [(100_000, 10_000), (1_000_000, 10_000), (1_000_000, MINUTES)];
/// So many minutes of a year are told apart here: 28 days of each month.
const MINUTES: usize = 12 * 28 * 24 * 60;
/// So many of them, spread evenly, are due every second: when each has run, all that lies between is armed too.
const PROBES: usize = 100;
/// A worker that has not fired them by then does not.
const LIMIT: Duration = Duration::from_secs(900);
/// Then memory is looked at once more, at rest.
const REST: Duration = Duration::from_secs(10);

/// Measures and prints.
///
/// # Errors
/// A server does not start or answer.
pub(super) async fn measure() -> anyhow::Result<()> {
    println!(
        "One worker, started when all jobs are in etcd; {PROBES} of them, spread evenly over the names, are due every second and leave a stamp, \
         the others at some minute of the year. From the start of its process; memory of the worker, in MB (10⁶ bytes), and all of it for each job.\n"
    );
    head(&[
        "jobs",
        "expressions",
        "marks",
        "ready s",
        "first fire s",
        "every probe has fired s",
        "all marks there s",
        "peak MB",
        "MB 10 s later",
        "bytes a job",
        "worker CPU s",
        "etcd CPU s",
        "load before",
    ]);
    for (jobs, expressions) in JOBS {
        for marked in [false, true] {
            row(&one(jobs, expressions, marked).await?);
        }
    }
    Ok(())
}

async fn one(jobs: usize, expressions: usize, marked: bool) -> anyhow::Result<Vec<String>> {
    let mut fleet = Fleet::start("load").await?;
    let stamp = Stamp::command(&fleet.stamps_file());
    let every = jobs / PROBES;
    let new = |n: usize| {
        let name = format!("load-{n:07}");
        if n % every == every / 2 {
            return NewJob::every_second(name, stamp.clone());
        }
        let minute = n % expressions;
        let (hour, day, month) = (minute / 60 % 24, minute / 1440 % 28 + 1, minute / 40_320 % 12 + 1);
        let cron_expr = format!("{} {hour} {day} {month} *", minute % 60);
        NewJob { name, command: "true".to_owned(), cron_expr }
    };
    if marked {
        fleet.save_jobs((0..jobs).map(new)).await?;
    } else {
        fleet.put_jobs((0..jobs).map(new)).await?;
    }
    let load = machine::load();
    let etcd_before = fleet.used().await?.etcd;
    let watch = Stopwatch::start();
    let pid = fleet.launch()?.process.pid();
    let worker = fleet.workers.first().context("it was just started")?;
    wait_for("the worker's session", LIMIT, async || Ok(worker.is_ready().await.then_some(()))).await?;
    let ready = watch.elapsed();
    let mut first = None;
    wait_for("a fire of every probe", LIMIT, async || {
        let mut stamps = fleet.stamps()?;
        if !stamps.is_empty() {
            first.get_or_insert(watch.elapsed());
        }
        stamps.sort_by(|a, b| a.job.cmp(&b.job));
        stamps.dedup_by(|a, b| a.job == b.job);
        Ok((stamps.len() == PROBES).then_some(()))
    })
    .await?;
    let fired = watch.elapsed();
    let wanted = i64::try_from(jobs).context("a number of jobs")?;
    while fleet.count(keys::FIRED).await? < wanted {
        anyhow::ensure!(watch.elapsed() < LIMIT, "the worker does not adopt all jobs");
        sleep(Duration::from_millis(100)).await;
    }
    let adopted = watch.elapsed();
    let used = fleet.used().await?;
    sleep(REST).await;
    let memory = machine::memory(pid)?;
    let seconds = |time: Duration| format!("{:.2}", time.as_secs_f64());
    Ok(vec![
        jobs.to_string(),
        expressions.min(jobs).to_string(),
        if marked { "there" } else { "absent" }.to_owned(),
        seconds(ready),
        seconds(first.unwrap_or(fired)),
        seconds(fired),
        if marked { "–".to_owned() } else { seconds(adopted) },
        format!("{:.0}", memory.peak),
        format!("{:.0}", memory.now),
        format!("{:.0}", memory.now * 1e6 / jobs as f64),
        format!("{:.1}", used.workers),
        format!("{:.1}", used.etcd - etcd_before),
        load,
    ])
}
