//! `local-dev stack`: all services of `docker-compose.yml` as plain processes, in one command.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use common::config::Settings;

use super::compose::{Compose, Service};
use super::guard::{self, Guard};
use super::ports::is_free;
use super::servers::{self, FUNCTIONS, Programs, Running, Site, Start};
use super::{programs, provision};
use crate::stop::Stop;

/// How often somebody looks whether all servers still run.
const WATCH_EVERY: Duration = Duration::from_millis(500);

/// Runs the stack until Ctrl-C (or SIGTERM), then ends it, those first that others do not need: the workers finish their runs, then the
/// stores go. A second Ctrl-C does not wait. The data stay in `stack` below the data directory.
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
    stack.say_where();
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

/// The services that run, in the order in which they were started: a level of those that need only earlier levels after the other.
struct Stack {
    levels: Vec<Vec<Running>>,
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
        let compose = Compose::load()?;

        let tools = tokio::task::spawn_blocking(|| {
            Ok::<_, provision::Missing>((provision::etcd()?, provision::mongo()?, provision::cargo_lambda()?))
        });
        let (etcd, mongo, cargo_lambda) = tools.await.context("provision")??;
        say(&format!("etcd: {}; MongoDB protocol: {}; {}", etcd.origin, mongo.origin, cargo_lambda.origin));
        say("building the worker");
        let built = programs().context("find the worker")?;
        let release = built.ends_with("release");
        servers::build(if release { &["-p", "worker", "--release"] } else { &["-p", "worker"] }).await?;
        let programs =
            Programs { worker: Some(built.join("worker")), cargo_lambda: Some(cargo_lambda.program) };

        let mut others = BTreeMap::new();
        let mut levels = Vec::new();
        for names in compose.levels()? {
            let mut level: Vec<Running> = Vec::new();
            for name in names {
                let service = compose.service(name)?;
                let listen =
                    if name == FUNCTIONS { Some(settings.listen) } else { published_if_free(service) };
                if name == FUNCTIONS {
                    say(&format!(
                        "building and starting the functions (log: {})",
                        dir.join("functions.log").display()
                    ));
                }
                let start = Start {
                    compose: &compose,
                    service: name,
                    name,
                    programs: &programs,
                    others: &others,
                    listen,
                    words: &[],
                    environment: &[],
                };
                level.push(Running::start(&site, &start).await?);
            }
            for running in &level {
                for (port, address) in running.addresses() {
                    others.insert(format!("{}:{port}", running.name()), address.to_string());
                }
            }
            levels.push(level);
        }
        Ok(Self { levels, dir })
    }

    fn say_where(&self) {
        say("");
        for running in self.levels.iter().flatten() {
            let (name, address) = (running.name(), running.listen());
            let line = match name {
                FUNCTIONS => format!(
                    "http://{address}/ is the console; http://{address}/job/list and so on: each route a Lambda function of its own, \
                     built again when its sources change"
                ),
                "mongo" => format!("mongodb://{address}"),
                "etcd" => format!("http://{address}"),
                _ => format!("http://{address}/metrics"),
            };
            say(&format!("{:<14}{line}", format!("{name}:")));
        }
        say(&format!("{:<14}{}\nCtrl-C ends it all\n", "data, logs:", self.dir.display()));
    }

    /// Returns once one of the services has ended although nobody asked it to. Docker would start it again; here somebody is watching
    /// who wants to know why it ended.
    async fn one_ended(&mut self) -> anyhow::Error {
        loop {
            for process in self.levels.iter_mut().flatten().map(Running::process) {
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

    async fn end(&mut self) {
        for level in self.levels.iter_mut().rev() {
            for running in level.iter_mut() {
                running.ask_to_stop();
            }
            for running in level {
                if let Err(late) = running.stopped().await {
                    say(&format!("{late:#}"));
                }
            }
        }
    }
}

impl Drop for Stack {
    /// After a second Ctrl-C: those that need others are killed before these.
    fn drop(&mut self) {
        while self.levels.pop().is_some() {}
    }
}

/// The first port that the service publishes, where nobody has it.
fn published_if_free(service: &Service) -> Option<SocketAddr> {
    let port = service.ports.first()?.host;
    Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).filter(|address| is_free(*address))
}

#[expect(clippy::print_stdout, reason = "this is what the command says to whoever typed it")]
fn say(line: &str) {
    println!("{line}");
}
