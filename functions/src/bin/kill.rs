//! The Lambda function `kill`: kills the run of a job.

use std::process::ExitCode;

use functions::{endpoints, ports, serve};

fn main() -> ExitCode {
    serve("kill", |settings| {
        let kv = ports::kv(settings)?;
        Ok(move |request| {
            let kv = kv.clone();
            async move { endpoints::kill::handle(&*kv, request).await }
        })
    })
}
