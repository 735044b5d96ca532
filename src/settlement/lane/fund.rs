//! Gas money for payers whose ERC-20 approvals have to be mined first: a plain transfer under the lane's next nonce.

use alloy::primitives::Bytes;
use tokio::time::Instant;

use super::batch::PrepareError;
use super::{Lane, LaneLost, OpenTransaction, OwnedLane};
use crate::chain::FUNDING_GAS;
use crate::chain::signer::UnsignedTransaction;
use crate::ledger::{
    Attempt, Funding, LedgerError, NewTransaction, OverBudget, PendingTransaction, Recorded,
    TransactionKind,
};
use crate::settlement::{GasParties, Named, ServedNetwork};

impl OwnedLane {
    /// Whether there is room for a transaction without payments.
    pub(super) fn can_fund(&self, served: &ServedNetwork) -> bool {
        let rested = self.paused_until <= Instant::now();
        rested && self.can_write() && self.open.len() < served.inflight_max
    }
}

impl Lane {
    /// Records and broadcasts gas money, unless the payer already got it or the operator's limit is reached.
    pub(super) async fn fund(
        &self,
        owned: &mut OwnedLane,
        funding: Funding,
    ) -> Result<(), LaneLost> {
        match self.write_funding(owned, funding).await {
            Ok(None) => Ok(()),
            Ok(Some(Recorded::OverBudget(over))) => {
                let refused = self.refuse_funding(&over, funding).await;
                refused.or_else(|error| owned.back_off(&error.into()))
            }
            Ok(Some(Recorded::LaneLost | Recorded::PaymentsChanged(_))) => Err(LaneLost),
            Ok(Some(Recorded::Written(..))) => {
                owned.lease.next_nonce += 1;
                owned.open_count.set(owned.open.len());
                self.send(owned, owned.open.len() - 1, None);
                Ok(())
            }
            Err(error) => owned.back_off(&error),
        }
    }

    /// Refuses the payment that needed gas money which a budget does not allow. Nothing was sent.
    async fn refuse_funding(
        &self,
        over: &[OverBudget],
        funding: Funding,
    ) -> Result<(), LedgerError> {
        let now = self.served.ledger.clock().now();
        let plain_wei = self.served.plain_cost();
        self.served.budgets.note_refused(over, plain_wei, now);
        let closed = over.iter().find_map(|one| Some((one.subject, one.until?)));
        if let Some((subject, until)) = closed {
            let rejection = self.served.budgets.exhausted(subject, until);
            let payment = funding.payment;
            if self.served.ledger.refuse(payment, &rejection).await? {
                let named = Named::new(payment, funding.scheme, funding.payer);
                self.served.note_refused(named, &rejection);
            }
            self.served.waiters.wake([payment]);
        }
        Ok(())
    }

    async fn write_funding(
        &self,
        owned: &mut OwnedLane,
        funding: Funding,
    ) -> Result<Option<Recorded>, PrepareError> {
        let (Some(limits), Some(key)) = (self.served.policy.approvals, &self.key) else {
            return Ok(None);
        };
        let head = self.served.view.head().ok_or(PrepareError::NoHead)?;
        let fees = self.served.fees().quote(&head)?;
        let nonce = owned.lease.next_nonce;
        let signing = key.sign(UnsignedTransaction {
            network: self.id.network,
            nonce,
            gas_limit: FUNDING_GAS,
            fees,
            to: funding.payer,
            data: Bytes::new(),
            value: funding.wei,
        });
        let (raw, hash) = signing.await?;
        let attempt = Attempt {
            hash,
            raw: raw.clone(),
            gas_limit: FUNDING_GAS,
            max_fee_wei: fees.max_fee_wei,
            max_priority_fee_wei: fees.max_priority_fee_wei,
            cost_wei: funding
                .wei
                .saturating_add(self.served.cost(FUNDING_GAS, fees, 1)),
            empty: false,
        };
        let parties = GasParties {
            payee: None,
            payer: funding.payer,
            caller: funding.caller,
        };
        let shares = [(parties, FUNDING_GAS)].into_iter();
        let new = NewTransaction {
            lane: self.id,
            epoch: owned.lease.epoch,
            nonce,
            kind: TransactionKind::Funding,
            attempt: &attempt,
            payments: &[],
            shares: &self.served.budgets.shares(shares),
        };
        let ledger = &self.served.ledger;
        let recorded = ledger.record_funding(&new, funding, limits).await?;
        if let Some(Recorded::Written(id, uses)) = &recorded {
            let now = ledger.clock().now();
            self.served.budgets.note(uses, now);
            tracing::info!(nonce, payment = %funding.payment, network = %self.id.network, signer = %self.id.signer, payer = %funding.payer, wei = %funding.wei, transaction = %hash, "gas money sent to a payer for its approval");
            let transaction = PendingTransaction {
                id: *id,
                network: self.id.network,
                nonce,
                batch: false,
                attempts: vec![(hash, raw)],
                payments: Vec::new(),
            };
            owned
                .open
                .push_back(OpenTransaction::new(transaction, Instant::now()));
        }
        Ok(recorded)
    }
}
