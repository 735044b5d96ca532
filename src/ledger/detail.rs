//! One payment with its events and attempts. Read-only.

use alloy::hex;
use alloy::primitives::B256;
use time::OffsetDateTime;

use super::connections::Connection;
use super::history::{Entry, with_sessions};
use super::row::{hash, select_payments, shown_address};
use super::{Ledger, LedgerError};
use crate::payment::PaymentId;

/// A payment with its events and attempts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryDetail {
    pub entry: Entry,
    /// Its timeline, oldest first.
    pub events: Vec<Event>,
    /// Every signed transaction that was to move its money, oldest first.
    pub attempts: Vec<AttemptDetail>,
}

/// One entry of a payment's timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub at: OffsetDateTime,
    pub kind: String,
    /// State before, for changes of state.
    pub from_state: Option<String>,
    /// State after, for changes of state.
    pub to_state: Option<String>,
    /// Reason code, request id or explanation, according to the kind.
    pub reason: Option<String>,
    /// The payment's transaction at that time.
    pub transaction: Option<B256>,
}

/// A signed transaction that was to move a payment's money.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptDetail {
    /// Its hash, in hexadecimal digits.
    pub hash: String,
    /// Address of the account that signed it and pays its gas: a lane's signer, or the payer on rail `transfer`.
    pub signer: String,
    /// The signer's account nonce.
    pub nonce: u64,
    /// When its bytes, or on rail `transfer` its hash, were recorded.
    pub written_at: OffsetDateTime,
    /// Gas limit. Like the fees it is known for our own transactions only.
    pub gas_limit: Option<u64>,
    /// `maxFeePerGas` in wei, a decimal integer.
    pub max_fee_wei: Option<String>,
    /// `maxPriorityFeePerGas` in wei, a decimal integer.
    pub max_priority_fee_wei: Option<String>,
    /// The endpoints' latest reply to its broadcast: `accepted`, `rejected` or `unknown`.
    pub broadcast: Option<String>,
    /// Why it was rejected.
    pub broadcast_reason: Option<String>,
    /// When the reply became the current one.
    pub broadcast_at: Option<OffsetDateTime>,
    /// Set for the attempt that is in a canonical block.
    pub mined: Option<Mined>,
}

/// Cost and outcome of one of our mined transactions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mined {
    /// Status of its receipt.
    pub succeeded: bool,
    /// Height of its block.
    pub block_number: u64,
    /// Gas used by the whole transaction.
    pub gas_used: u64,
    /// Effective gas price in wei, a decimal integer.
    pub gas_price_wei: String,
    /// `gas_used` times `gas_price_wei` plus further fees, in wei, a decimal integer.
    pub fee_wei: String,
    /// Number of payments in the transaction, which share the fee.
    pub payments: u64,
    /// Its outcome for this payment: `transferred`, `elsewhere` or `without_effect`.
    pub outcome: Option<String>,
}

impl Ledger {
    /// A payment with its events and attempts, read in one snapshot. A row that cannot be read is shown with its raw columns.
    pub async fn detail(&self, id: PaymentId) -> Result<Option<EntryDetail>, LedgerError> {
        let mut snapshot = self.snapshot().await?;
        let row = select_payments!("where p.id = $1", id.0)
            .fetch_all(&mut *snapshot)
            .await?;
        let Some(entry) = with_sessions(&mut snapshot, row).await?.pop() else {
            return Ok(None);
        };
        let events = events(&mut snapshot, id).await?;
        let mut attempts = attempts(&mut snapshot, id).await?;
        attempts.extend(transfer(&mut snapshot, id).await?);
        Ok(Some(EntryDetail {
            entry,
            events,
            attempts,
        }))
    }
}

async fn events(connection: &mut Connection, id: PaymentId) -> Result<Vec<Event>, LedgerError> {
    let rows = sqlx::query!(
        "select at, kind, from_state, to_state, reason, transaction_hash from events where payment_id = $1 order by id",
        id.0,
    )
    .fetch_all(connection)
    .await?;
    let events = rows.into_iter().map(|row| Event {
        at: row.at,
        kind: row.kind,
        from_state: row.from_state,
        to_state: row.to_state,
        reason: row.reason,
        transaction: row.transaction_hash.as_deref().and_then(hash),
    });
    Ok(events.collect())
}

/// The transactions that lanes signed for the payment.
async fn attempts(
    connection: &mut Connection,
    id: PaymentId,
) -> Result<Vec<AttemptDetail>, LedgerError> {
    let rows = sqlx::query!(
        r#"select a.hash, t.signer, t.nonce, a.signed_at, a.gas_limit, a.max_fee_wei::text as "max_fee_wei!",
            a.max_priority_fee_wei::text as "max_priority_fee_wei!", a.broadcast, a.broadcast_reason, a.broadcast_at,
            coalesce(t.hash = a.hash, false) as "mined!", t.succeeded, t.block_number, t.gas_used,
            t.gas_price_wei::text as gas_price_wei, (t.gas_used * t.gas_price_wei + t.further_fee_wei)::text as fee_wei, tp.outcome,
            (select count(*) from transaction_payments rides where rides.transaction_id = t.id) as "payments!"
        from transaction_payments tp join transactions t on t.id = tp.transaction_id join attempts a on a.transaction_id = t.id
        where tp.payment_id = $1 order by a.signed_at, a.sequence"#,
        id.0,
    )
    .fetch_all(connection)
    .await?;
    let mut details = Vec::with_capacity(rows.len());
    for row in rows {
        let result = row
            .succeeded
            .zip(row.block_number)
            .zip(row.gas_used)
            .zip(row.gas_price_wei.zip(row.fee_wei))
            .filter(|_| row.mined);
        let mined = result.map(
            |(((succeeded, block_number), gas_used), (gas_price_wei, fee_wei))| Mined {
                succeeded,
                block_number: unsigned(block_number),
                gas_used: unsigned(gas_used),
                gas_price_wei,
                fee_wei,
                payments: unsigned(row.payments),
                outcome: row.outcome,
            },
        );
        details.push(AttemptDetail {
            hash: hex::encode_prefixed(&row.hash),
            signer: shown_address(&row.signer),
            nonce: unsigned(row.nonce),
            written_at: row.signed_at,
            gas_limit: Some(unsigned(row.gas_limit)),
            max_fee_wei: Some(row.max_fee_wei),
            max_priority_fee_wei: Some(row.max_priority_fee_wei),
            broadcast: row.broadcast,
            broadcast_reason: row.broadcast_reason,
            broadcast_at: row.broadcast_at,
            mined,
        });
    }
    Ok(details)
}

/// The transaction that the payer signed, on rail `transfer`. Its gas and fees are not recorded.
async fn transfer(
    connection: &mut Connection,
    id: PaymentId,
) -> Result<Option<AttemptDetail>, LedgerError> {
    let row = sqlx::query!(
        "select t.hash, t.account_nonce, t.submitted_at, p.payer from transfers t join payments p on p.id = t.payment_id
        where t.payment_id = $1",
        id.0,
    )
    .fetch_optional(connection)
    .await?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(AttemptDetail {
        hash: hex::encode_prefixed(&row.hash),
        signer: shown_address(&row.payer),
        nonce: unsigned(row.account_nonce),
        written_at: row.submitted_at,
        gas_limit: None,
        max_fee_wei: None,
        max_priority_fee_wei: None,
        broadcast: None,
        broadcast_reason: None,
        broadcast_at: None,
        mined: None,
    }))
}

/// Heights, nonces, counts and gas are not negative, by the schema or by their origin.
fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

#[cfg(test)]
mod tests;
