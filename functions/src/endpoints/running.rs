//! `GET /job/running`: the open runs, in pages, and behind them the runs that are asked for and not claimed yet.

use common::domain::job::JobName;
use common::domain::request::Request as RunRequest;
use common::domain::run::{OpenRuns, RunId};
use common::keys;
use common::kv::{Key, Kv, Pair, Span};
use lambda_http::Request;
use serde_json::{Value, json};

use super::{Page, Pages};
use crate::http::{Call, READ, Refusal, Reply, Response, answer};

/// The methods that it takes.
pub const METHODS: &[&str] = READ;

const PARAMETERS: &[&str] = &["name", "limit", "after"];

/// The runs of one job are looked for among so many keys at a time; where there are more, `next` says where to go on. Some 10 MB.
const LOOKED_AT_MAX: usize = 20_000;

/// Serves `GET /job/running`.
pub async fn handle(kv: &dyn Kv, request: Request) -> Response {
    answer(METHODS, request, async |call| running(kv, &call).await).await
}

async fn running(kv: &dyn Kv, call: &Call) -> Result<Reply, Refusal> {
    let query = call.query()?;
    let name = match query.filled("name") {
        Some(name) => Some(JobName::parse(name).map_err(|why| Refusal::bad(format!("name: {why}")))?),
        None => None,
    };
    name.iter().try_for_each(|name| call.reach(name))?;
    let wanted =
        |job: &JobName| call.principal().reaches(job) && name.as_ref().is_none_or(|name| name == job);
    let limit = match query.filled("limit").map(str::parse::<usize>) {
        None => usize::MAX,
        Some(Ok(limit)) if limit > 0 => limit,
        Some(_) => {
            return Err(Refusal::bad("limit: give a whole number from 1, or leave it out for all that fits"));
        }
    };
    let mut page = Page::new(limit);
    for warning in query.warnings(PARAMETERS) {
        page.warnings.push(warning);
    }
    let begin = query.filled("after").map(Cursor::parse).transpose()?;
    let all = Span::prefix(keys::RUNS);
    let span = match &begin {
        Some(Cursor::Run { place, .. }) => Span { from: Key::from(format!("{}{place}", keys::RUNS)), ..all },
        Some(Cursor::Waiting(_)) => Span { from: all.to.clone().unwrap_or(all.from), ..all },
        None => all,
    };
    let mut pages = Pages::new(kv, span);
    let mut looked_at = 0;
    while let Some(pairs) = pages.next().await? {
        for pair in &pairs {
            let Some(place) = pair.key.strip_prefix(keys::RUNS) else { continue };
            let passed = match &begin {
                Some(Cursor::Run { place: begun, runs }) if begun == place => *runs,
                _ => 0,
            };
            if is_enough(&mut page, &mut looked_at) || !take(&mut page, pair, place, passed, &wanted) {
                return Ok(page.into_reply());
            }
        }
    }
    let all = Span::prefix(keys::REQUESTS);
    let span = match &begin {
        Some(Cursor::Waiting(run_id)) => all.after(&keys::request(run_id).into()),
        _ => all,
    };
    // As of the same revision: what is claimed meanwhile is in one of the two.
    let mut pages = Pages { revision: pages.revision, ..Pages::new(kv, span) };
    while let Some(pairs) = pages.next().await? {
        for pair in &pairs {
            if is_enough(&mut page, &mut looked_at) || !take_waiting(&mut page, pair, &wanted) {
                return Ok(page.into_reply());
            }
        }
    }
    Ok(page.into_reply())
}

/// So many keys were looked at that the rest is for the next page.
fn is_enough(page: &mut Page, looked_at: &mut usize) -> bool {
    if *looked_at == LOOKED_AT_MAX {
        page.next = Some(std::mem::take(&mut page.last));
        return true;
    }
    *looked_at += 1;
    false
}

/// Adds a run that is asked for; false when the page is full.
fn take_waiting(page: &mut Page, pair: &Pair, wanted: &dyn Fn(&JobName) -> bool) -> bool {
    let Some(run_id) = keys::parse_request(&pair.key) else { return true };
    let cursor = format!("{WAITING}{run_id}");
    let request = match RunRequest::decode(&pair.value) {
        Ok(request) => request,
        Err(why) => {
            page.leave_out(&cursor, format!("{} is left out, it cannot be read: {why}", pair.key));
            return true;
        }
    };
    if !wanted(&request.job) {
        page.last = cursor;
        return true;
    }
    let mut value = json!({ "runId": run_id, "status": "waiting" });
    if let (Value::Object(shown), Ok(Value::Object(fields))) = (&mut value, serde_json::to_value(&request)) {
        shown.extend(fields.into_iter().filter(|(field, _)| field != "v"));
    }
    page.take(&cursor, &format_args!("the run {run_id}, which waits"), value)
}

/// Adds the runs under one key, but the first ones, which the page before had; false when the page is full.
fn take(page: &mut Page, pair: &Pair, place: &str, passed: usize, wanted: &dyn Fn(&JobName) -> bool) -> bool {
    let cursor = |runs: usize| format!("{place}/{runs}");
    let runs = match OpenRuns::decode(&pair.value) {
        Ok(open) => open.runs,
        Err(why) => {
            page.leave_out(&cursor(0), format!("{} is left out, it cannot be read: {why}", pair.key));
            return true;
        }
    };
    for (number, run) in runs.iter().enumerate().skip(passed) {
        let cursor = cursor(number + 1);
        // Fires that are let go are not running.
        if run.skipped.is_some() || !wanted(&run.job) {
            cursor.clone_into(&mut page.last);
            continue;
        }
        let value = serde_json::to_value(run).expect("plain data with string keys is always JSON");
        if !page.take(&cursor, &format_args!("the run {}", run.run_id), value) {
            return false;
        }
    }
    true
}

/// What a place among the runs that wait begins with: no session's id does.
const WAITING: &str = "waiting:";

/// Where a page ended. The key may be gone by then; the next page begins with what comes behind it.
enum Cursor {
    /// Behind so many runs of a key.
    Run { place: String, runs: usize },
    /// Behind this run that waits.
    Waiting(RunId),
}

impl Cursor {
    fn parse(after: &str) -> Result<Self, Refusal> {
        if let Some(run_id) = after.strip_prefix(WAITING) {
            return Ok(Self::Waiting(RunId::from_text(run_id)));
        }
        let parts = after.rsplit_once('/');
        let parts = parts
            .and_then(|(place, runs)| Some(Self::Run { place: place.to_owned(), runs: runs.parse().ok()? }));
        parts.ok_or_else(|| {
            Refusal::bad(format!("after: {after:?} is none: give the `next` of the page before"))
        })
    }
}
