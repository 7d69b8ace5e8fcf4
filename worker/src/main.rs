//! The worker: settings, ports, signals.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use common::clock::{self, Clock as _, SystemClock};
use common::config::{self, Settings};
use common::stores;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use worker::data_dir::DataDir;
use worker::guardian::{self, Guardian};
use worker::{Ports, Worker, health, identity, private};

/// A call to a store is given up after this; it is tried again where that is safe.
const CALL_LIMIT: Duration = Duration::from_secs(3);

/// A million jobs are read in pages, of which all but some bytes a job is given back: glibc's allocator keeps a tenth of what the worker holds as
/// holes.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[expect(clippy::print_stderr, reason = "answers on the command line")]
fn main() -> ExitCode {
    if let Some(code) = guardian::if_asked() {
        return code;
    }
    let settings = match config::settings_or_exit("worker") {
        Ok(settings) => settings,
        Err(code) => return code,
    };
    if let Some(word) = settings.words.first() {
        eprintln!("worker: {word:?} is no flag: see worker --help");
        return ExitCode::from(2);
    }
    common::logging::init();
    // Before there is anything that it should not have, and with the rights that commands do not get: it may have to kill those of other users.
    let guardian = Guardian::start(&guardian::this_program());
    private::keep();
    match run(&settings, &guardian) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("worker: {why:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(settings: &Settings, guardian: &Guardian) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("no runtime")?;
    runtime.block_on(work(settings, guardian))
}

async fn work(settings: &Settings, guardian: &Guardian) -> anyhow::Result<()> {
    let data_dir = DataDir::open(settings.data_dir.as_deref())?;
    // Secrets that cannot be read end the worker at once: whoever starts it again is told why each time.
    let (kv, run_log) = stores::open(settings, CALL_LIMIT).await.map_err(anyhow::Error::msg)?;
    // Its clients are never dropped: MongoDB's driver then says goodbye in a task of its own, which panics when the runtime ends under it.
    std::mem::forget(Arc::clone(&run_log));
    let ports = Ports { kv, run_log, clock: Arc::new(SystemClock) };
    let identity = identity::identity(settings, data_dir.instance.clone(), SystemClock.now());
    let options = worker::Options::new(settings, identity, &data_dir, guardian.guard());
    let health = listen(settings).await?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        worker_id = %options.worker_id,
        data_dir = %data_dir.path.display(),
        etcd = settings.etcd_shown(),
        max_runs = options.identity.max_runs,
        "worker starting"
    );
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be handled")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be handled")?;
    let mut worker = Worker::start(ports, options);
    if let Some(listener) = health {
        tokio::spawn(health::serve(listener, worker.status()));
    }
    tokio::select! {
        left = worker.left() => return left.map_err(anyhow::Error::from),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    worker.drain().await;
    let why = tokio::select! {
        left = worker.left() => return left.map_err(anyhow::Error::from),
        _ = terminate.recv() => "asked a second time",
        _ = interrupt.recv() => "asked a second time",
        () = patience(settings.drain_limit) => "CRON_DRAIN_SECONDS are over",
    };
    tracing::warn!(why, "killing what still runs");
    worker.kill_runs().await;
    worker.left().await.map_err(anyhow::Error::from)
}

/// Ends after the limit; without one, never.
async fn patience(limit: Option<Duration>) {
    match limit {
        Some(limit) => clock::sleep(limit).await,
        None => std::future::pending().await,
    }
}

/// The address for health and metrics. The default one may be taken by another worker on this machine: then this one does without.
async fn listen(settings: &Settings) -> anyhow::Result<Option<TcpListener>> {
    let address = settings.worker_listen;
    match TcpListener::bind(address).await {
        Ok(listener) => {
            let address = listener.local_addr().context("no address")?;
            tracing::info!(%address, "health and metrics");
            Ok(Some(listener))
        }
        Err(why) if settings.worker_listen_given => {
            Err(why).with_context(|| format!("CRON_WORKER_LISTEN: {address} cannot be listened on"))
        }
        Err(why) => {
            tracing::warn!(%address, %why, "no health and metrics: set CRON_WORKER_LISTEN to a free address");
            Ok(None)
        }
    }
}
