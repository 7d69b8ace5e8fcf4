//! The only module that reads the environment and the command line.
#![expect(clippy::disallowed_methods, reason = "this is the module that may")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use crate::channels::Channels;
use crate::domain::execution::is_user;
use crate::job_secrets::JobSecrets;
use crate::networks::{self, Networks};
use crate::secrets::{Reference, Referring, Values};
use crate::traces::{self, TraceSettings};

/// One setting: an environment variable, and the flag of the same name (`CRON_DATA_DIR` = `--data-dir`).
struct Variable {
    name: &'static str,
    help: &'static str,
    set: fn(&mut Settings, &str) -> Result<(), String>,
    /// Where the value may be kept as a secret.
    secret: Option<Secret>,
}

/// How a variable takes the value that a reference led to.
struct Secret {
    set: fn(&mut Settings, &str) -> Result<(), String>,
    /// What is said when it does not take it; the value itself must not be shown.
    like: &'static str,
}

/// The seed's shell.
pub const SHELL_DEFAULT: &str = "/bin/bash";
/// By these AWS knows the worker.
const CREDENTIALS: [&str; 8] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
];

/// Variables that workers hand to jobs: no settings, and no mistake when a job starts one of our programs.
const HANDED_TO_JOBS: [&str; 5] =
    ["CRON_JOB_NAME", "CRON_RUN_ID", "CRON_PLAN_TIME", "CRON_ATTEMPT", "CRON_GUARDIAN"];

const VARIABLES: [Variable; 39] = [
    Variable {
        name: "CRON_ETCD_ENDPOINTS",
        help: "etcd, comma-separated (default http://127.0.0.1:2379; local-dev: the embedded store when unset)",
        set: endpoints,
        secret: Some(Secret { set: endpoints, like: "like http://127.0.0.1:2379, or several with commas" }),
    },
    Variable {
        name: "CRON_ETCD_USERNAME",
        help: "etcd user",
        set: |s, v| text(&mut s.etcd.username, v),
        secret: Some(Secret { set: |s, v| text(&mut s.etcd.username, v), like: "a name" }),
    },
    Variable {
        name: "CRON_ETCD_PASSWORD",
        help: "etcd password",
        set: |s, v| text(&mut s.etcd.password, v),
        secret: Some(Secret { set: |s, v| text(&mut s.etcd.password, v), like: "a password" }),
    },
    Variable {
        name: "CRON_ETCD_CA",
        help: "PEM file of the CA that signed etcd's certificate",
        set: |s, v| pem_file(&mut s.etcd.ca, v),
        secret: Some(Secret { set: |s, v| pem_text(&mut s.etcd.ca, v), like: "PEM text" }),
    },
    Variable {
        name: "CRON_ETCD_CERT",
        help: "PEM file of the client certificate for etcd",
        set: |s, v| pem_file(&mut s.etcd.cert, v),
        secret: Some(Secret { set: |s, v| pem_text(&mut s.etcd.cert, v), like: "PEM text" }),
    },
    Variable {
        name: "CRON_ETCD_KEY",
        help: "PEM file of the client certificate's key",
        set: |s, v| pem_file(&mut s.etcd.key, v),
        secret: Some(Secret { set: |s, v| pem_text(&mut s.etcd.key, v), like: "PEM text" }),
    },
    Variable {
        name: "CRON_MONGODB_URI",
        help: "MongoDB (default mongodb://127.0.0.1:27017; local-dev: the embedded store when unset)",
        set: mongodb_uri,
        secret: Some(Secret { set: mongodb_uri, like: "like mongodb://user:password@127.0.0.1:27017" }),
    },
    Variable {
        name: "CRON_WORKER_ID",
        help: "the worker's name (default: its first non-loopback IPv4 address, else the host name)",
        set: |s, v| {
            if v.contains('/') || v.contains('~') || v.chars().any(char::is_control) || v.len() > 200 {
                return Err("use at most 200 bytes, without \"/\", \"~\" and control characters".to_owned());
            }
            text(&mut s.worker_id, v)
        },
        secret: None,
    },
    Variable {
        name: "CRON_WORKER_LABELS",
        help: "labels of the worker, such as zone=a,gpu=no",
        set: |s, v| {
            for pair in v.split(',') {
                match pair.split_once('=') {
                    Some((key, value)) if !key.trim().is_empty() => {
                        s.worker_labels.insert(key.trim().to_owned(), value.trim().to_owned());
                    }
                    _ => return Err(format!("{pair:?} is not like zone=a")),
                }
            }
            Ok(())
        },
        secret: None,
    },
    Variable {
        name: "CRON_WORKER_LISTEN",
        help: "where the worker serves /metrics, /healthz and /readyz (default 127.0.0.1:9070; port 0: any free one)",
        set: |s, v| {
            parsed(&mut s.worker_listen, v, "an address like 127.0.0.1:9070")
                .map(|()| s.worker_listen_given = true)
        },
        secret: None,
    },
    Variable {
        name: "CRON_DATA_DIR",
        help: "directory of this instance (worker: default /var/lib/fleetcron or a writable fallback; local-dev: ./.fleetcron)",
        set: |s, v| path(&mut s.data_dir, v),
        secret: None,
    },
    Variable {
        name: "CRON_SESSION_TTL_SECONDS",
        help: "lease of the worker's session, 2 to 600 (default 10)",
        set: |s, v| {
            s.session_ttl = Duration::from_secs(within(v, 2, 600)?);
            Ok(())
        },
        secret: None,
    },
    Variable {
        name: "CRON_DRAIN_SECONDS",
        help: "a worker that is told to end kills what still runs after so long, 0 to 604800 (default: it waits)",
        set: |s, v| {
            s.drain_limit = Some(Duration::from_secs(within(v, 0, 604_800)?));
            Ok(())
        },
        secret: None,
    },
    Variable {
        name: "CRON_MAX_RUNS",
        help: "most runs at one time (default: (open-file limit - 256) / 4)",
        set: |s, v| {
            s.max_runs = Some(usize::try_from(within(v, 1, 1_000_000)?).unwrap_or(usize::MAX));
            Ok(())
        },
        secret: None,
    },
    Variable {
        name: "CRON_SHELL",
        help: "the shell that runs commands, by its absolute path; it is given -c and the command (default /bin/bash)",
        set: |s, v| {
            if !v.starts_with('/') {
                return Err(format!("{v:?} is not an absolute path like {SHELL_DEFAULT}"));
            }
            s.shell = PathBuf::from(v);
            Ok(())
        },
        secret: None,
    },
    Variable {
        name: "CRON_USERS",
        help: "users that jobs may name to run as, comma-separated (default none); the worker must have the right to become them",
        set: |s, v| {
            s.users = v.split(',').map(|user| user.trim().to_owned()).collect();
            match s.users.iter().find(|user| !is_user(user)) {
                Some(bad) => Err(format!("{bad:?} is no name of a user")),
                None => Ok(()),
            }
        },
        secret: None,
    },
    Variable {
        name: "CRON_HTTP_DENIED_NETWORKS",
        help: "networks that jobs with http may not call, like 10.0.0.0/8, comma-separated (default none, beside loopback, link-local and others that never are)",
        set: |s, v| {
            s.http_networks.denied = networks::parse(v)?;
            Ok(())
        },
        secret: None,
    },
    Variable {
        name: "CRON_HTTP_ALLOWED_NETWORKS",
        help: "networks that jobs with http may call although they are loopback, link-local or the like, comma-separated (default none); a cloud's metadata address must be named itself",
        set: |s, v| {
            s.http_networks.allowed = networks::parse(v)?;
            Ok(())
        },
        secret: None,
    },
    Variable {
        name: "CRON_LOG_BATCH_SIZE",
        help: "records written to MongoDB at once, 1 to 10000 (default 100)",
        set: |s, v| {
            s.log_batch_size = usize::try_from(within(v, 1, 10_000)?).unwrap_or(usize::MAX);
            Ok(())
        },
        secret: None,
    },
    Variable {
        name: "CRON_LOG_COMMIT_TIMEOUT_MS",
        help: "an incomplete batch is written after so long, 1 to 60000 (default 1000)",
        set: |s, v| {
            s.log_commit_timeout = Duration::from_millis(within(v, 1, 60_000)?);
            Ok(())
        },
        secret: None,
    },
    Variable {
        name: "CRON_LOG_RETENTION_DAYS",
        help: "records of runs that ended longer ago are removed, 0 to 36500 (default 90; 0 = never)",
        set: |s, v| {
            s.log_retention_days = u32::try_from(within(v, 0, 36_500)?).unwrap_or(u32::MAX);
            Ok(())
        },
        secret: None,
    },
    Variable {
        name: "CRON_LOG_MAX_PER_JOB",
        help: "of each job so many records are kept, the newest and those of a day, 0 to 1000000000 (default 0: all)",
        set: |s, v| {
            s.log_max_per_job = within(v, 0, 1_000_000_000)?;
            Ok(())
        },
        secret: None,
    },
    Variable {
        name: "CRON_AUDIT_DAYS",
        help: "who changed what is kept for so long, 0 to 36500 (default 400; 0 = for ever)",
        set: |s, v| {
            s.audit_days = u32::try_from(within(v, 0, 36_500)?).unwrap_or(u32::MAX);
            Ok(())
        },
        secret: None,
    },
    Variable {
        name: "CRON_SPOOL_MAX_BYTES",
        help: "records that wait for MongoDB take so much of the data directory, 1048576 and more; beyond, nothing is claimed (default 4294967296, or half of what the disk has left)",
        set: |s, v| {
            s.spool_bytes_max = Some(within(v, 1 << 20, 1 << 50)?);
            Ok(())
        },
        secret: None,
    },
    Variable {
        name: "CRON_NOTIFY_FILE",
        help: "JSON file of the channels that notifications go to; the same for every worker (default: none, nobody is told)",
        set: |s, v| {
            s.channels = Some(Arc::new(Channels::read(&PathBuf::from(v))?));
            Ok(())
        },
        secret: None,
    },
    Variable {
        name: "CRON_SECRETS_FILE",
        help: "JSON file of the secrets that jobs may name, where each is kept and which jobs may use it (default: none, a job that names one fails)",
        set: |s, v| {
            JobSecrets::read(&PathBuf::from(v))?;
            path(&mut s.secrets_file, v)
        },
        secret: None,
    },
    Variable {
        name: "CRON_LISTEN",
        help: "where local-dev serves the API and the console (default 127.0.0.1:8070)",
        set: |s, v| parsed(&mut s.listen, v, "an address like 127.0.0.1:8070"),
        secret: None,
    },
    Variable {
        name: "CRON_TLS_CERT",
        help: "PEM file of local-dev's certificate and those that lead to its CA; it then serves HTTPS alone, and follows the file",
        set: |s, v| {
            s.tls_cert = Some(PathBuf::from(v));
            Ok(())
        },
        secret: None,
    },
    Variable {
        name: "CRON_TLS_KEY",
        help: "PEM file of that certificate's key",
        set: |s, v| {
            s.tls_key = Some(PathBuf::from(v));
            Ok(())
        },
        secret: None,
    },
    Variable {
        name: "CRON_BEHIND_PROXY",
        help: "1: whoever reaches local-dev comes through a proxy, which does TLS and ends X-Forwarded-For with its caller's address (default 0)",
        set: |s, v| {
            s.behind_proxy = match v {
                "0" => false,
                "1" => true,
                _ => return Err(format!("{v:?} is neither 1 nor 0")),
            };
            Ok(())
        },
        secret: None,
    },
    Variable {
        name: "CRON_WORKERS",
        help: "workers in local-dev's process, 0 to 64 (default 1; 0 = the API alone)",
        set: |s, v| {
            s.workers = usize::try_from(within(v, 0, 64)?).unwrap_or(usize::MAX);
            Ok(())
        },
        secret: None,
    },
    Variable {
        name: "CRON_CRONTAB",
        help: "crontabs whose jobs local-dev starts with: the flag takes one or more files and may be repeated, the variable parts them by \":\"; /etc/crontab and what is in a directory cron.d has a user before each command",
        set: |s, v| {
            s.crontabs.extend(v.split(':').filter(|file| !file.is_empty()).map(PathBuf::from));
            Ok(())
        },
        secret: None,
    },
    Variable {
        name: "CRON_AUTH",
        help: "required: every call of the API needs a token; open: none does (default required; local-dev on loopback: open). Lambda takes no open",
        set: |s, v| {
            s.auth = Some(match v {
                "required" => Auth::Required,
                "open" => Auth::Open,
                _ => return Err(format!("{v:?} is neither required nor open")),
            });
            Ok(())
        },
        secret: None,
    },
    Variable {
        name: "CRON_BOOTSTRAP_TOKEN",
        help: "a secret of at least 32 characters that makes the first admin token, and nothing else (default: none)",
        set: bootstrap_token,
        secret: Some(Secret { set: bootstrap_token, like: "a random secret of at least 32 characters" }),
    },
    Variable {
        name: "CRON_OIDC_ISSUER",
        help: "an OpenID provider whose tokens are taken, as its tokens name it, like https://login.example.com/tenant (default: none)",
        set: |s, v| https(&mut s.oidc.issuer, v),
        secret: None,
    },
    Variable {
        name: "CRON_OIDC_AUDIENCE",
        help: "for whom the provider's tokens must be made out: what this API is called there",
        set: |s, v| text(&mut s.oidc.audience, v),
        secret: None,
    },
    Variable {
        name: "CRON_OIDC_JWKS_URL",
        help: "where the provider's keys are (default: where its /.well-known/openid-configuration says)",
        set: |s, v| https(&mut s.oidc.jwks_url, v),
        secret: None,
    },
    Variable {
        name: "CRON_OIDC_ROLE_CLAIM",
        help: "the claim with viewer, operator, editor or admin, or a list in which one of them is; dots lead into objects (default fleetcron_role)",
        set: |s, v| text(&mut s.oidc.role_claim, v),
        secret: None,
    },
    Variable {
        name: "CRON_OIDC_PREFIX_CLAIM",
        help: "the claim with what the names of a caller's jobs begin with; a token without it is refused (default: none is looked at, all jobs)",
        set: |s, v| text(&mut s.oidc.prefix_claim, v),
        secret: None,
    },
];

/// Shortest bootstrap token, in characters.
const BOOTSTRAP_CHARACTERS_MIN: usize = 32;
/// As many characters of it must be different ones: 16 random bytes in hex have 10 nearly always.
const BOOTSTRAP_DIFFERENT_MIN: usize = 8;
/// What stands in samples, documents and defaults, and so is known to everybody.
const KNOWN_WORDS: [&str; 14] = [
    "changeme",
    "change-me",
    "change_me",
    "default",
    "example",
    "password",
    "bootstrap",
    "fleetcron",
    "your-",
    "your_",
    "sample",
    "abcdefgh",
    "12345678",
    "deadbeef",
];

fn bootstrap_token(settings: &mut Settings, value: &str) -> Result<(), String> {
    let like = "make one with: openssl rand -hex 32";
    let different: BTreeSet<char> = value.chars().collect();
    if value.chars().count() < BOOTSTRAP_CHARACTERS_MIN {
        return Err(format!("it is shorter than {BOOTSTRAP_CHARACTERS_MIN} characters: {like}"));
    }
    if !value.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(format!("it has characters that no header takes: {like}"));
    }
    let small = value.to_ascii_lowercase();
    if different.len() < BOOTSTRAP_DIFFERENT_MIN || KNOWN_WORDS.iter().any(|word| small.contains(word)) {
        return Err(format!("it is no random secret but one that others know as well: {like}"));
    }
    text(&mut settings.bootstrap_token, value)
}

fn https(field: &mut Option<String>, value: &str) -> Result<(), String> {
    let parsed = url::Url::parse(value).ok().filter(|url| {
        url.scheme() == "https"
            && url.username().is_empty()
            && url.password().is_none()
            && url.fragment().is_none()
    });
    if parsed.is_none() {
        return Err(format!("{value:?} is not like https://login.example.com"));
    }
    text(field, value)
}

fn endpoints(settings: &mut Settings, value: &str) -> Result<(), String> {
    let endpoints: Vec<String> = value.split(',').map(|e| e.trim().to_owned()).collect();
    match endpoints.iter().find(|e| !e.starts_with("http://") && !e.starts_with("https://")) {
        Some(bad) => Err(format!("{bad:?} is not like http://127.0.0.1:2379")),
        None => {
            settings.etcd.endpoints = Some(endpoints);
            Ok(())
        }
    }
}

fn mongodb_uri(settings: &mut Settings, value: &str) -> Result<(), String> {
    if !value.starts_with("mongodb://") && !value.starts_with("mongodb+srv://") {
        return Err("it is not like mongodb://127.0.0.1:27017".to_owned());
    }
    settings.mongodb_uri = Some(value.to_owned());
    Ok(())
}

fn pem_file(field: &mut Option<Pem>, value: &str) -> Result<(), String> {
    *field = Some(Pem::File(PathBuf::from(value)));
    Ok(())
}

fn pem_text(field: &mut Option<Pem>, value: &str) -> Result<(), String> {
    if !value.contains("-----BEGIN ") {
        return Err("it is no PEM text".to_owned());
    }
    *field = Some(Pem::Text(value.to_owned()));
    Ok(())
}

fn text(field: &mut Option<String>, value: &str) -> Result<(), String> {
    *field = Some(value.to_owned());
    Ok(())
}

fn path(field: &mut Option<PathBuf>, value: &str) -> Result<(), String> {
    *field = Some(PathBuf::from(value));
    Ok(())
}

fn parsed<T: std::str::FromStr>(field: &mut T, value: &str, like: &str) -> Result<(), String> {
    *field = value.parse().map_err(|_unparsed| format!("{value:?} is not {like}"))?;
    Ok(())
}

fn within(value: &str, min: u64, max: u64) -> Result<u64, String> {
    match value.parse::<u64>() {
        Ok(number) if (min..=max).contains(&number) => Ok(number),
        _ => Err(format!("{value:?} is not a whole number from {min} to {max}")),
    }
}

/// How to reach etcd.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct EtcdSettings {
    /// `None` = not set.
    pub endpoints: Option<Vec<String>>,
    /// User, for etcd's own authentication.
    pub username: Option<String>,
    /// Password of the user.
    pub password: Option<String>,
    /// The CA that signed etcd's certificate.
    pub ca: Option<Pem>,
    /// The client certificate.
    pub cert: Option<Pem>,
    /// Its key.
    pub key: Option<Pem>,
}

/// Whether a call needs a token.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Auth {
    /// Every call does, but for the console's files.
    Required,
    /// None does: whoever reaches the API may do everything.
    Open,
}

/// The OpenID provider whose tokens are taken.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct OidcSettings {
    /// See `CRON_OIDC_ISSUER`; `None` = no provider.
    pub issuer: Option<String>,
    /// See `CRON_OIDC_AUDIENCE`; given with the issuer.
    pub audience: Option<String>,
    /// See `CRON_OIDC_JWKS_URL`; `None` = the provider says it.
    pub jwks_url: Option<String>,
    /// See `CRON_OIDC_ROLE_CLAIM`; `None` = its default.
    pub role_claim: Option<String>,
    /// See `CRON_OIDC_PREFIX_CLAIM`; `None` = no claim is looked at.
    pub prefix_claim: Option<String>,
}

/// What a certificate is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CertificateUse {
    /// `CRON_ETCD_CA`.
    EtcdCa,
    /// `CRON_ETCD_CERT`.
    EtcdClient,
    /// `tlsCAFile` of `CRON_MONGODB_URI`.
    MongoDbCa,
    /// `tlsCertificateKeyFile` of `CRON_MONGODB_URI`.
    MongoDbClient,
}

impl CertificateUse {
    /// All of them, in their order.
    pub const ALL: [Self; 4] = [Self::EtcdCa, Self::EtcdClient, Self::MongoDbCa, Self::MongoDbClient];

    /// What it is called in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::EtcdCa => "etcdCa",
            Self::EtcdClient => "etcdClient",
            Self::MongoDbCa => "mongodbCa",
            Self::MongoDbClient => "mongodbClient",
        }
    }

    /// Others are trusted for it; else it is shown to them.
    #[must_use]
    pub const fn is_ca(self) -> bool {
        matches!(self, Self::EtcdCa | Self::MongoDbCa)
    }
}

/// Certificates or a key.
#[derive(Clone, PartialEq, Eq)]
pub enum Pem {
    /// A file.
    File(PathBuf),
    /// The text itself, out of a secret.
    Text(String),
}

impl EtcdSettings {
    /// The endpoints, or the default one.
    #[must_use]
    pub fn endpoints_or_default(&self) -> Vec<String> {
        self.endpoints.clone().unwrap_or_else(|| vec!["http://127.0.0.1:2379".to_owned()])
    }
}

impl std::fmt::Debug for EtcdSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdSettings")
            .field("endpoints", &self.endpoints)
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// All settings of all programs; each uses its own.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    /// What is given as it is; see [`Settings::etcd`].
    etcd: EtcdSettings,
    /// As above; see [`Settings::mongodb_uri`].
    mongodb_uri: Option<String>,
    /// What is kept elsewhere, by variable.
    references: BTreeMap<&'static str, Reference>,
    /// `None` = not set.
    pub worker_id: Option<String>,
    /// See `CRON_WORKER_LABELS`.
    pub worker_labels: BTreeMap<String, String>,
    /// See `CRON_WORKER_LISTEN`.
    pub worker_listen: SocketAddr,
    /// Whether somebody asked for that address; the default one is done without when it is taken.
    pub worker_listen_given: bool,
    /// `None` = not set.
    pub data_dir: Option<PathBuf>,
    /// See `CRON_SESSION_TTL_SECONDS`.
    pub session_ttl: Duration,
    /// See `CRON_DRAIN_SECONDS`; `None` = runs are waited for, however long they take.
    pub drain_limit: Option<Duration>,
    /// `None` = not set.
    pub max_runs: Option<usize>,
    /// See `CRON_SHELL`.
    pub shell: PathBuf,
    /// See `CRON_USERS`.
    pub users: BTreeSet<String>,
    /// See `CRON_HTTP_DENIED_NETWORKS` and `CRON_HTTP_ALLOWED_NETWORKS`.
    pub http_networks: Networks,
    /// See `CRON_LOG_BATCH_SIZE`.
    pub log_batch_size: usize,
    /// See `CRON_LOG_COMMIT_TIMEOUT_MS`.
    pub log_commit_timeout: Duration,
    /// See `CRON_LOG_RETENTION_DAYS`.
    pub log_retention_days: u32,
    /// See `CRON_LOG_MAX_PER_JOB`.
    pub log_max_per_job: u64,
    /// See `CRON_AUDIT_DAYS`.
    pub audit_days: u32,
    /// See `CRON_SPOOL_MAX_BYTES`; `None` = not set.
    pub spool_bytes_max: Option<u64>,
    /// See `CRON_NOTIFY_FILE`; `None` = not set.
    pub channels: Option<Arc<Channels>>,
    /// See `CRON_SECRETS_FILE`; good when it was read first. `None` = not set.
    pub secrets_file: Option<PathBuf>,
    /// See `CRON_LISTEN`.
    pub listen: SocketAddr,
    /// See `CRON_TLS_CERT`; set when and only when the key is.
    pub tls_cert: Option<PathBuf>,
    /// See `CRON_TLS_KEY`.
    pub tls_key: Option<PathBuf>,
    /// See `CRON_BEHIND_PROXY`.
    pub behind_proxy: bool,
    /// See `CRON_WORKERS`.
    pub workers: usize,
    /// See `CRON_CRONTAB`.
    pub crontabs: Vec<PathBuf>,
    /// See `CRON_AUTH`; `None` = not set.
    pub auth: Option<Auth>,
    /// As it is given; see [`Settings::bootstrap_token`].
    bootstrap_token: Option<String>,
    /// See `CRON_OIDC_ISSUER` and the others.
    pub oidc: OidcSettings,
    /// What OpenTelemetry's own variables say.
    pub traces: TraceSettings,
    /// Words on the command line that are no flags.
    pub words: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            etcd: EtcdSettings::default(),
            mongodb_uri: None,
            references: BTreeMap::new(),
            worker_id: None,
            worker_labels: BTreeMap::new(),
            worker_listen: SocketAddr::from(([127, 0, 0, 1], 9070)),
            worker_listen_given: false,
            data_dir: None,
            session_ttl: Duration::from_secs(10), // the seed's registration lease
            drain_limit: None,
            max_runs: None,
            shell: PathBuf::from(SHELL_DEFAULT),
            users: BTreeSet::new(),
            http_networks: Networks::default(),
            log_batch_size: 100,                             // the seed's jobLogBatchSize
            log_commit_timeout: Duration::from_millis(1000), // the seed's jobLogCommitTimeout
            log_retention_days: 90,
            log_max_per_job: 0,
            audit_days: 400,
            spool_bytes_max: None,
            channels: None,
            secrets_file: None,
            listen: SocketAddr::from(([127, 0, 0, 1], 8070)), // the seed's port
            tls_cert: None,
            tls_key: None,
            behind_proxy: false,
            workers: 1,
            crontabs: Vec::new(),
            auth: None,
            bootstrap_token: None,
            oidc: OidcSettings::default(),
            traces: TraceSettings::default(),
            words: Vec::new(),
        }
    }
}

/// The value that a reference led to does not fit its variable.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{variable}: the value is not {like}")]
pub struct Unusable {
    /// Which variable.
    pub variable: &'static str,
    /// What would fit.
    pub like: &'static str,
}

impl Settings {
    /// How to reach etcd, with the values of [`Self::etcd_references`].
    ///
    /// # Errors
    /// When a value is missing or does not fit its variable.
    pub fn etcd(&self, values: &Values) -> Result<EtcdSettings, Unusable> {
        Ok(self.with(&self.etcd_references(), values)?.etcd)
    }

    /// The MongoDB address, or the default one, with the values of [`Self::mongodb_references`].
    ///
    /// # Errors
    /// As [`Self::etcd`].
    pub fn mongodb_uri(&self, values: &Values) -> Result<String, Unusable> {
        let uri = self.with(&self.mongodb_references(), values)?.mongodb_uri;
        Ok(uri.unwrap_or_else(|| "mongodb://127.0.0.1:27017".to_owned()))
    }

    /// The PEM files of certificates that the two stores are reached with. Not those that a secret holds, or that stand in an address which does.
    #[must_use]
    pub fn certificate_files(&self) -> Vec<(CertificateUse, PathBuf)> {
        let file = |pem: &Option<Pem>| match pem {
            Some(Pem::File(path)) => Some(path.clone()),
            _ => None,
        };
        let mut files = Vec::new();
        files.extend(file(&self.etcd.ca).map(|path| (CertificateUse::EtcdCa, path)));
        files.extend(file(&self.etcd.cert).map(|path| (CertificateUse::EtcdClient, path)));
        let query = self.mongodb_uri.as_deref().and_then(|uri| uri.rsplit_once('?'));
        // A "+" in an address is no blank to MongoDB's driver.
        let query = query.map(|(_, query)| query.replace('+', "%2B")).unwrap_or_default();
        for (option, value) in url::form_urlencoded::parse(query.as_bytes()) {
            match option.to_ascii_lowercase().as_str() {
                "tlscafile" => files.push((CertificateUse::MongoDbCa, PathBuf::from(&*value))),
                "tlscertificatekeyfile" => {
                    files.push((CertificateUse::MongoDbClient, PathBuf::from(&*value)))
                }
                _ => {}
            }
        }
        files
    }

    /// What must be read before etcd can be reached.
    #[must_use]
    pub fn etcd_references(&self) -> Vec<Referring> {
        self.references_of("CRON_ETCD_")
    }

    /// What must be read before MongoDB can be reached.
    #[must_use]
    pub fn mongodb_references(&self) -> Vec<Referring> {
        self.references_of("CRON_MONGODB_")
    }

    /// The secret that makes the first admin token, with the values of [`Self::bootstrap_references`]; `None` = there is none.
    ///
    /// # Errors
    /// As [`Self::etcd`].
    pub fn bootstrap_token(&self, values: &Values) -> Result<Option<String>, Unusable> {
        Ok(self.with(&self.bootstrap_references(), values)?.bootstrap_token)
    }

    /// What must be read before that secret is known.
    #[must_use]
    pub fn bootstrap_references(&self) -> Vec<Referring> {
        self.references_of("CRON_BOOTSTRAP_TOKEN")
    }

    /// Whether there is such a secret.
    #[must_use]
    pub fn has_bootstrap_token(&self) -> bool {
        self.is_given(self.bootstrap_token.is_some(), "CRON_BOOTSTRAP_TOKEN")
    }

    /// Whether somebody said where etcd is.
    #[must_use]
    pub fn has_etcd(&self) -> bool {
        self.is_given(self.etcd.endpoints.is_some(), "CRON_ETCD_ENDPOINTS")
    }

    /// Whether somebody said where MongoDB is.
    #[must_use]
    pub fn has_mongodb(&self) -> bool {
        self.is_given(self.mongodb_uri.is_some(), "CRON_MONGODB_URI")
    }

    /// Where etcd is, for the log: the endpoints, or where they are kept.
    #[must_use]
    pub fn etcd_shown(&self) -> String {
        match self.references.get("CRON_ETCD_ENDPOINTS") {
            Some(reference) => reference.to_string(),
            None => self.etcd.endpoints_or_default().join(","),
        }
    }

    fn references_of(&self, prefix: &str) -> Vec<Referring> {
        let wanted = self.references.iter().filter(|(variable, _)| variable.starts_with(prefix));
        wanted.map(|(&variable, reference)| Referring { variable, reference: reference.clone() }).collect()
    }

    fn with(&self, references: &[Referring], values: &Values) -> Result<Self, Unusable> {
        let mut settings = self.clone();
        for Referring { variable, reference } in references {
            let known = VARIABLES.iter().find(|v| v.name == *variable).and_then(|v| v.secret.as_ref());
            let Some(Secret { set, like }) = known else { continue };
            let unusable = Unusable { variable, like };
            let value = values.get(reference).filter(|value| !value.is_empty()).ok_or(unusable)?;
            set(&mut settings, value).map_err(|_shows_the_value| unusable)?;
        }
        Ok(settings)
    }

    /// Takes a variable's value, or the reference to it.
    fn take(&mut self, variable: &Variable, value: &str) -> Result<(), String> {
        // A flag wins over its variable, whichever of the two is a reference.
        self.references.remove(variable.name);
        match (Reference::parse(value), &variable.secret) {
            (None, _) => (variable.set)(self, value),
            (Some(Ok(reference)), Some(_)) => {
                self.references.insert(variable.name, reference);
                Ok(())
            }
            (Some(Err(why)), Some(_)) => Err(why),
            (Some(_), None) => Err("it takes no reference to a secret: write the value itself".to_owned()),
        }
    }

    fn is_given(&self, literal: bool, variable: &str) -> bool {
        literal || self.references.contains_key(variable)
    }
}

/// What a program was called for.
pub enum Invocation {
    /// To work.
    Run(Box<Settings>),
    /// `--check-config`: say whether the settings are good, and leave.
    CheckConfig,
    /// `--version`.
    Version,
    /// `--help`: this text.
    Help(String),
}

/// The settings are not usable; every reason on a line of its own.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct Error(pub Vec<String>);

/// Reads this process's environment and command line.
///
/// # Errors
/// Every unknown variable or flag, with the nearest known one, and every bad value.
pub fn load(program: &str) -> Result<Invocation, Error> {
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())));
    parse(program, environment, std::env::args_os().skip(1).map(|a| a.to_string_lossy().into_owned()))
}

/// The settings of a program with a command line; anything else that it was called for, and what is wrong, is said here.
///
/// # Errors
/// The code to exit with.
#[expect(clippy::print_stdout, clippy::print_stderr, reason = "answers on the command line")]
pub fn settings_or_exit(program: &str) -> Result<Box<Settings>, ExitCode> {
    match load(program) {
        Ok(Invocation::Run(settings)) => return Ok(settings),
        Ok(Invocation::CheckConfig) => println!("the configuration is good"),
        Ok(Invocation::Version) => println!("{program} {}", env!("CARGO_PKG_VERSION")),
        Ok(Invocation::Help(text)) => print!("{text}"),
        Err(why) => {
            eprintln!("{program}: the configuration is not usable:\n{why}");
            return Err(ExitCode::from(2));
        }
    }
    Err(ExitCode::SUCCESS)
}

/// What AWS Lambda says about a function's log.
pub struct LambdaLog {
    /// Lines are to be JSON: this is a Lambda function, or somebody wants the lines of one (`AWS_LAMBDA_LOG_FORMAT`).
    pub json: bool,
    /// `AWS_LAMBDA_LOG_LEVEL`.
    pub level: Option<String>,
}

/// Reads Lambda's own variables.
#[must_use]
pub fn lambda_log() -> LambdaLog {
    let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let asked = set("AWS_LAMBDA_LOG_FORMAT").is_some_and(|format| format.eq_ignore_ascii_case("json"));
    LambdaLog { json: asked || set("AWS_LAMBDA_FUNCTION_NAME").is_some(), level: set("AWS_LAMBDA_LOG_LEVEL") }
}

/// Whether this is a function that AWS runs. `cargo lambda watch`, which takes Lambda's place on a developer's machine, sets neither variable; and in
/// Lambda nobody can leave them out: they are reserved.
#[must_use]
pub fn is_on_lambda() -> bool {
    ["AWS_LAMBDA_INITIALIZATION_TYPE", "LAMBDA_TASK_ROOT"].iter().any(|name| std::env::var_os(name).is_some())
}

/// The environment variables of this process that a job must not inherit: our settings, among them passwords, and what AWS knows this
/// process by.
pub fn private_variables() -> impl Iterator<Item = std::ffi::OsString> {
    std::env::vars_os().map(|(name, _)| name).filter(|name| is_private(&name.to_string_lossy()))
}

fn is_private(name: &str) -> bool {
    name.starts_with("CRON_") || CREDENTIALS.contains(&name) || name == traces::HEADERS
}

/// Where this user's programs keep state: `$XDG_STATE_HOME`, or `~/.local/state`.
#[must_use]
pub fn state_home() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("XDG_STATE_HOME").or_else(|| Some(set("HOME")?.join(".local/state")))
}

/// `PATH` of this process.
#[must_use]
pub fn search_path() -> Vec<PathBuf> {
    std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default()
}

/// Makes settings of an environment and a command line; a flag wins over its variable.
///
/// # Errors
/// As [`load`].
pub fn parse(
    program: &str,
    environment: impl Iterator<Item = (String, String)>,
    arguments: impl Iterator<Item = String>,
) -> Result<Invocation, Error> {
    let mut settings = Settings::default();
    let mut faults = Vec::new();
    let mut environment: BTreeMap<String, String> = environment.collect();
    for (variable, _) in traces::VARIABLES {
        let set = environment.get(variable).filter(|value| !value.is_empty());
        if let Some(Err(why)) = set.map(|value| settings.traces.take(variable, value)) {
            faults.push(format!("{variable}: {why}"));
        }
    }
    environment.retain(|name, _| name.starts_with("CRON_"));
    for (name, value) in &environment {
        match VARIABLES.iter().find(|v| v.name == name) {
            // An empty variable is how compose files and templates say "not set".
            Some(_) if value.is_empty() => {}
            Some(variable) => {
                if let Err(why) = settings.take(variable, value) {
                    faults.push(format!("{name}: {why}"));
                }
            }
            None if HANDED_TO_JOBS.contains(&name.as_str()) => {}
            None => faults.push(format!(
                "{name}: unknown variable{}",
                nearest(name, VARIABLES.iter().map(|v| v.name.to_owned()))
            )),
        }
    }
    let mut check_only = false;
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        let Some(flag) = argument.strip_prefix("--") else {
            settings.words.push(argument);
            continue;
        };
        let (flag, inline) = match flag.split_once('=') {
            Some((flag, value)) => (flag, Some(value.to_owned())),
            None => (flag, None),
        };
        match flag {
            "check-config" => check_only = true,
            "version" => return Ok(Invocation::Version),
            "help" => return Ok(Invocation::Help(help(program))),
            _ => match VARIABLES.iter().find(|v| flag_of(v.name) == flag) {
                Some(variable) => match inline.or_else(|| arguments.next()) {
                    Some(value) => {
                        if let Err(why) = settings.take(variable, &value) {
                            faults.push(format!("--{flag}: {why}"));
                        }
                    }
                    None => faults.push(format!("--{flag}: a value must follow")),
                },
                None => {
                    let known = VARIABLES
                        .iter()
                        .map(|v| flag_of(v.name))
                        .chain(["check-config", "version", "help"].map(str::to_owned));
                    faults.push(format!(
                        "--{flag}: unknown flag{}",
                        nearest(flag, known).replace("mean ", "mean --")
                    ));
                }
            },
        }
    }
    if !settings.crontabs.is_empty() {
        // `--crontab /etc/cron.d/*`: the shell makes several words of it.
        let files = std::mem::take(&mut settings.words);
        settings.crontabs.extend(files.into_iter().map(PathBuf::from));
    }
    let etcd = &settings.etcd;
    if settings.is_given(etcd.cert.is_some(), "CRON_ETCD_CERT")
        != settings.is_given(etcd.key.is_some(), "CRON_ETCD_KEY")
    {
        faults.push("CRON_ETCD_CERT and CRON_ETCD_KEY go together: set both or none".to_owned());
    }
    if settings.is_given(etcd.username.is_some(), "CRON_ETCD_USERNAME")
        != settings.is_given(etcd.password.is_some(), "CRON_ETCD_PASSWORD")
    {
        faults.push("CRON_ETCD_USERNAME and CRON_ETCD_PASSWORD go together: set both or none".to_owned());
    }
    if settings.tls_cert.is_some() != settings.tls_key.is_some() {
        faults.push("CRON_TLS_CERT and CRON_TLS_KEY go together: set both or none".to_owned());
    }
    let oidc = &settings.oidc;
    if oidc.issuer.is_some() != oidc.audience.is_some() {
        faults.push("CRON_OIDC_ISSUER and CRON_OIDC_AUDIENCE go together: set both or none".to_owned());
    }
    if oidc.issuer.is_none()
        && (oidc.jwks_url.is_some() || oidc.role_claim.is_some() || oidc.prefix_claim.is_some())
    {
        faults.push(
            "CRON_OIDC_JWKS_URL, _ROLE_CLAIM and _PREFIX_CLAIM mean nothing without CRON_OIDC_ISSUER"
                .to_owned(),
        );
    }
    match faults.is_empty() {
        true if check_only => Ok(Invocation::CheckConfig),
        true => Ok(Invocation::Run(Box::new(settings))),
        false => Err(Error(faults)),
    }
}

fn flag_of(variable: &str) -> String {
    variable.trim_start_matches("CRON_").to_lowercase().replace('_', "-")
}

fn nearest(word: &str, known: impl Iterator<Item = String>) -> String {
    known
        .map(|k| (strsim::damerau_levenshtein(word, &k), k))
        .min()
        .filter(|(distance, _)| *distance <= word.len() / 2)
        .map(|(_, k)| format!(": did you mean {k}?"))
        .unwrap_or_default()
}

fn help(program: &str) -> String {
    let mut text = format!(
        "{program} [--check-config] [--version] [--help], and settings as flags or environment variables:\n"
    );
    for variable in &VARIABLES {
        let _infallible =
            writeln!(text, "  --{:<24} {:<28} {}", flag_of(variable.name), variable.name, variable.help);
    }
    let _infallible = writeln!(text, "\nand of OpenTelemetry's variables, which have no flags:");
    for (name, help) in traces::VARIABLES {
        let _infallible = writeln!(text, "  {name:<30} {help}");
    }
    let secret: Vec<&str> = VARIABLES.iter().filter(|v| v.secret.is_some()).map(|v| v.name).collect();
    let _infallible = writeln!(
        text,
        "\nInstead of a value may stand where AWS keeps it, secretsmanager:<name or ARN>[#<JSON key>] or ssm:<name or ARN>, in\n{}",
        secret.join(", ")
    );
    text
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The address of MongoDB holds a password.
        f.debug_struct("Settings")
            .field("etcd", &self.etcd)
            .field("references", &self.references)
            .field("data_dir", &self.data_dir)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_pairs(environment: &[(&str, &str)], arguments: &[&str]) -> Result<Invocation, Error> {
        let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        parse("worker", environment, arguments.iter().map(|a| (*a).to_owned()))
    }

    #[track_caller]
    fn settings(environment: &[(&str, &str)], arguments: &[&str]) -> Settings {
        match parse_pairs(environment, arguments).unwrap() {
            Invocation::Run(settings) => *settings,
            _ => panic!("not a run"),
        }
    }

    #[track_caller]
    fn faults(environment: &[(&str, &str)], arguments: &[&str]) -> String {
        parse_pairs(environment, arguments).err().expect("must be refused").to_string()
    }

    #[test]
    fn a_flag_wins_over_its_variable() {
        let s = settings(
            &[("CRON_DATA_DIR", "/a"), ("CRON_MAX_RUNS", "7")],
            &["--data-dir", "/b", "--listen=127.0.0.1:1"],
        );
        assert_eq!(s.data_dir, Some(PathBuf::from("/b")));
        assert_eq!(s.max_runs, Some(7));
        assert_eq!(s.listen.port(), 1);
    }

    #[test]
    fn crontabs_are_given_one_by_one_or_as_the_shell_expands_them() {
        let files = |environment: &[(&str, &str)], arguments: &[&str]| {
            let settings = settings(environment, arguments);
            assert!(settings.words.is_empty(), "{:?}", settings.words);
            settings.crontabs.iter().map(|file| file.display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(files(&[], &["--crontab", "a", "--crontab=b"]), ["a", "b"]);
        assert_eq!(files(&[], &["--crontab", "a", "b", "c", "--workers", "2"]), ["a", "b", "c"]);
        assert_eq!(files(&[("CRON_CRONTAB", "/a:b")], &["--crontab", "c"]), ["/a", "b", "c"]);
    }

    #[test]
    fn what_is_secret_is_not_for_jobs() {
        let private =
            ["CRON_MONGODB_URI", "AWS_SECRET_ACCESS_KEY", "OTEL_EXPORTER_OTLP_HEADERS"].map(is_private);
        let shared = ["AWS_REGION", "PATH", "OTEL_EXPORTER_OTLP_ENDPOINT"].map(is_private);
        assert_eq!((private, shared), ([true; 3], [false; 3]));
    }

    #[test]
    fn an_empty_variable_is_not_set() {
        assert_eq!(settings(&[("CRON_ETCD_ENDPOINTS", "")], &[]), Settings::default());
    }

    #[test]
    fn what_is_unknown_is_refused_with_the_nearest_name() {
        assert!(faults(&[("CRON_ETCD_ENDPOINT", "x")], &[]).contains("did you mean CRON_ETCD_ENDPOINTS?"));
        assert!(faults(&[], &["--data-dri", "x"]).contains("did you mean --data-dir?"));
        assert!(settings(&[("CRON_RUN_ID", "x")], &[]).words.is_empty());
    }

    #[test]
    fn of_opentelemetrys_variables_those_are_read_that_are_understood() {
        let s = settings(&[("OTEL_SERVICE_NAME", "x"), ("OTEL_TRACES_SAMPLER_ARG", "0.5")], &[]);
        assert_ne!(s.traces, TraceSettings::default());
        assert_eq!(settings(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")], &[]), Settings::default());
        let said = faults(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "here"), ("OTEL_TRACES_SAMPLER_ARG", "2")], &[]);
        assert!(said.contains("OTEL_EXPORTER_OTLP_ENDPOINT: it is not like http://"), "{said}");
        assert!(said.contains("OTEL_TRACES_SAMPLER_ARG: it is not a number from 0 to 1"), "{said}");
    }

    #[test]
    fn the_files_of_certificates_are_those_that_the_stores_are_reached_with() {
        let files = |uri: &str, ca: &str| {
            settings(&[("CRON_MONGODB_URI", uri), ("CRON_ETCD_CA", ca)], &[]).certificate_files()
        };
        let file = |what, path: &str| (what, PathBuf::from(path));
        let uri = "mongodb://u:p@a:1,b:2/?tls=true&tlsCAFile=/a+b%20c.pem&TLSCertificateKeyFile=/k.pem";
        assert_eq!(
            files(uri, "/etcd.pem"),
            [
                file(CertificateUse::EtcdCa, "/etcd.pem"),
                file(CertificateUse::MongoDbCa, "/a+b c.pem"),
                file(CertificateUse::MongoDbClient, "/k.pem"),
            ]
        );
        assert!(files("mongodb://a", "ssm:/etcd-ca").is_empty(), "what is kept elsewhere is in no file");
    }

    #[test]
    fn a_reference_stands_for_a_value_where_secrets_may_be() {
        let s = settings(
            &[
                ("CRON_ETCD_USERNAME", "root"),
                ("CRON_ETCD_PASSWORD", "secretsmanager:etcd#password"),
                ("CRON_MONGODB_URI", "ssm:/mongodb-uri"),
            ],
            &[],
        );
        let shown = |references: Vec<Referring>| -> Vec<String> {
            references.iter().map(|r| format!("{}={}", r.variable, r.reference)).collect()
        };
        assert_eq!(shown(s.etcd_references()), ["CRON_ETCD_PASSWORD=secretsmanager:etcd#password"]);
        assert_eq!(shown(s.mongodb_references()), ["CRON_MONGODB_URI=ssm:/mongodb-uri"]);
        assert!(s.has_mongodb() && !s.has_etcd());
        // Nobody gets settings of a store before its secrets are read.
        assert_eq!(s.etcd(&Values::default()).err().unwrap().variable, "CRON_ETCD_PASSWORD");
        assert_eq!(s.mongodb_uri(&Values::default()).err().unwrap().variable, "CRON_MONGODB_URI");
    }

    #[test]
    fn a_flag_wins_over_its_variable_whichever_is_a_reference() {
        let kept = "ssm:/mongodb-uri";
        let s = settings(&[("CRON_MONGODB_URI", kept)], &["--mongodb-uri", "mongodb://a"]);
        assert_eq!(s.mongodb_uri(&Values::default()).unwrap(), "mongodb://a");
        let s = settings(&[("CRON_MONGODB_URI", "mongodb://a")], &["--mongodb-uri", kept]);
        assert_eq!(s.mongodb_references().len(), 1);
    }

    #[test]
    fn a_reference_is_refused_where_it_is_wrong_or_no_secret_belongs() {
        let said = faults(
            &[
                ("CRON_WORKER_ID", "ssm:/worker"),
                ("CRON_DATA_DIR", "secretsmanager:dir"),
                ("CRON_ETCD_PASSWORD", "ssm:/p#key"),
                ("CRON_ETCD_CERT", "ssm:/cert"),
            ],
            &["--check-config"],
        );
        for part in [
            "CRON_WORKER_ID: it takes no reference",
            "CRON_DATA_DIR: it takes no reference",
            "CRON_ETCD_PASSWORD: a parameter has no keys",
            "CRON_ETCD_CERT and CRON_ETCD_KEY go together",
        ] {
            assert!(said.contains(part), "{part} is not in {said}");
        }
    }

    #[test]
    fn a_bootstrap_token_that_others_know_is_refused_and_never_said() {
        let good = "6f1d0c9be27a4583a1f0e4b6d2c8975e";
        assert_eq!(
            settings(&[("CRON_BOOTSTRAP_TOKEN", good)], &[])
                .bootstrap_token(&Values::default())
                .unwrap()
                .unwrap(),
            good
        );
        for bad in [
            "default_token",
            &good[1..],
            "ChangeMe-6f1d0c9be27a4583a1f0e4b6d2c8975e",
            "00000000000000000000000000000000000",
            "6f1d0c9be27a4583 a1f0e4b6d2c8975e",
        ] {
            let said = faults(&[("CRON_BOOTSTRAP_TOKEN", bad)], &[]);
            assert!(said.contains("openssl rand") && !said.contains(bad), "{said}");
        }
        let s = settings(&[("CRON_BOOTSTRAP_TOKEN", "secretsmanager:first")], &[]);
        assert!(s.has_bootstrap_token() && s.bootstrap_token(&Values::default()).is_err());
        assert!(!settings(&[], &[]).has_bootstrap_token());
    }

    #[test]
    fn a_provider_is_named_whole_and_over_https() {
        let issuer = ("CRON_OIDC_ISSUER", "https://login.example.com/t");
        assert!(settings(&[issuer, ("CRON_OIDC_AUDIENCE", "cron")], &[]).oidc.issuer.is_some());
        assert!(faults(&[issuer], &[]).contains("CRON_OIDC_AUDIENCE"));
        assert!(faults(&[("CRON_OIDC_ROLE_CLAIM", "r")], &[]).contains("CRON_OIDC_ISSUER"));
        for bad in
            ["http://login.example.com", "login.example.com", "https://u:p@login.example.com", "https://a/#b"]
        {
            assert!(
                faults(&[("CRON_OIDC_ISSUER", bad), ("CRON_OIDC_AUDIENCE", "c")], &[])
                    .contains("is not like"),
                "{bad}"
            );
        }
        assert!(faults(&[("CRON_AUTH", "off")], &[]).contains("neither required nor open"));
    }

    #[test]
    fn every_bad_value_is_named_at_once() {
        let said = faults(
            &[
                ("CRON_SESSION_TTL_SECONDS", "1"),
                ("CRON_LISTEN", "here"),
                ("CRON_TLS_CERT", "c.pem"),
                ("CRON_BEHIND_PROXY", "yes"),
                ("CRON_ETCD_CERT", "c.pem"),
                ("CRON_SHELL", "sh"),
                ("CRON_USERS", "deploy, a:b"),
                ("CRON_HTTP_DENIED_NETWORKS", "10.0.0.0/8, private"),
            ],
            &[],
        );
        for part in [
            "CRON_SESSION_TTL_SECONDS",
            "from 2 to 600",
            "CRON_LISTEN",
            "CRON_TLS_CERT and CRON_TLS_KEY go together",
            "CRON_BEHIND_PROXY: \"yes\" is neither 1 nor 0",
            "CRON_ETCD_KEY",
            "CRON_SHELL: \"sh\" is not an absolute path",
            "CRON_USERS: \"a:b\"",
            "CRON_HTTP_DENIED_NETWORKS: \"private\"",
        ] {
            assert!(said.contains(part), "{part} is not in {said}");
        }
    }
}
