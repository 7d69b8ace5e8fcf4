//! All jobs, by name and by slot. Their states lie in one piece of memory, and are found by the number of their place in it; a slot's jobs are
//! in the order of two bytes of their names' hashes, by which one is found among them.

use std::collections::BTreeMap;

use common::domain::job::JobName;
use common::keys;
use xxhash_rust::xxh3::xxh3_64;

use super::job_state::JobState;

/// The place of a job's state. Another job's, once that one is gone.
pub(super) type Index = u32;

/// Every job that this worker knows.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    states: Vec<Option<JobState>>,
    /// Places that are empty.
    free: Vec<Index>,
    slots: BTreeMap<u16, Slot>,
}

/// The jobs of a slot, by their prints.
#[derive(Debug, Default)]
struct Slot {
    prints: Vec<u16>,
    jobs: Vec<Index>,
}

impl Slot {
    /// The jobs of a print: seldom more than one.
    fn alike(&self, print: u16) -> &[Index] {
        let first = self.prints.partition_point(|other| *other < print);
        let behind = first + self.prints[first..].partition_point(|other| *other == print);
        &self.jobs[first..behind]
    }
}

/// Sixteen bits of the hash of a name that its slot is not made of.
fn print(name: &JobName) -> u16 {
    let [.., high, low] = xxh3_64(name.as_str().as_bytes()).to_le_bytes();
    u16::from_le_bytes([high, low])
}

impl Jobs {
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.states.len() - self.free.len()
    }

    /// The place of a job.
    pub(super) fn find(&self, name: &JobName) -> Option<Index> {
        self.find_in(self.slots.get(&keys::slot(name))?, name)
    }

    fn find_in(&self, slot: &Slot, name: &JobName) -> Option<Index> {
        let is_named = |job: &&Index| self.at(**job).is_some_and(|state| state.name() == name.as_str());
        slot.alike(print(name)).iter().find(is_named).copied()
    }

    pub(super) fn at(&self, job: Index) -> Option<&JobState> {
        self.states.get(job as usize)?.as_ref()
    }

    pub(super) fn at_mut(&mut self, job: Index) -> Option<&mut JobState> {
        self.states.get_mut(job as usize)?.as_mut()
    }

    pub(super) fn get(&self, name: &JobName) -> Option<&JobState> {
        self.at(self.find(name)?)
    }

    pub(super) fn get_mut(&mut self, name: &JobName) -> Option<&mut JobState> {
        self.at_mut(self.find(name)?)
    }

    /// The state of a job, a new one if it has none.
    pub(super) fn put(&mut self, name: &JobName) -> &mut JobState {
        let slot = keys::slot(name);
        let job = self.find(name).unwrap_or_else(|| {
            let job = self.free.pop().unwrap_or_else(|| {
                self.states.push(None);
                Index::try_from(self.states.len() - 1).expect("their states fill the memory before")
            });
            let of_slot = self.slots.entry(slot).or_default();
            let place = of_slot.prints.partition_point(|other| *other <= print(name));
            of_slot.prints.insert(place, print(name));
            of_slot.jobs.insert(place, job);
            job
        });
        self.states[job as usize].get_or_insert_with(|| JobState::new(name, slot))
    }

    /// Forgets a job.
    pub(super) fn remove(&mut self, name: &JobName) -> Option<JobState> {
        let job = self.find(name)?;
        let slot = keys::slot(name);
        if let Some(of_slot) = self.slots.get_mut(&slot) {
            let place = of_slot.jobs.iter().position(|other| *other == job)?;
            of_slot.jobs.remove(place);
            of_slot.prints.remove(place);
            if of_slot.jobs.is_empty() {
                self.slots.remove(&slot);
            }
        }
        self.free.push(job);
        self.states[job as usize].take()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Index, &JobState)> {
        (0..).zip(&self.states).filter_map(|(job, state)| Some((job, state.as_ref()?)))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (Index, &mut JobState)> {
        (0..).zip(&mut self.states).filter_map(|(job, state)| Some((job, state.as_mut()?)))
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &JobState> {
        self.states.iter().flatten()
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut JobState> {
        self.states.iter_mut().flatten()
    }

    /// The names of the jobs of which this holds: of all, that would be much memory.
    pub(super) fn names_of(&self, is_meant: impl Fn(&JobState) -> bool) -> Vec<JobName> {
        self.values().filter(|state| is_meant(state)).map(JobState::job_name).collect()
    }

    /// The places of the jobs of a slot.
    pub(super) fn in_slot(&self, slot: u16) -> impl Iterator<Item = Index> {
        self.slots.get(&slot).into_iter().flat_map(|slot| slot.jobs.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(n: usize) -> JobName {
        JobName::parse(&format!("job-{n}")).unwrap()
    }

    #[test]
    fn jobs_are_found_by_name_and_by_slot_until_they_are_removed_and_their_places_are_used_again() {
        let mut jobs = Jobs::default();
        let all = 20_000; // some of one slot have equal prints
        for n in 0..all {
            assert_eq!(jobs.put(&name(n)).name(), name(n).as_str());
        }
        for n in (0..all).step_by(2) {
            assert_eq!(jobs.remove(&name(n)).unwrap().name(), name(n).as_str());
            assert!(jobs.get(&name(n)).is_none() && jobs.remove(&name(n)).is_none());
        }
        for n in (1..all).step_by(2) {
            assert_eq!(jobs.get(&name(n)).unwrap().name(), name(n).as_str());
            let index = jobs.find(&name(n)).unwrap();
            assert!(jobs.in_slot(keys::slot(&name(n))).any(|other| other == index));
        }
        for n in all..all + all / 2 {
            jobs.put(&name(n));
        }
        assert_eq!((jobs.states.len(), jobs.values().count()), (all, all));
        for n in 0..all + all / 2 {
            jobs.remove(&name(n));
        }
        assert!(jobs.is_empty() && jobs.values().next().is_none());
    }
}
