//! Whether a network can send transactions: which signers are stopped, and which have too little balance for gas. Every process knows this
//! of all configured signers, also of those whose lanes another process owns.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alloy::primitives::utils::format_ether;
use alloy::primitives::{Address, U256};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::ledger::StoppedLane;
use crate::settlement::ServedNetwork;
use crate::settlement::gas::{GAS_RESERVE_PAYMENTS, PAYMENTS_LOW, payment_cost};
use crate::telemetry::causes;

const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);
/// The shortest time from which a pace is taken.
const PACE_LEAST: Duration = Duration::from_mins(10);
/// How often stopped lanes are read from the ledger.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// `Retry-After`: a refill needs a transaction, a stopped lane needs the operator.
const RETRY_EMPTY: Duration = Duration::from_secs(5);
const RETRY_STOPPED: Duration = Duration::from_secs(30);
/// Time limit of the first check, so that balances that no endpoint returns do not delay the start.
const FIRST_CHECK_LIMIT: Duration = Duration::from_secs(2);

/// No signer can send a new transaction now. Transactions in flight go on, and known payments are still answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct CannotSend {
    /// Which network or signer, what is missing, and how much.
    pub why: String,
    pub retry_after: Duration,
}

/// Balance and state of the signers of a network.
#[derive(Debug)]
pub struct Senders {
    /// In the order of the configuration.
    configured: Vec<Address>,
    known: Mutex<HashMap<Address, Sender>>,
}

#[derive(Debug, Clone, Default)]
struct Sender {
    balance: Option<U256>,
    read_at: Option<Instant>,
    stopped: Option<String>,
    /// It is stopped for new payments, and still sends what is queued.
    is_draining: bool,
    /// The operator has stopped it.
    is_paused: bool,
    /// When payments were sent by it, as far as this process did.
    pace: Pace,
    /// Its lane, owned by this process, waits for a condition that passes without the operator.
    waiting: Option<String>,
}

impl Senders {
    pub fn new(signers: &[Address]) -> Self {
        Self {
            configured: signers.to_vec(),
            known: Mutex::default(),
        }
    }

    /// Records a balance.
    pub fn note_balance(&self, signer: Address, balance: U256) {
        let mut known = self.known();
        let sender = known.entry(signer).or_default();
        sender.balance = Some(balance);
        sender.read_at = Some(Instant::now());
    }

    /// Records that payments were sent.
    pub fn note_sent(&self, signer: Address, payments: usize) {
        let mut known = self.known();
        let pace = &mut known.entry(signer).or_default().pace;
        pace.note(payments, Instant::now());
    }

    /// Records why a lane is stopped.
    pub fn note_stopped(&self, signer: Address, why: &str) {
        self.known().entry(signer).or_default().stopped = Some(why.to_owned());
    }

    /// Records why a lane of this process waits, if it does. Returns whether that changed.
    pub fn note_waiting(&self, signer: Address, why: Option<&str>) -> bool {
        let mut known = self.known();
        let waiting = &mut known.entry(signer).or_default().waiting;
        let changed = waiting.as_deref() != why;
        *waiting = why.map(str::to_owned);
        changed
    }

    /// Records the stop reasons of all lanes.
    fn note_all_stopped(&self, stopped: &[StoppedLane]) {
        let mut known = self.known();
        for signer in &self.configured {
            let lane = stopped.iter().find(|lane| lane.signer == *signer);
            let sender = known.entry(*signer).or_default();
            sender.stopped = lane.map(|lane| lane.reason.clone());
            sender.is_draining = lane.is_some_and(|lane| lane.is_draining);
            sender.is_paused = lane.is_some_and(|lane| lane.is_paused);
        }
    }

    /// What is known of each configured signer.
    pub fn figures(&self) -> Vec<SenderFigures> {
        let figures = self.configured.iter().map(|signer| {
            let sender = self.of(*signer);
            SenderFigures {
                address: *signer,
                balance: sender.balance,
                is_stopped: sender.stopped.is_some() && !sender.is_paused,
                is_paused: sender.is_paused,
            }
        });
        figures.collect()
    }

    /// How long a signer can send at the pace of the last hour if it has gas for so many payments; `None`: this process has sent none.
    pub fn lasting(&self, signer: Address, payments_left: u64) -> Option<Duration> {
        let known = self.known();
        known
            .get(&signer)?
            .pace
            .lasting(payments_left, Instant::now())
    }

    fn of(&self, signer: Address) -> Sender {
        self.known().get(&signer).cloned().unwrap_or_default()
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Address, Sender>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Payments of the last hour, by the minute.
#[derive(Debug, Clone, Default)]
struct Pace {
    /// Begin of each minute with payments, and their number, oldest first.
    minutes: VecDeque<(Instant, usize)>,
    since: Option<Instant>,
}

impl Pace {
    fn note(&mut self, payments: usize, now: Instant) {
        self.since.get_or_insert(now);
        match self.minutes.back_mut() {
            Some((began, count)) if now.duration_since(*began) < MINUTE => *count += payments,
            Some(_) | None => self.minutes.push_back((now, payments)),
        }
        let is_old = |(began, _): &(Instant, usize)| now.duration_since(*began) >= HOUR;
        while self.minutes.front().is_some_and(is_old) {
            self.minutes.pop_front();
        }
    }

    /// How long so many payments last. A few payments right after the start say little: they count as those of [`PACE_LEAST`].
    fn lasting(&self, left: u64, now: Instant) -> Option<Duration> {
        let recent = self.minutes.iter();
        let recent = recent.filter(|(began, _)| now.duration_since(*began) < HOUR);
        let payments = u64::try_from(recent.map(|(_, count)| count).sum::<usize>()).ok()?;
        let watched = now.duration_since(self.since?).clamp(PACE_LEAST, HOUR);
        let seconds = left.saturating_mul(watched.as_secs());
        Some(Duration::from_secs(seconds.checked_div(payments)?))
    }
}

/// A signer, for monitoring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SenderFigures {
    pub address: Address,
    /// In wei, as it was last read.
    pub balance: Option<U256>,
    /// x402d has stopped it: it takes no new payments until the operator resumes it.
    pub is_stopped: bool,
    /// The operator has paused or drained it.
    pub is_paused: bool,
}

/// Why a signer sends no new transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
enum SendProblem {
    Stopped(String),
    Waiting(String),
    Empty { has: U256, needs: U256 },
}

impl ServedNetwork {
    /// Whether a new payment can be sent: by `signer`, if the payment names one, or by any signer. [`CannotSend`] names what is missing.
    pub fn can_send(&self, signer: Option<Address>) -> Result<(), CannotSend> {
        self.gas_is_affordable()?;
        let candidates =
            signer.map_or_else(|| self.senders.configured.clone(), |signer| vec![signer]);
        let mut problems = Vec::new();
        for signer in candidates {
            match self.send_problem(signer) {
                Some(why) => problems.push((signer, why)),
                None => return Ok(()),
            }
        }
        let all_empty = problems
            .iter()
            .all(|(_, why)| matches!(why, SendProblem::Empty { .. }));
        let all_stopped = problems
            .iter()
            .all(|(_, why)| matches!(why, SendProblem::Stopped(_)));
        let network = self.policy.network;
        let prefix = match (signer, all_empty) {
            (None, true) => format!("no signer of {network} has gas"),
            (None, false) => format!("no signer of {network} can send"),
            (Some(_), _) => format!("the signer on {network} that the payment names cannot send"),
        };
        let each = problems
            .iter()
            .map(|(signer, why)| self.describe(*signer, why));
        let each: Vec<_> = each.collect();
        Err(CannotSend {
            why: format!("{prefix}: {}", each.join("; ")),
            retry_after: if all_stopped {
                RETRY_STOPPED
            } else {
                RETRY_EMPTY
            },
        })
    }

    /// Whether a queued payment can be sent: by `signer`, if it names one, or by any signer. One that is drained sends what is queued.
    pub fn can_send_queued(&self, signer: Option<Address>) -> bool {
        let candidates = self.senders.configured.iter().copied();
        let mut candidates = candidates.filter(|one| signer.is_none_or(|signer| signer == *one));
        self.can_send(signer).is_ok() || candidates.any(|one| self.senders.of(one).is_draining)
    }

    /// The account that sellers are told to name: the first signer that can send. So it stays the same while that signer works.
    pub fn first_usable_signer(&self) -> Option<Address> {
        let mut signers = self.senders.configured.iter().copied();
        signers.find(|signer| self.send_problem(*signer).is_none())
    }

    /// Descriptions of the signers that cannot send.
    pub fn signer_problems(&self) -> Vec<String> {
        let signers = self.senders.configured.iter();
        let problems = signers.filter_map(|signer| {
            let why = self.send_problem(*signer)?;
            Some(self.describe(*signer, &why))
        });
        problems.collect()
    }

    /// Descriptions of the signers that can send, and have gas for fewer than [`PAYMENTS_LOW`] payments.
    pub fn low_signers(&self) -> Vec<String> {
        let signers = self.senders.configured.iter();
        let low = signers.filter_map(|signer| {
            let left = self.payments_left_of(*signer)?;
            let is_low = left < PAYMENTS_LOW && self.send_problem(*signer).is_none();
            is_low.then(|| format!("{signer} has gas for {left} payments: refill it"))
        });
        low.collect()
    }

    /// How many payments a balance pays for at the current gas price; `None` before the first block, or while gas costs more than the cap.
    pub fn payments_left(&self, balance: U256) -> Option<u64> {
        let cost = self.cost_of_payment()?;
        let left = balance.checked_div(cost)?;
        Some(u64::try_from(left).unwrap_or(u64::MAX))
    }

    /// How many payments the balance of a signer pays for; `None`: it is not known, or [`Self::payments_left`] is not.
    pub(super) fn payments_left_of(&self, signer: Address) -> Option<u64> {
        self.payments_left(self.senders.of(signer).balance?)
    }

    /// The signers of the configuration.
    pub(super) fn signers(&self) -> &[Address] {
        &self.senders.configured
    }

    fn send_problem(&self, signer: Address) -> Option<SendProblem> {
        let sender = self.senders.of(signer);
        if let Some(why) = sender.stopped {
            return Some(SendProblem::Stopped(why));
        }
        if let Some(why) = sender.waiting {
            return Some(SendProblem::Waiting(why));
        }
        let has = sender.balance?;
        let cost = self.cost_of_payment()?;
        let needs = cost.saturating_mul(U256::from(GAS_RESERVE_PAYMENTS));
        (has < needs).then_some(SendProblem::Empty { has, needs })
    }

    /// Most that the payment of a plain account needs, with a transaction of its own; no limit while the fees are unknown.
    pub(super) fn plain_cost(&self) -> U256 {
        let cost = self.cost_of_payment();
        cost.map_or(U256::MAX, |cost| cost.saturating_add(cost / U256::from(2)))
    }

    fn cost_of_payment(&self) -> Option<U256> {
        let fees = self.fees().quote(&self.view.head()?).ok()?;
        Some(payment_cost(self.gas.wei_per_gas(fees.max_fee_wei)))
    }

    fn describe(&self, signer: Address, why: &SendProblem) -> String {
        match why {
            SendProblem::Stopped(why) => format!("{signer} is stopped ({why})"),
            SendProblem::Waiting(why) => format!("{signer} is blocked ({why})"),
            SendProblem::Empty { has, needs } => format!(
                "{signer} has {} and needs {} (gas for {GAS_RESERVE_PAYMENTS} payments); refill it",
                self.native(*has),
                self.native(*needs)
            ),
        }
    }

    /// An amount of the chain's native currency.
    pub fn native(&self, wei: U256) -> String {
        let known = self.policy.network.known();
        native_amount(wei, known.map_or("ETH", |known| known.native_symbol))
    }
}

/// An amount in whole units, for logs and answers.
pub fn native_amount(wei: U256, symbol: &str) -> String {
    let text = format_ether(wei);
    let text = text.trim_end_matches('0').trim_end_matches('.');
    format!("{text} {symbol}")
}

/// The task that keeps [`Senders`] current.
#[derive(Debug)]
pub struct SenderWatch {
    served: Arc<ServedNetwork>,
}

impl SenderWatch {
    pub const fn new(served: Arc<ServedNetwork>) -> Self {
        Self { served }
    }

    /// Checks once before the first request is served, within a time limit.
    pub async fn first_check(&self) {
        // Without an answer the task tries again.
        let _ = timeout(FIRST_CHECK_LIMIT, self.check()).await;
    }

    /// Checks until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        loop {
            self.check().await;
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(CHECK_INTERVAL) => {}
            }
        }
    }

    async fn check(&self) {
        let served = &self.served;
        match served.ledger.stopped_lanes(served.policy.network).await {
            Ok(stopped) => served.senders.note_all_stopped(&stopped),
            Err(error) => {
                tracing::debug!(
                    error = causes(&error),
                    "stopped lanes not read from the ledger"
                );
            }
        }
        for signer in &served.senders.configured {
            let interval = match served.send_problem(*signer) {
                Some(SendProblem::Empty { .. }) => served.timing.low_balance,
                Some(SendProblem::Stopped(_) | SendProblem::Waiting(_)) | None => {
                    served.timing.balance
                }
            };
            let read_at = served.senders.of(*signer).read_at;
            if read_at.is_some_and(|at| at.elapsed() < interval) {
                continue;
            }
            if let Ok(balance) = served.rpc.balance(*signer).await {
                served.senders.note_balance(*signer, balance);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn balance_lasts_at_the_pace_of_the_last_hour() {
        let begin = Instant::now();
        let at = |minutes| begin + MINUTE * minutes;
        let mut pace = Pace::default();
        assert_eq!(pace.lasting(60, begin), None);
        pace.note(10, begin);
        assert_eq!(pace.lasting(60, begin), Some(HOUR));
        pace.note(10, at(30));
        assert_eq!(pace.lasting(60, at(30)), Some(MINUTE * 90));
        assert_eq!(
            pace.lasting(60, at(60)),
            Some(HOUR * 6),
            "the first are old"
        );
        assert_eq!(pace.lasting(60, at(90)), None);
        for minute in 0..500 {
            pace.note(1, at(100 + minute));
        }
        assert_eq!(pace.minutes.len(), 60);
        assert_eq!(pace.lasting(60, at(599)), Some(HOUR));
    }

    #[test]
    fn amounts_are_shown_in_whole_units() {
        assert_eq!(native_amount(U256::ZERO, "ETH"), "0 ETH");
        let tenth = U256::from(100_000_000_000_000_u64);
        assert_eq!(native_amount(tenth, "POL"), "0.0001 POL");
        let ten = U256::from(10).pow(U256::from(19));
        assert_eq!(native_amount(ten, "ETH"), "10 ETH");
    }
}
