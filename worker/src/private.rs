//! What a worker's process has and its commands are not to get: descriptors that it was started with, its environment, its memory, rights.

use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, RawFd};

use rustix::io::{Errno, FdFlags, fcntl_getfd, fcntl_setfd};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::clear_ambient_capability_set;

/// The descriptors of this process, one name each.
const DESCRIPTORS: &str = "/proc/self/fd";
/// Standard input, output and error are given to each command anew.
const FIRST: RawFd = 3;

/// Keeps it all from what is started from now on. To be called first, while this process has no thread but the guardian's keeper, which
/// sleeps. What does not work is said; it is
/// no reason not to start.
pub fn keep() {
    if let Err(why) = close_on_exec() {
        tracing::warn!(%why, "commands may inherit descriptors that this process was started with");
    }
    // A worker that is not root may have been given the right to become the users of CRON_USERS: it keeps that, its commands do not get it.
    if let Err(why) = clear_ambient_capability_set() {
        tracing::warn!(%why, "commands may inherit this process's capabilities");
    }
    // Whoever may dump its core may read its environment and its memory: all processes of its user, and among them are the commands.
    if let Err(why) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%why, "commands may read this process's environment");
    }
}

/// All descriptors that Rust opens are closed in a new process; those that were open before may not be.
#[expect(unsafe_code, reason = "descriptors that nobody owns have a number and nothing else")]
pub(crate) fn close_on_exec() -> io::Result<()> {
    for entry in fs::read_dir(DESCRIPTORS)? {
        let Some(number) = entry?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()) else {
            continue;
        };
        if number < FIRST {
            continue;
        }
        // SAFETY: it is open, being listed, and stays so meanwhile, there being no other thread that could close it.
        let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
        match fcntl_getfd(descriptor) {
            Ok(flags) => fcntl_setfd(descriptor, flags | FdFlags::CLOEXEC)?,
            Err(Errno::BADF) => {} // but for tests, which have other threads
            Err(why) => return Err(why.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::process::Command;

    use rustix::process::dumpable_behavior;

    use super::*;

    #[test]
    fn what_was_open_before_is_not_inherited_and_nobody_reads_this_processs_memory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("open");
        let file = File::create(&path).unwrap();
        fcntl_setfd(&file, FdFlags::empty()).unwrap();
        let inherited = || {
            let listed = Command::new("/bin/sh").args(["-c", "readlink /proc/$$/fd/*"]).output().unwrap();
            String::from_utf8(listed.stdout).unwrap().contains(path.to_str().unwrap())
        };
        assert!(inherited());
        keep();
        assert!(!inherited());
        assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
    }
}
