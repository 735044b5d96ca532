//! Which payers have wasted the gas of a transaction: their payments were mined without a transfer by their own doing.

use std::collections::HashMap;

use alloy::primitives::U256;

use crate::chain::{AuthorizationUse, RpcResult};
use crate::ledger::{Carried, Undecided, Wasteful};
use crate::payment::{ChainFacts, PaymentId};
use crate::settlement::ServedNetwork;
use crate::settlement::reconcile::undecided::TRIES_MAX;

/// An undecided payment, and what the chain says of its nonce.
pub(super) type Found<'a> = (&'a Undecided, &'a AuthorizationUse);

/// What the state of a payment's payer says about its failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// Not the payer's doing.
    Other,
    /// The payer cancelled the nonce, or spent the money or the allowance.
    Spent,
    /// The payer's account has code, which decides what its payments do in a block.
    Code,
    /// Nothing that is seen: the payment would succeed now.
    Unseen,
}

/// The cause of a failure whose authorization is unused.
fn cause_of_unused(row: &Undecided, facts: &ChainFacts) -> Cause {
    let value = row.payment.terms.value.atomic();
    let lacks = |has: Option<U256>| has.is_some_and(|has| has < value);
    // An allowance by a permit is none before the permit is used, and the transfer succeeds all the same.
    let is_spent = !facts.transfer_succeeds && (lacks(facts.balance) || lacks(facts.allowance));
    // A plain account rides in batches. If it has code now, that explains a batch without gas, but not a payment that lacks money.
    let ran_code = row.ran_out_of_gas || row.carried == Carried::Payment || !is_spent;
    if facts.payer_has_code && ran_code {
        Cause::Code
    } else if is_spent {
        Cause::Spent
    } else if facts.transfer_succeeds {
        Cause::Unseen
    } else {
        Cause::Other
    }
}

/// What follows for the payers of one transaction's payments.
#[derive(Debug, Default)]
struct Blame<'a> {
    /// Failed by their payers' doing.
    wasted: Vec<(&'a Undecided, Cause)>,
    /// One of these took the gas of the others.
    suspects: Vec<&'a Undecided>,
}

/// Who has wasted the gas of one transaction.
///
/// Code may take all gas of a batch, and an account can have code for one block only (EIP-7702): nothing is seen of it afterwards. If no
/// payer of a batch without gas has code now, any of them may have had it, whatever its payment looks like since. None is suspended for
/// that, but each is sent alone for a while, where it can burn its own gas only, and is seen to do so.
fn blame<'a>(rows: &[(&'a Undecided, Cause)]) -> Blame<'a> {
    let mut blame = Blame::default();
    let has_code = rows.iter().any(|(_, cause)| *cause == Cause::Code);
    for (row, cause) in rows.iter().copied() {
        let burnt = row.ran_out_of_gas && row.carried == Carried::Batch;
        let burnt_alone = row.ran_out_of_gas && row.carried == Carried::Payment;
        let again_and_again = burnt_alone && row.tries >= TRIES_MAX;
        if matches!(cause, Cause::Code | Cause::Spent) || cause == Cause::Unseen && again_and_again
        {
            blame.wasted.push((row, cause));
        }
        if burnt && !has_code {
            blame.suspects.push(row);
        }
    }
    blame
}

/// The payers among these payments that have wasted gas, each with what to suspend. Asks the chain about unused authorizations only.
pub(super) async fn wasteful(
    served: &ServedNetwork,
    found: &[Found<'_>],
) -> RpcResult<HashMap<PaymentId, Vec<Wasteful>>> {
    let mut by_transaction: HashMap<_, Vec<(&Undecided, Cause)>> = HashMap::new();
    let facts = found.iter().map(|(row, used)| cause_of(served, row, used));
    let causes = futures_util::future::join_all(facts).await;
    for ((row, _), cause) in found.iter().zip(causes) {
        let rows = by_transaction.entry(row.transaction).or_default();
        rows.push((row, cause));
    }
    let mut all = HashMap::new();
    for rows in by_transaction.into_values() {
        let blame = blame(&rows);
        for row in blame.suspects {
            served.suspensions.send_alone(row.payment.terms.from);
        }
        for (row, cause) in blame.wasted {
            let payer = row.payment.terms.from;
            let mut of = vec![Wasteful::Payer(payer)];
            // Its payer is suspended also while its code cannot be read.
            if cause == Cause::Code
                && let Ok(code) = served.code_of(payer).await
            {
                of.extend(code);
            }
            all.insert(row.payment.id, of);
        }
    }
    Ok(all)
}

async fn cause_of(served: &ServedNetwork, row: &Undecided, used: &AuthorizationUse) -> Cause {
    match used {
        _ if row.carried == Carried::Nothing => Cause::Other,
        AuthorizationUse::Consumed(Some(by)) if *by != row.hash => Cause::Spent,
        AuthorizationUse::Consumed(_) | AuthorizationUse::Transferred { .. } => Cause::Other,
        AuthorizationUse::Unused => match served.lane_facts.of(&row.payment.terms).await {
            Ok(facts) => cause_of_unused(row, &facts),
            // The code of the payer may be the reason, which must not keep the others from being decided.
            Err(_) => match served.rpc.has_code(row.payment.terms.from).await {
                Ok(true) => Cause::Code,
                Ok(false) | Err(_) => Cause::Other,
            },
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy::primitives::B256;
    use uuid::Uuid;

    use crate::payment::PaymentState;
    use crate::payment::fixture::{facts, payment};

    fn row(carried: Carried, ran_out_of_gas: bool) -> Undecided {
        Undecided {
            payment: payment(PaymentState::Inflight(B256::ZERO)),
            transaction: Uuid::nil(),
            hash: B256::ZERO,
            block_number: 1,
            block_hash: B256::ZERO,
            call_succeeded: false,
            carried,
            ran_out_of_gas,
            tries: 0,
        }
    }

    /// The causes that are blamed, and the number of suspects.
    fn blamed(row: &Undecided, causes: &[Cause]) -> (Vec<Cause>, usize) {
        let rows: Vec<_> = causes.iter().map(|cause| (row, *cause)).collect();
        let blame = blame(&rows);
        let causes = blame.wasted.into_iter().map(|(_, cause)| cause);
        (causes.collect(), blame.suspects.len())
    }

    #[test]
    fn batch_without_gas_suspends_none_that_is_not_seen_to_have_taken_it() {
        use Cause::{Code, Other, Spent, Unseen};
        let burnt = row(Carried::Batch, true);
        for (causes, wasted, suspects) in [
            (vec![Unseen, Unseen, Code, Unseen], vec![Code], 0),
            (vec![Code, Spent, Code], vec![Code, Spent, Code], 0),
            // Its code is gone again, or it has spent its money or used its authorization since.
            (vec![Unseen, Unseen], vec![], 2),
            (vec![Unseen, Spent, Other], vec![Spent], 3),
        ] {
            assert_eq!(blamed(&burnt, &causes), (wasted, suspects), "{causes:?}");
        }
        let calm = row(Carried::Batch, false);
        assert_eq!(blamed(&calm, &[Unseen, Spent, Other]), (vec![Spent], 0));
    }

    #[test]
    fn payment_that_burns_its_own_gas_again_and_again_is_blamed() {
        let mut alone = row(Carried::Payment, true);
        assert_eq!(blamed(&alone, &[Cause::Unseen]), (vec![], 0));
        alone.tries = TRIES_MAX;
        assert_eq!(blamed(&alone, &[Cause::Unseen]), (vec![Cause::Unseen], 0));
    }

    #[test]
    fn cause_is_read_from_the_payers_account() {
        let row = row(Carried::Batch, false);
        let of = |facts: &ChainFacts| cause_of_unused(&row, facts);
        assert_eq!(of(&facts()), Cause::Unseen);
        let mut with_code = facts();
        with_code.payer_has_code = true;
        assert_eq!(of(&with_code), Cause::Code);
        let mut poor = facts();
        (poor.balance, poor.transfer_succeeds) = (Some(U256::ZERO), false);
        assert_eq!(of(&poor), Cause::Spent);
        let mut permitted = facts();
        permitted.allowance = Some(U256::ZERO);
        assert_eq!(of(&permitted), Cause::Unseen, "its permit comes with it");
        let mut paused = facts();
        paused.transfer_succeeds = false;
        assert_eq!(of(&paused), Cause::Other);
    }
}
