//! Several schedulers, the real transactions and store, simulated time, and everything that can go wrong drawn from a seed. Replays with
//! `SIM_SEED=… cargo test -p worker simulation`; `SIM_SEEDS=1000` tries so many.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use common::clock::{Clock, Timestamp};
use common::domain::job::{Job, JobName};
use common::domain::mark::Mark;
use common::domain::record::{Ending, Record, RecordId, Status};
use common::domain::run::{OpenRun, RunId};
use common::domain::worker::Sid;
use common::keys;
use common::kv::embedded::EmbeddedKv;
use common::kv::{
    self, Compare, Kv, LeaseId, Op, Range, RangeReply, Revision, Span, Txn, TxnReply, WatchStream,
};
use common::run_log::{self, Appended, Duplicate, RecordQuery, RunLog};
use common::schedule::Schedule;

use crate::scheduler::{Action, Claim, ClaimAnswer, ClaimKind, Event, JobSeen, Members, Scheduler, Slots};
use crate::{claims, session, sweep, watches};

const START_MS: i64 = 1_800_000_000_000;
/// Faults happen until then.
const HEALED_MS: i64 = 40_000;
/// Then everything must be well again, and the workers drain.
const WELL_MS: i64 = 62_000;
/// And have left.
const END_MS: i64 = 80_000;
/// So long after a restore every worker has noticed, and fires of before are too late to start.
const UNNOTICED_MAX_MS: i64 = 10_000;
const WORKERS: usize = 3;
/// A few seconds' worth; what several hundred more have found is fixed.
const SEEDS: u64 = 60;
/// More than a run takes: beyond, something goes on without time passing.
const ITEMS_MAX: usize = 100_000;
/// Longer than a test takes: leases end when the simulation says so.
const TTL: Duration = Duration::from_secs(3600);

/// What is broken on purpose, to see that it is noticed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mutant {
    None,
    NoMarkCompare,
    NoSessionCompare,
    NoLockCompare,
    UnlockAnybodys,
    /// A store that went back is nothing special.
    NoFloor,
}

struct MutantKv {
    inner: EmbeddedKv,
    mutant: Mutant,
}

impl MutantKv {
    fn keeps(&self, compare: &Compare) -> bool {
        let (Compare::CreateRevision(key, ..)
        | Compare::ModRevision(key, ..)
        | Compare::Lease(key, _)
        | Compare::Value(key, _)) = compare;
        let of = |prefix: &str| key.strip_prefix(prefix).is_some();
        match self.mutant {
            Mutant::None | Mutant::NoFloor => true,
            Mutant::NoMarkCompare => !of(keys::FIRED),
            Mutant::NoSessionCompare => !of(keys::SESSIONS),
            Mutant::NoLockCompare => !(of(keys::LOCK) && matches!(compare, Compare::CreateRevision(..))),
            Mutant::UnlockAnybodys => !(of(keys::LOCK) && matches!(compare, Compare::ModRevision(..))),
        }
    }
}

#[async_trait]
impl Kv for MutantKv {
    async fn range(&self, range: Range) -> Result<RangeReply, kv::Error> {
        self.inner.range(range).await
    }
    async fn txn(&self, mut txn: Txn) -> Result<TxnReply, kv::Error> {
        txn.when.retain(|compare| self.keeps(compare));
        self.inner.txn(txn).await
    }
    async fn watch(&self, span: Span, start: Revision) -> Result<WatchStream, kv::Error> {
        self.inner.watch(span, start).await
    }
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, kv::Error> {
        self.inner.grant(ttl).await
    }
    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, kv::Error> {
        self.inner.keep_alive(lease).await
    }
    async fn lease_keys(&self, lease: LeaseId) -> Result<Vec<kv::Key>, kv::Error> {
        self.inner.lease_keys(lease).await
    }
    async fn revoke(&self, lease: LeaseId) -> Result<(), kv::Error> {
        self.inner.revoke(lease).await
    }
    async fn compact(&self, revision: Revision) -> Result<(), kv::Error> {
        self.inner.compact(revision).await
    }
}

/// Records, by the rule that every store follows.
#[derive(Default)]
struct Log(Mutex<(BTreeMap<RecordId, Record>, Vec<Record>)>);

#[async_trait]
impl RunLog for Log {
    async fn prepare(&self) -> Result<(), run_log::Error> {
        Ok(())
    }
    async fn append(&self, records: &[Record]) -> Result<Appended, run_log::Error> {
        let (stored, conflicts) = &mut *self.0.lock().unwrap();
        for record in records {
            match stored.get(&record.id).map(|before| run_log::duplicate(before, record)) {
                None | Some(Duplicate::Replace) => drop(stored.insert(record.id.clone(), record.clone())),
                Some(Duplicate::Replay) => {}
                Some(Duplicate::Conflict) => conflicts.push(record.clone()),
            }
        }
        Ok(Appended::default())
    }
    async fn list(&self, _query: &RecordQuery) -> Result<Vec<Record>, run_log::Error> {
        Ok(Vec::new())
    }
}

struct At(Timestamp);

#[async_trait]
impl Clock for At {
    fn now(&self) -> Timestamp {
        self.0
    }
    async fn sleep_until(&self, _deadline: Timestamp) {}
}

/// xorshift64*.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: i64) -> i64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        i64::try_from(high).unwrap() % bound.max(1)
    }
    fn between(&mut self, from: i64, to: i64) -> i64 {
        from + self.below(to - from + 1)
    }
    fn percent(&mut self, of_hundred: i64) -> bool {
        self.below(100) < of_hundred
    }
}

/// A request on its way to the store.
enum Call {
    Claim(Box<Claim>),
    Adopt { job: JobName, job_revision: Revision, mark_revision: Revision, sid: Sid, mark: Mark },
    Read { slots: Slots, asked_at: Timestamp },
    Retire { job: JobName, revision: Revision, mark: Mark },
    Release { run_id: RunId, job: JobName, lock_revision: Revision },
    Move { open: OpenRun, from: (Sid, u64), to: (Sid, u64), rescue: bool },
    Settle((Sid, u64)),
}

/// What is to happen.
enum Item {
    /// A worker is told something.
    Tell(Event),
    /// The store does something; it tells the answer so much later, or not at all.
    Apply(Call, Option<i64>),
    /// A record reaches its store.
    Store(Box<Record>, Option<(Sid, u64)>),
    ProcessEnds(RunId),
    Gain,
    Lose(Sid),
    Restart,
    /// Its store is found to have gone back.
    NoticeRestored,
    /// Somebody takes a backup of the store.
    Backup,
    /// And puts it back.
    Restore,
    /// The store ends a session, whoever believes in it.
    Expire(Sid),
    Sweep,
    Fault,
    Heal,
}

struct Worker {
    scheduler: Scheduler,
    /// Grows with every restart: what was sent to an earlier process reaches nobody.
    incarnation: u32,
    alive: bool,
    session: Option<Sid>,
    frozen_until: i64,
    watched_until: i64,
    skew: i64,
    /// How many restores of the store it has noticed.
    era: u32,
    /// And what it then takes for the last fire that may have run.
    floor: Timestamp,
}

/// A command that is going.
struct Process {
    worker: usize,
    job: JobName,
    sid: Sid,
}

struct World {
    kv: MutantKv,
    log: Log,
    dice: Dice,
    now: i64,
    /// Each with the worker that it concerns, and the process and the era of that worker when it was queued.
    queue: BTreeMap<(i64, u64), (usize, u32, u32, Item)>,
    queued: u64,
    workers: Vec<Worker>,
    live: BTreeSet<Sid>,
    registered: BTreeMap<String, Sid>,
    processes: BTreeMap<RunId, Process>,
    started: BTreeSet<(JobName, Timestamp)>,
    /// Committed claims with a record to come: how many fires each stands for.
    claimed: BTreeMap<RunId, u64>,
    backup: Vec<kv::Pair>,
    /// How often it was restored.
    era: u32,
    /// A process that starts just after a restore knows nothing of the time before: this is not promised (ARCHITECTURE, P16).
    no_starts_until: i64,
    /// Claims of the store as it was before, with the process that started their command, if any.
    claimed_before: BTreeMap<RunId, Option<(usize, u32)>>,
    started_by: BTreeMap<RunId, (usize, u32)>,
    violations: Vec<String>,
}

fn id(worker: usize) -> String {
    format!("w{worker}")
}

fn job_names() -> Vec<JobName> {
    ["a", "b", "c"].iter().map(|n| JobName::parse(n).unwrap()).collect()
}

impl World {
    async fn new(seed: u64, mutant: Mutant) -> Self {
        let worker = |_| Worker {
            scheduler: Scheduler::new(2),
            incarnation: 0,
            alive: false,
            session: None,
            frozen_until: 0,
            watched_until: 0,
            skew: 0,
            era: 0,
            floor: Timestamp::ZERO,
        };
        let mut world = Self {
            kv: MutantKv { inner: EmbeddedKv::in_memory().unwrap(), mutant },
            log: Log::default(),
            dice: Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            now: 0,
            queue: BTreeMap::new(),
            queued: 0,
            workers: (0..WORKERS).map(worker).collect(),
            live: BTreeSet::new(),
            registered: BTreeMap::new(),
            processes: BTreeMap::new(),
            started: BTreeSet::new(),
            claimed: BTreeMap::new(),
            backup: Vec::new(),
            era: 0,
            no_starts_until: 0,
            claimed_before: BTreeMap::new(),
            started_by: BTreeMap::new(),
            violations: Vec::new(),
        };
        for name in job_names() {
            world.save(&name).await;
        }
        for worker in 0..WORKERS {
            world.workers[worker].skew = world.dice.between(-150, 150);
            world.push(0, worker, Item::Restart);
            for sweep in 0..10 {
                world.push(sweep * 8000 + 3000, worker, Item::Sweep);
            }
        }
        for _ in 0..world.dice.between(5, 14) {
            let (when, whom) = (world.dice.between(1000, HEALED_MS - 1000), world.dice.below(3));
            world.push(when, usize::try_from(whom).unwrap(), Item::Fault);
        }
        if world.dice.percent(30) {
            let backup = world.dice.between(500, HEALED_MS - 2000);
            let restore = world.dice.between(backup + 1, HEALED_MS - 1000);
            world.push(backup, 0, Item::Backup);
            world.push(restore, 0, Item::Restore);
        }
        world.push(HEALED_MS, 0, Item::Heal);
        world
    }

    fn push(&mut self, at: i64, worker: usize, item: Item) {
        self.queued += 1;
        let (incarnation, era) = (self.workers[worker].incarnation, self.workers[worker].era);
        self.queue.insert((at, self.queued), (worker, incarnation, era, item));
    }

    fn violated(&mut self, what: impl Into<String>) {
        self.violations.push(format!("at {}: {}", self.now, what.into()));
    }

    fn faulty(&self) -> bool {
        self.now < HEALED_MS
    }

    fn time_of(&self, worker: usize) -> Timestamp {
        Timestamp::from_ms(START_MS + self.now + self.workers[worker].skew)
    }

    async fn run(&mut self) {
        let mut drained = false;
        for _ in 0..ITEMS_MAX {
            if !self.violations.is_empty() {
                return;
            }
            let wake = |w: &Worker| {
                let at = w.scheduler.wake_at()?.ms() - START_MS - w.skew;
                w.alive.then_some(at.max(w.frozen_until))
            };
            let woken = (0..WORKERS).filter_map(|w| Some((wake(&self.workers[w])?, w))).min();
            let queued = self.queue.first_key_value().map(|((at, _), _)| *at);
            let next = woken.map(|(at, _)| at).into_iter().chain(queued).min().unwrap_or(END_MS);
            if !drained && next >= WELL_MS {
                drained = true;
                self.now = WELL_MS;
                self.check_nothing_is_missed().await;
                for worker in 0..WORKERS {
                    self.registered.remove(&id(worker));
                    self.feed(worker, Event::DrainRequested);
                }
                continue;
            }
            if next >= END_MS {
                return self.check_end().await;
            }
            self.now = self.now.max(next);
            match woken {
                Some((at, worker)) if queued.is_none_or(|queued| at < queued) => {
                    self.feed(worker, Event::Woke);
                }
                _ => {
                    let (_, (worker, incarnation, era, item)) = self.queue.pop_first().unwrap();
                    self.happen(worker, incarnation, era, item).await;
                }
            }
        }
        self.violated("goes on for ever");
    }

    async fn happen(&mut self, worker: usize, incarnation: u32, era: u32, item: Item) {
        match item {
            Item::Apply(call, answer_after) => {
                return self.apply(worker, incarnation, era, call, answer_after).await;
            }
            Item::Backup => return self.back_up().await,
            Item::Restore => return self.put_back().await,
            Item::Expire(sid) => return self.expire(sid).await,
            Item::Fault => return self.fault(worker).await,
            Item::Heal => return self.heal().await,
            Item::Restart => return self.restart(worker).await,
            Item::Sweep => return self.sweep(worker).await,
            _ => {}
        }
        if self.workers[worker].incarnation != incarnation || !self.workers[worker].alive {
            return;
        }
        if let Item::ProcessEnds(run_id) = item {
            if self.processes.remove(&run_id).is_some() {
                let now = self.time_of(worker);
                let ending = Ending {
                    status: Status::Succeeded,
                    err: String::new(),
                    command: String::new(),
                    output: String::new(),
                    output_truncated: false,
                    start_time: now,
                    end_time: now,
                    exit_code: Some(0),
                    signal: None,
                };
                self.push(self.now, worker, Item::Tell(Event::RunEnded(run_id, ending)));
            }
            return;
        }
        let of_the_store = !matches!(item, Item::Store(..) | Item::Tell(Event::RunEnded(..)));
        if of_the_store && era != self.workers[worker].era {
            return; // of a store that is no more, as far as this worker is concerned
        }
        let thawed = self.workers[worker].frozen_until;
        if self.now < thawed {
            // Watches bring news in order: what comes later must not overtake it, should the worker thaw before that.
            let at = &mut self.workers[worker];
            at.watched_until = at.watched_until.max(thawed);
            return self.push(thawed, worker, item);
        }
        match item {
            Item::NoticeRestored => self.notice_restored(worker).await,
            Item::Tell(event) => self.feed(worker, event),
            Item::Store(record, settles) => {
                self.log.append(std::slice::from_ref(&record)).await.unwrap();
                if let Some(key) = settles {
                    let delay = self.dice.between(1, 500);
                    self.push(self.now + delay, worker, Item::Apply(Call::Settle(key), None));
                }
            }
            Item::Gain => self.gain(worker).await,
            Item::Lose(sid) => self.lose(worker, sid),
            _ => {}
        }
    }

    fn feed(&mut self, worker: usize, event: Event) {
        let now = self.time_of(worker);
        for action in self.workers[worker].scheduler.step(now, event) {
            self.perform(worker, action);
        }
        let woken = self.workers[worker].scheduler.wake_at();
        if woken.is_some_and(|at| at <= now) {
            self.violated("asks to be woken in the past");
        }
    }

    fn perform(&mut self, worker: usize, action: Action) {
        let soon = self.now + self.dice.between(1, 25);
        let answer = self.dice.between(1, 25);
        match action {
            Action::Claim(claim) => self.send_claim(worker, claim),
            Action::Adopt { job, job_revision, mark_revision, sid, mark } => {
                let call = Call::Adopt { job, job_revision, mark_revision, sid, mark };
                self.push(soon, worker, Item::Apply(call, Some(answer)));
            }
            Action::ReadMarks { slots, .. } => {
                let call = Call::Read { slots, asked_at: self.time_of(worker) };
                let late = if self.faulty() && self.dice.percent(10) { 2000 } else { answer };
                self.push(soon, worker, Item::Apply(call, Some(late)));
            }
            Action::RetireMark { job, revision, mark } => {
                self.push(soon, worker, Item::Apply(Call::Retire { job, revision, mark }, None));
            }
            Action::Release { run_id, job, lock_revision, .. } => {
                let late = if self.faulty() && self.dice.percent(25) { self.dice.below(6000) } else { 0 };
                if late > 0 && self.dice.percent(50) {
                    // A first sending whose answer is lost; the second comes late.
                    let (run_id, job) = (run_id.clone(), job.clone());
                    let call = Call::Release { run_id, job, lock_revision };
                    self.push(soon, worker, Item::Apply(call, None));
                }
                let call = Call::Release { run_id, job, lock_revision };
                self.push(soon + late, worker, Item::Apply(call, Some(answer)));
            }
            Action::Move { open, from, to, rescue } => {
                if self.faulty() && self.dice.percent(30) {
                    let call = Call::Move { open: open.clone(), from, to, rescue };
                    self.push(soon, worker, Item::Apply(call, None));
                }
                let late = if self.faulty() { self.dice.below(1000) } else { 0 };
                self.push(
                    soon + late,
                    worker,
                    Item::Apply(Call::Move { open, from, to, rescue }, Some(answer)),
                );
            }
            Action::Start { open, .. } => self.start(worker, &open),
            Action::Kill(run_id) => self.push(self.now + 5, worker, Item::ProcessEnds(run_id)),
            Action::Record { record, settles } => {
                let away = if self.faulty() && self.dice.percent(10) { 6000 } else { 1000 };
                let delay = self.dice.between(5, away);
                self.push(self.now + delay, worker, Item::Store(record, settles));
            }
            Action::GiveUpSession(sid) => self.push(self.now, worker, Item::Lose(sid)),
            Action::GiveUpStore(why) if self.workers[worker].era == self.era => {
                self.violated(format!("the store is said to have gone back: {why}"));
            }
            Action::GiveUpStore(_) => self.push(self.now, worker, Item::NoticeRestored),
            Action::Prepare { .. } | Action::Report(_) => {}
        }
    }

    /// The ways in which a claim can go.
    fn send_claim(&mut self, worker: usize, claim: Box<Claim>) {
        let (soon, answer) = (self.now + self.dice.between(1, 25), self.dice.between(1, 25));
        let told = |answer| {
            let open = &claim.open;
            Item::Tell(Event::ClaimAnswered(
                open.run_id.clone(),
                claim.mark.plan_time,
                open.job.clone(),
                answer,
            ))
        };
        match if self.faulty() { self.dice.below(100) } else { 99 } {
            0..=4 => self.push(self.now + 400, worker, told(ClaimAnswer::Unknown)),
            5..=14 => {
                self.push(self.now + 400, worker, told(ClaimAnswer::Unknown));
                self.push(soon, worker, Item::Apply(Call::Claim(claim), None));
            }
            15..=24 => {
                self.push(self.now + 400, worker, told(ClaimAnswer::Unknown));
                let late = self.now + 400 + self.dice.below(3000);
                self.push(late, worker, Item::Apply(Call::Claim(claim), None));
            }
            25..=29 => self.push(soon, worker, told(ClaimAnswer::NotApplied)),
            _ => self.push(soon, worker, Item::Apply(Call::Claim(claim), Some(answer))),
        }
    }

    fn start(&mut self, worker: usize, open: &OpenRun) {
        let fire = (open.job.clone(), open.plan_time);
        let Some(sid) = self.sid_of_run(&open.run_id) else {
            return self.violated(format!("{} started without a claim", open.run_id));
        };
        if !self.started.insert(fire) {
            self.violated(format!("{} at {} started twice", open.job, open.plan_time));
        }
        let overlaps =
            |p: &Process| p.job == open.job && self.live.contains(&p.sid) && self.live.contains(&sid);
        if self.processes.values().any(overlaps) {
            self.violated(format!("{} at {} overlaps another run", open.job, open.plan_time));
        }
        self.started_by.insert(open.run_id.clone(), (worker, self.workers[worker].incarnation));
        self.processes.insert(open.run_id.clone(), Process { worker, job: open.job.clone(), sid });
        let long = self.dice.percent(30);
        let ends = self.now + if long { self.dice.between(900, 5000) } else { self.dice.between(10, 800) };
        self.push(ends, worker, Item::ProcessEnds(open.run_id.clone()));
    }

    fn sid_of_run(&self, run_id: &RunId) -> Option<Sid> {
        let known = self.claimed.contains_key(run_id) || self.claimed_before.contains_key(run_id);
        known.then_some(())?;
        Sid::parse(run_id.as_str().split_once('-')?.0)
    }

    // --- the store ----------------------------------------------------------------------------------------------------

    async fn apply(
        &mut self,
        worker: usize,
        incarnation: u32,
        era: u32,
        call: Call,
        answer_after: Option<i64>,
    ) {
        let kv = &self.kv;
        let event = match call {
            Call::Claim(claim) => {
                let before = self.before(&claim.open.job).await;
                let answer = claims::claim(&self.kv, &claim).await;
                if matches!(answer, ClaimAnswer::Won(_)) {
                    self.check_claim(worker, &claim, before);
                }
                Some(Event::ClaimAnswered(claim.open.run_id, claim.mark.plan_time, claim.open.job, answer))
            }
            Call::Adopt { job, job_revision, mark_revision, sid, mark } => {
                let adoption = claims::Adoption { job: job.clone(), job_revision, mark_revision, sid, mark };
                let answer = claims::adopt_all(kv, &[adoption]).await.remove(0);
                Some(Event::AdoptAnswered(job, answer))
            }
            Call::Read { slots, asked_at } => {
                let mut all = BTreeMap::new();
                let tell = |(_, marks)| {
                    all.extend(marks);
                    std::future::ready(())
                };
                claims::read_marks(kv, &slots, false, tell).await.unwrap();
                Some(Event::MarksRead { slots, marks: all, asked_at })
            }
            Call::Retire { job, revision, mark } => {
                claims::retire_mark(kv, &job, revision, &mark).await.unwrap();
                None
            }
            Call::Release { run_id, job, lock_revision } => {
                claims::release_all(kv, &[(job, lock_revision)]).await.unwrap();
                Some(Event::Released(run_id))
            }
            Call::Move { open, from, to, rescue } => {
                match claims::take_over(kv, &open, from, to, rescue).await {
                    Ok(answer) => {
                        if let (crate::scheduler::MoveAnswer::Done(_), Some(process)) =
                            (answer, self.processes.get_mut(&open.run_id))
                        {
                            process.sid = to.0;
                        }
                        Some(Event::MoveAnswered(open.run_id, to.0, to.1, answer))
                    }
                    Err(_session_over) => None,
                }
            }
            Call::Settle(key) => {
                claims::settle(kv, &[key]).await.unwrap();
                None
            }
        };
        if let (Some(event), Some(after)) = (event, answer_after) {
            // An answer of another history than that of the request is not handed on, and shows it.
            let item = if era == self.era { Item::Tell(event) } else { Item::NoticeRestored };
            self.queued += 1;
            self.queue.insert((self.now + after, self.queued), (worker, incarnation, era, item));
        }
    }

    async fn value(&self, key: impl Into<kv::Key>) -> Option<kv::Pair> {
        self.kv.range(Range::key(key)).await.unwrap().pairs.pop()
    }

    /// (schedule, time after which the next fire is to come, last fire claimed).
    async fn before(&self, job: &JobName) -> Option<(Schedule, Timestamp, Timestamp)> {
        let definition = Job::from_stored(job.as_str(), &self.value(keys::job(job)).await?.value).ok()?;
        let mark = Mark::decode(&self.value(keys::fired(job)).await?.value).ok()?;
        let base = claims::parse_base(self.value(keys::BASE).await.as_ref());
        let after = mark.plan_time.max(mark.base).max(base);
        Some((Schedule::parse(&definition.cron_expr).ok()?, after, mark.plan_time))
    }

    /// A claim that has committed: it must take the fires that are next in turn and leave none out.
    fn check_claim(
        &mut self,
        worker: usize,
        claim: &Claim,
        before: Option<(Schedule, Timestamp, Timestamp)>,
    ) {
        let (run_id, to) = (&claim.open.run_id, claim.mark.plan_time);
        let name = &claim.open.job;
        if !self.live.contains(&claim.sid) {
            return self.violated(format!("{name} at {to} claimed under a session that is over"));
        }
        let Some((schedule, after, marked)) = before else {
            return self.violated(format!("{name} at {to} claimed without a job or a mark"));
        };
        if to <= marked {
            return self.violated(format!("the mark of {name} went back to {to}"));
        }
        if claim.kind == ClaimKind::SeedRan {
            return self.violated("there is no seed worker");
        }
        let so_far = self.claimed.get(run_id).copied().unwrap_or(0);
        let after = after.max(self.workers[worker].floor);
        let count = claim.open.skipped.as_ref().map_or(1, |skipped| skipped.count);
        let due = schedule.fires_between(after, to, 10_000).map_or(0, |fires| fires.count);
        // More are lawful: a pause that is lifted moves the base without touching marks, and a claim decided before that may take older
        // fires.
        if count - so_far < due {
            self.violated(format!("{name} up to {to}: {} claimed where {due} were due", count - so_far));
        }
        self.claimed.insert(run_id.clone(), count);
    }

    async fn expire(&mut self, sid: Sid) {
        if !self.live.remove(&sid) {
            return;
        }
        let _gone_already = self.kv.revoke(sid.lease()).await;
        let before = self.registered.len();
        self.registered.retain(|_, registered| *registered != sid);
        if self.registered.len() != before {
            self.tell_members();
        }
    }

    async fn sweep(&mut self, worker: usize) {
        let at = &self.workers[worker];
        if !at.alive || self.now < at.frozen_until {
            return;
        }
        if at.era != self.era {
            return self.push(self.now, worker, Item::NoticeRestored);
        }
        let spared: BTreeSet<Sid> = at.scheduler.sids().into_iter().chain(at.session).collect();
        sweep::sweep(&self.kv, &self.log, &At(self.time_of(worker)), &spared).await.unwrap();
    }

    // --- workers ------------------------------------------------------------------------------------------------------

    /// Told to everybody, in order, each at its own pace.
    fn broadcast(&mut self, event: &Event) {
        for worker in 0..WORKERS {
            if self.workers[worker].alive {
                let slow = if self.faulty() && self.dice.percent(20) { 1500 } else { 40 };
                let at = (self.now + self.dice.between(1, slow)).max(self.workers[worker].watched_until);
                self.workers[worker].watched_until = at;
                self.push(at, worker, Item::Tell(event.clone()));
            }
        }
    }

    fn tell_members(&mut self) {
        let ours = self.registered.keys().cloned().collect();
        self.broadcast(&Event::MembersChanged(Members { ours, seeds: BTreeSet::new() }));
    }

    async fn restart(&mut self, worker: usize) {
        if self.workers[worker].alive {
            return;
        }
        if self.now < self.no_starts_until {
            return self.push(self.no_starts_until, worker, Item::Restart);
        }
        let at = &mut self.workers[worker];
        at.incarnation += 1;
        at.alive = true;
        at.scheduler = Scheduler::new(2);
        at.frozen_until = self.now;
        at.watched_until = self.now;
        (at.era, at.floor) = (self.era, Timestamp::ZERO);
        self.list_all(worker).await;
        self.push(self.now + 10, worker, Item::Gain);
    }

    /// What every watch begins with.
    async fn list_all(&mut self, worker: usize) {
        let paused = self.value(keys::PAUSED).await.is_some();
        let base = claims::parse_base(self.value(keys::BASE).await.as_ref());
        let mut jobs = Vec::new();
        for name in job_names() {
            jobs.extend(self.job_seen(&name).await);
        }
        let ours = self.registered.keys().cloned().collect();
        let names = jobs.iter().map(|job: &JobSeen| job.name.clone()).collect();
        let first = [Event::Base(base), Event::Paused(paused)];
        let last =
            [Event::JobsListed(names), Event::MembersChanged(Members { ours, seeds: BTreeSet::new() })];
        for event in first.into_iter().chain(jobs.into_iter().map(Event::JobPut)).chain(last) {
            self.push(self.now, worker, Item::Tell(event));
        }
    }

    async fn gain(&mut self, worker: usize) {
        if self.workers[worker].session.is_some() {
            return;
        }
        if let Some(old) = self.registered.get(&id(worker)).copied() {
            self.expire(old).await;
        }
        let sid = session::open(&self.kv, TTL).await.unwrap();
        self.live.insert(sid);
        self.workers[worker].session = Some(sid);
        if self.now < WELL_MS {
            self.registered.insert(id(worker), sid);
        }
        self.feed(worker, Event::SessionGained(sid, id(worker)));
        self.tell_members();
    }

    fn lose(&mut self, worker: usize, sid: Sid) {
        if self.workers[worker].session != Some(sid) {
            return;
        }
        self.workers[worker].session = None;
        self.feed(worker, Event::SessionLost);
        let again = self.dice.between(20, 1500);
        self.push(self.now + again, worker, Item::Gain);
    }

    // --- faults -------------------------------------------------------------------------------------------------------

    async fn fault(&mut self, worker: usize) {
        let later = self.dice.between(0, 4000);
        let session = self.workers[worker].session.filter(|_| self.workers[worker].alive);
        let names = job_names();
        let name = names[usize::try_from(self.dice.below(3)).unwrap()].clone();
        match (self.dice.below(9), session) {
            (0, _) if self.workers[worker].alive => {
                // kill -9: its commands are gone with it here; its session goes when its time is over, or is taken over.
                self.workers[worker].alive = false;
                self.processes.retain(|_, process| process.worker != worker);
                if let Some(sid) = self.workers[worker].session.take() {
                    self.push(self.now + later * 2, worker, Item::Expire(sid));
                }
                let back = self.dice.between(100, 9000);
                self.push(self.now + back, worker, Item::Restart);
            }
            (1 | 2, Some(sid)) => {
                // The store ends the session first, the worker notices later.
                self.push(self.now, worker, Item::Expire(sid));
                self.push(self.now + later, worker, Item::Lose(sid));
            }
            (3, Some(sid)) => {
                self.push(self.now, worker, Item::Lose(sid));
                self.push(self.now + later, worker, Item::Expire(sid));
            }
            (4, Some(sid)) => {
                let thaws = self.now + later * 2;
                self.workers[worker].frozen_until = thaws;
                if self.dice.percent(60) {
                    let expires = self.dice.between(self.now, thaws);
                    self.push(expires, worker, Item::Expire(sid));
                    self.push(thaws, worker, Item::Lose(sid));
                }
            }
            (5, _) => self.save(&name).await,
            (6, _) => self.put_by_hand(&name).await,
            (7, _) => {
                let delete = Op::delete(keys::job(&name));
                self.kv.txn(Txn { then: vec![delete], ..Txn::default() }).await.unwrap();
                self.broadcast(&Event::JobDeleted(name));
            }
            (8, _) if self.value(keys::PAUSED).await.is_none() => {
                let pause = Op::put(keys::PAUSED, b"1".as_slice());
                self.kv.txn(Txn { then: vec![pause], ..Txn::default() }).await.unwrap();
                self.broadcast(&Event::Paused(true));
            }
            (8, _) => self.lift_pause().await,
            _ => {}
        }
    }

    async fn back_up(&mut self) {
        self.backup = Vec::new();
        for prefix in [keys::JOBS, keys::FIRED, keys::RUNS, keys::PAUSED, keys::BASE] {
            self.backup.extend(self.kv.range(Range::prefix(prefix)).await.unwrap().pairs);
        }
        self.backup.sort_by_key(|pair| pair.mod_revision);
    }

    /// The store is as it was at the backup, but for what hung on leases: those are over. Revisions begin anew, lower.
    async fn put_back(&mut self) {
        self.kv.inner = EmbeddedKv::in_memory().unwrap();
        for together in self.backup.chunk_by(|a, b| a.mod_revision == b.mod_revision) {
            let then = together.iter().map(|pair| Op::put(pair.key.clone(), pair.value.clone())).collect();
            self.kv.inner.txn(Txn { then, ..Txn::default() }).await.unwrap();
        }
        self.era += 1;
        self.no_starts_until = self.now + UNNOTICED_MAX_MS;
        self.live.clear();
        self.registered.clear();
        for run_id in std::mem::take(&mut self.claimed).into_keys() {
            let started = self.started_by.get(&run_id).copied();
            self.claimed_before.insert(run_id, started);
        }
        for worker in 0..WORKERS {
            let heartbeat = self.dice.between(0, 4000);
            self.push(self.now + heartbeat, worker, Item::NoticeRestored);
        }
    }

    /// As the driver does it.
    async fn notice_restored(&mut self, worker: usize) {
        let now = self.time_of(worker);
        let at = &mut self.workers[worker];
        (at.era, at.session, at.watched_until) = (self.era, None, self.now);
        if self.kv.mutant == Mutant::NoFloor {
            self.feed(worker, Event::SessionLost);
        } else {
            at.floor = now.plus_ms(2_500);
            self.feed(worker, Event::StoreWentBack);
        }
        self.list_all(worker).await;
        let soon = self.dice.between(1, 500);
        self.push(self.now + soon, worker, Item::Gain);
    }

    async fn lift_pause(&mut self) {
        let now = START_MS + self.now;
        let base = common::domain::pause::Base::new(Timestamp::from_ms(now));
        let then = vec![Op::delete(keys::PAUSED), Op::put(keys::BASE, base.encode())];
        self.kv.txn(Txn { then, ..Txn::default() }).await.unwrap();
        self.broadcast(&Event::Base(Timestamp::from_ms(now)));
        self.broadcast(&Event::Paused(false));
    }

    async fn heal(&mut self) {
        for worker in 0..WORKERS {
            self.workers[worker].frozen_until = self.now;
            if !self.workers[worker].alive {
                self.restart(worker).await;
            }
        }
        self.lift_pause().await;
        for name in job_names() {
            if self.value(keys::job(&name)).await.is_none() {
                self.put_by_hand(&name).await;
            }
        }
    }

    fn definition(&mut self, name: &JobName) -> Vec<u8> {
        let crons = ["* * * * * *", "*/2 * * * * *", "*/3 * * * * *", "1-59/5 * * * * *"];
        let cron = crons[usize::try_from(self.dice.below(4)).unwrap()];
        let command = format!("true {}", self.dice.below(1000));
        let job = serde_json::json!({ "name": name.as_str(), "command": command, "cronExpr": cron });
        job.to_string().into_bytes()
    }

    /// As the `save` function does.
    async fn save(&mut self, name: &JobName) {
        let definition = self.definition(name);
        let job = Job::from_stored(name.as_str(), &definition).unwrap();
        let before = self.value(keys::fired(name)).await.map(|pair| Mark::decode(&pair.value).unwrap());
        let mut then = vec![Op::put(keys::job(name), definition)];
        let stands = self.value(keys::job(name)).await.is_some();
        if !stands || before.as_ref().is_none_or(|mark| mark.hash != job.schedule_hash()) {
            let now = Timestamp::from_ms(START_MS + self.now);
            let mark = Mark::based(before.as_ref(), now, job.schedule_hash());
            then.push(Op::put(keys::fired(name), mark.encode()));
        }
        self.kv.txn(Txn { then, ..Txn::default() }).await.unwrap();
        let seen = self.job_seen(name).await.unwrap();
        self.broadcast(&Event::JobPut(seen));
    }

    async fn put_by_hand(&mut self, name: &JobName) {
        let definition = self.definition(name);
        let then = vec![Op::put(keys::job(name), definition)];
        self.kv.txn(Txn { then, ..Txn::default() }).await.unwrap();
        let seen = self.job_seen(name).await.unwrap();
        self.broadcast(&Event::JobPut(seen));
    }

    async fn job_seen(&self, name: &JobName) -> Option<JobSeen> {
        watches::job_seen(&self.value(keys::job(name)).await?)
    }

    // --- what must hold -------------------------------------------------------------------------------------------------

    /// Every fire but the very last ones is claimed or let go.
    async fn check_nothing_is_missed(&mut self) {
        for name in job_names() {
            let Some((schedule, after, _)) = self.before(&name).await else {
                self.violated(format!("{name} has no mark"));
                continue;
            };
            let due = schedule.next_after(after).unwrap();
            let late = START_MS + self.now - due.ms();
            if late > 6_000 {
                self.violated(format!("{name} stopped firing: {due} is due since {late} ms"));
            }
        }
    }

    async fn check_end(&mut self) {
        for worker in 0..WORKERS {
            if !self.workers[worker].scheduler.is_idle() {
                self.violated(format!("{} does not finish draining", id(worker)));
            }
        }
        for sid in self.live.clone() {
            self.expire(sid).await;
        }
        let now = Timestamp::from_ms(START_MS + self.now);
        sweep::sweep(&self.kv, &self.log, &At(now), &BTreeSet::new()).await.unwrap();
        for prefix in [keys::RUNS, keys::LOCK] {
            if let Some(left) = self.kv.range(Range::prefix(prefix)).await.unwrap().pairs.first() {
                self.violated(format!("{} is left behind", left.key));
            }
        }
        let (records, conflicts) = {
            let log = self.log.0.lock().unwrap();
            (log.0.clone(), log.1.len())
        };
        if conflicts > 0 {
            self.violated("a fire has records of two claims");
        }
        let mut with_record: BTreeMap<RunId, (usize, u64)> = BTreeMap::new();
        for record in records.values() {
            let entry = with_record.entry(record.claim.clone().unwrap()).or_default();
            entry.0 += 1;
            entry.1 = record.skipped.as_ref().map_or(1, |skipped| skipped.count);
        }
        for (run_id, started) in self.claimed_before.clone() {
            // What the store has forgotten has no record, unless its worker lives: that one writes it.
            let lives = started.is_some_and(|(worker, i)| self.workers[worker].incarnation == i);
            if lives && !with_record.contains_key(&run_id) {
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

/// (violations, fires started) of a seed.
fn simulate(seed: u64, mutant: Mutant) -> (Vec<String>, usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut world = World::new(seed, mutant).await;
        world.run().await;
        (world.violations, world.started.len())
    })
}

fn number_from(variable: &str) -> Option<u64> {
    #[expect(clippy::disallowed_methods, reason = "a test's own switch")]
    std::env::var(variable).ok().map(|number| number.parse().unwrap())
}

#[test]
fn a_fleet_in_trouble_keeps_its_promises() {
    let asked = number_from("SIM_SEED");
    let seeds = asked.map_or(1..=number_from("SIM_SEEDS").unwrap_or(SEEDS), |seed| seed..=seed);
    let mut started = 0;
    for seed in seeds {
        let (violations, starts) = simulate(seed, Mutant::None);
        assert!(violations.is_empty(), "SIM_SEED={seed}: {violations:#?}");
        started += starts;
    }
    assert!(asked.is_some() || started > 2_000, "only {started} fires were started: that proves little");
}

#[test]
fn the_simulation_notices_what_is_broken() {
    for (mutant, words) in [
        (Mutant::NoMarkCompare, ["claimed where", "went back", "twice"].as_slice()),
        (Mutant::NoSessionCompare, &["session that is over"]),
        (Mutant::NoLockCompare, &["overlaps"]),
        (Mutant::UnlockAnybodys, &["overlaps"]),
        (Mutant::NoFloor, &["started twice"]),
    ] {
        let noticed = (1..=SEEDS).find_map(|seed| {
            let (violations, _) = simulate(seed, mutant);
            violations.into_iter().find(|v| words.iter().any(|word| v.contains(word))).map(|v| (seed, v))
        });
        assert!(noticed.is_some(), "{mutant:?} goes unnoticed");
    }
}

#[test]
fn a_seed_run_twice_gives_the_same_fires() {
    assert_eq!(simulate(7, Mutant::None), simulate(7, Mutant::None));
}
