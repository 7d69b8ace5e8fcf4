//! The Lambda function `calendar_delete`: deletes a calendar.

use std::process::ExitCode;

use common::clock::SystemClock;
use functions::{endpoints, ports, serve};

fn main() -> ExitCode {
    serve("calendar_delete", |settings| {
        let kv = ports::kv(settings)?;
        Ok(move |request| {
            let kv = kv.clone();
            async move { endpoints::calendar_delete::handle(&*kv, &SystemClock, request).await }
        })
    })
}
