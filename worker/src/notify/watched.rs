//! What a worker knows of the jobs that somebody wants to be told of: what they want, and what was told. Most ends of runs are nobody's news,
//! and this is where that is seen: without the disk and without the store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use common::channels::Channels;
use common::clock::Timestamp;
use common::domain::job::{Job, JobName};
use common::domain::notify::{Notified, Notify, Occasion, Told};
use common::domain::record::{Record, SkipReason, Status};
use common::domain::retry::Retry;
use common::domain::run::Trigger;
use common::keys;
use common::kv::{Pair, Revision};
use common::schedule::Window;
use xxhash_rust::xxh3::xxh3_64;

use super::state::{Happened, REMIND_MS, RunDigest, What, silent_since};
use crate::follow::News;
use crate::scheduler::Event;

/// Failures of a job that is known to fail are added up in memory for so long, in ms.
const COUNTED_EVERY_MS: i64 = 60_000;
/// Successes of a job that is waited for are noted this often, or twice in the time that it may take; in ms.
const NOTED_EVERY_MS: i64 = 60_000;
/// Successes are remembered for so long, should it turn out that the job was failing; in ms. News of the store come within it.
const REMEMBERED_MS: i64 = 60_000;
/// So many jobs' at most.
const REMEMBERED_MAX: usize = 10_000;
/// Workers find a silence overdue at different times within this, so that most find it told; in ms.
const SPREAD_MS: u64 = 10_000;
/// Jobs of one look.
const OVERDUE_MAX: usize = 1_000;
/// What was found overdue is found again after this, should it not be told by then; in ms.
const OVERDUE_AGAIN_MS: i64 = 60_000;
/// Of what a run printed, so many bytes of the end are told.
const OUTPUT_MAX: usize = 1024;

/// Who wants to be told of what.
#[derive(Debug)]
struct Rule {
    on: BTreeSet<Occasion>,
    to: Vec<String>,
    silence_seconds: Option<u32>,
}

/// A job that somebody wants to be told of.
#[derive(Debug)]
struct Known {
    own: Option<Box<Rule>>,
    retry: Option<Retry>,
    enabled: bool,
    window: Window,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Watched {
    channels: Arc<Channels>,
    /// What the file says for all jobs.
    all: Option<Rule>,
    jobs: BTreeMap<JobName, Known>,
    jobs_listed: bool,
    /// While the jobs are listed: those of `jobs` and `unknown` that were on the list so far.
    jobs_listing: Option<BTreeSet<JobName>>,
    states: BTreeMap<JobName, (Notified, Revision)>,
    states_listed: bool,
    /// The states of the list's pages so far.
    listing: BTreeSet<JobName>,
    /// Failures of jobs that are known to fail, added up: the latest of each.
    uncounted: BTreeMap<JobName, Happened>,
    /// The latest success of jobs that succeeded lately.
    succeeded: BTreeMap<JobName, Happened>,
    /// Jobs found overdue, and when.
    overdue: BTreeMap<JobName, Timestamp>,
    /// Jobs that name a channel that is not there.
    unknown: BTreeSet<JobName>,
    paused: bool,
    /// When the fleet's pause was last lifted.
    base: Timestamp,
}

impl Watched {
    pub(super) fn new(channels: Arc<Channels>) -> Self {
        let all = channels.all.as_ref().map(|all| Rule {
            on: all.on(),
            to: all.to.clone(),
            silence_seconds: all.not_succeeded_for_seconds,
        });
        Self {
            channels,
            all,
            jobs: BTreeMap::new(),
            jobs_listed: false,
            jobs_listing: None,
            states: BTreeMap::new(),
            states_listed: false,
            listing: BTreeSet::new(),
            uncounted: BTreeMap::new(),
            succeeded: BTreeMap::new(),
            overdue: BTreeMap::new(),
            unknown: BTreeSet::new(),
            paused: false,
            base: Timestamp::ZERO,
        }
    }

    /// All jobs and states are known.
    pub(super) fn is_known(&self) -> bool {
        self.jobs_listed && self.states_listed
    }

    /// How many jobs name a channel that is not there.
    pub(super) fn unknown_channels(&self) -> usize {
        self.unknown.len()
    }

    /// Whether anybody wants to be told of the record's job, as far as is known.
    pub(super) fn wants(&self, record: &Record) -> bool {
        !self.is_known() || JobName::parse(&record.job_name).is_ok_and(|job| self.jobs.contains_key(&job))
    }

    // --- jobs -----------------------------------------------------------------------------------------------------

    /// Sees what the scheduler is told.
    pub(super) fn see(&mut self, event: &Event, now: Timestamp) -> Vec<Happened> {
        match event {
            Event::JobPut(seen) => match &seen.job {
                Ok(job) => {
                    let happened = self.see_job(job, now);
                    if let Some(listing) = &mut self.jobs_listing
                        && (self.jobs.contains_key(&job.name) || self.unknown.contains(&job.name))
                    {
                        listing.insert(job.name.clone());
                    }
                    return happened;
                }
                Err(_no_job) => self.forget(&seen.name),
            },
            Event::JobDeleted(job) => self.forget(job),
            Event::JobsListBegins => self.jobs_listing = Some(BTreeSet::new()),
            Event::JobsListed => {
                if let Some(listed) = self.jobs_listing.take() {
                    let gone: Vec<JobName> =
                        self.jobs.keys().filter(|job| !listed.contains(job)).cloned().collect();
                    gone.iter().for_each(|job| self.forget(job));
                    self.unknown.retain(|job| listed.contains(job));
                }
                self.jobs_listed = true;
            }
            Event::Paused(paused) => self.paused = *paused,
            Event::Base(base) => self.base = self.base.max(base.at),
            _ => {}
        }
        Vec::new()
    }

    fn see_job(&mut self, job: &Job, now: Timestamp) -> Vec<Happened> {
        let own = job.options.notify.as_deref().and_then(|notify| self.rule(job, notify));
        if own.is_none() && self.all.is_none() {
            self.forget(&job.name);
            return Vec::new();
        }
        let known = Known {
            own: own.map(Box::new),
            retry: job.options.retry.map(|retry| retry.with_fence(job.options.execution.has_fence())),
            enabled: job.options.is_enabled(),
            window: job.options.window(),
        };
        let enabled = known.enabled;
        let before = self.jobs.insert(job.name.clone(), known);
        let is_back = enabled && before.is_some_and(|before| !before.enabled);
        let is_waited_for = self.rules(&job.name).any(|rule| rule.silence_seconds.is_some());
        // The time in which it was switched off is nobody's fault.
        if is_back && is_waited_for { vec![watched(&job.name, now)] } else { Vec::new() }
    }

    /// What a job wants, as far as its channels are there.
    fn rule(&mut self, job: &Job, notify: &Notify) -> Option<Rule> {
        let (to, missing): (Vec<String>, Vec<String>) =
            notify.to.iter().cloned().partition(|channel| self.channels.channels.contains_key(channel));
        if missing.is_empty() {
            self.unknown.remove(&job.name);
        } else if self.unknown.insert(job.name.clone()) {
            tracing::warn!(job = %job.name, channels = ?missing, "the job wants to notify channels that this worker does not have: see CRON_NOTIFY_FILE");
        }
        let silence_seconds = notify.not_succeeded_for_seconds;
        (!to.is_empty()).then(|| Rule { on: notify.on(), to, silence_seconds })
    }

    fn forget(&mut self, job: &JobName) {
        self.jobs.remove(job);
        self.unknown.remove(job);
        self.uncounted.remove(job);
        self.succeeded.remove(job);
        self.overdue.remove(job);
    }

    fn rules(&self, job: &JobName) -> impl Iterator<Item = &Rule> {
        let known = self.jobs.get(job);
        let own = known.and_then(|known| known.own.as_deref());
        own.into_iter().chain(self.all.as_ref().filter(|_| known.is_some()))
    }

    /// The channels that want to be told of this.
    pub(super) fn channels_for(&self, job: &JobName, told: &Told, what: What) -> BTreeSet<String> {
        let wants = |rule: &&Rule| match (told.kind.occasion(), what) {
            (None, What::Silent(seconds)) => rule.silence_seconds == Some(seconds),
            (None, _) => false,
            // Whoever was told of the beginning is told of the end.
            (Some(Occasion::Recovery), _) => {
                let was_told = told.after.iter().any(|occasion| rule.on.contains(occasion));
                let waited = told.after_silence && rule.silence_seconds.is_some();
                rule.on.contains(&Occasion::Recovery) && (was_told || waited)
            }
            (Some(occasion), _) => rule.on.contains(&occasion),
        };
        self.rules(job).filter(wants).flat_map(|rule| rule.to.iter().cloned()).collect()
    }

    // --- ends of runs ---------------------------------------------------------------------------------------------

    /// A record that may have to be told of; `None` = it is nobody's news, or is told with a later one.
    pub(super) fn take(&mut self, record: &Record, now: Timestamp) -> Option<Happened> {
        if self.jobs.is_empty() && self.is_known() {
            return None;
        }
        let job = JobName::parse(&record.job_name).ok()?;
        let known = self.jobs.get(&job);
        if known.is_none() && self.is_known() {
            return None;
        }
        let what = what_of(record, known.and_then(|known| known.retry))?;
        let wanted = |occasion: Occasion| self.rules(&job).any(|rule| rule.on.contains(&occasion));
        if let What::Trouble(occasion) = what
            && self.is_known()
            && !wanted(occasion)
        {
            return None;
        }
        let happened = Happened {
            what,
            record: record.id.as_str().to_owned(),
            at: record.end_time,
            count: 1,
            run: Some(digest(record)),
            job,
        };
        match what {
            What::Succeeded => self.take_success(happened, now),
            What::Trouble(occasion) => self.take_trouble(happened, occasion, now),
            What::Watched | What::Silent(_) => None,
        }
    }

    fn take_success(&mut self, mut happened: Happened, now: Timestamp) -> Option<Happened> {
        let state = self.states.get(&happened.job).map(|(state, _)| state);
        let longest = self.rules(&happened.job).filter_map(|rule| rule.silence_seconds).min();
        let is_noted = longest.is_none_or(|seconds| {
            let noted = state.and_then(|state| state.succeeded);
            noted.is_some_and(|noted| happened.at.ms_since(noted) < noted_every_ms(seconds))
        });
        let is_news = state.is_some_and(|state| state.outage.is_some() || state.silence_told_seconds > 0);
        if self.succeeded.len() >= REMEMBERED_MAX {
            self.succeeded.retain(|_, succeeded| now.ms_since(succeeded.at) < REMEMBERED_MS);
            if self.succeeded.len() >= REMEMBERED_MAX {
                self.succeeded.clear();
            }
        }
        // Of failures that were not added up yet.
        happened.count = self.uncounted.get(&happened.job).map_or(0, |uncounted| uncounted.count);
        self.succeeded.insert(happened.job.clone(), happened.clone());
        (is_news || !is_noted || !self.is_known()).then_some(happened)
    }

    fn take_trouble(
        &mut self,
        mut happened: Happened,
        occasion: Occasion,
        now: Timestamp,
    ) -> Option<Happened> {
        let outage = self.states.get(&happened.job).and_then(|(state, _)| state.outage.as_ref());
        let Some(outage) = outage.filter(|outage| outage.kinds.contains(&occasion)) else {
            return Some(happened);
        };
        if outage.last_record == happened.record {
            return None;
        }
        let before = self.uncounted.remove(&happened.job);
        if before.as_ref().is_some_and(|before| before.record == happened.record) {
            self.uncounted.extend(before.map(|before| (before.job.clone(), before)));
            return None;
        }
        happened.count += before.map_or(0, |before| before.count);
        let is_due =
            now.ms_since(outage.counted_at) >= COUNTED_EVERY_MS || now.ms_since(outage.told_at) >= REMIND_MS;
        if is_due {
            return Some(happened);
        }
        self.uncounted.insert(happened.job.clone(), happened);
        None
    }

    // --- what was told --------------------------------------------------------------------------------------------

    /// What is told of a job, and at which revision that is; 0 = nothing is.
    pub(super) fn state(&self, job: &JobName) -> (Notified, Revision) {
        self.states.get(job).cloned().unwrap_or_default()
    }

    /// This worker has changed a state.
    pub(super) fn note_state(&mut self, job: &JobName, state: Notified, revision: Revision) {
        if self.states.get(job).is_none_or(|(_, known)| *known < revision) {
            self.states.insert(job.clone(), (state, revision));
        }
    }

    /// States that are not known to belong to a job that somebody wants to be told of.
    pub(super) fn strays(&self) -> Vec<JobName> {
        self.states.keys().filter(|job| !self.jobs.contains_key(job)).take(OVERDUE_MAX).cloned().collect()
    }

    /// Takes news of states. Answers what this worker knows better: it has taken an end for nobody's news that is one after all.
    pub(super) fn take_states(&mut self, news: &News) -> Vec<Happened> {
        match news {
            News::Page { pairs, first, last } => {
                if *first {
                    self.listing.clear();
                }
                let jobs: Vec<JobName> = pairs.iter().filter_map(|pair| self.take_state(pair)).collect();
                self.listing.extend(jobs.iter().cloned());
                if *last {
                    let listing = std::mem::take(&mut self.listing);
                    self.states.retain(|job, _| listing.contains(job));
                    self.states_listed = true;
                }
                jobs.iter().filter_map(|job| self.known_better(job)).collect()
            }
            News::Changed(changes) => {
                let mut better = Vec::new();
                for change in changes {
                    if change.is_delete() {
                        let job = keys::parse_notify(&change.pair.key);
                        job.and_then(|job| self.states.remove(&job));
                    } else if let Some(job) = self.take_state(&change.pair) {
                        better.extend(self.known_better(&job));
                    }
                }
                better
            }
        }
    }

    fn take_state(&mut self, pair: &Pair) -> Option<JobName> {
        let job = keys::parse_notify(&pair.key)?;
        match Notified::decode(&pair.value) {
            Ok(state) => {
                self.states.insert(job.clone(), (state, pair.mod_revision));
            }
            Err(why) => tracing::error!(%job, %why, "what was told of the job cannot be read: left alone"),
        }
        Some(job)
    }

    fn known_better(&mut self, job: &JobName) -> Option<Happened> {
        let (state, _) = self.states.get(job)?;
        match &state.outage {
            // It failed after the success that has ended the outage.
            None => {
                let failed = self.uncounted.remove(job)?;
                Some(failed).filter(|failed| state.succeeded.is_none_or(|succeeded| failed.at > succeeded))
            }
            // It succeeded after the failure that has begun it; or it is that run, which others took for lost.
            Some(outage) => {
                let ends = |one: &&Happened| one.at >= outage.last_at || one.record == outage.last_record;
                self.succeeded.get(job).filter(ends).cloned()
            }
        }
    }

    // --- silence --------------------------------------------------------------------------------------------------

    /// Jobs that have not succeeded for as long as somebody wants to be told, and those that are waited for from now on.
    pub(super) fn overdue(&mut self, worker: &str, now: Timestamp) -> Vec<Happened> {
        if !self.is_known() || self.paused {
            return Vec::new();
        }
        self.overdue.retain(|_, at| now.ms_since(*at) < OVERDUE_AGAIN_MS);
        let mut found = Vec::new();
        for (job, known) in &self.jobs {
            if found.len() >= OVERDUE_MAX {
                break;
            }
            let open = known.window.from.is_none_or(|from| from <= now)
                && known.window.until.is_none_or(|until| now < until);
            if !known.enabled || !open || self.overdue.contains_key(job) {
                continue;
            }
            let mut limits: Vec<u32> = self.rules(job).filter_map(|rule| rule.silence_seconds).collect();
            if limits.is_empty() {
                continue;
            }
            limits.sort_unstable();
            let state = self.states.get(job).map(|(state, _)| state);
            let Some(since) = state.and_then(silent_since) else {
                found.push(watched(job, now));
                continue;
            };
            let since = since.max(self.base).max(known.window.from.unwrap_or(since));
            let told = state.map_or(0, |state| state.silence_told_seconds);
            let spread = xxh3_64(format!("{worker}\0{job}").as_bytes()) % SPREAD_MS;
            for seconds in limits.into_iter().filter(|seconds| *seconds > told) {
                let late = i64::from(seconds) * 1000 + noted_every_ms(seconds) + spread.cast_signed();
                if now.ms_since(since) > late {
                    found.push(Happened { what: What::Silent(seconds), ..watched(job, now) });
                }
            }
        }
        self.overdue.extend(found.iter().map(|happened| (happened.job.clone(), now)));
        found
    }
}

/// How often successes are noted of a job that may take so long.
fn noted_every_ms(seconds: u32) -> i64 {
    (i64::from(seconds) * 500).min(NOTED_EVERY_MS)
}

fn watched(job: &JobName, at: Timestamp) -> Happened {
    Happened { job: job.clone(), what: What::Watched, record: String::new(), at, count: 1, run: None }
}

/// What a record says; `None` = nothing that anybody is told of. An attempt that another is to follow has not failed yet.
fn what_of(record: &Record, retry: Option<Retry>) -> Option<What> {
    let goes_on = retry.is_some_and(|retry| retry.goes_on_after(record.attempt.unwrap_or(1)));
    let trouble = |occasion| Some(What::Trouble(occasion));
    match record.status? {
        Status::Succeeded => Some(What::Succeeded),
        Status::Killed => None,
        status if goes_on && status.is_worth_a_retry() => None,
        Status::Failed => trouble(Occasion::Failure),
        Status::TimedOut => trouble(Occasion::Timeout),
        Status::Lost if goes_on && retry.is_some_and(|retry| retry.on_lost == Some(true)) => None,
        Status::Lost => trouble(Occasion::Lost),
        Status::Skipped => match record.skipped.as_ref()?.reason {
            SkipReason::Deleted | SkipReason::Disabled | SkipReason::Cancelled => None,
            // The attempt before was not told, since this one was to follow.
            _ if record.trigger == Some(Trigger::Retry) => trouble(Occasion::Failure),
            SkipReason::Misfire
            | SkipReason::NoWorker
            | SkipReason::StoreWentBack
            | SkipReason::WorkerGone => trouble(Occasion::Misfire),
            SkipReason::Overlap | SkipReason::Superseded | SkipReason::Replaced => None,
        },
    }
}

fn digest(record: &Record) -> RunDigest {
    RunDigest {
        run_id: record.claim.as_ref().map(|claim| claim.as_str().to_owned()),
        plan_time: record.plan_time,
        start_time: record.start_time,
        end_time: record.end_time,
        status: record.status.map_or("", Status::as_str).to_owned(),
        err: tail(&record.err, OUTPUT_MAX).to_owned(),
        exit_code: record.exit_code,
        signal: record.signal,
        worker: record.worker.clone(),
        attempt: record.attempt,
        output: tail(&record.output, OUTPUT_MAX).to_owned(),
    }
}

/// The end of a text, of whole characters.
fn tail(text: &str, bytes_max: usize) -> &str {
    let mut from = text.len().saturating_sub(bytes_max);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    &text[from..]
}
