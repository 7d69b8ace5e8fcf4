//! Builds the ports of the Lambda functions, without I/O: the first call of a handler reads the secrets that the settings refer to, and
//! connects.

use std::ops::Deref;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use common::config::Settings;
use common::kv::Kv;
use common::run_log::RunLog;
use common::stores;

/// Longest that one call of a store may take: a few elections of etcd, and three such calls fit the handler's ten seconds.
pub const STORE_CALL_MAX: Duration = Duration::from_secs(3);

/// A function's settings, and its one client of the store of jobs: the gate and the handler share it, and with it the connection.
pub struct Opening {
    settings: Settings,
    kv: OnceLock<Arc<dyn Kv>>,
}

impl Opening {
    /// Opens nothing yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { settings, kv: OnceLock::new() }
    }
}

impl Deref for Opening {
    type Target = Settings;

    fn deref(&self) -> &Settings {
        &self.settings
    }
}

/// The store of jobs; always the same client.
///
/// # Errors
/// What is wrong with the settings.
pub fn kv(opening: &Opening) -> Result<Arc<dyn Kv>, String> {
    if let Some(kv) = opening.kv.get() {
        return Ok(Arc::clone(kv));
    }
    let kv = stores::kv(opening, STORE_CALL_MAX)?;
    Ok(Arc::clone(opening.kv.get_or_init(|| kv)))
}

/// The store of records.
///
/// # Errors
/// What is wrong with the settings.
pub fn run_log(settings: &Settings) -> Result<Arc<dyn RunLog>, String> {
    stores::run_log(settings, STORE_CALL_MAX)
}
