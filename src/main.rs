//! The binary: only the entry point; the commands are in the library.

use std::process::ExitCode;

use clap::Parser as _;
use x402d::command::{CommandLine, for_terminal, run};

#[tokio::main]
async fn main() -> ExitCode {
    match run(CommandLine::parse()).await {
        Ok(code) => code,
        Err(error) => {
            use std::io::Write as _;
            // The whole chain of causes, each on its line: nothing else is shown to the operator.
            let mut out = std::io::stderr().lock();
            writeln!(out, "x402d: {}", for_terminal(&error.to_string())).ok();
            let mut shown = error.to_string();
            let mut cause = error.source();
            while let Some(error) = cause {
                // Some libraries repeat the cause in the error itself.
                if !shown.ends_with(&error.to_string()) {
                    let cause = for_terminal(&error.to_string());
                    writeln!(out, "  because: {cause}").ok();
                }
                shown = error.to_string();
                cause = error.source();
            }
            ExitCode::FAILURE
        }
    }
}
