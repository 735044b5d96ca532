//! x402d as a command that ends by itself.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Runs x402d with only `variables` in its environment and `toml` as its file, until it ends.
pub(crate) fn run(arguments: &[&str], variables: &[(&str, &str)], toml: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("x402d.toml"), toml).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_x402d"));
    command
        .args(arguments)
        .current_dir(folder.path())
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        .envs(variables.iter().copied());
    command.output().unwrap()
}

/// Runs x402d in a folder without any variable of its own; `input` is typed in.
pub(crate) fn run_in(folder: &Path, arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_x402d"));
    command
        .args(arguments)
        .current_dir(folder)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // It may end without reading.
    drop(stdin.write_all(input.as_bytes()));
    drop(stdin);
    child.wait_with_output().unwrap()
}
