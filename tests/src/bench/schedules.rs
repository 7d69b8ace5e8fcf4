//! What a schedule costs: finding its next fire, parsing it, holding it. In this process: `cargo run --release -p tests -- bench schedules`.

use std::hint::black_box;

use common::clock::{Stopwatch, Timestamp};
use common::schedule::{Schedule, ScheduleSettings, Zone};

use super::figures::{head, row};
use super::machine;

/// Searches for a row.
const SEARCHES: u32 = 1_000_000;
/// Distinct schedules that are held.
const HELD: usize = 10_000;
/// 2027-01-15T08:00:00Z.
const FROM_MS: i64 = 1_800_000_000_000;

const ROWS: [(&str, &str); 11] = [
    ("UTC", "* * * * *"),
    ("UTC", "*/5 * * * *"),
    ("UTC", "30 2 * * MON-FRI"),
    ("Europe/Berlin", "*/5 * * * *"),
    ("Europe/Berlin", "30 2 * * MON-FRI"),
    ("Europe/Berlin", "0 0 LW * *"),
    ("UTC", "@every 90s"),
    ("UTC", "0 0 29 2 *"),
    ("America/New_York", "0 0 29 2 */7"),
    ("UTC", "0 0 1 1 * 2199"),
    ("America/New_York", "*/5 0 1 1 * 2020"),
];

/// Measures and prints.
///
/// # Errors
/// A row's expression is wrong, or the memory cannot be read.
pub(super) fn measure() -> anyhow::Result<()> {
    if cfg!(debug_assertions) {
        println!("(this is a debug build: no measure of anything)\n");
    }
    head(&["zone", "expression", "ns for the next fire", "ns to parse"]);
    for (zone, expression) in ROWS {
        let settings = ScheduleSettings {
            zone: Zone::parse(zone).map_err(anyhow::Error::msg)?,
            ..ScheduleSettings::default()
        };
        let schedule = Schedule::parse(expression, &settings)?;
        let watch = Stopwatch::start();
        for n in 0..SEARCHES {
            black_box(schedule.next_after(black_box(Timestamp::from_ms(FROM_MS + i64::from(n)))));
        }
        let next = watch.elapsed().as_nanos() / u128::from(SEARCHES);
        let (watch, times) = (Stopwatch::start(), 10_000);
        for _ in 0..times {
            black_box(Schedule::parse(black_box(expression), &settings).is_ok());
        }
        let parse = watch.elapsed().as_nanos() / times;
        row(&[zone.to_owned(), format!("`{expression}`"), next.to_string(), parse.to_string()]);
    }
    let before = machine::memory(std::process::id())?.now;
    let expression = |n: usize| format!("{} {} {} * *", n % 60, n / 60 % 24, 1 + n / 1440 % 28);
    let held: Result<Vec<_>, _> =
        (0..HELD).map(|n| Schedule::parse(&expression(n), &ScheduleSettings::default())).collect();
    let held = held?;
    let after = machine::memory(std::process::id())?.now;
    println!("\n{} distinct schedules: {:.1} MB", held.len(), after - before);
    Ok(())
}
