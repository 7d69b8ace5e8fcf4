//! The fleet's pause, and what lifting it leaves behind.

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::domain::stored;

/// Format version that is written.
const VERSION: u64 = 1;

/// Value of `/cron/paused` when our function put it. Other hands may put any value: that it is there is what pauses.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Pause {
    v: u64,
    /// When it began.
    pub since: Timestamp,
    /// Who asked for it, where whoever let the request in knew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Why, in the words of whoever asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Pause {
    /// A pause that begins at `since`.
    #[must_use]
    pub fn new(since: Timestamp, by: Option<String>, reason: Option<String>) -> Self {
        Self { v: VERSION, since, by, reason }
    }

    /// Reads a stored value.
    ///
    /// # Errors
    /// See [`stored::decode`]; so also for what other hands put.
    pub fn decode(bytes: &[u8]) -> Result<Self, stored::Error> {
        stored::decode(bytes, VERSION)
    }

    /// The value to store.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        stored::encode(self)
    }
}

/// Value of `/cron/base`: fires up to and including `at` are nobody's, for every job.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Base {
    v: u64,
    /// When pausing last ended.
    pub at: Timestamp,
}

impl Base {
    /// A pause that ended then.
    #[must_use]
    pub fn new(at: Timestamp) -> Self {
        Self { v: VERSION, at }
    }

    /// Reads a stored value.
    ///
    /// # Errors
    /// See [`stored::decode`].
    pub fn decode(bytes: &[u8]) -> Result<Self, stored::Error> {
        stored::decode(bytes, VERSION)
    }

    /// The value to store.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        stored::encode(self)
    }
}
