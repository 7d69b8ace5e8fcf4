//! The exam of every [`RunLog`].

use std::sync::Arc;

use common::clock::Timestamp;
use common::domain::output::Chunk;
use common::domain::record::{Record, RecordId, SkipReason, Skipped, Status};
use common::domain::run::{RunId, Trigger};
use common::ids::random_id;
use common::run_log::{Appended, Place, RecordQuery, Removal, RunLog};

/// Asks `log` for all that the port promises. The names of the jobs are new each time, so that the store may be shared.
pub async fn exam(log: Arc<dyn RunLog>) {
    let log = &log;
    preparing_twice_is_harmless(log).await;
    an_empty_batch_is_nothing(log).await;
    a_record_is_read_back_as_it_was_written(log).await;
    any_text_is_kept(log).await;
    an_unknown_job_has_no_records(log).await;
    newest_come_first_and_ties_are_stable(log).await;
    pages_are_cut_by_skip_and_limit(log).await;
    a_status_filter_counts_before_skip_and_limit(log).await;
    every_filter_narrows_the_list(log).await;
    a_text_is_found_as_it_is(log).await;
    a_list_goes_on_behind_any_place_and_ends_at_any(log).await;
    a_record_is_found_by_its_id_and_by_its_claim(log).await;
    jobs_with_records_are_told_in_their_order(log).await;
    old_records_are_removed_some_at_a_time(log).await;
    a_jobs_records_behind_a_place_are_removed(log).await;
    output_is_read_from_any_byte_on(log).await;
    a_later_chunk_takes_the_place_of_its_slot(log).await;
    output_is_removed_by_run_and_by_age(log).await;
    the_same_batch_twice_is_a_replay(log).await;
    a_mixed_batch_stores_what_is_new(log).await;
    a_real_record_takes_the_place_of_the_lost_one(log).await;
    a_lost_record_never_takes_the_place_of_the_real_one(log).await;
    a_range_of_skips_grows_in_any_order(log).await;
    every_order_of_one_runs_records_ends_the_same(log).await;
    another_claim_is_kept_aside_and_told_each_time(log).await;
    a_claim_within_a_batch_conflicts_with_the_first(log).await;
    concurrent_appends_end_in_the_real_record(log).await;
    a_long_batch_is_stored_whole(log).await;
}

/// A job name that nobody has used.
#[must_use]
pub fn new_job(what: &str) -> String {
    format!("{what}-{}", random_id())
}

/// A record of `job` that succeeded, planned and started at `at`.
#[must_use]
pub fn record(job: &str, at: i64) -> Record {
    Record {
        id: RecordId::from_text(format!("{job}/{at}/1")),
        job_name: job.to_owned(),
        command: "echo hello".to_owned(),
        err: String::new(),
        output: "hello\n".to_owned(),
        plan_time: Timestamp::from_ms(at),
        schedule_time: Timestamp::from_ms(at - 50),
        start_time: Timestamp::from_ms(at),
        end_time: Timestamp::from_ms(at + 7),
        v: Some(1),
        claim: Some(RunId::from_text("2a-1")),
        status: Some(Status::Succeeded),
        exit_code: Some(0),
        signal: None,
        http_status: None,
        worker: Some("10.0.0.1".to_owned()),
        attempt: Some(1),
        trigger: Some(Trigger::Schedule),
        after: None,
        trace_id: None,
        output_truncated: false,
        output_bytes: Some(6),
        killed_by: None,
        killed_at: None,
        skipped: None,
    }
}

/// The same record without the fields that the seed's have not.
#[must_use]
pub fn like_the_seeds(record: Record) -> Record {
    Record {
        v: None,
        claim: None,
        status: None,
        exit_code: None,
        worker: None,
        attempt: None,
        output_bytes: None,
        trigger: None,
        after: None,
        ..record
    }
}

fn lost(job: &str, at: i64) -> Record {
    Record {
        status: Some(Status::Lost),
        exit_code: None,
        err: "lost".to_owned(),
        output: String::new(),
        start_time: Timestamp::from_ms(at - 3),
        ..record(job, at)
    }
}

fn skips(job: &str, at: i64, count: u64) -> Record {
    let last = at + 1000 * (i64::try_from(count).unwrap() - 1);
    let skipped = Skipped {
        from: Timestamp::from_ms(at),
        to: Timestamp::from_ms(last),
        count,
        more: false,
        reason: SkipReason::Overlap,
        selector: None,
        cancelled: None,
    };
    Record {
        status: Some(Status::Skipped),
        exit_code: None,
        err: format!("skipped {count}"),
        end_time: Timestamp::from_ms(last),
        skipped: Some(skipped),
        ..record(job, at)
    }
}

fn of_claim(claim: &str, record: Record) -> Record {
    Record { claim: Some(RunId::from_text(claim)), ..record }
}

/// All records of a job.
pub async fn all(log: &Arc<dyn RunLog>, job: &str) -> Vec<Record> {
    page(log, job, None, 0, 10_000).await
}

async fn page(
    log: &Arc<dyn RunLog>,
    job: &str,
    status: Option<Status>,
    skip: u64,
    limit: u32,
) -> Vec<Record> {
    let job_name = job.to_owned();
    log.list(&RecordQuery { job_name, status, skip, limit, ..RecordQuery::default() }).await.unwrap()
}

fn stored(count: usize) -> Appended {
    Appended { stored: count, ..Appended::default() }
}

fn replayed(count: usize) -> Appended {
    Appended { replayed: count, ..Appended::default() }
}

fn times(records: &[Record]) -> Vec<i64> {
    records.iter().map(|record| record.start_time.ms()).collect()
}

/// Every order of the records.
fn orders(records: &[Record]) -> Vec<Vec<Record>> {
    if records.is_empty() {
        return vec![Vec::new()];
    }
    let mut orders_of_all = Vec::new();
    for first in 0..records.len() {
        let mut rest = records.to_vec();
        let first = rest.remove(first);
        for mut order in orders(&rest) {
            order.insert(0, first.clone());
            orders_of_all.push(order);
        }
    }
    orders_of_all
}

async fn preparing_twice_is_harmless(log: &Arc<dyn RunLog>) {
    log.prepare().await.unwrap();
    log.prepare().await.unwrap();
}

async fn an_empty_batch_is_nothing(log: &Arc<dyn RunLog>) {
    assert_eq!(log.append(&[]).await.unwrap(), Appended::default());
}

async fn a_record_is_read_back_as_it_was_written(log: &Arc<dyn RunLog>) {
    let job = new_job("as-written");
    let plain = record(&job, 6000);
    let full = Record {
        trace_id: Some("0af7651916cd43dd8448eb211c80319c".to_owned()),
        err: "signal: killed".to_owned(),
        status: Some(Status::Killed),
        exit_code: Some(-1),
        signal: Some(9),
        http_status: Some(503),
        attempt: Some(u32::MAX),
        output_truncated: true,
        output_bytes: Some(1 << 40),
        ..record(&job, 5000)
    };
    let seed_like = like_the_seeds(record(&job, 4000));
    let times_at_the_ends = Record {
        schedule_time: Timestamp::from_ms(i64::MIN),
        end_time: Timestamp::from_ms(i64::MAX),
        ..record(&job, 3000)
    };
    let more = Skipped { count: 1 << 40, more: true, ..skips(&job, 2000, 2).skipped.unwrap() };
    let skipped = Record { skipped: Some(more), ..skips(&job, 2000, 2) };
    let written = [plain, full, seed_like, times_at_the_ends, skipped];
    assert_eq!(log.append(&written).await.unwrap(), stored(5));
    assert_eq!(all(log, &job).await, written);
}

async fn any_text_is_kept(log: &Arc<dyn RunLog>) {
    let job = new_job("tägliche-复制 $job.with{odd}'\"chars");
    let line = "\u{0}\u{1b}[31m\r\n\t\"\\ $set. 复制 🦀 e\u{301} \u{fffd}\u{10ffff}";
    let odd = Record { output: line.to_owned(), command: line.to_owned(), ..record(&job, 3000) };
    let empty = Record { output: String::new(), command: String::new(), ..record(&job, 2000) };
    let big = Record { output: "複".repeat((1 << 20) / 3), ..record(&job, 1000) };
    let written = [odd, empty, big];
    assert_eq!(log.append(&written).await.unwrap(), stored(3));
    assert!(all(log, &job).await == written, "a text was changed");
}

async fn an_unknown_job_has_no_records(log: &Arc<dyn RunLog>) {
    assert_eq!(all(log, &new_job("unknown")).await, []);
}

async fn newest_come_first_and_ties_are_stable(log: &Arc<dyn RunLog>) {
    let job = new_job("ties");
    let tie = |plan: i64, id: &str| Record {
        id: RecordId::from_text(format!("{job}/{id}")),
        plan_time: Timestamp::from_ms(plan),
        ..record(&job, 50_000)
    };
    // One more second has one more digit: an order by text would show.
    let sorted = [
        record(&job, 100_000),
        tie(49_000, "B"),
        tie(49_000, "a"),
        tie(49_000, "ä"),
        tie(48_000, "A"),
        record(&job, 9_000),
        record(&job, -5_000),
    ];
    let mixed = [4, 1, 6, 3, 0, 5, 2].map(|at| sorted[at].clone());
    log.append(&mixed[..3]).await.unwrap();
    log.append(&mixed[3..]).await.unwrap();
    log.append(&[record(&new_job("other"), 60_000)]).await.unwrap();
    for _again in 0..2 {
        assert_eq!(all(log, &job).await, sorted);
    }
}

async fn pages_are_cut_by_skip_and_limit(log: &Arc<dyn RunLog>) {
    let job = new_job("pages");
    let records: Vec<Record> = (1..=5).map(|n| record(&job, n * 1000)).collect();
    log.append(&records).await.unwrap();
    let cases: [(u64, u32, &[i64]); 7] = [
        (0, 2, &[5000, 4000]),
        (2, 2, &[3000, 2000]),
        (4, 2, &[1000]),
        (5, 2, &[]),
        (0, 0, &[]),
        (u64::MAX, u32::MAX, &[]),
        (1, u32::MAX, &[4000, 3000, 2000, 1000]),
    ];
    for (skip, limit, expected) in cases {
        assert_eq!(times(&page(log, &job, None, skip, limit).await), expected, "skip {skip} limit {limit}");
    }
}

async fn a_status_filter_counts_before_skip_and_limit(log: &Arc<dyn RunLog>) {
    let job = new_job("status");
    let mut records = Vec::new();
    for (nth, status) in Status::ALL.into_iter().cycle().take(3 * Status::ALL.len()).enumerate() {
        let at = 1000 * i64::try_from(nth).unwrap();
        records.push(Record { status: Some(status), ..record(&job, at) });
    }
    log.append(&records).await.unwrap();
    for (nth, status) in Status::ALL.into_iter().enumerate() {
        let base = 1000 * i64::try_from(nth).unwrap();
        let found = page(log, &job, Some(status), 1, 1).await;
        let round = 1000 * i64::try_from(Status::ALL.len()).unwrap();
        assert_eq!(times(&found), [base + round], "{status:?}");
        assert_eq!(found[0].status, Some(status));
        assert_eq!(page(log, &job, Some(status), 0, 100).await.len(), 3, "{status:?}");
    }
}

/// A query for all records of a job.
fn of(job: &str) -> RecordQuery {
    RecordQuery { job_name: job.to_owned(), limit: 1000, ..RecordQuery::default() }
}

async fn every_filter_narrows_the_list(log: &Arc<dyn RunLog>) {
    let job = new_job("filters");
    let mut records: Vec<Record> = (1..=6).map(|n| record(&job, n * 1000)).collect();
    records[1].worker = Some("other".to_owned());
    records[2].claim = Some(RunId::from_text("2a-3"));
    records[3] = like_the_seeds(record(&job, 4000));
    (records[4].status, records[4].worker) = (Some(Status::Failed), Some("other".to_owned()));
    log.append(&records).await.unwrap();
    let at = |ms| Some(Timestamp::from_ms(ms));
    let worker = Some("other".to_owned());
    let run_id = Some(RunId::from_text("2a-3"));
    let rows: [(RecordQuery, &[i64]); 11] = [
        (of(&job), &[6000, 5000, 4000, 3000, 2000, 1000]),
        (RecordQuery { from: at(3000), ..of(&job) }, &[6000, 5000, 4000, 3000]),
        (RecordQuery { to: at(3000), ..of(&job) }, &[2000, 1000]),
        (RecordQuery { from: at(2000), to: at(5000), ..of(&job) }, &[4000, 3000, 2000]),
        (RecordQuery { from: at(5000), to: at(5000), ..of(&job) }, &[]),
        (RecordQuery { worker: worker.clone(), ..of(&job) }, &[5000, 2000]),
        (RecordQuery { worker: worker.clone(), status: Some(Status::Failed), ..of(&job) }, &[5000]),
        (RecordQuery { worker, skip: 1, ..of(&job) }, &[2000]),
        (RecordQuery { run_id: run_id.clone(), ..of(&job) }, &[3000]),
        (RecordQuery { run_id, to: at(3000), ..of(&job) }, &[]),
        (RecordQuery { limit: 2, skip: 1, to: at(6000), ..of(&job) }, &[4000, 3000]),
    ];
    for (query, expected) in rows {
        assert_eq!(times(&log.list(&query).await.unwrap()), expected, "{query:?}");
        let place = log.place(&RecordQuery { limit: 0, ..query.clone() }).await.unwrap();
        assert_eq!(place.map(|place| place.start_time.ms()), expected.first().copied(), "{query:?}");
    }
}

async fn a_text_is_found_as_it_is(log: &Arc<dyn RunLog>) {
    let job = new_job("text");
    let odd = "a.b*c (d) [e]{2} ^$|\\ \"q\" 'x' %_ 复制 🦀 \n#!/-é";
    let texts =
        [("nothing", "", "true"), (odd, "", "true"), ("", "exit status 7", "false"), ("", "", "echo Needle")];
    let mut records = Vec::new();
    for (nth, (output, err, command)) in texts.into_iter().enumerate() {
        let at = 1000 * i64::try_from(nth).unwrap();
        let (output, err, command) = (output.to_owned(), err.to_owned(), command.to_owned());
        records.push(Record { output, err, command, ..record(&job, at) });
    }
    log.append(&records).await.unwrap();
    let whole = odd.to_owned();
    let mut rows: Vec<(String, &[i64])> = vec![
        (whole, &[1000]),
        ("status 7".to_owned(), &[2000]),
        ("Needle".to_owned(), &[3000]),
        ("needle".to_owned(), &[]),
        ("n.thing".to_owned(), &[]),
        (".*".to_owned(), &[]),
        ("true".to_owned(), &[1000, 0]),
    ];
    rows.extend(odd.split(' ').map(|word| (word.to_owned(), &[1000][..])));
    for (text, expected) in rows {
        let query = RecordQuery { text: Some(text.clone()), ..of(&job) };
        assert_eq!(times(&log.list(&query).await.unwrap()), expected, "{text:?}");
    }
}

async fn a_list_goes_on_behind_any_place_and_ends_at_any(log: &Arc<dyn RunLog>) {
    let job = new_job("places");
    let tie = |start: i64, plan: i64, id: &str| Record {
        id: RecordId::from_text(format!("{job}/{id}")),
        plan_time: Timestamp::from_ms(plan),
        ..record(&job, start)
    };
    let sorted = [
        tie(100_000, 9_000, "x"),
        tie(50_000, 49_000, "B"),
        tie(50_000, 49_000, "a"),
        tie(50_000, 49_000, "ä"),
        tie(50_000, 48_000, "A"),
        tie(50_000, 48_000, "C"),
        tie(9_000, 60_000, "0"),
        tie(-5_000, -6_000, "y"),
    ];
    log.append(&sorted).await.unwrap();
    for (nth, record) in sorted.iter().enumerate() {
        let place = Some(Place::of(record));
        let at = RecordQuery { skip: nth as u64, ..of(&job) };
        assert_eq!(log.place(&at).await.unwrap(), place);
        let after = RecordQuery { after: place.clone(), ..of(&job) };
        assert_eq!(log.list(&after).await.unwrap(), sorted[nth + 1..], "after {nth}");
        let until = RecordQuery { until: place.clone(), ..of(&job) };
        assert_eq!(log.list(&until).await.unwrap(), sorted[..=nth], "until {nth}");
        for (end, last) in sorted.iter().enumerate().skip(nth + 1) {
            let between = RecordQuery { until: Some(Place::of(last)), ..after.clone() };
            assert_eq!(log.list(&between).await.unwrap(), sorted[nth + 1..=end], "{nth} to {end}");
        }
    }
    // Of a record that is not there, or not any more, too.
    let gone = Place { id: RecordId::from_text(format!("{job}/b")), ..Place::of(&sorted[2]) };
    let after = RecordQuery { after: Some(gone), limit: 1, ..of(&job) };
    assert_eq!(log.list(&after).await.unwrap(), sorted[3..4]);
    assert_eq!(log.place(&RecordQuery { skip: 8, ..of(&job) }).await.unwrap(), None);
}

async fn a_record_is_found_by_its_id_and_by_its_claim(log: &Arc<dyn RunLog>) {
    let job = new_job("get");
    let claim = format!("{}-1", random_id());
    let wanted = of_claim(&claim, record(&job, 1000));
    log.append(&[wanted.clone(), like_the_seeds(record(&job, 2000))]).await.unwrap();
    assert_eq!(log.get(&claim).await.unwrap(), Some(wanted.clone()));
    assert_eq!(log.get(wanted.id.as_str()).await.unwrap(), Some(wanted));
    let seeds = log.get(&format!("{job}/2000/1")).await.unwrap();
    assert_eq!(seeds, Some(like_the_seeds(record(&job, 2000))));
    for nobodys in ["", "nobody's", &format!("{job}/3000/1"), "$claim"] {
        assert_eq!(log.get(nobodys).await.unwrap(), None, "{nobodys}");
    }
}

async fn jobs_with_records_are_told_in_their_order(log: &Arc<dyn RunLog>) {
    let first = new_job("jobs");
    let jobs: Vec<String> = ["A", "a", "b 任务", "ä"].map(|end| format!("{first}{end}")).into();
    for job in jobs.iter().rev() {
        log.append(&[record(job, 1000), record(job, 2000)]).await.unwrap();
    }
    let told = log.jobs(&first, 4).await.unwrap();
    assert_eq!(told, jobs);
    assert_eq!(log.jobs(&jobs[1], 2).await.unwrap(), jobs[2..]);
    assert_eq!(log.jobs("\u{10ffff}", 2).await.unwrap(), [""; 0]);
}

/// A time before all others of this exam: removing by age is for all jobs.
const LONG_AGO: i64 = -1_000_000_000_000;

async fn old_records_are_removed_some_at_a_time(log: &Arc<dyn RunLog>) {
    let (job, other) = (new_job("old"), new_job("old"));
    let mut records: Vec<Record> = (0..5).map(|n| record(&job, LONG_AGO + n * 1000)).collect();
    records.push(record(&other, LONG_AGO + 1500));
    // One that began as early and has ended later.
    records.push(Record { end_time: Timestamp::from_ms(LONG_AGO + 9_000), ..record(&other, LONG_AGO) });
    log.append(&records).await.unwrap();
    let before = Removal::RecordsBefore(Timestamp::from_ms(LONG_AGO + 3000));
    assert_eq!(log.remove(&before, 2).await.unwrap(), 2);
    assert_eq!(times(&all(log, &job).await), [4, 3, 2].map(|n| LONG_AGO + n * 1000), "the oldest first");
    assert_eq!(log.remove(&before, 10).await.unwrap(), 2);
    assert_eq!(log.remove(&before, 10).await.unwrap(), 0);
    assert_eq!(times(&all(log, &job).await), [4, 3].map(|n| LONG_AGO + n * 1000));
    assert_eq!(times(&all(log, &other).await), [LONG_AGO]);
    // Its place is free again.
    assert_eq!(log.append(&records[..1]).await.unwrap(), stored(1));
}

async fn a_jobs_records_behind_a_place_are_removed(log: &Arc<dyn RunLog>) {
    let (job, other) = (new_job("behind"), new_job("behind"));
    let records: Vec<Record> = (0..6).map(|n| record(&job, n * 1000)).collect();
    log.append(&records).await.unwrap();
    log.append(&[record(&other, 0)]).await.unwrap();
    let place = Place::of(&records[4]);
    let behind = |before| Removal::RecordsBehind(job.clone(), place.clone(), Timestamp::from_ms(before));
    assert_eq!(log.remove(&behind(1_000), 10).await.unwrap(), 1, "too young, the others");
    assert_eq!(log.remove(&behind(9_000), 1).await.unwrap(), 1);
    assert_eq!(log.remove(&behind(9_000), 10).await.unwrap(), 2);
    assert_eq!(log.remove(&behind(9_000), 10).await.unwrap(), 0);
    assert_eq!(times(&all(log, &job).await), [5000, 4000]);
    assert_eq!(all(log, &other).await.len(), 1);
}

fn chunk(run_id: &RunId, slot: u32, from: u64, bytes: &[u8]) -> Chunk {
    let (run_id, at) = (run_id.clone(), Timestamp::from_ms(1000));
    Chunk { run_id, slot, from, bytes: bytes.to_vec(), at }
}

fn new_run() -> RunId {
    RunId::from_text(&format!("{}-7", random_id()))
}

async fn output_is_read_from_any_byte_on(log: &Arc<dyn RunLog>) {
    let (run, other) = (new_run(), new_run());
    let chunks =
        [chunk(&run, 0, 0, b"one\0\xff"), chunk(&run, 1, 5, "复".as_bytes()), chunk(&run, 9, 1 << 40, b"x")];
    let [first, second, third] = &chunks;
    log.put_output(&[third.clone(), first.clone(), chunk(&other, 0, 0, b"other")]).await.unwrap();
    log.put_output(std::slice::from_ref(second)).await.unwrap();
    log.put_output(&[]).await.unwrap();
    for (after, expected) in [
        (0, &chunks[..]),
        (4, &chunks[..]),
        (5, &chunks[1..]),
        (7, &chunks[1..]),
        (8, &chunks[2..]),
        (1 << 40, &chunks[2..]),
        ((1 << 40) + 1, &[]),
        (u64::MAX, &[]),
    ] {
        assert_eq!(log.output(&run, after).await.unwrap(), expected, "after {after}");
    }
    assert_eq!(log.output(&new_run(), 0).await.unwrap(), []);
}

async fn a_later_chunk_takes_the_place_of_its_slot(log: &Arc<dyn RunLog>) {
    let run = new_run();
    for chunks in [
        [chunk(&run, 0, 0, b"a"), chunk(&run, 1, 10, b"b")],
        [chunk(&run, 0, 0, b"ab"), chunk(&run, 1, 20, b"c")],
    ] {
        for _again in 0..2 {
            log.put_output(&chunks).await.unwrap();
            assert_eq!(log.output(&run, 0).await.unwrap(), chunks);
        }
    }
}

async fn output_is_removed_by_run_and_by_age(log: &Arc<dyn RunLog>) {
    let runs: Vec<RunId> = (0..4).map(|_| new_run()).collect();
    // Whose name only begins as another's.
    let longer = RunId::from_text(&format!("{}0", runs[0]));
    let old = Chunk { at: Timestamp::from_ms(LONG_AGO), ..chunk(&runs[3], 0, 0, b"old") };
    let mut chunks: Vec<Chunk> = runs[..3].iter().map(|run| chunk(run, 0, 0, b"x")).collect();
    chunks.extend([
        old,
        chunk(&longer, 0, 0, b"x"),
        chunk(&runs[0], 1, 1, b"y"),
        chunk(&runs[3], 1, 3, b"new"),
    ]);
    log.put_output(&chunks).await.unwrap();
    let count = async |run| log.output(run, 0).await.unwrap().len();
    log.remove(&Removal::OutputOf(runs[..2].to_vec()), u32::MAX).await.unwrap();
    log.remove(&Removal::OutputOf(Vec::new()), u32::MAX).await.unwrap();
    assert_eq!(
        [count(&runs[0]).await, count(&runs[1]).await, count(&runs[2]).await, count(&longer).await],
        [0, 0, 1, 1]
    );
    log.remove(&Removal::OutputBefore(Timestamp::from_ms(LONG_AGO + 1)), u32::MAX).await.unwrap();
    assert_eq!(log.output(&runs[3], 0).await.unwrap(), [chunk(&runs[3], 1, 3, b"new")]);
}

async fn the_same_batch_twice_is_a_replay(log: &Arc<dyn RunLog>) {
    let job = new_job("twice");
    let batch = [record(&job, 3000), lost(&job, 2000), skips(&job, 1000, 3)];
    assert_eq!(log.append(&batch).await.unwrap(), stored(3));
    assert_eq!(log.append(&batch).await.unwrap(), replayed(3));
    assert_eq!(all(log, &job).await, batch);
    let doubled = [&batch[..], &batch[..]].concat();
    assert_eq!(log.append(&doubled).await.unwrap(), replayed(6));
    assert_eq!(all(log, &job).await, batch);
}

async fn a_mixed_batch_stores_what_is_new(log: &Arc<dyn RunLog>) {
    let job = new_job("mixed");
    log.append(&[record(&job, 3000), lost(&job, 5000)]).await.unwrap();
    let batch = [5000, 4000, 3000, 2000].map(|at| record(&job, at));
    let expected = Appended { stored: 3, replayed: 1, conflicts: Vec::new() };
    assert_eq!(log.append(&batch).await.unwrap(), expected);
    assert_eq!(all(log, &job).await, batch);
}

async fn a_real_record_takes_the_place_of_the_lost_one(log: &Arc<dyn RunLog>) {
    let ends = [Status::Succeeded, Status::Failed, Status::Killed, Status::TimedOut];
    for end in ends {
        let job = new_job("lost-then-real");
        let real = Record { status: Some(end), ..record(&job, 1000) };
        assert_eq!(log.append(&[lost(&job, 1000)]).await.unwrap(), stored(1));
        assert_eq!(log.append(std::slice::from_ref(&real)).await.unwrap(), stored(1));
        // It is found as what it is now, and not as what it was.
        assert_eq!(page(log, &job, Some(Status::Lost), 0, 9).await, []);
        assert_eq!(page(log, &job, Some(end), 0, 9).await, [real]);
    }
}

async fn a_lost_record_never_takes_the_place_of_the_real_one(log: &Arc<dyn RunLog>) {
    let job = new_job("real-then-lost");
    assert_eq!(log.append(&[record(&job, 1000)]).await.unwrap(), stored(1));
    assert_eq!(log.append(&[lost(&job, 1000)]).await.unwrap(), replayed(1));
    assert_eq!(all(log, &job).await, [record(&job, 1000)]);
}

async fn a_range_of_skips_grows_in_any_order(log: &Arc<dyn RunLog>) {
    let job = new_job("skips");
    for (count, expected) in
        [(2, stored(1)), (5, stored(1)), (3, replayed(1)), (5, replayed(1)), (6, stored(1))]
    {
        assert_eq!(log.append(&[skips(&job, 1000, count)]).await.unwrap(), expected, "{count}");
    }
    assert_eq!(all(log, &job).await, [skips(&job, 1000, 6)]);
}

async fn every_order_of_one_runs_records_ends_the_same(log: &Arc<dyn RunLog>) {
    // Of a run, and of a range of skips whose worker died, too.
    let histories: [fn(&str) -> Vec<Record>; 2] = [
        |job| vec![lost(job, 1000), record(job, 1000), lost(job, 1000)],
        |job| vec![lost(job, 1000), skips(job, 1000, 1), skips(job, 1000, 2), skips(job, 1000, 3)],
    ];
    for (history, best) in [(histories[0], 1), (histories[1], 3)] {
        let count = orders(&history("any")).len();
        for order in 0..count {
            // Sent one by one, in one batch, and split in two.
            for cut in [0, 1, 2] {
                let job = new_job("orders");
                let records = &orders(&history(&job))[order];
                let batches: Vec<&[Record]> = match cut {
                    0 => records.chunks(1).collect(),
                    1 => vec![records],
                    _ => {
                        let (first, second) = records.split_at(2);
                        vec![first, second]
                    }
                };
                for batch in batches {
                    let appended = log.append(batch).await.unwrap();
                    assert_eq!(appended.conflicts, []);
                    assert_eq!(appended.stored + appended.replayed, batch.len());
                }
                assert_eq!(all(log, &job).await, [history(&job)[best].clone()], "order {order} cut {cut}");
            }
        }
    }
}

async fn another_claim_is_kept_aside_and_told_each_time(log: &Arc<dyn RunLog>) {
    let job = new_job("conflict");
    let first = record(&job, 1000);
    let other = of_claim("2b-9", Record { output: "again\n".to_owned(), ..record(&job, 1000) });
    let new = record(&job, 2000);
    log.append(std::slice::from_ref(&first)).await.unwrap();

    let batch = [other.clone(), new.clone()];
    let told = Appended { stored: 1, replayed: 0, conflicts: vec![other.clone()] };
    assert_eq!(log.append(&batch).await.unwrap(), told);
    let told = Appended { stored: 0, replayed: 1, conflicts: vec![other.clone()] };
    assert_eq!(log.append(&batch).await.unwrap(), told);
    // Neither a lost one of another claim nor a better one takes the place, and the place can still be improved by its own.
    let lost_place = lost(&job, 3000);
    log.append(std::slice::from_ref(&lost_place)).await.unwrap();
    let better = of_claim("2b-9", record(&job, 3000));
    assert_eq!(log.append(std::slice::from_ref(&better)).await.unwrap().conflicts, [better]);
    assert_eq!(all(log, &job).await, [lost_place, new.clone(), first.clone()]);
    assert_eq!(log.append(&[record(&job, 3000)]).await.unwrap(), stored(1));
    assert_eq!(all(log, &job).await, [record(&job, 3000), new, first]);
}

async fn a_claim_within_a_batch_conflicts_with_the_first(log: &Arc<dyn RunLog>) {
    let job = new_job("conflict-within");
    let ours = [lost(&job, 1000), record(&job, 1000)];
    let theirs = [of_claim("2b-9", lost(&job, 1000)), of_claim("2b-9", record(&job, 1000))];
    let third = of_claim("2c-1", record(&job, 1000));
    let batch = [&ours[0], &theirs[0], &third, &ours[1], &theirs[1]].map(Clone::clone);
    let expected = Appended { stored: 1, replayed: 2, conflicts: vec![theirs[1].clone(), third.clone()] };
    assert_eq!(log.append(&batch).await.unwrap(), expected);
    assert_eq!(all(log, &job).await, [ours[1].clone()]);

    // What is stored decides, not the order in the batch.
    let batch = [theirs[1].clone(), ours[1].clone()];
    let expected = Appended { stored: 0, replayed: 1, conflicts: vec![theirs[1].clone()] };
    assert_eq!(log.append(&batch).await.unwrap(), expected);
    assert_eq!(all(log, &job).await, [ours[1].clone()]);
}

async fn concurrent_appends_end_in_the_real_record(log: &Arc<dyn RunLog>) {
    let job = new_job("concurrent");
    let plans: Vec<i64> = (0..20).map(|n| n * 1000).collect();
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..4 {
        let (log, job, plans) = (Arc::clone(log), job.clone(), plans.clone());
        tasks.spawn(async move {
            for at in plans {
                let record = if writer % 2 == 0 { lost(&job, at) } else { record(&job, at) };
                log.append(&[record]).await.unwrap();
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let expected: Vec<Record> = plans.iter().rev().map(|&at| record(&job, at)).collect();
    assert_eq!(all(log, &job).await, expected);
}

async fn a_long_batch_is_stored_whole(log: &Arc<dyn RunLog>) {
    // More records, and more bytes, than an implementation may like to send at once.
    let job = new_job("long");
    let mut batch: Vec<Record> = (0..1_200).map(|n| record(&job, n * 1000)).collect();
    for big in &mut batch[100..110] {
        big.output = "x".repeat(1 << 20);
    }
    let (some, _) = batch.split_at(300);
    assert_eq!(log.append(some).await.unwrap(), stored(300));
    let expected = Appended { stored: 900, replayed: 300, conflicts: Vec::new() };
    assert_eq!(log.append(&batch).await.unwrap(), expected);
    batch.reverse();
    assert!(all(log, &job).await == batch, "the long batch is not stored as it was sent");
}
