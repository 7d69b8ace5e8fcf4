//! Every store takes the one exam; then what only one of them promises.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use common::clock::{Stopwatch, sleep, timeout};
use common::config::EtcdSettings;
use common::kv::embedded::EmbeddedKv;
use common::kv::etcd::EtcdKv;
use common::kv::{Error, Kv, Op, Range, Txn};
use common::secrets::Vault;
use common::stores;
use futures::StreamExt;
use local_dev::native::ports::free_port;
use local_dev::native::servers::Server;
use tests::aws::{Shelf, refers};
use tests::conformance::kv::exam;
use tests::fixtures::Store;
use tests::line::Line;

/// Call limit of the clients: what a busy machine needs, more than the functions use.
const LIMIT: Duration = Duration::from_secs(10);

/// How to reach an etcd.
fn settings(etcd: &Server) -> EtcdSettings {
    EtcdSettings { endpoints: Some(vec![etcd.url()]), ..EtcdSettings::default() }
}

fn client(etcd: &Server, call_limit: Duration) -> EtcdKv {
    EtcdKv::new(&settings(etcd), call_limit).unwrap()
}

#[tokio::test]
async fn the_embedded_store_in_memory_passes() {
    exam(Arc::new(EmbeddedKv::in_memory().unwrap())).await;
}

#[tokio::test]
async fn the_embedded_store_on_disk_passes() {
    let dir = tempfile::tempdir().unwrap();
    exam(Arc::new(EmbeddedKv::open(dir.path()).unwrap())).await;
}

#[tokio::test]
async fn etcd_passes() {
    let Some(store) = Store::etcd("kv-exam", &[]).await else { return };
    exam(Arc::new(client(&store.server, LIMIT))).await;
}

#[tokio::test]
async fn etcd_behind_a_secret_passes() {
    let Some(store) = Store::etcd("kv-secret-exam", &[]).await else { return };
    let shelf = Arc::new(Shelf::of(&[("etcd", &store.server.url())]));
    let settings = refers(&[("CRON_ETCD_ENDPOINTS", "secretsmanager:etcd")]);
    exam(Arc::new(stores::renewing_kv(&settings, Arc::clone(&shelf) as Arc<dyn Vault>, LIMIT))).await;
    assert_eq!(shelf.reads(), ["etcd"], "once, and not before the first call");
}

async fn put(kv: &dyn Kv, key: &str, value: &str) -> Result<i64, Error> {
    let then = vec![Op::put(key, value)];
    kv.txn(Txn { then, ..Txn::default() }).await.map(|reply| reply.revision)
}

async fn get(kv: &dyn Kv, key: &str) -> Result<Option<String>, Error> {
    let pair = kv.range(Range::key(key)).await?.pairs.pop();
    Ok(pair.map(|pair| String::from_utf8(pair.value).unwrap()))
}

mod embedded {
    use super::*;

    #[tokio::test]
    async fn reopening_keeps_everything() {
        let dir = tempfile::tempdir().unwrap();
        let kv = EmbeddedKv::open(dir.path()).unwrap();
        let first = put(&kv, "k", "1").await.unwrap();
        put(&kv, "k", "2").await.unwrap();
        put(&kv, "gone", "").await.unwrap();
        kv.txn(Txn { then: vec![Op::delete("gone")], ..Txn::default() }).await.unwrap();
        kv.compact(first).await.unwrap();
        let before = kv.range(Range::prefix("")).await.unwrap();
        let history = changes(&kv, first, 4).await;
        drop(kv);

        let kv = EmbeddedKv::open(dir.path()).unwrap();
        assert_eq!(kv.range(Range::prefix("")).await.unwrap(), before);
        assert_eq!(changes(&kv, first, 4).await, history);
        assert_eq!(kv.compact(first).await, Err(Error::Compacted(first)));
        assert_eq!(put(&kv, "k", "3").await.unwrap(), before.revision + 1);
    }

    async fn changes(kv: &EmbeddedKv, start: i64, count: usize) -> Vec<common::kv::Change> {
        let mut stream = kv.watch(common::kv::Span::prefix(""), start).await.unwrap();
        let mut changes = Vec::new();
        while changes.len() < count {
            changes.extend(timeout(LIMIT, stream.next()).await.unwrap().unwrap().unwrap().changes);
        }
        changes
    }

    #[tokio::test]
    async fn a_lease_survives_reopening_with_its_full_time() {
        let dir = tempfile::tempdir().unwrap();
        let kv = EmbeddedKv::open(dir.path()).unwrap();
        let ttl = Duration::from_secs(2);
        let lease = kv.grant(ttl).await.unwrap();
        let then = vec![Op::put_leased("leased", "", lease)];
        kv.txn(Txn { then, ..Txn::default() }).await.unwrap();
        sleep(Duration::from_millis(1200)).await;
        drop(kv);

        let kv = EmbeddedKv::open(dir.path()).unwrap();
        let reopened = Stopwatch::start();
        assert_eq!(kv.lease_keys(lease).await.unwrap(), ["leased".into()]);
        while get(&kv, "leased").await.unwrap().is_some() {
            sleep(Duration::from_millis(10)).await;
        }
        assert!(reopened.elapsed() >= ttl, "gone after {:?}", reopened.elapsed());
        assert_eq!(kv.keep_alive(lease).await, Err(Error::LeaseGone));
    }

    #[tokio::test]
    async fn a_second_open_is_refused_until_the_first_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let kv = EmbeddedKv::open(dir.path()).unwrap();
        let refused = EmbeddedKv::open(dir.path()).err().unwrap();
        let expected = format!("store unavailable: another process uses {}", dir.path().display());
        assert_eq!(refused.to_string(), expected);
        put(&kv, "k", "").await.unwrap();
        let mut watch = kv.watch(common::kv::Span::key("k"), 0).await.unwrap();
        drop(kv);
        let ended = timeout(LIMIT, watch.next()).await.unwrap().unwrap();
        assert!(matches!(ended, Err(Error::Unavailable(_))), "{ended:?}");
        assert!(watch.next().await.is_none());
        EmbeddedKv::open(dir.path()).unwrap();
    }

    /// Number of puts that a child of [`nothing_acknowledged_is_lost_by_kill_9`] has done before it is killed.
    const ACKNOWLEDGED: usize = 300;
    const DIR: &str = "TEST_KV_DIR";
    const ROUND: &str = "TEST_KV_ROUND";

    #[tokio::test]
    async fn nothing_acknowledged_is_lost_by_kill_9() {
        let dir = tempfile::tempdir().unwrap();
        let mut acknowledged: Vec<String> = Vec::new();
        for round in 0..3 {
            acknowledged.extend(killed_child(dir.path(), round));
            assert!(acknowledged.len() >= ACKNOWLEDGED * (round + 1));
            let kv = EmbeddedKv::open(dir.path()).unwrap();
            for key in &acknowledged {
                assert!(get(&kv, key).await.unwrap().is_some(), "{key} was acknowledged and is lost");
                let pair = format!("{key}/pair");
                assert!(get(&kv, &pair).await.unwrap().is_some(), "half of a transaction is lost: {key}");
            }
        }
    }

    /// Runs this program as the child below; returns the keys whose puts it was told of.
    fn killed_child(dir: &Path, round: usize) -> Vec<String> {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "embedded::child_that_writes_until_killed", "--ignored", "--nocapture"])
            .env(DIR, dir)
            .env(ROUND, round.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut keys = Vec::new();
        let key_of = |line: String| line.strip_prefix("put ").map(str::to_owned);
        while keys.len() < ACKNOWLEDGED {
            keys.extend(lines.next().expect("the child writes on").map(key_of).unwrap());
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What it had said when it died; the last line may be torn.
        let rest: Vec<String> = lines.map_while(Result::ok).collect();
        keys.extend(rest.into_iter().filter(|line| line.ends_with('.')).filter_map(key_of));
        keys.iter_mut().for_each(|key| *key = key.trim_end_matches('.').to_owned());
        keys
    }

    #[tokio::test]
    #[ignore = "the child of the test above"]
    #[expect(clippy::disallowed_methods, reason = "how a test speaks to its child")]
    async fn child_that_writes_until_killed() {
        let Ok(dir) = std::env::var(DIR) else { return };
        let round = std::env::var(ROUND).unwrap();
        let kv = Arc::new(EmbeddedKv::open(Path::new(&dir)).unwrap());
        // Several at a time, so that groups form.
        let writers = (0..8).map(|writer| {
            let (kv, round) = (Arc::clone(&kv), round.clone());
            async move {
                for number in 0_u64.. {
                    let key = format!("{round}/{writer}/{number}");
                    let then = vec![Op::put(key.as_str(), "x"), Op::put(format!("{key}/pair"), "x")];
                    kv.txn(Txn { then, ..Txn::default() }).await.unwrap();
                    writeln!(std::io::stdout(), "put {key}.").unwrap();
                }
            }
        });
        futures::future::join_all(writers).await;
    }
}

mod etcd {
    use super::*;

    fn refused_port() -> EtcdSettings {
        let port = free_port().unwrap();
        let endpoints = Some(vec![format!("http://127.0.0.1:{port}")]);
        EtcdSettings { endpoints, ..EtcdSettings::default() }
    }

    #[tokio::test]
    async fn without_a_server_nothing_is_in_doubt() {
        let kv = EtcdKv::new(&refused_port(), LIMIT).unwrap();
        let read = get(&kv, "k").await;
        assert!(matches!(&read, Err(Error::Unavailable(why)) if why.contains("refused")), "{read:?}");
        let write = put(&kv, "k", "").await;
        assert!(matches!(write, Err(Error::Unavailable(_))), "{write:?}");
        let grant = kv.grant(LIMIT).await;
        assert!(matches!(grant, Err(Error::Unavailable(_))), "{grant:?}");
        let watch = kv.watch(common::kv::Span::key("k"), 0).await.err();
        assert!(matches!(watch, Some(Error::Unavailable(_))), "{watch:?}");
    }

    #[tokio::test]
    async fn another_endpoint_stands_in() {
        let Some(store) = Store::etcd("kv-endpoints", &[]).await else { return };
        let mut settings = refused_port();
        settings.endpoints.as_mut().unwrap().extend([store.server.url()]);
        let kv = EtcdKv::new(&settings, LIMIT).unwrap();
        put(&kv, "k", "1").await.unwrap();
        assert_eq!(get(&kv, "k").await.unwrap().as_deref(), Some("1"));
    }

    #[tokio::test]
    async fn a_killed_server_ends_watches_and_comes_back() {
        let Some(mut store) = Store::etcd("kv-killed", &[]).await else { return };
        let kv = client(&store.server, LIMIT);
        let revision = put(&kv, "k", "1").await.unwrap();
        let mut watch = kv.watch(common::kv::Span::key("k"), revision).await.unwrap();
        let batch = timeout(LIMIT, watch.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(batch.revision, revision);
        store.server.kill();
        let ended = timeout(LIMIT, watch.next()).await.expect("at once").unwrap();
        assert!(matches!(ended, Err(Error::Unavailable(_))), "{ended:?}");
        assert!(watch.next().await.is_none());
        let write = put(&kv, "k", "2").await;
        assert!(matches!(write, Err(Error::Unavailable(_))), "{write:?}");

        store.server.restart().await.unwrap();
        assert_eq!(get(&kv, "k").await.unwrap().as_deref(), Some("1"));
        let revision = put(&kv, "k", "3").await.unwrap();
        let mut watch = kv.watch(common::kv::Span::key("k"), batch.revision + 1).await.unwrap();
        let batch = timeout(LIMIT, watch.next()).await.unwrap().unwrap().unwrap();
        assert_eq!((batch.revision, batch.changes.len()), (revision, 1));
    }

    #[tokio::test]
    async fn a_frozen_server_leaves_writes_in_doubt_and_ends_watches() {
        let Some(mut store) = Store::etcd("kv-frozen", &[]).await else { return };
        let kv = client(&store.server, Duration::from_secs(2));
        let revision = put(&kv, "k", "1").await.unwrap();
        let mut watch = kv.watch(common::kv::Span::key("k"), revision + 1).await.unwrap();
        store.server.freeze();
        let started = Stopwatch::start();
        let write = put(&kv, "k", "2").await;
        assert!(matches!(write, Err(Error::Indeterminate(_))), "{write:?}");
        let read = get(&kv, "k").await;
        assert!(matches!(read, Err(Error::Unavailable(_))), "{read:?}");
        assert!(started.elapsed() < Duration::from_secs(6), "two calls took {:?}", started.elapsed());
        let ended =
            timeout(Duration::from_secs(30), watch.next()).await.expect("not silent for ever").unwrap();
        assert!(matches!(ended, Err(Error::Unavailable(_))), "{ended:?}");
        println!("the watch ended after {:?}: {ended:?}", started.elapsed());
        store.server.thaw();
        put(&kv, "k", "3").await.unwrap();
        assert_eq!(get(&kv, "k").await.unwrap().as_deref(), Some("3"));
    }

    #[tokio::test]
    async fn users_are_told_apart_and_tokens_renewed() {
        let Some(store) = Store::etcd("kv-users", &["--auth-token-ttl", "2"]).await else { return };
        enable_users(&store.server).await;
        let user = |name: &str, password: &str| EtcdSettings {
            username: Some(name.to_owned()),
            password: Some(password.to_owned()),
            ..settings(&store.server)
        };
        for refused in [settings(&store.server), user("root", "wrong"), user("nobody", "secret")] {
            let kv = EtcdKv::new(&refused, LIMIT).unwrap();
            for denied in [get(&kv, "k").await.err(), put(&kv, "k", "").await.err()] {
                assert!(matches!(denied, Some(Error::Denied(_))), "{refused:?}: {denied:?}");
            }
            let watch = kv.watch(common::kv::Span::key("k"), 0).await.err();
            assert!(matches!(watch, Some(Error::Denied(_))), "{refused:?}: {watch:?}");
        }

        let kv = EtcdKv::new(&user("limited", "secret"), LIMIT).unwrap();
        put(&kv, "ours/k", "1").await.unwrap();
        assert!(matches!(put(&kv, "theirs/k", "1").await, Err(Error::Denied(_))));
        let watch = kv.watch(common::kv::Span::prefix("theirs/"), 0).await.err();
        assert!(matches!(watch, Some(Error::Denied(_))), "{watch:?}");
        let mut early = kv.watch(common::kv::Span::prefix("ours/"), 0).await.unwrap();
        // Longer than a token lives unused; the first call of each kind after it renews it.
        let expire = || sleep(Duration::from_secs(5));
        expire().await;
        let mut late = kv.watch(common::kv::Span::prefix("ours/"), 0).await.unwrap();
        expire().await;
        // Idle for long enough besides that the connection is tried with a read that this user has no right to.
        expire().await;
        put(&kv, "ours/k", "2").await.unwrap();
        for watch in [&mut early, &mut late] {
            let told = timeout(
                LIMIT,
                watch
                    .filter(|batch| {
                        let changed = batch.as_ref().is_ok_and(|batch| !batch.changes.is_empty());
                        futures::future::ready(changed || batch.is_err())
                    })
                    .next(),
            )
            .await
            .unwrap()
            .unwrap()
            .unwrap();
            assert_eq!(told.changes[0].pair.value, b"2");
        }
        expire().await;
        assert_eq!(get(&kv, "ours/k").await.unwrap().as_deref(), Some("2"));
    }

    #[tokio::test]
    async fn a_rotated_password_is_read_again_and_nobody_notices() {
        let Some(mut store) = Store::etcd("kv-rotation", &[]).await else { return };
        enable_users(&store.server).await;
        let of = |password: &str| format!(r#"{{"user":"root","password":"{password}"}}"#);
        let shelf = Arc::new(Shelf::of(&[("etcd", &of("secret"))]));
        let settings = refers(&[
            ("CRON_ETCD_ENDPOINTS", &store.server.url()),
            ("CRON_ETCD_USERNAME", "secretsmanager:etcd#user"),
            ("CRON_ETCD_PASSWORD", "secretsmanager:etcd#password"),
        ]);
        let kv = stores::renewing_kv(&settings, Arc::clone(&shelf) as Arc<dyn Vault>, LIMIT);
        put(&kv, "k", "1").await.unwrap();
        let lease = kv.grant(Duration::from_secs(60)).await.unwrap();
        let mut watch = kv.watch(common::kv::Span::key("k"), 0).await.unwrap();

        let options = etcd_client::ConnectOptions::new().with_user("root", "secret");
        let mut admin = etcd_client::Client::connect([store.server.url()], Some(options)).await.unwrap();
        admin.user_change_password("root", "second").await.unwrap();
        // The old one is refused, and no other is known yet.
        let refused = put(&kv, "k", "2").await;
        assert!(matches!(refused, Err(Error::Denied(_))), "{refused:?}");
        shelf.put("etcd", &of("second"));
        // The next reading comes when the last one is a few seconds old.
        while let Err(error) = put(&kv, "k", "2").await {
            assert!(matches!(error, Error::Denied(_)), "{error}");
            sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(get(&kv, "k").await.unwrap().as_deref(), Some("2"));
        kv.keep_alive(lease).await.unwrap();
        assert_eq!(shelf.reads(), ["etcd"; 3], "at first, in vain, and anew");
        let told = async {
            while !watch.next().await.unwrap().unwrap().changes.iter().any(|c| c.pair.value == b"2") {}
        };
        timeout(LIMIT, told).await.expect("a watch goes on");
        // Nothing of the old password is left: no token either.
        store.server.restart().await.unwrap();
        while let Err(error) = kv.keep_alive(lease).await {
            assert!(matches!(error, Error::Unavailable(_)), "{error}");
        }
        put(&kv, "k", "3").await.unwrap();
        assert_eq!(shelf.reads().len(), 3);
    }

    async fn enable_users(server: &Server) {
        use etcd_client::{Client, Permission};
        let mut client = Client::connect([server.url()], None).await.unwrap();
        for name in ["root", "limited"] {
            client.user_add(name, "secret", None).await.unwrap();
            client.role_add(name).await.unwrap();
            client.user_grant_role(name, name).await.unwrap();
        }
        let ours = Permission::read_write("ours/").with_range_end("ours0");
        client.role_grant_permission("limited", ours).await.unwrap();
        client.auth_enable().await.unwrap();
    }

    #[tokio::test]
    async fn a_dead_connection_is_replaced() {
        let Some(store) = Store::etcd("kv-dead-connection", &[]).await else { return };
        let line = Line::to(store.server.address()).await;
        let endpoints = Some(vec![format!("http://{}", line.address())]);
        let kv = EtcdKv::new(&EtcdSettings { endpoints, ..EtcdSettings::default() }, LIMIT).unwrap();
        put(&kv, "k", "1").await.unwrap();
        let mut watch = kv.watch(common::kv::Span::key("k"), 0).await.unwrap();
        // A read does not show it.
        line.fall_silent();
        assert_eq!(get(&kv, "k").await.unwrap().as_deref(), Some("1"));
        let started = Stopwatch::start();
        let ended =
            timeout(Duration::from_secs(30), watch.next()).await.expect("not silent for ever").unwrap();
        assert!(matches!(ended, Err(Error::Unavailable(_))), "{ended:?}");
        println!("the watch ended after {:?}: {ended:?}", started.elapsed());
        // Nor does a write after a while: a thawed Lambda.
        put(&kv, "k", "2").await.unwrap();
        sleep(Duration::from_secs(11)).await;
        line.fall_silent();
        put(&kv, "k", "3").await.unwrap();
        // At once it cannot be told from a slow server.
        line.fall_silent();
        let write = put(&kv, "k", "4").await;
        assert!(matches!(write, Err(Error::Indeterminate(_))), "{write:?}");
        put(&kv, "k", "5").await.unwrap();
    }
}
