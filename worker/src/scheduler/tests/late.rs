//! Fires that start late, are caught up on or let go; jitter; labels.

use super::*;
use SkipReason::{Misfire, NoWorker, Overlap};

const MINUTELY: &str = "0 * * * * *";
const EVERY_10_S: &str = "*/10 * * * * *";

/// As (from, to, count, reason).
type Skips = Vec<(i64, i64, u64, SkipReason)>;

impl World {
    /// The skips as their records stand in the end.
    fn final_skips(&self) -> Skips {
        let by_id: BTreeMap<i64, _> = self.skips().into_iter().map(|skip| (skip.0, skip)).collect();
        by_id.into_values().collect()
    }

    /// Lets time pass in which each run ends by itself, after so long.
    fn live_to(&mut self, ms: i64, run_ms: i64) {
        for _ in 0..STEPS_MAX {
            let ends = |run: &Run| Some((run.started_at?.ms() - START_MS + run_ms, run.open.clone()));
            let going = self.scheduler.runs.values().filter(|run| run.stage == Stage::Running);
            let next = going.filter_map(ends).min_by_key(|(ends, _)| *ends);
            let wakes = self.scheduler.wake_at().map_or(i64::MAX, |at| at.ms() - START_MS);
            match next {
                Some((ends, open)) if ends < wakes.min(ms) => {
                    self.now = self.now.max(ends);
                    self.end(&open, Status::Succeeded);
                }
                _ if wakes > ms => return self.run_to(ms),
                _ => {
                    self.now = self.now.max(wakes);
                    self.feed(Event::Woke);
                }
            }
        }
        panic!("lives for ever before {ms}");
    }

    /// The machine sleeps until then: the session is gone, and there is another.
    fn sleep_to(&mut self, ms: i64) {
        self.now = ms;
        self.feed(Event::SessionLost);
        self.gain(2);
    }

    /// The labels of this worker and of others.
    fn labelled(&mut self, workers: &[(&str, &[(&str, &str)])]) {
        let labels =
            |pairs: &[(&str, &str)]| pairs.iter().map(|(l, v)| ((*l).to_owned(), (*v).to_owned())).collect();
        let ours = workers.iter().map(|(id, pairs)| ((*id).to_owned(), labels(pairs))).collect();
        self.feed(Event::MembersChanged(Members { ours, ..Members::default() }));
    }
}

/// A job that was saved and missed since: it slept from the start to `now`.
fn slept(cron: &str, options: &str, now: i64) -> World {
    let mut world = World::new();
    world.saved_with("a", cron, options);
    world.sleep_to(now);
    world
}

#[test]
fn after_eight_hours_of_sleep_each_policy_does_what_it_says() {
    let eight_hours = 8 * 3_600_000;
    let (hour, minute) = (3_600_000, 60_000);
    for (cron, options, starts, skips) in [
        ("0 0 * * * *", r#"{"misfire":"skip"}"#, vec![], vec![(hour, 8 * hour, 8, Misfire)]),
        ("0 0 * * * *", "{}", vec![8 * hour], vec![(hour, 7 * hour, 7, Misfire)]),
        (
            "0 0 * * * *",
            r#"{"misfire":"all","startDeadlineSeconds":7300}"#,
            vec![6 * hour, 7 * hour, 8 * hour],
            vec![(hour, 5 * hour, 5, Misfire)],
        ),
        ("0 30 8 * * *", "{}", vec![], vec![(hour / 2, hour / 2, 1, Misfire)]),
        (MINUTELY, "{}", vec![8 * hour], vec![(minute, 8 * hour - minute, 479, Misfire)]),
    ] {
        let mut world = slept(cron, options, eight_hours + 40_000);
        world.live_to(eight_hours + 50_000, 100);
        assert_eq!((world.start_times(), world.final_skips()), (starts, skips), "{cron} {options}");
    }
}

#[test]
fn a_fire_of_the_last_seconds_stands_for_those_missed_before_it() {
    let mut world = slept(MINUTELY, "{}", 302_000);
    world.live_to(310_000, 100);
    assert_eq!(
        (world.start_times(), world.final_skips()),
        (vec![300_000], vec![(60_000, 240_000, 4, Misfire)])
    );
}

#[test]
fn what_a_dead_owner_left_is_caught_up_on_by_the_next() {
    let mut world = World::new();
    world.fleet(&["x", "y", "z"]);
    world.saved("a", "*/30 * * * * *");
    world.run_to(42_000);
    assert_eq!(world.claims(), []);
    world.fleet(&["me"]);
    world.live_to(60_000, 100);
    assert_eq!((world.start_times(), world.skips()), (vec![30_000, 60_000], vec![]));
}

#[test]
fn a_claim_that_the_store_answers_after_half_a_minute_still_starts_within_the_jobs_deadline() {
    for (options, starts, skips) in [
        ("{}", vec![30_000], vec![]),
        (r#"{"startDeadlineSeconds":20}"#, vec![], vec![(30_000, 30_000, 1, Misfire)]),
        (r#"{"misfire":"skip"}"#, vec![30_000], vec![]),
    ] {
        let mut world = World::new();
        world.saved_with("a", "*/30 * * * * *", options);
        world.claims_win = false;
        world.run_to(30_000);
        let claim = world.last_claim();
        for _ in 0..30 {
            world.feed(answer(&claim, ClaimAnswer::Unknown));
            world.run_to(world.now + 1000);
        }
        // The store is back, and takes the identical request.
        world.run_to(59_000);
        let revision = world.put_mark(&name("a"), claim.mark.clone());
        world.feed(answer(&claim, ClaimAnswer::Won(revision)));
        assert_eq!((world.start_times(), world.final_skips()), (starts, skips), "{options}");
    }
}

#[test]
fn a_deadline_of_nothing_means_in_time_or_not_at_all() {
    let mut world = World::new();
    world.saved_with("a", EVERY_10_S, r#"{"misfire":"all","startDeadlineSeconds":0}"#);
    world.live_to(10_500, 100);
    assert_eq!(world.start_times(), [10_000]);
    // A timer that is late starts it; a worker that hangs does not.
    world.run_to(19_990);
    world.now = 20_400;
    world.feed(Event::Woke);
    assert_eq!(world.start_times(), [10_000, 20_000]);
    let open = world.starts().pop().unwrap();
    world.end(&open, Status::Succeeded);
    world.now = 30_501;
    world.feed(Event::Woke);
    assert_eq!(
        (world.start_times(), world.final_skips()),
        (vec![10_000, 20_000], vec![(30_000, 30_000, 1, Misfire)])
    );
}

#[test]
fn more_than_a_thousand_missed_fires_are_said_to_be_more() {
    let mut world = slept("* * * * * *", r#"{"misfire":"skip"}"#, 5_000_000);
    world.live_to(5_000_000, 100);
    let (record, _) = world.records().into_iter().find(|(record, _)| record.skipped.is_some()).unwrap();
    let skipped = record.skipped.unwrap();
    assert_eq!((skipped.count, skipped.more, skipped.to), (1000, true, at(4_994_000)));
    assert!(record.err.contains("more than 1000 fires"), "{}", record.err);
}

// --- all -----------------------------------------------------------------------------------------------------------------

#[test]
fn all_missed_fires_run_in_order_and_live_ones_wait_behind_them_without_being_overlaps() {
    let mut world = slept(EVERY_10_S, r#"{"misfire":"all"}"#, 58_000);
    // Five missed, each taking 4 s; meanwhile others come.
    world.live_to(100_500, 4_000);
    assert_eq!(world.start_times(), (1..=10).map(|n| n * 10_000).collect::<Vec<_>>());
    assert_eq!(world.skips(), []);
    // Caught up: what comes during a run in time is an overlap again.
    let open = world.starts().pop().unwrap();
    world.run_to(111_000);
    world.end(&open, Status::Succeeded);
    assert_eq!(world.final_skips(), [(110_000, 110_000, 1, Overlap)]);
}

#[test]
fn a_backlog_that_grows_is_bounded_by_the_deadline() {
    let mut world = slept(EVERY_10_S, r#"{"misfire":"all","startDeadlineSeconds":30}"#, 58_000);
    // Each takes longer than the time to the next.
    world.live_to(300_000, 15_000);
    for open in world.starts() {
        let late = world.actions.iter().find_map(|action| match action {
            Action::Start { open: started, due, .. } if started.run_id == open.run_id => Some(*due),
            _ => None,
        });
        assert_eq!(late, Some(open.plan_time));
    }
    assert!(world.starts().len() >= 15, "it goes on: {:?}", world.start_times());
    let skipped: u64 = world.final_skips().iter().map(|skip| skip.2).sum();
    assert!(world.final_skips().iter().all(|skip| skip.3 == Misfire));
    let decided = world.starts().len() as u64 + skipped;
    assert!((27..=30).contains(&decided), "{decided} of 30 fires are decided, the last within the deadline");
}

#[test]
fn who_looks_on_while_all_is_caught_up_does_not_take_waiting_fires_for_overlaps() {
    let mut world = second_of_two();
    world.saved_with("a", EVERY_10_S, r#"{"misfire":"all"}"#);
    world.claims_win = false;
    world.run_to(13_000);
    let refuse = |world: &mut World| {
        let claim = world.last_claim();
        assert_eq!((claim.kind.clone(), claim.open.plan_time), (ClaimKind::Run, at(10_000)));
        let refused = world.refusal(&claim, |refusal| refusal.lock = LockSeen::Held);
        world.feed(refused);
        claim
    };
    refuse(&mut world);
    world.run_to(15_999);
    assert_eq!(world.claims().len(), 1, "asked for again as late as the first time");
    // One whose sending may still commit is sent again as it is.
    world.run_to(16_000);
    let claim = world.last_claim();
    world.feed(answer(&claim, ClaimAnswer::Unknown));
    world.run_to(16_500);
    assert_eq!(refuse(&mut world), claim);
    world.run_to(20_000);
    assert_eq!(refuse(&mut world), claim);
    // Beyond the deadline it is let go.
    world.run_to(71_000);
    refuse(&mut world);
    let skip = world.last_claim();
    assert_eq!(skip.open.skipped.map(|skipped| skipped.reason), Some(Misfire));
}

#[test]
fn a_job_deleted_while_it_catches_up_leaves_nothing_behind() {
    let mut world = slept(EVERY_10_S, r#"{"misfire":"all"}"#, 58_000);
    assert_eq!(world.start_times(), [10_000]);
    world.delete("a");
    world.live_to(120_000, 1_000);
    let open = world.starts().pop().unwrap();
    world.end(&open, Status::Succeeded);
    assert_eq!(world.start_times(), [10_000]);
    assert!(
        world.scheduler.is_idle() && world.scheduler.jobs.is_empty() && world.scheduler.behind.is_empty()
    );
}

// --- pace ----------------------------------------------------------------------------------------------------------------

/// Jobs that were all missed 30 s ago, and one that fires every second.
fn many_missed() -> World {
    let mut world = World::with_room(1000);
    for n in 0..100 {
        world.saved(&format!("missed{n}"), MINUTELY);
    }
    world.sleep_to(90_000);
    world
}

#[test]
fn many_missed_fires_are_caught_up_on_at_a_pace_that_live_ones_do_not_feel() {
    let mut world = many_missed();
    world.saved("live", "* * * * * *");
    assert_eq!(world.starts().len(), 20);
    world.run_to(90_099);
    assert_eq!(world.starts().len(), 20);
    world.run_to(90_100);
    assert_eq!(world.starts().len(), 40);
    world.run_to(91_000);
    assert_eq!(world.starts().len(), 101);
    let live = world
        .actions
        .iter()
        .position(|action| matches!(action, Action::Start { open, .. } if open.job == name("live")));
    assert!(live.is_some());
    assert_eq!(world.skips(), []);
    assert!(world.scheduler.behind.is_empty());
}

#[test]
fn what_waits_for_the_pace_and_is_deleted_or_loses_its_session_waits_no_more() {
    let mut world = many_missed();
    for n in 0..100 {
        world.delete(&format!("missed{n}"));
    }
    assert!(world.scheduler.behind.is_empty());
    world.run_to(100_000);
    assert_eq!(world.starts().len(), 20);

    let mut world = many_missed();
    world.feed(Event::SessionLost);
    assert!(world.scheduler.behind.is_empty() && world.scheduler.wake_at().is_none());
}

#[test]
fn a_missed_fire_that_finds_no_room_within_its_deadline_is_let_go() {
    let mut world = World::with_room(1);
    world.saved_with("a", "0 0 * * * *", r#"{"startDeadlineSeconds":120}"#);
    world.saved_with("b", "0 0 * * * *", r#"{"startDeadlineSeconds":120}"#);
    world.sleep_to(3_630_000);
    assert_eq!(world.starts().len(), 1);
    world.run_to(3_720_000);
    assert_eq!((world.starts().len(), world.final_skips()), (1, vec![]));
    world.run_to(3_720_001);
    assert_eq!(world.final_skips(), [(3_600_000, 3_600_000, 1, Misfire)]);
}

// --- jitter (P14) --------------------------------------------------------------------------------------------------------

const JITTER: &str = r#"{"jitterSeconds":30}"#;

/// Of the job `a` with [`JITTER`]: in this version and every other.
fn jitter_of_a() -> i64 {
    let job = Job::from_stored("a", JITTER.as_bytes()).unwrap();
    let jitter = job.options.jitter_ms(&job.name);
    assert!((5_000..25_000).contains(&jitter), "{jitter} serves these tests");
    jitter
}

#[test]
fn every_fire_starts_by_the_same_time_later_and_keeps_its_plan_time() {
    let jitter = jitter_of_a();
    let mut world = World::new();
    world.saved_with("a", MINUTELY, JITTER);
    for minute in 1..=3 {
        let starts_at = minute * 60_000 + jitter;
        world.run_to(starts_at - LEAD_MIN_MS - 1);
        assert_eq!(world.claims().len() as i64, minute - 1);
        world.run_to(starts_at - 1);
        assert_eq!((world.claims().len() as i64, world.starts().len() as i64), (minute, minute - 1));
        world.run_to(starts_at);
        let open = world.starts().pop().unwrap();
        assert_eq!((open.plan_time, open.schedule_time), (at(minute * 60_000), at(starts_at - LEAD_MIN_MS)));
        world.now += 100;
        world.end(&open, Status::Succeeded);
    }
    assert_eq!((world.start_times(), world.skips()), (vec![60_000, 120_000, 180_000], vec![]));
}

#[test]
fn the_second_worker_looks_as_much_later_as_the_owner_starts() {
    let mut world = second_of_two();
    world.saved_with("a", MINUTELY, JITTER);
    world.run_to(60_000 + jitter_of_a() + LOOK_AFTER_MS[0] - 1);
    assert_eq!(world.claims(), []);
    world.run_to(60_000 + jitter_of_a() + LOOK_AFTER_MS[0]);
    assert_eq!(world.start_times(), [60_000]);
}

#[test]
fn lateness_is_counted_from_the_start_that_jitter_gives() {
    let jitter = jitter_of_a();
    for (woken, options, starts, skips) in [
        (60_000 + jitter + 5_000, r#"{"jitterSeconds":30,"misfire":"skip"}"#, vec![60_000], vec![]),
        (
            60_000 + jitter + 5_001,
            r#"{"jitterSeconds":30,"misfire":"skip"}"#,
            vec![],
            vec![(60_000, 60_000, 1, Misfire)],
        ),
        (60_000 + jitter + 20_000, r#"{"jitterSeconds":30,"startDeadlineSeconds":20}"#, vec![60_000], vec![]),
        (
            60_000 + jitter + 20_001,
            r#"{"jitterSeconds":30,"startDeadlineSeconds":20}"#,
            vec![],
            vec![(60_000, 60_000, 1, Misfire)],
        ),
    ] {
        let mut world = slept(MINUTELY, options, woken);
        world.live_to(woken, 100);
        assert_eq!((world.start_times(), world.final_skips()), (starts, skips), "{woken} {options}");
    }
}

#[test]
fn overlap_is_decided_when_the_fire_would_start() {
    let jitter = jitter_of_a();
    let mut world = World::new();
    world.saved_with("a", MINUTELY, JITTER);
    world.run_to(60_000 + jitter);
    let open = world.starts().pop().unwrap();
    // It goes at the next fire's time, and is over when that should start.
    world.run_to(120_000 + jitter - 10);
    world.end(&open, Status::Succeeded);
    world.run_to(120_000 + jitter);
    assert_eq!((world.start_times(), world.skips()), (vec![60_000, 120_000], vec![]));
    world.run_to(180_000 + jitter);
    assert_eq!(world.final_skips(), [(180_000, 180_000, 1, Overlap)]);
}

#[test]
fn less_jitter_makes_no_fire_overdue_and_a_pause_takes_none_that_starts_after_it() {
    let jitter = jitter_of_a();
    let mut world = World::new();
    world.saved_with("a", MINUTELY, JITTER);
    world.run_to(61_000);
    world.saved("a", MINUTELY);
    world.run_to(119_000);
    assert_eq!((world.start_times(), world.skips()), (vec![], vec![]));
    world.run_to(120_000);
    assert_eq!(world.start_times(), [120_000]);

    let mut world = World::new();
    world.saved_with("a", MINUTELY, JITTER);
    world.feed(Event::Paused(true));
    world.run_to(61_000);
    world.feed(Event::Base(Base::default().resumed(at(61_000))));
    world.feed(Event::Paused(false));
    world.run_to(60_000 + jitter);
    assert_eq!(world.start_times(), [60_000]);
}

// --- labels --------------------------------------------------------------------------------------------------------------

const ZONE_A: &str = r#"{"selector":{"zone":"a"}}"#;

#[test]
fn a_job_runs_on_workers_with_its_labels_alone() {
    let mut world = World::new();
    world.labelled(&[("me", &[("zone", "b")]), ("other", &[("zone", "a"), ("gpu", "yes")])]);
    world.saved_with("a", EVERY_10_S, ZONE_A);
    world.run_to(10_000 + LOOK_AFTER_MS[1]);
    assert_eq!(world.claims(), [], "neither as the owner nor in place of it");
    // The other's labels, or this one's, change.
    let other = |labels: &'static [(&'static str, &'static str)]| {
        [("me", [("zone", "a")].as_slice()), ("other", labels)]
    };
    world.labelled(&other(&[("zone", "b")]));
    world.live_to(30_000, 100);
    assert_eq!(world.start_times(), [20_000, 30_000], "the fire of 20 s stands for that of 10 s");
    // And then the selector.
    world.saved_with("a", EVERY_10_S, r#"{"selector":{"zone":"b"}}"#);
    world.run_to(60_000);
    assert_eq!(world.starts().len(), 2);
}

#[test]
fn fires_that_no_worker_may_run_are_let_go_with_the_labels_that_they_want_and_it_is_said_once() {
    let mut world = World::new();
    world.saved_with("a", EVERY_10_S, r#"{"selector":{"zone":"a","gpu":"yes"},"startDeadlineSeconds":15}"#);
    let told = |world: &World| {
        let told = |action: &&Action| matches!(action, Action::Report(Report::NoWorker(..)));
        world.actions.iter().filter(told).count()
    };
    world.run_to(9_999);
    assert_eq!(told(&world), 0);
    world.run_to(10_000);
    assert_eq!(told(&world), 1);
    world.run_to(25_000);
    assert_eq!(world.skips(), []);
    world.run_to(27_001);
    assert_eq!(world.final_skips(), [(10_000, 10_000, 1, NoWorker)], "recorded two seconds later");
    let err = world.records().pop().unwrap().0.err;
    assert_eq!(err, "skipped: no worker has the labels that the job wants: gpu=yes,zone=a");
    world.run_to(60_000);
    assert_eq!((told(&world), world.starts()), (1, vec![]));
    // A worker with them comes: what is not too old runs.
    world.labelled(&[("me", &[("zone", "a"), ("gpu", "yes")])]);
    world.live_to(70_000, 100);
    assert_eq!(world.start_times(), [60_000, 70_000]);
    assert_eq!(world.final_skips(), [(10_000, 40_000, 4, NoWorker), (50_000, 50_000, 1, Misfire)]);
    // And goes.
    world.labelled(&[("me", &[])]);
    world.run_to(80_000);
    assert_eq!(told(&world), 2);
}

#[test]
fn who_steps_in_for_the_owner_lets_go_later_what_no_worker_may_run() {
    let mut world = second_of_two();
    world.saved_with("a", EVERY_10_S, r#"{"selector":{"zone":"a"},"misfire":"skip"}"#);
    world.run_to(10_000 + LATE_START_MAX_MS + LOOK_AFTER_MS[0]);
    assert_eq!(world.claims(), []);
    world.run_to(10_001 + LATE_START_MAX_MS + LOOK_AFTER_MS[0]);
    assert_eq!(world.claims().len(), 1);
    world.run_to(12_001 + LATE_START_MAX_MS + LOOK_AFTER_MS[0]);
    assert_eq!(world.final_skips(), [(10_000, 10_000, 1, NoWorker)], "recorded two seconds later");
}

#[test]
fn a_job_with_an_option_that_is_not_understood_is_left_to_others_until_it_is_saved_anew() {
    let mut world = World::new();
    for options in [r#"{"misfire":"latest"}"#, r#"{"retry":{}}"#] {
        world.saved_with("a", EVERY_10_S, options);
        world.run_to(world.now + 30_000);
        assert_eq!(world.claims(), [], "{options}");
    }
    let said = |action: &Action| matches!(action, Action::Report(Report::BadJob(_, why)) if why.contains("misfire (is none of"));
    assert!(world.actions.iter().any(said));
    world.saved_with("a", MINUTELY, "{}");
    world.run_to(120_000);
    assert_eq!(world.start_times(), [120_000]);
}
