//! `GET /metrics`: the figures of this process for Prometheus.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use time::OffsetDateTime;
use tokio::time::Instant;

use crate::facilitator::Facilitator;
use crate::http::operator::Operator;
use crate::http::{AppState, Problem};
use crate::ledger::Backlog;
use crate::protocol::response::checksummed;
use crate::settlement::ServedNetwork;
use crate::telemetry::metrics::{CONTENT_TYPE, Gauges};

/// How long what the ledger said is used, so that scrapes do not cost a statement each.
const BACKLOG_VALID_FOR: Duration = Duration::from_secs(5);

/// What the ledger last said of its payments; `None` when it did not answer.
#[derive(Debug, Clone, Default)]
pub struct LastBacklog(Arc<Mutex<Option<Read>>>);

#[derive(Debug, Clone)]
struct Read {
    at: Instant,
    rows: Option<Vec<Backlog>>,
}

impl LastBacklog {
    async fn read(&self, facilitator: &Facilitator) -> Option<Vec<Backlog>> {
        let last = self.last().clone();
        if let Some(read) = last.filter(|read| read.at.elapsed() < BACKLOG_VALID_FOR) {
            return read.rows;
        }
        let rows = facilitator.ledger.backlog().await.ok();
        let at = Instant::now();
        *self.last() = Some(Read {
            at,
            rows: rows.clone(),
        });
        rows
    }

    fn last(&self) -> std::sync::MutexGuard<'_, Option<Read>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Figures for Prometheus
///
/// Counters of this process since its start, and the state of its networks, signers and payments now. No label names a caller or an
/// endpoint's URL.
#[utoipa::path(get, path = "/metrics", operation_id = "metrics", tag = "health", security(("operator" = [])), responses(
    (status = 200, description = "the text format of Prometheus, version 0.0.4", body = String, content_type = "text/plain"),
    (status = 401, description = "not the operator", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn metrics(_: Operator, State(state): State<AppState>) -> Response {
    let facilitator = &state.facilitator;
    let mut gauges = Gauges::default();
    let backlog = state.backlog.read(facilitator).await;
    gauges.set(
        "database_up",
        "1 if the database answers this process",
        &Vec::new(),
        if backlog.is_some() { 1.0 } else { 0.0 },
    );
    for served in facilitator.served_networks.iter() {
        read_network(served, facilitator.clock.now(), &mut gauges);
        if let Some(rows) = &backlog {
            let network = served.policy.network;
            let row = rows.iter().find(|row| row.network == network);
            let quarantined = row.map_or(0, |row| row.quarantined);
            gauges.set(
                "quarantined_payments",
                "Payments that wait for the operator's decision",
                &vec![("network", network.to_string())],
                number(&quarantined),
            );
        }
    }
    match facilitator.metrics.text(gauges) {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

fn read_network(served: &ServedNetwork, now: OffsetDateTime, gauges: &mut Gauges) {
    let name = served.policy.network.to_string();
    let of_network = || vec![("network", name.clone())];
    let health = served.health();
    gauges.set(
        "queue_payments",
        "Payments that wait in this process for a transaction",
        &of_network(),
        number(&served.queue.waiting()),
    );
    gauges.set(
        "inflight_transactions",
        "Transactions without a result that this process follows",
        &of_network(),
        number(&health.open),
    );
    let silent = health.silent_for;
    gauges.set(
        "rpc_silent_seconds",
        "Time since an endpoint last gave the watch an answer; +Inf before the first",
        &of_network(),
        silent.map_or(f64::INFINITY, |silence| silence.as_secs_f64()),
    );
    if let Some(head) = served.view.head() {
        let age = now - head.time;
        gauges.set(
            "head_age_seconds",
            "Age of the newest block",
            &of_network(),
            age.as_seconds_f64().max(0.0),
        );
    }
    for signer in served.senders.figures() {
        let labels = || {
            vec![
                ("network", name.clone()),
                ("signer", checksummed(signer.address)),
            ]
        };
        gauges.set(
            "signer_stopped",
            "1 if the signer is stopped, paused or drained: it takes no new payments until the operator resumes it",
            &labels(),
            if signer.is_stopped { 1.0 } else { 0.0 },
        );
        let Some(balance) = signer.balance else {
            continue;
        };
        gauges.set(
            "signer_balance_wei",
            "Balance as it was last read",
            &labels(),
            number(&balance),
        );
        if let Some(left) = served.payments_left(balance) {
            gauges.set(
                "signer_payments_left",
                "Payments that the balance pays for at the present gas price",
                &labels(),
                number(&left),
            );
        }
    }
}

/// An integer as Prometheus has it; large ones lose their last digits.
fn number(integer: &impl ToString) -> f64 {
    integer.to_string().parse().unwrap_or(f64::MAX)
}
