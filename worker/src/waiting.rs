//! What waits for the record store: records in memory until they are on disk, the newest of those on disk, and how far all that has come.
//! Between the scheduler's loop, which puts, the thread that writes the spool, and the task that stores.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use common::clock::Timestamp;
use common::domain::record::Record;
use common::domain::worker::Sid;
use tokio::sync::Notify;

use crate::spool::{self, Found, Place, Reader};

/// Records in memory: beyond so many bytes nothing more is claimed until they are on disk or stored. Half of what a small container has.
const MEMORY_BYTES_MAX: usize = 256 << 20;
/// The newest records on disk are kept in memory up to so many bytes, so that nothing is read back while the store keeps up.
const FRESH_BYTES_MAX: usize = 16 << 20;
/// Written at once: one record at least.
const GROUP_BYTES_MAX: usize = 4 << 20;
/// What a record weighs beside its texts.
const RECORD_OVERHEAD_BYTES: usize = 1024;
/// What is full is no longer so when this much of its room is left again, in parts of the whole: it must not change with every record.
const ROOM_AGAIN: u64 = 8;
/// Open runs that have ended and whose records the store has not: in the whole fleet, beyond which those on a worker's disk go from etcd
/// (design P12). An open run takes some 400 bytes, 4.5 KB with the longest command: 225 MB of etcd's 2 GB at worst.
const UNSETTLED_IN_FLEET_MAX: usize = 50_000;
/// A worker of a very large fleet may still leave so many.
const UNSETTLED_MIN: usize = 50;
/// Settled at once.
const SETTLED_AT_ONCE: usize = 1024;

/// The number of an open key in its session.
pub(crate) type OpenKey = (Sid, u64);

/// A record and the open key that it settles.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) record: Box<Record>,
    pub(crate) settles: Option<OpenKey>,
}

impl Entry {
    pub(crate) fn bytes(&self) -> usize {
        self.record.output.len() + self.record.command.len() + RECORD_OVERHEAD_BYTES
    }
}

/// A record on disk that is in memory too.
#[derive(Debug)]
struct Fresh {
    entry: Entry,
    from: Place,
    to: Place,
}

/// Records handed out to be stored.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) records: Vec<Record>,
    /// Bytes of them, about.
    pub(crate) bytes: usize,
    /// The open keys that they settle.
    keys: Vec<OpenKey>,
    /// How many records that is; those count that another version wrote and only it can store.
    passed: usize,
    /// Up to where in the spool that is, if any of them are from there.
    to: Option<Place>,
    /// Bytes of those that are not on disk.
    bytes_in_memory: usize,
    /// They are an earlier process's.
    inherited: bool,
}

impl Batch {
    /// Some of it did not come through the writer of this process: nobody has told of it.
    pub(crate) fn is_untold(&self) -> bool {
        self.inherited || self.bytes_in_memory > 0
    }

    /// What was read from the spool.
    pub(crate) fn read(chunk: spool::Chunk, inherited: bool) -> Self {
        let (records, keys): (_, Vec<Option<OpenKey>>) = chunk.records.into_iter().unzip();
        let keys = keys.into_iter().flatten().collect();
        Self { records, keys, passed: chunk.passed, to: Some(chunk.to), inherited, ..Self::default() }
    }
}

/// How much waits, seen from outside.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Figures {
    /// Records not yet stored.
    pub(crate) records: usize,
    /// Bytes of those that are in memory alone.
    pub(crate) memory_bytes: usize,
    /// Bytes of the others on disk.
    pub(crate) spool_bytes: u64,
    /// Beyond so many nothing is claimed; 0 = there is no spool.
    pub(crate) spool_bytes_max: u64,
    /// When the run of the oldest ended.
    pub(crate) oldest: Option<Timestamp>,
    /// Why the disk takes none.
    pub(crate) fault: Option<String>,
    /// There is no room for more.
    pub(crate) is_full: bool,
}

/// What waits.
#[derive(Debug)]
pub(crate) struct Waiting {
    state: Mutex<State>,
    /// There is something to be written.
    put: Condvar,
    /// There is something to be stored.
    came: Notify,
    /// More open runs are unsettled than may be.
    many: Notify,
}

#[derive(Debug)]
struct State {
    /// There is to be a spool.
    spooled: bool,
    /// Nothing more is put.
    closed: bool,
    /// Not on disk.
    pending: VecDeque<Entry>,
    /// Records that the writer has in its hands.
    writing: usize,
    memory_bytes: usize,
    records: usize,
    /// Up to where each segment is on disk.
    segments: BTreeMap<u64, u64>,
    /// The segment that is written, if any.
    growing: Option<u64>,
    max_bytes: u64,
    /// Segments before this are of earlier processes.
    own_from: u64,
    /// Handed out up to here.
    at: Place,
    /// Everything before this is stored.
    stored: Place,
    /// The newest on disk without a gap; before them, one has to read.
    fresh: VecDeque<Fresh>,
    fresh_bytes: usize,
    reader: Option<Reader>,
    fault: Option<String>,
    /// The record store did not take the last ones.
    refused: bool,
    is_full: bool,
    /// The oldest of those handed out.
    oldest: Option<Timestamp>,
    /// Open keys whose runs have a record, as long as they are there: whether that record is on disk.
    unsettled: BTreeMap<OpenKey, bool>,
    /// How many of them may wait for the store.
    unsettled_max: usize,
}

impl State {
    /// What must be read from disk: from where, up to how far in that segment.
    fn backlog(&self) -> Option<(Place, u64)> {
        let limit = self.fresh.front().map(|fresh| fresh.from);
        for (&segment, &end) in self.segments.range(self.at.segment..) {
            let offset = if segment == self.at.segment { self.at.offset } else { 0 };
            let from = Place { segment, offset: offset.max(spool::BEGIN) };
            let end = match limit {
                Some(limit) if segment > limit.segment => return None,
                Some(limit) if segment == limit.segment => end.min(limit.offset),
                _ => end,
            };
            if from.offset < end {
                return Some((from, end));
            }
        }
        None
    }

    /// Bytes on disk that are not stored. Not what the segments take: of those that are there for a part alone nothing could be given back.
    fn spool_bytes(&self) -> u64 {
        let all: u64 =
            self.segments.range(self.stored.segment..).map(|(_, end)| end - spool::BEGIN.min(*end)).sum();
        let done = if self.segments.contains_key(&self.stored.segment) { self.stored.offset } else { 0 };
        all.saturating_sub(done.saturating_sub(spool::BEGIN))
    }

    fn is_all_stored(&self) -> bool {
        self.pending.is_empty() && self.writing == 0 && self.fresh.is_empty() && self.backlog().is_none()
    }

    /// Nothing new is claimed when what is there already could not be kept: no room in memory or in the spool, or neither disk nor record store
    /// take anything. With one of these two records are as safe as they were without a spool.
    fn look_whether_full(&mut self) -> bool {
        let above = |value: u64, max: u64| value >= if self.is_full { max - max / ROOM_AGAIN } else { max };
        let memory = above(self.memory_bytes as u64, MEMORY_BYTES_MAX as u64);
        let disk = self.max_bytes > 0 && above(self.spool_bytes(), self.max_bytes);
        self.is_full = memory || disk || (self.fault.is_some() && self.refused);
        self.is_full
    }
}

impl Waiting {
    /// Nothing waits. `spooled`: records are to be written to disk.
    pub(crate) fn new(spooled: bool) -> Self {
        let state = State {
            spooled,
            closed: false,
            pending: VecDeque::new(),
            writing: 0,
            memory_bytes: 0,
            records: 0,
            segments: BTreeMap::new(),
            growing: None,
            max_bytes: 0,
            own_from: 0,
            at: Place::default(),
            stored: Place::default(),
            fresh: VecDeque::new(),
            fresh_bytes: 0,
            reader: None,
            fault: None,
            refused: false,
            is_full: false,
            oldest: None,
            unsettled: BTreeMap::new(),
            unsettled_max: UNSETTLED_IN_FLEET_MAX,
        };
        Self { state: Mutex::new(state), put: Condvar::new(), came: Notify::new(), many: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // --- the scheduler's loop -----------------------------------------------------------------------------------------

    /// Takes one more; never waits.
    pub(crate) fn put(&self, entry: Entry) {
        let mut state = self.state();
        state.records += 1;
        state.memory_bytes += entry.bytes();
        state.unsettled.extend(entry.settles.map(|key| (key, false)));
        state.pending.push_back(entry);
        let (to_be_written, to_be_stored) = (state.spooled, !state.spooled || state.fault.is_some());
        drop(state);
        if to_be_written {
            self.put.notify_one();
        }
        if to_be_stored {
            self.came.notify_one(); // the writer, which would tell of it, waits for the disk
        }
    }

    pub(crate) fn figures(&self) -> Figures {
        let mut state = self.state();
        let in_memory = state.fresh.front().map(|fresh| &fresh.entry).or(state.pending.front());
        Figures {
            records: state.records,
            memory_bytes: state.memory_bytes,
            spool_bytes: state.spool_bytes(),
            spool_bytes_max: state.max_bytes,
            oldest: state.oldest.or(in_memory.map(|entry| entry.record.end_time)),
            fault: state.fault.clone(),
            is_full: state.look_whether_full(),
        }
    }

    /// The record that settles this open key waits, or is stored and the key about to be settled.
    pub(crate) fn settles(&self, key: OpenKey) -> bool {
        self.state().unsettled.contains_key(&key)
    }

    /// How many open keys that is.
    pub(crate) fn unsettled(&self) -> usize {
        self.state().unsettled.len()
    }

    /// So many workers share what etcd may hold. Each takes the same part of it, without asking the others: what one does not use is not used.
    pub(crate) fn share_among(&self, workers: usize) {
        self.state().unsettled_max = (UNSETTLED_IN_FLEET_MAX / workers.max(1)).max(UNSETTLED_MIN);
        self.many.notify_one();
    }

    /// Nothing more is put: the writer ends when all is written.
    pub(crate) fn close(&self) {
        self.state().closed = true;
        self.put.notify_one();
    }

    // --- the writer ---------------------------------------------------------------------------------------------------

    /// The spool is open, with what an earlier process has left.
    pub(crate) fn opened(&self, reader: Reader, found: Found) {
        let mut state = self.state();
        state.own_from = found.segments.keys().next_back().map_or(0, |latest| latest + 1);
        state.segments = found.segments;
        (state.at, state.stored) = (found.from, found.from);
        (state.max_bytes, state.fault) = (found.max_bytes, None);
        state.records += found.records;
        state.reader = Some(reader);
        drop(state);
        self.came.notify_one();
    }

    /// What is to be written next; waits for it. `None`: nothing will come.
    pub(crate) fn next_group(&self) -> Option<Vec<Entry>> {
        let mut state = self.state();
        while state.pending.is_empty() {
            if state.closed {
                return None;
            }
            state = self.put.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let (mut group, mut bytes) = (Vec::new(), 0);
        while let Some(entry) =
            state.pending.pop_front_if(|entry| bytes + entry.bytes() <= GROUP_BYTES_MAX || bytes == 0)
        {
            bytes += entry.bytes();
            group.push(entry);
        }
        state.writing = group.len();
        Some(group)
    }

    /// A group is on disk, from a place on; each of it is so long there.
    pub(crate) fn written(&self, group: Vec<Entry>, mut from: Place, lengths: &[u64]) {
        let mut outdated = VecDeque::new();
        let mut state = self.state();
        let bytes: usize = group.iter().map(Entry::bytes).sum();
        state.writing = 0;
        state.memory_bytes -= bytes;
        state.fault = None;
        for key in group.iter().filter_map(|entry| entry.settles) {
            if let Some(on_disk) = state.unsettled.get_mut(&key) {
                *on_disk = true;
            }
        }
        let end = from.offset + lengths.iter().sum::<u64>();
        state.segments.insert(from.segment, end);
        state.growing = Some(from.segment);
        if state.fresh_bytes + bytes > FRESH_BYTES_MAX {
            // The store does not keep up: these and those before them are read back when it is their turn.
            outdated = std::mem::take(&mut state.fresh);
            state.fresh_bytes = 0;
        } else {
            state.fresh_bytes += bytes;
            for (entry, length) in group.into_iter().zip(lengths) {
                let to = Place { offset: from.offset + length, ..from };
                state.fresh.push_back(Fresh { entry, from, to });
                from = to;
            }
        }
        let many = state.unsettled.len() > state.unsettled_max;
        drop(state);
        drop(outdated);
        self.came.notify_one();
        if many {
            self.many.notify_one();
        }
    }

    /// The disk did not take a group, or could not be opened: until it does, records are stored from memory.
    pub(crate) fn not_written(&self, group: Vec<Entry>, why: &std::io::Error) {
        let mut state = self.state();
        state.writing = 0;
        for entry in group.into_iter().rev() {
            state.pending.push_front(entry);
        }
        state.growing = None;
        state.fault = Some(why.to_string());
        drop(state);
        self.came.notify_one();
    }

    /// The disk takes records again.
    pub(crate) fn is_mended(&self) {
        self.state().fault = None;
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.state().closed
    }

    // --- the task that stores -----------------------------------------------------------------------------------------

    /// Returns when there may be something to be stored.
    pub(crate) async fn came(&self) {
        self.came.notified().await;
    }

    /// What must be read from disk first, if anything, and the reader, to be given back: from where, up to how far in that segment, and whether
    /// it is an earlier process's.
    pub(crate) fn backlog(&self) -> Option<(Place, u64, bool, Reader)> {
        let mut state = self.state();
        let (from, end) = state.backlog()?;
        let inherited = from.segment < state.own_from;
        Some((from, end, inherited, state.reader.take()?))
    }

    /// Whether something must be read from disk first.
    pub(crate) fn has_backlog(&self) -> bool {
        self.state().backlog().is_some()
    }

    /// The reader is given back.
    pub(crate) fn give_back(&self, reader: Reader) {
        self.state().reader = Some(reader);
    }

    /// A batch that was read is on its way.
    pub(crate) fn took(&self, batch: &Batch) {
        let mut state = self.state();
        state.at = batch.to.unwrap_or(state.at);
        state.oldest = batch.records.first().map(|record| record.end_time);
    }

    /// Adds the next record to a batch that is made of what is in memory. `false`: there is none now, or one must read from disk first.
    pub(crate) fn take_into(&self, batch: &mut Batch) -> bool {
        let mut state = self.state();
        if state.backlog().is_some() {
            return false;
        }
        let entry = if let Some(Fresh { entry, to, .. }) = state.fresh.pop_front() {
            state.fresh_bytes -= entry.bytes();
            state.at = to;
            batch.to = Some(to);
            entry
        } else if state.fault.is_some() || !state.spooled {
            let Some(entry) = state.pending.pop_front() else { return false };
            batch.bytes_in_memory += entry.bytes();
            entry
        } else {
            return false;
        };
        if batch.records.is_empty() {
            state.oldest = Some(entry.record.end_time);
        }
        batch.passed += 1;
        batch.bytes += entry.bytes();
        batch.keys.extend(entry.settles);
        batch.records.push(*entry.record);
        true
    }

    /// The open keys that the batch settles and that may still be there: of this process's not those that went before (design P12); of an
    /// earlier one's all, since nobody has kept which those were.
    pub(crate) fn keys_of(&self, batch: &Batch) -> Vec<OpenKey> {
        let state = self.state();
        let may_be_there = |key: &&OpenKey| batch.inherited || state.unsettled.contains_key(key);
        batch.keys.iter().filter(may_be_there).copied().collect()
    }

    /// The batch is stored. Answers, if the spool is to know, up to where all is, with the segments of which nothing more is needed; and the
    /// reader, to be given back.
    pub(crate) fn stored(&self, batch: &Batch) -> Option<(Place, Vec<u64>, Reader)> {
        let mut state = self.state();
        state.records = state.records.saturating_sub(batch.passed);
        state.memory_bytes -= batch.bytes_in_memory;
        state.oldest = None;
        if state.is_all_stored() {
            state.records = 0; // whatever was damaged or could not be read is not waited for
        }
        let to = batch.to?;
        state.stored = to;
        let done = |&(&segment, &end): &(&u64, &u64)| {
            (segment < to.segment || (segment == to.segment && end <= to.offset))
                && state.growing != Some(segment)
        };
        let done: Vec<u64> = state.segments.iter().take_while(done).map(|(segment, _)| *segment).collect();
        Some((to, done, state.reader.take()?))
    }

    /// These segments are gone.
    pub(crate) fn removed(&self, segments: &[u64]) {
        let mut state = self.state();
        for segment in segments {
            state.segments.remove(segment);
        }
    }

    /// Whether the record store takes records, as far as is known.
    pub(crate) fn note_store(&self, takes: bool) {
        self.state().refused = !takes;
    }

    // --- open runs in etcd --------------------------------------------------------------------------------------------

    /// Returns when more open runs are unsettled than may be.
    pub(crate) async fn too_many(&self) {
        self.many.notified().await;
    }

    /// Those of them that may go, since their records are on disk: the oldest, some at a time.
    pub(crate) fn excess(&self) -> Vec<OpenKey> {
        let state = self.state();
        let over = state.unsettled.len().saturating_sub(state.unsettled_max).min(SETTLED_AT_ONCE);
        state.unsettled.iter().filter(|(_, on_disk)| **on_disk).map(|(key, _)| *key).take(over).collect()
    }

    /// These open keys are gone.
    pub(crate) fn settled(&self, keys: &[OpenKey]) {
        let mut state = self.state();
        for key in keys {
            state.unsettled.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;
    use crate::spool::tests::record;

    fn group(numbers: std::ops::Range<i64>, bytes: usize) -> Vec<Entry> {
        let entry = |number: i64| {
            let mut record = Box::new(record(number));
            record.output = "x".repeat(bytes);
            Entry { record, settles: Some((Sid(7), number.unsigned_abs())) }
        };
        numbers.map(entry).collect()
    }

    fn opened(dir: &std::path::Path) -> Waiting {
        let waiting = Waiting::new(true);
        let (_, reader, found) = spool::open(dir, Some(1 << 30)).unwrap();
        waiting.opened(reader, found);
        waiting
    }

    /// Puts a group, and says that it is on disk from a place on, ten bytes each.
    fn put(waiting: &Waiting, numbers: std::ops::Range<i64>, bytes: usize, from: Place) {
        for entry in group(numbers, bytes) {
            waiting.put(entry);
        }
        let group = waiting.next_group().unwrap();
        let lengths = vec![10; group.len()];
        waiting.written(group, from, &lengths);
    }

    #[test]
    fn while_the_disk_takes_nothing_each_record_wakes_who_stores() {
        let dir = tempfile::tempdir().unwrap();
        let waiting = opened(dir.path());
        let is_woken = || waiting.came().now_or_never().is_some();
        assert!(is_woken(), "the spool is open");
        let [first, second, third] = group(0..3, 10).try_into().unwrap();
        waiting.put(first);
        assert!(!is_woken(), "it is on no disk yet");
        waiting.not_written(waiting.next_group().unwrap(), &std::io::Error::other("full"));
        assert!(is_woken());
        let take = |number: i64| {
            let mut batch = Batch::default();
            assert!(waiting.take_into(&mut batch));
            assert_eq!(batch.records[0].plan_time, record(number).plan_time);
            assert!(!waiting.take_into(&mut batch));
        };
        take(0);
        for (number, next) in [(1, second), (2, third)] {
            assert!(!is_woken());
            waiting.put(next);
            assert!(is_woken(), "nobody would store it before the disk is mended");
            take(number);
        }
    }

    #[test]
    fn memory_holds_the_newest_alone_however_long_the_store_is_away() {
        let dir = tempfile::tempdir().unwrap();
        let waiting = opened(dir.path());
        for number in 0..100_i64 {
            let from = Place { segment: 1, offset: spool::BEGIN + number.unsigned_abs() * 10 };
            put(&waiting, number..number + 1, 1 << 20, from);
            let state = waiting.state();
            let bytes: usize = state.fresh.iter().map(|fresh| fresh.entry.bytes()).sum();
            assert_eq!(bytes, state.fresh_bytes);
            assert!(bytes <= FRESH_BYTES_MAX && state.memory_bytes == 0);
        }
        // What is no longer in memory is read, up to where that goes on.
        let (from, end, inherited, reader) = waiting.backlog().unwrap();
        assert_eq!((from, inherited), (Place { segment: 1, offset: spool::BEGIN }, false));
        let first_in_memory = waiting.state().fresh.front().unwrap().from;
        assert_eq!(end, first_in_memory.offset);
        assert!(!waiting.take_into(&mut Batch::default()), "not before that is read");
        waiting.give_back(reader);
        let read = Batch { to: Some(first_in_memory), ..Batch::default() };
        waiting.took(&read);
        let mut batch = Batch::default();
        while waiting.take_into(&mut batch) {}
        assert_eq!(batch.to, Some(Place { segment: 1, offset: spool::BEGIN + 1000 }));
        assert_eq!(batch.records.last().unwrap().plan_time, record(99).plan_time);
    }

    #[test]
    fn room_is_given_back_once_all_of_a_segment_is_stored_and_it_grows_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let waiting = opened(dir.path());
        put(&waiting, 0..2, 1, Place { segment: 1, offset: spool::BEGIN });
        put(&waiting, 2..4, 1, Place { segment: 2, offset: spool::BEGIN });
        let stored = |number: usize| {
            let mut batch = Batch::default();
            for _ in 0..number {
                assert!(waiting.take_into(&mut batch));
            }
            let (to, done, reader) = waiting.stored(&batch).unwrap();
            waiting.give_back(reader);
            waiting.removed(&done);
            (to.segment, to.offset - spool::BEGIN, done)
        };
        assert_eq!(stored(1), (1, 10, vec![]));
        assert_eq!(stored(1), (1, 20, vec![1]));
        assert_eq!(stored(2), (2, 20, vec![]), "it may still grow");
        assert_eq!((waiting.figures().records, waiting.figures().spool_bytes), (0, 0));
        put(&waiting, 4..5, 1, Place { segment: 3, offset: spool::BEGIN });
        assert_eq!(waiting.figures().spool_bytes, 10);
        let mut batch = Batch::default();
        assert!(waiting.take_into(&mut batch));
        assert_eq!(waiting.stored(&batch).unwrap().1, [2]);
    }
}
