//! Payers whose payments were verified and then did not settle, after the handler had worked for them.
//!
//! In [`crate::seller::Flow::AfterHandler`] a payer can make its payment void while the handler runs, by using up its nonce or by moving its
//! balance. It gets no response, but the work was done. Such a payer waits before its next request is worked for.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use alloy::primitives::Address;

/// The wait after the first failure, in seconds; each further one doubles it.
const FIRST_WAIT_S: i64 = 60;
const WAIT_S_MAX: i64 = 24 * 3600;
/// The limit of payers. Beyond it the one that waits the least is forgotten.
const PAYERS_MAX: usize = 10_000;

#[derive(Debug, Clone, Copy)]
struct Record {
    failures: u32,
    /// Unix seconds.
    until: i64,
}

/// The payers that wait, or have waited less than a day ago.
#[derive(Debug, Default)]
pub(super) struct SuspendedPayers(Mutex<HashMap<Address, Record>>);

impl SuspendedPayers {
    /// Until when a payer waits, in Unix seconds.
    pub(super) fn until(&self, payer: Address, now: i64) -> Option<i64> {
        let records = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let until = records.get(&payer)?.until;
        (until > now).then_some(until)
    }

    /// Counts a verified payment that did not settle.
    pub(super) fn record_failure(&self, payer: Address, now: i64) {
        let mut records = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let failures = records.get(&payer).map_or(0, |record| record.failures);
        let wait = FIRST_WAIT_S
            .checked_shl(failures.min(32))
            .map_or(WAIT_S_MAX, |wait| wait.min(WAIT_S_MAX));
        let record = Record {
            failures: failures.saturating_add(1),
            until: now.saturating_add(wait),
        };
        records.insert(payer, record);
        if records.len() > PAYERS_MAX {
            records.retain(|_, record| record.until.saturating_add(WAIT_S_MAX) > now);
        }
        if records.len() > PAYERS_MAX
            && let Some(payer) = records
                .iter()
                .min_by_key(|(_, record)| record.until)
                .map(|(payer, _)| *payer)
        {
            records.remove(&payer);
        }
    }

    /// Forgets the failures of a payer whose payment settled.
    pub(super) fn record_success(&self, payer: Address) {
        let mut records = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        records.remove(&payer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_doubles_up_to_a_day_and_ends_with_a_success() {
        let (payers, payer) = (SuspendedPayers::default(), Address::repeat_byte(1));
        for wait in [60, 120, 240] {
            payers.record_failure(payer, 1_000);
            assert_eq!(payers.until(payer, 1_000), Some(1_000 + wait));
        }
        assert_eq!(payers.until(payer, 1_240), None);
        for _ in 0..100 {
            payers.record_failure(payer, 1_000);
        }
        assert_eq!(payers.until(payer, 1_000), Some(1_000 + WAIT_S_MAX));
        assert_eq!(payers.until(Address::ZERO, 1_000), None);
        payers.record_success(payer);
        payers.record_failure(payer, 1_000);
        assert_eq!(payers.until(payer, 1_000), Some(1_060));
    }

    #[test]
    fn number_of_payers_is_bounded() {
        let payers = SuspendedPayers::default();
        for number in 0..PAYERS_MAX + 5 {
            let mut address = [0; 20];
            address[..8].copy_from_slice(&number.to_be_bytes());
            payers.record_failure(Address::from(address), 1_000);
        }
        assert_eq!(payers.0.lock().unwrap().len(), PAYERS_MAX);
    }
}
