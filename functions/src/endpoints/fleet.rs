//! The fleet's pause as it is stored, for the three routes that show and change it.

use common::api::errno::Kind;
use common::clock::Timestamp;
use common::domain::pause::{Base, Pause};
use common::keys;
use common::kv::{Compare, Kv, Op, Pair, Revision, Txn, TxnReply};
use serde_json::{Value, json};

use crate::http::Refusal;
use crate::idempotency::Once;
use crate::store;

/// Whether the fleet is paused, and since when fires count.
pub(super) struct Fleet {
    pub(super) paused: Option<Pair>,
    base: Option<Pair>,
    pub(super) kept: Option<Pair>,
}

impl Fleet {
    /// Reads it, with the answer that may be kept.
    pub(super) async fn read(kv: &dyn Kv, once: Option<&Once>) -> Result<Self, Refusal> {
        let look = Txn { then: Self::reads(once), ..Txn::default() };
        Ok(Self::of(&store::read(kv, look).await?))
    }

    /// The operations that read it.
    pub(super) fn reads(once: Option<&Once>) -> Vec<Op> {
        let mut reads = vec![Op::get(keys::PAUSED), Op::get(keys::BASE)];
        reads.extend(once.and_then(Once::read));
        reads
    }

    /// From the replies to [`Self::reads`].
    pub(super) fn of(reply: &TxnReply) -> Self {
        let pair = |index| reply.pair(index).cloned();
        Self { paused: pair(0), base: pair(1), kept: pair(2) }
    }

    /// Of the key that pauses; 0 = it is absent.
    pub(super) fn revision(&self) -> Revision {
        self.paused.as_ref().map_or(0, |pair| pair.mod_revision)
    }

    /// The pause as its own object; null when there is none. Of one that other hands have put nothing is known.
    pub(super) fn shown_pause(&self) -> Value {
        match self.paused.as_ref().map(|pair| Pause::decode(&pair.value)) {
            None => Value::Null,
            Some(Ok(pause)) => shown(&pause),
            Some(Err(_of_other_hands)) => json!({ "since": null }),
        }
    }

    /// When a pause last ended; null when none has.
    pub(super) fn shown_base(&self) -> Value {
        match self.stored_base().at {
            Timestamp::ZERO => Value::Null,
            at => at.ms().into(),
        }
    }

    /// One that cannot be read is as good as none.
    fn stored_base(&self) -> Base {
        self.base.as_ref().and_then(|pair| Base::decode(&pair.value).ok()).unwrap_or_default()
    }

    /// The base that ends a pause now, in the place of the one that was read.
    pub(super) fn ends(&self, now: Timestamp) -> Op {
        Op::put(keys::BASE, self.stored_base().resumed(now).encode())
    }

    /// What lifting the pause compares: a request that lingers in the network does not lift the next one, nor undo what a worker has written into
    /// the base meanwhile.
    pub(super) fn unchanged(&self) -> Vec<Compare> {
        let base = self.base.as_ref().map_or(0, |pair| pair.mod_revision);
        vec![Compare::unchanged(keys::PAUSED, self.revision()), Compare::unchanged(keys::BASE, base)]
    }
}

/// A pause as the API shows it.
pub(super) fn shown(pause: &Pause) -> Value {
    let mut shown = json!({ "since": pause.since.ms() });
    for (field, text) in [("by", &pause.by), ("reason", &pause.reason)] {
        if let Some(text) = text {
            shown[field] = text.as_str().into();
        }
    }
    shown
}

/// The state as all three routes answer it.
pub(super) fn state(paused: Value, resumed_at: Value) -> Value {
    json!({ "paused": paused, "resumedAt": resumed_at })
}

/// Others were first each time.
pub(super) fn contended() -> Refusal {
    let message = "others pause and resume the fleet again and again, it was left as it is: send it again";
    Refusal::new(Kind::Conflict, message)
}
