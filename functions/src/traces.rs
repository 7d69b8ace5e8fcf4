//! A request's place in a trace: the one that its sender says (`traceparent`), or a new one where traces are kept.

use std::time::Duration;

use common::clock::{Clock as _, SystemClock, Timestamp};
use common::domain::trace::{HEADER, SpanId, TraceContext};
use common::traces::{Kind, Span, Tracer};
use lambda_http::http::{HeaderMap, Method, StatusCode};

/// A function waits so long for its span to go: with its answer Lambda freezes it, and may end it before it is thawed. A receiver beside it takes
/// a span within some milliseconds; after one that did not, nobody waits for a minute.
const FLUSH_MAX: Duration = Duration::from_millis(200);

/// The place, and what is needed to say at the end what the request has come to.
pub(crate) struct Traced {
    /// What the request hands on.
    pub(crate) context: TraceContext,
    parent: Option<SpanId>,
    since: Timestamp,
    tracer: Tracer,
    /// The process is frozen with its answer.
    is_frozen: bool,
}

/// What is said of a request.
pub(crate) struct Said<'a> {
    pub(crate) method: &'a Method,
    pub(crate) route: &'static str,
    pub(crate) request_id: &'a str,
    pub(crate) status: StatusCode,
}

impl Traced {
    /// The place of a request with these headers. Where no traces are kept, a request hands on what its sender said; what is no context, or more
    /// than one, is none.
    pub(crate) fn of(headers: &HeaderMap, tracer: &Tracer, is_frozen: bool) -> Option<Self> {
        let mut said = headers.get_all(HEADER).iter();
        let said = said.next().filter(|_| said.next().is_none());
        let parent = said.and_then(|said| TraceContext::parse(said.to_str().ok()?));
        let context = match parent {
            Some(parent) if tracer.is_on() => TraceContext { span: SpanId::random(), ..parent },
            Some(parent) => parent,
            None if tracer.is_on() => {
                let begun = TraceContext::random();
                TraceContext { sampled: tracer.samples(begun.trace), ..begun }
            }
            None => return None,
        };
        let parent = parent.map(|parent| parent.span);
        Some(Self { context, parent, since: SystemClock.now(), tracer: tracer.clone(), is_frozen })
    }

    /// The request is served.
    pub(crate) async fn end(self, said: Said<'_>) {
        // Whoever is not let in does not decide what is kept.
        let is_nobodys = matches!(said.status, StatusCode::UNAUTHORIZED | StatusCode::TOO_MANY_REQUESTS);
        if !self.context.sampled || is_nobodys || !self.tracer.is_on() {
            return;
        }
        let method = match said.method.as_str() {
            known @ ("GET" | "HEAD" | "POST" | "PUT" | "DELETE" | "OPTIONS" | "PATCH") => known,
            _ => "_OTHER",
        };
        self.tracer.take(Span {
            context: self.context,
            parent: self.parent,
            name: format!("{method} {}", said.route),
            kind: Kind::Server,
            start: self.since,
            end: SystemClock.now(),
            attributes: vec![
                ("http.request.method", method.into()),
                ("http.route", said.route.into()),
                ("http.response.status_code", i64::from(said.status.as_u16()).into()),
                ("fleetcron.request_id", said.request_id.into()),
            ],
            events: Vec::new(),
            fault: said.status.is_server_error().then(|| said.status.to_string()),
        });
        if self.is_frozen {
            self.tracer.flush(FLUSH_MAX).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn handed_on(headers: &[&str]) -> Option<String> {
        let mut map = HeaderMap::new();
        for value in headers {
            map.append(HEADER, value.parse().unwrap());
        }
        Some(Traced::of(&map, &Tracer::default(), false)?.context.to_string())
    }

    #[test]
    fn without_traces_a_request_hands_on_what_its_sender_said() {
        assert_eq!(handed_on(&[SAID]).as_deref(), Some(SAID));
        for headers in [&[][..], &["nonsense"], &[SAID, SAID], &[&SAID[1..]]] {
            assert_eq!(handed_on(headers), None, "{headers:?}");
        }
    }
}
