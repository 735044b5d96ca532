//! Figures of the ledger for the operator's page: sums by time, seller, signer and code. Read-only, and over a bounded time.

use alloy::primitives::{Address, U256};
use time::OffsetDateTime;
use uuid::Uuid;

use super::row::{address, shown_address};
use super::{Ledger, LedgerError};
use crate::protocol::Network;

/// Payments of one token in one length of time whose money was transferred.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bar {
    /// Its beginning.
    pub at: OffsetDateTime,
    /// CAIP-2.
    pub network: String,
    /// Address of the token.
    pub asset: String,
    pub payments: u64,
    /// In atomic units; may be wider than one amount.
    pub amount: String,
}

/// What a payee was paid in one token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Earned {
    pub payee: String,
    /// CAIP-2.
    pub network: String,
    /// Address of the token.
    pub asset: String,
    pub payments: u64,
    /// In atomic units; may be wider than one amount.
    pub amount: String,
    /// When the newest of the payments was accepted.
    pub newest: OffsetDateTime,
}

/// From the acceptance of a payment until success was told, over some of the newest payments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SettleTimes {
    pub payments: u64,
    /// Half of them took this long or less, in milliseconds.
    pub median_ms: u64,
    /// 95 of a hundred took this long or less.
    pub slow_ms: u64,
}

/// Refusals with one code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CodeCount {
    pub code: String,
    pub refusals: u64,
    pub newest: OffsetDateTime,
}

/// What the transactions of a signer have cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignerCost {
    pub network: Network,
    pub signer: Address,
    pub transactions: u64,
    pub wei: U256,
}

impl Ledger {
    /// Payments accepted since `from` whose money was transferred, by lengths of `seconds` from the epoch on, and by token.
    pub async fn bars(
        &self,
        payee: Option<Address>,
        from: OffsetDateTime,
        seconds: u32,
    ) -> Result<Vec<Bar>, LedgerError> {
        let rows = sqlx::query!(
            r#"select date_bin(make_interval(secs => $3), created_at, timestamptz '1970-01-01 00:00:00+00') as "at!", network, asset,
                count(*) as "payments!", sum(amount)::text as "amount!"
            from payments
            where created_at >= $2 and ($1::bytea is null or payee = $1) and state in ('mined', 'settled', 'final', 'late_settled')
            group by 1, 2, 3 order by 1, 2, 3"#,
            payee.as_ref().map(|payee| payee.as_slice()),
            from,
            f64::from(seconds),
        )
        .fetch_all(&self.history)
        .await?;
        let bars = rows.into_iter().map(|row| Bar {
            at: row.at,
            network: row.network,
            asset: shown_address(&row.asset),
            payments: unsigned(row.payments),
            amount: row.amount,
        });
        Ok(bars.collect())
    }

    /// What payees were paid since `from`: at most `limit` rows, the payees with most payments first.
    pub async fn earned(
        &self,
        from: OffsetDateTime,
        limit: u16,
    ) -> Result<Vec<Earned>, LedgerError> {
        let rows = sqlx::query!(
            r#"select payee, network, asset, count(*) as "payments!", sum(amount)::text as "amount!", max(created_at) as "newest!"
            from payments where created_at >= $1 and state in ('mined', 'settled', 'final', 'late_settled')
            group by 1, 2, 3 order by 4 desc, 1, 2, 3 limit $2"#,
            from,
            i64::from(limit),
        )
        .fetch_all(&self.history)
        .await?;
        let earned = rows.into_iter().map(|row| Earned {
            payee: shown_address(&row.payee),
            network: row.network,
            asset: shown_address(&row.asset),
            payments: unsigned(row.payments),
            amount: row.amount,
            newest: row.newest,
        });
        Ok(earned.collect())
    }

    /// How long the newest payments took, of at most `limit`; `None`: success was told for none of them.
    pub async fn settle_times(&self, limit: u16) -> Result<Option<SettleTimes>, LedgerError> {
        let row = sqlx::query!(
            r#"select count(*) as "payments!", percentile_disc(0.5) within group (order by took) as median,
                percentile_disc(0.95) within group (order by took) as slow
            from (
                select (extract(epoch from g.granted_at - p.created_at) * 1000)::bigint as took
                from (select id, created_at from payments order by created_at desc, id desc limit $1) p
                join grants g on g.payment_id = p.id
            ) newest"#,
            i64::from(limit),
        )
        .fetch_one(&self.history)
        .await?;
        let times = row.median.zip(row.slow);
        Ok(times.map(|(median, slow)| SettleTimes {
            payments: unsigned(row.payments),
            median_ms: unsigned(median),
            slow_ms: unsigned(slow),
        }))
    }

    /// Refusals since `from` by code, the most frequent first, at most `limit` codes.
    pub async fn refusals_by_code(
        &self,
        from: OffsetDateTime,
        limit: u16,
    ) -> Result<Vec<CodeCount>, LedgerError> {
        let rows = sqlx::query!(
            r#"select code, count(*) as "refusals!", max(at) as "newest!" from refusals where id >= $1
            group by 1 order by 2 desc, 1 limit $2"#,
            first_id(from),
            i64::from(limit),
        )
        .fetch_all(&self.history)
        .await?;
        let codes = rows.into_iter().map(|row| CodeCount {
            code: row.code,
            refusals: unsigned(row.refusals),
            newest: row.newest,
        });
        Ok(codes.collect())
    }

    /// What the transactions of each signer have cost that were written since `from`.
    pub async fn signer_costs(&self, from: OffsetDateTime) -> Result<Vec<SignerCost>, LedgerError> {
        let rows = sqlx::query!(
            r#"select network, signer, count(*) as "transactions!", sum(spent_wei)::text as "wei!"
            from transactions where id >= $1 group by 1, 2 order by 1, 2"#,
            first_id(from),
        )
        .fetch_all(&self.history)
        .await?;
        let costs = rows.into_iter().filter_map(|row| {
            Some(SignerCost {
                network: row.network.parse().ok()?,
                signer: address(&row.signer)?,
                transactions: unsigned(row.transactions),
                wei: row.wei.parse().ok()?,
            })
        });
        Ok(costs.collect())
    }
}

/// The lowest UUID v7 of a time: ids begin with theirs, so the primary key finds the rows since then.
fn first_id(at: OffsetDateTime) -> Uuid {
    let millis = at.unix_timestamp_nanos().max(0) / 1_000_000;
    let millis = u64::try_from(millis).unwrap_or_default();
    uuid::Builder::from_unix_timestamp_millis(millis, &[0; 10]).into_uuid()
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

#[cfg(test)]
mod tests;
