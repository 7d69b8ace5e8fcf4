//! Makes the clients of the two stores from the settings: plain ones, or ones that read secrets first.

use std::sync::Arc;
use std::time::Duration;

use crate::config::{Settings, Unusable};
use crate::kv::Kv;
use crate::kv::etcd::EtcdKv;
use crate::run_log::RunLog;
use crate::run_log::mongo::MongoRunLog;
use crate::secrets::{self, Aws, Fault, Problem, Renewing, Values, Vault};

/// The store of jobs, each call within `call_limit`. No I/O: secrets that the settings refer to are read by the first call.
///
/// # Errors
/// What is wrong with the settings.
pub fn kv(settings: &Settings, call_limit: Duration) -> Result<Arc<dyn Kv>, String> {
    kv_from(settings, Arc::new(Aws), None, call_limit)
}

/// The store of records, each call within `call_limit`. No I/O, as with [`kv`].
///
/// # Errors
/// What is wrong with the settings.
pub fn run_log(settings: &Settings, call_limit: Duration) -> Result<Arc<dyn RunLog>, String> {
    run_log_from(settings, Arc::new(Aws), None, call_limit)
}

/// Both stores, for a program that lives long: secrets are read now, each once for both, so that it can end at once and say why.
///
/// # Errors
/// What is wrong with the settings or with the secrets that they refer to.
pub async fn open(
    settings: &Settings,
    call_limit: Duration,
) -> Result<(Arc<dyn Kv>, Arc<dyn RunLog>), String> {
    let vault: Arc<dyn Vault> = Arc::new(Aws);
    let all = [settings.etcd_references(), settings.mongodb_references()].concat();
    let values = secrets::resolve(&*vault, &all).await.map_err(|e| e.to_string())?;
    let kv = kv_from(settings, Arc::clone(&vault), Some(&values), call_limit)?;
    let run_log = run_log_from(settings, vault, Some(&values), call_limit)?;
    Ok((kv, run_log))
}

/// The store of jobs behind references that `vault` resolves.
pub fn renewing_kv(settings: &Settings, vault: Arc<dyn Vault>, call_limit: Duration) -> Renewing<dyn Kv> {
    let owned = settings.clone();
    Renewing::new(settings.etcd_references(), vault, move |values| {
        let etcd = owned.etcd(values).map_err(|unusable| fault(&owned, unusable))?;
        let made = EtcdKv::new(&etcd, call_limit);
        made.map(|kv| Arc::new(kv) as Arc<dyn Kv>).map_err(|e| whole(&owned.etcd_references(), e.to_string()))
    })
}

/// The store of records behind references that `vault` resolves.
pub fn renewing_run_log(
    settings: &Settings,
    vault: Arc<dyn Vault>,
    call_limit: Duration,
) -> Renewing<dyn RunLog> {
    let owned = settings.clone();
    Renewing::new(settings.mongodb_references(), vault, move |values| {
        let uri = owned.mongodb_uri(values).map_err(|unusable| fault(&owned, unusable))?;
        // The driver's words may quote the address, which holds a password.
        let unusable = |_quoted| Unusable {
            variable: "CRON_MONGODB_URI",
            like: "a MongoDB address that the driver takes",
        };
        let made = MongoRunLog::new(&uri, call_limit).map_err(unusable);
        made.map(|log| Arc::new(log) as Arc<dyn RunLog>).map_err(|unusable| fault(&owned, unusable))
    })
}

/// The store of jobs: plain without references; else one that begins with what was `read`, or reads by itself.
fn kv_from(
    settings: &Settings,
    vault: Arc<dyn Vault>,
    read: Option<&Values>,
    call_limit: Duration,
) -> Result<Arc<dyn Kv>, String> {
    if settings.etcd_references().is_empty() {
        let etcd = settings.etcd(&Values::default()).map_err(|e| e.to_string())?;
        let kv = EtcdKv::new(&etcd, call_limit).map_err(|e| format!("CRON_ETCD_…: {e}"))?;
        return Ok(Arc::new(kv));
    }
    let renewing = renewing_kv(settings, vault, call_limit);
    if let Some(values) = read {
        renewing.begin(values).map_err(|e| e.to_string())?;
    }
    Ok(Arc::new(renewing))
}

/// The store of records, as with [`kv_from`].
fn run_log_from(
    settings: &Settings,
    vault: Arc<dyn Vault>,
    read: Option<&Values>,
    call_limit: Duration,
) -> Result<Arc<dyn RunLog>, String> {
    if settings.mongodb_references().is_empty() {
        let uri = settings.mongodb_uri(&Values::default()).map_err(|e| e.to_string())?;
        let run_log = MongoRunLog::new(&uri, call_limit).map_err(|e| format!("CRON_MONGODB_URI: {e}"))?;
        return Ok(Arc::new(run_log));
    }
    let renewing = renewing_run_log(settings, vault, call_limit);
    if let Some(values) = read {
        renewing.begin(values).map_err(|e| e.to_string())?;
    }
    Ok(Arc::new(renewing))
}

/// A value that does not fit its variable.
fn fault(settings: &Settings, unusable: Unusable) -> secrets::Error {
    let all = [settings.etcd_references(), settings.mongodb_references()].concat();
    let faults = all.into_iter().filter(|r| r.variable == unusable.variable).map(|r| Fault {
        variables: vec![r.variable],
        reference: r.reference,
        problem: Problem::Unusable(unusable.like),
    });
    secrets::Error(faults.collect())
}

/// The values are good each by itself, and no client can be made of them.
fn whole(references: &[secrets::Referring], why: String) -> secrets::Error {
    let faults = references.first().map(|first| Fault {
        variables: references.iter().map(|r| r.variable).collect(),
        reference: first.reference.clone(),
        problem: Problem::Unmade(why),
    });
    secrets::Error(faults.into_iter().collect())
}
