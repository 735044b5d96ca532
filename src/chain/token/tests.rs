//! What counts as the trace of a payment, and what does not.

use alloy::primitives::{U64, U256, keccak256};

use super::*;
use crate::chain::authorization::{MULTICALL3, Multicall3, settlement_call};
use crate::payment::specimen::{AMOUNT, PAYEE, PAYER, USDC, payment};
use crate::payment::{PaymentState, Wallet};

const OTHER: Address = Address::repeat_byte(0x66);
const NONCE: B256 = B256::repeat_byte(0xab);

fn said(topics: Vec<B256>, data: Bytes) -> Log {
    Log {
        address: USDC,
        topics,
        data,
        log_index: U64::ZERO,
        block_number: alloy::primitives::U64::ZERO,
        transaction_hash: B256::ZERO,
    }
}

fn used(payer: Address, nonce: B256) -> Log {
    let topics = vec![AUTHORIZATION_USED, payer.into_word(), nonce];
    said(topics, Bytes::new())
}

fn moved(from: Address, to: Address, amount: u64) -> Log {
    let topics = vec![TRANSFER, from.into_word(), to.into_word()];
    said(topics, U256::from(amount).to_be_bytes::<32>().into())
}

fn ours() -> [Log; 2] {
    [used(PAYER, NONCE), moved(PAYER, PAYEE, AMOUNT)]
}

/// The position that is found in these logs, which stand in their block from 40 on.
fn found(logs: impl IntoIterator<Item = Log>) -> Option<u64> {
    let mut logs: Vec<Log> = logs.into_iter().collect();
    for (log, index) in logs.iter_mut().zip(40_u64..) {
        log.log_index = U64::from(index);
    }
    let payment = payment(PaymentState::Queued);
    transfer_log(payment.asset, &payment.authorization, &logs)
}

#[test]
fn the_topics_are_the_hashes_of_the_events() {
    assert_eq!(TRANSFER, keccak256("Transfer(address,address,uint256)"));
    assert_eq!(
        AUTHORIZATION_USED,
        keccak256("AuthorizationUsed(address,bytes32)")
    );
    assert_eq!(
        AUTHORIZATION_CANCELED,
        keccak256("AuthorizationCanceled(address,bytes32)")
    );
}

#[test]
fn the_transfer_is_found_beside_the_use_of_the_nonce_in_either_order() {
    let [used, moved] = ours();
    assert_eq!(found([used.clone(), moved.clone()]), Some(41));
    assert_eq!(found([moved, used]), Some(40));
}

#[test]
fn it_is_found_among_what_others_say() {
    let noise = || moved(OTHER, PAYEE, AMOUNT);
    let [used, moved] = ours();
    assert_eq!(found([noise(), noise(), used, moved, noise()]), Some(43));
}

#[test]
fn half_of_the_trace_is_no_trace() {
    let [used, moved] = ours();
    assert_eq!(found([]), None);
    assert_eq!(found([used]), None);
    assert_eq!(found([moved.clone(), moved]), None);
}

#[test]
fn a_transfer_that_is_not_beside_its_nonce_is_somebody_elses() {
    let [used, moved] = ours();
    let between = said(vec![B256::ZERO], Bytes::new());
    assert_eq!(found([used, between, moved]), None);
}

#[test]
fn another_amount_payee_payer_or_nonce_is_no_success() {
    let [our_use, our_move] = ours();
    for wrong in [
        moved(PAYER, PAYEE, AMOUNT - 1),
        moved(PAYER, PAYEE, AMOUNT + 1),
        moved(PAYER, OTHER, AMOUNT),
        moved(OTHER, PAYEE, AMOUNT),
    ] {
        assert_eq!(found([our_use.clone(), wrong.clone()]), None, "{wrong:?}");
    }
    for wrong in [used(PAYER, B256::ZERO), used(OTHER, NONCE)] {
        assert_eq!(found([wrong.clone(), our_move.clone()]), None, "{wrong:?}");
    }
}

#[test]
fn both_events_must_be_said_by_the_token() {
    for position in [0, 1] {
        let mut logs = ours();
        logs[position].address = OTHER;
        assert_eq!(found(logs), None, "log {position}");
    }
}

#[test]
fn longer_or_shorter_data_and_topics_are_other_events() {
    let [used, moved] = ours();
    let mut tail = moved.clone();
    tail.data = [&moved.data[..], &[0]].concat().into();
    let mut unindexed = moved.clone();
    unindexed.topics.pop();
    let mut indexed = moved.clone();
    indexed.topics.push(B256::ZERO);
    for wrong in [tail, unindexed, indexed] {
        assert_eq!(found([used.clone(), wrong.clone()]), None, "{wrong:?}");
    }
}

#[test]
fn a_transfer_made_before_does_not_stand_in_for_the_one_that_went_elsewhere() {
    let elsewhere = [used(PAYER, NONCE), moved(PAYER, OTHER, AMOUNT)];
    let plain = [moved(PAYER, PAYEE, AMOUNT)].into_iter();
    assert_eq!(found(plain.chain(elsewhere.clone())), None);
    let authorized = [used(PAYER, B256::ZERO), moved(PAYER, PAYEE, AMOUNT)];
    assert_eq!(found(authorized.into_iter().chain(elsewhere)), None);
}

#[test]
fn one_transfer_never_pays_for_two_authorizations() {
    let first = [used(PAYER, B256::ZERO), moved(PAYER, PAYEE, AMOUNT)];
    let second = used(PAYER, NONCE);
    assert_eq!(found(first.clone().into_iter().chain([second])), None);
    assert_eq!(found(first.into_iter().chain(ours())), Some(43));
}

#[test]
fn a_wallet_without_code_is_deployed_in_the_transaction_that_pays() {
    let mut payment = payment(PaymentState::Queued);
    let (to, data) = settlement_call(payment.signed());
    assert_eq!(to, USDC);
    assert!(data.starts_with(&Eip3009::transferWithAuthorization_0Call::SELECTOR));
    payment.wallet = Some(Wallet {
        factory: OTHER,
        call: Bytes::from_static(&[9]),
    });
    payment.signature = vec![1; 66].into();
    let (to, data) = settlement_call(payment.signed());
    assert_eq!(to, MULTICALL3);
    let calls = Multicall3::aggregate3Call::abi_decode(&data).unwrap().calls;
    let shape: Vec<_> = calls
        .iter()
        .map(|call| (call.target, call.allowFailure))
        .collect();
    assert_eq!(shape, [(OTHER, true), (USDC, false)]);
    let transfer = &calls.last().unwrap().callData;
    assert!(transfer.starts_with(&Eip3009::transferWithAuthorization_1Call::SELECTOR));
}
