//! `POST /job/kill`: asks the worker that runs a job to kill the run. It only writes a key; workers watch for it.

use std::time::Duration;

use common::api::errno::Kind;
use common::clock::Stopwatch;
use common::domain::job::JobName;
use common::domain::kill::{KILL_TTL_SECONDS, KillRequest};
use common::domain::run::{LockHolder, RunId};
use common::keys;
use common::kv::{Kv, Op, Txn};
use lambda_http::Request;
use serde_json::json;

use super::job_name;
use crate::http::{Call, Refusal, Reply, Response, WRITE, answer};
use crate::store;

/// The methods that it takes.
pub const METHODS: &[&str] = WRITE;

/// Serves `POST /job/kill`.
pub async fn handle(kv: &dyn Kv, request: Request) -> Response {
    answer(METHODS, request, async |call| kill(kv, &call).await).await
}

async fn kill(kv: &dyn Kv, call: &Call) -> Result<Reply, Refusal> {
    let since = Stopwatch::start();
    let fields = call.fields(&["name", "runId"])?;
    let name = job_name(&fields)?;
    let (run_ids, warning) = match (open(kv, &name).await?, fields.filled("runId")) {
        (Open::Ours(run_id), None) => (vec![run_id], None),
        (Open::Ours(run_id), Some(wanted)) if run_id.as_str() == wanted => (vec![run_id], None),
        (open, Some(wanted)) => return Err(not_open(&name, &open, wanted)),
        (Open::Seeds, None) => {
            let seed = "a worker of the older kind runs it: it is asked to kill its run, which has no id";
            (Vec::new(), Some(seed.to_owned()))
        }
        (Open::None, None) => {
            (Vec::new(), Some(format!("no run of {:?} is open: there was nothing to kill", name.as_str())))
        }
    };
    let lease = store::grant(kv, Duration::from_secs(KILL_TTL_SECONDS)).await?;
    // If the function dies here, the lease ends without a key and nothing was asked for.
    let request = KillRequest::new(run_ids.clone()).encode();
    // Sending it twice is harmless: it names the runs, and a later one is none of them.
    let put = Txn { then: vec![Op::put_leased(keys::killer(&name), request, lease)], ..Txn::default() };
    store::write(kv, &put, &since, "the kill").await?;
    let mut warnings = call.query_warnings();
    warnings.extend(warning);
    Ok(Reply::new(json!({ "runIds": run_ids }), warnings))
}

/// Who runs the job now.
enum Open {
    None,
    /// A worker of the seed, whose lock says nothing.
    Seeds,
    Ours(RunId),
}

async fn open(kv: &dyn Kv, name: &JobName) -> Result<Open, Refusal> {
    let look = Txn { then: vec![Op::get(keys::lock(name))], ..Txn::default() };
    let reply = store::read(kv, look).await?;
    match reply.pair(0).map(|lock| LockHolder::decode(&lock.value)) {
        None => Ok(Open::None),
        Some(Ok(None)) => Ok(Open::Seeds),
        Some(Ok(Some(holder))) => Ok(Open::Ours(holder.run_id)),
        Some(Err(why)) => {
            let message = format!(
                "the lock of {:?} is {why}, nothing was killed: bring the functions up to the workers' version",
                name.as_str()
            );
            Err(Refusal::new(Kind::Conflict, message))
        }
    }
}

fn not_open(name: &JobName, open: &Open, wanted: &str) -> Refusal {
    let instead = match open {
        Open::None => "none is".to_owned(),
        Open::Seeds => "a run of an older worker is, which has no id: leave runId out to kill it".to_owned(),
        Open::Ours(run_id) => format!("{run_id} is"),
    };
    Refusal::bad(format!("runId: the run {wanted:?} of {:?} is not open, {instead}", name.as_str()))
}
