//! What the scheduler knows about one job.

use std::sync::Arc;

use common::clock::Timestamp;
use common::domain::job::{JobName, ScheduleHash};
use common::domain::mark::Mark;
use common::domain::options::{Concurrency, JobOptions, Selector};
use common::domain::record::Record;
use common::domain::retry::Retry;
use common::domain::run::{OpenRun, RunId, Trigger};
use common::domain::worker::Sid;
use common::kv::Revision;
use common::schedule::Schedule;

use crate::exec::work::Work;

use super::event::{Action, Claim, ClaimKind, JobSeen, MarkSeen};
use super::misfire::Rule;
use super::ownership::Place;
use super::schedules::{Schedules, Source};
use super::{LOCKED_RETRY_MS, look_after_ms};

/// A job's definition as last seen: the seed's `JobSchedulePlan`.
#[derive(Clone, Debug)]
pub(super) struct Definition {
    /// Its schedule, or why it cannot be run.
    pub(super) runnable: Result<Arc<Schedule>, String>,
    /// What the schedule is read from, with the fleet's settings; `None` when something else keeps it from being run.
    source: Option<Arc<Source>>,
    /// Of the job's own part of what its times depend on.
    own_hash: ScheduleHash,
    pub(super) work: Work,
    pub(super) hash: ScheduleHash,
    /// What becomes of fires that are missed.
    pub(super) rule: Rule,
    /// Its fires start so much later than their times, in ms.
    pub(super) jitter_ms: i64,
    /// Its fires run on every worker.
    pub(super) is_broadcast: bool,
    /// What becomes of a fire while a run goes.
    pub(super) concurrency: Concurrency,
    /// The labels that a worker must have.
    pub(super) selector: Option<Selector>,
    /// It has fires.
    pub(super) enabled: bool,
    /// A mark of before this revision is of another job of the name, or of before it was last seen to be disabled: it says nothing about
    /// this one's fires.
    pub(super) marked_since: Revision,
    pub(super) retry: Option<Retry>,
    pub(super) mod_revision: Revision,
    /// When this worker saw it: the catch-up base, should nobody have set one.
    pub(super) seen_at: Timestamp,
}

impl Definition {
    /// `before` is the definition that this worker knew until now.
    pub(super) fn new(
        seen: JobSeen,
        before: Option<&Self>,
        now: Timestamp,
        schedules: &mut Schedules,
    ) -> Self {
        let (create_revision, mod_revision) = (seen.create_revision, seen.mod_revision);
        let known_since = before.map_or(create_revision, Self::next_marked_since);
        let name = seen.name;
        let of = |(source, runnable), command: &str, (own_hash, hash), options: &JobOptions, misfire| Self {
            runnable,
            source,
            own_hash,
            work: Work::new(command, &options.execution),
            hash,
            rule: Rule::of(options, misfire),
            jitter_ms: options.jitter_ms(&name),
            is_broadcast: options.is_broadcast(),
            concurrency: options.concurrency(),
            selector: options.selector.clone(),
            enabled: options.is_enabled(),
            marked_since: known_since.max(create_revision),
            retry: options.retry,
            mod_revision,
            seen_at: now,
        };
        let job = match seen.job {
            Ok(job) => job,
            Err(fault) => {
                let (runnable, hash) = ((None, Err(fault.to_string())), ScheduleHash::default());
                return of(runnable, "", (hash, hash), &JobOptions::default(), None);
            }
        };
        let unknown = job.options_not_understood();
        let runnable = if !unknown.is_empty() {
            (
                None,
                Err(format!("it has options that this version does not understand: {}", unknown.join(", "))),
            )
        } else if let Err(fault) = job.check_work() {
            (None, Err(fault.to_string()))
        } else if job.options.after.is_some() && !job.cron_expr.trim().is_empty() {
            (None, Err("cronExpr: is given beside \"after\"".to_owned()))
        } else {
            let (source, schedule) = schedules.parse(Source::of(&job));
            (Some(source), schedule.map_err(wrong_expression))
        };
        let fleet = schedules.fleet();
        let hashes = (job.own_hash(), job.schedule_hash(fleet));
        of(runnable, &job.command, hashes, &job.options, fleet.misfire)
    }

    /// The fleet's settings are others now. To a job whose times depend on them this is an edit: its fires count from now on (P7).
    pub(super) fn take_settings(&mut self, now: Timestamp, schedules: &mut Schedules) {
        let fleet = schedules.fleet();
        self.rule = self.rule.under(fleet.misfire);
        let Some(source) = &self.source else { return };
        let hash = self.own_hash.under(&source.settings(fleet));
        if hash == self.hash {
            return;
        }
        self.hash = hash;
        self.seen_at = now;
        self.runnable = schedules.parse(Source::clone(source)).1.map_err(wrong_expression);
    }

    /// Of the definition that comes after this one. Put by other hands, the two may come so fast that nobody has put a mark between: fires of
    /// the moments when the job was disabled would be caught up on. A save that enables a job puts the mark with it.
    fn next_marked_since(&self) -> Revision {
        if self.enabled { self.marked_since } else { self.mod_revision }
    }

    /// What is to happen when the worker of an attempt is lost; `None` = it ends there.
    pub(super) fn on_lost(&self, attempt: u32) -> Option<Retry> {
        self.retry?.after_loss(attempt, self.work.execution().has_fence())
    }

    /// A fire of it that is being claimed.
    pub(super) fn open_run(
        &self,
        run_id: RunId,
        job: &JobName,
        plan_time: Timestamp,
        worker: String,
        now: Timestamp,
    ) -> OpenRun {
        OpenRun {
            run_id,
            job: job.clone(),
            plan_time,
            attempt: 1,
            schedule_time: now,
            worker,
            command: OpenRun::cut_command(&self.work.command),
            trigger: Trigger::Schedule,
            skipped: None,
            unlocked: false,
            asked: None,
            after: None,
            env: None,
            on_lost: self.on_lost(1),
            target: None,
        }
    }
}

fn wrong_expression(why: common::schedule::Error) -> String {
    format!("cronExpr: {why}")
}

/// A job's mark as far as this worker knows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum MarkView {
    Unknown,
    Absent,
    Known(Mark, Revision),
    Unreadable(String),
}

/// What is in flight for a job; at most one thing at a time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Pending {
    None,
    Adopting,
    Claiming {
        claim: Box<Claim>,
        /// The claim that this one replaces, of which a sending may have committed before.
        earlier: Option<Box<Claim>>,
        /// A sending may have been applied, or be applied later.
        ambiguous: bool,
        /// When to send it again; `None` while an answer is awaited.
        resend_at: Option<Timestamp>,
        /// Sendings that brought no answer.
        sendings: u32,
    },
}

/// Consecutive skips for one reason, under one open run.
#[derive(Clone, Debug)]
pub(super) struct Streak {
    pub(super) sid: Sid,
    pub(super) seq: u64,
    pub(super) open: OpenRun,
    /// When its record was last handed on.
    pub(super) recorded_at: Timestamp,
}

impl Streak {
    /// Its record so far; the last one settles the open run.
    pub(super) fn record(&self, last: bool) -> Action {
        let skipped = self.open.skipped.clone().expect("a streak's open run says what was skipped");
        Action::Record {
            record: Box::new(Record::skipped(&self.open, skipped)),
            settles: last.then_some((self.sid, self.seq)),
        }
    }
}

/// Everything about one job. What few jobs have is boxed: a worker holds a million of these.
#[derive(Clone, Debug)]
pub(super) struct JobState {
    /// `None` once it is deleted, while something of it is still going.
    pub(super) definition: Option<Arc<Definition>>,
    pub(super) slot: u16,
    pub(super) rank: Option<u8>,
    /// No worker has the labels that it wants.
    pub(super) nobody: bool,
    /// And this was said.
    pub(super) nobody_told: bool,
    pub(super) mark: MarkView,
    /// The mark was as it is known at this time or later.
    pub(super) mark_read_at: Timestamp,
    /// Its mark is being read.
    pub(super) reading: bool,
    pub(super) pending: Pending,
    /// The run that holds its lock here. Runs without the lock are nowhere but among the scheduler's runs.
    pub(super) run: Option<RunId>,
    pub(super) streak: Option<Box<Streak>>,
    /// Its last fire was left to a seed worker.
    pub(super) left_to_seed: bool,
    /// The definition was found stale: wait for the watch until then.
    pub(super) stale_until: Option<Timestamp>,
    pub(super) timer: Option<Timestamp>,
    /// It waits for its turn to catch up, among the others by this time.
    pub(super) behind_since: Option<Timestamp>,
    /// When the fire that is next in turn should start, once its time to be claimed has come.
    pub(super) due: Option<Timestamp>,
    /// Under which it stands among those that are due and unclaimed.
    pub(super) unclaimed: Option<Timestamp>,
}

impl JobState {
    pub(super) fn new(slot: u16) -> Self {
        Self {
            definition: None,
            slot,
            rank: None,
            nobody: false,
            nobody_told: false,
            mark: MarkView::Unknown,
            mark_read_at: Timestamp::ZERO,
            reading: false,
            pending: Pending::None,
            run: None,
            streak: None,
            left_to_seed: false,
            stale_until: None,
            timer: None,
            behind_since: None,
            due: None,
            unclaimed: None,
        }
    }

    /// Whether there is a job that has any fires: neither deleted nor disabled.
    pub(super) fn has_fires(&self) -> bool {
        self.definition.as_ref().is_some_and(|definition| definition.enabled)
    }

    /// Takes this worker's place among those that may run it; true when it is another now.
    pub(super) fn take_place(&mut self, place: Place) -> bool {
        let before = (self.rank, self.nobody);
        (self.rank, self.nobody) = (place.rank, place.nobody);
        self.nobody_told &= place.nobody;
        before != (self.rank, self.nobody)
    }

    /// After how long, in ms, a fire is claimed again that found the job locked by a run elsewhere; `None` = the two overlap. Fires of a
    /// job that catches up with all of them wait behind each other, also for those who look on.
    pub(super) fn waits_for_lock(&self, due: Timestamp, now: Timestamp) -> Option<i64> {
        let rule = self.definition.as_ref()?.rule;
        let pause = match self.rank {
            Some(rank @ 1..) => Some(look_after_ms(rank)),
            _ => self.was_missed(due, now).then_some(LOCKED_RETRY_MS),
        };
        pause.filter(|_| rule.runs_all() && now.ms_since(due) <= rule.start_deadline_ms())
    }

    /// A fire of a job whose missed fires all run was missed itself: what it finds locked, it is behind.
    pub(super) fn was_missed(&self, due: Timestamp, now: Timestamp) -> bool {
        let rule = self.definition.as_ref().map(|definition| definition.rule);
        rule.is_some_and(|rule| rule.runs_all() && now.ms_since(due) > rule.late_max_ms())
    }

    /// How much later than their times its fires start, in ms.
    pub(super) fn jitter_ms(&self) -> i64 {
        self.definition.as_ref().map_or(0, |definition| definition.jitter_ms)
    }

    pub(super) fn see_mark(&mut self, seen: Option<MarkSeen>, at: Timestamp) {
        self.mark_read_at = at;
        if let (MarkView::Known(_, known), Some(seen)) = (&self.mark, &seen)
            && seen.revision < *known
        {
            return; // a stale answer
        }
        self.mark = match seen {
            None => MarkView::Absent,
            Some(MarkSeen { mark: Ok(mark), revision, .. }) => MarkView::Known(mark, revision),
            Some(MarkSeen { mark: Err(why), .. }) => MarkView::Unreadable(why.to_string()),
        };
    }

    /// Whoever is not the owner acts only on a mark that it has read since `act_at`; when that is still to be done, the job is set to reading.
    pub(super) fn must_read(&mut self, rank: u8, act_at: Timestamp) -> bool {
        self.reading = rank > 0 && self.mark_read_at < act_at;
        self.reading
    }

    /// Sends a claim. A sending of `earlier`, which it replaces, may still commit just before it: then that fire is taken after all.
    pub(super) fn send(&mut self, mut claim: Claim, earlier: Option<Claim>, out: &mut Vec<Action>) {
        claim.replaces = earlier.as_ref().map(|earlier| earlier.seq);
        let is_large = claim.kind == ClaimKind::Broadcast;
        claim.alone = earlier.is_some() || claim.over_lock.is_some() || claim.exclusive || is_large;
        let (claim, earlier) = (Box::new(claim), earlier.map(Box::new));
        out.push(Action::Claim(claim.clone()));
        self.pending = Pending::Claiming { claim, earlier, ambiguous: false, resend_at: None, sendings: 0 };
    }
}
