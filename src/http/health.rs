//! `GET /healthz`, `GET /readyz`

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::http::AppState;
use crate::http::error::AlreadyLogged;
use crate::settlement::{FailingTask, NetworkBudget, ServedNetwork, Supervisor, Task};

/// A network whose RPC has been silent for longer is down.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// The response of a process that lives.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Alive {
    /// Always `ok`.
    status: &'static str,
}

/// The condition of the service or a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Condition {
    /// Nothing is wrong.
    Ok,
    /// It works, but the operator should look at it.
    Degraded,
    /// It does not work.
    Down,
}

/// The condition of the service and its parts.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Readiness {
    /// Whether anything can be sold here.
    ready: bool,
    /// `ok`: all is well; `degraded`: something can be sold, and a part needs to be looked at; `down`: nothing can be sold.
    status: Condition,
    /// Each part.
    parts: Vec<Part>,
}

/// The last condition that `/readyz` reported, so that the log has a line for each change and none for each probe.
#[derive(Debug, Clone, Default)]
pub struct LastReadiness(Arc<Mutex<Option<Condition>>>);

impl LastReadiness {
    /// Logs the condition if it has changed.
    pub(super) fn note(&self, readiness: &Readiness) {
        let now = readiness.status();
        let before = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .replace(now);
        let why = readiness.problems();
        match now {
            _ if before == Some(now) => {}
            Condition::Ok if before.is_none() => {}
            Condition::Ok => tracing::info!("readiness changed: ok"),
            Condition::Degraded => tracing::warn!(why, "readiness changed: degraded"),
            Condition::Down => tracing::warn!(why, "readiness changed: nothing can be sold"),
        }
    }
}

/// One part of the service.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Part {
    /// `ledger`, or a network in CAIP-2.
    name: String,
    /// Whether it does its work.
    ready: bool,
    /// `degraded`: it does its work, and `detail` says what is wrong.
    status: Condition,
    /// What is wrong, and what to look at.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

impl Part {
    /// A part that works, except for these tasks.
    fn of(name: String, failing: &[FailingTask]) -> Self {
        if failing.is_empty() {
            Self::new(name, Condition::Ok, None)
        } else {
            Self::new(name, Condition::Degraded, Some(describe(failing)))
        }
    }

    fn new(name: String, status: Condition, detail: Option<String>) -> Self {
        Self {
            name,
            ready: status != Condition::Down,
            status,
            detail,
        }
    }
}

/// Is the process alive?
#[utoipa::path(get, path = "/healthz", tag = "health", responses((status = 200, description = "it is", body = Alive)))]
pub(super) async fn healthz() -> Json<Alive> {
    Json(Alive { status: "ok" })
}

/// Can anything be sold?
///
/// Yes while the ledger answers and one network can send: its RPC has answered lately, one of its signers has gas and is not stopped,
/// and its gas budget is not spent.
/// `status` is `degraded` when that is so and a part needs attention all the same.
#[utoipa::path(get, path = "/readyz", tag = "health", responses(
    (status = 200, description = "something can be sold; the parts say what is wrong, if anything is", body = Readiness),
    (status = 503, description = "nothing can be sold; the parts say why", body = Readiness),
))]
pub(super) async fn readyz(State(state): State<AppState>) -> Response {
    let readiness = readiness(&state).await;
    state.readiness.note(&readiness);
    let status = if readiness.ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, AlreadyLogged, Json(readiness)).into_response()
}

/// The condition of this process, its ledger and its networks.
pub(super) async fn readiness(state: &AppState) -> Readiness {
    let supervisor = &state.supervisor;
    let ledger = state.facilitator.ledger.check().await;
    let mut parts = vec![match &ledger {
        Ok(()) => Part::of("ledger".to_owned(), &supervisor.failing(None)),
        Err(error) => {
            let why = if error.is_read_only() {
                "the database takes no writes: it is a standby, or set to read-only"
            } else {
                "the database does not answer"
            };
            Part::new("ledger".to_owned(), Condition::Down, Some(why.to_owned()))
        }
    }];
    let networks = state.facilitator.served_networks.iter();
    parts.extend(networks.map(|served| network_part(served, supervisor)));
    Readiness::of(parts)
}

impl Readiness {
    /// From its parts: the ledger comes first, then the networks.
    fn of(parts: Vec<Part>) -> Self {
        let (ledger, networks) = parts.split_at(parts.len().min(1));
        let ready = ledger.iter().all(|part| part.ready) && networks.iter().any(|part| part.ready);
        let is_well = parts.iter().all(|part| part.status == Condition::Ok);
        let status = match (ready, is_well) {
            (true, true) => Condition::Ok,
            (true, false) => Condition::Degraded,
            (false, _) => Condition::Down,
        };
        Self {
            ready,
            status,
            parts,
        }
    }

    /// The problems of all parts, in a line.
    pub(super) fn problems(&self) -> String {
        let problems = self.details().map(|(name, why)| format!("{name}: {why}"));
        problems.collect::<Vec<_>>().join("; ")
    }

    /// The parts with a problem, by name.
    pub(super) fn details(&self) -> impl Iterator<Item = (&str, &str)> {
        let parts = self.parts.iter();
        parts.filter_map(|part| Some((part.name.as_str(), part.detail.as_deref()?)))
    }

    pub(super) const fn status(&self) -> Condition {
        self.status
    }
}

fn network_part(served: &ServedNetwork, supervisor: &Supervisor) -> Part {
    let failing = supervisor.failing(Some(served.policy.network));
    let health = served.health();
    let budget = served.budgets.of_network(served.ledger.clock().now());
    let down = match health.silent_for {
        None => Some("the network is starting: its RPC has not answered yet".to_owned()),
        Some(silence) if silence > SILENCE_MAX => Some(format!(
            "its RPC has been silent for {} s",
            silence.as_secs()
        )),
        Some(_) if !health.lane_owner_known => Some("its lanes are not claimed yet".to_owned()),
        Some(_) => served
            .can_send(None)
            .err()
            .map(|cannot| cannot.why)
            .or_else(|| match &budget {
                Some(NetworkBudget::Exhausted(why)) => Some(why.clone()),
                Some(NetworkBudget::Low(_)) | None => None,
            })
            .or_else(|| stopped_engine(&failing, served.policy.signers.len())),
    };
    let name = served.policy.network.to_string();
    if let Some(why) = down {
        return Part::new(name, Condition::Down, Some(why));
    }
    let mut unable = served.signer_problems();
    unable.extend(served.low_signers());
    if let Some(NetworkBudget::Low(why)) = budget {
        unable.push(why);
    }
    if unable.is_empty() {
        Part::of(name, &failing)
    } else {
        let mut detail = unable.join("; ");
        if !failing.is_empty() {
            detail = format!("{detail}; {}", describe(&failing));
        }
        Part::new(name, Condition::Degraded, Some(detail))
    }
}

/// The description of the failed tasks, if a network settles no payment without them: its watch, or all of its lanes.
fn stopped_engine(failing: &[FailingTask], signers: usize) -> Option<String> {
    let down = || failing.iter().filter(|one| one.down);
    let watch = down().any(|one| one.task.name == Task::WATCH);
    let lanes = down().filter(|one| one.task.name == Task::LANE).count();
    (watch || lanes >= signers.max(1)).then(|| describe(failing))
}

/// Describes tasks that have failed.
fn describe(failing: &[FailingTask]) -> String {
    let each = failing.iter().map(
        |FailingTask {
             task,
             down,
             failures,
         }| {
            let now = if *down {
                "is being restarted"
            } else {
                "runs again"
            };
            format!("the {task} failed ({failures} times within a minute) and {now}")
        },
    );
    let mut each: Vec<_> = each.collect();
    each.sort();
    format!("{}; the log says why", each.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readiness(ledger: Condition, networks: &[Condition]) -> (bool, Condition) {
        let part = |status: &Condition| Part::new(String::new(), *status, None);
        let parts = std::iter::once(&ledger).chain(networks).map(part);
        let readiness = Readiness::of(parts.collect());
        (readiness.ready, readiness.status)
    }

    #[test]
    fn service_is_ready_with_ledger_and_one_network() {
        use Condition::{Degraded, Down, Ok};
        assert_eq!(readiness(Ok, &[Ok, Ok]), (true, Ok));
        assert_eq!(readiness(Ok, &[Ok, Degraded]), (true, Degraded));
        assert_eq!(readiness(Ok, &[Down, Ok]), (true, Degraded));
        assert_eq!(readiness(Ok, &[Down, Down]), (false, Down));
        assert_eq!(readiness(Down, &[Ok]), (false, Down));
    }
}
