//! When to look at which job: a heap in which each job's place is known, so that its time can be changed. It costs fourteen bytes a job, and
//! like the jobs themselves it lies in few large pieces of memory.

use common::clock::Timestamp;

use super::jobs::Index;
use super::packed::Time;

/// The place of a job that has no time.
const NOWHERE: u32 = u32::MAX;

/// The times of jobs, the earliest first; of equal times the job with the lower index.
#[derive(Debug, Default)]
pub(super) struct Timers {
    heap: Vec<Index>,
    /// By job: its place in the heap, and its time.
    places: Vec<u32>,
    times: Vec<Time>,
}

impl Timers {
    /// The earliest time, and whose it is.
    pub(super) fn first(&self) -> Option<(Timestamp, Index)> {
        self.heap.first().map(|job| self.order(*job))
    }

    /// Sets, changes or (`None`) takes away a job's time. A time thousands of years away is the nearest that can be kept: a job that is looked at
    /// too early is looked at again.
    pub(super) fn set(&mut self, job: Index, at: Option<Timestamp>) {
        let index = job as usize;
        if index >= self.places.len() {
            if at.is_none() {
                return;
            }
            self.places.resize(index + 1, NOWHERE);
            self.times.resize(index + 1, Time::ZERO);
        }
        let place = self.places[index];
        match at {
            Some(at) => {
                self.times[index] = Time::nearest(at.ms());
                if place == NOWHERE {
                    self.heap.push(job);
                    self.rise(self.heap.len() - 1);
                } else {
                    let place = self.rise(place as usize);
                    self.sink(place);
                }
            }
            None if place == NOWHERE => {}
            None => {
                self.places[index] = NOWHERE;
                let last = self.heap.pop().expect("a job that has a place is in the heap");
                if last != job {
                    self.put(place as usize, last);
                    let place = self.rise(place as usize);
                    self.sink(place);
                }
            }
        }
    }

    /// Takes all times away.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// A job's time.
    #[cfg(test)]
    pub(super) fn get(&self, job: Index) -> Option<Timestamp> {
        let place = self.places.get(job as usize)?;
        (*place != NOWHERE).then(|| self.times[job as usize].time())
    }

    /// How many times are not after this one.
    #[cfg(test)]
    pub(super) fn due(&self, now: Timestamp) -> usize {
        self.heap.iter().filter(|job| self.order(**job).0 <= now).count()
    }

    fn order(&self, job: Index) -> (Timestamp, Index) {
        (self.times[job as usize].time(), job)
    }

    fn put(&mut self, place: usize, job: Index) {
        self.heap[place] = job;
        self.places[job as usize] = u32::try_from(place).expect("there are no more places than jobs");
    }

    /// Moves what stands at a place up to where it belongs, and says where that is.
    fn rise(&mut self, mut place: usize) -> usize {
        let job = self.heap[place];
        while place > 0 {
            let above = (place - 1) / 2;
            if self.order(self.heap[above]) <= self.order(job) {
                break;
            }
            self.put(place, self.heap[above]);
            place = above;
        }
        self.put(place, job);
        place
    }

    /// Moves what stands at a place down to where it belongs.
    fn sink(&mut self, mut place: usize) {
        let job = self.heap[place];
        loop {
            let below = 2 * place + 1;
            let lower = [below, below + 1].into_iter().filter(|below| *below < self.heap.len());
            let Some(least) = lower.min_by_key(|below| self.order(self.heap[*below])) else { break };
            if self.order(job) <= self.order(self.heap[least]) {
                break;
            }
            self.put(place, self.heap[least]);
            place = least;
        }
        self.put(place, job);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_earliest_comes_first_whatever_is_set_changed_and_taken_away() {
        let (mut timers, mut known) = (Timers::default(), BTreeSet::new());
        let mut dice = 1_u64;
        for _ in 0..20_000 {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let job = u32::try_from(dice >> 57).unwrap();
            let at = Timestamp::from_ms(i64::try_from(dice >> 20 & 63).unwrap());
            if let Some(old) = timers.get(job) {
                assert!(known.remove(&(old, job)));
            }
            let at = (dice >> 40 & 3 != 0).then_some(at);
            known.extend(at.map(|at| (at, job)));
            timers.set(job, at);
            assert_eq!(timers.first(), known.first().copied());
        }
        while let Some((at, job)) = timers.first() {
            assert!(known.remove(&(at, job)));
            timers.set(job, None);
        }
        assert!(known.is_empty());
    }

    #[test]
    fn a_time_that_cannot_be_kept_stays_on_its_side_of_all_others() {
        let mut timers = Timers::default();
        let now = Timestamp::from_ms(1_800_000_000_000);
        for (job, at) in [(0, i64::MAX), (1, i64::MIN), (2, now.ms())] {
            timers.set(job, Some(Timestamp::from_ms(at)));
        }
        assert!(timers.first().is_some_and(|(at, job)| at < now && job == 1));
        timers.set(1, None);
        assert_eq!(timers.first(), Some((now, 2)));
        timers.set(2, None);
        assert!(timers.first().is_some_and(|(at, job)| at > now && job == 0));
    }
}
