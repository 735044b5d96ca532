//! The statements of the core path, grouped: callers that come together share a round trip and a commit.

use std::sync::Arc;
use std::time::Duration;

use super::acceptance::{self, Accepted, NewPayment};
use super::connections::Connections;
use super::grants::{self, Closing, GrantRequest, Known, Standing};
use super::{AuthorizationKey, Ledger, LedgerError, ProcessId};
use crate::coalesce::{Answering, Coalescer, Gathering, coalescer};
use crate::payment::{Payment, PaymentId};

/// Enough for any burst to need a few statements, few enough for each to be short.
const GATHERING: Gathering = Gathering {
    rows_max: 256,
    groups_max: 2,
    pace: Duration::from_millis(2),
    waiting_max: 16_384,
};

type Answer<A> = Result<A, LedgerError>;

/// The askers' ends.
#[derive(Debug, Clone)]
pub(super) struct Groups {
    known: Coalescer<AuthorizationKey, Answer<Known>>,
    acceptances: Coalescer<NewPayment, Answer<Accepted>>,
    standings: Coalescer<PaymentId, Answer<Standing>>,
    grants: Coalescer<(PaymentId, GrantRequest), Answer<Option<Payment>>>,
    closings: Coalescer<Closing, Answer<()>>,
}

/// The task behind the grouped statements of a [`Ledger`]; run it for as long as anybody may use it.
#[derive(Debug)]
pub struct LedgerTask {
    pool: Connections,
    granting: Connections,
    process: ProcessId,
    known: Answering<AuthorizationKey, Answer<Known>>,
    acceptances: Answering<NewPayment, Answer<Accepted>>,
    standings: Answering<PaymentId, Answer<Standing>>,
    grants: Answering<(PaymentId, GrantRequest), Answer<Option<Payment>>>,
    closings: Answering<Closing, Answer<()>>,
}

pub(super) fn open(
    pool: &Connections,
    granting: &Connections,
    process: ProcessId,
) -> (Groups, LedgerTask) {
    let (known, known_end) = coalescer(GATHERING);
    let (acceptances, acceptances_end) = coalescer(GATHERING);
    let (standings, standings_end) = coalescer(GATHERING);
    let (grants, grants_end) = coalescer(GATHERING);
    let (closings, closings_end) = coalescer(GATHERING);
    let groups = Groups {
        known,
        acceptances,
        standings,
        grants,
        closings,
    };
    let task = LedgerTask {
        pool: pool.clone(),
        granting: granting.clone(),
        process,
        known: known_end,
        acceptances: acceptances_end,
        standings: standings_end,
        grants: grants_end,
        closings: closings_end,
    };
    (groups, task)
}

impl LedgerTask {
    /// Runs the statements until every [`Ledger`] of this connection is gone.
    pub async fn run(self) {
        let (pool, granting_pool, process) = (self.pool, self.granting, self.process);
        let known = self.known.run(|keys| {
            let pool = pool.clone();
            each(keys, move |keys| grants::known(pool.clone(), keys))
        });
        let acceptances = self.acceptances.run(|new| {
            let pool = pool.clone();
            each(new, move |new| {
                acceptance::accept(pool.clone(), process, new)
            })
        });
        let standings = self.standings.run(|ids| {
            let pool = pool.clone();
            each(ids, move |ids| grants::standings(pool.clone(), ids))
        });
        let granting = self.grants.run(|asked| {
            let pool = granting_pool.clone();
            each(asked, move |asked| {
                grants::grant(pool.clone(), process, asked)
            })
        });
        let closings = self.closings.run(|closings| {
            let pool = granting_pool.clone();
            each(closings, move |closings| {
                grants::close(pool.clone(), process, closings)
            })
        });
        tokio::join!(known, acceptances, standings, granting, closings);
    }
}

/// Runs a statement for a group; once more when the database undid it because somebody else was in the way. A row that cannot be read is the
/// answer of who asked for it alone; one that fails the statement, as it offends a constraint, takes nobody down with it: each then goes
/// by itself.
async fn each<Q, A, F, Done>(questions: Vec<Q>, run: F) -> Vec<Answer<A>>
where
    Q: Clone + Send + Sync,
    A: Send,
    F: Fn(Arc<[Q]>) -> Done + Send,
    Done: Future<Output = Answer<Vec<Answer<A>>>> + Send,
{
    let questions: Arc<[Q]> = questions.into();
    let mut first = run(Arc::clone(&questions)).await;
    if first.as_ref().is_err_and(LedgerError::is_undone) {
        first = run(Arc::clone(&questions)).await;
    }
    match first {
        Ok(answers) => answers,
        Err(error) if questions.len() > 1 && error.blames_a_row() => {
            let mut answers = Vec::with_capacity(questions.len());
            for question in questions.iter() {
                let alone = run(Arc::from([question.clone()])).await;
                let missing = LedgerError::Conflict {
                    what: "a statement for one caller",
                };
                answers.push(alone.and_then(|answers| answers.into_iter().next().ok_or(missing)?));
            }
            answers
        }
        Err(error) => {
            let shared = Arc::new(error);
            let each = questions.iter();
            each.map(|_| Err(LedgerError::Shared(Arc::clone(&shared))))
                .collect()
        }
    }
}

impl Ledger {
    /// What is known about an authorization: the session that gave it its nonce, its payment and that one's grant.
    ///
    /// # Errors
    /// When the database fails or a row cannot be read.
    pub async fn known(&self, key: AuthorizationKey) -> Result<Known, LedgerError> {
        self.groups.known.ask(key).await?
    }

    /// Accepts a verified payment: one row per authorization, whoever comes first, and never more than its payer has.
    ///
    /// # Errors
    /// When the database fails; the row may then be there.
    pub async fn accept(&self, new: NewPayment) -> Result<Accepted, LedgerError> {
        self.groups.acceptances.ask(new).await?
    }

    /// A payment and its grant; it must exist.
    ///
    /// # Errors
    /// When the database fails, the row cannot be read or is gone.
    pub async fn standing(&self, id: PaymentId) -> Result<Standing, LedgerError> {
        self.groups.standings.ask(id).await?
    }

    /// Takes the grant of a payment whose money has moved; the row to answer from. `None`: somebody else holds it, or the money has moved back.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn grant(
        &self,
        id: PaymentId,
        request: GrantRequest,
    ) -> Result<Option<Payment>, LedgerError> {
        self.groups.grants.ask((id, request)).await?
    }

    /// Records what became of the answer that this process was giving: it reached the socket, or broke off.
    ///
    /// # Errors
    /// When the database fails; the grant is then void once this process has ended.
    pub async fn close_grant(&self, closing: Closing) -> Result<(), LedgerError> {
        self.groups.closings.ask(closing).await?
    }
}
