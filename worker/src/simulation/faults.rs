//! What goes wrong, and what operators do meanwhile.

use std::collections::BTreeSet;

use common::domain::execution::Environment;
use common::domain::job::{Job, JobName};
use common::domain::kill::{KILL_TTL_SECONDS, KillRequest, Killed};
use common::domain::mark::Mark;
use common::domain::request::Request;
use common::domain::run::{LockHolder, RunId};
use common::domain::worker::Sid;
use common::keys;
use common::kv::{LeaseId, Op};

use super::mutants::Mutant;
use super::seed_worker::SeedStep;
use super::settings;
use super::world::{HEALED_MS, Item, What, World, job_names};

/// One of them, or the end of one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Fault {
    /// kill -9; its session goes when its time is over, or is taken over.
    Dies,
    /// SIGTERM, and a new process afterwards.
    Rolls,
    /// SIGSTOP for a while.
    Freezes,
    /// Its line to the store is cut for a while.
    Cut,
    /// The store ends a session before its time.
    SessionEnds,
    /// A worker takes its session for lost.
    SessionGivenUp,
    /// A wall clock is stepped.
    ClockSteps,
    /// A wall clock is stepped further than others believe (design P8), as far as a year; put back by [`Fault::ClockMended`].
    ClockFarOff,
    ClockMended,
    /// Its line to the records' store is cut for a while.
    RecordsAway,
    RecordsBack,
    /// Its disk takes nothing for a while.
    DiskAway,
    DiskBack,
    /// The store has no space for a while.
    NoSpace,
    /// History is forgotten.
    Compaction,
    Save,
    SaveByHand,
    Delete,
    /// Deleted and put again, mostly within the second.
    Recreate,
    Kill,
    /// Somebody asks for a run.
    RunNow,
    Pause,
    LiftPause,
    Backup,
    Restore,
    /// A job is disabled, enabled, or disabled and soon enabled again.
    SwitchOff,
    SwitchOn,
    SwitchBack,
    /// The fleet's settings change.
    Settings,
    /// Other hands delete them; a calendar is changed, and they delete them again.
    SettingsDeleted,
    CalendarAlone,
    /// A job that runs after others is edited, switched, deleted, or deleted and put again.
    Dependent,
    /// The job that runs on every worker is edited, deleted and put again, killed, or asked for.
    Broadcast,
}

/// Those that are drawn, the worse the rarer.
const DRAWN: [Fault; 25] = [
    Fault::Dies,
    Fault::Dies,
    Fault::Rolls,
    Fault::Freezes,
    Fault::Freezes,
    Fault::Cut,
    Fault::Cut,
    Fault::SessionEnds,
    Fault::SessionGivenUp,
    Fault::ClockSteps,
    Fault::ClockFarOff,
    Fault::ClockSteps,
    Fault::RecordsAway,
    Fault::RecordsAway,
    Fault::DiskAway,
    Fault::NoSpace,
    Fault::Compaction,
    Fault::Save,
    Fault::SaveByHand,
    Fault::Delete,
    Fault::Recreate,
    Fault::Recreate,
    Fault::Kill,
    Fault::Pause,
    Fault::Save,
];

/// A worker that hears nothing for a while may find the restored store ahead of all that it has seen, and not notice, unless so many
/// revisions were lost (or the cluster has another id).
const LOST_REVISIONS_MIN: i64 = 150;
/// Clocks differ by no more than this, in ms, but for those that are far off.
const SKEW_MS_MAX: i64 = 950;
/// How far, in ms: from where it is noticed for certain to a year.
const FAR_OFF_MS: [i64; 5] = [-31_536_000_000, -10_000, 4_000, 60_000, 31_536_000_000];
/// Others answer a worker that asks for their clocks after so long, in ms.
const CLOCKS_TOLD_MS: i64 = 1_000;

impl World {
    pub(super) fn draw_faults(&mut self) {
        for _ in 0..self.dice.between(3, 12) {
            let (at, worker) = (self.dice.between(800, HEALED_MS - 1000), self.any_worker());
            let fault = *self.dice.one_of(&DRAWN);
            self.push(at, Item::Fault(fault, worker));
        }
        for _ in 0..if self.asks { self.dice.between(1, 6) } else { 0 } {
            let at = self.dice.between(800, HEALED_MS - 1000);
            self.push(at, Item::Fault(Fault::RunNow, 0));
        }
        if self.dice.percent(25) {
            let backup = self.dice.between(500, HEALED_MS - 4000);
            let restore = self.dice.between(backup + 1, HEALED_MS - 2000);
            self.push(backup, Item::Fault(Fault::Backup, 0));
            self.push(restore, Item::Fault(Fault::Restore, 0));
        }
        if self.dice.percent(15) {
            let comes = self.dice.between(0, HEALED_MS / 2);
            let goes = self.dice.between(comes + 2000, HEALED_MS);
            self.push(comes, Item::Seed(SeedStep::Comes { until: goes }));
        }
        self.draw_switching();
        self.draw_settings();
        self.draw_succession();
        self.draw_broadcasts();
    }

    fn any_worker(&mut self) -> usize {
        usize::try_from(self.dice.below(3)).unwrap()
    }

    fn any_job(&mut self) -> JobName {
        self.dice.one_of(&job_names()).clone()
    }

    pub(super) fn fault(&mut self, fault: Fault, worker: usize) {
        if !self.faulty() {
            return; // it came too late
        }
        self.note(|| format!("fault {fault:?} of w{worker}"));
        self.happened.insert(fault);
        // Some last longer than a session.
        let for_ms = if self.dice.percent(30) {
            self.dice.between(9_000, 16_000)
        } else {
            self.dice.between(100, 9_000)
        };
        let until = (self.now + for_ms).min(HEALED_MS);
        let alive = self.hosts[worker].alive;
        let sid = self.hosts[worker].shell.sid().filter(|_| alive);
        match fault {
            Fault::Dies | Fault::Rolls | Fault::Freezes if !alive => {}
            Fault::Dies => {
                self.hosts[worker].shell.comes_back = true;
                self.stop(worker);
            }
            Fault::Rolls => {
                self.hosts[worker].shell.comes_back = true;
                self.drain(worker);
            }
            Fault::Freezes => self.hosts[worker].frozen_until = until,
            Fault::Cut => {
                let half_cut = self.dice.percent(40);
                let host = &mut self.hosts[worker];
                (host.cut_until, host.half_cut) = (until, half_cut);
            }
            Fault::SessionEnds => {
                if let Some(sid) = sid {
                    self.checks.ended_early.insert(sid);
                    self.end_lease(sid.lease());
                }
            }
            Fault::SessionGivenUp => {
                if sid.is_some() {
                    self.push_to(self.now, worker, What::LosesSession);
                }
            }
            Fault::ClockSteps => {
                let to = self.dice.between(-SKEW_MS_MAX, SKEW_MS_MAX);
                self.hosts[worker].skew = to;
            }
            Fault::ClockFarOff => {
                let others = self.hosts.iter().enumerate();
                // Who is alone goes by its clock, whatever that says.
                if others.filter(|(other, host)| *other != worker && host.is_near()).count() > 0 {
                    self.hosts[worker].skew = *self.dice.one_of(&FAR_OFF_MS);
                    self.push(until, Item::Fault(Fault::ClockMended, worker));
                }
            }
            Fault::ClockMended => self.mend_clock(worker),
            Fault::RecordsAway => {
                self.hosts[worker].log.set_away(true);
                self.push(until, Item::Fault(Fault::RecordsBack, worker));
            }
            Fault::RecordsBack => self.hosts[worker].log.set_away(false),
            Fault::DiskAway => {
                self.hosts[worker].disk_away = true;
                self.push(until, Item::Fault(Fault::DiskBack, worker));
            }
            Fault::DiskBack => self.hosts[worker].disk_away = false,
            Fault::NoSpace => self.no_space_until = (self.now + for_ms / 2).min(HEALED_MS),
            Fault::Compaction => {
                let revision = self.store.revision();
                let _done_already = self.store.compact(revision);
            }
            Fault::Save => {
                let name = self.any_job();
                self.save(&name);
            }
            Fault::SaveByHand => {
                let name = self.any_job();
                self.put_by_hand(&name);
            }
            Fault::Delete => {
                let name = self.any_job();
                self.write(self.delete_job_ops(&name));
            }
            Fault::Recreate => self.recreate(),
            Fault::Kill => {
                let name = self.any_job();
                if self.has_concurrency && self.dice.percent(50) {
                    return self.kill_by_id(&name);
                }
                // As the seed's master does it: an empty value for a second.
                let lease = self.store.grant(std::time::Duration::from_secs(1), self.now);
                self.await_end_of(lease);
                self.write(vec![Op::put_leased(keys::killer(&name), b"".as_slice(), lease)]);
            }
            Fault::RunNow => {
                let run_id = RunId::from_text(&format!("asked{}", self.now));
                if self.store.get(keys::request(&run_id)).is_some() {
                    return; // in the same millisecond
                }
                let request =
                    Request::manual(run_id.clone(), self.any_job(), Environment::default(), self.time());
                self.write(vec![Op::put(keys::request(&run_id), request.encode())]);
            }
            Fault::Pause => {
                self.write(vec![Op::put(keys::PAUSED, b"1".as_slice())]);
                self.push(until, Item::Fault(Fault::LiftPause, worker));
            }
            Fault::LiftPause => self.lift_pause(),
            Fault::Backup => self.backup = Some(self.store.clone()),
            Fault::Restore => self.put_back(),
            Fault::SwitchOff | Fault::SwitchOn | Fault::SwitchBack => self.switch(fault),
            Fault::Settings => self.set_settings(),
            Fault::SettingsDeleted => self.write(vec![Op::delete(keys::SETTINGS)]),
            Fault::CalendarAlone => self.change_calendar(),
            Fault::Dependent => self.change_dependent(),
            Fault::Broadcast => self.change_broadcast(),
        }
    }

    /// As the `kill` function does it with the id of a run that nobody has claimed yet.
    fn cancel(&mut self, run_id: &RunId) {
        let Some(pair) = self.store.get(keys::request(run_id)) else { return };
        let mut request = Request::decode(&pair.value).unwrap();
        let asked = Killed { by: "an operator".to_owned(), at: self.time() };
        request.killed.get_or_insert(asked);
        self.checks.cancelled.insert(run_id.clone());
        self.write(vec![Op::put(keys::request(run_id), request.encode())]);
    }

    /// As the `kill` function does it: the runs that are open now, by their ids.
    pub(super) fn kill_by_id(&mut self, name: &JobName) {
        let first = self.store.prefix(keys::REQUESTS).find_map(|pair| {
            let request = Request::decode(&pair.value).unwrap();
            keys::parse_request(&pair.key).filter(|_| request.job == *name)
        });
        if let Some(run_id) = first {
            return self.cancel(&run_id);
        }
        let lock = self.store.get(keys::lock(name));
        let locked =
            lock.and_then(|pair| LockHolder::decode(&pair.value).unwrap()).map(|holder| holder.run_id);
        let shared = keys::shared_of(name);
        let unlocked = self.store.prefix(&shared).filter_map(|pair| Some(keys::parse_shared(&pair.key)?.1));
        let run_ids = unlocked.chain(locked).collect();
        let asked = Killed { by: "an operator".to_owned(), at: self.time() };
        let lease = self.store.grant(std::time::Duration::from_secs(KILL_TTL_SECONDS), self.now);
        self.await_end_of(lease);
        let request = KillRequest::new(run_ids, asked).encode();
        self.write(vec![Op::put_leased(keys::killer(name), request, lease)]);
    }

    /// A job deleted and put again: by a save, or by other hands.
    fn recreate(&mut self) {
        let name = self.any_job();
        self.write(self.delete_job_ops(&name));
        let again = self.now + self.dice.between(1, 900);
        self.push(again, Item::Recreated(name));
    }

    pub(super) fn recreated(&mut self, name: &JobName) {
        if self.dice.percent(70) { self.save(name) } else { self.put_by_hand(name) }
    }

    /// The store is as it was at the backup. Revisions begin there anew, and so does the time of leases.
    fn put_back(&mut self) {
        let Some(backup) = self.backup.take() else { return };
        let lost = self.store.revision() - backup.revision();
        if lost < LOST_REVISIONS_MIN || self.dice.percent(30) {
            self.cluster += 1;
        }
        self.store = self.store.restored(&backup, self.now);
        self.restores += 1;
        self.restored_at = self.time();
        self.checks.store_went_back();
        for worker in 0..self.hosts.len() {
            // It has seen nothing yet that it could miss: as if it started just now, of which nothing is promised.
            if self.hosts[worker].alive && !self.hosts[worker].shell.line.has_reached_any() {
                self.hosts[worker].shell.comes_back = true;
                self.stop(worker);
            }
        }
        let leases: Vec<LeaseId> = self.store.leases().map(|(lease, _)| lease).collect();
        for lease in leases {
            // Their holders do not know, and end them when they notice.
            self.checks.ended_early.insert(Sid::of(lease));
            self.await_end_of(lease);
        }
    }

    fn lift_pause(&mut self) {
        let base = crate::claims::parse_base(self.store.get(keys::BASE)).resumed(self.time());
        self.write(vec![Op::delete(keys::PAUSED), Op::put(keys::BASE, base.encode())]);
    }

    pub(super) fn heal(&mut self) {
        self.note(|| "everything heals".to_owned());
        for worker in 0..self.hosts.len() {
            let host = &mut self.hosts[worker];
            host.frozen_until = self.now;
            host.log.set_away(false);
            host.disk_away = false;
            let alive = host.alive;
            self.mend_clock(worker);
            if !alive {
                self.start_worker(worker);
            }
        }
        self.lift_pause();
        for name in job_names() {
            if self.store.get(keys::job(&name)).is_none() {
                self.put_by_hand(&name);
            }
        }
        self.switch_all_on();
        self.put_dependents();
        self.put_broadcast();
    }

    fn mend_clock(&mut self, worker: usize) {
        let host = &mut self.hosts[worker];
        host.skew = host.skew.clamp(-150, 150);
        host.doubted_until = self.now + CLOCKS_TOLD_MS;
    }

    fn definition(&mut self, name: &JobName) -> Vec<u8> {
        let cron = *self.dice.one_of(&["* * * * * *", "*/2 * * * * *", "*/3 * * * * *", "1-59/5 * * * * *"]);
        // Runs that others wait for come one by one, or what they ask for would pile up.
        let cron = if self.succession.is_some() { "1-59/5 * * * * *" } else { cron };
        let command = format!("true {}", self.dice.below(1000));
        let mut job = serde_json::json!({ "name": name.as_str(), "command": command, "cronExpr": cron });
        if self.dice.percent(50) {
            job["misfire"] = (*self.dice.one_of(&["skip", "once", "all"])).into();
        }
        if self.dice.percent(30) {
            job["startDeadlineSeconds"] = (*self.dice.one_of(&[0, 3, 8, 20])).into();
        }
        if self.dice.percent(25) {
            job["jitterSeconds"] = self.dice.between(1, 2).into();
        }
        if self.has_concurrency && self.dice.percent(80) {
            job["concurrency"] = (*self.dice.one_of(&["forbid", "allow", "replace"])).into();
        }
        self.with_switches(&mut job);
        self.with_calendar(&mut job);
        // Always the same one: an edit is nothing to a run that goes.
        if name.as_str() == "c" {
            job["fence"] = true.into();
        }
        if self.asks && self.dice.percent(60) {
            let (attempts, backoff) = (self.dice.between(2, 4), self.dice.between(0, 2));
            let on_lost = self.dice.percent(60);
            job["retry"] = serde_json::json!({ "attempts": attempts, "backoff": backoff });
            if on_lost || name.as_str() == "a" {
                job["retry"]["onLost"] = on_lost.into(); // elsewhere the fence decides
            }
        }
        job.to_string().into_bytes()
    }

    /// As the `save` function does.
    pub(super) fn save(&mut self, name: &JobName) {
        let definition = self.definition(name);
        let job = Job::from_stored(name.as_str(), &definition).unwrap();
        let before = self.store.get(keys::fired(name)).map(|pair| Mark::decode(&pair.value).unwrap());
        let mut then = vec![Op::put(keys::job(name), definition)];
        let stands = self.store.get(keys::job(name)).is_some();
        let hash = job.schedule_hash(&settings::fleet(&self.store));
        if !stands || before.as_ref().is_none_or(|mark| mark.hash != hash) {
            let mark = Mark::based(before.as_ref(), self.time(), hash);
            then.push(Op::put(keys::fired(name), mark.encode()));
        }
        if self.mutant == Mutant::EditFreesLock {
            then.push(Op::delete(keys::lock(name)));
        }
        self.write(then);
    }

    pub(super) fn put_by_hand(&mut self, name: &JobName) {
        let definition = self.definition(name);
        self.write(vec![Op::put(keys::job(name), definition)]);
    }

    /// Which faults a run has had.
    pub(super) fn faults(&self) -> &BTreeSet<Fault> {
        &self.happened
    }

    pub(super) fn delete_job_ops(&self, name: &JobName) -> Vec<Op> {
        let mut ops = vec![Op::delete(keys::job(name))];
        if self.mutant == Mutant::MarkGoesWithJob {
            ops.push(Op::delete(keys::fired(name)));
        }
        ops
    }
}
