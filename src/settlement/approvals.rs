//! Approvals: transactions of payers' own that let Permit2 take their token, submitted before the payments that need them.
//!
//! Nothing here is remembered: at each step the chain says what is next. The allowance is there, then the payment goes to the lanes; the
//! payer lacks gas money, then a lane gives it, once and within limits; else the approval's bytes are sent, again and again. What was begun
//! by a process that died is found as a queued payment, and begins here anew.

use std::sync::Arc;
use std::time::Duration;

use alloy::primitives::U256;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::chain::Broadcast;
use crate::chain::RpcError;
use crate::chain::broadcast::{Rejection, broadcast};
use crate::ledger::{Funded, Funding};
use crate::payment::state::Exit;
use crate::payment::{Approval, Payment, PaymentId, Signed};
use crate::protocol::Reason;
use crate::settlement::supervisor::say_panicked;
use crate::settlement::{NotNow, Queue, Queued, Site};
use crate::telemetry::causes;

/// Approvals that are followed at once; beyond that payments wait in the ledger.
const FOLLOWED_MAX: usize = 64;
/// How long an approval is followed: longer than any caller waits.
const FOLLOWED_FOR: Duration = Duration::from_mins(1);
/// How often the chain is asked when no block comes.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Where payments wait for their payers' approvals, and lanes for orders to give gas money.
#[derive(Debug)]
pub struct Approvals {
    payments: Channel<Payment>,
    fundings: Channel<Funding>,
}

#[derive(Debug)]
struct Channel<T> {
    sender: mpsc::Sender<T>,
    receiver: Mutex<mpsc::Receiver<T>>,
}

impl<T> Channel<T> {
    fn new() -> Self {
        let (sender, receiver) = mpsc::channel(FOLLOWED_MAX);
        Self {
            sender,
            receiver: Mutex::new(receiver),
        }
    }

    /// Loses nothing when it is given up; never ends without a value, because the sender lives as long.
    async fn next(&self) -> T {
        match self.receiver.lock().await.recv().await {
            Some(value) => value,
            None => std::future::pending().await,
        }
    }
}

impl Default for Approvals {
    fn default() -> Self {
        Self {
            payments: Channel::new(),
            fundings: Channel::new(),
        }
    }
}

impl Approvals {
    /// Takes up a payment that waits for nothing but its payer's approval, and keeps it from the lanes meanwhile. Where there is no room
    /// it stays in the ledger, to be found again.
    pub fn take_up(&self, payment: Payment, queue: &Queue) {
        let id = payment.id;
        if queue.hold(id) && self.payments.sender.try_send(payment).is_err() {
            queue.release(id);
        }
    }

    /// The next payer to be given gas money.
    pub async fn next_funding(&self) -> Funding {
        self.fundings.next().await
    }
}

/// What keeps an approval from being mined, as far as that can be told before anything is spent on it.
///
/// # Errors
/// When it cannot be told now.
pub async fn approval_objection(
    site: &Site,
    signed: Signed<'_>,
) -> Result<Option<(Reason, String)>, NotNow> {
    let Some(approval) = signed.approval(site.policy.network) else {
        let why = "the signed approval cannot be read any more".to_owned();
        return Ok(Some((Reason::ApprovalParseFailed, why)));
    };
    if let Some(why) = outdated(site, signed, &approval).await? {
        return Ok(Some((Reason::ApprovalFailed, why)));
    }
    let base_fee = site
        .view
        .head()
        .and_then(|head| head.base_fee_wei)
        .unwrap_or(0);
    if approval.max_fee_wei < base_fee {
        let why = format!(
            "the approval offers {} wei for gas, blocks ask for {base_fee}",
            approval.max_fee_wei
        );
        return Ok(Some((Reason::ApprovalFailed, why)));
    }
    let call = (signed.asset, &approval.call);
    if !site
        .rpc
        .would_succeed(signed.terms.from, call, approval.gas_limit)
        .await?
    {
        let why = "the token reverts the approval, or its gas limit is too low".to_owned();
        return Ok(Some((Reason::ApprovalFailed, why)));
    }
    let Some(wei) = lacks(site, signed, &approval).await? else {
        return Ok(None);
    };
    let given = site
        .ledger
        .given(site.policy.network, signed.terms.from)
        .await?;
    let within = site
        .policy
        .approvals
        .is_some_and(|limits| given.allows(wei, limits));
    Ok((!within).then(|| {
        let why = format!("the payer lacks {wei} wei for its approval's gas, and this facilitator gives no more of that today");
        (Reason::ApprovalInsufficientGas, why)
    }))
}

/// Why an approval can never be mined, if that is so: it has its turn only while the payer's account is at its nonce.
async fn outdated(
    site: &Site,
    signed: Signed<'_>,
    approval: &Approval,
) -> Result<Option<String>, RpcError> {
    let next = site
        .rpc
        .transaction_count(signed.terms.from, "latest")
        .await?;
    let own = approval.account_nonce;
    Ok((next != own).then(|| {
        format!("the approval has the account nonce {own}, the payer's next one is {next}")
    }))
}

/// How much native money the payer lacks.
async fn lacks(
    site: &Site,
    signed: Signed<'_>,
    approval: &Approval,
) -> Result<Option<U256>, RpcError> {
    let balance = site.rpc.balance(signed.terms.from).await?;
    let lacking = approval.cost_wei().checked_sub(balance);
    Ok(lacking.filter(|wei| !wei.is_zero()))
}

/// The task that sees one network's approvals through.
#[derive(Debug)]
pub struct Approver {
    site: Arc<Site>,
}

/// What an approval waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waits {
    /// It was not looked at yet, or the chain or the ledger could not be asked.
    Answer,
    /// The payer is to be given gas money.
    GasMoney,
    /// It was sent, and no node has said anything telling.
    Reply,
    /// No node takes it; why.
    Node(&'static str),
    /// It was sent.
    Block,
}

impl Waits {
    /// What is said once it has waited for too long.
    fn too_long(self) -> String {
        let how = match self {
            Self::Answer => {
                "could not be followed: the chain or the ledger did not answer; it may or may not have been sent"
            }
            Self::GasMoney => "was not sent: the payer's gas money is not there yet",
            Self::Reply => "may have been sent: no node has given a telling reply",
            Self::Node(why) => {
                return format!(
                    "the approval was sent and no node takes it ({why}); present the payment again"
                );
            }
            Self::Block => "was sent and is in no block yet",
        };
        format!("the approval {how}; present the payment again")
    }
}

/// What comes next for an approval.
enum Next {
    /// Permit2 may take the token.
    Pay,
    /// It is on its way.
    Wait(Waits),
    /// It will never be mined.
    GiveUp(Reason, String),
}

impl Approver {
    /// For the approvals of `site`.
    pub const fn new(site: Arc<Site>) -> Self {
        Self { site }
    }

    /// Follows approvals until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut followed = JoinSet::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                Some(ended) = followed.join_next() => {
                    if let Err(error) = ended {
                        say_panicked("approval", error);
                    }
                }
                payment = self.site.approvals.payments.next(), if followed.len() < FOLLOWED_MAX => {
                    // Made before the task runs: one that dies before its first step lets go of it too.
                    let held = Held { site: Arc::clone(&self.site), payment: payment.id };
                    followed.spawn(follow(held, payment));
                }
            }
        }
    }
}

/// A payment that is kept from the lanes until this is gone.
struct Held {
    site: Arc<Site>,
    payment: PaymentId,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.site.queue.release(self.payment);
    }
}

async fn follow(held: Held, payment: Payment) {
    let site = &*Arc::clone(&held.site);
    let id = payment.id;
    let deadline = Instant::now() + FOLLOWED_FOR;
    let mut view = site.view.subscribe();
    let next = loop {
        let next = match step(site, &payment).await {
            Ok(next) => next,
            Err(error) => {
                tracing::warn!(payment.id = %id, error = causes(&error), "cannot follow an approval now; trying again");
                Next::Wait(Waits::Answer)
            }
        };
        let Next::Wait(waits) = next else {
            break next;
        };
        if Instant::now() >= deadline {
            break Next::GiveUp(Reason::ApprovalBroadcastFailed, waits.too_long());
        }
        let _ = tokio::time::timeout(LOOK_INTERVAL, view.changed()).await;
    };
    drop(held);
    match next {
        Next::Pay => {
            if let Some(place) = site.queue.reserve() {
                site.queue.enqueue(place, Queued::new(payment, None));
            }
        }
        Next::Wait(_) => {}
        Next::GiveUp(reason, message) => {
            tracing::info!(payment.id = %id, code = reason.code(), "an approval is given up");
            // Should the ledger fail, the payment is found there queued, and is judged anew.
            if let Err(error) = site.ledger.refuse(id, &Exit { reason, message }).await {
                tracing::warn!(payment.id = %id, error = causes(&error), "cannot refuse a payment");
            }
            site.waiters.wake([id]);
        }
    }
}

async fn step(site: &Site, payment: &Payment) -> Result<Next, NotNow> {
    let signed = payment.signed();
    let Some(approval) = signed.approval(site.policy.network) else {
        let why = "the signed approval cannot be read any more".to_owned();
        return Ok(Next::GiveUp(Reason::ApprovalParseFailed, why));
    };
    // In this order: where a block comes between the two, the allowance is the newer one.
    let outdated = outdated(site, signed, &approval).await?;
    let allowance = site.rpc.allowance(signed.asset, signed.terms.from).await?;
    if allowance >= signed.terms.value.atomic() {
        return Ok(Next::Pay);
    }
    if let Some(why) = outdated {
        return Ok(Next::GiveUp(Reason::ApprovalFailed, why));
    }
    if let Some(wei) = lacks(site, signed, &approval).await? {
        return fund(site, payment, wei).await;
    }
    Ok(
        match broadcast(&site.rpc, &approval.raw, approval.hash).await {
            Broadcast::Accepted => {
                site.look_now();
                Next::Wait(Waits::Block)
            }
            Broadcast::Unknown => {
                site.look_now();
                Next::Wait(Waits::Reply)
            }
            Broadcast::Rejected(Rejection::Underpriced) => {
                let why = "another transaction of the payer's holds the approval's account nonce"
                    .to_owned();
                Next::GiveUp(Reason::ApprovalBroadcastFailed, why)
            }
            Broadcast::Rejected(why) => Next::Wait(Waits::Node(why.text())),
        },
    )
}

/// Has the payer given what it lacks. Only once: a payer who spends it is left to pay for its own gas.
async fn fund(site: &Site, payment: &Payment, wei: U256) -> Result<Next, NotNow> {
    let payer = payment.authorization.from;
    // In this order: what a lane writes for this payment between the two must not count as given before.
    let given = site.ledger.given(site.policy.network, payer).await?;
    match site.ledger.funded(payment.id).await? {
        Funded::Sent => Ok(Next::Wait(Waits::GasMoney)),
        Funded::Failed => {
            let why = format!(
                "the payer lacks {wei} wei for its approval's gas, and did not get them: the transaction that was to give them reverted or was withdrawn"
            );
            Ok(Next::GiveUp(Reason::ApprovalInsufficientGas, why))
        }
        Funded::Mined => {
            let why =
                format!("the payer was given gas money for its approval and lacks {wei} wei again");
            Ok(Next::GiveUp(Reason::ApprovalInsufficientGas, why))
        }
        Funded::Never => {
            if !site
                .policy
                .approvals
                .is_some_and(|limits| given.allows(wei, limits))
            {
                let why = format!(
                    "the payer lacks {wei} wei for its approval's gas, and this facilitator gives no more of that today"
                );
                return Ok(Next::GiveUp(Reason::ApprovalInsufficientGas, why));
            }
            let funding = Funding {
                payment: payment.id,
                payer,
                wei,
            };
            // Asked for again at the next look, unless it is in the ledger by then.
            let _ = site.approvals.fundings.sender.try_send(funding);
            Ok(Next::Wait(Waits::GasMoney))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_approval_is_called_sent_only_if_it_was() {
        assert!(
            Waits::Block
                .too_long()
                .starts_with("the approval was sent and is in no block yet")
        );
        for waits in [Waits::Answer, Waits::GasMoney, Waits::Reply] {
            let said = waits.too_long();
            assert!(!said.contains("approval was sent"), "{said}");
        }
    }
}
