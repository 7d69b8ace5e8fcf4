//! End to end: chaos, its short form. `cargo run -p tests -- chaos [minutes] [seed]` is the long one.
//!
//! Without the servers it says SKIPPED; `cargo run -p tests` provisions them.

use std::time::Duration;

use local_dev::native::servers;
use tests::chaos::fleet::Programs;
use tests::chaos::jobs;
use tests::chaos::plan::Plan;
use tests::fixtures::{TestDir, has_etcd, has_mongo, site};

/// The plan; another one by `CHAOS_SEED`.
const SEED: u64 = 5;
/// Jobs that count: with the others, some twenty fires a second, which a busy machine with two processors can start and record.
const JOBS: usize = 30;
/// No longer than it takes for each kind of fault to happen.
const LENGTH: Duration = Duration::ZERO;

#[expect(clippy::disallowed_methods, reason = "it is no setting of the product")]
fn seed() -> u64 {
    std::env::var("CHAOS_SEED").map_or(SEED, |text| text.parse().expect("CHAOS_SEED is a whole number"))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fire_is_accounted_for_whatever_befalls_workers_etcd_and_what_is_between_them() {
    if !has_etcd("chaos") || !has_mongo("chaos") {
        return;
    }
    servers::build(&["--workspace", "--bin", "worker", "--bin", "local-dev"]).await.unwrap();
    let dir = TestDir::new("chaos");
    let kinds = jobs::kinds(JOBS);
    let plan = Plan::chaos(seed(), LENGTH, &kinds);
    let report =
        tests::chaos::run(&site(&dir), Programs::of_this_version().unwrap(), &plan, &kinds).await.unwrap();
    println!("{report}");
    assert!(report.violations.is_empty(), "CHAOS_SEED={}: {report}", plan.seed);
    assert!(report.started * 2 > report.planned, "most fires ran: {report}");
}
