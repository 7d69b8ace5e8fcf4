//! The directory of a worker instance: locked while the worker lives, and the holder of the instance's id.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use common::ids::random_id;

/// Where a worker keeps its state when nothing is said.
const DEFAULT: &str = "/var/lib/fleetcron";
/// Several workers on one machine take the default directory, or that with `-2`, `-3`, … behind.
const SIBLINGS_MAX: usize = 64;

/// A data directory, locked for this process.
#[derive(Debug)]
pub struct DataDir {
    /// Where.
    pub path: PathBuf,
    /// Who: made once, kept in the directory.
    pub instance: String,
    /// Held open: the lock goes with it, also when the process is killed.
    _lock: File,
}

/// Why there is no data directory.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process holds it.
    #[error("{0} is in use by another worker: give each its own CRON_DATA_DIR")]
    InUse(PathBuf),
    /// It cannot be written.
    #[error("{0} cannot be used as data directory: {1}")]
    Unusable(PathBuf, #[source] io::Error),
}

/// Where an instance keeps what it has seen of the store.
pub(crate) fn seen_file(data_dir: &Path) -> PathBuf {
    data_dir.join("seen")
}

/// Where an instance keeps records until the record store has them.
pub(crate) fn spool(data_dir: &Path) -> PathBuf {
    data_dir.join("spool")
}

/// Where an instance keeps notifications until they are delivered.
pub(crate) fn notices(data_dir: &Path) -> PathBuf {
    data_dir.join("notify")
}

impl DataDir {
    /// Opens and locks the directory, making it where it is missing. Without one given, the first usable of `/var/lib/fleetcron`, the
    /// user's state directory and the temporary directory, and the first of its siblings that is free.
    ///
    /// # Errors
    /// When the directory given is in use or not writable; without one, when nothing is writable.
    pub fn open(given: Option<&Path>) -> Result<Self, Error> {
        if let Some(path) = given {
            return Self::lock(path);
        }
        let mut last = Error::Unusable(PathBuf::from(DEFAULT), io::Error::other("not writable"));
        for base in defaults() {
            for number in 1..=SIBLINGS_MAX {
                let path = if number == 1 {
                    base.clone()
                } else {
                    PathBuf::from(format!("{}-{number}", base.display()))
                };
                match Self::lock(&path) {
                    Ok(dir) => return Ok(dir),
                    Err(Error::InUse(path)) => last = Error::InUse(path),
                    Err(why) => {
                        last = why;
                        break;
                    }
                }
            }
        }
        Err(last)
    }

    fn lock(path: &Path) -> Result<Self, Error> {
        let unusable = |why| Error::Unusable(path.to_owned(), why);
        fs::create_dir_all(path).map_err(unusable)?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path.join("lock"))
            .map_err(unusable)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::InUse(path.to_owned())),
            Err(TryLockError::Error(why)) => return Err(unusable(why)),
        }
        let instance = instance_of(path).map_err(unusable)?;
        Ok(Self { path: path.to_owned(), instance, _lock: lock })
    }
}

fn defaults() -> Vec<PathBuf> {
    let mut bases = vec![PathBuf::from(DEFAULT)];
    bases.extend(common::config::state_home().map(|home| home.join("fleetcron")));
    bases.push(std::env::temp_dir().join("fleetcron"));
    bases
}

/// Reads the instance's id, or makes one. Written aside and renamed, so that a crash leaves none or a whole one.
fn instance_of(path: &Path) -> io::Result<String> {
    let file = path.join("instance");
    match fs::read_to_string(&file) {
        Ok(id) if id.trim().len() == 32 => return Ok(id.trim().to_owned()),
        Ok(_) => tracing::warn!(file = %file.display(), "no instance id: made anew"),
        Err(why) if why.kind() == io::ErrorKind::NotFound => {}
        Err(why) => return Err(why),
    }
    let id = random_id();
    let new = path.join("instance.new");
    fs::write(&new, format!("{id}\n"))?;
    fs::rename(&new, &file)?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_keeps_its_id_and_is_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let first = DataDir::open(Some(&path)).unwrap();
        assert!(matches!(DataDir::open(Some(&path)), Err(Error::InUse(_))));
        let id = first.instance.clone();
        drop(first);
        assert_eq!(DataDir::open(Some(&path)).unwrap().instance, id);
    }

    #[test]
    fn a_broken_id_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("instance"), "half").unwrap();
        assert_eq!(DataDir::open(Some(dir.path())).unwrap().instance.len(), 32);
    }
}
