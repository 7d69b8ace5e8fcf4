//! The store of records as an operator protects it: TLS, its CA, client certificates. That programs do their work so, and what they say that
//! are kept out.
//!
//! Without etcd and a MongoDB-protocol server each test says SKIPPED; `cargo run -p tests` provisions them.

use common::run_log::Error;
use tests::fixtures::{TestDir, has_etcd, has_mongo, site};
use tests::secure_etcd::Authority;
use tests::secure_mongo::{SecureMongo, both_in_one, log_of, records, work_is_done};

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
    let mongo = SecureMongo::start(&site, &authority, &client, &[]).await;
    let url = mongo.own_url();
    let job = work_is_done(&site, url, url).await;

    // Who shows nothing, or what another CA has signed; who trusts another CA; who speaks without TLS.
    let plain = url.split("/?").next().unwrap().to_owned();
    for (url, part) in [
        (mongo.url(&authority.ca, None), ""),
        (mongo.url(&authority.ca, Some(&stranger)), ""),
        (mongo.url(&other.ca, Some(&client)), "UnknownIssuer"),
        (plain, ""),
    ] {
        let why = match records(&url, &job).await {
            Err(Error::Unavailable(why)) => why,
            other => panic!("{url}: {other:?}"),
        };
        assert!(why.contains(part), "{url}: {why}");
        let (status, answer) = log_of(&site, &url, &job).await;
        assert_eq!(status, 503, "{url}: {answer}");
    }
    // A file that is not there is a mistake in the settings.
    let missing = mongo.url(&dir.path().join("none.pem"), None);
    let why = records(&missing, &job).await.unwrap_err();
    assert!(matches!(&why, Error::Invalid(why) if why.contains("none.pem")), "{why:?}");
}
