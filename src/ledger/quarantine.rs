//! Quarantine: payments that wait for the operator, because an assumption about them does not hold or their row cannot be read. Their state
//! is kept.

use super::connections::{Connection, Connections};
use super::error::Unreadable;
use super::row::PaymentRow;
use super::{Ledger, LedgerError};
use crate::payment::{Payment, PaymentId};

impl Ledger {
    pub async fn quarantine(&self, id: PaymentId, why: &str) -> Result<(), LedgerError> {
        let mut connection = self.engine.acquire().await?;
        quarantine(&mut connection, id, why).await.map(drop)
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
            tracing::error!(payment.id = %id, why, "payment quarantined: its row cannot be read; correct the row or restore it");
        }
        Ok(false) => {}
        Err(error) => {
            tracing::error!(payment.id = %id, why, %error, "payment not quarantined although its row cannot be read: database statement failed");
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
