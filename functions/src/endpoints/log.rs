//! `GET /job/log`: a job's records, newest first, in pages that never cut silently.

use std::collections::BTreeSet;

use common::domain::record::{Record, RecordId, Status};
use common::run_log::{RecordQuery, RunLog};
use lambda_http::Request;
use serde_json::Value;

use super::Warnings;
use crate::http::{Call, Fields, PAGE_BYTES_MAX, READ, Refusal, Reply, Response, answer, travelling_bytes};
use crate::store;

/// The methods that it takes.
pub const METHODS: &[&str] = READ;

const PARAMETERS: &[&str] = &["name", "skip", "limit", "status"];

/// The seed's default.
const LIMIT_DEFAULT: u32 = 20;
/// Most records in one answer: what a person scrolls through, and some 5 MB at usual sizes.
const LIMIT_MAX: u32 = 1000;
/// Records asked for at a time: with their output they may have 64 KiB and more each, and a function little memory.
const CHUNK: u32 = 250;

/// Serves `GET /job/log`.
pub async fn handle(run_log: &dyn RunLog, request: Request) -> Response {
    answer(METHODS, request, async |call| log(run_log, &call).await).await
}

async fn log(run_log: &dyn RunLog, call: &Call) -> Result<Reply, Refusal> {
    let fields = call.query()?;
    let mut page = Page::default();
    for warning in fields.warnings(PARAMETERS) {
        page.warnings.push(warning);
    }
    let (mut query, limit) = query(&fields, &mut page.warnings)?;
    let first = query.skip;
    // One more than asked for, to know whether there is a next page.
    let mut left = limit + 1;
    while left > 0 && !page.full {
        query.limit = left.min(CHUNK);
        let records = store::list(run_log, &query).await?;
        let last_chunk = records.len() < query.limit as usize;
        query.skip = query.skip.saturating_add(u64::from(query.limit));
        left -= query.limit;
        for record in records {
            page.take(record, limit as usize);
        }
        if last_chunk {
            break;
        }
    }
    let next = page.full.then(|| (first + page.records.len() as u64).to_string());
    Ok(Reply { next, ..Reply::new(Value::Array(page.records), page.warnings.finish()) })
}

fn query(fields: &Fields, warnings: &mut Warnings) -> Result<(RecordQuery, u32), Refusal> {
    let Some(name) = fields.filled("name") else {
        return Err(Refusal::bad("name: is missing: give the job's name, as /job/log?name=…"));
    };
    let status = fields.filled("status").map(|text| {
        Status::parse(text).ok_or_else(|| {
            let good: Vec<&str> = Status::ALL.into_iter().map(Status::as_str).collect();
            Refusal::bad(format!("status: {text:?} is none: give one of {}", good.join(", ")))
        })
    });
    let skip = number(fields, "skip", 0, warnings);
    let limit = match number(fields, "limit", u64::from(LIMIT_DEFAULT), warnings) {
        // The seed's "no limit".
        0 => LIMIT_MAX,
        limit => match u32::try_from(limit) {
            Ok(limit) if limit <= LIMIT_MAX => limit,
            _ => {
                warnings.push(format!("limit: at most {LIMIT_MAX} records are served at a time"));
                LIMIT_MAX
            }
        },
    };
    Ok((RecordQuery { job_name: name.to_owned(), status: status.transpose()?, skip, limit }, limit))
}

/// A number, or the seed's default in place of what is none.
fn number(fields: &Fields, name: &str, default: u64, warnings: &mut Warnings) -> u64 {
    let Some(text) = fields.filled(name) else { return default };
    // MongoDB counts in signed numbers.
    match text.parse::<i64>().map(u64::try_from) {
        Ok(Ok(number)) => number,
        _ => {
            warnings.push(format!("{name}: {text:?} is not a whole number from 0, so it is {default}"));
            default
        }
    }
}

/// The page being filled.
#[derive(Default)]
struct Page {
    records: Vec<Value>,
    /// A record that is written while we read moves the others back by one, so that a chunk may begin with what was there before.
    seen: BTreeSet<RecordId>,
    bytes: usize,
    full: bool,
    warnings: Warnings,
}

impl Page {
    fn take(&mut self, record: Record, limit: usize) {
        if self.full || !self.seen.insert(record.id.clone()) {
            return;
        }
        let (mut value, mut bytes) = measured(&record);
        if self.records.len() >= limit || (self.bytes + bytes > PAGE_BYTES_MAX && !self.records.is_empty()) {
            self.full = true;
            return;
        }
        if bytes > PAGE_BYTES_MAX {
            self.warnings.push(format!("the output of {} is cut: it is too large to be served", record.id));
            (value, bytes) = measured(&cut(record));
        }
        self.bytes += bytes;
        self.records.push(value);
    }
}

fn measured(record: &Record) -> (Value, usize) {
    let value = serde_json::to_value(record).expect("plain data with string keys is always JSON");
    let bytes = travelling_bytes(&value.to_string()) + 1;
    (value, bytes)
}

/// The record with texts that fit whatever is in them: one byte may become seven on its way (`\u0000`, its backslash doubled).
fn cut(mut record: Record) -> Record {
    let each = PAGE_BYTES_MAX / 7 / 3 - 1024;
    for text in [&mut record.output, &mut record.command, &mut record.err] {
        if text.len() > each {
            text.truncate(text.floor_char_boundary(each));
        }
    }
    record.output_truncated = true;
    record
}
