//! `GET /run/output`: what a run prints, while it goes and afterwards.

use std::time::Duration;

use common::clock::{self, Stopwatch};
use common::domain::output::Chunk;
use common::domain::record::{Record, Status};
use common::domain::run::RunId;
use common::kv::Kv;
use common::run_log::RunLog;
use lambda_http::Request;
use serde_json::json;

use super::runs::{self, Run};
use super::{Warnings, log};
use crate::http::{Call, Fields, READ, Refusal, Reply, Response, answer};
use crate::store;

/// The methods that it takes.
pub const METHODS: &[&str] = READ;

const PARAMETERS: &[&str] = &["id", "after", "wait"];

/// Longest wait for output, in seconds: with the last look it ends before the handler's time does (and the gateway's, and the function's).
const WAIT_SECONDS_MAX: u64 = 8;
/// Somebody who waits looks this often; a run's output is not written oftener.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Most bytes of one answer: each may become seven on its way, and an answer may have six megabytes.
const BYTES_MAX: usize = 512 * 1024;

/// Serves `GET /run/output`.
pub async fn handle(kv: &dyn Kv, run_log: &dyn RunLog, request: Request) -> Response {
    answer(METHODS, request, async |call| output(kv, run_log, &call).await).await
}

async fn output(kv: &dyn Kv, run_log: &dyn RunLog, call: &Call) -> Result<Reply, Refusal> {
    let since = Stopwatch::start();
    let query = call.query()?;
    let mut warnings = Warnings::default();
    for warning in query.warnings(PARAMETERS) {
        warnings.push(warning);
    }
    let (id, after) = (runs::id(&query)?, number(&query, "after")?);
    let wait = Duration::from_secs(number(&query, "wait")?.min(WAIT_SECONDS_MAX));
    let mut run = runs::find(kv, run_log, id, call.principal()).await?;
    let (piece, ended) = loop {
        let (open, key) = match run {
            Run::Open(open, key) => (open, key),
            Run::Ended(record) => break of_record(run_log, *record, after, &mut warnings).await?,
        };
        let piece = Piece::of_chunks(&store::output(run_log, &open.run_id, after).await?, after);
        if !piece.text.is_empty() || since.elapsed() + LOOK_EVERY > wait {
            break (piece, false);
        }
        clock::sleep(LOOK_EVERY).await;
        run = match runs::open_at(kv, key, id).await? {
            Some((open, key)) => Run::Open(open, key),
            None => runs::find(kv, run_log, id, call.principal()).await?,
        };
    };
    let data = json!({ "output": piece.text, "from": piece.from, "next": piece.next, "ended": ended });
    Ok(Reply::new(data, warnings.finish()))
}

fn number(query: &Fields, name: &str) -> Result<u64, Refusal> {
    query.filled(name).map_or(Ok(0), |text| {
        let number = text.parse().ok().filter(|number| *number <= i64::MAX.unsigned_abs());
        number.ok_or_else(|| Refusal::bad(format!("{name}: {text:?} is not a whole number from 0")))
    })
}

/// Some of what a run printed.
#[derive(Debug, PartialEq, Eq)]
struct Piece {
    /// How many bytes were printed before it.
    from: u64,
    /// How many bytes were printed up to its end.
    next: u64,
    /// What was printed; U+FFFD for what is not UTF-8.
    text: String,
}

impl Piece {
    fn nothing(at: u64) -> Self {
        Self { from: at, next: at, text: String::new() }
    }

    /// What is stored behind the first `after` bytes, up to where something is missing. A character that has come in half is left for the
    /// next answer, unless its other half is what is missing.
    fn of_chunks(chunks: &[Chunk], after: u64) -> Self {
        let (mut from, mut bytes, mut whole) = (after, Vec::new(), true);
        for chunk in chunks {
            let end = from + bytes.len() as u64;
            if chunk.from > end && !bytes.is_empty() {
                whole = false;
                break;
            }
            if chunk.from > end {
                from = chunk.from;
            }
            let known =
                usize::try_from((from + bytes.len() as u64).saturating_sub(chunk.from)).unwrap_or(usize::MAX);
            bytes.extend_from_slice(chunk.bytes.get(known..).unwrap_or_default());
            if bytes.len() >= BYTES_MAX {
                bytes.truncate(BYTES_MAX);
                break;
            }
        }
        if from > after {
            // Behind a gap, the first bytes may be the rest of a character.
            let rest = bytes.iter().take(3).take_while(|byte| **byte & 0b1100_0000 == 0b1000_0000).count();
            bytes.drain(..rest);
            from += rest as u64;
        }
        if whole {
            bytes.truncate(bytes.len() - half_character(&bytes));
        }
        Self { from, next: from + bytes.len() as u64, text: String::from_utf8_lossy(&bytes).into_owned() }
    }
}

/// How many bytes at the end begin a character and do not end it.
fn half_character(bytes: &[u8]) -> usize {
    let last = bytes.utf8_chunks().last().map_or(&[][..], |last| last.invalid());
    match std::str::from_utf8(last) {
        Err(why) if why.error_len().is_none() => last.len(),
        _ => 0,
    }
}

/// What the record has behind the first `after` bytes, and whether that is all.
async fn of_record(
    run_log: &dyn RunLog,
    record: Record,
    after: u64,
    warnings: &mut Warnings,
) -> Result<(Piece, bool), Refusal> {
    if record.status == Some(Status::Lost) {
        // The worker that could have said more is gone: what it stored while the run went is all there is.
        let run_id = record.claim.clone().unwrap_or_else(|| RunId::from_text(""));
        let piece = Piece::of_chunks(&store::output(run_log, &run_id, after).await?, after);
        let ended = piece.text.is_empty();
        return Ok((piece, ended));
    }
    let text = &record.output;
    let printed = record.output_bytes.unwrap_or(text.len() as u64);
    // Then a byte of the text is a byte that was printed.
    let is_exact = !record.output_truncated && !text.contains(char::REPLACEMENT_CHARACTER);
    if after >= printed {
        return Ok((Piece::nothing(after), true));
    }
    if !is_exact {
        // What the reader has is not a beginning of it: all of it, in place of what was read so far.
        let fitted = log::fitted(record, warnings).map(|(record, _bytes)| record);
        let text =
            fitted.as_ref().and_then(|record| record["output"].as_str()).unwrap_or_default().to_owned();
        return Ok((Piece { from: 0, next: printed, text }, true));
    }
    let start = text.floor_char_boundary(usize::try_from(after).unwrap_or(usize::MAX));
    let end = text.floor_char_boundary(start + BYTES_MAX);
    let piece = Piece { from: start as u64, next: end as u64, text: text[start..end].to_owned() };
    Ok((piece, end == text.len()))
}

#[cfg(test)]
mod tests {
    use common::clock::Timestamp;

    use super::*;

    fn chunk(from: u64, bytes: &[u8]) -> Chunk {
        let (run_id, at) = (RunId::from_text("a-1"), Timestamp::ZERO);
        Chunk { run_id, slot: 0, from, bytes: bytes.to_vec(), at }
    }

    #[track_caller]
    fn check(chunks: &[(u64, &[u8])], after: u64, from: u64, text: &str, next: u64) {
        let chunks: Vec<Chunk> = chunks.iter().map(|(from, bytes)| chunk(*from, bytes)).collect();
        let expected = Piece { from, next, text: text.to_owned() };
        assert_eq!(Piece::of_chunks(&chunks, after), expected);
    }

    #[test]
    fn chunks_are_put_together_from_any_byte_on() {
        check(&[], 7, 7, "", 7);
        check(&[(0, b"one "), (4, b"two")], 0, 0, "one two", 7);
        check(&[(0, b"one "), (4, b"two")], 2, 2, "e two", 7);
        check(&[(0, b"one "), (4, b"two")], 4, 4, "two", 7);
        check(&[(0, b"one")], 3, 3, "", 3);
        // Of a slot that was written over meanwhile, the longer form.
        check(&[(0, b"one "), (2, b"e two")], 1, 1, "ne two", 7);
    }

    #[test]
    fn a_gap_ends_an_answer_and_is_seen_in_the_next() {
        check(&[(0, b"one"), (100, b"two")], 0, 0, "one", 3);
        check(&[(100, b"two")], 3, 100, "two", 103);
    }

    #[test]
    fn characters_are_whole_over_the_borders_of_chunks() {
        let bird = "a复b".as_bytes();
        check(&[(0, &bird[..2]), (2, &bird[2..])], 0, 0, "a复b", 5);
        check(&[(0, &bird[..3])], 0, 0, "a", 1);
        check(&[(0, &bird[..3])], 1, 1, "", 1);
        // The half that will never be whole is not waited for.
        check(&[(0, &bird[..3]), (100, b"x")], 1, 1, "\u{fffd}", 3);
        check(&[(50, &bird[3..])], 0, 51, "b", 52);
        // Neither is what is no character at all.
        check(&[(0, b"a\xff")], 0, 0, "a\u{fffd}", 2);
    }

    #[test]
    fn an_answer_is_bounded() {
        let long = vec![b'x'; BYTES_MAX + 1];
        let piece = Piece::of_chunks(&[chunk(0, &long)], 0);
        assert_eq!((piece.text.len(), piece.next), (BYTES_MAX, BYTES_MAX as u64));
    }
}
