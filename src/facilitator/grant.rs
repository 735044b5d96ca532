//! A grant from its commit to its end: taken before success is answered, closed as answered or void.

use std::time::Duration;

use crate::facilitator::Facilitator;
use crate::ledger::{Closing, GrantRequest, LedgerError};
use crate::payment::PaymentId;
use crate::telemetry::causes;

/// Failures in a row before they are logged, and tries that a stopping process still makes.
const TRIES: u32 = 5;
/// The pause between two tries: the first one, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));

/// Longer than the database lets the statement run that takes a grant.
const LATE: Duration = Duration::from_secs(10);

/// A committed grant whose answer is being written. Dropped without [`Grant::answered`], it is void, and the next caller may take it.
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
    /// The connection broke before.
    BrokenOff,
    /// The statement that takes the grant returned no result: it may be committed, or may be committed later.
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

    /// It is not known whether the grant was committed. It is voided in any case.
    pub(super) fn lost(mut self) {
        self.end(End::Lost);
    }

    /// Another request has the grant.
    pub(super) fn not_taken(mut self) {
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
            record(&facilitator, payment, &request, end).await;
            facilitator.waiters.wake([payment]);
            if end == End::Lost {
                // A statement that reached the database late has ended by then.
                let stopping = facilitator.stopping.cancelled();
                drop(tokio::time::timeout(LATE, stopping).await);
                record(&facilitator, payment, &request, end).await;
                facilitator.waiters.wake([payment]);
            }
        });
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.end(End::BrokenOff);
    }
}

/// Records how a grant ended. While the grant is open no other request is answered, and it stays open as long as this process lives: so
/// this is tried until it succeeds or the process ends; after that the grant is void.
async fn record(facilitator: &Facilitator, payment: PaymentId, request: &GrantRequest, end: End) {
    let (mut pause, longest) = PAUSES;
    let (mut failures, mut last_tries) = (0_u32, TRIES);
    loop {
        let Err(error) = record_once(facilitator, payment, request, end).await else {
            return;
        };
        failures = failures.saturating_add(1);
        if failures == TRIES {
            tracing::error!(payment.id = %payment, answered = end == End::Answered, error = causes(&error), "grant not closed: the ledger does not record how its answer ended; retrying");
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
