//! Log lines: to stderr, as text on a terminal, as JSON otherwise.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::fmt;

/// What is logged unless `X402D_LOG` says otherwise. Of a parameter that it does not know, sqlx would show the value, and a misspelt
/// password is still a password.
const DEFAULT_FILTER: &str =
    "info,sqlx=warn,sqlx_postgres::options=error,hyper=warn,alloy=warn,reqwest=warn";

/// An error with all its causes, on one line: what a log line needs, and what no answer may hold. Some libraries repeat the cause in the
/// error itself; it is written once.
pub fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.ends_with(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}

/// The filter cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("X402D_LOG: expected a filter such as info or x402d=debug,warn")]
pub struct InvalidFilter;

/// Begins to log. `filter` is the value of `X402D_LOG`.
///
/// # Errors
/// [`InvalidFilter`] when the filter cannot be read.
pub fn begin(filter: Option<&str>) -> Result<(), InvalidFilter> {
    let filter = EnvFilter::try_new(filter.unwrap_or(DEFAULT_FILTER)).map_err(|_| InvalidFilter)?;
    let builder = fmt().with_writer(std::io::stderr).with_env_filter(filter);
    let begun = if std::io::stderr().is_terminal() {
        builder.with_target(false).try_init()
    } else {
        builder.json().flatten_event(true).try_init()
    };
    // Somebody who embeds the service may have begun to log already.
    begun.ok();
    Ok(())
}
