//! Authorizations whose nonce is used on the chain when they are presented. If their money was transferred, by a foreign transaction or by
//! one whose commit this facilitator's database lost, it is the payee's, so the payment counts once, like any other.
//!
//! Not every used authorization counts: one that another facilitator settled may have bought its resource there. Counted are payments that
//! this ledger accepted before, authorizations whose nonce belongs to a session of this ledger, and transactions sent by one of its
//! signers. The others are remembered in [`UsedNonces`](super::UsedNonces).

use alloy::primitives::{Address, B256};
use uuid::Uuid;

use crate::chain::{AuthorizationUse, Head};
use crate::facilitator::used_nonces::{Seen, UsedBy};
use crate::facilitator::{Error, Facilitator, Unavailable};
use crate::ledger::{AlreadyTransferred, LaneKey, Lookup};
use crate::payment::{Candidate, Location, Payment, PaymentId, PaymentTerms, Who};
use crate::settlement::{Named, ServedNetwork};
use crate::telemetry::metrics::Step;

/// What a check of the payment, before the look at the chain, has found of its nonce.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Nonce {
    /// It is used, so an endpoint that says otherwise is behind.
    Used,
    /// The check has not seen a use.
    NotSeen,
}

impl Facilitator {
    /// Looks on the chain whether the money of an authorization was transferred already, in a way that counts here, and records it: the
    /// payment with the transfer, which belongs to `settler` if it is a new one.
    pub(super) async fn record_transferred(
        &self,
        served: &ServedNetwork,
        candidate: &Candidate,
        (known, settler): (&Lookup, Option<Who>),
        nonce: Nonce,
    ) -> Result<Option<PaymentId>, Error> {
        if let Some(found) = &known.payment {
            let found = self.ledger.payment_with_grant(found.payment.id).await?;
            let transferred = self.settle_refused(served, &found.payment, nonce).await?;
            return Ok(transferred.then_some(found.payment.id));
        }
        if !candidate.terms.has_storable_times() {
            return Ok(None);
        }
        // Read before the chain is asked: a reorg in between may undo the use that is found.
        let reorganisations = served.view.latest().reorganisations;
        let remember = |by, head: Head| {
            let seen = Seen {
                reorganisations,
                followed: served.view.head() == Some(head),
            };
            self.used_nonces.remember(candidate, by, seen);
        };
        let (location, sender, head) = match self.use_on_chain(served, &candidate.terms).await? {
            (AuthorizationUse::Transferred { location, sender }, head) => (location, sender, head),
            (AuthorizationUse::Consumed(by), head) => {
                remember(self.user_of(served, by).await?, head);
                return Ok(None);
            }
            (AuthorizationUse::Unused, _) if nonce == Nonce::Used => {
                return Err(Unavailable::NodeBehind(served.policy.network).into());
            }
            (AuthorizationUse::Unused, _) => return Ok(None),
        };
        if known.is_new() && !self.is_own_signer(served, sender).await? {
            remember(UsedBy::Foreign, head);
            return Ok(None);
        }
        let confirmations = served.policy.confirmations;
        let transfer = AlreadyTransferred {
            id: PaymentId(Uuid::now_v7()),
            candidate,
            confirmations,
            location: &location,
            confirmed: location.is_confirmed(served.rpc.agreed_height(head.number), confirmations),
            caller: settler,
        };
        if !self.ledger.accept_transferred(&transfer).await? {
            return Ok(Some(self.existing_payment(candidate).await?));
        }
        let terms = &candidate.terms;
        let named = Named::new(transfer.id, terms.method.scheme(), terms.from);
        served.note_step(named, Step::Accepted);
        served.note_found(named, &location, transfer.confirmed);
        self.publish(served, named, &location, sender);
        Ok(Some(transfer.id))
    }

    /// Looks whether a foreign transaction has transferred the money of a payment that was accepted once and refused, and records it. Uses
    /// the terms in the ledger: an `upto` payment may be presented with another charge than the transferred one.
    pub(super) async fn settle_refused(
        &self,
        served: &ServedNetwork,
        payment: &Payment,
        nonce: Nonce,
    ) -> Result<bool, Unavailable> {
        let (location, sender, head) = match self.use_on_chain(served, &payment.terms).await? {
            (AuthorizationUse::Transferred { location, sender }, head) => (location, sender, head),
            // The nonce is used, but the endpoint does not show the transaction: the money may have been transferred.
            (AuthorizationUse::Consumed(None), _) => {
                return Err(Unavailable::NodeBehind(served.policy.network));
            }
            (AuthorizationUse::Unused, _) if nonce == Nonce::Used => {
                return Err(Unavailable::NodeBehind(served.policy.network));
            }
            (AuthorizationUse::Consumed(Some(_)) | AuthorizationUse::Unused, _) => {
                return Ok(false);
            }
        };
        let agreed = served.rpc.agreed_height(head.number);
        let confirmed = location.is_confirmed(agreed, payment.confirmations);
        let recorded = self
            .ledger
            .settle_by_foreign_transaction(payment.id, &location, confirmed);
        let named = Named::of(payment);
        if recorded.await? {
            served.note_found(named, &location, confirmed);
        }
        self.publish(served, named, &location, sender);
        Ok(true)
    }

    /// Whether a recent look at the chain has shown that a candidate's nonce is used for something that does not count here.
    pub(super) fn is_known_to_be_used(
        &self,
        served: &ServedNetwork,
        candidate: &Candidate,
    ) -> bool {
        let reorganisations = served.view.latest().reorganisations;
        self.used_nonces.contains(candidate, reorganisations)
    }

    /// The use of an authorization on the chain, and the block by which it was read.
    async fn use_on_chain(
        &self,
        served: &ServedNetwork,
        terms: &PaymentTerms,
    ) -> Result<(AuthorizationUse, Head), Unavailable> {
        let head = served.caller_rpc.newest().await?;
        let tokens = served.policy.tokens();
        let used = served
            .caller_rpc
            .authorization_use(terms, head.number, &tokens)
            .await?;
        Ok((used, head))
    }

    /// Who has sent the transaction that used a nonce, if that transaction is known.
    async fn user_of(
        &self,
        served: &ServedNetwork,
        transaction: Option<B256>,
    ) -> Result<UsedBy, Unavailable> {
        let receipt = match transaction {
            Some(transaction) => served.caller_rpc.receipt(transaction).await?,
            None => None,
        };
        Ok(match receipt {
            None => UsedBy::NotFound,
            Some(receipt) if self.is_own_signer(served, receipt.from).await? => UsedBy::OwnSigner,
            Some(_) => UsedBy::Foreign,
        })
    }

    async fn is_own_signer(
        &self,
        served: &ServedNetwork,
        sender: Address,
    ) -> Result<bool, Unavailable> {
        let lane = LaneKey {
            network: served.policy.network,
            signer: sender,
        };
        Ok(self.ledger.is_signer(lane).await?)
    }

    fn publish(&self, served: &ServedNetwork, named: Named, location: &Location, sender: Address) {
        let (payment, payer) = (named.payment(), named.payer());
        tracing::info!(%payment, network = %served.policy.network, %payer, transaction = %location.transaction, %sender, "payment transferred by a transaction that is not in this ledger");
        served.note_unconfirmed();
        self.waiters.wake([payment]);
    }
}
