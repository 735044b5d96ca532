//! `x402d migrate`

use crate::command::ready::Database;
use crate::command::{CommandError, say};
use crate::config::{Config, Flags, ProcessEnvironment};
use crate::ledger::Ledger;

pub(super) async fn run(flags: Flags) -> Result<(), CommandError> {
    let config = Config::read(&flags, &ProcessEnvironment)?;
    let database = Database::open(config.database_url.as_ref(), config.data_dir.as_deref()).await?;
    let (ledger, _) = Ledger::connect(database.url(), 1).await?;
    let migrated = ledger.migrate().await;
    ledger.close().await;
    database.close().await?;
    migrated?;
    say("the database is up to date");
    Ok(())
}
