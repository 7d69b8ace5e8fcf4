//! The worker's session: its lease, what hangs on it, and its registration.

use std::time::Duration;

use common::clock::{self, Clock, Stopwatch};
use common::domain::worker::{Identity, Registration, Sid};
use common::ids::backoff;
use common::keys;
use common::kv::{self, Compare, Kv, Op, Range, Txn};

use crate::retries::Retries;

/// Workers of one id on different machines, or several on one, become `id`, `id~2`, … up to this.
const SUFFIX_MAX: usize = 64;
/// Pauses between attempts to get a session double from the first to the second, in ms.
const RETRY_MIN_MS: u64 = 100;
const RETRY_MAX_MS: u64 = 5_000;

/// What a registration says beside who the worker is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Standing {
    /// See [`Registration::aside`].
    pub(crate) aside: bool,
    /// See [`Registration::asks`].
    pub(crate) asks: bool,
}

impl Standing {
    /// A registration to be written now.
    fn registration(self, identity: &Identity, sid: Sid, clock: &dyn Clock) -> Registration {
        let mut registration = Registration::new(identity, sid, clock.now());
        (registration.aside, registration.asks) = (self.aside, self.asks);
        registration
    }
}

/// A session that was established.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(crate) sid: Sid,
    /// The name under which the worker is registered.
    pub(crate) worker_id: String,
    /// Revision of the registration.
    pub(crate) registered_at: kv::Revision,
    /// What it says.
    pub(crate) standing: Standing,
    /// Since when the lease is counted: before it was asked for.
    pub(crate) since: Stopwatch,
    /// The watch has told of the registration: when it tells of none again, somebody has deleted it.
    pub(crate) seen: bool,
}

/// Gets a session, trying until it succeeds.
pub(crate) async fn establish(
    kv: &dyn Kv,
    clock: &dyn Clock,
    identity: &Identity,
    id: &str,
    ttl: Duration,
    standing: Standing,
) -> Session {
    let retries = Retries::new("no session yet");
    let mut failures = 0;
    loop {
        match try_establish(kv, clock, identity, id, ttl, standing).await {
            Ok(session) => return session, // which its caller says
            Err(why) => {
                failures += 1;
                retries.failed(&why);
                clock::sleep(backoff(failures - 1, RETRY_MIN_MS, RETRY_MAX_MS)).await;
            }
        }
    }
}

/// Tries once.
pub(crate) async fn try_establish(
    kv: &dyn Kv,
    clock: &dyn Clock,
    identity: &Identity,
    id: &str,
    ttl: Duration,
    standing: Standing,
) -> Result<Session, kv::Error> {
    let since = Stopwatch::start();
    let sid = open(kv, ttl).await?;
    let registration = standing.registration(identity, sid, clock);
    let (worker_id, registered_at) = register(kv, &registration, id).await?;
    Ok(Session { sid, worker_id, registered_at, standing, since, seen: false })
}

/// Opens a session: a lease, and the key that lives with it.
pub(crate) async fn open(kv: &dyn Kv, ttl: Duration) -> Result<Sid, kv::Error> {
    let sid = Sid::of(kv.grant(ttl).await?);
    // If this process dies here, the lease expires without any key.
    let opened = kv
        .txn(Txn {
            when: vec![Compare::absent(keys::session(sid))],
            then: vec![Op::put_leased(keys::session(sid), b"{\"v\":1}".as_slice(), sid.lease())],
            otherwise: Vec::new(),
        })
        .await?;
    debug_assert!(opened.succeeded, "the store never gives a lease id twice");
    Ok(sid)
}

/// Registers anew in the same session: a seed worker on this machine has put its registration over ours, or somebody has deleted it.
///
/// # Errors
/// [`kv::Error::LeaseGone`] when the session is over.
pub(crate) async fn register_again(
    kv: &dyn Kv,
    clock: &dyn Clock,
    identity: &Identity,
    id: &str,
    sid: Sid,
    standing: Standing,
) -> Result<(String, kv::Revision), kv::Error> {
    register(kv, &standing.registration(identity, sid, clock), id).await
}

/// Puts a registration again as long as it hangs on the session's own lease: one that was taken away, or that a seed worker has put its own
/// over, does not come back. Its new revision; `None` when it was not put.
pub(crate) async fn renew(
    kv: &dyn Kv,
    clock: &dyn Clock,
    identity: &Identity,
    id: &str,
    sid: Sid,
    standing: Standing,
) -> Result<Option<kv::Revision>, kv::Error> {
    let key = keys::worker(id);
    let registration = standing.registration(identity, sid, clock);
    let txn = Txn {
        when: vec![
            Compare::exists(keys::session(sid)),
            Compare::Lease(key.clone().into(), Some(sid.lease())),
        ],
        then: vec![Op::put_leased(key, registration.encode(), sid.lease())],
        otherwise: Vec::new(),
    };
    let reply = kv.txn(txn).await?;
    Ok(reply.succeeded.then_some(reply.revision))
}

/// Registers under `id`, or `id~2`, … when others hold that. The registration that this very instance left behind is taken over at
/// once, with its session: its data directory is locked, so that its process is gone (design P4).
async fn register(
    kv: &dyn Kv,
    registration: &Registration,
    id: &str,
) -> Result<(String, kv::Revision), kv::Error> {
    for number in 1..=SUFFIX_MAX {
        let name = if number == 1 { id.to_owned() } else { format!("{id}~{number}") };
        if let Some(revision) = try_register(kv, registration, &name).await? {
            return Ok((name, revision));
        }
    }
    Err(kv::Error::Internal(format!(
        "{SUFFIX_MAX} workers are registered as {id} already: set CRON_WORKER_ID"
    )))
}

/// The revision of the registration; `None` when another holds the name.
async fn try_register(
    kv: &dyn Kv,
    registration: &Registration,
    name: &str,
) -> Result<Option<kv::Revision>, kv::Error> {
    let key = keys::worker(name);
    loop {
        let held = kv.range(Range::key(key.clone())).await?.pairs.into_iter().next();
        let mut revision = held.as_ref().map_or(0, |pair| pair.mod_revision);
        match held.map(|pair| Registration::decode(&pair.value)) {
            None => {}
            Some(Ok(Some(old))) if old.sid == registration.sid => return Ok(Some(revision)), // an earlier sending committed
            Some(Ok(Some(old))) if old.instance == registration.instance && old.host == registration.host => {
                match kv.revoke(old.sid.lease()).await {
                    Ok(()) | Err(kv::Error::LeaseGone) => {}
                    Err(why) => return Err(why),
                }
                // Its registration may hang on no lease any more: ours is put over it if it is still there.
                let left = kv.range(Range::key(key.clone())).await?.pairs;
                if left.iter().any(|pair| pair.mod_revision != revision) {
                    continue;
                }
                revision = left.first().map_or(0, |pair| pair.mod_revision);
            }
            // Another instance's, a seed worker's (an empty value), or unreadable: left alone.
            Some(_) => return Ok(None),
        }
        if let Some(put) = put_registration(kv, &key, revision, registration).await? {
            return Ok(Some(put));
        }
        tracing::debug!(%key, "registered by another at the same time; looking again");
    }
}

async fn put_registration(
    kv: &dyn Kv,
    key: &str,
    revision: kv::Revision,
    registration: &Registration,
) -> Result<Option<kv::Revision>, kv::Error> {
    let txn = Txn {
        when: vec![Compare::exists(keys::session(registration.sid)), Compare::unchanged(key, revision)],
        then: vec![Op::put_leased(key, registration.encode(), registration.sid.lease())],
        otherwise: vec![Op::get(keys::session(registration.sid))],
    };
    let reply = kv.txn(txn).await?;
    if !reply.succeeded && reply.pair(0).is_none() {
        return Err(kv::Error::LeaseGone);
    }
    Ok(reply.succeeded.then_some(reply.revision))
}

/// Takes this worker's registration away, so that others own its slots, while the session goes on (design P19).
pub(crate) async fn deregister(kv: &dyn Kv, session: &Session) -> Result<(), kv::Error> {
    let key = keys::worker(&session.worker_id);
    let txn = Txn {
        when: vec![Compare::Lease(key.clone().into(), Some(session.sid.lease()))],
        then: vec![Op::delete(key)],
        otherwise: Vec::new(),
    };
    kv.txn(txn).await.map(|_deleted_or_not_ours| ())
}
