//! `x402d migrate`

use std::path::PathBuf;

use secrecy::ExposeSecret as _;

use crate::command::{CommandError, say};
use crate::config::{Config, Flags, ProcessEnvironment};
use crate::ledger::{Ledger, LedgerError};

pub(super) async fn run(file: Option<PathBuf>) -> Result<(), CommandError> {
    let flags = Flags {
        file,
        ..Flags::default()
    };
    // A migration needs no network and no key, so only the database is read from the configuration.
    let url = Config::read_database(&flags, &ProcessEnvironment)?;
    let database = migrate(url.expose_secret()).await?;
    say(&format!("{database} is up to date"));
    Ok(())
}

/// Returns the name of the database.
async fn migrate(url: &str) -> Result<String, LedgerError> {
    let (ledger, _) = Ledger::connect(url, 1).await?;
    let (migrated, database) = (ledger.migrate().await, ledger.database());
    ledger.close().await;
    migrated.map(|()| database)
}
