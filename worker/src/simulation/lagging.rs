//! Members of the store that lag: in some worlds a serializable read is answered as the store was some revisions ago. Drawn by a dice of its own, so
//! that the other worlds stay what they were; none of the seeds that had found something before is one.

use common::kv::{Error, Range, RangeReply};

use super::dice::Dice;
use super::world::World;

/// Apart from the seed's other dice.
const DICE: u64 = 0x5eed_1a66_ed00;

/// The dice of a world whose members lag.
pub(super) fn dice(seed: u64) -> Option<Dice> {
    matches!(seed % 11, 2 | 5 | 10).then(|| Dice::new(seed ^ DICE))
}

impl World {
    /// What a member answers by itself.
    pub(super) fn read_of_a_member(&mut self, range: &Range) -> Result<RangeReply, Error> {
        let faulty = self.faulty();
        let Some(dice) = self.lagging.as_mut().filter(|_| faulty && range.revision.is_none()) else {
            return self.store.range(range);
        };
        let behind = match dice.below(10) {
            0..5 => 0,
            5..8 => dice.between(1, 5),
            _ => dice.between(1, 60),
        };
        let revision = self.store.readable(self.store.revision() - behind);
        let reply = self.store.range(&range.clone().at(revision))?;
        Ok(RangeReply { revision, ..reply })
    }
}
