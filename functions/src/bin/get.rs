//! The Lambda function `get`: answers one run.

use std::process::ExitCode;

use functions::{endpoints, ports, serve};

fn main() -> ExitCode {
    serve("get", |settings| {
        let (kv, run_log) = (ports::kv(settings)?, ports::run_log(settings)?);
        Ok(move |request| {
            let (kv, run_log) = (kv.clone(), run_log.clone());
            async move { endpoints::get::handle(&*kv, &*run_log, request).await }
        })
    })
}
