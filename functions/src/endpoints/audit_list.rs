//! `GET /audit/list`: who changed what, when and from where, newest first.

use common::domain::audit::{Entry, EntryId, JOB};
use common::history::{Query, Shelf};
use common::kv::Kv;
use common::run_log::RunLog;
use lambda_http::Request;
use serde_json::{Value, json};

use super::{Page, log};
use crate::http::{Call, Fields, READ, Refusal, Reply, Response, answer};
use crate::{ROUTES, audit, store};

/// The methods that it takes.
pub const METHODS: &[&str] = READ;

const PARAMETERS: &[&str] = &["job", "by", "action", "from", "to", "limit", "after"];

/// Entries on a page of which nobody says how long it is to be.
const LIMIT_DEFAULT: u32 = 50;
/// Most on one page.
const LIMIT_MAX: u32 = 500;
/// Read at once: each has up to two definitions.
const CHUNK: u32 = 20;

/// Serves `GET /audit/list`.
pub async fn handle(kv: &dyn Kv, run_log: &dyn RunLog, request: Request) -> Response {
    answer(METHODS, request, async |call| list(kv, run_log, &call).await).await
}

async fn list(kv: &dyn Kv, run_log: &dyn RunLog, call: &Call) -> Result<Reply, Refusal> {
    let fields = call.query()?;
    let mut page = Page::new(limit(&fields, LIMIT_DEFAULT, LIMIT_MAX)? as usize);
    for warning in fields.warnings(PARAMETERS) {
        page.warnings.push(warning);
    }
    let mut query = query(&fields)?;
    if let Some(warning) = audit::catch_up(kv, run_log).await {
        page.warnings.push(warning);
    }
    loop {
        let found = store::kept(run_log, Shelf::Audit, &query).await?;
        let more = found.len() == CHUNK as usize;
        query.below = found.last().map(|entry| entry.id.clone());
        for entry in found {
            if !page.take(entry.id.as_str(), &entry.id, shown(&entry)) {
                return Ok(page.into_reply());
            }
        }
        if !more {
            return Ok(page.into_reply());
        }
    }
}

fn query(fields: &Fields) -> Result<Query, Refusal> {
    let text = |name| fields.filled(name).map(str::to_owned);
    let time = |name| Ok::<_, Refusal>(log::time(fields, name)?.map(EntryId::first_of));
    let job = text("job");
    let action = text("action");
    if let Some(unknown) = action.as_ref().filter(|action| !changing().any(|known| known == action.as_str()))
    {
        let known: Vec<&str> = changing().collect();
        return Err(Refusal::bad(format!(
            "action: {unknown:?} changes nothing: give one of {}",
            known.join(", ")
        )));
    }
    let below = [place(fields, "after")?, time("to")?].into_iter().flatten().min();
    Ok(Query {
        thing: job.as_ref().map(|_| JOB.to_owned()),
        name: job,
        action,
        by: text("by"),
        from: time("from")?,
        below,
        limit: CHUNK,
        ..Query::default()
    })
}

/// The functions that change something.
fn changing() -> impl Iterator<Item = &'static str> {
    ROUTES.iter().filter(|route| route.methods.contains(&"POST")).map(|route| route.function)
}

/// How many at most.
pub(super) fn limit(fields: &Fields, default: u32, most: u32) -> Result<u32, Refusal> {
    match fields.filled("limit").map(str::parse::<u32>) {
        None => Ok(default),
        Some(Ok(limit)) if (1..=most).contains(&limit) => Ok(limit),
        Some(_) => Err(Refusal::bad(format!("limit: give a whole number from 1 to {most}"))),
    }
}

/// Where a page begins.
pub(super) fn place(fields: &Fields, name: &str) -> Result<Option<EntryId>, Refusal> {
    let place = fields.filled(name).map(|text| {
        EntryId::parse(text).ok_or_else(|| {
            Refusal::bad(format!("{name}: {text:?} is none: give the `next` of the page before"))
        })
    });
    place.transpose()
}

fn shown(entry: &Entry) -> Value {
    let mut shown = json!({ "id": entry.id, "at": entry.at, "action": entry.action });
    let origin = &entry.origin;
    for (field, value) in
        [("by", json!(origin.by)), ("from", json!(origin.from)), ("requestId", json!(origin.request_id))]
    {
        if !value.is_null() {
            shown[field] = value;
        }
    }
    shown["thing"] = entry.touched.thing.as_str().into();
    if !entry.touched.name.is_empty() {
        shown["name"] = entry.touched.name.as_str().into();
    }
    if !entry.details.is_empty() {
        shown["details"] = Value::Object(entry.details.clone());
    }
    shown["changes"] = Value::Object(entry.changes());
    shown
}
