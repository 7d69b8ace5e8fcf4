//! Jobs that run once others have succeeded (design P13, `after`): who waits for whom, and what the end of a run that has succeeded tells.
//!
//! The transaction that closes the run tells each job that waits for it: if all the others that this one waits for have succeeded, its run is
//! asked for and the notes of their successes go; else a note is put. So of all sendings one tells, and nobody has to look afterwards.

use std::collections::{BTreeMap, BTreeSet};

use common::clock::Timestamp;
use common::domain::after::After;
use common::domain::job::{Job, JobName};
use common::domain::request::Request;
use common::domain::run::{OpenRun, RunId};
use common::kv::Revision;

use super::Scheduler;
use super::event::{Action, Report};

/// Most jobs that are told by one transaction: each costs it an operation and a compare, and inside of that up to 32 compares, of the 128
/// that there is room for. More are told by further ones.
pub(crate) const TOLD_AT_ONCE: usize = 64;

/// What the success of a run means to a job that waits for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Follow {
    /// The job that waits.
    pub job: JobName,
    /// Its definition, compared: an edit may have changed what it waits for.
    pub job_revision: Revision,
    /// The other jobs that it waits for.
    pub others: Vec<JobName>,
    /// The run that is asked for when all of them have succeeded. `None` = it is not told: that it is so, is compared all the same.
    pub run: Option<(RunId, Request)>,
}

/// A job that waits for others.
#[derive(Debug)]
struct Waits {
    after: After,
    enabled: bool,
    mod_revision: Revision,
}

/// Who waits for whom, of all jobs.
#[derive(Debug, Default)]
pub(super) struct Dependents {
    waiting: BTreeMap<JobName, Waits>,
    /// By the job that is waited for.
    of: BTreeMap<JobName, BTreeSet<JobName>>,
}

impl Dependents {
    /// A job was put. One that gives times as well cannot be run, and waits for nobody.
    pub(super) fn put(&mut self, name: &JobName, job: Option<&Job>, mod_revision: Revision) {
        self.remove(name);
        let Some(job) = job.filter(|job| job.cron_expr.trim().is_empty()) else { return };
        let Some(after) = job.options.after.clone() else { return };
        for predecessor in after.names() {
            self.of.entry(predecessor.clone()).or_default().insert(name.clone());
        }
        let enabled = job.options.is_enabled();
        self.waiting.insert(name.clone(), Waits { after, enabled, mod_revision });
    }

    /// A job was deleted, or put anew.
    pub(super) fn remove(&mut self, name: &JobName) {
        let Some(waits) = self.waiting.remove(name) else { return };
        for predecessor in waits.after.names() {
            if let Some(dependents) = self.of.get_mut(predecessor) {
                dependents.remove(name);
                if dependents.is_empty() {
                    self.of.remove(predecessor);
                }
            }
        }
    }

    /// These are all jobs that there are.
    pub(super) fn keep_only(&mut self, is_there: impl Fn(&JobName) -> bool) {
        for gone in self.waiting.keys().filter(|name| !is_there(name)).cloned().collect::<Vec<_>>() {
            self.remove(&gone);
        }
    }

    /// Somebody waits for the job.
    pub(super) fn has(&self, predecessor: &JobName) -> bool {
        self.of.contains_key(predecessor)
    }

    /// All that must have succeeded before the job, directly or not; itself among them when it waits in a circle.
    pub(super) fn before(&self, name: &JobName) -> BTreeSet<JobName> {
        let mut found = BTreeSet::new();
        let mut next = vec![name];
        while let Some(waits) = next.pop().map(|name| self.waiting.get(name)) {
            for predecessor in waits.iter().flat_map(|waits| waits.after.names()) {
                if found.insert(predecessor.clone()) {
                    next.push(predecessor);
                }
            }
        }
        found
    }
}

impl Scheduler {
    /// A job was put: what it waits for. A circle can come by other hands, or by two saves at once of which neither saw the other.
    pub(super) fn note_after(
        &mut self,
        name: &JobName,
        job: Option<&Job>,
        mod_revision: Revision,
        out: &mut Vec<Action>,
    ) {
        self.dependents.put(name, job, mod_revision);
        if self.dependents.before(name).contains(name) {
            out.push(Action::Report(Report::Circle(name.clone())));
        }
    }

    /// The jobs that wait for a run that has succeeded and ended at `ended`: at most [`TOLD_AT_ONCE`], in the order of their names, from behind
    /// `told` on. Not told is one that the job itself waits for, however far: the two would ask for each other for ever; and one that is
    /// disabled: what happens meanwhile is not caught up on.
    pub(super) fn followers(&self, open: &OpenRun, ended: Timestamp, told: Option<&JobName>) -> Vec<Follow> {
        let Some(dependents) = self.dependents.of.get(&open.job) else { return Vec::new() };
        let before = self.dependents.before(&open.job);
        let left = dependents.iter().filter(|name| told.is_none_or(|told| *name > told));
        let follow = |name: &JobName| {
            let waits = self.dependents.waiting.get(name)?;
            let run = (waits.enabled && !before.contains(name)).then(|| {
                let mut run = Request::following(&open.run_id, name.clone(), &self.worker_id, ended);
                run.1.trace = open.trace;
                run
            });
            let others = waits.after.names().filter(|other| **other != open.job).cloned().collect();
            Some(Follow { job: name.clone(), job_revision: waits.mod_revision, others, run })
        };
        left.filter_map(follow).take(TOLD_AT_ONCE).collect()
    }
}
