//! The Lambda function `console`: the web page.

use std::process::ExitCode;

use functions::{endpoints, serve};

fn main() -> ExitCode {
    serve("console", |_settings| Ok(|request| std::future::ready(endpoints::console::handle(request))))
}
