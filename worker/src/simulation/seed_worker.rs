//! A worker of the seed in the fleet (design P17): it ignores marks, sleeps up to a second, and runs what it can lock.

use std::time::Duration;

use common::clock::Timestamp;
use common::domain::job::JobName;
use common::keys;
use common::kv::{LeaseId, Op};

use super::world::{Item, START_MS, World, job_names};

/// Long enough: it is kept alive in its own ways.
const TTL: Duration = Duration::from_secs(600);

/// What it does next.
pub(super) enum SeedStep {
    Comes {
        until: i64,
    },
    Goes(LeaseId),
    /// It looks which jobs are due at this second.
    Looks {
        until: i64,
    },
    /// It has slept, and tries to lock.
    Tries(JobName),
    /// Its command is over.
    Ends(JobName, LeaseId),
}

impl World {
    pub(super) fn seed(&mut self, step: SeedStep) {
        match step {
            SeedStep::Comes { until } => {
                self.checks.had_seed = true;
                let lease = self.store.grant(TTL, self.now);
                self.write(vec![Op::put_leased(keys::worker("seed"), b"".as_slice(), lease)]);
                self.push(until, Item::Seed(SeedStep::Goes(lease)));
                let second = self.now - self.now.rem_euclid(1000) + 1000;
                self.push(second, Item::Seed(SeedStep::Looks { until }));
            }
            SeedStep::Goes(lease) => self.end_lease(lease),
            SeedStep::Looks { until } => self.seed_looks(until),
            SeedStep::Tries(job) => self.seed_tries(&job),
            SeedStep::Ends(job, lease) => {
                self.checks.seed_runs.remove(&job);
                self.end_lease(lease);
            }
        }
    }

    fn seed_looks(&mut self, until: i64) {
        if self.now >= until {
            return;
        }
        let now = Timestamp::from_ms(START_MS + self.now);
        for job in job_names() {
            let schedule = self.checks.seeds_schedule_of(&self.store, &job);
            if schedule.is_some_and(|schedule| schedule.next_after(now.plus_ms(-1)) == Some(now)) {
                let slept = self.now + self.dice.between(0, 1000);
                self.push(slept, Item::Seed(SeedStep::Tries(job)));
            }
        }
        let next = self.now + 1000;
        self.push(next, Item::Seed(SeedStep::Looks { until }));
    }

    fn seed_tries(&mut self, job: &JobName) {
        if self.now < self.no_space_until || self.store.get(keys::lock(job)).is_some() {
            return;
        }
        if self.checks.holds_lock(&self.store, job) {
            self.checks.violated(format!("a seed worker's run of {job} overlaps one of ours"));
        }
        let lease = self.store.grant(TTL, self.now);
        self.write(vec![Op::put_leased(keys::lock(job), b"".as_slice(), lease)]);
        self.checks.seed_runs.insert(job.clone());
        let ends = self.now + self.dice.between(10, 2500);
        self.push(ends, Item::Seed(SeedStep::Ends(job.clone(), lease)));
    }
}
