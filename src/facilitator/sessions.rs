//! Payment sessions: opened before any money moves, read and waited for, cancelled.

mod view;

use std::time::Duration;

use alloy::primitives::{FixedBytes, keccak256};
use serde_json::Value;
use tokio::time::Instant;

use crate::facilitator::sessions::view::{add_payment, opened, session_view};
use crate::facilitator::submission::{accepted_terms, refusal};
use crate::facilitator::{Error, Facilitator, Unavailable};
use crate::ledger::{GrantStatus, NewSession, OpenLimits, Opened, PaymentWithGrant};
use crate::payment::session::{Objection, SessionStatus};
use crate::payment::{Asset, PaymentId, Session};
use crate::protocol::request::resource_url;
use crate::protocol::session::{
    Rail, SessionId, SessionOpened, SessionRequest, SessionState, SessionView, TransferForm, nonce,
    requirements_hash,
};
use crate::protocol::{PaymentRequirements, PlainText, Reason, Refusal, X402Version};
use crate::settlement::ServedNetwork;
use crate::settlement::waiters::Topic;

/// The longest time that a reader of a session may wait for a change.
const WAIT_MAX: Duration = Duration::from_mins(1);
/// How long a reader waits for an answer about the same payment that is being written to another socket.
const ANSWER_WAIT: Duration = Duration::from_secs(1);
/// The longest `clientReference`, in characters.
const REFERENCE_CHARACTERS_MAX: usize = 200;
/// The longest `resourceId` of a seller's route, in characters.
const ROUTE_CHARACTERS_MAX: usize = 2048;
/// Bounds of the lifetime that the seller's entry gives a session, in seconds.
const LIFE_S: (u64, u64) = (30, 24 * 3600 - 60);

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

/// Why a call on sessions fails.
#[derive(Debug)]
pub enum SessionError {
    /// A refusal with a stable code.
    Refused(Refusal),
    /// A dependency is unavailable.
    Unavailable(Unavailable),
}

impl From<Unavailable> for SessionError {
    fn from(unavailable: Unavailable) -> Self {
        Self::Unavailable(unavailable)
    }
}

impl From<Error> for SessionError {
    fn from(error: Error) -> Self {
        match error {
            Error::Refused(refusal) => Self::Refused(refusal),
            Error::Unavailable(unavailable) => Self::Unavailable(unavailable),
        }
    }
}

impl Facilitator {
    /// Opens a session for one entry of a seller's `accepts`. Makes no RPC call and writes no payment. `client` is the address by which
    /// open sessions are counted.
    ///
    /// # Errors
    /// A refusal when such a payment could not be settled here; [`Unavailable::TooManySessions`] when too many are open.
    pub async fn open_session(
        &self,
        request: SessionRequest,
        client: &str,
    ) -> Result<SessionOpened, SessionError> {
        let refuse = |(reason, message)| {
            SessionError::Refused(Refusal {
                reason,
                message,
                payer: Some(request.payer),
                network_name: String::new(),
            })
        };
        let terms = terms_of(&request).map_err(refuse)?;
        let Some(served) = self.served_network(terms.network) else {
            let why = self.not_served(terms.network);
            return Err(refuse((Reason::InvalidNetwork, why)));
        };
        let asset = served_asset(served, &request, &terms).map_err(refuse)?;
        let id = SessionId::from_entropy(FixedBytes(entropy()?));
        let session = self.new_session(id, served, &request, &terms);
        let session = session.map_err(refuse)?;
        if session.rail == Rail::Transfer && session.accept_from_block == 0 {
            return Err(Unavailable::NetworkStarting(terms.network).into());
        }
        let token = format!("ct_{}", alloy::hex::encode(entropy::<24>()?));
        let new = NewSession {
            session: &session,
            cancel_token_hash: keccak256(&token),
            client,
            limits: self.sessions.limits,
        };
        if self
            .ledger
            .open_session(&new)
            .await
            .map_err(Unavailable::from)?
            == Opened::TooMany
        {
            return Err(Unavailable::TooManySessions.into());
        }
        Ok(opened(&session, asset, token))
    }

    /// A session, as soon as it is neither open nor submitted, has changed, or `wait` is over (at most a minute).
    ///
    /// # Errors
    /// [`Reason::SessionNotFound`], or an unavailable dependency.
    pub async fn session(
        &self,
        id: &SessionId,
        wait: Duration,
    ) -> Result<SessionView, SessionError> {
        let deadline = Instant::now() + wait.min(WAIT_MAX);
        let mut first = None;
        loop {
            // Each wait begins before its row is read, so that no change in between is missed.
            let mut of_session = self.waiters.wait_for(id.clone());
            let session = self.existing(id).await?;
            let topic = session
                .payment
                .map_or_else(|| Topic::from(id.clone()), Topic::from);
            let mut of_payment = self.waiters.wait_for(topic);
            let view = self.view(&session).await?;
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
            if self.stopping.run_until_cancelled(waited).await != Some(true) {
                return Ok(view);
            }
        }
    }

    /// Submits a payment for a session, and waits for its outcome.
    ///
    /// # Errors
    /// After a refusal nothing was accepted; when a dependency is unavailable, the submission may have been accepted or not.
    pub async fn submit(
        &self,
        id: &SessionId,
        form: TransferForm,
        wait: Duration,
    ) -> Result<SessionView, SessionError> {
        let session = self.existing(id).await?;
        let served = self.network_of_session(&session)?;
        self.accept_submission(served, &session, form).await?;
        self.session(id, wait).await
    }

    /// Cancels a session that has no submission: an authorization signed for it is not sent early any more.
    ///
    /// # Errors
    /// [`Reason::SessionNotFound`] also for a wrong token; [`Reason::SessionInUse`] once there is a submission.
    pub async fn cancel_session(
        &self,
        id: &SessionId,
        token: &str,
    ) -> Result<SessionView, SessionError> {
        let token_hash = keccak256(token);
        let ledger = &self.ledger;
        if !ledger
            .may_cancel(id, token_hash)
            .await
            .map_err(Unavailable::from)?
        {
            return Err(not_found(id));
        }
        let cancelled = ledger.cancel_session(id, token_hash).await;
        let cancelled = cancelled.map_err(Unavailable::from)?;
        let session = self.existing(id).await?;
        if !cancelled && session.status != SessionStatus::Cancelled {
            let why = "something was submitted for the session, or it has expired; its state says what became of it";
            let objection = (Reason::SessionInUse, why.to_owned());
            return Err(SessionError::Refused(refusal(&session, objection)));
        }
        self.waiters.wake([id.clone()]);
        self.view(&session).await.map_err(SessionError::Unavailable)
    }

    async fn existing(&self, id: &SessionId) -> Result<Session, SessionError> {
        let session = self.ledger.session(id).await.map_err(Unavailable::from)?;
        session.ok_or_else(|| not_found(id))
    }

    fn network_of_session(&self, session: &Session) -> Result<&ServedNetwork, SessionError> {
        let served = self.served_network(session.network).ok_or_else(|| {
            let objection = (Reason::InvalidNetwork, self.not_served(session.network));
            SessionError::Refused(refusal(session, objection))
        })?;
        Ok(served)
    }

    /// Whether the chain's time has passed a session's end.
    pub(super) fn is_expired(&self, served: &ServedNetwork, session: &Session) -> bool {
        served.chain_time(self.clock.now()) > session.expires_at
    }

    /// The view of a session, from its own row and that of its payment.
    async fn view(&self, session: &Session) -> Result<SessionView, Unavailable> {
        let served = self.served_network(session.network).map(AsRef::as_ref);
        let expired = served.is_some_and(|served| self.is_expired(served, session));
        let found = match session.payment {
            Some(id) => Some(self.payment_after_answer(id).await?),
            None => None,
        };
        let mut session = session.clone();
        if let (Some(served), None, true) = (served, &found, expired)
            && session.status == SessionStatus::Open
            && self.may_expire(served, &session).await
        {
            self.ledger.expire_session(&session.id).await?;
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

    /// A payment and its grant, once an answer that is being written has arrived or broken off: a buyer that reads its session after the
    /// seller's answer must not see it as unspent.
    async fn payment_after_answer(&self, id: PaymentId) -> Result<PaymentWithGrant, Unavailable> {
        let mut waiting = self.waiters.wait_for(id);
        let deadline = Instant::now() + ANSWER_WAIT;
        loop {
            let found = self.ledger.payment_with_grant(id).await?;
            let is_decided = found.grant != GrantStatus::Open;
            if is_decided || !self.wait(&mut waiting, deadline).await {
                return Ok(found);
            }
        }
    }

    /// Whether a session past its end can be marked expired: its authorization's nonce must be unused, as the chain says; without an answer
    /// of the chain it stays open. A transfer needs no check: one that was mined in time counts even when it is submitted later.
    async fn may_expire(&self, served: &ServedNetwork, session: &Session) -> bool {
        match session.rail {
            Rail::Transfer => true,
            Rail::Authorization => {
                let used =
                    served
                        .caller_rpc
                        .is_nonce_used(session.asset, session.payer, session.nonce);
                used.await == Ok(false)
            }
        }
    }

    fn new_session(
        &self,
        id: SessionId,
        served: &ServedNetwork,
        request: &SessionRequest,
        terms: &PaymentRequirements,
    ) -> Result<Session, Objection> {
        let malformed = |why: String| (Reason::InvalidPaymentRequirements, why);
        let hash =
            requirements_hash(&request.accepted).map_err(|error| malformed(error.to_string()))?;
        let route = terms.extra_text("resourceId").map(|route| {
            PlainText::parse(route, ROUTE_CHARACTERS_MAX)
                .map_err(|why| malformed(format!("accepted.extra.resourceId: {why}")))
        });
        let route = route.transpose()?;
        let reference = request.client_reference.as_deref().map(|text| {
            PlainText::parse(text, REFERENCE_CHARACTERS_MAX)
                .map_err(|why| (Reason::InvalidPayload, format!("clientReference: {why}")))
        });
        let reference = reference.transpose()?;
        let resource = request.resource.as_ref().and_then(resource_url);
        let canonical = serde_json_canonicalizer::to_string(&request.accepted);
        let life = terms.max_timeout_seconds.clamp(LIFE_S.0, LIFE_S.1);
        let now = served.chain_time(self.clock.now());
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
            created_at: self.clock.now(),
            id,
        })
    }
}

fn not_found(id: &SessionId) -> SessionError {
    SessionError::Refused(Refusal {
        reason: Reason::SessionNotFound,
        message: format!("there is no session {id} here"),
        payer: None,
        network_name: String::new(),
    })
}

fn entropy<const N: usize>() -> Result<[u8; N], Unavailable> {
    // Without randomness no secret can be made, so no session can be opened.
    FixedBytes::<N>::try_random()
        .map(|bytes| bytes.0)
        .map_err(|_| Unavailable::Busy)
}

/// Parses the accepted entry, and checks everything that does not depend on the network.
fn terms_of(request: &SessionRequest) -> Result<PaymentRequirements, Objection> {
    let scheme = request
        .accepted
        .get("scheme")
        .and_then(Value::as_str)
        .unwrap_or_default();
    if scheme != "exact" {
        let scheme: String = scheme.chars().take(60).collect();
        let why = format!("sessions are for the scheme exact, got {scheme:?}");
        return Err((Reason::UnsupportedScheme, why));
    }
    let terms = accepted_terms(request.x402_version, &request.accepted.to_string())
        .map_err(|why| (Reason::InvalidPaymentRequirements, why))?;
    let method = terms.extra_text("assetTransferMethod").unwrap_or("eip3009");
    if method != "eip3009" {
        let why = "expected an entry without assetTransferMethod, or with eip3009";
        return Err((Reason::UnsupportedPayloadType, why.to_owned()));
    }
    if terms.amount.is_zero() {
        let why = "an exact payment of 0 moves nothing; expected a positive amount";
        return Err((Reason::InvalidPaymentRequirements, why.to_owned()));
    }
    if request.rail == Rail::Transfer {
        if request.x402_version != X402Version::V2 {
            let why = "rail transfer is for x402 version 2";
            return Err((Reason::InvalidX402Version, why.to_owned()));
        }
        if terms.payment_flow() != Some("upfront") {
            let why = "rail transfer needs extra.paymentFlow \"upfront\" in the seller's entry, so that the handler runs after the payment is checked; use rail authorization with this seller";
            return Err((Reason::SessionFlowRequired, why.to_owned()));
        }
    }
    Ok(terms)
}

/// Whether the operator's policy allows such a payment.
fn served_asset<'a>(
    served: &'a ServedNetwork,
    request: &SessionRequest,
    terms: &PaymentRequirements,
) -> Result<&'a Asset, Objection> {
    let invalid = |why: String| (Reason::InvalidPaymentRequirements, why);
    let asset = served.policy.asset(terms.asset).ok_or_else(|| {
        invalid(format!(
            "{} is not served on {}",
            terms.asset, terms.network
        ))
    })?;
    if !served.policy.allows_payee(terms.pay_to) {
        let why = format!(
            "{} is not among the payees that this facilitator serves",
            terms.pay_to
        );
        return Err(invalid(why));
    }
    let (name, version) = (terms.domain_name(), terms.domain_version());
    let needed = request.x402_version == X402Version::V2 && request.rail == Rail::Authorization;
    if needed && (name.is_none() || version.is_none()) {
        let why = "expected extra.name and extra.version, the token's EIP-712 domain";
        return Err((Reason::ExactMissingDomain, why.to_owned()));
    }
    if name.is_some_and(|name| name != asset.name) {
        let why = format!("expected extra.name {:?} as the token has it", asset.name);
        return Err((Reason::ExactTokenName, why));
    }
    if version.is_some_and(|version| version != asset.version) {
        let why = format!(
            "expected extra.version {:?} as the token has it",
            asset.version
        );
        return Err((Reason::ExactTokenVersion, why));
    }
    Ok(asset)
}
