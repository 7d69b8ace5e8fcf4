//! What a run executes, and how it is ended before its time.

use std::sync::Arc;

use common::domain::execution::Execution;
use common::domain::http::Http;

/// Of a job's definition, what the execution of a run depends on. Cheap to clone: every run has one, and every job.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Work {
    /// The whole command; of a request its first line, for the record.
    pub command: Arc<str>,
    /// How it is run; `None` = as usual, as most are.
    pub execution: Option<Arc<Execution>>,
}

/// What a job has that says nothing.
static USUAL: Execution = Execution {
    env: None,
    working_dir: None,
    user: None,
    limits: None,
    output_limit_bytes: None,
    timeout_seconds: None,
    kill_grace_seconds: None,
    fence: None,
    http: None,
};

impl Work {
    /// This command, run so.
    #[must_use]
    pub fn new(command: &str, execution: &Execution) -> Self {
        let line = execution.http.as_deref().map(Http::line);
        let execution = (*execution != USUAL).then(|| Arc::new(execution.clone()));
        Self { command: line.as_deref().unwrap_or(command).into(), execution }
    }

    /// What is sent; `None` = a command is run.
    #[must_use]
    pub fn request(&self) -> Option<&Http> {
        self.execution().http.as_deref()
    }

    /// Whether it names secrets.
    #[must_use]
    pub fn has_secrets(&self) -> bool {
        self.execution.as_ref().is_some_and(|execution| execution.secrets().next().is_some())
    }

    /// How the command is run.
    #[must_use]
    pub fn execution(&self) -> &Execution {
        self.execution.as_deref().unwrap_or(&USUAL)
    }
}

/// How a run is ended before its time; the later the more urgent.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kill {
    /// SIGTERM to its process group, and SIGKILL to what is left of it after the job's `killGraceSeconds`.
    Gracefully,
    /// SIGKILL.
    AtOnce,
}
