//! x402d as a command that ends by itself.

use std::process::{Command, Output};

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
