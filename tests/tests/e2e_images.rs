//! The images without docker: their steps in a Debian root, their entry points as process 1, against real stores.
//!
//! Without root rights or the Debian root each test says SKIPPED; `cargo run -p tests` makes the root with debootstrap.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use local_dev::native::ports::free_port;
use local_dev::native::workspace;
use tests::container::{self, Image, has_debian};
use tests::fixtures::{Fleet, SOON, http, number, status, wait_for};

fn free_address() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, free_port().unwrap()))
}

/// Builds the program and makes its image in the test's directory; `None`, loudly, where its C library is too new for the base.
fn image(fleet: &Fleet, test: &str, program: &str, dockerfile: &str, stage: Option<&str>) -> Option<Image> {
    let built = container::build(program).unwrap();
    let image =
        Image::make(&workspace().join(dockerfile), stage, &fleet.dir.path().join("root"), &built).unwrap();
    let inside = image.inside(Path::new("/usr/local/bin")).join(program);
    let output = std::process::Command::new("chroot")
        .arg(image.inside(Path::new("/")))
        .args([&format!("/usr/local/bin/{program}"), "--version"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if said.contains("GLIBC_") {
        tests::fixtures::skip(
            test,
            "this machine's C library is newer than Debian 12's, a Debian 12 to build on",
        );
        return None;
    }
    assert!(output.status.success(), "{}: {said}", inside.display());
    Some(image)
}

/// What every image of ours has.
fn assert_is_furnished(image: &Image) {
    for file in [
        "/bin/bash",
        "/etc/ssl/certs/ca-certificates.crt",
        "/usr/share/zoneinfo/Europe/Berlin",
        "/usr/share/zoneinfo/America/New_York",
        "/usr/bin/tini",
        "/usr/local/lib/fleetcron/healthcheck.sh",
    ] {
        let size = fs::metadata(image.inside(Path::new(file))).map(|file| file.len());
        assert!(size.as_ref().is_ok_and(|size| *size > 0), "{file}: {size:?}");
    }
    let lists = fs::read_dir(image.inside(Path::new("/var/lib/apt/lists"))).unwrap().count();
    assert_eq!(lists, 0, "package lists are dead weight in a layer");
    assert_eq!(image.volumes, [Path::new("/var/lib/fleetcron")]);
    let data = fs::metadata(image.inside(&image.volumes[0])).unwrap();
    assert_eq!(
        (data.uid(), data.gid(), data.mode() & 0o7777),
        (10001, 10001, 0o750),
        "the data directory's owner"
    );
    assert_eq!(image.stop_signal, "SIGTERM");
    let version = image.labels.iter().find(|(name, _)| name == "org.opencontainers.image.version");
    assert_eq!(version.map(|(_, version)| version.as_str()), Some(env!("CARGO_PKG_VERSION")));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_worker_image_runs_jobs_reaps_what_they_leave_and_drains() {
    if !has_debian("worker-image") {
        return;
    }
    let Some(fleet) = Fleet::start("worker-image").await else { return };
    let Some(image) = image(&fleet, "worker-image", "worker", "worker/Dockerfile", None) else { return };
    assert_is_furnished(&image);
    image.run_steps_again().unwrap();
    assert_is_furnished(&image);

    let (listen, stores) = (free_address(), fleet.stores());
    let address = listen.to_string();
    let settings = [
        ("CRON_ETCD_ENDPOINTS", stores.etcd.as_str()),
        ("CRON_MONGODB_URI", &stores.mongodb),
        ("CRON_WORKER_ID", "contained"),
        ("CRON_WORKER_LISTEN", &address),
        ("CRON_DRAIN_SECONDS", "600"),
    ];
    let mut container = image.start(&fleet, "contained", &settings).await.unwrap();
    container.ready(listen, "/readyz").await.unwrap();
    assert_eq!(image.health(&container).unwrap(), (true, String::new()));
    assert_eq!(container.children_of_init(), ["worker"], "the init is process 1, the worker its child");
    assert!(container.volume().join("instance").exists(), "the data volume is written");

    // Who jobs are, and where they may write.
    let look = "id -u; id -g; pwd; cat /proc/1/comm; date --date='TZ=\"Asia/Tokyo\" 2030-01-01 09:00' -u +%FT%T\n\
        touch /usr/x 2>/dev/null || echo usr is read-only; touch /tmp/x && touch x && echo tmp and data are not\n\
        grep -E '^(CapEff|CapBnd|NoNewPrivs):' /proc/self/status";
    fleet.put_job("look", look, "* * * * * * *").await;
    let record = fleet.record("look", |record| status(record) != "skipped").await;
    assert_eq!(
        record.get_str("output").unwrap(),
        "10001\n10001\n/var/lib/fleetcron\ntini\n2030-01-01T00:00:00\nusr is read-only\ntmp and data are not\n\
        CapEff:\t0000000000000000\nCapBnd:\t0000000000000000\nNoNewPrivs:\t1\n"
    );
    fleet.delete_prefix("/cron/jobs/look").await;

    // A daemon outlives its job, becomes the init's child, and is reaped when it ends.
    // (It has left the group, which is killed with the job, when it says so.)
    let daemon = "[ -e up ] || { setsid bash -c ': >up; until [ -e release ]; do sleep 0.1; done' \
        </dev/null >/dev/null 2>&1 & until [ -e up ]; do sleep 0.1; done; }";
    fleet.put_job("daemon", daemon, "* * * * * * *").await;
    fleet.record("daemon", |record| status(record) == "succeeded").await;
    wait_for("the daemon to be the init's child", SOON, async || {
        let mut children = container.children_of_init();
        children.sort();
        (children == ["bash", "worker"]).then_some(())
    })
    .await;
    fs::write(container.volume().join("release"), "").unwrap();
    wait_for("the daemon to be reaped", SOON, async || {
        (container.children_of_init() == ["worker"]).then_some(())
    })
    .await;
    fleet.delete_prefix("/cron/jobs/daemon").await;

    // Stopping leaves the fleet at once, lets the run finish and ends with 0.
    let slow = "echo begun >begun; until [ -e finish ]; do sleep 0.1; done; echo finished";
    fleet.put_job("slow", slow, "* * * * * * *").await;
    let volume = container.volume().to_owned();
    wait_for("the slow run", SOON, async || volume.join("begun").exists().then_some(())).await;
    container.stop();
    wait_for("the registration to go", SOON, async || {
        fleet.keys("/cron/workers/").await.is_empty().then_some(())
    })
    .await;
    fs::write(volume.join("finish"), "").unwrap();
    let code = container.exit_code(SOON).await;
    assert_eq!(code.ok(), Some(0), "{}", container.tail());
    let record = fleet.record("slow", |record| status(record) != "skipped").await;
    assert_eq!((status(&record), record.get_str("output").unwrap()), ("succeeded", "finished\n"));
    assert_eq!(number(&record, "exitCode"), 0);
    assert_eq!(fleet.keys("/cron/sessions/").await, [""; 0], "its session is revoked");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_local_dev_image_is_an_api_server_on_the_real_stores() {
    if !has_debian("local-dev-image") {
        return;
    }
    let Some(fleet) = Fleet::start("local-dev-image").await else { return };
    let stage = Some("local-dev");
    let Some(image) = image(&fleet, "local-dev-image", "local-dev", "local-dev/Dockerfile", stage) else {
        return;
    };
    assert_is_furnished(&image);

    let (listen, stores) = (free_address(), fleet.stores());
    let address = listen.to_string();
    let settings = [
        ("CRON_ETCD_ENDPOINTS", stores.etcd.as_str()),
        ("CRON_MONGODB_URI", &stores.mongodb),
        ("CRON_WORKERS", "0"),
        ("CRON_LISTEN", &address),
    ];
    let mut container = image.start(&fleet, "api", &settings).await.unwrap();
    container.ready(listen, "/").await.unwrap();
    assert_eq!(image.health(&container).unwrap(), (true, String::new()));
    fleet.put_job("job", "true", "@yearly").await;
    let list = http().get(format!("http://{listen}/job/list")).send().await.unwrap().text().await.unwrap();
    assert!(list.contains(r#""name":"job""#), "{list}");
    container.stop();
    let code = container.exit_code(SOON).await;
    assert_eq!(code.ok(), Some(0), "{}", container.tail());

    // It says why it does not listen where everybody could reach it.
    let open = [("CRON_LISTEN", "0.0.0.0:8070")];
    let mut refused = image.start(&fleet, "open", &open).await.unwrap();
    assert_eq!(refused.exit_code(SOON).await.ok(), Some(1));
    assert!(refused.tail().contains("it lacks TLS"), "{}", refused.tail());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_health_check_fails_where_nobody_answers_and_where_the_answer_is_no() {
    let check = |port: u16, path: &str| {
        std::process::Command::new(workspace().join("infra/images/healthcheck.sh"))
            .args(["CRON_WORKER_LISTEN", path])
            .env("CRON_WORKER_LISTEN", format!("127.0.0.1:{port}"))
            .output()
            .unwrap()
            .status
            .success()
    };
    assert!(!check(free_port().unwrap(), "/readyz"));
    let Some(fleet) = Fleet::start("health-check").await else { return };
    assert!(check(fleet.etcd.address().port(), "/health"));
    assert!(!check(fleet.etcd.address().port(), "/no-such-path"), "404");
}
