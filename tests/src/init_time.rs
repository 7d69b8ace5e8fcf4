//! Measures how long each function takes from its start to its first question for work, as Lambda's initialisation does.

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use common::clock::Stopwatch;
use local_dev::native::servers::without_cargo_variables;
use local_dev::native::{target, workspace};

/// Starts of each function.
const STARTS: usize = 20;
/// A function that has not asked by then will not.
const ASK_LIMIT: Duration = Duration::from_secs(10);
/// What every program asks Lambda's Runtime API when it is ready.
const ASKS: &[u8] = b"GET /2018-06-01/runtime/invocation/next ";

/// Builds the functions for this machine as the zips are built for arm64, starts each, and prints a table for the README.
///
/// # Errors
/// When they cannot be built, or one does not ask for work.
pub fn measure() -> anyhow::Result<()> {
    let mut build = Command::new("cargo");
    let built = without_cargo_variables(&mut build)
        .current_dir(workspace())
        .args(["build", "--locked", "--profile", "function", "-p", "functions", "--bins"])
        .status()
        .context("run cargo")?;
    ensure!(built.success(), "the functions were not built");
    let mut functions: Vec<&str> = functions::ROUTES.iter().map(|route| route.function).collect();
    functions.sort_unstable();
    functions.dedup();
    println!("| Function | Zip (arm64) | Start, least | Start, median |\n|---|---|---|---|");
    for function in functions {
        let mut times = (0..STARTS).map(|_| start(function)).collect::<anyhow::Result<Vec<Duration>>>()?;
        times.sort_unstable();
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        let zip = target().join("lambda").join(function).join("bootstrap.zip");
        let zip = match std::fs::metadata(zip) {
            Ok(file) => format!("{:.1} MB", file.len() as f64 / 1e6),
            Err(_) => "not built".to_owned(),
        };
        println!("| `{function}` | {zip} | {:.1} ms | {:.1} ms |", ms(times[0]), ms(times[STARTS / 2]));
    }
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!("\n{STARTS} starts each, on this machine ({}); load {}", std::env::consts::ARCH, load.trim());
    Ok(())
}

/// One start: from the spawn to the question for work, at a Runtime API that never gives any.
fn start(function: &str) -> anyhow::Result<Duration> {
    let runtime_api = TcpListener::bind("127.0.0.1:0").context("listen")?;
    let mut command = Command::new(target().join("function").join(function));
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.envs([
        ("AWS_LAMBDA_FUNCTION_NAME", function),
        ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "256"),
        ("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST"),
        ("AWS_LAMBDA_LOG_GROUP_NAME", "none"),
        ("AWS_LAMBDA_LOG_STREAM_NAME", "none"),
        // Nobody is there: to start must not need them.
        ("CRON_ETCD_ENDPOINTS", "http://127.0.0.1:1"),
        ("CRON_MONGODB_URI", "mongodb://127.0.0.1:1"),
    ]);
    command.env("AWS_LAMBDA_RUNTIME_API", runtime_api.local_addr().context("no address")?.to_string());
    let watch = Stopwatch::start();
    let mut child = command.spawn().with_context(|| format!("start {function}"))?;
    let asked = asked(&runtime_api, &watch);
    let time = watch.elapsed();
    let _ended = child.kill();
    child.wait().context("reap it")?;
    asked.with_context(|| function.to_owned())?;
    Ok(time)
}

fn asked(runtime_api: &TcpListener, watch: &Stopwatch) -> anyhow::Result<()> {
    // It is polled, so that a function that does not come is noticed; a tenth of a millisecond is not seen in the result.
    runtime_api.set_nonblocking(true).context("poll")?;
    let mut stream: TcpStream = loop {
        match runtime_api.accept() {
            Ok((stream, _)) => break stream,
            Err(why) if why.kind() != std::io::ErrorKind::WouldBlock => return Err(why.into()),
            Err(_) if watch.elapsed() > ASK_LIMIT => bail!("it did not ask for work in {ASK_LIMIT:?}"),
            Err(_) => std::thread::sleep(Duration::from_micros(100)),
        }
    };
    stream.set_nonblocking(false).context("wait for the question")?;
    stream.set_read_timeout(Some(ASK_LIMIT)).context("limit the wait")?;
    let mut question = vec![0; ASKS.len()];
    stream.read_exact(&mut question).context("read the question")?;
    ensure!(question == ASKS, "it asked {:?}", String::from_utf8_lossy(&question));
    Ok(())
}
