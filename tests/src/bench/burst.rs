//! Jobs that are all due in one second, once: how many start before it is over.

use std::time::Duration;

use ::tests::fixtures::now_ms;
use anyhow::Context;
use common::clock::{Clock, Stopwatch, SystemClock, Timestamp, sleep};

use super::every_second::{LAST_STARTS, Window};
use super::figures::{Spread, head, row};
use super::fleet::{Fleet, NewJob, Stamp, starts};
use super::{Flags, machine};

/// The first attempt, doubled while all of it starts within the second.
const FIRST: usize = 250;
/// More than any machine of this kind starts.
const MOST: usize = 16_000;
/// The answer is exact to a fraction of the first attempt that did not succeed.
const EXACT_TO: usize = 16;
/// The issue's own number, on three workers.
const ASKED: usize = 2000;
/// From the jobs' saving to their time: until then every worker knows them.
const SETTLE_MS: i64 = 4_000;
/// After their time, what starts is waited for so long.
const STARTS_LIMIT: Duration = Duration::from_secs(15);

/// Measures and prints.
///
/// # Errors
/// A server does not start or answer.
pub(super) async fn measure(flags: &Flags) -> anyhow::Result<()> {
    println!(
        "Jobs with one planned time, the same for all, each a stamp; the number is doubled while all of them start within a second of it, then \
         halved in. Times by the commands' own clocks; with another shell than bash, `true` and startTime − planTime of the records.\n"
    );
    for &workers in flags.workers.as_ref().map_or(&[1, 2, 3][..], std::slice::from_ref) {
        head(&[
            "workers",
            "jobs due",
            "started",
            "twice",
            "p50 ms",
            "p99 ms",
            "last start ms",
            "all within 1 s",
            "load before",
        ]);
        let mut fleet = Fleet::start("burst").await?;
        fleet.shell.clone_from(&flags.shell);
        fleet.workers(workers).await?;
        if let Some(jobs) = flags.jobs {
            one(&mut fleet, jobs).await?;
            continue;
        }
        let (mut good, mut bad) = (0, MOST + 1);
        let mut jobs = FIRST;
        let mut asked = false;
        while jobs <= MOST {
            asked |= jobs == ASKED;
            if one(&mut fleet, jobs).await? {
                good = jobs;
            } else {
                bad = jobs;
            }
            jobs = if bad > MOST { jobs * 2 } else { good.midpoint(bad) };
            if bad <= MOST && bad - good <= bad / EXACT_TO {
                break;
            }
        }
        if workers == 3 && !asked {
            one(&mut fleet, ASKED).await?;
        }
        println!("\n{workers} workers: {good} in one second\n");
    }
    Ok(())
}

/// One burst; whether all of it started within its second.
async fn one(fleet: &mut Fleet, jobs: usize) -> anyhow::Result<bool> {
    let load = machine::load();
    let _none_yet = std::fs::remove_file(fleet.stamps_file());
    let settle = SETTLE_MS + i64::try_from(jobs).context("a number of jobs")?;
    let plan_time = (now_ms() + settle) / 1000 * 1000;
    let cron_expr = at(plan_time);
    let stamps = fleet.shell.is_none(); // only bash tells the time without a further process
    let command = if stamps { Stamp::command(&fleet.stamps_file()) } else { "true".to_owned() };
    // Other names each time: marks of deleted jobs stay for a day.
    let new = |n: usize| NewJob {
        name: format!("burst-{plan_time}-{n:05}"),
        command: command.clone(),
        cron_expr: cron_expr.clone(),
    };
    fleet.save_jobs((0..jobs).map(new)).await?;
    SystemClock.sleep_until(Timestamp::from_ms(plan_time + 1000)).await;
    // Reading all records is work for the stores, which what still starts would feel.
    let pause = if stamps { Duration::from_millis(200) } else { LAST_STARTS };
    let waited = Stopwatch::start();
    let (started, twice, lateness) = loop {
        sleep(pause).await;
        let counted = match stamps {
            true => by_stamps(fleet)?,
            false => by_records(fleet, plan_time).await?,
        };
        if counted.0 >= jobs || waited.elapsed() >= STARTS_LIMIT {
            break counted;
        }
    };
    fleet.delete_jobs().await?;
    let last = lateness.percentile(100).unwrap_or(f64::INFINITY);
    let good = started == jobs && last < 1000.0;
    let [p50, p99, max] = lateness.columns();
    row(&[
        fleet.workers.len().to_string(),
        jobs.to_string(),
        started.to_string(),
        twice,
        p50,
        p99,
        max,
        if good { "yes" } else { "no" }.to_owned(),
        load,
    ]);
    Ok(good)
}

/// The jobs that have started, those of them that did twice, and how late.
type Started = (usize, String, Spread);

fn by_stamps(fleet: &Fleet) -> anyhow::Result<Started> {
    let stamps = fleet.stamps()?;
    let starts = starts(&stamps);
    let twice = starts.values().filter(|number| **number > 1).count();
    Ok((starts.len(), twice.to_string(), Spread::of(stamps.iter().map(Stamp::lateness))))
}

async fn by_records(fleet: &Fleet, plan_time: i64) -> anyhow::Result<Started> {
    let counted = Window { from: plan_time, to: plan_time + 1 }.count(&fleet.records().await?)?;
    Ok((counted.run.len(), "–".to_owned(), counted.lateness))
}

/// The expression of one moment.
fn at(plan_time: i64) -> String {
    let text = Timestamp::from_ms(plan_time).rfc3339(); // 2026-11-21T12:22:34.000Z
    let digits = |from: usize, to: usize| text.get(from..to).unwrap_or_default();
    let (year, month, day) = (digits(0, 4), digits(5, 7), digits(8, 10));
    let (hour, minute, second) = (digits(11, 13), digits(14, 16), digits(17, 19));
    format!("{second} {minute} {hour} {day} {month} * {year}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_expression_of_a_moment_has_no_other() {
        let plan_time = 1_795_263_754_000;
        let schedule = common::schedule::Schedule::parse(&at(plan_time), &Default::default()).unwrap();
        let next = |ms: i64| schedule.next_after(Timestamp::from_ms(ms)).map(Timestamp::ms);
        assert_eq!(next(0), Some(plan_time));
        assert_eq!(next(plan_time), None);
    }
}
