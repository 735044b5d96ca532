//! `x402d conformance`: what it says about x402d, about the official reference, and about a facilitator that breaks a rule.

use std::process::Output;

use alloy::hex;
use alloy::primitives::{Address, B256, U256};
use alloy::signers::local::PrivateKeySigner;
use serde_json::{Value, json};
use x402d::embedded::TEST_USDC;

use crate::support::{Chain, Lie, LyingFacilitator, Seller, World, new_account, run};

const PAYEE: Address = Address::repeat_byte(0x5e);
/// Five payments of 1000 units, of which `upto` charges half.
const PAID: u64 = 4_500;

/// Runs the command against a facilitator, paying with `payer`.
fn conformance(url: &str, payer: &PrivateKeySigner, further: &[&str]) -> Output {
    let payee = PAYEE.to_string();
    let arguments = ["conformance", url, "--pay-to", &payee, "--json"];
    let key = hex::encode(payer.to_bytes());
    run(
        &[&arguments[..], further].concat(),
        &[("X402D_BUYER_KEY", &key)],
        "",
    )
}

fn report(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// The names of the checks with this outcome.
fn named<'a>(report: &'a Value, outcome: &str) -> Vec<&'a str> {
    let checks = report["checks"].as_array().unwrap().iter();
    let found = checks.filter(|check| check["outcome"] == outcome);
    found.map(|check| check["name"].as_str().unwrap()).collect()
}

async fn assert_paid(chain: &Chain, amount: u64, transfers: usize) {
    assert_eq!(chain.usdc(PAYEE).await, U256::from(amount));
    let found = chain.transfers_to(TEST_USDC, PAYEE).await;
    assert_eq!(found.len(), transfers);
}

#[tokio::test(flavor = "multi_thread")]
async fn x402d_keeps_every_part() {
    let world = World::new().await;
    let payer = world.payer().await;
    let url = world.facilitator.url();
    let output = conformance(url, &payer, &["--rpc", world.chain.url()]);
    let found = report(&output);
    assert!(output.status.success(), "{found:#}");
    for outcome in ["lacks", "fails", "skipped"] {
        assert_eq!(named(&found, outcome), [""; 0], "{found:#}");
    }
    let kept = named(&found, "ok");
    for check in [
        "supported: upto v2",
        "exact v2: on chain",
        "exact v1: on chain",
        "permit2: on chain",
        "upto: on chain",
        "exact v2: settle again",
        "exact v2: settle twice at once",
        "exact v1: expired",
        "verify: unknown scheme",
        "settle: wrong types",
        "all payments: on chain",
    ] {
        assert!(kept.contains(&check), "{check}: {found:#}");
    }
    assert_paid(&world.chain, PAID, 5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_rpc_a_payer_without_allowance_is_asked_for_one() {
    let world = World::new().await;
    let payer = world.payer().await;
    let output = conformance(world.facilitator.url(), &payer, &[]);
    let found = report(&output);
    assert!(output.status.success(), "{found:#}");
    assert_eq!(named(&found, "lacks"), [""; 0], "{found:#}");
    assert_eq!(
        named(&found, "skipped"),
        ["permit2: settle", "upto: settle"],
        "{found:#}"
    );
    assert_paid(&world.chain, 3_000, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn official_reference_is_told_what_it_lacks() {
    let chain = Chain::start().await;
    let payer = new_account();
    chain.fund(payer.address(), 1_000_000).await;
    let signer = &Chain::signers(1)[0];
    let reference = Seller::reference_facilitator(chain.url(), signer.key).await;
    let output = conformance(&reference.url, &payer, &["--rpc", chain.url()]);
    let found = report(&output);
    assert_eq!(output.status.code(), Some(1), "{found:#}");
    let fails = [
        "verify: unknown scheme",
        "verify: unknown network",
        "verify: wrong types",
        "settle: wrong types",
    ];
    assert_eq!(named(&found, "fails"), fails, "{found:#}");
    // Whether a second transaction is sent as well depends on who reads the chain first.
    let mut lacks = named(&found, "lacks");
    lacks.retain(|name| *name != "exact v2: settle twice at once");
    let expected = [
        "exact v2: settle again",
        "verify: no JSON",
        "settle: no JSON",
    ];
    assert_eq!(lacks, expected, "{found:#}");
    assert_paid(&chain, PAID, 5).await;
}

/// A lie, and the checks that must name it.
const LIES: [(Lie, &[&str]); 4] = [
    (
        |path, status, body| match path {
            "/verify" => (200, json!({"isValid": true, "payer": PAYEE})),
            _ => (status, body),
        },
        &[
            "exact v2: wrong amount",
            "exact v1: expired",
            "verify: no JSON",
        ],
    ),
    (
        |_, status, mut body| {
            if body["success"] == true {
                body["transaction"] = json!(B256::repeat_byte(7));
            }
            (status, body)
        },
        &["exact v2: on chain", "exact v2: settle again"],
    ),
    (
        |path, status, body| match (path, body["errorReason"].as_str()) {
            ("/settle", Some("duplicate_settlement")) => {
                let hash = B256::repeat_byte(7);
                let network = "eip155:84532";
                (
                    200,
                    json!({"success": true, "transaction": hash, "network": network}),
                )
            }
            _ => (status, body),
        },
        &["exact v2: settle again", "exact v2: settle twice at once"],
    ),
    (
        |_, status, body| match status {
            400 => (500, Value::Null),
            _ => (status, body),
        },
        &["verify: no JSON", "settle: no JSON"],
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn broken_rules_are_named() {
    let world = World::new().await;
    for (lie, names) in LIES {
        let liar = LyingFacilitator::before(world.facilitator.url(), lie).await;
        let payer = world.payer().await;
        let output = conformance(&liar.url, &payer, &["--rpc", world.chain.url()]);
        let found = report(&output);
        assert_eq!(output.status.code(), Some(1), "{found:#}");
        let fails = named(&found, "fails");
        for name in names {
            assert!(fails.contains(name), "{name}: {fails:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_reached_fails_and_nothing_is_paid() {
    let nobody = conformance("http://127.0.0.1:9", &new_account(), &[]);
    assert_eq!(nobody.status.code(), Some(1));
    let found = report(&nobody);
    assert_eq!(named(&found, "fails"), ["supported: kinds"], "{found:#}");
    assert_eq!(found["checks"].as_array().unwrap().len(), 1, "{found:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn payer_without_money_is_named_before_anything_is_sent() {
    let chain = Chain::start().await;
    let payer = new_account();
    let output = conformance("http://127.0.0.1:9", &payer, &["--rpc", chain.url()]);
    let said = String::from_utf8(output.stderr).unwrap();
    let needs = format!("{} has 0 USDC and needs 0.006", payer.address());
    assert!(said.contains(&needs), "{said}");
    assert!(output.stdout.is_empty());
}

#[test]
fn main_networks_need_a_payee_and_no_key_is_shown() {
    let payer = new_account();
    let key = hex::encode(payer.to_bytes());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    std::fs::write(&file, &key).unwrap();
    let arguments = ["conformance", "http://127.0.0.1:9", "--network", "base"];
    let by_file = ["--key-file", file.to_str().unwrap()];
    let refused = run(&[&arguments[..], &by_file].concat(), &[], "");
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success());
    assert!(said.contains("up to 0.006 USDC of real money"), "{said}");
    assert!(said.contains("--pay-to"), "{said}");

    let named = ["--pay-to", &PAYEE.to_string()];
    let started = run(&[&arguments[..], &by_file, &named].concat(), &[], "");
    let said = [started.stdout, started.stderr].concat();
    let said = String::from_utf8(said).unwrap();
    let spends = format!("pays at most 0.006 USDC on base from {}", payer.address());
    assert!(said.contains(&spends), "{said}");
    assert!(said.contains("FAILS  supported: kinds"), "{said}");

    let no_key = [("X402D_BUYER_KEY", "0xsecret")];
    let refused = run(&[&arguments[..], &named].concat(), &no_key, "");
    let wrong = String::from_utf8(refused.stderr).unwrap();
    assert!(wrong.contains("expected a private key"), "{wrong}");
    for text in [said, wrong] {
        assert!(!text.contains(&key) && !text.contains("secret"), "{text}");
    }
}
