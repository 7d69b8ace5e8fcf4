//! `POST /fleet/resume`: lifts the fleet's pause. What would have been fired meanwhile is not caught up on (design P7).

use common::clock::{Clock, Stopwatch};
use common::domain::audit::PAUSE;
use common::keys;
use common::kv::{Kv, Op, Txn};
use lambda_http::Request;
use serde_json::Value;

use super::CONFLICTS_MAX;
use super::fleet::{Fleet, contended, state};
use crate::audit::Change;
use crate::http::{Call, Refusal, Reply, Response, WRITE, answer};
use crate::idempotency::Once;
use crate::store;

/// The methods that it takes.
pub const METHODS: &[&str] = WRITE;

/// Serves `POST /fleet/resume`.
pub async fn handle(kv: &dyn Kv, clock: &dyn Clock, request: Request) -> Response {
    answer(METHODS, request, async |call| resume(kv, clock, &call).await).await
}

async fn resume(kv: &dyn Kv, clock: &dyn Clock, call: &Call) -> Result<Reply, Refusal> {
    let since = Stopwatch::start();
    call.fields(&[])?;
    let mut once = Once::of(call, "fleet_resume", &Value::Null)?;
    let mut fleet = Fleet::read(kv, Some(&once)).await?;
    let mut in_doubt: Option<Reply> = None;
    for _ in 0..CONFLICTS_MAX {
        if let Some(answered) = once.answered(fleet.kept.as_ref())? {
            return Ok(answered);
        }
        let mut warnings = call.query_warnings();
        let now = clock.now();
        let (base, then) = if fleet.paused.is_some() {
            // In one transaction: between the two, workers would catch up on the fires of the pause.
            (now.ms().into(), vec![Op::delete(keys::PAUSED), fleet.ends(now)])
        } else {
            if let Some(done) = in_doubt {
                return Ok(done); // by the try whose answer was lost
            }
            warnings.push("the fleet was not paused".to_owned());
            (fleet.shown_base(), Vec::new())
        };
        let mut data = state(Value::Null, base);
        data["ended"] = fleet.shown_pause();
        let reply = Reply::new(data, warnings);
        if then.is_empty() && !once.is_named() {
            return Ok(reply);
        }
        let change = fleet
            .paused
            .as_ref()
            .map(|paused| Change::new(call, "fleet_resume", now).touching(PAUSE, Some(paused), None));
        let mut txn = Txn { when: fleet.unchanged(), then, otherwise: Fleet::reads(Some(&once)) };
        once.guard(kv, &mut txn, &reply).await?;
        let (what, named) = ("resuming the fleet", once.is_named());
        let written = store::write(kv, &txn, &since, what, named, change.as_ref()).await?;
        if written.reply.succeeded {
            return Ok(reply);
        }
        in_doubt = Some(reply).filter(|_| written.doubted && !once.is_named());
        fleet = Fleet::of(&written.reply);
    }
    Err(contended())
}
