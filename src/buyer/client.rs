//! The client: who pays, how much at most, and where it is written down.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use alloy::primitives::U256;
use reqwest::header::HeaderMap;
use reqwest::{Method, StatusCode, Url};
use serde_json::Value;

use crate::buyer::chain::Chain;
use crate::buyer::exchange::{Answer, Http};
use crate::buyer::journal::Journal;
use crate::buyer::{BuyerError, Handed, PayOptions, Request, Signer};
use crate::clock::{Clock, SystemClock};
use crate::protocol::{Amount, Network, PaymentRequired, SettleResponse, X402Version, header};

/// How often a payment whose outcome is open is presented again within one call, after growing pauses.
const RETRIES: u32 = 5;
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// After this no call presents a payment once more.
const RECOVERY_LIMIT: Duration = Duration::from_secs(150);

/// What may be bought: asked before anything is signed.
pub(super) type BeforePayment = dyn Fn(&Handed, &Url) -> Result<(), String> + Send + Sync;
/// What was bought: told after each call that presented a payment.
pub(super) type AfterPayment = dyn Fn(&Handed, Result<&Paid, &BuyerError>) + Send + Sync;

/// Buys over HTTP on behalf of one payer. Clones share budget and journal.
#[derive(Clone)]
pub struct Client {
    pub(super) signer: Signer,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) http: Http,
    pub(super) journal: Journal,
    pub(super) budget: Option<Amount>,
    /// What purchases that are closed have cost.
    pub(super) spent: Arc<Mutex<U256>>,
    pub(super) before: Option<Arc<BeforePayment>>,
    pub(super) after: Option<Arc<AfterPayment>>,
    pub(super) facilitator: Option<Url>,
    pub(super) chains: Vec<Chain>,
    /// Held while something is signed and written down.
    pub(super) signing: Arc<Mutex<()>>,
    /// Transfers take the payer's account nonces one after the other.
    pub(super) transfers: Arc<tokio::sync::Mutex<()>>,
    pub(super) retries: u32,
    pub(super) retry_pause: Duration,
    pub(super) recovery_limit: Duration,
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
    /// What was signed for it; `None` when no payment was asked for.
    pub handed: Option<Handed>,
    /// The session that it was bought in.
    pub session: Option<SessionReceipt>,
}

/// The session of a purchase, as its facilitator tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionReceipt {
    /// Its name.
    pub id: String,
    /// Where it can be read: `GET {facilitator}/sessions/{id}`.
    pub facilitator: Url,
    /// The hash that it names; the same as the seller's, or the call ended with [`BuyerError::Contradiction`].
    pub transaction: Option<String>,
}

impl Paid {
    pub(super) fn new(
        answer: Answer,
        payment: Option<SettleResponse>,
        handed: Option<Handed>,
    ) -> Self {
        Self {
            status: answer.status,
            headers: answer.headers,
            body: answer.body,
            payment,
            handed,
            session: None,
        }
    }

    /// The hash of the payment's transaction, when the seller says that it succeeded.
    pub fn transaction(&self) -> Option<&str> {
        let payment = self.payment.as_ref().filter(|payment| payment.success)?;
        Some(payment.transaction.as_str()).filter(|hash| !hash.is_empty())
    }

    /// What the purchase cost, in atomic units of what was handed over, when the seller says that it succeeded. At a metered price that
    /// may be anything up to the maximum; zero has no transaction. It is the seller's word: the hash is the proof.
    pub fn charged(&self) -> Option<Amount> {
        let payment = self.payment.as_ref().filter(|payment| payment.success)?;
        let handed = self.handed.as_ref()?;
        Some(payment.amount.unwrap_or(handed.amount))
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// When it is none.
    pub fn json(&self) -> Result<Value, serde_json::Error> {
        serde_json::from_slice(&self.body)
    }
}

impl Client {
    /// A client with the machine's clock, a journal in memory and no budget.
    ///
    /// # Errors
    /// [`BuyerError::Setup`] when the HTTP client cannot be built.
    pub fn new(signer: Signer) -> Result<Self, BuyerError> {
        Ok(Self {
            signer,
            clock: Arc::new(SystemClock),
            http: Http::new()?,
            journal: Journal::in_memory(),
            budget: None,
            spent: Arc::default(),
            before: None,
            after: None,
            facilitator: None,
            chains: Vec::new(),
            signing: Arc::default(),
            transfers: Arc::default(),
            retries: RETRIES,
            retry_pause: RETRY_PAUSE,
            recovery_limit: RECOVERY_LIMIT,
        })
    }

    /// Takes the time for validity windows from `clock`.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Writes purchases down in `journal` instead of memory alone.
    #[must_use]
    pub fn journal(mut self, journal: Journal) -> Self {
        self.journal = journal;
        self
    }

    /// Spends at most this much in its life, in atomic units of whatever is paid with, counting what was signed and may still land. What
    /// is metered counts with its maximum, whatever its seller says that it charged.
    #[must_use]
    pub const fn budget(mut self, budget: Amount) -> Self {
        self.budget = Some(budget);
        self
    }

    /// Asks `hook` before anything is signed: what it would be, and for which URL. `Err` refuses, with the reason for the caller.
    #[must_use]
    pub fn before_payment(
        mut self,
        hook: impl Fn(&Handed, &Url) -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        self.before = Some(Arc::new(hook));
        self
    }

    /// Tells `hook` how each call ended that presented a payment.
    #[must_use]
    pub fn after_payment(
        mut self,
        hook: impl Fn(&Handed, Result<&Paid, &BuyerError>) + Send + Sync + 'static,
    ) -> Self {
        self.after = Some(Arc::new(hook));
        self
    }

    /// Negotiates sessions with this facilitator, whatever sellers announce.
    #[must_use]
    pub fn facilitator(mut self, url: Url) -> Self {
        self.facilitator = Some(url);
        self
    }

    /// Asks the JSON-RPC endpoint `rpc` about `network`: whether an expired payment is unpaid for certain, what is needed to
    /// send a transfer ([`crate::buyer::SessionUse::Transfer`]), and whether a payment by Permit2 needs the token's permit with it, where
    /// the seller has its gas sponsored.
    #[must_use]
    pub fn chain(mut self, network: Network, rpc: Url) -> Self {
        self.chains.push(Chain { network, rpc });
        self
    }

    /// How often, after which first pause (each is twice the one before) and for how long in all a payment whose outcome is open
    /// is presented again within one call; 5 times, 1 s and 150 s unless set.
    #[must_use]
    pub const fn recovery(mut self, retries: u32, first_pause: Duration, limit: Duration) -> Self {
        self.retries = retries;
        self.retry_pause = first_pause;
        self.recovery_limit = limit;
        self
    }

    /// The longest answer that is read, in bytes; 8 MiB unless set.
    #[must_use]
    pub const fn body_bytes_max(mut self, bytes: usize) -> Self {
        self.http.body_bytes_max = bytes;
        self
    }

    /// Who pays.
    pub const fn signer(&self) -> &Signer {
        &self.signer
    }

    /// What this client and its clones have paid, and what was signed and may still land, in atomic units.
    pub fn committed(&self) -> Amount {
        let spent = *self
            .spent
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        Amount::from_atomic(spent.saturating_add(self.journal.committed(self.signer.address())))
    }

    /// Gets `url`, paying for it if asked to.
    ///
    /// # Errors
    /// [`BuyerError`]; ask [`BuyerError::money_may_have_moved`] before paying elsewhere.
    pub async fn get(&self, url: &str, options: &PayOptions) -> Result<Paid, BuyerError> {
        self.send(Request::new(Method::GET, url)?, options).await
    }

    /// Posts `json` to `url`, paying for it if asked to.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn post(
        &self,
        url: &str,
        json: &Value,
        options: &PayOptions,
    ) -> Result<Paid, BuyerError> {
        self.send(Request::new(Method::POST, url)?.json(json), options)
            .await
    }

    /// Puts `json` to `url`, paying for it if asked to.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn put(
        &self,
        url: &str,
        json: &Value,
        options: &PayOptions,
    ) -> Result<Paid, BuyerError> {
        self.send(Request::new(Method::PUT, url)?.json(json), options)
            .await
    }

    /// Deletes `url`, paying for it if asked to.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn delete(&self, url: &str, options: &PayOptions) -> Result<Paid, BuyerError> {
        self.send(Request::new(Method::DELETE, url)?, options).await
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Client")
            .field("signer", &self.signer)
            .field("journal", &self.journal)
            .finish_non_exhaustive()
    }
}

/// The challenge of a 402: v2's header, else v2's form in the body, where many sellers have it alone, else v1's body; v1's first for a caller
/// who prefers it.
pub(super) fn challenge_of(
    answer: &Answer,
    preferred: Option<X402Version>,
) -> Option<PaymentRequired> {
    let v2 = || {
        let text = answer
            .headers
            .get(header::PAYMENT_REQUIRED)?
            .to_str()
            .ok()?;
        let challenge: PaymentRequired = header::decode(text).ok()?;
        (challenge.x402_version == X402Version::V2).then_some(challenge)
    };
    let body = |version| {
        let text = answer.body.as_slice();
        let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        let challenge: PaymentRequired = serde_json::from_slice(text).ok()?;
        (challenge.x402_version == version).then_some(challenge)
    };
    let v2 = || v2().or_else(|| body(X402Version::V2));
    let v1 = || body(X402Version::V1);
    match preferred {
        Some(X402Version::V1) => v1().or_else(v2),
        Some(X402Version::V2) | None => v2().or_else(v1),
    }
}
