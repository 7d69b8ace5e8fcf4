//! The spool's files: what is found after a crash, on a full disk, from other versions.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use common::clock::Timestamp;
use common::domain::job::JobName;
use common::domain::record::Status;
use common::domain::run::{OpenRun, RunId};

use super::*;
use crate::exec::process::tests as runs;

const MIB: u64 = 1 << 20;
/// Enough for everything.
const ALL: Amount = Amount { records: usize::MAX, bytes: usize::MAX };

/// A record of a run that succeeded; numbers make different ones.
pub(crate) fn record(number: i64) -> Record {
    let sid = Sid(7);
    let at = Timestamp::from_ms(1_800_000_000_000 + number * 1000);
    let open = OpenRun {
        run_id: RunId::new(sid, number.unsigned_abs()),
        job: JobName::parse("a").unwrap(),
        plan_time: at,
        schedule_time: at,
        worker: "w".to_owned(),
        command: "echo hello".to_owned(),
        ..runs::open()
    };
    Record {
        status: Some(Status::Succeeded),
        err: String::new(),
        output: format!("hello {number}\n"),
        start_time: at,
        end_time: at.plus_ms(5),
        exit_code: Some(0),
        ..Record::left_behind(&open, at)
    }
}

fn frames(numbers: impl IntoIterator<Item = i64>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for number in numbers {
        frame::write(&mut bytes, &record(number), Some((Sid(7), number.unsigned_abs())));
    }
    bytes
}

/// The numbers of all records that a process that starts now finds, and up to where they reach.
fn found(dir: &Path) -> (Vec<u64>, Reader, Found) {
    let (_, mut reader, found) = open(dir, Some(MIB)).unwrap();
    let mut numbers = Vec::new();
    for (&segment, &end) in found.segments.range(found.from.segment..) {
        let offset = if segment == found.from.segment { found.from.offset.max(BEGIN) } else { BEGIN };
        let chunk = reader.read(Place { segment, offset }, end, ALL).unwrap();
        assert_eq!(chunk.to, Place { segment, offset: end });
        numbers.extend(chunk.records.iter().map(|(_, settles)| settles.unwrap().1));
    }
    (numbers, reader, found)
}

fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_was_appended_is_found_by_the_next_process_and_goes_when_it_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("spool");
    let (mut writer, _, nothing) = open(&dir, Some(MIB)).unwrap();
    assert_eq!((nothing.records, nothing.segments.len(), nothing.max_bytes), (0, 0, MIB));
    let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(&dir).unwrap());
    assert_eq!(mode & 0o077, 0, "what jobs print is nobody else's to read");
    for group in 0..100 {
        writer.append(&frames(group * 10 + 1..=group * 10 + 10)).unwrap();
    }
    drop(writer);
    let (numbers, mut reader, all) = found(&dir);
    assert_eq!(numbers, (1..=1000).collect::<Vec<u64>>());
    assert_eq!(all.records, 1000);
    assert!(all.segments.len() > 5, "room is given back in small steps: {:?}", all.segments);

    // Half of it is stored: up to the middle of a segment.
    let middle = all.segments.keys().copied().nth(all.segments.len() / 2).unwrap();
    let from = Place { segment: middle, offset: BEGIN };
    let chunk = reader.read(from, all.segments[&middle], Amount { records: 3, bytes: usize::MAX }).unwrap();
    assert_eq!((chunk.records.len(), chunk.passed), (3, 3));
    let done: Vec<u64> = all.segments.keys().copied().filter(|segment| *segment < middle).collect();
    reader.stored(chunk.to, &done).unwrap();
    let (left, mut reader, rest) = found(&dir);
    let last_stored = chunk.records.last().unwrap().1.unwrap().1;
    assert_eq!(left, (last_stored + 1..=1000).collect::<Vec<u64>>());
    assert_eq!(rest.records, left.len());

    // All is stored: numbers go on behind, so that `stored` is never of another segment of the same number.
    let done: Vec<u64> = rest.segments.keys().copied().collect();
    let last = *done.last().unwrap();
    reader.stored(Place { segment: last, offset: rest.segments[&last] }, &done).unwrap();
    assert_eq!(files(&dir), ["stored"]);
    let (mut writer, _, nothing) = open(&dir, Some(MIB)).unwrap();
    assert_eq!((nothing.records, nothing.segments.len()), (0, 0));
    assert_eq!(writer.append(&frames([1])).unwrap(), Place { segment: last + 1, offset: BEGIN });
    assert_eq!(found(&dir).0, [1]);
}

#[test]
fn a_process_that_died_while_it_wrote_costs_what_it_was_writing_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, ..) = open(dir.path(), Some(MIB)).unwrap();
    let first = writer.append(&frames([1, 2, 3])).unwrap();
    let path = writer.dir.segment(first.segment);
    let whole = fs::read(&path).unwrap();
    let torn = whole.len() - frames([3]).len();
    for length in [0, 3, HEADER.len(), HEADER.len() + 1, torn + 1, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        let expected: &[u64] = if length > torn { &[1, 2] } else { &[] };
        let (numbers, mut reader, all) = found(dir.path());
        assert_eq!((numbers.as_slice(), all.records), (expected, expected.len()), "{length} bytes");
        // And the next process writes behind it.
        let (mut writer, ..) = open(dir.path(), Some(MIB)).unwrap();
        let place = writer.append(&frames([4])).unwrap();
        let expected: Vec<u64> = expected.iter().copied().chain([4]).collect();
        assert_eq!(found(dir.path()).0, expected, "{length} bytes");
        reader.remove(place.segment).unwrap();
    }
    // What says how far it is stored may be missing or broken: then more is stored again.
    fs::write(&path, &whole).unwrap();
    let (_, mut reader, all) = found(dir.path());
    reader.stored(Place { segment: first.segment, offset: all.segments[&first.segment] }, &[]).unwrap();
    assert_eq!(found(dir.path()).0, [] as [u64; 0]);
    fs::write(dir.path().join("stored"), "{").unwrap();
    assert_eq!(found(dir.path()).0, [1, 2, 3]);
}

#[test]
fn a_full_disk_takes_nothing_and_what_it_took_before_stays() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, ..) = open(dir.path(), Some(MIB)).unwrap();
    let room = Arc::new(AtomicUsize::new(usize::MAX));
    writer.room = Some(Arc::clone(&room));
    writer.append(&frames([1])).unwrap();
    // It is full in the middle of a group; then nothing fits at all; then too little.
    room.store(frames([2]).len() + 10, SeqCst);
    assert_eq!(writer.append(&frames([2, 3])).unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert!(writer.append(&frames([2, 3])).is_err());
    assert!(writer.probe().is_err());
    room.store(PROBE_BYTES / 2, SeqCst);
    assert!(writer.probe().is_err());
    assert_eq!(found(dir.path()).0, [1]);
    assert_eq!(files(dir.path()).len(), 1, "nothing is left of what did not fit");
    room.store(usize::MAX, SeqCst);
    writer.probe().unwrap();
    writer.append(&frames([2, 3])).unwrap();
    assert_eq!(found(dir.path()).0, [1, 2, 3]);
}

#[test]
fn what_another_version_has_written_is_kept_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, ..) = open(dir.path(), Some(MIB)).unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let place = writer.append(&frames([1, 2])).unwrap();
    let path = writer.dir.segment(place.segment);
    // The second record's status is one of the future.
    let mut bytes = fs::read(&path).unwrap();
    let mut future = record(2);
    future.status = Some(Status::Succeeded);
    bytes.truncate(bytes.len() - frames([2]).len());
    let mut frame = Vec::new();
    frame::write(&mut frame, &future, None);
    let json = text(&frame[16..]).replace("succeeded", "dreamtofx");
    assert_eq!(json.len(), frame.len() - 16, "the same length");
    let length = u32::try_from(json.len()).unwrap().to_le_bytes();
    let sum = xxhash_rust::xxh3::xxh3_64(&[&length, json.as_bytes()].concat()).to_le_bytes();
    bytes.extend([&frame[..4], &length, &sum, json.as_bytes()].concat());
    fs::write(&path, &bytes).unwrap();
    // And a whole segment is of another format.
    fs::write(writer.dir.segment(9), b"fcspool\x02 and something else").unwrap();

    let (numbers, mut reader, all) = found(dir.path());
    assert_eq!(numbers, [1]);
    let done: Vec<u64> = all.segments.keys().copied().collect();
    reader.stored(Place { segment: 9, offset: all.segments[&9] }, &done).unwrap();
    let kept = [format!("{:020}.unread", place.segment), format!("{:020}.unread", 9), "stored".to_owned()];
    assert_eq!(files(dir.path()), kept);
    assert_eq!(found(dir.path()).0, [1], "the next process tries again");
}

#[test]
fn without_a_setting_it_takes_half_of_what_the_disk_has_left_at_most() {
    let dir = tempfile::tempdir().unwrap();
    let (_, _, nothing) = open(dir.path(), None).unwrap();
    let disk = rustix::fs::statvfs(dir.path()).unwrap();
    assert!(nothing.max_bytes > 0 && nothing.max_bytes <= MAX_BYTES);
    assert!(nothing.max_bytes <= disk.f_blocks * disk.f_frsize / 2);
}
