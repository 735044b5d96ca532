//! Results of transactions: mined blocks, confirmations, reorgs. A mined transaction is recorded with all its payments in one SQL
//! transaction.

use alloy::primitives::{Address, B256};
use time::OffsetDateTime;
use uuid::Uuid;

use super::budgets::recount;
use super::connections::Connection;
use super::row::{address, bigint, hash};
use super::{Ledger, LedgerError};
use crate::payment::PaymentId;
use crate::protocol::{Network, Scheme};

/// The block of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockRef {
    pub number: u64,
    pub hash: B256,
    pub time: OffsetDateTime,
}

/// A transaction of ours in a canonical block.
#[derive(Debug, Clone)]
pub struct MinedTransaction {
    /// Its id in the ledger.
    pub id: Uuid,
    /// Hash of the attempt that was mined.
    pub hash: B256,
    pub block: BlockRef,
    /// Status of the receipt.
    pub succeeded: bool,
    /// Gas used by the whole transaction.
    pub gas_used: u64,
    /// Effective gas price in wei.
    pub gas_price_wei: u128,
    /// Wei paid in addition to gas, such as a rollup's data fee.
    pub further_fee_wei: u128,
    /// The payments whose exact `Transfer` is in its logs.
    pub transferred: Vec<TransferredPayment>,
}

/// A payment whose money was transferred by one of our transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransferredPayment {
    pub payment: PaymentId,
    /// Position of the `Transfer` log in the block.
    pub log_index: u64,
    /// The transfer has the promised confirmations.
    pub confirmed: bool,
}

/// A payment that has its confirmations, for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SettledPayment {
    pub payment: PaymentId,
    pub scheme: Scheme,
    pub payer: Address,
    /// The signer of ours whose transaction has transferred it.
    pub signer: Option<Address>,
    pub transaction: Option<B256>,
}

/// What a reorg has undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RolledBack {
    /// Transactions of ours that are open again.
    pub transactions: u64,
    /// Payments whose money had moved in an orphaned block, also by foreign transactions.
    pub payments: u64,
}

impl Ledger {
    /// Records a mined transaction and the payments whose money it transferred; its other payments are undecided from then on
    /// ([`Ledger::undecided`]). Repeating it changes nothing. Returns the number of payments transferred. On an error nothing was recorded.
    pub async fn record_mined(&self, mined: &MinedTransaction) -> Result<usize, LedgerError> {
        match self.record_rows(mined, &mined.transferred).await {
            // A log is recorded for another payment: all payments become undecided, and each is decided by itself.
            Err(error) if error.constraint() == Some("payments_one_per_log") => {
                self.record_rows(mined, &[]).await
            }
            recorded => recorded,
        }
    }

    async fn record_rows(
        &self,
        mined: &MinedTransaction,
        transferred: &[TransferredPayment],
    ) -> Result<usize, LedgerError> {
        let mut transaction = self.engine.begin().await?;
        let updated = sqlx::query!(
            "update transactions set state = 'mined', hash = $2, succeeded = $3, block_number = $4, block_hash = $5, gas_used = $6,
                gas_price_wei = ($7::text)::numeric, further_fee_wei = ($8::text)::numeric,
                spent_wei = $6::bigint * ($7::text)::numeric + ($8::text)::numeric + coalesce((
                    -- Gas money is spent as well, if it was transferred.
                    select f.wei from fundings f join attempts a on a.hash = $2 where f.transaction_id = $1 and $3 and not a.empty
                ), 0)
            where id = $1 and state = 'signed'",
            mined.id,
            mined.hash.as_slice(),
            mined.succeeded,
            bigint(mined.block.number),
            mined.block.hash.as_slice(),
            bigint(mined.gas_used),
            mined.gas_price_wei.to_string(),
            mined.further_fee_wei.to_string(),
        )
        .execute(&mut *transaction)
        .await?;
        if updated.rows_affected() == 0 {
            return Ok(transferred.len());
        }
        let ids: Vec<Uuid> = transferred.iter().map(|row| row.payment.0).collect();
        let log_indices: Vec<i64> = transferred
            .iter()
            .map(|row| bigint(row.log_index))
            .collect();
        let confirmed: Vec<bool> = transferred.iter().map(|row| row.confirmed).collect();
        // `is true` makes the planner find the rows by id: the index over states would read all payments in flight.
        // A failed payment becomes `late_settled` at its confirmations and not before; until then it is undecided.
        let recorded = sqlx::query!(
            "with moved as (
                update payments p set reason = null, message = null, transaction_hash = $5, log_index = row.log_index, block_number = $6,
                    block_hash = $7, block_time = $8,
                    state = case when p.state = 'failed' then 'late_settled' when row.confirmed then 'settled' else 'mined' end
                from unnest($2::uuid[], $3::bigint[], $4::boolean[]) as row (id, log_index, confirmed)
                where p.id = row.id and (p.state in ('queued', 'inflight', 'refused') or p.state = 'failed' and row.confirmed) is true
                returning p.id
            )
            update transaction_payments tp set outcome = 'transferred' from moved
            where tp.transaction_id = $1 and tp.payment_id = moved.id and tp.outcome is null",
            mined.id,
            &ids,
            &log_indices,
            &confirmed,
            mined.hash.as_slice(),
            bigint(mined.block.number),
            mined.block.hash.as_slice(),
            mined.block.time,
        )
        .execute(&mut *transaction)
        .await?;
        recount(&mut transaction, &[mined.id], (1, -1)).await?;
        transaction.commit().await?;
        Ok(usize::try_from(recorded.rows_affected()).unwrap_or(usize::MAX))
    }

    /// Settles mined payments of a network whose block is one of `canonical` and has their confirmations at height `head`. Returns them,
    /// and whether others are still mined.
    pub async fn confirm(
        &self,
        network: Network,
        head: u64,
        canonical: &[B256],
    ) -> Result<(Vec<SettledPayment>, bool), LedgerError> {
        let rows = sqlx::query!(
            r#"update payments p set state = 'settled'
            where network = $1 and state = 'mined' and block_number + confirmations - 1 <= $2 and block_hash = any($3)
                and quarantined_at is null
            returning id, payer, transaction_hash, permitted is not null and signer is not null as "upto!", (
                select t.signer from transaction_payments tp join transactions t on t.id = tp.transaction_id
                where tp.payment_id = p.id and tp.outcome = 'transferred' and t.hash = p.transaction_hash
            ) as sent_by"#,
            network.to_string(),
            bigint(head),
            &hashes(canonical),
        )
        .fetch_all(&self.engine)
        .await?;
        let waiting = sqlx::query_scalar!(
            r#"select exists (select from payments where network = $1 and state = 'mined' and quarantined_at is null) as "waiting!""#,
            network.to_string(),
        )
        .fetch_one(&self.engine)
        .await?;
        let settled = rows.into_iter().map(|row| SettledPayment {
            payment: PaymentId(row.id),
            scheme: if row.upto {
                Scheme::Upto
            } else {
                Scheme::Exact
            },
            // A row that cannot be read is found where it is read as a whole.
            payer: address(&row.payer).unwrap_or_default(),
            signer: row.sent_by.as_deref().and_then(address),
            transaction: row.transaction_hash.as_deref().and_then(hash),
        });
        Ok((settled.collect(), waiting))
    }

    /// Marks settled payments as final whose block is one of `canonical` and not above `height`. Returns their number.
    pub async fn finalise(
        &self,
        network: Network,
        height: u64,
        canonical: &[B256],
    ) -> Result<u64, LedgerError> {
        let updated = sqlx::query!(
            "update payments set state = 'final'
            where network = $1 and state = 'settled' and block_number <= $2 and block_hash = any($3)",
            network.to_string(),
            bigint(height),
            &hashes(canonical),
        )
        .execute(&self.engine)
        .await?;
        Ok(updated.rows_affected())
    }

    /// The blocks up to `head` that have to be compared with the canonical chain, the newest first: those of payments that are not final,
    /// those above `height` that contain transactions or late settlements, and for each lane that of its newest mined transaction. If that
    /// one is canonical, the chain has used every lower nonce. A block whose hash cannot be read is left out.
    pub async fn unfinal_blocks(
        &self,
        network: Network,
        height: u64,
        head: u64,
    ) -> Result<Vec<(u64, B256)>, LedgerError> {
        let rows = sqlx::query!(
            r#"select distinct block_number as "number!", block_hash as "hash!" from (
                select block_number, block_hash from transactions
                where network = $1 and state = 'mined' and block_number > $2
                union all
                select block_number, block_hash from payments
                where network = $1 and state in ('mined', 'settled', 'late_settled') and (state <> 'late_settled' or block_number > $2)
                union all
                select newest.block_number, newest.block_hash from lanes l cross join lateral (
                    select t.block_number, t.block_hash from transactions t
                    where t.network = l.network and t.signer = l.signer and t.state = 'mined' order by t.nonce desc limit 1
                ) newest
                where l.network = $1
            ) blocks
            where block_number <= $3 order by 1 desc"#,
            network.to_string(),
            bigint(height),
            bigint(head),
        )
        .fetch_all(&self.engine)
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

    /// Rolls back what was recorded for the orphaned blocks `removed`, none of them below `lowest`. Their transactions are open again, and
    /// their payments in flight again, also those that were refused because of a result in an orphaned block. Grants stay. The owners of
    /// the lanes see it in the counter `reopened`. On an error nothing is changed.
    pub async fn roll_back(
        &self,
        network: Network,
        removed: &[B256],
        lowest: u64,
    ) -> Result<RolledBack, LedgerError> {
        let removed = hashes(removed);
        let (network, lowest) = (network.to_string(), bigint(lowest));
        let mut transaction = self.engine.begin().await?;
        // Lanes are locked first, as by every statement that writes a transaction.
        sqlx::query!(
            "update lanes l set reopened = l.reopened + 1
            where l.network = $1 and exists (
                select from transactions t where t.network = $1 and t.state = 'mined' and t.block_number >= $3 and t.block_hash = any($2)
                    and (t.signer = l.signer) is true
            )",
            network,
            &removed,
            lowest,
        )
        .execute(&mut *transaction)
        .await?;
        let reopened = sqlx::query_scalar!(
            "update transactions set state = 'signed', hash = null, succeeded = null, block_number = null, block_hash = null,
                gas_used = null, gas_price_wei = null, further_fee_wei = 0
            where network = $1 and state = 'mined' and block_number >= $3 and block_hash = any($2) returning id",
            network,
            &removed,
            lowest,
        )
        .fetch_all(&mut *transaction)
        .await?;
        // A payment has one open row at most: if it is in a later transaction it stays there, otherwise its newest reopened row is open
        // again.
        sqlx::query!(
            "update transaction_payments tp set outcome = null
            where tp.transaction_id = any($1) and tp.outcome is not null and not exists (
                select from transaction_payments live where live.payment_id = tp.payment_id and live.outcome is null
            ) and not exists (
                select from transaction_payments newer where newer.payment_id = tp.payment_id and newer.transaction_id = any($1)
                    and newer.transaction_id > tp.transaction_id
            )",
            &reopened,
        )
        .execute(&mut *transaction)
        .await?;
        let payments =
            roll_back_payments(&mut transaction, (&network, &removed, lowest), &reopened).await?;
        recount(&mut transaction, &reopened, (-1, 1)).await?;
        transaction.commit().await?;
        Ok(RolledBack {
            transactions: u64::try_from(reopened.len()).unwrap_or(u64::MAX),
            payments,
        })
    }
}

fn hashes(blocks: &[B256]) -> Vec<Vec<u8>> {
    blocks.iter().map(|hash| hash.to_vec()).collect()
}

/// Rolls back the payments of orphaned blocks and of reopened transactions. Returns the number of those whose money had moved.
async fn roll_back_payments(
    connection: &mut Connection,
    (network, removed, lowest): (&str, &[Vec<u8>], i64),
    reopened: &[Uuid],
) -> Result<u64, LedgerError> {
    let gone = sqlx::query!(
        "with gone as (
            update payments p set
                state = case when carried.live then 'inflight' else 'queued' end, queued_at = now(), queued_by = null,
                transaction_hash = case when carried.live then coalesce(carried.attempt, p.transaction_hash) end,
                log_index = null, block_number = null, block_hash = null, block_time = null
            from (
                select q.id, q.rail = 'transfer' or riding.attempt is not null as live, riding.attempt
                from payments q left join lateral (
                    select a.hash as attempt from transaction_payments tp join attempts a on a.transaction_id = tp.transaction_id
                    where tp.payment_id = q.id and tp.outcome is null order by a.sequence desc limit 1
                ) riding on true
                where q.network = $1 and q.state in ('mined', 'settled', 'late_settled') and q.block_number >= $3
                    and q.block_hash = any($2)
            ) carried
            where p.id = carried.id returning p.id, p.transaction_hash
        )
        insert into events (payment_id, kind, transaction_hash) select id, 'reorged', transaction_hash from gone",
        network,
        removed,
        lowest,
    )
    .execute(&mut *connection)
    .await?;
    // Payments of reopened transactions may still be transferred by them: they are in flight, also if they were queued or refused since.
    sqlx::query!(
        "update payments p set state = 'inflight', reason = null, message = null, transaction_hash = riding.attempt
        from (
            select tp.payment_id, (
                select a.hash from attempts a where a.transaction_id = tp.transaction_id order by a.sequence desc limit 1
            ) as attempt
            from transaction_payments tp where tp.transaction_id = any($1) and tp.outcome is null
        ) riding
        where p.id = riding.payment_id and (p.state in ('queued', 'refused')) is true",
        reopened,
    )
    .execute(&mut *connection)
    .await?;
    Ok(gone.rows_affected())
}

#[cfg(test)]
mod tests;
