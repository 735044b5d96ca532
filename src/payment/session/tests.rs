use serde_json::json;

use super::*;
use crate::payment::fixture::{AMOUNT, PAYEE, PAYER, USDC, now};
use crate::protocol::session::{nonce, transfer_calldata};

fn session(rail: Rail) -> Session {
    let id: SessionId = "ps_0123456789abcdefghjkmnpqrs".parse().unwrap();
    let requirements_hash = B256::repeat_byte(0x44);
    Session {
        version: X402Version::V2,
        rail,
        network: Network::from_chain_id(84_532),
        asset: USDC,
        payer: PAYER,
        payee: PAYEE,
        amount: Amount::from_atomic(U256::from(AMOUNT)),
        accepted: String::new(),
        requirements_hash,
        nonce: nonce(&id, requirements_hash),
        id,
        resource_id: Some(PlainText::cleaned("reports", 10)),
        resource: None,
        client_reference: None,
        accept_from_block: 7,
        confirmations: 1,
        expires_at: now(),
        status: SessionStatus::Open,
        payment: None,
        needs_id: false,
        created_at: now(),
    }
}

fn required() -> PaymentRequirements {
    serde_json::from_value(json!({"scheme": "exact", "network": "eip155:84532", "amount": AMOUNT.to_string(), "asset": USDC,
        "payTo": PAYEE, "maxTimeoutSeconds": 300, "extra": {"name": "USDC", "version": "2", "resourceId": "reports"}}))
    .unwrap()
}

fn transfer(session: &Session) -> Transfer {
    Transfer {
        hash: B256::repeat_byte(1),
        chain_id: Some(84_532),
        from: PAYER,
        account_nonce: 0,
        to: Some(USDC),
        value: U256::ZERO,
        input: transfer_calldata(PAYEE, session.amount, session.nonce),
    }
}

#[test]
fn requirements_may_differ_only_in_extra_and_timeout() {
    let session = session(Rail::Transfer);
    let mut asked = required();
    asked.max_timeout_seconds = 60;
    asked
        .extra
        .as_mut()
        .unwrap()
        .insert("later".to_owned(), json!(1));
    assert_eq!(session.check_requirements(&asked), Ok(()));
    let changes: [fn(&mut PaymentRequirements); 6] = [
        |asked| asked.network = Network::from_chain_id(8453),
        |asked| asked.asset = Address::repeat_byte(9),
        |asked| asked.pay_to = Address::repeat_byte(9),
        |asked| asked.amount = "10001".parse().unwrap(),
        |asked| {
            let extra = asked.extra.as_mut().unwrap();
            extra.insert("resourceId".to_owned(), json!("other"));
        },
        |asked| asked.extra = None,
    ];
    for (index, change) in changes.iter().enumerate() {
        let mut asked = required();
        change(&mut asked);
        let Rejection { reason, .. } = session.check_requirements(&asked).unwrap_err();
        assert_eq!(
            reason,
            Reason::SessionRequirementsMismatch,
            "change {index}"
        );
    }
}

#[test]
fn only_a_direct_transfer_of_the_payer_is_accepted() {
    let session = session(Rail::Transfer);
    assert_eq!(session.check_transfer(&transfer(&session)), Ok(true));
    let mut untagged = transfer(&session);
    untagged.input = untagged.input.slice(..68);
    assert_eq!(session.check_transfer(&untagged), Ok(false));
    let changes: [fn(&mut Transfer); 7] = [
        |transfer| transfer.chain_id = None,
        |transfer| transfer.chain_id = Some(1),
        |transfer| transfer.from = PAYEE,
        |transfer| transfer.to = None,
        |transfer| transfer.to = Some(PAYEE),
        |transfer| transfer.value = U256::from(1),
        |transfer| transfer.input = transfer.input.slice(..67),
    ];
    for (index, change) in changes.iter().enumerate() {
        let mut other = transfer(&session);
        change(&mut other);
        let Rejection { reason, .. } = session.check_transfer(&other).unwrap_err();
        assert_eq!(reason, Reason::SessionTransferMismatch, "change {index}");
    }
}

#[test]
fn claim_must_be_signed_by_the_payer() {
    let session = session(Rail::Transfer);
    let rejection = session
        .check_claim(B256::repeat_byte(1), &[7; 65])
        .unwrap_err();
    assert_eq!(rejection.reason, Reason::SessionClaimInvalid);
    assert!(rejection.message.contains(&PAYER.to_string()));
    assert!(session.check_claim(B256::repeat_byte(1), &[]).is_err());
}
