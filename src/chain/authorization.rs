//! What every authorization can be asked, whatever contract moves its money: the call that settles it, its trace in the logs of a
//! transaction, and what became of it.

use alloy::primitives::{Address, B256, Bytes, address};
use alloy::sol;
use alloy::sol_types::SolCall;

use crate::chain::receipt::Log;
use crate::chain::{Head, Receipt, Rpc, RpcError, permit2, token};
use crate::payment::{Location, Method, Signed};

sol! {
    interface Multicall3 {
        struct Call3 { address target; bool allowFailure; bytes callData; }
        struct Result { bool success; bytes returnData; }
        function aggregate3(Call3[] calls) external payable returns (Result[] results);
    }
}

/// Multicall3 at the address that it has on every chain.
pub const MULTICALL3: Address = address!("cA11bde05977b3631167028862bE2a173976CA11");

/// The call that settles a payment: the token or a proxy itself, or Multicall3 when the payer's wallet has to be deployed first.
pub fn settlement_call(signed: Signed<'_>) -> (Address, Bytes) {
    let settler = signed.method.settler(signed.asset);
    let data = settlement_data(signed);
    let Some(wallet) = signed.wallet else {
        return (settler, data);
    };
    let calls = vec![
        // The wallet may have been deployed meanwhile: what counts is the transfer.
        Multicall3::Call3 {
            target: wallet.factory,
            allowFailure: true,
            callData: wallet.call.clone(),
        },
        Multicall3::Call3 {
            target: settler,
            allowFailure: false,
            callData: data,
        },
    ];
    (
        MULTICALL3,
        Multicall3::aggregate3Call { calls }.abi_encode().into(),
    )
}

/// What the contract that moves the money is called with.
pub(super) fn settlement_data(signed: Signed<'_>) -> Bytes {
    match signed.method {
        Method::Eip3009 => token::transfer_data(signed),
        Method::Permit2(permit) => permit2::settle_data(signed, permit),
    }
}

/// The call that settles several payments at once; one that fails does not keep the others.
pub fn batch_call<'a>(payments: impl Iterator<Item = Signed<'a>>) -> (Address, Bytes) {
    let calls = payments.map(|signed| Multicall3::Call3 {
        target: signed.method.settler(signed.asset),
        allowFailure: true,
        callData: settlement_data(signed),
    });
    let call = Multicall3::aggregate3Call {
        calls: calls.collect(),
    };
    (MULTICALL3, call.abi_encode().into())
}

/// Where a payment's money moved in the logs of a transaction that settles it. Anything less than its exact trace is no success.
pub fn transfer_log(signed: Signed<'_>, logs: &[Log]) -> Option<u64> {
    match signed.method {
        Method::Eip3009 => token::transfer_log(signed.asset, signed.terms, logs),
        Method::Permit2(_) => permit2::transfer_log(signed, logs),
    }
}

/// What became of an authorization, as the chain tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthorizationUse {
    /// Its nonce is unused.
    Unused,
    /// It moved the money, in this transaction.
    Transferred {
        /// Where.
        location: Location,
        /// Who sent the transaction and paid for its gas.
        sender: Address,
    },
    /// Its nonce was used up without moving this money: cancelled, used for something else, or by a token that does not keep to
    /// the rules. The hash is the transaction that did it, where it could be found.
    Consumed(Option<B256>),
}

impl Rpc {
    /// Asks what became of an authorization, as of `head`. `tokens` are those that are known to call nobody: a batch of somebody else's
    /// proves something only if nothing else could have moved money in it.
    ///
    /// # Errors
    /// When the RPC fails.
    pub async fn authorization_use(
        &self,
        signed: Signed<'_>,
        head: u64,
        tokens: &[Address],
    ) -> Result<AuthorizationUse, RpcError> {
        match signed.method {
            Method::Eip3009 => self.eip3009_use(signed.asset, signed.terms, head).await,
            Method::Permit2(_) => self.permit2_use(signed, head, tokens).await,
        }
    }

    /// A use that moved the money, in a transaction whose receipt is at hand.
    pub(super) async fn transferred(
        &self,
        receipt: &Receipt,
        log_index: u64,
    ) -> Result<AuthorizationUse, RpcError> {
        let location = Location {
            transaction: receipt.transaction_hash,
            log_index,
            block_number: receipt.block_number.to(),
            block_hash: receipt.block_hash,
            block_time: self
                .block_time(receipt.block_hash, &Head::default())
                .await?,
        };
        Ok(AuthorizationUse::Transferred {
            location,
            sender: receipt.from,
        })
    }

    /// Which calls of a batch would go through in a transaction of `from` with `gas_limit`, on the newest state.
    ///
    /// # Errors
    /// When the RPC fails, or the batch as a whole does.
    pub async fn rehearse(
        &self,
        from: Address,
        (to, data): (Address, &Bytes),
        gas_limit: u64,
    ) -> Result<Vec<bool>, RpcError> {
        let gas = format!("0x{gas_limit:x}");
        let call = serde_json::json!({"from": from, "to": to, "data": data, "gas": gas});
        let answer: Bytes = self.read("eth_call", (call, "latest")).await?;
        let results = Multicall3::aggregate3Call::abi_decode_returns(&answer)
            .map_err(|_| RpcError::Malformed("eth_call"))?;
        Ok(results.iter().map(|result| result.success).collect())
    }

    /// Several read-only calls at the newest block in one; `None` for one that reverted.
    pub(super) async fn views(
        &self,
        calls: Vec<(Address, Bytes)>,
    ) -> Result<Vec<Option<Bytes>>, RpcError> {
        let asked = calls.len();
        let calls = calls.into_iter().map(|(target, data)| Multicall3::Call3 {
            target,
            allowFailure: true,
            callData: data,
        });
        let call = Multicall3::aggregate3Call {
            calls: calls.collect(),
        };
        let answer = self.view(MULTICALL3, call.abi_encode().into()).await?;
        let results = Multicall3::aggregate3Call::abi_decode_returns(&answer)
            .ok()
            .filter(|results| results.len() == asked)
            .ok_or(RpcError::Malformed("aggregate3"))?;
        let values = results
            .into_iter()
            .map(|result| result.success.then_some(result.returnData));
        Ok(values.collect())
    }
}
