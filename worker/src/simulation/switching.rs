//! Jobs that are switched off and on, and that have fires in a stretch of time alone. In every other world, drawn by a dice of its own: the
//! worlds without it stay what they were.

use common::domain::enabling::switched;
use common::domain::job::{Job, JobName};
use common::domain::mark::Mark;
use common::keys;
use common::kv::Op;

use super::dice::Dice;
use super::faults::Fault;
use super::mutants::Mutant;
use super::settings;
use super::world::{HEALED_MS, Item, START_MS, World, job_names};

/// Apart from the seed's other dice.
const DICE: u64 = 0x5eed_0f5e_e0ff;

/// The dice of a world in which jobs are switched.
pub(super) fn dice(seed: u64) -> Option<Dice> {
    seed.is_multiple_of(2).then(|| Dice::new(seed ^ DICE))
}

impl World {
    pub(super) fn draw_switching(&mut self) {
        let Some(mut dice) = self.switching.take() else { return };
        for _ in 0..dice.between(2, 8) {
            let at = dice.between(800, HEALED_MS - 500);
            let fault =
                *dice.one_of(&[Fault::SwitchOff, Fault::SwitchOff, Fault::SwitchOn, Fault::SwitchBack]);
            self.push(at, Item::Fault(fault, 0));
        }
        self.switching = Some(dice);
    }

    /// As the functions do it, or other hands.
    pub(super) fn switch(&mut self, fault: Fault) {
        let Some(mut dice) = self.switching.take() else { return };
        let name = dice.one_of(&job_names()).clone();
        let by_hand = dice.percent(40);
        match fault {
            Fault::SwitchOn => self.put_switched(&name, true, by_hand),
            _ => self.put_switched(&name, false, by_hand),
        }
        if fault == Fault::SwitchBack {
            let again = self.now + dice.between(1, 3_000);
            self.push(again, Item::SwitchedOn(name, by_hand));
        }
        self.switching = Some(dice);
    }

    /// Most of the jobs that are off, so that not all is silent in the end.
    pub(super) fn switch_all_on(&mut self) {
        let Some(mut dice) = self.switching.take() else { return };
        for name in job_names() {
            if dice.percent(80) {
                self.put_switched(&name, true, dice.percent(50));
            }
        }
        self.switching = Some(dice);
    }

    pub(super) fn put_switched(&mut self, name: &JobName, on: bool, by_hand: bool) {
        let Some(stored) = self.store.get(keys::job(name)) else { return };
        let Some(value) = switched(&stored.value, on).unwrap() else { return };
        let job = Job::from_stored(name.as_str(), &value).unwrap();
        let before = self.store.get(keys::fired(name)).map(|pair| Mark::decode(&pair.value).unwrap());
        let mut then = vec![Op::put(keys::job(name), value)];
        if !by_hand {
            let base = match &before {
                Some(before) if self.mutant == Mutant::EnablesWithoutBase => before.base,
                _ => self.time(),
            };
            let mark = Mark::based(before.as_ref(), base, job.schedule_hash(&settings::fleet(&self.store)));
            then.push(Op::put(keys::fired(name), mark.encode()));
        }
        self.note(|| format!("{name} is switched {}", if on { "on" } else { "off" }));
        self.write(then);
    }

    /// A new definition may be off, or have fires for some time alone.
    pub(super) fn with_switches(&mut self, job: &mut serde_json::Value) {
        let Some(dice) = &mut self.switching else { return };
        if dice.percent(10) {
            job["enabled"] = false.into();
        }
        let mut moment = |field: &str, from: i64, to: i64| {
            if dice.percent(15) {
                let at = common::clock::Timestamp::from_ms(START_MS + self.now + dice.between(from, to));
                job[field] = at.rfc3339().into();
            }
        };
        moment("startAt", -3_000, 9_000);
        moment("endAt", 1_000, 60_000);
    }
}
