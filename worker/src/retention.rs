//! Removes records that are old, or more than a job is to have: by one worker of the fleet, in small batches. MongoDB's own removal by age (a
//! TTL index) takes dates and no numbers, so that it would leave all that the seed wrote.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use common::clock::{self, Clock, Stopwatch, Timestamp};
use common::config::Settings;
use common::ids::{backoff, random_below};
use common::run_log::{Error, OUTPUT_KEPT_DAYS, RecordQuery, Removal, RunLog};

use crate::retries::Retries;

/// What is to be removed is looked for this often, and a worker that has just started looks after a minute.
const SWEEP_EVERY: Duration = Duration::from_secs(3600);
/// See [`SWEEP_EVERY`].
const FIRST_SWEEP: Duration = Duration::from_secs(60);
/// Records of one call: it must be done within the call's time also on a slow store, and other calls wait for it on some.
const BATCH: u32 = 500;
/// Pauses after a call: removing must not get in the way of storing. At least so long after one that has removed something…
const PAUSE: Duration = Duration::from_millis(100);
/// … and so many times what it took after each: a store without the right index (FerretDB has none but for inserting) reads everything for it,
/// and does nothing else meanwhile.
const PAUSE_FACTOR: u32 = 20;
/// Jobs asked for at once.
const JOBS: u32 = 100;
/// Younger records are never removed: a worker that could not reach the store of records for a day, and then hands its own in, must find whether
/// they are there already. A day, and an hour for its clock and its way.
const YOUNGEST_MS: i64 = 25 * HOUR_MS;

/// Pauses before the store is prepared again double from the first to the second, in ms.
const PREPARE_AGAIN_MS: u64 = 500;
/// See [`PREPARE_AGAIN_MS`].
const PREPARE_AGAIN_MS_MAX: u64 = 30_000;

const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;

/// How long records are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Retention {
    /// So many days after the run ended; 0 = for ever.
    pub days: u32,
    /// So many of each job, the newest; 0 = all.
    pub max_per_job: u64,
}

impl Retention {
    /// As the settings say.
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        Self { days: settings.log_retention_days, max_per_job: settings.log_max_per_job }
    }
}

/// Has the store prepared, and then removes for as long as the worker lives, while it is the `first` of the fleet. Should two believe to be it,
/// both remove the same.
pub(crate) async fn keep_up(
    run_log: Arc<dyn RunLog>,
    clock: Arc<dyn Clock>,
    retention: Retention,
    first: Arc<AtomicBool>,
) {
    prepare(run_log.as_ref()).await;
    let retries = Retries::new("old records not removed");
    let mut pause = FIRST_SWEEP;
    loop {
        clock::sleep(pause).await;
        pause = SWEEP_EVERY + Duration::from_secs(random_below(SWEEP_EVERY.as_secs() / 4));
        if !first.load(Relaxed) {
            continue;
        }
        match sweep(run_log.as_ref(), clock.now(), retention).await {
            Ok(removed) => {
                retries.worked();
                if removed > 0 {
                    tracing::info!(removed, ?retention, "old records removed");
                }
            }
            Err(why) => retries.failed(&why),
        }
    }
}

/// Makes the indexes. Apart from storing: among ten million records that takes longer than a call may, and no record may wait for it.
async fn prepare(run_log: &dyn RunLog) {
    let retries = Retries::new("record store not prepared (indexes)");
    for failures in 0.. {
        let prepared = match run_log.prepare().await {
            Ok(()) => run_log.prepare_history().await,
            failed => failed,
        };
        match prepared {
            Ok(()) => return retries.worked(),
            Err(why) => {
                retries.failed(&why);
                clock::sleep(backoff(failures, PREPARE_AGAIN_MS, PREPARE_AGAIN_MS_MAX)).await;
            }
        }
    }
}

/// Removes all that is to be removed now, and answers how many records that were.
///
/// # Errors
/// Some may be removed; the next sweep goes on.
pub async fn sweep(run_log: &dyn RunLog, now: Timestamp, retention: Retention) -> Result<u64, Error> {
    let ago = |ms: i64| now.plus_ms(-ms.max(YOUNGEST_MS));
    let mut removed = 0;
    if retention.days > 0 {
        removed +=
            remove_all(run_log, &Removal::RecordsBefore(ago(i64::from(retention.days) * DAY_MS))).await?;
    }
    // Of workers that died; the server does it by itself where it can.
    let output_kept = i64::try_from(OUTPUT_KEPT_DAYS).unwrap_or(i64::MAX).saturating_mul(DAY_MS);
    paced(run_log.remove(&Removal::OutputBefore(ago(output_kept)), u32::MAX)).await?;
    if retention.max_per_job == 0 {
        return Ok(removed);
    }
    let mut last = String::new();
    loop {
        let jobs = paced(run_log.jobs(&last, JOBS)).await?;
        for job in &jobs {
            let skip = retention.max_per_job - 1;
            let query = RecordQuery { job_name: job.clone(), skip, ..RecordQuery::default() };
            if let Some(last_kept) = paced(run_log.place(&query)).await? {
                removed +=
                    remove_all(run_log, &Removal::RecordsBehind(job.clone(), last_kept, ago(0))).await?;
            }
        }
        match jobs.into_iter().next_back() {
            Some(job) => last = job,
            None => return Ok(removed),
        }
    }
}

/// Does a call, and pauses as long as others should have the store for themselves.
pub(crate) async fn paced<T>(call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let asked = Stopwatch::start();
    let answer = call.await;
    clock::sleep(asked.elapsed() * PAUSE_FACTOR).await;
    answer
}

async fn remove_all(run_log: &dyn RunLog, what: &Removal) -> Result<u64, Error> {
    let mut removed = 0;
    loop {
        let some = paced(run_log.remove(what, BATCH)).await?;
        removed += some;
        if some < BATCH.into() {
            return Ok(removed);
        }
        clock::sleep(PAUSE).await;
    }
}
