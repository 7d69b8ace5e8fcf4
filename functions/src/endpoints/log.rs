//! `GET /job/log`: a job's records, newest first, in pages that never cut silently.

use std::collections::BTreeSet;
use std::time::Duration;

use common::api::envelope::Next;
use common::clock::{Stopwatch, Timestamp};
use common::domain::record::{Record, RecordId, Status};
use common::domain::run::RunId;
use common::run_log::{Place, RecordQuery, RunLog};
use lambda_http::Request;
use serde_json::Value;

use super::Warnings;
use crate::access::out_of_reach;
use crate::http::{
    Call, Fields, PAGE_BYTES_MAX, READ, Refusal, Reply, Response, answer, travelling_bytes,
    travelling_bytes_of,
};
use crate::store;

/// The methods that it takes.
pub const METHODS: &[&str] = READ;

const PARAMETERS: &[&str] =
    &["name", "skip", "limit", "after", "status", "from", "to", "worker", "runId", "text"];

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
/// A text is looked for in so many records at a time: the store reads them whole, and must be done within one call's time.
const PIECE: u64 = 1_000;
/// Looking for a text goes on for so long; what is found then is answered, with where to go on. One more piece fits the handler's time.
const LOOK_FOR: Duration = Duration::from_secs(4);
/// Longest text that is looked for.
const TEXT_BYTES_MAX: usize = 1_000;

/// Serves `GET /job/log`.
pub async fn handle(run_log: &dyn RunLog, request: Request) -> Response {
    answer(METHODS, request, async |call| log(run_log, &call).await).await
}

async fn log(run_log: &dyn RunLog, call: &Call) -> Result<Reply, Refusal> {
    let since = Stopwatch::start();
    let fields = call.query()?;
    let mut page = Page::default();
    for warning in fields.warnings(PARAMETERS) {
        page.warnings.push(warning);
    }
    let (mut query, limit) = query(&fields, &mut page.warnings)?;
    if !call.principal().reaches_name(&query.job_name) {
        return Err(out_of_reach(call.principal()));
    }
    // The way of the first clients, who count. Whoever gives `after`, also an empty one, gets a place for the next page.
    let counted = (fields.get("after").is_none() && query.text.is_none()).then_some(query.skip);
    // One more than asked for, to know whether there is a next page.
    let mut left = limit + 1;
    let mut chunk = CHUNK_FIRST;
    while left > 0 && !page.full {
        if query.text.is_some() && query.until.is_none() {
            query.until = store::place(run_log, &RecordQuery { skip: PIECE - 1, ..query.clone() }).await?;
        }
        query.limit = left.min(chunk);
        let records = store::list(run_log, &query).await?;
        let last_chunk = records.len() < query.limit as usize;
        left -= query.limit.min(u32::try_from(records.len()).unwrap_or(u32::MAX));
        chunk = next_chunk(&records);
        // Not by counting: records that come meanwhile would move the others.
        if let Some(last) = records.last() {
            (query.after, query.skip) = (Some(Place::of(last)), 0);
        }
        for record in records {
            page.take(record, limit as usize);
        }
        if !last_chunk {
            continue;
        }
        match query.until.take() {
            None => break,
            // Nothing more in this piece.
            Some(end) if since.elapsed() < LOOK_FOR => query.after = Some(end),
            Some(end) => {
                page.stop_at(end);
                break;
            }
        }
    }
    let next = page.next(counted).map(Next::Page);
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
    let text = fields.filled("text").map(str::to_owned);
    if text.is_some() && skip > 0 {
        return Err(Refusal::bad(
            "skip: does not go with text: give the `next` of the page before as after=…",
        ));
    }
    if text.as_ref().is_some_and(|text| text.len() > TEXT_BYTES_MAX || text.contains('\0')) {
        let message = format!("text: give at most {TEXT_BYTES_MAX} bytes, none of them NUL");
        return Err(Refusal::bad(message));
    }
    let after = fields.filled("after").map(|after| {
        let bad = || Refusal::bad(format!("after: {after:?} is none: give the `next` of the page before"));
        Place::parse(after).ok_or_else(bad)
    });
    let query = RecordQuery {
        job_name: name.to_owned(),
        status: status.transpose()?,
        from: time(fields, "from")?,
        to: time(fields, "to")?,
        worker: fields.filled("worker").map(str::to_owned),
        run_id: fields.filled("runId").map(RunId::from_text),
        text,
        after: after.transpose()?,
        until: None,
        skip,
        limit,
    };
    Ok((query, limit))
}

/// A time that bounds `startTime`.
fn time(fields: &Fields, name: &str) -> Result<Option<Timestamp>, Refusal> {
    let time = fields.filled(name).map(|text| {
        Timestamp::parse(text).ok_or_else(|| {
            Refusal::bad(format!(
                "{name}: {text:?} is no time: give milliseconds since 1970 or RFC 3339, like 2026-11-21T08:00:00Z"
            ))
        })
    });
    time.transpose()
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
    /// The place of the last of them, or how far a text was looked for.
    reached: Option<Place>,
    full: bool,
    warnings: Warnings,
}

impl Page {
    fn take(&mut self, record: Record, limit: usize) {
        if self.full || !self.seen.insert(record.id.clone()) {
            return;
        }
        let (value, bytes) = measured(&record);
        if self.taken >= limit || (self.bytes + bytes > PAGE_BYTES_MAX && self.taken > 0) {
            self.full = true;
            return;
        }
        self.taken += 1;
        self.reached = Some(Place::of(&record));
        if let Some((value, bytes)) = fitted_of(record, (value, bytes), &mut self.warnings) {
            self.bytes += bytes;
            self.records.push(value);
        }
    }

    /// Says that a text was looked for up to there and no further.
    fn stop_at(&mut self, end: Place) {
        self.full = true;
        self.warnings.push(format!(
            "the text was looked for in records back to {} only: give `next` as after=… to look further",
            end.start_time
        ));
        self.reached = Some(end);
    }

    /// Where the next page begins, if there is one: behind so many records, or behind the last one.
    fn next(&self, counted: Option<u64>) -> Option<String> {
        if !self.full {
            return None;
        }
        match counted {
            Some(skipped) => Some((skipped + self.taken as u64).to_string()),
            None => self.reached.as_ref().map(Place::to_string),
        }
    }
}

/// A record as it is served, with the bytes that it takes on its way: cut where it alone is too large for an answer, or left out, with a warning.
pub(super) fn fitted(record: Record, warnings: &mut Warnings) -> Option<(Value, usize)> {
    let whole = measured(&record);
    fitted_of(record, whole, warnings)
}

fn fitted_of(record: Record, whole: (Value, usize), warnings: &mut Warnings) -> Option<(Value, usize)> {
    if whole.1 <= PAGE_BYTES_MAX {
        return Some(whole);
    }
    let id = record.id.clone();
    let (value, bytes) = measured(&cut(record));
    if bytes > PAGE_BYTES_MAX {
        warnings.push(format!("the record {id} is left out, it is too large to be served"));
        return None;
    }
    warnings.push(format!("the output of {id} is cut: it is too large to be served"));
    Some((value, bytes))
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
