//! One run's command: `bash -c` in its own process group.

use std::io::{self, PipeReader};
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use common::clock::{self, Clock, Timestamp};
use common::config;
use common::domain::record::{Ending, Status};
use common::domain::run::OpenRun;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::sync::oneshot;

use super::gate::{self, Place};
use super::output::Captured;
use super::work::Work;

/// The seed's shell.
const SHELL: &str = "/bin/bash";
/// Background processes of a command that has exited may go on printing for so long; then their group is killed.
const LINGER: Duration = Duration::from_secs(5);
/// Output that is in the pipe when the group is killed is read for so long: a process that left the group may hold the pipe for ever.
const LAST_OUTPUT: Duration = Duration::from_secs(1);

/// What the worker has of a command that is going.
#[derive(Debug)]
pub(crate) struct Running {
    /// Kills it; used at most once.
    pub(crate) kill: Option<oneshot::Sender<()>>,
    /// What it has printed so far.
    #[expect(dead_code, reason = "nobody looks yet")]
    pub(crate) captured: Captured,
}

/// Runs a command to its end, or until `kill` is fired. Never fails: what goes wrong is in the ending.
pub(crate) async fn run(
    open: &OpenRun,
    work: &Work,
    captured: &Captured,
    clock: &dyn Clock,
    kill: oneshot::Receiver<()>,
) -> Ending {
    let start_time = clock.now();
    let shell = start(open, work, None);
    to_its_end(shell, work, captured, start_time, clock, kill).await
}

/// As [`run`], by a shell that is started now and waits for its gate. `None` when that is closed: the command has not begun and never will.
pub(crate) async fn run_at_gate(
    place: Place,
    open: &OpenRun,
    work: &Work,
    captured: &Captured,
    clock: &dyn Clock,
    kill: oneshot::Receiver<()>,
) -> Option<Ending> {
    let shell = {
        // Not by the threads that the worker's loop needs at that time: whoever starts a process stands still until it has been scheduled.
        let _turn = place.turns.acquire().await;
        let (open, work) = (open.clone(), work.clone());
        let start = move || start(&open, &work, Some((place.file, place.stdin)));
        tokio::task::spawn_blocking(start).await.unwrap_or_else(|why| Err(io::Error::other(why)))
    };
    match (place.opened.await, shell) {
        (Ok(start_time), Ok(shell)) => {
            Some(to_its_end(Ok(shell), work, captured, start_time, clock, kill).await)
        }
        // No process could be had then; perhaps now.
        (Ok(_), Err(_)) => Some(run(open, work, captured, clock, kill).await),
        (Err(_closed), Ok((mut child, _))) => {
            // It ends by itself, but a process that somebody has stopped does not.
            if let Err(why) = child.kill().await {
                tracing::warn!(%why, "a shell before a closed gate cannot be ended");
            }
            None
        }
        (Err(_closed), Err(_)) => None,
    }
}

async fn to_its_end(
    shell: io::Result<(Child, pipe::Receiver)>,
    work: &Work,
    captured: &Captured,
    start_time: Timestamp,
    clock: &dyn Clock,
    kill: oneshot::Receiver<()>,
) -> Ending {
    let outcome = match shell {
        Ok((mut child, stream)) => wait(&mut child, stream, captured, kill).await,
        Err(why) => Err(why),
    };
    let (output, output_truncated) = captured.text();
    let (status, err, exit_code, signal) = match outcome {
        Ok(exit) => words(exit),
        Err(why) => (Status::Failed, format!("fork/exec {SHELL}: {why}"), None, None),
    };
    Ending {
        status,
        err,
        command: work.command.to_string(),
        output,
        output_truncated,
        start_time,
        end_time: clock.now(),
        exit_code,
        signal,
    }
}

/// A shell for a command, in a process group of its own and without this worker's settings.
pub(super) fn shell(command: &str) -> Command {
    let mut shell = Command::new(SHELL);
    shell.arg("-c").arg(command).stdin(Stdio::null()).process_group(0);
    for private in config::private_variables() {
        shell.env_remove(private);
    }
    shell
}

/// Starts the command with stdout and stderr on one pipe, so that they stay in the order in which they were written; before a gate, if
/// one is given by its file and its pipe.
fn start(
    open: &OpenRun,
    work: &Work,
    gate: Option<(PathBuf, PipeReader)>,
) -> io::Result<(Child, pipe::Receiver)> {
    let (reader, writer) = io::pipe()?;
    let mut shell = shell(&work.command);
    if let Some((file, stdin)) = gate {
        shell.env(gate::VARIABLE, file).stdin(stdin);
    }
    shell
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .env("CRON_JOB_NAME", open.job.as_str())
        .env("CRON_RUN_ID", open.run_id.as_str())
        .env("CRON_PLAN_TIME", open.plan_time.ms().to_string())
        .env("CRON_ATTEMPT", open.attempt.to_string());
    let child = shell.spawn()?;
    // `shell` holds the writing ends; it goes here, so that the pipe ends with the last process that has it.
    drop(shell);
    Ok((child, pipe::Receiver::from_owned_fd(reader.into())?))
}

async fn wait(
    child: &mut Child,
    stream: pipe::Receiver,
    captured: &Captured,
    kill: oneshot::Receiver<()>,
) -> io::Result<ExitStatus> {
    let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    let mut reading = Box::pin(captured.read_all(stream));
    let exited = exit_unreaped(group);
    tokio::pin!(exited);
    let mut kill = std::pin::pin!(async {
        // A sender that is dropped asks for nothing.
        if kill.await.is_err() {
            std::future::pending::<()>().await;
        }
    });
    let mut read_to_end = false;
    let killed = loop {
        tokio::select! {
            () = &mut reading, if !read_to_end => read_to_end = true,
            () = &mut exited => break false,
            () = &mut kill => break true,
        }
    };
    if !killed && !read_to_end {
        // Exited, while something that it started still has the pipe: as in the seed, the run goes on, but not for ever.
        tokio::select! {
            () = &mut reading => read_to_end = true,
            () = clock::sleep(LINGER) => {}
            () = &mut kill => {}
        }
    }
    // The leader is not reaped yet, so that its number cannot name another group. Nothing that the run started outlives it,
    // unless it left the group on purpose.
    if let Some(group) = group {
        match kill_process_group(group, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(why) => tracing::warn!(%why, "process group cannot be killed"),
        }
    }
    let status = child.wait().await?;
    if !read_to_end {
        let _cut_off = clock::timeout(LAST_OUTPUT, &mut reading).await;
    }
    Ok(status)
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

/// The ending in the seed's words, which are Go's.
fn words(exit: ExitStatus) -> (Status, String, Option<i32>, Option<i32>) {
    use std::os::unix::process::ExitStatusExt as _;
    match (exit.code(), exit.signal()) {
        (Some(0), _) => (Status::Succeeded, String::new(), Some(0), None),
        (Some(code), _) => (Status::Failed, format!("exit status {code}"), Some(code), None),
        (None, Some(signal)) => {
            let core = if exit.core_dumped() { " (core dumped)" } else { "" };
            (Status::Failed, format!("signal: {}{core}", signal_words(signal)), None, Some(signal))
        }
        (None, None) => (Status::Failed, exit.to_string(), None, None),
    }
}

/// Go's names of signals on Linux (`syscall.Signal.String`).
fn signal_words(signal: i32) -> String {
    let name = match signal {
        1 => "hangup",
        2 => "interrupt",
        3 => "quit",
        4 => "illegal instruction",
        5 => "trace/breakpoint trap",
        6 => "aborted",
        7 => "bus error",
        8 => "floating point exception",
        9 => "killed",
        10 => "user defined signal 1",
        11 => "segmentation fault",
        12 => "user defined signal 2",
        13 => "broken pipe",
        14 => "alarm clock",
        15 => "terminated",
        other => return format!("signal {other}"),
    };
    name.to_owned()
}

#[cfg(test)]
pub(super) mod tests;
