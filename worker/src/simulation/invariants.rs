//! What must hold: seen from outside, by what is written into the stores and what is started, after every step.

use std::collections::{BTreeMap, BTreeSet};

use common::clock::Timestamp;
use common::domain::job::{Job, JobName};
use common::domain::mark::Mark;
use common::domain::options::{JobOptions, Misfire};
use common::domain::record::{Record, RecordId, Status};
use common::domain::request::Request;
use common::domain::retry::Retry;
use common::domain::run::{LockHolder, OpenRun, OpenRuns, RunId, Trigger};
use common::domain::worker::Sid;
use common::keys;
use common::kv::{Change, Pair, Revision};
use common::schedule::{Schedule, ScheduleSettings};

use super::broadcast::Broadcasts;
use super::log::Stored;
use super::settings;
use super::store::Store;
use super::world::{OFFSET_MS_MAX, START_MS, WELL_MS};
use crate::claims;
use crate::scheduler::LEAD_MAX_MS;
use crate::waiting::Entry;

/// Runs that are asked for wait behind fires, some of five seconds each, counted from the one of the same job before them.
const REQUEST_WAITS_MAX_MS: i64 = 20_000;

/// A command that is going.
pub(super) struct Process {
    pub(super) worker: usize,
    pub(super) job: JobName,
    /// It overlaps no other run, however its worker fares.
    pub(super) fence: bool,
    /// Which claim it was, in the order of claims.
    claim: usize,
    /// It was claimed without the lock.
    unlocked: bool,
}

/// Who writes.
#[derive(Clone, Copy)]
pub(super) struct Writer {
    pub(super) worker: usize,
    /// It knows that the store went back, if it did.
    pub(super) noticed: bool,
}

/// A process of a worker: which worker, and which start of it.
pub(super) type Incarnation = (usize, u32);

/// What was seen so far.
#[derive(Default)]
pub(super) struct Invariants {
    pub(super) violations: Vec<String>,
    pub(super) now: i64,
    /// Committed claims with a record to come: how many fires each stands for.
    claimed: BTreeMap<RunId, u64>,
    /// Claims of the store as it was before it went back, with the process that started their command, if any.
    pub(super) claimed_before: BTreeMap<RunId, Option<Incarnation>>,
    /// The last fire ever claimed of each job, whatever became of its mark.
    claimed_up_to: BTreeMap<JobName, Timestamp>,
    /// Claims that workers made of a store that had gone back before they noticed. The fires of some had run before: their records are kept
    /// aside as conflicts (ARCHITECTURE, P16).
    unnoticed: BTreeSet<RunId>,
    started: BTreeMap<RecordId, RunId>,
    /// Runs that were asked for, by somebody or as retries.
    asked: BTreeSet<RunId>,
    /// Those that were asked for in the store as it was before it went back.
    asked_before: BTreeSet<RunId>,
    /// Of the requests, those that became runs.
    taken: BTreeMap<Line, Vec<Taken>>,
    started_by: BTreeMap<RunId, Incarnation>,
    /// Runs that are to be tried again if they are lost, by the job as it was when they were claimed.
    tried_if_lost: BTreeSet<RunId>,
    /// Runs that were cancelled before anybody had claimed them: none of them starts.
    pub(super) cancelled: BTreeSet<RunId>,
    /// The order in which runs were claimed.
    claims: BTreeMap<RunId, usize>,
    /// Under which session a run is open, or was at last.
    session_of: BTreeMap<RunId, Sid>,
    /// Whose session it is.
    pub(super) worker_of: BTreeMap<Sid, usize>,
    /// Sessions that were ended before their time: their workers cannot have known.
    pub(super) ended_early: BTreeSet<Sid>,
    pub(super) processes: BTreeMap<RunId, Process>,
    /// Commands that were claimed before the store went back and have no lock in it: they may overlap until their worker has taken them over.
    without_lock: BTreeSet<RunId>,
    /// Jobs of which a seed worker's command is going, under its lock.
    pub(super) seed_runs: BTreeSet<JobName>,
    pub(super) had_seed: bool,
    /// Up to when the fires of a job are nobody's, since it was enabled then.
    enabled_at: BTreeMap<JobName, Timestamp>,
    /// Runs whose records have been on a worker's disk, which no fault takes away.
    on_disk: BTreeSet<RunId>,
    schedules: BTreeMap<String, Schedule>,
    /// Runs whose commands have succeeded, whatever became of them.
    pub(super) succeeded: BTreeSet<RunId>,
    /// Those of them whose open key says that they are over.
    pub(super) closed: BTreeSet<RunId>,
    /// Since when a job waits for others, as all workers must know a while later.
    pub(super) waits_since: BTreeMap<JobName, i64>,
    pub(super) broadcasts: Broadcasts,
}

/// Runs that were asked for and wait for each other: a job's, or a job's for one worker.
type Line = (JobName, Option<String>);

/// A run that was asked for, and was claimed.
struct Taken {
    ready_at: Timestamp,
    /// In the simulation's time.
    claimed_at: i64,
}

fn line(request: &Request) -> Line {
    (request.job.clone(), request.target.as_ref().map(|target| target.worker.clone()))
}

fn ready_at(request: &Request) -> Timestamp {
    request.not_before.unwrap_or(request.at)
}

impl Invariants {
    pub(super) fn violated(&mut self, what: impl Into<String>) {
        self.violations.push(format!("at {}: {}", self.now, what.into()));
    }

    pub(super) fn starts(&self) -> usize {
        self.started.len()
    }

    fn schedule(&mut self, expression: &str) -> Schedule {
        if let Some(known) = self.schedules.get(expression) {
            return known.clone();
        }
        let schedule = Schedule::parse(expression, &ScheduleSettings::default()).unwrap();
        self.schedules.insert(expression.to_owned(), schedule.clone());
        schedule
    }

    /// The job's schedule as it is stored now, and whether it is enabled.
    fn schedule_of(&mut self, store: &Store, job: &JobName) -> Option<(Schedule, bool)> {
        let Job { cron_expr, options, .. } =
            Job::from_stored(job.as_str(), &store.get(keys::job(job))?.value).unwrap();
        Some((self.schedule(&cron_expr).within(options.window()), options.is_enabled()))
    }

    /// As a seed worker has it: it knows no options.
    pub(super) fn seeds_schedule_of(&mut self, store: &Store, job: &JobName) -> Option<Schedule> {
        let definition = Job::from_stored(job.as_str(), &store.get(keys::job(job))?.value).unwrap();
        Some(self.schedule(&definition.cron_expr))
    }

    // --- writes -------------------------------------------------------------------------------------------------------

    /// Looks at everything that was written from revision `from` on, by a worker or by other hands. `floors`: up to which fire a worker that
    /// has noticed a restored store takes nothing.
    pub(super) fn written(
        &mut self,
        store: &Store,
        from: Revision,
        by: Option<Writer>,
        floors: &[Timestamp],
    ) {
        let noticed = by.is_none_or(|by| by.noticed);
        let by = by.map(|by| by.worker);
        let changes = store.changes_since(from).to_vec();
        for change in &changes {
            let key = &change.pair.key;
            if let (Some(sid), Some(worker), false) = (keys::parse_session(key), by, change.is_delete()) {
                self.worker_of.insert(sid, worker);
            }
            self.worker_written(change);
            if let Some(job) = key.strip_prefix(keys::JOBS).and_then(|name| JobName::parse(name).ok()) {
                self.job_written(store, &job, change);
                self.dependent_written(&job, change);
            }
            if let Some(sid) = keys::parse_runs(key) {
                // Who has not noticed may be about to close what came back.
                self.open_run_written(store, sid, change, by.filter(|_| noticed));
                if by.is_some() && !change.is_delete() {
                    self.check_asked_for(store, change, &changes);
                }
                if by.is_some() {
                    self.check_success(store, sid, change, &changes, noticed);
                }
            }
        }
        if by.is_some() && noticed {
            self.check_told(store, &changes);
        }
        for change in &changes {
            if let (Some((job, run_id)), false) = (keys::parse_shared(&change.pair.key), change.is_delete()) {
                let mark = store.get(keys::fired(&job)).map(|pair| Mark::decode(&pair.value).unwrap());
                if mark.is_none_or(|mark| !mark.unlocked) {
                    self.violated(format!(
                        "{run_id} goes without the lock, and the mark of {job} does not say so"
                    ));
                }
            }
        }
        for change in &changes {
            if let Some(run_id) = keys::parse_request(&change.pair.key) {
                self.request_written(store, run_id, change, &changes, noticed);
            }
        }
        for change in &changes {
            if let (Some(job), false) = (keys::parse_fired(&change.pair.key), change.is_delete()) {
                self.mark_written(store, &job, change, &changes, noticed, floors);
            }
        }
    }

    /// When a job is enabled, the mark says so: it comes with it, or the workers have put one while the job was disabled. (By other hands, too
    /// fast or while no worker was there, nobody can know.)
    fn job_written(&mut self, store: &Store, name: &JobName, change: &Change) {
        let read = |value: &[u8]| Job::from_stored(name.as_str(), value).unwrap();
        let before = change.previous.as_ref().map(|pair| read(&pair.value));
        let Some(before) = before.filter(|before| !before.options.is_enabled()) else { return };
        if change.is_delete() || !read(&change.pair.value).options.is_enabled() {
            return;
        }
        let Some(pair) = store.get(keys::fired(name)) else { return };
        let now = Timestamp::from_ms(START_MS + self.now);
        if pair.mod_revision == change.pair.mod_revision {
            self.enabled_at.insert(name.clone(), now);
        } else if Mark::decode(&pair.value).unwrap().hash == before.schedule_hash(&settings::fleet(store)) {
            self.enabled_at.insert(name.clone(), now.plus_ms(-OFFSET_MS_MAX));
        }
    }

    fn open_run_written(&mut self, store: &Store, sid: Sid, change: &Change, by: Option<usize>) {
        let owner = self.worker_of.get(&sid).copied();
        if change.is_delete() {
            if by.is_some() && by != owner && lives(store, sid) {
                self.violated(format!("{} was closed by another while its session lives", change.pair.key));
            }
            return;
        }
        let runs = OpenRuns::decode(&change.pair.value).unwrap().runs;
        let before = change.previous.as_ref().map(|pair| OpenRuns::decode(&pair.value).unwrap().runs);
        if before.is_some_and(|before| before[0].run_id != runs[0].run_id) {
            self.violated(format!("another run is still open under the key {}", change.pair.key));
        }
        for open in runs {
            if !self.claims.contains_key(&open.run_id) {
                self.claims.insert(open.run_id.clone(), self.claims.len());
                if is_tried_if_lost(store, &open) {
                    self.tried_if_lost.insert(open.run_id.clone());
                }
            }
            // A rescue goes on without the lock when it is another's.
            if open.unlocked && self.session_of.get(&open.run_id).is_some_and(|before| *before != sid) {
                // Nobody saw it before it came into this session, as nobody sees a worker that is cut off.
                self.without_lock.insert(open.run_id.clone());
            }
            let lock = store.get(keys::lock(&open.job)).map(|pair| LockHolder::decode(&pair.value).unwrap());
            if lock.flatten().is_some_and(|holder| holder.run_id == open.run_id) {
                self.without_lock.remove(&open.run_id);
            }
            self.session_of.insert(open.run_id, sid);
        }
    }

    /// A run that was asked for becomes open by the claim that takes its request away, and then is moved or written again.
    fn check_asked_for(&mut self, store: &Store, change: &Change, together: &[Change]) {
        let first = |pair: &Pair| OpenRuns::decode(&pair.value).unwrap().runs.remove(0);
        let open = first(&change.pair);
        if open.trigger == Trigger::Schedule || self.asked_before.contains(&open.run_id) {
            return;
        }
        let of_this =
            |pair: &Pair| keys::parse_runs(&pair.key).is_some() && first(pair).run_id == open.run_id;
        let was_open = together.iter().filter_map(|change| change.previous.as_ref()).any(of_this);
        let request = keys::request(&open.run_id);
        let taken = |change: &Change| change.is_delete() && change.pair.key == request.as_str().into();
        if store.get(request.as_str()).is_some() {
            self.violated(format!("{} is open, and is still asked for", open.run_id));
        } else if !was_open && !together.iter().any(taken) {
            self.violated(format!("{} is claimed by another as well", open.run_id));
        }
    }

    /// A request is put once, and goes with its claim.
    fn request_written(
        &mut self,
        store: &Store,
        run_id: RunId,
        change: &Change,
        together: &[Change],
        noticed: bool,
    ) {
        let cancelled = change.previous.is_some()
            && Request::decode(&change.pair.value).is_ok_and(|new| new.killed.is_some());
        if (!change.is_delete() && cancelled) || self.is_handed_out(&run_id, change, together) {
            return;
        }
        if !change.is_delete() {
            if !self.asked.insert(run_id.clone()) && !self.asked_before.contains(&run_id) {
                self.violated(format!("{run_id} is asked for again"));
            }
            return;
        }
        let claim = together.iter().find_map(|change| {
            let sid = keys::parse_runs(&change.pair.key).filter(|_| !change.is_delete())?;
            let runs = OpenRuns::decode(&change.pair.value).unwrap().runs;
            Some((sid, runs.into_iter().find(|open| open.run_id == run_id)?))
        });
        let Some((sid, open)) = claim else {
            return self.violated(format!("{run_id} is not asked for any more, and nobody has claimed it"));
        };
        if !lives(store, sid) {
            self.violated(format!("{run_id} claimed under a session that is over"));
        }
        if !noticed {
            self.unnoticed.insert(run_id.clone());
        } else if self.claimed.insert(run_id.clone(), 1).is_some() {
            self.violated(format!("{run_id} claimed again"));
        }
        let request = change.previous.as_ref().and_then(|pair| Request::decode(&pair.value).ok());
        if let Some(request) = request {
            let taken = Taken { ready_at: ready_at(&request), claimed_at: self.now };
            self.taken.entry(line(&request)).or_default().push(taken);
        }
        self.check_target(store, change, &open, sid);
        match &open.skipped {
            Some(_) => {}
            None if store.get(keys::job(&open.job)).is_none() => {
                self.violated(format!("{run_id} claimed without a job"));
            }
            None => self.check_run_claimed(store, &open, sid, together),
        }
    }

    /// A run whose record is stored is not tried again as one that was lost, nor one whose job does not want that.
    pub(super) fn check_retries(&mut self, store: &Store, from: Revision, log: &Stored) {
        for change in store.changes_since(from) {
            if change.is_delete() || keys::parse_request(&change.pair.key).is_none() {
                continue;
            }
            let request = Request::decode(&change.pair.value).unwrap();
            let is_new = request.killed.is_none() && request.by == "survivor";
            let Some(tried) = request.retries.filter(|_| is_new) else { continue };
            let known = |record: &&Record| {
                record.claim.as_ref() == Some(&tried) && record.status != Some(Status::Lost)
            };
            if log.records.values().any(|record| known(&record)) {
                self.violated(format!("{tried} is tried again as if it were lost, and has its record"));
            }
            if !self.tried_if_lost.contains(&tried) {
                self.violated(format!(
                    "{tried} is tried again after its loss, and its job does not want that"
                ));
            }
        }
    }

    /// What was asked for is claimed, unless it waits for its time or for its turn.
    pub(super) fn check_requests_are_taken(&mut self, store: &Store, now: Timestamp) {
        // A seed worker runs whatever it can lock: beside one, nobody knows when the lock is free.
        if store.prefix(keys::WORKERS).any(|pair| pair.value.is_empty()) {
            return;
        }
        let waiting: Vec<Request> =
            store.prefix(keys::REQUESTS).map(|pair| Request::decode(&pair.value).unwrap()).collect();
        for request in waiting {
            // A lock that came back with a backup, for one.
            if store.get(keys::lock(&request.job)).is_some_and(|pair| pair.value.is_empty()) {
                continue;
            }
            let late = now.ms_since(ready_at(&request));
            // By a clock that was far off.
            if request.trigger == Trigger::After && late > OFFSET_MS_MAX + WELL_MS {
                continue;
            }
            // Not from one that came later and overtook it.
            let in_line = self.taken.get(&line(&request)).into_iter().flatten();
            let before = in_line.filter(|taken| taken.ready_at <= ready_at(&request));
            let turn = before.map(|taken| taken.claimed_at).max();
            let late = turn.map_or(late, |turn| late.min(now.ms() - START_MS - turn));
            if late > REQUEST_WAITS_MAX_MS {
                self.violated(format!("a run of {} is asked for since {late} ms", request.job));
            }
        }
    }

    fn mark_written(
        &mut self,
        store: &Store,
        job: &JobName,
        change: &Change,
        together: &[Change],
        noticed: bool,
        floors: &[Timestamp],
    ) {
        let mark = Mark::decode(&change.pair.value).unwrap();
        let before = change.previous.as_ref().map(|pair| Mark::decode(&pair.value).unwrap());
        let to = mark.plan_time;
        let marked = before.as_ref().map_or(Timestamp::ZERO, |mark| mark.plan_time);
        if to < marked {
            return self.violated(format!("the mark of {job} went back to {to}"));
        }
        if to == marked || to == Timestamp::ZERO {
            return; // a base was put
        }
        let Some(before) = before else {
            return self.violated(format!("{job} at {to} claimed without a mark"));
        };
        if self.claimed_up_to.get(job).is_some_and(|up_to| to <= *up_to) {
            self.violated(format!("{job} at {to} claimed again"));
        }
        self.claimed_up_to.insert(job.clone(), to);
        if to.ms_since(Timestamp::from_ms(START_MS + self.now)) > LEAD_MAX_MS + OFFSET_MS_MAX {
            self.violated(format!("{job} at {to} was claimed long before its time"));
        }
        let (Some(run_id), Some(sid)) = (mark.run_id.clone(), mark.sid) else {
            return self.violated(format!("{job} at {to} claimed by nobody"));
        };
        if !lives(store, sid) {
            return self.violated(format!("{job} at {to} claimed under a session that is over"));
        }
        let Some((schedule, enabled)) = self.schedule_of(store, job) else {
            return self.violated(format!("{job} at {to} claimed without a job"));
        };
        if !enabled {
            self.violated(format!("{job} at {to} was claimed while disabled"));
        }
        if self.enabled_at.get(job).is_some_and(|enabled_at| to <= *enabled_at) {
            self.violated(format!("{job} at {to} was claimed, and is of before it was enabled"));
        }
        if schedule.next_after(to.plus_ms(-1)) != Some(to) {
            return self.violated(format!("{to} was claimed and is no fire of {job}"));
        }
        // Whoever knows the job and the settings as they are claims nothing before the mark says so.
        let stored =
            store.get(keys::job(job)).map(|pair| Job::from_stored(job.as_str(), &pair.value).unwrap());
        if noticed && stored.is_some_and(|stored| stored.schedule_hash(&settings::fleet(store)) != mark.hash)
        {
            self.violated(format!("{job} at {to} was claimed by settings that are over"));
        }
        let of_this_claim = |open: &OpenRun| open.run_id == run_id;
        let open = together.iter().find_map(|change| {
            keys::parse_runs(&change.pair.key).filter(|_| !change.is_delete())?;
            OpenRuns::decode(&change.pair.value).unwrap().runs.into_iter().find(of_this_claim)
        });
        let is_spread = open.is_none() && self.is_spread(store, job, (&run_id, to), together);
        let count = match &open {
            None if is_spread => 1,
            None if self.had_seed => 1, // left to the seed worker
            // An adoption by what it knows of the store as it was; it notices by the answer.
            None if !noticed => return,
            None => return self.violated(format!("{job} at {to} claimed without an open run")),
            Some(OpenRun { skipped: Some(skipped), .. }) => skipped.count,
            Some(open) => {
                if open.plan_time != to {
                    self.violated(format!("the open run of {job} at {to} is of {}", open.plan_time));
                }
                self.check_run_claimed(store, open, sid, together);
                1
            }
        };
        let so_far = self.claimed.get(&run_id).copied().unwrap_or(0);
        let base = claims::parse_base(store.get(keys::BASE));
        let base = base.at.max(base.restored.unwrap_or_default());
        let floor = self.worker_of.get(&sid).map_or(Timestamp::ZERO, |worker| floors[*worker]);
        let after = marked.max(before.base).max(base).max(floor);
        let due = schedule.fires_between(after, to, 10_000).map_or(0, |fires| fires.count);
        // Who has not noticed that the store went back takes what it knew of a base for granted.
        // More are lawful: a pause that is lifted moves the base without touching marks, and a claim decided before that may take older
        // fires.
        if noticed && count - so_far < due {
            self.violated(format!("{job} up to {to}: {} claimed where {due} were due", count - so_far));
        }
        if !noticed {
            self.unnoticed.insert(run_id);
        } else if open.is_some() {
            self.claimed.insert(run_id, count);
        }
    }

    fn check_run_claimed(&mut self, store: &Store, open: &OpenRun, sid: Sid, together: &[Change]) {
        let job = &open.job;
        if store.get(keys::PAUSED).is_some() {
            self.violated(format!("a run of {job} was claimed while paused"));
        }
        let put = |key: String| {
            together.iter().find(|change| change.pair.key.as_bytes() == key.as_bytes() && !change.is_delete())
        };
        let (lock, shared) = (put(keys::lock(job)), put(keys::shared(job, &open.run_id)));
        if open.unlocked {
            if lock.is_some() {
                self.violated(format!("a run of {job} that goes without the lock takes it"));
            }
            if shared.is_none() {
                self.violated(format!("a run of {job} was claimed without its lock or a key in its place"));
            }
            return;
        }
        let Some(lock) = lock else {
            return self.violated(format!("a run of {job} was claimed without its lock"));
        };
        let beside = store
            .prefix(&keys::shared_of(job))
            .filter_map(|pair| keys::parse_shared(&pair.key))
            // What came back with a backup, or was rescued from the store before, may be there without the mark's knowing.
            .any(|(_, run_id)| self.claimed.contains_key(&run_id));
        if beside {
            self.violated(format!("a claim takes the lock of {job} beside a run without it"));
        }
        let held_by = lock.previous.as_ref().map(|pair| LockHolder::decode(&pair.value).unwrap());
        if held_by.is_some_and(|holder| holder.is_none_or(|holder| holder.sid != sid)) {
            self.violated(format!("a claim of {job} takes the lock of another"));
        }
    }

    // --- commands -----------------------------------------------------------------------------------------------------

    /// A command begins. `certain`: its worker cannot but know how its session and the store are.
    pub(super) fn begins(
        &mut self,
        store: &Store,
        by: Incarnation,
        open: &OpenRun,
        fence: bool,
        certain: bool,
    ) {
        let (job, at, run_id) = (&open.job, open.plan_time, &open.run_id);
        // Who heard nothing while the store went back, and has not noticed, may start what it has claimed since: once, all the same.
        let known = self.claimed.contains_key(run_id)
            || self.claimed_before.contains_key(run_id)
            || self.unnoticed.contains(run_id);
        let Some(sid) = self.session_of.get(run_id).copied().filter(|_| known) else {
            return self.violated(format!("{run_id} started without a claim"));
        };
        if self.cancelled.contains(run_id) {
            self.violated(format!("{run_id} started, and was cancelled"));
        }
        if self.started.insert(open.record_id(), run_id.clone()).is_some() {
            self.violated(format!("{job} at {at} started twice"));
        }
        if certain && !self.ended_early.contains(&sid) && !lives(store, sid) {
            self.violated(format!("{job} at {at} started under a session that is over"));
        }
        let mut holds = lives(store, sid);
        if self.claimed_before.contains_key(run_id) {
            self.without_lock.insert(run_id.clone());
            holds = false;
        }
        let claim = self.claims.get(run_id).copied().unwrap_or_default();
        if holds && self.overlaps(store, open, claim) {
            self.violated(format!("{job} at {at} overlaps another run"));
        }
        // A lease that was ended before its time could not be known of.
        let as_promised = |run_id: &RunId| {
            !self.without_lock.contains(run_id)
                && self.session_of.get(run_id).is_some_and(|sid| !self.ended_early.contains(sid))
        };
        let may_not =
            |process: &Process| process.job == *job && process.fence && may_not_overlap(process, open, claim);
        let mut others = self.processes.iter().filter(|(_, process)| may_not(process));
        if holds && others.any(|(run_id, _)| as_promised(run_id)) {
            self.violated(format!("{job} at {at} overlaps a run with a fence"));
        }
        if holds && !open.unlocked && self.seed_runs.contains(job) {
            self.violated(format!("{job} at {at} overlaps a seed worker's run"));
        }
        self.check_alone(by, open);
        self.started_by.insert(run_id.clone(), by);
        let (worker, job, unlocked) = (by.0, job.clone(), open.unlocked);
        self.processes.insert(run_id.clone(), Process { worker, job, fence, claim, unlocked });
    }

    /// Another run of the job is going that this one may not overlap.
    fn overlaps(&self, store: &Store, open: &OpenRun, claim: usize) -> bool {
        self.runs_under_live_session(store, &open.job, |other| may_not_overlap(other, open, claim))
    }

    /// A command of the job is going with the lock, whose worker has not lost its session.
    pub(super) fn holds_lock(&self, store: &Store, job: &JobName) -> bool {
        self.runs_under_live_session(store, job, |process| !process.unlocked)
    }

    fn runs_under_live_session(
        &self,
        store: &Store,
        job: &JobName,
        of_these: impl Fn(&Process) -> bool,
    ) -> bool {
        self.processes.iter().any(|(run_id, process)| {
            process.job == *job
                && of_these(process)
                && !self.without_lock.contains(run_id)
                && self.session_of.get(run_id).is_some_and(|sid| lives(store, *sid))
        })
    }

    // --- records ------------------------------------------------------------------------------------------------------

    /// These wait on a worker's disk. A worker may itself know no better than `lost`.
    pub(super) fn on_disk(&mut self, entries: &[Entry]) {
        let known = entries.iter().filter(|entry| entry.record.status != Some(Status::Lost));
        self.on_disk.extend(known.filter_map(|entry| entry.record.claim.clone()));
    }

    // --- the store goes back ------------------------------------------------------------------------------------------

    pub(super) fn store_went_back(&mut self) {
        self.claimed_up_to.clear();
        self.enabled_at.clear();
        self.waits_since.values_mut().for_each(|since| *since = self.now);
        self.cancelled.clear();
        self.broadcasts.store_went_back();
        self.asked_before.extend(std::mem::take(&mut self.asked));
        self.without_lock.extend(self.processes.keys().cloned());
        for run_id in std::mem::take(&mut self.claimed).into_keys() {
            let started = self.started_by.get(&run_id).copied();
            self.claimed_before.insert(run_id, started);
        }
    }

    // --- the end ------------------------------------------------------------------------------------------------------

    /// Every fire but the very last ones is claimed or let go.
    pub(super) fn check_nothing_is_missed(&mut self, store: &Store, jobs: &[JobName], now: Timestamp) {
        for job in jobs {
            let schedule = self.schedule_of(store, job);
            if schedule.as_ref().is_some_and(|(_, enabled)| !enabled) {
                continue;
            }
            let options = store
                .get(keys::job(job))
                .map(|pair| Job::from_stored(job.as_str(), &pair.value).unwrap().options);
            let mark = store.get(keys::fired(job)).map(|pair| Mark::decode(&pair.value).unwrap());
            let (Some((schedule, _)), Some(mark)) = (schedule, mark) else {
                self.violated(format!("{job} has no mark"));
                continue;
            };
            let base = claims::parse_base(store.get(keys::BASE));
            let base = base.at.max(base.restored.unwrap_or_default());
            let after = mark.plan_time.max(mark.base).max(base);
            let Some(due) = schedule.next_after(after) else { continue };
            let late = now.ms_since(due);
            // A run that goes, a worker that stepped in, the jitter; where every fire is to run, those that wait for their turn.
            let options = options.unwrap_or_default();
            let waits = if options.misfire() == Misfire::All { options.start_deadline_ms() } else { 0 };
            if late > 9_000 + waits {
                self.violated(format!("{job} stopped firing: {due} is due since {late} ms"));
            }
        }
    }

    /// A worker has drained and is about to end its session: of all that it put, nothing is left but what `unsettled` names.
    pub(super) fn leaves(&mut self, store: &Store, sid: Sid, unsettled: &[(Sid, u64)]) {
        let unsettled: Vec<String> = unsettled.iter().map(|(sid, seq)| keys::runs(*sid, *seq)).collect();
        let open = keys::runs_of(sid);
        let runs = store.prefix(&open).filter(|pair| !unsettled.contains(&pair.key.to_string()));
        let of_this = |holder: &Option<LockHolder>| holder.as_ref().is_some_and(|holder| holder.sid == sid);
        let locks =
            store.prefix(keys::LOCK).filter(|pair| of_this(&LockHolder::decode(&pair.value).unwrap()));
        let shared =
            store.prefix(keys::SHARED).filter(|pair| of_this(&LockHolder::decode(&pair.value).unwrap()));
        let left: Vec<String> = runs.chain(locks).chain(shared).map(|pair| pair.key.to_string()).collect();
        for key in left {
            self.violated(format!("{key} is left behind by a worker that has drained"));
        }
    }

    /// Every claimed fire has exactly one record. `lives`: this start of the worker is the one that is there.
    pub(super) fn check_records(&mut self, store: &Store, log: &Stored, lives: impl Fn(Incarnation) -> bool) {
        for prefix in [keys::RUNS, keys::LOCK, keys::SHARED, keys::SESSIONS] {
            if let Some(left) = store.prefix(prefix).next() {
                self.violated(format!("{} is left behind", left.key));
            }
        }
        let lawful = |record: &Record| record.claim.as_ref().is_some_and(|id| self.unnoticed.contains(id));
        let conflict = log.conflicts.iter().find(|(one, other)| !lawful(one) && !lawful(other));
        if let Some((one, _)) = conflict {
            self.violated(format!("{} has records of two claims", one.id));
        }
        for record in log.records.values() {
            let cancelled = record.skipped.as_ref().is_some_and(|skipped| skipped.cancelled.is_some());
            if (record.status == Some(Status::Killed) || cancelled) != record.killed_by.is_some() {
                self.violated(format!("{} is {:?} by {:?}", record.id, record.status, record.killed_by));
            }
        }
        for record in log.records.values().filter(|record| record.status == Some(Status::Lost)) {
            if record.claim.as_ref().is_some_and(|claim| self.on_disk.contains(claim)) {
                self.violated(format!("{} is lost, and its record was on disk", record.id));
            }
        }
        let mut with_record: BTreeMap<RunId, (usize, u64)> = BTreeMap::new();
        for record in log.records.values() {
            let entry = with_record.entry(record.claim.clone().unwrap()).or_default();
            entry.0 += 1;
            entry.1 = record.skipped.as_ref().map_or(1, |skipped| skipped.count);
        }
        for (run_id, started) in self.claimed_before.clone() {
            // What the store has forgotten has no record, unless its worker lives: that one writes it.
            let kept_aside = log.conflicts.iter().any(|(_, aside)| aside.claim.as_ref() == Some(&run_id));
            if started.is_some_and(&lives) && !with_record.contains_key(&run_id) && !kept_aside {
                self.violated(format!("{run_id} was started before the store went back, and has no record"));
            }
        }
        for (run_id, count) in self.claimed.clone() {
            if with_record.get(&run_id) != Some(&(1, count)) {
                let found = with_record.get(&run_id);
                self.violated(format!("{run_id} stands for {count} fires, its records for {found:?}"));
            }
        }
    }
}

/// Runs of one job do not overlap, unless one goes without the lock. One without it that was claimed later may go beside one with it: by then
/// the job was another.
fn may_not_overlap(other: &Process, open: &OpenRun, claim: usize) -> bool {
    !open.unlocked && (!other.unlocked || other.claim < claim)
}

/// Its job has a fence or asks for it, and attempts left.
fn is_tried_if_lost(store: &Store, open: &OpenRun) -> bool {
    let Some(pair) = store.get(keys::job(&open.job)) else { return false };
    let JobOptions { retry, execution, .. } =
        Job::from_stored(open.job.as_str(), &pair.value).unwrap().options;
    let wanted = |retry: &Retry| retry.on_lost.unwrap_or(execution.has_fence());
    retry.is_some_and(|retry| wanted(&retry) && open.attempt < retry.attempts)
}

/// The session's key is there.
pub(super) fn lives(store: &Store, sid: Sid) -> bool {
    store.get(keys::session(sid)).is_some()
}
