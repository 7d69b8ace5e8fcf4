//! Records for runs whose session is gone: `lost`, written by whoever lives (design P3, P4).

use std::collections::BTreeSet;

use common::clock::{Clock, Timestamp};
use common::domain::record::Record;
use common::domain::request::Request;
use common::domain::run::{OpenRun, OpenRuns, RunId};
use common::domain::worker::Sid;
use common::keys;
use common::kv::{self, Compare, Kv, Op, Pair, Range, Txn};
use common::run_log::{self, RunLog};

use crate::claims::read_pages;

/// Records of one insert.
const BATCH: usize = 100;

/// Why a sweep stopped; the next one goes on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Kv(#[from] kv::Error),
    #[error(transparent)]
    RunLog(#[from] run_log::Error),
}

/// Closes the open runs of every session that is gone, except those in `spared` (this worker's own, still to be decided), and asks for the
/// next attempt where the job wants that; but not of a run that was claimed up to `floor`, and may have ended in what the store was before.
/// Answers how many runs were closed.
pub(crate) async fn sweep(
    kv: &dyn Kv,
    run_log: &dyn RunLog,
    clock: &dyn Clock,
    spared: &BTreeSet<Sid>,
    floor: Timestamp,
) -> Result<usize, Error> {
    // Open runs first, sessions after: a session with an open run existed by then, so that its absence afterwards means its end.
    let (open, _) = read_pages(kv, Range::prefix(keys::RUNS)).await?;
    let with_runs: BTreeSet<Sid> = open.iter().filter_map(|pair| keys::parse_runs(&pair.key)).collect();
    if with_runs.is_empty() {
        return Ok(0);
    }
    let (sessions, _) = read_pages(kv, Range::prefix(keys::SESSIONS)).await?;
    let alive: BTreeSet<Sid> = sessions.iter().filter_map(|pair| keys::parse_session(&pair.key)).collect();
    let mut closed = 0;
    for sid in with_runs.difference(&alive).filter(|sid| !spared.contains(sid)) {
        // Read again, now that the session is known to be gone: nothing can be added any more, so this is complete.
        let (left, _) = read_pages(kv, Range::prefix(keys::runs_of(*sid))).await?;
        closed += close_all(kv, run_log, clock, &left, Record::left_behind, floor).await?;
    }
    Ok(closed)
}

/// Puts a record for each open run of these keys, and takes the keys away, in batches. A store that is too slow for a batch is given smaller
/// ones, down to a single run: the same batch again would be as slow again, for ever.
pub(crate) async fn close_all(
    kv: &dyn Kv,
    run_log: &dyn RunLog,
    clock: &dyn Clock,
    mut left: &[Pair],
    record: fn(&OpenRun, Timestamp) -> Record,
    floor: Timestamp,
) -> Result<usize, Error> {
    let (mut closed, mut size) = (0, BATCH);
    while !left.is_empty() {
        let (batch, rest) = left.split_at(size.min(left.len()));
        match close(kv, run_log, clock, batch, record, floor).await {
            Ok(number) => {
                closed += number;
                left = rest;
                size = (size * 2).min(BATCH);
            }
            Err(Error::RunLog(run_log::Error::Unavailable(_))) if batch.len() > 1 => size = batch.len() / 2,
            Err(why) => return Err(why),
        }
    }
    Ok(closed)
}

/// The attempt that a lost run is followed by. Its open key says so only until its end is known: then its own worker has decided.
fn next_attempt(run: &OpenRun, now: Timestamp) -> Option<(RunId, Request)> {
    run.on_lost.map(|retry| Request::after(run, &retry, "survivor", now))
}

async fn close(
    kv: &dyn Kv,
    run_log: &dyn RunLog,
    clock: &dyn Clock,
    batch: &[Pair],
    record: fn(&OpenRun, Timestamp) -> Record,
    floor: Timestamp,
) -> Result<usize, Error> {
    let now = clock.now();
    let mut records = Vec::new();
    let mut read = Vec::new();
    for pair in batch {
        match OpenRuns::decode(&pair.value) {
            Ok(open) => {
                records.extend(open.runs.iter().map(|run| record(run, now)));
                let again = open.runs.iter().filter(|run| run.schedule_time > floor);
                read.push((pair, again.filter_map(|run| next_attempt(run, now)).collect::<Vec<_>>()));
            }
            Err(why) => tracing::error!(key = %pair.key, %why, "open run cannot be read: left alone"),
        }
    }
    let appended = run_log.append(&records).await?;
    for conflict in &appended.conflicts {
        tracing::error!(record = %conflict.id, claim = ?conflict.claim, "a fire has records of two claims: it was run twice");
    }
    // If this process dies here, the next sweep inserts the same records again, which is harmless, and deletes.
    for (pair, next) in &read {
        // In one transaction: an attempt that is taken away is followed by the next, and by one.
        let requests = next.iter().map(|(run_id, request)| Op::put(keys::request(run_id), request.encode()));
        let txn = Txn {
            when: vec![Compare::unchanged(pair.key.clone(), pair.mod_revision)],
            then: std::iter::once(Op::delete(pair.key.clone())).chain(requests).collect(),
            otherwise: Vec::new(),
        };
        kv.txn(txn).await?; // refused: taken over by its own worker, or deleted by another survivor
    }
    for record in &records {
        tracing::warn!(record = %record.id, claim = ?record.claim, worker = ?record.worker, err = %record.err, "closed a run left behind");
    }
    Ok(records.len())
}
