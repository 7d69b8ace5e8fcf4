//! What is known of changes: moves what the functions have left in the store of jobs to the store of records, says when that does not go, and
//! removes what is old.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use common::clock::{self, Stopwatch, Timestamp};
use common::domain::audit::{Entry, EntryId};
use common::history::moving::{self, Waiting, move_waiting};
use common::history::{History, Query, Shelf};
use common::ids::{backoff, random_below};
use common::kv::{self, Kv};
use common::run_log;

use crate::driver::Ports;
use crate::retention::paced;
use crate::retries::Retries;
use crate::status::Status;

/// The fleet's first worker looks for changes this often: one small read.
const MOVE_EVERY: Duration = Duration::from_secs(5);
/// The others do so too, should the first not come to it, and up to a quarter more, so that a fleet does not ask in step. While the store of
/// records does not take anything, pauses grow to this, too.
const MOVE_SELDOM_MS: u64 = 60_000;
/// The first of these pauses, in ms; each is drawn from the upper half.
const MOVE_AGAIN_MS: u64 = 10_000;
/// What is old is removed this often.
const SWEEP_EVERY: Duration = Duration::from_secs(24 * 3600);
/// First, and after a failure, so soon; so often a worker that is not the fleet's first looks whether it has become it.
const FIRST_SWEEP: Duration = Duration::from_secs(600);
/// Entries of one call.
const BATCH: u32 = 500;
/// Jobs asked for at once.
const JOBS: u32 = 100;

const DAY_MS: i64 = 24 * 3600 * 1000;
/// So many versions of each job are kept, however old they are.
pub const VERSIONS_KEPT: u32 = 100;
/// And all that are so young.
pub const VERSIONS_KEPT_DAYS: i64 = 30;

/// Moves for as long as the worker lives, and counts what waits when that does not go.
pub(crate) async fn keep_moving(ports: Ports, status: Arc<Status>, first: Arc<AtomicBool>) {
    let retries = Retries::new("changes not moved to the store of records");
    let mut failures = 0;
    loop {
        let mut pause = Duration::from_millis(MOVE_SELDOM_MS + random_below(MOVE_SELDOM_MS / 4));
        let mut until_first = true;
        match round(&*ports.kv, &*ports.run_log, ports.clock.now()).await {
            Ok(Round::Moved { unread }) => {
                retries.worked();
                status.note_audit_waiting(unread);
                failures = 0;
            }
            Ok(Round::Waits { notes, why }) => {
                retries.failed(&why);
                status.note_audit_waiting(notes);
                // All that waits is counted each time: the longer that goes on, the more it is.
                pause = backoff(failures, MOVE_AGAIN_MS, MOVE_SELDOM_MS);
                failures += 1;
                until_first = false;
            }
            Err(why) => retries.failed(&why),
        }
        rest(pause, until_first.then_some(&first)).await;
    }
}

/// Waits so long, or, where that is given, no longer than this worker is not the `first` of the fleet: one that has just started becomes it soon.
async fn rest(pause: Duration, first: Option<&Arc<AtomicBool>>) {
    let rested = Stopwatch::start();
    while let Some(left) = pause.checked_sub(rested.elapsed()) {
        clock::sleep(left.min(MOVE_EVERY)).await;
        if first.is_some_and(|first| first.load(Relaxed)) {
            return;
        }
    }
}

/// Does for a process that has no worker what workers do: for as long as it is waited for.
pub async fn keep_up_alone(ports: Ports, days: u32) {
    let first = Arc::new(AtomicBool::new(true));
    let forgetting = keep_forgetting(ports.clone(), days, Arc::clone(&first));
    futures::future::join(keep_moving(ports, Arc::default(), first), forgetting).await;
}

/// What became of one look.
enum Round {
    /// All that could be read was moved.
    Moved {
        /// So many could not be read.
        unread: u64,
    },
    /// The store of records did not take it.
    Waits { notes: u64, why: run_log::Error },
}

async fn round(kv: &dyn Kv, history: &dyn History, now: Timestamp) -> Result<Round, kv::Error> {
    match move_waiting(kv, history, usize::MAX).await {
        Ok(moved) => Ok(Round::Moved { unread: moved.unread as u64 }),
        Err(moving::Error::Kv(why)) => Err(why),
        Err(moving::Error::RunLog(why)) => {
            let waiting = Waiting::count(kv).await?;
            if waiting.is_too_much() {
                tracing::error!(
                    notes = waiting.notes,
                    bytes = waiting.bytes,
                    "too many changes wait for the store of records: further ones are refused, but for those that kill or pause"
                );
                waiting.refuse_changes(kv, now).await?;
            }
            Ok(Round::Waits { notes: waiting.notes, why })
        }
    }
}

/// Removes what is old for as long as the worker lives, while it is the `first` of the fleet. Should two believe to be it, both remove the same.
pub(crate) async fn keep_forgetting(ports: Ports, days: u32, first: Arc<AtomicBool>) {
    let retries = Retries::new("old changes not removed");
    let mut pause = FIRST_SWEEP;
    loop {
        clock::sleep(pause).await;
        pause = FIRST_SWEEP;
        if !first.load(Relaxed) {
            continue;
        }
        match sweep(&*ports.run_log, ports.clock.now(), days).await {
            Ok(removed) => {
                retries.worked();
                pause = SWEEP_EVERY + Duration::from_secs(random_below(SWEEP_EVERY.as_secs() / 24));
                if removed > 0 {
                    tracing::info!(removed, days, "old changes removed");
                }
            }
            Err(why) => retries.failed(&why),
        }
    }
}

/// Removes all that is to be removed now, and answers how many entries that were; `days` as in `CRON_AUDIT_DAYS`.
///
/// # Errors
/// Some may be removed; the next sweep goes on.
pub async fn sweep(history: &dyn History, now: Timestamp, days: u32) -> Result<u64, run_log::Error> {
    let mut removed = 0;
    if let Some(below) = forgotten_before(now, days) {
        removed += forget(history, Shelf::Audit, None, &below).await?;
    }
    let mut last = String::new();
    loop {
        let jobs = paced(history.kept_jobs(&last, JOBS)).await?;
        for job in &jobs {
            if let Some(below) = versions_below(history, job, now, days).await? {
                removed += forget(history, Shelf::Versions, Some(job), &below).await?;
            }
        }
        match jobs.into_iter().next_back() {
            Some(job) => last = job,
            None => return Ok(removed),
        }
    }
}

/// Which entries of the audit go; `None`: they are kept for ever.
fn forgotten_before(now: Timestamp, days: u32) -> Option<EntryId> {
    (days > 0).then(|| days_before(now, i64::from(days)))
}

fn days_before(now: Timestamp, days: i64) -> EntryId {
    EntryId::first_of(now.plus_ms(-days * DAY_MS))
}

/// Which versions of a job go: those before this. A job that was deleted as long ago as the audit reaches back is forgotten whole.
async fn versions_below(
    history: &dyn History,
    job: &str,
    now: Timestamp,
    days: u32,
) -> Result<Option<EntryId>, run_log::Error> {
    let newest = version(history, job, 0).await?;
    let gone = newest.filter(|newest| newest.touched.after.is_none());
    if let Some(below) = forgotten_before(now, days).filter(|below| gone.is_some_and(|gone| gone.id < *below))
    {
        return Ok(Some(below));
    }
    let last_kept = version(history, job, VERSIONS_KEPT - 1).await?;
    Ok(last_kept.map(|last| last.id.min(days_before(now, VERSIONS_KEPT_DAYS))))
}

async fn version(history: &dyn History, job: &str, skip: u32) -> Result<Option<Entry>, run_log::Error> {
    let query = Query { skip, limit: 1, ..Query::of_job(job) };
    Ok(paced(history.kept(Shelf::Versions, &query)).await?.pop())
}

async fn forget(
    history: &dyn History,
    shelf: Shelf,
    name: Option<&str>,
    below: &EntryId,
) -> Result<u64, run_log::Error> {
    let mut removed = 0;
    loop {
        let some = paced(history.forget(shelf, name, below, BATCH)).await?;
        removed += some;
        if some < BATCH.into() {
            return Ok(removed);
        }
    }
}
