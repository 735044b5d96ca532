use alloy::primitives::{address, b256};
use serde_json::json;

use super::*;

const ID: &str = "ps_0123456789abcdefghjkmnpqrs";

fn entry() -> Value {
    json!({"scheme": "exact", "network": "eip155:84532", "amount": "10000", "asset": "0x036CbD53842c5426634e7929541eC2318f3dCF7e",
        "payTo": "0x2222222222222222222222222222222222222222", "maxTimeoutSeconds": 300, "extra": {"name": "USDC", "version": "2"}})
}

fn id() -> SessionId {
    ID.parse().unwrap()
}

#[test]
fn session_id_round_trips_and_other_texts_are_rejected() {
    let made = SessionId::from_entropy(FixedBytes::repeat_byte(0xff));
    assert_eq!(made.as_str(), "ps_zzzzzzzzzzzzzzzzzzzzzzzzzz");
    assert_eq!(made.to_string().parse(), Ok(made));
    for wrong in [
        "",
        "ps_",
        "0123456789abcdefghjkmnpqrs",
        "ps_0123456789abcdefghjkmnpqr",
        "ps_0123456789abcdefghjkmnpqrst",
        "ps_0123456789abcdefghjkmnpqri",
        "PS_0123456789ABCDEFGHJKMNPQRS",
    ] {
        assert_eq!(wrong.parse::<SessionId>(), Err(InvalidSessionId), "{wrong}");
    }
}

#[test]
fn requirements_hash_ignores_the_order_of_members() {
    let text = r#"{"extra":{"version":"2","name":"USDC"},"maxTimeoutSeconds":300,"payTo":"0x2222222222222222222222222222222222222222",
        "asset":"0x036CbD53842c5426634e7929541eC2318f3dCF7e","amount":"10000","network":"eip155:84532","scheme":"exact"}"#;
    let shuffled: Value = serde_json::from_str(text).unwrap();
    let canonical = r#"{"amount":"10000","asset":"0x036CbD53842c5426634e7929541eC2318f3dCF7e","extra":{"name":"USDC","version":"2"},"maxTimeoutSeconds":300,"network":"eip155:84532","payTo":"0x2222222222222222222222222222222222222222","scheme":"exact"}"#;
    assert_eq!(requirements_hash(&entry()).unwrap(), keccak256(canonical));
    assert_eq!(
        requirements_hash(&shuffled).unwrap(),
        requirements_hash(&entry()).unwrap()
    );
    let mut other = entry();
    other["amount"] = json!("10001");
    assert_ne!(
        requirements_hash(&other).unwrap(),
        requirements_hash(&entry()).unwrap()
    );
}

/// The expected values were computed independently with viem 2.
#[test]
fn hash_nonce_and_claim_match_the_published_vectors() {
    let hash = requirements_hash(&entry()).unwrap();
    assert_eq!(
        hash,
        b256!("5afd667bfeb131f89c610ba567fbc43bb90f2a2fa9bffc33e9b2a1b19ca9e1b6")
    );
    assert_eq!(
        nonce(&id(), hash),
        b256!("a891912dec49cde9e71ae0adcace51d706fdfa2223b7d9896ba2ecc70ad75919")
    );
    assert_eq!(
        claim_digest(
            &id(),
            hash,
            B256::repeat_byte(0xcd),
            Network::from_chain_id(84_532)
        ),
        b256!("1cdbb3f7ba0a07016f4c5f4d22ea59be6f9ec12ba98dd55972a965565e79881c")
    );
}

#[test]
fn only_the_exact_transfer_with_an_optional_tag_is_accepted() {
    let payee = address!("2222222222222222222222222222222222222222");
    let (amount, tag): (Amount, _) = ("10000".parse().unwrap(), B256::repeat_byte(7));
    let tagged = transfer_calldata(payee, amount, tag);
    assert_eq!(transfer_tag(&tagged, payee, amount), Ok(Some(tag)));
    assert_eq!(transfer_tag(&tagged[..68], payee, amount), Ok(None));
    for data in [
        &tagged[..67],
        &tagged[..69],
        &[tagged.to_vec(), vec![0]].concat(),
        &[],
    ] {
        assert_eq!(transfer_tag(data, payee, amount), Err(NotSessionTransfer));
    }
    assert_eq!(
        transfer_tag(&tagged, Address::repeat_byte(0x23), amount),
        Err(NotSessionTransfer)
    );
    assert_eq!(
        transfer_tag(&tagged, payee, "9999".parse().unwrap()),
        Err(NotSessionTransfer)
    );
}

#[test]
fn submission_has_exactly_one_of_three_forms() {
    let form = |body: Value| {
        serde_json::from_value::<TransferSubmission>(body)
            .ok()
            .and_then(TransferSubmission::form)
    };
    let hash = B256::repeat_byte(1);
    let sent = TransferForm::Sent {
        transaction: hash,
        claim: None,
    };
    assert_eq!(form(json!({"transaction": hash})), Some(sent));
    let raw = TransferForm::Raw {
        bytes: Bytes::from_static(&[2, 3]),
        claim: Some(Bytes::from_static(&[9])),
    };
    assert_eq!(
        form(json!({"rawTransaction": "0x0203", "signature": "0x09"})),
        Some(raw.clone())
    );
    assert_eq!(TransferSubmission::from(raw.clone()).form(), Some(raw));
    for none in [
        json!({}),
        json!({"signature": "0x09"}),
        json!({"transaction": hash, "rawTransaction": "0x02"}),
        json!({"transaction": "0x01"}),
        json!({"hash": hash}),
    ] {
        assert_eq!(form(none.clone()), None, "{none}");
    }
}
