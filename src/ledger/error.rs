//! Errors of the ledger.

use std::sync::Arc;
use std::time::Duration;

use super::connections;
use crate::coalesce::Unanswered;

/// A row that this version of the program cannot read. It fails only the request for that row.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{table}.{column} of {id} cannot be read")]
pub struct Unreadable {
    pub table: &'static str,
    pub column: &'static str,
    /// Identifies the row.
    pub id: String,
}

/// An outage or an inconsistency of the database. It is logged; callers get a code only.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The database could not be reached or refused a statement.
    #[error("database statement failed")]
    Driver(#[from] sqlx::Error),
    /// The database cannot be used. The text says where it is, why, and what to do.
    #[error("{0}")]
    Unusable(String),
    /// The database answers, and takes no writes.
    #[error("the database takes no writes: it is a standby, or set to read-only")]
    ReadOnly,
    /// A migration did not get its locks.
    #[error(
        "migration {version} got no lock within {limit:?}; it is held by {holder}. End that session, or stop the other x402d processes, and start again"
    )]
    Locked {
        version: i64,
        /// The session that holds the lock.
        holder: String,
        limit: Duration,
    },
    /// The schema was made by a newer version of the program.
    #[error(
        "the database's schema was made by a newer x402d (migration {version}): use that version, or restore a dump from before"
    )]
    NewerSchema {
        /// The first migration that this program does not know.
        version: i64,
    },
    /// The schema is not the one that this program's migrations make.
    #[error(
        "migration {version} of the database is not the one of this x402d: use a released version, or another database"
    )]
    OtherSchema { version: i64 },
    /// A row cannot be read.
    #[error(transparent)]
    Inconsistent(#[from] Unreadable),
    /// The ledger belongs to another chain with the same chain id.
    #[error(
        "the ledger belongs to another chain with the id of {network}: expected genesis block {recorded}, the RPC has {found}; \
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
    /// A row was not in the state that a statement expects: a bug, or a change by the operator.
    #[error("conflict: {what} was changed or removed by another statement")]
    Conflict { what: &'static str },
    /// A statement for several callers failed.
    #[error("batched statement failed")]
    Shared(#[source] Arc<Self>),
    /// Too many callers wait for the database, or the service is stopping.
    #[error(transparent)]
    Unanswered(#[from] Unanswered),
}

impl LedgerError {
    /// The name of the constraint that a statement violated.
    pub fn constraint(&self) -> Option<&str> {
        match self {
            Self::Driver(error) => error
                .as_database_error()
                .and_then(|error| error.constraint()),
            Self::Shared(shared) => shared.constraint(),
            Self::Unanswered(_)
            | Self::Unusable(_)
            | Self::ReadOnly
            | Self::Locked { .. }
            | Self::NewerSchema { .. }
            | Self::OtherSchema { .. }
            | Self::Inconsistent(_)
            | Self::OtherChain { .. }
            | Self::Conflict { .. } => None,
        }
    }

    /// The payment row that cannot be read, if that is the error. It is quarantined for the operator.
    pub fn unreadable_payment(&self) -> Option<&Unreadable> {
        match self {
            Self::Inconsistent(unreadable) if unreadable.table == "payments" => Some(unreadable),
            Self::Shared(shared) => shared.unreadable_payment(),
            Self::Inconsistent(_)
            | Self::Driver(_)
            | Self::Unanswered(_)
            | Self::Unusable(_)
            | Self::ReadOnly
            | Self::Locked { .. }
            | Self::NewerSchema { .. }
            | Self::OtherSchema { .. }
            | Self::OtherChain { .. }
            | Self::Conflict { .. } => None,
        }
    }

    /// Whether one row causes the error, so that the other rows of a group may succeed without it.
    pub fn concerns_one_row(&self) -> bool {
        match self {
            Self::Inconsistent(_)
            | Self::Conflict { .. }
            | Self::Driver(sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_)) => true,
            Self::Driver(_)
            | Self::Shared(_)
            | Self::Unanswered(_)
            | Self::Unusable(_)
            | Self::ReadOnly
            | Self::Locked { .. }
            | Self::NewerSchema { .. }
            | Self::OtherSchema { .. }
            | Self::OtherChain { .. } => self.constraint().is_some(),
        }
    }

    /// Whether the database rolled the transaction back in favour of another one (deadlock, serialization failure). Nothing was written,
    /// and it may be tried again.
    pub fn was_rolled_back(&self) -> bool {
        let Self::Driver(error) = self else {
            return false;
        };
        let code = error
            .as_database_error()
            .and_then(sqlx::error::DatabaseError::code);
        code.is_some_and(|code| matches!(code.as_ref(), "40P01" | "40001"))
    }

    /// Whether the database answers and takes no writes.
    pub fn is_read_only(&self) -> bool {
        match self {
            Self::Driver(error) => connections::is_read_only(error),
            Self::Shared(shared) => shared.is_read_only(),
            Self::ReadOnly => true,
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
