//! Several workers, their real transactions, simulated time and stores, and everything that can go wrong, drawn from a seed. What is promised
//! is checked after every step. `SIM_SEED=… cargo test -p worker simulation -- --nocapture` replays one run and prints it; `SIM_SEEDS=20000`
//! tries so many, from `SIM_FROM` on; `SIM_MUTANT=NoFloor` has only that one looked for, among as many.

mod broadcast;
mod dice;
mod faults;
mod guardian;
mod invariants;
mod lagging;
mod log;
mod mutants;
mod network;
mod seed_worker;
mod settings;
mod shell;
mod store;
mod store_tests;
mod succession;
mod switching;
mod world;

use std::collections::BTreeSet;
use std::num::NonZero;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use faults::Fault;
use mutants::Mutant;
use world::World;

/// A few seconds' worth.
const SEEDS: u64 = 300;
/// A mutant is noticed within so many.
const SEEDS_FOR_A_MUTANT: u64 = 2_000;

/// Seeds that have found something in what the simulation drives, each with what it was: run every time. A world that draws otherwise makes
/// other runs of them.
const FOUND: [(u64, &str); 19] = [
    (536, "a rescue whose first sending came late put the lock of a run that had ended"),
    (
        1670,
        "a store went back while a clock was a year behind, and fires of before were caught up on once it was mended",
    ),
    (2607, "a lock was kept from seed workers for as long as the clock was put back"),
    (2687, "a lock of before a restore was freed late, and was a seed worker's by then: revisions repeat"),
    (4367, "the same, and it was another run's"),
    (
        5341,
        "a worker that was frozen beyond its session, and whose clock was stepped meanwhile, started what it had claimed",
    ),
    (622, "a claim that was refused for its lock was given up under a definition that had come meanwhile"),
    (
        2252,
        "a range of skips was forgotten with its job, while a skip that was not applied waited to be sent again",
    ),
    (
        13_687,
        "a worker that was cut off while the store was put back moved a mark back whose revision it knew by chance",
    ),
    (
        3259,
        "a claim of a request that was in doubt was sent again at times at which the job's own runs held the lock, for ever",
    ),
    (
        1928,
        "a clock that was put back for a moment took with it how far the store before had come, and fires of then were let go again",
    ),
    (
        1449,
        "a fire that was left to a seed worker made the mark forget that a run without the lock was going",
    ),
    (
        6299,
        "a run without the lock came into another session when the mark had forgotten that there may be one: its job had been edited",
    ),
    (16_948, "an adoption by a clock that was behind put a base back, to before the job was enabled"),
    (
        22_708,
        "workers that drained waited for a lock that a request in doubt had found held, for as long as it was",
    ),
    (
        3773,
        "a worker that began after the store was put back, and knew nothing of that, had a run tried again that came back with the backup",
    ),
    (
        9108,
        "other hands deleted the settings, a calendar changed, and they deleted them again: a claim by the days of before compared that there \
         are none, which was so again",
    ),
    (
        10_187,
        "a worker that had not noticed yet that the store was put back read a mark of before from a member that it took for one that lags, \
         and spread a broadcast anew",
    ),
    (769, "a run that was asked for never got room, since fires always stood in line for it"),
];

/// Seeds that break a promise which is not kept yet, with the reason.
const OPEN: [(u64, &str); 0] = [];

/// How a run went.
struct Outcome {
    violations: Vec<String>,
    starts: usize,
    faults: BTreeSet<Fault>,
    trace: Vec<String>,
}

fn simulate(seed: u64, mutant: Mutant, traced: bool) -> Outcome {
    let mut world = World::new(seed, mutant, traced);
    world.run();
    Outcome {
        starts: world.checks.starts(),
        faults: world.faults().clone(),
        violations: std::mem::take(&mut world.checks.violations),
        trace: world.trace.take().unwrap_or_default(),
    }
}

/// Runs seeds on all processors, each until `stop` says that it is enough; what it has seen by then is among what is returned, in no order.
fn simulate_all(
    seeds: std::ops::RangeInclusive<u64>,
    mutant: Mutant,
    stop: impl Fn(&Outcome) -> bool + Sync,
) -> Vec<(u64, Outcome)> {
    let (next, last) = (AtomicU64::new(*seeds.start()), AtomicU64::new(*seeds.end()));
    let outcomes = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed > last.load(Ordering::Relaxed) {
                        return;
                    }
                    let outcome = simulate(seed, mutant, false);
                    if stop(&outcome) {
                        last.fetch_min(seed, Ordering::Relaxed);
                    }
                    outcomes.lock().unwrap().push((seed, outcome));
                }
            });
        }
    });
    outcomes.into_inner().unwrap()
}

fn switch(variable: &str) -> Option<String> {
    #[expect(clippy::disallowed_methods, reason = "a test's own switch")]
    std::env::var(variable).ok()
}

fn number_from(variable: &str) -> Option<u64> {
    switch(variable).map(|number| number.parse().unwrap())
}

/// The seeds to be tried, the last one being `last` unless somebody asks for others.
fn seeds(last: u64) -> std::ops::RangeInclusive<u64> {
    number_from("SIM_FROM").unwrap_or(1)..=number_from("SIM_SEEDS").unwrap_or(last)
}

#[test]
fn a_fleet_in_trouble_keeps_its_promises() {
    if let Some(seed) = number_from("SIM_SEED") {
        let outcome = simulate(seed, Mutant::None, true);
        println!("{}", outcome.trace.join("\n"));
        assert!(outcome.violations.is_empty(), "SIM_SEED={seed}: {:#?}", outcome.violations);
        return;
    }
    let seeds = seeds(SEEDS);
    let mut outcomes = simulate_all(seeds, Mutant::None, |_| false);
    outcomes.sort_unstable_by_key(|(seed, _)| *seed);
    let is_open = |seed: u64| OPEN.iter().any(|(open, _)| *open == seed);
    let broken: Vec<String> = outcomes
        .iter()
        .filter(|(seed, outcome)| !outcome.violations.is_empty() && !is_open(*seed))
        .map(|(seed, outcome)| format!("SIM_SEED={seed}: {:?}", outcome.violations))
        .collect();
    assert!(broken.is_empty(), "{broken:#?}");
    let starts: usize = outcomes.iter().map(|(_, outcome)| outcome.starts).sum();
    println!("{} seeds, {starts} fires started", outcomes.len());
    // A world in which little happens proves little.
    assert!(starts > 30 * outcomes.len(), "only {starts} fires were started in {} runs", outcomes.len());
    let faults: BTreeSet<Fault> = outcomes.iter().flat_map(|(_, outcome)| outcome.faults.clone()).collect();
    assert!(faults.len() >= 20, "only these faults happened: {faults:?}");
}

#[test]
fn what_a_seed_has_found_stays_found() {
    for (seed, what) in FOUND {
        let violations = simulate(seed, Mutant::None, false).violations;
        assert!(violations.is_empty(), "SIM_SEED={seed} ({what}): {violations:#?}");
    }
}

/// Where there are any. Red once one of them holds: then it belongs into [`FOUND`].
#[test]
fn what_is_open_is_known() {
    for (seed, why) in OPEN {
        let violations = simulate(seed, Mutant::None, false).violations;
        assert!(!violations.is_empty(), "SIM_SEED={seed} holds now: {why}");
    }
}

#[test]
fn the_simulation_notices_what_is_broken() {
    let only = switch("SIM_MUTANT");
    let is_wanted = |mutant: Mutant| only.as_ref().is_none_or(|only| *only == format!("{mutant:?}"));
    for (mutant, words) in Mutant::ALL.into_iter().filter(|(mutant, _)| is_wanted(*mutant)) {
        let noticed = |outcome: &Outcome| {
            outcome.violations.iter().any(|violation| words.iter().any(|word| violation.contains(word)))
        };
        let tried = if only.is_some() { seeds(SEEDS_FOR_A_MUTANT) } else { 1..=SEEDS_FOR_A_MUTANT };
        let outcomes = simulate_all(tried, mutant, noticed);
        let by = outcomes.iter().filter(|(_, outcome)| noticed(outcome)).min_by_key(|(seed, _)| *seed);
        let others: Vec<&String> =
            outcomes.iter().flat_map(|(_, outcome)| &outcome.violations).take(5).collect();
        let (seed, outcome) = by.unwrap_or_else(|| panic!("{mutant:?} goes unnoticed; but: {others:#?}"));
        println!("{mutant:?}: seed {seed}: {}", outcome.violations[0]);
    }
}

#[test]
fn a_seed_run_twice_is_one_trace() {
    for seed in 1..=5 {
        let (once, twice) = (simulate(seed, Mutant::None, true), simulate(seed, Mutant::None, true));
        assert!(once.trace.len() > 500, "a trace of {} lines", once.trace.len());
        assert_eq!(once.trace, twice.trace);
    }
}
