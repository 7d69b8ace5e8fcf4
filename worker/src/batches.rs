//! What waits to be sent to the store, grouped: many claims, or many locks to be freed, go in one transaction (design P1). While one is on its
//! way the next one fills, so that a busy store gets few large requests and an idle one is asked at once.

use std::collections::VecDeque;
use std::time::Duration;

use common::clock::Stopwatch;

/// Something that is sent together with others of its kind.
pub(crate) trait Batched {
    /// It goes by itself: it may well be refused for a reason of its own, and with it all that it was sent with.
    fn is_alone(&self) -> bool {
        false
    }
    /// It may go in one request with `other`.
    fn goes_with(&self, other: &Self) -> bool;
}

/// Bounds of what is on its way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Members of a batch.
    pub(crate) members: usize,
    /// Batches in flight: more add latency, not throughput.
    pub(crate) batches: usize,
    /// And of those that go by themselves.
    pub(crate) alone: usize,
}

/// A batch to be sent now. Whoever sends it says so when it is answered.
#[derive(Debug)]
pub(crate) struct Batch<T> {
    /// Never empty.
    pub(crate) members: Vec<T>,
    alone: bool,
    waited_since: Stopwatch,
}

/// What is said of a batch when its answer has come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answered {
    alone: bool,
    waited_since: Stopwatch,
}

impl<T> Batch<T> {
    /// What to give back once it is answered.
    pub(crate) fn ticket(&self) -> Answered {
        Answered { alone: self.alone, waited_since: self.waited_since }
    }
}

/// A queue that groups.
#[derive(Debug)]
pub(crate) struct Batches<T> {
    bounds: Bounds,
    together: VecDeque<(T, Stopwatch)>,
    alone: VecDeque<(T, Stopwatch)>,
    batches_in_flight: usize,
    alone_in_flight: usize,
}

impl<T: Batched> Batches<T> {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            together: VecDeque::new(),
            alone: VecDeque::new(),
            batches_in_flight: 0,
            alone_in_flight: 0,
        }
    }

    /// Takes one more.
    pub(crate) fn put(&mut self, member: T) {
        let queue = if member.is_alone() { &mut self.alone } else { &mut self.together };
        queue.push_back((member, Stopwatch::start()));
    }

    /// How many wait to be sent.
    pub(crate) fn waiting(&self) -> usize {
        self.together.len() + self.alone.len()
    }

    /// The next batch that may be sent now.
    pub(crate) fn next(&mut self) -> Option<Batch<T>> {
        if self.alone_in_flight < self.bounds.alone
            && let Some((member, waited_since)) = self.alone.pop_front()
        {
            self.alone_in_flight += 1;
            return Some(Batch { members: vec![member], alone: true, waited_since });
        }
        if self.batches_in_flight == self.bounds.batches {
            return None;
        }
        let (first, waited_since) = self.together.pop_front()?;
        let mut members = vec![first];
        while members.len() < self.bounds.members
            && let Some((next, _)) =
                self.together.pop_front_if(|(next, _)| members.iter().all(|member| member.goes_with(next)))
        {
            members.push(next);
        }
        self.batches_in_flight += 1;
        Some(Batch { members, alone: false, waited_since })
    }

    /// A batch was answered, or will never be. Says how long its oldest member took from being put to the answer.
    pub(crate) fn answered(&mut self, ticket: Answered) -> Duration {
        let in_flight = if ticket.alone { &mut self.alone_in_flight } else { &mut self.batches_in_flight };
        *in_flight = in_flight.saturating_sub(1);
        ticket.waited_since.elapsed()
    }

    /// Everything that was not sent, given back: the store does not answer, or it is another one.
    pub(crate) fn withdraw(&mut self) -> Vec<T> {
        self.alone.drain(..).chain(self.together.drain(..)).map(|(member, _)| member).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (session, number, alone)
    #[derive(Clone, Copy, PartialEq, Debug)]
    struct Member(u8, u8, bool);

    impl Batched for Member {
        fn is_alone(&self) -> bool {
            self.2
        }
        fn goes_with(&self, other: &Self) -> bool {
            self.0 == other.0
        }
    }

    fn batches() -> Batches<Member> {
        Batches::new(Bounds { members: 3, batches: 1, alone: 2 })
    }

    fn numbers(batch: Option<Batch<Member>>) -> Vec<u8> {
        batch.map_or_else(Vec::new, |batch| batch.members.iter().map(|member| member.1).collect())
    }

    #[test]
    fn the_first_goes_at_once_and_the_others_together_when_it_is_answered() {
        let mut queue = batches();
        queue.put(Member(1, 1, false));
        let first = queue.next().unwrap();
        for number in 2..=5 {
            queue.put(Member(1, number, false));
        }
        assert!(queue.next().is_none(), "one batch is on its way");
        queue.answered(first.ticket());
        assert_eq!(numbers(queue.next()), [2, 3, 4]);
    }

    #[test]
    fn those_that_go_alone_neither_wait_for_batches_nor_join_them() {
        let mut queue = batches();
        queue.put(Member(1, 1, false));
        queue.put(Member(1, 2, true));
        queue.put(Member(1, 3, false));
        assert_eq!(numbers(queue.next()), [2]);
        assert_eq!(numbers(queue.next()), [1, 3]);
        queue.put(Member(1, 4, true));
        queue.put(Member(1, 5, true));
        assert_eq!(numbers(queue.next()), [4]);
        assert!(queue.next().is_none(), "their bound is two");
    }

    #[test]
    fn a_batch_is_of_one_session() {
        let mut queue = batches();
        queue.put(Member(1, 1, false));
        queue.put(Member(2, 2, false));
        let first = queue.next().unwrap();
        assert_eq!(first.members, [Member(1, 1, false)]);
        queue.answered(first.ticket());
        assert_eq!(numbers(queue.next()), [2]);
    }

    #[test]
    fn what_is_withdrawn_was_never_sent() {
        let mut queue = batches();
        for number in 1..=4 {
            queue.put(Member(1, number, false));
        }
        assert_eq!(numbers(queue.next()), [1, 2, 3]);
        queue.put(Member(1, 5, true));
        let mut back: Vec<u8> = queue.withdraw().iter().map(|member| member.1).collect();
        back.sort_unstable();
        assert_eq!(back, [4, 5]);
        assert!(queue.next().is_none());
    }
}
