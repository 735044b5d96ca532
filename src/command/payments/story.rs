//! One payment: what it is, what happened to it, and what it cost.

use alloy::primitives::U256;
use serde_json::json;
use time::{Duration, OffsetDateTime};

use super::view::{PaymentView, explorer_url, network_of};
use crate::command::shown::{aligned, clock_time, count, moment};
use crate::ledger::{AttemptDetail, EntryDetail, Event};
use crate::protocol::Network;
use crate::protocol::assets::money;
use crate::settlement::native_amount;

pub(super) fn show(detail: &EntryDetail, json: bool) -> String {
    if json {
        let events = detail.events.iter().map(event_json);
        let attempts = detail.attempts.iter().map(attempt_json);
        return json!({
            "payment": PaymentView::new(&detail.entry),
            "events": events.collect::<Vec<_>>(),
            "attempts": attempts.collect::<Vec<_>>(),
        })
        .to_string();
    }
    let mut text = properties(detail);
    text.push_str("\n\nwhat happened (UTC)\n");
    text.push_str(&timeline(detail));
    if !detail.attempts.is_empty() {
        text.push_str("\n\ntransactions\n");
        let lines = detail.attempts.iter();
        let lines = lines.map(|attempt| attempt_line(detail, attempt));
        text.push_str(&lines.collect::<Vec<_>>().join("\n"));
    }
    text
}

/// A property on each line; what is absent has none.
fn properties(detail: &EntryDetail) -> String {
    let entry = &detail.entry;
    let session = entry.session.as_ref();
    let text = |hash: &dyn std::fmt::Display| hash.to_string();
    let block = entry.block_number.map(|number| {
        let time = entry.block_time.map(clock_time).unwrap_or_default();
        format!("{number}, {time} UTC")
    });
    let properties = [
        ("payment", Some(entry.id.to_string())),
        ("state", Some(entry.state.clone())),
        (
            "amount",
            Some(money(&entry.network, &entry.asset, &entry.amount)),
        ),
        (
            "permitted",
            entry
                .permitted
                .as_ref()
                .filter(|permitted| **permitted != entry.amount)
                .map(|units| money(&entry.network, &entry.asset, units)),
        ),
        ("token", Some(entry.asset.clone())),
        (
            "network",
            Some(format!("{} ({})", network_of(entry), entry.network)),
        ),
        ("payer", Some(entry.payer.clone())),
        ("payee", Some(entry.payee.clone())),
        ("resource", entry.resource.clone()),
        ("accepted for", entry.caller.clone()),
        ("session", session.map(|session| session.id.clone())),
        (
            "buyer's name for it",
            session.and_then(|session| session.client_reference.clone()),
        ),
        (
            "transaction",
            entry.transaction.as_ref().map(|hash| text(hash)),
        ),
        ("explorer", explorer_url(entry)),
        ("block", block),
        ("reason", entry.reason.clone()),
        ("in words", entry.message.clone()),
        ("does not count", entry.unmatched.clone()),
        ("quarantined", entry.quarantine.clone()),
        ("gas paid", gas(detail)),
    ];
    let rows = properties.into_iter();
    let rows = rows.filter_map(|(name, value)| Some(vec![name.to_owned(), value?]));
    aligned(&rows.collect::<Vec<_>>())
}

/// What its mined transactions have cost.
fn gas(detail: &EntryDetail) -> Option<String> {
    let mined = detail.attempts.iter();
    let mined: Vec<_> = mined.filter_map(|attempt| attempt.mined.as_ref()).collect();
    let others = mined.iter().map(|mined| mined.payments.saturating_sub(1));
    let others: u64 = others.sum();
    let fees = mined.iter().filter_map(|mined| mined.fee_wei.parse().ok());
    let fees = fees.fold(U256::ZERO, U256::saturating_add);
    let shared = if others > 0 {
        format!(", shared with {}", count(others, "other payment"))
    } else {
        String::new()
    };
    (!mined.is_empty()).then(|| format!("{}{shared}", native_amount(fees, symbol(detail))))
}

fn symbol(detail: &EntryDetail) -> &'static str {
    let network: Option<Network> = detail.entry.network.parse().ok();
    network.and_then(Network::native_symbol).unwrap_or("ETH")
}

fn timeline(detail: &EntryDetail) -> String {
    let began = detail.entry.created_at;
    let rows = detail.events.iter().map(|event| {
        vec![
            format!("  {}", clock_time(event.at)),
            since(began, event.at),
            what(event),
        ]
    });
    aligned(&rows.collect::<Vec<_>>())
}

/// The time since the payment was accepted, such as `+1.042 s`.
fn since(began: OffsetDateTime, at: OffsetDateTime) -> String {
    let passed = (at - began).max(Duration::ZERO);
    format!(
        "+{}.{:03} s",
        passed.whole_seconds(),
        passed.subsec_milliseconds()
    )
}

fn what(event: &Event) -> String {
    let reason = event.reason.as_ref();
    let because = reason.map(|why| format!(": {why}")).unwrap_or_default();
    let transaction = event.transaction;
    let transaction = transaction
        .map(|hash| format!(", {hash}"))
        .unwrap_or_default();
    match (event.kind.as_str(), event.to_state.as_deref()) {
        ("state", Some(state)) => format!("{state}{because}{transaction}"),
        ("granted", _) => format!(
            "success promised to request {}",
            reason.map_or("-", String::as_str)
        ),
        ("answered", _) => format!(
            "success answered to request {}",
            reason.map_or("-", String::as_str)
        ),
        ("voided", _) => format!(
            "answer not delivered to request {}",
            reason.map_or("-", String::as_str)
        ),
        (kind, _) => format!("{kind}{because}{transaction}"),
    }
}

fn attempt_line(detail: &EntryDetail, attempt: &AttemptDetail) -> String {
    let broadcast = match (&attempt.broadcast, &attempt.broadcast_reason) {
        (Some(reply), Some(why)) => format!(", {reply}: {why}"),
        (Some(reply), None) => format!(", {reply}"),
        (None, _) => String::new(),
    };
    let mined = attempt.mined.as_ref().map(|mined| {
        let fee = mined.fee_wei.parse().unwrap_or_default();
        let outcome = if mined.succeeded { "mined" } else { "reverted" };
        format!(
            "\n    {outcome} in block {}, gas {}, fee {}, {}",
            mined.block_number,
            mined.gas_used,
            native_amount(fee, symbol(detail)),
            count(mined.payments, "payment")
        )
    });
    format!(
        "  {}  nonce {} of {}\n    {}{broadcast}{}",
        attempt.hash,
        attempt.nonce,
        attempt.signer,
        clock_time(attempt.written_at),
        mined.unwrap_or_default()
    )
}

fn event_json(event: &Event) -> serde_json::Value {
    json!({
        "at": moment(event.at),
        "kind": event.kind,
        "from": event.from_state,
        "to": event.to_state,
        "reason": event.reason,
        "transaction": event.transaction.map(|hash| hash.to_string()),
    })
}

fn attempt_json(attempt: &AttemptDetail) -> serde_json::Value {
    let mined = attempt.mined.as_ref().map(|mined| {
        json!({
            "blockNumber": mined.block_number,
            "succeeded": mined.succeeded,
            "outcome": mined.outcome,
            "gasUsed": mined.gas_used,
            "feeWei": mined.fee_wei,
            "payments": mined.payments,
        })
    });
    json!({
        "transaction": attempt.hash,
        "signer": attempt.signer,
        "nonce": attempt.nonce,
        "writtenAt": moment(attempt.written_at),
        "broadcast": attempt.broadcast,
        "broadcastReason": attempt.broadcast_reason,
        "mined": mined,
    })
}
