//! `GET /worker/list`: the live workers.

use common::domain::worker::Registration;
use common::keys;
use common::kv::{Kv, Pair, Span};
use lambda_http::Request;
use serde_json::{Map, Value};

use super::{Pages, Warnings};
use crate::http::{Call, READ, Refusal, Reply, Response, answer};

/// The methods that it takes.
pub const METHODS: &[&str] = READ;

const PARAMETERS: &[&str] = &["detail"];

/// Serves `GET /worker/list`.
pub async fn handle(kv: &dyn Kv, request: Request) -> Response {
    answer(METHODS, request, async |call| workers(kv, &call).await).await
}

async fn workers(kv: &dyn Kv, call: &Call) -> Result<Reply, Refusal> {
    let query = call.query()?;
    let detail = query.get("detail").is_some_and(|detail| !matches!(detail, "0" | "false"));
    let mut warnings = Warnings::default();
    for warning in query.warnings(PARAMETERS) {
        warnings.push(warning);
    }
    let mut workers = Vec::new();
    let mut pages = Pages::new(kv, Span::prefix(keys::WORKERS));
    while let Some(pairs) = pages.next().await? {
        for pair in &pairs {
            match pair.key.strip_prefix(keys::WORKERS) {
                Some(id) if detail => workers.push(described(id, pair, &mut warnings)),
                Some(id) => workers.push(id.into()),
                None => warnings.push(format!("{} is left out: the key is not UTF-8", pair.key)),
            }
        }
    }
    Ok(Reply::new(Value::Array(workers), warnings.finish()))
}

/// The worker as an object: its id, whether it is one of the seed's, and its registration.
fn described(id: &str, pair: &Pair, warnings: &mut Warnings) -> Value {
    let registration = Registration::decode(&pair.value);
    let mut worker = Map::new();
    worker.insert("id".to_owned(), id.into());
    worker.insert("seed".to_owned(), matches!(registration, Ok(None)).into());
    match registration {
        Ok(None) => {}
        Ok(Some(registration)) => {
            if let Ok(Value::Object(fields)) = serde_json::to_value(registration) {
                worker.extend(fields);
            }
        }
        Err(why) => warnings.push(format!("the registration of {id:?} is {why}")),
    }
    Value::Object(worker)
}
