//! `x402d init`: the file that it writes, and that `doctor` and `serve` work with it.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Output;

use alloy::primitives::{Address, U256};
use serde_json::json;
use tempfile::TempDir;

use crate::support::{Chain, Database, Facilitator, Purchase, new_account, run, run_in};

const PAYEE: Address = Address::repeat_byte(0x5e);

fn text(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr].concat();
    String::from_utf8(both).unwrap()
}

fn written(folder: &Path) -> String {
    std::fs::read_to_string(folder.join("x402d.toml")).unwrap()
}

/// The signer that the command printed, alone in its line.
fn signer(output: &Output) -> Address {
    let said = String::from_utf8(output.stdout.clone()).unwrap();
    let line = said.lines().find_map(|line| line.strip_prefix("  0x"));
    format!("0x{}", line.unwrap()).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_and_serve_work_with_the_written_file() {
    let chain = Chain::start().await;
    let folder = TempDir::new().unwrap();
    let payee = PAYEE.to_string();
    let arguments = ["init", "--yes", "--rpc", chain.url(), "--pay-to", &payee];
    let output = run_in(folder.path(), &arguments, "");
    assert!(output.status.success(), "{}", text(&output));
    let toml = written(folder.path());
    let mode = std::fs::metadata(folder.path().join("x402d.toml")).unwrap();
    assert_eq!(mode.permissions().mode() & 0o777, 0o600);
    let key = toml.split('"').find(|part| part.len() == 66).unwrap();
    assert!(!text(&output).contains(key), "{}", text(&output));
    assert!(
        text(&output).contains("gas for 300 payments"),
        "{}",
        text(&output)
    );

    let signer = signer(&output);
    assert_eq!(chain.transaction_count(signer).await, 0);
    let database = Database::fresh().await;
    let (name, place) = database.variable();
    let file = folder.path().join("x402d.toml");
    let doctor = ["doctor", "--config", file.to_str().unwrap()];
    let environment = [(name, place.as_str()), ("X402D_LISTEN", "127.0.0.1:0")];
    let without_gas = run(&doctor, &environment, "");
    assert!(
        text(&without_gas).contains("has 0 ETH"),
        "{}",
        text(&without_gas)
    );
    let ether = U256::from(10).pow(U256::from(18));
    chain.call("anvil_setBalance", json!([signer, ether])).await;
    let healthy = run(&doctor, &environment, "");
    assert!(healthy.status.success(), "{}", text(&healthy));

    let mut facilitator = Facilitator::new(vec![(name, place)], &toml);
    facilitator.restart(None).await;
    let payer = new_account();
    chain.fund(payer.address(), 1_000_000).await;
    let settled = facilitator
        .settle(&Purchase::new(&payer, PAYEE, 1_000).body())
        .await;
    assert!(settled.succeeded(), "{settled:?}");
    let elsewhere = Purchase::new(&payer, Address::repeat_byte(0x5f), 1_000);
    let refused = facilitator.settle(&elsewhere.body()).await;
    assert!(!refused.succeeded(), "{refused:?}");
    assert_eq!(chain.transaction_count(signer).await, 1);
}

#[test]
fn existing_file_stays_as_it_is() {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("x402d.toml"), "# mine\n").unwrap();
    let arguments = ["init", "--yes", "--rpc", "http://127.0.0.1:9"];
    let output = run_in(folder.path(), &arguments, "");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output).contains("x402d.toml exists"),
        "{}",
        text(&output)
    );
    assert_eq!(written(folder.path()), "# mine\n");
}

#[test]
fn what_is_not_given_is_asked_for() {
    let folder = TempDir::new().unwrap();
    let answers = format!("base\nhttp://127.0.0.1:9/secret\n{PAYEE}\n");
    let output = run_in(folder.path(), &["init"], &answers);
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    for part in [
        "network [base-sepolia]: ",
        "RPC endpoint: ",
        "how much is not known yet",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!said.contains("secret"), "{said}");
    let toml = written(folder.path());
    for part in [
        "[networks.base]\n",
        "127.0.0.1:9/secret",
        &PAYEE.to_string(),
    ] {
        assert!(toml.contains(part), "{part}: {toml}");
    }
}

#[test]
fn nothing_is_written_without_what_is_needed() {
    let payee = PAYEE.to_string();
    let rpc = "http://127.0.0.1:9";
    let cases: [(&[&str], &str); 5] = [
        (&["--yes"], "--rpc"),
        (&["--yes", "--network", "base", "--rpc", rpc], "--pay-to"),
        (
            &[
                "--yes",
                "--network",
                "eip155:424242",
                "--rpc",
                rpc,
                "--pay-to",
                &payee,
            ],
            "no token",
        ),
        (&["--yes", "--rpc", "ws://127.0.0.1:9"], "http or https"),
        (
            &["--yes", "--rpc", rpc, "--signer-keys-file", "missing"],
            "missing: ",
        ),
    ];
    for (arguments, said) in cases {
        let folder = TempDir::new().unwrap();
        let output = run_in(folder.path(), &[&["init"], arguments].concat(), "");
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(text(&output).contains(said), "{}", text(&output));
        assert!(!folder.path().join("x402d.toml").exists());
    }
}
