//! Follows the transfers that payers send themselves: from their bytes, or their hash, to the exact `Transfer` in a canonical block.
//!
//! They use the payer's nonces, so no lane owns them. Every process follows all of them: what it records is guarded by the row's state, and
//! sending the same bytes twice is harmless.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::chain::broadcast::broadcast;
use crate::chain::transfer::plain_transfer_log;
use crate::chain::{Broadcast, Head, Receipt};
use crate::ledger::{OpenTransfer, TransferOutcome};
use crate::payment::state::Exit;
use crate::payment::{Location, PaymentId, PaymentState};
use crate::protocol::Reason;
use crate::settlement::failpoint::{Step, reach};
use crate::settlement::site::OpenCount;
use crate::settlement::{NotNow, Site};
use crate::telemetry::causes;

/// Transfers that are looked at in one go; each costs a call or two. The next go begins behind them, so that many which never come keep
/// nobody waiting for ever.
const LOOK_MAX: usize = 200;
/// How often the ledger is asked for transfers that another process, or an earlier life of this one, wrote down.
const IDLE_INTERVAL: Duration = Duration::from_secs(3);
/// Bytes are sent again after this long without being mined.
const RESEND_AFTER: Duration = Duration::from_secs(4);
/// How seldom to look for a transfer whose session ended long ago: it does not count any more, and only shows up in the history.
const LATE_INTERVAL: Duration = Duration::from_secs(30);
/// Blocks after a reorganisation in which failures are looked at again.
const UNDONE_BLOCKS: u64 = 64;
/// How long a nonce may be used at depth without a receipt of ours: nodes show receipts later than account nonces.
const REPLACED_AFTER: Duration = Duration::from_secs(5);

/// The task that follows one network's transfers.
#[derive(Debug)]
pub struct Transfers {
    site: Arc<Site>,
    followed: HashMap<PaymentId, Followed>,
    /// Where the next look begins.
    behind: Option<PaymentId>,
    /// How many rounds were begun.
    round: u64,
    /// How many reorganisations were seen, and until which height failures are not proven any more.
    reorganisations: u64,
    undone_until: Option<u64>,
    /// Those that may still count: of the last whole round, and of this one so far.
    counted: OpenCount,
    timely: usize,
}

/// What is remembered of a transfer between two looks. Losing it costs a call, no more.
#[derive(Debug, Default, Clone, Copy)]
struct Followed {
    /// The round in which it was last seen.
    round: u64,
    sent_at: Option<Instant>,
    looked_at: Option<Instant>,
    late_since: Option<Instant>,
    used_since: Option<Instant>,
}

impl Followed {
    /// Whether to look for a transfer that comes too late to count: ever more seldom.
    fn is_due(&mut self) -> bool {
        let late_for = self.late_since.get_or_insert_with(Instant::now).elapsed();
        let rest = LATE_INTERVAL.min(late_for / 4);
        self.looked_at.is_none_or(|since| since.elapsed() >= rest)
    }
}

impl Transfers {
    /// A follower for `site`.
    pub fn new(site: Arc<Site>) -> Self {
        Self {
            counted: OpenCount::of(&site),
            site,
            followed: HashMap::new(),
            behind: None,
            round: 0,
            reorganisations: 0,
            undone_until: None,
            timely: 0,
        }
    }

    /// Follows until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut view = self.site.view.subscribe();
        let mut failing = false;
        loop {
            match self.look().await {
                Ok(()) => failing = false,
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(network = %self.site.policy.network, error = causes(&error), "cannot follow the payers' transfers; trying again");
                    }
                }
            }
            let any = !self.followed.is_empty();
            tokio::select! {
                () = stop.cancelled() => return,
                () = std::future::ready(()), if self.behind.is_some() && !failing => {}
                () = self.site.transfer_wanted() => {}
                changed = view.changed(), if any && !failing => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = tokio::time::sleep(IDLE_INTERVAL) => {}
            }
        }
    }

    /// One look at the next open transfers. One that cannot be looked at does not keep the others waiting.
    async fn look(&mut self) -> Result<(), NotNow> {
        let moved = self.site.view.moved();
        let Some(head) = moved.head else {
            return Ok(());
        };
        if std::mem::replace(&mut self.reorganisations, moved.reorganisations)
            != moved.reorganisations
        {
            self.undone_until = Some(head.number.saturating_add(UNDONE_BLOCKS));
        }
        self.undone_until = self.undone_until.filter(|until| head.number < *until);
        let network = self.site.policy.network;
        let limit = i64::try_from(LOOK_MAX).unwrap_or(i64::MAX);
        let ledger = &self.site.ledger;
        let undone = self.undone_until.is_some();
        let (open, last) = ledger
            .open_transfers(network, undone, self.behind, limit)
            .await?;
        let mut result = Ok(());
        for transfer in &open {
            let followed = self.followed.entry(transfer.payment.id).or_default();
            followed.round = self.round;
            let late = head.time.unix_timestamp() > expiry(transfer);
            let open = matches!(transfer.payment.state, PaymentState::Inflight(_));
            self.timely += usize::from(!late && open);
            if !late || followed.is_due() {
                followed.looked_at = Some(Instant::now());
                result = result.and(look_at(&self.site, transfer, followed, &head).await);
            }
        }
        self.behind = last;
        if self.behind.is_none() {
            self.end_round();
        }
        result
    }

    fn end_round(&mut self) {
        let round = self.round;
        self.followed.retain(|_, followed| followed.round == round);
        self.round += 1;
        // The watch hurries while anything is open.
        let timely = std::mem::take(&mut self.timely);
        self.counted.set(timely);
    }
}

async fn look_at(
    site: &Site,
    transfer: &OpenTransfer,
    followed: &mut Followed,
    head: &Head,
) -> Result<(), NotNow> {
    if let Some(receipt) = site.rpc.receipt(transfer.hash).await? {
        reach(Step::Mined);
        return match outcome(site, transfer, &receipt, head).await? {
            Some(outcome) => record(site, transfer, &outcome).await,
            // A failure is told at the depth at which success would be.
            None => Ok(()),
        };
    }
    if is_replaced(site, transfer, followed, head).await {
        let message = format!(
            "another transaction has used the payer's nonce {}; this one can never be mined",
            transfer.account_nonce
        );
        let exit = Exit {
            reason: Reason::TransferNotFound,
            message,
        };
        return record(site, transfer, &TransferOutcome::Failed(exit)).await;
    }
    let due = followed
        .sent_at
        .is_none_or(|since| since.elapsed() >= RESEND_AFTER);
    if let Some(raw) = transfer.raw.as_ref().filter(|_| due) {
        followed.sent_at = Some(Instant::now());
        let reply = broadcast(&site.rpc, raw, transfer.hash).await;
        reach(Step::Broadcast);
        if reply != Broadcast::Accepted {
            tracing::info!(payment.id = %transfer.payment.id, ?reply, "a payer's transfer was not taken; the same bytes will be sent again");
        }
        site.look_now();
    }
    Ok(())
}

/// Whether the payer's nonce is used by another transaction, as deep as success would have to be. What cannot be asked is not.
async fn is_replaced(
    site: &Site,
    transfer: &OpenTransfer,
    followed: &mut Followed,
    head: &Head,
) -> bool {
    let depth = u64::from(transfer.payment.confirmations).saturating_sub(1);
    let payer = transfer.payment.authorization.from;
    let at = site.rpc.confirmed_height(head.number).saturating_sub(depth);
    let used = site.rpc.transaction_count_at(payer, at).await;
    if !used.is_ok_and(|count| count > transfer.account_nonce) {
        followed.used_since = None;
        return false;
    }
    let since = *followed.used_since.get_or_insert_with(Instant::now);
    since.elapsed() >= REPLACED_AFTER
}

/// What a transfer in a block came to; `None` while that is too early to say.
async fn outcome(
    site: &Site,
    transfer: &OpenTransfer,
    receipt: &Receipt,
    head: &Head,
) -> Result<Option<TransferOutcome>, NotNow> {
    let block_number: u64 = receipt.block_number.to();
    let depth = (site.rpc.confirmed_height(head.number) + 1).saturating_sub(block_number);
    let deep = depth >= u64::from(transfer.payment.confirmations);
    let fail = |reason, message: &str| {
        Ok(deep.then(|| {
            TransferOutcome::Failed(Exit {
                reason,
                message: message.to_owned(),
            })
        }))
    };
    let log = plain_transfer_log(&transfer.payment, &receipt.logs);
    let Some(log_index) = log.filter(|_| receipt.succeeded()) else {
        return fail(
            Reason::SessionTransferMismatch,
            "the transaction was mined without moving exactly this amount to the payee",
        );
    };
    if block_number < transfer.accept_from_block {
        return fail(
            Reason::TransferTooOld,
            "the transfer was mined before the session was opened",
        );
    }
    let block_time = site.rpc.block_time(receipt.block_hash, head).await?;
    let late = block_time.unix_timestamp() > expiry(transfer);
    let location = Location {
        transaction: transfer.hash,
        log_index,
        block_number,
        block_hash: receipt.block_hash,
        block_time,
    };
    Ok(Some(TransferOutcome::Moved {
        deep,
        location,
        unmatched: late.then(|| {
            "the transfer was mined after the session had expired; ask the payee to send it back".to_owned()
        }),
    }))
}

async fn record(
    site: &Site,
    transfer: &OpenTransfer,
    outcome: &TransferOutcome,
) -> Result<(), NotNow> {
    let id = transfer.payment.id;
    site.ledger.record_transfer(id, outcome).await?;
    reach(Step::Settled);
    if matches!(outcome, TransferOutcome::Moved { deep: false, .. }) {
        site.note_shallow();
    }
    site.waiters.wake([id]);
    Ok(())
}

fn expiry(transfer: &OpenTransfer) -> i64 {
    i64::try_from(transfer.payment.authorization.valid_before.atomic()).unwrap_or(i64::MAX)
}
