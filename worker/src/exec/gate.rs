//! Shells that are started before their time and wait at a gate, so that at it only the command itself begins.
//!
//! Starting bash costs about a millisecond of a processor, the rest of a start a fraction of that. bash sources the file that `BASH_ENV`
//! names when its own start is behind it and the command still before it: there it waits for a line from its standard input. Shells of one
//! moment wait for one pipe, so that a single write lets all of them go. A pipe that ends instead, because the worker decides so or is
//! dead, ends the shell: its command never begins.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::{self, PipeReader, PipeWriter, Write as _};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use common::clock::{self, Clock, Timestamp};
use common::domain::record::Ending;
use common::domain::run::{OpenRun, RunId, Trigger};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;
use tracing::Instrument as _;

use super::process::{self, Running};
use super::shell::Shell;
use super::work::Work;
use crate::traces;

/// Names the file that bash sources first.
pub(super) const VARIABLE: &str = "BASH_ENV";
/// In the data directory.
const FILE: &str = "gate";
/// What the shell does there. `read` takes one byte at a time from a pipe, so that each shell takes one line and leaves the others theirs.
/// Functions and a time limit from the environment have no say in it. Afterwards everything is as it is without a gate, as far as a command
/// can tell: standard input, environment, `$SECONDS`, `$_`, `$?`.
const TEXT: &str = "\
# Fleetcron: shells wait here until the time of their command has come. Made anew when the worker starts.
TMOUT=0 builtin read -r _ || exit 125
exec </dev/null
unset -v BASH_ENV
SECONDS=0
: \"$BASH\"
";
/// Shells that wait at a time: each has about 0.6 MB for itself. Runs beyond are started at their time. More than these would not have got
/// past their own start within the longest lead, on two processors.
const SHELLS_MAX: usize = 256;
/// Tried with and without a gate, before the first is used: tells what the shell was made of. Only what is built into bash.
const PROBE: &str = "echo \"${BASH_ENV-none} $- $0 $SHLVL $#\"";
/// The probe takes milliseconds; on a machine that is busy starting, more.
const PROBE_MAX: Duration = Duration::from_secs(30);

/// The file at which shells wait.
#[derive(Debug)]
pub(crate) struct GateFile(PathBuf);

impl GateFile {
    /// Writes it into the data directory, whole or not at all, and tries whether shells wait there. Some do not: bash leaves `BASH_ENV`
    /// unread in POSIX mode and under an ssh server, the environment may trace what shells do, and who has set a `BASH_ENV` of their own
    /// keeps it.
    ///
    /// # Errors
    /// It cannot be written, or does not hold shells: do without.
    pub(crate) async fn make(data_dir: &Path, shell: &Shell) -> io::Result<Self> {
        let path = std::path::absolute(data_dir)?.join(FILE);
        let new = path.with_extension("new");
        std::fs::write(&new, TEXT)?;
        std::fs::rename(&new, &path)?;
        let file = Self(path);
        let usual = probe(shell, None).await?;
        let passed = probe(shell, Some((&file.0, b"\n"))).await?;
        let refused = probe(shell, Some((&file.0, b""))).await?;
        let said_nothing = refused.stdout.is_empty() && refused.stderr.is_empty();
        if passed == usual && refused.status.code() == Some(125) && said_nothing {
            Ok(file)
        } else {
            Err(io::Error::other("bash does not wait, or does not stay the same, in this environment"))
        }
    }

    /// bash passes over a file that is not there, and would begin with the command at once. If the file goes between this and the start of
    /// the shell, the command begins early, by the lead at most; it is the fire's only start all the same.
    fn is_whole(&self) -> bool {
        std::fs::read(&self.0).is_ok_and(|text| text == TEXT.as_bytes())
    }
}

async fn probe(shell: &Shell, gate: Option<(&Path, &[u8])>) -> io::Result<Output> {
    let mut shell = shell.of(PROBE);
    shell.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    if let Some((file, _)) = gate {
        shell.env(VARIABLE, file).stdin(Stdio::piped());
    }
    let mut child = shell.spawn()?;
    let answered = async {
        if let (Some((_, line)), Some(mut stdin)) = (gate, child.stdin.take()) {
            let _ended_already = stdin.write_all(line).await;
        }
        child.wait_with_output().await
    };
    clock::timeout(PROBE_MAX, answered).await.map_err(|_late| io::Error::from(io::ErrorKind::TimedOut))?
}

/// Where one shell waits.
#[derive(Debug)]
pub(crate) struct Place {
    /// What is started.
    pub(super) shell: Arc<Shell>,
    /// The file that makes it wait.
    pub(super) file: PathBuf,
    /// What it waits for.
    pub(super) stdin: PipeReader,
    /// How many are started side by side.
    pub(super) turns: Arc<Semaphore>,
    /// When the gate was opened; an error when it was closed.
    pub(super) opened: oneshot::Receiver<Timestamp>,
}

/// A command that has begun.
#[derive(Debug)]
pub(crate) struct Begun {
    /// Its run.
    pub(crate) run_id: RunId,
    /// When it should.
    pub(crate) due: Timestamp,
    /// What it executes.
    pub(crate) work: Work,
    /// What started it.
    pub(crate) trigger: Trigger,
    /// When it was let go.
    pub(crate) start_time: Timestamp,
    /// What the worker has of it.
    pub(crate) running: Running,
    /// Never `None`, since it was let go.
    pub(crate) ending: JoinHandle<Option<Ending>>,
}

/// A shell that waits.
#[derive(Debug)]
struct Waiting {
    work: Work,
    trigger: Trigger,
    opened: oneshot::Sender<Timestamp>,
    running: Running,
    ending: JoinHandle<Option<Ending>>,
}

/// Shells of one moment.
#[derive(Debug)]
struct Gate {
    reader: PipeReader,
    writer: PipeWriter,
    shells: BTreeMap<RunId, Waiting>,
}

impl Gate {
    fn new() -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        Ok(Self { reader, writer, shells: BTreeMap::new() })
    }

    /// Lets all go. On an error none was.
    fn open(&mut self) -> io::Result<()> {
        // Far less than what a pipe takes at once: all of it is written or nothing.
        self.writer.write_all(&vec![b'\n'; self.shells.len()])
    }
}

/// What is to be started, by run.
pub(crate) type Starts = BTreeMap<RunId, (OpenRun, Work, Timestamp)>;

/// All shells that wait. Dropped, none of their commands begins.
#[derive(Debug)]
pub(crate) struct Gates {
    shell: Arc<Shell>,
    file: Option<GateFile>,
    by_time: BTreeMap<Timestamp, Gate>,
    shells: usize,
    /// As many shells are started side by side as there are processors.
    turns: Arc<Semaphore>,
}

impl Gates {
    /// None waits, and without a file none will.
    pub(crate) fn new(shell: Arc<Shell>) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
        let turns = Arc::new(Semaphore::new(processors));
        Self { shell, file: None, by_time: BTreeMap::new(), shells: 0, turns }
    }

    /// How many wait.
    pub(crate) fn shells(&self) -> usize {
        self.shells
    }

    /// From now on shells wait at this file.
    pub(crate) fn use_file(&mut self, file: GateFile) {
        self.file = Some(file);
    }

    /// Starts a shell for a run whose time has not come, if there is a file and room. Returns how many wait for that time.
    pub(crate) fn prepare(
        &mut self,
        open: OpenRun,
        work: Work,
        due: Timestamp,
        clock: Arc<dyn Clock>,
    ) -> usize {
        if self.shells < SHELLS_MAX
            && self.shell.can_wait_for(&work)
            && let Some(file) = &self.file
        {
            if !file.is_whole() {
                tracing::error!(file = %file.0.display(), "changed or gone: shells are started at their time from now on");
                self.file = None;
            } else if let Err(why) = self.start(open, work, due, clock) {
                tracing::warn!(%why, "no shell ahead of its time");
            }
        } else {
            self.shell.supplies().secrets.read_ahead(&open.job, work.execution.as_ref());
        }
        self.by_time.get(&due).map_or(0, |gate| gate.shells.len())
    }

    fn start(&mut self, open: OpenRun, work: Work, due: Timestamp, clock: Arc<dyn Clock>) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let gate = match self.by_time.entry(due) {
            Entry::Occupied(gate) => gate.into_mut(),
            Entry::Vacant(none) => none.insert(Gate::new()?),
        };
        let (opened, is_opened) = oneshot::channel();
        let (mut running, asked) = Running::new(&work);
        running.span = traces::begin(&self.shell.supplies().tracer, &open);
        let place = Place {
            shell: Arc::clone(&self.shell),
            file: file.0.clone(),
            stdin: gate.reader.try_clone()?,
            turns: Arc::clone(&self.turns),
            opened: is_opened,
        };
        let (run_id, of, captured) = (open.run_id.clone(), work.clone(), running.captured.clone());
        let trigger = open.trigger;
        let of_run = traces::log_span(&open);
        let ending =
            async move { process::run_at_gate(place, &open, &of, &captured, clock.as_ref(), asked).await };
        let ending = tokio::spawn(ending.instrument(of_run));
        gate.shells.insert(run_id, Waiting { work, trigger, opened, running, ending });
        self.shells += 1;
        Ok(())
    }

    /// Takes what is started at `now`, and takes from it what begins by this. A gate is opened as a whole or not at all: all its shells
    /// read one pipe. So if one of them is not to begin, or not with the very work that it has (a kill, an edit, a lost session in the
    /// lead), all are let go unused, and the others' runs are left to be started as without a gate.
    pub(crate) fn open_due(&mut self, now: Timestamp, clock: &dyn Clock, starts: &mut Starts) -> Vec<Begun> {
        let mut begun = Vec::new();
        while let Some(gate) = self.by_time.first_entry().filter(|gate| *gate.key() <= now) {
            let (due, mut gate) = gate.remove_entry();
            self.shells -= gate.shells.len();
            let is_meant = |(run_id, shell): (&RunId, &Waiting)| {
                starts.get(run_id).is_some_and(|(_, work, _)| *work == shell.work)
            };
            if !gate.shells.iter().all(is_meant) {
                continue;
            }
            let start_time = clock.now();
            if let Err(why) = gate.open() {
                tracing::warn!(%why, "shells cannot be let go, others are started");
                continue;
            }
            for (run_id, Waiting { work, trigger, opened, running, ending }) in
                std::mem::take(&mut gate.shells)
            {
                starts.remove(&run_id);
                let _broken = opened.send(start_time);
                begun.push(Begun { run_id, due, work, trigger, start_time, running, ending });
            }
        }
        begun
    }

    /// Nothing that waits is to begin.
    pub(crate) fn close(&mut self) {
        self.by_time.clear();
        self.shells = 0;
    }
}

#[cfg(test)]
mod tests;
