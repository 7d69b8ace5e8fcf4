//! The Lambda function `resume`: resumes a job.

use std::process::ExitCode;

use common::clock::SystemClock;
use functions::{endpoints, ports, serve};

fn main() -> ExitCode {
    serve("resume", |settings| {
        let kv = ports::kv(settings)?;
        Ok(move |request| {
            let kv = kv.clone();
            async move { endpoints::resume::handle(&*kv, &SystemClock, request).await }
        })
    })
}
