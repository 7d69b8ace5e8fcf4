//! Workers and their sessions.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::domain::stored;
use crate::kv::LeaseId;

/// Format version that is written.
const VERSION: u64 = 1;
/// A registration is put again at least this often, in seconds, so that others know the worker's clock.
pub const RENEWED_SECONDS: u64 = 60;

/// A session: a worker's lease. Written in hex.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sid(pub i64);

impl Sid {
    /// The session of a lease.
    #[must_use]
    pub fn of(lease: LeaseId) -> Self {
        Self(lease.0)
    }

    /// The lease of the session.
    #[must_use]
    pub fn lease(self) -> LeaseId {
        LeaseId(self.0)
    }

    /// Reads the hex form.
    #[must_use]
    pub fn parse(hex: &str) -> Option<Self> {
        // etcd's lease ids are positive: the sign bit is never set.
        i64::from_str_radix(hex, 16).ok().filter(|id| *id > 0).map(Self)
    }
}

impl fmt::Display for Sid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

impl fmt::Debug for Sid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Sid {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Sid {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom(format!("{text:?} is not a session id")))
    }
}

/// Value of `/cron/workers/{id}`, written by our workers. A seed worker's value is empty.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Registration {
    v: u64,
    /// Its session.
    pub sid: Sid,
    /// Names the data directory of the worker: the same instance takes its registration over at once.
    pub instance: String,
    /// Host name.
    pub host: String,
    /// First non-loopback IPv4 address, or empty.
    pub address: String,
    /// Process id on its host.
    pub pid: u32,
    /// Fleetcron's version.
    pub version: String,
    /// `CRON_WORKER_LABELS`.
    pub labels: BTreeMap<String, String>,
    /// Most runs at one time.
    pub max_runs: usize,
    /// The worker's wall clock when it wrote this.
    pub clock: Timestamp,
    /// When the worker started.
    pub started_at: Timestamp,
    /// It is put again at least this often, in seconds; 0 = never, as by versions before that was built.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub renewed_seconds: u64,
    /// The worker claims nothing and owns nothing: its clock is not known to agree with the others', or not yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub aside: bool,
    /// It asks some of the others to put theirs again, so that it can compare its clock with theirs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub asks: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What a worker knows about itself, whatever its session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// See [`Registration::instance`].
    pub instance: String,
    /// See [`Registration::host`].
    pub host: String,
    /// See [`Registration::address`].
    pub address: String,
    /// See [`Registration::labels`].
    pub labels: BTreeMap<String, String>,
    /// See [`Registration::max_runs`].
    pub max_runs: usize,
    /// See [`Registration::started_at`].
    pub started_at: Timestamp,
}

impl Registration {
    /// The registration of this process under a session.
    #[must_use]
    pub fn new(identity: &Identity, sid: Sid, now: Timestamp) -> Self {
        Self {
            v: VERSION,
            sid,
            instance: identity.instance.clone(),
            host: identity.host.clone(),
            address: identity.address.clone(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            labels: identity.labels.clone(),
            max_runs: identity.max_runs,
            clock: now,
            started_at: identity.started_at,
            renewed_seconds: RENEWED_SECONDS,
            aside: false,
            asks: false,
        }
    }

    /// Reads a stored registration; `None` is a seed worker's (an empty value).
    ///
    /// # Errors
    /// See [`stored::decode`].
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, stored::Error> {
        if bytes.is_empty() { Ok(None) } else { stored::decode(bytes, VERSION).map(Some) }
    }

    /// The value to store.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        stored::encode(self)
    }
}
