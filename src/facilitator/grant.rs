//! A grant from its commit to its end: taken before success is answered, closed as answered or void. And the first right to one.

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
    /// Ends with a void grant; an answered one leaves nothing to have a right to.
    first_right: Option<FirstRight>,
}

/// The first right to a payment's grant, of the request that has the payment accepted. It stands in the payment's row while the request
/// waits. Dropped, it ends there, and the next in line may take the grant.
#[derive(Debug)]
pub(super) struct FirstRight {
    facilitator: Facilitator,
    payment: PaymentId,
    request: GrantRequest,
    state: Right,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Right {
    /// The statement that accepts the payment returned no result: the row may be there, or may come late.
    Uncertain,
    /// It stands in the row.
    Held,
    /// There is nothing to end.
    Over,
}

/// What is to be recorded: how a grant ends, or that the first right to one is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The answer was flushed to the socket.
    Answered,
    /// The connection broke before.
    BrokenOff,
    /// The statement that takes the grant returned no result: it may be committed, or may be committed later.
    Lost,
    /// The request has its answer, and no grant, or its connection has ended.
    FirstRight,
}

impl FirstRight {
    pub(super) const fn new(
        facilitator: Facilitator,
        payment: PaymentId,
        request: GrantRequest,
    ) -> Self {
        Self {
            facilitator,
            payment,
            request,
            state: Right::Uncertain,
        }
    }

    /// The row was committed.
    pub(super) fn accepted(mut self) -> Self {
        self.state = Right::Held;
        self
    }

    /// No row of this request was written.
    pub(super) fn not_accepted(mut self) {
        self.state = Right::Over;
    }
}

impl Drop for FirstRight {
    fn drop(&mut self) {
        if self.state != Right::Over {
            let uncertain = self.state == Right::Uncertain;
            let (facilitator, request) = (self.facilitator.clone(), self.request.clone());
            record_in_background(
                facilitator,
                self.payment,
                request,
                (End::FirstRight, uncertain),
            );
        }
    }
}

impl Grant {
    pub(super) fn new(facilitator: Facilitator, payment: PaymentId, request: GrantRequest) -> Self {
        Self {
            facilitator,
            payment,
            request,
            open: true,
            first_right: None,
        }
    }

    /// The request holds the first right of the payment as well.
    pub(super) fn with_first_right(mut self, first_right: Option<FirstRight>) -> Self {
        self.first_right = first_right;
        self
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
        if let Some(right) = self.first_right.take() {
            right.not_accepted();
        }
        self.end(End::Answered);
    }

    fn end(&mut self, end: End) {
        if !std::mem::replace(&mut self.open, false) {
            return;
        }
        let (facilitator, request) = (self.facilitator.clone(), self.request.clone());
        let may_come_late = end == End::Lost;
        record_in_background(facilitator, self.payment, request, (end, may_come_late));
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.end(End::BrokenOff);
    }
}

/// Records an end, and wakes those who wait for it. What a statement may still write late is ended once more.
fn record_in_background(
    facilitator: Facilitator,
    payment: PaymentId,
    request: GrantRequest,
    (end, may_come_late): (End, bool),
) {
    facilitator.tasks.clone().spawn(async move {
        record(&facilitator, payment, &request, end).await;
        facilitator.waiters.wake([payment]);
        if may_come_late {
            // A statement that reached the database late has ended by then.
            let stopping = facilitator.stopping.cancelled();
            drop(tokio::time::timeout(LATE, stopping).await);
            record(&facilitator, payment, &request, end).await;
            facilitator.waiters.wake([payment]);
        }
    });
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
            tracing::error!(%payment, answered = end == End::Answered, error = causes(&error), "grant not closed: the ledger does not record how its answer ended; retrying");
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
    let ledger = &facilitator.ledger;
    match end {
        End::Lost => return ledger.void_lost_grant(payment, request).await,
        End::FirstRight => return ledger.end_first_right(payment, request).await,
        End::Answered | End::BrokenOff => {}
    }
    let closing = Closing {
        payment,
        request_id: request.request_id.clone(),
        answered: end == End::Answered,
    };
    ledger.close_grant(closing).await
}
