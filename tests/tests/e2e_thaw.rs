//! Lambda as it is: a function's process is frozen between invocations, and gateways forget its connections meanwhile.

use std::time::Duration;

use common::clock::{Stopwatch, sleep};
use serde_json::{Value, json};
use tests::fixtures::{Fleet, TestDir, site};
use tests::function::Function;
use tests::line::Line;

/// Longer than a connection to etcd is trusted unused (10 s).
const ETCD_IDLE: Duration = Duration::from_secs(11);
/// Longer than one to MongoDB is (60 s).
const MONGODB_IDLE: Duration = Duration::from_secs(61);

/// What HTTP/2 sends when it leaves a connection (GOAWAY); a request is longer.
const FAREWELL: usize = 17;

fn job(number: usize) -> Value {
    json!({"name": format!("job-{number}"), "command": "true", "cronExpr": "@yearly"})
}

/// A function, and lines between it and both stores.
struct Scene {
    fleet: Fleet,
    etcd: Line,
    mongodb: Line,
}

impl Scene {
    async fn set(test: &str) -> Option<Self> {
        let fleet = Fleet::start(test).await?;
        let etcd = Line::to(fleet.etcd.address()).await;
        let mongodb = Line::to(fleet.mongo.address()).await;
        Some(Self { fleet, etcd, mongodb })
    }

    async fn function(&self, name: &str) -> Function {
        let (etcd, mongodb) =
            (format!("http://{}", self.etcd.address()), format!("mongodb://{}", self.mongodb.address()));
        let environment = [("CRON_ETCD_ENDPOINTS", etcd.as_str()), ("CRON_MONGODB_URI", mongodb.as_str())];
        let function = Function::start(&self.fleet.site, name, &environment).await;
        let connections = (self.etcd.connections(), self.mongodb.connections());
        assert_eq!(connections, (0, 0), "{name} connects before its first event");
        function
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thawed_save_pays_one_reconnect_to_etcd() {
    let Some(scene) = Scene::set("thaw-etcd").await else { return };
    let mut function = scene.function("save").await;
    for number in 0..20 {
        let (status, answer) = function.call("POST", "/job/save", Some(&job(number))).await;
        assert_eq!(status, 200, "{answer}");
    }
    assert_eq!(scene.etcd.connections(), 1, "twenty invocations share a connection");

    for (round, freeze) in [(1, true), (2, false)] {
        if freeze {
            function.process().freeze();
        }
        sleep(ETCD_IDLE).await;
        scene.etcd.fall_silent();
        function.process().thaw();
        let took = Stopwatch::start();
        let (status, answer) = function.call("POST", "/job/save", Some(&job(100 + round))).await;
        println!("frozen: {freeze}: the first save took {:?}", took.elapsed());
        assert_eq!(status, 200, "{answer}");
        assert_eq!(answer["data"], Value::Null, "written once: {answer}");
        assert_eq!(scene.etcd.connections(), 1 + round, "one new connection");
        let lost = scene.etcd.swallowed();
        println!("{lost} bytes were sent over dead connections");
        assert!(lost <= round * FAREWELL, "the dead connection was tried: {lost} bytes");
        let (status, _) = function.call("POST", "/job/save", Some(&job(200 + round))).await;
        assert_eq!((status, scene.etcd.connections()), (200, 1 + round));
    }
    assert_eq!(scene.mongodb.connections(), 0, "saving needs no MongoDB");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thawed_log_pays_one_reconnect_to_mongodb() {
    let Some(scene) = Scene::set("thaw-mongodb").await else { return };
    let mut function = scene.function("log").await;
    for _invocation in 0..20 {
        let (status, answer) = function.call("GET", "/job/log?name=any", None).await;
        assert_eq!(status, 200, "{answer}");
    }
    // The driver watches the server over a connection of its own beside that of the calls.
    let first = scene.mongodb.connections();
    println!("{first} connections for twenty invocations");
    assert!((1..=3).contains(&first), "{first} connections for twenty invocations");

    function.process().freeze();
    sleep(MONGODB_IDLE).await;
    scene.mongodb.fall_silent();
    function.process().thaw();
    let took = Stopwatch::start();
    let (status, answer) = function.call("GET", "/job/log?name=any", None).await;
    println!("the first read of the log took {:?}", took.elapsed());
    assert_eq!(status, 200, "{answer}");
    let (status, _) = function.call("GET", "/job/log?name=any", None).await;
    assert_eq!(status, 200);
    let all = scene.mongodb.connections();
    assert!(all <= 2 * first, "{} new connections where a first call makes {first}", all - first);
    assert_eq!(scene.etcd.connections(), 0, "the log needs no etcd");
}

#[tokio::test(flavor = "multi_thread")]
async fn functions_initialise_while_both_stores_are_away() {
    let dir = TestDir::new("thaw-away");
    let environment =
        [("CRON_ETCD_ENDPOINTS", "http://192.0.2.1:2379"), ("CRON_MONGODB_URI", "mongodb://192.0.2.1")];
    for name in ["save", "delete", "list", "kill", "log", "workers", "console"] {
        let took = Stopwatch::start();
        let function = Function::start(&site(&dir), name, &environment).await;
        println!("{name}: ready for its first event after {:?}", took.elapsed());
        drop(function);
    }
}
