//! Which survivor closes what a session has left behind, and when: one after the other, and the next only when nothing gets done.
//!
//! Every survivor may close it, at any time, and all at once (design P3): that costs the stores of a large fleet as many times the work as it
//! has workers, just when one has died. The turns are a matter of cost alone; no promise rests on them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use common::clock::Stopwatch;
use common::domain::worker::Sid;

/// Whose turn is later waits so long more for each who comes before, while nothing gets done. A batch of records may take a slow store longer;
/// then two do the same work, which is harmless.
const TURN: Duration = Duration::from_secs(5);
/// And no longer than this: most of those who come before may be dead, too.
const TURNS_MAX: u32 = 6;

/// What one worker knows of the sessions that have left something behind.
#[derive(Debug)]
pub(crate) struct Turns {
    started: Stopwatch,
    /// The last look, by `started`.
    looked: Duration,
    gone: BTreeMap<Sid, Left>,
}

/// What is left of a session.
#[derive(Debug)]
struct Left {
    keys: usize,
    /// Since when it is so much, by `Turns::started`.
    since: Duration,
    /// How long it must be, before it is this worker's turn.
    wait: Duration,
}

impl Turns {
    /// Of a worker that has seen none yet.
    pub(crate) fn new() -> Self {
        Self { started: Stopwatch::start(), looked: Duration::ZERO, gone: BTreeMap::new() }
    }

    /// Takes note of how many keys each session that is gone has left, and answers those whose turn it is. `alive` are the sessions that are
    /// there; `own` are this worker's, one of which is among them, or none while it has none.
    pub(crate) fn look(
        &mut self,
        left: &BTreeMap<Sid, usize>,
        alive: &BTreeSet<Sid>,
        own: &BTreeSet<Sid>,
    ) -> Vec<Sid> {
        self.look_at(self.started.elapsed(), left, alive, own)
    }

    fn look_at(
        &mut self,
        now: Duration,
        left: &BTreeMap<Sid, usize>,
        alive: &BTreeSet<Sid>,
        own: &BTreeSet<Sid>,
    ) -> Vec<Sid> {
        self.looked = now;
        let present = own.intersection(alive).next().copied();
        self.gone.retain(|sid, _| left.contains_key(sid));
        for (&sid, &keys) in left {
            let wait = TURN * before(sid, present, alive).min(TURNS_MAX);
            match self.gone.get_mut(&sid) {
                Some(known) if known.keys == keys => known.wait = wait,
                _new_or_fewer => drop(self.gone.insert(sid, Left { keys, since: now, wait })),
            }
        }
        self.gone.iter().filter(|(_, left)| left.turn() <= now).map(|(&sid, _)| sid).collect()
    }

    /// How long until the next turn of those that the last look did not answer, if there is one: none when it came since.
    pub(crate) fn next(&self) -> Option<Duration> {
        self.next_at(self.started.elapsed())
    }

    fn next_at(&self, now: Duration) -> Option<Duration> {
        let turns = self.gone.values().map(Left::turn).filter(|turn| *turn > self.looked);
        turns.min().map(|turn| turn.saturating_sub(now))
    }
}

impl Left {
    /// When it is this worker's turn, by `Turns::started`.
    fn turn(&self) -> Duration {
        self.since + self.wait
    }
}

/// How many sessions come between one that is gone and this worker's, in a ring of all. Who has no session comes last.
fn before(gone: Sid, present: Option<Sid>, alive: &BTreeSet<Sid>) -> u32 {
    let Some(present) = present else { return TURNS_MAX };
    let between = match gone < present {
        true => alive.range(gone..present).count(),
        false => alive.range(gone..).count() + alive.range(..present).count(),
    };
    u32::try_from(between).unwrap_or(TURNS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALIVE: [Sid; 4] = [Sid(10), Sid(20), Sid(30), Sid(40)];

    fn looks(turns: &mut Turns, own: &[Sid], seconds: u64, left: &[(Sid, usize)]) -> Vec<Sid> {
        let (alive, own) = (ALIVE.into(), own.iter().copied().collect());
        turns.look_at(Duration::from_secs(seconds), &left.iter().copied().collect(), &alive, &own)
    }

    #[test]
    fn the_next_in_the_ring_closes_at_once() {
        for (gone, next) in [(25, 30), (5, 10), (45, 10), (39, 40)] {
            let gone = Sid(gone);
            let at_once: Vec<Sid> = ALIVE
                .into_iter()
                .filter(|own| !looks(&mut Turns::new(), &[*own], 0, &[(gone, 3)]).is_empty())
                .collect();
            assert_eq!(at_once, [Sid(next)], "after {gone:?}");
        }
    }

    #[test]
    fn who_comes_later_does_it_when_nothing_gets_done() {
        let mut turns = Turns::new();
        let gone = Sid(5); // 10 is first, and 20 second
        let own = [Sid(30), Sid(4)]; // the present session, and one of runs that are on their way from it
        assert_eq!(looks(&mut turns, &own, 0, &[(gone, 3)]), []);
        assert_eq!(turns.next_at(Duration::from_secs(4)), Some(Duration::from_secs(6)));
        assert_eq!(looks(&mut turns, &own, 9, &[(gone, 2)]), [], "somebody is at it");
        assert_eq!(looks(&mut turns, &own, 18, &[(gone, 2)]), []);
        assert_eq!(looks(&mut turns, &own, 19, &[(gone, 2)]), [gone]);
        assert_eq!(looks(&mut turns, &own, 20, &[(gone, 2)]), [gone], "it goes on");
        assert_eq!(turns.next_at(Duration::from_secs(20)), None);
        assert_eq!(looks(&mut turns, &own, 21, &[]), []);
        assert_eq!(looks(&mut turns, &own, 22, &[(gone, 2)]), [], "nothing is remembered of what is done");
    }

    #[test]
    fn a_turn_that_comes_while_another_session_is_closed_is_not_missed() {
        let mut turns = Turns::new();
        // 20 is next after 15, and second after 5.
        assert_eq!(looks(&mut turns, &[Sid(20)], 0, &[(Sid(5), 1), (Sid(15), 1)]), [Sid(15)]);
        assert_eq!(turns.next_at(Duration::from_secs(6)), Some(Duration::ZERO));
        assert_eq!(looks(&mut turns, &[Sid(20)], 6, &[(Sid(5), 1)]), [Sid(5)]);
        assert_eq!(turns.next_at(Duration::from_secs(6)), None, "it had its turn");
    }

    #[test]
    fn who_has_no_session_comes_last() {
        let mut turns = Turns::new();
        assert_eq!(looks(&mut turns, &[Sid(4)], 0, &[(Sid(5), 1)]), []);
        assert_eq!(turns.next_at(Duration::ZERO), Some(TURN * TURNS_MAX));
        assert_eq!(looks(&mut turns, &[], 30, &[(Sid(5), 1)]), [Sid(5)]);
    }
}
