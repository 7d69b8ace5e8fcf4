//! The Lambda function `workers`: lists the workers.

use std::process::ExitCode;

use functions::{endpoints, ports, serve};

fn main() -> ExitCode {
    serve("workers", |settings| {
        let kv = ports::kv(settings)?;
        Ok(move |request| {
            let kv = kv.clone();
            async move { endpoints::workers::handle(&*kv, request).await }
        })
    })
}
