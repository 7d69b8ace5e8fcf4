//! What is broken on purpose, to see that the invariants notice it.

use std::collections::BTreeSet;

use common::domain::broadcast::Target;
use common::domain::mark::Mark;
use common::domain::record::Record;
use common::domain::request::Request;
use common::domain::retry::Retry;
use common::domain::run::OpenRuns;
use common::domain::worker::Sid;
use common::keys;
use common::kv::{Compare, Key, Kv, Op, Range, Span, Txn};
use common::run_log::RunLog;

use super::log::At;
use crate::scheduler::{Claim, ClaimAnswer, ClaimKind, LockSeen, MarkSeen, Refusal};
use crate::{claims, sweep};

/// One break each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mutant {
    None,
    NoJobCompare,
    NoMarkCompare,
    NoLockCompare,
    NoSessionCompare,
    NoPausedCompare,
    NoSettingsCompare,
    /// Settings that are missing are not put where there are calendars.
    LeavesSettingsAway,
    /// A claim whose answer was lost is decided by reading the mark.
    ReadThenDecide,
    /// A lock is deleted whoever holds it.
    UnlockAnybodys,
    /// Whoever deletes a job deletes its mark.
    MarkGoesWithJob,
    /// Two claims in a row write one open key.
    SharedOpenKey,
    /// A worker does not forget what it claimed under a session that is over.
    TrustsDeadSession,
    /// The fire's time is not nominal: each sending draws its own.
    JitterPerFire,
    /// Open runs are read before their session is known to be gone, and deleted with all that were added since.
    SweepsTooEarly,
    /// Sessions are read before open runs: one that began in between looks gone.
    SweepsSessionsFirst,
    /// A store that went back is nothing special.
    NoFloor,
    /// A worker claims by its clock, however far off that is.
    TrustsAnyClock,
    /// Whoever enables a job does not say from when its fires count.
    EnablesWithoutBase,
    /// The guardian does nothing.
    NoFence,
    /// A fire takes the lock of the run that it is to replace, and does not wait.
    ReplacesAtOnce,
    /// A run of a job that lets runs overlap takes the lock beside.
    OverlapTakesLock,
    /// Whoever takes the lock does not look for runs without it.
    NoSharedCompare,
    /// The mark does not say that there are runs without the lock.
    ForgetsUnlocked,
    /// Nor does a run that comes into another session without the lock see to it that the mark says so.
    MovesUnseen,
    /// Nor one that was asked for.
    AsksUnseen,
    /// What is left of a fire that is for more workers than one transaction has room for is forgotten.
    ForgetsRest,
    /// A worker takes what is for another.
    TakesAnothers,
    /// A fire is for every worker, and one is told for all.
    TellsOne,
    /// A job that is edited loses its lock.
    EditFreesLock,
    /// The claim of a request leaves it there.
    RequestStays,
    /// Whoever claims a request does not look whether it is still there.
    NoRequestCompare,
    /// The next attempt is asked for by each sending.
    RetryUnconditional,
    /// The record of a run is handed on while its open key still says that a survivor is to ask for the next attempt.
    EndsUntold,
    /// Whatever is lost is tried again, also what has no fence and whose job does not ask for it.
    RetriesAnyLost,
    /// An open run goes before its record is on disk.
    SettlesFirst,
    /// A record counts as on disk, and is not.
    NoSync,
    /// The record of a run that succeeded is handed on, and the jobs that wait for it are not told.
    SucceedsUntold,
    /// Whoever tells jobs that wait does not look whether they are as they were.
    TellsAnybody,
    /// A job that waits for two runs after each success.
    AnySuccessWill,
    /// What has led to a run leads to the next one, too.
    SuccessStays,
    /// What has succeeded is noted, and the run is not asked for.
    NotesAlone,
}

impl Mutant {
    /// Each break, with words one of which says that it was noticed for what it is.
    pub(super) const ALL: [(Self, &'static [&'static str]); 41] = [
        (Self::ReplacesAtOnce, &["overlaps", "takes the lock of another", "another run is still open"]),
        (Self::OverlapTakesLock, &["goes without the lock takes it"]),
        (Self::NoSharedCompare, &["beside a run without it"]),
        (Self::ForgetsUnlocked, &["does not say so"]),
        (Self::MovesUnseen, &["does not say so"]),
        (Self::AsksUnseen, &["does not say so"]),
        (Self::ForgetsRest, &["is not told of", "and is handed to"]),
        (Self::TakesAnothers, &["and claimed under"]),
        (Self::TellsOne, &["told twice", "and is handed to"]),
        (Self::EditFreesLock, &["overlaps"]),
        (Self::NoJobCompare, &["no fire of", "without a job"]),
        (Self::TrustsAnyClock, &["long before its time"]),
        (Self::NoMarkCompare, &["claimed where", "went back", "claimed again", "started twice"]),
        (Self::NoLockCompare, &["takes the lock of another"]),
        (Self::NoSessionCompare, &["session that is over"]),
        (Self::NoPausedCompare, &["while paused"]),
        (Self::NoSettingsCompare, &["by settings that are over"]),
        (Self::LeavesSettingsAway, &["by settings that are over"]),
        (Self::ReadThenDecide, &["left behind by a worker"]),
        (Self::UnlockAnybodys, &["overlaps"]),
        (Self::MarkGoesWithJob, &["claimed again", "started twice"]),
        (Self::SharedOpenKey, &["its records for None", "still open under the key"]),
        (Self::TrustsDeadSession, &["under a session that is over"]),
        (Self::JitterPerFire, &["no fire of"]),
        (Self::SweepsTooEarly, &["its records for None"]),
        (Self::SweepsSessionsFirst, &["closed by another while its session lives"]),
        (Self::NoFloor, &["started twice"]),
        (Self::EnablesWithoutBase, &["before it was enabled"]),
        (Self::NoFence, &["overlaps a run with a fence"]),
        (Self::RequestStays, &["still asked for"]),
        (Self::NoRequestCompare, &["claimed by another as well", "claimed again", "started twice"]),
        (Self::RetryUnconditional, &["asked for again"]),
        (Self::EndsUntold, &["tried again as if it were lost"]),
        (Self::RetriesAnyLost, &["does not want that"]),
        (Self::SettlesFirst, &["its records for None"]),
        (Self::NoSync, &["was on disk"]),
        (Self::SucceedsUntold, &["is done with, and nobody who waits"]),
        (Self::TellsAnybody, &["does not wait for"]),
        (Self::AnySuccessWill, &["has not succeeded"]),
        (Self::SuccessStays, &["still noted"]),
        (Self::NotesAlone, &["is not asked for"]),
    ];

    /// The transaction as a broken worker sends it.
    pub(super) fn send(self, mut txn: Txn) -> Txn {
        txn.when.retain(|compare| self.keeps(compare));
        let takes_request =
            |op: &Op| matches!(op, Op::Delete(span) if keys::parse_request(&span.from).is_some());
        if self == Self::RequestStays {
            txn.then.retain(|op| !takes_request(op));
        }
        let is_told = |op: &Op| matches!(op, Op::Txn(Txn { otherwise, .. }) if otherwise.iter().any(|op| is_put(op, keys::AFTER)));
        if self == Self::TellsAnybody && txn.then.iter().any(is_told) {
            txn.when.retain(|compare| !matches!(compare, Compare::ModRevision(key, ..) if key.strip_prefix(keys::JOBS).is_some()));
        }
        if self == Self::SuccessStays {
            txn.then.retain(
                |op| !matches!(op, Op::Delete(span) if span.from.strip_prefix(keys::AFTER).is_some()),
            );
        }
        if self == Self::NotesAlone && txn.otherwise.iter().any(|op| is_put(op, keys::AFTER)) {
            txn.then.clone_from(&txn.otherwise);
        }
        for op in txn.then.iter_mut().chain(&mut txn.otherwise) {
            if let Op::Txn(nested) = op {
                *nested = self.send(std::mem::take(nested));
            }
        }
        if self == Self::OverlapTakesLock {
            let locks: Vec<Op> = txn.then.iter().filter_map(lock_beside).collect();
            txn.then.extend(locks);
        }
        if self == Self::ForgetsRest {
            txn.then.retain(|op| request_put(op).is_none_or(|request| request.targets.is_empty()));
        }
        if self == Self::TellsOne {
            let first = txn.then.iter().find_map(|op| request_put(op)?.target);
            txn.then.iter_mut().for_each(|op| tell(op, first.as_ref()));
        }
        if self == Self::ForgetsUnlocked {
            txn.then.iter_mut().for_each(forget_unlocked);
        }
        let moves = |op: &Op| matches!(op, Op::Delete(span) if keys::parse_runs(&span.from).is_some());
        if self == Self::MovesUnseen && txn.then.iter().any(moves)
            || self == Self::AsksUnseen && txn.then.iter().any(takes_request)
        {
            txn.then.retain(|op| !matches!(op, Op::Put { key, .. } if keys::parse_fired(key).is_some()));
        }
        // Not where the end of a run is written, which is what `EndsUntold` breaks.
        let takes = |op: &Op| matches!(op, Op::Put { key, .. } if keys::parse_lock(key).is_some());
        if self == Self::RetriesAnyLost && txn.then.iter().any(takes) {
            txn.then.iter_mut().for_each(retry_if_lost);
        }
        if self == Self::SharedOpenKey {
            for op in txn.then.iter_mut().chain(&mut txn.otherwise) {
                share_open_key(op);
            }
            for compare in &mut txn.when {
                if let Compare::CreateRevision(key, ..) = compare {
                    *key = shared(key);
                }
            }
        }
        txn
    }

    fn keeps(self, compare: &Compare) -> bool {
        let (Compare::CreateRevision(key, ..)
        | Compare::ModRevision(key, ..)
        | Compare::Lease(key, _)
        | Compare::Value(key, _)
        | Compare::NoneIn(Span { from: key, .. })) = compare;
        let of = |prefix: &str| key.strip_prefix(prefix).is_some();
        match self {
            Self::NoJobCompare => !of(keys::JOBS),
            Self::NoMarkCompare => !of(keys::FIRED),
            Self::NoSessionCompare => !of(keys::SESSIONS),
            Self::NoPausedCompare => !of(keys::PAUSED),
            Self::NoSettingsCompare => !of(keys::SETTINGS),
            Self::NoRequestCompare => !of(keys::REQUESTS),
            Self::RetryUnconditional => !(of(keys::RUNS) && matches!(compare, Compare::ModRevision(..))),
            Self::NoLockCompare => !(of(keys::LOCK) && matches!(compare, Compare::CreateRevision(..))),
            Self::UnlockAnybodys => {
                !(of(keys::LOCK) && matches!(compare, Compare::ModRevision(..) | Compare::Value(..)))
            }
            Self::AnySuccessWill => !of(keys::AFTER),
            Self::NoSharedCompare => !matches!(compare, Compare::NoneIn(_)),
            _ => true,
        }
    }
}

fn is_put(op: &Op, prefix: &str) -> bool {
    matches!(op, Op::Put { key, .. } if key.strip_prefix(prefix).is_some())
}

fn request_put(op: &Op) -> Option<Request> {
    let Op::Put { key, value, .. } = op else { return None };
    keys::parse_request(key)?;
    Request::decode(value).ok()
}

/// Has what is for one worker be for this one.
fn tell(op: &mut Op, target: Option<&Target>) {
    let Some(mut request) = request_put(op).filter(|request| request.target.is_some()) else { return };
    request.target = target.cloned();
    if let Op::Put { value, .. } = op {
        *value = request.encode();
    }
}

/// The lock that is put beside what a run holds in its place.
fn lock_beside(op: &Op) -> Option<Op> {
    let Op::Put { key, value, lease } = op else { return None };
    let (job, _) = keys::parse_shared(key)?;
    Some(Op::Put { key: keys::lock(&job).into(), value: value.clone(), lease: *lease })
}

fn forget_unlocked(op: &mut Op) {
    if let Op::Put { key, value, .. } = op
        && keys::parse_fired(key).is_some()
        && let Ok(mut mark) = Mark::decode(value)
    {
        mark.unlocked = false;
        *value = mark.encode();
    }
}

fn retry_if_lost(op: &mut Op) {
    if let Op::Put { key, value, .. } = op
        && keys::parse_runs(key).is_some()
        && let Ok(OpenRuns { mut runs, .. }) = OpenRuns::decode(value)
    {
        for open in &mut runs {
            open.on_lost = Some(Retry { attempts: 9, backoff: 0, on_lost: Some(true) });
        }
        *value = OpenRuns::new(runs).encode();
    }
}

/// The open key of an even number is that of the odd one before.
fn shared(key: &Key) -> Key {
    let Some((sid, seq)) = key.strip_prefix(keys::RUNS).and_then(|rest| rest.split_once('/')) else {
        return key.clone();
    };
    match (Sid::parse(sid), u64::from_str_radix(seq, 16)) {
        (Some(sid), Ok(seq)) => Key::from(keys::runs(sid, seq.div_ceil(2))),
        _ => key.clone(),
    }
}

fn share_open_key(op: &mut Op) {
    match op {
        Op::Put { key, .. } => *key = shared(key),
        Op::Delete(span) => {
            if span.from != shared(&span.from) {
                *span = common::kv::Span::key(shared(&span.from));
            }
        }
        Op::Range(range) => {
            if range.span.from != shared(&range.span.from) {
                range.span = common::kv::Span::key(shared(&range.span.from));
            }
        }
        Op::Txn(_) => {}
    }
}

/// [`Mutant::ReadThenDecide`]: what the marks show now is taken for the answer.
pub(super) async fn read_then_decide(kv: &dyn Kv, claims: &[Claim]) -> Vec<ClaimAnswer> {
    let mut answers = claims::claim_all(kv, claims).await;
    for (claim, answer) in claims.iter().zip(&mut answers) {
        if *answer != ClaimAnswer::Unknown {
            continue;
        }
        let Ok(read) = kv.range(Range::key(keys::fired(&claim.open.job))).await else { continue };
        let seen = read.pairs.first().map(|pair| MarkSeen {
            mark: Mark::decode(&pair.value),
            revision: pair.mod_revision,
            retired: false,
        });
        *answer = match seen {
            Some(MarkSeen { mark: Ok(mark), revision, .. })
                if mark.run_id.as_ref() == Some(&claim.open.run_id) =>
            {
                ClaimAnswer::Won(revision)
            }
            seen => ClaimAnswer::Refused(Refusal {
                session_alive: true,
                paused: false,
                // As if the job had been edited: decided anew in a moment.
                job_revision: claim.job_revision + 1,
                settings_revision: claim.settings_revision,
                mark: seen,
                lock: LockSeen::Free,
                holders: Vec::new(),
                open: Vec::new(),
            }),
        };
    }
    answers
}

/// [`Mutant::JitterPerFire`]: so much later than nominal.
pub(super) fn jittered(mut claim: Claim, by_ms: i64) -> Claim {
    if claim.kind == ClaimKind::Run {
        claim.open.plan_time = claim.open.plan_time.plus_ms(by_ms);
        claim.mark.plan_time = claim.open.plan_time;
    }
    claim
}

/// The sweeps of [`Mutant::SweepsTooEarly`] and [`Mutant::SweepsSessionsFirst`].
pub(super) async fn sweep_wrongly(
    mutant: Mutant,
    kv: &dyn Kv,
    log: &dyn RunLog,
    clock: &At,
    spared: &BTreeSet<Sid>,
) -> Result<usize, sweep::Error> {
    let sessions_first = mutant == Mutant::SweepsSessionsFirst;
    let alive = |pairs: &[common::kv::Pair]| -> BTreeSet<Sid> {
        pairs.iter().filter_map(|pair| keys::parse_session(&pair.key)).collect()
    };
    let sessions = kv.range(Range::prefix(keys::SESSIONS)).await?.pairs;
    let open = kv.range(Range::prefix(keys::RUNS)).await?.pairs;
    let sessions =
        if sessions_first { sessions } else { kv.range(Range::prefix(keys::SESSIONS)).await?.pairs };
    let alive = alive(&sessions);
    let mut closed = 0;
    for pair in &open {
        let Some(sid) = keys::parse_runs(&pair.key).filter(|sid| !alive.contains(sid)) else { continue };
        if spared.contains(&sid) {
            continue;
        }
        let runs = OpenRuns::decode(&pair.value).unwrap().runs;
        let records: Vec<Record> = runs.iter().map(|run| Record::left_behind(run, clock.0)).collect();
        log.append(&records).await?;
        closed += records.len();
        let gone = if sessions_first {
            Op::delete(pair.key.clone())
        } else {
            Op::Delete(common::kv::Span::prefix(keys::runs_of(sid)))
        };
        kv.txn(Txn { then: vec![gone], ..Txn::default() }).await?;
    }
    Ok(closed)
}
