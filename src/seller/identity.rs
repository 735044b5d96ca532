//! What makes a payment one payment, however its header is spelled.

use alloy::primitives::{Address, B256, U256, keccak256};
use serde_json::Value;

use crate::protocol::permit2::PERMIT2;
use crate::protocol::session::{PROOF_TYPE, SessionId};
use crate::protocol::{Authorization, PaymentRequirements, Permit2Authorization};

/// The first bytes of what is hashed, so that a nonce and a session never share a key.
const NONCE_TAG: &[u8] = b"x402d/purchase/nonce";
const SESSION_TAG: &[u8] = b"x402d/purchase/session";

/// Identifies a payment: by network, nonce domain (the token for EIP-3009, else Permit2), payer and nonce, or by the session of a proof.
/// Nothing else of a payload counts: its signature, case and further members have many spellings, and each buys the same thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PaymentIdentity {
    /// The hash over what identifies the payment.
    pub(super) key: B256,
    /// The payer; a proof names none.
    pub(super) payer: Option<Address>,
    /// Unix seconds after which the payment cannot move money; `None` for a transfer that the payer has sent itself.
    pub(super) valid_before: Option<i64>,
}

impl PaymentIdentity {
    /// Reads the payload of a payment for `offer`. `None` when it is not exactly one of the known payloads.
    pub(super) fn of(payload: &Value, offer: &PaymentRequirements) -> Option<Self> {
        let member = |name: &str| payload.get(name).filter(|value| !value.is_null());
        match (member("type"), member("permit2Authorization")) {
            (Some(kind), None) if kind == PROOF_TYPE => {
                let id: SessionId = member("sessionId")?.as_str()?.parse().ok()?;
                Some(Self {
                    key: keccak256([SESSION_TAG, id.as_str().as_bytes()].concat()),
                    payer: None,
                    valid_before: None,
                })
            }
            (None, Some(signed)) => {
                let signed: Permit2Authorization = serde_json::from_value(signed.clone()).ok()?;
                let nonce = B256::from(signed.nonce.atomic());
                let end = signed.deadline.atomic();
                Self::by_nonce(offer, PERMIT2, (signed.from, nonce), end)
            }
            (None, None) => {
                let signed: Authorization =
                    serde_json::from_value(member("authorization")?.clone()).ok()?;
                let end = signed.valid_before.atomic();
                Self::by_nonce(offer, offer.asset, (signed.from, signed.nonce), end)
            }
            (Some(_), _) => None,
        }
    }

    fn by_nonce(
        offer: &PaymentRequirements,
        domain: Address,
        (payer, nonce): (Address, B256),
        end: U256,
    ) -> Option<Self> {
        let chain = offer.network.chain_id().to_be_bytes();
        let parts = [
            NONCE_TAG,
            &chain,
            domain.as_slice(),
            payer.as_slice(),
            nonce.as_slice(),
        ];
        (!payer.is_zero()).then(|| Self {
            key: keccak256(parts.concat()),
            payer: Some(payer),
            valid_before: Some(i64::try_from(end).unwrap_or(i64::MAX)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const PAYER: &str = "0x19E7E376E7C213B7E7e7e46cc70A5dD086DAff2A";
    const NONCE: &str = "0xabababababababababababababababababababababababababababababababab";

    fn offer(asset: &str, network: &str) -> PaymentRequirements {
        serde_json::from_value(json!({"scheme": "exact", "network": network, "amount": "10000", "asset": asset,
            "payTo": "0x2222222222222222222222222222222222222222", "maxTimeoutSeconds": 300, "extra": {}}))
        .unwrap()
    }

    fn usdc() -> PaymentRequirements {
        offer("0x036CbD53842c5426634e7929541eC2318f3dCF7e", "eip155:84532")
    }

    fn authorization(payer: &str, nonce: &str) -> Value {
        json!({"signature": "0x07", "authorization": {"from": payer, "to": "0x2222222222222222222222222222222222222222",
            "value": "10000", "validAfter": "0", "validBefore": "1900000000", "nonce": nonce}})
    }

    fn key(payload: &Value, offer: &PaymentRequirements) -> Option<B256> {
        PaymentIdentity::of(payload, offer).map(|identity| identity.key)
    }

    #[test]
    fn spelling_of_a_payload_does_not_count() {
        let plain = authorization(PAYER, NONCE);
        let mut other = authorization(
            &PAYER.to_lowercase(),
            &NONCE.to_uppercase().replace('X', "x"),
        );
        other["signature"] = json!("0xAB");
        other["x"] = json!(1);
        other["type"] = Value::Null;
        let identity = PaymentIdentity::of(&plain, &usdc()).unwrap();
        assert_eq!(PaymentIdentity::of(&other, &usdc()), Some(identity));
        assert_eq!(identity.valid_before, Some(1_900_000_000));
    }

    #[test]
    fn network_token_payer_and_nonce_count() {
        let plain = authorization(PAYER, NONCE);
        let first = key(&plain, &usdc());
        let token = "0x4444444444444444444444444444444444444444";
        for (payload, offer) in [
            (plain.clone(), offer(token, "eip155:84532")),
            (
                plain.clone(),
                offer("0x036CbD53842c5426634e7929541eC2318f3dCF7e", "eip155:8453"),
            ),
            (authorization(token, NONCE), usdc()),
            (authorization(PAYER, &NONCE.replace("ab", "cd")), usdc()),
        ] {
            let other = key(&payload, &offer);
            assert!(other.is_some() && other != first, "{payload}");
        }
    }

    #[test]
    fn permit2_counts_across_tokens_and_a_proof_by_its_session() {
        let permit2 = json!({"signature": "0x07", "permit2Authorization": {"from": PAYER,
            "permitted": {"token": "0x4444444444444444444444444444444444444444", "amount": "10000"},
            "spender": "0x402085c248EeA27D92E8b30b2C58ed07f9E20001", "nonce": "7", "deadline": "1900000000",
            "witness": {"to": "0x2222222222222222222222222222222222222222", "validAfter": "0"}}});
        let other_token = offer("0x4444444444444444444444444444444444444444", "eip155:84532");
        assert_eq!(key(&permit2, &usdc()), key(&permit2, &other_token));
        let proof = |id: &str| json!({"type": "session-proof", "sessionId": id, "transaction": NONCE, "signature": "0x07"});
        let first = proof("ps_0123456789abcdefghjkmnpqrs");
        let mut respelled = first.clone();
        respelled["transaction"] = json!("0x12");
        assert_eq!(key(&first, &usdc()), key(&respelled, &usdc()));
        assert_ne!(
            key(&first, &usdc()),
            key(&proof("ps_1123456789abcdefghjkmnpqrs"), &usdc())
        );
    }

    #[test]
    fn payload_of_two_kinds_or_none_is_no_payment() {
        let mut both = authorization(PAYER, NONCE);
        both["permit2Authorization"] = json!({"from": PAYER});
        let mut typed = authorization(PAYER, NONCE);
        typed["type"] = json!("voucher");
        let nobody = authorization("0x0000000000000000000000000000000000000000", NONCE);
        for payload in [
            both,
            typed,
            nobody,
            json!({}),
            json!("text"),
            json!({"type": "session-proof"}),
        ] {
            assert_eq!(key(&payload, &usdc()), None, "{payload}");
        }
    }
}
