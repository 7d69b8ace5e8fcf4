//! The users and roles that `infra/mongodb-roles.js` makes, on a real mongod: that each kind of program does all its work as its user, and nothing
//! else. FerretDB knows no roles: where no mongod and mongosh are installed, that is said by name and nothing is tried.
//!
//! Without etcd the test says SKIPPED; `cargo run -p tests` provisions it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use common::clock::Timestamp;
use common::run_log::mongo::MongoRunLog;
use common::run_log::{Error, Removal, RunLog};
use common::secrets::Vault;
use common::stores;
use local_dev::native::provision;
use local_dev::native::workspace;
use mongodb::bson::{Document, doc};
use serde_json::json;
use tests::aws::{Shelf, refers};
use tests::conformance::history;
use tests::conformance::run_log::{exam, new_job, record};
use tests::fixtures::{TestDir, has_etcd, has_mongo, not_tried, site};
use tests::secure_etcd::Authority;
use tests::secure_mongo::{SecureMongo, both_in_one, records, work_is_done};

/// The exam asks much of a server that writes to a disk.
const AMPLE: Duration = Duration::from_secs(60);
const ADMIN: (&str, &str) = ("admin", "of-the-admin");
const WORKER: &str = "fleetcron-worker";
const API: &str = "fleetcron-api";

/// The server's own shell, where there is a server to use it with.
fn mongosh(test: &str) -> Option<PathBuf> {
    let found = provision::search("mongosh").filter(|_| provision::mongo_is_mongod());
    if found.is_none() {
        not_tried(test, "roles of MongoDB: no mongod and mongosh are installed");
    }
    found
}

/// What the shell says to words of its command line, which must please it.
async fn says(mongosh: &Path, url: &str, words: &[&str], passwords: &[(&str, &str)]) -> String {
    let mut command = tokio::process::Command::new(mongosh);
    command.args(["--quiet", "--norc", url]).args(words).envs(passwords.iter().copied());
    let said = command.output().await.unwrap();
    let text = String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).into_owned();
    assert!(said.status.success(), "{words:?}: {text}");
    text
}

/// The same address, with a user who is known in this database.
fn with_login(url: &str, user: &str, password: &str, database: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap();
    format!("{scheme}://{user}:{password}@{rest}&authSource={database}")
}

fn run_log(url: &str) -> Arc<dyn RunLog> {
    Arc::new(MongoRunLog::new(url, AMPLE).unwrap())
}

fn denied<T: std::fmt::Debug>(answer: Result<T, Error>) {
    assert!(matches!(answer, Err(Error::Denied(_))), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_program_has_the_rights_of_its_role_and_no_others() {
    let test = "mongo-roles";
    if !has_etcd(test) || !has_mongo(test) {
        return;
    }
    let Some(mongosh) = mongosh(test) else { return };
    let dir = TestDir::new(test);
    let site = site(&dir);
    let authority = Authority::new(dir.path(), "own");
    let client = both_in_one(&authority.sign("program", "nobody", &[]));
    let mut mongo = SecureMongo::start(&site, &authority, &client, &["--auth"]).await;
    let url = mongo.own_url().to_owned();

    // The first user may be made from the machine itself without being anybody.
    let (name, password) = ADMIN;
    let first = format!(
        "db.getSiblingDB('admin').createUser({{user: '{name}', pwd: '{password}', roles: ['userAdminAnyDatabase']}})"
    );
    says(&mongosh, &url, &["--eval", &first], &[]).await;
    let admin = with_login(&url, name, password, "admin");
    let script = workspace().join("infra/mongodb-roles.js").display().to_string();
    let give = async |of_worker: &str, of_api: &str| {
        let passwords = [("FLEETCRON_WORKER_PASSWORD", of_worker), ("FLEETCRON_API_PASSWORD", of_api)];
        says(&mongosh, &admin, &[&script], &passwords).await
    };
    let said = give("of-the-worker", "of-the-api").await;
    assert!(said.contains("fleetcron-worker: role made\nfleetcron-worker: user made"), "{said}");
    assert!(said.contains("fleetcron-api: role made\nfleetcron-api: user made"), "{said}");
    let said = says(&mongosh, &admin, &[&script], &[]).await;
    assert!(said.contains("fleetcron-worker: role set\nFLEETCRON_WORKER_PASSWORD is not set"), "{said}");

    let (as_worker, as_api) =
        (with_login(&url, WORKER, "of-the-worker", "cron"), with_login(&url, API, "of-the-api", "cron"));
    let (workers, apis) = (run_log(&as_worker), run_log(&as_api));
    // All that a store of records does.
    exam(Arc::clone(&workers)).await;
    history::exam(Arc::clone(&workers)).await;
    // Functions read, and keep what waits of changes.
    let job = new_job("theirs");
    workers.append(&[record(&job, 1000)]).await.unwrap();
    assert_eq!(records(&as_api, &job).await.unwrap(), [record(&job, 1000)]);
    assert_eq!(apis.get(&format!("{job}/1000/1")).await.unwrap(), Some(record(&job, 1000)));
    let run = record(&job, 1000).claim.unwrap();
    assert_eq!(apis.output(&run, 0).await.unwrap(), []);
    apis.keep(&[history::edited(&job, 0, 1, &json!(null), &json!({"command": "true"}))]).await.unwrap();
    denied(apis.append(&[record(&job, 2000)]).await);
    denied(apis.remove(&Removal::RecordsBefore(Timestamp::from_ms(i64::MAX)), 10).await);
    denied(apis.remove(&Removal::OutputOf(vec![run]), 10).await);
    denied(apis.prepare().await);
    // Neither is anybody elsewhere, nor takes away what is not theirs.
    for login in [&as_worker, &as_api] {
        let client = mongodb::Client::with_uri_str(login).await.unwrap();
        let cron = client.database("cron");
        let elsewhere = client.database("other").collection::<Document>("log");
        assert!(elsewhere.find_one(doc! {}).await.is_err(), "{login}");
        assert!(cron.drop().await.is_err(), "{login}");
        assert!(cron.collection::<Document>("audit").drop().await.is_err(), "{login}");
        assert!(cron.run_command(doc! {"createUser": "mine", "pwd": "x", "roles": []}).await.is_err());
    }
    assert_eq!(records(&as_worker, &job).await.unwrap().len(), 1);
    for stranger in [url.clone(), with_login(&url, WORKER, "of-nobody", "cron")] {
        denied(records(&stranger, &job).await);
    }

    work_is_done(&site, &as_worker, &as_api).await;

    // Another password, for who reads its login where it is kept; the server forgets who had come in.
    let address = |password: &str| with_login(&url, WORKER, password, "cron");
    let shelf = Arc::new(Shelf::of(&[("/mongodb-uri", &address("of-the-worker"))]));
    let settings = refers(&[("CRON_MONGODB_URI", "ssm:/mongodb-uri")]);
    let renewing = stores::renewing_run_log(&settings, Arc::clone(&shelf) as Arc<dyn Vault>, AMPLE);
    let job = new_job("rotated");
    renewing.append(&[record(&job, 1000)]).await.unwrap();
    give("of-tomorrow", "of-the-api").await;
    shelf.put("/mongodb-uri", &address("of-tomorrow"));
    mongo.restart().await;
    renewing.append(&[record(&job, 2000)]).await.unwrap();
    assert_eq!(records(&as_api, &job).await.unwrap().len(), 2);
    denied(records(&address("of-the-worker"), &job).await);
}
