//! What people want to know of a schedule before they trust it: its words, and its next fires.

use common::clock::Timestamp;
use common::domain::settings::FleetSettings;
use common::keys;
use common::kv::{Kv, Range, Revision};
use common::schedule::{Language, Schedule, Zone};
use lambda_http::http::header::ACCEPT_LANGUAGE;

use super::stored::fleet_settings;
use crate::http::{Call, Fields, Refusal};
use crate::store;

/// As many fires as are told when nobody says how many.
pub(super) const FIRES_DEFAULT: usize = 5;

/// The language of the answer: `lang` of the query, or else the first of the request's header that is known.
pub(super) fn language(call: &Call, query: &Fields) -> Result<Language, Refusal> {
    match query.filled("lang") {
        Some(tag) => {
            Language::of_tag(tag).ok_or_else(|| Refusal::bad("lang: is neither en nor zh: write one of them"))
        }
        None => Ok(accepted(call)),
    }
}

/// The first language of the request's header that is known; clients write the one they like best first.
pub(super) fn accepted(call: &Call) -> Language {
    let header =
        call.headers().get(ACCEPT_LANGUAGE).and_then(|header| header.to_str().ok()).unwrap_or_default();
    let tags = header.split(',').map(|range| range.split(';').next().unwrap_or_default());
    tags.filter_map(Language::of_tag).next().unwrap_or_default()
}

/// The fleet's settings, under which schedules are read, without calendars; and the revision of their key.
pub(super) async fn fleet(kv: &dyn Kv) -> Result<(FleetSettings, Revision), Refusal> {
    let found = store::range(kv, Range::key(keys::SETTINGS)).await?;
    let stored = found.pairs.first();
    Ok((fleet_settings(stored)?, stored.map_or(0, |pair| pair.mod_revision)))
}

/// The first fires after a time, at most `count`, in RFC 3339 with the offset of the schedule's zone.
pub(super) fn fires(schedule: &Schedule, after: Timestamp, count: usize) -> Vec<String> {
    let next = |t: &Timestamp| schedule.next_after(*t);
    std::iter::successors(schedule.next_after(after), next)
        .take(count)
        .map(|t| local(t, schedule.zone()))
        .collect()
}

fn local(t: Timestamp, zone: &Zone) -> String {
    t.rfc3339_at(zone.offset_at(t))
}
