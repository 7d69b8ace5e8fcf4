//! The Lambda function `log`: lists the records of a job.

use std::process::ExitCode;

use functions::{endpoints, ports, serve};

fn main() -> ExitCode {
    serve("log", |settings| {
        let run_log = ports::run_log(settings)?;
        Ok(move |request| {
            let run_log = run_log.clone();
            async move { endpoints::log::handle(&*run_log, request).await }
        })
    })
}
