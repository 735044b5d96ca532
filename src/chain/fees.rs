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
    /// Twice the base fee and the tip, within the cap: enough for six full blocks in a row.
    ///
    /// # Errors
    /// [`TooDear`] when even the base fee of the next block could be above the cap.
    pub fn quote(&self, head: &Head) -> Result<Fees, TooDear> {
        let base = head.base_fee_wei;
        let needed = base
            .saturating_add(base / 8)
            .saturating_add(self.priority_fee_wei);
        if needed > self.max_fee_cap_wei {
            return Err(TooDear {
                base_fee_wei: base,
                cap_wei: self.max_fee_cap_wei,
            });
        }
        let wished = base.saturating_mul(2).saturating_add(self.priority_fee_wei);
        Ok(Fees {
            max_fee_wei: wished.min(self.max_fee_cap_wei),
            max_priority_fee_wei: self.priority_fee_wei,
        })
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
        assert_eq!(at(800).unwrap().max_fee_wei, 1000);
        assert_eq!(
            at(900),
            Err(TooDear {
                base_fee_wei: 900,
                cap_wei: 1000
            })
        );
        assert!(at(u128::MAX).is_err());
    }
}
