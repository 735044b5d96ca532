//! Gas budgets: what the operator's transactions cost in 24 hours, in total and for each payee, payer and key.
//!
//! A transaction is counted where its bytes are written, at what it may cost, and corrected by its receipt. Whoever counts locks the rows of
//! the hour, so that several lanes and processes together stay within a limit.

use alloy::primitives::{Address, U256};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::connections::Connection;
use super::{Ledger, LedgerError, Unreadable};
use crate::payment::KeyId;
use crate::protocol::Network;

/// A bucket counts for 24 hours after its last minute.
const COUNTS_FOR: Duration = Duration::hours(25);

/// Whose budget a transaction counts in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GasSubject {
    /// All transactions of the network.
    Network,
    Payee(Address),
    Payer(Address),
    /// The payments of the key's holder.
    Key(KeyId),
}

impl GasSubject {
    /// The name of its scope in the ledger.
    pub const fn scope(&self) -> &'static str {
        match self {
            Self::Network => "network",
            Self::Payee(_) => "payee",
            Self::Payer(_) => "payer",
            Self::Key(_) => "key",
        }
    }

    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Network => Vec::new(),
            Self::Payee(address) | Self::Payer(address) => address.to_vec(),
            Self::Key(id) => id.as_str().as_bytes().to_vec(),
        }
    }
}

impl std::fmt::Display for GasSubject {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Network => formatter.write_str("the network"),
            Self::Payee(address) => write!(formatter, "payee {address}"),
            Self::Payer(address) => write!(formatter, "payer {address}"),
            Self::Key(id) => write!(formatter, "key {id}"),
        }
    }
}

/// The share of a transaction's cost that one budget bears. The share of [`GasSubject::Network`] is the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GasShare {
    pub subject: GasSubject,
    /// In proportion to the gas of the network's share.
    pub gas: u64,
    /// Payments in it; none in a transaction without payments.
    pub payments: usize,
    /// Most wei in 24 hours.
    pub limit_wei: Option<U256>,
}

/// What a subject has spent in the last 24 hours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GasUse {
    pub subject: GasSubject,
    /// Cost of mined transactions.
    pub spent_wei: U256,
    /// Most that transactions without a receipt may cost.
    pub reserved_wei: U256,
}

/// A budget in which a transaction has no room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverBudget {
    pub subject: GasSubject,
    /// Most that one payment of the transaction may cost this subject.
    pub needs_wei: U256,
    /// What was left before the transaction.
    pub left_wei: U256,
    pub limit_wei: U256,
    /// When it has room for one payment. `None`: it has, or will have when open transactions have their receipts.
    pub until: Option<OffsetDateTime>,
}

/// One hour of a budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GasHour {
    pub hour: OffsetDateTime,
    pub spent_wei: U256,
    pub reserved_wei: U256,
}

/// When a further `needs` fits into a budget. `None`: as soon as open transactions have receipts that leave room, or at once. What exceeds
/// the whole limit is told the end of the day that counts.
pub fn fits_at(
    hours: &[GasHour],
    needs: U256,
    limit: U256,
    now: OffsetDateTime,
) -> Option<OffsetDateTime> {
    let fits = |spent: U256| spent.saturating_add(needs) <= limit;
    let sum = |hours: &[GasHour]| {
        let spent = hours.iter().map(|hour| hour.spent_wei);
        spent.fold(U256::ZERO, U256::saturating_add)
    };
    if fits(sum(hours)) {
        return None;
    }
    let ends = (1..=hours.len()).find_map(|gone| {
        let (gone, left) = hours.split_at(gone);
        let last = gone.last()?;
        fits(sum(left)).then_some(last.hour + COUNTS_FOR)
    });
    Some(ends.unwrap_or(now + COUNTS_FOR))
}

/// The shares of a transaction, as the statement that writes it takes them.
#[derive(Debug, Default)]
pub(super) struct ShareColumns {
    pub(super) scopes: Vec<String>,
    pub(super) subjects: Vec<Vec<u8>>,
    pub(super) gas: Vec<i64>,
    pub(super) wei: Vec<String>,
}

impl ShareColumns {
    pub(super) fn of(shares: &[GasShare], cost: U256) -> Self {
        let mut columns = Self::default();
        for share in shares {
            columns.scopes.push(share.subject.scope().to_owned());
            columns.subjects.push(share.subject.bytes());
            columns.gas.push(super::row::bigint(share.gas.max(1)));
            columns.wei.push(part(shares, share, cost).to_string());
        }
        columns
    }
}

/// The part of `cost` that a share bears. [`recount`] divides in the same way.
pub(super) fn part(shares: &[GasShare], share: &GasShare, cost: U256) -> U256 {
    let whole = shares
        .iter()
        .find(|share| share.subject == GasSubject::Network)
        .map_or(share.gas, |whole| whole.gas);
    let product = cost.saturating_mul(U256::from(share.gas.max(1)));
    product / U256::from(whole.max(1))
}

/// Changes what transactions count in their budgets: `spent` times their recorded cost and `reserved` times their reservation.
pub(super) async fn recount(
    connection: &mut Connection,
    transactions: &[Uuid],
    (spent, reserved): (i32, i32),
) -> Result<(), LedgerError> {
    // The rows are locked in the order in which `Ledger::write` locks them.
    sqlx::query!(
        "with change as (
            select t.network, share.scope, share.subject, date_bin('1 hour', t.created_at, timestamptz '1970-01-01 00:00:00+00') as hour,
                sum($2::int * div(t.spent_wei * share.gas, whole.gas)) as spent,
                sum($3::int * div(t.reserved_wei * share.gas, whole.gas)) as reserved
            from transactions t
            join gas_reservations whole on whole.transaction_id = t.id and whole.scope = 'network'
            join gas_reservations share on share.transaction_id = t.id
            where t.id = any($1) group by 1, 2, 3, 4
        ), locked as (
            select s.network, s.scope, s.subject, s.hour, change.spent, change.reserved from change join gas_spending s
                on (s.network, s.scope, s.subject, s.hour) = (change.network, change.scope, change.subject, change.hour)
            order by s.scope, s.subject, s.hour for no key update of s
        )
        update gas_spending s set spent_wei = s.spent_wei + locked.spent, reserved_wei = s.reserved_wei + locked.reserved
        from locked
        where (s.network, s.scope, s.subject, s.hour) = (locked.network, locked.scope, locked.subject, locked.hour)",
        transactions,
        spent,
        reserved,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Raises the reservation of an open transaction to what a new attempt may cost.
pub(super) async fn reserve_attempt(
    connection: &mut Connection,
    transaction: Uuid,
    cost: U256,
) -> Result<(), LedgerError> {
    let ids = [transaction];
    recount(connection, &ids, (0, -1)).await?;
    sqlx::query!(
        "update transactions set reserved_wei = greatest(reserved_wei, ($2::text)::numeric) where id = $1 and state = 'signed'",
        transaction,
        cost.to_string(),
    )
    .execute(&mut *connection)
    .await?;
    recount(connection, &ids, (0, 1)).await
}

/// The hours of a subject that count now, oldest first.
pub(super) async fn hours_of(
    connection: &mut Connection,
    network: Network,
    subject: GasSubject,
) -> Result<Vec<GasHour>, LedgerError> {
    let mut all = days_of(connection, network, &[subject]).await?;
    Ok(all.pop().unwrap_or_default())
}

async fn days_of(
    connection: &mut Connection,
    network: Network,
    subjects: &[GasSubject],
) -> Result<Vec<Vec<GasHour>>, LedgerError> {
    let scopes: Vec<String> = subjects.iter().map(|one| one.scope().to_owned()).collect();
    let bytes: Vec<Vec<u8>> = subjects.iter().map(GasSubject::bytes).collect();
    let rows = sqlx::query!(
        r#"select asked.position as "position!", s.hour, s.spent_wei::text as "spent!", s.reserved_wei::text as "reserved!"
        from unnest($2::text[], $3::bytea[]) with ordinality as asked (scope, subject, position)
        join gas_spending s on s.network = $1 and s.scope = asked.scope and s.subject = asked.subject
            and s.hour >= date_bin('1 hour', now(), timestamptz '1970-01-01 00:00:00+00') - interval '24 hours'
        order by asked.position, s.hour"#,
        network.to_string(),
        &scopes,
        &bytes,
    )
    .fetch_all(connection)
    .await?;
    let mut days = vec![Vec::new(); subjects.len()];
    for row in rows {
        let place = usize::try_from(row.position - 1).unwrap_or_default();
        if let Some(day) = days.get_mut(place) {
            day.push(GasHour {
                hour: row.hour,
                spent_wei: wei(&row.spent, "spent_wei")?,
                reserved_wei: wei(&row.reserved, "reserved_wei")?,
            });
        }
    }
    Ok(days)
}

pub(super) fn wei(text: &str, column: &'static str) -> Result<U256, LedgerError> {
    let unreadable = || Unreadable {
        table: "gas_spending",
        column,
        id: text.to_owned(),
    };
    Ok(text.parse().map_err(|_| unreadable())?)
}

impl Ledger {
    /// The hours of each subject that count now, oldest first.
    pub async fn gas_hours(
        &self,
        network: Network,
        subjects: &[GasSubject],
    ) -> Result<Vec<Vec<GasHour>>, LedgerError> {
        if subjects.is_empty() {
            return Ok(Vec::new());
        }
        let mut connection = self.engine.acquire().await?;
        days_of(&mut connection, network, subjects).await
    }

    /// Deletes hours and reservations that no budget and no reorg needs any more.
    pub async fn forget_gas_spending(&self) -> Result<(), LedgerError> {
        sqlx::query!("delete from gas_spending where hour < now() - interval '3 days'")
            .execute(&self.pool)
            .await?;
        // Ids begin with their time, so this reads the oldest rows alone.
        let before = self.clock().now() - Duration::days(3);
        let millis = u64::try_from(before.unix_timestamp()).unwrap_or_default() * 1_000;
        let oldest = uuid::Builder::from_unix_timestamp_millis(millis, &[0; 10]).into_uuid();
        sqlx::query!(
            "delete from gas_reservations r using transactions t
            where r.transaction_id < $1 and t.id = r.transaction_id and t.state <> 'signed'",
            oldest,
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
