//! How many records the record store is sent at once.

use std::time::Duration;

/// At most. What was sent and not answered is compared one by one when it is sent again, which some stores do by reading all that they have
/// (FerretDB): of that there must not be much.
const AT_ONCE_MAX: usize = 500;
/// A store that takes longer for what it is sent at once is sent fewer, long before it takes so long that no answer comes.
const SLOW: Duration = Duration::from_secs(1);

/// Half as many records come through at half the rate where a call costs the same whatever is sent, and at the same rate where each record does.
const SAME_RATE: f64 = 0.75;

/// What a store has shown that it takes. It is remembered from batch to batch and grows slowly: each attempt that gets no answer costs a time
/// limit, and what it has stored by then is compared again.
pub(crate) struct Pace {
    at_once: usize,
    /// The answer before, if it was slow: how many records, and how long it took.
    slow: Option<(usize, Duration)>,
}

impl Pace {
    /// For a store of which nothing is known.
    pub(crate) fn new() -> Self {
        Self { at_once: AT_ONCE_MAX, slow: None }
    }

    /// So many go at once, one at least.
    pub(crate) fn at_once(&self) -> usize {
        self.at_once
    }

    /// The store took so long for so many.
    pub(crate) fn stored(&mut self, count: usize, took: Duration) {
        let before = self.slow.take();
        if took <= SLOW {
            self.at_once = (self.at_once + self.at_once / 8 + 1).min(AT_ONCE_MAX);
            return;
        }
        self.slow = Some((count, took));
        self.at_once = match before {
            // Fewer take as long as more did: a call costs what it costs, and more at once get through sooner.
            Some((more, longer)) if rate(count, took) < rate(more, longer) * SAME_RATE => {
                (more * 2).min(AT_ONCE_MAX)
            }
            _ if count > 1 => count / 2,
            _ => 2, // one is slow: whether two are slower is not known
        };
    }

    /// The store did not take so many, or not in time: the same number again would be as slow again, for ever.
    pub(crate) fn failed(&mut self, count: usize) {
        self.slow = None;
        self.at_once = (count / 2).max(1);
    }
}

fn rate(count: usize, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What goes at once to a store that takes so many ms for so many, call by call.
    fn sent(pace: &mut Pace, calls: usize, ms: impl Fn(usize) -> u64) -> Vec<usize> {
        let call = |_| {
            let count = pace.at_once();
            pace.stored(count, Duration::from_millis(ms(count)));
            count
        };
        (0..calls).map(call).collect()
    }

    #[test]
    fn a_store_to_which_each_record_costs_the_same_is_sent_what_it_takes_within_a_second() {
        let sent = sent(&mut Pace::new(), 40, |count| 20 * count as u64);
        assert_eq!(sent[..5], [500, 250, 125, 62, 31]);
        assert!(sent[5..].iter().all(|&count| (20..60).contains(&count)), "{sent:?}");
    }

    #[test]
    fn a_store_to_which_a_call_costs_the_same_is_sent_many_and_from_few_on_more_and_more() {
        for first in [500, 8, 1] {
            let mut pace = Pace { at_once: first, slow: None };
            let _learnt = sent(&mut pace, 40, |_| 2_000);
            let sent = sent(&mut pace, 40, |_| 2_000);
            assert!(sent.iter().sum::<usize>() >= 40 * 300, "{sent:?}");
        }
    }

    #[test]
    fn what_fails_goes_in_halves_and_what_works_well_in_ever_more() {
        let mut pace = Pace::new();
        for _ in 0..12 {
            pace.failed(pace.at_once());
        }
        assert_eq!(pace.at_once(), 1);
        let sent = sent(&mut pace, 60, |_| 5);
        assert_eq!((sent[..6].to_vec(), sent[59]), (vec![1, 2, 3, 4, 5, 6], 500));
    }
}
