//! Runs from the claim to the freed lock.

use common::clock::Timestamp;
use common::domain::job::JobName;
use common::domain::kill::Killed;
use common::domain::options::Concurrency;
use common::domain::record::{Ending, Record, SkipReason, Skipped, Status};
use common::domain::run::{OpenRun, RunId};
use common::domain::worker::Sid;
use common::kv::Revision;

use crate::exec::work::{Kill, Work};

use super::event::{Action, KillSeen, MoveAnswer, Report};
use super::job_state::{Definition, JobState, Pending};
use super::{SEED_LOCK_HOLD_MS, Scheduler};

/// Kill requests that are kept of one job while a claim of it is in flight: more than anybody sends in the time that a claim takes.
const KILLS_SEEN_MAX: usize = 16;
/// Who asks in a kill request that does not say so.
const BY_OLDER_VERSION: &str = "unknown: the request is of a version that did not say";
const BY_SEED: &str = "unknown: a kill request as the seed's master writes it";

/// Why runs are killed when their worker was told to end at once, or has waited for them as long as it may.
pub(super) fn by_worker_that_ends(now: Timestamp) -> Killed {
    Killed { by: "its worker, which ends".to_owned(), at: now }
}

/// How far a run is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// Its time has not come.
    Claimed,
    /// Its command is started.
    Running,
    /// Its record is handed on, and its lock is being freed.
    Ended,
}

/// A claimed run: the seed's `JobExecuteInfo`.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub(super) open: OpenRun,
    pub(super) sid: Sid,
    pub(super) seq: u64,
    /// The definition that it was claimed from.
    pub(super) job_revision: Revision,
    /// Of its claim.
    pub(super) claim_revision: Revision,
    /// At which its open key was put last.
    pub(super) open_revision: Revision,
    /// Of its lock, or of what it holds in its place; `None` when it holds neither any more.
    pub(super) lock_revision: Option<Revision>,
    /// Its lock, which is kept from seed workers for a while after its end: the next fire may take it over.
    pub(super) kept_lock: Option<Revision>,
    pub(super) stage: Stage,
    /// When it should start: its fire's time and the job's jitter.
    pub(super) start_at: Timestamp,
    /// Who has it killed; nobody yet.
    pub(super) killed: Option<Box<Killed>>,
    /// When its command was started.
    pub(super) started_at: Option<Timestamp>,
    /// It is on its way to a new session.
    pub(super) moving: bool,
    /// The store went back while it was going, and it has no open key of its own yet in what the store is now.
    pub(super) rescue: bool,
    /// Its record, when it ended on that way.
    pub(super) record: Option<Box<Record>>,
}

impl Run {
    /// Just claimed under this open key, of this definition, at this revision.
    pub(super) fn claimed(
        open: OpenRun,
        (sid, seq): (Sid, u64),
        job_revision: Revision,
        revision: Revision,
        start_at: Timestamp,
    ) -> Self {
        Self {
            open,
            sid,
            seq,
            job_revision,
            claim_revision: revision,
            open_revision: revision,
            lock_revision: Some(revision),
            kept_lock: None,
            stage: Stage::Claimed,
            start_at,
            killed: None,
            started_at: None,
            moving: false,
            rescue: false,
            record: None,
        }
    }

    /// Its claim is of a history that is no more: kill requests are now compared with the revision of its rescue.
    fn rescued_at(&mut self, revision: Revision) {
        if std::mem::take(&mut self.rescue) {
            self.claim_revision = revision;
        }
    }
}

impl Scheduler {
    /// A claim was won: its run waits for its time, unless somebody has asked meanwhile that it end.
    pub(super) fn take_run(&mut self, now: Timestamp, run: Run, out: &mut Vec<Action>) {
        let (run_id, job) = (run.open.run_id.clone(), run.open.job.clone());
        self.starts.insert((run.start_at, run_id.clone()));
        if let Some(mut state) = self.jobs.get_mut(&job).filter(|_| !run.open.unlocked) {
            state.run = Some(run_id.clone());
        }
        self.runs.insert(run_id.clone(), run);
        for request in self.kills_seen.remove(&job).unwrap_or_default() {
            self.on_kill_asked(now, &job, request, out);
        }
        if self.killing {
            self.kill_run(now, &run_id, Kill::AtOnce, by_worker_that_ends(now), out);
        }
        self.start_due(now, out);
        self.prepare(&run_id, out);
    }

    pub(super) fn start_due(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        while let Some((at, run_id)) = self.starts.first().cloned() {
            if at > now {
                return;
            }
            self.starts.remove(&(at, run_id.clone()));
            self.start(now, &run_id, out);
        }
    }

    /// The job by which a claimed run would start now: it may have been edited or deleted since the claim (P15).
    fn definition_of(&self, run: &Run) -> Result<(Definition, Work), SkipReason> {
        let plan_time = run.open.plan_time;
        let state = self.jobs.get(&run.open.job).ok_or(SkipReason::Deleted)?;
        let definition = match state.definition() {
            None => Err(SkipReason::Deleted),
            Some(new) if new.mod_revision == run.job_revision => Ok(new),
            // Claimed for one worker, and now every worker is to run it; or the other way round.
            Some(new) if run.open.target.is_some() != new.is_broadcast => Err(SkipReason::Superseded),
            // Claimed without the lock, and now no two runs may overlap: nobody has looked whether another goes.
            Some(new) if run.open.unlocked && !new.is_broadcast && new.concurrency != Concurrency::Allow => {
                Err(SkipReason::Superseded)
            }
            // It was asked for, whatever the schedule says.
            Some(new) if !run.open.trigger.is_of_schedule() && new.runnable.is_ok() => Ok(new),
            Some(new) if !new.enabled => Err(SkipReason::Disabled),
            Some(new)
                if new
                    .runnable
                    .as_ref()
                    .is_ok_and(|schedule| schedule.next_after(plan_time.plus_ms(-1)) == Some(plan_time)) =>
            {
                Ok(new)
            }
            Some(_) => Err(SkipReason::Superseded),
        };
        definition.map(|definition| (definition, self.jobs.work_of(state)))
    }

    /// Tells of a claimed run whose time has not come, so that its start can be got ready.
    pub(super) fn prepare(&self, run_id: &RunId, out: &mut Vec<Action>) {
        if let Some(run) = self.runs.get(run_id)
            && run.stage == Stage::Claimed
            && let Ok((_, work)) = self.definition_of(run)
        {
            let open = run.open.clone();
            out.push(Action::Prepare { open, work, due: run.start_at });
        }
    }

    /// Starts a claimed run whose time has come, unless the job was edited or deleted meanwhile (P15).
    fn start(&mut self, now: Timestamp, run_id: &RunId, out: &mut Vec<Action>) {
        let Some(run) = self.runs.get(run_id) else { return };
        let late_ms = now.ms_since(run.start_at);
        let by = self.definition_of(run);
        let by = by.map(|(definition, work)| (late_ms > definition.rule.start_deadline_ms(), work));
        let Some(run) = self.runs.get_mut(run_id) else { return };
        match by {
            Ok((true, _)) => {
                out.push(Action::Report(Report::TooLate(run.open.clone())));
                self.let_go(now, run_id, SkipReason::Misfire, out);
            }
            Ok((false, work)) => {
                run.stage = Stage::Running;
                run.started_at = Some(now);
                run.open.command = OpenRun::cut_command(&work.command);
                out.push(Action::Start { open: run.open.clone(), work, due: run.start_at });
            }
            Err(reason) => self.let_go(now, run_id, reason, out),
        }
    }

    /// Ends a claimed run without starting it.
    fn let_go(&mut self, now: Timestamp, run_id: &RunId, reason: SkipReason, out: &mut Vec<Action>) {
        let Some(run) = self.runs.get(run_id) else { return };
        let at = run.open.plan_time;
        let record = Record::skipped(&run.open, Skipped::one(at, reason));
        self.finish(now, run_id, record, out);
    }

    pub(super) fn on_run_ended(
        &mut self,
        now: Timestamp,
        run_id: &RunId,
        ending: Ending,
        out: &mut Vec<Action>,
    ) {
        let Some(run) = self.runs.get(run_id) else { return };
        // One that was over before the kill came to it was not killed; and nobody asks for what its guardian does.
        let killed = run.killed.as_deref().cloned().unwrap_or_else(|| Killed {
            by: "its guardian: its worker's lease was about to end".to_owned(),
            at: ending.end_time,
        });
        let is_killed = ending.status == Status::Killed;
        let mut record = Record::ended(&run.open, ending);
        if is_killed {
            record = record.killed(killed);
        }
        self.finish(now, run_id, record, out);
    }

    fn finish(&mut self, now: Timestamp, run_id: &RunId, record: Record, out: &mut Vec<Action>) {
        let Some(run) = self.runs.get_mut(run_id) else { return };
        run.stage = Stage::Ended;
        if run.moving {
            run.record = Some(Box::new(record)); // which open key it settles is not known yet
            return;
        }
        self.hand_on(now, run_id, Box::new(record), out);
        let Some(run) = self.runs.get_mut(run_id) else { return };
        // If this process dies here, the record may be lost with it, but the open run is still in the store: the fire ends as `lost`.
        // It ends after its time, so that no more than the whole hold is left; a clock that was put back says otherwise.
        let hold = if self.members.seeds.is_empty() || run.open.unlocked {
            now
        } else {
            run.open.plan_time.plus_ms(SEED_LOCK_HOLD_MS).min(now.plus_ms(SEED_LOCK_HOLD_MS))
        };
        match run.lock_revision.take() {
            Some(lock_revision) if self.session == Some(run.sid) => {
                run.kept_lock = (hold > now).then_some(lock_revision);
                out.push(Action::Release {
                    run_id: run_id.clone(),
                    job: run.open.job.clone(),
                    sid: run.sid,
                    lock_revision,
                    unlocked: run.open.unlocked,
                    not_before: hold,
                });
            }
            _ => self.on_released(now, run_id, out), // the lock went with its session
        }
    }

    pub(super) fn on_released(&mut self, now: Timestamp, run_id: &RunId, out: &mut Vec<Action>) {
        let Some(run) = self.runs.get(run_id) else { return };
        let (name, was_fire) = (run.open.job.clone(), run.open.trigger.is_of_schedule());
        self.forget_run(run_id);
        // In turns: a job that catches up would keep what is asked for waiting for as long, and a thousand requests would keep its fires.
        if was_fire {
            self.look_at_requests_anew(&name, now, out);
            self.look_at(&name, now, out);
        } else {
            self.look_at(&name, now, out);
            self.look_at_requests_anew(&name, now, out);
        }
        self.forget_job_if_done(&name);
    }

    pub(super) fn forget_run(&mut self, run_id: &RunId) {
        let Some(run) = self.runs.remove(run_id) else { return };
        self.starts.remove(&(run.start_at, run_id.clone()));
        let name = run.open.job;
        if let Some(mut state) = self.jobs.get_mut(&name)
            && state.run.as_ref() == Some(run_id)
        {
            state.run = None;
        }
        self.forget_job_if_done(&name);
    }

    pub(super) fn on_move_answered(
        &mut self,
        now: Timestamp,
        run_id: &RunId,
        sid: Sid,
        seq: u64,
        answer: MoveAnswer,
        out: &mut Vec<Action>,
    ) {
        if answer == MoveAnswer::Refused && self.session != Some(sid) {
            return; // that session is over itself; the move to the next one tells
        }
        let allows = self.allows_overlap(run_id);
        let Some(run) = self.runs.get_mut(run_id) else { return };
        match answer {
            MoveAnswer::Done(revision) | MoveAnswer::Unlocked(revision) => {
                (run.sid, run.seq, run.open_revision) = (sid, seq, revision);
                run.lock_revision = matches!(answer, MoveAnswer::Done(_)).then_some(revision);
                run.rescued_at(revision);
            }
            MoveAnswer::Refused => {
                run.lock_revision = None;
                if run.stage == Stage::Running {
                    out.push(Action::Report(Report::ClosedAsLost {
                        run_id: run_id.clone(),
                        killed: !allows,
                    }));
                    if !allows {
                        let by = "its worker: it had been closed as lost".to_owned();
                        // Without a grace: another run of the job may be going by now.
                        self.kill_run(now, run_id, Kill::AtOnce, Killed { by, at: now }, out);
                    }
                }
            }
        }
        self.stop_moving(now, run_id, out);
    }

    /// Whether a run may go on that nobody else can see any more: it was claimed without the lock, and its job still lets runs overlap.
    fn allows_overlap(&self, run_id: &RunId) -> bool {
        let Some(run) = self.runs.get(run_id) else { return false };
        let terms = self.jobs.get(&run.open.job).and_then(JobState::terms);
        run.open.unlocked
            && terms.is_none_or(|terms| terms.concurrency == Concurrency::Allow && !terms.has_fence())
    }

    /// Its open key is decided: what waited for that goes on.
    pub(super) fn stop_moving(&mut self, now: Timestamp, run_id: &RunId, out: &mut Vec<Action>) {
        let Some(run) = self.runs.get_mut(run_id) else { return };
        run.moving = false;
        if let Some(record) = run.record.take() {
            self.finish(now, run_id, *record, out);
        }
    }

    pub(super) fn on_kill_asked(
        &mut self,
        now: Timestamp,
        job: &JobName,
        request: KillSeen,
        out: &mut Vec<Action>,
    ) {
        let meant = |run: &Run| match &request.run_ids {
            Some(run_ids) => run_ids.contains(&run.open.run_id),
            None => run.claim_revision < request.revision,
        };
        let targets: Vec<RunId> = self
            .runs
            .iter()
            .filter(|(_, run)| run.open.job == *job && meant(run))
            .map(|(id, _)| id.clone())
            .collect();
        let unnamed = if request.run_ids.is_some() { BY_OLDER_VERSION } else { BY_SEED };
        let by = request.by.clone().unwrap_or_else(|| unnamed.to_owned());
        let killed = Killed { by, at: request.at.unwrap_or(now) };
        for run_id in targets {
            self.kill_run(now, &run_id, Kill::Gracefully, killed.clone(), out);
        }
        if self.claims_run_of(job) {
            let seen = self.kills_seen.entry(job.clone()).or_default();
            seen.push(request);
            if seen.len() > KILLS_SEEN_MAX {
                seen.remove(0);
            }
        }
    }

    /// Once no claim of the job is in flight, none can turn out to have committed before a kill request.
    pub(super) fn forget_kills_seen(&mut self, job: &JobName) {
        if !self.kills_seen.is_empty() && !self.claims_run_of(job) {
            self.kills_seen.remove(job);
        }
    }

    /// A claim is in flight, of a fire or of a request.
    fn claims_run_of(&self, job: &JobName) -> bool {
        let pending = self.jobs.get(job).map(|state| &state.pending);
        matches!(pending, Some(Pending::Claiming { .. })) || self.requests.may_lock(job)
    }

    /// Has a run killed; who asked first stands in its record.
    pub(super) fn kill_run(
        &mut self,
        now: Timestamp,
        run_id: &RunId,
        how: Kill,
        killed: Killed,
        out: &mut Vec<Action>,
    ) {
        let Some(run) = self.runs.get_mut(run_id) else { return };
        match run.stage {
            Stage::Ended => {}
            Stage::Running => {
                run.killed.get_or_insert_with(|| Box::new(killed));
                out.push(Action::Kill(run_id.clone(), how));
            }
            Stage::Claimed => {
                run.killed.get_or_insert_with(|| Box::new(killed.clone()));
                self.starts.remove(&(run.start_at, run_id.clone()));
                let ending = Ending {
                    status: Status::Killed,
                    err: "killed before its start".to_owned(),
                    command: run.open.command.clone(),
                    output: String::new(),
                    output_truncated: false,
                    output_bytes: 0,
                    start_time: now,
                    end_time: now,
                    exit_code: None,
                    signal: None,
                    http_status: None,
                };
                let record = Record::ended(&run.open, ending).killed(killed);
                self.finish(now, run_id, record, out);
            }
        }
    }
}
