//! How long a caller waits for a payment that has no transaction yet: not for a refill, and not for the operator.

use std::time::Duration;

use tokio::time::Instant;

use crate::facilitator::Facilitator;
use crate::payment::{Payment, PaymentState};
use crate::settlement::Site;
use crate::settlement::waiters::Waiting;

/// How often who waits for a transaction looks whether anything can be sent at all.
const ABLE_INTERVAL: Duration = Duration::from_secs(1);

impl Facilitator {
    /// Waits for a change of `payment`, or of one that was queued just now. `false`: the deadline came first, the service stops, or nothing
    /// can be sent any more while it is still queued.
    pub(super) async fn wait_to_be_sent(
        &self,
        site: &Site,
        payment: Option<&Payment>,
        waiting: &mut Waiting,
        deadline: Instant,
    ) -> bool {
        if payment.is_some_and(|payment| payment.state != PaymentState::Queued) {
            return self.wait(waiting, deadline).await;
        }
        let signer = payment.and_then(Payment::signer);
        loop {
            let soon = deadline.min(Instant::now() + ABLE_INTERVAL);
            if self.wait(waiting, soon).await {
                return true;
            }
            let over = Instant::now() >= deadline || self.stopping.is_cancelled();
            if over || site.can_send(signer).is_err() {
                return false;
            }
        }
    }
}
