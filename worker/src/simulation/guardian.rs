//! The guardian of each worker's process, which goes on while that is frozen: what the real one does with processes, done to the world's.

use common::domain::record::Status;
use common::domain::run::RunId;

use super::mutants::Mutant;
use super::shell::TTL_MS;
use super::world::{What, World};

/// Before the end of a lease, in ms: as `guardian::margin` has it.
const MARGIN_MS: i64 = TTL_MS / 5;

impl World {
    /// The worker's lease was granted or renewed by what it sent then.
    pub(super) fn lease_renewed(&mut self, worker: usize, sent: i64) {
        let at = sent + TTL_MS - MARGIN_MS;
        self.hosts[worker].fence_at = at;
        self.push_to(at, worker, What::FenceDue);
    }

    /// It may be put off since.
    pub(super) fn fence_due(&mut self, worker: usize) {
        if self.is_fenced(worker) {
            self.fence(worker);
        }
    }

    /// Whether what begins now with a fence is killed at once: the lease is about to end, although the worker may still think that it has one.
    pub(super) fn is_fenced(&self, worker: usize) -> bool {
        self.mutant != Mutant::NoFence && self.now >= self.hosts[worker].fence_at
    }

    /// The worker has no lease, or may have none any more: its runs with a fence are killed.
    pub(super) fn fence(&mut self, worker: usize) {
        if self.mutant == Mutant::NoFence {
            return;
        }
        let processes = self.checks.processes.iter();
        let fenced: Vec<RunId> = processes
            .filter(|(_, process)| process.worker == worker && process.fence)
            .map(|(run_id, _)| run_id.clone())
            .collect();
        for run_id in fenced {
            self.note(|| format!("{run_id} of w{worker} is fenced"));
            self.process_ends(worker, &run_id, Status::Killed);
        }
    }
}
