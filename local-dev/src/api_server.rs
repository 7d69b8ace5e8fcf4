//! Serves the API's handlers over plain HTTP, in this process: what API Gateway and Lambda do elsewhere.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use common::api::errno::Kind;
use common::clock;
use functions::Ports;
use functions::http::{BODY_BYTES_MAX, Response, refuse};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use lambda_http::{Body, RequestExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

/// Most connections at a time; further ones wait in the listener's queue. A browser opens six.
const CONNECTIONS_MAX: usize = 512;
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

/// Serves all routes on `listener` until `shutdown` is done; then lets the requests that are being served end.
///
/// # Errors
/// When the listener has no address: it is not one.
pub async fn serve(
    listener: TcpListener,
    ports: Ports,
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let address = listener.local_addr()?;
    let (stop, stopping) = watch::channel(false);
    let free = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        // The ended ones are reaped here, so that the set stays as small as the semaphore.
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            accepted = accept(&listener, &free) => accepted,
        };
        let Some((stream, permit)) = accepted else { continue };
        let (ports, stopping) = (ports.clone(), stopping.clone());
        connections.spawn(async move {
            connection(stream, ports, stopping).await;
            drop(permit);
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

async fn accept(
    listener: &TcpListener,
    free: &Arc<Semaphore>,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(free).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _peer)) => Some((stream, permit)),
        Err(error) => {
            tracing::warn!(%error, "no connection could be accepted");
            clock::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

async fn connection(stream: TcpStream, ports: Ports, stopping: watch::Receiver<bool>) {
    // An answer is one small write; waiting for more to send with it only delays it.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "connection without TCP_NODELAY");
    }
    let service = service_fn(|request| respond(&ports, request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = stopped(stopping) => goodbye(connection).await,
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
async fn goodbye<S>(
    mut connection: std::pin::Pin<&mut http1::Connection<TokioIo<TcpStream>, S>>,
) -> hyper::Result<()>
where
    S: hyper::service::HttpService<Incoming, ResBody = Full<Bytes>>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    connection.as_mut().graceful_shutdown();
    clock::timeout(GOODBYE_MAX, connection).await.unwrap_or(Ok(()))
}

async fn respond(
    ports: &Ports,
    request: hyper::Request<Incoming>,
) -> Result<hyper::Response<Full<Bytes>>, Infallible> {
    let (parts, incoming) = request.into_parts();
    let response = match clock::timeout(BODY_MAX, collect(incoming)).await {
        Ok(Ok(Some(bytes))) => {
            let path = parts.uri.path().to_owned();
            let request = lambda_http::Request::from_parts(parts, body(bytes)).with_raw_http_path(path);
            functions::handle(ports, request).await
        }
        Ok(Ok(None)) => {
            refuse(Kind::TooLarge, format!("the body is too large: shorten it to {BODY_BYTES_MAX} bytes"))
        }
        Ok(Err(error)) => refuse(Kind::BadRequest, format!("the body did not arrive whole: {error}")),
        Err(elapsed) => refuse(Kind::BadRequest, format!("the body did not arrive in time: {elapsed}")),
    };
    Ok(sendable(response))
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
