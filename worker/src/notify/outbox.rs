//! What is to be decided and what is to be delivered, on disk until it is: one small file each in the data directory, so that neither a kill
//! -9 nor an address that does not answer loses a message.
//!
//! What was seen together is one file. When it is decided, its messages are written, each a file, and then it goes: before that none of them is
//! delivered. So a process that dies in between finds the file, decides again (and is answered the same), and writes the same files again.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use common::clock::Timestamp;
use common::domain::stored;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::message::Message;
use super::state::Happened;

/// Format version of the files.
const VERSION: u64 = 1;

/// What was seen together.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Group {
    v: u64,
    /// Its name, which no other has.
    pub(crate) by: String,
    pub(crate) happened: Vec<Happened>,
}

impl Group {
    pub(crate) fn new(by: String, happened: Vec<Happened>) -> Self {
        Self { v: VERSION, by, happened }
    }
}

/// A message on its way to one channel.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Outgoing {
    v: u64,
    pub(crate) channel: String,
    /// When it was decided.
    pub(crate) since: Timestamp,
    pub(crate) message: Message,
}

impl Outgoing {
    pub(crate) fn new(channel: String, since: Timestamp, message: Message) -> Self {
        Self { v: VERSION, channel, since, message }
    }

    /// Its file: of the same message to the same channel always the same.
    fn file(&self) -> String {
        format!("{}.{}.message", self.message.id, self.channel)
    }
}

/// What an earlier process has left.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// In the order in which they were seen.
    pub(crate) groups: Vec<Group>,
    /// In the order in which they were decided.
    pub(crate) messages: Vec<Outgoing>,
}

/// The directory; without one everything is in memory alone.
#[derive(Clone, Debug)]
pub(crate) struct Outbox(Option<PathBuf>);

impl Outbox {
    /// Opens it, making it where it is missing. Blocks.
    pub(crate) fn open(dir: Option<&Path>) -> io::Result<(Self, Found)> {
        let Some(dir) = dir else { return Ok((Self::in_memory(), Found::default())) };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let (mut groups, mut messages) = (BTreeMap::new(), Vec::new());
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            match path.extension().and_then(|kind| kind.to_str()) {
                Some("group") => {
                    groups.extend(read(&path)?.map(|group: Group| (group.by.clone(), group)));
                }
                Some("message") => messages.extend(read::<Outgoing>(&path)?),
                // One that was being written when its process ended: the records that it is about are in the spool.
                Some("new") => fs::remove_file(&path)?,
                _ => {}
            }
        }
        messages.sort_by_key(|outgoing| (outgoing.since, outgoing.message.at));
        Ok((Self(Some(dir.to_owned())), Found { groups: groups.into_values().collect(), messages }))
    }

    /// One without a directory.
    pub(crate) fn in_memory() -> Self {
        Self(None)
    }

    /// Writes what was seen; on disk when it returns. Blocks.
    pub(crate) fn put_group(&self, group: &Group) -> io::Result<()> {
        let Some(dir) = &self.0 else { return Ok(()) };
        write(&Self::group_file(dir, &group.by), group)?;
        File::open(dir)?.sync_all()
    }

    /// What was seen is decided: writes its messages, then takes it away. Blocks.
    pub(crate) fn decided(&self, by: &str, messages: &[Outgoing]) -> io::Result<()> {
        let Some(dir) = &self.0 else { return Ok(()) };
        for outgoing in messages {
            write(&dir.join(outgoing.file()), outgoing)?;
        }
        if !messages.is_empty() {
            File::open(dir)?.sync_all()?;
        }
        // If this process dies here, the next one decides again and writes the same messages in their place: none has been delivered.
        remove(&Self::group_file(dir, by))
    }

    /// A message is delivered, or given up. Blocks.
    pub(crate) fn done(&self, outgoing: &Outgoing) -> io::Result<()> {
        let Some(dir) = &self.0 else { return Ok(()) };
        remove(&dir.join(outgoing.file()))
    }

    fn group_file(dir: &Path, by: &str) -> PathBuf {
        dir.join(format!("{}.group", by.replace('/', ".")))
    }
}

/// What cannot be understood is left where it is, for the version that wrote it.
fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let bytes = fs::read(path)?;
    Ok(stored::decode(&bytes, VERSION)
        .inspect_err(
            |why| tracing::error!(file = %path.display(), %why, "notification cannot be read: left alone"),
        )
        .ok())
}

/// Written aside and renamed, so that a crash leaves none or a whole one.
fn write<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(&stored::encode(value))?;
    file.sync_data()?;
    fs::rename(&new, path)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::tests::message;
    use super::*;

    #[test]
    fn what_is_not_done_is_found_again_in_its_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let (outbox, found) = Outbox::open(Some(&path)).unwrap();
        assert!(found.groups.is_empty() && found.messages.is_empty());
        let groups = ["w/00000001", "w/00000002"].map(|by| Group::new(by.to_owned(), Vec::new()));
        for group in groups.iter().rev() {
            outbox.put_group(group).unwrap();
        }
        let to = |channel: &str, at| Outgoing::new(channel.to_owned(), Timestamp::from_ms(at), message(at));
        let messages = [to("b", 2), to("a", 2), to("a", 1)];
        outbox.decided(&groups[0].by, &messages).unwrap();
        outbox.decided(&groups[0].by, &messages).unwrap(); // again, after a crash
        outbox.done(&messages[0]).unwrap();
        outbox.done(&messages[0]).unwrap();
        fs::write(path.join("x.new"), "half").unwrap();
        fs::write(path.join("y.message"), "{\"v\":2}").unwrap();

        let (_, found) = Outbox::open(Some(&path)).unwrap();
        assert_eq!(found.groups, [groups[1].clone()]);
        assert_eq!(found.messages, [messages[2].clone(), messages[1].clone()]);
        assert!(!path.join("x.new").exists() && path.join("y.message").exists());
    }
}
