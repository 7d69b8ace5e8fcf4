//! The Lambda function `pause`: pauses a job.

use std::process::ExitCode;

use common::clock::SystemClock;
use functions::{endpoints, ports, serve};

fn main() -> ExitCode {
    serve("pause", |settings| {
        let kv = ports::kv(settings)?;
        Ok(move |request| {
            let kv = kv.clone();
            async move { endpoints::pause::handle(&*kv, &SystemClock, request).await }
        })
    })
}
