//! Calendars as the other endpoints need them: the days that a job's fires depend on, and who depends on a calendar.
//!
//! Whoever changes a calendar puts `/cron/settings` again in the same transaction. So a write that compares the revision of that key, read before the
//! calendars were, commits only while the calendars are as they were read.

use common::api::errno::Kind;
use common::domain::calendars::{Calendar, CalendarName, Calendars, JobCalendars};
use common::domain::job::Job;
use common::domain::settings::FleetSettings;
use common::keys;
use common::kv::{Compare, Kv, Op, Pair, Span, Txn};
use serde_json::Value;

use super::Pages;
use crate::http::Refusal;
use crate::store;

/// What a calendar is called in the audit.
pub(super) const CALENDAR: &str = "calendar";

/// Most jobs that are looked at for those that name a calendar that is to be deleted.
const LOOKED_AT_MAX: usize = 50_000;
/// Of those that name it, so many are told.
const NAMED_MAX: usize = 5;

/// The calendars that a job names which somebody wants to save; none where the option cannot be read: that is told with all other faults.
pub(super) fn named_in(job: &Value) -> Option<JobCalendars> {
    job.get("calendars").and_then(|option| JobCalendars::parse(option).ok())
}

/// The settings with the calendars that a job names, read after the settings were. One that cannot be read is not known.
pub(super) async fn known(
    kv: &dyn Kv,
    fleet: FleetSettings,
    named: Option<&JobCalendars>,
) -> Result<FleetSettings, Refusal> {
    let Some(named) = named else { return Ok(fleet) };
    let reads = named.names().map(|name| Op::get(keys::calendar(name))).collect();
    let found = store::read(kv, Txn { then: reads, ..Txn::default() }).await?;
    let pairs: Vec<Pair> =
        (0..named.names().count()).filter_map(|index| found.pair(index).cloned()).collect();
    Ok(FleetSettings { calendars: calendars_of(&pairs), ..fleet })
}

/// The settings with all calendars, read after the settings were.
pub(super) async fn all(kv: &dyn Kv, fleet: FleetSettings) -> Result<FleetSettings, Refusal> {
    let mut found = Vec::new();
    let mut pages = Pages::new(kv, Span::prefix(keys::CALENDARS));
    while let Some(pairs) = pages.next().await? {
        found.extend(pairs);
    }
    Ok(FleetSettings { calendars: calendars_of(&found), ..fleet })
}

fn calendars_of(pairs: &[Pair]) -> Calendars {
    let mut calendars = Calendars::default();
    for pair in pairs {
        let Some(name) = name_of(pair) else { continue };
        match Calendar::decode(&pair.value) {
            Ok(calendar) => calendars.insert(name, calendar.days),
            Err(why) => tracing::warn!(key = %pair.key, %why, "calendar cannot be read: taken as absent"),
        }
    }
    calendars
}

/// The name of a stored calendar.
pub(super) fn name_of(pair: &Pair) -> Option<CalendarName> {
    CalendarName::parse(pair.key.strip_prefix(keys::CALENDARS)?).ok()
}

/// What is compared and put with each change of a calendar: the fleet's settings as they stand, at another revision.
pub(super) fn with_settings(settings: Option<&Pair>) -> (Compare, Op) {
    let value = settings.map_or_else(|| FleetSettings::default().encode(), |pair| pair.value.clone());
    let revision = settings.map_or(0, |pair| pair.mod_revision);
    (Compare::unchanged(keys::SETTINGS, revision), Op::put(keys::SETTINGS, value))
}

/// Those who name a calendar.
pub(super) struct Users {
    /// How many, and the first of them in words; `None` = nobody does.
    pub(super) told: Option<String>,
    /// There are more jobs than were looked at.
    pub(super) more: bool,
}

/// Looks for the jobs that name a calendar.
pub(super) async fn users(kv: &dyn Kv, name: &CalendarName) -> Result<Users, Refusal> {
    let (mut users, mut looked_at) = (Vec::new(), 0);
    let mut pages = Pages::new(kv, Span::prefix(keys::JOBS));
    while let Some(pairs) = pages.next().await? {
        if looked_at >= LOOKED_AT_MAX {
            return Ok(Users { told: told(&users), more: true });
        }
        looked_at += pairs.len();
        let job_of = |pair: &Pair| Job::from_stored(pair.key.strip_prefix(keys::JOBS)?, &pair.value).ok();
        let names =
            |job: &Job| job.options.calendars.iter().any(|named| named.names().any(|one| one == name));
        users.extend(
            pairs.iter().filter_map(job_of).filter(names).map(|job| format!("{:?}", job.name.as_str())),
        );
    }
    Ok(Users { told: told(&users), more: false })
}

fn told(users: &[String]) -> Option<String> {
    let (named, more) = (users.len().min(NAMED_MAX), users.len().saturating_sub(NAMED_MAX));
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    (named > 0).then(|| format!("{}{more}", users[..named].join(", ")))
}

/// Others change calendars, or settings, again and again.
pub(super) fn contended() -> Refusal {
    let message = "the calendars or the settings are being changed by others again and again, the calendar was left as it is: send it again";
    Refusal::new(Kind::Conflict, message)
}
