//! Authorizations whose money was already transferred when they are checked: a foreign transaction used them, or this facilitator settled
//! them and its database lost the commit. The money is the payee's, so the payment counts once, like any other.
//!
//! Not every used authorization counts: one that another facilitator settled may have bought its resource there. Counted are payments that
//! this ledger accepted before, authorizations whose nonce belongs to a session of this ledger, and transactions sent by one of its
//! signers.

use alloy::primitives::{Address, B256};
use uuid::Uuid;

use crate::chain::AuthorizationUse;
use crate::facilitator::used_nonces::UsedBy;
use crate::facilitator::{Checked, Error, Facilitator, Unavailable};
use crate::ledger::{AlreadyTransferred, LaneKey};
use crate::payment::method::Fault;
use crate::payment::{Candidate, Location, Payment, PaymentId, Signed};
use crate::protocol::Reason;
use crate::settlement::ServedNetwork;

/// The message for a nonce that is remembered as used; the check against the chain uses the same text.
const NONCE_USED: &str = "the authorization's nonce was used or cancelled on the chain";

/// The ledger's relation to an authorization that is not being settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// The ledger has neither a payment nor a session for it.
    New,
    /// Its nonce is that of a session.
    Session,
    /// It was accepted once, and refused before it was sent.
    Refused(PaymentId),
}

/// The result of checking a payment that is not being settled.
#[derive(Debug)]
pub(super) enum Preflight {
    /// It could be settled now.
    Good(Box<Checked>),
    /// Its money was transferred already, and this row records it.
    Transferred(PaymentId),
}

/// The state of a refused authorization on the chain.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Recognised {
    /// Its money was transferred, and this row records it.
    Transferred(PaymentId),
    /// Its nonce is used for something that does not count here.
    Consumed,
    /// Its nonce is unused, as far as the answering endpoint knows.
    Unused,
}

impl Facilitator {
    /// Checks a payment; where the check fails and the ledger knows the authorization, looks on the chain whether its money was transferred
    /// already.
    pub(super) async fn preflight(
        &self,
        served: &ServedNetwork,
        candidate: &Candidate,
        origin: Origin,
    ) -> Result<Preflight, Error> {
        if origin == Origin::New && self.is_known_to_be_used(served, candidate) {
            candidate.check_policy(&served.policy, served.chain_time(self.clock.now()))?;
            return Err(candidate
                .refuse_for(Fault::NonceUsed, NONCE_USED.to_owned())
                .into());
        }
        let refusal = match self.check(served, candidate.clone()).await {
            Ok(checked) => return Ok(Preflight::Good(Box::new(checked))),
            Err(Error::Refused(refusal)) => refusal,
            Err(error) => return Err(error),
        };
        let used = matches!(
            refusal.reason,
            Reason::ExactNonceUsed | Reason::Permit2InvalidNonce
        );
        // An authorization that was accepted once or has a session may have been used by a foreign transaction, whatever the reason of the
        // refusal is now: the transfer may be older than the end of the time window, or than the removal of the payee from the operator's
        // list.
        if !used && origin == Origin::New {
            return Err(refusal.into());
        }
        let turn = self.used_nonces.turn(candidate).await;
        let _turn = turn.ok_or(Unavailable::Busy)?;
        if origin == Origin::New && self.is_known_to_be_used(served, candidate) {
            return Err(refusal.into());
        }
        match self.recognise(served, candidate, origin).await? {
            Recognised::Transferred(id) => Ok(Preflight::Transferred(id)),
            Recognised::Unused if used => {
                Err(Unavailable::NodeBehind(served.policy.network).into())
            }
            Recognised::Unused | Recognised::Consumed => Err(refusal.into()),
        }
    }

    /// Whether a recent look at the chain has shown that a candidate's nonce is used for something that does not count here.
    fn is_known_to_be_used(&self, served: &ServedNetwork, candidate: &Candidate) -> bool {
        let reorganisations = served.view.latest().reorganisations;
        self.used_nonces.contains(candidate, reorganisations)
    }

    /// Remembers that transaction `by` has used a candidate's nonce for something that does not count here.
    async fn remember_used(
        &self,
        served: &ServedNetwork,
        candidate: &Candidate,
        (by, reorganisations): (Option<B256>, u64),
    ) -> Result<(), Error> {
        let receipt = match by {
            Some(by) => served.caller_rpc.receipt(by).await?,
            None => None,
        };
        let used = match receipt {
            None => UsedBy::NotFound,
            Some(receipt) if self.is_own_signer(served, receipt.from).await? => UsedBy::OwnSigner,
            Some(_) => UsedBy::Foreign,
        };
        self.used_nonces.remember(candidate, used, reorganisations);
        Ok(())
    }

    async fn is_own_signer(&self, served: &ServedNetwork, sender: Address) -> Result<bool, Error> {
        let lane = LaneKey {
            network: served.policy.network,
            signer: sender,
        };
        Ok(self.ledger.is_signer(lane).await?)
    }

    async fn recognise(
        &self,
        served: &ServedNetwork,
        candidate: &Candidate,
        origin: Origin,
    ) -> Result<Recognised, Error> {
        if let Origin::Refused(id) = origin {
            let payment = self.ledger.payment_with_grant(id).await?.payment;
            return self.recognise_refused(served, &payment).await;
        }
        // Read before the chain is asked: a reorg in between may undo the use that is found.
        let reorganisations = served.view.latest().reorganisations;
        let (used, head) = self.use_on_chain(served, candidate.signed()).await?;
        let (location, sender) = match used {
            AuthorizationUse::Transferred { location, sender } => (location, sender),
            AuthorizationUse::Consumed(by) => {
                self.remember_used(served, candidate, (by, reorganisations))
                    .await?;
                return Ok(Recognised::Consumed);
            }
            AuthorizationUse::Unused => return Ok(Recognised::Unused),
        };
        let confirmations = served.policy.confirmations;
        if origin == Origin::New && !self.is_own_signer(served, sender).await? {
            let memory = &self.used_nonces;
            memory.remember(candidate, UsedBy::Foreign, reorganisations);
            return Ok(Recognised::Consumed);
        }
        let transfer = AlreadyTransferred {
            id: PaymentId(Uuid::now_v7()),
            candidate,
            confirmations,
            location: &location,
            confirmed: location.is_confirmed(head, confirmations),
        };
        if !self.ledger.accept_transferred(&transfer).await? {
            let id = self.existing_payment(candidate, None).await?;
            return Ok(Recognised::Transferred(id));
        }
        self.publish(served, transfer.id, &location, sender);
        Ok(Recognised::Transferred(transfer.id))
    }

    /// Looks whether a foreign transaction has transferred the money of a payment that was accepted once and refused. Uses the terms in the
    /// ledger: an `upto` payment may be presented with another charge than the transferred one.
    pub(super) async fn recognise_refused(
        &self,
        served: &ServedNetwork,
        payment: &Payment,
    ) -> Result<Recognised, Error> {
        let (used, head) = self.use_on_chain(served, payment.signed()).await?;
        let (location, sender) = match used {
            AuthorizationUse::Transferred { location, sender } => (location, sender),
            AuthorizationUse::Consumed(Some(_)) => return Ok(Recognised::Consumed),
            // The nonce is used, but the endpoint does not show the transaction: the money may have been transferred.
            AuthorizationUse::Consumed(None) => {
                return Err(Unavailable::NodeBehind(served.policy.network).into());
            }
            AuthorizationUse::Unused => return Ok(Recognised::Unused),
        };
        let confirmed = location.is_confirmed(head, payment.confirmations);
        let ledger = &self.ledger;
        ledger
            .settle_by_foreign_transaction(payment.id, &location, confirmed)
            .await?;
        self.publish(served, payment.id, &location, sender);
        Ok(Recognised::Transferred(payment.id))
    }

    /// The use of an authorization on the chain, and the confirmed height at the block by which it was read.
    async fn use_on_chain(
        &self,
        served: &ServedNetwork,
        signed: Signed<'_>,
    ) -> Result<(AuthorizationUse, u64), Error> {
        let head = served.caller_rpc.newest().await?.number;
        let tokens = served.policy.tokens();
        let used = served
            .caller_rpc
            .authorization_use(signed, head, &tokens)
            .await?;
        Ok((used, served.rpc.agreed_height(head)))
    }

    fn publish(&self, served: &ServedNetwork, id: PaymentId, location: &Location, sender: Address) {
        tracing::info!(payment.id = %id, network = %served.policy.network, transaction = %location.transaction, %sender, "payment settled by a transaction that is not in this ledger");
        served.note_unconfirmed();
        self.waiters.wake([id]);
    }
}
