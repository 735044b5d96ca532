//! Sellers and buyers on unmodified official packages, as child processes (`tests/interop`).

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::OnceCell;
use tokio::time::timeout;

/// A paid request waits for a block, and an interpreter starts slowly on a busy machine.
const LIMIT: Duration = Duration::from_secs(90);

/// A program of `tests/interop`, not started yet.
pub(crate) fn program(file: &str) -> Command {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/interop");
    let python = Path::new(file).extension() == Some("py".as_ref());
    let interpreter = if python {
        folder.join(".venv/bin/python")
    } else {
        PathBuf::from("node")
    };
    let mut command = Command::new(interpreter);
    command
        .arg(folder.join(file))
        .env_clear()
        .kill_on_drop(true);
    command.envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    command
}

/// A running seller; killed on drop.
pub(crate) struct Seller {
    pub(crate) url: String,
    child: Child,
}

impl Seller {
    /// Starts a seller of `tests/interop` that is paid at `pay_to` through `facilitator`.
    pub(crate) async fn start(file: &str, facilitator: &str, pay_to: &str) -> Self {
        Self::start_with(file, facilitator, pay_to, &[]).await
    }

    /// The same with additional environment variables.
    pub(crate) async fn start_with(
        file: &str,
        facilitator: &str,
        pay_to: &str,
        variables: &[(&str, &str)],
    ) -> Self {
        let mut command = program(file);
        command
            .env("FACILITATOR_URL", facilitator)
            .env("PAY_TO", pay_to)
            .envs(variables.iter().copied());
        Self::run(command, file).await
    }

    /// Starts the facilitator of the official packages on this chain.
    pub(crate) async fn reference_facilitator(rpc_url: &str, signer_key: &str) -> Self {
        let file = "reference-facilitator.mjs";
        let mut command = program(file);
        command
            .env("RPC_URL", rpc_url)
            .env("SIGNER_KEY", signer_key);
        Self::run(command, file).await
    }

    /// Starts `examples/seller.rs` with further environment variables.
    pub(crate) async fn example(
        facilitator: &str,
        pay_to: &str,
        variables: &[(&str, &str)],
    ) -> Self {
        let variables = [
            &[("FACILITATOR_URL", facilitator), ("PAY_TO", pay_to)],
            variables,
        ];
        Self::of_example("seller", &variables.concat()).await
    }

    /// Starts an example that sells, with these environment variables alone.
    pub(crate) async fn of_example(name: &str, variables: &[(&str, &str)]) -> Self {
        let mut command = Command::new(example(name).await);
        command
            .env_clear()
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true);
        Self::run(command, name).await
    }

    async fn run(mut command: Command, file: &str) -> Self {
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{file}: {error}; scripts/test installs what it needs"));
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = timeout(LIMIT, lines.next_line())
            .await
            .expect("the seller starts in time")
            .unwrap();
        let line: Value =
            serde_json::from_str(&line.expect("the seller says where it listens")).unwrap();
        Self {
            url: line["listening"].as_str().unwrap().to_owned(),
            child,
        }
    }

    /// `kill -9`.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }
}

/// The path of an example. The first call of a run builds all of them: a run of one test target builds none.
pub(crate) async fn example(name: &str) -> PathBuf {
    static BUILT: OnceCell<()> = OnceCell::const_new();
    BUILT.get_or_init(build_examples).await;
    let tests = std::env::current_exe().unwrap();
    let target = tests.parent().unwrap().parent().unwrap();
    target.join("examples").join(name)
}

async fn build_examples() {
    let mut build = Command::new(env!("CARGO"));
    build
        .args(["build", "--quiet", "--locked", "--features", "failpoints"])
        .arg("--examples")
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    // Build scripts of dependencies watch what cargo sets for a test: with that in place, they and all that is built on them are built anew.
    for (name, _) in std::env::vars() {
        if name.starts_with("CARGO_MANIFEST") || name.starts_with("CARGO_PKG") {
            build.env_remove(name);
        }
    }
    assert!(build.status().await.unwrap().success());
}

/// A buyer's report.
#[derive(Debug)]
pub(crate) struct BuyerReport {
    pub(crate) status: u64,
    pub(crate) body: Value,
    /// The decoded result header.
    pub(crate) payment: Value,
    /// The payment header that was sent.
    pub(crate) header: String,
    /// The whole report.
    pub(crate) report: Value,
}

/// Runs a buyer of `tests/interop`; with `replayed` it presents that header and signs nothing.
pub(crate) async fn buy(file: &str, url: &str, key: &str, replayed: Option<&str>) -> BuyerReport {
    buy_with(file, url, key, replayed, &[]).await
}

/// The same with additional environment variables.
pub(crate) async fn buy_with(
    file: &str,
    url: &str,
    key: &str,
    replayed: Option<&str>,
    variables: &[(&str, &str)],
) -> BuyerReport {
    let mut command = program(file);
    command.envs(variables.iter().copied());
    command
        .arg(url)
        .env("PRIVATE_KEY", key)
        .envs(replayed.map(|header| ("RAW_HEADER", header)));
    let output = timeout(LIMIT, command.output())
        .await
        .expect("the buyer ends in time")
        .unwrap();
    assert!(
        output.status.success(),
        "{file} ended with {}",
        output.status
    );
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    BuyerReport {
        status: report["status"].as_u64().unwrap(),
        body: report["body"].clone(),
        payment: report["payment"].clone(),
        header: report["header"].as_str().unwrap_or_default().to_owned(),
        report,
    }
}
