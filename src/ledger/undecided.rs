//! Undecided payments: their transaction was mined, and its logs show no transfer for them. The settlement engine asks the chain and
//! records its verdict here. Also records transfers of payments by transactions that no lane of ours has sent.

use std::collections::HashMap;

use alloy::primitives::B256;
use uuid::Uuid;

use super::connections::Connection;
use super::quarantine::{quarantine, quarantine_unreadable};
use super::row::{PaymentRow, bigint, hash, select_payments};
use super::{Ledger, LedgerError, Unreadable};
use crate::payment::{Location, Payment, PaymentId, PaymentState};
use crate::protocol::{Network, Rejection};

/// Reason for the quarantine of a payment whose log is recorded for another one.
const LOG_TAKEN: &str = "its Transfer log is recorded for another payment";

/// A payment whose transaction was mined without its transfer.
#[derive(Debug, Clone)]
pub struct Undecided {
    pub payment: Payment,
    /// Id of the mined transaction in the ledger.
    pub transaction: Uuid,
    /// Hash of the attempt that was mined.
    pub hash: B256,
    /// Height of its block.
    pub block_number: u64,
    /// Hash of its block.
    pub block_hash: B256,
    /// The transaction was a call for this payment alone, and succeeded.
    pub call_succeeded: bool,
    pub carried: Carried,
    /// The transaction used up its gas.
    pub ran_out_of_gas: bool,
    /// Number of transactions that the payment has had for itself.
    pub tries: i64,
}

/// What the mined attempt carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carried {
    /// One payment.
    Payment,
    /// This payment and others.
    Batch,
    /// Nothing: an empty attempt took the account nonce.
    Nothing,
}

/// The decision about an undecided payment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Its money was transferred: by a foreign transaction, or by ours after all.
    Transferred {
        location: Location,
        /// The transfer has the promised confirmations.
        confirmed: bool,
    },
    /// The authorization can still be used: queue it again, for a new nonce.
    Again,
    /// It would fail again: refuse it. It may be presented again.
    Refuse(Rejection),
    /// It is proven that it cannot move money any more.
    Fail(Rejection),
    /// An assumption does not hold: keep the state, and quarantine the payment for the operator.
    Quarantine(String),
}

/// What a verdict has done to its payment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decided {
    Changed,
    /// Another transaction has decided it before, or its log is taken.
    Unchanged,
}

impl Ledger {
    /// The undecided payments of a network, at most `limit`, those of one transaction in the order of their calls. A row that cannot be read
    /// is quarantined and left out.
    pub async fn undecided(
        &self,
        network: Network,
        limit: i64,
    ) -> Result<Vec<Undecided>, LedgerError> {
        // `offset 0` makes the planner begin with the open rows, which are few; mined transactions are many.
        let rows = sqlx::query!(
            r#"select open.payment_id, t.id, t.hash as "hash!", t.block_number as "block_number!", t.block_hash as "block_hash!",
                (t.succeeded and t.kind = 'direct' and not a.empty) as "call_succeeded!",
                (select count(*) from transaction_payments other join transactions own on own.id = other.transaction_id and own.kind = 'direct'
                    where other.payment_id = open.payment_id) as "tries!",
                t.kind = 'batch' as "in_batch!", a.empty,
                -- An eighth is more than refunds give back.
                t.gas_used >= a.gas_limit - a.gas_limit / 8 as "ran_out_of_gas!"
            from (select transaction_id, payment_id, position from transaction_payments where outcome is null offset 0) open
            cross join lateral (
                select id, kind, hash, succeeded, block_number, block_hash, gas_used from transactions
                where id = open.transaction_id and (network = $1 and state = 'mined') is true offset 0
            ) t
            cross join lateral (select from payments p where p.id = open.payment_id and p.quarantined_at is null offset 0) p
            join attempts a on a.hash = t.hash order by t.id, open.position limit $2"#,
            network.to_string(),
            limit,
        )
        .fetch_all(&self.engine)
        .await?;
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let ids: Vec<Uuid> = rows.iter().map(|row| row.payment_id).collect();
        let payments: Vec<PaymentRow> =
            select_payments!("where p.id = any($1) and p.quarantined_at is null", &ids)
                .fetch_all(&self.engine)
                .await?;
        let mut undecided = Vec::with_capacity(rows.len());
        let readable = self.readable(payments).await;
        let mut readable: HashMap<Uuid, Payment> = readable
            .into_iter()
            .map(|payment| (payment.id.0, payment))
            .collect();
        for row in rows {
            let Some(payment) = readable.remove(&row.payment_id) else {
                continue;
            };
            let Some((hash, block_hash)) = hash(&row.hash).zip(hash(&row.block_hash)) else {
                let unreadable = Unreadable {
                    table: "transactions",
                    column: "hash or block_hash",
                    id: row.id.to_string(),
                };
                quarantine_unreadable(&self.engine, payment.id, &unreadable).await;
                continue;
            };
            undecided.push(Undecided {
                call_succeeded: row.call_succeeded && payment.terms.wallet.is_none(),
                payment,
                transaction: row.id,
                hash,
                block_number: u64::try_from(row.block_number).unwrap_or_default(),
                block_hash,
                carried: match (row.empty, row.in_batch) {
                    (true, _) => Carried::Nothing,
                    (false, true) => Carried::Batch,
                    (false, false) => Carried::Payment,
                },
                ran_out_of_gas: row.ran_out_of_gas,
                tries: row.tries,
            });
        }
        Ok(undecided)
    }

    /// Records the verdict about an undecided payment. `None`: nothing was recorded, because a reorg has reopened its transaction, or
    /// another process has decided it. On an error nothing was recorded either.
    pub async fn decide(
        &self,
        row: &Undecided,
        verdict: &Verdict,
    ) -> Result<Option<Decided>, LedgerError> {
        let mut deciding = self.engine.begin().await?;
        let open = sqlx::query_scalar!(
            r#"select 1 as "open!" from transactions t join transaction_payments tp on tp.transaction_id = t.id
            join payments p on p.id = tp.payment_id and p.quarantined_at is null
            where t.id = $1 and t.state = 'mined' and t.block_hash = $3 and tp.payment_id = $2 and tp.outcome is null
            for share of t for update of tp"#,
            row.transaction,
            row.payment.id.0,
            row.block_hash.as_slice(),
        )
        .fetch_optional(&mut *deciding)
        .await?;
        if open.is_none() {
            return Ok(None);
        }
        let (outcome, decided) = apply_verdict(&mut deciding, row, verdict).await?;
        // The outcome of a quarantined payment stays open: once it is released, it is decided anew.
        if let Some(outcome) = outcome {
            sqlx::query!(
                "update transaction_payments set outcome = $3 where transaction_id = $1 and payment_id = $2",
                row.transaction,
                row.payment.id.0,
                outcome,
            )
            .execute(&mut *deciding)
            .await?;
        }
        deciding.commit().await?;
        Ok(Some(decided))
    }

    /// Records the verdict [`Verdict::Again`] about payments of one transaction, in one commit, so that they can share the next one. Those
    /// that are not undecided any more are left as they are.
    pub async fn queue_undecided(&self, rows: &[&Undecided]) -> Result<(), LedgerError> {
        let Some(first) = rows.first() else {
            return Ok(());
        };
        let ids: Vec<Uuid> = rows.iter().map(|row| row.payment.id.0).collect();
        sqlx::query!(
            "with undecided as (
                select tp.payment_id from transactions t join transaction_payments tp on tp.transaction_id = t.id
                join payments p on p.id = tp.payment_id and p.quarantined_at is null
                where t.id = $1 and t.state = 'mined' and t.block_hash = $2 and tp.payment_id = any($3) and tp.outcome is null
                for share of t for update of tp
            ), queued as (
                update payments set state = 'queued', reason = null, message = null, queued_at = now(), queued_by = null,
                    transaction_hash = null
                where id in (select payment_id from undecided) and (state = 'inflight') is true
            )
            update transaction_payments tp set outcome = 'without_effect' from undecided
            where tp.transaction_id = $1 and tp.payment_id = undecided.payment_id",
            first.transaction,
            first.block_hash.as_slice(),
            &ids,
        )
        .execute(&self.engine)
        .await?;
        Ok(())
    }

    /// Records that a foreign transaction has used the authorization of a payment that is in no open transaction of ours. `false`: it is in
    /// one now, its outcome is recorded already, or its log is recorded for another payment, in which case it is quarantined.
    pub async fn settle_by_foreign_transaction(
        &self,
        id: PaymentId,
        location: &Location,
        confirmed: bool,
    ) -> Result<bool, LedgerError> {
        let mut settling = self.engine.begin().await?;
        let free = sqlx::query_scalar!(
            r#"select 1 as "free!" from payments p where p.id = $1 and p.state <> 'inflight' and not exists (
                select from transaction_payments tp where tp.payment_id = $1 and tp.outcome is null
            ) for update"#,
            id.0,
        )
        .fetch_optional(&mut *settling)
        .await?;
        let recorded = free.is_some()
            && record_foreign_transfer(&mut settling, id, location, confirmed).await?
                == ForeignTransfer::Recorded;
        settling.commit().await?;
        Ok(recorded)
    }
}

/// Records the verdict in the payment's own row. Returns its outcome in its transaction; `None`: it is quarantined.
async fn apply_verdict(
    connection: &mut Connection,
    row: &Undecided,
    verdict: &Verdict,
) -> Result<(Option<&'static str>, Decided), LedgerError> {
    let id = row.payment.id;
    let decided = match verdict {
        Verdict::Transferred {
            location,
            confirmed,
        } => {
            let recorded = record_foreign_transfer(connection, id, location, *confirmed).await?;
            return Ok(match recorded {
                ForeignTransfer::Recorded => (Some("elsewhere"), Decided::Changed),
                ForeignTransfer::NotAllowed => (Some("elsewhere"), Decided::Unchanged),
                ForeignTransfer::LogTaken => (None, Decided::Unchanged),
            });
        }
        // A payment that another transaction has settled meanwhile needs no operator: its outcome here is closed.
        Verdict::Quarantine(why) => {
            let open = matches!(
                row.payment.state,
                PaymentState::Inflight(_) | PaymentState::Failed { .. }
            );
            if open {
                quarantine(connection, id, why).await?;
                return Ok((None, Decided::Changed));
            }
            Decided::Unchanged
        }
        Verdict::Again => update_inflight(connection, row, "queued", None).await?,
        Verdict::Refuse(rejection) => {
            update_inflight(connection, row, "refused", Some(rejection)).await?
        }
        Verdict::Fail(rejection) => {
            update_inflight(connection, row, "failed", Some(rejection)).await?
        }
    };
    Ok((Some("without_effect"), decided))
}

/// Result of [`record_foreign_transfer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ForeignTransfer {
    Recorded,
    /// The payment's state does not allow it: another transaction has settled it, or it has failed and the transfer is not confirmed.
    NotAllowed,
    /// The log is recorded for another payment; this one is in quarantine now.
    LogTaken,
}

/// Records the transfer of an authorization that no lane has recorded; no other statement does. A failed payment becomes `late_settled` at
/// its confirmations only. The transfer has made the authorization public, so the payment stays its owner's, also one that was refused.
pub(super) async fn record_foreign_transfer(
    connection: &mut Connection,
    id: PaymentId,
    location: &Location,
    confirmed: bool,
) -> Result<ForeignTransfer, LedgerError> {
    let moved = sqlx::query!(
        "update payments p set transaction_hash = $2, log_index = $3, block_number = $4, block_hash = $5, block_time = $6,
            state = case when p.state = 'failed' then 'late_settled' when $7 then 'settled' else 'mined' end,
            reason = null, message = null
        where p.id = $1 and (p.state in ('queued', 'inflight', 'refused') or p.state = 'failed' and $7) and not exists (
            select from payments taken where taken.transaction_hash = $2 and taken.log_index = $3 and taken.network = p.network
        )",
        id.0,
        location.transaction.as_slice(),
        bigint(location.log_index),
        bigint(location.block_number),
        location.block_hash.as_slice(),
        location.block_time,
        confirmed,
    )
    .execute(&mut *connection)
    .await?;
    if moved.rows_affected() == 1 {
        return Ok(ForeignTransfer::Recorded);
    }
    let taken = sqlx::query_scalar!(
        r#"select exists (
            select from payments taken join payments own on own.id = $1
            where taken.transaction_hash = $2 and taken.log_index = $3 and taken.network = own.network and taken.id <> own.id
        ) as "taken!""#,
        id.0,
        location.transaction.as_slice(),
        bigint(location.log_index),
    )
    .fetch_one(&mut *connection)
    .await?;
    if taken {
        quarantine(connection, id, LOG_TAKEN).await?;
        return Ok(ForeignTransfer::LogTaken);
    }
    Ok(ForeignTransfer::NotAllowed)
}

/// Returns a payment in flight to the queue, or refuses or fails it.
async fn update_inflight(
    connection: &mut Connection,
    row: &Undecided,
    state: &str,
    rejection: Option<&Rejection>,
) -> Result<Decided, LedgerError> {
    let updated = sqlx::query!(
        "update payments set state = $2, reason = $3, message = $4, queued_at = now(), queued_by = null,
            transaction_hash = case when $2 = 'failed' then $5::bytea end
        where id = $1 and state = 'inflight'",
        row.payment.id.0,
        state,
        rejection.map(|rejection| rejection.reason.code()),
        rejection.map(|rejection| rejection.message.as_str()),
        row.hash.as_slice(),
    )
    .execute(&mut *connection)
    .await?;
    Ok(if updated.rows_affected() == 1 {
        Decided::Changed
    } else {
        Decided::Unchanged
    })
}

#[cfg(test)]
mod tests;
