//! The binary; everything that it can do is in the library.

use std::process::ExitCode;

use clap::Parser as _;
use x402d::command::{CommandLine, run};

#[tokio::main]
async fn main() -> ExitCode {
    match run(CommandLine::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            use std::io::Write as _;
            // The whole chain of causes, each on its line: this is all that the operator sees.
            let mut out = std::io::stderr().lock();
            writeln!(out, "x402d: {error}").ok();
            let mut said = error.to_string();
            let mut cause = error.source();
            while let Some(error) = cause {
                // Some libraries repeat the cause in the error itself.
                if !said.ends_with(&error.to_string()) {
                    writeln!(out, "  because: {error}").ok();
                }
                said = error.to_string();
                cause = error.source();
            }
            ExitCode::FAILURE
        }
    }
}
