//! What the endpoints ask of the two stores: writes whose lost answer is settled, and the sentences that a client sees when a store
//! fails. A connection that died while the function was frozen is replaced by the ports themselves.

use std::time::Duration;

use common::api::errno::Kind;
use common::clock::{self, Stopwatch};
use common::domain::audit::Entry;
use common::domain::output::Chunk;
use common::domain::record::Record;
use common::domain::run::RunId;
use common::history::{Query, Shelf};
use common::ids::backoff;
use common::kv::{self, Kv, Range, RangeReply, Txn, TxnReply};
use common::run_log::{self, Place, RecordQuery, RunLog};

use crate::audit::Change;
use crate::http::{Refusal, again};

/// A write in doubt is sent again until so long after the start, so that the last try (3 s) ends before the handler's time does.
const RESEND_UNTIL: Duration = Duration::from_secs(6);
/// First pause before a write in doubt is sent again.
const PAUSE_MS: u64 = 50;
/// Longest such pause.
const PAUSE_MS_MAX: u64 = 800;

/// Names of secrets and roles are nobody's business but the log's.
const UNCONFIGURED: &str = "this function's configuration refers to secrets that cannot be read, nothing was changed: the function's log says why; tell whoever runs it";

/// What a write answered.
pub(crate) struct Written {
    /// The answer to the last try.
    pub(crate) reply: TxnReply,
    /// An earlier try went without an answer: where this one failed its compares, the earlier one may be why.
    pub(crate) doubted: bool,
}

/// Sends a transaction that is idempotent under its compares, again and identical while it is in doubt (design P2). `what` it is and whether
/// its client `named` it by a key is for the sentence that tells of the doubt. The `change` that it makes is left for the audit by the same
/// transaction; `None` = it changes nothing that anybody would ask for later.
pub(crate) async fn write(
    kv: &dyn Kv,
    txn: &Txn,
    since: &Stopwatch,
    what: &str,
    named: bool,
    change: Option<&Change>,
) -> Result<Written, Refusal> {
    let mut txn = txn.clone();
    if let Some(change) = change {
        change.join(&mut txn);
    }
    let mut doubted = false;
    for attempt in 0.. {
        let error = match kv.txn(txn.clone()).await {
            Ok(mut reply) => {
                let refused = change.filter(|_| !reply.succeeded);
                // In doubt it is not said: an earlier try may have been applied, and the caller finds that out from what is there now.
                if refused.is_some_and(|change| change.is_too_much(&mut reply)) && !doubted {
                    return Err(too_much_waits());
                }
                return Ok(Written { reply, doubted });
            }
            Err(error) => error,
        };
        tracing::warn!(%error, what, attempt, "write failed");
        if matches!(error, kv::Error::Full(_)) {
            return Err(in_doubt_when_full(what, named));
        }
        doubted |= matches!(error, kv::Error::Indeterminate(_));
        if !doubted {
            return Err(kv_refusal(&error));
        }
        let worth_a_try = matches!(error, kv::Error::Indeterminate(_) | kv::Error::Unavailable(_));
        if !worth_a_try || since.elapsed() >= RESEND_UNTIL {
            break;
        }
        clock::sleep(backoff(attempt, PAUSE_MS, PAUSE_MS_MAX)).await;
    }
    Err(in_doubt(what, named))
}

fn too_much_waits() -> Refusal {
    let message = "too many changes wait for the store of records (MongoDB), where it is kept who made them: nothing was changed; see to that store, \
                   or to a worker that reaches it, and send it again (what kills or pauses is done all the same)";
    Refusal::new(Kind::Unavailable, message)
}

fn in_doubt(what: &str, named: bool) -> Refusal {
    let message = format!(
        "the store of jobs (etcd) did not confirm in time: {what} may or may not have happened; {}",
        again(named)
    );
    Refusal::new(Kind::Unavailable, message)
}

/// A store that is full refuses also the write that filled it, having done it.
fn in_doubt_when_full(what: &str, named: bool) -> Refusal {
    let message = format!(
        "the store of jobs (etcd) is full: tell whoever runs it; {what} may or may not have happened; {}",
        again(named)
    );
    Refusal::new(Kind::Unavailable, message)
}

/// A transaction that only reads.
pub(crate) async fn read(kv: &dyn Kv, txn: Txn) -> Result<TxnReply, Refusal> {
    kv.txn(txn).await.map_err(reported)
}

/// Reads a range.
pub(crate) async fn range(kv: &dyn Kv, range: Range) -> Result<RangeReply, Refusal> {
    match kv.range(range.clone()).await {
        // Somebody compacted between two pages: the rest is read as it is now, each job still whole.
        Err(kv::Error::Compacted(_)) => kv.range(Range { revision: None, ..range }).await,
        answered => answered,
    }
    .map_err(reported)
}

/// A new lease. One that was granted without our knowing holds no key and goes by itself.
pub(crate) async fn grant(kv: &dyn Kv, ttl: Duration) -> Result<kv::LeaseId, Refusal> {
    kv.grant(ttl).await.map_err(reported)
}

/// Lists what is kept of changes.
pub(crate) async fn kept(run_log: &dyn RunLog, shelf: Shelf, query: &Query) -> Result<Vec<Entry>, Refusal> {
    run_log.kept(shelf, query).await.map_err(unread)
}

/// Lists records.
pub(crate) async fn list(run_log: &dyn RunLog, query: &RecordQuery) -> Result<Vec<Record>, Refusal> {
    run_log.list(query).await.map_err(unread)
}

/// Where a record is in the list.
pub(crate) async fn place(run_log: &dyn RunLog, query: &RecordQuery) -> Result<Option<Place>, Refusal> {
    run_log.place(query).await.map_err(unread)
}

/// One record, by its id or its run's.
pub(crate) async fn get(run_log: &dyn RunLog, id: &str) -> Result<Option<Record>, Refusal> {
    run_log.get(id).await.map_err(unread)
}

/// What a run has printed.
pub(crate) async fn output(run_log: &dyn RunLog, run_id: &RunId, after: u64) -> Result<Vec<Chunk>, Refusal> {
    run_log.output(run_id, after).await.map_err(unread)
}

fn unread(error: run_log::Error) -> Refusal {
    tracing::warn!(%error, "record store failed");
    run_log_refusal(&error)
}

fn reported(error: kv::Error) -> Refusal {
    tracing::warn!(%error, "store of jobs failed");
    kv_refusal(&error)
}

fn kv_refusal(error: &kv::Error) -> Refusal {
    let (kind, message) = match error {
        kv::Error::Unavailable(_) | kv::Error::Indeterminate(_) => (
            Kind::Unavailable,
            "the store of jobs (etcd) does not answer, nothing was changed: try again in a moment",
        ),
        kv::Error::Denied(_) => (
            Kind::Unavailable,
            "the store of jobs (etcd) refuses this function's credentials, or they do not allow this, nothing was changed: see CRON_ETCD_USERNAME, _PASSWORD, _CERT and _KEY, and the roles of that user; the function's log says which",
        ),
        kv::Error::Insecure(_) => (
            Kind::Unavailable,
            "the store of jobs (etcd) and this function do not agree on a connection, nothing was changed: see CRON_ETCD_ENDPOINTS, _CA, _CERT and _KEY, and etcd's own certificate; the function's log says which",
        ),
        kv::Error::Unconfigured(_) => (Kind::Unavailable, UNCONFIGURED),
        kv::Error::Compacted(_) | kv::Error::LeaseGone => {
            (Kind::Unavailable, "the store of jobs (etcd) moved on meanwhile, nothing was changed: try again")
        }
        kv::Error::Full(_) => {
            (Kind::Unavailable, "the store of jobs (etcd) is full, nothing was changed: tell whoever runs it")
        }
        kv::Error::Internal(_) => (
            Kind::Unavailable,
            "the store of jobs (etcd) is broken, nothing was changed: tell whoever runs it",
        ),
        kv::Error::Invalid(_) => {
            (Kind::Internal, "this is a bug of Fleetcron, nothing was changed: the function's log says more")
        }
    };
    Refusal::new(kind, message)
}

fn run_log_refusal(error: &run_log::Error) -> Refusal {
    let (kind, message) = match error {
        run_log::Error::Unavailable(_) => {
            (Kind::Unavailable, "the store of records (MongoDB) does not answer: try again in a moment")
        }
        run_log::Error::Denied(_) => (
            Kind::Unavailable,
            "the store of records (MongoDB) refuses this function's credentials: see CRON_MONGODB_URI",
        ),
        run_log::Error::Unconfigured(_) => (Kind::Unavailable, UNCONFIGURED),
        run_log::Error::Internal(_) => {
            (Kind::Unavailable, "the store of records (MongoDB) is full or broken: tell whoever runs it")
        }
        run_log::Error::Invalid(_) => {
            (Kind::Internal, "this is a bug of Fleetcron: the function's log says more")
        }
    };
    Refusal::new(kind, message)
}
