//! Who may call what: every route as every role, with all jobs and with some, as nobody, with a token that has expired and with one that is
//! revoked, through the gate and the real handlers on the embedded stores, against one table. A route that is not in it fails the test.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use async_trait::async_trait;
use common::clock::{Clock, Timestamp};
use common::config::{self, Invocation, Settings};
use common::domain::access::{Principal, Role};
use common::domain::job::JobName;
use common::domain::token::{Grant, Secret, Token};
use common::keys;
use common::kv::embedded::EmbeddedKv;
use common::kv::{Kv, Op, Range, Txn};
use common::run_log::RunLog;
use common::run_log::embedded::EmbeddedRunLog;
use functions::access::Gate;
use functions::caller::Peer;
use functions::http::Response;
use functions::{Ports, ROUTES};
use lambda_http::http::HeaderValue;
use lambda_http::{Body, Request, RequestExt as _};
use serde_json::{Value, json};
use tests::fixtures::{SOON, wait_for};

/// 2026-11-21T00:00:00Z, when all these tests play.
const NOW: Timestamp = Timestamp::from_ms(1_795_219_200_000);
/// The names of the scoped callers' jobs begin so.
const OWN: &str = "team-";
const BOOTSTRAP: &str = "6f1d0c9be27a4583a1f0e4b6d2c8975e";

struct StoppedClock;

#[async_trait]
impl Clock for StoppedClock {
    fn now(&self) -> Timestamp {
        NOW
    }

    async fn sleep_until(&self, _deadline: Timestamp) {}
}

/// What a route is about, and so what a caller with some jobs only gets.
#[derive(Clone, Copy, PartialEq, Debug)]
enum About {
    /// Nothing that is anybody's: published files.
    Nothing,
    /// The job that is named: another's is 403.
    Job,
    /// The run that is named: another's is 404, as one that is not there.
    Run,
    /// All jobs: of others nothing is shown.
    Jobs,
    /// The token that is named: another's is as one that is not there.
    Token,
    /// Something of the fleet that all callers see.
    Shown,
    /// The fleet: 403.
    Fleet,
}

/// The table: method, path, the least role (`None` = nobody is asked), and what it is about.
const TABLE: [(&str, &str, Option<Role>, About); 33] = [
    ("GET", "/", None, About::Nothing),
    ("GET", "/console/{file}", None, About::Nothing),
    ("POST", "/job/save", Some(Role::Editor), About::Job),
    ("POST", "/job/delete", Some(Role::Editor), About::Job),
    ("POST", "/job/import", Some(Role::Editor), About::Job),
    ("POST", "/job/kill", Some(Role::Operator), About::Job),
    ("POST", "/job/pause", Some(Role::Operator), About::Job),
    ("POST", "/job/resume", Some(Role::Operator), About::Job),
    ("POST", "/job/run", Some(Role::Operator), About::Job),
    ("GET", "/job/log", Some(Role::Viewer), About::Job),
    ("GET", "/job/list", Some(Role::Viewer), About::Jobs),
    ("GET", "/job/export", Some(Role::Viewer), About::Jobs),
    ("GET", "/job/running", Some(Role::Viewer), About::Jobs),
    ("GET", "/job/next", Some(Role::Viewer), About::Shown),
    ("GET", "/job/versions", Some(Role::Viewer), About::Job),
    ("POST", "/job/rollback", Some(Role::Editor), About::Job),
    ("GET", "/run/get", Some(Role::Viewer), About::Run),
    ("GET", "/run/output", Some(Role::Viewer), About::Run),
    ("GET", "/worker/list", Some(Role::Viewer), About::Shown),
    ("GET", "/fleet/status", Some(Role::Viewer), About::Shown),
    ("GET", "/fleet/settings", Some(Role::Viewer), About::Shown),
    ("POST", "/fleet/settings", Some(Role::Admin), About::Fleet),
    ("POST", "/fleet/pause", Some(Role::Admin), About::Fleet),
    ("POST", "/fleet/resume", Some(Role::Admin), About::Fleet),
    ("GET", "/calendar/list", Some(Role::Viewer), About::Shown),
    ("POST", "/calendar/save", Some(Role::Admin), About::Fleet),
    ("POST", "/calendar/delete", Some(Role::Admin), About::Fleet),
    ("GET", "/audit/list", Some(Role::Admin), About::Fleet),
    ("POST", "/token/create", Some(Role::Admin), About::Job),
    ("POST", "/token/revoke", Some(Role::Admin), About::Token),
    ("GET", "/token/list", Some(Role::Admin), About::Jobs),
    ("GET", "/token/self", Some(Role::Viewer), About::Shown),
    ("HEAD", "/job/list", Some(Role::Viewer), About::Shown),
];

/// Stores in memory with two jobs, `team-a` and `other-a`, each with a record and an open run, a token for each of the two prefixes, and the gate before them.
struct Stage {
    ports: Ports,
    gate: Gate,
    /// Ids of tokens with the prefixes `team-` and `other-`.
    scoped: [String; 2],
    /// A version of each of the two jobs.
    versions: [String; 2],
}

impl Stage {
    async fn new() -> Self {
        let kv: Arc<dyn Kv> = Arc::new(EmbeddedKv::in_memory().unwrap());
        let run_log = Arc::new(EmbeddedRunLog::in_memory().unwrap());
        let ports = Ports { kv: Arc::clone(&kv), run_log: run_log.clone(), clock: Arc::new(StoppedClock) };
        let gate = guarded(&ports);
        let mut stage = Self { ports, gate, scoped: Default::default(), versions: Default::default() };
        for (n, prefix) in [OWN, "other-"].into_iter().enumerate() {
            let name = format!("{prefix}a");
            let anybody = |mut request: Request| {
                request.extensions_mut().insert(Principal::anybody());
                functions::handle(&stage.ports, request)
            };
            let save = request("POST", "/job/save", Some("application/json"), &job(&name).to_string());
            assert_eq!(anybody(save).await.status(), 200);
            let versions = anybody(request("GET", &format!("/job/versions?name={name}"), None, "")).await;
            let version = body(&versions)["data"][0]["version"].as_str().unwrap().to_owned();
            stage.versions[n] = version;
            let open = json!({"v": 1, "runs": [{"runId": format!("run-{prefix}"), "job": name, "planTime": NOW, "scheduleTime": NOW,
                "attempt": 1, "worker": "w1", "command": "true", "trigger": "schedule"}]});
            stage.put(format!("{}{:x}/{n:016x}", keys::RUNS, n + 1), open.to_string()).await;
            let record = json!({
                "_id": format!("{name}/1/1"), "jobName": name, "command": "true", "err": "", "output": "said",
                "planTime": 1, "scheduleTime": 1, "startTime": 1, "endTime": 2, "v": 1, "claim": format!("claim-{n}"),
                "status": "succeeded", "exitCode": 0, "worker": "w1", "attempt": 1, "trigger": "schedule",
            });
            run_log.append(&[serde_json::from_value(record).unwrap()]).await.unwrap();
            let secret = stage.token(Role::Admin, prefix, None).await;
            stage.scoped[n] = secret.id().to_string();
        }
        stage
    }

    async fn put(&self, key: String, value: impl Into<Vec<u8>>) {
        let put = Txn { then: vec![Op::put(key.as_str(), value)], ..Txn::default() };
        self.ports.kv.txn(put).await.unwrap();
    }

    async fn token(&self, role: Role, prefix: &str, expires_at: Option<Timestamp>) -> Secret {
        let secret = Secret::random().unwrap();
        let grant = Grant { name: format!("a {}", role.word()), role, prefix: prefix.to_owned(), expires_at };
        let token = Token::new(&secret, grant, "the test".to_owned(), NOW.plus_ms(-1));
        self.put(keys::token(secret.id()), token.encode()).await;
        // That a token is used is written beside the request; here it was written just now.
        let used = common::domain::token::Used::new(NOW).encode();
        self.put(keys::token_used(secret.id()), used).await;
        secret
    }

    async fn revision(&self) -> i64 {
        self.ports.kv.range(Range::key("nothing")).await.unwrap().revision
    }

    async fn send(&self, request: Request) -> (u16, Value) {
        let response = functions::handle_through(&self.gate, &self.ports, request).await;
        (response.status().as_u16(), body(&response))
    }

    async fn post(&self, path: &str, token: &str, json: Value) -> (u16, Value) {
        self.send(with_token(request("POST", path, Some("application/json"), &json.to_string()), token)).await
    }

    async fn get(&self, path: &str, token: &str) -> (u16, Value) {
        self.send(with_token(request("GET", path, None, ""), token)).await
    }
}

fn guarded(ports: &Ports) -> Gate {
    let environment = [("CRON_BOOTSTRAP_TOKEN".to_owned(), BOOTSTRAP.to_owned())];
    let settings: Settings = match config::parse("test", environment.into_iter(), std::iter::empty()).unwrap()
    {
        Invocation::Run(settings) => *settings,
        _ => panic!("no settings"),
    };
    Gate::guarded(Arc::clone(&ports.kv), Arc::clone(&ports.clock), &settings)
}

fn job(name: &str) -> Value {
    json!({"name": name, "command": "true", "cronExpr": "@daily"})
}

fn request(method: &str, path: &str, content_type: Option<&str>, body: &str) -> Request {
    let mut builder = lambda_http::http::Request::builder().method(method).uri(path);
    if let Some(content_type) = content_type {
        builder = builder.header("content-type", content_type);
    }
    let body = if body.is_empty() { Body::Empty } else { Body::Text(body.to_owned()) };
    let request = builder.body(body).unwrap();
    let raw_path = request.uri().path().to_owned();
    request.with_raw_http_path(raw_path)
}

fn with_token(mut request: Request, token: &str) -> Request {
    let value = HeaderValue::from_str(&format!("Bearer {token}")).unwrap();
    request.headers_mut().insert("authorization", value);
    request
}

fn body(response: &Response) -> Value {
    match response.body() {
        Body::Text(text) => serde_json::from_str(text).unwrap_or_default(),
        _ => Value::Null,
    }
}

/// A request of the row, about the jobs, runs or tokens of a prefix; `there` = about one that there is.
fn about(stage: &Stage, method: &str, path: &str, prefix: &str, there: bool) -> Request {
    let name = format!("{prefix}{}", if there { "a" } else { "none" });
    let id = match (there, prefix == OWN) {
        (false, _) => "0123456789ab".to_owned(),
        (true, own) => stage.scoped[usize::from(!own)].clone(),
    };
    let run = if there { format!("{name}/1/1") } else { format!("{name}/2/1") };
    let (query, json) = match path {
        "/job/save" => (String::new(), job(&name)),
        "/job/import" => ("?format=json&apply=true".to_owned(), json!([job(&name)])),
        "/job/log" => (format!("?name={name}"), Value::Null),
        "/job/versions" => (format!("?name={name}"), Value::Null),
        "/job/rollback" => {
            let version = &stage.versions[usize::from(prefix != OWN)];
            (String::new(), json!({"name": name, "version": version}))
        }
        "/calendar/save" => (String::new(), json!({"name": "holidays", "dates": ["2027-01-01"]})),
        "/job/next" => ("?expr=@daily".to_owned(), Value::Null),
        "/run/get" | "/run/output" => (format!("?id={run}"), Value::Null),
        "/fleet/settings" if method == "POST" => (String::new(), json!({"timezone": "Asia/Tokyo"})),
        "/fleet/pause" => (String::new(), json!({"reason": "a test"})),
        "/fleet/resume" => (String::new(), json!({})),
        "/token/create" => (String::new(), json!({"name": "new", "role": "viewer", "prefix": prefix})),
        "/token/revoke" => (String::new(), json!({"id": id})),
        _ if method == "POST" => (String::new(), json!({"name": name})),
        _ => (String::new(), Value::Null),
    };
    let path = path.replace("{file}", "app.js");
    let (content_type, text) = match json {
        Value::Null => (None, String::new()),
        json => (Some("application/json"), json.to_string()),
    };
    request(method, &format!("{path}{query}"), content_type, &text)
}

#[test]
fn the_table_has_every_route() {
    let routed: BTreeSet<(&str, &str)> = ROUTES
        .iter()
        .flat_map(|route| route.methods.iter().map(move |method| (*method, route.path)))
        .filter(|(method, _)| *method != "HEAD")
        .collect();
    let rows: BTreeSet<(&str, &str)> =
        TABLE.iter().map(|row| (row.0, row.1)).filter(|(method, _)| *method != "HEAD").collect();
    assert_eq!(rows, routed);
    // Under Lambda a function is called, whatever the path: its routes must ask for the same.
    for route in &ROUTES {
        let first = ROUTES.iter().find(|other| other.function == route.function).unwrap();
        assert_eq!(route.right, first.right, "{}", route.path);
    }
}

#[tokio::test]
async fn who_shows_no_good_token_gets_nothing() {
    let stage = Stage::new().await;
    let expired = stage.token(Role::Admin, "", Some(NOW)).await;
    let revoked = stage.token(Role::Admin, "", None).await;
    let delete = Txn { then: vec![Op::delete(keys::token(revoked.id()))], ..Txn::default() };
    stage.ports.kv.txn(delete).await.unwrap();
    let good = stage.token(Role::Admin, "", None).await;
    let forged = format!("{}{}", &good.reveal()[..17], &revoked.reveal()[17..]);
    let unsigned = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIiwiZmxlZXRjcm9uX3JvbGUiOiJhZG1pbiJ9.";
    let shown =
        [None, Some(expired.reveal()), Some(revoked.reveal()), Some(&*forged), Some(unsigned), Some("x")];
    let before = stage.revision().await;
    let mut said: BTreeSet<String> = BTreeSet::new();
    for (method, path, least, _) in TABLE {
        for token in shown {
            // A gate of its own, so that it is not for their number that they are refused.
            let gate = guarded(&stage.ports);
            let mut request = about(&stage, method, path, OWN, true);
            if let Some(token) = token {
                request = with_token(request, token);
            }
            let response = functions::handle_through(&gate, &stage.ports, request).await;
            let expected = if least.is_some() { 401 } else { 200 };
            assert_eq!(response.status().as_u16(), expected, "{method} {path} with {token:?}");
            if least.is_some() {
                let challenge = response.headers()["www-authenticate"].to_str().unwrap();
                assert!(challenge.starts_with("Bearer "), "{challenge}");
                if method != "HEAD" && token.is_some() {
                    assert_eq!(body(&response)["errno"], -2);
                    said.insert(body(&response).to_string());
                }
            }
        }
        // Without a caller beside it no handler serves a request, also where no gate was asked.
        let bare = functions::handle(&stage.ports, about(&stage, method, path, OWN, true)).await;
        assert_eq!(bare.status().as_u16(), if least.is_some() { 401 } else { 200 }, "{method} {path}");
    }
    assert_eq!(said.len(), 1, "what is wrong with a token is told: {said:?}");
    let written = stage.revision().await - before;
    assert!(written <= 1, "{written} things were written, and not one note of all this");
}

#[tokio::test]
async fn every_role_may_what_the_table_says_and_no_more() {
    for (method, path, least, about_what) in TABLE {
        for role in Role::ALL {
            for scoped in [false, true] {
                for own in [true, false] {
                    check(method, path, least, about_what, role, scoped, own).await;
                }
            }
        }
    }
}

async fn check(
    method: &str,
    path: &str,
    least: Option<Role>,
    about_what: About,
    role: Role,
    scoped: bool,
    own: bool,
) {
    let stage = Stage::new().await;
    let token = stage.token(role, if scoped { OWN } else { "" }, None).await;
    let prefix = if own { OWN } else { "other-" };
    let case = format!("{method} {path} as {} scoped {scoped}, own {own}", role.word());
    let before = stage.revision().await;
    let send = async |there| {
        stage.send(with_token(about(&stage, method, path, prefix, there), token.reveal())).await
    };
    let (status, answer) = send(true).await;
    let too_low = least.is_some_and(|least| role < least);
    let foreign = scoped && !own;
    let expected = match about_what {
        _ if too_low => 403,
        About::Fleet if scoped => 403,
        About::Job if foreign => 403,
        About::Run if foreign => 404,
        _ => 200,
    };
    assert_eq!(status, expected, "{case}: {answer}");
    if status != 200 {
        assert_eq!(answer["errno"], if status == 403 { -3 } else { -1 }, "{case}: {answer}");
        assert_eq!(stage.revision().await, before, "{case}: refused, and something was written");
    }
    if foreign {
        // What is another's is not told from what is not there.
        let (status, other) = send(false).await;
        let masked =
            |answer: &Value| answer.to_string().replace("other-a/1/1", "…").replace("other-none/2/1", "…");
        if about_what != About::Jobs {
            assert_eq!((status, masked(&other)), (expected, masked(&answer)), "{case}");
        }
        let text = answer.to_string();
        assert!(about_what == About::Run || !text.contains("other-"), "{case}: {text}");
        if about_what == About::Token {
            assert_eq!(stage.revision().await, before, "{case}: another's token was revoked");
        }
    }
    if about_what == About::Jobs && status == 200 {
        let text = answer.to_string();
        assert!(text.contains(OWN) && (scoped || text.contains("other-")), "{case}: {text}");
        // Asked for by a beginning that is another's, or by all, it is the caller's own or nothing.
        if scoped && path != "/token/list" && path != "/job/running" {
            let asked = stage.get(&format!("{path}?prefix=other-"), token.reveal()).await.1;
            assert!(!asked["data"].to_string().contains("other-"), "{case}: {asked}");
            let all = stage.get(&format!("{path}?limit=1&prefix=t"), token.reveal()).await.1;
            assert!(all["data"].to_string().contains("team-a") && all["next"].is_null(), "{case}: {all}");
        }
    }
}

#[tokio::test]
async fn a_method_that_a_route_does_not_take_is_told_to_callers_only() {
    let stage = Stage::new().await;
    let viewer = stage.token(Role::Viewer, OWN, None).await;
    for method in ["DELETE", "OPTIONS", "PUT"] {
        let bare = stage.send(request(method, "/fleet/pause", None, "")).await;
        assert_eq!(bare.0, 401, "{method}");
        let known = stage.send(with_token(request(method, "/fleet/pause", None, ""), viewer.reveal())).await;
        assert_eq!(known.0, 405, "{method}");
    }
}

#[tokio::test]
async fn one_name_is_checked_and_no_other_is_acted_upon() {
    let stage = Stage::new().await;
    let token = stage.token(Role::Editor, OWN, None).await;
    let form = Some("application/x-www-form-urlencoded");
    let json = Some("application/json");
    let both = r#"job={"name":"team-a","command":"true","cronExpr":"@daily"}&job={"name":"other-b","command":"true","cronExpr":"@daily"}"#;
    let within = r#"{"name":"team-a","name":"other-b","command":"true","cronExpr":"@daily"}"#;
    let list = r#"[{"name":"team-b","command":"true","cronExpr":"@daily"},{"name":"other-b","command":"true","cronExpr":"@daily"}]"#;
    let crontab = "# m h dom mon dow command\n0 0 * * * true\n";
    for (path, content_type, text, status) in [
        ("/job/delete?name=team-a", form, "name=other-a", 403),
        ("/job/delete", form, "name=team-a&name=other-a", 400),
        ("/job/delete", form, "name=other-a&name=team-a", 400),
        ("/job/delete", json, r#"{"name":"team-a","name":"other-a"}"#, 403),
        ("/job/save", form, both, 400),
        ("/job/save", json, within, 403),
        ("/job/save?name=team-a", json, r#"{"name":"other-b","command":"true","cronExpr":"@daily"}"#, 403),
        (
            "/job/save",
            json,
            r#"{"name":"team-b","command":"true","cronExpr":"","after":{"jobs":["other-a"]}}"#,
            403,
        ),
        ("/job/import?format=json&apply=true", json, list, 403),
        ("/job/import?format=json&prefix=other-&apply=true", json, list, 403),
        ("/job/import?prefix=other-&apply=true&prune=true", Some("text/plain"), crontab, 403),
        ("/job/kill", form, "name=other-a&runId=run-other-", 403),
    ] {
        let before = stage.revision().await;
        let (got, answer) =
            stage.send(with_token(request("POST", path, content_type, text), token.reveal())).await;
        assert!(
            got == status || (path.starts_with("/job/save") && got == 400),
            "{path} {text}: {got} {answer}"
        );
        assert_eq!(stage.revision().await, before, "{path} {text}: something was written");
    }
    // What vanished from a file goes only among one's own.
    let label = |name: &str| json!({"name": name, "command": "true", "cronExpr": "@daily", "labels": {"crontab": "x"}});
    for name in ["team-old", "other-old"] {
        stage.put(keys::job(&JobName::parse(name).unwrap()), label(name).to_string()).await;
    }
    let prune = request("POST", "/job/import?format=json&prune=true&apply=true&source=x", json, "[]");
    let (status, answer) = stage.send(with_token(prune, token.reveal())).await;
    assert_eq!(status, 200, "{answer}");
    assert!(!answer.to_string().contains("other-"), "{answer}");
}

#[tokio::test]
async fn a_token_is_taken_from_the_header_alone() {
    let stage = Stage::new().await;
    let token = stage.token(Role::Admin, "", None).await;
    let secret = token.reveal();
    for path in ["access_token", "token", "authorization"].map(|name| format!("/job/list?{name}={secret}")) {
        assert_eq!(stage.send(request("GET", &path, None, "")).await.0, 401, "{path}");
    }
    for header in ["cookie", "x-authorization", "proxy-authorization", "x-forwarded-authorization"] {
        let mut request = request("GET", "/job/list", None, "");
        request.headers_mut().insert(header, HeaderValue::from_str(&format!("Bearer {secret}")).unwrap());
        assert_eq!(stage.send(request).await.0, 401, "{header}");
    }
    let mut twice = with_token(request("GET", "/job/list", None, ""), secret);
    twice.headers_mut().append("authorization", HeaderValue::from_str(&format!("Bearer {secret}")).unwrap());
    assert_eq!(stage.send(twice).await.0, 401);
    let mut forged = request("GET", "/job/list", None, "");
    forged.extensions_mut().insert(Principal::anybody());
    assert_eq!(stage.send(forged).await.0, 401, "only the gate says who calls");
    assert_eq!(stage.get("/job/list", secret).await.0, 200);
}

#[tokio::test]
async fn who_guesses_is_stopped_and_nobody_else_is() {
    let stage = Stage::new().await;
    let (good, other) =
        (stage.token(Role::Viewer, "", None).await, stage.token(Role::Viewer, "", None).await);
    let send = async |token: &str, address: [u8; 4]| {
        let mut request = with_token(request("GET", "/job/list", None, ""), token);
        request.extensions_mut().insert(Peer(IpAddr::from(address)));
        stage.send(request).await.0
    };
    assert_eq!(send(good.reveal(), [192, 0, 2, 1]).await, 200);
    let mut statuses = Vec::new();
    for _ in 0..40 {
        statuses.push(send(Secret::random().unwrap().reveal(), [192, 0, 2, 1]).await);
    }
    let stopped = statuses.iter().position(|status| *status == 429).expect("nobody was stopped");
    assert!(stopped >= 10 && statuses[..stopped].iter().all(|status| *status == 401), "{statuses:?}");
    // Of the same address, a token that is known here goes on; one that is not is not looked at. From elsewhere it is.
    assert_eq!(send(good.reveal(), [192, 0, 2, 1]).await, 200);
    assert_eq!(send(other.reveal(), [192, 0, 2, 1]).await, 429);
    assert_eq!(send(other.reveal(), [192, 0, 2, 2]).await, 200);
}

/// A clock that is moved by hand.
struct MovedClock(AtomicI64);

#[async_trait]
impl Clock for MovedClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_ms(self.0.load(Ordering::Relaxed))
    }

    async fn sleep_until(&self, _deadline: Timestamp) {}
}

#[tokio::test]
async fn refused_tokens_are_one_note_a_minute_however_many_and_whoever_serves() {
    let mut stage = Stage::new().await;
    let admin = stage.token(Role::Admin, "", None).await;
    let clock = Arc::new(MovedClock(AtomicI64::new(NOW.ms())));
    stage.ports.clock = clock.clone();
    // Two processes with one store.
    let gates = [guarded(&stage.ports), guarded(&stage.ports)];
    let refused = async |gate: &Gate, address: [u8; 4]| {
        let token = Secret::random().unwrap();
        let mut request = with_token(request("GET", "/job/list", None, ""), token.reveal());
        request.extensions_mut().insert(Peer(IpAddr::from(address)));
        let response = functions::handle_through(gate, &stage.ports, request).await;
        assert!(matches!(response.status().as_u16(), 401 | 429), "{}", response.status());
    };
    let notes = async || {
        let found = stage.ports.kv.range(Range::prefix(keys::AUDIT)).await.unwrap().pairs;
        let notes = found.iter().map(|pair| serde_json::from_slice::<Value>(&pair.value).unwrap());
        notes.filter(|note| note["action"] == "token_refused").collect::<Vec<Value>>()
    };
    let told =
        |notes: &[Value]| notes.iter().filter_map(|note| note["details"]["count"].as_u64()).sum::<u64>();
    let mut sent = 0;
    for n in 0..30 {
        refused(&gates[0], [192, 0, 2, 1]).await;
        refused(&gates[1], [192, 0, 2, 2 + n]).await;
        sent += 2;
    }
    wait_for("the first note", SOON, async || (notes().await.len() == 1).then_some(())).await;
    // As the minutes pass, what waits in each process is told; and in none of them there are two notes.
    let mut minutes = 1;
    while told(&notes().await) < sent {
        assert!(minutes < 20, "of {sent} refused tokens the audit tells {:?}", notes().await);
        let before = notes().await.len();
        clock.0.fetch_add(60_000, Ordering::Relaxed);
        minutes += 1;
        refused(&gates[minutes % 2], [192, 0, 2, 1]).await;
        sent += 1;
        wait_for("a note", SOON, async || (notes().await.len() > before).then_some(())).await;
        assert_eq!(notes().await.len(), minutes, "{:?}", notes().await);
    }
    let addresses: BTreeSet<String> = notes()
        .await
        .iter()
        .filter_map(|note| note["details"]["addresses"].as_object())
        .flat_map(|addresses| addresses.keys().cloned())
        .collect();
    assert!(addresses.contains("192.0.2.1") && addresses.contains("others"), "{addresses:?}");
    // What nobody was let in for stands in the audit, by nobody.
    let entries = stage.get("/audit/list", admin.reveal()).await.1["data"].clone();
    let entry = entries.as_array().unwrap().iter().find(|entry| entry["action"] == "token_refused").unwrap();
    assert_eq!((&entry["thing"], &entry["by"]), (&json!("token"), &Value::Null), "{entry}");
}

#[tokio::test]
async fn the_bootstrap_token_makes_the_first_admin_token_and_nothing_else() {
    let stage = Stage::new().await;
    let admin = json!({"name": "first", "role": "admin"});
    for (path, json) in [("/job/save", job("team-b")), ("/token/revoke", json!({"id": stage.scoped[0]}))] {
        assert_eq!(stage.post(path, BOOTSTRAP, json).await.0, 401, "{path}");
    }
    assert_eq!(stage.get("/token/list", BOOTSTRAP).await.0, 401);
    for less in [json!({"name": "x", "role": "viewer"}), json!({"name": "x", "role": "admin", "prefix": "a"})]
    {
        assert_eq!(stage.post("/token/create", BOOTSTRAP, less.clone()).await.0, 403, "{less}");
    }
    // At the same time, by two functions: one of them is the first.
    let others = guarded(&stage.ports);
    let send = |gate| {
        let request = request("POST", "/token/create", Some("application/json"), &admin.to_string());
        functions::handle_through(gate, &stage.ports, with_token(request, BOOTSTRAP))
    };
    let (a, b) = tokio::join!(send(&stage.gate), send(&others));
    let statuses = BTreeSet::from([a.status().as_u16(), b.status().as_u16()]);
    assert_eq!(statuses, BTreeSet::from([200, 403]));
    let made = [body(&a), body(&b)].into_iter().find(|answer| answer["errno"] == 0).unwrap();
    assert_eq!(stage.post("/token/create", BOOTSTRAP, admin.clone()).await.0, 403);
    // Once there is no such token any more, it is of use again.
    let token = made["data"]["token"].as_str().unwrap();
    let id = made["data"]["id"].clone();
    let (status, answer) = stage.post("/token/revoke", token, json!({"id": id})).await;
    assert_eq!((status, answer["msg"].to_string().contains("last=true")), (409, true), "{answer}");
    assert_eq!(stage.post("/token/revoke", token, json!({"id": id, "last": "true"})).await.0, 200);
    assert_eq!(stage.post("/token/create", BOOTSTRAP, admin).await.0, 200);
}

#[tokio::test]
async fn nobody_makes_a_token_that_is_worth_more_than_their_own() {
    let stage = Stage::new().await;
    let (whole, team) = (stage.token(Role::Admin, "", None).await, stage.token(Role::Admin, OWN, None).await);
    for (whose, role, prefix, status) in [
        (&whole, "admin", "", 200),
        (&whole, "viewer", "any", 200),
        (&team, "admin", "team-x-", 200),
        (&team, "admin", "team-", 200),
        (&team, "viewer", "", 403),
        (&team, "viewer", "team", 403),
        (&team, "viewer", "other-", 403),
        (&whole, "owner", "", 400),
        (&whole, "Admin", "", 400),
    ] {
        let wish = json!({"name": "new", "role": role, "prefix": prefix});
        let (got, answer) = stage.post("/token/create", whose.reveal(), wish.clone()).await;
        assert_eq!(got, status, "{wish}: {answer}");
    }
    for days in ["0", "-1", "3651", "1.5", "x"] {
        let wish = json!({"name": "new", "role": "viewer", "days": days});
        assert_eq!(stage.post("/token/create", whole.reveal(), wish).await.0, 400, "{days}");
    }
}

#[tokio::test]
async fn a_token_is_shown_once_and_is_nowhere_else() {
    let stage = Stage::new().await;
    let admin = stage.token(Role::Admin, "", None).await;
    let wish = json!({"name": "ci", "role": "editor", "prefix": OWN, "days": "7"});
    let (_, made) = stage.post("/token/create", admin.reveal(), wish).await;
    let token = made["data"]["token"].as_str().unwrap();
    assert_eq!(made["data"]["expiresAt"], NOW.plus_ms(7 * 86_400_000).ms());
    assert_eq!(stage.post("/job/save", token, job("team-new")).await.0, 200);
    let who = stage.get("/token/self", token).await.1["data"].clone();
    assert_eq!(
        (&who["role"], &who["prefix"], &who["means"]),
        (&json!("editor"), &json!(OWN), &json!("token"))
    );
    assert_eq!(who["expiresAt"], made["data"]["expiresAt"], "until when it is good");
    assert_eq!(stage.get("/token/self", admin.reveal()).await.1["data"]["expiresAt"], Value::Null);
    let listed = stage.get("/token/list", admin.reveal()).await.1;
    let all = stage.ports.kv.range(Range::prefix("")).await.unwrap().pairs;
    let stored: String =
        all.iter().map(|pair| format!("{} {}", pair.key, String::from_utf8_lossy(&pair.value))).collect();
    assert!(listed.to_string().contains("a admin") && listed.to_string().contains("\"ci\""), "{listed}");
    for (what, text) in [("list", listed.to_string()), ("store", stored)] {
        assert!(!text.contains(&token[17..]), "the {what} tells the token");
    }
    // Its answer would be kept under a key, and with it the token.
    let mut keyed =
        request("POST", "/token/create", Some("application/json"), r#"{"name":"x","role":"viewer"}"#);
    keyed.headers_mut().insert("idempotency-key", HeaderValue::from_static("k"));
    assert_eq!(stage.send(with_token(keyed, admin.reveal())).await.0, 400);
}

#[tokio::test]
async fn an_answer_kept_for_one_caller_is_not_told_to_another() {
    let stage = Stage::new().await;
    let (whole, team) =
        (stage.token(Role::Editor, "", None).await, stage.token(Role::Editor, OWN, None).await);
    let keyed = |token: &Secret| {
        let mut request = request("POST", "/job/delete", Some("application/json"), r#"{"name":"team-a"}"#);
        request.headers_mut().insert("idempotency-key", HeaderValue::from_static("same"));
        with_token(request, token.reveal())
    };
    assert_eq!(stage.send(keyed(&whole)).await.1["data"]["name"], "team-a");
    assert_eq!(
        stage.send(keyed(&whole)).await.1["data"]["name"],
        "team-a",
        "sent again it is the first answer"
    );
    assert_eq!(stage.send(keyed(&team)).await.1["data"], Value::Null, "another's answer was told");
}
