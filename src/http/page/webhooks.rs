//! The receivers of events, and what became of the deliveries to them.

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Redirect, Response};
use maud::{Markup, html};
use serde::Deserialize;
use time::OffsetDateTime;
use uuid::Uuid;

use super::form::Form;
use super::problem::PageProblem;
use super::viewer::Viewer;
use super::{layout, shown};
use crate::http::AppState;
use crate::ledger::{Delivery, Receiver};
use crate::protocol::response::checksummed;

/// Deliveries on a page.
const ROWS: u16 = 50;
/// Texts of others are shown up to so many characters.
const TEXT_SHOWN: usize = 200;

/// The query of the page.
#[derive(Debug, Deserialize)]
pub(super) struct Asked {
    receiver: Option<Uuid>,
    /// Only those that were given up.
    #[serde(default)]
    dead: bool,
}

/// `GET /page/webhooks`
pub(super) async fn list(
    viewer: Viewer,
    State(state): State<AppState>,
    Query(asked): Query<Asked>,
) -> Result<Html<String>, PageProblem> {
    let (ledger, now) = (&state.facilitator.ledger, state.facilitator.clock.now());
    let receivers = ledger.receivers().await?;
    let deliveries = ledger
        .deliveries(asked.receiver, (asked.dead, ROWS))
        .await?;
    let rows: Vec<_> = deliveries.iter().map(|one| delivery(one, now)).collect();
    let columns = [
        "Written", "State", "Event", "Tries", "Next try", "Status", "Problem",
    ];
    let content = html! {
        h1 { "Webhooks" }
        (layout::live(&html! {
            @for one in &receivers { (receiver(one, &viewer, now)) }
            @if receivers.is_empty() {
                p.hint { "There is no receiver. " code { "x402d webhooks add URL --events payment.settled" } " adds one." }
            }
            section aria-labelledby="deliveries" {
                h2 #deliveries { @if asked.dead { "Deliveries that were given up" } @else { "Newest deliveries" } @if asked.receiver.is_some() { " to one receiver" } }
                (shown::table("Deliveries", &columns, &rows))
                p.pages {
                    @if asked.receiver.is_some() || asked.dead { a href="/page/webhooks" { "All deliveries" } }
                    @if !asked.dead { a href="/page/webhooks?dead=true" { "Those that were given up" } }
                }
            }
        }))
    };
    Ok(layout::page(
        &viewer,
        ("/page/webhooks", "Webhooks"),
        &content,
    ))
}

fn receiver(one: &Receiver, viewer: &Viewer, now: OffsetDateTime) -> Markup {
    html! {
        article.card {
            h2 { (shown::foreign(&one.url, TEXT_SHOWN)) }
            dl.facts {
                dt { "Id" } dd { (shown::copyable(&one.id.to_string())) }
                dt { "Events" } dd { (shown::foreign(&one.types, TEXT_SHOWN)) }
                dt { "Payee" } dd { @match one.payee { Some(payee) => (shown::copyable(&checksummed(payee))), None => "all" } }
                dt { "Added" } dd { (shown::time(one.created_at, now)) }
                dt { "Waiting" } dd { (one.waiting) }
                dt { "Given up" } dd { (one.dead) }
            }
            div.buttons {
                a href={ "/page/webhooks?receiver=" (one.id) } { "Its deliveries" }
                @if one.dead > 0 && viewer.may_change() {
                    form method="post" action="/page/webhooks" {
                        (layout::token(viewer))
                        input type="hidden" name="receiver" value=(one.id);
                        button type="submit" { "Send again what was given up" }
                    }
                }
            }
        }
    }
}

fn delivery(one: &Delivery, now: OffsetDateTime) -> Markup {
    let is_waiting = one.state == "waiting";
    html! {
        td { (shown::time(one.created_at, now)) }
        td { (shown::state(&one.state)) }
        td { (shown::foreign(&one.message_id, TEXT_SHOWN)) }
        td.number { (one.tries) }
        td { @if is_waiting { (shown::time(one.next_try_at, now)) } }
        td.number { @if let Some(status) = one.status { (status) } }
        td { @if let Some(problem) = &one.problem { (shown::foreign(problem, TEXT_SHOWN)) } }
    }
}

/// `POST /page/webhooks`: has sent again what a receiver did not take.
pub(super) async fn replay(
    State(state): State<AppState>,
    form: Form,
) -> Result<Response, PageProblem> {
    let receiver = Uuid::try_parse(form.fields.text("receiver"));
    let receiver = receiver.map_err(|_| PageProblem::invalid("receiver: expected its id"))?;
    let again = state
        .facilitator
        .ledger
        .replay_deliveries(receiver, None)
        .await?;
    if again == 0 {
        let why = "there is nothing to send again";
        return Err(PageProblem::new(StatusCode::CONFLICT, why));
    }
    tracing::info!(%receiver, again, "page: deliveries sent again by the operator");
    Ok(Redirect::to("/page/webhooks").into_response())
}
