//! Which addresses a worker may call when a job names them: not its own machine, nor what only this machine may ask.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Never called, unless somebody allows it: what is only this machine's or this link's, and what is nobody's. Private networks are not
/// among them: they are what jobs call.
const REFUSED: &[(&str, &str)] = &[
    ("0.0.0.0/8", "unspecified"),
    ("127.0.0.0/8", "loopback"),
    ("169.254.0.0/16", "link-local"),
    ("224.0.0.0/4", "multicast"),
    ("240.0.0.0/4", "reserved"),
    ("::/128", "unspecified"),
    ("::1/128", "loopback"),
    ("fe80::/10", "link-local"),
    ("ff00::/8", "multicast"),
    ("64:ff9b:1::/48", "translated to IPv4"), // how is each network's own affair
    ("2001::/32", "tunnelled to IPv4"),       // Teredo
];
/// Where clouds tell a machine its secrets. Some look like any other address.
const METADATA: &[&str] = &[
    "169.254.169.254", // AWS, Google, Azure and others
    "fd00:ec2::254",   // AWS
    "169.254.170.2",   // AWS: credentials of containers
    "169.254.170.23",  // AWS: credentials of pods
    "fd00:ec2::23",    // AWS: credentials of pods
    "fd20:ce::254",    // Google
    "168.63.129.16",   // Azure: the host
    "100.100.100.200", // Alibaba
    "192.0.0.192",     // Oracle, the former one
    "169.254.42.42",   // Scaleway
    "fd00:42::42",     // Scaleway
];

/// The networks that jobs may have called, beside what is refused in any case.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Networks {
    /// Never called, whatever is allowed.
    pub denied: Vec<IpNet>,
    /// Called although they are among those that are refused. An address at which a cloud tells secrets is allowed by itself only.
    pub allowed: Vec<IpNet>,
}

impl Networks {
    /// Why this address is not called; `None` = it is.
    #[must_use]
    pub fn refusal(&self, address: IpAddr) -> Option<&'static str> {
        let address = address.to_canonical();
        self.refusal_of(address).or_else(|| {
            let IpAddr::V6(address) = address else { return None };
            carried(address).into_iter().find_map(|carried| self.refusal_of(IpAddr::V4(carried)))
        })
    }

    fn refusal_of(&self, address: IpAddr) -> Option<&'static str> {
        let among = |networks: &[IpNet]| networks.iter().any(|network| network.contains(&address));
        if among(&self.denied) {
            return Some("denied by CRON_HTTP_DENIED_NETWORKS");
        }
        let itself = IpNet::from(address);
        if METADATA.iter().any(|metadata| metadata.parse() == Ok(address)) {
            return (!self.allowed.contains(&itself)).then_some("where a cloud tells machines their secrets");
        }
        let refused = REFUSED
            .iter()
            .find(|(network, _)| network.parse::<IpNet>().is_ok_and(|network| network.contains(&address)));
        refused.filter(|_| !among(&self.allowed)).map(|(_, what)| *what)
    }
}

/// The IPv4 addresses to which gateways and tunnels may take a packet for this address.
fn carried(address: Ipv6Addr) -> Vec<Ipv4Addr> {
    let s = address.segments();
    let v4 = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    let mut carried = Vec::new();
    match s {
        // NAT64; IPv4-translated; IPv4-compatible.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0, 0, 0, 0, 0xffff, 0, high, low] => {
            carried.push(v4(high, low))
        }
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 => carried.push(v4(high, low)),
        [0x2002, high, low, ..] => carried.push(v4(high, low)), // 6to4
        _ => {}
    }
    if matches!(s[4], 0 | 0x200) && s[5] == 0x5efe {
        carried.push(v4(s[6], s[7])); // ISATAP
    }
    carried
}

/// Reads networks like `10.0.0.0/8`, or single addresses, with commas between them.
///
/// # Errors
/// Which one is none.
pub fn parse(text: &str) -> Result<Vec<IpNet>, String> {
    let parse_one = |one: &str| {
        let wrong = || format!("{one:?} is no network like 10.0.0.0/8, and no address");
        let network = one
            .parse::<IpNet>()
            .or_else(|_no_network| one.parse::<IpAddr>().map(IpNet::from))
            .map_err(|_no_address| wrong())?;
        if network.trunc() != network {
            return Err(format!(
                "{one:?} is an address within a network: write {} or the address alone",
                network.trunc()
            ));
        }
        // Addresses are compared in their plain form.
        if network.addr().to_canonical() != network.addr() {
            return Err(format!("{one:?} is an IPv4 address in another form: write it as such"));
        }
        Ok(network)
    };
    text.split(',').map(|one| parse_one(one.trim())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(denied: &str, allowed: &str) -> Networks {
        let parsed = |text: &str| if text.is_empty() { Vec::new() } else { parse(text).unwrap() };
        Networks { denied: parsed(denied), allowed: parsed(allowed) }
    }

    fn is_called(networks: &Networks, address: &str) -> bool {
        networks.refusal(address.parse().unwrap()).is_none()
    }

    #[test]
    fn what_is_this_machines_own_is_not_called_in_whatever_form() {
        let usual = networks("", "");
        for address in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.0.1",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "febf::1",
            "ff02::1",
            "169.254.169.254",
            "169.254.170.2",
            "169.254.170.23",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
            "fd00:ec2::254",
            "fd00:ec2::23",
            "fd20:ce::254",
            "fd00:42::42",
            // IPv4 within IPv6: mapped, compatible, translated, NAT64, 6to4, ISATAP; and Teredo
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::ffff:100.100.100.200",
            "::127.0.0.1",
            "::ffff:0:127.0.0.1",
            "64:ff9b::127.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::a9fe:a9fe",
            "2002:7f00:1::",
            "2002:a9fe:a9fe::1",
            "2002:6464:64c8::1",
            "2001:db8::5efe:127.0.0.1",
            "2001:db8::200:5efe:169.254.169.254",
            "2001:0:4136:e378::1",
        ] {
            assert!(!is_called(&usual, address), "{address}");
        }
        for address in [
            "1.1.1.1",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "126.255.255.255",
            "128.0.0.1",
            "169.253.0.1",
            "169.255.0.1",
            "223.255.255.255",
            "2606:4700::1111",
            "fd00::1",
            "fc00::1",
            "::ffff:10.0.0.1",
            "64:ff9b::a00:1",
            "2002:a00:1::",
            "2001:1::1",
            "2001:db8::5efe:10.0.0.1",
        ] {
            assert!(is_called(&usual, address), "{address}");
        }
    }

    #[test]
    fn what_is_allowed_is_called_unless_it_is_denied() {
        let some = networks("10.0.0.0/8, 127.0.0.9, fd00:1::/32", "127.0.0.0/8,::1");
        for address in ["127.0.0.1", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "192.168.0.1"] {
            assert!(is_called(&some, address), "{address}");
        }
        for address in [
            "127.0.0.9",
            "::ffff:127.0.0.9",
            "10.1.2.3",
            "64:ff9b::a01:203",
            "2002:a01:203::",
            "fd00:1::1",
            "169.254.0.1",
        ] {
            assert!(!is_called(&some, address), "{address}");
        }
    }

    #[test]
    fn where_clouds_tell_secrets_is_allowed_by_the_address_alone() {
        let (wide, exact) =
            (networks("", "0.0.0.0/0,::/0"), networks("", "169.254.169.254/32, fd00:ec2::254"));
        for address in ["169.254.169.254", "fd00:ec2::254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe"] {
            assert!(!is_called(&wide, address) && is_called(&exact, address), "{address}");
        }
        assert!(is_called(&wide, "169.254.1.1") && !is_called(&exact, "169.254.1.1"));
        assert!(
            !is_called(&networks("169.254.0.0/16", "169.254.169.254"), "169.254.169.254"),
            "denied is denied"
        );
    }

    #[test]
    fn networks_are_read() {
        assert_eq!(
            parse("10.0.0.0/8, ::1").unwrap(),
            ["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()]
        );
        for (bad, says) in [
            ("10.0.0.0/8,", "\"\" is no network"),
            ("10.0.0.0/33", "no network like"),
            ("localhost", "no network like"),
            ("10.0.0.1/8", "write 10.0.0.0/8"),
            ("::ffff:10.0.0.1", "write it as such"),
        ] {
            let why = parse(bad).unwrap_err();
            assert!(why.contains(says), "{bad}: {why:?} does not say {says:?}");
        }
    }

    #[test]
    fn every_network_and_address_of_the_tables_is_one() {
        assert!(
            REFUSED.iter().all(|(network, _)| network.parse::<IpNet>().is_ok_and(|net| net.trunc() == net))
        );
        assert!(METADATA.iter().all(|address| address.parse::<IpAddr>().is_ok()));
    }
}
