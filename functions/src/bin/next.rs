//! The Lambda function `next`: tells what an expression means and when it fires.

use std::process::ExitCode;

use common::clock::SystemClock;
use functions::{endpoints, ports, serve};

fn main() -> ExitCode {
    serve("next", |settings| {
        let kv = ports::kv(settings)?;
        Ok(move |request| {
            let kv = kv.clone();
            async move { endpoints::next::handle(&*kv, &SystemClock, request).await }
        })
    })
}
