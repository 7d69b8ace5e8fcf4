//! Who this worker is: host, address, default id, room for runs.

use std::net::{IpAddr, Ipv4Addr};

use common::clock::Timestamp;
use common::config::Settings;
use common::domain::worker::Identity;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that the worker itself needs.
const OWN_DESCRIPTORS: u64 = 256;
/// Descriptors of a run: its output, two for its end, one to spare.
const DESCRIPTORS_PER_RUN: u64 = 4;

/// Gathers what is to be known about this process.
#[must_use]
pub fn identity(settings: &Settings, instance: String, now: Timestamp) -> Identity {
    let address = first_address().map(|address| address.to_string()).unwrap_or_default();
    let fit = runs_from_limits();
    if let Some(max_runs) = settings.max_runs.filter(|max_runs| *max_runs > fit) {
        tracing::warn!(
            max_runs,
            fit,
            "CRON_MAX_RUNS is more than the limit on open files has room for: runs beyond that will fail"
        );
    }
    Identity {
        instance,
        host: host(),
        address,
        labels: settings.worker_labels.clone(),
        max_runs: settings.max_runs.unwrap_or(fit),
        started_at: now,
    }
}

/// The id that was set, or the seed's: the first non-loopback IPv4 address; without one, the host's name.
#[must_use]
pub fn worker_id(settings: &Settings, identity: &Identity) -> String {
    settings.worker_id.clone().unwrap_or_else(|| {
        if identity.address.is_empty() { identity.host.clone() } else { identity.address.clone() }
    })
}

fn first_address() -> Option<Ipv4Addr> {
    let interfaces =
        if_addrs::get_if_addrs().inspect_err(|why| tracing::warn!(%why, "network addresses unknown")).ok()?;
    interfaces.into_iter().find_map(|interface| match interface.ip() {
        IpAddr::V4(address) if !address.is_loopback() => Some(address),
        _ => None,
    })
}

fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Raises the soft limit on open files to the hard one, and says how many runs fit.
fn runs_from_limits() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(why) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%why, "the limit on open files stays as it is");
    }
    // No limit at all still means a number that can be counted.
    let files = getrlimit(Resource::Nofile).current.unwrap_or(1 << 20).min(1 << 20);
    usize::try_from((files.saturating_sub(OWN_DESCRIPTORS) / DESCRIPTORS_PER_RUN).max(1))
        .unwrap_or(usize::MAX)
}
