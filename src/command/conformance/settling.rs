//! Sound payments: verified, settled, settled again and at the same time, and looked up on the chain.

use std::collections::BTreeSet;

use alloy::primitives::{B256, U256};
use serde_json::Value;

use super::Run;
use super::check::Outcome;
use super::payment::{Codes, charging};
use super::refusals::{check_permit2, check_settle};
use super::supported::Offer;
use super::wire::Reply;
use crate::protocol::{Amount, Reason, Scheme};

/// How many payments a run makes at most: five, and one of those that the facilitator has to refuse.
pub(super) const PAYMENTS_MAX: u64 = 6;

pub(super) async fn check(run: &mut Run, offer: &Offer) -> Result<(), String> {
    let body = run.buyer.exact(None)?;
    let amount = run.buyer.amount;
    if verifies(run, "exact v2", &body).await
        && let Some(transaction) = settles(run, "exact v2", &body, amount).await
    {
        settles_once(run, &body, transaction).await;
        settles_at_once(run).await?;
    }
    if let Some(network) = offer.v1 {
        let body = run.buyer.exact_v1(network, None)?;
        if verifies(run, "exact v1", &body).await {
            settles(run, "exact v1", &body, amount).await;
        }
    }
    permit2(run, offer, Scheme::Exact).await?;
    if offer.upto.is_some() {
        permit2(run, offer, Scheme::Upto).await?;
    }
    Ok(())
}

async fn verifies(run: &mut Run, group: &str, body: &Value) -> bool {
    let reply = run.facilitator.verify(body).await;
    let valid = reply.status == 200 && reply.flag("isValid") == Some(true);
    let outcome = match (valid, reply.text_of("payer").is_empty()) {
        (false, _) => Outcome::Fails,
        (true, true) => Outcome::Lacks,
        (true, false) => Outcome::Ok,
    };
    let check = format!("{group}: verify");
    run.checks
        .add_reply(check, outcome, "200 isValid=true, payer", &reply);
    valid
}

/// Settles, and looks `charge` up on the chain. The transaction, where it was settled.
async fn settles(run: &mut Run, group: &str, body: &Value, charge: Amount) -> Option<B256> {
    let reply = run.facilitator.settle_patiently(body).await;
    let transaction = success(&reply, body);
    run.checks.add_reply(
        format!("{group}: settle"),
        Outcome::ok_or(transaction.is_some(), Outcome::Fails),
        "200 success=true, transaction, network",
        &reply,
    );
    let transaction = transaction?;
    run.count(charge);
    let Some(chain) = &run.chain else {
        return Some(transaction);
    };
    let found = chain.has_transfer(&run.buyer, transaction, charge).await;
    run.checks.add(
        format!("{group}: on chain"),
        Outcome::ok_or(found.is_ok(), Outcome::Fails),
        format!("one transfer of {charge}"),
        found.map_or_else(|why| why, |()| transaction.to_string()),
    );
    Some(transaction)
}

fn success(reply: &Reply, body: &Value) -> Option<B256> {
    let same_network =
        body.pointer("/paymentRequirements/network") == Some(reply.member("network"));
    let succeeded = reply.flag("success") == Some(true) && same_network;
    let transaction = reply.transaction();
    transaction.filter(|_| reply.status == 200 && succeeded)
}

/// A seller whose connection broke asks again; it must not be told of another transaction.
async fn settles_once(run: &mut Run, body: &Value, transaction: B256) {
    let reply = run.facilitator.settle(body).await;
    let outcome = match (reply.flag("success"), reply.transaction()) {
        (Some(_), Some(other)) => Outcome::ok_or(other == transaction, Outcome::Fails),
        (Some(false), None) => Outcome::Lacks,
        (None, _) | (Some(true), None) => Outcome::Fails,
    };
    run.checks.add_reply(
        "exact v2: settle again",
        outcome,
        "the same transaction",
        &reply,
    );
}

/// Two requests for one payment at the same time: one transaction, and one success at least.
async fn settles_at_once(run: &mut Run) -> Result<(), String> {
    let body = run.buyer.exact(None)?;
    let (one, other) = tokio::join!(
        run.facilitator.settle_patiently(&body),
        run.facilitator.settle_patiently(&body)
    );
    let replies = [&one, &other];
    let successes: BTreeSet<_> = replies
        .iter()
        .filter_map(|reply| success(reply, &body))
        .collect();
    let transactions: BTreeSet<_> = replies
        .iter()
        .filter_map(|reply| reply.transaction())
        .collect();
    let outcome = match (successes.len(), transactions.len()) {
        (1, 1) => Outcome::Ok,
        (1, _) => Outcome::Lacks,
        (_, _) => Outcome::Fails,
    };
    if !successes.is_empty() {
        run.count(run.buyer.amount);
    }
    run.checks.add(
        "exact v2: settle twice at once",
        outcome,
        "one transaction",
        format!("{}; {}", one.summary(), other.summary()),
    );
    Ok(())
}

/// Permit2 in a scheme. Scheme `upto` charges half of what it may.
async fn permit2(run: &mut Run, offer: &Offer, scheme: Scheme) -> Result<(), String> {
    let (group, charge) = match scheme {
        Scheme::Exact => ("permit2", run.buyer.amount),
        Scheme::Upto => (
            "upto",
            Amount::from_atomic(run.buyer.amount.atomic() / U256::from(2)),
        ),
    };
    let permit_nonce = match &run.chain {
        Some(chain) if offer.permits && run.buyer.asset.eip2612 => {
            chain.permit_nonce(&run.buyer).await?
        }
        _ => None,
    };
    let facilitator = offer.upto.filter(|_| scheme == Scheme::Upto);
    let body = run.buyer.by_permit2(scheme, facilitator, permit_nonce)?;
    if !verifies_permit2(run, group, &body).await {
        return Ok(());
    }
    check_permit2(run, group, &body).await?;
    if scheme == Scheme::Upto {
        let more = Amount::from_atomic(run.buyer.amount.atomic() + U256::ONE);
        let codes = Codes::with_older(
            Reason::UptoExceedsAmount,
            &["upto_amount_exceeds_permitted"],
        );
        let body = charging(body.clone(), more);
        check_settle(run, "upto: settle", "more than permitted", codes, &body).await;
    }
    settles(run, group, &charging(body, charge), charge).await;
    Ok(())
}

/// Facilitators do not announce Permit2, so only a payment shows whether it works. A payer without an allowance is told so.
async fn verifies_permit2(run: &mut Run, group: &str, body: &Value) -> bool {
    let reply = run.facilitator.verify(body).await;
    let valid = reply.status == 200 && reply.flag("isValid") == Some(true);
    let reason = reply.text_of("invalidReason");
    let outcome = match reason {
        _ if valid => Outcome::Ok,
        "" => Outcome::Fails,
        _ if reason == Reason::Permit2AllowanceRequired.code() => Outcome::Ok,
        _ if reason == Reason::Permit2InsufficientBalance.code() => Outcome::Fails,
        _ => Outcome::Lacks,
    };
    let check = format!("{group}: verify");
    let expected = "200 isValid=true, or permit2_allowance_required";
    run.checks.add_reply(check, outcome, expected, &reply);
    if !valid {
        run.checks.add(
            format!("{group}: settle"),
            Outcome::Skipped,
            "a payment that is valid",
            "approve Permit2 with the payer, or give --rpc where the facilitator sends permits along",
        );
    }
    valid
}

/// The payer has paid every settled payment once, and nothing else.
pub(super) async fn check_total(run: &mut Run, before: U256) {
    let (Some(chain), token) = (&run.chain, run.buyer.asset.address) else {
        return;
    };
    let expected = before.saturating_sub(run.paid);
    let payer = run.buyer.address();
    let found = chain.reaches_balance(token, payer, expected).await;
    run.checks.add(
        "all payments: on chain",
        Outcome::ok_or(found.is_ok(), Outcome::Fails),
        "each paid once",
        found.map_or_else(|why| why, |()| format!("{} units paid", run.paid)),
    );
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn success_names_transaction_and_network() {
        let body = json!({"paymentRequirements": {"network": "eip155:84532"}});
        let hash = B256::repeat_byte(7);
        let whole = json!({"success": true, "transaction": hash, "network": "eip155:84532"});
        assert_eq!(success(&Reply::of(200, whole.clone()), &body), Some(hash));
        assert_eq!(success(&Reply::of(500, whole.clone()), &body), None);
        for (name, value) in [
            ("success", json!(false)),
            ("transaction", json!("")),
            ("network", json!("base-sepolia")),
        ] {
            let mut lacking = whole.clone();
            lacking[name] = value;
            assert_eq!(success(&Reply::of(200, lacking), &body), None, "{name}");
        }
    }
}
