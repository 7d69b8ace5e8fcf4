//! What the tests share.

pub mod fixtures;
