//! Counts and sums over the history. Read-only.

use time::Date;

use super::history::{HistoryFilter, filtered, use_custom_plans};
use super::row::shown_address;
use super::{Ledger, LedgerError};

/// The columns to group by, besides network and token. Amounts of different tokens are never added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Grouping {
    /// The day of acceptance, UTC.
    pub day: bool,
    pub payee: bool,
    /// The current state.
    pub state: bool,
}

/// A group of payments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// The day of acceptance, UTC, if grouped by it.
    pub day: Option<Date>,
    /// Address of the payee, if grouped by it.
    pub payee: Option<String>,
    /// CAIP-2.
    pub network: String,
    /// Address of the token.
    pub asset: String,
    /// The current state, if grouped by it.
    pub state: Option<String>,
    /// Number of payments.
    pub payments: u64,
    /// Their sum in atomic units, a decimal integer that may be wider than one amount.
    pub amount: String,
}

/// The statement of [`Ledger::stats`], to which the filter is appended.
macro_rules! select_groups {
    ($rest:literal $(+ $more:literal)* $(, $argument:expr)* $(,)?) => {
        sqlx::query!(
            r#"select case when $15 then (p.created_at at time zone 'UTC')::date end as day, case when $16 then p.payee end as payee,
                p.network, p.asset, case when $17 then p.state end as state, count(*) as "payments!", sum(p.amount)::text as "amount!"
            from payments p "# + $rest $(+ $more)*
            $(, $argument)*
        )
    };
}

impl Ledger {
    /// At most `limit` groups of payments, the newest days first.
    pub async fn stats(
        &self,
        filter: &HistoryFilter,
        grouping: Grouping,
        limit: u16,
    ) -> Result<Vec<Group>, LedgerError> {
        let mut snapshot = self.snapshot().await?;
        use_custom_plans(&mut snapshot).await?;
        let rows = filtered!(select_groups!(
            filter,
            "group by 1, 2, 3, 4, 5 order by 1 desc nulls last, 2, 3, 4, 5 limit $18",
            grouping.day,
            grouping.payee,
            grouping.state,
            i64::from(limit),
        ))
        .fetch_all(&mut *snapshot)
        .await?;
        let groups = rows.into_iter().map(|row| Group {
            day: row.day,
            payee: row.payee.as_deref().map(shown_address),
            network: row.network,
            asset: shown_address(&row.asset),
            state: row.state,
            payments: u64::try_from(row.payments).unwrap_or_default(),
            amount: row.amount,
        });
        Ok(groups.collect())
    }
}

#[cfg(test)]
mod tests;
