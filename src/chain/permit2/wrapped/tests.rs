//! Which transaction of a block settled a payment whose calldata nobody knows, and when nothing is concluded.

use alloy::primitives::{B256, Bytes, U64, U256};

use super::*;
use crate::chain::authorization::settlement_call;
use crate::chain::permit2::{SETTLED, TRANSFER};
use crate::payment::specimen::{AMOUNT, PAYEE, PAYER, USDC, candidate_of, permit2_body};
use crate::payment::{Candidate, Purpose};
use crate::protocol::Scheme;
use crate::protocol::permit2::EXACT_PROXY;

fn exact(nonce: u8) -> Candidate {
    let mut exact = candidate_of(&permit2_body(Scheme::Exact), Purpose::Settle);
    exact.authorization.nonce = B256::repeat_byte(nonce);
    exact
}

/// The logs of so many settlements that look alike; their Transfers stand at 0, 2, 4 …
fn settlements(count: usize) -> Vec<Log> {
    let log = |address, topics: Vec<B256>, data: Bytes| Log {
        address,
        topics,
        data,
        log_index: U64::ZERO,
        block_number: U64::ZERO,
        transaction_hash: B256::ZERO,
    };
    let moved = vec![TRANSFER, PAYER.into_word(), PAYEE.into_word()];
    let amount = Bytes::from(U256::from(AMOUNT).to_be_bytes::<32>());
    let mut logs = Vec::new();
    for _ in 0..count {
        logs.push(log(USDC, moved.clone(), amount.clone()));
        logs.push(log(EXACT_PROXY, vec![SETTLED], Bytes::new()));
    }
    for (log, index) in logs.iter_mut().zip(0_u64..) {
        log.log_index = U64::from(index);
    }
    logs
}

/// Calldata that spells out settlements of these nonces somewhere inside.
fn spelled_out(nonces: &[u8]) -> Vec<u8> {
    let mut input = b"wrap".to_vec();
    for nonce in nonces {
        input.extend_from_slice(&settlement_call(exact(*nonce).signed()).1);
    }
    input
}

#[test]
fn calldata_that_spells_out_every_settlement_tells_which_is_whose() {
    let (payment, two) = (exact(1), settlements(2));
    let of = |nonces: &[u8]| trace(payment.signed(), &spelled_out(nonces), &two);
    assert_eq!(of(&[1, 2]), Trace::Named(0));
    assert_eq!(of(&[2, 1]), Trace::Named(2));
    assert_eq!(of(&[2, 3]), Trace::None, "two others");
    for unclear in [&[][..], &[1], &[1, 2, 3]] {
        assert_eq!(of(unclear), Trace::Several, "{unclear:?}");
    }
}

#[test]
fn calldata_that_says_nothing_leaves_one_settlement_possible() {
    let payment = exact(1);
    let of = |nonces: &[u8], count| {
        let logs = settlements(count);
        trace(payment.signed(), &spelled_out(nonces), &logs)
    };
    assert_eq!(of(&[], 1), Trace::Possible(0));
    assert_eq!(of(&[], 0), Trace::None);
    assert_eq!(of(&[1], 1), Trace::Named(0));
    assert_eq!(of(&[1], 0), Trace::None, "it did not go through");
    assert_eq!(of(&[2], 1), Trace::None, "that of another payment");
}

#[test]
fn one_transaction_alone_may_be_the_payments() {
    use Trace::{Named, None as Nothing, Possible, Several};
    for (traces, found) in [
        (vec![Possible(3)], Some((0, 3))),
        (vec![Nothing, Possible(3)], Some((1, 3))),
        (vec![Possible(3), Named(5)], Some((1, 5))),
        (vec![Several, Named(5)], Some((1, 5))),
        (vec![], None),
        (vec![Several], None),
        (vec![Possible(3), Possible(5)], None),
        (vec![Possible(3), Several], None),
        (vec![Named(3), Named(5)], None),
    ] {
        assert_eq!(the_only_one(&traces), found, "{traces:?}");
    }
}
