//! A session as a buyer negotiates it, from the API specification alone.

use alloy::primitives::{Address, B256, Bytes, U256};
use alloy::signers::SignerSync;
use alloy::signers::local::PrivateKeySigner;
use futures_util::FutureExt as _;
use serde_json::{Value, json};
use x402d::chain::signer::UnsignedTransaction;
use x402d::chain::{Fees, SignerKey};
use x402d::embedded::{CHAIN_ID, TEST_USDC};
use x402d::protocol::session::{claim_digest, nonce, requirements_hash};
use x402d::protocol::{Amount, Authorization, Network};

use super::{Answer, Caller, Purchase, World};

/// An open session, with the values that its buyer computes instead of trusting the answer.
pub(crate) struct OpenSession {
    pub(crate) payer: PrivateKeySigner,
    /// The seller's entry of `accepts`.
    pub(crate) entry: Value,
    pub(crate) id: String,
    pub(crate) cancel_token: String,
    pub(crate) opened: Value,
    payee: Address,
    amount: u64,
}

impl OpenSession {
    /// A v2 entry of `accepts`, with the flow that both rails support.
    pub(crate) fn entry(payee: Address, amount: u64) -> Value {
        json!({"scheme": "exact", "network": format!("eip155:{CHAIN_ID}"), "amount": amount.to_string(), "asset": TEST_USDC,
            "payTo": payee, "maxTimeoutSeconds": 300, "extra": {"name": "USDC", "version": "2", "paymentFlow": "upfront"}})
    }

    /// The request body that opens a session.
    pub(crate) fn request(entry: &Value, payer: Address, rail: &str) -> Value {
        json!({"x402Version": 2, "accepted": entry, "payer": payer, "rail": rail, "resource": {"url": "https://seller.test/goods"}, "clientReference": "order-7"})
    }

    /// Opens a session for [`entry`](Self::entry).
    pub(crate) async fn open(
        caller: &Caller,
        payer: &PrivateKeySigner,
        rail: &str,
        payee: Address,
        amount: u64,
    ) -> Self {
        let entry = Self::entry(payee, amount);
        let asked = Self::request(&entry, payer.address(), rail);
        let answer = caller.post("/sessions", &asked).await.unwrap();
        assert_eq!(answer.status, 201, "{}", answer.body);
        let text = |member: &str| answer.body[member].as_str().unwrap().to_owned();
        Self {
            payer: payer.clone(),
            entry,
            id: text("sessionId"),
            cancel_token: text("cancelToken"),
            opened: answer.body.clone(),
            payee,
            amount,
        }
    }

    fn hash(&self) -> B256 {
        requirements_hash(&self.entry).unwrap()
    }

    pub(crate) fn nonce(&self) -> B256 {
        nonce(&self.id.parse().unwrap(), self.hash())
    }

    /// The authorization that pays it, as a purchase that any facilitator could settle.
    pub(crate) fn purchase(&self) -> Purchase {
        let end: U256 = self.opened["authorization"]["message"]["validBefore"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap();
        let mut purchase = Purchase::new(&self.payer, self.payee, self.amount);
        purchase.authorization = Authorization {
            valid_before: Amount::from_atomic(end),
            nonce: self.nonce(),
            ..purchase.authorization
        };
        purchase
    }

    /// The body of `/verify` and `/settle`, with the session's id.
    pub(crate) fn presentation(&self) -> Value {
        let mut body = self.purchase().body();
        body["paymentPayload"]["payload"]["sessionId"] = json!(self.id);
        body
    }

    /// The body that submits the authorization.
    pub(crate) fn authorization(&self) -> Value {
        let purchase = self.purchase();
        json!({"authorization": purchase.authorization, "signature": purchase.own_signature()})
    }

    /// A transaction signed by the payer under `account_nonce`: its bytes and hash. `data` replaces the session's own calldata.
    pub(crate) fn transaction(&self, account_nonce: u64, data: Option<Bytes>) -> (Bytes, B256) {
        let key = SignerKey::from_hex(&self.payer.to_bytes().to_string()).unwrap();
        let tagged: Bytes = self.opened["transfer"]["data"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap();
        let order = UnsignedTransaction {
            network: Network::from_chain_id(CHAIN_ID),
            nonce: account_nonce,
            gas_limit: 150_000,
            fees: Fees {
                max_fee_wei: 10_000_000_000,
                max_priority_fee_wei: 1_000_000_000,
                legacy: false,
            },
            to: TEST_USDC,
            data: data.unwrap_or(tagged),
            value: U256::ZERO,
        };
        // A key in memory signs at once.
        key.sign(order).now_or_never().unwrap().unwrap()
    }

    /// The session's calldata without its tag.
    pub(crate) fn untagged(&self) -> Bytes {
        let tagged: Bytes = self.opened["transfer"]["data"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap();
        tagged.slice(..68)
    }

    /// The payer's claim signature for a transaction.
    pub(crate) fn claim(&self, transaction: B256) -> Bytes {
        self.claim_by(&self.payer, transaction)
    }

    /// The claim signature of any signer for a transaction.
    pub(crate) fn claim_by(&self, signer: &PrivateKeySigner, transaction: B256) -> Bytes {
        let network = Network::from_chain_id(CHAIN_ID);
        let digest = claim_digest(&self.id.parse().unwrap(), self.hash(), transaction, network);
        signer.sign_hash_sync(&digest).unwrap().as_bytes().into()
    }

    /// The body of `/verify` and `/settle` for a claimed transaction.
    pub(crate) fn proof(&self, transaction: B256) -> Value {
        let payload = json!({"type": "session-proof", "sessionId": self.id, "transaction": transaction, "signature": self.claim(transaction)});
        json!({"x402Version": 2, "paymentRequirements": self.entry,
            "paymentPayload": {"x402Version": 2, "accepted": self.entry, "payload": payload}})
    }

    pub(crate) async fn read(&self, caller: &Caller) -> Value {
        let answer = caller.get(&format!("/sessions/{}", self.id)).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.body
    }

    /// Waits for a final state.
    pub(crate) async fn outcome(&self, caller: &Caller) -> Value {
        let answer = caller.get(&format!("/sessions/{}?wait=20", self.id)).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.body
    }

    pub(crate) async fn submit(&self, caller: &Caller, body: &Value) -> Answer {
        let path = format!("/sessions/{}/transfer?wait=20", self.id);
        caller.post(&path, body).await.unwrap()
    }

    pub(crate) async fn cancel(&self, caller: &Caller) -> Answer {
        let path = format!("/sessions/{}/cancel", self.id);
        let body = json!({"cancelToken": self.cancel_token});
        caller.post(&path, &body).await.unwrap()
    }
}

impl World {
    /// A payer with a hundred test USDC, and native currency for gas.
    pub(crate) async fn payer_with_gas(&self) -> PrivateKeySigner {
        let payer = self.payer().await;
        let wei = U256::from(10).pow(U256::from(18));
        self.chain
            .call("anvil_setBalance", json!([payer.address(), wei]))
            .await;
        payer
    }

    /// Sends a signed transaction to the chain, not through the service.
    pub(crate) async fn send_raw(&self, raw: &Bytes) {
        self.chain
            .call("eth_sendRawTransaction", json!([raw]))
            .await;
    }
}
