//! The Lambda function `output`: answers what a run prints.

use std::process::ExitCode;

use functions::{endpoints, ports, serve};

fn main() -> ExitCode {
    serve("output", |settings| {
        let (kv, run_log) = (ports::kv(settings)?, ports::run_log(settings)?);
        Ok(move |request| {
            let (kv, run_log) = (kv.clone(), run_log.clone());
            async move { endpoints::output::handle(&*kv, &*run_log, request).await }
        })
    })
}
