//! The guard: a second process that ends the servers of a first one when that is gone, however it went (panic, Ctrl-C, kill -9).
//!
//! The first process tells it over a pipe which servers it has started and which have ended. The pipe ends with the first process,
//! because nobody else holds it; the guard then kills what is left, children of children included, and ends too.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::{Pid, Signal};

/// The word on the command line that makes a program a guard.
pub const WORD: &str = "guard";

/// This process's guard; clones are the same one.
#[derive(Clone)]
pub struct Guard {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    child: Child,
    pipe: Option<ChildStdin>,
}

impl Guard {
    /// Starts a guard: `program` is one of ours that calls [`run`] when its only argument is [`WORD`].
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(program: &Path) -> std::io::Result<Self> {
        let mut child = Command::new(program)
            .arg(WORD)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .process_group(0) // Ctrl-C on the terminal must not reach it: its work comes after that
            .spawn()?;
        let pipe = child.stdin.take();
        Ok(Self { inner: Arc::new(Mutex::new(Inner { child, pipe })) })
    }

    /// Puts a process under guard.
    pub fn watch(&self, pid: u32) {
        self.tell(&format!("+{pid}\n"));
    }

    /// The process has ended and was waited for: its id may soon be somebody else's.
    pub fn forget(&self, pid: u32) {
        self.tell(&format!("-{pid}\n"));
    }

    fn tell(&self, line: &str) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pipe) = &mut inner.pipe {
            // A guard that is gone cannot guard; the servers still end by the drop of their handles.
            let _gone = pipe.write_all(line.as_bytes());
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        drop(self.pipe.take());
        let _status = self.child.wait();
    }
}

/// Guards: reads from standard input until its end, then kills.
///
/// # Errors
/// When standard input cannot be read.
pub fn run() -> std::io::Result<()> {
    let mut watched = BTreeSet::new();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        if let Some(pid) = line.strip_prefix('+').and_then(|pid| pid.parse().ok()) {
            watched.insert(pid);
        } else if let Some(pid) = line.strip_prefix('-').and_then(|pid| pid.parse::<i32>().ok()) {
            watched.remove(&pid);
        }
    }
    for pid in watched {
        kill_tree(pid);
    }
    Ok(())
}

/// Kills a process, its descendants and the process groups of all of them.
pub fn kill_tree(root: i32) {
    let processes = processes();
    let mut pids = BTreeSet::from([root]);
    // Children have greater depth, not always greater ids: go round until nothing is added.
    loop {
        let children: Vec<i32> = processes
            .iter()
            .filter(|(pid, (parent, _))| pids.contains(parent) && !pids.contains(pid))
            .map(|(pid, _)| *pid)
            .collect();
        if children.is_empty() {
            break;
        }
        pids.extend(children);
    }
    // Read like the others: it is 0 where the group began outside of this process's pid namespace, which the system call's wrapper rules out.
    let own = processes.get(&rustix::process::getpid().as_raw_pid()).map(|(_, group)| *group);
    let groups: BTreeSet<i32> = pids
        .iter()
        .filter_map(|pid| processes.get(pid))
        .map(|(_, group)| *group)
        .filter(|group| Some(*group) != own)
        .collect();
    for group in groups.into_iter().filter_map(Pid::from_raw) {
        let _gone = rustix::process::kill_process_group(group, Signal::KILL);
    }
    for pid in pids.into_iter().filter_map(Pid::from_raw) {
        let _gone = rustix::process::kill_process(pid, Signal::KILL);
    }
}

/// Every process: its id, its parent's and its group's.
fn processes() -> BTreeMap<i32, (i32, i32)> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return BTreeMap::new() };
    entries
        .filter_map(|entry| {
            let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            // The program's name stands in parentheses and may contain anything: read behind the last one.
            let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(1);
            Some((pid, (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?)))
        })
        .collect()
}
