//! The Lambda function `delete`: deletes a job.

use std::process::ExitCode;

use common::clock::SystemClock;
use functions::{endpoints, ports, serve};

fn main() -> ExitCode {
    serve("delete", |settings| {
        let kv = ports::kv(settings)?;
        Ok(move |request| {
            let kv = kv.clone();
            async move { endpoints::delete::handle(&*kv, &SystemClock, request).await }
        })
    })
}
