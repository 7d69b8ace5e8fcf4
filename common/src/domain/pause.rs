//! The fleet's pause, what lifting it leaves behind, and what a store that was put back leaves behind.

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
    /// When pausing last ended; [`Timestamp::ZERO`] = the fleet was never paused.
    pub at: Timestamp,
    /// The store was put back to an earlier state, and whoever noticed wrote this: fires, requests and runs up to this time may be of what it
    /// was before, for those who start later and have noticed nothing. Absent = it never was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored: Option<Timestamp>,
}

impl Default for Base {
    /// What an absent key says.
    fn default() -> Self {
        Self { v: VERSION, at: Timestamp::ZERO, restored: None }
    }
}

impl Base {
    /// The same, once a pause has ended then.
    #[must_use]
    pub fn resumed(self, at: Timestamp) -> Self {
        Self { at, ..self }
    }

    /// The same, of a store that was put back.
    #[must_use]
    pub fn restored(self, up_to: Timestamp) -> Self {
        Self { restored: Some(up_to), ..self }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_keeps_what_was_said_of_a_store_that_was_put_back() {
        let (ended, up_to) = (Timestamp::from_ms(5), Timestamp::from_ms(7));
        let plain = Base::decode(br#"{"v":1,"at":5}"#).unwrap();
        assert_eq!(plain, Base::default().resumed(ended));
        let both = br#"{"v":1,"at":5,"restored":7}"#;
        assert_eq!(plain.restored(up_to).encode(), both);
        let again = Base::decode(both).unwrap().resumed(Timestamp::from_ms(9));
        assert_eq!((again.at, again.restored), (Timestamp::from_ms(9), Some(up_to)));
    }
}
