//! What changes leave behind: who did what, and the versions of jobs, through the handlers in this process on the embedded stores.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use common::clock::{Clock, Timestamp};
use common::domain::access::{Means, Principal, Role};
use common::domain::audit::{Entry, Note, Origin};
use common::domain::job::JobName;
use common::domain::mark::Mark;
use common::domain::run::{LockHolder, RunId};
use common::domain::worker::Sid;
use common::history::moving::{self, WAITING_MAX, Waiting, move_waiting};
use common::history::{History as _, Query, Shelf};
use common::keys;
use common::kv::embedded::EmbeddedKv;
use common::kv::{
    self, Key, Kv, LeaseId, Op, Pair, Range, RangeReply, Revision, Room, Span, Txn, TxnReply, WatchStream,
};
use common::run_log::embedded::EmbeddedRunLog;
use functions::invocation::Invocation;
use functions::{Ports, ROUTES};
use lambda_http::{Body, RequestExt as _};
use serde_json::{Value, json};

/// 2026-11-21T00:00:00Z, when all these tests begin.
const NOW: Timestamp = Timestamp::from_ms(1_795_219_200_000);

/// A clock that goes on by a second whenever somebody asks.
struct Ticking(AtomicI64);

#[async_trait]
impl Clock for Ticking {
    fn now(&self) -> Timestamp {
        Timestamp::from_ms(self.0.fetch_add(1000, Ordering::Relaxed))
    }

    async fn sleep_until(&self, _deadline: Timestamp) {}
}

/// A store that takes so many more writes; those behind are not done, as if the process that sends them had died.
struct Mortal {
    inner: EmbeddedKv,
    writes: AtomicI64,
}

impl Mortal {
    fn lives(&self) {
        self.writes.store(i64::MAX, Ordering::Relaxed);
    }

    fn dies_after(&self, writes: i64) {
        self.writes.store(writes, Ordering::Relaxed);
    }
}

#[async_trait]
impl Kv for Mortal {
    async fn range(&self, range: Range) -> Result<RangeReply, kv::Error> {
        self.inner.range(range).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnReply, kv::Error> {
        let writes = txn.then.iter().any(|op| !matches!(op, Op::Range(_)));
        if writes && self.writes.fetch_sub(1, Ordering::Relaxed) <= 0 {
            return Err(kv::Error::Unavailable("died".to_owned()));
        }
        self.inner.txn(txn).await
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

    async fn lease_keys(&self, lease: LeaseId) -> Result<Vec<Key>, kv::Error> {
        self.inner.lease_keys(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), kv::Error> {
        self.inner.revoke(lease).await
    }

    async fn compact(&self, revision: Revision) -> Result<(), kv::Error> {
        self.inner.compact(revision).await
    }

    async fn room(&self) -> Result<Room, kv::Error> {
        self.inner.room().await
    }
}

struct Stage {
    kv: Arc<Mortal>,
    log: Arc<EmbeddedRunLog>,
    clock: Arc<Ticking>,
}

impl Stage {
    fn new() -> Self {
        let kv = Mortal { inner: EmbeddedKv::in_memory().unwrap(), writes: AtomicI64::new(i64::MAX) };
        let log = EmbeddedRunLog::in_memory().unwrap();
        Self { kv: Arc::new(kv), log: Arc::new(log), clock: Arc::new(Ticking(AtomicI64::new(NOW.ms()))) }
    }

    async fn send(&self, method: &str, path: &str, sent: &Value) -> (u16, Value) {
        let request = lambda_http::http::Request::builder().method(method).uri(path);
        let request = request.header("content-type", "application/json").header("user-agent", "test/1");
        let body = if method == "GET" { Body::Empty } else { Body::Text(sent.to_string()) };
        let request = request.body(body).unwrap();
        let raw = request.uri().path().to_owned();
        let mut request = request.with_raw_http_path(raw);
        request.extensions_mut().insert(ada());
        let invocation = Invocation::of_local(&request);
        invocation.name(&mut request);
        let ports = Ports { kv: self.kv.clone(), run_log: self.log.clone(), clock: self.clock.clone() };
        let response = invocation.observe(functions::handle(&ports, request)).await;
        let Body::Text(text) = response.body() else { panic!("no text") };
        let mut reply: Value = serde_json::from_str(text).unwrap();
        reply["id"] = response.headers()["x-request-id"].to_str().unwrap().into();
        (response.status().as_u16(), reply)
    }

    async fn post(&self, path: &str, sent: Value) -> Value {
        let (status, reply) = self.send("POST", path, &sent).await;
        assert_eq!(status, 200, "{path}: {reply}");
        reply
    }

    async fn get(&self, path: &str) -> Value {
        let (status, reply) = self.send("GET", path, &Value::Null).await;
        assert_eq!(status, 200, "{path}: {reply}");
        assert_eq!(reply["warnings"], Value::Null, "{path}");
        reply
    }

    async fn put(&self, key: &str, value: impl Into<Vec<u8>>) {
        self.kv.inner.txn(Txn { then: vec![Op::put(key, value)], ..Txn::default() }).await.unwrap();
    }

    async fn waiting(&self) -> Vec<Pair> {
        self.kv.inner.range(Range::prefix(keys::AUDIT)).await.unwrap().pairs
    }

    async fn revision(&self) -> Revision {
        self.kv.inner.range(Range::key("nothing")).await.unwrap().revision
    }

    async fn kept(&self, shelf: Shelf) -> Vec<Entry> {
        self.log.kept(shelf, &Query { limit: 100_000, ..Query::default() }).await.unwrap()
    }
}

fn ada() -> Principal {
    let means = Means::Token("a1b2".to_owned());
    Principal { name: "ada".to_owned(), role: Role::Admin, prefix: String::new(), means }
}

fn job(name: &str, command: &str) -> Value {
    json!({"name": name, "command": command, "cronExpr": "@daily"})
}

#[tokio::test]
async fn every_change_leaves_its_note_by_its_own_transaction_and_nothing_else_does() {
    let stage = Stage::new();
    stage.post("/job/save", job("to-roll-back", "one")).await;
    stage.post("/job/save", job("to-roll-back", "two")).await;
    let token =
        stage.post("/token/create", json!({"name": "old", "role": "viewer"})).await["data"]["id"].clone();
    let versions = stage.get("/job/versions?name=to-roll-back").await; // moves what waits
    let first = versions["data"][1]["version"].clone();
    let lock = LockHolder::new(Sid(7), RunId::new(Sid(7), 3)).encode();
    stage.put(&keys::lock(&JobName::parse("a").unwrap()), lock).await;
    let a = || json!({"name": "a"});
    // What is sent, what it is told to have touched, and by which details; then the same again, where that changes nothing.
    let rows = [
        ("/job/save", job("a", "x"), "job", json!({}), false),
        ("/job/pause", a(), "job", json!({}), true),
        ("/job/resume", a(), "job", json!({}), true),
        (
            "/job/run",
            json!({"name": "a", "env": {"SECRET": "hidden"}}),
            "job",
            json!({"env": ["SECRET"]}),
            false,
        ),
        ("/job/kill", a(), "job", json!({"runIds": ["7-3"]}), false),
        (
            "/job/rollback",
            json!({"name": "to-roll-back", "version": first}),
            "job",
            json!({"version": first}),
            false,
        ),
        ("/job/delete", a(), "job", json!({}), true),
        ("/job/import?apply=1&format=json", json!([job("b", "y")]), "job", json!({}), true),
        ("/fleet/pause", json!({"reason": "why"}), "pause", json!({}), true),
        ("/fleet/resume", json!({}), "pause", json!({}), true),
        ("/fleet/settings", json!({"timezone": "Asia/Tokyo"}), "settings", json!({}), true),
        (
            "/calendar/save",
            json!({"name": "holidays", "dates": ["2027-01-01"]}),
            "calendar",
            json!({"calendar": "holidays"}),
            true,
        ),
        ("/calendar/delete", json!({"name": "holidays"}), "calendar", json!({"calendar": "holidays"}), true),
        ("/token/create", json!({"name": "new", "role": "viewer"}), "token", json!({}), false),
        ("/token/revoke", json!({"id": token}), "token", json!({}), true),
    ];
    let mut left = BTreeSet::new();
    for (path, sent, thing, details, idle_again) in rows {
        let sent = if path.contains("import") { json!({ "text": sent.to_string() }) } else { sent };
        let reply = stage.post(path, sent.clone()).await;
        let [pair] = stage.waiting().await.try_into().unwrap_or_else(|all| panic!("{path}: {all:?}"));
        assert_eq!(pair.mod_revision, stage.revision().await, "{path}: one transaction");
        let text = String::from_utf8_lossy(&pair.value).into_owned();
        assert!(!text.contains("hidden"), "{path}: {text}");
        let mut note = Note::decode(&pair.value).unwrap();
        let from = Some("ada (token a1b2) (test/1)".to_owned());
        let origin =
            Origin { by: Some(ada()), from, request_id: Some(reply["id"].as_str().unwrap().to_owned()) };
        assert_eq!(note.origin, origin, "{path}");
        assert_eq!(note.touched.len(), 1, "{path}");
        assert_eq!(note.touched[0].thing, thing, "{path}");
        note.details.shift_remove("runId");
        if let Some(token) = note.details.shift_remove("token") {
            assert_eq!(token["role"], "viewer", "{path}");
            assert!(
                reply["data"]["token"].as_str().is_none_or(|secret| !text.contains(secret)),
                "{path}: {text}"
            );
        }
        assert_eq!(Value::Object(note.details), details, "{path}");
        left.insert(note.action);
        move_waiting(&*stage.kv, &*stage.log, usize::MAX).await.unwrap();
        if idle_again {
            stage.post(path, sent).await;
            assert_eq!(stage.waiting().await, [], "{path}: nothing was changed");
        }
    }
    let changing = ROUTES.iter().filter(|route| route.methods.contains(&"POST"));
    assert_eq!(left, changing.map(|route| route.function.to_owned()).collect());
    // What only asks leaves nothing.
    stage.post("/job/import?format=json", json!({ "text": json!([job("c", "z")]).to_string() })).await;
    assert_eq!(stage.waiting().await, []);
}

#[tokio::test]
async fn whoever_dies_while_moving_loses_nothing_and_doubles_nothing() {
    let stage = Stage::new();
    for n in 0..40 {
        stage.post("/job/save", job("a", &n.to_string())).await;
    }
    // Sixteen are kept, and then deleted: each mover dies between the two, the later ones a page further on. What was kept then is kept again.
    for (deletes, kept, waiting) in [(0, 16, 40), (1, 32, 24), (1, 40, 8)] {
        stage.kv.dies_after(deletes);
        let died = move_waiting(&*stage.kv, &*stage.log, usize::MAX).await;
        assert!(matches!(died, Err(moving::Error::Kv(_))), "{died:?}");
        assert_eq!((stage.kept(Shelf::Audit).await.len(), stage.waiting().await.len()), (kept, waiting));
    }
    stage.kv.lives();
    // Several at once, as workers and functions are.
    let movers = (0..4).map(|_| move_waiting(&*stage.kv, &*stage.log, usize::MAX));
    for moved in futures::future::join_all(movers).await {
        assert_eq!(moved.unwrap().unread, 0);
    }
    assert_eq!(stage.waiting().await, []);
    for shelf in [Shelf::Audit, Shelf::Versions] {
        let commands: Vec<Value> = stage
            .kept(shelf)
            .await
            .iter()
            .map(|entry| entry.touched.after.as_ref().unwrap().whole().unwrap()["command"].clone())
            .collect();
        assert_eq!(commands, (0..40).rev().map(|n| json!(n.to_string())).collect::<Vec<_>>(), "{shelf:?}");
    }
}

#[tokio::test]
async fn a_note_that_cannot_be_read_is_left_and_holds_up_no_other() {
    let stage = Stage::new();
    stage.put("/cron/audit/0", "{\"v\":99}").await;
    stage.put("/cron/audit/zz", "no note").await;
    stage.post("/job/save", job("a", "x")).await;
    let moved = move_waiting(&*stage.kv, &*stage.log, usize::MAX).await.unwrap();
    assert_eq!((moved.notes, moved.unread), (1, 2));
    assert_eq!((stage.waiting().await.len(), stage.kept(Shelf::Audit).await.len()), (2, 1));
    let (status, reply) = stage.send("GET", "/audit/list", &Value::Null).await;
    assert_eq!(status, 200);
    assert!(reply["warnings"][0].as_str().unwrap().contains("not here yet"), "{reply}");
}

#[tokio::test]
async fn where_too_much_waits_changes_are_refused_but_for_those_that_end_something() {
    let stage = Stage::new();
    stage.post("/job/save", job("a", "x")).await;
    let waiting = Waiting::count(&*stage.kv).await.unwrap();
    assert!(waiting.notes == 1 && waiting.bytes > 100 && !waiting.is_too_much(), "{waiting:?}");
    let mut crowded = waiting.clone();
    crowded.notes = WAITING_MAX;
    assert!(crowded.is_too_much());
    waiting.refuse_changes(&*stage.kv, NOW).await.unwrap();
    let before = stage.revision().await;
    for (path, sent) in [
        ("/job/save", job("a", "y")),
        ("/job/delete", json!({"name": "a"})),
        ("/job/run", json!({"name": "a"})),
        ("/job/pause", json!({"name": "a"})),
        ("/job/import?apply=1&format=json", json!({ "text": json!([job("b", "y")]).to_string() })),
        ("/fleet/settings", json!({"timezone": "UTC"})),
    ] {
        let (status, reply) = stage.send("POST", path, &sent).await;
        assert_eq!(status, 503, "{path}: {reply}");
        assert!(reply["msg"].as_str().unwrap().contains("too many changes wait"), "{path}: {reply}");
    }
    assert_eq!(stage.revision().await, before, "nothing was changed");
    stage.post("/job/kill", json!({"name": "a"})).await;
    stage.post("/fleet/pause", json!({})).await;
    move_waiting(&*stage.kv, &*stage.log, usize::MAX).await.unwrap();
    stage.post("/job/save", job("a", "y")).await;
    assert_eq!(stage.kept(Shelf::Audit).await.len(), 3);
    // Whoever counted before others moved does not shut what nobody would open again.
    waiting.refuse_changes(&*stage.kv, NOW).await.unwrap();
    stage.post("/job/save", job("a", "z")).await;
}

#[tokio::test]
async fn an_import_of_hundreds_leaves_a_version_of_each_and_few_notes() {
    let stage = Stage::new();
    for round in 0..2 {
        let jobs: Vec<Value> =
            (0..300).map(|n| job(&format!("j{n:03}"), &format!("{round}{}", "x".repeat(n * 8)))).collect();
        let text = json!({ "text": Value::Array(jobs).to_string() });
        stage.post("/job/import?apply=1&format=json", text).await;
        assert!(stage.waiting().await.len() <= 10, "{}", stage.waiting().await.len());
        move_waiting(&*stage.kv, &*stage.log, usize::MAX).await.unwrap();
        assert_eq!(stage.kept(Shelf::Versions).await.len(), 300 * (round + 1));
    }
    let versions = stage.get("/job/versions?name=j007").await;
    assert_eq!(versions["data"].as_array().unwrap().len(), 2, "{versions}");
    assert_eq!(versions["data"][0]["changes"]["command"]["before"], format!("0{}", "x".repeat(56)));
}

#[tokio::test]
async fn a_rollback_is_a_save_of_what_was() {
    let stage = Stage::new();
    stage.post("/job/save", job("a", "one")).await;
    stage.put("/cron/jobs/a", job("a", "by hand").to_string()).await;
    let mut two = job("a", "two");
    two["cronExpr"] = json!("@hourly");
    stage.post("/job/save", two).await;
    stage.post("/job/delete", json!({"name": "a"})).await;
    let versions = stage.get("/job/versions?name=a").await["data"].clone();
    let told: Vec<_> = versions
        .as_array()
        .unwrap()
        .iter()
        .map(|v| (v["definition"]["command"].clone(), v["beforeUnknown"].clone(), v["by"].clone()))
        .collect();
    let none = Value::Null;
    let expected = [(none.clone(), none.clone()), (json!("two"), json!(true)), (json!("one"), none.clone())];
    assert_eq!(told, expected.map(|(command, unknown)| (command, unknown, json!("ada"))));
    let first = versions[2]["version"].clone();
    let reply = stage.post("/job/rollback", json!({"name": "a", "version": first})).await;
    assert_eq!(
        (&reply["data"], reply["next"].as_array().map(Vec::len)),
        (&none, Some(5)),
        "as a save answers"
    );
    let stored = stage.kv.inner.range(Range::key("/cron/jobs/a")).await.unwrap().pairs.pop().unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&stored.value).unwrap(), job("a", "one"));
    let mark = keys::fired(&JobName::parse("a").unwrap());
    let mark = stage.kv.inner.range(Range::key(mark)).await.unwrap().pairs.pop().unwrap();
    assert_eq!(mark.mod_revision, stored.mod_revision);
    assert!(Mark::decode(&mark.value).unwrap().base > NOW.plus_ms(3000), "its fires count from now on");
    let newest = stage.get("/audit/list?limit=1").await["data"][0].clone();
    assert_eq!((&newest["action"], &newest["details"]), (&json!("rollback"), &json!({"version": first})));
    // What is not taken any more is not taken back either.
    stage.put("/cron/jobs/b", r#"{"name":"b","command":"x","cronExpr":"@daily","later":1}"#).await;
    stage.post("/job/pause", json!({"name": "b"})).await;
    let version = stage.get("/job/versions?name=b").await["data"][0]["version"].clone();
    let (status, reply) =
        stage.send("POST", "/job/rollback", &json!({"name": "b", "version": version})).await;
    assert_eq!(status, 400, "{reply}");
    assert!(reply["msg"].as_str().unwrap().contains("later"), "{reply}");
}

#[tokio::test]
async fn pages_of_the_audit_hold_each_change_once_while_others_come() {
    let stage = Stage::new();
    let save = async |n: i32| stage.post("/job/save", job(&format!("j{}", n % 3), &n.to_string())).await;
    for n in 0..50 {
        save(n).await;
    }
    let (mut seen, mut after, mut more) = (Vec::new(), String::new(), 50);
    loop {
        let page = stage.get(&format!("/audit/list?job=j1&limit=5&after={after}")).await;
        seen.extend(
            page["data"].as_array().unwrap().iter().map(|e| e["changes"]["command"]["after"].clone()),
        );
        for _ in 0..3 {
            save(more).await;
            more += 1;
        }
        match page["next"].as_str() {
            Some(next) => next.clone_into(&mut after),
            None => break,
        }
    }
    let expected: Vec<Value> = (0..50).filter(|n| n % 3 == 1).rev().map(|n| json!(n.to_string())).collect();
    assert_eq!(seen, expected);
}
