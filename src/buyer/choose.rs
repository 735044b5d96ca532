//! Which of a seller's offers is paid, if any.

use alloy::primitives::Address;

use crate::buyer::BuyerError;
use crate::protocol::assets::default_assets;
use crate::protocol::challenge::Offer;
use crate::protocol::{Amount, Means, Network, PaymentRequired, X402Version};

/// What the caller allows for one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PayOptions {
    /// The most that may be signed away, in atomic units of the token that is paid. What is metered counts with its maximum.
    pub ceiling: Amount,
    /// The dialect to prefer when the seller speaks both; v2 when `None`.
    pub version: Option<X402Version>,
    /// The only network to pay on, when there is one.
    pub network: Option<Network>,
    /// Tokens to pay with besides those of [`crate::protocol::assets`]. Mind that the ceiling counts their atomic units.
    pub assets: Vec<(Network, Address)>,
    /// The caller's own name for the purchase. Without it a purchase is known by method, URL and body.
    pub purchase_id: Option<String>,
    /// The caller's word that this is another purchase than one which looks like it: same seller, payee, token and amount, and a payment
    /// that may still land. Without it, and without a [`Self::purchase_id`], the call ends with
    /// [`crate::buyer::BuyerError::MayBeRepeated`]: a retry that words its request differently looks exactly like that.
    pub another: bool,
    /// Whether to negotiate a payment session, and how its money moves.
    pub sessions: SessionUse,
    /// The caller has made sure that an earlier payment for this purchase, which has expired, moved no money: another one may be
    /// signed. Without it that happens only on the chain's proof, or after a refusal that names no hash. Of a transfer that the payer
    /// sent it says that its transaction can no longer be mined.
    pub sign_again: bool,
}

/// When payment sessions are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SessionUse {
    /// Where a facilitator is named and the payment is by EIP-3009: its session is bound into what is signed, and the header alone
    /// pays. Otherwise without.
    #[default]
    Offered,
    /// Never.
    Never,
    /// Always, and the money moves before the paid request: the facilitator is asked to send the authorization at once. Should it
    /// refuse to, the header pays.
    PayFirst,
    /// Always, on rail `transfer`: the payer sends the money and pays for gas. Needs [`crate::buyer::Client::chain`].
    Transfer,
}

impl PayOptions {
    /// At most `ceiling` atomic units of a well-known token, on any network, in any dialect.
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

    fn knows(&self, network: Network, asset: Address) -> bool {
        default_assets(network).any(|known| known.address == asset)
            || self.assets.contains(&(network, asset))
    }

    fn payable(&self, offer: &Offer) -> bool {
        let requirements = &offer.requirements;
        let v2 = offer.version == X402Version::V2;
        let signable = match requirements.means() {
            Some(Means::Authorization) => {
                requirements.domain_name().is_some() && requirements.domain_version().is_some()
            }
            Some(Means::Permit2) => v2,
            // Without it anybody could charge the maximum.
            Some(Means::Metered) => v2 && requirements.facilitator().is_some(),
            None => false,
        };
        signable
            && !requirements.amount.is_zero()
            && self
                .network
                .is_none_or(|network| network == requirements.network)
            && self.knows(requirements.network, requirements.asset)
    }
}

/// The first offer, in the seller's order, that can be paid and is not too dear.
pub(super) fn choose(
    challenge: &PaymentRequired,
    options: &PayOptions,
) -> Result<Offer, BuyerError> {
    let mut too_dear = None;
    for offer in challenge.offers() {
        if !options.payable(&offer) {
            continue;
        }
        if offer.requirements.amount <= options.ceiling {
            return Ok(offer);
        }
        too_dear.get_or_insert(BuyerError::TooDear {
            price: offer.requirements.amount,
            ceiling: options.ceiling,
            asset: offer.requirements.asset,
            network: offer.requirements.network,
        });
    }
    Err(too_dear.unwrap_or(BuyerError::NothingPayable(challenge.accepts.len())))
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
    fn the_first_payable_offer_within_the_ceiling_is_taken() {
        let offers = [entry("11"), entry("9"), entry("1")];
        assert_eq!(chosen(&offers, &ten()).unwrap(), entry("9"));
    }

    #[test]
    fn a_price_above_the_ceiling_is_refused_with_both_numbers() {
        let error = chosen(&[entry("11"), entry("12")], &ten()).unwrap_err();
        assert!(
            matches!(&error, BuyerError::TooDear { price, ceiling, .. } if price.to_string() == "11" && ceiling.to_string() == "10")
        );
        assert!(!error.money_may_have_moved());
    }

    #[test]
    fn offers_that_could_not_be_settled_are_passed_over() {
        let strange = "0x4444444444444444444444444444444444444444";
        let offers = [
            changed("/asset", json!(strange)),
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
        options.assets = vec![(Network::from_chain_id(84_532), strange.parse().unwrap())];
        let offer = changed("/asset", json!(strange));
        assert_eq!(
            chosen(std::slice::from_ref(&offer), &options).unwrap(),
            offer
        );
        options.network = Some(Network::from_chain_id(8453));
        assert!(
            chosen(&[offer], &options).is_err(),
            "another network than the caller's"
        );
    }

    #[test]
    fn permit2_needs_no_domain_and_metered_offers_need_their_facilitator() {
        let by = |scheme: &str, extra: Value| {
            let mut offer = entry("10");
            offer["scheme"] = json!(scheme);
            offer["extra"] = extra;
            offer
        };
        let somebody = "0x3333333333333333333333333333333333333333";
        let nobody = "0x0000000000000000000000000000000000000000";
        for (offer, payable) in [
            (by("exact", json!({"assetTransferMethod": "permit2"})), true),
            (
                by("exact", json!({"assetTransferMethod": "eip3009"})),
                false,
            ),
            (by("upto", json!({"facilitatorAddress": somebody})), true),
            (by("upto", json!({"facilitatorAddress": nobody})), false),
            (by("upto", json!({"facilitatorAddress": "0x33"})), false),
            (by("upto", json!({"assetTransferMethod": "permit2"})), false),
        ] {
            let chosen = chosen(std::slice::from_ref(&offer), &ten());
            assert_eq!(chosen.is_ok(), payable, "{offer}");
        }
    }

    #[test]
    fn version_1_knows_no_permit2() {
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
