//! Which payers have wasted the gas of a transaction: their payments were mined without a transfer by their own doing.

use std::collections::HashMap;

use alloy::primitives::U256;

use crate::chain::{AuthorizationUse, RpcResult};
use crate::ledger::{Carried, Undecided, Wasteful};
use crate::payment::{ChainFacts, PaymentId};
use crate::settlement::ServedNetwork;

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
    let is_spent = lacks(facts.balance) || lacks(facts.allowance);
    // Who spent the money and got code afterwards must not have the code blamed, which others share.
    if is_spent && !(facts.payer_has_code && row.ran_out_of_gas) {
        Cause::Spent
    } else if facts.payer_has_code {
        Cause::Code
    } else if facts.transfer_succeeds {
        Cause::Unseen
    } else {
        Cause::Other
    }
}

/// The payments of one transaction, in their order, that failed by their payers' doing.
///
/// Code may take all gas, and then the payments behind it fail without it. An account can have code for one block only (EIP-7702). So in a
/// batch that used up its gas, the first payment that fails for no other reason is the one that took it. That is said only with all of
/// them at hand: if one was decided before, or cannot be read now, it may be the one.
fn wasted<'a>(rows: &[(&'a Undecided, Cause)]) -> Vec<(&'a Undecided, Cause)> {
    let mut found = Vec::new();
    for (row, cause) in rows.iter().copied() {
        let took_all = row.carried == Carried::Batch && row.ran_out_of_gas;
        let all_here = i64::try_from(rows.len()) == Ok(row.without_transfer);
        match cause {
            Cause::Other => {}
            Cause::Unseen if !(took_all && all_here) => {}
            Cause::Spent => found.push((row, cause)),
            Cause::Code | Cause::Unseen => {
                found.push((row, cause));
                if took_all {
                    break;
                }
            }
        }
    }
    found
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
        for (row, cause) in wasted(&rows) {
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

    fn row(ran_out_of_gas: bool) -> Undecided {
        Undecided {
            payment: payment(PaymentState::Inflight(B256::ZERO)),
            transaction: Uuid::nil(),
            hash: B256::ZERO,
            block_number: 1,
            block_hash: B256::ZERO,
            call_succeeded: false,
            carried: Carried::Batch,
            ran_out_of_gas,
            without_transfer: 4,
            tries: 0,
        }
    }

    #[test]
    fn payment_that_took_the_gas_is_blamed_and_those_behind_it_are_not() {
        use Cause::{Code, Other, Spent, Unseen};
        let (burnt, calm) = (row(true), row(false));
        let blamed = |row: &Undecided, causes: &[Cause]| {
            let rows: Vec<_> = causes.iter().map(|cause| (row, *cause)).collect();
            wasted(&rows)
                .into_iter()
                .map(|(_, cause)| cause)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            blamed(&burnt, &[Spent, Unseen, Unseen, Code]),
            [Spent, Unseen]
        );
        assert_eq!(blamed(&burnt, &[Other, Code, Unseen, Unseen]), [Code]);
        assert_eq!(
            blamed(&burnt, &[Unseen, Unseen, Spent]),
            [Spent],
            "one is missing"
        );
        assert_eq!(
            blamed(&calm, &[Unseen, Spent, Unseen, Code, Other]),
            [Spent, Code]
        );
    }

    #[test]
    fn cause_is_read_from_the_payers_account() {
        let row = row(false);
        let of = |facts: &ChainFacts| cause_of_unused(&row, facts);
        assert_eq!(of(&facts()), Cause::Unseen);
        let mut with_code = facts();
        with_code.payer_has_code = true;
        assert_eq!(of(&with_code), Cause::Code);
        let mut poor = facts();
        (poor.balance, poor.transfer_succeeds) = (Some(U256::ZERO), false);
        assert_eq!(of(&poor), Cause::Spent);
        let mut paused = facts();
        paused.transfer_succeeds = false;
        assert_eq!(of(&paused), Cause::Other);
    }
}
