//! The client: 402, sign, ask again.

use std::sync::Arc;
use std::time::Duration;

use alloy::primitives::{B256, U256};
use reqwest::header::HeaderMap;
use reqwest::{Method, StatusCode};

use crate::buyer::choose::choose;
use crate::buyer::exchange::{Answer, Http};
use crate::buyer::{BuyerError, Handed, PayOptions, Request, Signer, settlement};
use crate::clock::{Clock, SystemClock};
use crate::protocol::challenge::Offer;
use crate::protocol::{
    Amount, Authorization, DomainSeparator, ExactPayload, PaymentHeader, PaymentRequired, Reason,
    SettleResponse, X402Version, header,
};

/// How often a payment that is being settled is presented again.
const PENDING_TRIES: u32 = 5;
const PENDING_PAUSE: Duration = Duration::from_secs(2);
/// The longest validity that is signed, whatever a seller asks for: so long does an unanswered payment stay open.
const VALIDITY_S_MAX: u64 = 3600;

/// Buys over HTTP on behalf of one payer.
#[derive(Debug, Clone)]
pub struct Client {
    signer: Signer,
    clock: Arc<dyn Clock>,
    http: Http,
    pending_pause: Duration,
}

/// What a call brought: the resource, or whatever else the seller answered instead of asking for money.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Paid {
    /// The HTTP status. A handler may fail after it was paid for.
    pub status: StatusCode,
    /// The seller's headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Vec<u8>,
    /// What became of the payment; `None` when none was asked for, or the seller says nothing.
    pub payment: Option<SettleResponse>,
}

impl Client {
    /// A client with the machine's clock.
    ///
    /// # Errors
    /// [`BuyerError::Setup`] when the HTTP client cannot be built.
    pub fn new(signer: Signer) -> Result<Self, BuyerError> {
        Ok(Self {
            signer,
            clock: Arc::new(SystemClock),
            http: Http::new()?,
            pending_pause: PENDING_PAUSE,
        })
    }

    /// Takes the time for validity windows from `clock`.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// How long to wait before a payment that is being settled is presented again; 2 s unless set.
    #[must_use]
    pub const fn pending_pause(mut self, pause: Duration) -> Self {
        self.pending_pause = pause;
        self
    }

    /// Who pays.
    pub const fn signer(&self) -> &Signer {
        &self.signer
    }

    /// Gets `url`, paying for it if asked to.
    ///
    /// # Errors
    /// [`BuyerError`]; ask [`BuyerError::money_may_move`] before paying again.
    pub async fn get(&self, url: &str, options: &PayOptions) -> Result<Paid, BuyerError> {
        self.send(Request::new(Method::GET, url)?, options).await
    }

    /// Makes a request, paying for it if asked to: at most once, and at most the ceiling. Every answer but a 402 comes
    /// back as it is.
    ///
    /// # Errors
    /// [`BuyerError`]; ask [`BuyerError::money_may_move`] before paying again.
    pub async fn send(
        &self,
        mut request: Request,
        options: &PayOptions,
    ) -> Result<Paid, BuyerError> {
        let answer = self
            .http
            .ask(&request)
            .await
            .map_err(BuyerError::Unanswered)?;
        if answer.status != StatusCode::PAYMENT_REQUIRED {
            return Ok(paid(answer, None));
        }
        let challenge = challenge_of(&answer, options.version).ok_or(BuyerError::Challenge)?;
        let offer = choose(&challenge, options)?;
        let payload = self.sign(&offer)?;
        let payment = PaymentHeader::present(&challenge, &offer, &payload)
            .map_err(|error| BuyerError::Signing(error.to_string()))?;
        request.url = answer.url;
        self.present(&request, &payment, handed(&offer, &payload.authorization))
            .await
    }

    /// Signs what the offer asks for. The typed data is built here, from the offer's fields; nothing that came is signed.
    fn sign(&self, offer: &Offer) -> Result<ExactPayload, BuyerError> {
        let requirements = &offer.requirements;
        let signing = |error: &dyn std::fmt::Display| BuyerError::Signing(error.to_string());
        let (Some(name), Some(version)) =
            (requirements.domain_name(), requirements.domain_version())
        else {
            return Err(signing(&"the offer does not name its token's domain"));
        };
        let now = u64::try_from(self.clock.now().unix_timestamp()).unwrap_or_default();
        let validity = requirements.max_timeout_seconds.min(VALIDITY_S_MAX);
        let authorization = Authorization {
            from: self.signer.address(),
            to: requirements.pay_to,
            value: requirements.amount,
            valid_after: Amount::ZERO,
            valid_before: Amount::from_atomic(U256::from(now.saturating_add(validity))),
            nonce: B256::try_random().map_err(|error| signing(&error))?,
        };
        let separator =
            DomainSeparator::of_token(name, version, requirements.network, requirements.asset);
        let signature = self
            .signer
            .sign(authorization.digest(separator))
            .map_err(|error| signing(&error))?;
        Ok(ExactPayload {
            signature,
            authorization,
        })
    }

    /// Presents one payment until its outcome is known, a bounded number of times; never another one.
    async fn present(
        &self,
        request: &Request,
        payment: &PaymentHeader,
        handed: Handed,
    ) -> Result<Paid, BuyerError> {
        let handed = Box::new(handed);
        tracing::debug!(network = %handed.network, amount = %handed.amount, pay_to = %handed.pay_to, "presenting a payment");
        let mut tries_left = PENDING_TRIES;
        loop {
            let answer = match self.http.present(request, payment).await {
                Ok(answer) => answer,
                Err(broken) => return Err(BuyerError::PaidUnanswered { handed, broken }),
            };
            let outcome = settlement(&answer.headers);
            if answer.status.is_server_error() && outcome.is_none() {
                let status = answer.status.as_u16();
                return Err(BuyerError::OutcomeUnknown { handed, status });
            }
            if answer.status != StatusCode::PAYMENT_REQUIRED {
                return Ok(paid(answer, outcome));
            }
            match pending_hash(outcome.as_ref()) {
                None => return Err(refused(&answer, outcome, handed)),
                Some(transaction) if tries_left == 0 => {
                    return Err(BuyerError::Pending {
                        handed,
                        transaction,
                    });
                }
                Some(_) => {
                    tries_left -= 1;
                    tokio::time::sleep(self.pending_pause).await;
                }
            }
        }
    }
}

fn paid(answer: Answer, payment: Option<SettleResponse>) -> Paid {
    Paid {
        status: answer.status,
        headers: answer.headers,
        body: answer.body,
        payment,
    }
}

fn handed(offer: &Offer, authorization: &Authorization) -> Handed {
    Handed {
        network: offer.requirements.network,
        asset: offer.requirements.asset,
        pay_to: authorization.to,
        amount: authorization.value,
        nonce: authorization.nonce,
        valid_before: authorization
            .valid_before
            .atomic()
            .try_into()
            .unwrap_or(i64::MAX),
    }
}

/// The hash of a transaction that is under way.
fn pending_hash(outcome: Option<&SettleResponse>) -> Option<String> {
    let outcome = outcome?;
    let pending = outcome.error_reason.as_deref() == Some(Reason::SettlementPending.code());
    (pending && !outcome.success && !outcome.transaction.is_empty())
        .then(|| outcome.transaction.clone())
}

fn refused(answer: &Answer, outcome: Option<SettleResponse>, handed: Box<Handed>) -> BuyerError {
    let reason = outcome
        .as_ref()
        .and_then(|outcome| outcome.error_reason.clone())
        .or_else(|| challenge_of(answer, None)?.error)
        .unwrap_or_else(|| "no reason given".to_owned());
    BuyerError::Refused {
        handed,
        reason: reason.chars().take(300).collect(),
        outcome: outcome.map(Box::new),
    }
}

/// The challenge of a 402: v2's header, else v1's body; the other way round for a caller who prefers v1.
fn challenge_of(answer: &Answer, preferred: Option<X402Version>) -> Option<PaymentRequired> {
    let v2 = || {
        let text = answer
            .headers
            .get(header::PAYMENT_REQUIRED)?
            .to_str()
            .ok()?;
        let challenge: PaymentRequired = header::decode(text).ok()?;
        (challenge.x402_version == X402Version::V2).then_some(challenge)
    };
    let v1 = || {
        let challenge: PaymentRequired = serde_json::from_slice(&answer.body).ok()?;
        (challenge.x402_version == X402Version::V1).then_some(challenge)
    };
    match preferred {
        Some(X402Version::V1) => v1().or_else(v2),
        Some(X402Version::V2) | None => v2().or_else(v1),
    }
}
