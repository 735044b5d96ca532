//! From a queued payment to committed bytes: simulate, price, sign, write.

use alloy::primitives::{Address, U256};

use crate::chain::authorization::AuthorizationUse;
use crate::chain::fees::TooDear;
use crate::chain::signer::{Order, SigningFailed};
use crate::chain::{RpcError, SignerKey};
use crate::ledger::{
    Attempt, LaneKey, LaneLease, LedgerError, NewTransaction, Recorded, TransactionKind, Unmined,
};
use crate::payment::method::Fault;
use crate::payment::state::Exit;
use crate::payment::{ChainFacts, Payment};
use crate::settlement::failpoint::{Step, reach, signers_are_down};
use crate::settlement::gas::GasRule;
use crate::settlement::load::{Load, Simulated, least_gas};
use crate::settlement::{Queued, Site};

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
    let Queued {
        payment,
        facts,
        alone,
        ..
    } = queued;
    reach(Step::Picked);
    if ends_on_the_way(site, &payment) {
        let exit = Exit {
            reason: payment.reason(Fault::Ends),
            message: "the authorization ends before a transaction could be in a block".to_owned(),
        };
        site.ledger.refuse(payment.id, &exit).await?;
        site.waiters.wake([payment.id]);
        return Ok(None);
    }
    let payment = without_needless_factory(site, payment).await?;
    // A batch is rehearsed as a whole before it is sent, so older facts do where only plain accounts pay.
    let usable = |facts: &ChainFacts| {
        (!facts.payer_has_code && facts.transfer_succeeds) || is_fresh(site, facts)
    };
    let facts = match facts.filter(usable) {
        Some(known) => known,
        None => site.lane_facts.of(payment.signed()).await?,
    };
    if facts.transfer_succeeds {
        let (least, gas_cap) = (least_gas(&facts), site.fees().gas_cap);
        if least > gas_cap {
            let exit = Exit {
                reason: payment.reason(Fault::Simulation),
                message: format!(
                    "the transfer needs at least {least} gas, and this facilitator pays for {gas_cap} at most"
                ),
            };
            site.ledger.refuse(payment.id, &exit).await?;
            site.waiters.wake([payment.id]);
            return Ok(None);
        }
        reach(Step::Simulated);
        return Ok(Some(Simulated {
            payment,
            facts,
            alone,
        }));
    }
    if payment.signed().waits_for_its_time(&facts) {
        // No endpoint simulates a later time, and the chain's has not come yet: it is found again in the ledger, a little later.
        return Ok(None);
    }
    if payment.signed().awaits_approval(&facts) {
        site.approvals.take_up(payment, &site.queue);
        return Ok(None);
    }
    eject(site, &payment, &facts).await?;
    Ok(None)
}

/// A payment whose wallet is deployed by now needs no factory.
async fn without_needless_factory(site: &Site, mut payment: Payment) -> Result<Payment, RpcError> {
    if payment.wallet.is_some() && !site.rpc.code(payment.authorization.from).await?.is_empty() {
        payment.wallet = None;
    }
    Ok(payment)
}

/// Whether less than half of the time is left that is asked for at acceptance: too little for another block or two.
fn ends_on_the_way(site: &Site, payment: &Payment) -> bool {
    let end = payment.authorization.valid_before.atomic();
    let least = site.policy.validity_min.whole_seconds() / 2;
    let by = site
        .view
        .head()
        .map(|head| head.time.unix_timestamp().saturating_add(least));
    by.and_then(|by| u64::try_from(by).ok())
        .is_some_and(|by| end <= U256::from(by))
}

/// Whether the chain has not moved since.
fn is_fresh(site: &Site, facts: &ChainFacts) -> bool {
    let head = site.view.head();
    head.is_none_or(|head| head.number <= facts.block_number)
}

/// A payment that would fail is not sent. If its nonce is used, somebody else may have submitted the authorization.
async fn eject(site: &Site, payment: &Payment, facts: &ChainFacts) -> Result<(), NotPrepared> {
    let tokens = site.policy.tokens();
    let used = if facts.nonce_used == Some(true) {
        let signed = payment.signed();
        site.rpc
            .authorization_use(signed, facts.block_number, &tokens)
            .await
    } else {
        Ok(AuthorizationUse::Unused)
    };
    if let Ok(AuthorizationUse::Transferred { location, .. }) = used {
        tracing::info!(payment.id = %payment.id, transaction = %location.transaction, "payment settled by somebody else's transaction");
        let height = site.rpc.confirmed_height(facts.block_number);
        let deep = location.is_deep(height, payment.confirmations);
        site.ledger
            .settled_by_others(payment.id, &location, deep)
            .await?;
        site.note_shallow();
    } else {
        let exit = match used {
            Ok(_) => payment.objection(facts),
            // That is this payment's trouble, and no other's. Before anybody is told, the chain is asked again.
            Err(error) => Exit {
                reason: payment.reason(Fault::NonceUsed),
                message: format!(
                    "the authorization's nonce is used, and it could not be told by which transaction ({error})"
                ),
            },
        };
        tracing::info!(payment.id = %payment.id, code = exit.reason.code(), "payment not sent: its simulation failed");
        site.ledger.refuse(payment.id, &exit).await?;
    }
    site.waiters.wake([payment.id]);
    Ok(())
}

/// What came of a rehearsal.
#[derive(Debug)]
pub(super) struct Rehearsed {
    /// What went through, if anything did.
    pub(super) load: Option<Load>,
    /// What did not, to be looked at anew.
    pub(super) left_out: Vec<Queued>,
    /// Why nothing can be told now, and is tried again after a pause.
    pub(super) later: Option<RpcError>,
}

/// Rehearses a batch as a whole, as `signer` would send it, and leaves out what would fail in it: payers that promised more than they
/// have, that became wallets since each was looked at, and whatever else has changed. A batch that no node can rehearse is taken apart.
pub(super) async fn rehearse(
    site: &Site,
    signer: Address,
    load: Load,
    rule: GasRule,
) -> Result<Rehearsed, NotPrepared> {
    if let [only] = load.rows.as_slice() {
        // The simulation of a payment by itself is its rehearsal, if the chain has not moved since.
        let rows = if is_fresh(site, &only.facts) {
            load.rows
        } else {
            let again = Queued::alone(only.payment.clone());
            simulate(site, again).await?.into_iter().collect()
        };
        return Ok(Rehearsed {
            load: (!rows.is_empty()).then_some(Load { rows }),
            left_out: Vec::new(),
            later: None,
        });
    }
    let gas_limit = load.gas_limit(&load.call().1, &rule);
    let batch: Vec<_> = load.rows.iter().map(Simulated::signed).collect();
    let results = match site.rpc.rehearse(signer, &batch, gas_limit).await {
        Ok(results) => results,
        Err(error) => return Ok(not_simulated(site, load, error)),
    };
    site.gas.batch_simulated();
    let rows = load.rows.into_iter().zip(results);
    let (good, bad): (Vec<_>, Vec<_>) =
        rows.partition(|(_, result)| result.goes_through && !result.payer_has_code);
    let rows: Vec<_> = good.into_iter().map(|(row, _)| row).collect();
    let left_out = bad.into_iter().map(|(row, _)| Queued::alone(row.payment));
    Ok(Rehearsed {
        load: (!rows.is_empty()).then_some(Load { rows }),
        left_out: left_out.collect(),
        later: None,
    })
}

/// A batch that could not be simulated as a whole: too large, then smaller ones follow; reverted as a whole, which is the doing of one of
/// its payments, then each goes by itself; or the provider is in trouble, then it waits as it is.
fn not_simulated(site: &Site, load: Load, error: RpcError) -> Rehearsed {
    let (network, payments) = (site.policy.network, load.rows.len());
    let rows = load.rows.into_iter();
    let whole = |row: Simulated| Queued::new(row.payment, Some(row.facts));
    let (left_out, later): (Vec<_>, _) = if error.is_about_size() {
        tracing::warn!(%network, payments, %error, "batch too large to be simulated; smaller ones follow");
        site.gas.too_many(payments);
        (rows.map(whole).collect(), None)
    } else if error.is_revert() {
        tracing::warn!(%network, payments, %error, "batch reverted as a whole; its payments go one by one");
        (rows.map(|row| Queued::alone(row.payment)).collect(), None)
    } else {
        site.gas.batch_not_simulated();
        (rows.map(whole).collect(), Some(error))
    };
    Rehearsed {
        load: None,
        left_out,
        later,
    }
}

/// A lane that is about to write a transaction.
#[derive(Debug)]
pub(super) struct Desk<'a> {
    pub(super) site: &'a Site,
    pub(super) lane: LaneKey,
    pub(super) lease: LaneLease,
    pub(super) key: &'a SignerKey,
    /// By which the transaction was filled.
    pub(super) rule: GasRule,
}

/// What came of an attempt to write.
#[derive(Debug)]
pub(super) enum Prepared {
    /// Committed and ready to be sent.
    Ready(Unmined),
    /// Some payments went another way meanwhile; these are left to be planned again.
    Moved(Vec<Simulated>),
    /// The lane is another process's now.
    LaneLost,
}

impl Desk<'_> {
    /// Signs the transaction of a load under the lane's next nonce and commits it.
    pub(super) async fn write(&self, load: Load) -> Result<Prepared, NotPrepared> {
        let head = self.site.view.head().ok_or(NotPrepared::NoHead)?;
        let fees = self.site.fees().quote(&head)?;
        let (to, data) = load.call();
        let gas_limit = load.gas_limit(&data, &self.rule);
        let nonce = self.lease.next_nonce;
        if signers_are_down() {
            return Err(SigningFailed::Unavailable.into());
        }
        let (raw, hash) = self.key.sign(Order {
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
        let riding: Vec<&Payment> = load.rows.iter().map(|row| &row.payment).collect();
        let batch = load.is_batch();
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
            payments: &riding,
        };
        let recorded = self.site.ledger.record(&new).await?;
        reach(Step::Recorded);
        Ok(match recorded {
            Recorded::Written(id) => Prepared::Ready(Unmined {
                id,
                network: self.lane.network,
                nonce,
                batch,
                attempts: vec![(hash, raw)],
                payments: load.rows.into_iter().map(|row| row.payment).collect(),
            }),
            Recorded::LaneLost => Prepared::LaneLost,
            Recorded::PaymentsMoved(left) => {
                let mut rows = load.rows;
                rows.retain(|row| left.contains(&row.payment.id));
                Prepared::Moved(rows)
            }
        })
    }
}
