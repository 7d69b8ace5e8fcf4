//! A MongoDB-protocol server on a loopback port with a directory of its own, for one test.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use common::clock::{Stopwatch, sleep};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use tempfile::TempDir;

/// What a test prints when there is no server.
pub const SKIPPED: &str = "SKIPPED: no MongoDB-protocol server (cargo run -p tests provides one)";

/// How long a start may take; on a loaded machine it is about a second.
const START_MAX: Duration = Duration::from_secs(30);
/// Pause between two looks at whether it answers.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The server; ends with this value.
pub struct MongoServer {
    program: PathBuf,
    port: u16,
    data: TempDir,
    child: Option<Child>,
}

impl MongoServer {
    /// The server's program, if the runner has built it.
    #[must_use]
    pub fn program() -> Option<PathBuf> {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/servers/ferretdb");
        program.exists().then_some(program)
    }

    /// Starts one on a free port, with no data.
    ///
    /// # Errors
    /// When it does not answer in time.
    pub async fn start(program: PathBuf) -> anyhow::Result<Self> {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let mut server = Self { program, port, data: tempfile::tempdir()?, child: None };
        server.start_again().await?;
        Ok(server)
    }

    /// Starts it again after [`stop`](Self::stop): same port, same data.
    ///
    /// # Errors
    /// When it does not answer in time.
    pub async fn start_again(&mut self) -> anyhow::Result<()> {
        self.stop();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let child = Command::new(&self.program)
            .arg("-listen")
            .arg(address.to_string())
            .arg("-data")
            .arg(self.data.path())
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| self.program.display().to_string())?;
        let child = self.child.insert(child);
        let waited = Stopwatch::start();
        while TcpStream::connect(address).is_err() {
            if let Some(status) = child.try_wait()? {
                bail!("the server ended at once: {status}");
            }
            if waited.elapsed() > START_MAX {
                bail!("the server does not answer on {address}");
            }
            sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Its address.
    #[must_use]
    pub fn uri(&self) -> String {
        format!("mongodb://127.0.0.1:{}", self.port)
    }

    /// Its port on loopback.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Ends it without notice; its data stays.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _gone_already = child.kill();
            let _reaped_already = child.wait();
        }
    }

    /// Stops it in its tracks: it keeps its connections and answers nothing.
    ///
    /// # Errors
    /// When it does not run.
    pub fn freeze(&self) -> anyhow::Result<()> {
        self.signal(Signal::STOP)?;
        // Its threads stop one after the other; the news comes when the last one has.
        let child = self.child.as_ref().context("the server does not run")?;
        waitpid(Some(Pid::from_child(child)), WaitOptions::UNTRACED)?;
        Ok(())
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// When it does not run.
    pub fn thaw(&self) -> anyhow::Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let child = self.child.as_ref().context("the server does not run")?;
        Ok(kill_process(Pid::from_child(child), signal)?)
    }
}

impl Drop for MongoServer {
    fn drop(&mut self) {
        self.stop();
    }
}
