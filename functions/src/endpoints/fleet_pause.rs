//! `POST /fleet/pause`: no worker claims anything until the pause is lifted. What runs goes on, and so does what is claimed.

use common::clock::{Clock, Stopwatch};
use common::domain::audit::PAUSE;
use common::domain::pause::Pause;
use common::keys;
use common::kv::{Compare, Kv, Op, Txn};
use lambda_http::Request;
use serde_json::json;

use super::CONFLICTS_MAX;
use super::fleet::{Fleet, contended, shown, state};
use crate::audit::Change;
use crate::http::{Call, Refusal, Reply, Response, WRITE, answer};
use crate::idempotency::Once;
use crate::store;

/// The methods that it takes.
pub const METHODS: &[&str] = WRITE;

/// Longest reason, in bytes: some sentences. Every worker reads it.
const REASON_BYTES_MAX: usize = 1000;

/// Serves `POST /fleet/pause`.
pub async fn handle(kv: &dyn Kv, clock: &dyn Clock, request: Request) -> Response {
    answer(METHODS, request, async |call| pause(kv, clock, &call).await).await
}

async fn pause(kv: &dyn Kv, clock: &dyn Clock, call: &Call) -> Result<Reply, Refusal> {
    let since = Stopwatch::start();
    let fields = call.fields(&["reason"])?;
    let reason = fields.get("reason").map(str::trim).filter(|reason| !reason.is_empty());
    if let Some(long) = reason.map(str::len).filter(|bytes| *bytes > REASON_BYTES_MAX) {
        return Err(Refusal::bad(format!("reason: is {long} bytes long: shorten it to {REASON_BYTES_MAX}")));
    }
    let mut once = Once::of(call, "fleet_pause", &json!({ "reason": reason }))?;
    let ours = Pause::new(clock.now(), call.caller().map(str::to_owned), reason.map(str::to_owned));
    let mut fleet = Fleet::read(kv, Some(&once)).await?;
    for _ in 0..CONFLICTS_MAX {
        if let Some(answered) = once.answered(fleet.kept.as_ref())? {
            return Ok(answered);
        }
        let mut warnings = call.query_warnings();
        let (paused, then) = match &fleet.paused {
            None => (shown(&ours), vec![Op::put(keys::PAUSED, ours.encode())]),
            // A try of ours whose answer was lost did it.
            Some(pair) if pair.value == ours.encode() => (shown(&ours), Vec::new()),
            Some(_) => {
                warnings.push("the fleet was paused before: that pause and its reason stand".to_owned());
                (fleet.shown_pause(), Vec::new())
            }
        };
        let reply = Reply::new(state(paused, fleet.shown_base()), warnings);
        if then.is_empty() && !once.is_named() {
            return Ok(reply);
        }
        let change = (!then.is_empty()).then(|| {
            let change = Change::new(call, "fleet_pause", ours.since).ending_something();
            change.touching(PAUSE, None, Some(&ours.encode()))
        });
        let when = vec![Compare::unchanged(keys::PAUSED, fleet.revision())];
        let mut txn = Txn { when, then, otherwise: Fleet::reads(Some(&once)) };
        once.guard(kv, &mut txn, &reply).await?;
        let (what, named) = ("pausing the fleet", once.is_named());
        let written = store::write(kv, &txn, &since, what, named, change.as_ref()).await?;
        if written.reply.succeeded {
            return Ok(reply);
        }
        fleet = Fleet::of(&written.reply);
    }
    Err(contended())
}
