//! Builds the ports of the Lambda functions, without I/O: the first call of a handler connects.

use std::sync::Arc;
use std::time::Duration;

use common::config::Settings;
use common::kv::Kv;
use common::run_log::RunLog;

/// Longest that one call of a store may take: a few elections of etcd, and three such calls fit the handler's ten seconds.
pub const STORE_CALL_MAX: Duration = Duration::from_secs(3);

// STAND-IN: both are to be built from EtcdKv and MongoRunLog once those are there.

/// The store of jobs.
///
/// # Errors
/// What is wrong with the settings.
pub fn kv(_settings: &Settings) -> Result<Arc<dyn Kv>, String> {
    Err("STAND-IN: EtcdKv::new(&settings.etcd, STORE_CALL_MAX)".to_owned())
}

/// The store of records.
///
/// # Errors
/// What is wrong with the settings.
pub fn run_log(_settings: &Settings) -> Result<Arc<dyn RunLog>, String> {
    Err("STAND-IN: MongoRunLog::new(settings.mongodb_uri_or_default(), STORE_CALL_MAX)".to_owned())
}
