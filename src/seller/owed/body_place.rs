//! The one long body of a payment that is held at a time.

use alloy::primitives::B256;

use super::{ClaimError, Purchases};
use crate::seller::identity::PaymentIdentity;

/// A long body of this payment is held; dropping it makes room for another.
#[derive(Debug)]
pub(in crate::seller) struct BodyPlace {
    purchases: Purchases,
    payment: B256,
}

impl Purchases {
    /// The place for a long body of a payment. It is not the claim: anybody can read from the chain what identifies a payment, and who
    /// sends a long body slowly must not keep its buyer from presenting it with a short one. Bodies of payments that were not verified have
    /// no places, because anybody can invent such payments; they share a room of their own.
    ///
    /// # Errors
    /// [`ClaimError::AlreadyClaimed`] while the payment is being served, [`ClaimError::BodyHeld`] while another body of it is held.
    pub(in crate::seller) fn place_for_body(
        &self,
        payment: PaymentIdentity,
    ) -> Result<BodyPlace, ClaimError> {
        let mut state = self.state();
        if state.claimed.contains(&payment.key) {
            return Err(ClaimError::AlreadyClaimed);
        }
        if !state.with_body.insert(payment.key) {
            return Err(ClaimError::BodyHeld);
        }
        drop(state);
        Ok(BodyPlace {
            purchases: self.clone(),
            payment: payment.key,
        })
    }
}

impl Drop for BodyPlace {
    fn drop(&mut self) {
        self.purchases.state().with_body.remove(&self.payment);
    }
}
