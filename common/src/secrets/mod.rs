//! References to secrets in the settings, and how they become values.

mod aws;
mod cached;
mod renewing;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;

pub use aws::Aws;
pub use cached::Cached;
pub(crate) use renewing::Refusal;
pub use renewing::{Made, Renewing};

use crate::clock::timeout;

/// All secrets of a store are read within this, credentials included: a function's first call has 9.5 s for this and for the store.
const READ_LIMIT: Duration = Duration::from_secs(4);
/// Longest name that AWS takes: an ARN of 2,048 characters.
const NAME_BYTES_MAX: usize = 2_048;

/// Where a secret is kept.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Service {
    /// AWS Secrets Manager.
    SecretsManager,
    /// AWS Systems Manager Parameter Store.
    Ssm,
}

impl Service {
    const ALL: [Self; 2] = [Self::SecretsManager, Self::Ssm];

    /// What a reference begins with, which is also AWS's name of the service in addresses and ARNs.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::SecretsManager => "secretsmanager",
            Self::Ssm => "ssm",
        }
    }
}

/// One secret, as its service knows it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Source {
    /// Who keeps it.
    pub service: Service,
    /// Its name or ARN.
    pub name: String,
}

impl Source {
    /// The region that its ARN names.
    #[must_use]
    pub fn region(&self) -> Option<&str> {
        self.name.strip_prefix("arn:")?.split(':').nth(2).filter(|region| !region.is_empty())
    }
}

/// A setting's value that is kept elsewhere: `secretsmanager:<name or ARN>[#<JSON key>]` or `ssm:<name or ARN>`. It is no secret itself.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Reference {
    /// The secret.
    pub source: Source,
    /// The field of the secret's JSON object; `None` = the whole text.
    pub key: Option<String>,
}

impl Reference {
    /// Reads a setting's value; `None` = it is no reference but the value itself.
    ///
    /// # Errors
    /// What is wrong with the reference.
    #[must_use]
    pub fn parse(text: &str) -> Option<Result<Self, String>> {
        let (word, rest) = text.split_once(':')?;
        let service = Service::ALL.into_iter().find(|service| service.word().eq_ignore_ascii_case(word))?;
        Some(if service.word() == word {
            Self::parse_rest(service, rest)
        } else {
            Err(format!("write {:?} in small letters", service.word()))
        })
    }

    fn parse_rest(service: Service, rest: &str) -> Result<Self, String> {
        let (name, key) = match rest.split_once('#') {
            Some((name, key)) => (name, Some(key)),
            None => (rest, None),
        };
        let like = match service {
            Service::SecretsManager => {
                "secretsmanager:<name or ARN> or secretsmanager:<name or ARN>#<JSON key>"
            }
            Service::Ssm => "ssm:<parameter name or ARN>",
        };
        let fault = |what: &str| Err(format!("{what}: write {like}"));
        if name.is_empty() {
            return fault("the reference names nothing");
        }
        // ':' is for ARNs and for ssm's versions and labels.
        let known = |c: char| c.is_ascii_alphanumeric() || "/_+=.@-:!".contains(c);
        if let Some(bad) = name.chars().find(|c| !known(*c)) {
            return fault(&format!("{bad:?} cannot stand in the name of a secret"));
        }
        if name.len() > NAME_BYTES_MAX {
            return fault("the name is too long");
        }
        if let Some(arn) = name.strip_prefix("arn:") {
            let parts: Vec<&str> = arn.splitn(5, ':').collect();
            let whole = parts.len() == 5 && parts.iter().all(|part| !part.is_empty());
            if !whole || parts[1] != service.word() {
                return fault("the ARN is not one of this service");
            }
        }
        match (service, key) {
            (Service::Ssm, Some(_)) => return fault("a parameter has no keys"),
            (_, Some("")) => return fault("no key follows the \"#\""),
            _ => {}
        }
        Ok(Self { source: Source { service, name: name.to_owned() }, key: key.map(str::to_owned) })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.source.service.word(), self.source.name)?;
        self.key.as_ref().map_or(Ok(()), |key| write!(f, "#{key}"))
    }
}

/// What references stand for. Shows no value, whoever prints it.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Values(BTreeMap<Reference, String>);

impl Values {
    /// The value of a reference.
    #[must_use]
    pub fn get(&self, reference: &Reference) -> Option<&str> {
        self.0.get(reference).map(String::as_str)
    }

    /// The values of `references` alone.
    #[must_use]
    pub fn of(&self, references: &[Referring]) -> Self {
        let wanted = |reference: &Reference| references.iter().any(|r| r.reference == *reference);
        Self(self.0.iter().filter(|(r, _)| wanted(r)).map(|(r, v)| (r.clone(), v.clone())).collect())
    }
}

impl fmt::Debug for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// A variable and the reference that was given for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Referring {
    /// Such as `CRON_ETCD_PASSWORD`.
    pub variable: &'static str,
    /// Where its value is.
    pub reference: Reference,
}

/// Why a secret cannot be had; each says what to do about it, none holds a secret's value.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Problem {
    /// Nobody said in which region to look.
    #[error("no AWS region is known: set AWS_REGION, or name the secret by its ARN")]
    NoRegion,
    /// No provider of credentials has any.
    #[error(
        "no AWS credentials: give this program a role (function, task, instance, web identity), or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; tried: {0}"
    )]
    NoCredentials(String),
    /// AWS does not know the credentials, or no longer.
    #[error(
        "AWS refuses the credentials themselves (expired, mistyped, or this machine's clock is wrong): {0}"
    )]
    BadCredentials(String),
    /// No connection to the service.
    #[error("no route to {host} ({why}): {advice}")]
    NoRoute {
        /// Whom it tried to reach.
        host: String,
        /// How that failed.
        why: String,
        /// What to add.
        advice: String,
    },
    /// The role lacks a permission.
    #[error("permission missing: allow {action} on {resource} to this program's role; AWS says: {says}")]
    Denied {
        /// Such as `secretsmanager:GetSecretValue`.
        action: &'static str,
        /// Name or ARN.
        resource: String,
        /// AWS's words, which name the role.
        says: String,
    },
    /// There is no such secret.
    #[error(
        "there is none of that name in {region}: create it, or correct the name or the region (AWS says: {says})"
    )]
    NotFound {
        /// Where it was looked for.
        region: String,
        /// AWS's words.
        says: String,
    },
    /// A key was asked for and the secret has none.
    #[error("the secret is no JSON object, so it has no key: leave the \"#…\" out, or store an object")]
    NoObject,
    /// The object has other keys.
    #[error("the secret has no key of that name; its keys: {}", .0.join(", "))]
    NoKey(Vec<String>),
    /// The key's value is an object or a list.
    #[error("the key's value is no text")]
    NoText,
    /// `SecretBinary`.
    #[error("the secret is binary: store it as text (SecretString)")]
    Binary,
    /// Too many requests, also after a pause.
    #[error("AWS says that there are too many requests: {0}")]
    Throttled(String),
    /// No answer in time.
    #[error("not read within {0:?}")]
    Slow(Duration),
    /// The value does not fit its variable.
    #[error("what is kept there is not {0}")]
    Unusable(&'static str),
    /// The values do not fit together, or not to what is given besides.
    #[error("no client can be made of it: {0}")]
    Unmade(String),
    /// Anything else.
    #[error("AWS did not give it: {0}")]
    Failed(String),
}

/// A secret that cannot be had, and which variables want it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{}={reference}: {problem}", .variables.join(", "))]
pub struct Fault {
    /// Which variables.
    pub variables: Vec<&'static str>,
    /// What they say.
    pub reference: Reference,
    /// Why it has no value.
    pub problem: Problem,
}

/// The configuration has no values: every reason.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct Error(pub Vec<Fault>);

/// Who keeps secrets.
#[async_trait]
pub trait Vault: Send + Sync {
    /// The texts of secrets, in the same order.
    async fn read(&self, sources: &[Source]) -> Vec<Result<String, Problem>>;
}

/// Reads what the variables refer to, each secret once.
///
/// # Errors
/// All that is wrong, so that it is mended in one go.
pub async fn resolve(vault: &dyn Vault, wanted: &[Referring]) -> Result<Values, Error> {
    if wanted.is_empty() {
        return Ok(Values::default());
    }
    let sources: BTreeSet<&Source> = wanted.iter().map(|r| &r.reference.source).collect();
    let sources: Vec<Source> = sources.into_iter().cloned().collect();
    let read = match timeout(READ_LIMIT, vault.read(&sources)).await {
        Ok(read) => read,
        Err(_elapsed) => vec![Err(Problem::Slow(READ_LIMIT)); sources.len()],
    };
    let read: BTreeMap<&Source, Result<String, Problem>> = sources.iter().zip(read).collect();
    let mut values = BTreeMap::new();
    let mut faults: Vec<Fault> = Vec::new();
    for Referring { variable, reference } in wanted {
        let value = match read.get(&reference.source) {
            Some(Ok(text)) => pick(text, reference.key.as_deref()),
            Some(Err(problem)) => Err(problem.clone()),
            None => Err(Problem::Failed("no answer".to_owned())),
        };
        match value {
            Ok(value) => {
                values.insert(reference.clone(), value);
            }
            Err(problem) => {
                // What stands in the way of a secret is told once, however many variables want something of it.
                let same = faults
                    .iter_mut()
                    .find(|fault| fault.problem == problem && fault.reference.source == reference.source);
                match same {
                    Some(fault) => fault.variables.push(variable),
                    None => faults.push(Fault {
                        variables: vec![variable],
                        reference: reference.clone(),
                        problem,
                    }),
                }
            }
        }
    }
    if faults.is_empty() { Ok(Values(values)) } else { Err(Error(faults)) }
}

/// The value in a secret's text.
fn pick(text: &str, key: Option<&str>) -> Result<String, Problem> {
    let Some(key) = key else {
        // `--secret-string file://…` keeps the file's last line break, which no password has.
        return Ok(text.trim_end_matches(['\r', '\n']).to_owned());
    };
    let Ok(serde_json::Value::Object(fields)) = serde_json::from_str(text) else {
        return Err(Problem::NoObject);
    };
    match fields.get(key) {
        Some(serde_json::Value::String(value)) => Ok(value.clone()),
        Some(value @ (serde_json::Value::Number(_) | serde_json::Value::Bool(_))) => Ok(value.to_string()),
        Some(_) => Err(Problem::NoText),
        None => Err(Problem::NoKey(fields.keys().cloned().collect())),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Secrets in memory, and what was read.
    #[derive(Default)]
    pub(crate) struct Shelf {
        pub(crate) texts: Mutex<BTreeMap<String, Result<String, Problem>>>,
        pub(crate) reads: Mutex<Vec<String>>,
    }

    impl Shelf {
        pub(crate) fn put(&self, name: &str, text: Result<&str, Problem>) {
            self.texts.lock().unwrap().insert(name.to_owned(), text.map(str::to_owned));
        }

        pub(crate) fn reads(&self) -> usize {
            self.reads.lock().unwrap().len()
        }
    }

    #[async_trait]
    impl Vault for Shelf {
        async fn read(&self, sources: &[Source]) -> Vec<Result<String, Problem>> {
            tokio::task::yield_now().await; // as a real one, it lets others run meanwhile
            let texts = self.texts.lock().unwrap();
            let mut reads = self.reads.lock().unwrap();
            let none = Err(Problem::NotFound { region: "here".to_owned(), says: "none".to_owned() });
            let read = |source: &Source| texts.get(&source.name).cloned().unwrap_or(none.clone());
            reads.extend(sources.iter().map(|source| source.name.clone()));
            sources.iter().map(read).collect()
        }
    }

    pub(crate) fn referring(variable: &'static str, text: &str) -> Referring {
        Referring { variable, reference: Reference::parse(text).unwrap().unwrap() }
    }

    #[test]
    fn a_reference_is_read_and_written_alike() {
        for text in [
            "secretsmanager:fleetcron/etcd",
            "secretsmanager:fleetcron/etcd#password",
            "secretsmanager:arn:aws:secretsmanager:eu-west-1:123456789012:secret:fleetcron-a1B2c3#uri",
            "ssm:/fleetcron/mongodb-uri",
            "ssm:/fleetcron/mongodb-uri:3",
            "ssm:arn:aws-cn:ssm:cn-north-1:123456789012:parameter/fleetcron/uri",
        ] {
            assert_eq!(Reference::parse(text).unwrap().unwrap().to_string(), text);
        }
        let arn = Reference::parse("ssm:arn:aws:ssm:eu-west-1:1:parameter/a").unwrap().unwrap();
        assert_eq!(arn.source.region(), Some("eu-west-1"));
        assert_eq!(Reference::parse("ssm:/a").unwrap().unwrap().source.region(), None);
    }

    #[test]
    fn other_texts_are_values() {
        for text in ["http://127.0.0.1:2379", "mongodb://a:b@c", "secret", "", "ssm", "arn:aws:ssm:a:b:c"] {
            assert_eq!(Reference::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_bad_reference_says_what_is_wrong() {
        for (text, says) in [
            ("secretsmanager:", "names nothing"),
            ("secretsmanager:#key", "names nothing"),
            ("secretsmanager:a#", "no key follows"),
            ("secretsmanager:a b", "' ' cannot stand"),
            ("SecretsManager:a", "small letters"),
            ("ssm:/a#key", "has no keys"),
            ("ssm:arn:aws:secretsmanager:eu-west-1:1:secret:a", "not one of this service"),
            ("secretsmanager:arn:aws:secretsmanager", "not one of this service"),
        ] {
            let said = Reference::parse(text).unwrap().unwrap_err();
            assert!(said.contains(says), "{text}: {said}");
        }
    }

    #[tokio::test]
    async fn a_secret_is_read_once_for_all_its_keys() {
        let shelf = Shelf::default();
        shelf.put("s", Ok(r#"{"user":"root","password":"p","port":27017}"#));
        shelf.put("whole", Ok("text\n"));
        let wanted = [
            referring("CRON_ETCD_USERNAME", "secretsmanager:s#user"),
            referring("CRON_ETCD_PASSWORD", "secretsmanager:s#password"),
            referring("CRON_ETCD_ENDPOINTS", "secretsmanager:s#port"),
            referring("CRON_MONGODB_URI", "secretsmanager:whole"),
        ];
        let values = resolve(&shelf, &wanted).await.unwrap();
        let got: Vec<&str> = wanted.iter().map(|w| values.get(&w.reference).unwrap()).collect();
        assert_eq!(got, ["root", "p", "27017", "text"]);
        assert_eq!(shelf.reads(), 2);
        assert!(!format!("{values:?}").contains("root"), "{values:?}");
    }

    #[tokio::test]
    async fn every_fault_is_told_at_once_and_no_value_with_it() {
        let shelf = Shelf::default();
        shelf.put("s", Ok(r#"{"user":"hidden","list":[]}"#));
        shelf.put("plain", Ok("hidden"));
        let wanted = [
            referring("CRON_ETCD_USERNAME", "secretsmanager:s#name"),
            referring("CRON_ETCD_PASSWORD", "secretsmanager:s#list"),
            referring("CRON_ETCD_CERT", "secretsmanager:gone#a"),
            referring("CRON_ETCD_KEY", "secretsmanager:gone#b"),
            referring("CRON_MONGODB_URI", "secretsmanager:plain#uri"),
        ];
        let said = resolve(&shelf, &wanted).await.unwrap_err().to_string();
        for part in [
            "CRON_ETCD_USERNAME=secretsmanager:s#name: the secret has no key of that name; its keys: user, list",
            "CRON_ETCD_PASSWORD=secretsmanager:s#list: the key's value is no text",
            "CRON_ETCD_CERT, CRON_ETCD_KEY=secretsmanager:gone#a: there is none of that name in here",
            "CRON_MONGODB_URI=secretsmanager:plain#uri: the secret is no JSON object",
        ] {
            assert!(said.contains(part), "{part} is not in {said}");
        }
        assert!(!said.contains("hidden"), "{said}");
    }
}
