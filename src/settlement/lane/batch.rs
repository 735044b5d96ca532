//! From queued payments to committed bytes: simulate, price, sign, record.

use alloy::primitives::{Address, U256};

use super::batch_plan::{BatchPlan, SimulatedPayment, min_gas};
use crate::chain::AuthorizationUse;
use crate::chain::fees::FeeError;
use crate::chain::signer::{SigningFailed, UnsignedTransaction};
use crate::chain::{RpcError, SignerKey};
use crate::ledger::{
    Attempt, LaneKey, LaneLease, LedgerError, NewTransaction, PendingTransaction, Recorded,
    TransactionKind,
};
use crate::payment::method::Fault;
use crate::payment::{ChainFacts, Payment, SignedBy};
use crate::protocol::Rejection;
use crate::settlement::failpoint::{Step, reach, signers_are_down};
use crate::settlement::gas::GasRule;
use crate::settlement::{Queued, ServedNetwork};

/// Why a payment was not put into a transaction.
#[derive(Debug, thiserror::Error)]
pub(super) enum PrepareError {
    /// Chain facts are not available; tried again later.
    #[error(transparent)]
    Chain(#[from] RpcError),
    /// The commit may or may not have happened: the lane has to be read again from the ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// Gas costs more than the cap; tried again later.
    #[error(transparent)]
    FeeError(#[from] FeeError),
    #[error(transparent)]
    Signing(#[from] SigningFailed),
    #[error("no block has been read from the chain yet")]
    NoHead,
}

/// Simulates a queued payment on the newest state. `None`: it was refused, settled or put on hold, and the ledger says so where its state
/// changed.
pub(super) async fn simulate(
    served: &ServedNetwork,
    queued: Queued,
) -> Result<Option<SimulatedPayment>, PrepareError> {
    let Queued {
        payment,
        facts,
        alone,
        ..
    } = queued;
    reach(Step::Picked);
    if expires_too_soon(served, &payment) {
        let rejection = Rejection {
            reason: payment.terms.reason(Fault::ValidBefore),
            message: "the authorization expires before a transaction could be mined".to_owned(),
        };
        served.ledger.refuse(payment.id, &rejection).await?;
        served.waiters.wake([payment.id]);
        return Ok(None);
    }
    let mut payment = drop_deployed_wallet(served, payment).await?;
    // A batch is simulated as a whole before it is sent, so older facts suffice where the payer is a plain account.
    let usable = |facts: &ChainFacts| {
        (!facts.payer_has_code && facts.transfer_succeeds) || is_fresh(served, facts)
    };
    let facts = match facts.filter(usable) {
        Some(known) => known,
        None => served.lane_facts.of(&payment.terms).await?,
    };
    if facts.transfer_succeeds {
        let (least, gas_cap) = (min_gas(&facts), served.fees().gas_cap);
        if least > gas_cap {
            let rejection = Rejection {
                reason: payment.terms.reason(Fault::Simulation),
                message: format!(
                    "the transfer needs at least {least} gas, and this facilitator pays for {gas_cap} at most"
                ),
            };
            served.ledger.refuse(payment.id, &rejection).await?;
            served.waiters.wake([payment.id]);
            return Ok(None);
        }
        reach(Step::Simulated);
        // A plain account has signed with its key; otherwise the payment would have been refused before. An account may have got code since
        // an earlier simulation.
        payment.terms.signed_by = (!facts.payer_has_code).then_some(SignedBy::Payer);
        return Ok(Some(SimulatedPayment {
            payment,
            facts,
            alone,
        }));
    }
    if payment.terms.fails_only_because_early(&facts) {
        // No endpoint simulates a later time, and the newest block is older than `validAfter`. The pickup task finds the payment again a
        // little later.
        return Ok(None);
    }
    if payment.terms.needs_approval_first(&facts) {
        served.approvals.enqueue(payment, &served.queue);
        return Ok(None);
    }
    settle_or_refuse(served, &payment, &facts).await?;
    Ok(None)
}

/// Drops the factory call of a wallet that has been deployed since.
async fn drop_deployed_wallet(
    served: &ServedNetwork,
    mut payment: Payment,
) -> Result<Payment, RpcError> {
    if payment.terms.wallet.is_some() && !served.rpc.code(payment.terms.from).await?.is_empty() {
        payment.terms.wallet = None;
    }
    Ok(payment)
}

/// Whether less than half of `validity_min` is left: too little for another block or two.
fn expires_too_soon(served: &ServedNetwork, payment: &Payment) -> bool {
    let end = payment.terms.valid_before.timestamp();
    let least = served.policy.validity_min.whole_seconds() / 2;
    let head = served.view.head();
    head.is_some_and(|head| end <= head.time.unix_timestamp().saturating_add(least))
}

/// Whether the head is still the block of these facts.
fn is_fresh(served: &ServedNetwork, facts: &ChainFacts) -> bool {
    let head = served.view.head();
    head.is_none_or(|head| head.number <= facts.block_number)
}

/// Handles a payment whose simulation failed: it is not sent. If its nonce is used, a foreign transaction may have submitted the
/// authorization; then the payment is settled by that.
async fn settle_or_refuse(
    served: &ServedNetwork,
    payment: &Payment,
    facts: &ChainFacts,
) -> Result<(), PrepareError> {
    let tokens = served.policy.tokens();
    let used = if facts.nonce_used == Some(true) {
        served
            .rpc
            .authorization_use(&payment.terms, facts.block_number, &tokens)
            .await
    } else {
        Ok(AuthorizationUse::Unused)
    };
    if let Ok(AuthorizationUse::Transferred { location, .. }) = used {
        tracing::info!(payment.id = %payment.id, transaction = %location.transaction, "payment settled by a foreign transaction");
        let height = served.rpc.agreed_height(facts.block_number);
        let confirmed = location.is_confirmed(height, payment.confirmations);
        served
            .ledger
            .settle_by_foreign_transaction(payment.id, &location, confirmed)
            .await?;
        served.note_unconfirmed();
    } else {
        let rejection = match used {
            Ok(_) => payment.terms.diagnose(facts),
            // Affects this payment alone. The chain is asked again before a caller gets this answer.
            Err(error) => Rejection {
                reason: payment.terms.reason(Fault::NonceUsed),
                message: format!(
                    "the authorization's nonce is used, and the transaction that used it could not be found ({error})"
                ),
            },
        };
        tracing::info!(payment.id = %payment.id, code = rejection.reason.code(), "payment not sent: its simulation failed");
        served.ledger.refuse(payment.id, &rejection).await?;
    }
    served.waiters.wake([payment.id]);
    Ok(())
}

/// Result of simulating a batch.
#[derive(Debug)]
pub(super) struct SimulatedBatch {
    /// The payments that can be sent, if any.
    pub(super) plan: Option<BatchPlan>,
    /// Payments to be simulated again.
    pub(super) left_out: Vec<Queued>,
    /// The simulation gave no answer; tried again after a pause.
    pub(super) error: Option<RpcError>,
}

/// Simulates a batch as a whole, as `signer` would send it, and leaves out the payments that would fail in it: for example a payer that
/// promised more than its balance, or that has got code since. A batch that no node can simulate is split.
pub(super) async fn simulate_batch(
    served: &ServedNetwork,
    signer: Address,
    plan: BatchPlan,
    rule: GasRule,
) -> Result<SimulatedBatch, PrepareError> {
    if let [only] = plan.rows.as_slice() {
        // The simulation of a single payment is valid while the head is unchanged.
        let rows = if is_fresh(served, &only.facts) {
            plan.rows
        } else {
            let again = Queued::alone(only.payment.clone());
            simulate(served, again).await?.into_iter().collect()
        };
        return Ok(SimulatedBatch {
            plan: (!rows.is_empty()).then_some(BatchPlan { rows }),
            left_out: Vec::new(),
            error: None,
        });
    }
    let gas_limit = plan.gas_limit(&plan.call().1, &rule);
    let batch: Vec<_> = plan.rows.iter().map(|row| &row.payment.terms).collect();
    let results = match served.rpc.simulate_batch(signer, &batch, gas_limit).await {
        Ok(results) => results,
        Err(error) => return Ok(batch_not_simulated(served, plan, error)),
    };
    served.gas.batch_simulated();
    let rows = plan.rows.into_iter().zip(results);
    let (good, bad): (Vec<_>, Vec<_>) =
        rows.partition(|(_, result)| result.succeeds && !result.payer_has_code);
    let rows: Vec<_> = good.into_iter().map(|(row, _)| row).collect();
    let left_out = bad.into_iter().map(|(row, _)| Queued::alone(row.payment));
    Ok(SimulatedBatch {
        plan: (!rows.is_empty()).then_some(BatchPlan { rows }),
        left_out: left_out.collect(),
        error: None,
    })
}

/// A batch that could not be simulated as a whole. Too large: smaller batches follow. Reverted, which one of its payments caused: each
/// payment gets its own transaction. Any other error: the provider has trouble, and the batch waits as it is.
fn batch_not_simulated(served: &ServedNetwork, plan: BatchPlan, error: RpcError) -> SimulatedBatch {
    let payments = plan.rows.len();
    let rows = plan.rows.into_iter();
    let whole = |row: SimulatedPayment| Queued::new(row.payment, Some(row.facts));
    let (left_out, unavailable): (Vec<_>, _) = if error.is_too_large() {
        tracing::warn!(payments, %error, "batch too large to simulate: smaller batches follow");
        served.gas.batch_too_large(payments);
        (rows.map(whole).collect(), None)
    } else if error.is_revert() {
        tracing::warn!(payments, %error, "batch simulation reverted: its payments are sent one by one");
        (rows.map(|row| Queued::alone(row.payment)).collect(), None)
    } else {
        served.gas.batch_not_simulated();
        (rows.map(whole).collect(), Some(error))
    };
    SimulatedBatch {
        plan: None,
        left_out,
        error: unavailable,
    }
}

/// The lane state that is needed to sign a batch.
#[derive(Debug)]
pub(super) struct BatchContext<'a> {
    pub(super) served: &'a ServedNetwork,
    pub(super) lane: LaneKey,
    pub(super) lease: LaneLease,
    pub(super) key: &'a SignerKey,
    /// The limits by which the batch was filled.
    pub(super) rule: GasRule,
}

/// Result of signing and recording a batch.
#[derive(Debug)]
pub(super) enum SignedBatch {
    /// Committed; ready to be broadcast.
    Recorded(PendingTransaction),
    /// Some payments changed state meanwhile; these remain and are planned again.
    PaymentsChanged(Vec<SimulatedPayment>),
    /// Another process owns the lane.
    LaneLost,
}

impl BatchContext<'_> {
    /// Signs the batch under the lane's next nonce and commits bytes, hash and nonce.
    pub(super) async fn sign_and_record(
        &self,
        plan: BatchPlan,
    ) -> Result<SignedBatch, PrepareError> {
        let head = self.served.view.head().ok_or(PrepareError::NoHead)?;
        let fees = self.served.fees().quote(&head)?;
        let (to, data) = plan.call();
        let gas_limit = plan.gas_limit(&data, &self.rule);
        let nonce = self.lease.next_nonce;
        if signers_are_down() {
            return Err(SigningFailed::Unavailable.into());
        }
        let (raw, hash) = self.key.sign(UnsignedTransaction {
            network: self.lane.network,
            nonce,
            gas_limit,
            fees,
            to,
            data,
            value: U256::ZERO,
        })?;
        reach(Step::Signed);
        let attempt = Attempt {
            hash,
            raw: raw.clone(),
            gas_limit,
            max_fee_wei: fees.max_fee_wei,
            max_priority_fee_wei: fees.max_priority_fee_wei,
            empty: false,
        };
        let payments: Vec<&Payment> = plan.rows.iter().map(|row| &row.payment).collect();
        let batch = plan.is_batch();
        let new = NewTransaction {
            lane: self.lane,
            epoch: self.lease.epoch,
            nonce,
            kind: if batch {
                TransactionKind::Batch
            } else {
                TransactionKind::Direct
            },
            attempt: &attempt,
            payments: &payments,
        };
        let recorded = self.served.ledger.record(&new).await?;
        reach(Step::Recorded);
        Ok(match recorded {
            Recorded::Written(id) => SignedBatch::Recorded(PendingTransaction {
                id,
                network: self.lane.network,
                nonce,
                batch,
                attempts: vec![(hash, raw)],
                payments: plan.rows.into_iter().map(|row| row.payment).collect(),
            }),
            Recorded::LaneLost => SignedBatch::LaneLost,
            Recorded::PaymentsChanged(left) => {
                let mut rows = plan.rows;
                rows.retain(|row| left.contains(&row.payment.id));
                SignedBatch::PaymentsChanged(rows)
            }
        })
    }
}
