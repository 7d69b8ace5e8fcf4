//! `POST /job/delete`: deletes a job. Its mark stays (design P6), so that the same job saved again cannot fire a second twice.

use common::api::errno::Kind;
use common::clock::Stopwatch;
use common::domain::job::Job;
use common::keys;
use common::kv::{Compare, Kv, Op, Txn};
use lambda_http::Request;
use serde_json::Value;

use super::{CONFLICTS_MAX, job_name};
use crate::http::{Call, Refusal, Reply, Response, WRITE, answer};
use crate::store;

/// The methods that it takes.
pub const METHODS: &[&str] = WRITE;

/// Serves `POST /job/delete`.
pub async fn handle(kv: &dyn Kv, request: Request) -> Response {
    answer(METHODS, request, async |call| delete(kv, &call).await).await
}

async fn delete(kv: &dyn Kv, call: &Call) -> Result<Reply, Refusal> {
    let since = Stopwatch::start();
    let name = job_name(&call.fields(&["name"])?)?;
    let key = keys::job(&name);
    let look = Txn { then: vec![Op::get(key.as_str())], ..Txn::default() };
    let mut stored = store::read(kv, look).await?.pair(0).cloned();
    let mut doubted = None;
    for _ in 0..CONFLICTS_MAX {
        let Some(pair) = stored else {
            // Gone: because a try of ours whose answer was lost did it, or because it was not there.
            return Ok(reply(name.as_str(), doubted.as_deref(), call));
        };
        // The compare keeps a request that lingers in the network from deleting what is saved later.
        let txn = Txn {
            when: vec![Compare::unchanged(key.as_str(), pair.mod_revision)],
            then: vec![Op::delete(key.as_str())],
            otherwise: vec![Op::get(key.as_str())],
        };
        let written = store::write(kv, &txn, &since, "the delete").await?;
        if written.reply.succeeded {
            return Ok(reply(name.as_str(), Some(&pair.value), call));
        }
        stored = written.reply.pair(0).cloned();
        doubted = written.doubted.then_some(pair.value);
    }
    let message = format!(
        "the job {:?} is being changed by others again and again, it was not deleted: send it again",
        name.as_str()
    );
    Err(Refusal::new(Kind::Conflict, message))
}

fn reply(name: &str, deleted: Option<&[u8]>, call: &Call) -> Reply {
    let mut warnings = call.query_warnings();
    let data = match deleted.map(|value| Job::from_stored(name, value)) {
        None => Value::Null,
        Some(Ok(job)) => job.to_value(),
        Some(Err(fault)) => {
            warnings.push(format!("what was deleted was not a job: {fault}"));
            Value::Null
        }
    };
    Reply::new(data, warnings)
}
