//! Builds the ports of the Lambda functions, without I/O: the first call of a handler connects.

use std::sync::Arc;
use std::time::Duration;

use common::config::Settings;
use common::kv::Kv;
use common::kv::etcd::EtcdKv;
use common::run_log::RunLog;
use common::run_log::mongo::MongoRunLog;

/// Longest that one call of a store may take: a few elections of etcd, and three such calls fit the handler's ten seconds.
pub const STORE_CALL_MAX: Duration = Duration::from_secs(3);

/// The store of jobs.
///
/// # Errors
/// What is wrong with the settings.
pub fn kv(settings: &Settings) -> Result<Arc<dyn Kv>, String> {
    let kv = EtcdKv::new(&settings.etcd, STORE_CALL_MAX).map_err(|e| format!("CRON_ETCD_…: {e}"))?;
    Ok(Arc::new(kv))
}

/// The store of records.
///
/// # Errors
/// What is wrong with the settings.
pub fn run_log(settings: &Settings) -> Result<Arc<dyn RunLog>, String> {
    let run_log = MongoRunLog::new(settings.mongodb_uri_or_default(), STORE_CALL_MAX)
        .map_err(|e| format!("CRON_MONGODB_URI: {e}"))?;
    Ok(Arc::new(run_log))
}
