//! Every store of records takes the same exam, and then what is its own.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::clock::{Stopwatch, Timestamp, sleep};
use common::domain::record::{Record, RecordId, Status};
use common::history::{Query, Shelf};
use common::run_log::embedded::EmbeddedRunLog;
use common::run_log::mongo::MongoRunLog;
use common::run_log::{Error, Place, RecordQuery, RunLog};
use common::secrets::Vault;
use common::stores;
use futures::TryStreamExt as _;
use mongodb::bson::{Document, doc, oid::ObjectId};
use mongodb::options::IndexOptions;
use serde_json::{Value, json};
use tests::aws::{self, refers};
use tests::conformance::history;
use tests::conformance::run_log::{all, like_the_seeds, new_job, record};
use tests::fixtures::Store;
use tests::line::Line;
use worker::history::sweep as forget_what_is_old;
use worker::retention::{Retention, sweep};

/// Time limit where nothing is supposed to reach it.
const AMPLE: Duration = Duration::from_secs(60);

/// Both exams: a store of records keeps what is known of changes, too.
async fn exam(log: Arc<dyn RunLog>) {
    tests::conformance::run_log::exam(Arc::clone(&log)).await;
    history::exam(log).await;
}

fn embedded(dir: &Path) -> Arc<dyn RunLog> {
    Arc::new(EmbeddedRunLog::open(dir).unwrap())
}

fn mongo(store: &Store, call_limit: Duration) -> Arc<dyn RunLog> {
    Arc::new(MongoRunLog::new(&store.server.url(), call_limit).unwrap())
}

#[tokio::test]
async fn embedded_in_memory() {
    exam(Arc::new(EmbeddedRunLog::in_memory().unwrap())).await;
}

#[tokio::test]
async fn embedded_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    exam(embedded(dir.path())).await;
}

#[tokio::test]
async fn embedded_reopened_keeps_everything() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("made/on/demand");
    let job = new_job("reopened");
    let other = Record { claim: None, ..record(&job, 1000) };
    {
        let log = embedded(&dir);
        log.append(&[record(&job, 1000), record(&job, 2000)]).await.unwrap();
        log.append(std::slice::from_ref(&other)).await.unwrap();
    }
    let log = embedded(&dir);
    assert_eq!(all(&log, &job).await, [record(&job, 2000), record(&job, 1000)]);
    let appended = log.append(&[record(&job, 1000), other.clone()]).await.unwrap();
    assert_eq!((appended.replayed, appended.conflicts), (1, vec![other]));

    // A second one beside it, as of another process, sees the same and may write.
    let beside = embedded(&dir);
    beside.append(&[record(&job, 3000)]).await.unwrap();
    assert_eq!(all(&log, &job).await, all(&beside, &job).await);
    assert_eq!(all(&log, &job).await.len(), 3);
}

#[tokio::test]
async fn embedded_reads_what_the_former_version_wrote() {
    let dir = tempfile::tempdir().unwrap();
    let job = new_job("former");
    let written = [record(&job, 2000), like_the_seeds(record(&job, 1000))];
    {
        let file = rusqlite::Connection::open(dir.path().join("records.sqlite")).unwrap();
        file.execute_batch(
            "CREATE TABLE records (row INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, job TEXT NOT NULL, status TEXT,
                 start INTEGER NOT NULL, plan INTEGER NOT NULL, body TEXT NOT NULL);
             CREATE INDEX by_job ON records (job, start DESC, plan DESC, id, status);
             CREATE TABLE conflicts (row INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, job TEXT NOT NULL, status TEXT,
                 start INTEGER NOT NULL, plan INTEGER NOT NULL, body TEXT NOT NULL);
             PRAGMA user_version = 1;",
        )
        .unwrap();
        for record in &written {
            let values = rusqlite::params![
                record.id.as_str(),
                record.job_name,
                record.status.map(Status::as_str),
                record.start_time.ms(),
                record.plan_time.ms(),
                serde_json::to_string(record).unwrap()
            ];
            let sql =
                "INSERT INTO records (id, job, status, start, plan, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
            file.execute(sql, values).unwrap();
        }
    }
    for _reopened in 0..2 {
        let log = embedded(dir.path());
        assert_eq!(all(&log, &job).await, written);
        assert_eq!(log.get("2a-1").await.unwrap().as_ref(), Some(&written[0]), "found by its claim");
        let worker = Some("10.0.0.1".to_owned());
        let query = RecordQuery { job_name: job.clone(), worker, limit: 9, ..RecordQuery::default() };
        assert_eq!(log.list(&query).await.unwrap(), written[..1]);
    }
}

#[tokio::test]
async fn embedded_says_where_it_cannot_be_opened() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("records.sqlite"), "this is not a database, and long enough to show it")
        .unwrap();
    let error = EmbeddedRunLog::open(dir.path()).err().unwrap();
    assert!(matches!(&error, Error::Internal(text) if text.contains("records.sqlite")), "{error}");
    let error = EmbeddedRunLog::open(&dir.path().join("records.sqlite/sub")).err().unwrap();
    assert!(matches!(&error, Error::Internal(text) if text.contains("sub")), "{error}");
}

#[tokio::test]
async fn mongodb() {
    let Some(store) = Store::mongo("run-log-exam").await else { return };
    exam(mongo(&store, AMPLE)).await;
}

#[tokio::test]
async fn mongodb_behind_a_secret() {
    let Some(store) = Store::mongo("run-log-secret-exam").await else { return };
    let shelf = Arc::new(aws::Shelf::of(&[("/mongodb-uri", &store.server.url())]));
    let settings = refers(&[("CRON_MONGODB_URI", "ssm:/mongodb-uri")]);
    exam(Arc::new(stores::renewing_run_log(&settings, Arc::clone(&shelf) as Arc<dyn Vault>, AMPLE))).await;
    assert_eq!(shelf.reads(), ["/mongodb-uri"], "once, and not before the first call");
}

#[tokio::test]
async fn mongodb_keeps_conflicts_aside_once() {
    let Some(store) = Store::mongo("run-log-conflicts").await else { return };
    let log = mongo(&store, AMPLE);
    let job = new_job("aside");
    let other = Record { claim: None, ..record(&job, 1000) };
    log.append(&[record(&job, 1000)]).await.unwrap();
    for _again in 0..3 {
        log.append(std::slice::from_ref(&other)).await.unwrap();
    }
    let database = raw(&store).await;
    let aside: Vec<Document> = find(&database, "log_conflicts").await;
    assert_eq!(aside.len(), 1);
    assert_eq!(aside[0].get_str("_id").unwrap(), format!("{job}/1000/1@"));
}

#[tokio::test]
async fn mongodb_documents_have_the_seeds_fields() {
    let Some(store) = Store::mongo("run-log-fields").await else { return };
    let log = mongo(&store, AMPLE);
    let job = new_job("fields");
    log.append(&[record(&job, 1000)]).await.unwrap();
    let mut documents = find(&raw(&store).await, "log").await;
    assert_eq!(
        documents.pop().unwrap(),
        doc! {
            "_id": format!("{job}/1000/1"), "jobName": &job, "command": "echo hello", "err": "", "output": "hello\n",
            "planTime": 1000_i64, "scheduleTime": 950_i64, "startTime": 1000_i64, "endTime": 1007_i64,
            "v": 1_i64, "claim": "2a-1", "status": "succeeded", "exitCode": 0, "worker": "10.0.0.1", "attempt": 1_i64,
            "trigger": "schedule", "outputBytes": 6_i64,
        }
    );
}

#[tokio::test]
async fn mongodb_lists_what_the_seed_wrote() {
    let Some(store) = Store::mongo("run-log-seed").await else { return };
    let log = mongo(&store, AMPLE);
    let job = new_job("seed");
    let seed = |at: i64| {
        doc! {
            "_id": ObjectId::new(), "jobName": &job, "command": "echo hello", "err": "", "output": "hello\n",
            "planTime": at, "scheduleTime": at - 50, "startTime": at, "endTime": at + 7,
        }
    };
    let with = |mut document: Document, change: Document| {
        document.extend(change);
        document
    };
    let plain = seed(5000);
    let other_numbers = with(
        seed(4000),
        doc! { "planTime": 4000, "startTime": 4000.0, "endTime": mongodb::bson::DateTime::from_millis(4007) },
    );
    let with_null = with(seed(3000), doc! { "err": null, "status": null });
    let of_the_future = with(seed(2000), doc! { "status": "vanished", "_id": format!("{job}/2000/1") });
    let unreadable = with(seed(1000), doc! { "output": ["not", "text"] });
    let ids: Vec<String> =
        [&plain, &other_numbers, &with_null].map(|d| d.get_object_id("_id").unwrap().to_hex()).into();
    let documents = [&unreadable, &with_null, &plain, &of_the_future, &other_numbers];
    raw(&store).await.collection::<Document>("log").insert_many(documents).await.unwrap();
    log.append(&[record(&job, 4500)]).await.unwrap();

    let as_record =
        |id: &str, at: i64| Record { id: RecordId::from_text(id), ..like_the_seeds(record(&job, at)) };
    let expected = [
        as_record(&ids[0], 5000),
        record(&job, 4500),
        as_record(&ids[1], 4000),
        as_record(&ids[2], 3000),
        as_record(&format!("{job}/2000/1"), 2000),
    ];
    assert_eq!(all(&log, &job).await, expected);

    // What is not understood is not overwritten either.
    let late = Record { status: Some(Status::Lost), ..record(&job, 2000) };
    assert_eq!(log.append(std::slice::from_ref(&late)).await.unwrap().conflicts, [late]);
    assert_eq!(all(&log, &job).await, expected);
}

#[tokio::test]
async fn mongodb_gets_its_indexes_in_place_of_the_former() {
    let Some(store) = Store::mongo("run-log-index").await else { return };
    let collection = raw(&store).await.collection::<Document>("log");
    let former = doc! { "jobName": 1, "startTime": -1, "planTime": -1, "_id": 1, "status": 1 };
    let named = IndexOptions::builder().name("job_newest_first".to_owned()).build();
    let former = mongodb::IndexModel::builder().keys(former).options(named).build();
    collection.create_index(former).await.unwrap();
    let log = mongo(&store, AMPLE);
    for _again in 0..2 {
        log.prepare().await.unwrap();
    }
    let indexes: Vec<mongodb::IndexModel> =
        collection.list_indexes().await.unwrap().try_collect().await.unwrap();
    let mut keys: Vec<String> = indexes.iter().map(|index| index.keys.to_string()).collect();
    keys.sort();
    let expected = [
        r#"{ "_id": 1 }"#,
        r#"{ "claim": 1 }"#,
        r#"{ "jobName": 1, "startTime": -1, "planTime": -1, "_id": 1, "status": 1, "worker": 1 }"#,
        r#"{ "startTime": 1 }"#,
    ];
    assert_eq!(keys, expected);
}

#[tokio::test]
async fn mongodb_pages_through_what_the_seed_wrote_and_removes_it_by_age() {
    let Some(store) = Store::mongo("run-log-seed-pages").await else { return };
    let log = mongo(&store, AMPLE);
    let job = new_job("seed");
    let seed = |at: i64, id: &str| {
        doc! {
            "_id": ObjectId::parse_str(id).unwrap(), "jobName": &job, "command": "echo hello", "err": "", "output": "hello\n",
            "planTime": at, "scheduleTime": at - 50, "startTime": at, "endTime": at + 7,
        }
    };
    // The seed and our workers at the same millisecond, too.
    let (a, b) = ("64c0ffee64c0ffee64c0ffe1", "64c0ffee64c0ffee64c0ffe2");
    let documents = [seed(2000, b), seed(1000, "64c0ffee64c0ffee64c0ffe3"), seed(2000, a)];
    raw(&store).await.collection::<Document>("log").insert_many(documents).await.unwrap();
    log.append(&[record(&job, 2000), record(&job, 3000)]).await.unwrap();
    let everything = all(&log, &job).await;
    let ids: Vec<&str> = everything.iter().map(|record| record.id.as_str()).collect();
    let (ours, second) = (format!("{job}/3000/1"), format!("{job}/2000/1"));
    assert_eq!(ids, [&ours, &second, a, b, "64c0ffee64c0ffee64c0ffe3"]);
    for (nth, record) in everything.iter().enumerate() {
        let place = Some(Place::of(record));
        let of_job = || RecordQuery { job_name: job.clone(), limit: 10, ..RecordQuery::default() };
        let after = RecordQuery { after: place.clone(), ..of_job() };
        assert_eq!(log.list(&after).await.unwrap(), everything[nth + 1..], "after {nth}");
        let until = RecordQuery { until: place, ..of_job() };
        assert_eq!(log.list(&until).await.unwrap(), everything[..=nth], "until {nth}");
    }
    assert_eq!(log.get(a).await.unwrap().as_ref(), Some(&everything[2]));
    let now = Timestamp::from_ms(1500 + 90 * 24 * 3_600_000);
    assert_eq!(sweep(&*log, now, Retention { days: 90, max_per_job: 0 }).await.unwrap(), 1);
    assert_eq!(all(&log, &job).await, everything[..4]);
}

#[tokio::test]
async fn mongodb_records_are_kept_as_long_and_as_many_as_is_said() {
    let Some(store) = Store::mongo("run-log-retention").await else { return };
    records_are_kept_as_long_and_as_many_as_is_said(mongo(&store, AMPLE)).await;
}

#[tokio::test]
async fn embedded_records_are_kept_as_long_and_as_many_as_is_said() {
    records_are_kept_as_long_and_as_many_as_is_said(Arc::new(EmbeddedRunLog::in_memory().unwrap())).await;
}

async fn records_are_kept_as_long_and_as_many_as_is_said(log: Arc<dyn RunLog>) {
    const HOUR: i64 = 3_600_000;
    let now = Timestamp::from_ms(1_000 * 24 * HOUR);
    // One each hour, the last just now; more of the first job than one call removes.
    let jobs = [("busy", 1200), ("few", 3), ("old", 40)].map(|(what, count)| (new_job(what), count));
    for (job, count) in &jobs {
        let records: Vec<Record> = (0..*count).map(|n| record(job, now.ms() - n * HOUR - 8)).collect();
        log.append(&records).await.unwrap();
    }
    let counts = async || {
        let mut counts = Vec::new();
        for (job, _) in &jobs {
            counts.push(all(&log, job).await.len());
        }
        counts
    };
    for (days, max_per_job, expected) in [
        (0, 0, [1200, 3, 40]),
        (30, 0, [30 * 24, 3, 40]),
        (0, 35, [35, 3, 35]),
        // Those of the last day and an hour stay, whatever is said.
        (0, 1, [25, 3, 25]),
        (1, 1, [25, 3, 25]),
    ] {
        let sum = |counts: &[usize]| counts.iter().sum::<usize>() as u64;
        let before = sum(&counts().await);
        let removed = sweep(&*log, now, Retention { days, max_per_job }).await.unwrap();
        assert_eq!(counts().await, expected, "{days} days, {max_per_job} of each");
        assert_eq!(removed, before - sum(&expected));
    }
}

#[tokio::test]
async fn mongodb_changes_are_kept_as_long_as_is_said() {
    let Some(store) = Store::mongo("history-retention").await else { return };
    changes_are_kept_as_long_as_is_said(mongo(&store, AMPLE)).await;
}

#[tokio::test]
async fn embedded_changes_are_kept_as_long_as_is_said() {
    changes_are_kept_as_long_as_is_said(Arc::new(EmbeddedRunLog::in_memory().unwrap())).await;
}

async fn changes_are_kept_as_long_as_is_said(log: Arc<dyn RunLog>) {
    const DAY: i64 = 24 * 3_600_000;
    let definition = |n: i64| json!({ "command": n });
    // One each day: of a job that is there, of one that was deleted a year and more ago, and of one that was deleted just then.
    let jobs = [("there", 120, 0, false), ("gone", 5, 410, true), ("going", 5, 300, true)];
    let jobs = jobs.map(|(what, count, ago, deleted)| (new_job(what), count, ago, deleted));
    for (job, count, ago, deleted) in &jobs {
        let entries = (0..*count).map(|n| {
            let after = if *deleted && n == 0 { Value::Null } else { definition(n) };
            history::edited(job, -(ago + n) * DAY, n, &definition(n + 1), &after)
        });
        log.keep(&entries.collect::<Vec<_>>()).await.unwrap();
    }
    let now = history::edited("", 0, 0, &Value::Null, &Value::Null).at.plus_ms(1);
    for (days, audit, versions) in [
        (0, [120, 5, 5], [100, 5, 5]),
        (412, [120, 2, 5], [100, 5, 5]),
        (400, [120, 0, 5], [100, 0, 5]),
        (20, [20, 0, 0], [100, 0, 0]),
    ] {
        forget_what_is_old(&*log, now, days).await.unwrap();
        for (shelf, expected) in [(Shelf::Audit, audit), (Shelf::Versions, versions)] {
            for ((job, ..), expected) in jobs.iter().zip(expected) {
                let query = Query { limit: 1000, ..Query::of_job(job) };
                assert_eq!(
                    log.kept(shelf, &query).await.unwrap().len(),
                    expected,
                    "{days} days, {shelf:?}, {job}"
                );
            }
        }
    }
}

#[tokio::test]
async fn mongodb_down_is_unavailable_and_then_back() {
    let Some(mut store) = Store::mongo("run-log-down").await else { return };
    store.server.kill();
    // Its first connection fails, too.
    let log = mongo(&store, Duration::from_secs(2));
    let job = new_job("down");
    for round in 0..2 {
        let at = 1000 * round;
        unavailable_within(STORING, log.append(&[record(&job, at)])).await;
        unavailable_within(Duration::from_secs(2), log.prepare()).await;
        store.server.restart().await.unwrap();
        works_again(&log, &record(&job, at)).await;
        store.server.kill();
    }
    store.server.restart().await.unwrap();
    works_again(&log, &record(&job, 0)).await;
    assert_eq!(all(&log, &job).await, [record(&job, 1000), record(&job, 0)]);
}

#[tokio::test]
async fn mongodb_restarted_between_calls_is_not_noticed() {
    let Some(mut store) = Store::mongo("run-log-restarted").await else { return };
    let log = mongo(&store, AMPLE);
    let job = new_job("restart");
    log.append(&[record(&job, 1000)]).await.unwrap();
    store.server.restart().await.unwrap();
    log.append(&[record(&job, 2000)]).await.unwrap();
    assert_eq!(all(&log, &job).await.len(), 2);
}

#[tokio::test]
async fn mongodb_frozen_is_unavailable_and_then_back() {
    let Some(mut store) = Store::mongo("run-log-frozen").await else { return };
    let log = mongo(&store, Duration::from_secs(2));
    let job = new_job("frozen");
    works_again(&log, &record(&job, 1000)).await;
    store.server.freeze();
    // More calls than there are connections.
    for n in 2..8 {
        unavailable_within(STORING, log.append(&[record(&job, n * 1000)])).await;
    }
    store.server.thaw();
    works_again(&log, &record(&job, 9000)).await;
    let listed = all(&log, &job).await;
    assert_eq!(listed.first().map(|r| r.start_time), Some(Timestamp::from_ms(9000)));
}

#[tokio::test]
async fn mongodb_connections_that_died_in_silence_cost_one_call() {
    let Some(store) = Store::mongo("run-log-silence").await else { return };
    let line = Line::to(store.server.address()).await;
    let uri = format!("mongodb://{}", line.address());
    let limit = Duration::from_secs(2);
    let log: Arc<dyn RunLog> = Arc::new(MongoRunLog::new(&uri, limit).unwrap());
    let job = new_job("silence");
    works_again(&log, &record(&job, 1000)).await;
    // Several at once, so that there are several connections.
    futures::future::join_all((0..8).map(|_| all(&log, &job))).await;

    line.fall_silent();
    unavailable_within(STORING, log.append(&[record(&job, 2000)])).await;
    log.append(&[record(&job, 2000)]).await.unwrap();
    assert_eq!(all(&log, &job).await.len(), 2);
}

#[tokio::test]
async fn mongodb_address_is_read_without_io() {
    for bad in
        ["", "127.0.0.1", "http://127.0.0.1", "mongodb://a:b@c:d@127.0.0.1", "mongodb://127.0.0.1/?w=0"]
    {
        let error = MongoRunLog::new(bad, AMPLE).err();
        assert!(matches!(error, Some(Error::Invalid(_))), "{bad}: {error:?}");
    }
    // Nobody is there; that is for the first call to say, also when the host must be looked up first.
    let limit = Duration::from_secs(1);
    for absent in
        ["mongodb://127.0.0.1:1", "mongodb+srv://records.absent.invalid", "mongodb://records.absent.invalid"]
    {
        let log = MongoRunLog::new(absent, limit).unwrap();
        unavailable_within(limit, log.append(&[record("any", 1000)])).await;
    }
}

#[tokio::test]
async fn mongodb_password_is_in_no_error() {
    for uri in
        ["mongodb://user:s3cret@127.0.0.1:1", "mongodb://user:s3cret%@127.0.0.1", "mongodb://user:s3cret@:@x"]
    {
        let error = match MongoRunLog::new(uri, Duration::from_millis(200)) {
            Err(error) => error,
            Ok(log) => log.prepare().await.unwrap_err(),
        };
        assert!(!error.to_string().contains("s3cret"), "{error}");
    }
}

/// What storing may take where a call may take two seconds: see `MongoRunLog::new`.
const STORING: Duration = Duration::from_secs(10);

async fn unavailable_within<T: std::fmt::Debug>(
    limit: Duration,
    call: impl Future<Output = Result<T, Error>>,
) {
    let took = Stopwatch::start();
    let result = call.await;
    assert!(matches!(result, Err(Error::Unavailable(_))), "{result:?}");
    // Room for a loaded machine; the driver's own default would be thirty seconds.
    assert!(took.elapsed() < limit + Duration::from_secs(5), "{:?}", took.elapsed());
}

/// Sends the record until it is stored. A server that has just come back may need more than one call's time.
async fn works_again(log: &Arc<dyn RunLog>, record: &Record) {
    let waited = Stopwatch::start();
    loop {
        match log.append(std::slice::from_ref(record)).await {
            Ok(_) => return,
            Err(error) => assert!(waited.elapsed() < AMPLE, "still {error}"),
        }
        sleep(Duration::from_millis(20)).await;
    }
}

async fn raw(store: &Store) -> mongodb::Database {
    mongodb::Client::with_uri_str(store.server.url()).await.unwrap().database("cron")
}

async fn find(database: &mongodb::Database, collection: &str) -> Vec<Document> {
    let cursor = database.collection::<Document>(collection).find(doc! {}).await.unwrap();
    cursor.try_collect().await.unwrap()
}
