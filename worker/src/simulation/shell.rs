//! What surrounds the scheduler in one process: the driver's ways, over real transactions, session, sweep and witness. Whatever waits for the
//! store is a task of its own, so that anything can happen between any two of its steps.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use common::clock::Timestamp;
use common::domain::job::JobName;
use common::domain::kill::Killed;
use common::domain::mark::Mark;
use common::domain::record::{Ending, Status};
use common::domain::run::{OpenRun, RunId};
use common::domain::settings::FleetSettings;
use common::domain::worker::{Identity, Sid};
use common::keys;
use common::kv::{self, Kv, Pair, Range, Revision, Span, WatchStream};
use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _};
use tokio::sync::watch;

use super::log::At;
use super::mutants::{self, Mutant};
use super::network::{CallId, Line, Reply};
use super::world::{Host, What, World};
use crate::batches::{Answered, Batch, Batches};
use crate::claims::{ADOPTIONS_IN_FLIGHT, CLAIMS_IN_FLIGHT, HeldLock, RELEASES_IN_FLIGHT};
use crate::fleet_settings;
use crate::follow::News;
use crate::scheduler::{
    Action, AdoptAnswer, Adoption, Claim, ClaimAnswer, Close, CloseAnswer, Event, Holder, LEAD_MAX_MS,
    LEAD_MIN_MS, RequestClaim, Scheduler, Slots,
};
use crate::seen::Seen;
use crate::session::{self, Session};
use crate::waiting::Entry;
use crate::watches::{self, Registration};
use crate::witness::{Era, WentBack, Witness};
use crate::{claims, sweep};

/// Life of a lease, as it is by default.
const TTL: Duration = Duration::from_secs(10);
pub(super) const TTL_MS: i64 = 10_000;
/// The lease is renewed three times within its life.
const HEARTBEAT_MS: i64 = TTL_MS / 3;
/// Sweeps come by themselves, sooner than in the driver.
const SWEEP_MS: i64 = 12_000;
/// So many runs that have ended may wait in the store for their records: fewer than do while those are away (design P12).
const UNSETTLED_MAX: usize = 2;
/// Room for so many runs: less than there are jobs.
const RUNS_MAX: usize = 2;

pub(super) type TaskId = u64;

/// What a process follows in the store.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Watched {
    Jobs,
    Workers,
    Sessions,
    Kills,
    Pause,
    Base,
    Requests,
    Settings,
}

impl Watched {
    pub(super) const ALL: [Self; 8] = [
        Self::Jobs,
        Self::Workers,
        Self::Sessions,
        Self::Kills,
        Self::Pause,
        Self::Base,
        Self::Requests,
        Self::Settings,
    ];

    pub(super) fn span(self) -> Span {
        match self {
            Self::Jobs => Span::prefix(keys::JOBS),
            Self::Workers => Span::prefix(keys::WORKERS),
            Self::Sessions => Span::prefix(keys::SESSIONS),
            Self::Kills => Span::prefix(keys::KILLER),
            Self::Pause => Span::key(keys::PAUSED),
            Self::Base => Span::key(keys::BASE),
            Self::Settings => Span::key(keys::SETTINGS),
            Self::Requests => Span::prefix(keys::REQUESTS),
        }
    }
}

/// How far a process follows a range.
#[derive(Default)]
pub(super) struct Watch {
    /// Opened after the list; its number on the line.
    stream: Option<(WatchStream, u64)>,
    /// Everything before this revision was told.
    next: Revision,
    /// What was told last is not dealt with yet.
    busy: bool,
    /// It is on the world's list already.
    pub(super) announced: bool,
}

/// What is done in the background.
pub(super) enum Job {
    /// Since when its lease is counted.
    Establish {
        since: i64,
    },
    KeepAlive {
        sid: Sid,
        sent: i64,
    },
    /// A read that shows whether the store went back.
    AskRevision(Sid),
    Claims(Batch<Claim>),
    Adoptions(Batch<Adoption>),
    Releases(Batch<HeldLock>),
    /// The lock of a run may be freed now.
    Release(HeldLock),
    ReadMarks {
        slots: Slots,
        serializable: bool,
    },
    Retire {
        job: JobName,
        revision: Revision,
        mark: Mark,
    },
    Move {
        open: Box<OpenRun>,
        from: (Sid, u64),
        to: (Sid, u64),
        rescue: bool,
    },
    Replace {
        claim: Box<Claim>,
        holders: Vec<Holder>,
        killed: Killed,
    },
    ClaimRequest(Box<RequestClaim>),
    Close(Box<Close>),
    Settle(Vec<(Sid, u64)>),
    /// Settles before the records are stored.
    Thin(Vec<(Sid, u64)>),
    Sweep,
    NoteRestore {
        known: Option<Timestamp>,
        floor: Timestamp,
    },
    List(Watched),
    Pause(Arc<News>),
    Settings,
    Deregister,
    /// Ends a session that may have come back with a backup.
    Revoke(Sid),
    /// The last of a process that has drained.
    Leave(Sid),
}

/// How that went.
enum Done {
    Event(Event),
    Events(Vec<Event>),
    Claimed(Vec<ClaimAnswer>),
    Adopted(Vec<AdoptAnswer>),
    Freed,
    /// No answer: to be sent again.
    Again,
    Session(Result<Session, kv::Error>),
    KeptAlive(Result<Duration, kv::Error>),
    Listed(Result<(Vec<Pair>, Revision), kv::Error>),
    Settled(bool),
    Swept(bool),
    Nothing,
}

struct Task {
    /// Of the store, when it began.
    era: Era,
    job: Job,
    future: BoxFuture<'static, Done>,
}

/// A session that the process believes in.
struct Own {
    session: Session,
    /// When the last good renewal was sent.
    renewed: i64,
}

/// One process of a worker.
pub(super) struct Shell {
    pub(super) scheduler: Scheduler,
    pub(super) line: Line,
    kv: Arc<dyn Kv>,
    witness: Arc<Witness>,
    news: watch::Receiver<WentBack>,
    pub(super) era: Era,
    /// How often the store had gone back before this process began.
    restores_before: u64,
    tasks: BTreeMap<TaskId, Task>,
    tasks_begun: TaskId,
    callers: BTreeMap<CallId, TaskId>,
    claims: Batches<Claim>,
    adoptions: Batches<Adoption>,
    releases: Batches<HeldLock>,
    session: Option<Own>,
    seeking: Option<TaskId>,
    watches: BTreeMap<Watched, Watch>,
    registered: BTreeMap<String, Registration>,
    /// Records that are not on disk.
    sink: Vec<Entry>,
    writing: bool,
    unsettled: Vec<(Sid, u64)>,
    flushing: bool,
    /// So many of those on disk are stored.
    stored: usize,
    sweeping: bool,
    sweep_asked: bool,
    draining: bool,
    leaving: bool,
    /// It comes back after it has left.
    pub(super) comes_back: bool,
}

/// Clocks here are near enough to each other: nobody stands aside.
const OWNS: session::Standing = session::Standing { aside: false, asks: false };

impl Shell {
    /// `before`: what an earlier process of this worker has seen of the store.
    pub(super) fn new(before: Option<Seen>) -> Self {
        let line = Line::default();
        let witness = Arc::new(Witness::new(Arc::new(line.clone()), before));
        Self {
            scheduler: Scheduler::new(RUNS_MAX),
            line,
            kv: Arc::clone(&witness) as Arc<dyn Kv>,
            news: witness.news(),
            witness,
            era: 0,
            restores_before: 0,
            tasks: BTreeMap::new(),
            tasks_begun: 0,
            callers: BTreeMap::new(),
            claims: Batches::new(CLAIMS_IN_FLIGHT),
            adoptions: Batches::new(ADOPTIONS_IN_FLIGHT),
            releases: Batches::new(RELEASES_IN_FLIGHT),
            session: None,
            seeking: None,
            watches: Watched::ALL.into_iter().map(|watched| (watched, Watch::default())).collect(),
            registered: BTreeMap::new(),
            sink: Vec::new(),
            writing: false,
            unsettled: Vec::new(),
            flushing: false,
            stored: 0,
            sweeping: false,
            sweep_asked: false,
            draining: false,
            leaving: false,
            comes_back: false,
        }
    }

    pub(super) fn watch(&mut self, watched: Watched) -> &mut Watch {
        self.watches.entry(watched).or_default()
    }

    /// The session that it believes in.
    pub(super) fn sid(&self) -> Option<Sid> {
        self.session.as_ref().map(|own| own.session.sid)
    }
}

fn claim_answered(claim: Claim, answer: ClaimAnswer) -> Event {
    Event::ClaimAnswered(claim.open.run_id, claim.mark.plan_time, claim.open.job, answer)
}

fn identity(worker: usize) -> Identity {
    Identity {
        instance: format!("i{worker}"),
        host: format!("h{worker}"),
        address: String::new(),
        labels: BTreeMap::new(),
        max_runs: RUNS_MAX,
        started_at: Timestamp::ZERO,
    }
}

impl World {
    // --- a process begins and ends --------------------------------------------------------------------------------------

    pub(super) fn start_worker(&mut self, worker: usize) {
        if self.hosts[worker].alive {
            return;
        }
        if !self.may_start(worker) {
            self.note_restore_by_hand();
            let again = self.now + 500;
            return self.push(again, super::world::Item::Starts(worker));
        }
        self.note(|| format!("w{worker} starts"));
        let (now, notices) = (self.now, self.notices_by_what_it_has_seen(worker));
        let host = &mut self.hosts[worker];
        host.incarnation += 1;
        (host.alive, host.frozen_until, host.floor) = (true, now, Timestamp::ZERO);
        host.trusts_clock = true; // until the first step
        // It may have lost what was seen; but what would show for certain that the store went back is there, or the start would wait.
        let before = host.seen.filter(|(_, restores)| notices || *restores == self.restores);
        host.shell = Shell::new(before.map(|(seen, _)| seen));
        host.shell.restores_before = before.map_or(self.restores, |(_, restores)| restores);
        self.knows_settings(worker);
        for watched in self.watched() {
            self.spawn(worker, 0, Job::List(watched));
        }
        self.seek_session(worker);
        self.ask_sweep(worker);
        self.push_to(now + HEARTBEAT_MS, worker, What::Heartbeat);
        self.push_to(now + SWEEP_MS, worker, What::Sweep);
        if !self.hosts[worker].disk.is_empty() {
            self.flush_soon(worker);
        }
    }

    /// The process is gone, and its commands with it.
    pub(super) fn stop(&mut self, worker: usize) {
        self.note(|| format!("w{worker} is gone"));
        let comes_back = self.hosts[worker].shell.comes_back;
        let host = &mut self.hosts[worker];
        host.alive = false;
        host.shell = Shell::new(None);
        if self.mutant == Mutant::NoSync {
            host.disk.clear();
        }
        self.checks.processes.retain(|_, process| process.worker != worker);
        if comes_back {
            let back = self.now + self.dice.between(50, 3000);
            self.push(back, super::world::Item::Starts(worker));
        }
    }

    pub(super) fn drain(&mut self, worker: usize) {
        let host = &mut self.hosts[worker];
        if !host.alive {
            return;
        }
        if self.is_well() {
            self.hosts[worker].shell.comes_back = false;
        }
        if std::mem::replace(&mut self.hosts[worker].shell.draining, true) {
            return;
        }
        self.note(|| format!("w{worker} drains"));
        self.feed(worker, Event::DrainRequested);
        let era = self.hosts[worker].shell.era;
        self.spawn(worker, era, Job::Deregister);
        self.leave_if_done(worker);
    }

    fn leave_if_done(&mut self, worker: usize) {
        let Host { shell, disk, .. } = &mut self.hosts[worker];
        let is_stored = shell.sink.is_empty() && disk.is_empty() && !shell.flushing;
        let done = shell.draining && shell.scheduler.is_idle() && is_stored;
        if !done || std::mem::replace(&mut shell.leaving, true) {
            return;
        }
        let Some(sid) = shell.sid() else {
            let now = self.now;
            return self.push_to(now, worker, What::Leaves);
        };
        let era = shell.era;
        if self.is_up_to_date(worker) {
            self.checks.leaves(&self.store, sid, &self.hosts[worker].shell.unsettled);
        }
        self.spawn(worker, era, Job::Leave(sid));
    }

    // --- tasks --------------------------------------------------------------------------------------------------------

    pub(super) fn spawn(&mut self, worker: usize, era: Era, job: Job) -> TaskId {
        let future = self.begin_task(worker, &job);
        let shell = &mut self.hosts[worker].shell;
        shell.tasks_begun += 1;
        let id = shell.tasks_begun;
        shell.tasks.insert(id, Task { era, job, future });
        self.poll(worker, id);
        id
    }

    fn begin_task(&mut self, worker: usize, job: &Job) -> BoxFuture<'static, Done> {
        let kv = Arc::clone(&self.hosts[worker].shell.kv);
        let clock = At(self.time_of(worker));
        let mutant = self.mutant;
        match job {
            Job::Establish { .. } => async move {
                let identity = identity(worker);
                let id = format!("w{worker}");
                Done::Session(session::try_establish(kv.as_ref(), &clock, &identity, &id, TTL, OWNS).await)
            }
            .boxed(),
            Job::KeepAlive { sid, .. } => {
                let lease = sid.lease();
                async move { Done::KeptAlive(kv.keep_alive(lease).await) }.boxed()
            }
            Job::AskRevision(sid) => {
                let key = keys::session(*sid);
                async move {
                    let _its_revision = kv.range(Range::key(key)).await;
                    Done::Nothing
                }
                .boxed()
            }
            Job::Claims(batch) => {
                let mut claims = batch.members.clone();
                if mutant == Mutant::JitterPerFire {
                    let by = self.dice.between(0, 400);
                    claims = claims.into_iter().map(|claim| mutants::jittered(claim, by)).collect();
                }
                async move {
                    Done::Claimed(if mutant == Mutant::ReadThenDecide {
                        mutants::read_then_decide(kv.as_ref(), &claims).await
                    } else {
                        claims::claim_all(kv.as_ref(), &claims).await
                    })
                }
                .boxed()
            }
            Job::Adoptions(batch) => {
                let adoptions = batch.members.clone();
                async move { Done::Adopted(claims::adopt_all(kv.as_ref(), &adoptions).await) }.boxed()
            }
            Job::Releases(batch) => {
                let locks: Vec<HeldLock> = batch.members.clone();
                async move {
                    match claims::release_all(kv.as_ref(), &locks).await {
                        Ok(()) | Err(kv::Error::LeaseGone) => Done::Freed,
                        Err(_away) => Done::Again,
                    }
                }
                .boxed()
            }
            Job::Release(_) => std::future::ready(Done::Nothing).boxed(),
            Job::ReadMarks { slots, serializable } => {
                let (slots, serializable) = (slots.clone(), *serializable);
                async move {
                    let mut events = Vec::new();
                    let tell = |(some, marks)| {
                        let slots = Slots::Some(some);
                        events.push(Event::MarksRead { slots, marks, asked_at: clock.0 });
                        std::future::ready(())
                    };
                    if claims::read_marks(kv.as_ref(), &slots, serializable, tell).await.is_err() {
                        events.push(Event::MarksUnread(slots));
                    }
                    Done::Events(events)
                }
                .boxed()
            }
            Job::Retire { job, revision, mark } => {
                let (job, revision, mark) = (job.clone(), *revision, mark.clone());
                async move {
                    let _tried_again_within_the_hour =
                        claims::retire_mark(kv.as_ref(), &job, revision, &mark).await;
                    Done::Nothing
                }
                .boxed()
            }
            Job::Move { open, from, to, rescue } => {
                let (open, from, to, rescue) = (open.clone(), *from, *to, *rescue);
                async move {
                    match claims::take_over(kv.as_ref(), &open, from, to, rescue).await {
                        Ok(answer) => Done::Event(Event::MoveAnswered(open.run_id, to.0, to.1, answer)),
                        Err(kv::Error::LeaseGone) => Done::Nothing,
                        Err(_away) => Done::Again,
                    }
                }
                .boxed()
            }
            Job::Replace { claim, holders, killed } => {
                let (claim, holders, killed) = (claim.clone(), holders.clone(), killed.clone());
                async move {
                    let _asked_again = claims::replace(kv.as_ref(), &claim, &holders, killed).await;
                    Done::Nothing
                }
                .boxed()
            }
            Job::ClaimRequest(claim) => {
                let claim = claim.clone();
                async move {
                    let answer = claims::claim_request(kv.as_ref(), &claim).await;
                    Done::Event(Event::RequestAnswered(claim, answer))
                }
                .boxed()
            }
            Job::Close(close) => {
                let close = close.clone();
                async move {
                    match claims::close_run(kv.as_ref(), &close).await {
                        Ok(answer) => Done::Event(Event::Closed(close.open.run_id, answer)),
                        Err(_away) => Done::Again,
                    }
                }
                .boxed()
            }
            Job::Settle(keys) => {
                let keys = keys.clone();
                async move { Done::Settled(claims::settle(kv.as_ref(), &keys).await.is_ok()) }.boxed()
            }
            Job::Thin(keys) => {
                let keys = keys.clone();
                async move {
                    match claims::settle(kv.as_ref(), &keys).await {
                        Ok(()) => Done::Nothing,
                        Err(_away) => Done::Again,
                    }
                }
                .boxed()
            }
            Job::Sweep => {
                let shell = &self.hosts[worker].shell;
                let spared: BTreeSet<Sid> = shell.scheduler.sids().into_iter().chain(shell.sid()).collect();
                let (log, floor) = (self.hosts[worker].log.clone(), shell.scheduler.floor());
                async move {
                    let (kv, log) = (kv.as_ref(), &log);
                    let wrongly = [Mutant::SweepsTooEarly, Mutant::SweepsSessionsFirst].contains(&mutant);
                    let swept = if wrongly {
                        mutants::sweep_wrongly(mutant, kv, log, &clock, &spared).await
                    } else {
                        // All at once: what holds then, holds in turns.
                        sweep::sweep(kv, log, &clock, &spared, floor, None).await
                    };
                    Done::Swept(swept.is_ok())
                }
                .boxed()
            }
            Job::NoteRestore { known, floor } => {
                let (known, floor) = (*known, *floor);
                async move {
                    match claims::note_restore(kv.as_ref(), known, floor).await {
                        Ok(()) => Done::Nothing,
                        Err(_away) => Done::Again,
                    }
                }
                .boxed()
            }
            Job::List(watched) => {
                let range = Range::all(watched.span());
                async move { Done::Listed(claims::read_pages(kv.as_ref(), range).await) }.boxed()
            }
            Job::Pause(news) => {
                let news = Arc::clone(news);
                async move { Done::Events(watches::pause_events(kv.as_ref(), &news).await) }.boxed()
            }
            Job::Settings => async move {
                let read = if mutant == Mutant::LeavesSettingsAway {
                    fleet_settings::read_as_it_is(kv.as_ref()).await
                } else {
                    fleet_settings::read(kv.as_ref()).await
                };
                read.map_or(Done::Again, |event| Done::Events(vec![event]))
            }
            .boxed(),
            Job::Deregister => {
                let session = self.hosts[worker].shell.session.as_ref().map(|own| own.session.clone());
                async move {
                    if let Some(session) = session {
                        let _goes_with_the_session = session::deregister(kv.as_ref(), &session).await;
                    }
                    Done::Nothing
                }
                .boxed()
            }
            Job::Revoke(sid) | Job::Leave(sid) => {
                let lease = sid.lease();
                async move {
                    let _gone_or_expires = kv.revoke(lease).await;
                    Done::Nothing
                }
                .boxed()
            }
        }
    }

    pub(super) fn answered(&mut self, worker: usize, call: CallId, answer: Result<Reply, kv::Error>) {
        let shell = &mut self.hosts[worker].shell;
        shell.line.answer(call, answer);
        if let Some(task) = shell.callers.remove(&call) {
            self.poll(worker, task);
        }
    }

    fn poll(&mut self, worker: usize, id: TaskId) {
        let Some(mut task) = self.hosts[worker].shell.tasks.remove(&id) else { return };
        let mut context = Context::from_waker(futures::task::noop_waker_ref());
        let polled = task.future.as_mut().poll(&mut context);
        for (call, request) in self.hosts[worker].shell.line.sent() {
            let shell = &mut self.hosts[worker].shell;
            shell.callers.insert(call, id);
            let knows = shell.restores_before + task.era;
            self.send(worker, call, request, knows);
        }
        match polled {
            Poll::Pending => {
                self.hosts[worker].shell.tasks.insert(id, task);
                self.look_whether_it_went_back(worker);
            }
            Poll::Ready(done) => {
                self.look_whether_it_went_back(worker);
                self.done(worker, task.era, task.job, done);
            }
        }
    }

    fn done(&mut self, worker: usize, era: Era, job: Job, done: Done) {
        let is_present = era == self.hosts[worker].shell.era;
        match (job, done) {
            (Job::Claims(batch), Done::Claimed(answers)) => {
                let pause = self.pause();
                let (at, answers) = (self.now + pause, batch.members.iter().cloned().zip(answers).collect());
                let ticket = batch.ticket();
                if pause > 0 {
                    return self.push_to(at, worker, What::Claimed(era, ticket, answers));
                }
                self.claimed(worker, era, ticket, answers);
            }
            (Job::Adoptions(batch), Done::Adopted(answers)) if is_present => {
                self.hosts[worker].shell.adoptions.answered(batch.ticket());
                for (adoption, answer) in batch.members.into_iter().zip(answers) {
                    self.feed(worker, Event::AdoptAnswered(adoption.job, answer));
                }
            }
            (Job::Releases(batch), Done::Freed) if is_present => {
                self.hosts[worker].shell.releases.answered(batch.ticket());
                for release in batch.members {
                    self.feed(worker, Event::Released(release.holder.run_id));
                }
            }
            (Job::Release(release), _) => {
                self.hosts[worker].shell.releases.put(release);
                self.send_batches(worker);
            }
            (Job::ReadMarks { .. }, Done::Events(events)) => {
                for event in events {
                    self.tell(worker, era, event);
                }
            }
            (_, Done::Event(event)) => self.tell(worker, era, event),
            (job @ (Job::Pause(_) | Job::Settings), Done::Events(events)) if is_present => {
                for event in events {
                    self.feed(worker, event);
                }
                let watched = if matches!(job, Job::Settings) { Watched::Settings } else { Watched::Pause };
                self.hosts[worker].shell.watch(watched).busy = false;
                self.announce(worker, watched);
            }
            (job, Done::Again) => {
                let again = self.now + self.dice.between(50, 1000);
                self.push_to(again, worker, What::Do(era, job));
            }
            (Job::Establish { since }, Done::Session(established)) if is_present => {
                self.session_sought(worker, established, since);
            }
            (Job::KeepAlive { sid, sent }, Done::KeptAlive(kept)) => {
                if is_present && self.hosts[worker].shell.sid() == Some(sid) {
                    match kept {
                        Ok(_ttl) => {
                            if let Some(own) = &mut self.hosts[worker].shell.session {
                                own.renewed = sent;
                            }
                            self.lease_renewed(worker, sent);
                        }
                        Err(kv::Error::LeaseGone) => self.lose_session(worker),
                        Err(_away) => {}
                    }
                }
                self.spawn(worker, era, Job::AskRevision(sid));
            }
            (Job::List(watched), Done::Listed(listed)) if is_present => self.listed(worker, watched, listed),
            (Job::Settle(keys), Done::Settled(settled)) => {
                let Host { shell, disk, .. } = &mut self.hosts[worker];
                if settled {
                    shell.unsettled.retain(|key| !keys.contains(key));
                }
                disk.drain(..std::mem::take(&mut shell.stored));
                shell.flushing = false;
                if !disk.is_empty() || !shell.unsettled.is_empty() {
                    self.flush_soon(worker);
                }
                self.leave_if_done(worker);
            }
            (Job::Sweep, Done::Swept(swept)) => {
                let shell = &mut self.hosts[worker].shell;
                shell.sweeping = false;
                let asked = std::mem::take(&mut shell.sweep_asked);
                let again = self.now + if swept { 0 } else { 5_000 };
                if asked || !swept {
                    self.push_to(again, worker, What::Sweep);
                }
            }
            (Job::Leave(_), _) => self.stop(worker),
            _ => {}
        }
    }

    // --- the store went back ------------------------------------------------------------------------------------------

    /// The worker has noticed whenever the store went back.
    pub(super) fn is_up_to_date(&self, worker: usize) -> bool {
        let shell = &self.hosts[worker].shell;
        shell.restores_before + shell.era == self.restores
    }

    fn look_whether_it_went_back(&mut self, worker: usize) {
        let shell = &mut self.hosts[worker].shell;
        let era = shell.news.borrow_and_update().era;
        if era == shell.era {
            return;
        }
        shell.era = era;
        self.note(|| format!("w{worker} notices that the store went back"));
        if self.hosts[worker].shell.restores_before + era > self.restores {
            return self.checks.violated(format!("w{worker} takes the store to have gone back"));
        }
        let now = self.time_of(worker);
        let shell = &mut self.hosts[worker].shell;
        shell.registered.clear();
        shell.claims = Batches::new(CLAIMS_IN_FLIGHT);
        shell.adoptions = Batches::new(ADOPTIONS_IN_FLIGHT);
        shell.releases = Batches::new(RELEASES_IN_FLIGHT);
        let session = shell.session.take();
        self.fence(worker);
        let shell = &mut self.hosts[worker].shell;
        for watch in shell.watches.values_mut() {
            *watch = Watch { announced: watch.announced, ..Watch::default() };
        }
        if self.mutant == Mutant::NoFloor {
            self.step(worker, Event::SessionLost);
        } else {
            self.hosts[worker].floor = now.plus_ms(crate::scheduler::CLAIMED_AHEAD_MAX_MS);
            self.step(worker, Event::StoreWentBack);
        }
        self.knows_settings(worker);
        for watched in self.watched() {
            self.spawn(worker, era, Job::List(watched));
        }
        if let Some(own) = session {
            self.spawn(worker, era, Job::Revoke(own.session.sid));
        }
        if !self.hosts[worker].shell.draining {
            self.seek_session(worker);
        }
    }

    /// Where settings never change, nobody watches them.
    fn knows_settings(&mut self, worker: usize) {
        if self.setting.is_none() {
            self.step(worker, Event::Settings(Some(FleetSettings::default()), 0));
        }
    }

    // --- the session --------------------------------------------------------------------------------------------------

    pub(super) fn seek_again(&mut self, worker: usize, era: Era) {
        let shell = &self.hosts[worker].shell;
        if era == shell.era && shell.seeking.is_none() && shell.session.is_none() {
            self.seek_session(worker);
        }
    }

    fn seek_session(&mut self, worker: usize) {
        let shell = &mut self.hosts[worker].shell;
        if let Some(earlier) = shell.seeking.take() {
            shell.tasks.remove(&earlier);
        }
        let (era, since) = (shell.era, self.now);
        let id = self.spawn(worker, era, Job::Establish { since });
        self.hosts[worker].shell.seeking = Some(id);
    }

    fn session_sought(&mut self, worker: usize, established: Result<Session, kv::Error>, since: i64) {
        let shell = &mut self.hosts[worker].shell;
        shell.seeking = None;
        let era = shell.era;
        let session = match established {
            Ok(session) => session,
            Err(_away) => {
                let again = self.now + self.dice.between(100, 2000);
                return self.push_to(again, worker, What::Seek(era));
            }
        };
        if shell.session.is_some() {
            return;
        }
        let (sid, id) = (session.sid, session.worker_id.clone());
        shell.session = Some(Own { session, renewed: since });
        self.lease_renewed(worker, since);
        // Told also of one that is over by now: as the driver does it, which finds that out the next time it turns.
        self.step(worker, Event::SessionGained(sid, id));
        self.end_overdue_session(worker);
        self.send_batches(worker);
        self.ask_sweep(worker);
        if self.hosts[worker].shell.draining {
            self.spawn(worker, era, Job::Deregister);
        }
    }

    pub(super) fn lose_session(&mut self, worker: usize) {
        let shell = &mut self.hosts[worker].shell;
        if shell.session.take().is_none() {
            return;
        }
        let draining = shell.draining;
        self.note(|| format!("w{worker} loses its session"));
        self.fence(worker);
        if self.mutant != Mutant::TrustsDeadSession {
            self.step(worker, Event::SessionLost);
        }
        let shell = &mut self.hosts[worker].shell;
        shell.claims.withdraw();
        shell.adoptions.withdraw();
        if !draining {
            self.seek_session(worker);
        }
    }

    pub(super) fn heartbeat(&mut self, worker: usize) {
        let next = self.now + HEARTBEAT_MS;
        self.push_to(next, worker, What::Heartbeat);
        self.end_overdue_session(worker);
        let shell = &self.hosts[worker].shell;
        if let Some(sid) = shell.sid() {
            let restores = shell.restores_before + shell.era;
            let seen = shell.witness.seen().map(|seen| (seen, restores));
            self.hosts[worker].seen = seen.or(self.hosts[worker].seen);
            let shell = &self.hosts[worker].shell;
            let (era, sent) = (shell.era, self.now);
            self.spawn(worker, era, Job::KeepAlive { sid, sent });
        }
        self.feed(worker, Event::Woke); // whatever the loop turns for, it looks at its clock
    }

    /// A session that was not renewed in time is taken for lost before anything else is done.
    fn end_overdue_session(&mut self, worker: usize) {
        let own = self.hosts[worker].shell.session.as_ref();
        if own.is_some_and(|own| self.now - own.renewed >= TTL_MS) {
            self.lose_session(worker);
        }
    }

    // --- watches ------------------------------------------------------------------------------------------------------

    fn listed(&mut self, worker: usize, watched: Watched, listed: Result<(Vec<Pair>, Revision), kv::Error>) {
        let Ok((pairs, revision)) = listed else {
            let (again, era) = (self.now + self.dice.between(100, 1500), self.hosts[worker].shell.era);
            return self.push_to(again, worker, What::Do(era, Job::List(watched)));
        };
        let shell = &mut self.hosts[worker].shell;
        let opened = shell.kv.watch(watched.span(), revision + 1).now_or_never();
        let stream = opened.expect("a watch is opened at once").unwrap();
        let number = shell.line.last_watch();
        let watch = shell.watch(watched);
        (watch.stream, watch.next) = (Some((stream, number)), revision + 1);
        self.take_news(worker, watched, News::Page { pairs, first: true, last: true });
        self.announce(worker, watched);
    }

    /// The store tells a watch what has changed.
    pub(super) fn news(&mut self, worker: usize, watched: Watched) {
        let now = self.now;
        let host = &mut self.hosts[worker];
        let cut_until = host.cut_until;
        let watch = host.shell.watch(watched);
        watch.announced = false;
        if now < cut_until || watch.busy {
            // Nothing is lost on a line that is cut: it comes later.
            watch.announced = true;
            return self.push_to(cut_until.max(now + 20), worker, What::News(watched));
        }
        let Some((mut stream, number)) = watch.stream.take() else { return };
        let batch = self.store.changes(&watched.span(), watch.next);
        if let Ok(batch) = &batch {
            watch.next = watch.next.max(batch.revision + 1);
        }
        // Through the stream, since that is where it is seen that the store went back.
        host.shell.line.tell(number, batch);
        let told = stream.next().now_or_never().flatten();
        host.shell.watch(watched).stream = Some((stream, number));
        match told {
            Some(Ok(batch)) if !batch.changes.is_empty() => {
                self.take_news(worker, watched, News::Changed(batch.changes));
            }
            Some(Err(kv::Error::Compacted(_))) => {
                self.hosts[worker].shell.watch(watched).stream = None;
                let era = self.hosts[worker].shell.era;
                self.spawn(worker, era, Job::List(watched));
            }
            _ => {}
        }
    }

    fn take_news(&mut self, worker: usize, watched: Watched, news: News) {
        self.note(|| format!("w{worker} hears of {watched:?}: {news:?}"));
        let events = match watched {
            Watched::Jobs => watches::job_events(news).collect(),
            Watched::Kills => watches::kill_events(&news),
            Watched::Base => vec![watches::base_event(&news)],
            Watched::Settings => {
                let shell = &mut self.hosts[worker].shell;
                shell.watch(watched).busy = true;
                let era = shell.era;
                self.spawn(worker, era, Job::Settings);
                Vec::new()
            }
            Watched::Requests => watches::request_events(&mut BTreeSet::new(), &news), // its list is one page
            Watched::Workers => {
                let registered = &mut self.hosts[worker].shell.registered;
                watches::note_registrations(registered, &news);
                vec![Event::MembersChanged(watches::members(registered))]
            }
            Watched::Sessions => {
                if watches::session_ended(&news) {
                    self.ask_sweep(worker);
                }
                Vec::new()
            }
            Watched::Pause => {
                let shell = &mut self.hosts[worker].shell;
                shell.watch(watched).busy = true;
                let era = shell.era;
                self.spawn(worker, era, Job::Pause(Arc::new(news)));
                Vec::new()
            }
        };
        let era = self.hosts[worker].shell.era;
        for mut event in events {
            if let (Mutant::TakesAnothers, Event::RequestSeen(seen)) = (self.mutant, &mut event)
                && let Some(sid) = self.hosts[worker].shell.sid()
                && let Some(target) = &mut Arc::make_mut(&mut seen.request).target
            {
                target.sid = sid;
            }
            self.tell(worker, era, event);
        }
    }

    // --- sweeps and records ---------------------------------------------------------------------------------------------

    fn ask_sweep(&mut self, worker: usize) {
        let now = self.now;
        let shell = &mut self.hosts[worker].shell;
        if shell.sweeping {
            shell.sweep_asked = true;
        } else {
            self.push_to(now, worker, What::Sweep);
        }
    }

    pub(super) fn sweep(&mut self, worker: usize) {
        let shell = &mut self.hosts[worker].shell;
        if std::mem::replace(&mut shell.sweeping, true) {
            shell.sweep_asked = true;
            return;
        }
        let era = shell.era;
        self.spawn(worker, era, Job::Sweep);
    }

    /// A run has ended: its record goes to disk, in a moment.
    fn ended(&mut self, worker: usize, entry: Entry) {
        let era = self.hosts[worker].shell.era;
        if let (Mutant::SettlesFirst, Some(key)) = (self.mutant, entry.settles) {
            self.spawn_soon(worker, era, Job::Thin(vec![key]));
        }
        let shell = &mut self.hosts[worker].shell;
        shell.sink.push(entry);
        if !std::mem::replace(&mut shell.writing, true) {
            let at = self.now + self.dice.between(1, 40);
            self.push_to(at, worker, What::Write);
        }
    }

    /// What has come is written to disk; if the disk takes nothing, it stays in memory and is stored from there. Beyond their share, open runs
    /// of the oldest on disk go.
    pub(super) fn write_spool(&mut self, worker: usize) {
        let again = self.now + self.dice.between(100, 1000);
        let host = &mut self.hosts[worker];
        if host.disk_away {
            self.push_to(again, worker, What::Write);
            return self.flush_soon(worker);
        }
        host.shell.writing = false;
        host.disk.append(&mut host.shell.sink);
        self.checks.on_disk(&host.disk);
        let open: Vec<(Sid, u64)> = host.disk.iter().filter_map(|entry| entry.settles).collect();
        let era = host.shell.era;
        let over = open.len().saturating_sub(UNSETTLED_MAX);
        if over > 0 {
            self.spawn_soon(worker, era, Job::Thin(open[..over].to_vec()));
        }
        self.flush_soon(worker);
    }

    fn flush_soon(&mut self, worker: usize) {
        if !std::mem::replace(&mut self.hosts[worker].shell.flushing, true) {
            let at = self.now + self.dice.between(5, 1000);
            self.push_to(at, worker, What::Flush);
        }
    }

    pub(super) fn flush(&mut self, worker: usize) {
        let faulty = self.faulty();
        let host = &mut self.hosts[worker];
        let again = self.now + self.dice.between(100, 1500);
        if host.log.is_away() {
            return self.push_to(again, worker, What::Flush);
        }
        let in_memory = if host.disk_away { std::mem::take(&mut host.shell.sink) } else { Vec::new() };
        let batch: Vec<&Entry> = host.disk.iter().chain(&in_memory).collect();
        if faulty && self.dice.percent(10) {
            // Some of the batch is stored, and the answer is lost.
            let some = self.dice.below(i64::try_from(batch.len()).unwrap() + 1);
            for entry in &batch[..usize::try_from(some).unwrap()] {
                host.log.store(std::slice::from_ref(&entry.record));
            }
            host.shell.sink.splice(..0, in_memory);
            return self.push_to(again, worker, What::Flush);
        }
        for entry in batch {
            host.log.store(std::slice::from_ref(&entry.record));
            host.shell.unsettled.extend(entry.settles);
        }
        host.shell.stored = host.disk.len();
        let (keys, era) = (host.shell.unsettled.clone(), host.shell.era);
        let at = self.now + self.pause();
        self.push_to(at, worker, What::Do(era, Job::Settle(keys)));
    }

    // --- the scheduler ------------------------------------------------------------------------------------------------

    /// What comes from an era that is over is thrown away.
    pub(super) fn tell(&mut self, worker: usize, era: Era, event: Event) {
        if era == self.hosts[worker].shell.era || matches!(event, Event::RunEnded(..)) {
            self.feed(worker, event);
        }
    }

    pub(super) fn feed(&mut self, worker: usize, event: Event) {
        self.end_overdue_session(worker);
        self.step(worker, event);
        self.send_batches(worker);
    }

    /// Sends what waits and may be sent now.
    fn send_batches(&mut self, worker: usize) {
        let era = self.hosts[worker].shell.era;
        while let Some(batch) = self.hosts[worker].shell.claims.next() {
            self.spawn_soon(worker, era, Job::Claims(batch));
        }
        while let Some(batch) = self.hosts[worker].shell.adoptions.next() {
            self.spawn_soon(worker, era, Job::Adoptions(batch));
        }
        while let Some(batch) = self.hosts[worker].shell.releases.next() {
            self.spawn_soon(worker, era, Job::Releases(batch));
        }
    }

    /// A batch of claims was answered.
    pub(super) fn claimed(
        &mut self,
        worker: usize,
        era: Era,
        ticket: Answered,
        answers: Vec<(Claim, ClaimAnswer)>,
    ) {
        let shell = &mut self.hosts[worker].shell;
        if era != shell.era {
            return;
        }
        shell.claims.answered(ticket);
        self.end_overdue_session(worker);
        let unanswered =
            |answer: &ClaimAnswer| matches!(answer, ClaimAnswer::Unknown | ClaimAnswer::NotApplied);
        let away = answers.iter().all(|(_, answer)| unanswered(answer));
        for (claim, answer) in answers {
            self.step(worker, claim_answered(claim, answer));
        }
        if away {
            for claim in self.hosts[worker].shell.claims.withdraw() {
                self.step(worker, claim_answered(claim, ClaimAnswer::NotApplied));
            }
        } else if self.dice.percent(10) {
            let lead = self.dice.between(LEAD_MIN_MS, LEAD_MAX_MS);
            self.step(worker, Event::Lead(lead));
        }
        self.send_batches(worker);
    }

    fn spawn_soon(&mut self, worker: usize, era: Era, job: Job) {
        match self.pause() {
            0 => {
                self.spawn(worker, era, job);
            }
            pause => {
                let at = self.now + pause;
                self.push_to(at, worker, What::Do(era, job));
            }
        }
    }

    fn step(&mut self, worker: usize, event: Event) {
        let now = self.time_of(worker);
        if !matches!(event, Event::Woke) {
            self.note(|| format!("w{worker} is told {event:?}"));
        }
        let world_now = self.now;
        let host = &mut self.hosts[worker];
        let news = host.news_of_clock(world_now).map(Event::ClockTrusted);
        let news = news.filter(|_| self.mutant != Mutant::TrustsAnyClock);
        if matches!(news, Some(Event::ClockTrusted(true))) && host.floor > Timestamp::ZERO {
            host.floor = host.floor.max(now.plus_ms(crate::scheduler::CLAIMED_AHEAD_MAX_MS)); // it may have noticed meanwhile
        }
        let mut actions = Vec::new();
        for event in news.into_iter().chain([event]) {
            actions.extend(host.shell.scheduler.step(now, event));
        }
        for action in actions {
            self.perform(worker, action);
        }
        let woken = self.hosts[worker].shell.scheduler.wake_at();
        if woken.is_some_and(|at| at <= now) {
            self.checks.violated(format!("w{worker} asks to be woken in the past"));
        }
        self.leave_if_done(worker);
    }

    fn perform(&mut self, worker: usize, action: Action) {
        self.note(|| format!("w{worker} does {action:?}"));
        let (now, era) = (self.now, self.hosts[worker].shell.era);
        let job = match action {
            Action::Claim(claim) => return self.hosts[worker].shell.claims.put(*claim),
            Action::Adopt(adoption) => return self.hosts[worker].shell.adoptions.put(adoption),
            Action::ReadMarks { slots, serializable } => Job::ReadMarks { slots, serializable },
            Action::RetireMark { job, revision, mark } => Job::Retire { job, revision, mark },
            Action::Release { run_id, job, sid, lock_revision, unlocked, not_before } => {
                let job = Job::Release(HeldLock::new(job, lock_revision, sid, run_id, unlocked));
                let wait = not_before.ms_since(self.time_of(worker)).max(0);
                return self.push_to(now + wait, worker, What::Do(era, job));
            }
            Action::Move { open, from, to, rescue } => Job::Move { open: Box::new(open), from, to, rescue },
            Action::ClaimRequest(claim) => Job::ClaimRequest(claim),
            Action::Close(close) if self.mutant == Mutant::EndsUntold => {
                let closed = Event::Closed(close.open.run_id.clone(), CloseAnswer::Gone);
                return self.push_to(now, worker, What::Tell(era, closed));
            }
            Action::Close(close) if self.mutant == Mutant::SucceedsUntold && !close.follows.is_empty() => {
                let closed = Event::Closed(close.open.run_id.clone(), CloseAnswer::Gone);
                return self.push_to(now, worker, What::Tell(era, closed));
            }
            Action::Close(close) => Job::Close(close),
            Action::Start { open, work, .. } => {
                return self.start_command(worker, &open, work.execution().has_fence());
            }
            Action::Replace { claim, holders, .. } if self.mutant == Mutant::ReplacesAtOnce => {
                let over_lock = holders.iter().find(|held| !held.unlocked).map(|held| held.revision);
                self.hosts[worker].shell.claims.put(Claim { over_lock, ..*claim });
                return;
            }
            Action::Replace { claim, holders, killed } => Job::Replace { claim, holders, killed },
            Action::Kill(run_id, _) => {
                let slow = self.has_concurrency && self.dice.percent(30);
                let takes = if slow { self.dice.between(5, 2500) } else { 5 };
                return self.push_to(now + takes, worker, What::ProcessEnds(run_id, Status::Killed));
            }
            Action::Record { record, settles } => return self.ended(worker, Entry { record, settles }),
            Action::GiveUpSession(sid) => {
                if self.hosts[worker].shell.sid() == Some(sid) {
                    self.lose_session(worker);
                }
                return;
            }
            Action::GiveUpStore(why) => {
                self.hosts[worker].shell.witness.accuse(era, why);
                return self.look_whether_it_went_back(worker);
            }
            Action::NoteRestore { known, floor } => Job::NoteRestore { known, floor },
            Action::Prepare { .. } | Action::Report(_) => return,
        };
        self.spawn_soon(worker, era, job);
    }

    fn start_command(&mut self, worker: usize, open: &OpenRun, fence: bool) {
        let by = (worker, self.hosts[worker].incarnation);
        let certain = self.is_up_to_date(worker);
        self.checks.begins(&self.store, by, open, fence, certain);
        if fence && self.is_fenced(worker) {
            return self.process_ends(worker, &open.run_id, Status::Killed);
        }
        let long = self.dice.percent(30);
        let mut takes = if long { self.dice.between(900, 5000) } else { self.dice.between(10, 800) };
        if fence && self.faulty() && self.dice.percent(20) {
            takes = self.dice.between(5_000, 15_000); // longer than a lease, which alone makes a fence needed
        }
        let ends = self.now + takes;
        self.push_to(ends, worker, What::ProcessEnds(open.run_id.clone(), Status::Succeeded));
    }

    pub(super) fn process_ends(&mut self, worker: usize, run_id: &RunId, status: Status) {
        if self.checks.processes.remove(run_id).is_none() {
            return;
        }
        let at = self.time_of(worker);
        let fails = self.asks && self.dice.percent(30);
        if !fails && status == Status::Succeeded {
            self.checks.succeeded.insert(run_id.clone());
        }
        let ending = Ending {
            status: if fails { Status::Failed } else { status },
            err: String::new(),
            command: String::new(),
            output: String::new(),
            output_truncated: false,
            output_bytes: 0,
            start_time: at,
            end_time: at,
            exit_code: (status == Status::Succeeded).then_some(0),
            signal: (status == Status::Killed).then_some(9),
            http_status: None,
        };
        let (now, era) = (self.now, self.hosts[worker].shell.era);
        self.push_to(now, worker, What::Tell(era, Event::RunEnded(run_id.clone(), ending)));
    }
}
