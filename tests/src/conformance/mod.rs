//! One exam for each storage port; every implementation takes it.

pub mod history;
pub mod kv;
pub mod run_log;
