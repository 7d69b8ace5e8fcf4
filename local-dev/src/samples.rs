//! A few harmless jobs for somebody who starts Fleetcron for the first time.

use std::path::Path;

use anyhow::Context as _;
use common::domain::job::{Job, JobName};
use common::domain::options::JobOptions;
use common::keys;
use common::kv::{Compare, Kv, Op, Txn};
use serde_json::Map;

/// Name, expression, command.
const SAMPLES: [(&str, &str, &str); 3] = [
    ("sample-hello", "*/10 * * * * * *", "echo \"hello from Fleetcron, planned for $CRON_PLAN_TIME\""),
    ("sample-every-minute", "* * * * *", "date; uptime"),
    ("sample-failure", "*/5 * * * *", "echo 'this one fails on purpose' >&2; exit 3"),
];
/// This file says that they were made: whoever deletes them does not get them again.
const MADE: &str = "samples-made";

/// Puts the sample jobs into the store, once in the life of the data directory.
///
/// # Errors
/// When the store or the directory cannot be written.
pub async fn make_once(kv: &dyn Kv, dir: &Path) -> anyhow::Result<()> {
    let made = dir.join(MADE);
    if made.exists() {
        return Ok(());
    }
    for (name, cron_expr, command) in SAMPLES {
        let name = JobName::parse(name).map_err(anyhow::Error::msg)?;
        let key = keys::job(&name);
        let job = Job {
            name,
            command: command.to_owned(),
            cron_expr: cron_expr.to_owned(),
            options: JobOptions::default(),
            extra: Map::new(),
        };
        let txn = Txn {
            when: vec![Compare::absent(key.clone())],
            then: vec![Op::put(key, job.to_value().to_string())],
            otherwise: Vec::new(),
        };
        kv.txn(txn).await.context("sample jobs cannot be stored")?;
    }
    // If this process dies here, the jobs are put again at the next start, where they are not there.
    std::fs::write(&made, "Delete this file to get the sample jobs again.\n")
        .with_context(|| format!("{}", made.display()))
}
