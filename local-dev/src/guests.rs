//! How many connections each address holds: nobody takes them all.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

/// Who is connected, and how often.
pub(crate) struct Guests {
    max: usize,
    connections: Mutex<HashMap<IpAddr, usize>>,
}

/// One connection, for as long as it is kept.
pub(crate) struct Guest {
    guests: Arc<Guests>,
    address: IpAddr,
}

impl Guests {
    /// Lets each address have `max` connections at a time.
    pub(crate) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, connections: Mutex::default() })
    }

    /// Another connection of an address; `None` when it has enough of them.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Guest> {
        let address = household(address);
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let count = connections.entry(address).or_default();
        if *count >= self.max {
            return None;
        }
        *count += 1;
        Some(Guest { guests: Arc::clone(self), address })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut connections = self.guests.connections.lock().unwrap_or_else(PoisonError::into_inner);
        // An address without connections is forgotten, so that there are never more entries than connections.
        if let Some(count) = connections.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                connections.remove(&self.address);
            }
        }
    }
}

/// What one machine may have as its address: of IPv6 it has 64 bits for itself, and may come by another each time.
fn household(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_gets_its_share_and_no_more() {
        let guests = Guests::new(2);
        let enter = |address: &str| guests.enter(address.parse().unwrap());
        let first = enter("203.0.113.7");
        let second = enter("::ffff:203.0.113.7");
        assert!(first.is_some() && second.is_some() && enter("203.0.113.7").is_none());
        let others: Vec<Option<Guest>> = ["203.0.113.8", "2001:db8::1", "2001:db8::2"].map(enter).into();
        assert!(others.iter().all(Option::is_some));
        assert!(enter("2001:db8::3").is_none(), "one machine, by another of its addresses");
        assert!(enter("2001:db8:0:1::3").is_some());
        drop(first);
        assert!(enter("203.0.113.7").is_some());
        drop((second, others));
        assert!(guests.connections.lock().unwrap().is_empty());
    }
}
