//! The life of a success answer: its grant is taken before it is given, and ends answered or void.

use std::time::Duration;

use crate::facilitator::Facilitator;
use crate::ledger::{Closing, GrantRequest, LedgerError};
use crate::payment::PaymentId;
use crate::telemetry::causes;

/// So many failures in a row are reported, and so often a stopping process still tries.
const TRIES: u32 = 5;
/// How long to wait between: at first, and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));

/// A committed grant whose answer is on its way. Dropped without [`Grant::answered`], it is void and the next presenter gets it.
#[derive(Debug)]
pub struct Grant {
    facilitator: Facilitator,
    payment: PaymentId,
    request: GrantRequest,
    open: bool,
}

/// How a grant ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The answer was flushed to the socket.
    Answered,
    /// The connection broke first.
    BrokenOff,
    /// The statement that takes it got no answer: it may be committed, or may yet be.
    Lost,
}

impl Grant {
    pub(super) fn new(facilitator: Facilitator, payment: PaymentId, request: GrantRequest) -> Self {
        Self {
            facilitator,
            payment,
            request,
            open: true,
        }
    }

    /// Whether it was committed is not known. It is void in any case.
    pub(super) fn lost(mut self) {
        self.end(End::Lost);
    }

    /// Another request has it.
    pub(super) fn was_not_taken(mut self) {
        self.open = false;
    }

    /// The answer was flushed to the socket without error.
    pub fn answered(mut self) {
        self.end(End::Answered);
    }

    fn end(&mut self, end: End) {
        if !std::mem::replace(&mut self.open, false) {
            return;
        }
        let (facilitator, payment) = (self.facilitator.clone(), self.payment);
        let request = self.request.clone();
        self.facilitator.tasks.spawn(async move {
            record(&facilitator, payment, request, end).await;
            facilitator.waiters.wake([payment]);
        });
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.end(End::BrokenOff);
    }
}

/// Records how a grant ended. As long as it is open no other request is told of the payment, and this process, which lives, keeps it open: so
/// it is tried until it succeeds, or until the process ends, after which the grant is void.
async fn record(facilitator: &Facilitator, payment: PaymentId, request: GrantRequest, end: End) {
    let (mut pause, longest) = PAUSES;
    let (mut failures, mut last_tries) = (0_u32, TRIES);
    loop {
        let Err(error) = record_once(facilitator, payment, &request, end).await else {
            return;
        };
        failures = failures.saturating_add(1);
        if failures == TRIES {
            tracing::error!(payment.id = %payment, answered = end == End::Answered, error = causes(&error), "cannot record what became of an answer; trying on");
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

async fn record_once(
    facilitator: &Facilitator,
    payment: PaymentId,
    request: &GrantRequest,
    end: End,
) -> Result<(), LedgerError> {
    if end == End::Lost {
        return facilitator.ledger.void_lost_grant(payment, request).await;
    }
    let closing = Closing {
        payment,
        request_id: request.request_id.clone(),
        answered: end == End::Answered,
    };
    facilitator.ledger.close_grant(closing).await
}
