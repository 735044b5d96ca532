//! The overview: is all well, what was paid, and what needs attention.

use alloy::primitives::U256;
use axum::extract::{Query, State};
use axum::response::{Html, IntoResponse, Response};
use maud::{Markup, html};
use serde::Deserialize;
use time::Duration;

use super::chart::{Per, Series};
use super::viewer::Viewer;
use super::{layout, payments, shown};
use crate::http::AppState;
use crate::http::health::{Condition, Readiness, readiness};
use crate::ledger::{
    Backlog, CodeCount, GasSubject, HistoryFilter, LedgerError, Page, SettleTimes,
};
use crate::settlement::ServedNetwork;
use crate::telemetry::causes;

/// Payments on the overview.
const PAYMENTS_SHOWN: u16 = 10;
/// Of so many newest payments the times are shown.
const TIMED: u16 = 1_000;
/// Codes in the table of refusals.
const CODES_SHOWN: u16 = 10;
/// What is counted over a day.
const DAY: Duration = Duration::hours(24);
/// A queued payment that waits longer is late, as for `x402d status`.
const QUEUED_LATE: std::time::Duration = std::time::Duration::from_mins(1);
/// The part of a budget from which it is low, in percent.
const BUDGET_LOW_PERCENT: u64 = 80;

/// The query of the overview.
#[derive(Debug, Deserialize)]
pub(super) struct Chosen {
    per: Option<String>,
}

impl Chosen {
    /// The length of a bar; a day unless something else is asked for by name.
    pub(super) fn per(&self, otherwise: Per) -> Per {
        let asked = self.per.as_deref();
        let known = Per::ALL.into_iter().find(|per| Some(per.name()) == asked);
        known.unwrap_or(otherwise)
    }
}

/// `GET /`
pub(super) async fn show(
    viewer: Viewer,
    State(state): State<AppState>,
    Query(chosen): Query<Chosen>,
) -> Response {
    let per = chosen.per(Per::Hour);
    let readiness = readiness(&state).await;
    let content = match read(&state, per).await {
        Ok(read) => read.shown(&readiness, &state, per),
        Err(error) => {
            tracing::warn!(error = causes(&error), "page: figures not read");
            let why = "the figures cannot be read from the database now".to_owned();
            layout::live(&condition(&readiness, &[why]))
        }
    };
    let page: Html<String> = layout::page(&viewer, ("/", "Overview"), &content);
    page.into_response()
}

/// What the ledger says.
struct Read {
    series: Series,
    newest: Vec<crate::ledger::Entry>,
    times: Option<SettleTimes>,
    codes: Vec<CodeCount>,
    backlog: Vec<Backlog>,
    budgets: Vec<Budget>,
    costs: Vec<crate::ledger::SignerCost>,
}

/// The gas budget of a network.
struct Budget {
    network: String,
    used: U256,
    limit: U256,
}

impl Budget {
    fn percent(&self) -> u64 {
        let percent = self.used.saturating_mul(U256::from(100));
        let percent = percent.checked_div(self.limit);
        percent.map_or(100, |percent| u64::try_from(percent).unwrap_or(u64::MAX))
    }
}

async fn read(state: &AppState, per: Per) -> Result<Read, LedgerError> {
    let (ledger, now) = (&state.facilitator.ledger, state.facilitator.clock.now());
    let page = Page {
        after: None,
        limit: PAYMENTS_SHOWN,
    };
    let mut budgets = Vec::new();
    for served in state.facilitator.served_networks.iter() {
        budgets.extend(budget(state, served).await?);
    }
    Ok(Read {
        series: Series::read(state, None, per).await?,
        newest: ledger.history(&HistoryFilter::default(), page).await?,
        times: ledger.settle_times(TIMED).await?,
        codes: ledger.refusals_by_code(now - DAY, CODES_SHOWN).await?,
        backlog: ledger.backlog().await?,
        costs: ledger.signer_costs(now - DAY).await?,
        budgets,
    })
}

async fn budget(state: &AppState, served: &ServedNetwork) -> Result<Option<Budget>, LedgerError> {
    let Some(limit) = served.policy.budget.wei_per_day else {
        return Ok(None);
    };
    let network = served.policy.network;
    let ledger = &state.facilitator.ledger;
    let hours = ledger.gas_hours(network, &[GasSubject::Network]).await?;
    let used = hours.into_iter().flatten().fold(U256::ZERO, |sum, hour| {
        let hour = hour.spent_wei.saturating_add(hour.reserved_wei);
        sum.saturating_add(hour)
    });
    Ok(Some(Budget {
        network: network.to_string(),
        used,
        limit,
    }))
}

impl Read {
    fn shown(&self, readiness: &Readiness, state: &AppState, per: Per) -> Markup {
        let now = state.facilitator.clock.now();
        let content = html! {
            (condition(readiness, &self.attention()))
            section aria-labelledby="paid" {
                h2 #paid { "Paid" }
                (choice("/", per))
                (self.series.shown())
            }
            section aria-labelledby="newest" {
                h2 #newest { "Newest payments" }
                (payments::rows(&self.newest, now))
                p { a href="/page/payments" { "All payments" } }
            }
            div.columns {
                (self.times())
                (self.refusals(now))
            }
            (self.gas(state))
            (self.spent(state))
        };
        layout::live(&content)
    }

    /// What payments wait for, and what will run out.
    fn attention(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for waiting in &self.backlog {
            let name = shown::network(&waiting.network.to_string());
            if waiting.quarantined > 0 {
                problems.push(format!("{name}: {} in quarantine", waiting.quarantined));
            }
            if waiting.oldest.is_some_and(|oldest| oldest > QUEUED_LATE) {
                problems.push(format!(
                    "{name}: a payment has waited in the queue for more than a minute"
                ));
            }
        }
        for budget in &self.budgets {
            let percent = budget.percent();
            if percent >= BUDGET_LOW_PERCENT {
                let name = shown::network(&budget.network);
                problems.push(format!(
                    "{name}: {percent} % of the gas budget of 24 hours is used"
                ));
            }
        }
        problems
    }

    fn times(&self) -> Markup {
        html! {
            section aria-labelledby="times" {
                h2 #times { "Settle latency" }
                @match self.times {
                    Some(times) => dl {
                        dt { "Half within" } dd { (times.median_ms) " ms" }
                        dt { "95 % within" } dd { (times.slow_ms) " ms" }
                        dt { "Payments" } dd { (times.payments) }
                    },
                    None => p.hint { "No payment was answered yet." },
                }
                p.hint { "From acceptance to the answer, of the newest payments." }
            }
        }
    }

    fn refusals(&self, now: time::OffsetDateTime) -> Markup {
        let rows = self.codes.iter().map(|one| {
            html! {
                td { (shown::foreign(&one.code, 80)) }
                td.number { (one.refusals) }
                td { (shown::time(one.newest, now)) }
            }
        });
        let rows: Vec<_> = rows.collect();
        html! {
            section aria-labelledby="refused" {
                h2 #refused { "Refused in 24 hours" }
                (shown::table("Refusals by code", &["Code", "Requests", "Newest"], &rows))
            }
        }
    }

    fn gas(&self, state: &AppState) -> Markup {
        let served = state.facilitator.served_networks.iter();
        let rows = served.flat_map(|served| {
            served.senders.figures().into_iter().map(|signer| {
                let network = served.policy.network;
                let cost = self
                    .costs
                    .iter()
                    .find(|cost| cost.network == network && cost.signer == signer.address);
                let left = signer
                    .balance
                    .and_then(|balance| served.payments_left(balance));
                html! {
                    td { (shown::copyable(&signer.address.to_checksum(None))) }
                    td { (shown::network(&network.to_string())) }
                    td.number { (served.native(cost.map_or(U256::ZERO, |cost| cost.wei))) }
                    td.number { (cost.map_or(0, |cost| cost.transactions)) }
                    td.number { @match left { Some(left) => (left), None => "unknown" } }
                }
            })
        });
        let rows: Vec<_> = rows.collect();
        let columns = [
            "Signer",
            "Network",
            "Gas in 24 hours",
            "Transactions",
            "Payments left",
        ];
        html! {
            section aria-labelledby="gas" {
                h2 #gas { "Signers" }
                (shown::table("Signers", &columns, &rows))
            }
        }
    }

    fn spent(&self, state: &AppState) -> Markup {
        let rows = self.budgets.iter().map(|budget| {
            let served = state.facilitator.served_networks.iter();
            let mut served = served.filter(|served| served.policy.network.to_string() == budget.network);
            let native = |wei| served.clone().next().map_or_else(String::new, |served| served.native(wei));
            let (used, limit) = (native(budget.used), native(budget.limit));
            served.next();
            html! {
                td { (shown::network(&budget.network)) }
                td.number { (used) }
                td.number { (limit) }
                td { progress max="100" value=(budget.percent().min(100)) aria-label="Used" {} " " (budget.percent()) " %" }
            }
        });
        let rows: Vec<_> = rows.collect();
        html! {
            section aria-labelledby="budgets" {
                h2 #budgets { "Gas budgets of 24 hours" }
                (shown::table("Gas budgets", &["Network", "Used", "Limit", ""], &rows))
            }
        }
    }
}

/// Is all well, in one line, and what is not.
fn condition(readiness: &Readiness, attention: &[String]) -> Markup {
    let details: Vec<_> = readiness.details().collect();
    let (class, line) = match readiness.status() {
        Condition::Down => ("wrong", "Nothing can be sold"),
        Condition::Ok if attention.is_empty() => ("well", "All is well"),
        Condition::Ok | Condition::Degraded => {
            ("open", "Payments go on, and something needs attention")
        }
    };
    html! {
        h1 class={ "condition " (class) } { (line) }
        @if !details.is_empty() || !attention.is_empty() {
            ul.problems {
                @for (part, why) in details { li { b { (shown::network(part)) } ": " (why) } }
                @for why in attention { li { (why) } }
            }
        }
    }
}

/// Links to the other lengths of time.
pub(super) fn choice(path: &str, per: Per) -> Markup {
    html! {
        p.choice {
            @for one in Per::ALL {
                a href={ (path) "?per=" (one.name()) } aria-current=[(one == per).then_some("true")] { "By the " (one.name()) }
            }
        }
    }
}
