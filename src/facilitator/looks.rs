//! What the chain said a moment ago about something that callers can ask for again and again, so that asking again costs no call.

use std::sync::Arc;
use std::time::Duration;

use alloy::primitives::{Address, B256};
use tokio::time::Instant;

use crate::facilitator::recent::Recent;
use crate::facilitator::turns::{Turn, Turns};
use crate::facilitator::{Error, Facilitator};
use crate::payment::{Candidate, ChainFacts};
use crate::protocol::Network;
use crate::settlement::ServedNetwork;

/// How long a transaction that no node knew is not asked for again.
const UNKNOWN_FOR: Duration = Duration::from_secs(1);
/// How long an account is taken to have no code after the chain said so: EIP-7702 lets it have code from any block on.
const PLAIN_FOR: Duration = Duration::from_secs(5);
/// How long the used nonce of a session that is over is remembered.
const USED_FOR: Duration = Duration::from_secs(30);
/// Answers of each kind remembered, at most.
const KEPT_MAX: usize = 20_000;

/// The remembered answers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Looks(Arc<Memory>);

#[derive(Debug)]
struct Memory {
    unknown: Recent<(Network, B256)>,
    plain: Recent<(Network, Address)>,
    used: Recent<B256>,
    turns: Turns<(Network, B256)>,
}

impl Default for Looks {
    fn default() -> Self {
        Self(Arc::new(Memory {
            unknown: Recent::new(UNKNOWN_FOR, KEPT_MAX),
            plain: Recent::new(PLAIN_FOR, KEPT_MAX),
            used: Recent::new(USED_FOR, KEPT_MAX),
            turns: Turns::default(),
        }))
    }
}

impl Looks {
    /// Waits until no other request asks for this transaction; `None` when that takes too long.
    pub(super) async fn turn(
        &self,
        network: Network,
        transaction: B256,
    ) -> Option<Turn<(Network, B256)>> {
        self.0.turns.take((network, transaction)).await
    }

    /// Whether a transaction was asked for in vain since a request has `arrived`. If that was before, waits until it may be asked for again:
    /// who repeats a question is answered once a second, and what was sent meanwhile is found.
    pub(super) async fn is_unknown(
        &self,
        network: Network,
        transaction: B256,
        arrived: Instant,
    ) -> bool {
        let since = self.0.unknown.since((network, transaction), Instant::now());
        let Some(before) = since.filter(|since| *since < arrived) else {
            return since.is_some();
        };
        tokio::time::sleep_until(before + UNKNOWN_FOR).await;
        false
    }

    pub(super) fn note_unknown(&self, network: Network, transaction: B256) {
        let key = (network, transaction);
        self.0.unknown.remember(key, Instant::now());
    }

    /// Whether an account had no code a moment ago.
    pub(super) fn is_plain(&self, network: Network, account: Address) -> bool {
        let since = self.0.plain.since((network, account), Instant::now());
        since.is_some()
    }

    pub(super) fn note_plain(&self, network: Network, account: Address) {
        self.0.plain.remember((network, account), Instant::now());
    }

    /// Whether the nonce of a session was used a moment ago.
    pub(super) fn is_used(&self, nonce: B256) -> bool {
        self.0.used.since(nonce, Instant::now()).is_some()
    }

    pub(super) fn note_used(&self, nonce: B256) {
        self.0.used.remember(nonce, Instant::now());
    }
}

impl Facilitator {
    /// What the chain says of a payment. It is not asked about a signature of another key, if the payer's account had no code a moment
    /// ago.
    pub(super) async fn facts_of(
        &self,
        served: &ServedNetwork,
        candidate: &Candidate,
    ) -> Result<ChainFacts, Error> {
        let (network, payer) = (served.policy.network, candidate.terms.from);
        let has_own_signature = candidate.terms.is_signed_by_payer_key();
        if !has_own_signature
            && candidate.terms.wallet.is_none()
            && self.looks.is_plain(network, payer)
        {
            return Err(candidate.refuse_foreign_signature().into());
        }
        let facts = served.facts.of(&candidate.terms).await?;
        if !has_own_signature && !facts.payer_has_code && facts.token_has_code {
            self.looks.note_plain(network, payer);
        }
        Ok(facts)
    }
}
