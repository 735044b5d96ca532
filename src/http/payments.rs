//! `GET /payments`, `GET /payments/{id}`: the history, for the operator.

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use serde::{Deserialize, Serialize};
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::http::operator::Operator;
use crate::http::{AppState, Problem};
use crate::ledger::{Event, HistoryFilter, Page};
use crate::payment::{Payment, PaymentId, PaymentState};
use crate::protocol::field::parse_address;
use crate::protocol::response::spelled;

/// Rows on a page unless the caller says otherwise, and at most.
const PAGE_DEFAULT: u16 = 50;
const PAGE_MAX: u16 = 500;

/// Which payments to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// Address of the payer.
    payer: Option<String>,
    /// Address of the payee.
    payee: Option<String>,
    /// CAIP-2, such as `eip155:8453`.
    network: Option<String>,
    /// Address of the token.
    asset: Option<String>,
    /// One of `queued`, `inflight`, `mined`, `settled`, `final`, `late_settled`, `refused`, `failed`.
    state: Option<String>,
    /// Accepted at this time or later, RFC 3339.
    from: Option<String>,
    /// Accepted before this time, RFC 3339.
    to: Option<String>,
    /// `nextCursor` of the page before.
    cursor: Option<String>,
    /// Rows at most, 1 to 500; 50 unless given.
    limit: Option<u16>,
}

/// A page of the history, newest first.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct PaymentPage {
    /// The payments.
    payments: Vec<PaymentView>,
    /// Give it back as `cursor` for the next page; absent on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// A payment as the history shows it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct PaymentView {
    /// The ledger's id, as in `extra.paymentId` of `/settle` answers.
    id: String,
    /// The dialect in which it was presented first.
    x402_version: u8,
    /// CAIP-2.
    network: String,
    /// Address of the token.
    asset: String,
    /// Address of the payer.
    payer: String,
    /// Address of the payee.
    payee: String,
    /// Atomic units.
    amount: String,
    /// How many decimals the token has; absent for a token that is not configured any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    decimals: Option<u8>,
    /// How far it got.
    state: &'static str,
    /// The stable code of a refusal or failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    /// The same for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    /// The transaction, once there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    transaction: Option<String>,
    /// Position of the Transfer log in its block.
    #[serde(skip_serializing_if = "Option::is_none")]
    log_index: Option<u64>,
    /// Height of its block.
    #[serde(skip_serializing_if = "Option::is_none")]
    block_number: Option<u64>,
    /// Time of its block, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    block_time: Option<String>,
    /// The depth that was promised when it was accepted.
    confirmations: u32,
    /// What was bought, as the buyer or seller said.
    #[serde(skip_serializing_if = "Option::is_none")]
    resource: Option<String>,
    /// Why it waits for the operator, if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    quarantine: Option<String>,
    /// The payer's nonce in the authorization.
    nonce: String,
    /// When it was accepted, RFC 3339.
    created_at: String,
    /// When it last changed, RFC 3339.
    updated_at: String,
}

/// A payment and what happened to it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PaymentDetail {
    /// The payment.
    #[serde(flatten)]
    payment: PaymentView,
    /// Its timeline, oldest first.
    events: Vec<EventView>,
}

/// One entry of a timeline.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct EventView {
    /// When, RFC 3339.
    at: String,
    /// `state`, `granted`, `answered`, `voided`, `quarantined` or `reorged`.
    kind: String,
    /// State before.
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    /// State after.
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<String>,
    /// Code, request id or explanation.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// The transaction that was known then.
    #[serde(skip_serializing_if = "Option::is_none")]
    transaction: Option<String>,
}

/// List payments
///
/// Newest first, a page at a time. A walk along `nextCursor` never shows a payment twice.
#[utoipa::path(get, path = "/payments", operation_id = "listPayments", tag = "history", params(ListQuery), security(("operator" = [])), responses(
    (status = 200, description = "a page", body = PaymentPage),
    (status = 400, description = "a filter cannot be read", body = Problem, content_type = "application/problem+json"),
    (status = 401, description = "not the operator", body = Problem, content_type = "application/problem+json"),
    (status = 503, description = "the ledger does not answer", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn list(
    _: Operator,
    State(state): State<AppState>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<PaymentPage>, Problem> {
    let Query(query) = query.map_err(|error| Problem::invalid_parameter(error.body_text()))?;
    let (filter, page) = query.understood()?;
    let payments = state.facilitator.ledger.history(&filter, page).await?;
    let full = payments.len() == usize::from(page.limit);
    let next_cursor = payments
        .last()
        .filter(|_| full)
        .map(|payment| payment.id.to_string());
    let payments = payments
        .into_iter()
        .map(|payment| view(payment, &state))
        .collect();
    Ok(Json(PaymentPage {
        payments,
        next_cursor,
    }))
}

/// Show a payment
///
/// With its timeline: every change of state, and who was told.
#[utoipa::path(get, path = "/payments/{id}", operation_id = "showPayment", tag = "history", params(("id" = String, Path, description = "the ledger's id")),
    security(("operator" = [])), responses(
    (status = 200, description = "the payment", body = PaymentDetail),
    (status = 400, description = "no id", body = Problem, content_type = "application/problem+json"),
    (status = 401, description = "not the operator", body = Problem, content_type = "application/problem+json"),
    (status = 404, description = "no such payment", body = Problem, content_type = "application/problem+json"),
    (status = 503, description = "the ledger does not answer", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn show(
    _: Operator,
    State(state): State<AppState>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<PaymentDetail>, Problem> {
    let Path(id) = id.map_err(|error| Problem::invalid_parameter(error.body_text()))?;
    let id = parse_id(&id, "id")?;
    let life = state.facilitator.ledger.life(id).await?;
    let (payment, events) =
        life.ok_or_else(|| Problem::not_found(format!("there is no payment {id}")))?;
    let events = events.into_iter().map(event).collect();
    Ok(Json(PaymentDetail {
        payment: view(payment, &state),
        events,
    }))
}

impl ListQuery {
    fn understood(&self) -> Result<(HistoryFilter, Page), Problem> {
        let address = |name: &str, text: &Option<String>| {
            let parsed = text.as_deref().map(parse_address).transpose();
            parsed.map_err(|why| Problem::invalid_parameter(format!("{name}: {why}")))
        };
        let moment = |name: &str, text: &Option<String>| {
            let Some(text) = text else { return Ok(None) };
            // With its offset, a time at either end of the calendar can lie outside of it; the ledger speaks UTC.
            let parsed = OffsetDateTime::parse(text, &Rfc3339)
                .ok()
                .and_then(|moment| moment.checked_to_offset(UtcOffset::UTC));
            parsed.map(Some).ok_or_else(|| {
                Problem::invalid_parameter(format!(
                    "{name}: expected a time such as 2026-01-31T12:00:00Z"
                ))
            })
        };
        let state = self.state.as_deref().map(|wanted| {
            let known = PaymentState::NAMES.into_iter().find(|name| *name == wanted);
            known.ok_or_else(|| {
                Problem::invalid_parameter(format!(
                    "state: expected one of {}",
                    PaymentState::NAMES.join(", ")
                ))
            })
        });
        let network = self.network.as_deref().map(str::parse).transpose();
        let limit = self.limit.unwrap_or(PAGE_DEFAULT);
        if limit == 0 || limit > PAGE_MAX {
            return Err(Problem::invalid_parameter(format!(
                "limit: expected 1 to {PAGE_MAX}, got {limit}"
            )));
        }
        let filter = HistoryFilter {
            payer: address("payer", &self.payer)?,
            payee: address("payee", &self.payee)?,
            asset: address("asset", &self.asset)?,
            network: network.map_err(|error: crate::protocol::network::UnknownNetwork| {
                Problem::invalid_parameter(format!("network: {error}"))
            })?,
            state: state.transpose()?,
            from: moment("from", &self.from)?,
            to: moment("to", &self.to)?,
        };
        let before = self
            .cursor
            .as_deref()
            .map(|text| parse_id(text, "cursor"))
            .transpose()?;
        Ok((filter, Page { before, limit }))
    }
}

fn parse_id(text: &str, name: &str) -> Result<PaymentId, Problem> {
    Uuid::parse_str(text).map(PaymentId).map_err(|_| {
        Problem::invalid_parameter(format!("{name}: expected an id of this ledger, a UUID"))
    })
}

fn view(payment: Payment, state: &AppState) -> PaymentView {
    let site = state
        .facilitator
        .sites
        .iter()
        .find(|site| site.policy.network == payment.network);
    let location = payment.state.location().copied();
    let exit = match &payment.state {
        PaymentState::Refused(exit) | PaymentState::Failed { exit, .. } => Some(exit.clone()),
        PaymentState::Queued
        | PaymentState::Inflight(_)
        | PaymentState::Mined(_)
        | PaymentState::Settled(_)
        | PaymentState::Final(_)
        | PaymentState::LateSettled(_) => None,
    };
    PaymentView {
        id: payment.id.to_string(),
        x402_version: payment.version.into(),
        network: payment.network.to_string(),
        asset: spelled(payment.asset),
        payer: spelled(payment.authorization.from),
        payee: spelled(payment.authorization.to),
        amount: payment.authorization.value.to_string(),
        decimals: site
            .and_then(|site| site.policy.asset(payment.asset))
            .map(|asset| asset.decimals),
        state: payment.state.name(),
        reason: exit.as_ref().map(|exit| exit.reason.code()),
        message: exit.map(|exit| exit.message),
        transaction: payment.state.transaction().map(|hash| hash.to_string()),
        log_index: location.map(|location| location.log_index),
        block_number: location.map(|location| location.block_number),
        block_time: location.map(|location| written(location.block_time)),
        confirmations: payment.confirmations,
        resource: payment.resource,
        quarantine: payment.quarantine,
        nonce: payment.authorization.nonce.to_string(),
        created_at: written(payment.created_at),
        updated_at: written(payment.updated_at),
    }
}

fn event(event: Event) -> EventView {
    EventView {
        at: written(event.at),
        kind: event.kind,
        from: event.from_state,
        to: event.to_state,
        reason: event.reason,
        transaction: event.transaction.map(|hash| hash.to_string()),
    }
}

fn written(moment: OffsetDateTime) -> String {
    moment.format(&Rfc3339).unwrap_or_default()
}
