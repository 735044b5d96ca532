//! What the gas of the payer's own transaction may cost (rail `transfer`). Prices and estimates come from an RPC endpoint, which can be wrong
//! or hostile, so the transaction that is signed has a ceiling of the payer's.

use alloy::primitives::U256;

use crate::protocol::assets::default_assets;
use crate::protocol::{Amount, Network, PaymentRequirements};

/// The gas that the default ceiling allows for: a token transfer takes between 30,000 and 80,000.
const TRANSFER_GAS: u64 = 100_000;
/// One unit of a native currency, in wei.
const WEI: u64 = 1_000_000_000_000_000_000;
const PERCENT: u64 = 100;

/// The ceilings of a transfer's gas. Both hold.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct FeeLimits {
    /// In wei; by network unless set.
    pub(super) wei_max: Option<U256>,
    pub(super) share: Option<Share>,
}

/// A ceiling relative to the price of the purchase.
#[derive(Debug, Clone, Copy)]
pub(super) struct Share {
    /// What a unit of the native currency costs, in millionths of a dollar.
    pub(super) native_price: Amount,
    pub(super) percent: u16,
}

/// The share cannot be computed: the token's decimals are unknown, or the native currency costs nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the fee cannot be compared with the price: the token is not a known dollar, or the native currency has no price"
)]
pub(super) struct NotComparable;

impl FeeLimits {
    /// The most that the gas of a transfer for this offer may cost, in wei.
    pub(super) fn limit(&self, offer: &PaymentRequirements) -> Result<U256, NotComparable> {
        let absolute = self
            .wei_max
            .unwrap_or_else(|| default_wei_max(offer.network));
        match self.share {
            None => Ok(absolute),
            Some(share) => Ok(absolute.min(share.limit(offer)?)),
        }
    }
}

/// The highest usual price of gas on a network, for a transfer.
fn default_wei_max(network: Network) -> U256 {
    U256::from(network.default_fee_cap_wei()).saturating_mul(U256::from(TRANSFER_GAS))
}

impl Share {
    fn limit(self, offer: &PaymentRequirements) -> Result<U256, NotComparable> {
        let token = default_assets(offer.network).find(|token| token.address == offer.asset);
        let unit = U256::from(10).pow(U256::from(token.ok_or(NotComparable)?.decimals));
        let native_price = self.native_price.atomic();
        // Dollars: amount / unit. Wei: dollars / (native price / 10^6) * 10^18.
        let above = [u64::from(self.percent), 1_000_000, WEI]
            .into_iter()
            .fold(offer.amount.atomic(), |product, factor| {
                product.saturating_mul(U256::from(factor))
            });
        let below = native_price
            .saturating_mul(unit)
            .saturating_mul(U256::from(PERCENT));
        above.checked_div(below).ok_or(NotComparable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn offer(amount: &str, asset: &str) -> PaymentRequirements {
        serde_json::from_value(json!({"scheme": "exact", "network": "eip155:84532", "amount": amount, "asset": asset,
            "payTo": "0x2222222222222222222222222222222222222222", "maxTimeoutSeconds": 300, "extra": {}}))
        .unwrap()
    }

    #[test]
    fn both_ceilings_hold() {
        let cent = offer("10000", "0x036CbD53842c5426634e7929541eC2318f3dCF7e");
        // 20 gwei for 100,000 gas.
        let by_network = U256::from(2_000_000_000_000_000_u64);
        assert_eq!(FeeLimits::default().limit(&cent), Ok(by_network));
        let share = Share {
            native_price: "2500000000".parse().unwrap(),
            percent: 50,
        };
        let mut limits = FeeLimits {
            wei_max: None,
            share: Some(share),
        };
        // Half a cent at 2,500 dollars.
        assert_eq!(limits.limit(&cent), Ok(U256::from(2_000_000_000_000_u64)));
        limits.wei_max = Some(U256::from(7));
        assert_eq!(limits.limit(&cent), Ok(U256::from(7)));
        let unknown = offer("10000", "0x4444444444444444444444444444444444444444");
        assert_eq!(limits.limit(&unknown), Err(NotComparable));
        limits.share = Some(Share {
            native_price: Amount::ZERO,
            ..share
        });
        assert_eq!(limits.limit(&cent), Err(NotComparable));
    }
}
