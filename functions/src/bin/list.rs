//! The Lambda function `list`: lists the jobs.

use std::process::ExitCode;

use functions::{endpoints, ports, serve};

fn main() -> ExitCode {
    serve("list", |settings| {
        let kv = ports::kv(settings)?;
        Ok(move |request| {
            let kv = kv.clone();
            async move { endpoints::list::handle(&*kv, request).await }
        })
    })
}
