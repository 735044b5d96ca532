//! From a queued payment to committed bytes: simulate, price, sign, write.

use alloy::primitives::Bytes;

use crate::chain::fees::TooDear;
use crate::chain::signer::{Order, SigningFailed};
use crate::chain::token::{AuthorizationUse, settlement_call};
use crate::chain::{RpcError, SignerKey};
use crate::ledger::{Attempt, LaneKey, LaneLease, LedgerError, NewTransaction, Recorded, Unmined};
use crate::payment::state::Exit;
use crate::payment::{ChainFacts, Payment};
use crate::protocol::Reason;
use crate::settlement::failpoint::{Step, reach};
use crate::settlement::{Queued, Site};

/// Gas that a transaction costs before its first instruction.
const BASE_GAS: u64 = 21_000;
/// Gas for what a simulation finds warm and a transaction finds cold, and for a payee who never held the token.
const COLD_GAS: u64 = 45_000;
/// Gas per byte of calldata, were none of them zero.
const BYTE_GAS: u64 = 16;

/// A payment whose simulation went through.
#[derive(Debug)]
pub(super) struct Simulated {
    payment: Payment,
    gas_used: u64,
}

/// Why nothing was written for a payment.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotPrepared {
    /// No chain facts: try again later.
    #[error(transparent)]
    Chain(#[from] RpcError),
    /// The ledger failed: the lane has to be looked at anew.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// Gas is above the cap: try again later.
    #[error(transparent)]
    TooDear(#[from] TooDear),
    /// The key failed.
    #[error(transparent)]
    Signing(#[from] SigningFailed),
    /// No block was seen yet.
    #[error("no block has been seen yet")]
    NoHead,
}

/// Simulates a queued payment on the newest state. `None`: it was ejected, and that is in the ledger.
pub(super) async fn simulate(
    site: &Site,
    queued: Queued,
) -> Result<Option<Simulated>, NotPrepared> {
    let Queued { payment, facts, .. } = queued;
    reach(Step::Picked);
    let head = site.view.head().map(|head| head.number);
    let facts = match facts.filter(|facts| head.is_none_or(|head| head <= facts.block_number)) {
        Some(fresh) => fresh,
        None => site.facts.of_payment(&payment).await?,
    };
    if facts.transfer_succeeds {
        let least = facts.gas_used.saturating_add(BASE_GAS);
        if least > site.fees.gas_cap {
            let exit = Exit {
                reason: Reason::ExactSimulationFailed,
                message: format!(
                    "the transfer needs at least {least} gas, and this facilitator pays for {} at most",
                    site.fees.gas_cap
                ),
            };
            site.ledger.refuse(payment.id, &exit).await?;
            site.waiters.wake([payment.id]);
            return Ok(None);
        }
        reach(Step::Simulated);
        return Ok(Some(Simulated {
            payment,
            gas_used: facts.gas_used,
        }));
    }
    eject(site, &payment, &facts).await?;
    Ok(None)
}

/// A payment that would fail is not sent. If its nonce is used, somebody else may have submitted the authorization.
async fn eject(site: &Site, payment: &Payment, facts: &ChainFacts) -> Result<(), NotPrepared> {
    if facts.nonce_used == Some(true)
        && let AuthorizationUse::Transferred(location) = site
            .rpc
            .authorization_use(payment, facts.block_number)
            .await?
    {
        tracing::info!(payment.id = %payment.id, transaction = %location.transaction, "somebody else submitted the authorization");
        let deep = location.is_deep(facts.block_number, payment.confirmations);
        site.ledger
            .settled_by_others(payment.id, &location, deep)
            .await?;
        site.note_shallow();
    } else {
        let exit = payment.objection(facts);
        tracing::info!(payment.id = %payment.id, code = exit.reason.code(), "not sent: its simulation failed");
        site.ledger.refuse(payment.id, &exit).await?;
    }
    site.waiters.wake([payment.id]);
    Ok(())
}

/// A lane that is about to write a transaction.
#[derive(Debug)]
pub(super) struct Desk<'a> {
    pub(super) site: &'a Site,
    pub(super) lane: LaneKey,
    pub(super) lease: LaneLease,
    pub(super) key: &'a SignerKey,
}

/// What came of an attempt to write.
#[derive(Debug)]
pub(super) enum Prepared {
    /// Committed and ready to be sent.
    Ready(Unmined),
    /// The payment went another way meanwhile.
    Moved,
    /// The lane is another process's now.
    LaneLost,
}

impl Desk<'_> {
    /// Signs the transaction of one payment under the lane's next nonce and commits it.
    pub(super) async fn write(&self, simulated: Simulated) -> Result<Prepared, NotPrepared> {
        let Simulated { payment, gas_used } = simulated;
        let head = self.site.view.head().ok_or(NotPrepared::NoHead)?;
        let fees = self.site.fees.quote(&head)?;
        let (to, data) = settlement_call(&payment);
        let gas_cap = self.site.fees.gas_cap;
        let gas_limit = match &payment.wallet {
            // The simulation measures the transfer alone. The factory's part is not known, but it went through within the cap.
            Some(_) => gas_cap,
            None => gas_limit(gas_used, &data).min(gas_cap),
        };
        let nonce = self.lease.next_nonce;
        let (raw, hash) = self.key.sign(Order {
            network: self.lane.network,
            nonce,
            gas_limit,
            fees,
            to,
            data,
        })?;
        reach(Step::Signed);
        let attempt = Attempt {
            hash,
            raw: raw.clone(),
            gas_limit,
            max_fee_wei: fees.max_fee_wei,
            max_priority_fee_wei: fees.max_priority_fee_wei,
        };
        let new = NewTransaction {
            lane: self.lane,
            epoch: self.lease.epoch,
            nonce,
            attempt: &attempt,
            payments: &[payment.id],
        };
        let recorded = self.site.ledger.record(&new).await?;
        reach(Step::Recorded);
        Ok(match recorded {
            Recorded::Written(id) => Prepared::Ready(Unmined {
                id,
                nonce,
                attempts: vec![(hash, raw)],
                payments: vec![payment],
            }),
            Recorded::LaneLost => Prepared::LaneLost,
            Recorded::PaymentsMoved => Prepared::Moved,
        })
    }
}

/// Computed, not estimated: the simulated call, a third more for the 63/64 rule of nested calls, and what only a transaction pays.
fn gas_limit(gas_used: u64, data: &Bytes) -> u64 {
    let bytes = u64::try_from(data.len()).unwrap_or(u64::MAX);
    let execution = gas_used.saturating_add(gas_used / 3);
    execution
        .saturating_add(BASE_GAS + COLD_GAS)
        .saturating_add(bytes.saturating_mul(BYTE_GAS))
}
