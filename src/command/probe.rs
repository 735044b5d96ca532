//! What the endpoints of a configured network say now, for commands that run beside the service.

use std::time::Duration;

use alloy::primitives::U256;
use futures_util::future::join_all;
use time::OffsetDateTime;
use tokio::time::Instant;

use crate::chain::{FeePolicy, Head, Rpc, RpcError};
use crate::config::NetworkConfig;
use crate::protocol::Network;
use crate::server::rpc_with_urls;
use crate::settlement::{GAS_RESERVE_PAYMENTS, native_amount, payment_cost};

/// When the newest block is older than the time of this many blocks and a minute, the chain has stopped or the endpoint is behind.
const BLOCKS_LATE: u32 = 20;
/// The same where the time between blocks is not known.
const LATE_AFTER: Duration = Duration::from_mins(1);

/// One of the configured endpoints, by its number: its URL is a secret.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) number: usize,
    /// The newest block, and how long it took to get it.
    pub(super) found: Result<(Head, Duration), RpcError>,
}

/// Asks each endpoint alone.
pub(super) async fn endpoints(config: &NetworkConfig) -> Vec<Endpoint> {
    let numbered = config.rpc_urls.iter().zip(1..);
    let asked = numbered.map(|(url, number)| async move {
        let found = async {
            let alone = rpc_with_urls(config, std::slice::from_ref(url))?;
            alone.check_chain().await?;
            let began = Instant::now();
            Ok::<_, RpcError>((alone.newest().await?, began.elapsed()))
        };
        let found = found.await.map_err(|mut error| {
            // Its number among all URLs, not among the one that was asked.
            if let RpcError::WrongChain { number: shown, .. } = &mut error {
                *shown = number;
            }
            error
        });
        Endpoint { number, found }
    });
    join_all(asked).await
}

/// How old a block is; `None` for one of the future.
pub(super) fn age(head: &Head, now: OffsetDateTime) -> Option<Duration> {
    Duration::try_from(now - head.time).ok()
}

/// The age of its newest block from which on a chain counts as stopped.
pub(super) fn late_after(network: Network) -> Duration {
    let block_time = network.known().map_or(0, |known| known.block_time_ms);
    let blocks = Duration::from_millis(block_time.into()) * BLOCKS_LATE;
    blocks.max(LATE_AFTER)
}

/// The configured fees as the service pays them: with the node's tip, or with its gas price where the chain has no base fee.
pub(super) async fn fees(
    rpc: &Rpc,
    config: &NetworkConfig,
    head: &Head,
) -> Result<FeePolicy, RpcError> {
    Ok(match head.base_fee_wei {
        // A chain without priority fees does not have the method.
        Some(_) => match rpc.suggested_priority_fee().await {
            Ok(tip) => config.fees.with_priority_fee(tip),
            Err(_) => config.fees,
        },
        None => config.fees.with_gas_price(rpc.gas_price().await?),
    })
}

/// A signer's balance in payments.
#[derive(Debug, Clone, Copy)]
pub(super) struct Runway {
    pub(super) balance: U256,
    /// What a payment costs now.
    cost: U256,
}

impl Runway {
    pub(super) fn new(balance: U256, max_fee_wei: u128) -> Self {
        Self {
            balance,
            cost: payment_cost(max_fee_wei),
        }
    }

    pub(super) fn payments_left(self) -> Option<u64> {
        let left = self.balance.checked_div(self.cost)?;
        Some(u64::try_from(left).unwrap_or(u64::MAX))
    }

    /// Why a signer with this balance sends nothing, and how much it needs.
    pub(super) fn problem(self, network: Network) -> Option<String> {
        let needs = self.cost.saturating_mul(U256::from(GAS_RESERVE_PAYMENTS));
        (self.balance < needs).then(|| {
            format!(
                "has {}, and a payment costs about {}: it sends nothing below {} (gas for {GAS_RESERVE_PAYMENTS} payments); refill it",
                native(network, self.balance),
                native(network, self.cost),
                native(network, needs)
            )
        })
    }
}

/// An amount of the network's currency.
pub(super) fn native(network: Network, wei: U256) -> String {
    native_amount(wei, network.native_symbol().unwrap_or("ETH"))
}
