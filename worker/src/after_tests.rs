//! What the end of a run tells the jobs that wait for it, on the embedded store.

use common::clock::Timestamp;
use common::domain::after::PREDECESSORS_MAX;
use common::domain::job::JobName;
use common::domain::request::Request;
use common::domain::run::{OpenRun, OpenRuns, RunId};
use common::domain::worker::Sid;
use common::keys;
use common::kv::embedded::EmbeddedKv;
use common::kv::{Kv, Range, Revision};

use crate::claims::close_run;
use crate::exec::process::tests as runs;
use crate::scheduler::{Close, CloseAnswer, Follow, TOLD_AT_ONCE};
use crate::store_tests::{get, put};

const T: Timestamp = Timestamp::from_ms(1_800_000_000_000);
const SID: Sid = Sid(7);

fn name(text: &str) -> JobName {
    JobName::parse(text).unwrap()
}

/// The end of run `seq`, of the job `of`, for which nobody waits yet; its open key is put.
async fn ended(kv: &dyn Kv, of: &str, seq: u64) -> Close {
    let open = OpenRun { run_id: RunId::new(SID, seq), job: name(of), ..runs::open() };
    let revision = put(kv, keys::runs(SID, seq), OpenRuns::new(vec![open.clone()]).encode()).await;
    Close { open, key: (SID, seq), revision, next: None, follows: Vec::new() }
}

/// The same, told to `job`, which waits for `others` beside.
fn told(mut close: Close, job: &str, job_revision: Revision, others: &[&str]) -> Close {
    let run = Some(Request::following(&close.open.run_id, name(job), "w", T));
    let others = others.iter().map(|other| name(other)).collect();
    close.follows.push(Follow { job: name(job), job_revision, others, run });
    close
}

async fn keys_under(kv: &dyn Kv, prefix: &str) -> Vec<String> {
    let pairs = kv.range(Range::prefix(prefix)).await.unwrap().pairs;
    pairs.iter().map(|pair| pair.key.to_string()).collect()
}

async fn asked(kv: &dyn Kv) -> usize {
    keys_under(kv, keys::REQUESTS).await.len()
}

#[tokio::test]
async fn a_run_is_asked_for_once_all_have_succeeded_and_then_it_begins_anew() {
    let kv = EmbeddedKv::in_memory().unwrap();
    let d = put(&kv, keys::job(&name("d")), "{}").await;
    for (seq, asked_so_far) in [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2)] {
        // The first two are of the same job: what succeeds twice counts once.
        let (of, other) = if [3, 5].contains(&seq) { ("b", "a") } else { ("a", "b") };
        let close = told(ended(&kv, of, seq).await, "d", d, &[other]);
        assert!(matches!(close_run(&kv, &close).await.unwrap(), CloseAnswer::Done(_)));
        assert_eq!(asked(&kv).await, asked_so_far, "after the end of run {seq}");
        let noted = keys_under(&kv, keys::AFTER).await;
        assert_eq!(noted, if of == "a" { vec![keys::after(&name("d"), &name("a"))] } else { vec![] });
    }
    let run_id = RunId::new(SID, 3).of_dependent(&name("d"));
    let request = Request::decode(&get(&kv, keys::request(&run_id)).await.unwrap().value).unwrap();
    assert_eq!((request.job, request.after), (name("d"), Some(RunId::new(SID, 3))));
}

#[tokio::test]
async fn whoever_closes_first_tells_and_nobody_tells_again() {
    let kv = EmbeddedKv::in_memory().unwrap();
    let d = put(&kv, keys::job(&name("d")), "{}").await;
    let close = told(ended(&kv, "a", 1).await, "d", d, &[]);
    let CloseAnswer::Done(revision) = close_run(&kv, &close).await.unwrap() else { panic!("not closed") };
    // Its answer was lost; and meanwhile the run that was asked for is claimed.
    let run_id = RunId::new(SID, 1).of_dependent(&name("d"));
    kv.txn(common::kv::Txn {
        then: vec![common::kv::Op::delete(keys::request(&run_id))],
        ..common::kv::Txn::default()
    })
    .await
    .unwrap();
    assert_eq!(close_run(&kv, &close).await.unwrap(), CloseAnswer::Done(revision));
    assert_eq!(asked(&kv).await, 0);
    // A survivor has taken the other one for lost.
    let close = told(ended(&kv, "a", 2).await, "d", d, &[]);
    kv.txn(common::kv::Txn {
        then: vec![common::kv::Op::delete(keys::runs(SID, 2))],
        ..common::kv::Txn::default()
    })
    .await
    .unwrap();
    assert_eq!(close_run(&kv, &close).await.unwrap(), CloseAnswer::Gone);
    assert_eq!(asked(&kv).await, 0);
}

#[tokio::test]
async fn nobody_is_told_by_what_was_decided_from_another_definition() {
    let kv = EmbeddedKv::in_memory().unwrap();
    let d = put(&kv, keys::job(&name("d")), "{}").await;
    let e = put(&kv, keys::job(&name("e")), "{}").await;
    let close = told(told(ended(&kv, "a", 1).await, "d", d, &[]), "e", e, &["b"]);
    let edited = put(&kv, keys::job(&name("e")), r#"{"command":"true"}"#).await;
    assert_eq!(close_run(&kv, &close).await.unwrap(), CloseAnswer::Stale);
    assert_eq!((asked(&kv).await, keys_under(&kv, keys::AFTER).await.len()), (0, 0));
    // One that is not told is compared as well.
    let mut again = close.clone();
    again.follows[1].run = None;
    assert_eq!(close_run(&kv, &again).await.unwrap(), CloseAnswer::Stale);
    again.follows[1].job_revision = edited;
    assert!(matches!(close_run(&kv, &again).await.unwrap(), CloseAnswer::Done(_)));
    assert_eq!((asked(&kv).await, keys_under(&kv, keys::AFTER).await.len()), (1, 0));
}

#[tokio::test]
async fn as_many_as_one_transaction_tells_fit_into_the_stores_limits() {
    let kv = EmbeddedKv::in_memory().unwrap();
    let others: Vec<String> = (1..PREDECESSORS_MAX).map(|n| format!("{n:0>200}")).collect();
    let others: Vec<&str> = others.iter().map(String::as_str).collect();
    let mut close = ended(&kv, "a", 1).await;
    for n in 0..TOLD_AT_ONCE {
        let job = format!("{n:d>200}");
        let revision = put(&kv, keys::job(&name(&job)), "{}").await;
        close = told(close, &job, revision, &others);
    }
    assert!(matches!(close_run(&kv, &close).await.unwrap(), CloseAnswer::Done(_)));
    assert_eq!(keys_under(&kv, keys::AFTER).await.len(), TOLD_AT_ONCE);
}
