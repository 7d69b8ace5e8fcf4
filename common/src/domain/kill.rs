//! Kill requests.

use serde::{Deserialize, Serialize};

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
}

impl KillRequest {
    /// A request to kill these runs.
    #[must_use]
    pub fn new(run_ids: Vec<RunId>) -> Self {
        Self { v: VERSION, run_ids }
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
