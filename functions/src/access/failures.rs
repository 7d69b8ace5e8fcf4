//! How many wrong tokens came from an address: who sends too many is answered without a look into the store.
//!
//! Guessing is no danger: of 2^256 secrets nobody finds one, at whatever rate and from however many addresses and processes at once. What this
//! keeps small is what guessing costs us, the store's reads and the log's lines. Lambda runs many processes, each of which counts for itself: what
//! gets through is so many times what is said here, and each process serves one request at a time.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use common::clock::Stopwatch;

/// So many may come at once; after that, one each [`REGAIN`].
const BURST: u32 = 20;
/// In so long one more is forgiven.
const REGAIN: Duration = Duration::from_secs(3);
/// Most addresses that are remembered; the one that is forgotten first is the one that failed last the longest ago.
const ADDRESSES_MAX: usize = 1_000;

/// The addresses that have failed.
#[derive(Default)]
pub(super) struct Failures(Mutex<BTreeMap<Option<Origin>, Failed>>);

/// Whom an address belongs to: of version 6 everybody has 2^64 of them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Origin(u128);

struct Failed {
    /// How many are not forgiven yet.
    count: u32,
    /// When the last of them came.
    last: Stopwatch,
}

impl Failed {
    /// How many are left by now.
    fn left(&self) -> u32 {
        let forgiven = self.last.elapsed().as_secs() / REGAIN.as_secs();
        self.count.saturating_sub(u32::try_from(forgiven).unwrap_or(u32::MAX))
    }
}

fn origin(address: Option<IpAddr>) -> Option<Origin> {
    address.map(|address| match address.to_canonical() {
        IpAddr::V4(v4) => Origin(u128::from(u32::from(v4))),
        IpAddr::V6(v6) => Origin(u128::from(v6) >> 64 << 64 | 1 << 63),
    })
}

impl Failures {
    /// Whether so many came from there that no more are looked at.
    pub(super) fn are_too_many(&self, address: Option<IpAddr>) -> bool {
        let failed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        failed.get(&origin(address)).is_some_and(|failed| failed.left() >= BURST)
    }

    /// Counts one more.
    pub(super) fn count(&self, address: Option<IpAddr>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let origin = origin(address);
        let count = all.get(&origin).map_or(0, Failed::left).saturating_add(1);
        if all.len() >= ADDRESSES_MAX && !all.contains_key(&origin) {
            let oldest =
                all.iter().max_by_key(|(_, failed)| failed.last.elapsed()).map(|(origin, _)| *origin);
            oldest.map(|oldest| all.remove(&oldest));
        }
        all.insert(origin, Failed { count, last: Stopwatch::start() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_fails_too_often_is_known_and_no_other_is() {
        let failures = Failures::default();
        let at = |text: &str| Some(text.parse().unwrap());
        for n in 0..BURST {
            assert!(!failures.are_too_many(at("2001:db8::1")), "{n}");
            failures.count(at("2001:db8::1"));
        }
        // A neighbour in the same network is the same one.
        assert!(failures.are_too_many(at("2001:db8::1")) && failures.are_too_many(at("2001:db8::ffff:1")));
        for other in [at("2001:db8:0:1::1"), at("192.0.2.1"), None] {
            assert!(!failures.are_too_many(other), "{other:?}");
        }
    }

    #[test]
    fn memory_is_bounded() {
        let failures = Failures::default();
        for n in 0..3_000_u32 {
            failures.count(Some(IpAddr::V4(n.into())));
        }
        assert_eq!(failures.0.lock().unwrap().len(), ADDRESSES_MAX);
    }
}
