//! One purchase: ask, choose, sign, write down, present, and find out what became of it.
//!
//! What is open in the journal is presented again before anything else, so that a purchase never has two payments that can land.
//! When it has expired, another one is signed only after one of these: the chain proves that it moved nothing (the caller named an
//! endpoint); or it was presented once more, the seller refused it without naming a hash or a use, and no hash was ever named for it; or
//! the caller says so. A facilitator like ours answers a payment that it has settled with its hash also after its time.

use std::sync::PoisonError;

use alloy::primitives::{B256, U256};
use reqwest::{StatusCode, Url};
use tokio::time::Instant;

use crate::buyer::chain::Chain;
use crate::buyer::choose::choose;
use crate::buyer::client::{SessionReceipt, challenge_of};
use crate::buyer::journal::{JournalError, OpenPayment, OpenSession, PurchaseKey};
use crate::buyer::scheme::{self, Binding, handed};
use crate::buyer::session::{self, Negotiated};
use crate::buyer::verdict::{Verdict, is_hash, judge};
use crate::buyer::{
    BuyerError, Client, Handed, Paid, PayOptions, Request, SessionFailure, SessionUse,
};
use crate::protocol::challenge::Offer;
use crate::protocol::gas_sponsoring::EIP2612;
use crate::protocol::session::{
    PROOF_TYPE, Rail, SessionProof, TransferForm, claim_digest, transfer_calldata,
};
use crate::protocol::{Amount, Means, Network, PaymentHeader, PaymentRequired, X402Version};

/// The longest validity that is signed, whatever a seller asks for: so long does an unanswered payment stay open.
const VALIDITY_S_MAX: u64 = 3600;

/// A 402 and the entry of it that is going to be paid.
struct Chosen {
    challenge: PaymentRequired,
    offer: Offer,
    /// Where the payment goes.
    place: Url,
}

impl Client {
    /// Makes a request, paying for it if asked to: at most once, and at most the ceiling. Every answer but a 402 comes
    /// back as it is.
    ///
    /// # Errors
    /// [`BuyerError`]; ask [`BuyerError::money_may_have_moved`] before paying elsewhere. To call again for the same purchase is
    /// safe with the same journal.
    pub async fn send(&self, request: Request, options: &PayOptions) -> Result<Paid, BuyerError> {
        let id = options.purchase_id.as_deref();
        let key = PurchaseKey::new(self.signer.address(), id, request.identity());
        let _turn = self.journal.turn(&key).await;
        if let Some(open) = self.journal.find(&key)
            && let Some(paid) = self.resume(&request, &key, open, options).await?
        {
            return Ok(paid);
        }
        let answer = self
            .http
            .ask(&request)
            .await
            .map_err(BuyerError::Unanswered)?;
        if answer.status != StatusCode::PAYMENT_REQUIRED {
            return Ok(Paid::new(answer, None, None));
        }
        let challenge = challenge_of(&answer, options.version).ok_or(BuyerError::Challenge)?;
        let offer = choose(&challenge, options)?;
        let chosen = Chosen {
            challenge,
            offer,
            place: answer.url,
        };
        let open = self.pay(&request, &key, &chosen, options).await?;
        self.present(request, &key, &open).await
    }

    /// Presents what an earlier call has signed for this purchase. `None` when that moved nothing and never will.
    async fn resume(
        &self,
        request: &Request,
        key: &PurchaseKey,
        open: OpenPayment,
        options: &PayOptions,
    ) -> Result<Option<Paid>, BuyerError> {
        let place = |url: &Url| (url.origin(), url.path().to_owned());
        if place(&open.asked) != place(&request.url) {
            return Err(BuyerError::Journal(JournalError::OtherRequest));
        }
        let over = self.is_over(&open, options.sign_again);
        if over && self.is_proven_unpaid(&open).await {
            self.forget(key)?;
            return Ok(None);
        }
        let error = match self.present(request.clone(), key, &open).await {
            Ok(paid) => return Ok(Some(paid)),
            Err(error) if !over => return Err(error),
            Err(error) => error,
        };
        let hash = self.journal.find(key).and_then(|open| open.transaction);
        let refused = matches!(
            error,
            BuyerError::Refused { .. }
                | BuyerError::AllowanceRequired { .. }
                | BuyerError::PriceChanged { .. }
        );
        if options.sign_again || (refused && hash.is_none()) {
            self.forget(key)?;
            return Ok(None);
        }
        Err(BuyerError::Unresolved {
            handed: Box::new(open.handed),
            transaction: hash,
        })
    }

    /// Whether a payment's time has passed. A transaction that the payer signed has no end: only the caller can know that it is
    /// void, by another one under its account nonce.
    fn is_over(&self, open: &OpenPayment, caller_says_so: bool) -> bool {
        match open.handed.valid_before {
            Some(_) => !open.may_land(self.clock.now().unix_timestamp()),
            None => caller_says_so,
        }
    }

    async fn is_proven_unpaid(&self, open: &OpenPayment) -> bool {
        match self.chain_of(open.handed.network) {
            Some(chain) => chain.proves_unpaid(&self.http, &open.handed).await == Ok(true),
            None => false,
        }
    }

    fn chain_of(&self, network: Network) -> Option<&Chain> {
        self.chains.iter().find(|chain| chain.network == network)
    }

    fn forget(&self, key: &PurchaseKey) -> Result<(), BuyerError> {
        self.journal.close(key).map_err(BuyerError::Journal)
    }

    /// Signs for `chosen` and writes it down. Nothing has left when this returns.
    async fn pay(
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
        let end = i64::try_from(random.valid_before).ok();
        let proposed = handed(&self.signer, &chosen.offer, random.nonce, end);
        if let Some(hook) = &self.before {
            hook(&proposed, &chosen.place).map_err(BuyerError::Declined)?;
        }
        self.affordable(requirements.amount)?;
        self.is_no_repetition(key, &proposed, chosen, options)?;
        let negotiated = self.negotiate(chosen, options, now).await?;
        match negotiated {
            Some(session) if options.sessions == SessionUse::Transfer => {
                self.sign_transfer(request, key, chosen, &session).await
            }
            session => {
                let binding = session.as_ref().map_or(random, |session| session.binding);
                let first = options.sessions == SessionUse::PayFirst;
                let permit = self.permit_nonce(chosen).await;
                self.begin(key, requirements.amount, || {
                    let (challenge, offer) = (&chosen.challenge, &chosen.offer);
                    let signed = scheme::sign(&self.signer, challenge, offer, binding, permit)?;
                    let early = signed.early.filter(|_| first);
                    let submission =
                        early.map(|payload| TransferForm::Authorization(payload).into());
                    let session = session.as_ref().map(|session| session.kept(submission));
                    Ok(chosen.open(request, &signed.header, signed.handed, session))
                })
            }
        }
    }

    /// Whether nothing that looks like this purchase is open, or the caller has named it, or says that it is another one.
    fn is_no_repetition(
        &self,
        key: &PurchaseKey,
        proposed: &Handed,
        chosen: &Chosen,
        options: &PayOptions,
    ) -> Result<(), BuyerError> {
        if options.another || options.purchase_id.is_some() {
            return Ok(());
        }
        let now = self.clock.now().unix_timestamp();
        let Some(open) = self.journal.alike(key, proposed, &chosen.place, now) else {
            return Ok(());
        };
        // A query may hold the caller's secrets.
        let mut place = open.asked.clone();
        place.set_query(None);
        place.set_fragment(None);
        Err(BuyerError::MayBeRepeated {
            earlier: Box::new(open.handed),
            place: place.into(),
            transaction: open.transaction,
        })
    }

    /// The nonce of the token's permit, where one helps: the seller has its gas sponsored, and Permit2 may not take the amount yet. What
    /// cannot be looked up is left out; the seller will ask for the allowance then.
    async fn permit_nonce(&self, chosen: &Chosen) -> Option<U256> {
        let requirements = &chosen.offer.requirements;
        let named = requirements.domain_name().is_some() && requirements.domain_version().is_some();
        let wanted = chosen.is_by_permit2() && named && chosen.challenge.declares(EIP2612);
        // Tokens take a permit from a plain account alone.
        if !wanted || !self.signer.is_plain_account() {
            return None;
        }
        let chain = self.chain_of(requirements.network)?;
        let wanted = (requirements.asset, requirements.amount);
        let asked = chain.permit_nonce(&self.http, self.signer.address(), wanted);
        asked.await.unwrap_or_else(|error| {
            tracing::debug!(%error, "the allowance to Permit2 could not be looked up");
            None
        })
    }

    async fn negotiate(
        &self,
        chosen: &Chosen,
        options: &PayOptions,
        now: u64,
    ) -> Result<Option<Negotiated>, BuyerError> {
        let rail = match options.sessions {
            SessionUse::Never => return Ok(None),
            SessionUse::Offered if chosen.is_by_permit2() => return Ok(None),
            SessionUse::PayFirst | SessionUse::Transfer if chosen.is_by_permit2() => {
                return Err(BuyerError::Session(SessionFailure::Means));
            }
            SessionUse::Offered | SessionUse::PayFirst => Rail::Authorization,
            SessionUse::Transfer => Rail::Transfer,
        };
        let opened = async {
            let (challenge, offer) = (&chosen.challenge, &chosen.offer);
            let configured = self.facilitator.as_ref();
            let url = session::facilitator(configured, challenge, offer, &chosen.place)?;
            let terms = (&self.signer, offer, rail);
            session::open(&self.http, url, terms, &chosen.place, (now, VALIDITY_S_MAX)).await
        };
        match opened.await {
            Ok(session) => Ok(Some(session)),
            Err(failure) if options.sessions == SessionUse::Offered => {
                tracing::debug!(%failure, "no session: the header alone pays");
                Ok(None)
            }
            Err(failure) => Err(BuyerError::Session(failure)),
        }
    }

    /// Rail `transfer`: signs the payer's own transaction and the claim that makes it this session's.
    async fn sign_transfer(
        &self,
        request: &Request,
        key: &PurchaseKey,
        chosen: &Chosen,
        session: &Negotiated,
    ) -> Result<OpenPayment, BuyerError> {
        let unusable = |why: &str| BuyerError::Session(SessionFailure::Transfer(why.to_owned()));
        let requirements = &chosen.offer.requirements;
        let chain = self.chain_of(requirements.network);
        let chain = chain.ok_or_else(|| unusable("the caller names no endpoint of the network"))?;
        if chosen.offer.version != X402Version::V2 || requirements.payment_flow() != Some("upfront")
        {
            return Err(unusable("the seller's flow is not upfront"));
        }
        if !self.signer.is_plain_account() {
            return Err(unusable("a contract wallet sends no transactions"));
        }
        let _turn = self.transfers.lock().await;
        let tag = session.binding.nonce;
        let data = transfer_calldata(requirements.pay_to, requirements.amount, tag);
        let call = chain
            .signed_call(&self.http, &self.signer, requirements.asset, data)
            .await;
        let (raw, transaction) = call.map_err(BuyerError::Signing)?;
        let digest = claim_digest(
            &session.id,
            session.requirements_hash,
            transaction,
            requirements.network,
        );
        let signature = self.signer.sign(digest).map_err(BuyerError::Signing)?;
        let form = TransferForm::Raw {
            bytes: raw,
            claim: Some(signature.clone()),
        };
        let proof = SessionProof {
            kind: PROOF_TYPE.to_owned(),
            session_id: session.id.clone(),
            transaction,
            signature,
        };
        let header = PaymentHeader::present(&chosen.challenge, &chosen.offer, &proof)
            .map_err(|error| BuyerError::Signing(error.to_string()))?;
        let handed = handed(&self.signer, &chosen.offer, tag, None);
        let kept = session.kept(Some(form.into()));
        let open = self.begin(key, requirements.amount, || {
            let mut open = chosen.open(request, &header, handed, Some(kept));
            open.transaction = Some(transaction.to_string());
            Ok(open)
        })?;
        // Before the next transfer takes an account nonce, this one has to be in the facilitator's hands.
        self.pay_first(key, &open, Instant::now()).await;
        Ok(open)
    }

    fn affordable(&self, price: Amount) -> Result<(), BuyerError> {
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

    /// Signs and writes down, unless the budget forbids it: one at a time, so that two purchases do not spend the same rest.
    fn begin(
        &self,
        key: &PurchaseKey,
        price: Amount,
        make: impl FnOnce() -> Result<OpenPayment, BuyerError>,
    ) -> Result<OpenPayment, BuyerError> {
        let _one = self.signing.lock().unwrap_or_else(PoisonError::into_inner);
        self.affordable(price)?;
        let open = make()?;
        self.journal
            .begin(key, &open)
            .map_err(BuyerError::Journal)?;
        Ok(open)
    }

    /// Presents one payment until its outcome is known, for a bounded time; never another one.
    async fn present(
        &self,
        mut request: Request,
        key: &PurchaseKey,
        open: &OpenPayment,
    ) -> Result<Paid, BuyerError> {
        let handed = &open.handed;
        tracing::debug!(network = %handed.network, amount = %handed.amount, pay_to = %handed.pay_to, "presenting a payment");
        let deadline = Instant::now() + self.recovery_limit;
        self.pay_first(key, open, deadline).await;
        request.url = open.presented_to.clone();
        let result = self.until_decided(&request, key, open, deadline).await;
        if let Some(hook) = &self.after {
            hook(handed, result.as_ref());
        }
        result
    }

    async fn until_decided(
        &self,
        request: &Request,
        key: &PurchaseKey,
        open: &OpenPayment,
        deadline: Instant,
    ) -> Result<Paid, BuyerError> {
        let payment = PaymentHeader::kept(open.version, open.header.clone());
        let mut pause = self.retry_pause;
        let mut retries = self.retries;
        loop {
            let verdict = judge(self.http.present(request, &payment).await, &open.handed);
            self.remember(key, &verdict);
            let last = retries == 0 || Instant::now() + pause >= deadline;
            match verdict {
                Verdict::Served(paid) => return self.served(key, open, paid).await,
                Verdict::Unserved(paid) => return Ok(paid),
                Verdict::Owed(paid) if last => return Ok(paid),
                Verdict::Undecided(error) if last => return Err(error),
                Verdict::Final(error) => return Err(error),
                Verdict::Owed(_) | Verdict::Undecided(_) => {}
            }
            retries = retries.saturating_sub(1);
            tokio::time::sleep(pause).await;
            pause = pause.saturating_mul(2);
        }
    }

    /// A hash that was named once keeps another payment from being signed.
    fn remember(&self, key: &PurchaseKey, verdict: &Verdict) {
        let named = match verdict {
            Verdict::Served(paid) | Verdict::Unserved(paid) | Verdict::Owed(paid) => paid
                .payment
                .as_ref()
                .map(|payment| payment.transaction.as_str()),
            Verdict::Undecided(error) | Verdict::Final(error) => error.transaction(),
        };
        if let Some(hash) = named.filter(|hash| is_hash(hash)) {
            written(self.journal.name(key, hash));
        }
    }

    /// The purchase has its resource: compares what seller and session say, and closes it.
    async fn served(
        &self,
        key: &PurchaseKey,
        open: &OpenPayment,
        mut paid: Paid,
    ) -> Result<Paid, BuyerError> {
        if let Some(session) = &open.session {
            let view = session::read(&self.http, session, 0).await;
            let transaction = view.and_then(|view| view.transaction);
            if let (Some(theirs), Some(ours)) = (paid.transaction(), &transaction)
                && !theirs.eq_ignore_ascii_case(ours)
            {
                let what =
                    format!("it names the transaction {theirs}, and the session names {ours}");
                let (handed, answer) = (Box::new(open.handed), Box::new(paid));
                return Err(BuyerError::Contradiction {
                    handed,
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
        // First counted as spent, then no longer as open: the budget is never too large. What was metered counts with its maximum: that
        // less was charged is the seller's word, and what was signed stays good until it expires.
        {
            let mut spent = self.spent.lock().unwrap_or_else(PoisonError::into_inner);
            *spent = spent.saturating_add(open.handed.amount.atomic());
        }
        written(self.journal.close(key));
        Ok(paid)
    }

    /// Has a session's transfer sent, when that is wanted before the header. Repeating it is harmless.
    async fn pay_first(&self, key: &PurchaseKey, open: &OpenPayment, deadline: Instant) {
        let Some(session) = &open.session else { return };
        let Some(submission) = &session.submission else {
            return;
        };
        let hash = session::pay_first(&self.http, session, submission, deadline).await;
        if let Some(hash) = hash.filter(|hash| is_hash(hash)) {
            written(self.journal.name(key, &hash));
        }
    }
}

/// What cannot be written now leaves the purchase open: the next call presents the same payment.
fn written(result: Result<(), JournalError>) {
    if let Err(error) = result {
        tracing::warn!(%error, "the purchase journal could not be brought up to date");
    }
}

impl Chosen {
    fn is_by_permit2(&self) -> bool {
        matches!(
            self.offer.requirements.means(),
            Some(Means::Permit2 | Means::Metered)
        )
    }

    fn open(
        &self,
        request: &Request,
        header: &PaymentHeader,
        handed: crate::buyer::Handed,
        session: Option<OpenSession>,
    ) -> OpenPayment {
        OpenPayment {
            asked: request.url.clone(),
            presented_to: self.place.clone(),
            version: self.offer.version,
            header: header.value().to_owned(),
            handed,
            session,
            transaction: None,
        }
    }
}
