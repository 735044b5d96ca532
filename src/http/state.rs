//! What handlers share.

use std::sync::Arc;

use secrecy::SecretString;

use crate::facilitator::Facilitator;

/// The state of the service. Cheap to clone.
#[derive(Debug, Clone)]
pub struct AppState {
    /// The three verbs.
    pub facilitator: Facilitator,
    /// The operator's bearer token; without one, loopback callers are the operator.
    pub admin_token: Option<Arc<SecretString>>,
    /// The longest body that is read, in bytes.
    pub body_bytes_max: usize,
}
