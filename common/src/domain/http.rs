//! The option `http`: a request that a job sends in place of running a command, and what its answer must be.

use std::collections::BTreeSet;
use std::fmt;

use serde_json::{Map, Value};
use url::Url;

use super::execution::Execution;
use super::job::Fault;
use super::secret::{SECRETS_MAX, SecretName};

/// `timeoutSeconds` of a job with `http` that gives none: a receiver that hangs would hold the job's lock for ever.
pub const TIMEOUT_SECONDS_DEFAULT: u32 = 60;
/// Most redirects that may be followed: what needs more goes in a circle.
const REDIRECTS_MAX: u64 = 10;
/// Longest address, in bytes; servers refuse longer ones.
const URL_BYTES_MAX: usize = 8 * 1024;
/// Most headers, and the bytes of all of them: what servers take at once.
const HEADERS_MAX: usize = 64;
const HEADER_BYTES_MAX: usize = 8 * 1024;
/// Longest body, in bytes. Every worker keeps that of each job in memory; larger things are sent by a command.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// Longest text or expression that the answer is held against, in bytes.
const PATTERN_BYTES_MAX: usize = 1024;
/// Size of a compiled expression: with the bytes that it looks at it bounds how long that takes.
const PATTERN_SIZE_MAX: usize = 64 * 1024;
/// Most entries of `expect.status`.
const STATUS_MAX: usize = 32;

const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
/// Headers of the connection itself, by which a request could be made to mean something else to the next server; and those that say which
/// run it is.
const HEADERS_NOT_GIVEN: [&str; 17] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    IDEMPOTENCY_KEY,
    JOB,
    PLAN_TIME,
    ATTEMPT,
    RUN_ID,
];

/// The header that names what the request is one of: job, plan time and attempt. As it is of the run's record.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// The header with the job's name.
pub const JOB: &str = "fleetcron-job";
/// The header with the run's plan time, in ms since 1970.
pub const PLAN_TIME: &str = "fleetcron-plan-time";
/// The header with the attempt: 1, 2, …
pub const ATTEMPT: &str = "fleetcron-attempt";
/// The header with the run's id.
pub const RUN_ID: &str = "fleetcron-run-id";

/// What a job sends. Of what may be left out only that is kept which was given.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Http {
    method: Option<&'static str>,
    url: String,
    headers: Option<Vec<(String, String)>>,
    body: Option<String>,
    expect: Option<Expect>,
    follow_redirects: Option<u8>,
}

/// What the answer must be.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Expect {
    status: Option<Vec<Codes>>,
    body: Option<String>,
}

/// One status of HTTP, or all that begin with one digit.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Codes {
    One(u16),
    Class(u16),
}

/// The statuses that an answer must have where the job says nothing.
const SUCCESS: &[Codes] = &[Codes::Class(2)];

impl Http {
    /// Reads `{"method", "url", "headers", "body", "expect", "followRedirects"}`.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it and how to mend it.
    pub(super) fn parse(value: &Value) -> Result<Self, String> {
        const FIELDS: [&str; 6] = ["method", "url", "headers", "body", "expect", "followRedirects"];
        let like = "{\"method\":\"POST\",\"url\":\"https://example.com/\"}";
        let given = object(value, "", like, &FIELDS)?;
        let http = Self {
            method: given.get("method").map(method).transpose()?,
            url: given.get("url").map_or(Err("has no url: give the address to call".to_owned()), address)?,
            headers: given.get("headers").map(headers).transpose()?,
            body: given.get("body").map(body).transpose()?,
            expect: given.get("expect").map(Expect::parse).transpose()?,
            follow_redirects: given.get("followRedirects").map(redirects).transpose()?,
        };
        if http.body.is_some() && matches!(http.method(), "GET" | "HEAD") {
            let method = http.method();
            return Err(format!(
                "body: {method} sends none: write \"method\":\"POST\", or leave the body out"
            ));
        }
        Ok(http)
    }

    /// As it was given.
    pub(super) fn to_value(&self) -> Value {
        let mut fields = Map::new();
        let mut put = |name: &str, value: Option<Value>| {
            fields.extend(value.map(|value| (name.to_owned(), value)));
        };
        put("method", self.method.map(Value::from));
        put("url", Some(self.url.as_str().into()));
        let headers =
            |given: &Vec<(String, String)>| given.iter().map(|(n, v)| (n.clone(), v.as_str())).collect();
        put("headers", self.headers.as_ref().map(headers));
        put("body", self.body.as_deref().map(Value::from));
        put("expect", self.expect.as_ref().map(Expect::to_value));
        put("followRedirects", self.follow_redirects.map(Value::from));
        Value::Object(fields)
    }

    /// The method, in capitals.
    #[must_use]
    pub fn method(&self) -> &'static str {
        self.method.unwrap_or("GET")
    }

    /// The address, as it was given.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Names and values of the headers.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        self.headers.iter().flatten().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The secrets that headers name.
    pub fn secrets(&self) -> impl Iterator<Item = SecretName> {
        self.headers().filter_map(|(_, value)| SecretName::in_header(value)?.1.ok())
    }

    /// The body.
    #[must_use]
    pub fn body(&self) -> Option<&str> {
        self.body.as_deref()
    }

    /// How many redirects are followed.
    #[must_use]
    pub fn redirects(&self) -> u8 {
        self.follow_redirects.unwrap_or(0)
    }

    /// Whether the job takes an answer of this status for a success.
    #[must_use]
    pub fn expects(&self, status: u16) -> bool {
        self.codes().iter().any(|codes| codes.has(status))
    }

    /// The statuses of a success, like `2xx or 304`.
    #[must_use]
    pub fn expected_statuses(&self) -> String {
        self.codes().iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ")
    }

    fn codes(&self) -> &[Codes] {
        self.expect.as_ref().and_then(|expect| expect.status.as_deref()).unwrap_or(SUCCESS)
    }

    /// What must be in the answer's body; `None` = anything.
    ///
    /// # Errors
    /// What is wrong with it; never, since it was read before.
    pub fn expected_body(&self) -> Result<Option<Pattern>, String> {
        self.expect.as_ref().and_then(|expect| expect.body.as_deref()).map(Pattern::parse).transpose()
    }

    /// The request in a line, in the place of a command.
    #[must_use]
    pub fn line(&self) -> String {
        format!("{} {}", self.method(), self.url)
    }
}

impl Expect {
    fn parse(value: &Value) -> Result<Self, String> {
        let like = "{\"status\":[200,\"3xx\"],\"body\":\"ok\"}";
        let given = object(value, "expect", like, &["status", "body"])?;
        let body = given.get("body").map(|body| {
            let text = body
                .as_str()
                .ok_or("is not a string: write text that it contains, or /a regular expression/");
            text.map_err(str::to_owned).and_then(|text| Pattern::parse(text).map(|_| text.to_owned()))
        });
        Ok(Self {
            status: given.get("status").map(codes).transpose()?,
            body: body.transpose().map_err(|why| format!("expect.body: {why}"))?,
        })
    }

    fn to_value(&self) -> Value {
        let mut fields = Map::new();
        if let Some(status) = &self.status {
            fields.insert("status".to_owned(), status.iter().copied().map(Codes::to_value).collect());
        }
        if let Some(body) = &self.body {
            fields.insert("body".to_owned(), body.as_str().into());
        }
        Value::Object(fields)
    }
}

impl Codes {
    fn parse(value: &Value) -> Option<Self> {
        if let Some(number) = value.as_u64() {
            return u16::try_from(number).ok().filter(|code| (100..=599).contains(code)).map(Self::One);
        }
        let class = value.as_str()?.strip_suffix("xx")?;
        let digit = class.parse().ok().filter(|digit| (1..=5).contains(digit) && class.len() == 1);
        digit.map(Self::Class)
    }

    fn has(self, status: u16) -> bool {
        match self {
            Self::One(code) => status == code,
            Self::Class(digit) => status / 100 == digit,
        }
    }

    fn to_value(self) -> Value {
        match self {
            Self::One(code) => code.into(),
            Self::Class(_) => self.to_string().into(),
        }
    }
}

impl fmt::Display for Codes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(code) => write!(f, "{code}"),
            Self::Class(digit) => write!(f, "{digit}xx"),
        }
    }
}

/// What must be in the body of an answer.
#[derive(Clone, Debug)]
pub enum Pattern {
    /// This text.
    Text(String),
    /// Something that this expression finds.
    Expression(regex_lite::Regex),
}

impl Pattern {
    /// Text, or an expression where it stands between two slashes.
    fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.len() > PATTERN_BYTES_MAX {
            return Err(format!("has {} bytes: give 1 to {PATTERN_BYTES_MAX}", text.len()));
        }
        let Some(pattern) = text.strip_prefix('/').and_then(|rest| rest.strip_suffix('/')) else {
            return Ok(Self::Text(text.to_owned()));
        };
        let built = regex_lite::RegexBuilder::new(pattern).size_limit(PATTERN_SIZE_MAX).build();
        built
            .map(Self::Expression)
            .map_err(|why| format!("is no regular expression ({why}): mend what stands between the slashes"))
    }

    /// Whether it is in this text.
    #[must_use]
    pub fn is_in(&self, text: &str) -> bool {
        match self {
            Self::Text(wanted) => text.contains(wanted.as_str()),
            Self::Expression(expression) => expression.is_match(text),
        }
    }
}

/// As the job gives it, in quotes where it is text.
impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Expression(expression) => write!(f, "/{expression}/"),
        }
    }
}

/// What is wrong with how a job's command, its request and the options of only one of the two go together.
#[must_use]
pub fn contradictions(command: &str, execution: &Execution) -> Vec<Fault> {
    if execution.http.is_none() {
        return Vec::new();
    }
    let no_process = "means nothing beside http, which starts no process: leave it out";
    let told = [
        (
            "command",
            !command.trim().is_empty(),
            "stands beside http: a job has one of the two, leave the other out",
        ),
        ("env", execution.env.is_some(), "means nothing beside http: give the request headers in its place"),
        ("workingDir", execution.working_dir.is_some(), no_process),
        ("user", execution.user.is_some(), no_process),
        ("limits", execution.limits.is_some(), no_process),
        (
            "killGraceSeconds",
            execution.kill_grace_seconds.is_some(),
            "means nothing beside http, a request that is killed ends at once: leave it out",
        ),
        // The guardian can kill processes, but not take back what a frozen worker has sent.
        (
            "fence",
            execution.has_fence(),
            "cannot be had beside http, since nobody can take back a request of a worker that is cut off: leave it out, and let the receiver do each Idempotency-Key once",
        ),
    ];
    let wrong = told.into_iter().filter(|(_, is_given, _)| *is_given);
    wrong.map(|(field, _, why)| Fault::new(field, why)).collect()
}

/// The fields of an object that has no others. `at` is where it stands within the option.
fn object<'a>(
    value: &'a Value,
    at: &str,
    like: &str,
    known: &[&str],
) -> Result<&'a Map<String, Value>, String> {
    let at = if at.is_empty() { String::new() } else { format!("{at}: ") };
    let Value::Object(given) = value else {
        return Err(format!("{at}is not an object: write it like {like}"));
    };
    match given.keys().find(|name| !known.contains(&name.as_str())) {
        Some(unknown) => Err(format!("{at}{unknown:?} is no field of it: there are {}", known.join(", "))),
        None => Ok(given),
    }
}

fn method(value: &Value) -> Result<&'static str, String> {
    let known = METHODS.into_iter().find(|method| value.as_str() == Some(*method));
    known.ok_or_else(|| {
        format!("method: is none of {}: write one of them, or leave it out for GET", METHODS.join(", "))
    })
}

fn address(value: &Value) -> Result<String, String> {
    let text = value.as_str().ok_or("url: is not a string: write one like \"https://example.com/\"")?;
    if text.len() > URL_BYTES_MAX {
        return Err(format!("url: is {} bytes long: shorten it to {URL_BYTES_MAX}", text.len()));
    }
    let url = Url::parse(text).map_err(|why| {
        format!("url: {text:?} is no address ({why}): write one like \"https://example.com/\"")
    })?;
    check_url(&url).map_err(|why| format!("url: {why}"))?;
    if text.contains("=secret:") {
        return Err("url: takes no secrets, since addresses stand in logs: give them in a header".to_owned());
    }
    Ok(text.to_owned())
}

/// Whether a request may be sent to such an address, wherever it leads: the scheme is one that is spoken here, and it holds no password.
///
/// # Errors
/// A sentence that says what is wrong with it and how to mend it.
pub fn check_url(url: &Url) -> Result<(), String> {
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!(
            "{:?} is not called: write an address that begins with https:// or http://",
            url.scheme()
        ));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("has a user or a password in it: give them in the header Authorization".to_owned());
    }
    Ok(())
}

fn headers(value: &Value) -> Result<Vec<(String, String)>, String> {
    let Value::Object(given) = value else {
        return Err(
            "headers: is not an object: write it like {\"Content-Type\":\"application/json\"}".to_owned()
        );
    };
    if given.len() > HEADERS_MAX {
        return Err(format!("headers: there are {}: give at most {HEADERS_MAX}", given.len()));
    }
    let mut headers: Vec<(String, String)> = Vec::with_capacity(given.len());
    let mut secrets = BTreeSet::new();
    for (name, value) in given {
        let wrong = |why: String| format!("headers: {name:?} {why}");
        let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        if name.is_empty() {
            return Err(wrong("is empty: give each header a name".to_owned()));
        }
        if let Some(at) = odd_one(name, is_token) {
            return Err(wrong(format!("is no name of a header: use letters, digits and \"-\", unlike {at}")));
        }
        if HEADERS_NOT_GIVEN.iter().any(|not_given| name.eq_ignore_ascii_case(not_given)) {
            return Err(wrong("may not be given: it is set for each request".to_owned()));
        }
        if headers.iter().any(|(other, _)| name.eq_ignore_ascii_case(other)) {
            return Err(wrong("is there twice: give it once".to_owned()));
        }
        let value = value
            .as_str()
            .ok_or_else(|| wrong("has a value that is not a string: write it in quotes".to_owned()))?;
        if let Some(at) = odd_one(value, |c| c == '\t' || c == ' ' || c.is_ascii_graphic()) {
            return Err(wrong(format!("has a value with what no header may have: leave out {at}")));
        }
        if value.trim() != value {
            return Err(wrong("has a value with blanks around it: leave them out".to_owned()));
        }
        match SecretName::in_header(value) {
            Some((_, Err(why))) => return Err(wrong(format!("has a value with {why}"))),
            Some((_, Ok(secret))) => drop(secrets.insert(secret)),
            None => {}
        }
        headers.push((name.clone(), value.to_owned()));
    }
    let bytes: usize = headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes > HEADER_BYTES_MAX {
        return Err(format!("headers: have {bytes} bytes: {HEADER_BYTES_MAX} fit"));
    }
    if secrets.len() > SECRETS_MAX {
        return Err(format!("headers: name {} secrets: {SECRETS_MAX} are the most", secrets.len()));
    }
    Ok(headers)
}

/// The first character that is not a good one, and where it stands.
fn odd_one(text: &str, is_good: impl Fn(char) -> bool) -> Option<String> {
    let (at, odd) = text.chars().enumerate().find(|(_, c)| !is_good(*c))?;
    Some(format!("{odd:?} at character {}", at + 1))
}

fn body(value: &Value) -> Result<String, String> {
    let text = value
        .as_str()
        .ok_or("body: is not a string: write what is to be sent in quotes, also if it is JSON")?;
    if text.len() > BODY_BYTES_MAX {
        return Err(format!("body: is {} bytes long: {BODY_BYTES_MAX} fit", text.len()));
    }
    if let Some(Ok(secret)) = SecretName::in_value(text) {
        return Err(format!(
            "body: takes no secrets, {secret} would be sent as it stands: give it in a header"
        ));
    }
    Ok(text.to_owned())
}

fn codes(value: &Value) -> Result<Vec<Codes>, String> {
    let wrong = "expect.status: is not a list of statuses: write it like [200,\"3xx\"]";
    let given = value.as_array().filter(|given| (1..=STATUS_MAX).contains(&given.len())).ok_or(wrong)?;
    let parsed = |one: &Value| {
        Codes::parse(one).ok_or_else(|| format!("expect.status: {one} is no status: write a number from 100 to 599, or all of a kind like \"2xx\""))
    };
    given.iter().map(parsed).collect()
}

fn redirects(value: &Value) -> Result<u8, String> {
    let number =
        value.as_u64().filter(|number| *number <= REDIRECTS_MAX).and_then(|number| u8::try_from(number).ok());
    number.ok_or_else(|| format!("followRedirects: is not a whole number from 0 to {REDIRECTS_MAX}: write one, or leave it out for none"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parsed(value: Value) -> Http {
        Http::parse(&value).unwrap_or_else(|why| panic!("{value}: {why}"))
    }

    fn with(field: &str, value: Value) -> Value {
        json!({"method": "POST", "url": "https://example.com/", field: value})
    }

    #[test]
    fn requests_are_read_and_written_again_as_they_were_given() {
        for given in [
            json!({"url": "http://10.0.0.7:8080/a?b=c#d"}),
            json!({"url": "HTTPS://Example.com"}),
            json!({"method": "PUT", "url": "https://[2001:db8::1]/", "headers": {}, "body": "", "expect": {}, "followRedirects": 0}),
            json!({"method": "POST", "url": "https://例子.测试/", "headers": {"X-B": "1", "a": "x, y\tz"}, "body": "{\"a\":1}\n",
                "expect": {"status": [200, "3xx", 599], "body": "/^ok$/"}, "followRedirects": 10}),
            json!({"method": "HEAD", "url": "https://a/", "expect": {"body": "/"}}),
        ] {
            assert_eq!(parsed(given.clone()).to_value(), given);
        }
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        let http = parsed(json!({"url": "https://example.com/"}));
        assert_eq!((http.method(), http.redirects(), http.body()), ("GET", 0, None));
        assert_eq!((http.headers().count(), http.line().as_str()), (0, "GET https://example.com/"));
        assert_eq!([199, 200, 299, 302].map(|code| http.expects(code)), [false, true, true, false]);
        assert_eq!(http.expected_statuses(), "2xx");
        assert!(http.expected_body().unwrap().is_none());
    }

    #[test]
    fn an_answer_is_held_against_what_the_job_expects() {
        let expects = |status: Value| parsed(with("expect", json!({ "status": status })));
        let some = expects(json!([204, "3xx"]));
        assert_eq!([204, 300, 399, 200].map(|code| some.expects(code)), [true, true, true, false]);
        assert_eq!(some.expected_statuses(), "204 or 3xx");
        for (pattern, text, is_in) in [
            ("done", "it is done.", true),
            ("done", "it is DONE.", false),
            ("/", "a/b", true),
            ("/a", "a", false),
            ("//", "", true),
            ("/^ok\\b/", "ok then", true),
            ("/^ok\\b/", "it is ok", false),
            ("/(?i)DONE/", "done", true),
        ] {
            let http = parsed(with("expect", json!({ "body": pattern })));
            assert_eq!(http.expected_body().unwrap().unwrap().is_in(text), is_in, "{pattern} in {text}");
        }
        assert_eq!(Pattern::parse("a\"b").unwrap().to_string(), "\"a\\\"b\"");
        assert_eq!(Pattern::parse("/a+/").unwrap().to_string(), "/a+/");
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        for (value, says) in [
            (json!("https://a/"), "is not an object"),
            (json!({}), "has no url"),
            (json!({"uri": "https://a/"}), "\"uri\" is no field of it: there are method, url"),
            (with("method", json!("post")), "method: is none of GET"),
            (with("method", json!("CONNECT")), "method: is none of GET"),
            (json!({"url": 5}), "url: is not a string"),
            (json!({"url": "example.com"}), "relative URL without a base"),
            (json!({"url": "https://"}), "empty host"),
            (json!({"url": "ftp://a/"}), "\"ftp\" is not called"),
            (json!({"url": "file:///etc/passwd"}), "\"file\" is not called"),
            (json!({"url": "https://u@a/"}), "header Authorization"),
            (json!({"url": "https://:p@a/"}), "header Authorization"),
            (json!({"url": format!("https://a/{}", "x".repeat(8192))}), "8202 bytes"),
            (json!({"url": "https://a/", "body": "x"}), "body: GET sends none"),
            (json!({"method": "HEAD", "url": "https://a/", "body": ""}), "body: HEAD sends none"),
            (with("headers", json!([])), "headers: is not an object"),
            (with("headers", json!({"": "a"})), "is empty"),
            (with("headers", json!({"X Y": "a"})), "unlike ' ' at character 2"),
            (with("headers", json!({"X:": "a"})), "unlike ':' at character 2"),
            (with("headers", json!({"X": 1})), "\"X\" has a value that is not a string"),
            (with("headers", json!({"X": "a\r\nY: b"})), "leave out '\\r' at character 2"),
            (with("headers", json!({"X": "好"})), "at character 1"),
            (with("headers", json!({"X": "a\0"})), "'\\0' at character 2"),
            (with("headers", json!({"X": " a"})), "blanks around it"),
            (
                with("headers", json!({"X": "Bearer secret:"})),
                "\"X\" has a value with secret: names no secret",
            ),
            (with("headers", json!({"X": "token=secret:a"})), "stands alone, or behind one word"),
            (json!({"url": "https://a/?key=secret:a"}), "give them in a header"),
            (with("body", json!("secret:a")), "secret:a would be sent as it stands"),
            (with("headers", json!({"X": "a", "x": "b"})), "\"x\" is there twice"),
            (with("headers", json!({"HOST": "a"})), "may not be given"),
            (with("headers", json!({"Transfer-Encoding": "chunked"})), "may not be given"),
            (with("headers", json!({"Idempotency-Key": "a"})), "may not be given"),
            (with("headers", json!({"Fleetcron-Job": "a"})), "may not be given"),
            (with("headers", json!({"X": "a".repeat(8192)})), "8193 bytes"),
            (with("headers", Value::from_iter((0..65).map(|n| (format!("X{n}"), "a")))), "there are 65"),
            (with("body", json!({"a": 1})), "body: is not a string"),
            (with("body", json!("x".repeat(65_537))), "65537 bytes"),
            (with("expect", json!("2xx")), "expect: is not an object"),
            (
                with("expect", json!({"code": 1})),
                "expect: \"code\" is no field of it: there are status, body",
            ),
            (with("expect", json!({"status": 200})), "expect.status: is not a list"),
            (with("expect", json!({"status": []})), "expect.status: is not a list"),
            (with("expect", json!({"status": [200, "200"]})), "expect.status: \"200\" is no status"),
            (with("expect", json!({"status": [600]})), "600 is no status"),
            (with("expect", json!({"status": ["6xx"]})), "\"6xx\" is no status"),
            (with("expect", json!({"status": ["+2xx"]})), "\"+2xx\" is no status"),
            (with("expect", json!({"body": 5})), "expect.body: is not a string"),
            (with("expect", json!({"body": ""})), "expect.body: has 0 bytes"),
            (with("expect", json!({"body": "/(/"})), "expect.body: is no regular expression"),
            (with("expect", json!({"body": "/(a{100}){100}/"})), "expect.body: is no regular expression"),
            (with("expect", json!({"body": "x".repeat(1025)})), "has 1025 bytes"),
            (with("followRedirects", json!(11)), "from 0 to 10"),
            (with("followRedirects", json!(true)), "from 0 to 10"),
        ] {
            let why = Http::parse(&value).expect_err(&value.to_string());
            assert!(why.contains(says), "{value}: {why:?} does not say {says:?}");
        }
    }
}
