//! How long a request waits for a payment that has no transaction yet: not for a refill of gas money, and not for the operator.

use std::time::Duration;

use tokio::time::Instant;

use crate::facilitator::{Facilitator, Unavailable};
use crate::ledger::LedgerError;
use crate::payment::{Payment, PaymentState};
use crate::settlement::ServedNetwork;
use crate::settlement::waiters::Waiting;

/// How often a request that waits checks whether anything can be sent at all, and whether the ledger answers.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// A ledger that has not answered for so long will not record an outcome in time: longer than one heartbeat without an answer takes.
const SILENCE_MAX: Duration = Duration::from_secs(10);

impl Facilitator {
    /// Waits for a change of `payment`, or (`None`) of one that was queued just now. `false`: the deadline passed first, the service stops,
    /// or the payment is still queued and nothing can be sent any more.
    ///
    /// # Errors
    /// When the ledger is silent: the outcome cannot be known, and callers have time limits of their own.
    pub(super) async fn wait_to_be_sent(
        &self,
        served: &ServedNetwork,
        payment: Option<&Payment>,
        waiting: &mut Waiting,
        deadline: Instant,
    ) -> Result<bool, Unavailable> {
        let queued = payment.is_none_or(|payment| payment.state == PaymentState::Queued);
        let signer = payment.and_then(Payment::signer);
        let mut silent = 0;
        loop {
            let soon = deadline.min(Instant::now() + CHECK_INTERVAL);
            if self.wait(waiting, soon).await {
                return Ok(true);
            }
            let over = Instant::now() >= deadline || self.stopping.is_cancelled();
            if over || (queued && served.can_send(signer).is_err()) {
                return Ok(false);
            }
            // Two checks in a row: after a machine has slept, the first one comes before the next heartbeat.
            let silence = self
                .ledger
                .silent_for()
                .filter(|silence| *silence > SILENCE_MAX);
            silent = silence.map_or(0, |_| silent + 1);
            if let (Some(silence), 2..) = (silence, silent) {
                let why = format!("the database has not answered for {} s", silence.as_secs());
                return Err(LedgerError::Unusable(why).into());
            }
        }
    }
}
