//! One exam per port: every implementation takes the same.

pub mod run_log;
