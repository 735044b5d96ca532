//! Limits how many payments of one payer do a thing at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use alloy::primitives::Address;

type Taken = Arc<Mutex<HashMap<Address, usize>>>;

/// The turns that are taken, and how many one payer may have.
#[derive(Debug)]
pub(super) struct Turns {
    most: usize,
    taken: Taken,
}

/// A turn of this payer; dropping it makes room for another.
#[derive(Debug)]
pub struct Turn {
    payer: Address,
    taken: Taken,
}

impl Turns {
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            taken: Taken::default(),
        }
    }

    /// A turn for a payment of this payer. `None` while the payer has as many as allowed.
    pub(super) fn of(&self, payer: Address) -> Option<Turn> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(payer).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Turn {
            payer,
            taken: Arc::clone(&self.taken),
        })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.payer) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                taken.remove(&self.payer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAYER: Address = Address::repeat_byte(7);

    #[test]
    fn payer_has_as_many_turns_as_allowed() {
        let turns = Turns::new(2);
        let first = turns.of(PAYER).unwrap();
        let _second = turns.of(PAYER).unwrap();
        assert!(turns.of(PAYER).is_none());
        let other = turns.of(Address::ZERO).unwrap();
        drop(first);
        assert!(turns.of(PAYER).is_some());
        drop(other);
        let taken = turns.taken.lock().unwrap();
        assert_eq!(taken.len(), 1, "a payer without turns is forgotten");
    }
}
