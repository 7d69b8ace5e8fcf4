//! `GET /worker/list`: the live workers in the order of their ids, in pages that never cut silently.

use common::domain::worker::Registration;
use common::keys;
use common::kv::{Key, Kv, Pair, Span};
use lambda_http::Request;
use serde_json::{Map, Value};

use super::{Pages, Warnings};
use crate::http::{Call, PAGE_BYTES_MAX, READ, Refusal, Reply, Response, answer, travelling_bytes};

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
    let mut warnings = Warnings::default();
    for warning in query.warnings(PARAMETERS) {
        warnings.push(warning);
    }
    let mut page = Page::default();
    let span = Span::prefix(keys::WORKERS);
    let span = match query.filled("after") {
        Some(after) => span.after(&Key::from(keys::worker(after))),
        None => span,
    };
    let mut pages = Pages::new(kv, span);
    'pages: while let Some(pairs) = pages.next().await? {
        for pair in &pairs {
            let (id, worker) = match pair.key.strip_prefix(keys::WORKERS) {
                Some(id) if detail => (id, described(id, pair, &mut warnings)),
                Some(id) => (id, id.into()),
                None => {
                    warnings.push(format!("{} is left out: the key is not UTF-8", pair.key));
                    continue;
                }
            };
            if !page.take(id, worker, &mut warnings) {
                break 'pages;
            }
        }
    }
    Ok(Reply { next: page.next, ..Reply::new(Value::Array(page.workers), warnings.finish()) })
}

/// The page being filled.
#[derive(Default)]
struct Page {
    workers: Vec<Value>,
    bytes: usize,
    last: String,
    next: Option<String>,
}

impl Page {
    /// Adds a worker; false when the page is full and this one is for the next.
    fn take(&mut self, id: &str, worker: Value, warnings: &mut Warnings) -> bool {
        let bytes = travelling_bytes(&worker.to_string()) + 1;
        if bytes > PAGE_BYTES_MAX {
            warnings.push(format!("the worker {id:?} is left out, it is too large to be served"));
        } else if self.bytes + bytes > PAGE_BYTES_MAX {
            self.next = Some(std::mem::take(&mut self.last));
            return false;
        } else {
            self.bytes += bytes;
            self.workers.push(worker);
        }
        self.last = id.to_owned();
        true
    }
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
        Err(why) => warnings.push(format!("the registration of {id:?} cannot be read: {why}")),
    }
    Value::Object(worker)
}
