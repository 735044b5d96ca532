//! The sockets on which the service listens.

use std::net::SocketAddr;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::StartError;
use crate::config::Config;
use crate::http::accept::{Acceptor, ConnectionLimits};
use crate::http::{AppState, metrics_router, router};

/// Connections at a time to the address of the figures.
const SCRAPERS_MAX: usize = 16;

/// Checks that an address is free, for commands that start other programs before the service.
pub async fn check_address(address: SocketAddr) -> Result<(), StartError> {
    let listener = TcpListener::bind(address).await;
    listener
        .map(drop)
        .map_err(|cause| StartError::Listen { address, cause })
}

/// Serves callers.
pub(super) async fn listen(
    config: &Config,
    state: AppState,
    requests: &TaskTracker,
    stopping: &CancellationToken,
) -> Result<SocketAddr, StartError> {
    let failed = |cause| StartError::Listen {
        address: config.listen,
        cause,
    };
    let listener = TcpListener::bind(config.listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let limits = ConnectionLimits {
        total: config.connections.max,
        per_client: config.connections.max_per_client,
        per_proxy: config.connections.max_per_proxy,
    };
    let acceptor = Acceptor::new(
        listener,
        router(state),
        limits,
        &config.connections.trusted_proxies,
        (requests.clone(), stopping.clone()),
    );
    requests.spawn(acceptor.run());
    Ok(address)
}

/// Serves the figures at an address of their own, if there is one.
pub(super) async fn listen_for_metrics(
    config: &Config,
    state: &AppState,
    requests: &TaskTracker,
    stopping: &CancellationToken,
) -> Result<(), StartError> {
    let Some(address) = config.metrics_listen else {
        return Ok(());
    };
    let failed = |cause| StartError::ListenForMetrics { address, cause };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let limits = ConnectionLimits {
        total: SCRAPERS_MAX,
        per_client: SCRAPERS_MAX,
        per_proxy: SCRAPERS_MAX,
    };
    let acceptor = Acceptor::new(
        listener,
        metrics_router(state.clone()),
        limits,
        &[],
        (requests.clone(), stopping.clone()),
    );
    requests.spawn(acceptor.run());
    tracing::info!(%address, "metrics served without a key");
    Ok(())
}
