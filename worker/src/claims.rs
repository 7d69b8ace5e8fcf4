//! The scheduler's writes, each one transaction: what it compares, what it puts, how its answer is read.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use common::clock::Timestamp;
use common::domain::after::Success;
use common::domain::job::{JobName, ScheduleHash};
use common::domain::kill::{KILL_TTL_SECONDS, KillRequest, Killed};
use common::domain::mark::Mark;
use common::domain::pause::Base;
use common::domain::request::Request;
use common::domain::run::{LockHolder, OpenRun, OpenRuns, RunId};
use common::domain::worker::Sid;
use common::keys;
use common::kv::{self, Compare, Kv, Op, Pair, Range, Revision, Span, Txn, TxnReply};
use futures::future::join_all;

use crate::batches::{Batched, Bounds};
use crate::scheduler::{
    AdoptAnswer, Adoption, Claim, ClaimAnswer, ClaimKind, Close, CloseAnswer, Follow, Holder, LockSeen,
    MarkSeen, MoveAnswer, Refusal, RequestAnswer, RequestClaim, RequestRefusal, Slots,
};

/// A mark outlives its job by a day, so that delete and re-create cannot fire one second twice.
const RETIRED_MARK_TTL: Duration = Duration::from_secs(24 * 3600);
/// Most claims of one transaction: each compares three keys beside the three that all compare, and puts three. (One that is `exclusive`
/// compares a fourth thing and goes alone.)
pub(crate) const CLAIMS_MAX: usize = (kv::OPS_MAX - 3) / 3;
/// Most marks that are put by one transaction: each compares two keys beside the session's and the settings'.
pub(crate) const ADOPTIONS_MAX: usize = (kv::OPS_MAX - 2) / 2;
/// Most locks that are freed by one transaction: a nested one each.
pub(crate) const RELEASES_MAX: usize = 64;
/// Claims in flight: two batches keep a store busy; those that go alone are few, or come in a burst after the store was away.
pub(crate) const CLAIMS_IN_FLIGHT: Bounds = Bounds { members: CLAIMS_MAX, batches: 2, alone: 32 };
/// Adoptions in flight: many only when many jobs were put by other hands.
pub(crate) const ADOPTIONS_IN_FLIGHT: Bounds = Bounds { members: ADOPTIONS_MAX, batches: 2, alone: 1 };
/// Locks being freed in flight.
pub(crate) const RELEASES_IN_FLIGHT: Bounds = Bounds { members: RELEASES_MAX, batches: 2, alone: 1 };
/// Ranges are read in pages of this many.
pub(crate) const PAGE: usize = 1000;
/// A range that is compacted while it is read is read anew so often: whoever compacts does it minutes apart, and a range is read in less.
const READINGS_MAX: usize = 3;
/// When all marks are read: the first request is for so many slots, and the next ones for as many as make about a page.
const FIRST_SLOTS: u16 = 256;
/// Up to so many slots are read one by one; for more, all marks are read.
const SLOTS_SINGLY_MAX: usize = 64;

/// Reads of the refused branch, in this order.
const SESSION: usize = 0;
const PAUSED: usize = 1;
const JOB: usize = 2;
const MARK: usize = 3;
const LOCK: usize = 4;
const SHARED: usize = 5;
const SETTINGS: usize = 6;
/// And from here on open runs.
const OPEN: usize = 7;
/// Runs without the lock are told up to so many: those that are replaced go so many at a time.
const HOLDERS_MAX: usize = 16;

impl Batched for Claim {
    fn is_alone(&self) -> bool {
        self.alone
    }

    fn goes_with(&self, other: &Self) -> bool {
        (self.sid, self.settings_revision) == (other.sid, other.settings_revision)
            && self.open.job != other.open.job
    }
}

/// The transaction of a claim that goes by itself (design P1, P3). Every put is fenced by the session's own key.
fn claim_txn(claim: &Claim) -> Txn {
    let name = &claim.open.job;
    let mut otherwise = vec![
        Op::get(keys::session(claim.sid)),
        Op::get(keys::PAUSED),
        Op::get(keys::job(name)),
        Op::get(keys::fired(name)),
        Op::get(keys::lock(name)),
        Op::Range(Range::prefix(keys::shared_of(name)).limit(HOLDERS_MAX)),
        Op::get(keys::SETTINGS),
        Op::get(keys::runs(claim.sid, claim.seq)),
    ];
    otherwise.extend(claim.replaces.map(|seq| Op::get(keys::runs(claim.sid, seq))));
    Txn { otherwise, ..batch_txn(std::slice::from_ref(claim)) }
}

/// One flat transaction of several claims of one session and by the same settings: whatever each compares and puts, in one (design P1). It commits
/// all of them or none; refused, it says nothing of any.
fn batch_txn(claims: &[Claim]) -> Txn {
    // A worker that has not heard of other settings, or calendars, would claim fires that there are no more.
    let same = |claim: &Claim| {
        [
            Compare::exists(keys::session(claim.sid)),
            Compare::unchanged(keys::SETTINGS, claim.settings_revision),
        ]
    };
    let mut when: Vec<Compare> = claims.first().into_iter().flat_map(same).collect();
    if claims.iter().any(|claim| matches!(claim.kind, ClaimKind::Run | ClaimKind::Broadcast)) {
        when.push(Compare::absent(keys::PAUSED));
    }
    let mut then = Vec::new();
    for claim in claims {
        let name = &claim.open.job;
        when.extend(unchanged(name, claim.job_revision, (claim.mark_revision, claim.mark_value.as_ref())));
        then.push(Op::put(keys::fired(name), claim.mark.encode()));
        if matches!(claim.kind, ClaimKind::Run | ClaimKind::Skip) {
            then.push(put_open(&claim.open, (claim.sid, claim.seq)));
        }
        then.extend(put_requests(&claim.spread));
        if claim.kind == ClaimKind::Run {
            if !claim.open.unlocked {
                when.push(match claim.over_lock {
                    None => Compare::absent(keys::lock(name)),
                    Some(revision) => Compare::unchanged(keys::lock(name), revision),
                });
            }
            if claim.exclusive {
                when.push(Compare::NoneIn(Span::prefix(keys::shared_of(name))));
            }
            then.push(put_lock(&claim.open, claim.sid));
        }
    }
    Txn { when, then, otherwise: Vec::new() }
}

/// The requests that a fire, or a request, becomes where its job runs on every worker.
fn put_requests(spread: &[(RunId, Request)]) -> impl Iterator<Item = Op> {
    spread.iter().map(|(run_id, request)| Op::put(keys::request(run_id), request.encode()))
}

/// The open run of a claim, under its own key.
fn put_open(open: &OpenRun, (sid, seq): (Sid, u64)) -> Op {
    Op::put(keys::runs(sid, seq), OpenRuns::new(vec![open.clone()]).encode())
}

/// The job's lock, or what the run holds in its place, for as long as the session lives.
fn put_lock(open: &OpenRun, sid: Sid) -> Op {
    let holder = LockHolder::new(sid, open.run_id.clone());
    Op::put_leased(lock_key(&open.job, &open.run_id, open.unlocked), holder.encode(), sid.lease())
}

fn lock_key(job: &JobName, run_id: &RunId, unlocked: bool) -> String {
    if unlocked { keys::shared(job, run_id) } else { keys::lock(job) }
}

/// What every write of a mark compares beside the session that writes (P3): the job and its mark are those that it was decided from.
fn unchanged(job: &JobName, job_revision: Revision, mark: (Revision, Option<&Vec<u8>>)) -> [Compare; 2] {
    [Compare::unchanged(keys::job(job), job_revision), same_mark(job, mark)]
}

/// The mark is the one that was read. By its value where that is known: no two claims put the same one, while revisions repeat in a store
/// that was put back, and a worker that was cut off meanwhile would move a mark back whose revision it knows by chance.
fn same_mark(job: &JobName, (revision, value): (Revision, Option<&Vec<u8>>)) -> Compare {
    match value {
        Some(value) => Compare::Value(keys::fired(job).into(), value.clone()),
        None => Compare::unchanged(keys::fired(job), revision),
    }
}

/// What goes with a run's key under [`keys::SHARED`] that is put by another than a claim of the fire's: the mark must say that there may be such
/// keys, or whoever takes the lock next does not look for them. So the mark is read, and the transaction compares that it is still the one that
/// was read, and puts it with the word where it lacks it. A mark that is not there is made: its job's owner takes it for one of other hands, and
/// keeps the word.
///
/// *Closes*: a run goes on unseen while its session is lost; its job is edited from `allow`, a fire takes the lock, finds no key and takes the
/// word from the mark; then the run comes back with its key, and the next fire but one does not look for it.
async fn say_unlocked(kv: &dyn Kv, job: &JobName) -> Result<(Compare, Option<Op>), kv::Error> {
    let stored = kv.range(Range::key(keys::fired(job))).await?.pairs.into_iter().next();
    let revision = stored.as_ref().map_or(0, |pair| pair.mod_revision);
    let mut mark = match stored.as_ref().map(|pair| Mark::decode(&pair.value)) {
        None => Mark::based(None, Timestamp::ZERO, ScheduleHash::default()),
        Some(Ok(mark)) => mark,
        // Of a newer version, which is not to be overwritten. While it stands, this version claims no fire of the job.
        Some(Err(_)) => return Ok((Compare::unchanged(keys::fired(job), revision), None)),
    };
    let value = stored.as_ref().and_then(|_| mark.stored_value());
    let read = same_mark(job, (revision, value.as_ref()));
    if stored.is_some() && mark.unlocked {
        return Ok((read, None));
    }
    mark.unlocked = true;
    // The lease of a day, if its job was deleted. (Should that be so between the reading and this, the hourly reading of marks finds it again.)
    let lease = stored.and_then(|pair| pair.lease);
    Ok((read, Some(Op::Put { key: keys::fired(job).into(), value: mark.encode(), lease })))
}

/// Claims of one session in one transaction, at most [`CLAIMS_MAX`]; when that is refused, each by itself. One answer for each, in order.
///
/// A claim's sendings, alone or in any batch, compare and put the same of its own keys: whichever commits first moves the mark, and with it
/// refuses every other sending of that claim, together with all that was sent with it. So it makes no difference to a claim in doubt (P2)
/// in which company it went.
pub(crate) async fn claim_all(kv: &dyn Kv, claims: &[Claim]) -> Vec<ClaimAnswer> {
    if let [only] = claims {
        return vec![claim(kv, only).await];
    }
    match kv.txn(batch_txn(claims)).await {
        Ok(reply) if reply.succeeded => vec![ClaimAnswer::Won(reply.revision); claims.len()],
        // If this process dies here, nothing was claimed.
        Ok(_refused) => join_all(claims.iter().map(|each| claim(kv, each))).await,
        Err(why) => vec![unanswered(&why, &claims[0]); claims.len()],
    }
}

/// Sends a claim once, by itself.
pub(crate) async fn claim(kv: &dyn Kv, claim: &Claim) -> ClaimAnswer {
    match kv.txn(claim_txn(claim)).await {
        Ok(reply) if reply.succeeded => ClaimAnswer::Won(reply.revision),
        Ok(reply) => ClaimAnswer::Refused(refusal(claim, &reply)),
        Err(why) => unanswered(&why, claim),
    }
}

fn unanswered(why: &kv::Error, claim: &Claim) -> ClaimAnswer {
    // The watches and the session say aloud that the store is away; this would be a line for every job.
    tracing::debug!(job = %claim.open.job, plan_time = %claim.open.plan_time, %why, "claim not answered");
    match why {
        kv::Error::Indeterminate(_) | kv::Error::Full(_) => ClaimAnswer::Unknown,
        // Also when the lease is gone: nothing was applied, and keep-alive will find out.
        _ => ClaimAnswer::NotApplied,
    }
}

/// What the lock is to a claim; `shared`: what the runs hold that go without it, where the claim compares that there are none.
fn lock_seen(lock: Option<&Pair>, shared: &[Pair]) -> LockSeen {
    match lock {
        None if shared.is_empty() => LockSeen::Free,
        Some(pair) if pair.value.is_empty() => LockSeen::HeldBySeed,
        None | Some(_) => LockSeen::Held,
    }
}

/// What the runs hold that go without the lock, if the claim is `exclusive`.
fn shared_seen(reply: &TxnReply, exclusive: bool) -> &[Pair] {
    if exclusive { reply.pairs(SHARED) } else { &[] }
}

fn refusal(claim: &Claim, reply: &TxnReply) -> Refusal {
    let shared = shared_seen(reply, claim.exclusive);
    let lock = reply.pair(LOCK).filter(|_| !claim.open.unlocked);
    Refusal {
        holders: shared.iter().chain(lock).filter_map(holder).collect(),
        session_alive: reply.pair(SESSION).is_some(),
        paused: reply.pair(PAUSED).is_some(),
        job_revision: reply.pair(JOB).map_or(0, |pair| pair.mod_revision),
        settings_revision: reply.pair(SETTINGS).map_or(0, |pair| pair.mod_revision),
        mark: reply.pair(MARK).map(mark_seen),
        lock: lock_seen(lock, shared),
        open: (OPEN..reply.replies.len()).filter_map(|index| open_seen(reply.pair(index)?)).collect(),
    }
}

/// Who holds this. Not a seed worker, whose lock says nothing, nor a newer version, whose lock cannot be read.
fn holder(pair: &Pair) -> Option<Holder> {
    let run_id = LockHolder::decode(&pair.value).ok()??.run_id;
    Some(Holder { run_id, unlocked: keys::parse_shared(&pair.key).is_some(), revision: pair.mod_revision })
}

/// Asks for the runs to be killed that keep a claim from being made (design P13). All that the claim compares is compared here, and that
/// each run still holds what it holds: a request that comes late, when its fire is claimed or let go, the job edited or a run over, kills
/// nobody. `Ok` also when nothing was asked for.
pub(crate) async fn replace(
    kv: &dyn Kv,
    claim: &Claim,
    holders: &[Holder],
    killed: Killed,
) -> Result<(), kv::Error> {
    let name = &claim.open.job;
    let lease = kv.grant(Duration::from_secs(KILL_TTL_SECONDS)).await?;
    // If this process dies here, the lease ends without a key. Whoever claims the fire next asks anew.
    let mut when = vec![
        Compare::exists(keys::session(claim.sid)),
        Compare::absent(keys::PAUSED),
        Compare::unchanged(keys::SETTINGS, claim.settings_revision),
    ];
    when.extend(unchanged(name, claim.job_revision, (claim.mark_revision, claim.mark_value.as_ref())));
    when.extend(
        holders
            .iter()
            .map(|held| Compare::unchanged(lock_key(name, &held.run_id, held.unlocked), held.revision)),
    );
    let run_ids = holders.iter().map(|held| held.run_id.clone()).collect();
    let request = KillRequest::new(run_ids, killed).encode();
    let then = vec![Op::put_leased(keys::killer(name), request, lease)];
    if !kv.txn(Txn { when, then, otherwise: Vec::new() }).await?.succeeded {
        kv.revoke(lease).await?;
    }
    Ok(())
}

/// The open run of a claim's own key. One that cannot be read is not this claim's.
fn open_seen(pair: &Pair) -> Option<(OpenRun, Revision)> {
    let open = OpenRuns::decode(&pair.value).ok()?.runs.into_iter().next()?;
    Some((open, pair.mod_revision))
}

fn mark_seen(pair: &Pair) -> MarkSeen {
    MarkSeen { mark: Mark::decode(&pair.value), revision: pair.mod_revision, retired: pair.lease.is_some() }
}

/// The transaction that takes a request (design P13): its key goes, and the open run comes, if it is to run with the lock, or with what stands in
/// its place and the word in the mark (`marked`). Two that take the same one compare the same revision of its key. Nothing else of the mark is
/// touched: fires go on as if nothing were.
///
/// One that is for every worker (`spread`) becomes a request for each in its place, of which its own may be the last: what is left of it.
fn request_txn(claim: &RequestClaim, marked: Option<(Compare, Option<Op>)>) -> Txn {
    let (name, request) = (&claim.open.job, keys::request(&claim.open.run_id));
    let mut when = vec![
        Compare::exists(keys::session(claim.sid)),
        Compare::unchanged(request.as_str(), claim.request_revision),
        Compare::unchanged(keys::job(name), claim.job_revision),
    ];
    let mut then = Vec::new();
    // A transaction may put a key or delete it, not both.
    if claim.spread.iter().all(|(run_id, _)| *run_id != claim.open.run_id) {
        then.push(Op::delete(request.as_str()));
    }
    if claim.spread.is_empty() {
        then.push(put_open(&claim.open, (claim.sid, claim.seq)));
    } else {
        when.push(Compare::absent(keys::PAUSED));
        then.extend(put_requests(&claim.spread));
    }
    if claim.open.skipped.is_none() && claim.spread.is_empty() {
        when.push(Compare::absent(keys::PAUSED));
        match marked {
            Some((same_mark, put)) => {
                when.push(same_mark);
                then.extend(put);
            }
            None => when.extend([
                Compare::absent(keys::lock(name)),
                Compare::NoneIn(Span::prefix(keys::shared_of(name))),
            ]),
        }
        then.push(put_lock(&claim.open, claim.sid));
    }
    let otherwise = vec![
        Op::get(keys::session(claim.sid)),
        Op::get(keys::PAUSED),
        Op::get(keys::job(name)),
        Op::get(request),
        Op::get(keys::lock(name)),
        Op::Range(Range::prefix(keys::shared_of(name)).limit(1)),
        Op::get(keys::runs(claim.sid, claim.seq)),
    ];
    Txn { when, then, otherwise }
}

/// Sends the claim of a request once. Each goes by itself: they have no time to meet, and etcd syncs those that come together at once anyway.
pub(crate) async fn claim_request(kv: &dyn Kv, claim: &RequestClaim) -> RequestAnswer {
    // Reads of the refused branch: all but these are where those of a fire's claim are. What was asked for depends on no settings.
    const REQUEST: usize = MARK;
    const OPEN: usize = SETTINGS;
    // Sent again it may compare another mark. It is the same claim all the same: whichever sending commits first deletes the request, and with
    // that refuses every other.
    let unlocked = claim.open.unlocked;
    let marked = match unlocked && claim.spread.is_empty() {
        false => None,
        true => match say_unlocked(kv, &claim.open.job).await {
            Ok(marked) => Some(marked),
            Err(_unread) => return RequestAnswer::NotApplied,
        },
    };
    match kv.txn(request_txn(claim, marked)).await {
        Ok(reply) if reply.succeeded => RequestAnswer::Won(reply.revision),
        Ok(reply) => RequestAnswer::Refused(RequestRefusal {
            session_alive: reply.pair(SESSION).is_some(),
            paused: reply.pair(PAUSED).is_some(),
            job_revision: reply.pair(JOB).map_or(0, |pair| pair.mod_revision),
            request_revision: reply.pair(REQUEST).map_or(0, |pair| pair.mod_revision),
            lock: lock_seen(reply.pair(LOCK).filter(|_| !unlocked), shared_seen(&reply, !unlocked)),
            // Whatever is under the number of this claim, this claim has put there.
            open: reply.pair(OPEN).map(|pair| pair.mod_revision),
        }),
        Err(kv::Error::Indeterminate(_) | kv::Error::Full(_)) => RequestAnswer::Unknown,
        Err(_not_applied) => RequestAnswer::NotApplied,
    }
}

/// Writes the open key of a run that has ended, and with it asks for the next attempt, or tells the jobs that wait for it (design P13).
///
/// Not under the session's key, which P3 wants of whatever a session puts: nothing is added that a survivor could have missed. It puts an
/// open key again that is there, at the revision that this worker has put; a survivor deletes it at that revision. One of the two comes
/// first and refuses the other, so that one asks for the next attempt at most. Sent again, it finds the key at another revision. The jobs that
/// are told are compared, since their definitions say what is told.
pub(crate) async fn close_run(kv: &dyn Kv, close: &Close) -> Result<CloseAnswer, kv::Error> {
    let key = keys::runs(close.key.0, close.key.1);
    let mut when = vec![Compare::unchanged(key.as_str(), close.revision)];
    let mut then = vec![put_open(&close.open, close.key)];
    then.extend(close.next.iter().map(|(run_id, request)| Op::put(keys::request(run_id), request.encode())));
    for follow in &close.follows {
        when.push(Compare::unchanged(keys::job(&follow.job), follow.job_revision));
        then.extend(tell(follow, &close.open).map(Op::Txn));
    }
    let reply = kv.txn(Txn { when, then, otherwise: vec![Op::get(key)] }).await?;
    Ok(match reply.pair(0) {
        _ if reply.succeeded => CloseAnswer::Done(reply.revision),
        None => CloseAnswer::Gone,
        Some(open) if open.mod_revision == close.revision => CloseAnswer::Stale,
        // Nobody else puts it again: an earlier sending of this one has.
        Some(open) => CloseAnswer::Done(open.mod_revision),
    })
}

/// Tells a job that one of those that it waits for has succeeded (design P13, `after`). Compares of nested transactions see the store as it was
/// before the whole, and no job is told twice by one: of the successes of two runs one comes first, and the other finds it noted.
fn tell(follow: &Follow, open: &OpenRun) -> Option<Txn> {
    let job = &follow.job;
    let (run_id, request) = follow.run.as_ref()?;
    let noted = |other: &JobName| Compare::exists(keys::after(job, other));
    let success = Success::new(open.run_id.clone(), request.at);
    Some(Txn {
        when: follow.others.iter().map(noted).collect(),
        then: vec![
            Op::put(keys::request(run_id), request.encode()),
            Op::Delete(Span::prefix(keys::after_of(job))),
        ],
        otherwise: vec![Op::put(keys::after(job, &open.job), success.encode())],
    })
}

impl Batched for Adoption {
    fn goes_with(&self, other: &Self) -> bool {
        (self.sid, self.settings_revision) == (other.sid, other.settings_revision) && self.job != other.job
    }
}

/// Puts the marks of jobs that other hands have put (design P7), of one session and by the same settings, at most [`ADOPTIONS_MAX`] at a time: all in one transaction;
/// when that is refused, each by itself. One answer for each, in order.
pub(crate) async fn adopt_all(kv: &dyn Kv, adoptions: &[Adoption]) -> Vec<AdoptAnswer> {
    let Some(first) = adoptions.first() else { return Vec::new() };
    // A worker that has not heard of other settings would take a mark that was put by them for one of other hands, and put it back.
    let settings = Compare::unchanged(keys::SETTINGS, first.settings_revision);
    let mut txn = Txn { when: vec![Compare::exists(keys::session(first.sid)), settings], ..Txn::default() };
    for adoption in adoptions {
        let mark = (adoption.mark_revision, adoption.mark_value.as_ref());
        txn.when.extend(unchanged(&adoption.job, adoption.job_revision, mark));
        txn.then.push(Op::put(keys::fired(&adoption.job), adoption.mark.encode()));
    }
    match kv.txn(txn).await {
        Ok(reply) if reply.succeeded => {
            adoptions.iter().map(|each| AdoptAnswer::Done(each.mark.clone(), reply.revision)).collect()
        }
        Ok(_refused) if adoptions.len() > 1 => {
            let alone = |each| async move { adopt_all(kv, std::slice::from_ref(each)).await };
            join_all(adoptions.iter().map(|each| Box::pin(alone(each)))).await.into_iter().flatten().collect()
        }
        // Without an answer they may have been put, or be put yet: whoever looks again sees them or replaces them, and no claim depends on
        // them.
        Ok(_) | Err(_) => vec![AdoptAnswer::LookAgain; adoptions.len()],
    }
}

/// Hangs the mark of a deleted job on a lease of a day (design P6). What had succeeded of the jobs that it waited for is nothing to another job
/// of the name.
pub(crate) async fn retire_mark(
    kv: &dyn Kv,
    job: &JobName,
    revision: Revision,
    mark: &Mark,
) -> Result<(), kv::Error> {
    let lease = kv.grant(RETIRED_MARK_TTL).await?;
    // If this process dies here, the lease ends in a day without any key.
    let txn = Txn {
        when: vec![Compare::absent(keys::job(job)), same_mark(job, (revision, mark.stored_value().as_ref()))],
        then: vec![
            Op::put_leased(keys::fired(job), mark.encode(), lease),
            Op::Delete(Span::prefix(keys::after_of(job))),
        ],
        otherwise: Vec::new(),
    };
    if !kv.txn(txn).await?.succeeded {
        kv.revoke(lease).await?;
    }
    Ok(())
}

/// A lock to be freed: the job's, if it was last put at this revision, for this run. The revision alone would do but for a store that was put
/// back: revisions repeat there, and a request of before that comes late would free another's lock.
#[derive(Clone, Debug)]
pub(crate) struct HeldLock {
    pub(crate) job: JobName,
    pub(crate) revision: Revision,
    pub(crate) holder: LockHolder,
    /// It is what its run holds in the place of the lock.
    pub(crate) unlocked: bool,
}

impl HeldLock {
    /// The lock that a run of this session holds.
    pub(crate) fn new(job: JobName, revision: Revision, sid: Sid, run_id: RunId, unlocked: bool) -> Self {
        Self { job, revision, holder: LockHolder::new(sid, run_id), unlocked }
    }
}

impl Batched for HeldLock {
    fn goes_with(&self, other: &Self) -> bool {
        self.job != other.job
    }
}

/// Deletes locks, each if it is still the one that its run's claim put (design P9); at most [`RELEASES_MAX`]. `Ok` = none is held by its run
/// (any more).
pub(crate) async fn release_all(kv: &dyn Kv, locks: &[HeldLock]) -> Result<(), kv::Error> {
    let mut each = locks.iter().map(|lock| {
        let key = lock_key(&lock.job, &lock.holder.run_id, lock.unlocked);
        let value = Compare::Value(key.as_str().into(), lock.holder.encode());
        Txn {
            when: vec![Compare::unchanged(key.as_str(), lock.revision), value],
            then: vec![Op::delete(key)],
            otherwise: Vec::new(),
        }
    });
    let txn = match (locks.len(), each.next()) {
        (_, None) => return Ok(()),
        (1, Some(only)) => only,
        (_, Some(first)) => {
            // Compares of nested transactions see the state before the whole: that is all the same, since no job is among them twice.
            let then = std::iter::once(first).chain(each).map(Op::Txn).collect();
            Txn { then, ..Txn::default() }
        }
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
    let (lock, old_key) = (lock_key(&open.job, &open.run_id, open.unlocked), keys::runs(from.0, from.1));
    let mut when = vec![Compare::exists(keys::session(to.0)), Compare::exists(old_key.as_str())];
    let mut then = moved_with_lock(open, from, to);
    if open.unlocked {
        let (same_mark, put) = say_unlocked(kv, &open.job).await?;
        when.push(same_mark);
        then.extend(put);
    } else {
        when.push(Compare::absent(lock.as_str()));
    }
    let otherwise = vec![Op::get(lock), Op::get(keys::session(to.0)), Op::get(old_key)];
    let reply = kv.txn(Txn { when, then, otherwise }).await?;
    if reply.succeeded {
        return Ok(MoveAnswer::Done(reply.revision));
    }
    if reply.pair(1).is_none() {
        return Err(kv::Error::LeaseGone); // says nothing about the run: the next session asks again
    }
    match already_moved(&reply, open, to.0) {
        Some(moved) => Ok(moved),
        None if open.unlocked && reply.pair(2).is_some() => Err(mark_moved()),
        None => Ok(MoveAnswer::Refused),
    }
}

fn mark_moved() -> kv::Error {
    kv::Error::Unavailable("the mark moved meanwhile: asked again".to_owned())
}

/// Takes a run into a new session after the store went back: its open key and its lock may be missing there, or be of before, and say
/// nothing about it. The lock is taken when it is free; a run that goes is not killed for the want of it.
///
/// Its old open key is put first where it is missing, so that the move can compare that key's revision and delete it: then of all sendings
/// one commits at most. Else one that is delayed until the run has ended would put lock and open key once more, and nobody would free them.
async fn rescue_run(
    kv: &dyn Kv,
    open: &OpenRun,
    from: (Sid, u64),
    to: (Sid, u64),
) -> Result<MoveAnswer, kv::Error> {
    let (old_key, new_key) = (keys::runs(from.0, from.1), keys::runs(to.0, to.1));
    let lock = lock_key(&open.job, &open.run_id, open.unlocked);
    let txn = Txn {
        when: vec![
            Compare::exists(keys::session(to.0)),
            Compare::absent(old_key.as_str()),
            Compare::absent(new_key.as_str()),
        ],
        then: vec![put_open(open, from)],
        otherwise: vec![
            Op::get(lock.as_str()),
            Op::get(old_key.as_str()),
            Op::get(new_key),
            Op::get(keys::session(to.0)),
        ],
    };
    let reply = kv.txn(txn).await?;
    // If this process dies here, the run is swept as lost: as if it had died before.
    let old = if reply.succeeded {
        reply.revision
    } else if reply.pair(3).is_none() {
        return Err(kv::Error::LeaseGone); // says nothing about the run: the next session asks again
    } else if let Some(moved) = reply.pair(2) {
        // An earlier sending has committed.
        return Ok(already_moved(&reply, open, to.0).unwrap_or(MoveAnswer::Unlocked(moved.mod_revision)));
    } else {
        reply.pair(1).map_or(0, |old| old.mod_revision)
    };
    let decided = || vec![Compare::exists(keys::session(to.0)), Compare::unchanged(old_key.as_str(), old)];
    let (mut when, mut then) = (decided(), moved_with_lock(open, from, to));
    if open.unlocked {
        let (same_mark, put) = say_unlocked(kv, &open.job).await?;
        when.push(same_mark);
        then.extend(put);
    } else {
        when.push(Compare::absent(lock));
    }
    let reply = kv.txn(Txn { when, then, otherwise: Vec::new() }).await?;
    if reply.succeeded {
        return Ok(MoveAnswer::Done(reply.revision));
    }
    if open.unlocked {
        return Err(mark_moved()); // or as below: nobody else holds what it holds
    }
    // If this process dies here: as above.
    let reply = kv.txn(Txn { when: decided(), then: moved(open, from, to), otherwise: Vec::new() }).await?;
    if reply.succeeded {
        return Ok(MoveAnswer::Unlocked(reply.revision));
    }
    Err(kv::Error::Unavailable(
        "an earlier sending came between, or the session's end: asked again".to_owned(),
    ))
}

/// Deletes open keys whose records are stored. Each is of one claim and never put again, so nothing need be compared. Neighbours go as one
/// range (design P12).
pub(crate) async fn settle(kv: &dyn Kv, keys: &[(Sid, u64)]) -> Result<(), kv::Error> {
    let mut ranges: Vec<(Sid, u64, u64)> = Vec::new();
    for &(sid, seq) in &keys.iter().copied().collect::<BTreeSet<_>>() {
        match ranges.last_mut() {
            Some((of, _, last)) if *of == sid && *last + 1 == seq => *last = seq,
            _ => ranges.push((sid, seq, seq)),
        }
    }
    let delete = |&(sid, first, last): &(Sid, u64, u64)| {
        Op::Delete(Span { from: keys::runs(sid, first).into(), ..Span::key(keys::runs(sid, last)) })
    };
    for some in ranges.chunks(kv::OPS_MAX) {
        kv.txn(Txn { then: some.iter().map(delete).collect(), ..Txn::default() }).await?;
    }
    Ok(())
}

/// Marks by job, and the slots whose marks these are: all of them.
pub(crate) type MarksRead = (BTreeSet<u16>, BTreeMap<JobName, MarkSeen>);

/// Reads the marks of these slots, each as of now. Many slots, or all, are read in one go over all marks, and told in parts, so that a
/// worker with a million jobs never holds all marks twice.
pub(crate) async fn read_marks<F, T>(
    kv: &dyn Kv,
    slots: &Slots,
    serializable: bool,
    mut tell: F,
) -> Result<(), kv::Error>
where
    F: FnMut(MarksRead) -> T + Send,
    T: Future<Output = ()> + Send,
{
    let range = |span| {
        let range = Range::all(span);
        if serializable { range.serializable() } else { range }
    };
    if let Slots::Some(some) = slots
        && some.len() <= SLOTS_SINGLY_MAX
    {
        let mut marks = BTreeMap::new();
        for slot in some {
            let pairs = read_pages(kv, range(Span::prefix(keys::fired_slot(*slot)))).await?.0;
            marks.extend(pairs.iter().filter_map(mark_by_job));
        }
        tell((some.clone(), marks)).await;
        return Ok(());
    }
    // A bounded range for so many slots at a time: etcd counts what lies behind a page up to the range's end, so that pages of one large
    // range cost its square.
    let (mut next, mut width) = (0, FIRST_SLOTS);
    while next < keys::SLOTS {
        let behind = next.saturating_add(width).min(keys::SLOTS);
        let span = match behind {
            keys::SLOTS => Span { from: keys::fired_slot(next).into(), to: Span::prefix(keys::FIRED).to },
            _ => Span::between(keys::fired_slot(next), keys::fired_slot(behind)),
        };
        let (pairs, _) = read_pages(kv, range(span)).await?;
        width = match pairs.len() {
            ..=PAGE => width.saturating_mul(2).min(keys::SLOTS),
            _ => (width / 2).max(1),
        };
        tell(((next..behind).collect(), pairs.iter().filter_map(mark_by_job).collect())).await;
        next = behind;
    }
    Ok(())
}

fn mark_by_job(pair: &Pair) -> Option<(JobName, MarkSeen)> {
    let job = keys::parse_fired(&pair.key);
    if job.is_none() {
        tracing::warn!(key = %pair.key, "not the key of a mark: left alone");
    }
    Some((job?, mark_seen(pair)))
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
        // Another member than the one before may answer, and not be so far yet.
        next.serializable = false;
        next.span = next.span.after(&last.key);
        page = kv.range(next).await?;
    }
}

/// What `/cron/base` says; one that cannot be read counts as absent.
pub(crate) fn parse_base(pair: Option<&Pair>) -> Base {
    let Some(pair) = pair else { return Base::default() };
    Base::decode(&pair.value).unwrap_or_else(|why| {
        tracing::error!(key = %pair.key, %why, "catch-up base cannot be read: taken as absent");
        Base::default()
    })
}

/// Writes into the base up to when what is in the store may be of before it was put back, unless somebody else who noticed has done so: then
/// it says something else than `known`, which this worker was told before (`None` = nothing yet). So a worker that notices minutes later than
/// the others moves nothing.
///
/// Not under the session's key, which P3 wants of whatever a session puts: whoever notices has no session, and nothing hangs on this one. It
/// compares the value that it read, and only ever raises what that says, so that a sending of before the next restore, which comes late, does
/// no harm.
pub(crate) async fn note_restore(
    kv: &dyn Kv,
    known: Option<Timestamp>,
    floor: Timestamp,
) -> Result<(), kv::Error> {
    let stored = kv.range(Range::key(keys::BASE)).await?.pairs.into_iter().next();
    let base = match stored.as_ref().map(|pair| Base::decode(&pair.value)) {
        None => Base::default(),
        Some(Ok(base)) => base,
        Some(Err(why)) => {
            tracing::error!(%why, "catch-up base cannot be read: left alone, although the store was put back");
            return Ok(());
        }
    };
    let said = base.restored.unwrap_or(Timestamp::ZERO);
    if said >= floor || known.is_some_and(|known| said > known) {
        return Ok(());
    }
    // If this process dies here, whoever else notices writes it.
    let read = match stored {
        None => Compare::absent(keys::BASE),
        Some(pair) => Compare::Value(pair.key, pair.value),
    };
    let txn = Txn {
        when: vec![read],
        then: vec![Op::put(keys::BASE, base.restored(floor).encode())],
        ..Txn::default()
    };
    if kv.txn(txn).await?.succeeded {
        return Ok(());
    }
    Err(kv::Error::Unavailable("others wrote it meanwhile: looked at again".to_owned()))
}
