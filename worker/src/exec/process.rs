//! One run's command: a shell in its own process group, from its start to the end of the group.

use std::io::{self, PipeReader};
use std::path::PathBuf;
use std::pin::pin;
use std::process::ExitStatus;
use std::time::Duration;

use common::clock::{self, Clock, Timestamp};
use common::domain::execution::Execution;
use common::domain::record::{Ending, Status};
use common::domain::run::OpenRun;
use common::traces::Span;
use futures::FutureExt as _;
use futures::future::FusedFuture;
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use tokio::net::unix::pipe;
use tokio::process::Child;
use tokio::sync::watch;

use super::gate::{self, Place};
use super::output::{Captured, Kept};
use super::secrets::Resolved;
use super::shell::Shell;
use super::work::{Kill, Work};
use crate::guardian::{self, Group};

/// Background processes of a command that has exited may go on printing for so long; then their group is killed.
const LINGER: Duration = Duration::from_secs(5);
/// Output that is in the pipe when the group is killed is read for so long: a process that left the group may hold the pipe for ever.
const LAST_OUTPUT: Duration = Duration::from_secs(1);
/// Whether a group that was asked to end is gone is looked at this often, once its first process has ended.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What the worker has of a command that is going.
#[derive(Debug)]
pub(crate) struct Running {
    kill: watch::Sender<Option<Kill>>,
    /// What it has printed so far.
    pub(crate) captured: Captured,
    /// Where its trace is kept.
    pub(crate) span: Option<Box<Span>>,
}

/// What is asked of a command that is going.
pub(crate) type Asked = watch::Receiver<Option<Kill>>;

impl Running {
    /// Of a command that is about to go. Dropped, it asks for nothing.
    pub(crate) fn new(work: &Work) -> (Self, Asked) {
        let (kill, asked) = watch::channel(None);
        (Self { kill, captured: Captured::new(work.execution().output_limit()), span: None }, asked)
    }

    /// Asks that it ends. What was asked before counts as long as it is more urgent.
    pub(crate) fn kill(&self, how: Kill) {
        self.kill.send_modify(|asked| *asked = (*asked).max(Some(how)));
    }
}

/// Runs a command to its end, or until it is killed. Never fails: what goes wrong is in the ending.
pub(crate) async fn run(
    shell: &Shell,
    open: &OpenRun,
    work: &Work,
    captured: &Captured,
    clock: &dyn Clock,
    mut asked: Asked,
) -> Ending {
    let start_time = clock.now();
    let started = async {
        let secrets = secrets_of(shell, open, work, captured, &mut asked).await?;
        shell.guard().ready(work.execution().has_fence()).await.map_err(failed)?;
        start(shell, open, work, &secrets, None).map_err(failed)
    };
    let started = started.await;
    to_its_end(started, work, captured, start_time, clock, asked).await
}

/// The secrets of a run, which are kept out of what it prints from now on. Who is killed meanwhile does not begin.
async fn secrets_of(
    shell: &Shell,
    open: &OpenRun,
    work: &Work,
    captured: &Captured,
    asked: &mut Asked,
) -> Result<Resolved, NotStarted> {
    if !work.has_secrets() {
        return Ok(Resolved::default());
    }
    let secrets = tokio::select! {
        biased;
        () = is_asked(asked, Kill::Gracefully) => return Err((Status::Killed, "killed before it began".to_owned())),
        // In a box: most runs have none, and need no room for it.
        secrets = Box::pin(shell.supplies().secrets.of(&open.job, work.execution())) => secrets.map_err(failed)?,
    };
    captured.hide(secrets.redactor());
    Ok(secrets)
}

/// As [`run`], by a shell that is started now and waits for its gate. `None` when that is closed: the command has not begun and never will.
pub(crate) async fn run_at_gate(
    place: Place,
    open: &OpenRun,
    work: &Work,
    captured: &Captured,
    clock: &dyn Clock,
    mut asked: Asked,
) -> Option<Ending> {
    let started = async {
        // Before it is its turn: whoever waits for secrets holds up nobody. Should it take longer than the lead, the gate is open by then, and
        // the line that this shell reads waits in its pipe.
        let secrets = secrets_of(&place.shell, open, work, captured, &mut asked).await?;
        // Not by the threads that the worker's loop needs at that time: whoever starts a process stands still until it has been scheduled.
        let _turn = place.turns.acquire().await;
        let (shell, open, work) = (place.shell.clone(), open.clone(), work.clone());
        shell.guard().ready(work.execution().has_fence()).await.map_err(failed)?;
        let start = move || start(&shell, &open, &work, &secrets, Some((place.file, place.stdin)));
        let started = tokio::task::spawn_blocking(start).await.unwrap_or_else(|why| Err(why.to_string()));
        started.map_err(failed)
    };
    let started = started.await;
    match (place.opened.await, started) {
        (Ok(start_time), Ok(started)) => {
            Some(to_its_end(Ok(started), work, captured, start_time, clock, asked).await)
        }
        // No process or no secret could be had then; perhaps now.
        (Ok(_), Err(_)) => Some(run(&place.shell, open, work, captured, clock, asked).await),
        (Err(_closed), Ok(mut going)) => {
            going.group.end().await;
            // It ends by itself, but a process that somebody has stopped does not.
            if let Err(why) = going.child.kill().await {
                tracing::warn!(%why, "a shell before a closed gate cannot be ended");
            }
            None
        }
        (Err(_closed), Err(_)) => None,
    }
}

/// A command that was started, or why it was not.
type Started = Result<Going, NotStarted>;

/// How a run ends that has not begun.
type NotStarted = (Status, String);

fn failed(why: String) -> NotStarted {
    (Status::Failed, why)
}

struct Going {
    /// First, so that it is dropped, and killed, before its leader can be reaped.
    group: Group,
    child: Child,
    stream: pipe::Receiver,
}

async fn to_its_end(
    started: Started,
    work: &Work,
    captured: &Captured,
    start_time: Timestamp,
    clock: &dyn Clock,
    asked: Asked,
) -> Ending {
    let execution = work.execution();
    let outcome = match started {
        Ok(going) => {
            let waited = wait(going, captured, execution, asked).await;
            waited.map_err(|why| failed(format!("wait: {why}")))
        }
        Err(why) => Err(why),
    };
    let Kept { text: output, truncated: output_truncated, total: output_bytes } = captured.kept();
    let (status, err, exit_code, signal) = match outcome {
        Ok((exit, ended_by)) => words(exit, ended_by, execution),
        Err((status, why)) => (status, captured.clean(why), None, None),
    };
    Ending {
        status,
        err,
        command: work.command.to_string(),
        output,
        output_truncated,
        output_bytes,
        start_time,
        end_time: clock.now(),
        exit_code,
        signal,
        http_status: None,
    }
}

/// Starts the command with stdout and stderr on one pipe, so that they stay in the order in which they were written; before a gate, if
/// one is given by its file and its pipe.
fn start(
    shell: &Shell,
    open: &OpenRun,
    work: &Work,
    secrets: &Resolved,
    gate: Option<(PathBuf, PipeReader)>,
) -> Result<Going, String> {
    let no_pipe = |why: io::Error| format!("pipe: {why}");
    let (reader, writer) = io::pipe().map_err(no_pipe)?;
    let mut command = shell.of_run(open, work, secrets)?;
    if let Some((file, stdin)) = gate {
        command.env(gate::VARIABLE, file).stdin(stdin);
    }
    command.stdout(writer.try_clone().map_err(no_pipe)?).stderr(writer);
    let guarded = shell.guard().start(work.execution().has_fence());
    command.envs(guarded.mark().map(|mark| (guardian::VARIABLE, mark)));
    let child = command.spawn().map_err(|why| shell.not_started(work, &why))?;
    let group = guarded.begun(child.id().and_then(|id| Pid::from_raw(id.cast_signed())));
    // `command` holds the writing ends; it goes here, so that the pipe ends with the last process that has it.
    drop(command);
    let stream = pipe::Receiver::from_owned_fd(reader.into());
    Ok(Going { group, child, stream: stream.map_err(no_pipe)? })
}

/// What made a command end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum EndedBy {
    Itself,
    Kill,
    Timeout,
    /// The worker's lease might have ended.
    Fence,
}

async fn wait(
    mut going: Going,
    captured: &Captured,
    execution: &Execution,
    mut asked: Asked,
) -> io::Result<(ExitStatus, EndedBy)> {
    let Going { group: guarded, child, stream } = &mut going;
    let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    let mut reading = Box::pin(captured.read_all(stream)).fuse();
    let mut exited = pin!(exit_unreaped(group));
    let mut overtime = pin!(async {
        match execution.timeout() {
            Some(limit) => clock::sleep(limit).await,
            None => std::future::pending().await,
        }
    });
    let ended = async {
        tokio::select! {
            biased;
            () = &mut exited => EndedBy::Itself,
            () = is_asked(&mut asked, Kill::Gracefully) => EndedBy::Kill,
            () = &mut overtime => EndedBy::Timeout,
        }
    };
    let ended_by = while_reading(&mut reading, ended).await;
    let mut is_gone = false;
    if ended_by != EndedBy::Itself {
        is_gone =
            end_gracefully(child, group, execution.kill_grace(), &mut reading, exited, &mut asked).await;
    } else if !reading.is_terminated() {
        // Exited, while something that it started still has the pipe: as in the seed, the run goes on, but not for ever.
        tokio::select! {
            () = &mut reading => {}
            () = clock::sleep(LINGER) => {}
            () = is_asked(&mut asked, Kill::Gracefully) => {}
            () = &mut overtime => {}
        }
    }
    // The leader is not reaped yet, so that its number cannot name another group; but for a group that was asked to end, which see. Nothing
    // that the run started outlives it, unless it left the group on purpose.
    if !is_gone {
        signal_group(group, Signal::KILL);
    }
    let fenced = guarded.end().await;
    let status = child.wait().await?;
    let ended_by = if fenced && ended_by == EndedBy::Itself && status.code().is_none() {
        EndedBy::Fence
    } else {
        ended_by
    };
    if !reading.is_terminated() {
        let _cut_off = clock::timeout(LAST_OUTPUT, &mut reading).await;
    }
    Ok((status, ended_by))
}

/// Asks the group to end, and gives it its time. Returns whether nothing of it is left.
async fn end_gracefully(
    child: &mut Child,
    group: Option<Pid>,
    grace: Duration,
    reading: impl FusedFuture<Output = ()> + Unpin,
    leader_exited: impl Future<Output = ()>,
    asked: &mut Asked,
) -> bool {
    if grace.is_zero() || *asked.borrow() >= Some(Kill::AtOnce) {
        return false;
    }
    signal_group(group, Signal::TERM);
    signal_group(group, Signal::CONT); // one that is stopped could not heed it
    let all_gone = async {
        leader_exited.await;
        // While the leader is not reaped it counts as one of the group, so it is. Its number stays taken as long as the group has others,
        // and numbers are given out in turn: in the moment between two looks none comes round again.
        let _told_again_later = child.wait().await;
        while group.is_some_and(|group| test_kill_process_group(group).is_ok()) {
            clock::sleep(LOOK_EVERY).await;
        }
    };
    let ended = async {
        tokio::select! {
            () = all_gone => true,
            () = clock::sleep(grace) => false,
            () = is_asked(asked, Kill::AtOnce) => false,
        }
    };
    while_reading(reading, ended).await
}

/// Waits for something, and meanwhile keeps the command from waiting for somebody to read what it prints.
async fn while_reading<T>(
    mut reading: impl FusedFuture<Output = ()> + Unpin,
    other: impl Future<Output = T>,
) -> T {
    let mut other = pin!(other);
    loop {
        tokio::select! {
            () = &mut reading, if !reading.is_terminated() => {}
            value = &mut other => return value,
        }
    }
}

/// Returns when at least this is asked for.
pub(super) async fn is_asked(asked: &mut Asked, how: Kill) {
    // A sender that is dropped asks for nothing.
    if asked.wait_for(|asked| *asked >= Some(how)).await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn signal_group(group: Option<Pid>, signal: Signal) {
    let Some(group) = group else { return };
    match kill_process_group(group, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(why) => tracing::warn!(%why, ?signal, "process group cannot be signalled"),
    }
}

/// Returns when the process has exited, without reaping it.
#[cfg(target_os = "linux")]
async fn exit_unreaped(process: Option<Pid>) {
    use rustix::process::{PidfdFlags, pidfd_open};
    let Some(process) = process else { return };
    let descriptor = pidfd_open(process, PidfdFlags::empty()).map_err(io::Error::from);
    #[expect(deprecated, reason = "sound for an OwnedFd; what replaces it is unsafe code")]
    match descriptor.and_then(tokio::io::unix::AsyncFd::new) {
        Ok(fd) => {
            let _readable = fd.readable().await;
        }
        Err(why) => {
            tracing::error!(%why, "cannot wait for a process by descriptor; asking now and then");
            poll_exit(process).await;
        }
    }
}

/// Returns when the process has exited, without reaping it.
#[cfg(not(target_os = "linux"))]
async fn exit_unreaped(process: Option<Pid>) {
    if let Some(process) = process {
        poll_exit(process).await;
    }
}

async fn poll_exit(process: Pid) {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
    while let Ok(None) = waitid(WaitId::Pid(process), look) {
        clock::sleep(Duration::from_millis(10)).await;
    }
}

/// The ending in the seed's words, which are Go's. What was killed or took too long never looks like a success.
fn words(
    exit: ExitStatus,
    ended_by: EndedBy,
    execution: &Execution,
) -> (Status, String, Option<i32>, Option<i32>) {
    use std::os::unix::process::ExitStatusExt as _;
    let (code, signal) = (exit.code(), exit.signal());
    let how = match (code, signal) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => {
            let core = if exit.core_dumped() { " (core dumped)" } else { "" };
            format!("signal: {}{core}", signal_words(signal))
        }
        (None, None) => exit.to_string(),
    };
    let (status, err) = match ended_by {
        EndedBy::Itself if code == Some(0) => (Status::Succeeded, String::new()),
        EndedBy::Itself => (Status::Failed, how),
        EndedBy::Kill if signal.is_some() => (Status::Killed, how),
        EndedBy::Kill => (Status::Killed, format!("{how} (killed)")),
        EndedBy::Fence => (Status::Killed, format!("{how} (fence: its worker's lease was about to end)")),
        EndedBy::Timeout => {
            let seconds = execution.timeout_seconds.unwrap_or_default();
            (Status::TimedOut, format!("{how} (timed out after {seconds} s)"))
        }
    };
    (status, err, code, signal)
}

/// Go's names of signals on Linux (`syscall.Signal.String`), from the first.
const SIGNALS: [&str; 31] = [
    "hangup",
    "interrupt",
    "quit",
    "illegal instruction",
    "trace/breakpoint trap",
    "aborted",
    "bus error",
    "floating point exception",
    "killed",
    "user defined signal 1",
    "segmentation fault",
    "user defined signal 2",
    "broken pipe",
    "alarm clock",
    "terminated",
    "stack fault",
    "child exited",
    "continued",
    "stopped (signal)",
    "stopped",
    "stopped (tty input)",
    "stopped (tty output)",
    "urgent I/O condition",
    "CPU time limit exceeded",
    "file size limit exceeded",
    "virtual timer expired",
    "profiling timer expired",
    "window changed",
    "I/O possible",
    "power failure",
    "bad system call",
];

fn signal_words(signal: i32) -> String {
    let name = usize::try_from(signal).ok().and_then(|signal| SIGNALS.get(signal.checked_sub(1)?));
    name.map_or_else(|| format!("signal {signal}"), |name| (*name).to_owned())
}

#[cfg(test)]
pub(crate) mod tests;
