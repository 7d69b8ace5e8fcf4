//! `POST /job/resume`: resumes a job that was paused. What it would have fired meanwhile is not caught up on.

use common::clock::Clock;
use common::kv::Kv;
use lambda_http::Request;

use super::switch::switch;
use crate::http::{Response, WRITE, answer};

/// The methods that it takes.
pub const METHODS: &[&str] = WRITE;

/// Serves `POST /job/resume`.
pub async fn handle(kv: &dyn Kv, clock: &dyn Clock, request: Request) -> Response {
    answer(METHODS, request, async |call| switch(kv, clock, &call, true).await).await
}
