//! What jobs have in common, held once: a million jobs have some thousand distinct schedules, and few ways in which they want to be run.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, Hash, Hasher};
use std::sync::Arc;

use common::domain::execution::Execution;
use common::domain::job::ScheduleHash;
use common::domain::options::{Concurrency, Selector};
use common::domain::retry::Retry;
use common::schedule::Schedule;
use xxhash_rust::xxh3::Xxh3DefaultBuilder;

use super::misfire::Rule;
use super::schedules::Source;

/// Terms that no job has any more are dropped once there are so many, and twice as many as at the last look.
const CLEAN_FROM: usize = 1024;

/// Of a job's definition all but its name, its command and its revisions.
#[derive(Clone, Debug)]
pub(super) struct Terms {
    /// Its schedule, or why it cannot be run.
    pub(super) runnable: Result<Arc<Schedule>, String>,
    /// What the schedule is read from, with the fleet's settings; `None` when something else keeps it from being run.
    pub(super) source: Option<Arc<Source>>,
    /// Of the job's own part of what its times depend on.
    pub(super) own_hash: ScheduleHash,
    pub(super) hash: ScheduleHash,
    /// What becomes of fires that are missed.
    pub(super) rule: Rule,
    /// Its fires start so much later than their times, in ms.
    pub(super) jitter_ms: i64,
    /// Its fires run on every worker.
    pub(super) is_broadcast: bool,
    /// What becomes of a fire while a run goes.
    pub(super) concurrency: Concurrency,
    /// The labels that a worker must have.
    pub(super) selector: Option<Selector>,
    /// It has fires.
    pub(super) enabled: bool,
    pub(super) retry: Option<Retry>,
    /// How its command is run; `None` = as usual.
    pub(super) execution: Option<Arc<Execution>>,
}

impl Terms {
    /// What is to happen when the worker of an attempt is lost; `None` = it ends there.
    pub(super) fn on_lost(&self, attempt: u32) -> Option<Retry> {
        self.retry?.after_loss(attempt, self.has_fence())
    }

    /// Its runs are killed before their worker's lease can end.
    pub(super) fn has_fence(&self) -> bool {
        self.execution.as_deref().is_some_and(Execution::has_fence)
    }
}

impl PartialEq for Terms {
    /// Schedules that are not shared are held to differ: whoever has one keeps it.
    fn eq(&self, other: &Self) -> bool {
        let same_schedule = match (&self.runnable, &other.runnable) {
            (Ok(one), Ok(another)) => Arc::ptr_eq(one, another),
            (Err(one), Err(another)) => one == another,
            (Ok(_), Err(_)) | (Err(_), Ok(_)) => false,
        };
        same_schedule
            && (self.own_hash, self.hash, self.rule, self.jitter_ms)
                == (other.own_hash, other.hash, other.rule, other.jitter_ms)
            && (self.is_broadcast, self.concurrency, self.enabled, self.retry)
                == (other.is_broadcast, other.concurrency, other.enabled, other.retry)
            && (&self.source, &self.selector, &self.execution)
                == (&other.source, &other.selector, &other.execution)
    }
}

impl Eq for Terms {}

impl Hash for Terms {
    /// The schedule's hashes stand for it.
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.own_hash, self.hash, self.rule, self.jitter_ms).hash(state);
        (&self.selector, &self.retry, &self.execution).hash(state);
    }
}

/// The terms in use, by their hashes.
#[derive(Debug)]
pub(super) struct SharedTerms {
    known: BTreeMap<u64, Vec<Arc<Terms>>>,
    count: usize,
    clean_at: usize,
}

impl SharedTerms {
    pub(super) fn new() -> Self {
        Self { known: BTreeMap::new(), count: 0, clean_at: CLEAN_FROM }
    }

    /// These terms: those that other jobs have, if any has the same.
    pub(super) fn share(&mut self, terms: Terms) -> Arc<Terms> {
        let hash = Xxh3DefaultBuilder.hash_one(&terms);
        if let Some(known) = self.known.get(&hash).into_iter().flatten().find(|known| ***known == terms) {
            return Arc::clone(known);
        }
        if self.count >= self.clean_at {
            self.known.retain(|_, alike| {
                alike.retain(|terms| Arc::strong_count(terms) > 1);
                !alike.is_empty()
            });
            self.count = self.known.values().map(Vec::len).sum();
            self.clean_at = CLEAN_FROM.max(self.count * 2);
        }
        let terms = Arc::new(terms);
        self.known.entry(hash).or_default().push(Arc::clone(&terms));
        self.count += 1;
        terms
    }
}
