//! Authorizations whose money had moved when they came to be looked at: somebody else submitted them, or this facilitator itself did and
//! its ledger lost the commit. The money is the payee's, so the payment counts, once, like any other.
//!
//! Not every used authorization counts: what another facilitator settled may have bought its resource there. Counted are payments that
//! this ledger accepted before, authorizations whose nonce is that of a session of ours, and transactions that came from a signer of ours.

use alloy::primitives::{Address, B256};
use uuid::Uuid;

use crate::chain::authorization::AuthorizationUse;
use crate::facilitator::used_nonces::UsedBy;
use crate::facilitator::{Checked, Facilitator, Halt, Outage};
use crate::ledger::{LaneKey, MovedBefore};
use crate::payment::method::Fault;
use crate::payment::{Candidate, Location, Payment, PaymentId, Signed};
use crate::protocol::Reason;
use crate::settlement::Site;

/// What is said of a nonce that is remembered; a look at the chain says the same.
const NONCE_USED: &str = "the authorization's nonce was used or cancelled on the chain";

/// What the ledger has to do with an authorization that it does not have under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bond {
    /// Nothing.
    None,
    /// A session of ours gave it its nonce.
    Session,
    /// It was accepted once, and refused before it was sent.
    Payment(PaymentId),
}

/// A payment that is not under way, after a look at the chain.
#[derive(Debug)]
pub(super) enum Examined {
    /// It could be settled now.
    Good(Box<Checked>),
    /// Its money has moved, and this row says so.
    Moved(PaymentId),
}

/// What the chain says about an authorization that is refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Recognised {
    /// Its money has moved, and this row says so.
    Transferred(PaymentId),
    /// Its nonce is used for something that does not count here.
    Consumed,
    /// Its nonce is unused, as far as the node that was asked knows.
    Unused,
}

impl Facilitator {
    /// Checks a payment, and recognises it when its money has moved already: what the ledger knows is not refused before the chain was asked.
    pub(super) async fn examine(
        &self,
        site: &Site,
        candidate: &Candidate,
        bond: Bond,
    ) -> Result<Examined, Halt> {
        if bond == Bond::None && self.is_known_to_be_used(site, candidate) {
            candidate.is_allowed(&site.policy, site.chain_time(self.clock.now()))?;
            return Err(candidate
                .object(Fault::NonceUsed, NONCE_USED.to_owned())
                .into());
        }
        let refusal = match self.check(site, candidate.clone()).await {
            Ok(checked) => return Ok(Examined::Good(Box::new(checked))),
            Err(Halt::Refused(refusal)) => refusal,
            Err(halt) => return Err(halt),
        };
        let used = matches!(
            refusal.reason,
            Reason::ExactNonceUsed | Reason::Permit2InvalidNonce
        );
        // What was accepted once, or has a session, may have been submitted by somebody else whatever the objection is now: its money may
        // have moved before the authorization ended, or before the operator took its payee off the list.
        if !used && bond == Bond::None {
            return Err(refusal.into());
        }
        let look = self.used_nonces.look(candidate).await;
        let _look = look.ok_or(Outage::Busy)?;
        if bond == Bond::None && self.is_known_to_be_used(site, candidate) {
            return Err(refusal.into());
        }
        match self.recognise(site, candidate, bond).await? {
            Recognised::Transferred(id) => Ok(Examined::Moved(id)),
            Recognised::Unused if used => Err(Outage::NodeBehind(site.policy.network).into()),
            Recognised::Unused | Recognised::Consumed => Err(refusal.into()),
        }
    }

    /// Whether a look at the chain has lately shown that a candidate's nonce is used for nothing that counts here.
    fn is_known_to_be_used(&self, site: &Site, candidate: &Candidate) -> bool {
        let reorganisations = site.view.moved().reorganisations;
        self.used_nonces.holds(candidate, reorganisations)
    }

    /// Remembers that a candidate's nonce is used for nothing that counts here, by this transaction.
    async fn remember_used(
        &self,
        site: &Site,
        candidate: &Candidate,
        (by, reorganisations): (Option<B256>, u64),
    ) -> Result<(), Halt> {
        let receipt = match by {
            Some(by) => site.questions.receipt(by).await?,
            None => None,
        };
        let used = match receipt {
            None => UsedBy::NotFound,
            Some(receipt) if self.is_ours(site, receipt.from).await? => UsedBy::Ours,
            Some(_) => UsedBy::Foreign,
        };
        self.used_nonces.remember(candidate, used, reorganisations);
        Ok(())
    }

    async fn is_ours(&self, site: &Site, sender: Address) -> Result<bool, Halt> {
        let lane = LaneKey {
            network: site.policy.network,
            signer: sender,
        };
        Ok(self.ledger.is_signer(lane).await?)
    }

    async fn recognise(
        &self,
        site: &Site,
        candidate: &Candidate,
        bond: Bond,
    ) -> Result<Recognised, Halt> {
        if let Bond::Payment(id) = bond {
            let payment = self.ledger.standing(id).await?.payment;
            return self.recognise_refused(site, &payment).await;
        }
        // Before the look: a reorg meanwhile may undo what it sees.
        let reorganisations = site.view.moved().reorganisations;
        let (used, head) = self.look_up(site, candidate.signed()).await?;
        let (location, sender) = match used {
            AuthorizationUse::Transferred { location, sender } => (location, sender),
            AuthorizationUse::Consumed(by) => {
                self.remember_used(site, candidate, (by, reorganisations))
                    .await?;
                return Ok(Recognised::Consumed);
            }
            AuthorizationUse::Unused => return Ok(Recognised::Unused),
        };
        let confirmations = site.policy.confirmations;
        if bond == Bond::None && !self.is_ours(site, sender).await? {
            let memory = &self.used_nonces;
            memory.remember(candidate, UsedBy::Foreign, reorganisations);
            return Ok(Recognised::Consumed);
        }
        let moved = MovedBefore {
            id: PaymentId(Uuid::now_v7()),
            candidate,
            confirmations,
            location: &location,
            deep: location.is_deep(head, confirmations),
        };
        if !self.ledger.adopt(&moved).await? {
            let id = self.overtaken(candidate, None).await?;
            return Ok(Recognised::Transferred(id));
        }
        self.announce(site, moved.id, &location, sender);
        Ok(Recognised::Transferred(moved.id))
    }

    /// Looks whether somebody else has moved the money of a payment that was accepted once and refused. By what the ledger has of it: a
    /// metered payment may be presented with another charge than the one that moved.
    pub(super) async fn recognise_refused(
        &self,
        site: &Site,
        payment: &Payment,
    ) -> Result<Recognised, Halt> {
        let (used, head) = self.look_up(site, payment.signed()).await?;
        let (location, sender) = match used {
            AuthorizationUse::Transferred { location, sender } => (location, sender),
            AuthorizationUse::Consumed(Some(_)) => return Ok(Recognised::Consumed),
            // Used, and nobody shows by what: its money may have moved.
            AuthorizationUse::Consumed(None) => {
                return Err(Outage::NodeBehind(site.policy.network).into());
            }
            AuthorizationUse::Unused => return Ok(Recognised::Unused),
        };
        let confirmed = location.is_deep(head, payment.confirmations);
        let ledger = &self.ledger;
        ledger
            .settled_by_others(payment.id, &location, confirmed)
            .await?;
        self.announce(site, payment.id, &location, sender);
        Ok(Recognised::Transferred(payment.id))
    }

    /// What became of an authorization, and the height of the block by which that was said.
    async fn look_up(
        &self,
        site: &Site,
        signed: Signed<'_>,
    ) -> Result<(AuthorizationUse, u64), Halt> {
        let head = site.questions.newest().await?.number;
        let tokens = site.policy.tokens();
        let used = site
            .questions
            .authorization_use(signed, head, &tokens)
            .await?;
        Ok((used, site.rpc.confirmed_height(head)))
    }

    fn announce(&self, site: &Site, id: PaymentId, location: &Location, sender: Address) {
        tracing::info!(payment.id = %id, transaction = %location.transaction, %sender, "payment settled by a transaction that this ledger did not have");
        site.note_shallow();
        self.waiters.wake([id]);
    }
}
