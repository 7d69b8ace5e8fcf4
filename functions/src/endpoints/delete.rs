//! `POST /job/delete`: deletes a job. Its mark stays (design P6), so that the same job saved again cannot fire a second twice.

use common::api::errno::Kind;
use common::clock::Stopwatch;
use common::domain::job::Job;
use common::keys;
use common::kv::{Compare, Kv, Op, Txn};
use lambda_http::Request;
use serde_json::{Value, json};

use super::stored::deletion;
use super::{CONFLICTS_MAX, after, job_name};
use crate::http::{Call, Refusal, Reply, Response, WRITE, answer};
use crate::idempotency::Once;
use crate::store;

/// The methods that it takes.
pub const METHODS: &[&str] = WRITE;

/// Serves `POST /job/delete`.
pub async fn handle(kv: &dyn Kv, request: Request) -> Response {
    answer(METHODS, request, async |call| delete(kv, &call).await).await
}

async fn delete(kv: &dyn Kv, call: &Call) -> Result<Reply, Refusal> {
    let since = Stopwatch::start();
    let name = job_name(call, &call.fields(&["name"])?)?;
    let key = keys::job(&name);
    let mut once = Once::of(call, "delete", &json!({ "name": name.as_str() }))?;
    let reads: Vec<Op> = [Op::get(key.as_str())].into_iter().chain(once.read()).collect();
    let mut found = store::read(kv, Txn { then: reads.clone(), ..Txn::default() }).await?;
    let mut doubted = None;
    for _ in 0..CONFLICTS_MAX {
        if let Some(answered) = once.answered(found.pair(1))? {
            return Ok(answered);
        }
        let stored = found.pair(0).cloned();
        if stored.is_none() && !once.is_named() {
            // Gone: because a try of ours whose answer was lost did it, or because it was not there.
            return Ok(reply(name.as_str(), doubted.as_deref(), call));
        }
        let mut answer = reply(name.as_str(), stored.as_ref().map(|pair| pair.value.as_slice()), call);
        if stored.is_some() {
            answer.warnings.extend(after::waited_for(kv, &name, call.principal()).await?);
        }
        let mut txn = Txn {
            // The compare keeps a request that lingers in the network from deleting what is saved later.
            when: vec![Compare::unchanged(key.as_str(), stored.as_ref().map_or(0, |pair| pair.mod_revision))],
            // Of a job that is not there only the answer is kept: sent again, the request must not delete what was saved meanwhile.
            then: stored.iter().flat_map(|_job| deletion(&name)).collect(),
            otherwise: reads.clone(),
        };
        once.guard(kv, &mut txn, &answer).await?;
        let written = store::write(kv, &txn, &since, "the delete", once.is_named()).await?;
        if written.reply.succeeded {
            return Ok(answer);
        }
        found = written.reply;
        doubted = stored.filter(|_| written.doubted).map(|pair| pair.value);
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
