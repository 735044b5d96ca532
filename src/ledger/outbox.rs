//! The write-ahead line: bytes, hash and nonce of a transaction are committed here before it is sent.

use alloy::primitives::{B256, Bytes, U256, keccak256};
use uuid::Uuid;

use super::budgets::{self, GasShare, GasUse, OverBudget, ShareColumns, part, reserve_attempt};
use super::connections::Connection;
use super::row::{PaymentRow, bigint, hash, select_payments};
use super::{LaneKey, Ledger, LedgerError};
use crate::payment::{Payment, PaymentId};
use crate::protocol::Network;

/// A signed transaction with its fee limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// Keccak-256 of `raw`, computed here and never taken from an RPC.
    pub hash: B256,
    /// The EIP-2718 envelope.
    pub raw: Bytes,
    pub gas_limit: u64,
    /// `maxFeePerGas` in wei (EIP-1559).
    pub max_fee_wei: u128,
    /// `maxPriorityFeePerGas` in wei (EIP-1559).
    pub max_priority_fee_wei: u128,
    /// Most that it may cost in wei: gas, a rollup's fee for data, and the native currency that it transfers.
    pub cost_wei: U256,
    /// An empty self-transfer, which only uses the nonce.
    pub empty: bool,
}

/// The purpose of one of our transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransactionKind {
    /// One settlement.
    Direct,
    /// Several settlements by Multicall3, each of which may fail alone.
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
    pub lane: LaneKey,
    /// The epoch of the lane's lease under which it was planned.
    pub epoch: i64,
    /// Must be the lane's next nonce.
    pub nonce: u64,
    pub kind: TransactionKind,
    /// Its first attempt.
    pub attempt: &'a Attempt,
    /// Its payments, in the order of their calls.
    pub payments: &'a [&'a Payment],
    /// The budgets that it counts in.
    pub shares: &'a [GasShare],
}

/// The endpoints' reply to a broadcast, for the history only: no decision depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BroadcastReply {
    /// `accepted`, `rejected` or `unknown`.
    pub reply: &'static str,
    /// Why the transaction was rejected.
    pub reason: Option<&'static str>,
}

/// Whether a transaction was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recorded {
    /// Committed, with its id and the state of its budgets: it may be broadcast, and every owner of the lane will do so.
    Written(Uuid, Vec<GasUse>),
    /// Another process owns the lane or has used the nonce. Nothing was written.
    LaneLost,
    /// Not all payments are queued any more. Nothing was written; plan again with these, which still are.
    PaymentsChanged(Vec<PaymentId>),
    /// It may cost more than these budgets have left. Nothing was written.
    OverBudget(Vec<OverBudget>),
}

/// A transaction whose outcome is open.
#[derive(Debug, Clone)]
pub struct PendingTransaction {
    /// Its id in the ledger.
    pub id: Uuid,
    pub network: Network,
    /// Its account nonce.
    pub nonce: u64,
    /// Whether its payments are calls of Multicall3, where one may fail without the transaction failing.
    pub batch: bool,
    /// Hash and bytes of all its attempts, oldest first.
    pub attempts: Vec<(B256, Bytes)>,
    pub payments: Vec<Payment>,
}

impl Ledger {
    /// Writes a transaction, its first attempt and its payments, and advances the lane's nonce, all in one commit.
    ///
    /// # Errors
    /// The commit may have happened: read the lane again before using the nonce.
    pub async fn record(&self, new: &NewTransaction<'_>) -> Result<Recorded, LedgerError> {
        let mut transaction = self.engine.begin().await?;
        let recorded = self.write(&mut transaction, new).await?;
        if matches!(recorded, Recorded::Written(..)) {
            transaction.commit().await?;
        }
        Ok(recorded)
    }

    /// The statements of [`Self::record`]. Any result but [`Recorded::Written`] must be rolled back.
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
            .map(|payment| payment.terms.value.to_string());
        let amounts: Vec<String> = amounts.collect();
        // A payer may have been suspended since its payment was queued. The amount is compared because a payment may have been refused and presented again with another charge since it was read.
        // `is true` makes the planner find the rows by id: the index over states would read the whole queue.
        let changed = sqlx::query_scalar!(
            "update payments p set state = 'inflight', transaction_hash = $2
            from unnest($1::uuid[], $4::text[]) as riding (id, amount)
            where p.id = riding.id and p.amount = riding.amount::numeric and (p.state = 'queued') is true and p.quarantined_at is null
                and (p.signer is null or p.signer = $3)
                and not exists (
                    select from suspensions s
                    where s.network = p.network and s.kind = 'payer' and s.subject = p.payer and s.suspended_until > now()
                )
            returning p.id",
            &ids,
            new.attempt.hash.as_slice(),
            signer,
            &amounts,
        )
        .fetch_all(&mut *connection)
        .await?;
        if changed.len() != ids.len() {
            return Ok(Recorded::PaymentsChanged(
                changed.into_iter().map(PaymentId).collect(),
            ));
        }
        let id = Uuid::now_v7();
        let uses = insert(connection, new, (id, &ids)).await?;
        let over = self.over_budget(connection, new, &uses).await?;
        if !over.is_empty() {
            return Ok(Recorded::OverBudget(over));
        }
        Ok(Recorded::Written(id, uses))
    }

    /// Writes a replacement for the nonce of an open transaction, before it is sent; the transaction's payments then name its hash.
    /// `false`: this process does not own the lane any more, or the transaction is not open.
    ///
    /// # Errors
    /// The commit may have happened.
    pub async fn record_attempt(
        &self,
        lane: (LaneKey, i64),
        transaction: Uuid,
        attempt: &Attempt,
    ) -> Result<bool, LedgerError> {
        let (LaneKey { network, signer }, epoch) = lane;
        let mut writing = self.engine.begin().await?;
        // `for share` holds the lane to the end, so that no other process claims it before the commit.
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
        // Without a replacement the nonce would stay blocked, so it is counted whatever the budgets say.
        reserve_attempt(&mut writing, transaction, attempt.cost_wei).await?;
        writing.commit().await?;
        Ok(true)
    }

    /// Records the endpoints' reply to an attempt, if it differs from the recorded one.
    pub async fn note_reply(
        &self,
        attempt: B256,
        reply: BroadcastReply,
    ) -> Result<(), LedgerError> {
        sqlx::query!(
            "update attempts set broadcast = $2, broadcast_reason = $3, broadcast_at = now()
            where hash = $1 and (broadcast, broadcast_reason) is distinct from ($2, $3)",
            attempt.as_slice(),
            reply.reply,
            reply.reason,
        )
        .execute(&self.engine)
        .await?;
        Ok(())
    }

    /// The open transactions of a lane in the order of their nonces, for a new owner to send again and follow.
    /// A payment that cannot be read is quarantined and left out.
    pub async fn pending_transactions(
        &self,
        lane: LaneKey,
    ) -> Result<Vec<PendingTransaction>, LedgerError> {
        let rows = sqlx::query!(
            "select t.id, t.nonce, t.kind, a.hash, a.raw from transactions t join attempts a on a.transaction_id = t.id
            where t.network = $1 and t.signer = $2 and t.state = 'signed' order by t.nonce, a.sequence",
            lane.network.to_string(),
            lane.signer.as_slice(),
        )
        .fetch_all(&self.engine)
        .await?;
        let mut transactions: Vec<PendingTransaction> = Vec::new();
        for row in rows {
            // The hash follows from the bytes.
            let hash = hash(&row.hash).unwrap_or_else(|| keccak256(&row.raw));
            if transactions.last().map(|open| open.id) != Some(row.id) {
                let payments = self.payments_of(row.id).await?;
                let nonce = u64::try_from(row.nonce).unwrap_or_default();
                transactions.push(PendingTransaction {
                    id: row.id,
                    network: lane.network,
                    nonce,
                    batch: row.kind == TransactionKind::Batch.name(),
                    attempts: Vec::new(),
                    payments,
                });
            }
            if let Some(open) = transactions.last_mut() {
                open.attempts.push((hash, row.raw.into()));
            }
        }
        Ok(transactions)
    }

    async fn payments_of(&self, transaction: Uuid) -> Result<Vec<Payment>, LedgerError> {
        let rows: Vec<PaymentRow> = select_payments!(
            "join transaction_payments tp on tp.payment_id = p.id where tp.transaction_id = $1 and tp.outcome is null order by tp.position",
            transaction
        )
        .fetch_all(&self.engine)
        .await?;
        Ok(self.readable(rows).await)
    }
}

/// Writes a transaction with its first attempt, its payments and its shares of budgets. Returns the state of the budgets.
async fn insert(
    connection: &mut Connection,
    new: &NewTransaction<'_>,
    (id, ids): (Uuid, &[Uuid]),
) -> Result<Vec<GasUse>, LedgerError> {
    let shares = ShareColumns::of(new.shares, new.attempt.cost_wei);
    // Rows of budgets are locked last, and in one order. In the first minutes of an hour those of the last hour are locked too: what
    // was begun in it may not be committed yet.
    let rows = sqlx::query!(
        r#"with written as (
            insert into transactions (id, network, signer, nonce, epoch, kind, state, reserved_wei)
            values ($1, $2, $3, $4, $5, $12, 'signed', ($13::text)::numeric) returning id
        ), attempted as (
            insert into attempts (hash, transaction_id, sequence, raw, gas_limit, max_fee_wei, max_priority_fee_wei)
            select $6, id, 1, $7, $8, ($9::text)::numeric, ($10::text)::numeric from written
        ), carried as (
            insert into transaction_payments (transaction_id, position, payment_id)
            select written.id, (riding.position - 1)::smallint, riding.payment_id
            from written, unnest($11::uuid[]) with ordinality as riding (payment_id, position)
        ), share as (
            select position, scope, subject, gas, wei::numeric as wei
            from unnest($14::text[], $15::bytea[], $16::bigint[], $17::text[]) with ordinality as share (scope, subject, gas, wei, position)
        ), reserved as (
            insert into gas_reservations (transaction_id, scope, subject, gas)
            select written.id, share.scope, share.subject, share.gas from written, share
        ), clock as (
            select date_bin('1 hour', now(), timestamptz '1970-01-01 00:00:00+00') as hour
        ), counted as (
            insert into gas_spending as s (network, scope, subject, hour, reserved_wei)
            select $2, share.scope, share.subject, touched.hour, touched.wei
            from clock, share
            cross join lateral (values (clock.hour, share.wei), (clock.hour - interval '1 hour', 0)) as touched (hour, wei)
            where touched.hour = clock.hour or now() < clock.hour + interval '5 minutes'
            order by 2, 3, 4
            on conflict on constraint gas_spending_pkey do update set reserved_wei = s.reserved_wei + excluded.reserved_wei
            returning s.scope, s.subject, s.hour, s.spent_wei, s.reserved_wei
        ), hours as (
            select scope, subject, spent_wei, reserved_wei from counted
            union all
            select s.scope, s.subject, s.spent_wei, s.reserved_wei from clock, share
            cross join lateral (
                select scope, subject, hour, spent_wei, reserved_wei from gas_spending
                where network = $2 and scope = share.scope and subject = share.subject and hour >= clock.hour - interval '24 hours' offset 0
            ) s
            where not exists (select from counted c where (c.scope, c.subject, c.hour) = (s.scope, s.subject, s.hour))
        )
        select share.position as "position!", sum(hours.spent_wei)::text as "spent!", sum(hours.reserved_wei)::text as "reserved!"
        from share join hours on hours.scope = share.scope and hours.subject = share.subject group by share.position"#,
        id,
        new.lane.network.to_string(),
        new.lane.signer.as_slice(),
        bigint(new.nonce),
        new.epoch,
        new.attempt.hash.as_slice(),
        &new.attempt.raw[..],
        bigint(new.attempt.gas_limit),
        new.attempt.max_fee_wei.to_string(),
        new.attempt.max_priority_fee_wei.to_string(),
        ids,
        new.kind.name(),
        new.attempt.cost_wei.to_string(),
        &shares.scopes,
        &shares.subjects,
        &shares.gas,
        &shares.wei,
    )
    .fetch_all(&mut *connection)
    .await?;
    let found = rows.into_iter();
    let found = found.map(|row| (row.position, row.spent, row.reserved));
    uses_of(new.shares, found)
}

/// The state of the budgets of `shares`, from their positions with spent and reserved wei.
fn uses_of(
    shares: &[GasShare],
    found: impl Iterator<Item = (i64, String, String)>,
) -> Result<Vec<GasUse>, LedgerError> {
    let mut uses = Vec::with_capacity(shares.len());
    for (position, spent, reserved) in found {
        let share = usize::try_from(position - 1).ok();
        if let Some(share) = share.and_then(|place| shares.get(place)) {
            uses.push(GasUse {
                subject: share.subject,
                spent_wei: budgets::wei(&spent, "spent_wei")?,
                reserved_wei: budgets::wei(&reserved, "reserved_wei")?,
            });
        }
    }
    Ok(uses)
}

impl Ledger {
    /// The budgets that a transaction exceeds which has just been counted in them. Its statements must be rolled back then.
    async fn over_budget(
        &self,
        connection: &mut Connection,
        new: &NewTransaction<'_>,
        uses: &[GasUse],
    ) -> Result<Vec<OverBudget>, LedgerError> {
        let mut over = Vec::new();
        for used in uses {
            let mut shares = new.shares.iter();
            let share = shares.find(|share| share.subject == used.subject);
            let Some((share, limit_wei)) = share.and_then(|share| Some((share, share.limit_wei?)))
            else {
                continue;
            };
            if used.spent_wei.saturating_add(used.reserved_wei) <= limit_wei {
                continue;
            }
            let payments = U256::from(share.payments.max(1));
            let own_wei = part(new.shares, share, new.attempt.cost_wei);
            let needs_wei = own_wei / payments;
            let before = used.spent_wei.saturating_add(used.reserved_wei);
            let before = before.saturating_sub(own_wei);
            let hours = budgets::hours_of(connection, new.lane.network, share.subject).await?;
            over.push(OverBudget {
                subject: share.subject,
                needs_wei,
                left_wei: limit_wei.saturating_sub(before),
                limit_wei,
                until: budgets::fits_at(&hours, needs_wei, limit_wei, self.clock().now()),
            });
        }
        Ok(over)
    }
}

#[cfg(test)]
mod tests;
