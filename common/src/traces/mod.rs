//! Traces for OpenTelemetry: which spans are kept, and where they go. Nothing waits for that: spans are put into a queue that has a bound, and what
//! has no room there, or is not taken at the other end, is counted and gone.

mod otlp;
mod settings;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_smithy_http_client::Connector;
use aws_smithy_runtime_api::client::http::HttpConnector as _;
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_types::body::SdkBody;
use tokio::sync::{mpsc, oneshot};

use crate::causes;
use crate::clock::{Stopwatch, timeout};
use crate::domain::trace::TraceId;
use crate::https;
use crate::secrets::{Aws, Cached};

pub use otlp::{Kind, Resource, Span, Value};
pub use settings::TraceSettings;
pub(crate) use settings::{HEADERS, VARIABLES};
use settings::{Headers, headers};

/// Spans that wait: some seconds of a busy worker, and some MB.
const WAITING_MAX: usize = 4_096;
/// Spans of one request: about 300 KB.
const BATCH: usize = 512;
/// Spans wait so long for others to go with.
const GATHERED_FOR: Duration = Duration::from_secs(1);
/// A receiver takes a connection within this, or there is none.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);
/// And answers within this.
const SEND_LIMIT: Duration = Duration::from_secs(3);
/// After a failure so long nobody waits for spans to go, and no other failure is said.
const AFTER_FAILURE: Duration = Duration::from_secs(60);

/// What became of spans.
#[derive(Debug, Default)]
pub struct Counted {
    /// Taken by the receiver.
    pub exported: AtomicU64,
    /// Given up.
    pub dropped: AtomicU64,
}

/// Decides which traces are kept, and takes their spans. Cheap to clone.
#[derive(Clone, Default)]
pub struct Tracer {
    on: Option<Arc<On>>,
    counted: Arc<Counted>,
}

struct On {
    sampled_below: u64,
    queue: mpsc::Sender<Message>,
    failed: Arc<Mutex<Option<Stopwatch>>>,
}

enum Message {
    Span(Box<Span>),
    /// Whoever waits is told once all spans before this have gone.
    Flush(oneshot::Sender<()>),
}

impl fmt::Debug for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracer").field("is_on", &self.is_on()).finish_non_exhaustive()
    }
}

impl Tracer {
    /// Sends what it is given to the receiver that the settings name; without one it keeps nothing. To be called in a runtime, where the sending
    /// goes on for as long as there is a clone of this.
    #[must_use]
    pub fn new(settings: &TraceSettings, resource: Resource) -> Self {
        let counted = Arc::<Counted>::default();
        let Some(url) = settings.url() else { return Self { on: None, counted } };
        let (queue, spans) = mpsc::channel(WAITING_MAX);
        let failed = Arc::<Mutex<Option<Stopwatch>>>::default();
        let exporter = Exporter {
            connector: connector(&url),
            url,
            headers: settings.headers.clone(),
            secrets: Cached::new(Arc::new(Aws)),
            read: None,
            resource,
            counted: Arc::clone(&counted),
            failed: Arc::clone(&failed),
        };
        tokio::spawn(exporter.run(spans));
        Self { on: Some(Arc::new(On { sampled_below: settings.sampled_below, queue, failed })), counted }
    }

    /// Whether there is somebody who takes spans.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.on.is_some()
    }

    /// Whether a trace that begins here is kept. The same trace is by all that were told the same ratio.
    #[must_use]
    pub fn samples(&self, trace: TraceId) -> bool {
        self.on.as_ref().is_some_and(|on| trace.low_bits() < on.sampled_below)
    }

    /// Takes a span. Never blocks.
    pub fn take(&self, span: Span) {
        let Some(on) = &self.on else { return };
        if on.queue.try_send(Message::Span(Box::new(span))).is_err() {
            self.counted.dropped.fetch_add(1, Relaxed);
        }
    }

    /// Waits until what was taken has gone, at most for `limit`; not at all where the receiver has just failed.
    pub async fn flush(&self, limit: Duration) {
        let Some(on) = &self.on else { return };
        let failed = *on.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if failed.is_some_and(|failed| failed.elapsed() < AFTER_FAILURE) {
            return;
        }
        let (done, is_done) = oneshot::channel();
        let flushed = async {
            if on.queue.send(Message::Flush(done)).await.is_ok() {
                let _broken = is_done.await;
            }
        };
        let _late = timeout(limit, flushed).await;
    }

    /// What became of the spans so far.
    #[must_use]
    pub fn counted(&self) -> Arc<Counted> {
        Arc::clone(&self.counted)
    }
}

/// Sends spans, many at a time.
struct Exporter {
    url: String,
    headers: Headers,
    secrets: Cached,
    /// Those of a secret, until the receiver does not like them.
    read: Option<Vec<(String, String)>>,
    resource: Resource,
    counted: Arc<Counted>,
    /// When it last could not, if nothing went well since.
    failed: Arc<Mutex<Option<Stopwatch>>>,
    connector: Connector,
}

/// What opens connections to a receiver. It is made before there are spans: for `https` it reads the certificates of the system's authorities, which
/// a function's first call would wait for.
fn connector(url: &str) -> Connector {
    if url.starts_with("https:") {
        https::connector(CONNECT_LIMIT, SEND_LIMIT)
    } else {
        https::plain_connector(CONNECT_LIMIT, SEND_LIMIT)
    }
}

impl Exporter {
    async fn run(mut self, mut queue: mpsc::Receiver<Message>) {
        while let Some(first) = queue.recv().await {
            let mut batch = Vec::new();
            let mut waiting = Vec::new();
            take(first, &mut batch, &mut waiting);
            let since = Stopwatch::start();
            while batch.len() < BATCH && waiting.is_empty() {
                let left = GATHERED_FOR.saturating_sub(since.elapsed());
                match timeout(left, queue.recv()).await {
                    Ok(Some(next)) => take(next, &mut batch, &mut waiting),
                    Ok(None) | Err(_) => break,
                }
            }
            if !batch.is_empty() {
                self.send(&batch).await;
            }
            for done in waiting {
                let _nobody = done.send(());
            }
        }
    }

    async fn send(&mut self, batch: &[Span]) {
        let body = otlp::body(&self.resource, batch);
        let sent = timeout(SEND_LIMIT, self.post(body)).await.unwrap_or_else(|late| Err(late.to_string()));
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        match sent {
            Ok(()) => {
                *failed = None;
                self.counted.exported.fetch_add(batch.len() as u64, Relaxed);
            }
            Err(why) => {
                let dropped =
                    self.counted.dropped.fetch_add(batch.len() as u64, Relaxed) + batch.len() as u64;
                if failed.is_none_or(|failed| failed.elapsed() >= AFTER_FAILURE) {
                    *failed = Some(Stopwatch::start());
                    tracing::warn!(why, dropped, "traces are not taken: spans are dropped");
                }
            }
        }
    }

    async fn post(&mut self, body: String) -> Result<(), String> {
        let headers = self.headers().await?;
        let mut request = HttpRequest::new(SdkBody::from(body));
        request.set_uri(self.url.as_str()).map_err(|e| causes::in_words(&e))?;
        let set = request.set_method("POST");
        set.map_err(|e| causes::in_words(&e))?;
        request.headers_mut().insert("content-type", "application/json");
        for (name, value) in headers {
            request.headers_mut().insert(name, value);
        }
        let answer = self.connector.call(request).await.map_err(|e| causes::in_words(&e))?;
        match answer.status().as_u16() {
            200..=299 => Ok(()),
            status => {
                if matches!(status, 401 | 403) {
                    self.read = None; // somebody has changed the secret, and it is read again
                }
                Err(format!("the receiver answers {status}"))
            }
        }
    }

    /// The headers of a request. A secret is read when there is something to send; no text of it is told, good or not.
    async fn headers(&mut self) -> Result<Vec<(String, String)>, String> {
        let reference = match (&self.headers, &self.read) {
            (Headers::Given(headers), _) | (Headers::Kept(_), Some(headers)) => return Ok(headers.clone()),
            (Headers::Kept(reference), None) => reference,
        };
        let name = || format!("{HEADERS}={reference}");
        let text = self.secrets.read(reference).await.map_err(|problem| format!("{}: {problem}", name()))?;
        let read =
            headers(&text).ok_or_else(|| format!("{}: it is not like api-key=abc,other=def", name()))?;
        self.read = Some(read.clone());
        Ok(read)
    }
}

fn take(message: Message, batch: &mut Vec<Span>, waiting: &mut Vec<oneshot::Sender<()>>) {
    match message {
        Message::Span(span) => batch.push(*span),
        Message::Flush(done) => waiting.push(done),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::secrets::tests::Shelf;
    use crate::secrets::{Problem, Reference, Vault};

    /// A receiver that takes what comes with this header, as long as it likes it.
    async fn receiver(wanted: &'static str, likes: Arc<AtomicBool>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1/traces", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = Vec::new();
                while !request.windows(4).any(|window| window == b"\r\n\r\n") {
                    stream.read_buf(&mut request).await.unwrap();
                }
                let is_good = String::from_utf8_lossy(&request).contains(wanted) && likes.load(Relaxed);
                let status = if is_good { "200 OK" } else { "401 Unauthorized" };
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        url
    }

    fn exporter(url: String, shelf: &Arc<Shelf>) -> Exporter {
        let reference = Reference::parse("secretsmanager:traces").unwrap().unwrap();
        Exporter {
            connector: connector(&url),
            url,
            headers: Headers::Kept(reference),
            secrets: Cached::new(Arc::clone(shelf) as Arc<dyn Vault>),
            read: None,
            resource: Resource { service: "s".to_owned(), instance: "i".to_owned() },
            counted: Arc::default(),
            failed: Arc::default(),
        }
    }

    #[tokio::test]
    async fn headers_of_a_secret_are_read_once_and_again_when_they_are_refused() {
        let (shelf, likes) = (Arc::new(Shelf::default()), Arc::new(AtomicBool::new(true)));
        shelf.put("traces", Ok("api-key=hunter2"));
        let mut exporter = exporter(receiver("api-key: hunter2", Arc::clone(&likes)).await, &shelf);
        for _ in 0..3 {
            assert_eq!(exporter.post(String::new()).await, Ok(()));
        }
        assert_eq!(shelf.reads(), 1);
        likes.store(false, Relaxed);
        assert_eq!(exporter.post(String::new()).await, Err("the receiver answers 401".to_owned()));
        assert!(exporter.read.is_none(), "the next span asks for them again");
    }

    #[tokio::test]
    async fn a_secret_that_is_no_good_is_said_and_not_shown() {
        let shelf = Arc::new(Shelf::default());
        for (kept, part) in
            [(Ok("hunter2"), "it is not like api-key="), (Err(Problem::NoRegion), "no AWS region")]
        {
            shelf.put("traces", kept);
            let why =
                exporter("http://127.0.0.1:9".to_owned(), &shelf).post(String::new()).await.unwrap_err();
            assert!(why.starts_with("OTEL_EXPORTER_OTLP_HEADERS=secretsmanager:traces: "), "{why}");
            assert!(why.contains(part) && !why.contains("hunter2"), "{why}");
        }
    }
}
