//! The facilitator's verbs: verify, settle, supported; and payment sessions.
//!
//! Knows payments, the ledger and the engine. Must not know HTTP. What always holds: an answer is rendered from a committed row;
//! success is told once per payment, and only after its grant is committed; an outage is an error, never a refusal.

mod decision;
mod grant;
mod proof;
mod recognise;
mod sessions;
mod settle;
mod submission;
mod supported;
mod used_nonces;
mod verify;
mod waiting;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::chain::RpcError;
use crate::clock::Clock;
use crate::ledger::{GrantRequest, Known, Ledger, LedgerError};
use crate::payment::method::Fault;
use crate::payment::{Candidate, Purpose, SignedBy};
use crate::protocol::{Network, Payload, PaymentRequest, Reason, Refusal};
use crate::settlement::waiters::Waiting;
use crate::settlement::{CannotSend, NotNow, Site, Waiters, approval_objection};
use crate::telemetry::causes;

pub use grant::Grant;
pub use sessions::{SessionError, SessionRules, Sponsorship};
pub use settle::Settled;
pub use used_nonces::UsedNonces;

/// What the facilitator is made of.
#[derive(Debug, Clone)]
pub struct Facilitator {
    /// Nonces that are used for nothing that counts here.
    pub used_nonces: UsedNonces,
    /// The ledger.
    pub ledger: Ledger,
    /// The networks that are served.
    pub sites: Arc<[Arc<Site>]>,
    /// The addresses that transactions come from, per network.
    pub signers: Arc<[(Network, Vec<alloy::primitives::Address>)]>,
    /// Who waits for which payment.
    pub waiters: Waiters,
    /// The ledger's clock.
    pub clock: Arc<dyn Clock>,
    /// How long `/settle` waits for the chain before it answers `settlement_pending`.
    pub settle_wait: Duration,
    /// How long a verify of a payment under way keeps others out.
    pub verify_lease_s: u32,
    /// What sessions may cost us.
    pub sessions: SessionRules,
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
    /// No signer can send now.
    #[error(transparent)]
    CannotSend(#[from] CannotSend),
    /// The network's RPC has not confirmed the configuration yet.
    #[error("network {0} is starting: its RPC has not answered yet")]
    NetworkStarting(Network),
    /// The endpoint that answers has not seen a block that another one has.
    #[error("the RPC of network {0} is behind a block that was seen already")]
    NodeBehind(Network),
    /// Too much is under way.
    #[error("too many payments are waiting")]
    Busy,
    /// Too many sessions are open.
    #[error("too many sessions are open")]
    TooManySessions,
    /// The service is stopping.
    #[error("the service is stopping")]
    Stopping,
}

impl Outage {
    /// When to ask again.
    pub fn retry_after(&self) -> Duration {
        match self {
            Self::CannotSend(cannot) => cannot.retry_after,
            Self::Ledger(_)
            | Self::Chain(_)
            | Self::NetworkStarting(_)
            | Self::NodeBehind(_)
            | Self::Busy
            | Self::TooManySessions
            | Self::Stopping => Duration::from_secs(1),
        }
    }
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

impl From<NotNow> for Outage {
    fn from(error: NotNow) -> Self {
        match error {
            NotNow::Chain(error) => Self::Chain(error),
            NotNow::Ledger(error) => Self::Ledger(error),
        }
    }
}

impl<E: Into<Outage>> From<E> for Halt {
    fn from(error: E) -> Self {
        Self::Outage(error.into())
    }
}

impl Facilitator {
    fn site(&self, network: Network) -> Option<&Arc<Site>> {
        self.sites
            .iter()
            .find(|site| site.policy.network == network)
    }

    fn site_of(&self, request: &PaymentRequest) -> Result<&Arc<Site>, Refusal> {
        let network = request.requirements.network;
        self.site(network).ok_or_else(|| Refusal {
            reason: Reason::InvalidNetwork,
            message: self.not_served(network),
            payer: match &request.payload {
                Payload::Authorization(payload) => Some(payload.payer()),
                Payload::Proof(_) => None,
            },
            network_name: request.network_name.clone(),
        })
    }

    fn not_served(&self, network: Network) -> String {
        let served = self
            .sites
            .iter()
            .map(|site| site.policy.network.to_string());
        let served: Vec<_> = served.collect();
        format!(
            "this facilitator serves {}, got {network}",
            served.join(", ")
        )
    }

    /// The session that gave an authorization its nonce, and the ledger's row of the authorization, where there are any. A session says
    /// what the seller must ask for; without one the authorization does. Other content under the same nonce is refused, and so is
    /// a signature that neither was stored nor holds: the signed content of a mined payment is public.
    async fn known(&self, site: &Site, candidate: &Candidate) -> Result<Known, Halt> {
        let Known { session, standing } = match self.ledger.known(candidate.into()).await {
            Err(error) if error.unreadable_payment().is_some() => {
                let why = for_the_operator(&error);
                return Err(candidate.refuse(Reason::SettlementPending, why).into());
            }
            known => known?,
        };
        if let Some(session) = &session {
            session
                .is_asked_for(&candidate.requirements)
                .map_err(|(reason, why)| candidate.refuse(reason, why))?;
        }
        let Some(standing) = standing else {
            candidate.pays_the_payee()?;
            return Ok(Known {
                session,
                standing: None,
            });
        };
        candidate.pays_what_is_required()?;
        if standing.payment.digest != candidate.digest {
            let why =
                "this payer's nonce belongs to another authorization that was presented before"
                    .to_owned();
            return Err(candidate.object(Fault::NonceUsed, why).into());
        }
        let proven = candidate.signed_by == SignedBy::Payer
            || candidate.signature == standing.payment.signature;
        if !proven {
            candidate.signature_holds(&site.facts.of(candidate.signed()).await?)?;
        }
        Ok(Known {
            session,
            standing: Some(standing),
        })
    }

    /// Policy and clock, then the chain.
    async fn check(&self, site: &Site, candidate: Candidate) -> Result<Checked, Halt> {
        candidate.is_allowed(&site.policy, site.chain_time(self.clock.now()))?;
        if !site.is_open() {
            return Err(Outage::NetworkStarting(site.policy.network).into());
        }
        let candidate = self.unwrapped(site, candidate).await?;
        let facts = site.facts.of(candidate.signed()).await?;
        let verified = candidate.verified(&facts)?;
        let candidate = verified.candidate();
        if candidate.signed().wallet.is_some() && !site.has_multicall() {
            let why = "this network has no Multicall3, by which the payer's wallet would be deployed; deploy the wallet first, and sign without its factory";
            return Err(candidate.object(Fault::Simulation, why.to_owned()).into());
        }
        if candidate.signed().awaits_approval(&facts) {
            let objection = approval_objection(site, candidate.signed()).await?;
            if let Some((reason, why)) = objection {
                return Err(candidate.refuse(reason, why).into());
            }
        }
        Ok(Checked { verified, facts })
    }

    /// Whether a payment that is good could be sent. One that names a signer which cannot send is refused at verify if another one can: the
    /// payer has lost nothing yet, and may name that one.
    fn can_be_sent(site: &Site, candidate: &Candidate, purpose: Purpose) -> Result<(), Halt> {
        let named = candidate.method.facilitator();
        let Err(cannot) = site.can_send(named) else {
            return Ok(());
        };
        match (purpose, named.and_then(|_| site.able_signer())) {
            (Purpose::Verify, Some(able)) => {
                let why = format!("{cannot}; expected a payment that names {able}");
                Err(candidate
                    .refuse(Reason::UptoFacilitatorMismatch, why)
                    .into())
            }
            (Purpose::Verify | Purpose::Settle, _) => Err(cannot.into()),
        }
    }

    /// The payment as it is settled: an ERC-6492 wrapper says nothing about whether its wallet is deployed, so the chain is asked.
    async fn unwrapped(&self, site: &Site, candidate: Candidate) -> Result<Candidate, Halt> {
        if candidate.wallet.is_none() {
            return Ok(candidate);
        }
        let code = site.rpc.code(candidate.authorization.from).await?;
        Ok(candidate.with_wallet_deployed(&site.policy, !code.is_empty())?)
    }

    /// Waits for a change of a payment. `false`: the deadline came first, or the service stops.
    async fn wait(&self, waiting: &mut Waiting, deadline: Instant) -> bool {
        let waited = waiting.change_until(deadline);
        self.stopping.run_until_cancelled(waited).await == Some(true)
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.settle_wait
    }
}

/// What the presenter of a payment hears whose row cannot be read.
fn for_the_operator(error: &LedgerError) -> String {
    let why = causes(error);
    format!("the operator has to look at this payment: {why}. Money may have moved")
}

#[derive(Debug)]
struct Checked {
    verified: crate::payment::Verified,
    facts: crate::payment::ChainFacts,
}
