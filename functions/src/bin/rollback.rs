//! The Lambda function `rollback`: brings a job back to an earlier version.

use std::process::ExitCode;

use common::clock::SystemClock;
use functions::{endpoints, ports, serve};

fn main() -> ExitCode {
    serve("rollback", |settings| {
        let (kv, run_log) = (ports::kv(settings)?, ports::run_log(settings)?);
        Ok(move |request| {
            let (kv, run_log) = (kv.clone(), run_log.clone());
            async move { endpoints::rollback::handle(&*kv, &*run_log, &SystemClock, request).await }
        })
    })
}
