//! What the worker follows in the store, and how it becomes the loop's input.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use common::clock::{self, Stopwatch, Timestamp};
use common::domain::job::{Job, JobName};
use common::domain::kill::KillRequest;
use common::domain::options::Labels;
use common::domain::pause::{Base, Pause};
use common::domain::request::Request;
use common::domain::run::RunId;
use common::domain::worker::{self, Sid};
use common::ids::backoff;
use common::keys;
use common::kv::{Kv, Pair, Range, Revision, Span};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinHandle;

use crate::audit::Reading;
use crate::batches::Answered;
use crate::claims::parse_base;
use crate::exec::gate::GateFile;
use crate::fleet_settings;
use crate::follow::{News, follow};
use crate::scheduler::{AdoptAnswer, Claim, ClaimAnswer, Event, JobSeen, KillSeen, Members, RequestSeen};
use crate::session::{Session, Standing};
use crate::witness::Era;

/// Pauses between attempts to read the settings double from here to [`SETTINGS_RETRY_MAX_MS`], in ms.
const SETTINGS_RETRY_MIN_MS: u64 = 100;
const SETTINGS_RETRY_MAX_MS: u64 = 5_000;

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
    /// Its registration was put again, by a request sent then, standing so; no revision: it was not.
    Renewed { sid: Sid, sent: Stopwatch, standing: Standing, revision: Option<Revision> },
    /// Its lease was renewed by a request sent then.
    KeptAlive { sid: Sid, sent: Stopwatch },
    /// Its lease is not there any more.
    LeaseGone(Sid),
    /// A batch of claims was sent, and this came of each.
    ClaimsAnswered(Answered, Vec<(Claim, ClaimAnswer)>),
    /// A batch of adoptions was sent, and this came of each.
    Adopted(Answered, Vec<(JobName, AdoptAnswer)>),
    /// The locks of these runs are free.
    LocksFreed(Answered, Vec<RunId>),
    /// What hangs on its session.
    AuditRead(Sid, Reading),
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
#[derive(Clone, Debug)]
pub(crate) struct Registration {
    pub(crate) who: Registered,
    /// Of the worker; a seed worker has none.
    pub(crate) labels: Labels,
    /// Of its key.
    pub(crate) revision: Revision,
    /// Of one of our workers that renews it.
    pub(crate) clock: Option<ClockSeen>,
}

impl Registration {
    /// One of our workers, which owns fires.
    pub(crate) fn owns(&self) -> bool {
        matches!(self.who, Registered::Ours(_)) && self.clock.is_none_or(|clock| !clock.aside)
    }
}

/// What a registration says about its worker's clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClockSeen {
    /// The worker's wall clock when it wrote.
    pub(crate) says: Timestamp,
    /// When it came here.
    pub(crate) came: Stopwatch,
    /// It came as a change, and so about when it was written.
    pub(crate) live: bool,
    /// How often it is written.
    pub(crate) renewed_every: Duration,
    /// Its worker claims nothing: its clock is not trusted.
    pub(crate) aside: bool,
    /// Its worker asks others for theirs.
    pub(crate) asks: bool,
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
    let turn = Arc::new(Mutex::new(()));
    vec![
        tokio::spawn(follow_jobs(kv_of(), to())),
        tokio::spawn(follow_workers(kv_of(), to())),
        tokio::spawn(follow_sessions(kv_of(), to())),
        tokio::spawn(follow_kills(kv_of(), to())),
        tokio::spawn(follow_requests(kv_of(), to())),
        tokio::spawn(follow_pause(kv_of(), to())),
        tokio::spawn(follow_base(kv_of(), to())),
        tokio::spawn(follow_settings(kv_of(), to(), Span::key(keys::SETTINGS), Arc::clone(&turn))),
        // Functions put the settings with a calendar; other hands may not.
        tokio::spawn(follow_settings(kv_of(), to(), Span::prefix(keys::CALENDARS), turn)),
    ]
}

async fn tell(to: &Inputs, events: impl IntoIterator<Item = Event>) -> bool {
    for event in events {
        if !to.send(Input::Event(event)).await {
            return false;
        }
    }
    true
}

/// Jobs: the seed's save and delete events.
async fn follow_jobs(kv: Arc<dyn Kv>, to: Inputs) {
    follow(kv, Span::prefix(keys::JOBS), |news| {
        let to = to.clone();
        async move { tell(&to, job_events(news)).await }
    })
    .await;
}

/// Read one by one, as they are told: as jobs, a page takes many times the memory that it does as it came.
pub(crate) fn job_events(news: News) -> impl Iterator<Item = Event> + Send {
    let (pairs, first, last, changes) = match news {
        News::Page { pairs, first, last } => (pairs, first, last, Vec::new()),
        News::Changed(changes) => (Vec::new(), false, false, changes),
    };
    let begins = first.then_some(Event::JobsListBegins);
    let listed = pairs.into_iter().filter_map(|pair| job_seen(&pair)).map(Event::JobPut);
    let changed = changes.into_iter().filter_map(|change| match job_name(&change.pair) {
        Some(name) if change.is_delete() => Some(Event::JobDeleted(name)),
        _ => job_seen(&change.pair).map(Event::JobPut),
    });
    begins.into_iter().chain(listed).chain(last.then_some(Event::JobsListed)).chain(changed)
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
        let whole = note_registrations(&mut registered, &news);
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

/// Whether what is known is whole, and no page is to come.
pub(crate) fn note_registrations(registered: &mut BTreeMap<String, Registration>, news: &News) -> bool {
    match news {
        News::Page { pairs, first, last } => {
            if *first {
                registered.clear();
            }
            registered
                .extend(pairs.iter().filter_map(|pair| Some((worker_id(pair)?, registration(pair, false)))));
            *last
        }
        News::Changed(changes) => {
            for change in changes {
                let Some(id) = worker_id(&change.pair) else { continue };
                if change.is_delete() {
                    registered.remove(&id);
                } else {
                    registered.insert(id, registration(&change.pair, true));
                }
            }
            true
        }
    }
}

/// The live workers among those that are registered, without those of ours that stand aside because of their clocks.
pub(crate) fn members(registered: &BTreeMap<String, Registration>) -> Members {
    let mut members = Members::default();
    for (id, registration) in registered {
        if registration.owns() {
            members.ours.insert(id.clone(), registration.labels.clone());
            if let Registered::Ours(sid) = registration.who {
                members.sessions.insert(id.clone(), sid);
            }
        } else if registration.who == Registered::Seed {
            members.seeds.insert(id.clone());
        }
    }
    members
}

fn worker_id(pair: &Pair) -> Option<String> {
    pair.key.strip_prefix(keys::WORKERS).map(str::to_owned)
}

fn registration(pair: &Pair, live: bool) -> Registration {
    let (who, labels, clock) = match worker::Registration::decode(&pair.value) {
        Ok(Some(registration)) => {
            let clock = ClockSeen {
                says: registration.clock,
                came: Stopwatch::start(),
                live,
                renewed_every: Duration::from_secs(registration.renewed_seconds),
                aside: registration.aside,
                asks: registration.asks,
            };
            let renewed = registration.renewed_seconds > 0;
            (Registered::Ours(registration.sid), registration.labels, renewed.then_some(clock))
        }
        Ok(None) => (Registered::Seed, Labels::new(), None),
        Err(why) => {
            tracing::error!(key = %pair.key, %why, "registration cannot be read: not counted as a worker");
            (Registered::Unreadable, Labels::new(), None)
        }
    };
    Registration { who, labels, revision: pair.mod_revision, clock }
}

async fn follow_sessions(kv: Arc<dyn Kv>, to: Inputs) {
    follow(kv, Span::prefix(keys::SESSIONS), |news| {
        let (to, ended) = (to.clone(), session_ended(&news));
        async move { !ended || to.send(Input::SessionEnded).await }
    })
    .await;
}

pub(crate) fn session_ended(news: &News) -> bool {
    match news {
        News::Page { last, .. } => *last, // one may have ended while nobody watched
        News::Changed(changes) => changes.iter().any(common::kv::Change::is_delete),
    }
}

/// Kill requests: the seed's kill event.
async fn follow_kills(kv: Arc<dyn Kv>, to: Inputs) {
    follow(kv, Span::prefix(keys::KILLER), |news| {
        let (to, events) = (to.clone(), kill_events(&news));
        async move { tell(&to, events).await }
    })
    .await;
}

pub(crate) fn kill_events(news: &News) -> Vec<Event> {
    match news {
        News::Page { pairs, .. } => pairs.iter().filter_map(kill_asked).collect(),
        News::Changed(changes) => changes
            .iter()
            .filter(|change| !change.is_delete())
            .filter_map(|change| kill_asked(&change.pair))
            .collect(),
    }
}

fn kill_asked(pair: &Pair) -> Option<Event> {
    let name = JobName::parse(pair.key.strip_prefix(keys::KILLER)?).ok()?;
    match KillRequest::decode(&pair.value) {
        Ok(request) => {
            let (by, at) = request.as_ref().map_or((None, None), |request| (request.by.clone(), request.at));
            let run_ids = request.map(|request| request.run_ids);
            Some(Event::KillAsked(name, KillSeen { run_ids, revision: pair.mod_revision, by, at }))
        }
        Err(why) => {
            tracing::error!(key = %pair.key, %why, "kill request cannot be read: nothing is killed");
            None
        }
    }
}

/// Requests: runs that somebody asks for, and retries.
async fn follow_requests(kv: Arc<dyn Kv>, to: Inputs) {
    let mut listed = BTreeSet::new();
    follow(kv, Span::prefix(keys::REQUESTS), |news| {
        let (to, events) = (to.clone(), request_events(&mut listed, &news));
        async move { tell(&to, events).await }
    })
    .await;
}

/// `listed`: the requests of the pages so far.
pub(crate) fn request_events(listed: &mut BTreeSet<RunId>, news: &News) -> Vec<Event> {
    match news {
        News::Page { pairs, first, last } => {
            if *first {
                listed.clear();
            }
            let requests: Vec<RequestSeen> = pairs.iter().filter_map(request_seen).collect();
            listed.extend(requests.iter().map(|request| request.run_id.clone()));
            let whole = last.then(|| Event::RequestsListed(std::mem::take(listed)));
            requests.into_iter().map(Event::RequestSeen).chain(whole).collect()
        }
        News::Changed(changes) => changes
            .iter()
            .filter_map(|change| match change.is_delete() {
                true => keys::parse_request(&change.pair.key).map(Event::RequestGone),
                false => request_seen(&change.pair).map(Event::RequestSeen),
            })
            .collect(),
    }
}

fn request_seen(pair: &Pair) -> Option<RequestSeen> {
    let run_id = keys::parse_request(&pair.key)?;
    match Request::decode(&pair.value) {
        Ok(request) => Some(RequestSeen { run_id, request: Arc::new(request), revision: pair.mod_revision }),
        Err(why) => {
            tracing::error!(key = %pair.key, %why, "request cannot be read: left alone");
            None
        }
    }
}

async fn follow_pause(kv: Arc<dyn Kv>, to: Inputs) {
    follow(Arc::clone(&kv), Span::key(keys::PAUSED), |news| {
        let (kv, to) = (Arc::clone(&kv), to.clone());
        async move { tell(&to, pause_events(kv.as_ref(), &news).await).await }
    })
    .await;
}

pub(crate) async fn pause_events(kv: &dyn Kv, news: &News) -> Vec<Event> {
    let paused = match news {
        News::Page { pairs, .. } => !pairs.is_empty(), // one key is one page
        News::Changed(changes) => changes.last().is_some_and(|change| !change.is_delete()),
    };
    say_pause(news);
    let mut events = Vec::new();
    if !paused {
        // Lifting the pause writes the base with it: it must be known first, or the pause would be caught up on.
        match kv.range(Range::key(keys::BASE)).await {
            Ok(reply) => events.push(Event::Base(parse_base(reply.pairs.first()))),
            Err(why) => tracing::warn!(%why, "catch-up base not read; its own watch brings it"),
        }
    }
    events.push(Event::Paused(paused));
    events
}

/// For whoever wonders why nothing is fired: who paused, and why.
fn say_pause(news: &News) {
    let last = match news {
        News::Page { pairs, .. } => pairs.last(),
        News::Changed(changes) => match changes.last() {
            Some(change) if change.is_delete() => return tracing::info!("the fleet's pause is lifted"),
            change => change.map(|change| &change.pair),
        },
    };
    let Some(pair) = last else { return };
    // Other hands may put any value.
    let pause = Pause::decode(&pair.value).ok();
    let since = pause.as_ref().map(|pause| pause.since.rfc3339());
    let (by, reason) = pause.map_or((None, None), |pause| (pause.by, pause.reason));
    tracing::info!(since, by, reason, "the fleet is paused: nothing is claimed until the pause is lifted");
}

async fn follow_base(kv: Arc<dyn Kv>, to: Inputs) {
    follow(kv, Span::key(keys::BASE), |news| {
        let (to, base) = (to.clone(), base_event(&news));
        async move { tell(&to, vec![base]).await }
    })
    .await;
}

/// The fleet's settings and calendars, whenever one of these changes. Both are read anew, at one revision: functions put them together, and whoever
/// took settings for known with the calendars of before would have its claims of fires committed that there are no more.
async fn follow_settings(kv: Arc<dyn Kv>, to: Inputs, span: Span, turn: Arc<Mutex<()>>) {
    follow(Arc::clone(&kv), span, |news| {
        let (kv, to, turn) = (Arc::clone(&kv), to.clone(), Arc::clone(&turn));
        async move {
            if matches!(news, News::Page { last: false, .. }) {
                return true;
            }
            // One after the other, so that what is told later was not read earlier.
            let _turn = turn.lock().await;
            let mut attempt = 0;
            loop {
                match fleet_settings::read(kv.as_ref()).await {
                    Ok(event) => return tell(&to, vec![event]).await,
                    Err(why) => tracing::warn!(%why, "the fleet's settings not read: tried again"),
                }
                clock::sleep(backoff(attempt, SETTINGS_RETRY_MIN_MS, SETTINGS_RETRY_MAX_MS)).await;
                attempt += 1;
            }
        }
    })
    .await;
}

pub(crate) fn base_event(news: &News) -> Event {
    Event::Base(match news {
        News::Page { pairs, .. } => parse_base(pairs.first()),
        News::Changed(changes) => match changes.last() {
            Some(change) if !change.is_delete() => parse_base(Some(&change.pair)),
            _ => Base::default(),
        },
    })
}
