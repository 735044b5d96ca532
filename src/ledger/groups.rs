//! The statements of the core path, grouped: concurrent requests share a round trip and a commit.

use std::sync::Arc;
use std::time::Duration;

use super::acceptance::{self, Accepted, NewPayment};
use super::connections::Connections;
use super::grants::{self, Closing, GrantRequest, Lookup, PaymentWithGrant};
use super::{AuthorizationKey, Ledger, LedgerError, ProcessId};
use crate::coalesce::{Coalescer, GroupLimits, GroupWorker, coalescer};
use crate::payment::{Payment, PaymentId};

/// A burst needs few statements, and each of them is short.
const GROUP_LIMITS: GroupLimits = GroupLimits {
    rows_max: 256,
    groups_max: 2,
    pace: Duration::from_millis(2),
    waiting_max: 16_384,
};

type Reply<A> = Result<A, LedgerError>;

/// The sending ends.
#[derive(Debug, Clone)]
pub(super) struct Groups {
    lookups: Coalescer<AuthorizationKey, Reply<Lookup>>,
    acceptances: Coalescer<NewPayment, Reply<Accepted>>,
    payments: Coalescer<PaymentId, Reply<PaymentWithGrant>>,
    grants: Coalescer<(PaymentId, GrantRequest), Reply<Option<Payment>>>,
    closings: Coalescer<Closing, Reply<()>>,
}

/// The task that runs the grouped statements of a [`Ledger`]. It must run for as long as the ledger is used.
#[derive(Debug)]
pub struct LedgerTask {
    pool: Connections,
    granting: Connections,
    process: ProcessId,
    lookups: GroupWorker<AuthorizationKey, Reply<Lookup>>,
    acceptances: GroupWorker<NewPayment, Reply<Accepted>>,
    payments: GroupWorker<PaymentId, Reply<PaymentWithGrant>>,
    grants: GroupWorker<(PaymentId, GrantRequest), Reply<Option<Payment>>>,
    closings: GroupWorker<Closing, Reply<()>>,
}

pub(super) fn new_groups(
    pool: &Connections,
    granting: &Connections,
    process: ProcessId,
) -> (Groups, LedgerTask) {
    let (lookups, lookups_end) = coalescer(GROUP_LIMITS);
    let (acceptances, acceptances_end) = coalescer(GROUP_LIMITS);
    let (payments, payments_end) = coalescer(GROUP_LIMITS);
    let (grants, grants_end) = coalescer(GROUP_LIMITS);
    let (closings, closings_end) = coalescer(GROUP_LIMITS);
    let groups = Groups {
        lookups,
        acceptances,
        payments,
        grants,
        closings,
    };
    let task = LedgerTask {
        pool: pool.clone(),
        granting: granting.clone(),
        process,
        lookups: lookups_end,
        acceptances: acceptances_end,
        payments: payments_end,
        grants: grants_end,
        closings: closings_end,
    };
    (groups, task)
}

impl LedgerTask {
    /// Runs the statements until every clone of the [`Ledger`] is dropped.
    pub async fn run(self) {
        let (pool, granting_pool, process) = (self.pool, self.granting, self.process);
        let lookups = self.lookups.run(|keys| {
            let pool = pool.clone();
            run_group(keys, move |keys| grants::lookup(pool.clone(), keys))
        });
        let acceptances = self.acceptances.run(|new| {
            let pool = pool.clone();
            run_group(new, move |new| {
                acceptance::accept(pool.clone(), process, new)
            })
        });
        let payments = self.payments.run(|ids| {
            let pool = pool.clone();
            run_group(ids, move |ids| {
                grants::payments_with_grants(pool.clone(), ids)
            })
        });
        let granting = self.grants.run(|asked| {
            let pool = granting_pool.clone();
            run_group(asked, move |asked| {
                grants::grant(pool.clone(), process, asked)
            })
        });
        let closings = self.closings.run(|closings| {
            let pool = granting_pool.clone();
            run_group(closings, move |closings| {
                grants::close(pool.clone(), process, closings)
            })
        });
        tokio::join!(lookups, acceptances, payments, granting, closings);
    }
}

/// Runs a statement for a group of requests.
///
/// A row that cannot be read is an error of its own request only; the statement returns one result per request.
async fn run_group<Q, A, F, Done>(requests: Vec<Q>, run: F) -> Vec<Reply<A>>
where
    Q: Clone + Send + Sync,
    A: Send,
    F: Fn(Arc<[Q]>) -> Done + Send,
    Done: Future<Output = Reply<Vec<Reply<A>>>> + Send,
{
    let requests: Arc<[Q]> = requests.into();
    let mut first = run(Arc::clone(&requests)).await;
    // A deadlock or serialization failure: nothing was written, so it is tried once more.
    if first.as_ref().is_err_and(LedgerError::was_rolled_back) {
        first = run(Arc::clone(&requests)).await;
    }
    match first {
        Ok(answers) => answers,
        // One row fails the whole statement, for instance by a constraint: each request is then run alone.
        Err(error) if requests.len() > 1 && error.concerns_one_row() => {
            let mut answers = Vec::with_capacity(requests.len());
            for request in requests.iter() {
                let alone = run(Arc::from([request.clone()])).await;
                let missing = LedgerError::Conflict {
                    what: "the result of a statement for one caller",
                };
                answers.push(alone.and_then(|answers| answers.into_iter().next().ok_or(missing)?));
            }
            answers
        }
        Err(error) => {
            let shared = Arc::new(error);
            let results = requests.iter();
            results
                .map(|_| Err(LedgerError::Shared(Arc::clone(&shared))))
                .collect()
        }
    }
}

impl Ledger {
    /// Looks an authorization up: the session whose nonce it uses, its payment and that payment's grant.
    pub async fn lookup(&self, key: AuthorizationKey) -> Result<Lookup, LedgerError> {
        self.groups.lookups.ask(key).await?
    }

    /// Accepts a verified payment: one row per authorization, and never more in total than its payer has.
    /// On an error the row may have been written.
    pub async fn accept(&self, new: NewPayment) -> Result<Accepted, LedgerError> {
        self.groups.acceptances.ask(new).await?
    }

    /// A payment and its grant. [`LedgerError::Conflict`]: there is no such payment.
    pub async fn payment_with_grant(&self, id: PaymentId) -> Result<PaymentWithGrant, LedgerError> {
        self.groups.payments.ask(id).await?
    }

    /// Takes the grant of a payment whose money was transferred, and returns the payment to answer from. `None`: another request holds the
    /// grant, or a reorg has undone the transfer.
    pub async fn grant(
        &self,
        id: PaymentId,
        request: GrantRequest,
    ) -> Result<Option<Payment>, LedgerError> {
        self.groups.grants.ask((id, request)).await?
    }

    /// Closes a grant that this process holds: the answer reached the socket, or the connection broke before.
    /// On an error the grant becomes void when the lease of this process ends.
    pub async fn close_grant(&self, closing: Closing) -> Result<(), LedgerError> {
        self.groups.closings.ask(closing).await?
    }
}

#[cfg(test)]
mod tests;
