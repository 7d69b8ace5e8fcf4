//! Jobs that run on every worker (`mode: "broadcast"`): what a save must look at.

use common::domain::access::Principal;
use common::domain::job::{Job, JobName};
use common::keys;
use common::kv::{Kv, Range};

use super::after;
use crate::http::Refusal;
use crate::store;

/// Most workers that are looked at for those of the older kind.
const WORKERS_MAX: usize = 1_000;

/// What the author of such a job should know.
///
/// # Errors
/// Others wait for it; or the store does not answer.
pub(super) async fn look(kv: &dyn Kv, job: &Job, whose: &Principal) -> Result<Option<String>, Refusal> {
    if !job.options.is_broadcast() {
        return Ok(None);
    }
    let (named, any) = after::who_waits(kv, &job.name, whose).await?;
    if any {
        let named = named.unwrap_or_else(|| "not among those of this token".to_owned());
        return Err(Refusal::bad(format!(
            "mode: jobs wait for this one (after: {named}), and one that runs on every worker has no one end to wait for: leave it out here or there"
        )));
    }
    let workers = store::range(kv, Range::prefix(keys::WORKERS).limit(WORKERS_MAX)).await?;
    let seeds = workers.pairs.iter().any(|pair| pair.value.is_empty());
    let warning = "mode: a worker of the older kind is registered, which knows no options: it runs this job as well, under the lock, and alone among its kind";
    Ok(seeds.then(|| warning.to_owned()))
}

/// The refusal of a job that would wait for one that runs on every worker.
pub(super) fn no_predecessor(name: &JobName) -> Refusal {
    Refusal::bad(format!(
        "after: {:?} runs on every worker (mode: \"broadcast\") and has no one end to wait for: name another, or leave it out",
        name.as_str()
    ))
}
