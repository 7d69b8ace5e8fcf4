//! The guardian's own process: takes orders until the pipe ends, and kills.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::AsFd as _;
use std::time::Duration;

use anyhow::Context as _;
use common::clock::{self, Stopwatch};
use rustix::process::{getppid, setsid};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};

use super::marks::{Origin, Told};
use super::orders::{self, GroupId, Member, Order, WorkerNumber};

/// Orders are left to gather for so long, so that thousands of runs a second do not wake the guardian for each.
const GATHER: Duration = Duration::from_millis(5);
/// Looks at the boot clock at least this often: a sleep does not count the time for which the machine was suspended.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Read at once: all that a pipe holds.
const READ_BYTES: usize = 64 * 1024;
/// Looked for commands that were never told as long as there are any, but not for ever: what cannot be killed stays.
const LOOKS_MAX: usize = 20;

/// Guards the process that has started this one: it writes [`Order`]s to standard input. `word` is in the marks of that process's commands,
/// of which those below `first` were told to an earlier guardian.
///
/// # Errors
/// When nothing can be read, which is for the one who typed this by hand.
pub(super) fn run(word: &str, first: u64) -> anyhow::Result<()> {
    // So that it has another name than the worker (killall); elsewhere than on Linux it keeps that.
    let _named = std::fs::write("/proc/self/comm", super::WORD);
    let origin = Origin::here(word, getppid());
    // What is sent to the worker's group or session, as by a terminal, is not for this process: its work comes after that.
    if let Err(why) = setsid() {
        tracing::warn!(%why, "the guardian has no session of its own");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    runtime.block_on(guard(Guarded::new(origin, first)))
}

async fn guard(mut guarded: Guarded) -> anyhow::Result<()> {
    // Whoever ends all processes of a service means the worker, which may take its time.
    let _ignored = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()].map(signal);
    let stdin = io::stdin().as_fd().try_clone_to_owned().context("no standard input")?;
    let mut pipe =
        pipe::Receiver::from_owned_fd(stdin).context("standard input is not the pipe of a worker")?;
    let mut bytes = Vec::with_capacity(READ_BYTES);
    loop {
        // Only what has come before the clock is looked at counts: a new deadline may be there already.
        let read = clock::timeout(guarded.pause(now_ns()), pipe.read_buf(&mut bytes)).await;
        if let Ok(Ok(0) | Err(_)) = read {
            break;
        }
        guarded.take(&mut bytes);
        guarded.fence(now_ns());
        if read.is_ok() {
            clock::sleep(GATHER).await;
        }
    }
    if !guarded.done {
        guarded.kill_all();
    }
    Ok(())
}

fn now_ns() -> u64 {
    super::nanoseconds(Stopwatch::start().since_boot())
}

/// When a worker's runs with a fence are to be gone.
#[derive(Clone, Copy, Debug)]
struct Deadline {
    at: u64,
    /// It has passed, and those that were never told were looked for.
    looked: bool,
}

/// What a guardian knows.
struct Guarded {
    origin: Origin,
    groups: BTreeMap<GroupId, Member>,
    deadlines: BTreeMap<WorkerNumber, Deadline>,
    told: Told,
    /// Its process ends, and nothing of it is left to kill.
    done: bool,
}

impl Guarded {
    fn new(origin: Origin, first: u64) -> Self {
        let (groups, deadlines) = (BTreeMap::new(), BTreeMap::new());
        Self { origin, groups, deadlines, told: Told::all_below(first), done: false }
    }

    /// Takes all whole orders.
    fn take(&mut self, bytes: &mut Vec<u8>) {
        let (whole, _half) = bytes.as_chunks::<{ orders::BYTES }>();
        for order in whole {
            match Order::decode(order) {
                Some(Order::Begun(group, member)) => {
                    self.told.note(member.number);
                    self.groups.insert(group, member);
                }
                Some(Order::Ended(group)) => {
                    self.groups.remove(&group);
                }
                Some(Order::FenceAt(worker, at)) => {
                    self.deadlines.insert(worker, Deadline { at, looked: false });
                }
                Some(Order::Done) => self.done = true,
                None => tracing::error!(?order, "the guardian does not understand an order"),
            }
        }
        let taken = whole.len() * orders::BYTES;
        bytes.drain(..taken);
    }

    /// How long nothing is to be done unless orders come.
    fn pause(&self, now: u64) -> Duration {
        let next =
            self.deadlines.values().filter(|deadline| !deadline.looked).map(|deadline| deadline.at).min();
        next.map_or(LOOK_EVERY, |at| Duration::from_nanos(at.saturating_sub(now)).min(LOOK_EVERY))
    }

    /// Kills the groups that must not go on.
    fn fence(&mut self, now: u64) {
        for (&worker, deadline) in &mut self.deadlines {
            if now < deadline.at {
                continue;
            }
            let fenced = |member: &Member| member.fence && member.worker == worker;
            let mut groups: BTreeSet<GroupId> =
                self.groups.extract_if(.., |_, member| fenced(member)).map(|(group, _)| group).collect();
            if !std::mem::replace(&mut deadline.looked, true) {
                // Its worker may have been stopped just when it had started them.
                let untold = |member: Member| fenced(&member) && !self.told.contains(member.number);
                groups.append(&mut self.origin.groups(untold, |_| false));
            }
            let killed = groups.into_iter().filter(|group| group.kill()).count();
            if killed > 0 {
                tracing::warn!(killed, "the worker's lease may end soon: its runs with a fence are killed");
            }
        }
    }

    /// The worker is gone: so is everything that it ran. Its end of the pipe is closed in a process that it is about to start only when that
    /// has become the command, so that by now every command has its mark.
    fn kill_all(&mut self) {
        let killed = self.groups.keys().filter(|group| group.kill()).count();
        let mut found = BTreeSet::new();
        for _ in 0..LOOKS_MAX {
            let mut groups = self.origin.groups(
                |member| !self.told.contains(member.number),
                |group| !self.groups.contains_key(&group),
            );
            if groups.is_empty() {
                break;
            }
            for group in &groups {
                group.kill();
            }
            found.append(&mut groups);
            std::thread::sleep(GATHER); // nothing else is to be done in this process
        }
        if killed + found.len() > 0 {
            let untold = found.len();
            tracing::warn!(killed, untold, "the worker is gone: the process groups of its runs are killed");
        }
    }
}
