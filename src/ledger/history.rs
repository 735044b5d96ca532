//! The payment history: filters, pages, timelines. Read-only.

use alloy::primitives::{Address, B256};
use time::OffsetDateTime;

use super::row::{PaymentRow, hash, select_payments};
use super::{Ledger, LedgerError};
use crate::payment::{Payment, PaymentId};
use crate::protocol::Network;

/// Which payments to list; an absent member filters nothing.
#[derive(Debug, Clone, Default)]
pub struct HistoryFilter {
    /// Who paid.
    pub payer: Option<Address>,
    /// Who was paid.
    pub payee: Option<Address>,
    /// Where.
    pub network: Option<Network>,
    /// In which token.
    pub asset: Option<Address>,
    /// In which state now.
    pub state: Option<&'static str>,
    /// Accepted at this time or later.
    pub from: Option<OffsetDateTime>,
    /// Accepted before this time.
    pub to: Option<OffsetDateTime>,
}

/// Where a page begins and how long it may be.
#[derive(Debug, Clone, Copy)]
pub struct Page {
    /// Only payments older than this one.
    pub before: Option<PaymentId>,
    /// At most this many.
    pub limit: u16,
}

/// One entry of a payment's timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub at: OffsetDateTime,
    /// What kind of thing.
    pub kind: String,
    /// State before, for changes of state.
    pub from_state: Option<String>,
    /// State after, for changes of state.
    pub to_state: Option<String>,
    /// Code, request id or explanation, according to the kind.
    pub reason: Option<String>,
    /// The transaction that was known then.
    pub transaction: Option<B256>,
}

impl Ledger {
    /// One page of the history, newest first.
    ///
    /// # Errors
    /// When the database fails or a row cannot be read.
    pub async fn history(
        &self,
        filter: &HistoryFilter,
        page: Page,
    ) -> Result<Vec<Payment>, LedgerError> {
        let rows: Vec<PaymentRow> = select_payments!(
            "where ($1::bytea is null or p.payer = $1) and ($2::bytea is null or p.payee = $2) and ($3::text is null or p.network = $3)
             and ($4::bytea is null or p.asset = $4) and ($5::text is null or p.state = $5)
             and ($6::timestamptz is null or p.created_at >= $6) and ($7::timestamptz is null or p.created_at < $7)
             and ($8::uuid is null or p.id < $8)
             order by p.id desc limit $9",
            filter.payer.as_ref().map(|address| address.as_slice()),
            filter.payee.as_ref().map(|address| address.as_slice()),
            filter.network.map(|network| network.to_string()),
            filter.asset.as_ref().map(|address| address.as_slice()),
            filter.state,
            filter.from,
            filter.to,
            page.before.map(|id| id.0),
            i64::from(page.limit),
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter().map(Payment::try_from).collect()
    }

    /// A payment and what happened to it, oldest first; both as of one moment.
    ///
    /// # Errors
    /// When the database fails or the row cannot be read.
    pub async fn life(&self, id: PaymentId) -> Result<Option<(Payment, Vec<Event>)>, LedgerError> {
        let mut snapshot = self
            .pool
            .begin_with("begin isolation level repeatable read read only")
            .await?;
        let row = select_payments!("where p.id = $1", id.0)
            .fetch_optional(&mut *snapshot)
            .await?;
        let Some(row) = row else {
            return Ok(None);
        };
        let rows = sqlx::query!(
            "select at, kind, from_state, to_state, reason, transaction_hash from events where payment_id = $1 order by id",
            id.0,
        )
        .fetch_all(&mut *snapshot)
        .await?;
        let events = rows.into_iter().map(|row| Event {
            at: row.at,
            kind: row.kind,
            from_state: row.from_state,
            to_state: row.to_state,
            reason: row.reason,
            transaction: row.transaction_hash.as_deref().and_then(hash),
        });
        Ok(Some((row.try_into()?, events.collect())))
    }
}
