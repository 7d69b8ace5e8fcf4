//! What is told, decided from what was told before: a pure function of the kept state and of what happened. Whoever wins the compare-and-swap
//! tells; all others see that it was told.
//!
//! | What came between | Why it is told once |
//! |---|---|
//! | two workers see one end (two survivors, a record that comes again) | the second finds its record in the outage |
//! | the one that decided dies before its messages are on its disk | its next process asks again under the same name, and finds what it had decided |
//! | the answer to its swap is lost | the same |
//! | an end that is older than a success comes late | the newest end says how the job is |
//! | the real record takes the place of `lost` | it has the same id: a failure is known already, a success ends the outage |

use std::collections::BTreeSet;

use common::clock::Timestamp;
use common::domain::job::JobName;
use common::domain::notify::{Decided, Kind, Notified, Occasion, Outage, Told};
use serde::{Deserialize, Serialize};

/// An outage that goes on is told again after this, in ms.
pub(super) const REMIND_MS: i64 = 3_600_000;
/// Workers that begin to wait for a job within this mean the same, in ms.
const WATCHED_ONCE_MS: i64 = 60_000;
/// What was decided is kept for so many: a worker asks for it again at most for what was in its hands when it died.
const DECIDED_MAX: usize = 8;

/// Something that may have to be told: the end of a run in few words, or a silence.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Happened {
    pub(crate) job: JobName,
    pub(crate) what: What,
    /// The record's id; empty where there is none.
    #[serde(default)]
    pub(crate) record: String,
    /// When the run ended.
    pub(crate) at: Timestamp,
    /// Runs that did not succeed and were not told before, this one the last of them; of a success, those before it.
    pub(crate) count: u64,
    /// Of its record, for whoever is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) run: Option<RunDigest>,
}

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum What {
    /// It did not succeed.
    Trouble(Occasion),
    Succeeded,
    /// From now on its success is waited for, whatever was before.
    Watched,
    /// It has not succeeded for so many seconds.
    Silent(u32),
}

/// What is told of a record.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RunDigest {
    pub(crate) run_id: Option<String>,
    pub(crate) plan_time: Timestamp,
    pub(crate) start_time: Timestamp,
    pub(crate) end_time: Timestamp,
    pub(crate) status: String,
    pub(crate) err: String,
    pub(crate) exit_code: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) worker: Option<String>,
    pub(crate) attempt: Option<u32>,
    /// The end of what it printed.
    pub(crate) output: String,
}

/// Takes what one worker saw together of one job, under the name `by`, and answers the new state and what is to be told. Asked again under the
/// same name it answers the same.
pub(crate) fn apply(
    before: &Notified,
    by: &str,
    happened: &[Happened],
    now: Timestamp,
) -> (Notified, Vec<Told>) {
    if let Some(decided) = before.decided.iter().find(|decided| decided.by == by) {
        return (before.clone(), decided.told.clone());
    }
    let (mut state, mut told) = (before.clone(), Vec::new());
    for (index, happened) in happened.iter().enumerate() {
        match happened.what {
            What::Trouble(occasion) => told.extend(on_trouble(&mut state, occasion, index, happened, now)),
            What::Succeeded => told.extend(on_success(&mut state, index, happened)),
            What::Watched => on_watched(&mut state, happened.at),
            What::Silent(seconds) => told.extend(on_silence(&mut state, seconds, index, now)),
        }
    }
    if !told.is_empty() {
        state.decided.push(Decided { by: by.to_owned(), told: told.clone() });
        let old = state.decided.len().saturating_sub(DECIDED_MAX);
        state.decided.drain(..old);
    }
    (state, told)
}

fn on_trouble(
    state: &mut Notified,
    occasion: Occasion,
    index: usize,
    happened: &Happened,
    now: Timestamp,
) -> Option<Told> {
    let kind = Kind::from(occasion);
    let Some(outage) = &mut state.outage else {
        if state.succeeded.is_some_and(|succeeded| succeeded >= happened.at) {
            return None; // it has succeeded since
        }
        state.outage = Some(Outage {
            since: happened.at,
            last_at: happened.at,
            last_record: happened.record.clone(),
            failures: happened.count,
            counted_at: now,
            told_at: now,
            kinds: BTreeSet::from([occasion]),
        });
        let (since, failures) = (happened.at, happened.count);
        return Some(Told::new(kind, index, since, failures));
    };
    if outage.last_record == happened.record {
        return None; // the same end again, or what is really known of one that was `lost`
    }
    outage.failures += happened.count;
    outage.counted_at = now;
    if happened.at >= outage.last_at {
        (outage.last_at, outage.last_record) = (happened.at, happened.record.clone());
    }
    let reminder = !outage.kinds.insert(occasion);
    if reminder && now.ms_since(outage.told_at) < REMIND_MS {
        return None;
    }
    outage.told_at = now;
    let (since, failures) = (outage.since, outage.failures);
    Some(Told { reminder, ..Told::new(kind, index, since, failures) })
}

fn on_success(state: &mut Notified, index: usize, happened: &Happened) -> Option<Told> {
    state.succeeded = state.succeeded.max(Some(happened.at));
    let ends = |outage: &mut Outage| happened.at >= outage.last_at || happened.record == outage.last_record;
    let outage = state.outage.take_if(ends);
    let silence = std::mem::take(&mut state.silence_told_seconds);
    let (since, failures, after) = match outage {
        Some(outage) => (outage.since, outage.failures + happened.count, outage.kinds),
        None if silence > 0 => (happened.at, 0, BTreeSet::new()),
        None => return None,
    };
    Some(Told { after, after_silence: silence > 0, ..Told::new(Kind::Recovery, index, since, failures) })
}

/// All workers see a job for the first time, or again: one of them is enough.
fn on_watched(state: &mut Notified, at: Timestamp) {
    if state.watched_since.is_none_or(|since| at.ms_since(since) >= WATCHED_ONCE_MS) {
        state.watched_since = Some(at);
        state.silence_told_seconds = 0;
    }
}

fn on_silence(state: &mut Notified, seconds: u32, index: usize, now: Timestamp) -> Option<Told> {
    let since = silent_since(state)?;
    if state.silence_told_seconds >= seconds || now.ms_since(since) <= i64::from(seconds) * 1000 {
        return None; // another worker told it, or has seen it succeed
    }
    state.silence_told_seconds = seconds;
    let failures = state.outage.as_ref().map_or(0, |outage| outage.failures);
    Some(Told::new(Kind::NotSucceeded, index, since, failures))
}

/// From when on a job's success is waited for; `None` = nobody has begun to.
pub(super) fn silent_since(state: &Notified) -> Option<Timestamp> {
    state.watched_since.map(|watched| watched.max(state.succeeded.unwrap_or(watched)))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use super::*;

    /// No two ask under one name.
    static NEXT: AtomicU64 = AtomicU64::new(0);

    fn happened(what: What, at: i64) -> Happened {
        let job = JobName::parse("a").unwrap();
        let count = u64::from(what != What::Succeeded);
        Happened { job, what, record: format!("a/{at}/1"), at: Timestamp::from_ms(at), count, run: None }
    }

    fn failed(at: i64) -> Happened {
        happened(What::Trouble(Occasion::Failure), at)
    }

    fn succeeded(at: i64) -> Happened {
        happened(What::Succeeded, at)
    }

    /// Applies one after the other, each by its own worker at its own time; answers what was told.
    fn told(all: &[Happened]) -> Vec<(Kind, u64, bool)> {
        told_from(&mut Notified::default(), all)
    }

    fn told_from(state: &mut Notified, all: &[Happened]) -> Vec<(Kind, u64, bool)> {
        let mut messages = Vec::new();
        for one in all {
            let by = format!("w/{}", NEXT.fetch_add(1, Relaxed));
            let (after, told) = apply(state, &by, std::slice::from_ref(one), one.at);
            *state = after;
            messages.extend(told.iter().map(|told| (told.kind, told.failures, told.reminder)));
        }
        messages
    }

    #[test]
    fn an_outage_is_told_once_and_its_end_once() {
        let second = 1000;
        let mut all: Vec<_> = (1..600).map(|n| failed(n * second)).collect();
        all.extend((600..700).map(|n| succeeded(n * second)));
        assert_eq!(told(&all), [(Kind::Failure, 1, false), (Kind::Recovery, 599, false)]);
        assert_eq!(told(&[succeeded(1), succeeded(2)]), [], "a job that succeeds is nobody's news");
    }

    #[test]
    fn an_outage_that_lasts_is_told_again_each_hour_with_the_number_of_failures() {
        let all: Vec<_> = (0..150).map(|n| failed(1 + n * 60_000)).collect();
        let hours = [(Kind::Failure, 1, false), (Kind::Failure, 61, true), (Kind::Failure, 121, true)];
        assert_eq!(told(&all), hours);
    }

    #[test]
    fn the_first_of_each_kind_in_an_outage_is_told() {
        let lost = happened(What::Trouble(Occasion::Lost), 2);
        let timeout = happened(What::Trouble(Occasion::Timeout), 3);
        let all = [failed(1), lost, timeout, failed(4), succeeded(5)];
        let kinds: Vec<_> = told(&all).iter().map(|told| told.0).collect();
        assert_eq!(kinds, [Kind::Failure, Kind::Lost, Kind::Timeout, Kind::Recovery]);
    }

    #[test]
    fn what_comes_late_or_again_is_not_told() {
        let mut state = Notified::default();
        assert_eq!(told_from(&mut state, &[failed(5), succeeded(9)]).len(), 2);
        assert_eq!(told_from(&mut state, &[failed(5), failed(8)]), [], "it has succeeded since");
        assert_eq!(told_from(&mut state, &[failed(10)]).len(), 1);
        assert_eq!(told_from(&mut state, &[succeeded(7)]), [], "it has failed since");
        assert_eq!(state.outage.as_ref().map(|outage| outage.failures), Some(1));
        let again = Happened { what: What::Trouble(Occasion::Lost), ..failed(10) };
        assert_eq!(told_from(&mut state, &[again]), [], "the same run");
    }

    #[test]
    fn the_real_record_corrects_the_lost_one() {
        let lost = Happened { at: Timestamp::from_ms(90), ..happened(What::Trouble(Occasion::Lost), 7) };
        let real = Happened { record: lost.record.clone(), ..succeeded(8) };
        let kinds = |all: &[Happened]| told(all).iter().map(|told| told.0).collect::<Vec<_>>();
        assert_eq!(kinds(&[lost.clone(), real]), [Kind::Lost, Kind::Recovery]);
        let real = Happened { record: lost.record.clone(), ..failed(8) };
        assert_eq!(kinds(&[lost, real]), [Kind::Lost]);
    }

    #[test]
    fn whoever_asks_again_is_answered_the_same() {
        let now = Timestamp::from_ms(1);
        let all = [failed(1)];
        let (state, first) = apply(&Notified::default(), "w/1", &all, now);
        assert_eq!(apply(&state, "w/1", &all, now), (state.clone(), first.clone()), "the answer was lost");
        let (later, recovery) = apply(&state, "v/1", &[succeeded(2)], now);
        assert_eq!(recovery.len(), 1);
        assert_eq!(apply(&later, "w/1", &all, now), (later.clone(), first), "also when it is over");
        let mut flapping = later;
        for n in 2..40 {
            flapping = apply(&flapping, &format!("w/{n}"), &[failed(n * 2), succeeded(n * 2 + 1)], now).0;
        }
        assert_eq!(flapping.decided.len(), DECIDED_MAX);
    }

    #[test]
    fn a_silence_is_told_once_until_the_job_succeeds() {
        let minute = 60_000;
        let silent = |at: i64| Happened { at: Timestamp::from_ms(at), ..happened(What::Silent(60), at) };
        let mut state = Notified::default();
        assert_eq!(told_from(&mut state, &[silent(5 * minute)]), [], "nobody has begun to wait");
        assert_eq!(told_from(&mut state, &[happened(What::Watched, 0), silent(minute)]), []);
        let first = told_from(&mut state, &[silent(minute + 1), silent(9 * minute)]);
        assert_eq!(first, [(Kind::NotSucceeded, 0, false)]);
        let recovered = told_from(&mut state, &[succeeded(10 * minute), silent(10 * minute + 5)]);
        assert_eq!(recovered, [(Kind::Recovery, 0, false)]);
        assert_eq!(told_from(&mut state, &[silent(12 * minute)]), [(Kind::NotSucceeded, 0, false)]);
        // Enabled again: what was before does not count.
        assert_eq!(
            told_from(&mut state, &[happened(What::Watched, 20 * minute), silent(20 * minute + 9)]),
            []
        );
        assert_eq!(silent_since(&state), Some(Timestamp::from_ms(20 * minute)));
    }

    /// Many workers see the ends of one job, some of them see the same ones, die and ask again: in whatever order they swap, each stretch of
    /// failures in the order of the swaps is told once, and nobody is told of an end without a beginning.
    #[test]
    fn in_any_order_beginnings_and_ends_alternate() {
        for seed in 0..500_u64 {
            let mut dice = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let mut draw = |bound: u64| {
                dice ^= dice << 13;
                dice ^= dice >> 7;
                dice ^= dice << 17;
                dice % bound
            };
            let ends: Vec<Happened> =
                (1..30).map(|at| if draw(3) == 0 { succeeded(at) } else { failed(at) }).collect();
            let mut asked: Vec<(usize, u64)> = (0..ends.len()).map(|end| (end, draw(2))).collect();
            for _ in 0..20 {
                let (end, worker) = (asked[usize::try_from(draw(29)).unwrap()].0, draw(3));
                asked.push((end, worker));
            }
            // A little out of order, as ends of several workers come.
            for at in 1..asked.len() {
                if draw(3) == 0 {
                    asked.swap(at - 1, at);
                }
            }
            let (mut state, mut named) = (Notified::default(), BTreeSet::new());
            let mut told_kinds = Vec::new();
            for (end, worker) in asked {
                let by = format!("{worker}/{end}");
                let first = named.insert(by.clone());
                let one = std::slice::from_ref(&ends[end]);
                let (after, told) = apply(&state, &by, one, ends[end].at);
                state = after;
                // Asked again it is the same message, which has the same name.
                told_kinds.extend(told.iter().filter(|_| first).map(|told| told.kind));
            }
            for pair in told_kinds.windows(2) {
                assert_ne!(pair[0], pair[1], "seed {seed}: {told_kinds:?}");
            }
            assert_ne!(told_kinds.first(), Some(&Kind::Recovery), "seed {seed}");
            assert_eq!(state.outage.is_some(), told_kinds.last() == Some(&Kind::Failure), "seed {seed}");
        }
    }
}
