//! `GET /healthz`, `GET /readyz`

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use crate::http::AppState;
use crate::settlement::Site;

/// A network whose RPC has been silent for longer is unwell.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// That the process answers.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Alive {
    /// Always `ok`.
    status: &'static str,
}

/// What works and what does not.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Readiness {
    /// Whether every part is well.
    ready: bool,
    /// Each part.
    parts: Vec<Part>,
}

/// One part of the service.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Part {
    /// `ledger`, or a network in CAIP-2.
    name: String,
    /// Whether it is well.
    ready: bool,
    /// What is wrong, and what to look at.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

/// Is the process alive?
#[utoipa::path(get, path = "/healthz", tag = "health", responses((status = 200, description = "it is", body = Alive)))]
pub(super) async fn healthz() -> Json<Alive> {
    Json(Alive { status: "ok" })
}

/// Is every part well?
///
/// The ledger answers, each network's RPC has answered lately, and no lane waits for the operator.
#[utoipa::path(get, path = "/readyz", tag = "health", responses(
    (status = 200, description = "all is well", body = Readiness),
    (status = 503, description = "the parts say which one is unwell", body = Readiness),
))]
pub(super) async fn readyz(State(state): State<AppState>) -> (StatusCode, Json<Readiness>) {
    let ledger = state.facilitator.ledger.check().await;
    let mut parts = vec![Part {
        name: "ledger".to_owned(),
        ready: ledger.is_ok(),
        detail: ledger.err().map(|error| {
            let why = if error.takes_no_writes() {
                "the database takes no writes: it is a standby, or set to read-only"
            } else {
                "the database does not answer"
            };
            why.to_owned()
        }),
    }];
    for site in state.facilitator.sites.iter() {
        parts.push(part_of(site).await);
    }
    let ready = parts.iter().all(|part| part.ready);
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(Readiness { ready, parts }))
}

async fn part_of(site: &Site) -> Part {
    let network = site.policy.network;
    let health = site.health();
    let detail = match health.silent_for {
        None => Some("its RPC has not answered yet".to_owned()),
        Some(silence) if silence > SILENCE_MAX => Some(format!(
            "its RPC has been silent for {} s",
            silence.as_secs()
        )),
        Some(_) => match site.ledger.stopped_lanes(network).await {
            Ok(stopped) if stopped.is_empty() => {
                (!health.settled_in).then(|| "its lanes are not claimed yet".to_owned())
            }
            Ok(stopped) => Some(format!(
                "a lane waits for the operator: {}",
                stopped.join("; ")
            )),
            Err(_) => Some("its lanes cannot be read".to_owned()),
        },
    };
    Part {
        name: network.to_string(),
        ready: detail.is_none(),
        detail,
    }
}
