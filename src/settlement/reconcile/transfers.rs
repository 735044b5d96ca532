//! Follows transfers that payers send themselves, from their bytes or hash to the exact `Transfer` event in a canonical block.
//!
//! They use the payers' nonces, so no lane owns them. Every process follows all of them: each update is guarded by the row's state, and
//! broadcasting the same bytes twice is harmless.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::chain::broadcast::broadcast;
use crate::chain::transfer::plain_transfer_log;
use crate::chain::{Broadcast, Head, Receipt};
use crate::ledger::{OpenTransfer, TransferOutcome};
use crate::payment::{Location, PaymentId, PaymentState};
use crate::protocol::{Reason, Rejection};
use crate::settlement::failpoint::{Step, reach};
use crate::settlement::served_network::OpenCount;
use crate::settlement::{DependencyError, ServedNetwork};
use crate::telemetry::causes;

/// Transfers checked per query; each costs an RPC call or two. The next query continues after them, so transfers that never appear do not
/// block others.
const CHECKED_MAX: usize = 200;
/// Blocks after a reorg during which failed transfers are checked again.
const RECHECK_BLOCKS: u64 = 64;

#[derive(Debug)]
pub struct Transfers {
    served: Arc<ServedNetwork>,
    followed: HashMap<PaymentId, Followed>,
    /// Where the next query starts.
    after: Option<PaymentId>,
    /// Number of the current round over all open transfers.
    round: u64,
    /// Reorgs seen, and the height until which failures are checked again after one.
    reorganisations: u64,
    recheck_failed_until: Option<u64>,
    /// Transfers that can still pay for their session: counted in the last whole round, and in this one so far.
    open_count: OpenCount,
    in_time: usize,
}

/// Memory of a transfer between two checks. Losing it costs an RPC call, no more.
#[derive(Debug, Default, Clone, Copy)]
struct Followed {
    /// The round in which it was last checked.
    round: u64,
    sent_at: Option<Instant>,
    checked_at: Option<Instant>,
    late_since: Option<Instant>,
    used_since: Option<Instant>,
}

impl Followed {
    /// Whether to check a transfer of an expired session: the longer ago, the less often.
    fn is_due(&mut self, interval_max: Duration) -> bool {
        let late_for = self.late_since.get_or_insert_with(Instant::now).elapsed();
        let interval = interval_max.min(late_for / 4);
        self.checked_at
            .is_none_or(|since| since.elapsed() >= interval)
    }
}

impl Transfers {
    pub fn new(served: Arc<ServedNetwork>) -> Self {
        Self {
            open_count: OpenCount::of(&served),
            served,
            followed: HashMap::new(),
            after: None,
            round: 0,
            reorganisations: 0,
            recheck_failed_until: None,
            in_time: 0,
        }
    }

    /// Follows transfers until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut view = self.served.view.subscribe();
        let mut failing = false;
        loop {
            match self.check_open().await {
                Ok(()) => failing = false,
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(
                            error = causes(&error),
                            "payers' transfers not checked: retrying"
                        );
                    }
                }
            }
            let any = !self.followed.is_empty();
            tokio::select! {
                () = stop.cancelled() => return,
                () = std::future::ready(()), if self.after.is_some() && !failing => {}
                () = self.served.transfers_woken() => {}
                changed = view.changed(), if any && !failing => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = tokio::time::sleep(self.served.timing.reconcile) => {}
            }
        }
    }

    /// Checks the next open transfers. An error of one does not stop the others.
    async fn check_open(&mut self) -> Result<(), DependencyError> {
        let tick = self.served.view.latest();
        let Some(head) = tick.head else {
            return Ok(());
        };
        if std::mem::replace(&mut self.reorganisations, tick.reorganisations)
            != tick.reorganisations
        {
            self.recheck_failed_until = Some(head.number.saturating_add(RECHECK_BLOCKS));
        }
        self.recheck_failed_until = self
            .recheck_failed_until
            .filter(|until| head.number < *until);
        let network = self.served.policy.network;
        let limit = i64::try_from(CHECKED_MAX).unwrap_or(i64::MAX);
        let ledger = &self.served.ledger;
        let recheck_failed = self.recheck_failed_until.is_some();
        let (open, last) = ledger
            .open_transfers(network, recheck_failed, self.after, limit)
            .await?;
        let mut result = Ok(());
        for transfer in &open {
            let followed = self.followed.entry(transfer.payment.id).or_default();
            followed.round = self.round;
            let late = head.time.unix_timestamp() > expiry(transfer);
            let open = matches!(transfer.payment.state, PaymentState::Inflight(_));
            self.in_time += usize::from(!late && open);
            if !late || followed.is_due(self.served.timing.late_transfer) {
                followed.checked_at = Some(Instant::now());
                result = result.and(check_transfer(&self.served, transfer, followed, &head).await);
            }
        }
        self.after = last;
        if self.after.is_none() {
            self.end_round();
        }
        result
    }

    fn end_round(&mut self) {
        let round = self.round;
        self.followed.retain(|_, followed| followed.round == round);
        self.round += 1;
        // The watch uses its short interval while any is open.
        let in_time = std::mem::take(&mut self.in_time);
        self.open_count.set(in_time);
    }
}

async fn check_transfer(
    served: &ServedNetwork,
    transfer: &OpenTransfer,
    followed: &mut Followed,
    head: &Head,
) -> Result<(), DependencyError> {
    if let Some(receipt) = served.rpc.receipt(transfer.hash).await? {
        reach(Step::Mined);
        return match outcome(served, transfer, &receipt, head).await? {
            Some(outcome) => record(served, transfer, &outcome).await,
            // A failure needs the same confirmations as success.
            None => Ok(()),
        };
    }
    if is_replaced(served, transfer, followed, head).await {
        let message = format!(
            "another transaction has used the payer's nonce {}; this transfer can never be mined",
            transfer.account_nonce
        );
        let rejection = Rejection {
            reason: Reason::TransferNotFound,
            message,
        };
        return record(served, transfer, &TransferOutcome::Failed(rejection)).await;
    }
    let due = followed
        .sent_at
        .is_none_or(|since| since.elapsed() >= served.timing.resend_after);
    if let Some(raw) = transfer.raw.as_ref().filter(|_| due) {
        followed.sent_at = Some(Instant::now());
        let reply = broadcast(&served.rpc, raw, transfer.hash).await;
        reach(Step::Broadcast);
        if reply != Broadcast::Accepted {
            tracing::info!(transaction = %transfer.hash, payment.id = %transfer.payment.id, ?reply, "payer's transfer not accepted by any endpoint: the same bytes are sent again");
        }
        served.wake_watch();
    }
    Ok(())
}

/// Whether another transaction has used the payer's nonce, with the promised confirmations. `false` when this cannot be determined.
async fn is_replaced(
    served: &ServedNetwork,
    transfer: &OpenTransfer,
    followed: &mut Followed,
    head: &Head,
) -> bool {
    let below_head = u64::from(transfer.payment.confirmations).saturating_sub(1);
    let payer = transfer.payment.terms.from;
    let at = served
        .rpc
        .agreed_height(head.number)
        .saturating_sub(below_head);
    let used = served.rpc.transaction_count_at(payer, at).await;
    if !used.is_ok_and(|count| count > transfer.account_nonce) {
        followed.used_since = None;
        return false;
    }
    let since = *followed.used_since.get_or_insert_with(Instant::now);
    since.elapsed() >= served.timing.replaced_after
}

/// The outcome of a mined transfer; `None` while it has too few confirmations for that.
async fn outcome(
    served: &ServedNetwork,
    transfer: &OpenTransfer,
    receipt: &Receipt,
    head: &Head,
) -> Result<Option<TransferOutcome>, DependencyError> {
    let block_number: u64 = receipt.block_number.to();
    let confirmations = (served.rpc.agreed_height(head.number) + 1).saturating_sub(block_number);
    let confirmed = confirmations >= u64::from(transfer.payment.confirmations);
    let fail = |reason, message: &str| {
        Ok(confirmed.then(|| {
            TransferOutcome::Failed(Rejection {
                reason,
                message: message.to_owned(),
            })
        }))
    };
    let log = plain_transfer_log(&transfer.payment, &receipt.logs);
    let Some(log_index) = log.filter(|_| receipt.succeeded()) else {
        return fail(
            Reason::SessionTransferMismatch,
            "the transaction was mined without transferring exactly this amount to the payee",
        );
    };
    if block_number < transfer.accept_from_block {
        return fail(
            Reason::TransferTooOld,
            "the transfer was mined before the session was opened",
        );
    }
    let block_time = served.rpc.block_time(receipt.block_hash, head).await?;
    let late = block_time.unix_timestamp() > expiry(transfer);
    let location = Location {
        transaction: transfer.hash,
        log_index,
        block_number,
        block_hash: receipt.block_hash,
        block_time,
    };
    Ok(Some(TransferOutcome::Transferred {
        confirmed,
        location,
        unmatched: late.then(|| {
            "the transfer was mined after the session had expired; ask the payee to send it back".to_owned()
        }),
    }))
}

async fn record(
    served: &ServedNetwork,
    transfer: &OpenTransfer,
    outcome: &TransferOutcome,
) -> Result<(), DependencyError> {
    let id = transfer.payment.id;
    served.ledger.record_transfer(id, outcome).await?;
    reach(Step::ResultRecorded);
    if matches!(
        outcome,
        TransferOutcome::Transferred {
            confirmed: false,
            ..
        }
    ) {
        served.note_unconfirmed();
    }
    served.waiters.wake([id]);
    Ok(())
}

fn expiry(transfer: &OpenTransfer) -> i64 {
    transfer.payment.terms.valid_before.timestamp()
}
