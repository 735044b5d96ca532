//! Payments that rode in a mined transaction which did not move their money, as far as its logs say: undecided, until the chain has told what
//! became of them. And whatever moves a payment that no transaction of ours has settled.

use alloy::primitives::B256;
use uuid::Uuid;

use super::connections::Connection;
use super::quarantine::quarantine;
use super::row::{PaymentRow, bigint, hash, select_payments};
use super::{Ledger, LedgerError};
use crate::payment::state::Exit;
use crate::payment::{Location, Payment, PaymentId};
use crate::protocol::Network;

/// Why a payment is set aside whose log belongs to another.
const TAKEN: &str = "its Transfer log is recorded for another payment";

/// A payment whose transaction was mined and did not move its money.
#[derive(Debug, Clone)]
pub struct Undecided {
    /// The payment.
    pub payment: Payment,
    /// The transaction that it rode in.
    pub transaction: Uuid,
    /// The attempt that was mined.
    pub hash: B256,
    /// Height of its block.
    pub block_number: u64,
    /// Its block.
    pub block_hash: B256,
    /// The transaction was a call for this payment alone, and went through.
    pub call_succeeded: bool,
    /// In how many transactions the payment has ridden.
    pub tries: i64,
}

/// What is decided about an undecided payment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Its money moved: in a transaction of somebody else's, or in ours after all.
    Moved {
        /// Where.
        location: Location,
        /// Whether the promised depth is reached already.
        deep: bool,
    },
    /// The authorization can still be used: plan it again, under a new nonce.
    Again,
    /// It would fail again: leave it, until somebody presents it again.
    Refuse(Exit),
    /// Proven unable to move money any more.
    Fail(Exit),
    /// An assumption does not hold: leave the state, call the operator.
    SetAside(String),
}

impl Ledger {
    /// The undecided payments of a network, at most `limit`.
    ///
    /// # Errors
    /// When the database fails; a row that cannot be read is set aside.
    pub async fn undecided(
        &self,
        network: Network,
        limit: i64,
    ) -> Result<Vec<Undecided>, LedgerError> {
        // Fenced: there are few open rows, and many mined transactions.
        let rows = sqlx::query!(
            r#"select open.payment_id, t.id, t.hash as "hash!", t.block_number as "block_number!", t.block_hash as "block_hash!",
                (t.succeeded and t.kind = 'direct' and not a.empty) as "call_succeeded!",
                (select count(*) from transaction_payments other where other.payment_id = open.payment_id) as "tries!"
            from (select transaction_id, payment_id from transaction_payments where outcome is null offset 0) open
            cross join lateral (
                select id, kind, hash, succeeded, block_number, block_hash from transactions
                where id = open.transaction_id and (network = $1 and state = 'mined') is true offset 0
            ) t
            join attempts a on a.hash = t.hash order by t.id limit $2"#,
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
        for payment in self.readable(payments).await {
            let row = rows.iter().find(|row| row.payment_id == payment.id.0);
            let found = row.and_then(|row| Some((row, hash(&row.hash)?, hash(&row.block_hash)?)));
            let Some((row, hash, block_hash)) = found else {
                continue;
            };
            undecided.push(Undecided {
                call_succeeded: row.call_succeeded && payment.wallet.is_none(),
                payment,
                transaction: row.id,
                hash,
                block_number: u64::try_from(row.block_number).unwrap_or_default(),
                block_hash,
                tries: row.tries,
            });
        }
        Ok(undecided)
    }

    /// Decides about an undecided payment, unless its transaction left the chain meanwhile. `false`: it did, or somebody was faster.
    ///
    /// # Errors
    /// When the database fails; nothing is decided then.
    pub async fn decide(&self, row: &Undecided, verdict: &Verdict) -> Result<bool, LedgerError> {
        let mut deciding = self.engine.begin().await?;
        let outcome = if matches!(verdict, Verdict::Moved { .. }) {
            "elsewhere"
        } else {
            "without_effect"
        };
        let closed = sqlx::query!(
            "with standing as (
                select id from transactions where id = $1 and state = 'mined' and block_hash = $3 for share
            )
            update transaction_payments tp set outcome = $4 from standing
            where tp.transaction_id = standing.id and tp.payment_id = $2 and tp.outcome is null",
            row.transaction,
            row.payment.id.0,
            row.block_hash.as_slice(),
            outcome,
        )
        .execute(&mut *deciding)
        .await?;
        if closed.rows_affected() == 0 {
            return Ok(false);
        }
        let id = row.payment.id;
        match verdict {
            Verdict::Moved { location, deep } => {
                move_here(&mut deciding, id, location, *deep).await?;
            }
            Verdict::SetAside(why) => {
                quarantine(&mut deciding, id, why).await?;
            }
            Verdict::Again => release(&mut deciding, row, "queued", None).await?,
            Verdict::Refuse(exit) => release(&mut deciding, row, "refused", Some(exit)).await?,
            Verdict::Fail(exit) => release(&mut deciding, row, "failed", Some(exit)).await?,
        }
        deciding.commit().await?;
        Ok(true)
    }

    /// Records that somebody else submitted the authorization of a payment that rides in no transaction of ours. `false`: it does
    /// now, its outcome is known already, or its log is another payment's, in which case it is set aside.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn settled_by_others(
        &self,
        id: PaymentId,
        location: &Location,
        deep: bool,
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
        let moved = free.is_some() && move_here(&mut settling, id, location, deep).await?;
        settling.commit().await?;
        Ok(moved)
    }
}

/// The one way in which a payment comes to where its money moved when no lane of ours records it. A failed one does at its depth alone.
/// `false`: it is not the payment's to move any more; where another payment has the log, it is set aside.
pub(super) async fn move_here(
    connection: &mut Connection,
    id: PaymentId,
    location: &Location,
    deep: bool,
) -> Result<bool, LedgerError> {
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
        deep,
    )
    .execute(&mut *connection)
    .await?;
    if moved.rows_affected() == 1 {
        return Ok(true);
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
        quarantine(connection, id, TAKEN).await?;
    }
    Ok(false)
}

async fn release(
    connection: &mut Connection,
    row: &Undecided,
    state: &str,
    exit: Option<&Exit>,
) -> Result<(), LedgerError> {
    sqlx::query!(
        "update payments set state = $2, reason = $3, message = $4, queued_at = now(), queued_by = null,
            transaction_hash = case when $2 = 'failed' then $5::bytea end
        where id = $1 and state = 'inflight'",
        row.payment.id.0,
        state,
        exit.map(|exit| exit.reason.code()),
        exit.map(|exit| exit.message.as_str()),
        row.hash.as_slice(),
    )
    .execute(&mut *connection)
    .await?;
    Ok(())
}
