//! All jobs, by name and by slot. Their states lie in one piece of memory, and are found by the number of their place in it; a slot's jobs are
//! in the order of two bytes of their names' hashes, by which one is found among them. Their texts lie together ([`Texts`]).

use std::collections::BTreeMap;

use common::clock::Timestamp;
use common::domain::job::JobName;
use common::keys;
use xxhash_rust::xxh3::xxh3_64;

use crate::exec::work::Work;

use super::event::JobSeen;
use super::job_state::{Definition, JobMut, JobState};
use super::marks::MarkView;
use super::schedules::Schedules;
use super::sessions::Sessions;
use super::texts::{Text, Texts};

/// The place of a job's state. Another job's, once that one is gone.
pub(super) type Index = u32;

/// Every job that this worker knows.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    states: Vec<Option<JobState>>,
    /// Places that are empty.
    free: Vec<Index>,
    slots: BTreeMap<u16, Slot>,
    texts: Texts,
    sessions: Sessions,
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

    fn insert(&mut self, print: u16, job: Index) {
        if self.jobs.len() == self.jobs.capacity() {
            // Not twice as much, as a vector would take: there are thousands of these. And in few sizes, so that the room that one of them leaves
            // is another's.
            let more = self.jobs.len().clamp(4, 64);
            self.prints.reserve_exact(more);
            self.jobs.reserve_exact(more);
        }
        let place = self.prints.partition_point(|other| *other <= print);
        self.prints.insert(place, print);
        self.jobs.insert(place, job);
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
        // What jobs have left behind would be there for ever.
        assert!(!self.slots.is_empty() || self.sessions.is_empty(), "no job is left, and a session is");
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
        let is_named =
            |job: &&Index| self.at(**job).is_some_and(|state| state.text(&self.texts).name == name.as_str());
        slot.alike(print(name)).iter().find(is_named).copied()
    }

    pub(super) fn at(&self, job: Index) -> Option<&JobState> {
        self.states.get(job as usize)?.as_ref()
    }

    pub(super) fn at_mut(&mut self, job: Index) -> Option<JobMut<'_>> {
        let Self { states, texts, sessions, .. } = self;
        Some(JobMut { state: states.get_mut(job as usize)?.as_mut()?, texts, sessions })
    }

    pub(super) fn get(&self, name: &JobName) -> Option<&JobState> {
        self.at(self.find(name)?)
    }

    pub(super) fn get_mut(&mut self, name: &JobName) -> Option<JobMut<'_>> {
        self.at_mut(self.find(name)?)
    }

    /// The name of the job at a place.
    pub(super) fn name_at(&self, job: Index) -> Option<JobName> {
        self.at(job).map(|state| state.name(&self.texts))
    }

    /// What a job executes.
    pub(super) fn work_of(&self, state: &JobState) -> Work {
        state.work(&self.texts)
    }

    /// A job's command as open runs carry it.
    pub(super) fn cut_command_of(&self, state: &JobState) -> String {
        state.cut_command(&self.texts)
    }

    /// Takes a job's definition; of a job that was not known too.
    pub(super) fn define(&mut self, seen: JobSeen, now: Timestamp, schedules: &mut Schedules) -> JobMut<'_> {
        let name = seen.name.clone();
        let known = self.find(&name);
        let before = known.and_then(|job| self.at(job)?.definition());
        let (definition, command) = Definition::new(seen, before.as_ref(), now, schedules);
        let job = known.unwrap_or_else(|| self.add(&name));
        self.set_text(job, Text { name: name.as_str(), command: &command });
        self.move_texts();
        let mut state = self.at_mut(job).expect("it was known, or has just been added");
        state.set_definition(Some(definition));
        state
    }

    /// Room for a job that is not known, whose text is to follow.
    fn add(&mut self, name: &JobName) -> Index {
        let slot = keys::slot(name);
        let job = self.free.pop().unwrap_or_else(|| {
            self.states.push(None);
            Index::try_from(self.states.len() - 1).expect("their states fill the memory before")
        });
        self.slots.entry(slot).or_default().insert(print(name), job);
        self.states[job as usize] = Some(JobState::new(slot));
        job
    }

    /// Forgets a job; false: there was none.
    pub(super) fn remove(&mut self, name: &JobName) -> bool {
        let Some(job) = self.find(name) else { return false };
        let Some(mut state) = self.states[job as usize].take() else { return false };
        let slot = state.slot;
        if let Some(of_slot) = self.slots.get_mut(&slot) {
            if let Some(place) = of_slot.jobs.iter().position(|other| *other == job) {
                of_slot.jobs.remove(place);
                of_slot.prints.remove(place);
            }
            if of_slot.jobs.is_empty() {
                self.slots.remove(&slot);
            }
        }
        self.free.push(job);
        let (texts, sessions) = (&self.texts, &mut self.sessions);
        JobMut { state: &mut state, texts, sessions }.set_mark(MarkView::Unknown);
        if let Some(position) = state.position() {
            self.texts.waste(position);
            self.move_texts();
        }
        true
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Index, &JobState)> {
        (0..).zip(&self.states).filter_map(|(job, state)| Some((job, state.as_ref()?)))
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &JobState> {
        self.states.iter().flatten()
    }

    /// But for what they share: see [`Self::for_each_mut`].
    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut JobState> {
        self.states.iter_mut().flatten()
    }

    /// Goes through all jobs.
    pub(super) fn for_each_mut(&mut self, mut change: impl FnMut(Index, JobMut<'_>)) {
        let Self { states, texts, sessions, .. } = self;
        for (job, state) in (0..).zip(states) {
            if let Some(state) = state {
                change(job, JobMut { state, texts, sessions });
            }
        }
    }

    /// The names of the jobs of which this holds: of all, that would be much memory.
    pub(super) fn names_of(&self, is_meant: impl Fn(&JobState) -> bool) -> Vec<JobName> {
        self.values().filter(|state| is_meant(state)).map(|state| state.name(&self.texts)).collect()
    }

    /// The places of the jobs of a slot.
    pub(super) fn in_slot(&self, slot: u16) -> impl Iterator<Item = Index> {
        self.slots.get(&slot).into_iter().flat_map(|slot| slot.jobs.iter().copied())
    }

    // --- texts ------------------------------------------------------------------------------------------------------

    fn set_text(&mut self, job: Index, text: Text<'_>) {
        let Some(state) = self.states.get_mut(job as usize).and_then(Option::as_mut) else { return };
        if state.text(&self.texts) == text {
            return;
        }
        if let Some(before) = state.set_text(self.texts.put(text), text) {
            self.texts.waste(before);
        }
    }

    /// Moves the texts that are left in pieces of which more than half is waste.
    fn move_texts(&mut self) {
        while let Some(piece) = self.texts.next_wasteful() {
            for position in self.texts.positions(piece) {
                let Text { name, command } = self.texts.get(position);
                let (name, command) = (name.to_owned(), command.to_owned());
                let job = JobName::parse(&name).ok().and_then(|name| self.find(&name));
                let Some(state) = job.and_then(|job| self.states.get_mut(job as usize)?.as_mut()) else {
                    continue;
                };
                if state.position() == Some(position) {
                    let text = Text { name: &name, command: &command };
                    state.set_text(self.texts.put(text), text);
                }
            }
            self.texts.clear(piece);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use common::domain::job::Job;

    use super::*;

    fn name(n: usize) -> JobName {
        JobName::parse(&format!("job-{n}")).unwrap()
    }

    fn define(jobs: &mut Jobs, schedules: &mut Schedules, name: &JobName, command: &str) {
        let json = serde_json::json!({ "command": command, "cronExpr": "* * * * *" }).to_string();
        let job = Job::from_stored(name.as_str(), json.as_bytes()).map(Arc::new);
        let seen = JobSeen { name: name.clone(), job, create_revision: 1, mod_revision: 1 };
        jobs.define(seen, Timestamp::ZERO, schedules);
    }

    #[test]
    fn jobs_are_found_by_name_and_by_slot_until_they_are_removed_and_their_places_are_used_again() {
        let (mut jobs, mut schedules) = (Jobs::default(), Schedules::new());
        let all = 20_000; // some of one slot have equal prints
        for n in 0..all {
            define(&mut jobs, &mut schedules, &name(n), "true");
            assert_eq!(jobs.name_at(jobs.find(&name(n)).unwrap()), Some(name(n)));
        }
        for n in (0..all).step_by(2) {
            assert!(jobs.get(&name(n)).is_some() && jobs.remove(&name(n)));
            assert!(jobs.get(&name(n)).is_none() && !jobs.remove(&name(n)));
        }
        for n in (1..all).step_by(2) {
            let index = jobs.find(&name(n)).unwrap();
            assert_eq!(jobs.name_at(index), Some(name(n)));
            assert!(jobs.in_slot(keys::slot(&name(n))).any(|other| other == index));
        }
        for n in all..all + all / 2 {
            define(&mut jobs, &mut schedules, &name(n), "true");
        }
        assert_eq!((jobs.states.len(), jobs.values().count()), (all, all));
        for n in 0..all + all / 2 {
            jobs.remove(&name(n));
        }
        assert!(jobs.is_empty() && jobs.values().next().is_none());
    }

    #[test]
    fn names_and_commands_are_the_jobs_own_whatever_is_edited_and_removed() {
        let (mut jobs, mut schedules) = (Jobs::default(), Schedules::new());
        let mut known = BTreeMap::new();
        let mut dice = 1_u64;
        let mut most = 0;
        for round in 0..30_000 {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let name = name(usize::try_from(dice >> 54).unwrap());
            if dice >> 40 & 3 == 0 {
                assert_eq!(jobs.remove(&name), known.remove(&name).is_some());
            } else {
                let command = "c".repeat(usize::try_from(dice >> 30 & 255).unwrap());
                define(&mut jobs, &mut schedules, &name, &command);
                known.insert(name, command);
            }
            most = most.max(jobs.texts.held());
            if round % 1_000 == 0 {
                for (name, command) in &known {
                    let text = jobs.get(name).unwrap().text(&jobs.texts);
                    assert_eq!(text, Text { name: name.as_str(), command });
                }
                assert_eq!(jobs.len(), known.len());
            }
        }
        // Some 770 jobs at a time, of 137 bytes.
        assert!(most < 400_000, "{most} bytes are held");
        for name in known.keys() {
            assert!(jobs.remove(name));
        }
        assert!(jobs.is_empty() && jobs.texts.held() <= 1 << 15);
    }
}
