//! The fleet under test: a cluster of etcd, MongoDB, an API, and workers that reach each member of etcd over a link of its own.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use common::clock::{Stopwatch, sleep};
use local_dev::native::ports::free_port;
use local_dev::native::process::{Process, get};
use local_dev::native::servers::{Server, Site};
use local_dev::native::{programs, target};
use rustix::process::Signal;

use super::link::{Link, Passing};
use super::plan::{Act, Version, WORKERS, Which};
use crate::cluster::Cluster;
use crate::fixtures::now_ms;

/// A worker that was told to end, and whose stores are there, ends within this.
const DRAIN_LIMIT: Duration = Duration::from_secs(90);

/// The programs that workers are.
#[derive(Clone, Debug)]
pub struct Programs {
    /// Of these sources.
    pub this: PathBuf,
    /// Of the version before, when there are two in the test.
    pub previous: Option<PathBuf>,
}

impl Programs {
    /// The worker of these sources alone, as Cargo has built it.
    ///
    /// # Errors
    /// When the system does not tell which program this is.
    pub fn of_this_version() -> anyhow::Result<Self> {
        Ok(Self { this: programs()?.join("worker"), previous: None })
    }

    fn of(&self, version: Version) -> anyhow::Result<&Path> {
        match version {
            Version::This => Ok(&self.this),
            Version::Previous => {
                self.previous.as_deref().context("there is no worker of the previous version")
            }
        }
    }
}

/// A time in which a worker was not its own master.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Disturbance {
    /// Which worker.
    pub worker: usize,
    /// What was wrong.
    pub what: Trouble,
    /// From when on, in ms since 1970.
    pub from: i64,
    /// Until when; the far future while it lasts.
    pub to: i64,
}

/// What was wrong with a worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trouble {
    /// Killed, and not back.
    Killed,
    /// Frozen.
    Frozen,
    /// Cut off from members of etcd.
    Cut,
    /// Its clock was off.
    Skewed,
}

/// The fleet.
pub struct Fleet {
    /// etcd.
    pub cluster: Cluster,
    /// MongoDB.
    pub mongo: Server,
    /// What befell the workers so far.
    pub disturbances: Vec<Disturbance>,
    /// What should not have happened, such as a worker that ended by itself.
    pub surprises: Vec<String>,
    programs: Programs,
    site: Site,
    workers: Vec<Worker>,
    api: Process,
    api_url: String,
    /// The member that is killed or frozen.
    member_away: Option<usize>,
}

struct Worker {
    id: String,
    links: Vec<Link>,
    process: Option<Process>,
    /// It was told to end.
    leaving: bool,
    /// What it shall be once the process of before has ended.
    wanted: Option<(Version, i64)>,
}

impl Fleet {
    /// Starts the stores and the API; no worker yet.
    ///
    /// # Errors
    /// When they do not start.
    pub async fn start(site: &Site, programs: Programs) -> anyhow::Result<Self> {
        let cluster = Cluster::start(site).await?;
        let mongo = Server::mongo(site, None).await?;
        let mut workers = Vec::new();
        for number in 1..=WORKERS {
            let mut links = Vec::new();
            for member in cluster.addresses() {
                links.push(Link::to(member).await.context("listen for a link")?);
            }
            workers.push(Worker {
                id: format!("w{number}"),
                links,
                process: None,
                leaving: false,
                wanted: None,
            });
        }
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let mut command = Command::new(local_dev::native::programs()?.join("local-dev"));
        command
            .env("CRON_ETCD_ENDPOINTS", cluster.endpoints())
            .env("CRON_MONGODB_URI", mongo.url())
            .env("CRON_WORKERS", "0")
            .env("CRON_LISTEN", address.to_string())
            .env("CRON_DATA_DIR", site.dir.join("local-dev"));
        let mut api =
            Process::start("local-dev", command, &site.dir.join("local-dev.log"), site.guard.as_ref())?;
        api.ready(async || get(address, "/worker/list").await.is_some()).await?;
        Ok(Self {
            cluster,
            mongo,
            disturbances: Vec::new(),
            surprises: Vec::new(),
            programs,
            site: site.clone(),
            workers,
            api,
            api_url: format!("http://{address}"),
            member_away: None,
        })
    }

    /// The base of the API's URLs.
    #[must_use]
    pub fn api_url(&self) -> String {
        self.api_url.clone()
    }

    /// Does one thing of a plan (edits are the editor's).
    ///
    /// # Errors
    /// When a server cannot be started again.
    pub async fn perform(&mut self, act: Act) -> anyhow::Result<()> {
        match act {
            Act::Crash(worker) => {
                let victim = &mut self.workers[worker];
                // It may have been told to end, with another to come after it: that one comes when the plan says so again.
                (victim.leaving, victim.wanted) = (false, None);
                if let Some(mut process) = victim.process.take() {
                    process.crash();
                    self.begin(worker, Trouble::Killed);
                }
            }
            Act::Freeze(worker) => {
                self.begin(worker, Trouble::Frozen);
                self.process(worker, Process::freeze);
            }
            Act::Thaw(worker) => {
                self.process(worker, Process::thaw);
                self.end(worker, Trouble::Frozen);
            }
            Act::Drain(worker) => {
                self.workers[worker].leaving = true;
                self.process(worker, |process| process.signal(Signal::TERM));
            }
            Act::Launch(worker, version, skew_ms) => {
                self.workers[worker].wanted = Some((version, skew_ms));
                self.look_after()?;
            }
            Act::Links(worker, member, passing) => {
                let open = passing == Passing::Open;
                if open {
                    self.end(worker, Trouble::Cut);
                } else {
                    self.begin(worker, Trouble::Cut);
                }
                for (number, link) in self.workers[worker].links.iter().enumerate() {
                    if member.is_none_or(|member| member == number) {
                        link.set(passing);
                    }
                }
            }
            Act::KillMember(which) => {
                let member = self.member(which).await;
                self.cluster.kill(member);
            }
            Act::StartMember => {
                if let Some(member) = self.member_away.take() {
                    self.cluster.start_again(member)?;
                }
            }
            Act::FreezeMember(which) => {
                let member = self.member(which).await;
                self.cluster.freeze(member);
            }
            Act::ThawMember => {
                if let Some(member) = self.member_away.take() {
                    self.cluster.thaw(member);
                }
            }
            Act::KillMongo => self.mongo.kill(),
            Act::StartMongo => self.mongo.restart().await?,
            Act::Edit(..) => {}
        }
        Ok(())
    }

    async fn member(&mut self, which: Which) -> usize {
        let member = match which {
            Which::Number(member) => member,
            Which::Leader => self.cluster.leader().await.unwrap_or(0),
        };
        self.member_away = Some(member);
        member
    }

    fn process(&mut self, worker: usize, act: impl FnOnce(&mut Process)) {
        if let Some(process) = &mut self.workers[worker].process {
            act(process);
        }
    }

    fn begin(&mut self, worker: usize, what: Trouble) {
        self.disturbances.push(Disturbance { worker, what, from: now_ms(), to: i64::MAX });
    }

    fn end(&mut self, worker: usize, what: Trouble) {
        let now = now_ms();
        let open = |d: &&mut Disturbance| d.worker == worker && d.what == what && d.to == i64::MAX;
        for disturbance in self.disturbances.iter_mut().filter(open) {
            disturbance.to = now;
        }
    }

    /// Notices workers that have ended, and starts those that shall run.
    ///
    /// # Errors
    /// When a worker cannot be started.
    pub fn look_after(&mut self) -> anyhow::Result<()> {
        for number in 0..self.workers.len() {
            let worker = &mut self.workers[number];
            if let Some(status) = worker.process.as_mut().and_then(Process::ended) {
                worker.process = None;
                if !std::mem::take(&mut worker.leaving) || !status.success() {
                    self.surprises
                        .push(format!("worker {} ended by itself, or not well: {status}", worker.id));
                }
                self.end(number, Trouble::Skewed);
            }
            let worker = &mut self.workers[number];
            if worker.process.is_none()
                && let Some((version, skew_ms)) = worker.wanted.take()
            {
                self.launch(number, version, skew_ms)?;
            }
        }
        if let Some(status) = self.api.ended() {
            bail!("the API has ended: {status}\n{}", self.api.tail());
        }
        Ok(())
    }

    fn launch(&mut self, number: usize, version: Version, skew_ms: i64) -> anyhow::Result<()> {
        let program = self.programs.of(version)?;
        let worker = &self.workers[number];
        let endpoints: Vec<String> =
            worker.links.iter().map(|link| format!("http://{}", link.address())).collect();
        let mut command = Command::new(program);
        command
            .env("CRON_WORKER_ID", &worker.id)
            .env("CRON_ETCD_ENDPOINTS", endpoints.join(","))
            .env("CRON_MONGODB_URI", self.mongo.url())
            .env("CRON_WORKER_LISTEN", "127.0.0.1:0")
            .env("CRON_DATA_DIR", self.site.dir.join(format!("{}-data", worker.id)));
        let library = if skew_ms == 0 { None } else { faketime() };
        if let Some(library) = &library {
            let sign = if skew_ms < 0 { '-' } else { '+' };
            let (seconds, ms) = (skew_ms.abs() / 1000, skew_ms.abs() % 1000);
            command
                .env("LD_PRELOAD", library)
                .env("FAKETIME", format!("{sign}{seconds}.{ms:03}"))
                .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        let log = self.site.dir.join(format!("{}.log", worker.id));
        let process = Process::start(&worker.id, command, &log, self.site.guard.as_ref())?;
        self.workers[number].process = Some(process);
        self.end(number, Trouble::Killed);
        if library.is_some() {
            self.begin(number, Trouble::Skewed);
        }
        Ok(())
    }

    /// Tells all workers to end, and waits until they have.
    ///
    /// # Errors
    /// When one does not.
    pub async fn drain(&mut self) -> anyhow::Result<()> {
        for worker in 0..self.workers.len() {
            self.workers[worker].wanted = None;
            self.perform(Act::Drain(worker)).await?;
        }
        let since = Stopwatch::start();
        loop {
            self.look_after()?;
            let Some(worker) = self.workers.iter().find(|worker| worker.process.is_some()) else {
                return Ok(());
            };
            if since.elapsed() > DRAIN_LIMIT {
                bail!("worker {} did not end within {DRAIN_LIMIT:?} after it was told to", worker.id);
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// The lines of the workers' logs that call for a person, by what they say, with their numbers.
    #[must_use]
    pub fn alarms(&self) -> Vec<(String, usize)> {
        let mut counts = std::collections::BTreeMap::<String, usize>::new();
        for worker in &self.workers {
            let log = std::fs::read(self.site.dir.join(format!("{}.log", worker.id))).unwrap_or_default();
            for line in String::from_utf8_lossy(&log).lines() {
                if line.contains("panicked at") || line.contains("ERROR") {
                    *counts.entry(without_particulars(line)).or_default() += 1;
                }
            }
        }
        counts.into_iter().collect()
    }
}

/// A line of a log without what differs from one to the next: everything that holds a digit.
fn without_particulars(line: &str) -> String {
    let words = line.split_whitespace().filter(|word| !word.contains(|c: char| c.is_ascii_digit()));
    words.take(16).collect::<Vec<_>>().join(" ")
}

/// The library that gives a process another clock, where it is installed or was unpacked.
#[must_use]
pub fn faketime() -> Option<PathBuf> {
    let roots = [PathBuf::from("/"), target().join("tools/faketime")];
    let libraries = roots.iter().flat_map(|root| {
        let lib = root.join("usr/lib");
        let machines =
            std::fs::read_dir(&lib).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
        machines.chain([lib.clone()]).map(|dir| dir.join("faketime/libfaketimeMT.so.1")).collect::<Vec<_>>()
    });
    libraries.into_iter().find(|library| library.exists())
}
