//! `GET /metrics`: the figures of this process for Prometheus.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use time::OffsetDateTime;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use crate::facilitator::Facilitator;
use crate::http::operator::Operator;
use crate::http::{AppState, Problem};
use crate::ledger::Backlog;
use crate::protocol::response::checksummed;
use crate::settlement::ServedNetwork;
use crate::telemetry::disk::free_bytes;
use crate::telemetry::metrics::{CONTENT_TYPE, Gauges};

/// How long what the ledger said is used, so that scrapes do not cost statements each.
const VALID_FOR: Duration = Duration::from_secs(5);
/// How long the ledger is asked. A scrape of Prometheus ends after ten seconds unless configured otherwise.
const ASK_LIMIT: Duration = Duration::from_secs(2);

/// What the ledger last said of itself and its payments.
#[derive(Debug, Clone, Default)]
pub struct LastBacklog(Arc<Mutex<Option<Read>>>);

#[derive(Debug, Clone)]
struct Read {
    at: Instant,
    /// It answers, and takes writes.
    is_up: bool,
    /// `None`: it did not say.
    rows: Option<Vec<Backlog>>,
}

impl LastBacklog {
    /// Of several scrapes at a time one asks, and the others wait for it.
    async fn read(&self, facilitator: &Facilitator) -> Read {
        let mut last = self.0.lock().await;
        if let Some(read) = last.as_ref().filter(|read| read.at.elapsed() < VALID_FOR) {
            return read.clone();
        }
        let ledger = &facilitator.ledger;
        let (check, rows) = tokio::join!(
            timeout(ASK_LIMIT, ledger.check()),
            timeout(ASK_LIMIT, ledger.backlog()),
        );
        let read = Read {
            at: Instant::now(),
            is_up: matches!(check, Ok(Ok(()))),
            rows: rows.ok().and_then(Result::ok),
        };
        last.insert(read).clone()
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
    figures(&state).await
}

/// The same on a listener of its own: whoever reaches that may read it.
pub(super) async fn unguarded(State(state): State<AppState>) -> Response {
    figures(&state).await
}

async fn figures(state: &AppState) -> Response {
    let facilitator = &state.facilitator;
    let mut gauges = Gauges::default();
    let backlog = state.backlog.read(facilitator).await;
    gauges.set(
        "database_up",
        "1 if the database answers this process and takes writes",
        &Vec::new(),
        flag(backlog.is_up),
    );
    read_machine(state, &mut gauges);
    for served in facilitator.served_networks.iter() {
        read_network(served, facilitator.clock.now(), &mut gauges);
        if let Some(rows) = &backlog.rows {
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
    read_budgets(served, now, gauges);
    read_signers(served, gauges);
}

fn read_budgets(served: &ServedNetwork, now: OffsetDateTime, gauges: &mut Gauges) {
    let network = served.policy.network.to_string();
    for figures in served.budgets.fullest(now) {
        let labels = vec![
            ("network", network.clone()),
            ("scope", figures.scope.to_owned()),
        ];
        gauges.set(
            "budget_used_ratio",
            "Part of the fullest gas budget of a scope that is used; below 0.8 only the network's is known",
            &labels,
            decimal(figures.used_millionths),
        );
        gauges.set(
            "budget_exhausted",
            "1 if a gas budget of the scope is spent, so that its payments are refused",
            &labels,
            flag(figures.is_exhausted),
        );
    }
}

fn read_signers(served: &ServedNetwork, gauges: &mut Gauges) {
    let name = served.policy.network.to_string();
    for signer in served.senders.figures() {
        let labels = || {
            vec![
                ("network", name.clone()),
                ("signer", checksummed(signer.address)),
            ]
        };
        gauges.set(
            "signer_stopped",
            "1 if x402d has stopped the signer: it takes no new payments until the operator resumes it",
            &labels(),
            flag(signer.is_stopped),
        );
        gauges.set(
            "signer_paused",
            "1 if the operator has paused or drained the signer",
            &labels(),
            flag(signer.is_paused),
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
            if let Some(lasting) = served.senders.lasting(signer.address, left) {
                gauges.set(
                    "signer_hours_left",
                    "Hours for which the balance lasts at the pace of the last hour, in the process that sends by this signer",
                    &labels(),
                    decimal(lasting.as_secs().saturating_mul(1_000_000) / 3_600),
                );
            }
        }
    }
}

fn read_machine(state: &AppState, gauges: &mut Gauges) {
    for (pool, in_use, idle) in state.facilitator.ledger.connections() {
        for (state, connections) in [("in_use", in_use), ("idle", idle)] {
            let labels = vec![("pool", pool.to_owned()), ("state", state.to_owned())];
            gauges.set(
                "database_connections",
                "Connections to the database, by what they are for",
                &labels,
                number(&connections),
            );
        }
    }
    let folder = state.data_dir.as_deref();
    if let Some(free) = folder.and_then(|folder| free_bytes(folder).ok()) {
        gauges.set(
            "data_dir_free_bytes",
            "Room for the private Postgres",
            &Vec::new(),
            number(&free),
        );
    }
}

const fn flag(is_so: bool) -> f64 {
    if is_so { 1.0 } else { 0.0 }
}

/// So many millionths.
fn decimal(millionths: u64) -> f64 {
    let (whole, rest) = (millionths / 1_000_000, millionths % 1_000_000);
    number(&format!("{whole}.{rest:06}"))
}

/// A number as Prometheus has it; large ones lose their last digits.
fn number(exact: &impl ToString) -> f64 {
    exact.to_string().parse().unwrap_or(f64::MAX)
}
