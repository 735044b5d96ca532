//! Selects the offer of a challenge that is paid, within the caller's limits.

use alloy::primitives::Address;

use crate::buyer::BuyerError;
use crate::protocol::assets::default_assets;
use crate::protocol::challenge::Offer;
use crate::protocol::{Amount, Network, PaymentMethod, PaymentRequired, X402Version};

/// The caller's limits and choices for one purchase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PayOptions {
    /// The highest amount that may be signed, in atomic units of the token. A metered offer counts with its maximum.
    pub ceiling: Amount,
    /// The x402 version to prefer when the seller supports both; v2 when `None`.
    pub version: Option<X402Version>,
    /// Pay only on this network; `None` allows every network.
    pub network: Option<Network>,
    /// Tokens that may be paid with besides those of [`crate::protocol::assets`]. The ceiling counts their atomic units, so check their
    /// decimals.
    pub assets: Vec<(Network, Address)>,
    /// The caller's own id for the purchase. Without one, method, URL and body identify it.
    pub purchase_id: Option<String>,
    /// Set when this is a new purchase although an open one looks like it: same seller, payee, token and amount, and a payment that may
    /// still settle. Without it, and without a [`Self::purchase_id`], such a call ends with
    /// [`crate::buyer::BuyerError::MayBeRepeated`], because a retry with a slightly different request looks the same.
    pub another: bool,
    /// Whether to negotiate a payment session, and how the money moves.
    pub sessions: SessionUse,
    /// Set when the caller has verified that an earlier, expired payment for this purchase moved no money: a new one may be signed.
    /// Otherwise a new one is signed only after the chain proves it, or after a refusal that names no transaction hash. For a transfer by
    /// the payer's own transaction it asserts that this transaction can no longer be mined.
    pub sign_again: bool,
}

/// When payment sessions are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SessionUse {
    /// Use a session when a facilitator is known and the payment is an EIP-3009 authorization: the nonce is derived from the session,
    /// and the payment header still pays on its own. Otherwise pay without a session.
    #[default]
    Offered,
    /// Never use a session.
    Never,
    /// Require a session, and ask the facilitator to settle the authorization before the paid request is sent. If the facilitator
    /// refuses, the payment header pays.
    PayFirst,
    /// Require a session on rail `transfer`: the payer signs a token transfer of its own and pays its gas. Needs
    /// [`crate::buyer::Client::chain`].
    Transfer,
}

impl PayOptions {
    /// Allows up to `ceiling` atomic units of a well-known token, on any network, in either x402 version.
    pub const fn up_to(ceiling: Amount) -> Self {
        Self {
            ceiling,
            version: None,
            network: None,
            assets: Vec::new(),
            purchase_id: None,
            another: false,
            sessions: SessionUse::Offered,
            sign_again: false,
        }
    }

    fn allows_token(&self, network: Network, asset: Address) -> bool {
        default_assets(network).any(|token| token.address == asset)
            || self.assets.contains(&(network, asset))
    }

    fn can_pay(&self, offer: &Offer) -> bool {
        let requirements = &offer.requirements;
        let v2 = offer.version == X402Version::V2;
        let signable = match requirements.payment_method() {
            Some(PaymentMethod::Authorization) => {
                requirements.domain_name().is_some() && requirements.domain_version().is_some()
            }
            Some(PaymentMethod::Permit2) => v2,
            // Without a facilitator in the signed witness, any caller of the proxy could charge the maximum.
            Some(PaymentMethod::Metered) => v2 && requirements.facilitator().is_some(),
            None => false,
        };
        signable
            && !requirements.amount.is_zero()
            && self
                .network
                .is_none_or(|network| network == requirements.network)
            && self.allows_token(requirements.network, requirements.asset)
    }
}

/// The first offer, in the seller's order, that this client can pay and that is within the ceiling.
pub(super) fn choose(
    challenge: &PaymentRequired,
    options: &PayOptions,
) -> Result<Offer, BuyerError> {
    let mut above_ceiling = None;
    for offer in challenge.offers() {
        if !options.can_pay(&offer) {
            continue;
        }
        if offer.requirements.amount <= options.ceiling {
            return Ok(offer);
        }
        above_ceiling.get_or_insert(BuyerError::AboveCeiling {
            price: offer.requirements.amount,
            ceiling: options.ceiling,
            asset: offer.requirements.asset,
            network: offer.requirements.network,
        });
    }
    Err(above_ceiling.unwrap_or(BuyerError::NothingPayable(challenge.accepts.len())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn entry(amount: &str) -> Value {
        json!({"scheme": "exact", "network": "eip155:84532", "amount": amount, "asset": "0x036CbD53842c5426634e7929541eC2318f3dCF7e",
            "payTo": "0x2222222222222222222222222222222222222222", "maxTimeoutSeconds": 300, "extra": {"name": "USDC", "version": "2"}})
    }

    fn changed(pointer: &str, value: Value) -> Value {
        let mut entry = entry("10");
        *entry.pointer_mut(pointer).unwrap() = value;
        entry
    }

    fn chosen(accepts: &[Value], options: &PayOptions) -> Result<Value, BuyerError> {
        let challenge = serde_json::from_value(json!({"x402Version": 2, "accepts": accepts}));
        choose(&challenge.unwrap(), options).map(|offer| offer.raw)
    }

    fn ten() -> PayOptions {
        PayOptions::up_to("10".parse().unwrap())
    }

    #[test]
    fn first_payable_offer_within_ceiling_is_chosen() {
        let offers = [entry("11"), entry("9"), entry("1")];
        assert_eq!(chosen(&offers, &ten()).unwrap(), entry("9"));
    }

    #[test]
    fn price_above_ceiling_is_refused_with_both_amounts() {
        let error = chosen(&[entry("11"), entry("12")], &ten()).unwrap_err();
        assert!(
            matches!(&error, BuyerError::AboveCeiling { price, ceiling, .. } if price.to_string() == "11" && ceiling.to_string() == "10")
        );
        assert!(!error.money_may_have_moved());
    }

    #[test]
    fn unpayable_offers_are_skipped() {
        let unknown_token = "0x4444444444444444444444444444444444444444";
        let offers = [
            changed("/asset", json!(unknown_token)),
            changed("/extra/name", json!("")),
            changed(
                "/extra",
                json!({"name": "USDC", "version": "2", "assetTransferMethod": "erc7710"}),
            ),
            changed("/network", json!("eip155:31337")),
            entry("0"),
        ];
        assert!(matches!(
            chosen(&offers, &ten()),
            Err(BuyerError::NothingPayable(5))
        ));
        let mut options = ten();
        options.assets = vec![(
            Network::from_chain_id(84_532),
            unknown_token.parse().unwrap(),
        )];
        let offer = changed("/asset", json!(unknown_token));
        assert_eq!(
            chosen(std::slice::from_ref(&offer), &options).unwrap(),
            offer
        );
        options.network = Some(Network::from_chain_id(8453));
        assert!(
            chosen(&[offer], &options).is_err(),
            "the caller allows another network only"
        );
    }

    #[test]
    fn permit2_needs_no_domain_and_upto_needs_facilitator() {
        let by = |scheme: &str, extra: Value| {
            let mut offer = entry("10");
            offer["scheme"] = json!(scheme);
            offer["extra"] = extra;
            offer
        };
        let facilitator = "0x3333333333333333333333333333333333333333";
        let zero_address = "0x0000000000000000000000000000000000000000";
        for (offer, payable) in [
            (by("exact", json!({"assetTransferMethod": "permit2"})), true),
            (
                by("exact", json!({"assetTransferMethod": "eip3009"})),
                false,
            ),
            (by("upto", json!({"facilitatorAddress": facilitator})), true),
            (
                by("upto", json!({"facilitatorAddress": zero_address})),
                false,
            ),
            (by("upto", json!({"facilitatorAddress": "0x33"})), false),
            (by("upto", json!({"assetTransferMethod": "permit2"})), false),
        ] {
            let chosen = chosen(std::slice::from_ref(&offer), &ten());
            assert_eq!(chosen.is_ok(), payable, "{offer}");
        }
    }

    #[test]
    fn permit2_offers_in_v1_are_not_payable() {
        let entry = json!({"scheme": "upto", "network": "base-sepolia", "maxAmountRequired": "10",
            "asset": "0x036CbD53842c5426634e7929541eC2318f3dCF7e", "payTo": "0x2222222222222222222222222222222222222222",
            "maxTimeoutSeconds": 300, "extra": {"facilitatorAddress": "0x3333333333333333333333333333333333333333"}});
        for scheme in ["upto", "exact"] {
            let mut entry = entry.clone();
            entry["scheme"] = json!(scheme);
            entry["extra"]["assetTransferMethod"] = json!("permit2");
            let challenge = serde_json::from_value(json!({"x402Version": 1, "accepts": [entry]}));
            assert!(matches!(
                choose(&challenge.unwrap(), &ten()),
                Err(BuyerError::NothingPayable(1))
            ));
        }
    }
}
