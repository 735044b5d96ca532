//! Authorizations whose money had moved when they came to be looked at: somebody else submitted them, or this facilitator itself did and
//! its ledger lost the commit. The money is the payee's, so the payment counts, once, like any other.
//!
//! Not every used authorization counts: what another facilitator settled may have bought its resource there. Counted are payments that
//! this ledger accepted before, authorizations whose nonce is that of a session of ours, and transactions that came from a signer of ours.

use uuid::Uuid;

use crate::chain::RpcError;
use crate::chain::authorization::AuthorizationUse;
use crate::facilitator::{Checked, Facilitator, Halt};
use crate::ledger::{LaneKey, MovedBefore};
use crate::payment::{Candidate, Payment, PaymentId};
use crate::protocol::Reason;
use crate::settlement::Site;

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

impl Facilitator {
    /// Checks a payment, and recognises it when its money has moved already.
    pub(super) async fn examine(
        &self,
        site: &Site,
        candidate: &Candidate,
        bond: Bond,
    ) -> Result<Examined, Halt> {
        match self.check(site, candidate.clone()).await {
            Ok(checked) => Ok(Examined::Good(Box::new(checked))),
            Err(Halt::Refused(refusal))
                if matches!(
                    refusal.reason,
                    Reason::ExactNonceUsed | Reason::Permit2InvalidNonce
                ) =>
            {
                let moved = self.recognise(site, candidate, bond).await?;
                moved.map(Examined::Moved).ok_or(Halt::Refused(refusal))
            }
            Err(halt) => Err(halt),
        }
    }

    async fn recognise(
        &self,
        site: &Site,
        candidate: &Candidate,
        bond: Bond,
    ) -> Result<Option<PaymentId>, Halt> {
        let head = site.rpc.newest().await?;
        let known = match bond {
            Bond::Payment(id) => Some(self.ledger.standing(id).await?.payment),
            Bond::None | Bond::Session => None,
        };
        // A metered payment may be presented with another charge than the one that moved.
        let signed = known
            .as_ref()
            .map_or_else(|| candidate.signed(), Payment::signed);
        let used = site
            .rpc
            .authorization_use(signed, head.number, &site.policy.tokens())
            .await?;
        let (location, sender) = match used {
            AuthorizationUse::Transferred { location, sender } => (location, sender),
            AuthorizationUse::Consumed(_) => return Ok(None),
            // Another node has just said that it is used: this one is behind.
            AuthorizationUse::Unused => return Err(RpcError::Unreachable.into()),
        };
        let confirmations = site.policy.confirmations;
        let deep = location.is_deep(head.number, confirmations);
        let signer = LaneKey {
            network: site.policy.network,
            signer: sender,
        };
        let id = match bond {
            Bond::Payment(id) => {
                self.ledger.settled_by_others(id, &location, deep).await?;
                id
            }
            Bond::None if !self.ledger.is_signer(signer).await? => return Ok(None),
            Bond::None | Bond::Session => {
                let moved = MovedBefore {
                    id: PaymentId(Uuid::now_v7()),
                    candidate,
                    confirmations,
                    location: &location,
                    deep,
                };
                if !self.ledger.adopt(&moved).await? {
                    return self.overtaken(candidate, None).await.map(Some);
                }
                moved.id
            }
        };
        tracing::info!(payment.id = %id, transaction = %location.transaction, %sender, "the money of a payment had moved before it was presented");
        site.note_shallow();
        self.waiters.wake([id]);
        Ok(Some(id))
    }
}
