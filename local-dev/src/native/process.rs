//! Child servers: each in its own process group, its output in a file, ended with their handle or, by the guard, with this process.

use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use common::clock::{Stopwatch, sleep};
use rustix::io::retry_on_intr;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, waitid};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::guard::{Guard, kill_tree};

/// Tells the servers of `tests/servers` (nobody else knows it) to end with their standard input, and so with this process.
const EXIT_ON_STDIN_EOF: (&str, &str) = ("FLEETCRON_EXIT_ON_STDIN_EOF", "1");
/// How often a condition is looked at again.
pub const POLL: Duration = Duration::from_millis(20);
/// Lines of a server's log that an error shows.
const TAIL_LINES: usize = 15;
/// A server that has no limit of its own and is waited for so long does not come any more.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// A command for a server of `tests/servers`, or for what is installed in its place.
#[must_use]
pub fn server_command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env(EXIT_ON_STDIN_EOF.0, EXIT_ON_STDIN_EOF.1);
    command
}

/// A running server.
pub struct Process {
    name: String,
    child: Child,
    /// Held open and never written: a server that was told [`EXIT_ON_STDIN_EOF`] ends when it closes.
    _stdin: Option<ChildStdin>,
    log: PathBuf,
    guard: Option<Guard>,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts a server; its output is appended to `log`.
    ///
    /// # Errors
    /// When the log or the program cannot be opened.
    pub fn start(
        name: &str,
        mut command: Command,
        log: &Path,
        guard: Option<&Guard>,
    ) -> anyhow::Result<Self> {
        if let Some(dir) = log.parent() {
            std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        }
        let mut output = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("open {}", log.display()))?;
        writeln!(output, "--- {:?}", command.get_program())?;
        command.stdin(Stdio::piped()).stdout(output.try_clone()?).stderr(output).process_group(0);
        // Our own settings are not the child's: it gets just those that its command names.
        let given: Vec<_> = command.get_envs().map(|(name, _)| name.to_owned()).collect();
        for private in common::config::private_variables().filter(|name| !given.contains(name)) {
            command.env_remove(private);
        }
        let mut child = command
            .spawn()
            .with_context(|| format!("start {name} ({})", Path::new(command.get_program()).display()))?;
        // If this process dies right here, the server ends by its standard input or stays: the guard does not know it yet.
        if let Some(guard) = guard {
            guard.watch(child.id());
        }
        let stdin = child.stdin.take();
        Ok(Self {
            name: name.to_owned(),
            child,
            _stdin: stdin,
            log: log.to_owned(),
            guard: guard.cloned(),
            ended: None,
        })
    }

    /// What it was started as.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its output goes.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none()
            && let Ok(Some(status)) = self.child.try_wait()
        {
            self.ended = Some(status);
            if let Some(guard) = &self.guard {
                guard.forget(self.child.id());
            }
        }
        self.ended
    }

    /// Sends a signal to the process alone.
    pub fn signal(&mut self, signal: Signal) {
        if self.ended().is_none() {
            // Not waited for yet, so the id is still its own.
            let _gone = rustix::process::kill_process(Pid::from_child(&self.child), signal);
        }
    }

    /// Stops it in its tracks (SIGSTOP): its connections stay, answers do not come.
    pub fn freeze(&mut self) {
        self.signal(Signal::STOP);
        if self.ended().is_none() {
            // Its threads stop one after the other; the news comes when the last one has. It is left there: a second freeze finds it.
            let news = WaitIdOptions::STOPPED | WaitIdOptions::NOWAIT;
            let _gone = retry_on_intr(|| waitid(WaitId::Pid(Pid::from_child(&self.child)), news));
        }
    }

    /// Lets it go on after [`Self::freeze`].
    pub fn thaw(&mut self) {
        self.signal(Signal::CONT);
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it still runs after `limit`.
    pub async fn wait(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let waited = Stopwatch::start();
        loop {
            if let Some(status) = self.ended() {
                return Ok(status);
            }
            if waited.elapsed() > limit {
                bail!("{} still runs {limit:?} after it was told to end\n{}", self.name, self.tail());
            }
            sleep(POLL).await;
        }
    }

    /// Asks it to end, waits, and kills it when it does not.
    pub async fn stop(&mut self, signal: Signal, limit: Duration) {
        self.signal(signal);
        if self.wait(limit).await.is_err() {
            self.kill();
        }
    }

    /// Kills it (SIGKILL), its process group and its descendants, and waits for its end.
    pub fn kill(&mut self) {
        if self.ended().is_none() {
            if let Ok(pid) = i32::try_from(self.child.id()) {
                kill_tree(pid);
            }
            self.reap();
        }
    }

    /// Kills just the process (SIGKILL), as a crash would, and waits for its end; what it started goes on.
    pub fn crash(&mut self) {
        self.signal(Signal::KILL);
        self.reap();
    }

    fn reap(&mut self) {
        if self.ended.is_none() {
            self.ended = self.child.wait().ok();
            if let Some(guard) = &self.guard {
                guard.forget(self.child.id());
            }
        }
    }

    /// Waits until `probe` says yes.
    ///
    /// # Errors
    /// When the process ends before, or it takes over a minute; with the end of its log.
    pub async fn ready(&mut self, probe: impl AsyncFnMut() -> bool) -> anyhow::Result<()> {
        self.ready_within(READY_LIMIT, POLL, probe).await
    }

    /// Asks `probe`, `every` so often, until it says yes.
    ///
    /// # Errors
    /// When the process ends before, or it takes longer than `limit`; with the end of its log.
    pub async fn ready_within(
        &mut self,
        limit: Duration,
        every: Duration,
        mut probe: impl AsyncFnMut() -> bool,
    ) -> anyhow::Result<()> {
        let waited = Stopwatch::start();
        loop {
            if let Some(status) = self.ended() {
                bail!("{} ended while it was starting ({status})\n{}", self.name, self.tail());
            }
            if probe().await {
                return Ok(());
            }
            if waited.elapsed() > limit {
                bail!("{} was not ready after {limit:?}\n{}", self.name, self.tail());
            }
            sleep(every).await;
        }
    }

    /// The end of its log.
    #[must_use]
    pub fn tail(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
        format!("{tail}\n(the whole log: {})", self.log.display())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The answer to a plain `GET`: status and body; `None` when nobody answers. For readiness only: the tests have a real client.
pub async fn get(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    let talk = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = Vec::new();
        stream.take(64 * 1024).read_to_end(&mut answer).await.ok()?;
        let answer = String::from_utf8_lossy(&answer);
        let status = answer.split(' ').nth(1)?.parse().ok()?;
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
        Some((status, body))
    };
    common::clock::timeout(Duration::from_secs(2), talk).await.ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freezing_ends_when_the_process_stands_and_never_hangs() {
        let mut command = Command::new("sleep");
        command.arg("1000");
        let mut process = Process::start("sleeper", command, Path::new("/dev/null"), None).unwrap();
        let stat = format!("/proc/{}/stat", process.pid());
        for _again in 0..2 {
            process.freeze();
            let stat = std::fs::read_to_string(&stat).unwrap();
            assert!(stat.contains(") T "), "{stat}");
        }
        process.thaw();
        process.freeze();
        process.kill();
        process.freeze();
    }
}
