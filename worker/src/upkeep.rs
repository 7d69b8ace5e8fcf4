//! Keeps the store small where nobody else does, and says when it fills up (design P12).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use common::clock::{self, Stopwatch};
use common::ids::random_below;
use common::keys;
use common::kv::{self, Kv, Range, Revision, Room};
use tokio::sync::Notify;

use crate::retries::Retries;
use crate::status::Status;

/// The store is looked at this often, and up to a quarter more so that a fleet does not ask in step, in ms.
const LOOK_EVERY_MS: u64 = 60_000;
/// History younger than this is left alone, as etcd is usually told to (`--auto-compaction-retention=5m`): whoever reads pages of one
/// revision, or watches again from where it was, needs some of it.
const KEEP: Duration = Duration::from_secs(5 * 60);
/// History older than this shows that nobody compacts. An etcd that keeps five minutes and looks every five minutes has up to ten.
const KEPT_MAX: Duration = Duration::from_secs(12 * 60);
/// The alarm of a store that has just refused is looked for after this.
const ALARM_AFTER: Duration = Duration::from_secs(1);
/// From so much of its quota on, in percent, the store is said to fill up.
const NEARLY_FULL_PERCENT: u64 = 80;

/// What is said of a compaction that is refused to this worker's user. The store's own advice on refusals does not help: no role has this right.
const LEFT_TO_ETCD: &str = "an etcd that asks for users lets only root compact, whatever the roles: have it compact by itself \
                            (--auto-compaction-mode=periodic --auto-compaction-retention=5m), or it grows";

/// Looks after the store for as long as the worker lives. Only the `first` worker of the fleet compacts; should two believe to be it, the
/// second finds the work done. `refused` tells that the store refuses for want of room, so that this is said at once.
pub(crate) async fn keep_up(
    kv: Arc<dyn Kv>,
    status: Arc<Status>,
    first: Arc<AtomicBool>,
    refused: Arc<Notify>,
) {
    let (looking, compacting) =
        (Retries::new("size of the store not read"), Retries::new("store not compacted"));
    let started = Stopwatch::start();
    let mut history = History::default();
    let mut fullness = Fullness::Fine;
    loop {
        match kv.room().await {
            Ok(room) => {
                looking.worked();
                status.note_room(&room);
                history.note(started.elapsed(), room.revision);
                let now = Fullness::of(&room);
                if std::mem::replace(&mut fullness, now) != now {
                    now.say(&room);
                }
            }
            Err(why) => looking.failed(&why),
        }
        if first.load(Relaxed) {
            match compact_if_nobody_does(kv.as_ref(), &history, started.elapsed()).await {
                Ok(compacted) => {
                    compacting.worked();
                    if let Some(revision) = compacted {
                        tracing::debug!(revision, "store compacted, since nobody else does");
                    }
                }
                Err(kv::Error::Denied(_)) => compacting.failed(&LEFT_TO_ETCD),
                Err(why) => compacting.failed(&why),
            }
        }
        let pause = LOOK_EVERY_MS + random_below(LOOK_EVERY_MS / 4);
        let pause = clock::sleep(Duration::from_millis(pause));
        if fullness == Fullness::Full {
            pause.await; // known already, and refused again and again
        } else {
            tokio::select! {
                () = pause => {}
                () = refused.notified() => clock::sleep(ALARM_AFTER).await,
            }
        }
    }
}

/// Forgets history up to five minutes ago when there is much older one, and answers up to where.
async fn compact_if_nobody_does(
    kv: &dyn Kv,
    history: &History,
    now: Duration,
) -> Result<Option<Revision>, kv::Error> {
    let (Some(old), Some(revision)) = (history.before(now, KEPT_MAX), history.before(now, KEEP)) else {
        return Ok(None);
    };
    if old == revision {
        return Ok(None); // nothing was written in between
    }
    // Any key will do: what is asked is whether that revision is still there.
    let done = match kv.range(Range::key(keys::BASE).at(old).serializable()).await {
        Ok(_) => kv.compact(revision).await,
        Err(why) => Err(why),
    };
    match done {
        Ok(()) => Ok(Some(revision)),
        Err(kv::Error::Compacted(_)) => Ok(None), // the store does it itself, or another worker did
        Err(why) => Err(why),
    }
}

/// Which revision the store had when, as far back as is asked for.
#[derive(Debug, Default)]
struct History(VecDeque<(Duration, Revision)>);

impl History {
    fn note(&mut self, now: Duration, revision: Revision) {
        if self.0.back().is_some_and(|(_, last)| revision < *last) {
            self.0.clear(); // the store went back: these are of another history
        }
        self.0.push_back((now, revision));
        while self.0.get(1).is_some_and(|(at, _)| now.saturating_sub(*at) >= KEPT_MAX) {
            self.0.pop_front();
        }
    }

    /// The youngest that is known to be at least so old.
    fn before(&self, now: Duration, age: Duration) -> Option<Revision> {
        let old = |at: Duration| now.saturating_sub(at) >= age;
        self.0.iter().rev().find(|(at, _)| old(*at)).map(|(_, revision)| *revision)
    }
}

/// How full the store is, as far as it is said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fullness {
    Fine,
    Nearly,
    Full,
}

impl Fullness {
    fn of(room: &Room) -> Self {
        let nearly = room.quota_bytes / 100 * NEARLY_FULL_PERCENT;
        match room.is_full {
            true => Self::Full,
            false if nearly > 0 && room.bytes >= nearly => Self::Nearly,
            false => Self::Fine,
        }
    }

    fn say(self, room: &Room) {
        let (bytes, in_use, quota) = (room.bytes, room.bytes_in_use, room.quota_bytes);
        match self {
            Self::Fine => tracing::info!(bytes, in_use, quota, "the store has room again"),
            Self::Nearly => tracing::warn!(
                bytes,
                in_use,
                quota,
                "the store is nearly full: defragment it where little of it is in use, or raise its quota"
            ),
            Self::Full => tracing::error!(
                bytes,
                in_use,
                quota,
                "the store is full: nothing can be claimed until it is compacted and defragmented, and its alarm disarmed"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::kv::embedded::EmbeddedKv;
    use common::kv::{Op, Txn};

    const MINUTE: Duration = Duration::from_secs(60);

    async fn put(kv: &dyn Kv) -> Revision {
        kv.txn(Txn { then: vec![Op::put("k", "")], ..Txn::default() }).await.unwrap().revision
    }

    async fn is_there(kv: &dyn Kv, revision: Revision) -> bool {
        match kv.range(Range::key("k").at(revision)).await {
            Ok(_) => true,
            Err(kv::Error::Compacted(_)) => false,
            Err(why) => panic!("{why}"),
        }
    }

    #[tokio::test]
    async fn history_that_nobody_forgets_is_forgotten_but_for_five_minutes() {
        let kv = EmbeddedKv::in_memory().unwrap();
        let mut history = History::default();
        let mut at = Vec::new();
        let mut compacted = Vec::new();
        for minute in 0..60 {
            let revision = put(&kv).await;
            at.push(revision);
            history.note(MINUTE * minute, revision);
            if let Some(up_to) = compact_if_nobody_does(&kv, &history, MINUTE * minute).await.unwrap() {
                assert_eq!(up_to, at[at.len() - 6], "minute {minute}");
                compacted.push(minute);
            }
            let kept = at.iter().rev().take(6);
            for revision in kept {
                assert!(is_there(&kv, *revision).await, "minute {minute}: {revision}");
            }
            assert!(history.0.len() <= 13);
        }
        assert_eq!(compacted, [12, 19, 26, 33, 40, 47, 54]);
    }

    #[tokio::test]
    async fn where_the_store_or_another_worker_compacts_this_one_does_not() {
        let kv = EmbeddedKv::in_memory().unwrap();
        let mut history = History::default();
        let mut at = Vec::new();
        for minute in 0..60 {
            let revision = put(&kv).await;
            at.push(revision);
            history.note(MINUTE * minute, revision);
            let compacted = compact_if_nobody_does(&kv, &history, MINUTE * minute).await.unwrap();
            assert_eq!(compacted, None, "minute {minute}");
            if minute % 5 == 4 && minute > 5 {
                kv.compact(at[at.len() - 6]).await.unwrap();
            }
        }
    }

    #[tokio::test]
    async fn a_store_that_nobody_writes_to_is_left_alone_and_so_is_one_that_went_back() {
        let kv = EmbeddedKv::in_memory().unwrap();
        let mut history = History::default();
        let revision = put(&kv).await;
        for minute in 0..30 {
            history.note(MINUTE * minute, revision);
            assert_eq!(compact_if_nobody_does(&kv, &history, MINUTE * minute).await, Ok(None));
        }
        history.note(MINUTE * 30, revision + 100);
        history.note(MINUTE * 31, revision + 50);
        assert_eq!(history.before(MINUTE * 90, KEEP), Some(revision + 50));
        assert_eq!(history.0.len(), 1);
    }

    #[test]
    fn a_store_is_nearly_full_from_four_fifths_of_its_quota_on() {
        let check = |bytes, quota_bytes, is_full, expected| {
            let room = Room { bytes, quota_bytes, is_full, ..Room::default() };
            assert_eq!(Fullness::of(&room), expected, "{room:?}");
        };
        check(799, 1000, false, Fullness::Fine);
        check(800, 1000, false, Fullness::Nearly);
        check(1_000_000, 0, false, Fullness::Fine);
        check(10, 1000, true, Fullness::Full);
    }
}
