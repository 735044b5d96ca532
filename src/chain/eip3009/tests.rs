//! Which logs prove the transfer of an EIP-3009 payment.

use alloy::primitives::{U64, keccak256};

use super::*;
use crate::chain::authorization::settlement_call;
use crate::chain::multicall::{MULTICALL3, Multicall3};
use crate::payment::fixture::{AMOUNT, PAYEE, PAYER, USDC, payment};
use crate::payment::{PaymentState, Wallet};

const OTHER: Address = Address::repeat_byte(0x66);
const NONCE: B256 = B256::repeat_byte(0xab);

fn emitted(topics: Vec<B256>, data: Bytes) -> Log {
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
    emitted(topics, Bytes::new())
}

fn transfer(from: Address, to: Address, amount: u64) -> Log {
    let topics = vec![TRANSFER, from.into_word(), to.into_word()];
    emitted(topics, U256::from(amount).to_be_bytes::<32>().into())
}

fn ours() -> [Log; 2] {
    [used(PAYER, NONCE), transfer(PAYER, PAYEE, AMOUNT)]
}

/// The log index that is found in these logs, which have the indices from 40 on.
fn found(logs: impl IntoIterator<Item = Log>) -> Option<u64> {
    let mut logs: Vec<Log> = logs.into_iter().collect();
    for (log, index) in logs.iter_mut().zip(40_u64..) {
        log.log_index = U64::from(index);
    }
    let payment = payment(PaymentState::Queued);
    transfer_log(&payment.terms, &logs)
}

#[test]
fn topics_are_the_hashes_of_the_events() {
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
fn transfer_is_found_right_before_or_after_the_nonce_event() {
    let [used, transfer] = ours();
    assert_eq!(found([used.clone(), transfer.clone()]), Some(41));
    assert_eq!(found([transfer, used]), Some(40));
}

#[test]
fn transfer_is_found_among_foreign_logs() {
    let noise = || transfer(OTHER, PAYEE, AMOUNT);
    let [used, transfer] = ours();
    assert_eq!(found([noise(), noise(), used, transfer, noise()]), Some(43));
}

#[test]
fn one_of_the_two_events_proves_nothing() {
    let [used, transfer] = ours();
    assert_eq!(found([]), None);
    assert_eq!(found([used]), None);
    assert_eq!(found([transfer.clone(), transfer]), None);
}

#[test]
fn transfer_apart_from_the_nonce_event_is_not_the_payments() {
    let [used, transfer] = ours();
    let between = emitted(vec![B256::ZERO], Bytes::new());
    assert_eq!(found([used, between, transfer]), None);
}

#[test]
fn other_amount_payee_payer_or_nonce_proves_nothing() {
    let [our_use, our_move] = ours();
    for wrong in [
        transfer(PAYER, PAYEE, AMOUNT - 1),
        transfer(PAYER, PAYEE, AMOUNT + 1),
        transfer(PAYER, OTHER, AMOUNT),
        transfer(OTHER, PAYEE, AMOUNT),
    ] {
        assert_eq!(found([our_use.clone(), wrong.clone()]), None, "{wrong:?}");
    }
    for wrong in [used(PAYER, B256::ZERO), used(OTHER, NONCE)] {
        assert_eq!(found([wrong.clone(), our_move.clone()]), None, "{wrong:?}");
    }
}

#[test]
fn both_events_must_be_emitted_by_the_token() {
    for position in [0, 1] {
        let mut logs = ours();
        logs[position].address = OTHER;
        assert_eq!(found(logs), None, "log {position}");
    }
}

#[test]
fn longer_or_shorter_data_or_topics_do_not_match() {
    let [used, transfer] = ours();
    let mut tail = transfer.clone();
    tail.data = [&transfer.data[..], &[0]].concat().into();
    let mut unindexed = transfer.clone();
    unindexed.topics.pop();
    let mut indexed = transfer.clone();
    indexed.topics.push(B256::ZERO);
    for wrong in [tail, unindexed, indexed] {
        assert_eq!(found([used.clone(), wrong.clone()]), None, "{wrong:?}");
    }
}

#[test]
fn earlier_transfer_does_not_replace_one_to_another_payee() {
    let elsewhere = [used(PAYER, NONCE), transfer(PAYER, OTHER, AMOUNT)];
    let plain = [transfer(PAYER, PAYEE, AMOUNT)].into_iter();
    assert_eq!(found(plain.chain(elsewhere.clone())), None);
    let authorized = [used(PAYER, B256::ZERO), transfer(PAYER, PAYEE, AMOUNT)];
    assert_eq!(found(authorized.into_iter().chain(elsewhere)), None);
}

#[test]
fn one_transfer_never_settles_two_authorizations() {
    let first = [used(PAYER, B256::ZERO), transfer(PAYER, PAYEE, AMOUNT)];
    let second = used(PAYER, NONCE);
    assert_eq!(found(first.clone().into_iter().chain([second])), None);
    assert_eq!(found(first.into_iter().chain(ours())), Some(43));
}

#[test]
fn undeployed_wallet_is_deployed_in_the_settling_transaction() {
    let mut payment = payment(PaymentState::Queued);
    let (to, data) = settlement_call(&payment.terms);
    assert_eq!(to, USDC);
    assert!(data.starts_with(&Eip3009::transferWithAuthorization_0Call::SELECTOR));
    payment.terms.wallet = Some(Wallet {
        factory: OTHER,
        call: Bytes::from_static(&[9]),
    });
    payment.terms.signature = vec![1; 66].into();
    let (to, data) = settlement_call(&payment.terms);
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
