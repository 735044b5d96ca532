//! The life of a success answer: taken before it is given, then answered or void.

use crate::facilitator::Facilitator;
use crate::payment::PaymentId;

/// A committed grant whose answer is on its way. Dropped without [`Grant::answered`], it is void and the next presenter gets it.
#[derive(Debug)]
pub struct Grant {
    facilitator: Facilitator,
    payment: PaymentId,
    request_id: String,
    open: bool,
}

impl Grant {
    pub(super) fn new(facilitator: Facilitator, payment: PaymentId, request_id: String) -> Self {
        Self {
            facilitator,
            payment,
            request_id,
            open: true,
        }
    }

    /// The answer was flushed to the socket without error.
    pub fn answered(mut self) {
        self.close(true);
    }

    fn close(&mut self, answered: bool) {
        if !std::mem::replace(&mut self.open, false) {
            return;
        }
        let (facilitator, payment) = (self.facilitator.clone(), self.payment);
        let request_id = std::mem::take(&mut self.request_id);
        self.facilitator.tasks.spawn(async move {
            if let Err(error) = facilitator.ledger.close_grant(payment, &request_id, answered).await {
                // The grant stays undecided until this process ends; then it is void, and the buyer gets their resource.
                tracing::error!(payment.id = %payment, answered, error = &error as &dyn std::error::Error, "cannot record what became of an answer");
            }
            facilitator.waiters.wake([payment]);
        });
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.close(false);
    }
}
