//! The fleet's settings and calendars as the scheduler is told of them. The settings' revision stands for both in what claims compare: where there are
//! calendars, it must be one that never comes back.

use common::domain::calendars::{Calendar, CalendarName, Calendars};
use common::domain::settings::FleetSettings;
use common::keys;
use common::kv::{self, Compare, Kv, Op, Range, Span, Txn};

use crate::scheduler::Event;

/// Calendars are read so many at a time: each has 120 kB at most.
const CALENDARS_PAGE: usize = 16;
/// The key is put where it is missing so often in a row, should somebody take it away each time; then it is tried again after a pause.
const PUTS_MAX: usize = 3;

/// What is stored, as of one revision.
struct Stored {
    /// What the scheduler is told.
    event: Event,
    /// There are calendars, and no settings to tell when they change.
    untold: bool,
}

/// Reads the fleet's settings and calendars as of one revision. Settings that are missing are put where there are calendars.
///
/// *Closes*: other hands delete the key, a function changes a calendar and puts the key with it, and they delete it again before this worker has
/// heard of the change. Its claim, decided by the days of before, compares that there are no settings, which is so again. A revision never comes
/// back; that there is none does. Where there is no calendar, no settings say the same each time.
///
/// The put says what its absence said, so that it may come late, from any worker, and needs no session: it changes nothing that is there. If this
/// process dies before it, the next worker that reads puts the key.
pub(crate) async fn read(kv: &dyn Kv) -> Result<Event, kv::Error> {
    for _ in 0..PUTS_MAX {
        let stored = read_stored(kv).await?;
        if !stored.untold {
            return Ok(stored.event);
        }
        let put = Txn {
            when: vec![Compare::absent(keys::SETTINGS)],
            then: vec![Op::put(keys::SETTINGS, FleetSettings::default().encode())],
            ..Txn::default()
        };
        match kv.txn(put).await {
            Ok(_) => {}
            Err(kv::Error::Denied(why)) => {
                // All other jobs need not wait for somebody who may.
                tracing::error!(
                    key = keys::SETTINGS,
                    %why,
                    "there are calendars and no settings, which this worker may not put: jobs with a calendar are not run until somebody does \
                     (POST /fleet/settings)"
                );
                return Ok(Event::Settings(Some(FleetSettings::default()), 0));
            }
            Err(why) => return Err(why),
        }
    }
    Err(kv::Error::Unavailable(format!("somebody deletes {} each time that it is put", keys::SETTINGS)))
}

/// As it is, whatever may become of it.
#[cfg(test)]
pub(crate) async fn read_as_it_is(kv: &dyn Kv) -> Result<Event, kv::Error> {
    Ok(read_stored(kv).await?.event)
}

async fn read_stored(kv: &dyn Kv) -> Result<Stored, kv::Error> {
    let found = kv.range(Range::key(keys::SETTINGS)).await?;
    let (mut calendars, mut any) = (Calendars::default(), false);
    let mut rest = Some(Span::prefix(keys::CALENDARS));
    while let Some(span) = rest.take() {
        let page = kv.range(Range::all(span.clone()).limit(CALENDARS_PAGE).at(found.revision)).await?;
        rest = page.pairs.last().filter(|_| page.more).map(|last| span.after(&last.key));
        any |= !page.pairs.is_empty();
        for pair in &page.pairs {
            let name = pair.key.strip_prefix(keys::CALENDARS).and_then(|name| CalendarName::parse(name).ok());
            match (name, Calendar::decode(&pair.value)) {
                (Some(name), Ok(calendar)) => calendars.insert(name, calendar.days),
                (None, _) => tracing::error!(key = %pair.key, "not the name of a calendar: left alone"),
                (_, Err(why)) => {
                    tracing::error!(key = %pair.key, %why, "calendar cannot be read: jobs that name it are not run until it can");
                }
            }
        }
    }
    let Some(pair) = found.pairs.first() else {
        let event = Event::Settings(Some(FleetSettings { calendars, ..FleetSettings::default() }), 0);
        return Ok(Stored { event, untold: any });
    };
    let settings = FleetSettings::decode(&pair.value);
    if let Err(why) = &settings {
        tracing::error!(key = %pair.key, %why, "the fleet's settings cannot be read: nothing is claimed until they can");
    }
    let settings = settings.ok().map(|settings| FleetSettings { calendars, ..settings });
    Ok(Stored { event: Event::Settings(settings, pair.mod_revision), untold: false })
}
