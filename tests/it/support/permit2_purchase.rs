//! A payment by Permit2 as a buyer makes it; every part can be changed.

use alloy::consensus::{SignableTransaction, TxEip1559, TxEnvelope};
use alloy::eips::eip2718::Encodable2718;
use alloy::primitives::{Address, B256, Bytes, TxKind, U256, keccak256};
use alloy::signers::SignerSync;
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::SolCall;
use serde_json::{Value, json};
use uuid::Uuid;
use x402d::chain::authorization::settlement_call;
use x402d::clock::{Clock, SystemClock};
use x402d::embedded::{CHAIN_ID, TEST_USDC};
use x402d::payment::{Method, PaymentTerms, Permit2};
use x402d::protocol::gas_sponsoring::{EIP2612, ERC20_APPROVAL, Eip2612Info, Version};
use x402d::protocol::permit2::{PERMIT2, Permitted, Witness, proxy_of};
use x402d::protocol::{
    Amount, DomainSeparator, Network, Permit2Authorization, Scheme, X402Version,
};

use super::Chain;
use super::chain::approveCall;

/// The bytes of a transaction signed by `signer`.
pub(crate) fn signed(transaction: &TxEip1559, signer: &PrivateKeySigner) -> Bytes {
    let signature = signer
        .sign_hash_sync(&transaction.signature_hash())
        .unwrap();
    let signed = TxEnvelope::from(transaction.clone().into_signed(signature));
    signed.encoded_2718().into()
}

/// One payment by Permit2 and the requirement that it is presented with. The constructors make valid ones.
#[derive(Clone)]
pub(crate) struct Permit2Purchase {
    /// The signing key; not always the payer's.
    pub(crate) signer: PrivateKeySigner,
    pub(crate) scheme: Scheme,
    pub(crate) authorization: Permit2Authorization,
    /// The seller's requirement: at `/verify` the maximum, at `/settle` the charge.
    pub(crate) asset: Address,
    pub(crate) pay_to: Address,
    pub(crate) amount: U256,
    /// The payload's extensions.
    pub(crate) extensions: Value,
    /// Replaces the payer's own signature.
    pub(crate) signature: Option<Bytes>,
}

impl Permit2Purchase {
    /// An `exact` payment of test USDC, valid for ten minutes.
    pub(crate) fn exact(payer: &PrivateKeySigner, pay_to: Address, amount: u64) -> Self {
        Self::new(payer, Scheme::Exact, pay_to, amount)
    }

    /// The same in `upto`, with a maximum of `most`, for the first signer.
    pub(crate) fn upto(payer: &PrivateKeySigner, pay_to: Address, most: u64) -> Self {
        let mut permission = Self::new(payer, Scheme::Upto, pay_to, most);
        permission.authorization.witness.facilitator = Some(Chain::signers(1)[0].address);
        permission
    }

    fn new(payer: &PrivateKeySigner, scheme: Scheme, pay_to: Address, amount: u64) -> Self {
        let now = SystemClock.now().unix_timestamp();
        let unused = keccak256(Uuid::now_v7().into_bytes());
        let amount = U256::from(amount);
        Self {
            signer: payer.clone(),
            scheme,
            authorization: Permit2Authorization {
                from: payer.address(),
                permitted: Permitted {
                    token: TEST_USDC,
                    amount: Amount::from_atomic(amount),
                },
                spender: proxy_of(scheme),
                nonce: Amount::from_atomic(unused.into()),
                deadline: Amount::from_atomic(U256::from(now + 600)),
                witness: Witness {
                    to: pay_to,
                    facilitator: None,
                    valid_after: Amount::ZERO,
                },
            },
            asset: TEST_USDC,
            pay_to,
            amount,
            extensions: json!({}),
            signature: None,
        }
    }

    /// The same payment with another charge.
    pub(crate) fn charging(&self, amount: u64) -> Self {
        Self {
            amount: U256::from(amount),
            ..self.clone()
        }
    }

    /// Changes the signed fields.
    pub(crate) fn with(mut self, change: impl FnOnce(&mut Permit2Authorization)) -> Self {
        change(&mut self.authorization);
        self
    }

    /// Paid by a contract wallet of the signer.
    pub(crate) fn paid_by(mut self, wallet: Address) -> Self {
        self.authorization.from = wallet;
        self
    }

    /// With an EIP-2612 permit over its `nonce`, in place of an allowance.
    pub(crate) fn with_permit(mut self, nonce: u64) -> Self {
        let info = self.permit(nonce);
        self.extensions = json!({ EIP2612: { "info": info, "schema": {} } });
        self
    }

    /// An EIP-2612 permit for exactly this payment.
    pub(crate) fn permit(&self, nonce: u64) -> Eip2612Info {
        let mut info = Eip2612Info {
            from: self.authorization.from,
            asset: self.authorization.permitted.token,
            spender: PERMIT2,
            amount: self.authorization.permitted.amount,
            nonce: Amount::from_atomic(U256::from(nonce)),
            deadline: self.authorization.deadline,
            signature: Bytes::new(),
            version: Version::current(),
        };
        let network = Network::from_chain_id(CHAIN_ID);
        let token = DomainSeparator::of_token("USDC", "2", network, info.asset);
        let signature = self.signer.sign_hash_sync(&info.digest(token)).unwrap();
        info.signature = signature.as_bytes().into();
        info
    }

    /// With a transaction signed by the payer that approves Permit2, in place of an allowance.
    pub(crate) fn with_approval(mut self, approval: &TxEip1559) -> Self {
        let info = json!({
            "from": self.authorization.from, "asset": self.authorization.permitted.token, "spender": PERMIT2,
            "amount": U256::MAX.to_string(), "signedTransaction": signed(approval, &self.signer), "version": "1",
        });
        self.extensions = json!({ ERC20_APPROVAL: { "info": info, "schema": {} } });
        self
    }

    /// The first transaction of a new account: an unlimited approval of Permit2, as official buyers write it.
    pub(crate) fn approval(&self) -> TxEip1559 {
        let call = approveCall {
            spender: PERMIT2,
            value: U256::MAX,
        };
        TxEip1559 {
            chain_id: CHAIN_ID,
            nonce: 0,
            gas_limit: 70_000,
            max_fee_per_gas: 5_000_000_000,
            max_priority_fee_per_gas: 1_000_000,
            to: TxKind::Call(self.authorization.permitted.token),
            input: call.abi_encode().into(),
            ..TxEip1559::default()
        }
    }

    /// The signer's signature, 65 bytes with v 27 or 28.
    pub(crate) fn own_signature(&self) -> Bytes {
        let separator = DomainSeparator::of_permit2(Network::from_chain_id(CHAIN_ID));
        let digest = self.authorization.digest(self.scheme, separator);
        let signature = self.signer.sign_hash_sync(&digest).unwrap();
        signature.as_bytes().into()
    }

    /// The body of `/verify` and `/settle`.
    pub(crate) fn body(&self) -> Value {
        let signature = self
            .signature
            .clone()
            .unwrap_or_else(|| self.own_signature());
        let payload = json!({"signature": signature, "permit2Authorization": self.authorization});
        let accepted = self.requirements(self.authorization.permitted.amount.atomic());
        let resource = json!({"url": "https://seller.test/goods"});
        let payment = json!({
            "x402Version": 2, "accepted": accepted, "payload": payload, "resource": resource, "extensions": self.extensions,
        });
        json!({"x402Version": 2, "paymentPayload": payment, "paymentRequirements": self.requirements(self.amount)})
    }

    /// Target and calldata of the call that settles it, from a signer or another account.
    pub(crate) fn call(&self) -> (Address, Bytes) {
        let method = Method::Permit2(Permit2 {
            permitted: self.authorization.permitted.amount,
            facilitator: self.authorization.witness.facilitator,
            sponsored: None,
        });
        let terms = self.authorization.terms(Amount::from_atomic(self.amount));
        settlement_call(&PaymentTerms {
            version: X402Version::V2,
            network: Network::from_chain_id(CHAIN_ID),
            asset: self.authorization.permitted.token,
            method,
            from: terms.from,
            to: terms.to,
            value: terms.value,
            valid_after: terms.valid_after.into(),
            valid_before: terms.valid_before.into(),
            nonce: terms.nonce,
            digest: B256::ZERO,
            signature: self.own_signature(),
            signed_by: None,
            wallet: None,
        })
    }

    fn requirements(&self, amount: U256) -> Value {
        let mut extra = json!({"name": "USDC", "version": "2", "assetTransferMethod": "permit2"});
        if self.scheme == Scheme::Upto {
            extra["facilitatorAddress"] = json!(Chain::signers(1)[0].address);
        }
        json!({
            "scheme": self.scheme.name(), "network": format!("eip155:{CHAIN_ID}"), "amount": amount.to_string(), "asset": self.asset,
            "payTo": self.pay_to, "maxTimeoutSeconds": 300, "extra": extra,
        })
    }
}
