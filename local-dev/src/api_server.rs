//! Serves the API's handlers over HTTP or HTTPS, in this process: what API Gateway and Lambda do elsewhere.

use std::convert::Infallible;
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use common::api::errno::Kind;
use common::clock;
use common::traces::Tracer;
use functions::Ports;
use functions::access::Gate;
use functions::http::{BODY_BYTES_MAX, Response, refuse};
use functions::invocation::Invocation;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{HOST, HeaderValue, STRICT_TRANSPORT_SECURITY};
use hyper::http::request::Parts;
use hyper::http::uri::Authority;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use lambda_http::{Body, RequestExt as _};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use crate::guests::{Guest, Guests};
use crate::listening::Rules;
use crate::tls::Tls;

/// Most connections at a time; further ones wait in the listener's queue. A browser opens six.
const CONNECTIONS_MAX: usize = 512;
/// Most connections of one address, where addresses tell callers apart: an office behind one address has room, and nobody takes them all.
const CONNECTIONS_EACH_MAX: usize = CONNECTIONS_MAX / 4;
/// A request's head must be there so long after the connection is open, or free for the next request.
const HEAD_MAX: Duration = Duration::from_secs(15);
/// Longest head of a request, in bytes.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Most headers of a request.
const HEADERS_MAX: usize = 100;
/// A request's body must be there so long after its head.
const BODY_MAX: Duration = Duration::from_secs(15);
/// Of a body over the limit so much is read and thrown away: a client that is cut off while it sends does not see the answer.
const BODY_BYTES_DRAINED: usize = 32 * BODY_BYTES_MAX;
/// A connection that is this old ends after its current request: somebody may be holding it open by reading slowly.
const CONNECTION_MAX: Duration = Duration::from_secs(600);
/// Time that requests have to end in when the server stops: the handlers' own limit, and a little.
const GOODBYE_MAX: Duration = Duration::from_secs(12);
/// Pause after the machine refused us a connection: it is out of files, and asking at once again would only keep it busy.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The answer to a request that was sent to some other host.
const NOT_OURS: &str = "this server is for its own machine, and the request names another host: open it as http://localhost or \
                        http://127.0.0.1, with its port; a proxy in front of it has to send that as Host, too, or, where callers \
                        show tokens (CRON_AUTH=required), be named by CRON_BEHIND_PROXY=1";

/// For so long, in seconds, browsers come by HTTPS alone: a year, renewed with every answer. Other hosts of the domain are none of our business.
const HTTPS_ONLY: HeaderValue = HeaderValue::from_static("max-age=31536000");

/// By what rules, behind which gate, and with which certificate, the API is served.
pub struct Door {
    /// How callers are treated.
    pub rules: Rules,
    /// Says who they are, as the rules have it.
    pub gate: Gate,
    /// `None` = plain HTTP.
    pub tls: Option<Tls>,
    /// What keeps the traces of requests.
    pub tracer: Tracer,
}

/// What a connection needs.
#[derive(Clone)]
struct Shared {
    ports: Ports,
    door: Arc<Door>,
    stopping: watch::Receiver<bool>,
}

/// Serves all routes on `listener` until `shutdown` is done; then lets the requests that are being served end.
///
/// # Errors
/// When the listener has no address: it is not one.
pub async fn serve(
    listener: TcpListener,
    ports: Ports,
    door: Door,
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let address = listener.local_addr()?;
    let (stop, stopping) = watch::channel(false);
    let free = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let guests = Guests::new(if door.rules.callers_apart { CONNECTIONS_EACH_MAX } else { CONNECTIONS_MAX });
    let mut connections = JoinSet::new();
    let shared = Shared { ports, door: Arc::new(door), stopping };
    let door = Arc::clone(&shared.door);
    let clock = Arc::clone(&shared.ports.clock);
    let following = async {
        match &door.tls {
            Some(tls) => tls.follow(&*clock).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(shutdown, following);
    loop {
        // The ended ones are reaped here, so that the set stays as small as the semaphore.
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            never = &mut following => match never {},
            accepted = accept(&listener, &free, &guests) => accepted,
        };
        let Some(Accepted { stream, peer, permit, guest }) = accepted else { continue };
        let shared = shared.clone();
        connections.spawn(async move {
            connection(stream, peer, shared).await;
            drop((permit, guest));
        });
    }
    drop(listener);
    tracing::debug!(%address, "the API stops");
    stop.send_replace(true);
    let all = async { while connections.join_next().await.is_some() {} };
    if let Err(elapsed) = clock::timeout(GOODBYE_MAX, all).await {
        tracing::warn!(%elapsed, "requests were cut off");
    }
    Ok(())
}

/// A connection, and the room that it takes.
struct Accepted {
    stream: TcpStream,
    peer: IpAddr,
    permit: OwnedSemaphorePermit,
    guest: Guest,
}

async fn accept(listener: &TcpListener, free: &Arc<Semaphore>, guests: &Arc<Guests>) -> Option<Accepted> {
    let permit = Arc::clone(free).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, peer)) => {
            let peer = peer.ip();
            let guest = guests.enter(peer);
            if guest.is_none() {
                tracing::debug!(%peer, "too many connections of one address: this one is closed");
            }
            Some(Accepted { stream, peer, permit, guest: guest? })
        }
        Err(error) => {
            tracing::warn!(%error, "no connection could be accepted");
            clock::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

async fn connection(stream: TcpStream, peer: IpAddr, shared: Shared) {
    // An answer is one small write; waiting for more to send with it only delays it.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "connection without TCP_NODELAY");
    }
    let Some(tls) = &shared.door.tls else { return requests(stream, peer, &shared).await };
    let accepted = tokio::select! {
        accepted = tls.accept(stream) => accepted,
        () = stopped(shared.stopping.clone()) => return,
    };
    match accepted {
        Ok(stream) => requests(stream, peer, &shared).await,
        // A scanner, a client that does not trust the certificate, plain HTTP: nothing to do about it.
        Err(error) => tracing::debug!(%peer, %error, "no TLS"),
    }
}

/// Serves the requests of one connection, one after another.
async fn requests(stream: impl AsyncRead + AsyncWrite + Unpin, peer: IpAddr, shared: &Shared) {
    let service = service_fn(|request| respond(shared, peer, request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = stopped(shared.stopping.clone()) => goodbye(connection).await,
        () = clock::sleep(CONNECTION_MAX) => goodbye(connection).await,
    };
    if let Err(error) = ended {
        // A client that goes away, or is no HTTP client: nothing to do about it.
        tracing::debug!(%error, "connection ended");
    }
}

/// Waits until the server stops, or is gone, which is the same.
async fn stopped(mut stopping: watch::Receiver<bool>) {
    let _stopped_or_gone = stopping.wait_for(|stop| *stop).await;
}

/// Lets the current request end, and then the connection.
async fn goodbye<I, S>(
    mut connection: std::pin::Pin<&mut http1::Connection<TokioIo<I>, S>>,
) -> hyper::Result<()>
where
    I: AsyncRead + AsyncWrite + Unpin,
    S: hyper::service::HttpService<Incoming, ResBody = Full<Bytes>>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    connection.as_mut().graceful_shutdown();
    clock::timeout(GOODBYE_MAX, connection).await.unwrap_or(Ok(()))
}

async fn respond(
    shared: &Shared,
    peer: IpAddr,
    request: hyper::Request<Incoming>,
) -> Result<hyper::Response<Full<Bytes>>, Infallible> {
    let (mut parts, incoming) = request.into_parts();
    let Door { rules, gate, tracer, .. } = &*shared.door;
    parts.extensions.insert(rules.caller(peer, &parts.headers));
    let path = parts.uri.path().to_owned();
    let mut request = lambda_http::Request::from_parts(parts, Body::Empty).with_raw_http_path(path);
    let invocation = Invocation::of_local(&request).traced_by(tracer, &request, false);
    invocation.name(&mut request);
    let answered = async {
        let (parts, _) = request.into_parts();
        match clock::timeout(BODY_MAX, collect(incoming)).await {
            Ok(Ok(Some(_))) if rules.own_names_only && !is_ours(&parts) => refuse(Kind::Forbidden, NOT_OURS),
            Ok(Ok(Some(bytes))) => {
                let request = lambda_http::Request::from_parts(parts, body(bytes));
                functions::handle_through(gate, &shared.ports, request).await
            }
            Ok(Ok(None)) => {
                refuse(Kind::TooLarge, format!("the body is too large: shorten it to {BODY_BYTES_MAX} bytes"))
            }
            Ok(Err(error)) => refuse(Kind::BadRequest, format!("the body did not arrive whole: {error}")),
            Err(elapsed) => refuse(Kind::BadRequest, format!("the body did not arrive in time: {elapsed}")),
        }
    };
    let mut response = sendable(invocation.observe(answered).await);
    if rules.https_only {
        response.headers_mut().insert(STRICT_TRANSPORT_SECURITY, HTTPS_ONLY);
    }
    Ok(response)
}

/// Whether a request was sent to an address or name that only this machine can have. Any other name is somebody's own: whoever owns a domain
/// can let it point to 127.0.0.1 after a browser has loaded a page from it, and that page would then read and change everything here as
/// its own (DNS rebinding). A request that gives no host is not a browser's.
fn is_ours(parts: &Parts) -> bool {
    let sent = parts.headers.get_all(HOST).iter().map(|host| Authority::try_from(host.as_bytes()).ok());
    sent.chain(parts.uri.authority().cloned().map(Some))
        .all(|authority| authority.is_some_and(|authority| is_local(authority.host())))
}

fn is_local(host: &str) -> bool {
    let name = host.trim_end_matches('.').to_ascii_lowercase();
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    // 0.0.0.0 leads here too, but browsers do not call it local: they leave away what tells a page of another site.
    address.map_or(name == "localhost" || name.ends_with(".localhost"), |address| !address.is_unspecified())
}

/// Reads the body; `None` when it is over the limit.
async fn collect(mut incoming: Incoming) -> hyper::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    let mut length = 0;
    while let Some(frame) = incoming.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        length += data.len();
        if length > BODY_BYTES_DRAINED {
            break;
        }
        if length <= BODY_BYTES_MAX {
            bytes.extend_from_slice(&data);
        }
    }
    Ok((length <= BODY_BYTES_MAX).then_some(bytes))
}

fn body(bytes: Vec<u8>) -> Body {
    if bytes.is_empty() { Body::Empty } else { Body::Binary(bytes) }
}

fn sendable(response: Response) -> hyper::Response<Full<Bytes>> {
    response.map(|body| {
        Full::new(match body {
            Body::Text(text) => text.into(),
            Body::Binary(bytes) => bytes.into(),
            // `Body` may grow; the handlers answer with nothing else.
            _ => Bytes::new(),
        })
    })
}

#[cfg(test)]
mod tests {
    use common::clock::SystemClock;
    use common::kv::embedded::EmbeddedKv;
    use common::run_log::embedded::EmbeddedRunLog;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::oneshot;
    use tokio::task::JoinHandle;

    use super::*;

    impl Door {
        fn open(rules: Rules, tls: Option<Tls>) -> Self {
            Self { rules, gate: Gate::open(), tls, tracer: Tracer::default() }
        }
    }

    struct Server {
        address: std::net::SocketAddr,
        stop: oneshot::Sender<()>,
        served: JoinHandle<anyhow::Result<()>>,
    }

    impl Server {
        async fn start() -> Self {
            Self::behind(Door::open(rules(None, false, false), None)).await
        }

        async fn behind(door: Door) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let ports = Ports {
                kv: Arc::new(EmbeddedKv::in_memory().unwrap()),
                run_log: Arc::new(EmbeddedRunLog::in_memory().unwrap()),
                clock: Arc::new(SystemClock),
            };
            let (stop, stopped) = oneshot::channel();
            let address = listener.local_addr().unwrap();
            let served = tokio::spawn(serve(listener, ports, door, async {
                let _told_or_dropped = stopped.await;
            }));
            Self { address, stop, served }
        }

        /// Sends raw bytes and reads until the server closes the connection.
        async fn talk(&self, sent: &str) -> String {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            stream.write_all(sent.as_bytes()).await.unwrap();
            read_all(stream).await
        }

        async fn post(&self, path: &str, body: &str) -> String {
            let length = body.len();
            let head = format!(
                "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}"
            );
            self.talk(&format!("{head}\r\n\r\n{body}")).await
        }

        async fn get(&self, path: &str) -> String {
            self.talk(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")).await
        }
    }

    fn rules(credentials: Option<bool>, tls: bool, behind_proxy: bool) -> Rules {
        Rules::at(([127, 0, 0, 1], 0).into(), credentials, tls, behind_proxy).unwrap()
    }

    async fn read_all(mut stream: impl AsyncRead + Unpin) -> String {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    fn request_id(answer: &str) -> &str {
        answer.lines().find_map(|line| line.strip_prefix("x-request-id: ")).unwrap_or_default()
    }

    #[tokio::test]
    async fn the_routes_are_served() {
        let server = Server::start().await;
        let job = r#"job={"name":"a+1","command":"true","cronExpr":"@daily"}"#;
        let saved = server.post("/job/save", job).await;
        assert!(saved.starts_with("HTTP/1.1 200 OK\r\n"), "{saved}");
        let listed = server.get("/job/list?prefix=a%201").await;
        assert!(listed.contains("application/json") && listed.contains(r#""name":"a 1""#), "{listed}");
        assert!(server.get("/").await.contains("<!doctype html>"));
        let ids: Vec<&str> = [&saved, &listed].map(|answer| request_id(answer)).to_vec();
        assert!(ids[0].len() == 32 && ids[1].len() == 32 && ids[0] != ids[1], "{ids:?}");
        let missing = server.get("/nothing").await;
        assert!(missing.starts_with("HTTP/1.1 404 ") && missing.contains(r#""errno":-1"#), "{missing}");
        let wrong = server.post("/job/list", "").await;
        assert!(wrong.starts_with("HTTP/1.1 405 ") && wrong.contains("allow: GET, HEAD"), "{wrong}");
    }

    #[tokio::test]
    async fn a_request_to_another_host_is_refused() {
        let server = Server::start().await;
        let rows = [
            ("/job/list", "127.0.0.1:8070", 200),
            ("/job/list", "[::1]:8070", 200),
            ("/job/list", "localhost", 200),
            ("/job/list", "Cron.LocalHost.:8070", 200),
            ("/", "rebound.example:8070", 403),
            ("/job/list", "rebound.example:8070", 403),
            ("/job/list", "127.0.0.1.rebound.example", 403),
            ("/job/list", "notlocalhost", 403),
            ("/job/list", "localhost@rebound.example", 403),
            ("/job/list", "0.0.0.0:8070", 403),
            ("/job/list", "[::]:8070", 403),
            ("/job/list", "", 403),
            ("http://rebound.example/job/list", "localhost", 403),
        ];
        for (path, host, status) in rows {
            let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
            let answer = server.talk(&request).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{path} at {host:?}: {answer}");
            assert!(status == 200 || answer.contains("names another host"), "{answer}");
        }
        let proxied = Server::behind(Door::open(rules(Some(true), false, true), None)).await;
        let answer = proxied.talk("GET / HTTP/1.1\r\nHost: cron.example\r\nConnection: close\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        let hostless = server.talk("GET /job/list HTTP/1.0\r\n\r\n").await;
        assert!(hostless.starts_with("HTTP/1.0 200 "), "{hostless}");
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_413_and_not_a_broken_connection() {
        let server = Server::start().await;
        let answer = server.post("/job/save", &"a".repeat(BODY_BYTES_MAX + 1)).await;
        assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains(r#""errno":-1"#), "{answer}");
    }

    #[tokio::test]
    async fn a_head_over_the_limit_is_refused() {
        let server = Server::start().await;
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let head = format!(
            "GET / HTTP/1.1\r\nHost: localhost\r\nCookie: {}\r\n\r\n",
            "a".repeat(2 * HEAD_BYTES_MAX)
        );
        // The server may close before it has read all of it.
        let _refused_early = stream.write_all(head.as_bytes()).await;
        let mut answer = Vec::new();
        let _reset = stream.read_to_end(&mut answer).await;
        assert!(
            answer.is_empty() || answer.starts_with(b"HTTP/1.1 431 "),
            "{}",
            String::from_utf8_lossy(&answer)
        );
    }

    #[tokio::test]
    async fn a_request_that_is_being_served_ends_before_the_server_does() {
        let server = Server::start().await;
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let head = "POST /job/delete HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 6\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        // The server asks for the body: the request is in its hands.
        let mut go_on = [0; "HTTP/1.1 100 Continue\r\n\r\n".len()];
        stream.read_exact(&mut go_on).await.unwrap();
        server.stop.send(()).unwrap();
        stream.write_all(b"name=a").await.unwrap();
        let answer = read_all(stream).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        server.served.await.unwrap().unwrap();
        assert!(TcpStream::connect(server.address).await.is_err(), "nobody listens any more");
    }

    #[tokio::test]
    async fn over_tls_nobody_is_answered_without_it() {
        let dir = tempfile::tempdir().unwrap();
        let (tls, client) = crate::tls::tests::pair(dir.path());
        let mut rules = rules(None, true, false);
        rules.https_only = true;
        let server = Server::behind(Door::open(rules, Some(tls))).await;
        let request = "GET /job/list HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        let stream = TcpStream::connect(server.address).await.unwrap();
        let mut stream = client.connect("localhost".try_into().unwrap(), stream).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = read_all(stream).await;
        assert!(
            answer.starts_with("HTTP/1.1 200 ") && answer.contains("strict-transport-security: max-age="),
            "{answer}"
        );

        let mut plain = TcpStream::connect(server.address).await.unwrap();
        plain.write_all(request.as_bytes()).await.unwrap();
        let mut told = Vec::new();
        let _closed_or_reset = plain.read_to_end(&mut told).await;
        // A fatal alert, which the image's health check counts on, and nothing else: 21, the version, two bytes of length, two of content.
        assert!(told.len() == 7 && told[0] == 21, "{told:?}");
    }

    #[tokio::test]
    async fn one_address_does_not_take_all_connections() {
        let mut rules = rules(None, false, false);
        rules.callers_apart = true;
        let server = Server::behind(Door::open(rules, None)).await;
        let mut held = Vec::new();
        for _ in 0..CONNECTIONS_EACH_MAX {
            held.push(TcpStream::connect(server.address).await.unwrap());
        }
        // Those before it are accepted in their order.
        let mut more = TcpStream::connect(server.address).await.unwrap();
        assert!(more.read(&mut [0]).await.is_ok_and(|read| read == 0), "it is closed");
        drop(held);
        let mut answer = String::new();
        while !answer.starts_with("HTTP/1.1 200 ") {
            answer = server.get("/").await;
        }
    }
}
