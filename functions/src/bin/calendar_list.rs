//! The Lambda function `calendar_list`: lists the calendars.

use std::process::ExitCode;

use functions::{endpoints, ports, serve};

fn main() -> ExitCode {
    serve("calendar_list", |settings| {
        let kv = ports::kv(settings)?;
        Ok(move |request| {
            let kv = kv.clone();
            async move { endpoints::calendar_list::handle(&*kv, request).await }
        })
    })
}
