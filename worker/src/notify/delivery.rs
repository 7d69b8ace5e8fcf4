//! Brings messages to a channel: one after the other, again until it takes them, not more a minute than it may get.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use common::clock::{self, Clock, Stopwatch};
use common::ids::backoff;
use tokio::sync::Notify;

use super::Counters;
use super::channels::{Problem, Sender};
use super::message::{Letter, Message};
use super::outbox::{Outbox, Outgoing};
use crate::retries::Retries;

/// Messages that wait for one channel: beyond, the oldest is given up. It is what a channel that is away for a day may be told at most.
const WAITING_MAX: usize = 1_000;
/// A message that is older is given up, in ms.
const AGE_MAX_MS: i64 = 24 * 3600 * 1000;
/// A channel that does not take one message, although it takes others, is asked so often.
const REFUSALS_MAX: u32 = 3;
/// Pauses between attempts double from the first to the second, in ms.
const RETRY_MIN_MS: u64 = 500;
const RETRY_MAX_MS: u64 = 60_000;
/// The time in which messages are counted.
const WINDOW: Duration = Duration::from_secs(60);

/// What waits for a channel.
#[derive(Debug)]
pub(super) struct Queue {
    name: String,
    waiting: Mutex<VecDeque<Outgoing>>,
    came: Notify,
    outbox: Outbox,
    counters: Arc<Counters>,
}

impl Queue {
    pub(super) fn new(name: String, outbox: Outbox, counters: Arc<Counters>) -> Self {
        Self { name, waiting: Mutex::default(), came: Notify::new(), outbox, counters }
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Outgoing>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a message that is on disk.
    pub(super) fn put(&self, outgoing: Outgoing) {
        let mut waiting = self.waiting();
        waiting.push_back(outgoing);
        self.counters.waiting.fetch_add(1, Relaxed);
        let dropped = if waiting.len() > WAITING_MAX { waiting.pop_front() } else { None };
        drop(waiting);
        if let Some(dropped) = dropped {
            self.give_up(&dropped, "too many wait for its channel");
        }
        self.came.notify_one();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting().is_empty()
    }

    fn give_up(&self, outgoing: &Outgoing, why: &str) {
        let (job, kind, at) =
            (&outgoing.message.job, outgoing.message.told.kind.as_str(), outgoing.message.at);
        tracing::error!(channel = %self.name, %job, kind, %at, why, "notification given up");
        self.counters.dropped.fetch_add(1, Relaxed);
        self.done(outgoing);
    }

    fn done(&self, outgoing: &Outgoing) {
        self.counters.waiting.fetch_sub(1, Relaxed);
        if let Err(why) = self.outbox.done(outgoing) {
            tracing::warn!(channel = %self.name, %why, "a notification stays on disk: it is sent again after a restart");
        }
    }

    /// Delivers what comes, for as long as the worker lives.
    pub(super) async fn deliver(&self, sender: Sender, per_minute: u32, clock: Arc<dyn Clock>) {
        let retries = Retries::new(format!("notifications not taken by channel {}", self.name));
        let started = Stopwatch::start();
        let (mut pace, mut failures, mut refusals) = (Pace::new(per_minute), 0, 0);
        loop {
            let Some(mut letter) = self.next(clock.as_ref()) else {
                self.came.notified().await;
                continue;
            };
            if let Some(pause) = pace.pause(started.elapsed()) {
                clock::sleep(pause).await;
                // All that has come meanwhile goes together.
                letter = self.waiting().iter().cloned().collect();
            }
            if letter.is_empty() {
                continue;
            }
            let messages: Vec<&Message> = letter.iter().map(|outgoing| &outgoing.message).collect();
            pace.note(started.elapsed());
            match sender.send(&Letter(&messages)).await {
                Ok(()) => {
                    retries.worked();
                    (failures, refusals) = (0, 0);
                    self.counters.sent.fetch_add(letter.len() as u64, Relaxed);
                    // If this process dies here, its next one sends them again, under the same id.
                    self.take(&letter).iter().for_each(|outgoing| self.done(outgoing));
                }
                Err(Problem::Refused(why)) if refusals + 1 >= REFUSALS_MAX => {
                    refusals = 0;
                    for outgoing in self.take(&letter) {
                        self.give_up(&outgoing, &why);
                    }
                }
                Err(problem) => {
                    refusals += u32::from(matches!(problem, Problem::Refused(_)));
                    failures += 1;
                    self.counters.failed.fetch_add(1, Relaxed);
                    retries.failed(&problem);
                    clock::sleep(backoff(failures - 1, RETRY_MIN_MS, RETRY_MAX_MS)).await;
                }
            }
        }
    }

    /// The first message, which stays until it is delivered. What is too old is given up.
    fn next(&self, clock: &dyn Clock) -> Option<Vec<Outgoing>> {
        loop {
            let mut waiting = self.waiting();
            let old = waiting.pop_front_if(|first| clock.now().ms_since(first.since) > AGE_MAX_MS);
            let first = waiting.front().cloned();
            drop(waiting);
            match old {
                Some(old) => self.give_up(&old, "its channel has not taken it for a day"),
                None => return first.map(|first| vec![first]),
            }
        }
    }

    /// Takes away what was sent, as far as it was not given up meanwhile.
    fn take(&self, letter: &[Outgoing]) -> Vec<Outgoing> {
        let mut taken = Vec::new();
        self.waiting().retain(|outgoing| {
            let sent = letter.iter().any(|sent| sent.message.id == outgoing.message.id);
            if sent {
                taken.push(outgoing.clone());
            }
            !sent
        });
        taken
    }
}

/// How fast a channel is told: at most so many messages in any minute.
#[derive(Debug)]
struct Pace {
    most: usize,
    sent: VecDeque<Duration>,
}

impl Pace {
    fn new(per_minute: u32) -> Self {
        Self { most: usize::try_from(per_minute).unwrap_or(usize::MAX).max(1), sent: VecDeque::new() }
    }

    /// How long the next has to wait; `None` = not at all.
    fn pause(&mut self, now: Duration) -> Option<Duration> {
        while self.sent.front().is_some_and(|sent| now.saturating_sub(*sent) >= WINDOW) {
            self.sent.pop_front();
        }
        let first = self.sent.front().filter(|_| self.sent.len() >= self.most)?;
        Some((*first + WINDOW).saturating_sub(now))
    }

    fn note(&mut self, now: Duration) {
        self.sent.push_back(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_any_minute_a_channel_gets_no_more_than_it_may() {
        let at = Duration::from_secs;
        let mut pace = Pace::new(3);
        for second in [0, 10, 20] {
            assert_eq!(pace.pause(at(second)), None);
            pace.note(at(second));
        }
        assert_eq!(pace.pause(at(20)), Some(at(40)));
        assert_eq!(pace.pause(at(59)), Some(at(1)));
        assert_eq!(pace.pause(at(60)), None);
        pace.note(at(60));
        assert_eq!(pace.pause(at(61)), Some(at(9)));
    }
}
