//! Payments: lookup, the queue, and the changes that need no transaction on chain.

use std::collections::HashMap;

use alloy::primitives::{Address, B256};
use time::OffsetDateTime;
use uuid::Uuid;

use super::connections::Connections;
use super::quarantine::each_payment;
use super::row::{PaymentRow, select_payments};
use super::{Ledger, LedgerError};
use crate::payment::{Payment, PaymentId, PaymentTerms};
use crate::protocol::{Network, Rejection, X402Version};

/// Identifies an authorization: unique per network, contract and payer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AuthorizationKey {
    pub network: Network,
    /// The contract that records the nonce as used: the token for EIP-3009, else Permit2.
    pub domain: Address,
    pub payer: Address,
    pub nonce: B256,
}

impl From<&PaymentTerms> for AuthorizationKey {
    fn from(terms: &PaymentTerms) -> Self {
        Self {
            network: terms.network,
            domain: terms.method.nonce_domain(terms.asset),
            payer: terms.from,
            nonce: terms.nonce,
        }
    }
}

/// A payment's place in the order of [`Ledger::payments_without_transfer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GivenUpPlace {
    valid_before: OffsetDateTime,
    id: PaymentId,
}

impl Ledger {
    pub async fn payment(&self, id: PaymentId) -> Result<Option<Payment>, LedgerError> {
        let rows = select_payments!("where p.id = $1", id.0)
            .fetch_all(&self.pool)
            .await?;
        let payment = each_payment(&self.pool, rows).await.pop();
        Ok(payment.map(|(_, payment)| payment).transpose()?)
    }

    /// Claims queued payments for this process that any of `signers` may settle on `network`. At most `limit`, oldest first.
    /// Claimed are payments that are
    ///
    /// - unclaimed;
    /// - claimed by this process for a moment: its memory has lost them;
    /// - claimed for a moment by a process that has missed its renewals;
    /// - claimed for longer by another live process: it may be unable to send them.
    ///
    /// Payments in `already_claimed` are left out: this process has them in memory. A row that cannot be read is quarantined and left out.
    pub async fn claim_queued(
        &self,
        network: Network,
        signers: &[Address],
        already_claimed: &[PaymentId],
        limit: i64,
    ) -> Result<Vec<Payment>, LedgerError> {
        let signers: Vec<&[u8]> = signers.iter().map(|signer| signer.as_slice()).collect();
        let already_claimed: Vec<Uuid> = already_claimed.iter().map(|id| id.0).collect();
        let claimed = sqlx::query_scalar!(
            "update payments set queued_by = $4, queued_at = now() where id = any(array(
                select id from payments
                where network = $1 and state = 'queued' and quarantined_at is null and (signer is null or signer = any($2))
                    and (queued_by is null or queued_at < now() - case
                        -- A living process renews its lease long before it ends.
                        when queued_by <> $4 and exists (
                            select from processes holder where holder.id = queued_by and holder.lease_until > now() + make_interval(secs => $6)
                        ) then make_interval(secs => $7) else make_interval(secs => $8) end) and id <> all($3)
                order by queued_at limit $5 for update skip locked
            )) returning id",
            network.to_string(),
            &signers as _,
            &already_claimed,
            self.process().0,
            limit,
            self.timing.missed_renewals().as_secs_f64(),
            self.timing.payment_claim.as_secs_f64(),
            self.timing.lost_payment_claim.as_secs_f64(),
        )
        .fetch_all(&self.engine)
        .await?;
        if claimed.is_empty() {
            return Ok(Vec::new());
        }
        let rows: Vec<PaymentRow> =
            select_payments!("where p.id = any($1) order by p.created_at", &claimed)
                .fetch_all(&self.engine)
                .await?;
        Ok(self.readable(rows).await)
    }

    /// How many batches with each of these payments were mined without effect for it; payments without one are left out.
    pub async fn failed_batches(
        &self,
        payments: &[PaymentId],
    ) -> Result<HashMap<PaymentId, i64>, LedgerError> {
        let ids: Vec<Uuid> = payments.iter().map(|id| id.0).collect();
        let rows = sqlx::query!(
            r#"select tp.payment_id, count(*) as "batches!" from transaction_payments tp join transactions t on t.id = tp.transaction_id
            where tp.payment_id = any($1) and tp.outcome = 'without_effect' and t.kind = 'batch' group by 1"#,
            &ids,
        )
        .fetch_all(&self.engine)
        .await?;
        let counts = rows
            .iter()
            .map(|row| (PaymentId(row.payment_id), row.batches));
        Ok(counts.collect())
    }

    /// Releases the claims of this process on queued payments, so that any process may claim them.
    pub async fn release_claims(&self, payments: &[PaymentId]) -> Result<(), LedgerError> {
        let ids: Vec<Uuid> = payments.iter().map(|id| id.0).collect();
        sqlx::query!(
            "update payments set queued_by = null where id = any($1) and (state = 'queued' and queued_by = $2) is true",
            &ids,
            self.process().0,
        )
        .execute(&self.engine)
        .await?;
        Ok(())
    }

    /// Refuses a queued payment. `false`: it is not queued any more, so a transaction may have been sent.
    pub async fn refuse(&self, id: PaymentId, rejection: &Rejection) -> Result<bool, LedgerError> {
        refuse(&self.engine, id, rejection).await
    }

    /// Refuses those of several payments that are queued, in one statement. Returns them.
    pub async fn refuse_all(
        &self,
        payments: &[PaymentId],
        rejection: &Rejection,
    ) -> Result<Vec<PaymentId>, LedgerError> {
        let ids: Vec<Uuid> = payments.iter().map(|id| id.0).collect();
        let refused = sqlx::query_scalar!(
            "update payments set state = 'refused', reason = $2, message = $3
            where id = any($1) and (state = 'queued') is true returning id",
            &ids,
            rejection.reason.code(),
            rejection.message,
        )
        .fetch_all(&self.engine)
        .await?;
        Ok(refused.into_iter().map(PaymentId).collect())
    }

    /// The same for a caller whose time is over, on the callers' connections: many callers may run out of time at once.
    pub async fn refuse_for_caller(
        &self,
        id: PaymentId,
        rejection: &Rejection,
    ) -> Result<bool, LedgerError> {
        refuse(&self.pool, id, rejection).await
    }

    /// Queued payments of a network whose authorizations have expired by `now`, the longest queued first, at most `limit`.
    /// A lane refuses its own expired payments. Those found here have no running lane: their payers named a signer that is stopped or
    /// removed. A row that cannot be read is quarantined and left out.
    pub async fn expired(
        &self,
        network: Network,
        now: OffsetDateTime,
        limit: i64,
    ) -> Result<Vec<Payment>, LedgerError> {
        let rows: Vec<PaymentRow> = select_payments!(
            "where p.network = $1 and p.state = 'queued' and p.valid_before <= $2 and p.rail = 'authorization' and p.quarantined_at is null
             order by p.queued_at limit $3",
            network.to_string(),
            now,
            limit
        )
        .fetch_all(&self.engine)
        .await?;
        Ok(self.readable(rows).await)
    }

    /// Payments of a network without a transfer whose authorizations a third party could still submit, the first to expire first: at most
    /// `limit` behind `after`, and the place of the last one if there may be more. These are refused payments and, with `failed_too`, failed
    /// ones: a reorg invalidates the proof that they cannot move money. A row that cannot be read is quarantined and left out.
    pub async fn payments_without_transfer(
        &self,
        network: Network,
        failed_too: bool,
        after: Option<GivenUpPlace>,
        limit: i64,
    ) -> Result<(Vec<Payment>, Option<GivenUpPlace>), LedgerError> {
        let rows: Vec<PaymentRow> = select_payments!(
            "where p.network = $1 and p.state in ('refused', 'failed') and (p.state = 'refused' or $2)
                and p.valid_before > now() - interval '1 hour' and (p.valid_before, p.id) > ($3, $4)
                and p.rail = 'authorization' and p.quarantined_at is null
             order by p.valid_before, p.id limit $5",
            network.to_string(),
            failed_too,
            after.map_or(OffsetDateTime::UNIX_EPOCH, |place| place.valid_before),
            after.map_or(Uuid::nil(), |place| place.id.0),
            limit
        )
        .fetch_all(&self.engine)
        .await?;
        let full = i64::try_from(rows.len()).is_ok_and(|rows| rows >= limit);
        let last = rows.last().filter(|_| full).map(|row| GivenUpPlace {
            valid_before: row.valid_before,
            id: PaymentId(row.id),
        });
        Ok((self.readable(rows).await, last))
    }

    /// Whether any failed payment of the network, not in quarantine, is in one of our transactions with an open outcome: a reorg invalidated the proof of
    /// failure.
    pub async fn failed_in_flight(&self, network: Network) -> Result<bool, LedgerError> {
        let any = sqlx::query_scalar!(
            r#"select exists (
                select from (select payment_id from transaction_payments where outcome is null offset 0) open
                where (select p.state = 'failed' and p.network = $1 and p.quarantined_at is null from payments p where p.id = open.payment_id)
            ) as "any!""#,
            network.to_string(),
        )
        .fetch_one(&self.engine)
        .await?;
        Ok(any)
    }

    /// Which of `ids` have nothing left to wait for on chain. For requests that wait at another process than the one that settles.
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
}

async fn refuse(
    connections: &Connections,
    id: PaymentId,
    rejection: &Rejection,
) -> Result<bool, LedgerError> {
    let updated = sqlx::query!(
        "update payments set state = 'refused', reason = $2, message = $3 where id = $1 and state = 'queued'",
        id.0,
        rejection.reason.code(),
        rejection.message,
    )
    .execute(connections)
    .await?;
    Ok(updated.rows_affected() == 1)
}

impl From<X402Version> for i16 {
    fn from(version: X402Version) -> Self {
        Self::from(u8::from(version))
    }
}

#[cfg(test)]
mod tests;
