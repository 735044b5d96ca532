//! Payments whose transaction a gas budget does not allow.

use std::collections::HashMap;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::Instant;

use super::batch_plan::{SETBACKS_WHOLE, SimulatedPayment};
use super::{Lane, OwnedLane};
use crate::ledger::{GasSubject, LedgerError, OverBudget};
use crate::settlement::{GasParties, Named, Queued};

/// Payments of a lane that wait for something to end. More would keep it from taking others.
pub(super) const HELD_BACK_MAX: usize = 64;
/// How long payments wait that fit when open transactions have their receipts, before they are planned again...
const RECEIPTS_PAUSE: Duration = Duration::from_millis(500);
/// ...and when those are taken again for which there is no room to wait.
const RECEIPTS_WITHIN: time::Duration = time::Duration::seconds(10);

impl OwnedLane {
    /// Room for further payments that wait.
    pub(super) fn room_to_hold_back(&self) -> usize {
        let held = self.waiting.iter().filter(|one| one.not_before.is_some());
        HELD_BACK_MAX.saturating_sub(held.count())
    }
}

impl Lane {
    /// Refuses those payments whose own budget has no room; nothing was written or sent. Some wait where the receipts of open transactions
    /// will leave room. The others are planned again at once.
    pub(super) async fn refuse_over_budget(
        &self,
        owned: &mut OwnedLane,
        over: &[OverBudget],
        rows: Vec<SimulatedPayment>,
    ) -> Result<(), LedgerError> {
        let served = &self.served;
        let now = served.ledger.clock().now();
        served.budgets.note_refused(over, served.plain_cost(), now);
        let together = rows.len() > 1;
        let mut room = owned.room_to_hold_back();
        let mut refused: HashMap<(GasSubject, OffsetDateTime), Vec<Named>> = HashMap::new();
        let mut free = Vec::new();
        for row in rows {
            let Some((subject, until)) = closed(over, &row) else {
                free.push(row);
                continue;
            };
            if until.is_none() && room > 0 {
                room -= 1;
                owned.waiting.push(held_back(row, together));
                continue;
            }
            let until = until.unwrap_or(now + RECEIPTS_WITHIN);
            let payments = refused.entry((subject, until)).or_default();
            payments.push(Named::of(&row.payment));
        }
        owned.put_back(free);
        for ((subject, until), payments) in refused {
            let rejection = served.budgets.exhausted(subject, until);
            let ids: Vec<_> = payments.iter().map(|named| named.payment()).collect();
            let refused = served.ledger.refuse_all(&ids, &rejection).await?;
            let is_refused = |named: &&Named| refused.contains(&named.payment());
            for named in payments.iter().filter(is_refused) {
                served.note_refused(*named, &rejection);
            }
            served.waiters.wake(ids);
        }
        Ok(())
    }
}

/// The budget without room that a payment counts in, and until when; that of the latest end.
fn closed(
    over: &[OverBudget],
    row: &SimulatedPayment,
) -> Option<(GasSubject, Option<OffsetDateTime>)> {
    let subjects = GasParties::of(&row.payment).subjects();
    let own = subjects.filter_map(|subject| over.iter().find(|one| one.subject == subject));
    own.map(|one| (one.subject, one.until))
        .max_by_key(|(_, until)| *until)
}

/// A payment that is planned again a little later, in a smaller transaction where it was not alone.
fn held_back(row: SimulatedPayment, together: bool) -> Queued {
    let setbacks = if together {
        row.setbacks.saturating_add(1).max(SETBACKS_WHOLE)
    } else {
        row.setbacks
    };
    Queued {
        alone: row.alone,
        setbacks,
        not_before: Some(Instant::now() + RECEIPTS_PAUSE),
        ..Queued::new(row.payment, Some(row.facts))
    }
}
