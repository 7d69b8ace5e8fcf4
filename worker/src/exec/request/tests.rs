//! Requests are really sent here, to servers of this machine.

use std::sync::Mutex;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response as Answer;
use common::clock::SystemClock;
use common::domain::job::{Job, JobName};
use common::networks::Networks;
use serde_json::{Value, json};

use super::super::process::Running;
use super::super::process::tests::open;
use super::super::secrets::tests::Scene;
use super::*;

/// What a server was sent: method, path, headers, body.
type Sent = std::sync::Arc<Mutex<Vec<(String, String, HeaderMap, String)>>>;

/// A server that answers as the path says.
struct Server {
    port: u16,
    sent: Sent,
}

impl Server {
    async fn start() -> Self {
        let sent = Sent::default();
        let routes = Router::new().fallback(serve).with_state(Sent::clone(&sent));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Self { port, sent }
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// What came since it was asked the last time, without headers.
    fn came(&self) -> Vec<String> {
        let sent = std::mem::take(&mut *self.sent.lock().unwrap());
        sent.into_iter()
            .map(|(method, path, _, body)| format!("{method} {path} {body}").trim().to_owned())
            .collect()
    }
}

/// `/status/{code}`, `/to/{code}/{where, percent-encoded}`, `/say/{text}`, `/large/{bytes}`, `/endless`, `/silent`.
async fn serve(State(sent): State<Sent>, request: Request) -> Answer {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let path = parts.uri.to_string();
    sent.lock().unwrap().push((
        parts.method.to_string(),
        path.clone(),
        parts.headers,
        String::from_utf8(body.to_vec()).unwrap(),
    ));
    let answer = Answer::builder();
    let words: Vec<&str> = path.split('/').skip(1).collect();
    match words.as_slice() {
        ["status", code] => answer.status(code.parse::<u16>().unwrap()).body(Body::empty()),
        ["to", code, location] => {
            let location =
                location.replace("%2F", "/").replace("%3A", ":").replace("%5B", "[").replace("%5D", "]");
            answer.status(code.parse::<u16>().unwrap()).header("location", location).body(Body::from("moved"))
        }
        ["echo", name] => {
            answer.body(Body::from(sent.lock().unwrap().last().unwrap().2[*name].as_bytes().to_vec()))
        }
        ["say", text] => answer.body(Body::from((*text).to_owned())),
        ["large", bytes] => answer.body(Body::from(vec![b'x'; bytes.parse().unwrap()])),
        ["endless"] => {
            let first = futures::stream::iter([Ok::<_, std::io::Error>("first\n")]);
            answer.body(Body::from_stream(futures::StreamExt::chain(first, futures::stream::pending())))
        }
        ["silent"] => std::future::pending().await,
        _ => answer.status(404).body(Body::empty()),
    }
    .unwrap()
}

fn outbound() -> Outbound {
    let allowed = common::networks::parse("127.0.0.1").unwrap();
    Outbound::new(Networks { denied: Vec::new(), allowed })
}

/// What a job does with these options.
fn work(options: Value) -> Work {
    let mut job = json!({"name": "a", "cronExpr": "@daily"});
    job.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
    let job = Job::from_submitted(job, &common::domain::settings::FleetSettings::default()).unwrap().job;
    Work::new(&job.command, &job.options.execution)
}

/// A request that goes.
struct Going {
    running: Running,
    ending: tokio::task::JoinHandle<Ending>,
}

impl Going {
    fn begin(open: OpenRun, work: Work) -> Self {
        Self::begin_with(outbound(), open, work)
    }

    fn begin_with(outbound: Outbound, open: OpenRun, work: Work) -> Self {
        let (running, asked) = Running::new(&work);
        let captured = running.captured.clone();
        let ending = tokio::spawn(async move {
            run(&outbound, &open, &work, work.request().unwrap(), &captured, &SystemClock, asked).await
        });
        Self { running, ending }
    }

    async fn has_printed(&self, text: &str) {
        for _ in 0..1000 {
            if self.running.captured.kept().text.contains(text) {
                return;
            }
            clock::sleep(Duration::from_millis(10)).await;
        }
        panic!("it has printed {:?}", self.running.captured.kept());
    }
}

async fn end_of(options: Value) -> Ending {
    Going::begin(open(), work(options)).ending.await.unwrap()
}

fn told(end: &Ending) -> (Status, &str, Option<u16>) {
    (end.status, end.err.as_str(), end.http_status)
}

#[tokio::test]
async fn the_request_is_what_the_job_says_and_names_its_run() {
    let server = Server::start().await;
    let http = json!({"method": "PUT", "url": server.url("/say/hello?a=b"), "headers": {"X-Token": "t", "User-Agent": "me"}, "body": "é\n"});
    let run = OpenRun { job: JobName::parse("每日 a%").unwrap(), attempt: 2, ..open() };
    let end = Going::begin(run, work(json!({ "http": http }))).ending.await.unwrap();
    assert_eq!(told(&end), (Status::Succeeded, "", Some(200)));
    assert_eq!((end.output.as_str(), end.output_bytes), ("HTTP/1.1 200 OK\nhello?a=b", 25));
    assert_eq!((end.exit_code, end.signal), (None, None));
    assert_eq!(end.command, format!("PUT {}", server.url("/say/hello?a=b")));
    let sent = std::mem::take(&mut *server.sent.lock().unwrap());
    let [(method, path, headers, body)] = sent.as_slice() else { panic!("{sent:?}") };
    assert_eq!((method.as_str(), path.as_str(), body.as_str()), ("PUT", "/say/hello?a=b", "é\n"));
    for (name, value) in [
        ("x-token", "t"),
        ("user-agent", "me"),
        ("idempotency-key", "%E6%AF%8F%E6%97%A5%20a%25/1700000000000/2"),
        ("fleetcron-job", "%E6%AF%8F%E6%97%A5%20a%25"),
        ("fleetcron-plan-time", "1700000000000"),
        ("fleetcron-attempt", "2"),
        ("fleetcron-run-id", "abc-7"),
        ("host", &format!("127.0.0.1:{}", server.port)),
    ] {
        assert_eq!(headers.get_all(name).iter().collect::<Vec<_>>(), [value], "{name}");
    }
}

#[tokio::test]
async fn the_request_goes_on_with_the_trace_unless_the_job_has_its_own() {
    let server = Server::start().await;
    let asked = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let own = "00-11111111111111111111111111111111-2222222222222222-00";
    for (headers, expected) in [(json!({}), asked), (json!({"Traceparent": own}), own)] {
        let run = OpenRun { trace: common::domain::trace::TraceContext::parse(asked), ..open() };
        let http = json!({"url": server.url("/say/x"), "headers": headers});
        assert_eq!(Going::begin(run, work(json!({ "http": http }))).ending.await.unwrap().err, "");
        let sent = std::mem::take(&mut *server.sent.lock().unwrap());
        let [(_, _, headers, _)] = sent.as_slice() else { panic!("{sent:?}") };
        assert_eq!(headers.get_all("traceparent").iter().collect::<Vec<_>>(), [expected]);
    }
}

#[tokio::test]
async fn an_answer_is_a_success_when_it_is_what_the_job_expects() {
    let server = Server::start().await;
    for (path, expect, status, err, code) in [
        ("/status/204", json!({}), Status::Succeeded, "", 204),
        ("/status/500", json!({}), Status::Failed, "status 500 Internal Server Error, not 2xx", 500),
        ("/status/299", json!({"status": [200, "3xx"]}), Status::Failed, "status 299, not 200 or 3xx", 299),
        ("/status/304", json!({"status": [200, "3xx"]}), Status::Succeeded, "", 304),
        ("/to/302/x", json!({}), Status::Failed, "status 302 Found, not 2xx", 302),
        ("/say/done", json!({"body": "one"}), Status::Succeeded, "", 200),
        ("/say/done", json!({"body": "two"}), Status::Failed, "\"two\" is not in the body", 200),
        ("/say/done", json!({"body": "/^d.*e$/"}), Status::Succeeded, "", 200),
        ("/say/done", json!({"body": "/o$/"}), Status::Failed, "/o$/ is not in the body", 200),
        (
            "/large/300000",
            json!({"body": "y"}),
            Status::Failed,
            "\"y\" is not in the first 262144 bytes of the body",
            200,
        ),
        (
            "/status/500",
            json!({"body": "two"}),
            Status::Failed,
            "status 500 Internal Server Error, not 2xx",
            500,
        ),
    ] {
        let end = end_of(json!({"http": {"url": server.url(path), "expect": expect}})).await;
        assert_eq!(told(&end), (status, err, Some(code)), "{path} {expect}");
    }
    let end = end_of(json!({"http": {"url": server.url("/large/3000000")}, "outputLimitBytes": 20})).await;
    assert_eq!((end.status, end.output_truncated, end.output_bytes), (Status::Succeeded, true, 3_000_016));
    let end = end_of(json!({"http": {"url": server.url("/large/70000000")}})).await;
    assert_eq!(
        (end.status, end.err.contains("more than 67108864 bytes")),
        (Status::Failed, true),
        "{}",
        end.err
    );
}

#[tokio::test]
async fn redirects_are_followed_as_far_as_the_job_allows() {
    let server = Server::start().await;
    let end_of_post = async |path: &str, redirects: u8| {
        let http =
            json!({"method": "POST", "url": server.url(path), "body": "b", "followRedirects": redirects});
        end_of(json!({ "http": http })).await
    };
    for (code, then) in [
        (301, "GET /say/x"),
        (302, "GET /say/x"),
        (303, "GET /say/x"),
        (307, "POST /say/x b"),
        (308, "POST /say/x b"),
    ] {
        let path = format!("/to/{code}/%2Fsay%2Fx");
        let end = end_of_post(&path, 1).await;
        assert_eq!(told(&end), (Status::Succeeded, "", Some(200)), "{code}");
        assert_eq!(server.came(), [format!("POST {path} b"), then.to_owned()]);
        let location = format!("\nLocation: {}\nHTTP/1.1 200 OK\nx", server.url("/say/x"));
        assert!(
            end.output.starts_with(&format!("HTTP/1.1 {code} ")) && end.output.ends_with(&location),
            "{}",
            end.output
        );
    }
    let end = end_of_post("/to/307/..%2F307%2Fx", 3).await; // leads to itself
    let err = format!("more than 3 redirects, the last one to {}", server.url("/to/307/x"));
    assert_eq!(
        (end.status, end.http_status, server.came().len()),
        (Status::Failed, Some(307), 4),
        "{}",
        end.err
    );
    assert_eq!(end.err, err);
}

#[tokio::test]
async fn no_redirect_leads_to_where_no_request_may_be_sent() {
    let server = Server::start().await;
    let encoded =
        |url: &str| url.replace(':', "%3A").replace('/', "%2F").replace('[', "%5B").replace(']', "%5D");
    for (to, says) in [
        (format!("http://127.0.0.2:{}/say/x", server.port), "127.0.0.2 is not called: loopback"),
        ("http://169.254.169.254/latest/meta-data/".to_owned(), "169.254.169.254 is not called"),
        ("http://[::ffff:169.254.169.254]/".to_owned(), "is not called"),
        ("//0/".to_owned(), "0.0.0.0 is not called: unspecified"),
        ("file:///etc/passwd".to_owned(), "\"file\" is not called"),
        (format!("http://u:p@127.0.0.1:{}/say/x", server.port), "user or a password"),
    ] {
        let url = server.url(&format!("/to/302/{}", encoded(&to)));
        let end = end_of(json!({"http": {"url": url, "followRedirects": 5}})).await;
        assert_eq!((end.status, end.http_status), (Status::Failed, Some(302)), "{to}");
        assert!(end.err.contains(says), "{to}: {:?} does not say {says:?}", end.err);
        assert_eq!(server.came().len(), 1, "{to}");
    }
    let straight = end_of(json!({"http": {"url": format!("http://127.0.0.2:{}/say/x", server.port)}})).await;
    assert_eq!(told(&straight), (Status::Failed, "127.0.0.2 is not called: loopback", None));
    assert_eq!(server.came(), [""; 0]);
}

#[tokio::test]
async fn a_redirect_to_another_host_takes_no_secrets_along() {
    let server = Server::start().await;
    let http = |path: &str| {
        json!({"http": {"url": server.url(path), "followRedirects": 1,
            "headers": {"Authorization": "Bearer t", "X-Token": "t", "Cookie": "c", "Accept": "text/plain"}}})
    };
    let to = |host: &str| format!("/to/302/http%3A%2F%2F{host}%3A{}%2Fsay%2Fx", server.port);
    for (host, secrets) in [("127.0.0.1", true), ("localhost", false)] {
        assert_eq!(end_of(http(&to(host))).await.err, "");
        let sent = std::mem::take(&mut *server.sent.lock().unwrap());
        let [_, (_, path, headers, _)] = sent.as_slice() else { panic!("{sent:?}") };
        assert_eq!((path.as_str(), headers["accept"].to_str().unwrap()), ("/say/x", "text/plain"), "{host}");
        assert!(headers.contains_key("idempotency-key") && headers.contains_key("user-agent"), "{host}");
        for secret in ["authorization", "x-token", "cookie"] {
            assert_eq!(headers.contains_key(secret), secrets, "{secret} at {host}");
        }
    }
    let own = Hop::first(&open(), work(http("/")).request().unwrap(), &Resolved::default(), None).unwrap();
    let from_https = Hop { url: Url::parse("https://a/").unwrap(), ..own };
    let why = from_https.next(StatusCode::FOUND, Url::parse("http://a/").unwrap()).err().unwrap();
    assert_eq!(why, "the redirect to http://a/ is not followed: it leaves https");
}

#[tokio::test]
async fn a_request_that_takes_too_long_or_is_killed_ends_and_keeps_what_came() {
    let server = Server::start().await;
    for (path, err, code) in [
        ("/silent", "no answer (timed out after 1 s)", None),
        ("/endless", "the answer did not end (timed out after 1 s)", Some(200)),
    ] {
        let end = end_of(json!({"http": {"url": server.url(path)}, "timeoutSeconds": 1})).await;
        assert_eq!(told(&end), (Status::TimedOut, err, code));
        let printed = if code.is_some() { "HTTP/1.1 200 OK\nfirst\n" } else { "" };
        assert_eq!(end.output, printed);
    }
    for how in [Kill::Gracefully, Kill::AtOnce] {
        let going = Going::begin(open(), work(json!({"http": {"url": server.url("/endless")}})));
        going.has_printed("first\n").await; // while it goes
        going.running.kill(how);
        let end = going.ending.await.unwrap();
        assert_eq!(told(&end), (Status::Killed, "request killed", Some(200)), "{how:?}");
        assert_eq!(end.output, "HTTP/1.1 200 OK\nfirst\n");
    }
}

#[tokio::test]
async fn what_cannot_be_sent_says_why() {
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let end = end_of(json!({"http": {"url": format!("http://127.0.0.1:{free}/")}})).await;
    assert_eq!((end.status, end.http_status), (Status::Failed, None));
    assert!(end.err.contains("Connection refused") && !end.err.contains("127.0.0.1"), "{}", end.err);
    let end = end_of(json!({"http": {"url": "http://a.invalid/"}})).await;
    assert!(end.err.contains("dns error"), "{}", end.err);
    // No certificate, no request.
    let server = Server::start().await;
    let end = end_of(json!({"http": {"url": server.url("/say/x").replace("http:", "https:")}})).await;
    assert_eq!((end.status, server.came().len()), (Status::Failed, 0), "{}", end.err);
    let env = serde_json::from_value(json!({"A": "b"})).unwrap();
    let with_env = OpenRun { env: Some(std::sync::Arc::new(env)), ..open() };
    let end =
        Going::begin(with_env, work(json!({"http": {"url": server.url("/say/x")}}))).ending.await.unwrap();
    assert_eq!((end.err.as_str(), server.came().len()), (NO_VARIABLES, 0));
}

#[tokio::test]
async fn a_request_has_its_secrets_and_its_record_and_other_servers_do_not() {
    let (server, other) = (Server::start().await, Server::start().await);
    let scene = Scene::new(&[("token", "s3cret-token\n"), ("lines", "two-lines\nof-a-secret")]);
    let end_of = async |http: Value| {
        let outbound = outbound().with(scene.supplies());
        Going::begin_with(outbound, open(), work(json!({ "http": http }))).ending.await.unwrap()
    };
    let headers =
        json!({"X-Token": "Bearer secret:token", "User-Agent": "secret:token", "Accept": "text/plain"});
    let end = end_of(json!({"url": server.url("/echo/x-token"), "headers": headers})).await;
    assert_eq!(
        (told(&end).0, end.output.as_str()),
        (Status::Succeeded, "HTTP/1.1 200 OK\nBearer [secret:token]")
    );
    let sent = server.sent.lock().unwrap().pop().unwrap();
    assert_eq!([&sent.2["x-token"], &sent.2["user-agent"]], ["Bearer s3cret-token", "s3cret-token"]);

    // Led elsewhere, not even a harmless header brings a secret there.
    let away = format!("/to/302/{}", other.url("/say/ok").replace('/', "%2F").replace(':', "%3A"));
    let end = end_of(json!({"url": server.url(&away), "headers": headers, "followRedirects": 1})).await;
    assert_eq!(told(&end).0, Status::Succeeded, "{}", end.err);
    let sent = other.sent.lock().unwrap().pop().unwrap();
    assert!(!format!("{:?}", sent.2).contains("s3cret") && sent.2["accept"] == "text/plain", "{sent:?}");

    // A server that says it in an address.
    let again = server.url("/to/302/s3cret-token");
    let end = end_of(json!({"url": again, "headers": headers, "followRedirects": 1})).await;
    assert!(end.err.ends_with("/to/302/[secret:token]") && !end.output.contains("s3cret"), "{end:?}");

    for (name, why) in
        [("lines", "a header cannot have it"), ("none", "is not in this worker's CRON_SECRETS_FILE")]
    {
        let end =
            end_of(json!({"url": server.url("/say/x"), "headers": {"A": format!("secret:{name}")}})).await;
        assert_eq!(end.status, Status::Failed);
        assert!(end.err.starts_with(&format!("secret:{name}")) && end.err.contains(why), "{}", end.err);
    }
}
