//! ERC-20 approvals: the payers' own transactions that let Permit2 take their token, mined before the payments that need them.
//!
//! No progress is stored; each step reads the chain. If the allowance is there, the payment goes to the lanes. If the payer lacks gas
//! money, a lane sends it, once and within limits. Otherwise the approval's bytes are broadcast again. After a crash the payment is found
//! queued in the ledger and starts here again.

use std::sync::Arc;
use std::time::Duration;

use alloy::primitives::{Address, U256};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::chain::Broadcast;
use crate::chain::RpcError;
use crate::chain::broadcast::{BroadcastRejection, broadcast};
use crate::ledger::{Funding, FundingState};
use crate::payment::{Approval, Payment, PaymentId, PaymentTerms};
use crate::protocol::{Reason, Rejection};
use crate::settlement::supervisor::report_panic;
use crate::settlement::turns::{Turn, Turns};
use crate::settlement::{DependencyError, Named, Queue, Queued, ServedNetwork};
use crate::telemetry::causes;

/// Approvals that are followed at once; further payments wait in the ledger.
const FOLLOWED_MAX: usize = 64;
/// Of one payer, whatever the token: its approval, and one with a higher fee that replaces it. Once either is mined, its other payments with
/// that token need none.
const FOLLOWED_MAX_PER_PAYER: usize = 2;
/// How long an approval is followed; no caller waits longer.
const FOLLOW_LIMIT: Duration = Duration::from_mins(1);
/// How often the chain is read when no block comes.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Payments that wait for their payers' approvals, and requests to the lanes for gas money.
#[derive(Debug)]
pub struct Approvals {
    payments: Channel<Following>,
    fundings: Channel<Funding>,
    turns: Turns,
}

/// A payment whose approval is followed, or is about to be.
#[derive(Debug)]
struct Following {
    payment: Payment,
    _turn: Turn,
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

    /// Cancel-safe. Always returns a value, because the sender lives as long as the receiver.
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
            turns: Turns::new(FOLLOWED_MAX_PER_PAYER),
        }
    }
}

impl Approvals {
    /// A turn for a payment of this payer, which [`Self::enqueue`] takes. `None` while as many of its payments are followed as allowed.
    pub fn turn_of(&self, payer: Address) -> Option<Turn> {
        self.turns.of(payer)
    }

    /// Follows the approval of a payment that lacks nothing else, and keeps the payment from the lanes meanwhile. Without room it stays in
    /// the ledger, where the pickup task finds it again.
    pub fn enqueue(&self, payment: Payment, turn: Turn, queue: &Queue) {
        let id = payment.id;
        let following = Following {
            payment,
            _turn: turn,
        };
        if queue.put_on_hold(id) && self.payments.sender.try_send(following).is_err() {
            queue.take_off_hold(id);
        }
    }

    /// The next payer that needs gas money.
    pub async fn next_funding(&self) -> Funding {
        self.fundings.next().await
    }
}

/// Why an approval cannot be mined, checked before anything is spent on it; `None` when nothing speaks against it. Fails when the chain or
/// the ledger does not answer.
pub async fn approval_rejection(
    served: &ServedNetwork,
    terms: &PaymentTerms,
) -> Result<Option<Rejection>, DependencyError> {
    let Some(approval) = terms.approval() else {
        let why = "the signed approval cannot be decoded".to_owned();
        return Ok(Some(Rejection::new(Reason::ApprovalParseFailed, why)));
    };
    if let Some(why) = outdated(served, terms, &approval).await? {
        return Ok(Some(Rejection::new(Reason::ApprovalFailed, why)));
    }
    let base_fee = served
        .view
        .head()
        .and_then(|head| head.base_fee_wei)
        .unwrap_or(0);
    if approval.max_fee_wei < base_fee {
        let why = format!(
            "the approval offers {} wei per gas, the base fee is {base_fee}",
            approval.max_fee_wei
        );
        return Ok(Some(Rejection::new(Reason::ApprovalFailed, why)));
    }
    let call = (terms.asset, &approval.call);
    if !served
        .rpc
        .would_succeed(terms.from, call, approval.gas_limit, None)
        .await?
    {
        let why = "the approval reverts when simulated, or its gas limit is too low".to_owned();
        return Ok(Some(Rejection::new(Reason::ApprovalFailed, why)));
    }
    let Some(wei) = missing_wei(served, terms, &approval).await? else {
        return Ok(None);
    };
    let given = served
        .ledger
        .funding_totals(served.policy.network, terms.from)
        .await?;
    let within = served
        .policy
        .approvals
        .is_some_and(|limits| given.allows(wei, limits));
    Ok((!within).then(|| {
        let why = format!("the payer lacks {wei} wei for its approval's gas, and the limit of gas money per 24 hours is reached");
        Rejection::new(Reason::ApprovalInsufficientGas, why)
    }))
}

/// Why an approval can never be mined, if so: its nonce must be the payer's next one.
async fn outdated(
    served: &ServedNetwork,
    terms: &PaymentTerms,
    approval: &Approval,
) -> Result<Option<String>, RpcError> {
    let next = served.rpc.transaction_count(terms.from, "latest").await?;
    let own = approval.account_nonce;
    Ok((next != own).then(|| {
        format!("the approval has the account nonce {own}, the payer's next nonce is {next}")
    }))
}

/// Native currency that the payer lacks for the approval's gas, in wei.
async fn missing_wei(
    served: &ServedNetwork,
    terms: &PaymentTerms,
    approval: &Approval,
) -> Result<Option<U256>, RpcError> {
    let balance = served.rpc.balance(terms.from).await?;
    let lacking = approval.cost_wei().checked_sub(balance);
    Ok(lacking.filter(|wei| !wei.is_zero()))
}

/// The task that follows the approvals of one network.
#[derive(Debug)]
pub struct Approver {
    served: Arc<ServedNetwork>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WaitingFor {
    /// It was not checked yet, or the chain or the ledger did not answer.
    Answer,
    /// The payer needs gas money.
    GasMoney,
    /// It was broadcast with an unknown outcome.
    Reply,
    /// No node accepts it, for this reason.
    Node(&'static str),
    /// It was accepted and is not mined yet.
    Block,
}

impl WaitingFor {
    /// The error message when it has waited too long.
    fn timeout_message(self) -> String {
        let how = match self {
            Self::Answer => {
                "could not be followed: the chain or the ledger did not answer, so it may have been sent"
            }
            Self::GasMoney => "was not sent: the payer has not received its gas money yet",
            Self::Reply => "may have been sent: no node has acknowledged it",
            Self::Node(why) => {
                return format!(
                    "the approval was sent and no node accepts it ({why}); present the payment again"
                );
            }
            Self::Block => "was sent and is not mined yet",
        };
        format!("the approval {how}; present the payment again")
    }
}

/// The next step for an approval.
enum Next {
    /// The allowance is there: the payment goes to the lanes.
    Release,
    Wait(WaitingFor),
    /// The payment is refused: the approval cannot be mined, or has waited too long.
    Refuse(Rejection),
}

impl Approver {
    pub const fn new(served: Arc<ServedNetwork>) -> Self {
        Self { served }
    }

    /// Follows approvals until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut followed = JoinSet::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                Some(ended) = followed.join_next() => {
                    if let Err(error) = ended {
                        report_panic("approval", error);
                    }
                }
                following = self.served.approvals.payments.next(), if followed.len() < FOLLOWED_MAX => {
                    // Made before the task runs: a task that ends before its first step takes it off hold too.
                    let on_hold = OnHold { served: Arc::clone(&self.served), payment: following.payment.id };
                    followed.spawn(follow_approval(on_hold, following).in_current_span());
                }
            }
        }
    }
}

/// A payment kept from the lanes; dropping it ends that.
struct OnHold {
    served: Arc<ServedNetwork>,
    payment: PaymentId,
}

impl Drop for OnHold {
    fn drop(&mut self) {
        self.served.queue.take_off_hold(self.payment);
    }
}

async fn follow_approval(on_hold: OnHold, Following { payment, _turn }: Following) {
    let served = &*Arc::clone(&on_hold.served);
    let id = payment.id;
    let deadline = Instant::now() + FOLLOW_LIMIT;
    let mut view = served.view.subscribe();
    let next = loop {
        let next = match step(served, &payment).await {
            Ok(next) => next,
            Err(error) => {
                tracing::warn!(payment = %id, error = causes(&error), "approval not checked: retrying");
                Next::Wait(WaitingFor::Answer)
            }
        };
        let Next::Wait(waits) = next else {
            break next;
        };
        if Instant::now() >= deadline {
            break Next::Refuse(Rejection::new(
                Reason::ApprovalBroadcastFailed,
                waits.timeout_message(),
            ));
        }
        let _ = tokio::time::timeout(POLL_INTERVAL, view.changed()).await;
    };
    drop(on_hold);
    match next {
        Next::Release => {
            if let Some(place) = served.queue.reserve() {
                served.queue.enqueue(place, Queued::new(payment, None));
            }
        }
        Next::Wait(_) => {}
        Next::Refuse(rejection) => {
            match served.ledger.refuse(id, &rejection).await {
                Ok(true) => served.note_refused(Named::of(&payment), &rejection),
                Ok(false) => {}
                // The payment is still queued in the ledger and is checked again.
                Err(error) => {
                    tracing::warn!(payment = %id, error = causes(&error), "refusal of a payment not recorded: it stays queued");
                }
            }
            served.waiters.wake([id]);
        }
    }
}

async fn step(served: &ServedNetwork, payment: &Payment) -> Result<Next, DependencyError> {
    let terms = &payment.terms;
    let Some(approval) = terms.approval() else {
        let why = "the signed approval cannot be decoded".to_owned();
        return Ok(Next::Refuse(Rejection::new(
            Reason::ApprovalParseFailed,
            why,
        )));
    };
    // In this order: if a block comes between the two reads, the allowance is the newer one.
    let outdated = outdated(served, terms, &approval).await?;
    let allowance = served.rpc.allowance(terms.asset, terms.from).await?;
    if allowance >= terms.value.atomic() {
        return Ok(Next::Release);
    }
    if let Some(why) = outdated {
        return Ok(Next::Refuse(Rejection::new(Reason::ApprovalFailed, why)));
    }
    if let Some(wei) = missing_wei(served, terms, &approval).await? {
        return fund(served, payment, wei).await;
    }
    Ok(
        match broadcast(&served.rpc, &approval.raw, approval.hash).await {
            Broadcast::Accepted => {
                served.wake_watch();
                Next::Wait(WaitingFor::Block)
            }
            Broadcast::Unknown => {
                served.wake_watch();
                Next::Wait(WaitingFor::Reply)
            }
            Broadcast::Rejected(BroadcastRejection::Underpriced) => {
                let why =
                    "another pending transaction of the payer uses the approval's account nonce"
                        .to_owned();
                Next::Refuse(Rejection::new(Reason::ApprovalBroadcastFailed, why))
            }
            Broadcast::Rejected(why) => Next::Wait(WaitingFor::Node(why.text())),
        },
    )
}

/// Requests gas money for the payer. Only once per payment: a payer that spends it has to pay for its own gas.
async fn fund(
    served: &ServedNetwork,
    payment: &Payment,
    wei: U256,
) -> Result<Next, DependencyError> {
    let payer = payment.terms.from;
    // In this order: gas money that a lane records for this payment between the two reads must not count as given before.
    let given = served
        .ledger
        .funding_totals(served.policy.network, payer)
        .await?;
    match served.ledger.funding_state(payment.id).await? {
        FundingState::Sent => Ok(Next::Wait(WaitingFor::GasMoney)),
        FundingState::Failed => {
            let why = format!(
                "the payer lacks {wei} wei for its approval's gas, and did not get it: the transaction with the gas money reverted or was replaced by an empty one"
            );
            Ok(Next::Refuse(Rejection::new(
                Reason::ApprovalInsufficientGas,
                why,
            )))
        }
        FundingState::Mined => {
            let why = format!("the payer got gas money for its approval and lacks {wei} wei again");
            Ok(Next::Refuse(Rejection::new(
                Reason::ApprovalInsufficientGas,
                why,
            )))
        }
        FundingState::Never => {
            if !served
                .policy
                .approvals
                .is_some_and(|limits| given.allows(wei, limits))
            {
                let why = format!(
                    "the payer lacks {wei} wei for its approval's gas, and the limit of gas money per 24 hours is reached"
                );
                return Ok(Next::Refuse(Rejection::new(
                    Reason::ApprovalInsufficientGas,
                    why,
                )));
            }
            let funding = Funding {
                payment: payment.id,
                scheme: payment.terms.method.scheme(),
                payer,
                caller: payment.caller,
                wei,
            };
            // Requested again at the next step, unless it is in the ledger by then.
            let _ = served.approvals.fundings.sender.try_send(funding);
            Ok(Next::Wait(WaitingFor::GasMoney))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn approval_is_called_sent_only_if_it_was() {
        assert!(
            WaitingFor::Block
                .timeout_message()
                .starts_with("the approval was sent and is not mined yet")
        );
        for waits in [WaitingFor::Answer, WaitingFor::GasMoney, WaitingFor::Reply] {
            let said = waits.timeout_message();
            assert!(!said.contains("approval was sent"), "{said}");
        }
    }
}
