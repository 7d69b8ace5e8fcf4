//! The fleet's settings: unknown, changed, unreadable.

use common::domain::calendars::CalendarName;
use common::schedule::DaySet;

use super::*;

const MINUTE: i64 = 60_000;

fn zone(name: &str) -> FleetSettings {
    FleetSettings::from_submitted(&serde_json::json!({ "timezone": name })).unwrap()
}

/// Half past in UTC is a full hour in Kolkata.
const KOLKATA: &str = "Asia/Kolkata";
const HOURLY: &str = "0 0-23 * * *";
const ALL: &str = r#"{"misfire":"all","startDeadlineSeconds":86400}"#;

impl World {
    fn set(&mut self, settings: &FleetSettings) {
        self.revision += 1;
        self.feed(Event::Settings(Some(settings.clone()), self.revision));
    }
}

#[test]
fn a_change_fires_nothing_by_itself_and_counts_from_when_it_was_heard_of() {
    let mut world = World::new();
    world.saved_with("a", HOURLY, ALL);
    world.saved_with("own", HOURLY, r#"{"timezone":"UTC"}"#);
    world.run_to(40 * MINUTE);
    assert_eq!(world.start_times(), [0_i64; 0], "it was saved at a full hour");
    // By the new zone the hour before was full ten minutes ago: nobody's.
    world.set(&zone(KOLKATA));
    let adopts = |action: &Action| match action {
        Action::Adopt(Adoption { job, mark, settings_revision, .. }) => {
            Some((job.as_str().to_owned(), mark.base, *settings_revision))
        }
        _ => None,
    };
    let adopted: Vec<_> = world.take_actions().iter().filter_map(adopts).collect();
    assert_eq!(adopted, [("a".to_owned(), at(40 * MINUTE), world.revision - 1)]);
    world.run_to(100 * MINUTE);
    let starts: Vec<_> =
        world.starts().iter().map(|open| (open.job.as_str().to_owned(), open.plan_time)).collect();
    assert_eq!(starts, [("own".to_owned(), at(60 * MINUTE)), ("a".to_owned(), at(90 * MINUTE))]);
    // Back again: the full hours of UTC that passed meanwhile are nobody's either.
    let first = world.starts()[1].clone();
    world.end(&first, Status::Succeeded);
    world.run_to(130 * MINUTE);
    world.take_actions();
    world.set(&FleetSettings::default());
    world.run_to(181 * MINUTE);
    let of_a: Vec<_> =
        world.starts().iter().filter(|open| open.job.as_str() == "a").map(|open| open.plan_time).collect();
    assert_eq!(of_a, [at(180 * MINUTE)]);
}

#[test]
fn the_same_settings_again_move_no_base() {
    let mut world = World::new();
    world.set(&zone(KOLKATA));
    world.saved_with("a", HOURLY, r#"{"timezone":"UTC"}"#);
    world.run_to(40 * MINUTE);
    world.take_actions();
    // Put again, and changed in what the job says itself.
    for settings in [zone(KOLKATA), zone("Asia/Tokyo"), FleetSettings::default()] {
        world.set(&settings);
    }
    assert_eq!(world.take_actions(), []);
    world.run_to(61 * MINUTE);
    assert_eq!(world.start_times(), [60 * MINUTE]);
}

#[test]
fn nothing_is_claimed_by_settings_that_are_not_known() {
    let mut world = World::new();
    world.saved("a", HOURLY);
    world.feed(Event::Settings(None, 7));
    world.run_to(62 * MINUTE);
    assert_eq!(world.start_times(), [0_i64; 0], "what cannot be read may say another zone");
    world.set(&FleetSettings::default());
    assert_eq!(
        world.skips(),
        [(60 * MINUTE, 60 * MINUTE, 1, SkipReason::Misfire)],
        "let go aloud: too late by then"
    );
    world.run_to(121 * MINUTE);
    assert_eq!(world.start_times(), [120 * MINUTE]);
}

#[test]
fn a_dialect_decides_whether_a_job_can_run_at_all() {
    let seed = FleetSettings::from_submitted(&serde_json::json!({ "dialect": "seed" })).unwrap();
    let mut world = World::new();
    // The last field is no year, and the second to last no weekday of the seed's six.
    world.saved("a", "0 0 9 * * 1");
    world.set(&seed);
    let told = world.take_actions().into_iter().find_map(|action| match action {
        Action::Report(Report::BadJob(job, why)) => Some((job, why)),
        _ => None,
    });
    let (job, why) = told.expect("said");
    assert_eq!(job, name("a"));
    assert!(why.contains("year: \"1\""), "{why}");
    world.set(&FleetSettings::default());
    assert!(world.scheduler.wake_at().is_some(), "it has a next fire again");
}

#[test]
fn missed_fires_follow_the_fleets_policy() {
    let skip = FleetSettings::from_submitted(&serde_json::json!({ "misfire": "skip" })).unwrap();
    for (settings, starts) in [(FleetSettings::default(), 1), (skip, 0)] {
        let mut world = World::new();
        world.saved_with("a", HOURLY, r#"{"startDeadlineSeconds":3600}"#);
        world.set(&settings);
        world.feed(Event::SessionLost);
        world.now = 70 * MINUTE;
        world.gain(2);
        world.run_to(71 * MINUTE);
        assert_eq!(world.starts().len(), starts, "{settings:?}");
    }
}

/// A fleet whose calendar has the days from `first` to `last`, counted from the world's first.
fn closed(first: i64, last: i64) -> FleetSettings {
    let mut days = DaySet::default();
    let today = at(0).ms().div_euclid(24 * 60 * MINUTE);
    days.add(today + first, today + last);
    let mut fleet = FleetSettings::default();
    fleet.calendars.insert(CalendarName::parse("closed").unwrap(), days);
    fleet
}

const NOT_CLOSED: &str =
    r#"{"calendars":{"exclude":["closed"]},"misfire":"all","startDeadlineSeconds":86400}"#;

#[test]
fn another_calendar_is_an_edit_of_the_jobs_that_name_it() {
    let mut world = World::new();
    world.saved_with("a", HOURLY, NOT_CLOSED);
    world.saved_with("other", HOURLY, "{}");
    world.run_to(61 * MINUTE);
    let jobs = |world: &World| -> Vec<String> {
        world.starts().iter().map(|open| open.job.as_str().to_owned()).collect()
    };
    assert_eq!(jobs(&world), ["other"], "there is no such calendar: its days are not known");
    let first = world.starts()[0].clone();
    world.end(&first, Status::Succeeded);
    world.take_actions();
    // Of the hours that passed before the calendar was there none is caught up on.
    world.set(&closed(5, 5));
    let is_adopted = |action: &Action| matches!(action, Action::Adopt(adoption) if adoption.job == name("a"));
    let adopted = world.take_actions().iter().filter(|action| is_adopted(action)).count();
    assert_eq!(adopted, 1);
    world.run_to(121 * MINUTE);
    assert_eq!(jobs(&world).iter().filter(|job| *job == "a").count(), 1);
    for run in world.starts() {
        world.end(&run, Status::Succeeded);
    }
    world.take_actions();
    // Today as well: the job has no fires any more, and nothing says that any were skipped.
    world.set(&closed(0, 5));
    world.run_to(181 * MINUTE);
    assert!(!jobs(&world).contains(&"a".to_owned()), "{:?}", jobs(&world));
    assert_eq!(world.skips().len(), 0);
}

#[test]
fn a_claim_that_was_decided_by_settings_that_are_over_is_decided_anew() {
    let (mut world, claim) = World::claiming();
    let (heard, revision) = (world.revision + 1, claim.settings_revision);
    let refused = world.refusal(&claim, |refusal| refusal.settings_revision = heard);
    world.take_actions();
    world.feed(refused);
    assert_eq!(world.take_actions(), [], "it waits for what the watch brings");
    world.set(&FleetSettings::default());
    let again: Vec<_> = world
        .take_actions()
        .into_iter()
        .filter_map(|action| match action {
            Action::Claim(claim) => Some(claim.settings_revision),
            _ => None,
        })
        .collect();
    assert_eq!(again, [heard]);
    assert_ne!(heard, revision);
}
