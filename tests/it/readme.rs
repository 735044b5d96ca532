//! The sellers of `docs/sellers.md`, run as printed; the README shows the first of them.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use alloy::primitives::{Address, U256};
use tempfile::TempDir;
use tokio::process::Command;
use x402d::embedded::{LocalChain, TEST_USDC};

use crate::support::{World, buy, eventually, example, free_port};

const PAYEE: Address = Address::repeat_byte(0x4e);

/// The fenced block of the sellers' page whose first line begins with `title`.
fn snippet(title: &str) -> String {
    snippet_of("docs/sellers.md", title)
}

/// The fenced block of a page whose first line begins with `title`.
fn snippet_of(page: &str, title: &str) -> String {
    let text = std::fs::read_to_string(root().join(page)).unwrap();
    let mut blocks = text
        .split("\n```")
        .filter_map(|block| block.split_once('\n'));
    let found = blocks.find(|(_, text)| text.starts_with(title));
    found
        .unwrap_or_else(|| panic!("{page} has no {title}"))
        .1
        .to_owned()
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Runs a seller and buys its report once.
async fn assert_sells(mut seller: Command, buyer_program: &str) {
    let world = World::new().await;
    let buyer = &LocalChain::funded_keys()[9];
    world.chain.fund(buyer.address, 1_000_000).await;
    let port = free_port();
    let path = std::env::var_os("PATH").map(|path| ("PATH", path));
    seller
        .env_clear()
        .envs(path)
        // With a trailing slash, as people write it.
        .env("FACILITATOR_URL", format!("{}/", world.facilitator.url()))
        .env("PAY_TO", PAYEE.to_string())
        .env("PORT", port.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true);
    let _running = seller.spawn().unwrap();
    let url = format!("http://127.0.0.1:{port}/report");
    eventually("the seller", Duration::from_mins(1), async || {
        let asked = reqwest::get(&url).await.ok()?;
        (asked.status() == 402).then_some(())
    })
    .await;
    let bought = buy(buyer_program, &url, buyer.key, None).await;
    assert_eq!(
        (bought.status, &bought.payment["success"]),
        (200, &true.into()),
        "{bought:?}"
    );
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(10_000));
    assert_eq!(world.chain.transfers_to(TEST_USDC, PAYEE).await.len(), 1);
}

/// A folder with the snippet, beside the installed packages.
fn write_snippet(file: &str, text: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let packages = root().join("tests/interop/node_modules");
    std::os::unix::fs::symlink(packages, folder.path().join("node_modules")).unwrap();
    let path = folder.path().join(file);
    std::fs::write(&path, text).unwrap();
    (folder, path)
}

fn run(program: impl AsRef<Path>, file: &Path) -> Command {
    let mut command = Command::new(program.as_ref());
    command.arg(file);
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn javascript_seller_sells() {
    let (_folder, file) = write_snippet("seller.mjs", &snippet("// seller.mjs"));
    assert_sells(run("node", &file), "buyer_v2.mjs").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn javascript_v1_seller_sells() {
    let (_folder, file) = write_snippet("seller_v1.mjs", &snippet("// seller_v1.mjs"));
    assert_sells(run("node", &file), "buyer_v1.mjs").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn python_seller_sells() {
    let (_folder, file) = write_snippet("seller.py", &snippet("# seller.py"));
    let python = root().join("tests/interop/.venv/bin/python");
    assert_sells(run(python, &file), "buyer_v2.mjs").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rust_seller_sells() {
    let shown = snippet("//! The seller of the README");
    let compiled = std::fs::read_to_string(root().join("examples/quickstart.rs")).unwrap();
    assert_eq!(
        shown.trim_end(),
        compiled.trim_end(),
        "docs/sellers.md and examples/quickstart.rs"
    );
    assert_sells(Command::new(example("quickstart").await), "buyer_v2.mjs").await;
}

#[test]
fn readme_shows_the_first_seller() {
    let title = "// seller.mjs";
    assert_eq!(snippet_of("README.md", title), snippet(title));
}

#[test]
fn go_seller_names_the_same_report_and_facilitator() {
    // The tests have no Go toolchain: the snippet is only compared with the others.
    let go = snippet("// seller.go");
    for part in [
        "FACILITATOR_URL",
        "PAY_TO",
        "GET /report",
        "eip155:84532",
        "$0.01",
        "NewExactEvmScheme",
    ] {
        assert!(go.contains(part), "{part}");
    }
}
