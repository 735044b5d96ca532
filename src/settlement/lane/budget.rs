//! Payments whose transaction a gas budget does not allow.

use std::collections::HashMap;

use time::OffsetDateTime;
use tokio::time::Instant;

use super::batch_plan::SimulatedPayment;
use super::{Lane, OwnedLane, PAUSE};
use crate::ledger::{GasSubject, LedgerError, OverBudget};
use crate::payment::PaymentId;
use crate::settlement::budgets::exhausted;

impl Lane {
    /// Refuses those payments whose own budget has no room; nothing was written or sent. The others are planned again.
    pub(super) async fn refuse_over_budget(
        &self,
        owned: &mut OwnedLane,
        over: &[OverBudget],
        rows: Vec<SimulatedPayment>,
    ) -> Result<(), LedgerError> {
        let served = &self.served;
        served.budgets.note_refused(over);
        let over = |subject: GasSubject| over.iter().find(|one| one.subject == subject);
        let mut refused: HashMap<(GasSubject, OffsetDateTime), Vec<PaymentId>> = HashMap::new();
        let mut left = Vec::new();
        for row in rows {
            let terms = &row.payment.terms;
            let subjects = [
                GasSubject::Network,
                GasSubject::Payee(terms.to),
                GasSubject::Payer(terms.from),
            ];
            let closed = subjects
                .into_iter()
                .find_map(|subject| Some((subject, over(subject)?.until?)));
            match closed {
                Some(closed) => refused.entry(closed).or_default().push(row.payment.id),
                None => left.push(row),
            }
        }
        if over(GasSubject::Network).is_some_and(|network| network.until.is_none()) {
            // The receipts of open transactions will leave room.
            owned.paused_until = Instant::now() + PAUSE / 4;
        }
        owned.put_back(left);
        for ((subject, until), payments) in refused {
            let rejection = exhausted(subject, until);
            served.ledger.refuse_all(&payments, &rejection).await?;
            served.waiters.wake(payments);
        }
        Ok(())
    }
}
