//! The configuration of payment sessions: `[sessions]`.

use super::Settings;
use super::file::SessionsFile;
use crate::protocol::Amount;

/// Limits of payment sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionsConfig {
    /// Open sessions, at most.
    pub open_max: u32,
    /// Open sessions of one client address, at most.
    pub open_max_per_client: u32,
    /// Open sessions of one client address for one payer or one payee; beyond that its oldest one is closed.
    pub open_max_per_party: u32,
    /// The smallest payment, in dollars, that is sent on a mainnet before its seller asks; `None` sends none.
    pub sponsor_minimum: Option<String>,
}

pub(super) fn read(settings: &mut Settings<'_>, file: SessionsFile) -> SessionsConfig {
    let open_max = settings.between("sessions.open_max", file.open_max, 1..=10_000_000);
    let per_client = settings.between(
        "sessions.open_max_per_client",
        file.open_max_per_client,
        1..=10_000_000,
    );
    let per_party = settings.between(
        "sessions.open_max_per_party",
        file.open_max_per_party,
        1..=10_000_000,
    );
    let minimum = file.sponsor_minimum.unwrap_or_else(|| "0.01".to_owned());
    if Amount::from_dollars(&minimum, 18).is_err() {
        settings
            .problems
            .push("sessions.sponsor_minimum: expected dollars such as \"0.01\"".to_owned());
    }
    SessionsConfig {
        open_max: open_max.unwrap_or(100_000),
        open_max_per_client: per_client.unwrap_or(200),
        open_max_per_party: per_party.unwrap_or(50),
        sponsor_minimum: file.sponsor.unwrap_or_default().then_some(minimum),
    }
}
