//! Loopback ports for servers that are told where to listen.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::Range;
use std::sync::Mutex;

use anyhow::{Context, bail};

/// Above the well-known servers', below what Linux (32768) and macOS (49152) give to connections.
const PORTS: Range<u16> = 10_000..32_768;
/// So many ports must lie below the kernel's for ours to be chosen among them.
const ENOUGH: usize = 1_000;
/// Ports that are tried; a machine with so many busy ones in a row, picked blindly, has none.
const ATTEMPTS: usize = 1_000;

/// A loopback port where nobody listens, given once in this process.
///
/// Not one that the kernel would give (port 0): those are everybody's. Between this answer and the server's start, and each time that a
/// server is stopped and started again on its port, any connection of any program may get it as its own end.
///
/// # Errors
/// When there is none.
pub fn free_port() -> anyhow::Result<u16> {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let ours = PORTS.start..PORTS.end.min(first_of_the_kernel());
    if ours.len() < ENOUGH {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free loopback port")?;
        return Ok(listener.local_addr()?.port());
    }
    let mut given = GIVEN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    for _attempt in 0..ATTEMPTS {
        let port = pick(&ours);
        // Two processes that ask at once seldom pick the same of so many.
        if !given.contains(&port) && is_free(SocketAddr::from((Ipv4Addr::LOCALHOST, port))) {
            given.insert(port);
            return Ok(port);
        }
    }
    bail!("no free loopback port was found from {} to {}", ours.start, ours.end - 1)
}

/// Whether nobody listens there now.
#[must_use]
pub fn is_free(address: SocketAddr) -> bool {
    TcpListener::bind(address).is_ok()
}

/// One of `range`, by the standard library's source of random keys.
fn pick(range: &Range<u16>) -> u16 {
    let random = RandomState::new().build_hasher().finish();
    let offset = random % range.len() as u64;
    range.start + u16::try_from(offset).unwrap_or_default()
}

/// The first port that the kernel gives by itself, where it says so (ip(7)); elsewhere none is known to begin below ours' end.
fn first_of_the_kernel() -> u16 {
    let said = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    said.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_given_once_are_free_and_are_not_the_kernels() {
        let given: Vec<u16> = (0..200).map(|_| free_port().unwrap()).collect();
        let different: BTreeSet<u16> = given.iter().copied().collect();
        assert_eq!(different.len(), given.len());
        let kernel = first_of_the_kernel();
        if kernel >= PORTS.start + 1_000 {
            assert!(given.iter().all(|port| PORTS.contains(port) && *port < kernel), "{given:?}");
        }
        let held = TcpListener::bind((Ipv4Addr::LOCALHOST, given[0])).unwrap();
        assert!(!is_free(held.local_addr().unwrap()));
    }
}
