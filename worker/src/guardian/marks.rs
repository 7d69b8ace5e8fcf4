//! The mark that every command has in its environment, and how those are found whose group the guardian was never told of.
//!
//! Between the start of a command and the telling of it lies a moment in which its worker may be killed: on a machine that is busy, that is
//! long enough for the command to clear its environment. So there is a tag beside the mark, which it does not get rid of by that: a limit
//! that limits nothing, with a value that only this worker's process has set for itself and all that it starts.

use std::collections::BTreeSet;
use std::fmt;

use rustix::process::{Pid, getppid};

use super::orders::{GroupId, Member, WorkerNumber};

/// The environment variable that holds the mark.
pub(crate) const VARIABLE: &str = "CRON_GUARDIAN";
/// Numbers beyond the first gap that are kept: far more than starts are under way at a time.
const AHEAD_MAX: usize = 16 * 1024;

/// The limit that is the tag: how long a process of a real-time class may compute at a stretch, in microseconds. It is unlimited wherever nobody
/// has set it, and the tag is tens of thousands of years.
#[cfg(target_os = "linux")]
const TAGGED: rustix::process::Resource = rustix::process::Resource::Rttime;
/// Its line in `/proc/…/limits`.
const TAGGED_LINE: &str = "Max realtime timeout ";

/// Names one start of a command: by a word that only its process has, and a number.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Mark {
    pub(super) word: String,
    pub(super) member: Member,
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Member { number, worker, fence } = self.member;
        write!(f, "{}-{number}-{worker}-{}", self.word, if fence { "fence" } else { "run" })
    }
}

impl Mark {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let word = parts.next()?.to_owned();
        let (number, worker) = (parts.next()?.parse().ok()?, parts.next()?.parse::<WorkerNumber>().ok()?);
        let fence = match parts.next()? {
            "fence" => true,
            "run" => false,
            _ => return None,
        };
        Some(Self { word, member: Member { number, worker, fence } })
    }

    /// The mark in a process's environment, as `/proc` shows it.
    fn in_environment(environment: &[u8]) -> Option<Self> {
        let of = |entry: &[u8]| {
            let value = entry.strip_prefix(VARIABLE.as_bytes())?.strip_prefix(b"=")?;
            Self::parse(std::str::from_utf8(value).ok()?)
        };
        environment.split(|byte| *byte == 0).find_map(of)
    }
}

/// The numbers of the starts that were told.
#[derive(Debug)]
pub(super) struct Told {
    /// All below this.
    below: u64,
    /// And these.
    ahead: BTreeSet<u64>,
}

impl Told {
    pub(super) fn all_below(below: u64) -> Self {
        Self { below, ahead: BTreeSet::new() }
    }

    pub(super) fn note(&mut self, number: u64) {
        if number >= self.below {
            self.ahead.insert(number);
        }
        // A start that failed leaves a gap for ever.
        while self.ahead.len() > AHEAD_MAX || self.ahead.first() == Some(&self.below) {
            self.below = self.ahead.pop_first().map_or(self.below, |first| first + 1);
        }
    }

    pub(super) fn contains(&self, number: u64) -> bool {
        number < self.below || self.ahead.contains(&number)
    }
}

/// Of a word that is a [`common::ids::random_id`].
fn tag_of(word: &str) -> Option<u64> {
    u64::from_str_radix(word.get(..15)?, 16).ok().map(|random| (1 << 60) | random)
}

/// Gives this process, and all that it starts, the tag of its word; unless somebody has given it such a limit in earnest.
#[cfg(target_os = "linux")]
pub(super) fn tag_this_process(word: &str) {
    use rustix::process::{Rlimit, getrlimit, setrlimit};
    let before = getrlimit(TAGGED);
    // A worker that was started by another's job has that one's tag.
    let limits_nothing = before.current.is_none_or(|limit| limit >= 1 << 60);
    if before.maximum.is_none()
        && limits_nothing
        && let Err(why) = setrlimit(TAGGED, Rlimit { current: tag_of(word), maximum: None })
    {
        tracing::warn!(%why, "commands have no tag");
    }
}

/// There is no such limit here.
#[cfg(not(target_os = "linux"))]
pub(super) fn tag_this_process(_word: &str) {}

/// Whose processes are looked for.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    pub(super) word: String,
    /// The worker's process.
    pub(super) process: Option<Pid>,
    /// The session of the worker's process. Commands stay in it, but for those that leave on purpose, as a daemon does.
    pub(super) session: Option<SessionId>,
    /// The worker's own group.
    pub(super) group: Option<GroupId>,
}

impl Origin {
    /// The worker is `process`, and this process is in its session and group.
    pub(super) fn here(word: &str, process: Option<Pid>) -> Self {
        let own = Process::read("self");
        Self {
            word: word.to_owned(),
            process,
            session: own.as_ref().map(|own| own.session),
            group: own.and_then(|own| own.group),
        }
    }

    /// The groups of processes whose mark is of this origin and is `wanted`; and those of orphans of the worker that have no mark, but its
    /// tag, if their group is wanted. Without `/proc`, as on macOS, none are found.
    pub(super) fn groups(
        &self,
        wanted: impl Fn(Member) -> bool,
        wanted_without: impl Fn(GroupId) -> bool,
    ) -> BTreeSet<GroupId> {
        let Ok(entries) = std::fs::read_dir("/proc") else { return BTreeSet::new() };
        let group_of = |number: i32| {
            let process = Process::read(number)?;
            let group = process.group.filter(|group| Some(*group) != self.group)?;
            if Some(process.session) != self.session {
                return None;
            }
            let environment = std::fs::read(format!("/proc/{number}/environ")).ok()?;
            let is_wanted = match Mark::in_environment(&environment) {
                Some(mark) => mark.word == self.word && wanted(mark.member),
                // The guardian's parent is asked for after the process was read: by then it has been handed on with the worker's other
                // children. Asked before, they may be handed on in between, and be taken for somebody else's.
                None => {
                    [self.process, getppid()].contains(&process.parent)
                        && wanted_without(group)
                        && self.has_tagged(number)
                }
            };
            is_wanted.then_some(group)
        };
        let processes = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        processes.filter_map(group_of).collect()
    }

    fn has_tagged(&self, process: i32) -> bool {
        let limits = std::fs::read_to_string(format!("/proc/{process}/limits")).unwrap_or_default();
        let tag = limits
            .lines()
            .find_map(|line| line.strip_prefix(TAGGED_LINE)?.split_whitespace().next()?.parse::<u64>().ok());
        tag.is_some() && tag == tag_of(&self.word)
    }
}

/// A session's number. It is 0 for one that began outside of this process's pid namespace, as when a container's runtime puts a process
/// into one without a new session; which is why it is read from `/proc`: the system call's wrapper takes 0 for impossible.
type SessionId = i32;

/// What `/proc` shows of a process that lives.
struct Process {
    parent: Option<Pid>,
    /// `None` for one that, as a session may, began outside.
    group: Option<GroupId>,
    session: SessionId,
}

impl Process {
    fn read(number: impl fmt::Display) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{number}/stat")).ok()?;
        // The program's name stands in parentheses and may contain anything: read behind the last one.
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        let state = fields.next()?;
        let mut next = || fields.next()?.parse().ok();
        let (parent, group, session) = (next()?, next()?, next()?);
        let process = Self { parent: Pid::from_raw(parent), group: GroupId::from_raw(group), session };
        (state != "Z").then_some(process)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_found_among_other_variables() {
        let mark = Mark { word: "4fa0".to_owned(), member: Member { number: 17, worker: 2, fence: true } };
        let environment = format!("PATH=/bin\0X{VARIABLE}={mark}x\0{VARIABLE}={mark}\0HOME=/");
        assert_eq!(Mark::in_environment(environment.as_bytes()), Some(mark.clone()));
        for other in
            ["", "PATH=/bin\0", "CRON_GUARDIAN=\0", "CRON_GUARDIAN=a-b-c-run", "CRON_GUARDIAN=a-1-1-else"]
        {
            assert_eq!(Mark::in_environment(other.as_bytes()), None, "{other:?}");
        }
        let unfenced = Mark { member: Member { fence: false, ..mark.member }, ..mark };
        assert_eq!(Mark::parse(&unfenced.to_string()), Some(unfenced));
    }

    #[test]
    fn what_was_told_is_known_in_whatever_order_it_came() {
        let mut told = Told::all_below(5);
        for number in [7, 5, 9] {
            told.note(number);
        }
        let known: Vec<u64> = (0..12).filter(|number| told.contains(*number)).collect();
        assert_eq!(known, [0, 1, 2, 3, 4, 5, 7, 9]);
        told.note(6);
        assert_eq!((told.below, told.ahead.len()), (8, 1));
        for number in 10..10 + 2 * AHEAD_MAX as u64 {
            told.note(number);
        }
        assert!(told.ahead.len() <= AHEAD_MAX && told.contains(8), "a gap is not waited for without end");
    }

    #[test]
    fn processes_are_found_by_their_mark_unless_they_left_the_session() {
        let origin = Origin::here(&common::ids::random_id(), Some(rustix::process::getpid()));
        let start = |shell: &str, number, fence| {
            use std::os::unix::process::CommandExt as _;
            let mark = Mark { word: origin.word.clone(), member: Member { number, worker: 0, fence } };
            let mut command = std::process::Command::new("bash");
            command.args(["-c", shell]).env(VARIABLE, mark.to_string()).process_group(0);
            command.stdin(std::process::Stdio::null()).spawn().unwrap()
        };
        let dir = tempfile::tempdir().unwrap();
        let daemon_up = dir.path().join("up");
        let plain = start("sleep 100; :", 1, false);
        let daemon = start(
            &format!(
                "setsid bash -c '>{0}; while [ -e {0} ]; do sleep 0.1; done' & wait",
                daemon_up.display()
            ),
            2,
            true,
        );
        while !daemon_up.exists() {
            std::thread::yield_now();
        }
        let groups = |children: &[&std::process::Child]| {
            children.iter().map(|c| GroupId::of(Pid::from_child(c))).collect()
        };
        let all = |origin: &Origin| origin.groups(|_| true, |_| false);
        assert_eq!(all(&origin), groups(&[&plain, &daemon]));
        assert_eq!(origin.groups(|member| member.fence, |_| false), groups(&[&daemon]));
        assert_eq!(all(&Origin { word: common::ids::random_id(), ..origin.clone() }), BTreeSet::new());
        assert_eq!(all(&Origin { session: None, ..origin.clone() }), BTreeSet::new());
        for mut child in [plain, daemon] {
            assert!(GroupId::of(Pid::from_child(&child)).kill());
            child.wait().unwrap();
        }
        // What a leader has started is killed with it, and gone a moment later.
        while !all(&origin).is_empty() {
            std::thread::yield_now();
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn processes_without_a_mark_are_found_by_their_tag() {
        use std::os::unix::process::CommandExt as _;
        let origin = Origin::here(&common::ids::random_id(), Some(rustix::process::getpid()));
        tag_this_process(&origin.word);
        let mut command = std::process::Command::new("bash");
        command.args(["-c", "exec env -i sleep 100"]).env(VARIABLE, "none").process_group(0);
        let mut child = command.spawn().unwrap();
        let group = GroupId::of(Pid::from_child(&child));
        let found = |origin: &Origin| origin.groups(|_| true, |found| found == group);
        while found(&origin).is_empty() {
            std::thread::yield_now();
        }
        assert_eq!(origin.groups(|_| true, |found| found != group), BTreeSet::new());
        let other = Origin { word: common::ids::random_id(), ..origin.clone() };
        assert_eq!(found(&other), BTreeSet::new(), "the tag is another's");
        let elsewhere = Origin { process: Some(Pid::INIT), ..origin.clone() };
        assert_eq!(found(&elsewhere), BTreeSet::new(), "it is no orphan of that process");
        assert!(group.kill());
        child.wait().unwrap();
    }
}
