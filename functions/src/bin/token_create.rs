//! The Lambda function `token_create`: makes a token.

use std::process::ExitCode;

use common::clock::SystemClock;
use functions::{endpoints, ports, serve};

fn main() -> ExitCode {
    serve("token_create", |settings| {
        let kv = ports::kv(settings)?;
        Ok(move |request| {
            let kv = kv.clone();
            async move { endpoints::token_create::handle(&*kv, &SystemClock, request).await }
        })
    })
}
