//! One purchase: request, choose an offer, sign, record, present, and determine the outcome.
//!
//! An open payment in the journal is presented again before anything else, so that a purchase never has two payments that can both settle.
//! When it has expired, a new one is signed only if the chain proves that it moved no money (needs an RPC endpoint); or if the seller
//! refused it once more without reporting a hash or an earlier use, no hash was ever reported for it (x402d answers a settled payment with
//! its hash also after the expiry), and neither the chain shows its nonce as used, nor the facilitator (where one is known) has its money
//! moved or still to be moved; or if the caller asserts it ([`PayOptions::sign_again`]).

use std::sync::PoisonError;

use alloy::primitives::{B256, U256};
use reqwest::{StatusCode, Url};
use tokio::time::Instant;

use crate::buyer::chain::{Chain, Fate};
use crate::buyer::choose::choose;
use crate::buyer::client::{SessionReceipt, challenge_of};
use crate::buyer::journal::{JournalError, OpenPayment, OpenSession, PurchaseKey};
use crate::buyer::reach::is_loopback;
use crate::buyer::scheme::{self, Binding, Extras, payment_terms};
use crate::buyer::session::{self, NegotiatedSession};
use crate::buyer::verdict::{Verdict, classify, is_hash};
use crate::buyer::{
    BuyerError, Client, Paid, PayOptions, Request, SessionFailure, SessionUse, SignedPayment,
};
use crate::protocol::challenge::Offer;
use crate::protocol::gas_sponsoring::EIP2612;
use crate::protocol::session::{Rail, TransferForm};
use crate::protocol::{Amount, Network, PaymentHeader, PaymentMethod, PaymentRequired};

/// The longest validity that is signed, in seconds, even when a seller asks for more. It bounds how long an unanswered payment stays open.
const VALIDITY_S_MAX: u64 = 3600;

/// A 402 challenge and the offer of it that is going to be paid.
pub(super) struct Chosen {
    pub(super) challenge: PaymentRequired,
    pub(super) offer: Offer,
    /// The URL that answered 402, to which the payment is sent.
    pub(super) url: Url,
}

impl Client {
    /// Sends a request and pays for it when the answer is a 402: once, and at most the ceiling. Any other response is returned unchanged.
    ///
    /// # Errors
    /// [`BuyerError`]; check [`BuyerError::money_may_have_moved`] before buying elsewhere. Calling again with the same journal is safe.
    pub async fn send(&self, request: Request, options: &PayOptions) -> Result<Paid, BuyerError> {
        let id = options.purchase_id.as_deref();
        let key = PurchaseKey::new(self.signer.address(), id, request.identity());
        let _guard = self.journal.lock_purchase(&key).await;
        if let Some(open) = self.journal.find(&key)
            && let Some(paid) = self.resume(&request, &key, open, options).await?
        {
            return Ok(paid);
        }
        let answer = self
            .http
            .send_unpaid(&request)
            .await
            .map_err(BuyerError::Unanswered)?;
        if answer.status != StatusCode::PAYMENT_REQUIRED {
            return Ok(Paid::new(answer, None, None));
        }
        let challenge = challenge_of(&answer, options.version).ok_or(BuyerError::Challenge)?;
        if answer.url.scheme() != "https" && !is_loopback(&answer.url) && !self.allow_http {
            let origin = answer.url.origin().ascii_serialization();
            return Err(BuyerError::InsecureSeller(origin));
        }
        let offer = choose(&challenge, options)?;
        let chosen = Chosen {
            challenge,
            offer,
            url: answer.url,
        };
        let open = self.sign_payment(&request, &key, &chosen, options).await?;
        self.present(request, &key, &open).await
    }

    /// Presents the open payment of an earlier call for this purchase. `None` when it moved no money and never will: it is closed then.
    async fn resume(
        &self,
        request: &Request,
        key: &PurchaseKey,
        open: OpenPayment,
        options: &PayOptions,
    ) -> Result<Option<Paid>, BuyerError> {
        let target = |url: &Url| (url.origin(), url.path().to_owned());
        if target(&open.requested_url) != target(&request.url) {
            return Err(BuyerError::Journal(JournalError::OtherRequest));
        }
        let expired = self.is_expired(&open, options.sign_again);
        let fate = if expired {
            self.fate_of(&open).await
        } else {
            None
        };
        if fate == Some(Fate::Unpaid) {
            self.close(key)?;
            return Ok(None);
        }
        let error = match self.present(request.clone(), key, &open).await {
            Ok(paid) => return Ok(Some(paid)),
            Err(error) if !expired => return Err(error),
            Err(error) => error,
        };
        let mut hash = self.journal.find(key).and_then(|open| open.transaction);
        let refused = matches!(
            error,
            BuyerError::Refused { .. }
                | BuyerError::AllowanceRequired { .. }
                | BuyerError::PriceChanged { .. }
        );
        // What a seller says does not outweigh a chain that shows the nonce as used, or not yet as expired.
        let mut is_unpaid =
            refused && hash.is_none() && !matches!(fate, Some(Fate::NonceUsed | Fate::Open));
        // Nor one that the facilitator has and the seller hides.
        if is_unpaid
            && !options.sign_again
            && let Some(status) = self.status_of(&open).await
        {
            is_unpaid = !status.money_moved && !status.money_may_move;
            hash = status.transaction.filter(|_| !is_unpaid);
            if let Some(hash) = &hash {
                warn_unless_recorded(self.journal.record_transaction(key, hash));
            }
        }
        if options.sign_again || is_unpaid {
            self.close(key)?;
            return Ok(None);
        }
        Err(BuyerError::Unresolved {
            signed: Box::new(open.signed),
            transaction: hash,
        })
    }

    /// Whether a payment has expired. The payer's own transaction never does: only the caller can know that its account nonce is used.
    fn is_expired(&self, open: &OpenPayment, caller_asserts: bool) -> bool {
        match open.signed.valid_before {
            Some(_) => !open.may_settle(self.clock.now().unix_timestamp()),
            None => caller_asserts,
        }
    }

    /// What the chain shows of a payment; `None` when no endpoint is configured for its network, or it does not answer.
    async fn fate_of(&self, open: &OpenPayment) -> Option<Fate> {
        let chain = self.chain_of(open.signed.network)?;
        chain.fate(&self.http, &open.signed).await.ok()
    }

    pub(super) fn chain_of(&self, network: Network) -> Option<&Chain> {
        self.chains.iter().find(|chain| chain.network == network)
    }

    fn close(&self, key: &PurchaseKey) -> Result<(), BuyerError> {
        self.journal.close(key).map_err(BuyerError::Journal)
    }

    /// Signs a payment for `chosen` and records it in the journal. No payment was sent yet when this returns, except on rail `transfer`.
    async fn sign_payment(
        &self,
        request: &Request,
        key: &PurchaseKey,
        chosen: &Chosen,
        options: &PayOptions,
    ) -> Result<OpenPayment, BuyerError> {
        let now = u64::try_from(self.clock.now().unix_timestamp()).unwrap_or_default();
        let requirements = &chosen.offer.requirements;
        let validity = requirements.max_timeout_seconds.min(VALIDITY_S_MAX);
        let random = Binding {
            nonce: B256::try_random().map_err(|error| BuyerError::Signing(error.to_string()))?,
            valid_before: now.saturating_add(validity),
        };
        let valid_before = i64::try_from(random.valid_before).ok();
        let proposed = payment_terms(&self.signer, &chosen.offer, random.nonce, valid_before);
        if let Some(hook) = &self.before {
            hook(&proposed, &chosen.url).map_err(BuyerError::Declined)?;
        }
        self.check_budget(requirements.amount)?;
        self.check_duplicate(key, &proposed, chosen, options)?;
        let negotiated = self.negotiate(chosen, options, now).await?;
        match negotiated {
            Some(session) if options.sessions == SessionUse::Transfer => {
                self.sign_transfer(request, key, chosen, &session).await
            }
            session => {
                let binding = session.as_ref().map_or(random, |session| session.binding);
                let pay_first = options.sessions == SessionUse::PayFirst;
                let permit_nonce = self.permit_nonce(chosen).await;
                self.sign_and_record(key, requirements.amount, || {
                    let (challenge, offer) = (&chosen.challenge, &chosen.offer);
                    let extras = Extras {
                        session: session.as_ref().map(|session| &session.id),
                        permit_nonce,
                    };
                    let prepared = scheme::sign(&self.signer, challenge, offer, binding, extras)?;
                    let early = prepared.authorization.filter(|_| pay_first);
                    let submission =
                        early.map(|payload| TransferForm::Authorization(payload).into());
                    let session = session.as_ref().map(|session| session.record(submission));
                    Ok(chosen.open(request, &prepared.header, prepared.signed, session))
                })
            }
        }
    }

    /// Fails when an open payment looks like this purchase, unless the caller identifies the purchase or declares it a new one.
    fn check_duplicate(
        &self,
        key: &PurchaseKey,
        proposed: &SignedPayment,
        chosen: &Chosen,
        options: &PayOptions,
    ) -> Result<(), BuyerError> {
        if options.another || options.purchase_id.is_some() {
            return Ok(());
        }
        let now = self.clock.now().unix_timestamp();
        let Some(open) = self.journal.find_similar(key, proposed, &chosen.url, now) else {
            return Ok(());
        };
        // The query may contain the caller's secrets.
        let mut place = open.requested_url.clone();
        place.set_query(None);
        place.set_fragment(None);
        Err(BuyerError::MayBeRepeated {
            earlier: Box::new(open.signed),
            place: place.into(),
            transaction: open.transaction,
        })
    }

    /// The nonce of an EIP-2612 permit, when one is useful: the seller announces sponsored gas, and the allowance to Permit2 is too low.
    /// `None` also when the look-up fails; the seller then refuses with `permit2_allowance_required`.
    async fn permit_nonce(&self, chosen: &Chosen) -> Option<U256> {
        let requirements = &chosen.offer.requirements;
        let domain =
            requirements.domain_name().is_some() && requirements.domain_version().is_some();
        let sponsored = chosen.is_by_permit2() && domain && chosen.challenge.declares(EIP2612);
        // Tokens accept permits of plain accounts only.
        if !sponsored || !self.signer.is_plain_account() {
            return None;
        }
        let chain = self.chain_of(requirements.network)?;
        let needed = (requirements.asset, requirements.amount);
        let nonce = chain.permit_nonce(&self.http, self.signer.address(), needed);
        nonce.await.unwrap_or_else(|error| {
            tracing::debug!(%error, "reading the Permit2 allowance failed: no permit is attached to the payment");
            None
        })
    }

    /// Opens a payment session where the options ask for one.
    async fn negotiate(
        &self,
        chosen: &Chosen,
        options: &PayOptions,
        now: u64,
    ) -> Result<Option<NegotiatedSession>, BuyerError> {
        let rail = match options.sessions {
            SessionUse::Never => return Ok(None),
            SessionUse::Offered if chosen.is_by_permit2() => return Ok(None),
            SessionUse::PayFirst | SessionUse::Transfer if chosen.is_by_permit2() => {
                return Err(BuyerError::Session(SessionFailure::PaymentMethod));
            }
            SessionUse::Offered | SessionUse::PayFirst => Rail::Authorization,
            SessionUse::Transfer => Rail::Transfer,
        };
        let opened = async {
            let (challenge, offer) = (&chosen.challenge, &chosen.offer);
            let own = (self.facilitator.as_ref(), self.allow_http);
            let facilitator = session::facilitator(own, challenge, offer, &chosen.url)?;
            let terms = (&self.signer, offer, rail);
            session::open(
                &self.http,
                facilitator,
                terms,
                &chosen.url,
                (now, VALIDITY_S_MAX),
            )
            .await
        };
        match opened.await {
            Ok(session) => Ok(Some(session)),
            Err(failure) if options.sessions == SessionUse::Offered => {
                tracing::debug!(%failure, "opening a payment session failed: paying without one");
                Ok(None)
            }
            Err(failure) => Err(BuyerError::Session(failure)),
        }
    }

    fn check_budget(&self, price: Amount) -> Result<(), BuyerError> {
        let Some(budget) = self.budget else {
            return Ok(());
        };
        let committed = self.committed();
        let sum = committed.atomic().saturating_add(price.atomic());
        if sum > budget.atomic() {
            return Err(BuyerError::OverBudget {
                price,
                committed,
                budget,
            });
        }
        Ok(())
    }

    /// Checks the budget, then signs and records. One purchase at a time, so that two cannot spend the same rest of the budget.
    pub(super) fn sign_and_record(
        &self,
        key: &PurchaseKey,
        price: Amount,
        sign: impl FnOnce() -> Result<OpenPayment, BuyerError>,
    ) -> Result<OpenPayment, BuyerError> {
        let _guard = self.signing.lock().unwrap_or_else(PoisonError::into_inner);
        self.check_budget(price)?;
        let open = sign()?;
        self.journal
            .record(key, &open)
            .map_err(BuyerError::Journal)?;
        Ok(open)
    }

    /// Presents one payment until its outcome is known, for a bounded time. Signs nothing.
    async fn present(
        &self,
        mut request: Request,
        key: &PurchaseKey,
        open: &OpenPayment,
    ) -> Result<Paid, BuyerError> {
        let signed = &open.signed;
        tracing::debug!(network = %signed.network, amount = %signed.amount, pay_to = %signed.pay_to, "presenting a payment");
        let deadline = Instant::now() + self.recovery_limit;
        self.pay_first(key, open, deadline).await;
        request.url = open.presented_to.clone();
        let result = self
            .present_until_final(&request, key, open, deadline)
            .await;
        if let Some(hook) = &self.after {
            hook(signed, result.as_ref());
        }
        result
    }

    async fn present_until_final(
        &self,
        request: &Request,
        key: &PurchaseKey,
        open: &OpenPayment,
        deadline: Instant,
    ) -> Result<Paid, BuyerError> {
        let payment = PaymentHeader::from_stored(open.version, open.header.clone());
        let mut pause = self.retry_pause;
        let mut retries = self.retries;
        loop {
            let verdict = classify(self.http.send_paid(request, &payment).await, &open.signed);
            self.record_hash(key, &verdict);
            let last = retries == 0 || Instant::now() + pause >= deadline;
            match verdict {
                Verdict::Served(paid) => return self.finish(key, open, paid).await,
                Verdict::NotServed(paid) => return Ok(paid),
                Verdict::PaidNotServed(paid) if last => return Ok(paid),
                Verdict::Undecided(error) if last => return Err(error),
                Verdict::Final(error) => return Err(error),
                Verdict::PaidNotServed(_) | Verdict::Undecided(_) => {}
            }
            retries = retries.saturating_sub(1);
            tokio::time::sleep(pause).await;
            pause = pause.saturating_mul(2);
        }
    }

    /// Records a reported transaction hash in the journal: it prevents that another payment is signed after a refusal.
    fn record_hash(&self, key: &PurchaseKey, verdict: &Verdict) {
        let reported = match verdict {
            Verdict::Served(paid) | Verdict::NotServed(paid) | Verdict::PaidNotServed(paid) => paid
                .payment
                .as_ref()
                .map(|payment| payment.transaction.as_str()),
            Verdict::Undecided(error) | Verdict::Final(error) => error.transaction(),
        };
        if let Some(hash) = reported.filter(|hash| is_hash(hash)) {
            warn_unless_recorded(self.journal.record_transaction(key, hash));
        }
    }

    /// The resource was received: compares the hashes of seller and session, then closes the purchase.
    async fn finish(
        &self,
        key: &PurchaseKey,
        open: &OpenPayment,
        mut paid: Paid,
    ) -> Result<Paid, BuyerError> {
        if let Some(session) = &open.session {
            let view = session::read(&self.http, session, 0).await;
            let transaction = view.and_then(|view| view.transaction);
            if let (Some(reported), Some(expected)) = (paid.transaction(), &transaction)
                && !reported.eq_ignore_ascii_case(expected)
            {
                let what =
                    format!("it names the transaction {reported}, the session names {expected}");
                let (signed, answer) = (Box::new(open.signed), Box::new(paid));
                return Err(BuyerError::Contradiction {
                    signed,
                    what,
                    answer,
                });
            }
            paid.session = Some(SessionReceipt {
                id: session.id.clone(),
                facilitator: session.facilitator.clone(),
                transaction,
            });
        }
        // Added to `spent` before it is closed, so that the budget never appears too large. A metered payment counts with its maximum: a
        // smaller charge is only the seller's claim, and the signature stays valid until it expires.
        {
            let mut spent = self.spent.lock().unwrap_or_else(PoisonError::into_inner);
            *spent = spent.saturating_add(open.signed.amount.atomic());
        }
        warn_unless_recorded(self.journal.close(key));
        Ok(paid)
    }
}

/// Logs a failed journal write. The purchase stays open then, and the next call presents the same payment.
pub(super) fn warn_unless_recorded(result: Result<(), JournalError>) {
    if let Err(error) = result {
        tracing::warn!(%error, "purchase journal update failed: the purchase stays open, and the next call presents the same payment");
    }
}

impl Chosen {
    fn is_by_permit2(&self) -> bool {
        matches!(
            self.offer.requirements.payment_method(),
            Some(PaymentMethod::Permit2 | PaymentMethod::Metered)
        )
    }

    pub(super) fn open(
        &self,
        request: &Request,
        header: &PaymentHeader,
        signed: SignedPayment,
        session: Option<OpenSession>,
    ) -> OpenPayment {
        OpenPayment {
            requested_url: request.url.clone(),
            presented_to: self.url.clone(),
            version: self.offer.version,
            header: header.value().to_owned(),
            signed,
            session,
            transaction: None,
        }
    }
}
