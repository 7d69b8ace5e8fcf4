//! Chaos: a fleet of real parts, everything that can happen to them, and then the files that the runs left, the records and the plan are
//! compared.
//!
//! A plan is drawn from a seed, which is printed: `cargo run -p tests -- chaos 10 4711` carries out ten minutes of plan 4711 again. The
//! machine's own timing differs from run to run, so that a seed is the same trouble and not the same trace.

pub mod check;
pub mod fleet;
pub mod jobs;
pub mod link;
pub mod plan;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use check::{Observed, Range, Recorded, Report};
use common::clock::{Stopwatch, sleep};
use fleet::{Fleet, Programs};
use futures::TryStreamExt;
use jobs::{Change, Editor, Job, JobKind};
use local_dev::native::servers::Site;
use mongodb::bson::{Document, doc};
use plan::{Act, Plan, WORKERS};
use tokio::sync::mpsc;

use crate::fixtures::{now_ms, number};

/// How often the workers are looked after.
const LOOK: Duration = Duration::from_millis(50);
/// All jobs run, so long after their workers were started or the last fault ended.
const WELL_LIMIT: Duration = Duration::from_secs(90);
/// What a dead worker has left is swept once a minute; and records may wait for a store that is slow.
const SWEPT_LIMIT: Duration = Duration::from_secs(600);
/// Commands that outlive a killed worker end within this.
const COMMANDS_LIMIT: Duration = Duration::from_secs(20);
/// Changes that wait for the editor; more than a plan asks for while the API is away.
const EDITS_MAX: usize = 1_000;

/// Carries out a plan on a fleet of its own, and compares.
///
/// # Errors
/// When the fleet does not start, or does not come to rest; that is a finding, too.
pub async fn run(site: &Site, programs: Programs, plan: &Plan, kinds: &[JobKind]) -> anyhow::Result<Report> {
    println!("seed {}: {} steps, {} jobs", plan.seed, plan.steps.len(), kinds.len());
    let mut fleet = Fleet::start(site, programs).await?;
    let runs = site.dir.join("runs");
    std::fs::create_dir_all(&runs).with_context(|| format!("create {}", runs.display()))?;
    let editor = Editor::new(fleet.api_url());
    let mut jobs: Vec<Job> =
        kinds.iter().enumerate().map(|(number, kind)| Job::new(number, *kind, &runs)).collect();
    for worker in 0..WORKERS {
        fleet.perform(Act::Launch(worker, plan.first, 0)).await?;
    }
    put(&fleet, &editor, &mut jobs).await?;
    wait("every job's first run", &mut fleet, WELL_LIMIT, || all_ran_since(&jobs, 0)).await?;
    let from = now_ms();

    let (ask, asked) = mpsc::channel(EDITS_MAX);
    let editing = tokio::spawn(editor.work(jobs, asked));
    carry_out(&mut fleet, plan, &ask).await?;
    drop(ask);
    let mut jobs = editing.await??;
    fleet.cluster.ready().await?;
    let healed = now_ms();
    println!("all is healed");
    wait("every job to run again", &mut fleet, WELL_LIMIT, || all_ran_since(&jobs, healed + 2_000)).await?;

    let to = now_ms();
    delete_prefix(&fleet, "/cron/jobs/").await?;
    for job in &mut jobs {
        job.history.push(Change { sent: to, answered: now_ms(), period_s: None });
    }
    // Swept while the workers live, since the last one to leave has nobody after it.
    let since = Stopwatch::start();
    for prefix in ["/cron/runs/", "/cron/lock/"] {
        loop {
            let left = keys(&fleet, prefix).await?;
            if left.is_empty() {
                break;
            }
            ensure!(since.elapsed() < SWEPT_LIMIT, "still there after {SWEPT_LIMIT:?}: {left:?}");
            fleet.look_after()?;
            sleep(Duration::from_millis(500)).await;
        }
    }
    fleet.drain().await?;
    for prefix in ["/cron/runs/", "/cron/lock/", "/cron/sessions/", "/cron/workers/"] {
        let left = keys(&fleet, prefix).await?;
        ensure!(left.is_empty(), "all workers have left, and there is still {left:?}");
    }
    fleet.cluster.check().await.context("etcd in the end")?;
    quiet(&jobs).await?;

    let mut lines = BTreeMap::new();
    for job in &jobs {
        lines.insert(job.name.clone(), job.lines()?);
    }
    let observed = Observed {
        jobs,
        lines,
        records: documents(&fleet, "log").await?.iter().map(recorded).collect(),
        conflicts: documents(&fleet, "log_conflicts").await?.iter().map(ToString::to_string).collect(),
        disturbances: fleet.disturbances.clone(),
        from,
        to,
    };
    let mut report = check::check(&observed);
    report.violations.append(&mut fleet.surprises);
    for (line, times) in fleet.alarms() {
        println!("{times} × {line}");
        if line.contains("panicked at") {
            report.violations.push(format!("a worker panicked: {line}"));
        }
    }
    Ok(report)
}

/// One half of the jobs is saved, the other put by other hands, as `etcdctl put` does.
async fn put(fleet: &Fleet, editor: &Editor, jobs: &mut [Job]) -> anyhow::Result<()> {
    let mut client = fleet.cluster.client().await?;
    for (number, job) in jobs.iter_mut().enumerate() {
        let period_s = job.kind.period_s;
        let sent = now_ms();
        if number % 2 == 0 {
            client
                .put(format!("/cron/jobs/{}", job.name), job.definition(period_s).to_string(), None)
                .await?;
        } else {
            editor.create(job).await?;
        }
        job.history.push(Change { sent, answered: now_ms(), period_s: Some(period_s) });
    }
    Ok(())
}

async fn carry_out(
    fleet: &mut Fleet,
    plan: &Plan,
    ask: &mpsc::Sender<(usize, jobs::Edit)>,
) -> anyhow::Result<()> {
    let since = Stopwatch::start();
    let has_faketime = fleet::faketime().is_some();
    if !has_faketime {
        println!("no libfaketime here: no clock is skewed");
    }
    for step in &plan.steps {
        while since.elapsed() < Duration::from_millis(step.at_ms) {
            fleet.look_after()?;
            sleep(LOOK).await;
        }
        match step.act {
            Act::Edit(job, edit) => ask.try_send((job, edit)).context("the editor is gone or far behind")?,
            act => {
                println!("{:>8} ms: {act:?}", since.elapsed().as_millis());
                fleet.perform(act).await?;
            }
        }
    }
    Ok(())
}

async fn wait(
    what: &str,
    fleet: &mut Fleet,
    limit: Duration,
    mut done: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let since = Stopwatch::start();
    while !done()? {
        ensure!(since.elapsed() < limit, "waited {limit:?} in vain for {what}");
        fleet.look_after()?;
        sleep(Duration::from_millis(300)).await;
    }
    Ok(())
}

/// Whether each job whose fires can all run has run a fire of after `time`.
fn all_ran_since(jobs: &[Job], time: i64) -> anyhow::Result<bool> {
    for job in jobs.iter().filter(|job| job.kind.is_counting()) {
        if job.lines()?.last().is_none_or(|line| line.plan_time <= time) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Waits until nothing is appended any more: commands of a worker that was killed go on.
async fn quiet(jobs: &[Job]) -> anyhow::Result<()> {
    let since = Stopwatch::start();
    let longest = jobs.iter().map(|job| u64::from(job.kind.runs_s)).max().unwrap_or(0);
    let mut before = None;
    loop {
        let mut size = 0;
        for job in jobs {
            size += std::fs::metadata(&job.file).map_or(0, |data| data.len());
        }
        if before == Some(size) {
            return Ok(());
        }
        if since.elapsed() > COMMANDS_LIMIT + Duration::from_secs(longest) {
            bail!("all workers have ended, and runs still write");
        }
        before = Some(size);
        sleep(Duration::from_secs(1)).await;
    }
}

async fn keys(fleet: &Fleet, prefix: &str) -> anyhow::Result<Vec<String>> {
    let options = etcd_client::GetOptions::new().with_prefix().with_keys_only();
    let reply = fleet.cluster.client().await?.get(prefix, Some(options)).await?;
    Ok(reply.kvs().iter().map(|pair| String::from_utf8_lossy(pair.key()).into_owned()).collect())
}

async fn delete_prefix(fleet: &Fleet, prefix: &str) -> anyhow::Result<()> {
    let options = etcd_client::DeleteOptions::new().with_prefix();
    fleet.cluster.client().await?.delete(prefix, Some(options)).await?;
    Ok(())
}

async fn documents(fleet: &Fleet, collection: &str) -> anyhow::Result<Vec<Document>> {
    let client = mongodb::Client::with_uri_str(fleet.mongo.url()).await?;
    let found = client.database("cron").collection::<Document>(collection).find(doc! {}).await?;
    Ok(found.try_collect().await?)
}

fn recorded(record: &Document) -> Recorded {
    let text = |document: &Document, field: &str| document.get_str(field).unwrap_or_default().to_owned();
    let range = |range: &Document| Range {
        from: number(range, "from"),
        to: number(range, "to"),
        count: number(range, "count"),
        more: range.get_bool("more").unwrap_or(false),
        reason: text(range, "reason"),
    };
    Recorded {
        job: text(record, "jobName"),
        plan_time: number(record, "planTime"),
        status: text(record, "status"),
        worker: text(record, "worker"),
        claim: text(record, "claim"),
        end_time: number(record, "endTime"),
        skipped: record.get_document("skipped").ok().map(range),
    }
}
