//! The state that handlers share.

use std::sync::{Arc, Mutex, PoisonError};

use secrecy::SecretString;

use crate::facilitator::Facilitator;
use crate::http::health::{Condition, Readiness};
use crate::settlement::Supervisor;

#[derive(Debug, Clone)]
pub struct AppState {
    pub facilitator: Facilitator,
    /// The operator's bearer token; without one, callers on the loopback address are the operator.
    pub admin_token: Option<Arc<SecretString>>,
    /// The longest body that is read, in bytes.
    pub body_bytes_max: usize,
    pub readiness: LastReadiness,
    /// Knows which tasks of the engine have failed.
    pub supervisor: Supervisor,
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
