//! The write-ahead line: nothing leaves for the chain before its bytes, hash and nonce are committed here.

use alloy::primitives::{B256, Bytes, keccak256};
use uuid::Uuid;

use super::connections::Connection;
use super::row::{PaymentRow, bigint, hash, select_payments};
use super::{LaneKey, Ledger, LedgerError};
use crate::payment::{Payment, PaymentId};
use crate::protocol::Network;

/// Signed bytes and what they cost at most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// Keccak-256 of `raw`, computed here and never taken from an RPC.
    pub hash: B256,
    /// The EIP-2718 envelope.
    pub raw: Bytes,
    /// Gas at most.
    pub gas_limit: u64,
    /// Wei per gas at most.
    pub max_fee_wei: u128,
    /// Wei per gas for the block's producer at most.
    pub max_priority_fee_wei: u128,
    /// They do nothing but use the nonce.
    pub empty: bool,
}

/// What a transaction of ours is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransactionKind {
    /// One settlement.
    Direct,
    /// Several, by Multicall3, each of which may fail alone.
    Batch,
    /// Gas money for a payer.
    Funding,
}

impl TransactionKind {
    /// The name in the ledger.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Batch => "batch",
            Self::Funding => "funding",
        }
    }
}

/// A transaction about to be written.
#[derive(Debug)]
pub struct NewTransaction<'a> {
    /// Its lane.
    pub lane: LaneKey,
    /// The ownership under which it was planned.
    pub epoch: i64,
    /// Its nonce, which must be the lane's next.
    pub nonce: u64,
    /// What it is for.
    pub kind: TransactionKind,
    /// Its first bytes.
    pub attempt: &'a Attempt,
    /// What rides in it, in order.
    pub payments: &'a [&'a Payment],
}

/// What the endpoints said to bytes, for the history; nothing is decided by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    /// `accepted`, `rejected` or `unknown`.
    pub reply: &'static str,
    /// Why they were rejected.
    pub reason: Option<&'static str>,
}

/// Whether a transaction was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recorded {
    /// Committed: it may be broadcast, and will be by whoever owns the lane.
    Written(Uuid),
    /// Another process owns the lane or has used the nonce. Nothing was written.
    LaneLost,
    /// Not all payments are queued any more. Nothing was written; plan again with these, which are.
    PaymentsMoved(Vec<PaymentId>),
}

/// A transaction whose outcome is open.
#[derive(Debug, Clone)]
pub struct Unmined {
    /// Its id in the ledger.
    pub id: Uuid,
    /// On which chain.
    pub network: Network,
    /// Its account nonce.
    pub nonce: u64,
    /// Whether its payments ride in a call of Multicall3, where one may fail without the transaction failing.
    pub batch: bool,
    /// All its attempts, oldest first.
    pub attempts: Vec<(B256, Bytes)>,
    /// What rides in it.
    pub payments: Vec<Payment>,
}

impl Ledger {
    /// Writes a transaction, its bytes and its payments, and moves the lane on: all or nothing, in one commit.
    ///
    /// # Errors
    /// When the database fails; the commit may then have happened, and the caller must look again before using the nonce.
    pub async fn record(&self, new: &NewTransaction<'_>) -> Result<Recorded, LedgerError> {
        let mut transaction = self.engine.begin().await?;
        let recorded = self.write(&mut transaction, new).await?;
        if matches!(recorded, Recorded::Written(_)) {
            transaction.commit().await?;
        }
        Ok(recorded)
    }

    /// The statements of [`Self::record`]; anything but [`Recorded::Written`] has to be rolled back.
    pub(super) async fn write(
        &self,
        connection: &mut Connection,
        new: &NewTransaction<'_>,
    ) -> Result<Recorded, LedgerError> {
        let (network, signer) = (new.lane.network.to_string(), new.lane.signer.as_slice());
        let fenced = sqlx::query!(
            "update lanes set next_nonce = next_nonce + 1
            where network = $1 and signer = $2 and owner = $3 and epoch = $4 and next_nonce = $5",
            network,
            signer,
            self.process().0,
            new.epoch,
            bigint(new.nonce),
        )
        .execute(&mut *connection)
        .await?;
        if fenced.rows_affected() != 1 {
            return Ok(Recorded::LaneLost);
        }
        let ids: Vec<Uuid> = new.payments.iter().map(|payment| payment.id.0).collect();
        let amounts = new
            .payments
            .iter()
            .map(|payment| payment.authorization.value.to_string());
        let amounts: Vec<String> = amounts.collect();
        // What was read some time ago may have been refused and presented anew with another charge: these bytes are not for that one.
        // `is true` keeps the index over states out of it: the queue may be long, and these are known by id.
        let moved = sqlx::query_scalar!(
            "update payments p set state = 'inflight', transaction_hash = $2
            from unnest($1::uuid[], $4::text[]) as riding (id, amount)
            where p.id = riding.id and p.amount = riding.amount::numeric and (p.state = 'queued') is true and p.quarantined_at is null
                and (p.signer is null or p.signer = $3)
            returning p.id",
            &ids,
            new.attempt.hash.as_slice(),
            signer,
            &amounts,
        )
        .fetch_all(&mut *connection)
        .await?;
        if moved.len() != ids.len() {
            return Ok(Recorded::PaymentsMoved(
                moved.into_iter().map(PaymentId).collect(),
            ));
        }
        let id = Uuid::now_v7();
        sqlx::query!(
            "with written as (
                insert into transactions (id, network, signer, nonce, epoch, kind, state)
                values ($1, $2, $3, $4, $5, $12, 'signed') returning id
            ), attempted as (
                insert into attempts (hash, transaction_id, sequence, raw, gas_limit, max_fee_wei, max_priority_fee_wei)
                select $6, id, 1, $7, $8, ($9::text)::numeric, ($10::text)::numeric from written
            )
            insert into transaction_payments (transaction_id, position, payment_id)
            select written.id, (riding.position - 1)::smallint, riding.payment_id
            from written, unnest($11::uuid[]) with ordinality as riding (payment_id, position)",
            id,
            network,
            signer,
            bigint(new.nonce),
            new.epoch,
            new.attempt.hash.as_slice(),
            &new.attempt.raw[..],
            bigint(new.attempt.gas_limit),
            new.attempt.max_fee_wei.to_string(),
            new.attempt.max_priority_fee_wei.to_string(),
            &ids,
            new.kind.name(),
        )
        .execute(&mut *connection)
        .await?;
        Ok(Recorded::Written(id))
    }

    /// Writes further bytes for the nonce of an open transaction, before they are sent; its payments name the newest. `false`: the lane is
    /// another process's now, or the transaction is not open any more.
    ///
    /// # Errors
    /// When the database fails; the commit may then have happened.
    pub async fn record_attempt(
        &self,
        lane: (LaneKey, i64),
        transaction: Uuid,
        attempt: &Attempt,
    ) -> Result<bool, LedgerError> {
        let (LaneKey { network, signer }, epoch) = lane;
        let mut writing = self.engine.begin().await?;
        // Held to the end, so that nobody becomes the owner between the look and the commit.
        let written = sqlx::query_scalar!(
            "with owned as (
                select network, signer from lanes
                where network = $1 and signer = $2 and owner = $3 and epoch = $4 for share
            )
            insert into attempts (hash, transaction_id, sequence, raw, gas_limit, max_fee_wei, max_priority_fee_wei, empty)
            select $6, t.id, (select max(sequence) + 1 from attempts where transaction_id = t.id), $7, $8, ($9::text)::numeric,
                ($10::text)::numeric, $11
            from transactions t join owned on owned.network = t.network and owned.signer = t.signer
            where t.id = $5 and t.state = 'signed'
            returning transaction_id",
            network.to_string(),
            signer.as_slice(),
            self.process().0,
            epoch,
            transaction,
            attempt.hash.as_slice(),
            &attempt.raw[..],
            bigint(attempt.gas_limit),
            attempt.max_fee_wei.to_string(),
            attempt.max_priority_fee_wei.to_string(),
            attempt.empty,
        )
        .fetch_optional(&mut *writing)
        .await?;
        if written.is_none() {
            return Ok(false);
        }
        sqlx::query!(
            "update payments p set transaction_hash = $2 from transaction_payments tp
            where tp.transaction_id = $1 and tp.outcome is null and p.id = tp.payment_id and p.state = 'inflight'",
            transaction,
            attempt.hash.as_slice(),
        )
        .execute(&mut *writing)
        .await?;
        writing.commit().await?;
        Ok(true)
    }

    /// Notes what the endpoints said to an attempt, when it is not what they said before.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn note_reply(&self, attempt: B256, heard: Heard) -> Result<(), LedgerError> {
        sqlx::query!(
            "update attempts set broadcast = $2, broadcast_reason = $3, broadcast_at = now()
            where hash = $1 and (broadcast, broadcast_reason) is distinct from ($2, $3)",
            attempt.as_slice(),
            heard.reply,
            heard.reason,
        )
        .execute(&self.engine)
        .await?;
        Ok(())
    }

    /// The transactions of a lane whose outcome is open, in nonce order: what a new owner sends again and watches.
    ///
    /// # Errors
    /// When the database fails; a payment that cannot be read is quarantined.
    pub async fn unmined(&self, lane: LaneKey) -> Result<Vec<Unmined>, LedgerError> {
        let rows = sqlx::query!(
            "select t.id, t.nonce, t.kind, a.hash, a.raw from transactions t join attempts a on a.transaction_id = t.id
            where t.network = $1 and t.signer = $2 and t.state = 'signed' order by t.nonce, a.sequence",
            lane.network.to_string(),
            lane.signer.as_slice(),
        )
        .fetch_all(&self.engine)
        .await?;
        let mut unmined: Vec<Unmined> = Vec::new();
        for row in rows {
            // The bytes say it as well.
            let hash = hash(&row.hash).unwrap_or_else(|| keccak256(&row.raw));
            if unmined.last().map(|open| open.id) != Some(row.id) {
                let payments = self.riding(row.id).await?;
                let nonce = u64::try_from(row.nonce).unwrap_or_default();
                unmined.push(Unmined {
                    id: row.id,
                    network: lane.network,
                    nonce,
                    batch: row.kind == TransactionKind::Batch.name(),
                    attempts: Vec::new(),
                    payments,
                });
            }
            if let Some(open) = unmined.last_mut() {
                open.attempts.push((hash, row.raw.into()));
            }
        }
        Ok(unmined)
    }

    async fn riding(&self, transaction: Uuid) -> Result<Vec<Payment>, LedgerError> {
        let rows: Vec<PaymentRow> = select_payments!(
            "join transaction_payments tp on tp.payment_id = p.id where tp.transaction_id = $1 and tp.outcome is null order by tp.position",
            transaction
        )
        .fetch_all(&self.engine)
        .await?;
        Ok(self.readable(rows).await)
    }
}
