//! The operations of the facilitator: verify, settle, supported, and payment sessions.
//!
//! Uses payments, the ledger and the engine. Must not know HTTP. Always: an answer is rendered from a committed row; success is answered
//! once per payment, and only after its grant is committed; an unavailable dependency is an error, never a refusal.

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
use crate::ledger::{GrantRequest, Ledger, LedgerError, Lookup};
use crate::payment::method::Fault;
use crate::payment::{Candidate, Purpose, SignedBy};
use crate::protocol::{Network, Payload, PaymentRequest, Reason, Refusal};
use crate::settlement::waiters::Waiting;
use crate::settlement::{CannotSend, DependencyError, ServedNetwork, Waiters, approval_objection};
use crate::telemetry::causes;

pub use grant::Grant;
pub use sessions::{SessionError, SessionRules, Sponsorship};
pub use settle::Settled;
pub use used_nonces::UsedNonces;

/// Everything that requests share.
#[derive(Debug, Clone)]
pub struct Facilitator {
    /// Nonces that are used on the chain for something that does not count here.
    pub used_nonces: UsedNonces,
    pub ledger: Ledger,
    /// The served networks.
    pub served_networks: Arc<[Arc<ServedNetwork>]>,
    /// The addresses of the signers, per network.
    pub signers: Arc<[(Network, Vec<alloy::primitives::Address>)]>,
    /// Requests that wait for a change of a payment or session.
    pub waiters: Waiters,
    pub clock: Arc<dyn Clock>,
    /// How long `/settle` waits for the chain before it answers `settlement_pending`.
    pub settle_wait: Duration,
    /// For how long one `/verify` of a payment that is being settled refuses others, in seconds.
    pub verify_lease_s: u32,
    pub sessions: SessionRules,
    /// Ends the waits of requests when the service stops.
    pub stopping: CancellationToken,
    /// Tracks work that outlives its request.
    pub tasks: TaskTracker,
}

/// The request that takes a grant.
pub type Caller = GrantRequest;

/// The payment cannot be checked now: HTTP 503, and nothing was broadcast for this request.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    #[error("the ledger is unavailable")]
    Ledger(#[from] LedgerError),
    #[error("the network's RPC is unavailable")]
    Chain(#[from] RpcError),
    /// No signer can send now.
    #[error(transparent)]
    CannotSend(#[from] CannotSend),
    /// The network's RPC has not confirmed the configuration yet.
    #[error("network {0} is starting: its RPC has not answered yet")]
    NetworkStarting(Network),
    /// The answering endpoint does not have a block that was seen before.
    #[error("the RPC of network {0} is behind a block that was seen already")]
    NodeBehind(Network),
    /// Too many payments are waiting.
    #[error("too many payments are waiting")]
    Busy,
    #[error("too many sessions are open")]
    TooManySessions,
    #[error("the service is stopping")]
    Stopping,
}

impl Unavailable {
    /// The value of `Retry-After`.
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

/// Either a refusal, which is an answer, or an unavailable dependency.
#[derive(Debug)]
enum Error {
    Refused(Refusal),
    Unavailable(Unavailable),
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<DependencyError> for Unavailable {
    fn from(error: DependencyError) -> Self {
        match error {
            DependencyError::Chain(error) => Self::Chain(error),
            DependencyError::Ledger(error) => Self::Ledger(error),
        }
    }
}

impl<E: Into<Unavailable>> From<E> for Error {
    fn from(error: E) -> Self {
        Self::Unavailable(error.into())
    }
}

impl Facilitator {
    fn served_network(&self, network: Network) -> Option<&Arc<ServedNetwork>> {
        self.served_networks
            .iter()
            .find(|served| served.policy.network == network)
    }

    fn network_of(&self, request: &PaymentRequest) -> Result<&Arc<ServedNetwork>, Refusal> {
        let network = request.requirements.network;
        self.served_network(network).ok_or_else(|| Refusal {
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
        let names = self
            .served_networks
            .iter()
            .map(|served| served.policy.network.to_string());
        let names: Vec<_> = names.collect();
        format!(
            "this facilitator serves {}, got {network}",
            names.join(", ")
        )
    }

    /// Looks up an authorization in the ledger: the session that its nonce belongs to, and its payment, where they exist. The terms that
    /// the seller has to ask for are those of the session, without one those of the authorization. Refused are other content under the same
    /// nonce, and a signature that is neither the stored one nor valid: the signed content of a mined payment is public.
    async fn look_up(
        &self,
        served: &ServedNetwork,
        candidate: &Candidate,
    ) -> Result<Lookup, Error> {
        let Lookup {
            session,
            payment: found,
        } = match self.ledger.lookup(candidate.into()).await {
            Err(error) if error.unreadable_payment().is_some() => {
                let why = unreadable_row(&error);
                return Err(candidate.refuse(Reason::SettlementPending, why).into());
            }
            found => found?,
        };
        if let Some(session) = &session {
            session
                .check_requirements(&candidate.requirements)
                .map_err(|(reason, why)| candidate.refuse(reason, why))?;
        }
        let Some(found) = found else {
            candidate.check_payee()?;
            return Ok(Lookup {
                session,
                payment: None,
            });
        };
        candidate.check_payee_and_amount()?;
        if found.payment.digest != candidate.digest {
            let why =
                "this payer's nonce belongs to another authorization that was presented before"
                    .to_owned();
            return Err(candidate.refuse_for(Fault::NonceUsed, why).into());
        }
        let is_proven = candidate.signed_by == SignedBy::Payer
            || candidate.signature == found.payment.signature;
        if !is_proven {
            candidate.check_signature(&served.facts.of(candidate.signed()).await?)?;
        }
        Ok(Lookup {
            session,
            payment: Some(found),
        })
    }

    /// Checks a candidate against the policy and the clock, then against the chain.
    async fn check(&self, served: &ServedNetwork, candidate: Candidate) -> Result<Checked, Error> {
        candidate.check_policy(&served.policy, served.chain_time(self.clock.now()))?;
        if !served.is_open() {
            return Err(Unavailable::NetworkStarting(served.policy.network).into());
        }
        let candidate = self.resolve_wallet(served, candidate).await?;
        let facts = served.facts.of(candidate.signed()).await?;
        let verified = candidate.verified(&facts)?;
        let candidate = verified.candidate();
        if candidate.signed().wallet.is_some() && !served.has_multicall() {
            let why = "this network has no Multicall3, by which the payer's wallet would be deployed; deploy the wallet first, and sign without its factory";
            return Err(candidate
                .refuse_for(Fault::Simulation, why.to_owned())
                .into());
        }
        if candidate.signed().needs_approval_first(&facts) {
            let objection = approval_objection(served, candidate.signed()).await?;
            if let Some((reason, why)) = objection {
                return Err(candidate.refuse(reason, why).into());
            }
        }
        Ok(Checked { verified, facts })
    }

    /// Whether a valid payment could be sent now. At `/verify`, one that names a signer which cannot send is refused if another signer can:
    /// the payer has not paid yet, and may name that one.
    fn can_be_sent(
        served: &ServedNetwork,
        candidate: &Candidate,
        purpose: Purpose,
    ) -> Result<(), Error> {
        let named = candidate.method.facilitator();
        let Err(cannot) = served.can_send(named) else {
            return Ok(());
        };
        match (purpose, named.and_then(|_| served.first_usable_signer())) {
            (Purpose::Verify, Some(able)) => {
                let why = format!("{cannot}; expected a payment that names {able}");
                Err(candidate
                    .refuse(Reason::UptoFacilitatorMismatch, why)
                    .into())
            }
            (Purpose::Verify | Purpose::Settle, _) => Err(cannot.into()),
        }
    }

    /// An ERC-6492 wrapper does not say whether its wallet is deployed, so the chain is asked, and the candidate becomes what is settled.
    async fn resolve_wallet(
        &self,
        served: &ServedNetwork,
        candidate: Candidate,
    ) -> Result<Candidate, Error> {
        if candidate.wallet.is_none() {
            return Ok(candidate);
        }
        let code = served.rpc.code(candidate.authorization.from).await?;
        Ok(candidate.with_wallet_deployed(&served.policy, !code.is_empty())?)
    }

    /// Waits for a change of a payment. `false`: the deadline passed first, or the service stops.
    async fn wait(&self, waiting: &mut Waiting, deadline: Instant) -> bool {
        let waited = waiting.change_until(deadline);
        self.stopping.run_until_cancelled(waited).await == Some(true)
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.settle_wait
    }
}

/// The message for a payment whose row cannot be read.
fn unreadable_row(error: &LedgerError) -> String {
    let why = causes(error);
    format!("the operator has to look at this payment: {why}. Money may have moved")
}

#[derive(Debug)]
struct Checked {
    verified: crate::payment::Verified,
    facts: crate::payment::ChainFacts,
}
