//! What a run executes.

use std::sync::Arc;

/// Of a job's definition, what the execution of a run depends on. Cheap to clone: every run has one, and every job.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Work {
    /// The whole command.
    pub command: Arc<str>,
}
