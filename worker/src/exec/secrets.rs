//! The secrets of runs: what the operator's file (`CRON_SECRETS_FILE`) lets a job have, read at the start of each run and kept nowhere else.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use common::clock;
use common::domain::execution::Execution;
use common::domain::job::JobName;
use common::domain::secret::{SECRETS_MAX, SecretName};
use common::job_secrets::{self, JobSecrets, Kept};
use common::secrets::{Cached, Problem, Reference, Vault};
use futures::future::join_all;

use super::redact::{BYTES_MIN, Redactor};
use crate::retries::Retries;

/// Longest secret, in bytes: keys and certificates are. What is larger is looked for too slowly in outputs.
const BYTES_MAX: u64 = 16 * 1024;
/// All secrets of one run together.
const ALL_BYTES_MAX: usize = 64 * 1024;
/// A file that is not read by then is on a disk that hangs.
const FILES_WITHIN: Duration = Duration::from_secs(5);

/// What this worker may give to jobs.
pub struct Secrets {
    file: Option<PathBuf>,
    /// As it was when it was good last.
    known: Mutex<Arc<JobSecrets>>,
    kept: Cached,
    unread: Retries,
}

impl Secrets {
    /// Those of this file; `None` = none.
    #[must_use]
    pub fn new(file: Option<&Path>, vault: Arc<dyn Vault>) -> Self {
        let unread = Retries::new("CRON_SECRETS_FILE is not good: what it said before holds");
        let known = file.and_then(|file| JobSecrets::read(file).map_err(|why| unread.failed(&why)).ok());
        let known = Mutex::new(Arc::new(known.unwrap_or_default()));
        Self { file: file.map(Path::to_owned), known, kept: Cached::new(vault), unread }
    }

    /// The values of all secrets that this job's run names.
    ///
    /// # Errors
    /// Which it cannot have, and why, for its record.
    pub(crate) async fn of(&self, job: &JobName, execution: &Execution) -> Result<Resolved, String> {
        let names: BTreeSet<SecretName> = execution.secrets().collect();
        if names.is_empty() {
            return Ok(Resolved::default());
        }
        if names.len() > SECRETS_MAX {
            return Err(format!("the job names {} secrets: {SECRETS_MAX} are the most", names.len()));
        }
        let known = &self.known().await?;
        let read = join_all(names.iter().map(|name| async move {
            let kept = known.of(name, job).map_err(|why| format!("{name} {why}"))?;
            self.value(kept).await.map_err(|why| format!("{name} {why}"))
        }));
        let (mut values, mut faults) = (BTreeMap::new(), Vec::new());
        for (name, value) in names.iter().zip(read.await) {
            match value {
                Ok(value) => drop(values.insert(name.clone(), value)),
                Err(why) => faults.push(why),
            }
        }
        if !faults.is_empty() {
            return Err(faults.join("; "));
        }
        if values.values().map(String::len).sum::<usize>() > ALL_BYTES_MAX {
            return Err(format!("the job's secrets have more than {ALL_BYTES_MAX} bytes together"));
        }
        Resolved::new(values).await
    }

    /// Reads ahead what a run that begins soon will want of others.
    pub(crate) fn read_ahead(self: &Arc<Self>, job: &JobName, execution: Option<&Arc<Execution>>) {
        let Some(execution) = execution.filter(|execution| execution.secrets().next().is_some()) else {
            return;
        };
        let (secrets, job, execution) = (Arc::clone(self), job.clone(), Arc::clone(execution));
        tokio::spawn(async move {
            let _told_by_the_run = secrets.of(&job, &execution).await;
        });
    }

    /// What the file says. It is read each time, being small: a change of it needs no restart. While it is not good, what it said before holds.
    async fn known(&self) -> Result<Arc<JobSecrets>, String> {
        let file =
            self.file.clone().ok_or("the job names secrets, and this worker has no CRON_SECRETS_FILE")?;
        let read = reading(move || JobSecrets::read(&file).map_err(io::Error::other)).await;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match read {
            Ok(read) => {
                self.unread.worked();
                if **known != read {
                    *known = Arc::new(read);
                }
            }
            Err(why) => self.unread.failed(&why),
        }
        Ok(Arc::clone(&known))
    }

    async fn value(&self, kept: &Kept) -> Result<String, String> {
        let value = match kept {
            Kept::File(path) => {
                let file = path.clone();
                let read = reading(move || job_secrets::text(&file, BYTES_MAX)).await;
                read.map_err(|why| {
                    tracing::error!(file = %path.display(), %why, "a secret cannot be read");
                    format!("cannot be read: its file: {why}")
                })?
            }
            Kept::Reference(reference) => {
                let read = self.kept.read(reference).await;
                read.map_err(|problem| {
                    format!("cannot be read: {}; the worker's log says more", in_short(reference, &problem))
                })?
            }
        };
        let value = value.trim_end_matches(['\r', '\n']);
        match value.len() {
            bytes if bytes < BYTES_MIN => {
                Err(format!("has less than {BYTES_MIN} bytes: too few to be found in what the run prints"))
            }
            bytes if bytes as u64 > BYTES_MAX => Err(format!("has more than {BYTES_MAX} bytes")),
            _ if value.contains('\0') => Err("has a NUL character".to_owned()),
            _ => Ok(value.to_owned()),
        }
    }
}

impl Default for Secrets {
    /// None.
    fn default() -> Self {
        Self::new(None, Arc::new(common::secrets::Aws))
    }
}

/// Shows no value.
impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secrets").field("file", &self.file).finish_non_exhaustive()
    }
}

/// Reads files, not on the threads of the worker's loop.
async fn reading<T: Send + 'static>(read: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    let read = clock::timeout(FILES_WITHIN, tokio::task::spawn_blocking(read)).await;
    read.map_err(|_elapsed| io::Error::from(io::ErrorKind::TimedOut))?.map_err(io::Error::other)?
}

/// Why AWS did not give it, as those may know who see records: neither where it is kept nor as whom the worker asked.
fn in_short(reference: &Reference, problem: &Problem) -> String {
    let service = reference.source.service.word();
    let why = match problem {
        Problem::NoRegion => "no region is known",
        Problem::NoCredentials(_) | Problem::BadCredentials(_) => "the worker's credentials are not taken",
        Problem::NoRoute { .. } => "no route to the service",
        Problem::Denied { .. } => "the worker may not read it",
        Problem::NotFound { .. } => "it is not there",
        Problem::NoObject | Problem::NoKey(_) | Problem::NoText => "it has no such key",
        Problem::Binary => "it is no text",
        Problem::Throttled(_) => "too many requests",
        Problem::Slow(_) => "no answer in time",
        Problem::Unusable(_) | Problem::Unmade(_) | Problem::Failed(_) => "the service does not give it",
    };
    format!("{service}: {why}")
}

/// The secrets of one run. Nothing shows them but who asks for a value.
#[derive(Default)]
pub(crate) struct Resolved {
    values: BTreeMap<SecretName, String>,
    redactor: Option<Arc<Redactor>>,
}

impl Resolved {
    async fn new(values: BTreeMap<SecretName, String>) -> Result<Self, String> {
        // Keys of many lines make a large automaton, which takes some milliseconds.
        let made = tokio::task::spawn_blocking(move || (Redactor::new(&values), values)).await;
        let (redactor, values) = made.map_err(|why| why.to_string())?;
        Ok(Self { redactor: Some(Arc::new(redactor?)), values })
    }

    /// What takes them out of what the run prints; `None` = there are none.
    pub(crate) fn redactor(&self) -> Option<Arc<Redactor>> {
        self.redactor.clone()
    }

    /// What a variable's value stands for.
    pub(super) fn in_value<'a>(&'a self, value: &'a str) -> &'a str {
        let name = SecretName::in_value(value).and_then(Result::ok);
        name.and_then(|name| self.values.get(&name)).map_or(value, String::as_str)
    }

    /// The secret in a header's value, and what the value is with it; `None` = itself.
    pub(super) fn in_header(&self, value: &str) -> Option<(SecretName, String)> {
        let (before, name) = SecretName::in_header(value)?;
        let name = name.ok()?;
        let value = format!("{before}{}", self.values.get(&name)?);
        Some((name, value))
    }
}

#[cfg(test)]
pub(in crate::exec) mod tests;
