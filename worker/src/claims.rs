//! The scheduler's writes, each one transaction: what it compares, what it puts, how its answer is read.

use std::collections::BTreeMap;
use std::time::Duration;

use common::clock::Timestamp;
use common::domain::job::JobName;
use common::domain::mark::Mark;
use common::domain::pause::Base;
use common::domain::run::{LockHolder, OpenRun, OpenRuns};
use common::domain::worker::Sid;
use common::keys;
use common::kv::{self, Compare, Kv, Op, Pair, Range, Revision, Txn, TxnReply};

use crate::scheduler::{
    AdoptAnswer, Claim, ClaimAnswer, ClaimKind, LockSeen, MarkSeen, MoveAnswer, Refusal, Slots,
};

/// A mark outlives its job by a day, so that delete and re-create cannot fire one second twice.
const RETIRED_MARK_TTL: Duration = Duration::from_secs(24 * 3600);
/// Marks are read in pages of this many.
const PAGE: usize = 1000;
/// A range that is compacted while it is read is read anew so often: whoever compacts does it minutes apart, and a range is read in less.
const READINGS_MAX: usize = 3;
/// Up to so many slots are read one by one; for more, all marks are read.
const SLOTS_SINGLY_MAX: usize = 64;

/// Reads of the refused branch, in this order.
const SESSION: usize = 0;
const PAUSED: usize = 1;
const JOB: usize = 2;
const MARK: usize = 3;
const LOCK: usize = 4;
/// And from here on open runs.
const OPEN: usize = 5;

/// The transaction of a claim (design P1, P3). Every put is fenced by the session's own key.
fn claim_txn(claim: &Claim) -> Txn {
    let name = &claim.open.job;
    let mut when = decided_from(claim.sid, name, claim.job_revision, claim.mark_revision);
    let mut then = vec![Op::put(keys::fired(name), claim.mark.encode())];
    if claim.kind != ClaimKind::SeedRan {
        then.push(put_open(&claim.open, (claim.sid, claim.seq)));
    }
    if claim.kind == ClaimKind::Run {
        when.push(Compare::absent(keys::PAUSED));
        when.push(match claim.over_lock {
            None => Compare::absent(keys::lock(name)),
            Some(revision) => Compare::unchanged(keys::lock(name), revision),
        });
        then.push(put_lock(&claim.open, claim.sid));
    }
    let mut otherwise = vec![
        Op::get(keys::session(claim.sid)),
        Op::get(keys::PAUSED),
        Op::get(keys::job(name)),
        Op::get(keys::fired(name)),
        Op::get(keys::lock(name)),
        Op::get(keys::runs(claim.sid, claim.seq)),
    ];
    otherwise.extend(claim.replaces.map(|seq| Op::get(keys::runs(claim.sid, seq))));
    Txn { when, then, otherwise }
}

/// The open run of a claim, under its own key.
fn put_open(open: &OpenRun, (sid, seq): (Sid, u64)) -> Op {
    Op::put(keys::runs(sid, seq), OpenRuns::new(vec![open.clone()]).encode())
}

/// The job's lock, held by this run for as long as the session lives.
fn put_lock(open: &OpenRun, sid: Sid) -> Op {
    let holder = LockHolder::new(sid, open.run_id.clone());
    Op::put_leased(keys::lock(&open.job), holder.encode(), sid.lease())
}

/// What every write of a mark compares: the session that writes is alive (P3), the job and its mark are those that it was decided from.
fn decided_from(sid: Sid, job: &JobName, job_revision: Revision, mark_revision: Revision) -> Vec<Compare> {
    vec![
        Compare::exists(keys::session(sid)),
        Compare::unchanged(keys::job(job), job_revision),
        Compare::unchanged(keys::fired(job), mark_revision),
    ]
}

/// Sends a claim once.
pub(crate) async fn claim(kv: &dyn Kv, claim: &Claim) -> ClaimAnswer {
    match kv.txn(claim_txn(claim)).await {
        Ok(reply) if reply.succeeded => ClaimAnswer::Won(reply.revision),
        Ok(reply) => ClaimAnswer::Refused(refusal(&reply)),
        // The lease is gone, so the session's key is going: nothing was applied, and keep-alive will find out.
        Err(kv::Error::LeaseGone) => ClaimAnswer::NotApplied,
        Err(why) => {
            // The watches and the session say aloud that the store is away; this would be a line for every job.
            tracing::debug!(job = %claim.open.job, plan_time = %claim.open.plan_time, %why, "claim not answered");
            match why {
                kv::Error::Indeterminate(_) | kv::Error::Full(_) => ClaimAnswer::Unknown,
                _ => ClaimAnswer::NotApplied,
            }
        }
    }
}

fn refusal(reply: &TxnReply) -> Refusal {
    let lock = match reply.pair(LOCK) {
        None => LockSeen::Free,
        Some(pair) if pair.value.is_empty() => LockSeen::HeldBySeed,
        Some(_) => LockSeen::Held,
    };
    Refusal {
        session_alive: reply.pair(SESSION).is_some(),
        paused: reply.pair(PAUSED).is_some(),
        job_revision: reply.pair(JOB).map_or(0, |pair| pair.mod_revision),
        mark: reply.pair(MARK).map(mark_seen),
        lock,
        open: (OPEN..reply.replies.len()).filter_map(|index| open_seen(reply.pair(index)?)).collect(),
    }
}

/// The open run of a claim's own key. One that cannot be read is not this claim's.
fn open_seen(pair: &Pair) -> Option<(OpenRun, Revision)> {
    let open = OpenRuns::decode(&pair.value).ok()?.runs.into_iter().next()?;
    Some((open, pair.mod_revision))
}

fn mark_seen(pair: &Pair) -> MarkSeen {
    MarkSeen { mark: Mark::decode(&pair.value), revision: pair.mod_revision, retired: pair.lease.is_some() }
}

/// Puts the mark of a job that other hands have put (design P7).
pub(crate) async fn adopt(
    kv: &dyn Kv,
    job: &JobName,
    job_revision: Revision,
    mark_revision: Revision,
    sid: Sid,
    mark: Mark,
) -> AdoptAnswer {
    let txn = Txn {
        when: decided_from(sid, job, job_revision, mark_revision),
        then: vec![Op::put(keys::fired(job), mark.encode())],
        otherwise: Vec::new(),
    };
    match kv.txn(txn).await {
        Ok(reply) if reply.succeeded => AdoptAnswer::Done(mark, reply.revision),
        // Without an answer it may have been put, or be put yet: whoever looks again sees it or replaces it, and no claim depends on it.
        Ok(_) | Err(_) => AdoptAnswer::LookAgain,
    }
}

/// Hangs the mark of a deleted job on a lease of a day (design P6).
pub(crate) async fn retire_mark(
    kv: &dyn Kv,
    job: &JobName,
    revision: Revision,
    mark: &Mark,
) -> Result<(), kv::Error> {
    let lease = kv.grant(RETIRED_MARK_TTL).await?;
    // If this process dies here, the lease ends in a day without any key.
    let txn = Txn {
        when: vec![Compare::absent(keys::job(job)), Compare::unchanged(keys::fired(job), revision)],
        then: vec![Op::put_leased(keys::fired(job), mark.encode(), lease)],
        otherwise: Vec::new(),
    };
    if !kv.txn(txn).await?.succeeded {
        kv.revoke(lease).await?;
    }
    Ok(())
}

/// Deletes the lock of a run, if it is still the one that the run's claim put (design P9). `Ok` = it is not held by that run (any more).
pub(crate) async fn release(kv: &dyn Kv, job: &JobName, lock_revision: Revision) -> Result<(), kv::Error> {
    let txn = Txn {
        when: vec![Compare::unchanged(keys::lock(job), lock_revision)],
        then: vec![Op::delete(keys::lock(job))],
        otherwise: Vec::new(),
    };
    kv.txn(txn).await.map(|_deleted_or_not_ours| ())
}

/// Takes a run over into a new session: as [`rescue_run`] does after the store went back, else as [`move_run`].
pub(crate) async fn take_over(
    kv: &dyn Kv,
    open: &OpenRun,
    from: (Sid, u64),
    to: (Sid, u64),
    rescue: bool,
) -> Result<MoveAnswer, kv::Error> {
    if rescue { rescue_run(kv, open, from, to).await } else { move_run(kv, open, from, to).await }
}

/// The open key of a run, from one session to another.
fn moved(open: &OpenRun, from: (Sid, u64), to: (Sid, u64)) -> Vec<Op> {
    vec![Op::delete(keys::runs(from.0, from.1)), put_open(open, to)]
}

/// [`moved`], and the lock with it.
fn moved_with_lock(open: &OpenRun, from: (Sid, u64), to: (Sid, u64)) -> Vec<Op> {
    moved(open, from, to).into_iter().chain([put_lock(open, to.0)]).collect()
}

/// A refusal to move that shows the lock as this run's: an earlier sending of the same request has committed.
fn already_moved(reply: &TxnReply, open: &OpenRun, to: Sid) -> Option<MoveAnswer> {
    let lock = reply.pair(0)?;
    let holder = LockHolder::new(to, open.run_id.clone());
    (LockHolder::decode(&lock.value) == Ok(Some(holder))).then_some(MoveAnswer::Done(lock.mod_revision))
}

/// Takes a run over into a new session, unless it was closed as lost meanwhile (design P10).
async fn move_run(
    kv: &dyn Kv,
    open: &OpenRun,
    from: (Sid, u64),
    to: (Sid, u64),
) -> Result<MoveAnswer, kv::Error> {
    let txn = Txn {
        when: vec![
            Compare::exists(keys::session(to.0)),
            Compare::exists(keys::runs(from.0, from.1)),
            Compare::absent(keys::lock(&open.job)),
        ],
        then: moved_with_lock(open, from, to),
        otherwise: vec![Op::get(keys::lock(&open.job)), Op::get(keys::session(to.0))],
    };
    let reply = kv.txn(txn).await?;
    if reply.succeeded {
        return Ok(MoveAnswer::Done(reply.revision));
    }
    if reply.pair(1).is_none() {
        return Err(kv::Error::LeaseGone); // says nothing about the run: the next session asks again
    }
    Ok(already_moved(&reply, open, to.0).unwrap_or(MoveAnswer::Refused))
}

/// Takes a run into a new session after the store went back: its open key and its lock may be missing there, or be of before, and say
/// nothing about it. The lock is taken when it is free; a run that goes is not killed for the want of it.
async fn rescue_run(
    kv: &dyn Kv,
    open: &OpenRun,
    from: (Sid, u64),
    to: (Sid, u64),
) -> Result<MoveAnswer, kv::Error> {
    let txn = Txn {
        when: vec![Compare::exists(keys::session(to.0)), Compare::absent(keys::lock(&open.job))],
        then: moved_with_lock(open, from, to),
        otherwise: vec![Op::get(keys::lock(&open.job))],
    };
    let reply = kv.txn(txn).await?;
    if reply.succeeded {
        return Ok(MoveAnswer::Done(reply.revision));
    }
    if let Some(done) = already_moved(&reply, open, to.0) {
        return Ok(done);
    }
    // If this process dies here, the run leaves no trace but its own doing: as if it had died before.
    let txn = Txn {
        when: vec![Compare::exists(keys::session(to.0))],
        then: moved(open, from, to),
        otherwise: Vec::new(),
    };
    let reply = kv.txn(txn).await?;
    if reply.succeeded { Ok(MoveAnswer::Unlocked(reply.revision)) } else { Err(kv::Error::LeaseGone) }
}

/// Deletes open keys whose records are stored. Each is of one claim and never put again, so nothing need be compared.
pub(crate) async fn settle(kv: &dyn Kv, keys: &[(Sid, u64)]) -> Result<(), kv::Error> {
    for some in keys.chunks(kv::OPS_MAX) {
        let then = some.iter().map(|(sid, seq)| Op::delete(keys::runs(*sid, *seq))).collect();
        kv.txn(Txn { then, ..Txn::default() }).await?;
    }
    Ok(())
}

/// Marks, and which slots were read for them.
pub(crate) type MarksRead = (Slots, BTreeMap<JobName, MarkSeen>);

/// Reads marks; when many slots are asked for, all of them.
pub(crate) async fn read_marks(
    kv: &dyn Kv,
    slots: Slots,
    serializable: bool,
) -> Result<MarksRead, kv::Error> {
    let (slots, spans) = match slots {
        Slots::Some(slots) if slots.len() <= SLOTS_SINGLY_MAX => {
            let spans = slots.iter().map(|slot| kv::Span::prefix(keys::fired_slot(*slot))).collect();
            (Slots::Some(slots), spans)
        }
        _ => (Slots::All, vec![kv::Span::prefix(keys::FIRED)]),
    };
    let mut marks = BTreeMap::new();
    for span in spans {
        let range = if serializable { Range::all(span).serializable() } else { Range::all(span) };
        for pair in read_pages(kv, range).await?.0 {
            match keys::parse_fired(&pair.key) {
                Some(job) => drop(marks.insert(job, mark_seen(&pair))),
                None => tracing::warn!(key = %pair.key, "not the key of a mark: left alone"),
            }
        }
    }
    Ok((slots, marks))
}

/// Reads a range in pages, all as of the revision of the first. When somebody compacts between two pages, it begins anew.
pub(crate) async fn read_pages(kv: &dyn Kv, range: Range) -> Result<(Vec<Pair>, Revision), kv::Error> {
    for _ in 1..READINGS_MAX {
        match read_pages_once(kv, &range).await {
            Err(kv::Error::Compacted(_)) => {}
            answered => return answered,
        }
    }
    read_pages_once(kv, &range).await
}

async fn read_pages_once(kv: &dyn Kv, range: &Range) -> Result<(Vec<Pair>, Revision), kv::Error> {
    let mut page = kv.range(range.clone().limit(PAGE)).await?;
    let revision = page.revision;
    let mut pairs = Vec::new();
    loop {
        let more = page.more;
        pairs.append(&mut page.pairs);
        let Some(last) = pairs.last().filter(|_| more) else {
            return Ok((pairs, revision));
        };
        let mut next = range.clone().limit(PAGE).at(revision);
        next.span = next.span.after(&last.key);
        page = kv.range(next).await?;
    }
}

/// The time in `/cron/base`; one that cannot be read counts as absent.
pub(crate) fn parse_base(pair: Option<&Pair>) -> Timestamp {
    let Some(pair) = pair else { return Timestamp::ZERO };
    Base::decode(&pair.value).map_or_else(
        |why| {
            tracing::error!(key = %pair.key, %why, "catch-up base cannot be read: taken as absent");
            Timestamp::ZERO
        },
        |base| base.at,
    )
}
