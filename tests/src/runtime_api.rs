//! A small Lambda Runtime API for tests: hands events to function processes and keeps the very bytes that they post.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Method, Response, StatusCode};
use common::clock::timeout;
use local_dev::native::process::Process;
use local_dev::native::servers::Site;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::fixtures::{SOON, program};

/// Events that may wait for a function.
const EVENTS_MAX: usize = 1000;
/// The time that Lambda gives an invocation, as it is told to the function: what API Gateway waits for at most.
const INVOCATION_MAX: Duration = Duration::from_secs(29);

/// The server. It takes any number of function processes, like Lambda for one function.
pub struct RuntimeApi {
    address: SocketAddr,
    events: mpsc::Sender<(String, String)>,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

struct Shared {
    waiting: Mutex<mpsc::Receiver<(String, String)>>,
    answers: Mutex<HashMap<String, oneshot::Sender<Answer>>>,
    asked: AtomicUsize,
    left: AtomicUsize,
    numbered: AtomicUsize,
}

/// What a function posted for an event.
#[derive(Debug)]
pub struct Answer {
    /// The invocation's request id.
    pub request_id: String,
    /// It was posted to `/error`: the invocation failed.
    pub failed: bool,
    /// The body of the post, as Lambda would measure it.
    pub bytes: Vec<u8>,
}

impl Answer {
    /// The posted JSON: API Gateway's response object, or the error.
    ///
    /// # Panics
    /// When it is no JSON.
    #[must_use]
    pub fn posted(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap()
    }

    /// The HTTP status that API Gateway would send on.
    #[must_use]
    pub fn status(&self) -> u64 {
        self.posted()["statusCode"].as_u64().unwrap_or_default()
    }

    /// A response header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<String> {
        self.posted()["headers"][name].as_str().map(str::to_owned)
    }

    /// The response's body as JSON: the envelope.
    ///
    /// # Panics
    /// When it is no JSON.
    #[must_use]
    pub fn envelope(&self) -> Value {
        let posted = self.posted();
        serde_json::from_str(posted["body"].as_str().unwrap_or_else(|| panic!("no body in {posted}")))
            .unwrap()
    }
}

impl RuntimeApi {
    /// Starts it on a free port.
    ///
    /// # Panics
    /// When there is none.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (events, waiting) = mpsc::channel(EVENTS_MAX);
        let shared = Arc::new(Shared {
            waiting: Mutex::new(waiting),
            answers: Mutex::default(),
            asked: AtomicUsize::new(0),
            left: AtomicUsize::new(0),
            numbered: AtomicUsize::new(0),
        });
        let router = Router::new().fallback(serve).with_state(Arc::clone(&shared));
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, events, shared, server }
    }

    /// The value for `AWS_LAMBDA_RUNTIME_API`.
    #[must_use]
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// How often a function has asked for an event: from the first time on it is initialised.
    #[must_use]
    pub fn asked(&self) -> usize {
        self.shared.asked.load(Ordering::SeqCst)
    }

    /// Events that no function has taken yet.
    #[must_use]
    pub fn left(&self) -> usize {
        self.shared.left.load(Ordering::SeqCst)
    }

    /// Queues an event; the answer comes through what is returned.
    ///
    /// # Panics
    /// When too many wait already.
    pub async fn queue(&self, event: impl Into<String>) -> oneshot::Receiver<Answer> {
        let number = self.shared.numbered.fetch_add(1, Ordering::SeqCst);
        let request_id = format!("00000000-0000-4000-8000-{number:012}");
        let (sender, receiver) = oneshot::channel();
        self.shared.answers.lock().await.insert(request_id.clone(), sender);
        self.shared.left.fetch_add(1, Ordering::SeqCst);
        self.events.try_send((request_id, event.into())).unwrap();
        receiver
    }

    /// Hands an event to a function and waits for its answer.
    ///
    /// # Panics
    /// When none comes.
    pub async fn invoke(&self, event: impl Into<String>) -> Answer {
        let answer = self.queue(event).await;
        timeout(SOON, answer).await.expect("the function answers").expect("the server lives")
    }
}

impl Drop for RuntimeApi {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    const PREFIX: &str = "/2018-06-01/runtime/";
    let path = request.uri().path().to_owned();
    let words: Vec<&str> = path.strip_prefix(PREFIX).unwrap_or_default().split('/').collect();
    match (request.method(), words.as_slice()) {
        (&Method::GET, ["invocation", "next"]) => next(&shared).await,
        (&Method::POST, ["invocation", id, what @ ("response" | "error")]) => {
            let (id, failed) = ((*id).to_owned(), *what == "error");
            let bytes = axum::body::to_bytes(request.into_body(), usize::MAX).await.unwrap().to_vec();
            let Some(sender) = shared.answers.lock().await.remove(&id) else {
                return status(StatusCode::BAD_REQUEST);
            };
            // Whoever asked may have stopped waiting.
            let _unwanted = sender.send(Answer { request_id: id, failed, bytes });
            status(StatusCode::ACCEPTED)
        }
        (&Method::POST, ["init", "error"]) => status(StatusCode::ACCEPTED),
        _ => status(StatusCode::NOT_FOUND),
    }
}

async fn next(shared: &Shared) -> Response<Body> {
    shared.asked.fetch_add(1, Ordering::SeqCst);
    let Some((request_id, event)) = shared.waiting.lock().await.recv().await else {
        return status(StatusCode::GONE);
    };
    shared.left.fetch_sub(1, Ordering::SeqCst);
    let deadline = crate::fixtures::now_ms() + i64::try_from(INVOCATION_MAX.as_millis()).unwrap();
    Response::builder()
        .header("content-type", "application/json")
        .header("lambda-runtime-aws-request-id", request_id)
        .header("lambda-runtime-deadline-ms", deadline)
        .header(
            "lambda-runtime-invoked-function-arn",
            "arn:aws:lambda:eu-central-1:123456789012:function:test",
        )
        .header(
            "lambda-runtime-trace-id",
            "Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700;Parent=9a9197af755a6419;Sampled=0",
        )
        .body(Body::from(event))
        .unwrap()
}

fn status(status: StatusCode) -> Response<Body> {
    Response::builder().status(status).body(Body::empty()).unwrap()
}

/// Starts the program of a function on a Runtime API, as Lambda does.
///
/// # Panics
/// When it does not start.
pub async fn start_function(
    site: &Site,
    function: &str,
    api: &RuntimeApi,
    environment: &[(&str, &str)],
) -> Process {
    let mut command = Command::new(program(function).await);
    command
        .env_remove("RUST_LOG")
        .env("AWS_LAMBDA_RUNTIME_API", api.address())
        .env("AWS_LAMBDA_FUNCTION_NAME", function)
        .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "256")
        .env("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST")
        // Tests of tokens say otherwise.
        .env("CRON_AUTH", "open")
        .envs(environment.iter().copied());
    site.start(function, command).unwrap()
}

/// An event of an HTTP API (API Gateway, payload format 2.0).
#[must_use]
pub fn event(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Value {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let mut sent: HashMap<&str, &str> = headers.iter().copied().collect();
    sent.insert("host", "abc123.execute-api.eu-central-1.amazonaws.com");
    json!({
        "version": "2.0", "routeKey": format!("{method} {path}"), "rawPath": path, "rawQueryString": query,
        "headers": sent, "body": body, "isBase64Encoded": false,
        "requestContext": {
            "accountId": "123456789012", "apiId": "abc123", "stage": "$default", "routeKey": format!("{method} {path}"),
            "domainName": "abc123.execute-api.eu-central-1.amazonaws.com", "domainPrefix": "abc123",
            "http": {"method": method, "path": path, "protocol": "HTTP/1.1", "sourceIp": "203.0.113.7", "userAgent": "curl/8.5.0"},
            "requestId": "JKJaXmPLvHcESHA=", "time": "21/Nov/2026:00:00:00 +0000", "timeEpoch": 1_795_219_200_000_i64,
        },
    })
}
