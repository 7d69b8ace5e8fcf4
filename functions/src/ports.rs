//! Builds the ports of the Lambda functions, without I/O: the first call of a handler reads the secrets that the settings refer to, and
//! connects.

use std::sync::Arc;
use std::time::Duration;

use common::config::Settings;
use common::kv::Kv;
use common::run_log::RunLog;
use common::stores;

/// Longest that one call of a store may take: a few elections of etcd, and three such calls fit the handler's ten seconds.
pub const STORE_CALL_MAX: Duration = Duration::from_secs(3);

/// The store of jobs.
///
/// # Errors
/// What is wrong with the settings.
pub fn kv(settings: &Settings) -> Result<Arc<dyn Kv>, String> {
    stores::kv(settings, STORE_CALL_MAX)
}

/// The store of records.
///
/// # Errors
/// What is wrong with the settings.
pub fn run_log(settings: &Settings) -> Result<Arc<dyn RunLog>, String> {
    stores::run_log(settings, STORE_CALL_MAX)
}
