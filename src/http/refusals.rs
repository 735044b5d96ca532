//! `GET /refusals`: what was turned away before it was a payment.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use time::format_description::well_known::Rfc3339;
use utoipa::ToSchema;

use crate::http::operator::Reader;
use crate::http::payments::query::{QueryReader, RawQuery, code, moment, page_limit, parsed};
use crate::http::{AppState, Problem};
use crate::ledger::{Refusal, RefusalFilter};
use crate::protocol::field::parse_address;

/// Default of the rows on a page.
const PAGE_DEFAULT: u16 = 50;

/// A page of refusals, newest first.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct RefusalPage {
    /// The refusals.
    refusals: Vec<RefusalView>,
    /// Pass it as `cursor` to get the next page; absent on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
    /// Refusals that this process has dropped since its start, because too many came at once.
    dropped: u64,
}

/// A request that was refused.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct RefusalView {
    /// The refusal's id.
    id: String,
    /// When, RFC 3339.
    at: String,
    /// The id of the request in the log, and in the header of its response.
    request_id: String,
    /// `verify`, `settle`, `sessions` (a session was to be opened) or `transfer` (something was submitted for a session).
    endpoint: String,
    /// The stable code.
    code: String,
    /// What was expected, what was received and what to do.
    message: String,
    /// Network in CAIP-2, like the members after it as far as it could be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<String>,
    /// Address of the payer.
    #[serde(skip_serializing_if = "Option::is_none")]
    payer: Option<String>,
    /// Address of the payee that the seller named.
    #[serde(skip_serializing_if = "Option::is_none")]
    payee: Option<String>,
    /// Address of the token that the seller named.
    #[serde(skip_serializing_if = "Option::is_none")]
    asset: Option<String>,
    /// What the seller asked for, in atomic units.
    #[serde(skip_serializing_if = "Option::is_none")]
    amount: Option<String>,
    /// Whose request it was: the id of a key, `operator` or `anonymous`.
    caller: String,
    /// The name of that key; to the holder of another key it is not shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    key_name: Option<String>,
}

impl From<Refusal> for RefusalView {
    fn from(refusal: Refusal) -> Self {
        Self {
            id: refusal.id.to_string(),
            at: refusal.at.format(&Rfc3339).unwrap_or_default(),
            request_id: refusal.request_id,
            endpoint: refusal.endpoint,
            code: refusal.code,
            message: refusal.message,
            network: refusal.network,
            payer: refusal.payer,
            payee: refusal.payee,
            asset: refusal.asset,
            amount: refusal.amount,
            caller: refusal.caller,
            key_name: refusal.key_name,
        }
    }
}

/// List refusals
///
/// Payments and sessions that were refused, newest first, for seven days; the newest 100,000 are kept. A refusal stands here about a second
/// after its answer. What could not be answered at all (HTTP 429 and 503), and requests that are refused for their key, are not among
/// them. The holder of a key sees those of its payees, and those of its own requests.
#[utoipa::path(get, path = "/refusals", operation_id = "listRefusals", tag = "history", params(
        ("code" = Option<String>, Query, description = "The stable code."),
        ("payer" = Option<String>, Query, description = "Address of the payer."),
        ("payee" = Option<String>, Query, description = "Address of the payee that the seller named."),
        ("from" = Option<String>, Query, description = "At this time or later, RFC 3339."),
        ("to" = Option<String>, Query, description = "Before this time, RFC 3339."),
        ("cursor" = Option<String>, Query, description = "`nextCursor` of the page before."),
        ("limit" = Option<u16>, Query, description = "Rows at most, 1 to 500; 50 unless given.", minimum = 1, maximum = 500),
    ), security(("operator" = []), ("key" = []), ("apiKey" = [])), responses(
    (status = 200, description = "a page", body = RefusalPage),
    (status = 400, description = "a filter cannot be read; the detail names it", body = Problem, content_type = "application/problem+json"),
    (status = 401, description = "neither the operator nor the holder of a key", body = Problem, content_type = "application/problem+json"),
    (status = 403, description = "the key does not have the scope history", body = Problem, content_type = "application/problem+json"),
    (status = 503, description = "the ledger does not answer", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn list(
    reader: Reader,
    State(state): State<AppState>,
    query: RawQuery,
) -> Result<Json<RefusalPage>, Problem> {
    let mut query = QueryReader::new(query)?;
    let filter = RefusalFilter {
        code: query.member("code", code)?,
        payer: query.member("payer", parse_address)?,
        payee: query.member("payee", parse_address)?,
        from: query.member("from", moment)?,
        to: query.member("to", moment)?,
        seen_by: match &reader {
            Reader::Operator(_) => None,
            Reader::Key(key) => Some((key.payees.clone(), key.id)),
        },
    };
    let after = query.member("cursor", parsed)?;
    let limit = query.member("limit", page_limit)?;
    query.end()?;
    let limit = limit.unwrap_or(PAGE_DEFAULT);
    let facilitator = &state.facilitator;
    let refusals = facilitator.ledger.refusals(&filter, (after, limit)).await?;
    let is_full = refusals.len() == usize::from(limit);
    let last = refusals.last().filter(|_| is_full);
    Ok(Json(RefusalPage {
        next_cursor: last.map(|last| last.id.to_string()),
        refusals: refusals.into_iter().map(RefusalView::from).collect(),
        dropped: facilitator.refusals.dropped(),
    }))
}
