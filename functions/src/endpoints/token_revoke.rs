//! `POST /token/revoke`: a token is worth nothing any more; within some seconds also where it was good a moment ago.

use common::clock::Clock;
use common::domain::token::TokenId;
use common::kv::Kv;
use lambda_http::Request;

use crate::access::manage;
use crate::http::{Call, Refusal, Reply, Response, WRITE, answer};

/// The methods that it takes.
pub const METHODS: &[&str] = WRITE;

/// Serves `POST /token/revoke`.
pub async fn handle(kv: &dyn Kv, clock: &dyn Clock, request: Request) -> Response {
    answer(METHODS, request, async |call| revoke(kv, clock, &call).await).await
}

async fn revoke(kv: &dyn Kv, clock: &dyn Clock, call: &Call) -> Result<Reply, Refusal> {
    let fields = call.fields(&["id", "last"])?;
    let id = fields.filled("id").and_then(TokenId::parse).ok_or_else(|| {
        Refusal::bad("id: give the token's id, the 12 digits after fct_, as GET /token/list tells it")
    })?;
    let last = fields.switch("last")?;
    let revoked = manage::revoke(kv, clock, call.principal(), call.origin(), &id, last).await?;
    // Sent again it finds nothing more to do: it needs no Idempotency-Key.
    Ok(Reply::new(revoked, call.query_warnings()))
}
