//! Payers' accounts: the sum of what a payer has promised per token. Rows are locked while payments are accepted.

use std::collections::{HashMap, HashSet};

use alloy::primitives::{Address, U256};

use super::LedgerError;
use super::acceptance::NewPayment;
use super::connections::Connection;
use super::row::address;
use crate::payment::PaymentTerms;
use crate::protocol::Network;

/// One payer and one token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct AccountKey {
    network: Network,
    asset: Address,
    payer: Address,
}

/// A locked account row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Account {
    /// Atomic units of payments that may still move money.
    pub(super) held: U256,
    /// The part of `held` that Permit2 is to take. Counted only for payers with a limited allowance.
    pub(super) at_permit2: U256,
    /// Height of the newest block in which this payer paid. Older balances are stale.
    pub(super) settled_block: u64,
}

impl From<&PaymentTerms> for AccountKey {
    fn from(terms: &PaymentTerms) -> Self {
        Self {
            network: terms.network,
            asset: terms.asset,
            payer: terms.from,
        }
    }
}

fn parse_key(network: &str, asset: &[u8], payer: &[u8]) -> Option<AccountKey> {
    Some(AccountKey {
        network: network.parse().ok()?,
        asset: address(asset)?,
        payer: address(payer)?,
    })
}

/// Locks the payers' rows, always in the order of their keys, so that two transactions cannot deadlock.
pub(super) async fn lock(
    connection: &mut Connection,
    mut keys: Vec<AccountKey>,
) -> Result<HashMap<AccountKey, Account>, LedgerError> {
    keys.sort_unstable();
    keys.dedup();
    let mut accounts = lock_existing(connection, &keys).await?;
    if accounts.len() < keys.len() {
        let missing: Vec<AccountKey> = keys
            .into_iter()
            .filter(|key| !accounts.contains_key(key))
            .collect();
        let (networks, assets, payers) = columns(&missing);
        sqlx::query!(
            "insert into payer_accounts (network, asset, payer)
            select * from unnest($1::text[], $2::bytea[], $3::bytea[]) on conflict on constraint payer_accounts_pkey do nothing",
            &networks,
            &assets as _,
            &payers as _,
        )
        .execute(&mut *connection)
        .await?;
        accounts.extend(lock_existing(connection, &missing).await?);
    }
    Ok(accounts)
}

fn columns(keys: &[AccountKey]) -> (Vec<String>, Vec<&[u8]>, Vec<&[u8]>) {
    (
        keys.iter().map(|key| key.network.to_string()).collect(),
        keys.iter().map(|key| key.asset.as_slice()).collect(),
        keys.iter().map(|key| key.payer.as_slice()).collect(),
    )
}

async fn lock_existing(
    connection: &mut Connection,
    keys: &[AccountKey],
) -> Result<HashMap<AccountKey, Account>, LedgerError> {
    let (networks, assets, payers) = columns(keys);
    let rows = sqlx::query!(
        r#"select a.network, a.asset, a.payer, a.held::text as "held!", a.settled_block
        from payer_accounts a where (a.network, a.asset, a.payer) in (select * from unnest($1::text[], $2::bytea[], $3::bytea[]))
        order by a.network, a.asset, a.payer for update"#,
        &networks,
        &assets as _,
        &payers as _,
    )
    .fetch_all(connection)
    .await?;
    let mut accounts = HashMap::with_capacity(rows.len());
    for row in rows {
        let Some(key) = parse_key(&row.network, &row.asset, &row.payer) else {
            continue;
        };
        // An account that cannot be read counts as fully promised: only payments of this payer are refused.
        let held = row.held.parse();
        if held.is_err() || row.settled_block < 0 {
            tracing::error!(network = row.network, payer = %key.payer, asset = %key.asset, held = row.held, settled_block = row.settled_block, "payer account cannot be read: expected natural numbers; its payments are refused until payer_accounts is corrected");
        }
        let account = Account {
            held: held.unwrap_or(U256::MAX),
            at_permit2: U256::ZERO,
            settled_block: u64::try_from(row.settled_block).unwrap_or_default(),
        };
        accounts.insert(key, account);
    }
    Ok(accounts)
}

/// Sums what payers have promised out of limited allowances to Permit2, in one statement for all. Their accounts must be locked.
pub(super) async fn count_promises(
    connection: &mut Connection,
    new: &[NewPayment],
    accounts: &mut HashMap<AccountKey, Account>,
) -> Result<(), LedgerError> {
    let limited = |new: &&NewPayment| {
        let allowance = new.verified.allowance();
        allowance.is_some_and(|allowance| allowance != U256::MAX)
    };
    let keys = new.iter().filter(limited);
    let keys: HashSet<_> = keys
        .map(|new| AccountKey::from(&new.verified.candidate().terms))
        .collect();
    if keys.is_empty() {
        return Ok(());
    }
    let keys: Vec<AccountKey> = keys.into_iter().collect();
    let (networks, assets, payers) = columns(&keys);
    let rows = sqlx::query!(
        r#"select asked.network as "network!", asked.asset as "asset!", asked.payer as "payer!", promised.amount as "amount!"
        from unnest($1::text[], $2::bytea[], $3::bytea[]) as asked (network, asset, payer)
        cross join lateral (
            select coalesce(sum(amount), 0)::text as amount from payments
            where payer = asked.payer and asset = asked.asset and network = asked.network and permitted is not null
                and state in ('queued', 'inflight')
        ) promised"#,
        &networks,
        &assets as _,
        &payers as _,
    )
    .fetch_all(connection)
    .await?;
    for row in rows {
        let key = parse_key(&row.network, &row.asset, &row.payer);
        if let Some(account) = key.and_then(|key| accounts.get_mut(&key)) {
            // A sum above `U256::MAX` is above every allowance.
            account.at_permit2 = row.amount.parse().unwrap_or(U256::MAX);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
