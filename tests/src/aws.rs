//! AWS for tests: moto behind a front that counts what is read and can refuse it; and secrets in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::process::Command;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use common::config::{self, Invocation, Settings};
use common::secrets::{Problem, Source, Vault};
use local_dev::native::ports::free_port;
use local_dev::native::process::Process;
use local_dev::native::provision;
use local_dev::native::servers::Site;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

use crate::fixtures::{http, skip};

/// The region of the test's secrets.
pub const REGION: &str = "eu-west-1";

/// Secrets in memory.
#[derive(Default)]
pub struct Shelf {
    texts: Mutex<BTreeMap<String, String>>,
    reads: Mutex<Vec<String>>,
}

impl Shelf {
    /// With these secrets on it.
    #[must_use]
    pub fn of(secrets: &[(&str, &str)]) -> Self {
        let shelf = Self::default();
        for (name, text) in secrets {
            shelf.put(name, text);
        }
        shelf
    }

    /// Puts a secret, or its next version.
    ///
    /// # Panics
    /// When another thread did.
    pub fn put(&self, name: &str, text: &str) {
        self.texts.lock().unwrap().insert(name.to_owned(), text.to_owned());
    }

    /// Which secrets were read, in order.
    ///
    /// # Panics
    /// When another thread did.
    #[must_use]
    pub fn reads(&self) -> Vec<String> {
        self.reads.lock().unwrap().clone()
    }
}

#[async_trait]
impl Vault for Shelf {
    async fn read(&self, sources: &[Source]) -> Vec<Result<String, Problem>> {
        let read = |source: &Source| {
            self.reads.lock().unwrap().push(source.name.clone());
            let none = Problem::NotFound { region: REGION.to_owned(), says: "none".to_owned() };
            self.texts.lock().unwrap().get(&source.name).cloned().ok_or(none)
        };
        sources.iter().map(read).collect()
    }
}

/// Settings of which some refer to secrets.
///
/// # Panics
/// When they are refused.
#[must_use]
pub fn refers(environment: &[(&str, &str)]) -> Settings {
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    match config::parse("tests", environment, std::iter::empty()).unwrap() {
        Invocation::Run(settings) => *settings,
        _ => unreachable!("no flag asks for anything else"),
    }
}

/// A server that answers as AWS does.
pub struct Aws {
    address: SocketAddr,
    front: Arc<Front>,
    _moto: Process,
}

struct Front {
    moto: SocketAddr,
    client: reqwest::Client,
    reads: Mutex<Vec<String>>,
    denied: Mutex<BTreeSet<String>>,
}

impl Aws {
    /// Starts it; `None`, loudly, when moto cannot be had.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start(site: &Site, test: &str) -> Option<Self> {
        let program = match tokio::task::spawn_blocking(provision::moto).await.unwrap() {
            Ok(found) => found.program,
            Err(missing) => {
                skip(test, &missing.what);
                return None;
            }
        };
        let moto = SocketAddr::from(([127, 0, 0, 1], free_port().unwrap()));
        let mut command = Command::new(program);
        command.args(["-H", "127.0.0.1", "-p", &moto.port().to_string()]);
        let mut process = site.start("moto", command).unwrap();
        process.ready(async || TcpStream::connect(moto).await.is_ok()).await.unwrap();
        let (reads, denied) = (Mutex::default(), Mutex::default());
        let front = Arc::new(Front { moto, client: http(), reads, denied });
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(pass).with_state(Arc::clone(&front));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Some(Self { address, front, _moto: process })
    }

    /// What a program needs in its environment to take this for AWS.
    #[must_use]
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let mut environment = nowhere();
        environment.extend([
            ("AWS_ENDPOINT_URL", format!("http://{}", self.address)),
            ("AWS_REGION", REGION.to_owned()),
            ("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "none".to_owned()),
        ]);
        environment
    }

    /// Which secrets were asked for, in order.
    ///
    /// # Panics
    /// When another thread did.
    #[must_use]
    pub fn reads(&self) -> Vec<String> {
        self.front.reads.lock().unwrap().clone()
    }

    /// Whether the role may read a secret.
    ///
    /// # Panics
    /// When another thread did.
    pub fn permit(&self, name: &str, permitted: bool) {
        let mut denied = self.front.denied.lock().unwrap();
        if permitted {
            denied.remove(name);
        } else {
            denied.insert(name.to_owned());
        }
    }

    /// Creates a secret.
    ///
    /// # Panics
    /// When moto refuses.
    pub async fn create_secret(&self, name: &str, text: &str) {
        self.ask("secretsmanager.CreateSecret", &json!({"Name": name, "SecretString": text})).await;
    }

    /// Gives a secret its next version.
    ///
    /// # Panics
    /// When moto refuses.
    pub async fn rotate_secret(&self, name: &str, text: &str) {
        self.ask("secretsmanager.PutSecretValue", &json!({"SecretId": name, "SecretString": text})).await;
    }

    /// Creates a secret that is no text.
    ///
    /// # Panics
    /// When moto refuses.
    pub async fn create_binary_secret(&self, name: &str) {
        self.ask("secretsmanager.CreateSecret", &json!({"Name": name, "SecretBinary": "AAEC"})).await;
    }

    /// Creates an encrypted parameter.
    ///
    /// # Panics
    /// When moto refuses.
    pub async fn create_parameter(&self, name: &str, value: &str) {
        let parameter = json!({"Name": name, "Value": value, "Type": "SecureString"});
        self.ask("AmazonSSM.PutParameter", &parameter).await;
    }

    async fn ask(&self, target: &str, body: &Value) {
        let service = if target.starts_with("AmazonSSM") { "ssm" } else { "secretsmanager" };
        let scope = format!("AKIAIOSFODNN7EXAMPLE/20261121/{REGION}/{service}/aws4_request");
        let authorization = format!("AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=0");
        let request = self
            .front
            .client
            .post(format!("http://{}/", self.front.moto))
            .header("content-type", "application/x-amz-json-1.1")
            .header("x-amz-target", target)
            .header("authorization", authorization)
            .body(body.to_string());
        let answer = request.send().await.unwrap();
        assert!(answer.status().is_success(), "{target}: {}", answer.text().await.unwrap());
    }
}

/// An environment in which no AWS is to be found, whatever the machine has.
#[must_use]
pub fn nowhere() -> Vec<(&'static str, String)> {
    [
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("AWS_CONFIG_FILE", "/dev/null"),
        ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null"),
        ("AWS_REGION", ""),
        ("AWS_DEFAULT_REGION", ""),
        ("AWS_PROFILE", ""),
        ("AWS_ACCESS_KEY_ID", ""),
        ("AWS_SECRET_ACCESS_KEY", ""),
        ("AWS_SESSION_TOKEN", ""),
        ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", ""),
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", ""),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", ""),
        ("AWS_ENDPOINT_URL", ""),
    ]
    .map(|(name, value)| (name, value.to_owned()))
    .to_vec()
}

/// Counts, refuses, or passes on to moto with the signature that came.
async fn pass(State(front): State<Arc<Front>>, headers: HeaderMap, body: Bytes) -> (StatusCode, Bytes) {
    let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
    let name = asked["SecretId"].as_str().or(asked["Name"].as_str()).unwrap_or_default().to_owned();
    front.reads.lock().unwrap().push(name.clone());
    if front.denied.lock().unwrap().contains(&name) {
        let action = headers["x-amz-target"].to_str().unwrap().replace("AmazonSSM", "ssm").replace('.', ":");
        let message = format!(
            "User: arn:aws:sts::123456789012:assumed-role/fleetcron-test/x is not authorized to perform: {action} on resource: {name} \
             because no identity-based policy allows the {action} action"
        );
        let refusal = json!({"__type": "AccessDeniedException", "Message": message});
        return (StatusCode::BAD_REQUEST, Bytes::from(refusal.to_string()));
    }
    let mut request = front.client.post(format!("http://{}/", front.moto)).body(body);
    for name in ["content-type", "x-amz-target", "x-amz-date", "authorization"] {
        request = request.header(name, headers[name].to_str().unwrap());
    }
    let answer = request.send().await.unwrap();
    let status = StatusCode::from_u16(answer.status().as_u16()).unwrap();
    (status, Bytes::from(answer.text().await.unwrap()))
}
