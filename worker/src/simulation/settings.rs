//! The fleet's settings, changed while fires are claimed: in some worlds, by a dice of its own, so that the others stay what they were. Only the zone
//! changes: to schedules of seconds it is all the same, so that every promise holds as before, and to the scheduler each change is an edit of
//! every job.

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

/// The settings that are stored.
pub(super) fn fleet(store: &Store) -> FleetSettings {
    let stored = store.get(keys::SETTINGS).map(|pair| FleetSettings::decode(&pair.value).unwrap());
    stored.unwrap_or_default()
}

impl World {
    pub(super) fn draw_settings(&mut self) {
        let Some(mut dice) = self.setting.take() else { return };
        for _ in 0..dice.between(1, 6) {
            let at = dice.between(800, HEALED_MS - 500);
            self.push(at, Item::Fault(Fault::Settings, 0));
        }
        self.setting = Some(dice);
    }

    /// As the function does it; other hands may take the key away.
    pub(super) fn set_settings(&mut self) {
        let Some(dice) = &mut self.setting else { return };
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
}
