//! Payments: acceptance, lookup, and the changes that need no transaction of the chain.

use alloy::primitives::{Address, B256};
use sqlx::PgConnection;
use uuid::Uuid;

use super::row::{PaymentRow, bigint, select_payments};
use super::{Ledger, LedgerError};
use crate::payment::state::Exit;
use crate::payment::{Candidate, Location, Payment, PaymentId};
use crate::protocol::{Network, X402Version};

/// What makes an authorization unique on its chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AuthorizationKey {
    /// Where.
    pub network: Network,
    /// The contract in which the nonce is used up: the token for EIP-3009, else Permit2.
    pub domain: Address,
    /// Whose nonce.
    pub payer: Address,
    /// Which nonce.
    pub nonce: B256,
}

impl From<&Candidate> for AuthorizationKey {
    fn from(candidate: &Candidate) -> Self {
        Self {
            network: candidate.network,
            domain: candidate.method.nonce_domain(candidate.asset),
            payer: candidate.authorization.from,
            nonce: candidate.authorization.nonce,
        }
    }
}

impl From<&Payment> for AuthorizationKey {
    fn from(payment: &Payment) -> Self {
        Self {
            network: payment.network,
            domain: payment.method.nonce_domain(payment.asset),
            payer: payment.authorization.from,
            nonce: payment.authorization.nonce,
        }
    }
}

impl Ledger {
    /// The payment with this id.
    ///
    /// # Errors
    /// When the database fails or the row cannot be read.
    pub async fn payment(&self, id: PaymentId) -> Result<Option<Payment>, LedgerError> {
        let row = select_payments!("where p.id = $1", id.0)
            .fetch_optional(&self.pool)
            .await?;
        row.map(Payment::try_from).transpose()
    }

    /// Payments that wait for a transaction on `network` of any of `signers`, and that no process seems to be working on: queued for at
    /// least two seconds. At most `limit`, oldest first.
    ///
    /// # Errors
    /// When the database fails; a row that cannot be read is quarantined by the caller, not by this.
    pub async fn stranded(
        &self,
        network: Network,
        signers: &[Address],
        limit: i64,
    ) -> Result<Vec<Payment>, LedgerError> {
        let signers: Vec<&[u8]> = signers.iter().map(|signer| signer.as_slice()).collect();
        let rows: Vec<PaymentRow> = select_payments!(
            "where p.network = $1 and p.state = 'queued' and p.quarantined_at is null and p.queued_at < now() - interval '2 seconds'
                and (p.signer is null or p.signer = any($2))
             order by p.queued_at limit $3",
            network.to_string(),
            &signers as _,
            limit
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter().map(Payment::try_from).collect()
    }

    /// Takes a queued payment out before any broadcast. `false`: it is not queued any more, so bytes may be on their way.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn refuse(&self, id: PaymentId, exit: &Exit) -> Result<bool, LedgerError> {
        let updated = sqlx::query!(
            "update payments set state = 'refused', reason = $2, message = $3 where id = $1 and state = 'queued'",
            id.0,
            exit.reason.code(),
            exit.message,
        )
        .execute(&self.pool)
        .await?;
        Ok(updated.rows_affected() == 1)
    }

    /// Records that somebody else submitted the authorization of a payment that rides in no transaction of ours. `false`: it does
    /// now, or its outcome is known already.
    ///
    /// # Errors
    /// When the database fails, or the log is another payment's already.
    pub async fn settled_by_others(
        &self,
        id: PaymentId,
        location: &Location,
        deep: bool,
    ) -> Result<bool, LedgerError> {
        let mut connection = self.pool.acquire().await?;
        settle_by_others(&mut connection, id, location, deep).await
    }

    /// Payments of a network whose authorizations have moved nothing and still could, if somebody else submits them: refused ones,
    /// and with `failed_too` those that were proven unable to, because a reorganisation undoes proofs. The newest, at most `limit`.
    ///
    /// # Errors
    /// When the database fails or a row cannot be read.
    pub async fn unmoved(
        &self,
        network: Network,
        failed_too: bool,
        limit: i64,
    ) -> Result<Vec<Payment>, LedgerError> {
        // An authorization that is accepted ends within a day; the bound on the index spares what is older.
        let rows: Vec<PaymentRow> = select_payments!(
            "where p.network = $1 and p.state in ('refused', 'failed') and (p.state = 'refused' or $2)
                and p.created_at > now() - interval '25 hours' and p.valid_before > now() - interval '1 hour'
                and p.rail = 'authorization' and p.quarantined_at is null
             order by p.created_at desc limit $3",
            network.to_string(),
            failed_too,
            limit
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter().map(Payment::try_from).collect()
    }

    /// Which of `ids` have nothing left to wait for on the chain. For callers that wait at another replica than the one that settles.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn decided(&self, ids: &[PaymentId]) -> Result<Vec<PaymentId>, LedgerError> {
        let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
        let decided = sqlx::query_scalar!(
            "select id from payments where id = any($1) and state not in ('queued', 'inflight', 'mined')",
            &ids,
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(decided.into_iter().map(PaymentId).collect())
    }

    /// In how many transactions a payment has ridden.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn tries(&self, id: PaymentId) -> Result<i64, LedgerError> {
        let tries = sqlx::query_scalar!(
            r#"select count(*) as "tries!" from transaction_payments where payment_id = $1"#,
            id.0,
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(tries)
    }

    /// Sets a payment aside for the operator; its state stays.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn quarantine(&self, id: PaymentId, why: &str) -> Result<(), LedgerError> {
        sqlx::query!(
            "with aside as (
                update payments set quarantined_at = now(), quarantine_reason = $2
                where id = $1 and quarantined_at is null returning id, transaction_hash
            )
            insert into events (payment_id, kind, reason, transaction_hash) select id, 'quarantined', $2, transaction_hash from aside",
            id.0,
            why,
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}

/// See [`Ledger::settled_by_others`].
pub(super) async fn settle_by_others(
    connection: &mut PgConnection,
    id: PaymentId,
    location: &Location,
    deep: bool,
) -> Result<bool, LedgerError> {
    let updated = sqlx::query!(
        "update payments set transaction_hash = $2, log_index = $3, block_number = $4, block_hash = $5, block_time = $6,
            state = case when state = 'failed' then 'late_settled' when $7 then 'settled' else 'mined' end, reason = null, message = null
        where id = $1 and (state in ('queued', 'refused') or state = 'failed' and $7)",
        id.0,
        location.transaction.as_slice(),
        bigint(location.log_index),
        bigint(location.block_number),
        location.block_hash.as_slice(),
        location.block_time,
        deep,
    )
    .execute(connection)
    .await?;
    Ok(updated.rows_affected() == 1)
}

impl From<X402Version> for i16 {
    fn from(version: X402Version) -> Self {
        Self::from(u8::from(version))
    }
}
