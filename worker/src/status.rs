//! How the worker is doing: counters that its loop writes and the health server reads.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use common::clock::{Stopwatch, Timestamp};
use common::domain::record::Status as Outcome;
use common::kv::Room;

use crate::clocks::OFFSET_READY_MAX_MS;
use crate::notify::Counters;
use crate::scheduler::ClaimAnswer;
use crate::waiting::Figures;

/// Upper bounds of the lateness histogram, in ms.
const LATENESS_MS: [i64; 12] = [1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 5_000, 60_000];
/// A loop that has not turned for so long is stuck.
const STUCK_AFTER: Duration = Duration::from_secs(30);

/// The counters.
#[derive(Debug, Default)]
pub struct Status {
    turned: Mutex<Option<Stopwatch>>,
    session: AtomicBool,
    open_runs: AtomicUsize,
    oldest_due_ms: AtomicI64,
    clock_offset_ms: AtomicI64,
    clock_trusted: AtomicBool,
    marks_ahead: AtomicUsize,
    requests_waiting: AtomicUsize,
    waiting: Mutex<Figures>,
    oldest_record_ms: AtomicI64,
    claims_won: AtomicU64,
    claims_lost: AtomicU64,
    claims_unanswered: AtomicU64,
    starts: AtomicU64,
    lateness_sum_ms: AtomicI64,
    lateness: [AtomicU64; LATENESS_MS.len()],
    outcomes: [AtomicU64; Outcome::ALL.len()],
    audit_findings: AtomicU64,
    audit_waiting: AtomicU64,
    pub(crate) notices: Arc<Counters>,
    /// Of the store, as last told.
    room: Mutex<Room>,
}

impl Status {
    pub(crate) fn beat(&self, now: Timestamp, open_runs: usize, waiting: Figures, session: bool) {
        *self.turned.lock().unwrap_or_else(PoisonError::into_inner) = Some(Stopwatch::start());
        self.session.store(session, Relaxed);
        self.open_runs.store(open_runs, Relaxed);
        let age = waiting.oldest.map_or(0, |oldest| now.ms_since(oldest).max(0));
        self.oldest_record_ms.store(age, Relaxed);
        *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = waiting;
    }

    fn waiting(&self) -> Figures {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn note_oldest_due(&self, age_ms: i64) {
        self.oldest_due_ms.store(age_ms, Relaxed);
    }

    pub(crate) fn note_clock(&self, offset_ms: i64, trusted: bool) {
        self.clock_offset_ms.store(offset_ms, Relaxed);
        self.clock_trusted.store(trusted, Relaxed);
    }

    pub(crate) fn note_marks_ahead(&self, number: usize) {
        self.marks_ahead.store(number, Relaxed);
    }

    pub(crate) fn note_requests_waiting(&self, number: usize) {
        self.requests_waiting.store(number, Relaxed);
    }

    pub(crate) fn count_claim(&self, answer: &ClaimAnswer) {
        let counter = match answer {
            ClaimAnswer::Won(_) => &self.claims_won,
            ClaimAnswer::Refused(_) => &self.claims_lost,
            ClaimAnswer::Unknown | ClaimAnswer::NotApplied => &self.claims_unanswered,
        };
        counter.fetch_add(1, Relaxed);
    }

    pub(crate) fn count_start(&self, lateness_ms: i64) {
        self.starts.fetch_add(1, Relaxed);
        self.lateness_sum_ms.fetch_add(lateness_ms, Relaxed);
        if let Some(bucket) = LATENESS_MS.iter().position(|bound| lateness_ms <= *bound) {
            self.lateness[bucket].fetch_add(1, Relaxed);
        }
    }

    /// Counts a record; of a growing one only the last.
    pub(crate) fn count(&self, outcome: Outcome, last: bool) {
        if let (true, Some(at)) = (last, Outcome::ALL.iter().position(|known| *known == outcome)) {
            self.outcomes[at].fetch_add(1, Relaxed);
        }
    }

    pub(crate) fn count_audit_findings(&self, found: usize) {
        self.audit_findings.fetch_add(u64::try_from(found).unwrap_or(u64::MAX), Relaxed);
    }

    pub(crate) fn note_audit_waiting(&self, notes: u64) {
        self.audit_waiting.store(notes, Relaxed);
    }

    pub(crate) fn note_room(&self, room: &Room) {
        *self.room.lock().unwrap_or_else(PoisonError::into_inner) = *room;
    }

    /// The loop turns.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        let turned = *self.turned.lock().unwrap_or_else(PoisonError::into_inner);
        turned.is_some_and(|turned| turned.elapsed() < STUCK_AFTER)
    }

    /// Why fires are not claimed, or not at their time: the loop is stuck, there is no session, the clock is wrong. `None` = ready.
    #[must_use]
    pub fn not_ready(&self) -> Option<String> {
        let offset_ms = self.clock_offset_ms.load(Relaxed);
        if !self.is_healthy() {
            Some("the loop is stuck".to_owned())
        } else if !self.session.load(Relaxed) {
            Some("no session".to_owned())
        } else if offset_ms.abs() > OFFSET_READY_MAX_MS {
            let how = if offset_ms > 0 { "ahead of" } else { "behind" };
            Some(format!("the clock is {} ms {how} the median of the fleet", offset_ms.abs()))
        } else {
            None
        }
    }

    /// What is wrong with keeping records, although the worker is in the fleet. `None` = nothing.
    #[must_use]
    pub fn records_in_trouble(&self) -> Option<String> {
        let waiting = self.waiting();
        match waiting.fault {
            Some(why) => Some(format!("records cannot be written to disk: {why}")),
            None if waiting.is_full => Some(format!(
                "{} records wait for the record store, and there is no room for more: nothing is claimed",
                waiting.records
            )),
            None => None,
        }
    }

    /// The counters in Prometheus' text format.
    #[must_use]
    pub fn metrics(&self) -> String {
        let mut text = String::new();
        let waiting = self.waiting();
        let mut put = |name: &str, kind: &str, help: &str, value: String| {
            let _infallible = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
        };
        put(
            "fleetcron_session",
            "gauge",
            "1 while the worker has a session.",
            u8::from(self.session.load(Relaxed)).to_string(),
        );
        put(
            "fleetcron_open_runs",
            "gauge",
            "Runs claimed or going.",
            self.open_runs.load(Relaxed).to_string(),
        );
        let oldest = self.oldest_due_ms.load(Relaxed);
        put(
            "fleetcron_oldest_due_unclaimed_ms",
            "gauge",
            "Age of the oldest fire due and not claimed by its owner, 0 = none.",
            oldest.to_string(),
        );
        put(
            "fleetcron_clock_offset_ms",
            "gauge",
            "This worker's wall clock minus the median of the fleet's, 0 = nothing to compare with.",
            self.clock_offset_ms.load(Relaxed).to_string(),
        );
        put(
            "fleetcron_clock_trusted",
            "gauge",
            "1 while fires are claimed by this worker's clock.",
            u8::from(self.clock_trusted.load(Relaxed)).to_string(),
        );
        put(
            "fleetcron_marks_ahead",
            "gauge",
            "Jobs of this worker that wait for a time over a minute ahead which a wrong clock has put into their mark.",
            self.marks_ahead.load(Relaxed).to_string(),
        );
        put(
            "fleetcron_requests_waiting",
            "gauge",
            "Runs of the whole fleet that are asked for, by somebody or as retries, and not claimed yet.",
            self.requests_waiting.load(Relaxed).to_string(),
        );
        put("fleetcron_records_waiting", "gauge", "Records not yet stored.", waiting.records.to_string());
        put(
            "fleetcron_records_waiting_bytes",
            "gauge",
            "Bytes of those that are in memory alone.",
            waiting.memory_bytes.to_string(),
        );
        put(
            "fleetcron_records_waiting_oldest_ms",
            "gauge",
            "How long ago the run of the oldest of them ended, 0 = none waits.",
            self.oldest_record_ms.load(Relaxed).to_string(),
        );
        put(
            "fleetcron_records_full",
            "gauge",
            "1 while nothing is claimed because there is no room for more records.",
            u8::from(waiting.is_full).to_string(),
        );
        put("fleetcron_spool_bytes", "gauge", "Bytes of records on disk.", waiting.spool_bytes.to_string());
        put(
            "fleetcron_spool_max_bytes",
            "gauge",
            "Bytes beyond which nothing is claimed, 0 = there is no spool.",
            waiting.spool_bytes_max.to_string(),
        );
        put(
            "fleetcron_spool_fault",
            "gauge",
            "1 while records cannot be written to disk.",
            u8::from(waiting.fault.is_some()).to_string(),
        );
        put(
            "fleetcron_claims_won_total",
            "counter",
            "Claims won.",
            self.claims_won.load(Relaxed).to_string(),
        );
        put(
            "fleetcron_claims_refused_total",
            "counter",
            "Claims refused.",
            self.claims_lost.load(Relaxed).to_string(),
        );
        put(
            "fleetcron_claims_unanswered_total",
            "counter",
            "Claims sent without an answer.",
            self.claims_unanswered.load(Relaxed).to_string(),
        );
        put(
            "fleetcron_audit_findings_total",
            "counter",
            "Keys of this worker's of which it knew nothing: each is a bug, or somebody's hand.",
            self.audit_findings.load(Relaxed).to_string(),
        );
        put(
            "fleetcron_audit_waiting",
            "gauge",
            "Changes of which the record store does not know yet, as this worker last counted them when it could not move them; 0 = it could.",
            self.audit_waiting.load(Relaxed).to_string(),
        );
        let room = *self.room.lock().unwrap_or_else(PoisonError::into_inner);
        put("fleetcron_store_bytes", "gauge", "Size of the store, 0 = unknown.", room.bytes.to_string());
        put(
            "fleetcron_store_in_use_bytes",
            "gauge",
            "What is left of it after defragmenting.",
            room.bytes_in_use.to_string(),
        );
        put(
            "fleetcron_store_quota_bytes",
            "gauge",
            "Size at which the store refuses to grow, 0 = unknown or none.",
            room.quota_bytes.to_string(),
        );
        put(
            "fleetcron_store_full",
            "gauge",
            "1 while the store refuses to grow (etcd's alarm NOSPACE).",
            u8::from(room.is_full).to_string(),
        );
        self.notices.put(&mut put);
        let _infallible = writeln!(
            text,
            "# HELP fleetcron_records_total Records handed on, by status.\n# TYPE fleetcron_records_total counter"
        );
        for (status, counter) in Outcome::ALL.iter().zip(&self.outcomes) {
            let _infallible = writeln!(
                text,
                "fleetcron_records_total{{status=\"{}\"}} {}",
                status.as_str(),
                counter.load(Relaxed)
            );
        }
        let name = "fleetcron_lateness_ms";
        let _infallible = writeln!(
            text,
            "# HELP {name} Start of a run minus when it was due: its plan time and the jitter of its job.\n# TYPE {name} histogram"
        );
        let mut so_far = 0;
        for (bound, bucket) in LATENESS_MS.iter().zip(&self.lateness) {
            so_far += bucket.load(Relaxed);
            let _infallible = writeln!(text, "{name}_bucket{{le=\"{bound}\"}} {so_far}");
        }
        let starts = self.starts.load(Relaxed);
        let sum = self.lateness_sum_ms.load(Relaxed);
        let _infallible =
            writeln!(text, "{name}_bucket{{le=\"+Inf\"}} {starts}\n{name}_sum {sum}\n{name}_count {starts}");
        text
    }
}
