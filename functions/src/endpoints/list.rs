//! `GET /job/list`: the jobs in the order of their names, in pages that never cut silently.

use common::domain::job::Job;
use common::keys;
use common::kv::{Key, Kv, Pair, Span};
use lambda_http::Request;
use serde_json::Value;

use super::{Pages, Warnings};
use crate::http::{Call, Fields, PAGE_BYTES_MAX, READ, Refusal, Reply, Response, answer, travelling_bytes};

/// The methods that it takes.
pub const METHODS: &[&str] = READ;

const PARAMETERS: &[&str] = &["prefix", "limit", "after"];

/// Serves `GET /job/list`.
pub async fn handle(kv: &dyn Kv, request: Request) -> Response {
    answer(METHODS, request, async |call| list(kv, &call).await).await
}

async fn list(kv: &dyn Kv, call: &Call) -> Result<Reply, Refusal> {
    let query = call.query()?;
    let mut page = Page::new(limit(&query)?);
    for warning in query.warnings(PARAMETERS) {
        page.warnings.push(warning);
    }
    let mut pages = Pages::new(kv, span(&query));
    'pages: while let Some(pairs) = pages.next().await? {
        for pair in &pairs {
            if !page.take(pair) {
                break 'pages;
            }
        }
    }
    let reply = Reply::new(Value::Array(page.jobs), page.warnings.finish());
    Ok(Reply { next: page.next, ..reply })
}

fn limit(query: &Fields) -> Result<usize, Refusal> {
    match query.filled("limit").map(str::parse::<usize>) {
        None => Ok(usize::MAX),
        Some(Ok(limit)) if limit > 0 => Ok(limit),
        Some(_) => Err(Refusal::bad("limit: give a whole number from 1, or leave it out for all that fits")),
    }
}

fn span(query: &Fields) -> Span {
    let span = Span::prefix(format!("{}{}", keys::JOBS, query.get("prefix").unwrap_or_default()));
    match query.filled("after").map(|after| Key::from(format!("{}{after}", keys::JOBS))) {
        Some(after) if after >= span.from => span.after(&after),
        _ => span,
    }
}

/// The page being filled.
struct Page {
    limit: usize,
    jobs: Vec<Value>,
    bytes: usize,
    last: String,
    next: Option<String>,
    warnings: Warnings,
}

impl Page {
    fn new(limit: usize) -> Self {
        let (jobs, last, next) = (Vec::new(), String::new(), None);
        Self { limit, jobs, bytes: 0, last, next, warnings: Warnings::default() }
    }

    /// Adds a stored value; false when the page is full and this one is for the next.
    fn take(&mut self, pair: &Pair) -> bool {
        let name = pair.key.strip_prefix(keys::JOBS);
        let job = name
            .ok_or_else(|| "the key is not UTF-8".to_owned())
            .and_then(|name| Job::from_stored(name, &pair.value).map_err(|fault| fault.to_string()));
        let job = match job {
            Ok(job) => job.to_value(),
            Err(why) => {
                self.warnings.push(format!("{} is left out, it is not a job: {why}", pair.key));
                return true;
            }
        };
        let bytes = travelling_bytes(&job.to_string()) + 1;
        if self.jobs.len() >= self.limit || (self.bytes + bytes > PAGE_BYTES_MAX && !self.jobs.is_empty()) {
            self.next = Some(std::mem::take(&mut self.last));
            return false;
        }
        if bytes > PAGE_BYTES_MAX {
            self.warnings.push(format!("{} is left out, it is too large to be served", pair.key));
            return true;
        }
        self.bytes += bytes;
        self.jobs.push(job);
        self.last = name.unwrap_or_default().to_owned();
        true
    }
}
