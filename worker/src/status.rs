//! How the worker is doing: counters that its loop writes and the health server reads.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use common::clock::Stopwatch;
use common::domain::record::Status as Outcome;

use crate::scheduler::ClaimAnswer;
use crate::sink::Waiting;

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
    waiting_records: AtomicUsize,
    waiting_bytes: AtomicUsize,
    claims_won: AtomicU64,
    claims_lost: AtomicU64,
    claims_unanswered: AtomicU64,
    starts: AtomicU64,
    lateness_sum_ms: AtomicI64,
    lateness: [AtomicU64; LATENESS_MS.len()],
    outcomes: [AtomicU64; Outcome::ALL.len()],
}

impl Status {
    pub(crate) fn beat(&self, open_runs: usize, waiting: &Waiting, session: bool) {
        *self.turned.lock().unwrap_or_else(PoisonError::into_inner) = Some(Stopwatch::start());
        self.session.store(session, Relaxed);
        self.open_runs.store(open_runs, Relaxed);
        self.waiting_records.store(waiting.records(), Relaxed);
        self.waiting_bytes.store(waiting.bytes(), Relaxed);
    }

    pub(crate) fn note_oldest_due(&self, age_ms: i64) {
        self.oldest_due_ms.store(age_ms, Relaxed);
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

    /// The loop turns.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        let turned = *self.turned.lock().unwrap_or_else(PoisonError::into_inner);
        turned.is_some_and(|turned| turned.elapsed() < STUCK_AFTER)
    }

    /// The loop turns, and there is a session: fires are claimed.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.is_healthy() && self.session.load(Relaxed)
    }

    /// The counters in Prometheus' text format.
    #[must_use]
    pub fn metrics(&self) -> String {
        let mut text = String::new();
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
            "fleetcron_records_waiting",
            "gauge",
            "Records not yet stored.",
            self.waiting_records.load(Relaxed).to_string(),
        );
        put(
            "fleetcron_records_waiting_bytes",
            "gauge",
            "Bytes of them.",
            self.waiting_bytes.load(Relaxed).to_string(),
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
