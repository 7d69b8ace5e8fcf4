//! What the machine can do by itself: `bash -c` started by a loop, as a worker has to, without any store or schedule. No worker on this machine
//! can be better than that.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ::tests::fixtures::{TestDir, now_ms};
use anyhow::Context;
use common::clock::Stopwatch;

use super::figures::{Spread, head, row, short};
use super::fleet::Stamp;
use super::machine;

/// Shells that are started for a rate.
const SHELLS: usize = 2000;
/// Shells that are started at one moment, for their lateness.
const AT_ONCE: [usize; 4] = [100, 200, 500, 1000];

/// Measures and prints.
///
/// # Errors
/// A shell cannot be started.
pub(super) fn measure() -> anyhow::Result<()> {
    head(&[
        "threads",
        "`bash -c true` per second",
        "CPU s per 1,000: who starts them",
        "CPU s per 1,000: the shells",
    ]);
    for threads in [1, 2] {
        let (before, watch) = (machine::cpu(std::process::id())?, Stopwatch::start());
        std::thread::scope(|scope| {
            let run = || (0..SHELLS / threads).try_for_each(|_| shell("true").spawn()?.wait().map(drop));
            let all: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
            all.into_iter().try_for_each(|thread| thread.join().expect("a loop without panics"))
        })
        .context("start shells")?;
        let (elapsed, after) = (watch.elapsed().as_secs_f64(), machine::cpu(std::process::id())?);
        let per_thousand = 1000.0 / SHELLS as f64;
        row(&[
            threads.to_string(),
            format!("{:.0}", SHELLS as f64 / elapsed),
            short((after.own - before.own) * per_thousand),
            short((after.children - before.children) * per_thousand),
        ]);
    }
    println!();
    head(&["shells at one moment", "what is taken", "p50 ms", "p99 ms", "max ms"]);
    for number in AT_ONCE {
        let (started, stamped) = at_once(number)?;
        for (what, spread) in
            [("the call that starts it returned", started), ("its own clock, first thing", stamped)]
        {
            let [p50, p99, max] = spread.columns();
            row(&[number.to_string(), what.to_owned(), p50, p99, max]);
        }
    }
    Ok(())
}

fn shell(command: &str) -> Command {
    let mut shell = Command::new("/bin/bash");
    shell.args(["-c", command]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    shell
}

/// Starts shells at one moment: how long after it each was started, and said what time it was.
fn at_once(number: usize) -> anyhow::Result<(Spread, Spread)> {
    let dir = TestDir::new("bench-floor");
    let file = dir.path().join("stamps");
    let command = Stamp::command(&file);
    let plan_time = now_ms() + 100;
    std::thread::sleep(Duration::from_millis(100));
    let watch = Stopwatch::start();
    let mut children: Vec<Child> = Vec::with_capacity(number);
    let mut started = Vec::with_capacity(number);
    for job in 0..number {
        let mut shell = shell(&command);
        shell.env("CRON_JOB_NAME", job.to_string()).env("CRON_PLAN_TIME", plan_time.to_string());
        children.push(shell.spawn().context("start a shell")?);
        started.push(watch.elapsed().as_secs_f64() * 1000.0);
    }
    for mut child in children {
        child.wait().context("wait for a shell")?;
    }
    let stamps = Stamp::read(Path::new(&file))?;
    Ok((Spread::of(started), Spread::of(stamps.iter().map(Stamp::lateness))))
}
