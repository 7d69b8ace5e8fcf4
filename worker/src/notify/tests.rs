//! Workers that tell of jobs over one store, to real servers.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, Ordering::SeqCst};
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use common::channels::{Channel, Channels, Email, Secret, Target, Tls};
use common::clock::{SystemClock, Timestamp, sleep};
use common::domain::job::{Job, JobName};
use common::domain::notify::Notify as Wanted;
use common::domain::pause::Base;
use common::domain::record::{Record, RecordId, SkipReason, Skipped, Status};
use common::domain::run::Trigger;
use common::kv::embedded::EmbeddedKv;
use common::kv::{Op, Range, Txn};
use common::run_log::embedded::EmbeddedRunLog;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;

use super::*;
use crate::scheduler::JobSeen;
use crate::store_tests::wait_for;

/// A receiver of webhooks, and what it was sent.
#[derive(Clone, Default)]
struct Hook {
    /// What it answers; 0 = 200.
    status: Arc<AtomicU16>,
    got: Arc<Mutex<Vec<(HeaderMap, Value)>>>,
}

impl Hook {
    async fn start() -> (Self, String) {
        let hook = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let taking = async |State(hook): State<Hook>, headers: HeaderMap, body: String| {
            let status = hook.status.load(SeqCst);
            if status == 0 {
                hook.got.lock().unwrap().push((headers, serde_json::from_str(&body).unwrap()));
            }
            // A redirection that is followed would be taken at its end.
            let elsewhere = [("location", "/elsewhere")];
            (StatusCode::from_u16(status.max(200)).unwrap(), elsewhere)
        };
        let app = axum::Router::new().route("/hook", post(taking)).route("/elsewhere", post(taking));
        let app = app.with_state(hook.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        (hook, url)
    }

    fn kinds(&self) -> Vec<String> {
        let got = self.got.lock().unwrap();
        got.iter().map(|(_, body)| body["kind"].as_str().unwrap().to_owned()).collect()
    }

    async fn has(&self, kinds: &[&str]) {
        wait_for("notifications", async || (self.kinds() == kinds).then_some(())).await;
    }

    /// Nothing more comes: what would have come has had the time to.
    async fn stays(&self, kinds: &[&str]) {
        sleep(Duration::from_millis(300)).await;
        assert_eq!(self.kinds(), kinds);
    }
}

fn channels(list: &[(&str, Channel)]) -> Channels {
    Channels {
        channels: list.iter().map(|(name, channel)| ((*name).to_owned(), channel.clone())).collect(),
        per_minute: 1000,
        ..Channels::default()
    }
}

fn webhook(url: &str) -> Channel {
    Channel::Webhook(Target { url: Secret::Text(url.to_owned()), headers: BTreeMap::new() })
}

/// A worker's notices, ended with it as by a kill: what is on disk stays.
struct Worker {
    notices: Notices,
    tasks: Vec<JoinHandle<()>>,
    counters: Arc<Counters>,
}

impl Worker {
    async fn all_decided(&self) {
        let undecided = &self.notices.0.undecided;
        wait_for("all to be decided", async || (undecided.load(Relaxed) == 0).then_some(())).await;
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn worker(kv: &Arc<EmbeddedKv>, channels: &Channels, dir: &Path, jobs: &[Value]) -> Worker {
    let counters = Arc::new(Counters::default());
    let clock = Arc::new(SystemClock);
    let kv = Arc::clone(kv) as Arc<dyn Kv>;
    let all = Arc::new(channels.clone());
    let notices = Notices::new(all, Some(dir), Arc::clone(&kv), clock, Arc::clone(&counters));
    let mut tasks = notices.start();
    tasks.extend(notices.follow());
    notices.see(&Event::JobsListBegins);
    for job in jobs {
        put(&notices, kv.as_ref(), job).await;
    }
    notices.see(&Event::JobsListed);
    wait_for("states", async || notices.watched().is_known().then_some(())).await;
    Worker { notices, tasks, counters }
}

async fn put(notices: &Notices, kv: &dyn Kv, job: &Value) -> JobName {
    let name = job["name"].as_str().unwrap();
    let text = job.to_string();
    let there = Txn {
        then: vec![Op::put(keys::job(&JobName::parse(name).unwrap()), text.as_str())],
        ..Txn::default()
    };
    kv.txn(there).await.unwrap();
    let read = Job::from_stored(name, text.as_bytes()).unwrap();
    assert!(read.extra.is_empty(), "{:?}", read.extra);
    let name = read.name.clone();
    let seen = JobSeen { name: name.clone(), job: Ok(Arc::new(read)), create_revision: 1, mod_revision: 1 };
    notices.see(&Event::JobPut(seen));
    name
}

fn job(more: &Value) -> Value {
    let mut job = json!({"name": "a", "command": "true", "cronExpr": "* * * * *"});
    job.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    job
}

fn notifying() -> Value {
    job(&json!({"notify": {"to": ["hook"]}}))
}

/// A run's record; it ended so many ms after some time.
fn record(status: Status, at: i64) -> Record {
    let mut record = crate::spool::tests::record(at);
    record.job_name = "a".to_owned();
    record.id = RecordId::from_text(format!("a/{at}/1"));
    record.status = Some(status);
    record.attempt = Some(1);
    (record.trigger, record.end_time) = (Some(Trigger::Schedule), Timestamp::from_ms(1_800_000_000_000 + at));
    record
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_failures_seen_by_many_workers_one_is_told_and_one_recovery() {
    let kv = Arc::new(EmbeddedKv::in_memory().unwrap());
    let (hook, url) = Hook::start().await;
    let all = channels(&[("hook", webhook(&url))]);
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let mut workers = Vec::new();
    for dir in &dirs {
        workers.push(worker(&kv, &all, dir.path(), &[notifying()]).await);
    }
    for at in 0..60 {
        // Each end is seen by one; now and then, as of a run that was lost, by all.
        let record = record(Status::Failed, at);
        if at % 10 == 0 {
            workers.iter().for_each(|worker| worker.notices.take([&record]));
        } else {
            workers[usize::try_from(at % 3).unwrap()].notices.take([&record]);
        }
    }
    hook.has(&["failure"]).await;
    let first = hook.got.lock().unwrap()[0].clone();
    assert_eq!(first.0["idempotency-key"], first.1["id"].as_str().unwrap());
    assert_eq!(first.1["job"], "a");
    for worker in &workers {
        worker.all_decided().await;
    }
    workers[1].notices.take([&record(Status::Succeeded, 100)]);
    hook.has(&["failure", "recovery"]).await;
    workers[2].notices.take([&record(Status::Succeeded, 101), &record(Status::Killed, 102)]);
    hook.stays(&["failure", "recovery"]).await;
    assert!(
        dirs.iter().all(|dir| std::fs::read_dir(dir.path()).unwrap().next().is_none()),
        "all is done with"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_told_while_the_address_was_away_is_sent_by_the_next_process() {
    let kv = Arc::new(EmbeddedKv::in_memory().unwrap());
    let (hook, url) = Hook::start().await;
    hook.status.store(503, SeqCst);
    let (all, dir) = (channels(&[("hook", webhook(&url))]), tempfile::tempdir().unwrap());
    let first = worker(&kv, &all, dir.path(), &[notifying()]).await;
    first.notices.take([&record(Status::TimedOut, 1)]);
    wait_for("an attempt", async || (first.counters.failed.load(Relaxed) > 0).then_some(())).await;
    drop(first);
    let second = worker(&kv, &all, dir.path(), &[notifying()]).await;
    // The record comes again: it was on disk, and nobody knew whether it was told.
    second.notices.take_left(&[record(Status::TimedOut, 1)]).await;
    hook.status.store(302, SeqCst);
    wait_for("attempts", async || (second.counters.failed.load(Relaxed) > 1).then_some(())).await;
    assert_eq!(hook.kinds(), Vec::<String>::new(), "a redirection was followed");
    hook.status.store(0, SeqCst);
    hook.has(&["timeout"]).await;
    hook.stays(&["timeout"]).await;
}

/// The worst moment: the state says that it is told, and no message is on disk.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_decided_by_a_process_that_died_is_told_by_the_next() {
    let kv = Arc::new(EmbeddedKv::in_memory().unwrap());
    let (hook, url) = Hook::start().await;
    let (all, dir) = (channels(&[("hook", webhook(&url))]), tempfile::tempdir().unwrap());
    let first = worker(&kv, &all, dir.path(), &[notifying()]).await;
    first.tasks.iter().for_each(JoinHandle::abort);
    first.notices.take([&record(Status::Failed, 1)]);
    let group = first.notices.0.groups.lock().unwrap()[0].clone();
    let name = JobName::parse("a").unwrap();
    assert_eq!(first.notices.swap(&group.by, &name, &group.happened).await.unwrap().len(), 1);
    drop(first);
    let _second = worker(&kv, &all, dir.path(), &[notifying()]).await;
    hook.has(&["failure"]).await;
    hook.stays(&["failure"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_another_follows_has_not_failed_and_the_last_one_has() {
    let kv = Arc::new(EmbeddedKv::in_memory().unwrap());
    let (hook, url) = Hook::start().await;
    let (all, dir) = (channels(&[("hook", webhook(&url))]), tempfile::tempdir().unwrap());
    let retried = job(&json!({"notify": {"to": ["hook"]}, "retry": {"attempts": 3, "onLost": true}}));
    let worker = worker(&kv, &all, dir.path(), &[retried]).await;
    for (attempt, status) in
        [(1, Status::Failed), (1, Status::Lost), (2, Status::TimedOut), (2, Status::Killed)]
    {
        worker.notices.take([&Record { attempt: Some(attempt), ..record(status, i64::from(attempt)) }]);
    }
    hook.stays(&[]).await;
    // The last one is let go, and so the one before was the last.
    let skipped = Some(Skipped::one(Timestamp::ZERO, SkipReason::Misfire));
    let trigger = Some(Trigger::Retry);
    worker.notices.take([&Record { attempt: Some(3), skipped, trigger, ..record(Status::Skipped, 3) }]);
    hook.has(&["failure"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_wanted_is_told_and_what_is_wanted_of_all_jobs_beside_it() {
    let kv = Arc::new(EmbeddedKv::in_memory().unwrap());
    let ((hook, url), (ops, ops_url)) = (Hook::start().await, Hook::start().await);
    let mut all = channels(&[("hook", webhook(&url)), ("ops", webhook(&ops_url))]);
    all.all = Some(Wanted::parse(&json!({"on": ["misfire", "recovery"], "to": ["ops"]})).unwrap());
    let dir = tempfile::tempdir().unwrap();
    let timeouts = job(&json!({"notify": {"on": ["timeout", "recovery"], "to": ["hook", "nowhere"]}}));
    let worker = worker(&kv, &all, dir.path(), &[timeouts]).await;
    assert_eq!(worker.counters.unknown.load(Relaxed), 1);
    let missed = |reason, at| Record {
        skipped: Some(Skipped::one(Timestamp::ZERO, reason)),
        ..record(Status::Skipped, at)
    };
    worker.notices.take([&record(Status::Failed, 1), &missed(SkipReason::Overlap, 2)]);
    worker.notices.take([&missed(SkipReason::Misfire, 3)]);
    ops.has(&["misfire"]).await;
    worker.notices.take([&record(Status::Succeeded, 4)]);
    ops.has(&["misfire", "recovery"]).await;
    worker.notices.take([&record(Status::TimedOut, 5)]);
    hook.has(&["timeout"]).await;
    worker.notices.take([&record(Status::Succeeded, 6)]);
    hook.has(&["timeout", "recovery"]).await;
    ops.stays(&["misfire", "recovery"]).await;
}

/// The record store, as whoever closes the runs of others sees it.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_run_is_told_unless_its_real_record_is_there() {
    let kv = Arc::new(EmbeddedKv::in_memory().unwrap());
    let (hook, url) = Hook::start().await;
    let (all, dir) = (channels(&[("hook", webhook(&url))]), tempfile::tempdir().unwrap());
    let worker = worker(&kv, &all, dir.path(), &[notifying()]).await;
    let inner: Arc<dyn RunLog> = Arc::new(EmbeddedRunLog::in_memory().unwrap());
    inner.append(&[record(Status::Succeeded, 1)]).await.unwrap();
    let noticing = Noticing { inner, notices: worker.notices.clone() };
    noticing.append(&[record(Status::Lost, 1)]).await.unwrap();
    hook.stays(&[]).await;
    noticing.append(&[record(Status::Lost, 2)]).await.unwrap();
    // Its worker is back, with the record on its disk: what really happened corrects what was told.
    noticing.append(&[record(Status::Lost, 2)]).await.unwrap();
    hook.has(&["lost"]).await;
    worker
        .notices
        .take_left(&[Record { end_time: Timestamp::from_ms(1), ..record(Status::Succeeded, 2) }])
        .await;
    hook.has(&["lost", "recovery"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_a_channel_may_get_is_gathered() {
    let kv = Arc::new(EmbeddedKv::in_memory().unwrap());
    let (hook, url) = Hook::start().await;
    hook.status.store(503, SeqCst);
    let mut all = channels(&[("hook", webhook(&url))]);
    all.per_minute = 2;
    let dir = tempfile::tempdir().unwrap();
    let worker = worker(&kv, &all, dir.path(), &[notifying()]).await;
    for at in 0..10 {
        let status = if at % 2 == 0 { Status::Failed } else { Status::Succeeded };
        worker.notices.take([&record(status, at)]);
        worker.all_decided().await;
    }
    let queue = &worker.notices.0.queues["hook"];
    wait_for("all messages", async || (worker.counters.waiting.load(Relaxed) == 10).then_some(())).await;
    assert!(!queue.is_empty());
    // Two attempts were not taken; the minute that follows is not waited for here: a process that comes after does not know of them.
    drop(worker);
    hook.status.store(0, SeqCst);
    let second = super::tests::worker(&kv, &all, dir.path(), &[notifying()]).await;
    hook.has(&["failure", "recovery"]).await;
    assert_eq!(second.counters.waiting.load(Relaxed), 8, "the rest waits for its minute");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_its_channel_refuses_for_good_is_given_up_and_counted() {
    let kv = Arc::new(EmbeddedKv::in_memory().unwrap());
    let (hook, url) = Hook::start().await;
    hook.status.store(400, SeqCst);
    let (all, dir) = (channels(&[("hook", webhook(&url))]), tempfile::tempdir().unwrap());
    let worker = worker(&kv, &all, dir.path(), &[notifying()]).await;
    worker.notices.take([&record(Status::Failed, 1)]);
    wait_for("it to be given up", async || (worker.counters.dropped.load(Relaxed) == 1).then_some(())).await;
    assert!(worker.notices.0.queues["hook"].is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_does_not_succeed_is_told_of_and_one_that_is_off_is_not() {
    let kv = Arc::new(EmbeddedKv::in_memory().unwrap());
    let (hook, url) = Hook::start().await;
    let (all, dir) = (channels(&[("hook", webhook(&url))]), tempfile::tempdir().unwrap());
    let silent = |more: Value| {
        let mut silent =
            job(&json!({"notify": {"on": ["recovery"], "notSucceededForSeconds": 60, "to": ["hook"]}}));
        silent.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        silent
    };
    let off = silent(json!({"name": "off", "enabled": false}));
    let over = silent(json!({"name": "over", "endAt": "2020-01-01T00:00:00Z"}));
    let worker = worker(&kv, &all, dir.path(), &[silent(json!({})), off, over]).await;
    let now = worker.notices.0.clock.now();
    let look = |at: Timestamp| worker.notices.watched().overdue("w", at);
    let jobs = |happened: &[Happened]| happened.iter().map(|one| one.job.to_string()).collect::<Vec<_>>();
    let first = look(now);
    assert_eq!(jobs(&first), ["a"], "it is waited for from now on");
    worker.notices.keep(first);
    let name = JobName::parse("a").unwrap();
    let state = || worker.notices.watched().state(&name).0;
    wait_for("the first sight", async || state().watched_since).await;
    assert_eq!(
        jobs(&look(now.plus_ms(85_000))),
        Vec::<String>::new(),
        "it may have succeeded half a minute ago"
    );
    worker.notices.see(&Event::Paused(true));
    assert_eq!(jobs(&look(now.plus_ms(200_000))), Vec::<String>::new());
    worker.notices.see(&Event::Paused(false));
    worker.notices.see(&Event::Base(Base::default().resumed(now.plus_ms(200_000))));
    assert_eq!(jobs(&look(now.plus_ms(280_000))), Vec::<String>::new(), "counted from the end of the pause");
    let late = look(now.plus_ms(400_000));
    assert_eq!(jobs(&late), ["a"]);
    // Another worker has seen it succeed: whoever finds it overdue by what it knew tells nothing.
    worker.notices.keep(late);
    hook.stays(&[]).await;
}

/// A server that takes mail, as far as a test needs one.
async fn mail_server() -> (String, u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, got) = (listener.local_addr().unwrap().port(), Arc::new(Mutex::new(Vec::new())));
    let mails = Arc::clone(&got);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (read, mut write) = stream.into_split();
            let (mut lines, mut mail, mut in_mail) = (BufReader::new(read).lines(), String::new(), false);
            write.write_all(b"220 test\r\n").await.unwrap();
            while let Ok(Some(line)) = lines.next_line().await {
                mail.push_str(&format!("{line}\n"));
                let answer = match line.split(' ').next().unwrap_or_default() {
                    _ if in_mail && line != "." => continue,
                    "." => {
                        in_mail = false;
                        mails.lock().unwrap().push(std::mem::take(&mut mail));
                        "250 taken\r\n"
                    }
                    "DATA" => {
                        in_mail = true;
                        "354 go on\r\n"
                    }
                    "QUIT" => break,
                    _ => "250 test\r\n",
                };
                write.write_all(answer.as_bytes()).await.unwrap();
            }
        }
    });
    ("127.0.0.1".to_owned(), port, got)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_e_mail_goes_to_all_its_readers_with_a_subject_of_one_line() {
    let kv = Arc::new(EmbeddedKv::in_memory().unwrap());
    let (host, port, got) = mail_server().await;
    let to = vec!["ops@example.com".to_owned(), "team@example.com".to_owned()];
    let email = Email {
        host,
        port,
        tls: Tls::None,
        user: None,
        password: None,
        from: "cron@example.com".to_owned(),
        to,
    };
    let (all, dir) = (channels(&[("hook", Channel::Email(email))]), tempfile::tempdir().unwrap());
    let worker = worker(&kv, &all, dir.path(), &[notifying()]).await;
    let err = "exit status 1\r\nBcc: all@example.com".to_owned();
    worker.notices.take([&Record {
        err,
        output: "the end\n.\nof it".to_owned(),
        ..record(Status::Failed, 1)
    }]);
    let mail = wait_for("a mail", async || got.lock().unwrap().first().cloned()).await;
    for part in
        ["RCPT TO:<ops@example.com>", "RCPT TO:<team@example.com>", "From: cron@example.com", "the end\n"]
    {
        assert!(mail.contains(part), "{part} is not in {mail}");
    }
    let (headers, _) = mail.split_once("DATA\n").unwrap().1.split_once("\n\n").unwrap();
    assert!(headers.contains("Subject: Job a failed: exit status 1"), "{headers}");
    assert!(!headers.lines().any(|line| line.starts_with("Bcc")), "{headers}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_told_of_a_job_goes_with_it() {
    let kv = Arc::new(EmbeddedKv::in_memory().unwrap());
    let (hook, url) = Hook::start().await;
    let (all, dir) = (channels(&[("hook", webhook(&url))]), tempfile::tempdir().unwrap());
    let worker = worker(&kv, &all, dir.path(), &[notifying()]).await;
    worker.notices.take([&record(Status::Failed, 1)]);
    hook.has(&["failure"]).await;
    let kept = async || kv.range(Range::prefix(keys::NOTIFY)).await.unwrap().pairs.len();
    assert_eq!(kept().await, 1);
    let name = JobName::parse("a").unwrap();
    worker.notices.see(&Event::JobDeleted(name.clone()));
    sleep(Duration::from_millis(50)).await;
    assert_eq!(kept().await, 1, "it is there again by now");
    kv.txn(Txn { then: vec![Op::delete(keys::job(&name))], ..Txn::default() }).await.unwrap();
    worker.notices.see(&Event::JobDeleted(name.clone()));
    wait_for("its state to go", async || (kept().await == 0).then_some(())).await;
    // What comes late of it puts nothing.
    put(&worker.notices, kv.as_ref(), &notifying()).await;
    kv.txn(Txn { then: vec![Op::delete(keys::job(&name))], ..Txn::default() }).await.unwrap();
    worker.notices.take([&record(Status::Failed, 2)]);
    hook.stays(&["failure"]).await;
    assert_eq!(kept().await, 0);
}

/// News of the store come late: what was taken for nobody's news by what was known then is told after all.
#[test]
fn what_was_nobodys_news_by_an_old_state_is_told_by_the_new_one() {
    use common::domain::notify::{Occasion, Outage};
    use common::kv::{Change, Pair};

    let name = JobName::parse("a").unwrap();
    let mut watched = Watched::new(Arc::new(channels(&[("hook", webhook("http://127.0.0.1:1"))])));
    let read = Arc::new(Job::from_stored("a", notifying().to_string().as_bytes()).unwrap());
    let seen = JobSeen { name: name.clone(), job: Ok(read), create_revision: 1, mod_revision: 1 };
    let now = record(Status::Failed, 0).end_time;
    watched.see(&Event::JobPut(seen), now);
    watched.see(&Event::JobsListed, now);
    watched.take_states(&News::Page { pairs: Vec::new(), first: true, last: true });
    let mut revision = 1;
    let mut news = |state: Notified| {
        revision += 1;
        let key = keys::notify(&name).into();
        let (value, version) = (state.encode(), 1);
        let pair = Pair { key, value, create_revision: 1, mod_revision: revision, version, lease: None };
        News::Changed(vec![Change { pair, previous: None }])
    };
    let failing = |last: &Record| {
        let mut state = Notified::default();
        state.outage = Some(Outage {
            since: last.end_time,
            last_at: last.end_time,
            last_record: last.id.as_str().to_owned(),
            failures: 1,
            counted_at: now,
            told_at: now,
            kinds: [Occasion::Failure].into(),
        });
        state
    };
    let records = |happened: &[Happened]| happened.iter().map(|one| one.record.clone()).collect::<Vec<_>>();

    // It succeeds here, and only then it is known that the run before had failed elsewhere.
    assert_eq!(watched.take(&record(Status::Succeeded, 5), now), None);
    assert_eq!(records(&watched.take_states(&news(failing(&record(Status::Failed, 4))))), ["a/5/1"]);
    // A later failure is another outage; and the run that others took for lost is the one that succeeded here.
    assert_eq!(
        records(&watched.take_states(&news(failing(&record(Status::Failed, 6))))),
        Vec::<String>::new()
    );
    let late = Record { end_time: now.plus_ms(90), ..record(Status::Lost, 5) };
    assert_eq!(records(&watched.take_states(&news(failing(&late)))), ["a/5/1"]);

    // It fails here, which is known, and only then it is known that it had succeeded in between.
    watched.take_states(&news(failing(&record(Status::Failed, 20))));
    assert_eq!(watched.take(&record(Status::Failed, 30), now), None);
    assert_eq!(watched.take(&record(Status::Failed, 31), now), None);
    let succeeded = |at| {
        let mut state = Notified::default();
        state.succeeded = Some(record(Status::Succeeded, at).end_time);
        state
    };
    let better = watched.take_states(&news(succeeded(25)));
    assert_eq!((records(&better), better[0].count), (vec!["a/31/1".to_owned()], 2));
    watched.take_states(&news(failing(&record(Status::Failed, 40))));
    assert_eq!(watched.take(&record(Status::Failed, 41), now), None);
    assert_eq!(records(&watched.take_states(&news(succeeded(42)))), Vec::<String>::new());
    // What is added up goes to the state within a minute, and what ends the outage says how many there were.
    watched.take_states(&news(failing(&record(Status::Failed, 50))));
    assert_eq!(watched.take(&record(Status::Failed, 51), now), None);
    assert_eq!(watched.take(&record(Status::Failed, 52), now.plus_ms(60_000)).unwrap().count, 2);
    assert_eq!(watched.take(&record(Status::Failed, 53), now), None);
    assert_eq!(watched.take(&record(Status::Succeeded, 54), now).unwrap().count, 1);
}
