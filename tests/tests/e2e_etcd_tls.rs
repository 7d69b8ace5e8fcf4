//! etcd as an operator protects it: TLS, client certificates, users with the roles of infra/etcd-roles.sh. That programs do all their work
//! so and nothing else, what each says that is kept out, and that it comes back by itself.
//!
//! Without etcd (and for one test a MongoDB-protocol server) each test says SKIPPED; `cargo run -p tests` provisions them.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::clock::SystemClock;
use common::config::{self, EtcdSettings, Invocation, Pem, Settings};
use common::kv::etcd::EtcdKv;
use common::kv::{self, Kv, Op, Range, Txn};
use common::run_log::RunLog;
use common::run_log::embedded::EmbeddedRunLog;
use common::run_log::mongo::MongoRunLog;
use common::stores;
use etcd_client::{Client, GetOptions, Permission};
use functions::access::Gate;
use functions::{Ports, ROUTES};
use lambda_http::{Body, RequestExt as _};
use local_dev::native::ports::free_port;
use local_dev::native::process::{Process, get};
use local_dev::native::provision;
use local_dev::native::servers::{Server, Stores, Worker};
use local_dev::native::workspace;
use serde_json::{Value, json};
use tests::account::{Account, ran_after};
use tests::fixtures::{
    SOON, Store, TestDir, all_records, etcd_programs, has_etcd, has_mongo, now_ms, program,
    put_counting_jobs, site, skip, wait_for,
};
use tests::line::Line;
use tests::secure_etcd::{Authority, SecureEtcd};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const BOOTSTRAP: &str = "6f1d0c9be27a4583a1f0e4b6d2c8975e";
const CALL_LIMIT: Duration = Duration::from_secs(3);
const ROOT: (&str, &str) = ("root", "of-root");
const WORKER: (&str, &str) = ("fleetcron-worker", "of-the-worker");
const API: (&str, &str) = ("fleetcron-api", "of-the-api");
/// It has no password: it comes with a certificate of its name.
const READER: &str = "fleetcron-reader";

fn settings(environment: &[(&str, String)]) -> Settings {
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
    match config::parse("test", environment, std::iter::empty()).unwrap() {
        Invocation::Run(settings) => *settings,
        _ => panic!("no settings"),
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// The API in this process, behind its gate.
struct Api {
    ports: Ports,
    gate: Gate,
}

impl Api {
    fn new(environment: &[(&str, String)], run_log: Arc<dyn RunLog>) -> Self {
        let settings = settings(environment);
        let kv = stores::kv(&settings, CALL_LIMIT).unwrap();
        let gate = Gate::guarded(Arc::clone(&kv), Arc::new(SystemClock), &settings);
        Self { ports: Ports { kv, run_log, clock: Arc::new(SystemClock) }, gate }
    }

    async fn ask(&self, token: &str, method: &str, path: &str, sent: &Value) -> (u16, Value) {
        let request = lambda_http::http::Request::builder().method(method).uri(path);
        let request = request.header("authorization", format!("Bearer {token}"));
        let request = request.header("content-type", "application/json");
        let body = if sent.is_null() { Body::Empty } else { Body::Text(sent.to_string()) };
        let request = request.body(body).unwrap();
        let raw = request.uri().path().to_owned();
        let response =
            functions::handle_through(&self.gate, &self.ports, request.with_raw_http_path(raw)).await;
        let text = match response.body() {
            Body::Text(text) => text.as_str(),
            _ => "",
        };
        (response.status().as_u16(), serde_json::from_str(text).unwrap_or_default())
    }
}

/// Asks for routes, and remembers which.
struct Walk {
    writer: Api,
    reader: Api,
    token: String,
    asked: BTreeSet<(String, String)>,
}

impl Walk {
    async fn write(&mut self, method: &str, path: &str, sent: Value) -> Value {
        let answered = self.writer.ask(&self.token, method, path, &sent).await;
        self.good(method, path, answered)
    }

    async fn read(&mut self, path: &str) -> Value {
        let answered = self.reader.ask(&self.token, "GET", path, &Value::Null).await;
        self.good("GET", path, answered)
    }

    fn good(&mut self, method: &str, path: &str, (status, answer): (u16, Value)) -> Value {
        assert_eq!(status, 200, "{method} {path}: {answer}");
        // Else not everything could be moved to the store of records.
        assert!(!answer.to_string().contains("not here yet"), "{method} {path}: {answer}");
        let path = path.split('?').next().unwrap_or_default();
        let path = if path.starts_with("/console/") { "/console/{file}" } else { path };
        self.asked.insert((method.to_owned(), path.to_owned()));
        answer["data"].clone()
    }
}

/// Runs infra/etcd-roles.sh as root, or as nobody while etcd asks for no user.
fn make_roles(etcd: &SecureEtcd, programs: &Path, root: bool, passwords: &[(&str, &str)]) -> String {
    let mut script = Command::new(workspace().join("infra/etcd-roles.sh"));
    script
        .env("PATH", provision::path_with(&[programs]).unwrap())
        .env("ETCDCTL_ENDPOINTS", etcd.url())
        .env("ETCDCTL_CACERT", &etcd.ca)
        .env("ETCDCTL_CERT", &etcd.client.certificate)
        .env("ETCDCTL_KEY", &etcd.client.key)
        .envs(passwords.iter().copied());
    if root {
        script.env("ETCDCTL_USER", ROOT.0).env("ETCDCTL_PASSWORD", ROOT.1);
    }
    let done = script.output().unwrap();
    assert!(done.status.success(), "{done:?}");
    String::from_utf8(done.stdout).unwrap()
}

async fn keys(root: &mut Client, prefix: &str) -> Vec<String> {
    let options = GetOptions::new().with_prefix().with_keys_only();
    let reply = root.get(prefix, Some(options)).await.unwrap();
    reply.kvs().iter().map(|pair| pair.key_str().unwrap().to_owned()).collect()
}

/// Whether etcd says that this user may not do that.
fn is_denied<T: std::fmt::Debug>(answer: Result<T, etcd_client::Error>) -> bool {
    match answer {
        Err(etcd_client::Error::GRpcStatus(status)) => {
            // The second: a certificate's name that is no user's.
            ["permission denied", "user name not found"].iter().any(|words| status.message().contains(words))
        }
        Err(other) => panic!("{other:?}"),
        Ok(_) => false,
    }
}

/// Every key of keys.rs, as the script's table and the text of that module have it.
#[test]
fn the_script_gives_rights_on_every_key_and_on_no_other() {
    let read = |path: &str| std::fs::read_to_string(workspace().join(path)).unwrap();
    let (source, script) = (read("common/src/keys.rs"), read("infra/etcd-roles.sh"));
    let constants = source.lines().filter_map(|line| line.strip_prefix("pub const ")?.split('"').nth(1));
    let there: BTreeSet<&str> = constants.collect();
    let rows = script.lines().filter(|line| line.starts_with("/cron/"));
    let given: BTreeSet<&str> = rows.filter_map(|row| row.split_whitespace().next()).collect();
    assert!(there.len() > 20, "{there:?}");
    assert_eq!(given, there, "infra/etcd-roles.sh and common/src/keys.rs");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_roles_of_their_own_all_programs_do_their_work_and_nothing_else() {
    if !has_etcd("etcd-roles") || !has_mongo("etcd-roles") {
        return;
    }
    let dir = TestDir::new("etcd-roles");
    let Some(programs) = etcd_programs(dir.path()) else {
        skip("etcd-roles", "etcdctl beside the installed etcd");
        return;
    };
    let site = site(&dir);
    let authority = Authority::new(dir.path(), "own");
    // Tokens that end every three seconds, and name the revision of users and roles that they were made at.
    let etcd = SecureEtcd::start(&site, &authority, &[&authority.jwt_flag(3)]).await;
    let mongo = Server::mongo(&site, None).await.unwrap();

    // What an older version might have left: too much here, too little there.
    let mut root = etcd.client(None).await.unwrap();
    root.role_add(WORKER.0).await.unwrap();
    let all = Permission::read_write("/cron/").with_range_end("/cron0");
    root.role_grant_permission(WORKER.0, all).await.unwrap();
    root.role_grant_permission(WORKER.0, Permission::write("/cron/base")).await.unwrap();
    root.role_add(READER).await.unwrap();
    root.role_grant_permission(READER, Permission::read("/other").with_from_key()).await.unwrap();
    let passwords = [("FLEETCRON_WORKER_PASSWORD", WORKER.1), ("FLEETCRON_API_PASSWORD", API.1)];
    let said = make_roles(&etcd, &programs, false, &passwords);
    for part in [
        "fleetcron-worker: no longer readwrite /cron/\n",
        "fleetcron-worker: may readwrite /cron/base\n",
        "fleetcron-reader: no longer read /other\n",
        "fleetcron-reader: user made, for client certificates\n",
        "fleetcron-api: user made, with a password\n",
    ] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }

    // Programs have their users while etcd still asks for none.
    let environment = |url: String, user: Option<(&str, &str)>, common_name: &str| {
        let shows = authority.sign(common_name, common_name, &[]);
        let mut environment = vec![
            ("CRON_ETCD_ENDPOINTS", url),
            ("CRON_ETCD_CA", shown(&etcd.ca)),
            ("CRON_ETCD_CERT", shown(&shows.certificate)),
            ("CRON_ETCD_KEY", shown(&shows.key)),
        ];
        if let Some((name, password)) = user {
            environment.extend([
                ("CRON_ETCD_USERNAME", name.to_owned()),
                ("CRON_ETCD_PASSWORD", password.to_owned()),
            ]);
        }
        environment
    };
    let line = Line::to(etcd.address()).await;
    let mut of_worker = environment(format!("https://{}", line.address()), Some(WORKER), "nobody");
    of_worker.push(("CRON_SESSION_TTL_SECONDS", "4".to_owned()));
    let borrowed: Vec<(&str, &str)> = of_worker.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let stores = Stores { etcd: etcd.url(), mongodb: mongo.url() };
    let mut worker = Worker::start(&site, &program("worker").await, &stores, "w1", &borrowed).await.unwrap();
    let log = |worker: &mut Worker| std::fs::read_to_string(worker.process().log()).unwrap();
    assert!(log(&mut worker).contains("etcd asks nobody for a name"), "{}", log(&mut worker));
    let jobs = put_counting_jobs(&mut root, dir.path(), 1, &json!({})).await;
    ran_after(&jobs, 0).await;

    // Now it asks, while all of it goes on.
    root.user_add(ROOT.0, ROOT.1, None).await.unwrap();
    root.user_grant_role(ROOT.0, ROOT.0).await.unwrap();
    root.role_add(ROOT.0).await.unwrap();
    root.auth_enable().await.unwrap();
    let mut root = etcd.client(Some(ROOT)).await.unwrap();
    ran_after(&jobs, now_ms() / 1000 + 1).await;
    assert_eq!(make_roles(&etcd, &programs, true, &[]), "", "nothing is left to do");

    // Every route, as the functions are meant to have users.
    let run_log: Arc<dyn RunLog> = Arc::new(MongoRunLog::new(&mongo.url(), Duration::from_secs(20)).unwrap());
    let mut of_api = environment(etcd.url(), Some(API), "nobody");
    of_api.push(("CRON_BOOTSTRAP_TOKEN", BOOTSTRAP.to_owned()));
    let mut walk = Walk {
        writer: Api::new(&of_api, Arc::clone(&run_log)),
        reader: Api::new(&environment(etcd.url(), None, READER), run_log),
        token: BOOTSTRAP.to_owned(),
        asked: BTreeSet::new(),
    };
    let made = walk.write("POST", "/token/create", json!({"name": "ada", "role": "admin"})).await;
    walk.token = made["token"].as_str().unwrap().to_owned();
    let long = |command: &str| json!({"name": "long", "command": command, "cronExpr": "@yearly"});
    walk.write("POST", "/job/save", long("echo said; sleep 61")).await;
    walk.write("POST", "/job/save", long("echo said; sleep 62")).await;
    let imported = json!([{"name": "other", "command": "true", "cronExpr": "@yearly"}]);
    walk.write("POST", "/job/import?format=json&apply=1", json!({"text": imported.to_string()})).await;
    walk.write("POST", "/job/pause", json!({"name": "other"})).await;
    walk.write("POST", "/job/resume", json!({"name": "other"})).await;
    walk.write("POST", "/calendar/save", json!({"name": "holidays", "dates": ["2027-01-01"]})).await;
    walk.write("POST", "/fleet/settings", json!({"timezone": "Asia/Tokyo"})).await;
    walk.write("GET", "/fleet/settings", Value::Null).await;
    walk.write("POST", "/fleet/pause", json!({"reason": "this test"})).await;
    walk.write("POST", "/fleet/resume", json!({})).await;
    walk.write("POST", "/job/run", json!({"name": "long"})).await;
    let run = wait_for("the run", SOON, async || {
        let running = walk.read("/job/running").await;
        let of_job = running.as_array()?.iter().find(|run| run["job"] == "long")?.clone();
        keys(&mut root.clone(), "/cron/lock/long").await.pop().map(|_held| of_job["runId"].clone())
    })
    .await;
    let run = run.as_str().unwrap().to_owned();
    walk.read(&format!("/run/get?id={run}")).await;
    walk.read(&format!("/run/output?id={run}")).await;
    walk.write("POST", "/job/kill", json!({"name": "long"})).await;
    wait_for("the killed run's record", SOON, async || {
        let records = walk.read("/job/log?name=long").await;
        records.as_array()?.iter().any(|record| record["status"] == "killed").then_some(())
    })
    .await;
    for path in [
        "/job/list",
        "/job/export",
        "/job/next?expr=@daily",
        "/worker/list?detail=1",
        "/fleet/status",
        "/fleet/settings",
        "/calendar/list",
        "/token/list",
        "/token/self",
        "/",
        "/console/app.js",
    ] {
        walk.read(path).await;
    }
    // The worker has moved what was changed to the records' store.
    wait_for("nothing to wait", SOON, async || {
        keys(&mut root.clone(), "/cron/audit/").await.is_empty().then_some(())
    })
    .await;
    let versions = walk.write("GET", "/job/versions?name=long", Value::Null).await;
    assert_eq!(versions[1]["definition"]["command"], "echo said; sleep 61", "{versions}");
    let version = versions[1]["version"].clone();
    walk.write("POST", "/job/rollback", json!({"name": "long", "version": version})).await;
    let audit = walk.write("GET", "/audit/list?job=long", Value::Null).await;
    assert_eq!(audit[0]["action"], "rollback", "a function moves what waits as well: {audit}");
    walk.write("POST", "/calendar/delete", json!({"name": "holidays"})).await;
    walk.write("POST", "/job/delete", json!({"name": "other"})).await;
    let other = walk.write("POST", "/token/create", json!({"name": "ci", "role": "viewer"})).await;
    walk.write("POST", "/token/revoke", json!({"id": other["id"]})).await;
    let all: BTreeSet<(String, String)> = ROUTES
        .iter()
        .flat_map(|route| route.methods.iter().map(|method| ((*method).to_owned(), route.path.to_owned())))
        .filter(|(method, _)| method != "HEAD")
        .collect();
    assert_eq!(walk.asked, all, "each route is asked for once at least");
    // A reader's function that is asked for a change.
    let (refused, answer) = walk.reader.ask(&walk.token, "POST", "/job/save", &long("true")).await;
    assert_eq!(refused, 503, "{answer}");
    assert!(answer["msg"].as_str().unwrap().contains("the roles of that user"), "{answer}");

    refused_elsewhere(&etcd, &authority, &mut root).await;

    // A right that is missing and one too many, and the line falls silent: the script and the worker mend it.
    let settings_key = Permission::read_write("/cron/settings");
    root.role_grant_permission(WORKER.0, settings_key).await.unwrap();
    root.role_revoke_permission(WORKER.0, "/cron/fired/", Some(range_end("/cron/fired0"))).await.unwrap();
    // etcd's refusal does not say which of the keys of a claim it is about; the worker finds out.
    let listen = worker.listen();
    let figure = async |name: &str, expected: &str| {
        let (_, metrics) = get(listen, "/metrics").await?;
        metrics.lines().any(|line| line == format!("{name} {expected}")).then_some(())
    };
    wait_for("/readyz to say what is missing", SOON, async || {
        let missing =
            "the store does not let this worker read and write /cron/fired/: see infra/etcd-roles.sh\n";
        get(listen, "/readyz").await.filter(|(status, why)| *status == 503 && why == missing)
    })
    .await;
    figure("fleetcron_store_rights_missing", "1").await.expect("one range of keys");
    let told = log(&mut worker);
    let line_of = told.lines().find(|line| line.contains("the store refuses rights")).expect("it is said");
    let parts =
        ["ERROR", "it claims nothing", "missing=read and write /cron/fired/", "its user fleetcron-worker"];
    for part in parts.into_iter().chain(["see infra/etcd-roles.sh"]) {
        assert!(line_of.contains(part), "{part:?} is not in {line_of}");
    }
    assert_eq!(told.matches("the store refuses rights").count(), 1, "{told}");
    let said = make_roles(&etcd, &programs, true, &[]);
    let mut said: Vec<&str> = said.lines().collect();
    said.sort_unstable();
    assert_eq!(
        said,
        ["fleetcron-worker: may read /cron/settings", "fleetcron-worker: may readwrite /cron/fired/"]
    );
    ran_after(&jobs, now_ms() / 1000 + 1).await;
    wait_for("/readyz to say that all is well", SOON, async || {
        get(listen, "/readyz").await.filter(|(status, _)| *status == 200)
    })
    .await;
    figure("fleetcron_store_rights_missing", "0").await.expect("none is missing");
    assert!(log(&mut worker).contains("the store lets this worker do all it must again"));
    line.fall_silent();
    ran_after(&jobs, now_ms() / 1000 + 2).await;
    assert_eq!(worker.process().ended(), None);

    let last = now_ms() / 1000 - 1;
    walk.write("POST", "/job/delete", json!({"name": jobs[0].name})).await;
    wait_for("no open runs", SOON, async || {
        keys(&mut root.clone(), "/cron/runs/").await.is_empty().then_some(())
    })
    .await;
    let records = all_records(&mongo.url()).await;
    let account = Account::of(&jobs[0], &records);
    assert!(account.ran.values().any(|status| status == "succeeded"));
    let first = jobs[0].seconds()[0];
    account.assert_accounted(first..=last, &jobs[0]);
}

fn range_end(end: &str) -> etcd_client::RoleRevokePermissionOptions {
    etcd_client::RoleRevokePermissionOptions::new().with_range_end(end)
}

/// A key of each range, and what the worker, the API and a reader may do with it: `r` = read, `w` = read and write, `-` = nothing.
const RIGHTS: [(&str, &str); 22] = [
    ("/cron/jobs/x", "rwr"),
    ("/cron/calendars/x", "rwr"),
    ("/cron/settings", "rwr"),
    ("/cron/paused", "rwr"),
    ("/cron/base", "wwr"),
    ("/cron/killer/x", "ww-"),
    ("/cron/requests/x", "wwr"),
    ("/cron/runs/x", "wrr"),
    ("/cron/workers/x", "wrr"),
    ("/cron/lock/x", "wr-"),
    ("/cron/shared/x", "wr-"),
    ("/cron/fired/x", "ww-"),
    ("/cron/notify/x", "ww-"),
    ("/cron/after/x", "ww-"),
    ("/cron/sessions/x", "w--"),
    ("/cron/audit/x", "ww-"),
    ("/cron/audit-full", "ww-"),
    ("/cron/refused", "-w-"),
    ("/cron/idempotency/x", "-w-"),
    ("/cron/tokens/x", "-wr"),
    ("/cron/tokens_used/x", "-ww"),
    ("/cron/tokens_changed", "-wr"),
];

/// What each user may not do.
async fn refused_elsewhere(etcd: &SecureEtcd, authority: &Authority, root: &mut Client) {
    let shown = authority.sign(READER, READER, &[]);
    let users = [
        etcd.client(Some(WORKER)).await.unwrap(),
        etcd.client(Some(API)).await.unwrap(),
        etcd.client_with(&etcd.ca, &shown, None).await.unwrap(),
        // Whoever has a certificate of the CA and no user of that name.
        etcd.client(None).await.unwrap(),
    ];
    for (number, mut user) in users.into_iter().enumerate() {
        for (key, rights) in RIGHTS {
            let right = rights.chars().nth(number).unwrap_or('-');
            if right != 'w' {
                assert!(is_denied(user.put(key, "x", None).await), "user {number} may write {key}");
                assert!(is_denied(user.delete(key, None).await), "user {number} may delete {key}");
            }
            let answer = user.get(key, None).await;
            if right == '-' {
                assert!(is_denied(answer), "user {number} may read {key}");
            } else {
                answer.unwrap_or_else(|why| panic!("user {number} may not read {key}: {why}"));
            }
        }
        let below = GetOptions::new().with_prefix();
        assert!(is_denied(user.get("/cron/", Some(below)).await), "user {number} may read everything");
        assert!(is_denied(user.get("/other", None).await), "user {number} may read what is not ours");
        assert!(is_denied(user.role_add("x").await), "user {number} may make roles");
        assert!(
            is_denied(user.user_change_password(ROOT.0, "x").await),
            "user {number} may take root's place"
        );
        assert!(is_denied(user.defragment().await), "user {number} may stop etcd for a while");
        // A session's lease is safe from whoever may not write all that hangs on it.
        let sessions = keys(root, "/cron/sessions/").await;
        let sid = i64::from_str_radix(sessions[0].strip_prefix("/cron/sessions/").unwrap(), 16).unwrap();
        if number > 0 {
            assert!(is_denied(user.lease_revoke(sid).await), "user {number} may end sessions");
            let renewed = async {
                let (mut keeper, mut answers) = user.lease_keep_alive(sid).await?;
                keeper.keep_alive().await?;
                answers.message().await
            };
            assert!(is_denied(renewed.await), "user {number} may renew sessions");
        }
    }
    assert!(!keys(root, "/cron/sessions/").await.is_empty(), "the worker's session lives");
    // Of what upkeep.rs asks for, one thing needs a user of any role, the other is root's: with roles etcd must compact by itself.
    let mut worker = etcd.client(Some(WORKER)).await.unwrap();
    let revision = worker.status().await.unwrap().header().unwrap().revision();
    assert!(is_denied(worker.compact(revision - 10, None).await), "a worker may compact: say so in its docs");
}

/// Something that keeps a program out.
struct Fault {
    name: &'static str,
    /// What is different in its environment; empty = unset.
    environment: Vec<(&'static str, String)>,
    /// The worker's log says this.
    worker: &'static str,
    /// The API's message says this.
    api: &'static str,
    /// It goes on by itself once that is mended outside of it.
    comes_back: bool,
}

#[tokio::test(flavor = "multi_thread")]
async fn each_fault_of_tls_and_login_is_said_with_what_to_do_and_mended_without_a_restart() {
    if !has_etcd("etcd-faults") {
        return;
    }
    let Some(plain) = Store::etcd("etcd-faults-plain", &[]).await else { return };
    let dir = TestDir::new("etcd-faults");
    let site = site(&dir);
    let (authority, stranger) = (Authority::new(dir.path(), "own"), Authority::new(dir.path(), "strange"));
    let etcd = SecureEtcd::start(&site, &authority, &["--auth-token-ttl=3"]).await;
    let mut root = etcd.client(None).await.unwrap();
    root.user_add(ROOT.0, ROOT.1, None).await.unwrap();
    root.user_grant_role(ROOT.0, ROOT.0).await.unwrap();
    root.user_add("late", "before", None).await.unwrap();
    root.user_grant_role("late", ROOT.0).await.unwrap();
    root.role_add(ROOT.0).await.unwrap();
    root.auth_enable().await.unwrap();
    let mut root = etcd.client(Some(ROOT)).await.unwrap();

    const INSECURE: &str = "do not agree on a connection, nothing was changed: see CRON_ETCD_ENDPOINTS";
    const REFUSED: &str = "refuses this function's credentials";
    let trusted = dir.path().join("trusted.pem");
    std::fs::copy(&stranger.ca, &trusted).unwrap();
    let expired = authority.sign_until("expired", "nobody", &[], 2020);
    let strange = stranger.sign("strange", "nobody", &[]);
    let port = etcd.address().port();
    let shows = |signed: &tests::secure_etcd::Signed| {
        vec![("CRON_ETCD_CERT", shown(&signed.certificate)), ("CRON_ETCD_KEY", shown(&signed.key))]
    };
    let endpoint = |url: String| vec![("CRON_ETCD_ENDPOINTS", url)];
    let fault =
        |name, environment, worker, api, comes_back| Fault { name, environment, worker, api, comes_back };
    let faults = [
        fault(
            "ca",
            vec![("CRON_ETCD_CA", shown(&trusted))],
            "signed by none of the CAs in CRON_ETCD_CA",
            INSECURE,
            true,
        ),
        fault(
            "no-ca",
            vec![("CRON_ETCD_CA", String::new())],
            "signed by no CA that this machine trusts: set CRON_ETCD_CA",
            INSECURE,
            false,
        ),
        fault(
            "name",
            endpoint(format!("https://localhost:{port}")),
            "use such a name in CRON_ETCD_ENDPOINTS",
            INSECURE,
            true,
        ),
        fault(
            "plain",
            endpoint(format!("http://127.0.0.1:{port}")),
            "write https:// in CRON_ETCD_ENDPOINTS",
            INSECURE,
            false,
        ),
        fault(
            "tls",
            endpoint(format!("https://{}", plain.server.address())),
            "write http:// in CRON_ETCD_ENDPOINTS",
            INSECURE,
            false,
        ),
        fault(
            "no-certificate",
            vec![("CRON_ETCD_CERT", String::new()), ("CRON_ETCD_KEY", String::new())],
            "etcd asks for a client certificate: set CRON_ETCD_CERT and CRON_ETCD_KEY",
            INSECURE,
            false,
        ),
        fault("expired", shows(&expired), "CRON_ETCD_CERT has expired", INSECURE, true),
        fault(
            "strange",
            shows(&strange),
            "etcd does not know the CA of the client certificate",
            INSECURE,
            true,
        ),
        fault(
            "password",
            vec![("CRON_ETCD_USERNAME", "late".to_owned()), ("CRON_ETCD_PASSWORD", "after".to_owned())],
            "CRON_ETCD_USERNAME and CRON_ETCD_PASSWORD are no user and password of it",
            REFUSED,
            true,
        ),
        fault(
            "no-user",
            vec![("CRON_ETCD_USERNAME", String::new()), ("CRON_ETCD_PASSWORD", String::new())],
            "the roles of its user do not allow this",
            REFUSED,
            false,
        ),
    ];
    let program = program("worker").await;
    let mut kept_out: Vec<(Fault, Process, Api)> = Vec::new();
    for fault in faults {
        let mut environment = vec![
            ("CRON_ETCD_ENDPOINTS", etcd.url()),
            ("CRON_ETCD_CA", shown(&etcd.ca)),
            ("CRON_ETCD_CERT", shown(&etcd.client.certificate)),
            ("CRON_ETCD_KEY", shown(&etcd.client.key)),
            ("CRON_ETCD_USERNAME", ROOT.0.to_owned()),
            ("CRON_ETCD_PASSWORD", ROOT.1.to_owned()),
            ("CRON_BOOTSTRAP_TOKEN", BOOTSTRAP.to_owned()),
        ];
        environment.retain(|(name, _)| !fault.environment.iter().any(|(changed, _)| changed == name));
        environment.extend(fault.environment.iter().filter(|(_, value)| !value.is_empty()).cloned());
        let mut command = Command::new(&program);
        command
            .envs(environment.iter().map(|(name, value)| (*name, value.as_str())))
            .env("CRON_WORKER_ID", fault.name)
            .env("CRON_WORKER_LISTEN", "127.0.0.1:0")
            .env("CRON_DATA_DIR", dir.path().join(fault.name))
            .env("CRON_MONGODB_URI", format!("mongodb://127.0.0.1:{}", free_port().unwrap()));
        let worker = site.start(&format!("worker-{}", fault.name), command).unwrap();
        let api = Api::new(&environment, Arc::new(EmbeddedRunLog::in_memory().unwrap()));
        kept_out.push((fault, worker, api));
    }
    for (fault, worker, api) in &mut kept_out {
        let log = worker.log().to_owned();
        let said = async || std::fs::read_to_string(&log).unwrap().contains(fault.worker).then_some(());
        wait_for(&format!("{}: {:?} in {}", fault.name, fault.worker, log.display()), SOON, said).await;
        let wish = json!({"name": "ada", "role": "admin", "prefix": fault.name});
        let (status, answer) = api.ask(BOOTSTRAP, "POST", "/token/create", &wish).await;
        assert_eq!((status, &answer["data"]), (503, &Value::Null), "{}: {answer}", fault.name);
        assert!(answer["errno"].as_i64().unwrap() < 0, "{answer}");
        let message = answer["msg"].as_str().unwrap();
        assert!(message.contains(fault.api), "{}: {answer}", fault.name);
        for private in ["127.0.0.1", "localhost", ".pem", "late", ROOT.1, "CA {", "alert"] {
            assert!(!message.contains(private), "{}: tells {private:?}: {message}", fault.name);
        }
    }

    // Each is mended where it is, most of them by a file.
    std::fs::copy(&etcd.ca, &trusted).unwrap();
    authority.sign("etcd", "etcd", &["127.0.0.1", "localhost"]);
    authority.sign("expired", "nobody", &[]);
    authority.sign("strange", "nobody", &[]);
    root.user_change_password("late", "after").await.unwrap();
    for (fault, worker, api) in &mut kept_out {
        assert_eq!(worker.ended(), None, "{}", fault.name);
        if !fault.comes_back {
            continue;
        }
        let registered = format!("/cron/workers/{}", fault.name);
        let there = async || (keys(&mut root.clone(), &registered).await.len() == 1).then_some(());
        wait_for(&format!("{} to come back", fault.name), SOON, there).await;
        let (status, answer) = api.ask(BOOTSTRAP, "GET", "/token/self", &Value::Null).await;
        assert_eq!(status, 401, "etcd was asked for the token: {}: {answer}", fault.name);
        let log = std::fs::read_to_string(worker.log()).unwrap();
        assert!(!log.contains("panicked"), "{}: {log}", fault.name);
    }

    // A certificate of etcd's own that has ended is what a new connection meets.
    authority.sign_until("etcd", "etcd", &["127.0.0.1"], 2020);
    let late = EtcdKv::new(&secured(&etcd, etcd.url()), CALL_LIMIT).unwrap();
    let refused = late.range(Range::key("/cron/base")).await.unwrap_err();
    let words = "renew it, or set this machine's clock";
    assert!(matches!(&refused, kv::Error::Insecure(why) if why.contains(words)), "{refused}");
    authority.sign("etcd", "etcd", &["127.0.0.1"]);
    late.range(Range::key("/cron/base")).await.unwrap();

    // Files that are half there stop nobody who has been good before, and who starts with them is told.
    let half = shown(&authority.sign("half", "nobody", &[]).key);
    let mut settings = secured(&etcd, etcd.url());
    (settings.cert, settings.key) =
        (Some(Pem::File(dir.path().join("half.pem"))), Some(Pem::File(half.clone().into())));
    let kept = EtcdKv::new(&settings, CALL_LIMIT).unwrap();
    authority.sign("new", "nobody", &[]);
    std::fs::copy(dir.path().join("new.pem"), dir.path().join("half.pem")).unwrap();
    kept.range(Range::key("/cron/base")).await.unwrap();
    let Err(why) = EtcdKv::new(&settings, CALL_LIMIT) else {
        panic!("a key of another certificate is taken")
    };
    assert!(why.to_string().contains("is not the key of the first certificate"), "{why}");
    std::fs::write(&half, "no key").unwrap();
    let Err(why) = EtcdKv::new(&settings, CALL_LIMIT) else { panic!("no key is taken") };
    assert!(why.to_string().contains("there is no private key in it"), "{why}");
}

fn secured(etcd: &SecureEtcd, url: String) -> EtcdSettings {
    EtcdSettings {
        endpoints: Some(vec![url]),
        username: Some(ROOT.0.to_owned()),
        password: Some(ROOT.1.to_owned()),
        ca: Some(Pem::File(etcd.ca.clone())),
        cert: Some(Pem::File(etcd.client.certificate.clone())),
        key: Some(Pem::File(etcd.client.key.clone())),
    }
}

/// A line whose first connection is cut once so many bytes have passed in one direction; later ones are left alone.
async fn cut_line(server: SocketAddr, bytes: usize, towards_server: bool) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let whole = AtomicBool::new(false);
    tokio::spawn(async move {
        while let Ok((mut inside, _)) = listener.accept().await {
            let mut outside = TcpStream::connect(server).await.unwrap();
            let cut = !whole.swap(true, Ordering::SeqCst);
            tokio::spawn(async move {
                if !cut {
                    let _ended = tokio::io::copy_bidirectional(&mut inside, &mut outside).await;
                    return;
                }
                let (mut from_client, mut to_client) = inside.split();
                let (mut from_server, mut to_server) = outside.split();
                let mut limits = [usize::MAX, bytes];
                if towards_server {
                    limits.reverse();
                }
                // Whichever ends first takes both ways with it.
                tokio::select! {
                    () = pass(&mut from_client, &mut to_server, limits[0]) => {}
                    () = pass(&mut from_server, &mut to_client, limits[1]) => {}
                }
            });
        }
    });
    address
}

async fn pass(
    from: &mut (impl tokio::io::AsyncRead + Unpin),
    to: &mut (impl tokio::io::AsyncWrite + Unpin),
    mut left: usize,
) {
    let mut piece = [0; 1024];
    while left > 0 {
        let most = left.min(piece.len());
        let Ok(read @ 1..) = from.read(&mut piece[..most]).await else { return };
        left -= read;
        if to.write_all(&piece[..read]).await.is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_with_tls_may_be_cut_at_any_byte() {
    if !has_etcd("etcd-cuts") {
        return;
    }
    let dir = TestDir::new("etcd-cuts");
    let authority = Authority::new(dir.path(), "own");
    let etcd = SecureEtcd::start(&site(&dir), &authority, &[]).await;
    let mut other = etcd.client(None).await.unwrap();
    let open = EtcdSettings { username: None, password: None, ..secured(&etcd, String::new()) };
    let filler = "x".repeat(6_000);
    let (mut done, mut refused, mut doubted) = (0, 0, 0);
    for towards_server in [true, false] {
        // From within the handshake to behind the answer, in steps that meet frames and records at many places.
        for bytes in (0..16_000).step_by(509) {
            let address = cut_line(etcd.address(), bytes, towards_server).await;
            let settings =
                EtcdSettings { endpoints: Some(vec![format!("https://{address}")]), ..open.clone() };
            let kv = EtcdKv::new(&settings, CALL_LIMIT).unwrap();
            let value = format!("{towards_server} {bytes} {filler}");
            let put = Txn { then: vec![Op::put("/cut", value.as_str()), Op::get("/cut")], ..Txn::default() };
            let answer = kv.txn(put).await;
            let stored = other.get("/cut", None).await.unwrap();
            let applied = stored.kvs().first().is_some_and(|pair| pair.value() == value.as_bytes());
            match answer {
                Ok(_) => {
                    done += 1;
                    assert!(applied, "{value}");
                }
                Err(kv::Error::Indeterminate(_)) => doubted += 1,
                Err(kv::Error::Unavailable(why) | kv::Error::Insecure(why)) => {
                    refused += 1;
                    assert!(!applied, "said not to be done, and was: {bytes} {towards_server}: {why}");
                }
                Err(other) => panic!("{bytes} {towards_server}: {other:?}"),
            }
            // The next connection is a good one.
            kv.range(Range::key("/cut")).await.unwrap();
        }
    }
    println!("{done} done, {refused} refused, {doubted} in doubt");
    assert!(done > 0 && doubted > 0, "cuts met nothing: {done}, {refused}, {doubted}");
}
