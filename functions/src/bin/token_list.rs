//! The Lambda function `token_list`: lists the tokens.

use std::process::ExitCode;

use functions::{endpoints, ports, serve};

fn main() -> ExitCode {
    serve("token_list", |settings| {
        let kv = ports::kv(settings)?;
        Ok(move |request| {
            let kv = kv.clone();
            async move { endpoints::token_list::handle(&*kv, request).await }
        })
    })
}
