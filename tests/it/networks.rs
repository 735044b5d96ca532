//! Networks and tokens: the printed table, and configurations that the chain contradicts.

use std::process::Output;
use std::time::Duration;

use alloy::primitives::{Address, address};
use serde_json::{Value, json};
use tokio::process::Command;
use x402d::embedded::TEST_USDC;

use crate::support::{Chain, Database, Facilitator, Fault, Proxy, SECRET, eventually, run};

const KEY: &str = "0x59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d";
const MULTICALL3: Address = address!("cA11bde05977b3631167028862bE2a173976CA11");
const NOTHING: Address = Address::repeat_byte(0xaa);
/// A contract that reports six decimals and reverts every other call.
const DECIMALS_ONLY: Address = Address::repeat_byte(0x3d);
const DECIMALS_ONLY_CODE: &str = "0x60003560e01c63313ce56714601357600080fd5b600660005260206000f3";

/// One token in `x402d.toml`.
fn token(address: Address, name: &str, decimals: u8, further: &str) -> String {
    format!(
        "[[networks.base-sepolia.assets]]\naddress = \"{address}\"\nname = \"{name}\"\nversion = \"2\"\ndecimals = {decimals}\n{further}\n"
    )
}

/// Environment variables of a network.
fn network_variables<'a>(network: &'a str, url: &'a str) -> [(&'a str, &'a str); 3] {
    [
        ("X402D_NETWORK", network),
        ("X402D_RPC_URL", url),
        ("X402D_SIGNER_KEYS", KEY),
    ]
}

/// Runs `x402d networks --check` on a network with these tokens.
fn run_check(network: &str, url: &str, toml: &str) -> Output {
    run(
        &["networks", "--check"],
        &network_variables(network, url),
        toml,
    )
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    assert!(!output.status.success());
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Configurations that the chain contradicts: network, file, and expected messages.
fn contradictions() -> Vec<(&'static str, String, [&'static str; 3])> {
    let silent = [
        "DOMAIN_SEPARATOR",
        "transfer_method = \"permit2\"",
        "eip2612 = false",
    ];
    let by_permit2 = "transfer_method = \"permit2\"\neip2612 = true";
    vec![
        (
            "avalanche-fuji",
            String::new(),
            [
                "serves chain 84532",
                "configured is chain 43113",
                "RPC URL number 1",
            ],
        ),
        (
            "base-sepolia",
            token(TEST_USDC, "USD Coin", 6, ""),
            [
                "EIP-712",
                "name \"USD Coin\"",
                "itself says name \"USDC\" and version \"2\"",
            ],
        ),
        (
            "base-sepolia",
            token(TEST_USDC, "USDC", 18, ""),
            ["has 6 decimals", "configured are 18", "correct assets"],
        ),
        (
            "base-sepolia",
            token(NOTHING, "USDC", 6, ""),
            ["no contract", "correct assets", "RPC URL"],
        ),
        (
            "base-sepolia",
            token(MULTICALL3, "USDC", 6, ""),
            ["how many decimals", "every token", "correct assets"],
        ),
        ("base-sepolia", token(DECIMALS_ONLY, "USDC", 6, ""), silent),
        (
            "base-sepolia",
            token(DECIMALS_ONLY, "USDC", 6, by_permit2),
            silent,
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn config_contradicted_by_the_chain_is_rejected() {
    let (chain, database) = (Chain::start().await, Database::fresh().await);
    chain
        .call("anvil_setCode", json!([DECIMALS_ONLY, DECIMALS_ONLY_CODE]))
        .await;
    let (variable, place) = database.variable();
    for (network, toml, telling) in contradictions() {
        let serving = [("X402D_LISTEN", "127.0.0.1:0"), (variable, place.as_str())];
        let serving = [&network_variables(network, chain.url())[..], &serving].concat();
        let said = stderr(&run(&["serve"], &serving, &toml));
        let found = run_check(network, chain.url(), &toml);
        assert!(stderr(&found).contains("1 of 1 networks"), "{found:?}");
        let found = stdout(&found);
        let wrong = found.lines().find(|line| line.contains("WRONG"));
        let wrong = wrong.unwrap_or_else(|| panic!("{found}"));
        for text in telling {
            assert!(said.contains(text), "{text} is missing in {said}");
            assert!(wrong.contains(text), "{text} is missing in {wrong}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn check_reports_each_matching_fact() {
    let chain = Chain::start().await;
    chain
        .call("anvil_setCode", json!([DECIMALS_ONLY, DECIMALS_ONLY_CODE]))
        .await;
    let output = run_check("base-sepolia", chain.url(), "");
    let text = stdout(&output);
    assert!(output.status.success(), "{output:?}");
    let usdc = TEST_USDC.to_checksum(None);
    for (about, says) in [
        ("eip155:84532", "Base Sepolia, confirmations 1"),
        ("ok       chain", "chain id 84532"),
        (
            usdc.as_str(),
            "code, 6 decimals, EIP-712 domain \"USDC\" \"2\"; eip3009, eip2612",
        ),
        ("ok       signer", "a plain account"),
        ("ok       contract", "Multicall3"),
        ("0x000000000022D473030F116dDEE9F6B43aC78BA3", "Permit2"),
        (
            "0x402085c248EeA27D92E8b30b2C58ed07f9E20001",
            "x402ExactPermit2Proxy",
        ),
        (
            "0x4020A4f3b7b90ccA423B9fabCc0CE57C6C240002",
            "x402UptoPermit2Proxy",
        ),
    ] {
        let found = |line: &str| line.contains(about) && line.contains(says);
        assert!(
            text.lines().any(found),
            "{about} {says} is missing in {text}"
        );
    }

    // By Permit2 nothing is signed under this token's own EIP-712 domain.
    let by_permit2 = token(DECIMALS_ONLY, "USDC", 6, "transfer_method = \"permit2\"");
    let output = run_check("base-sepolia", chain.url(), &by_permit2);
    assert!(output.status.success(), "{output:?}");
    assert!(
        stdout(&output).contains("code, 6 decimals; permit2"),
        "{output:?}"
    );

    // Only a token that transfers by Permit2 needs the proxy.
    let proxy = "0x402085c248EeA27D92E8b30b2C58ed07f9E20001";
    chain.call("anvil_setCode", json!([proxy, "0x"])).await;
    let arguments = ["networks", "--check", "--json"];
    let variables = network_variables("base-sepolia", chain.url());
    let output = run(&arguments, &variables, "");
    assert!(output.status.success(), "{output:?}");
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let findings = found["networks"][0]["findings"].as_array().unwrap();
    let outcome = |address: &str| {
        let finding = findings
            .iter()
            .find(|finding| finding["address"] == address);
        finding.unwrap()["outcome"].clone()
    };
    assert_eq!(outcome(proxy), "missing");
    assert_eq!(outcome(&usdc), "agrees");
    let output = run(&arguments, &variables, &by_permit2);
    assert!(stderr(&output).contains("1 of 1"), "{output:?}");
    assert!(stdout(&output).contains("moves by Permit2"), "{output:?}");

    // A signer that cannot pay for gas settles nothing.
    let signer = findings.iter().find(|finding| finding["about"] == "signer");
    let signer = &signer.unwrap()["address"];
    chain.call("anvil_setBalance", json!([signer, "0x0"])).await;
    let output = run_check("base-sepolia", chain.url(), "");
    assert!(stderr(&output).contains("1 of 1"), "{output:?}");
    let text = stdout(&output);
    let line = text.lines().find(|line| line.contains("WRONG")).unwrap();
    assert!(
        line.contains("has 0 ETH, and a payment costs about"),
        "{line}"
    );
}

/// `serve` tolerates an endpoint that is down; the check reports it.
#[tokio::test(flavor = "multi_thread")]
async fn each_of_several_rpc_urls_is_checked() {
    let chain = Chain::start().await;
    let urls = format!("{},http://127.0.0.1:9/secret-path", chain.url());
    let output = run_check("base-sepolia", &urls, "");
    assert!(stderr(&output).contains("1 of 1"), "{output:?}");
    let text = stdout(&output);
    let line = text.lines().find(|line| line.contains("UNKNOWN"));
    let line = line.unwrap_or_else(|| panic!("{text}"));
    assert!(line.contains("RPC URL number 2"), "{line}");
    assert!(!text.contains("secret-path"), "{text}");
    assert!(text.contains("ok       signer"), "{text}");
}

#[test]
fn silent_rpc_fails_the_check_without_showing_its_url() {
    let url = "http://127.0.0.1:9/secret-path";
    let output = run_check("base-sepolia", url, "");
    let text = stdout(&output) + &stderr(&output);
    assert!(
        text.contains("UNKNOWN") && text.contains("cannot be reached"),
        "{text}"
    );
    assert!(
        !text.contains("secret-path") && !text.contains(&KEY[2..]),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn rpc_returning_with_another_token_is_not_served() {
    let (chain, database) = (Chain::start().await, Database::fresh().await);
    let proxy = Proxy::before(chain.url()).await;
    proxy.all(Fault::Unavailable);
    let variables = vec![
        database.variable(),
        ("X402D_NETWORK", "base-sepolia".to_owned()),
        ("X402D_RPC_URL", proxy.url()),
        ("X402D_SIGNER_KEYS", KEY.to_owned()),
    ];
    let toml = token(TEST_USDC, "USDC", 18, "");
    let mut facilitator = Facilitator::new(variables, &toml);
    facilitator.spawn(None).await;
    assert!(!facilitator.log().contains("decimals"));
    proxy.all(Fault::None);
    eventually("a complaint", Duration::from_secs(20), async || {
        let log = facilitator.log();
        let complaint = log.lines().find(|line| line.contains("has 6 decimals"))?;
        assert!(complaint.contains("ERROR"), "{complaint}");
        Some(())
    })
    .await;
    assert_eq!(facilitator.get("/readyz").await.status, 503);
    assert!(!facilitator.log().contains(SECRET));
}

#[test]
fn table_shows_every_network_with_its_tokens() {
    let shown = run(&["networks"], &[], "");
    assert!(shown.status.success(), "{shown:?}");
    let text = stdout(&shown);
    for parts in [
        &[
            "base ",
            "eip155:8453 ",
            "Base ",
            "main",
            "ETH",
            "2 s",
            "USDC",
        ][..],
        &["base-sepolia ", "eip155:84532 ", "Base Sepolia", "test"],
        &["arbitrum ", "eip155:42161 ", "Arbitrum One", "250 ms"],
        &["polygon ", "eip155:137 ", "POL", "2 s", " 2 "],
        &["megaeth ", "eip155:4326 ", "MegaUSD"],
        &["local ", "eip155:31337 ", "Local chain", "-"],
    ] {
        let found = |line: &str| parts.iter().all(|part| line.contains(part));
        assert!(text.lines().any(found), "{parts:?} is missing in {text}");
    }
    let shown = run(&["networks", "--json"], &[], "");
    let table: Value = serde_json::from_slice(&shown.stdout).unwrap();
    let networks = table["networks"].as_array().unwrap();
    let base = networks.iter().find(|row| row["network"] == "eip155:8453");
    let base = base.unwrap();
    assert_eq!(base["v1Name"], "base");
    assert_eq!(base["confirmations"], 1);
    assert_eq!(base["blockTimeMs"], 2000);
    assert_eq!(base["nativeSymbol"], "ETH");
    assert_eq!(base["assets"][0]["transferMethod"], "eip3009");
}

#[test]
fn one_network_is_shown_with_its_names_and_tokens() {
    for (network, parts) in [
        (
            "base",
            &[
                "USDC",
                "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913",
                "6",
                "eip3009",
                "\"USD Coin\" 2",
            ][..],
        ),
        (
            "eip155:4326",
            &[
                "MegaUSD",
                "0xFAfDdbb3FC7688494971a79cc65DCa3EF82079E7",
                "18",
                "permit2",
                "yes",
            ],
        ),
        (
            "avalanche-fuji",
            &[
                "USDC",
                "0x5425890298aed601595a70AB815c96711a31Bc65",
                "eip3009",
                "no",
            ],
        ),
        ("base", &["explorer", "https://basescan.org"]),
        ("arbitrum-one", &["names", "arbitrum, arbitrum-one"]),
    ] {
        let shown = run(&["networks", network], &[], "");
        let text = stdout(&shown);
        let found = |line: &str| parts.iter().all(|part| line.contains(part));
        assert!(text.lines().any(found), "{parts:?} is missing in {text}");
    }
    let unknown = stderr(&run(&["networks", "eip155:7"], &[], ""));
    assert!(unknown.contains("is not in the table"), "{unknown}");
}

/// SDK buyers pay by default with tokens of the SDK's own table, so a difference between the tables must be noticed.
#[tokio::test(flavor = "multi_thread")]
async fn table_marks_exactly_the_sdk_default_tokens() {
    let script =
        "import { DEFAULT_ASSETS } from '@x402/evm'; console.log(JSON.stringify(DEFAULT_ASSETS))";
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop");
    let mut command = Command::new("node");
    command.args(["--input-type=module", "--eval", script]);
    let output = command.current_dir(folder).output().await.unwrap();
    let theirs: Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut expected = Vec::new();
    for (network, assets) in theirs.as_object().unwrap() {
        for asset in assets.as_array().unwrap() {
            let method = asset.get("assetTransferMethod");
            let method = method.and_then(Value::as_str).unwrap_or("eip3009");
            expected.push(json!([
                network,
                asset["asset"].as_str().unwrap().to_lowercase(),
                asset["symbol"],
                asset["name"],
                asset["version"],
                asset["decimals"],
                method,
                // The SDK sets it only for tokens that transfer by Permit2.
                method == "permit2" && asset["supportsEip2612"] == true,
            ]));
        }
    }
    let shown = run(&["networks", "--json"], &[], "");
    let table: Value = serde_json::from_slice(&shown.stdout).unwrap();
    let mut found = Vec::new();
    for row in table["networks"].as_array().unwrap() {
        for asset in row["assets"].as_array().unwrap() {
            if asset["inSdk"] == true {
                found.push(json!([
                    row["network"],
                    asset["address"].as_str().unwrap().to_lowercase(),
                    asset["symbol"],
                    asset["name"],
                    asset["version"],
                    asset["decimals"],
                    asset["transferMethod"],
                    asset["transferMethod"] == "permit2" && asset["eip2612"] == true,
                ]));
            }
        }
    }
    let in_order = |rows: &mut Vec<Value>| rows.sort_by_key(Value::to_string);
    in_order(&mut expected);
    in_order(&mut found);
    assert!(expected.len() >= 28);
    assert_eq!(found, expected);
}
