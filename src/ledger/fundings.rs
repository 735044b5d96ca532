//! Gas money for payers: recorded before it is sent like every transaction, once per payment, within the operator's limits.

use alloy::primitives::{Address, U256};

use super::connections::Connection;
use super::outbox::NewTransaction;
use super::{Ledger, LedgerError, Recorded, Unreadable};
use crate::payment::{ApprovalLimits, PaymentId, Who};
use crate::protocol::{Network, Scheme};

/// Native currency that a payer is to receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Funding {
    /// The payment that needs it.
    pub payment: PaymentId,
    pub scheme: Scheme,
    pub payer: Address,
    /// Whose the payment is.
    pub caller: Option<Who>,
    pub wei: U256,
}

/// The fundings of the last 24 hours, in wei.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FundingTotals {
    /// To one payer.
    pub payer: U256,
    /// To all payers of the network, with the gas of the fundings themselves.
    pub all: U256,
}

impl FundingTotals {
    /// Whether another `wei` are within the limits.
    pub fn allows(&self, wei: U256, limits: ApprovalLimits) -> bool {
        let within = |given: U256, limit: u64| given.saturating_add(wei) <= U256::from(limit);
        within(self.payer, limits.wei_per_payer) && within(self.all, limits.wei_per_day)
    }
}

/// The state of a payment's funding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FundingState {
    /// None was recorded.
    Never,
    /// Its transaction is recorded and open.
    Sent,
    /// Its transaction is in a block and has transferred the money.
    Mined,
    /// Its transaction is in a block and has transferred nothing: it reverted, or an empty transaction replaced it.
    Failed,
}

impl Ledger {
    /// The fundings of the last 24 hours.
    pub async fn funding_totals(
        &self,
        network: Network,
        payer: Address,
    ) -> Result<FundingTotals, LedgerError> {
        let mut connection = self.engine.acquire().await?;
        funding_totals(&mut connection, network, payer).await
    }

    pub async fn funding_state(&self, payment: PaymentId) -> Result<FundingState, LedgerError> {
        let row = sqlx::query!(
            r#"select t.state, coalesce(t.succeeded and not a.empty, false) as "gave!"
            from fundings f join transactions t on t.id = f.transaction_id left join attempts a on a.hash = t.hash
            where f.payment_id = $1"#,
            payment.0,
        )
        .fetch_optional(&self.engine)
        .await?;
        Ok(match row {
            None => FundingState::Never,
            Some(row) if row.state == "signed" => FundingState::Sent,
            Some(row) if row.gave => FundingState::Mined,
            Some(_) => FundingState::Failed,
        })
    }

    /// Writes the transaction of a funding. `None`: nothing was written, because the payment has a funding already, is not queued any
    /// more, or the funding is above the limits.
    ///
    /// # Errors
    /// The commit may have happened: read the lane again before using the nonce.
    pub async fn record_funding(
        &self,
        new: &NewTransaction<'_>,
        funding: Funding,
        limits: ApprovalLimits,
    ) -> Result<Option<Recorded>, LedgerError> {
        let network = new.lane.network;
        let mut transaction = self.engine.begin().await?;
        // Locks the network's row: one funding of a network at a time, so that two lanes together stay within the limits.
        sqlx::query!(
            "select from networks where network = $1 for no key update",
            network.to_string(),
        )
        .fetch_optional(&mut *transaction)
        .await?;
        let not_wanted = sqlx::query_scalar!(
            r#"select exists (select from fundings where payment_id = $1)
                or not exists (select from payments where id = $1 and state = 'queued') as "known!""#,
            funding.payment.0,
        )
        .fetch_one(&mut *transaction)
        .await?;
        let given = funding_totals(&mut transaction, network, funding.payer).await?;
        if not_wanted || !given.allows(funding.wei, limits) {
            return Ok(None);
        }
        let recorded = self.write(&mut transaction, new).await?;
        if let Recorded::Written(id, _) = recorded {
            sqlx::query!(
                "insert into fundings (payment_id, network, payer, wei, transaction_id)
                values ($1, $2, $3, ($4::text)::numeric, $5)",
                funding.payment.0,
                network.to_string(),
                funding.payer.as_slice(),
                funding.wei.to_string(),
                id,
            )
            .execute(&mut *transaction)
            .await?;
            transaction.commit().await?;
        }
        Ok(Some(recorded))
    }
}

async fn funding_totals(
    connection: &mut Connection,
    network: Network,
    payer: Address,
) -> Result<FundingTotals, LedgerError> {
    let row = sqlx::query!(
        r#"select coalesce(sum(given) filter (where payer = $2), 0)::text as "payer!", coalesce(sum(given + gas), 0)::text as "all!"
        from (
            select f.payer, case when gave_nothing then 0 else f.wei end as given,
                -- A payer that lacks a few wei costs the gas of the funding all the same.
                case when t.state = 'mined' then t.spent_wei - case when gave_nothing then 0 else least(f.wei, t.spent_wei) end
                    else greatest(t.reserved_wei - f.wei, 0) end as gas
            from fundings f join transactions t on t.id = f.transaction_id
            left join attempts a on a.hash = t.hash
            -- It reverted, or an empty transaction took its place.
            cross join lateral (select coalesce(t.state = 'mined' and (a.empty or not t.succeeded), false) as gave_nothing) result
            where f.network = $1 and f.created_at > now() - interval '24 hours'
        ) counted"#,
        network.to_string(),
        payer.as_slice(),
    )
    .fetch_one(connection)
    .await?;
    let bad = || Unreadable {
        table: "fundings",
        column: "wei",
        id: payer.to_string(),
    };
    Ok(FundingTotals {
        payer: row.payer.parse().map_err(|_| bad())?,
        all: row.all.parse().map_err(|_| bad())?,
    })
}

#[cfg(test)]
mod tests;
