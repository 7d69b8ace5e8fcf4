//! Requests: runs that somebody asks for, and retries (design P13). A request is claimed as a fire is, by a transaction that deletes its key,
//! so that of all who try, however often, one wins and once. What keeps it from being claimed for a while (a lock, a pause, no room) can
//! change: it waits, and is let go with a record only when it has waited too long.
//!
//! Of each job one request is tried at a time, the one that is ready longest: thousands of them wait in memory and ask nothing of the store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use common::clock::Timestamp;
use common::domain::broadcast::Target;
use common::domain::job::JobName;
use common::domain::record::{Record, SkipReason, Skipped, Status};
use common::domain::request::{MANUAL_WAITS_MS, Request};
use common::domain::run::{OpenRun, RunId, Trigger};
use common::domain::worker::Sid;
use common::keys;
use common::kv::Revision;

use super::after::{Follow, TOLD_AT_ONCE};
use super::broadcast::Beside;
use super::event::{Action, LockSeen, Report};
use super::job_state::{Definition, JobState, Pending};
use super::room::Waiter;
use super::runs::Run;
use super::terms::Terms;
use super::{
    LOCKED_RETRY_MS, LOOKS_PER_STEP, RESEND_MAX_MS, RETRY_MS, STALE_RETRY_MS, Scheduler, look_after_ms,
};

/// A retry that cannot start within its job's start deadline is let go, as a fire is; but not before the third worker had its look.
const RETRY_WAITS_MIN_MS: i64 = 15_000;

/// A request's key as it was read or watched.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RequestSeen {
    /// From the key.
    pub run_id: RunId,
    /// The value.
    pub request: Arc<Request>,
    /// Of the key.
    pub revision: Revision,
}

/// The transaction that takes a request: sending it again takes the same request for the same run (design P2). The open run says what it does:
/// with `skipped` the request is let go, else it takes the job's lock and runs, or (`unlocked`) runs beside whatever goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RequestClaim {
    /// The session it is made under, and compared.
    pub sid: Sid,
    /// Number of the open-run key in the session.
    pub seq: u64,
    /// What becomes open; its run id is that of the request.
    pub open: OpenRun,
    /// The request's key, compared: it is deleted, which is what makes the claim the only one.
    pub request_revision: Revision,
    /// The definition it was decided from, compared; 0 = there is no such job.
    pub job_revision: Revision,
    /// It is for every worker: the requests that it becomes. Nothing runs, and the open run only names it.
    pub spread: Vec<(RunId, Request)>,
}

/// What a refused claim of a request saw.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RequestRefusal {
    /// The session is there.
    pub session_alive: bool,
    /// The fleet is paused.
    pub paused: bool,
    /// The request's mod revision; 0 = absent.
    pub request_revision: Revision,
    /// The job's mod revision; 0 = absent.
    pub job_revision: Revision,
    /// The lock.
    pub lock: LockSeen,
    /// The claim's own open key is there, of this revision: it has committed before.
    pub open: Option<Revision>,
}

/// How the claim of a request went.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RequestAnswer {
    /// Committed at this revision.
    Won(Revision),
    /// A compare did not hold.
    Refused(RequestRefusal),
    /// No answer came: it may commit yet.
    Unknown,
    /// It was not applied and will not be.
    NotApplied,
}

/// A run has ended whose open key asks for a retry, should its session end, or whose end asks for one itself: written before its record is
/// handed on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Close {
    /// As it is put again: nobody is to ask for a retry of it any more.
    pub open: OpenRun,
    /// Its open key.
    pub key: (Sid, u64),
    /// At which revision it was put last, compared.
    pub revision: Revision,
    /// The next attempt.
    pub next: Option<(RunId, Request)>,
    /// It has succeeded: what that means to the jobs that wait for it.
    pub follows: Vec<Follow>,
}

/// How a [`Close`] went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CloseAnswer {
    /// Done, and the open key is of this revision now.
    Done(Revision),
    /// Nothing is done: a job that waits for the run is another by now than it was decided from.
    Stale,
    /// The open key was taken away by others, who have decided about the run.
    Gone,
}

/// The record of a run that has ended, until its open key says so.
#[derive(Debug)]
struct Closing {
    record: Box<Record>,
    open: OpenRun,
    key: (Sid, u64),
    /// At which its open key was put last.
    revision: Revision,
    ended: Timestamp,
    /// The last of the jobs that were told, where there may be more than one transaction tells.
    told: Option<JobName>,
    /// Jobs are being told.
    tells: bool,
    /// The last of them, where there may be more.
    telling: Option<JobName>,
    /// When to decide anew.
    again_at: Option<Timestamp>,
}

/// Where a request stands among those of its job: those that are to be let go at once, then fires, then by the time at which they are ready.
pub(super) type Place = (Urgency, Timestamp, RunId);

/// How long a request may wait for those before it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Urgency {
    /// It was cancelled.
    LetGo,
    /// A fire, which has its time.
    Fire,
    /// It waits for its turn.
    Waits,
}

/// A request that waits.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) request: Arc<Request>,
    pub(super) revision: Revision,
    /// From when on it may be claimed.
    pub(super) ready_at: Timestamp,
    /// Whose it is.
    pub(super) side: Side,
}

/// Whose a request is to claim.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Side {
    /// Whoever looks after the job.
    Anybody,
    /// This worker's alone.
    Own,
    /// Another worker's alone. Whether it is still there is looked at then.
    Elsewhere(Timestamp),
}

impl Known {
    fn place(&self, run_id: &RunId) -> Place {
        let urgency = match self.request.trigger {
            _ if self.request.killed.is_some() => Urgency::LetGo,
            Trigger::Broadcast => Urgency::Fire,
            _ => Urgency::Waits,
        };
        (urgency, self.ready_at, run_id.clone())
    }
}

/// A claim that was sent.
#[derive(Debug)]
struct Trying {
    claim: Box<RequestClaim>,
    /// A sending may have been applied, or be applied later.
    ambiguous: bool,
    /// When to send it again, or to decide anew; `None` while an answer is awaited.
    resend_at: Option<Timestamp>,
    /// Sendings that brought no answer.
    sendings: u32,
    /// The last one was refused: none had been applied by then.
    refused: bool,
}

/// The requests of one job.
#[derive(Debug, Default)]
struct Queue {
    waiting: BTreeSet<Place>,
    /// Those that are for this worker alone: none of them waits for one of the others, nor they for these.
    own: BTreeSet<Place>,
    /// The last run of those was a fire: what else is for this worker has its turn.
    was_fire: bool,
    trying: Option<Trying>,
    /// Nothing is tried before: what stood in the way is looked at again then.
    held_until: Option<Timestamp>,
    timer: Option<Timestamp>,
}

impl Queue {
    fn of(&mut self, side: Side) -> &mut BTreeSet<Place> {
        if side == Side::Own { &mut self.own } else { &mut self.waiting }
    }

    fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.own.is_empty()
    }
}

/// All requests that this worker knows of, and the ends of runs that ask for more.
#[derive(Debug, Default)]
pub(super) struct Requests {
    pub(super) known: BTreeMap<RunId, Known>,
    /// Those of them that are for one worker.
    pub(super) targeted: BTreeSet<RunId>,
    /// Those that are for another, by when they are looked at.
    pub(super) elsewhere: BTreeSet<(Timestamp, RunId)>,
    queues: BTreeMap<JobName, Queue>,
    timers: BTreeSet<(Timestamp, JobName)>,
    /// Jobs with a request that waits for room, by how long it is ready. One that needs none any more is looked at for nothing.
    for_room: BTreeSet<(Timestamp, JobName)>,
    /// Jobs of which a claim is sent that will need room.
    claiming: BTreeSet<JobName>,
    /// Records that wait until their runs' open keys say that nobody is to ask for a retry any more, and the jobs that wait for them are told.
    closing: BTreeMap<RunId, Closing>,
    /// Which of them to decide anew.
    again: BTreeSet<(Timestamp, RunId)>,
}

impl Requests {
    /// When to look at one of them.
    pub(super) fn wake_at(&self) -> Option<Timestamp> {
        let timer = self.timers.first().map(|(at, _)| *at);
        let elsewhere = self.elsewhere.first().map(|(at, _)| *at);
        timer.into_iter().chain(self.again.first().map(|(at, _)| *at)).chain(elsewhere).min()
    }

    /// How many wait.
    pub(super) fn waiting(&self) -> usize {
        self.known.len()
    }

    /// Claims that will need room.
    pub(super) fn claiming(&self) -> usize {
        self.claiming.len()
    }

    /// No claim is sent, and no record waits. A worker that drains does not wait for a lock: a claim in doubt that was found not to have been
    /// made compares the session, which is about to end. Should it be made just before that, it is closed as lost.
    pub(super) fn are_idle(&self, drains: bool) -> bool {
        let is_idle = |trying: &Trying| drains && trying.refused && trying.resend_at.is_some();
        self.closing.is_empty() && self.queues.values().all(|queue| queue.trying.as_ref().is_none_or(is_idle))
    }

    /// The sessions whose open keys are still to be closed here.
    pub(super) fn sids(&self) -> impl Iterator<Item = Sid> {
        self.closing.values().map(|closing| closing.key.0)
    }

    /// The job whose request has waited longest for room.
    pub(super) fn next_for_room(&mut self) -> Option<JobName> {
        self.for_room.pop_first().map(|(_, name)| name)
    }

    /// A claim of this number is sent, or the record of this open key waits.
    pub(super) fn knows_open(&self, sid: Sid, seq: u64, open: &OpenRun) -> bool {
        let tried = self.queues.get(&open.job).and_then(|queue| queue.trying.as_ref());
        tried.is_some_and(|trying| (trying.claim.sid, trying.claim.seq) == (sid, seq))
            || self.closing.get(&open.run_id).is_some_and(|closing| closing.key == (sid, seq))
    }

    /// A claim of this run is sent.
    pub(super) fn claims_run(&self, job: &JobName, run_id: &RunId) -> bool {
        let tried = self.queues.get(job).and_then(|queue| queue.trying.as_ref());
        tried.is_some_and(|trying| trying.claim.open.run_id == *run_id)
    }

    /// A claim is sent that may take this job's lock.
    pub(super) fn may_lock(&self, job: &JobName) -> bool {
        self.queues.get(job).is_some_and(|queue| queue.trying.is_some())
    }

    /// A claim is sent that may take this job's lock, and its answer is awaited.
    pub(super) fn is_claiming(&self, job: &JobName) -> bool {
        let tried = self.queues.get(job).and_then(|queue| queue.trying.as_ref());
        let takes_lock = |open: &OpenRun| open.skipped.is_none() && !open.unlocked;
        tried.is_some_and(|trying| trying.resend_at.is_none() && takes_lock(&trying.claim.open))
    }

    /// Has the requests of every job looked at.
    pub(super) fn look_at_all(&mut self, now: Timestamp) {
        for name in self.queues.keys().cloned().collect::<Vec<_>>() {
            self.set_timer(&name, Some(now));
        }
    }

    /// Has the requests of a job looked at, whatever they wait for: there is news of it.
    pub(super) fn look_anew(&mut self, job: &JobName, now: Timestamp) {
        if let Some(queue) = self.queues.get_mut(job) {
            queue.held_until = None;
            // Also one in doubt: sent only now and then, it would find the lock held for ever by a job that runs each second.
            if let Some(Trying { resend_at: Some(at), .. }) = &mut queue.trying {
                *at = now.min(*at);
            }
            self.set_timer(job, Some(now));
        }
    }

    /// Claims compare their session, so that none can commit any more. What committed is swept; the rest is still asked for.
    pub(super) fn on_session_lost(&mut self) {
        for queue in self.queues.values_mut() {
            (queue.trying, queue.held_until, queue.timer) = (None, None, None);
        }
        self.queues.retain(|_, queue| !queue.is_empty());
        self.timers.clear();
        self.for_room.clear();
        self.claiming.clear();
    }

    /// What is waited for shortly must not be waited for as long as the clock was put back.
    pub(super) fn on_step_back(&mut self, now: Timestamp) {
        for (at, run_id) in std::mem::take(&mut self.again) {
            let at = at.min(now.plus_ms(RETRY_MS));
            if let Some(closing) = self.closing.get_mut(&run_id) {
                closing.again_at = Some(at);
            }
            self.again.insert((at, run_id));
        }
        for queue in self.queues.values_mut() {
            queue.held_until = queue.held_until.map(|until| until.min(now.plus_ms(STALE_RETRY_MS)));
            if let Some(Trying { resend_at: Some(at), .. }) = &mut queue.trying {
                *at = (*at).min(now.plus_ms(RETRY_MS));
            }
            for waiting in [&mut queue.waiting, &mut queue.own] {
                for (urgency, ready_at, run_id) in std::mem::take(waiting) {
                    let known =
                        self.known.get_mut(&run_id).filter(|known| known.request.not_before.is_none());
                    let ready_at = known.map_or(ready_at, |known| {
                        known.ready_at = known.ready_at.min(now);
                        known.ready_at
                    });
                    waiting.insert((urgency, ready_at, run_id));
                }
            }
        }
    }

    pub(super) fn put(&mut self, run_id: RunId, known: Known, now: Timestamp) {
        self.forget(&run_id);
        if known.request.target.is_some() {
            self.targeted.insert(run_id.clone());
        }
        if let Side::Elsewhere(look_at) = known.side {
            self.elsewhere.insert((look_at, run_id.clone()));
            self.known.insert(run_id, known);
            return;
        }
        let name = known.request.job.clone();
        let queue = self.queues.entry(name.clone()).or_default();
        queue.of(known.side).insert(known.place(&run_id));
        if known.request.killed.is_some() {
            queue.held_until = None; // whatever stands in the way of the others
        }
        self.known.insert(run_id, known);
        self.set_timer(&name, Some(now));
    }

    /// A request is not there any more. A claim of it that was sent is decided by its answer.
    fn forget(&mut self, run_id: &RunId) {
        let Some(known) = self.known.remove(run_id) else { return };
        self.targeted.remove(run_id);
        if let Side::Elsewhere(look_at) = known.side {
            self.elsewhere.remove(&(look_at, run_id.clone()));
            return;
        }
        if let Some(queue) = self.queues.get_mut(&known.request.job) {
            queue.of(known.side).remove(&known.place(run_id));
        }
        self.drop_if_empty(&known.request.job);
    }

    /// Of the fires of a job that are for this worker, one that is newer than this one has its time.
    pub(super) fn has_newer(&self, job: &JobName, ready_at: Timestamp, now: Timestamp) -> bool {
        let own = self.queues.get(job).map(|queue| &queue.own);
        let due = |(urgency, at, _): &&Place| *urgency == Urgency::Fire && *at > ready_at && *at <= now;
        own.is_some_and(|own| own.iter().any(|place| due(&place)))
    }

    fn drop_if_empty(&mut self, job: &JobName) {
        if self.queues.get(job).is_some_and(|queue| queue.is_empty() && queue.trying.is_none()) {
            self.set_timer(job, None);
            self.queues.remove(job);
        }
    }

    /// Has what is told of the end of a run decided once more, in a moment.
    fn decide_anew(&mut self, run_id: &RunId, now: Timestamp) {
        self.forget_again(run_id);
        if let Some(closing) = self.closing.get_mut(run_id) {
            let at = now.plus_ms(RETRY_MS);
            closing.again_at = Some(at);
            self.again.insert((at, run_id.clone()));
        }
    }

    fn forget_again(&mut self, run_id: &RunId) {
        if let Some(at) = self.closing.get_mut(run_id).and_then(|closing| closing.again_at.take()) {
            self.again.remove(&(at, run_id.clone()));
        }
    }

    fn set_timer(&mut self, job: &JobName, at: Option<Timestamp>) {
        let Some(queue) = self.queues.get_mut(job) else { return };
        if let Some(old) = std::mem::replace(&mut queue.timer, at) {
            self.timers.remove(&(old, job.clone()));
        }
        self.timers.extend(at.map(|at| (at, job.clone())));
    }
}

impl Scheduler {
    pub(super) fn on_request_seen(&mut self, now: Timestamp, seen: RequestSeen, out: &mut Vec<Action>) {
        match self.requests.known.get(&seen.run_id).map(|known| known.revision) {
            Some(known) if known == seen.revision => {} // listed again
            Some(known) if known > seen.revision => {
                // News of a key come in order, and a list is younger than what is known: this is another history (P16).
                out.push(Action::GiveUpStore(format!(
                    "request {} is of revision {} again",
                    seen.run_id, seen.revision
                )));
            }
            _ => self.put_request(seen.run_id, seen.request, seen.revision, now),
        }
    }

    pub(super) fn on_request_gone(&mut self, run_id: &RunId) {
        self.requests.forget(run_id);
    }

    pub(super) fn on_requests_listed(&mut self, run_ids: &BTreeSet<RunId>) {
        let gone: Vec<RunId> =
            self.requests.known.keys().filter(|run_id| !run_ids.contains(run_id)).cloned().collect();
        for run_id in gone {
            self.requests.forget(&run_id);
        }
    }

    /// What was asked for in the store as it was is asked for no more, unless the store still says so: then it is listed again.
    pub(super) fn forget_requests(&mut self, out: &mut Vec<Action>) {
        for Closing { record, key, .. } in std::mem::take(&mut self.requests).closing.into_values() {
            out.push(Action::Record { record, settles: Some(key) });
        }
    }

    pub(super) fn look_at_due_requests(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        while let Some((_, run_id)) = self.requests.again.first().filter(|(at, _)| *at <= now).cloned() {
            self.tell_on(&run_id, out);
        }
        self.look_elsewhere(now);
        for _ in 0..LOOKS_PER_STEP {
            match self.requests.timers.first().cloned() {
                Some((at, name)) if at <= now => self.look_at_requests(&name, now, out),
                _ => break,
            }
        }
        loop {
            self.offer_room(now, out); // whoever stands in the line goes first, also for room that has come just now
            if !self.has_room() {
                break;
            }
            let Some(name) = self.requests.next_for_room() else { break };
            self.look_at_requests(&name, now, out);
        }
    }

    pub(super) fn look_at_requests_anew(&mut self, name: &JobName, now: Timestamp, out: &mut Vec<Action>) {
        self.requests.look_anew(name, now);
        self.look_at_requests(name, now, out);
    }

    /// Decides what becomes of the request that is first in a job's queue, and when to look again.
    pub(super) fn look_at_requests(&mut self, name: &JobName, now: Timestamp, out: &mut Vec<Action>) {
        let again = self.decide_request(name, now, out);
        let tried = self.requests.queues.get(name).and_then(|queue| queue.trying.as_ref());
        if tried.is_some_and(|trying| trying.claim.open.skipped.is_none() && trying.claim.spread.is_empty()) {
            self.requests.claiming.insert(name.clone());
        } else {
            self.requests.claiming.remove(name);
        }
        self.requests.set_timer(name, again);
        self.requests.drop_if_empty(name);
    }

    fn decide_request(&mut self, name: &JobName, now: Timestamp, out: &mut Vec<Action>) -> Option<Timestamp> {
        self.session?;
        if !self.jobs_listed || self.restore_told.is_none() {
            return None;
        }
        let queue = self.requests.queues.get_mut(name)?;
        if let Some(trying) = &mut queue.trying {
            let at = trying.resend_at?;
            if at > now {
                return Some(at);
            }
            if trying.ambiguous {
                // Only writing decides: the identical request again (P2).
                trying.resend_at = None;
                out.push(Action::ClaimRequest(trying.claim.clone()));
                return None;
            }
            queue.trying = None; // never applied: decided anew
        }
        if self.draining || self.sink_full || !self.clock_trusted {
            return None;
        }
        if let Some(until) = queue.held_until.filter(|until| *until > now) {
            return Some(until);
        }
        let own = queue.own.first();
        let in_turn =
            queue.own.iter().find(|(urgency, ..)| *urgency == Urgency::Waits).filter(|one| Some(*one) != own);
        let (own, in_turn) = if queue.was_fire { (in_turn, own) } else { (own, in_turn) };
        let firsts = [own.cloned(), in_turn.cloned(), queue.waiting.first().cloned()];
        let mut again: Option<Timestamp> = None;
        for place in firsts.into_iter().flatten() {
            let at = self.decide_first(name, place, now, out);
            if self.requests.queues.get(name).is_none_or(|queue| queue.trying.is_some()) {
                return None;
            }
            again = again.into_iter().chain(at).min();
        }
        again
    }

    /// Decides what becomes of a request that is the first of those who wait for each other.
    fn decide_first(
        &mut self,
        name: &JobName,
        (urgency, ready_at, run_id): Place,
        now: Timestamp,
        out: &mut Vec<Action>,
    ) -> Option<Timestamp> {
        let (has_room, live) = (self.has_place(), urgency != Urgency::LetGo);
        if self.paused && live {
            return None;
        }
        let known = self.requests.known.get(&run_id)?;
        let (request, revision, is_own) =
            (Arc::clone(&known.request), known.revision, known.side == Side::Own);
        let state = self.jobs.get(name);
        let definition = state.and_then(JobState::definition);
        let (rank, nobody) = match state.filter(|_| definition.is_some()) {
            _ if is_own => (0, false),
            Some(state) => (state.rank()?, state.nobody),
            None => (self.ranks.rank(keys::slot(name))?, false),
        };
        let act_at = ready_at.plus_ms(if rank == 0 { 0 } else { look_after_ms(rank) });
        if now < act_at {
            return Some(act_at);
        }
        let cancelled = (!live).then_some(SkipReason::Cancelled);
        if live && !request.targets.is_empty() {
            // Whatever the job is by now: each worker's part ends in its own record.
            return self.spread_request(run_id, &request, revision, definition.as_ref(), now, out);
        }
        let Some(definition) = definition else {
            let let_go = cancelled.or(Some(SkipReason::Deleted));
            return self.claim_request(run_id, &request, revision, None, let_go, now, out);
        };
        let has_run = state.is_some_and(|state| state.run.is_some());
        let is_claiming = state.is_some_and(|state| matches!(state.pending, Pending::Claiming { .. }));
        let too_late = waits_until(&request, ready_at, &definition).plus_ms(1);
        let let_go = if cancelled.is_some() {
            cancelled
        } else if request.at <= self.floor() {
            Some(SkipReason::StoreWentBack) // it may have run in what the store was before
        } else if let Some(reason) = self.is_over(&request, &definition) {
            Some(reason)
        } else if matches!(request.trigger, Trigger::Retry | Trigger::After) && !definition.enabled {
            Some(SkipReason::Disabled) // somebody may run it all the same; by itself it does not
        } else if now < too_late {
            (request.target.is_some() && !is_own).then_some(SkipReason::WorkerGone)
        } else if nobody {
            Some(SkipReason::NoWorker)
        } else {
            Some(SkipReason::Misfire)
        };
        let let_go = match let_go {
            None if is_own => match self.beside_own_runs(name, &request, &definition, ready_at, now, out) {
                Beside::Goes => None,
                Beside::WaitsUntil(at) => return Some(at.min(too_late)),
                Beside::LetGo(reason) => Some(reason),
            },
            let_go => let_go,
        };
        if let_go.is_none() {
            let waits_for_run = has_run && self.takes_lock(&definition);
            if nobody || definition.runnable.is_err() || waits_for_run {
                return Some(too_late); // looked at when there is a worker, an edit, an end of that run
            }
            if !is_own && definition.is_broadcast {
                return self.spread_request(run_id, &request, revision, Some(&definition), now, out);
            }
            if !is_own && is_claiming {
                return Some(now.plus_ms(RETRY_MS)); // fires come first: they have a time
            }
            if !has_room {
                if is_own && urgency == Urgency::Fire {
                    self.waiting_for_room.wait(Waiter::Part, name);
                } else {
                    self.requests.for_room.insert((ready_at, name.clone()));
                }
                return Some(too_late);
            }
        }
        self.claim_request(run_id, &request, revision, Some(&definition), let_go, now, out)
    }

    /// Sends the claim of a request: as a run, or (`let_go`) as what is skipped.
    #[expect(clippy::too_many_arguments, reason = "what `decide_request` has found out")]
    pub(super) fn claim_request(
        &mut self,
        run_id: RunId,
        request: &Request,
        request_revision: Revision,
        definition: Option<&Definition>,
        let_go: Option<SkipReason>,
        now: Timestamp,
        out: &mut Vec<Action>,
    ) -> Option<Timestamp> {
        let (sid, seq) = (self.session?, self.take_seq());
        let attempt = request.attempt;
        let skipped = let_go.map(|reason| {
            let selector = definition.and_then(|definition| definition.selector.as_ref());
            let selector = selector.filter(|_| reason == SkipReason::NoWorker).map(ToString::to_string);
            let cancelled = request.killed.clone().filter(|_| reason == SkipReason::Cancelled);
            Skipped { selector, cancelled, ..Skipped::one(request.plan_time, reason) }
        });
        let runs = definition.filter(|_| skipped.is_none());
        let open = OpenRun {
            run_id,
            job: request.job.clone(),
            plan_time: request.plan_time,
            attempt,
            schedule_time: now,
            worker: self.worker_id.clone(),
            command: definition
                .and_then(|_| self.jobs.get(&request.job))
                .map(|state| self.jobs.cut_command_of(state))
                .unwrap_or_default(),
            trigger: request.trigger,
            skipped,
            unlocked: runs.is_some_and(|definition| !self.takes_lock(definition)),
            asked: request.asked.clone(),
            after: request.after.clone(),
            env: request.env.clone(),
            // The worker that it is for is lost with it.
            on_lost: runs
                .filter(|_| request.target.is_none())
                .and_then(|definition| definition.on_lost(attempt)),
            target: request.target.as_ref().map(|target| target.worker.clone()),
            trace: request.trace,
        };
        if let Some(queue) = self.requests.queues.get_mut(&request.job).filter(|_| runs.is_some()) {
            queue.was_fire = request.trigger == Trigger::Broadcast;
        }
        let job_revision = definition.map_or(0, |definition| definition.mod_revision);
        self.send_request_claim(
            RequestClaim { sid, seq, open, request_revision, job_revision, spread: Vec::new() },
            out,
        );
        None
    }

    pub(super) fn send_request_claim(&mut self, claim: RequestClaim, out: &mut Vec<Action>) {
        let claim = Box::new(claim);
        out.push(Action::ClaimRequest(claim.clone()));
        let name = claim.open.job.clone();
        let trying = Trying { claim, ambiguous: false, resend_at: None, sendings: 0, refused: false };
        if let Some(queue) = self.requests.queues.get_mut(&name) {
            queue.trying = Some(trying);
        }
    }

    pub(super) fn on_request_answered(
        &mut self,
        now: Timestamp,
        claim: &RequestClaim,
        answer: RequestAnswer,
        out: &mut Vec<Action>,
    ) {
        let name = &claim.open.job;
        let Some(queue) = self.requests.queues.get_mut(name) else { return };
        let Some(trying) = queue.trying.as_mut().filter(|trying| *trying.claim == *claim) else {
            return; // an answer to a claim of a session that is over
        };
        match answer {
            RequestAnswer::Won(revision)
            | RequestAnswer::Refused(RequestRefusal { session_alive: true, open: Some(revision), .. }) => {
                queue.trying = None;
                self.on_request_won(now, claim, revision, out);
            }
            RequestAnswer::Unknown | RequestAnswer::NotApplied => {
                trying.ambiguous |= answer == RequestAnswer::Unknown;
                trying.refused = false;
                trying.sendings += 1;
                let pause = (RETRY_MS << (trying.sendings - 1).min(10)).min(RESEND_MAX_MS);
                trying.resend_at = Some(now.plus_ms(pause));
            }
            RequestAnswer::Refused(refusal) if !refusal.session_alive => {
                // What has committed was closed as lost with its session (P10). SessionLost follows.
                return out.push(Action::GiveUpSession(claim.sid));
            }
            RequestAnswer::Refused(refusal) => self.on_request_refused(now, claim, &refusal, out),
        }
        self.forget_kills_seen(name);
        self.look_at_requests(name, now, out);
        self.look_at(name, now, out); // a fire may have waited for this
    }

    fn on_request_refused(
        &mut self,
        now: Timestamp,
        claim: &RequestClaim,
        refusal: &RequestRefusal,
        out: &mut Vec<Action>,
    ) {
        let name = &claim.open.job;
        let rank = self.jobs.get(name).and_then(JobState::rank).unwrap_or(0);
        let Some(queue) = self.requests.queues.get_mut(name) else { return };
        let gone_back = |seen: Revision, decided_from: Revision| (1..decided_from).contains(&seen);
        if gone_back(refusal.request_revision, claim.request_revision)
            || gone_back(refusal.job_revision, claim.job_revision)
        {
            return out.push(Action::GiveUpStore(format!(
                "request {} or its job is of an earlier revision",
                claim.open.run_id
            )));
        }
        if refusal.request_revision != claim.request_revision {
            // Another worker's, and gone: no sending of this claim can commit any more. Had one, its open key would be there.
            queue.trying = None;
            let known = self.requests.known.get(&claim.open.run_id);
            if known.is_some_and(|known| known.revision == claim.request_revision) {
                self.requests.forget(&claim.open.run_id);
            }
            return;
        }
        if refusal.job_revision != claim.job_revision {
            // Edited, deleted or put anew: the watch brings it; no sending of this claim can commit any more.
            queue.trying = None;
            queue.held_until = Some(now.plus_ms(STALE_RETRY_MS));
            return;
        }
        // What is left can change back (pause, lock): the request waits. If a sending may still commit, only the identical request tells.
        let pause = match refusal.lock {
            LockSeen::Free => RETRY_MS,
            LockSeen::Held | LockSeen::HeldBySeed if rank == 0 => LOCKED_RETRY_MS,
            LockSeen::Held | LockSeen::HeldBySeed => look_after_ms(rank),
        };
        match &mut queue.trying {
            Some(trying) if trying.ambiguous => {
                (trying.resend_at, trying.refused) = (Some(now.plus_ms(pause)), true);
            }
            trying => {
                *trying = None;
                queue.held_until = Some(now.plus_ms(pause));
            }
        }
    }

    fn on_request_won(
        &mut self,
        now: Timestamp,
        claim: &RequestClaim,
        revision: Revision,
        out: &mut Vec<Action>,
    ) {
        let open = &claim.open;
        // What is left of one that is for every worker may be known already: it has the same id.
        let known = self.requests.known.get(&open.run_id);
        if known.is_some_and(|known| known.revision == claim.request_revision) {
            self.requests.forget(&open.run_id);
        }
        if !claim.spread.is_empty() {
            return; // the watch brings those that are for this worker
        }
        if let Some(skipped) = &open.skipped {
            out.push(Action::Report(Report::Skipped(open.clone())));
            let record = Box::new(Record::skipped(open, skipped.clone()));
            return out.push(Action::Record { record, settles: Some((claim.sid, claim.seq)) });
        }
        let key = (claim.sid, claim.seq);
        let fire = open.trigger == Trigger::Broadcast;
        let jitter_ms = self.jobs.get(&open.job).map_or(0, JobState::jitter_ms);
        let start_at = if fire { open.plan_time.plus_ms(jitter_ms) } else { now };
        let run = Run::claimed(open.clone(), key, claim.job_revision, revision, start_at);
        self.take_run(now, run, out);
    }

    // --- ends that ask for more -----------------------------------------------------------------------------------

    /// Hands the record of a run on that has ended. Where the next attempt is to be asked for, or whoever finds the session gone would ask for
    /// it, or jobs wait for its success, the open key is written first: so a run whose record is stored is never tried again as one that was
    /// lost, and one that asks for a retry, or for the runs of others, does it once, whoever dies.
    pub(super) fn hand_on(
        &mut self,
        now: Timestamp,
        run_id: &RunId,
        record: Box<Record>,
        out: &mut Vec<Action>,
    ) {
        let Some(run) = self.runs.get(run_id) else { return };
        let (open, key, revision) = (&run.open, (run.sid, run.seq), run.open_revision);
        let definition = self.jobs.get(&open.job).and_then(JobState::terms);
        // Killed by its fence, as it would have been had its worker been lost: whether survivors close it first is chance.
        let fenced = record.status == Some(Status::Killed) && run.killed.is_none() && open.on_lost.is_some();
        let failed = fenced || record.status.is_some_and(|status| status.is_worth_a_retry());
        // A clock that is not trusted was when the run was claimed. A time ahead would let a request of before pass for a new one, should the
        // store go back (P16).
        let ended = if self.clock_trusted { now } else { open.schedule_time };
        let target = open.target.as_ref().map(|worker| Target { worker: worker.clone(), sid: run.sid });
        let next = definition
            .filter(|_| failed)
            .and_then(|definition| Some((definition, definition.retry?)))
            .filter(|(_, retry)| retry.goes_on_after(open.attempt))
            .map(|(definition, retry)| (definition, Request::after(open, &retry, &self.worker_id, ended)))
            .filter(|(definition, (_, request))| !is_of_the_next_fire(definition, request))
            .map(|(_, (run_id, mut request))| {
                request.target = target;
                (run_id, request)
            });
        // Nobody waits for a job that runs on every worker: which of its runs would it be?
        let succeeded = record.status == Some(Status::Succeeded) && open.target.is_none();
        let follows = if succeeded { self.followers(open, ended, None) } else { Vec::new() };
        if next.is_none() && follows.is_empty() && open.on_lost.is_none() {
            return out.push(Action::Record { record, settles: Some(key) });
        }
        let open = OpenRun { on_lost: None, ..open.clone() };
        let closing = Closing {
            record,
            open: open.clone(),
            key,
            revision,
            ended,
            told: None,
            tells: !follows.is_empty(),
            telling: last_of_many(&follows),
            again_at: None,
        };
        self.requests.closing.insert(run_id.clone(), closing);
        out.push(Action::Close(Box::new(Close { open, key, revision, next, follows })));
    }

    /// The open key of a run that has ended is written, or was taken away by others, who then have decided about its next attempt.
    pub(super) fn on_closed(
        &mut self,
        now: Timestamp,
        run_id: &RunId,
        answer: CloseAnswer,
        out: &mut Vec<Action>,
    ) {
        let Some(closing) = self.requests.closing.get_mut(run_id) else { return };
        match answer {
            CloseAnswer::Done(revision) => {
                closing.revision = revision;
                if let Some(last) = closing.telling.take() {
                    closing.told = Some(last);
                    // If this process dies here, those behind the last are not told: there is room for 64, which are many.
                    return self.tell_on(run_id, out);
                }
            }
            CloseAnswer::Stale => return self.requests.decide_anew(run_id, now), // the watch brings the news
            CloseAnswer::Gone if closing.tells => {
                out.push(Action::Report(Report::SucceededTooLate(run_id.clone())));
            }
            CloseAnswer::Gone => {}
        }
        self.end_closing(run_id, out);
    }

    /// Tells the jobs that wait for a run and are not told yet, if there are any (more).
    fn tell_on(&mut self, run_id: &RunId, out: &mut Vec<Action>) {
        let Some(closing) = self.requests.closing.get(run_id) else { return };
        let follows = self.followers(&closing.open, closing.ended, closing.told.as_ref());
        self.requests.forget_again(run_id);
        let Some(closing) = self.requests.closing.get_mut(run_id) else { return };
        (closing.tells, closing.telling) = (!follows.is_empty(), last_of_many(&follows));
        // One that was stale may have closed nothing yet: with nobody left to tell, that is still to be done.
        if !closing.tells && closing.told.is_some() {
            return self.end_closing(run_id, out);
        }
        let (open, key, revision) = (closing.open.clone(), closing.key, closing.revision);
        out.push(Action::Close(Box::new(Close { open, key, revision, next: None, follows })));
    }

    fn end_closing(&mut self, run_id: &RunId, out: &mut Vec<Action>) {
        if let Some(Closing { record, key, .. }) = self.requests.closing.remove(run_id) {
            out.push(Action::Record { record, settles: Some(key) });
        }
    }
}

/// The last of the jobs that are told, where there may be more than one transaction tells.
fn last_of_many(follows: &[Follow]) -> Option<JobName> {
    follows.last().filter(|_| follows.len() >= TOLD_AT_ONCE).map(|follow| follow.job.clone())
}

/// Until when a request is worth a start.
pub(super) fn waits_until(request: &Request, ready_at: Timestamp, definition: &Definition) -> Timestamp {
    match request.trigger {
        Trigger::Retry | Trigger::Broadcast => {
            let from = request.not_before.unwrap_or(request.at);
            from.plus_ms(definition.rule.start_deadline_ms().max(RETRY_WAITS_MIN_MS))
        }
        // As this worker has seen it: the clock of the one that has ended the run before may be any.
        Trigger::After => ready_at.plus_ms(MANUAL_WAITS_MS),
        Trigger::Manual | Trigger::Schedule => request.at.plus_ms(MANUAL_WAITS_MS),
    }
}

/// A retry that would come when the job's next fire has come is none: that fire is the next attempt. But not where each fire is to run.
fn is_of_the_next_fire(definition: &Terms, request: &Request) -> bool {
    let Ok(schedule) = &definition.runnable else { return false };
    let next = schedule.next_after(request.at.plus_ms(-definition.jitter_ms));
    !definition.rule.runs_all()
        && next.zip(request.not_before).is_some_and(|(next, at)| next.plus_ms(definition.jitter_ms) <= at)
}
