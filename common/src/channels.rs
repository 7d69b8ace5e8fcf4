//! The operator's file of channels (`CRON_NOTIFY_FILE`): where notifications go, and of what everybody is told. Jobs name channels; what opens
//! them stands here, or in files that this one names, and nowhere in the store.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fmt, fs, io};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::domain::notify::{CHANNEL_NAMES, Notify, is_channel};
use crate::secrets::{Cached, Reference};

/// Messages of one channel in a minute, where the file does not say: what comes beyond is gathered.
const PER_MINUTE_DEFAULT: u32 = 30;
/// Most of it.
const PER_MINUTE_MAX: u32 = 10_000;
/// Most channels.
const CHANNELS_MAX: usize = 100;
/// Port of an e-mail server, by how it speaks TLS.
const PORTS: [(Tls, u16); 3] = [(Tls::Implicit, 465), (Tls::Starttls, 587), (Tls::None, 25)];

/// The file, read and checked.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Channels {
    /// By name.
    pub channels: BTreeMap<String, Channel>,
    /// Of what is told about every job, beside what the job's own `notify` says.
    pub all: Option<Notify>,
    /// So many messages a minute go to a channel.
    pub per_minute: u32,
    /// Address of the console, for links.
    pub console: Option<String>,
}

/// Where messages go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Channel {
    /// A POST of our JSON.
    Webhook(Target),
    /// A POST of what Slack's incoming webhooks take, and others like them.
    Slack(Target),
    /// An e-mail.
    Email(Email),
}

/// Where to POST.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Target {
    /// The address; often a secret itself.
    pub url: Secret,
    /// Further headers.
    #[serde(default)]
    pub headers: BTreeMap<String, Secret>,
}

/// How to send mail.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Email {
    /// The server.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// How it speaks TLS.
    pub tls: Tls,
    /// Who sends, for the server.
    pub user: Option<String>,
    /// And the password.
    pub password: Option<Secret>,
    /// Who sends, for the reader.
    pub from: String,
    /// Who reads.
    pub to: Vec<String>,
}

/// How a connection to an e-mail server is kept secret.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Tls {
    /// From the first byte.
    #[default]
    Implicit,
    /// After the server was asked for it; one that does not offer it is not used.
    Starttls,
    /// Not at all: for a relay on this machine.
    None,
}

/// A text that is a secret: it stands in the file itself, in one of its own, which is read each time, or is kept by AWS.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// The text.
    Text(String),
    /// Where it is.
    File(PathBuf),
    /// Who keeps it.
    Reference(Reference),
}

/// A secret as it is written: `"text"`, `"ssm:…"`, `"secretsmanager:…"` or `{"file": "/path"}`.
#[derive(Deserialize)]
#[serde(untagged)]
enum WrittenSecret {
    Text(String),
    File { file: PathBuf },
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(match WrittenSecret::deserialize(from)? {
            WrittenSecret::File { file } => Self::File(file),
            WrittenSecret::Text(text) => match Reference::parse(&text) {
                Some(reference) => Self::Reference(reference.map_err(D::Error::custom)?),
                None => Self::Text(text),
            },
        })
    }
}

impl Secret {
    /// The text as it is now, without line breaks at its end.
    ///
    /// # Errors
    /// It cannot be read, or is empty.
    pub async fn read(&self, vault: &Cached) -> io::Result<String> {
        match self {
            Self::Reference(reference) => {
                let read = vault.read(reference).await;
                self.checked(&read.map_err(|why| io::Error::other(format!("{reference}: {why}")))?)
            }
            Self::Text(_) | Self::File(_) => self.here().unwrap_or_else(|| self.checked("")),
        }
    }

    /// The same, where nobody else has to be asked; `None` = AWS has to be.
    fn here(&self) -> Option<io::Result<String>> {
        let text = match self {
            Self::Text(text) => Ok(text.clone()),
            Self::File(file) => fs::read_to_string(file)
                .map_err(|why| io::Error::new(why.kind(), format!("{}: {why}", file.display()))),
            Self::Reference(_) => return None,
        };
        Some(text.and_then(|text| self.checked(&text)))
    }

    fn checked(&self, text: &str) -> io::Result<String> {
        let text = text.trim_end_matches(['\r', '\n']);
        if text.is_empty() {
            return Err(io::Error::other(format!("{self:?} is empty")));
        }
        Ok(text.to_owned())
    }
}

/// Shows where it is, not what it says.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(_) => f.write_str("(secret)"),
            Self::File(file) => write!(f, "{}", file.display()),
            Self::Reference(reference) => write!(f, "{reference}"),
        }
    }
}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Written {
    channels: BTreeMap<String, WrittenChannel>,
    all: Option<Value>,
    per_minute: Option<u32>,
    console: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
enum WrittenChannel {
    Webhook(Target),
    Slack(Target),
    Email(WrittenEmail),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WrittenEmail {
    smtp: String,
    #[serde(default)]
    tls: Tls,
    user: Option<String>,
    password: Option<Secret>,
    from: String,
    to: Vec<String>,
}

impl Channels {
    /// Reads and checks the file; secrets in files of their own are read once, to tell at once when they cannot be. What AWS keeps is not: it may
    /// be away when a worker starts.
    ///
    /// # Errors
    /// What is wrong with it; no secret stands in that.
    pub fn read(path: &Path) -> Result<Self, String> {
        let text =
            fs::read_to_string(path).map_err(|why| format!("{} cannot be read: {why}", path.display()))?;
        Self::parse(&text).map_err(|why| format!("{}: {why}", path.display()))
    }

    fn parse(text: &str) -> Result<Self, String> {
        let written: Written = serde_json::from_str(text).map_err(|why| why.to_string())?;
        if written.channels.is_empty() || written.channels.len() > CHANNELS_MAX {
            return Err(format!("it has {} channels: name 1 to {CHANNELS_MAX}", written.channels.len()));
        }
        let mut channels = BTreeMap::new();
        for (name, channel) in written.channels {
            if !is_channel(&name) {
                return Err(format!("channel {name:?}: {CHANNEL_NAMES}"));
            }
            let channel = channel.checked().map_err(|why| format!("channel {name:?}: {why}"))?;
            channels.insert(name, channel);
        }
        let all = written.all.as_ref().map(Notify::parse).transpose().map_err(|why| format!("all {why}"))?;
        if let Some(unknown) = all.iter().flat_map(|all| &all.to).find(|name| !channels.contains_key(*name)) {
            return Err(format!("all names the channel {unknown:?}, which is not there"));
        }
        let per_minute = written.per_minute.unwrap_or(PER_MINUTE_DEFAULT);
        if !(1..=PER_MINUTE_MAX).contains(&per_minute) {
            return Err(format!("perMinute is not a number from 1 to {PER_MINUTE_MAX}"));
        }
        if let Some(console) = written.console.as_ref().filter(|address| !is_http(address)) {
            return Err(format!("console: {console:?} is not like https://cron.example.com"));
        }
        Ok(Self { channels, all, per_minute, console: written.console })
    }
}

fn is_http(address: &str) -> bool {
    let host = address.strip_prefix("https://").or_else(|| address.strip_prefix("http://"));
    host.is_some_and(|host| {
        !host.is_empty() && !address.contains(|c: char| c.is_whitespace() || c.is_control())
    })
}

impl WrittenChannel {
    fn checked(self) -> Result<Channel, String> {
        let target = |target: Target| -> Result<Target, String> {
            let url = target.url.here().transpose().map_err(|why| format!("url: {why}"))?;
            if url.is_some_and(|url| !is_http(&url)) {
                return Err("url is not like https://example.com/hook".to_owned());
            }
            for (name, value) in &target.headers {
                let named = hyper::header::HeaderName::from_bytes(name.as_bytes()).is_ok();
                let value = value.here().transpose().map_err(|why| format!("header {name}: {why}"))?;
                let is_bad = |value: String| hyper::header::HeaderValue::from_str(&value).is_err();
                if !named || value.is_some_and(is_bad) {
                    return Err(format!("header {name}: no header can have this name or value"));
                }
            }
            Ok(target)
        };
        Ok(match self {
            Self::Webhook(written) => Channel::Webhook(target(written)?),
            Self::Slack(written) => Channel::Slack(target(written)?),
            Self::Email(written) => Channel::Email(written.checked()?),
        })
    }
}

impl WrittenEmail {
    fn checked(self) -> Result<Email, String> {
        let (host, port) = match self.smtp.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().map_err(|_not_a_port| "smtp has no port like :465")?),
            None => {
                (&*self.smtp, PORTS.iter().find(|(tls, _)| *tls == self.tls).map_or(0, |(_, port)| *port))
            }
        };
        if host.is_empty() || host.contains(|c: char| !c.is_ascii_alphanumeric() && !".-_[]:".contains(c)) {
            return Err("smtp is not a server like mail.example.com:465".to_owned());
        }
        if let Some(bad) = self.to.iter().chain([&self.from]).find(|address| !is_address(address)) {
            return Err(format!("{bad:?} is not an address like ops@example.com"));
        }
        if self.to.is_empty() {
            return Err("to has no address".to_owned());
        }
        if self.user.is_some() != self.password.is_some() {
            return Err("user and password go together".to_owned());
        }
        if let Some(password) = &self.password {
            password.here().transpose().map_err(|why| format!("password: {why}"))?;
            if self.tls == Tls::None {
                return Err(
                    "a password goes over TLS alone: leave out \"tls\", or write \"starttls\"".to_owned()
                );
            }
        }
        let (user, password, from, to) = (self.user, self.password, self.from, self.to);
        Ok(Email { host: host.to_owned(), port, tls: self.tls, user, password, from, to })
    }
}

fn is_address(address: &str) -> bool {
    let plain = |c: char| c.is_ascii_graphic() && !"<>()[],;:\\\"".contains(c);
    let parts = address.rsplit_once('@');
    parts.is_some_and(|(local, host)| !local.is_empty() && !host.is_empty()) && address.chars().all(plain)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::secrets::{Problem, Source, Vault};

    /// Keeps every secret, each by its own name.
    struct Nobody;

    #[async_trait::async_trait]
    impl Vault for Nobody {
        async fn read(&self, sources: &[Source]) -> Vec<Result<String, Problem>> {
            sources.iter().map(|source| Ok(format!("Bearer {}\n", source.name))).collect()
        }
    }

    #[tokio::test]
    async fn every_kind_of_channel_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        fs::write(&file, "Bearer abc\n").unwrap();
        let text = json!({
            "channels": {
                "ops": {"kind": "slack", "url": "https://hooks.example.com/x"},
                "hook": {"kind": "webhook", "url": "http://127.0.0.1:1/", "headers": {"Authorization": {"file": file}, "X-Token": "ssm:token"}},
                "mail": {"kind": "email", "smtp": "mail.example.com", "tls": "starttls", "user": "u", "password": "p",
                         "from": "cron@example.com", "to": ["ops@example.com"]},
            },
            "all": {"on": ["lost"], "to": ["ops"]},
            "perMinute": 5,
            "console": "https://cron.example.com",
        });
        let read = Channels::parse(&text.to_string()).unwrap();
        assert_eq!((read.channels.len(), read.per_minute), (3, 5));
        let Channel::Webhook(hook) = &read.channels["hook"] else { panic!("{read:?}") };
        let vault = Cached::new(std::sync::Arc::new(Nobody));
        assert_eq!(hook.headers["Authorization"].read(&vault).await.unwrap(), "Bearer abc");
        assert_eq!(hook.headers["X-Token"].read(&vault).await.unwrap(), "Bearer token");
        let Channel::Email(mail) = &read.channels["mail"] else { panic!("{read:?}") };
        assert_eq!((&*mail.host, mail.port), ("mail.example.com", 587));
        // What is read again is what the file says by then.
        fs::write(&file, "Bearer new").unwrap();
        assert_eq!(hook.headers["Authorization"].read(&vault).await.unwrap(), "Bearer new");
        let shown = format!("{read:?}");
        assert!(!shown.contains("hooks.example.com") && !shown.contains("Bearer"), "{shown}");
    }

    #[test]
    fn what_is_wrong_is_said_with_its_channel_and_without_a_secret() {
        let channel = |channel: Value| json!({"channels": {"c": channel}});
        let email = |more: Value| {
            let mut email = json!({"kind": "email", "smtp": "m:465", "from": "a@b", "to": ["c@d"]});
            email.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            channel(email)
        };
        for (file, says) in [
            (json!({"channels": {}}), "it has 0 channels"),
            (json!({"channels": {"a b": {"kind": "slack", "url": "http://a"}}}), "letters, digits"),
            (channel(json!({"kind": "pager", "url": "http://a"})), "unknown variant `pager`"),
            (channel(json!({"kind": "slack", "url": "ftp://geheim"})), "not like https://"),
            (channel(json!({"kind": "slack", "url": {"file": "/nowhere"}})), "/nowhere"),
            (channel(json!({"kind": "slack"})), "missing field `url`"),
            (channel(json!({"kind": "slack", "url": "ssm:"})), "the reference names nothing"),
            (
                channel(json!({"kind": "webhook", "url": "http://a", "headers": {"a b": "geheim"}})),
                "header a b",
            ),
            (
                channel(json!({"kind": "webhook", "url": "http://a", "headers": {"a": "geheim\n\nb"}})),
                "header a",
            ),
            (email(json!({"smtp": "m:x"})), "no port"),
            (email(json!({"smtp": "a b"})), "not a server"),
            (email(json!({"from": "a"})), "not an address"),
            (email(json!({"to": ["a@b\r\nBcc: c@d"]})), "not an address"),
            (email(json!({"to": []})), "no address"),
            (email(json!({"user": "geheim"})), "go together"),
            (email(json!({"user": "u", "password": "geheim", "tls": "none"})), "over TLS alone"),
            (json!({"channels": {"c": {"kind": "slack", "url": "http://a"}}, "all": {"to": ["d"]}}), "\"d\""),
            (json!({"channels": {"c": {"kind": "slack", "url": "http://a"}}, "perMinute": 0}), "perMinute"),
            (json!({"channels": {"c": {"kind": "slack", "url": "http://a"}}, "console": "cron"}), "console"),
            (
                json!({"channels": {"c": {"kind": "slack", "url": "http://a"}}, "every": 1}),
                "unknown field `every`",
            ),
        ] {
            let why = Channels::parse(&file.to_string()).expect_err(&file.to_string());
            assert!(why.contains(says) && !why.contains("geheim"), "{file}: {why}");
        }
        assert!(Channels::read(Path::new("/nowhere/file")).unwrap_err().contains("cannot be read"));
    }
}
