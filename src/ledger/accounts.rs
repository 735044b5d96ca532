//! What payers have promised: their account rows, locked while promises are made.

use std::collections::{HashMap, HashSet};

use alloy::primitives::{Address, U256};

use super::LedgerError;
use super::acceptance::NewPayment;
use super::connections::Connection;
use super::row::address;
use crate::payment::Candidate;
use crate::protocol::Network;

/// Whose promises, in which token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct AccountKey {
    network: Network,
    asset: Address,
    payer: Address,
}

/// A payer's row, locked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Account {
    pub(super) held: U256,
    /// The part of it that Permit2 is to take; known only where it matters.
    pub(super) at_permit2: U256,
    pub(super) settled_block: u64,
}

impl From<&Candidate> for AccountKey {
    fn from(candidate: &Candidate) -> Self {
        Self {
            network: candidate.network,
            asset: candidate.asset,
            payer: candidate.authorization.from,
        }
    }
}

fn key_of(network: &str, asset: &[u8], payer: &[u8]) -> Option<AccountKey> {
    Some(AccountKey {
        network: network.parse().ok()?,
        asset: address(asset)?,
        payer: address(payer)?,
    })
}

/// Locks the payers' rows, in one order for everybody.
pub(super) async fn lock(
    connection: &mut Connection,
    mut keys: Vec<AccountKey>,
) -> Result<HashMap<AccountKey, Account>, LedgerError> {
    keys.sort_unstable();
    keys.dedup();
    let mut accounts = lock_known(connection, &keys).await?;
    if accounts.len() < keys.len() {
        let unknown: Vec<AccountKey> = keys
            .into_iter()
            .filter(|key| !accounts.contains_key(key))
            .collect();
        let (networks, assets, payers) = columns(&unknown);
        sqlx::query!(
            "insert into payer_accounts (network, asset, payer)
            select * from unnest($1::text[], $2::bytea[], $3::bytea[]) on conflict on constraint payer_accounts_pkey do nothing",
            &networks,
            &assets as _,
            &payers as _,
        )
        .execute(&mut *connection)
        .await?;
        accounts.extend(lock_known(connection, &unknown).await?);
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

async fn lock_known(
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
        let Some(key) = key_of(&row.network, &row.asset, &row.payer) else {
            continue;
        };
        // One that cannot be read has promised all that it has: it concerns its payer, and nobody else.
        let held = row.held.parse();
        if held.is_err() || row.settled_block < 0 {
            tracing::error!(network = row.network, payer = %key.payer, held = row.held, settled_block = row.settled_block, "payer account cannot be read: expected natural numbers; its payments are refused until payer_accounts is corrected");
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

/// Reads what payers have promised out of their allowances to Permit2, where that is limited: one statement for all. Their accounts are locked.
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
    let keys: HashSet<AccountKey> = keys.map(|new| new.verified.candidate().into()).collect();
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
        let key = key_of(&row.network, &row.asset, &row.payer);
        if let Some(account) = key.and_then(|key| accounts.get_mut(&key)) {
            // A sum beyond any amount is beyond any allowance.
            account.at_permit2 = row.amount.parse().unwrap_or(U256::MAX);
        }
    }
    Ok(())
}
