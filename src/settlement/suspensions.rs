//! Payers for which no gas is spent for a while, as this process knows them, and the payments of wallets that are under way.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alloy::primitives::{Address, keccak256};
use time::OffsetDateTime;
use tokio::time::Instant;

use crate::chain::RpcError;
use crate::ledger::{Suspension, Wasteful};
use crate::payment::{ChainFacts, PaymentId, PaymentTerms};
use crate::protocol::{Reason, Rejection};
use crate::settlement::budgets::until_text;
use crate::settlement::turns::{Turn, Turns};
use crate::settlement::{DependencyError, ServedNetwork};

/// Transactions of a payer with code that are under way at a time. What its code does in the block is not known before.
const WALLET_TURNS: usize = 2;
/// What the code of an account begins with that delegates to a contract (EIP-7702).
const DELEGATION: [u8; 3] = [0xef, 0x01, 0x00];
/// Longest time for which the turn of an undecided payment is kept.
const KEPT_MAX: Duration = Duration::from_mins(10);

/// How long payers are sent alone after they were in a batch whose gas one of them took.
const ALONE_FOR: Duration = Duration::from_hours(1);
/// Payers that are sent alone, at most.
const ALONE_MAX: usize = 10_000;

/// The suspensions of a network and the payments of wallets under way.
#[derive(Debug)]
pub struct Suspensions {
    known: Mutex<HashMap<Wasteful, OffsetDateTime>>,
    under_way: Turns,
    /// Turns of payments that were mined without a transfer, until they are decided.
    undecided: Mutex<HashMap<PaymentId, (Instant, Arc<Turn>)>>,
    /// Payers that were in a batch whose gas one of them took, and since when.
    alone: Mutex<HashMap<Address, Instant>>,
}

impl Default for Suspensions {
    fn default() -> Self {
        Self {
            known: Mutex::default(),
            under_way: Turns::new(WALLET_TURNS),
            undecided: Mutex::default(),
            alone: Mutex::default(),
        }
    }
}

impl Suspensions {
    /// Records suspensions.
    pub(super) fn note(&self, found: &[Suspension]) {
        locked(&self.known).extend(found.iter().map(|one| (one.of, one.until)));
    }

    /// Records all suspensions that hold now.
    pub(super) fn replace(&self, all: &[Suspension]) {
        self.end_old_turns();
        *locked(&self.known) = all.iter().map(|one| (one.of, one.until)).collect();
    }

    fn until(&self, of: Wasteful, now: OffsetDateTime) -> Option<OffsetDateTime> {
        let known = locked(&self.known);
        known.get(&of).copied().filter(|until| *until > now)
    }

    fn any_code(&self) -> bool {
        let known = locked(&self.known);
        known.keys().any(|of| matches!(of, Wasteful::Code(_)))
    }

    /// Keeps the turn of a payment that was mined without a transfer.
    pub(super) fn keep_turn(&self, payment: PaymentId, turn: Arc<Turn>) {
        locked(&self.undecided).insert(payment, (Instant::now(), turn));
    }

    /// Ends the turn of a payment that is decided.
    pub(super) fn end_turn(&self, payment: PaymentId) {
        locked(&self.undecided).remove(&payment);
    }

    /// Ends the turns of payments that another process has decided.
    fn end_old_turns(&self) {
        locked(&self.undecided).retain(|_, (since, _)| since.elapsed() < KEPT_MAX);
    }

    /// Payments of this payer get transactions of their own for a while. Only this process knows it.
    pub(super) fn send_alone(&self, payer: Address) {
        let mut alone = locked(&self.alone);
        alone.retain(|_, since| since.elapsed() < ALONE_FOR);
        if alone.len() < ALONE_MAX {
            alone.insert(payer, Instant::now());
        }
    }

    pub(super) fn is_alone(&self, payer: Address) -> bool {
        let alone = locked(&self.alone);
        alone
            .get(&payer)
            .is_some_and(|since| since.elapsed() < ALONE_FOR)
    }

    /// A turn for a payment of a payer with code. `None` while as many as allowed are under way.
    pub(super) fn turn_of(&self, payer: Address) -> Option<Turn> {
        self.under_way.of(payer)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The rejection of a payment whose payer, or whose wallet's code, is suspended.
pub(super) fn suspended(of: Wasteful, until: OffsetDateTime) -> Rejection {
    let who = match of {
        Wasteful::Payer(payer) => format!("payer {payer}"),
        Wasteful::Code(hash) => format!("wallets with the code {hash}"),
    };
    let until = until_text(until);
    Rejection::new(
        Reason::PayerSuspended,
        format!(
            "payments of {who} were mined in vain by their payer's own doing; its payments are taken again from {until} on"
        ),
    )
}

impl ServedNetwork {
    /// Refuses a payment whose payer is suspended.
    pub(super) fn check_payer(&self, payer: Address) -> Result<(), Rejection> {
        let (of, now) = (Wasteful::Payer(payer), self.ledger.clock().now());
        match self.suspensions.until(of, now) {
            Some(until) => Err(suspended(of, until)),
            None => Ok(()),
        }
    }

    /// Why the code of a payer's account keeps its payment from being sent, if so. A payer that has paid here before is known to be honest.
    /// Asks nothing while no code is suspended.
    pub async fn code_rejection(
        &self,
        terms: &PaymentTerms,
        facts: &ChainFacts,
    ) -> Result<Option<Rejection>, DependencyError> {
        if !facts.payer_has_code || !self.suspensions.any_code() {
            return Ok(None);
        }
        let payer = terms.from;
        let Some(of) = self.code_of(payer).await? else {
            return Ok(None);
        };
        let Some(until) = self.suspensions.until(of, self.ledger.clock().now()) else {
            return Ok(None);
        };
        let network = self.policy.network;
        let known = self.ledger.has_paid(network, terms.asset, payer).await?;
        Ok((!known).then(|| suspended(of, until)))
    }

    /// The code of a payer's account, by its hash. `None` for a plain account and for one that delegates to a contract (EIP-7702): it can
    /// point at the contract of honest users for a moment, and have it suspended.
    pub(super) async fn code_of(&self, payer: Address) -> Result<Option<Wasteful>, RpcError> {
        let code = self.rpc.code(payer).await?;
        let is_own = !code.is_empty() && !code.starts_with(&DELEGATION);
        Ok(is_own.then(|| Wasteful::Code(keccak256(&code))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAYER: Address = Address::repeat_byte(2);

    #[test]
    fn wallet_has_two_payments_under_way_at_most() {
        let suspensions = Suspensions::default();
        let first = suspensions.turn_of(PAYER).unwrap();
        let _second = suspensions.turn_of(PAYER).unwrap();
        assert!(suspensions.turn_of(PAYER).is_none());
        let _other = suspensions.turn_of(Address::ZERO).unwrap();
        drop(first);
        assert!(suspensions.turn_of(PAYER).is_some());
    }

    #[test]
    fn suspension_ends_by_itself() {
        let suspensions = Suspensions::default();
        let at = |second: i64| OffsetDateTime::from_unix_timestamp(second).unwrap();
        let of = Wasteful::Payer(PAYER);
        suspensions.note(&[Suspension { of, until: at(60) }]);
        assert_eq!(suspensions.until(of, at(59)), Some(at(60)));
        assert_eq!(suspensions.until(of, at(60)), None);
        suspensions.replace(&[]);
        assert_eq!(suspensions.until(of, at(59)), None);
        let message = suspended(of, at(60)).message;
        assert!(message.contains("1970-01-01T00:01:00Z"), "{message}");
    }
}
