//! The only door to SQL: payments, grants, lanes, transactions and their history, in Postgres.
//!
//! Knows the domain's types. Must not know RPC, HTTP or why a payment changes: it records decisions of the modules above.
//!
//! What always holds:
//!
//! - A transition is a guarded update: it repeats the state that it starts from.
//! - Every invariant is a named constraint of the schema too.
//! - Nothing outlives a transaction (no session lock, no `NOTIFY`), so that a pooler in transaction mode works as well.
//! - Leases are measured by the database's clock, never by this machine's.
//! - Every wait for the database has a limit on this side.

mod acceptance;
mod accounts;
mod budgets;
mod condition;
mod connections;
mod detail;
mod error;
mod events;
mod figures;
mod foreign;
mod fundings;
mod grants;
mod groups;
mod history;
mod keys;
mod lanes;
mod levels;
mod migrate;
mod outbox;
mod pauses;
mod payments;
mod processes;
mod quarantine;
mod refusals;
mod results;
mod row;
mod sessions;
mod stats;
mod suspensions;
#[cfg(test)]
mod testing;
mod transfers;
mod undecided;
mod webhooks;

use std::sync::Arc;
use std::time::Duration;

use alloy::primitives::{Address, B256};
use sqlx::postgres::PgConnectOptions;
use tokio::time::timeout;
use uuid::Uuid;

use connections::{Connections, Limits, Server};
use groups::Groups;

use crate::clock::{Clock, FollowingClock};
use crate::protocol::Network;
use crate::timing::Timing;

pub use acceptance::{Accepted, AlreadyTransferred, NewPayment};
pub use budgets::{GasHour, GasShare, GasSubject, GasUse, OverBudget, fits_at};
pub use condition::{Backlog, RunningProcess, ServerFacts};
pub use detail::{AttemptDetail, EntryDetail, Event, Mined};
pub use error::{LedgerError, Unreadable};
pub use events::{EventPosition, EventType, EventTypes, FeedEvent, FeedPage};
pub use figures::{Bar, CodeCount, Earned, SettleTimes, SignerCost};
pub use foreign::{ForeignNonce, NoncesLost};
pub use fundings::{Funding, FundingState, FundingTotals};
pub use grants::{Closing, GrantRequest, GrantStatus, Lookup, PaymentWithGrant};
pub use groups::LedgerTask;
pub use history::{Cursor, Entry, HistoryFilter, Page, PaidSession};
pub use keys::{Created, StoredKey};
pub use lanes::{Claim, LaneKey, LaneLease, LaneView, Renewal, StoppedLane};
pub use outbox::{
    Attempt, BroadcastReply, NewTransaction, PendingTransaction, Recorded, TransactionKind,
};
pub use pauses::{Pause, Waiting};
pub use payments::{AuthorizationKey, GivenUpPlace};
pub use processes::ProcessId;
pub use refusals::{NewRefusal, Refusal, RefusalFilter, RefusedPayment};
pub use results::{BlockRef, MinedTransaction, RolledBack, SettledPayment, TransferredPayment};
pub use sessions::{NewSession, OpenLimits, Opened};
pub use stats::{Group, Grouping};
pub use suspensions::{Suspension, Wasteful};
pub use transfers::{NewTransfer, OpenTransfer, Submitted, TransferEnd, TransferOutcome};
pub use undecided::{Carried, Decided, Undecided, Verdict};
pub use webhooks::{ClaimedDelivery, Delivery, FailingReceiver, Receiver, Tried};

/// How long the core path may take to look up an absent authorization before the ledger is reported as unusable.
const CHECK_LIMIT: Duration = Duration::from_secs(4);

/// The server ends a transaction that is idle between two statements after this time: its process may have died, and others need its locks.
const ABANDONED: (&str, &str) = ("idle_in_transaction_session_timeout", "5s");

/// The core path. A database that does not answer is a 503 after both limits together, in less than 15 s.
///
/// `enable_seqscan` is off because each statement finds its rows by an index, and the planner would read a young table as a whole.
/// `jit` is off because compiling a plan takes longer than any statement here runs.
const CORE: Limits = Limits {
    acquire: Duration::from_secs(4),
    statement: Duration::from_secs(9),
    settings: &[
        ("statement_timeout", "8s"),
        ("jit", "off"),
        ("enable_seqscan", "off"),
        ABANDONED,
    ],
};
/// Leases, and statements that must end before a lease does.
const LEASES: Limits = Limits {
    acquire: Duration::from_secs(2),
    statement: Duration::from_secs(4),
    settings: &[
        ("statement_timeout", "3s"),
        ("jit", "off"),
        ("enable_seqscan", "off"),
        ABANDONED,
    ],
};
/// Long reads of the history.
const HISTORY: Limits = Limits {
    acquire: Duration::from_secs(5),
    statement: Duration::from_secs(12),
    settings: &[("statement_timeout", "10s"), ("jit", "off")],
};

/// How the connections are divided.
#[derive(Debug, PartialEq, Eq)]
struct ConnectionShares {
    callers: u32,
    /// For lanes; the history gets the same number.
    quarter: u32,
    /// For leases; grants get the same number.
    for_leases: u32,
}

impl ConnectionShares {
    fn of(connections_max: u32) -> Self {
        let quarter = (connections_max / 4).max(1);
        let for_leases = if connections_max < 12 { 1 } else { 2 };
        let rest = connections_max.saturating_sub(2 * (quarter + for_leases));
        Self {
            callers: rest.max(1),
            quarter,
            for_leases,
        }
    }
}

/// The ledger as one running process sees it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Ledger {
    /// For requests of callers.
    pool: Connections,
    /// For lanes, so that many callers do not delay them.
    engine: Connections,
    leases: Connections,
    /// For giving and closing grants, which have to end within a lease.
    granting: Connections,
    /// For long reads, so that an operator's request does not delay a payment.
    history: Connections,
    options: PgConnectOptions,
    process: ProcessId,
    timing: Timing,
    groups: Groups,
    clock: Arc<FollowingClock>,
}

impl Ledger {
    /// Connects to `url` with at most `connections_max` connections (five at least), waiting at most four seconds for one. The returned
    /// task runs the statements of the core path, in groups. The error says for the operator why the URL or the server cannot be used.
    pub async fn connect(
        url: &str,
        connections_max: u32,
    ) -> Result<(Self, LedgerTask), LedgerError> {
        let options = connections::options_of(url).map_err(LedgerError::Unusable)?;
        let server = Server::find(options.clone(), CORE.acquire).await;
        let server = server.map_err(|error| unusable(&error, &options))?;
        let ConnectionShares {
            callers,
            quarter,
            for_leases,
        } = ConnectionShares::of(connections_max);
        let pool = Connections::new(&server, callers, CORE);
        let process = ProcessId(Uuid::now_v7());
        let granting = Connections::new(&server, for_leases, LEASES);
        let (groups, task) = groups::new_groups(&pool, &granting, process);
        let ledger = Self {
            pool,
            engine: Connections::new(&server, quarter, CORE),
            leases: Connections::new(&server, for_leases, LEASES),
            granting,
            history: Connections::new(&server, quarter, HISTORY),
            options,
            process,
            timing: Timing::default(),
            groups,
            clock: Arc::default(),
        };
        Ok((ledger, task))
    }

    /// With other durations than those of production.
    #[must_use]
    pub const fn with_timing(mut self, timing: Timing) -> Self {
        self.timing = timing;
        self
    }

    /// The durations of this process.
    pub const fn timing(&self) -> Timing {
        self.timing
    }

    /// The id of this process in the ledger.
    pub const fn process(&self) -> ProcessId {
        self.process
    }

    /// The database's time: set by each renewal of the process lease, and continued by this machine's clock in between.
    pub fn clock(&self) -> Arc<dyn Clock> {
        Arc::<FollowingClock>::clone(&self.clock)
    }

    /// How long ago the database renewed the lease of this process. `None`: it never did.
    pub fn silent_for(&self) -> Option<Duration> {
        self.clock.age()
    }

    /// Checks that the database answers and takes writes, and that the core path reaches it.
    pub async fn check(&self) -> Result<(), LedgerError> {
        let read_only = sqlx::query_scalar!(
            r#"select current_setting('transaction_read_only')::boolean as "read_only!""#
        )
        .fetch_one(&self.leases)
        .await?;
        if read_only {
            return Err(LedgerError::ReadOnly);
        }
        let absent = self.lookup(AuthorizationKey {
            network: Network::from_chain_id(1),
            domain: Address::ZERO,
            payer: Address::ZERO,
            nonce: B256::ZERO,
        });
        timeout(CHECK_LIMIT, absent).await.map_err(|_| {
            LedgerError::Unusable(format!(
                "the ledger got no answer to a lookup within {} s; check the database's load and network",
                CHECK_LIMIT.as_secs()
            ))
        })??;
        Ok(())
    }

    /// The open connections of this process: what they are for, how many are in use, and how many are idle.
    pub fn connections(&self) -> [(&'static str, usize, usize); 5] {
        let pools = [
            ("callers", &self.pool),
            ("engine", &self.engine),
            ("leases", &self.leases),
            ("grants", &self.granting),
            ("history", &self.history),
        ];
        pools.map(|(name, pool)| {
            let (in_use, idle) = pool.in_use_and_idle();
            (name, in_use, idle)
        })
    }

    /// Closes all connections, each after the statement that is running on it.
    pub async fn close(&self) {
        tokio::join!(
            self.pool.close(),
            self.engine.close(),
            self.leases.close(),
            self.granting.close(),
            self.history.close()
        );
    }

    /// Names the database, for the operator.
    pub fn database(&self) -> String {
        connections::database_of(&self.options)
    }

    fn cannot_use(&self, error: &sqlx::Error) -> LedgerError {
        unusable(error, &self.options)
    }
}

fn unusable(error: &sqlx::Error, options: &PgConnectOptions) -> LedgerError {
    LedgerError::Unusable(connections::explain(error, options))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_connections_are_divided_and_each_share_has_one() {
        for connections_max in 5..=256 {
            let shares = ConnectionShares::of(connections_max);
            let sum = shares.callers + 2 * (shares.quarter + shares.for_leases);
            assert_eq!(sum, connections_max, "{shares:?}");
            assert!(shares.callers > 0 && shares.callers >= shares.for_leases);
        }
        assert_eq!(ConnectionShares::of(32).callers, 12);
    }
}
