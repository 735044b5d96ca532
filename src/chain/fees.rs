//! Transaction fees, computed from the newest block without an RPC call per payment (`docs/architecture.md`, Fees).

use crate::chain::Head;

/// The operator's fee limits of a network, and the prices that nodes suggest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeePolicy {
    /// Cap on wei per gas, priority fee included (`max_fee_wei`). Nothing is sent above it.
    pub max_fee_cap_wei: u128,
    /// Priority fee in wei per gas.
    pub priority_fee_wei: u128,
    /// Cap on the gas of one payment.
    pub gas_cap: u64,
    /// The same for a payer whose account has code.
    pub wallet_gas_cap: u64,
    /// `eth_gasPrice` in wei, for chains without a base fee; `None` until a node has returned it.
    pub gas_price_wei: Option<u128>,
}

/// The fees of one transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fees {
    /// Maximum wei per gas; in a legacy transaction the gas price.
    pub max_fee_wei: u128,
    /// Maximum priority fee in wei per gas; in a legacy transaction the gas price.
    pub max_priority_fee_wei: u128,
    /// Whether it is a legacy transaction with one gas price, for chains without a base fee (EIP-1559).
    pub legacy: bool,
}

/// Why nothing may be sent now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FeeError {
    /// The gas price is above the operator's cap.
    #[error("blocks cost {} gwei per gas, max_fee_wei is {} gwei", gwei(*base_fee_wei), gwei(*cap_wei))]
    AboveCap {
        /// Base fee of the newest block, or the node's gas price on chains without one.
        base_fee_wei: u128,
        cap_wei: u128,
    },
    /// There is no base fee, and no node has returned a gas price.
    #[error("blocks have no base fee, and the RPC has returned no gas price (eth_gasPrice)")]
    NoPrice,
}

/// Formats wei as gwei with up to nine decimals.
fn gwei(wei: u128) -> String {
    let (whole, rest) = (wei / 1_000_000_000, wei % 1_000_000_000);
    let decimals = format!("{rest:09}");
    match decimals.trim_end_matches('0') {
        "" => whole.to_string(),
        decimals => format!("{whole}.{decimals}"),
    }
}

impl FeePolicy {
    /// The policy with a node's suggested priority fee, if that is higher. It is limited to a quarter of the cap, because a suggestion may
    /// be far above the price that blocks require.
    #[must_use]
    pub fn with_priority_fee(self, suggested_wei: u128) -> Self {
        let limit = self.max_fee_cap_wei / 4;
        Self {
            priority_fee_wei: self.priority_fee_wei.max(suggested_wei.min(limit)),
            ..self
        }
    }

    /// The policy with a node's gas price, for chains without a base fee.
    #[must_use]
    pub const fn with_gas_price(self, gas_price_wei: u128) -> Self {
        Self {
            gas_price_wei: Some(gas_price_wei),
            ..self
        }
    }

    /// Fees for a new transaction.
    ///
    /// # Errors
    /// [`FeeError`] when the base fee of the next block could exceed the cap, or no gas price is known.
    pub fn quote(&self, head: &Head) -> Result<Fees, FeeError> {
        let next_block_price = self.next_block_price(head, self.priority_fee_wei)?;
        if next_block_price > self.max_fee_cap_wei {
            return Err(self.fee_error(head));
        }
        let Some(base) = head.base_fee_wei else {
            // A legacy transaction pays its full price, so an eighth above the node's price is enough.
            return Ok(Fees::legacy(next_block_price));
        };
        // Twice the base fee covers six full blocks in a row.
        let offer = base.saturating_mul(2).saturating_add(self.priority_fee_wei);
        // A quarter of the cap is left for fee bumps, unless the next block may need it.
        let limit = self.max_fee_cap_wei - self.max_fee_cap_wei / 4;
        Ok(Fees {
            max_fee_wei: offer.min(limit).max(next_block_price),
            max_priority_fee_wei: self.priority_fee_wei,
            legacy: false,
        })
    }

    /// Fees of a replacement transaction for one with the fees `last`, under the same nonce: at least an eighth more per gas and, within
    /// the cap, twice the priority fee and no less than a new transaction would offer now. Nodes require a tenth more of both.
    ///
    /// # Errors
    /// [`FeeError`] when an eighth more exceeds the cap.
    pub fn fee_bump(&self, last: Fees, head: &Head) -> Result<Fees, FeeError> {
        let block_price = self.block_price(head)?;
        let more = |fee: u128| fee.saturating_add(fee / 8).saturating_add(1);
        let minimum = more(last.max_fee_wei);
        let tip = more(last.max_priority_fee_wei)
            .max(last.max_priority_fee_wei.saturating_mul(2))
            .max(self.priority_fee_wei);
        // The replacement of a legacy transaction stays legacy, because nodes treat its whole price as its priority fee. Its price follows
        // that of blocks and is not doubled.
        let one_price = last.legacy || head.base_fee_wei.is_none();
        let offer = match self.quote(head) {
            Ok(_) if one_price => self.next_block_price(head, self.priority_fee_wei)?,
            Ok(now) => now.max_fee_wei.max(self.next_block_price(head, tip)?),
            Err(_) => minimum,
        };
        if minimum > self.max_fee_cap_wei || block_price > self.max_fee_cap_wei {
            return Err(self.fee_error(head));
        }
        let max_fee_wei = offer.min(self.max_fee_cap_wei).max(minimum);
        if one_price {
            return Ok(Fees::legacy(max_fee_wei));
        }
        Ok(Fees {
            max_fee_wei,
            max_priority_fee_wei: tip.min(max_fee_wei),
            legacy: false,
        })
    }

    /// The current gas price beside the cap, as text.
    pub fn describe(&self, head: &Head) -> String {
        let price = self.fee_error(head);
        match head.base_fee_wei {
            Some(_) => price.to_string(),
            None => format!("{price}; there is no base fee, so legacy transactions are sent"),
        }
    }

    /// Whether `fees` cover the price of the newest block.
    pub fn suffices(&self, fees: Fees, head: &Head) -> bool {
        // An unknown price is no reason for a fee bump.
        let block_price = self.block_price(head);
        block_price.map_or(true, |block_price| fees.max_fee_wei >= block_price)
    }

    /// Wei per gas in the newest block, without a priority fee.
    fn block_price(&self, head: &Head) -> Result<u128, FeeError> {
        let block_price = head.base_fee_wei.or(self.gas_price_wei);
        block_price.ok_or(FeeError::NoPrice)
    }

    /// The highest possible price of the next block with the given priority fee. A base fee rises by at most an eighth per block
    /// (EIP-1559). On chains without a base fee, the gas price includes the priority fee.
    fn next_block_price(&self, head: &Head, tip_wei: u128) -> Result<u128, FeeError> {
        let block_price = self.block_price(head)?;
        let next = block_price.saturating_add(block_price / 8);
        Ok(if head.base_fee_wei.is_some() {
            next.saturating_add(tip_wei)
        } else {
            next.max(1)
        })
    }

    fn fee_error(&self, head: &Head) -> FeeError {
        match self.block_price(head) {
            Ok(base_fee_wei) => FeeError::AboveCap {
                base_fee_wei,
                cap_wei: self.max_fee_cap_wei,
            },
            Err(unknown) => unknown,
        }
    }
}

impl Fees {
    /// Fees of a legacy transaction, which pays its full gas price.
    pub const fn legacy(price_wei: u128) -> Self {
        Self {
            max_fee_wei: price_wei,
            max_priority_fee_wei: price_wei,
            legacy: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fees_follow_the_base_fee_up_to_the_cap() {
        let policy = FeePolicy {
            max_fee_cap_wei: 1000,
            priority_fee_wei: 10,
            gas_cap: 500_000,
            wallet_gas_cap: 200_000,
            gas_price_wei: None,
        };
        let at = |base| {
            policy.quote(&Head {
                base_fee_wei: Some(base),
                ..Head::default()
            })
        };
        assert_eq!(at(100).unwrap().max_fee_wei, 210);
        assert_eq!(at(400).unwrap().max_fee_wei, 750, "room for a fee bump");
        assert_eq!(
            at(800).unwrap().max_fee_wei,
            910,
            "the price of the next block"
        );
        assert_eq!(
            at(900),
            Err(FeeError::AboveCap {
                base_fee_wei: 900,
                cap_wei: 1000
            })
        );
        assert!(at(u128::MAX).is_err());
    }

    #[test]
    fn fee_bump_raises_price_by_an_eighth_and_doubles_priority_fee() {
        let policy = FeePolicy {
            max_fee_cap_wei: 1000,
            priority_fee_wei: 10,
            gas_cap: 500_000,
            wallet_gas_cap: 200_000,
            gas_price_wei: None,
        };
        let last = Fees {
            max_fee_wei: 160,
            max_priority_fee_wei: 16,
            legacy: false,
        };
        let at = |base_fee_wei| Head {
            base_fee_wei: Some(base_fee_wei),
            ..Head::default()
        };
        assert!(policy.suffices(last, &at(160)) && !policy.suffices(last, &at(161)));
        let quiet = policy.fee_bump(last, &at(50)).unwrap();
        assert_eq!((quiet.max_fee_wei, quiet.max_priority_fee_wei), (181, 32));
        let busy = policy.fee_bump(last, &at(200)).unwrap();
        assert_eq!(busy.max_fee_wei, 410);
        let high = Fees {
            max_fee_wei: 950,
            ..last
        };
        assert!(policy.fee_bump(high, &at(50)).is_err(), "the cap holds");
        // The priority fee doubles with each bump, even when the base fee is low, up to the maximum fee.
        let (mut fees, mut times) = (last, 0);
        while let Ok(better) = policy.fee_bump(fees, &at(1)) {
            assert!(better.max_priority_fee_wei * 8 >= fees.max_priority_fee_wei * 9);
            assert!(better.max_fee_wei * 8 >= fees.max_fee_wei * 9);
            (fees, times) = (better, times + 1);
        }
        assert!(times >= 5 && fees.max_priority_fee_wei > 500, "{fees:?}");
    }

    #[test]
    fn suggested_priority_fee_is_limited_to_a_quarter_of_the_cap() {
        let policy = FeePolicy {
            max_fee_cap_wei: 1000,
            priority_fee_wei: 10,
            gas_cap: 500_000,
            wallet_gas_cap: 200_000,
            gas_price_wei: None,
        };
        assert_eq!(policy.with_priority_fee(3).priority_fee_wei, 10);
        assert_eq!(policy.with_priority_fee(30).priority_fee_wei, 30);
        assert_eq!(policy.with_priority_fee(900).priority_fee_wei, 250);
    }

    #[test]
    fn without_base_fee_legacy_price_is_quoted_and_bumped() {
        let policy = FeePolicy {
            max_fee_cap_wei: 1_000,
            priority_fee_wei: 10,
            gas_cap: 500_000,
            wallet_gas_cap: 200_000,
            gas_price_wei: Some(160),
        };
        let head = Head {
            base_fee_wei: None,
            ..Head::default()
        };
        let first = policy.quote(&head).unwrap();
        assert_eq!(first, Fees::legacy(180));
        assert!(policy.suffices(first, &head));
        let higher = policy.with_gas_price(320);
        assert!(!higher.suffices(first, &head));
        assert_eq!(higher.fee_bump(first, &head), Ok(Fees::legacy(360)));
        let bumped = policy.fee_bump(first, &head).unwrap();
        assert!(bumped.legacy && bumped.max_fee_wei * 10 >= first.max_fee_wei * 11);
        let above_cap = policy.with_gas_price(1_001);
        assert!(above_cap.quote(&head).is_err() && above_cap.fee_bump(first, &head).is_err());
        assert_eq!(policy.with_gas_price(0).quote(&head), Ok(Fees::legacy(1)));
    }

    #[test]
    fn unknown_gas_price_gives_no_quote() {
        let policy = FeePolicy {
            max_fee_cap_wei: 1_000,
            priority_fee_wei: 10,
            gas_cap: 500_000,
            wallet_gas_cap: 200_000,
            gas_price_wei: None,
        };
        let head = Head {
            base_fee_wei: None,
            ..Head::default()
        };
        assert_eq!(policy.quote(&head), Err(FeeError::NoPrice));
        let sent = Fees::legacy(100);
        assert_eq!(policy.fee_bump(sent, &head), Err(FeeError::NoPrice));
        assert!(policy.suffices(sent, &head));
    }

    #[test]
    fn replacement_of_legacy_transaction_stays_legacy() {
        let policy = FeePolicy {
            max_fee_cap_wei: 1_000,
            priority_fee_wei: 10,
            gas_cap: 500_000,
            wallet_gas_cap: 200_000,
            gas_price_wei: Some(160),
        };
        let at = |base_fee_wei| Head {
            base_fee_wei: Some(base_fee_wei),
            ..Head::default()
        };
        let last = Fees::legacy(180);
        assert_eq!(policy.fee_bump(last, &at(100)), Ok(Fees::legacy(203)));
        assert_eq!(policy.fee_bump(last, &at(400)), Ok(Fees::legacy(460)));
        let (mut fees, mut times) = (last, 0);
        while let Ok(more) = policy.fee_bump(fees, &at(100)) {
            (fees, times) = (more, times + 1);
        }
        assert!(times > 12, "an eighth each time, not the double");
    }

    #[test]
    fn fee_errors_show_amounts_in_gwei() {
        let above_cap = FeeError::AboveCap {
            base_fee_wei: 100_000_000_000,
            cap_wei: 1_500_000_000,
        };
        let expected = "blocks cost 100 gwei per gas, max_fee_wei is 1.5 gwei";
        assert_eq!(above_cap.to_string(), expected);
    }
}
