//! `GET /job/list`: the jobs in the order of their names, in pages that never cut silently.

use common::domain::access::Principal;
use common::domain::job::Job;
use common::keys;
use common::kv::{Key, Kv, Span};
use lambda_http::Request;

use super::{Page, Pages};
use crate::http::{Call, Fields, READ, Refusal, Reply, Response, answer};

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
    let mut pages = Pages::new(kv, span(&query, call.principal()));
    'pages: while let Some(pairs) = pages.next().await? {
        for pair in &pairs {
            let why_not = |why| format!("{} is left out, it is not a job: {why}", pair.key);
            let Some(name) = pair.key.strip_prefix(keys::JOBS) else {
                page.warnings.push(why_not("the key is not UTF-8".to_owned()));
                continue;
            };
            let job = match Job::from_stored(name, &pair.value) {
                Ok(job) => job,
                Err(fault) => {
                    page.leave_out(name, why_not(fault.to_string()));
                    continue;
                }
            };
            if !page.take(name, &pair.key, job.to_value()) {
                break 'pages;
            }
        }
    }
    Ok(page.into_reply())
}

/// How many at most.
pub(super) fn limit(query: &Fields) -> Result<usize, Refusal> {
    match query.filled("limit").map(str::parse::<usize>) {
        None => Ok(usize::MAX),
        Some(Ok(limit)) if limit > 0 => Ok(limit),
        Some(_) => Err(Refusal::bad("limit: give a whole number from 1, or leave it out for all that fits")),
    }
}

/// The jobs that are asked for and that the caller reaches.
pub(super) fn span(query: &Fields, whose: &Principal) -> Span {
    let span = match whose.narrowed(query.get("prefix").unwrap_or_default()) {
        Some(prefix) => Span::prefix(format!("{}{prefix}", keys::JOBS)),
        None => Span::between(keys::JOBS, keys::JOBS),
    };
    match query.filled("after").map(|after| Key::from(format!("{}{after}", keys::JOBS))) {
        Some(after) if after >= span.from => span.after(&after),
        _ => span,
    }
}
