//! What a payer who sends the money needs of a chain: JSON-RPC calls to an endpoint that the caller names.

use std::fmt;
use std::str::FromStr;

use alloy::consensus::{SignableTransaction as _, TxEip1559, TxEnvelope};
use alloy::eips::eip2718::Encodable2718 as _;
use alloy::eips::eip2930::AccessList;
use alloy::primitives::{Address, B256, Bytes, Signature, TxKind, U64, U128, U256, keccak256};
use alloy::sol;
use alloy::sol_types::SolCall as _;
use reqwest::Url;
use serde_json::{Value, json};

use crate::buyer::exchange::Http;
use crate::buyer::{Handed, Signer};
use crate::protocol::Network;

sol! {
    function authorizationState(address authorizer, bytes32 nonce) returns (bool);
}

/// One chain's endpoint. Its URL, which may hold a key, is shown nowhere.
#[derive(Clone)]
pub(super) struct Chain {
    pub(super) network: Network,
    pub(super) rpc: Url,
}

impl Chain {
    /// Signs a call of `to` as the payer's next transaction: the raw bytes, and the hash that they will be known by.
    pub(super) async fn signed_call(
        &self,
        http: &Http,
        signer: &Signer,
        to: Address,
        data: Bytes,
    ) -> Result<(Bytes, B256), String> {
        let payer = signer.address();
        let chain: U64 = self.ask(http, "eth_chainId", json!([])).await?;
        if chain.to::<u64>() != self.network.chain_id() {
            return Err("the endpoint is of another chain".to_owned());
        }
        let count = json!([payer, "pending"]);
        let nonce: U64 = self.ask(http, "eth_getTransactionCount", count).await?;
        let call = json!([{"from": payer, "to": to, "data": data}]);
        let gas: U64 = self.ask(http, "eth_estimateGas", call).await?;
        let price: U128 = self.ask(http, "eth_gasPrice", json!([])).await?;
        let tip: U128 = self
            .ask(http, "eth_maxPriorityFeePerGas", json!([]))
            .await?;
        // Twice the present price outlives six full blocks in a row.
        let max_fee = price.to::<u128>().saturating_mul(2);
        let transaction = TxEip1559 {
            chain_id: self.network.chain_id(),
            nonce: nonce.to(),
            gas_limit: gas.to::<u64>().saturating_mul(6) / 5,
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

    /// Whether the chain proves that an authorization can never move money: its time has passed there, and its nonce is unused.
    pub(super) async fn proves_unpaid(&self, http: &Http, handed: &Handed) -> Result<bool, String> {
        let block: Value = self
            .ask(http, "eth_getBlockByNumber", json!(["latest", false]))
            .await?;
        let time = block
            .get("timestamp")
            .and_then(Value::as_str)
            .and_then(|text| U64::from_str(text).ok());
        let number = block
            .get("number")
            .and_then(Value::as_str)
            .unwrap_or("latest");
        let time = time.ok_or("the endpoint answered with a block without time")?;
        let expired = handed
            .valid_before
            .is_some_and(|end| u64::try_from(end).is_ok_and(|end| time.to::<u64>() >= end));
        let call = authorizationStateCall {
            authorizer: handed.payer,
            nonce: handed.nonce,
        };
        let call = json!([{"to": handed.asset, "data": Bytes::from(call.abi_encode())}, number]);
        let answer: Bytes = self.ask(http, "eth_call", call).await?;
        let used = authorizationStateCall::abi_decode_returns(&answer)
            .map_err(|error| error.to_string())?;
        Ok(expired && !used)
    }

    async fn ask<T: serde::de::DeserializeOwned>(
        &self,
        http: &Http,
        method: &str,
        params: Value,
    ) -> Result<T, String> {
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let unusable = || format!("the endpoint did not answer {method}");
        let (_, mut answer) = http
            .post_json(&self.rpc, &body)
            .await
            .ok_or_else(unusable)?;
        if let Some(message) = answer.pointer("/error/message").and_then(Value::as_str) {
            let message: String = message.chars().take(200).collect();
            return Err(format!("{method}: {message}"));
        }
        let result = answer
            .get_mut("result")
            .map(Value::take)
            .unwrap_or_default();
        serde_json::from_value(result).map_err(|_| unusable())
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Chain({})", self.network)
    }
}
