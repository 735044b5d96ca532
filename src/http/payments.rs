//! `GET /payments`, `GET /payments/{id}`, `GET /payments/by-transaction/{network}/{hash}`, `GET /stats`: the history.

pub(super) mod csv;
pub(super) mod query;
pub(super) mod stats;
mod view;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

pub use self::csv::write_cell;
use self::query::{Filters, QueryReader, RawQuery, page_limit, parsed};
use self::view::{PaymentDetail, PaymentView};
use crate::http::operator::Reader;
use crate::http::{AppState, Problem};
use crate::ledger::{Entry, HistoryFilter, Page};
use crate::payment::PaymentId;
use crate::protocol::field::parse_hash;

/// Default of the rows on a page.
const PAGE_DEFAULT: u16 = 50;

/// A page of the history, newest first.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct PaymentPage {
    /// The payments.
    payments: Vec<PaymentView>,
    /// Pass it as `cursor` to get the next page; absent on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// The payments of one transaction.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PaymentList {
    /// The payments, newest first.
    payments: Vec<PaymentView>,
}

/// List payments
///
/// Newest first, a page at a time. Following `nextCursor` shows every payment once that was committed before the first page was read; later
/// ones may be absent and never come twice. With `format=csv`, or `Accept: text/csv`, all payments that match the filters come as one
/// table.
#[utoipa::path(get, path = "/payments", operation_id = "listPayments", tag = "history", params(
        Filters,
        ("cursor" = Option<String>, Query, description = "`nextCursor` of the page before."),
        ("limit" = Option<u16>, Query, description = "Rows at most, 1 to 500; 50 unless given.", minimum = 1, maximum = 500),
        ("format" = Option<String>, Query, description = "`json`, or `csv` for all rows as RFC 4180; comes before the `Accept` header."),
    ), security(("operator" = []), ("key" = []), ("apiKey" = [])), responses(
    (status = 200, description = "a page, or a table", content((PaymentPage = "application/json"), (String = "text/csv"))),
    (status = 400, description = "a filter cannot be read; the detail names it", body = Problem, content_type = "application/problem+json"),
    (status = 401, description = "neither the operator nor the holder of a key", body = Problem, content_type = "application/problem+json"),
    (status = 403, description = "the key does not have the scope history", body = Problem, content_type = "application/problem+json"),
    (status = 503, description = "the ledger does not answer", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn list(
    reader: Reader,
    State(state): State<AppState>,
    headers: HeaderMap,
    query: RawQuery,
) -> Result<Response, Problem> {
    let mut query = QueryReader::new(query)?;
    let mut filter = query.filter()?;
    reader.narrow(&mut filter);
    let (after, limit) = (
        query.member("cursor", parsed)?,
        query.member("limit", page_limit)?,
    );
    let as_csv = query.member("format", |text| match text {
        "csv" => Ok(true),
        "json" => Ok(false),
        _ => Err("expected csv or json".to_owned()),
    })?;
    query.end()?;
    if as_csv.unwrap_or_else(|| prefers_csv(&headers)) {
        if after.is_some() || limit.is_some() {
            let why = "a table has no pages: leave out cursor and limit, or ask for format=json";
            return Err(Problem::invalid_parameter(why));
        }
        let table = csv::table(state, filter).await?;
        return Ok((csv::HEADERS, table).into_response());
    }
    let limit = limit.unwrap_or(PAGE_DEFAULT);
    let page = page(&state, &filter, Page { after, limit }).await?;
    let vary = [(header::VARY, HeaderValue::from_static("accept"))];
    Ok((vary, Json(page)).into_response())
}

async fn page(
    state: &AppState,
    filter: &HistoryFilter,
    page: Page,
) -> Result<PaymentPage, Problem> {
    let entries = state.facilitator.ledger.history(filter, page).await?;
    let full = entries.len() == usize::from(page.limit);
    let next = entries.last().filter(|_| full).map(Entry::cursor);
    Ok(PaymentPage {
        payments: views(entries, state),
        next_cursor: next.map(|cursor| cursor.to_string()),
    })
}

/// Show a payment
///
/// With its timeline (every change of state, and every answer of success), every signed transaction that was to transfer its money, and the
/// cost of gas.
#[utoipa::path(get, path = "/payments/{id}", operation_id = "showPayment", tag = "history", params(("id" = String, Path, description = "the ledger's id")),
    security(("operator" = []), ("key" = []), ("apiKey" = [])), responses(
    (status = 200, description = "the payment", body = PaymentDetail),
    (status = 400, description = "not an id", body = Problem, content_type = "application/problem+json"),
    (status = 401, description = "neither the operator nor the holder of a key", body = Problem, content_type = "application/problem+json"),
    (status = 404, description = "no such payment", body = Problem, content_type = "application/problem+json"),
    (status = 403, description = "the key does not have the scope history", body = Problem, content_type = "application/problem+json"),
    (status = 503, description = "the ledger does not answer", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn show(
    reader: Reader,
    State(state): State<AppState>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<PaymentDetail>, Problem> {
    let Path(id) = id.map_err(|error| Problem::invalid_parameter(error.body_text()))?;
    let id = Uuid::parse_str(&id).map(PaymentId).map_err(|_| {
        Problem::invalid_parameter("id: expected an id of this ledger, a UUID; for a hash there is /payments/by-transaction/{network}/{hash}")
    })?;
    let detail = state.facilitator.ledger.detail(id).await?;
    let detail = detail.filter(|detail| reader.may_see(&detail.entry.payee));
    let detail = detail.ok_or_else(|| Problem::not_found(format!("there is no payment {id}")))?;
    Ok(Json(PaymentDetail::new(detail, &state)))
}

/// List the payments of a transaction
///
/// A list, because one transaction can carry several. Includes payments that the transaction was signed for and did not transfer. Empty for
/// a transaction that this ledger does not have.
#[utoipa::path(get, path = "/payments/by-transaction/{network}/{hash}", operation_id = "listPaymentsOfTransaction", tag = "history", params(
        ("network" = String, Path, description = "CAIP-2 or name, such as `eip155:8453` or `base`"),
        ("hash" = String, Path, description = "the transaction's hash"),
    ), security(("operator" = []), ("key" = []), ("apiKey" = [])), responses(
    (status = 200, description = "the payments", body = PaymentList),
    (status = 400, description = "not a network, or not a hash", body = Problem, content_type = "application/problem+json"),
    (status = 401, description = "neither the operator nor the holder of a key", body = Problem, content_type = "application/problem+json"),
    (status = 403, description = "the key does not have the scope history", body = Problem, content_type = "application/problem+json"),
    (status = 503, description = "the ledger does not answer", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn of_transaction(
    reader: Reader,
    State(state): State<AppState>,
    path: Result<Path<(String, String)>, PathRejection>,
) -> Result<Json<PaymentList>, Problem> {
    let Path((network, hash)) =
        path.map_err(|error| Problem::invalid_parameter(error.body_text()))?;
    let network = query::network(&network)
        .map_err(|why| Problem::invalid_parameter(format!("network: {why}")))?;
    let hash =
        parse_hash(&hash).map_err(|why| Problem::invalid_parameter(format!("hash: {why}")))?;
    let ledger = &state.facilitator.ledger;
    let mut entries = ledger.payments_of_transaction(network, hash).await?;
    entries.retain(|entry| reader.may_see(&entry.payee));
    Ok(Json(PaymentList {
        payments: views(entries, &state),
    }))
}

fn views(entries: Vec<Entry>, state: &AppState) -> Vec<PaymentView> {
    let views = entries.into_iter();
    views.map(|entry| PaymentView::new(entry, state)).collect()
}

/// Whether the caller names CSV and does not prefer JSON. A caller that accepts anything gets JSON.
fn prefers_csv(headers: &HeaderMap) -> bool {
    let ranges = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    for range in ranges {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default();
        let refused = parts.any(|part| matches!(part, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"));
        if refused {
            continue;
        }
        // The first supported type in the header is used.
        if kind.eq_ignore_ascii_case("text/csv") {
            return true;
        }
        if kind.eq_ignore_ascii_case("application/json") {
            return false;
        }
    }
    false
}
