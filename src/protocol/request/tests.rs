//! What a body may and may not be: known shapes one by one, everything else by properties.

use alloy::primitives::{U256, address};
use proptest::prelude::*;
use serde_json::json;

use super::*;

fn signed(request: &PaymentRequest) -> crate::protocol::Authorization {
    match &request.payload {
        Payload::Authorization(AuthorizationPayload::Eip3009(payload)) => payload.authorization,
        Payload::Authorization(AuthorizationPayload::Permit2(_)) | Payload::Proof(_) => {
            panic!("no authorization of EIP-3009")
        }
    }
}

const VERSIONS: [X402Version; 2] = [X402Version::V1, X402Version::V2];
const PAYER: Address = address!("19E7E376E7C213B7E7e7e46cc70A5dD086DAff2A");
const AUTHORIZATION: &str = "/paymentPayload/payload/authorization";

/// 65 bytes that no other text of a test holds.
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

fn parse(body: &Value) -> Result<Result<PaymentRequest, Refusal>, EnvelopeError> {
    PaymentRequest::parse(body.to_string().as_bytes())
}

fn reason(body: &Value) -> Reason {
    parse(body).unwrap().unwrap_err().reason
}

fn price(version: X402Version) -> &'static str {
    match version {
        X402Version::V1 => "/paymentRequirements/maxAmountRequired",
        X402Version::V2 => "/paymentRequirements/amount",
    }
}

/// Where the values of a JSON document stand.
fn places(value: &Value) -> Vec<String> {
    let Value::Object(members) = value else {
        return vec![String::new()];
    };
    let below = members.iter().flat_map(|(name, value)| {
        let inside = places(value);
        inside
            .into_iter()
            .map(move |place| format!("/{name}{place}"))
    });
    below.chain([String::new()]).collect()
}

#[test]
fn both_dialects_are_read_into_the_same_shape() {
    for version in VERSIONS {
        let request = parse(&body(version)).unwrap().unwrap();
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
fn what_is_no_envelope_is_no_refusal_either() {
    for text in ["", "[]", "null", "\"x\"", "{}", "{\"x402Version\":2}"] {
        let outcome = PaymentRequest::parse(text.as_bytes());
        assert!(matches!(outcome, Err(EnvelopeError::Shape(_))), "{text}");
    }
    for member in ["/paymentPayload", "/paymentRequirements"] {
        for value in [json!([]), json!("x"), json!(1)] {
            let outcome = parse(&changed(X402Version::V2, member, value.clone()));
            assert!(
                matches!(outcome, Err(EnvelopeError::NotAnObject(..))),
                "{member} {value}"
            );
        }
    }
    let mut nameless = changed(X402Version::V2, "/x402Version", Value::Null);
    nameless["paymentPayload"]["x402Version"] = Value::Null;
    assert!(matches!(
        parse(&nameless),
        Err(EnvelopeError::VersionMissing)
    ));
}

#[test]
fn versions_that_are_unknown_or_contradict_each_other_are_refused() {
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
    assert_eq!(reason(&future), Reason::InvalidX402Version, "whatever else");
    let alone = changed(X402Version::V1, "/x402Version", Value::Null);
    assert_eq!(parse(&alone).unwrap().unwrap().version, X402Version::V1);
}

#[test]
fn schemes_networks_and_payloads_of_others_are_named_as_such() {
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

/// The published vector (`docs/architecture.md#test-vectors`), as a scheme presents it.
fn by_permit2(scheme: &str) -> Value {
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
fn permit2_is_read_in_both_schemes_whether_the_method_is_named_or_not() {
    for (scheme, facilitator) in [("exact", None), ("upto", Some(Address::repeat_byte(0x33)))] {
        let named = by_permit2(scheme);
        let mut unnamed = named.clone();
        unnamed["paymentRequirements"]["extra"] = Value::Null;
        for body in [named, unnamed] {
            let request = parse(&body).unwrap().unwrap();
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
fn a_method_that_contradicts_the_payload_is_refused() {
    let mut as_eip3009 = by_permit2("exact");
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
        "upto is by Permit2 alone"
    );
    let mut broken = by_permit2("upto");
    broken["paymentPayload"]["payload"]["permit2Authorization"] = json!({ "from": PAYER });
    let refusal = parse(&broken).unwrap().unwrap_err();
    assert_eq!(refusal.reason, Reason::InvalidPayload);
    assert_eq!(refusal.payer, Some(PAYER));
}

#[test]
fn a_requirement_of_the_wrong_shape_is_called_that() {
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
fn what_is_being_sold_is_advice_and_never_a_reason_to_refuse() {
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
            assert!(parse(&body).unwrap().is_ok(), "{place} {value}");
        }
    }
    let mut body = body(X402Version::V2);
    body["paymentPayload"]["resource"] =
        json!({ "url": format!("\0\n{}", "x".repeat(5000)), "tags": [] });
    let resource = parse(&body).unwrap().unwrap().resource.unwrap();
    assert_eq!(
        resource,
        "x".repeat(2048),
        "the buyer's word, clean and cut"
    );
}

#[test]
fn a_refusal_names_the_payer_once_that_can_be_read() {
    let refusal = |pointer: &str, value: Value| {
        parse(&changed(X402Version::V2, pointer, value))
            .unwrap()
            .unwrap_err()
    };
    let late = refusal(&format!("{AUTHORIZATION}/nonce"), json!("0x00"));
    assert_eq!(late.payer, Some(PAYER));
    assert_eq!(late.network_name, "eip155:84532");
    let unreadable = refusal(&format!("{AUTHORIZATION}/from"), json!("nobody"));
    assert_eq!(unreadable.payer, None);
    assert_eq!(unreadable.reason, Reason::InvalidPayload);
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

/// Texts around numbers: plain ones, nearly plain ones, and anything.
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

/// Numbers at the edge of 256 bits.
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

/// The rule, said a second time and differently.
fn is_plain_decimal(text: &str) -> bool {
    let digits = text.chars().all(|letter| letter.is_ascii_digit());
    digits
        && !text.is_empty()
        && (text == "0" || !text.starts_with('0'))
        && (text.len() < 78 || (text.len() == 78 && *text <= *U256::MAX.to_string()))
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_never_a_payment_and_never_a_panic(bytes: Vec<u8>) {
        prop_assert!(!matches!(PaymentRequest::parse(&bytes), Ok(Ok(_))));
    }

    #[test]
    fn arbitrary_json_is_never_a_payment_and_never_a_panic(
        outer in any_json(), version in any_json(), payload in any_json(), required in any_json(),
    ) {
        let members = json!({ "x402Version": version, "paymentPayload": payload, "paymentRequirements": required });
        for body in [outer, members] {
            prop_assert!(!matches!(parse(&body), Ok(Ok(_))));
        }
    }

    #[test]
    fn any_value_in_any_place_is_read_or_refused_in_few_words_without_the_signature(
        version in any_version(), place: prop::sample::Index, value in any_json(),
    ) {
        let places = places(&body(version));
        let pointer: &String = place.get(&places);
        let outcome = parse(&changed(version, pointer, value));
        let said = format!("{outcome:?}");
        prop_assert!(!said.contains(signature().trim_start_matches("0x")));
        if let Ok(Err(refusal)) = outcome {
            prop_assert!(!refusal.message.is_empty() && refusal.message.chars().count() <= 200);
            prop_assert!(refusal.network_name.chars().count() <= 200);
        }
    }

    #[test]
    fn a_body_that_breaks_off_is_no_payment(version in any_version(), at: prop::sample::Index) {
        let text = body(version).to_string();
        let part = text.as_bytes().split_at(at.index(text.len())).0;
        prop_assert!(matches!(PaymentRequest::parse(part), Err(EnvelopeError::Shape(_))));
    }

    #[test]
    fn only_plain_decimal_texts_are_amounts_and_times(version in any_version(), text in any_amount_text()) {
        let plain = is_plain_decimal(&text);
        let number = |member: &str| format!("{AUTHORIZATION}/{member}");
        let places = [
            (price(version).to_owned(), Reason::InvalidPaymentRequirements),
            (number("value"), Reason::InvalidPayload),
            (number("validAfter"), Reason::InvalidPayload),
            (number("validBefore"), Reason::InvalidPayload),
        ];
        for (place, expected) in places {
            match parse(&changed(version, &place, json!(text))).unwrap() {
                Ok(request) => {
                    prop_assert!(plain, "{place} took {text:?}");
                    let signed = signed(&request);
                    let read = [request.requirements.amount, signed.value, signed.valid_after, signed.valid_before];
                    prop_assert!(read.iter().any(|amount| amount.to_string() == text));
                }
                Err(refusal) => {
                    prop_assert!(!plain, "{place} refused {text:?}: {}", refusal.message);
                    prop_assert_eq!(refusal.reason, expected);
                }
            }
        }
    }

    #[test]
    fn numbers_in_place_of_texts_are_refused(version in any_version(), number: u64) {
        let required = changed(version, price(version), json!(number));
        prop_assert_eq!(reason(&required), Reason::InvalidPaymentRequirements);
        let value = changed(version, &format!("{AUTHORIZATION}/value"), json!(number));
        prop_assert_eq!(reason(&value), Reason::InvalidPayload);
    }
}
