//! `local-dev`: API, console and worker in one process; `local-dev stack`: the native stack of real parts.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use common::clock::{self, Clock as _, SystemClock};
use common::config::{self, Auth, Settings};
use common::kv::Kv;
use common::kv::embedded::EmbeddedKv;
use common::run_log::RunLog;
use common::run_log::embedded::EmbeddedRunLog;
use common::schedule::Zone;
use common::stores;
use common::traces::{Resource, Tracer};
use functions::access::{Gate, command};
use functions::ports::{self, STORE_CALL_MAX};
use local_dev::api_server::Door;
use local_dev::listening::Rules;
use local_dev::native::{guard, stack};
use local_dev::stop::Stop;
use local_dev::tls::Tls;
use local_dev::{api_server, check_seed, crontabs, samples};
use tokio::net::TcpListener;
use worker::data_dir::{self, DataDir};
use worker::guardian::{self, Guard, Guardian};
use worker::{Options, Worker, identity, private};

/// Runs get so long to end by themselves after Ctrl-C; then they are killed.
const GOODBYE: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    if let Some(code) = guardian::if_asked() {
        return code;
    }
    if std::env::args().skip(1).eq([guard::WORD]) {
        return exit(guard::run().context("guard"));
    }
    let settings = match config::settings_or_exit("local-dev") {
        Ok(settings) => settings,
        Err(code) => return code,
    };
    common::logging::init();
    let has_workers = settings.words.is_empty() && settings.workers > 0;
    // Before there is anything that it should not have, and with the rights that commands do not get: it may have to kill those of other users.
    let guardian = has_workers.then(|| Guardian::start(&guardian::this_program()));
    private::keep();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let run = |runtime: tokio::runtime::Runtime| runtime.block_on(run(&settings, guardian.as_ref()));
    exit(runtime.context("no runtime").and_then(run))
}

#[expect(clippy::print_stderr, reason = "this is what the command says to whoever typed it")]
fn exit(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("local-dev: {why:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(settings: &Settings, guardian: Option<&Guardian>) -> anyhow::Result<()> {
    match settings.words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => one_process(settings, guardian).await,
        ["stack"] => stack::run(settings).await,
        ["check-seed"] => check_seed(settings, "UTC").await,
        ["check-seed", zone] => check_seed(settings, zone).await,
        ["token", words @ ..] => token(settings, words).await,
        words => {
            bail!(
                "{:?} is no command: leave it out, or say `stack`, `check-seed [ZONE]` or `{}`",
                words.join(" "),
                command::USAGE
            )
        }
    }
}

/// Says what becomes of a seed's jobs; `zone` is that of its workers' clocks.
#[expect(clippy::print_stdout, reason = "this is what the command is for")]
async fn check_seed(settings: &Settings, zone: &str) -> anyhow::Result<()> {
    let zone = Zone::parse(zone).map_err(|why| anyhow::anyhow!("{zone:?} {why}"))?;
    let kv = stores::kv(settings, STORE_CALL_MAX).map_err(anyhow::Error::msg)?;
    print!("{}", check_seed::run(kv.as_ref(), &zone, SystemClock.now()).await?);
    Ok(())
}

/// Makes, lists and revokes tokens where they are stored, which is what the store's own credentials are good for.
#[expect(clippy::print_stdout, reason = "this is what the command is for")]
async fn token(settings: &Settings, words: &[&str]) -> anyhow::Result<()> {
    let said = if settings.has_etcd() {
        let kv = stores::kv(settings, STORE_CALL_MAX).map_err(anyhow::Error::msg)?;
        command::command(&*kv, &SystemClock, words).await
    } else {
        let own = open_dir(settings)?;
        let kv =
            EmbeddedKv::open(&own.path).with_context(|| format!("the store in {}", own.path.display()))?;
        command::command(&kv, &SystemClock, words).await
    };
    println!("{}", said.map_err(anyhow::Error::msg)?);
    Ok(())
}

/// The directory of local-dev, which is its own as long as this is held.
fn open_dir(settings: &Settings) -> anyhow::Result<DataDir> {
    let dir = settings.data_dir.clone().unwrap_or_else(|| PathBuf::from(".fleetcron"));
    match DataDir::open(Some(&dir)) {
        Err(data_dir::Error::InUse(dir)) => {
            bail!(
                "another local-dev is using {}: end it, or set CRON_DATA_DIR to another directory",
                dir.display()
            )
        }
        opened => Ok(opened?),
    }
}

/// API, console and workers in this process, on the embedded store or on the real ones that the settings name.
async fn one_process(settings: &Settings, guardian: Option<&Guardian>) -> anyhow::Result<()> {
    let (rules, tls) = rules(settings)?;
    let mut stop = Stop::listen()?;
    let listener = TcpListener::bind(settings.listen).await.with_context(|| {
        format!(
            "{} cannot be listened on: end what listens there, or set CRON_LISTEN to another address",
            settings.listen
        )
    })?;
    let address = listener.local_addr().context("no address")?;
    let own = open_dir(settings)?;
    let stores = open_stores(settings, &own.path)?;
    if !settings.has_etcd() {
        samples::make_once(stores.kv.as_ref(), &own.path).await?;
    }
    crontabs::import(&stores, &settings.crontabs).await?;
    let mut workers = Vec::new();
    for number in 1..=settings.workers {
        let dir = DataDir::open(Some(&own.path.join(format!("worker-{number}"))))?;
        let identity = identity::identity(settings, dir.instance.clone(), SystemClock.now());
        let ports = worker::Ports {
            kv: Arc::clone(&stores.kv),
            run_log: Arc::clone(&stores.run_log),
            clock: Arc::new(SystemClock),
        };
        let guard = guardian.map_or_else(Guard::none, Guardian::guard);
        let options = Options::new(settings, identity, &dir, guard);
        workers.push((Worker::start(ports, options), dir));
    }
    if workers.is_empty() {
        // What workers do beside running jobs, and what must not wait for one: it ends with the process.
        let functions::Ports { kv, run_log, clock } = stores.clone();
        let ports = worker::Ports { kv, run_log, clock };
        tokio::spawn(worker::history::keep_up_alone(ports, settings.audit_days));
    }
    let gate = match rules.credentials {
        true => Gate::guarded(Arc::clone(&stores.kv), Arc::new(SystemClock), settings),
        false => Gate::open(),
    };
    let resource = Resource { service: "fleetcron-api".to_owned(), instance: own.instance.clone() };
    let tracer = Tracer::new(&settings.traces, resource);
    say_where(address, settings, rules, &own.path);
    let (stop_serving, stopped) = tokio::sync::oneshot::channel::<()>();
    let door = Door { rules, gate, tls, tracer };
    let mut serving = tokio::spawn(api_server::serve(listener, stores, door, async {
        let _asked_or_gone = stopped.await;
    }));
    tokio::select! {
        () = stop.asked() => {}
        served = &mut serving => return served.context("the API broke")?,
    }
    tracing::info!("ending; what runs gets {} seconds, Ctrl-C once more does not wait", GOODBYE.as_secs());
    let _already_gone = stop_serving.send(());
    end_workers(&mut workers, &mut stop).await?;
    serving.await.context("the API broke")?
}

/// By what rules the API is served, and with which certificate.
fn rules(settings: &Settings) -> anyhow::Result<(Rules, Option<Tls>)> {
    let tls = match (&settings.tls_cert, &settings.tls_key) {
        (Some(certificate), Some(key)) => Some(Tls::read(certificate, key, SystemClock.now())?),
        _ => None,
    };
    let credentials = settings.auth.map(|auth| auth == Auth::Required);
    let rules = Rules::at(settings.listen, credentials, tls.is_some(), settings.behind_proxy);
    Ok((rules.map_err(anyhow::Error::msg)?, tls))
}

async fn end_workers(workers: &mut [(Worker, DataDir)], stop: &mut Stop) -> anyhow::Result<()> {
    for (worker, _) in workers.iter() {
        worker.drain().await;
    }
    let mut patient = true;
    for (worker, _) in workers.iter_mut() {
        if patient {
            patient = tokio::select! {
                left = worker.left() => {
                    left?;
                    continue;
                }
                () = clock::sleep(GOODBYE) => false,
                () = stop.asked() => false,
            };
        }
        worker.kill_runs().await;
        worker.left().await?;
    }
    Ok(())
}

fn open_stores(settings: &Settings, dir: &Path) -> anyhow::Result<functions::Ports> {
    let kv: Arc<dyn Kv> = match settings.has_etcd() {
        true => stores::kv(settings, STORE_CALL_MAX).map_err(anyhow::Error::msg)?,
        false => Arc::new(EmbeddedKv::open(dir).with_context(|| format!("the store in {}", dir.display()))?),
    };
    let run_log: Arc<dyn RunLog> = match settings.has_mongodb() {
        true => ports::run_log(settings).map_err(anyhow::Error::msg)?,
        false => {
            Arc::new(EmbeddedRunLog::open(dir).with_context(|| format!("the records in {}", dir.display()))?)
        }
    };
    Ok(functions::Ports { kv, run_log, clock: Arc::new(SystemClock) })
}

#[expect(clippy::print_stdout, reason = "this is what the command says to whoever typed it")]
fn say_where(address: std::net::SocketAddr, settings: &Settings, rules: Rules, dir: &Path) {
    let store = |set: bool, real: &str| {
        if set { real.to_owned() } else { format!("the embedded store in {}", dir.display()) }
    };
    let scheme = if settings.tls_cert.is_some() { "https" } else { "http" };
    println!("\nFleetcron is running: open {scheme}://{address}/ in a browser");
    println!("jobs:    {}", store(settings.has_etcd(), "etcd (CRON_ETCD_ENDPOINTS)"));
    println!("records: {}", store(settings.has_mongodb(), "MongoDB (CRON_MONGODB_URI)"));
    println!("workers: {} in this process", settings.workers);
    if rules.credentials {
        println!("callers: those with a token; `local-dev token create NAME ROLE` makes one");
    } else {
        println!("callers: EVERYBODY on this machine, without a token, and they may run any command as you");
        tracing::warn!(%address, "the API is open to every user and program of this machine: CRON_AUTH=required asks them for tokens");
    }
    println!("Ctrl-C ends it; everything is kept.\n");
}
