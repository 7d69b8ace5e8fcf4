//! How the worker is doing: counters that its loop writes and the health server reads.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use common::clock::{Stopwatch, Timestamp};
use common::config::CertificateUse;
use common::domain::record::{Record, SkipReason, Status as Outcome};
use common::domain::run::Trigger;
use common::kv::Room;
use common::traces::Counted;

use crate::clocks::OFFSET_READY_MAX_MS;
use crate::exposition::Exposition;
use crate::histogram::{Histogram, LATENESS_MS, seconds_of_ms};
use crate::notify::Counters;
use crate::process_figures;
use crate::rights::Missing;
use crate::scheduler::ClaimAnswer;
use crate::sink::Appends;
use crate::timed::Times;
use crate::waiting::Figures;

/// A loop that has not turned for so long is stuck.
const STUCK_AFTER: Duration = Duration::from_secs(30);

/// What does not change as long as a worker lives.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Facts {
    /// When it was started.
    pub(crate) started: Timestamp,
    /// Life of its lease.
    pub(crate) session_ttl: Duration,
    /// Most runs at a time.
    pub(crate) max_runs: usize,
}

/// What the loop saw of itself when it last turned.
#[derive(Clone, Debug, Default)]
pub(crate) struct Turn {
    /// When the keep-alive was sent that was last answered; `None` = there is no session.
    pub(crate) renewed: Option<Stopwatch>,
    pub(crate) paused: bool,
    pub(crate) draining: bool,
    pub(crate) jobs: usize,
    pub(crate) open_runs: usize,
    pub(crate) marks_ahead: usize,
    pub(crate) requests_waiting: usize,
    /// What waits to be sent or done, by [`QUEUES`].
    pub(crate) queues: [usize; QUEUES.len()],
    /// Records.
    pub(crate) waiting: Figures,
}

/// The queues of the loop, as they are called in the metrics: claims and adoptions to be sent, locks of runs that have ended to be freed, shells
/// before their gates, and what the loop has not taken yet.
pub(crate) const QUEUES: [&str; 5] = ["claims", "adoptions", "ends", "shells", "inputs"];

/// Of starts.
#[derive(Debug)]
struct Lateness(Histogram);

impl Default for Lateness {
    fn default() -> Self {
        Self(Histogram::new(LATENESS_MS))
    }
}

/// The counters.
#[derive(Debug, Default)]
pub struct Status {
    facts: Facts,
    turned: Mutex<Option<Stopwatch>>,
    turn: Mutex<Turn>,
    oldest_record_ms: AtomicI64,
    oldest_due_ms: AtomicI64,
    due_unclaimed: AtomicUsize,
    clock_offset_ms: AtomicI64,
    clock_trusted: AtomicBool,
    sessions_established: AtomicU64,
    sessions_lost: AtomicU64,
    store_rewinds: AtomicU64,
    claims_won: AtomicU64,
    claims_lost: AtomicU64,
    claims_unanswered: AtomicU64,
    starts: [AtomicU64; Trigger::ALL.len()],
    lateness: Lateness,
    outcomes: [AtomicU64; Outcome::ALL.len()],
    skipped_fires: [AtomicU64; SkipReason::ALL.len()],
    lost_found: AtomicU64,
    audit_findings: AtomicU64,
    audit_waiting: AtomicU64,
    pub(crate) store: Arc<Times>,
    pub(crate) appends: Arc<Appends>,
    pub(crate) notices: Arc<Counters>,
    pub(crate) spans: Arc<Counted>,
    /// Of the store, as last told.
    room: Mutex<Room>,
    /// What the store refuses this worker, as last seen.
    missing_rights: Mutex<Missing>,
    /// When the certificates end, in seconds; 0 = there is none, or it is not known.
    certificates: [AtomicI64; CertificateUse::ALL.len()],
}

/// What the store refuses, without its words: these may name the user.
fn refused(missing: &Missing) -> String {
    format!("the store does not let this worker {missing}: see infra/etcd-roles.sh")
}

fn add(counter: &AtomicU64, number: usize) {
    counter.fetch_add(u64::try_from(number).unwrap_or(u64::MAX), Relaxed);
}

impl Status {
    /// Of a worker that has done nothing yet.
    pub(crate) fn new(facts: Facts, spans: Arc<Counted>) -> Self {
        Self { facts, spans, ..Self::default() }
    }

    pub(crate) fn beat(&self, now: Timestamp, turn: Turn) {
        *self.turned.lock().unwrap_or_else(PoisonError::into_inner) = Some(Stopwatch::start());
        let age = turn.waiting.oldest.map_or(0, |oldest| now.ms_since(oldest).max(0));
        self.oldest_record_ms.store(age, Relaxed);
        *self.turn.lock().unwrap_or_else(PoisonError::into_inner) = turn;
    }

    fn turn(&self) -> Turn {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The age of the oldest fire that this worker should have claimed, and how many jobs have one.
    pub(crate) fn note_due(&self, age_ms: i64, jobs: usize) {
        self.oldest_due_ms.store(age_ms, Relaxed);
        self.due_unclaimed.store(jobs, Relaxed);
    }

    pub(crate) fn note_clock(&self, offset_ms: i64, trusted: bool) {
        self.clock_offset_ms.store(offset_ms, Relaxed);
        self.clock_trusted.store(trusted, Relaxed);
    }

    pub(crate) fn count_session(&self) {
        self.sessions_established.fetch_add(1, Relaxed);
    }

    pub(crate) fn count_lost_session(&self) {
        self.sessions_lost.fetch_add(1, Relaxed);
    }

    pub(crate) fn count_rewind(&self) {
        self.store_rewinds.fetch_add(1, Relaxed);
    }

    pub(crate) fn count_claim(&self, answer: &ClaimAnswer) {
        let counter = match answer {
            ClaimAnswer::Won(_) => &self.claims_won,
            ClaimAnswer::Refused(_) => &self.claims_lost,
            ClaimAnswer::Unknown | ClaimAnswer::NotApplied => &self.claims_unanswered,
        };
        counter.fetch_add(1, Relaxed);
    }

    pub(crate) fn count_start(&self, trigger: Trigger, lateness_ms: i64) {
        self.starts[trigger as usize].fetch_add(1, Relaxed);
        self.lateness.0.count_difference(lateness_ms);
    }

    /// Counts a record; of a growing one only the last.
    pub(crate) fn count(&self, record: &Record, last: bool) {
        let Some(outcome) = record.status.filter(|_| last) else { return };
        if let Some(at) = Outcome::ALL.iter().position(|known| *known == outcome) {
            self.outcomes[at].fetch_add(1, Relaxed);
        }
        if let Some(skipped) = &record.skipped {
            self.skipped_fires[skipped.reason as usize].fetch_add(skipped.count, Relaxed);
        }
    }

    pub(crate) fn count_lost_found(&self, found: usize) {
        add(&self.lost_found, found);
    }

    pub(crate) fn count_audit_findings(&self, found: usize) {
        add(&self.audit_findings, found);
    }

    pub(crate) fn note_audit_waiting(&self, notes: u64) {
        self.audit_waiting.store(notes, Relaxed);
    }

    pub(crate) fn note_room(&self, room: &Room) {
        *self.room.lock().unwrap_or_else(PoisonError::into_inner) = *room;
    }

    pub(crate) fn note_certificate(&self, what: CertificateUse, end: Option<Timestamp>) {
        self.certificates[what as usize].store(end.map_or(0, |end| end.ms() / 1000), Relaxed);
    }

    pub(crate) fn note_missing_rights(&self, missing: Missing) {
        *self.missing_rights.lock().unwrap_or_else(PoisonError::into_inner) = missing;
    }

    fn missing_rights(&self) -> Missing {
        self.missing_rights.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The loop turns.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        let turned = *self.turned.lock().unwrap_or_else(PoisonError::into_inner);
        turned.is_some_and(|turned| turned.elapsed() < STUCK_AFTER)
    }

    /// Why fires are not claimed, or not at their time: the loop is stuck, the store refuses what a claim needs, there is no session, the clock is
    /// wrong. `None` = ready.
    #[must_use]
    pub fn not_ready(&self) -> Option<String> {
        let offset_ms = self.clock_offset_ms.load(Relaxed);
        let missing = self.missing_rights();
        if !self.is_healthy() {
            Some("the loop is stuck".to_owned())
        } else if missing.stops_fires() {
            Some(refused(&missing))
        } else if self.turn().renewed.is_none() {
            Some("no session".to_owned())
        } else if offset_ms.abs() > OFFSET_READY_MAX_MS {
            let how = if offset_ms > 0 { "ahead of" } else { "behind" };
            Some(format!("the clock is {} ms {how} the median of the fleet", offset_ms.abs()))
        } else {
            None
        }
    }

    /// What is wrong with keeping records and the like, although the worker is in the fleet and claims fires if it can keep their records. `None` =
    /// nothing.
    #[must_use]
    pub fn records_in_trouble(&self) -> Option<String> {
        let waiting = self.turn().waiting;
        match waiting.fault {
            Some(why) => Some(format!("records cannot be written to disk: {why}")),
            None if waiting.is_full => Some(format!(
                "{} records wait for the record store, and there is no room for more: nothing is claimed",
                waiting.records
            )),
            None => {
                let missing = self.missing_rights();
                (missing.ranges() > 0).then(|| refused(&missing))
            }
        }
    }

    /// The counters in Prometheus' text format. No label has values that are not known beforehand.
    #[must_use]
    pub fn metrics(&self) -> String {
        let (mut out, turn) = (Exposition::default(), self.turn());
        out.by(
            ("fleetcron_build_info", "gauge", "Always 1: which version this is."),
            "version",
            [(env!("CARGO_PKG_VERSION"), 1)],
        );
        self.put_session(&turn, &mut out);
        self.put_runs(&turn, &mut out);
        self.put_claims(&turn, &mut out);
        self.put_records(&turn.waiting, &mut out);
        self.put_stores(&mut out);
        self.notices.put(&mut |name, kind, help, value| out.put(name, kind, help, value));
        out.counter(
            "fleetcron_trace_spans_exported_total",
            "Spans that the receiver of traces has taken.",
            self.spans.exported.load(Relaxed),
        );
        out.counter(
            "fleetcron_trace_spans_dropped_total",
            "Spans given up: too many waited, or the receiver did not take them.",
            self.spans.dropped.load(Relaxed),
        );
        process_figures::put(self.facts.started, &mut out);
        out.into_text()
    }

    fn put_session(&self, turn: &Turn, out: &mut Exposition) {
        out.flag("fleetcron_session", "1 while the worker has a session.", turn.renewed.is_some());
        out.gauge(
            "fleetcron_session_renewal_age_seconds",
            "Time since the keep-alive was sent that was last answered, 0 = there is no session.",
            turn.renewed.map_or(0.0, |renewed| renewed.elapsed().as_secs_f64()),
        );
        out.gauge(
            "fleetcron_session_ttl_seconds",
            "Life of the session's lease: without an answer for so long it is lost.",
            self.facts.session_ttl.as_secs_f64(),
        );
        out.counter(
            "fleetcron_sessions_established_total",
            "Sessions begun, the first one too.",
            self.sessions_established.load(Relaxed),
        );
        out.counter(
            "fleetcron_sessions_lost_total",
            "Sessions lost; not the one that is given back at the end.",
            self.sessions_lost.load(Relaxed),
        );
        out.counter(
            "fleetcron_store_rewinds_total",
            "Times that the store was found put back to an earlier state.",
            self.store_rewinds.load(Relaxed),
        );
        out.flag("fleetcron_paused", "1 while the fleet is paused.", turn.paused);
        out.flag("fleetcron_draining", "1 while the worker leaves: it claims nothing more.", turn.draining);
        out.gauge(
            "fleetcron_clock_offset_seconds",
            "This worker's wall clock minus the median of the fleet's, 0 = nothing to compare with.",
            seconds_of_ms(self.clock_offset_ms.load(Relaxed)),
        );
        out.flag(
            "fleetcron_clock_trusted",
            "1 while fires are claimed by this worker's clock.",
            self.clock_trusted.load(Relaxed),
        );
        out.gauge(
            "fleetcron_marks_ahead",
            "Jobs of this worker that wait for a time over a minute ahead which a wrong clock has put into their mark.",
            turn.marks_ahead,
        );
        let queues = QUEUES.into_iter().zip(turn.queues);
        let head = ("fleetcron_queue_length", "gauge", "What waits inside the worker, by what it is.");
        out.by(head, "queue", queues);
    }

    fn put_runs(&self, turn: &Turn, out: &mut Exposition) {
        out.gauge("fleetcron_jobs", "Jobs of the whole fleet that this worker knows.", turn.jobs);
        out.gauge("fleetcron_open_runs", "Runs claimed or going.", turn.open_runs);
        out.gauge(
            "fleetcron_max_runs",
            "Most open runs: with so many, nothing more is claimed.",
            self.facts.max_runs,
        );
        let starts = Trigger::ALL.iter().map(|trigger| trigger.as_str()).zip(&self.starts);
        out.by(
            ("fleetcron_starts_total", "counter", "Commands and requests started, by what started them."),
            "trigger",
            starts.map(|(trigger, counter)| (trigger, counter.load(Relaxed))),
        );
        let outcomes = Outcome::ALL.iter().map(|status| status.as_str()).zip(&self.outcomes);
        out.by(
            ("fleetcron_records_total", "counter", "Records handed on, by status."),
            "status",
            outcomes.map(|(status, counter)| (status, counter.load(Relaxed))),
        );
        out.counter(
            "fleetcron_lost_found_total",
            "Open runs of sessions that were gone, for which this worker has written the records.",
            self.lost_found.load(Relaxed),
        );
        let skipped = SkipReason::ALL.iter().map(|reason| reason.as_str()).zip(&self.skipped_fires);
        out.by(
            ("fleetcron_skipped_fires_total", "counter", "Fires let go, by why."),
            "reason",
            skipped.map(|(reason, counter)| (reason, counter.load(Relaxed))),
        );
        out.histograms(
            "fleetcron_lateness_seconds",
            "Start of a run minus when it was due: its plan time and the jitter of its job.",
            [(None, &self.lateness.0)],
        );
    }

    fn put_claims(&self, turn: &Turn, out: &mut Exposition) {
        out.gauge(
            "fleetcron_oldest_due_unclaimed_seconds",
            "Age of the oldest fire due and not claimed by its owner, 0 = none.",
            seconds_of_ms(self.oldest_due_ms.load(Relaxed)),
        );
        out.gauge(
            "fleetcron_due_unclaimed",
            "Jobs of this worker that have such a fire.",
            self.due_unclaimed.load(Relaxed),
        );
        out.gauge(
            "fleetcron_requests_waiting",
            "Runs of the whole fleet that are asked for, by somebody or as retries, and not claimed yet.",
            turn.requests_waiting,
        );
        out.counter("fleetcron_claims_won_total", "Claims won.", self.claims_won.load(Relaxed));
        out.counter("fleetcron_claims_refused_total", "Claims refused.", self.claims_lost.load(Relaxed));
        out.counter(
            "fleetcron_claims_unanswered_total",
            "Claims sent without an answer.",
            self.claims_unanswered.load(Relaxed),
        );
    }

    fn put_records(&self, waiting: &Figures, out: &mut Exposition) {
        out.gauge("fleetcron_records_waiting", "Records not yet stored.", waiting.records);
        out.gauge(
            "fleetcron_records_waiting_bytes",
            "Bytes of those that are in memory alone.",
            waiting.memory_bytes,
        );
        out.gauge(
            "fleetcron_records_waiting_oldest_seconds",
            "How long ago the run of the oldest of them ended, 0 = none waits.",
            seconds_of_ms(self.oldest_record_ms.load(Relaxed)),
        );
        out.flag(
            "fleetcron_records_full",
            "1 while nothing is claimed because there is no room for more records.",
            waiting.is_full,
        );
        out.counter(
            "fleetcron_records_conflicts_total",
            "Records of a fire that another claim has written one of: it was run twice.",
            self.appends.conflicts.load(Relaxed),
        );
        out.histograms(
            "fleetcron_records_append_seconds",
            "Time that the record store takes for what it is sent at once.",
            [(None, &self.appends.times)],
        );
        out.counter(
            "fleetcron_records_append_failures_total",
            "Times that the record store did not take what it was sent; it is sent again.",
            self.appends.failed.load(Relaxed),
        );
        out.gauge("fleetcron_spool_bytes", "Bytes of records on disk.", waiting.spool_bytes);
        out.gauge(
            "fleetcron_spool_max_bytes",
            "Bytes beyond which nothing is claimed, 0 = there is no spool.",
            waiting.spool_bytes_max,
        );
        out.flag(
            "fleetcron_spool_fault",
            "1 while records cannot be written to disk.",
            waiting.fault.is_some(),
        );
    }

    fn put_stores(&self, out: &mut Exposition) {
        out.histograms(
            "fleetcron_store_request_seconds",
            "Time that requests to the store take, with those that fail.",
            self.store.iter().map(|(operation, times, _)| (Some(("operation", operation)), times)),
        );
        out.by(
            ("fleetcron_store_request_failures_total", "counter", "Requests to the store that failed."),
            "operation",
            self.store.iter().map(|(operation, _, failed)| (operation, failed)),
        );
        let room = *self.room.lock().unwrap_or_else(PoisonError::into_inner);
        out.gauge("fleetcron_store_bytes", "Size of the store, 0 = unknown.", room.bytes);
        out.gauge(
            "fleetcron_store_in_use_bytes",
            "What is left of it after defragmenting.",
            room.bytes_in_use,
        );
        out.gauge(
            "fleetcron_store_quota_bytes",
            "Size at which the store refuses to grow, 0 = unknown or none.",
            room.quota_bytes,
        );
        out.flag(
            "fleetcron_store_full",
            "1 while the store refuses to grow (etcd's alarm NOSPACE).",
            room.is_full,
        );
        out.by(
            (
                "fleetcron_certificate_expires_seconds",
                "gauge",
                "When the certificate of this use ends (of a CA's file the last one), in seconds since 1970; 0 = it is in no file.",
            ),
            "use",
            CertificateUse::ALL
                .into_iter()
                .map(|what| (what.as_str(), self.certificates[what as usize].load(Relaxed))),
        );
        out.gauge(
            "fleetcron_store_rights_missing",
            "Keys and ranges of keys of which the store refuses this worker a right that it needs.",
            self.missing_rights().ranges(),
        );
        out.counter(
            "fleetcron_audit_findings_total",
            "Keys of this worker's of which it knew nothing: each is a bug, or somebody's hand.",
            self.audit_findings.load(Relaxed),
        );
        out.gauge(
            "fleetcron_audit_waiting",
            "Changes of which the record store does not know yet, as this worker last counted them when it could not move them; 0 = it could.",
            self.audit_waiting.load(Relaxed),
        );
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn status() -> Status {
        let facts = Facts { started: Timestamp::ZERO, session_ttl: Duration::from_secs(10), max_runs: 7 };
        Status::new(facts, Arc::default())
    }

    #[test]
    fn every_metric_is_there_from_the_first_scrape_and_named_as_is_usual() {
        let text = status().metrics();
        let (mut names, mut sampled) = (BTreeSet::new(), BTreeSet::new());
        for line in text.lines() {
            if let Some(named) = line.strip_prefix("# TYPE ") {
                let (name, kind) = named.split_once(' ').unwrap();
                assert!(names.insert(name.to_owned()), "{name} twice");
                assert_eq!(name.ends_with("_total"), kind == "counter", "{name} is a {kind}");
                let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
                assert!(name.bytes().all(is_plain) && !name.contains("_ms"), "{name}");
            } else if !line.starts_with('#') {
                let (name, value) = line.rsplit_once(' ').unwrap();
                assert!(value.parse::<f64>().is_ok(), "{line}");
                let name = name.split('{').next().unwrap();
                let parts = ["_bucket", "_sum", "_count"];
                let whole = parts
                    .iter()
                    .find_map(|part| name.strip_suffix(part).filter(|_| name.contains("_seconds_")));
                sampled.insert(whole.unwrap_or(name).to_owned());
            }
        }
        assert_eq!(names, sampled);
    }

    #[test]
    fn outcomes_are_counted_once_and_skipped_fires_one_by_one() {
        use common::domain::job::JobName;
        use common::domain::record::{RecordId, Skipped};
        let status = status();
        let id = RecordId::new(&JobName::parse("a").unwrap(), Timestamp::ZERO, 1);
        let mut skip: Record =
            serde_json::from_value(serde_json::json!({"_id": id, "jobName": "a"})).unwrap();
        skip.status = Some(Outcome::Skipped);
        skip.skipped = Some(Skipped { count: 3, ..Skipped::one(Timestamp::ZERO, SkipReason::Misfire) });
        status.count(&skip, false);
        status.count(&skip, true);
        let text = status.metrics();
        assert!(text.contains("\nfleetcron_records_total{status=\"skipped\"} 1\n"), "{text}");
        assert!(text.contains("\nfleetcron_skipped_fires_total{reason=\"misfire\"} 3\n"), "{text}");
        assert!(text.contains("\nfleetcron_skipped_fires_total{reason=\"overlap\"} 0\n"), "{text}");
    }
}
