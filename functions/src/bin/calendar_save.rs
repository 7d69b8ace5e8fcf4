//! The Lambda function `calendar_save`: stores a calendar.

use std::process::ExitCode;

use common::clock::SystemClock;
use functions::{endpoints, ports, serve};

fn main() -> ExitCode {
    serve("calendar_save", |settings| {
        let kv = ports::kv(settings)?;
        Ok(move |request| {
            let kv = kv.clone();
            async move { endpoints::calendar_save::handle(&*kv, &SystemClock, request).await }
        })
    })
}
