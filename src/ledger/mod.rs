//! The only door to SQL: payments, grants, lanes, transactions and their history, in Postgres.
//!
//! Knows the domain's types. Must not know RPC, HTTP or why a payment changes; it records decisions of the rooms above. What
//! always holds: a transition is a guarded update that repeats the state it starts from; every invariant stands here as a named
//! constraint too; nothing outlives a transaction (no session's lock, no `NOTIFY`), so that a pooler in transaction mode serves as
//! well. Time in leases is the database's, never ours; every wait for the database has a limit of ours.

mod acceptance;
mod accounts;
mod connections;
mod error;
mod foreign;
mod fundings;
mod grants;
mod groups;
mod history;
mod lanes;
mod life;
mod migrate;
mod outbox;
mod payments;
mod processes;
mod quarantine;
mod results;
mod row;
mod sessions;
mod stats;
mod transfers;
mod undecided;

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

pub use acceptance::{Accepted, MovedBefore, NewPayment};
pub use error::{LedgerError, Unreadable};
pub use foreign::{ForeignNonce, NoncesLost};
pub use fundings::{Funded, Funding, Given};
pub use grants::{Closing, GrantRequest, GrantStatus, Known, Standing};
pub use groups::LedgerTask;
pub use history::{Cursor, Entry, HistoryFilter, Page, SessionOf};
pub use lanes::{Claim, LaneKey, LaneLease, LaneView, Renewal};
pub use life::{AttemptMade, Event, Life, Mined};
pub use outbox::{Attempt, Heard, NewTransaction, Recorded, TransactionKind, Unmined};
pub use payments::AuthorizationKey;
pub use processes::ProcessId;
pub use results::{BlockRef, MinedTransaction, MovedRow};
pub use sessions::{NewSession, OpenLimits, Opened};
pub use stats::{Group, Grouping};
pub use transfers::{NewTransfer, OpenTransfer, Submitted, TransferOutcome};
pub use undecided::{Undecided, Verdict};

/// How often a lease is renewed. The lease of a lane is 10 s: one renewal that got no answer and the next one fit into it.
/// That of a process is 15 s: a grant that was answered is closed before it ends, even if the first try to do so got no answer.
pub const LEASE_RENEWAL: Duration = Duration::from_secs(3);
/// How long the core path may take to look up nothing, before the ledger is called unwell.
const CHECK_LIMIT: Duration = Duration::from_secs(4);

/// A transaction between two statements is ended by the server after this time: whoever began it may be gone without a word, and what it
/// has locked is needed by others.
const ABANDONED: (&str, &str) = ("idle_in_transaction_session_timeout", "5s");

/// The core path. Each of its statements finds its rows by an index; while a table is young the planner does not know how it grows, and
/// would rather read all of it. Plans are never compiled to machine code: that takes longer than any statement here runs. A database that
/// does not answer is a 503 after both limits together, less than 15 s.
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
/// Leases, and what has to be done before one ends.
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

/// How connections are divided.
#[derive(Debug, PartialEq, Eq)]
struct Shares {
    callers: u32,
    /// For lanes, and as many for the history.
    quarter: u32,
    /// For leases, and as many for grants.
    for_leases: u32,
}

impl Shares {
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

/// The ledger, as one running process sees it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Ledger {
    /// What callers wait for.
    pool: Connections,
    /// What lanes write has connections of its own, so that no crowd of callers holds it up.
    engine: Connections,
    /// So have the leases.
    leases: Connections,
    /// So has the giving and closing of grants, which leases guard.
    granting: Connections,
    /// And long reads, so that no question of an operator holds up a payment.
    history: Connections,
    options: PgConnectOptions,
    process: ProcessId,
    groups: Groups,
    clock: Arc<FollowingClock>,
}

impl Ledger {
    /// Connects to `url` with at most `connections_max` connections (five at least), waiting at most four seconds for one. The statements of
    /// the core path are run, in groups, by the task that comes with it.
    ///
    /// # Errors
    /// When the URL cannot be read or the server cannot be used; the error says why, for the operator.
    pub async fn connect(
        url: &str,
        connections_max: u32,
    ) -> Result<(Self, LedgerTask), LedgerError> {
        let options = connections::options_of(url).map_err(LedgerError::Unusable)?;
        let server = Server::find(options.clone(), CORE.acquire).await;
        let server = server.map_err(|error| unusable(&error, &options))?;
        let Shares {
            callers,
            quarter,
            for_leases,
        } = Shares::of(connections_max);
        let pool = Connections::new(&server, callers, CORE);
        let process = ProcessId(Uuid::now_v7());
        let granting = Connections::new(&server, for_leases, LEASES);
        let (groups, task) = groups::open(&pool, &granting, process);
        let ledger = Self {
            pool,
            engine: Connections::new(&server, quarter, CORE),
            leases: Connections::new(&server, for_leases, LEASES),
            granting,
            history: Connections::new(&server, quarter, HISTORY),
            options,
            process,
            groups,
            clock: Arc::default(),
        };
        Ok((ledger, task))
    }

    /// Which process this is in the ledger's eyes.
    pub const fn process(&self) -> ProcessId {
        self.process
    }

    /// The database's time, as of the last sign of life and from there on by this machine's.
    pub fn clock(&self) -> Arc<dyn Clock> {
        Arc::<FollowingClock>::clone(&self.clock)
    }

    /// How long ago the database renewed the lease of this process, once it has.
    pub fn silent_for(&self) -> Option<Duration> {
        self.clock.age()
    }

    /// Whether the database answers and takes writes, and the core path gets through to it.
    ///
    /// # Errors
    /// When it does not.
    pub async fn check(&self) -> Result<(), LedgerError> {
        let read_only = sqlx::query_scalar!(
            r#"select current_setting('transaction_read_only')::boolean as "read_only!""#
        )
        .fetch_one(&self.leases)
        .await?;
        if read_only {
            return Err(LedgerError::TakesNoWrites);
        }
        let nobody = self.known(AuthorizationKey {
            network: Network::from_chain_id(1),
            domain: Address::ZERO,
            payer: Address::ZERO,
            nonce: B256::ZERO,
        });
        timeout(CHECK_LIMIT, nobody).await.map_err(|_| {
            LedgerError::Unusable("statements are left without an answer".to_owned())
        })??;
        Ok(())
    }

    /// Closes all connections after what is under way.
    pub async fn close(&self) {
        tokio::join!(
            self.pool.close(),
            self.engine.close(),
            self.leases.close(),
            self.granting.close(),
            self.history.close()
        );
    }

    /// Which database this is, for the operator.
    pub fn database(&self) -> String {
        connections::database_of(&self.options)
    }

    /// Why the database cannot be used, for the operator.
    fn cannot_use(&self, error: &sqlx::Error) -> LedgerError {
        unusable(error, &self.options)
    }
}

fn unusable(error: &sqlx::Error, options: &PgConnectOptions) -> LedgerError {
    LedgerError::Unusable(connections::advice(error, options))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_divided_without_a_remainder_and_everybody_has_one() {
        for connections_max in 5..=256 {
            let shares = Shares::of(connections_max);
            let sum = shares.callers + 2 * (shares.quarter + shares.for_leases);
            assert_eq!(sum, connections_max, "{shares:?}");
            assert!(shares.callers > 0 && shares.callers >= shares.for_leases);
        }
        assert_eq!(Shares::of(32).callers, 12);
    }
}
