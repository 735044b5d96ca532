//! What handlers share.

use std::sync::{Arc, Mutex, PoisonError};

use secrecy::SecretString;

use crate::facilitator::Facilitator;
use crate::http::health::{Condition, Readiness};
use crate::settlement::Supervisor;

/// The state of the service. Cheap to clone.
#[derive(Debug, Clone)]
pub struct AppState {
    /// The three verbs.
    pub facilitator: Facilitator,
    /// The operator's bearer token; without one, loopback callers are the operator.
    pub admin_token: Option<Arc<SecretString>>,
    /// The longest body that is read, in bytes.
    pub body_bytes_max: usize,
    /// What `/readyz` said last.
    pub readiness: SaidReadiness,
    /// Knows which tasks of the engine have died.
    pub supervisor: Supervisor,
}

/// What `/readyz` said last, so that the log has a line for each change and none for each probe.
#[derive(Debug, Clone, Default)]
pub struct SaidReadiness(Arc<Mutex<Option<Condition>>>);

impl SaidReadiness {
    /// Says so if it is news.
    pub(super) fn note(&self, readiness: &Readiness) {
        let now = readiness.status();
        let before = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .replace(now);
        let why = readiness.in_words();
        match now {
            _ if before == Some(now) => {}
            Condition::Ok if before.is_none() => {}
            Condition::Ok => tracing::info!("readiness changed: all is well again"),
            Condition::Degraded => tracing::warn!(why, "readiness changed: degraded"),
            Condition::Down => tracing::warn!(why, "readiness changed: nothing can be sold"),
        }
    }
}
