//! One run's request: from its sending to the end of its answer, over redirects.

use std::fmt::Write as _;

use common::causes;
use common::clock::{self, Clock};
use common::domain::http::{self, Http, Pattern};
use common::domain::record::{Ending, Status};
use common::domain::run::OpenRun;
use common::domain::trace::{self, TraceContext};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue, LOCATION};
use reqwest::{Client, Method, Response, StatusCode, Url};

use super::output::{Captured, Kept};
use super::process::{Asked, is_asked};
use super::secrets::Resolved;
use super::work::{Kill, Work};
use crate::outbound::Outbound;
use crate::traces;

/// Longest answer, in bytes: what has more is a download, which a command writes to a file.
const ANSWER_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// What the job expects in the body is looked for in so many bytes of it. This bounds how long an expression takes.
const SEARCHED_BYTES_MAX: usize = 256 * 1024;
/// Headers of the job that also go where a redirect leads away from the host that they were meant for. Any other may be a password.
const HARMLESS: [&str; 5] = ["accept", "accept-charset", "accept-language", "content-type", "user-agent"];

/// Sends a job's request, and takes its answer as the run's output. Never fails: what goes wrong is in the ending.
pub(crate) async fn run(
    outbound: &Outbound,
    open: &OpenRun,
    work: &Work,
    http: &Http,
    captured: &Captured,
    clock: &dyn Clock,
    mut asked: Asked,
) -> Ending {
    let start_time = clock.now();
    let mut http_status = None;
    let overtime = async {
        match work.execution().timeout() {
            Some(limit) => clock::sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    // What is not chosen is dropped, and with it the connection.
    let outcome = tokio::select! {
        biased;
        outcome = exchange(outbound, open, work, http, captured, &mut http_status) => outcome.map_err(|why| (Status::Failed, why)),
        () = is_asked(&mut asked, Kill::Gracefully) => Err((Status::Killed, "request killed".to_owned())),
        () = overtime => Err((Status::TimedOut, late(work, captured))),
    };
    let Kept { text: output, truncated: output_truncated, total: output_bytes } = captured.kept();
    let (status, err) = outcome.err().unwrap_or((Status::Succeeded, String::new()));
    let err = captured.clean(err);
    Ending {
        status,
        err,
        command: work.command.to_string(),
        output,
        output_truncated,
        output_bytes,
        start_time,
        end_time: clock.now(),
        exit_code: None,
        signal: None,
        http_status,
    }
}

fn late(work: &Work, captured: &Captured) -> String {
    let seconds = work.execution().timeout_seconds().unwrap_or_default();
    let how_far = if captured.is_empty() { "no answer" } else { "the answer did not end" };
    format!("{how_far} (timed out after {seconds} s)")
}

/// One request and the others to which it leads. `seen` is the status of the last answer.
async fn exchange(
    outbound: &Outbound,
    open: &OpenRun,
    work: &Work,
    http: &Http,
    captured: &Captured,
    seen: &mut Option<u16>,
) -> Result<(), String> {
    if open.env.as_ref().is_some_and(|env| !env.is_empty()) {
        return Err(NO_VARIABLES.to_owned()); // asked for while the job still had a command
    }
    let client = outbound.client()?;
    let secrets = outbound.supplies().secrets.of(&open.job, work.execution()).await?;
    captured.hide(secrets.redactor());
    let mut hop = Hop::first(open, http, &secrets, traces::handed(&outbound.supplies().tracer, open))?;
    let mut followed = 0;
    let answer = loop {
        outbound.check(&hop.url)?;
        let answer = hop.send(&client).await?;
        let status = answer.status();
        *seen = Some(status.as_u16());
        captured.take(status_line(&answer).as_bytes());
        let location = leads_to(&answer).filter(|_| http.redirects() > 0);
        let Some(location) = location else { break answer };
        captured.take(format!("Location: {location}\n").as_bytes());
        if followed == http.redirects() {
            return Err(format!("more than {followed} redirects, the last one to {location}"));
        }
        followed += 1;
        hop = hop.next(status, location)?;
    };
    let status = answer.status();
    let expected = http.expected_body()?;
    let body = read(answer, captured, if expected.is_some() { SEARCHED_BYTES_MAX } else { 0 }).await?;
    if !http.expects(status.as_u16()) {
        return Err(format!("status {}, not {}", in_words(status), http.expected_statuses()));
    }
    match expected {
        Some(expected) => look_for(expected, body).await,
        None => Ok(()),
    }
}

/// Why a run that comes with variables is refused.
const NO_VARIABLES: &str =
    "env: means nothing to a request, which was not sent: ask for the run without variables";

/// One of the requests that a run sends.
struct Hop {
    method: Method,
    url: Url,
    /// Of the job, and those that say which run it is.
    given: HeaderMap,
    own: HeaderMap,
    body: Option<String>,
}

impl Hop {
    fn first(
        open: &OpenRun,
        http: &Http,
        secrets: &Resolved,
        trace: Option<TraceContext>,
    ) -> Result<Self, String> {
        let wrong = |why: &dyn std::error::Error| format!("http: {why}");
        let mut given = HeaderMap::new();
        for (name, value) in http.headers() {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|why| wrong(&why))?;
            let value = match secrets.in_header(value) {
                None => HeaderValue::from_str(value).map_err(|why| wrong(&why))?,
                Some((secret, value)) => {
                    let bad = |_| {
                        format!(
                            "{secret}: a header cannot have it: it has line breaks or other such characters"
                        )
                    };
                    let mut value = HeaderValue::from_str(&value).map_err(bad)?;
                    value.set_sensitive(true);
                    value
                }
            };
            given.insert(name, value);
        }
        let mut own = HeaderMap::new();
        for (name, value) in [
            (http::IDEMPOTENCY_KEY, visible(open.record_id().as_str())),
            (http::JOB, visible(open.job.as_str())),
            (http::PLAN_TIME, open.plan_time.ms().to_string()),
            (http::ATTEMPT, open.attempt.to_string()),
            (http::RUN_ID, visible(open.run_id.as_str())),
        ] {
            own.insert(
                HeaderName::from_static(name),
                HeaderValue::from_str(&value).map_err(|why| wrong(&why))?,
            );
        }
        // The job's own wins.
        if let Some(trace) = trace.filter(|_| !given.contains_key(trace::HEADER)) {
            let value = HeaderValue::from_str(&trace.to_string()).map_err(|why| wrong(&why))?;
            own.insert(HeaderName::from_static(trace::HEADER), value);
        }
        Ok(Self {
            method: Method::from_bytes(http.method().as_bytes()).map_err(|why| wrong(&why))?,
            url: Url::parse(http.url()).map_err(|why| wrong(&why))?,
            given,
            own,
            body: http.body().map(str::to_owned),
        })
    }

    async fn send(&self, client: &Client) -> Result<Response, String> {
        let mut request = client.request(self.method.clone(), self.url.clone());
        request = request.headers(self.given.clone()).headers(self.own.clone());
        if let Some(body) = &self.body {
            request = request.body(body.clone());
        }
        request.send().await.map_err(failure)
    }

    /// The request to which the answer to this one leads.
    fn next(self, status: StatusCode, location: Url) -> Result<Self, String> {
        if self.url.scheme() == "https" && location.scheme() != "https" {
            return Err(format!("the redirect to {location} is not followed: it leaves https"));
        }
        let mut next = self;
        if next.url.origin() != location.origin() {
            let harmless = |name| next.given.get(name).filter(|value| !value.is_sensitive());
            let kept = |name| Some((HeaderName::from_static(name), harmless(name)?.clone()));
            next.given = HARMLESS.into_iter().filter_map(kept).collect();
        }
        // As browsers do: after these the answer is fetched, not what was sent sent again.
        let is_fetched = match status {
            StatusCode::SEE_OTHER => next.method != Method::HEAD,
            StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND => next.method == Method::POST,
            _ => false,
        };
        if is_fetched {
            next.method = Method::GET;
            next.body = None;
            next.given.remove(reqwest::header::CONTENT_TYPE);
        }
        next.url = location;
        Ok(next)
    }
}

/// Where an answer leads; `None` = it is no redirect that can be followed.
fn leads_to(answer: &Response) -> Option<Url> {
    if !matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let location = answer.headers().get(LOCATION)?.to_str().ok()?;
    answer.url().join(location).ok()
}

fn status_line(answer: &Response) -> String {
    format!("{:?} {}\n", answer.version(), in_words(answer.status()))
}

fn in_words(status: StatusCode) -> String {
    let reason = status.canonical_reason().map(|reason| format!(" {reason}"));
    format!("{}{}", status.as_u16(), reason.unwrap_or_default())
}

/// Reads an answer to its end; the first `max` bytes of its body are kept for a look.
async fn read(mut answer: Response, captured: &Captured, max: usize) -> Result<Vec<u8>, String> {
    let (mut first, mut bytes) = (Vec::new(), 0);
    while let Some(piece) = answer.chunk().await.map_err(failure)? {
        captured.take(&piece);
        first.extend_from_slice(&piece[..piece.len().min(max - first.len())]);
        bytes += piece.len() as u64;
        if bytes > ANSWER_BYTES_MAX {
            return Err(format!(
                "the answer has more than {ANSWER_BYTES_MAX} bytes and was not read to its end"
            ));
        }
    }
    Ok(first)
}

async fn look_for(expected: Pattern, body: Vec<u8>) -> Result<(), String> {
    let shown = expected.to_string();
    let is_whole = body.len() < SEARCHED_BYTES_MAX;
    // An expression may take a second, which other runs do not wait for.
    let looked = tokio::task::spawn_blocking(move || expected.is_in(&String::from_utf8_lossy(&body)));
    if looked.await.map_err(|why| why.to_string())? {
        return Ok(());
    }
    let place = if is_whole {
        "the body".to_owned()
    } else {
        format!("the first {SEARCHED_BYTES_MAX} bytes of the body")
    };
    Err(format!("{shown} is not in {place}"))
}

/// What went wrong between this machine and the other. The address is the job's, and known.
fn failure(why: reqwest::Error) -> String {
    causes::in_words(&why.without_url())
}

/// A text as a header may have it: what is no visible ASCII, and `%`, is percent-encoded.
fn visible(text: &str) -> String {
    let mut visible = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_graphic() && byte != b'%' {
            visible.push(byte.into());
        } else {
            let _infallible = write!(visible, "%{byte:02X}");
        }
    }
    visible
}

#[cfg(test)]
mod tests;
