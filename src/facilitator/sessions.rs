//! Payment sessions: opened before any money moves, read and waited for, cancelled.

mod view;

use std::time::Duration;

use alloy::primitives::{FixedBytes, keccak256};
use serde_json::Value;
use tokio::time::Instant;

use crate::facilitator::gate::{Asked, Call};
use crate::facilitator::refusals::{refused_session, refused_terms};
use crate::facilitator::sessions::view::{add_payment, opened, session_view};
use crate::facilitator::submission::accepted_terms;
use crate::facilitator::{Caller, Endpoint, Error, Facilitator, Unavailable, counted_as};
use crate::ledger::{NewSession, OpenLimits, Opened};
use crate::payment::session::SessionStatus;
use crate::payment::{Asset, Session};
use crate::protocol::request::resource_url;
use crate::protocol::session::{
    Rail, SessionId, SessionOpened, SessionRequest, SessionState, SessionView, TransferForm, nonce,
    requirements_hash,
};
use crate::protocol::{PaymentRequirements, PlainText, Reason, Rejection, X402Version};
use crate::settlement::ServedNetwork;
use crate::settlement::waiters::Topic;
use crate::telemetry::metrics::{Limit, reached};

/// The longest time that a reader of a session may wait for a change.
const WAIT_MAX: Duration = Duration::from_mins(1);
/// How long a reader waits for an answer about the same payment that is being written to another socket.
const ANSWER_WAIT: Duration = Duration::from_secs(1);
/// The longest `clientReference`, in characters.
const REFERENCE_CHARACTERS_MAX: usize = 200;
/// The longest `resourceId` of a seller's route, in characters.
const ROUTE_CHARACTERS_MAX: usize = 2048;
/// Bounds of the lifetime that the seller's entry gives a session, in seconds.
const LIFE_S: (u64, u64) = (30, 30 * 60);

/// The limits of what sessions may cost the operator.
#[derive(Debug, Clone)]
pub struct SessionRules {
    pub limits: OpenLimits,
    /// Whether the operator pays for early broadcasts on networks where gas costs money.
    pub sponsorship: Option<Sponsorship>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sponsorship {
    /// The smallest payment that is sent before its seller asks, in dollars such as `0.01`.
    pub least_dollars: String,
}

/// The payment sessions.
#[derive(Debug, Clone)]
pub struct Sessions {
    /// Settles what is submitted for a session.
    pub payments: Facilitator,
    pub rules: SessionRules,
}

impl Sessions {
    /// Opens a session for one entry of a seller's `accepts`. Makes no RPC call and writes no payment. Open sessions are
    /// counted by the client's address.
    ///
    /// # Errors
    /// A rejection when such a payment could not be settled here; [`Unavailable::TooManySessions`] when too many are open.
    pub async fn open(
        &self,
        request: SessionRequest,
        caller: &Caller,
    ) -> Result<SessionOpened, Error> {
        self.payments.gate.count_request(caller)?;
        let terms = terms_of(&request)?;
        let opened = self.try_open(&request, &terms, caller).await;
        if let Err(Error::Rejected(rejection)) = &opened {
            let asked = refused_terms(&terms, Some(request.payer));
            let of = (Endpoint::Sessions, caller);
            self.payments.refusals.note(of, asked, rejection);
        }
        opened
    }

    async fn try_open(
        &self,
        request: &SessionRequest,
        terms: &PaymentRequirements,
        caller: &Caller,
    ) -> Result<SessionOpened, Error> {
        let served = self.payments.network_of(terms.network)?;
        let payments = &self.payments;
        payments
            .access
            .check_session(caller, terms.network, terms.pay_to)?;
        let asked = Asked {
            served,
            caller,
            call: Call::OpenSession,
            asset: terms.asset,
            payer: request.payer,
            payee: terms.pay_to,
            amount: terms.amount,
            is_exempt: false,
            needs_budget: request.rail == Rail::Authorization,
        };
        payments.pass_gate(asked).await?;
        let asset = served_asset(served, request, terms)?;
        let id = SessionId::from_entropy(FixedBytes(entropy()?));
        let session = self.new_session(id, served, request, terms)?;
        if session.rail == Rail::Transfer && session.accept_from_block == 0 {
            return Err(Unavailable::NetworkStarting(terms.network).into());
        }
        let token = format!("ct_{}", alloy::hex::encode(entropy::<24>()?));
        let new = NewSession {
            session: &session,
            cancel_token_hash: keccak256(&token),
            client: &counted_as(caller.client).to_string(),
            limits: self.rules.limits,
        };
        match self.payments.ledger.open_session(&new).await? {
            Opened::TooMany => {
                reached(Limit::SessionsOpen);
                Err(Unavailable::TooManySessions.into())
            }
            Opened::Yes => Ok(opened(&session, asset, token)),
        }
    }

    /// A session, for a caller that may wait for a change.
    ///
    /// # Errors
    /// As `read`, and [`Unavailable::RateLimited`] when the caller asks too often, or waits too often already.
    pub async fn show(
        &self,
        id: &SessionId,
        wait: Duration,
        caller: &Caller,
    ) -> Result<SessionView, Error> {
        self.payments.gate.count_request(caller)?;
        let _place = if wait.is_zero() {
            None
        } else {
            let place = self.payments.gate.place_to_wait(caller);
            let retry = Unavailable::RateLimited(Duration::from_secs(1));
            Some(place.ok_or(retry)?)
        };
        self.read(id, wait).await
    }

    /// A session, as soon as it is neither open nor submitted, has changed, or `wait` is over (at most a minute).
    ///
    /// # Errors
    /// [`Reason::SessionNotFound`], or an unavailable dependency.
    async fn read(&self, id: &SessionId, wait: Duration) -> Result<SessionView, Error> {
        let payments = &self.payments;
        let deadline = Instant::now() + wait.min(WAIT_MAX);
        let mut first = None;
        loop {
            // Each wait begins before its row is read, so that no change in between is missed.
            let mut of_session = payments.waiters.wait_for(id.clone());
            let session = payments.session_with_id(id).await?;
            let topic = session
                .payment
                .map_or_else(|| Topic::from(id.clone()), Topic::from);
            let mut of_payment = payments.waiters.wait_for(topic);
            let view = self.view(session).await?;
            let under_way = matches!(view.state, SessionState::Open | SessionState::Submitted);
            if !under_way || *first.get_or_insert(view.state) != view.state {
                return Ok(view);
            }
            let waited = async {
                tokio::select! {
                    changed = of_session.change_until(deadline) => changed,
                    changed = of_payment.change_until(deadline) => changed,
                }
            };
            if payments.stopping.run_until_cancelled(waited).await != Some(true) {
                return Ok(view);
            }
        }
    }

    /// Submits a payment for a session, and waits for its outcome. Runs to its end even if the caller disconnects.
    ///
    /// # Errors
    /// After a rejection nothing was accepted; when a dependency is unavailable, the submission may have been accepted or not.
    pub async fn submit(
        &self,
        id: SessionId,
        form: TransferForm,
        wait: Duration,
        caller: Caller,
    ) -> Result<SessionView, Error> {
        self.payments.gate.count_request(&caller)?;
        let (sessions, of) = (self.clone(), caller.clone());
        let work = async move {
            let session = sessions.payments.session_with_id(&id).await?;
            let accepted = Box::pin(sessions.accept_submission(&session, form, &caller)).await;
            if let Err(Error::Rejected(rejection)) = &accepted {
                let of = (Endpoint::Transfer, &caller);
                let asked = refused_session(&session);
                sessions.payments.refusals.note(of, asked, rejection);
            }
            accepted?;
            // What was submitted is accepted: without a place to wait, its state now is the answer.
            let place = sessions.payments.gate.place_to_wait(&caller);
            let wait = place.as_ref().map_or(Duration::ZERO, |_| wait);
            sessions.read(&id, wait).await
        };
        self.payments.run_detached(work, &of).await
    }

    /// Cancels a session that has no submission: an authorization signed for it is not sent early any more.
    ///
    /// # Errors
    /// [`Reason::SessionNotFound`] also for a wrong token; [`Reason::SessionInUse`] once there is a submission.
    pub async fn cancel(
        &self,
        id: &SessionId,
        token: &str,
        caller: &Caller,
    ) -> Result<SessionView, Error> {
        self.payments.gate.count_request(caller)?;
        let (token_hash, ledger) = (keccak256(token), &self.payments.ledger);
        if !ledger.may_cancel(id, token_hash).await? {
            return Err(not_found(id).into());
        }
        let cancelled = ledger.cancel_session(id, token_hash).await?;
        let session = self.payments.session_with_id(id).await?;
        if !cancelled && session.status != SessionStatus::Cancelled {
            let why = "something was submitted for the session, or it has expired; its state says what became of it";
            return Err(Rejection::new(Reason::SessionInUse, why).into());
        }
        self.payments.waiters.wake([id.clone()]);
        Ok(self.view(session).await?)
    }

    /// Whether the chain's time has passed a session's end.
    pub(super) fn is_expired(&self, served: &ServedNetwork, session: &Session) -> bool {
        served.chain_time(self.payments.clock.now()) > session.expires_at
    }

    /// The view of a session, from its own row and that of its payment.
    async fn view(&self, mut session: Session) -> Result<SessionView, Unavailable> {
        let payments = &self.payments;
        let served = payments.served_network(session.network).map(AsRef::as_ref);
        let expired = served.is_some_and(|served| self.is_expired(served, &session));
        // A buyer that reads its session after the seller's answer must not see it as unspent.
        let found = match session.payment {
            Some(id) => Some(payments.after_answer(id, ANSWER_WAIT).await?),
            None => None,
        };
        if let (Some(served), None, true) = (served, &found, expired)
            && session.status == SessionStatus::Open
            && payments.may_expire(served, &session).await
        {
            payments.ledger.expire_session(&session.id).await?;
            session.status = SessionStatus::Expired;
        }
        let asset = served.and_then(|served| served.policy.asset(session.asset));
        let mut view = session_view(&session, asset.map_or(0, |asset| asset.decimals));
        view.money_may_move = !expired;
        if let Some(found) = &found {
            add_payment(&mut view, found, expired);
        }
        Ok(view)
    }

    fn new_session(
        &self,
        id: SessionId,
        served: &ServedNetwork,
        request: &SessionRequest,
        terms: &PaymentRequirements,
    ) -> Result<Session, Rejection> {
        let malformed = |why: String| Rejection::new(Reason::InvalidPaymentRequirements, why);
        let hash =
            requirements_hash(&request.accepted).map_err(|error| malformed(error.to_string()))?;
        let route = terms.extra_text("resourceId").map(|route| {
            PlainText::parse(route, ROUTE_CHARACTERS_MAX)
                .map_err(|why| malformed(format!("accepted.extra.resourceId: {why}")))
        });
        let route = route.transpose()?;
        let reference = request.client_reference.as_deref().map(|text| {
            PlainText::parse(text, REFERENCE_CHARACTERS_MAX).map_err(|why| {
                Rejection::new(Reason::InvalidPayload, format!("clientReference: {why}"))
            })
        });
        let reference = reference.transpose()?;
        let resource = request.resource.as_ref().and_then(resource_url);
        let canonical = serde_json_canonicalizer::to_string(&request.accepted);
        let life = terms.max_timeout_seconds.clamp(LIFE_S.0, LIFE_S.1);
        let now = served.chain_time(self.payments.clock.now());
        let end = now + Duration::from_secs(life);
        Ok(Session {
            version: request.x402_version,
            rail: request.rail,
            network: terms.network,
            asset: terms.asset,
            payer: request.payer,
            payee: terms.pay_to,
            amount: terms.amount,
            accepted: canonical.map_err(|error| malformed(error.to_string()))?,
            requirements_hash: hash,
            nonce: nonce(&id, hash),
            resource_id: route,
            resource: resource.map(|url| PlainText::cleaned(&url, usize::MAX)),
            client_reference: reference,
            // The block at the head was made before the session was opened.
            accept_from_block: served.view.head().map_or(0, |head| head.number + 1),
            confirmations: served.policy.confirmations,
            expires_at: end.replace_nanosecond(0).unwrap_or(end),
            status: SessionStatus::Open,
            payment: None,
            needs_id: false,
            created_at: self.payments.clock.now(),
            id,
        })
    }
}

impl Facilitator {
    /// The session with this id.
    pub(super) async fn session_with_id(&self, id: &SessionId) -> Result<Session, Error> {
        let session = self.ledger.session(id).await?;
        session.ok_or_else(|| not_found(id).into())
    }

    /// Whether a session past its end can be marked expired: its authorization's nonce must be unused, as the chain says; without an
    /// answer of the chain it stays open. A transfer needs no check: one that was mined in time counts even when it is submitted later.
    async fn may_expire(&self, served: &ServedNetwork, session: &Session) -> bool {
        if session.rail == Rail::Transfer {
            return true;
        }
        if self.looks.is_used(session.nonce) {
            return false;
        }
        let rpc = &served.caller_rpc;
        let used = rpc.is_nonce_used(session.asset, session.payer, session.nonce);
        let used = used.await;
        if used == Ok(true) {
            self.looks.note_used(session.nonce);
        }
        used == Ok(false)
    }
}

fn not_found(id: &SessionId) -> Rejection {
    let why = format!("there is no session {id} here");
    Rejection::new(Reason::SessionNotFound, why)
}

fn entropy<const N: usize>() -> Result<[u8; N], Unavailable> {
    FixedBytes::<N>::try_random()
        .map(|bytes| bytes.0)
        .map_err(|_| Unavailable::NoRandomness)
}

/// Parses the accepted entry, and checks everything that does not depend on the network.
fn terms_of(request: &SessionRequest) -> Result<PaymentRequirements, Rejection> {
    let scheme = request
        .accepted
        .get("scheme")
        .and_then(Value::as_str)
        .unwrap_or_default();
    if scheme != "exact" {
        let scheme: String = scheme.chars().take(60).collect();
        let why = format!("sessions are for the scheme exact, got {scheme:?}");
        return Err(Rejection::new(Reason::UnsupportedScheme, why));
    }
    let terms = accepted_terms(request.x402_version, &request.accepted.to_string())?;
    let method = terms.extra_text("assetTransferMethod").unwrap_or("eip3009");
    if method != "eip3009" {
        let why = "expected an entry without assetTransferMethod, or with eip3009";
        return Err(Rejection::new(Reason::UnsupportedPayloadType, why));
    }
    if terms.amount.is_zero() {
        let why = "an exact payment of 0 moves nothing; expected a positive amount";
        return Err(Rejection::new(Reason::InvalidPaymentRequirements, why));
    }
    if request.rail == Rail::Transfer {
        if request.x402_version != X402Version::V2 {
            let why = "rail transfer is for x402 version 2";
            return Err(Rejection::new(Reason::InvalidX402Version, why));
        }
        if terms.payment_flow() != Some("upfront") {
            let why = "rail transfer needs extra.paymentFlow \"upfront\" in the seller's entry, so that the handler runs after the payment is checked; use rail authorization with this seller";
            return Err(Rejection::new(Reason::SessionFlowRequired, why));
        }
    }
    Ok(terms)
}

/// Whether the operator's policy allows such a payment.
fn served_asset<'a>(
    served: &'a ServedNetwork,
    request: &SessionRequest,
    terms: &PaymentRequirements,
) -> Result<&'a Asset, Rejection> {
    let asset = served.policy.served_asset(terms.asset)?;
    let (name, version) = (terms.domain_name(), terms.domain_version());
    let needed = request.x402_version == X402Version::V2 && request.rail == Rail::Authorization;
    if needed && (name.is_none() || version.is_none()) {
        let why = "expected extra.name and extra.version, the token's EIP-712 domain";
        return Err(Rejection::new(Reason::ExactMissingDomain, why));
    }
    if name.is_some_and(|name| name != asset.name) {
        let why = format!("expected extra.name {:?} as the token has it", asset.name);
        return Err(Rejection::new(Reason::ExactTokenName, why));
    }
    if version.is_some_and(|version| version != asset.version) {
        let why = format!(
            "expected extra.version {:?} as the token has it",
            asset.version
        );
        return Err(Rejection::new(Reason::ExactTokenVersion, why));
    }
    Ok(asset)
}
