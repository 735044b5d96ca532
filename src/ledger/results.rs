//! What became of transactions: results, depth, reorganisations. One SQL transaction for a whole mined transaction.

use alloy::primitives::{Address, B256};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::row::{address, bigint};
use super::{Ledger, LedgerError};
use crate::payment::state::Exit;
use crate::payment::{Location, PaymentId};
use crate::protocol::Network;

/// Why a payment is set aside whose log belongs to another.
const TAKEN: &str = "its Transfer log is recorded for another payment";

/// A block as results refer to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockRef {
    /// Height.
    pub number: u64,
    /// Hash.
    pub hash: B256,
    /// Time.
    pub time: OffsetDateTime,
}

/// A transaction of ours in a canonical block.
#[derive(Debug, Clone)]
pub struct MinedTransaction {
    /// Its id in the ledger.
    pub id: Uuid,
    /// Which attempt was mined.
    pub hash: B256,
    /// Where.
    pub block: BlockRef,
    /// Status of the receipt.
    pub succeeded: bool,
    /// Gas used by all of it.
    pub gas_used: u64,
    /// Effective wei per gas.
    pub gas_price_wei: u128,
    /// What became of each payment that rode in it.
    pub rows: Vec<(PaymentId, RowOutcome)>,
}

/// What a mined transaction did for one payment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowOutcome {
    /// Its exact Transfer is in the transaction's logs.
    Transferred {
        /// Position of the log in the block.
        log_index: u64,
        /// Whether the promised depth is reached already.
        deep: bool,
    },
    /// The same authorization moved the money in somebody else's transaction.
    Elsewhere {
        /// Where.
        location: Location,
        /// Whether the promised depth is reached already.
        deep: bool,
    },
    /// Nothing moved for this payment.
    WithoutEffect(WithoutEffect),
}

/// What to do with a payment that its transaction did nothing for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WithoutEffect {
    /// The authorization can still be used: plan it again, under a new nonce.
    Requeue,
    /// It would fail again: leave it, until somebody presents it again.
    Refuse(Exit),
    /// Proven unable to move money any more.
    Fail(Exit),
    /// An assumption does not hold: leave the state, call the operator.
    Quarantine(String),
}

/// How the rows of a mined transaction are recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rows {
    /// All that moved their money in one statement.
    Together,
    /// Each by itself, because one of them names a log that belongs to another payment.
    OneByOne,
}

impl Ledger {
    /// Records a mined transaction and what it did for its payments. Repeating it changes nothing. Quarantined are not only the
    /// rows that ask for it, but also a row whose log belongs to another payment already.
    ///
    /// # Errors
    /// When the database fails; nothing of it is recorded then.
    pub async fn record_mined(&self, mined: &MinedTransaction) -> Result<(), LedgerError> {
        let together = self.record_rows(mined, Rows::Together).await;
        match together {
            Err(error) if error.constraint() == Some("payments_one_per_log") => {
                self.record_rows(mined, Rows::OneByOne).await
            }
            recorded => recorded,
        }
    }

    async fn record_rows(&self, mined: &MinedTransaction, rows: Rows) -> Result<(), LedgerError> {
        let mut transaction = self.pool.begin().await?;
        let fresh = sqlx::query!(
            "update transactions set state = 'mined', hash = $2, succeeded = $3, block_number = $4, block_hash = $5, gas_used = $6,
                gas_price_wei = ($7::text)::numeric
            where id = $1 and state = 'signed'",
            mined.id,
            mined.hash.as_slice(),
            mined.succeeded,
            bigint(mined.block.number),
            mined.block.hash.as_slice(),
            bigint(mined.gas_used),
            mined.gas_price_wei.to_string(),
        )
        .execute(&mut *transaction)
        .await?;
        if fresh.rows_affected() == 0 {
            return Ok(());
        }
        if rows == Rows::Together {
            record_transferred(&mut transaction, mined).await?;
        }
        for (payment, outcome) in &mined.rows {
            let done = matches!(outcome, RowOutcome::Transferred { .. }) && rows == Rows::Together;
            if !done {
                record_row(&mut transaction, mined, *payment, outcome).await?;
            }
        }
        transaction.commit().await?;
        Ok(())
    }

    /// Promotes mined payments of a network that have reached their depth under `head`; returns them, and whether others still wait.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn confirm(
        &self,
        network: Network,
        head: u64,
    ) -> Result<(Vec<PaymentId>, bool), LedgerError> {
        let ids = sqlx::query_scalar!(
            "update payments set state = 'settled'
            where network = $1 and state = 'mined' and block_number + confirmations - 1 <= $2 and quarantined_at is null returning id",
            network.to_string(),
            bigint(head),
        )
        .fetch_all(&self.pool)
        .await?;
        let waiting = sqlx::query_scalar!(
            r#"select exists (select from payments where network = $1 and state = 'mined') as "waiting!""#,
            network.to_string(),
        )
        .fetch_one(&self.pool)
        .await?;
        Ok((ids.into_iter().map(PaymentId).collect(), waiting))
    }

    /// Marks settled payments final whose block is at or below `height`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn finalise(&self, network: Network, height: u64) -> Result<u64, LedgerError> {
        let done = sqlx::query!(
            "update payments set state = 'final' where network = $1 and state = 'settled' and block_number <= $2",
            network.to_string(),
            bigint(height),
        )
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected())
    }

    /// The blocks above `height` in which transactions or payments of ours stand, for comparison with the canonical chain.
    ///
    /// # Errors
    /// When the database fails or a hash cannot be read.
    pub async fn blocks_above(
        &self,
        network: Network,
        height: u64,
    ) -> Result<Vec<(u64, B256)>, LedgerError> {
        let rows = sqlx::query!(
            r#"select distinct block_number as "number!", block_hash as "hash!" from (
                select block_number, block_hash from transactions where network = $1 and state = 'mined' and block_number > $2
                union all
                select block_number, block_hash from payments where network = $1 and state in ('mined', 'settled') and block_number > $2
            ) blocks"#,
            network.to_string(),
            bigint(height),
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(rows
            .iter()
            .filter_map(|row| {
                Some((
                    u64::try_from(row.number).ok()?,
                    super::row::hash(&row.hash)?,
                ))
            })
            .collect())
    }

    /// Takes back what stood in blocks that left the chain: transactions are open again, their payments in flight again; grants
    /// stay. Returns the signers whose lanes must look again.
    ///
    /// # Errors
    /// When the database fails; nothing is taken back then.
    pub async fn unmine(
        &self,
        network: Network,
        removed: &[B256],
    ) -> Result<Vec<Address>, LedgerError> {
        let removed: Vec<Vec<u8>> = removed.iter().map(|hash| hash.to_vec()).collect();
        let mut transaction = self.pool.begin().await?;
        let opened = sqlx::query!(
            "update transactions set state = 'signed', hash = null, succeeded = null, block_number = null, block_hash = null,
                gas_used = null, gas_price_wei = null
            where network = $1 and state = 'mined' and block_hash = any($2) returning id, signer",
            network.to_string(),
            &removed,
        )
        .fetch_all(&mut *transaction)
        .await?;
        let ids: Vec<Uuid> = opened.iter().map(|row| row.id).collect();
        // A payment that went on to another transaction meanwhile stays there: it may have one open row only.
        sqlx::query!(
            "update transaction_payments tp set outcome = null
            where tp.transaction_id = any($1) and not exists (
                select from transaction_payments live where live.payment_id = tp.payment_id and live.outcome is null
            )",
            &ids,
        )
        .execute(&mut *transaction)
        .await?;
        sqlx::query!(
            "with gone as (
                update payments p set
                    state = case when carried.live then 'inflight' else 'queued' end, queued_at = now(),
                    transaction_hash = case when carried.live then p.transaction_hash end,
                    log_index = null, block_number = null, block_hash = null, block_time = null
                from (
                    select q.id, q.rail = 'transfer'
                        or exists (select from transaction_payments tp where tp.payment_id = q.id and tp.outcome is null) as live
                    from payments q where q.network = $1 and q.state in ('mined', 'settled') and q.block_hash = any($2)
                ) carried
                where p.id = carried.id returning p.id, p.transaction_hash
            )
            insert into events (payment_id, kind, transaction_hash) select id, 'reorged', transaction_hash from gone",
            network.to_string(),
            &removed,
        )
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(opened
            .iter()
            .filter_map(|row| address(&row.signer))
            .collect())
    }
}

/// Records all rows whose money moved in the transaction itself: nearly always all there are.
async fn record_transferred(
    connection: &mut PgConnection,
    mined: &MinedTransaction,
) -> Result<(), LedgerError> {
    let (mut ids, mut log_indices, mut states) = (Vec::new(), Vec::new(), Vec::new());
    for (payment, outcome) in &mined.rows {
        if let RowOutcome::Transferred { log_index, deep } = outcome {
            ids.push(payment.0);
            log_indices.push(bigint(*log_index));
            states.push(reached(*deep).to_owned());
        }
    }
    if ids.is_empty() {
        return Ok(());
    }
    close_rows(connection, mined, &ids, "transferred").await?;
    // `is true` keeps the index over states out of it: payments that many transactions hold are in flight, and these are known by id.
    sqlx::query!(
        "update payments p set state = row.state, transaction_hash = $4, log_index = row.log_index, block_number = $5, block_hash = $6,
            block_time = $7
        from unnest($1::uuid[], $2::bigint[], $3::text[]) as row (id, log_index, state)
        where p.id = row.id and (p.state = 'inflight') is true",
        &ids,
        &log_indices,
        &states,
        mined.hash.as_slice(),
        bigint(mined.block.number),
        mined.block.hash.as_slice(),
        mined.block.time,
    )
    .execute(&mut *connection)
    .await?;
    Ok(())
}

async fn close_rows(
    connection: &mut PgConnection,
    mined: &MinedTransaction,
    payments: &[Uuid],
    outcome: &str,
) -> Result<(), LedgerError> {
    sqlx::query!(
        "update transaction_payments set outcome = $3
        where transaction_id = $1 and payment_id = any($2) and outcome is null",
        mined.id,
        payments,
        outcome,
    )
    .execute(&mut *connection)
    .await?;
    Ok(())
}

const fn reached(deep: bool) -> &'static str {
    if deep { "settled" } else { "mined" }
}

async fn record_row(
    connection: &mut PgConnection,
    mined: &MinedTransaction,
    payment: PaymentId,
    outcome: &RowOutcome,
) -> Result<(), LedgerError> {
    match outcome {
        RowOutcome::Transferred { log_index, deep } => {
            close_rows(connection, mined, &[payment.0], "transferred").await?;
            let location = Location {
                transaction: mined.hash,
                log_index: *log_index,
                block_number: mined.block.number,
                block_hash: mined.block.hash,
                block_time: mined.block.time,
            };
            locate(connection, payment, &location, *deep).await
        }
        RowOutcome::Elsewhere { location, deep } => {
            close_rows(connection, mined, &[payment.0], "elsewhere").await?;
            locate(connection, payment, location, *deep).await
        }
        RowOutcome::WithoutEffect(next) => {
            close_rows(connection, mined, &[payment.0], "without_effect").await?;
            release(connection, mined, payment, next).await
        }
    }
}

/// Moves a payment to where its money moved, unless that log is another payment's: then it is set aside.
async fn locate(
    connection: &mut PgConnection,
    payment: PaymentId,
    location: &Location,
    deep: bool,
) -> Result<(), LedgerError> {
    let moved = sqlx::query!(
        "update payments p set state = $2, transaction_hash = $3, log_index = $4, block_number = $5, block_hash = $6, block_time = $7
        where p.id = $1 and p.state = 'inflight' and not exists (
            select from payments taken where taken.network = p.network and taken.transaction_hash = $3 and taken.log_index = $4
        )",
        payment.0,
        reached(deep),
        location.transaction.as_slice(),
        bigint(location.log_index),
        bigint(location.block_number),
        location.block_hash.as_slice(),
        location.block_time,
    )
    .execute(&mut *connection)
    .await?;
    if moved.rows_affected() == 0 {
        set_aside(connection, payment, TAKEN).await?;
    }
    Ok(())
}

async fn release(
    connection: &mut PgConnection,
    mined: &MinedTransaction,
    payment: PaymentId,
    next: &WithoutEffect,
) -> Result<(), LedgerError> {
    let (state, exit) = match next {
        WithoutEffect::Quarantine(why) => return set_aside(connection, payment, why).await,
        WithoutEffect::Requeue => ("queued", None),
        WithoutEffect::Refuse(exit) => ("refused", Some(exit)),
        WithoutEffect::Fail(exit) => ("failed", Some(exit)),
    };
    sqlx::query!(
        "update payments set state = $2, reason = $3, message = $4, queued_at = now(),
            transaction_hash = case when $2 = 'failed' then $5::bytea end
        where id = $1 and state = 'inflight'",
        payment.0,
        state,
        exit.map(|exit| exit.reason.code()),
        exit.map(|exit| exit.message.as_str()),
        mined.hash.as_slice(),
    )
    .execute(&mut *connection)
    .await?;
    Ok(())
}

async fn set_aside(
    connection: &mut PgConnection,
    payment: PaymentId,
    why: &str,
) -> Result<(), LedgerError> {
    sqlx::query!(
        "with aside as (
            update payments set quarantined_at = now(), quarantine_reason = $2
            where id = $1 and state = 'inflight' and quarantined_at is null returning id, transaction_hash
        )
        insert into events (payment_id, kind, reason, transaction_hash) select id, 'quarantined', $2, transaction_hash from aside",
        payment.0,
        why,
    )
    .execute(&mut *connection)
    .await?;
    Ok(())
}
