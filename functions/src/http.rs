//! Body and query decoding, and the reply envelope.

use std::future::Future;
use std::time::Duration;

use common::api::envelope::{Envelope, Next};
use common::api::errno::Kind;
use common::clock::{self, Timestamp};
use common::domain::access::Principal;
use common::domain::audit::Origin;
use common::domain::job::JobName;
use common::domain::trace::TraceContext;
use common::shortened::shortened;
use lambda_http::http::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue};
use lambda_http::http::{HeaderMap, Method, StatusCode};
use lambda_http::{Body, Request};
use serde_json::Value;

use crate::access::{self, GoodUntil};
use crate::{audit, caller, idempotency, other_site};

/// What a handler answers.
pub type Response = lambda_http::Response<Body>;

/// Longest request body. A job's command may have 64 KiB, and percent-encoding triples it: a megabyte leaves room for every
/// option, and is a sixth of what Lambda would take.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;

/// A handler as a whole answers within 10 seconds: this, and what the network takes. API Gateway waits for 29, and so a caller always gets an
/// answer of ours.
pub const HANDLER_MAX: Duration = Duration::from_millis(9_500);

/// Routes that only read; HEAD is GET without its body.
pub(crate) const READ: &[&str] = &["GET", "HEAD"];
/// Routes that change something.
pub(crate) const WRITE: &[&str] = &["POST"];

/// A request that was served: `data`, and what stands beside it.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Reply {
    pub(crate) data: Value,
    pub(crate) next: Option<Next>,
    /// The schedule in words.
    pub(crate) description: Option<String>,
    pub(crate) warnings: Vec<String>,
    /// It is the answer that the same request got before: this one changed nothing.
    pub(crate) replayed: bool,
}

impl Reply {
    pub(crate) fn new(data: Value, warnings: Vec<String>) -> Self {
        Self { data, next: None, description: None, warnings, replayed: false }
    }

    /// The answer's body.
    pub(crate) fn into_envelope(self) -> Envelope {
        let Self { data, next, description, warnings, .. } = self;
        Envelope { next, description, warnings, ..Envelope::success(data) }
    }
}

/// A request that was not served: why, and how to mend it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Refusal {
    pub(crate) kind: Kind,
    pub(crate) message: String,
}

impl Refusal {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    pub(crate) fn bad(message: impl Into<String>) -> Self {
        Self::new(Kind::BadRequest, message)
    }
}

/// Serves a request to a route that answers in the envelope: checks that the gate has let its caller in, the method and where it comes from, bounds the time, renders what `work` answers.
pub(crate) async fn answer<F, Work>(methods: &[&str], request: Request, work: Work) -> Response
where
    F: Future<Output = Result<Reply, Refusal>>,
    Work: FnOnce(Call) -> F,
{
    if request.extensions().get::<Principal>().is_none() {
        // The gate was not asked.
        let Refusal { kind, message } = access::nobody();
        return refuse(kind, message);
    }
    if let Some(refused) = wrong_method(methods, request.method()) {
        return refused;
    }
    let head = request.method() == Method::HEAD;
    let writes = request.method() == Method::POST;
    let named = request.headers().contains_key(idempotency::HEADER);
    if writes && let Some(refused) = other_site(request.headers()) {
        return refused;
    }
    let answered = match clock::timeout(HANDLER_MAX, work(Call::of(request))).await {
        Ok(answered) => answered,
        Err(elapsed) => {
            tracing::error!(%elapsed, "the stores did not answer in time");
            Err(out_of_time(writes, named))
        }
    };
    let mut response = match answered {
        Ok(reply) => {
            let replayed = reply.replayed;
            let envelope = reply.into_envelope();
            let mut response = render(StatusCode::OK, envelope.errno, sendable(envelope));
            if replayed {
                response.headers_mut().insert(idempotency::REPLAYED, HeaderValue::from_static("true"));
            }
            response
        }
        Err(refusal) => refuse(refusal.kind, refusal.message),
    };
    if head {
        *response.body_mut() = Body::Empty;
    }
    response
}

fn out_of_time(writes: bool, named: bool) -> Refusal {
    let message = if writes {
        format!(
            "the stores took too long to answer: the change may or may not have been made; {}",
            again(named)
        )
    } else {
        "the stores took too long to answer: try again in a moment".to_owned()
    };
    Refusal::new(Kind::Unavailable, message)
}

/// What to do about a change that may or may not have been made.
pub(crate) fn again(named: bool) -> &'static str {
    if named {
        "send it again with the same Idempotency-Key, then it is made once and no more"
    } else {
        "look, and send it again if it is missing (a request with an Idempotency-Key can be sent again without looking)"
    }
}

/// 405 with `Allow` for a method that the route does not take.
pub(crate) fn wrong_method(methods: &[&str], method: &Method) -> Option<Response> {
    if methods.contains(&method.as_str()) {
        return None;
    }
    let allowed = methods.join(", ");
    let mut response =
        refuse(Kind::MethodNotAllowed, format!("this path does not take {method}: send {allowed}"));
    if let Ok(allowed) = HeaderValue::from_str(&allowed) {
        response.headers_mut().insert(ALLOW, allowed);
    }
    Some(response)
}

/// 403 for what a page of another site sends.
fn other_site(headers: &HeaderMap) -> Option<Response> {
    let evidence = other_site::evidence(headers)?;
    let message = format!(
        "this request comes from a page of another site ({evidence}), and such a page may change nothing here: send it from a page \
         that is served from this address, or without a browser"
    );
    Some(refuse(Kind::Forbidden, message))
}

/// A failure in the envelope, with the status of its kind.
#[must_use]
pub fn refuse(kind: Kind, message: impl Into<String>) -> Response {
    let (status, errno) = kind.code();
    let message = shortened(message.into(), MESSAGE_BYTES_MAX);
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    render(status, errno, json(&Envelope::failure(errno, message)))
}

fn render(status: StatusCode, errno: i32, body: String) -> Response {
    let mut response = with_headers(status, &[(CONTENT_TYPE, "application/json")], body);
    response.extensions_mut().insert(Errno(errno));
    response
}

/// The answer's body, as Lambda lets it through: pages are bounded where they are filled, but a single job that other hands put may be larger than an answer can be.
/// The request was served all the same, and the answer says what it lacks.
fn sendable(envelope: Envelope) -> String {
    let body = json(&envelope);
    let bytes = travelling_bytes(&body);
    if bytes <= LAMBDA_BYTES_MAX - HEAD_BYTES {
        return body;
    }
    let warning = format!(
        "the data is left out: with its warnings it takes {bytes} bytes on its way, and at most {LAMBDA_BYTES_MAX} arrive"
    );
    json(&Envelope { data: Value::Null, warnings: vec![warning], ..envelope })
}

fn json(envelope: &Envelope) -> String {
    serde_json::to_string(envelope).expect("plain data with string keys is always JSON")
}

/// An answer's `errno`, beside it for the log.
#[derive(Clone, Copy)]
pub(crate) struct Errno(pub(crate) i32);

/// A response of `text` with these headers.
pub(crate) fn with_headers(
    status: StatusCode,
    headers: &[(HeaderName, &'static str)],
    text: impl Into<String>,
) -> Response {
    let mut response = Response::new(Body::Text(text.into()));
    *response.status_mut() = status;
    for (name, value) in headers {
        response.headers_mut().insert(name.clone(), HeaderValue::from_static(value));
    }
    response
}

/// What of a request the endpoints read.
pub(crate) struct Call {
    query: String,
    headers: HeaderMap,
    caller: Option<String>,
    principal: Principal,
    good_until: Option<Timestamp>,
    origin: Origin,
    trace: Option<TraceContext>,
    body: Vec<u8>,
}

/// A request body.
#[derive(Debug)]
pub(crate) enum Payload {
    /// `application/x-www-form-urlencoded`.
    Form(Fields),
    /// `application/json`.
    Json(Value),
}

impl Call {
    fn of(request: Request) -> Self {
        Self {
            query: request.uri().query().unwrap_or_default().to_owned(),
            headers: request.headers().clone(),
            caller: caller::of(&request),
            principal: access::principal(&request),
            good_until: request.extensions().get().map(|GoodUntil(until)| *until),
            origin: audit::origin(&request),
            trace: request.extensions().get::<TraceContext>().copied(),
            body: match request.into_body() {
                Body::Text(text) => text.into_bytes(),
                Body::Binary(bytes) => bytes,
                // `Body` may grow; what it may grow by has no bytes that we could read.
                _ => Vec::new(),
            },
        }
    }

    /// The parameters behind `?`.
    pub(crate) fn query(&self) -> Result<Fields, Refusal> {
        Fields::decode(self.query.as_bytes(), "the query")
    }

    /// The parameters behind `?` of a request with a body, where nothing is read from: named, so that nobody wonders.
    pub(crate) fn query_warnings(&self) -> Vec<String> {
        let names = self.query().map(|fields| fields.names()).unwrap_or_default();
        let unread = names.iter().filter(|name| *name != "_");
        unread
            .map(|name| format!("the query parameter {name:?} is not read: fields go into the body"))
            .collect()
    }

    /// The body as it came.
    pub(crate) fn body(&self) -> Result<&[u8], Refusal> {
        if self.body.len() > BODY_BYTES_MAX {
            let message = format!("the body has {} bytes: shorten it to {BODY_BYTES_MAX}", self.body.len());
            return Err(Refusal::new(Kind::TooLarge, message));
        }
        Ok(&self.body)
    }

    /// The body, decoded by its content type; without one, what looks like JSON is JSON, and all else is a form.
    pub(crate) fn payload(&self) -> Result<Payload, Refusal> {
        self.body()?;
        match self.media_type()?.as_deref() {
            Some("application/x-www-form-urlencoded") => self.form(),
            Some(json) if json == "application/json" || json.ends_with("+json") => self.json(),
            None if self.body.trim_ascii_start().first().is_some_and(|b| b"{[\"".contains(b)) => self.json(),
            None => self.form(),
            Some(other) => Err(unsupported(&format!("the content type {other:?} is not read here"))),
        }
    }

    fn form(&self) -> Result<Payload, Refusal> {
        let fields = Fields::decode(self.body.trim_ascii(), "the form")?;
        match fields.repeated() {
            Some(name) => Err(Refusal::bad(format!("the form gives {name:?} twice: give it once"))),
            None => Ok(Payload::Form(fields)),
        }
    }

    fn json(&self) -> Result<Payload, Refusal> {
        let value = serde_json::from_slice(&self.body);
        value.map(Payload::Json).map_err(|e| Refusal::bad(format!("the body is not valid JSON: {e}")))
    }

    /// A body of a few text fields, as a form or as a JSON object; `known` are all that there may be.
    pub(crate) fn fields(&self, known: &[&str]) -> Result<Fields, Refusal> {
        let fields = match self.payload()? {
            Payload::Form(fields) => fields,
            Payload::Json(Value::Object(object)) => Fields::of_json(object)?,
            Payload::Json(_) => {
                let example = known.first().copied().unwrap_or_default();
                return Err(Refusal::bad(format!(
                    "the body is not a JSON object: send one like {{\"{example}\":…}}"
                )));
            }
        };
        fields.only(known)?;
        Ok(fields)
    }

    /// The content type in lower case without its parameters, `None` when there is none.
    pub(crate) fn media_type(&self) -> Result<Option<String>, Refusal> {
        let Some(header) = self.headers.get(CONTENT_TYPE) else { return Ok(None) };
        let header =
            header.to_str().map_err(|e| unsupported(&format!("the content type is not readable ({e})")))?;
        let mut parts = header.split(';').map(str::trim);
        let media_type = parts.next().unwrap_or_default().to_ascii_lowercase();
        for (name, value) in parts.filter_map(|parameter| parameter.split_once('=')) {
            let value = value.trim().trim_matches('"').to_ascii_lowercase();
            let utf8 = matches!(value.as_str(), "utf-8" | "utf8" | "us-ascii");
            if name.trim().eq_ignore_ascii_case("charset") && !utf8 {
                return Err(Refusal::new(
                    Kind::UnsupportedMediaType,
                    format!("the charset {value:?} is not read here: send UTF-8"),
                ));
            }
        }
        Ok(Some(media_type).filter(|media_type| !media_type.is_empty()))
    }

    /// Who sends it, in words; `None` = nothing is known.
    pub(crate) fn caller(&self) -> Option<&str> {
        self.caller.as_deref()
    }

    /// Who sends it, as the gate knows it.
    pub(crate) fn principal(&self) -> &Principal {
        &self.principal
    }

    /// Until when what the caller has shown is good; `None` = it does not end by itself.
    pub(crate) fn good_until(&self) -> Option<Timestamp> {
        self.good_until
    }

    /// Refuses a job that the caller may not touch, or see: before the store is asked, so that the answer does not tell whether it is there.
    pub(crate) fn reach(&self, job: &JobName) -> Result<(), Refusal> {
        access::reach(&self.principal, job)
    }

    /// Who sends it, for what the change leaves behind.
    pub(crate) fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Its place in a trace, for what it leads to.
    pub(crate) fn trace(&self) -> Option<TraceContext> {
        self.trace
    }

    /// The headers.
    pub(crate) fn headers(&self) -> &HeaderMap {
        &self.headers
    }
}

fn unsupported(what: &str) -> Refusal {
    let message = format!("{what}: send application/x-www-form-urlencoded or application/json");
    Refusal::new(Kind::UnsupportedMediaType, message)
}

/// Named texts of a form, a query or a JSON object.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Fields(Vec<(String, String)>);

impl Fields {
    /// Decodes `a=1&b=2`; `whole` names it in the refusal.
    pub(crate) fn decode(encoded: &[u8], whole: &str) -> Result<Self, Refusal> {
        let pairs = encoded.split(|b| *b == b'&').filter(|pair| !pair.is_empty());
        let decoded = pairs.map(|pair| {
            let cut = pair.iter().position(|b| *b == b'=').unwrap_or(pair.len());
            let value = pair.get(cut + 1..).unwrap_or_default();
            Ok((unescape(&pair[..cut])?, unescape(value)?))
        });
        decoded
            .collect::<Result<_, String>>()
            .map(Self)
            .map_err(|why| Refusal::bad(format!("{whole} is not percent-encoded UTF-8: {why}")))
    }

    /// The texts of a JSON object; `null` counts as left out.
    pub(crate) fn of_json(object: serde_json::Map<String, Value>) -> Result<Self, Refusal> {
        let fields =
            object.into_iter().filter(|(_, value)| !value.is_null()).map(|(name, value)| match value {
                Value::String(text) => Ok((name, text)),
                _ => Err(Refusal::bad(format!("{name}: is not a string: put it in quotes"))),
            });
        fields.collect::<Result<_, _>>().map(Self)
    }

    /// The first field of that name.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The first field of that name, unless it is empty.
    pub(crate) fn filled(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|value| !value.is_empty())
    }

    /// Whether the field of that name says `true`; left out or empty it does not.
    pub(crate) fn switch(&self, name: &str) -> Result<bool, Refusal> {
        match self.filled(name) {
            None | Some("false" | "0") => Ok(false),
            Some("true" | "1") => Ok(true),
            Some(_) => Err(Refusal::bad(format!("{name}: is neither true nor false: write one of them"))),
        }
    }

    /// All fields of that name.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// These and others.
    pub(crate) fn and(mut self, others: Self) -> Self {
        self.0.extend(others.0);
        self
    }

    /// Refuses fields that are not among `known`, naming them.
    pub(crate) fn only(&self, known: &[&str]) -> Result<(), Refusal> {
        let unknown = self.unknown(known);
        if unknown.is_empty() {
            return Ok(());
        }
        let takes = taken(known);
        Err(Refusal::bad(format!("unknown field {}: this route takes {takes}", unknown.join(", "))))
    }

    /// A warning for each parameter that is not among `known`, but for `_`, by which browsers' libraries get past caches.
    pub(crate) fn warnings(&self, known: &[&str]) -> Vec<String> {
        let takes = taken(known);
        let unknown = self.unknown(known).into_iter().filter(|name| name != "\"_\"");
        unknown
            .map(|name| format!("unknown parameter {name} was not looked at: this route takes {takes}"))
            .collect()
    }

    fn unknown(&self, known: &[&str]) -> Vec<String> {
        let unknown = self.0.iter().filter(|(name, _)| !known.contains(&name.as_str()));
        unknown.map(|(name, _)| format!("{name:?}")).collect()
    }

    fn names(&self) -> Vec<String> {
        self.0.iter().map(|(name, _)| name.clone()).collect()
    }

    /// A name that stands here twice.
    pub(crate) fn repeated(&self) -> Option<&str> {
        let mut rest = self.0.iter();
        while let Some((name, _)) = rest.next() {
            if rest.clone().any(|(other, _)| other == name) {
                return Some(name);
            }
        }
        None
    }
}

/// What a route takes, in a sentence.
fn taken(known: &[&str]) -> String {
    if known.is_empty() { "none".to_owned() } else { known.join(", ") }
}

/// Decodes `+` and `%41`. Strict, where libraries put replacement characters: a command must arrive as it was meant or not at all.
fn unescape(encoded: &[u8]) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(encoded.len());
    let mut rest = encoded.iter();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [rest.next(), rest.next()].map(|d| d.and_then(|d| char::from(*d).to_digit(16)));
                let [Some(high), Some(low)] = digits else {
                    return Err(
                        "two hex digits must follow each \"%\" (a percent sign itself is %25)".to_owned()
                    );
                };
                u8::try_from(high * 16 + low).expect("two hex digits fit a byte")
            }
            other => *other,
        });
    }
    String::from_utf8(bytes).map_err(|e| e.to_string())
}

/// The bytes that a JSON text takes on its way through Lambda, which wraps it into a JSON string once more: each quote and each backslash gets
/// a backslash before it. Control characters are escaped already.
pub(crate) fn travelling_bytes(json: &str) -> usize {
    json.len() + json.bytes().filter(|b| matches!(b, b'"' | b'\\')).count()
}

/// The bytes that a character of a text takes on its way, the text being a string in the JSON (see [`travelling_bytes`]).
pub(crate) fn travelling_bytes_of(character: char) -> usize {
    match character {
        // \" and \\, both characters escaped again.
        '"' | '\\' => 4,
        // \n, the backslash escaped again.
        '\u{8}' | '\t' | '\n' | '\u{c}' | '\r' => 3,
        // \u0000, the backslash escaped again.
        '\0'..'\u{20}' => 7,
        other => other.len_utf8(),
    }
}

/// Most that Lambda lets a function answer, status and headers and the escaped body together: 6 MB in its documentation, and so many bytes
/// in its error message. What is longer never arrives: API Gateway sends a 500 in its place.
pub const LAMBDA_BYTES_MAX: usize = 6_291_556;

/// Of that, what status and headers may take; ours take some 400.
const HEAD_BYTES: usize = 16 * 1024;

/// Most that a page of jobs, records or workers takes on its way. The rest up to Lambda's limit is for a hundred warnings of
/// [`WARNING_BYTES_MAX`], of which a byte may become seven.
pub(crate) const PAGE_BYTES_MAX: usize = 5_000_000;

/// Most of one warning that is said: a line that somebody reads.
pub(crate) const WARNING_BYTES_MAX: usize = 1000;

/// Most of a failure's message that is said. It quotes the request, which may be a megabyte.
const MESSAGE_BYTES_MAX: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_form(encoded: &str, decoded: Result<&[(&str, &str)], &str>) {
        let expected = decoded
            .map(|pairs| Fields(pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()));
        match (Fields::decode(encoded.as_bytes(), "the form"), expected) {
            (Ok(fields), Ok(expected)) => assert_eq!(fields, expected, "{encoded}"),
            (Err(refusal), Err(part)) => assert!(refusal.message.contains(part), "{}", refusal.message),
            (got, expected) => panic!("{encoded}: {got:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn forms_are_decoded_strictly() {
        check_form("", Ok(&[]));
        check_form("a=1&b=2", Ok(&[("a", "1"), ("b", "2")]));
        check_form("a", Ok(&[("a", "")]));
        check_form("a=b=c", Ok(&[("a", "b=c")]));
        check_form("a+b=%e4%BB%bb+%2B", Ok(&[("a b", "任 +")]));
        check_form("a=100%", Err("two hex digits"));
        check_form("a=%zz", Err("two hex digits"));
        check_form("a=%ff", Err("utf-8"));
    }

    #[test]
    fn what_a_text_takes_on_its_way_is_known() {
        let all: String = ('\0'..='\u{ff}').chain(['任', '😀', '\u{2028}']).collect();
        for character in all.chars() {
            let wrapped = serde_json::to_string(&serde_json::to_string(&character).unwrap()).unwrap();
            // Around it stand a quote each of the text and of the wrapper, the inner ones escaped.
            assert_eq!(travelling_bytes_of(character), wrapped.len() - 6, "{character:?}");
        }
        let json = serde_json::to_string(&all).unwrap();
        let wrapped = serde_json::to_string(&json).unwrap();
        assert_eq!(travelling_bytes(&json), wrapped.len() - 2);
        assert_eq!(travelling_bytes(&json), all.chars().map(travelling_bytes_of).sum::<usize>() + 4);
    }

    #[test]
    fn an_answer_that_lambda_would_drop_is_made_smaller_and_says_so() {
        // Fits as it is, and not once its quotes are escaped.
        let data = Value::from("\"".repeat(LAMBDA_BYTES_MAX / 3));
        let sent = |envelope| serde_json::from_str::<Envelope>(&sendable(envelope)).unwrap();
        let cut = sent(Envelope::success(data));
        assert!(cut.data.is_null() && cut.warnings[0].contains("left out"), "{:?}", cut.warnings);
        let small = Envelope::success("x".repeat(1000).into());
        assert_eq!(sent(small.clone()), small);
        let refused = refuse(Kind::BadRequest, "ö".repeat(BODY_BYTES_MAX));
        let Body::Text(text) = refused.body() else { panic!("no text") };
        assert!(text.len() < 2 * MESSAGE_BYTES_MAX && text.contains('…'));
    }

    #[track_caller]
    fn check_payload(content_type: Option<&str>, body: &str, expected: &str) {
        let mut request = Request::new(Body::Text(body.to_owned()));
        if let Some(content_type) = content_type {
            request.headers_mut().insert(CONTENT_TYPE, content_type.parse().unwrap());
        }
        let got = match Call::of(request).payload() {
            Ok(Payload::Form(_)) => "form".to_owned(),
            Ok(Payload::Json(_)) => "json".to_owned(),
            Err(refusal) => refusal.kind.code().0.to_string(),
        };
        assert_eq!(got, expected, "{content_type:?} {body}");
    }

    #[test]
    fn the_content_type_decides() {
        check_payload(Some("application/x-www-form-urlencoded"), "{}", "form");
        check_payload(Some("Application/X-WWW-Form-Urlencoded; charset=UTF-8"), "a=1", "form");
        check_payload(Some("application/json;charset=\"utf-8\""), "{}", "json");
        check_payload(Some("application/merge-patch+json"), "{}", "json");
        check_payload(None, " {\"a\":1}", "json");
        check_payload(None, "a=1", "form");
        check_payload(Some("application/json"), "a=1", "400");
        check_payload(Some("application/x-www-form-urlencoded"), "a=1&a=2", "400");
        check_payload(Some("text/plain"), "a=1", "415");
        check_payload(Some("multipart/form-data; boundary=x"), "a=1", "415");
        check_payload(Some("application/json; charset=latin1"), "{}", "415");
        check_payload(None, &"a".repeat(BODY_BYTES_MAX + 1), "413");
    }
}
