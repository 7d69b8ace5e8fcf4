//! The Lambda function `import`: takes crontabs and lists of jobs.

use std::process::ExitCode;

use common::clock::SystemClock;
use functions::{endpoints, ports, serve};

fn main() -> ExitCode {
    serve("import", |settings| {
        let kv = ports::kv(settings)?;
        Ok(move |request| {
            let kv = kv.clone();
            async move { endpoints::import::handle(&*kv, &SystemClock, request).await }
        })
    })
}
