//! The services of the compose file as child processes: how each is started, told to be ready, and ended. What they are told stands in
//! the file; this module knows where their programs are.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use common::clock::timeout;
use rustix::process::Signal;
use tokio::net::TcpStream;

use super::compose::{Compose, Health, Service};
use super::guard::Guard;
use super::plan::{self, Place, Plan};
use super::ports::{free_port, is_free};
use super::process::{self, Process, get, server_command};
use super::{provision, workspace};

/// A port that was free a moment ago can be taken by the time a server binds it: try others so often.
const START_ATTEMPTS: u32 = 3;
/// A health check that is a program is asked so often.
const CHECK_EVERY: Duration = Duration::from_millis(100);
/// The stores' names in the compose file.
const ETCD: &str = "etcd";
const MONGO: &str = "mongo";
/// The API's name in it.
pub const FUNCTIONS: &str = "functions";

/// Where a set of servers keeps its data and logs, and who guards it.
#[derive(Clone)]
pub struct Site {
    /// Each server has a directory of its own in it.
    pub dir: PathBuf,
    /// Ends them with this process.
    pub guard: Option<Guard>,
}

impl Site {
    /// Starts a process of this name, with its output in `{name}.log`.
    ///
    /// # Errors
    /// When the log or the program cannot be opened.
    pub fn start(&self, name: &str, command: Command) -> anyhow::Result<Process> {
        Process::start(name, command, &self.dir.join(format!("{name}.log")), self.guard.as_ref())
    }

    /// [`Self::start`] for a server of `tests/servers`, or for what is installed in its place, with the words of its command line.
    ///
    /// # Errors
    /// When the log or the program cannot be opened.
    pub fn serve(&self, name: &str, program: &Path, words: &[String]) -> anyhow::Result<Process> {
        let mut command = server_command(program);
        command.args(words);
        self.start(name, command)
    }
}

/// The programs that are not found by themselves.
#[derive(Clone, Default)]
pub struct Programs {
    /// The worker.
    pub worker: Option<PathBuf>,
    /// cargo-lambda, for the scripts that say `cargo lambda`.
    pub cargo_lambda: Option<PathBuf>,
}

impl Programs {
    /// A command for a program that the compose file names.
    fn command(&self, word: &str) -> anyhow::Result<Command> {
        let name = Path::new(word).file_name().and_then(|name| name.to_str()).unwrap_or(word);
        match name {
            "etcd" => Ok(server_command(&provision::etcd_path())),
            "mongod" => Ok(server_command(&provision::mongo_path())),
            "worker" => Ok(Command::new(self.worker.as_ref().context("no worker was built")?)),
            "bash" => self.bash(),
            _ => bail!("the native stack does not know where the program {word:?} is"),
        }
    }

    /// A script of ours. What it builds was built here before, or its parts were: the network is not asked.
    fn bash(&self) -> anyhow::Result<Command> {
        let mut command = Command::new("bash");
        without_cargo_variables(&mut command).env("CARGO_NET_OFFLINE", "true");
        if let Some(dir) = self.cargo_lambda.as_ref().and_then(|program| program.parent()) {
            command.env("PATH", provision::path_with(&[dir]).context("put cargo-lambda on the PATH")?);
        }
        Ok(command)
    }
}

/// What is said beside the compose file when a service is started.
pub struct Start<'a> {
    /// The file.
    pub compose: &'a Compose,
    /// The service.
    pub service: &'a str,
    /// Its name here: of its log and its directory. Most often the service's.
    pub name: &'a str,
    /// Where its programs are.
    pub programs: &'a Programs,
    /// Where the others listen: `etcd:2379` to `127.0.0.1:40123`.
    pub others: &'a BTreeMap<String, String>,
    /// Where it listens; `None`: at a free port.
    pub listen: Option<SocketAddr>,
    /// Further words of its command line.
    pub words: &'a [&'a str],
    /// Further variables, or other values.
    pub environment: &'a [(&'a str, &'a str)],
}

/// A service that runs.
pub struct Running {
    recipe: Recipe,
    process: Process,
}

/// How a service is started, each time on the same addresses and data.
struct Recipe {
    site: Site,
    name: String,
    programs: Programs,
    plan: Plan,
    health: Health,
    stop_signal: Signal,
    stop_grace: Duration,
    /// Where it listens, by its ports in a container.
    addresses: BTreeMap<u16, SocketAddr>,
    /// The one that others use.
    listen: SocketAddr,
}

impl Running {
    /// Starts a service and waits until it is healthy.
    ///
    /// # Errors
    /// When it cannot be started; with the end of its log.
    pub async fn start(site: &Site, start: &Start<'_>) -> anyhow::Result<Self> {
        let mut attempt = 1;
        loop {
            let recipe = Recipe::new(site, start)?;
            match recipe.start().await {
                Ok(process) => return Ok(Self { recipe, process }),
                // It is gone. If one of its ports is busy all the same, another program was faster.
                Err(_faster) if attempt < START_ATTEMPTS && recipe.lost_a_port(start) => attempt += 1,
                Err(why) => return Err(why),
            }
        }
    }

    /// Its name here.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.recipe.name
    }

    /// Where it listens: its published port, by the file.
    #[must_use]
    pub fn listen(&self) -> SocketAddr {
        self.recipe.listen
    }

    /// Where it listens, by its ports in a container.
    #[must_use]
    pub fn addresses(&self) -> &BTreeMap<u16, SocketAddr> {
        &self.recipe.addresses
    }

    /// Tells it to end, and does not wait.
    pub fn ask_to_stop(&mut self) {
        self.process.signal(self.recipe.stop_signal);
    }

    /// Tells it to end, waits, and kills it when it takes longer than it may.
    pub async fn stop(&mut self) {
        self.process.stop(self.recipe.stop_signal, self.recipe.stop_grace).await;
    }

    /// Waits for its end after [`Self::ask_to_stop`].
    ///
    /// # Errors
    /// When it took longer than it may; it was killed then.
    pub async fn stopped(&mut self) -> anyhow::Result<()> {
        let ended = self.process.wait(self.recipe.stop_grace).await;
        self.process.kill();
        ended.map(|_status| ())
    }

    /// Kills it (SIGKILL) and starts it again on the same ports and data.
    ///
    /// # Errors
    /// When it cannot be started; with the end of its log.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.process.kill();
        self.process = self.recipe.start().await?;
        Ok(())
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

impl Recipe {
    fn new(site: &Site, start: &Start<'_>) -> anyhow::Result<Self> {
        let service: &Service = start.compose.service(start.service)?;
        let mut ports = BTreeMap::new();
        for (number, port) in plan::ports(service).into_iter().enumerate() {
            let given = start.listen.filter(|_| number == 0).map(|listen| listen.port());
            ports.insert(port, given.map_or_else(free_port, Ok)?);
        }
        let address = start.listen.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |listen| listen.ip());
        let names: BTreeSet<String> = start.compose.services.keys().cloned().collect();
        let dir = site.dir.join(start.name);
        let mut plan = plan::plan(
            service,
            &Place {
                service: start.service,
                address,
                ports: &ports,
                others: start.others,
                names: &names,
                dir: &dir,
                workspace: workspace(),
            },
        )?;
        plan.words.extend(start.words.iter().map(|&word| word.to_owned()));
        for &(name, value) in start.environment {
            plan.environment.insert(name.to_owned(), value.to_owned());
        }
        if plan.needs_dir {
            std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        }
        let addresses: BTreeMap<u16, SocketAddr> =
            ports.into_iter().map(|(there, here)| (there, SocketAddr::new(address, here))).collect();
        let published = service.ports.first().map(|port| port.container);
        let listen = published.and_then(|port| addresses.get(&port)).copied();
        Ok(Self {
            site: site.clone(),
            name: start.name.to_owned(),
            programs: start.programs.clone(),
            plan,
            health: service.health.clone(),
            stop_signal: service.stop_signal,
            stop_grace: service.stop_grace,
            listen: listen.with_context(|| format!("{} publishes no port", start.service))?,
            addresses,
        })
    }

    /// Whether a port that was chosen here, and not given, is taken by somebody else.
    fn lost_a_port(&self, start: &Start<'_>) -> bool {
        self.addresses.values().any(|address| Some(*address) != start.listen && !is_free(*address))
    }

    async fn start(&self) -> anyhow::Result<Process> {
        let (program, arguments) = self.plan.words.split_first().context("an empty command line")?;
        let mut command = self.programs.command(program).with_context(|| format!("start {}", self.name))?;
        command.args(arguments).envs(&self.plan.environment);
        if let Some(dir) = &self.plan.working_dir {
            command.current_dir(dir);
        }
        let mut process = self.site.start(&self.name, command)?;
        let check = Check::new(self)?;
        process
            .ready_within(self.health.patience(), check.every(), async || check.is_healthy().await)
            .await?;
        Ok(process)
    }
}

/// A service's health check, as it is done here.
enum Check<'a> {
    /// The file's own command.
    Command { program: OsString, arguments: &'a [String], limit: Duration },
    /// For `etcdctl endpoint health`, where etcdctl is not installed: the same question over HTTP.
    Etcd(SocketAddr),
    /// For mongosh's ping, where mongosh is not installed: whether it takes connections.
    Mongo(SocketAddr),
}

impl<'a> Check<'a> {
    fn new(recipe: &'a Recipe) -> anyhow::Result<Self> {
        let (program, arguments) = recipe.plan.check.split_first().context("an empty health check")?;
        let found = provision::search(program).map(PathBuf::into_os_string);
        match (found, program.as_str()) {
            (Some(program), _) => Ok(Self::Command { program, arguments, limit: recipe.health.timeout }),
            (None, "etcdctl") => Ok(Self::Etcd(recipe.listen)),
            (None, "mongosh") => Ok(Self::Mongo(recipe.listen)),
            (None, other) => bail!("{}: the health check wants {other}, which is not installed", recipe.name),
        }
    }

    fn every(&self) -> Duration {
        match self {
            Self::Command { .. } => CHECK_EVERY,
            Self::Etcd(_) | Self::Mongo(_) => process::POLL,
        }
    }

    async fn is_healthy(&self) -> bool {
        match self {
            Self::Command { program, arguments, limit } => {
                let mut command = tokio::process::Command::new(program);
                command.args(*arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
                let status = timeout(*limit, command.kill_on_drop(true).status()).await;
                matches!(status, Ok(Ok(status)) if status.success())
            }
            Self::Etcd(address) => {
                get(*address, "/health").await.is_some_and(|(_, body)| body.contains("\"true\""))
            }
            Self::Mongo(address) => TcpStream::connect(address).await.is_ok(),
        }
    }
}

/// A store's server of a test's own: etcd (one member), or one that speaks MongoDB's protocol.
pub struct Server {
    scheme: &'static str,
    running: Running,
}

impl Server {
    /// Starts etcd with further `flags` of its own on `port` (`None`: a free one) and waits until it is healthy.
    ///
    /// # Errors
    /// When it cannot be started; with the end of its log.
    pub async fn etcd(site: &Site, port: Option<u16>, flags: &[&str]) -> anyhow::Result<Self> {
        Self::start(site, ETCD, port, flags, "http").await
    }

    /// Starts a server of MongoDB's protocol on `port` (`None`: a free one) and waits until it is healthy.
    ///
    /// # Errors
    /// When it cannot be started; with the end of its log.
    pub async fn mongo(site: &Site, port: Option<u16>) -> anyhow::Result<Self> {
        Self::start(site, MONGO, port, &[], "mongodb").await
    }

    async fn start(
        site: &Site,
        service: &str,
        port: Option<u16>,
        words: &[&str],
        scheme: &'static str,
    ) -> anyhow::Result<Self> {
        let running = Running::start(
            site,
            &Start {
                compose: &Compose::load()?,
                service,
                name: service,
                programs: &Programs::default(),
                others: &BTreeMap::new(),
                listen: port.map(loopback),
                words,
                environment: &[],
            },
        )
        .await?;
        Ok(Self { scheme, running })
    }

    /// For `CRON_ETCD_ENDPOINTS` or `CRON_MONGODB_URI`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address())
    }

    /// Where it takes connections.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.running.listen()
    }

    /// Ends it properly; its ports and data stay its own for [`Self::restart`].
    pub async fn stop(&mut self) {
        self.running.stop().await;
    }

    /// Kills it (SIGKILL).
    pub fn kill(&mut self) {
        self.process().kill();
    }

    /// Starts it again on the same ports and data.
    ///
    /// # Errors
    /// When it cannot be started; with the end of its log.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.running.restart().await
    }

    /// Stops it in its tracks: connections stay, answers do not come.
    pub fn freeze(&mut self) {
        self.process().freeze();
    }

    /// Lets it go on.
    pub fn thaw(&mut self) {
        self.process().thaw();
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        self.running.process()
    }
}

/// The stores that a worker or a function is given.
#[derive(Clone, Debug)]
pub struct Stores {
    /// `CRON_ETCD_ENDPOINTS`.
    pub etcd: String,
    /// `CRON_MONGODB_URI`.
    pub mongodb: String,
}

impl Stores {
    fn environment(&self) -> [(&'static str, &str); 2] {
        [("CRON_ETCD_ENDPOINTS", &self.etcd), ("CRON_MONGODB_URI", &self.mongodb)]
    }
}

/// A worker process of a test's own.
pub struct Worker {
    running: Running,
}

impl Worker {
    /// Starts the worker `program` under the name `id`, with its own data directory and further settings, and waits until it is healthy.
    /// It is the first worker of the compose file in all but that.
    ///
    /// # Errors
    /// When it cannot be started; with the end of its log.
    pub async fn start(
        site: &Site,
        program: &Path,
        stores: &Stores,
        id: &str,
        settings: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let compose = Compose::load()?;
        let is_worker = |service: &Service| service.words().next().is_some_and(|word| word == "worker");
        let (service, _) = compose
            .services
            .iter()
            .find(|(_, service)| is_worker(service))
            .context("there is no worker in the compose file")?;
        let mut environment = vec![("CRON_WORKER_ID", id)];
        environment.extend(stores.environment());
        environment.extend(settings);
        let running = Running::start(
            site,
            &Start {
                compose: &compose,
                service,
                name: id,
                programs: &Programs { worker: Some(program.to_owned()), ..Programs::default() },
                others: &stores_of_a_test(&compose)?,
                listen: None,
                words: &[],
                environment: &environment,
            },
        )
        .await?;
        Ok(Self { running })
    }

    /// Its name in the fleet.
    #[must_use]
    pub fn id(&self) -> &str {
        self.running.name()
    }

    /// Where it serves its health.
    #[must_use]
    pub fn listen(&self) -> SocketAddr {
        self.running.listen()
    }

    /// Tells it to drain, which ends it once its runs have.
    pub fn drain(&mut self) {
        self.running.ask_to_stop();
    }

    /// Kills it alone (SIGKILL), as a crash would: what it runs goes on.
    pub fn crash(&mut self) {
        self.process().crash();
    }

    /// Kills it, if it still lives, and starts it again with its data directory.
    ///
    /// # Errors
    /// When it cannot be started; with the end of its log.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.running.restart().await
    }

    /// Stops it in its tracks.
    pub fn freeze(&mut self) {
        self.process().freeze();
    }

    /// Lets it go on.
    pub fn thaw(&mut self) {
        self.process().thaw();
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        self.running.process()
    }
}

/// The functions under `cargo lambda watch`, at the seed's URLs, of a test's own.
pub struct Watch {
    running: Running,
}

impl Watch {
    /// Builds the functions, starts `cargo_lambda` with them on `address` (`None`: a free port), and waits until they answer.
    ///
    /// # Errors
    /// When it cannot be started; with the end of its log.
    pub async fn start(
        site: &Site,
        cargo_lambda: &Path,
        stores: &Stores,
        address: Option<SocketAddr>,
    ) -> anyhow::Result<Self> {
        let compose = Compose::load()?;
        let running = Running::start(
            site,
            &Start {
                compose: &compose,
                service: FUNCTIONS,
                name: FUNCTIONS,
                programs: &Programs { cargo_lambda: Some(cargo_lambda.to_owned()), ..Programs::default() },
                others: &stores_of_a_test(&compose)?,
                listen: address,
                // A test is of the sources as they were when it began.
                words: &["--ignore-changes"],
                environment: &stores.environment(),
            },
        )
        .await?;
        Ok(Self { running })
    }

    /// The base of all URLs, without a slash at the end.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.running.listen())
    }

    /// Ends it and the functions.
    pub async fn stop(&mut self) {
        self.running.stop().await;
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        self.running.process()
    }
}

/// Names for the stores' addresses: a test gives its processes the stores' whole URLs instead, which win.
fn stores_of_a_test(compose: &Compose) -> anyhow::Result<BTreeMap<String, String>> {
    let mut others = BTreeMap::new();
    for name in [ETCD, MONGO] {
        for port in plan::ports(compose.service(name)?) {
            others.insert(format!("{name}:{port}"), format!("{name}.invalid:{port}"));
        }
    }
    Ok(others)
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// Builds programs of the workspace (debug profile) with Cargo; without the network, for this program was built here too.
///
/// # Errors
/// What the compiler says.
pub async fn build(what: &[&str]) -> anyhow::Result<()> {
    let mut command = Command::new("cargo");
    without_cargo_variables(&mut command).current_dir(workspace()).args(["build", "--offline"]).args(what);
    let output =
        tokio::process::Command::from(command).kill_on_drop(true).output().await.context("run cargo")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = said.lines().collect();
        bail!("cargo build {}:\n{}", what.join(" "), lines[lines.len().saturating_sub(40)..].join("\n"));
    }
    Ok(())
}

/// Takes out of a command's environment what Cargo told this program about itself: it would make build scripts, and with them
/// half the dependencies, build again under a Cargo that this program starts.
pub fn without_cargo_variables(command: &mut Command) -> &mut Command {
    const TOLD: [&str; 11] = [
        "CARGO",
        "CARGO_MANIFEST_DIR",
        "CARGO_MANIFEST_PATH",
        "CARGO_MANIFEST_LINKS",
        "CARGO_PKG_NAME",
        "CARGO_PKG_VERSION",
        "CARGO_PKG_VERSION_MAJOR",
        "CARGO_PKG_VERSION_MINOR",
        "CARGO_PKG_VERSION_PATCH",
        "CARGO_PKG_VERSION_PRE",
        "CARGO_CRATE_NAME",
    ];
    for variable in TOLD {
        command.env_remove(variable);
    }
    command
}
