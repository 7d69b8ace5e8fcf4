//! The Lambda function `versions`: lists the versions of a job.

use std::process::ExitCode;

use functions::{endpoints, ports, serve};

fn main() -> ExitCode {
    serve("versions", |settings| {
        let (kv, run_log) = (ports::kv(settings)?, ports::run_log(settings)?);
        Ok(move |request| {
            let (kv, run_log) = (kv.clone(), run_log.clone());
            async move { endpoints::versions::handle(&*kv, &*run_log, request).await }
        })
    })
}
