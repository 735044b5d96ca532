//! Payments: acceptance, lookup, and the changes that need no transaction of the chain.

use alloy::primitives::{Address, B256};
use time::OffsetDateTime;
use uuid::Uuid;

use super::quarantine::one_by_one;
use super::row::{PaymentRow, select_payments};
use super::{Ledger, LedgerError};
use crate::payment::state::Exit;
use crate::payment::{Candidate, Payment, PaymentId};
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
        let rows = select_payments!("where p.id = $1", id.0)
            .fetch_all(&self.pool)
            .await?;
        let payment = one_by_one(&self.pool, rows).await.pop();
        Ok(payment.map(|(_, payment)| payment).transpose()?)
    }

    /// Takes payments into the hands of this process that wait for a transaction on `network` of any of `signers`: those that nobody has in hand;
    /// after two seconds those that this process had, unless they are in `in_hand`, and those of a process that has not been heard of for five;
    /// after ten seconds those of any other, which may be unable to send them. At most `limit`, oldest first.
    ///
    /// # Errors
    /// When the database fails; a row that cannot be read is set aside.
    pub async fn take_up(
        &self,
        network: Network,
        signers: &[Address],
        in_hand: &[PaymentId],
        limit: i64,
    ) -> Result<Vec<Payment>, LedgerError> {
        let signers: Vec<&[u8]> = signers.iter().map(|signer| signer.as_slice()).collect();
        let in_hand: Vec<Uuid> = in_hand.iter().map(|id| id.0).collect();
        let taken = sqlx::query_scalar!(
            "update payments set queued_by = $4, queued_at = now() where id = any(array(
                select id from payments
                where network = $1 and state = 'queued' and quarantined_at is null and (signer is null or signer = any($2))
                    and (queued_by is null or queued_at < now() - case
                        -- A living process renews its 15 seconds every three.
                        when queued_by <> $4 and exists (
                            select from processes holder where holder.id = queued_by and holder.lease_until > now() + interval '10 seconds'
                        ) then interval '10 seconds' else interval '2 seconds' end) and id <> all($3)
                order by queued_at limit $5 for update skip locked
            )) returning id",
            network.to_string(),
            &signers as _,
            &in_hand,
            self.process().0,
            limit,
        )
        .fetch_all(&self.pool)
        .await?;
        if taken.is_empty() {
            return Ok(Vec::new());
        }
        let rows: Vec<PaymentRow> =
            select_payments!("where p.id = any($1) order by p.created_at", &taken)
                .fetch_all(&self.pool)
                .await?;
        Ok(self.readable(rows).await)
    }

    /// Leaves queued payments to whoever owns a lane.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn put_down(&self, payments: &[PaymentId]) -> Result<(), LedgerError> {
        let ids: Vec<Uuid> = payments.iter().map(|id| id.0).collect();
        sqlx::query!(
            "update payments set queued_by = null where id = any($1) and (state = 'queued' and queued_by = $2) is true",
            &ids,
            self.process().0,
        )
        .execute(&self.pool)
        .await?;
        Ok(())
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

    /// Queued payments of a network whose authorizations have ended by `now`, the longest queued first, at most `limit`. Lanes refuse theirs
    /// before they write anything; these have no lane: their payers have named a signer that is stopped or gone.
    ///
    /// # Errors
    /// When the database fails; a row that cannot be read is set aside.
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
        .fetch_all(&self.pool)
        .await?;
        Ok(self.readable(rows).await)
    }

    /// Payments of a network whose authorizations have moved nothing and still could, if somebody else submits them: refused ones,
    /// and with `failed_too` those that were proven unable to, because a reorganisation undoes proofs. The newest, at most `limit`.
    ///
    /// # Errors
    /// When the database fails; a row that cannot be read is set aside.
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
        Ok(self.readable(rows).await)
    }

    /// Whether payments that were called failed ride in transactions of ours whose outcome is open: a reorganisation has undone the proof.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn failed_in_flight(&self, network: Network) -> Result<bool, LedgerError> {
        let any = sqlx::query_scalar!(
            r#"select exists (
                select from (select payment_id from transaction_payments where outcome is null offset 0) open
                where (select p.state = 'failed' and p.network = $1 from payments p where p.id = open.payment_id)
            ) as "any!""#,
            network.to_string(),
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(any)
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
}

impl From<X402Version> for i16 {
    fn from(version: X402Version) -> Self {
        Self::from(u8::from(version))
    }
}
