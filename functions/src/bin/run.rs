//! The Lambda function `run`: asks for a run of a job now.

use std::process::ExitCode;

use common::clock::SystemClock;
use functions::{endpoints, ports, serve};

fn main() -> ExitCode {
    serve("run", |settings| {
        let kv = ports::kv(settings)?;
        Ok(move |request| {
            let kv = kv.clone();
            async move { endpoints::run::handle(&*kv, &SystemClock, request).await }
        })
    })
}
