//! The Lambda function `fleet_settings`: tells and sets the fleet's defaults for jobs.

use std::process::ExitCode;

use common::clock::SystemClock;
use functions::{endpoints, ports, serve};

fn main() -> ExitCode {
    serve("fleet_settings", |settings| {
        let kv = ports::kv(settings)?;
        Ok(move |request| {
            let kv = kv.clone();
            async move { endpoints::fleet_settings::handle(&*kv, &SystemClock, request).await }
        })
    })
}
