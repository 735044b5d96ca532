//! Whether anything can be sent on a network now.

use std::time::Duration;

use alloy::primitives::Address;

use crate::settlement::Site;

/// No signer can send a new transaction now. What was sent before goes on, and payments that are known are still answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct CannotSend {
    /// Which network or signer, what is missing, and how much of it.
    pub why: String,
    /// When to ask again.
    pub retry_after: Duration,
}

impl Site {
    /// Whether a new payment can be sent: by `signer`, where the payment names one, or by any.
    ///
    /// # Errors
    /// [`CannotSend`] says what is missing.
    pub fn can_send(&self, _signer: Option<Address>) -> Result<(), CannotSend> {
        self.blocks_are_affordable()
    }
}
