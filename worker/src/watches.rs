//! What the worker follows in the store, and how it becomes the loop's input.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use common::clock::Timestamp;
use common::domain::job::{Job, JobName};
use common::domain::kill::KillRequest;
use common::domain::run::RunId;
use common::domain::worker::{self, Sid};
use common::keys;
use common::kv::{Kv, Pair, Range, Revision, Span};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::batches::Answered;
use crate::claims::parse_base;
use crate::exec::gate::GateFile;
use crate::follow::{News, follow};
use crate::scheduler::{AdoptAnswer, Claim, ClaimAnswer, Event, JobSeen};
use crate::session::Session;
use crate::witness::Era;

/// What the loop is told.
#[derive(Debug)]
pub(crate) enum Input {
    /// For the scheduler.
    Event(Event),
    /// All registrations, whenever one changes.
    Workers(BTreeMap<String, Registration>),
    /// Some session is over.
    SessionEnded,
    /// A session for this worker.
    SessionReady(Session),
    /// It has registered again, under this name and at this revision; `None`: its session is over.
    RegisteredAgain(Sid, Option<(String, Revision)>),
    /// Its lease was renewed by a request sent then.
    KeptAlive { sid: Sid, sent: common::clock::Stopwatch },
    /// Its lease is not there any more.
    LeaseGone(Sid),
    /// A batch of claims was sent, and this came of each.
    ClaimsAnswered(Answered, Vec<(Claim, ClaimAnswer)>),
    /// A batch of adoptions was sent, and this came of each.
    Adopted(Answered, Vec<(JobName, AdoptAnswer)>),
    /// The locks of these runs are free.
    LocksFreed(Answered, Vec<RunId>),
    /// Shells can be started ahead of their time.
    GateHolds(GateFile),
}

impl Input {
    /// It says nothing about the store, so that it holds also when the store went back.
    pub(crate) fn outlives_the_store(&self) -> bool {
        matches!(self, Self::Event(Event::RunEnded(..)) | Self::GateHolds(_))
    }
}

/// Where the loop is told things by whoever works in an era of the store. What comes from an era that is over is thrown away.
#[derive(Clone, Debug)]
pub(crate) struct Inputs {
    to: mpsc::Sender<(Era, Input)>,
    pub(crate) era: Era,
}

impl Inputs {
    /// Of the first era.
    pub(crate) fn new(to: mpsc::Sender<(Era, Input)>) -> Self {
        Self { to, era: 0 }
    }

    /// For another era.
    pub(crate) fn of(&self, era: Era) -> Self {
        Self { to: self.to.clone(), era }
    }

    /// False: nobody listens any more.
    pub(crate) async fn send(&self, input: Input) -> bool {
        self.to.send((self.era, input)).await.is_ok()
    }
}

/// A registration as it was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Registration {
    pub(crate) who: Registered,
    /// Of its key.
    pub(crate) revision: Revision,
}

/// Who registered under an id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Registered {
    /// One of our workers.
    Ours(Sid),
    /// A seed worker: an empty value.
    Seed,
    /// Somebody whose registration cannot be read.
    Unreadable,
}

/// Starts following everything.
pub(crate) fn start(kv: &Arc<dyn Kv>, inputs: &Inputs) -> Vec<JoinHandle<()>> {
    let (kv_of, to) = (|| Arc::clone(kv), || inputs.clone());
    vec![
        tokio::spawn(follow_jobs(kv_of(), to())),
        tokio::spawn(follow_workers(kv_of(), to())),
        tokio::spawn(follow_sessions(kv_of(), to())),
        tokio::spawn(follow_kills(kv_of(), to())),
        tokio::spawn(follow_pause(kv_of(), to())),
        tokio::spawn(follow_base(kv_of(), to())),
    ]
}

async fn tell(to: &Inputs, events: Vec<Event>) -> bool {
    for event in events {
        if !to.send(Input::Event(event)).await {
            return false;
        }
    }
    true
}

/// Jobs: the seed's save and delete events.
async fn follow_jobs(kv: Arc<dyn Kv>, to: Inputs) {
    let mut listed = BTreeSet::new();
    follow(kv, Span::prefix(keys::JOBS), |news| {
        let events = match news {
            News::Page { pairs, first, last } => {
                if first {
                    listed.clear();
                }
                let jobs: Vec<JobSeen> = pairs.iter().filter_map(job_seen).collect();
                listed.extend(jobs.iter().map(|job| job.name.clone()));
                let whole = last.then(|| Event::JobsListed(std::mem::take(&mut listed)));
                jobs.into_iter().map(Event::JobPut).chain(whole).collect()
            }
            News::Changed(changes) => changes
                .iter()
                .filter_map(|change| match job_name(&change.pair) {
                    Some(name) if change.is_delete() => Some(Event::JobDeleted(name)),
                    _ => job_seen(&change.pair).map(Event::JobPut),
                })
                .collect(),
        };
        let to = to.clone();
        async move { tell(&to, events).await }
    })
    .await;
}

fn job_name(pair: &Pair) -> Option<JobName> {
    JobName::parse(pair.key.strip_prefix(keys::JOBS)?).ok()
}

pub(crate) fn job_seen(pair: &Pair) -> Option<JobSeen> {
    let Some(name) = job_name(pair) else {
        if pair.version > 0 {
            tracing::error!(key = %pair.key, "not the name of a job: left alone");
        }
        return None;
    };
    let job = Job::from_stored(name.as_str(), &pair.value).map(Arc::new);
    Some(JobSeen { name, job, create_revision: pair.create_revision, mod_revision: pair.mod_revision })
}

async fn follow_workers(kv: Arc<dyn Kv>, to: Inputs) {
    let mut registered = BTreeMap::new();
    follow(kv, Span::prefix(keys::WORKERS), |news| {
        let mut whole = true;
        match news {
            News::Page { pairs, first, last } => {
                if first {
                    registered.clear();
                }
                registered
                    .extend(pairs.iter().filter_map(|pair| Some((worker_id(pair)?, registration(pair)))));
                whole = last;
            }
            News::Changed(changes) => {
                for change in changes {
                    let Some(id) = worker_id(&change.pair) else { continue };
                    if change.is_delete() {
                        registered.remove(&id);
                    } else {
                        registered.insert(id, registration(&change.pair));
                    }
                }
            }
        }
        let (to, input) = (to.clone(), whole.then(|| Input::Workers(registered.clone())));
        async move {
            match input {
                Some(input) => to.send(input).await,
                None => true,
            }
        }
    })
    .await;
}

fn worker_id(pair: &Pair) -> Option<String> {
    pair.key.strip_prefix(keys::WORKERS).map(str::to_owned)
}

fn registration(pair: &Pair) -> Registration {
    let who = match worker::Registration::decode(&pair.value) {
        Ok(Some(registration)) => Registered::Ours(registration.sid),
        Ok(None) => Registered::Seed,
        Err(why) => {
            tracing::error!(key = %pair.key, %why, "registration cannot be read: not counted as a worker");
            Registered::Unreadable
        }
    };
    Registration { who, revision: pair.mod_revision }
}

async fn follow_sessions(kv: Arc<dyn Kv>, to: Inputs) {
    follow(kv, Span::prefix(keys::SESSIONS), |news| {
        let ended = match news {
            News::Page { last, .. } => last, // one may have ended while nobody watched
            News::Changed(changes) => changes.iter().any(common::kv::Change::is_delete),
        };
        let to = to.clone();
        async move { !ended || to.send(Input::SessionEnded).await }
    })
    .await;
}

/// Kill requests: the seed's kill event.
async fn follow_kills(kv: Arc<dyn Kv>, to: Inputs) {
    follow(kv, Span::prefix(keys::KILLER), |news| {
        let events = match news {
            News::Page { pairs, .. } => pairs.iter().filter_map(kill_asked).collect(),
            News::Changed(changes) => changes
                .iter()
                .filter(|change| !change.is_delete())
                .filter_map(|change| kill_asked(&change.pair))
                .collect(),
        };
        let to = to.clone();
        async move { tell(&to, events).await }
    })
    .await;
}

fn kill_asked(pair: &Pair) -> Option<Event> {
    let name = JobName::parse(pair.key.strip_prefix(keys::KILLER)?).ok()?;
    match KillRequest::decode(&pair.value) {
        Ok(request) => Some(Event::KillAsked(name, request.map(|r| r.run_ids), pair.mod_revision)),
        Err(why) => {
            tracing::error!(key = %pair.key, %why, "kill request cannot be read: nothing is killed");
            None
        }
    }
}

async fn follow_pause(kv: Arc<dyn Kv>, to: Inputs) {
    follow(Arc::clone(&kv), Span::key(keys::PAUSED), |news| {
        let paused = match news {
            News::Page { pairs, .. } => !pairs.is_empty(), // one key is one page
            News::Changed(changes) => changes.last().is_some_and(|change| !change.is_delete()),
        };
        let (kv, to) = (Arc::clone(&kv), to.clone());
        async move {
            let mut events = Vec::new();
            if !paused {
                // Lifting the pause writes the base with it: it must be known first, or the pause would be caught up on.
                match kv.range(Range::key(keys::BASE)).await {
                    Ok(reply) => events.push(Event::Base(parse_base(reply.pairs.first()))),
                    Err(why) => tracing::warn!(%why, "catch-up base not read; its own watch brings it"),
                }
            }
            events.push(Event::Paused(paused));
            tell(&to, events).await
        }
    })
    .await;
}

async fn follow_base(kv: Arc<dyn Kv>, to: Inputs) {
    follow(kv, Span::key(keys::BASE), |news| {
        let base = match news {
            News::Page { pairs, .. } => parse_base(pairs.first()),
            News::Changed(changes) => match changes.last() {
                Some(change) if !change.is_delete() => parse_base(Some(&change.pair)),
                _ => Timestamp::ZERO,
            },
        };
        let to = to.clone();
        async move { tell(&to, vec![Event::Base(base)]).await }
    })
    .await;
}
