//! `x402d serve`

use crate::command::database::Database;
use crate::command::{CommandError, wait_for_stop_signal};
use crate::config::{Config, Flags, ProcessEnvironment};
use crate::server::Service;

pub(super) async fn run(flags: Flags) -> Result<(), CommandError> {
    let config = Config::read(&flags, &ProcessEnvironment)?;
    let database = Database::open(config.database_url.as_ref(), config.data_dir.as_deref()).await?;
    let service = match Service::start(&config, database.place()).await {
        Ok(service) => service,
        Err(error) => {
            database.close().await?;
            return Err(error.into());
        }
    };
    tracing::info!(address = %service.address(), "x402d listens; point an SDK's facilitator URL here");
    let failed = tokio::select! {
        () = wait_for_stop_signal() => None,
        failed = service.failed() => Some(failed),
    };
    tracing::info!("x402d is stopping: no new requests; those in progress are answered");
    service.stop().await;
    database.close().await?;
    tracing::info!("x402d stopped");
    failed.map_or(Ok(()), |failed| Err(failed.into()))
}
