//! Log output: to stderr, as text on a terminal, as JSON otherwise. And the figures of the process.

pub mod metrics;

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::fmt;

/// The filter unless `X402D_LOG` is set.
const DEFAULT_FILTER: &str = "info,sqlx=warn";
/// Added to every filter, because these log secrets: the HTTP client and its users name RPC URLs with their keys, and `sqlx_postgres::options`
/// the value of a URL parameter that it does not know, which could be a misspelt password.
const ALWAYS: [&str; 7] = [
    "alloy=warn",
    "alloy_rpc_client=warn",
    "alloy_transport_http=warn",
    "hyper=warn",
    "hyper_util=warn",
    "reqwest=warn",
    "sqlx_postgres::options=error",
];

/// An error with all its causes, on one line: for log lines, never for responses. Some libraries repeat the cause in the error itself; it
/// is written once.
pub fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let cause_text = error.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        cause = error.source();
    }
    text
}

/// `X402D_LOG` is not a filter.
#[derive(Debug, thiserror::Error)]
#[error("X402D_LOG: expected a filter such as info or x402d=debug,warn")]
pub struct InvalidFilter;

/// Starts to log. `filter` is the value of `X402D_LOG`.
pub fn begin(filter: Option<&str>) -> Result<(), InvalidFilter> {
    let mut filter =
        EnvFilter::try_new(filter.unwrap_or(DEFAULT_FILTER)).map_err(|_| InvalidFilter)?;
    for directive in ALWAYS {
        filter = filter.add_directive(directive.parse().map_err(|_| InvalidFilter)?);
    }
    let builder = fmt().with_writer(std::io::stderr).with_env_filter(filter);
    let begun = if std::io::stderr().is_terminal() {
        builder.with_target(false).try_init()
    } else {
        builder
            .json()
            .flatten_event(true)
            .with_span_list(false)
            .try_init()
    };
    // An application that embeds the service may have set a logger already.
    begun.ok();
    Ok(())
}
