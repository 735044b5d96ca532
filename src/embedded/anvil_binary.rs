//! Finds `anvil`: in the search path, else in an npm package.
//!
//! The package's own command is a script that starts the program as its child. The program itself is searched in the files that `npx`
//! installed, so that a signal reaches it and a kill leaves no process behind.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::sync::OnceCell;
use tokio::time::timeout;

use super::error::EmbeddedError;

/// The npm package and its version, pinned, because tests depend on its behaviour.
const PACKAGE: &str = "@foundry-rs/anvil@1.7.1";
/// Enough for a slow download of 15 MB.
const FETCH_LIMIT: Duration = Duration::from_mins(5);

/// The program, looked up once per process: several fetches at once would write to one npm cache.
static FOUND: OnceCell<PathBuf> = OnceCell::const_new();

/// The path of the program itself.
pub(super) async fn find() -> Result<PathBuf, EmbeddedError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    FOUND
        .get_or_try_init(|| async { find_in(&path).await })
        .await
        .cloned()
}

async fn find_in(path: &OsStr) -> Result<PathBuf, EmbeddedError> {
    if let Some(anvil) = program(path, "anvil") {
        return Ok(anvil);
    }
    let npx = program(path, "npx").ok_or(EmbeddedError::AnvilMissing)?;
    let inner_path = fetch(&npx, path).await?;
    let fetched = std::env::split_paths(&inner_path).find_map(|folder| packaged(folder.parent()?));
    fetched.ok_or(EmbeddedError::AnvilUnsupported { package: PACKAGE })
}

/// Lets `npx` install the package, and returns the search path that it gives to a command, which includes the package's folder.
async fn fetch(npx: &Path, path: &OsStr) -> Result<String, EmbeddedError> {
    tracing::info!(package = PACKAGE, "fetching the local chain with npx");
    let mut command = Command::new(npx);
    command
        .arg("--yes")
        .arg(format!("--package={PACKAGE}"))
        .args(["--", "node", "-p", "process.env.PATH"]);
    hide_secrets(&mut command);
    // Fetched from the root folder, so that no project's npm settings or packages apply.
    command
        .env("PATH", path)
        .current_dir("/")
        .stdin(Stdio::null())
        .process_group(0)
        .kill_on_drop(true);
    let late = |_| EmbeddedError::Late {
        what: format!("npx with {PACKAGE}"),
        limit: FETCH_LIMIT,
    };
    let output = timeout(FETCH_LIMIT, command.output())
        .await
        .map_err(late)?
        .map_err(EmbeddedError::io("run npx"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let output = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(EmbeddedError::Failed {
        program: format!("npx with {PACKAGE}"),
        output,
    })
}

/// The program of this platform in a folder of npm packages.
fn packaged(modules: &Path) -> Option<PathBuf> {
    let system = match std::env::consts::OS {
        "macos" => "darwin",
        other => other,
    };
    let machine = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let program = modules.join(format!("@foundry-rs/anvil-{system}-{machine}/bin/anvil"));
    program.is_file().then_some(program)
}

/// A program in a search path. A script of the npm package is replaced by the program behind it.
fn program(path: &OsStr, name: &str) -> Option<PathBuf> {
    let found = std::env::split_paths(path)
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())?;
    let real = std::fs::canonicalize(&found).ok()?;
    if name == "anvil" && real.extension().is_some_and(|extension| extension == "mjs") {
        return packaged(real.parent()?.parent()?.parent()?);
    }
    Some(found)
}

/// npm needs much of the environment, such as proxy settings, but not the variables of x402d, which may be secret.
fn hide_secrets(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let is_own = name.to_string_lossy().starts_with("X402D_") || name == "DATABASE_URL";
        if is_own {
            command.env_remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn missing_anvil_error_names_anvil_npm_and_the_alternative() {
        let message = find_in(OsStr::new("/nonexistent"))
            .await
            .unwrap_err()
            .to_string();
        for part in ["`anvil`", "npm", "X402D_RPC_URL"] {
            assert!(message.contains(part), "{part} is missing in: {message}");
        }
    }

    #[tokio::test]
    async fn found_anvil_is_the_program_and_not_a_script() {
        let found = find().await.unwrap();
        let version = Command::new(&found)
            .arg("--version")
            .env_clear()
            .output()
            .await
            .unwrap();
        assert!(
            String::from_utf8_lossy(&version.stdout).starts_with("anvil"),
            "{}",
            found.display()
        );
    }
}
