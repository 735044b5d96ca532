//! Transfers that payers sign themselves (rail `transfer`): recorded before they are sent, then followed like our own transactions.

use std::collections::HashMap;

use alloy::primitives::{Address, B256, Bytes};
use uuid::Uuid;

use super::quarantine::quarantine_unreadable;
use super::row::{PaymentRow, bigint, hash, select_payments};
use super::{Ledger, LedgerError, Unreadable};
use crate::payment::session::Transfer;
use crate::payment::{Location, Payment, PaymentId, Session};
use crate::protocol::{Network, Reason, Rejection};

/// A transfer about to be recorded.
#[derive(Debug, Clone, Copy)]
pub struct NewTransfer<'a> {
    pub transfer: &'a Transfer,
    /// Its bytes, if x402d is to send them.
    pub raw: Option<&'a Bytes>,
    /// The payer's signed claim; empty when the transaction carries the session's tag.
    pub claim: &'a [u8],
}

/// Whether a transfer was recorded for its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Submitted {
    /// Recorded as this payment.
    Yes(PaymentId),
    /// The session has another payment, or was cancelled in the meantime.
    SessionTaken,
    /// The transaction pays another session.
    TransactionTaken,
}

/// A transfer whose outcome is open.
#[derive(Debug, Clone)]
pub struct OpenTransfer {
    pub payment: Payment,
    /// Hash of its transaction.
    pub hash: B256,
    /// The payer's account nonce that it uses.
    pub account_nonce: u64,
    /// Its bytes, if they were submitted.
    pub raw: Option<Bytes>,
    /// The lowest block height at which it counts.
    pub accept_from_block: u64,
}

/// The outcome of a transfer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TransferOutcome {
    /// The money was transferred.
    Transferred {
        location: Location,
        /// The transfer has the promised confirmations.
        confirmed: bool,
        /// Why it does not count for the session although the money was transferred.
        unmatched: Option<String>,
    },
    /// It cannot move the money any more.
    Failed(Rejection),
}

/// The columns of `transfers`, with the session's first block.
#[derive(Debug)]
struct TransferRow {
    payment_id: Uuid,
    hash: Vec<u8>,
    account_nonce: i64,
    raw: Option<Vec<u8>>,
    accept_from_block: i64,
}

impl TransferRow {
    /// `None`: the row cannot be read.
    fn into_transfer(self, payment: Payment) -> Option<OpenTransfer> {
        Some(OpenTransfer {
            hash: hash(&self.hash)?,
            account_nonce: u64::try_from(self.account_nonce).ok()?,
            accept_from_block: u64::try_from(self.accept_from_block).unwrap_or_default(),
            raw: self.raw.map(Bytes::from),
            payment,
        })
    }
}

/// How a transfer has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransferEnd {
    Settled,
    Failed(Reason),
}

impl Ledger {
    /// Records the transfer that pays a session, and its bytes if x402d is to send them, in one commit. On an error nothing may be sent.
    pub async fn submit_transfer(
        &self,
        session: &Session,
        new: NewTransfer<'_>,
    ) -> Result<Submitted, LedgerError> {
        let (id, transfer) = (Uuid::now_v7(), new.transfer);
        let digest = session.claim_digest(transfer.hash);
        let mut transaction = self.pool.begin().await?;
        // The session's row is locked first: two submissions for one session wait for each other here.
        let free = sqlx::query!(
            "select id from sessions where id = $1 and payment_id is null and state <> 'cancelled' for update",
            session.id.as_str(),
        )
        .fetch_optional(&mut *transaction)
        .await?;
        if free.is_none() {
            return Ok(Submitted::SessionTaken);
        }
        let written = sqlx::query!(
            "with written as (
                insert into payments (id, x402_version, rail, network, scheme, asset, payer, payee, amount, resource, nonce_domain,
                    nonce, valid_after, valid_before, digest, signature, state, transaction_hash, confirmations)
                select $1, s.x402_version, 'transfer', s.network, 'exact', s.asset, s.payer, s.payee, s.amount, s.resource, $3,
                    s.nonce, to_timestamp(0), s.expires_at, $4, $5, 'inflight', $6, s.confirmations
                from sessions s where s.id = $2 returning id, network
            ), sent as (
                insert into transfers (payment_id, network, hash, account_nonce, raw)
                select id, network, $6, $7, $8 from written
            )
            update sessions set payment_id = $1 where id = $2",
            id,
            session.id.as_str(),
            Address::ZERO.as_slice(),
            digest.as_slice(),
            new.claim,
            transfer.hash.as_slice(),
            bigint(transfer.account_nonce),
            new.raw.map(|raw| &raw[..]),
        )
        .execute(&mut *transaction)
        .await;
        match written {
            Ok(_) => {
                transaction.commit().await?;
                Ok(Submitted::Yes(PaymentId(id)))
            }
            Err(error) if is_already_recorded(&error) => Ok(Submitted::TransactionTaken),
            Err(error) => Err(error.into()),
        }
    }

    /// Transfers of a network whose outcome is open and, with `failed_too`, failed ones, because a reorg invalidates the proof of failure.
    /// Newest first, only those before the payment `behind`, and none whose session ended more than a day ago. Also returns the last row
    /// that was read if there may be older ones. A row that cannot be read is quarantined and left out.
    pub async fn open_transfers(
        &self,
        network: Network,
        failed_too: bool,
        behind: Option<PaymentId>,
        limit: i64,
    ) -> Result<(Vec<OpenTransfer>, Option<PaymentId>), LedgerError> {
        let rows: Vec<PaymentRow> = select_payments!(
            "where p.network = $1 and p.rail = 'transfer' and (p.state = 'inflight' or $4 and p.state = 'failed') and p.quarantined_at is null
                and p.valid_before > now() - interval '1 day' and p.id < $3
            order by p.id desc limit $2",
            network.to_string(),
            limit,
            behind.map_or(Uuid::max(), |id| id.0),
            failed_too,
        )
        .fetch_all(&self.engine)
        .await?;
        let full = i64::try_from(rows.len()).is_ok_and(|rows| rows >= limit);
        let last = rows.last().filter(|_| full).map(|row| PaymentId(row.id));
        let mut transactions = self
            .transactions_of(rows.iter().map(|row| row.id).collect())
            .await?;
        let mut open = Vec::with_capacity(rows.len());
        for payment in self.readable(rows).await {
            let id = payment.id;
            if let Some(transfer) = transactions
                .remove(&id.0)
                .and_then(|row| row.into_transfer(payment))
            {
                open.push(transfer);
                continue;
            }
            let unreadable = Unreadable {
                table: "transfers",
                column: "hash, account_nonce or session",
                id: id.to_string(),
            };
            quarantine_unreadable(&self.engine, id, &unreadable).await;
        }
        Ok((open, last))
    }

    /// The rows of `transfers`, by payment.
    async fn transactions_of(
        &self,
        ids: Vec<Uuid>,
    ) -> Result<HashMap<Uuid, TransferRow>, LedgerError> {
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        let rows = sqlx::query_as!(
            TransferRow,
            "select t.payment_id, t.hash, t.account_nonce, t.raw, s.accept_from_block
            from transfers t join sessions s on s.payment_id = t.payment_id where t.payment_id = any($1)",
            &ids,
        )
        .fetch_all(&self.engine)
        .await?;
        Ok(rows.into_iter().map(|row| (row.payment_id, row)).collect())
    }

    /// Records the outcome of a transfer, once. If its log is recorded for another payment, the transfer has failed. A failed one that was
    /// transferred after all becomes `late_settled` once it has its confirmations.
    pub async fn record_transfer(
        &self,
        id: PaymentId,
        outcome: &TransferOutcome,
    ) -> Result<Option<TransferEnd>, LedgerError> {
        let state = match outcome {
            TransferOutcome::Transferred {
                location,
                confirmed,
                unmatched,
            } => {
                sqlx::query_scalar!(
                    r#"with taken as (
                        select 1 from payments other join payments own on own.id = $1
                        where other.network = own.network and other.transaction_hash = $3 and other.log_index = $4 and other.id <> $1
                    ), moved as (
                        update payments set transaction_hash = $3, log_index = $4, block_number = $5, block_hash = $6,
                            block_time = $7, unmatched_reason = $8, reason = null, message = null,
                            state = case when state = 'failed' then 'late_settled' when $2 then 'settled' else 'mined' end
                        where id = $1 and rail = 'transfer' and (state = 'inflight' or state = 'failed' and $2)
                            and not exists (select from taken)
                        returning state
                    ), refused as (
                        update payments set state = 'failed', reason = $9, message = 'its Transfer log has paid for something else'
                        where id = $1 and rail = 'transfer' and state = 'inflight' and $2 and exists (select from taken)
                        returning state
                    )
                    select state as "state!" from moved union all select state from refused"#,
                    id.0,
                    confirmed,
                    location.transaction.as_slice(),
                    bigint(location.log_index),
                    bigint(location.block_number),
                    location.block_hash.as_slice(),
                    location.block_time,
                    unmatched.as_deref(),
                    Reason::TransferAlreadyUsed.code(),
                )
                .fetch_optional(&self.engine)
                .await?
            }
            TransferOutcome::Failed(rejection) => {
                sqlx::query_scalar!(
                    "update payments set state = 'failed', reason = $2, message = $3
                    where id = $1 and rail = 'transfer' and state = 'inflight' returning state",
                    id.0,
                    rejection.reason.code(),
                    rejection.message,
                )
                .fetch_optional(&self.engine)
                .await?
            }
        };
        Ok(match (state.as_deref(), outcome) {
            (Some("settled" | "late_settled"), _) => Some(TransferEnd::Settled),
            (Some("failed"), TransferOutcome::Failed(rejection)) => {
                Some(TransferEnd::Failed(rejection.reason))
            }
            (Some("failed"), TransferOutcome::Transferred { .. }) => {
                Some(TransferEnd::Failed(Reason::TransferAlreadyUsed))
            }
            (Some(_) | None, _) => None,
        })
    }
}

/// Whether another statement recorded the same transaction between the caller's check and this insert.
fn is_already_recorded(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .and_then(|error| error.constraint())
        .is_some_and(|constraint| constraint == "transfers_one_per_transaction")
}

#[cfg(test)]
mod tests;
