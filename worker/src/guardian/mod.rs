//! The guardian: a second process that kills what the worker runs when that cannot (design P20).
//!
//! It is the worker's first child, in a session of its own, and has nothing of it but the reading end of a pipe. There it is told which
//! process groups have begun and ended, and until when runs with a `fence` may go on without the lease being renewed again. A worker that is
//! stopped (SIGSTOP), stuck or cut off passes that time: those groups are killed before another worker can start the job's next run. A worker
//! that dies, however it dies, leaves the pipe at its end: all groups are killed.
//!
//! A process has one guardian, however many workers it has. One that dies is replaced, and the new one is told everything.

mod marks;
mod orders;
mod watch;

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, PipeWriter, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use common::clock::{self, Stopwatch};
use common::config;
use common::ids::{backoff, random_id};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use crate::private;
use marks::Mark;
pub(crate) use marks::VARIABLE;
use orders::{GroupId, Member, Order, WorkerNumber};

/// The word on the command line that makes a program a guardian. It is no flag and in no help: nobody types it.
const WORD: &str = "guardian";
/// A guardian that takes no orders for so long is replaced: somebody has stopped it.
const STUCK_MAX: Duration = Duration::from_millis(if cfg!(test) { 2_000 } else { 5_000 });
/// How often it is looked whether there is room in the pipe again, or a guardian.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// A run with a fence waits so long for a guardian.
const GUARDIAN_MAX: Duration = Duration::from_millis(if cfg!(test) { 500 } else { 5_000 });
/// The process waits so long for its guardian to end when it ends itself.
const GOODBYE_MAX: Duration = Duration::from_secs(1);
/// Pauses before a guardian that could not be started is tried again double from the first to the second, in ms.
const RETRY_MIN_MS: u64 = 50;
const RETRY_MAX_MS: u64 = 5_000;

/// Makes this process a guardian, if its command line says so. `None`: it is none. To be called first of all.
#[must_use]
pub fn if_asked() -> Option<ExitCode> {
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    let [word, origin, first] = words.as_slice() else { return None };
    let first = first.to_str()?.parse().ok()?;
    if word != WORD {
        return None;
    }
    common::logging::init();
    match watch::run(&origin.to_string_lossy(), first) {
        Ok(()) => Some(ExitCode::SUCCESS),
        Err(why) => {
            tracing::error!(why = format!("{why:#}"), "the guardian cannot guard");
            Some(ExitCode::FAILURE)
        }
    }
}

/// This program, also when its file has been replaced since.
#[must_use]
pub fn this_program() -> PathBuf {
    if cfg!(target_os = "linux") {
        PathBuf::from("/proc/self/exe")
    } else {
        std::env::current_exe().unwrap_or_default()
    }
}

/// This process's guardian. Dropped, it ends; what still runs it kills.
#[derive(Debug)]
pub struct Guardian {
    told: Arc<Told>,
    workers: AtomicU16,
    ended: mpsc::Receiver<()>,
}

impl Guardian {
    /// Starts it: `program` is one of ours that calls [`if_asked`] first. To be called before the process has anything that the guardian
    /// should not have. One that cannot be started is tried again in the background: runs with a fence wait for it, others do not.
    #[must_use]
    pub fn start(program: &Path) -> Self {
        let told = Arc::new(Told {
            word: random_id(),
            numbers: AtomicU64::new(0),
            state: Mutex::new(State::default()),
        });
        if let Err(why) = private::close_on_exec() {
            tracing::warn!(%why, "the guardian may inherit descriptors that this process was started with");
        }
        marks::tag_this_process(&told.word);
        let first = told.start(program);
        let (ending, ended) = mpsc::channel();
        let (keeper, program) = (Arc::clone(&told), program.to_owned());
        std::thread::spawn(move || {
            keeper.keep(&program, first);
            drop(ending);
        });
        Self { told, workers: AtomicU16::new(0), ended }
    }

    /// For one more worker of this process.
    #[must_use]
    pub fn guard(&self) -> Guard {
        Guard { told: Some(Arc::clone(&self.told)), worker: self.workers.fetch_add(1, Relaxed) }
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        {
            let mut state = self.told.state();
            state.closing = true;
            if state.groups.is_empty() {
                state.put(Order::Done);
            }
            state.line = None;
        }
        let _ended_or_stopped = self.ended.recv_timeout(GOODBYE_MAX);
    }
}

/// What a worker has of its process's guardian. Clones are the same worker's.
#[derive(Clone, Debug)]
pub struct Guard {
    told: Option<Arc<Told>>,
    worker: WorkerNumber,
}

impl Guard {
    /// Where there is no guardian: nothing is guarded, and runs with a fence do not start.
    #[must_use]
    pub fn none() -> Self {
        Self { told: None, worker: 0 }
    }

    /// Runs with a fence may go on until `margin` before the end of a lease that was granted or renewed by what was sent at `sent`.
    pub(crate) fn lease_renewed(&self, sent: Stopwatch, ttl: Duration) {
        self.fence_at(nanoseconds(sent.since_boot() + ttl.saturating_sub(margin(ttl))));
    }

    /// The lease is gone, or may be: runs with a fence are killed now, and those that begin are, until there is a new one.
    pub(crate) fn lease_lost(&self) {
        self.fence_at(0);
    }

    fn fence_at(&self, at: u64) {
        let Some(told) = &self.told else { return };
        let mut state = told.state();
        // A time that has passed counts, also when nobody was awake to see it.
        if at == 0 || state.is_over(self.worker) {
            state.fence(self.worker);
        }
        state.deadlines.insert(self.worker, at);
        state.put(Order::FenceAt(self.worker, at));
    }

    /// Tells the guardian what it had no room for. To be called now and then.
    pub(crate) fn look_after(&self) {
        if let Some(told) = &self.told {
            told.state().flush();
        }
    }

    /// Waits until a run may start: one with a fence only under a guardian, and only while its lease lasts.
    ///
    /// # Errors
    /// There is none, and none comes; or the lease may have ended.
    pub(crate) async fn ready(&self, fence: bool) -> Result<(), String> {
        if !fence {
            return Ok(());
        }
        if self.told.as_ref().is_some_and(|told| told.state().is_over(self.worker)) {
            return Err("fleetcron: the job has a fence, and the worker's lease may have ended".to_owned());
        }
        let is_there = async || {
            while self.told.as_ref().is_some_and(|told| told.state().line.is_none()) {
                clock::sleep(LOOK_AGAIN).await;
            }
            self.told.is_some()
        };
        match clock::timeout(GUARDIAN_MAX, is_there()).await {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => {
                Err("fleetcron: the job has a fence, and this worker has no guardian".to_owned())
            }
        }
    }

    /// A command is about to be started.
    pub(crate) fn start(&self, fence: bool) -> Start {
        let number = self.told.as_ref().map_or(0, |told| told.numbers.fetch_add(1, Relaxed));
        Start { guard: self.clone(), member: Member { number, worker: self.worker, fence } }
    }
}

/// The part of a lease's life that is kept for killing: a fifth, which is two seconds of the usual ten. The guardian takes milliseconds; the
/// rest is for a machine that does not get round to it at once.
fn margin(ttl: Duration) -> Duration {
    ttl / 5
}

fn nanoseconds(since_boot: Duration) -> u64 {
    u64::try_from(since_boot.as_nanos()).unwrap_or(u64::MAX)
}

/// One start of a command.
#[derive(Debug)]
pub(crate) struct Start {
    guard: Guard,
    member: Member,
}

impl Start {
    /// What the command is to have in its environment as [`VARIABLE`]: should this process die before it has told of the group, the guardian
    /// finds it by this.
    pub(crate) fn mark(&self) -> Option<String> {
        let word = self.guard.told.as_ref()?.word.clone();
        Some(Mark { word, member: self.member }.to_string())
    }

    /// It has begun, as the leader of a group of its own: tells the guardian.
    pub(crate) fn begun(self, leader: Option<Pid>) -> Group {
        let group = Group { told: self.guard.told, id: leader.map(GroupId::of), fenced: false };
        let (Some(told), Some(id)) = (&group.told, group.id) else { return group };
        let mut state = told.state();
        state.groups.insert(id, Running { member: self.member, fenced: false });
        // If this process dies here, the guardian finds the group by the mark; a command that had time to clear its environment, it does not.
        state.put(Order::Begun(id, self.member));
        if state.is_over(self.member.worker) {
            state.fence(self.member.worker);
        }
        drop(state);
        group
    }
}

/// A run's process group under guard. Its leader must not be reaped before [`Self::end`]. Dropped without that, the group is killed: nobody
/// waits for it any more.
#[derive(Debug)]
pub(crate) struct Group {
    told: Option<Arc<Told>>,
    /// `None` once it has ended.
    id: Option<GroupId>,
    fenced: bool,
}

impl Group {
    /// The group is gone or killed; returns when the guardian has been told. Then the leader may be reaped: its number may become another
    /// group's, and the guardian must not take that for this one. Returns whether the group was killed since its lease might have ended.
    pub(crate) async fn end(&mut self) -> bool {
        let (Some(told), Some(id)) = (&self.told, self.id.take()) else { return self.fenced };
        let told = Arc::clone(told);
        let ticket = {
            let mut state = told.state();
            self.fenced = state.ended(id);
            state.queued
        };
        // Until there is room in the pipe, or another guardian, which was not told of the group.
        while told.state().sent < ticket {
            clock::sleep(LOOK_AGAIN).await;
            told.state().flush();
        }
        self.fenced
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            id.kill();
            if let Some(told) = &self.told {
                told.state().ended(id);
            }
        }
    }
}

/// What a guardian was told, or would be.
#[derive(Debug)]
struct Told {
    /// In the marks of this process's commands.
    word: String,
    /// The number of the next start.
    numbers: AtomicU64,
    state: Mutex<State>,
}

/// A group that is going.
#[derive(Clone, Copy, Debug)]
struct Running {
    member: Member,
    /// It was killed since its worker's lease might have ended.
    fenced: bool,
}

#[derive(Debug, Default)]
struct State {
    /// To the guardian; `None` while there is none.
    line: Option<PipeWriter>,
    /// Its process, until it is reaped.
    guardian: Option<Pid>,
    groups: BTreeMap<GroupId, Running>,
    deadlines: BTreeMap<WorkerNumber, u64>,
    /// Orders for which there was no room in the pipe. Bounded by the runs: none is reaped before its orders were sent.
    waiting: VecDeque<Order>,
    /// There is no room since then.
    stuck: Option<Stopwatch>,
    /// Orders so far, and those of them that do not wait any more.
    queued: u64,
    sent: u64,
    closing: bool,
}

impl State {
    fn put(&mut self, order: Order) {
        self.queued += 1;
        self.waiting.push_back(order);
        self.flush();
    }

    /// Never waits: when the pipe is full, the orders do.
    fn flush(&mut self) {
        while !self.waiting.is_empty() {
            let batch: Vec<u8> =
                self.waiting.iter().take(orders::PER_WRITE).flat_map(|order| order.encode()).collect();
            let Some(line) = &mut self.line else { return self.nobody_listens() };
            match line.write(&batch) {
                Ok(written) => {
                    let orders = written / orders::BYTES; // all of them: a pipe takes so few bytes whole or not at all
                    self.waiting.drain(..orders);
                    self.sent += orders as u64;
                    self.stuck = None;
                }
                Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => {
                    let since = *self.stuck.get_or_insert_with(Stopwatch::start);
                    if let Some(guardian) = self.guardian
                        && since.elapsed() >= STUCK_MAX
                    {
                        // Not reaped yet, so that the number is its own.
                        let _gone = kill_process(guardian, Signal::KILL);
                        tracing::error!("the guardian takes no orders: it is replaced");
                        self.nobody_listens();
                    }
                    return;
                }
                Err(_gone) => return self.nobody_listens(),
            }
        }
    }

    /// Until there is another, which is told what is going then.
    fn nobody_listens(&mut self) {
        self.line = None;
        self.waiting.clear();
        (self.sent, self.stuck) = (self.queued, None);
    }

    /// Tells a new guardian everything.
    fn listens(&mut self, line: PipeWriter, guardian: Pid) {
        self.nobody_listens();
        (self.line, self.guardian) = (Some(line), Some(guardian));
        let groups = self.groups.iter().map(|(id, running)| Order::Begun(*id, running.member));
        let deadlines = self.deadlines.iter().map(|(worker, at)| Order::FenceAt(*worker, *at));
        let all: Vec<Order> = deadlines.chain(groups).collect();
        self.queued += all.len() as u64;
        self.waiting.extend(all);
        self.flush();
    }

    /// Whether the worker's lease may have ended by now.
    fn is_over(&self, worker: WorkerNumber) -> bool {
        let now = nanoseconds(Stopwatch::start().since_boot());
        self.deadlines.get(&worker).is_some_and(|at| *at <= now)
    }

    /// Kills the worker's groups that have a fence. The guardian does so too; but it may be away, or may hear of a new lease before it looks.
    fn fence(&mut self, worker: WorkerNumber) {
        for (id, running) in &mut self.groups {
            if running.member.fence && running.member.worker == worker && !running.fenced {
                running.fenced = true;
                id.kill();
            }
        }
    }

    /// Whether it was fenced.
    fn ended(&mut self, id: GroupId) -> bool {
        let Some(running) = self.groups.remove(&id) else { return false };
        self.put(Order::Ended(id));
        running.fenced || (running.member.fence && self.is_over(running.member.worker))
    }
}

impl Told {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a guardian, and tells it everything. `None` when it cannot be started, or is not wanted any more.
    fn start(&self, program: &Path) -> Option<Child> {
        // What is being started just now is told to the new one, and is lost on it only if this process dies before that.
        let first = self.numbers.load(Relaxed);
        let started = spawn(program, &self.word, first).inspect_err(|why| {
            tracing::error!(%why, "no guardian: what runs would outlive this process if that was killed");
        });
        let (child, line) = started.ok()?;
        let mut state = self.state();
        if !state.closing {
            state.listens(line, Pid::from_child(&child));
        }
        Some(child)
    }

    /// Replaces guardians that end, until the process ends.
    fn keep(&self, program: &Path, mut guardian: Option<Child>) {
        let mut failures = 0;
        loop {
            if let Some(mut child) = guardian.take() {
                let started = Stopwatch::start();
                let exited = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
                let _exited =
                    rustix::io::retry_on_intr(|| waitid(WaitId::Pid(Pid::from_child(&child)), exited));
                let mut state = self.state();
                state.nobody_listens();
                state.guardian = None;
                let closing = state.closing;
                drop(state);
                let status = child.wait();
                if closing {
                    return;
                }
                tracing::error!(?status, "the guardian has ended: another is started");
                failures = if started.elapsed() >= STUCK_MAX { 0 } else { failures };
            }
            if self.state().closing {
                return;
            }
            if failures > 0 {
                std::thread::sleep(backoff(failures - 1, RETRY_MIN_MS, RETRY_MAX_MS));
            }
            failures += 1;
            guardian = self.start(program);
        }
    }
}

fn spawn(program: &Path, word: &str, first: u64) -> io::Result<(Child, PipeWriter)> {
    let (reader, writer) = io::pipe()?;
    rustix::io::ioctl_fionbio(&writer, true)?;
    let mut command = Command::new(program);
    // Whoever ends workers by their program's name (pkill -f) does not end their guardians with them.
    command
        .arg0("fleetcron-guardian")
        .arg(WORD)
        .arg(word)
        .arg(first.to_string())
        .stdin(reader)
        .stdout(Stdio::null());
    for private in config::private_variables() {
        command.env_remove(private);
    }
    Ok((command.spawn()?, writer))
}

#[cfg(test)]
mod tests;
