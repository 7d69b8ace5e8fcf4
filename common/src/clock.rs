//! The only module that reads a clock.
#![expect(clippy::disallowed_methods, reason = "this is the module that may")]

use std::fmt;
use std::future::Future;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

/// A point in time: milliseconds since 1970-01-01T00:00:00 UTC, the unit of every stored and served time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The start of 1970, before any fire: "no time yet".
    pub const ZERO: Self = Self(0);

    /// From milliseconds since 1970, UTC.
    #[must_use]
    pub const fn from_ms(ms: i64) -> Self {
        Self(ms)
    }

    /// Milliseconds since 1970, UTC.
    #[must_use]
    pub const fn ms(self) -> i64 {
        self.0
    }

    /// Reads milliseconds since 1970, UTC, or RFC 3339 (`2026-11-21T08:00:00+01:00`).
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let ms = text.parse().ok();
        ms.or_else(|| Some(chrono::DateTime::parse_from_rfc3339(text).ok()?.timestamp_millis())).map(Self)
    }

    /// Later by `ms` milliseconds (earlier when negative); stops at the ends of the range.
    #[must_use]
    pub const fn plus_ms(self, ms: i64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// Milliseconds from `earlier` to this time; negative when this time is the earlier one.
    #[must_use]
    pub const fn ms_since(self, earlier: Self) -> i64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The time as RFC 3339 in UTC with milliseconds, for people.
    #[must_use]
    pub fn rfc3339(self) -> String {
        chrono::DateTime::from_timestamp_millis(self.0).map_or_else(
            || format!("{} ms", self.0),
            |t| t.to_rfc3339_opts(chrono::SecondsFormat::Millis, true),
        )
    }
}

impl Timestamp {
    /// The time as RFC 3339 with this offset from UTC in seconds: whole seconds, unless it has a part of one. An offset that is no whole minute,
    /// as some places had it up to 1972, has no place in RFC 3339: then it is in UTC.
    #[must_use]
    pub fn rfc3339_at(self, offset_seconds: i64) -> String {
        let whole = Some(offset_seconds).filter(|offset| offset % 60 == 0).unwrap_or_default();
        let offset = i32::try_from(whole).ok().and_then(chrono::FixedOffset::east_opt);
        let time = chrono::DateTime::from_timestamp_millis(self.0).zip(offset);
        time.map_or_else(
            || self.rfc3339(),
            |(time, offset)| time.with_timezone(&offset).to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true),
        )
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.rfc3339())
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.rfc3339())
    }
}

/// Wall-clock time as a port, so that a test can say what time it is.
#[async_trait]
pub trait Clock: Send + Sync {
    /// The wall clock.
    fn now(&self) -> Timestamp;
    /// Returns once the wall clock has reached `deadline`, also when the clock is stepped meanwhile.
    async fn sleep_until(&self, deadline: Timestamp);
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

/// A wait is cut into pieces of this length, so that a step of the wall clock is noticed within it.
const SLEEP_PIECE: Duration = Duration::from_millis(500);

#[async_trait]
impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }

    async fn sleep_until(&self, deadline: Timestamp) {
        let deadline = UNIX_EPOCH + Duration::from_millis(deadline.0.max(0).unsigned_abs());
        // Counted in what the clock gives, not in whole milliseconds: rounding would make each wake up to one late.
        while let Ok(left) = deadline.duration_since(SystemTime::now())
            && !left.is_zero()
        {
            sleep(left.min(SLEEP_PIECE)).await;
        }
    }
}

/// Waits for a length of time (monotonic clock).
pub async fn sleep(duration: Duration) {
    tokio::time::sleep(duration).await;
}

/// The time limit of [`timeout`] was reached before the future was done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no answer within {0:?}")]
pub struct Elapsed(pub Duration);

/// Waits for `future`, at most for `limit`.
///
/// # Errors
/// [`Elapsed`] when the limit was reached; the future is dropped.
pub async fn timeout<F: Future>(limit: Duration, future: F) -> Result<F::Output, Elapsed> {
    tokio::time::timeout(limit, future).await.map_err(|_elapsed| Elapsed(limit))
}

/// A point on the monotonic clock, for measuring how long something takes; on Linux the one that goes on while the machine is
/// suspended, as a lease does.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(Duration);

impl Stopwatch {
    /// Starts counting.
    #[must_use]
    pub fn start() -> Self {
        Self(monotonic())
    }

    /// The point itself, counted from the same moment by every process of this machine, however that is called: on Linux, its start.
    #[must_use]
    pub const fn since_boot(&self) -> Duration {
        self.0
    }

    /// Time since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        monotonic().saturating_sub(self.0)
    }
}

/// Time that processors have spent on this process.
#[must_use]
pub fn processor_time() -> Duration {
    read(rustix::time::ClockId::ProcessCPUTime)
}

fn monotonic() -> Duration {
    #[cfg(target_os = "linux")]
    let clock = rustix::time::ClockId::Boottime;
    #[cfg(not(target_os = "linux"))]
    let clock = rustix::time::ClockId::Monotonic;
    read(clock)
}

fn read(clock: rustix::time::ClockId) -> Duration {
    let time = rustix::time::clock_gettime(clock);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}
