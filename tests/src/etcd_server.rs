//! An etcd of the test's own: on free loopback ports, with a data directory of its own, ended with the test.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use common::clock::{Stopwatch, sleep};
use common::config::EtcdSettings;
use common::kv::etcd::EtcdKv;
use common::kv::{Kv, Range};
use rustix::process::{Pid, Signal, kill_process};

/// Longest start; seconds are usual on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(60);

/// A running etcd.
pub struct EtcdServer {
    binary: PathBuf,
    dir: tempfile::TempDir,
    client_port: u16,
    peer_port: u16,
    extra: Vec<String>,
    process: Child,
}

impl EtcdServer {
    /// Starts one with further flags; `None`, said aloud, where there is no etcd.
    pub async fn start(extra: &[&str]) -> Option<Self> {
        let binary = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/servers/etcd");
        if !binary.exists() {
            println!("SKIPPED: no etcd (cargo run -p tests provides one)");
            return None;
        }
        let (client_port, peer_port) = free_ports().expect("loopback has free ports");
        let dir = tempfile::tempdir().expect("a temporary directory");
        let extra: Vec<String> = extra.iter().map(|&flag| flag.to_owned()).collect();
        let process = spawn(&binary, dir.path(), client_port, peer_port, &extra).expect("etcd starts");
        let server = Self { binary, dir, client_port, peer_port, extra, process };
        server.ready().await.expect("etcd answers");
        Some(server)
    }

    /// How to reach it.
    #[must_use]
    pub fn settings(&self) -> EtcdSettings {
        let endpoints = Some(vec![format!("http://127.0.0.1:{}", self.client_port)]);
        EtcdSettings { endpoints, ..EtcdSettings::default() }
    }

    /// A client of it.
    #[must_use]
    pub fn kv(&self, call_limit: Duration) -> EtcdKv {
        EtcdKv::new(&self.settings(), call_limit).expect("good settings")
    }

    /// Kills it with -9.
    pub fn kill(&mut self) {
        self.process.kill().expect("it runs");
        self.process.wait().expect("it was killed");
    }

    /// Starts it again after [`Self::kill`].
    pub async fn restart(&mut self) {
        self.process = spawn(&self.binary, self.dir.path(), self.client_port, self.peer_port, &self.extra)
            .expect("etcd starts again");
        self.ready().await.expect("etcd answers again");
    }

    /// Stops it where it stands: connections stay open and nothing answers.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.process);
        kill_process(pid, signal).expect("it runs");
    }

    async fn ready(&self) -> Result<()> {
        let kv = self.kv(Duration::from_secs(2));
        let started = Stopwatch::start();
        loop {
            match kv.range(Range::key("ready")).await {
                Ok(_) => return Ok(()),
                Err(e) if started.elapsed() > START_LIMIT => {
                    let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
                    bail!("etcd does not answer: {e}\n{log}")
                }
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

impl Drop for EtcdServer {
    fn drop(&mut self) {
        let _gone = self.process.kill();
        let _gone = self.process.wait();
    }
}

fn free_ports() -> Result<(u16, u16)> {
    // Held together, so that they differ; etcd takes them a moment later.
    let listeners = (TcpListener::bind(("127.0.0.1", 0))?, TcpListener::bind(("127.0.0.1", 0))?);
    Ok((listeners.0.local_addr()?.port(), listeners.1.local_addr()?.port()))
}

fn spawn(binary: &Path, dir: &Path, client_port: u16, peer_port: u16, extra: &[String]) -> Result<Child> {
    let client = format!("http://127.0.0.1:{client_port}");
    let peer = format!("http://127.0.0.1:{peer_port}");
    let log = File::options().create(true).append(true).open(dir.join("log"))?;
    Command::new(binary)
        .args(["--name", "test", "--log-level", "warn"])
        .arg("--data-dir")
        .arg(dir.join("data"))
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("test={peer}")])
        .args(extra)
        .stdin(std::process::Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("etcd")
}
