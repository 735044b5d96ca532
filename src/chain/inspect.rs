//! Checks a network's configured tokens against the chain.

use alloy::primitives::{Address, B256, U256};
use alloy::sol;
use alloy::sol_types::SolCall;

use crate::chain::{Rpc, RpcError};
use crate::payment::Asset;

sol! {
    interface TokenMetadata {
        /// ERC-20 says `uint8`; decoded as `uint256`, so that a larger value is noticed.
        function decimals() external view returns (uint256);
        function name() external view returns (string);
        function version() external view returns (string);
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

impl Rpc {
    /// Checks a configured token; `None` if the chain agrees with the configuration.
    ///
    /// # Errors
    /// When the RPC fails, which says nothing about the token.
    pub async fn token_problem(&self, asset: &Asset) -> Result<Option<TokenProblem>, RpcError> {
        let token = asset.address;
        if !self.has_code(token).await? {
            return Ok(Some(TokenProblem::NoCode(token)));
        }
        let Some(decimals) = self
            .call_optional(token, TokenMetadata::decimalsCall {})
            .await?
        else {
            return Ok(Some(TokenProblem::NoDecimals(token)));
        };
        if decimals != U256::from(asset.decimals) {
            return Ok(Some(TokenProblem::Decimals {
                token,
                configured: asset.decimals,
                found: decimals,
            }));
        }
        match self.domain_separator(token).await? {
            Some(found) if found == asset.separator.0 => Ok(None),
            Some(found) => self.domain_mismatch(asset, found).await.map(Some),
            None if asset.uses_own_domain() => Ok(Some(TokenProblem::NoDomain(token))),
            None => Ok(None),
        }
    }

    async fn domain_mismatch(&self, asset: &Asset, found: B256) -> Result<TokenProblem, RpcError> {
        let token = asset.address;
        let name = self
            .call_optional(token, TokenMetadata::nameCall {})
            .await?;
        let version = self
            .call_optional(token, TokenMetadata::versionCall {})
            .await?;
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

    /// Whether `account` has code.
    pub async fn has_code(&self, account: Address) -> Result<bool, RpcError> {
        Ok(!self.code(account).await?.is_empty())
    }

    /// The result of a call; `None` when the contract reverts or returns something that cannot be decoded.
    async fn call_optional<C: SolCall>(
        &self,
        of: Address,
        call: C,
    ) -> Result<Option<C::Return>, RpcError> {
        match self.view(of, call.abi_encode().into()).await {
            Ok(answer) => Ok(C::abi_decode_returns(&answer).ok()),
            Err(error) if error.is_revert() => Ok(None),
            Err(error) => Err(error),
        }
    }
}
