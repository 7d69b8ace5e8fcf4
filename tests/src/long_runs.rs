//! `cargo run -p tests -- chaos [minutes] [seed]` and `… -- upgrade [revision] [rounds] [seed]`: what takes too long for every run of the
//! tests.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use common::clock::Stopwatch;
use local_dev::native::servers::{self, Site, without_cargo_variables};
use local_dev::native::{provision, target, workspace};
use tests::chaos;
use tests::chaos::fleet::Programs;
use tests::chaos::jobs::{self, JobKind};
use tests::chaos::plan::Plan;
use tests::fixtures::{guard, now_ms};

/// Jobs that count: with the others, some forty fires a second.
const JOBS: usize = 60;
/// What a fleet is upgraded from where no tag says it: the last commit before workers kept to this version's protocol.
const PREVIOUS: &str = "569cd11";

/// Chaos for so many minutes (10 when it is not said), by a seed of now or the one that is given.
pub(crate) async fn chaos(words: &[String]) -> anyhow::Result<()> {
    let minutes = number(words.first(), 10)?;
    let seed = number(words.get(1), now_ms().unsigned_abs())?;
    let kinds = jobs::kinds(JOBS);
    let plan = Plan::chaos(seed, Duration::from_secs(minutes * 60), &kinds);
    prepare().await?;
    carry_out("chaos", Programs::of_this_version()?, &plan, &kinds).await
}

/// A fleet of a previous version becomes one of this version under load, and again one of the previous, as often as it is said.
pub(crate) async fn upgrade(words: &[String]) -> anyhow::Result<()> {
    let revision = match words.first() {
        Some(revision) => revision.clone(),
        None => git(&["describe", "--tags", "--abbrev=0"]).unwrap_or_else(|_no_tag| PREVIOUS.to_owned()),
    };
    let rounds = usize::try_from(number(words.get(1), 2)?)?;
    let seed = number(words.get(2), now_ms().unsigned_abs())?;
    let since = Stopwatch::start();
    let previous = previous_worker(&revision)?;
    println!("the worker of {revision} is there after {} s", since.elapsed().as_secs());
    let kinds = jobs::kinds(JOBS);
    let plan = Plan::rolling(seed, rounds, &kinds);
    prepare().await?;
    let programs = Programs { previous: Some(previous), ..Programs::of_this_version()? };
    carry_out("upgrade", programs, &plan, &kinds).await
}

fn number(word: Option<&String>, otherwise: u64) -> anyhow::Result<u64> {
    word.map_or(Ok(otherwise), |word| word.parse().with_context(|| format!("{word:?} is no whole number")))
}

async fn prepare() -> anyhow::Result<()> {
    tokio::task::spawn_blocking(|| provision::etcd().and_then(|_etcd| provision::mongo())).await??;
    servers::build(&["--workspace", "--bin", "worker", "--bin", "local-dev"]).await
}

async fn carry_out(what: &str, programs: Programs, plan: &Plan, kinds: &[JobKind]) -> anyhow::Result<()> {
    let dir = target().join("native").join(format!("{what}-{}-{}", plan.seed, std::process::id()));
    std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let site = Site { dir: dir.clone(), guard: guard() };
    let came_out = chaos::run(&site, programs, plan, kinds).await;
    let kept = || format!("seed {}; logs and data are kept in {}", plan.seed, dir.display());
    let report = came_out.with_context(kept)?;
    println!("{report}");
    ensure!(report.violations.is_empty(), kept());
    std::fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))
}

/// Builds the worker of another revision, from the repository's own history and with a target directory of its own.
fn previous_worker(revision: &str) -> anyhow::Result<PathBuf> {
    let commit = git(&["rev-parse", "--short=12", &format!("{revision}^{{commit}}")])?;
    let home = target().join("upgrade");
    let program = home.join(format!("worker-{commit}"));
    if program.exists() {
        return Ok(program);
    }
    let sources = home.join(format!("sources-{commit}"));
    std::fs::create_dir_all(&sources).with_context(|| format!("create {}", sources.display()))?;
    let archive = home.join(format!("{commit}.tar"));
    git(&["archive", "--output", &archive.to_string_lossy(), &commit])?;
    run(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&sources))?;
    println!("building the worker of {revision} (some minutes, the first time)");
    let mut cargo = Command::new("cargo");
    without_cargo_variables(&mut cargo)
        .current_dir(&sources)
        .args(["build", "--locked", "--workspace", "--bin", "worker", "--target-dir"])
        .arg(home.join("target"));
    run(&mut cargo)?;
    std::fs::copy(home.join("target/debug/worker"), &program).context("copy the worker")?;
    std::fs::remove_dir_all(&sources).and_then(|()| std::fs::remove_file(&archive)).context("tidy up")?;
    Ok(program)
}

fn git(words: &[&str]) -> anyhow::Result<String> {
    let output = Command::new("git").current_dir(workspace()).args(words).output().context("start git")?;
    if !output.status.success() {
        bail!("git {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let name = Path::new(command.get_program()).display().to_string();
    let status = command.status().with_context(|| format!("start {name}"))?;
    ensure!(status.success(), "{name}: {status}");
    Ok(())
}
