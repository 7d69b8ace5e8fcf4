//! What runs that are going have printed so far.

use crate::clock::Timestamp;
use crate::domain::run::RunId;

/// A piece of what a run printed. A run has a fixed number of slots, so that what is stored of it is bounded however much it prints.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chunk {
    /// Of this run.
    pub run_id: RunId,
    /// Its slot: a later chunk of the same slot takes its place.
    pub slot: u32,
    /// How many bytes were printed before it.
    pub from: u64,
    /// The bytes, as they were printed.
    pub bytes: Vec<u8>,
    /// When it was stored.
    pub at: Timestamp,
}

impl Chunk {
    /// How many bytes were printed up to its end.
    #[must_use]
    pub fn to(&self) -> u64 {
        self.from + self.bytes.len() as u64
    }
}
