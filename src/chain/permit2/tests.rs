//! Which logs and calldata prove the settlement of a payment by Permit2.

use alloy::primitives::{U64, keccak256};

use super::*;
use crate::chain::transfer::TRANSFER;
use crate::payment::fixture::{
    AMOUNT, FACILITATOR, PAYEE, PAYER, USDC, candidate_of, permit2_body,
};
use crate::payment::{Candidate, PaymentTerms, Purpose};
use crate::protocol::Scheme;
use crate::protocol::permit2::{EXACT_PROXY, UPTO_PROXY};

const OTHER: Address = Address::repeat_byte(0x66);

fn exact() -> Candidate {
    candidate_of(&permit2_body(Scheme::Exact), Purpose::Settle)
}

fn upto() -> Candidate {
    candidate_of(&permit2_body(Scheme::Upto), Purpose::Settle)
}

fn emitted(address: Address, topics: Vec<B256>, data: Bytes) -> Log {
    Log {
        address,
        topics,
        data,
        log_index: U64::ZERO,
        block_number: alloy::primitives::U64::ZERO,
        transaction_hash: B256::ZERO,
    }
}

fn transfer(from: Address, to: Address, amount: u64) -> Log {
    let topics = vec![TRANSFER, from.into_word(), to.into_word()];
    emitted(USDC, topics, U256::from(amount).to_be_bytes::<32>().into())
}

fn settled() -> Log {
    emitted(EXACT_PROXY, vec![SETTLED], Bytes::new())
}

/// The log index that is found in these logs, which have the indices from 40 on.
fn found(logs: impl IntoIterator<Item = Log>) -> Option<u64> {
    let mut logs: Vec<Log> = logs.into_iter().collect();
    for (log, index) in logs.iter_mut().zip(40_u64..) {
        log.log_index = U64::from(index);
    }
    transfer_log(&exact().terms, &logs)
}

#[test]
fn topics_are_the_hashes_of_the_events() {
    assert_eq!(SETTLED, keccak256("Settled()"));
    assert_eq!(SETTLED_WITH_PERMIT, keccak256("SettledWithPermit()"));
}

#[test]
fn calls_have_the_published_selectors() {
    assert_eq!(ExactProxy::settleCall::SELECTOR, [0x13, 0xcd, 0x3b, 0x53]);
    assert_eq!(
        ExactProxy::settleWithPermitCall::SELECTOR,
        [0xfa, 0x34, 0x03, 0x78]
    );
    assert_eq!(UptoProxy::settleCall::SELECTOR, [0xff, 0x11, 0xe7, 0xb4]);
    assert_eq!(
        UptoProxy::settleWithPermitCall::SELECTOR,
        [0x01, 0x6c, 0x17, 0x48]
    );
}

#[test]
fn last_transfer_before_the_proxy_event_is_the_payments() {
    let ours = transfer(PAYER, PAYEE, AMOUNT);
    assert_eq!(found([ours.clone(), settled()]), Some(40));
    let with_permit = emitted(EXACT_PROXY, vec![SETTLED_WITH_PERMIT], Bytes::new());
    let approval = emitted(USDC, vec![APPROVAL], Bytes::new());
    assert_eq!(
        found([approval.clone(), ours.clone(), approval, with_permit]),
        Some(41)
    );
    let another = transfer(PAYER, OTHER, AMOUNT);
    assert_eq!(
        found([another.clone(), settled(), ours.clone(), settled()]),
        Some(42)
    );
    assert_eq!(
        found([ours.clone(), settled(), another, settled()]),
        Some(40)
    );
}

#[test]
fn incomplete_or_different_logs_prove_no_transfer() {
    let ours = transfer(PAYER, PAYEE, AMOUNT);
    let by_other = emitted(OTHER, vec![SETTLED], Bytes::new());
    let by_upto = emitted(UPTO_PROXY, vec![SETTLED], Bytes::new());
    let of_other_token = || Log {
        address: OTHER,
        ..transfer(PAYER, PAYEE, AMOUNT)
    };
    for logs in [
        vec![],
        vec![settled()],
        vec![ours.clone()],
        vec![settled(), ours.clone()],
        vec![ours.clone(), by_other],
        vec![ours.clone(), by_upto],
        vec![of_other_token(), settled()],
        vec![transfer(PAYER, PAYEE, AMOUNT - 1), settled()],
        vec![transfer(PAYER, OTHER, AMOUNT), settled()],
        vec![transfer(OTHER, PAYEE, AMOUNT), settled()],
        // A plain transfer of the same amount, followed by the settlement of another payment.
        vec![ours.clone(), transfer(PAYER, OTHER, 1), settled()],
        // The same transfer by another authorization, followed by a settlement in another token.
        vec![ours.clone(), of_other_token(), settled()],
        // A token that charges a fee by a second transfer.
        vec![ours, transfer(PAYER, OTHER, 1), settled()],
    ] {
        assert_eq!(found(logs.clone()), None, "{logs:?}");
    }
}

#[test]
fn nonce_maps_to_a_bit_of_a_word() {
    for (nonce, word, bit) in [
        (U256::from(7), U256::ZERO, 7),
        (U256::from(256), U256::ONE, 0),
        (U256::MAX, U256::MAX >> 8, 255),
    ] {
        let NonceCall {
            call: (to, data),
            mask,
        } = nonce_call(PAYER, B256::from(nonce));
        let call = Nonces::nonceBitmapCall::abi_decode(&data).unwrap();
        assert_eq!(to, PERMIT2);
        assert_eq!((call.owner, call.word), (PAYER, word), "{nonce}");
        assert_eq!(mask, U256::ONE << bit, "{nonce}");
    }
}

#[test]
fn proxy_call_proves_settlement_of_the_nonce_in_its_calldata() {
    for (candidate, proxy) in [(exact(), EXACT_PROXY), (upto(), UPTO_PROXY)] {
        let signed = &candidate.terms;
        let (to, data) = crate::chain::authorization::settlement_call(signed);
        assert_eq!(to, proxy);
        assert!(proves_settlement(signed, Some(to), &data, &[]));
        assert!(!proves_settlement(signed, Some(OTHER), &data, &[]));
        assert!(!proves_settlement(signed, None, &data, &[]));
        let mut other = candidate.clone();
        other.terms.nonce = B256::repeat_byte(1);
        assert!(
            !proves_settlement(&other.terms, Some(to), &data, &[]),
            "another nonce"
        );
        let mut other = candidate.clone();
        other.terms.value = "1".parse().unwrap();
        if proxy == UPTO_PROXY {
            assert!(
                !proves_settlement(&other.terms, Some(to), &data, &[]),
                "another charge"
            );
        }
    }
    assert_eq!(upto().terms.settling_signer(), Some(FACILITATOR));
}

#[test]
fn batch_proves_settlement_only_without_another_possible_source() {
    let ours = exact();
    let signed = &ours.terms;
    let mut twin = ours.clone();
    twin.terms.nonce = B256::repeat_byte(1);
    let batch =
        |of: &[&PaymentTerms]| crate::chain::authorization::batch_call(of.iter().copied()).1;
    let proves = |data: &Bytes, tokens: &[Address]| {
        proves_settlement(signed, Some(MULTICALL3), data, tokens)
    };

    let mut other = crate::payment::fixture::candidate();
    let same_transfer = other.clone();
    other.terms.value = "1".parse().unwrap();
    let mut in_unknown_token = twin.clone();
    in_unknown_token.terms.asset = OTHER;

    assert!(proves(&batch(&[signed]), &[USDC]));
    assert!(proves(&batch(&[signed, &other.terms]), &[USDC]));
    for (batch, tokens, why) in [
        (batch(&[signed]), vec![], "an unknown token"),
        (
            batch(&[signed, &in_unknown_token.terms]),
            vec![USDC],
            "an unknown token beside it",
        ),
        (
            batch(&[signed, &twin.terms]),
            vec![USDC],
            "two payments with the same transfer",
        ),
        (
            batch(&[signed, &same_transfer.terms]),
            vec![USDC],
            "an EIP-3009 payment with the same transfer",
        ),
        (batch(&[&twin.terms]), vec![USDC], "another nonce"),
        (Bytes::new(), vec![USDC], "not a batch"),
        (
            beside_a_plain_transfer(signed),
            vec![USDC],
            "a plain transfer",
        ),
    ] {
        assert!(!proves(&batch, &tokens), "{why}");
    }
}

/// A batch that also calls the token with `transferFrom`.
fn beside_a_plain_transfer(terms: &PaymentTerms) -> Bytes {
    let (target, data) = crate::chain::authorization::settlement_call(terms);
    let call = |target, data| Multicall3::Call3 {
        target,
        allowFailure: true,
        callData: data,
    };
    let calls = vec![
        call(USDC, Bytes::from_static(&[0x23, 0xb8, 0x72, 0xdd])),
        call(target, data),
    ];
    Multicall3::aggregate3Call { calls }.abi_encode().into()
}
