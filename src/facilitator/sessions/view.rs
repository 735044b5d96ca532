//! The view of a session, and the data that its buyer signs.

use alloy::primitives::B256;
use serde_json::{Value, json};

use crate::ledger::{GrantStatus, PaymentWithGrant};
use crate::payment::session::SessionStatus;
use crate::payment::{Asset, PaymentState, Session};
use crate::protocol::Reason;
use crate::protocol::session::{
    Rail, SessionOpened, SessionState, SessionView, TransferCall, transfer_calldata,
};

/// A view of a session's own row, without its payment.
pub(super) fn session_view(session: &Session, decimals: u8) -> SessionView {
    SessionView {
        session_id: session.id.clone(),
        state: match session.status {
            SessionStatus::Open => SessionState::Open,
            SessionStatus::Cancelled => SessionState::Cancelled,
            SessionStatus::Expired => SessionState::Expired,
        },
        rail: session.rail,
        network: session.network,
        asset: session.asset,
        pay_to: session.payee,
        payer: session.payer,
        amount: session.amount,
        decimals,
        requirements_hash: session.requirements_hash,
        confirmations: session.confirmations,
        accept_from_block: session.accept_from_block,
        expires_at: session.expires_at,
        created_at: session.created_at,
        client_reference: session.client_reference.clone().map(String::from),
        payment_id: None,
        transaction: None,
        block_number: None,
        reason: None,
        message: None,
        money_may_move: true,
    }
}

/// Adds a session's payment to its view.
pub(super) fn add_payment(view: &mut SessionView, found: &PaymentWithGrant, expired: bool) {
    let payment = &found.payment;
    view.payment_id = Some(payment.id.to_string());
    view.transaction = payment.state.transaction().map(|hash| hash.to_string());
    view.block_number = payment
        .state
        .location()
        .map(|location| location.block_number);
    match &payment.state {
        // The payer's signed transaction may be mined at any time, but from now on it is too late for the session.
        PaymentState::Inflight(_) if expired && payment.rail == Rail::Transfer => {
            view.state = SessionState::Expired;
            view.money_may_move = true;
        }
        PaymentState::Queued | PaymentState::Inflight(_) | PaymentState::Mined(_) => {
            view.state = SessionState::Submitted;
            view.money_may_move = true;
        }
        PaymentState::Settled(_)
        | PaymentState::Uncharged
        | PaymentState::Final(_)
        | PaymentState::LateSettled(_) => {
            view.money_may_move = false;
            view.state = match found.grant {
                GrantStatus::Answered => SessionState::Consumed,
                GrantStatus::Free | GrantStatus::Reserved | GrantStatus::Open => SessionState::Paid,
            };
        }
        PaymentState::Refused(rejection) => {
            view.reason = Some(rejection.reason.code().to_owned());
            view.message = Some(rejection.message.clone());
        }
        PaymentState::Failed { rejection, .. } => {
            view.state = SessionState::Failed;
            view.money_may_move = false;
            view.reason = Some(rejection.reason.code().to_owned());
            view.message = Some(rejection.message.clone());
        }
    }
    if let Some(why) = &payment.unmatched {
        view.state = SessionState::Expired;
        view.reason = Some(Reason::SessionExpired.code().to_owned());
        view.message = Some(why.clone());
    }
    if let Some(why) = &payment.quarantine {
        view.message = Some(format!("the operator has to look at this payment: {why}"));
    }
}

/// The response that opens a session: its terms, and the data to sign or send.
pub(super) fn opened(session: &Session, asset: &Asset, cancel_token: String) -> SessionOpened {
    let (authorization, transfer, claim) = match session.rail {
        Rail::Authorization => (Some(authorization_to_sign(session, asset)), None, None),
        Rail::Transfer => {
            let call = TransferCall {
                chain_id: session.network.chain_id(),
                to: session.asset,
                data: transfer_calldata(session.payee, session.amount, session.nonce),
                value: "0".to_owned(),
            };
            (None, Some(call), Some(claim_to_sign(session)))
        }
    };
    SessionOpened {
        session: session_view(session, asset.decimals),
        cancel_token,
        authorization,
        transfer,
        claim,
    }
}

fn authorization_to_sign(session: &Session, asset: &Asset) -> Value {
    let field = |name: &str, kind: &str| json!({"name": name, "type": kind});
    json!({
        "domain": {
            "name": asset.name, "version": asset.version, "chainId": session.network.chain_id(),
            "verifyingContract": session.asset.to_checksum(None),
        },
        "types": {"TransferWithAuthorization": [
            field("from", "address"), field("to", "address"), field("value", "uint256"),
            field("validAfter", "uint256"), field("validBefore", "uint256"), field("nonce", "bytes32"),
        ]},
        "primaryType": "TransferWithAuthorization",
        "message": {
            "from": session.payer.to_checksum(None), "to": session.payee.to_checksum(None),
            "value": session.amount, "validAfter": "0",
            "validBefore": session.expires_at.unix_timestamp().to_string(), "nonce": session.nonce,
        },
    })
}

fn claim_to_sign(session: &Session) -> Value {
    let field = |name: &str, kind: &str| json!({"name": name, "type": kind});
    json!({
        "domain": {"name": "x402d session", "version": "1", "chainId": session.network.chain_id()},
        "types": {"SessionClaim": [
            field("session", "string"), field("requirementsHash", "bytes32"), field("transaction", "bytes32"),
        ]},
        "primaryType": "SessionClaim",
        "message": {"session": session.id, "requirementsHash": session.requirements_hash, "transaction": B256::ZERO},
    })
}
