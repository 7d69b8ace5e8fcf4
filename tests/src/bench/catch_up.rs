//! The store of records is frozen while fires go on, and thawed: what has gathered on the worker's disk, and how fast it gets into the store
//! while the fires still go on. Then every fire is looked for in the records.

use std::time::Duration;

use ::tests::fixtures::now_ms;
use anyhow::Context;
use common::clock::{Stopwatch, sleep};
use local_dev::native::provision::search;

use super::every_second::Window;
use super::figures::{head, row, short};
use super::fleet::{Fleet, NewJob};
use super::{Flags, machine, wait_for};

/// Fires a second and seconds of the outage when nothing else is said.
const JOBS: usize = 1000;
const AWAY_SECONDS: usize = 120;
/// All is as usual for so long before, and is watched for so long after.
const USUAL: Duration = Duration::from_secs(10);
/// Caught up: no more waits than comes in this time.
const SECONDS_BEHIND: f64 = 2.0;
/// A worker with much to do answers by then.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// A store that has not caught up by then never will.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(3600);

/// Measures and prints.
///
/// # Errors
/// A server does not start or answer, or a record is missing.
pub(super) async fn measure(flags: &Flags) -> anyhow::Result<()> {
    let jobs = flags.jobs.unwrap_or(JOBS);
    let away = flags.seconds.unwrap_or(AWAY_SECONDS);
    println!(
        "{jobs} every-second jobs on one worker whose shell is `true`, so that what is measured is not bash. The store of records is frozen \
         (SIGSTOP) for {away} s and goes on while the fires do.\n"
    );
    let load = machine::load();
    let shell = search("true").context("no program `true`")?;
    let mut fleet = Fleet::start("catch-up").await?;
    fleet.shell = Some(shell);
    fleet.workers(1).await?;
    let new = |n: usize| NewJob::every_second(format!("catch-up-{n:04}"), ":".to_owned());
    fleet.save_jobs((0..jobs).map(new)).await?;
    sleep(USUAL).await;
    let from = now_ms() / 1000 * 1000;
    fleet.mongo.freeze();
    sleep(Duration::from_secs(u64::try_from(away)?)).await;
    let waiting = figure(&fleet, "fleetcron_records_waiting").await?;
    let bytes = figure(&fleet, "fleetcron_spool_bytes").await?;
    let open = fleet.count(common::keys::RUNS).await?;
    fleet.mongo.thaw();
    let since = Stopwatch::start();
    let behind = jobs as f64 * SECONDS_BEHIND;
    wait_for("the records", CATCH_UP_LIMIT, async || {
        sleep(Duration::from_millis(200)).await;
        Ok((figure(&fleet, "fleetcron_records_waiting").await? <= behind).then_some(()))
    })
    .await?;
    let took = since.elapsed().as_secs_f64();
    let stored = (waiting + took * jobs as f64) / took;
    sleep(USUAL).await;
    let window = Window { from, to: now_ms() / 1000 * 1000 - 2_000 };
    fleet.delete_jobs().await?;
    let counted = window.count(&fleet.records().await?)?;
    let due = jobs * usize::try_from((window.to - window.from) / 1000)?;
    head(&[
        "fires/s",
        "away s",
        "records waiting",
        "spool MB",
        "open runs in etcd",
        "caught up after s",
        "stored/s meanwhile",
        "due",
        "run",
        "skipped",
        "missing",
        "load before",
    ]);
    row(&[
        jobs.to_string(),
        away.to_string(),
        waiting.to_string(),
        short(bytes / 1e6),
        open.to_string(),
        short(took),
        short(stored),
        due.to_string(),
        counted.run.len().to_string(),
        counted.skipped.len().to_string(),
        (due - counted.run.union(&counted.skipped).count().min(due)).to_string(),
        load,
    ]);
    Ok(())
}

/// A figure of the worker's.
async fn figure(fleet: &Fleet, name: &str) -> anyhow::Result<f64> {
    let worker = fleet.workers.first().context("a worker was started")?;
    wait_for("the worker's answer", ANSWER_LIMIT, async || worker.metric(name).await).await
}
