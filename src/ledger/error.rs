//! What can go wrong with the ledger.

use std::sync::Arc;
use std::time::Duration;

use super::connections;
use crate::coalesce::Unanswered;

/// A row that holds what this version of the program cannot read. It concerns who asks for that row, and nobody else.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{table}.{column} of {id} cannot be read")]
pub struct Unreadable {
    /// Where.
    pub table: &'static str,
    /// Which column.
    pub column: &'static str,
    /// Which row.
    pub id: String,
}

/// An outage or an inconsistency of the database. Never shown to callers: they get a code, the log gets this.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The database could not be reached or refused a statement.
    #[error("the database failed")]
    Driver(#[from] sqlx::Error),
    /// It cannot be used at all; says where it is, why, and what to do.
    #[error("{0}")]
    Unusable(String),
    /// It answers, and takes no writes.
    #[error("the database takes no writes: it is a standby, or set to read-only")]
    TakesNoWrites,
    /// A migration did not get its locks.
    #[error(
        "migration {version} got no lock within {limit:?}; held by {holder}. End that session, or stop the other x402d processes, and start again"
    )]
    Locked {
        /// Which migration.
        version: i64,
        /// Who holds it.
        holder: String,
        /// How long was waited.
        limit: Duration,
    },
    /// A newer version of the program has made the schema.
    #[error(
        "the database's schema was made by a newer x402d (migration {version}): use that version, or restore a dump from before"
    )]
    NewerSchema {
        /// Which migration this program does not know.
        version: i64,
    },
    /// The schema is not what this program would have made.
    #[error(
        "migration {version} of the database is not the one of this x402d: use a released version, or another database"
    )]
    OtherSchema {
        /// Which migration.
        version: i64,
    },
    /// A row holds what no row may hold.
    #[error(transparent)]
    Inconsistent(#[from] Unreadable),
    /// The ledger was begun on another chain that has the same chain id.
    #[error(
        "the ledger speaks of another chain with the id of {network}: its genesis block is {recorded}, the RPC's is {found}; \
         use another database for a chain that was started anew"
    )]
    OtherChain {
        /// CAIP-2.
        network: String,
        /// Genesis hash in the ledger.
        recorded: String,
        /// Genesis hash at the RPC.
        found: String,
    },
    /// A guarded update did not find what it was guarded by: a bug, or an operator's hand.
    #[error("{what} had changed meanwhile")]
    Conflict {
        /// Which guard.
        what: &'static str,
    },
    /// A statement for several callers failed.
    #[error("a statement for several callers failed")]
    Shared(#[source] Arc<Self>),
    /// Too many callers wait for the database, or the service is stopping.
    #[error(transparent)]
    Unanswered(#[from] Unanswered),
}

impl LedgerError {
    /// The named constraint that a statement ran into, if that is what happened.
    pub fn constraint(&self) -> Option<&str> {
        match self {
            Self::Driver(error) => error
                .as_database_error()
                .and_then(|error| error.constraint()),
            Self::Shared(shared) => shared.constraint(),
            Self::Unanswered(_)
            | Self::Unusable(_)
            | Self::TakesNoWrites
            | Self::Locked { .. }
            | Self::NewerSchema { .. }
            | Self::OtherSchema { .. }
            | Self::Inconsistent(_)
            | Self::OtherChain { .. }
            | Self::Conflict { .. } => None,
        }
    }

    /// The payment's row that cannot be read, if that is what is wrong: it waits for the operator.
    pub fn unreadable_payment(&self) -> Option<&Unreadable> {
        match self {
            Self::Inconsistent(unreadable) if unreadable.table == "payments" => Some(unreadable),
            Self::Shared(shared) => shared.unreadable_payment(),
            Self::Inconsistent(_)
            | Self::Driver(_)
            | Self::Unanswered(_)
            | Self::Unusable(_)
            | Self::TakesNoWrites
            | Self::Locked { .. }
            | Self::NewerSchema { .. }
            | Self::OtherSchema { .. }
            | Self::OtherChain { .. }
            | Self::Conflict { .. } => None,
        }
    }

    /// Whether a single row is to blame: the others of a group are better off without it.
    pub fn blames_a_row(&self) -> bool {
        match self {
            Self::Inconsistent(_)
            | Self::Conflict { .. }
            | Self::Driver(sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_)) => true,
            Self::Driver(_)
            | Self::Shared(_)
            | Self::Unanswered(_)
            | Self::Unusable(_)
            | Self::TakesNoWrites
            | Self::Locked { .. }
            | Self::NewerSchema { .. }
            | Self::OtherSchema { .. }
            | Self::OtherChain { .. } => self.constraint().is_some(),
        }
    }

    /// Whether the database undid a transaction for another's sake (deadlock, serialization): nothing of it happened, and it may be tried
    /// again.
    pub fn is_undone(&self) -> bool {
        let Self::Driver(error) = self else {
            return false;
        };
        let code = error
            .as_database_error()
            .and_then(sqlx::error::DatabaseError::code);
        code.is_some_and(|code| matches!(code.as_ref(), "40P01" | "40001"))
    }

    /// Whether the database is there and takes no writes.
    pub fn takes_no_writes(&self) -> bool {
        match self {
            Self::Driver(error) => connections::takes_no_writes(error),
            Self::Shared(shared) => shared.takes_no_writes(),
            Self::TakesNoWrites => true,
            Self::Unusable(_)
            | Self::Locked { .. }
            | Self::NewerSchema { .. }
            | Self::OtherSchema { .. }
            | Self::Inconsistent(_)
            | Self::OtherChain { .. }
            | Self::Conflict { .. }
            | Self::Unanswered(_) => false,
        }
    }
}
