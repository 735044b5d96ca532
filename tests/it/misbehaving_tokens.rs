//! Tokens that misbehave: success is reported only for money that was transferred.

use std::time::Duration;

use alloy::primitives::{Address, U256};

use crate::support::{
    Answer, Chain, Fault, Purchase, Setup, World, eventually, mintCall, new_account, setModeCall,
};

const PAYEE: Address = Address::repeat_byte(0x0d);
const TOKEN: Address = Address::repeat_byte(0x70);
const BEHAVES: u8 = 0;
const MOVES_NOTHING: u8 = 1;
const MOVES_LESS: u8 = 2;
pub(crate) const DOES_NOTHING: u8 = 3;
const PAYS_SOMEBODY_ELSE: u8 = 4;
const WASTES_GAS: u8 = 5;

/// A world with the odd token as its only asset.
pub(crate) async fn world_with_odd_token() -> World {
    world_with_odd_token_and(Setup::default()).await
}

async fn world_with_odd_token_and(setup: Setup) -> World {
    let chain = Chain::start().await;
    chain.place("OddToken", TOKEN).await;
    let toml = format!(
        "[[networks.base-sepolia.assets]]\naddress = \"{TOKEN}\"\nname = \"USDC\"\nversion = \"2\"\ndecimals = 6\n"
    );
    Setup { toml, ..setup }.shortened().on(chain).await
}

/// Settles one payment of 1000 while the token is in `mode`, and another after the token is back to normal.
pub(crate) async fn settle_in_mode(world: &World, mode: u8) -> (Purchase, Answer) {
    let payer = new_account();
    let amount = U256::from(5_000);
    let to = payer.address();
    world.chain.send(TOKEN, mintCall { to, amount }).await;
    world.chain.send(TOKEN, setModeCall { mode }).await;
    let purchase = Purchase::new(&payer, PAYEE, 1_000).in_token(TOKEN, "USDC");
    let answer = world.facilitator.settle(&purchase.body()).await;
    assert!(!answer.succeeded(), "{answer:?}");
    assert_eq!(answer.status, 200);

    let mode = BEHAVES;
    world.chain.send(TOKEN, setModeCall { mode }).await;
    let other = Purchase::new(&payer, PAYEE, 1).in_token(TOKEN, "USDC");
    let good = world.facilitator.settle(&other.body()).await;
    assert!(good.succeeded(), "the lane continues: {good:?}");
    (purchase, answer)
}

/// A repeated request gets the same answer, and nothing more is sent.
async fn assert_failed_for_good(world: &World, purchase: &Purchase, answer: &Answer, code: &str) {
    assert_eq!(answer.reason(), code, "{answer:?}");
    let receipt = world.chain.receipt(&answer.transaction()).await;
    assert_eq!(receipt["status"], "0x1", "the hash is the transaction's");
    let again = world.facilitator.settle(&purchase.body()).await;
    assert_eq!(again.reason(), code);
    assert_eq!(again.transaction(), answer.transaction());
    let verdict = world.facilitator.verify(&purchase.body()).await;
    assert_eq!((verdict.is_valid(), verdict.reason()), (false, code));
    assert_eq!(world.transactions(1).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn token_without_transfer_yields_no_success() {
    let world = world_with_odd_token().await;
    let (purchase, answer) = settle_in_mode(&world, MOVES_NOTHING).await;
    let code = "invalid_exact_evm_transfer_event_mismatch";
    assert_failed_for_good(&world, &purchase, &answer, code).await;
    assert_eq!(world.chain.balance(TOKEN, PAYEE).await, U256::from(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn token_transferring_one_unit_less_yields_no_success() {
    let world = world_with_odd_token().await;
    let (purchase, answer) = settle_in_mode(&world, MOVES_LESS).await;
    let code = "invalid_exact_evm_transfer_event_mismatch";
    assert_failed_for_good(&world, &purchase, &answer, code).await;
    assert_eq!(world.chain.balance(TOKEN, PAYEE).await, U256::from(1_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn token_paying_another_account_yields_no_success() {
    let world = world_with_odd_token().await;
    let (purchase, answer) = settle_in_mode(&world, PAYS_SOMEBODY_ELSE).await;
    let code = "invalid_exact_evm_transfer_event_mismatch";
    assert_failed_for_good(&world, &purchase, &answer, code).await;
    assert_eq!(world.chain.balance(TOKEN, PAYEE).await, U256::from(1));
}

/// The authorization is unused and could transfer later, so the payment is not failed.
#[tokio::test(flavor = "multi_thread")]
async fn scenario_38_token_doing_nothing_waits_for_the_operator() {
    let world = world_with_odd_token().await;
    let (purchase, answer) = settle_in_mode(&world, DOES_NOTHING).await;
    assert_failed_for_good(&world, &purchase, &answer, "settlement_pending").await;
    eventually("the quarantine", Duration::from_mins(1), async || {
        let row = world.facilitator.payment(&answer).await;
        row["quarantine"].is_string().then_some(())
    })
    .await;
    assert_eq!(world.chain.balance(TOKEN, PAYEE).await, U256::from(1));
}

/// The gas measured before the send is too little when the block is made: the transaction reverts as a whole, and the payment settles
/// under another nonce with the gas it needs now.
#[tokio::test(flavor = "multi_thread")]
async fn scenario_30_out_of_gas_is_retried_with_enough_gas() {
    let world = world_with_odd_token().await;
    let payer = new_account();
    let (to, amount) = (payer.address(), U256::from(5_000));
    world.chain.send(TOKEN, mintCall { to, amount }).await;
    let purchase = Purchase::new(&payer, PAYEE, 30).in_token(TOKEN, "USDC");
    let send = "eth_sendRawTransaction";
    world.proxy.on(send, Fault::Hold);
    let mut waiting = world.facilitator.spawn_settle(&purchase.body());
    world.proxy.called(send, 0).await;
    let mode = WASTES_GAS;
    world.chain.send(TOKEN, setModeCall { mode }).await;
    world.proxy.on(send, Fault::None);
    let answer = waiting.join_next().await.unwrap().unwrap().unwrap();
    assert!(answer.succeeded(), "{answer:?}");
    let row = world.facilitator.payment(&answer).await;
    let attempts = row["attempts"].as_array().unwrap();
    let [short, enough] = attempts.as_slice() else {
        panic!("expected two transactions: {row}");
    };
    assert_eq!(short["mined"]["succeeded"], false);
    assert_eq!(
        short["mined"]["gasUsed"], short["gasLimit"],
        "all of its gas was used"
    );
    assert_eq!(enough["mined"]["outcome"], "transferred");
    assert_ne!(short["nonce"], enough["nonce"]);
    assert_eq!(world.chain.balance(TOKEN, PAYEE).await, U256::from(30));
    assert_eq!(world.transactions(1).await, 2);
}

/// Three payments in one transaction that runs out of gas are retried in another, once the first has the confirmations that a success
/// needs.
#[tokio::test(flavor = "multi_thread")]
async fn scenario_30_out_of_gas_batch_is_retried_once_confirmed() {
    let setup = Setup::default().with("X402D_SETTLE_WAIT", "4");
    let world = world_with_odd_token_and(setup.with("X402D_CONFIRMATIONS", "3")).await;
    let send = "eth_sendRawTransaction";
    let mut purchases = Vec::new();
    for amount in [1, 2, 4, 8] {
        let payer = new_account();
        let (to, all) = (payer.address(), U256::from(5_000));
        let mint = mintCall { to, amount: all };
        world.chain.send(TOKEN, mint).await;
        purchases.push(Purchase::new(&payer, PAYEE, amount).in_token(TOKEN, "USDC"));
    }
    world.chain.automine(false).await;
    let bodies: Vec<_> = purchases.iter().map(Purchase::body).collect();
    let first = world.facilitator.spawn_settle(&bodies[0]);
    world.wait_until_sent(1).await;
    world.proxy.on(send, Fault::Hold);
    let sends = world.proxy.calls(send);
    let mut riding: Vec<_> = bodies[1..]
        .iter()
        .map(|body| world.facilitator.spawn_settle(body))
        .collect();
    world.proxy.called(send, sends).await;
    world.chain.automine(true).await;
    world.chain.mine(1).await;
    let mode = WASTES_GAS;
    world.chain.send(TOKEN, setModeCall { mode }).await;
    world.proxy.on(send, Fault::None);
    drop(first);
    let mut pending = Vec::new();
    for riding in &mut riding {
        pending.push(riding.join_next().await.unwrap().unwrap().unwrap());
    }
    let mut in_vain = 0;
    for pending in &pending {
        let row = eventually("a block", Duration::from_secs(20), async || {
            let row = world.facilitator.payment(pending).await;
            row["attempts"][0]["mined"].is_object().then_some(row)
        })
        .await;
        assert_eq!(row["attempts"].as_array().unwrap().len(), 1, "{row}");
        if row["attempts"][0]["mined"]["outcome"].is_null() {
            assert_eq!(row["state"], "inflight", "not yet: {row}");
            in_vain += 1;
        }
    }
    assert!(in_vain > 0, "there was gas for all of them");
    let sent = world.transactions(1).await;
    for body in &bodies[1..] {
        let answer = world.facilitator.settle(body).await;
        assert_ne!(answer.reason(), "unexpected_settle_error", "{answer:?}");
    }
    assert_eq!(
        world.transactions(1).await,
        sent,
        "nothing after one confirmation"
    );
    // One of the payers is taken for the one that used the gas, and is suspended for a minute.
    for body in &bodies[1..] {
        eventually("success", Duration::from_secs(100), async || {
            world.chain.mine(1).await;
            let answer = world.facilitator.settle(body).await;
            (answer.succeeded() || answer.reason() == "duplicate_settlement").then_some(())
        })
        .await;
    }
    assert_eq!(world.chain.balance(TOKEN, PAYEE).await, U256::from(15));
}
