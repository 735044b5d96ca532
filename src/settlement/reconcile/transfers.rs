//! Follows transfers that payers send themselves, from their bytes or hash to the exact `Transfer` event in a canonical block.
//!
//! They use the payers' nonces, so no lane owns them. Every process follows all of them: each update is guarded by the row's state, and
//! broadcasting the same bytes twice is harmless.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::chain::broadcast::broadcast;
use crate::chain::transfer::plain_transfer_log;
use crate::chain::{Broadcast, Head, Receipt};
use crate::ledger::{OpenTransfer, TransferEnd, TransferOutcome};
use crate::payment::{Location, PaymentId, PaymentState};
use crate::protocol::{Reason, Rejection};
use crate::settlement::failpoint::{Step, reach};
use crate::settlement::served_network::OpenCount;
use crate::settlement::{DependencyError, Named, ServedNetwork};
use crate::telemetry::{causes, metrics};

/// Transfers read per query. The next query continues after them, so transfers that never appear do not block others.
const READ_MAX: usize = 200;
/// Transfers looked at together; each look costs an RPC call or two.
const LOOKS_MAX: usize = 20;
/// The pauses between two looks at a transfer while no new block comes: the first one, which doubles with each look, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(30));
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
    /// Looks in vain, and the height from which the next one is due.
    in_vain: u32,
    next_at: u64,
}

impl Followed {
    /// Whether to look at a transfer that can still pay for its session: at the next block while it is fresh, then 2, 4, 8, … blocks
    /// later, and after a time, because some chains make blocks for transactions alone, and lose some in reorgs.
    fn is_due(&self, height: u64) -> bool {
        let (first, longest) = PAUSE;
        let factor = 1_u32.checked_shl(self.in_vain).unwrap_or(u32::MAX);
        let pause = first.saturating_mul(factor).min(longest);
        let rested = self.checked_at.is_none_or(|at| at.elapsed() >= pause);
        height >= self.next_at || self.used_since.is_some() || rested
    }

    /// Records a look that did not find the transaction in a block.
    fn looked_in_vain(&mut self, height: u64) {
        let pause = 1_u64.checked_shl(self.in_vain).unwrap_or(u64::MAX);
        self.next_at = height.saturating_add(pause);
        self.in_vain = self.in_vain.saturating_add(1);
    }

    /// Whether to check a transfer of an expired session: the longer ago, the less often.
    fn is_due_late(&mut self, interval_max: Duration) -> bool {
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
            for followed in self.followed.values_mut() {
                (followed.in_vain, followed.next_at) = (0, 0);
            }
        }
        self.recheck_failed_until = self
            .recheck_failed_until
            .filter(|until| head.number < *until);
        let network = self.served.policy.network;
        let limit = i64::try_from(READ_MAX).unwrap_or(i64::MAX);
        let ledger = &self.served.ledger;
        let recheck_failed = self.recheck_failed_until.is_some();
        let (open, last) = ledger
            .open_transfers(network, recheck_failed, self.after, limit)
            .await?;
        let mut due = Vec::new();
        for transfer in &open {
            let followed = self.followed.entry(transfer.payment.id).or_default();
            followed.round = self.round;
            let late = head.time.unix_timestamp() > expiry(transfer);
            let open = matches!(transfer.payment.state, PaymentState::Inflight(_));
            self.in_time += usize::from(!late && open);
            let is_due = if late {
                followed.is_due_late(self.served.timing.late_transfer)
            } else {
                // A failed one was found in a block that a reorg has removed.
                !open || followed.is_due(head.number)
            };
            if is_due {
                due.push((transfer, *followed));
            }
        }
        let mut result = Ok(());
        for together in due.chunks_mut(LOOKS_MAX) {
            let served = &self.served;
            let looks = together.iter_mut().map(|(transfer, followed)| {
                followed.checked_at = Some(Instant::now());
                check_transfer(served, transfer, followed, &head)
            });
            result = join_all(looks).await.into_iter().fold(result, Result::and);
            let looked_at = together
                .iter()
                .map(|(transfer, followed)| (transfer.payment.id, *followed));
            self.followed.extend(looked_at);
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
        // Its confirmations come one block after the other.
        (followed.in_vain, followed.next_at) = (0, 0);
        return match outcome(served, transfer, &receipt, head).await? {
            Some(outcome) => record(served, transfer, &outcome).await,
            // A failure needs the same confirmations as success.
            None => Ok(()),
        };
    }
    followed.looked_in_vain(head.number);
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
            tracing::info!(transaction = %transfer.hash, payment = %transfer.payment.id, network = %served.policy.network, payer = %transfer.payment.terms.from, ?reply, "payer's transfer not accepted by any endpoint: the same bytes are sent again");
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
    let end = served.ledger.record_transfer(id, outcome).await?;
    reach(Step::ResultRecorded);
    let named = Named::of(&transfer.payment).in_transaction(Some(transfer.hash));
    match end {
        Some(TransferEnd::Settled) => served.note_step(named, metrics::Step::Settled),
        Some(TransferEnd::Failed(reason)) => {
            served.note_step(named, metrics::Step::Failed(reason.code()));
        }
        None => {}
    }
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
