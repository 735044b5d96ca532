//! Quarantine: payments that wait for the operator, because an assumption about them does not hold or their row cannot be read. Their state
//! is kept.

use super::connections::{Connection, Connections};
use super::error::Unreadable;
use super::history::{Entry, with_sessions};
use super::row::{PaymentRow, select_payments};
use super::{Ledger, LedgerError};
use crate::payment::{Payment, PaymentId};

impl Ledger {
    pub async fn quarantine(&self, id: PaymentId, why: &str) -> Result<(), LedgerError> {
        let mut connection = self.engine.acquire().await?;
        quarantine(&mut connection, id, why).await.map(drop)
    }

    /// The newest quarantined payments, newest first.
    pub async fn quarantined(&self, limit: u16) -> Result<Vec<Entry>, LedgerError> {
        let mut snapshot = self.snapshot().await?;
        let rows: Vec<PaymentRow> = select_payments!(
            "where p.quarantined_at is not null order by p.created_at desc, p.id desc limit $1",
            i64::from(limit),
        )
        .fetch_all(&mut *snapshot)
        .await?;
        with_sessions(&mut snapshot, rows).await
    }

    /// Releases a payment from the quarantine whose reason the operator has seen. It is then decided anew by the engine. `false`: it is not
    /// in quarantine, or for another reason, or there is none.
    pub async fn release_from_quarantine(
        &self,
        id: PaymentId,
        why: &str,
    ) -> Result<bool, LedgerError> {
        let released = sqlx::query!(
            "update payments set quarantined_at = null, quarantine_reason = null where id = $1 and quarantine_reason = $2",
            id.0,
            why,
        )
        .execute(&self.pool)
        .await?;
        Ok(released.rows_affected() == 1)
    }

    /// The payments of rows. A row that cannot be read is quarantined and left out.
    pub(super) async fn readable(&self, rows: Vec<PaymentRow>) -> Vec<Payment> {
        let payments = each_payment(&self.engine, rows).await.into_iter();
        payments.filter_map(|(_, payment)| payment.ok()).collect()
    }
}

/// The payment of each row, in their order. A row that cannot be read is quarantined; it is an error of its own payment only.
pub(super) async fn each_payment(
    pool: &Connections,
    rows: Vec<PaymentRow>,
) -> Vec<(PaymentId, Result<Payment, Unreadable>)> {
    let mut payments = Vec::with_capacity(rows.len());
    for row in rows {
        let id = PaymentId(row.id);
        let already_quarantined = row.quarantine_reason.is_some();
        let payment = Payment::try_from(row);
        if let Err(unreadable) = &payment
            && !already_quarantined
        {
            quarantine_unreadable(pool, id, unreadable).await;
        }
        payments.push((id, payment));
    }
    payments
}

/// Quarantines a payment whose row cannot be read. A failure to do so is logged and not returned, so that other rows are still read.
pub(super) async fn quarantine_unreadable(
    pool: &Connections,
    id: PaymentId,
    unreadable: &Unreadable,
) {
    let why = unreadable.to_string();
    let quarantined = async {
        let mut connection = pool.acquire().await?;
        quarantine(&mut connection, id, &why).await
    };
    match quarantined.await {
        Ok(true) => {
            tracing::error!(payment = %id, why, "payment quarantined: its row cannot be read; correct the row or restore it");
        }
        Ok(false) => {}
        Err(error) => {
            tracing::error!(payment = %id, why, %error, "payment not quarantined although its row cannot be read: database statement failed");
        }
    }
}

/// Quarantines a payment and keeps its state. `false`: it is in quarantine already.
pub(super) async fn quarantine(
    connection: &mut Connection,
    id: PaymentId,
    why: &str,
) -> Result<bool, LedgerError> {
    let updated = sqlx::query!(
        "with aside as (
            update payments set quarantined_at = now(), quarantine_reason = $2
            where id = $1 and quarantined_at is null returning id, transaction_hash
        )
        insert into events (payment_id, kind, reason, transaction_hash) select id, 'quarantined', $2, transaction_hash from aside",
        id.0,
        why,
    )
    .execute(&mut *connection)
    .await?;
    Ok(updated.rows_affected() == 1)
}

#[cfg(test)]
mod tests;
