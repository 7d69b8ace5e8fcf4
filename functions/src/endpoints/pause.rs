//! `POST /job/pause`: pauses a job: it has no fires until it is resumed. Its runs that are going go on.

use common::clock::Clock;
use common::kv::Kv;
use lambda_http::Request;

use super::switch::switch;
use crate::http::{Response, WRITE, answer};

/// The methods that it takes.
pub const METHODS: &[&str] = WRITE;

/// Serves `POST /job/pause`.
pub async fn handle(kv: &dyn Kv, clock: &dyn Clock, request: Request) -> Response {
    answer(METHODS, request, async |call| switch(kv, clock, &call, false).await).await
}
