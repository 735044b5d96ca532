//! A payment for tests: the published test vector in both protocol versions. At [`now`] it passes every check.

use alloy::primitives::{Address, B256, Bytes, U256, address, b256};
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::payment::{
    Asset, Candidate, ChainFacts, GasBudget, Location, NetworkPolicy, Payment, PaymentId,
    PaymentState, PaymentTerms, Purpose,
};
use crate::protocol::permit2::proxy_of;
use crate::protocol::session::Rail;
use crate::protocol::{
    AuthorizationPayload, DomainSeparator, Network, Payload, PaymentRequest, Scheme, X402Version,
};

pub(crate) const USDC: Address = address!("036CbD53842c5426634e7929541eC2318f3dCF7e");
/// The account of the private key that is 32 times 0x11.
pub(crate) const PAYER: Address = address!("19E7E376E7C213B7E7e7e46cc70A5dD086DAff2A");
pub(crate) const PAYEE: Address = Address::repeat_byte(0x22);
/// The signer that settles.
pub(crate) const FACILITATOR: Address = Address::repeat_byte(0x33);
/// The price in atomic units.
pub(crate) const AMOUNT: u64 = 10_000;
/// The expiry of the authorization, in Unix seconds.
pub(crate) const VALID_BEFORE: i64 = 1_900_000_000;
/// The EIP-712 digest that the payer signed.
pub(crate) const DIGEST: B256 =
    b256!("381b86af084fb5aae332949d22d96326ab5f699c65fe1a865807217d5ecb7c86");
/// The payer's signature over [`DIGEST`].
pub(crate) const SIGNATURE: &str = "0x34810545ab6517f1d4b463d8748b29fca88d3216c54eadaf5fde914d5a837b6b05d4ea2c5f87f89b5235499dd0469e3c1861a25bb8ad56e25ea8693fb73327771b";

/// Five minutes before the authorization expires.
pub(crate) fn now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(VALID_BEFORE - 300).unwrap()
}

/// The body of `/verify` and `/settle`.
pub(crate) fn body(version: X402Version) -> Value {
    let payload = json!({
        "signature": SIGNATURE,
        "authorization": {
            "from": PAYER, "to": PAYEE, "value": AMOUNT.to_string(), "validAfter": "0",
            "validBefore": VALID_BEFORE.to_string(), "nonce": B256::repeat_byte(0xab),
        },
    });
    let mut required = json!({
        "scheme": "exact", "network": "eip155:84532", "amount": AMOUNT.to_string(), "asset": USDC, "payTo": PAYEE,
        "maxTimeoutSeconds": 300, "extra": { "name": "USDC", "version": "2" },
    });
    if version == X402Version::V2 {
        return json!({
            "x402Version": 2,
            "paymentPayload": { "x402Version": 2, "payload": payload, "accepted": required },
            "paymentRequirements": required,
        });
    }
    let members = required.as_object_mut().unwrap();
    let amount = members.remove("amount").unwrap();
    members.insert("maxAmountRequired".to_owned(), amount);
    members.insert("network".to_owned(), json!("base-sepolia"));
    json!({
        "x402Version": 1,
        "paymentPayload": { "x402Version": 1, "scheme": "exact", "network": "base-sepolia", "payload": payload },
        "paymentRequirements": required,
    })
}

/// The body of a Permit2 payment: the published vectors of both schemes.
pub(crate) fn permit2_body(scheme: Scheme) -> Value {
    let (signature, mut witness) = match scheme {
        Scheme::Exact => (
            "0xd5d92faa68ee8a391c1e3ad721efcdfb48d3c73c39438d353afb0357d75a96736aeccac09d31d96a64bf06c04a6110700c57f808128e95f20fc000330b8d975c1c",
            json!({}),
        ),
        Scheme::Upto => (
            "0x18d14173e84d8c6e2ed75585203d2b0eb396da09c712872c9654e5914d2c5fa801e046c96c851794967ccf9e7972bb729b3b2d4a0d6f199252bf0427d26111bf1c",
            json!({ "facilitator": FACILITATOR }),
        ),
    };
    witness["to"] = json!(PAYEE);
    witness["validAfter"] = json!("0");
    let mut body = body(X402Version::V2);
    body["paymentPayload"]["payload"] = json!({
        "signature": signature,
        "permit2Authorization": {
            "from": PAYER, "permitted": { "token": USDC, "amount": AMOUNT.to_string() }, "spender": proxy_of(scheme), "nonce": "7",
            "deadline": VALID_BEFORE.to_string(), "witness": witness,
        },
    });
    for place in ["/paymentPayload/accepted", "/paymentRequirements"] {
        let entry = body.pointer_mut(place).unwrap();
        entry["scheme"] = json!(scheme.name());
        entry["extra"] =
            json!({ "assetTransferMethod": "permit2", "name": "USDC", "version": "2" });
    }
    body
}

/// Parses a body, which must be well-formed and carry an authorization.
pub(crate) fn request(body: &Value) -> PaymentRequest<AuthorizationPayload> {
    let parsed = PaymentRequest::parse(body.to_string().as_bytes());
    let (rest, payload) = parsed.unwrap().with_payload(());
    match payload {
        Payload::Authorization(payload) => rest.with_payload(payload).0,
        Payload::Proof(_) => panic!("expected an authorization, got a proof"),
    }
}

/// A policy with the token, any payee, no factory, and a validity of six seconds to one day.
pub(crate) fn policy() -> NetworkPolicy {
    let network = Network::from_chain_id(84_532);
    NetworkPolicy {
        network,
        assets: vec![Asset::new(network, USDC, "USDC", "2", 6)],
        payees: Vec::new(),
        signers: vec![FACILITATOR],
        permit2: DomainSeparator::of_permit2(network),
        approvals: None,
        budget: GasBudget::default(),
        factories: Vec::new(),
        validity_min: Duration::seconds(6),
        validity_max: Duration::days(1),
        confirmations: 2,
    }
}

/// The candidate of the v2 body.
pub(crate) fn candidate() -> Candidate {
    candidate_of(&body(X402Version::V2), Purpose::Settle)
}

/// The candidate of a well-formed body.
pub(crate) fn candidate_of(body: &Value, purpose: Purpose) -> Candidate {
    Candidate::from_request(request(body), &policy(), purpose).unwrap()
}

/// Facts with which the payment passes every check.
pub(crate) fn facts() -> ChainFacts {
    ChainFacts {
        block_number: 100,
        block_time: now(),
        token_has_code: true,
        settler_has_code: true,
        allowance: None,
        payer_has_code: false,
        nonce_used: Some(false),
        balance: Some(U256::from(AMOUNT)),
        signature_accepted: false,
        transfer_succeeds: true,
        revert: Bytes::new(),
        gas_used: 60_000,
    }
}

/// The location of the payment's transfer, once mined.
pub(crate) fn location() -> Location {
    Location {
        transaction: B256::repeat_byte(0x71),
        log_index: 7,
        block_number: 100,
        block_hash: B256::repeat_byte(0xb1),
        block_time: now(),
    }
}

/// The accepted payment in a state.
pub(crate) fn payment(state: PaymentState) -> Payment {
    let candidate = candidate();
    Payment {
        id: PaymentId(Uuid::from_u128(7)),
        rail: Rail::Authorization,
        terms: PaymentTerms {
            signed_by: None,
            ..candidate.terms
        },
        resource: candidate.resource,
        state,
        caller: None,
        confirmations: 2,
        quarantine: None,
        unmatched: None,
        told: false,
        created_at: now(),
        updated_at: now(),
    }
}
