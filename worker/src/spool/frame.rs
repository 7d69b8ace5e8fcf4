//! One record on disk: mark, length, checksum, JSON. What is broken is passed over up to the next frame that is whole.
//!
//! The mark has bytes that no UTF-8 text has, so that no output of a job looks like a frame. JSON, since what another version has written
//! must be told from what is damaged, and a person may have to read it.

use common::domain::record::Record;
use common::domain::worker::Sid;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

/// Format version of what is in a frame.
const VERSION: u64 = 1;
/// Every frame begins so.
const MARK: [u8; 4] = [0xff, b'f', b'c', 0xfe];
/// Mark, length of the JSON (u32), checksum of length and JSON (XXH3, u64); little-endian.
const HEAD: usize = 16;

/// What is in a frame.
#[derive(Serialize)]
struct Writing<'a> {
    v: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    settles: Option<(Sid, u64)>,
    record: &'a Record,
}

/// As it is read back.
#[derive(Deserialize)]
struct Read {
    v: u64,
    #[serde(default)]
    settles: Option<(Sid, u64)>,
    record: Record,
}

/// What stands at a place of a segment. `to` is where the next piece begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Piece<'a> {
    /// A frame as it was written.
    Whole {
        /// To be read with [`read`].
        content: &'a [u8],
        to: usize,
    },
    /// Something else, with a whole frame behind it: what was there is damaged.
    Damaged { to: usize },
    /// Something else up to the end: most likely the process or the machine ended while it was written.
    Torn,
}

/// Writes a record's frame behind what is there.
pub(crate) fn write(into: &mut Vec<u8>, record: &Record, settles: Option<(Sid, u64)>) {
    let start = into.len();
    into.extend_from_slice(&[0; HEAD]);
    let content = Writing { v: VERSION, settles, record };
    serde_json::to_writer(&mut *into, &content).expect("plain data with string keys is always JSON");
    let length = u32::try_from(into.len() - start - HEAD).expect("a record is far below 4 GiB").to_le_bytes();
    let sum = checksum(length, &into[start + HEAD..]).to_le_bytes();
    into[start..start + HEAD].copy_from_slice(&[&MARK[..], &length, &sum].concat());
}

/// Reads the content of a frame; the error says why this version does not understand it.
pub(crate) fn read(content: &[u8]) -> Result<(Record, Option<(Sid, u64)>), String> {
    let read: Read = serde_json::from_slice(content).map_err(|why| why.to_string())?;
    if read.v > VERSION {
        return Err(format!("format version {} is newer than {VERSION}", read.v));
    }
    Ok((read.record, read.settles))
}

/// What stands at `at`; `None` at the end.
pub(crate) fn piece(bytes: &[u8], at: usize) -> Option<Piece<'_>> {
    if at >= bytes.len() {
        return None;
    }
    if let Some((content, to)) = whole(bytes, at) {
        return Some(Piece::Whole { content, to });
    }
    let next = (at + 1..bytes.len()).find(|&next| bytes[next] == MARK[0] && whole(bytes, next).is_some());
    Some(next.map_or(Piece::Torn, |to| Piece::Damaged { to }))
}

fn whole(bytes: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let (head, rest) = bytes.get(at..)?.split_at_checked(HEAD)?;
    let (mark, head) = head.split_first_chunk::<4>()?;
    let (length, sum) = head.split_first_chunk::<4>()?;
    let length_of_content = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    let content = rest.get(..length_of_content).filter(|_| *mark == MARK)?;
    (checksum(*length, content).to_le_bytes() == *sum).then_some((content, at + HEAD + length_of_content))
}

fn checksum(length: [u8; 4], content: &[u8]) -> u64 {
    let mut sum = Xxh3::new();
    sum.update(&length);
    sum.update(content);
    sum.digest()
}

#[cfg(test)]
mod tests {
    use super::super::tests::record;
    use super::*;

    /// Three frames, and where each ends.
    fn three() -> (Vec<u8>, [usize; 3]) {
        let mut bytes = Vec::new();
        let ends = [1, 2, 3].map(|number| {
            write(&mut bytes, &record(number), Some((Sid(7), number.unsigned_abs())));
            bytes.len()
        });
        (bytes, ends)
    }

    /// The seq of each record that is found, and the kinds of everything else.
    fn found(bytes: &[u8]) -> (Vec<u64>, usize, bool) {
        let (mut seqs, mut damaged, mut at) = (Vec::new(), 0, 0);
        while let Some(piece) = piece(bytes, at) {
            at = match piece {
                Piece::Whole { content, to } => {
                    let (read_back, settles) = read(content).unwrap();
                    let (_, seq) = settles.unwrap();
                    assert_eq!(read_back, record(i64::try_from(seq).unwrap()));
                    seqs.push(seq);
                    to
                }
                Piece::Damaged { to } => {
                    damaged += 1;
                    to
                }
                Piece::Torn => return (seqs, damaged, true),
            };
        }
        (seqs, damaged, false)
    }

    #[test]
    fn whatever_is_cut_off_the_end_costs_the_last_frame_alone() {
        let (bytes, [_, second, third]) = three();
        assert_eq!(found(&bytes), (vec![1, 2, 3], 0, false));
        assert_eq!(found(&bytes[..second]), (vec![1, 2], 0, false));
        for end in second + 1..third {
            assert_eq!(found(&bytes[..end]), (vec![1, 2], 0, true), "cut at {end}");
            // As a file system may leave it: the length is there, and the content is not.
            let mut zeroed = bytes.clone();
            zeroed[end..].fill(0);
            assert_eq!(found(&zeroed), (vec![1, 2], 0, true), "zeros from {end}");
        }
    }

    #[test]
    fn a_flipped_byte_costs_its_own_frame_alone() {
        let (bytes, [first, second, _]) = three();
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x41;
            let expected = match at {
                at if at < first => (vec![2, 3], 1, false),
                at if at < second => (vec![1, 3], 1, false),
                _ => (vec![1, 2], 0, true),
            };
            assert_eq!(found(&flipped), expected, "byte {at}");
        }
    }

    #[test]
    fn output_that_looks_like_a_frame_is_none() {
        let mut inner = Vec::new();
        write(&mut inner, &record(9), Some((Sid(7), 9)));
        let mut record = record(1);
        record.output = String::from_utf8_lossy(&inner).into_owned();
        let mut bytes = Vec::new();
        write(&mut bytes, &record, None);
        let content = bytes.len() / 2;
        bytes[content] ^= 1;
        assert_eq!(found(&bytes), (vec![], 0, true));
    }

    #[test]
    fn what_another_version_has_written_is_told_from_what_is_damaged() {
        let (bytes, _) = three();
        let Some(Piece::Whole { content, .. }) = piece(&bytes, 0) else { panic!("whole") };
        let text = String::from_utf8(content.to_vec()).unwrap();
        // A field of a newer version harms nobody; a status that is not known cannot be stored as it was meant.
        assert!(read(text.replacen("{\"v\"", "{\"new\":1,\"v\"", 1).as_bytes()).is_ok());
        assert!(read(text.replace("\"succeeded\"", "\"dreamt\"").as_bytes()).is_err());
        assert!(read(text.replacen("\"v\":1", "\"v\":2", 1).as_bytes()).unwrap_err().contains("newer"));
    }
}
