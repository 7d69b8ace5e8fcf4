//! The Lambda function `fleet_status`: tells whether the fleet is paused.

use std::process::ExitCode;

use functions::{endpoints, ports, serve};

fn main() -> ExitCode {
    serve("fleet_status", |settings| {
        let kv = ports::kv(settings)?;
        Ok(move |request| {
            let kv = kv.clone();
            async move { endpoints::fleet_status::handle(&*kv, request).await }
        })
    })
}
