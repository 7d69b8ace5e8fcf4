//! Jobs that run after others (`after`), in some worlds, drawn by a dice of its own: the worlds without it stay what they were.
//!
//! What is promised: the transaction that writes into a run's open key that it is over tells each job that waits for it, if its command has
//! succeeded. Told means: if all others that it waits for have succeeded, its run is asked for and nothing is noted any more; else a note is
//! put, and nothing else. Nobody else asks for such a run or notes anything. That what is asked for runs once is held as for all requests.

use common::domain::job::{Job, JobName};
use common::domain::mark::Mark;
use common::domain::request::Request;
use common::domain::run::{OpenRuns, RunId, Trigger};
use common::domain::worker::Sid;
use common::keys;
use common::kv::{Change, Key, Op, Pair, Span};

use super::dice::Dice;
use super::faults::Fault;
use super::invariants::{Invariants, lives};
use super::settings;
use super::store::Store;
use super::world::{HEALED_MS, Item, World};

/// Apart from the seed's other dice.
const DICE: u64 = 0x5eed_af7e_0000;
/// Those that wait, and for whom.
const DEPENDENTS: [(&str, &[&str]); 3] = [("d", &["a"]), ("e", &["a", "b"]), ("f", &["d"])];
/// By then every worker knows of a job that was put: longer than any line is cut, or any worker frozen.
const KNOWN_AFTER_MS: i64 = 20_000;

/// The dice of a world in which jobs run after others. None of the seeds that have found something is one.
pub(super) fn dice(seed: u64) -> Option<Dice> {
    [4, 5].contains(&(seed % 11)).then(|| Dice::new(seed ^ DICE))
}

fn names() -> Vec<JobName> {
    DEPENDENTS.iter().map(|(name, _)| JobName::parse(name).unwrap()).collect()
}

impl World {
    pub(super) fn draw_succession(&mut self) {
        let Some(mut dice) = self.succession.take() else { return };
        for _ in 0..dice.between(0, 6) {
            let at = dice.between(800, HEALED_MS - 500);
            self.push(at, Item::Fault(Fault::Dependent, 0));
        }
        self.succession = Some(dice);
    }

    /// Those that are not there.
    pub(super) fn put_dependents(&mut self) {
        for name in names() {
            if self.store.get(keys::job(&name)).is_none() {
                self.put_dependent(&name);
            }
        }
    }

    pub(super) fn change_dependent(&mut self) {
        let Some(mut dice) = self.succession.take() else { return };
        let name = dice.one_of(&names()).clone();
        let (deletes, by_hand, back_in) = (dice.percent(40), dice.percent(40), dice.between(1, 4_000));
        self.succession = Some(dice);
        if !deletes {
            return self.put_dependent(&name);
        }
        let mut then = vec![Op::delete(keys::job(&name))];
        then.extend((!by_hand).then(|| Op::Delete(Span::prefix(keys::after_of(&name)))));
        self.write(then);
        self.push(self.now + back_in, Item::DependentBack(name));
    }

    /// By the function, or by other hands. It always waits for the same jobs.
    pub(super) fn put_dependent(&mut self, name: &JobName) {
        let Some(mut dice) = self.succession.take() else { return };
        let (_, after) = DEPENDENTS.iter().find(|(one, _)| *one == name.as_str()).unwrap();
        let command = format!("true {}", dice.below(1000));
        let mut job = serde_json::json!({ "name": name.as_str(), "command": command, "after": after });
        if self.faulty() && dice.percent(20) {
            job["enabled"] = false.into();
        }
        if dice.percent(30) {
            job["concurrency"] = (*dice.one_of(&["allow", "replace"])).into();
        }
        if dice.percent(30) {
            job["retry"] = serde_json::json!({ "attempts": 2, "backoff": 0, "onLost": dice.percent(50) });
        }
        let by_hand = dice.percent(40);
        self.succession = Some(dice);
        let value = job.to_string().into_bytes();
        let hash =
            Job::from_stored(name.as_str(), &value).unwrap().schedule_hash(&settings::fleet(&self.store));
        let mut then = vec![Op::put(keys::job(name), value)];
        if !by_hand {
            let before = self.store.get(keys::fired(name)).map(|pair| Mark::decode(&pair.value).unwrap());
            let mark = Mark::based(before.as_ref(), self.time(), hash);
            then.push(Op::put(keys::fired(name), mark.encode()));
            if self.store.get(keys::job(name)).is_none() {
                then.push(Op::Delete(Span::prefix(keys::after_of(name))));
            }
        }
        self.write(then);
    }
}

fn first_run(pair: &Pair) -> (RunId, JobName) {
    let open = OpenRuns::decode(&pair.value).unwrap().runs.remove(0);
    (open.run_id, open.job)
}

/// What a job waits for, and whether it is enabled.
fn waits(store: &Store, name: &JobName) -> Option<(Vec<JobName>, bool)> {
    let job = Job::from_stored(name.as_str(), &store.get(keys::job(name))?.value).unwrap();
    let after = job.options.after.as_ref()?;
    Some((after.names().cloned().collect(), job.options.is_enabled()))
}

fn has_put(together: &[Change], key: &Key) -> bool {
    together.iter().any(|change| !change.is_delete() && change.pair.key == *key)
}

/// The open key of a run is put again: it says that the run is over.
fn closes(change: &Change) -> Option<(RunId, JobName)> {
    keys::parse_runs(&change.pair.key).filter(|_| !change.is_delete())?;
    let (before, now) = (first_run(change.previous.as_ref()?), first_run(&change.pair));
    (before == now).then_some(now)
}

impl Invariants {
    pub(super) fn dependent_written(&mut self, name: &JobName, change: &Change) {
        let waits = |pair: &Pair| {
            Job::from_stored(name.as_str(), &pair.value).is_ok_and(|job| job.options.after.is_some())
        };
        if change.is_delete() || !waits(&change.pair) {
            self.waits_since.remove(name);
        } else if !change.previous.as_ref().is_some_and(waits) {
            // Those of the beginning are there before any worker is.
            let since = if self.now == 0 { -KNOWN_AFTER_MS } else { self.now };
            self.waits_since.insert(name.clone(), since);
        }
    }

    /// Those that wait for the job, as every worker must know.
    fn dependents_of(&self, store: &Store, job: &JobName) -> Vec<(JobName, Vec<JobName>, bool)> {
        let known = self.waits_since.iter().filter(|(_, since)| self.now - **since >= KNOWN_AFTER_MS);
        let waiting = known.filter_map(|(name, _)| {
            let (after, enabled) = waits(store, name)?;
            after.contains(job).then(|| (name.clone(), after, enabled))
        });
        waiting.collect()
    }

    /// A run that has succeeded is not done with before those that wait for it are told, and they are told by what says that it is over.
    pub(super) fn check_success(
        &mut self,
        store: &Store,
        sid: Sid,
        change: &Change,
        together: &[Change],
        noticed: bool,
    ) {
        if let Some((run_id, job)) = closes(change).filter(|(run_id, _)| self.succeeded.contains(run_id)) {
            self.closed.insert(run_id.clone());
            for (name, after, _) in
                self.dependents_of(store, &job).into_iter().filter(|(_, _, enabled)| *enabled && noticed)
            {
                let asked = has_put(together, &keys::request(&run_id.of_dependent(&name)).into());
                let noted = has_put(together, &keys::after(&name, &job).into());
                let lacks = |other: &JobName| *other != job && store.get(keys::after(&name, other)).is_none();
                if asked == noted {
                    self.violated(format!(
                        "{run_id} has succeeded, and {name} is told {}",
                        if asked { "twice" } else { "nothing" }
                    ));
                } else if noted && !after.iter().any(lacks) {
                    self.violated(format!(
                        "all that {name} waits for has succeeded, and its run is not asked for"
                    ));
                }
            }
        }
        if !change.is_delete() || !lives(store, sid) {
            return;
        }
        let Some((run_id, job)) = change.previous.as_ref().map(first_run) else { return };
        let moves = together
            .iter()
            .filter(|other| !other.is_delete() && keys::parse_runs(&other.pair.key).is_some())
            .any(|other| first_run(&other.pair).0 == run_id);
        if self.succeeded.contains(&run_id)
            && !self.closed.contains(&run_id)
            && !self.claimed_before.contains_key(&run_id)
            && !moves
            && !self.dependents_of(store, &job).is_empty()
        {
            self.violated(format!(
                "{run_id} has succeeded and is done with, and nobody who waits for {job} is told"
            ));
        }
    }

    /// Nobody is told but by the end of a run that has succeeded, of a job that it waits for; and a run is asked for when all have succeeded.
    pub(super) fn check_told(&mut self, store: &Store, together: &[Change]) {
        let closed: Vec<(RunId, JobName)> = together.iter().filter_map(closes).collect();
        let of_success = |job: &JobName| {
            closed.iter().find(|(run_id, one)| one == job && self.succeeded.contains(run_id)).cloned()
        };
        let mut faults = Vec::new();
        for change in together.iter().filter(|change| !change.is_delete()) {
            if let Some((name, predecessor)) = keys::parse_after(&change.pair.key) {
                if of_success(&predecessor).is_none() {
                    faults.push(format!("a success of {predecessor} is noted, and none has ended"));
                }
                if waits(store, &name)
                    .is_none_or(|(after, enabled)| !enabled || !after.contains(&predecessor))
                {
                    faults.push(format!("{name} is told of {predecessor}, and does not wait for it"));
                }
            }
            if keys::parse_request(&change.pair.key).is_none() {
                continue;
            }
            let request = Request::decode(&change.pair.value).unwrap();
            if request.trigger != Trigger::After {
                continue;
            }
            let name = &request.job;
            let Some((after, true)) = waits(store, name) else {
                faults.push(format!("a run of {name} is asked for, which does not wait for anybody"));
                continue;
            };
            let Some(by) = after
                .iter()
                .filter_map(of_success)
                .find(|(run_id, _)| request.after.as_ref() == Some(run_id))
            else {
                faults.push(format!("a run of {name} is asked for after none that it waits for"));
                continue;
            };
            for other in after.iter().filter(|other| **other != by.1) {
                let key = Key::from(keys::after(name, other));
                if !together.iter().any(|change| change.is_delete() && change.pair.key == key) {
                    let left = if store.get(keys::after(name, other)).is_some() {
                        "is still noted"
                    } else {
                        "has not succeeded"
                    };
                    faults.push(format!("a run of {name} is asked for, and {other} {left}"));
                }
            }
            if store.prefix(&keys::after_of(name)).next().is_some() {
                faults.push(format!("a run of {name} is asked for, and what led to it is still noted"));
            }
        }
        faults.into_iter().for_each(|fault| self.violated(fault));
    }
}
