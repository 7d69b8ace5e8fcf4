//! The servers of the native stack: how each is started, told to be ready, and ended.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::Signal;
use tokio::net::TcpStream;

use super::guard::Guard;
use super::process::{EXIT_ON_STDIN_EOF, Process, free_port, get};
use super::{provision, workspace};

/// How long a server may take to end by itself.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// A port that was free a moment ago can be taken by the time a server binds it: try others so often.
const START_ATTEMPTS: u32 = 3;

/// Where a set of servers keeps its data and logs, and who guards it.
#[derive(Clone)]
pub struct Site {
    /// Each server has a directory of its own in it.
    pub dir: PathBuf,
    /// Ends them with this process.
    pub guard: Option<Guard>,
}

impl Site {
    fn log(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.log"))
    }

    fn data(&self, name: &str) -> anyhow::Result<PathBuf> {
        let data = self.dir.join(name);
        std::fs::create_dir_all(&data).with_context(|| format!("create {}", data.display()))?;
        Ok(data)
    }
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// Starts a server on `port`, or on free ones until one is still free when the server binds it.
async fn start_on<S>(port: Option<u16>, start: impl AsyncFn(u16) -> anyhow::Result<S>) -> anyhow::Result<S> {
    if let Some(port) = port {
        return start(port).await;
    }
    let mut attempt = 1;
    loop {
        match start(free_port()?).await {
            Err(_again) if attempt < START_ATTEMPTS => attempt += 1,
            result => return result,
        }
    }
}

/// A store's server: etcd (one member), or one that speaks MongoDB's protocol.
pub struct Server {
    recipe: Recipe,
    site: Site,
    process: Process,
}

/// How a server is started, each time on the same address and data.
struct Recipe {
    kind: Kind,
    address: SocketAddr,
    arguments: Vec<OsString>,
}

#[derive(Clone, Copy)]
enum Kind {
    Etcd,
    Mongo,
}

impl Server {
    /// Starts etcd with further `flags` of its own on `port` (`None`: a free one) and waits until it is healthy.
    ///
    /// # Errors
    /// When it cannot be started; with the end of its log.
    pub async fn etcd(site: &Site, port: Option<u16>, flags: &[&str]) -> anyhow::Result<Self> {
        start_on(port, async |port| {
            let (client, peer) =
                (format!("http://{}", loopback(port)), format!("http://{}", loopback(free_port()?)));
            let mut arguments: Vec<OsString> =
                ["--name", "default", "--log-level", "warn", "--data-dir"].map(Into::into).into();
            arguments.push(site.data("etcd")?.into());
            for (flag, value) in [
                ("--listen-client-urls", &client),
                ("--advertise-client-urls", &client),
                ("--listen-peer-urls", &peer),
                ("--initial-advertise-peer-urls", &peer),
                ("--initial-cluster", &format!("default={peer}")),
            ] {
                arguments.extend([flag.into(), value.into()]);
            }
            arguments.extend(flags.iter().map(Into::into));
            Self::start(site, Recipe { kind: Kind::Etcd, address: loopback(port), arguments }).await
        })
        .await
    }

    /// Starts a server of MongoDB's protocol on `port` (`None`: a free one) and waits until it takes connections.
    ///
    /// # Errors
    /// When it cannot be started; with the end of its log.
    pub async fn mongo(site: &Site, port: Option<u16>) -> anyhow::Result<Self> {
        start_on(port, async |port| {
            let address = loopback(port);
            let data = site.data("mongo")?;
            let arguments = vec!["-listen".into(), address.to_string().into(), "-data".into(), data.into()];
            Self::start(site, Recipe { kind: Kind::Mongo, address, arguments }).await
        })
        .await
    }

    async fn start(site: &Site, recipe: Recipe) -> anyhow::Result<Self> {
        let process = recipe.start(site).await?;
        Ok(Self { recipe, site: site.clone(), process })
    }

    /// For `CRON_ETCD_ENDPOINTS` or `CRON_MONGODB_URI`.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = match self.recipe.kind {
            Kind::Etcd => "http",
            Kind::Mongo => "mongodb",
        };
        format!("{scheme}://{}", self.recipe.address)
    }

    /// Where it takes connections.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.recipe.address
    }

    /// Ends it properly; its ports and data stay its own for [`Self::restart`].
    pub async fn stop(&mut self) {
        self.process.stop(Signal::TERM, STOP_LIMIT).await;
    }

    /// Kills it (SIGKILL).
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again on the same ports and data.
    ///
    /// # Errors
    /// When it cannot be started; with the end of its log.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.kill();
        self.process = self.recipe.start(&self.site).await?;
        Ok(())
    }

    /// Stops it in its tracks: connections stay, answers do not come.
    pub fn freeze(&mut self) {
        self.process.freeze();
    }

    /// Lets it go on.
    pub fn thaw(&mut self) {
        self.process.thaw();
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

impl Recipe {
    async fn start(&self, site: &Site) -> anyhow::Result<Process> {
        let (name, program) = match self.kind {
            Kind::Etcd => ("etcd", provision::etcd_path()),
            Kind::Mongo => ("mongo", provision::mongo_path()),
        };
        let mut command = Command::new(program);
        command.env(EXIT_ON_STDIN_EOF.0, EXIT_ON_STDIN_EOF.1).args(&self.arguments);
        let mut process = Process::start(name, command, &site.log(name), site.guard.as_ref())?;
        process.ready(async || self.answers().await).await?;
        Ok(process)
    }

    async fn answers(&self) -> bool {
        match self.kind {
            Kind::Etcd => {
                let health = get(self.address, "/health").await;
                health.is_some_and(|(_, body)| body.contains("\"true\""))
            }
            Kind::Mongo => TcpStream::connect(self.address).await.is_ok(),
        }
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

/// A worker process.
pub struct Worker {
    id: String,
    listen: SocketAddr,
    process: Process,
}

impl Worker {
    /// Starts the worker `program` under the name `id`, with its own data directory and further settings, and waits until it is ready.
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
        Self::start_at(site, program, stores, id, settings, None).await
    }

    /// As [`Self::start`], with the port for its health given.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_at(
        site: &Site,
        program: &Path,
        stores: &Stores,
        id: &str,
        settings: &[(&str, &str)],
        port: Option<u16>,
    ) -> anyhow::Result<Self> {
        start_on(port, async |port| {
            let listen = loopback(port);
            let mut command = Command::new(program);
            command
                .envs(stores.environment())
                .env("CRON_WORKER_ID", id)
                .env("CRON_WORKER_LISTEN", listen.to_string())
                .env("CRON_DATA_DIR", site.data(id)?)
                .envs(settings.iter().copied());
            let mut process = Process::start(id, command, &site.log(id), site.guard.as_ref())?;
            process
                .ready(async || get(listen, "/readyz").await.is_some_and(|(status, _)| status == 200))
                .await?;
            Ok(Self { id: id.to_owned(), listen, process })
        })
        .await
    }

    /// Its name in the fleet.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where it serves its health.
    #[must_use]
    pub fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// Tells it to drain (SIGTERM), which ends it once its runs have.
    pub fn drain(&mut self) {
        self.process.signal(Signal::TERM);
    }

    /// Kills it alone (SIGKILL), as a crash would: what it runs goes on.
    pub fn crash(&mut self) {
        self.process.crash();
    }

    /// Stops it in its tracks.
    pub fn freeze(&mut self) {
        self.process.freeze();
    }

    /// Lets it go on.
    pub fn thaw(&mut self) {
        self.process.thaw();
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// The functions under `cargo lambda watch`, at the seed's URLs.
pub struct Watch {
    address: SocketAddr,
    process: Process,
}

impl Watch {
    /// Builds the functions, starts `cargo_lambda` with them on `address` (`None`: a free port), and waits until it answers.
    ///
    /// # Errors
    /// When it cannot be started; with the end of its log.
    pub async fn start(
        site: &Site,
        cargo_lambda: &Path,
        stores: &Stores,
        address: Option<SocketAddr>,
    ) -> anyhow::Result<Self> {
        // Built before, so that the first request to each function does not wait for a compiler. From the same directory and with the
        // same flags as cargo-lambda does it: features are then the same and nothing is built twice.
        build(&["-p", "functions"]).await?;
        let start = async |address: SocketAddr| {
            let mut command = Command::new(cargo_lambda);
            without_cargo_variables(&mut command)
                .current_dir(workspace().join("functions"))
                .args([
                    "lambda",
                    "watch",
                    "-p",
                    "functions",
                    "--ignore-changes",
                    "--disable-cors",
                    "--offline",
                ])
                .args(["-A", &address.ip().to_string(), "-P", &address.port().to_string()])
                .envs(stores.environment());
            let mut process =
                Process::start("functions", command, &site.log("functions"), site.guard.as_ref())?;
            process.ready(async || TcpStream::connect(address).await.is_ok()).await?;
            Ok(Self { address, process })
        };
        match address {
            Some(address) => start(address).await,
            None => start_on(None, async |port| start(loopback(port)).await).await,
        }
    }

    /// The base of all URLs, without a slash at the end.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Ends it and the functions.
    pub async fn stop(&mut self) {
        self.process.stop(Signal::INT, STOP_LIMIT).await;
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
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
