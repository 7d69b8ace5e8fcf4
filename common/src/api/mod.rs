//! Wire types of the HTTP API.

pub mod envelope;
pub mod errno;
