//! The worker's loop: gathers events, calls the scheduler's `step`, carries its actions out. Nothing else does.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use common::channels::Channels;
use common::clock::{self, Clock, Stopwatch, Timestamp};
use common::config::{CertificateUse, Settings};
use common::domain::record::{Ending, Status as Outcome};
use common::domain::run::{OpenRun, OpenRuns, RunId};
use common::domain::worker::{Identity, RENEWED_SECONDS, Sid};
use common::ids::{backoff, random_below};
use common::keys;
use common::kv::{self, Kv, Pair, Range};
use common::run_log::RunLog;
use common::secrets::Aws;
use common::traces::{Resource, Tracer};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::task::JoinHandle;
use tracing::Instrument as _;

use crate::audit::{self, Reading, Suspects, Unknown};
use crate::batches::{Answered, Batches};
use crate::claims::{ADOPTIONS_IN_FLIGHT, CLAIMS_IN_FLIGHT, HeldLock, RELEASES_IN_FLIGHT};
use crate::clocks::{Clocks, Moment};
use crate::data_dir::{self, DataDir};
use crate::exec::gate::{Begun, GateFile, Gates, Starts};
use crate::exec::process::{self, Running};
use crate::exec::request;
use crate::exec::secrets::Secrets;
use crate::exec::shell::Shell;
use crate::exec::supplies::Supplies;
use crate::exec::work::Work;
use crate::guardian::Guard;
use crate::history;
use crate::lead::Lead;
use crate::live::{self, Live};
use crate::notify::{Notices, Noticing};
use crate::outbound::Outbound;
use crate::retention::{self, Retention};
use crate::retries::{LoopRetries, Retries};
use crate::scheduler::{
    Action, Adoption, Claim, ClaimAnswer, ClaimKind, Event, LEAD_MAX_MS, Report, Scheduler, Slots,
};
use crate::seen::SeenFile;
use crate::session::{self, Session, Standing};
use crate::sink::{Sink, SinkSettings};
use crate::status::{Facts, Status, Turn};
use crate::timed::Timed;
use crate::turns::Turns;
use crate::waiting::{Entry, Figures};
use crate::watches::{self, Input, Inputs, Registered, Registration};
use crate::witness::{Era, WentBack, Witness};
use crate::{certificates, claims, clocks, rights, sweep, traces, upkeep};

/// Inputs that may wait for the loop: beyond, whoever brings more waits too. A job that is told takes a kilobyte or two here, and what so many
/// have held at once stays with the allocator.
const INPUTS: usize = 1024;
/// Inputs taken in one turn, so that timers and heartbeats get theirs.
const INPUTS_PER_TURN: usize = 256;
/// Single requests in flight to the store: more add latency, not throughput.
const REQUESTS_IN_FLIGHT: usize = 64;
/// The lease is renewed so many times within its life.
const RENEWALS_PER_TTL: u32 = 3;
/// The loop turns at least this often, so that a step of the wall clock is noticed although nothing is due.
const TURN_EVERY: Duration = Duration::from_millis(500);
/// A wait on two clocks in a row that takes this long is done again.
const MOMENT_MAX: Duration = Duration::from_millis(50);
/// A registration that was not put again is tried again after this.
const REGISTER_AGAIN: Duration = Duration::from_secs(1);
/// Open runs without a session are looked for this often, beside at once when a session ends.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// A sweep that failed is tried again after this.
const SWEEP_AGAIN: Duration = Duration::from_secs(5);
/// What is in the store under this worker's session is compared with what it knows this often (design P5).
const AUDIT_EVERY: Duration = Duration::from_secs(30);
/// While so many runs that have ended are open in the store there is no audit: it reads each.
const AUDITED_MAX: usize = 10_000;
/// Fires that are due and not claimed are counted up to so many: the loop does not count a million of them while it is behind.
const COUNTED_MAX: usize = 10_000;
/// Marks are read whole this often, to find those of deleted jobs.
const READ_ALL_MARKS_EVERY: Duration = Duration::from_secs(3600);
/// A draining worker whose runs have ended waits so long for the record store; what is not stored then ends as `lost`.
/// Whoever sends SIGKILL in the end waits longer than `CRON_DRAIN_SECONDS` and this together.
pub const LAST_RECORDS_MAX: Duration = Duration::from_secs(30);
/// And so long for its last spans to go.
const LAST_SPANS_MAX: Duration = Duration::from_secs(2);
/// Pauses between attempts to free a lock or to move a run double from the first to the second, in ms.
const RETRY_MIN_MS: u64 = 50;
const RETRY_MAX_MS: u64 = 2_000;

/// What a worker needs of the world.
#[derive(Clone)]
pub struct Ports {
    /// Where claims are made.
    pub kv: Arc<dyn Kv>,
    /// Where records go.
    pub run_log: Arc<dyn RunLog>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
}

/// How a worker works.
#[derive(Clone, Debug)]
pub struct Options {
    /// Who it is.
    pub identity: Identity,
    /// The name it registers under, if that is free.
    pub worker_id: String,
    /// Life of its lease.
    pub session_ttl: Duration,
    /// Records stored at once.
    pub log_batch_size: usize,
    /// An incomplete batch is stored after so long.
    pub log_commit_timeout: Duration,
    /// How long records are kept.
    pub retention: Retention,
    /// So many days it is kept who changed what; 0 = for ever.
    pub audit_days: u32,
    /// Where it keeps its state. Without one, every shell is started at its time, records wait in memory, and a worker that starts again
    /// notices no store that was put back while no process of it lived.
    pub data_dir: Option<PathBuf>,
    /// What commands are run with.
    pub shell: Arc<Shell>,
    /// What requests are sent by.
    pub outbound: Arc<Outbound>,
    /// What records that wait for the store may take in it, in bytes; `None` = 4 GiB, or half of what the disk has left if that is less.
    pub spool_bytes_max: Option<u64>,
    /// Where notifications go.
    pub channels: Arc<Channels>,
    /// The certificates whose ends it looks at.
    pub certificates: Vec<(CertificateUse, PathBuf)>,
}

impl Options {
    /// The options that settings give, for the worker of this data directory. To be called in a runtime, in which its traces are sent.
    #[must_use]
    pub fn new(settings: &Settings, identity: Identity, data_dir: &DataDir, guard: Guard) -> Self {
        let worker_id = crate::identity::worker_id(settings, &identity);
        let resource = Resource { service: "fleetcron-worker".to_owned(), instance: worker_id.clone() };
        let secrets = Arc::new(Secrets::new(settings.secrets_file.as_deref(), Arc::new(Aws)));
        let supplies = Supplies { tracer: Tracer::new(&settings.traces, resource), secrets };
        let shell = Shell::new(&settings.shell, &settings.users).guarded_by(guard);
        let shell = shell.with(supplies.clone());
        let outbound = Outbound::new(settings.http_networks.clone()).with(supplies);
        Self {
            worker_id,
            identity,
            session_ttl: settings.session_ttl,
            log_batch_size: settings.log_batch_size,
            log_commit_timeout: settings.log_commit_timeout,
            retention: Retention::new(settings),
            audit_days: settings.audit_days,
            data_dir: Some(data_dir.path.clone()),
            shell: Arc::new(shell),
            outbound: Arc::new(outbound),
            spool_bytes_max: settings.spool_bytes_max,
            channels: settings.channels.clone().unwrap_or_default(),
            certificates: settings.certificate_files(),
        }
    }
}

/// What can be asked of a running worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Command {
    Drain,
    KillRuns,
}

/// The worker's loop panicked.
#[derive(Debug, thiserror::Error)]
#[error("the worker's loop broke")]
pub struct LoopBroke(#[source] tokio::task::JoinError);

/// A running worker.
#[derive(Debug)]
pub struct Worker {
    commands: mpsc::Sender<Command>,
    task: JoinHandle<()>,
    status: Arc<Status>,
}

impl Worker {
    /// Starts a worker in this process.
    #[must_use]
    pub fn start(ports: Ports, options: Options) -> Self {
        let (commands, asked) = mpsc::channel(8);
        let facts = Facts {
            started: ports.clock.now(),
            session_ttl: options.session_ttl,
            max_runs: options.identity.max_runs,
        };
        let status = Arc::new(Status::new(facts, options.shell.supplies().tracer.counted()));
        let task = tokio::spawn(Driver::new(ports, options, Arc::clone(&status)).run(asked));
        Self { commands, task, status }
    }

    /// Claim nothing more, finish what is going, leave.
    pub async fn drain(&self) {
        let _already_gone = self.commands.send(Command::Drain).await;
    }

    /// Kill every run; with [`Worker::drain`], to leave at once.
    pub async fn kill_runs(&self) {
        let _already_gone = self.commands.send(Command::KillRuns).await;
    }

    /// Returns once the worker has left.
    ///
    /// # Errors
    /// Its loop broke, which is a bug: start the process anew.
    pub async fn left(&mut self) -> Result<(), LoopBroke> {
        (&mut self.task).await.map_err(LoopBroke)
    }

    /// How it is doing.
    #[must_use]
    pub fn status(&self) -> Arc<Status> {
        Arc::clone(&self.status)
    }
}

/// When this worker's registration is put again.
#[derive(Debug)]
struct Renewal {
    /// It was put then.
    put: Stopwatch,
    /// And is put again after so long, without a reason.
    after: Duration,
    /// It is being put.
    in_flight: bool,
    /// It could not be put then.
    failed: Option<Stopwatch>,
    /// Another worker asks for it.
    asked_for: bool,
    /// It is to ask others for theirs.
    asks: bool,
    /// The latest of those that asked: whoever asked before has been answered.
    answered: kv::Revision,
}

impl Renewal {
    fn new() -> Self {
        Self {
            put: Stopwatch::start(),
            after: Self::spread(),
            in_flight: false,
            failed: None,
            asked_for: false,
            asks: false,
            answered: 0,
        }
    }

    /// Workers that registered at the same moment, as after an outage, do not renew at the same moment for ever.
    fn spread() -> Duration {
        let all = RENEWED_SECONDS * 1000;
        Duration::from_millis(all - random_below(all / 4))
    }

    fn is_due(&self, is_right: bool) -> bool {
        let may = !self.in_flight && self.failed.is_none_or(|failed| failed.elapsed() >= REGISTER_AGAIN);
        may && (self.asked_for || self.asks || !is_right || self.put.elapsed() >= self.after)
    }
}

struct Driver {
    ports: Ports,
    options: Options,
    status: Arc<Status>,
    scheduler: Scheduler,
    sink: Sink,
    sink_was_full: bool,
    /// For the tasks that answer.
    inputs: Inputs,
    received: Option<mpsc::Receiver<(Era, Input)>>,
    /// What follows the store.
    watching: Vec<JoinHandle<()>>,
    witness: Arc<Witness>,
    /// The store itself, and what tells that it has denied something.
    denied: (Arc<dyn Kv>, Arc<Notify>),
    seen_file: Option<Arc<SeenFile>>,
    retries: Arc<LoopRetries>,
    requests: Arc<Semaphore>,
    claims: Batches<Claim>,
    lead: Lead,
    gates: Gates,
    /// What the present step has told to start.
    starts: Starts,
    adoptions: Batches<Adoption>,
    releases: Batches<HeldLock>,
    session: Option<Session>,
    /// What looks for one.
    seeking: Option<JoinHandle<()>>,
    /// As last seen.
    registered: BTreeMap<String, Registration>,
    /// Another worker took its name, and it is taking another.
    registering_again: bool,
    clocks: Clocks,
    /// What the clocks are compared by: boot time since here.
    started: Stopwatch,
    registration: Renewal,
    renewed: Stopwatch,
    heartbeat: Stopwatch,
    all_marks_read: Stopwatch,
    audited: Stopwatch,
    suspects: Arc<tokio::sync::Mutex<Suspects>>,
    running: BTreeMap<RunId, Running>,
    live: Live,
    notices: Notices,
    sweeper: Arc<Notify>,
    /// Sessions whose open runs are this worker's to close.
    own_sids: Arc<Mutex<BTreeSet<Sid>>>,
    /// Runs that were claimed up to then may have ended in what the store was before: the sweep asks for no retry of them. In ms.
    floor: Arc<AtomicI64>,
    /// It is the fleet's first worker, in an order on which all agree: what one of them is enough for is its to do.
    first: Arc<AtomicBool>,
    draining: bool,
}

impl Driver {
    fn new(mut ports: Ports, options: Options, status: Arc<Status>) -> Self {
        let (inputs, received) = mpsc::channel(INPUTS);
        let seen_file = options.data_dir.as_deref().map(|dir| SeenFile::new(data_dir::seen_file(dir)));
        let before = seen_file.as_ref().and_then(SeenFile::read);
        let bare = Arc::clone(&ports.kv);
        let timed = Arc::new(Timed::new(ports.kv, Arc::clone(&status.store)));
        let denied = (bare, timed.denied());
        let witness = Arc::new(Witness::new(timed, before));
        ports.kv = Arc::clone(&witness) as Arc<dyn Kv>;
        let gates = Gates::new(Arc::clone(&options.shell));
        let live = Live::default();
        let sink = SinkSettings {
            size: options.log_batch_size,
            timeout: options.log_commit_timeout,
            spool: options.data_dir.as_deref().map(data_dir::spool),
            spool_bytes_max: options.spool_bytes_max,
            appends: Arc::clone(&status.appends),
        };
        let notices = Notices::new(
            Arc::clone(&options.channels),
            options.data_dir.as_deref().map(data_dir::notices).as_deref(),
            Arc::clone(&ports.kv),
            Arc::clone(&ports.clock),
            Arc::clone(&status.notices),
        );
        let (kv, run_log) = (Arc::clone(&ports.kv), Arc::clone(&ports.run_log));
        let sink = Sink::start(kv, run_log, sink, live.clone(), notices.clone());
        Self {
            scheduler: Scheduler::new(options.identity.max_runs),
            ports,
            options,
            status,
            sink,
            sink_was_full: false,
            inputs: Inputs::new(inputs),
            received: Some(received),
            watching: Vec::new(),
            witness,
            denied,
            seen_file: seen_file.map(Arc::new),
            retries: Arc::default(),
            requests: Arc::new(Semaphore::new(REQUESTS_IN_FLIGHT)),
            claims: Batches::new(CLAIMS_IN_FLIGHT),
            lead: Lead::new(),
            gates,
            starts: Starts::new(),
            adoptions: Batches::new(ADOPTIONS_IN_FLIGHT),
            releases: Batches::new(RELEASES_IN_FLIGHT),
            session: None,
            seeking: None,
            registered: BTreeMap::new(),
            registering_again: false,
            clocks: Clocks::new(),
            started: Stopwatch::start(),
            registration: Renewal::new(),
            renewed: Stopwatch::start(),
            heartbeat: Stopwatch::start(),
            all_marks_read: Stopwatch::start(),
            audited: Stopwatch::start(),
            suspects: Arc::default(),
            running: BTreeMap::new(),
            live,
            notices,
            sweeper: Arc::new(Notify::new()),
            own_sids: Arc::default(),
            floor: Arc::default(),
            first: Arc::default(),
            draining: false,
        }
    }

    async fn run(mut self, mut asked: mpsc::Receiver<Command>) {
        let Some(mut received) = self.received.take() else { return };
        let mut went_back = self.witness.news();
        self.watch();
        let noticing = self.notices.start();
        let sweeping = tokio::spawn(sweep_often(
            self.closing_ports(),
            Arc::clone(&self.sweeper),
            Arc::clone(&self.own_sids),
            Arc::clone(&self.floor),
            Arc::clone(&self.status),
        ));
        let keeping_up = tokio::spawn(upkeep::keep_up(
            Arc::clone(&self.ports.kv),
            Arc::clone(&self.status),
            Arc::clone(&self.first),
            self.witness.full(),
        ));
        let (bare, denied) = self.denied.clone();
        let looking = tokio::spawn(rights::keep_looking(bare, Arc::clone(&self.status), denied));
        let (files, status) = (self.options.certificates.clone(), Arc::clone(&self.status));
        let ending = tokio::spawn(certificates::keep_looking(files, status, Arc::clone(&self.ports.clock)));
        let (run_log, clock) = (Arc::clone(&self.ports.run_log), Arc::clone(&self.ports.clock));
        let following =
            tokio::spawn(live::follow(self.live.clone(), Arc::clone(&run_log), Arc::clone(&clock)));
        let (retention, first) = (self.options.retention, Arc::clone(&self.first));
        let retaining = tokio::spawn(retention::keep_up(run_log, clock, retention, first));
        let (ports, first) = (self.ports.clone(), Arc::clone(&self.first));
        let moving = tokio::spawn(history::keep_moving(ports.clone(), Arc::clone(&self.status), first));
        let (days, first) = (self.options.audit_days, Arc::clone(&self.first));
        let forgetting = tokio::spawn(history::keep_forgetting(ports, days, first));
        self.make_gate();
        self.step(Event::ClockTrusted(self.clocks.trusted())).await;
        self.seek_session();
        while !(self.draining && self.scheduler.is_idle()) {
            let heartbeat_in =
                (self.options.session_ttl / RENEWALS_PER_TTL).saturating_sub(self.heartbeat.elapsed());
            let wake_at = self.scheduler.wake_at().unwrap_or(Timestamp::from_ms(i64::MAX));
            let clock = Arc::clone(&self.ports.clock);
            let mut woken = true;
            tokio::select! {
                biased;
                Some(command) = asked.recv() => self.obey(command).await,
                Ok(()) = went_back.changed() => {
                    let news = went_back.borrow_and_update().clone();
                    self.begin_anew(news).await;
                }
                Some((era, input)) = received.recv() => {
                    woken = false;
                    self.take_from(era, input).await;
                    for _ in 1..INPUTS_PER_TURN {
                        let Ok((era, input)) = received.try_recv() else { break };
                        self.take_from(era, input).await;
                    }
                }
                () = clock.sleep_until(wake_at) => {}
                // Not a time of the wall clock: one that was put back by an hour would be waited for an hour more, without a heartbeat.
                () = clock::sleep(heartbeat_in.min(TURN_EVERY)) => {}
            }
            self.options.shell.guard().look_after();
            self.look_after_session().await;
            self.look_after_registration();
            self.look_after_sink().await;
            if woken || self.scheduler.wake_at().is_some_and(|at| at <= self.ports.clock.now()) {
                self.step(Event::Woke).await;
            }
            if woken {
                // A timer that is due at once leaves no await that waits: the tasks behind this one get their turn here.
                tokio::task::yield_now().await;
            }
            self.send_batches();
            self.spare_own_sids();
            self.floor.store(self.scheduler.floor().ms(), Relaxed);
            self.first.store(self.scheduler.owns_slot(0), Relaxed);
            let inputs = received.len();
            self.status.beat(self.ports.clock.now(), self.turn(inputs));
        }
        self.leave().await;
        for task in self
            .watching
            .into_iter()
            .chain([sweeping, keeping_up, looking, ending, following, retaining, moving, forgetting])
            .chain(noticing)
        {
            task.abort();
        }
    }

    /// How things are, for whoever asks for metrics. Every figure is at hand.
    fn turn(&self, inputs: usize) -> Turn {
        let ends = self.releases.waiting();
        Turn {
            renewed: self.session.as_ref().map(|_| self.renewed),
            paused: self.scheduler.is_paused(),
            draining: self.draining,
            jobs: self.scheduler.jobs(),
            open_runs: self.scheduler.open_runs(),
            marks_ahead: self.scheduler.marks_ahead(),
            requests_waiting: self.scheduler.requests_waiting(),
            queues: [self.claims.waiting(), self.adoptions.waiting(), ends, self.gates.shells(), inputs],
            waiting: self.sink.waiting().figures(),
        }
    }

    /// Follows the store from now on.
    fn watch(&mut self) {
        self.watching = watches::start(&self.ports.kv, &self.inputs);
        self.watching.extend(self.notices.follow());
    }

    /// The ports of whoever writes records for the runs of others: what these say is told, too.
    fn closing_ports(&self) -> Ports {
        let (inner, notices) = (Arc::clone(&self.ports.run_log), self.notices.clone());
        Ports { run_log: Arc::new(Noticing { inner, notices }), ..self.ports.clone() }
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Drain if self.draining => {}
            Command::Drain => {
                tracing::info!(open_runs = self.scheduler.open_runs(), "draining: nothing more is claimed");
                self.draining = true;
                self.step(Event::DrainRequested).await;
                self.deregister().await;
            }
            Command::KillRuns => self.step(Event::KillAllRequested).await,
        }
    }

    async fn deregister(&self) {
        if let Some(session) = &self.session
            && let Err(why) = session::deregister(self.ports.kv.as_ref(), session).await
        {
            tracing::warn!(%why, "registration not taken away; it goes with the session");
        }
    }

    /// What is told of a store that is no more is not taken.
    async fn take_from(&mut self, era: Era, input: Input) {
        if era == self.inputs.era || input.outlives_the_store() {
            self.take(input).await;
        }
    }

    async fn take(&mut self, input: Input) {
        match input {
            Input::Event(event) => {
                // An event that waited behind others may come after the session's end: that goes first.
                self.look_after_session().await;
                if let Event::RunEnded(run_id, ending) = &event {
                    if let Some(span) = self.running.remove(run_id).and_then(|running| running.span) {
                        self.options.shell.supplies().tracer.take(traces::ended(*span, ending));
                    }
                    self.live.end(run_id);
                }
                self.notices.see(&event);
                self.step(event).await;
            }
            Input::Workers(registered) => self.take_workers(registered).await,
            Input::SessionEnded => self.sweeper.notify_one(),
            Input::SessionReady(session) => {
                tracing::info!(sid = %session.sid, worker_id = %session.worker_id, "session established");
                self.status.count_session();
                self.renewed = session.since;
                self.options.shell.guard().lease_renewed(self.renewed, self.options.session_ttl);
                let (sid, worker_id) = (session.sid, session.worker_id.clone());
                self.clocks.registered(self.boot_ms(session.since), session.registered_at);
                (self.registration.put, self.registration.asks) = (Stopwatch::start(), false);
                self.session = Some(session);
                self.compare_clocks(); // news of it may have come before this
                self.all_marks_read = Stopwatch::start();
                self.step(Event::SessionGained(sid, worker_id)).await;
                if self.draining {
                    self.deregister().await; // it was sought before
                }
                self.check_registration(); // news of it may have come before this
            }
            Input::RegisteredAgain(sid, registered) => self.take_name(sid, registered).await,
            Input::Renewed { sid, sent, standing, revision } => {
                self.registration.in_flight = false;
                self.registration.failed = revision.is_none().then(Stopwatch::start);
                if let (Some(session), Some(revision)) = (&mut self.session, revision)
                    && session.sid == sid
                {
                    (session.standing, session.registered_at) = (standing, revision);
                    self.clocks.registered(self.boot_ms(sent), revision);
                }
            }
            Input::KeptAlive { sid, sent } => {
                if self.session.as_ref().is_some_and(|session| session.sid == sid) {
                    self.renewed = sent;
                    self.options.shell.guard().lease_renewed(sent, self.options.session_ttl);
                }
            }
            Input::AuditRead(sid, reading) => self.audit(sid, reading),
            Input::LeaseGone(sid) => self.lose_session(sid, "the store says that its lease is gone").await,
            Input::ClaimsAnswered(ticket, answers) => self.take_claims(ticket, answers).await,
            Input::Adopted(ticket, answers) => {
                self.adoptions.answered(ticket);
                for (job, answer) in answers {
                    self.step(Event::AdoptAnswered(job, answer)).await;
                }
            }
            Input::GateHolds(file) => self.gates.use_file(file),
            Input::LocksFreed(ticket, run_ids) => {
                self.releases.answered(ticket);
                for run_id in run_ids {
                    self.step(Event::Released(run_id)).await;
                }
            }
        }
    }

    async fn take_workers(&mut self, registered: BTreeMap<String, Registration>) {
        let members = watches::members(&registered);
        self.sink.waiting().share_among(members.ours.len());
        self.registered = registered;
        self.compare_clocks();
        self.step(Event::MembersChanged(members)).await;
        self.check_registration();
    }

    /// A seed worker on this machine puts its registration over ours: then this worker takes another name. A registration older than
    /// ours is this worker's own former one, told late. One that is gone was deleted: nobody would fire this worker's jobs any more, were it
    /// alone.
    fn check_registration(&mut self) {
        let Some(session) = self.session.as_mut().filter(|_| !self.draining && !self.registering_again)
        else {
            return;
        };
        let why = match self.registered.get(&session.worker_id) {
            Some(ours) if ours.who == Registered::Ours(session.sid) => {
                session.seen = true;
                return;
            }
            Some(other) if other.revision > session.registered_at => "another worker took it",
            None if session.seen => "it was deleted",
            Some(_) | None => return,
        };
        tracing::warn!(worker_id = %session.worker_id, why, "this worker's registration is gone: registering anew");
        let sid = session.sid;
        self.register_again(sid);
    }

    /// Registers again in the background, in the same session and under another name where its own is taken: what runs here goes on. The
    /// answer is [`Input::RegisteredAgain`].
    fn register_again(&mut self, sid: Sid) {
        self.registering_again = true;
        let (ports, options, inputs) = (self.ports.clone(), self.options.clone(), self.inputs.clone());
        let retries = Arc::clone(&self.retries);
        let standing = self.standing();
        tokio::spawn(async move {
            let (kv, clock, id) = (ports.kv.as_ref(), ports.clock.as_ref(), options.worker_id.as_str());
            let register = || session::register_again(kv, clock, &options.identity, id, sid, standing);
            let registered = until_answered(&retries.registration, register).await;
            let _gone = inputs.send(Input::RegisteredAgain(sid, registered)).await;
        });
    }

    async fn take_name(&mut self, sid: Sid, registered: Option<(String, kv::Revision)>) {
        self.registering_again = false;
        let (Some((id, revision)), Some(session)) = (registered, &mut self.session) else { return };
        if session.sid != sid {
            return self.check_registration(); // that one hangs on a session that is over
        }
        tracing::info!(%sid, worker_id = %id, "registered anew");
        (session.worker_id, session.registered_at, session.seen) = (id.clone(), revision, false);
        self.step(Event::Renamed(id)).await;
        if self.draining {
            self.deregister().await; // it was asked to leave meanwhile
        }
        self.check_registration(); // that name may be taken by now, too
    }

    // --- clocks ---------------------------------------------------------------------------------------------------

    fn boot_ms(&self, then: Stopwatch) -> i64 {
        let since = self.started.elapsed().saturating_sub(then.elapsed());
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    }

    /// This moment by both clocks. A process that is stopped between the two would see a step that was none.
    fn moment(&self) -> Moment {
        loop {
            let now = Stopwatch::start();
            let moment = Moment { wall: self.ports.clock.now(), boot_ms: self.boot_ms(now) };
            if now.elapsed() < MOMENT_MAX {
                return moment;
            }
        }
    }

    /// Takes the clocks of the registrations, and answers who asks for this worker's.
    fn compare_clocks(&mut self) {
        let own = self.session.as_ref().map(|session| session.sid);
        self.clocks.take(self.moment(), own, &self.registered);
        let Some(session) = &self.session else { return };
        let with_clock = |registration: &Registration| registration.clock.is_some();
        for (asker, registration) in &self.registered {
            let (Registered::Ours(sid), Some(clock)) = (registration.who, registration.clock) else {
                continue;
            };
            let is_new = registration.revision > self.registration.answered;
            if !(clock.live && clock.asks && is_new && sid != session.sid) {
                continue;
            }
            let all =
                self.registered.iter().filter(|(id, registration)| *id != asker && with_clock(registration));
            self.registration.asked_for |=
                clocks::answers(&session.worker_id, sid, all.map(|(id, _)| id.as_str()));
        }
        let latest = self.registered.values().map(|registration| registration.revision).max();
        self.registration.answered = self.registration.answered.max(latest.unwrap_or(0));
    }

    /// Looks at the wall clock before anything is decided by it.
    fn look_at_clock(&mut self) -> (Timestamp, Vec<Action>) {
        let moment = self.moment();
        let (was_trusted, was_wrong) = (self.clocks.trusted(), self.clocks.is_wrong());
        let Some(verdict) = self.clocks.look(moment) else { return (moment.wall, Vec::new()) };
        let offset_ms = verdict.offset_ms;
        if let Some(stepped_ms) = verdict.stepped_ms {
            tracing::warn!(stepped_ms, "the machine's wall clock was stepped");
        }
        self.status.note_clock(offset_ms, verdict.trusted);
        self.registration.asks |= verdict.ask;
        if self.clocks.is_wrong() && !was_wrong {
            tracing::error!(
                offset_ms,
                "the clock is too far from the median of the fleet's: nothing is claimed until it is mended"
            );
        } else if verdict.trusted && was_wrong {
            tracing::info!(offset_ms, "the clock agrees with the fleet's again: fires are claimed");
        }
        if verdict.trusted == was_trusted {
            return (moment.wall, Vec::new());
        }
        (moment.wall, self.scheduler.step(moment.wall, Event::ClockTrusted(verdict.trusted)))
    }

    /// What a registration that is written now says.
    fn standing(&self) -> Standing {
        let aside = !self.clocks.trusted();
        Standing { aside, asks: self.registration.asks }
    }

    /// Puts the registration again each minute, when its worker's standing has changed, and when somebody asks.
    fn look_after_registration(&mut self) {
        let Some(session) = &self.session else { return };
        let is_right = session.standing.aside != self.clocks.trusted();
        if self.draining || self.registering_again || !self.registration.is_due(is_right) {
            return;
        }
        let (sid, worker_id, standing) = (session.sid, session.worker_id.clone(), self.standing());
        let renewal = &mut self.registration;
        (renewal.in_flight, renewal.asked_for, renewal.asks) = (true, false, false);
        (renewal.put, renewal.after) = (Stopwatch::start(), Renewal::spread());
        let (ports, options, inputs) = (self.ports.clone(), self.options.clone(), self.inputs.clone());
        let retries = Arc::clone(&self.retries);
        tokio::spawn(async move {
            let (kv, clock) = (ports.kv.as_ref(), ports.clock.as_ref());
            let sent = Stopwatch::start();
            let renewed = session::renew(kv, clock, &options.identity, &worker_id, sid, standing).await;
            if let Err(why) = &renewed {
                retries.registration_renewal.failed(why);
            } else {
                retries.registration_renewal.worked();
            }
            let revision = renewed.ok().flatten();
            let _gone = inputs.send(Input::Renewed { sid, sent, standing, revision }).await;
        });
    }

    // --- the session ----------------------------------------------------------------------------------------------

    /// Looks for a session in the background; the answer is [`Input::SessionReady`].
    fn seek_session(&mut self) {
        if let Some(earlier) = self.seeking.take() {
            // Of a store that went back meanwhile: two at once would take the registration from each other, with its session.
            earlier.abort();
        }
        let (ports, options, inputs) = (self.ports.clone(), self.options.clone(), self.inputs.clone());
        // Whoever is not known to be right asks at once.
        let standing = Standing { asks: !self.clocks.trusted(), ..self.standing() };
        self.seeking = Some(tokio::spawn(async move {
            let (kv, clock, id) = (ports.kv.as_ref(), ports.clock.as_ref(), options.worker_id.as_str());
            let ttl = options.session_ttl;
            let session = session::establish(kv, clock, &options.identity, id, ttl, standing).await;
            let _gone = inputs.send(Input::SessionReady(session)).await;
        }));
    }

    /// Renews the lease when it is time; takes the session for lost when it may have expired. Driven by this loop, so that a loop that is
    /// stuck loses its session (design P20).
    async fn look_after_session(&mut self) {
        let due = self.heartbeat.elapsed() >= self.options.session_ttl / RENEWALS_PER_TTL;
        if due {
            // Also without a session: the loop sleeps until the next heartbeat, and must never find it overdue.
            self.heartbeat = Stopwatch::start();
        }
        if due {
            let now = self.ports.clock.now();
            let oldest = self.scheduler.oldest_due_unclaimed(now);
            let age_ms = oldest.map_or(0, |due| now.ms_since(due));
            self.status.note_due(age_ms, self.scheduler.due_unclaimed(now, COUNTED_MAX));
        }
        let Some(session) = &self.session else { return };
        let sid = session.sid;
        if self.renewed.elapsed() >= self.options.session_ttl {
            return self.lose_session(sid, "it was not renewed in time").await;
        }
        if !due {
            return;
        }
        if self.all_marks_read.elapsed() >= READ_ALL_MARKS_EVERY {
            self.all_marks_read = Stopwatch::start();
            self.perform(Action::ReadMarks { slots: Slots::All, serializable: true }).await;
        }
        if self.audited.elapsed() >= AUDIT_EVERY && self.sink.waiting().unsettled() <= AUDITED_MAX {
            self.audited = Stopwatch::start();
            self.read_for_audit(sid);
        }
        self.keep_what_was_seen();
        let (kv, inputs) = (Arc::clone(&self.ports.kv), self.inputs.clone());
        let retries = Arc::clone(&self.retries);
        let sent = Stopwatch::start();
        tokio::spawn(async move {
            let input = match kv.keep_alive(sid.lease()).await {
                Ok(_ttl) => {
                    retries.renewal.worked();
                    Input::KeptAlive { sid, sent }
                }
                Err(kv::Error::LeaseGone) => Input::LeaseGone(sid),
                Err(why) => return retries.renewal.failed(&why),
            };
            let _gone = inputs.send(input).await;
            // No renewal says that the store went back, and this worker may have nothing else to ask for a long time.
            let _its_revision = kv.range(Range::key(keys::session(sid))).await;
        });
    }

    fn read_for_audit(&self, sid: Sid) {
        let (kv, inputs) = (Arc::clone(&self.ports.kv), self.inputs.clone());
        let retries = Arc::clone(&self.retries);
        tokio::spawn(async move {
            match audit::read(kv.as_ref(), sid).await {
                Ok(reading) => {
                    retries.audit.worked();
                    let _gone = inputs.send(Input::AuditRead(sid, reading)).await;
                }
                Err(kv::Error::LeaseGone) => {} // the renewal says so
                Err(why) => retries.audit.failed(&why),
            }
        });
    }

    /// Compares what was read with what is known now (design P5).
    fn audit(&mut self, sid: Sid, reading: Reading) {
        let Some(session) = self.session.as_ref().filter(|session| session.sid == sid) else { return };
        let name = keys::worker(&session.worker_id);
        if !self.draining && !self.registering_again && !reading.leased.contains(&name.clone().into()) {
            tracing::warn!(worker_id = %session.worker_id, "this worker's registration is gone: registering anew");
            self.register_again(sid);
        }
        let mut unknown = Unknown::default();
        if !self.scheduler.is_moving() {
            unknown.open = reading.open;
            unknown.open.retain(|pair| !self.knows_open(pair));
            unknown.leased = reading.leased;
            unknown.leased.retain(|key| match (keys::parse_lock(key), keys::parse_shared(key)) {
                (Some(job), _) => !self.scheduler.knows_lock(&job),
                (None, Some((job, run_id))) => !self.scheduler.knows_shared(&job, &run_id),
                (None, None) => {
                    let registration = key.strip_prefix(keys::WORKERS).is_some();
                    registration && !self.registering_again && key.as_bytes() != name.as_bytes()
                }
            });
        }
        let (ports, retries, status, suspects) = (
            self.closing_ports(),
            Arc::clone(&self.retries),
            Arc::clone(&self.status),
            Arc::clone(&self.suspects),
        );
        tokio::spawn(async move {
            let mut suspects = suspects.lock().await;
            let (kv, run_log) = (ports.kv.as_ref(), ports.run_log.as_ref());
            match suspects.judge(kv, run_log, ports.clock.as_ref(), sid, unknown).await {
                Ok(found) => status.count_audit_findings(found),
                Err(why) => retries.audit.failed(&why), // found again by the next two
            }
        });
    }

    /// One that cannot be read counts as known: what it is about cannot be told either.
    fn knows_open(&self, pair: &Pair) -> bool {
        let (Some((sid, seq)), Ok(open)) = (keys::parse_run(&pair.key), OpenRuns::decode(&pair.value)) else {
            return true;
        };
        self.sink.waiting().settles((sid, seq))
            || open.runs.iter().any(|run| self.scheduler.knows_open(sid, seq, run))
    }

    /// For a process of this worker that comes after this one.
    fn keep_what_was_seen(&self) {
        if let Some(file) = self.seen_file.clone() {
            let witness = Arc::clone(&self.witness);
            drop(tokio::task::spawn_blocking(move || file.keep(|| witness.seen())));
        }
    }

    async fn lose_session(&mut self, sid: Sid, why: &str) {
        if self.session.as_ref().is_none_or(|session| session.sid != sid) {
            return;
        }
        tracing::warn!(%sid, why, open_runs = self.scheduler.open_runs(), "session lost");
        self.session = None;
        self.status.count_lost_session();
        self.options.shell.guard().lease_lost();
        self.step(Event::SessionLost).await;
        // The scheduler has forgotten them.
        self.gates.close();
        self.claims.withdraw();
        self.adoptions.withdraw();
        if !self.draining {
            self.seek_session();
        }
    }

    /// The store went back to an earlier state, as after a restored backup (design P16): a new session, everything listed again, nothing
    /// caught up from before now. Commands that are going go on.
    async fn begin_anew(&mut self, news: WentBack) {
        tracing::error!(
            why = news.why,
            open_runs = self.scheduler.open_runs(),
            "the store was put back to an earlier state: everything is read again, fires up to now are not caught up"
        );
        self.status.count_rewind();
        self.inputs = self.inputs.of(news.era);
        for task in self.watching.drain(..) {
            task.abort();
        }
        self.registered.clear();
        self.registering_again = false;
        (self.registration.in_flight, self.registration.answered) = (false, 0);
        self.clocks.forget_revisions();
        // What is on its way is of before: nobody will say that it was answered.
        self.claims = Batches::new(CLAIMS_IN_FLIGHT);
        self.adoptions = Batches::new(ADOPTIONS_IN_FLIGHT);
        self.releases = Batches::new(RELEASES_IN_FLIGHT);
        let session = self.session.take();
        self.options.shell.guard().lease_lost();
        self.step(Event::StoreWentBack).await;
        self.gates.close();
        self.watch();
        if let Some(session) = session {
            // It may have come back with the backup, with locks and open runs of then. If this process dies here, it expires by itself.
            let kv = Arc::clone(&self.ports.kv);
            tokio::spawn(async move {
                let _gone_or_expires = kv.revoke(session.sid.lease()).await;
            });
        }
        if !self.draining {
            self.seek_session();
        }
    }

    async fn look_after_sink(&mut self) {
        let waiting = self.sink.waiting().figures();
        if waiting.is_full != self.sink_was_full {
            self.sink_was_full = waiting.is_full;
            if waiting.is_full {
                let Figures { records, memory_bytes, spool_bytes, fault, .. } = waiting;
                tracing::error!(
                    records,
                    memory_bytes,
                    spool_bytes,
                    ?fault,
                    "no room for more records: nothing is claimed until the record store takes them"
                );
            } else {
                tracing::info!(
                    records = waiting.records,
                    "there is room for records again: fires are claimed"
                );
            }
            self.step(Event::SinkFull(waiting.is_full)).await;
        }
    }

    /// The last of a draining worker: its records, then its session.
    async fn leave(&mut self) {
        let waited = Stopwatch::start();
        loop {
            let Figures { records, spool_bytes, memory_bytes, .. } = self.sink.waiting().figures();
            if records == 0 {
                break;
            }
            let left = LAST_RECORDS_MAX.saturating_sub(waited.elapsed());
            if clock::timeout(left, self.sink.stored_some()).await.is_err() {
                tracing::error!(
                    records,
                    spool_bytes,
                    memory_bytes,
                    "leaving although the record store has not taken all records: those on disk are stored by the next worker with this data \
                     directory, those in memory end as lost"
                );
                break;
            }
        }
        self.notices.last_words(LAST_RECORDS_MAX.saturating_sub(waited.elapsed())).await;
        // Nobody else knows of what these runs printed: it would stay until its age removes it.
        if let Err(why) = self.live.remove(self.ports.run_log.as_ref()).await {
            tracing::debug!(%why, "output of ended runs not removed");
        }
        if let Some(session) = self.session.take() {
            // If this process dies here, the session expires by itself.
            match self.ports.kv.revoke(session.sid.lease()).await {
                Ok(()) | Err(kv::Error::LeaseGone) => {}
                Err(why) => tracing::warn!(%why, "session not revoked; it expires by itself"),
            }
        }
        self.keep_what_was_seen();
        self.options.shell.supplies().tracer.flush(LAST_SPANS_MAX).await;
        tracing::info!("left");
    }

    // --- the scheduler --------------------------------------------------------------------------------------------

    async fn step(&mut self, event: Event) {
        let (now, mut actions) = self.look_at_clock();
        actions.extend(self.scheduler.step(now, event));
        for action in actions {
            self.perform(action).await;
        }
        self.start_runs(now);
    }

    async fn perform(&mut self, action: Action) {
        match action {
            Action::Claim(claim) => self.claims.put(*claim),
            Action::Prepare { open, work, due } => {
                let shells = self.gates.prepare(open, work, due, Arc::clone(&self.ports.clock));
                self.lead.note_shells(shells);
            }
            // All that starts at one time is told by one step, and shells that wait for it are let go together.
            Action::Start { open, work, due } => {
                self.starts.insert(open.run_id.clone(), (open, work, due));
            }
            Action::Kill(run_id, how) => {
                if let Some(running) = self.running.get(&run_id) {
                    running.kill(how);
                }
            }
            Action::Record { mut record, settles } => {
                traces::name(&self.options.shell.supplies().tracer, &mut record);
                self.status.count(&record, settles.is_some());
                self.sink.put(Entry { record, settles });
            }
            Action::Adopt(adoption) => self.adoptions.put(adoption),
            Action::ReadMarks { slots, serializable } => {
                let (kv, inputs) = (Arc::clone(&self.ports.kv), self.inputs.clone());
                let (clock, retries) = (Arc::clone(&self.ports.clock), Arc::clone(&self.retries));
                let requests = Arc::clone(&self.requests);
                tokio::spawn(async move {
                    let _permit = requests.acquire().await;
                    let asked_at = clock.now();
                    let tell = async |(slots, marks)| {
                        let read = Event::MarksRead { slots: Slots::Some(slots), marks, asked_at };
                        let _gone = inputs.send(Input::Event(read)).await;
                    };
                    match claims::read_marks(kv.as_ref(), &slots, serializable, tell).await {
                        Ok(()) => retries.marks.worked(),
                        Err(why) => {
                            retries.marks.failed(&why);
                            let _gone = inputs.send(Input::Event(Event::MarksUnread(slots))).await;
                        }
                    }
                });
            }
            Action::Release { run_id, job, sid, lock_revision, unlocked, not_before } => {
                let lock = HeldLock::new(job, lock_revision, sid, run_id, unlocked);
                let wait_ms = not_before.ms_since(self.ports.clock.now());
                if wait_ms <= 0 {
                    return self.releases.put(lock);
                }
                let (kv, retries) = (Arc::clone(&self.ports.kv), Arc::clone(&self.retries));
                // A length of time, not a time: a clock that is put back must not hold the lock for as long.
                let pause = Duration::from_millis(wait_ms.unsigned_abs());
                self.answer(pause, async move {
                    let only = std::slice::from_ref(&lock);
                    until_answered(&retries.locks, || claims::release_all(kv.as_ref(), only)).await;
                    Some(Event::Released(lock.holder.run_id))
                });
            }
            Action::Replace { claim, holders, killed } => {
                let (kv, retries) = (Arc::clone(&self.ports.kv), Arc::clone(&self.retries));
                tokio::spawn(async move {
                    // Asked again for as long as the fire waits.
                    match claims::replace(kv.as_ref(), &claim, &holders, killed).await {
                        Ok(()) => retries.replacing.worked(),
                        Err(why) => retries.replacing.failed(&why),
                    }
                });
            }
            Action::Move { open, from, to, rescue } => {
                let (kv, retries) = (Arc::clone(&self.ports.kv), Arc::clone(&self.retries));
                self.answer(Duration::ZERO, async move {
                    let moving = || claims::take_over(kv.as_ref(), &open, from, to, rescue);
                    // Without an answer the new session is over too: the next one asks again.
                    let answer = until_answered(&retries.moves, moving).await?;
                    Some(Event::MoveAnswered(open.run_id.clone(), to.0, to.1, answer))
                });
            }
            // Each job has one at most.
            Action::ClaimRequest(claim) => {
                let kv = Arc::clone(&self.ports.kv);
                self.answer(Duration::ZERO, async move {
                    let answer = claims::claim_request(kv.as_ref(), &claim).await;
                    Some(Event::RequestAnswered(claim, answer))
                });
            }
            Action::Close(close) => {
                let (kv, retries) = (Arc::clone(&self.ports.kv), Arc::clone(&self.retries));
                self.answer(Duration::ZERO, async move {
                    let answer =
                        until_answered(&retries.closing, || claims::close_run(kv.as_ref(), &close)).await?;
                    Some(Event::Closed(close.open.run_id.clone(), answer))
                });
            }
            Action::RetireMark { job, revision, mark } => {
                let (kv, retries) = (Arc::clone(&self.ports.kv), Arc::clone(&self.retries));
                tokio::spawn(async move {
                    // Tried again within the hour.
                    match claims::retire_mark(kv.as_ref(), &job, revision, &mark).await {
                        Ok(()) => retries.retiring.worked(),
                        Err(why) => retries.retiring.failed(&why),
                    }
                });
            }
            Action::GiveUpSession(sid) => {
                Box::pin(self.lose_session(sid, "a claim found it gone")).await;
            }
            Action::GiveUpStore(why) => self.witness.accuse(self.inputs.era, why),
            Action::NoteRestore { known, floor } => {
                let (kv, retries) = (Arc::clone(&self.ports.kv), Arc::clone(&self.retries));
                tokio::spawn(async move {
                    until_answered(&retries.restore, || claims::note_restore(kv.as_ref(), known, floor))
                        .await;
                });
            }
            Action::Report(report) => say(&report),
        }
    }

    /// Does something with the store in the background, within the bound of requests in flight, and takes its answer as an event.
    fn answer(&self, pause: Duration, work: impl Future<Output = Option<Event>> + Send + 'static) {
        let (inputs, requests) = (self.inputs.clone(), Arc::clone(&self.requests));
        tokio::spawn(async move {
            clock::sleep(pause).await;
            let permit = requests.acquire().await;
            let event = work.await;
            drop(permit);
            if let Some(event) = event {
                let _gone = inputs.send(Input::Event(event)).await;
            }
        });
    }

    /// Sends what waits and may be sent now.
    fn send_batches(&mut self) {
        while let Some(batch) = self.claims.next() {
            let (kv, inputs, status) =
                (Arc::clone(&self.ports.kv), self.inputs.clone(), Arc::clone(&self.status));
            let (clock, retries) = (Arc::clone(&self.ports.clock), Arc::clone(&self.retries));
            tokio::spawn(async move {
                let answers = match ahead_of(clock.now(), &batch.members) {
                    None => claims::claim_all(kv.as_ref(), &batch.members).await,
                    Some(claim) => {
                        retries.ahead.failed(&format!("{} at {}", claim.open.job, claim.mark.plan_time));
                        vec![ClaimAnswer::NotApplied; batch.members.len()]
                    }
                };
                for (claim, answer) in batch.members.iter().zip(&answers) {
                    if matches!(claim.kind, ClaimKind::Run | ClaimKind::Broadcast) {
                        status.count_claim(answer);
                    }
                }
                let ticket = batch.ticket();
                let answers = batch.members.into_iter().zip(answers).collect();
                let _gone = inputs.send(Input::ClaimsAnswered(ticket, answers)).await;
            });
        }
        while let Some(batch) = self.adoptions.next() {
            let (kv, inputs) = (Arc::clone(&self.ports.kv), self.inputs.clone());
            tokio::spawn(async move {
                let ticket = batch.ticket();
                let answers = claims::adopt_all(kv.as_ref(), &batch.members).await;
                let jobs = batch.members.into_iter().map(|adoption| adoption.job);
                let _gone = inputs.send(Input::Adopted(ticket, jobs.zip(answers).collect())).await;
            });
        }
        while let Some(batch) = self.releases.next() {
            let (kv, inputs, retries) =
                (Arc::clone(&self.ports.kv), self.inputs.clone(), Arc::clone(&self.retries));
            tokio::spawn(async move {
                let ticket = batch.ticket();
                let freeing = || claims::release_all(kv.as_ref(), &batch.members);
                until_answered(&retries.locks, freeing).await;
                let run_ids = batch.members.iter().map(|lock| lock.holder.run_id.clone()).collect();
                let _gone = inputs.send(Input::LocksFreed(ticket, run_ids)).await;
            });
        }
    }

    async fn take_claims(&mut self, ticket: Answered, answers: Vec<(Claim, ClaimAnswer)>) {
        let took = self.claims.answered(ticket);
        // An answer that waited behind others may come after the session's end: that goes first.
        self.look_after_session().await;
        let before = self.lead.ms();
        let unanswered =
            |answer: &ClaimAnswer| matches!(answer, ClaimAnswer::Unknown | ClaimAnswer::NotApplied);
        let away = answers.iter().all(|(_, answer)| unanswered(answer));
        for (claim, answer) in answers {
            self.step(answered(claim, answer)).await;
        }
        if away {
            // The store does not answer. What waits was never sent and would be late by then: it is decided anew.
            for claim in self.claims.withdraw() {
                self.step(answered(claim, ClaimAnswer::NotApplied)).await;
            }
            return;
        }
        self.lead.note(took);
        if self.lead.ms() != before {
            self.step(Event::Lead(self.lead.ms())).await;
        }
    }

    /// Tries in the background whether shells can be started ahead of their time; the answer is [`Input::GateHolds`], or none.
    fn make_gate(&self) {
        let (inputs, data_dir) = (self.inputs.clone(), self.options.data_dir.clone());
        let shell = Arc::clone(&self.options.shell);
        tokio::spawn(async move {
            let Some(data_dir) = data_dir.filter(|_| shell.is_bash()) else { return };
            match GateFile::make(&data_dir, &shell).await {
                Ok(file) => {
                    let _gone = inputs.send(Input::GateHolds(file)).await;
                }
                Err(why) => tracing::warn!(%why, "every shell is started at its time, none ahead of it"),
            }
        });
    }

    /// Starts runs whose time has come: those whose shells wait first.
    fn start_runs(&mut self, now: Timestamp) {
        let mut starts = std::mem::take(&mut self.starts);
        let begun = self.gates.open_due(now, self.ports.clock.as_ref(), &mut starts);
        for run in begun {
            self.status.count_start(run.trigger, run.start_time.ms_since(run.due));
            self.take_begun(run);
        }
        for (open, work, due) in starts.into_values() {
            self.start_run(open, work, due);
        }
    }

    fn start_run(&mut self, open: OpenRun, work: Work, due: Timestamp) {
        let now = self.ports.clock.now();
        let trigger = open.trigger;
        self.status.count_start(trigger, now.ms_since(due));
        let (mut running, asked) = Running::new(&work);
        running.span = traces::begin(&self.options.shell.supplies().tracer, &open);
        let of_run = traces::log_span(&open);
        let (run_id, of, captured) = (open.run_id.clone(), work.clone(), running.captured.clone());
        let clock = Arc::clone(&self.ports.clock);
        let (shell, outbound) = (Arc::clone(&self.options.shell), Arc::clone(&self.options.outbound));
        // A task of its own, so that a panic in it is this run's failure and nobody else's.
        let ending = async move {
            Some(match work.request() {
                // In a box: most runs are commands, and need no room for a request.
                Some(http) => {
                    let sent = request::run(&outbound, &open, &work, http, &captured, clock.as_ref(), asked);
                    Box::pin(sent).await
                }
                None => process::run(&shell, &open, &work, &captured, clock.as_ref(), asked).await,
            })
        };
        let ending = tokio::spawn(ending.instrument(of_run));
        self.take_begun(Begun { run_id, due, work: of, trigger, start_time: now, running, ending });
    }

    /// Keeps what there is of a command that has begun, waits for its end in the background, and takes that as an event.
    fn take_begun(&mut self, begun: Begun) {
        let Begun { run_id, work, start_time, running, ending, .. } = begun;
        self.live.begin(run_id.clone(), running.captured.clone());
        self.running.insert(run_id.clone(), running);
        let (clock, inputs) = (Arc::clone(&self.ports.clock), self.inputs.clone());
        tokio::spawn(async move {
            let ending = match ending.await {
                Ok(Some(ending)) => ending,
                Ok(None) => broken(&work, start_time, clock.now(), "its gate was closed"),
                Err(why) => broken(&work, start_time, clock.now(), &why.to_string()),
            };
            let _gone = inputs.send(Input::Event(Event::RunEnded(run_id, ending))).await;
        });
    }

    /// Sessions whose open runs are not to be swept here: the present one, and those of runs that are on their way from one to it.
    fn spare_own_sids(&self) {
        let mut spared = self.own_sids.lock().unwrap_or_else(PoisonError::into_inner);
        let present = self.session.as_ref().map(|session| session.sid);
        if spared.len() == 1 && spared.first().copied() == present {
            return; // the usual case, without a walk over all runs
        }
        let sids = self.scheduler.sids().into_iter().chain(present).collect();
        if *spared != sids {
            *spared = sids;
            self.sweeper.notify_one(); // what is no longer spared may have left open runs behind; and turns go by the present session
        }
    }
}

/// A claim of a time further ahead than any claim may be (design P8). None is decided so; the clock may have been put back since.
fn ahead_of(now: Timestamp, claims: &[Claim]) -> Option<&Claim> {
    claims.iter().find(|claim| claim.mark.plan_time > now.plus_ms(LEAD_MAX_MS))
}

fn answered(claim: Claim, answer: ClaimAnswer) -> Event {
    Event::ClaimAnswered(claim.open.run_id, claim.mark.plan_time, claim.open.job, answer)
}

fn broken(work: &Work, start_time: Timestamp, end_time: Timestamp, why: &str) -> Ending {
    tracing::error!(why, "running a command broke");
    Ending {
        status: Outcome::Failed,
        err: format!("fleetcron: {why}"),
        command: work.command.to_string(),
        output: String::new(),
        output_truncated: false,
        output_bytes: 0,
        start_time,
        end_time,
        exit_code: None,
        signal: None,
        http_status: None,
    }
}

/// Sends a request until it is answered; `None` when its lease is gone.
async fn until_answered<T, F>(retries: &Retries, mut send: impl FnMut() -> F) -> Option<T>
where
    F: Future<Output = Result<T, kv::Error>>,
{
    let mut failures = 0;
    loop {
        match send().await {
            Ok(answer) => {
                retries.worked();
                return Some(answer);
            }
            Err(kv::Error::LeaseGone) => return None,
            Err(why) => {
                failures += 1;
                retries.failed(&why);
                clock::sleep(backoff(failures - 1, RETRY_MIN_MS, RETRY_MAX_MS)).await;
            }
        }
    }
}

/// Sweeps whenever a session ends, when the turn of a sweep has come, and now and then in any case: nobody watches when all die.
async fn sweep_often(
    ports: Ports,
    asked: Arc<Notify>,
    own_sids: Arc<Mutex<BTreeSet<Sid>>>,
    floor: Arc<AtomicI64>,
    status: Arc<Status>,
) {
    let retries = Retries::new("open runs left behind not closed");
    let mut turns = Turns::new();
    loop {
        let spared = own_sids.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let floor = Timestamp::from_ms(floor.load(Relaxed));
        let (kv, run_log) = (ports.kv.as_ref(), ports.run_log.as_ref());
        let swept = sweep::sweep(kv, run_log, ports.clock.as_ref(), &spared, floor, Some(&mut turns)).await;
        let pause = match swept {
            Ok(closed) => {
                status.count_lost_found(closed);
                retries.worked();
                turns.next().map_or(SWEEP_EVERY, |turn| turn.min(SWEEP_EVERY))
            }
            Err(why) => {
                retries.failed(&why);
                clock::sleep(SWEEP_AGAIN).await;
                continue;
            }
        };
        let _asked_or_time = clock::timeout(pause, asked.notified()).await;
    }
}

/// Says what the scheduler reports.
fn say(report: &Report) {
    match report {
        Report::BadJob(job, why) => {
            tracing::error!(%job, why, "job cannot be run: left alone until it is saved anew")
        }
        Report::BadMark(job, why) => tracing::error!(%job, why, "mark cannot be read: its job is left alone"),
        Report::Skipped(open) => {
            let skipped = open.skipped.as_ref();
            let (from, to) = (skipped.map(|s| s.from), skipped.map(|s| s.to));
            let (count, reason) = (skipped.map(|s| s.count), skipped.map(|s| s.reason));
            tracing::warn!(job = %open.job, ?from, ?to, ?count, ?reason, "fires skipped");
        }
        Report::Seeds(seeds) if seeds.is_empty() => tracing::info!("no seed worker is registered any more"),
        Report::Seeds(seeds) => {
            tracing::warn!(
                ?seeds,
                "seed workers are registered: exactly-once holds among our own workers only"
            );
        }
        Report::MarkAhead(job, until) => {
            tracing::error!(%job, %until, "the job's mark is in the future, put there by a clock that was ahead: nothing is due before that time");
        }
        Report::LeftToSeed(job, plan_time) => {
            tracing::warn!(%job, %plan_time, "a seed worker holds the job's lock: fires count as run by it until it lets go");
        }
        Report::ClosedAsLost { run_id, killed: true } => {
            tracing::warn!(%run_id, "run was closed as lost while its session was gone: killed")
        }
        Report::ClosedAsLost { run_id, killed: false } => {
            tracing::warn!(%run_id, "run was closed as lost while its session was gone: it goes on, since runs of its job may overlap")
        }
        Report::Circle(job) => {
            tracing::error!(%job, "jobs wait for each other in a circle (after), this one among them: none is started by another's success until one of them is saved anew");
        }
        Report::WaitedFor(job) => {
            tracing::warn!(%job, "job was deleted, and others wait for it (after): they do not run until it is there again and succeeds");
        }
        Report::SucceededTooLate(run_id) => {
            tracing::warn!(%run_id, "run has succeeded, and was closed as lost before: the jobs that wait for it are not told");
        }
        Report::TooLate(open) => {
            tracing::warn!(job = %open.job, plan_time = %open.plan_time, "claimed too late: skipped")
        }
        Report::NoWorker(job, wanted) => {
            tracing::error!(%job, %wanted, "no worker has the labels that the job wants: its fires are let go until one has")
        }
    }
}
