//! What the chain says about payments, from an endpoint that the facilitator does not choose.

use std::time::Duration;

use alloy::primitives::{Address, B256, Bytes, U256, b256};
use alloy::sol;
use alloy::sol_types::SolCall;
use reqwest::{Client, Url};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::payment::Buyer;
use crate::protocol::permit2::PERMIT2;
use crate::protocol::{Amount, Network};

/// How long a call may take.
const CALL_LIMIT: Duration = Duration::from_secs(20);
/// How long another endpoint than the facilitator's may be behind.
const BEHIND_MAX: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(1);
/// `Transfer(address,address,uint256)`.
const TRANSFER: B256 = b256!("ddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef");

sol! {
    function balanceOf(address account) returns (uint256);
    function allowance(address owner, address spender) returns (uint256);
    function nonces(address owner) returns (uint256);
}

/// An RPC endpoint. Its errors do not repeat the URL, which may hold a secret.
pub(super) struct Chain {
    http: Client,
    url: Url,
}

impl Chain {
    /// An endpoint that serves `network`.
    pub(super) async fn connect(url: Url, network: Network) -> Result<Self, String> {
        let http = Client::builder().timeout(CALL_LIMIT).build();
        let http = http.map_err(|error| error.to_string())?;
        let chain = Self { http, url };
        let id = chain.request("eth_chainId", json!([])).await?;
        let id: Option<U256> = id.as_str().and_then(|id| id.parse().ok());
        if id != Some(U256::from(network.chain_id())) {
            return Err(format!("serves another chain than {network}"));
        }
        Ok(chain)
    }

    pub(super) async fn balance(&self, token: Address, account: Address) -> Result<U256, String> {
        self.view(token, balanceOfCall { account }).await
    }

    /// The payer's nonce for an EIP-2612 permit when its allowance to Permit2 is below `amount`; `None` when it is enough.
    pub(super) async fn permit_nonce(&self, buyer: &Buyer) -> Result<Option<U256>, String> {
        let (owner, token) = (buyer.address(), buyer.asset.address);
        let spender = PERMIT2;
        let allowance = self.view(token, allowanceCall { owner, spender }).await?;
        if allowance >= buyer.amount.atomic() {
            return Ok(None);
        }
        self.view(token, noncesCall { owner }).await.map(Some)
    }

    /// That the transaction has succeeded with exactly one transfer of `amount` from the buyer to the payee.
    pub(super) async fn has_transfer(
        &self,
        buyer: &Buyer,
        transaction: B256,
        amount: Amount,
    ) -> Result<(), String> {
        let receipt = self.receipt(transaction).await?;
        if receipt.get("status") != Some(&json!("0x1")) {
            return Err("the transaction was reverted".to_owned());
        }
        let expected = json!({
            "address": buyer.asset.address,
            "topics": [TRANSFER, buyer.address().into_word(), buyer.pay_to.into_word()],
            "data": B256::from(amount.atomic()),
        });
        let logs = receipt.get("logs").and_then(Value::as_array);
        let is_expected = |log: &&Value| {
            let members = expected.as_object().into_iter().flatten();
            members.into_iter().all(|(name, value)| {
                let found = log.get(name).map(Value::to_string);
                found.is_some_and(|found| found.eq_ignore_ascii_case(&value.to_string()))
            })
        };
        match logs.into_iter().flatten().filter(is_expected).count() {
            1 => Ok(()),
            number => Err(format!("{number} such transfers in the transaction")),
        }
    }

    /// Waits until the balance of an account is `expected`; else says what it is.
    pub(super) async fn reaches_balance(
        &self,
        token: Address,
        account: Address,
        expected: U256,
    ) -> Result<(), String> {
        let deadline = Instant::now() + BEHIND_MAX;
        loop {
            let balance = self.balance(token, account).await?;
            if balance == expected {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!(
                    "the payer has {balance} units, expected {expected}"
                ));
            }
            sleep(RETRY).await;
        }
    }

    async fn receipt(&self, transaction: B256) -> Result<Value, String> {
        let deadline = Instant::now() + BEHIND_MAX;
        loop {
            let receipt = self
                .request("eth_getTransactionReceipt", json!([transaction]))
                .await?;
            if !receipt.is_null() {
                return Ok(receipt);
            }
            if Instant::now() > deadline {
                return Err(format!("no receipt of {transaction}"));
            }
            sleep(RETRY).await;
        }
    }

    async fn view<C: SolCall<Return = U256>>(&self, to: Address, call: C) -> Result<U256, String> {
        let call = json!({"to": to, "data": Bytes::from(call.abi_encode())});
        let answer = self.request("eth_call", json!([call, "latest"])).await?;
        let word: Option<U256> = answer.as_str().and_then(|word| word.parse().ok());
        word.ok_or_else(|| format!("the RPC answered no number: {answer}"))
    }

    async fn request(&self, method: &str, params: Value) -> Result<Value, String> {
        let failed = |error: reqwest::Error| format!("{method}: {}", error.without_url());
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let request = self.http.post(self.url.clone()).json(&body);
        let answer = request.send().await.map_err(failed)?;
        let mut answer: Value = answer.json().await.map_err(failed)?;
        match answer.get("error").filter(|error| !error.is_null()) {
            Some(error) => Err(format!("{method}: {error}")),
            None => Ok(answer
                .get_mut("result")
                .map(Value::take)
                .unwrap_or_default()),
        }
    }
}
