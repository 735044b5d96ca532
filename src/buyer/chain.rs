//! A minimal JSON-RPC client for the payer: signs token transfers, proves that an expired payment moved no money, and reads the allowance
//! to Permit2. The caller names the endpoint.

use std::fmt;
use std::str::FromStr;

use alloy::consensus::{SignableTransaction as _, TxEip1559, TxEnvelope};
use alloy::eips::eip2718::Encodable2718 as _;
use alloy::eips::eip2930::AccessList;
use alloy::primitives::{Address, B256, Bytes, Signature, TxKind, U64, U128, U256, keccak256};
use alloy::sol;
use alloy::sol_types::SolCall;
use reqwest::Url;
use serde_json::{Value, json};

use crate::buyer::exchange::Http;
use crate::buyer::{SignedPayment, Signer};
use crate::protocol::permit2::PERMIT2;
use crate::protocol::text::escaped_start;
use crate::protocol::{Amount, Network, PaymentMethod};

sol! {
    function authorizationState(address authorizer, bytes32 nonce) returns (bool);
    function nonceBitmap(address owner, uint256 word) returns (uint256);
    function allowance(address owner, address spender) returns (uint256);
    function nonces(address owner) returns (uint256);
}

/// The JSON-RPC endpoint of one network. The URL may contain an API key: `Debug` and errors never show it.
#[derive(Clone)]
pub(super) struct Chain {
    pub(super) network: Network,
    pub(super) rpc: Url,
}

/// What a chain shows of a signed payment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It can never move money: its time is over, and its nonce is unused.
    Unpaid,
    /// Its nonce is used: it was paid, or cancelled by the payer.
    NonceUsed,
    /// It may still move money.
    Open,
}

impl Chain {
    /// Signs an EIP-1559 transaction that calls `to` with the payer's next account nonce, and whose gas can cost at most `wei_max`. Returns
    /// the raw bytes and the transaction hash.
    pub(super) async fn signed_call(
        &self,
        http: &Http,
        signer: &Signer,
        (to, data): (Address, Bytes),
        wei_max: U256,
    ) -> Result<(Bytes, B256), String> {
        let payer = signer.address();
        let chain: U64 = self.request(http, "eth_chainId", json!([])).await?;
        if chain.to::<u64>() != self.network.chain_id() {
            return Err(
                "the RPC endpoint serves another chain id than the offer's network".to_owned(),
            );
        }
        let count = json!([payer, "pending"]);
        let nonce: U64 = self.request(http, "eth_getTransactionCount", count).await?;
        let call = json!([{"from": payer, "to": to, "data": data}]);
        let gas: U64 = self.request(http, "eth_estimateGas", call).await?;
        let price: U128 = self.request(http, "eth_gasPrice", json!([])).await?;
        let tip: U128 = self
            .request(http, "eth_maxPriorityFeePerGas", json!([]))
            .await?;
        let gas = gas.to::<u64>().saturating_mul(6) / 5;
        let max_fee = fee_within(gas, price.to(), wei_max)?;
        let transaction = TxEip1559 {
            chain_id: self.network.chain_id(),
            nonce: nonce.to(),
            gas_limit: gas,
            max_fee_per_gas: max_fee,
            max_priority_fee_per_gas: tip.to::<u128>().min(max_fee),
            to: TxKind::Call(to),
            value: U256::ZERO,
            access_list: AccessList::default(),
            input: data,
        };
        let signature = signer.sign(transaction.signature_hash())?;
        let signature = Signature::from_raw(&signature).map_err(|error| error.to_string())?;
        let raw = Bytes::from(TxEnvelope::from(transaction.into_signed(signature)).encoded_2718());
        let hash = keccak256(&raw);
        Ok((raw, hash))
    }

    /// What the chain says of a signed payment at its latest block.
    pub(super) async fn fate(&self, http: &Http, signed: &SignedPayment) -> Result<Fate, String> {
        let block: Value = self
            .request(http, "eth_getBlockByNumber", json!(["latest", false]))
            .await?;
        let time = block
            .get("timestamp")
            .and_then(Value::as_str)
            .and_then(|text| U64::from_str(text).ok());
        let number = block
            .get("number")
            .and_then(Value::as_str)
            .unwrap_or("latest");
        let time = time.ok_or("the RPC endpoint returned a block without timestamp")?;
        let time = time.to::<u64>();
        let expired = signed.valid_before.is_some_and(|end| {
            u64::try_from(end).is_ok_and(|end| match signed.method {
                PaymentMethod::Authorization => time >= end,
                // Permit2 accepts a signature up to and including its deadline.
                PaymentMethod::Permit2 | PaymentMethod::Metered => time > end,
            })
        });
        Ok(if self.is_used(http, signed, number).await? {
            Fate::NonceUsed
        } else if expired {
            Fate::Unpaid
        } else {
            Fate::Open
        })
    }

    /// Whether the payment's nonce was used at `block`.
    async fn is_used(
        &self,
        http: &Http,
        signed: &SignedPayment,
        block: &str,
    ) -> Result<bool, String> {
        match signed.method {
            PaymentMethod::Authorization => {
                let call = authorizationStateCall {
                    authorizer: signed.payer,
                    nonce: signed.nonce,
                };
                self.eth_call(http, signed.asset, call, block).await
            }
            // A word of Permit2's bitmap holds 256 nonces; the low byte of the nonce selects the bit.
            PaymentMethod::Permit2 | PaymentMethod::Metered => {
                let nonce = U256::from_be_bytes(signed.nonce.0);
                let call = nonceBitmapCall {
                    owner: signed.payer,
                    word: nonce >> 8,
                };
                let word: U256 = self.eth_call(http, PERMIT2, call, block).await?;
                Ok(word.bit(usize::from(nonce.byte(0))))
            }
        }
    }

    /// The payer's nonce for an EIP-2612 permit, when the allowance to Permit2 is below `amount`; `None` when it is enough.
    pub(super) async fn permit_nonce(
        &self,
        http: &Http,
        payer: Address,
        (token, amount): (Address, Amount),
    ) -> Result<Option<U256>, String> {
        let allowance = allowanceCall {
            owner: payer,
            spender: PERMIT2,
        };
        let allowance = self.eth_call(http, token, allowance, "latest").await?;
        if allowance >= amount.atomic() {
            return Ok(None);
        }
        let nonces = noncesCall { owner: payer };
        self.eth_call(http, token, nonces, "latest").await.map(Some)
    }

    async fn eth_call<C: SolCall>(
        &self,
        http: &Http,
        to: Address,
        call: C,
        block: &str,
    ) -> Result<C::Return, String> {
        let call = json!([{"to": to, "data": Bytes::from(call.abi_encode())}, block]);
        let answer: Bytes = self.request(http, "eth_call", call).await?;
        C::abi_decode_returns(&answer).map_err(|error| error.to_string())
    }

    async fn request<T: serde::de::DeserializeOwned>(
        &self,
        http: &Http,
        method: &str,
        params: Value,
    ) -> Result<T, String> {
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let invalid = || format!("the RPC endpoint returned no valid result for {method}");
        let (_, mut answer) = http.post_json(&self.rpc, &body).await.ok_or_else(invalid)?;
        if let Some(message) = answer.pointer("/error/message").and_then(Value::as_str) {
            return Err(format!("{method}: {}", escaped_start(message, 200)));
        }
        let result = answer
            .get_mut("result")
            .map(Value::take)
            .unwrap_or_default();
        serde_json::from_value(result).map_err(|_| invalid())
    }
}

/// The highest price of gas in wei: twice the current one, which stays sufficient through six full blocks in a row (EIP-1559: at most +12.5 %
/// each), or less where `gas` would cost more than `wei_max`.
fn fee_within(gas: u64, price: u128, wei_max: U256) -> Result<u128, String> {
    let cost = U256::from(gas).saturating_mul(U256::from(price));
    let highest = wei_max.checked_div(U256::from(gas)).unwrap_or_default();
    let highest = u128::try_from(highest).unwrap_or(u128::MAX);
    if cost > wei_max || highest == 0 {
        return Err(format!(
            "the gas of the transfer costs {cost} wei by the RPC endpoint, above the limit of {wei_max}: raise it with --max-fee (Client::transfer_fee_max), or pay without --transfer"
        ));
    }
    Ok(price.saturating_mul(2).min(highest))
}

impl fmt::Debug for Chain {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Chain({})", self.network)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gas_of_a_signed_call_costs_at_most_the_limit() {
        let wei = |amount: u64| U256::from(amount);
        assert_eq!(fee_within(100, 7, wei(10_000)), Ok(14));
        assert_eq!(fee_within(100, 7, wei(1_000)), Ok(10), "less than twice");
        assert_eq!(fee_within(100, 7, wei(700)), Ok(7));
        for (gas, price, limit) in [
            (100, 7, wei(699)),
            (u64::MAX, u128::MAX, U256::from(u128::MAX)),
            (100, 0, wei(99)),
            (0, 7, wei(1_000)),
        ] {
            let refused = fee_within(gas, price, limit).unwrap_err();
            assert!(refused.contains("above the limit"), "{refused}");
        }
    }
}
