//! Jobs that run on every worker.

use common::domain::execution::Environment;
use common::domain::request::Request;
use common::domain::run::Trigger;

use super::*;

impl World {
    /// The workers that there are, each with its session: `me` has session 1.
    fn workers(&mut self, workers: &[(&str, i64)]) {
        let ours = workers.iter().map(|(id, _)| ((*id).to_owned(), Labels::new())).collect();
        let sessions = workers.iter().map(|(id, sid)| ((*id).to_owned(), Sid(*sid))).collect();
        self.feed(Event::MembersChanged(Members { ours, sessions, ..Members::default() }));
    }

    /// A job for every worker of two, with these options beside.
    fn broadcasting(options: &str) -> Self {
        let mut world = Self::new();
        world.workers(&[("me", 1), ("other", 2)]);
        let options = options.replacen('{', r#"{"mode":"broadcast","#, 1).replace(",}", "}");
        world.saved_with("a", "*/10 * * * * *", &options);
        world
    }

    /// The watch shows what a claim has put.
    fn shown(&mut self, spread: &[(RunId, Request)]) {
        for (run_id, request) in spread {
            self.revision += 1;
            let (run_id, request, revision) = (run_id.clone(), Arc::new(request.clone()), self.revision);
            self.feed(Event::RequestSeen(RequestSeen { run_id, request, revision }));
        }
    }

    /// The fire at this time is claimed, and seen.
    fn fired(&mut self, ms: i64) -> Claim {
        self.run_to(ms - 100);
        let claim = self.last_claim();
        assert_eq!((claim.kind.clone(), claim.open.plan_time), (ClaimKind::Broadcast, at(ms)));
        self.shown(&claim.spread.clone());
        claim
    }

    fn claimed_requests(&self) -> Vec<RequestClaim> {
        let claim = |action: &Action| match action {
            Action::ClaimRequest(claim) => Some((**claim).clone()),
            _ => None,
        };
        self.actions.iter().filter_map(claim).collect()
    }

    fn reasons(&self) -> Vec<SkipReason> {
        self.records().iter().filter_map(|(record, _)| Some(record.skipped.as_ref()?.reason)).collect()
    }
}

#[test]
fn a_fire_is_claimed_ahead_for_every_worker_and_begins_here_at_its_time() {
    let mut world = World::broadcasting("{}");
    let claim = world.fired(10_000);
    let ids: Vec<&str> = claim.spread.iter().map(|(run_id, _)| run_id.as_str()).collect();
    let whole = claim.open.run_id.as_str();
    assert_eq!(ids, [format!("{whole}~1"), format!("{whole}~2")]);
    assert!(claim.mark.unlocked && claim.mark.plan_time == at(10_000));
    world.run_to(9_960);
    let [own] = world.claimed_requests().try_into().unwrap();
    assert_eq!((own.open.run_id.as_str(), own.open.unlocked), (ids[0], true));
    assert_eq!(world.starts(), [], "claimed ahead");
    world.run_to(10_000);
    let [open] = world.starts().try_into().unwrap();
    assert_eq!((open.trigger, open.target.as_deref()), (Trigger::Broadcast, Some("me")));
    assert_eq!(open.record_id().as_str(), format!("a/{}/1/me", START_MS + 10_000));
    world.run_to(19_000);
    assert_eq!(world.claimed_requests().len(), 1, "what is for another is that one's");
}

#[test]
fn what_is_for_a_worker_that_has_left_is_let_go_once_that_is_known() {
    let mut world = World::broadcasting("{}");
    world.fired(10_000);
    world.workers(&[("me", 1)]);
    world.run_to(10_900);
    assert_eq!(world.reasons(), [], "it may be about to be there again");
    world.run_to(11_000);
    assert_eq!(world.reasons(), [SkipReason::WorkerGone]);
    let (record, settles) = world.records().pop().unwrap();
    assert_eq!((record.worker.as_deref(), settles.is_some()), (Some("other"), true));
    assert_eq!(record.id.as_str(), format!("a/{}/1/other", START_MS + 10_000));
}

#[test]
fn what_a_worker_does_not_take_is_let_go_when_it_is_too_late_for_it() {
    let mut world = World::broadcasting(r#"{"startDeadlineSeconds":20}"#);
    world.fired(10_000);
    world.run_to(32_990);
    assert_eq!(world.reasons(), []);
    world.run_to(33_010);
    assert_eq!(world.reasons(), [SkipReason::Misfire]);
}

#[test]
fn a_worker_that_has_another_session_does_not_take_what_was_for_the_one_before() {
    let mut world = World::broadcasting("{}");
    world.fired(10_000);
    world.feed(Event::SessionLost);
    world.gain(3);
    world.workers(&[("me", 3), ("other", 2)]);
    world.run_to(12_000);
    assert_eq!((world.starts(), world.reasons()), (vec![], vec![SkipReason::WorkerGone]));
}

#[test]
fn concurrency_is_that_of_each_worker() {
    // A run of another worker is nobody's business: it is not even known here.
    let runs_beside = |options: &str| {
        let mut world = World::broadcasting(options);
        world.fired(10_000);
        world.run_to(10_000);
        world.fired(20_000);
        world.run_to(19_990);
        assert_eq!(world.reasons(), [], "overlap is decided at its time");
        world.run_to(20_000);
        world
    };
    let world = runs_beside("{}");
    assert_eq!((world.start_times(), world.reasons()), (vec![10_000], vec![SkipReason::Overlap]));
    let world = runs_beside(r#"{"concurrency":"allow"}"#);
    assert_eq!((world.start_times(), world.reasons()), (vec![10_000, 20_000], vec![]));
    let mut world = runs_beside(r#"{"concurrency":"replace"}"#);
    let [first] = world.starts().try_into().unwrap();
    assert!(world.has(&Action::Kill(first.run_id.clone(), Kill::Gracefully)));
    world.now += 300;
    world.end(&first, Status::Killed);
    assert_eq!(world.start_times(), [10_000, 20_000]);
}

#[test]
fn an_edit_before_the_start_counts_for_each_part() {
    for (cron, options, reason) in [
        ("*/10 * * * * *", "{}", SkipReason::Superseded),
        ("*/10 * * * * *", r#"{"mode":"broadcast","enabled":false}"#, SkipReason::Disabled),
        ("*/7 * * * * *", r#"{"mode":"broadcast"}"#, SkipReason::Superseded),
    ] {
        for ms in [9_900, 9_970] {
            let mut world = World::broadcasting("{}");
            world.fired(10_000);
            world.run_to(ms);
            let seen = world.save_with("a", cron, options);
            world.feed(Event::JobPut(seen));
            world.run_to(10_000);
            assert_eq!((world.start_times(), world.reasons()), (vec![], vec![reason]), "{options} at {ms}");
        }
    }
}

#[test]
fn more_workers_than_fit_at_once_are_told_by_way_of_what_is_left() {
    let mut world = World::broadcasting("{}");
    world.workers(&[("me", 1), ("v", 2), ("w", 3), ("x", 4), ("y", 5)]);
    world.run_to(9_900);
    let claim = world.last_claim();
    let told = |spread: &[(RunId, Request)]| -> Vec<i64> {
        spread.iter().filter_map(|(_, request)| Some(request.target.as_ref()?.sid.0)).collect()
    };
    assert_eq!(told(&claim.spread), [1, 2]);
    world.take_actions();
    let mut spread = claim.spread;
    for expected in [vec![3, 4], vec![5]] {
        world.shown(&spread[spread.len() - 1..]);
        let next = world.claimed_requests().pop().unwrap();
        assert_eq!((told(&next.spread), &next.open.run_id), (expected, &claim.open.run_id));
        spread = next.spread;
    }
    assert_eq!(told(&spread).len(), spread.len(), "nothing is left");
    assert_eq!(world.records(), []);
}

#[test]
fn a_run_that_somebody_asks_for_is_one_on_every_worker_and_each_is_tried_again_where_it_was() {
    let mut world = World::broadcasting(r#"{"retry":{"attempts":2,"backoff":0}}"#);
    let run_id = RunId::from_text("ask");
    world.shown(&[(run_id.clone(), Request::manual(run_id, name("a"), Environment::default(), at(0)))]);
    let [whole] = world.claimed_requests().try_into().unwrap();
    assert_eq!(whole.spread.len(), 2);
    world.shown(&whole.spread);
    let [open] = world.starts().try_into().unwrap();
    assert_eq!((open.run_id.as_str(), open.on_lost), ("ask~1", None));
    assert_eq!(open.record_id().as_str(), format!("a/{START_MS}/ask/1/me"));
    world.now += 10;
    world.end(&open, Status::Failed);
    let next = |action: &Action| match action {
        Action::Close(close) => close.next.clone(),
        _ => None,
    };
    let [(run_id, request)] = world.actions.iter().filter_map(next).collect::<Vec<_>>().try_into().unwrap();
    assert_eq!((run_id.as_str(), request.target.as_ref().unwrap().sid), ("ask~1.2", Sid(1)));
    world.shown(&[(run_id, request)]);
    world.run_to(1_000);
    assert_eq!(world.starts().pop().unwrap().record_id().as_str(), format!("a/{START_MS}/ask/2/me"));
}

#[test]
fn what_somebody_asks_for_has_its_turn_among_fires_that_wait_for_each_other() {
    let mut world = World::new();
    world.workers(&[("me", 1), ("other", 2)]);
    world.saved_with("a", "* * * * * *", r#"{"mode":"broadcast","misfire":"all"}"#);
    world.feed(Event::SinkFull(true));
    world.run_to(20_000);
    world.feed(Event::SinkFull(false));
    world.shown(&world.last_claim().spread.clone());
    let run_id = RunId::from_text("ask");
    let asked = Request::manual(run_id.clone(), name("a"), Environment::default(), at(world.now));
    world.shown(&[(run_id, asked)]);
    world.shown(&world.claimed_requests().pop().unwrap().spread);
    let mut order = Vec::new();
    for _ in 0..3 {
        let open = world.starts().pop().unwrap();
        world.now += 10;
        let spread = world.last_claim().spread;
        world.shown(&spread);
        world.end(&open, Status::Succeeded);
        order.push(open.trigger);
    }
    assert_eq!(order[..2], [Trigger::Broadcast, Trigger::Manual], "{order:?}");
}

#[test]
fn a_worker_with_more_fires_than_room_has_room_for_its_part_in_its_turn() {
    let mut world = World::with_room(1);
    world.workers(&[("me", 1)]);
    // One of them always waits.
    for job in ["b", "c", "d"] {
        world.saved_with(job, "* * * * * *", r#"{"concurrency":"allow"}"#);
    }
    world.saved_with("z", "*/10 * * * * *", r#"{"mode":"broadcast"}"#);
    let (mut shown, mut ended) = (0, 0);
    for ms in (100..20_000).step_by(100) {
        world.run_to(ms);
        let spread: Vec<_> = world.claims().into_iter().flat_map(|claim| claim.spread).collect();
        world.shown(&spread[shown..]);
        shown = spread.len();
        if ms % 800 == 0
            && let Some(open) = world.starts().get(ended).cloned()
        {
            world.end(&open, Status::Succeeded);
            ended += 1;
        }
    }
    let parts = world.starts().into_iter().filter(|open| open.job == name("z"));
    let times: Vec<i64> = parts.map(|open| open.plan_time.ms() - START_MS).collect();
    assert_eq!(times, [10_000]);
}
