//! The Lambda function `export`: writes the jobs as a crontab or as JSON.

use std::process::ExitCode;

use functions::{endpoints, ports, serve};

fn main() -> ExitCode {
    serve("export", |settings| {
        let kv = ports::kv(settings)?;
        Ok(move |request| {
            let kv = kv.clone();
            async move { endpoints::export::handle(&*kv, request).await }
        })
    })
}
