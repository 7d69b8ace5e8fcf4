//! Refused tokens in the audit: one note for all that were refused since the last one, and one such note a minute in the whole fleet.
//!
//! A stranger can so make something be written, and nothing else. It is little however many tokens are shown, from however many addresses and to
//! however many processes: `/cron/refused` says when the last note was left, and the transaction that leaves the next compares that and puts it anew.
//! *Closes*: processes that each keep to a bound of their own, of which Lambda starts as many as are asked for. What is refused within the minute
//! waits in its process for the next refused token behind it. Where none comes any more, the log has it, which has each.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use common::clock::{Clock, Timestamp};
use common::domain::audit::Origin;
use common::domain::token::Used;
use common::keys;
use common::kv::{self, Compare, Kv, Op, Txn};
use lambda_http::Request;
use serde_json::json;

use super::manage::TOKEN;
use crate::audit::{self, Change};
use crate::caller;

/// What the audit calls it.
const ACTION: &str = "token_refused";
/// A note is left so often at most.
const EVERY_MS: i64 = 60_000;
/// A note names so many addresses; of more it tells how many tokens came from them.
const ADDRESSES_MAX: usize = 20;
/// Under which the others are counted, and those that are not known.
const OTHERS: &str = "others";

/// What was refused here and stands in no note yet.
pub(super) struct Refused {
    kv: Arc<dyn Kv>,
    clock: Arc<dyn Clock>,
    tally: Arc<Mutex<Tally>>,
}

#[derive(Default)]
struct Tally {
    /// How many tokens, by the address that they came from.
    waiting: BTreeMap<String, u64>,
    /// When a note was last tried.
    tried: Option<Timestamp>,
}

impl Tally {
    fn add(&mut self, address: &str, many: u64) {
        let room = self.waiting.len() < ADDRESSES_MAX || self.waiting.contains_key(address);
        let counted = self.waiting.entry(if room { address } else { OTHERS }.to_owned()).or_default();
        *counted = counted.saturating_add(many);
    }
}

fn locked(tally: &Mutex<Tally>) -> MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether one of the two is of the same minute as the other, whichever clock is ahead.
fn is_within(one: Timestamp, other: Timestamp) -> bool {
    one.ms_since(other).abs() < EVERY_MS
}

impl Refused {
    pub(super) fn new(kv: Arc<dyn Kv>, clock: Arc<dyn Clock>) -> Self {
        Self { kv, clock, tally: Arc::default() }
    }

    /// Counts the refused token of a request, and leaves a note beside its answer where it is time for one.
    pub(super) fn count(&self, request: &Request) {
        let now = self.clock.now();
        let address =
            caller::address(request).map_or_else(|| OTHERS.to_owned(), |address| address.to_string());
        let waiting = {
            let mut tally = locked(&self.tally);
            tally.add(&address, 1);
            if tally.tried.is_some_and(|tried| is_within(now, tried)) {
                return;
            }
            tally.tried = Some(now);
            std::mem::take(&mut tally.waiting)
        };
        let (kv, tally, origin) = (Arc::clone(&self.kv), Arc::clone(&self.tally), audit::origin(request));
        drop(tokio::spawn(async move {
            // If this process dies here, or is never thawed, what waited is in the log alone.
            let left = leave(&*kv, &origin, now, &waiting).await.unwrap_or_else(|error| {
                tracing::debug!(%error, "refused tokens were not noted in the audit");
                false
            });
            if !left {
                // What is in doubt may be told twice.
                let mut tally = locked(&tally);
                waiting.iter().for_each(|(address, many)| tally.add(address, *many));
            }
        }));
    }
}

/// Leaves a note; false when it is not time for one yet, or too much waits of the audit.
async fn leave(
    kv: &dyn Kv,
    origin: &Origin,
    now: Timestamp,
    waiting: &BTreeMap<String, u64>,
) -> Result<bool, kv::Error> {
    let found = kv.txn(Txn { then: vec![Op::get(keys::REFUSED)], ..Txn::default() }).await?;
    let last = found.pair(0);
    // What cannot be read is replaced.
    if last.and_then(|pair| Used::decode(&pair.value).ok()).is_some_and(|last| is_within(now, last.at)) {
        return Ok(false);
    }
    let mut txn = Txn {
        when: vec![Compare::unchanged(keys::REFUSED, last.map_or(0, |pair| pair.mod_revision))],
        then: vec![Op::put(keys::REFUSED, Used::new(now).encode())],
        ..Txn::default()
    };
    let count: u64 = waiting.values().fold(0, |all, many| all.saturating_add(*many));
    let change = Change::of(origin, ACTION, now)
        .touching(TOKEN, None, None)
        .with("count", count)
        .with("addresses", json!(waiting));
    change.join(&mut txn);
    Ok(kv.txn(txn).await?.succeeded)
}
