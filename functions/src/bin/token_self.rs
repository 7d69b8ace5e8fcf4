//! The Lambda function `token_self`: tells who calls.

use std::process::ExitCode;

use functions::{endpoints, serve};

fn main() -> ExitCode {
    serve("token_self", |_settings| Ok(endpoints::token_self::handle))
}
