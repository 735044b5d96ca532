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
}

/// The fees of one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fees {
    /// Wei per gas at most.
    pub max_fee_wei: u128,
    /// Wei per gas for the block's producer at most.
    pub max_priority_fee_wei: u128,
}

/// Blocks cost more than the operator allows; nothing may be sent now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("gas costs {base_fee_wei} wei now, and the cap is {cap_wei} wei")]
pub struct TooDear {
    /// Base fee of the newest block.
    pub base_fee_wei: u128,
    /// The cap.
    pub cap_wei: u128,
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

    /// Twice the base fee and the tip: enough for six full blocks in a row. No more than three quarters of the cap, as long as that is enough,
    /// so that there is room for better paid bytes.
    ///
    /// # Errors
    /// [`TooDear`] when even the base fee of the next block could be above the cap.
    pub fn quote(&self, head: &Head) -> Result<Fees, TooDear> {
        let base = head.base_fee_wei;
        let needed = Self::needed(head, self.priority_fee_wei);
        if needed > self.max_fee_cap_wei {
            return Err(self.too_dear(head));
        }
        let wished = base.saturating_mul(2).saturating_add(self.priority_fee_wei);
        let most = self.max_fee_cap_wei - self.max_fee_cap_wei / 4;
        Ok(Fees {
            max_fee_wei: wished.min(most).max(needed),
            max_priority_fee_wei: self.priority_fee_wei,
        })
    }

    /// Fees that take the place of `last` under the same nonce: an eighth more per gas and twice the tip, as far as the cap allows, and what a
    /// new transaction would offer now.
    ///
    /// # Errors
    /// [`TooDear`] when an eighth more, as nodes ask for, is above the cap.
    pub fn outbid(&self, last: Fees, head: &Head) -> Result<Fees, TooDear> {
        let more = |fee: u128| fee.saturating_add(fee / 8).saturating_add(1);
        let least = more(last.max_fee_wei);
        let tip = more(last.max_priority_fee_wei)
            .max(last.max_priority_fee_wei.saturating_mul(2))
            .max(self.priority_fee_wei);
        let wished = match self.quote(head) {
            Ok(now) => now.max_fee_wei.max(Self::needed(head, tip)),
            Err(_) => least,
        };
        if least > self.max_fee_cap_wei || head.base_fee_wei > self.max_fee_cap_wei {
            return Err(self.too_dear(head));
        }
        let max_fee_wei = wished.min(self.max_fee_cap_wei).max(least);
        Ok(Fees {
            max_fee_wei,
            max_priority_fee_wei: tip.min(max_fee_wei),
        })
    }

    /// What the next block may ask for, with a tip.
    const fn needed(head: &Head, tip_wei: u128) -> u128 {
        let base = head.base_fee_wei;
        base.saturating_add(base / 8).saturating_add(tip_wei)
    }

    const fn too_dear(&self, head: &Head) -> TooDear {
        TooDear {
            base_fee_wei: head.base_fee_wei,
            cap_wei: self.max_fee_cap_wei,
        }
    }
}

impl Fees {
    /// Whether a block that costs as much as the newest takes a transaction that offers this.
    pub const fn suffice(&self, head: &Head) -> bool {
        self.max_fee_wei >= head.base_fee_wei
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
        };
        let at = |base| {
            policy.quote(&Head {
                base_fee_wei: base,
                ..Head::default()
            })
        };
        assert_eq!(at(100).unwrap().max_fee_wei, 210);
        assert_eq!(at(400).unwrap().max_fee_wei, 750, "room to outbid");
        assert_eq!(at(800).unwrap().max_fee_wei, 910, "what is needed");
        assert_eq!(
            at(900),
            Err(TooDear {
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
        };
        let last = Fees {
            max_fee_wei: 160,
            max_priority_fee_wei: 16,
        };
        let at = |base_fee_wei| Head {
            base_fee_wei,
            ..Head::default()
        };
        assert!(last.suffice(&at(160)) && !last.suffice(&at(161)));
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
        };
        assert_eq!(policy.with_tip(3).priority_fee_wei, 10);
        assert_eq!(policy.with_tip(30).priority_fee_wei, 30);
        assert_eq!(policy.with_tip(900).priority_fee_wei, 250);
    }
}
