//! Whether anything can be sent on a network now: which signers are stopped, and which have too little money for gas. Every process
//! knows this of all configured signers, also of those whose lanes another process owns.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alloy::primitives::utils::format_ether;
use alloy::primitives::{Address, U256};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::settlement::Site;
use crate::settlement::gas::{EMPTY_PAYMENTS, payment_cost};
use crate::telemetry::causes;

/// How often the ledger is asked which lanes are stopped.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How often a signer's balance is read, and how often while it has too little: a refill is seen within seconds.
const BALANCE_INTERVAL: Duration = Duration::from_secs(15);
const BALANCE_INTERVAL_EMPTY: Duration = Duration::from_secs(2);
/// When to ask again: a refill takes a transaction, and a stopped lane takes a person.
const RETRY_EMPTY: Duration = Duration::from_secs(5);
const RETRY_STOPPED: Duration = Duration::from_secs(30);
/// The service does not begin later for balances that nobody tells.
const FIRST_LOOK: Duration = Duration::from_secs(2);

/// No signer can send a new transaction now. What was sent before goes on, and payments that are known are still answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct CannotSend {
    /// Which network or signer, what is missing, and how much of it.
    pub why: String,
    /// When to ask again.
    pub retry_after: Duration,
}

/// What is known of the signers of a network.
#[derive(Debug)]
pub struct Senders {
    /// In the order of the configuration.
    order: Vec<Address>,
    known: Mutex<HashMap<Address, Sender>>,
}

#[derive(Debug, Clone, Default)]
struct Sender {
    balance: Option<U256>,
    read_at: Option<Instant>,
    stopped: Option<String>,
    /// Its lane, which this process owns, waits for something that passes by itself.
    waiting: Option<String>,
}

impl Senders {
    /// Nothing is known yet of `signers`.
    pub fn new(signers: &[Address]) -> Self {
        Self {
            order: signers.to_vec(),
            known: Mutex::default(),
        }
    }

    /// Takes note of a balance.
    pub fn note_balance(&self, signer: Address, balance: U256) {
        let mut known = self.known();
        let sender = known.entry(signer).or_default();
        sender.balance = Some(balance);
        sender.read_at = Some(Instant::now());
    }

    /// Takes note of why a lane is stopped.
    pub fn note_stopped(&self, signer: Address, why: &str) {
        self.known().entry(signer).or_default().stopped = Some(why.to_owned());
    }

    /// Takes note of what a lane of this process waits for; whether that is news.
    pub fn note_waiting(&self, signer: Address, why: Option<&str>) -> bool {
        let mut known = self.known();
        let waiting = &mut known.entry(signer).or_default().waiting;
        let news = waiting.as_deref() != why;
        *waiting = why.map(str::to_owned);
        news
    }

    /// Takes note of all lanes that are stopped.
    fn note_all_stopped(&self, stopped: &[(Address, String)]) {
        let mut known = self.known();
        for signer in &self.order {
            let why = stopped.iter().find(|(stopped, _)| stopped == signer);
            known.entry(*signer).or_default().stopped = why.map(|(_, why)| why.clone());
        }
    }

    fn of(&self, signer: Address) -> Sender {
        self.known().get(&signer).cloned().unwrap_or_default()
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Address, Sender>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a signer sends nothing new.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Unable {
    Stopped(String),
    Waiting(String),
    Empty { has: U256, needs: U256 },
}

impl Site {
    /// Whether a new payment can be sent: by `signer`, where the payment names one, or by any.
    ///
    /// # Errors
    /// [`CannotSend`] says what is missing.
    pub fn can_send(&self, signer: Option<Address>) -> Result<(), CannotSend> {
        self.blocks_are_affordable()?;
        let asked = signer.map_or_else(|| self.senders.order.clone(), |signer| vec![signer]);
        let mut unable = Vec::new();
        for signer in asked {
            match self.unable(signer) {
                Some(why) => unable.push((signer, why)),
                None => return Ok(()),
            }
        }
        let all_empty = unable
            .iter()
            .all(|(_, why)| matches!(why, Unable::Empty { .. }));
        let all_stopped = unable
            .iter()
            .all(|(_, why)| matches!(why, Unable::Stopped(_)));
        let network = self.policy.network;
        let begin = match (signer, all_empty) {
            (None, true) => format!("no signer of {network} has gas"),
            (None, false) => format!("no signer of {network} can send"),
            (Some(_), _) => format!("the signer on {network} that the payment names cannot send"),
        };
        let each = unable
            .iter()
            .map(|(signer, why)| self.in_words(*signer, why));
        let each: Vec<_> = each.collect();
        Err(CannotSend {
            why: format!("{begin}: {}", each.join("; ")),
            retry_after: if all_stopped {
                RETRY_STOPPED
            } else {
                RETRY_EMPTY
            },
        })
    }

    /// The account that sellers are told to name: the first that can send, so that it stays the same for as long as nothing is wrong with it.
    pub fn able_signer(&self) -> Option<Address> {
        let mut signers = self.senders.order.iter().copied();
        signers.find(|signer| self.unable(*signer).is_none())
    }

    /// The signers that cannot send, in words.
    pub fn unable_signers(&self) -> Vec<String> {
        let signers = self.senders.order.iter();
        let unable = signers.filter_map(|signer| {
            let why = self.unable(*signer)?;
            Some(self.in_words(*signer, &why))
        });
        unable.collect()
    }

    /// How many payments a balance pays for at what gas costs now; `None` before the first block was seen, or while blocks cost too much.
    pub fn payments_left(&self, balance: U256) -> Option<u64> {
        let cost = self.cost_of_payment()?;
        let left = balance.checked_div(cost)?;
        Some(u64::try_from(left).unwrap_or(u64::MAX))
    }

    fn unable(&self, signer: Address) -> Option<Unable> {
        let sender = self.senders.of(signer);
        if let Some(why) = sender.stopped {
            return Some(Unable::Stopped(why));
        }
        if let Some(why) = sender.waiting {
            return Some(Unable::Waiting(why));
        }
        let has = sender.balance?;
        let cost = self.cost_of_payment()?;
        let needs = cost.saturating_mul(U256::from(EMPTY_PAYMENTS));
        (has < needs).then_some(Unable::Empty { has, needs })
    }

    fn cost_of_payment(&self) -> Option<U256> {
        let fees = self.fees().quote(&self.view.head()?).ok()?;
        Some(payment_cost(self.gas.wei_per_gas(fees.max_fee_wei)))
    }

    fn in_words(&self, signer: Address, why: &Unable) -> String {
        match why {
            Unable::Stopped(why) => format!("{signer} is stopped ({why})"),
            Unable::Waiting(why) => format!("{signer} waits ({why})"),
            Unable::Empty { has, needs } => format!(
                "{signer} has {}, it goes on with {} (gas for {EMPTY_PAYMENTS} payments)",
                self.native(*has),
                self.native(*needs)
            ),
        }
    }

    /// An amount of the chain's own currency.
    pub fn native(&self, wei: U256) -> String {
        let known = self.policy.network.known();
        native_amount(wei, known.map_or("ETH", |known| known.native_symbol))
    }
}

/// An amount in whole units, for people.
pub fn native_amount(wei: U256, symbol: &str) -> String {
    let text = format_ether(wei);
    let text = text.trim_end_matches('0').trim_end_matches('.');
    format!("{text} {symbol}")
}

/// The task that keeps [`Senders`] fresh.
#[derive(Debug)]
pub struct SenderWatch {
    site: Arc<Site>,
}

impl SenderWatch {
    /// One for `site`.
    pub const fn new(site: Arc<Site>) -> Self {
        Self { site }
    }

    /// Looks once, so that the first caller hears the truth; gives up soon.
    pub async fn first_look(&self) {
        // Without an answer the task goes on asking.
        let _ = timeout(FIRST_LOOK, self.look()).await;
    }

    /// Looks until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        loop {
            self.look().await;
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
            }
        }
    }

    async fn look(&self) {
        let site = &self.site;
        match site.ledger.stopped_lanes(site.policy.network).await {
            Ok(stopped) => site.senders.note_all_stopped(&stopped),
            Err(error) => {
                tracing::debug!(network = %site.policy.network, error = causes(&error), "cannot read which lanes are stopped");
            }
        }
        for signer in &site.senders.order {
            let interval = match site.unable(*signer) {
                Some(Unable::Empty { .. }) => BALANCE_INTERVAL_EMPTY,
                Some(Unable::Stopped(_) | Unable::Waiting(_)) | None => BALANCE_INTERVAL,
            };
            let read_at = site.senders.of(*signer).read_at;
            if read_at.is_some_and(|at| at.elapsed() < interval) {
                continue;
            }
            if let Ok(balance) = site.rpc.balance(*signer).await {
                site.senders.note_balance(*signer, balance);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_written_for_people() {
        assert_eq!(native_amount(U256::ZERO, "ETH"), "0 ETH");
        let tenth = U256::from(100_000_000_000_000_u64);
        assert_eq!(native_amount(tenth, "POL"), "0.0001 POL");
        let ten = U256::from(10).pow(U256::from(19));
        assert_eq!(native_amount(ten, "ETH"), "10 ETH");
    }
}
