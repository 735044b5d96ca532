//! What to pay for gas: computed from the newest head, without a call per payment.

use crate::chain::Head;

/// The operator's limits on a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeePolicy {
    /// Wei per gas at most, tip included; above it nothing is sent.
    pub max_fee_cap_wei: u128,
    /// Wei per gas for the block's producer.
    pub priority_fee_wei: u128,
    /// Gas at most for one payment.
    pub gas_cap: u64,
    /// What a node asks per gas, for chains without a base fee; `None` as long as none has said.
    pub gas_price_wei: Option<u128>,
}

/// The fees of one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fees {
    /// Wei per gas at most; the price of a legacy transaction.
    pub max_fee_wei: u128,
    /// Wei per gas for the block's producer at most; of a legacy transaction, all of its price.
    pub max_priority_fee_wei: u128,
    /// One price in place of the two of EIP-1559, for chains without a base fee.
    pub legacy: bool,
}

/// Why nothing may be sent now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TooDear {
    /// Blocks cost more than the operator allows.
    #[error("blocks cost {} gwei per gas, max_fee_wei is {} gwei", gwei(*base_fee_wei), gwei(*cap_wei))]
    AboveCap {
        /// Base fee of the newest block, or what a node asks where there is none.
        base_fee_wei: u128,
        /// The cap.
        cap_wei: u128,
    },
    /// There is no base fee, and no node has said what gas costs.
    #[error("blocks have no base fee, and the RPC does not say what gas costs (eth_gasPrice)")]
    NoPrice,
}

/// An amount for people: whole gwei, or up to nine decimals.
fn gwei(wei: u128) -> String {
    let (whole, rest) = (wei / 1_000_000_000, wei % 1_000_000_000);
    let decimals = format!("{rest:09}");
    match decimals.trim_end_matches('0') {
        "" => whole.to_string(),
        decimals => format!("{whole}.{decimals}"),
    }
}

impl FeePolicy {
    /// The same with the tip that a node suggests, if that is more: within a quarter of the cap, because a suggestion is not a bill.
    #[must_use]
    pub fn with_tip(self, suggested_wei: u128) -> Self {
        let most = self.max_fee_cap_wei / 4;
        Self {
            priority_fee_wei: self.priority_fee_wei.max(suggested_wei.min(most)),
            ..self
        }
    }

    /// The same with the price that a node asks where there is no base fee.
    #[must_use]
    pub const fn with_gas_price(self, gas_price_wei: u128) -> Self {
        Self {
            gas_price_wei: Some(gas_price_wei),
            ..self
        }
    }

    /// Twice the base fee and the tip: enough for six full blocks in a row. No more than three quarters of the cap, as long as that is enough,
    /// so that there is room for a fee bump. Where there is no base fee all that is offered is paid, and an eighth above the price is enough.
    ///
    /// # Errors
    /// [`TooDear`] when even the base fee of the next block could be above the cap, or nobody has said what gas costs.
    pub fn quote(&self, head: &Head) -> Result<Fees, TooDear> {
        let needed = self.needed(head, self.priority_fee_wei)?;
        if needed > self.max_fee_cap_wei {
            return Err(self.too_dear(head));
        }
        let Some(base) = head.base_fee_wei else {
            return Ok(Fees::legacy(needed));
        };
        let wished = base.saturating_mul(2).saturating_add(self.priority_fee_wei);
        let most = self.max_fee_cap_wei - self.max_fee_cap_wei / 4;
        Ok(Fees {
            max_fee_wei: wished.min(most).max(needed),
            max_priority_fee_wei: self.priority_fee_wei,
            legacy: false,
        })
    }

    /// Fees that take the place of `last` under the same nonce: an eighth more per gas and twice the tip, as far as the cap allows, and what a
    /// new transaction would offer now. Nodes ask for a tenth more, of both. Where `last` has one price only, its successor does too, because
    /// nodes take that price for its tip: the price follows what blocks ask.
    ///
    /// # Errors
    /// [`TooDear`] when an eighth more is above the cap.
    pub fn outbid(&self, last: Fees, head: &Head) -> Result<Fees, TooDear> {
        let asked = self.asked(head)?;
        let more = |fee: u128| fee.saturating_add(fee / 8).saturating_add(1);
        let least = more(last.max_fee_wei);
        let tip = more(last.max_priority_fee_wei)
            .max(last.max_priority_fee_wei.saturating_mul(2))
            .max(self.priority_fee_wei);
        let one_price = last.legacy || head.base_fee_wei.is_none();
        let wished = match self.quote(head) {
            Ok(_) if one_price => self.needed(head, self.priority_fee_wei)?,
            Ok(now) => now.max_fee_wei.max(self.needed(head, tip)?),
            Err(_) => least,
        };
        if least > self.max_fee_cap_wei || asked > self.max_fee_cap_wei {
            return Err(self.too_dear(head));
        }
        let max_fee_wei = wished.min(self.max_fee_cap_wei).max(least);
        if one_price {
            return Ok(Fees::legacy(max_fee_wei));
        }
        Ok(Fees {
            max_fee_wei,
            max_priority_fee_wei: tip.min(max_fee_wei),
            legacy: false,
        })
    }

    /// What the newest block asks beside what is allowed, for people.
    pub fn in_words(&self, head: &Head) -> String {
        let price = self.too_dear(head);
        match head.base_fee_wei {
            Some(_) => price.to_string(),
            None => format!("{price}; there is no base fee, so legacy transactions are sent"),
        }
    }

    /// Whether a block that costs as much as the newest takes a transaction that offers `fees`.
    pub fn suffices(&self, fees: Fees, head: &Head) -> bool {
        // What nobody knows is no reason for a fee bump.
        let asked = self.asked(head);
        asked.map_or(true, |asked| fees.max_fee_wei >= asked)
    }

    /// What the newest block asks per gas, without a tip.
    fn asked(&self, head: &Head) -> Result<u128, TooDear> {
        let asked = head.base_fee_wei.or(self.gas_price_wei);
        asked.ok_or(TooDear::NoPrice)
    }

    /// What the next block may ask for, with a tip. Who sets a price without a base fee has the tip in it.
    fn needed(&self, head: &Head, tip_wei: u128) -> Result<u128, TooDear> {
        let asked = self.asked(head)?;
        let next = asked.saturating_add(asked / 8);
        Ok(if head.base_fee_wei.is_some() {
            next.saturating_add(tip_wei)
        } else {
            next.max(1)
        })
    }

    fn too_dear(&self, head: &Head) -> TooDear {
        match self.asked(head) {
            Ok(base_fee_wei) => TooDear::AboveCap {
                base_fee_wei,
                cap_wei: self.max_fee_cap_wei,
            },
            Err(unknown) => unknown,
        }
    }
}

impl Fees {
    /// A price, all of which is paid.
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
    fn fees_follow_the_head_and_stop_at_the_cap() {
        let policy = FeePolicy {
            max_fee_cap_wei: 1000,
            priority_fee_wei: 10,
            gas_cap: 500_000,
            gas_price_wei: None,
        };
        let at = |base| {
            policy.quote(&Head {
                base_fee_wei: Some(base),
                ..Head::default()
            })
        };
        assert_eq!(at(100).unwrap().max_fee_wei, 210);
        assert_eq!(at(400).unwrap().max_fee_wei, 750, "room to outbid");
        assert_eq!(at(800).unwrap().max_fee_wei, 910, "what is needed");
        assert_eq!(
            at(900),
            Err(TooDear::AboveCap {
                base_fee_wei: 900,
                cap_wei: 1000
            })
        );
        assert!(at(u128::MAX).is_err());
    }

    #[test]
    fn a_replacement_offers_an_eighth_more_twice_the_tip_and_what_blocks_ask_now() {
        let policy = FeePolicy {
            max_fee_cap_wei: 1000,
            priority_fee_wei: 10,
            gas_cap: 500_000,
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
        let quiet = policy.outbid(last, &at(50)).unwrap();
        assert_eq!((quiet.max_fee_wei, quiet.max_priority_fee_wei), (181, 32));
        let busy = policy.outbid(last, &at(200)).unwrap();
        assert_eq!(busy.max_fee_wei, 410);
        let high = Fees {
            max_fee_wei: 950,
            ..last
        };
        assert!(policy.outbid(high, &at(50)).is_err(), "the cap holds");
        // A tip that nobody takes doubles, however cheap blocks are, up to all that is offered.
        let (mut fees, mut times) = (last, 0);
        while let Ok(better) = policy.outbid(fees, &at(1)) {
            assert!(better.max_priority_fee_wei * 8 >= fees.max_priority_fee_wei * 9);
            assert!(better.max_fee_wei * 8 >= fees.max_fee_wei * 9);
            (fees, times) = (better, times + 1);
        }
        assert!(times >= 5 && fees.max_priority_fee_wei > 500, "{fees:?}");
    }

    #[test]
    fn a_suggested_tip_is_followed_within_bounds() {
        let policy = FeePolicy {
            max_fee_cap_wei: 1000,
            priority_fee_wei: 10,
            gas_cap: 500_000,
            gas_price_wei: None,
        };
        assert_eq!(policy.with_tip(3).priority_fee_wei, 10);
        assert_eq!(policy.with_tip(30).priority_fee_wei, 30);
        assert_eq!(policy.with_tip(900).priority_fee_wei, 250);
    }

    #[test]
    fn without_a_base_fee_a_price_is_offered_and_bumped() {
        let policy = FeePolicy {
            max_fee_cap_wei: 1_000,
            priority_fee_wei: 10,
            gas_cap: 500_000,
            gas_price_wei: Some(160),
        };
        let head = Head {
            base_fee_wei: None,
            ..Head::default()
        };
        let first = policy.quote(&head).unwrap();
        assert_eq!(first, Fees::legacy(180));
        assert!(policy.suffices(first, &head));
        let dearer = policy.with_gas_price(320);
        assert!(!dearer.suffices(first, &head));
        assert_eq!(dearer.outbid(first, &head), Ok(Fees::legacy(360)));
        let bumped = policy.outbid(first, &head).unwrap();
        assert!(bumped.legacy && bumped.max_fee_wei * 10 >= first.max_fee_wei * 11);
        let too_dear = policy.with_gas_price(1_001);
        assert!(too_dear.quote(&head).is_err() && too_dear.outbid(first, &head).is_err());
        assert_eq!(policy.with_gas_price(0).quote(&head), Ok(Fees::legacy(1)));
    }

    #[test]
    fn a_price_that_nobody_has_said_sends_nothing() {
        let policy = FeePolicy {
            max_fee_cap_wei: 1_000,
            priority_fee_wei: 10,
            gas_cap: 500_000,
            gas_price_wei: None,
        };
        let head = Head {
            base_fee_wei: None,
            ..Head::default()
        };
        assert_eq!(policy.quote(&head), Err(TooDear::NoPrice));
        let sent = Fees::legacy(100);
        assert_eq!(policy.outbid(sent, &head), Err(TooDear::NoPrice));
        assert!(policy.suffices(sent, &head));
    }

    #[test]
    fn one_price_stays_one_price_once_there_is_a_base_fee() {
        let policy = FeePolicy {
            max_fee_cap_wei: 1_000,
            priority_fee_wei: 10,
            gas_cap: 500_000,
            gas_price_wei: Some(160),
        };
        let at = |base_fee_wei| Head {
            base_fee_wei: Some(base_fee_wei),
            ..Head::default()
        };
        let last = Fees::legacy(180);
        assert_eq!(policy.outbid(last, &at(100)), Ok(Fees::legacy(203)));
        assert_eq!(policy.outbid(last, &at(400)), Ok(Fees::legacy(460)));
        let (mut fees, mut times) = (last, 0);
        while let Ok(more) = policy.outbid(fees, &at(100)) {
            (fees, times) = (more, times + 1);
        }
        assert!(times > 12, "an eighth each time, not the double");
    }

    #[test]
    fn amounts_are_said_in_gwei() {
        let dear = TooDear::AboveCap {
            base_fee_wei: 100_000_000_000,
            cap_wei: 1_500_000_000,
        };
        let said = "blocks cost 100 gwei per gas, max_fee_wei is 1.5 gwei";
        assert_eq!(dear.to_string(), said);
    }
}
