//! What runs that are going have printed, stored so that others can see it: by one task for all runs, for runs that are older than a moment.
//!
//! Nothing waits in memory: the task knows how far each run's output is stored, and reads the rest from what the run keeps for its record. A
//! store that is away costs those who look their view, and neither the run nor this worker anything.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use common::clock::{self, Clock, Stopwatch, Timestamp};
use common::domain::output::Chunk;
use common::domain::run::RunId;
use common::run_log::{self, Removal, RunLog};

use crate::exec::output::Captured;
use crate::retries::Retries;

/// Output is looked at, and stored, this often.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Runs younger than this store nothing: most runs are over by then.
const OLD_ENOUGH: Duration = Duration::from_secs(1);
/// Pause after a failure.
const AGAIN: Duration = Duration::from_secs(5);
/// Bytes of one slot. The one that is being filled is stored anew each time, so that it must not be large; each is a document, so that it must
/// not be small.
const SLOT_BYTES: u64 = 16 * 1024;
/// The first bytes of a run stay: so many slots.
const FIRST_SLOTS: u64 = 32;
/// The last bytes go round in so many. With the first ones that is 1 MiB, a record's usual limit.
const LAST_SLOTS: u64 = 32;
/// Stored at once, at most (and one run's slots): then the other runs wait for the next look.
const ROUND_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Runs whose output is removed in one call.
const REMOVED_AT_ONCE: usize = 100;
/// Ended runs whose record is waited for. What is stored of more is removed by its age.
const ENDED_MAX: usize = 10_000;

/// The runs whose output is followed. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Live(Arc<Mutex<Runs>>);

#[derive(Debug, Default)]
struct Runs {
    going: BTreeMap<RunId, Going>,
    /// Ended, with output in the store, and their record not there yet.
    ended: BTreeSet<RunId>,
    /// Their record is stored: their output is to be removed.
    removable: Vec<RunId>,
    /// Where the last look stopped, having found enough.
    looked_up_to: Option<RunId>,
}

#[derive(Debug)]
struct Going {
    captured: Captured,
    since: Stopwatch,
    /// So many bytes are stored, or on their way.
    written: u64,
    /// Some of it may be stored, whatever the store answered: it must be removed one day.
    sent: bool,
}

impl Live {
    /// A run's command was started.
    pub(crate) fn begin(&self, run_id: RunId, captured: Captured) {
        self.runs()
            .going
            .insert(run_id, Going { captured, since: Stopwatch::start(), written: 0, sent: false });
    }

    /// It ended: its record says from now on what it printed.
    pub(crate) fn end(&self, run_id: &RunId) {
        let mut runs = self.runs();
        let Some(going) = runs.going.remove(run_id) else { return };
        if going.sent && runs.ended.len() < ENDED_MAX {
            runs.ended.insert(run_id.clone());
        }
    }

    /// Its record is stored.
    pub(crate) fn recorded(&self, run_id: &RunId) {
        let mut runs = self.runs();
        if runs.ended.remove(run_id) {
            runs.removable.push(run_id.clone());
        }
    }

    fn runs(&self) -> MutexGuard<'_, Runs> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The runs that have printed what is not stored, with how far it is; in turn, should there be too many for one look.
    fn behind(&self, old_enough: Duration) -> Vec<(RunId, Captured, u64)> {
        let mut runs = self.runs();
        let from = runs.looked_up_to.take();
        let is_behind = |going: &Going| {
            let (_, _, printed) = going.captured.since(u64::MAX, 0);
            printed > going.written && going.since.elapsed() >= old_enough
        };
        let behind = runs.going.iter().filter(|(_, going)| is_behind(going));
        let mut behind: Vec<_> =
            behind.map(|(run_id, going)| (run_id.clone(), going.captured.clone(), going.written)).collect();
        let first = from.map_or(0, |from| behind.partition_point(|(run_id, _, _)| *run_id <= from));
        behind.rotate_left(first);
        behind
    }

    /// What is to be stored now. It counts as stored; see [`Self::not_stored`].
    fn news(&self, old_enough: Duration, now: Timestamp) -> Vec<(RunId, u64, Vec<Chunk>)> {
        let (mut news, mut bytes) = (Vec::new(), 0);
        for (run_id, captured, written) in self.behind(old_enough) {
            let chunks = chunks(&run_id, &captured, written, now);
            let Some(last) = chunks.last() else { continue };
            // Known before it is sent: a run that ends meanwhile has something to remove. One that has ended already stores nothing more.
            match self.runs().going.get_mut(&run_id) {
                Some(going) => (going.written, going.sent) = (last.to(), true),
                None => continue,
            }
            bytes += chunks.iter().map(|chunk| chunk.bytes.len()).sum::<usize>();
            news.push((run_id.clone(), written, chunks));
            if bytes >= ROUND_BYTES_MAX {
                self.runs().looked_up_to = Some(run_id);
                break;
            }
        }
        news
    }

    /// The store did not take it: the next look reads it again.
    fn not_stored(&self, news: Vec<(RunId, u64, Vec<Chunk>)>) {
        let mut runs = self.runs();
        for (run_id, written, _chunks) in news {
            if let Some(going) = runs.going.get_mut(&run_id) {
                going.written = written;
            }
        }
    }

    /// Stores once what is new, and removes what is not needed any more.
    async fn round(
        &self,
        run_log: &dyn RunLog,
        old_enough: Duration,
        now: Timestamp,
    ) -> Result<(), run_log::Error> {
        let news = self.news(old_enough, now);
        if !news.is_empty() {
            let all: Vec<Chunk> = news.iter().flat_map(|(_, _, chunks)| chunks).cloned().collect();
            if let Err(why) = run_log.put_output(&all).await {
                self.not_stored(news);
                return Err(why);
            }
        }
        self.remove(run_log).await
    }

    /// Removes the output of runs whose record is stored.
    pub(crate) async fn remove(&self, run_log: &dyn RunLog) -> Result<(), run_log::Error> {
        loop {
            let some: Vec<RunId> = {
                let mut runs = self.runs();
                let keep = runs.removable.len().saturating_sub(REMOVED_AT_ONCE);
                runs.removable.split_off(keep)
            };
            if some.is_empty() {
                return Ok(());
            }
            let removal = Removal::OutputOf(some);
            // If this process dies here, their age removes them.
            if let Err(why) = run_log.remove(&removal, u32::MAX).await {
                let Removal::OutputOf(some) = removal else { return Err(why) };
                let mut runs = self.runs();
                let room = ENDED_MAX.saturating_sub(runs.removable.len());
                runs.removable.extend(some.into_iter().take(room));
                return Err(why);
            }
        }
    }
}

/// Stores what runs print for as long as the worker lives.
pub(crate) async fn follow(live: Live, run_log: Arc<dyn RunLog>, clock: Arc<dyn Clock>) {
    let retries =
        Retries::new("output of runs that are going not stored: nobody sees it until they have ended");
    loop {
        clock::sleep(LOOK_EVERY).await;
        match live.round(run_log.as_ref(), OLD_ENOUGH, clock.now()).await {
            Ok(()) => retries.worked(),
            Err(why) => {
                retries.failed(&why);
                clock::sleep(AGAIN).await;
            }
        }
    }
}

/// What a run has printed behind the first `written` bytes, by slots: the one that was being filled is given anew, and what would be written over
/// at once is left out.
fn chunks(run_id: &RunId, captured: &Captured, written: u64, now: Timestamp) -> Vec<Chunk> {
    let (_, _, printed) = captured.since(u64::MAX, 0);
    let last = printed.saturating_sub(1) / SLOT_BYTES;
    let mut chunks = Vec::new();
    let mut at = written / SLOT_BYTES * SLOT_BYTES;
    while at < printed {
        let number = at / SLOT_BYTES;
        if number >= FIRST_SLOTS {
            at = at.max((last + 1).saturating_sub(LAST_SLOTS) * SLOT_BYTES);
        }
        let (from, mut bytes, _) = captured.since(at, usize::try_from(SLOT_BYTES).unwrap_or(usize::MAX));
        // What the run keeps may begin later, within a slot.
        let number = from / SLOT_BYTES;
        bytes.truncate(usize::try_from((number + 1) * SLOT_BYTES - from).unwrap_or(usize::MAX));
        if bytes.is_empty() {
            break;
        }
        at = from + bytes.len() as u64;
        chunks.push(Chunk { run_id: run_id.clone(), slot: slot(number), from, bytes, at: now });
    }
    chunks
}

/// The slot of so many bytes: its own at the beginning, then round and round.
fn slot(number: u64) -> u32 {
    let slot = match number.checked_sub(FIRST_SLOTS) {
        None => number,
        Some(further) => FIRST_SLOTS + further % LAST_SLOTS,
    };
    u32::try_from(slot).expect("there are 64 slots")
}

#[cfg(test)]
mod tests {
    use common::run_log::embedded::EmbeddedRunLog;

    use super::*;

    const NOW: Timestamp = Timestamp::from_ms(1_000_000);
    const AT_ONCE: Duration = Duration::ZERO;

    fn run(number: u64) -> RunId {
        RunId::from_text(&format!("a-{number}"))
    }

    fn captured() -> Captured {
        Captured::new(1 << 20)
    }

    async fn print(captured: &Captured, bytes: &[u8]) {
        captured.read_all(bytes).await;
    }

    /// What the store has of a run, put together; where it is not whole, the gap is marked.
    async fn stored(run_log: &dyn RunLog, run_id: &RunId) -> String {
        let mut text = String::new();
        let mut end = 0;
        for chunk in run_log.output(run_id, 0).await.unwrap() {
            if chunk.from != end {
                text.push('|');
            }
            end = chunk.to();
            text.push_str(&String::from_utf8(chunk.bytes).unwrap());
        }
        text
    }

    #[tokio::test]
    async fn what_a_run_prints_is_stored_as_it_comes_and_removed_with_its_record() {
        let (live, run_log) = (Live::default(), EmbeddedRunLog::in_memory().unwrap());
        let captured = captured();
        live.begin(run(1), captured.clone());
        let mut printed = String::new();
        for round in 0..50 {
            let line = format!("line {round} {}\n", "x".repeat(999));
            print(&captured, line.as_bytes()).await;
            printed.push_str(&line);
            live.round(&run_log, AT_ONCE, NOW).await.unwrap();
            assert_eq!(stored(&run_log, &run(1)).await, printed);
        }
        let slots = run_log.output(&run(1), 0).await.unwrap().len() as u64;
        assert_eq!(slots, (printed.len() as u64).div_ceil(SLOT_BYTES));

        live.end(&run(1));
        print(&captured, b"too late").await;
        live.round(&run_log, AT_ONCE, NOW).await.unwrap();
        assert_eq!(stored(&run_log, &run(1)).await, printed, "kept until the record is stored");
        live.recorded(&run(1));
        live.round(&run_log, AT_ONCE, NOW).await.unwrap();
        assert_eq!(stored(&run_log, &run(1)).await, "");
        let left = live.runs();
        assert!(left.going.is_empty() && left.ended.is_empty() && left.removable.is_empty());
    }

    #[tokio::test]
    async fn young_and_silent_runs_store_nothing() {
        let (live, run_log) = (Live::default(), EmbeddedRunLog::in_memory().unwrap());
        let printing = captured();
        print(&printing, b"young").await;
        live.begin(run(1), printing);
        live.begin(run(2), captured());
        assert!(live.news(Duration::from_secs(3600), NOW).is_empty());
        assert_eq!(live.news(AT_ONCE, NOW).len(), 1, "the silent one has no news");
        assert!(live.news(AT_ONCE, NOW).is_empty(), "nor has who has said nothing since");
        live.end(&run(2));
        assert!(live.runs().ended.is_empty(), "nothing to remove");
        live.round(&run_log, AT_ONCE, NOW).await.unwrap();
    }

    #[tokio::test]
    async fn what_is_stored_of_a_run_is_bounded_and_has_its_beginning_and_its_end() {
        let (live, run_log) = (Live::default(), EmbeddedRunLog::in_memory().unwrap());
        let captured = captured();
        live.begin(run(1), captured.clone());
        let first = FIRST_SLOTS * SLOT_BYTES;
        // In small steps and in large ones, which are more than all slots together.
        for size in [5_000, 300_000, 5_000_000, 100, 40_000_000, 7_000] {
            let (_, _, before) = captured.since(u64::MAX, 0);
            print(&captured, &vec![b'x'; size]).await;
            live.round(&run_log, AT_ONCE, NOW).await.unwrap();
            let chunks = run_log.output(&run(1), 0).await.unwrap();
            assert!(chunks.len() as u64 <= FIRST_SLOTS + LAST_SLOTS);
            let (_, _, printed) = captured.since(u64::MAX, 0);
            assert_eq!((chunks[0].from, chunks.last().unwrap().to()), (0, printed), "after {before}");
            let from_the_start =
                chunks.iter().try_fold(0, |end, chunk| (chunk.from == end).then(|| chunk.to()));
            assert!(printed > first || from_the_start == Some(printed), "{size}");
        }
    }

    #[tokio::test]
    async fn a_store_that_is_away_costs_nothing_and_gets_it_later() {
        let (live, run_log) = (Live::default(), EmbeddedRunLog::in_memory().unwrap());
        let captured = captured();
        live.begin(run(1), captured.clone());
        print(&captured, b"one ").await;
        let news = live.news(AT_ONCE, NOW);
        live.not_stored(news);
        print(&captured, b"two").await;
        live.round(&run_log, AT_ONCE, NOW).await.unwrap();
        assert_eq!(stored(&run_log, &run(1)).await, "one two");
    }

    #[tokio::test]
    async fn runs_that_print_without_end_leave_the_others_their_turn() {
        let live = Live::default();
        let mut seen = BTreeSet::new();
        let loud: Vec<Captured> = (0..20).map(|_| captured()).collect();
        for (number, captured) in loud.iter().enumerate() {
            live.begin(run(number as u64), captured.clone());
        }
        for _round in 0..20 {
            for captured in &loud {
                print(captured, &vec![b'x'; 1_000_000]).await;
            }
            let news = live.news(AT_ONCE, NOW);
            let bytes: usize =
                news.iter().flat_map(|(_, _, chunks)| chunks).map(|chunk| chunk.bytes.len()).sum();
            assert!(bytes <= ROUND_BYTES_MAX + 1024 * 1024, "{bytes}");
            seen.extend(news.into_iter().map(|(run_id, _, _)| run_id));
        }
        assert_eq!(seen.len(), 20);
    }
}
