//! `GET /job/versions`: what a job was, newest first: each definition that it had, who put it, and what was different from before.

use common::domain::audit::{Definition, Entry};
use common::domain::job::JobName;
use common::history::{Query, Shelf};
use common::kv::Kv;
use common::run_log::RunLog;
use lambda_http::Request;
use serde_json::{Value, json};

use super::{Page, audit_list};
use crate::http::{Call, READ, Refusal, Reply, Response, answer};
use crate::{audit, store};

/// The methods that it takes.
pub const METHODS: &[&str] = READ;

const PARAMETERS: &[&str] = &["name", "limit", "after"];

/// Versions on a page of which nobody says how long it is to be.
const LIMIT_DEFAULT: u32 = 20;
/// Most on one page: as many as are kept of a job that has not changed for a month.
const LIMIT_MAX: u32 = 100;
/// Read at once: each has up to two definitions.
const CHUNK: u32 = 10;

/// Serves `GET /job/versions`.
pub async fn handle(kv: &dyn Kv, run_log: &dyn RunLog, request: Request) -> Response {
    answer(METHODS, request, async |call| versions(kv, run_log, &call).await).await
}

async fn versions(kv: &dyn Kv, run_log: &dyn RunLog, call: &Call) -> Result<Reply, Refusal> {
    let fields = call.query()?;
    let name = fields
        .filled("name")
        .ok_or_else(|| Refusal::bad("name: is missing: give the job's name, as /job/versions?name=…"))?;
    let name = JobName::parse(name).map_err(|why| Refusal::bad(format!("name: {why}")))?;
    call.reach(&name)?;
    let limit = audit_list::limit(&fields, LIMIT_DEFAULT, LIMIT_MAX)?;
    let mut page = Page::new(limit as usize);
    for warning in fields.warnings(PARAMETERS) {
        page.warnings.push(warning);
    }
    let mut query =
        Query { below: audit_list::place(&fields, "after")?, limit: CHUNK, ..Query::of_job(name.as_str()) };
    if let Some(warning) = audit::catch_up(kv, run_log).await {
        page.warnings.push(warning);
    }
    // Each is shown once the one before it is known: whether what it replaced is a version that is kept.
    let mut waiting: Option<Entry> = None;
    loop {
        let found = store::kept(run_log, Shelf::Versions, &query).await?;
        let more = found.len() == CHUNK as usize;
        query.below = found.last().map(|entry| entry.id.clone());
        for earlier in found {
            if let Some(entry) = waiting.replace(earlier)
                && !take(&mut page, &entry, waiting.as_ref())
            {
                return Ok(page.into_reply());
            }
        }
        if !more {
            break;
        }
    }
    if let Some(entry) = waiting {
        take(&mut page, &entry, None);
    }
    Ok(page.into_reply())
}

fn take(page: &mut Page, entry: &Entry, earlier: Option<&Entry>) -> bool {
    page.take(entry.id.as_str(), &entry.id, shown(entry, earlier))
}

/// A version as it is shown to whoever may read the job: no more of its author than a name.
fn shown(entry: &Entry, earlier: Option<&Entry>) -> Value {
    let touched = &entry.touched;
    let mut shown = json!({
        "version": entry.id,
        "at": entry.at,
        "action": entry.action,
        "by": entry.origin.by.as_ref().map(|by| by.name.as_str()),
        "definition": touched.after.as_ref().and_then(Definition::whole),
        "changes": entry.changes(),
    });
    if touched.after.is_some() && shown["definition"].is_null() {
        shown["left"] = json!(touched.after);
    }
    // What stood there before is no version that is kept: other hands put it, or that version was removed since.
    if touched.before.as_ref() != earlier.and_then(|earlier| earlier.touched.after.as_ref()) {
        shown["beforeUnknown"] = true.into();
    }
    shown
}
