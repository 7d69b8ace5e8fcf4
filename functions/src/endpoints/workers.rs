//! `GET /worker/list`: the live workers in the order of their ids, in pages that never cut silently.

use common::domain::worker::Registration;
use common::keys;
use common::kv::{Key, Kv, Pair, Span};
use lambda_http::Request;
use serde_json::{Map, Value};

use super::{Page, Pages};
use crate::http::{Call, READ, Refusal, Reply, Response, answer};

/// The methods that it takes.
pub const METHODS: &[&str] = READ;

const PARAMETERS: &[&str] = &["detail", "after"];

/// Serves `GET /worker/list`.
pub async fn handle(kv: &dyn Kv, request: Request) -> Response {
    answer(METHODS, request, async |call| workers(kv, &call).await).await
}

async fn workers(kv: &dyn Kv, call: &Call) -> Result<Reply, Refusal> {
    let query = call.query()?;
    let detail = query.get("detail").is_some_and(|detail| !matches!(detail, "0" | "false"));
    let mut page = Page::new(usize::MAX);
    for warning in query.warnings(PARAMETERS) {
        page.warnings.push(warning);
    }
    let span = Span::prefix(keys::WORKERS);
    let span = match query.filled("after") {
        Some(after) => span.after(&Key::from(keys::worker(after))),
        None => span,
    };
    let mut pages = Pages::new(kv, span);
    'pages: while let Some(pairs) = pages.next().await? {
        for pair in &pairs {
            let Some(id) = pair.key.strip_prefix(keys::WORKERS) else {
                page.warnings.push(format!("{} is left out: the key is not UTF-8", pair.key));
                continue;
            };
            let (worker, warning) = if detail { described(id, pair) } else { (id.into(), None) };
            if !page.take(id, &format_args!("the worker {id:?}"), worker) {
                break 'pages;
            }
            if let Some(warning) = warning {
                page.warnings.push(warning);
            }
        }
    }
    Ok(page.into_reply())
}

/// The worker as an object: its id, whether it is one of the seed's, and its registration; and a warning, where that cannot be read.
fn described(id: &str, pair: &Pair) -> (Value, Option<String>) {
    let registration = Registration::decode(&pair.value);
    let mut worker = Map::new();
    worker.insert("id".to_owned(), id.into());
    worker.insert("seed".to_owned(), matches!(registration, Ok(None)).into());
    let mut warning = None;
    match registration {
        Ok(None) => {}
        Ok(Some(registration)) => {
            if let Ok(Value::Object(fields)) = serde_json::to_value(registration) {
                worker.extend(fields);
            }
        }
        Err(why) => warning = Some(format!("the registration of {id:?} cannot be read: {why}")),
    }
    (Value::Object(worker), warning)
}
