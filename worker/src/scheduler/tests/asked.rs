//! Runs that are asked for: now by somebody, and again by retries.

use common::domain::execution::Environment;
use common::domain::kill::Killed;
use common::domain::request::Request;
use common::domain::run::Trigger;

use super::*;

impl World {
    /// Somebody asks for a run; its request has revision 50.
    fn asked(&mut self, job: &str, run_id: &str) {
        let run_id = RunId::from_text(run_id);
        let request = Request::manual(run_id.clone(), name(job), Environment::default(), at(self.now));
        self.see(run_id, request);
    }

    fn see(&mut self, run_id: RunId, request: Request) {
        let request = Arc::new(request);
        self.feed(Event::RequestSeen(RequestSeen { run_id, request, revision: 50 }));
    }

    fn request_claims(&self) -> Vec<RequestClaim> {
        let claim = |action: &Action| match action {
            Action::ClaimRequest(claim) => Some((**claim).clone()),
            _ => None,
        };
        self.actions.iter().filter_map(claim).collect()
    }

    /// The attempts that were asked for.
    fn next_attempts(&self) -> Vec<(RunId, Request)> {
        let next = |action: &Action| match action {
            Action::Close(close) => close.next.clone(),
            _ => None,
        };
        self.actions.iter().filter_map(next).collect()
    }

    fn started_ids(&self) -> Vec<String> {
        self.starts().iter().map(|open| open.run_id.to_string()).collect()
    }

    fn answer_request(&mut self, claim: &RequestClaim, answer: RequestAnswer) {
        self.feed(Event::RequestAnswered(Box::new(claim.clone()), answer));
    }

    /// As [`World::refusal`].
    fn refuse_request(&mut self, claim: &RequestClaim, change: impl FnOnce(&mut RequestRefusal)) {
        let mut refusal = RequestRefusal {
            session_alive: true,
            paused: false,
            request_revision: claim.request_revision,
            job_revision: claim.job_revision,
            lock: LockSeen::Free,
            open: None,
        };
        change(&mut refusal);
        self.answer_request(claim, RequestAnswer::Refused(refusal));
    }

    /// A job of which a run is asked for; nothing answers its claim.
    fn claiming_request() -> (Self, RequestClaim) {
        let mut world = Self::new();
        world.saved("a", "@yearly");
        world.claims_win = false;
        world.asked("a", "ask");
        let [claim] = world.request_claims().try_into().unwrap();
        (world, claim)
    }
}

#[test]
fn a_run_that_is_asked_for_begins_at_once_and_leaves_the_schedule_alone() {
    let mut world = World::new();
    world.saved("a", "*/10 * * * * *");
    world.run_to(1_000);
    world.asked("a", "ask");
    assert_eq!(world.claims(), [], "the mark is not touched");
    let [open] = world.starts().try_into().unwrap();
    assert_eq!((open.run_id.as_str(), open.trigger, open.attempt), ("ask", Trigger::Manual, 1));
    assert_eq!(open.record_id().as_str(), format!("a/{}/ask/1", START_MS + 1_000));
    world.end(&open, Status::Succeeded);
    world.run_to(10_000);
    assert_eq!(world.start_times(), [1_000, 10_000]);
}

#[test]
fn what_is_asked_for_while_the_job_runs_begins_when_that_has_ended_one_after_the_other() {
    let (mut world, running) = World::running();
    for ask in ["ask1", "ask2"] {
        world.now += 1;
        world.asked("a", ask);
    }
    world.run_to(15_000);
    assert_eq!(world.request_claims(), [], "nothing is asked of the store meanwhile");
    world.end(&running, Status::Succeeded);
    let first = world.starts().pop().unwrap();
    assert_eq!(first.run_id.as_str(), "ask1");
    world.now += 100;
    world.end(&first, Status::Succeeded);
    assert_eq!(world.started_ids()[1..], ["ask1", "ask2"]);
}

#[test]
fn a_job_that_catches_up_and_its_requests_take_turns() {
    let mut world = World::new();
    world.saved_with("a", "* * * * * *", r#"{"misfire":"all"}"#);
    world.feed(Event::SinkFull(true));
    world.run_to(20_000);
    for ask in ["ask1", "ask2", "ask3"] {
        world.asked("a", ask);
    }
    world.feed(Event::SinkFull(false));
    for _ in 0..5 {
        world.now += 300;
        world.feed(Event::Woke);
        let open = world.starts().pop().unwrap();
        world.end(&open, Status::Succeeded);
    }
    let triggers: Vec<Trigger> = world.starts().iter().map(|open| open.trigger).collect();
    let (fire, asked) = (Trigger::Schedule, Trigger::Manual);
    assert_eq!(triggers, [fire, asked, fire, asked, fire, asked]);
}

#[test]
fn thousands_of_requests_of_one_job_ask_the_store_for_one_at_a_time() {
    let mut world = World::new();
    world.saved("a", "@yearly");
    world.claims_win = false;
    for n in 0..2_000 {
        world.asked("a", &format!("ask{n:04}"));
    }
    world.run_to(60_000);
    assert_eq!(world.request_claims().len(), 1);
}

#[test]
fn requests_of_many_jobs_wait_for_room_and_fires_go_first() {
    let mut world = World::with_room(2);
    for job in ["a", "b", "c"] {
        world.saved(job, "@yearly");
    }
    world.saved("d", "*/10 * * * * *");
    for job in ["a", "b", "c"] {
        world.asked(job, &format!("ask-{job}"));
        world.now += 1;
    }
    assert_eq!(world.started_ids(), ["ask-a", "ask-b"]);
    world.run_to(10_000);
    let first = world.starts()[0].clone();
    world.end(&first, Status::Succeeded);
    assert_eq!(world.starts()[2].job, name("d"), "the fire that is due goes first");
    let second = world.starts()[1].clone();
    world.end(&second, Status::Succeeded);
    assert_eq!(world.started_ids()[3], "ask-c");
}

#[test]
fn a_worker_with_more_fires_than_room_has_a_place_of_five_for_what_is_asked_for() {
    let mut world = World::with_room(1);
    // One of them always waits.
    for job in ["b", "c", "d"] {
        world.saved_with(job, "* * * * * *", r#"{"concurrency":"allow"}"#);
    }
    world.saved("e", "@yearly");
    world.run_to(3_000);
    world.asked("e", "first");
    world.now += 1;
    world.asked("e", "second");
    let mut ended = 0;
    for ms in (3_200..20_000).step_by(800) {
        world.run_to(ms);
        if let Some(open) = world.starts().get(ended).cloned() {
            world.end(&open, Status::Succeeded);
            ended += 1;
        }
    }
    let starts = world.started_ids();
    let places: Vec<usize> =
        ["first", "second"].iter().filter_map(|id| starts.iter().position(|started| started == id)).collect();
    let [first, second] = places.try_into().unwrap();
    assert!(first <= 5 && second == first + 5, "{starts:?}");
}

#[test]
fn the_second_worker_takes_what_the_first_leaves_for_three_seconds() {
    let mut world = World::new();
    world.fleet(&["me", "other"]);
    let owns = |job: &String| world.scheduler.owns_slot(keys::slot(&name(job)));
    let job = (0..).map(|n| format!("job{n}")).find(|job| !owns(job)).unwrap();
    world.saved(&job, "@yearly");
    world.asked(&job, "ask");
    world.run_to(LOOK_AFTER_MS[0] - 1);
    assert_eq!(world.request_claims(), []);
    world.run_to(LOOK_AFTER_MS[0]);
    assert_eq!(world.request_claims().len(), 1);
}

#[test]
fn a_claim_without_an_answer_is_sent_again_as_it_was_until_it_is_known() {
    let (mut world, claim) = World::claiming_request();
    world.answer_request(&claim, RequestAnswer::Unknown);
    world.run_to(1_000);
    let [_, again] = world.request_claims().try_into().unwrap();
    assert_eq!(again, claim);
    // In doubt it is never decided anew, also when something stands in its way that can change back.
    world.refuse_request(&claim, |refusal| refusal.lock = LockSeen::Held);
    world.run_to(5_000);
    let sent = world.request_claims();
    assert!(sent.len() == 3 && sent.iter().all(|each| *each == claim), "{sent:?}");
    world.refuse_request(&claim, |refusal| (refusal.request_revision, refusal.open) = (0, Some(70)));
    assert_eq!(world.started_ids(), ["ask"], "the first sending had committed");
    world.feed(Event::RequestGone(claim.open.run_id.clone()));
    world.run_to(100_000);
    assert_eq!((world.started_ids().len(), world.request_claims().len()), (1, 3));
}

#[test]
fn what_another_worker_has_claimed_is_left_to_it() {
    let (mut world, claim) = World::claiming_request();
    world.refuse_request(&claim, |refusal| refusal.request_revision = 0);
    world.run_to(100_000);
    assert_eq!((world.starts().len(), world.request_claims().len()), (0, 1));
    assert!(world.scheduler.is_idle());
}

#[test]
fn a_request_waits_for_a_lock_elsewhere_and_for_the_end_of_a_pause() {
    let (mut world, claim) = World::claiming_request();
    world.refuse_request(&claim, |refusal| refusal.lock = LockSeen::Held);
    world.run_to(LOCKED_RETRY_MS);
    let claims = world.request_claims();
    assert_eq!(claims.len(), 2);
    assert_ne!(claims[0].seq, claims[1].seq, "it was not in doubt: decided anew");
    world.refuse_request(&claims[1].clone(), |refusal| refusal.paused = true);
    world.feed(Event::Paused(true));
    world.run_to(50_000);
    assert_eq!(world.request_claims().len(), 2);
    world.claims_win = true;
    world.feed(Event::Paused(false));
    assert_eq!(world.started_ids(), ["ask"]);
}

#[test]
fn a_claim_of_a_session_that_is_over_is_made_anew_in_the_next() {
    let (mut world, claim) = World::claiming_request();
    world.feed(Event::SessionLost);
    world.answer_request(&claim, RequestAnswer::Won(60));
    assert_eq!(world.starts(), [], "it may have been closed as lost");
    world.claims_win = true;
    world.gain(2);
    assert_eq!(world.started_ids(), ["ask"]);
}

#[test]
fn a_kill_that_comes_before_the_answer_to_the_claim_hits_the_run() {
    let (mut world, claim) = World::claiming_request();
    world.feed(kill(&name("a"), Some(vec![claim.open.run_id.clone()]), 60));
    world.answer_request(&claim, RequestAnswer::Won(55));
    let [(record, _)] = world.records().try_into().unwrap();
    assert_eq!((record.status, world.starts().len()), (Some(Status::Killed), 0));
}

#[test]
fn what_cannot_run_ends_in_a_record_that_says_why() {
    let mut world = World::new();
    world.saved("a", "@yearly");
    world.saved("b", "@yearly");
    world.asked("gone", "ask1");
    world.feed(Event::Paused(true));
    world.asked("a", "ask2");
    world.run_to(24 * 3600 * 1000 + 1);
    world.feed(Event::Paused(false));
    let told: Vec<(String, SkipReason, i64)> = world
        .records()
        .into_iter()
        .map(|(record, settles)| {
            assert!(settles.is_some() && record.trigger == Some(Trigger::Manual));
            let skipped = record.skipped.unwrap();
            (record.job_name, skipped.reason, skipped.from.ms() - START_MS)
        })
        .collect();
    let told_of = |job: &str, reason| (job.to_owned(), reason, 0);
    assert_eq!(told, [told_of("gone", SkipReason::Deleted), told_of("a", SkipReason::Misfire)]);
    assert_eq!(world.starts(), []);
}

#[test]
fn what_a_backup_brings_back_may_have_run_and_is_let_go() {
    let mut world = World::new();
    let saved = world.save("a", "@yearly");
    world.now = 60_000;
    world.went_back();
    world.gain(2);
    world.list(&[saved]);
    let before = Request::manual(RunId::from_text("ask"), name("a"), Environment::default(), at(59_000));
    world.see(RunId::from_text("ask"), before);
    assert_eq!(world.skips(), [(59_000, 59_000, 1, SkipReason::StoreWentBack)]);
    world.now = 70_000;
    world.asked("a", "later");
    assert_eq!(world.started_ids(), ["later"]);
}

// --- retries ---------------------------------------------------------------------------------------------------------

/// A job whose fire at 10 s is running.
fn running_with(options: &str) -> (World, OpenRun) {
    let mut world = World::new();
    world.saved_with("a", "10 * * * * *", options);
    world.run_to(10_000);
    let open = world.starts().pop().unwrap();
    (world, open)
}

#[test]
fn a_run_that_failed_is_tried_again_until_its_attempts_are_used_up() {
    let (mut world, mut open) = running_with(r#"{"retry":{"attempts":3,"backoff":2},"misfire":"all"}"#);
    let first = open.clone();
    for attempt in 1..3 {
        world.now += 100;
        let ended = world.now;
        world.end(&open, Status::Failed);
        let (run_id, request) = world.next_attempts().pop().unwrap();
        assert_eq!((run_id.clone(), request.attempt), (first.run_id.of_attempt(attempt + 1), attempt + 1));
        let pause = 2_000 << (attempt - 1);
        let from = request.not_before.unwrap().ms_since(at(ended));
        assert!((pause..=pause * 5 / 4).contains(&from), "{from}");
        world.see(run_id.clone(), request);
        world.run_to(ended + from - 1);
        assert_eq!(world.started_ids().last(), Some(&open.run_id.to_string()));
        world.run_to(ended + from);
        open = world.starts().pop().unwrap();
        assert_eq!((&open.run_id, open.plan_time, open.trigger), (&run_id, first.plan_time, Trigger::Retry));
    }
    world.end(&open, Status::Failed);
    assert_eq!(world.next_attempts().len(), 2);
    let ids: Vec<String> = world.records().into_iter().map(|(record, _)| record.id.to_string()).collect();
    assert_eq!(ids, [1, 2, 3].map(|attempt| format!("a/{}/{attempt}", START_MS + 10_000)));
}

#[test]
fn only_what_failed_by_itself_is_tried_again() {
    let retried = |status, killed| {
        let (mut world, open) = running_with(r#"{"retry":{"attempts":2}}"#);
        if killed {
            world.feed(kill(&name("a"), None, i64::MAX));
        }
        world.end(&open, status);
        world.next_attempts().len()
    };
    assert_eq!(retried(Status::Failed, false), 1);
    assert_eq!(retried(Status::TimedOut, false), 1);
    assert_eq!(retried(Status::Succeeded, false), 0);
    assert_eq!(retried(Status::Killed, true), 0);
}

#[test]
fn the_next_fire_is_the_next_attempt_unless_each_fire_is_to_run() {
    for (misfire, retries) in [("once", 0), ("skip", 0), ("all", 1)] {
        let (mut world, open) =
            running_with(&format!(r#"{{"retry":{{"attempts":2,"backoff":60}},"misfire":"{misfire}"}}"#));
        world.end(&open, Status::Failed);
        assert_eq!(world.next_attempts().len(), retries, "{misfire}");
    }
}

#[test]
fn the_job_as_it_is_at_the_end_decides_about_a_retry() {
    let (mut world, open) = running_with(r#"{"retry":{"attempts":2}}"#);
    world.delete("a");
    world.end(&open, Status::Failed);
    assert_eq!(world.next_attempts(), []);
    let (mut world, open) = running_with("{}");
    world.saved_with("a", "@yearly", r#"{"retry":{"attempts":2}}"#);
    world.end(&open, Status::Failed);
    assert_eq!(world.next_attempts().len(), 1);
}

#[test]
fn a_record_waits_until_no_survivor_can_take_its_run_for_lost() {
    let on_lost = r#"{"retry":{"attempts":2,"onLost":true}}"#;
    for status in [Status::Succeeded, Status::Failed, Status::Killed] {
        let (mut world, open) = running_with(on_lost);
        assert!(open.on_lost.is_some(), "a survivor asks for the next attempt");
        world.releases = false;
        if status == Status::Killed {
            world.feed(kill(&name("a"), None, i64::MAX));
        }
        world.end(&open, status);
        let closes: Vec<&Action> =
            world.actions.iter().filter(|action| matches!(action, Action::Close(_))).collect();
        let [Action::Close(close)] = closes[..] else { panic!("{closes:?}") };
        assert_eq!(close.open.on_lost, None);
        assert_eq!(close.next.is_some(), status == Status::Failed);
        assert_eq!(world.records(), []);
        assert!(world.scheduler.knows_open(close.key.0, close.key.1, &close.open));
        let (key, run_id) = (close.key, close.open.run_id.clone());
        world.feed(Event::Released(run_id.clone()));
        assert!(!world.scheduler.is_idle(), "its record is not handed on yet");
        world.feed(Event::SessionLost);
        assert_eq!(world.records(), [], "its open key is still to be written");
        world.feed(Event::Closed(run_id, CloseAnswer::Gone));
        assert_eq!(world.records()[0].1, Some(key));
    }
    let (mut world, open) = running_with(r#"{"retry":{"attempts":1,"onLost":true}}"#);
    assert_eq!(open.on_lost, None, "there is no other attempt");
    world.releases = false;
    world.end(&open, Status::Failed);
    assert_eq!(world.records().len(), 1);
}

/// Found by seed 22708 of the simulation: the lock may be held for hours.
#[test]
fn a_worker_that_drains_does_not_wait_for_a_lock() {
    let (mut world, claim) = World::claiming_request();
    world.answer_request(&claim, RequestAnswer::Unknown);
    world.run_to(1_000);
    world.feed(Event::DrainRequested);
    assert!(!world.scheduler.is_idle(), "it may have been made");
    world.refuse_request(&claim, |refusal| refusal.lock = LockSeen::Held);
    assert!(world.scheduler.is_idle());
    world.run_to(3_000); // sent again
    world.answer_request(&claim, RequestAnswer::Unknown);
    assert!(!world.scheduler.is_idle());
}

#[test]
fn what_is_cancelled_before_it_is_claimed_is_let_go_at_once_with_a_record_that_says_by_whom() {
    let (mut world, running) = World::running();
    world.feed(Event::Paused(true));
    for run_id in ["first", "second"] {
        world.asked("a", run_id);
    }
    assert_eq!(world.scheduler.requests_waiting(), 2);
    let mut request =
        Request::manual(RunId::from_text("second"), name("a"), Environment::default(), at(world.now));
    request.not_before = Some(at(3_600_000));
    request.killed = Some(Killed { by: "an operator".to_owned(), at: at(77) });
    let (run_id, request) = (RunId::from_text("second"), Arc::new(request));
    world.take_actions();
    world.feed(Event::RequestSeen(RequestSeen { run_id, request, revision: 51 }));
    let [(record, settles)] = world.records().try_into().unwrap();
    assert_eq!((record.status, settles.is_some()), (Some(Status::Skipped), true));
    assert_eq!((record.killed_by.as_deref(), record.killed_at), (Some("an operator"), Some(at(77))));
    assert_eq!((world.skips()[0].3, world.starts()), (SkipReason::Cancelled, vec![]));
    assert_eq!(world.scheduler.requests_waiting(), 1);
    world.feed(Event::Paused(false));
    world.end(&running, Status::Succeeded);
    assert_eq!(world.started_ids(), ["first"]);
}

#[test]
fn where_runs_may_overlap_those_that_are_asked_for_go_beside_each_other() {
    let mut world = World::new();
    world.saved_with("a", "*/10 * * * * *", r#"{"concurrency":"allow"}"#);
    world.run_to(10_000);
    for run_id in ["one", "two", "three"] {
        world.asked("a", run_id);
    }
    assert_eq!(world.starts().len(), 4, "beside the fire and each other");
    let claims = world.request_claims();
    assert!(claims.iter().all(|claim| claim.open.unlocked), "{claims:?}");
    let run_id = RunId::from_text("two");
    assert!(world.scheduler.knows_shared(&name("a"), &run_id) && !world.scheduler.knows_lock(&name("a")));
    world.take_actions();
    world.run_to(20_000);
    assert_eq!(world.start_times(), [20_000], "and nobody keeps a fire from its time");
}

#[test]
fn a_run_that_was_claimed_without_the_lock_does_not_start_where_no_two_may_go_any_more() {
    let mut world = World::new();
    world.saved_with("a", "@yearly", r#"{"concurrency":"allow"}"#);
    world.claims_win = false;
    world.asked("a", "one");
    let claim = world.request_claims().pop().unwrap();
    assert!(world.scheduler.knows_shared(&name("a"), &claim.open.run_id), "it may have been claimed");
    world.saved_with("a", "@yearly", "{}");
    world.answer_request(&claim, RequestAnswer::Won(900));
    assert_eq!((world.starts(), world.skips()[0].3), (vec![], SkipReason::Superseded));
}

#[test]
fn a_run_that_its_fence_ended_is_tried_again_as_one_that_was_lost() {
    let fence = r#"{"retry":{"attempts":2},"fence":true}"#;
    let (mut world, open) = running_with(fence);
    assert!(open.on_lost.is_some(), "a survivor asks for the next attempt: by then it is over");
    world.end(&open, Status::Killed);
    assert_eq!(world.next_attempts().len(), 1, "nobody else has asked for its end");
    let (mut world, open) = running_with(fence);
    world.feed(kill(&name("a"), None, i64::MAX));
    world.end(&open, Status::Killed);
    assert_eq!(world.next_attempts(), []);
    let mut world = World::new();
    world.saved_with("a", "*/10 * * * * *", fence);
    world.run_to(9_990); // claimed for 10 s
    world.feed(kill(&name("a"), None, i64::MAX));
    world.run_to(11_000);
    assert_eq!((world.starts(), world.next_attempts()), (vec![], vec![]), "killed before its start");
    let (_, open) = running_with(r#"{"retry":{"attempts":2,"onLost":false},"fence":true}"#);
    assert_eq!(open.on_lost, None, "who says so has a reason");
}

#[test]
fn a_retry_that_cannot_begin_within_the_start_deadline_is_let_go() {
    let (mut world, open) = running_with(r#"{"retry":{"attempts":2,"backoff":1}}"#);
    world.end(&open, Status::Failed);
    let (run_id, request) = world.next_attempts().pop().unwrap();
    world.feed(Event::Paused(true));
    world.see(run_id, request);
    world.run_to(120_000);
    world.feed(Event::Paused(false));
    assert_eq!(
        world.skips().iter().filter(|skip| (skip.0, skip.2) == (10_000, 1)).count(),
        1,
        "{:?}",
        world.skips()
    );
    assert!(world.starts().iter().all(|open| open.attempt == 1));
}
