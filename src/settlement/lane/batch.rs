//! From simulated payments to committed bytes: price, sign, record.

use std::sync::Arc;

use alloy::primitives::U256;

use super::batch_plan::{BatchPlan, SimulatedPayment};
use crate::chain::fees::FeeError;
use crate::chain::signer::{SigningFailed, UnsignedTransaction};
use crate::chain::{RpcError, SignerKey};
use crate::ledger::{
    Attempt, LaneKey, LaneLease, LedgerError, NewTransaction, OverBudget, PendingTransaction,
    Recorded,
};
use crate::payment::Payment;
use crate::settlement::ServedNetwork;
use crate::settlement::failpoint::{Step, reach, signers_are_down};
use crate::settlement::gas::GasRule;
use crate::settlement::turns::Turn;

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

/// What is known of the payers of a transaction while this process follows it.
#[derive(Debug, Default)]
pub(super) struct RanWith {
    /// All were accounts without code.
    pub(super) plain: bool,
    /// The turns of wallets in it.
    pub(super) turns: Vec<Arc<Turn>>,
}

impl RanWith {
    fn of(rows: &[SimulatedPayment]) -> Self {
        let turns = rows.iter().filter_map(|row| row.turn.clone());
        Self {
            plain: rows.iter().all(|row| row.turn.is_none()),
            turns: turns.collect(),
        }
    }
}

/// Result of signing and recording a batch.
#[derive(Debug)]
pub(super) enum SignedBatch {
    /// Committed; ready to be broadcast.
    Recorded(PendingTransaction, RanWith),
    /// Some payments changed state meanwhile; these remain and are planned again.
    PaymentsChanged(Vec<SimulatedPayment>),
    /// It may cost more than these budgets have left.
    OverBudget(Vec<OverBudget>, Vec<SimulatedPayment>),
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
        let signing = self.key.sign(UnsignedTransaction {
            network: self.lane.network,
            nonce,
            gas_limit,
            fees,
            to,
            data,
            value: U256::ZERO,
        });
        let (raw, hash) = signing.await?;
        reach(Step::Signed);
        let attempt = Attempt {
            hash,
            raw: raw.clone(),
            gas_limit,
            max_fee_wei: fees.max_fee_wei,
            max_priority_fee_wei: fees.max_priority_fee_wei,
            cost_wei: self.served.cost(gas_limit, fees, plan.rows.len()),
            empty: false,
        };
        let payments: Vec<&Payment> = plan.rows.iter().map(|row| &row.payment).collect();
        let batch = plan.is_batch();
        let new = NewTransaction {
            lane: self.lane,
            epoch: self.lease.epoch,
            nonce,
            kind: plan.kind(),
            attempt: &attempt,
            payments: &payments,
            shares: &plan.shares(&self.served.budgets, &self.rule),
        };
        let recorded = self.served.ledger.record(&new).await?;
        reach(Step::Recorded);
        Ok(match recorded {
            Recorded::Written(id, uses) => {
                let now = self.served.ledger.clock().now();
                self.served.budgets.note(&uses, now);
                let ran = RanWith::of(&plan.rows);
                let transaction = PendingTransaction {
                    id,
                    network: self.lane.network,
                    nonce,
                    batch,
                    attempts: vec![(hash, raw)],
                    payments: plan.rows.into_iter().map(|row| row.payment).collect(),
                };
                SignedBatch::Recorded(transaction, ran)
            }
            Recorded::OverBudget(over) => SignedBatch::OverBudget(over, plan.rows),
            Recorded::LaneLost => SignedBatch::LaneLost,
            Recorded::PaymentsChanged(left) => {
                let mut rows = plan.rows;
                rows.retain(|row| left.contains(&row.payment.id));
                SignedBatch::PaymentsChanged(rows)
            }
        })
    }
}
