//! The life of a success answer: taken before it is given, then answered or void.

use std::time::Duration;

use crate::facilitator::Facilitator;
use crate::ledger::Closing;
use crate::payment::PaymentId;
use crate::telemetry::causes;

/// So many failures in a row are reported, and so often a stopping process still tries.
const TRIES: u32 = 5;
/// How long to wait between: at first, and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));
/// Longer than the database lets the statement run that takes a grant.
const COMMITTED_BY: Duration = Duration::from_secs(10);

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

    /// Whether it was committed is not known. It is void in any case, also if that happens later than this is said.
    pub(super) fn lost(mut self) {
        self.open = false;
        let facilitator = self.facilitator.clone();
        let again = Self::new(facilitator.clone(), self.payment, self.request_id.clone());
        let first = Self::new(
            facilitator.clone(),
            self.payment,
            std::mem::take(&mut self.request_id),
        );
        drop(first);
        self.facilitator.tasks.spawn(async move {
            let stopping = facilitator.stopping.cancelled();
            drop(tokio::time::timeout(COMMITTED_BY, stopping).await);
            drop(again);
        });
    }

    /// Somebody else has it.
    pub(super) fn was_not_taken(mut self) {
        self.open = false;
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
        let closing = Closing {
            payment,
            request_id: std::mem::take(&mut self.request_id),
            answered,
        };
        self.facilitator.tasks.spawn(async move {
            record(&facilitator, closing).await;
            facilitator.waiters.wake([payment]);
        });
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.close(false);
    }
}

/// Records what became of an answer. As long as that is open nobody else is told of the payment, and this process, which lives, keeps it open:
/// so it is tried until it succeeds, or until the process ends, after which the grant is void.
async fn record(facilitator: &Facilitator, closing: Closing) {
    let (mut pause, longest) = PAUSES;
    let (mut failures, mut last_tries) = (0_u32, TRIES);
    loop {
        let Err(error) = facilitator.ledger.close_grant(closing.clone()).await else {
            return;
        };
        failures = failures.saturating_add(1);
        if failures == TRIES {
            tracing::error!(payment.id = %closing.payment, closing.answered, error = causes(&error), "cannot record what became of an answer; trying on");
        }
        if facilitator.stopping.is_cancelled() {
            last_tries -= 1;
            if last_tries == 0 {
                return;
            }
            tokio::time::sleep(PAUSES.0).await;
            continue;
        }
        let stopping = facilitator.stopping.cancelled();
        drop(tokio::time::timeout(pause, stopping).await);
        pause = (pause * 2).min(longest);
    }
}
