//! Reads `local-dev/docker-compose.yml`: the part of the Compose format that it uses, strictly.
//!
//! What this reader does not know is an error, so that no key holds under docker only. The exceptions stand at [`Raw`]: keys that are
//! about containers and mean nothing without them. That it understands the rest as docker compose does is held by `tests/tests/compose.rs`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustix::process::Signal;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::workspace;

/// The services, by name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Compose {
    /// Every service of the file.
    pub services: BTreeMap<String, Service>,
}

/// A service, as the file says it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    /// Program and first arguments; empty where the image has its own.
    pub entrypoint: Vec<String>,
    /// The (further) words of the command line.
    pub command: Vec<String>,
    /// Variables that the program is given.
    pub environment: BTreeMap<String, String>,
    /// Where it is started.
    pub working_dir: Option<String>,
    /// What lies where in the container.
    pub mounts: Vec<Mount>,
    /// Ports of the container that are reached from this machine.
    pub ports: Vec<Published>,
    /// Services that are healthy before this one is started.
    pub depends_on: Vec<String>,
    /// How to tell that it is healthy.
    pub health: Health,
    /// Tells it to end.
    pub stop_signal: Signal,
    /// Then it is killed.
    pub stop_grace: Duration,
}

impl Service {
    /// The whole command line.
    pub fn words(&self) -> impl Iterator<Item = &String> {
        self.entrypoint.iter().chain(&self.command)
    }
}

/// A volume, or a directory of this machine, in the container.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mount {
    /// Which.
    pub source: Source,
    /// Its path in the container.
    pub target: String,
    /// It cannot be written to.
    pub read_only: bool,
}

/// What is mounted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// A volume with a name.
    Volume(String),
    /// The workspace: the only directory of this machine that the file may name.
    Workspace,
}

/// A published port; always on 127.0.0.1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Published {
    /// On this machine.
    pub host: u16,
    /// In the container.
    pub container: u16,
}

/// A health check.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Health {
    /// A program and its arguments, which exits with 0 when the service is healthy.
    pub test: Vec<String>,
    /// Time between two checks.
    pub interval: Duration,
    /// A check that takes longer has failed.
    pub timeout: Duration,
    /// So many failures in a row are an unhealthy service.
    pub retries: u32,
    /// Failures in its first time do not count.
    pub start_period: Duration,
}

impl Health {
    /// A service that is not healthy after so long is not waited for any more.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.start_period + self.retries * (self.interval + self.timeout)
    }
}

impl Compose {
    /// Where the file is.
    #[must_use]
    pub fn path() -> PathBuf {
        workspace().join("local-dev/docker-compose.yml")
    }

    /// Reads the file of this workspace.
    ///
    /// # Errors
    /// What in it is not understood, and where.
    pub fn load() -> anyhow::Result<Self> {
        let path = Self::path();
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("read {}", path.display()))
    }

    /// Reads the text of such a file.
    ///
    /// # Errors
    /// What in it is not understood, and where.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let file: File = serde_saphyr::from_str(text)?;
        let mut services = BTreeMap::new();
        for (name, raw) in file.services {
            let service = read(raw, &file.volumes).with_context(|| format!("service {name}"))?;
            services.insert(name, service);
        }
        let compose = Self { services };
        for (name, service) in &compose.services {
            for other in &service.depends_on {
                ensure!(
                    compose.services.contains_key(other),
                    "{name} depends on {other}, which is no service"
                );
            }
        }
        compose.levels()?;
        Ok(compose)
    }

    /// A service by its name.
    ///
    /// # Errors
    /// When there is none.
    pub fn service(&self, name: &str) -> anyhow::Result<&Service> {
        self.services.get(name).with_context(|| format!("there is no service {name} in the compose file"))
    }

    /// The names of the services, those first that depend on nobody; each level depends on earlier ones only.
    ///
    /// # Errors
    /// When services depend on each other in a circle.
    pub fn levels(&self) -> anyhow::Result<Vec<Vec<&str>>> {
        let mut levels: Vec<Vec<&str>> = Vec::new();
        let mut left: BTreeMap<&str, &Service> = self.services.iter().map(|(n, s)| (n.as_str(), s)).collect();
        while !left.is_empty() {
            let waits = |service: &Service| service.depends_on.iter().any(|o| left.contains_key(o.as_str()));
            let level: Vec<&str> = left.iter().filter(|(_, s)| !waits(s)).map(|(name, _)| *name).collect();
            if level.is_empty() {
                let names: Vec<&str> = left.into_keys().collect();
                bail!("{} wait for each other", names.join(", "));
            }
            left.retain(|name, _| !level.contains(name));
            levels.push(level);
        }
        Ok(levels)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(rename = "name")]
    _name: IgnoredAny,
    services: BTreeMap<String, Raw>,
    #[serde(default)]
    volumes: BTreeMap<String, Option<NoOptions>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NoOptions {}

/// A service in the file's own shape. Fields that begin with `_` are about containers only: images and how they are built, an init that
/// reaps (here the launcher's guard ends what is left), what docker does when a service ends by itself (here all end, and it is said
/// why), where docker keeps logs (here they are files), what the kernel grants a container.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    #[serde(default)]
    entrypoint: Vec<String>,
    #[serde(default)]
    command: Vec<String>,
    #[serde(default)]
    environment: BTreeMap<String, String>,
    working_dir: Option<String>,
    #[serde(default)]
    volumes: Vec<String>,
    #[serde(default)]
    ports: Vec<String>,
    #[serde(default)]
    depends_on: BTreeMap<String, Dependency>,
    healthcheck: RawHealth,
    stop_signal: String,
    stop_grace_period: String,
    #[serde(rename = "image", default)]
    _image: Option<IgnoredAny>,
    #[serde(rename = "build", default)]
    _build: Option<IgnoredAny>,
    #[serde(rename = "init", default)]
    _init: Option<IgnoredAny>,
    #[serde(rename = "restart", default)]
    _restart: Option<IgnoredAny>,
    #[serde(rename = "logging", default)]
    _logging: Option<IgnoredAny>,
    #[serde(rename = "security_opt", default)]
    _security_opt: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Dependency {
    condition: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHealth {
    test: Vec<String>,
    interval: String,
    timeout: String,
    retries: u32,
    start_period: String,
}

fn read(raw: Raw, volumes: &BTreeMap<String, Option<NoOptions>>) -> anyhow::Result<Service> {
    let mut environment = BTreeMap::new();
    for (name, value) in raw.environment {
        let value = literal(&value).with_context(|| format!("environment: {name}"))?;
        environment.insert(name, value);
    }
    let mut depends_on = Vec::new();
    for (name, dependency) in raw.depends_on {
        // The launcher starts a service when those before it are healthy; it has no weaker way.
        ensure!(
            dependency.condition == "service_healthy",
            "depends_on: {name}: {:?}: only service_healthy is understood",
            dependency.condition
        );
        depends_on.push(name);
    }
    let test = literals(raw.healthcheck.test).context("healthcheck: test")?;
    let Some((form, test)) = test.split_first() else { bail!("healthcheck: test: it is empty") };
    ensure!(form == "CMD" && !test.is_empty(), "healthcheck: test: only [CMD, program, …] is understood");
    let service = Service {
        entrypoint: literals(raw.entrypoint).context("entrypoint")?,
        command: literals(raw.command).context("command")?,
        environment,
        working_dir: raw.working_dir.map(|dir| literal(&dir)).transpose().context("working_dir")?,
        mounts: raw
            .volumes
            .iter()
            .map(|text| mount(text, volumes).with_context(|| format!("volumes: {text:?}")))
            .collect::<anyhow::Result<_>>()?,
        ports: raw
            .ports
            .iter()
            .map(|text| published(text).with_context(|| format!("ports: {text:?}")))
            .collect::<anyhow::Result<_>>()?,
        depends_on,
        health: Health {
            test: test.to_vec(),
            interval: duration(&raw.healthcheck.interval).context("healthcheck: interval")?,
            timeout: duration(&raw.healthcheck.timeout).context("healthcheck: timeout")?,
            retries: raw.healthcheck.retries,
            start_period: duration(&raw.healthcheck.start_period).context("healthcheck: start_period")?,
        },
        stop_signal: match raw.stop_signal.as_str() {
            "SIGTERM" => Signal::TERM,
            "SIGINT" => Signal::INT,
            other => bail!("stop_signal: {other:?}: only SIGTERM and SIGINT are understood"),
        },
        stop_grace: duration(&raw.stop_grace_period).context("stop_grace_period")?,
    };
    ensure!(
        service.words().next().is_some(),
        "it has neither entrypoint nor command: its command line would stand in the image only"
    );
    Ok(service)
}

fn literals(texts: Vec<String>) -> anyhow::Result<Vec<String>> {
    texts.iter().map(|text| literal(text)).collect()
}

/// The text that is meant: `$$` is a dollar. Variables are refused: they would be read from the environment of whoever starts docker.
fn literal(text: &str) -> anyhow::Result<String> {
    let mut parts = text.split("$$");
    ensure!(
        !parts.any(|part| part.contains('$')),
        "{text:?}: a dollar is written $$; variables are not read"
    );
    Ok(text.replace("$$", "$"))
}

fn mount(text: &str, volumes: &BTreeMap<String, Option<NoOptions>>) -> anyhow::Result<Mount> {
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, read_only) = match parts.as_slice() {
        [source, target] => (*source, *target, false),
        [source, target, "ro"] => (*source, *target, true),
        _ => bail!("only source:target and source:target:ro are understood"),
    };
    ensure!(target.starts_with('/') && !target.ends_with('/'), "{target} is not a whole path");
    let source = match source {
        ".." => Source::Workspace,
        name if volumes.contains_key(name) => Source::Volume(name.to_owned()),
        other => bail!("{other:?} is neither `..` nor one of the volumes at the end of the file"),
    };
    Ok(Mount { source, target: target.to_owned(), read_only })
}

fn published(text: &str) -> anyhow::Result<Published> {
    let parts: Vec<&str> = text.split(':').collect();
    match parts.as_slice() {
        ["127.0.0.1", host, container] => {
            Ok(Published { host: host.parse()?, container: container.parse()? })
        }
        _ => bail!("only 127.0.0.1:port:port is understood: nothing here has a password"),
    }
}

/// Reads `1h30m`, `75s`, `500ms`.
fn duration(text: &str) -> anyhow::Result<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        let letters = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        let unit = match unit {
            "h" => Duration::from_secs(3600),
            "m" => Duration::from_secs(60),
            "s" => Duration::from_secs(1),
            "ms" => Duration::from_millis(1),
            _ => bail!("{text:?} is not a time like 1m30s"),
        };
        let number: u32 = number.parse().with_context(|| format!("{text:?} is not a time like 1m30s"))?;
        total = total
            .checked_add(unit.checked_mul(number).context("it is too long")?)
            .context("it is too long")?;
        rest = after;
    }
    ensure!(!text.is_empty(), "it is empty");
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: &str = "name: n
services:
  a:
    command: [etcd]
    healthcheck: {test: [CMD, etcdctl], interval: 5s, timeout: 5s, retries: 2, start_period: 1m}
    stop_signal: SIGTERM
    stop_grace_period: 10s
";

    fn refused(text: &str) -> String {
        format!("{:#}", Compose::parse(text).unwrap_err())
    }

    #[test]
    fn the_file_of_this_workspace_is_understood() {
        let compose = Compose::load().unwrap();
        assert_eq!(
            compose.levels().unwrap(),
            [vec!["etcd", "mongo"], vec!["functions", "worker-1", "worker-2"]]
        );
    }

    #[test]
    fn what_is_not_known_is_an_error_that_names_it() {
        Compose::parse(SERVICE).unwrap();
        for (line, named) in [
            ("    privileged: true\n", "privileged"),
            ("    env_file: x\n", "env_file"),
            ("    environment: [A=b]\n", "environment"),
            ("    environment: {A: $HOME}\n", "$HOME"),
            ("    environment: {A: '$$$x'}\n", "$$$x"),
            ("    command: etcd --name x\n", "command"),
            ("    ports: ['2379:2379']\n", "2379:2379"),
            ("    ports: ['0.0.0.0:2379:2379']\n", "0.0.0.0:2379:2379"),
            ("    ports: ['127.0.0.1:2379:99999']\n", "99999"),
            ("    volumes: ['data:/x']\n", "data"),
            ("    volumes: ['/etc:/x']\n", "/etc"),
            ("    volumes: ['..:/x:z']\n", "..:/x:z"),
            ("    depends_on: {b: {condition: service_healthy}}\n", "b"),
            ("    depends_on: {a: {condition: service_started}}\n", "service_started"),
            ("    depends_on: {a: {condition: service_healthy}}\n", "wait for each other"),
            ("    stop_signal: SIGTERM\n", "stop_signal"), // twice
            ("volumes: {data: {external: true}}\n", "external"),
            ("x-more: 1\n", "x-more"),
        ] {
            let said = refused(&format!("{SERVICE}{line}"));
            assert!(said.contains(named), "{line}: {said}");
        }
        for (part, other, named) in [
            ("stop_signal: SIGTERM", "stop_signal: SIGHUP", "SIGHUP"),
            ("stop_grace_period: 10s", "stop_grace_period: 10", "10"),
            ("    stop_grace_period: 10s\n", "", "stop_grace_period"),
            ("[CMD, etcdctl]", "[CMD-SHELL, etcdctl]", "CMD"),
            ("[CMD, etcdctl]", "etcdctl", "test"),
            ("    command: [etcd]\n", "    command: []\n", "image"),
        ] {
            let said = refused(&SERVICE.replace(part, other));
            assert!(said.contains(named), "{other}: {said}");
        }
    }

    #[test]
    fn a_doubled_dollar_is_one() {
        let text = SERVICE.replace("[etcd]", "[bash, '$$a', 'b$$']");
        assert_eq!(Compose::parse(&text).unwrap().services["a"].command, ["bash", "$a", "b$"]);
    }

    #[test]
    fn times_are_read() {
        for (text, ms) in
            [("75s", 75_000), ("1m30s", 90_000), ("2h", 7_200_000), ("1s500ms", 1500), ("0s", 0)]
        {
            assert_eq!(duration(text).unwrap(), Duration::from_millis(ms), "{text}");
        }
        for text in ["", "5", "s", "5 s", "-5s", "5d", "1.5s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
