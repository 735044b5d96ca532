//! The facilitator's three verbs: verify, settle, supported.
//!
//! Knows payments, the ledger and the engine. Must not know HTTP. What always holds: an answer is rendered from a committed row;
//! success is told once per payment, and only after its grant is committed; an outage is an error, never a refusal.

mod decision;
mod grant;
mod settle;
mod supported;
mod verify;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::chain::RpcError;
use crate::clock::Clock;
use crate::ledger::{AuthorizationKey, GrantRequest, Ledger, LedgerError, Standing};
use crate::payment::{Candidate, SignedBy};
use crate::protocol::{Network, PaymentRequest, Reason, Refusal};
use crate::settlement::waiters::Waiting;
use crate::settlement::{Site, Waiters};

pub use grant::Grant;
pub use settle::Settled;

/// What the facilitator is made of.
#[derive(Debug, Clone)]
pub struct Facilitator {
    /// The ledger.
    pub ledger: Ledger,
    /// The networks that are served.
    pub sites: Arc<[Arc<Site>]>,
    /// The addresses that transactions come from, per network.
    pub signers: Arc<[(Network, Vec<alloy::primitives::Address>)]>,
    /// Who waits for which payment.
    pub waiters: Waiters,
    /// The wall clock.
    pub clock: Arc<dyn Clock>,
    /// How long `/settle` waits for the chain before it answers `settlement_pending`.
    pub settle_wait: Duration,
    /// How long a verify of a payment under way keeps others out.
    pub verify_lease_s: u32,
    /// Ends the waits of requests when the service stops.
    pub stopping: CancellationToken,
    /// Where work goes that outlives its request.
    pub tasks: TaskTracker,
}

/// Who is asking, for the grant.
pub type Caller = GrantRequest;

/// The facilitator cannot judge now: 5xx, and nothing was broadcast for this request.
#[derive(Debug, thiserror::Error)]
pub enum Outage {
    /// The ledger failed.
    #[error("the ledger is unavailable")]
    Ledger(#[from] LedgerError),
    /// The chain cannot be asked.
    #[error("the network's RPC is unavailable")]
    Chain(#[from] RpcError),
    /// Too much is under way.
    #[error("too many payments are waiting")]
    Busy,
    /// The service is stopping.
    #[error("the service is stopping")]
    Stopping,
}

/// Either a refusal, which is an answer, or an outage.
#[derive(Debug)]
enum Halt {
    Refused(Refusal),
    Outage(Outage),
}

impl From<Refusal> for Halt {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl<E: Into<Outage>> From<E> for Halt {
    fn from(error: E) -> Self {
        Self::Outage(error.into())
    }
}

impl Facilitator {
    fn site(&self, request: &PaymentRequest) -> Result<&Arc<Site>, Refusal> {
        let network = request.requirements.network;
        self.sites
            .iter()
            .find(|site| site.policy.network == network)
            .ok_or_else(|| {
                let served: Vec<_> = self
                    .sites
                    .iter()
                    .map(|site| site.policy.network.to_string())
                    .collect();
                Refusal {
                    reason: Reason::InvalidNetwork,
                    message: format!(
                        "this facilitator serves {}, got {network}",
                        served.join(", ")
                    ),
                    payer: Some(request.payload.authorization.from),
                    network_name: request.network_name.clone(),
                }
            })
    }

    /// The ledger's row of the same signed content, if it is known. Other content under the same nonce is refused, and so is a
    /// signature that neither was stored nor holds: the signed content of a mined payment is public.
    async fn known(&self, site: &Site, candidate: &Candidate) -> Result<Option<Standing>, Halt> {
        let Some(standing) = self
            .ledger
            .standing(&AuthorizationKey::from(candidate))
            .await?
        else {
            return Ok(None);
        };
        if standing.payment.digest != candidate.digest {
            let why =
                "this payer's nonce belongs to another authorization that was presented before"
                    .to_owned();
            return Err(candidate.refuse(Reason::ExactNonceUsed, why).into());
        }
        let proven = candidate.signed_by == SignedBy::Payer
            || candidate.signature == standing.payment.signature;
        if !proven {
            candidate.signature_holds(&site.facts.of_candidate(candidate).await?)?;
        }
        Ok(Some(standing))
    }

    /// Policy and clock, then the chain.
    async fn check(&self, site: &Site, candidate: Candidate) -> Result<Checked, Halt> {
        candidate.is_allowed(&site.policy, site.chain_time(self.clock.now()))?;
        if !site.is_open() {
            return Err(Outage::Chain(RpcError::Unreachable).into());
        }
        let facts = site.facts.of_candidate(&candidate).await?;
        Ok(Checked {
            verified: candidate.verified(&facts)?,
            facts,
        })
    }

    /// Waits for a change of a payment. `false`: the deadline came first, or the service stops.
    async fn wait(&self, change: tokio::sync::futures::Notified<'_>, deadline: Instant) -> bool {
        let waited = self
            .stopping
            .run_until_cancelled(Waiting::until(change, deadline))
            .await;
        waited.unwrap_or(false)
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.settle_wait
    }
}

#[derive(Debug)]
struct Checked {
    verified: crate::payment::Verified,
    facts: crate::payment::ChainFacts,
}
