//! The result of one check, of `x402d networks --check` and `x402d doctor`.

use alloy::primitives::Address;
use serde::Serialize;

use crate::protocol::response::checksummed;
use crate::server::NetworkProblem;

/// The result of one check.
#[derive(Debug, Serialize)]
pub(super) struct Finding {
    pub(super) about: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) address: Option<String>,
    pub(super) outcome: Outcome,
    pub(super) says: String,
    /// What to do, where the text does not say it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) fix: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Outcome {
    /// It is as it should be.
    Agrees,
    /// It is not deployed, and the configuration does not need it.
    Missing,
    /// It works, and the operator should look at it.
    Warning,
    /// `serve` would refuse to start, or could not settle.
    Wrong,
    /// The RPC did not answer.
    Unanswered,
}

impl Outcome {
    const fn word(self) -> &'static str {
        match self {
            Self::Agrees => "ok",
            Self::Missing => "missing",
            Self::Warning => "warn",
            Self::Wrong => "WRONG",
            Self::Unanswered => "UNKNOWN",
        }
    }

    /// Whether nothing can be settled like that.
    pub(super) const fn is_failure(self) -> bool {
        matches!(self, Self::Wrong | Self::Unanswered)
    }
}

impl Finding {
    pub(super) fn new(
        about: &'static str,
        address: Option<Address>,
        found: Result<String, NetworkProblem>,
    ) -> Self {
        let (outcome, says) = match found {
            Ok(says) => (Outcome::Agrees, says),
            Err(problem) if problem.is_transient() => (Outcome::Unanswered, problem.to_string()),
            Err(problem) => (Outcome::Wrong, problem.to_string()),
        };
        Self {
            about,
            address: address.map(checksummed),
            outcome,
            says,
            fix: None,
        }
    }

    pub(super) fn ok(about: &'static str, says: impl Into<String>) -> Self {
        Self::new(about, None, Ok(says.into()))
    }

    pub(super) fn warning(about: &'static str, says: impl Into<String>, fix: &str) -> Self {
        Self {
            outcome: Outcome::Warning,
            fix: Some(fix.to_owned()),
            ..Self::ok(about, says)
        }
    }

    /// A problem whose text says what to do.
    pub(super) fn wrong(about: &'static str, says: impl Into<String>) -> Self {
        Self {
            outcome: Outcome::Wrong,
            ..Self::ok(about, says)
        }
    }

    pub(super) fn with_fix(mut self, fix: &str) -> Self {
        self.fix = Some(fix.to_owned());
        self
    }

    pub(super) fn of(mut self, address: Address) -> Self {
        self.address = Some(checksummed(address));
        self
    }

    /// A line, and one below it for what to do.
    pub(super) fn formatted(&self) -> String {
        let (word, about, says) = (self.outcome.word(), self.about, &self.says);
        let address = self.address.as_deref().unwrap_or_default();
        let space = if address.is_empty() { "" } else { " " };
        let fix = self.fix.as_ref();
        let fix = fix.map(|fix| format!("\n{:<21}fix: {fix}", ""));
        format!(
            "  {word:<8} {about:<9} {address}{space}{says}{}",
            fix.unwrap_or_default()
        )
    }
}
