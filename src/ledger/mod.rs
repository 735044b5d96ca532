//! The only door to SQL: payments, grants, lanes, transactions and their history, in Postgres.
//!
//! Knows the domain's types. Must not know RPC, HTTP or why a payment changes; it records decisions of the rooms above. What
//! always holds: a transition is a guarded update that repeats the state it starts from; every invariant stands here as a named
//! constraint too; nothing needs advisory locks, `NOTIFY` or a session-bound connection, so that a pooler in transaction mode
//! or a distributed Postgres serves as well. Time in leases is the database's, never ours.

mod acceptance;
mod accounts;
mod error;
mod foreign;
mod fundings;
mod grants;
mod groups;
mod history;
mod lanes;
mod life;
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

use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use uuid::Uuid;

use groups::Groups;

use crate::clock::{Clock, FollowingClock};

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

/// How long a lane, or a process, is thought alive after its last sign of life. Part of the SQL below as well.
pub const LEASE: Duration = Duration::from_secs(10);
/// How often a lease is renewed.
pub const LEASE_RENEWAL: Duration = Duration::from_secs(3);

/// The ledger, as one running process sees it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Ledger {
    pool: PgPool,
    /// Long reads have connections of their own, so that no question of an operator holds up a payment.
    history: PgPool,
    process: ProcessId,
    groups: Groups,
    clock: Arc<FollowingClock>,
}

impl Ledger {
    /// Connects to `url` with at most `connections_max` connections, waiting at most five seconds for one. The statements of the core path
    /// are run, in groups, by the task that comes with it.
    ///
    /// # Errors
    /// When the URL cannot be read or the server cannot be reached.
    pub async fn connect(
        url: &str,
        connections_max: u32,
    ) -> Result<(Self, LedgerTask), LedgerError> {
        let options: PgConnectOptions = url.parse()?;
        let options = options.application_name("x402d");
        let for_history = (connections_max / 4).max(1);
        let pool = core(connections_max.saturating_sub(for_history).max(1))
            .connect_with(options.clone())
            .await?;
        let history = limited(for_history, "on").connect_lazy_with(options);
        let process = ProcessId(Uuid::now_v7());
        let (groups, task) = groups::open(&pool, process);
        let ledger = Self {
            pool,
            history,
            process,
            groups,
            clock: Arc::default(),
        };
        Ok((ledger, task))
    }

    /// Brings the schema up to this version of the program.
    ///
    /// # Errors
    /// When a migration fails; the database is then as it was before that migration.
    pub async fn migrate(&self) -> Result<(), LedgerError> {
        // An index over a large table may take longer than any statement of the core path.
        let mut connection = self.pool.acquire().await?;
        sqlx::query!("set statement_timeout = 0")
            .execute(&mut *connection)
            .await?;
        sqlx::migrate!()
            .run(&mut *connection)
            .await
            .map_err(LedgerError::Migration)?;
        sqlx::query!("set statement_timeout = '10s'")
            .execute(&mut *connection)
            .await?;
        Ok(())
    }

    /// Which process this is in the ledger's eyes.
    pub const fn process(&self) -> ProcessId {
        self.process
    }

    /// The database's time, as of the last sign of life and from there on by this machine's.
    pub fn clock(&self) -> Arc<dyn Clock> {
        Arc::<FollowingClock>::clone(&self.clock)
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// When it does not.
    pub async fn ping(&self) -> Result<(), LedgerError> {
        sqlx::query!(r#"select 1 as "one!""#)
            .fetch_one(&self.pool)
            .await?;
        Ok(())
    }

    /// Closes all connections after what is under way.
    pub async fn close(&self) {
        tokio::join!(self.pool.close(), self.history.close());
    }
}

/// Connections of the core path. Each of its statements finds its rows by an index; while a table is young the planner does not know how
/// it grows, and would rather read all of it.
fn core(connections_max: u32) -> PgPoolOptions {
    limited(connections_max, "off")
}

/// Connections that wait at most five seconds for each other, and for a statement at most ten. Plans are never compiled to machine code:
/// that takes longer than any statement here runs. Not startup parameters, because poolers refuse those.
fn limited(connections_max: u32, table_scans: &'static str) -> PgPoolOptions {
    PgPoolOptions::new()
        .max_connections(connections_max)
        .acquire_timeout(Duration::from_secs(5))
        .after_connect(move |connection, _| {
            Box::pin(async move {
                sqlx::query!(
                    "select set_config(name, value, false)
                    from (values ('statement_timeout', '10s'), ('jit', 'off'), ('enable_seqscan', $1)) as settings (name, value)",
                    table_scans,
                )
                .fetch_all(connection)
                .await
                .map(drop)
            })
        })
}
