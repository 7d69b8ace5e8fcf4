//! What a service of the compose file is without a container. The rules, all of them:
//!
//! 1. The command line is `entrypoint` and `command`; its program is looked for here by its name (`servers.rs`).
//! 2. Each port that a service listens on (published, or beside a listening address in its command line) gets a port of this machine:
//!    the published one where it is free, else another. Its number stands for that wherever it stands alone in the service's command
//!    line, environment or health check.
//! 3. `0.0.0.0`, `127.0.0.1` and the service's own name before a port are the address that it is given here: a loopback one, always.
//! 4. Another service's name with a port, such as `etcd:2379`, is where that service listens here.
//! 5. The path of a mounted volume is the service's directory; the path of the workspace's mount is the workspace.
//!
//! A volume that no command line, environment or health check names is not made: Cargo's caches are the developer's own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{bail, ensure};

use super::compose::{Service, Source};

/// What a service finds here.
pub struct Place<'a> {
    /// The service's name in the file.
    pub service: &'a str,
    /// The address that it listens on.
    pub address: IpAddr,
    /// Its ports in a container, each with the one that it has here.
    pub ports: &'a BTreeMap<u16, u16>,
    /// Where the others listen: `etcd:2379` to `127.0.0.1:40123`.
    pub others: &'a BTreeMap<String, String>,
    /// Every service's name.
    pub names: &'a BTreeSet<String>,
    /// Its directory.
    pub dir: &'a Path,
    /// What the file calls `..`.
    pub workspace: &'a Path,
}

/// A command line of this machine, with what belongs to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// Program and arguments.
    pub words: Vec<String>,
    /// Variables that are set.
    pub environment: BTreeMap<String, String>,
    /// Where it is started; `None`: wherever the launcher was.
    pub working_dir: Option<PathBuf>,
    /// The health check's program and arguments.
    pub check: Vec<String>,
    /// It wants its directory to be there.
    pub needs_dir: bool,
}

/// The ports that a service listens on in its container, the published ones first.
#[must_use]
pub fn ports(service: &Service) -> Vec<u16> {
    let mut ports: Vec<u16> = service.ports.iter().map(|port| port.container).collect();
    for word in service.words() {
        for address in ["0.0.0.0:", "127.0.0.1:"] {
            for (at, _) in word.match_indices(address) {
                if let Some((port, _)) = leading_port(&word[at + address.len()..])
                    && !ports.contains(&port)
                {
                    ports.push(port);
                }
            }
        }
    }
    ports
}

/// Applies the rules.
///
/// # Errors
/// A place of another service that is not known, or a mount that the rules have no directory for.
pub fn plan(service: &Service, place: &Place<'_>) -> anyhow::Result<Plan> {
    let mut translation = Translation { service, place, volumes: BTreeSet::new() };
    let words = service.words().map(|word| translation.of(word)).collect::<anyhow::Result<_>>()?;
    let environment = service
        .environment
        .iter()
        .map(|(name, value)| Ok((name.clone(), translation.of(value)?)))
        .collect::<anyhow::Result<_>>()?;
    let check = service.health.test.iter().map(|word| translation.of(word)).collect::<anyhow::Result<_>>()?;
    let working_dir = service.working_dir.as_ref().map(|dir| translation.of(dir)).transpose()?;
    let volumes = translation.volumes;
    ensure!(volumes.len() < 2, "{volumes:?} of {}: a service has one directory here", place.service);
    Ok(Plan {
        words,
        environment,
        working_dir: working_dir.map(PathBuf::from),
        check,
        needs_dir: !volumes.is_empty(),
    })
}

struct Translation<'a> {
    service: &'a Service,
    place: &'a Place<'a>,
    /// The volumes that were named.
    volumes: BTreeSet<&'a str>,
}

impl Translation<'_> {
    /// One pass: what was put in is not looked at again, for a port that was given here may be another one's number there.
    fn of(&mut self, text: &str) -> anyhow::Result<String> {
        let mut done = String::new();
        let mut rest = text;
        let mut before = None;
        while let Some(first) = rest.chars().next() {
            let (put, length) = match self.at(before, rest)? {
                Some(found) => found,
                None => (first.to_string(), first.len_utf8()),
            };
            done.push_str(&put);
            before = rest[..length].chars().last();
            rest = &rest[length..];
        }
        Ok(done)
    }

    /// What stands at the beginning of `rest`, if a rule knows it: what is put there, and how much it replaces.
    fn at(&mut self, before: Option<char>, rest: &str) -> anyhow::Result<Option<(String, usize)>> {
        if before.is_some_and(is_of_a_word) {
            return Ok(None);
        }
        if rest.starts_with('/')
            && let Some(found) = self.path(rest)
        {
            return Ok(Some(found));
        }
        for address in ["0.0.0.0", "127.0.0.1"] {
            if let Some(after) = rest.strip_prefix(address)
                && !after.starts_with(is_of_a_word)
            {
                return Ok(Some((self.place.address.to_string(), address.len())));
            }
        }
        for name in self.place.names {
            let Some(port) = rest.strip_prefix(name.as_str()).and_then(|after| after.strip_prefix(':'))
            else {
                continue;
            };
            let Some((port, digits)) = leading_port(port) else { continue };
            let length = name.len() + 1 + digits;
            let key = format!("{name}:{port}");
            let own = (name == self.place.service).then(|| self.place.ports.get(&port)).flatten();
            return match (own, self.place.others.get(&key)) {
                (Some(own), _) => Ok(Some((format!("{}:{own}", self.place.address), length))),
                (None, Some(other)) => Ok(Some((other.clone(), length))),
                (None, None) => bail!("{} names {key}, which is not known here", self.place.service),
            };
        }
        if let Some((port, digits)) = leading_port(rest)
            && let Some(own) = self.place.ports.get(&port)
        {
            return Ok(Some((own.to_string(), digits)));
        }
        Ok(None)
    }

    fn path(&mut self, rest: &str) -> Option<(String, usize)> {
        for mount in &self.service.mounts {
            let after = rest.strip_prefix(mount.target.as_str());
            if after.is_some_and(|after| !after.starts_with(is_of_a_word)) {
                let here = match &mount.source {
                    Source::Workspace => self.place.workspace,
                    Source::Volume(name) => {
                        self.volumes.insert(name);
                        self.place.dir
                    }
                };
                return Some((here.display().to_string(), mount.target.len()));
            }
        }
        None
    }
}

/// A part of a name, number, address or path: none of them begins after it. A slash does not count: hosts and ports follow it in URLs.
fn is_of_a_word(c: char) -> bool {
    c.is_alphanumeric() || ['-', '_', '.'].contains(&c)
}

/// A port at the beginning of a text that no further part of a number follows, and its length.
fn leading_port(text: &str) -> Option<(u16, usize)> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, after) = text.split_at(digits);
    (!after.starts_with(is_of_a_word)).then_some(())?;
    Some((number.parse().ok()?, digits))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::native::compose::Compose;

    /// The plan of a service of the workspace's file, its ports moved by 10,000 and the others' by 20,000.
    fn of(name: &str) -> Plan {
        let compose = Compose::load().unwrap();
        let service = compose.service(name).unwrap();
        let moved: BTreeMap<u16, u16> =
            ports(service).into_iter().map(|port| (port, port + 10_000)).collect();
        let others = [("etcd:2379", "127.0.0.1:22379"), ("mongo:27017", "127.0.0.1:47017")]
            .map(|(there, here)| (there.to_owned(), here.to_owned()));
        plan(
            service,
            &Place {
                service: name,
                address: "127.0.0.1".parse().unwrap(),
                ports: &moved,
                others: &BTreeMap::from(others),
                names: &compose.services.keys().cloned().collect(),
                dir: Path::new("/d/x"),
                workspace: Path::new("/w"),
            },
        )
        .unwrap()
    }

    #[test]
    fn etcd_listens_on_loopback_at_its_ports_here_and_keeps_its_data_in_its_directory() {
        let plan = of("etcd");
        assert_eq!(
            plan.words,
            [
                "etcd",
                "--name=default",
                "--data-dir=/d/x",
                "--listen-client-urls=http://127.0.0.1:12379",
                "--advertise-client-urls=http://127.0.0.1:12379",
                "--listen-peer-urls=http://127.0.0.1:12380",
                "--initial-advertise-peer-urls=http://127.0.0.1:12380",
                "--initial-cluster=default=http://127.0.0.1:12380",
                "--auto-compaction-mode=periodic",
                "--auto-compaction-retention=5m",
                "--quota-backend-bytes=2147483648",
                "--log-level=warn",
            ]
        );
        assert_eq!(plan.check, ["etcdctl", "--endpoints=http://127.0.0.1:12379", "endpoint", "health"]);
        assert!(plan.needs_dir);
    }

    #[test]
    fn mongo_and_a_worker_are_translated() {
        assert_eq!(
            of("mongo").words,
            ["mongod", "--bind_ip", "127.0.0.1", "--port", "37017", "--dbpath", "/d/x"]
        );
        let worker = of("worker-2");
        assert_eq!(worker.words, ["worker"]);
        let environment: Vec<(&str, &str)> =
            worker.environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(
            environment,
            [
                ("CRON_DATA_DIR", "/d/x"),
                ("CRON_DRAIN_SECONDS", "30"),
                ("CRON_ETCD_ENDPOINTS", "http://127.0.0.1:22379"),
                ("CRON_MONGODB_URI", "mongodb://127.0.0.1:47017"),
                ("CRON_WORKER_ID", "worker-2"),
                ("CRON_WORKER_LISTEN", "127.0.0.1:19070"),
            ]
        );
        assert!(worker.check[2].contains("/dev/tcp/127.0.0.1/19070\n"), "{:?}", worker.check);
    }

    #[test]
    fn the_functions_are_built_in_the_workspace_and_make_no_directory() {
        let plan = of("functions");
        assert_eq!(plan.working_dir.as_deref(), Some(Path::new("/w")));
        assert!(plan.words[2].ends_with(" -A 127.0.0.1 -P 18070 \"$@\"\n"), "{:?}", plan.words);
        assert!(!plan.needs_dir);
    }

    #[test]
    fn only_whole_words_are_replaced() {
        let compose = Compose::load().unwrap();
        let service = compose.service("worker-1").unwrap();
        let names = compose.services.keys().cloned().collect();
        // The port that is given here is another's number there: it is not replaced again.
        let ports = BTreeMap::from([(9070, 9071), (9071, 9072)]);
        let others = BTreeMap::from([("etcd:2379".to_owned(), "127.0.0.1:9070".to_owned())]);
        let place = Place {
            service: "worker-1",
            address: "127.0.0.1".parse().unwrap(),
            ports: &ports,
            others: &others,
            names: &names,
            dir: Path::new("/d"),
            workspace: Path::new("/w"),
        };
        let mut translation = Translation { service, place: &place, volumes: BTreeSet::new() };
        for (there, here) in [
            ("9070", "9071"),
            ("--port=9070", "--port=9071"),
            ("19070 90700 9070.5 v9070 9070s", "19070 90700 9070.5 v9070 9070s"),
            ("a@etcd:2379,etcd:2379/x", "a@127.0.0.1:9070,127.0.0.1:9070/x"),
            ("my-etcd:2379 etcd", "my-etcd:2379 etcd"),
            ("worker-1:9070", "127.0.0.1:9071"),
            ("10.0.0.0:1 0.0.0.01", "10.0.0.0:1 0.0.0.01"),
            ("/var/lib/fleetcron", "/d"),
            ("--dir=/var/lib/fleetcron/a", "--dir=/d/a"),
            ("/var/lib/fleetcron-2 x/var/lib/fleetcron", "/var/lib/fleetcron-2 x/var/lib/fleetcron"),
        ] {
            assert_eq!(translation.of(there).unwrap(), here, "{there}");
        }
        let unknown = translation.of("http://etcd:2380").unwrap_err().to_string();
        assert!(unknown.contains("etcd:2380"), "{unknown}");
    }
}
