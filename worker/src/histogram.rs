//! How long things take, counted in buckets, as Prometheus takes it in. Any number of tasks count at once, and none waits for another.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds for requests to a store, in ms.
pub(crate) const REQUESTS_MS: &[f64] =
    &[1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1_000.0, 2_500.0, 5_000.0];
/// Upper bounds for how late runs start, in ms: from what a timer takes to what is a misfire.
pub(crate) const LATENESS_MS: &[f64] =
    &[1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1_000.0, 2_500.0, 5_000.0, 10_000.0, 60_000.0];

/// A histogram of times.
#[derive(Debug)]
pub(crate) struct Histogram {
    bounds_ms: &'static [f64],
    /// One for each bound, and one for what is beyond all.
    buckets: Box<[AtomicU64]>,
    /// In microseconds: in nanoseconds it would be full after three centuries of one request, and after a day of ten thousand.
    sum_us: AtomicI64,
}

impl Histogram {
    /// An empty one.
    pub(crate) fn new(bounds_ms: &'static [f64]) -> Self {
        let buckets = (0..=bounds_ms.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds_ms, buckets, sum_us: AtomicI64::new(0) }
    }

    /// Counts one that took so long.
    pub(crate) fn count(&self, took: Duration) {
        self.count_ms(took.as_secs_f64() * 1000.0, i64::try_from(took.as_micros()).unwrap_or(i64::MAX));
    }

    /// Counts a difference of two wall-clock times in ms, which is negative where a clock was put back.
    pub(crate) fn count_difference(&self, ms: i64) {
        let bounded = ms.clamp(-86_400_000_000, 86_400_000_000);
        #[expect(clippy::cast_precision_loss, reason = "bounded, so that it is exact")]
        self.count_ms(bounded as f64, bounded * 1000);
    }

    fn count_ms(&self, ms: f64, us: i64) {
        let bucket = self.bounds_ms.partition_point(|bound| *bound < ms);
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(us, Relaxed);
    }

    /// The sample lines of the metric `name`, in seconds; `label` (as `operation="txn"`) stands in each, if there is one.
    pub(crate) fn write(&self, text: &mut String, name: &str, label: &str) {
        let comma = if label.is_empty() { "" } else { "," };
        let mut so_far = 0;
        for (bound_ms, bucket) in self.bounds_ms.iter().zip(&self.buckets) {
            so_far += bucket.load(Relaxed);
            let _infallible =
                writeln!(text, "{name}_bucket{{{label}{comma}le=\"{}\"}} {so_far}", bound_ms / 1000.0);
        }
        so_far += self.buckets.last().map_or(0, |beyond| beyond.load(Relaxed));
        let labels = if label.is_empty() { String::new() } else { format!("{{{label}}}") };
        let sum = seconds_of_us(self.sum_us.load(Relaxed));
        let _infallible = writeln!(
            text,
            "{name}_bucket{{{label}{comma}le=\"+Inf\"}} {so_far}\n{name}_sum{labels} {sum}\n{name}_count{labels} {so_far}"
        );
    }
}

/// Microseconds as seconds, to the last digit.
fn seconds_of_us(us: i64) -> String {
    let (sign, us) = (if us < 0 { "-" } else { "" }, us.unsigned_abs());
    format!("{sign}{}.{:06}", us / 1_000_000, us % 1_000_000)
}

/// Milliseconds as seconds, to the last digit.
pub(crate) fn seconds_of_ms(ms: i64) -> String {
    let (sign, ms) = (if ms < 0 { "-" } else { "" }, ms.unsigned_abs());
    format!("{sign}{}.{:03}", ms / 1000, ms % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_what_took_no_longer_than_its_bound_and_all_that_was_shorter() {
        let histogram = Histogram::new(&[1.0, 2.5]);
        for us in [500, 1_000, 1_001, 2_500, 9_000_000] {
            histogram.count(Duration::from_micros(us));
        }
        histogram.count_difference(-20);
        let mut text = String::new();
        histogram.write(&mut text, "x_seconds", "");
        histogram.write(&mut text, "y_seconds", "of=\"a\"");
        let (x, y) = text.split_at(text.find("y_seconds").unwrap());
        assert_eq!(
            x,
            "x_seconds_bucket{le=\"0.001\"} 3\nx_seconds_bucket{le=\"0.0025\"} 5\nx_seconds_bucket{le=\"+Inf\"} 6\n\
             x_seconds_sum 8.985001\nx_seconds_count 6\n"
        );
        assert!(y.starts_with("y_seconds_bucket{of=\"a\",le=\"0.001\"} 3\n"), "{y}");
        assert!(y.ends_with("y_seconds_sum{of=\"a\"} 8.985001\ny_seconds_count{of=\"a\"} 6\n"), "{y}");
    }

    #[test]
    fn times_are_seconds_to_the_last_digit() {
        assert_eq!([0, -1, 1_500, 60_000].map(seconds_of_ms), ["0.000", "-0.001", "1.500", "60.000"]);
    }
}
