//! The Lambda function `token_revoke`: revokes a token.

use std::process::ExitCode;

use common::clock::SystemClock;
use functions::{endpoints, ports, serve};

fn main() -> ExitCode {
    serve("token_revoke", |settings| {
        let kv = ports::kv(settings)?;
        Ok(move |request| {
            let kv = kv.clone();
            async move { endpoints::token_revoke::handle(&*kv, &SystemClock, request).await }
        })
    })
}
