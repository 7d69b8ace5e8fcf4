//! The plan keeps its rules, the link cuts, and the checker notices each thing that must not be.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::discriminant;
use std::path::Path;
use std::time::Duration;

use common::clock::timeout;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::check::{Observed, Range, Recorded, Report, check};
use super::fleet::{Disturbance, Trouble};
use super::jobs::{Change, Job, JobKind, Line, kinds};
use super::link::{Link, Passing};
use super::plan::{Act, Plan, WORKERS};

const MINUTE: Duration = Duration::from_secs(60);

/// What is done to ten seconds in which all was well.
type Done = fn(&mut Observed);

#[test]
fn a_seed_is_a_plan() {
    let jobs = kinds(20);
    assert_eq!(Plan::chaos(7, MINUTE, &jobs), Plan::chaos(7, MINUTE, &jobs));
    assert_ne!(Plan::chaos(7, MINUTE, &jobs), Plan::chaos(8, MINUTE, &jobs));
}

#[test]
fn every_kind_of_act_is_in_each_plan_and_all_is_well_in_the_end() {
    for seed in 0..200 {
        let plan = Plan::chaos(seed, Duration::ZERO, &kinds(20));
        let kinds: BTreeSet<String> = plan
            .steps
            .iter()
            .map(|step| format!("{:?}", step.act).chars().take_while(|c| c.is_alphabetic()).collect())
            .collect();
        assert_eq!(kinds.len(), 13, "seed {seed}: {kinds:?}");
        let mut members_away = 0;
        let mut mongo_away = false;
        let mut up = [true; WORKERS];
        let mut frozen = [false; WORKERS];
        let mut cut = [false; WORKERS];
        for step in &plan.steps {
            match step.act {
                Act::KillMember(_) | Act::FreezeMember(_) => members_away += 1,
                Act::StartMember | Act::ThawMember => members_away -= 1,
                Act::KillMongo => mongo_away = true,
                Act::StartMongo => mongo_away = false,
                Act::Crash(worker) | Act::Drain(worker) => {
                    assert!(std::mem::take(&mut up[worker]), "seed {seed}: {step:?}: it is not there");
                }
                Act::Launch(worker, ..) => up[worker] = true,
                Act::Freeze(worker) => frozen[worker] = true,
                Act::Thaw(worker) => frozen[worker] = false,
                Act::Links(worker, _, passing) => cut[worker] = passing != Passing::Open,
                Act::Edit(..) => {}
            }
            assert!((0..=1).contains(&members_away), "seed {seed}: two members at once: {step:?}");
        }
        assert_eq!((members_away, mongo_away), (0, false), "seed {seed}");
        assert_eq!((up, frozen, cut), ([true; WORKERS], [false; WORKERS], [false; WORKERS]), "seed {seed}");
    }
}

#[test]
fn a_rolling_upgrade_replaces_every_worker_there_and_back() {
    let plan = Plan::rolling(1, 1, &kinds(20));
    let launches = plan
        .steps
        .iter()
        .filter(|step| discriminant(&step.act) == discriminant(&Act::Launch(0, plan.first, 0)));
    assert_eq!(launches.count(), 2 * WORKERS);
}

#[tokio::test]
async fn a_link_passes_keeps_and_resets() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let link = Link::to(server.local_addr().unwrap()).await.unwrap();
    let mut client = TcpStream::connect(link.address()).await.unwrap();
    let (mut served, _) = server.accept().await.unwrap();
    let mut byte = [0];
    client.write_all(b"a").await.unwrap();
    served.read_exact(&mut byte).await.unwrap();

    link.set(Passing::Silent);
    client.write_all(b"b").await.unwrap();
    let silence = timeout(Duration::from_millis(200), served.read_exact(&mut byte)).await;
    assert!(silence.is_err(), "nothing passes, and nobody is told");
    link.set(Passing::Open);
    served.read_exact(&mut byte).await.unwrap();
    assert_eq!(&byte, b"b", "it comes late");

    link.set(Passing::Reset);
    assert!(client.read_exact(&mut byte).await.is_err());
    assert!(served.read_exact(&mut byte).await.is_err());
    let mut refused = TcpStream::connect(link.address()).await.unwrap();
    assert!(refused.read_exact(&mut byte).await.is_err());
}

/// Ten seconds of a job of every second, in which all was well.
fn well() -> Observed {
    let mut job = Job::new(0, JobKind { period_s: 1, runs_s: 0 }, Path::new("."));
    job.history = vec![
        Change { sent: 0, answered: 1, period_s: Some(1) },
        Change { sent: 110_000, answered: 110_100, period_s: None },
    ];
    let fires = || (100..=110).map(|second| second * 1000);
    let lines = fires().map(|fire| line(fire, false, fire + 3)).collect();
    let records = fires().map(|fire| recorded(fire, "succeeded")).collect();
    Observed {
        lines: BTreeMap::from([(job.name.clone(), lines)]),
        jobs: vec![job],
        records,
        conflicts: Vec::new(),
        disturbances: Vec::new(),
        from: 100_000,
        to: 110_000,
    }
}

fn line(plan_time: i64, is_end: bool, at: i64) -> Line {
    Line { is_end, plan_time, run_id: format!("run-{plan_time}"), at }
}

fn recorded(plan_time: i64, status: &str) -> Recorded {
    Recorded {
        job: "count-0".to_owned(),
        plan_time,
        status: status.to_owned(),
        worker: "w1".to_owned(),
        claim: format!("run-{plan_time}"),
        end_time: plan_time + 5,
        skipped: None,
    }
}

fn skipped(from: i64, to: i64, count: i64) -> Recorded {
    let range = Range { from, to, count, more: false, reason: "misfire".to_owned() };
    Recorded { skipped: Some(range), ..recorded(from, "skipped") }
}

fn remove(seen: &mut Observed, fires: &[i64], lines: bool, records: bool) {
    for of_job in seen.lines.values_mut().filter(|_| lines) {
        of_job.retain(|line| !fires.contains(&line.plan_time));
    }
    seen.records.retain(|record| !records || !fires.contains(&record.plan_time));
}

fn trouble(what: Trouble) -> Disturbance {
    Disturbance { worker: 0, what, from: 103_000, to: 104_000 }
}

/// The job is due every third second only from the fifth on, and all between the first and the last of these seconds was let go.
fn every_third_second_later(seen: &mut Observed) {
    let edit = Change { sent: 104_600, answered: 104_700, period_s: Some(3) };
    seen.jobs[0].history.insert(1, edit);
    let fires: Vec<i64> = (101..=110).map(|second| second * 1000).collect();
    remove(seen, &fires, true, true);
}

/// What the checker says about ten seconds to which this was done.
fn report(change: impl FnOnce(&mut Observed)) -> Report {
    let mut seen = well();
    change(&mut seen);
    check(&seen)
}

#[test]
fn what_is_accounted_for_is_no_violation() {
    let rows: [(&str, Done); 7] = [
        ("all is well", |_| {}),
        ("fires are let go, with a record", |seen| {
            remove(seen, &[103_000, 104_000], true, true);
            seen.records.push(skipped(103_000, 104_000, 2));
        }),
        ("a worker was killed before it started its run", |seen| {
            remove(seen, &[103_000], true, true);
            seen.records.push(recorded(103_000, "lost"));
            seen.disturbances.push(trouble(Trouble::Killed));
        }),
        ("and after that", |seen| {
            remove(seen, &[103_000], false, true);
            seen.records.push(recorded(103_000, "lost"));
            seen.disturbances.push(trouble(Trouble::Killed));
        }),
        ("the last fires were not yet claimed when the job was deleted", |seen| {
            remove(seen, &[109_000, 110_000], true, true);
        }),
        ("deleted for a while", |seen| {
            seen.jobs[0].history.insert(1, Change { sent: 103_900, answered: 103_950, period_s: None });
            seen.jobs[0].history.insert(2, Change { sent: 106_000, answered: 106_010, period_s: Some(1) });
            remove(seen, &[104_000, 105_000, 106_000], true, true);
        }),
        ("let go over an edit", |seen| {
            every_third_second_later(seen);
            seen.records.push(skipped(101_000, 108_000, 6));
        }),
    ];
    for (name, change) in rows {
        let report = report(change);
        assert!(report.violations.is_empty(), "{name}: {report}");
    }
}

#[test]
fn what_must_not_be_is_noticed() {
    let rows: [(&str, Done); 16] = [
        ("started twice", |seen| {
            seen.lines
                .get_mut("count-0")
                .unwrap()
                .push(Line { run_id: "other".to_owned(), ..line(104_000, false, 104_900) });
        }),
        ("two claims of one fire", |seen| seen.conflicts.push("{}".to_owned())),
        ("missing", |seen| remove(seen, &[104_000], true, true)),
        ("missing", |seen| {
            remove(
                seen,
                &[101_000, 102_000, 103_000, 104_000, 105_000, 106_000, 107_000, 108_000, 109_000, 110_000],
                true,
                true,
            )
        }),
        ("started without a record", |seen| remove(seen, &[104_000], false, true)),
        ("recorded, and never started", |seen| remove(seen, &[104_000], true, false)),
        ("the record is of another claim", |seen| seen.records[3].claim = "other".to_owned()),
        ("skipped and run", |seen| seen.records.push(skipped(104_000, 105_000, 2))),
        ("skipped twice", |seen| {
            remove(seen, &[104_000, 105_000], true, true);
            seen.records.extend([skipped(104_000, 105_000, 2), skipped(105_000, 105_000, 1)]);
        }),
        ("a range of no fires, or miscounted", |seen| {
            remove(seen, &[104_000, 105_000], true, true);
            seen.records.push(skipped(104_000, 105_000, 3));
        }),
        ("a range of no fires, or miscounted", |seen| {
            every_third_second_later(seen);
            seen.records.push(skipped(101_000, 108_000, 10));
        }),
        ("a range of no fires, or miscounted", |seen| {
            every_third_second_later(seen);
            seen.records.push(skipped(101_000, 109_000, 6));
        }),
        ("lost by a worker that was well", |seen| {
            remove(seen, &[104_000], true, true);
            seen.records.push(recorded(104_000, "lost"));
        }),
        ("a run that cannot have failed", |seen| seen.records[3].status = "failed".to_owned()),
        ("a fire that was not planned", |seen| {
            seen.lines.get_mut("count-0").unwrap().push(line(104_500, false, 104_501));
            seen.records.push(recorded(104_500, "succeeded"));
        }),
        ("runs overlap", |seen| {
            seen.jobs[0].kind.runs_s = 1;
            seen.lines.get_mut("count-0").unwrap().push(line(104_000, true, 105_100));
        }),
    ];
    for (kind, change) in rows {
        let report = report(change);
        assert!(report.violations.iter().any(|what| what.starts_with(kind)), "{kind}: {report}");
    }
}

#[test]
fn runs_may_overlap_when_their_worker_was_cut_off() {
    let report = report(|seen| {
        seen.jobs[0].kind.runs_s = 1;
        seen.lines.get_mut("count-0").unwrap().push(line(104_000, true, 105_100));
        seen.disturbances.push(trouble(Trouble::Cut));
    });
    assert_eq!((report.overlaps_explained, report.violations.len()), (1, 0), "{report}");
}
