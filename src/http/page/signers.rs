//! The signers, and the buttons that take one out of work and put it back.

use axum::extract::State;
use axum::response::{Html, IntoResponse, Redirect, Response};
use maud::{Markup, html};
use time::OffsetDateTime;

use super::form::{Fields, Form};
use super::problem::PageProblem;
use super::viewer::Viewer;
use super::{layout, shown};
use crate::http::AppState;
use crate::ledger::{LaneKey, LaneView};
use crate::protocol::field::parse_address;
use crate::protocol::response::checksummed;

/// `GET /page/signers`
pub(super) async fn list(
    viewer: Viewer,
    State(state): State<AppState>,
) -> Result<Html<String>, PageProblem> {
    let lanes = state.facilitator.ledger.lanes().await?;
    let now = state.facilitator.clock.now();
    let content = html! {
        h1 { "Signers" }
        (layout::live(&html! {
            @for lane in &lanes { (signer(lane, &viewer, &state, now)) }
            @if lanes.is_empty() { p.hint { "A signer is here once the service has started with its key." } }
        }))
        p.hint {
            "A paused signer writes no new transaction, and what it has sent is followed to its end. A draining one takes no new payments and sends what is queued: pause it when nothing is under way. "
            code { "x402d signers drain" } " does both."
        }
    };
    Ok(layout::page(
        &viewer,
        ("/page/signers", "Signers"),
        &content,
    ))
}

fn signer(lane: &LaneView, viewer: &Viewer, state: &AppState, now: OffsetDateTime) -> Markup {
    let (network, address) = (lane.lane.network.to_string(), checksummed(lane.lane.signer));
    let served = state.facilitator.served_networks.iter();
    let mut served = served.filter(|served| served.policy.network == lane.lane.network);
    let served = served.next();
    let balance = served.and_then(|served| {
        let figures = served.senders.figures();
        let own = figures.iter().find(|one| one.address == lane.lane.signer);
        own?.balance
    });
    let left = served
        .zip(balance)
        .and_then(|(served, balance)| served.payments_left(balance));
    let name = lane.state(now);
    html! {
        article.card {
            h2 { (shown::copyable(&address)) " on " (shown::network(&network)) " " (shown::state(name)) }
            @if let Some(why) = &lane.stopped_reason { p.wrong { "Stopped: " (why) } }
            dl.facts {
                dt { "Balance" } dd { @match served.zip(balance) { Some((served, balance)) => (served.native(balance)), None => "unknown" } }
                dt { "Payments left" } dd { @match left { Some(left) => (left), None => "unknown" } }
                dt { "Under way" } dd { (shown::count(lane.open, "transaction")) " with " (shown::count(lane.payments, "payment")) }
                dt { "Next nonce" } dd { (lane.next_nonce) }
                @if let Some(pause) = lane.pause { dt { "Paused" } dd { (shown::time(pause.at, now)) } }
            }
            div.buttons {
                @for action in actions(lane).into_iter().filter(|_| viewer.may_change()) { (button(action, lane, viewer)) }
            }
        }
    }
}

/// What can be done with a signer.
fn actions(lane: &LaneView) -> Vec<&'static str> {
    let mut actions = Vec::new();
    if lane.stopped_reason.is_some() || lane.pause.is_some() {
        actions.push("resume");
    }
    match lane.pause {
        None => actions.extend(["pause", "drain"]),
        Some(pause) if pause.draining => actions.push("pause"),
        Some(_) => actions.push("drain"),
    }
    actions
}

fn button(action: &str, lane: &LaneView, viewer: &Viewer) -> Markup {
    let name = match action {
        "resume" => "Resume",
        "pause" => "Pause",
        _ => "Drain",
    };
    let address = checksummed(lane.lane.signer);
    html! {
        form method="post" action="/page/signers" {
            (layout::token(viewer))
            input type="hidden" name="network" value=(lane.lane.network);
            input type="hidden" name="signer" value=(address);
            // A stop for another reason than the one that was read is not ended.
            input type="hidden" name="stopped" value=(lane.stopped_reason.as_deref().unwrap_or_default());
            button type="submit" name="action" value=(action) aria-label={ (name) " " (shown::shortened(&address)) } { (name) }
        }
    }
}

/// `POST /page/signers`
pub(super) async fn change(
    State(state): State<AppState>,
    form: Form,
) -> Result<Response, PageProblem> {
    let fields = &form.fields;
    let lane = lane(fields)?;
    let ledger = &state.facilitator.ledger;
    let action = fields.text("action");
    let changed = match action {
        "pause" => ledger.pause_lane(lane, false).await?,
        "drain" => ledger.pause_lane(lane, true).await?,
        "resume" => {
            let stopped = Some(fields.text("stopped")).filter(|reason| !reason.is_empty());
            ledger.resume_lane(lane, stopped).await?
        }
        _ => {
            return Err(PageProblem::invalid(
                "action: expected pause, drain or resume",
            ));
        }
    };
    if !changed {
        return Err(PageProblem::new(
            axum::http::StatusCode::CONFLICT,
            "nothing was changed: somebody else has paused, stopped or resumed this signer meanwhile; look at the signers again",
        ));
    }
    tracing::info!(network = %lane.network, signer = %lane.signer, action, "page: signer changed by the operator");
    Ok(Redirect::to("/page/signers").into_response())
}

fn lane(fields: &Fields) -> Result<LaneKey, PageProblem> {
    let network = fields.text("network").parse();
    let network = network.map_err(|_| PageProblem::invalid("network: expected CAIP-2"))?;
    let signer = parse_address(fields.text("signer"));
    let signer = signer.map_err(|why| PageProblem::invalid(&format!("signer: {why}")))?;
    Ok(LaneKey { network, signer })
}
