//! Payments that wait for the operator: an assumption about them does not hold, or their rows cannot be read. Their state stays.

use super::connections::{Connection, Connections};
use super::error::Unreadable;
use super::row::PaymentRow;
use super::{Ledger, LedgerError};
use crate::payment::{Payment, PaymentId};

impl Ledger {
    /// Quarantines a payment.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn set_aside(&self, id: PaymentId, why: &str) -> Result<(), LedgerError> {
        let mut connection = self.engine.acquire().await?;
        quarantine(&mut connection, id, why).await.map(drop)
    }

    /// The payments of rows; one that cannot be read is quarantined and left out.
    pub(super) async fn readable(&self, rows: Vec<PaymentRow>) -> Vec<Payment> {
        let payments = one_by_one(&self.engine, rows).await.into_iter();
        payments.filter_map(|(_, payment)| payment.ok()).collect()
    }
}

/// Each row as a payment, in their order. One that cannot be read is quarantined, and is nobody's business but of who asks for it.
pub(super) async fn one_by_one(
    pool: &Connections,
    rows: Vec<PaymentRow>,
) -> Vec<(PaymentId, Result<Payment, Unreadable>)> {
    let mut payments = Vec::with_capacity(rows.len());
    for row in rows {
        let id = PaymentId(row.id);
        let known = row.quarantine_reason.is_some();
        let payment = Payment::try_from(row);
        if let Err(unreadable) = &payment
            && !known
        {
            quarantine_unreadable(pool, id, unreadable).await;
        }
        payments.push((id, payment));
    }
    payments
}

/// Quarantines a payment whose row cannot be read. A database that does not let us must not hurt those who ask for other rows.
pub(super) async fn quarantine_unreadable(
    pool: &Connections,
    id: PaymentId,
    unreadable: &Unreadable,
) {
    let why = unreadable.to_string();
    let done = async {
        let mut connection = pool.acquire().await?;
        quarantine(&mut connection, id, &why).await
    };
    match done.await {
        Ok(true) => {
            tracing::error!(payment.id = %id, why, "payment quarantined: its row cannot be read; the operator has to look at it");
        }
        Ok(false) => {}
        Err(error) => {
            tracing::error!(payment.id = %id, why, %error, "payment not quarantined, although its row cannot be read: the database failed");
        }
    }
}

/// Quarantines a payment. `false`: it was before.
pub(super) async fn quarantine(
    connection: &mut Connection,
    id: PaymentId,
    why: &str,
) -> Result<bool, LedgerError> {
    let done = sqlx::query!(
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
    Ok(done.rows_affected() == 1)
}
