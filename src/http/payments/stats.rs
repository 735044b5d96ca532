//! `GET /stats`: counts and sums.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::question::{Filters, Question, RawQuery};
use super::view::site;
use crate::http::operator::Operator;
use crate::http::{AppState, Problem};
use crate::ledger::{Group, Grouping};

/// Groups in an answer at most: three months of days for ten payees.
const GROUPS_MAX: u16 = 1000;

/// What is told apart unless the caller says otherwise.
const BY_STATE: Grouping = Grouping {
    day: false,
    payee: false,
    state: true,
};

/// Counts and sums.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Stats {
    /// The groups: newest days first.
    groups: Vec<GroupView>,
    /// Whether there are more than these; a narrower filter or a coarser grouping shows all.
    truncated: bool,
}

/// Payments that have something in common.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(in crate::http) struct GroupView {
    /// The day on which they were accepted, in UTC; with `groupBy=day`.
    #[serde(skip_serializing_if = "Option::is_none")]
    day: Option<String>,
    /// Who was paid; with `groupBy=payee`.
    #[serde(skip_serializing_if = "Option::is_none")]
    payee: Option<String>,
    /// CAIP-2.
    network: String,
    /// Address of the token.
    asset: String,
    /// How many decimals the token has; absent for a token that is not configured any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    decimals: Option<u8>,
    /// How far they got; with `groupBy=state`.
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<String>,
    /// How many.
    payments: u64,
    /// Their sum in atomic units; may be wider than 256 bits.
    amount: String,
}

/// Count and add up
///
/// By network and token always, because amounts of different tokens cannot be added; further by what `groupBy` names. At most 1000 groups.
/// `state` keeps money that moved (`mined`, `settled`, `final`, `late_settled`) apart from money that did not.
#[utoipa::path(get, path = "/stats", operation_id = "paymentStats", tag = "history", params(
        Filters,
        ("groupBy" = Option<String>, Query, description = "Comma-separated: `day`, `payee`, `network`, `asset`, `state` (or `status`); `state` unless given."),
    ), security(("operator" = [])), responses(
    (status = 200, description = "the groups", body = Stats),
    (status = 400, description = "a filter cannot be read; the detail names it", body = Problem, content_type = "application/problem+json"),
    (status = 401, description = "not the operator", body = Problem, content_type = "application/problem+json"),
    (status = 503, description = "the ledger does not answer", body = Problem, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn stats(
    _: Operator,
    State(state): State<AppState>,
    query: RawQuery,
) -> Result<Json<Stats>, Problem> {
    let mut question = Question::new(query)?;
    let filter = question.filter()?;
    let grouping = question.member("groupBy", grouping)?;
    question.end()?;
    let grouping = grouping.unwrap_or(BY_STATE);
    let ledger = &state.facilitator.ledger;
    let mut groups = ledger.stats(&filter, grouping, GROUPS_MAX + 1).await?;
    let truncated = groups.len() > usize::from(GROUPS_MAX);
    groups.truncate(GROUPS_MAX.into());
    let groups = groups
        .into_iter()
        .map(|group| group_view(group, &state))
        .collect();
    Ok(Json(Stats { groups, truncated }))
}

fn grouping(text: &str) -> Result<Grouping, String> {
    let mut grouping = Grouping::default();
    for name in text.split(',') {
        match name {
            "day" => grouping.day = true,
            "payee" => grouping.payee = true,
            "state" | "status" => grouping.state = true,
            // Always.
            "network" | "asset" => {}
            _ => {
                return Err(
                    "expected day, payee, network, asset, state, or several with commas".to_owned(),
                );
            }
        }
    }
    Ok(grouping)
}

fn group_view(group: Group, state: &AppState) -> GroupView {
    let network = group.network.parse().ok();
    let decimals = network
        .and_then(|network| site(state, network))
        .and_then(|site| site.policy.asset(group.asset.parse().ok()?))
        .map(|asset| asset.decimals);
    GroupView {
        day: group.day.map(|day| day.to_string()),
        payee: group.payee,
        network: group.network,
        asset: group.asset,
        decimals,
        state: group.state,
        payments: group.payments,
        amount: group.amount,
    }
}
