//! `GET /job/export`: jobs as a crontab, or as JSON, in pages that `POST /job/import` takes.

use common::api::envelope::Next;
use common::crontab::{self, Format};
use common::domain::job::Job;
use common::keys;
use common::kv::Kv;
use lambda_http::Request;
use serde_json::Value;

use super::importing::JOBS_MAX;
use super::list::{limit, span};
use super::{Pages, Warnings};
use crate::http::{BODY_BYTES_MAX, Call, READ, Refusal, Reply, Response, answer};

/// The methods that it takes.
pub const METHODS: &[&str] = READ;

const PARAMETERS: &[&str] = &["format", "prefix", "limit", "after"];
/// Most of a page, in bytes of its jobs' JSON: as a crontab a job takes a little more, and the page has to fit into the body of an import.
const PAGE_BYTES_MAX: usize = BODY_BYTES_MAX / 2;

/// Serves `GET /job/export`.
pub async fn handle(kv: &dyn Kv, request: Request) -> Response {
    answer(METHODS, request, async |call| export(kv, &call).await).await
}

async fn export(kv: &dyn Kv, call: &Call) -> Result<Reply, Refusal> {
    let query = call.query()?;
    let format = match query.filled("format").unwrap_or("crontab") {
        "crontab" | "user" => Some(Format::User),
        "system" => Some(Format::System),
        "json" => None,
        _ => return Err(Refusal::bad("format: is none of crontab, system and json: write one of them")),
    };
    let limit = limit(&query)?.min(JOBS_MAX);
    let mut warnings = Warnings::default();
    query.warnings(PARAMETERS).into_iter().for_each(|warning| warnings.push(warning));
    let mut jobs: Vec<Job> = Vec::new();
    let mut bytes = 0;
    let (mut last, mut next) = (String::new(), None);
    let mut pages = Pages::new(kv, span(&query, call.principal()));
    'pages: while let Some(pairs) = pages.next().await? {
        for pair in &pairs {
            let named = pair.key.strip_prefix(keys::JOBS).ok_or_else(|| "the key is not UTF-8".to_owned());
            let job =
                named.and_then(|name| Job::from_stored(name, &pair.value).map_err(|why| why.to_string()));
            let job = match job {
                Ok(job) => job,
                Err(why) => {
                    warnings.push(format!("{} is left out, it is not a job: {why}", pair.key));
                    continue;
                }
            };
            let size = job.to_value().to_string().len();
            // One job fits always, else the pages would not go on.
            if jobs.len() >= limit || (bytes + size > PAGE_BYTES_MAX && !jobs.is_empty()) {
                next = Some(Next::Page(last));
                break 'pages;
            }
            bytes += size;
            job.name.as_str().clone_into(&mut last);
            jobs.push(job);
        }
    }
    let data = match format {
        None => Value::Array(jobs.iter().map(Job::to_value).collect()),
        Some(format) => crontab::write(&jobs, format).into(),
    };
    Ok(Reply { next, ..Reply::new(data, warnings.finish()) })
}
