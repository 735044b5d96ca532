//! What must be refused, and how: payments with a flaw, unknown kinds, and bodies that are no requests.

use serde_json::{Value, json};

use super::Run;
use super::check::Outcome;
use super::payment::{Codes, Flaw, with_term};
use super::supported::Offer;
use super::wire::Reply;
use crate::protocol::Reason;

/// A network that no facilitator serves.
const UNKNOWN_NETWORK: &str = "eip155:424242424242";
const UNKNOWN_SCHEME: &str = "nonsense";
/// Bodies that are no requests.
const MALFORMED: [(&str, &str); 3] = [
    ("no JSON", "{"),
    ("empty object", "{}"),
    (
        "wrong types",
        r#"{"x402Version":2,"paymentPayload":[],"paymentRequirements":"all"}"#,
    ),
];

pub(super) async fn check(run: &mut Run, offer: &Offer) -> Result<(), String> {
    for flaw in Flaw::ALL {
        let body = run.buyer.exact(Some(flaw))?;
        check_verify(run, "exact v2", flaw.name(), flaw.codes(), &body).await;
    }
    if let Some(network) = offer.v1 {
        for flaw in Flaw::ALL {
            let body = run.buyer.exact_v1(network, Some(flaw))?;
            check_verify(run, "exact v1", flaw.name(), flaw.codes(), &body).await;
        }
    }
    // Expired too, so that no facilitator can settle it.
    let sound = run.buyer.exact(Some(Flaw::Expired))?;
    let unknown = with_term(sound.clone(), "scheme", UNKNOWN_SCHEME);
    let codes = Codes::with_older(
        Reason::UnsupportedScheme,
        &["invalid_scheme", "invalid_exact_evm_scheme"],
    );
    check_verify(run, "verify", "unknown scheme", codes, &unknown).await;
    let unknown = with_term(sound, "network", UNKNOWN_NETWORK);
    let codes = Codes::with_older(
        Reason::InvalidNetwork,
        &["invalid_exact_evm_network_mismatch"],
    );
    check_verify(run, "verify", "unknown network", codes, &unknown).await;

    let forged = run.buyer.exact(Some(Flaw::BadSignature))?;
    check_settle(
        run,
        "exact v2: settle",
        "bad signature",
        Flaw::BadSignature.codes(),
        &forged,
    )
    .await;
    check_malformed(run).await;
    Ok(())
}

async fn check_verify(run: &mut Run, group: &str, what: &str, codes: Codes, body: &Value) {
    let reply = run.facilitator.verify(body).await;
    let refused = reply.flag("isValid") == Some(false);
    let outcome = refusal(&reply, refused, "invalidReason", codes);
    run.checks.add_reply(
        format!("{group}: {what}"),
        outcome,
        expected("isValid", codes),
        &reply,
    );
}

/// A refused settlement names network and transaction, because official clients read an answer without them as an error.
pub(super) async fn check_settle(
    run: &mut Run,
    group: &str,
    what: &str,
    codes: Codes,
    body: &Value,
) {
    let reply = run.facilitator.settle(body).await;
    let refused = reply.flag("success") == Some(false)
        && reply.member("transaction").is_string()
        && reply.member("network").is_string();
    let outcome = refusal(&reply, refused, "errorReason", codes);
    run.checks.add_reply(
        format!("{group}, {what}"),
        outcome,
        expected("success", codes),
        &reply,
    );
}

fn expected(member: &str, codes: Codes) -> String {
    let code = codes.newest.code();
    format!("200 {member}=false {code}")
}

/// Python clients lose the reason of any other status than 200, and sellers act on codes that they know.
fn refusal(reply: &Reply, refused: bool, reason: &str, codes: Codes) -> Outcome {
    let reason = reply.text_of(reason);
    if !refused || reason.is_empty() {
        return Outcome::Fails;
    }
    Outcome::ok_or(reply.status == 200 && codes.contain(reason), Outcome::Lacks)
}

async fn check_malformed(run: &mut Run) {
    for path in ["verify", "settle"] {
        for (what, text) in MALFORMED {
            let reply = run.facilitator.post(path, text.to_owned()).await;
            run.checks.add_reply(
                format!("{path}: {what}"),
                malformed(&reply),
                "400 with JSON",
                &reply,
            );
        }
    }
}

/// A refusal with status 200 is understood by every client; HTML or nothing ends up in the text of a buyer's 402.
fn malformed(reply: &Reply) -> Outcome {
    let refused = ["isValid", "success"].map(|name| reply.flag(name) == Some(false));
    match reply.status {
        200 => Outcome::ok_or(refused.contains(&true), Outcome::Fails),
        400..=499 => Outcome::ok_or(reply.body.is_object(), Outcome::Lacks),
        _ => Outcome::Fails,
    }
}

/// The refusals of Permit2, in the schemes that have it.
pub(super) async fn check_permit2(run: &mut Run, group: &str, sound: &Value) -> Result<(), String> {
    let mut forged = sound.clone();
    if let Some(signature) = forged.pointer_mut("/paymentPayload/payload/signature") {
        *signature = json!(format!("0x{}1b", "11".repeat(64)));
    }
    let codes = Codes::of(Reason::Permit2Signature);
    check_verify(run, group, "bad signature", codes, &forged).await;
    let stranger = with_term(
        sound.clone(),
        "payTo",
        "0x2222222222222222222222222222222222222222",
    );
    let codes = Codes::of(Reason::Permit2RecipientMismatch);
    check_verify(run, group, "wrong payee", codes, &stranger).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(status: u16, body: Value) -> Outcome {
        let reply = Reply::of(status, body);
        let refused = reply.flag("isValid") == Some(false);
        refusal(
            &reply,
            refused,
            "invalidReason",
            Codes::of(Reason::InvalidNetwork),
        )
    }

    #[test]
    fn refusals_are_graded_by_what_clients_lose() {
        let refused = json!({"isValid": false, "invalidReason": "invalid_network"});
        assert_eq!(outcome(200, refused.clone()), Outcome::Ok);
        assert_eq!(outcome(400, refused), Outcome::Lacks);
        let own = json!({"isValid": false, "invalidReason": "no"});
        assert_eq!(outcome(200, own), Outcome::Lacks);
        for body in [
            json!({"isValid": false}),
            json!({"isValid": true}),
            json!({"error": "invalid_network"}),
            Value::Null,
        ] {
            assert_eq!(outcome(200, body.clone()), Outcome::Fails, "{body}");
            assert_eq!(outcome(500, body.clone()), Outcome::Fails, "{body}");
        }
    }

    #[test]
    fn malformed_bodies_are_never_the_facilitators_fault() {
        let cases = [
            (400, json!({"error": "no"}), Outcome::Ok),
            (422, json!({"error": "no"}), Outcome::Ok),
            (200, json!({"isValid": false}), Outcome::Ok),
            (200, json!({"success": true}), Outcome::Fails),
            (400, Value::Null, Outcome::Lacks),
            (500, json!({"error": "no"}), Outcome::Fails),
            (0, Value::Null, Outcome::Fails),
        ];
        for (status, body, wanted) in cases {
            let found = malformed(&Reply::of(status, body.clone()));
            assert_eq!(found, wanted, "{status} {body}");
        }
    }
}
