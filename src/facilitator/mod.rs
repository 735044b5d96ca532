//! The operations of the facilitator: verify, settle, status, supported, and payment sessions.
//!
//! Uses payments, the ledger and the engine. Must not know HTTP. Always: an answer is rendered from a committed row; success is answered
//! once per payment, and only after its grant is committed; an unavailable dependency is an error, never a rejection.

mod access;
mod caller;
mod gate;
mod grant;
mod intake;
mod line;
mod looks;
mod proof;
mod raw_transfer;
mod recent;
mod refusals;
mod sessions;
mod settle;
mod status;
mod submission;
mod supported;
mod transferred;
mod turns;
mod used_nonces;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use crate::chain::RpcError;
use crate::clock::Clock;
use crate::ledger::{Ledger, LedgerError};
use crate::protocol::{Network, Reason, Rejection};
use crate::settlement::waiters::Waiting;
use crate::settlement::{CannotSend, DependencyError, NoPlace, ServedNetwork, Waiters};
use crate::telemetry::metrics::Metrics;

pub use access::{Access, Keys, check_scope};
pub use caller::{Caller, counted_as};
pub use gate::{CallRates, Gate, GateRules};
pub use grant::Grant;
pub use looks::Looks;
pub use refusals::{Endpoint, Refusals};
pub use sessions::{SessionRules, Sessions, Sponsorship};
pub use settle::SettleAnswer;
pub use used_nonces::UsedNonces;

/// Everything that requests share.
#[derive(Debug, Clone)]
pub struct Facilitator {
    /// What every payment passes before the chain is asked about it.
    pub gate: Gate,
    /// What the chain said a moment ago.
    pub looks: Looks,
    /// Nonces that are used on the chain for something that does not count here.
    pub used_nonces: UsedNonces,
    pub ledger: Ledger,
    /// What is refused, on its way to the ledger.
    pub refusals: Refusals,
    pub metrics: Metrics,
    /// Who may have payments settled.
    pub access: Access,
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
    /// Ends the waits of requests when the service stops.
    pub stopping: CancellationToken,
    /// Tracks work that outlives its request.
    pub tasks: TaskTracker,
}

/// Why a payment is not settled, or a session not served.
#[derive(Debug)]
pub enum Error {
    /// An answer: the payment or the call is not acceptable.
    Rejected(Rejection),
    /// No answer is possible now.
    Unavailable(Unavailable),
}

/// The request cannot be checked now: HTTP 503, and nothing was broadcast for it.
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
    #[error("too many payments are waiting")]
    Busy,
    /// Another request looks at the chain for the same nonce, or has just recorded its payment.
    #[error("another request is checking the same authorization")]
    BeingChecked,
    /// The caller asks too often; its next call is admitted after this time.
    #[error("this caller asks too often")]
    RateLimited(Duration),
    /// The payer has as many payments in the queue as one payer may have.
    #[error("too many payments of this payer are waiting")]
    PayerBusy,
    /// The caller has left too many settlements behind by disconnecting.
    #[error("too many settlements that this caller has disconnected from are under way")]
    Unattended,
    /// The operator's policy service did not answer, and payments are refused then.
    #[error("the operator's policy service does not answer")]
    PolicyService,
    #[error("too many sessions are open")]
    TooManySessions,
    /// Without randomness no secret can be made, so no session can be opened.
    #[error("the system provides no randomness")]
    NoRandomness,
    #[error("the service is stopping")]
    Stopping,
}

impl Unavailable {
    /// The value of `Retry-After`.
    pub fn retry_after(&self) -> Duration {
        if let Self::RateLimited(wait) = self {
            *wait
        } else if let Self::CannotSend(cannot) = self {
            cannot.retry_after
        } else {
            Duration::from_secs(1)
        }
    }

    /// The code of the answer; `other` unless the error has one of its own.
    pub const fn reason(&self, other: Reason) -> Reason {
        if matches!(self, Self::RateLimited(_)) {
            Reason::RateLimited
        } else {
            other
        }
    }
}

impl From<NoPlace> for Unavailable {
    fn from(none: NoPlace) -> Self {
        match none {
            NoPlace::Full => Self::Busy,
            NoPlace::PayerFull => Self::PayerBusy,
        }
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

impl From<Rejection> for Error {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
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

    /// The served network that a payment or session names.
    fn network_of(&self, network: Network) -> Result<&Arc<ServedNetwork>, Rejection> {
        self.served_network(network).ok_or_else(|| {
            let served = self.served_networks.iter();
            let names: Vec<_> = served
                .map(|served| served.policy.network.to_string())
                .collect();
            let names = names.join(", ");
            let why = format!("this facilitator serves {names}, got {network}");
            Rejection::new(Reason::InvalidNetwork, why)
        })
    }

    /// Runs the work of a request to its end, also if its caller disconnects: then the result is dropped.
    async fn run_detached<T: Send + 'static, E: From<Unavailable> + Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, E>> + Send + 'static,
        caller: &Caller,
    ) -> Result<T, E> {
        let (_attendant, attended) = self.gate.attend(caller)?;
        let work = async move {
            let result = work.await;
            drop(attended);
            result
        };
        let task = self.tasks.spawn(work.in_current_span());
        task.await
            .unwrap_or_else(|_| Err(Unavailable::Stopping.into()))
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
