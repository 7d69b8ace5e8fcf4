//! The Lambda function `fleet_pause`: pauses the fleet.

use std::process::ExitCode;

use common::clock::SystemClock;
use functions::{endpoints, ports, serve};

fn main() -> ExitCode {
    serve("fleet_pause", |settings| {
        let kv = ports::kv(settings)?;
        Ok(move |request| {
            let kv = kv.clone();
            async move { endpoints::fleet_pause::handle(&*kv, &SystemClock, request).await }
        })
    })
}
