//! The networks: how old what is known of them is, and who is asked.

use axum::extract::State;
use axum::response::Html;
use maud::{Markup, html};
use time::OffsetDateTime;

use super::problem::PageProblem;
use super::viewer::Viewer;
use super::{layout, shown};
use crate::http::AppState;
use crate::ledger::Backlog;
use crate::protocol::assets::decimal;
use crate::settlement::ServedNetwork;

/// `GET /page/networks`
pub(super) async fn list(
    viewer: Viewer,
    State(state): State<AppState>,
) -> Result<Html<String>, PageProblem> {
    let backlog = state.facilitator.ledger.backlog().await?;
    let now = state.facilitator.clock.now();
    let served = state.facilitator.served_networks.iter();
    let content = html! {
        h1 { "Networks" }
        (layout::live(&html! { @for served in served { (network(served, &backlog, now)) } }))
    };
    Ok(layout::page(
        &viewer,
        ("/page/networks", "Networks"),
        &content,
    ))
}

fn network(served: &ServedNetwork, backlog: &[Backlog], now: OffsetDateTime) -> Markup {
    let policy = &served.policy;
    let (name, health) = (policy.network.to_string(), served.health());
    let waiting = backlog.iter().find(|one| one.network == policy.network);
    let hosts: Vec<_> = served.rpc.hosts().collect();
    html! {
        article.card {
            h2 { (shown::network(&name)) " " @if !served.is_open() { (shown::state("starting")) } }
            dl.facts {
                dt { "Name" } dd { (name) }
                @if let Some(head) = served.view.head() {
                    dt { "Newest block" } dd { (head.number) ", " (shown::time(head.time, now)) }
                } @else {
                    dt { "Newest block" } dd { "unknown" }
                }
                dt { "Endpoints" } dd { ul.plain { @for host in hosts { li { (host) } } } }
                dt { "Last answer" } dd {
                    @match health.silent_for { Some(silence) => { (silence.as_secs()) " s ago" }, None => "none yet" }
                }
                dt { "Queued" } dd { (waiting.map_or(0, |one| one.queued)) }
                dt { "In flight" } dd { (waiting.map_or(0, |one| one.inflight)) }
                dt { "In quarantine" } dd { (waiting.map_or(0, |one| one.quarantined)) }
                dt { "Confirmations" } dd { (policy.confirmations) }
                dt { "Tokens" } dd { ul.plain { @for asset in &policy.assets {
                    li { (asset.name) " " (shown::copyable(&asset.address.to_checksum(None))) " from " (decimal(asset.minimum, asset.decimals)) }
                } } }
                dt { "Batches" } dd { @if served.has_multicall() { "several payments in a transaction" } @else { "a transaction for each payment" } }
            }
        }
    }
}
