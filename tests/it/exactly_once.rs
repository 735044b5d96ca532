//! A payment transfers money once and buys one resource, for any number of concurrent presentations.

use std::collections::HashSet;

use alloy::primitives::{Address, U256};
use x402d::embedded::TEST_USDC;
use x402d::protocol::Amount;

use crate::support::{Answer, Chain, Purchase, Setup, World};

const PAYEE: Address = Address::repeat_byte(0x5e);
const OTHER_ACCOUNT: Address = Address::repeat_byte(0xe1);

#[tokio::test(flavor = "multi_thread")]
async fn scenario_24_hundred_presenters_get_one_success_and_one_hash() {
    let world = World::new().await;
    let body = Purchase::new(&world.payer().await, PAYEE, 250_000).body();
    let answers = world.facilitator.settle_all(vec![body; 100]).await;
    let (successes, others): (Vec<_>, Vec<_>) =
        answers.iter().partition(|answer| answer.succeeded());
    assert_eq!(successes.len(), 1, "{answers:?}");
    let hash = successes[0].transaction();
    for other in others {
        assert_eq!(
            (other.status, other.reason()),
            (200, "duplicate_settlement")
        );
        assert_eq!(other.transaction(), hash);
    }
    let transfers = world.chain.transfers_to(TEST_USDC, PAYEE).await;
    assert_eq!(transfers.len(), 1);
    assert_eq!(transfers[0]["transactionHash"], hash.as_str());
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(250_000));
    assert_eq!(world.transactions(1).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_payments_over_three_keys_leave_no_nonce_gap() {
    assert_two_hundred_settle(None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_payments_settle_with_timed_blocks() {
    assert_two_hundred_settle(Some(1)).await;
}

async fn assert_two_hundred_settle(block_time_s: Option<u64>) {
    let setup = Setup {
        signers: 3,
        block_time_s,
        ..Setup::default()
    };
    let world = setup.with("X402D_SETTLE_WAIT", "25").build().await;
    let payers = [world.payer().await, world.payer().await];
    let purchases = (0..200).map(|number: u64| {
        let payer = &payers[usize::from(number.is_multiple_of(2))];
        let purchase = Purchase::new(payer, PAYEE, 1_000 + number);
        if number.is_multiple_of(3) {
            purchase.v1()
        } else {
            purchase
        }
    });
    let bodies = purchases.map(|purchase| purchase.body()).collect();
    let answers = world.facilitator.settle_all(bodies).await;
    for answer in &answers {
        assert!(answer.succeeded(), "{answer:?}");
    }
    let hashes: HashSet<_> = answers.iter().map(Answer::transaction).collect();
    assert!(
        hashes.len() <= 50,
        "{} transactions: payments share batches",
        hashes.len()
    );
    let transfers = world.chain.transfers_to(TEST_USDC, PAYEE).await;
    assert_eq!(transfers.len(), 200);
    let expected: u64 = (0..200).map(|number| 1_000 + number).sum();
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(expected));
    for signer in Chain::signers(3) {
        let mined = world.chain.transaction_count(signer.address).await;
        let known = world.chain.pending_count(signer.address).await;
        assert_eq!(mined, known, "no transaction waits behind a nonce gap");
    }
    assert_eq!(
        world.transactions(3).await,
        u64::try_from(hashes.len()).unwrap(),
        "no other gas was spent"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn ungranted_payment_pays_for_no_other_requirement() {
    let world = World::new().await;
    let purchase = Purchase::new(&world.payer().await, PAYEE, 5_000);
    world.chain.automine(false).await;
    let ungranted = world.facilitator.spawn_settle(&purchase.body());
    world.wait_until_sent(1).await;
    drop(ungranted);
    world.resume_mining().await;

    let mut dearer = purchase.clone();
    dearer.amount = U256::from(6_000);
    let mut cheaper = purchase.clone();
    cheaper.amount = U256::from(1);
    let mut elsewhere = purchase.clone();
    elsewhere.pay_to = OTHER_ACCOUNT;
    let mismatch = "invalid_exact_evm_payload_authorization_value_mismatch";
    let refused = [
        (dearer, mismatch),
        (cheaper.clone(), mismatch),
        (cheaper.v1(), "invalid_exact_evm_authorization_value"),
        (elsewhere, "invalid_exact_evm_recipient_mismatch"),
    ];
    for (other, code) in refused {
        let verdict = world.facilitator.verify(&other.body()).await;
        assert_eq!((verdict.is_valid(), verdict.reason()), (false, code));
        let answer = world.facilitator.settle(&other.body()).await;
        assert_eq!((answer.succeeded(), answer.reason()), (false, code));
        assert_eq!(
            answer.transaction(),
            "",
            "the hash of another payment is not shown"
        );
    }
    let answer = world.facilitator.settle(&purchase.body()).await;
    assert!(
        answer.succeeded(),
        "its own requirement is paid: {answer:?}"
    );
    assert_eq!(world.transactions(1).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_content_under_known_nonce_is_refused_without_details() {
    let world = World::new().await;
    let first = Purchase::new(&world.payer().await, PAYEE, 7_000);
    let told = world.facilitator.settle(&first.body()).await;
    assert!(told.succeeded(), "{told:?}");
    let mut second = first.clone();
    second.amount = U256::from(8_000);
    second.authorization.value = Amount::from_atomic(second.amount);
    for _ in 0..2 {
        let verdict = world.facilitator.verify(&second.body()).await;
        assert_eq!(verdict.reason(), "invalid_exact_evm_nonce_already_used");
        let answer = world.facilitator.settle(&second.body()).await;
        assert_eq!(answer.reason(), "invalid_exact_evm_nonce_already_used");
        assert_eq!(answer.transaction(), "");
    }
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(7_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn scenario_23_two_contents_under_one_nonce_settle_one() {
    let world = World::new().await;
    let first = Purchase::new(&world.payer().await, PAYEE, 10_000);
    let mut second = first.clone();
    second.amount = U256::from(20_000);
    second.authorization.value = Amount::from_atomic(second.amount);
    let bodies = [vec![first.body(); 5], vec![second.body(); 5]].concat();
    let answers = world.facilitator.settle_all(bodies).await;
    let successes = answers.iter().filter(|answer| answer.succeeded()).count();
    assert_eq!(successes, 1, "{answers:?}");
    let foreign = answers
        .iter()
        .filter(|answer| answer.reason() == "invalid_exact_evm_nonce_already_used");
    assert_eq!(foreign.count(), 5, "{answers:?}");
    assert!(answers.iter().all(|answer| answer.status == 200));
    assert_eq!(world.chain.transfers_to(TEST_USDC, PAYEE).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn known_payment_without_its_signature_is_rejected() {
    let world = World::new().await;
    let purchase = Purchase::new(&world.payer().await, PAYEE, 9_000);
    world.chain.automine(false).await;
    let ungranted = world.facilitator.spawn_settle(&purchase.body());
    world.wait_until_sent(1).await;
    drop(ungranted);
    world.resume_mining().await;
    let mut stolen = purchase.clone();
    stolen.signature = Some(Purchase::new(&world.payer().await, PAYEE, 1).own_signature());
    let answer = world.facilitator.settle(&stolen.body()).await;
    assert_eq!(answer.reason(), "invalid_exact_evm_signature");
    let answer = world.facilitator.settle(&purchase.body()).await;
    assert!(answer.succeeded(), "{answer:?}");
}
