//! Jobs that run on every worker (`mode: "broadcast"`, design P13). The owner claims a fire by the mark, as ever, and that transaction puts a
//! request for each worker that it sees, with that worker's session in it. Only that session claims it. So the mark alone decides that a fire
//! is spread once, and the deletion of its request that each worker's part runs once, or is let go once.
//!
//! More workers than one transaction has room for: what is left is a request of its own, which names the others, and which whoever looks after
//! the job spreads on.

use std::sync::Arc;

use common::clock::Timestamp;
use common::domain::broadcast::{Target, spread};
use common::domain::job::JobName;
use common::domain::mark::Mark;
use common::domain::options::Concurrency;
use common::domain::record::SkipReason;
use common::domain::request::Request;
use common::domain::run::{OpenRun, RunId, Trigger};
use common::kv::Revision;
use common::schedule::Schedule;

use crate::exec::work::Kill;

use super::concurrency::replaced_by;
use super::event::{Action, Claim, ClaimKind};
use super::job_state::{Definition, JobState};
use super::requests::{Known, RequestClaim, Side, waits_until};
use super::runs::Stage;
use super::{RETRY_MS, Scheduler, look_after_ms};

/// Workers that get their request by one transaction, which has room for 128 operations: beside these it has the mark, and what is left. In
/// tests so few that a few workers make two transactions.
const AT_ONCE: usize = if cfg!(test) { 2 } else { 120 };
/// A worker that is not registered may be about to be again, and then claims what is for it: others wait so long before they let it go, in ms.
const GONE_AFTER_MS: i64 = 1_000;
/// What another worker should have claimed is looked at so long after its time, in ms, and then when it is too late for it.
const LOOK_ELSEWHERE_MS: i64 = 15_000;

/// What becomes of a run of this worker beside others of its job here.
pub(super) enum Beside {
    /// It goes.
    Goes,
    /// It waits for the end of another, or for this time.
    WaitsUntil(Timestamp),
    /// It is let go.
    LetGo(SkipReason),
}

impl Scheduler {
    /// The workers that are to run the job now.
    fn targets(&self, definition: &Definition) -> Vec<Target> {
        let wanted = definition.selector.as_ref();
        let fits =
            self.members.ours.iter().filter(|(_, labels)| wanted.is_none_or(|wanted| wanted.matches(labels)));
        let target = |worker: &String| {
            Some(Target { worker: worker.clone(), sid: *self.members.sessions.get(worker)? })
        };
        fits.filter_map(|(worker, _)| target(worker)).collect()
    }

    /// Claims a fire for every worker. `None` unless it is to be looked at again.
    pub(super) fn claim_broadcast(
        &mut self,
        name: &JobName,
        definition: &Definition,
        due: Timestamp,
        (mark, mark_revision): (&Mark, Revision),
        now: Timestamp,
        out: &mut Vec<Action>,
    ) -> Option<Timestamp> {
        let (sid, settings_revision) = (self.session?, self.settings_revision?);
        let targets = self.targets(definition);
        if targets.is_empty() {
            return Some(now.plus_ms(RETRY_MS)); // they are about to be seen
        }
        let seq = self.take_seq();
        let run_id = RunId::new(sid, seq);
        let worker = self.worker_id.clone();
        let start_at = due.plus_ms(definition.jitter_ms);
        let whole = Request::broadcast(name.clone(), due, start_at, targets, &worker, now);
        let mut moved = mark.claimed(due, run_id.clone(), sid);
        moved.unlocked = true; // as the claims of the requests would say, each with a write of its own
        let open = self.jobs.get_mut(name)?.open_run(run_id.clone(), name, due, worker, now);
        let claim = Claim {
            kind: ClaimKind::Broadcast,
            sid,
            seq,
            open: OpenRun { unlocked: true, on_lost: None, ..open },
            job_revision: definition.mod_revision,
            mark_revision,
            mark_value: mark.stored_value(),
            mark: moved,
            exclusive: false,
            over_lock: None,
            replaces: None,
            spread: spread(&run_id, &whole, AT_ONCE),
            alone: true,
            settings_revision,
        };
        self.jobs.get_mut(name)?.send(claim, None, out);
        None
    }

    /// Puts a request for each worker in the place of one that is for all: of those that it names, or else of those that there are.
    pub(super) fn spread_request(
        &mut self,
        run_id: RunId,
        request: &Request,
        request_revision: Revision,
        definition: Option<&Definition>,
        now: Timestamp,
        out: &mut Vec<Action>,
    ) -> Option<Timestamp> {
        let mut whole = request.clone();
        if whole.targets.is_empty() {
            whole.targets = definition.map(|definition| self.targets(definition)).unwrap_or_default();
        }
        if whole.targets.is_empty() {
            return Some(now.plus_ms(RETRY_MS));
        }
        let (sid, seq) = (self.session?, self.take_seq());
        let spread = spread(&run_id, &whole, AT_ONCE);
        let job_revision = definition.map_or(0, |definition| definition.mod_revision);
        let open = OpenRun {
            run_id,
            job: request.job.clone(),
            plan_time: request.plan_time,
            attempt: request.attempt,
            schedule_time: now,
            worker: self.worker_id.clone(),
            command: String::new(),
            trigger: request.trigger,
            skipped: None,
            unlocked: true,
            asked: request.asked.clone(),
            after: request.after.clone(),
            env: None,
            on_lost: None,
            target: None,
            trace: request.trace,
        };
        self.send_request_claim(RequestClaim { sid, seq, open, request_revision, job_revision, spread }, out);
        None
    }

    /// What the job is by now leaves this request nothing to do.
    pub(super) fn is_over(&self, request: &Request, definition: &Definition) -> Option<SkipReason> {
        // The attempt before was one worker's alone, which was any.
        let is_old = definition.is_broadcast && request.target.is_none() && request.trigger == Trigger::Retry;
        if is_old || (request.target.is_some() && !definition.is_broadcast) {
            return Some(SkipReason::Superseded);
        }
        if request.trigger != Trigger::Broadcast {
            return None;
        }
        let at = request.plan_time;
        let has_it = |schedule: &Arc<Schedule>| schedule.next_after(at.plus_ms(-1)) == Some(at);
        if !definition.enabled {
            Some(SkipReason::Disabled)
        } else if definition.runnable.as_ref().is_ok_and(|schedule| !has_it(schedule)) {
            Some(SkipReason::Superseded)
        } else if request.not_before.is_some_and(|start_at| start_at <= self.base) {
            Some(SkipReason::Misfire) // of a pause that has ended (P7)
        } else {
            None
        }
    }

    /// Whether a request that is for this worker goes beside what runs here of its job.
    pub(super) fn beside_own_runs(
        &mut self,
        name: &JobName,
        request: &Request,
        definition: &Definition,
        ready_at: Timestamp,
        now: Timestamp,
        out: &mut Vec<Action>,
    ) -> Beside {
        let is_fire = request.trigger == Trigger::Broadcast;
        if definition.concurrency == Concurrency::Allow {
            return Beside::Goes;
        }
        if is_fire && definition.replaces() && self.requests.has_newer(name, ready_at, now) {
            return Beside::LetGo(SkipReason::Replaced); // it would be killed at once
        }
        let of_job = self.runs.iter().find(|(_, run)| run.open.job == *name);
        let Some((run_id, stage)) = of_job.map(|(run_id, run)| (run_id.clone(), run.stage)) else {
            return Beside::Goes;
        };
        let too_late = waits_until(request, ready_at, definition).plus_ms(1);
        let start_at = request.not_before.unwrap_or(now);
        if !is_fire || stage == Stage::Ended {
            return Beside::WaitsUntil(too_late); // looked at when it is over
        }
        if now < start_at {
            return Beside::WaitsUntil(start_at); // overlap is decided at T (P9)
        }
        // Those that are caught up on wait for each other.
        let was_missed = request.at.ms_since(start_at) > definition.rule.late_max_ms();
        match definition.concurrency {
            Concurrency::Replace => {
                let killed = replaced_by(request.plan_time, now);
                self.kill_run(now, &run_id, Kill::Gracefully, killed, out);
                Beside::WaitsUntil(too_late)
            }
            _ if was_missed && definition.rule.runs_all() => Beside::WaitsUntil(too_late),
            _ => Beside::LetGo(SkipReason::Overlap),
        }
    }

    // --- whose a request is ---------------------------------------------------------------------------------------

    /// Takes a request in among the others, or anew when it is another's to claim now.
    pub(super) fn put_request(
        &mut self,
        run_id: RunId,
        request: Arc<Request>,
        revision: Revision,
        now: Timestamp,
    ) {
        let is_killed = request.killed.is_some();
        let start_at = request.not_before.filter(|_| !is_killed).unwrap_or(now);
        let side = self.side_of(&request, start_at);
        let ready_at = match side {
            _ if !request.targets.is_empty() => now, // each worker's part has its time
            // Claimed ahead, as fires are.
            Side::Own if request.trigger == Trigger::Broadcast && !is_killed => {
                start_at.plus_ms(-self.lead_ms)
            }
            Side::Anybody if request.target.is_some() && !is_killed => {
                start_at.max(now).plus_ms(GONE_AFTER_MS)
            }
            _ => start_at,
        };
        self.requests.put(run_id, Known { request, revision, ready_at, side }, now);
    }

    fn side_of(&self, request: &Request, start_at: Timestamp) -> Side {
        match &request.target {
            Some(target) if self.session == Some(target.sid) => Side::Own,
            Some(target)
                if request.killed.is_none()
                    && self.members.sessions.values().any(|sid| *sid == target.sid) =>
            {
                Side::Elsewhere(start_at.plus_ms(LOOK_ELSEWHERE_MS))
            }
            _ => Side::Anybody,
        }
    }

    /// Workers have come or gone, or this one has another session.
    pub(super) fn sort_targeted(&mut self, now: Timestamp) {
        for run_id in self.requests.targeted.clone() {
            let Some(known) = self.requests.known.get(&run_id) else { continue };
            let (request, revision) = (Arc::clone(&known.request), known.revision);
            let start_at = request.not_before.unwrap_or(known.ready_at);
            let side = self.side_of(&request, start_at);
            let is_elsewhere = |side: Side| matches!(side, Side::Elsewhere(_));
            if side != known.side && !(is_elsewhere(side) && is_elsewhere(known.side)) {
                self.put_request(run_id, request, revision, now);
            }
        }
    }

    /// Looks at what other workers should have claimed: one may hang, or be of a version that cannot read it. What is too late for it is let go
    /// by whoever looks after the job.
    pub(super) fn look_elsewhere(&mut self, now: Timestamp) {
        while let Some((_, run_id)) = self.requests.elsewhere.first().filter(|(at, _)| *at <= now).cloned() {
            let Some(known) = self.requests.known.get(&run_id) else { return };
            let (request, revision) = (Arc::clone(&known.request), known.revision);
            let start_at = request.not_before.unwrap_or(request.at);
            let definition = self.jobs.get(&request.job).and_then(JobState::definition);
            let too_late = definition.map_or(now, |definition| waits_until(&request, start_at, &definition));
            let look_at = too_late.plus_ms(look_after_ms(1));
            let side = if now < look_at { Side::Elsewhere(look_at) } else { Side::Anybody };
            let ready_at = if now < look_at { start_at } else { now };
            self.requests.put(run_id, Known { request, revision, ready_at, side }, now);
        }
    }
}
