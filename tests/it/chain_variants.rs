//! Properties of real chains: minimum gas prices, no base fee, data fees besides gas, no Multicall3. A payment settles on each.

use std::time::Duration;

use alloy::primitives::{Address, U64, U256};
use alloy::signers::SignerSync;
use reqwest::Client;
use serde_json::{Value, json};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use x402d::embedded::TEST_USDC;
use x402d::protocol::{DomainSeparator, Network};

use crate::support::{Answer, Chain, Fault, Purchase, Setup, World, eventually, new_account, run};

const PAYEE: Address = Address::repeat_byte(0xc4);
const MULTICALL3: &str = "0xcA11bde05977b3631167028862bE2a173976CA11";
const GWEI: u64 = 1_000_000_000;

/// Keeps the base fee from falling below `gwei`.
fn keep_base_fee_floor(chain: &Chain, gwei: u64) -> AbortOnDropHandle<()> {
    let (url, fee) = (chain.url().to_owned(), U64::from(gwei * GWEI));
    let task = TaskTracker::new().spawn(async move {
        let http = Client::builder().no_proxy().build().unwrap();
        let next = json!({"jsonrpc": "2.0", "id": 1, "method": "anvil_setNextBlockBaseFeePerGas", "params": [fee]});
        loop {
            drop(http.post(&url).json(&next).send().await);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    AbortOnDropHandle::new(task)
}

/// A payment in the test token of another network, whose EIP-712 domain has that network's chain id.
fn on_network(purchase: &Purchase, network: Network) -> Value {
    let separator = DomainSeparator::of_token("USDC", "2", network, TEST_USDC);
    let digest = purchase.authorization.digest(separator);
    let mut purchase = purchase.clone();
    let signature = purchase.signer.sign_hash_sync(&digest).unwrap();
    purchase.signature = Some(signature.as_bytes().into());
    let body = purchase.body().to_string();
    let here = network.to_string();
    serde_json::from_str(&body.replace("eip155:84532", &here)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn minimum_gas_prices_of_monad_and_celo_are_met() {
    for (name, chain_id, gwei) in [("monad", 143, 100), ("celo", 42_220, 30)] {
        let chain = Chain::with_block_time(Some(1)).await;
        let payer = new_account();
        chain.fund(payer.address(), 1_000).await;
        chain.call("anvil_setChainId", json!([chain_id])).await;
        let floor = keep_base_fee_floor(&chain, gwei);
        let setup = Setup {
            toml: format!(
                "[access]\nsettle = \"open\"\n[networks.{name}.budget]\nwei_per_day = \"10eth\"\n[[networks.{name}.assets]]\naddress = \"{TEST_USDC}\"\nname = \"USDC\"\nversion = \"2\"\ndecimals = 6\nminimum_units = 0\n"
            ),
            ..Setup::default()
        };
        let setup = setup.with("X402D_NETWORK", name);
        let world = setup
            .with("X402D_PAYEES", PAYEE.to_string())
            .on(chain)
            .await;
        let purchase = Purchase::new(&payer, PAYEE, 143);
        let body = on_network(&purchase, Network::from_chain_id(chain_id));
        let verdict = world.facilitator.verify(&body).await;
        assert!(verdict.is_valid(), "{name}: {verdict:?}");
        let settled = world.facilitator.settle(&body).await;
        world.assert_transferred_once(PAYEE, &settled, 143).await;
        let receipt = world.chain.receipt(&settled.transaction()).await;
        let price: U256 = serde_json::from_value(receipt["effectiveGasPrice"].clone()).unwrap();
        assert!(price >= U256::from(gwei * GWEI), "{name}: {price}");
        if chain_id == 143 {
            // This chain charges the whole gas limit.
            let row = world.facilitator.payment(&settled).await;
            let limit = row["attempts"][0]["gasLimit"].as_u64().unwrap();
            let fee = U256::from(limit) * price;
            assert_eq!(row["gas"]["feeWei"], fee.to_string(), "{row}");
        }
        drop(floor);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn base_fee_above_cap_is_reported_before_selling() {
    let world = Setup::default().build().await;
    let body = Purchase::new(&world.payer().await, PAYEE, 7).body();
    world.raise_base_fee(100).await;
    let said = "blocks cost 100 gwei per gas, max_fee_wei is 20 gwei";
    let verdict = world.facilitator.verify(&body).await;
    assert_eq!(verdict.status, 503, "{verdict:?}");
    assert_eq!(verdict.body["isValid"], false, "{verdict:?}");
    let settled = world.facilitator.settle(&body).await;
    assert_eq!(settled.status, 503, "{settled:?}");
    assert_eq!(settled.body["success"], false, "{settled:?}");
    for answer in [&verdict, &settled] {
        assert!(answer.body.to_string().contains(said), "{answer:?}");
    }
    assert!(world.facilitator.answers().contains("retry-after"));
    assert!(world.facilitator.log().contains(said));
    let ready = world.facilitator.get("/readyz").await;
    assert_eq!(ready.status, 503, "{ready:?}");
    assert!(ready.body.to_string().contains(said), "{ready:?}");
    let found = run_check(&world.proxy.url());
    assert!(!found.status.success());
    let found = String::from_utf8(found.stdout).unwrap();
    let wrong = found.lines().find(|line| line.contains("WRONG")).unwrap();
    assert!(wrong.contains(said), "{found}");

    world.chain.next_base_fee(1).await;
    let settled = eventually("success", Duration::from_secs(20), async || {
        let answer = world.facilitator.settle(&body).await;
        answer.succeeded().then_some(answer)
    })
    .await;
    world.assert_transferred_once(PAYEE, &settled, 7).await;
}

fn run_check(url: &str) -> std::process::Output {
    let key = Chain::signers(1)[0].key;
    let variables = [
        ("X402D_NETWORK", "base-sepolia"),
        ("X402D_RPC_URL", url),
        ("X402D_SIGNER_KEYS", key),
    ];
    run(&["networks", "--check"], &variables, "")
}

/// Settles until the answer is final.
async fn settle_until_final(world: &World, body: &Value) -> Answer {
    eventually("an outcome", Duration::from_secs(40), async || {
        let answer = world.facilitator.settle(body).await;
        (answer.reason() != "settlement_pending").then_some(answer)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn chain_without_base_fee_gets_legacy_transactions_and_fee_bumps() {
    let chain = Chain::start().await;
    let setup = Setup {
        toml: "[networks.base-sepolia]\nmax_fee_wei = 100000000000\n".to_owned(),
        ..Setup::default()
    };
    let setup = setup.with("X402D_SETTLE_WAIT", "2");
    let world = setup.behind(Fault::Legacy).on(chain).await;
    let payer = world.payer().await;
    let settled = settle_until_final(&world, &Purchase::new(&payer, PAYEE, 1).body()).await;
    world.assert_transferred_once(PAYEE, &settled, 1).await;
    let of = json!([settled.transaction()]);
    let sent = world.chain.call("eth_getTransactionByHash", of).await;
    assert_eq!(sent["type"], "0x0", "{sent}");

    world.chain.automine(false).await;
    let body = Purchase::new(&payer, PAYEE, 2).body();
    let pending = world.facilitator.settle(&body).await;
    assert_eq!(pending.reason(), "settlement_pending", "{pending:?}");
    let attempts = eventually("a fee bump", Duration::from_secs(40), async || {
        world.chain.next_base_fee(20).await;
        let row = world.facilitator.payment(&pending).await;
        let attempts = row["attempts"].as_array().unwrap().clone();
        (attempts.len() >= 2).then_some(attempts)
    })
    .await;
    let price = |attempt: &Value| -> u128 {
        let price = attempt["maxFeeWei"].as_str().unwrap();
        assert_eq!(attempt["maxPriorityFeeWei"], price, "one price");
        price.parse().unwrap()
    };
    let (before, after) = (price(&attempts[0]), price(&attempts[1]));
    assert!(after * 10 >= before * 11, "{before} {after}");
    world.resume_mining().await;
    let settled = settle_until_final(&world, &body).await;
    assert!(settled.succeeded(), "{settled:?}");
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(3));
    assert_eq!(world.transactions(1).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn rollup_data_fees_are_recorded_and_stop_unfunded_signer() {
    const DATA_FEE: u64 = 30_000 * GWEI;
    let world = Setup::default().shortened().build().await;
    let signer = Chain::signers(1)[0].address;
    let balance = async || -> U256 {
        let signers = world.facilitator.get("/signers").await.body;
        let signer = &signers["signers"][0];
        signer["balanceWei"].as_str().unwrap().parse().unwrap()
    };
    let before = balance().await;
    for method in ["eth_getBlockReceipts", "eth_getTransactionReceipt"] {
        world.proxy.on(method, Fault::DataFee(DATA_FEE));
    }
    let payer = world.payer().await;
    let bodies: Vec<_> = (0..20)
        .map(|number| Purchase::new(&payer, PAYEE, 1 + number).body())
        .collect();
    let answers = world.facilitator.settle_all(bodies).await;
    let mut fees = std::collections::HashMap::new();
    for answer in &answers {
        assert!(answer.succeeded(), "{answer:?}");
        let row = world.facilitator.payment(answer).await;
        let fee: U256 = row["gas"]["feeWei"].as_str().unwrap().parse().unwrap();
        fees.insert(answer.transaction(), fee);
    }
    let transactions = world.transactions(1).await;
    assert_eq!(u64::try_from(fees.len()).unwrap(), transactions);
    // The data fees that the rollup would have charged.
    let taken = U256::from(DATA_FEE) * U256::from(transactions);
    let left = balance().await - taken;
    let set = "anvil_setBalance";
    world.chain.call(set, json!([signer, left])).await;
    let spent = fees.values().fold(U256::ZERO, |sum, fee| sum + fee);
    assert_eq!(before - balance().await, spent);

    // Enough for the gas of hundreds of payments, but for the data fees of two.
    let little = U256::from(2 * DATA_FEE + 1_000_000 * GWEI);
    world.chain.call(set, json!([signer, little])).await;
    let log = eventually("the warning", Duration::from_secs(40), async || {
        let log = world.facilitator.log();
        log.contains("gas for fewer than").then_some(log)
    })
    .await;
    assert!(log.contains("refilled"), "{log}");
    let body = Purchase::new(&payer, PAYEE, 1).body();
    let refused = world.facilitator.settle(&body).await;
    assert!(!refused.succeeded(), "{refused:?}");
    assert_eq!(world.pending(1).await, transactions, "nothing was sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_multicall_payments_settle_one_per_transaction() {
    let chain = Chain::start().await;
    let none = json!([MULTICALL3, "0x"]);
    chain.call("anvil_setCode", none).await;
    let world = Setup::default().on(chain).await;
    assert!(
        world
            .facilitator
            .log()
            .contains("Multicall3 is not deployed")
    );
    let found = run_check(&world.proxy.url());
    assert!(found.status.success(), "{found:?}");
    let found = String::from_utf8(found.stdout).unwrap();
    assert!(
        found.contains("each payment gets its own transaction"),
        "{found}"
    );

    let payer = world.payer().await;
    let bodies: Vec<_> = (0..8)
        .map(|number| Purchase::new(&payer, PAYEE, 1 << number).body())
        .collect();
    for answer in world.facilitator.settle_all(bodies).await {
        assert!(answer.succeeded(), "{answer:?}");
    }
    assert_eq!(world.transactions(1).await, 8);
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(255));

    // A payment whose transaction transferred nothing is decided without Multicall3 too.
    world.chain.automine(false).await;
    let purchase = Purchase::new(&payer, PAYEE, 256);
    let mut settling = world.facilitator.spawn_settle(&purchase.body());
    world.wait_until_sent(9).await;
    let submission = Chain::submission(&purchase);
    let data = serde_json::from_value(submission["data"].clone()).unwrap();
    world.chain.call_with_high_fee((TEST_USDC, data)).await;
    world.resume_mining().await;
    let answer = settling.join_next().await.unwrap().unwrap().unwrap();
    assert!(answer.succeeded(), "{answer:?}");
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(511));
}
