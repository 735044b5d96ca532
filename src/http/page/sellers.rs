//! What payees were paid.

use alloy::primitives::Address;
use axum::extract::{Query, State};
use axum::response::Html;
use maud::html;
use serde::Deserialize;

use super::chart::{Per, Series};
use super::problem::PageProblem;
use super::viewer::Viewer;
use super::{layout, shown};
use crate::http::AppState;
use crate::protocol::field::parse_address;
use crate::protocol::response::checksummed;

/// Rows of the table: payees by network and token.
const ROWS: u16 = 200;

/// The query of the page.
#[derive(Debug, Deserialize)]
pub(super) struct Asked {
    /// Only this one.
    payee: Option<String>,
}

/// `GET /page/sellers`: the last thirty days by payee, and by day.
pub(super) async fn list(
    viewer: Viewer,
    State(state): State<AppState>,
    Query(asked): Query<Asked>,
) -> Result<Html<String>, PageProblem> {
    let payee = asked.payee.as_deref().map(parse_address).transpose();
    let payee = payee.map_err(|why| PageProblem::invalid(&format!("payee: {why}")))?;
    let (ledger, now) = (&state.facilitator.ledger, state.facilitator.clock.now());
    let series = Series::read(&state, payee, Per::Day).await?;
    let earned = ledger.earned(Per::Day.from(now), ROWS).await?;
    let shown_payee = payee.map(checksummed);
    let rows = earned
        .iter()
        .filter(|one| shown_payee.as_ref().is_none_or(|only| one.payee == *only));
    let rows = rows.map(|one| {
        html! {
            td { (shown::copyable(&one.payee)) }
            td { (shown::network(&one.network)) }
            td.number { (one.payments) }
            td.number { (shown::money(&one.network, &one.asset, &one.amount)) }
            td { (shown::time(one.newest, now)) }
            td { a href={ "/page/sellers?payee=" (one.payee) } aria-label={ "by day: " (shown::shortened(&one.payee)) } { "by day" } }
            td { a href=(csv(&one.payee)) aria-label={ "CSV of " (shown::shortened(&one.payee)) } { "CSV" } }
        }
    });
    let columns = [
        "Payee", "Network", "Payments", "Paid", "Newest", "Chart", "Table",
    ];
    let content = html! {
        h1 { @match payee { Some(payee) => { "Seller " (heading(payee)) }, None => "Sellers" } }
        (layout::live(&html! {
            section aria-labelledby="revenue" {
                h2 #revenue { "Revenue by day" }
                (series.shown())
            }
            section aria-labelledby="payees" {
                h2 #payees { "Payees of the last 30 days" }
                (shown::table("Payees", &columns, &rows.collect::<Vec<_>>()))
            }
            @if let Some(payee) = &shown_payee {
                p.pages {
                    a href={ "/page/payments?payee=" (payee) } { "Payments" }
                    a href=(csv(payee)) { "All payments as CSV" }
                    a href="/page/sellers" { "All sellers" }
                }
            }
        }))
    };
    Ok(layout::page(
        &viewer,
        ("/page/sellers", "Sellers"),
        &content,
    ))
}

fn heading(payee: Address) -> String {
    shown::shortened(&checksummed(payee))
}

fn csv(payee: &str) -> String {
    format!("/page/payments.csv?payee={payee}")
}
