//! From a requirement to a payload: the one place where schemes differ for a buyer.
//!
//! A further scheme adds its arm to [`sign`] and its rule to `choose::payable`. The typed data is built here, from the offer's
//! fields; nothing that came is signed.

use alloy::primitives::{B256, U256};

use crate::buyer::{BuyerError, Handed, Signer};
use crate::protocol::challenge::Offer;
use crate::protocol::{
    Amount, Authorization, DomainSeparator, ExactPayload, PaymentHeader, PaymentRequired, Scheme,
};

/// A signed payment, ready to be presented.
pub(super) struct Signed {
    pub(super) header: PaymentHeader,
    pub(super) handed: Handed,
    /// What was signed, for a facilitator that sends it early.
    pub(super) payload: ExactPayload,
}

/// By what a payment is bound to its purchase.
#[derive(Debug, Clone, Copy)]
pub(super) struct Binding {
    pub(super) nonce: B256,
    /// Unix seconds.
    pub(super) valid_before: u64,
}

/// Signs what `offer`, an entry of `challenge`, asks for.
pub(super) fn sign(
    signer: &Signer,
    challenge: &PaymentRequired,
    offer: &Offer,
    binding: Binding,
) -> Result<Signed, BuyerError> {
    let payload = match offer.requirements.scheme {
        Scheme::Exact => exact(signer, offer, binding)?,
        Scheme::Upto => {
            let why = "this buyer does not sign for scheme upto yet";
            return Err(BuyerError::Signing(why.to_owned()));
        }
    };
    let header = PaymentHeader::present(challenge, offer, &payload)
        .map_err(|error| BuyerError::Signing(error.to_string()))?;
    let valid_before = i64::try_from(binding.valid_before).unwrap_or(i64::MAX);
    Ok(Signed {
        header,
        handed: handed(signer, offer, binding.nonce, Some(valid_before)),
        payload,
    })
}

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
        nonce,
        valid_before,
    }
}

fn exact(signer: &Signer, offer: &Offer, binding: Binding) -> Result<ExactPayload, BuyerError> {
    let requirements = &offer.requirements;
    let (Some(name), Some(version)) = (requirements.domain_name(), requirements.domain_version())
    else {
        let missing = "the offer does not name its token's domain";
        return Err(BuyerError::Signing(missing.to_owned()));
    };
    let authorization = Authorization {
        from: signer.address(),
        to: requirements.pay_to,
        value: requirements.amount,
        valid_after: Amount::ZERO,
        valid_before: Amount::from_atomic(U256::from(binding.valid_before)),
        nonce: binding.nonce,
    };
    let separator =
        DomainSeparator::of_token(name, version, requirements.network, requirements.asset);
    let signature = signer
        .sign(authorization.digest(separator))
        .map_err(BuyerError::Signing)?;
    Ok(ExactPayload {
        signature,
        authorization,
    })
}
