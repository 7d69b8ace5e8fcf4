//! A job that runs on every worker (`mode: "broadcast"`), in some worlds, drawn by a dice of its own: the worlds without it stay what they were.
//!
//! What is promised: the claim of a fire puts one request for each worker, at once or by way of what is left of it, of every worker that has
//! long been there. Only that worker runs it, under the session that the request names, and once; and beside no other run of the job on the
//! same worker, where the job forbids that. That each request ends in one record is held as for all requests.

use std::collections::{BTreeMap, BTreeSet};

use common::clock::Timestamp;
use common::domain::broadcast::Target;
use common::domain::execution::Environment;
use common::domain::job::{Job, JobName};
use common::domain::mark::Mark;
use common::domain::options::Concurrency;
use common::domain::request::Request;
use common::domain::run::{OpenRun, RunId, Trigger};
use common::domain::worker::{Registration, Sid};
use common::keys;
use common::kv::{Change, Op, Pair};

use super::dice::Dice;
use super::faults::Fault;
use super::invariants::{Incarnation, Invariants, lives};
use super::settings;
use super::store::Store;
use super::world::{HEALED_MS, Item, World};

/// Apart from the seed's other dice.
const DICE: u64 = 0x5eed_b0ad_0000;
/// By then every worker knows of one that is registered: longer than any line is cut, or any worker frozen.
const KNOWN_AFTER_MS: i64 = 20_000;

/// The dice of a world in which a job runs on every worker. None of the seeds that have found something is one.
pub(super) fn dice(seed: u64) -> Option<Dice> {
    [1, 2, 5, 8].contains(&(seed % 13)).then(|| Dice::new(seed ^ DICE))
}

pub(super) fn name() -> JobName {
    JobName::parse("g").unwrap()
}

/// What is known of broadcasts.
#[derive(Default)]
pub(super) struct Broadcasts {
    /// Since when a session is that of a worker that may run anything, by the worker's id.
    since: BTreeMap<String, (Sid, i64)>,
    /// Runs that were claimed while their job forbade that two go on one worker.
    alone: BTreeSet<RunId>,
}

impl Broadcasts {
    pub(super) fn store_went_back(&mut self) {
        self.since.clear();
    }
}

impl World {
    pub(super) fn draw_broadcasts(&mut self) {
        let Some(mut dice) = self.broadcasting.take() else { return };
        for _ in 0..dice.between(0, 7) {
            let at = dice.between(800, HEALED_MS - 500);
            self.push(at, Item::Fault(Fault::Broadcast, 0));
        }
        self.broadcasting = Some(dice);
    }

    pub(super) fn change_broadcast(&mut self) {
        let Some(mut dice) = self.broadcasting.take() else { return };
        let (what, back_in) = (dice.below(5), dice.between(1, 4_000));
        self.broadcasting = Some(dice);
        let name = name();
        match what {
            0 => {
                self.write(self.delete_job_ops(&name));
                self.push(self.now + back_in, Item::BroadcastBack);
            }
            1 => self.kill_by_id(&name),
            2 if self.store.get(keys::job(&name)).is_some() => {
                let run_id = RunId::from_text(&format!("spread{}", self.now));
                let request = Request::manual(run_id.clone(), name, Environment::default(), self.time());
                if self.store.get(keys::request(&run_id)).is_none() {
                    self.write(vec![Op::put(keys::request(&run_id), request.encode())]);
                }
            }
            _ => self.put_broadcast(),
        }
    }

    /// By the function, or by other hands. For a while it may be one for a single worker.
    pub(super) fn put_broadcast(&mut self) {
        let Some(mut dice) = self.broadcasting.take() else { return };
        let name = name();
        let cron = *dice.one_of(&["* * * * * *", "*/2 * * * * *", "*/3 * * * * *"]);
        let command = format!("true {}", dice.below(1000));
        let mut job = serde_json::json!({ "name": "g", "command": command, "cronExpr": cron });
        let mode = if self.faulty() && dice.percent(20) { "single" } else { "broadcast" };
        job["mode"] = mode.into();
        if dice.percent(60) {
            job["concurrency"] = (*dice.one_of(&["allow", "replace"])).into();
        }
        if dice.percent(40) {
            job["misfire"] = (*dice.one_of(&["skip", "once", "all"])).into();
        }
        // Where a worker has no room, its part of a fire waits for as long.
        job["startDeadlineSeconds"] = (*dice.one_of(&[0, 3, 8, 12])).into();
        if dice.percent(20) {
            job["jitterSeconds"] = dice.between(1, 2).into();
        }
        if dice.percent(40) {
            job["retry"] = serde_json::json!({ "attempts": 2, "backoff": dice.between(0, 1) });
        }
        if self.faulty() && dice.percent(10) {
            job["enabled"] = false.into();
        }
        let by_hand = dice.percent(40);
        self.broadcasting = Some(dice);
        let value = job.to_string().into_bytes();
        let hash =
            Job::from_stored(name.as_str(), &value).unwrap().schedule_hash(&settings::fleet(&self.store));
        let before = self.store.get(keys::fired(&name)).map(|pair| Mark::decode(&pair.value).unwrap());
        let stands = self.store.get(keys::job(&name)).is_some();
        let mut then = vec![Op::put(keys::job(&name), value)];
        if !by_hand && (!stands || before.as_ref().is_none_or(|mark| mark.hash != hash)) {
            let mark = Mark::based(before.as_ref(), self.time(), hash);
            then.push(Op::put(keys::fired(&name), mark.encode()));
        }
        self.write(then);
    }
}

fn request(pair: &Pair) -> Option<(RunId, Request)> {
    Some((keys::parse_request(&pair.key)?, Request::decode(&pair.value).unwrap()))
}

fn requests_put(together: &[Change]) -> impl Iterator<Item = (RunId, Request)> {
    together.iter().filter(|change| !change.is_delete()).filter_map(|change| request(&change.pair))
}

fn job_of(store: &Store, name: &JobName) -> Option<Job> {
    store.get(keys::job(name)).map(|pair| Job::from_stored(name.as_str(), &pair.value).unwrap())
}

impl Invariants {
    pub(super) fn worker_written(&mut self, change: &Change) {
        let Some(id) = change.pair.key.strip_prefix(keys::WORKERS) else { return };
        let registration = Registration::decode(&change.pair.value).ok().flatten();
        let sid =
            registration.filter(|one| !change.is_delete() && !one.aside).map(|registration| registration.sid);
        match sid {
            None => {
                self.broadcasts.since.remove(id);
            }
            Some(sid) => {
                let since = self.broadcasts.since.entry(id.to_owned()).or_insert((sid, self.now));
                if since.0 != sid {
                    *since = (sid, self.now);
                }
            }
        }
    }

    /// Whether the claim `run_id` of the fire at `at` puts requests for every worker, and puts them well.
    pub(super) fn is_spread(
        &mut self,
        store: &Store,
        job: &JobName,
        (run_id, at): (&RunId, Timestamp),
        together: &[Change],
    ) -> bool {
        let mut told: Vec<Target> = Vec::new();
        for (id, request) in
            requests_put(together).filter(|(_, request)| request.trigger == Trigger::Broadcast)
        {
            if request.plan_time != at || request.job != *job {
                self.violated(format!("{id} of {job} at {at} is of {}", request.plan_time));
            }
            told.extend(request.target.iter().chain(&request.targets).cloned());
        }
        if told.is_empty() {
            return false;
        }
        if store.get(keys::PAUSED).is_some() {
            self.violated(format!("a fire of {job} was claimed while paused"));
        }
        if job_of(store, job).is_none_or(|job| !job.options.is_broadcast()) {
            self.violated(format!("{job} at {at} is for one worker, and goes to all"));
        }
        let sids: BTreeSet<Sid> = told.iter().map(|target| target.sid).collect();
        if sids.len() != told.len() {
            self.violated(format!("{run_id}: a worker is told twice of {job} at {at}"));
        }
        let long_there =
            self.broadcasts.since.iter().filter(|(_, (_, since))| self.now - since >= KNOWN_AFTER_MS);
        let missed: Vec<String> = long_there
            .filter(|(_, (sid, _))| lives(store, *sid) && !sids.contains(sid))
            .map(|(id, _)| id.clone())
            .collect();
        for id in missed {
            self.violated(format!("{id} is not told of {job} at {at}"));
        }
        true
    }

    /// A request that is for several workers becomes one for each: of those that it named none is left out, and none has had its own. True if
    /// `change` is such a one.
    pub(super) fn is_handed_out(&mut self, run_id: &RunId, change: &Change, together: &[Change]) -> bool {
        let Some((_, before)) = change.previous.as_ref().and_then(request) else { return false };
        let of_this =
            |id: &RunId| id.as_str().split_once('~').is_some_and(|(first, _)| first == run_id.as_str());
        let mut told: BTreeSet<Sid> = requests_put(together)
            .filter(|(id, _)| of_this(id))
            .filter_map(|(_, one)| Some(one.target?.sid))
            .collect();
        if told.is_empty() {
            return false;
        }
        if !change.is_delete() {
            told.extend(Request::decode(&change.pair.value).unwrap().targets.iter().map(|target| target.sid));
        }
        let named: BTreeSet<Sid> = before.targets.iter().map(|target| target.sid).collect();
        if !named.is_empty() && named != told {
            self.violated(format!("{run_id} is for {named:?}, and is handed to {told:?}"));
        }
        true
    }

    /// A run that is for one worker is claimed under the session that it is for.
    pub(super) fn check_target(&mut self, store: &Store, change: &Change, open: &OpenRun, sid: Sid) {
        let Some((_, request)) = change.previous.as_ref().and_then(request) else { return };
        let Some(target) = request.target else {
            if open.skipped.is_none()
                && job_of(store, &open.job).is_some_and(|job| job.options.is_broadcast())
            {
                self.violated(format!("{} is for every worker, and runs on one", open.run_id));
            }
            return;
        };
        if open.skipped.is_some() {
            return;
        }
        if target.sid != sid {
            self.violated(format!("{} is for {}, and claimed under {sid}", open.run_id, target.sid));
        }
        if open.target.as_ref() != Some(&target.worker) {
            self.violated(format!("{} is for {}, and does not say so", open.run_id, target.worker));
        }
        if job_of(store, &open.job).is_some_and(|job| job.options.concurrency() != Concurrency::Allow) {
            self.broadcasts.alone.insert(open.run_id.clone());
        }
    }

    /// A command of such a run begins.
    pub(super) fn check_alone(&mut self, by: Incarnation, open: &OpenRun) {
        let beside = self.processes.values().any(|process| process.worker == by.0 && process.job == open.job);
        if beside && self.broadcasts.alone.contains(&open.run_id) {
            self.violated(format!("{} goes beside another run of {} on its worker", open.run_id, open.job));
        }
    }
}
