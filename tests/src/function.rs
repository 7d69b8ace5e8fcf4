//! A function's real program, served by a small Runtime API as Lambda has it: one event at a time, whenever the test says.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::routing::{get, post};
use common::clock::timeout;
use local_dev::native::process::Process;
use local_dev::native::programs;
use local_dev::native::servers::{self, Site};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, OnceCell, mpsc, watch};

use crate::fixtures::{SOON, now_ms};

/// What Lambda gives a function behind an HTTP API.
const LIFE: Duration = Duration::from_secs(30);

/// A function in a process of its own.
pub struct Function {
    process: Process,
    events: mpsc::Sender<Value>,
    answers: Mutex<mpsc::Receiver<Value>>,
}

struct Runtime {
    events: Mutex<mpsc::Receiver<Value>>,
    answers: mpsc::Sender<Value>,
    asked: watch::Sender<usize>,
}

impl Function {
    /// Starts the function called `name` with these variables; returns when it has asked for its first event.
    ///
    /// # Panics
    /// When it does not.
    pub async fn start(site: &Site, name: &str, environment: &[(&str, &str)]) -> Self {
        static BUILT: OnceCell<()> = OnceCell::const_new();
        // The runner has built them; who runs a test alone gets the functions of the sources as they are now.
        BUILT.get_or_init(async || servers::build(&["--workspace", "--bins"]).await.unwrap()).await;
        let (events, waiting) = mpsc::channel(1);
        let (answered, answers) = mpsc::channel(1);
        let (asked, mut asks) = watch::channel(0);
        let runtime = Arc::new(Runtime { events: Mutex::new(waiting), answers: answered, asked });
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new()
            .route("/2018-06-01/runtime/invocation/next", get(next))
            .route("/2018-06-01/runtime/invocation/{id}/response", post(response))
            .with_state(runtime);
        tokio::spawn(async move { axum::serve(listener, router).await });

        let mut command = Command::new(programs().unwrap().join(name));
        command
            .env("AWS_LAMBDA_RUNTIME_API", address.to_string())
            .envs([
                ("AWS_LAMBDA_FUNCTION_NAME", name),
                ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "128"),
                ("AWS_LAMBDA_FUNCTION_VERSION", "1"),
                ("AWS_LAMBDA_LOG_STREAM_NAME", "log"),
                ("AWS_LAMBDA_LOG_GROUP_NAME", "log"),
            ])
            .envs(environment.iter().copied());
        let log = site.dir.join(format!("{name}.log"));
        let process = Process::start(name, command, &log, site.guard.as_ref()).unwrap();
        let asked = timeout(SOON, asks.wait_for(|asks| *asks > 0)).await;
        assert!(asked.is_ok_and(|asked| asked.is_ok()), "{name} asks for no event\n{}", process.tail());
        Self { process, events, answers: Mutex::new(answers) }
    }

    /// Invokes it: status and body of its answer.
    ///
    /// # Panics
    /// When none comes.
    pub async fn call(&self, method: &str, target: &str, body: Option<&Value>) -> (u16, Value) {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let event = json!({
            "version": "2.0", "routeKey": format!("{method} {path}"), "rawPath": path, "rawQueryString": query,
            "headers": {"host": "abc123.execute-api.eu-west-1.amazonaws.com", "x-forwarded-proto": "https",
                        "content-type": "application/json"},
            "requestContext": {
                "accountId": "123456789012", "apiId": "abc123", "stage": "$default", "requestId": "JKJaXmPLvHcESHA=",
                "domainName": "abc123.execute-api.eu-west-1.amazonaws.com", "domainPrefix": "abc123",
                "http": {"method": method, "path": path, "protocol": "HTTP/1.1", "sourceIp": "203.0.113.7", "userAgent": "test"},
                "time": "21/Nov/2026:00:00:00 +0000", "timeEpoch": 1_795_219_200_000_i64,
            },
            "body": body.map(ToString::to_string), "isBase64Encoded": false,
        });
        let mut answers = self.answers.lock().await;
        self.events.send(event).await.unwrap();
        let answer = timeout(SOON, answers.recv()).await;
        let Ok(Some(answer)) = answer else { panic!("no answer\n{}", self.process.tail()) };
        let status = answer["statusCode"].as_u64().and_then(|status| u16::try_from(status).ok()).unwrap();
        let body = answer["body"].as_str().unwrap_or_default();
        (status, serde_json::from_str(body).unwrap_or(Value::Null))
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.process.log()).unwrap()).into_owned()
    }
}

async fn next(State(runtime): State<Arc<Runtime>>) -> Result<(HeaderMap, String), StatusCode> {
    runtime.asked.send_modify(|asked| *asked += 1);
    let event = runtime.events.lock().await.recv().await.ok_or(StatusCode::GONE)?;
    let deadline = now_ms() + i64::try_from(LIFE.as_millis()).unwrap();
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("lambda-runtime-aws-request-id", format!("8476a536-e9f4-11e8-9739-{:012}", *runtime.asked.borrow())),
        ("lambda-runtime-deadline-ms", deadline.to_string()),
        (
            "lambda-runtime-invoked-function-arn",
            "arn:aws:lambda:eu-west-1:123456789012:function:f".to_owned(),
        ),
    ] {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_str(&value).unwrap());
    }
    Ok((headers, event.to_string()))
}

async fn response(State(runtime): State<Arc<Runtime>>, Path(_id): Path<String>, body: Bytes) -> StatusCode {
    let answer = serde_json::from_slice(&body).unwrap();
    runtime.answers.send(answer).await.map_or(StatusCode::GONE, |()| StatusCode::ACCEPTED)
}
