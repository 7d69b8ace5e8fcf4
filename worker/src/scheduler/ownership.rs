//! Which worker should look after which slot: rendezvous hashing. Only an optimisation; safety never rests on it.

use std::collections::BTreeMap;
use std::sync::Arc;

use common::domain::options::{Labels, Selector};
use common::keys::SLOTS;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// How many workers in a slot's order look after it: the owner, and two that step in when it does not fire.
pub(super) const RANKS: usize = 3;

/// This worker's place among those that may run a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    /// 0 = owner; `None` = it does not look after the job.
    pub(super) rank: Option<u8>,
    /// No worker has the labels that the job wants: the place is that among all workers, and nobody may run it.
    pub(super) nobody: bool,
}

/// This worker's place in the order of every slot, among all workers and among those with some labels.
#[derive(Clone, Debug)]
pub(super) struct Ranks {
    me: u64,
    everybody: Arc<[Option<u8>]>,
    /// The workers by their labels: selectors tell apart no more than these.
    kinds: Vec<(Labels, Vec<u64>)>,
    /// Ranks among the workers of some kinds. Made when the first job asks, so that a fleet without selectors pays nothing.
    among: BTreeMap<Vec<usize>, Arc<[Option<u8>]>>,
    /// Of each selector that was asked for; `None` = nobody has its labels.
    chosen: BTreeMap<Selector, Option<Arc<[Option<u8>]>>>,
}

impl Ranks {
    /// Nobody's: before the workers are known.
    pub(super) fn none() -> Self {
        Self::of("", &BTreeMap::new())
    }

    /// Ranks of `me` among `workers`.
    pub(super) fn of(me: &str, workers: &BTreeMap<String, Labels>) -> Self {
        let mut kinds: BTreeMap<&Labels, Vec<u64>> = BTreeMap::new();
        for (id, labels) in workers {
            kinds.entry(labels).or_default().push(xxh3_64(id.as_bytes()));
        }
        let all: Vec<u64> = kinds.values().flatten().copied().collect();
        let me = xxh3_64(me.as_bytes());
        Self {
            me,
            everybody: in_each_slot(me, &all),
            kinds: kinds.into_iter().map(|(labels, ids)| (labels.clone(), ids)).collect(),
            among: BTreeMap::new(),
            chosen: BTreeMap::new(),
        }
    }

    /// This worker's rank in a slot among all workers.
    pub(super) fn rank(&self, slot: u16) -> Option<u8> {
        self.everybody.get(usize::from(slot)).copied().flatten()
    }

    /// This worker's place in a slot among those that a job wants: the first of them in the slot's order is its owner.
    pub(super) fn place(&mut self, slot: u16, selector: Option<&Selector>) -> Place {
        let Some(selector) = selector else { return Place { rank: self.rank(slot), nobody: false } };
        if !self.chosen.contains_key(selector) {
            let ranks = self.ranks_of(selector);
            self.chosen.insert(selector.clone(), ranks);
        }
        match self.chosen.get(selector).and_then(Option::as_ref) {
            Some(ranks) => Place { rank: ranks.get(usize::from(slot)).copied().flatten(), nobody: false },
            None => Place { rank: self.rank(slot), nobody: true },
        }
    }

    fn ranks_of(&mut self, selector: &Selector) -> Option<Arc<[Option<u8>]>> {
        let fits = |(index, (labels, _)): (usize, &(Labels, _))| selector.matches(labels).then_some(index);
        let wanted: Vec<usize> = self.kinds.iter().enumerate().filter_map(fits).collect();
        if wanted.is_empty() {
            return None;
        }
        if let Some(known) = self.among.get(&wanted) {
            return Some(Arc::clone(known));
        }
        let workers: Vec<u64> = wanted.iter().flat_map(|kind| &self.kinds[*kind].1).copied().collect();
        let ranks = in_each_slot(self.me, &workers);
        self.among.insert(wanted, Arc::clone(&ranks));
        Some(ranks)
    }
}

/// The rank of `me` among `workers` in every slot: rendezvous hashing (Thaler and Ravishankar, 1998) with XXH3, so that a worker that comes
/// or goes moves only the slots that it gains or had, and the order among some workers is that among all with the others left out.
fn in_each_slot(me: u64, workers: &[u64]) -> Arc<[Option<u8>]> {
    if !workers.contains(&me) {
        return vec![None; usize::from(SLOTS)].into();
    }
    let rank = |slot: u16| {
        let weight = |id: u64| (xxh3_64_with_seed(&slot.to_le_bytes(), id), id);
        let mine = weight(me);
        let before = workers.iter().filter(|id| weight(**id) > mine).count();
        u8::try_from(before).ok().filter(|rank| usize::from(*rank) < RANKS)
    };
    (0..SLOTS).map(rank).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workers(n: usize) -> BTreeMap<String, Labels> {
        (1..=n).map(|i| (format!("10.0.0.{i}"), Labels::new())).collect()
    }

    fn labels(json: &str) -> Labels {
        serde_json::from_str(json).unwrap()
    }

    fn selector(json: &str) -> Selector {
        let job = format!(r#"{{"selector":{json}}}"#);
        common::domain::job::Job::from_stored("x", job.as_bytes()).unwrap().options.selector.unwrap()
    }

    #[test]
    fn every_slot_has_one_worker_at_each_rank() {
        let fleet = workers(5);
        let ranks: Vec<Ranks> = fleet.keys().map(|id| Ranks::of(id, &fleet)).collect();
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
        for id in after.keys() {
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
        for id in fleet.keys() {
            let ranks = Ranks::of(id, &fleet);
            let owned = (0..SLOTS).filter(|slot| ranks.rank(*slot) == Some(0)).count();
            assert!((900..1150).contains(&owned), "{id} owns {owned} of 4096 slots");
        }
    }

    #[test]
    fn who_is_not_registered_looks_after_nothing() {
        assert_eq!(Ranks::of("stranger", &workers(3)).rank(0), None);
    }

    #[test]
    fn a_job_goes_to_the_first_worker_in_its_slots_order_that_has_its_labels() {
        let mut fleet = workers(6);
        for (id, json) in [
            ("10.0.0.2", r#"{"zone":"a","gpu":"yes"}"#),
            ("10.0.0.4", r#"{"zone":"a"}"#),
            ("10.0.0.5", r#"{"zone":"a"}"#),
        ] {
            fleet.insert(id.to_owned(), labels(json));
        }
        let zone_a: BTreeMap<String, Labels> = fleet
            .iter()
            .filter(|(_, labels)| !labels.is_empty())
            .map(|(id, l)| (id.clone(), l.clone()))
            .collect();
        for id in fleet.keys() {
            let (mut ranks, alone) = (Ranks::of(id, &fleet), Ranks::of(id, &zone_a));
            for slot in 0..SLOTS {
                let place = |rank| Place { rank, nobody: false };
                assert_eq!(
                    ranks.place(slot, Some(&selector(r#"{"zone":"a"}"#))),
                    place(alone.rank(slot)),
                    "{id}"
                );
                assert_eq!(ranks.place(slot, Some(&selector("{}"))), place(ranks.rank(slot)), "{id}");
                let gpu = (id == "10.0.0.2").then_some(0);
                assert_eq!(ranks.place(slot, Some(&selector(r#"{"gpu":"yes"}"#))), place(gpu), "{id}");
                let nobody = Place { rank: ranks.rank(slot), nobody: true };
                assert_eq!(ranks.place(slot, Some(&selector(r#"{"zone":"b"}"#))), nobody, "{id}");
            }
        }
    }

    #[test]
    fn selectors_that_mean_the_same_workers_share_their_ranks() {
        let mut fleet = workers(3);
        fleet.insert("me".to_owned(), labels(r#"{"zone":"a","gpu":"yes"}"#));
        let mut ranks = Ranks::of("me", &fleet);
        for text in [r#"{"zone":"a"}"#, r#"{"gpu":"yes"}"#, r#"{"gpu":"yes","zone":"a"}"#] {
            assert_eq!(ranks.place(1, Some(&selector(text))).rank, Some(0));
        }
        assert_eq!((ranks.chosen.len(), ranks.among.len()), (3, 1));
    }
}
