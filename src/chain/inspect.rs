//! Checks endpoints and contracts of a network against its configuration: at the start, and endpoints every few seconds.

use std::time::Duration;

use alloy::primitives::{Address, B256, U256};
use alloy::sol;
use futures_util::future::join_all;
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::chain::rpc::{Chain, Endpoint};
use crate::chain::{Head, Rpc, RpcError, RpcResult};
use crate::payment::{Asset, Proxies};
use crate::protocol::permit2::{EXACT_PROXY, PERMIT2, UPTO_PROXY};

/// How often the endpoints of a network are compared with each other.
const COMPARE_INTERVAL: Duration = Duration::from_secs(3);

sol! {
    interface TokenMetadata {
        /// ERC-20 says `uint8`; decoded as `uint256`, so that a larger value is noticed.
        function decimals() external view returns (uint256);
        function name() external view returns (string);
        function version() external view returns (string);
        function DOMAIN_SEPARATOR() external view returns (bytes32);
        function allowance(address owner, address spender) external view returns (uint256);
    }
}

/// Most characters of a token's name or version in an error: they come from the contract and can be any text.
const METADATA_CHARS_MAX: usize = 60;

/// A contradiction between a configured token and the chain. Each message names what was expected, what was found, and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenProblem {
    /// There is no contract at the address.
    #[error("there is no contract at the asset's address {0}; correct assets, or the RPC URL")]
    NoCode(Address),
    /// There is a contract without `decimals()`.
    #[error(
        "the contract {0} does not say how many decimals it has, as every token does; correct assets"
    )]
    NoDecimals(Address),
    /// It has other decimals than configured, so amounts would be wrong.
    #[error("the token {token} has {found} decimals, configured are {configured}; correct assets")]
    Decimals {
        token: Address,
        configured: u8,
        found: U256,
    },
    /// It has no `DOMAIN_SEPARATOR()`, so the EIP-712 digest of its payers' signatures is unknown.
    #[error(
        "the token {0} does not say its EIP-712 domain (DOMAIN_SEPARATOR), so its signatures cannot be checked; correct assets, or say transfer_method = \"permit2\" and eip2612 = false of it"
    )]
    NoDomain(Address),
    /// Its EIP-712 domain separator differs, so payers would sign another digest.
    #[error(
        "the token {token} has another EIP-712 domain than name {name:?} and version {version:?}: its separator is {found}, expected is {expected}; correct assets{reported}"
    )]
    Domain {
        token: Address,
        /// Configured name.
        name: String,
        /// Configured version.
        version: String,
        /// The domain separator computed from the configuration.
        expected: B256,
        /// The domain separator that the token returned.
        found: B256,
        /// The end of the message with the name and version that the token returned; empty if it returned neither.
        reported: String,
    },
}

/// Endpoints.
impl Rpc {
    /// Checks that every endpoint that answers serves the configured chain.
    ///
    /// # Errors
    /// [`RpcError::WrongChain`] for the first that does not; [`RpcError::Unreachable`] when none answers.
    pub async fn check_chain(&self) -> RpcResult<()> {
        let mut answered = false;
        for (number, endpoint) in (1..).zip(self.endpoints.iter()) {
            let Ok(found) = endpoint.chain_id().await else {
                continue;
            };
            answered = true;
            let configured = self.network.chain_id();
            if found != configured {
                return Err(RpcError::WrongChain {
                    number,
                    configured,
                    found,
                });
            }
        }
        if answered {
            Ok(())
        } else {
            Err(RpcError::Unreachable)
        }
    }

    /// Compares the endpoints with each other until it is dropped: an endpoint with old blocks is read from last, one that serves another
    /// chain is not used. With a single endpoint there is nothing to compare.
    pub async fn compare(self) {
        if self.endpoints.len() < 2 {
            std::future::pending::<()>().await;
        }
        let mut ticks = interval(COMPARE_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let endpoints = self.endpoints.iter().enumerate();
            join_all(endpoints.map(|(index, endpoint)| self.check_endpoint(index, endpoint))).await;
        }
    }

    async fn check_endpoint(&self, index: usize, endpoint: &Endpoint) {
        let Ok(found) = endpoint.chain_id().await else {
            return endpoint.health().record_failure(Instant::now(), true);
        };
        let (network, number) = (self.network, index + 1);
        let chain = if found == network.chain_id() {
            Chain::Configured
        } else {
            Chain::Other
        };
        let before = std::mem::replace(&mut endpoint.health().chain, chain);
        if chain == Chain::Other {
            if before != chain {
                tracing::error!(%network, endpoint = number, chain = %found, "endpoint excluded: it serves another chain");
            }
            return;
        }
        if before != chain {
            tracing::info!(%network, endpoint = number, "endpoint used again: it serves the configured chain");
        }
        let newest = endpoint.newest().await;
        let now = Instant::now();
        match newest {
            Ok(head) => endpoint.health().record_head(now, head),
            Err(_) => endpoint.health().record_failure(now, true),
        }
        let has_overrides = endpoint.health().has_overrides;
        if !has_overrides && let Ok(has) = endpoint.probe_overrides().await {
            self.record_overrides(index, has);
        }
    }

    /// Tests every endpoint for state overrides. The record of an endpoint that does not answer stays unchanged.
    ///
    /// # Errors
    /// [`RpcError::NoOverrides`] when every endpoint lacks them; another error when none has them and one gave no answer.
    pub async fn check_overrides(&self) -> RpcResult<()> {
        let mut last = RpcError::NoOverrides;
        let mut supporting = false;
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            match endpoint.probe_overrides().await {
                Ok(has) => {
                    self.record_overrides(index, has);
                    supporting |= has;
                }
                Err(error) => last = error,
            }
        }
        if supporting { Ok(()) } else { Err(last) }
    }
}

/// What providers allow.
impl Rpc {
    /// The number of blocks that one call for logs may cover, as the endpoints accept it now; at most a thousand, and on a young chain
    /// all of it.
    pub async fn log_blocks(&self, head: &Head) -> RpcResult<u64> {
        // A filter that no log matches.
        let filter = (json!([PERMIT2]), json!([B256::ZERO]));
        let (_, from) = self.logs_up_to(&filter, 0, head.number).await?;
        Ok((head.number + 1).saturating_sub(from))
    }
}

/// Contracts.
impl Rpc {
    /// Checks a configured token; `None` if the chain agrees with the configuration.
    ///
    /// # Errors
    /// When the RPC fails, which says nothing about the token.
    pub async fn token_problem(&self, asset: &Asset) -> RpcResult<Option<TokenProblem>> {
        let token = asset.address;
        if !self.has_code(token).await? {
            return Ok(Some(TokenProblem::NoCode(token)));
        }
        let decimals = self.optional_view(token, TokenMetadata::decimalsCall {});
        let Some(decimals) = decimals.await? else {
            return Ok(Some(TokenProblem::NoDecimals(token)));
        };
        if decimals != U256::from(asset.decimals) {
            return Ok(Some(TokenProblem::Decimals {
                token,
                configured: asset.decimals,
                found: decimals,
            }));
        }
        let separator = self.optional_view(token, TokenMetadata::DOMAIN_SEPARATORCall {});
        match separator.await? {
            Some(found) if found == asset.separator.0 => Ok(None),
            Some(found) => self.domain_mismatch(asset, found).await.map(Some),
            None if asset.uses_own_domain() => Ok(Some(TokenProblem::NoDomain(token))),
            None => Ok(None),
        }
    }

    async fn domain_mismatch(&self, asset: &Asset, found: B256) -> RpcResult<TokenProblem> {
        let token = asset.address;
        let name = self.optional_view(token, TokenMetadata::nameCall {});
        let name = name.await?;
        let version = self.optional_view(token, TokenMetadata::versionCall {});
        let version = version.await?;
        let quoted = |what, value: Option<String>| {
            let value: String = value?.chars().take(METADATA_CHARS_MAX).collect();
            Some(format!("{what} {value:?}"))
        };
        let values = [quoted("name", name), quoted("version", version)];
        let values: Vec<_> = values.into_iter().flatten().collect();
        let reported = if values.is_empty() {
            String::new()
        } else {
            format!(": the token itself says {}", values.join(" and "))
        };
        Ok(TokenProblem::Domain {
            token,
            name: asset.name.clone(),
            version: asset.version.clone(),
            expected: asset.separator.0,
            found,
            reported,
        })
    }

    /// Which proxies are deployed; none where Permit2 is not.
    pub async fn proxies(&self) -> RpcResult<Proxies> {
        if !self.has_code(PERMIT2).await? {
            return Ok(Proxies::default());
        }
        Ok(Proxies {
            exact: self.has_code(EXACT_PROXY).await?,
            upto: self.has_code(UPTO_PROXY).await?,
        })
    }

    /// The allowance of Permit2 for an account's token.
    pub async fn allowance(&self, token: Address, owner: Address) -> RpcResult<U256> {
        let spender = PERMIT2;
        let allowance = TokenMetadata::allowanceCall { owner, spender };
        self.view(token, allowance).await
    }
}
