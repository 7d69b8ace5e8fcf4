//! How fast the history of a job is read where very many records are stored: each store is filled through its port, then asked.

use ::tests::fixtures::{TestDir, guard};
use anyhow::{Context, ensure};
use common::clock::{Stopwatch, Timestamp};
use common::domain::record::{Record, RecordId, Status};
use common::domain::run::{RunId, Trigger};
use common::run_log::embedded::EmbeddedRunLog;
use common::run_log::mongo::MongoRunLog;
use common::run_log::{Place, RecordQuery, RunLog};
use local_dev::native::provision;
use local_dev::native::servers::{Server, Site};
use std::time::Duration;

use super::figures::{Spread, head, row, short};
use super::{Flags, machine};

/// Jobs when nothing else is said.
const JOBS: usize = 1_000;
/// Records of each.
const EACH: i64 = 10_000;
/// Filling FerretDB takes ten times as long as filling a `mongod`, so it gets a tenth of the jobs.
const FEWER: usize = 10;
/// One in so many has failed.
const FAILED: i64 = 100;
/// Records of one append.
const BATCH: i64 = 500;
/// Times each question is asked, of another job each time.
const TIMES: usize = 50;
/// A page as the console asks for it, and a piece in which `/job/log` looks for a text.
const PAGE: u32 = 51;
const PIECE: u64 = 1_000;
/// 2027-01-15T08:00:00Z.
const FROM_MS: i64 = 1_800_000_000_000;
/// From one run to the next.
const EVERY_MS: i64 = 60_000;
/// Storing a batch and asking may take so long.
const CALL_LIMIT: Duration = Duration::from_secs(60);

/// Fills, measures and prints.
///
/// # Errors
/// A store does not start or answer, or answers something else than was stored.
pub(super) async fn measure(flags: &Flags) -> anyhow::Result<()> {
    let jobs = flags.jobs.unwrap_or(JOBS);
    println!(
        "{EACH} records of each job, a minute apart, with 600 bytes of output; each question {TIMES} times, of another job each time; in ms \
         through the port that the functions use (/job/log asks one or two of them).\n"
    );
    head(&["store", "records", "stored a second", "question", "p50", "p99", "max", "load before"]);
    let dir = TestDir::new("search");
    let embedded = EmbeddedRunLog::open(dir.path())?;
    one("embedded", &embedded, jobs).await?;
    drop(embedded);
    let site = Site { dir: dir.path().to_path_buf(), guard: guard() };
    let server = Server::mongo(&site, None).await?;
    let (store, jobs) =
        if provision::mongo_is_mongod() { ("mongod", jobs) } else { ("FerretDB", (jobs / FEWER).max(1)) };
    one(store, &MongoRunLog::new(&server.url(), CALL_LIMIT)?, jobs).await
}

/// What is asked, of which job, and how many records the answer has.
type Question<'a> = (&'a str, &'a dyn Fn(usize) -> RecordQuery, usize);

async fn one(store: &str, log: &dyn RunLog, jobs: usize) -> anyhow::Result<()> {
    log.prepare().await?;
    let watch = Stopwatch::start();
    for from in (0..EACH).step_by(usize::try_from(BATCH)?) {
        for job in 0..jobs {
            let batch: Vec<Record> = (from..from + BATCH).map(|n| record(job, n)).collect();
            let appended = log.append(&batch).await?;
            ensure!(appended.stored == batch.len(), "{appended:?}");
        }
    }
    let records = jobs * usize::try_from(EACH)?;
    let rate = short(records as f64 / watch.elapsed().as_secs_f64());
    let middle = |job: usize| Place::of(&record(job, EACH / 2));
    let of = |job: usize| RecordQuery { job_name: name(job), limit: PAGE, ..RecordQuery::default() };
    let time = |n: i64| Some(Timestamp::from_ms(FROM_MS + n * EVERY_MS));
    let questions: [Question<'_>; 7] = [
        ("newest page", &of, PAGE as usize),
        ("page in the middle, by its place", &|job| RecordQuery { after: Some(middle(job)), ..of(job) }, 51),
        ("page behind 9,000, by `skip`", &|job| RecordQuery { skip: 9_000, ..of(job) }, 51),
        ("newest page of failures", &|job| RecordQuery { status: Some(Status::Failed), ..of(job) }, 51),
        ("an hour", &|job| RecordQuery { from: time(4_000), to: time(4_030), ..of(job) }, 30),
        (
            "of a worker that ran none",
            &|job| RecordQuery { worker: Some("10.9.9.9".to_owned()), ..of(job) },
            0,
        ),
        (
            "a text that none of a piece has",
            &|job| RecordQuery {
                text: Some("no such words".to_owned()),
                until: Some(Place::of(&record(job, EACH - i64::try_from(PIECE).unwrap_or(i64::MAX)))),
                ..of(job)
            },
            0,
        ),
    ];
    for (question, query, wanted) in questions {
        let load = machine::load();
        let mut took = Vec::new();
        for turn in 0..TIMES {
            let query = query(turn * 7 % jobs);
            let watch = Stopwatch::start();
            let found = log.list(&query).await?;
            took.push(watch.elapsed().as_secs_f64() * 1000.0);
            ensure!(found.len() == wanted, "{question}: {} records, not {wanted}", found.len());
        }
        print(store, records, &rate, question, took, load);
    }
    let load = machine::load();
    let mut took = Vec::new();
    for turn in 0..TIMES {
        let wanted = record(turn * 7 % jobs, 5_000);
        let watch = Stopwatch::start();
        let found = log.get(wanted.claim.as_ref().context("a claim")?.as_str()).await?;
        took.push(watch.elapsed().as_secs_f64() * 1000.0);
        ensure!(found.is_some_and(|found| found.id == wanted.id), "a run is not found");
    }
    print(store, records, &rate, "a run by its id", took, load);
    Ok(())
}

fn print(store: &str, records: usize, rate: &str, question: &str, took: Vec<f64>, load: String) {
    let [half, most, all] = Spread::of(took).columns();
    row(&[
        store.to_owned(),
        records.to_string(),
        rate.to_owned(),
        question.to_owned(),
        half,
        most,
        all,
        load,
    ]);
}

fn name(job: usize) -> String {
    format!("search-{job:05}")
}

fn record(job: usize, n: i64) -> Record {
    let at = FROM_MS + n * EVERY_MS;
    let failed = n % FAILED == 0;
    Record {
        id: RecordId::from_text(format!("{}/{at}/1", name(job))),
        job_name: name(job),
        command: "/usr/local/bin/report --daily".to_owned(),
        err: if failed { "exit status 1".to_owned() } else { String::new() },
        output: format!("a line of what a job prints, number {n:08}\n").repeat(12),
        plan_time: Timestamp::from_ms(at),
        schedule_time: Timestamp::from_ms(at - 50),
        start_time: Timestamp::from_ms(at + 2),
        end_time: Timestamp::from_ms(at + 700),
        v: Some(1),
        claim: Some(RunId::from_text(&format!("{job:x}-{n}"))),
        status: Some(if failed { Status::Failed } else { Status::Succeeded }),
        exit_code: Some(i32::from(failed)),
        signal: None,
        http_status: None,
        worker: Some(format!("10.0.0.{}", n % 5)),
        attempt: Some(1),
        trigger: Some(Trigger::Schedule),
        after: None,
        trace_id: None,
        output_truncated: false,
        output_bytes: Some(600),
        killed_by: None,
        killed_at: None,
        skipped: None,
    }
}
