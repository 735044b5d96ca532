//! The feed of events: what happened to payments, signers, networks, budgets and keys, in one order for all readers.
//!
//! The order is that of the writing transaction, then of the id, and a page ends at the horizon below which every transaction has ended.
//! So no event appears behind a position that a reader has passed. A long transaction that writes, in any database of the server, holds the
//! feed back until it ends.

use std::fmt;
use std::str::FromStr;

use alloy::primitives::{Address, B256};
use time::OffsetDateTime;
use uuid::Uuid;

use super::row::{address, hash, shown_address};
use super::{Ledger, LedgerError};
use crate::payment::PaymentId;

/// Events that concern no payment are kept for so many days; those of payments are their history, and stay.
const KEPT_DAYS: i32 = 30;
/// Rows that one statement deletes or moves, so that it stays short.
const GROUP_MAX: i64 = 1000;

/// The types of events, as readers see them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EventType(&'static str);

impl EventType {
    /// Success was told to a request.
    pub const GRANTED: Self = Self("payment.granted");

    /// Every type.
    pub const ALL: [Self; 19] = [
        Self("payment.accepted"),
        Self("payment.sent"),
        Self("payment.settled"),
        Self::GRANTED,
        Self("payment.refused"),
        Self("payment.failed"),
        Self("payment.reorged"),
        Self("payment.quarantined"),
        Self("signer.low"),
        Self("signer.empty"),
        Self("signer.stopped"),
        Self("signer.paused"),
        Self("signer.resumed"),
        Self("network.down"),
        Self("network.up"),
        Self("budget.low"),
        Self("budget.exhausted"),
        Self("key.created"),
        Self("key.revoked"),
    ];

    pub const fn name(self) -> &'static str {
        self.0
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.0 == name)
    }

    /// The type of a row; `None`: a step that is not told, such as one more confirmation.
    fn of_row(kind: &str, from: Option<&str>, to: Option<&str>) -> Option<Self> {
        let step = match (kind, from, to) {
            ("state", _, Some("settled" | "late_settled")) => "settled",
            ("state", _, Some(state @ ("refused" | "failed"))) => state,
            // Also a refused payment that is presented again. After a reorg nothing new is accepted or sent.
            ("state", None, _) | ("state", Some("refused"), Some("queued")) => "accepted",
            ("state", Some("queued"), Some("inflight")) => "sent",
            ("granted" | "quarantined" | "reorged", ..) => kind,
            _ => return Self::named(kind),
        };
        Self::named(&format!("payment.{step}"))
    }
}

/// The types that a reader asks for: names, and with `.*` groups of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventTypes(Vec<EventType>);

impl EventTypes {
    pub fn contains(&self, kind: EventType) -> bool {
        self.0.contains(&kind)
    }
}

impl Default for EventTypes {
    fn default() -> Self {
        Self(EventType::ALL.to_vec())
    }
}

/// The text names a type that does not exist.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected types such as payment.settled or signer.*, separated by commas; these are {}", EventType::ALL.map(EventType::name).join(", "))]
pub struct UnknownEventType;

impl FromStr for EventTypes {
    type Err = UnknownEventType;

    fn from_str(text: &str) -> Result<Self, UnknownEventType> {
        let mut types = Vec::new();
        for asked in text.split(',').map(str::trim) {
            let matches = |name: &str| match asked.strip_suffix('*') {
                Some(group) if group.ends_with('.') => name.starts_with(group),
                _ => name == asked,
            };
            let mut matching = EventType::ALL
                .into_iter()
                .filter(|known| matches(known.0))
                .peekable();
            if matching.peek().is_none() {
                return Err(UnknownEventType);
            }
            for kind in matching {
                if !types.contains(&kind) {
                    types.push(kind);
                }
            }
        }
        Ok(Self(types))
    }
}

/// The place of an event in the feed. The text is for [`FromStr`] alone: its form may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct EventPosition {
    /// The transaction that wrote it.
    xact: u64,
    id: i64,
}

impl EventPosition {
    /// The place in two columns. A transaction that cannot be read is the beginning.
    pub(super) fn new(xact: &str, id: i64) -> Self {
        xact.parse()
            .map_or_else(|_| Self::default(), |xact| Self { xact, id })
    }

    /// The transaction, as a statement takes it.
    pub(super) fn xact_text(&self) -> String {
        self.xact.to_string()
    }

    pub(super) const fn id(&self) -> i64 {
        self.id
    }
}

impl fmt::Display for EventPosition {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.xact, self.id)
    }
}

/// The text is no position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected the nextCursor of a page, or the id of an event of the stream")]
pub struct InvalidPosition;

impl FromStr for EventPosition {
    type Err = InvalidPosition;

    fn from_str(text: &str) -> Result<Self, InvalidPosition> {
        let (xact, id) = text.split_once('.').ok_or(InvalidPosition)?;
        Ok(Self {
            xact: xact.parse().map_err(|_| InvalidPosition)?,
            id: id.parse().map_err(|_| InvalidPosition)?,
        })
    }
}

/// An event as it is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeedEvent {
    pub position: EventPosition,
    pub kind: EventType,
    pub at: OffsetDateTime,
    /// CAIP-2.
    pub network: Option<String>,
    pub payment: Option<EventPayment>,
    /// Address of the signer that it concerns.
    pub signer: Option<String>,
    /// The id of a key, or the subject of a budget.
    pub subject: Option<String>,
    /// The code of a refusal or failure, why a signer was stopped, or the id of the request that was told success.
    pub reason: Option<String>,
    /// The payment's transaction at that time.
    pub transaction: Option<B256>,
}

impl FeedEvent {
    /// The same whenever the event is told, and never that of another: a ledger that lost its last events, by a failover or a restore,
    /// counts their numbers again.
    pub fn public_id(&self) -> String {
        let microseconds = self.at.unix_timestamp_nanos() / 1_000;
        format!("evt_{microseconds}_{}", self.position.id)
    }
}

/// The payment of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventPayment {
    pub id: PaymentId,
    pub payer: String,
    pub payee: String,
    /// The payee as the keys of readers name it.
    pub payee_address: Option<Address>,
    pub asset: String,
    /// In atomic units.
    pub amount: String,
}

/// A part of the feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeedPage {
    pub events: Vec<FeedEvent>,
    /// The position of the last row that was read, also where it is not told.
    pub end: EventPosition,
    /// There may be more behind it now.
    pub more: bool,
}

impl FeedPage {
    /// Nothing, at a position.
    pub const fn empty_at(end: EventPosition) -> Self {
        Self {
            events: Vec::new(),
            end,
            more: false,
        }
    }
}

impl Ledger {
    /// The next part of the feed behind a position, from at most `limit` rows, with all types. `None`: no event has this position, because
    /// the ledger was restored from a backup, or the event was forgotten.
    pub async fn events_after(
        &self,
        after: EventPosition,
        limit: u16,
    ) -> Result<Option<FeedPage>, LedgerError> {
        let rows = sqlx::query!(
            r#"select e.xact::text as "xact!", e.id as "event_id!", e.payment_id, e.at, e.kind, e.from_state, e.to_state, e.reason,
                e.transaction_hash, coalesce(p.network, e.network) as network, e.signer, e.subject,
                p.payer as "payer?", p.payee as "payee?", p.asset as "asset?", p.amount::text as "amount?"
            from (
                -- The place itself comes too: it must exist.
                select * from events
                where xact is not null and (xact, id) >= (($1::text)::xid8, $2) and xact < pg_snapshot_xmin(pg_current_snapshot())
                order by xact, id limit $3
            ) e left join payments p on p.id = e.payment_id
            order by e.xact, e.id"#,
            after.xact.to_string(),
            after.id,
            i64::from(limit) + 1,
        )
        .fetch_all(&self.history)
        .await?;
        let begins = after == EventPosition::default();
        let found = rows.len();
        let mut page = FeedPage {
            events: Vec::new(),
            end: after,
            more: found > usize::from(limit),
        };
        let mut is_there = begins;
        for row in rows {
            let position = EventPosition {
                xact: row.xact.parse().unwrap_or_default(),
                id: row.event_id,
            };
            if position == after {
                is_there = true;
                continue;
            }
            page.end = position;
            let (from, to) = (row.from_state.as_deref(), row.to_state.as_deref());
            let Some(kind) = EventType::of_row(&row.kind, from, to) else {
                continue;
            };
            let payment = row.payer.zip(row.payee).zip(row.asset).zip(row.amount);
            page.events.push(FeedEvent {
                position,
                kind,
                at: row.at,
                network: row.network,
                payment: payment.map(|(((payer, payee), asset), amount)| EventPayment {
                    id: PaymentId(row.payment_id),
                    payer: shown_address(&payer),
                    payee: shown_address(&payee),
                    payee_address: address(&payee),
                    asset: shown_address(&asset),
                    amount,
                }),
                signer: row.signer.as_deref().map(shown_address),
                subject: row.subject,
                reason: row.reason,
                transaction: row.transaction_hash.as_deref().and_then(hash),
            });
        }
        Ok(is_there.then_some(page))
    }

    /// The place before the newest `rows` of the feed: where a reader begins that wants no earlier ones.
    pub async fn event_place(&self, rows: u16) -> Result<EventPosition, LedgerError> {
        let row = sqlx::query!(
            r#"select xact::text as "xact!", id from events
            where xact is not null and xact < pg_snapshot_xmin(pg_current_snapshot()) order by xact desc, id desc offset $1 limit 1"#,
            i64::from(rows),
        )
        .fetch_optional(&self.history)
        .await?;
        Ok(
            row.map_or_else(EventPosition::default, |row| EventPosition {
                xact: row.xact.parse().unwrap_or_default(),
                id: row.id,
            }),
        )
    }

    /// Gives events a new place whose transaction this server has not reached yet: a dump was restored into another server, which counts
    /// its own transactions. They come again at the end of the feed, in their order; without this they would come after everything new.
    pub async fn place_restored_events(&self) -> Result<u64, LedgerError> {
        let mut placed = 0;
        loop {
            let moved = sqlx::query!(
                "update events e set xact = pg_current_xact_id() from (
                    select payment_id, id from events where xact > pg_current_xact_id() order by xact, id limit $1
                ) foreign_rows where e.payment_id = foreign_rows.payment_id and e.id = foreign_rows.id",
                GROUP_MAX,
            )
            .execute(&self.history)
            .await?
            .rows_affected();
            placed += moved;
            if moved == 0 {
                return Ok(placed);
            }
        }
    }

    /// Deletes a group of old events that concern no payment.
    pub async fn forget_events(&self) -> Result<(), LedgerError> {
        sqlx::query!(
            "delete from events where payment_id = $1 and id = any(array(
                select id from events where payment_id = $1 and at < now() - make_interval(days => $2)
                -- Readers that are up to date stand at the newest one.
                and (xact is null or (xact, id) < (select xact, id from events where xact is not null order by xact desc, id desc limit 1))
                order by id limit $3
            ))",
            Uuid::nil(),
            KEPT_DAYS,
            GROUP_MAX,
        )
        .execute(&self.history)
        .await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
