//! Release workers on one etcd and one store of records, and what is read of them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use ::tests::fixtures::{TestDir, guard, now_ms};
use anyhow::Context;
use common::clock::Timestamp;
use common::domain::job::{Job, JobName};
use common::domain::mark::Mark;
use common::domain::settings::FleetSettings;
use common::keys;
use common::kv::OPS_MAX;
use etcd_client::{Client, DeleteOptions, GetOptions, Txn, TxnOp};
use futures::TryStreamExt;
use local_dev::native::ports::free_port;
use local_dev::native::process::{self, Process};
use local_dev::native::servers::{Server, Site};
use local_dev::native::workspace;
use mongodb::bson::{Document, doc};
use serde_json::json;

use super::machine::{self, Cpu};
use super::wait_for;

/// No fire takes so long to start, end and be recorded.
const QUIET_LIMIT: Duration = Duration::from_secs(120);
/// etcd's quota: a million jobs with their marks, twice over.
const QUOTA: &str = "--quota-backend-bytes=8589934592";

/// The worker that is measured.
pub(super) fn worker_program() -> PathBuf {
    workspace().join("target/release/worker")
}

/// A worker process.
pub(super) struct Worker {
    /// Its process.
    pub(super) process: Process,
    address: SocketAddr,
}

impl Worker {
    /// Whether it has a session.
    pub(super) async fn is_ready(&self) -> bool {
        process::get(self.address, "/readyz").await.is_some_and(|(status, _)| status == 200)
    }

    /// A figure of its `/metrics`; `None` when it does not answer, as a worker with too much to do may not.
    ///
    /// # Errors
    /// It has no such figure.
    pub(super) async fn metric(&self, name: &str) -> anyhow::Result<Option<f64>> {
        let Some((_, text)) = process::get(self.address, "/metrics").await else { return Ok(None) };
        metric(&text, name).with_context(|| format!("no {name} in a worker's metrics")).map(Some)
    }
}

/// The value of a line `name value`.
fn metric(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

/// The stores and the workers.
pub(super) struct Fleet {
    /// The workers, those that were killed too.
    pub(super) workers: Vec<Worker>,
    etcd: Server,
    /// Where the records go.
    pub(super) mongo: Server,
    client: Client,
    http: reqwest::Client,
    site: Site,
    /// Where the jobs' commands write.
    dir: TestDir,
    /// The workers' shell, if it is not the usual one.
    pub(super) shell: Option<PathBuf>,
}

/// What the parts have used so far.
#[derive(Clone, Copy, Debug)]
pub(super) struct Used {
    /// Proposals that etcd has committed.
    pub(super) proposals: f64,
    /// CPU time of all workers, without their children.
    pub(super) workers: f64,
    /// CPU time of etcd.
    pub(super) etcd: f64,
    /// CPU time of the store of records.
    pub(super) mongo: f64,
}

impl Fleet {
    /// Starts the stores, new and empty.
    ///
    /// # Errors
    /// One of them does not start.
    pub(super) async fn start(name: &str) -> anyhow::Result<Self> {
        let dir = TestDir::new(&format!("bench-{name}"));
        let site = Site { dir: dir.path().to_path_buf(), guard: guard() };
        let etcd = Server::etcd(&site, None, &[QUOTA]).await?;
        let mongo = Server::mongo(&site, None).await?;
        let client = Client::connect([etcd.url()], None).await.context("connect to etcd")?;
        let http = ::tests::fixtures::http();
        Ok(Self { workers: Vec::new(), etcd, mongo, client, http, site, dir, shell: None })
    }

    /// Starts a worker, and does not wait for anything.
    ///
    /// # Errors
    /// There is none to start.
    pub(super) fn launch(&mut self) -> anyhow::Result<&mut Worker> {
        let id = format!("bench-{}", self.workers.len() + 1);
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let mut command = Command::new(worker_program());
        command
            .env("CRON_ETCD_ENDPOINTS", self.etcd.url())
            .env("CRON_MONGODB_URI", self.mongo.url())
            .env("CRON_WORKER_ID", &id)
            .env("CRON_WORKER_LISTEN", address.to_string())
            .env("CRON_DATA_DIR", self.site.dir.join(&id))
            .envs(self.shell.iter().map(|shell| ("CRON_SHELL", shell)));
        let log = self.site.dir.join(format!("{id}.log"));
        let process = Process::start(&id, command, &log, self.site.guard.as_ref())?;
        self.workers.push(Worker { process, address });
        Ok(self.workers.last_mut().expect("it was just put there"))
    }

    /// Starts workers and waits until all of them are in the fleet.
    ///
    /// # Errors
    /// One does not start.
    pub(super) async fn workers(&mut self, number: usize) -> anyhow::Result<()> {
        for _ in 0..number {
            self.launch()?;
        }
        for worker in &self.workers {
            wait_for("a worker's session", QUIET_LIMIT, async || Ok(worker.is_ready().await.then_some(())))
                .await?;
        }
        Ok(())
    }

    /// Puts jobs as the API saves them: each with its mark, so that nobody has to adopt it.
    ///
    /// # Errors
    /// etcd refuses.
    pub(super) async fn save_jobs(&mut self, jobs: impl IntoIterator<Item = NewJob>) -> anyhow::Result<()> {
        let base = Timestamp::from_ms(now_ms());
        self.put(jobs.into_iter().flat_map(|job| [job.definition(), job.mark(base)])).await
    }

    /// Puts jobs as other hands do: their owners have to put the marks.
    ///
    /// # Errors
    /// etcd refuses.
    pub(super) async fn put_jobs(&mut self, jobs: impl IntoIterator<Item = NewJob>) -> anyhow::Result<()> {
        self.put(jobs.into_iter().map(|job| job.definition())).await
    }

    async fn put(&mut self, pairs: impl Iterator<Item = (String, Vec<u8>)>) -> anyhow::Result<()> {
        let mut pairs = pairs.peekable();
        while pairs.peek().is_some() {
            let puts: Vec<TxnOp> =
                pairs.by_ref().take(OPS_MAX).map(|(key, value)| TxnOp::put(key, value, None)).collect();
            self.client.txn(Txn::new().and_then(puts)).await.context("put jobs")?;
        }
        Ok(())
    }

    /// Deletes every job, and waits until all that was claimed has its record.
    ///
    /// # Errors
    /// A store or a worker does not answer, or the records do not come.
    pub(super) async fn delete_jobs(&mut self) -> anyhow::Result<()> {
        let all = Some(DeleteOptions::new().with_prefix());
        self.client.delete(keys::JOBS, all).await.context("delete the jobs")?;
        let mut left = String::new();
        let ended = wait_for("the end of all runs and their records", QUIET_LIMIT, async || {
            for worker in &mut self.workers {
                for figure in ["fleetcron_open_runs", "fleetcron_records_waiting"] {
                    if worker.process.ended().is_none() {
                        let value = worker.metric(figure).await?;
                        left = format!("{figure} {value:?}");
                        if value != Some(0.0) {
                            return Ok(None);
                        }
                    }
                }
            }
            // An open key that nobody settles any more would be a fire that ends as `lost`.
            let count = GetOptions::new().with_prefix().with_count_only();
            let open = self.client.get(keys::RUNS, Some(count)).await?.count();
            left = format!("open runs in etcd: {open}");
            Ok((open == 0).then_some(()))
        })
        .await;
        ended.with_context(|| format!("{left} (logs in {})", self.site.dir.display()))
    }

    /// How many keys begin with `prefix`.
    ///
    /// # Errors
    /// etcd does not answer.
    pub(super) async fn count(&mut self, prefix: &str) -> anyhow::Result<i64> {
        let count = GetOptions::new().with_prefix().with_count_only();
        Ok(self.client.get(prefix, Some(count)).await.context("count keys")?.count())
    }

    /// What the parts have used up to now.
    ///
    /// # Errors
    /// One of them is gone or does not answer.
    pub(super) async fn used(&mut self) -> anyhow::Result<Used> {
        let text = self.http.get(format!("{}/metrics", self.etcd.url())).send().await?.text().await?;
        let name = "etcd_server_proposals_committed_total";
        let workers: Vec<Cpu> = self
            .workers
            .iter()
            .map(|worker| machine::cpu(worker.process.pid()))
            .collect::<anyhow::Result<_>>()?;
        Ok(Used {
            proposals: metric(&text, name).with_context(|| format!("no {name} in etcd's metrics"))?,
            workers: workers.iter().map(|cpu| cpu.own).sum(),
            etcd: machine::cpu(self.etcd.process().pid())?.own,
            mongo: machine::cpu(self.mongo.process().pid())?.own,
        })
    }

    /// The records of all jobs.
    ///
    /// # Errors
    /// The store of records does not answer.
    pub(super) async fn records(&self) -> anyhow::Result<Vec<Document>> {
        let client =
            mongodb::Client::with_uri_str(self.mongo.url()).await.context("connect to the records")?;
        let log = client.database("cron").collection::<Document>("log");
        let fields = doc! { "jobName": 1, "planTime": 1, "startTime": 1, "status": 1, "skipped": 1 };
        log.find(doc! {}).projection(fields).await?.try_collect().await.context("read the records")
    }

    /// The file in which [`NewJob::stamping`] leaves its lines.
    pub(super) fn stamps_file(&self) -> PathBuf {
        self.dir.path().join("stamps")
    }

    /// What the runs of [`NewJob::stamping`] have left so far.
    ///
    /// # Errors
    /// A line is not as they write it.
    pub(super) fn stamps(&self) -> anyhow::Result<Vec<Stamp>> {
        Stamp::read(&self.stamps_file())
    }
}

/// A job to put.
pub(super) struct NewJob {
    /// Its name.
    pub(super) name: String,
    /// Its command.
    pub(super) command: String,
    /// Its schedule.
    pub(super) cron_expr: String,
}

impl NewJob {
    /// A job that runs `command` every second.
    pub(super) fn every_second(name: String, command: String) -> Self {
        Self { name, command, cron_expr: "* * * * * * *".to_owned() }
    }

    fn key(&self) -> JobName {
        JobName::parse(&self.name).expect("a benchmark names its jobs well")
    }

    fn value(&self) -> Vec<u8> {
        let job = json!({"name": self.name, "command": self.command, "cronExpr": self.cron_expr});
        job.to_string().into_bytes()
    }

    fn definition(&self) -> (String, Vec<u8>) {
        (keys::job(&self.key()), self.value())
    }

    fn mark(&self, base: Timestamp) -> (String, Vec<u8>) {
        let job = Job::from_stored(&self.name, &self.value()).expect("a benchmark's jobs are good ones");
        (
            keys::fired(&self.key()),
            Mark::based(None, base, job.schedule_hash(&FleetSettings::default())).encode(),
        )
    }
}

/// What a run has left behind.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Stamp {
    /// Its job.
    pub(super) job: String,
    /// Its planned time, in ms since 1970.
    pub(super) plan_time: i64,
    /// When the shell came to the command, in ms since 1970, with its fraction.
    pub(super) at: f64,
    /// Process id of the worker that ran it.
    pub(super) worker: u32,
}

impl Stamp {
    /// A command that leaves a stamp, by the shell's own means: it starts no further process.
    pub(super) fn command(file: &Path) -> String {
        format!("echo \"$CRON_JOB_NAME $CRON_PLAN_TIME $EPOCHREALTIME $PPID\" >> '{}'", file.display())
    }

    /// What the runs have left in the file so far.
    ///
    /// # Errors
    /// A line is not as the command writes it.
    pub(super) fn read(file: &Path) -> anyhow::Result<Vec<Self>> {
        let text = std::fs::read_to_string(file).unwrap_or_default(); // no file: no run
        text.lines()
            .map(|line| Self::parse(line).with_context(|| format!("not the line of a run: {line:?}")))
            .collect()
    }

    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let (job, plan_time, at, worker) = (words.next()?, words.next()?, words.next()?, words.next()?);
        Some(Self {
            job: job.to_owned(),
            plan_time: plan_time.parse().ok()?,
            at: at.replace(',', ".").parse::<f64>().ok()? * 1000.0,
            worker: worker.parse().ok()?,
        })
    }

    /// How late it was, in ms.
    pub(super) fn lateness(&self) -> f64 {
        self.at - self.plan_time as f64
    }
}

/// The fires of each job that started, by the stamps: how often each did.
pub(super) fn starts(stamps: &[Stamp]) -> BTreeMap<(&str, i64), usize> {
    let mut starts = BTreeMap::new();
    for stamp in stamps {
        *starts.entry((stamp.job.as_str(), stamp.plan_time)).or_default() += 1;
    }
    starts
}
