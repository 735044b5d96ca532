//! The gas budgets of a network as this process knows them. The ledger enforces them where it writes a transaction; what is kept here turns
//! payments away before anything is done for them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alloy::primitives::{Address, U256};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio_util::sync::CancellationToken;

use crate::ledger::{GasHour, GasShare, GasSubject, GasUse, LedgerError, OverBudget, fits_at};
use crate::payment::{GasBudget, KeyId, Payment, Who};
use crate::protocol::{Reason, Rejection};
use crate::settlement::ServedNetwork;
use crate::telemetry::causes;

/// How often the budgets that matter now are read from the ledger.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);
/// A budget is watched, and the operator warned, from this part of its limit on, in percent.
const LOW_PERCENT: u8 = 80;
/// How long the cost of a refused transaction stands for that of others: gas may be cheaper later.
const REFUSED_FOR: time::Duration = time::Duration::minutes(1);
/// How long new payments are refused while open transactions reserve the rest of a budget, unless their receipts leave room before.
const RECHECK_AFTER: time::Duration = time::Duration::seconds(10);
/// How long a warning about a budget holds: the window of the budget.
const WARN_INTERVAL: time::Duration = time::Duration::hours(24);
/// Most budgets that are watched. Further ones are turned away where their transaction is written.
const WATCHED_MAX: usize = 1_000;

/// The parties of a payment in whose budgets its gas counts, besides the network's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GasParties {
    /// `None`: the payee has nothing of it.
    pub payee: Option<Address>,
    pub payer: Address,
    /// Whose payment it is. What was submitted for a session is nobody's, and counts for no key.
    pub caller: Option<Who>,
}

impl GasParties {
    pub const fn of(payment: &Payment) -> Self {
        Self {
            payee: Some(payment.terms.to),
            payer: payment.terms.from,
            caller: payment.caller,
        }
    }

    /// All budgets that a payment of these parties may count in.
    pub(super) fn subjects(self) -> impl Iterator<Item = GasSubject> {
        let key = self.caller.and_then(Who::key);
        let subjects = [
            Some(GasSubject::Network),
            self.payee.map(GasSubject::Payee),
            Some(GasSubject::Payer(self.payer)),
            key.map(GasSubject::Key),
        ];
        subjects.into_iter().flatten()
    }
}

/// What this process knows of the budgets of a network.
#[derive(Debug)]
pub struct Budgets {
    limits: GasBudget,
    /// All keys, and most wei in 24 hours for the payments of those that have a limit; read every [`REFRESH_INTERVAL`].
    key_limits: Mutex<HashMap<KeyId, Option<U256>>>,
    watched: Mutex<HashMap<GasSubject, Watched>>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Watched {
    spent_wei: U256,
    reserved_wei: U256,
    warned_at: Option<OffsetDateTime>,
    /// A transaction was not written then because it needed this much.
    refused: Option<(OffsetDateTime, U256)>,
    /// New payments are refused until then.
    closed_until: Option<OffsetDateTime>,
    /// It is closed because it is spent, not because open transactions reserve the rest.
    is_spent: bool,
}

impl Watched {
    /// The end of its closure, if it is closed at this time.
    fn closed_at(&self, now: OffsetDateTime) -> Option<OffsetDateTime> {
        self.closed_until.filter(|until| *until > now)
    }

    fn is_low(&self, limit: U256) -> bool {
        let used = self.spent_wei.saturating_add(self.reserved_wei);
        let percent = |percent: u8| U256::from(percent);
        used.saturating_mul(percent(100)) >= limit.saturating_mul(percent(LOW_PERCENT))
    }
}

/// The network's budget, when it needs the operator. Each says what is so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkBudget {
    Low(String),
    /// Nothing is sold on the network.
    Exhausted(String),
}

/// The fullest budget of a scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BudgetFigures {
    /// `network`, `payee`, `payer` or `key`.
    pub scope: &'static str,
    /// The part of its limit that is spent or reserved, in millionths.
    pub used_millionths: u64,
    /// One of the scope is spent: its payments are refused.
    pub is_exhausted: bool,
}

impl Budgets {
    pub fn new(limits: GasBudget) -> Self {
        Self {
            limits,
            key_limits: Mutex::default(),
            watched: Mutex::default(),
        }
    }

    fn limit_of(&self, subject: GasSubject) -> Option<U256> {
        match subject {
            GasSubject::Network => self.limits.wei_per_day,
            GasSubject::Payee(_) => self.limits.wei_per_day_per_payee,
            GasSubject::Payer(_) => self.limits.wei_per_day_per_payer,
            GasSubject::Key(id) => self.key_limits().get(&id).copied().flatten(),
        }
    }

    /// The budgets that a transaction counts in whose payments have these parties and gas. Payees, payers and keys are counted where they
    /// have a limit.
    pub(super) fn shares(&self, rows: impl Iterator<Item = (GasParties, u64)>) -> Vec<GasShare> {
        let mut shares: HashMap<GasSubject, GasShare> = HashMap::new();
        for (parties, gas) in rows {
            for subject in parties.subjects() {
                let limit_wei = self.limit_of(subject);
                if subject != GasSubject::Network && limit_wei.is_none() {
                    continue;
                }
                let share = shares.entry(subject).or_insert(GasShare {
                    subject,
                    gas: 0,
                    payments: 0,
                    limit_wei,
                });
                share.gas = share.gas.saturating_add(gas);
                share.payments += 1;
            }
        }
        shares.into_values().collect()
    }

    /// What is left of the network's budget, as far as known; `None`: it has no limit.
    pub(super) fn room(&self) -> Option<U256> {
        let limit = self.limits.wei_per_day?;
        let watched = self.watched();
        let used = watched.get(&GasSubject::Network).map_or(U256::ZERO, |one| {
            one.spent_wei.saturating_add(one.reserved_wei)
        });
        Some(limit.saturating_sub(used))
    }

    /// Records what a written transaction has found.
    pub(super) fn note(&self, uses: &[GasUse], now: OffsetDateTime) {
        for used in uses {
            self.update(used, |_| {}, now);
        }
    }

    /// Records that a transaction was not written, and closes the budgets that have no room for a payment of `plain_wei`. One that needs
    /// more, as a wallet's does, closes none to others.
    pub(super) fn note_refused(&self, over: &[OverBudget], plain_wei: U256, now: OffsetDateTime) {
        let mut watched = self.watched();
        for one in over {
            let needs_wei = one.needs_wei.min(plain_wei);
            if one.left_wei >= needs_wei {
                continue;
            }
            if watched.len() >= WATCHED_MAX && !watched.contains_key(&one.subject) {
                continue;
            }
            let entry = watched.entry(one.subject).or_default();
            entry.refused = Some((now, needs_wei));
            let soon = now + RECHECK_AFTER;
            let was_told = entry.closed_until.is_some_and(|until| until > soon);
            // While open transactions reserve the rest, most would be refused where they are written.
            entry.closed_until = one.until.or(Some(soon));
            entry.is_spent = one.until.is_some();
            if let Some(until) = one.until.filter(|_| !was_told) {
                tracing::warn!(subject = %one.subject, limit_wei = %one.limit_wei, until = until_text(until), "budget exhausted: new payments are refused");
            }
        }
    }

    fn update(&self, used: &GasUse, change: impl FnOnce(&mut Watched), now: OffsetDateTime) {
        let Some(limit) = self.limit_of(used.subject) else {
            self.watched().remove(&used.subject);
            return;
        };
        let mut watched = self.watched();
        let full = watched.len() >= WATCHED_MAX;
        let mut entry = watched.get(&used.subject).copied().unwrap_or_default();
        (entry.spent_wei, entry.reserved_wei) = (used.spent_wei, used.reserved_wei);
        change(&mut entry);
        let is_low = entry.is_low(limit);
        let holds = |at: OffsetDateTime| now - at < WARN_INTERVAL;
        if is_low && !entry.warned_at.is_some_and(holds) {
            entry.warned_at = Some(now);
            tracing::warn!(subject = %used.subject, spent_wei = %entry.spent_wei, reserved_wei = %entry.reserved_wei, limit_wei = %limit, "budget low: {LOW_PERCENT} % of what may be spent in 24 hours is used");
        }
        let is_needed = used.subject == GasSubject::Network
            || is_low
            || entry.closed_until.is_some()
            || entry.warned_at.is_some_and(holds);
        if !is_needed {
            watched.remove(&used.subject);
        } else if !full || watched.contains_key(&used.subject) {
            watched.insert(used.subject, entry);
        }
    }

    /// Records the hours of a watched budget as the ledger has them now. It is open again when what was refused would fit.
    fn refresh(&self, subject: GasSubject, hours: &[GasHour], now: OffsetDateTime) {
        let sum =
            |of: fn(&GasHour) -> U256| hours.iter().map(of).fold(U256::ZERO, U256::saturating_add);
        let used = GasUse {
            subject,
            spent_wei: sum(|hour| hour.spent_wei),
            reserved_wei: sum(|hour| hour.reserved_wei),
        };
        let limit = self.limit_of(subject).unwrap_or(U256::MAX);
        let reopen = |entry: &mut Watched| {
            let needs = entry.refused.filter(|(at, _)| now - *at < REFUSED_FOR);
            let needs = needs.map_or(U256::ONE, |(_, wei)| wei);
            let reserved = used.spent_wei.saturating_add(used.reserved_wei);
            let still = entry.closed_at(now);
            let still = still.filter(|_| reserved.saturating_add(needs) > limit);
            let fits_at = fits_at(hours, needs, limit, now);
            entry.is_spent = fits_at.is_some();
            entry.closed_until = fits_at.or(still);
        };
        self.update(&used, reopen, now);
    }

    /// Whether the key of a payment has been read, with its limit if it has one. Before that the payment would count in no budget of the
    /// key, so it waits.
    pub(super) fn knows_key_of(&self, payment: &Payment) -> bool {
        let key = payment.caller.and_then(Who::key);
        key.is_none_or(|key| self.key_limits().contains_key(&key))
    }

    /// Refuses a payment whose network, payee, payer or key has spent its budget.
    fn check(&self, parties: GasParties, now: OffsetDateTime) -> Result<(), Rejection> {
        let closed = parties.subjects().find_map(|subject| {
            let watched = self.watched();
            let until = watched.get(&subject)?.closed_at(now)?;
            Some((subject, until))
        });
        closed.map_or(Ok(()), |(subject, until)| {
            Err(self.exhausted(subject, until))
        })
    }

    /// The same for a payment in the queue. `Ok(false)`: open transactions reserve the rest of a budget, and it waits for their receipts.
    pub(super) fn check_queued(
        &self,
        parties: GasParties,
        now: OffsetDateTime,
    ) -> Result<bool, Rejection> {
        let mut has_room = true;
        for subject in parties.subjects() {
            let entry = self.watched().get(&subject).copied().unwrap_or_default();
            match entry.closed_at(now) {
                Some(until) if entry.is_spent => return Err(self.exhausted(subject, until)),
                Some(_) => has_room = false,
                None => {}
            }
        }
        Ok(has_room)
    }

    /// The rejection of a payment whose budget has no room until then. Of a budget that is smaller than one payment no time is named.
    pub(super) fn exhausted(&self, subject: GasSubject, until: OffsetDateTime) -> Rejection {
        let refused = self.watched().get(&subject).and_then(|entry| entry.refused);
        let needs = refused.map(|(_, wei)| wei);
        let why = match needs.zip(self.limit_of(subject)) {
            Some((needs, limit)) if needs > limit => format!(
                "one payment may cost {needs} wei of gas now, more than the whole budget of {subject} for 24 hours, {limit} wei; nothing was sent, and the operator has to raise it"
            ),
            Some(_) | None => format!(
                "the gas budget of {subject} for 24 hours is spent; nothing was sent, and payments are taken again from {} on",
                until_text(until)
            ),
        };
        Rejection::new(Reason::SponsorshipExhausted, why)
    }

    fn subjects(&self) -> Vec<GasSubject> {
        let network = self.limits.wei_per_day.map(|_| GasSubject::Network);
        let mut subjects: Vec<_> = self.watched().keys().copied().collect();
        subjects.extend(network.filter(|network| !subjects.contains(network)));
        subjects
    }

    /// How much is left in the budgets of the network and of keys. Those of payees and payers are the matter of strangers.
    pub(super) fn levels(&self, now: OffsetDateTime) -> Vec<(GasSubject, &'static str)> {
        let limits = self.key_limits().clone();
        let keys = limits
            .into_iter()
            .filter_map(|(id, limit)| Some((GasSubject::Key(id), limit?)));
        let network = self.limits.wei_per_day;
        let network = network.map(|limit| (GasSubject::Network, limit));
        let watched = self.watched();
        let level = |(subject, limit): (GasSubject, U256)| {
            // One that was not read yet is not known to be good.
            let entry = watched.get(&subject)?;
            let level = if entry.is_spent && entry.closed_at(now).is_some() {
                "exhausted"
            } else if entry.is_low(limit) {
                "low"
            } else {
                "good"
            };
            Some((subject, level))
        };
        network.into_iter().chain(keys).filter_map(level).collect()
    }

    /// What the operator has to know of the network's own budget, if it is spent or nearly so.
    pub fn of_network(&self, now: OffsetDateTime) -> Option<NetworkBudget> {
        let limit = self.limits.wei_per_day?;
        let entry = *self.watched().get(&GasSubject::Network)?;
        let until = entry.closed_at(now).filter(|_| entry.is_spent);
        match until {
            Some(until) => {
                let spent = self.exhausted(GasSubject::Network, until);
                Some(NetworkBudget::Exhausted(spent.message))
            }
            None if entry.is_low(limit) => Some(NetworkBudget::Low(format!(
                "{LOW_PERCENT} % or more of the network's gas budget for 24 hours is used"
            ))),
            None => None,
        }
    }

    /// The fullest budget of each scope, for monitoring. Those that are far from their limits are not watched, except for the network's.
    pub fn fullest(&self, now: OffsetDateTime) -> Vec<BudgetFigures> {
        let limits = &self.limits;
        let has_keys = self.key_limits().values().any(Option::is_some);
        let scopes = [
            ("network", limits.wei_per_day.is_some()),
            ("payee", limits.wei_per_day_per_payee.is_some()),
            ("payer", limits.wei_per_day_per_payer.is_some()),
            ("key", has_keys),
        ];
        let scopes = scopes.into_iter().filter(|(_, has_limit)| *has_limit);
        let watched: Vec<_> = self
            .watched()
            .iter()
            .map(|(subject, entry)| (*subject, *entry))
            .collect();
        let figures = scopes.map(|(scope, _)| {
            let of_scope = watched
                .iter()
                .filter(|(subject, _)| subject.scope() == scope);
            let mut figures = BudgetFigures {
                scope,
                used_millionths: 0,
                is_exhausted: false,
            };
            for (subject, entry) in of_scope {
                let Some(limit) = self.limit_of(*subject) else {
                    continue;
                };
                let used = entry.spent_wei.saturating_add(entry.reserved_wei);
                let part = used.saturating_mul(U256::from(1_000_000)) / limit.max(U256::ONE);
                let part = u64::try_from(part).unwrap_or(u64::MAX);
                figures.used_millionths = figures.used_millionths.max(part);
                figures.is_exhausted |= entry.is_spent && entry.closed_at(now).is_some();
            }
            figures
        });
        figures.collect()
    }

    fn key_limits(&self) -> MutexGuard<'_, HashMap<KeyId, Option<U256>>> {
        let limits = self.key_limits.lock();
        limits.unwrap_or_else(PoisonError::into_inner)
    }

    fn watched(&self) -> MutexGuard<'_, HashMap<GasSubject, Watched>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn until_text(until: OffsetDateTime) -> String {
    let second = until.replace_nanosecond(0).unwrap_or(until);
    second.format(&Rfc3339).unwrap_or_default()
}

impl ServedNetwork {
    /// Refuses a payment for which no gas is spent now: its payer is suspended, or a budget is spent. Asks neither chain nor ledger.
    pub fn check_sponsorship(&self, parties: GasParties) -> Result<(), Rejection> {
        self.check_payer(parties.payer)?;
        self.budgets.check(parties, self.ledger.clock().now())
    }
}

/// The task that keeps [`Budgets`] and the suspensions of payers current.
#[derive(Debug)]
pub struct BudgetWatch {
    served: Arc<ServedNetwork>,
}

impl BudgetWatch {
    pub const fn new(served: Arc<ServedNetwork>) -> Self {
        Self { served }
    }

    /// Reads the ledger until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        loop {
            if let Err(error) = self.read().await {
                tracing::debug!(error = causes(&error), "gas budgets not read");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(REFRESH_INTERVAL) => {}
            }
        }
    }

    /// Reads once.
    pub async fn read(&self) -> Result<(), LedgerError> {
        let served = &self.served;
        let key_limits = served.ledger.gas_limits_of_keys().await?;
        *served.budgets.key_limits() = key_limits.into_iter().collect();
        let subjects = served.budgets.subjects();
        let network = served.policy.network;
        let days = served.ledger.gas_hours(network, &subjects).await?;
        let now = served.ledger.clock().now();
        for (subject, hours) in subjects.iter().zip(days) {
            served.budgets.refresh(*subject, &hours, now);
        }
        let suspended = served.ledger.suspensions(network).await?;
        served.suspensions.replace(&suspended);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
