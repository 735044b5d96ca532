//! A payment as a buyer makes it; every part can be changed.

use alloy::primitives::{Address, B256, Bytes, U256, bytes, keccak256};
use alloy::signers::SignerSync;
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::{SolCall, SolValue};
use serde_json::{Value, json};
use uuid::Uuid;
use x402d::clock::{Clock, SystemClock};
use x402d::embedded::{CHAIN_ID, SMART_WALLET_FACTORY, TEST_USDC};
use x402d::protocol::{Amount, Authorization, DomainSeparator, Network};

use super::createWalletCall;

/// A fresh account.
pub(crate) fn new_account() -> PrivateKeySigner {
    PrivateKeySigner::from_bytes(&unused()).unwrap()
}

fn unused() -> B256 {
    keccak256([Uuid::now_v7().into_bytes(), Uuid::now_v7().into_bytes()].concat())
}

/// A number below `limit`.
pub(crate) fn random(limit: usize) -> usize {
    usize::from(B256::random()[0]) * limit / 256
}

/// The owner's signature in an ERC-6492 wrapper, with the call that creates the owner's wallet.
pub(crate) fn wrapped(purchase: &Purchase, salt: B256) -> Bytes {
    let create = createWalletCall {
        owner: purchase.signer.address(),
        salt,
    };
    let create = Bytes::from(create.abi_encode());
    let inner = purchase.own_signature();
    let mut wrapped = (SMART_WALLET_FACTORY, create, inner).abi_encode_params();
    wrapped.extend(bytes!(
        "6492649264926492649264926492649264926492649264926492649264926492"
    ));
    wrapped.into()
}

/// One payment and the requirement that it is presented with. [`new`](Self::new) makes a valid one.
#[derive(Clone)]
pub(crate) struct Purchase {
    /// The signing key; not always the payer's.
    pub(crate) signer: PrivateKeySigner,
    pub(crate) version: u8,
    pub(crate) authorization: Authorization,
    /// The token and its EIP-712 name; the version is always "2".
    pub(crate) asset: Address,
    pub(crate) token_name: &'static str,
    /// The seller's requirement.
    pub(crate) pay_to: Address,
    pub(crate) amount: U256,
    /// Replaces the payer's own signature.
    pub(crate) signature: Option<Bytes>,
}

impl Purchase {
    /// A v2 payment of `amount` test USDC, valid for ten minutes.
    pub(crate) fn new(payer: &PrivateKeySigner, pay_to: Address, amount: u64) -> Self {
        let now = SystemClock.now().unix_timestamp();
        let amount = U256::from(amount);
        Self {
            signer: payer.clone(),
            version: 2,
            authorization: Authorization {
                from: payer.address(),
                to: pay_to,
                value: Amount::from_atomic(amount),
                valid_after: Amount::ZERO,
                valid_before: Amount::from_atomic(U256::from(now + 600)),
                nonce: unused(),
            },
            asset: TEST_USDC,
            token_name: "USDC",
            pay_to,
            amount,
            signature: None,
        }
    }

    /// The same in protocol version 1.
    pub(crate) fn v1(mut self) -> Self {
        self.version = 1;
        self
    }

    /// Paid by a contract wallet of the signer.
    pub(crate) fn paid_by(mut self, wallet: Address) -> Self {
        self.authorization.from = wallet;
        self
    }

    /// In another token.
    pub(crate) fn in_token(mut self, asset: Address, name: &'static str) -> Self {
        (self.asset, self.token_name) = (asset, name);
        self
    }

    /// The EIP-712 digest that the payer signs.
    pub(crate) fn digest(&self) -> B256 {
        let network = Network::from_chain_id(CHAIN_ID);
        let separator = DomainSeparator::of_token(self.token_name, "2", network, self.asset);
        self.authorization.digest(separator)
    }

    /// The signer's signature, 65 bytes with v 27 or 28.
    pub(crate) fn own_signature(&self) -> Bytes {
        let signature = self.signer.sign_hash_sync(&self.digest()).unwrap();
        signature.as_bytes().into()
    }

    /// The body of `/verify` and `/settle`.
    pub(crate) fn body(&self) -> Value {
        let signature = self
            .signature
            .clone()
            .unwrap_or_else(|| self.own_signature());
        let payload = json!({"signature": signature, "authorization": self.authorization});
        let requirements = self.requirements();
        let payment = if self.version == 1 {
            json!({"x402Version": 1, "scheme": "exact", "network": "base-sepolia", "payload": payload})
        } else {
            json!({"x402Version": 2, "accepted": requirements, "payload": payload, "resource": {"url": "https://seller.test/goods"}})
        };
        json!({"x402Version": self.version, "paymentPayload": payment, "paymentRequirements": requirements})
    }

    fn requirements(&self) -> Value {
        let extra = json!({"name": self.token_name, "version": "2"});
        let mut requirements = json!({"scheme": "exact", "asset": self.asset, "payTo": self.pay_to, "maxTimeoutSeconds": 300, "extra": extra});
        let amount = self.amount.to_string();
        if self.version == 1 {
            requirements["network"] = "base-sepolia".into();
            requirements["maxAmountRequired"] = amount.into();
            requirements["resource"] = "https://seller.test/goods".into();
            requirements["description"] = "goods".into();
            requirements["mimeType"] = "application/json".into();
        } else {
            requirements["network"] = format!("eip155:{CHAIN_ID}").into();
            requirements["amount"] = amount.into();
        }
        requirements
    }
}
