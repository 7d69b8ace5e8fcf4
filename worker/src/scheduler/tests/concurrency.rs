//! `concurrency`: runs beside each other, runs that take the place of the one before, and who asked for a kill.

use super::*;

const ALLOW: &str = r#"{"concurrency":"allow"}"#;
const REPLACE: &str = r#"{"concurrency":"replace"}"#;
const FORBID: &str = r#"{"concurrency":"forbid"}"#;
const EVERY_TEN_SECONDS: &str = "*/10 * * * * *";

/// A job that runs every ten seconds, with these options, since 10 s.
fn running(options: &str) -> (World, OpenRun) {
    let mut world = World::new();
    world.saved_with("a", EVERY_TEN_SECONDS, options);
    world.run_to(10_000);
    let open = world.starts().pop().expect("it started");
    (world, open)
}

/// The job is edited, its times stay.
fn edit(world: &mut World, options: &str) {
    let seen = world.seen_with("a", EVERY_TEN_SECONDS, "true", options);
    world.feed(Event::JobPut(seen));
}

fn holder(run_id: &str, unlocked: bool) -> Holder {
    Holder { run_id: RunId::from_text(run_id), unlocked, revision: 50 }
}

fn held(world: &World, claim: &Claim, holders: &[Holder]) -> Event {
    world.refusal(claim, |refusal| {
        (refusal.lock, refusal.holders) = (LockSeen::Held, holders.to_vec());
    })
}

/// Whom workers elsewhere were asked to kill, each time, and what the record will say.
fn asked(world: &World) -> Vec<(Vec<String>, String)> {
    let asked = |action: &Action| match action {
        Action::Replace { holders, killed, .. } => {
            let run_ids = holders.iter().map(|held| held.run_id.to_string()).collect();
            Some((run_ids, killed.by.clone()))
        }
        _ => None,
    };
    world.actions.iter().filter_map(asked).collect()
}

/// A run ends by a signal, as one does that is killed.
fn end_by_signal(world: &mut World, open: &OpenRun) {
    let ending = Ending {
        signal: Some(9),
        exit_code: None,
        err: "signal: killed".to_owned(),
        ..ending(world.now, Status::Killed)
    };
    world.feed(Event::RunEnded(open.run_id.clone(), ending));
}

// --- allow ---------------------------------------------------------------------------------------------------------------

#[test]
fn runs_that_may_overlap_start_beside_each_other_and_take_no_lock() {
    let (mut world, first) = running(ALLOW);
    world.run_to(30_000);
    assert_eq!(world.start_times(), [10_000, 20_000, 30_000]);
    assert!(
        world.claims().iter().all(|claim| claim.open.unlocked && claim.mark.unlocked && !claim.exclusive)
    );
    world.take_actions();
    world.end(&first, Status::Succeeded);
    let frees_its_own = |action: &Action| matches!(action, Action::Release { run_id, unlocked: true, .. } if *run_id == first.run_id);
    assert!(world.actions.iter().any(frees_its_own));
    world.run_to(40_000);
    assert_eq!((world.start_times(), world.skips()), (vec![40_000], vec![]));
}

#[test]
fn missed_fires_that_may_overlap_do_not_wait_for_each_other() {
    let mut world = World::new();
    world.saved_with(
        "a",
        EVERY_TEN_SECONDS,
        r#"{"concurrency":"allow","misfire":"all","startDeadlineSeconds":60}"#,
    );
    world.feed(Event::Paused(true));
    world.run_to(45_000);
    world.feed(Event::Paused(false));
    world.run_to(46_000);
    assert_eq!(world.start_times(), [10_000, 20_000, 30_000, 40_000]);
}

#[test]
fn whoever_takes_the_lock_after_runs_without_it_compares_that_there_are_none() {
    let (mut world, open) = running(ALLOW);
    edit(&mut world, FORBID);
    world.claims_win = false;
    world.run_to(20_000 - LEAD_MIN_MS);
    let claim = world.last_claim();
    assert!(claim.exclusive && !claim.open.unlocked && !claim.mark.unlocked);
    // The run without the lock still goes at T: an overlap, and the mark does not forget it.
    world.run_to(20_000);
    let refused = held(&world, &claim, &[holder(open.run_id.as_str(), true)]);
    world.claims_win = true;
    world.feed(refused);
    assert_eq!(world.skips(), [(20_000, 20_000, 1, SkipReason::Overlap)]);
    assert!(world.last_claim().mark.unlocked);
    assert!(!world.has(&Action::Kill(open.run_id.clone(), Kill::Gracefully)));
    world.end(&open, Status::Succeeded);
    world.run_to(30_000);
    assert_eq!(world.start_times(), [10_000, 30_000]);
    let claim = world.last_claim();
    assert!(claim.exclusive && !claim.mark.unlocked);
    world.run_to(30_500);
    let last = world.starts().pop().unwrap();
    world.end(&last, Status::Succeeded);
    world.run_to(40_000);
    assert!(!world.last_claim().exclusive, "known to be none");
}

#[test]
fn a_run_with_the_lock_keeps_it_when_others_may_go_beside_it() {
    let (mut world, first) = running(FORBID);
    edit(&mut world, ALLOW);
    world.run_to(20_000);
    assert_eq!(world.start_times(), [10_000, 20_000]);
    let second = world.starts().pop().unwrap();
    world.end(&second, Status::Succeeded);
    edit(&mut world, FORBID);
    world.run_to(30_000);
    assert_eq!(world.skips(), [(30_000, 30_000, 1, SkipReason::Overlap)], "the first still goes");
    world.end(&first, Status::Succeeded);
    let freed = |action: &Action| match action {
        Action::Release { run_id, unlocked, .. } => Some((run_id.clone(), *unlocked)),
        _ => None,
    };
    let freed: Vec<_> = world.actions.iter().filter_map(freed).collect();
    assert_eq!(freed, [(second.run_id, true), (first.run_id, false)]);
}

#[test]
fn what_was_claimed_without_the_lock_does_not_start_once_runs_may_not_overlap() {
    let mut world = World::new();
    world.saved_with("a", EVERY_TEN_SECONDS, ALLOW);
    world.run_to(9_990);
    edit(&mut world, FORBID);
    world.run_to(10_000);
    assert_eq!((world.start_times(), world.claims().len()), (vec![], 1));
    assert_eq!(world.skips(), [(10_000, 10_000, 1, SkipReason::Superseded)]);
}

#[test]
fn beside_a_seed_worker_every_run_takes_the_lock() {
    let mut world = World::new();
    world.saved_with("a", EVERY_TEN_SECONDS, ALLOW);
    let ours = [("me".to_owned(), Labels::new())].into();
    world.feed(Event::MembersChanged(Members {
        ours,
        seeds: ["seed".to_owned()].into(),
        ..Members::default()
    }));
    world.run_to(20_000);
    assert!(world.claims().iter().all(|claim| !claim.open.unlocked && !claim.mark.unlocked));
    assert_eq!(
        (world.start_times(), world.skips()),
        (vec![10_000], vec![(20_000, 20_000, 1, SkipReason::Overlap)])
    );
}

#[test]
fn a_run_without_the_lock_goes_on_when_it_was_closed_as_lost_unless_runs_may_not_overlap_any_more() {
    for (now_is, killed) in [(ALLOW, false), (FORBID, true), (REPLACE, true)] {
        let (mut world, open) = running(ALLOW);
        edit(&mut world, now_is);
        world.feed(Event::SessionLost);
        world.gain(2);
        let seq = world.actions.iter().find_map(|action| match action {
            Action::Move { open: moved, to: (Sid(2), seq), .. } if moved.unlocked => Some(*seq),
            _ => None,
        });
        let refused = MoveAnswer::Refused;
        world.feed(Event::MoveAnswered(open.run_id.clone(), Sid(2), seq.expect("a move"), refused));
        assert_eq!(world.has(&Action::Kill(open.run_id.clone(), Kill::AtOnce)), killed, "{now_is}");
        world.take_actions();
        world.end(&open, Status::Succeeded);
        let (record, settles) = world.records().remove(0);
        assert_eq!((record.status, settles), (Some(Status::Succeeded), Some((Sid(1), 1))));
    }
}

// --- replace -------------------------------------------------------------------------------------------------------------

#[test]
fn a_fire_kills_the_run_before_and_starts_when_it_is_over() {
    let (mut world, first) = running(REPLACE);
    world.run_to(19_999);
    assert!(!world.has(&Action::Kill(first.run_id.clone(), Kill::Gracefully)), "not before its time");
    world.run_to(20_000);
    assert!(world.has(&Action::Kill(first.run_id.clone(), Kill::Gracefully)));
    assert_eq!(world.claims().len(), 1, "the lock is held");
    world.run_to(21_500);
    end_by_signal(&mut world, &first);
    assert_eq!(world.start_times(), [10_000, 20_000]);
    let (record, _) = world.records().remove(0);
    assert_eq!((record.status, record.killed_at), (Some(Status::Killed), Some(at(20_000))));
    assert_eq!(record.killed_by, Some(format!("replaced by the run of {}", at(20_000))));
}

#[test]
fn a_fire_that_finds_no_run_is_claimed_ahead() {
    let mut world = World::new();
    world.saved_with("a", EVERY_TEN_SECONDS, REPLACE);
    world.run_to(10_000 - LEAD_MIN_MS);
    assert_eq!(world.claims().len(), 1);
}

#[test]
fn of_fires_that_come_while_the_run_before_is_dying_the_newest_starts() {
    let (mut world, first) = running(REPLACE);
    world.run_to(32_000);
    assert_eq!(world.skips(), [(20_000, 20_000, 1, SkipReason::Replaced)]);
    world.run_to(42_000);
    world.take_actions();
    end_by_signal(&mut world, &first);
    assert_eq!(world.start_times(), [40_000]);
    assert_eq!(world.skips(), [(20_000, 30_000, 2, SkipReason::Replaced)]);
}

#[test]
fn a_fire_waits_for_the_run_before_no_longer_than_its_policy_lets_it() {
    let (mut world, first) = running(r#"{"concurrency":"replace","misfire":"skip"}"#);
    world.run_to(25_001);
    assert_eq!(world.skips(), [(20_000, 20_000, 1, SkipReason::Misfire)]);
    end_by_signal(&mut world, &first);
    assert_eq!(world.start_times(), [10_000]);
    world.run_to(30_000);
    assert_eq!(world.start_times(), [10_000, 30_000]);
}

#[test]
fn missed_fires_of_which_each_would_replace_the_other_are_one() {
    let mut world = World::new();
    world.saved_with(
        "a",
        EVERY_TEN_SECONDS,
        r#"{"concurrency":"replace","misfire":"all","startDeadlineSeconds":60}"#,
    );
    world.feed(Event::Paused(true));
    world.run_to(48_000);
    world.feed(Event::Paused(false));
    world.run_to(49_000);
    assert_eq!(world.start_times(), [40_000]);
}

/// A fire of `replace` whose claim is refused at its time, since a run elsewhere holds the lock.
fn refused_at_its_time() -> (World, Claim) {
    let mut world = World::new();
    world.saved_with("a", EVERY_TEN_SECONDS, REPLACE);
    world.claims_win = false;
    world.run_to(10_000);
    let claim = world.last_claim();
    let refused = held(&world, &claim, &[holder("2-1", false)]);
    world.feed(refused);
    (world, claim)
}

#[test]
fn a_run_elsewhere_is_asked_to_end_by_its_id_and_the_fire_is_claimed_again() {
    let (mut world, claim) = refused_at_its_time();
    let by = format!("replaced by the run of {}", at(10_000));
    assert_eq!(asked(&world), [(vec!["2-1".to_owned()], by)]);
    world.claims_win = true;
    world.run_to(10_200);
    assert_eq!(world.start_times(), [10_000]);
    assert_ne!(world.last_claim().open.run_id, claim.open.run_id, "nothing was claimed before");
}

#[test]
fn a_run_elsewhere_is_not_asked_at_each_refusal() {
    let (mut world, _) = refused_at_its_time();
    for (now, holder_is, asked_times) in
        [(10_200, "2-1", 1), (10_400, "2-1", 1), (10_600, "3-1", 2), (12_700, "3-1", 3)]
    {
        world.run_to(now);
        let refused = held(&world, &world.last_claim(), &[holder(holder_is, false)]);
        world.feed(refused);
        assert_eq!(asked(&world).len(), asked_times, "at {now}");
    }
}

#[test]
fn before_its_time_a_fire_kills_nobody() {
    let mut world = World::new();
    world.saved_with("a", EVERY_TEN_SECONDS, REPLACE);
    world.claims_win = false;
    world.run_to(10_000 - LEAD_MIN_MS);
    let refused = held(&world, &world.last_claim(), &[holder("2-1", false)]);
    world.feed(refused);
    world.run_to(9_999);
    assert_eq!((asked(&world), world.claims().len()), (vec![], 1));
    world.run_to(10_000);
    assert_eq!(world.claims().len(), 2, "decided anew at its time");
}

#[test]
fn a_claim_in_doubt_goes_again_as_it_was_until_a_newer_fire_comes() {
    let mut world = World::new();
    world.saved_with("a", EVERY_TEN_SECONDS, REPLACE);
    world.claims_win = false;
    world.run_to(10_000);
    let claim = world.last_claim();
    world.feed(answer(&claim, ClaimAnswer::Unknown));
    world.run_to(10_200);
    for now in [10_400, 10_600] {
        let refused = held(&world, &claim, &[holder("2-1", false)]);
        world.feed(refused);
        world.run_to(now);
        assert_eq!(world.last_claim().open.run_id, claim.open.run_id, "at {now}");
    }
    world.run_to(20_000);
    let refused = held(&world, &claim, &[holder("2-1", false)]);
    world.feed(refused);
    let skip = world.last_claim();
    assert_eq!((skip.kind.clone(), skip.replaces), (ClaimKind::Skip, Some(claim.seq)));
    assert_eq!(skip.open.skipped.unwrap().reason, SkipReason::Replaced);
}

#[test]
fn runs_without_the_lock_are_replaced_too() {
    let (mut world, first) = running(ALLOW);
    edit(&mut world, REPLACE);
    world.claims_win = false;
    world.run_to(20_000);
    let holders = [holder(first.run_id.as_str(), true), holder("2-1", true)];
    let refused = held(&world, &world.last_claim(), &holders);
    world.feed(refused);
    assert!(world.has(&Action::Kill(first.run_id.clone(), Kill::Gracefully)), "its own");
    assert_eq!(asked(&world)[0].0, ["2-1"]);
}

// --- who asked -----------------------------------------------------------------------------------------------------------

fn kill_by(run_ids: &[&RunId], by: &str) -> Event {
    let run_ids = Some(run_ids.iter().map(|run_id| (*run_id).clone()).collect());
    let request = KillSeen { run_ids, revision: 900, by: Some(by.to_owned()), at: Some(at(1)) };
    Event::KillAsked(name("a"), request)
}

#[test]
fn a_record_says_who_asked_first_and_when() {
    let (mut world, open) = running(FORBID);
    world.feed(kill_by(&[&open.run_id], "one"));
    world.feed(kill_by(&[&open.run_id], "another"));
    end_by_signal(&mut world, &open);
    let (record, _) = world.records().remove(0);
    assert_eq!((record.status, record.killed_by.as_deref()), (Some(Status::Killed), Some("one")));
    assert_eq!(record.killed_at, Some(at(1)));
}

#[test]
fn a_run_that_was_over_before_the_kill_came_to_it_was_not_killed() {
    let (mut world, open) = running(FORBID);
    world.feed(kill_by(&[&open.run_id], "one"));
    world.end(&open, Status::Succeeded);
    let (record, _) = world.records().remove(0);
    assert_eq!((record.status, record.killed_by, record.killed_at), (Some(Status::Succeeded), None, None));
}

#[test]
fn each_of_several_runs_is_killed_by_its_id() {
    let (mut world, first) = running(ALLOW);
    world.run_to(30_000);
    let third = world.starts().pop().unwrap();
    world.feed(kill_by(&[&first.run_id, &third.run_id], "one"));
    let kills = world.actions.iter().filter(|action| matches!(action, Action::Kill(..))).count();
    assert_eq!(kills, 2);
    assert!(
        world.has(&Action::Kill(first.run_id, Kill::Gracefully))
            && world.has(&Action::Kill(third.run_id, Kill::Gracefully))
    );
}

#[test]
fn each_kill_that_overtakes_the_claims_answer_is_heard() {
    let (mut world, claim) = World::claiming();
    let revision = world.put_mark(&name("a"), claim.mark.clone());
    world.feed(kill_by(&[&claim.open.run_id], "one"));
    world.feed(kill_by(&[&RunId::from_text("another")], "two"));
    world.feed(answer(&claim, ClaimAnswer::Won(revision)));
    assert_eq!(world.start_times(), NONE);
    let (record, _) = world.records().remove(0);
    assert_eq!((record.status, record.killed_by.as_deref()), (Some(Status::Killed), Some("one")));
}
