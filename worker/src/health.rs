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
            get(async |State(status): State<Arc<Status>>| answer(status.is_healthy(), "the loop is stuck")),
        )
        .route(
            "/readyz",
            get(async |State(status): State<Arc<Status>>| answer(status.is_ready(), "no session")),
        )
        .route("/metrics", get(async |State(status): State<Arc<Status>>| status.metrics()))
        .with_state(status);
    if let Err(why) = axum::serve(listener, router).await {
        tracing::error!(%why, "health server ended");
    }
}

fn answer(good: bool, why_not: &'static str) -> (StatusCode, &'static str) {
    if good { (StatusCode::OK, "ok\n") } else { (StatusCode::SERVICE_UNAVAILABLE, why_not) }
}
