//! Spans as OTLP has them in JSON. The format is small and frozen; the libraries for it would bring a second HTTP client, threads of their own and
//! some fifteen crates into each function.

use serde_json::{Map, Value as Json, json};

use crate::clock::Timestamp;
use crate::domain::trace::{SpanId, TraceContext};
use crate::shortened::shortened;

/// `service.version`: all programs have the workspace's.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Longest text of an attribute.
const TEXT_BYTES_MAX: usize = 1024;

/// Who makes the spans.
#[derive(Clone, Debug)]
pub struct Resource {
    /// `service.name`.
    pub service: String,
    /// `service.instance.id`: of several that do the same, which one.
    pub instance: String,
}

/// What a span has to do with its parent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// It is a part of it.
    Internal,
    /// It answers it.
    Server,
    /// It was left to it, and done later.
    Consumer,
}

/// What is said of a span.
#[derive(Clone, PartialEq, Debug)]
pub enum Value {
    /// A text.
    Text(String),
    /// A number.
    Number(i64),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

/// A piece of work that is over.
#[derive(Clone, PartialEq, Debug)]
pub struct Span {
    /// Its trace and its own id.
    pub context: TraceContext,
    /// Below which span it is; `None` = its trace begins with it.
    pub parent: Option<SpanId>,
    /// One of few.
    pub name: String,
    /// See [`Kind`].
    pub kind: Kind,
    /// When it began.
    pub start: Timestamp,
    /// When it ended.
    pub end: Timestamp,
    /// What there is to say.
    pub attributes: Vec<(&'static str, Value)>,
    /// What happened meanwhile, and when.
    pub events: Vec<(&'static str, Timestamp)>,
    /// Why it did not do what it was for; `None` = it did.
    pub fault: Option<String>,
}

/// The request that hands spans over.
pub(super) fn body(resource: &Resource, spans: &[Span]) -> String {
    let own = [
        ("service.name", resource.service.as_str().into()),
        ("service.instance.id", resource.instance.as_str().into()),
        ("service.version", VERSION.into()),
    ];
    let scope = json!({ "name": "fleetcron", "version": VERSION });
    let spans: Vec<Json> = spans.iter().map(span).collect();
    json!({ "resourceSpans": [{
        "resource": { "attributes": attributes(&own) },
        "scopeSpans": [{ "scope": scope, "spans": spans }],
    }] })
    .to_string()
}

fn span(span: &Span) -> Json {
    let mut json = Map::new();
    let mut put = |name: &str, value: Json| {
        json.insert(name.to_owned(), value);
    };
    put("traceId", span.context.trace.to_string().into());
    put("spanId", span.context.span.to_string().into());
    if let Some(parent) = span.parent {
        put("parentSpanId", parent.to_string().into());
    }
    put("flags", u8::from(span.context.sampled).into());
    put("name", span.name.as_str().into());
    put("kind", kind(span.kind).into());
    put("startTimeUnixNano", nanoseconds(span.start).into());
    // A clock may have been put back meanwhile; receivers refuse what ends before it begins.
    put("endTimeUnixNano", nanoseconds(span.end.max(span.start)).into());
    put("attributes", attributes(&span.attributes));
    let event = |(name, at): &(&str, Timestamp)| json!({ "timeUnixNano": nanoseconds(*at), "name": name });
    put("events", span.events.iter().map(event).collect());
    put(
        "status",
        match &span.fault {
            None => json!({}),
            Some(why) => json!({ "code": 2, "message": shortened(why.clone(), TEXT_BYTES_MAX) }),
        },
    );
    Json::Object(json)
}

fn attributes(all: &[(&str, Value)]) -> Json {
    let one = |(key, value): &(&str, Value)| {
        let value = match value {
            Value::Text(text) => json!({ "stringValue": shortened(text.clone(), TEXT_BYTES_MAX) }),
            // 64 bits are text in the JSON of protocol buffers.
            Value::Number(number) => json!({ "intValue": number.to_string() }),
        };
        json!({ "key": key, "value": value })
    };
    all.iter().map(one).collect()
}

fn kind(kind: Kind) -> u8 {
    match kind {
        Kind::Internal => 1,
        Kind::Server => 2,
        Kind::Consumer => 5,
    }
}

fn nanoseconds(at: Timestamp) -> String {
    (i128::from(at.ms().max(0)) * 1_000_000).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_written_as_receivers_read_them() {
        let context = TraceContext::parse("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").unwrap();
        let at = Timestamp::from_ms(1_800_000_000_123);
        let span = Span {
            context,
            parent: Some(context.span),
            name: "run".to_owned(),
            kind: Kind::Consumer,
            start: at,
            end: at.plus_ms(-5),
            attributes: vec![("fleetcron.job", "a".into()), ("fleetcron.attempt", 2.into())],
            events: vec![("started", at)],
            fault: Some("exit status 1".to_owned()),
        };
        let resource = Resource { service: "s".to_owned(), instance: "i".to_owned() };
        let written: Json = serde_json::from_str(&body(&resource, &[span])).unwrap();
        let text = |key: &str, value: &str| json!({"key": key, "value": {"stringValue": value}});
        let expected = json!({ "resourceSpans": [{
            "resource": { "attributes": [
                text("service.name", "s"), text("service.instance.id", "i"), text("service.version", VERSION),
            ] },
            "scopeSpans": [{ "scope": { "name": "fleetcron", "version": VERSION }, "spans": [{
                "traceId": "0af7651916cd43dd8448eb211c80319c",
                "spanId": "b7ad6b7169203331",
                "parentSpanId": "b7ad6b7169203331",
                "flags": 1,
                "name": "run",
                "kind": 5,
                "startTimeUnixNano": "1800000000123000000",
                "endTimeUnixNano": "1800000000123000000",
                "attributes": [text("fleetcron.job", "a"), {"key": "fleetcron.attempt", "value": {"intValue": "2"}}],
                "events": [{"timeUnixNano": "1800000000123000000", "name": "started"}],
                "status": {"code": 2, "message": "exit status 1"},
            }] }],
        }] });
        assert_eq!(written, expected);
    }
}
