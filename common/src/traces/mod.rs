//! Traces for OpenTelemetry: which spans are kept, and where they go. Nothing waits for that: spans are put into a queue that has a bound, and what
//! has no room there, or is not taken at the other end, is counted and gone.

mod otlp;
mod settings;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_smithy_http_client::Connector;
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_runtime_api::client::http::{HttpConnector as _, HttpConnectorSettings};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_types::body::SdkBody;
use tokio::sync::{mpsc, oneshot};

use crate::causes;
use crate::clock::{Stopwatch, timeout};
use crate::domain::trace::TraceId;

pub use otlp::{Kind, Resource, Span, Value};
pub use settings::TraceSettings;
pub(crate) use settings::{HEADERS, VARIABLES};

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
            url,
            headers: settings.headers.clone(),
            resource,
            counted: Arc::clone(&counted),
            failed: Arc::clone(&failed),
            connector: None,
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
    headers: Vec<(String, String)>,
    resource: Resource,
    counted: Arc<Counted>,
    /// When it last could not, if nothing went well since.
    failed: Arc<Mutex<Option<Stopwatch>>>,
    /// Made when there is something to send: it reads the certificates of the system's authorities.
    connector: Option<Connector>,
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
        let connector = self.connector.get_or_insert_with(|| {
            let limits =
                HttpConnectorSettings::builder().connect_timeout(CONNECT_LIMIT).read_timeout(SEND_LIMIT);
            let tls = Provider::Rustls(CryptoMode::Ring);
            Connector::builder().connector_settings(limits.build()).tls_provider(tls).build()
        });
        let mut request = HttpRequest::new(SdkBody::from(body));
        request.set_uri(self.url.as_str()).map_err(|e| causes::in_words(&e))?;
        let set = request.set_method("POST");
        set.map_err(|e| causes::in_words(&e))?;
        request.headers_mut().insert("content-type", "application/json");
        for (name, value) in &self.headers {
            request.headers_mut().insert(name.clone(), value.clone());
        }
        let answer = connector.call(request).await.map_err(|e| causes::in_words(&e))?;
        match answer.status().as_u16() {
            200..=299 => Ok(()),
            status => Err(format!("the receiver answers {status}")),
        }
    }
}

fn take(message: Message, batch: &mut Vec<Span>, waiting: &mut Vec<oneshot::Sender<()>>) {
    match message {
        Message::Span(span) => batch.push(*span),
        Message::Flush(done) => waiting.push(done),
    }
}
