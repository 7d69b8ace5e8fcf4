//! Configuration that refers to secrets: real functions and a real worker, etcd with users, and a stand-in of AWS.

use std::process::Command;

use common::clock::Stopwatch;
use local_dev::native::ports::free_port;
use local_dev::native::servers::Worker;
use serde_json::{Value, json};
use tests::account::{Account, all_running, finish, ran_after};
use tests::aws::{Aws, nowhere};
use tests::fixtures::{Fleet, SOON, TestDir, now_ms, number, program, site, status, wait_for};
use tests::function::Function;

const ETCD: &str = "fleetcron/etcd";
const MONGODB: &str = "/fleetcron/mongodb-uri";

/// etcd with users, secrets that say how to reach both stores, and the environment of a program that is to use them.
struct Scene {
    fleet: Fleet,
    aws: Aws,
}

impl Scene {
    async fn set(test: &str) -> Option<Self> {
        let fleet = Fleet::start(test).await?;
        let aws = Aws::start(&fleet.site, test).await?;
        let mut admin = fleet.kv().await;
        admin.user_add("root", "first", None).await.unwrap();
        admin.user_grant_role("root", "root").await.unwrap();
        admin.auth_enable().await.unwrap();
        aws.create_secret(ETCD, &credentials("first")).await;
        aws.create_parameter(MONGODB, &fleet.mongo.url()).await;
        Some(Self { fleet, aws })
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        let mut environment = self.aws.environment();
        environment.extend([
            ("CRON_ETCD_ENDPOINTS", self.fleet.etcd.url()),
            ("CRON_ETCD_USERNAME", format!("secretsmanager:{ETCD}#username")),
            ("CRON_ETCD_PASSWORD", format!("secretsmanager:{ETCD}#password")),
            ("CRON_MONGODB_URI", format!("ssm:{MONGODB}")),
        ]);
        environment
    }

    async fn function(&self, name: &str) -> Function {
        Function::start(&self.fleet.site, name, &borrowed(&self.environment())).await
    }

    /// How often the secrets were read since the last time.
    fn reads_since(&self, before: &mut usize) -> Vec<String> {
        let reads = self.aws.reads()[*before..].to_vec();
        *before += reads.len();
        reads
    }

    async fn change_password(&self, from: &str, to: &str) {
        let options = etcd_client::ConnectOptions::new().with_user("root", from);
        let mut admin = etcd_client::Client::connect([self.fleet.etcd.url()], Some(options)).await.unwrap();
        // The order of AWS's rotation: the store first, then the secret's current version.
        admin.user_change_password("root", to).await.unwrap();
        self.aws.rotate_secret(ETCD, &credentials(to)).await;
    }
}

fn credentials(password: &str) -> String {
    json!({"username": "root", "password": password}).to_string()
}

fn borrowed<'a>(environment: &'a [(&'static str, String)]) -> Vec<(&'static str, &'a str)> {
    environment.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

/// A request to each function.
const REQUESTS: [(&str, &str, &str); 6] = [
    ("save", "POST", "/job/save"),
    ("list", "GET", "/job/list"),
    ("kill", "POST", "/job/kill"),
    ("log", "GET", "/job/log?name=tick"),
    ("workers", "GET", "/worker/list"),
    ("delete", "POST", "/job/delete"),
];

fn body(function: &str) -> Option<Value> {
    match function {
        "save" => Some(json!({"name": "tick", "command": "echo tick", "cronExpr": "* * * * * * *"})),
        // No job of that name: it stays, whoever asks how often.
        "kill" | "delete" => Some(json!({"name": "no-such-job"})),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn functions_and_worker_live_on_secrets_and_through_a_rotation() {
    let Some(scene) = Scene::set("secrets-rotation").await else { return };
    let mut reads = 0;

    let (program, stores) = (program("worker").await, scene.fleet.stores());
    let environment = scene.environment();
    let mut worker =
        Worker::start(&scene.fleet.site, &program, &stores, "w1", &borrowed(&environment)).await.unwrap();
    let mut read = scene.reads_since(&mut reads);
    read.sort(); // it asks for both at once
    assert_eq!(read, [MONGODB, ETCD], "a worker reads each secret once, at its start");

    let mut functions = Vec::new();
    for (name, method, target) in REQUESTS {
        let function = scene.function(name).await;
        assert_eq!(scene.reads_since(&mut reads).len(), 0, "{name}: initialisation reads nothing");
        for _invocation in 0..3 {
            let (status, answer) = function.call(method, target, body(name).as_ref()).await;
            assert_eq!(status, 200, "{name}: {answer}\n{}", function.log());
        }
        let expected = if name == "log" { MONGODB } else { ETCD };
        assert_eq!(
            scene.reads_since(&mut reads),
            [expected],
            "{name}: three invocations read its secret once"
        );
        functions.push((name, method, target, function));
    }
    scene.fleet.record("tick", |record| status(record) == "succeeded").await;

    let rotated = now_ms();
    scene.change_password("first", "second").await;
    for (name, method, target, function) in &functions {
        let (status, answer) = function.call(method, target, body(name).as_ref()).await;
        assert_eq!(status, 200, "{name}: {answer}\n{}", function.log());
    }
    let after = |record: &_| status(record) == "succeeded" && number(record, "planTime") > rotated + 2000;
    scene.fleet.record("tick", after).await;
    assert_eq!(worker.process().ended(), None, "the worker lives on");
    let expected = functions.len() - 1 + 1;
    let again = scene.reads_since(&mut reads);
    // The worker may have asked between the store's change and the secret's, and then once more.
    assert!(
        [expected, expected + 1].contains(&again.len()),
        "the functions of etcd and the worker: {again:?}"
    );
    assert!(again.iter().all(|name| name == ETCD), "{again:?}");

    // No token of the old password is left, and no connection: everything starts from what was read.
    let mut scene = scene;
    scene.fleet.etcd.restart().await.unwrap();
    let restarted = now_ms();
    for (name, method, target, function) in &functions {
        let (status, answer) = function.call(method, target, body(name).as_ref()).await;
        assert_eq!(status, 200, "{name}: {answer}\n{}", function.log());
    }
    let after = |record: &_| status(record) == "succeeded" && number(record, "planTime") > restarted + 2000;
    scene.fleet.record("tick", after).await;
    assert_eq!(scene.reads_since(&mut reads).len(), 0, "nothing is read again without need");

    for (name, _, _, function) in &functions {
        let log = function.log();
        for secret in ["first", "second"] {
            assert!(!log.contains(&format!("\"{secret}\"")), "{name}'s log shows a password:\n{log}");
        }
    }
    worker.drain();
    worker.process().wait(SOON).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_changes_after_its_secret_costs_no_fire() {
    let Some(mut scene) = Scene::set("secrets-in-order").await else { return };
    scene.fleet.credentials = Some(("root", "first"));
    let (program, stores) = (program("worker").await, scene.fleet.stores());
    let environment = scene.environment();
    let mut workers = Vec::new();
    for id in ["w1", "w2"] {
        let started = Worker::start(&scene.fleet.site, &program, &stores, id, &borrowed(&environment)).await;
        workers.push(started.unwrap());
    }
    let function = scene.function("list").await;
    let jobs = scene.fleet.put_counting_jobs(3).await;
    let from = all_running(&jobs).await;
    assert_eq!(function.call("GET", "/job/list", None).await.0, 200);
    let mut reads = scene.aws.reads().len();

    // The order of the runbook. Whoever is refused finds the new one at once.
    let mut admin = scene.fleet.kv().await;
    scene.aws.rotate_secret(ETCD, &credentials("second")).await;
    admin.user_change_password("root", "second").await.unwrap();
    scene.fleet.credentials = Some(("root", "second"));
    let changed = now_ms() / 1000;
    assert_eq!(function.call("GET", "/job/list", None).await.0, 200, "{}", function.log());
    ran_after(&jobs, changed + 3).await;
    assert_eq!(scene.reads_since(&mut reads), [ETCD; 3], "the function and two workers, once each");
    let last = finish(&scene.fleet, &jobs).await;
    let records = scene.fleet.all_records().await;
    for job in &jobs {
        Account::of(job, &records).assert_ran_in_each(from..=last, job);
    }
    for worker in &mut workers {
        assert_eq!(worker.process().ended(), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_says_what_is_missing_and_works_once_it_is_there() {
    let Some(scene) = Scene::set("secrets-denied").await else { return };
    scene.aws.permit(ETCD, false);
    let function = scene.function("list").await;
    let started = Stopwatch::start();
    let (status, answer) = function.call("GET", "/job/list", None).await;
    println!("refused after {:?}", started.elapsed());
    assert_eq!(status, 503, "{answer}");
    let said = answer["msg"].as_str().unwrap();
    assert!(said.contains("configuration") && said.contains("the function's log says why"), "{said}");
    assert!(
        !said.contains("fleetcron/etcd") && !said.contains("assumed-role"),
        "not the caller's business: {said}"
    );
    let log = function.log();
    for part in [
        "ERROR",
        "CRON_ETCD_PASSWORD, CRON_ETCD_USERNAME=secretsmanager:fleetcron/etcd",
        "allow secretsmanager:GetSecretValue on fleetcron/etcd",
        "assumed-role/fleetcron-test",
    ] {
        assert!(log.contains(part), "{part} is not in the log:\n{log}");
    }
    scene.aws.permit(ETCD, true);
    wait_for("the function to work", SOON, async || {
        (function.call("GET", "/job/list", None).await.0 == 200).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_cannot_read_its_configuration_ends_and_says_why() {
    let Some(scene) = Scene::set("secrets-worker").await else { return };
    scene.aws.create_binary_secret("binary").await;
    scene.aws.create_secret("text", "no address").await;
    scene.aws.permit(MONGODB, false);
    let closed = format!("http://127.0.0.1:{}", free_port().unwrap());
    let dir = TestDir::new("secrets-worker-starts");
    type Change<'a> = (&'static str, &'a str);
    let cases: [(&str, Vec<Change<'_>>, &[&str]); 9] = [
        (
            "the role may not read the parameter",
            vec![],
            &[
                "CRON_MONGODB_URI=ssm:/fleetcron/mongodb-uri",
                "allow ssm:GetParameter on /fleetcron/mongodb-uri",
            ],
        ),
        (
            "no such secret",
            vec![("CRON_MONGODB_URI", "secretsmanager:gone")],
            &["CRON_MONGODB_URI=secretsmanager:gone", "none of that name in eu-west-1"],
        ),
        ("no such parameter", vec![("CRON_MONGODB_URI", "ssm:/gone")], &["none of that name in eu-west-1"]),
        (
            "no such key",
            vec![("CRON_MONGODB_URI", "secretsmanager:fleetcron/etcd#uri")],
            &["no key of that name; its keys: username, password"],
        ),
        ("a binary secret", vec![("CRON_MONGODB_URI", "secretsmanager:binary")], &["is binary"]),
        (
            "a secret that is no address",
            vec![("CRON_MONGODB_URI", "secretsmanager:text")],
            &["what is kept there is not like mongodb://"],
        ),
        (
            "no route",
            vec![("AWS_ENDPOINT_URL", &closed), ("AWS_ENDPOINT_URL_SSM", &closed)],
            &["no route to 127.0.0.1:", "AWS_ENDPOINT_URL"],
        ),
        ("no region", vec![("AWS_REGION", "")], &["no AWS region is known: set AWS_REGION"]),
        (
            "no credentials",
            vec![("AWS_ACCESS_KEY_ID", ""), ("AWS_SECRET_ACCESS_KEY", "")],
            &["no AWS credentials: give this program a role"],
        ),
    ];
    for (number, (what, changes, parts)) in cases.iter().enumerate() {
        let mut command = Command::new(program("worker").await);
        command
            .envs(borrowed(&scene.environment()))
            .env("CRON_WORKER_LISTEN", "127.0.0.1:0")
            .env("CRON_DATA_DIR", dir.path().join(number.to_string()))
            .envs(changes.iter().copied());
        let took = Stopwatch::start();
        let mut worker = site(&dir).start(what, command).unwrap();
        let ended = worker.wait(SOON).await.unwrap();
        println!("{what}: ended after {:?}", took.elapsed());
        assert_eq!(ended.code(), Some(1), "{what}");
        let said = std::fs::read_to_string(worker.log()).unwrap();
        for part in *parts {
            assert!(said.contains(part), "{what}: {part:?} is not in\n{said}");
        }
        assert!(!said.contains("no address"), "{what}: shows a secret's value:\n{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_without_a_route_answers_in_time_and_names_the_endpoint() {
    let dir = TestDir::new("secrets-no-route");
    let mut environment = nowhere();
    // Nobody answers there: RFC 5737 keeps the network for examples.
    environment.extend([
        ("AWS_ENDPOINT_URL_SECRETS_MANAGER", "http://192.0.2.1:443".to_owned()),
        ("AWS_REGION", "eu-west-1".to_owned()),
        ("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "none".to_owned()),
        ("CRON_ETCD_ENDPOINTS", "secretsmanager:etcd".to_owned()),
    ]);
    let function = Function::start(&site(&dir), "list", &borrowed(&environment)).await;
    let took = Stopwatch::start();
    let (status, answer) = function.call("GET", "/job/list", None).await;
    println!("no route: answered after {:?}", took.elapsed());
    assert_eq!(status, 503, "{answer}");
    assert!(answer["msg"].as_str().unwrap().contains("the function's log says why"), "{answer}");
    let log = function.log();
    assert!(log.contains("no route to 192.0.2.1:443"), "{log}");
}
