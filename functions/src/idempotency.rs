//! Changes that are made once, however often they are sent: what the header `Idempotency-Key` does.
//!
//! The first answer is put into etcd by the very transaction that makes the change, under a compare that no answer is there yet. So there is
//! no moment in which the one exists without the other, and of two requests with one key that come at once, one applies and the other finds
//! its answer: nothing is ever "in flight", and the IETF draft's 409 for that has no place here. Only served requests are kept; one that was
//! refused changed nothing and may be sent again as it is.

use std::time::Duration;

use common::api::envelope::Envelope;
use common::api::errno::Kind;
use common::domain::idempotency::{IdempotencyKey, KEPT_SECONDS, Kept, fingerprint};
use common::keys;
use common::kv::{Compare, Kv, LeaseId, Op, Pair, Txn};
use serde_json::Value;

use crate::http::{Call, Refusal, Reply};
use crate::store;

/// The request's header.
pub(crate) const HEADER: &str = "idempotency-key";
/// The header of an answer that is the first one again. The draft names none; this is the one that clients know.
pub(crate) const REPLAYED: &str = "idempotent-replayed";

/// A change that may have been named by its client. Without a name all of this does nothing, and costs nothing.
pub(crate) struct Once(Option<Named>);

struct Named {
    key: String,
    by_client: bool,
    kept_for: Duration,
    fingerprint: String,
    lease: Option<LeaseId>,
}

/// The answer to a change that its client has not named is kept for as long as a try of ours may be on its way.
const OWN_KEPT_FOR: Duration = Duration::from_secs(60);

impl Once {
    /// Reads the header; `route` and `asked` tell this request from others.
    pub(crate) fn of(call: &Call, route: &str, asked: &Value) -> Result<Self, Refusal> {
        let Some(key) = key(call)? else { return Ok(Self(None)) };
        let fingerprint = fingerprint(route, asked);
        let key = key.of_caller(&call.principal().means);
        let (key, kept_for) = (keys::idempotency(&key), Duration::from_secs(KEPT_SECONDS));
        Ok(Self(Some(Named { key, by_client: true, kept_for, fingerprint, lease: None })))
    }

    /// For a change that needs no name: made twice, it is as if it were made once.
    pub(crate) fn never() -> Self {
        Self(None)
    }

    /// As [`Self::of`]; a change that its client has not named is named by us. For one that leaves nothing behind by which it could be told
    /// whether a try whose answer was lost was applied.
    pub(crate) fn always(call: &Call, route: &str, asked: &Value) -> Result<Self, Refusal> {
        let once = Self::of(call, route, asked)?;
        if once.0.is_some() {
            return Ok(once);
        }
        let key = IdempotencyKey::random();
        let (key, kept_for) = (keys::idempotency(&key), OWN_KEPT_FOR);
        Ok(Self(Some(Named { key, by_client: false, kept_for, fingerprint: String::new(), lease: None })))
    }

    /// Whether the client gave a key.
    pub(crate) fn is_named(&self) -> bool {
        self.0.as_ref().is_some_and(|named| named.by_client)
    }

    /// Reads the kept answer; to go behind the operations that read what the change is decided from.
    pub(crate) fn read(&self) -> Option<Op> {
        self.0.as_ref().map(|named| Op::get(named.key.as_str()))
    }

    /// The answer, when this request was served before; `kept` is what [`Self::read`] found.
    pub(crate) fn answered(&self, kept: Option<&Pair>) -> Result<Option<Reply>, Refusal> {
        let (Some(named), Some(pair)) = (&self.0, kept) else { return Ok(None) };
        let kept = Kept::decode(&pair.value).map_err(|why| {
            let message = format!(
                "what was answered to this Idempotency-Key cannot be read ({why}), nothing was changed: bring all functions to one version"
            );
            Refusal::new(Kind::Conflict, message)
        })?;
        if kept.fingerprint != named.fingerprint {
            let message = "this Idempotency-Key was used for another request, nothing was changed: give every change a key of its \
                           own, and use it again only to send the same change again";
            return Err(Refusal::new(Kind::KeyReused, message));
        }
        // What hangs on our own lease we put ourselves, by a try whose answer was lost: then it is the first answer.
        let replayed = pair.lease.is_none() || pair.lease != named.lease;
        let Envelope { data, next, description, warnings, .. } = kept.reply;
        Ok(Some(Reply { data, next, description, warnings, replayed }))
    }

    /// Makes `txn` apply only if no answer is kept, and keep `reply` if it applies.
    pub(crate) async fn guard(&mut self, kv: &dyn Kv, txn: &mut Txn, reply: &Reply) -> Result<(), Refusal> {
        let Some(named) = &mut self.0 else { return Ok(()) };
        let lease = match named.lease {
            Some(lease) => lease,
            None => store::grant(kv, named.kept_for).await?,
        };
        // If the function dies here, or another request with the key comes first, the lease ends without a key.
        named.lease = Some(lease);
        let kept = Kept::new(named.fingerprint.clone(), reply.clone().into_envelope());
        txn.when.push(Compare::absent(named.key.as_str()));
        txn.then.push(Op::put_leased(named.key.as_str(), kept.encode(), lease));
        Ok(())
    }
}

fn key(call: &Call) -> Result<Option<IdempotencyKey>, Refusal> {
    let mut values = call.headers().get_all(HEADER).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let parsed = match values.next() {
        None => IdempotencyKey::parse(value.as_bytes()),
        Some(_) => Err("is given twice".to_owned()),
    };
    parsed.map(Some).map_err(|why| {
        Refusal::bad(format!(
            "Idempotency-Key: {why}: give one key of 1 to 255 printable ASCII characters, for example a UUID"
        ))
    })
}
