//! Jobs that run once others have succeeded: who is told of the end of a run, and what is told.

use common::domain::execution::Environment;
use common::domain::request::Request;
use common::domain::run::Trigger;

use super::*;

impl World {
    /// A job that waits for others.
    fn waits(&mut self, job: &str, options: &str) {
        self.saved_with(job, "", options);
    }

    /// A job that a run of goes, since it was asked for; nothing answers what its end asks for.
    fn going(job: &str) -> (Self, OpenRun) {
        let mut world = Self::new();
        world.saved(job, "@yearly");
        let open = world.runs_now(job);
        world.releases = false;
        (world, open)
    }

    fn runs_now(&mut self, job: &str) -> OpenRun {
        let run_id = RunId::from_text(&format!("ask{}", self.revision));
        let request = Request::manual(run_id.clone(), name(job), Environment::default(), at(self.now));
        self.revision += 1;
        let seen = RequestSeen { run_id, request: Arc::new(request), revision: self.revision };
        self.feed(Event::RequestSeen(seen));
        self.starts().pop().expect("it was started")
    }

    fn closes(&self) -> Vec<Close> {
        let close = |action: &Action| match action {
            Action::Close(close) => Some((**close).clone()),
            _ => None,
        };
        self.actions.iter().filter_map(close).collect()
    }

    fn closed(&mut self, open: &OpenRun, answer: CloseAnswer) {
        self.feed(Event::Closed(open.run_id.clone(), answer));
    }

    fn circles(&self) -> Vec<&str> {
        let circle = |action: &Action| match action {
            Action::Report(Report::Circle(job)) => Some(job.clone()),
            _ => None,
        };
        let said: Vec<JobName> = self.actions.iter().filter_map(circle).collect();
        ["a", "b", "c", "d"].into_iter().filter(|one| said.contains(&name(one))).collect()
    }
}

/// The jobs that are told, each with those that it waits for beside.
fn told(close: &Close) -> Vec<(String, Vec<String>)> {
    let text = |name: &JobName| name.as_str().to_owned();
    let told = close.follows.iter().filter(|follow| follow.run.is_some());
    told.map(|follow| (text(&follow.job), follow.others.iter().map(text).collect())).collect()
}

#[test]
fn those_that_wait_are_told_by_what_closes_a_run_that_has_succeeded() {
    for status in [Status::Succeeded, Status::Failed, Status::TimedOut] {
        let (mut world, open) = World::going("a");
        world.waits("d", r#"{"after":["a"]}"#);
        world.waits("e", r#"{"after":["b","a","c"]}"#);
        world.waits("x", r#"{"after":["b"]}"#);
        world.end(&open, status);
        if status != Status::Succeeded {
            assert_eq!((world.closes(), world.records().len()), (Vec::new(), 1));
            continue;
        }
        let [close] = world.closes().try_into().unwrap();
        let expected = [("d".to_owned(), vec![]), ("e".to_owned(), vec!["b".to_owned(), "c".to_owned()])];
        assert_eq!(told(&close), expected);
        let (run_id, request) = close.follows[0].run.clone().unwrap();
        assert_eq!((request.job.as_str(), request.trigger, request.attempt), ("d", Trigger::After, 1));
        assert_eq!((request.after, request.asked), (Some(open.run_id.clone()), Some(run_id)));
        assert_eq!(world.records(), [], "its record waits until they are told");
        assert!(!world.scheduler.is_idle());
        world.closed(&open, CloseAnswer::Done(900));
        assert_eq!((world.closes().len(), world.records().len()), (1, 1));
    }
}

#[test]
fn what_is_told_is_decided_anew_when_one_that_waits_was_edited() {
    let (mut world, open) = World::going("a");
    world.waits("d", r#"{"after":["a"]}"#);
    world.waits("e", r#"{"after":["a"]}"#);
    world.end(&open, Status::Succeeded);
    // Before the news of the edit come.
    world.closed(&open, CloseAnswer::Stale);
    world.waits("d", r#"{"after":["a","b"]}"#);
    world.delete("e");
    assert_eq!((world.closes().len(), world.records().len()), (1, 0));
    world.run_to(RETRY_MS);
    let close = world.closes().pop().unwrap();
    assert_eq!(told(&close), [("d".to_owned(), vec!["b".to_owned()])]);
    assert_eq!(close.revision, world.closes()[0].revision, "nothing was closed yet");
    // A clock that is put back does not make it wait for as long.
    world.closed(&open, CloseAnswer::Stale);
    world.now -= 3_600_000;
    world.feed(Event::Woke);
    world.run_to(world.now + 2 * RETRY_MS);
    assert_eq!(world.closes().len(), 3);
    world.delete("d");
    world.closed(&open, CloseAnswer::Stale);
    world.run_to(world.now + RETRY_MS);
    assert_eq!(world.closes().pop().unwrap().follows, []);
    world.closed(&open, CloseAnswer::Done(900));
    assert_eq!(world.records().len(), 1);
}

#[test]
fn after_the_store_went_back_what_was_known_of_those_that_wait_is_compared_with_what_is_there() {
    let (mut world, open) = World::going("a");
    world.waits("d", r#"{"after":["a"]}"#);
    world.waits("e", r#"{"after":["a"]}"#);
    world.feed(Event::StoreWentBack);
    world.gain(2);
    let moved = |action: &Action| match action {
        Action::Move { open, to, .. } => Some((open.run_id.clone(), *to)),
        _ => None,
    };
    let (run_id, (sid, seq)) = world.actions.iter().filter_map(moved).next_back().unwrap();
    world.feed(Event::MoveAnswered(run_id, sid, seq, MoveAnswer::Done(700)));
    world.end(&open, Status::Succeeded);
    assert_eq!((told(&world.closes()[0]).len(), world.records().len()), (2, 0));
    world.closed(&open, CloseAnswer::Stale);
    world.feed(Event::JobsListBegins);
    world.waits("d", r#"{"after":["a","b"]}"#);
    world.feed(Event::JobsListed);
    world.run_to(RETRY_MS);
    let close = world.closes().pop().unwrap();
    assert_eq!((told(&close), close.revision), (vec![("d".to_owned(), vec!["b".to_owned()])], 700));
}

#[test]
fn a_run_that_was_closed_as_lost_tells_nobody() {
    let (mut world, open) = World::going("a");
    world.waits("d", r#"{"after":["a"]}"#);
    world.end(&open, Status::Succeeded);
    world.closed(&open, CloseAnswer::Gone);
    assert!(world.has(&Action::Report(Report::SucceededTooLate(open.run_id))));
    assert_eq!((world.closes().len(), world.records().len()), (1, 1));
}

#[test]
fn more_than_one_transaction_has_room_for_are_told_each_once() {
    let (mut world, open) = World::going("a");
    let waiting = 2 * TOLD_AT_ONCE + 1;
    for n in 0..waiting {
        world.waits(&format!("d{n:03}"), r#"{"after":["a"]}"#);
    }
    world.end(&open, Status::Succeeded);
    for (revision, closes) in [(901, 1), (902, 2), (903, 3)] {
        assert_eq!((world.closes().len(), world.records().len()), (closes, 0));
        world.closed(&open, CloseAnswer::Done(revision));
    }
    let revisions: Vec<i64> = world.closes().iter().map(|close| close.revision).collect();
    assert_eq!(revisions[1..], [901, 902], "each goes on from what the one before has put");
    let told: Vec<String> = world.closes().iter().flat_map(told).map(|(job, _)| job).collect();
    assert_eq!(told, (0..waiting).map(|n| format!("d{n:03}")).collect::<Vec<_>>());
    assert_eq!(world.records().len(), 1);
}

#[test]
fn what_a_clock_that_is_not_trusted_says_goes_into_no_request() {
    let (mut world, open) = World::going("a");
    world.waits("d", r#"{"after":["a"]}"#);
    let claimed = world.now;
    world.now += 60_000;
    world.feed(Event::ClockTrusted(false));
    world.end(&open, Status::Succeeded);
    let (_, request) = world.closes()[0].follows[0].run.clone().unwrap();
    assert_eq!((request.at, request.plan_time), (at(claimed), at(claimed)));
}

#[test]
fn a_circle_is_said_and_never_followed() {
    let (mut world, open) = World::going("a");
    world.waits("b", r#"{"after":["d"]}"#);
    world.waits("c", r#"{"after":["b"]}"#);
    assert_eq!(world.circles(), [""; 0]);
    world.waits("d", r#"{"after":["a","c"]}"#);
    assert_eq!(world.circles(), ["d"], "the one that closes it");
    world.end(&open, Status::Succeeded);
    assert_eq!(told(&world.closes()[0]).len(), 1, "what leads into it goes on");
    world.releases = true;
    let open = world.runs_now("b");
    world.end(&open, Status::Succeeded);
    let close = world.closes().pop().unwrap();
    assert_eq!((close.follows[0].job.as_str(), told(&close)), ("c", vec![]));
    world.waits("a", r#"{"after":["a"]}"#);
    assert_eq!(world.circles(), ["a", "d"]);
    // Broken by an edit, it is none any more.
    world.take_actions();
    world.waits("d", r#"{"after":["x"]}"#);
    let open = world.runs_now("b");
    world.end(&open, Status::Succeeded);
    assert_eq!(told(&world.closes().pop().unwrap()).len(), 1);
    assert_eq!(world.circles(), [""; 0]);
}

#[test]
fn a_job_that_is_disabled_is_not_told_and_what_was_asked_for_is_let_go() {
    let (mut world, open) = World::going("a");
    world.waits("d", r#"{"after":["a"],"enabled":false}"#);
    world.end(&open, Status::Succeeded);
    let close = world.closes().pop().unwrap();
    assert_eq!((told(&close), close.follows.len()), (vec![], 1), "that it is disabled is compared");
    world.closed(&open, CloseAnswer::Done(900));
    let (run_id, request) = Request::following(&open.run_id, name("d"), "other", at(world.now));
    world.feed(Event::RequestSeen(RequestSeen { run_id, request: Arc::new(request), revision: 950 }));
    assert_eq!(world.skips().pop().map(|skip| skip.3), Some(SkipReason::Disabled));
}

#[test]
fn a_job_that_waits_has_no_fires_and_one_that_has_times_as_well_does_not_run() {
    let (mut world, open) = World::going("a");
    world.saved_with("d", "* * * * * *", r#"{"after":["a"]}"#);
    world.waits("e", r#"{"after":["a"]}"#);
    world.run_to(10_000);
    assert_eq!(world.claims(), []);
    world.end(&open, Status::Succeeded);
    assert_eq!(told(&world.closes()[0]).iter().map(|(job, _)| job.as_str()).collect::<Vec<_>>(), ["e"]);
    let bad = |action: &Action| matches!(action, Action::Report(Report::BadJob(job, _)) if *job == name("d"));
    assert!(world.actions.iter().any(bad));
}

#[test]
fn a_deleted_job_for_which_others_wait_is_told_of() {
    let mut world = World::new();
    world.saved("a", "@yearly");
    world.waits("d", r#"{"after":["a"]}"#);
    world.delete("d");
    world.waits("e", r#"{"after":["a"]}"#);
    world.delete("a");
    let said: Vec<&Action> = world
        .actions
        .iter()
        .filter(|action| matches!(action, Action::Report(Report::WaitedFor(_))))
        .collect();
    assert_eq!(said, [&Action::Report(Report::WaitedFor(name("a")))]);
}
