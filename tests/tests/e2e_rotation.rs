//! Rotations in the order of infra/RUNBOOK.md ("Rotate secrets"), under workers and functions that run and jobs that fire every second.
//!
//! Without etcd and a MongoDB-protocol server each test says SKIPPED; `cargo run -p tests` provisions them.

use std::path::Path;

use local_dev::native::servers::{Server, Stores, Worker};
use serde_json::json;
use tests::account::{Account, all_running, finish, ran_after};
use tests::fixtures::{
    Fleet, SOON, TestDir, all_records, has_etcd, has_mongo, now_ms, program, put_counting_jobs, site,
    wait_for,
};
use tests::function::Function;
use tests::secure_etcd::{Authority, SecureEtcd, Signed, put};

const ROOT: (&str, &str) = ("root", "of-root");

async fn status_of_list(function: &Function) -> u16 {
    function.call("GET", "/job/list", None).await.0
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_user_of_etcd_takes_the_place_of_the_first_and_no_fire_is_lost_or_doubled() {
    let Some(mut fleet) = Fleet::start("rotation-users").await else { return };
    let mut admin = fleet.kv().await;
    for (name, password) in [ROOT, ("first", "one")] {
        admin.user_add(name, password, None).await.unwrap();
        admin.user_grant_role(name, "root").await.unwrap();
    }
    admin.auth_enable().await.unwrap();
    fleet.credentials = Some(ROOT);
    let first = [("CRON_ETCD_USERNAME", "first"), ("CRON_ETCD_PASSWORD", "one")];
    let second = [("CRON_ETCD_USERNAME", "second"), ("CRON_ETCD_PASSWORD", "two")];
    let url = fleet.etcd.url();
    let site = fleet.site.clone();
    let function = async |user: &[(&str, &str)]| {
        let environment = [&[("CRON_ETCD_ENDPOINTS", url.as_str())], user].concat();
        Function::start(&site, "list", &environment).await
    };
    let old = function(&first).await;
    let ids = ["w1", "w2"];
    for id in ids {
        fleet.worker(id, &first).await;
    }
    let jobs = fleet.put_counting_jobs(3).await;
    let from = all_running(&jobs).await;
    assert_eq!(status_of_list(&old).await, 200);

    // 1. A second user.
    let mut admin = fleet.kv().await;
    admin.user_add("second", "two", None).await.unwrap();
    admin.user_grant_role("second", "root").await.unwrap();
    // 2. The setting, and a restart: one after the other, as for an upgrade.
    for id in ids {
        let mut worker = fleet.workers.remove(0);
        worker.drain();
        assert!(worker.process().wait(SOON).await.unwrap().success(), "{id}");
        fleet.worker(id, &second).await;
        ran_after(&jobs, now_ms() / 1000).await;
    }
    let new = function(&second).await;
    assert_eq!((status_of_list(&old).await, status_of_list(&new).await), (200, 200));
    // 3. The first user goes, and nobody needs it.
    admin.user_delete("first").await.unwrap();
    ran_after(&jobs, now_ms() / 1000).await;
    assert_eq!((status_of_list(&old).await, status_of_list(&new).await), (503, 200));

    let last = finish(&fleet, &jobs).await;
    let records = fleet.all_records().await;
    for job in &jobs {
        Account::of(job, &records).assert_ran_in_each(from..=last, job);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ca_and_all_its_certificates_are_replaced_and_no_fire_is_lost_or_doubled() {
    if !has_etcd("rotation-ca") || !has_mongo("rotation-ca") {
        return;
    }
    let dir = TestDir::new("rotation-ca");
    let site = site(&dir);
    let (old, new) = (Authority::new(dir.path(), "old"), Authority::new(dir.path(), "new"));
    let text = |path: &Path| std::fs::read_to_string(path).unwrap();
    let (old_ca, new_ca) = (text(&old.ca), text(&new.ca));
    let both = format!("{old_ca}{new_ca}");
    // etcd trusts the file of the old CA, whatever it holds later.
    let of_etcd = old.ca.clone();
    let mut etcd = SecureEtcd::start(&site, &old, &[]).await;
    let mongo = Server::mongo(&site, None).await.unwrap();
    let of_programs = dir.path().join("trusted.pem");
    put(&of_programs, &old_ca);
    let shown = old.sign("program", "nobody", &[]);
    let settings = [
        ("CRON_ETCD_CA", of_programs.display().to_string()),
        ("CRON_ETCD_CERT", shown.certificate.display().to_string()),
        ("CRON_ETCD_KEY", shown.key.display().to_string()),
    ];
    let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let stores = Stores { etcd: etcd.url(), mongodb: mongo.url() };
    let worker = program("worker").await;
    let mut workers = Vec::new();
    for id in ["w1", "w2"] {
        workers.push(Worker::start(&site, &worker, &stores, id, &settings).await.unwrap());
    }
    let url = etcd.url();
    let environment = [&[("CRON_ETCD_ENDPOINTS", url.as_str())], settings.as_slice()].concat();
    let function = Function::start(&site, "list", &environment).await;

    let mut kv = etcd.client_with(&of_programs, &shown, None).await.unwrap();
    // This etcd has one member: while it restarts, nothing can be claimed, and what fell due then is to run afterwards.
    let jobs = put_counting_jobs(&mut kv, dir.path(), 2, &json!({"misfire": "all"})).await;
    let from = all_running(&jobs).await;
    let goes_on = async |what: &str| {
        wait_for(&format!("the function after: {what}"), SOON, async || {
            (status_of_list(&function).await == 200).then_some(())
        })
        .await;
        ran_after(&jobs, now_ms() / 1000).await;
    };
    goes_on("the start").await;

    // 1. Programs trust both.
    put(&of_programs, &both);
    goes_on("programs trust both").await;
    // 2. etcd trusts both. It reads that at its start alone.
    put(&of_etcd, &both);
    etcd.restart().await;
    goes_on("etcd trusts both").await;
    // 3. Certificates of the new CA: first those of programs, then etcd's own. A restart makes everybody connect anew.
    new.sign("program", "nobody", &[]);
    new.sign("etcd", "etcd", &["127.0.0.1"]);
    etcd.restart().await;
    goes_on("certificates of the new CA").await;
    // 4. Nobody trusts the old one any more.
    put(&of_programs, &new_ca);
    put(&of_etcd, &new_ca);
    etcd.restart().await;
    goes_on("the old CA is trusted by nobody").await;
    let stale = old.sign("stale", "nobody", &[]);
    let refused = async |certificate: &Signed| match etcd.client_with(&of_programs, certificate, None).await {
        Ok(mut client) => client.get("/", None).await.is_err(),
        Err(_) => true,
    };
    assert!(refused(&stale).await, "etcd takes a certificate of the old CA");
    assert!(!refused(&shown).await);

    let last = now_ms() / 1000 - 1;
    let mut kv = etcd.client_with(&of_programs, &shown, None).await.unwrap();
    let prefix = || etcd_client::DeleteOptions::new().with_prefix();
    kv.delete("/cron/jobs/", Some(prefix())).await.unwrap();
    wait_for("no open runs", SOON, async || {
        let open = etcd_client::GetOptions::new().with_prefix().with_count_only();
        (kv.clone().get("/cron/runs/", Some(open)).await.unwrap().count() == 0).then_some(())
    })
    .await;
    let records = all_records(&mongo.url()).await;
    for job in &jobs {
        Account::of(job, &records).assert_ran_in_each(from..=last, job);
    }
    for worker in &mut workers {
        assert_eq!(worker.process().ended(), None, "no restart was needed");
    }
}
