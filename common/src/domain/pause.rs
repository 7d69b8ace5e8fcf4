//! What lifting the fleet's pause leaves behind.

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::domain::stored;

/// Format version that is written.
const VERSION: u64 = 1;

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
