//! How values of ours are read back: JSON with a format version in `v`.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Why a stored value cannot be used. It is reported and left alone, never overwritten.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Error {
    /// Not the JSON that it should be.
    #[error("not readable: {0}")]
    Malformed(String),
    /// Written by a newer Fleetcron.
    #[error("format version {found} is newer than {known}, the newest that this version reads")]
    Newer {
        /// The version in the value.
        found: u64,
        /// The newest that is understood.
        known: u64,
    },
}

/// Reads a value of format version `known` or older.
///
/// # Errors
/// When it is not JSON of that shape, or is newer.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], known: u64) -> Result<T, Error> {
    let value: serde_json::Value =
        serde_json::from_slice(bytes).map_err(|e| Error::Malformed(e.to_string()))?;
    match value.get("v").and_then(serde_json::Value::as_u64) {
        Some(found) if found > known => Err(Error::Newer { found, known }),
        Some(_) => serde_json::from_value(value).map_err(|e| Error::Malformed(e.to_string())),
        None => Err(Error::Malformed("no format version `v`".to_owned())),
    }
}

/// Writes a value of ours; its type carries `v`.
#[must_use]
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("plain data with string keys is always JSON")
}
