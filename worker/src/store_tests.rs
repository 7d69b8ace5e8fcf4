//! What the worker does to the store, on the embedded one: claims, sessions, sweeps, following, and the whole worker.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use common::clock::{self, Clock, SystemClock, Timestamp};
use common::domain::audit::{Entry as Change, EntryId};
use common::domain::broadcast::{self, Target};
use common::domain::calendars::{Calendar, CalendarName, Calendars};
use common::domain::job::{JobName, ScheduleHash};
use common::domain::kill::{KillRequest, Killed};
use common::domain::mark::Mark;
use common::domain::output::Chunk;
use common::domain::pause::Base;
use common::domain::record::{Record, SkipReason, Skipped, Status};
use common::domain::request::Request;
use common::domain::retry::Retry;
use common::domain::run::{LockHolder, OpenRun, OpenRuns, RunId, Trigger};
use common::domain::settings::FleetSettings;
use common::domain::worker::{Identity, Registration, Sid};
use common::history::{History, Query, Shelf};
use common::keys;
use common::kv::embedded::EmbeddedKv;
use common::kv::{
    self, Kv, LeaseId, Op, Pair, Range, RangeReply, Revision, Span, Txn, TxnReply, WatchStream,
};
use common::networks::Networks;
use common::run_log::embedded::EmbeddedRunLog;
use common::run_log::{self, Appended, Place, RecordQuery, Removal, RunLog};
use futures::StreamExt as _;
use tokio::sync::mpsc;

use crate::audit::{Suspects, Unknown};
use crate::batches::Batched as _;
use crate::claims::HeldLock;
use crate::driver::{Options, Ports, Worker};
use crate::exec::process::tests as runs;
use crate::fleet_settings;
use crate::follow::{News, follow};
use crate::live::Live;
use crate::notify::Notices;
use crate::outbound::Outbound;
use crate::retention::Retention;
use crate::scheduler::{
    AdoptAnswer, Adoption, Claim, ClaimAnswer, ClaimKind, Event, Holder, LockSeen, MarkSeen, MoveAnswer,
    Refusal, RequestAnswer, RequestClaim, Slots,
};
use crate::sink::{Sink, SinkSettings};
use crate::turns::Turns;
use crate::waiting::Entry;
use crate::{audit, claims, session, sweep};

const TTL: Duration = Duration::from_secs(600);
/// Nothing here takes so long.
const DEADLINE: Duration = Duration::from_secs(30);
const T: Timestamp = Timestamp::from_ms(1_800_000_000_000);

fn store() -> EmbeddedKv {
    EmbeddedKv::in_memory().unwrap()
}

fn job() -> JobName {
    JobName::parse("a").unwrap()
}

pub(super) async fn get(kv: &dyn Kv, key: impl Into<kv::Key>) -> Option<Pair> {
    kv.range(Range::key(key)).await.unwrap().pairs.pop()
}

pub(super) async fn put(kv: &dyn Kv, key: impl Into<kv::Key>, value: impl Into<Vec<u8>>) -> Revision {
    kv.txn(Txn { then: vec![Op::put(key, value)], ..Txn::default() }).await.unwrap().revision
}

async fn delete(kv: &dyn Kv, key: impl Into<kv::Key>) {
    kv.txn(Txn { then: vec![Op::delete(key)], ..Txn::default() }).await.unwrap();
}

async fn open_session(kv: &dyn Kv) -> Sid {
    session::open(kv, TTL).await.unwrap()
}

fn open_run(sid: Sid, seq: u64, plan_time: Timestamp) -> OpenRun {
    OpenRun {
        run_id: RunId::new(sid, seq),
        job: job(),
        plan_time,
        schedule_time: plan_time,
        worker: "w".to_owned(),
        command: "true".to_owned(),
        ..runs::open()
    }
}

fn by_test() -> Killed {
    Killed { by: "a test".to_owned(), at: T }
}

/// A job with its mark, and the claim of its fire at `T`.
async fn claimable(kv: &dyn Kv) -> (Sid, Claim) {
    let sid = open_session(kv).await;
    let job_revision = put(kv, keys::job(&job()), "{}").await;
    let based = Mark::based(None, T.plus_ms(-1000), ScheduleHash::default());
    let mark_revision = put(kv, keys::fired(&job()), based.encode()).await;
    let open = open_run(sid, 1, T);
    let mark = based.claimed(T, open.run_id.clone(), sid);
    let kind = ClaimKind::Run;
    (
        sid,
        Claim {
            kind,
            sid,
            seq: 1,
            open,
            job_revision,
            settings_revision: 0,
            mark_revision,
            mark_value: based.stored_value(),
            mark,
            exclusive: false,
            over_lock: None,
            replaces: None,
            spread: Vec::new(),
            alone: false,
        },
    )
}

// --- claims ------------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_mark_of_the_same_revision_and_another_value_is_another_one() {
    let kv = store();
    let (_, claim) = claimable(&kv).await;
    // As in a store that was put back, where revisions repeat.
    let other = Mark::based(None, T, ScheduleHash::default()).stored_value();
    let refused = claims::claim(&kv, &Claim { mark_value: other, ..claim.clone() }).await;
    assert!(matches!(refused, ClaimAnswer::Refused(_)), "{refused:?}");
    assert!(matches!(claims::claim(&kv, &claim).await, ClaimAnswer::Won(_)));
}

#[tokio::test]
async fn a_claim_puts_the_mark_the_lock_and_the_open_run() {
    let kv = store();
    let (sid, claim) = claimable(&kv).await;
    let ClaimAnswer::Won(revision) = claims::claim(&kv, &claim).await else { panic!("won") };
    let mark = get(&kv, keys::fired(&job())).await.unwrap();
    assert_eq!((Mark::decode(&mark.value).unwrap(), mark.mod_revision), (claim.mark.clone(), revision));
    let lock = get(&kv, keys::lock(&job())).await.unwrap();
    assert_eq!((lock.mod_revision, lock.lease), (revision, Some(sid.lease())));
    let open = get(&kv, keys::runs(sid, 1)).await.unwrap();
    assert_eq!((OpenRuns::decode(&open.value).unwrap().runs, open.lease), (vec![claim.open.clone()], None));
    // Sent again, it finds itself, also after others have moved the mark.
    let ClaimAnswer::Refused(refusal) = claims::claim(&kv, &claim).await else { panic!("refused") };
    assert_eq!(refusal.shows(&claim), Some(revision));
    put(&kv, keys::fired(&job()), claim.mark.claimed(T.plus_ms(1000), RunId::from_text("x"), sid).encode())
        .await;
    let ClaimAnswer::Refused(refusal) = claims::claim(&kv, &claim).await else { panic!("refused") };
    assert_eq!(refusal.shows(&claim), Some(revision));
    let mut next = claim.clone();
    (next.seq, next.open, next.replaces) = (2, open_run(sid, 2, T), Some(1));
    let ClaimAnswer::Refused(refusal) = claims::claim(&kv, &next).await else { panic!("refused") };
    assert_eq!((refusal.shows(&next), refusal.shows(&claim)), (None, Some(revision)));
}

/// The lock that a claim has put at this revision.
fn held(claim: &Claim, revision: kv::Revision) -> HeldLock {
    HeldLock::new(claim.open.job.clone(), revision, claim.sid, claim.open.run_id.clone(), claim.open.unlocked)
}

/// Jobs `a` to `c` with their marks, and the claims of their fires at `T`.
async fn three_claimable(kv: &dyn Kv) -> (Sid, Vec<Claim>) {
    let sid = open_session(kv).await;
    let mut claims = Vec::new();
    for (seq, name) in (1..).zip(["a", "b", "c"]) {
        let job = JobName::parse(name).unwrap();
        let job_revision = put(kv, keys::job(&job), "{}").await;
        let based = Mark::based(None, T.plus_ms(-1000), ScheduleHash::default());
        let mark_revision = put(kv, keys::fired(&job), based.encode()).await;
        let open = OpenRun { job, ..open_run(sid, seq, T) };
        let mark = based.claimed(T, open.run_id.clone(), sid);
        let kind = ClaimKind::Run;
        let (exclusive, over_lock, replaces, alone) = (false, None, None, false);
        claims.push(Claim {
            kind,
            sid,
            seq,
            open,
            job_revision,
            settings_revision: 0,
            mark_revision,
            mark_value: based.stored_value(),
            mark,
            exclusive,
            over_lock,
            replaces,
            spread: Vec::new(),
            alone,
        });
    }
    (sid, claims)
}

#[tokio::test]
async fn claims_of_a_batch_are_made_by_one_write_and_found_each_by_itself() {
    let kv = store();
    let (sid, claims) = three_claimable(&kv).await;
    let answers = claims::claim_all(&kv, &claims).await;
    let ClaimAnswer::Won(revision) = answers[0] else { panic!("{answers:?}") };
    assert_eq!(answers, vec![ClaimAnswer::Won(revision); 3]);
    for claim in &claims {
        let lock = get(&kv, keys::lock(&claim.open.job)).await.unwrap();
        assert_eq!((lock.mod_revision, lock.lease), (revision, Some(sid.lease())));
        // Sent again alone, as after a lost answer, it finds itself.
        let ClaimAnswer::Refused(refusal) = claims::claim(&kv, claim).await else { panic!("refused") };
        assert_eq!(refusal.shows(claim), Some(revision));
        let locks = [held(claim, revision)];
        claims::release_all(&kv, &locks).await.unwrap();
    }
    // A sending of the whole batch that comes late changes nothing any more.
    let late = claims::claim_all(&kv, &claims).await;
    assert!(late.iter().all(|answer| matches!(answer, ClaimAnswer::Refused(_))), "{late:?}");
    assert!(kv.range(Range::prefix(keys::LOCK)).await.unwrap().pairs.is_empty());
}

#[tokio::test]
async fn one_refused_claim_costs_the_others_of_its_batch_nothing() {
    let kv = store();
    let (_, claims) = three_claimable(&kv).await;
    put(&kv, keys::lock(&claims[1].open.job), "").await;
    let answers = claims::claim_all(&kv, &claims).await;
    assert!(matches!(answers[0], ClaimAnswer::Won(_)), "{answers:?}");
    let ClaimAnswer::Refused(refusal) = &answers[1] else { panic!("{answers:?}") };
    assert_eq!((&refusal.lock, refusal.shows(&claims[1])), (&LockSeen::HeldBySeed, None));
    assert!(matches!(answers[2], ClaimAnswer::Won(_)), "{answers:?}");
}

#[tokio::test]
async fn a_batch_is_refused_without_its_session_and_while_paused() {
    for paused in [false, true] {
        let kv = store();
        let (sid, claims) = three_claimable(&kv).await;
        if paused {
            put(&kv, keys::PAUSED, "1").await;
        } else {
            kv.revoke(sid.lease()).await.unwrap();
        }
        let answers = claims::claim_all(&kv, &claims).await;
        assert!(!answers.iter().any(|answer| matches!(answer, ClaimAnswer::Won(_))), "{answers:?}");
        assert!(kv.range(Range::prefix(keys::RUNS)).await.unwrap().pairs.is_empty());
    }
}

#[tokio::test]
async fn claims_by_other_settings_than_the_stores_are_refused_all_of_them() {
    let kv = store();
    let (_, claims) = three_claimable(&kv).await;
    // A calendar is put with the settings, so that their revision tells of both.
    let settings_revision = put(&kv, keys::SETTINGS, "{\"v\":1}").await;
    let answers = claims::claim_all(&kv, &claims).await;
    for answer in &answers {
        let ClaimAnswer::Refused(refusal) = answer else { panic!("{answers:?}") };
        assert_eq!(refusal.settings_revision, settings_revision);
    }
    let heard: Vec<Claim> = claims.iter().map(|claim| Claim { settings_revision, ..claim.clone() }).collect();
    let answers = claims::claim_all(&kv, &heard).await;
    assert!(answers.iter().all(|answer| matches!(answer, ClaimAnswer::Won(_))), "{answers:?}");
    // Claims by different settings never go together: a batch compares one revision.
    assert!(heard[0].goes_with(&heard[1]) && !heard[0].goes_with(&claims[1]));
}

#[tokio::test]
async fn settings_and_calendars_are_read_as_of_one_revision() {
    let kv = store();
    let calendar = CalendarName::parse("holidays").unwrap();
    let days = |day: i64| {
        let mut calendar = Calendar::default();
        calendar.days.add(day, day);
        calendar
    };
    let Event::Settings(Some(read), 0) = fleet_settings::read(&kv).await.unwrap() else {
        panic!("there is nothing")
    };
    assert_eq!(read, FleetSettings::default());
    put(&kv, format!("{}newer", keys::CALENDARS), "{\"v\":2}").await;
    put(&kv, keys::SETTINGS, "{\"v\":1,\"timezone\":\"Asia/Tokyo\"}").await;
    let revision = put(&kv, keys::calendar(&calendar), days(1).encode()).await;
    let Event::Settings(Some(read), at) = fleet_settings::read(&kv).await.unwrap() else {
        panic!("there are some")
    };
    assert!(at < revision, "what is there is left as it is");
    let mut expected = Calendars::default();
    expected.insert(calendar.clone(), days(1).days);
    assert_eq!(
        (read.timezone.map(|zone| zone.to_string()), read.calendars),
        (Some("Asia/Tokyo".to_owned()), expected)
    );
    put(&kv, keys::SETTINGS, "{\"v\":2}").await;
    assert!(matches!(fleet_settings::read(&kv).await.unwrap(), Event::Settings(None, _)));
}

/// So that a claim that was decided by the days of before finds another revision, however often other hands delete the key.
#[tokio::test]
async fn settings_that_are_missing_are_put_where_there_are_calendars_and_their_revision_never_comes_back() {
    let kv = store();
    let mut known = BTreeSet::new();
    for day in 1..=3 {
        let mut calendar = Calendar::default();
        calendar.days.add(day, day);
        put(&kv, keys::calendar(&CalendarName::parse("holidays").unwrap()), calendar.encode()).await;
        kv.txn(Txn { then: vec![Op::delete(keys::SETTINGS)], ..Txn::default() }).await.unwrap();
        let Event::Settings(Some(read), revision) = fleet_settings::read(&kv).await.unwrap() else {
            panic!("they are the defaults")
        };
        let calendars = read.calendars.clone();
        assert_eq!(read, FleetSettings { calendars, ..FleetSettings::default() });
        assert!(revision > 0 && known.insert(revision), "{revision} comes twice");
        let again = fleet_settings::read(&kv).await.unwrap();
        assert!(matches!(again, Event::Settings(Some(_), at) if at == revision), "put once");
    }
}

#[tokio::test]
async fn the_largest_batches_are_within_the_stores_limits() {
    let kv = store();
    let (sid, claims) = three_claimable(&kv).await;
    let mut many = Vec::new();
    for number in 1..=claims::CLAIMS_MAX.max(claims::RELEASES_MAX) {
        let job = JobName::parse(&format!("job{number}")).unwrap();
        let job_revision = put(&kv, keys::job(&job), "{}").await;
        let seq = 100 + u64::try_from(number).unwrap();
        let open = OpenRun { job: job.clone(), ..open_run(sid, seq, T) };
        let mark = claims[0].mark.clone();
        let (mark_revision, mark_value) = (0, None);
        many.push(Claim { seq, open, job_revision, mark_revision, mark_value, mark, ..claims[0].clone() });
    }
    let answers = claims::claim_all(&kv, &many[..claims::CLAIMS_MAX]).await;
    let ClaimAnswer::Won(revision) = answers[0] else { panic!("{answers:?}") };
    let locks: Vec<_> = many.iter().map(|claim| held(claim, revision)).collect();
    claims::release_all(&kv, &locks[..claims::RELEASES_MAX]).await.unwrap();
    claims::release_all(&kv, &[]).await.unwrap();
    let left = kv.range(Range::prefix(keys::LOCK)).await.unwrap().pairs.len();
    assert_eq!(left, claims::CLAIMS_MAX.saturating_sub(claims::RELEASES_MAX));
}

#[tokio::test]
async fn of_many_locks_only_those_of_the_claims_are_freed() {
    let kv = store();
    let (_, claims) = three_claimable(&kv).await;
    let answers = claims::claim_all(&kv, &claims).await;
    let ClaimAnswer::Won(revision) = answers[0] else { panic!("{answers:?}") };
    let taken_since = put(&kv, keys::lock(&claims[1].open.job), "another's").await;
    let locks: Vec<_> = claims.iter().map(|claim| held(claim, revision)).collect();
    claims::release_all(&kv, &locks).await.unwrap();
    let left = kv.range(Range::prefix(keys::LOCK)).await.unwrap().pairs;
    assert_eq!(left.iter().map(|pair| pair.mod_revision).collect::<Vec<_>>(), [taken_since]);
}

/// The claim of a run that goes without the lock.
async fn claimable_without_lock(kv: &dyn Kv) -> (Sid, Claim) {
    let (sid, mut claim) = claimable(kv).await;
    (claim.open.unlocked, claim.mark.unlocked) = (true, true);
    (sid, claim)
}

/// The claim of the fire after `before`, with the lock.
fn next_claim(before: &Claim, mark_revision: Revision) -> Claim {
    let open = open_run(before.sid, 2, T.plus_ms(1000));
    let mut mark = before.mark.claimed(T.plus_ms(1000), open.run_id.clone(), before.sid);
    mark.unlocked = false;
    let mark_value = before.mark.stored_value();
    Claim { seq: 2, open, mark_revision, mark_value, mark, exclusive: true, ..before.clone() }
}

#[tokio::test]
async fn a_run_without_the_lock_goes_beside_one_with_it_and_frees_what_is_its_own() {
    let kv = store();
    let (sid, claim) = claimable_without_lock(&kv).await;
    let taken = put(&kv, keys::lock(&job()), LockHolder::new(sid, RunId::new(sid, 9)).encode()).await;
    let ClaimAnswer::Won(revision) = claims::claim(&kv, &claim).await else { panic!("won") };
    assert_eq!(get(&kv, keys::lock(&job())).await.unwrap().mod_revision, taken);
    let own = get(&kv, keys::shared(&job(), &claim.open.run_id)).await.unwrap();
    assert_eq!((own.mod_revision, own.lease), (revision, Some(sid.lease())));
    claims::release_all(&kv, &[held(&claim, revision)]).await.unwrap();
    assert_eq!(get(&kv, keys::shared(&job(), &claim.open.run_id)).await, None);
    assert!(get(&kv, keys::lock(&job())).await.is_some());
}

#[tokio::test]
async fn whoever_takes_the_lock_is_told_which_runs_go_without_it() {
    let kv = store();
    let (_, claim) = claimable_without_lock(&kv).await;
    let ClaimAnswer::Won(revision) = claims::claim(&kv, &claim).await else { panic!("won") };
    let next = next_claim(&claim, revision);
    let ClaimAnswer::Refused(refusal) = claims::claim(&kv, &next).await else { panic!("refused") };
    let holder = Holder { run_id: claim.open.run_id.clone(), unlocked: true, revision };
    assert_eq!((refusal.lock, refusal.holders), (LockSeen::Held, vec![holder]));
    claims::release_all(&kv, &[held(&claim, revision)]).await.unwrap();
    assert!(matches!(claims::claim(&kv, &next).await, ClaimAnswer::Won(_)));
}

#[tokio::test]
async fn a_run_is_asked_to_make_room_only_while_the_fire_could_be_claimed_but_for_it() {
    type Change = fn(&Claim) -> (kv::Key, Vec<u8>);
    let changes: [Option<Change>; 5] = [
        None,
        Some(|_| (keys::PAUSED.into(), b"1".to_vec())),
        Some(|claim| (keys::job(&claim.open.job).into(), b"{}".to_vec())),
        Some(|claim| (keys::fired(&claim.open.job).into(), claim.mark.encode())),
        Some(|claim| (keys::lock(&claim.open.job).into(), b"another's".to_vec())),
    ];
    for (row, change) in changes.into_iter().enumerate() {
        let kv = store();
        let (sid, claim) = claimable(&kv).await;
        let before = LockHolder::new(sid, RunId::new(sid, 9));
        put(&kv, keys::lock(&job()), before.encode()).await;
        let ClaimAnswer::Refused(refusal) = claims::claim(&kv, &claim).await else { panic!("refused") };
        if let Some((key, value)) = change.map(|change| change(&claim)) {
            put(&kv, key, value).await;
        }
        claims::replace(&kv, &claim, &refusal.holders, by_test()).await.unwrap();
        let asked = get(&kv, keys::killer(&job())).await;
        assert_eq!(asked.is_some(), row == 0, "row {row}");
        if let Some(asked) = asked {
            let request = KillRequest::decode(&asked.value).unwrap().unwrap();
            assert_eq!((request.run_ids, request.by), (vec![before.run_id], Some(by_test().by)));
        }
    }
    let kv = store();
    let (sid, claim) = claimable(&kv).await;
    kv.revoke(sid.lease()).await.unwrap();
    claims::replace(&kv, &claim, &[], by_test()).await.unwrap();
    assert_eq!(get(&kv, keys::killer(&job())).await, None, "its session is over");
}

#[tokio::test]
async fn a_run_without_the_lock_moves_to_a_new_session_and_is_seen_there() {
    let kv = store();
    let (old, claim) = claimable_without_lock(&kv).await;
    assert!(matches!(claims::claim(&kv, &claim).await, ClaimAnswer::Won(_)));
    kv.revoke(old.lease()).await.unwrap();
    let new = open_session(&kv).await;
    put(&kv, keys::lock(&job()), LockHolder::new(new, RunId::new(new, 9)).encode()).await;
    let moved = || claims::take_over(&kv, &claim.open, (old, 1), (new, 1), false);
    let answer = moved().await.unwrap();
    let own = get(&kv, keys::shared(&job(), &claim.open.run_id)).await.unwrap();
    assert_eq!((answer, own.lease), (MoveAnswer::Done(own.mod_revision), Some(new.lease())));
    assert_eq!(moved().await.unwrap(), answer, "sent again, as after a lost answer");
}

#[tokio::test]
async fn a_claim_is_refused_by_each_of_the_things_that_it_compares() {
    type Check = fn(&Refusal) -> bool;
    let rows: [(&str, Check); 7] = [
        ("session", |r| !r.session_alive),
        ("paused", |r| r.paused),
        ("settings", |r| r.settings_revision != 0),
        ("job", |r| r.job_revision != 0),
        ("mark", |r| r.mark.is_some()),
        ("lock", |r| r.lock == LockSeen::Held),
        ("seed lock", |r| r.lock == LockSeen::HeldBySeed),
    ];
    for (what, seen) in rows {
        let kv = store();
        let (sid, claim) = claimable(&kv).await;
        match what {
            "session" => kv.revoke(sid.lease()).await.unwrap(),
            "paused" => drop(put(&kv, keys::PAUSED, "1").await),
            "settings" => drop(put(&kv, keys::SETTINGS, "{\"v\":1}").await),
            "job" => drop(put(&kv, keys::job(&job()), "{}").await),
            "mark" => drop(put(&kv, keys::fired(&job()), claim.mark.encode()).await),
            "lock" => drop(put(&kv, keys::lock(&job()), "{\"v\":9}").await),
            _ => drop(put(&kv, keys::lock(&job()), "").await),
        }
        let answer = claims::claim(&kv, &claim).await;
        assert!(matches!(&answer, ClaimAnswer::Refused(r) if seen(r)), "{what}: {answer:?}");
        assert_eq!(get(&kv, keys::runs(sid, 1)).await, None, "{what}");
        // A skip needs neither the lock nor a fleet that is not paused.
        let skip = Claim { kind: ClaimKind::Skip, ..claim };
        let won = matches!(claims::claim(&kv, &skip).await, ClaimAnswer::Won(_));
        assert_eq!(won, ["paused", "lock", "seed lock"].contains(&what), "{what}");
    }
}

#[tokio::test]
async fn a_claim_takes_over_just_the_lock_that_it_names() {
    let kv = store();
    let (_, claim) = claimable(&kv).await;
    let kept = put(&kv, keys::lock(&job()), "{\"v\":1}").await;
    let over = |revision| Claim { over_lock: Some(revision), ..claim.clone() };
    assert!(matches!(claims::claim(&kv, &over(kept - 1)).await, ClaimAnswer::Refused(_)));
    let ClaimAnswer::Won(revision) = claims::claim(&kv, &over(kept)).await else { panic!("won") };
    assert_eq!(get(&kv, keys::lock(&job())).await.unwrap().mod_revision, revision);
}

/// The mark of a claim as one to be put, in a fleet without settings.
fn adoption(claim: &Claim, mark_revision: Revision, sid: Sid) -> Adoption {
    Adoption {
        job: claim.open.job.clone(),
        job_revision: claim.job_revision,
        mark_revision,
        mark_value: None,
        settings_revision: 0,
        sid,
        mark: claim.mark.clone(),
    }
}

#[tokio::test]
async fn a_mark_is_adopted_only_as_it_was_seen() {
    let kv = store();
    let (sid, claim) = claimable(&kv).await;
    let (kv, claim) = (&kv, &claim);
    let adopt = async |job_revision, mark_revision, sid| {
        let adoption = Adoption { job_revision, ..adoption(claim, mark_revision, sid) };
        claims::adopt_all(kv, &[adoption]).await.remove(0)
    };
    assert_eq!(adopt(claim.job_revision, 0, sid).await, AdoptAnswer::LookAgain);
    assert_eq!(adopt(claim.job_revision - 1, claim.mark_revision, sid).await, AdoptAnswer::LookAgain);
    assert_eq!(adopt(claim.job_revision, claim.mark_revision, Sid(77)).await, AdoptAnswer::LookAgain);
    // By settings that are others now, or gone.
    put(kv, keys::SETTINGS, "{\"v\":1}").await;
    assert_eq!(adopt(claim.job_revision, claim.mark_revision, sid).await, AdoptAnswer::LookAgain);
    kv.txn(Txn { then: vec![Op::delete(keys::SETTINGS)], ..Txn::default() }).await.unwrap();
    let AdoptAnswer::Done(_, revision) = adopt(claim.job_revision, claim.mark_revision, sid).await else {
        panic!("adopted")
    };
    assert_eq!(get(kv, keys::fired(&job())).await.unwrap().mod_revision, revision);
}

#[tokio::test]
async fn many_marks_are_adopted_at_once_and_one_that_has_changed_costs_the_others_nothing() {
    let kv = store();
    let (sid, claims) = three_claimable(&kv).await;
    let all: Vec<_> = claims.iter().map(|claim| adoption(claim, claim.mark_revision, sid)).collect();
    let answers = claims::adopt_all(&kv, &all).await;
    let AdoptAnswer::Done(_, revision) = answers[0] else { panic!("{answers:?}") };
    let done = |claim: &Claim| AdoptAnswer::Done(claim.mark.clone(), revision);
    assert_eq!(answers, claims.iter().map(done).collect::<Vec<_>>());
    let some_stale: Vec<_> =
        [0, revision, revision].into_iter().zip(&claims).map(|(r, c)| adoption(c, r, sid)).collect();
    let answers = claims::adopt_all(&kv, &some_stale).await;
    assert_eq!(answers[0], AdoptAnswer::LookAgain);
    assert!(answers[1..].iter().all(|answer| matches!(answer, AdoptAnswer::Done(..))), "{answers:?}");
}

#[tokio::test]
async fn only_the_runs_own_lock_is_released() {
    let kv = store();
    let (_, claim) = claimable(&kv).await;
    let ClaimAnswer::Won(revision) = claims::claim(&kv, &claim).await else { panic!("won") };
    let other = Claim { open: open_run(claim.sid, 2, T), ..claim.clone() };
    // Of another revision; of another run (in a store that was put back revisions repeat).
    for not_it in [held(&claim, revision - 1), held(&other, revision)] {
        claims::release_all(&kv, &[not_it]).await.unwrap();
        assert!(get(&kv, keys::lock(&job())).await.is_some());
    }
    for _ in 0..2 {
        claims::release_all(&kv, &[held(&claim, revision)]).await.unwrap();
        assert_eq!(get(&kv, keys::lock(&job())).await, None);
    }
}

#[tokio::test]
async fn a_run_moves_to_a_new_session_unless_it_was_closed() {
    let kv = store();
    let (old, claim) = claimable(&kv).await;
    claims::claim(&kv, &claim).await;
    kv.revoke(old.lease()).await.unwrap();
    let (new, ended) = (open_session(&kv).await, open_session(&kv).await);
    kv.revoke(ended.lease()).await.unwrap();
    let moved = claims::take_over(&kv, &claim.open, (old, 1), (ended, 1), false).await;
    assert_eq!(moved, Err(kv::Error::LeaseGone), "says nothing about the run");
    let done = claims::take_over(&kv, &claim.open, (old, 1), (new, 5), false).await.unwrap();
    let lock = get(&kv, keys::lock(&job())).await.unwrap();
    assert_eq!(LockHolder::decode(&lock.value), Ok(Some(LockHolder::new(new, claim.open.run_id.clone()))));
    assert_eq!(done, MoveAnswer::Done(lock.mod_revision));
    assert_eq!(get(&kv, keys::runs(old, 1)).await, None);
    assert!(get(&kv, keys::runs(new, 5)).await.is_some());
    // Sent again because its answer was lost.
    assert_eq!(claims::take_over(&kv, &claim.open, (old, 1), (new, 5), false).await, Ok(done));
    // Swept, or the lock taken by another.
    let next = open_session(&kv).await;
    assert_eq!(
        claims::take_over(&kv, &claim.open, (old, 1), (next, 1), false).await,
        Ok(MoveAnswer::Refused)
    );
    assert_eq!(
        claims::take_over(&kv, &claim.open, (new, 5), (next, 1), false).await,
        Ok(MoveAnswer::Refused)
    );
}

/// Found by seed 6299 of the simulation: its job had been edited, and a fire had taken the word from the mark while nobody saw the run.
#[tokio::test]
async fn a_run_without_the_lock_that_comes_into_a_session_is_known_to_the_mark() {
    let mark = || Mark::based(None, T, ScheduleHash::default());
    let mut knowing = mark();
    knowing.unlocked = true;
    for rescue in [false, true] {
        for (stored, retired) in
            [(None, false), (Some(mark()), false), (Some(mark()), true), (Some(knowing.clone()), false)]
        {
            let kv = store();
            let new = open_session(&kv).await;
            let open = OpenRun { unlocked: true, ..open_run(Sid(9), 1, T) };
            put(&kv, keys::runs(Sid(9), 1), OpenRuns::new(vec![open.clone()]).encode()).await;
            let lease = match retired {
                true => Some(kv.grant(TTL).await.unwrap()),
                false => None,
            };
            let before = match &stored {
                Some(mark) => {
                    let op = Op::Put { key: keys::fired(&job()).into(), value: mark.encode(), lease };
                    kv.txn(Txn { then: vec![op], ..Txn::default() }).await.unwrap().revision
                }
                None => 0,
            };
            let moved = || claims::take_over(&kv, &open, (Sid(9), 1), (new, 5), rescue);
            let done = moved().await.unwrap();
            let shared = get(&kv, keys::shared(&job(), &open.run_id)).await.unwrap();
            assert_eq!((done, shared.lease), (MoveAnswer::Done(shared.mod_revision), Some(new.lease())));
            let pair = get(&kv, keys::fired(&job())).await.unwrap();
            assert!(Mark::decode(&pair.value).unwrap().unlocked);
            assert_eq!(pair.lease, lease, "a mark that goes with its deleted job still does");
            assert_eq!(pair.mod_revision == before, stored.is_some_and(|mark| mark.unlocked));
            assert_eq!(moved().await, Ok(done), "sent again");
        }
    }
}

#[tokio::test]
async fn a_run_that_is_asked_for_beside_others_is_known_to_the_mark() {
    let kv = store();
    let (sid, fire) = claimable(&kv).await;
    let before = get(&kv, keys::fired(&job())).await.unwrap();
    put(&kv, keys::lock(&job()), "").await;
    let claim = async |seq: u64| {
        let open = OpenRun { unlocked: true, trigger: Trigger::Manual, ..open_run(sid, seq, T) };
        let request_revision = put(&kv, keys::request(&open.run_id), "asked").await;
        RequestClaim { sid, seq, open, request_revision, job_revision: fire.job_revision, spread: Vec::new() }
    };
    let (first, second) = (claim(2).await, claim(3).await);
    assert!(
        matches!(claims::claim_request(&kv, &first).await, RequestAnswer::Won(_)),
        "whoever has the lock"
    );
    let known = get(&kv, keys::fired(&job())).await.unwrap();
    let mark = Mark::decode(&known.value).unwrap();
    assert!(mark.unlocked && mark.plan_time == Mark::decode(&before.value).unwrap().plan_time);
    assert!(matches!(claims::claim_request(&kv, &second).await, RequestAnswer::Won(_)));
    assert_eq!(get(&kv, keys::fired(&job())).await, Some(known), "it is said once");
    assert_eq!(kv.range(Range::prefix(keys::shared_of(&job()))).await.unwrap().pairs.len(), 2);
    let RequestAnswer::Refused(refusal) = claims::claim_request(&kv, &second).await else {
        panic!("claimed")
    };
    assert!(refusal.open.is_some() && refusal.lock == LockSeen::Free, "{refusal:?}");
}

#[tokio::test]
async fn a_fire_for_every_worker_is_claimed_with_a_request_for_each_and_what_is_left_is_handed_out_once() {
    let kv = store();
    let (sid, fire) = claimable(&kv).await;
    let targets = (1..=5).map(|n| Target { worker: format!("w{n}"), sid: Sid(n) }).collect();
    let whole = Request::broadcast(job(), T, T, targets, "w1", T);
    let run_id = fire.open.run_id.clone();
    let asked = async || {
        let pairs = kv.range(Range::prefix(keys::REQUESTS)).await.unwrap().pairs;
        let one = |pair: &Pair| (keys::parse_request(&pair.key).unwrap(), pair.mod_revision);
        pairs.iter().map(one).collect::<BTreeMap<_, _>>()
    };
    let open = OpenRun { unlocked: true, ..fire.open.clone() };
    let spread = broadcast::spread(&run_id, &whole, 2);
    let rest = spread[2].1.clone();
    let claim = Claim { kind: ClaimKind::Broadcast, open: open.clone(), spread, ..fire.clone() };
    put(&kv, keys::PAUSED, "").await;
    let ClaimAnswer::Refused(refusal) = claims::claim(&kv, &claim).await else { panic!("claimed") };
    assert!(refusal.paused && asked().await.is_empty());
    delete(&kv, keys::PAUSED).await;
    assert!(matches!(claims::claim(&kv, &claim).await, ClaimAnswer::Won(_)));
    assert!(matches!(claims::claim(&kv, &claim).await, ClaimAnswer::Refused(_)), "once");
    let all = |last: i64| (1..=last).map(|n| run_id.of_worker(Sid(n)));
    let expected: Vec<RunId> = std::iter::once(run_id.clone()).chain(all(2)).collect();
    assert_eq!(asked().await.into_keys().collect::<Vec<_>>(), expected);
    for key in [keys::lock(&job()), keys::runs(sid, 1)] {
        assert_eq!(get(&kv, key).await, None, "nothing runs yet");
    }
    let hand_out = async |seq: u64, whole: &Request, at_once: usize| {
        let spread = broadcast::spread(&run_id, whole, at_once);
        let request_revision = asked().await[&run_id];
        let claim = RequestClaim {
            sid,
            seq,
            open: open.clone(),
            request_revision,
            job_revision: fire.job_revision,
            spread: spread.clone(),
        };
        assert!(matches!(claims::claim_request(&kv, &claim).await, RequestAnswer::Won(_)));
        let RequestAnswer::Refused(again) = claims::claim_request(&kv, &claim).await else { panic!("twice") };
        assert!(again.request_revision != request_revision && again.open.is_none());
        spread
    };
    let rest = hand_out(2, &rest, 2).await[2].1.clone();
    assert_eq!(asked().await.len(), 5);
    hand_out(3, &rest, 2).await;
    assert_eq!(asked().await.into_keys().collect::<Vec<_>>(), all(5).collect::<Vec<_>>());
}

#[tokio::test]
async fn whoever_notices_first_that_a_store_was_put_back_says_so() {
    let kv = store();
    let said = async || claims::parse_base(get(&kv, keys::BASE).await.as_ref());
    let later = |ms| T.plus_ms(ms);
    claims::note_restore(&kv, Some(Timestamp::ZERO), T).await.unwrap();
    assert_eq!(said().await, Base::default().restored(T));
    // Others notice the same, one of them minutes later, and one that was told nothing yet.
    claims::note_restore(&kv, Some(Timestamp::ZERO), later(600_000)).await.unwrap();
    claims::note_restore(&kv, None, later(-5)).await.unwrap();
    assert_eq!(said().await.restored, Some(T));
    // Put back again, to what it was after the first time, and the fleet had been paused.
    put(&kv, keys::BASE, Base::default().restored(T).resumed(later(9)).encode()).await;
    claims::note_restore(&kv, Some(T), later(3_600_000)).await.unwrap();
    assert_eq!(said().await, Base::default().restored(later(3_600_000)).resumed(later(9)));
    put(&kv, keys::BASE, "{\"v\":2}").await;
    claims::note_restore(&kv, None, later(3_700_000)).await.unwrap();
    assert_eq!(&*get(&kv, keys::BASE).await.unwrap().value, b"{\"v\":2}", "of a newer version: left alone");
}

#[tokio::test]
async fn a_run_is_rescued_into_a_store_that_went_back_whatever_is_there() {
    let kv = store();
    let open = open_run(Sid(9), 1, T);
    let (new, ended) = (open_session(&kv).await, open_session(&kv).await);
    kv.revoke(ended.lease()).await.unwrap();
    assert!(claims::take_over(&kv, &open, (Sid(9), 1), (ended, 1), true).await.is_err());
    // The backup knows nothing of it.
    let done = claims::take_over(&kv, &open, (Sid(9), 1), (new, 5), true).await.unwrap();
    let lock = get(&kv, keys::lock(&job())).await.unwrap();
    assert_eq!((done, lock.lease), (MoveAnswer::Done(lock.mod_revision), Some(new.lease())));
    assert!(get(&kv, keys::runs(new, 5)).await.is_some());
    assert_eq!(claims::take_over(&kv, &open, (Sid(9), 1), (new, 5), true).await, Ok(done), "sent again");
    // Its open run came back, and the lock is another's.
    put(&kv, keys::runs(Sid(9), 1), OpenRuns::new(vec![open.clone()]).encode()).await;
    let held = put(&kv, keys::lock(&job()), "").await;
    let unlocked = claims::take_over(&kv, &open, (Sid(9), 1), (new, 6), true).await.unwrap();
    assert!(matches!(unlocked, MoveAnswer::Unlocked(_)));
    assert_eq!(get(&kv, keys::lock(&job())).await.unwrap().mod_revision, held);
    assert_eq!(get(&kv, keys::runs(Sid(9), 1)).await, None);
    assert!(get(&kv, keys::runs(new, 6)).await.is_some());
}

/// Holds back the first request that would put a lock, as a network may.
struct Delaying {
    inner: EmbeddedKv,
    held_back: Mutex<Option<Txn>>,
}

#[async_trait]
impl Kv for Delaying {
    async fn txn(&self, txn: Txn) -> Result<TxnReply, kv::Error> {
        let puts_lock = txn
            .then
            .iter()
            .any(|op| matches!(op, Op::Put { key, .. } if key.strip_prefix(keys::LOCK).is_some()));
        if puts_lock && self.held_back.lock().unwrap().is_none() {
            *self.held_back.lock().unwrap() = Some(txn);
            return Err(kv::Error::Indeterminate("no answer".to_owned()));
        }
        self.inner.txn(txn).await
    }
    async fn range(&self, range: Range) -> Result<RangeReply, kv::Error> {
        self.inner.range(range).await
    }
    async fn watch(&self, span: Span, start: Revision) -> Result<WatchStream, kv::Error> {
        self.inner.watch(span, start).await
    }
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, kv::Error> {
        self.inner.grant(ttl).await
    }
    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, kv::Error> {
        self.inner.keep_alive(lease).await
    }
    async fn lease_keys(&self, lease: LeaseId) -> Result<Vec<kv::Key>, kv::Error> {
        self.inner.lease_keys(lease).await
    }
    async fn revoke(&self, lease: LeaseId) -> Result<(), kv::Error> {
        self.inner.revoke(lease).await
    }
    async fn compact(&self, revision: Revision) -> Result<(), kv::Error> {
        self.inner.compact(revision).await
    }
    async fn room(&self) -> Result<kv::Room, kv::Error> {
        self.inner.room().await
    }
}

#[tokio::test]
async fn a_rescue_that_comes_late_puts_no_lock_of_a_run_that_is_over() {
    let kv = Delaying { inner: store(), held_back: Mutex::default() };
    let (open, new) = (open_run(Sid(9), 1, T), open_session(&kv).await);
    let rescue = || claims::take_over(&kv, &open, (Sid(9), 1), (new, 1), true);
    assert!(matches!(rescue().await, Err(kv::Error::Indeterminate(_))));
    let Ok(MoveAnswer::Done(lock)) = rescue().await else { panic!("the second sending commits") };
    // The run ends.
    claims::settle(&kv, &[(new, 1)]).await.unwrap();
    let lock = HeldLock::new(job(), lock, new, open.run_id.clone(), false);
    claims::release_all(&kv, &[lock]).await.unwrap();
    let late = kv.held_back.lock().unwrap().take().unwrap();
    assert!(!kv.inner.txn(late).await.unwrap().succeeded);
    assert_eq!(get(&kv, keys::lock(&job())).await, None);
    assert_eq!(get(&kv, keys::runs(new, 1)).await, None);
}

#[tokio::test]
async fn settling_deletes_just_those_open_runs() {
    let kv = store();
    let many: Vec<(Sid, u64)> = (1..=300).map(|seq| (Sid(7), seq)).collect();
    for (sid, seq) in &many {
        put(&kv, keys::runs(*sid, *seq), "x").await;
    }
    put(&kv, keys::runs(Sid(8), 100), "x").await;
    // In any order, neighbours and single ones, more ranges than go in one transaction.
    let kept = |(_, seq): &(Sid, u64)| *seq < 280 && seq % 2 == 1;
    let (left, mut settled): (Vec<_>, Vec<_>) = many.into_iter().partition(kept);
    settled.reverse();
    claims::settle(&kv, &settled).await.unwrap();
    let expected: Vec<kv::Key> =
        left.into_iter().chain([(Sid(8), 100)]).map(|(sid, seq)| keys::runs(sid, seq).into()).collect();
    let left = kv.range(Range::prefix(keys::RUNS)).await.unwrap().pairs;
    assert_eq!(left.into_iter().map(|pair| pair.key).collect::<Vec<_>>(), expected);
}

/// The slots that were told, in order, and their marks.
async fn marks_read(kv: &dyn Kv, slots: &Slots) -> (Vec<u16>, BTreeMap<JobName, MarkSeen>) {
    let (mut told, mut all) = (Vec::new(), BTreeMap::new());
    let tell = |(slots, marks): claims::MarksRead| {
        told.extend(slots);
        all.extend(marks);
        std::future::ready(())
    };
    claims::read_marks(kv, slots, false, tell).await.unwrap();
    (told, all)
}

#[tokio::test]
async fn marks_are_read_by_slot_or_all_in_pages() {
    let kv = store();
    let mark = Mark::based(None, T, ScheduleHash::default());
    for n in 0..1200 {
        let name = JobName::parse(&format!("job{n}")).unwrap();
        put(&kv, keys::fired(&name), mark.encode()).await;
    }
    put(&kv, format!("{}strange", keys::FIRED), "x").await;
    let name = JobName::parse("job7").unwrap();
    put(&kv, keys::fired(&name), "not a mark").await;
    // More than a page of one slot, in the middle of the others.
    for number in 0..1100 {
        put(&kv, format!("{}other{number}", keys::fired_slot(700)), "not a mark").await;
    }
    let (slots, marks) = marks_read(&kv, &Slots::All).await;
    assert_eq!((slots.len(), marks.len()), (usize::from(keys::SLOTS), 1200 + 1100));
    let mut sorted = slots.clone();
    sorted.sort_unstable();
    assert_eq!(slots, sorted, "each slot is told once");
    let (read, marks) = marks_read(&kv, &Slots::Some([keys::slot(&name)].into())).await;
    assert_eq!(read, [keys::slot(&name)]);
    assert!(marks[&name].mark.is_err());
    assert!(marks.keys().all(|job| keys::slot(job) == keys::slot(&name)));
}

#[tokio::test]
async fn the_mark_of_a_deleted_job_is_retired_and_that_of_a_living_one_is_not() {
    let kv = store();
    let (_, claim) = claimable(&kv).await;
    let stored = Mark::decode(&get(&kv, keys::fired(&job())).await.unwrap().value).unwrap();
    claims::retire_mark(&kv, &job(), claim.mark_revision, &stored).await.unwrap();
    assert_eq!(get(&kv, keys::fired(&job())).await.unwrap().lease, None);
    delete(&kv, keys::job(&job())).await;
    claims::retire_mark(&kv, &job(), claim.mark_revision, &claim.mark).await.unwrap();
    assert_eq!(get(&kv, keys::fired(&job())).await.unwrap().lease, None, "it is another mark");
    claims::retire_mark(&kv, &job(), claim.mark_revision, &stored).await.unwrap();
    let retired = get(&kv, keys::fired(&job())).await.unwrap();
    assert_eq!(Mark::decode(&retired.value), Ok(stored));
    assert!(retired.lease.is_some());
}

// --- sessions ----------------------------------------------------------------------------------------------------------

fn identity(instance: &str) -> Identity {
    Identity {
        instance: instance.to_owned(),
        host: "host".to_owned(),
        address: "10.0.0.1".to_owned(),
        labels: BTreeMap::new(),
        max_runs: 10,
        started_at: T,
    }
}

const OWNS: session::Standing = session::Standing { aside: false, asks: false };

async fn establish(kv: &dyn Kv, instance: &str) -> session::Session {
    session::establish(kv, &SystemClock, &identity(instance), "w", TTL, OWNS).await
}

#[tokio::test]
async fn the_same_instance_takes_its_registration_over_and_another_gets_a_suffix() {
    let kv = store();
    let first = establish(&kv, "one").await;
    assert_eq!(first.worker_id, "w");
    let other = establish(&kv, "two").await;
    assert_eq!(other.worker_id, "w~2");
    let again = establish(&kv, "one").await;
    assert_eq!(again.worker_id, "w");
    assert_eq!(get(&kv, keys::session(first.sid)).await, None, "its old session is over at once");
    assert!(get(&kv, keys::session(other.sid)).await.is_some());
    let registered = get(&kv, keys::worker("w")).await.unwrap();
    assert_eq!(Registration::decode(&registered.value).unwrap().unwrap().sid, again.sid);
    assert_eq!((registered.lease, registered.mod_revision), (Some(again.sid.lease()), again.registered_at));
    session::deregister(&kv, &again).await.unwrap();
    assert_eq!(get(&kv, keys::worker("w")).await, None);
    assert!(get(&kv, keys::session(again.sid)).await.is_some(), "the session goes on");
}

#[tokio::test]
async fn a_registration_that_a_seed_worker_or_somebody_unknown_holds_is_left_alone() {
    for value in ["", "unreadable"] {
        let kv = store();
        let revision = put(&kv, keys::worker("w"), value).await;
        let session = establish(&kv, "one").await;
        assert_eq!(session.worker_id, "w~2");
        assert_eq!(get(&kv, keys::worker("w")).await.unwrap().mod_revision, revision);
        // Nor is what is not ours taken away.
        let not_ours = session::Session { worker_id: "w".to_owned(), ..session };
        session::deregister(&kv, &not_ours).await.unwrap();
        assert!(get(&kv, keys::worker("w")).await.is_some());
    }
}

#[tokio::test]
async fn a_registration_is_put_again_as_long_as_it_is_the_sessions_own_and_never_comes_back() {
    let kv = store();
    let session = establish(&kv, "one").await;
    let aside = session::Standing { aside: true, asks: true };
    let before = SystemClock.now();
    let renew =
        async || session::renew(&kv, &SystemClock, &identity("one"), "w", session.sid, aside).await.unwrap();
    let revision = renew().await.expect("it is there");
    let pair = get(&kv, keys::worker("w")).await.unwrap();
    assert_eq!((pair.mod_revision, pair.lease), (revision, Some(session.sid.lease())));
    let registration = Registration::decode(&pair.value).unwrap().unwrap();
    assert!(registration.aside && registration.asks && registration.clock >= before);
    put(&kv, keys::worker("w"), "").await;
    assert_eq!(renew().await, None, "a seed worker has put its own over it");
    assert_eq!(get(&kv, keys::worker("w")).await.unwrap().value, b"");
    delete(&kv, keys::worker("w")).await;
    assert_eq!(renew().await, None, "taken away, as by a drain");
    assert_eq!(get(&kv, keys::worker("w")).await, None);
}

// --- sweeping ----------------------------------------------------------------------------------------------------------

pub(super) async fn records(run_log: &dyn RunLog, name: &str) -> Vec<Record> {
    let query = RecordQuery { job_name: name.to_owned(), limit: 1000, ..RecordQuery::default() };
    run_log.list(&query).await.unwrap()
}

/// A store that does not always take so many records.
pub(super) struct Picky {
    pub(super) inner: EmbeddedRunLog,
    pub(super) takes: Box<dyn Fn(usize) -> bool + Send + Sync>,
}

/// One that takes too long over more than a few at once.
fn slow_log() -> Picky {
    Picky { inner: EmbeddedRunLog::in_memory().unwrap(), takes: Box::new(|records| records <= 10) }
}

#[async_trait]
impl RunLog for Picky {
    async fn prepare(&self) -> Result<(), run_log::Error> {
        self.inner.prepare().await
    }
    async fn append(&self, records: &[Record]) -> Result<Appended, run_log::Error> {
        match (self.takes)(records.len()) {
            true => self.inner.append(records).await,
            false => Err(run_log::Error::Unavailable("no answer within 3s".to_owned())),
        }
    }
    async fn list(&self, query: &RecordQuery) -> Result<Vec<Record>, run_log::Error> {
        self.inner.list(query).await
    }
    async fn place(&self, query: &RecordQuery) -> Result<Option<Place>, run_log::Error> {
        self.inner.place(query).await
    }
    async fn get(&self, id: &str) -> Result<Option<Record>, run_log::Error> {
        self.inner.get(id).await
    }
    async fn put_output(&self, chunks: &[Chunk]) -> Result<(), run_log::Error> {
        self.inner.put_output(chunks).await
    }
    async fn output(&self, run_id: &RunId, after: u64) -> Result<Vec<Chunk>, run_log::Error> {
        self.inner.output(run_id, after).await
    }
    async fn jobs(&self, after: &str, limit: u32) -> Result<Vec<String>, run_log::Error> {
        self.inner.jobs(after, limit).await
    }
    async fn remove(&self, what: &Removal, limit: u32) -> Result<u64, run_log::Error> {
        self.inner.remove(what, limit).await
    }
}

#[async_trait]
impl History for Picky {
    async fn prepare_history(&self) -> Result<(), run_log::Error> {
        self.inner.prepare_history().await
    }

    async fn keep(&self, entries: &[Change]) -> Result<(), run_log::Error> {
        self.inner.keep(entries).await
    }

    async fn kept(&self, shelf: Shelf, query: &Query) -> Result<Vec<Change>, run_log::Error> {
        self.inner.kept(shelf, query).await
    }

    async fn kept_jobs(&self, after: &str, limit: u32) -> Result<Vec<String>, run_log::Error> {
        self.inner.kept_jobs(after, limit).await
    }

    async fn forget(
        &self,
        shelf: Shelf,
        name: Option<&str>,
        below: &EntryId,
        limit: u32,
    ) -> Result<u64, run_log::Error> {
        self.inner.forget(shelf, name, below, limit).await
    }
}

/// Found by chaos on real parts: after an outage every survivor sent the same hundred records every few seconds, and none was taken.
#[tokio::test]
async fn a_sweep_gets_done_on_a_store_that_is_slow() {
    let (kv, run_log) = (store(), slow_log());
    let gone = Sid(555);
    for seq in 1..=250 {
        let plan_time = T.plus_ms(i64::try_from(seq).unwrap() * 1000);
        put(&kv, keys::runs(gone, seq), OpenRuns::new(vec![open_run(gone, seq, plan_time)]).encode()).await;
    }
    assert_eq!(
        sweep::sweep(&kv, &run_log, &SystemClock, &BTreeSet::new(), Timestamp::ZERO, None).await.unwrap(),
        250
    );
    assert_eq!(records(&run_log, "a").await.len(), 250);
}

#[tokio::test]
async fn records_reach_a_store_that_is_slow() {
    let (kv, run_log) = (Arc::new(store()), Arc::new(slow_log()));
    let settings = SinkSettings {
        size: 100,
        timeout: Duration::from_millis(10),
        spool: None,
        spool_bytes_max: None,
        appends: Arc::default(),
    };
    let notices = Notices::none(Arc::clone(&kv) as Arc<dyn Kv>);
    let run_log_port = Arc::clone(&run_log) as Arc<dyn RunLog>;
    let mut sink = Sink::start(kv, run_log_port, settings, Live::default(), notices);
    for second in 0..60 {
        let open = open_run(Sid(5), 1, T.plus_ms(second * 1000));
        let record = Box::new(Record::left_behind(&open, T));
        sink.put(Entry { record, settles: None });
    }
    let stored = async {
        while sink.waiting().figures().records > 0 {
            sink.stored_some().await;
        }
    };
    clock::timeout(DEADLINE, stored).await.unwrap();
    assert_eq!(records(run_log.as_ref(), "a").await.len(), 60);
}

#[tokio::test]
async fn one_survivor_closes_at_once_what_is_left_and_the_others_wait_for_their_turn() {
    let (kv, run_log, gone) = (store(), EmbeddedRunLog::in_memory().unwrap(), Sid(555));
    let alive = BTreeSet::from([open_session(&kv).await, open_session(&kv).await, open_session(&kv).await]);
    let next = alive.iter().find(|sid| **sid > gone).or(alive.first()).copied().unwrap();
    put(&kv, keys::runs(gone, 1), OpenRuns::new(vec![open_run(gone, 1, T)]).encode()).await;
    for own in alive.iter().filter(|sid| **sid != next).chain([&next]) {
        let (own, mut turns) = (BTreeSet::from([*own]), Turns::new());
        let swept =
            sweep::sweep(&kv, &run_log, &SystemClock, &own, Timestamp::ZERO, Some(&mut turns)).await.unwrap();
        let is_next = own.contains(&next);
        assert_eq!((swept, turns.next().is_some()), (usize::from(is_next), !is_next));
    }
    assert_eq!(records(&run_log, "a").await.len(), 1);
}

/// Found by seed 3773 of the simulation: it may have ended, and been tried again, in what the store was before.
#[tokio::test]
async fn what_was_lost_before_a_store_was_put_back_is_not_tried_again() {
    let (kv, run_log) = (store(), EmbeddedRunLog::in_memory().unwrap());
    let retry = Retry { attempts: 2, backoff: 0, on_lost: Some(true) };
    for (seq, claimed) in [(1, T), (2, T.plus_ms(1))] {
        let open =
            OpenRun { on_lost: Some(retry), schedule_time: claimed, ..open_run(Sid(555), seq, claimed) };
        put(&kv, keys::runs(Sid(555), seq), OpenRuns::new(vec![open]).encode()).await;
    }
    put(&kv, keys::BASE, Base::default().restored(T).encode()).await;
    assert_eq!(
        sweep::sweep(&kv, &run_log, &SystemClock, &BTreeSet::new(), Timestamp::ZERO, None).await.unwrap(),
        2
    );
    let asked: Vec<kv::Key> = kv
        .range(Range::prefix(keys::REQUESTS))
        .await
        .unwrap()
        .pairs
        .into_iter()
        .map(|pair| pair.key)
        .collect();
    assert_eq!(asked, [keys::request(&RunId::new(Sid(555), 2).of_attempt(2)).into()]);
    assert_eq!(records(&run_log, "a").await.len(), 2);
}

#[tokio::test]
async fn open_runs_of_sessions_that_are_gone_are_closed_once_and_no_others() {
    let (kv, run_log) = (store(), EmbeddedRunLog::in_memory().unwrap());
    let (alive, gone, own) = (open_session(&kv).await, Sid(555), Sid(777));
    let skipped = Skipped { to: T.plus_ms(2000), count: 3, ..Skipped::one(T, SkipReason::Overlap) };
    let skip = OpenRun { skipped: Some(skipped.clone()), ..open_run(gone, 2, T) };
    for (sid, seq, open) in [
        (alive, 1, open_run(alive, 1, T.plus_ms(10_000))),
        (own, 1, open_run(own, 1, T.plus_ms(20_000))),
        (gone, 1, open_run(gone, 1, T.plus_ms(30_000))),
        (gone, 2, skip),
    ] {
        put(&kv, keys::runs(sid, seq), OpenRuns::new(vec![open]).encode()).await;
    }
    put(&kv, keys::runs(gone, 3), "unreadable").await;
    let spared = BTreeSet::from([own]);
    assert_eq!(sweep::sweep(&kv, &run_log, &SystemClock, &spared, Timestamp::ZERO, None).await.unwrap(), 2);
    assert_eq!(sweep::sweep(&kv, &run_log, &SystemClock, &spared, Timestamp::ZERO, None).await.unwrap(), 0);
    let left = kv.range(Range::prefix(keys::RUNS)).await.unwrap().pairs;
    let kept = [keys::runs(gone, 3), keys::runs(own, 1), keys::runs(alive, 1)].map(kv::Key::from);
    assert_eq!(left.into_iter().map(|pair| pair.key).collect::<BTreeSet<_>>(), kept.into());
    let records = records(&run_log, "a").await;
    let found: Vec<_> = records.iter().map(|r| (r.status, r.claim.clone(), r.skipped.clone())).collect();
    assert_eq!(
        found,
        [
            (Some(Status::Lost), Some(RunId::new(gone, 1)), None),
            (Some(Status::Skipped), Some(RunId::new(gone, 2)), Some(skipped)),
        ]
    );
}

// --- following ---------------------------------------------------------------------------------------------------------

/// A store whose watches can be cut, whose next watches fail in a given way, and which refuses so many leases, and puts of the settings.
struct Faulty {
    inner: EmbeddedKv,
    failing: Mutex<Vec<kv::Error>>,
    no_leases: AtomicUsize,
    lists: AtomicUsize,
    watches: AtomicUsize,
}

#[async_trait]
impl Kv for Faulty {
    async fn range(&self, range: Range) -> Result<RangeReply, kv::Error> {
        self.lists.fetch_add(1, Ordering::Relaxed);
        self.inner.range(range).await
    }
    /// Nobody may put the settings.
    async fn txn(&self, txn: Txn) -> Result<TxnReply, kv::Error> {
        let settings =
            |op: &Op| matches!(op, Op::Put { key, .. } if key.strip_prefix(keys::SETTINGS).is_some());
        if txn.then.iter().any(settings) {
            return Err(kv::Error::Denied("permission denied".to_owned()));
        }
        self.inner.txn(txn).await
    }
    /// While a failure is left, a watch brings one batch and then fails.
    async fn watch(&self, span: Span, start: Revision) -> Result<WatchStream, kv::Error> {
        self.watches.fetch_add(1, Ordering::Relaxed);
        let stream = self.inner.watch(span, start).await?;
        let failure = self.failing.lock().unwrap().pop();
        Ok(match failure {
            Some(why) => stream.take(1).chain(futures::stream::iter([Err(why)])).boxed(),
            None => stream,
        })
    }
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, kv::Error> {
        let refused =
            self.no_leases.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if refused.is_ok() {
            return Err(kv::Error::Unavailable("away".to_owned()));
        }
        self.inner.grant(ttl).await
    }
    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, kv::Error> {
        self.inner.keep_alive(lease).await
    }
    async fn lease_keys(&self, lease: LeaseId) -> Result<Vec<kv::Key>, kv::Error> {
        self.inner.lease_keys(lease).await
    }
    async fn revoke(&self, lease: LeaseId) -> Result<(), kv::Error> {
        self.inner.revoke(lease).await
    }
    async fn compact(&self, revision: Revision) -> Result<(), kv::Error> {
        self.inner.compact(revision).await
    }
    async fn room(&self) -> Result<kv::Room, kv::Error> {
        self.inner.room().await
    }
}

#[tokio::test]
async fn where_a_worker_may_not_put_missing_settings_it_goes_by_no_calendar() {
    let kv = Faulty {
        inner: store(),
        failing: Mutex::default(),
        no_leases: AtomicUsize::new(0),
        lists: AtomicUsize::new(0),
        watches: AtomicUsize::new(0),
    };
    let calendar = Calendar::default().encode();
    put(&kv.inner, keys::calendar(&CalendarName::parse("holidays").unwrap()), calendar).await;
    let Event::Settings(Some(read), 0) = fleet_settings::read(&kv).await.unwrap() else {
        panic!("jobs without a calendar go on")
    };
    assert_eq!(read, FleetSettings::default());
}

#[tokio::test]
async fn a_watch_that_breaks_goes_on_where_it_was_and_one_compacted_lists_again() {
    let failing = vec![kv::Error::Compacted(3), kv::Error::Unavailable("cut".to_owned())];
    let kv = Arc::new(Faulty {
        inner: store(),
        failing: Mutex::new(failing),
        no_leases: AtomicUsize::new(0),
        lists: AtomicUsize::new(0),
        watches: AtomicUsize::new(0),
    });
    put(&kv.inner, "/x/0", "0").await;
    let (told, mut news) = mpsc::channel(100);
    let following = tokio::spawn(follow(kv.clone() as Arc<dyn Kv>, Span::prefix("/x/"), move |news| {
        let told = told.clone();
        async move { told.send(news).await.is_ok() }
    }));
    let mut next = async || clock::timeout(DEADLINE, news.recv()).await.unwrap().unwrap();
    let listed = |news: News| match news {
        News::Page { pairs, first: true, last: true } => pairs.len(),
        News::Page { .. } => panic!("more than one page"),
        News::Changed(changes) => panic!("{changes:?}"),
    };
    let changed = |news: News| match news {
        News::Changed(changes) => changes.into_iter().map(|c| c.pair.key.to_string()).collect::<Vec<_>>(),
        News::Page { pairs, .. } => panic!("{pairs:?}"),
    };
    assert_eq!(listed(next().await), 1);
    put(&kv.inner, "/x/1", "1").await;
    assert_eq!(changed(next().await), ["/x/1"]);
    put(&kv.inner, "/x/2", "2").await; // the watch is cut here, and resumed: nothing missed, nothing twice
    assert_eq!(changed(next().await), ["/x/2"]);
    assert_eq!(listed(next().await), 3, "the second watch ended as compacted");
    put(&kv.inner, "/x/3", "3").await;
    assert_eq!(changed(next().await), ["/x/3"]);
    // Two lists, and a look whether the store went back before the watch was resumed.
    assert_eq!((kv.lists.load(Ordering::Relaxed), kv.watches.load(Ordering::Relaxed)), (3, 3));
    following.abort();
}

// --- the whole worker --------------------------------------------------------------------------------------------------

pub(super) async fn wait_for<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let waiting = async {
        loop {
            match look().await {
                Some(found) => return found,
                None => clock::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    clock::timeout(DEADLINE, waiting).await.unwrap_or_else(|_| panic!("{what}: not within {DEADLINE:?}"))
}

pub(super) fn ports() -> Ports {
    Ports {
        kv: Arc::new(store()),
        run_log: Arc::new(EmbeddedRunLog::in_memory().unwrap()),
        clock: Arc::new(SystemClock),
    }
}

pub(super) fn options() -> Options {
    Options {
        identity: identity("one"),
        worker_id: "w".to_owned(),
        session_ttl: Duration::from_secs(10),
        log_batch_size: 100,
        log_commit_timeout: Duration::from_millis(50),
        retention: Retention { days: 0, max_per_job: 0 },
        audit_days: 0,
        data_dir: None,
        shell: Arc::default(),
        outbound: Arc::new(Outbound::new(Networks::default())),
        spool_bytes_max: None,
        channels: Arc::default(),
        certificates: Vec::new(),
    }
}

/// Its loop must sleep while there is no session: one that spins keeps the task that seeks it from running.
#[test]
fn a_worker_that_gets_no_session_for_a_while_comes_back() {
    let (told, status) = std::sync::mpsc::channel();
    // A runtime of one thread, away from this one: if it hangs, this test still ends.
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let kv = Faulty {
                inner: store(),
                failing: Mutex::default(),
                no_leases: AtomicUsize::new(5), // longer than a third of the session's life
                lists: AtomicUsize::new(0),
                watches: AtomicUsize::new(0),
            };
            let ports = Ports { kv: Arc::new(kv), ..ports() };
            let worker = Worker::start(ports, Options { session_ttl: Duration::from_secs(2), ..options() });
            told.send(worker.status()).unwrap();
            std::future::pending::<()>().await;
        });
    });
    let status = status.recv_timeout(DEADLINE).unwrap();
    let waiting = clock::Stopwatch::start();
    while status.not_ready().is_some() {
        assert!(waiting.elapsed() < DEADLINE, "no session although the store is back");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub(super) async fn put_job(kv: &dyn Kv, name: &str, command: &str) {
    let job = serde_json::json!({ "name": name, "command": command, "cronExpr": "* * * * * *" });
    put(kv, keys::job(&JobName::parse(name).unwrap()), job.to_string()).await;
}

#[tokio::test]
async fn a_worker_runs_a_job_writes_its_records_and_leaves_nothing_behind() {
    let ports = ports();
    put_job(ports.kv.as_ref(), "hello", "echo hello; echo $CRON_PLAN_TIME").await;
    let mut worker = Worker::start(ports.clone(), options());
    wait_for("three records", async || {
        (records(ports.run_log.as_ref(), "hello").await.len() >= 3).then_some(())
    })
    .await;
    worker.drain().await;
    clock::timeout(DEADLINE, worker.left()).await.unwrap().unwrap();
    for prefix in [keys::RUNS, keys::LOCK, keys::SESSIONS, keys::WORKERS] {
        assert_eq!(ports.kv.range(Range::prefix(prefix)).await.unwrap().pairs, [], "{prefix}");
    }
    let records = records(ports.run_log.as_ref(), "hello").await;
    for record in &records {
        assert_eq!(record.status, Some(Status::Succeeded), "{record:?}");
        assert_eq!(record.output, format!("hello\n{}\n", record.plan_time.ms()));
    }
    let times: BTreeSet<i64> = records.iter().map(|record| record.plan_time.ms()).collect();
    let seconds = (times.last().unwrap() - times.first().unwrap()) / 1000 + 1;
    assert_eq!(
        (i64::try_from(times.len()).unwrap(), records.len()),
        (seconds, times.len()),
        "each second once"
    );
}

/// The machine's clock, off by what the test says.
#[derive(Default)]
struct Off(AtomicI64);

#[async_trait]
impl Clock for Off {
    fn now(&self) -> Timestamp {
        SystemClock.now().plus_ms(self.0.load(Ordering::Relaxed))
    }
    async fn sleep_until(&self, deadline: Timestamp) {
        SystemClock.sleep_until(deadline.plus_ms(-self.0.load(Ordering::Relaxed))).await;
    }
}

/// The records of a job that a worker ran.
async fn ran(run_log: &dyn RunLog, job: &str, worker: &str) -> usize {
    let by_it = |record: &&Record| record.worker.as_deref() == Some(worker) && record.exit_code.is_some();
    records(run_log, job).await.iter().filter(by_it).count()
}

#[tokio::test]
async fn of_workers_that_disagree_about_the_time_those_claim_that_most_agree_with() {
    let ports = ports();
    let jobs: Vec<String> = (0..8).map(|n| format!("job-{n}")).collect();
    let off = Arc::new(Off::default());
    let wrong = Ports { clock: Arc::clone(&off) as Arc<dyn Clock>, ..ports.clone() };
    off.0.store(365 * 24 * 3600 * 1000, Ordering::Relaxed);
    let start = |ports: &Ports, id: &str| {
        let options = Options { worker_id: id.to_owned(), identity: identity(id), ..options() };
        Worker::start(ports.clone(), options)
    };
    let mut good = start(&ports, "good");
    wait_for("the good one's session", async || good.status().not_ready().is_none().then_some(())).await;
    let mut bad = start(&wrong, "bad");
    for job in &jobs {
        put_job(ports.kv.as_ref(), job, "true").await;
    }
    let why = wait_for("the wrong one to say so", async || {
        bad.status().not_ready().filter(|why| why.contains("ahead of the median"))
    })
    .await;
    assert!(bad.status().metrics().contains("fleetcron_clock_trusted 0"), "{why}");
    let run_log = ports.run_log.as_ref();
    for job in &jobs {
        wait_for("runs of each job", async || (ran(run_log, job, "good").await >= 2).then_some(())).await;
        assert_eq!(ran(run_log, job, "bad").await, 0);
    }
    let standing = get(ports.kv.as_ref(), keys::worker("bad")).await.unwrap();
    assert!(Registration::decode(&standing.value).unwrap().unwrap().aside, "it owns nothing");

    off.0.store(0, Ordering::Relaxed);
    wait_for("a run by the mended one", async || {
        for job in &jobs {
            if ran(run_log, job, "bad").await > 0 {
                return Some(());
            }
        }
        None
    })
    .await;
    assert_eq!(bad.status().not_ready(), None);
    for worker in [&mut bad, &mut good] {
        worker.drain().await;
        clock::timeout(DEADLINE, worker.left()).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_kill_request_ends_the_run_that_it_names() {
    let ports = ports();
    let kv = ports.kv.as_ref();
    put_job(kv, "long", "echo began; sleep 1000").await;
    let mut worker = Worker::start(ports.clone(), options());
    let open = wait_for("an open run", async || {
        let pairs = kv.range(Range::prefix(keys::RUNS)).await.unwrap().pairs;
        let open = OpenRuns::decode(&pairs.first()?.value).unwrap().runs.remove(0);
        (SystemClock.now() > open.plan_time.plus_ms(200)).then_some(open)
    })
    .await;
    delete(kv, keys::job(&open.job)).await; // or it would run again
    put(kv, keys::killer(&open.job), KillRequest::new(vec![open.run_id.clone()], by_test()).encode()).await;
    let killed = wait_for("its record", async || {
        let records = records(ports.run_log.as_ref(), "long").await;
        records.into_iter().find(|record| record.claim.as_ref() == Some(&open.run_id))
    })
    .await;
    assert_eq!((killed.status, killed.err.as_str()), (Some(Status::Killed), "signal: terminated"));
    assert_eq!(killed.output, "began\n");
    worker.drain().await;
    clock::timeout(DEADLINE, worker.left()).await.unwrap().unwrap();
    assert_eq!(kv.range(Range::prefix(keys::RUNS)).await.unwrap().pairs, []);
}

#[tokio::test]
async fn a_worker_whose_session_is_revoked_gets_another_and_its_run_goes_on() {
    let ports = ports();
    let kv = ports.kv.as_ref();
    put_job(kv, "long", "sleep 4").await;
    let mut worker =
        Worker::start(ports.clone(), Options { session_ttl: Duration::from_secs(2), ..options() });
    let open = wait_for("an open run", async || {
        let pairs = kv.range(Range::prefix(keys::RUNS)).await.unwrap().pairs;
        Some(OpenRuns::decode(&pairs.first()?.value).unwrap().runs.remove(0))
    })
    .await;
    clock::SystemClock.sleep_until(open.plan_time.plus_ms(200)).await;
    delete(kv, keys::job(&open.job)).await;
    let sid = Sid::parse(open.run_id.as_str().split_once('-').unwrap().0).unwrap();
    kv.revoke(sid.lease()).await.unwrap();
    let record = wait_for("its record", async || {
        let records = records(ports.run_log.as_ref(), "long").await;
        records.into_iter().find(|record| record.claim.as_ref() == Some(&open.run_id))
    })
    .await;
    assert_eq!(record.status, Some(Status::Succeeded), "{record:?}");
    worker.drain().await;
    clock::timeout(DEADLINE, worker.left()).await.unwrap().unwrap();
    for prefix in [keys::RUNS, keys::LOCK, keys::SESSIONS] {
        assert_eq!(kv.range(Range::prefix(prefix)).await.unwrap().pairs, [], "{prefix}");
    }
}

#[tokio::test]
async fn a_worker_whose_registration_a_seed_worker_takes_goes_on_under_another_name() {
    let ports = ports();
    let kv = ports.kv.as_ref();
    let mut worker = Worker::start(ports.clone(), options());
    wait_for("a registration", async || get(kv, keys::worker("w")).await).await;
    put(kv, keys::worker("w"), "").await;
    wait_for("another name", async || get(kv, keys::worker("w~2")).await).await;
    assert_eq!(get(kv, keys::worker("w")).await.unwrap().value, b"");
    worker.drain().await;
    clock::timeout(DEADLINE, worker.left()).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_worker_whose_registration_is_deleted_registers_again_and_goes_on() {
    let ports = ports();
    let kv = ports.kv.as_ref();
    put_job(kv, "a", ":").await;
    let mut worker = Worker::start(ports.clone(), options());
    wait_for("a record", async || records(ports.run_log.as_ref(), "a").await.pop()).await;
    for _ in 0..2 {
        let before = wait_for("a registration", async || get(kv, keys::worker("w")).await).await;
        delete(kv, keys::worker("w")).await;
        let after = wait_for("another", async || get(kv, keys::worker("w")).await).await;
        assert!(after.mod_revision > before.mod_revision);
        let read = |pair: Pair| Registration::decode(&pair.value).unwrap().unwrap().sid;
        assert_eq!(read(after), read(before), "the session goes on");
        let so_far = records(ports.run_log.as_ref(), "a").await.len();
        wait_for("more records", async || {
            (records(ports.run_log.as_ref(), "a").await.len() > so_far).then_some(())
        })
        .await;
    }
    worker.drain().await;
    clock::timeout(DEADLINE, worker.left()).await.unwrap().unwrap();
    assert_eq!(get(kv, keys::worker("w")).await, None);
}

// --- the audit ---------------------------------------------------------------------------------------------------------

/// What a worker that knows nothing finds of its session; answers how much it has closed.
async fn audit(suspects: &mut Suspects, kv: &dyn Kv, run_log: &dyn RunLog, sid: Sid) -> usize {
    let reading = audit::read(kv, sid).await.unwrap();
    let mut leased = reading.leased;
    leased.retain(|key| keys::parse_lock(key).is_some());
    let unknown = Unknown { open: reading.open, leased };
    suspects.judge(kv, run_log, &SystemClock, sid, unknown).await.unwrap()
}

#[tokio::test]
async fn what_nobody_knows_of_twice_is_closed_and_freed() {
    let kv = store();
    let run_log = EmbeddedRunLog::in_memory().unwrap();
    let (sid, claim) = claimable(&kv).await;
    let ClaimAnswer::Won(_) = claims::claim(&kv, &claim).await else { panic!("won") };
    let mut suspects = Suspects::default();
    assert_eq!(audit(&mut suspects, &kv, &run_log, sid).await, 0, "it may be on its way");
    assert!(get(&kv, keys::lock(&job())).await.is_some());
    assert_eq!(audit(&mut suspects, &kv, &run_log, sid).await, 2);
    assert_eq!(get(&kv, keys::lock(&job())).await, None);
    assert_eq!(get(&kv, keys::runs(sid, 1)).await, None);
    assert!(get(&kv, keys::session(sid)).await.is_some());
    let record = records(&run_log, "a").await.pop().unwrap();
    assert_eq!((record.status, record.claim), (Some(Status::Lost), Some(claim.open.run_id)));
    assert!(record.err.contains("knows nothing of this run"), "{}", record.err);
    assert_eq!(audit(&mut suspects, &kv, &run_log, sid).await, 0);
}

#[tokio::test]
async fn what_was_put_anew_between_two_audits_is_left_alone() {
    let kv = store();
    let run_log = EmbeddedRunLog::in_memory().unwrap();
    let sid = open_session(&kv).await;
    let mut suspects = Suspects::default();
    let hold = async || {
        let put = Op::put_leased(keys::lock(&job()), "{}", sid.lease());
        kv.txn(Txn { then: vec![put], ..Txn::default() }).await.unwrap();
    };
    for _ in 0..3 {
        // As a job that runs every second: each audit comes between the reading of its lock and its release.
        hold().await;
        assert_eq!(audit(&mut suspects, &kv, &run_log, sid).await, 0);
        delete(&kv, keys::lock(&job())).await;
    }
    hold().await;
    let others = open_session(&kv).await;
    assert_eq!(audit(&mut suspects, &kv, &run_log, sid).await, 0);
    put(&kv, keys::lock(&job()), "another's").await;
    assert_eq!(audit(&mut suspects, &kv, &run_log, sid).await, 0);
    assert_eq!(audit(&mut suspects, &kv, &run_log, others).await, 0);
    assert!(get(&kv, keys::lock(&job())).await.is_some());
}
