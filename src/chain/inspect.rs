//! Whether a chain has what a network's configuration says of it.

use alloy::primitives::{Address, B256, U256};
use alloy::sol;
use alloy::sol_types::SolCall;

use crate::chain::{Rpc, RpcError};
use crate::payment::Asset;

sol! {
    interface Named {
        /// By the standard a `uint8`; read whole, so that anything larger is seen.
        function decimals() external view returns (uint256);
        function name() external view returns (string);
        function version() external view returns (string);
    }
}

/// How much of a token's own words is repeated: they are the contract's, and could be anything.
const WORDS_MAX: usize = 60;

/// What a chain says against a configured token. Each says what was expected, what is there, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenProblem {
    /// Nothing is there.
    #[error("there is no contract at the asset's address {0}; correct assets, or the RPC URL")]
    NoCode(Address),
    /// Something is there, but no token.
    #[error(
        "the contract {0} does not say how many decimals it has, as every token does; correct assets"
    )]
    NoDecimals(Address),
    /// Its amounts mean something else.
    #[error("the token {token} has {found} decimals, configured are {configured}; correct assets")]
    Decimals {
        /// Which token.
        token: Address,
        /// From the configuration.
        configured: u8,
        /// From the chain.
        found: U256,
    },
    /// It cannot be told what its payers sign.
    #[error(
        "the token {0} does not say its EIP-712 domain (DOMAIN_SEPARATOR), so its signatures cannot be checked; correct assets, or say transfer_method = \"permit2\" and eip2612 = false of it"
    )]
    NoDomain(Address),
    /// Payers would sign something else.
    #[error(
        "the token {token} has another EIP-712 domain than name {name:?} and version {version:?}: its separator is {found}, expected is {expected}; correct assets{own_words}"
    )]
    Domain {
        /// Which token.
        token: Address,
        /// Configured.
        name: String,
        /// Configured.
        version: String,
        /// Computed.
        expected: B256,
        /// From the chain.
        found: B256,
        /// What the token calls itself, ready to be shown.
        own_words: String,
    },
}

impl Rpc {
    /// What the chain says against a configured token, if anything.
    ///
    /// # Errors
    /// When the RPC fails, which says nothing of the token.
    pub async fn token_problem(&self, asset: &Asset) -> Result<Option<TokenProblem>, RpcError> {
        let token = asset.address;
        if !self.has_code(token).await? {
            return Ok(Some(TokenProblem::NoCode(token)));
        }
        let Some(decimals) = self.answer(token, Named::decimalsCall {}).await? else {
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
            Some(found) => self.other_domain(asset, found).await.map(Some),
            None if asset.has_signatures() => Ok(Some(TokenProblem::NoDomain(token))),
            None => Ok(None),
        }
    }

    async fn other_domain(&self, asset: &Asset, found: B256) -> Result<TokenProblem, RpcError> {
        let token = asset.address;
        let name = self.answer(token, Named::nameCall {}).await?;
        let version = self.answer(token, Named::versionCall {}).await?;
        let called = |what, word: Option<String>| {
            let word: String = word?.chars().take(WORDS_MAX).collect();
            Some(format!("{what} {word:?}"))
        };
        let words = [called("name", name), called("version", version)];
        let words: Vec<_> = words.into_iter().flatten().collect();
        let own_words = if words.is_empty() {
            String::new()
        } else {
            format!(": the token itself says {}", words.join(" and "))
        };
        Ok(TokenProblem::Domain {
            token,
            name: asset.name.clone(),
            version: asset.version.clone(),
            expected: asset.separator.0,
            found,
            own_words,
        })
    }

    /// Whether a contract is at `account`.
    ///
    /// # Errors
    /// When the RPC fails.
    pub async fn has_code(&self, account: Address) -> Result<bool, RpcError> {
        Ok(!self.code(account).await?.is_empty())
    }

    /// What a contract answers; `None` when it does not have such a call, or answers something else.
    async fn answer<C: SolCall>(
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
