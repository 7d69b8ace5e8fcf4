//! The fleet's settings, changed while fires are claimed: in some worlds, by a dice of its own, so that the others stay what they were. Only the zone
//! changes, and the days of a calendar that job `b` leaves out, all of them far away: to schedules of seconds it is all the same, so that every promise
//! holds as before, and to the scheduler each change is an edit of every job.

use common::domain::calendars::{Calendar, CalendarName, Calendars};
use common::domain::settings::FleetSettings;
use common::keys;
use common::kv::Op;

use super::dice::Dice;
use super::faults::Fault;
use super::store::Store;
use super::world::{HEALED_MS, Item, World};

/// Apart from the seed's other dice.
const DICE: u64 = 0x5eed_5e77_1265;

/// The dice of a world in which settings change.
pub(super) fn dice(seed: u64) -> Option<Dice> {
    (seed % 7 == 1).then(|| Dice::new(seed ^ DICE))
}

/// Whether other hands delete the settings of such a world twice, around a change of the calendar. None of the seeds that have found something is one.
pub(super) fn are_deleted_twice(seed: u64) -> bool {
    seed % 21 == 8
}

/// The name of the calendar.
const CLOSED: &str = "closed";

/// The settings and the calendar that are stored.
pub(super) fn fleet(store: &Store) -> FleetSettings {
    let stored = store.get(keys::SETTINGS).map(|pair| FleetSettings::decode(&pair.value).unwrap());
    let mut calendars = Calendars::default();
    let name = CalendarName::parse(CLOSED).unwrap();
    if let Some(pair) = store.get(keys::calendar(&name)) {
        calendars.insert(name, Calendar::decode(&pair.value).unwrap().days);
    }
    FleetSettings { calendars, ..stored.unwrap_or_default() }
}

impl World {
    pub(super) fn draw_settings(&mut self) {
        let Some(mut dice) = self.setting.take() else { return };
        let calendar = self.put_calendar(0);
        self.write(calendar);
        for _ in 0..dice.between(1, 6) {
            let at = dice.between(800, HEALED_MS - 500);
            self.push(at, Item::Fault(Fault::Settings, 0));
        }
        if self.deletes_settings {
            for _ in 0..dice.between(2, 6) {
                let at = dice.between(800, HEALED_MS - 3_000);
                self.push(at, Item::Fault(Fault::SettingsDeleted, 0));
                // By then the workers know that there are none.
                let again = at + dice.between(300, 2_000);
                self.push(again, Item::Fault(Fault::CalendarAlone, 0));
                self.push(again + dice.between(1, 300), Item::Fault(Fault::SettingsDeleted, 0));
            }
        }
        self.setting = Some(dice);
    }

    /// As the function does it; other hands may take the key away.
    pub(super) fn set_settings(&mut self) {
        let Some(dice) = &mut self.setting else { return };
        if dice.percent(40) {
            return self.change_calendar();
        }
        let zone = *dice.one_of(&["UTC", "Europe/Berlin", "Asia/Kolkata", "America/St_Johns", ""]);
        let op = match zone {
            "" => Op::delete(keys::SETTINGS),
            zone => {
                let settings = serde_json::json!({ "timezone": zone });
                Op::put(keys::SETTINGS, FleetSettings::from_submitted(&settings).unwrap().encode())
            }
        };
        self.note(|| format!("the fleet's zone is {zone:?}"));
        self.write(vec![op]);
    }

    pub(super) fn change_calendar(&mut self) {
        let Some(dice) = &mut self.setting else { return };
        let day = dice.between(1, 3);
        self.note(|| format!("the calendar has day {day}"));
        let calendar = self.put_calendar(day);
        self.write(calendar);
    }

    /// As the function does it: the settings are put with it.
    fn put_calendar(&self, day: i64) -> Vec<Op> {
        let mut calendar = Calendar::default();
        calendar.days.add(day, day);
        let settings = self.store.get(keys::SETTINGS).map(|pair| pair.value.clone());
        vec![
            Op::put(keys::calendar(&CalendarName::parse(CLOSED).unwrap()), calendar.encode()),
            Op::put(keys::SETTINGS, settings.unwrap_or_else(|| FleetSettings::default().encode())),
        ]
    }

    /// Job `b` leaves out the days of the calendar.
    pub(super) fn with_calendar(&self, job: &mut serde_json::Value) {
        if self.setting.is_some() && job["name"] == "b" {
            job["calendars"] = serde_json::json!({ "exclude": [CLOSED] });
        }
    }
}
