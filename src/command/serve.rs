//! `x402d serve`

use crate::command::ready::Database;
use crate::command::{CommandError, asked_to_stop};
use crate::config::{Config, Flags, ProcessEnvironment};
use crate::server::Service;

pub(super) async fn run(flags: Flags) -> Result<(), CommandError> {
    let config = Config::read(&flags, &ProcessEnvironment)?;
    let database = Database::open(config.database_url.as_ref(), config.data_dir.as_deref()).await?;
    let service = match Service::start(&config, database.url()).await {
        Ok(service) => service,
        Err(error) => {
            database.close().await?;
            return Err(error.into());
        }
    };
    tracing::info!(address = %service.address(), "x402d listens; point an SDK's facilitator URL here");
    let failed = tokio::select! {
        () = asked_to_stop() => None,
        failed = service.failed() => Some(failed),
    };
    tracing::info!("stopping: no new requests, answers for those that wait");
    service.stop().await;
    database.close().await?;
    tracing::info!("stopped");
    failed.map_or(Ok(()), |failed| Err(failed.into()))
}
