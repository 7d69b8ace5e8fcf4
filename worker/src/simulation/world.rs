//! Time, and all that is on its way: what happens next, the store, the lines to it. Single-threaded, and the same for the same seed.

use std::collections::{BTreeMap, BTreeSet};

use common::clock::Timestamp;
use common::domain::job::JobName;
use common::domain::record::Status;
use common::domain::run::RunId;
use common::keys;
use common::kv::{Error, LeaseId, Op, Revision, Txn};

use super::dice::Dice;
use super::faults::Fault;
use super::invariants::{Incarnation, Invariants, Writer};
use super::log::{At, Log};
use super::mutants::Mutant;
use super::network::{CallId, Reply, Request};
use super::seed_worker::SeedStep;
use super::shell::{Job, Shell, Watched};
use super::store::Store;
use super::{broadcast, lagging, settings, succession, switching};
use crate::batches::Answered;
use crate::scheduler::{Claim, ClaimAnswer, Event};
use crate::seen::Seen;
use crate::waiting::Entry;
use crate::witness::Era;
use crate::{claims, sweep};

pub(super) const START_MS: i64 = 1_800_000_000_000;
/// Faults happen until then.
pub(super) const HEALED_MS: i64 = 25_000;
/// Then everything must be well again, and the workers drain.
pub(super) const WELL_MS: i64 = 47_000;
/// And have left.
pub(super) const END_MS: i64 = 63_000;
pub(super) const WORKERS: usize = 3;
/// More than a run takes: beyond, something goes on without time passing.
const ITEMS_MAX: usize = 200_000;
/// A step of a shell does not follow the one before at once.
const PAUSE_MS_MAX: i64 = 1_500;

/// What is to happen.
pub(super) enum Item {
    /// A request reaches the store; its answer is on its way so long. `knows`: how often its sender knew the store to have gone back.
    Arrive {
        from: Incarnation,
        call: CallId,
        request: Request,
        knows: u64,
        back_in: Option<i64>,
    },
    /// To a process of a worker; to nobody once that is gone.
    To(Incarnation, What),
    Starts(usize),
    /// The time of a lease may be over.
    LeaseDue(LeaseId),
    Fault(Fault, usize),
    /// A job that was deleted is put again.
    Recreated(JobName),
    /// The same of a job that runs after others.
    DependentBack(JobName),
    /// And of the one that runs on every worker.
    BroadcastBack,
    /// A job that was disabled is enabled again; by other hands or not.
    SwitchedOn(JobName, bool),
    Seed(SeedStep),
    Heal,
}

/// What happens to a process of a worker.
pub(super) enum What {
    /// From the store. `unanswered` is what is told instead when it does not get through.
    Answer {
        call: CallId,
        answer: Result<Reply, Error>,
        unanswered: Error,
        cluster: u64,
    },
    /// No answer came in time.
    TimesOut {
        call: CallId,
        why: Error,
    },
    Tell(Era, Event),
    /// There may be news for this watch.
    News(Watched),
    Do(Era, Job),
    /// A batch of claims was answered.
    Claimed(Era, Answered, Vec<(Claim, ClaimAnswer)>),
    /// The session that it has not got yet.
    Seek(Era),
    Heartbeat,
    Sweep,
    /// The sink writes to disk what has come.
    Write,
    /// The sink stores what it has.
    Flush,
    /// By itself, or killed.
    ProcessEnds(RunId, Status),
    /// Runs with a fence must not go on, unless the lease was renewed.
    FenceDue,
    /// It is found to have lost its session.
    LosesSession,
    Leaves,
}

/// A machine with a worker on it.
pub(super) struct Host {
    /// Grows with every start: what was sent to an earlier process reaches nobody.
    pub(super) incarnation: u32,
    pub(super) alive: bool,
    pub(super) shell: Shell,
    pub(super) frozen_until: i64,
    /// Its runs with a fence are killed then.
    pub(super) fence_at: i64,
    /// Its line to the store is cut until then.
    pub(super) cut_until: i64,
    /// Requests get through, answers do not.
    pub(super) half_cut: bool,
    /// Its wall clock is so far ahead.
    pub(super) skew: i64,
    /// Its scheduler takes its clock to be right.
    pub(super) trusts_clock: bool,
    /// Until then it has not heard that its clock is right again.
    pub(super) doubted_until: i64,
    /// What it takes for the last fire that may have run before the store went back.
    pub(super) floor: Timestamp,
    pub(super) log: Log,
    /// Records that wait for their store: they outlive the process.
    pub(super) disk: Vec<Entry>,
    /// The disk takes nothing.
    pub(super) disk_away: bool,
    /// What its processes have seen of the store, and how often that had gone back by then: on its disk, too.
    pub(super) seen: Option<(Seen, u64)>,
}

/// What clocks.rs allows, in ms (design P8).
pub(super) const OFFSET_MS_MAX: i64 = 2_000;

impl Host {
    /// It lives, and its clock is one by which others judge.
    pub(super) fn is_near(&self) -> bool {
        self.alive && self.skew.abs() <= OFFSET_MS_MAX
    }

    /// What the driver finds before each step: its clock was stepped, or others have said that it is right again. `None` = nothing new.
    pub(super) fn news_of_clock(&mut self, now: i64) -> Option<bool> {
        let trusts = self.skew.abs() <= OFFSET_MS_MAX && (self.trusts_clock || now >= self.doubted_until);
        (std::mem::replace(&mut self.trusts_clock, trusts) != trusts).then_some(trusts)
    }
}

pub(super) struct World {
    pub(super) mutant: Mutant,
    /// Jobs have `concurrency`. In the other worlds nothing is drawn for it, so that seeds which found something before it was there still do.
    pub(super) has_concurrency: bool,
    /// Runs are asked for, commands fail and are tried again. Not for every seed: those that have found something stay what they were.
    pub(super) asks: bool,
    pub(super) dice: Dice,
    /// In a world in which jobs are disabled and enabled.
    pub(super) switching: Option<Dice>,
    pub(super) setting: Option<Dice>,
    /// Other hands delete them twice, around a change of the calendar.
    pub(super) deletes_settings: bool,
    /// In a world in which jobs run after others.
    pub(super) succession: Option<Dice>,
    /// In a world in which a job runs on every worker.
    pub(super) broadcasting: Option<Dice>,
    /// In a world in which members of the store lag.
    pub(super) lagging: Option<Dice>,
    pub(super) now: i64,
    queue: BTreeMap<(i64, u64), Item>,
    queued: u64,
    pub(super) store: Store,
    pub(super) backup: Option<Store>,
    /// Names it; a backup may be restored under another.
    pub(super) cluster: u64,
    /// How often it was put back.
    pub(super) restores: u64,
    pub(super) restored_at: Timestamp,
    pub(super) no_space_until: i64,
    pub(super) log: Log,
    pub(super) hosts: Vec<Host>,
    pub(super) checks: Invariants,
    /// Of a hundred requests, so many go wrong.
    pub(super) trouble: i64,
    /// Everything that happened, if somebody wants to know.
    pub(super) trace: Option<Vec<String>>,
    /// The faults that there were.
    pub(super) happened: BTreeSet<Fault>,
    well: bool,
}

pub(super) fn job_names() -> Vec<JobName> {
    ["a", "b", "c"].iter().map(|name| JobName::parse(name).unwrap()).collect()
}

impl World {
    pub(super) fn new(seed: u64, mutant: Mutant, traced: bool) -> Self {
        let log = Log::default();
        let host = |_| Host {
            incarnation: 0,
            alive: false,
            shell: Shell::new(None),
            frozen_until: 0,
            fence_at: 0,
            cut_until: 0,
            half_cut: false,
            skew: 0,
            trusts_clock: true,
            doubted_until: 0,
            floor: Timestamp::ZERO,
            log: log.beside(),
            disk: Vec::new(),
            disk_away: false,
            seen: None,
        };
        let (succession, broadcasting) = (succession::dice(seed), broadcast::dice(seed));
        let mut world = Self {
            mutant,
            has_concurrency: seed % 5 >= 3,
            asks: seed % 5 > 2 || succession.is_some() || broadcasting.is_some(),
            dice: Dice::new(seed),
            switching: switching::dice(seed),
            setting: settings::dice(seed),
            deletes_settings: settings::are_deleted_twice(seed),
            succession,
            broadcasting,
            lagging: lagging::dice(seed),
            now: 0,
            queue: BTreeMap::new(),
            queued: 0,
            store: Store::new(),
            backup: None,
            cluster: 1,
            restores: 0,
            restored_at: Timestamp::ZERO,
            no_space_until: 0,
            hosts: (0..WORKERS).map(host).collect(),
            log,
            checks: Invariants::default(),
            trouble: 0,
            trace: traced.then(Vec::new),
            happened: BTreeSet::new(),
            well: false,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        for name in job_names() {
            self.save(&name);
        }
        self.put_dependents();
        self.put_broadcast();
        self.trouble = if self.dice.percent(30) { 0 } else { self.dice.between(1, 25) };
        for worker in 0..WORKERS {
            self.hosts[worker].skew = if self.dice.percent(60) {
                self.dice.between(-150, 150)
            } else {
                self.dice.between(-900, 900)
            };
            let at = self.dice.between(0, 300);
            self.push(at, Item::Starts(worker));
        }
        self.draw_faults();
        self.push(HEALED_MS, Item::Heal);
    }

    pub(super) fn push(&mut self, at: i64, item: Item) {
        self.queued += 1;
        self.queue.insert((at.max(self.now), self.queued), item);
    }

    /// Something for the process that a worker is now.
    pub(super) fn push_to(&mut self, at: i64, worker: usize, what: What) {
        let to = (worker, self.hosts[worker].incarnation);
        self.push(at, Item::To(to, what));
    }

    pub(super) fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>6} {}", self.now, line()));
        }
    }

    pub(super) fn faulty(&self) -> bool {
        self.now < HEALED_MS
    }

    /// As a worker's wall clock has it.
    pub(super) fn time_of(&self, worker: usize) -> Timestamp {
        self.time().plus_ms(self.hosts[worker].skew)
    }

    pub(super) fn time(&self) -> Timestamp {
        Timestamp::from_ms(START_MS + self.now)
    }

    /// Runs to the end, or to the first violation.
    pub(super) fn run(&mut self) {
        for _ in 0..ITEMS_MAX {
            if !self.checks.violations.is_empty() {
                return;
            }
            let woken = (0..WORKERS).filter_map(|worker| Some((self.wakes_at(worker)?, worker))).min();
            let queued = self.queue.first_key_value().map(|((at, _), _)| *at);
            let next = woken.map(|(at, _)| at).into_iter().chain(queued).min().unwrap_or(END_MS);
            if !self.well && next >= WELL_MS {
                self.be_well();
                continue;
            }
            if next >= END_MS {
                return self.check_end();
            }
            self.now = self.now.max(next);
            self.checks.now = self.now;
            match woken {
                Some((at, worker)) if queued.is_none_or(|queued| at < queued) => {
                    self.feed(worker, Event::Woke);
                }
                _ => {
                    let (_, item) = self.queue.pop_first().unwrap();
                    self.happen(item);
                }
            }
        }
        self.checks.violated("goes on for ever");
    }

    fn wakes_at(&self, worker: usize) -> Option<i64> {
        let host = &self.hosts[worker];
        let at = host.shell.scheduler.wake_at().filter(|_| host.alive)?;
        Some((at.ms() - START_MS - host.skew).max(host.frozen_until))
    }

    fn happen(&mut self, item: Item) {
        match item {
            Item::Arrive { from, call, request, knows, back_in } => {
                self.arrive(from, call, &request, knows, back_in);
            }
            Item::To(to, what) => self.happen_to(to, what),
            Item::Starts(worker) => self.start_worker(worker),
            Item::LeaseDue(lease) => {
                if self.store.lease_ends_at(lease).is_some_and(|at| at <= self.now) {
                    self.end_lease(lease);
                }
            }
            Item::Fault(fault, worker) => self.fault(fault, worker),
            Item::Recreated(name) => self.recreated(&name),
            Item::DependentBack(name) => self.put_dependent(&name),
            Item::BroadcastBack => self.put_broadcast(),
            Item::SwitchedOn(name, by_hand) => self.put_switched(&name, true, by_hand),
            Item::Seed(step) => self.seed(step),
            Item::Heal => self.heal(),
        }
    }

    fn happen_to(&mut self, to: Incarnation, what: What) {
        let (worker, incarnation) = to;
        let host = &self.hosts[worker];
        if host.incarnation != incarnation || !host.alive {
            return;
        }
        match what {
            // Whether or not its worker sees it at once.
            What::ProcessEnds(run_id, status) => return self.process_ends(worker, &run_id, status),
            What::FenceDue => return self.fence_due(worker),
            _ => {}
        }
        if self.now < host.frozen_until {
            let thaws = host.frozen_until;
            return self.push(thaws, Item::To(to, what));
        }
        match what {
            What::Answer { call, unanswered: why, .. } if self.now < host.cut_until => {
                let timeout = self.now + self.dice.between(300, 2000);
                self.push(timeout, Item::To(to, What::TimesOut { call, why }));
            }
            What::Answer { call, answer, cluster, .. } => {
                self.hosts[worker].shell.line.reached(cluster);
                self.answered(worker, call, answer);
            }
            What::TimesOut { call, why } => self.answered(worker, call, Err(why)),
            What::Tell(era, event) => self.tell(worker, era, event),
            What::News(watched) => self.news(worker, watched),
            What::Do(era, job) => {
                self.spawn(worker, era, job);
            }
            What::Claimed(era, ticket, answers) => self.claimed(worker, era, ticket, answers),
            What::Seek(era) => self.seek_again(worker, era),
            What::Heartbeat => self.heartbeat(worker),
            What::Sweep => self.sweep(worker),
            What::Write => self.write_spool(worker),
            What::Flush => self.flush(worker),
            What::LosesSession => self.lose_session(worker),
            What::Leaves => self.stop(worker),
            What::ProcessEnds(..) | What::FenceDue => unreachable!("is done above"),
        }
    }

    // --- the lines ----------------------------------------------------------------------------------------------------

    /// A process sends a request: the ways in which that can go.
    pub(super) fn send(&mut self, worker: usize, call: CallId, request: Request, knows: u64) {
        let from = (worker, self.hosts[worker].incarnation);
        let unanswered = request.unanswered();
        let host = &self.hosts[worker];
        let (cut, half_cut) = (self.now < host.cut_until, host.half_cut);
        let there = self.now + self.dice.between(1, 15);
        let timeout = self.now + self.dice.between(300, 2500);
        let trouble = self.faulty() && (cut || self.dice.percent(self.trouble));
        if !trouble {
            let back_in = Some(self.dice.between(1, 15));
            return self.push(there, Item::Arrive { from, call, request, knows, back_in });
        }
        let times_out = Item::To(from, What::TimesOut { call, why: unanswered });
        match self.dice.below(5) {
            // It arrives in time, the answer does not.
            0 | 1 if !cut || half_cut => {
                self.push(timeout, times_out);
                self.push(there, Item::Arrive { from, call, request, knows, back_in: None });
            }
            // It arrives after its sender has stopped to wait.
            2 if !cut || half_cut => {
                let late = timeout + self.dice.below(3000);
                self.push(timeout, times_out);
                self.push(late, Item::Arrive { from, call, request, knows, back_in: None });
            }
            // Slowly.
            3 if !cut => {
                let (there, back_in) = (there + self.dice.below(500), Some(self.dice.below(800)));
                self.push(there, Item::Arrive { from, call, request, knows, back_in });
            }
            4 if !cut => {
                let why = Error::Unavailable("refused at once".to_owned());
                self.push(there, Item::To(from, What::TimesOut { call, why }));
            }
            // It never arrives.
            _ => self.push(timeout, times_out),
        }
    }

    fn arrive(
        &mut self,
        from: Incarnation,
        call: CallId,
        request: &Request,
        knows: u64,
        back_in: Option<i64>,
    ) {
        let unanswered = request.unanswered();
        let by = Writer { worker: from.0, noticed: knows == self.restores };
        let answer = self.apply(by, request);
        self.note(|| format!("w{} call {call}: {request:?} -> {answer:?}", from.0));
        if let Some(back_in) = back_in {
            let answer = What::Answer { call, answer, unanswered, cluster: self.cluster };
            self.push(self.now + back_in, Item::To(from, answer));
        }
    }

    fn apply(&mut self, by: Writer, request: &Request) -> Result<Reply, Error> {
        // etcd does the write that crosses its quota, and answers it as it answers those that it refuses.
        let full = self.now < self.no_space_until && request.takes_space();
        let no_space = || Err(Error::Full("etcdserver: mvcc: database space exceeded".to_owned()));
        if full && !(matches!(request, Request::Txn(_)) && self.dice.percent(20)) {
            return no_space();
        }
        let before = self.store.revision();
        let reply = match request {
            Request::Txn(txn) if self.mutant != Mutant::None => {
                Request::Txn(self.mutant.send(txn.clone())).apply(&mut self.store, self.now)
            }
            Request::Range(range) if range.serializable => self.read_of_a_member(range).map(Reply::Range),
            request => request.apply(&mut self.store, self.now),
        };
        match (request, &reply) {
            (Request::Grant(_), Ok(Reply::Lease(lease))) | (Request::KeepAlive(lease), Ok(_)) => {
                self.await_end_of(*lease);
            }
            (Request::Revoke(lease), Ok(_)) => {
                self.checks.ended_early.insert(common::domain::worker::Sid::of(*lease));
            }
            _ => {}
        }
        self.wrote(before, Some(by));
        if full { no_space() } else { reply }
    }

    /// The store ends leases when their time is over, or somewhat later.
    pub(super) fn await_end_of(&mut self, lease: LeaseId) {
        let late = self.dice.between(0, if self.faulty() { 1500 } else { 50 });
        if let Some(at) = self.store.lease_ends_at(lease) {
            self.push(at + late, Item::LeaseDue(lease));
        }
    }

    pub(super) fn end_lease(&mut self, lease: LeaseId) {
        let before = self.store.revision();
        if self.store.revoke(lease).is_ok() {
            self.note(|| format!("lease {} ends", lease.0));
            self.wrote(before, None);
        }
    }

    /// A write by other hands.
    pub(super) fn write(&mut self, then: Vec<Op>) {
        let before = self.store.revision();
        self.note(|| format!("by other hands: {then:?}"));
        self.store.txn(&Txn { then, ..Txn::default() }).unwrap();
        self.wrote(before, None);
    }

    /// The store was written after revision `before`: looked at, and told to whoever watches.
    pub(super) fn wrote(&mut self, before: Revision, by: Option<Writer>) {
        if self.store.revision() == before {
            return;
        }
        let floors: Vec<Timestamp> = self.hosts.iter().map(|host| host.floor).collect();
        self.checks.written(&self.store, before + 1, by, &floors);
        if self.restores == 0 {
            self.checks.check_retries(&self.store, before + 1, &self.log.stored.lock().unwrap());
        }
        let mut touched: Vec<Watched> = Vec::new();
        for change in self.store.changes_since(before + 1) {
            touched.extend(Watched::ALL.iter().filter(|watched| watched.span().contains(&change.pair.key)));
        }
        touched.sort_unstable();
        touched.dedup();
        for worker in 0..WORKERS {
            for watched in &touched {
                self.announce(worker, *watched);
            }
        }
    }

    /// A watch brings its news in order, each worker's at its own pace.
    pub(super) fn announce(&mut self, worker: usize, watched: Watched) {
        let host = &mut self.hosts[worker];
        if !host.alive || host.shell.watch(watched).announced {
            return;
        }
        host.shell.watch(watched).announced = true;
        let slow = if self.faulty() && self.dice.percent(15) { 1500 } else { 30 };
        let at = self.now + self.dice.between(1, slow);
        self.push_to(at, worker, What::News(watched));
    }

    /// What its workers follow.
    pub(super) fn watched(&self) -> impl Iterator<Item = Watched> + use<> {
        let (asks, sets) = (self.asks, self.setting.is_some());
        Watched::ALL.into_iter().filter(move |watched| match watched {
            Watched::Requests => asks,
            Watched::Settings => sets,
            _ => true,
        })
    }

    /// A pause between two steps of a shell, in ms: mostly none.
    pub(super) fn pause(&mut self) -> i64 {
        if self.faulty() && self.dice.percent(4) { self.dice.below(PAUSE_MS_MAX) } else { 0 }
    }

    // --- the end ------------------------------------------------------------------------------------------------------

    fn be_well(&mut self) {
        self.well = true;
        self.now = WELL_MS;
        self.checks.now = WELL_MS;
        let all = job_names().into_iter().chain(self.broadcasting.is_some().then(broadcast::name));
        self.checks.check_nothing_is_missed(&self.store, &all.collect::<Vec<_>>(), self.time());
        self.checks.check_requests_are_taken(&self.store, self.time());
        for worker in 0..WORKERS {
            if !self.hosts[worker].alive {
                self.checks.violated(format!("w{worker} is not there"));
            }
            self.drain(worker);
        }
    }

    pub(super) fn is_well(&self) -> bool {
        self.well
    }

    fn check_end(&mut self) {
        self.now = END_MS;
        for worker in 0..WORKERS {
            if self.hosts[worker].alive {
                self.checks.violated(format!("w{worker} does not finish draining"));
            }
        }
        let leases: Vec<LeaseId> = self.store.leases().map(|(lease, _)| lease).collect();
        for lease in leases {
            self.end_lease(lease);
        }
        // Nobody is left to sweep: somebody who comes later does.
        let kv = super::network::Direct::new(std::mem::replace(&mut self.store, Store::new()));
        let (at, none) = (At(self.time()), BTreeSet::new());
        let swept = sweep::sweep(&kv, &self.log, &at, &none, at.0, None);
        let swept = futures::FutureExt::now_or_never(swept).expect("it waits for nobody");
        swept.unwrap();
        self.store = kv.into_store();
        let stored = std::sync::Arc::clone(&self.log.stored);
        let there: Vec<Incarnation> =
            self.hosts.iter().enumerate().map(|(worker, host)| (worker, host.incarnation)).collect();
        self.checks.check_records(&self.store, &stored.lock().unwrap(), |by| there.contains(&by));
    }

    /// A worker that starts just after a restore and cannot know of it may do what was done before: that is not promised (ARCHITECTURE, P16),
    /// until whoever has noticed has written it down.
    pub(super) fn may_start(&self, worker: usize) -> bool {
        let noted = claims::parse_base(self.store.get(keys::BASE)).restored;
        self.restores == 0
            || self.notices_by_what_it_has_seen(worker)
            || noted.is_some_and(|noted| noted >= self.restored_at)
    }

    /// Where nobody is left who could notice, somebody writes it down by hand before a worker starts.
    pub(super) fn note_restore_by_hand(&mut self) {
        let notices = |worker: usize| self.hosts[worker].alive || self.notices_by_what_it_has_seen(worker);
        if !self.faulty() && !(0..WORKERS).any(notices) {
            let base = claims::parse_base(self.store.get(keys::BASE)).restored(self.time());
            self.write(vec![Op::put(keys::BASE, base.encode())]);
        }
    }

    /// A new process of this worker finds another store than its last one saw, whatever comes first.
    pub(super) fn notices_by_what_it_has_seen(&self, worker: usize) -> bool {
        let seen = self.hosts[worker].seen;
        seen.is_some_and(|(seen, restores)| restores < self.restores && seen.cluster != self.cluster)
    }
}
