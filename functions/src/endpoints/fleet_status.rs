//! `GET /fleet/status`: whether the fleet is paused, since when, by whom and why.

use common::kv::Kv;
use lambda_http::Request;

use super::fleet::{Fleet, state};
use crate::http::{Call, READ, Refusal, Reply, Response, answer};

/// The methods that it takes.
pub const METHODS: &[&str] = READ;

/// Serves `GET /fleet/status`.
pub async fn handle(kv: &dyn Kv, request: Request) -> Response {
    answer(METHODS, request, async |call| status(kv, &call).await).await
}

async fn status(kv: &dyn Kv, call: &Call) -> Result<Reply, Refusal> {
    let warnings = call.query()?.warnings(&[]);
    let fleet = Fleet::read(kv, None).await?;
    Ok(Reply::new(state(fleet.shown_pause(), fleet.shown_base()), warnings))
}
