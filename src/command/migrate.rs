//! `x402d migrate`

use crate::command::ready::Database;
use crate::command::{CommandError, say};
use crate::config::{Config, Flags, ProcessEnvironment};
use crate::ledger::{Ledger, LedgerError};

pub(super) async fn run(flags: Flags) -> Result<(), CommandError> {
    // A schema needs no network and no key; who migrates may have neither.
    let (url, data_dir) = Config::read_database(&flags, &ProcessEnvironment)?;
    let database = Database::open(url.as_ref(), data_dir.as_deref()).await?;
    let migrated = migrate(database.url()).await;
    database.close().await?;
    migrated?;
    say("the database is up to date");
    Ok(())
}

async fn migrate(url: &str) -> Result<(), LedgerError> {
    let (ledger, _) = Ledger::connect(url, 1).await?;
    let migrated = ledger.migrate().await;
    ledger.close().await;
    migrated
}
