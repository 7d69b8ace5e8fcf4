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

const PARAMETERS: &[&str] = &["prefix", "limit", "after", "label"];

/// So many jobs are passed over at most that have other labels: some 5 MB of them. Then the page ends, with fewer jobs than were asked for or none,
/// and says where the next begins.
const PASSED_OVER_MAX: usize = 20_000;

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
    let (wanted, mut passed_over) = (labels(&query)?, 0);
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
            // What is passed over takes no room, so that a page has as many as were asked for, and the next begins behind its last.
            if !wanted.iter().all(|label| label.fits(&job)) {
                passed_over += 1;
                if passed_over == PASSED_OVER_MAX {
                    page.next = Some(name.to_owned());
                    break 'pages;
                }
                continue;
            }
            if !page.take(name, &pair.key, job.to_value()) {
                break 'pages;
            }
        }
    }
    Ok(page.into_reply())
}

/// A label that a job must have: with this value, or with any.
struct Wanted<'a> {
    label: &'a str,
    value: Option<&'a str>,
}

impl Wanted<'_> {
    fn fits(&self, job: &Job) -> bool {
        let found = job.options.labelling.label(self.label);
        found.is_some_and(|found| self.value.is_none_or(|value| found == value))
    }
}

/// What `label=…` asks for; given several times, all of them.
fn labels(query: &Fields) -> Result<Vec<Wanted<'_>>, Refusal> {
    let wanted = query.all("label").map(|text| match text.split_once('=') {
        Some((label, value)) => Wanted { label, value: Some(value) },
        None => Wanted { label: text, value: None },
    });
    let wanted: Vec<Wanted<'_>> = wanted.collect();
    if wanted.iter().any(|wanted| wanted.label.is_empty()) {
        return Err(Refusal::bad(
            "label: names no label: write label=team%3Dops, or label=team for any value",
        ));
    }
    Ok(wanted)
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
