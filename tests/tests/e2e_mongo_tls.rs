//! The store of records as an operator protects it: TLS, its CA, client certificates. That programs do their work so, and what they say that
//! are kept out.
//!
//! Without etcd and a MongoDB-protocol server each test says SKIPPED; `cargo run -p tests` provisions them.

use common::domain::record::Status;
use common::run_log::Error;
use local_dev::native::servers::{Server, Stores, Worker};
use serde_json::json;
use tests::fixtures::{SOON, TestDir, has_etcd, has_mongo, program, put_counting_jobs, site, wait_for};
use tests::function::Function;
use tests::secure_etcd::Authority;
use tests::secure_mongo::{SecureMongo, both_in_one, records};

#[tokio::test(flavor = "multi_thread")]
async fn records_go_to_mongodb_over_tls_and_nobody_else_comes_in() {
    if !has_etcd("mongo-tls") || !has_mongo("mongo-tls") {
        return;
    }
    let dir = TestDir::new("mongo-tls");
    let site = site(&dir);
    let (authority, other) = (Authority::new(dir.path(), "own"), Authority::new(dir.path(), "other"));
    let client = both_in_one(&authority.sign("program", "nobody", &[]));
    let stranger = both_in_one(&other.sign("stranger", "nobody", &[]));
    let etcd = Server::etcd(&site, None, &[]).await.unwrap();
    let mongo = SecureMongo::start(&site, &authority, &client, &[]).await;

    let url = mongo.url(&authority.ca, Some(&client));
    let stores = Stores { etcd: etcd.url(), mongodb: url.clone() };
    let mut worker = Worker::start(&site, &program("worker").await, &stores, "w1", &[]).await.unwrap();
    let mut kv = etcd_client::Client::connect([etcd.url()], None).await.unwrap();
    let jobs = put_counting_jobs(&mut kv, dir.path(), 1, &json!({})).await;
    let job = jobs[0].name.as_str();
    wait_for("a record", SOON, async || {
        let records = records(&url, job).await.ok()?;
        records.iter().any(|record| record.status == Some(Status::Succeeded)).then_some(())
    })
    .await;
    let answered = async |url: &str| {
        let log = Function::start(&site, "log", &[("CRON_MONGODB_URI", url)]).await;
        log.call("GET", &format!("/job/log?name={job}"), None).await
    };
    let (status, answer) = answered(&url).await;
    assert_eq!((status, &answer["data"][0]["jobName"]), (200, &json!(job)), "{answer}");
    let log = std::fs::read_to_string(worker.process().log()).unwrap();
    assert!(!log.contains("ERROR"), "{log}");

    // Who shows nothing, or what another CA has signed; who trusts another CA; who speaks without TLS.
    let plain = url.split("/?").next().unwrap().to_owned();
    for (url, part) in [
        (mongo.url(&authority.ca, None), ""),
        (mongo.url(&authority.ca, Some(&stranger)), ""),
        (mongo.url(&other.ca, Some(&client)), "UnknownIssuer"),
        (plain, ""),
    ] {
        let why = match records(&url, job).await {
            Err(Error::Unavailable(why)) => why,
            other => panic!("{url}: {other:?}"),
        };
        assert!(why.contains(part), "{url}: {why}");
        let (status, answer) = answered(&url).await;
        assert_eq!(status, 503, "{url}: {answer}");
    }
    // A file that is not there is a mistake in the settings.
    let missing = mongo.url(&dir.path().join("none.pem"), None);
    let why = records(&missing, job).await.unwrap_err();
    assert!(matches!(&why, Error::Invalid(why) if why.contains("none.pem")), "{why:?}");
}
