//! Records for runs whose session is gone: `lost`, written by whoever lives (design P3, P4).

use std::collections::{BTreeMap, BTreeSet};

use common::clock::{Clock, Timestamp};
use common::domain::record::Record;
use common::domain::request::Request;
use common::domain::run::{OpenRun, OpenRuns, RunId};
use common::domain::worker::Sid;
use common::keys;
use common::kv::{self, Compare, Kv, Op, Pair, Range, Revision, Txn};
use common::run_log::{self, RunLog};

use crate::claims::{parse_base, read_pages};
use crate::turns::Turns;

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

/// Which lost runs are not tried again: those that were claimed before the store was put back may have ended, and been tried again, in what it
/// was before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Floor {
    /// Claimed up to this time.
    at: Timestamp,
    /// Of the key that says so to those who have not noticed themselves, compared by whoever asks for a next attempt; `None` = not asked.
    base: Option<Revision>,
}

impl Floor {
    /// Of open runs that this very worker has claimed, in the store as it is.
    pub(crate) const NONE: Self = Self { at: Timestamp::ZERO, base: None };

    /// What the store says, or what this worker has noticed itself if that is later.
    async fn read(kv: &dyn Kv, noticed: Timestamp) -> Result<Self, kv::Error> {
        let base = kv.range(Range::key(keys::BASE)).await?.pairs.into_iter().next();
        let said = parse_base(base.as_ref()).restored.unwrap_or(Timestamp::ZERO);
        Ok(Self { at: noticed.max(said), base: Some(base.map_or(0, |pair| pair.mod_revision)) })
    }
}

/// Closes the open runs of every session that is gone, except those in `spared` (this worker's own, still to be decided), and asks for the
/// next attempt where the job wants that; but not of a run that was claimed up to `floor`, or what the store itself says (see [`Floor`]).
/// With `turns`, those only whose turn it is. Answers how many runs were closed.
pub(crate) async fn sweep(
    kv: &dyn Kv,
    run_log: &dyn RunLog,
    clock: &dyn Clock,
    spared: &BTreeSet<Sid>,
    floor: Timestamp,
    turns: Option<&mut Turns>,
) -> Result<usize, Error> {
    // Open runs first, sessions after: a session with an open run existed by then, so that its absence afterwards means its end.
    let (open, _) = read_pages(kv, Range::prefix(keys::RUNS)).await?;
    let mut left: BTreeMap<Sid, usize> = BTreeMap::new();
    for sid in open.iter().filter_map(|pair| keys::parse_runs(&pair.key)) {
        *left.entry(sid).or_default() += 1;
    }
    drop(open);
    let alive: BTreeSet<Sid> = if left.is_empty() {
        BTreeSet::new() // nobody is asked for
    } else {
        let (sessions, _) = read_pages(kv, Range::prefix(keys::SESSIONS)).await?;
        sessions.iter().filter_map(|pair| keys::parse_session(&pair.key)).collect()
    };
    left.retain(|sid, _| !alive.contains(sid) && !spared.contains(sid));
    let gone = match turns {
        Some(turns) => turns.look(&left, &alive, spared),
        None => left.into_keys().collect(),
    };
    if gone.is_empty() {
        return Ok(0);
    }
    let floor = Floor::read(kv, floor).await?;
    let mut closed = 0;
    for sid in gone {
        // Read again, now that the session is known to be gone: nothing can be added any more, so this is complete.
        let (left, _) = read_pages(kv, Range::prefix(keys::runs_of(sid))).await?;
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
    floor: Floor,
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
    floor: Floor,
) -> Result<usize, Error> {
    let now = clock.now();
    let mut records = Vec::new();
    let mut read = Vec::new();
    for pair in batch {
        match OpenRuns::decode(&pair.value) {
            Ok(open) => {
                records.extend(open.runs.iter().map(|run| record(run, now)));
                let again = open.runs.iter().filter(|run| run.schedule_time > floor.at);
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
        let mut when = vec![Compare::unchanged(pair.key.clone(), pair.mod_revision)];
        // Closes: somebody notices that the store was put back, and says so, between this reading of the base and this writing.
        let base = floor.base.filter(|_| !next.is_empty());
        when.extend(base.map(|revision| Compare::unchanged(keys::BASE, revision)));
        let txn = Txn {
            when,
            then: std::iter::once(Op::delete(pair.key.clone())).chain(requests).collect(),
            otherwise: vec![Op::get(pair.key.clone())],
        };
        let reply = kv.txn(txn).await?;
        // Refused: taken over by its own worker, or deleted by another survivor; or else the base was written.
        if !reply.succeeded && reply.pair(0).is_some_and(|left| left.mod_revision == pair.mod_revision) {
            return Err(
                kv::Error::Unavailable("the base was written meanwhile: looked at again".to_owned()).into()
            );
        }
    }
    for record in &records {
        tracing::warn!(record = %record.id, claim = ?record.claim, worker = ?record.worker, err = %record.err, "closed a run left behind");
    }
    Ok(records.len())
}
