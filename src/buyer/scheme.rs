//! From a payment requirement to a signed payload: the only place where payment schemes differ for a buyer.
//!
//! A further scheme adds an arm to [`sign`] and a rule to `PayOptions::can_pay`. The EIP-712 typed data is built here from the offer's fields;
//! typed data from a seller or facilitator is never signed.

use alloy::primitives::{B256, Bytes, U256};
use serde::Serialize;
use serde_json::Value;

use crate::buyer::{BuyerError, SignedPayment, Signer};
use crate::protocol::challenge::Offer;
use crate::protocol::gas_sponsoring::{EIP2612, Version};
use crate::protocol::permit2::{PERMIT2, Permitted, Witness, proxy_of};
use crate::protocol::session::SessionId;
use crate::protocol::{
    Amount, Authorization, DomainSeparator, Eip2612Info, ExactPayload, PaymentHeader,
    PaymentMethod, PaymentRequired, PaymentRequirements, Permit2Authorization, Permit2Payload,
};

/// A signed payment, ready to be presented.
pub(super) struct PreparedPayment {
    pub(super) header: PaymentHeader,
    pub(super) signed: SignedPayment,
    /// The EIP-3009 payload, which a facilitator can settle before the paid request.
    pub(super) authorization: Option<ExactPayload>,
}

/// The nonce and expiry that bind a payment to its purchase.
#[derive(Debug, Clone, Copy)]
pub(super) struct Binding {
    pub(super) nonce: B256,
    /// In Unix seconds.
    pub(super) valid_before: u64,
}

/// What a presentation carries besides the signed payment.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Extras<'a> {
    /// The session that the nonce is made of.
    pub(super) session: Option<&'a SessionId>,
    /// An EIP-2612 permit is attached, with this nonce.
    pub(super) permit_nonce: Option<U256>,
}

/// Signs a payment for `offer`, an entry of `challenge`.
pub(super) fn sign(
    signer: &Signer,
    challenge: &PaymentRequired,
    offer: &Offer,
    binding: Binding,
    extras: Extras<'_>,
) -> Result<PreparedPayment, BuyerError> {
    let valid_before = i64::try_from(binding.valid_before).unwrap_or(i64::MAX);
    let prepared = |header, authorization| PreparedPayment {
        header,
        signed: payment_terms(signer, offer, binding.nonce, Some(valid_before)),
        authorization,
    };
    match offer.requirements.payment_method() {
        Some(PaymentMethod::Authorization) => {
            let payload = ExactPayload {
                session_id: extras.session.cloned(),
                ..eip3009_payload(signer, &offer.requirements, binding)?
            };
            Ok(prepared(
                present(challenge, offer, &payload)?,
                Some(payload),
            ))
        }
        Some(method @ (PaymentMethod::Permit2 | PaymentMethod::Metered)) => {
            let payload = permit2_payload(signer, &offer.requirements, method, binding)?;
            let mut challenge = challenge.clone();
            if let Some(nonce) = extras.permit_nonce {
                let permit = eip2612_permit(signer, &offer.requirements, binding, nonce)?;
                if let Ok(Value::Object(info)) = serde_json::to_value(permit) {
                    challenge.fill(EIP2612, info);
                }
            }
            Ok(prepared(present(&challenge, offer, &payload)?, None))
        }
        None => Err(signing_error("the offer's transfer method is unknown")),
    }
}

/// The terms of a payment for `offer`.
pub(super) fn payment_terms(
    signer: &Signer,
    offer: &Offer,
    nonce: B256,
    valid_before: Option<i64>,
) -> SignedPayment {
    SignedPayment {
        network: offer.requirements.network,
        asset: offer.requirements.asset,
        payer: signer.address(),
        pay_to: offer.requirements.pay_to,
        amount: offer.requirements.amount,
        method: offer.requirements.payment_method().unwrap_or_default(),
        nonce,
        valid_before,
    }
}

fn present<P: Serialize>(
    challenge: &PaymentRequired,
    offer: &Offer,
    payload: &P,
) -> Result<PaymentHeader, BuyerError> {
    PaymentHeader::present(challenge, offer, payload)
        .map_err(|error| BuyerError::Signing(error.to_string()))
}

fn signing_error(why: &str) -> BuyerError {
    BuyerError::Signing(why.to_owned())
}

/// The EIP-712 domain of the token, as the offer names it.
fn token_domain(requirements: &PaymentRequirements) -> Result<DomainSeparator, BuyerError> {
    let (Some(name), Some(version)) = (requirements.domain_name(), requirements.domain_version())
    else {
        return Err(signing_error(
            "the offer does not name the EIP-712 domain of its token (extra.name, extra.version)",
        ));
    };
    let (network, asset) = (requirements.network, requirements.asset);
    Ok(DomainSeparator::of_token(name, version, network, asset))
}

fn sign_digest(signer: &Signer, digest: B256) -> Result<Bytes, BuyerError> {
    signer.sign(digest).map_err(BuyerError::Signing)
}

/// Scheme `exact` by EIP-3009.
fn eip3009_payload(
    signer: &Signer,
    requirements: &PaymentRequirements,
    binding: Binding,
) -> Result<ExactPayload, BuyerError> {
    let authorization = Authorization {
        from: signer.address(),
        to: requirements.pay_to,
        value: requirements.amount,
        valid_after: Amount::ZERO,
        valid_before: Amount::from_atomic(U256::from(binding.valid_before)),
        nonce: binding.nonce,
    };
    let digest = authorization.digest(token_domain(requirements)?);
    Ok(ExactPayload {
        signature: sign_digest(signer, digest)?,
        authorization,
        session_id: None,
    })
}

/// Schemes `exact` and `upto` by Permit2: through the scheme's proxy, to the payee. In `upto` the witness allows only the seller's
/// facilitator to settle.
fn permit2_payload(
    signer: &Signer,
    requirements: &PaymentRequirements,
    method: PaymentMethod,
    binding: Binding,
) -> Result<Permit2Payload, BuyerError> {
    let facilitator = match method {
        PaymentMethod::Metered => {
            let named = requirements.facilitator();
            Some(named.ok_or_else(|| {
                signing_error("the offer does not name its facilitator (extra.facilitatorAddress)")
            })?)
        }
        PaymentMethod::Authorization | PaymentMethod::Permit2 => None,
    };
    let authorization = Permit2Authorization {
        from: signer.address(),
        permitted: Permitted {
            token: requirements.asset,
            amount: requirements.amount,
        },
        spender: proxy_of(method.scheme()),
        nonce: Amount::from_atomic(binding.nonce.into()),
        deadline: Amount::from_atomic(U256::from(binding.valid_before)),
        witness: Witness {
            to: requirements.pay_to,
            facilitator,
            valid_after: Amount::ZERO,
        },
    };
    let separator = DomainSeparator::of_permit2(requirements.network);
    let digest = authorization.digest(method.scheme(), separator);
    Ok(Permit2Payload {
        signature: sign_digest(signer, digest)?,
        permit2_authorization: authorization,
    })
}

/// The token's permit (EIP-2612): an allowance to Permit2 over the amount of the payment, with the same deadline.
fn eip2612_permit(
    signer: &Signer,
    requirements: &PaymentRequirements,
    binding: Binding,
    nonce: U256,
) -> Result<Eip2612Info, BuyerError> {
    let mut info = Eip2612Info {
        from: signer.address(),
        asset: requirements.asset,
        spender: PERMIT2,
        amount: requirements.amount,
        nonce: Amount::from_atomic(nonce),
        deadline: Amount::from_atomic(U256::from(binding.valid_before)),
        signature: Bytes::new(),
        version: Version::current(),
    };
    info.signature = sign_digest(signer, info.digest(token_domain(requirements)?))?;
    Ok(info)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{PresentedPayment, X402Version};
    use serde_json::json;

    const KEY: &str = "0x1111111111111111111111111111111111111111111111111111111111111111";

    /// Signs an offer with the terms of the published Permit2 test vectors.
    fn presented(scheme: &str, permit_nonce: Option<U256>) -> (Value, SignedPayment) {
        let facilitator =
            (scheme == "upto").then_some("0x3333333333333333333333333333333333333333");
        let challenge: PaymentRequired = serde_json::from_value(json!({
            "x402Version": 2,
            "accepts": [{"scheme": scheme, "network": "eip155:84532", "amount": "10000",
                "asset": "0x036CbD53842c5426634e7929541eC2318f3dCF7e", "payTo": "0x2222222222222222222222222222222222222222",
                "maxTimeoutSeconds": 300, "extra": {"name": "USDC", "version": "2", "assetTransferMethod": "permit2",
                "facilitatorAddress": facilitator}}],
            "extensions": {EIP2612: {"info": {"description": "gas", "version": "1"}, "schema": {"type": "object"}}},
        }))
        .unwrap();
        let offer = challenge.offers().remove(0);
        let binding = Binding {
            nonce: U256::from(7).into(),
            valid_before: 1_900_000_000,
        };
        let signer = Signer::from_key(KEY).unwrap();
        let prepared = sign(
            &signer,
            &challenge,
            &offer,
            binding,
            Extras {
                session: None,
                permit_nonce,
            },
        )
        .unwrap();
        assert!(prepared.authorization.is_none());
        let payment = PresentedPayment::read(X402Version::V2, prepared.header.value()).unwrap();
        (payment.raw().clone(), prepared.signed)
    }

    #[test]
    fn permit2_signatures_match_published_vectors() {
        for (scheme, method, signature) in [
            (
                "exact",
                PaymentMethod::Permit2,
                "0xd5d92faa68ee8a391c1e3ad721efcdfb48d3c73c39438d353afb0357d75a96736aeccac09d31d96a64bf06c04a6110700c57f808128e95f20fc000330b8d975c1c",
            ),
            (
                "upto",
                PaymentMethod::Metered,
                "0x18d14173e84d8c6e2ed75585203d2b0eb396da09c712872c9654e5914d2c5fa801e046c96c851794967ccf9e7972bb729b3b2d4a0d6f199252bf0427d26111bf1c",
            ),
        ] {
            let (payment, signed) = presented(scheme, None);
            assert_eq!(payment["payload"]["signature"], signature, "{scheme}");
            let authorization = &payment["payload"]["permit2Authorization"];
            assert_eq!(authorization["nonce"], "7");
            assert_eq!(authorization["witness"]["validAfter"], "0");
            assert_eq!(
                authorization["witness"].get("facilitator").is_some(),
                scheme == "upto"
            );
            assert_eq!(
                (signed.method, signed.amount.to_string().as_str()),
                (method, "10000")
            );
            assert!(
                payment["extensions"][EIP2612]["info"]
                    .get("signature")
                    .is_none()
            );
        }
    }

    #[test]
    fn permit_covers_the_payment_and_keeps_declared_members() {
        let (payment, _) = presented("exact", Some(U256::from(5)));
        let declared = &payment["extensions"][EIP2612];
        assert_eq!(declared["schema"], json!({"type": "object"}));
        let info = &declared["info"];
        assert_eq!(info["description"], "gas");
        let permit: Eip2612Info = serde_json::from_value(info.clone()).unwrap();
        let authorization = &payment["payload"]["permit2Authorization"];
        assert_eq!(info["amount"], authorization["permitted"]["amount"]);
        assert_eq!(info["deadline"], authorization["deadline"]);
        assert_eq!(
            (info["nonce"].as_str(), permit.spender),
            (Some("5"), PERMIT2)
        );
        let separator =
            DomainSeparator::of_token("USDC", "2", "eip155:84532".parse().unwrap(), permit.asset);
        let signature = alloy::primitives::Signature::from_raw(&permit.signature).unwrap();
        let owner = signature.recover_address_from_prehash(&permit.digest(separator));
        assert_eq!(owner.unwrap(), permit.from);
        assert_eq!(permit.from, Signer::from_key(KEY).unwrap().address());
    }
}
