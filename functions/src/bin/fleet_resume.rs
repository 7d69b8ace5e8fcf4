//! The Lambda function `fleet_resume`: lifts the fleet's pause.

use std::process::ExitCode;

use common::clock::SystemClock;
use functions::{endpoints, ports, serve};

fn main() -> ExitCode {
    serve("fleet_resume", |settings| {
        let kv = ports::kv(settings)?;
        Ok(move |request| {
            let kv = kv.clone();
            async move { endpoints::fleet_resume::handle(&*kv, &SystemClock, request).await }
        })
    })
}
