//! From a requirement to a payload: the one place where schemes differ for a buyer.
//!
//! A further one adds its arm to [`sign`] and its rule to `choose::payable`. The typed data is built here, from the offer's
//! fields; nothing that came is signed.

use alloy::primitives::{B256, Bytes, U256};
use serde::Serialize;
use serde_json::Value;

use crate::buyer::{BuyerError, Handed, Signer};
use crate::protocol::challenge::Offer;
use crate::protocol::gas_sponsoring::{EIP2612, Version};
use crate::protocol::permit2::{PERMIT2, Permitted, Witness, proxy_of};
use crate::protocol::{
    Amount, Authorization, DomainSeparator, Eip2612Info, ExactPayload, Means, PaymentHeader,
    PaymentRequired, PaymentRequirements, Permit2Authorization, Permit2Payload,
};

/// A signed payment, ready to be presented.
pub(super) struct Signed {
    pub(super) header: PaymentHeader,
    pub(super) handed: Handed,
    /// What a facilitator can send early: an authorization by EIP-3009.
    pub(super) early: Option<ExactPayload>,
}

/// By what a payment is bound to its purchase.
#[derive(Debug, Clone, Copy)]
pub(super) struct Binding {
    pub(super) nonce: B256,
    /// Unix seconds.
    pub(super) valid_before: u64,
}

/// Signs what `offer`, an entry of `challenge`, asks for. With a `permit_nonce` the token's own permit goes with it.
pub(super) fn sign(
    signer: &Signer,
    challenge: &PaymentRequired,
    offer: &Offer,
    binding: Binding,
    permit_nonce: Option<U256>,
) -> Result<Signed, BuyerError> {
    let valid_before = i64::try_from(binding.valid_before).unwrap_or(i64::MAX);
    let signed = |header, early| Signed {
        header,
        handed: handed(signer, offer, binding.nonce, Some(valid_before)),
        early,
    };
    match offer.requirements.means() {
        Some(Means::Authorization) => {
            let payload = authorization(signer, &offer.requirements, binding)?;
            Ok(signed(present(challenge, offer, &payload)?, Some(payload)))
        }
        Some(means @ (Means::Permit2 | Means::Metered)) => {
            let payload = permission(signer, &offer.requirements, means, binding)?;
            let mut challenge = challenge.clone();
            if let Some(nonce) = permit_nonce {
                let permit = permit(signer, &offer.requirements, binding, nonce)?;
                if let Ok(Value::Object(info)) = serde_json::to_value(permit) {
                    challenge.fill(EIP2612, info);
                }
            }
            Ok(signed(present(&challenge, offer, &payload)?, None))
        }
        None => Err(unsignable("the offer's transfer method is not known")),
    }
}

/// What `offer` would have the payer hand over.
pub(super) fn handed(
    signer: &Signer,
    offer: &Offer,
    nonce: B256,
    valid_before: Option<i64>,
) -> Handed {
    Handed {
        network: offer.requirements.network,
        asset: offer.requirements.asset,
        payer: signer.address(),
        pay_to: offer.requirements.pay_to,
        amount: offer.requirements.amount,
        means: offer.requirements.means().unwrap_or_default(),
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

fn unsignable(why: &str) -> BuyerError {
    BuyerError::Signing(why.to_owned())
}

/// The token's domain, as the offer names it.
fn token(requirements: &PaymentRequirements) -> Result<DomainSeparator, BuyerError> {
    let (Some(name), Some(version)) = (requirements.domain_name(), requirements.domain_version())
    else {
        return Err(unsignable("the offer does not name its token's domain"));
    };
    let (network, asset) = (requirements.network, requirements.asset);
    Ok(DomainSeparator::of_token(name, version, network, asset))
}

fn sealed(signer: &Signer, digest: B256) -> Result<Bytes, BuyerError> {
    signer.sign(digest).map_err(BuyerError::Signing)
}

/// Scheme `exact` by EIP-3009.
fn authorization(
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
    let digest = authorization.digest(token(requirements)?);
    Ok(ExactPayload {
        signature: sealed(signer, digest)?,
        authorization,
    })
}

/// Schemes `exact` and `upto` by Permit2: through the scheme's proxy, to the payee; by `upto` for the seller's facilitator alone.
fn permission(
    signer: &Signer,
    requirements: &PaymentRequirements,
    means: Means,
    binding: Binding,
) -> Result<Permit2Payload, BuyerError> {
    let facilitator = match means {
        Means::Metered => {
            let named = requirements.facilitator();
            Some(named.ok_or_else(|| unsignable("the offer does not name its facilitator"))?)
        }
        Means::Authorization | Means::Permit2 => None,
    };
    let authorization = Permit2Authorization {
        from: signer.address(),
        permitted: Permitted {
            token: requirements.asset,
            amount: requirements.amount,
        },
        spender: proxy_of(means.scheme()),
        nonce: Amount::from_atomic(binding.nonce.into()),
        deadline: Amount::from_atomic(U256::from(binding.valid_before)),
        witness: Witness {
            to: requirements.pay_to,
            facilitator,
            valid_after: Amount::ZERO,
        },
    };
    let separator = DomainSeparator::of_permit2(requirements.network);
    let digest = authorization.digest(means.scheme(), separator);
    Ok(Permit2Payload {
        signature: sealed(signer, digest)?,
        permit2_authorization: authorization,
    })
}

/// The token's own permit (EIP-2612): lets Permit2 take what the payment takes, and for no longer.
fn permit(
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
    info.signature = sealed(signer, info.digest(token(requirements)?))?;
    Ok(info)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{PresentedPayment, X402Version};
    use serde_json::json;

    const KEY: &str = "0x1111111111111111111111111111111111111111111111111111111111111111";

    /// The terms of the published vectors.
    fn presented(scheme: &str, permit_nonce: Option<U256>) -> (Value, Handed) {
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
        let signed = sign(&signer, &challenge, &offer, binding, permit_nonce).unwrap();
        assert!(signed.early.is_none());
        let payment = PresentedPayment::read(X402Version::V2, signed.header.value()).unwrap();
        (payment.raw().clone(), signed.handed)
    }

    #[test]
    fn what_is_signed_for_permit2_is_what_was_published() {
        for (scheme, means, signature) in [
            (
                "exact",
                Means::Permit2,
                "0xd5d92faa68ee8a391c1e3ad721efcdfb48d3c73c39438d353afb0357d75a96736aeccac09d31d96a64bf06c04a6110700c57f808128e95f20fc000330b8d975c1c",
            ),
            (
                "upto",
                Means::Metered,
                "0x18d14173e84d8c6e2ed75585203d2b0eb396da09c712872c9654e5914d2c5fa801e046c96c851794967ccf9e7972bb729b3b2d4a0d6f199252bf0427d26111bf1c",
            ),
        ] {
            let (payment, handed) = presented(scheme, None);
            assert_eq!(payment["payload"]["signature"], signature, "{scheme}");
            let signed = &payment["payload"]["permit2Authorization"];
            assert_eq!(signed["nonce"], "7");
            assert_eq!(signed["witness"]["validAfter"], "0");
            assert_eq!(
                signed["witness"].get("facilitator").is_some(),
                scheme == "upto"
            );
            assert_eq!(
                (handed.means, handed.amount.to_string().as_str()),
                (means, "10000")
            );
            assert!(
                payment["extensions"][EIP2612]["info"]
                    .get("signature")
                    .is_none()
            );
        }
    }

    #[test]
    fn the_tokens_permit_is_for_what_the_payment_takes_and_stands_beside_what_was_declared() {
        let (payment, _) = presented("exact", Some(U256::from(5)));
        let declared = &payment["extensions"][EIP2612];
        assert_eq!(declared["schema"], json!({"type": "object"}));
        let info = &declared["info"];
        assert_eq!(info["description"], "gas");
        let permit: Eip2612Info = serde_json::from_value(info.clone()).unwrap();
        let signed = &payment["payload"]["permit2Authorization"];
        assert_eq!(info["amount"], signed["permitted"]["amount"]);
        assert_eq!(info["deadline"], signed["deadline"]);
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
