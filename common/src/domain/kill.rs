//! Kill requests.

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::domain::run::RunId;
use crate::domain::stored;

/// Format version that is written.
const VERSION: u64 = 1;

/// How long our kill request lives: long enough for a worker that is reconnecting to see it. The seed's lives one second.
pub const KILL_TTL_SECONDS: u64 = 60;

/// Value of `/cron/killer/{name}` when our function put it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KillRequest {
    v: u64,
    /// The runs to kill: those open when the request was made, never a later one.
    pub run_ids: Vec<RunId>,
    /// Who asks, in words; versions before the records said it left it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// When, by the clock of whoever asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
}

impl KillRequest {
    /// A request to kill these runs.
    #[must_use]
    pub fn new(run_ids: Vec<RunId>, asked: Killed) -> Self {
        Self { v: VERSION, run_ids, by: Some(asked.by), at: Some(asked.at) }
    }

    /// Reads a stored request; `None` is the seed's (an empty value): the runs of the job that are open when the put is seen.
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

/// Who had a run killed, and when: what its record says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Killed {
    /// In words: the caller's name or address, or what in the fleet did it.
    pub by: String,
    /// When it was asked for.
    pub at: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_of_versions_that_did_not_say_who_asks_are_read() {
        let request = KillRequest::decode(br#"{"v":1,"runIds":["7-1"]}"#).unwrap().unwrap();
        assert_eq!((request.run_ids, request.by, request.at), (vec![RunId::from_text("7-1")], None, None));
        assert_eq!(KillRequest::decode(b"").unwrap(), None, "the seed's");
        let asked = Killed { by: "127.0.0.1 (curl)".to_owned(), at: Timestamp::from_ms(5) };
        let written = KillRequest::new(vec![RunId::from_text("7-1")], asked).encode();
        assert_eq!(written, br#"{"v":1,"runIds":["7-1"],"by":"127.0.0.1 (curl)","at":5}"#);
    }
}
