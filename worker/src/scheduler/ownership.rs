//! Which worker should look after which slot: rendezvous hashing. Only an optimisation; safety never rests on it.

use std::collections::BTreeSet;

use common::keys::SLOTS;

/// How many workers in a slot's order look after it: the owner, and two that step in when it does not fire.
pub(super) const RANKS: usize = 3;

/// This worker's place in the order of every slot.
#[derive(Clone, Debug)]
pub(super) struct Ranks(Vec<Option<u8>>);

impl Ranks {
    /// Nobody's: before the workers are known.
    pub(super) fn none() -> Self {
        Self(vec![None; usize::from(SLOTS)])
    }

    /// Ranks of `me` among `workers`: rendezvous hashing (Thaler and Ravishankar, 1998) with XXH3, so that a worker that comes or
    /// goes moves only the slots that it gains or had.
    pub(super) fn of(me: &str, workers: &BTreeSet<String>) -> Self {
        if !workers.contains(me) {
            return Self::none();
        }
        let seeds: Vec<u64> = workers.iter().map(|id| xxhash_rust::xxh3::xxh3_64(id.as_bytes())).collect();
        let mine = xxhash_rust::xxh3::xxh3_64(me.as_bytes());
        let rank = |slot: u16| {
            let weight = |seed: u64| (xxhash_rust::xxh3::xxh3_64_with_seed(&slot.to_le_bytes(), seed), seed);
            let before = seeds.iter().filter(|seed| weight(**seed) > weight(mine)).count();
            u8::try_from(before).ok().filter(|rank| usize::from(*rank) < RANKS)
        };
        Self((0..SLOTS).map(rank).collect())
    }

    /// This worker's rank in a slot: 0 = owner; `None` = it does not look after the slot.
    pub(super) fn rank(&self, slot: u16) -> Option<u8> {
        self.0.get(usize::from(slot)).copied().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workers(n: usize) -> BTreeSet<String> {
        (1..=n).map(|i| format!("10.0.0.{i}")).collect()
    }

    #[test]
    fn every_slot_has_one_worker_at_each_rank() {
        let fleet = workers(5);
        let ranks: Vec<Ranks> = fleet.iter().map(|id| Ranks::of(id, &fleet)).collect();
        for slot in 0..SLOTS {
            let mut seen: Vec<u8> = ranks.iter().filter_map(|r| r.rank(slot)).collect();
            seen.sort_unstable();
            assert_eq!(seen, [0, 1, 2], "slot {slot}");
        }
    }

    #[test]
    fn a_worker_that_leaves_moves_only_its_own_slots() {
        let (before, mut after) = (workers(5), workers(5));
        after.remove("10.0.0.3");
        for id in &after {
            let (was, is) = (Ranks::of(id, &before), Ranks::of(id, &after));
            for slot in 0..SLOTS {
                assert!(
                    is.rank(slot) <= was.rank(slot) || was.rank(slot).is_none(),
                    "{id} fell back in slot {slot}"
                );
            }
        }
    }

    #[test]
    fn slots_are_spread_evenly() {
        let fleet = workers(4);
        for id in &fleet {
            let ranks = Ranks::of(id, &fleet);
            let owned = (0..SLOTS).filter(|slot| ranks.rank(*slot) == Some(0)).count();
            assert!((900..1150).contains(&owned), "{id} owns {owned} of 4096 slots");
        }
    }

    #[test]
    fn who_is_not_registered_looks_after_nothing() {
        assert_eq!(Ranks::of("stranger", &workers(3)).rank(0), None);
    }
}
