//! By what rules the API is served at an address: who shows credentials, and what of a request is believed.

use std::net::{IpAddr, SocketAddr};

use functions::caller::Peer;
use hyper::HeaderMap;

/// How callers of the API are treated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rules {
    /// Callers show a token; else whoever comes may do everything.
    pub credentials: bool,
    /// Callers come through a proxy, which ends `X-Forwarded-For` with the address that it saw.
    pub behind_proxy: bool,
    /// Requests that name another host than this machine are refused. Without it a page could read and change everything here once its owner has
    /// let its own name lead to this address (DNS rebinding). It could do nothing where credentials are asked for: what the console keeps is
    /// kept for the console's own name. So it is dropped where people come by names that only the operator knows: from other machines, and
    /// through a proxy.
    pub own_names_only: bool,
    /// Browsers are told to come by HTTPS from now on. Not on loopback: other programs there share its names, on other ports, without TLS.
    pub https_only: bool,
    /// A caller's address is its own, so that one may be held to a share of the connections.
    pub callers_apart: bool,
}

impl Rules {
    /// The rules for serving at `listen`. `credentials`: what was asked for; without it, they are asked for wherever others than this machine's
    /// users may come.
    ///
    /// # Errors
    /// When whoever reaches the address could run commands, or read tokens on their way: what to set, in words.
    pub fn at(
        listen: SocketAddr,
        credentials: Option<bool>,
        tls: bool,
        behind_proxy: bool,
    ) -> Result<Self, String> {
        let loopback = listen.ip().to_canonical().is_loopback();
        let credentials = credentials.unwrap_or(!loopback || behind_proxy);
        let mut missing = Vec::new();
        if !loopback && !credentials {
            missing.push("credentials: CRON_AUTH=required, which is the default here");
        }
        if !loopback && !tls && !behind_proxy {
            missing.push(
                "TLS: CRON_TLS_CERT and CRON_TLS_KEY, or CRON_BEHIND_PROXY=1 where a proxy does it and nobody else reaches this port",
            );
        }
        if !missing.is_empty() {
            return Err(format!(
                "{listen} is not for this machine alone, and whoever gets in there runs commands on the fleet; it lacks {} (or listen on 127.0.0.1)",
                missing.join(", and ")
            ));
        }
        Ok(Self {
            credentials,
            behind_proxy,
            own_names_only: !credentials || (loopback && !behind_proxy),
            https_only: tls && !loopback,
            callers_apart: !loopback && !behind_proxy,
        })
    }

    /// Whose request it is, for what it leaves behind. No header of it is believed but the last address of `X-Forwarded-For`, and that only
    /// behind a proxy: the proxy has put it there, and whatever stands before it the caller may have written.
    #[must_use]
    pub fn caller(&self, connected: IpAddr, headers: &HeaderMap) -> Peer {
        let told = if self.behind_proxy { last_hop(headers) } else { None };
        Peer(told.unwrap_or(connected).to_canonical())
    }
}

/// The address that the nearest proxy saw; some write its port, too.
fn last_hop(headers: &HeaderMap) -> Option<IpAddr> {
    let last = headers.get_all("x-forwarded-for").iter().next_back()?.to_str().ok()?;
    let hop = last.rsplit(',').next()?.trim();
    let bare = hop.trim_start_matches('[').trim_end_matches(']');
    bare.parse().ok().or_else(|| Some(hop.parse::<SocketAddr>().ok()?.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(
        listen: &str,
        credentials: Option<bool>,
        tls: bool,
        behind_proxy: bool,
        expected: Result<Rules, &[&str]>,
    ) {
        let got = Rules::at(listen.parse().unwrap(), credentials, tls, behind_proxy);
        match (&got, &expected) {
            (Err(why), Err(parts)) => {
                for part in ["credentials: ", "TLS: "] {
                    assert_eq!(why.contains(part), parts.contains(&part), "{listen}: {why}");
                }
            }
            (Ok(got), Ok(expected)) => {
                assert_eq!(got, expected, "{listen} {credentials:?} {tls} {behind_proxy}")
            }
            _ => panic!("{listen} {credentials:?} {tls} {behind_proxy}: {got:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn others_are_let_in_only_with_credentials_and_tls() {
        let own = Rules {
            credentials: false,
            behind_proxy: false,
            own_names_only: true,
            https_only: false,
            callers_apart: false,
        };
        for loopback in ["127.0.0.1:8070", "127.9.9.9:1", "[::1]:8070", "[::ffff:127.0.0.1]:8070"] {
            check(loopback, None, false, false, Ok(own));
            check(loopback, Some(false), true, false, Ok(own));
            check(loopback, Some(true), false, false, Ok(Rules { credentials: true, ..own }));
            // A proxy that knows who comes may stand before an API that is open, if somebody says so.
            check(loopback, Some(false), false, true, Ok(Rules { behind_proxy: true, ..own }));
            let proxied = Rules { credentials: true, behind_proxy: true, own_names_only: false, ..own };
            check(loopback, None, false, true, Ok(proxied));
        }
        for other in
            ["0.0.0.0:8070", "192.168.0.7:443", "[::]:8070", "[2001:db8::1]:8070", "[::ffff:10.0.0.1]:1"]
        {
            check(other, None, false, false, Err(&["TLS: "]));
            check(other, Some(true), false, false, Err(&["TLS: "]));
            check(other, Some(false), false, false, Err(&["credentials: ", "TLS: "]));
            check(other, Some(false), true, false, Err(&["credentials: "]));
            check(other, Some(false), true, true, Err(&["credentials: "]));
            let far = Rules {
                credentials: true,
                own_names_only: false,
                https_only: true,
                callers_apart: true,
                ..own
            };
            check(other, None, true, false, Ok(far));
            check(
                other,
                None,
                false,
                true,
                Ok(Rules { behind_proxy: true, https_only: false, callers_apart: false, ..far }),
            );
        }
    }

    #[test]
    fn a_caller_is_believed_nothing_but_what_the_proxy_wrote() {
        let connected: IpAddr = "10.0.0.1".parse().unwrap();
        let far =
            |behind_proxy| Rules::at("127.0.0.1:1".parse().unwrap(), None, false, behind_proxy).unwrap();
        for (forwarded, expected) in [
            (&["203.0.113.7"][..], "203.0.113.7"),
            (&["198.51.100.1, 203.0.113.7"], "203.0.113.7"),
            (&["198.51.100.1", "203.0.113.7"], "203.0.113.7"),
            (&["203.0.113.7:49152"], "203.0.113.7"),
            (&["2001:db8::7"], "2001:db8::7"),
            (&["[2001:db8::7]"], "2001:db8::7"),
            (&["[2001:db8::7]:49152"], "2001:db8::7"),
            (&["::ffff:203.0.113.7"], "203.0.113.7"),
            (&["203.0.113.7, unknown"], "10.0.0.1"),
            (&[""], "10.0.0.1"),
            (&[], "10.0.0.1"),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("x-real-ip", "192.0.2.1".parse().unwrap());
            headers.insert("forwarded", "for=192.0.2.1".parse().unwrap());
            for value in forwarded {
                headers.append("x-forwarded-for", value.parse().unwrap());
            }
            let address = |rules: Rules| rules.caller(connected, &headers).0.to_string();
            assert_eq!(address(far(true)), expected, "{forwarded:?}");
            assert_eq!(address(far(false)), "10.0.0.1", "{forwarded:?}");
        }
    }
}
