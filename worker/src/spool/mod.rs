//! Records on disk until the record store has them: segment files that are only appended to, in the worker's data directory. Whoever reads
//! on after a crash may read some of them twice, which is harmless (design P11).
//!
//! A process appends to segments of its own alone and never to one that it has found: so a frame that was not written whole stays where it
//! is, at the end of its segment, and needs no repair. A segment goes when all of it is stored. How far that is stands in the file `stored`,
//! which may lag behind.

pub(crate) mod frame;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use common::domain::record::Record;
use common::domain::stored;
use common::domain::worker::Sid;
use serde::{Deserialize, Serialize};

use frame::Piece;

/// The first bytes of a segment; the last of them is the version of what follows.
const HEADER: [u8; 8] = *b"fcspool\x01";
/// Where the first frame begins.
pub(crate) const BEGIN: u64 = HEADER.len() as u64;
/// A segment that is as long as this is followed by another. The unit in which room is given back, and read at once: small against a
/// container's memory.
const SEGMENT_BYTES: u64 = 16 << 20;
/// Room is given back in steps of this part of the quota at least.
const SEGMENTS_MIN: u64 = 16;
/// What the spool takes at most where nothing is said. A record of a run that prints little takes some 500 bytes, so that an hour at a
/// thousand runs a second is about 2 GB.
const MAX_BYTES: u64 = 4 << 30;
/// What must fit before a disk that was full counts as usable again: less would be full with the next records.
const PROBE_BYTES: usize = 1 << 20;
/// Format version of the file `stored`.
const VERSION: u64 = 1;

/// A place in the spool, behind all that was written before.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) struct Place {
    /// The segment's number.
    pub(crate) segment: u64,
    /// Bytes from its beginning.
    pub(crate) offset: u64,
}

/// What is kept in the file `stored`.
#[derive(Serialize, Deserialize)]
struct Stored {
    v: u64,
    segment: u64,
    offset: u64,
}

/// The directory.
#[derive(Clone, Debug)]
struct Dir(PathBuf);

impl Dir {
    fn segment(&self, number: u64) -> PathBuf {
        self.0.join(format!("{number:020}.spool"))
    }

    /// A segment in which there is something that this version does not understand.
    fn set_aside(&self, number: u64) -> PathBuf {
        self.0.join(format!("{number:020}.unread"))
    }

    fn stored(&self) -> PathBuf {
        self.0.join("stored")
    }

    /// Up to where everything is stored, as an earlier process has kept it. Without it all that is found is stored again, harmlessly.
    fn stored_up_to(&self) -> io::Result<Place> {
        let bytes = match fs::read(self.stored()) {
            Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(Place::default()),
            read => read?,
        };
        Ok(stored::decode::<Stored>(&bytes, VERSION).map_or_else(
            |why| {
                tracing::warn!(file = %self.stored().display(), %why, "not known which records are stored: all are sent again");
                Place::default()
            },
            |stored| Place { segment: stored.segment, offset: stored.offset },
        ))
    }

    /// The segments, those that were set aside by an earlier process among them: this one may understand them.
    fn segments(&self) -> io::Result<BTreeMap<u64, u64>> {
        let mut segments = BTreeMap::new();
        for entry in fs::read_dir(&self.0)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some((number, kind)) = name.to_str().and_then(|name| name.split_once('.')) else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            match kind {
                "spool" => {}
                "unread" => fs::rename(entry.path(), self.segment(number))?,
                _ => continue,
            }
            segments.insert(number, fs::metadata(self.segment(number))?.len());
        }
        Ok(segments)
    }
}

/// What was there when the spool was opened.
#[derive(Debug)]
pub(crate) struct Found {
    /// Segments and their lengths.
    pub(crate) segments: BTreeMap<u64, u64>,
    /// Before this everything is stored.
    pub(crate) from: Place,
    /// Records behind it.
    pub(crate) records: usize,
    /// How many bytes the spool may take.
    pub(crate) max_bytes: u64,
}

/// Opens the spool in a directory, which it makes where it is missing. `max_bytes`: what it may take, if somebody has said so. Blocks, for as
/// long as it takes to read all that is there.
pub(crate) fn open(dir: &Path, max_bytes: Option<u64>) -> io::Result<(Writer, Reader, Found)> {
    // What jobs print is nobody else's to read.
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let dir = Dir(dir.to_owned());
    let segments = dir.segments()?;
    let mut from = dir.stored_up_to()?;
    let latest = segments.keys().next_back().copied().unwrap_or(0).max(from.segment);
    // Older ones are still there when the process ended before it deleted them, or when they were set aside.
    if let Some((&first, _)) = segments.first_key_value()
        && first < from.segment
    {
        from = Place { segment: first, offset: BEGIN };
    }
    let max_bytes = match max_bytes {
        Some(max_bytes) => max_bytes,
        None => default_max_bytes(&dir.0, segments.values().sum())?,
    };
    let mut reader = Reader { dir: dir.clone(), loaded: None, unread: BTreeSet::new() };
    let mut records = 0;
    for (&segment, &length) in segments.range(from.segment..) {
        let offset = if segment == from.segment { from.offset.max(BEGIN) } else { BEGIN };
        records += reader.count(Place { segment, offset }, length)?;
    }
    let segment_bytes = (max_bytes / SEGMENTS_MIN).min(SEGMENT_BYTES);
    let writer = Writer {
        dir,
        segment_bytes,
        next: latest + 1,
        file: None,
        #[cfg(test)]
        room: None,
    };
    Ok((writer, reader, Found { segments, from, records, max_bytes }))
}

/// Half of what the disk has left, since records of runs that are going are written also when the spool is full, and others use the disk too;
/// [`MAX_BYTES`] at most.
fn default_max_bytes(dir: &Path, taken: u64) -> io::Result<u64> {
    let disk = rustix::fs::statvfs(dir)?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    Ok((free.saturating_add(taken) / 2).min(MAX_BYTES))
}

/// Appends.
#[derive(Debug)]
pub(crate) struct Writer {
    dir: Dir,
    segment_bytes: u64,
    /// Number of the next segment. None comes twice.
    next: u64,
    file: Option<Growing>,
    /// So many bytes fit on the disk.
    #[cfg(test)]
    pub(crate) room: Option<std::sync::Arc<std::sync::atomic::AtomicUsize>>,
}

/// A segment that is written.
#[derive(Debug)]
struct Growing {
    number: u64,
    file: File,
    /// All before this is on disk for certain.
    end: u64,
}

impl Writer {
    /// Appends whole frames, and returns once they are on disk: where they begin. The error is that they are not, or may not be: the same ones
    /// must be appended again. Blocks.
    pub(crate) fn append(&mut self, frames: &[u8]) -> io::Result<Place> {
        let mut growing = match self.file.take() {
            Some(growing) if growing.end < self.segment_bytes => growing,
            _ => self.begin_segment()?,
        };
        let place = Place { segment: growing.number, offset: growing.end };
        match self.write(&mut growing.file, frames).and_then(|()| growing.file.sync_data()) {
            Ok(()) => {
                growing.end += frames.len() as u64;
                self.file = Some(growing);
                Ok(place)
            }
            Err(why) => {
                // Nothing more is written to it: after a failed sync nobody knows what of it is on disk, and another one may say that all
                // is well. What lies behind its end is cut off, so that it is not taken for damage; where that fails, it is a torn end.
                if growing.end == BEGIN {
                    let _left_behind = fs::remove_file(self.dir.segment(growing.number));
                } else {
                    let _left_behind = growing.file.set_len(growing.end);
                }
                Err(why)
            }
        }
    }

    /// Whether there is room again on a disk that had none; blocks.
    pub(crate) fn probe(&mut self) -> io::Result<()> {
        let mut growing = self.begin_segment()?;
        let written = self.write(&mut growing.file, &[0; PROBE_BYTES]);
        let written = written.and_then(|()| growing.file.sync_data());
        match written
            .and_then(|()| growing.file.set_len(BEGIN))
            .and_then(|()| growing.file.seek(SeekFrom::End(0)))
        {
            Ok(_end) => {
                self.file = Some(growing);
                Ok(())
            }
            Err(why) => {
                let _left_behind = fs::remove_file(self.dir.segment(growing.number));
                Err(why)
            }
        }
    }

    fn begin_segment(&mut self) -> io::Result<Growing> {
        let number = self.next;
        let path = self.dir.segment(number);
        let mut file = File::options().write(true).create_new(true).open(&path)?;
        self.next += 1;
        let begun = self.write(&mut file, &HEADER).and_then(|()| file.sync_data());
        // Its name must be on disk as well, before anything in it counts.
        match begun.and_then(|()| File::open(&self.dir.0)?.sync_all()) {
            Ok(()) => Ok(Growing { number, file, end: BEGIN }),
            Err(why) => {
                let _left_behind = fs::remove_file(path);
                Err(why)
            }
        }
    }

    #[cfg(not(test))]
    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        file.write_all(bytes)
    }

    /// As on a disk on which only so much fits: some of it is written.
    #[cfg(test)]
    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        use std::sync::atomic::Ordering::SeqCst;
        let Some(room) = &self.room else { return file.write_all(bytes) };
        let fits = bytes.len().min(room.load(SeqCst));
        room.fetch_sub(fits, SeqCst);
        file.write_all(&bytes[..fits])?;
        if fits < bytes.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

/// How much is read at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Amount {
    pub(crate) records: usize,
    pub(crate) bytes: usize,
}

/// What was read.
#[derive(Debug)]
pub(crate) struct Chunk {
    /// Each with the open key that it settles.
    pub(crate) records: Vec<(Record, Option<(Sid, u64)>)>,
    /// How many records these are, and those that this version does not understand.
    pub(crate) passed: usize,
    /// Up to where they reach.
    pub(crate) to: Place,
}

impl Chunk {
    /// What is had of a segment that cannot be read.
    pub(crate) fn nothing(segment: u64, end: u64) -> Self {
        Self { records: Vec::new(), passed: 0, to: Place { segment, offset: end } }
    }
}

/// Reads on, and takes away what is done with.
#[derive(Debug)]
pub(crate) struct Reader {
    dir: Dir,
    loaded: Option<Loaded>,
    /// Segments with something that this version does not understand.
    unread: BTreeSet<u64>,
}

/// A part of a segment, in memory.
#[derive(Debug)]
struct Loaded {
    segment: u64,
    /// Where in the segment it begins.
    offset: u64,
    bytes: Vec<u8>,
}

impl Reader {
    /// Reads records from a place on, up to `end` bytes from the beginning of its segment and until it has about so many bytes. Blocks.
    pub(crate) fn read(&mut self, from: Place, end: u64, max: Amount) -> io::Result<Chunk> {
        let segment = from.segment;
        let mut chunk = Chunk::nothing(segment, end);
        let Some((bytes, start)) = self.load(from, end)? else {
            self.unread.insert(segment);
            return Ok(chunk);
        };
        let (mut foreign, mut at) = (None, start);
        while let Some(piece) = frame::piece(bytes, at) {
            let offset = from.offset + (at - start) as u64;
            if chunk.passed == max.records || at - start >= max.bytes {
                chunk.to.offset = offset;
                break;
            }
            match piece {
                Piece::Whole { content, to } => {
                    match frame::read(content) {
                        Ok(record) => chunk.records.push(record),
                        Err(why) => foreign = foreign.or(Some((offset, why))),
                    }
                    chunk.passed += 1;
                    at = to;
                }
                Piece::Damaged { to } => {
                    let bytes = to - at;
                    tracing::error!(
                        segment,
                        offset,
                        bytes,
                        "the spool is damaged here: what stood there is lost"
                    );
                    at = to;
                }
                Piece::Torn => {
                    let bytes = bytes.len() - at;
                    tracing::warn!(
                        segment,
                        offset,
                        bytes,
                        "the spool ends in something that was not written whole"
                    );
                    break;
                }
            }
        }
        if let Some((offset, why)) = foreign {
            tracing::error!(
                segment,
                offset,
                why,
                "the spool has records that another version wrote: kept for that one"
            );
            self.unread.insert(segment);
        }
        Ok(chunk)
    }

    /// How many records there are from a place up to the end of its segment.
    fn count(&mut self, from: Place, end: u64) -> io::Result<usize> {
        let Some((bytes, mut at)) = self.load(from, end)? else { return Ok(0) };
        let mut records = 0;
        loop {
            at = match frame::piece(bytes, at) {
                Some(Piece::Whole { to, .. }) => {
                    records += 1;
                    to
                }
                Some(Piece::Damaged { to }) => to,
                Some(Piece::Torn) | None => return Ok(records),
            };
        }
    }

    /// The bytes of a segment, with those from a place up to `end` among them: and where in them that place is. `None`: it is of a version
    /// that this one does not know.
    fn load(&mut self, from: Place, end: u64) -> io::Result<Option<(&[u8], usize)>> {
        let there = self.loaded.as_ref().is_some_and(|loaded| {
            let behind = loaded.offset + loaded.bytes.len() as u64;
            loaded.segment == from.segment && (loaded.offset..behind).contains(&from.offset) && behind == end
        });
        if !there {
            self.loaded = None; // never two at once
            let mut file = File::open(self.dir.segment(from.segment))?;
            let mut header = Vec::new();
            (&mut file).take(BEGIN).read_to_end(&mut header)?;
            // One that is shorter was being begun when its process ended.
            if header.len() == HEADER.len() && header != HEADER {
                tracing::error!(
                    segment = from.segment,
                    "a segment of the spool is of another version: kept for that one"
                );
                return Ok(None);
            }
            file.seek(SeekFrom::Start(from.offset))?;
            let mut bytes = Vec::new();
            file.take(end.saturating_sub(from.offset)).read_to_end(&mut bytes)?;
            self.loaded = Some(Loaded { segment: from.segment, offset: from.offset, bytes });
        }
        let Some(loaded) = &self.loaded else { return Ok(None) };
        let at = usize::try_from(from.offset - loaded.offset).map_err(io::Error::other)?;
        Ok(Some((&loaded.bytes, at)))
    }

    /// Everything up to a place is stored: keeps that, and takes these segments away, of which nothing else is needed. Blocks.
    pub(crate) fn stored(&mut self, up_to: Place, done: &[u64]) -> io::Result<()> {
        let new = self.dir.stored().with_extension("new");
        let stored = Stored { v: VERSION, segment: up_to.segment, offset: up_to.offset };
        // It does not wait for the disk: an older one, or none, says less and is as true.
        fs::write(&new, stored::encode(&stored)).and_then(|()| fs::rename(&new, self.dir.stored()))?;
        // If this process dies here, the next one stores these segments again, harmlessly, and takes them away.
        for &segment in done {
            self.remove(segment)?;
        }
        Ok(())
    }

    /// A segment that cannot be read is left for another process to try.
    pub(crate) fn give_up(&mut self, segment: u64) {
        self.unread.insert(segment);
    }

    fn remove(&mut self, segment: u64) -> io::Result<()> {
        if self.loaded.as_ref().is_some_and(|loaded| loaded.segment == segment) {
            self.loaded = None;
        }
        let path = self.dir.segment(segment);
        let removed = if self.unread.contains(&segment) {
            fs::rename(&path, self.dir.set_aside(segment))
        } else {
            fs::remove_file(&path)
        };
        match removed {
            Err(why) if why.kind() == io::ErrorKind::NotFound => {} // an earlier call got so far
            removed => removed?,
        }
        self.unread.remove(&segment);
        Ok(())
    }
}
