//! The runner behind `cargo run -p tests [-- --strict] [step…]`: provisions what the tests need, runs all of them, prints a table.
//! `cargo run -p tests -- measure-functions` prints how long each function takes to start, and the size of its zip; `… -- bench [what…]`
//! what the workers can do (`bench/`). `… -- soak [fires [a second]]` fires so many times on each kind of store (100,000, 200 a second) and counts records and bytes.
//! `… -- sbom` prints what the programs are built from (`sbom.rs`), `… -- deny` has cargo-deny hold it against `deny.toml`, `… -- reproducible` builds
//! a release twice and compares bytes (`reproducible.rs`). `… -- chaos` and `… -- upgrade`: see `long_runs.rs`.

mod bench;
mod init_time;
mod licences;
mod long_runs;
mod report;
mod reproducible;
mod sbom;
mod soak;
mod zips;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use common::clock::Stopwatch;
use local_dev::native::guard::{self, Guard};
use local_dev::native::provision::{self, Found, Missing};
use local_dev::native::servers::without_cargo_variables;
use local_dev::native::{process, target, workspace};
use report::{Counts, Outcome, Report};
use tokio::signal::unix::{SignalKind, signal};

/// No step takes so long; one that does hangs.
const STEP_LIMIT: Duration = Duration::from_secs(40 * 60);
/// Seeds of the simulation: some two minutes on two cores.
const SIMULATED_SEEDS: u32 = 12_000;
/// In CI everything is built once and thrown away: what only the next build, or somebody with a debugger, would read is not written. The target
/// directory is half as large so.
const SMALL_BUILD: [(&str, &str); 2] = [("CARGO_INCREMENTAL", "0"), ("CARGO_PROFILE_DEV_DEBUG", "0")];
/// Lines of a failed step's log that are printed.
const TAIL_LINES: usize = 60;

/// A part of the run.
struct Step {
    name: &'static str,
    what: What,
}

enum What {
    /// Get a tool.
    Tool(fn() -> Result<Found, Missing>),
    /// Run these Cargo commands, each counted as one unless it prints test results.
    Cargo(Vec<Vec<String>>),
    /// Run the simulation of the workers' protocol through tens of thousands of seeds.
    Simulation,
    /// Hold the dependencies against `deny.toml`.
    Licences,
    /// Build the functions for Lambda, and hold the zips against the template.
    Zips,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words == [guard::WORD] {
        return exit(guard::run().context("guard"));
    }
    if words == ["measure-functions"] {
        return exit(init_time::measure());
    }
    if let Some((word, what)) = words.split_first()
        && word == "deny"
    {
        let mut cargo = Command::new("cargo");
        return exit(licences::deny(workspace(), without_cargo_variables(&mut cargo), what));
    }
    if let Some((word, what)) = words.split_first()
        && word == "reproducible"
    {
        return exit(reproducible::run(what));
    }
    if words == ["sbom"] {
        let mut cargo = Command::new("cargo");
        without_cargo_variables(&mut cargo);
        return exit(sbom::list(workspace(), &mut cargo).map(|bill| println!("{bill:#}")));
    }
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(why) => return exit(Err(why.into())),
    };
    if let Some((word, what)) = words.split_first()
        && word == "bench"
    {
        return exit(runtime.block_on(bench::run(what)));
    }
    if let [word, dir] = words.as_slice()
        && word == "hold"
    {
        return exit(runtime.block_on(hold(Path::new(dir))));
    }
    match words.split_first() {
        Some((word, rest)) if word == "chaos" => return exit(runtime.block_on(long_runs::chaos(rest))),
        Some((word, rest)) if word == "upgrade" => return exit(runtime.block_on(long_runs::upgrade(rest))),
        Some((word, rest)) if word == "soak" => return exit(runtime.block_on(soak::run(rest))),
        _ => {}
    }
    match runtime.block_on(run(&words)) {
        Ok(code) => code,
        Err(why) => exit(Err(why)),
    }
}

fn exit(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(words: &[String]) -> anyhow::Result<ExitCode> {
    let strict = words.iter().any(|word| word == "--strict") || in_ci();
    let filter: Vec<&String> = words.iter().filter(|word| *word != "--strict").collect();
    let steps = steps()?;
    if let Some(unknown) =
        filter.iter().find(|word| !steps.iter().any(|step| step.name.contains(word.as_str())))
    {
        let names: Vec<&str> = steps.iter().map(|step| step.name).collect();
        bail!("no step is called like {unknown:?}; there are: {}", names.join(", "));
    }
    let chosen = |step: &Step| {
        let tool = matches!(step.what, What::Tool(_));
        tool || filter.is_empty() || filter.iter().any(|word| step.name.contains(word.as_str()))
    };
    let own = std::env::current_exe().context("find this program")?;
    let guard = Guard::start(&own).context("start the guard")?;
    let logs = target().join("test-logs");
    std::fs::create_dir_all(&logs).with_context(|| format!("create {}", logs.display()))?;

    let mut interrupt = signal(SignalKind::interrupt()).context("listen to SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen to SIGTERM")?;
    let mut report = Report::default();
    for step in steps.iter().filter(|step| chosen(step)) {
        println!("== {}", step.name);
        let watch = Stopwatch::start();
        let outcome = tokio::select! {
            outcome = perform(step, &logs, &guard) => outcome,
            _ = interrupt.recv() => bail!("interrupted"),
            _ = terminate.recv() => bail!("told to end"),
        };
        if let Outcome::Failed(why) = &outcome.0 {
            println!("{why}");
        }
        report.add(step.name, outcome.0, outcome.1, watch.elapsed());
    }
    println!("\n{}", report.table());
    let counts = report.counts();
    if strict && counts.skipped > 0 {
        println!("a skip counts as a failure here (--strict, or CI=true)");
    }
    println!("{} passed, {} failed, {} skipped", counts.passed, counts.failed, counts.skipped);
    let good = counts.failed == 0 && (counts.skipped == 0 || !strict);
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[expect(clippy::disallowed_methods, reason = "it is no setting of the product")]
fn in_ci() -> bool {
    std::env::var("CI").is_ok_and(|ci| ci == "true")
}

/// All steps, in order: the quick ones first.
fn steps() -> anyhow::Result<Vec<Step>> {
    let tests = IntegrationTests::find()?;
    let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    // Always the whole workspace with a choice of targets: Cargo picks features for what it is asked to build, and another choice of
    // packages would build the dependencies again.
    let test = |selection: &str, names: &[String], threads: &str| {
        let mut line = words(&format!("test --workspace --no-fail-fast{selection}"));
        line.extend(names.iter().flat_map(|name| ["--test".to_owned(), name.clone()]));
        line.extend(words(&format!("-- --nocapture{threads}")));
        line
    };
    Ok(vec![
        Step { name: "etcd", what: What::Tool(provision::etcd) },
        Step { name: "mongodb-protocol server", what: What::Tool(provision::mongo) },
        Step { name: "cargo-lambda", what: What::Tool(provision::cargo_lambda) },
        Step { name: "moto (AWS)", what: What::Tool(provision::moto) },
        Step { name: "seed stand-in", what: What::Tool(provision::seed) },
        Step { name: "libfaketime", what: What::Tool(provision::faketime) },
        Step { name: "cfn-lint", what: What::Tool(provision::cfn_lint) },
        Step { name: "arm64 tools", what: What::Tool(provision::arm64_tools) },
        Step { name: "compose library", what: What::Tool(provision::compose) },
        Step { name: "kubernetes-validate", what: What::Tool(provision::kubernetes_validate) },
        Step { name: "promtool", what: What::Tool(provision::promtool) },
        Step { name: "debian root", what: What::Tool(provision::debian_root) },
        Step { name: "browser", what: What::Tool(browser) },
        Step { name: "fmt", what: What::Cargo(vec![words("fmt --all --check")]) },
        Step { name: "licences", what: What::Licences },
        Step {
            name: "clippy",
            what: What::Cargo(vec![words("clippy --workspace --all-targets -- -D warnings")]),
        },
        Step { name: "build", what: What::Cargo(vec![words("build --workspace")]) },
        Step {
            name: "unit tests",
            what: What::Cargo(vec![
                test(" --lib", &tests.unit, ""),
                words("test --workspace --no-fail-fast --doc"),
            ]),
        },
        Step { name: "simulation", what: What::Simulation },
        Step { name: "conformance", what: What::Cargo(vec![test("", &tests.conformance, "")]) },
        Step { name: "api", what: What::Cargo(vec![test("", &tests.api, "")]) },
        // One after the other: they count the seconds in which jobs fire.
        Step { name: "end-to-end", what: What::Cargo(vec![test("", &tests.e2e, " --test-threads=1")]) },
        Step { name: "lambda zips", what: What::Zips },
    ])
}

/// What the test of the console needs, as one tool.
fn browser() -> Result<Found, Missing> {
    provision::console_tools().map(|tools| Found { program: tools.browser, origin: tools.origin })
}

/// The files `*/tests/*.rs`, told apart by their names.
#[derive(Default)]
struct IntegrationTests {
    unit: Vec<String>,
    conformance: Vec<String>,
    api: Vec<String>,
    e2e: Vec<String>,
}

impl IntegrationTests {
    fn find() -> anyhow::Result<Self> {
        let mut found = Self::default();
        for member in ["common", "functions", "worker", "local-dev", "tests"] {
            let Ok(entries) = std::fs::read_dir(workspace().join(member).join("tests")) else { continue };
            for entry in entries {
                let path = entry.context("list the tests")?.path();
                let Some(name) = path.file_stem().and_then(|stem| stem.to_str()) else { continue };
                if path.extension().is_none_or(|extension| extension != "rs") {
                    continue;
                }
                let list = match name {
                    _ if name.ends_with("_conformance") => &mut found.conformance,
                    _ if name.starts_with("api") => &mut found.api,
                    _ if name.starts_with("e2e") => &mut found.e2e,
                    _ => &mut found.unit,
                };
                list.push(name.to_owned());
            }
        }
        for list in [&mut found.unit, &mut found.conformance, &mut found.api, &mut found.e2e] {
            list.sort();
        }
        Ok(found)
    }
}

async fn perform(step: &Step, logs: &Path, guard: &Guard) -> (Outcome, Counts) {
    match &step.what {
        What::Tool(get) => {
            let get = *get;
            let got = tokio::task::spawn_blocking(get).await;
            match got {
                Ok(Ok(found)) => one(Outcome::Passed(found.origin)),
                Ok(Err(missing)) => one(skipped(&missing)),
                Err(panic) => one(Outcome::Failed(panic.to_string())),
            }
        }
        What::Simulation => {
            let log = logs.join("simulation.log");
            let _absent = std::fs::remove_file(&log);
            one(simulation(&log, guard).await)
        }
        What::Licences => {
            let mut cargo = Command::new("cargo");
            without_cargo_variables(&mut cargo);
            match licences::check(workspace(), &mut cargo) {
                Ok(packages) => one(Outcome::Passed(format!("{packages} packages"))),
                Err(why) => one(Outcome::Failed(format!("{why:#}"))),
            }
        }
        What::Zips => {
            let log = logs.join("lambda-zips.log");
            let _absent = std::fs::remove_file(&log);
            one(lambda_zips(&log, guard).await)
        }
        What::Cargo(lines) => {
            let log = logs.join(format!("{}.log", step.name.replace(' ', "-")));
            let _absent = std::fs::remove_file(&log);
            cargo_step(step.name, lines, &log, guard).await
        }
    }
}

fn one(outcome: Outcome) -> (Outcome, Counts) {
    let counts = match outcome {
        Outcome::Passed(_) => Counts { passed: 1, ..Counts::default() },
        Outcome::Failed(_) => Counts { failed: 1, ..Counts::default() },
        Outcome::Skipped(_) => Counts { skipped: 1, ..Counts::default() },
    };
    (outcome, counts)
}

fn skipped(missing: &Missing) -> Outcome {
    Outcome::Skipped(format!("{}; how to get it: {}", missing.what, missing.how_to_get))
}

/// With what a log has of the failure.
fn failed(log: &Path) -> Outcome {
    let end = report::failure(&text_of(log), TAIL_LINES);
    Outcome::Failed(format!("{end}\n(the whole log: {})", log.display()))
}

fn text_of(log: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()).into_owned()
}

async fn cargo_step(name: &str, lines: &[Vec<String>], log: &Path, guard: &Guard) -> (Outcome, Counts) {
    let mut good = true;
    for line in lines {
        // No test file of that kind: Cargo would take it as "all".
        let is_test = line.first().is_some_and(|word| word == "test");
        if is_test && !line.iter().any(|word| ["--test", "--lib", "--doc"].contains(&word.as_str())) {
            return one(Outcome::Skipped("there are no such tests yet".to_owned()));
        }
        let mut cargo = Command::new("cargo");
        cargo.args(line);
        match logged(name, cargo, log, guard).await {
            Ok(succeeded) => good &= succeeded,
            Err(why) => return one(Outcome::Failed(format!("{why:#}"))),
        }
    }
    let text = text_of(log);
    let mut counts = report::count(&text);
    if counts.failed == 0 && !good {
        counts.failed = 1; // it did not come to a result: it did not compile, or it crashed
    }
    if counts == Counts::default() {
        counts.passed = 1; // no tests in it: the step is one
    }
    let outcome = if !good {
        failed(log)
    } else if let Some(skips) = report::skips(&text) {
        Outcome::Skipped(skips)
    } else {
        Outcome::Passed(report::not_tried(&text))
    };
    (outcome, counts)
}

/// The test of the simulation that the unit tests run with few seeds, with many.
async fn simulation(log: &Path, guard: &Guard) -> Outcome {
    let mut cargo = Command::new("cargo");
    cargo.args([
        "test",
        "--workspace",
        "--lib",
        "a_fleet_in_trouble_keeps_its_promises",
        "--",
        "--nocapture",
    ]);
    cargo.env("SIM_SEEDS", SIMULATED_SEEDS.to_string());
    match logged("simulation", cargo, log, guard).await {
        Ok(true) => Outcome::Passed(format!("{SIMULATED_SEEDS} seeds")),
        Ok(false) => failed(log),
        Err(why) => Outcome::Failed(format!("{why:#}")),
    }
}

/// Builds every function for arm64 as the deployment does, and looks at what came out.
async fn lambda_zips(log: &Path, guard: &Guard) -> Outcome {
    let tools = tokio::task::spawn_blocking(|| Ok((provision::cargo_lambda()?, provision::arm64_tools()?)));
    let (cargo_lambda, zig) = match tools.await {
        Ok(Ok(tools)) => tools,
        Ok(Err::<_, Missing>(missing)) => return skipped(&missing),
        Err(panic) => return Outcome::Failed(panic.to_string()),
    };
    let build = async {
        let mut command = Command::new(&cargo_lambda.program);
        let beside_zig = zig.program.parent().unwrap_or(Path::new(""));
        command.args(zips::BUILD).env("PATH", provision::path_with(&[beside_zig])?);
        logged("lambda-zips", command, log, guard).await
    };
    match build.await {
        Ok(true) => {}
        Ok(false) => return failed(log),
        Err(why) => return Outcome::Failed(format!("{why:#}")),
    }
    match zips::check() {
        Ok(table) => {
            println!("{table}");
            Outcome::Passed(String::new())
        }
        Err(why) => Outcome::Failed(format!("{why:#}")),
    }
}

/// Runs a command of Cargo's kind, its output into the log; whether it succeeded.
async fn logged(name: &str, mut command: Command, log: &Path, guard: &Guard) -> anyhow::Result<bool> {
    without_cargo_variables(&mut command).current_dir(workspace()).env("CARGO_TERM_COLOR", "never");
    if in_ci() {
        command.envs(SMALL_BUILD);
    }
    let mut process = process::Process::start(name, command, log, Some(guard))?;
    Ok(process.wait(STEP_LIMIT).await?.success())
}

/// Holds servers until it is killed, for the test of the guard: prints the process id of one that has a child.
async fn hold(dir: &Path) -> anyhow::Result<()> {
    let guard = Guard::start(&std::env::current_exe()?)?;
    let mut command = Command::new("bash");
    command.args(["-c", "set -m; sleep 1000 & sleep 1000"]).stdout(Stdio::null());
    let held = process::Process::start("held", command, &PathBuf::from(dir).join("held.log"), Some(&guard))?;
    println!("{}", held.pid());
    std::future::pending::<()>().await;
    drop(held);
    Ok(())
}
