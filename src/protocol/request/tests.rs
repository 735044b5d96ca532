//! Parsing of request bodies: known shapes one by one, all other input with property tests.

use alloy::primitives::{U256, address};
use proptest::prelude::*;
use serde_json::json;

use super::*;

fn signed(request: &PaymentRequest) -> crate::protocol::Authorization {
    match &request.payload {
        Payload::Authorization(AuthorizationPayload::Eip3009(payload)) => payload.authorization,
        Payload::Authorization(AuthorizationPayload::Permit2(_)) | Payload::Proof(_) => {
            panic!("expected an EIP-3009 authorization")
        }
    }
}

const VERSIONS: [X402Version; 2] = [X402Version::V1, X402Version::V2];
const PAYER: Address = address!("19E7E376E7C213B7E7e7e46cc70A5dD086DAff2A");
const AUTHORIZATION: &str = "/paymentPayload/payload/authorization";

/// A signature of 65 bytes that occurs in no other text of these tests.
fn signature() -> String {
    format!("0x{}", "5d".repeat(65))
}

fn body(version: X402Version) -> Value {
    let payload = json!({
        "signature": signature(),
        "authorization": {
            "from": PAYER, "to": Address::repeat_byte(0x22), "value": "10000", "validAfter": "0",
            "validBefore": "1900000000", "nonce": format!("0x{}", "ab".repeat(32)),
        },
    });
    let (price, network) = match version {
        X402Version::V1 => ("maxAmountRequired", "base-sepolia"),
        X402Version::V2 => ("amount", "eip155:84532"),
    };
    let required = json!({
        "scheme": "exact", "network": network, price: "10000", "asset": Address::repeat_byte(0x33),
        "payTo": Address::repeat_byte(0x22), "maxTimeoutSeconds": 300, "resource": "https://seller.example/report",
        "extra": { "name": "USDC", "version": "2" },
    });
    let number = u8::from(version);
    let mut payment = json!({ "x402Version": number, "payload": payload });
    match version {
        X402Version::V1 => {
            payment["scheme"] = json!("exact");
            payment["network"] = json!(network);
        }
        X402Version::V2 => payment["accepted"] = required.clone(),
    }
    json!({ "x402Version": number, "paymentPayload": payment, "paymentRequirements": required })
}

fn changed(version: X402Version, pointer: &str, value: Value) -> Value {
    let mut body = body(version);
    *body.pointer_mut(pointer).unwrap() = value;
    body
}

fn parse(body: &Value) -> Result<PaymentRequest, RequestError> {
    PaymentRequest::parse(body.to_string().as_bytes())
}

/// The reason, the payer and the network name of a rejection.
fn rejected(body: &Value) -> (Reason, Option<Address>, String) {
    match parse(body) {
        Err(RequestError::Rejected {
            rejection,
            payer,
            network_name,
        }) => (rejection.reason, payer, network_name),
        outcome => panic!("expected a rejection, got {outcome:?}"),
    }
}

fn reason(body: &Value) -> Reason {
    rejected(body).0
}

fn price(version: X402Version) -> &'static str {
    match version {
        X402Version::V1 => "/paymentRequirements/maxAmountRequired",
        X402Version::V2 => "/paymentRequirements/amount",
    }
}

/// The JSON pointers of all values in a document.
fn pointers(value: &Value) -> Vec<String> {
    let Value::Object(members) = value else {
        return vec![String::new()];
    };
    let below = members.iter().flat_map(|(name, value)| {
        let inside = pointers(value);
        inside
            .into_iter()
            .map(move |pointer| format!("/{name}{pointer}"))
    });
    below.chain([String::new()]).collect()
}

#[test]
fn both_versions_parse_to_the_same_request() {
    for version in VERSIONS {
        let request = parse(&body(version)).unwrap();
        assert_eq!(request.version, version);
        assert_eq!(request.accepted_network, Network::from_chain_id(84_532));
        assert_eq!(request.requirements.network, request.accepted_network);
        assert_eq!(request.requirements.amount, "10000".parse().unwrap());
        assert_eq!(signed(&request).from, PAYER);
        let resource = request.resource.as_deref();
        assert_eq!(resource, Some("https://seller.example/report"));
    }
}

#[test]
fn bodies_that_are_not_requests_are_envelope_errors() {
    for text in ["", "[]", "null", "\"x\"", "{}", "{\"x402Version\":2}"] {
        let outcome = PaymentRequest::parse(text.as_bytes());
        assert!(matches!(outcome, Err(RequestError::Shape(_))), "{text}");
    }
    for member in ["/paymentPayload", "/paymentRequirements"] {
        for value in [json!([]), json!("x"), json!(1)] {
            let outcome = parse(&changed(X402Version::V2, member, value.clone()));
            assert!(
                matches!(outcome, Err(RequestError::NotAnObject(..))),
                "{member} {value}"
            );
        }
    }
    let mut nameless = changed(X402Version::V2, "/x402Version", Value::Null);
    nameless["paymentPayload"]["x402Version"] = Value::Null;
    assert!(matches!(
        parse(&nameless),
        Err(RequestError::VersionMissing)
    ));
}

#[test]
fn unknown_or_contradicting_versions_are_rejected() {
    for version in [0_u64, 3, 257, 258, u64::MAX] {
        let mut body = changed(X402Version::V2, "/x402Version", json!(version));
        assert_eq!(
            reason(&body),
            Reason::InvalidX402Version,
            "{version} outside"
        );
        body["paymentPayload"]["x402Version"] = json!(version);
        assert_eq!(reason(&body), Reason::InvalidX402Version, "{version}");
    }
    let mut future = changed(X402Version::V2, "/x402Version", json!(3));
    future["paymentPayload"]["x402Version"] = json!(3);
    future["paymentRequirements"] = json!({ "scheme": {} });
    assert_eq!(
        reason(&future),
        Reason::InvalidX402Version,
        "the version is checked first"
    );
    let alone = changed(X402Version::V1, "/x402Version", Value::Null);
    assert_eq!(parse(&alone).unwrap().version, X402Version::V1);
}

#[test]
fn unsupported_schemes_networks_and_payloads_have_their_codes() {
    let v2 = |pointer: &str, value: Value| reason(&changed(X402Version::V2, pointer, value));
    for place in ["/paymentPayload/accepted", "/paymentRequirements"] {
        assert_eq!(
            v2(&format!("{place}/scheme"), json!("barter")),
            Reason::UnsupportedScheme
        );
        let early = changed(
            X402Version::V1,
            "/paymentRequirements/scheme",
            json!("upto"),
        );
        assert_eq!(reason(&early), Reason::UnsupportedScheme, "v1 has no upto");
        for network in ["base", "eip155:*", "solana:1", "eip155:084532", ""] {
            let found = v2(&format!("{place}/network"), json!(network));
            assert_eq!(found, Reason::InvalidNetwork, "{place} {network:?}");
        }
    }
    let arbitrum = changed(
        X402Version::V1,
        "/paymentRequirements/network",
        json!("arbitrum"),
    );
    assert_eq!(reason(&arbitrum), Reason::InvalidNetwork);
    for payload in [
        json!({ "permissionContext": "0x" }),
        json!({ "type": "deposit" }),
    ] {
        let found = v2("/paymentPayload/payload", payload.clone());
        assert_eq!(found, Reason::UnsupportedPayloadType, "{payload}");
    }
    let method = json!({ "assetTransferMethod": "permit2" });
    assert_eq!(
        v2("/paymentRequirements/extra", method),
        Reason::UnsupportedPayloadType
    );
}

/// A good body with a Permit2 payload of the given scheme.
fn permit2_body(scheme: &str) -> Value {
    let mut body = body(X402Version::V2);
    let mut witness = json!({ "to": Address::repeat_byte(0x22), "validAfter": "0" });
    if scheme == "upto" {
        witness["facilitator"] = json!(Address::repeat_byte(0x33));
    }
    body["paymentPayload"]["payload"] = json!({
        "signature": signature(),
        "permit2Authorization": {
            "from": PAYER, "permitted": { "token": Address::repeat_byte(0x33), "amount": "10000" },
            "spender": Address::repeat_byte(0x44), "nonce": "7", "deadline": "1900000000", "witness": witness,
        },
    });
    for place in ["/paymentPayload/accepted", "/paymentRequirements"] {
        let entry = body.pointer_mut(place).unwrap();
        entry["scheme"] = json!(scheme);
        entry["extra"] = json!({ "assetTransferMethod": "permit2" });
    }
    body
}

#[test]
fn permit2_parses_in_both_schemes_with_and_without_method() {
    for (scheme, facilitator) in [("exact", None), ("upto", Some(Address::repeat_byte(0x33)))] {
        let named = permit2_body(scheme);
        let mut unnamed = named.clone();
        unnamed["paymentRequirements"]["extra"] = Value::Null;
        for body in [named, unnamed] {
            let request = parse(&body).unwrap();
            assert_eq!(request.requirements.scheme.name(), scheme);
            let Payload::Authorization(AuthorizationPayload::Permit2(payload)) = request.payload
            else {
                panic!("expected Permit2, got {:?}", request.payload);
            };
            assert_eq!(payload.permit2_authorization.from, PAYER);
            assert_eq!(
                payload.permit2_authorization.witness.facilitator,
                facilitator
            );
        }
    }
}

#[test]
fn transfer_method_that_contradicts_the_payload_is_rejected() {
    let mut as_eip3009 = permit2_body("exact");
    as_eip3009["paymentRequirements"]["extra"] = json!({ "assetTransferMethod": "eip3009" });
    assert_eq!(reason(&as_eip3009), Reason::UnsupportedPayloadType);
    let mut metered = body(X402Version::V2);
    for place in [
        "/paymentPayload/accepted/scheme",
        "/paymentRequirements/scheme",
    ] {
        *metered.pointer_mut(place).unwrap() = json!("upto");
    }
    assert_eq!(
        reason(&metered),
        Reason::UnsupportedPayloadType,
        "upto requires Permit2"
    );
    let mut broken = permit2_body("upto");
    broken["paymentPayload"]["payload"]["permit2Authorization"] = json!({ "from": PAYER });
    let (reason, payer, _) = rejected(&broken);
    assert_eq!((reason, payer), (Reason::InvalidPayload, Some(PAYER)));
}

#[test]
fn malformed_requirements_have_their_own_code() {
    for version in VERSIONS {
        for (member, value) in [
            ("scheme", json!(1)),
            ("network", json!(84_532)),
            ("asset", json!("0x12")),
            ("payTo", Value::Null),
            ("maxTimeoutSeconds", json!("300")),
            ("maxTimeoutSeconds", json!(-1)),
            ("extra", json!([])),
        ] {
            let pointer = format!("/paymentRequirements/{member}");
            let found = reason(&changed(version, &pointer, value.clone()));
            assert_eq!(
                found,
                Reason::InvalidPaymentRequirements,
                "{version:?} {member} {value}"
            );
        }
    }
}

#[test]
fn malformed_resource_is_never_a_reason_to_reject() {
    for value in [
        json!({}),
        json!(7),
        json!({ "url": 7 }),
        json!([]),
        Value::Null,
    ] {
        for place in ["/paymentRequirements/resource", "/paymentPayload/resource"] {
            let mut body = body(X402Version::V2);
            body["paymentPayload"]["resource"] = json!({ "url": "https://buyer.example" });
            *body.pointer_mut(place).unwrap() = value.clone();
            assert!(parse(&body).is_ok(), "{place} {value}");
        }
    }
    let mut body = body(X402Version::V2);
    body["paymentPayload"]["resource"] =
        json!({ "url": format!("\0\n{}", "x".repeat(5000)), "tags": [] });
    let resource = parse(&body).unwrap().resource.unwrap();
    assert_eq!(
        resource,
        "x".repeat(2048),
        "the buyer's URL, without control characters, cut"
    );
}

#[test]
fn rejection_names_the_payer_if_it_can_be_read() {
    let network_name = "eip155:84532".to_owned();
    for (member, value, payer) in [("nonce", "0x00", Some(PAYER)), ("from", "nobody", None)] {
        let pointer = format!("{AUTHORIZATION}/{member}");
        let found = rejected(&changed(X402Version::V2, &pointer, json!(value)));
        let expected = (Reason::InvalidPayload, payer, network_name.clone());
        assert_eq!(found, expected, "{member}");
    }
}

fn any_version() -> impl Strategy<Value = X402Version> {
    prop::sample::select(&VERSIONS[..])
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        "0x[0-9a-fA-F]{0,140}".prop_map(Value::from),
        prop::sample::select(vec!["exact", "upto", "base", "eip155:1", "10000"])
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        let name = prop_oneof![
            prop::sample::select(vec![
                "x402Version",
                "payload",
                "accepted",
                "scheme",
                "network",
                "authorization",
                "signature",
                "from",
                "url",
                "type",
                "extra",
            ])
            .prop_map(str::to_owned),
            any::<String>(),
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((name, inner), 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// Valid decimal integers, almost valid ones, and arbitrary texts.
fn any_amount_text() -> impl Strategy<Value = String> {
    prop_oneof![
        "(0|[1-9][0-9]{0,90})",
        "[0-9]{1,90}",
        "[-+ ]?[0-9._xe,]{0,12} ?",
        "0[xX][0-9a-fA-F]{1,64}",
        any::<U256Text>().prop_map(|text| text.0),
        any::<String>(),
    ]
}

/// Decimal integers just below and just above 2^256.
#[derive(Debug, Clone)]
struct U256Text(String);

impl Arbitrary for U256Text {
    type Parameters = ();
    type Strategy = BoxedStrategy<Self>;

    fn arbitrary_with((): ()) -> Self::Strategy {
        let near = (0_u8..10).prop_map(|below| (U256::MAX - U256::from(below)).to_string());
        let beyond =
            "11579208923731619542357098500868790785326998466564056403945758400791312963993[6-9]";
        prop_oneof![near, beyond].prop_map(Self).boxed()
    }
}

/// A second, independent implementation of the rule for amounts.
fn is_plain_decimal(text: &str) -> bool {
    let digits = text.chars().all(|letter| letter.is_ascii_digit());
    digits
        && !text.is_empty()
        && (text == "0" || !text.starts_with('0'))
        && (text.len() < 78 || (text.len() == 78 && *text <= *U256::MAX.to_string()))
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_parse_and_never_panic(bytes: Vec<u8>) {
        prop_assert!(PaymentRequest::parse(&bytes).is_err());
    }

    #[test]
    fn arbitrary_json_never_parses_and_never_panics(
        outer in any_json(), version in any_json(), payload in any_json(), required in any_json(),
    ) {
        let members = json!({ "x402Version": version, "paymentPayload": payload, "paymentRequirements": required });
        for body in [outer, members] {
            prop_assert!(parse(&body).is_err());
        }
    }

    #[test]
    fn any_value_anywhere_gives_a_short_error_without_signature(
        version in any_version(), position: prop::sample::Index, value in any_json(),
    ) {
        let pointers = pointers(&body(version));
        let pointer: &String = position.get(&pointers);
        let outcome = parse(&changed(version, pointer, value));
        let printed = format!("{outcome:?}");
        prop_assert!(!printed.contains(signature().trim_start_matches("0x")));
        if let Err(RequestError::Rejected { rejection, network_name, .. }) = outcome {
            prop_assert!(!rejection.message.is_empty() && rejection.message.chars().count() <= 200);
            prop_assert!(network_name.chars().count() <= 200);
        }
    }

    #[test]
    fn truncated_body_is_an_envelope_error(version in any_version(), at: prop::sample::Index) {
        let text = body(version).to_string();
        let part = text.as_bytes().split_at(at.index(text.len())).0;
        prop_assert!(matches!(PaymentRequest::parse(part), Err(RequestError::Shape(_))));
    }

    #[test]
    fn amounts_and_times_must_be_plain_decimal_integers(version in any_version(), text in any_amount_text()) {
        let plain = is_plain_decimal(&text);
        let number = |member: &str| format!("{AUTHORIZATION}/{member}");
        let places = [
            (price(version).to_owned(), Reason::InvalidPaymentRequirements),
            (number("value"), Reason::InvalidPayload),
            (number("validAfter"), Reason::InvalidPayload),
            (number("validBefore"), Reason::InvalidPayload),
        ];
        for (place, expected) in places {
            match parse(&changed(version, &place, json!(text))) {
                Ok(request) => {
                    prop_assert!(plain, "{place} accepted {text:?}");
                    let signed = signed(&request);
                    let read = [request.requirements.amount, signed.value, signed.valid_after, signed.valid_before];
                    prop_assert!(read.iter().any(|amount| amount.to_string() == text));
                }
                Err(RequestError::Rejected { rejection, .. }) => {
                    prop_assert!(!plain, "{place} refused {text:?}: {}", rejection.message);
                    prop_assert_eq!(rejection.reason, expected);
                }
                Err(error) => panic!("{place}: {error}"),
            }
        }
    }

    #[test]
    fn json_numbers_as_amounts_are_rejected(version in any_version(), number: u64) {
        let required = changed(version, price(version), json!(number));
        prop_assert_eq!(reason(&required), Reason::InvalidPaymentRequirements);
        let value = changed(version, &format!("{AUTHORIZATION}/value"), json!(number));
        prop_assert_eq!(reason(&value), Reason::InvalidPayload);
    }
}
