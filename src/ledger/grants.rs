//! Grants and verify leases: who was told that a payment bought them something.

use super::row::{PaymentRow, select_payments};
use super::{AuthorizationKey, Ledger, LedgerError};
use crate::payment::{Payment, PaymentId};

/// What stands in the ledger about the success answer of a payment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrantStatus {
    /// Nobody was told yet, or the one who was never heard it: the next presenter may be told.
    Free,
    /// Somebody is being told right now; the answer has neither arrived nor broken off.
    Undecided,
    /// Somebody was told, and the answer reached their socket.
    Standing,
}

/// A known payment and its grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The row.
    pub payment: Payment,
    /// Its grant.
    pub grant: GrantStatus,
}

/// Who asks to be told.
#[derive(Debug, Clone)]
pub struct GrantRequest {
    /// Id of the HTTP request.
    pub request_id: String,
    /// Address of the caller.
    pub caller: String,
}

impl Ledger {
    /// The payment of an authorization and its grant, if it is known.
    ///
    /// # Errors
    /// When the database fails or the row cannot be read.
    pub async fn standing(&self, key: &AuthorizationKey) -> Result<Option<Standing>, LedgerError> {
        let row = select_payments!(
            "where p.network = $1 and p.nonce_domain = $2 and p.payer = $3 and p.nonce = $4",
            key.network.to_string(),
            key.domain.as_slice(),
            key.payer.as_slice(),
            key.nonce.as_slice(),
        )
        .fetch_optional(&self.pool)
        .await?;
        match row {
            Some(row) => self.with_grant(row).await.map(Some),
            None => Ok(None),
        }
    }

    /// The same for a payment whose id is known; it must exist.
    ///
    /// # Errors
    /// When the database fails, the row cannot be read or is gone.
    pub async fn standing_of(&self, id: PaymentId) -> Result<Standing, LedgerError> {
        let row = select_payments!("where p.id = $1", id.0)
            .fetch_one(&self.pool)
            .await?;
        self.with_grant(row).await
    }

    async fn with_grant(&self, row: PaymentRow) -> Result<Standing, LedgerError> {
        let status = sqlx::query_scalar!(
            r#"select case
                when g.answered_at is not null then 'standing'
                when g.voided_at is not null or holder.lease_until < now() then 'free'
                else 'undecided' end as "status!"
            from grants g join processes holder on holder.id = g.process_id
            where g.payment_id = $1"#,
            row.id,
        )
        .fetch_optional(&self.pool)
        .await?;
        let grant = match status.as_deref() {
            Some("standing") => GrantStatus::Standing,
            Some("undecided") => GrantStatus::Undecided,
            _ => GrantStatus::Free,
        };
        Ok(Standing {
            payment: row.try_into()?,
            grant,
        })
    }

    /// Takes the grant of a payment whose money has moved. `false`: somebody else holds it, or the money has moved back.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn grant(&self, id: PaymentId, request: &GrantRequest) -> Result<bool, LedgerError> {
        let granted = sqlx::query!(
            "with taken as (
                insert into grants as g (payment_id, process_id, request_id, caller)
                select p.id, $2, $3, $4 from payments p
                where p.id = $1 and p.state in ('settled', 'final', 'late_settled') and p.quarantined_at is null
                    and p.unmatched_reason is null
                on conflict on constraint grants_one_per_payment do update
                set process_id = excluded.process_id, request_id = excluded.request_id, caller = excluded.caller,
                    granted_at = now(), voided_at = null
                where g.answered_at is null and (g.voided_at is not null or exists (
                    select from processes holder where holder.id = g.process_id and holder.lease_until < now()
                ))
                returning payment_id
            )
            insert into events (payment_id, kind, reason) select payment_id, 'granted', $3 from taken",
            id.0,
            self.process.0,
            request.request_id,
            request.caller,
        )
        .execute(&self.pool)
        .await?;
        Ok(granted.rows_affected() == 1)
    }

    /// Records what became of the answer that this process was giving: it reached the socket, or broke off.
    ///
    /// # Errors
    /// When the database fails; the grant is then void once this process has ended.
    pub async fn close_grant(
        &self,
        id: PaymentId,
        request_id: &str,
        answered: bool,
    ) -> Result<(), LedgerError> {
        sqlx::query!(
            "with closed as (
                update grants
                set answered_at = case when $4 then now() end, voided_at = case when $4 then null else now() end
                where payment_id = $1 and process_id = $2 and request_id = $3 and answered_at is null and voided_at is null
                returning payment_id
            )
            insert into events (payment_id, kind, reason)
            select payment_id, case when $4 then 'answered' else 'voided' end, $3 from closed",
            id.0,
            self.process.0,
            request_id,
            answered,
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Takes the short lease of a verify over a payment that is under way. `false`: another verify holds it.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn lease_verify(&self, id: PaymentId, seconds: u32) -> Result<bool, LedgerError> {
        let leased = sqlx::query!(
            "insert into verify_leases as l (payment_id, lease_until) values ($1, now() + make_interval(secs => $2))
            on conflict on constraint verify_leases_one_per_payment do update set lease_until = excluded.lease_until
            where l.lease_until < now()",
            id.0,
            f64::from(seconds),
        )
        .execute(&self.pool)
        .await?;
        Ok(leased.rows_affected() == 1)
    }

    /// Ends the lease of a verify: its settle has come.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn end_verify_lease(&self, id: PaymentId) -> Result<(), LedgerError> {
        sqlx::query!("delete from verify_leases where payment_id = $1", id.0)
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}
