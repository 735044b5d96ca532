//! Who is told first that a payment succeeded. After its broadcast a payment's header is public, so its presenters are told in the order in
//! which they came, and the request that had it accepted goes before them all: in this process by its place in the line, in other processes
//! by its first right, which stands in the payment's row.

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::facilitator::gate::Call;
use crate::facilitator::grant::FirstRight;
use crate::facilitator::{Caller, Facilitator};
use crate::ledger::{Ledger, LedgerError};
use crate::payment::PaymentId;
use crate::protocol::session::SessionId;
use crate::settlement::waiters::{Arrival, Waiting};

/// A request to settle.
#[derive(Debug, Clone)]
pub(super) struct Presenter {
    pub(super) caller: Caller,
    pub(super) arrival: Arrival,
    /// When its wait is over.
    pub(super) deadline: Instant,
    /// Cancelled when its connection ends.
    pub(super) gone: CancellationToken,
}

/// The request that has a payment accepted.
#[derive(Debug, Clone, Copy)]
pub(super) enum Asker<'a> {
    /// A seller's, which waits for the outcome.
    Settle(&'a Presenter),
    /// A submission for this session, before a seller asks.
    Submit(&'a Caller, &'a SessionId),
}

impl<'a> Asker<'a> {
    pub(super) const fn call(self) -> (&'a Caller, Call) {
        match self {
            Self::Settle(presenter) => (&presenter.caller, Call::Settle),
            Self::Submit(caller, _) => (caller, Call::Submit),
        }
    }

    pub(super) const fn presenter(self) -> Option<&'a Presenter> {
        match self {
            Self::Settle(presenter) => Some(presenter),
            Self::Submit(..) => None,
        }
    }

    /// Makes the id of a submission's session necessary from now on: its broadcast makes the rest of the payload public.
    pub(super) async fn require_session_id(self, ledger: &Ledger) -> Result<(), LedgerError> {
        match self {
            Self::Settle(_) => Ok(()),
            Self::Submit(_, session) => ledger.need_session_id(session).await,
        }
    }
}

/// A request at its payment.
#[derive(Debug)]
pub(super) struct InLine {
    pub(super) id: PaymentId,
    pub(super) waiting: Waiting,
    /// It had the payment accepted.
    pub(super) first_right: Option<FirstRight>,
    /// The payment was queued by this request. Its row need not be read before it changes.
    pub(super) just_queued: bool,
}

impl InLine {
    /// The payment was not accepted for this request.
    pub(super) fn give_up_first_right(&mut self) {
        if let Some(right) = self.first_right.take() {
            right.not_accepted();
        }
    }

    /// The place is given up: its connection has ended, and no answer would arrive.
    pub(super) fn leave(&mut self) {
        self.waiting.leave_line();
        self.first_right = None;
    }
}

impl Facilitator {
    /// The place of a presenter behind those who came before. Without a presenter nobody is to be told.
    pub(super) fn line_up(&self, id: PaymentId, presenter: Option<&Presenter>) -> InLine {
        let waiting = match presenter {
            Some(presenter) => self.waiters.line_up(id, presenter.arrival),
            None => self.waiters.wait_for(id),
        };
        InLine {
            id,
            waiting,
            first_right: None,
            just_queued: false,
        }
    }

    /// The first place, of the request that is about to have the payment accepted. It is taken before others can see the row.
    pub(super) fn go_first(&self, id: PaymentId, presenter: Option<&Presenter>) -> InLine {
        let mut line = self.line_up(id, presenter);
        line.waiting.go_first();
        line.first_right = presenter
            .map(|presenter| FirstRight::new(self.clone(), id, presenter.caller.grant_request()));
        line
    }
}
