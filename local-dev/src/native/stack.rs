//! `local-dev stack`: etcd, a MongoDB-protocol server, all functions under `cargo lambda watch` and two workers, in one command.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use common::config::Settings;

use super::guard::{self, Guard};
use super::process::{Process, is_free};
use super::servers::{self, Server, Site, Stores, Watch, Worker};
use super::{programs, provision};
use crate::stop::Stop;

/// Two, so that one can be ended to see the other take over.
const WORKERS: u16 = 2;
/// The ports that etcd and MongoDB are known for; taken when they are free.
const ETCD_PORT: u16 = 2379;
const MONGO_PORT: u16 = 27017;
/// The first worker's health; the others follow.
const WORKER_PORT: u16 = 9070;
/// How long the workers may take to finish what they run.
const DRAIN_LIMIT: Duration = Duration::from_secs(30);
/// How often somebody looks whether all servers still run.
const WATCH_EVERY: Duration = Duration::from_millis(500);

/// Runs the stack until Ctrl-C (or SIGTERM), then ends it: the workers finish their runs, then the API goes, then the stores. A second
/// Ctrl-C does not wait. The data stay in `stack` below the data directory.
///
/// The program's `main` must call [`guard::run`] when its only argument is [`guard::WORD`].
///
/// # Errors
/// A busy port, a missing tool, a server that does not start or ends by itself.
pub async fn run(settings: &Settings) -> anyhow::Result<()> {
    let mut stop = Stop::listen()?;
    if !settings.listen.ip().is_loopback() {
        bail!(
            "{}: this version has no authentication, and whoever reaches the API runs commands here: listen on 127.0.0.1",
            settings.listen
        );
    }
    if !is_free(settings.listen) {
        bail!("{} is busy: end what listens there, or set CRON_LISTEN to another address", settings.listen);
    }
    let mut stack = tokio::select! {
        stack = Stack::start(settings) => stack?,
        () = stop.asked() => bail!("interrupted while starting"),
    };
    stack.say_where(settings.listen);
    let result = tokio::select! {
        () = stop.asked() => Ok(()),
        ended = stack.one_ended() => Err(ended),
    };
    say("ending: the workers finish what they run; Ctrl-C once more does not wait for that");
    tokio::select! {
        () = stack.end() => {}
        () = stop.asked() => {}
    }
    result
}

/// The servers, in the order in which dropping them is right.
struct Stack {
    workers: Vec<Worker>,
    watch: Watch,
    mongo: Server,
    etcd: Server,
    dir: PathBuf,
}

impl Stack {
    async fn start(settings: &Settings) -> anyhow::Result<Self> {
        let dir = settings.data_dir.clone().unwrap_or_else(|| PathBuf::from(".fleetcron")).join("stack");
        std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let dir = dir.canonicalize().with_context(|| format!("find {}", dir.display()))?;
        let own = std::env::current_exe().context("find this program")?;
        let guard = Guard::start(&own).with_context(|| format!("start {} {}", own.display(), guard::WORD))?;
        let site = Site { dir: dir.clone(), guard: Some(guard) };

        let tools = tokio::task::spawn_blocking(|| {
            Ok::<_, provision::Missing>((provision::etcd()?, provision::mongo()?, provision::cargo_lambda()?))
        });
        let (etcd, mongo, cargo_lambda) = tools.await.context("provision")??;
        say(&format!("etcd: {}; MongoDB protocol: {}; {}", etcd.origin, mongo.origin, cargo_lambda.origin));

        let etcd = Server::etcd(&site, if_free(ETCD_PORT), &[]).await?;
        let mongo = Server::mongo(&site, if_free(MONGO_PORT)).await?;
        let stores = Stores { etcd: etcd.url(), mongodb: mongo.url() };
        say("building the worker and the functions");
        let programs = programs().context("find the worker")?;
        let release = programs.ends_with("release");
        servers::build(if release { &["-p", "worker", "--release"] } else { &["-p", "worker"] }).await?;
        let program = programs.join("worker");
        let watch = Watch::start(&site, &cargo_lambda.program, &stores, Some(settings.listen)).await?;
        let mut workers = Vec::new();
        for number in 1..=WORKERS {
            let port = if_free(WORKER_PORT + number - 1);
            let id = format!("worker-{number}");
            workers.push(Worker::start_at(&site, &program, &stores, &id, &[], port).await?);
        }
        Ok(Self { workers, watch, mongo, etcd, dir })
    }

    fn say_where(&self, api: SocketAddr) {
        say(&format!("\nthe console:  http://{api}/"));
        say(&format!(
            "the API:      http://{api}/job/list and so on, each route a Lambda function of its own"
        ));
        say(&format!("etcd:         {}", self.etcd.url()));
        say(&format!("MongoDB:      {}", self.mongo.url()));
        for worker in &self.workers {
            say(&format!("{}:     http://{}/metrics", worker.id(), worker.listen()));
        }
        say(&format!("data, logs:   {}\nCtrl-C ends it all\n", self.dir.display()));
    }

    /// Returns once one of the servers has ended although nobody asked it to.
    async fn one_ended(&mut self) -> anyhow::Error {
        loop {
            for process in self.processes() {
                if let Some(status) = process.ended() {
                    return anyhow::anyhow!(
                        "{} ended by itself ({status}), so all do\n{}",
                        process.name(),
                        process.tail()
                    );
                }
            }
            common::clock::sleep(WATCH_EVERY).await;
        }
    }

    fn processes(&mut self) -> impl Iterator<Item = &mut Process> {
        self.workers.iter_mut().map(Worker::process).chain([
            self.watch.process(),
            self.mongo.process(),
            self.etcd.process(),
        ])
    }

    async fn end(&mut self) {
        for worker in &mut self.workers {
            worker.drain();
        }
        for worker in &mut self.workers {
            if let Err(late) = worker.process().wait(DRAIN_LIMIT).await {
                say(&format!("{late:#}"));
                worker.process().kill();
            }
        }
        self.watch.stop().await;
        self.mongo.stop().await;
        self.etcd.stop().await;
    }
}

fn if_free(port: u16) -> Option<u16> {
    is_free(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).then_some(port)
}

#[expect(clippy::print_stdout, reason = "this is what the command says to whoever typed it")]
fn say(line: &str) {
    println!("{line}");
}
