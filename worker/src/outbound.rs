//! The HTTP client for addresses that others name: it connects to none that [`Networks`] refuses, however that is written or resolved.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use common::causes;
use common::domain::http::check_url;
use common::networks::Networks;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Client, Url, redirect};
use tokio::sync::Semaphore;
use url::Host;

use crate::exec::supplies::Supplies;

/// Whoever does not even take a connection in this time is not there.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// A connection without a request is kept for so long: less than servers keep theirs, so that no request meets one that was just closed.
const IDLE_MAX: Duration = Duration::from_secs(3);
/// Such connections to one host.
const IDLE_PER_HOST_MAX: usize = 2;
/// Names that are resolved at one time. Each takes a thread for as long as its name servers are silent, of those that files are written by.
const LOOKUPS_MAX: usize = 32;

/// Calls what may be called.
#[derive(Debug)]
pub struct Outbound {
    networks: Arc<Networks>,
    /// Made by the first call: it reads all certificates of the system's authorities, which workers without such jobs need not.
    client: Mutex<Option<Client>>,
    supplies: Supplies,
}

impl Outbound {
    /// Nothing is opened yet.
    #[must_use]
    pub fn new(networks: Networks) -> Self {
        let client = Mutex::new(None);
        Self { networks: Arc::new(networks), client, supplies: Supplies::default() }
    }

    /// What it sends is supplied with these.
    #[must_use]
    pub fn with(self, supplies: Supplies) -> Self {
        Self { supplies, ..self }
    }

    /// What runs are supplied with.
    pub(crate) fn supplies(&self) -> &Supplies {
        &self.supplies
    }

    /// The client. It follows no redirects, since each address has to be [checked](Self::check) before it is called.
    ///
    /// # Errors
    /// Why there is none, in words.
    pub(crate) fn client(&self) -> Result<Client, String> {
        let mut made = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = made.as_ref() {
            return Ok(client.clone());
        }
        let _installed_before = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .user_agent(concat!("fleetcron/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            // A proxy would resolve names itself, and connect to what it likes.
            .no_proxy()
            .retry(reqwest::retry::never())
            .dns_resolver(Arc::new(Resolver {
                networks: Arc::clone(&self.networks),
                lookups: Arc::new(Semaphore::new(LOOKUPS_MAX)),
            }))
            .connect_timeout(CONNECT_MAX)
            .pool_idle_timeout(IDLE_MAX)
            .pool_max_idle_per_host(IDLE_PER_HOST_MAX)
            .build()
            .map_err(|why| format!("no HTTP client: {}", causes::in_words(&why)))?;
        Ok(made.insert(client).clone())
    }

    /// Whether this may be called as far as can be told before its name is resolved. The client never resolves what is an address already.
    ///
    /// # Errors
    /// Why not, in words.
    pub(crate) fn check(&self, url: &Url) -> Result<(), String> {
        check_url(url)?;
        let address = match url.host() {
            Some(Host::Ipv4(address)) => IpAddr::V4(address),
            Some(Host::Ipv6(address)) => IpAddr::V6(address),
            Some(Host::Domain(_)) => return Ok(()),
            None => return Err("the address has no host".to_owned()),
        };
        self.networks.refusal(address).map_or(Ok(()), |why| Err(format!("{address} is not called: {why}")))
    }
}

/// Resolves names to those of their addresses that may be called. The connection is made to just these, so that a name that leads elsewhere
/// a moment later changes nothing.
struct Resolver {
    networks: Arc<Networks>,
    lookups: Arc<Semaphore>,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (networks, lookups) = (Arc::clone(&self.networks), Arc::clone(&self.lookups));
        // A task of its own: a lookup that nobody waits for any more goes on, and has to count for as long.
        let lookup = tokio::spawn(async move {
            let _permit = lookups.acquire_owned().await?;
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let callable = callable(&networks, name.as_str(), found)?;
            Ok(Box::new(callable.into_iter()) as Addrs)
        });
        Box::pin(async move { lookup.await? })
    }
}

fn callable(
    networks: &Networks,
    name: &str,
    found: impl Iterator<Item = SocketAddr>,
) -> Result<Vec<SocketAddr>, String> {
    let mut refused = None;
    let mut callable = Vec::new();
    for address in found {
        match networks.refusal(address.ip()) {
            None => callable.push(address),
            Some(why) => refused = Some((address.ip(), why)),
        }
    }
    match refused {
        Some((address, why)) if callable.is_empty() => {
            Err(format!("{name} is {address}, which is not called: {why}"))
        }
        _ => Ok(callable),
    }
}

#[cfg(test)]
mod tests {
    use common::clock;

    use super::*;

    fn outbound(allowed: &str) -> Outbound {
        let allowed = common::networks::parse(allowed).unwrap();
        Outbound::new(Networks { denied: Vec::new(), allowed })
    }

    #[test]
    fn addresses_that_are_written_in_odd_ways_are_seen_for_what_they_are() {
        let usual = outbound("192.0.2.0/24");
        for (url, is_called) in [
            ("http://127.0.0.1/", false),
            ("http://127.1:80/", false),
            ("http://2130706433/", false),
            ("http://0x7f.0.0.1/", false),
            ("http://0177.0.0.1/", false),
            ("http://127.0.0.1./", false),
            ("http://１２７.0.0.1/", false),
            ("http://0/", false),
            ("http://[::1]/", false),
            ("http://[::ffff:169.254.169.254]/", false),
            ("http://[::]/", false),
            ("https://169.254.169.254/latest/meta-data/", false),
            ("gopher://10.0.0.1/", false),
            ("http://u:p@10.0.0.1/", false),
            ("http://10.0.0.1:2379/", true),
            ("https://[2606:4700::1111]/", true),
            // Told by what the name resolves to.
            ("http://localhost/", true),
        ] {
            assert_eq!(usual.check(&Url::parse(url).unwrap()).is_ok(), is_called, "{url}");
        }
    }

    #[test]
    fn of_a_names_addresses_those_are_left_that_may_be_called() {
        let networks = Networks::default();
        let found = |addresses: &[&str]| {
            let addresses: Vec<SocketAddr> =
                addresses.iter().map(|address| SocketAddr::new(address.parse().unwrap(), 0)).collect();
            callable(&networks, "a.example", addresses.into_iter())
        };
        let left = found(&["127.0.0.1", "10.0.0.1", "::1"]).unwrap();
        assert_eq!(left, [SocketAddr::new("10.0.0.1".parse().unwrap(), 0)]);
        let why = found(&["169.254.169.254"]).unwrap_err();
        assert!(why.contains("a.example is 169.254.169.254") && why.contains("secrets"), "{why}");
        assert_eq!(found(&[]).unwrap(), [], "nothing found is the client's to say");
    }

    #[tokio::test]
    async fn a_name_of_this_machine_is_not_called_unless_it_is_allowed() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://localhost:{}/", listener.local_addr().unwrap().port());
        let client = outbound("192.0.2.0/24").client().unwrap();
        // Were it called, nobody would answer.
        let called = clock::timeout(Duration::from_secs(20), client.get(&url).send());
        let refused = called.await.expect("it is refused at once").unwrap_err();
        assert!(
            causes::in_words(&refused).contains("not called: loopback"),
            "{}",
            causes::in_words(&refused)
        );
        let client = outbound("127.0.0.0/8").client().unwrap();
        let calling = tokio::spawn(async move { client.get(&url).send().await.map(|_| ()) });
        let (_stream, _) = listener.accept().await.unwrap();
        calling.abort();
    }
}
