//! Which transaction of a block settled a payment through a foreign contract, and when the result stays open.

use alloy::primitives::{B256, Bytes, U64, U256};

use super::*;
use crate::chain::authorization::settlement_call;
use crate::chain::permit2::{SETTLED, TRANSFER};
use crate::payment::fixture::{AMOUNT, PAYEE, PAYER, USDC, candidate_of, permit2_body};
use crate::payment::{Candidate, Purpose};
use crate::protocol::Scheme;
use crate::protocol::permit2::EXACT_PROXY;

fn exact(nonce: u8) -> Candidate {
    let mut exact = candidate_of(&permit2_body(Scheme::Exact), Purpose::Settle);
    exact.authorization.nonce = B256::repeat_byte(nonce);
    exact
}

/// The logs of `count` settlements with the same transfer; the transfers have the log indices 0, 2, 4 and so on.
fn settlements(count: usize) -> Vec<Log> {
    let log = |address, topics: Vec<B256>, data: Bytes| Log {
        address,
        topics,
        data,
        log_index: U64::ZERO,
        block_number: U64::ZERO,
        transaction_hash: B256::ZERO,
    };
    let transfer = vec![TRANSFER, PAYER.into_word(), PAYEE.into_word()];
    let amount = Bytes::from(U256::from(AMOUNT).to_be_bytes::<32>());
    let mut logs = Vec::new();
    for _ in 0..count {
        logs.push(log(USDC, transfer.clone(), amount.clone()));
        logs.push(log(EXACT_PROXY, vec![SETTLED], Bytes::new()));
    }
    for (log, index) in logs.iter_mut().zip(0_u64..) {
        log.log_index = U64::from(index);
    }
    logs
}

/// Calldata of a foreign contract that contains proxy calls for these nonces.
fn wrapped_calls(nonces: &[u8]) -> Vec<u8> {
    let mut input = b"wrap".to_vec();
    for nonce in nonces {
        input.extend_from_slice(&settlement_call(exact(*nonce).signed()).1);
    }
    input
}

#[test]
fn calldata_with_every_settlement_identifies_the_payment() {
    let (payment, two) = (exact(1), settlements(2));
    let of = |nonces: &[u8]| evidence(payment.signed(), &wrapped_calls(nonces), &two);
    assert_eq!(of(&[1, 2]), Evidence::Identified(0));
    assert_eq!(of(&[2, 1]), Evidence::Identified(2));
    assert_eq!(of(&[2, 3]), Evidence::None, "two other payments");
    for unclear in [&[][..], &[1], &[1, 2, 3]] {
        assert_eq!(of(unclear), Evidence::Ambiguous, "{unclear:?}");
    }
}

#[test]
fn one_settlement_without_calldata_is_possible() {
    let payment = exact(1);
    let of = |nonces: &[u8], count| {
        let logs = settlements(count);
        evidence(payment.signed(), &wrapped_calls(nonces), &logs)
    };
    assert_eq!(of(&[], 1), Evidence::Possible(0));
    assert_eq!(of(&[], 0), Evidence::None);
    assert_eq!(of(&[1], 1), Evidence::Identified(0));
    assert_eq!(of(&[1], 0), Evidence::None, "it reverted");
    assert_eq!(of(&[2], 1), Evidence::None, "another payment");
}

#[test]
fn payment_matches_only_if_one_transaction_can_have_settled_it() {
    use Evidence::{Ambiguous, Identified, None as NoEvidence, Possible};
    for (evidence, found) in [
        (vec![Possible(3)], Some((0, 3))),
        (vec![NoEvidence, Possible(3)], Some((1, 3))),
        (vec![Possible(3), Identified(5)], Some((1, 5))),
        (vec![Ambiguous, Identified(5)], Some((1, 5))),
        (vec![], None),
        (vec![Ambiguous], None),
        (vec![Possible(3), Possible(5)], None),
        (vec![Possible(3), Ambiguous], None),
        (vec![Identified(3), Identified(5)], None),
    ] {
        assert_eq!(single_match(&evidence), found, "{evidence:?}");
    }
}
