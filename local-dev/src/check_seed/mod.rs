//! `local-dev check-seed [ZONE]`: what becomes of the jobs of a seed's fleet when Fleetcron's workers take them over. Reads the store and changes
//! nothing.

mod cronexpr;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::Context as _;
use common::clock::Timestamp;
use common::domain::calendars::{Calendar, CalendarName, Calendars};
use common::domain::job::Job;
use common::domain::settings::FleetSettings;
use common::keys;
use common::kv::{Kv, Pair, Range};
use common::schedule::{Schedule, Zone};

use cronexpr::{Cronexpr, Next};

/// So many fires are compared.
const FIRES: usize = 10;
/// Within this time the seed's reading is looked at around each jump of its clocks: both kinds come in a year.
const JUMPS_DAYS: i64 = 400;
/// Around a jump, the seed's fires are followed from so long before it to so long after it, in seconds.
const AROUND_JUMP: i64 = 4 * 3600;
/// Jobs are read in pages of so many.
const PAGE: usize = 1_000;

/// What the seed's workers make of an expression.
#[derive(Clone, PartialEq, Eq, Debug)]
enum SeedDoes {
    /// Its times, as many as are compared, or fewer where there are no more.
    Fires(Vec<i64>),
    /// It is not read, and the job is passed over.
    Refuses(String),
    /// Every worker that loads the job ends, and again when it is started.
    Panics,
    /// The job runs without pause from this time on, in seconds; `for_ever`: it does not end by itself.
    Spins { from: i64, for_ever: bool },
}

/// One job of the report.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Finding {
    job: String,
    says: String,
}

/// Reads the jobs and says what is found. `zone` is that of the seed's workers.
///
/// # Errors
/// When the store cannot be read.
pub async fn run(kv: &dyn Kv, zone: &Zone, now: Timestamp) -> anyhow::Result<String> {
    let stored = kv.range(Range::key(keys::SETTINGS)).await.context("the fleet's settings")?;
    let fleet = match stored.pairs.first() {
        Some(pair) => FleetSettings::decode(&pair.value).context("the fleet's settings in /cron/settings")?,
        None => FleetSettings::default(),
    };
    let mut calendars = Calendars::default();
    for pair in read_all(kv, keys::CALENDARS).await.context("the calendars")? {
        let name = pair.key.strip_prefix(keys::CALENDARS).and_then(|name| CalendarName::parse(name).ok());
        // One that cannot be read is none that jobs run by.
        if let (Some(name), Ok(calendar)) = (name, Calendar::decode(&pair.value)) {
            calendars.insert(name, calendar.days);
        }
    }
    let fleet = FleetSettings { calendars, ..fleet };
    let pairs = read_all(kv, keys::JOBS).await.context("the jobs")?;
    Ok(report(&pairs, &fleet, zone, now))
}

async fn read_all(kv: &dyn Kv, prefix: &str) -> Result<Vec<Pair>, common::kv::Error> {
    let mut pairs: Vec<Pair> = Vec::new();
    let mut span = common::kv::Span::prefix(prefix);
    loop {
        let page = kv.range(Range::all(span.clone()).limit(PAGE)).await?.pairs;
        let whole = page.len() < PAGE;
        if let Some(last) = page.last() {
            span.from = [last.key.as_bytes(), b"\0"].concat().into();
        }
        pairs.extend(page);
        if whole {
            return Ok(pairs);
        }
    }
}

/// What is said about these jobs.
fn report(pairs: &[Pair], fleet: &FleetSettings, zone: &Zone, now: Timestamp) -> String {
    let jumps = jumps(zone, now);
    let mut seen: BTreeMap<String, SeedDoes> = BTreeMap::new();
    let mut findings = Vec::new();
    for pair in pairs {
        let shown = pair.key.to_string();
        let name = pair.key.strip_prefix(keys::JOBS).unwrap_or(&shown);
        if let Some(says) = look_at(name, &pair.value, fleet, zone, now, &jumps, &mut seen) {
            findings.push(Finding { job: name.to_owned(), says });
        }
    }
    let mut text = String::new();
    for Finding { job, says } in &findings {
        let _infallible = writeln!(text, "{job:?}: {says}");
    }
    let (all, found) = (pairs.len(), findings.len());
    let _infallible = writeln!(
        text,
        "{all} jobs, {found} to look at; the others have the same next {FIRES} fires under Fleetcron (clocks of the seed's workers: {zone})"
    );
    text
}

/// What is to be said about one job; `None` = nothing changes.
fn look_at(
    name: &str,
    value: &[u8],
    fleet: &FleetSettings,
    zone: &Zone,
    now: Timestamp,
    jumps: &[i64],
    seen: &mut BTreeMap<String, SeedDoes>,
) -> Option<String> {
    let job = match Job::from_stored(name, value) {
        Ok(job) => job,
        Err(why) => return Some(format!("Fleetcron does not run it: {why}")),
    };
    let known = seen.get(&job.cron_expr).cloned();
    let seed = known.unwrap_or_else(|| {
        let does = seed_does(&job.cron_expr, zone, now, jumps);
        seen.insert(job.cron_expr.clone(), does.clone());
        does
    });
    let ours = Schedule::parse(&job.cron_expr, &fleet.of_job(&job));
    let our_fires =
        ours.as_ref().map(|schedule| our_fires(&schedule.clone().within(job.options.window()), now));
    let ours_says = match &our_fires {
        Err(why) => format!("Fleetcron does not run it: {why}"),
        Ok(fires) if fires.is_empty() => "it has no fire any more under Fleetcron".to_owned(),
        Ok(fires) => format!("under Fleetcron it fires {}", shown(fires)),
    };
    let expression = &job.cron_expr;
    let says = match (&seed, &our_fires) {
        (SeedDoes::Panics, _) => format!("{expression:?} ends every seed worker that loads it (panic)"),
        (SeedDoes::Spins { from, for_ever: true }, _) => {
            format!(
                "{expression:?} has no next time for the seed, which runs it without pause from {} on",
                time(*from)
            )
        }
        (SeedDoes::Spins { from, for_ever: false }, _) => {
            format!(
                "{expression:?} is run by the seed without pause from {} on, for some time: the next time that it finds is not later",
                time(*from)
            )
        }
        (SeedDoes::Refuses(why), _) => format!("{expression:?} is passed over by the seed ({why})"),
        (SeedDoes::Fires(fires), Ok(ours)) if fires == ours => return None,
        (SeedDoes::Fires(fires), _) => format!("{expression:?} fires {} under the seed", shown(fires)),
    };
    Some(format!("{says}; {ours_says}"))
}

/// The jumps of the zone's clocks that are near, by asking for its offset day by day, hour by hour.
fn jumps(zone: &Zone, now: Timestamp) -> Vec<i64> {
    let now = now.ms().div_euclid(1000);
    let offset = |t: i64| zone.offset_at(Timestamp::from_ms(t * 1000));
    let hours = (0..JUMPS_DAYS * 24).map(|hour| now + hour * 3600);
    hours.filter(|t| offset(*t) != offset(t + 3600)).collect()
}

fn our_fires(schedule: &Schedule, now: Timestamp) -> Vec<i64> {
    let next = |t: &Timestamp| schedule.next_after(*t);
    std::iter::successors(next(&now), next).take(FIRES).map(|t| t.ms().div_euclid(1000)).collect()
}

fn seed_does(expression: &str, zone: &Zone, now: Timestamp, jumps: &[i64]) -> SeedDoes {
    let read = match Cronexpr::parse(expression) {
        Ok(read) => read,
        Err(why) => return SeedDoes::Refuses(why),
    };
    let now = now.ms().div_euclid(1000);
    let (mut fires, mut t) = (Vec::new(), now);
    while fires.len() < FIRES {
        match read.next(t, zone) {
            Next::Panic => return SeedDoes::Panics,
            // A job whose last time has come is due for ever, like one that never had any.
            Next::Never => return SeedDoes::Spins { from: t, for_ever: true },
            Next::At(next) if next <= t => return SeedDoes::Spins { from: t, for_ever: false },
            Next::At(next) => {
                fires.push(next);
                t = next;
            }
        }
    }
    for jump in jumps {
        let mut t = jump - AROUND_JUMP;
        while t < jump + AROUND_JUMP {
            match read.next(t, zone) {
                Next::At(next) if next > t => t = next,
                Next::At(_) => return SeedDoes::Spins { from: t, for_ever: false },
                Next::Panic => return SeedDoes::Panics,
                Next::Never => break,
            }
        }
    }
    SeedDoes::Fires(fires)
}

/// A few of them, for the eye.
fn shown(fires: &[i64]) -> String {
    const SHOWN: usize = 3;
    let mut text = fires.iter().take(SHOWN).map(|fire| time(*fire)).collect::<Vec<_>>().join(", ");
    if fires.len() > SHOWN {
        text.push_str(", …");
    }
    text
}

fn time(second: i64) -> String {
    Timestamp::from_ms(second * 1000).rfc3339().replace(".000", "")
}

#[cfg(test)]
mod tests {
    use common::domain::job::JobName;
    use common::kv::embedded::EmbeddedKv;
    use common::kv::{Op, Txn};

    use super::*;

    /// 2027-01-15T08:00:00Z, a Friday.
    const NOW: Timestamp = Timestamp::from_ms(1_800_000_000_000);

    fn says(expression: &str, zone: &str) -> Option<String> {
        let (fleet, zone) = (FleetSettings::default(), Zone::parse(zone).unwrap());
        let value = serde_json::json!({ "command": "true", "cronExpr": expression }).to_string();
        look_at("a", value.as_bytes(), &fleet, &zone, NOW, &jumps(&zone, NOW), &mut BTreeMap::new())
    }

    #[test]
    fn what_fires_as_before_is_not_mentioned() {
        for same in [
            "*/5 * * * *",
            "0 9 * * 1-5",
            "*/10 * * * * * *",
            "0 0 L * *",
            "0 0 13 * 5",
            "0 0 1 1 * 2030-2050",
            "@daily",
        ] {
            assert_eq!(says(same, "UTC"), None, "{same}");
        }
    }

    #[test]
    fn what_differs_spins_panics_or_never_fires_is() {
        for (expression, zone, expected) in [
            ("*/5 * * * * *", "UTC", "under the seed; under Fleetcron it fires 2027-01-15T08:00:05Z"),
            ("0 0 */10 * MON", "UTC", "fires 2027-01-18T00:00:00Z"),
            ("0 0 1 03 *", "UTC", "without pause from 2027-12-01T00:00:00Z on, for some time"),
            ("0 0 * * 0-7", "UTC", "under the seed"),
            (
                "0 0 * * 5-7",
                "UTC",
                "without pause from 2027-01-15T08:00:00Z on; under Fleetcron it fires 2027-01-16",
            ),
            (
                "0 0 30 2 *",
                "UTC",
                "without pause from 2027-01-15T08:00:00Z on; Fleetcron does not run it: day of month",
            ),
            ("0 0 1 1 * 2028", "UTC", "without pause from 2028-01-01T00:00:00Z on"),
            ("0 22-2 * * *", "UTC", "(panic); under Fleetcron it fires 2027-01-15T22:00:00Z"),
            (
                "@midnight",
                "UTC",
                "passed over by the seed (missing field(s)); under Fleetcron it fires 2027-01-16T00:00:00Z",
            ),
            (
                "nonsense",
                "UTC",
                "passed over by the seed (missing field(s)); Fleetcron does not run it: \"nonsense\"",
            ),
            ("0 9 * * *", "Asia/Shanghai", "fires 2027-01-16T01:00:00Z"),
            ("30 2 * * *", "America/New_York", "for some time: the next time that it finds is not later"),
        ] {
            let said = says(expression, zone).unwrap_or_else(|| panic!("{expression} is not mentioned"));
            assert!(said.contains(expected), "{expression}: {said}");
        }
    }

    #[tokio::test]
    async fn a_store_is_read_page_by_page_with_the_fleets_settings() {
        let kv = EmbeddedKv::in_memory().unwrap();
        for first in (0..2_100).step_by(100) {
            let job = |n: i32| {
                let name = JobName::parse(&format!("job{n:04}")).unwrap();
                let cron = if n == 1_234 { "0 22-2 * * *" } else { "*/5 * * * * *" };
                Op::put(
                    keys::job(&name),
                    serde_json::json!({ "command": "true", "cronExpr": cron }).to_string(),
                )
            };
            let then = (first..first + 100).map(job).collect();
            kv.txn(Txn { then, ..Txn::default() }).await.unwrap();
        }
        let put = |op| kv.txn(Txn { then: vec![op], ..Txn::default() });
        put(Op::put(keys::job(&JobName::parse("bad").unwrap()), "no JSON")).await.unwrap();
        let seed = FleetSettings::from_submitted(&serde_json::json!({ "dialect": "seed" })).unwrap();
        put(Op::put(keys::SETTINGS, seed.encode())).await.unwrap();
        let text = run(&kv, &Zone::utc(), NOW).await.unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[0].starts_with("\"bad\": Fleetcron does not run it: the value is not JSON"), "{text}");
        assert!(lines[1].starts_with("\"job1234\": \"0 22-2 * * *\" ends every seed worker"), "{text}");
        assert!(lines[2].starts_with("2101 jobs, 2 to look at"), "{text}");
    }
}
