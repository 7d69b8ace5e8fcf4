//! Parsed schedules, shared: a million jobs have some thousand distinct expressions. They depend on the fleet's settings, which may change.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use common::domain::job::{Job, JobName};
use common::domain::settings::FleetSettings;
use common::schedule::{Dialect, Dst, Error, Schedule, ScheduleSettings, Window, Zone};

use super::terms::{SharedTerms, Terms};

/// Schedules that nobody has any more are dropped once there are so many, and twice as many as at the last look.
const CLEAN_FROM: usize = 1024;

/// What a job says of its schedule itself: with the fleet's settings that is all.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Source {
    expression: Box<str>,
    timezone: Option<Zone>,
    dialect: Option<Dialect>,
    dst: Option<Dst>,
    /// Of a job whose times depend on it.
    name: Option<JobName>,
    /// Last, so that those of one expression stand beside each other.
    window: Window,
}

impl Source {
    pub(super) fn of(job: &Job) -> Self {
        let named = Schedule::depends_on_name(job.times());
        Self {
            expression: job.times().into(),
            timezone: job.options.timezone.clone(),
            dialect: job.options.dialect,
            dst: job.options.dst,
            name: named.then(|| job.name.clone()),
            window: job.options.window(),
        }
    }

    /// With what it is read.
    pub(super) fn settings(&self, fleet: &FleetSettings) -> ScheduleSettings<'_> {
        ScheduleSettings {
            name: self.name.as_ref().map(JobName::as_str),
            ..fleet.under(self.timezone.as_ref(), self.dialect, self.dst)
        }
    }

    /// The same but for the window.
    fn is_like(&self, other: &Self) -> bool {
        *self == Self { window: self.window, ..other.clone() }
    }
}

/// The schedules in use, by what they are read from.
#[derive(Debug)]
pub(super) struct Schedules {
    fleet: FleetSettings,
    known: BTreeMap<Arc<Source>, Weak<Schedule>>,
    clean_at: usize,
    terms: SharedTerms,
}

impl Schedules {
    pub(super) fn new() -> Self {
        let (fleet, terms) = (FleetSettings::default(), SharedTerms::new());
        Self { fleet, known: BTreeMap::new(), clean_at: CLEAN_FROM, terms }
    }

    /// The fleet's settings, by which schedules are read.
    pub(super) fn fleet(&self) -> &FleetSettings {
        &self.fleet
    }

    /// What a job shares with all that say the same.
    pub(super) fn share(&mut self, terms: Terms) -> Arc<Terms> {
        self.terms.share(terms)
    }

    /// Takes other settings: what is known was read by the ones before. False: they are the same.
    pub(super) fn take_settings(&mut self, fleet: FleetSettings) -> bool {
        if self.fleet == fleet {
            return false;
        }
        self.fleet = fleet;
        self.known.clear();
        true
    }

    /// The schedule of a source, which is shared as well: the one that other jobs have, if any has.
    pub(super) fn parse(&mut self, source: Source) -> (Arc<Source>, Result<Arc<Schedule>, Error>) {
        let source = match self.known.get_key_value(&source) {
            Some((source, schedule)) => match schedule.upgrade() {
                Some(known) => return (Arc::clone(source), Ok(known)),
                None => Arc::clone(source),
            },
            None => Arc::new(source),
        };
        let schedule = self.read(&source).map(Arc::new);
        if let Ok(schedule) = &schedule {
            if self.known.len() >= self.clean_at {
                self.known.retain(|_, schedule| schedule.strong_count() > 0);
                self.clean_at = CLEAN_FROM.max(self.known.len() * 2);
            }
            self.known.insert(Arc::clone(&source), Arc::downgrade(schedule));
        }
        (source, schedule)
    }

    fn read(&self, source: &Source) -> Result<Schedule, Error> {
        // Another window of the same expression: what is large of it is shared as well.
        let first = Source { window: Window::default(), ..source.clone() };
        let of_the_same = self.known.range(first..).take_while(|(other, _)| other.is_like(source));
        let parsed = match of_the_same.map(|(_, schedule)| schedule).find_map(Weak::upgrade) {
            Some(known) => (*known).clone(),
            None => Schedule::parse(&source.expression, &source.settings(&self.fleet))?,
        };
        Ok(parsed.within(source.window))
    }
}

#[cfg(test)]
mod tests {
    use common::clock::Timestamp;
    use serde_json::json;

    use super::*;

    const ALWAYS: Window = Window { from: None, until: None };

    fn source(expression: &str, window: Window) -> Source {
        let job = json!({ "cronExpr": expression }).to_string();
        Source { window, ..Source::of(&Job::from_stored("a", job.as_bytes()).unwrap()) }
    }

    fn parse(schedules: &mut Schedules, expression: &str, window: Window) -> Arc<Schedule> {
        schedules.parse(source(expression, window)).1.unwrap()
    }

    #[test]
    fn equal_expressions_share_one_schedule_and_unused_ones_go() {
        let mut schedules = Schedules::new();
        let one = parse(&mut schedules, "*/5 * * * *", ALWAYS);
        assert!(Arc::ptr_eq(&one, &parse(&mut schedules, "*/5 * * * *", ALWAYS)));
        assert!(schedules.parse(source("61 * * * *", ALWAYS)).1.is_err());
        for second in 0..60 {
            for minute in 0..60 {
                drop(parse(&mut schedules, &format!("{second} {minute} * * * *"), ALWAYS));
            }
        }
        assert!(schedules.known.len() <= CLEAN_FROM, "{}", schedules.known.len());
        assert!(Arc::ptr_eq(&one, &parse(&mut schedules, "*/5 * * * *", ALWAYS)));
    }

    #[test]
    fn a_window_has_a_schedule_of_its_own_that_equal_ones_share() {
        let mut schedules = Schedules::new();
        let at = |ms| Some(Timestamp::from_ms(ms));
        let until = |ms| Window { from: None, until: at(ms) };
        let hour = 3_600_000;
        let always = parse(&mut schedules, "@hourly", ALWAYS);
        let ends = parse(&mut schedules, "@hourly", until(2 * hour));
        assert!(Arc::ptr_eq(&ends, &parse(&mut schedules, "@hourly", until(2 * hour))));
        assert!(Arc::ptr_eq(&always, &parse(&mut schedules, "@hourly", ALWAYS)));
        let after = Timestamp::from_ms(hour);
        assert_eq!((ends.next_after(after), always.next_after(after)), (None, at(2 * hour)));
        // What a window is cut from may itself have been cut.
        drop(always);
        let later = parse(&mut schedules, "@hourly", until(3 * hour));
        assert_eq!(later.next_after(after), at(2 * hour));
        drop((ends, later));
        assert_eq!(parse(&mut schedules, "@hourly", ALWAYS).next_after(after), at(2 * hour));
    }

    #[test]
    fn what_a_job_says_itself_comes_before_the_fleets_settings() {
        let mut schedules = Schedules::new();
        let job = |fields: serde_json::Value| Job::from_stored("a", fields.to_string().as_bytes()).unwrap();
        let noon = |zone| match zone {
            None => job(json!({"cronExpr": "0 12 * * *"})),
            Some(zone) => job(json!({"cronExpr": "0 12 * * *", "timezone": zone})),
        };
        let hour = |schedules: &mut Schedules, zone| {
            let schedule = schedules.parse(Source::of(&noon(zone))).1.unwrap();
            schedule.next_after(Timestamp::ZERO).unwrap().ms() / 3_600_000
        };
        let berlin = FleetSettings::from_submitted(&json!({"timezone": "Europe/Berlin"})).unwrap();
        assert_eq!((hour(&mut schedules, None), hour(&mut schedules, Some("Asia/Tokyo"))), (12, 3));
        assert!(schedules.take_settings(berlin.clone()));
        assert!(!schedules.take_settings(berlin));
        assert_eq!((hour(&mut schedules, None), hour(&mut schedules, Some("Asia/Tokyo"))), (11, 3));
    }

    #[test]
    fn a_value_from_the_name_is_not_shared() {
        let mut schedules = Schedules::new();
        let mut of = |name: &str| {
            let job = Job::from_stored(name, br#"{"cronExpr":"H * * * *"}"#).unwrap();
            schedules.parse(Source::of(&job)).1.unwrap()
        };
        let (one, other) = (of("a"), of("b"));
        assert!(!Arc::ptr_eq(&one, &other) && Arc::ptr_eq(&one, &of("a")));
    }
}
