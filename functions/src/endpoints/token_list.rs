//! `GET /token/list`: the tokens, without their secrets, which nobody has but their owners.

use common::kv::Kv;
use lambda_http::Request;

use crate::access::manage;
use crate::http::{Call, READ, Refusal, Reply, Response, answer};

/// The methods that it takes.
pub const METHODS: &[&str] = READ;

/// Serves `GET /token/list`.
pub async fn handle(kv: &dyn Kv, request: Request) -> Response {
    answer(METHODS, request, async |call| list(kv, &call).await).await
}

async fn list(kv: &dyn Kv, call: &Call) -> Result<Reply, Refusal> {
    let mut warnings = call.query()?.warnings(&[]);
    let (tokens, unreadable) = manage::list(kv, call.principal()).await?;
    warnings.extend(unreadable);
    Ok(Reply::new(tokens, warnings))
}
