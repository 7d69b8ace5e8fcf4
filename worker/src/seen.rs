//! What a worker instance has seen of the store, kept in its data directory: so that one that starts again notices a store that was put
//! back meanwhile (design P16).

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use common::domain::stored;
use common::kv::Revision;
use serde::{Deserialize, Serialize};

use crate::retries::Retries;

/// Format version that is written.
const VERSION: u64 = 1;

/// How far the store was seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Seen {
    v: u64,
    /// Its highest revision.
    pub(crate) revision: Revision,
    /// Its cluster; 0 = it has no such name.
    pub(crate) cluster: u64,
}

impl Seen {
    pub(crate) fn new(revision: Revision, cluster: u64) -> Self {
        Self { v: VERSION, revision, cluster }
    }
}

/// The file that keeps it. What it holds may be some seconds old: a store that was put back by less than that is not noticed.
#[derive(Debug)]
pub(crate) struct SeenFile {
    path: PathBuf,
    /// What was written last; also keeps writers apart.
    written: Mutex<Option<Seen>>,
    retries: Retries,
}

impl SeenFile {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, written: Mutex::default(), retries: Retries::new("what was seen of the store not kept") }
    }

    /// What an earlier process of this instance has seen. What cannot be read counts as nothing: this worker then starts as a new one does.
    pub(crate) fn read(&self) -> Option<Seen> {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(why) if why.kind() == io::ErrorKind::NotFound => return None,
            Err(why) => {
                tracing::warn!(file = %self.path.display(), %why, "what was seen of the store cannot be read");
                return None;
            }
        };
        stored::decode(&bytes, VERSION)
            .inspect_err(|why| {
                tracing::warn!(file = %self.path.display(), %why, "what was seen of the store cannot be read");
            })
            .ok()
    }

    /// Keeps what `seen` answers, when there is something new. Written aside and renamed, so that a crash leaves the one or the other; it
    /// does not wait for the disk, since an older one is as good as it was. Blocks.
    pub(crate) fn keep(&self, seen: impl FnOnce() -> Option<Seen>) {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(seen) = seen().filter(|seen| *written != Some(*seen)) else { return };
        let new = self.path.with_extension("new");
        match fs::write(&new, stored::encode(&seen)).and_then(|()| fs::rename(&new, &self.path)) {
            Ok(()) => {
                *written = Some(seen);
                self.retries.worked();
            }
            Err(why) => self.retries.failed(&why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_is_read_back_and_what_is_broken_counts_as_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seen");
        let file = SeenFile::new(path.clone());
        assert_eq!(file.read(), None);
        file.keep(|| None);
        assert!(!path.exists());
        let seen = Seen::new(77, u64::MAX);
        file.keep(|| Some(seen));
        assert_eq!(SeenFile::new(path.clone()).read(), Some(seen));
        fs::write(&path, "{\"v\":1,").unwrap();
        assert_eq!(file.read(), None);
    }
}
