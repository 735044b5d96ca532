//! Processes with their leases, and the identity of the chains that the ledger belongs to.

use alloy::primitives::B256;
use uuid::Uuid;

use super::{Ledger, LedgerError};
use crate::payment::Proxies;
use crate::protocol::Network;

/// One start of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProcessId(pub Uuid);

impl Ledger {
    /// Inserts a row for this process; everything that the process writes refers to it.
    pub async fn begin_process(&self) -> Result<(), LedgerError> {
        let now = sqlx::query_scalar!(
            r#"insert into processes (id, version, lease_until) values ($1, $2, now() + make_interval(secs => $3))
            returning now() as "now!""#,
            self.process.0,
            env!("CARGO_PKG_VERSION"),
            self.timing.process_lease.as_secs_f64(),
        )
        .fetch_one(&self.leases)
        .await?;
        self.clock.set(now);
        Ok(())
    }

    /// Renews the lease of this process, records the networks that it serves, and sets its clock.
    pub async fn renew_process(&self, serves: &[Network]) -> Result<(), LedgerError> {
        let serves: Vec<String> = serves.iter().map(Network::to_string).collect();
        let now = sqlx::query_scalar!(
            r#"update processes set lease_until = now() + make_interval(secs => $3), serves = $2 where id = $1 returning now() as "now!""#,
            self.process.0,
            &serves,
            self.timing.process_lease.as_secs_f64(),
        )
        .fetch_optional(&self.leases)
        .await?;
        if let Some(now) = now {
            self.clock.set(now);
        }
        Ok(())
    }

    /// Records an orderly end of this process: its lanes can be claimed at once, and its unanswered grants are void.
    /// On an error the leases run out by themselves.
    pub async fn end_process(&self) -> Result<(), LedgerError> {
        let mut transaction = self.leases.begin().await?;
        sqlx::query!(
            "update lanes set owner = null, lease_until = now() where owner = $1",
            self.process.0,
        )
        .execute(&mut *transaction)
        .await?;
        sqlx::query!(
            "update processes set ended_at = now(), lease_until = now() where id = $1",
            self.process.0,
        )
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(())
    }

    /// Checks by the hash of the genesis block that `network` is the chain that this ledger was started on. The first call records the
    /// hash.
    ///
    /// # Errors
    /// [`LedgerError::OtherChain`] when it is another chain.
    pub async fn check_genesis(&self, network: Network, genesis: B256) -> Result<(), LedgerError> {
        let name = network.to_string();
        let recorded = sqlx::query_scalar!(
            "with known as (
                insert into networks (network, genesis_hash) values ($1, $2)
                on conflict on constraint networks_pkey do nothing
                returning genesis_hash
            )
            select genesis_hash as \"hash!\" from known
            union all
            select genesis_hash from networks where network = $1",
            name,
            genesis.as_slice(),
        )
        .fetch_one(&self.pool)
        .await?;
        if recorded == genesis.as_slice() {
            return Ok(());
        }
        let recorded = alloy::hex::encode_prefixed(recorded);
        Err(LedgerError::OtherChain {
            network: name,
            recorded,
            found: genesis.to_string(),
        })
    }

    /// The proxies that a network had when its chain was last asked.
    pub async fn proxies(&self, network: Network) -> Result<Proxies, LedgerError> {
        let row = sqlx::query!(
            "select exact_proxy, upto_proxy from networks where network = $1",
            network.to_string(),
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(row.map_or_else(Proxies::default, |row| Proxies {
            exact: row.exact_proxy,
            upto: row.upto_proxy,
        }))
    }

    /// Records which proxies a network has.
    pub async fn note_proxies(&self, network: Network, found: Proxies) -> Result<(), LedgerError> {
        sqlx::query!(
            "update networks set exact_proxy = $2, upto_proxy = $3
            where network = $1 and (exact_proxy, upto_proxy) <> ($2, $3)",
            network.to_string(),
            found.exact,
            found.upto,
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
