//! The payment history: filters and pages. Read-only.
//!
//! The only order is newest first: by time of acceptance, then by id. Neither of them changes, so reading page after page returns every
//! payment that was committed before the first page exactly once.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use alloy::hex;
use alloy::primitives::{Address, B256};
use time::OffsetDateTime;
use uuid::Uuid;

use super::connections::{Connection, Transaction};
use super::row::{PaymentRow, hash, select_payments, shown_address};
use super::{Ledger, LedgerError};
use crate::payment::{Payment, PaymentId};
use crate::protocol::session::SessionId;
use crate::protocol::{Amount, Network};

/// A transaction contains fewer payments than this.
const PAYMENTS_PER_TRANSACTION_MAX: i64 = 1000;

/// Selects payments. A field that is `None` does not filter.
#[derive(Debug, Clone, Default)]
pub struct HistoryFilter {
    pub payer: Option<Address>,
    pub payee: Option<Address>,
    pub network: Option<Network>,
    /// The token.
    pub asset: Option<Address>,
    /// The current state.
    pub state: Option<&'static str>,
    /// Accepted at this time or later.
    pub from: Option<OffsetDateTime>,
    /// Accepted before this time.
    pub to: Option<OffsetDateTime>,
    /// This much or more, in atomic units.
    pub amount_min: Option<Amount>,
    /// This much or less, in atomic units.
    pub amount_max: Option<Amount>,
    /// The exact text of the resource.
    pub resource: Option<String>,
    pub session: Option<SessionId>,
    /// The buyer's reference for the purchase.
    pub client_reference: Option<String>,
    /// The transaction that has transferred the money or is meant to.
    pub transaction: Option<B256>,
    /// To one of these payees: those of the key that reads.
    pub payees: Option<Vec<Address>>,
}

/// Appends the filter to a statement over `payments p`: `$statement!(filter + tail, its 14 arguments, further arguments)`.
///
/// One text for all combinations of filters, so that it is checked when x402d is built. An absent filter is a null. With
/// [`use_custom_plans`] the planner removes the conditions on nulls, and the join if it is not needed.
macro_rules! filtered {
    ($statement:ident!($filter:expr, $tail:literal $(, $argument:expr)* $(,)?)) => {
        $statement!(
            "left join sessions s on s.payment_id = p.id
            where ($1::bytea is null or p.payer = $1) and ($2::bytea is null or p.payee = $2) and ($3::text is null or p.network = $3)
            and ($4::bytea is null or p.asset = $4) and ($5::text is null or p.state = $5)
            and ($6::timestamptz is null or p.created_at >= $6) and ($7::timestamptz is null or p.created_at < $7)
            and ($8::text is null or p.amount >= ($8::text)::numeric) and ($9::text is null or p.amount <= ($9::text)::numeric)
            and ($10::text is null or (hashtextextended(p.resource, 0) = hashtextextended($10, 0) and p.resource = $10))
            and ($11::text is null or s.id = $11) and ($12::text is null or s.client_reference = $12)
            and ($13::bytea is null or p.transaction_hash = $13) and ($14::bytea[] is null or p.payee = any($14)) " + $tail,
            $filter.payer.as_ref().map(|address| address.as_slice()),
            $filter.payee.as_ref().map(|address| address.as_slice()),
            $filter.network.map(|network| network.to_string()),
            $filter.asset.as_ref().map(|address| address.as_slice()),
            $filter.state,
            $filter.from,
            $filter.to,
            $filter.amount_min.map(|amount| amount.to_string()),
            $filter.amount_max.map(|amount| amount.to_string()),
            $filter.resource,
            $filter.session.as_ref().map(|session| session.as_str()),
            $filter.client_reference,
            $filter.transaction.as_ref().map(|hash| hash.as_slice()),
            $filter.payees.as_deref().map($crate::ledger::history::address_columns) as _
            $(, $argument)*
        )
    };
}
pub(super) use filtered;

/// Addresses as values of columns.
pub(super) fn address_columns(addresses: &[Address]) -> Vec<&[u8]> {
    addresses.iter().map(|address| address.as_slice()).collect()
}

/// The position after the last payment of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// When that payment was accepted.
    pub at: OffsetDateTime,
    pub id: PaymentId,
}

/// The text is not a cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected the nextCursor of a page")]
pub struct InvalidCursor;

/// Microseconds since 1970 (the resolution of Postgres), a dot, and the id.
impl fmt::Display for Cursor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{}.{}",
            self.at.unix_timestamp_nanos() / 1000,
            self.id.0.simple()
        )
    }
}

impl FromStr for Cursor {
    type Err = InvalidCursor;

    fn from_str(text: &str) -> Result<Self, InvalidCursor> {
        let (micros, id) = text.split_once('.').ok_or(InvalidCursor)?;
        let nanos = micros
            .parse::<i64>()
            .map(|micros| i128::from(micros) * 1000)
            .map_err(|_| InvalidCursor)?;
        Ok(Self {
            at: OffsetDateTime::from_unix_timestamp_nanos(nanos).map_err(|_| InvalidCursor)?,
            id: PaymentId(Uuid::try_parse(id).map_err(|_| InvalidCursor)?),
        })
    }
}

/// The start and the length of a page.
#[derive(Debug, Clone, Copy)]
pub struct Page {
    /// Only payments after this position.
    pub after: Option<Cursor>,
    /// Number of payments at most.
    pub limit: u16,
}

/// The session of a payment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PaidSession {
    pub id: String,
    /// The buyer's reference for the purchase.
    pub client_reference: Option<String>,
}

/// A payment as the history lists it: its raw columns, so that a row is shown also if it cannot be read as a [`Payment`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub id: PaymentId,
    /// The protocol version in which it was presented first.
    pub x402_version: u8,
    /// `authorization` or `transfer`.
    pub rail: String,
    /// CAIP-2.
    pub network: String,
    /// Address of the token.
    pub asset: String,
    /// Address of the payer.
    pub payer: String,
    /// Address of the payee.
    pub payee: String,
    /// In atomic units.
    pub amount: String,
    /// Permit2: the maximum that the payer signed, in atomic units.
    pub permitted: Option<String>,
    /// The payer named the only signer that may settle it.
    pub names_its_signer: bool,
    pub state: String,
    /// The reason code of a refusal or failure.
    pub reason: Option<String>,
    /// The reason in words.
    pub message: Option<String>,
    /// Hash of the transaction that is named in responses.
    pub transaction: Option<B256>,
    /// Position of the Transfer log in its block.
    pub log_index: Option<u64>,
    /// Height of its block.
    pub block_number: Option<u64>,
    /// Time of its block.
    pub block_time: Option<OffsetDateTime>,
    /// The confirmations that were promised when it was accepted.
    pub confirmations: u32,
    /// The resource, as named in the request; not verified.
    pub resource: Option<String>,
    pub session: Option<PaidSession>,
    /// Whose `/settle` accepted it: the id of a key, `operator` or `anonymous`.
    pub caller: Option<String>,
    /// Why the transfer does not count, although the money was transferred.
    pub unmatched: Option<String>,
    /// Why it waits for the operator. For a row that cannot be read: the column.
    pub quarantine: Option<String>,
    /// The nonce of the authorization, in hexadecimal digits.
    pub nonce: String,
    /// When it was accepted.
    pub created_at: OffsetDateTime,
    pub updated_at: OffsetDateTime,
}

impl Entry {
    fn new(mut row: PaymentRow, session: Option<PaidSession>) -> Self {
        let unsigned = |number: Option<i64>| number.and_then(|number| u64::try_from(number).ok());
        Self {
            id: PaymentId(row.id),
            x402_version: u8::try_from(row.x402_version).unwrap_or_default(),
            rail: row.rail.clone(),
            network: row.network.clone(),
            asset: shown_address(&row.asset),
            payer: shown_address(&row.payer),
            payee: shown_address(&row.payee),
            amount: row.amount.clone(),
            permitted: row.permitted.clone(),
            names_its_signer: row.signer.is_some(),
            state: row.state.clone(),
            reason: row.reason.clone(),
            message: row.message.clone(),
            transaction: row.transaction_hash.as_deref().and_then(hash),
            log_index: unsigned(row.log_index),
            block_number: unsigned(row.block_number),
            block_time: row.block_time,
            confirmations: u32::try_from(row.confirmations).unwrap_or_default(),
            resource: row.resource.clone(),
            session,
            caller: row.caller.clone(),
            unmatched: row.unmatched_reason.clone(),
            nonce: hex::encode_prefixed(&row.nonce),
            created_at: row.created_at,
            updated_at: row.updated_at,
            quarantine: row.quarantine_reason.take().or_else(|| {
                let unreadable = Payment::try_from(row).err();
                unreadable.map(|unreadable| unreadable.to_string())
            }),
        }
    }

    /// The position after this payment.
    pub const fn cursor(&self) -> Cursor {
        Cursor {
            at: self.created_at,
            id: self.id,
        }
    }
}

impl Ledger {
    /// One page of the history, newest first. A row that cannot be read is listed with its raw columns.
    pub async fn history(
        &self,
        filter: &HistoryFilter,
        page: Page,
    ) -> Result<Vec<Entry>, LedgerError> {
        let mut snapshot = self.snapshot().await?;
        use_custom_plans(&mut snapshot).await?;
        let rows: Vec<PaymentRow> = filtered!(select_payments!(
            filter,
            "and ($15::timestamptz is null or (p.created_at, p.id) < ($15, $16::uuid)) order by p.created_at desc, p.id desc limit $17",
            page.after.map(|cursor| cursor.at),
            page.after.map(|cursor| cursor.id.0),
            i64::from(page.limit),
        ))
        .fetch_all(&mut *snapshot)
        .await?;
        with_sessions(&mut snapshot, rows).await
    }

    /// The payments that a transaction has settled or was signed to settle, newest first. A row that cannot be read is listed with its raw
    /// columns.
    pub async fn payments_of_transaction(
        &self,
        network: Network,
        transaction: B256,
    ) -> Result<Vec<Entry>, LedgerError> {
        let mut snapshot = self.snapshot().await?;
        let rows: Vec<PaymentRow> = select_payments!(
            "where p.network = $1 and p.id in (
                select id from payments where network = $1 and transaction_hash = $2
                union
                select payment_id from transfers where network = $1 and hash = $2
                union
                select tp.payment_id from attempts a join transaction_payments tp on tp.transaction_id = a.transaction_id where a.hash = $2
            ) order by p.created_at desc, p.id desc limit $3",
            network.to_string(),
            transaction.as_slice(),
            PAYMENTS_PER_TRANSACTION_MAX,
        )
        .fetch_all(&mut *snapshot)
        .await?;
        with_sessions(&mut snapshot, rows).await
    }

    /// A read-only transaction whose statements see one snapshot.
    pub(super) async fn snapshot(&self) -> Result<Transaction, LedgerError> {
        let begin = "begin isolation level repeatable read read only";
        Ok(self.history.begin_with(begin).await?)
    }
}

/// Makes Postgres plan each statement of this SQL transaction for its actual values. A generic plan would have to read all payments,
/// because it does not know which filters are null.
pub(super) async fn use_custom_plans(connection: &mut Connection) -> Result<(), LedgerError> {
    sqlx::query!("set local plan_cache_mode = force_custom_plan")
        .execute(connection)
        .await?;
    Ok(())
}

/// The payments of `rows`, each with its session.
pub(super) async fn with_sessions(
    connection: &mut Connection,
    rows: Vec<PaymentRow>,
) -> Result<Vec<Entry>, LedgerError> {
    let ids: Vec<Uuid> = rows.iter().map(|row| row.id).collect();
    let sessions = sqlx::query!(
        r#"select payment_id as "payment_id!", id, client_reference from sessions where payment_id = any($1)"#,
        &ids,
    )
    .fetch_all(connection)
    .await?;
    let mut sessions: HashMap<Uuid, PaidSession> = sessions
        .into_iter()
        .map(|row| {
            let (id, client_reference) = (row.id, row.client_reference);
            let session = PaidSession {
                id,
                client_reference,
            };
            (row.payment_id, session)
        })
        .collect();
    let entries = rows.into_iter().map(|row| {
        let session = sessions.remove(&row.id);
        Entry::new(row, session)
    });
    Ok(entries.collect())
}

#[cfg(test)]
mod tests;
