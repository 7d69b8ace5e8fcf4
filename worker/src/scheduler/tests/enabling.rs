//! Jobs that are disabled and enabled, and those that have fires in a stretch of time alone.

use super::*;

const EVERY_10_S: &str = "*/10 * * * * *";
const OFF: &str = r#"{"enabled":false}"#;

impl World {
    /// A job as other hands put it, with options.
    fn put_by_hand(&mut self, options: &str) {
        let create_revision = self.marks.get(&name("a")).map_or(0, |mark| mark.revision);
        let seen = self.seen_with("a", EVERY_10_S, "true", options);
        self.feed(Event::JobPut(JobSeen { create_revision, ..seen }));
    }
}

#[test]
fn a_disabled_job_has_no_fires_and_none_of_them_are_caught_up_on() {
    for options in [r#"{"misfire":"all","startDeadlineSeconds":600}"#, "{}"] {
        let mut world = World::new();
        world.saved_with("a", EVERY_10_S, OFF);
        world.run_to(32_000);
        assert_eq!((world.claims(), world.scheduler.oldest_due_unclaimed(at(32_000))), (vec![], None));
        world.saved_with("a", EVERY_10_S, options);
        world.run_to(40_000);
        assert_eq!((world.start_times(), world.skips()), (vec![40_000], vec![]), "{options}");
    }
}

#[test]
fn so_also_by_other_hands() {
    let mut world = World::new();
    world.saved("a", EVERY_10_S);
    world.run_to(12_000);
    assert_eq!(world.start_times(), [10_000]);
    let open = world.starts().pop().unwrap();
    world.put_by_hand(OFF);
    let is_kill = |action: &Action| matches!(action, Action::Kill(..));
    assert!(!world.actions.iter().any(is_kill), "what runs goes on");
    world.end(&open, Status::Succeeded);
    world.run_to(32_000);
    world.put_by_hand("{}");
    world.run_to(40_000);
    assert_eq!((world.start_times(), world.skips()), (vec![10_000, 40_000], vec![]));
}

#[test]
fn other_hands_that_disable_and_enable_before_a_mark_is_put_have_nothing_caught_up_on() {
    let mut world = World::new();
    world.saved("a", EVERY_10_S);
    world.run_to(1_000);
    // Nothing is adopted while the sink is full.
    world.feed(Event::SinkFull(true));
    world.put_by_hand(OFF);
    world.run_to(12_000);
    world.put_by_hand("{}");
    world.feed(Event::SinkFull(false));
    world.run_to(20_000);
    assert_eq!((world.start_times(), world.skips()), (vec![20_000], vec![]));
}

#[test]
fn a_fire_that_is_claimed_when_the_job_is_disabled_is_let_go() {
    let mut world = World::new();
    world.saved("a", EVERY_10_S);
    world.run_to(9_990);
    assert_eq!(world.claims().len(), 1);
    world.saved_with("a", EVERY_10_S, OFF);
    world.run_to(20_000);
    assert_eq!(
        (world.start_times(), world.skips()),
        (vec![], vec![(10_000, 10_000, 1, SkipReason::Disabled)])
    );
    assert!(world.actions.iter().any(|action| matches!(action, Action::Release { .. })), "its lock is freed");
}

#[test]
fn a_claim_in_doubt_is_settled_though_the_job_is_disabled() {
    let (mut world, claim) = World::claiming();
    world.feed(answer(&claim, ClaimAnswer::Unknown));
    world.saved_with("a", EVERY_10_S, OFF);
    world.take_actions();
    world.run_to(11_000);
    assert_eq!(world.last_claim(), claim, "the identical request tells");
    let refused = world.refusal(&claim, |refusal| refusal.job_revision += 1);
    world.feed(refused);
    world.run_to(30_000);
    assert_eq!((world.starts(), world.claims().len()), (vec![], 1));
    assert!(world.scheduler.is_idle());
}

#[test]
fn a_range_of_skips_ends_when_its_job_is_disabled() {
    let (mut world, _) = World::running();
    world.run_to(31_000);
    let settled = |world: &World| {
        let ends =
            |(record, settles): (Record, Option<(Sid, u64)>)| record.skipped.filter(|_| settles.is_some());
        world.records().into_iter().filter_map(ends).map(|skipped| skipped.count).collect::<Vec<_>>()
    };
    assert!(settled(&world).is_empty());
    world.saved_with("a", EVERY_10_S, OFF);
    world.run_to(32_000);
    assert_eq!(settled(&world), [2], "the fires of 20 and 30 s");
}

#[test]
fn a_job_fires_from_its_start_to_before_its_end_and_is_then_quiet() {
    let (start, end) = (at(20_000).rfc3339(), at(50_000).rfc3339());
    let mut world = World::new();
    world.saved_with("a", EVERY_10_S, &format!(r#"{{"startAt":"{start}","endAt":"{end}"}}"#));
    for second in (1..=100).map(|second| second * 1000) {
        world.run_to(second);
        if let Some(open) = world.starts().pop().filter(|open| open.plan_time == at(second)) {
            world.end(&open, Status::Succeeded);
        }
    }
    assert_eq!((world.start_times(), world.skips()), (vec![20_000, 30_000, 40_000], vec![]));
    assert_eq!(world.scheduler.oldest_due_unclaimed(at(100_000)), None);
    assert_eq!(world.scheduler.wake_at(), None);
}

#[test]
fn a_range_of_skips_ends_with_the_last_fire_of_its_job() {
    let end = at(35_000).rfc3339();
    let mut world = World::new();
    world.saved_with("a", EVERY_10_S, &format!(r#"{{"endAt":"{end}"}}"#));
    world.run_to(100_000);
    assert_eq!(world.start_times(), [10_000], "it goes on");
    let settled = world.records().into_iter().filter(|(_, settles)| settles.is_some());
    let counts: Vec<u64> = settled.filter_map(|(record, _)| Some(record.skipped?.count)).collect();
    assert_eq!(counts, [2], "20 and 30 s");
    assert_eq!(world.scheduler.oldest_due_unclaimed(at(100_000)), None);
}

#[test]
fn a_start_that_is_put_earlier_makes_no_fire_overdue() {
    let start = at(60_000).rfc3339();
    let mut world = World::new();
    world.saved_with("a", EVERY_10_S, &format!(r#"{{"startAt":"{start}"}}"#));
    world.run_to(32_000);
    world.saved("a", EVERY_10_S);
    world.run_to(40_000);
    assert_eq!((world.start_times(), world.skips()), (vec![40_000], vec![]));
}
