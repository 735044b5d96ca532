//! The client: payer, budget, journal and configuration.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use alloy::primitives::U256;
use reqwest::header::HeaderMap;
use reqwest::{Method, StatusCode, Url};
use serde_json::Value;

use crate::buyer::chain::Chain;
use crate::buyer::exchange::{Answer, Http};
use crate::buyer::fees::{FeeLimits, Share};
use crate::buyer::journal::Journal;
use crate::buyer::verdict::is_hash;
use crate::buyer::{BuyerError, PayOptions, Request, SignedPayment, Signer};
use crate::clock::{Clock, SystemClock};
use crate::protocol::{Amount, Network, PaymentRequired, SettleResponse, X402Version, header};

/// How often a payment with unknown outcome is presented again within one call. Each pause is twice the one before.
const RETRIES: u32 = 5;
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// After this time a call presents its payment no more.
const RECOVERY_LIMIT: Duration = Duration::from_secs(150);

/// Called before a payment is signed; an error declines it.
pub(super) type BeforePayment = dyn Fn(&SignedPayment, &Url) -> Result<(), String> + Send + Sync;
/// Called after each call that presented a payment.
pub(super) type AfterPayment = dyn Fn(&SignedPayment, Result<&Paid, &BuyerError>) + Send + Sync;

/// Buys over HTTP for one payer. Configure it with the methods that return `Self`, then call [`Client::get`], [`Client::post`] or
/// [`Client::send`]. Clones share budget and journal.
#[derive(Clone)]
pub struct Client {
    pub(super) signer: Signer,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) http: Http,
    pub(super) journal: Journal,
    pub(super) budget: Option<Amount>,
    /// The sum of all closed purchases, in atomic units.
    pub(super) spent: Arc<Mutex<U256>>,
    pub(super) before: Option<Arc<BeforePayment>>,
    pub(super) after: Option<Arc<AfterPayment>>,
    pub(super) facilitator: Option<Url>,
    pub(super) allow_http: bool,
    pub(super) chains: Vec<Chain>,
    pub(super) fees: FeeLimits,
    /// Held from the budget check until the signed payment is in the journal.
    pub(super) signing: Arc<Mutex<()>>,
    /// Serialises transfers, because each takes the payer's next account nonce.
    pub(super) transfers: Arc<tokio::sync::Mutex<()>>,
    pub(super) retries: u32,
    pub(super) retry_pause: Duration,
    pub(super) recovery_limit: Duration,
}

/// The seller's final response: the paid resource, or any response that asked for no payment.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Paid {
    /// The HTTP status. It may be an error after a successful payment: the handler can fail.
    pub status: StatusCode,
    /// The seller's response headers.
    pub headers: HeaderMap,
    /// The complete response body.
    pub body: Vec<u8>,
    /// The settlement result that the seller reports; `None` when no payment was asked for or no result was sent.
    pub payment: Option<SettleResponse>,
    /// The terms that were signed; `None` when no payment was asked for.
    pub signed: Option<SignedPayment>,
    /// The payment session that was used, if any.
    pub session: Option<SessionReceipt>,
}

/// The payment session of a purchase, as the facilitator reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionReceipt {
    /// The session id.
    pub id: String,
    /// The facilitator's base URL; `GET {facilitator}/sessions/{id}` returns the session.
    pub facilitator: Url,
    /// The session's transaction hash. It equals the seller's: otherwise the call ends with [`BuyerError::Contradiction`].
    pub transaction: Option<String>,
}

impl Paid {
    pub(super) fn new(
        answer: Answer,
        payment: Option<SettleResponse>,
        signed: Option<SignedPayment>,
    ) -> Self {
        Self {
            status: answer.status,
            headers: answer.headers,
            body: answer.body,
            payment,
            signed,
            session: None,
        }
    }

    /// The payment's transaction hash, when the seller reports success.
    pub fn transaction(&self) -> Option<&str> {
        let payment = self.payment.as_ref().filter(|payment| payment.success)?;
        Some(payment.transaction.as_str()).filter(|hash| is_hash(hash))
    }

    /// The amount that was charged, in atomic units of the signed token, when the seller reports success. At a metered price it is between
    /// zero, which has no transaction, and the signed maximum. This is the seller's claim; the transaction is the proof.
    pub fn charged(&self) -> Option<Amount> {
        let payment = self.payment.as_ref().filter(|payment| payment.success)?;
        let signed = self.signed.as_ref()?;
        Some(payment.amount.unwrap_or(signed.amount))
    }

    /// Parses the body as JSON.
    ///
    /// # Errors
    /// When the body is not valid JSON.
    pub fn json(&self) -> Result<Value, serde_json::Error> {
        serde_json::from_slice(&self.body)
    }
}

impl Client {
    /// A client with the system clock, an in-memory journal and no budget.
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
            allow_http: false,
            chains: Vec::new(),
            fees: FeeLimits::default(),
            signing: Arc::default(),
            transfers: Arc::default(),
            retries: RETRIES,
            retry_pause: RETRY_PAUSE,
            recovery_limit: RECOVERY_LIMIT,
        })
    }

    /// Uses `clock` for validity windows and expiry.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Records purchases in `journal` instead of in memory only.
    #[must_use]
    pub fn journal(mut self, journal: Journal) -> Self {
        self.journal = journal;
        self
    }

    /// Limits the total of all purchases of this client and its clones, in atomic units summed over all tokens. Signed payments that may
    /// still settle count; a metered payment counts with its maximum, even when the seller reports a smaller charge.
    #[must_use]
    pub const fn budget(mut self, budget: Amount) -> Self {
        self.budget = Some(budget);
        self
    }

    /// Calls `hook` before a payment is signed, with its terms and the URL. An `Err` declines it: the call ends with
    /// [`BuyerError::Declined`] and this text.
    #[must_use]
    pub fn before_payment(
        mut self,
        hook: impl Fn(&SignedPayment, &Url) -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        self.before = Some(Arc::new(hook));
        self
    }

    /// Calls `hook` after each call that presented a payment, with its result.
    #[must_use]
    pub fn after_payment(
        mut self,
        hook: impl Fn(&SignedPayment, Result<&Paid, &BuyerError>) + Send + Sync + 'static,
    ) -> Self {
        self.after = Some(Arc::new(hook));
        self
    }

    /// Pays sellers over plain http too, and lets the caller's own facilitator be reached that way. Without it only sellers on this machine
    /// are paid over http, because anybody on the way can change the payee of a price.
    #[must_use]
    pub const fn allow_http(mut self) -> Self {
        self.allow_http = true;
        self
    }

    /// The most that the gas of a transfer by the payer's own transaction may cost ([`crate::buyer::SessionUse::Transfer`]), in wei. Unless
    /// set, 100,000 gas at the highest usual price of the network. What rollups charge besides for data is not in it.
    #[must_use]
    pub const fn transfer_fee_max(mut self, wei: U256) -> Self {
        self.fees.wei_max = Some(wei);
        self
    }

    /// The most that the same gas may cost as a share of the price, in percent, when a unit of the network's currency costs
    /// `native_price` millionths of a dollar. Holds together with [`Self::transfer_fee_max`].
    #[must_use]
    pub const fn transfer_fee_share(mut self, native_price: Amount, percent: u16) -> Self {
        self.fees.share = Some(Share {
            native_price,
            percent,
        });
        self
    }

    /// Negotiates payment sessions with this facilitator and ignores the one that a seller announces. It is also asked what became of an
    /// expired payment, before another one is signed in its place. It may be anywhere; one that a seller
    /// announces is reached at public addresses alone, or on this machine if the seller is here too.
    #[must_use]
    pub fn facilitator(mut self, url: Url) -> Self {
        self.facilitator = Some(url);
        self
    }

    /// Adds the JSON-RPC endpoint `rpc` for `network`. It is used to prove that an expired payment moved no money, to prepare a transfer
    /// ([`crate::buyer::SessionUse::Transfer`]), and, where the seller announces sponsored gas, to decide whether a Permit2 payment needs
    /// an EIP-2612 permit.
    #[must_use]
    pub fn chain(mut self, network: Network, rpc: Url) -> Self {
        self.chains.push(Chain { network, rpc });
        self
    }

    /// Sets how a payment with unknown outcome is presented again within one call: at most `retries` times, the first after
    /// `first_pause` (each further pause is twice the one before), and never after `limit`. Defaults: 5 times, 1 s, 150 s.
    #[must_use]
    pub const fn recovery(mut self, retries: u32, first_pause: Duration, limit: Duration) -> Self {
        self.retries = retries;
        self.retry_pause = first_pause;
        self.recovery_limit = limit;
        self
    }

    /// The longest response body that is read, in bytes; 8 MiB unless set.
    #[must_use]
    pub const fn body_bytes_max(mut self, bytes: usize) -> Self {
        self.http.body_bytes_max = bytes;
        self
    }

    /// The payer.
    pub const fn signer(&self) -> &Signer {
        &self.signer
    }

    /// The total of closed purchases of this client and its clones, plus all open signed payments of this payer in the journal, in atomic
    /// units.
    pub fn committed(&self) -> Amount {
        let spent = *self
            .spent
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        Amount::from_atomic(spent.saturating_add(self.journal.committed(self.signer.address())))
    }

    /// Sends `GET url` and pays for it when the answer is a 402.
    ///
    /// # Errors
    /// [`BuyerError`]; check [`BuyerError::money_may_have_moved`] before buying elsewhere.
    pub async fn get(&self, url: &str, options: &PayOptions) -> Result<Paid, BuyerError> {
        self.send(Request::new(Method::GET, url)?, options).await
    }

    /// Sends `POST url` with a JSON body and pays for it when the answer is a 402.
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

    /// Sends `PUT url` with a JSON body and pays for it when the answer is a 402.
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

    /// Sends `DELETE url` and pays for it when the answer is a 402.
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

/// The challenge of a 402. Order: v2's header, v2's form in the body (many sellers send only that), v1's body. With `preferred` v1, the v1
/// body comes first.
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
