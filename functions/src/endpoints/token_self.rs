//! `GET /token/self`: who the caller is to the API, what that may do, and until when.

use common::domain::access::Means;
use lambda_http::Request;
use serde_json::json;

use crate::http::{Call, READ, Refusal, Reply, Response, answer};

/// The methods that it takes.
pub const METHODS: &[&str] = READ;

/// Serves `GET /token/self`. It opens no store; the gate before it does.
pub async fn handle(request: Request) -> Response {
    answer(METHODS, request, async |call| who(&call)).await
}

fn who(call: &Call) -> Result<Reply, Refusal> {
    let warnings = call.query()?.warnings(&[]);
    let principal = call.principal();
    let (means, id) = match &principal.means {
        Means::Open => ("open", None),
        Means::Token(id) => ("token", Some(id)),
        Means::Jwt(subject) => ("jwt", Some(subject)),
        Means::Bootstrap => ("bootstrap", None),
    };
    let data = json!({
        "name": principal.name,
        "role": principal.role,
        "prefix": principal.prefix,
        "means": means,
        "id": id,
        "expiresAt": call.good_until(),
    });
    Ok(Reply::new(data, warnings))
}
