//! `POST /job/kill`: asks the worker that runs a job to kill the run. It only writes a key; workers watch for it.

use std::time::Duration;

use common::api::errno::Kind;
use common::clock::Stopwatch;
use common::domain::job::JobName;
use common::domain::kill::{KILL_TTL_SECONDS, KillRequest};
use common::domain::run::{LockHolder, RunId};
use common::keys;
use common::kv::{Kv, Op, Pair, Txn};
use lambda_http::Request;
use serde_json::json;

use super::job_name;
use crate::http::{Call, Refusal, Reply, Response, WRITE, answer};
use crate::idempotency::Once;
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
    let asked = json!({ "name": name.as_str(), "runId": fields.filled("runId") });
    let mut once = Once::of(call, "kill", &asked)?;
    let reads = [Op::get(keys::lock(&name))].into_iter().chain(once.read()).collect();
    let found = store::read(kv, Txn { then: reads, ..Txn::default() }).await?;
    if let Some(answered) = once.answered(found.pair(1))? {
        return Ok(answered);
    }
    let (run_ids, warning) = match (open(&name, found.pair(0))?, fields.filled("runId")) {
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
    let mut warnings = call.query_warnings();
    warnings.extend(warning);
    let reply = Reply::new(json!({ "runIds": run_ids }), warnings);
    // Sending it twice is harmless: it names the runs, and a later one is none of them.
    let put = Op::put_leased(keys::killer(&name), request, lease);
    let mut txn = Txn { then: vec![put], otherwise: once.read().into_iter().collect(), ..Txn::default() };
    once.guard(kv, &mut txn, &reply).await?;
    let written = store::write(kv, &txn, &since, "the kill", once.is_named()).await?;
    if written.reply.succeeded {
        return Ok(reply);
    }
    // Refused, so an answer is kept: that of a try of ours whose answer was lost, or of another request with the key.
    once.answered(written.reply.pair(0))?.ok_or_else(|| {
        let message =
            "the answer kept under this Idempotency-Key has just expired, nothing was changed: send it again";
        Refusal::new(Kind::Conflict, message)
    })
}

/// Who runs the job now.
enum Open {
    None,
    /// A worker of the seed, whose lock says nothing.
    Seeds,
    Ours(RunId),
}

fn open(name: &JobName, lock: Option<&Pair>) -> Result<Open, Refusal> {
    match lock.map(|lock| LockHolder::decode(&lock.value)) {
        None => Ok(Open::None),
        Some(Ok(None)) => Ok(Open::Seeds),
        Some(Ok(Some(holder))) => Ok(Open::Ours(holder.run_id)),
        Some(Err(why)) => {
            let message = format!(
                "the lock of {:?} cannot be read ({why}), nothing was killed: bring the functions up to the workers' version",
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
