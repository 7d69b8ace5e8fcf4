//! What the scheduler is told, and what it asks for: plain values, so that the driver and a simulation can carry them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use common::clock::Timestamp;
use common::domain::job::{Fault, Job, JobName};
use common::domain::kill::Killed;
use common::domain::mark::Mark;
use common::domain::options::{Labels, Selector};
use common::domain::pause::Base;
use common::domain::record::{Ending, Record};
use common::domain::request::Request;
use common::domain::run::{OpenRun, RunId};
use common::domain::settings::FleetSettings;
use common::domain::stored;
use common::domain::worker::Sid;
use common::kv::Revision;

use crate::exec::work::{Kill, Work};

use super::requests::{Close, CloseAnswer, RequestAnswer, RequestClaim, RequestSeen};

/// A job's key as it was read or watched.
#[derive(Clone, Debug)]
pub struct JobSeen {
    /// From the key.
    pub name: JobName,
    /// The value, or what keeps it from being a job.
    pub job: Result<Arc<Job>, Fault>,
    /// Of the key.
    pub create_revision: Revision,
    /// Of the key.
    pub mod_revision: Revision,
}

/// A mark as it was read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MarkSeen {
    /// The value, or why it cannot be used.
    pub mark: Result<Mark, stored::Error>,
    /// Of the key.
    pub revision: Revision,
    /// It hangs on a lease: its job is deleted, and so will it be.
    pub retired: bool,
}

/// The live workers.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Members {
    /// Ids of ours, this worker among them once it is registered, with their labels.
    pub ours: BTreeMap<String, Labels>,
    /// Under which session each of them is registered.
    pub sessions: BTreeMap<String, Sid>,
    /// Ids of seed workers: they ignore marks.
    pub seeds: BTreeSet<String>,
}

/// Which marks to read, or were read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Slots {
    /// Those of these slots.
    Some(BTreeSet<u16>),
    /// Those of all slots.
    All,
}

impl Slots {
    /// Whether `slot` is among them.
    #[must_use]
    pub fn contains(&self, slot: u16) -> bool {
        match self {
            Self::Some(slots) => slots.contains(&slot),
            Self::All => true,
        }
    }
}

/// What a claim does when it commits.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ClaimKind {
    /// Takes the fire: mark, lock and open run.
    Run,
    /// Lets one or more fires go: mark and open run (which stands for the `skipped` record).
    Skip,
    /// Takes the fire for every worker: mark, and a request for each (design P13).
    Broadcast,
    /// Moves the mark past a fire that a seed worker has taken: mark only.
    SeedRan,
}

/// One claim transaction, complete: sending it again sends the identical request (design P2).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Claim {
    /// What it does.
    pub kind: ClaimKind,
    /// The session it is made under, and compared.
    pub sid: Sid,
    /// Number of the open-run key in the session.
    pub seq: u64,
    /// What becomes open.
    pub open: OpenRun,
    /// The definition it was decided from, compared.
    pub job_revision: Revision,
    /// The fleet's settings by which it was decided, compared: the calendars are put with them, so that this one stands for both.
    pub settings_revision: Revision,
    /// The mark it was decided from; 0 = absent. Compared, unless its value is.
    pub mark_revision: Revision,
    /// The value of the mark it was decided from, compared: it is never put again, while revisions repeat in a store that was put back.
    pub mark_value: Option<Vec<u8>>,
    /// The mark to put.
    pub mark: Mark,
    /// Runs without the lock may be going, since some were claimed before (`concurrency: allow`, then another): that there is none is compared.
    pub exclusive: bool,
    /// The lock that this one takes over, compared: the worker's own, of the run before, kept from seed workers. `None` = it must be free.
    pub over_lock: Option<Revision>,
    /// Number of the open-run key of the claim that this one replaces, of which a sending may have committed.
    pub replaces: Option<u64>,
    /// The requests that come of it: of [`ClaimKind::Broadcast`].
    pub spread: Vec<(RunId, Request)>,
    /// It is not sent together with others: it is in doubt, takes over what others may have changed and would be refused with them, or puts much.
    pub alone: bool,
}

/// What a refused claim saw.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// The session is there.
    pub session_alive: bool,
    /// The fleet is paused.
    pub paused: bool,
    /// The job's mod revision; 0 = absent.
    pub job_revision: Revision,
    /// The settings' mod revision; 0 = absent.
    pub settings_revision: Revision,
    /// The mark.
    pub mark: Option<MarkSeen>,
    /// The lock.
    pub lock: LockSeen,
    /// The runs that keep a run from being claimed, some of them if there are many.
    pub holders: Vec<Holder>,
    /// The open runs under the numbers of the claim and of the one that it replaces, each with the revision of its key.
    pub open: Vec<(OpenRun, Revision)>,
}

impl Refusal {
    /// At which revision `claim` has committed, as far as this shows. The mark alone does not tell: others may have moved it since, past
    /// fires that overlap this very run. The open run stays until its record is stored.
    #[must_use]
    pub fn shows(&self, claim: &Claim) -> Option<Revision> {
        let open = self.open.iter().find(|(open, _)| *open == claim.open).map(|(_, revision)| *revision);
        open.or_else(|| self.mark.as_ref().filter(|_| self.mark_is_of(claim)).map(|seen| seen.revision))
    }

    fn mark_is_of(&self, claim: &Claim) -> bool {
        matches!(&self.mark, Some(MarkSeen { mark: Ok(mark), .. })
            if mark.run_id.as_ref() == Some(&claim.open.run_id) && mark.plan_time == claim.mark.plan_time)
    }
}

/// A run that is going, as its lock shows it, or what it holds in the place of the lock.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Holder {
    /// The run.
    pub run_id: RunId,
    /// It holds no lock, only a key of its own.
    pub unlocked: bool,
    /// Of what it holds.
    pub revision: Revision,
}

/// A kill request as it was seen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KillSeen {
    /// The runs to kill; `None` (the seed's request): those claimed before it.
    pub run_ids: Option<Vec<RunId>>,
    /// Of the request.
    pub revision: Revision,
    /// Who asks, if it says so.
    pub by: Option<String>,
    /// When, if it says so.
    pub at: Option<Timestamp>,
}

/// A lock as it was read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LockSeen {
    /// Nobody holds it.
    Free,
    /// One of our workers (or something unreadable) holds it.
    Held,
    /// A seed worker holds it.
    HeldBySeed,
}

/// How a claim went.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ClaimAnswer {
    /// Committed at this revision.
    Won(Revision),
    /// A compare did not hold.
    Refused(Refusal),
    /// No answer came: it may commit yet.
    Unknown,
    /// It was not applied and will not be.
    NotApplied,
}

/// How an adoption went.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AdoptAnswer {
    /// The mark is put, at this revision.
    Done(Mark, Revision),
    /// Something it was decided from has changed, or no answer came: look again.
    LookAgain,
}

/// How the move of a run to a new session went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MoveAnswer {
    /// Done: the new lock has this revision.
    Done(Revision),
    /// Done at this revision, without the lock: only after the store went back, when another holds it.
    Unlocked(Revision),
    /// Its open entry is gone, or the lock is taken: the run was closed as lost.
    Refused,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// The time that was asked for has come.
    Woke,
    /// Claims take long or short lately: fires are claimed so long before their time from now on, in ms, within the scheduler's bounds.
    Lead(i64),
    /// A session, and the name under which this worker is registered.
    SessionGained(Sid, String),
    /// This worker is registered under this name now, in the same session.
    Renamed(String),
    /// The session is over, or must be taken to be.
    SessionLost,
    /// The store went back to an earlier state (design P16): nothing that was known of it holds any more.
    StoreWentBack,
    /// Every job there is will be told by [`Event::JobPut`], until [`Event::JobsListed`].
    JobsListBegins,
    /// Every job there is was told since [`Event::JobsListBegins`].
    JobsListed,
    /// A job was put, or is on the list.
    JobPut(JobSeen),
    /// A job was deleted.
    JobDeleted(JobName),
    /// Every request there is: each was told by [`Event::RequestSeen`] before.
    RequestsListed(BTreeSet<RunId>),
    /// A request was put, or is on the list.
    RequestSeen(RequestSeen),
    /// A request was taken away: by its claim.
    RequestGone(RunId),
    /// The answer to the claim of a request.
    RequestAnswered(Box<RequestClaim>, RequestAnswer),
    /// How what [`Action::Close`] asked for went.
    Closed(RunId, CloseAnswer),
    /// Marks were read; those that are not there are absent.
    MarksRead {
        /// Of these slots; [`Slots::All`] is answered in parts.
        slots: Slots,
        /// By job.
        marks: BTreeMap<JobName, MarkSeen>,
        /// When the reading was asked for.
        asked_at: Timestamp,
    },
    /// Marks could not be read.
    MarksUnread(Slots),
    /// Workers came or went.
    MembersChanged(Members),
    /// `/cron/paused` came or went.
    Paused(bool),
    /// `/cron/base` was read, or changed.
    Base(Base),
    /// The fleet's settings and calendars, of this revision of the settings' key; 0 = there is none. `None` = they cannot be read.
    Settings(Option<FleetSettings>, Revision),
    /// A claim's answer.
    ClaimAnswered(RunId, Timestamp, JobName, ClaimAnswer),
    /// An adoption's answer.
    AdoptAnswered(JobName, AdoptAnswer),
    /// A run is over; its status is the scheduler's to say.
    RunEnded(RunId, Ending),
    /// The lock of a run is free.
    Released(RunId),
    /// A run's move to the session.
    MoveAnswered(RunId, Sid, u64, MoveAnswer),
    /// Somebody asks to kill runs of a job.
    KillAsked(JobName, KillSeen),
    /// Whether fires may be claimed by this worker's clock (design P8). What is claimed and what runs goes on in any case.
    ClockTrusted(bool),
    /// The record sink holds as much as it may: nothing more is claimed until it holds less.
    SinkFull(bool),
    /// Claim nothing more.
    DrainRequested,
    /// Kill every run.
    KillAllRequested,
}

/// A first or a new mark to be put, with what it was decided from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Adoption {
    /// The job.
    pub job: JobName,
    /// Its definition, compared.
    pub job_revision: Revision,
    /// Its mark; 0 = absent. Compared, unless its value is.
    pub mark_revision: Revision,
    /// Its mark's value, compared.
    pub mark_value: Option<Vec<u8>>,
    /// The fleet's settings, compared: the hash in the mark depends on them.
    pub settings_revision: Revision,
    /// The session, compared.
    pub sid: Sid,
    /// The mark to put.
    pub mark: Mark,
}

/// What to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Send this claim; answer with [`Event::ClaimAnswered`].
    Claim(Box<Claim>),
    /// Send this claim of a request; answer with [`Event::RequestAnswered`].
    ClaimRequest(Box<RequestClaim>),
    /// Write the open key of a run that has ended, ask for its next attempt, tell the jobs that wait for it; answer with [`Event::Closed`] once the store has answered.
    Close(Box<Close>),
    /// Put a first or a new mark; answer with [`Event::AdoptAnswered`].
    Adopt(Adoption),
    /// Read marks; answer with [`Event::MarksRead`] or [`Event::MarksUnread`].
    ReadMarks {
        /// Of these slots.
        slots: Slots,
        /// A stale answer will do.
        serializable: bool,
    },
    /// Let the mark of a deleted job go in a day, if it is still at this revision and the job still absent.
    RetireMark {
        /// The job.
        job: JobName,
        /// The mark's revision.
        revision: Revision,
        /// Its value, to be put again with a lease.
        mark: Mark,
    },
    /// The run's time has not come: what [`Action::Start`] will most likely ask for then. Nothing need be done, nothing is answered, and
    /// the command must not begin.
    Prepare {
        /// The run.
        open: OpenRun,
        /// What is executed, as it is now.
        work: Work,
        /// When it should start: its plan time and the job's jitter.
        due: Timestamp,
    },
    /// Start the command; answer with [`Event::RunEnded`].
    Start {
        /// The run.
        open: OpenRun,
        /// What is executed.
        work: Work,
        /// When it should have started: its plan time and the job's jitter.
        due: Timestamp,
    },
    /// Kill the whole process group of a run.
    Kill(RunId, Kill),
    /// Have runs elsewhere killed that keep this claim from being made, as long as it could be made but for them; nothing is answered.
    Replace {
        /// The claim that was refused for them.
        claim: Box<Claim>,
        /// The runs.
        holders: Vec<Holder>,
        /// What their records will say.
        killed: Killed,
    },
    /// Free the lock of a run, if it is still the one of this revision; answer with [`Event::Released`].
    Release {
        /// The run.
        run_id: RunId,
        /// The job.
        job: JobName,
        /// The session that holds it.
        sid: Sid,
        /// Revision of the put of the lock.
        lock_revision: Revision,
        /// It is no lock but the key that the run holds in its place.
        unlocked: bool,
        /// Not earlier than this: seed workers may still try to lock for the same fire.
        not_before: Timestamp,
    },
    /// Take a run over into a new session; answer with [`Event::MoveAnswered`].
    Move {
        /// The run.
        open: OpenRun,
        /// Its open key now.
        from: (Sid, u64),
        /// Its open key afterwards.
        to: (Sid, u64),
        /// The store went back since it was started: that its open key is not there, or its lock is another's, says nothing about it.
        rescue: bool,
    },
    /// Store a record; then, if it settles one, delete the open key.
    Record {
        /// The record.
        record: Box<Record>,
        /// Session and number of the open key that it settles.
        settles: Option<(Sid, u64)>,
    },
    /// The session was found to be gone.
    GiveUpSession(Sid),
    /// The store was found to have gone back; answer with [`Event::StoreWentBack`].
    GiveUpStore(String),
    /// Write down for those who start later that the store was put back, unless somebody else has; nothing is answered.
    NoteRestore {
        /// What `/cron/base` said of that before; `None` = it was not read yet.
        known: Option<Timestamp>,
        /// Up to when what is in the store may be of before.
        floor: Timestamp,
    },
    /// Say something to whoever reads the log.
    Report(Report),
}

/// What somebody should know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Report {
    /// A job in the store cannot be run.
    BadJob(JobName, String),
    /// A mark in the store cannot be read; its job is left alone.
    BadMark(JobName, String),
    /// A job waits for a time far ahead, which a wrong clock has put into its mark.
    MarkAhead(JobName, Timestamp),
    /// Fires were let go.
    Skipped(OpenRun),
    /// A seed worker is registered, or the last one left: fires may run twice while one is there.
    Seeds(BTreeSet<String>),
    /// From this fire on, fires of a job count as done by the seed worker that holds its lock.
    LeftToSeed(JobName, Timestamp),
    /// A run of ours was closed as lost by others and is killed, unless its job lets runs overlap.
    ClosedAsLost {
        /// The run.
        run_id: RunId,
        /// It is killed.
        killed: bool,
    },
    /// A fire was claimed so late that it is let go.
    TooLate(OpenRun),
    /// Jobs wait for each other in a circle, this one among them: none of them is told of another's success.
    Circle(JobName),
    /// A job was deleted for which others wait.
    WaitedFor(JobName),
    /// A run has succeeded, and was closed as lost before: the jobs that wait for it are not told.
    SucceededTooLate(RunId),
    /// A fire of a job is due, and no worker has the labels that the job wants.
    NoWorker(JobName, Selector),
}
