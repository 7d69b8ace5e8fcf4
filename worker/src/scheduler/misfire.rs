//! What becomes of fires that nobody claimed in time: pure policy, and the pace of catching up.
//!
//! A job's mark only moves forward, so its fires are taken in order: what is let go and what is caught up on is read from the mark and the
//! clock alone, and no second cursor is kept. While an `all` job works its backlog off, its newer fires wait behind it.

use common::clock::Timestamp;
use common::domain::options::{Concurrency, JobOptions, Misfire};
use common::schedule::{Fires, Schedule};

use super::SKIP_COUNT_MAX;

/// A fire no later than this after its time, in ms, simply starts late; later it is a misfire, and its job's policy decides. It covers the
/// second worker's look ([`super::LOOK_AFTER_MS`]) with the time that its claim takes, so that a worker that dies costs lateness and no
/// fires.
pub const LATE_START_MAX_MS: i64 = 5_000;
/// However short its start deadline: a fire that is late by no more than this, in ms, starts. A busy machine's timer and a slow answer of
/// the store take some of it.
const START_GRACE_MS: i64 = 500;
/// Catching up takes turns of this length, in ms …
const PACE_MS: i64 = 100;
/// … with so many claims in each, for one worker: 200 a second, a sixth of what one starts cleanly. So whatever was missed, live fires find
/// the store and the processor free, and 10,000 jobs are caught up on within the default start deadline.
const PACE_CLAIMS: u32 = 20;

/// A job's policy.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Rule {
    /// What the job says; `None` = the fleet's settings do.
    own: Option<Misfire>,
    concurrency: Concurrency,
    misfire: Misfire,
    start_deadline_ms: i64,
}

/// What is next in turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Turn {
    /// The first fire runs, in time or a few seconds late.
    Run,
    /// The first fire was missed and runs all the same.
    CatchUp,
    /// These fires are let go, and then the next one is in turn.
    LetGo(Fires),
}

impl Rule {
    pub(super) fn of(options: &JobOptions, fleet: Option<Misfire>) -> Self {
        let start_deadline_ms = options.start_deadline_ms().max(START_GRACE_MS);
        let (own, concurrency) = (options.misfire, options.concurrency());
        Self { own, concurrency, misfire: Misfire::default(), start_deadline_ms }.under(fleet)
    }

    /// The same where the fleet's settings say this.
    pub(super) fn under(self, fleet: Option<Misfire>) -> Self {
        let misfire = match (self.own.or(fleet).unwrap_or_default(), self.concurrency) {
            // Each of them would be replaced by the next at once: the newest stands for all.
            (Misfire::All, Concurrency::Replace) => Misfire::Once,
            (misfire, _) => misfire,
        };
        Self { misfire, ..self }
    }

    /// A fire that is later than this, in ms, was missed.
    pub(super) fn late_max_ms(self) -> i64 {
        LATE_START_MAX_MS.min(self.start_deadline_ms)
    }

    /// A fire that is later than this, in ms, is never started.
    pub(super) fn start_deadline_ms(self) -> i64 {
        self.start_deadline_ms
    }

    /// A fire that cannot be claimed yet is let go when it is later than this, in ms.
    pub(super) fn waits_ms(self) -> i64 {
        match self.misfire {
            Misfire::Skip => self.late_max_ms(),
            Misfire::Once | Misfire::All => self.start_deadline_ms,
        }
    }

    /// A fire of before a run that was itself late waits for the end of that run, until it is later than this, in ms. Unless all are to
    /// run, that run stands for what it made wait: it started after their times.
    pub(super) fn waits_for_late_run_ms(self) -> i64 {
        if self.runs_all() { self.start_deadline_ms } else { self.late_max_ms() }
    }

    /// Each missed fire runs, and newer ones wait for their turn.
    pub(super) fn runs_all(self) -> bool {
        self.misfire == Misfire::All
    }

    /// What is in turn when fires up to `after` are decided and `due` is the next one. Bounded work, however long ago that was.
    pub(super) fn turn(self, schedule: &Schedule, after: Timestamp, due: Timestamp, now: Timestamp) -> Turn {
        let missed_until = now.plus_ms(-self.late_max_ms() - 1);
        if due > missed_until {
            return Turn::Run;
        }
        let let_go_until = match self.misfire {
            Misfire::Skip => missed_until,
            Misfire::All => now.plus_ms(-self.start_deadline_ms - 1),
            Misfire::Once => {
                let last = schedule.fires_between(after, missed_until, 0).map_or(due, |missed| missed.last);
                // A fire that simply starts late stands for those before it.
                let another = schedule.next_after(missed_until).is_some_and(|fire| fire <= now);
                if another || now.ms_since(last) > self.start_deadline_ms { last } else { last.plus_ms(-1) }
            }
        };
        schedule.fires_between(after, let_go_until, SKIP_COUNT_MAX).map_or(Turn::CatchUp, Turn::LetGo)
    }
}

/// How many claims of missed fires this worker makes: so many in each turn of time. Fires in time do not ask.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    since: Timestamp,
    taken: u32,
}

impl Pace {
    /// Whether one may be made now.
    pub(super) fn has_place(&mut self, now: Timestamp) -> bool {
        // A clock that was put back begins a new turn as well.
        if now < self.since || now >= self.next_turn() {
            *self = Self { since: now, taken: 0 };
        }
        self.taken < PACE_CLAIMS
    }

    /// One is made.
    pub(super) fn take_place(&mut self) {
        self.taken += 1;
    }

    /// When the next turn begins.
    pub(super) fn next_turn(&self) -> Timestamp {
        self.since.plus_ms(PACE_MS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_ms(1_800_000_000_000 + seconds * 1000)
    }

    /// What is done, in order, about a job's fires up to now, when each claim is won at once: `-from..to×count` let go, `+time` run in
    /// time or a little late, `!time` caught up on.
    fn done(misfire: Misfire, deadline: u32, cron: &str, from: i64, now: i64) -> String {
        let schedule = Schedule::parse(cron, &common::schedule::ScheduleSettings::default()).unwrap();
        let options = JobOptions {
            misfire: Some(misfire),
            start_deadline_seconds: Some(deadline),
            ..JobOptions::default()
        };
        let rule = Rule::of(&options, None);
        let (mut after, mut told) = (at(from), Vec::new());
        while let Some(due) = schedule.next_after(after).filter(|due| *due <= at(now)) {
            let seconds = |t: Timestamp| t.ms_since(at(0)) / 1000;
            let (said, until) = match rule.turn(&schedule, after, due, at(now)) {
                Turn::Run => (format!("+{}", seconds(due)), due),
                Turn::CatchUp => (format!("!{}", seconds(due)), due),
                Turn::LetGo(f) => {
                    assert_eq!(f.first, due, "taken in order");
                    let more = if f.more { "+" } else { "" };
                    (format!("-{}..{}×{}{more}", seconds(f.first), seconds(f.last), f.count), f.last)
                }
            };
            assert!(until > after, "goes on");
            after = until;
            told.push(said);
        }
        told.join(" ")
    }

    #[test]
    fn each_policy_does_with_missed_fires_what_it_says() {
        use Misfire::{All, Once, Skip};
        let minutely = "0 * * * * *";
        let hourly = "0 0 * * * *";
        for (name, misfire, deadline, cron, from, now, expected) in [
            ("nothing missed", Once, 60, minutely, 0, 59, ""),
            ("just late", Skip, 60, minutely, 0, 65, "+60"),
            ("a little later", Skip, 60, minutely, 0, 66, "-60..60×1"),
            ("later, once", Once, 60, minutely, 0, 66, "!60"),
            ("later, all", All, 60, minutely, 0, 66, "!60"),
            ("at the deadline", Once, 60, "0 */5 * * * *", 0, 360, "!300"),
            ("beyond the deadline", Once, 60, "0 */5 * * * *", 0, 361, "-300..300×1"),
            ("a live one stands for the missed", Once, 600, minutely, 0, 302, "-60..240×4 +300"),
            ("the last missed one runs", Once, 60, minutely, 0, 330, "-60..240×4 !300"),
            ("all of them", All, 600, minutely, 0, 302, "!60 !120 !180 !240 +300"),
            ("all within the deadline", All, 150, minutely, 0, 302, "-60..120×2 !180 !240 +300"),
            ("sleep of 8 h, skip", Skip, 60, hourly, 0, 28_830, "-3600..28800×8"),
            ("sleep of 8 h, once", Once, 60, hourly, 0, 28_830, "-3600..25200×7 !28800"),
            ("sleep of 8 h, once, too late", Once, 60, hourly, 0, 28_861, "-3600..28800×8"),
            ("sleep of 8 h, all of 2 h", All, 7200, hourly, 0, 28_830, "-3600..21600×6 !25200 !28800"),
            (
                "more than can be counted",
                Skip,
                60,
                "* * * * * *",
                0,
                5_000,
                "-1..4994×1000+ +4995 +4996 +4997 +4998 +4999 +5000",
            ),
            ("no deadline at all", All, 0, "*/10 * * * * *", 0, 21, "-10..20×2"),
            ("no deadline, but in time", All, 0, "*/10 * * * * *", 0, 20, "-10..10×1 +20"),
            ("a deadline within the late start", Once, 2, "* * * * * *", 0, 10, "-1..7×7 +8 +9 +10"),
        ] {
            assert_eq!(done(misfire, deadline, cron, from, now), expected, "{name}");
        }
    }

    #[test]
    fn the_pace_has_so_many_places_in_each_turn() {
        let mut pace = Pace::default();
        let mut take_all = |now| {
            let mut taken = 0;
            while pace.has_place(at(now)) {
                pace.take_place();
                taken += 1;
            }
            (taken, pace.next_turn())
        };
        assert_eq!(take_all(0), (PACE_CLAIMS, at(0).plus_ms(PACE_MS)));
        assert_eq!(take_all(0).0, 0);
        assert_eq!(take_all(1).0, PACE_CLAIMS);
        assert_eq!(take_all(-3600), (PACE_CLAIMS, at(-3600).plus_ms(PACE_MS)), "a clock that was put back");
    }
}
