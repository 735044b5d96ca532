//! Payments as official buyers sign them and official sellers present them, sound or with one flaw.

use alloy::primitives::{Address, B256, Bytes, U256};
use alloy::signers::local::PrivateKeySigner;
use serde_json::{Value, json};

use crate::buyer::DigestSigner as _;
use crate::clock::{Clock as _, SystemClock};
use crate::protocol::assets::DefaultAsset;
use crate::protocol::gas_sponsoring::{EIP2612, Eip2612Info, Version};
use crate::protocol::permit2::{PERMIT2, Permitted, Witness, proxy_of};
use crate::protocol::{
    Amount, Authorization, DomainSeparator, Network, Permit2Authorization, Reason, Scheme,
};

/// How long a payment is valid, in seconds.
const VALID_FOR: i64 = 300;
/// How far outside its validity a flawed payment is, in seconds.
const OUTSIDE: i64 = 120;

/// The buyer, and the terms that it is offered.
pub(super) struct Buyer {
    pub(super) key: PrivateKeySigner,
    pub(super) network: Network,
    pub(super) asset: &'static DefaultAsset,
    pub(super) pay_to: Address,
    pub(super) amount: Amount,
    /// The nonce of all payments that must be refused. They share it, so that the token transfers at most one of them.
    pub(super) refused_nonce: B256,
}

/// What is wrong with a payment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flaw {
    WrongAmount,
    WrongPayee,
    Expired,
    NotYetValid,
    BadSignature,
    NoFunds,
}

impl Flaw {
    pub(super) const ALL: [Self; 6] = [
        Self::WrongAmount,
        Self::WrongPayee,
        Self::Expired,
        Self::NotYetValid,
        Self::BadSignature,
        Self::NoFunds,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::WrongAmount => "wrong amount",
            Self::WrongPayee => "wrong payee",
            Self::Expired => "expired",
            Self::NotYetValid => "not yet valid",
            Self::BadSignature => "bad signature",
            Self::NoFunds => "insufficient funds",
        }
    }

    pub(super) const fn codes(self) -> Codes {
        match self {
            Self::WrongAmount => Codes::with_older(
                Reason::ExactValueMismatch,
                &[
                    "invalid_exact_evm_authorization_value",
                    "invalid_exact_evm_payload_authorization_value",
                ],
            ),
            Self::WrongPayee => Codes::with_older(
                Reason::ExactRecipientMismatch,
                &["invalid_exact_evm_payload_recipient_mismatch"],
            ),
            Self::Expired => Codes::with_older(Reason::ExactValidBefore, &["payment_expired"]),
            Self::NotYetValid => Codes::of(Reason::ExactValidAfter),
            Self::BadSignature => Codes::with_older(
                Reason::ExactSignature,
                &["invalid_exact_evm_payload_signature"],
            ),
            Self::NoFunds => {
                Codes::with_older(Reason::ExactInsufficientBalance, &["insufficient_funds"])
            }
        }
    }
}

/// The documented codes of a refusal.
#[derive(Debug, Clone, Copy)]
pub(super) struct Codes {
    pub(super) newest: Reason,
    /// Codes of older SDKs and of the specification.
    older: &'static [&'static str],
}

impl Codes {
    pub(super) const fn of(newest: Reason) -> Self {
        Self::with_older(newest, &[])
    }

    pub(super) const fn with_older(newest: Reason, older: &'static [&'static str]) -> Self {
        Self { newest, older }
    }

    pub(super) fn contain(self, code: &str) -> bool {
        self.newest.code() == code || self.older.contains(&code)
    }
}

/// A request of `/verify`, and of `/settle`.
pub(super) type Body = Result<Value, String>;

impl Buyer {
    pub(super) fn address(&self) -> Address {
        self.key.address()
    }

    /// Scheme `exact` by the token's own authorization, in version 2.
    pub(super) fn exact(&self, flaw: Option<Flaw>) -> Body {
        let accepted = self.accepted(Scheme::Exact, &json!({}));
        Ok(in_version_2(
            &accepted,
            &self.authorization(flaw)?,
            &json!({}),
        ))
    }

    /// The same in version 1, where the network has the name `network`.
    pub(super) fn exact_v1(&self, network: &str, flaw: Option<Flaw>) -> Body {
        let required = json!({
            "scheme": "exact", "network": network, "maxAmountRequired": self.amount, "asset": self.asset.address,
            "payTo": self.pay_to, "maxTimeoutSeconds": VALID_FOR, "resource": "https://seller.example/report",
            "description": "A report", "mimeType": "application/json", "extra": self.domain(),
        });
        let payload = self.authorization(flaw)?;
        let payment =
            json!({"x402Version": 1, "scheme": "exact", "network": network, "payload": payload});
        Ok(json!({"x402Version": 1, "paymentPayload": payment, "paymentRequirements": required}))
    }

    fn authorization(&self, flaw: Option<Flaw>) -> Body {
        let now = SystemClock.now().unix_timestamp();
        let stranger = PrivateKeySigner::random();
        let mut signed = Authorization {
            from: self.address(),
            to: self.pay_to,
            value: self.amount,
            valid_after: Amount::ZERO,
            valid_before: seconds(now + VALID_FOR),
            nonce: flaw.map_or_else(B256::random, |_| self.refused_nonce),
        };
        let mut key = &self.key;
        match flaw {
            None => {}
            Some(Flaw::WrongAmount) => {
                signed.value = Amount::from_atomic(self.amount.atomic().saturating_sub(U256::ONE));
            }
            // The payer itself: if it is settled all the same, nothing is lost.
            Some(Flaw::WrongPayee) => signed.to = self.address(),
            Some(Flaw::Expired) => signed.valid_before = seconds(now - OUTSIDE),
            Some(Flaw::NotYetValid) => signed.valid_after = seconds(now + OUTSIDE),
            Some(Flaw::BadSignature) => key = &stranger,
            Some(Flaw::NoFunds) => {
                key = &stranger;
                signed.from = stranger.address();
            }
        }
        let signature = key.sign_digest(signed.digest(self.token()))?;
        Ok(json!({"signature": signature, "authorization": signed}))
    }

    /// A payment by Permit2. Scheme `upto` names the `facilitator` that may send it; `permit_nonce` adds an EIP-2612 permit.
    pub(super) fn by_permit2(
        &self,
        scheme: Scheme,
        facilitator: Option<Address>,
        permit_nonce: Option<U256>,
    ) -> Body {
        let signed = Permit2Authorization {
            from: self.address(),
            permitted: Permitted {
                token: self.asset.address,
                amount: self.amount,
            },
            spender: proxy_of(scheme),
            nonce: Amount::from_atomic(B256::random().into()),
            deadline: seconds(SystemClock.now().unix_timestamp() + VALID_FOR),
            witness: Witness {
                to: self.pay_to,
                facilitator,
                valid_after: Amount::ZERO,
            },
        };
        let digest = signed.digest(scheme, DomainSeparator::of_permit2(self.network));
        let signature = self.key.sign_digest(digest)?;
        let mut extra = json!({"assetTransferMethod": "permit2"});
        if let (Some(address), Some(extra)) = (facilitator, extra.as_object_mut()) {
            extra.insert("facilitatorAddress".to_owned(), json!(address));
        }
        let extensions = match permit_nonce {
            Some(nonce) => {
                json!({EIP2612: {"info": self.permit(nonce, signed.deadline)?, "schema": {}}})
            }
            None => json!({}),
        };
        let payload = json!({"signature": signature, "permit2Authorization": signed});
        Ok(in_version_2(
            &self.accepted(scheme, &extra),
            &payload,
            &extensions,
        ))
    }

    fn permit(&self, nonce: U256, deadline: Amount) -> Result<Eip2612Info, String> {
        let mut info = Eip2612Info {
            from: self.address(),
            asset: self.asset.address,
            spender: PERMIT2,
            amount: self.amount,
            nonce: Amount::from_atomic(nonce),
            deadline,
            signature: Bytes::new(),
            version: Version::current(),
        };
        info.signature = self.key.sign_digest(info.digest(self.token()))?;
        Ok(info)
    }

    /// The terms of a seller, with further members of `extra`.
    fn accepted(&self, scheme: Scheme, further: &Value) -> Value {
        let mut extra = self.domain();
        if let (Some(extra), Some(further)) = (extra.as_object_mut(), further.as_object()) {
            extra.extend(further.clone());
        }
        json!({
            "scheme": scheme.name(), "network": self.network.to_string(), "amount": self.amount, "asset": self.asset.address,
            "payTo": self.pay_to, "maxTimeoutSeconds": VALID_FOR, "extra": extra,
        })
    }

    fn domain(&self) -> Value {
        json!({"name": self.asset.name, "version": self.asset.version})
    }

    fn token(&self) -> DomainSeparator {
        let (name, version) = (self.asset.name, self.asset.version);
        DomainSeparator::of_token(name, version, self.network, self.asset.address)
    }
}

fn in_version_2(accepted: &Value, payload: &Value, extensions: &Value) -> Value {
    let resource = json!({"url": "https://seller.example/report", "description": "A report", "mimeType": "application/json"});
    let payment = json!({
        "x402Version": 2, "payload": payload, "extensions": extensions, "resource": resource, "accepted": accepted,
    });
    json!({"x402Version": 2, "paymentPayload": payment, "paymentRequirements": accepted})
}

/// The same request with another value of a member of the accepted and of the required terms.
pub(super) fn with_term(mut body: Value, name: &str, value: &str) -> Value {
    for terms in ["/paymentPayload/accepted", "/paymentRequirements"] {
        if let Some(member) = body.pointer_mut(&format!("{terms}/{name}")) {
            *member = json!(value);
        }
    }
    body
}

/// The same request of scheme `upto` with this charge.
pub(super) fn charging(mut body: Value, charge: Amount) -> Value {
    if let Some(amount) = body.pointer_mut("/paymentRequirements/amount") {
        *amount = json!(charge);
    }
    body
}

fn seconds(at: i64) -> Amount {
    Amount::from_atomic(U256::from(u64::try_from(at).unwrap_or_default()))
}
