//! `GET /stats`: counts and sums.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::query::{Filters, QueryReader, RawQuery};
use super::view::served_network;
use crate::http::operator::Reader;
use crate::http::{AppState, Problem};
use crate::ledger::{Group, Grouping};

/// Groups in a response at most: three months of days for ten payees.
const GROUPS_MAX: u16 = 1000;

/// The grouping if the caller gives none.
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

/// Payments with the same network, token and grouping values.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(in crate::http) struct GroupView {
    /// The day on which they were accepted, in UTC; with `groupBy=day`.
    #[serde(skip_serializing_if = "Option::is_none")]
    day: Option<String>,
    /// Address of the payee; with `groupBy=payee`.
    #[serde(skip_serializing_if = "Option::is_none")]
    payee: Option<String>,
    /// Network in CAIP-2.
    network: String,
    /// Address of the token.
    asset: String,
    /// How many decimals the token has; absent for a token that is not configured any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    decimals: Option<u8>,
    /// Their state; with `groupBy=state`.
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<String>,
    /// Number of payments.
    payments: u64,
    /// Their sum in atomic units; may be wider than 256 bits.
    amount: String,
}

/// Count and sum payments
///
/// By network and token always, because amounts of different tokens cannot be added; further by the values of `groupBy`. At most 1000
/// groups. `state` separates money that was transferred (`mined`, `settled`, `final`, `late_settled`) from money that was not.
#[utoipa::path(get, path = "/stats", operation_id = "paymentStats", tag = "history", params(
        Filters,
        ("groupBy" = Option<String>, Query, description = "Comma-separated: `day`, `payee`, `network`, `asset`, `state` (or `status`); `state` unless given."),
    ), security(("operator" = []), ("key" = []), ("apiKey" = [])), responses(
    (status = 200, description = "the groups", body = Stats),
    (status = 400, description = "a filter cannot be read; the detail names it", body = Problem, content_type = "application/problem+json"),
    (status = 401, description = "neither the operator nor the holder of a key", body = Problem, content_type = "application/problem+json"),
    (status = 403, description = "the key does not have the scope history", body = Problem, content_type = "application/problem+json"),
    (status = 503, description = "the ledger does not answer", body = Problem, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn stats(
    reader: Reader,
    State(state): State<AppState>,
    query: RawQuery,
) -> Result<Json<Stats>, Problem> {
    let mut query = QueryReader::new(query)?;
    let mut filter = query.filter()?;
    reader.narrow(&mut filter);
    let grouping = query.member("groupBy", grouping)?;
    query.end()?;
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
            // These two always separate.
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
        .and_then(|network| served_network(state, network))
        .and_then(|served| served.policy.asset(group.asset.parse().ok()?))
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
