//! Log lines: an event and its fields on standard error, as text for people or, in Lambda, as one JSON object each.

mod json;

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config;
use json::JsonLines;

/// Starts logging for a program; lines go to standard error. `RUST_LOG` filters, else `AWS_LAMBDA_LOG_LEVEL`, else it is `info`. In a Lambda
/// function, and wherever `AWS_LAMBDA_LOG_FORMAT` is `JSON`, lines are JSON, panics too.
pub fn init() {
    let lambda = config::lambda_log();
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_unset| EnvFilter::new(level(lambda.level.as_deref().unwrap_or_default())));
    // A second call (tests) keeps the first subscriber.
    if lambda.json {
        let lines = JsonLines::new(std::io::stderr);
        let _already = tracing_subscriber::registry().with(filter).with(lines).try_init();
        std::panic::set_hook(Box::new(log_panic));
    } else {
        let _already = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .try_init();
    }
}

/// Lambda's names of levels; what is none of them is the default.
fn level(name: &str) -> &'static str {
    match name.to_ascii_uppercase().as_str() {
        "TRACE" => "trace",
        "DEBUG" => "debug",
        "WARN" => "warn",
        "ERROR" | "FATAL" => "error",
        _ => "info",
    }
}

/// A panic as a line among the others: it has the request's id then, and is one event for whoever collects them.
fn log_panic(panic: &std::panic::PanicHookInfo<'_>) {
    let location = panic.location().map(ToString::to_string);
    let why = panic.payload_as_str().unwrap_or("no text");
    tracing::error!(location, why, "panicked");
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_panic_is_a_line_among_the_others() {
        let lines = super::json::tests::lines(|| {
            let span = tracing::error_span!("request", requestId = "r-1");
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(super::log_panic));
            let panicked = span.in_scope(|| std::panic::catch_unwind(|| panic!("a test's {}", "own")));
            std::panic::set_hook(before);
            assert!(panicked.is_err());
        });
        let line = &lines[0];
        assert_eq!((&line["level"], &line["why"]), (&"ERROR".into(), &"a test's own".into()), "{line}");
        assert_eq!(line["requestId"], "r-1");
        assert!(line["location"].as_str().is_some_and(|at| at.contains("logging/mod.rs:")), "{line}");
    }

    #[test]
    fn lambdas_levels_are_understood() {
        let rows = [("DEBUG", "debug"), ("Warn", "warn"), ("FATAL", "error"), ("", "info"), ("loud", "info")];
        for (name, level) in rows {
            assert_eq!(super::level(name), level, "{name}");
        }
    }
}
