//! The worker's own small HTTP server: `/healthz`, `/readyz`, `/metrics`. It answers, and commands nothing.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;

use crate::status::Status;

/// Serves until the process ends.
pub async fn serve(listener: TcpListener, status: Arc<Status>) {
    let router = Router::new()
        .route(
            "/healthz",
            get(async |State(status): State<Arc<Status>>| {
                answer(StatusCode::SERVICE_UNAVAILABLE, stuck(&status))
            }),
        )
        .route("/readyz", get(async |State(status): State<Arc<Status>>| ready(&status)))
        .route("/metrics", get(async |State(status): State<Arc<Status>>| status.metrics()))
        .with_state(status);
    if let Err(why) = axum::serve(listener, router).await {
        tracing::error!(%why, "health server ended");
    }
}

fn stuck(status: &Status) -> Option<String> {
    (!status.is_healthy()).then(|| "the loop is stuck".to_owned())
}

/// A worker that is in the fleet and has trouble with its records says so by a status of its own: whoever would replace it for that, and its
/// disk with it, can tell.
fn ready(status: &Status) -> (StatusCode, String) {
    match status.not_ready() {
        None => answer(StatusCode::INSUFFICIENT_STORAGE, status.records_in_trouble()),
        why_not => answer(StatusCode::SERVICE_UNAVAILABLE, why_not),
    }
}

fn answer(otherwise: StatusCode, why_not: Option<String>) -> (StatusCode, String) {
    match why_not {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(why_not) => (otherwise, why_not + "\n"),
    }
}
