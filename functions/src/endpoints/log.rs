//! `GET /job/log`: a job's records, newest first, in pages that never cut silently.

use std::collections::BTreeSet;

use common::domain::record::{Record, RecordId, Status};
use common::run_log::{RecordQuery, RunLog};
use lambda_http::Request;
use serde_json::Value;

use super::Warnings;
use crate::http::{
    Call, Fields, PAGE_BYTES_MAX, READ, Refusal, Reply, Response, answer, travelling_bytes,
    travelling_bytes_of,
};
use crate::store;

/// The methods that it takes.
pub const METHODS: &[&str] = READ;

const PARAMETERS: &[&str] = &["name", "skip", "limit", "status"];

/// The seed's default.
const LIMIT_DEFAULT: u32 = 20;
/// Most records in one answer: what a person scrolls through, and some 5 MB at usual sizes.
const LIMIT_MAX: u32 = 1000;
/// Records asked for first: one page of the usual size and one more. With their output they may have a megabyte each, and a function has little
/// memory.
const CHUNK_FIRST: u32 = LIMIT_DEFAULT + 1;
/// Records asked for at a time once their size is known: as many as make so many bytes on the average, at most so many.
const CHUNK_BYTES: usize = 8 * 1024 * 1024;
const CHUNK_MAX: u32 = 250;

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
    let mut chunk = CHUNK_FIRST;
    while left > 0 && !page.full {
        query.limit = left.min(chunk);
        let records = store::list(run_log, &query).await?;
        let last_chunk = records.len() < query.limit as usize;
        query.skip = query.skip.saturating_add(u64::from(query.limit));
        left -= query.limit;
        chunk = next_chunk(&records);
        for record in records {
            page.take(record, limit as usize);
        }
        if last_chunk {
            break;
        }
    }
    let next = page.full.then(|| (first + page.taken as u64).to_string());
    Ok(Reply { next, ..Reply::new(Value::Array(page.records), page.warnings.finish()) })
}

fn next_chunk(records: &[Record]) -> u32 {
    let bytes: usize = records.iter().map(|record| record.output.len() + record.command.len() + 1024).sum();
    let average = bytes / records.len().max(1);
    u32::try_from(CHUNK_BYTES / average.max(1)).unwrap_or(CHUNK_MAX).clamp(1, CHUNK_MAX)
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
    /// Records served or left out.
    taken: usize,
    full: bool,
    warnings: Warnings,
}

impl Page {
    fn take(&mut self, record: Record, limit: usize) {
        if self.full || !self.seen.insert(record.id.clone()) {
            return;
        }
        let (mut value, mut bytes) = measured(&record);
        if self.taken >= limit || (self.bytes + bytes > PAGE_BYTES_MAX && self.taken > 0) {
            self.full = true;
            return;
        }
        self.taken += 1;
        if bytes > PAGE_BYTES_MAX {
            let id = record.id.clone();
            (value, bytes) = measured(&cut(record));
            if bytes > PAGE_BYTES_MAX {
                self.warnings.push(format!("the record {id} is left out, it is too large to be served"));
                return;
            }
            self.warnings.push(format!("the output of {id} is cut: it is too large to be served"));
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

/// The record with as much of its output as fits a page. Where its other texts are what is too long (other hands may write what they like),
/// these are cut as well.
fn cut(mut record: Record) -> Record {
    record.output_truncated = true;
    let output = std::mem::take(&mut record.output);
    let (_, mut rest) = measured(&record);
    if rest >= PAGE_BYTES_MAX {
        for text in [&mut record.command, &mut record.err] {
            text.truncate(fitting(text, PAGE_BYTES_MAX / 4));
        }
        (_, rest) = measured(&record);
    }
    record.output = output;
    record.output.truncate(fitting(&record.output, PAGE_BYTES_MAX.saturating_sub(rest)));
    record
}

/// The length of the longest beginning of a text that takes at most so many bytes on its way.
fn fitting(text: &str, bytes: usize) -> usize {
    let mut left = bytes;
    for (at, character) in text.char_indices() {
        match left.checked_sub(travelling_bytes_of(character)) {
            Some(rest) => left = rest,
            None => return at,
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(output: &str, command: &str, job: &str) -> Record {
        let value = serde_json::json!({"_id": "a", "jobName": job, "command": command, "output": output});
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn as_much_of_a_record_is_served_as_fits() {
        for character in ["\0", "\"", "\n", "x", "任"] {
            let served = cut(record(&character.repeat(6_000_000), "true", "a"));
            let (_, bytes) = measured(&served);
            assert!(bytes <= PAGE_BYTES_MAX && bytes + 7 > PAGE_BYTES_MAX, "{character:?}: {bytes}");
            assert_eq!(served.command, "true");
        }
        let served = cut(record("output", &"\0".repeat(6_000_000), "a"));
        assert!(served.command.len() > 100_000 && served.output == "output");
    }

    #[test]
    fn a_record_that_fits_no_page_is_left_out_and_counted() {
        let mut page = Page::default();
        page.take(record("", "", &"x".repeat(PAGE_BYTES_MAX)), 10);
        assert_eq!((page.records.len(), page.taken, page.full), (0, 1, false));
        assert!(page.warnings.finish()[0].contains("left out"));
    }

    #[test]
    fn large_records_are_read_a_few_at_a_time() {
        assert_eq!(next_chunk(&[]), CHUNK_MAX);
        assert_eq!(next_chunk(&vec![record("x", "true", "a"); 21]), CHUNK_MAX);
        assert_eq!(next_chunk(&vec![record(&"x".repeat(1024 * 1024), "true", "a"); 21]), 7);
    }
}
