//! How long the engine waits: the leases, the intervals of its periodic work, and how long evidence has to last before it counts.
//!
//! One value holds for a process, from its start. Time limits of single calls and pauses that bound the load of a dependency stand where
//! they are used: nothing is decided when they end.

use std::time::Duration;

/// The durations of one process. The default is what production uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    // Leases.
    /// Lease of a lane: a renewal without an answer and the next one fit into it.
    pub lane_lease: Duration,
    /// Lease of a process: an answered grant is closed before it ends, even when the first try to close it gets no answer.
    pub process_lease: Duration,
    /// How often both are renewed.
    pub lease_renewal: Duration,
    /// A process claims more than its share of the lanes when nobody has owned a lane for this long.
    pub lane_unowned: Duration,
    /// A queued payment that a process does not send for this long may be claimed by any other: that one may be unable to send.
    pub payment_claim: Duration,
    /// The same for a process that has missed its renewals, and for a payment that this process has lost from its memory.
    pub lost_payment_claim: Duration,
    /// A process that has had no RPC answer for this long leaves its lanes to other processes.
    pub disconnected_after: Duration,

    // Transactions in flight.
    /// Bytes are broadcast again each time this has passed without a result.
    pub resend_after: Duration,
    /// After this long without a result, a transaction's receipt is asked for by hash.
    pub poll_receipt_after: Duration,
    /// Least age of the newest bytes for a fee bump that the base fee does not ask for: on chains with fast blocks the number of blocks
    /// means little.
    pub bump_after: Duration,
    /// After batch simulations have failed for this long, for whatever reason, payments are sent one by one...
    pub one_by_one_after: Duration,
    /// ...for this long. Then a batch is simulated again.
    pub one_by_one_for: Duration,

    // Evidence.
    /// How long every check must show that a nonce is used and no node has a receipt of ours: nodes show receipts later than account nonces.
    pub foreign_after: Duration,
    /// The same for the nonce of a payer's own transfer.
    pub replaced_after: Duration,
    /// Contradicting answers for this long quarantine a payment for the operator: nodes show logs a moment later than state.
    pub contradiction_after: Duration,
    /// Time between two readings of nonces that the ledger does not know, before they are taken as used.
    pub unknown_nonce_interval: Duration,
    /// How long a lane that is opened for the first time waits for a second endpoint to confirm its nonce.
    pub single_endpoint_after: Duration,
    /// Most pooled transactions are mined within this time; after it the wait for a foreign one is logged.
    pub pool_warning_after: Duration,

    // Periodic work.
    /// How often an idle lane checks for foreign use of its nonces.
    pub idle_nonce_check: Duration,
    /// How often a signer's balance is read.
    pub balance: Duration,
    /// The same while it is too low: a refill is seen within seconds.
    pub low_balance: Duration,
    /// How often the ledger is read for payments and transfers that another process, or this one before a restart, left undecided.
    pub reconcile: Duration,
    /// How often queued payments that have expired are searched for.
    pub expired: Duration,
    /// How often payments that were given up are searched for.
    pub given_up: Duration,
    /// Longest interval for a transfer whose session has expired: it no longer pays for anything, and only the history shows it.
    pub late_transfer: Duration,
    /// How often the ledger is asked for open transactions of signers without a key here. A process that has the key may end at any time.
    pub keyless: Duration,
    /// How long a lane without a key is owned at a time; then a process that has its key can claim it.
    pub keyless_turn: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            lane_lease: seconds(10),
            process_lease: seconds(15),
            lease_renewal: seconds(3),
            lane_unowned: seconds(4),
            payment_claim: seconds(10),
            lost_payment_claim: seconds(2),
            disconnected_after: seconds(8),
            resend_after: seconds(4),
            poll_receipt_after: seconds(3),
            bump_after: seconds(12),
            one_by_one_after: seconds(5),
            one_by_one_for: seconds(10),
            foreign_after: seconds(10),
            replaced_after: seconds(5),
            contradiction_after: seconds(20),
            unknown_nonce_interval: seconds(1),
            single_endpoint_after: seconds(10),
            pool_warning_after: seconds(10),
            idle_nonce_check: seconds(5),
            balance: seconds(15),
            low_balance: seconds(2),
            reconcile: seconds(3),
            expired: seconds(5),
            given_up: seconds(30),
            late_transfer: seconds(30),
            keyless: seconds(5),
            keyless_turn: seconds(30),
        }
    }
}

impl Timing {
    /// Every duration divided by `divisor`, so that they keep their order. 0 is treated as 1.
    #[must_use]
    pub fn shortened(self, divisor: u32) -> Self {
        let short = |duration: Duration| duration / divisor.max(1);
        Self {
            lane_lease: short(self.lane_lease),
            process_lease: short(self.process_lease),
            lease_renewal: short(self.lease_renewal),
            lane_unowned: short(self.lane_unowned),
            payment_claim: short(self.payment_claim),
            lost_payment_claim: short(self.lost_payment_claim),
            disconnected_after: short(self.disconnected_after),
            resend_after: short(self.resend_after),
            poll_receipt_after: short(self.poll_receipt_after),
            bump_after: short(self.bump_after),
            one_by_one_after: short(self.one_by_one_after),
            one_by_one_for: short(self.one_by_one_for),
            foreign_after: short(self.foreign_after),
            replaced_after: short(self.replaced_after),
            contradiction_after: short(self.contradiction_after),
            unknown_nonce_interval: short(self.unknown_nonce_interval),
            single_endpoint_after: short(self.single_endpoint_after),
            pool_warning_after: short(self.pool_warning_after),
            idle_nonce_check: short(self.idle_nonce_check),
            balance: short(self.balance),
            low_balance: short(self.low_balance),
            reconcile: short(self.reconcile),
            expired: short(self.expired),
            given_up: short(self.given_up),
            late_transfer: short(self.late_transfer),
            keyless: short(self.keyless),
            keyless_turn: short(self.keyless_turn),
        }
    }

    /// A process whose lease ends within this time has missed its renewals.
    pub fn missed_renewals(&self) -> Duration {
        self.process_lease
            .saturating_sub(self.lease_renewal * 5 / 3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewals_fit_into_the_leases() {
        let default = Timing::default();
        for timing in [default, default.shortened(3), default.shortened(0)] {
            assert!(timing.lane_lease > 3 * timing.lease_renewal);
            assert!(timing.missed_renewals() + timing.lease_renewal < timing.process_lease);
            assert!(timing.lost_payment_claim < timing.payment_claim);
        }
        assert_eq!(default.missed_renewals(), Duration::from_secs(10));
    }
}
