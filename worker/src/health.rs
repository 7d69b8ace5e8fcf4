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
                answer((!status.is_healthy()).then(|| "the loop is stuck".to_owned()))
            }),
        )
        .route("/readyz", get(async |State(status): State<Arc<Status>>| answer(status.not_ready())))
        .route("/metrics", get(async |State(status): State<Arc<Status>>| status.metrics()))
        .with_state(status);
    if let Err(why) = axum::serve(listener, router).await {
        tracing::error!(%why, "health server ended");
    }
}

fn answer(why_not: Option<String>) -> (StatusCode, String) {
    match why_not {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(why_not) => (StatusCode::SERVICE_UNAVAILABLE, why_not + "\n"),
    }
}
