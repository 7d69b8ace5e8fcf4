//! Whether this worker's wall clock can be trusted: it is compared with those of the other workers, which their registrations carry (design
//! P8). Pure: it is told what time it is, by the wall clock and by the boot clock, which nobody steps.
//!
//! What another clock says is kept against our boot clock. So a step of our own wall clock shows at once, without asking anybody, and the
//! samples outlive it, a suspend and the end of a session.

use std::collections::BTreeMap;

use common::clock::Timestamp;
use common::domain::worker::Sid;
use common::kv::Revision;

use crate::watches::{ClockSeen, Registered, Registration};

/// A clock further than this from the median of the fleet stops claiming, in ms.
const OFFSET_MAX_MS: i64 = 2_000;
/// And begins again only within this, in ms, so that a clock at the limit does not flap.
const OFFSET_GOOD_MS: i64 = 1_500;
/// Beyond this the worker says that it is not ready, in ms: its machine needs somebody.
pub(crate) const OFFSET_READY_MAX_MS: i64 = 5_000;
/// The wall clock was stepped when it moved by more than this against the boot clock between two looks, in ms.
const STEP_MS: i64 = 2_000;
/// The offset is computed anew when the wall clock has moved by this, in ms.
const MOVED_MS: i64 = 100;
/// So many workers answer one that asks for clocks: the middle one of three is good although one is not.
const ANSWERS: usize = 3;
/// They answer within this, in ms, or not at all: a round trip and a turn of their loop.
const PATIENCE_MS: i64 = 1_000;
/// Whoever is in doubt asks again after this, in ms.
const ASK_AGAIN_MS: i64 = 10_000;
/// A clock that was found wrong is believed again when nobody has contradicted it for so long, in ms: the others may just be coming back,
/// as after an outage of the store.
const ALONE_MS: i64 = 60_000;
/// A renewal may come so much later than announced, in ms.
const RENEWAL_LATE_MS: i64 = 15_000;

/// One moment by both clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    pub(crate) wall: Timestamp,
    /// Since some moment before, on the clock that goes on during suspend and is never stepped.
    pub(crate) boot_ms: i64,
}

/// What another worker's clock said.
#[derive(Clone, Copy, Debug)]
struct Sample {
    sid: Sid,
    clock: Timestamp,
    /// Of the registration that said it.
    revision: Revision,
    /// When it came, on our boot clock.
    came_at: i64,
    /// It came by a watch, and so about when it was written. One that a list brought may be as old as renewals are apart.
    live: bool,
    /// It cannot be older than this.
    age_max: i64,
    aside: bool,
}

/// How far a clock is from ours, in ms, between two bounds (positive: it says a later time).
#[derive(Clone, Copy, Debug)]
struct Distance {
    at_least: i64,
    at_most: i64,
    /// Its worker claims: in a draw it counts more than one that has just come, or was just stepped.
    trusted: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Trust {
    /// Not compared yet.
    New,
    Good,
    Off,
}

/// What came of a look, when there was something to look at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Verdict {
    /// Fires may be claimed by this clock.
    pub(crate) trusted: bool,
    /// Ours minus the median of the fleet, in ms; 0 as long as there is nothing to compare with.
    pub(crate) offset_ms: i64,
    /// Others should be asked what their clocks say.
    pub(crate) ask: bool,
    /// Our wall clock was stepped by so much, in ms.
    pub(crate) stepped_ms: Option<i64>,
}

/// What is known of the fleet's clocks.
#[derive(Debug)]
pub(crate) struct Clocks {
    trust: Trust,
    others: BTreeMap<String, Sample>,
    /// Since when we are registered ourselves and know who else is, on the boot clock.
    among_them_since: Option<i64>,
    /// Our own registration: what was sent when, and became which revision. A later one is younger.
    own: Option<(i64, Revision)>,
    asked_at: Option<i64>,
    alone_since: Option<i64>,
    /// Stepped, and not compared since.
    stepped: bool,
    /// Wall clock minus boot clock at the last look, and when the offset was computed.
    shift: Option<i64>,
    computed_at_shift: i64,
    news: bool,
    look_again_at: i64,
}

impl Clocks {
    pub(crate) fn new() -> Self {
        Self {
            trust: Trust::New,
            others: BTreeMap::new(),
            among_them_since: None,
            own: None,
            asked_at: None,
            alone_since: None,
            stepped: false,
            shift: None,
            computed_at_shift: 0,
            news: true,
            look_again_at: 0,
        }
    }

    pub(crate) fn trusted(&self) -> bool {
        self.trust == Trust::Good
    }

    /// It was compared, and stops claiming.
    pub(crate) fn is_wrong(&self) -> bool {
        self.trust == Trust::Off
    }

    /// Takes all registrations. As long as the one of our own session is not among them, they say nothing: they may be of before.
    pub(crate) fn take(
        &mut self,
        now: Moment,
        own: Option<Sid>,
        registered: &BTreeMap<String, Registration>,
    ) {
        let is_own =
            |registration: &Registration| own.is_some_and(|sid| registration.who == Registered::Ours(sid));
        if !registered.values().any(is_own) {
            self.among_them_since = None;
            return;
        }
        self.among_them_since.get_or_insert(now.boot_ms);
        self.news = true;
        self.others.retain(|id, _| registered.contains_key(id));
        for (id, registration) in registered.iter().filter(|(_, registration)| !is_own(registration)) {
            let (Registered::Ours(sid), Some(seen)) = (registration.who, registration.clock) else {
                self.others.remove(id); // a seed worker, or one of a version that does not renew its registration
                continue;
            };
            let is_known = |known: &Sample| {
                let same = known.revision == registration.revision || !seen.live; // listed again
                same && (known.sid, known.clock) == (sid, seen.says)
            };
            if !self.others.get(id).is_some_and(is_known) {
                let sample = self.sample(now, sid, registration.revision, &seen);
                self.others.insert(id.clone(), sample);
            }
        }
        let own_id = registered.iter().find(|(_, registration)| is_own(registration)).map(|(id, _)| id);
        if let Some(id) = own_id {
            self.others.remove(id);
        }
    }

    fn sample(&self, now: Moment, sid: Sid, revision: Revision, seen: &ClockSeen) -> Sample {
        let came_at = now.boot_ms - i64::try_from(seen.came.elapsed().as_millis()).unwrap_or(i64::MAX);
        let renewed_within = i64::try_from(seen.renewed_every.as_millis()).unwrap_or(i64::MAX);
        let mut sample = Sample {
            sid,
            clock: seen.says,
            revision,
            came_at,
            live: seen.live,
            age_max: renewed_within.saturating_add(RENEWAL_LATE_MS),
            aside: seen.aside,
        };
        sample.is_younger_than(self.own);
        sample
    }

    /// Our own registration, sent at `sent` on the boot clock, is in the store at this revision: what has a higher one was written later.
    pub(crate) fn registered(&mut self, sent: i64, revision: Revision) {
        self.own = Some((sent, revision));
        for sample in self.others.values_mut() {
            sample.is_younger_than(self.own);
        }
        self.news = true;
    }

    /// Another store's revisions say nothing about this one's.
    pub(crate) fn forget_revisions(&mut self) {
        self.own = None;
        self.among_them_since = None;
        for sample in self.others.values_mut() {
            sample.revision = 0;
        }
    }

    /// Compares. Asked at every turn; `None` when nothing has changed since.
    pub(crate) fn look(&mut self, now: Moment) -> Option<Verdict> {
        let shift = now.wall.ms() - now.boot_ms;
        let moved = shift - self.shift.replace(shift).unwrap_or(shift);
        let stepped_ms = (moved.abs() > STEP_MS).then_some(moved);
        self.stepped |= stepped_ms.is_some();
        let due = self.news
            || stepped_ms.is_some()
            || (shift - self.computed_at_shift).abs() > MOVED_MS
            || now.boot_ms >= self.look_again_at;
        if !due {
            return None;
        }
        (self.news, self.computed_at_shift, self.look_again_at) = (false, shift, i64::MAX);
        let (offset_ms, ask) = match self.among_them_since {
            None => (self.ahead(shift).map_or(0, |(_, most)| most), false),
            Some(_) if self.others.is_empty() => {
                self.be_alone(now.boot_ms);
                (0, false)
            }
            Some(since) => self.compare(now.boot_ms, shift, since),
        };
        Some(Verdict { trusted: self.trusted(), offset_ms, ask, stepped_ms })
    }

    /// Nobody is there to compare with: the clock is what it is.
    fn be_alone(&mut self, boot_ms: i64) {
        self.stepped = false;
        let since = *self.alone_since.get_or_insert(boot_ms);
        if self.trust != Trust::Off || boot_ms - since >= ALONE_MS {
            self.trust = Trust::Good;
        } else {
            self.look_again_at = since + ALONE_MS;
        }
    }

    fn compare(&mut self, boot_ms: i64, shift: i64, since: i64) -> (i64, bool) {
        self.alone_since = None;
        let Some((at_least, at_most)) = self.ahead(shift) else { return (0, false) };
        let established = self.trust == Trust::Good && !self.stepped;
        let limit = if established { OFFSET_MAX_MS } else { OFFSET_GOOD_MS };
        // Samples are as if written when they came. Were they written earlier, then we are less ahead than it seems.
        let fine = at_most.abs() <= limit;
        let off = at_most < -limit || at_least > limit;
        let mut ask = false;
        match self.trust {
            Trust::New => {
                let waits_until = since + PATIENCE_MS;
                if boot_ms < waits_until && !self.is_answered(since) {
                    self.look_again_at = waits_until;
                } else {
                    self.trust = if off { Trust::Off } else { Trust::Good };
                    self.stepped = false;
                }
            }
            Trust::Good if fine => self.stepped = false,
            Trust::Good if off || self.stepped => {
                self.trust = Trust::Off;
                (ask, self.asked_at) = (true, Some(boot_ms));
            }
            Trust::Good => {
                // In doubt: a sample was late on its way, or we are ahead. Whoever answers now tells.
                let again_at = self.asked_at.map_or(boot_ms, |asked_at| asked_at + ASK_AGAIN_MS);
                if boot_ms >= again_at {
                    (ask, self.asked_at) = (true, Some(boot_ms));
                }
                self.look_again_at = self.asked_at.unwrap_or(boot_ms) + ASK_AGAIN_MS;
            }
            Trust::Off => {
                self.stepped = false;
                if fine {
                    self.trust = Trust::Good;
                }
            }
        }
        (at_most, ask)
    }

    /// Everyone who answers has answered since.
    fn is_answered(&self, since: i64) -> bool {
        let answers = self.others.values().filter(|sample| sample.live && sample.came_at >= since).count();
        answers >= ANSWERS.min(self.others.len())
    }

    /// How far we are ahead of the median of the fleet, in ms: at least, at most.
    fn ahead(&self, shift: i64) -> Option<(i64, i64)> {
        let enough = ANSWERS.min(self.others.len());
        let of = |good: fn(&Sample) -> bool| {
            let some: Vec<&Sample> = self.others.values().filter(|sample| good(sample)).collect();
            (some.len() >= enough).then_some(some)
        };
        // The best there are: proven to be young, else those that came as they were written, else all.
        let samples = of(|sample| sample.age_max <= PATIENCE_MS)
            .or_else(|| of(|sample| sample.live))
            .or_else(|| of(|_| true))?;
        let distance = |sample: &&Sample| {
            let at_least = sample.clock.ms() - sample.came_at - shift;
            Distance { at_least, at_most: at_least.saturating_add(sample.age_max), trusted: !sample.aside }
        };
        let mut all: Vec<Distance> = samples.iter().map(distance).collect();
        if all.is_empty() {
            return None;
        }
        all.push(Distance { at_least: 0, at_most: 0, trusted: self.trusted() && !self.stepped });
        let low = median(&mut all, |distance| distance.at_least);
        let high = median(&mut all, |distance| distance.at_most);
        Some((-high, -low))
    }
}

impl Sample {
    fn is_younger_than(&mut self, own: Option<(i64, Revision)>) {
        if let Some((sent, revision)) = own
            && self.revision > revision
        {
            self.age_max = self.age_max.min((self.came_at - sent).max(0));
        }
    }
}

/// The middle one. Of the two middle ones of an even number, one whose worker claims wins against one that stands aside: who comes, or was
/// stepped, must not stop who was there. Else the lower one: a clock that is behind starts fires late, one that is ahead starts them early
/// and moves marks past fires whose time has not come.
fn median(all: &mut [Distance], of: fn(&Distance) -> i64) -> i64 {
    all.sort_by_key(of);
    let (lower, upper) = (&all[(all.len() - 1) / 2], &all[all.len() / 2]);
    of(if upper.trusted && !lower.trusted { upper } else { lower })
}

/// Whether `me` is one of those that answer a session that asks what the clocks say: the first ones in an order that each session has of
/// its own (as that of a slot, so that not the whole fleet answers).
pub(crate) fn answers<'a>(me: &str, asker: Sid, others: impl Iterator<Item = &'a str>) -> bool {
    let place = |id: &str| xxhash_rust::xxh3::xxh3_64_with_seed(id.as_bytes(), asker.0.unsigned_abs());
    let mine = (place(me), me);
    others.filter(|id| *id != me && (place(id), *id) < mine).count() < ANSWERS
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::clock::Stopwatch;
    use common::domain::options::Labels;
    use std::time::Duration;

    const YEAR: i64 = 365 * 24 * 3600 * 1000;
    /// True time at which the boot clock began, in ms.
    const START: i64 = 1_800_000_000_000;
    const ME: Sid = Sid(1);

    /// A worker as the others see it: its name, how far its clock is off, and whether it stands aside.
    type Other = (&'static str, i64, bool);

    /// A worker whose clock is looked at, in a fleet whose clocks are known.
    struct Fleet {
        clocks: Clocks,
        /// True time since the start.
        now: i64,
        /// How far this worker's wall clock is off.
        off: i64,
        revision: Revision,
        registered: BTreeMap<String, Registration>,
    }

    impl Fleet {
        /// A worker that comes: it lists the registrations of others, written `age` before, and its own follows.
        fn joined(off: i64, age: i64, others: &[Other]) -> Self {
            let mut fleet =
                Self { clocks: Clocks::new(), now: 0, off, revision: 100, registered: BTreeMap::new() };
            for other in others {
                fleet.put(*other, age, false);
            }
            fleet.register();
            fleet
        }

        /// A worker that was found right, and then `others` with these clocks.
        fn established(others: &[Other]) -> Self {
            let mut fleet = Self::joined(0, 0, &[]);
            fleet.pass(60_000);
            fleet.renew(others, 0);
            fleet
        }

        fn moment(&self) -> Moment {
            Moment { wall: Timestamp::from_ms(START + self.now + self.off), boot_ms: self.now }
        }

        /// What another registered `age` ago comes now; by the watch, or in a list.
        fn put(&mut self, (id, off, aside): Other, age: i64, live: bool) {
            self.revision += 1;
            let clock = ClockSeen {
                says: Timestamp::from_ms(START + self.now - age + off),
                came: Stopwatch::start(),
                live,
                renewed_every: Duration::from_secs(60),
                aside,
                asks: false,
            };
            let sid = Sid(i64::from(id.as_bytes()[0]) << 8);
            let who = Registered::Ours(sid);
            let (labels, revision) = (Labels::new(), self.revision);
            let registration = Registration { who, labels, revision, clock: Some(clock) };
            self.registered.insert(id.to_owned(), registration);
        }

        fn renew(&mut self, others: &[Other], age: i64) -> Option<Verdict> {
            for other in others {
                self.put(*other, age, true);
            }
            self.take()
        }

        /// Our own registration is put (again).
        fn register(&mut self) {
            self.revision += 1;
            let registration = Registration {
                who: Registered::Ours(ME),
                labels: Labels::new(),
                revision: self.revision,
                clock: None,
            };
            self.registered.insert("me".to_owned(), registration);
            self.clocks.registered(self.now, self.revision);
        }

        fn take(&mut self) -> Option<Verdict> {
            let moment = self.moment();
            self.clocks.take(moment, Some(ME), &self.registered);
            let verdict = self.clocks.look(moment)?;
            // Since a registration came some real milliseconds have passed on a busy machine.
            Some(Verdict { offset_ms: (verdict.offset_ms + 50).div_euclid(100) * 100, ..verdict })
        }

        fn pass(&mut self, ms: i64) -> Option<Verdict> {
            self.now += ms;
            self.take()
        }
    }

    #[test]
    fn a_worker_that_comes_is_believed_by_what_others_answer() {
        // (its clock, theirs, believed, offset)
        let good: &[Other] = &[("a", 0, false), ("b", 0, false)];
        let cases: [(&str, i64, &[Other], bool, i64); 14] = [
            ("right", 0, good, true, 0),
            ("a bit ahead", 1_400, good, true, 1_400),
            ("ahead by more than begins", 1_900, good, false, 1_900),
            ("10 s ahead", 10_000, good, false, 10_000),
            ("10 s behind", -10_000, good, false, -10_000),
            ("a year ahead", YEAR, good, false, YEAR),
            ("a year behind", -YEAR, good, false, -YEAR),
            ("beside one that is wrong", 0, &[("a", 0, false), ("b", 0, false), ("c", YEAR, true)], true, 0),
            (
                "wrong as one of the others",
                YEAR,
                &[("a", 0, false), ("b", 0, false), ("c", YEAR, true)],
                false,
                YEAR,
            ),
            (
                "behind the only one there: who was there first counts",
                -YEAR,
                &[("a", 0, false)],
                false,
                -YEAR,
            ),
            ("ahead of the only one there", YEAR, &[("a", 0, false)], false, YEAR),
            ("both come: the earlier clock", 0, &[("a", YEAR, true)], true, 0),
            ("both come: the later clock", 0, &[("a", -YEAR, true)], false, YEAR),
            (
                "two right ones against the wrong one that was there",
                0,
                &[("a", YEAR, false), ("b", 0, true)],
                true,
                0,
            ),
        ];
        for (what, off, others, believed, offset_ms) in cases {
            let mut fleet = Fleet::joined(off, 30_000, others);
            let before = fleet.take().unwrap();
            assert!(!before.trusted, "{what}: lists are old");
            let verdict = fleet.renew(others, 0).unwrap();
            assert_eq!((verdict.trusted, verdict.offset_ms), (believed, offset_ms), "{what}");
        }
    }

    #[test]
    fn a_worker_to_which_nobody_answers_goes_by_what_the_list_shows() {
        for (off, believed) in [(0, true), (30_000, true), (YEAR, false), (-YEAR, false), (-30_000, false)] {
            let mut fleet = Fleet::joined(off, 0, &[("a", 0, false)]);
            assert!(!fleet.take().unwrap().trusted);
            assert!(!fleet.pass(PATIENCE_MS - 1).unwrap().trusted, "it waits");
            assert_eq!(
                fleet.pass(1).unwrap().trusted,
                believed,
                "{off}: up to a minute may be the list's age"
            );
        }
    }

    #[test]
    fn who_is_alone_is_right_unless_it_was_just_found_wrong() {
        assert!(Fleet::joined(YEAR, 0, &[]).take().unwrap().trusted);
        let mut fleet = Fleet::joined(YEAR, 0, &[("a", 0, false)]);
        assert!(!fleet.renew(&[("a", 0, false)], 0).unwrap().trusted);
        fleet.registered.remove("a");
        assert!(!fleet.take().unwrap().trusted, "the other may be coming back");
        assert!(!fleet.pass(ALONE_MS - 1).unwrap().trusted);
        assert!(fleet.pass(1).unwrap().trusted);
    }

    #[test]
    fn registrations_of_before_our_own_session_say_nothing() {
        let mut fleet = Fleet::joined(0, 0, &[]);
        fleet.registered.remove("me");
        assert!(!fleet.take().unwrap().trusted, "an empty list is no fleet of one");
    }

    #[test]
    fn a_clock_that_is_stepped_is_noticed_at_the_next_look_and_so_is_its_mending() {
        let good: &[Other] = &[("a", 0, false), ("b", 0, false)];
        for step in [60_000, -60_000, 2_500, -2_500, YEAR, -YEAR] {
            let mut fleet = Fleet::established(good);
            assert!(fleet.pass(1_000).is_none_or(|verdict| verdict.trusted));
            fleet.off = step;
            let verdict = fleet.pass(1).unwrap();
            assert_eq!(
                verdict,
                Verdict { trusted: false, offset_ms: step, ask: true, stepped_ms: Some(step) }
            );
            fleet.off = 0;
            let verdict = fleet.pass(1).unwrap();
            assert_eq!(verdict, Verdict { trusted: true, offset_ms: 0, ask: false, stepped_ms: Some(-step) });
        }
    }

    #[test]
    fn of_two_the_one_that_was_stepped_stops_also_when_it_is_the_earlier_now() {
        for step in [YEAR, -YEAR] {
            let mut fleet = Fleet::established(&[("a", 0, false)]);
            fleet.off = step;
            assert!(!fleet.pass(1).unwrap().trusted, "{step}");
            // The other one sees it stand aside.
            let mut other = Fleet::established(&[("a", 0, false)]);
            let verdict = other.renew(&[("a", step, true)], 0).unwrap();
            assert!(verdict.trusted, "{step}");
        }
    }

    #[test]
    fn of_two_that_drift_apart_the_later_stops() {
        let (later, earlier) = (&[("a", -3_000, false)], &[("a", 3_000, false)]);
        let mut fleet = Fleet::established(&[("a", 0, false)]);
        assert!(fleet.renew(earlier, 0).unwrap().trusted);
        let verdict = fleet.renew(later, 0).unwrap();
        assert_eq!(
            (verdict.trusted, verdict.ask),
            (true, true),
            "what came may have been long on its way: asked first"
        );
        fleet.register();
        let verdict = fleet.renew(later, 0).unwrap();
        assert_eq!((verdict.trusted, verdict.offset_ms), (false, 3_000));
    }

    #[test]
    fn when_all_clocks_are_stepped_together_all_go_on_once_they_have_asked() {
        let mut fleet = Fleet::established(&[("a", 0, false), ("b", 0, false)]);
        fleet.off = 3_600_000;
        let verdict = fleet.pass(1).unwrap();
        assert_eq!((verdict.trusted, verdict.ask), (false, true));
        fleet.register();
        let verdict = fleet.renew(&[("a", 3_600_000, true), ("b", 3_600_000, true)], 0).unwrap();
        assert_eq!((verdict.trusted, verdict.offset_ms), (true, 0));
    }

    #[test]
    fn what_was_long_on_its_way_makes_doubt_and_no_stop() {
        let others: &[Other] = &[("a", 0, false)];
        let mut fleet = Fleet::established(others);
        fleet.register();
        fleet.pass(30_000);
        let verdict = fleet.renew(others, 20_000).unwrap();
        assert_eq!((verdict.trusted, verdict.ask), (true, true));
        assert!(fleet.pass(ASK_AGAIN_MS - 1).is_none_or(|verdict| !verdict.ask), "not asked for ever");
        fleet.register();
        let verdict = fleet.renew(others, 0).unwrap();
        assert_eq!((verdict.trusted, verdict.offset_ms, verdict.ask), (true, 0, false));
    }

    #[test]
    fn a_suspend_is_no_step_and_a_slow_correction_neither() {
        let mut fleet = Fleet::established(&[("a", 0, false)]);
        assert!(
            fleet.pass(8 * 3_600_000).is_none_or(|verdict| verdict.trusted && verdict.stepped_ms.is_none())
        );
        for _ in 0..100 {
            fleet.off += 15;
            assert!(fleet.pass(1_000).is_none_or(|verdict| verdict.trusted && verdict.stepped_ms.is_none()));
        }
    }

    #[test]
    fn workers_that_do_not_renew_their_registration_do_not_count() {
        let mut fleet = Fleet::joined(0, 0, &[("a", YEAR, false)]);
        fleet.registered.get_mut("a").unwrap().clock = None;
        assert!(fleet.take().unwrap().trusted);
    }

    #[test]
    fn three_workers_answer_whoever_asks_and_never_itself() {
        let ids: Vec<String> = (0..20).map(|n| format!("10.0.0.{n}")).collect();
        for asker in 1..200 {
            let answer = |id: &&String| answers(id, Sid(asker), ids.iter().map(String::as_str));
            assert_eq!(ids.iter().filter(answer).count(), ANSWERS);
        }
        assert!(answers("a", Sid(1), ["a", "b"].into_iter()));
    }
}
