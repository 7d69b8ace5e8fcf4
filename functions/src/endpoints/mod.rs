//! One handler for each endpoint; each takes only the ports that it uses.

mod after;
pub mod audit_list;
mod broadcast;
pub mod calendar_delete;
pub mod calendar_list;
pub mod calendar_save;
mod calendars;
pub mod console;
pub mod delete;
pub mod export;
mod fleet;
pub mod fleet_pause;
pub mod fleet_resume;
pub mod fleet_settings;
pub mod fleet_status;
pub mod get;
pub mod import;
mod importing;
pub mod kill;
pub mod list;
pub mod log;
pub mod next;
pub mod output;
pub mod pause;
mod preview;
pub mod resume;
pub mod rollback;
pub mod run;
pub mod running;
mod runs;
pub mod save;
mod stored;
mod switch;
pub mod token_create;
pub mod token_list;
pub mod token_revoke;
pub mod token_self;
pub mod versions;
pub mod workers;

use std::fmt::Display;

use common::api::envelope::Next;
use common::domain::job::JobName;
use common::kv::{Kv, Pair, Range, Revision, Span};
use common::shortened::shortened;
use serde_json::Value;

use crate::http::{Call, Fields, PAGE_BYTES_MAX, Refusal, Reply, WARNING_BYTES_MAX, travelling_bytes};
use crate::store;

/// How often a write that others keep getting in the way of is tried before 409. Each try takes a new look, so losing five times in a row
/// means that something else writes this job without pause.
const CONFLICTS_MAX: usize = 5;

/// A page read from etcd aims at so many bytes of values.
const PAGE_BYTES: usize = 1024 * 1024;
/// Pairs on the first page, before their size is known: jobs of our own have at most some 64 KiB.
const FIRST_PAGE: usize = 32;
/// Most pairs on one page.
const PAGE_PAIRS_MAX: usize = 1000;

/// The field `name` as the name of a job that the caller reaches.
fn job_name(call: &Call, fields: &Fields) -> Result<JobName, Refusal> {
    let Some(name) = fields.get("name") else {
        return Err(Refusal::bad("name: is missing: give the job's name in the body, as name=…"));
    };
    let name = JobName::parse(name).map_err(|why| Refusal::bad(format!("name: {why}")))?;
    call.reach(&name)?;
    Ok(name)
}

/// Reads a span page by page, all pages as of one revision.
struct Pages<'a> {
    kv: &'a dyn Kv,
    rest: Option<Span>,
    revision: Option<Revision>,
    limit: usize,
}

impl<'a> Pages<'a> {
    fn new(kv: &'a dyn Kv, span: Span) -> Self {
        let empty = span.to.as_ref().is_some_and(|to| span.from >= *to);
        Self { kv, rest: Some(span).filter(|_| !empty), revision: None, limit: FIRST_PAGE }
    }

    /// The next page; `None` after the last.
    async fn next(&mut self) -> Result<Option<Vec<Pair>>, Refusal> {
        let Some(span) = self.rest.take() else { return Ok(None) };
        let mut range = Range::all(span.clone()).limit(self.limit);
        range.revision = self.revision;
        let reply = store::range(self.kv, range).await?;
        self.revision.get_or_insert(reply.revision);
        if let Some(last) = reply.pairs.last().filter(|_| reply.more) {
            self.rest = Some(span.after(&last.key));
            let bytes: usize =
                reply.pairs.iter().map(|pair| pair.value.len() + pair.key.as_bytes().len()).sum();
            let average = (bytes / reply.pairs.len()).max(1);
            self.limit = (PAGE_BYTES / average).clamp(1, PAGE_PAIRS_MAX);
        }
        Ok(Some(reply.pairs))
    }
}

/// A page of an answer, being filled: as many values as fit, and where the next page begins.
struct Page {
    limit: usize,
    values: Vec<Value>,
    bytes: usize,
    last: String,
    next: Option<String>,
    warnings: Warnings,
}

impl Page {
    fn new(limit: usize) -> Self {
        let (values, last, next) = (Vec::new(), String::new(), None);
        Self { limit, values, bytes: 0, last, next, warnings: Warnings::default() }
    }

    /// Adds the value `cursor`, which is `shown` to people; false when the page is full and this one is for the next.
    fn take(&mut self, cursor: &str, shown: &dyn Display, value: Value) -> bool {
        let bytes = travelling_bytes(&value.to_string()) + 1;
        if self.values.len() >= self.limit || (self.bytes + bytes > PAGE_BYTES_MAX && !self.values.is_empty())
        {
            self.next = Some(std::mem::take(&mut self.last));
            return false;
        }
        if bytes > PAGE_BYTES_MAX {
            self.leave_out(cursor, format!("{shown} is left out, it is too large to be served"));
            return true;
        }
        self.bytes += bytes;
        self.values.push(value);
        cursor.clone_into(&mut self.last);
        true
    }

    /// Goes past `cursor`, so that the warning is not said on the next page again.
    fn leave_out(&mut self, cursor: &str, warning: String) {
        self.warnings.push(warning);
        cursor.clone_into(&mut self.last);
    }

    fn into_reply(self) -> Reply {
        let next = self.next.map(Next::Page);
        Reply { next, ..Reply::new(Value::Array(self.values), self.warnings.finish()) }
    }
}

/// Warnings, of which the first hundred are spelled out.
#[derive(Default)]
struct Warnings {
    said: Vec<String>,
    unsaid: usize,
}

impl Warnings {
    /// Most warnings in one answer: enough to mend them a screenful at a time; with the page they fit into what Lambda lets through.
    const SAID_MAX: usize = 100;

    fn push(&mut self, warning: String) {
        if self.said.len() < Self::SAID_MAX {
            self.said.push(shortened(warning, WARNING_BYTES_MAX));
        } else {
            self.unsaid += 1;
        }
    }

    fn finish(mut self) -> Vec<String> {
        if self.unsaid > 0 {
            self.said.push(format!("and {} more such warnings", self.unsaid));
        }
        self.said
    }
}
