//! Log output: to stderr, as text on a terminal, as JSON otherwise. And the figures of the process.

pub mod disk;
pub mod metrics;

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::OnceLock;

use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::fmt;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

/// The filter unless `X402D_LOG` is set.
const DEFAULT_FILTER: &str = "info,sqlx=warn";
/// Added to every filter, because these log secrets: the HTTP client and its users name RPC URLs with their keys, and `sqlx_postgres::options`
/// the value of a URL parameter that it does not know, which could be a misspelt password.
const ALWAYS: [&str; 13] = [
    "alloy=warn",
    "alloy_rpc_client=warn",
    "alloy_transport_http=warn",
    "aws_config=warn",
    "aws_runtime=warn",
    "aws_sdk_kms=warn",
    "aws_sigv4=warn",
    "aws_smithy_http_client=warn",
    "aws_smithy_runtime=warn",
    "hyper=warn",
    "hyper_util=warn",
    "reqwest=warn",
    "sqlx_postgres::options=error",
];

/// Lines that wait for a reader of the log that does not keep up. Further ones are dropped, because no payment waits for a log.
const LINES_MAX: usize = 16_384;

static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();

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

/// The thread that writes the log, unless it goes to a file. Whoever drops this waits up to a second for the lines that are not written yet.
#[derive(Debug)]
#[must_use = "nothing is logged after it is dropped"]
pub struct LogWriter {
    _thread: Option<WorkerGuard>,
}

/// Lines that were dropped since the start because the reader of the log did not keep up.
pub fn log_lines_dropped() -> u64 {
    let lines = DROPPED.get().map_or(0, ErrorCounter::dropped_lines);
    u64::try_from(lines).unwrap_or(u64::MAX)
}

fn write_apart(output: impl Write + Send + 'static, lines_max: usize) -> (NonBlocking, LogWriter) {
    let (lines, thread) = NonBlockingBuilder::default()
        .buffered_lines_limit(lines_max)
        .lossy(true)
        .thread_name("x402d-log")
        .finish(output);
    (
        lines,
        LogWriter {
            _thread: Some(thread),
        },
    )
}

/// Starts to log. `filter` is the value of `X402D_LOG`.
///
/// # Errors
/// When `filter` is none.
pub fn begin(filter: Option<&str>) -> Result<LogWriter, InvalidFilter> {
    let mut filter =
        EnvFilter::try_new(filter.unwrap_or(DEFAULT_FILTER)).map_err(|_| InvalidFilter)?;
    for directive in ALWAYS {
        filter = filter.add_directive(directive.parse().map_err(|_| InvalidFilter)?);
    }
    // A file has no reader to wait for.
    let (lines, writer) = if is_file(&std::io::stderr()) {
        let lines = BoxMakeWriter::new(std::io::stderr);
        (lines, LogWriter { _thread: None })
    } else {
        let (lines, writer) = write_apart(std::io::stderr(), LINES_MAX);
        DROPPED.get_or_init(|| lines.error_counter());
        (BoxMakeWriter::new(lines), writer)
    };
    let builder = fmt().with_writer(lines).with_env_filter(filter);
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
    Ok(writer)
}

fn is_file(output: &impl AsFd) -> bool {
    let output = output.as_fd().try_clone_to_owned().map(File::from);
    let found = output.and_then(|output| output.metadata());
    found.is_ok_and(|found| found.is_file())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    /// Takes nothing before it is told to.
    struct Stalled(Receiver<()>, Vec<u8>);

    impl Write for Stalled {
        fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
            self.0.recv().ok();
            self.1.extend_from_slice(line);
            Ok(line.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn stalled_reader_costs_lines_and_no_time() {
        let (reads, stalled) = channel();
        let (mut lines, writer) = write_apart(Stalled(stalled, Vec::new()), 8);
        for _ in 0..100 {
            lines.write_all(b"a line\n").unwrap();
        }
        // One line is under way, and one may be taken before the queue is full.
        let dropped = lines.error_counter().dropped_lines();
        assert!((90..=92).contains(&dropped), "{dropped}");
        drop(reads);
        drop(writer);
    }
}
