//! The Lambda function `audit_list`: lists who changed what.

use std::process::ExitCode;

use functions::{endpoints, ports, serve};

fn main() -> ExitCode {
    serve("audit_list", |settings| {
        let (kv, run_log) = (ports::kv(settings)?, ports::run_log(settings)?);
        Ok(move |request| {
            let (kv, run_log) = (kv.clone(), run_log.clone());
            async move { endpoints::audit_list::handle(&*kv, &*run_log, request).await }
        })
    })
}
