//! What this process takes of its machine, under the names that Prometheus' own client libraries give it. What the system does not tell is left
//! out.

use std::fs;

use common::clock::{self, Timestamp};
use rustix::process::{Resource, getrlimit};

use crate::exposition::Exposition;
use crate::histogram::seconds_of_ms;

/// Writes them down. Reads the list of open descriptors, which a scrape every few seconds may.
pub(crate) fn put(started: Timestamp, out: &mut Exposition) {
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        // The list itself is one while it is read.
        out.gauge("process_open_fds", "Number of open file descriptors.", open.count().saturating_sub(1));
    }
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    out.gauge("process_max_fds", "Maximum number of open file descriptors.", limit);
    if let Some(bytes) = fs::read_to_string("/proc/self/status").ok().as_deref().and_then(resident_bytes) {
        out.gauge("process_resident_memory_bytes", "Resident memory size in bytes.", bytes);
    }
    out.counter(
        "process_cpu_seconds_total",
        "Total user and system CPU time spent in seconds.",
        clock::processor_time().as_secs_f64(),
    );
    out.gauge(
        "process_start_time_seconds",
        "Start time of the worker since unix epoch in seconds.",
        seconds_of_ms(started.ms()),
    );
}

fn resident_bytes(status: &str) -> Option<u64> {
    let kilobytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    kilobytes.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_tells_is_there() {
        let mut out = Exposition::default();
        put(Timestamp::from_ms(1_500), &mut out);
        let text = out.into_text();
        let value = |name: &str| {
            let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            found.unwrap_or_else(|| panic!("no {name} in {text}")).parse::<f64>().unwrap()
        };
        let (open, most) = (value("process_open_fds"), value("process_max_fds"));
        assert!(3.0 <= open && open < most, "{open} of {most}");
        assert!(value("process_resident_memory_bytes") > 1e6, "{text}");
        assert!(value("process_cpu_seconds_total") > 0.0, "{text}");
        assert_eq!(value("process_start_time_seconds"), 1.5);
    }
}
