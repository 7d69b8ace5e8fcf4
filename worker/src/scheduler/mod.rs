//! The scheduler: a state machine from (now, event) to actions. It does no I/O, reads no clock and draws no random number: same events and
//! times, same actions. The driver carries its actions out; nothing else calls it but tests.
//!
//! It looks at the range of time from a job's mark to `now`, so that a late wake, a restart and a step of the clock are one case.

mod after;
mod broadcast;
mod concurrency;
mod event;
mod job_state;
mod jobs;
mod knows;
mod marks;
mod misfire;
mod ownership;
mod packed;
mod requests;
mod restored;
mod room;
mod runs;
mod schedules;
mod sessions;
mod streaks;
mod terms;
#[cfg(test)]
mod tests;
mod texts;
mod timers;
mod wall_clock;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use common::clock::Timestamp;
use common::domain::job::JobName;
use common::domain::mark::Mark;
use common::domain::record::{SkipReason, Skipped};
use common::domain::run::{OpenRun, RunId};
use common::domain::settings::FleetSettings;
use common::domain::worker::Sid;
use common::keys;
use common::kv::Revision;
use common::schedule::Schedule;

use crate::exec::work::Kill;

use after::Dependents;
pub use after::Follow;
#[cfg(test)]
pub(crate) use after::TOLD_AT_ONCE;
use concurrency::{Asked, older_than_newest, replaced_by};
pub use event::{
    Action, AdoptAnswer, Adoption, Claim, ClaimAnswer, ClaimKind, Event, Holder, JobSeen, KillSeen, LockSeen,
    MarkSeen, Members, MoveAnswer, Refusal, Report, Slots,
};
use job_state::{Definition, JobState, Pending};
use jobs::{Index, Jobs};
use marks::MarkView;
pub use misfire::LATE_START_MAX_MS;
use misfire::{Pace, Turn};
use ownership::Ranks;
use requests::Requests;
pub use requests::{Close, CloseAnswer, RequestAnswer, RequestClaim, RequestRefusal, RequestSeen};
pub(crate) use restored::CLAIMED_AHEAD_MAX_MS;
use restored::{Told, gone_back, is_from_before};
use room::{Line, Waiter};
use runs::{Run, Stage, by_worker_that_ends};
use schedules::Schedules;
use streaks::{Streak, Unrecorded};
use terms::Terms;
use timers::Timers;

/// A fire is claimed at least so long before its time, in ms: some round trips to a near store, so that lateness is that of the timer and
/// the spawn. [`Event::Lead`] makes it longer.
pub const LEAD_MIN_MS: i64 = 50;
/// And at most so long, in ms: what a worker has claimed ahead is lost with it.
pub const LEAD_MAX_MS: i64 = 500;
/// How long after a due fire the second and the third worker in a slot's order look whether it was claimed, in ms (design P18).
pub const LOOK_AFTER_MS: [i64; 2] = [3_000, 10_000];
/// Skipped fires are counted up to here; the record then says "more".
pub const SKIP_COUNT_MAX: u64 = 1_000;
/// With a seed worker in the fleet, locks are held until so long after T, in ms: it sleeps up to a second before it tries to lock (P17).
const SEED_LOCK_HOLD_MS: i64 = 1_500;
/// Jobs looked at in one step, so that whoever steps the scheduler gets a turn between: starts, answers and the session's renewal wait for
/// no more than this.
const LOOKS_PER_STEP: usize = 2_000;
/// Marks that could not be read, and claims that were not applied, are tried again after this, in ms.
const RETRY_MS: i64 = 200;
/// Longest pause between two sendings of a claim whose answer does not come, in ms.
const RESEND_MAX_MS: i64 = 800;
/// A definition found stale by a claim is looked at again after this, in ms, should the watch not have brought the new one.
const STALE_RETRY_MS: i64 = 1_000;
/// Adoptions on their way: a worker that finds a million jobs without marks would else hold a million of these. In tests so few that they are
/// waited for.
const ADOPTING_MAX: usize = if cfg!(test) { 2 } else { 1_000 };
/// A missed fire whose job is locked by a run elsewhere is claimed again after this, in ms, by the owner.
const LOCKED_RETRY_MS: i64 = 1_000;

/// How long after a due fire a worker of a rank from 1 looks, in ms.
fn look_after_ms(rank: u8) -> i64 {
    LOOK_AFTER_MS[usize::from(rank).saturating_sub(1).min(LOOK_AFTER_MS.len() - 1)]
}

/// The state machine.
#[derive(Debug)]
pub struct Scheduler {
    runs_max: usize,
    /// Fires are claimed so long before their time, in ms.
    lead_ms: i64,
    worker_id: String,
    session: Option<Sid>,
    next_seq: u64,
    members: Members,
    ranks: Ranks,
    jobs_listed: bool,
    paused: bool,
    base: Timestamp,
    /// The store went back, which this worker has noticed: fires up to this time may have run in what it was before.
    floor: Timestamp,
    /// The same, as far as `/cron/base` says it: others have noticed.
    told_floor: Timestamp,
    /// What `/cron/base` says of that; `None` = it was not read yet, and nothing is claimed before.
    restore_told: Option<Told>,
    sink_full: bool,
    clock_trusted: bool,
    /// The time of the last event.
    last_now: Timestamp,
    /// Jobs whose mark is far ahead.
    marks_ahead: BTreeSet<JobName>,
    draining: bool,
    /// Runs that are claimed from now on are killed before they start: whoever asked for it wants the process to end.
    killing: bool,
    /// Kill requests that came while a claim of the job was in flight: it may have committed before them.
    kills_seen: BTreeMap<JobName, Vec<KillSeen>>,
    /// Runs elsewhere that were asked to make room for a fire, by job.
    asked: BTreeMap<JobName, Asked>,
    jobs: Jobs,
    schedules: Schedules,
    /// Of the fleet's settings, by which schedules are read; `None` = they are not known, or cannot be read: nothing is claimed.
    settings_revision: Option<Revision>,
    runs: BTreeMap<RunId, Run>,
    /// When to look at which job.
    timers: Timers,
    /// When to start which claimed run.
    starts: BTreeSet<(Timestamp, RunId)>,
    /// Fires whose time to be claimed by this worker as their owner has come, until they are.
    unclaimed: BTreeSet<(Timestamp, JobName)>,
    unrecorded: Unrecorded,
    /// The store went back while this worker's clock was not trusted: when that was is not known.
    went_back_in_doubt: bool,
    /// What `/cron/base` had said when the store was found to have gone back.
    told_before: Option<Timestamp>,
    /// Jobs whose claim of a run is in flight: each will need room.
    claiming: BTreeSet<JobName>,
    /// Jobs with a fire due and no room for a run.
    waiting_for_room: Line,
    /// Jobs with a missed fire to run, by its time, that wait for the pace.
    behind: BTreeSet<(Timestamp, JobName)>,
    pace: Pace,
    requests: Requests,
    dependents: Dependents,
    /// Jobs whose adoption is on its way, and those that wait for theirs.
    adopting: usize,
    to_adopt: BTreeSet<Index>,
    /// Slots whose marks are to be read, by whether a stale answer will do.
    wanted: BTreeMap<bool, BTreeSet<u16>>,
}

impl Scheduler {
    /// A scheduler that runs at most `runs_max` jobs at a time.
    #[must_use]
    pub fn new(runs_max: usize) -> Self {
        Self {
            runs_max,
            lead_ms: LEAD_MIN_MS,
            worker_id: String::new(),
            session: None,
            next_seq: 0,
            members: Members::default(),
            ranks: Ranks::none(),
            jobs_listed: false,
            paused: false,
            base: Timestamp::ZERO,
            floor: Timestamp::ZERO,
            told_floor: Timestamp::ZERO,
            restore_told: None,
            sink_full: false,
            clock_trusted: true,
            last_now: Timestamp::ZERO,
            marks_ahead: BTreeSet::new(),
            draining: false,
            killing: false,
            kills_seen: BTreeMap::new(),
            asked: BTreeMap::new(),
            jobs: Jobs::default(),
            schedules: Schedules::new(),
            settings_revision: None,
            runs: BTreeMap::new(),
            timers: Timers::default(),
            starts: BTreeSet::new(),
            unclaimed: BTreeSet::new(),
            unrecorded: Unrecorded::default(),
            went_back_in_doubt: false,
            told_before: None,
            claiming: BTreeSet::new(),
            waiting_for_room: Line::default(),
            behind: BTreeSet::new(),
            pace: Pace::default(),
            requests: Requests::default(),
            dependents: Dependents::default(),
            adopting: 0,
            to_adopt: BTreeSet::new(),
            wanted: BTreeMap::new(),
        }
    }

    /// Takes one event and returns what to do, in order.
    pub fn step(&mut self, now: Timestamp, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        // News of the clock come before the event that they were noticed at, and that may be the end of the session: nothing starts in between.
        let starts = !matches!(event, Event::ClockTrusted(_));
        if self.clock_trusted && !matches!(event, Event::ClockTrusted(false)) {
            self.keep_floor_in_bounds(now);
        }
        self.notice_step_back(now);
        match event {
            Event::Woke => {}
            Event::Lead(ms) => self.lead_ms = ms.clamp(LEAD_MIN_MS, LEAD_MAX_MS),
            Event::SessionGained(sid, id) => self.on_session_gained(now, sid, id, &mut out),
            Event::Renamed(id) => {
                self.worker_id = id;
                self.rank_all(now, &mut out);
            }
            Event::SessionLost => self.on_session_lost(now, &mut out),
            Event::StoreWentBack => self.on_store_went_back(now, &mut out),
            Event::JobsListBegins => self.jobs.values_mut().for_each(|state| state.listed = false),
            Event::JobsListed => {
                self.on_jobs_listed(&mut out);
                self.requests.look_at_all(now);
            }
            Event::JobPut(job) => {
                self.requests.look_anew(&job.name, now);
                self.on_job_put(now, job, &mut out);
            }
            Event::JobDeleted(name) => {
                self.on_job_deleted(&name, &mut out);
                self.requests.look_anew(&name, now);
            }
            Event::RequestSeen(seen) => self.on_request_seen(now, seen, &mut out),
            Event::RequestGone(run_id) => self.on_request_gone(&run_id),
            Event::RequestsListed(run_ids) => self.on_requests_listed(&run_ids),
            Event::RequestAnswered(claim, answer) => self.on_request_answered(now, &claim, answer, &mut out),
            Event::Closed(run_id, answer) => self.on_closed(now, &run_id, answer, &mut out),
            Event::MarksRead { slots, marks, asked_at } => {
                self.on_marks_read(now, &slots, marks, asked_at, &mut out)
            }
            Event::MarksUnread(slots) => self.on_marks_unread(now, &slots),
            Event::MembersChanged(members) => self.on_members(now, members, &mut out),
            Event::Paused(paused) => {
                let before = std::mem::replace(&mut self.paused, paused);
                self.look_at_all_if(before != paused, now);
            }
            Event::Base(base) => self.on_base(now, &base),
            Event::Settings(settings, revision) => self.on_settings(now, settings, revision, &mut out),
            Event::ClaimAnswered(run_id, plan_time, job, answer) => {
                self.on_claim_answered(now, &run_id, plan_time, &job, answer, &mut out);
            }
            Event::AdoptAnswered(job, answer) => self.on_adopt_answered(now, &job, answer, &mut out),
            Event::RunEnded(run_id, ending) => self.on_run_ended(now, &run_id, ending, &mut out),
            Event::Released(run_id) => self.on_released(now, &run_id, &mut out),
            Event::MoveAnswered(run_id, sid, seq, answer) => {
                self.on_move_answered(now, &run_id, sid, seq, answer, &mut out)
            }
            Event::KillAsked(job, request) => self.on_kill_asked(now, &job, request, &mut out),
            Event::ClockTrusted(trusted) => self.on_clock_trusted(now, trusted, &mut out),
            Event::SinkFull(full) => {
                let before = std::mem::replace(&mut self.sink_full, full);
                self.look_at_all_if(before != full, now);
            }
            Event::DrainRequested => {
                self.draining = true;
                self.end_all_streaks(&mut out);
            }
            Event::KillAllRequested => {
                self.killing = true;
                for run_id in self.runs.keys().cloned().collect::<Vec<_>>() {
                    self.kill_run(now, &run_id, Kill::AtOnce, by_worker_that_ends(now), &mut out);
                }
            }
        }
        if starts {
            self.start_due(now, &mut out);
        }
        self.offer_room(now, &mut out); // before those come that have not waited
        self.look_at_due(now, &mut out);
        self.adopt_more(now, &mut out);
        self.offer_room(now, &mut out);
        self.catch_up(now, &mut out);
        self.look_at_due_requests(now, &mut out); // last: fires have a time, and what is asked for can wait its turn
        self.record_streaks(now, &mut out);
        for (serializable, slots) in std::mem::take(&mut self.wanted) {
            out.push(Action::ReadMarks { slots: Slots::Some(slots), serializable });
        }
        out
    }

    /// When the scheduler must be woken, if nothing else happens before.
    #[must_use]
    pub fn wake_at(&self) -> Option<Timestamp> {
        let timer = self.timers.first().map(|(at, _)| at);
        let start = self.starts.first().map(|(at, _)| *at);
        let next_turn = (!self.behind.is_empty()).then(|| self.pace.next_turn());
        let record = self.unrecorded.first_due();
        timer.into_iter().chain(start).chain(next_turn).chain(record).chain(self.requests.wake_at()).min()
    }

    /// Nothing is claimed, running or about to be: a draining worker may leave once its records are stored.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.runs.is_empty()
            && self.requests.are_idle(self.draining)
            && !self.jobs.values().any(|job| matches!(job.pending, Pending::Claiming { .. }))
    }

    /// Runs that are claimed or going.
    #[must_use]
    pub fn open_runs(&self) -> usize {
        self.runs.len()
    }

    /// Runs that are asked for, by somebody or as retries, and not claimed yet, in the whole fleet.
    #[must_use]
    pub fn requests_waiting(&self) -> usize {
        self.requests.waiting()
    }

    /// Whether this worker is the first in the slot's order.
    #[must_use]
    pub fn owns_slot(&self, slot: u16) -> bool {
        self.ranks.rank(slot) == Some(0)
    }

    /// Sessions that runs here belong to.
    #[must_use]
    pub fn sids(&self) -> BTreeSet<Sid> {
        self.runs.values().map(|run| run.sid).chain(self.requests.sids()).collect()
    }

    /// Fires that are due, should be claimed by this worker as their owner and are not: the time of the oldest.
    #[must_use]
    pub fn oldest_due_unclaimed(&self, now: Timestamp) -> Option<Timestamp> {
        let (oldest, _) = self.unclaimed.first().filter(|_| !self.paused)?;
        (now > oldest.plus_ms(LATE_START_MAX_MS)).then_some(*oldest)
    }

    /// How many jobs have such a fire, counted up to `most`.
    #[must_use]
    pub fn due_unclaimed(&self, now: Timestamp, most: usize) -> usize {
        let is_late = |(due, _): &&(Timestamp, JobName)| now > due.plus_ms(LATE_START_MAX_MS);
        self.unclaimed.iter().filter(|_| !self.paused).take_while(is_late).take(most).count()
    }

    /// Jobs that are known, of the whole fleet.
    #[must_use]
    pub fn jobs(&self) -> usize {
        self.jobs.len()
    }

    /// The fleet is paused.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    // --- sessions and members -------------------------------------------------------------------------------------

    fn on_session_gained(&mut self, now: Timestamp, sid: Sid, id: String, out: &mut Vec<Action>) {
        self.session = Some(sid);
        self.next_seq = 0;
        self.worker_id = id;
        self.sort_targeted(now);
        self.rank_all(now, out);
        // Runs that outlived their session: they go on if nobody has closed them (P10).
        let orphans: Vec<RunId> =
            self.runs.iter().filter(|(_, run)| run.sid != sid).map(|(id, _)| id.clone()).collect();
        for run_id in orphans {
            let to = (sid, self.take_seq());
            if let Some(run) = self.runs.get_mut(&run_id) {
                run.moving = true;
                let (open, from) = (run.open.clone(), (run.sid, run.seq));
                out.push(Action::Move { open, from, to, rescue: run.rescue });
            }
        }
        self.read_all_marks(out);
    }

    fn on_session_lost(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        self.session = None;
        // Moves to that session may stay without an answer. A record that waited for one goes on under the old open key: if the move
        // was made after all, the new key is swept with its session, and that `lost` gives way to this record.
        let moving: Vec<RunId> =
            self.runs.iter().filter(|(_, run)| run.moving).map(|(id, _)| id.clone()).collect();
        for run_id in moving {
            self.stop_moving(now, &run_id, out);
        }
        // What was claimed and not started is not trusted any more: its record is `lost`, written by whoever sweeps.
        let unstarted: Vec<RunId> = self
            .runs
            .iter()
            .filter(|(_, run)| run.stage != Stage::Running)
            .map(|(id, _)| id.clone())
            .collect();
        for run_id in unstarted {
            self.forget_run(&run_id);
        }
        self.jobs.for_each_mut(|_, mut state| {
            state.set_mark(MarkView::Unknown);
            state.reading = false;
            let Some(busy) = state.busy_mut() else { return };
            // Claims in flight compare the session, so that none can commit any more.
            busy.pending = Pending::None;
            busy.behind_since = None;
            // Its open key is among those that are swept.
            busy.streak = None;
            state.rest();
        });
        self.unrecorded.clear();
        (self.adopting, self.to_adopt) = (0, BTreeSet::new());
        self.kills_seen.clear();
        self.starts.clear();
        self.timers.clear();
        self.claiming.clear();
        self.waiting_for_room.clear();
        self.behind.clear();
        self.requests.on_session_lost();
        for name in self.jobs.names_of(|state| state.terms().is_none()) {
            self.forget_job_if_done(&name);
        }
    }

    fn on_members(&mut self, now: Timestamp, members: Members, out: &mut Vec<Action>) {
        if members.seeds != self.members.seeds {
            out.push(Action::Report(Report::Seeds(members.seeds.clone())));
        }
        let moved = members.ours != self.members.ours;
        let others = members.sessions != self.members.sessions;
        self.members = members;
        if moved {
            self.rank_all(now, out);
        }
        if others {
            self.sort_targeted(now);
        }
    }

    /// Takes this worker's places among the workers that there are now, and has the jobs looked at in which its place is another.
    fn rank_all(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        self.ranks = Ranks::of(&self.worker_id, &self.members.ours);
        let mut over = Vec::new();
        self.jobs.for_each_mut(|job, mut state| {
            let selector = state.terms().and_then(|terms| terms.selector.as_ref());
            let place = self.ranks.place(state.slot, selector);
            // Others may have claimed meanwhile; a claim in flight brings its own answer.
            if state.take_place(place) {
                if state.pending == Pending::None {
                    state.set_mark(MarkView::Unknown);
                }
                over.extend(state.streak.is_some().then(|| state.name()));
                self.timers.set(job, Some(now));
            }
        });
        for name in over {
            self.end_streak(&name, out); // its skips are another's to count from here on
        }
        self.requests.look_at_all(now);
    }

    // --- jobs -----------------------------------------------------------------------------------------------------

    fn on_jobs_listed(&mut self, out: &mut Vec<Action>) {
        for name in self.jobs.names_of(|state| !state.listed) {
            self.on_job_deleted(&name, out);
        }
        self.dependents.keep_only(|name| self.jobs.get(name).is_some_and(|state| state.listed));
        if !std::mem::replace(&mut self.jobs_listed, true) {
            self.read_all_marks(out);
        }
    }

    /// Reads every mark, once there is a session and the jobs are known: reading slot by slot while they are told would be a request each.
    fn read_all_marks(&mut self, out: &mut Vec<Action>) {
        if self.session.is_none() || !self.jobs_listed {
            return;
        }
        out.push(Action::ReadMarks { slots: Slots::All, serializable: false });
        for state in self.jobs.values_mut() {
            state.reading = true;
        }
    }

    fn on_job_put(&mut self, now: Timestamp, seen: JobSeen, out: &mut Vec<Action>) {
        let name = seen.name.clone();
        if let Some(mut state) = self.jobs.get_mut(&name) {
            state.listed = true;
            match state.mod_revision().map(|known| known.cmp(&seen.mod_revision)) {
                Some(Ordering::Equal) => return, // listed again
                Some(Ordering::Greater) => {
                    // News of a key come in order, and a list is younger than what is known: this is another history (P16).
                    let why = format!("job {name} is of revision {} again", seen.mod_revision);
                    return out.push(Action::GiveUpStore(why));
                }
                Some(Ordering::Less) | None => {}
            }
        }
        self.note_after(&name, seen.job.as_deref().ok(), seen.mod_revision, out);
        let mut state = self.jobs.define(seen, now, &mut self.schedules);
        if let Some(Err(why)) = state.terms().map(|terms| &terms.runnable) {
            out.push(Action::Report(Report::BadJob(name.clone(), why.clone())));
        }
        let selector = state.terms().and_then(|terms| terms.selector.as_ref());
        let place = self.ranks.place(state.slot, selector);
        state.take_place(place);
        if let Some(busy) = state.busy_mut() {
            busy.stale_until = None; // this is what was waited for
        }
        state.seen_in_doubt = !self.clock_trusted;
        if state.pending == Pending::None {
            state.set_mark(MarkView::Unknown); // the save may have written it too
        }
        self.look_at(&name, now, out);
    }

    /// Other settings are an edit of each job whose times depend on them. A fire that was claimed before runs, like one that was claimed before
    /// its job was edited to have another schedule that has it too.
    fn on_settings(
        &mut self,
        now: Timestamp,
        settings: Option<FleetSettings>,
        revision: Revision,
        out: &mut Vec<Action>,
    ) {
        let known = settings.is_some().then_some(revision);
        let news = std::mem::replace(&mut self.settings_revision, known) != known;
        let changed = settings.is_some_and(|settings| self.schedules.take_settings(settings));
        if changed {
            self.jobs.for_each_mut(|_, mut state| {
                let before = state.terms().is_some_and(|terms| terms.runnable.is_ok());
                state.take_settings(now, &mut self.schedules);
                if let (true, Some(Err(why))) = (before, state.terms().map(|new| &new.runnable)) {
                    out.push(Action::Report(Report::BadJob(state.name(), why.clone())));
                }
            });
        }
        if news {
            // What was found stale need not wait any longer.
            self.jobs.values_mut().filter_map(JobState::busy_mut).for_each(|busy| busy.stale_until = None);
        }
        self.look_at_all_if(changed || news, now);
    }

    fn on_job_deleted(&mut self, name: &JobName, out: &mut Vec<Action>) {
        self.end_streak(name, out);
        self.dependents.remove(name);
        if self.jobs_listed && self.dependents.has(name) {
            out.push(Action::Report(Report::WaitedFor(name.clone())));
        }
        let Some(mut state) = self.jobs.get_mut(name) else { return };
        state.set_definition(None);
        state.due = None;
        // A claim that waits to be sent again is still to be decided.
        let again = match &state.pending {
            Pending::Claiming { resend_at, .. } => *resend_at,
            Pending::None | Pending::Adopting => None,
        };
        if let (Some(0), MarkView::Known(mark, revision)) = (state.rank(), state.mark()) {
            out.push(Action::RetireMark { job: name.clone(), revision, mark });
        }
        self.set_timer(name, again);
        self.note_unclaimed(name);
        self.forget_job_if_done(name);
    }

    /// What may be over once no claim is in flight any more.
    fn tidy(&mut self, name: &JobName, out: &mut Vec<Action>) {
        if self.draining || self.jobs.get(name).is_some_and(|state| !state.has_fires()) {
            self.end_streak(name, out);
        }
        self.forget_job_if_done(name);
    }

    fn forget_job_if_done(&mut self, name: &JobName) {
        let done = |state: &JobState| {
            state.terms().is_none() && state.run.is_none() && state.pending == Pending::None
        };
        let Some(mut state) = self.jobs.get_mut(name) else { return };
        state.rest();
        if done(&state) {
            let unclaimed = state.unclaimed;
            self.set_timer(name, None);
            self.set_behind(name, None);
            self.waiting_for_room.leave(name);
            self.marks_ahead.remove(name);
            self.asked.remove(name);
            self.jobs.remove(name);
            if let Some(due) = unclaimed {
                self.unclaimed.remove(&(due, name.clone()));
            }
        }
    }

    // --- marks ----------------------------------------------------------------------------------------------------

    fn on_marks_read(
        &mut self,
        now: Timestamp,
        slots: &Slots,
        mut marks: BTreeMap<JobName, MarkSeen>,
        asked_at: Timestamp,
        out: &mut Vec<Action>,
    ) {
        for job in self.jobs_in(slots) {
            let Some(mut state) = self.jobs.at_mut(job) else { continue };
            let name = state.name();
            let seen = marks.remove(&name);
            state.reading = false;
            if state.pending == Pending::None {
                state.see_mark(seen, asked_at);
                if let MarkView::Unreadable(why) = state.mark() {
                    out.push(Action::Report(Report::BadMark(name.clone(), why)));
                }
            }
            self.look_at(&name, now, out);
        }
        if !self.jobs_listed {
            return;
        }
        for (job, seen) in marks {
            // Marks without a job. (One whose job is just being created is safe: retiring compares that the job is absent.)
            let mine = slots.contains(keys::slot(&job)) && self.ranks.rank(keys::slot(&job)) == Some(0);
            if let (true, false, Ok(mark)) = (mine, seen.retired, seen.mark) {
                out.push(Action::RetireMark { job, revision: seen.revision, mark });
            }
        }
    }

    /// Those that are known now: none comes while they are gone through.
    fn jobs_in(&self, slots: &Slots) -> Vec<Index> {
        match slots {
            Slots::All => self.jobs.iter().map(|(job, _)| job).collect(),
            Slots::Some(slots) => slots.iter().flat_map(|slot| self.jobs.in_slot(*slot)).collect(),
        }
    }

    fn on_marks_unread(&mut self, now: Timestamp, slots: &Slots) {
        for job in self.jobs_in(slots) {
            match self.jobs.at_mut(job) {
                Some(mut state) if state.reading => state.reading = false,
                _ => continue,
            }
            self.timers.set(job, Some(now.plus_ms(RETRY_MS)));
        }
    }

    fn on_adopt_answered(
        &mut self,
        now: Timestamp,
        name: &JobName,
        answer: AdoptAnswer,
        out: &mut Vec<Action>,
    ) {
        let Some(mut state) = self.jobs.get_mut(name) else { return };
        if state.pending != Pending::Adopting {
            return;
        }
        state.pending = Pending::None;
        self.adopting = self.adopting.saturating_sub(1);
        match answer {
            AdoptAnswer::Done(mark, revision) => {
                state.set_mark(MarkView::Known(mark, revision));
                state.set_mark_read_at(now);
                self.look_at(name, now, out);
            }
            AdoptAnswer::LookAgain => {
                state.set_mark(MarkView::Unknown);
                self.set_timer(name, Some(now.plus_ms(RETRY_MS)));
            }
        }
        self.forget_job_if_done(name);
    }

    // --- looking at jobs ------------------------------------------------------------------------------------------

    /// Has every job looked at, as timers that are due: with a million jobs that is several steps.
    fn look_at_all(&mut self, now: Timestamp) {
        for (job, _) in self.jobs.iter() {
            self.timers.set(job, Some(now));
        }
        self.requests.look_at_all(now);
    }

    /// At the start, and whenever a watch begins anew, what is told is mostly what was known: no reason to walk over all jobs.
    fn look_at_all_if(&mut self, changed: bool, now: Timestamp) {
        if changed {
            self.look_at_all(now);
        }
    }

    fn look_at_due(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        for _ in 0..LOOKS_PER_STEP {
            let Some((at, job)) = self.timers.first() else { return };
            if at > now {
                return;
            }
            self.timers.set(job, None);
            if let Some(name) = self.jobs.name_at(job) {
                self.look_at(&name, now, out);
            }
        }
    }

    /// Looks at jobs that wait to be adopted, while there is room for more on the way.
    fn adopt_more(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        while self.adopting < ADOPTING_MAX
            && let Some(job) = self.to_adopt.pop_first()
        {
            if let Some(name) = self.jobs.name_at(job) {
                self.look_at(&name, now, out);
            }
        }
    }

    /// Looks at jobs that waited for room, while there is some.
    fn offer_room(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        while self.has_room() {
            let taken = self.room_taken();
            if self.waiting_for_room.gives_way()
                && let Some(name) = self.requests.next_for_room()
            {
                self.waiting_for_room.give_way();
                self.look_at_requests(&name, now, out);
                self.waiting_for_room.gave_way(self.room_taken() > taken);
                continue;
            }
            let Some((waiter, name)) = self.waiting_for_room.next() else { break };
            match waiter {
                Waiter::Fire => self.look_at(&name, now, out),
                Waiter::Part => self.look_at_requests(&name, now, out),
            }
            self.waiting_for_room.served(self.room_taken() > taken);
        }
    }

    /// Looks at jobs that wait to catch up, the longest overdue first, as fast as the pace allows.
    fn catch_up(&mut self, now: Timestamp, out: &mut Vec<Action>) {
        while !self.behind.is_empty()
            && self.pace.has_place(now)
            && let Some((_, name)) = self.behind.pop_first()
        {
            self.look_at(&name, now, out);
        }
    }

    /// There is room for whoever is looked at: none stands before it in the line.
    fn has_place(&self) -> bool {
        self.has_room() && self.waiting_for_room.lets_by()
    }

    fn has_room(&self) -> bool {
        self.room_taken() < self.runs_max
    }

    fn room_taken(&self) -> usize {
        self.runs.len() + self.claiming.len() + self.requests.claiming()
    }

    fn note_claiming(&mut self, name: &JobName) {
        let claims_run = |state: &JobState| matches!(&state.pending, Pending::Claiming { claim, .. } if claim.kind == ClaimKind::Run);
        if self.jobs.get(name).is_some_and(claims_run) {
            self.claiming.insert(name.clone());
        } else {
            self.claiming.remove(name);
        }
    }

    fn set_timer(&mut self, name: &JobName, at: Option<Timestamp>) {
        if let Some(job) = self.jobs.find(name) {
            self.timers.set(job, at);
        }
    }

    fn set_behind(&mut self, name: &JobName, since: Option<Timestamp>) {
        let Some(mut state) = self.jobs.get_mut(name) else { return };
        if state.behind_since == since {
            return;
        }
        if let Some(old) = std::mem::replace(&mut state.behind_since, since) {
            self.behind.remove(&(old, name.clone()));
        }
        if let Some(since) = since {
            self.behind.insert((since, name.clone()));
        }
    }

    /// Decides what a job needs now, and when to look at it again.
    fn look_at(&mut self, name: &JobName, now: Timestamp, out: &mut Vec<Action>) {
        self.set_behind(name, None);
        let again = self.decide(name, now, out);
        self.note_claiming(name);
        self.note_unclaimed(name);
        self.forget_kills_seen(name);
        self.set_timer(name, again);
        self.tidy(name, out);
    }

    fn note_unclaimed(&mut self, name: &JobName) {
        let Some(mut state) = self.jobs.get_mut(name) else { return };
        let (before, unclaimed) = (state.unclaimed, state.due.filter(|_| state.rank() == Some(0)));
        if before != unclaimed {
            state.unclaimed = unclaimed;
            self.unclaimed.extend(unclaimed.map(|due| (due, name.clone())));
            if let Some(before) = before {
                self.unclaimed.remove(&(before, name.clone()));
            }
        }
    }

    fn decide(&mut self, name: &JobName, now: Timestamp, out: &mut Vec<Action>) -> Option<Timestamp> {
        let sid = self.session?;
        if !self.jobs_listed || self.restore_told.is_none() {
            return None; // what is known of the jobs is not all of them, their marks are not read, or not since when fires count
        }
        let (floor, noticed_floor) = (self.floor(), self.floor);
        let mut state = self.jobs.get_mut(name)?;
        if let Pending::Claiming { claim, earlier, resend_at: Some(at), ambiguous, .. } = &mut state.pending {
            if *at > now {
                return Some(*at);
            }
            if *ambiguous || earlier.is_some() {
                // Only writing decides: the identical request again (P2). So also when a claim that this one replaces may have committed:
                // decided anew, nobody would know that run any more.
                claim.alone = true;
                out.push(Action::Claim(claim.clone()));
                if let Pending::Claiming { resend_at, .. } = &mut state.pending {
                    *resend_at = None;
                }
                return None;
            }
            state.pending = Pending::None; // never applied: decide anew
        }
        if state.pending != Pending::None {
            return None;
        }
        let runnable = |definition: Definition| {
            let schedule = definition.runnable.as_ref().ok().map(Arc::clone)?;
            Some((definition, schedule))
        };
        let (Some(rank), Some((definition, schedule)), false, false) =
            (state.rank(), state.definition().and_then(runnable), self.paused, self.draining)
        else {
            state.due = None; // not this worker's to claim
            return None;
        };
        if !definition.enabled {
            state.due = None;
        }
        if !self.clock_trusted || self.sink_full || state.reading {
            return None;
        }
        let settings_revision = self.settings_revision?;
        if let Some(stale_until) = state.stale_until {
            if now < stale_until {
                return Some(stale_until);
            }
            state.stale_until = None;
        }
        let offset = match rank {
            // Each worker claims its own part after that, and no less long before the fire's time.
            0 if definition.is_broadcast => -(2 * self.lead_ms).min(LEAD_MAX_MS),
            0 => -self.lead_ms,
            rank => look_after_ms(rank),
        };
        let (mark, mark_revision) = match state.mark() {
            MarkView::Unknown => {
                state.reading = true;
                self.wanted.entry(false).or_default().insert(state.slot);
                return None;
            }
            MarkView::Unreadable(_) => return None,
            MarkView::Absent => (None, 0),
            MarkView::Known(mark, revision) => (Some(mark), revision),
        };
        let adopted = |mark: &Mark| {
            mark.hash == definition.hash
                && definition.marked_since <= mark_revision
                && !is_from_before(mark, noticed_floor, rank)
        };
        let Some(mark) = mark.clone().filter(adopted) else {
            // Put by other hands: its fires count from when it was seen (P7). So do all fires once the store went back (P16).
            let act_at = definition.seen_at.plus_ms(offset.max(0));
            if now < act_at {
                return Some(act_at);
            }
            if state.must_read(rank, act_at) {
                self.wanted.entry(true).or_default().insert(state.slot);
                return None;
            }
            // Never back: the mark may be of a save, and of a clock that is ahead of this one. But not of one that was far off.
            let so_far = mark.as_ref().map_or(Timestamp::ZERO, |mark| mark.base);
            let base = definition.seen_at.max(floor).max(so_far.min(now.plus_ms(CLAIMED_AHEAD_MAX_MS)));
            let mark_value = mark.as_ref().and_then(Mark::stored_value);
            let mark = Mark::based(mark.as_ref(), base, definition.hash);
            let job_revision = definition.mod_revision;
            if self.adopting >= ADOPTING_MAX {
                self.to_adopt.insert(self.jobs.find(name)?);
                return None;
            }
            self.adopting += 1;
            state.pending = Pending::Adopting;
            out.push(Action::Adopt(Adoption {
                job: name.clone(),
                job_revision,
                mark_revision,
                mark_value,
                settings_revision,
                sid,
                mark,
            }));
            return None;
        };
        self.note_mark(name, &mark, now, out);
        if !definition.enabled {
            return None; // its mark says so too, for when it is enabled again
        }
        self.take_turn(name, &definition, &schedule, (&mark, mark_revision), (rank, offset), now, out)
    }

    /// Decides what becomes of the fires that are next in turn.
    #[expect(clippy::too_many_arguments, reason = "what `decide` has found out")]
    fn take_turn(
        &mut self,
        name: &JobName,
        definition: &Definition,
        schedule: &Schedule,
        (mark, mark_revision): (&Mark, Revision),
        (rank, offset): (u8, i64),
        clock: Timestamp,
        out: &mut Vec<Action>,
    ) -> Option<Timestamp> {
        // A job with jitter lives so much behind the clock: its schedule's times are compared with this `now`, and nothing else is.
        let (rule, jitter) = (definition.rule, definition.jitter_ms);
        let now = clock.plus_ms(-jitter);
        let on_the_clock = |at: Timestamp| Some(at.plus_ms(jitter));
        // A fire that waits for its start when a pause ends is none of the pause. One that may have run in what the store was before is
        // not taken, whatever its jitter was then.
        let after = mark.plan_time.max(mark.base).max(self.base.plus_ms(-jitter)).max(self.floor());
        let Some(due) = schedule.next_after(after) else {
            self.jobs.get_mut(name)?.due = None;
            self.end_streak(name, out); // no fire will come that goes on with it, or ends it
            return None;
        };
        let (has_room, takes_lock) = (self.has_place(), self.takes_lock(definition));
        let mut state = self.jobs.get_mut(name)?;
        state.due = None;
        if state.nobody && rank == 0 && now >= due && !std::mem::replace(&mut state.nobody_told, true) {
            let wanted = definition.selector.clone();
            out.extend(wanted.map(|wanted| Action::Report(Report::NoWorker(name.clone(), wanted))));
        }
        // Whoever would be the owner lets fires go that nobody may run, once they are too late for a worker that comes.
        let given_up_ms = if state.nobody { rule.waits_ms() + 1 + offset.max(0) } else { offset };
        let act_at = due.plus_ms(given_up_ms);
        if now < act_at {
            return on_the_clock(if state.nobody && rank == 0 && now < due { due } else { act_at });
        }
        state.due = on_the_clock(due);
        if state.must_read(rank, act_at.plus_ms(jitter)) {
            self.wanted.entry(true).or_default().insert(state.slot);
            return None;
        }
        if state.nobody {
            let fires = schedule.fires_between(after, now.plus_ms(-rule.waits_ms() - 1), SKIP_COUNT_MAX)?;
            let selector = definition.selector.as_ref().map(ToString::to_string);
            let skipped = Skipped { selector, ..Skipped::all(fires, SkipReason::NoWorker) };
            self.skip(name, skipped, (mark, mark_revision), None, clock, out);
            return None;
        }
        let run_before = state.run.as_ref().filter(|_| takes_lock).and_then(|id| self.runs.get(id));
        // The lock of a run that has ended, kept from seed workers, goes over to this fire: it need not wait, nor leave them a gap.
        let over_lock = run_before.and_then(|run| run.kept_lock).filter(|_| !mark.unlocked);
        if let Some(run) = run_before.filter(|_| over_lock.is_none()) {
            // Overlap is decided at T, not when the claim would be made (P9).
            if now < due {
                return on_the_clock(due);
            }
            if run.stage == Stage::Ended {
                return None; // the lock is being freed: look again when it is
            }
            let goes_since = run.started_at.map_or(due, |started| started.plus_ms(-jitter));
            // While a job whose fires are all to run catches up, newer fires wait behind: they are no overlaps of a run that is late itself.
            let catches_up = rule.runs_all() && goes_since.ms_since(run.open.plan_time) > rule.late_max_ms();
            let (until, reason) = if definition.replaces() {
                let waits_ms = rule.waits_ms();
                let too_late = due.plus_ms(waits_ms + 1);
                let newer = schedule.next_after(due);
                if newer.is_some_and(|newer| newer <= now) {
                    let older = older_than_newest(schedule, after, now)?;
                    (older.last, SkipReason::Replaced)
                } else if now < too_late {
                    let run_id = run.open.run_id.clone();
                    self.kill_run(clock, &run_id, Kill::Gracefully, replaced_by(due, clock), out);
                    return on_the_clock(newer.map_or(too_late, |newer| newer.min(too_late)));
                } else {
                    (now.plus_ms(-waits_ms - 1), SkipReason::Misfire)
                }
            } else if due < goes_since || catches_up {
                // The run before was late itself, and was not going at this fire's time: the fire waits for its end, within a limit.
                let waits_ms = rule.waits_for_late_run_ms();
                let too_late = due.plus_ms(waits_ms + 1);
                if now < too_late {
                    return on_the_clock(too_late);
                }
                let until = now.plus_ms(-waits_ms - 1);
                (if catches_up { until } else { until.min(goes_since.plus_ms(-1)) }, SkipReason::Misfire)
            } else {
                (now, SkipReason::Overlap)
            };
            let fires = schedule.fires_between(after, until, SKIP_COUNT_MAX)?;
            self.skip(name, Skipped::all(fires, reason), (mark, mark_revision), None, clock, out);
            return None;
        }
        let turn = rule.turn(schedule, after, due, now);
        let older = definition.replaces().then(|| older_than_newest(schedule, after, now)).flatten();
        let let_go = match (turn, older) {
            // While fires wait for runs elsewhere to end they are not missed, however late they are.
            (Turn::LetGo(_), Some(older)) if self.asked.contains_key(name) => {
                Some((older, SkipReason::Replaced))
            }
            (Turn::LetGo(missed), _) => Some((missed, SkipReason::Misfire)),
            (Turn::Run | Turn::CatchUp, older) => older.map(|older| (older, SkipReason::Replaced)),
        };
        if let Some((fires, reason)) = let_go {
            self.skip(name, Skipped::all(fires, reason), (mark, mark_revision), None, clock, out);
            return None;
        }
        let waits_ms = if turn == Turn::CatchUp { rule.start_deadline_ms() } else { rule.late_max_ms() };
        if self.requests.is_claiming(name) {
            // It takes the lock, or not, within moments: until then this fire would find it held and be let go.
            return on_the_clock(if now < due {
                due
            } else {
                now.plus_ms(RETRY_MS).min(due.plus_ms(waits_ms + 1))
            });
        }
        if !has_room && !definition.is_broadcast {
            self.waiting_for_room.wait(Waiter::Fire, name);
            return on_the_clock(due.plus_ms(waits_ms + 1));
        }
        if turn == Turn::CatchUp {
            if !self.pace.has_place(clock) {
                self.set_behind(name, on_the_clock(due));
                return on_the_clock(due.plus_ms(waits_ms + 1));
            }
            self.pace.take_place();
        }
        if definition.is_broadcast {
            return self.claim_broadcast(name, definition, due, (mark, mark_revision), clock, out);
        }
        self.claim_run(name, due, (mark, mark_revision), over_lock, clock, out);
        None
    }

    // --- claims ---------------------------------------------------------------------------------------------------

    fn take_seq(&mut self) -> u64 {
        self.next_seq += 1;
        self.next_seq
    }

    fn claim_run(
        &mut self,
        name: &JobName,
        due: Timestamp,
        (mark, mark_revision): (&Mark, i64),
        over_lock: Option<Revision>,
        now: Timestamp,
        out: &mut Vec<Action>,
    ) {
        let (Some(sid), Some(settings_revision)) = (self.session, self.settings_revision) else { return };
        let seq = self.take_seq();
        let worker = self.worker_id.clone();
        let definition = self.jobs.get(name).and_then(JobState::definition);
        let unlocked = definition.is_some_and(|definition| !self.takes_lock(&definition));
        let Some(mut state) = self.jobs.get_mut(name) else { return };
        let Some(definition) = state.definition() else { return };
        let run_id = RunId::new(sid, seq);
        let open = state.open_run(run_id.clone(), name, due, worker, now);
        let (exclusive, mark_value) = (mark.unlocked && !unlocked, mark.stored_value());
        let mut mark = mark.claimed(due, run_id, sid);
        mark.unlocked = unlocked;
        let claim = Claim {
            kind: ClaimKind::Run,
            sid,
            seq,
            open: OpenRun { unlocked, ..open },
            job_revision: definition.mod_revision,
            settings_revision,
            mark_revision,
            mark_value,
            mark,
            exclusive,
            over_lock,
            replaces: None,
            spread: Vec::new(),
            alone: false,
        };
        state.send(claim, None, out);
    }

    /// Lets fires go: the mark moves past them, and the open run stands for their record. Consecutive skips for one reason go on
    /// under one open run, whose record grows.
    fn skip(
        &mut self,
        name: &JobName,
        skipped: Skipped,
        (mark, mark_revision): (&Mark, i64),
        replaced: Option<&Claim>,
        now: Timestamp,
        out: &mut Vec<Action>,
    ) {
        let (Some(sid), Some(settings_revision)) = (self.session, self.settings_revision) else { return };
        let same =
            |before: &Skipped| (before.reason, &before.selector) == (skipped.reason, &skipped.selector);
        // The mark is where this range has left it: no other worker has claimed a fire since, which would then lie within the range.
        let goes_on = |streak: &Streak| {
            streak.sid == sid
                && mark.run_id.as_ref() == Some(&streak.open.run_id)
                && streak.open.skipped.as_ref().is_some_and(same)
        };
        let goes_on = self.jobs.get(name).and_then(|s| s.streak.as_deref()).is_some_and(goes_on);
        if !goes_on {
            self.end_streak(name, out);
        }
        let seq = self.take_seq();
        let worker = self.worker_id.clone();
        let Some(mut state) = self.jobs.get_mut(name) else { return };
        let Some(definition) = state.definition() else { return };
        let (seq, open) = match &state.streak {
            Some(streak) => {
                let mut open = streak.open.clone();
                if let Some(so_far) = &mut open.skipped {
                    so_far.to = skipped.to;
                    so_far.count += skipped.count;
                    so_far.more |= skipped.more;
                }
                (streak.seq, open)
            }
            None => {
                let open = state.open_run(RunId::new(sid, seq), name, skipped.from, worker, now);
                (seq, OpenRun { skipped: Some(skipped.clone()), on_lost: None, ..open })
            }
        };
        let claim = Claim {
            kind: ClaimKind::Skip,
            sid,
            seq,
            job_revision: definition.mod_revision,
            settings_revision,
            mark_revision,
            mark_value: mark.stored_value(),
            mark: mark.claimed(skipped.to, open.run_id.clone(), sid),
            open,
            exclusive: false,
            over_lock: None,
            replaces: None,
            spread: Vec::new(),
            alone: false,
        };
        state.send(claim, replaced.cloned(), out);
    }

    fn on_claim_answered(
        &mut self,
        now: Timestamp,
        run_id: &RunId,
        plan_time: Timestamp,
        name: &JobName,
        answer: ClaimAnswer,
        out: &mut Vec<Action>,
    ) {
        let Some(mut state) = self.jobs.get_mut(name) else { return };
        let Pending::Claiming { claim, earlier, ambiguous, resend_at, sendings } = &mut state.pending else {
            return;
        };
        if claim.open.run_id != *run_id || claim.mark.plan_time != plan_time {
            return; // an answer to a claim of a session that is over
        }
        let (claim, earlier, was_ambiguous) = (claim.clone(), earlier.clone(), *ambiguous);
        match answer {
            ClaimAnswer::Won(revision) => self.on_claim_won(now, *claim, revision, None, out),
            ClaimAnswer::Unknown | ClaimAnswer::NotApplied => {
                *ambiguous |= answer == ClaimAnswer::Unknown;
                *sendings += 1;
                let pause = (RETRY_MS << (*sendings - 1).min(10)).min(RESEND_MAX_MS);
                *resend_at = Some(now.plus_ms(pause));
                self.set_timer(name, Some(now.plus_ms(pause)));
            }
            ClaimAnswer::Refused(refusal) if !refusal.session_alive => {
                // Also when the mark shows that it has committed: with its session it was closed as lost (P10). SessionLost follows.
                out.push(Action::GiveUpSession(claim.sid));
            }
            ClaimAnswer::Refused(refusal) => {
                // A request of ours may have committed although its answer said otherwise, or never came: its open run or the mark tells (P2).
                let committed = [Some(claim.clone()), earlier]
                    .into_iter()
                    .flatten()
                    .find_map(|ours| refusal.shows(&ours).map(|revision| (ours, revision)));
                match committed {
                    Some((ours, revision)) => self.on_claim_won(now, *ours, revision, refusal.mark, out),
                    None => self.on_claim_refused(now, *claim, was_ambiguous, refusal, out),
                }
            }
        }
        self.note_claiming(name);
        self.tidy(name, out);
    }

    fn on_claim_won(
        &mut self,
        now: Timestamp,
        claim: Claim,
        revision: i64,
        seen: Option<MarkSeen>,
        out: &mut Vec<Action>,
    ) {
        let name = claim.open.job.clone();
        if let Some(mut state) = self.jobs.get_mut(&name) {
            state.pending = Pending::None;
            state.set_mark(MarkView::Known(claim.mark.clone(), revision));
            state.set_mark_read_at(now);
            if seen.is_some() {
                state.see_mark(seen, now); // others may have moved it on
            }
        }
        self.claiming.remove(&name);
        match claim.kind {
            ClaimKind::SeedRan => {
                // A seed worker's run may take long: said once, not for each fire that passes meanwhile.
                if let Some(mut state) = self.jobs.get_mut(&name)
                    && !std::mem::replace(&mut state.left_to_seed, true)
                {
                    out.push(Action::Report(Report::LeftToSeed(name.clone(), claim.open.plan_time)));
                }
            }
            ClaimKind::Skip => self.on_skip_won(now, &claim, out),
            // Nothing of it is this worker's but the request that it may have put for itself, which the watch brings.
            ClaimKind::Broadcast => self.end_streak(&name, out),
            ClaimKind::Run => {
                self.end_streak(&name, out);
                // A job that was edited or deleted since its claim is looked at again before the start (P15).
                let jitter = self.jobs.get(&name).map_or(0, JobState::jitter_ms);
                let start_at = claim.open.plan_time.plus_ms(jitter);
                if let Some(mut state) = self.jobs.get_mut(&name) {
                    state.left_to_seed = false;
                }
                self.asked.remove(&name);
                let key = (claim.sid, claim.seq);
                let run = Run::claimed(claim.open, key, claim.job_revision, revision, start_at);
                self.take_run(now, run, out);
            }
        }
        self.look_at(&name, now, out);
    }

    fn on_claim_refused(
        &mut self,
        now: Timestamp,
        claim: Claim,
        ambiguous: bool,
        refusal: Refusal,
        out: &mut Vec<Action>,
    ) {
        let name = claim.open.job.clone();
        let Some(mut state) = self.jobs.get_mut(&name) else { return };
        let mark_revision = refusal.mark.as_ref().map_or(0, |seen| seen.revision);
        if let Some(why) = gone_back(&claim, refusal.mark.as_ref(), refusal.job_revision) {
            return out.push(Action::GiveUpStore(why));
        }
        if mark_revision != claim.mark_revision {
            // Another worker, or a save, was first; no sending of this claim can commit any more.
            state.pending = Pending::None;
            state.see_mark(refusal.mark, now);
            return self.look_at(&name, now, out);
        }
        if refusal.job_revision != claim.job_revision {
            // Edited or deleted: the watch brings it; no sending of this claim can commit any more.
            state.pending = Pending::None;
            state.stale_until = Some(now.plus_ms(STALE_RETRY_MS));
            return self.look_at(&name, now, out);
        }
        if refusal.settings_revision != claim.settings_revision {
            // The fleet's settings or calendars are others: the watch brings them, and the fire may be none by these. No sending of this claim can
            // commit any more, unless other hands delete settings again that were not there when it was decided: then it names no calendar,
            // and its fire is one.
            state.pending = Pending::None;
            state.stale_until = Some(now.plus_ms(STALE_RETRY_MS));
            return self.look_at(&name, now, out);
        }
        // What is left can change back (pause, lock): a delayed sending could still commit, so T is either claimed by the same request
        // later, or given up by moving the mark past it (P2).
        if refusal.paused {
            if ambiguous {
                return self.give_up(now, &claim, SkipReason::Misfire, out);
            }
            state.pending = Pending::None;
            return self.set_timer(&name, Some(now.plus_ms(RETRY_MS)));
        }
        if claim.over_lock.is_some() {
            // That lock is freed already, or went with its lease, and never comes back: no sending of this claim can commit any more.
            state.pending = Pending::None;
            if let Some(run) = state.run.as_ref().and_then(|id| self.runs.get_mut(id)) {
                run.kept_lock = None;
            }
            return self.look_at(&name, now, out);
        }
        let due = claim.open.plan_time.plus_ms(state.jitter_ms());
        let locked_retry_ms = state.waits_for_lock(due, now);
        let replaces = state.terms().is_some_and(Terms::replaces);
        let locked_reason =
            if state.was_missed(due, now) { SkipReason::Misfire } else { SkipReason::Overlap };
        match refusal.lock {
            _ if now < due => {
                // Held by the run before; whether it overlaps is decided at T (P9). What replaces it is decided anew then: a newer fire may
                // have come by the time it is over.
                if replaces && !ambiguous {
                    state.pending = Pending::None;
                } else if let Pending::Claiming { ambiguous, resend_at, .. } = &mut state.pending {
                    *ambiguous = true; // the identical request will be sent again
                    *resend_at = Some(due);
                }
                self.set_timer(&name, Some(due));
            }
            LockSeen::HeldBySeed => self.leave_to_seed(claim, out),
            LockSeen::Held if replaces => {
                self.replace_elsewhere(now, claim, ambiguous, refusal.holders, out);
            }
            LockSeen::Held if let Some(pause) = locked_retry_ms => {
                // Nothing of it can commit any more, unless a sending is still under way: then the identical request tells (P2).
                match &mut state.pending {
                    Pending::Claiming { resend_at, .. } if ambiguous => *resend_at = Some(now.plus_ms(pause)),
                    pending => *pending = Pending::None,
                }
                self.set_timer(&name, Some(now.plus_ms(pause)));
            }
            LockSeen::Held => self.give_up(now, &claim, locked_reason, out),
            LockSeen::Free => {
                // Freed between the compare and the read of one transaction: impossible, both see one state. Ask again.
                if let Pending::Claiming { resend_at, .. } = &mut state.pending {
                    *resend_at = Some(now.plus_ms(RETRY_MS));
                }
                self.set_timer(&name, Some(now.plus_ms(RETRY_MS)));
            }
        }
    }

    pub(super) fn give_up(
        &mut self,
        now: Timestamp,
        claim: &Claim,
        reason: SkipReason,
        out: &mut Vec<Action>,
    ) {
        let name = claim.open.job.clone();
        let due = claim.open.plan_time;
        let Some(mut state) = self.jobs.get_mut(&name) else { return };
        let is_of_claim = state.mod_revision() == Some(claim.job_revision);
        if !is_of_claim || self.settings_revision != Some(claim.settings_revision) {
            // Edited or deleted since, or to be read by other settings: no sending can commit any more, but an earlier one may have before that: the identical request tells. A
            // skip under the new definition would pass over fires that only that one has.
            if let Pending::Claiming { ambiguous, resend_at, .. } = &mut state.pending {
                (*ambiguous, *resend_at) = (true, Some(now.plus_ms(RETRY_MS)));
            }
            return self.set_timer(&name, Some(now.plus_ms(RETRY_MS)));
        }
        let MarkView::Known(mark, revision) = state.mark() else {
            state.pending = Pending::None;
            return self.look_at(&name, now, out);
        };
        self.skip(&name, Skipped::one(due, reason), (&mark, revision), Some(claim), now, out);
    }

    /// A seed worker holds the lock at T: the fire counts as done by it (P17), and its record is the seed's.
    fn leave_to_seed(&mut self, claim: Claim, out: &mut Vec<Action>) {
        let seq = self.take_seq();
        let run_id = RunId::new(claim.sid, seq);
        let name = claim.open.job.clone();
        let mut left = claim.clone();
        left.kind = ClaimKind::SeedRan;
        left.seq = seq;
        left.mark.run_id = Some(run_id.clone());
        left.mark.unlocked = claim.exclusive; // nothing was compared
        left.open.run_id = run_id;
        if let Some(mut state) = self.jobs.get_mut(&name) {
            state.send(left, Some(claim), out);
        }
    }
}
