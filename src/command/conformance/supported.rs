//! `GET /supported`: its shape, and what the facilitator offers on the network.

use alloy::primitives::Address;
use serde_json::{Value, json};

use super::Run;
use super::check::Outcome;
use super::wire::Reply;
use crate::protocol::gas_sponsoring::EIP2612;

/// What the facilitator offers on the network besides `exact` of version 2.
pub(super) struct Offer {
    /// The network's name in version 1.
    pub(super) v1: Option<&'static str>,
    /// The address that payers of scheme `upto` name.
    pub(super) upto: Option<Address>,
    /// Whether it sends EIP-2612 permits along.
    pub(super) permits: bool,
}

/// Checks the shape. `None` when `exact` is not offered in version 2, because nothing else can be checked then.
pub(super) async fn check(run: &mut Run) -> Option<Offer> {
    let reply = run.facilitator.supported().await;
    let whole = is_whole(&reply);
    let came = if whole {
        let kinds = reply.member("kinds").as_array();
        format!("{} kinds", kinds.map_or(0, Vec::len))
    } else {
        reply.summary()
    };
    run.checks.add(
        "supported: kinds",
        Outcome::ok_or(whole, Outcome::Fails),
        "200, kinds with x402Version, scheme, network",
        came,
    );
    if !whole {
        return None;
    }
    check_lists(run, &reply);
    let network = run.buyer.network.to_string();
    let exact = kind(&reply, 2, "exact", &network).is_some();
    announced(run, "exact v2", &network, exact, Outcome::Fails);
    let v1 = run.buyer.network.v1_name();
    if let Some(name) = v1 {
        let found = kind(&reply, 1, "exact", name).is_some();
        announced(run, "exact v1", name, found, Outcome::Lacks);
    }
    let offer = Offer {
        v1: v1.filter(|name| kind(&reply, 1, "exact", name).is_some()),
        upto: check_upto(run, &reply, &network),
        permits: has_text(&reply, "extensions", EIP2612),
    };
    exact.then_some(offer)
}

/// The members that official clients replace by nothing where they are absent.
fn check_lists(run: &mut Run, reply: &Reply) {
    for (name, is_given) in [
        ("extensions", reply.member("extensions").is_array()),
        ("signers", reply.member("signers").is_object()),
    ] {
        let came = if is_given { "given" } else { "not given" };
        let outcome = Outcome::ok_or(is_given, Outcome::Lacks);
        let check = format!("supported: {name}");
        run.checks.add(check, outcome, name, came);
    }
}

/// Scheme `upto` cannot be paid without the address that may send the payment.
fn check_upto(run: &mut Run, reply: &Reply, network: &str) -> Option<Address> {
    let upto = kind(reply, 2, "upto", network);
    announced(run, "upto v2", network, upto.is_some(), Outcome::Lacks);
    let address = upto?.pointer("/extra/facilitatorAddress");
    let address = address.and_then(Value::as_str).unwrap_or_default();
    let parsed: Option<Address> = address.parse().ok();
    run.checks.add(
        "supported: upto's facilitator",
        Outcome::ok_or(parsed.is_some(), Outcome::Fails),
        "extra.facilitatorAddress",
        address,
    );
    parsed
}

fn announced(run: &mut Run, kind: &str, network: &str, found: bool, otherwise: Outcome) {
    let came = if found { "announced" } else { "not announced" };
    let outcome = Outcome::ok_or(found, otherwise);
    let check = format!("supported: {kind}");
    run.checks
        .add(check, outcome, format!("a kind for {network}"), came);
}

/// One wrong kind makes Go clients refuse all.
fn is_whole(reply: &Reply) -> bool {
    let is_kind = |kind: &Value| {
        kind.get("x402Version").is_some_and(Value::is_u64)
            && ["scheme", "network"]
                .iter()
                .all(|name| kind.get(*name).is_some_and(Value::is_string))
    };
    let kinds = reply.member("kinds").as_array();
    reply.status == 200 && kinds.is_some_and(|kinds| kinds.iter().all(is_kind))
}

/// Sellers look the exact name of their network up.
fn kind<'a>(reply: &'a Reply, version: u64, scheme: &str, network: &str) -> Option<&'a Value> {
    let is_wanted = |kind: &&Value| {
        kind.get("x402Version") == Some(&json!(version))
            && kind.get("scheme") == Some(&json!(scheme))
            && kind.get("network") == Some(&json!(network))
    };
    reply.member("kinds").as_array()?.iter().find(is_wanted)
}

fn has_text(reply: &Reply, list: &str, text: &str) -> bool {
    let list = reply.member(list).as_array();
    list.is_some_and(|list| list.contains(&json!(text)))
}
