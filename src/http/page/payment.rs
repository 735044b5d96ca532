//! One payment: what it is, its timeline, its transactions.

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::Html;
use maud::{Markup, html};
use time::OffsetDateTime;
use uuid::Uuid;

use super::problem::PageProblem;
use super::viewer::Viewer;
use super::{layout, shown};
use crate::http::AppState;
use crate::ledger::{AttemptDetail, Entry, EntryDetail, Event};
use crate::payment::PaymentId;
use crate::protocol::Network;
use crate::settlement::native_amount;

/// Texts of others are shown up to so many characters.
const TEXT_SHOWN: usize = 300;

/// `GET /page/payments/{id}`
pub(super) async fn show(
    viewer: Viewer,
    State(state): State<AppState>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Html<String>, PageProblem> {
    let unknown = || PageProblem::not_found("there is no payment with this id");
    let Path(id) = id.map_err(|_| unknown())?;
    let id = Uuid::try_parse(&id).map_err(|_| unknown())?;
    let detail = state.facilitator.ledger.detail(PaymentId(id)).await?;
    let detail = detail.ok_or_else(unknown)?;
    let now = state.facilitator.clock.now();
    let content = layout::live(&html! {
        h1 { (shown::money(&detail.entry.network, &detail.entry.asset, &detail.entry.amount)) " " (shown::state(&detail.entry.state)) }
        (facts(&detail.entry, now))
        section aria-labelledby="story" {
            h2 #story { "Timeline" }
            ol.timeline { @for event in &detail.events { li { (step(event, &detail.entry, now)) } } }
        }
        (attempts(&detail, now))
    });
    Ok(layout::page(
        &viewer,
        ("/page/payments", "Payment"),
        &content,
    ))
}

fn facts(entry: &Entry, now: OffsetDateTime) -> Markup {
    let session = entry.session.as_ref();
    let reference = session.and_then(|session| session.client_reference.as_deref());
    let line = |name: &str, value: Option<Markup>| {
        html! { @if let Some(value) = value { dt { (name) } dd { (value) } } }
    };
    let foreign = |text: &str| shown::foreign(text, TEXT_SHOWN);
    let party = |name: &str, address: &str| {
        html! { (shown::copyable(address)) " " a href={ "/page/payments?" (name) "=" (address) } { "all of this " (name) } }
    };
    html! {
        dl.facts {
            (line("Id", Some(shown::copyable(&entry.id.to_string()))))
            (line("Accepted", Some(shown::time(entry.created_at, now))))
            (line("Network", Some(html! { (shown::network(&entry.network)) " (" (entry.network) ")" })))
            (line("Payer", Some(party("payer", &entry.payer))))
            (line("Payee", Some(party("payee", &entry.payee))))
            (line("Token", Some(shown::copyable(&entry.asset))))
            (line("Transaction", entry.transaction.map(|hash| transaction(&entry.network, &hash.to_string()))))
            (line("Block", entry.block_number.map(|number| html! { (number) })))
            (line("Confirmations promised", Some(html! { (entry.confirmations) })))
            (line("Reference", reference.map(foreign)))
            (line("Resource", entry.resource.as_deref().map(foreign)))
            (line("Session", session.map(|session| shown::copyable(&session.id))))
            (line("Caller", entry.caller.as_deref().map(foreign)))
            (line("Refused or failed", entry.reason.as_deref().map(foreign)))
            (line("Why", entry.message.as_deref().map(foreign)))
            (line("Does not count", entry.unmatched.as_deref().map(foreign)))
            (line("Quarantined", entry.quarantine.as_deref().map(foreign)))
            (line("Nonce", Some(shown::copyable(&entry.nonce))))
        }
    }
}

/// A hash, and its page at the network's explorer.
fn transaction(network: &str, hash: &str) -> Markup {
    let network = network.parse::<Network>().ok();
    let explorer = network.and_then(|network| network.explorer_url(hash));
    html! {
        (shown::copyable(hash))
        @if let Some(explorer) = explorer {
            " " a href=(explorer) rel="noopener noreferrer" { "explorer" }
        }
    }
}

fn step(event: &Event, entry: &Entry, now: OffsetDateTime) -> Markup {
    let what = match (event.kind.as_str(), event.to_state.as_deref()) {
        ("state", Some("queued")) => "accepted, waits for its transaction".to_owned(),
        ("state", Some("inflight")) => "transaction written".to_owned(),
        ("state", Some("mined")) => "in a block".to_owned(),
        ("state", Some(state)) => state.to_owned(),
        ("granted", _) => "success granted to a request".to_owned(),
        ("answered", _) => "answer sent".to_owned(),
        ("voided", _) => "answer not delivered: the next request may have it".to_owned(),
        (kind, _) => kind.to_owned(),
    };
    html! {
        (shown::time(event.at, now)) " " b { (what) }
        @if let Some(hash) = event.transaction { " " (transaction(&entry.network, &hash.to_string())) }
        @if let Some(reason) = &event.reason { " " (shown::foreign(reason, TEXT_SHOWN)) }
    }
}

fn attempts(detail: &EntryDetail, now: OffsetDateTime) -> Markup {
    let rows = detail.attempts.iter();
    let rows = rows.map(|attempt| attempt_row(attempt, &detail.entry.network, now));
    let columns = [
        "Written",
        "Transaction",
        "Signer",
        "Nonce",
        "Reply of the endpoints",
        "In block",
        "Fee",
    ];
    html! {
        section aria-labelledby="attempts" {
            h2 #attempts { "Transactions" }
            (shown::table("Transactions", &columns, &rows.collect::<Vec<_>>()))
        }
    }
}

fn attempt_row(attempt: &AttemptDetail, network: &str, now: OffsetDateTime) -> Markup {
    let symbol = network
        .parse::<Network>()
        .ok()
        .and_then(Network::native_symbol);
    let fee = attempt.mined.as_ref().and_then(|mined| {
        let fee = mined.fee_wei.parse().ok()?;
        Some(native_amount(fee, symbol.unwrap_or("ETH")))
    });
    html! {
        td { (shown::time(attempt.written_at, now)) }
        td { (transaction(network, &attempt.hash)) }
        td { (shown::copyable(&attempt.signer)) }
        td.number { (attempt.nonce) }
        td {
            @if let Some(reply) = &attempt.broadcast { (reply) }
            @if let Some(why) = &attempt.broadcast_reason { ": " (shown::foreign(why, TEXT_SHOWN)) }
        }
        td.number { @if let Some(mined) = &attempt.mined { (mined.block_number) @if !mined.succeeded { " (failed)" } } }
        td.number { @if let Some(fee) = fee { (fee) } @if let Some(mined) = &attempt.mined { @if mined.payments > 1 { " for " (shown::count(mined.payments, "payment")) } } }
    }
}
