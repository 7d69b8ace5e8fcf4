//! The Lambda function `kill`: kills the runs of a job.

use std::process::ExitCode;

use common::clock::SystemClock;
use functions::{endpoints, ports, serve};

fn main() -> ExitCode {
    serve("kill", |settings| {
        let kv = ports::kv(settings)?;
        Ok(move |request| {
            let kv = kv.clone();
            async move { endpoints::kill::handle(&*kv, &SystemClock, request).await }
        })
    })
}
