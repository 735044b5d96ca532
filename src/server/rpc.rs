//! The RPC clients of configured networks.

use secrecy::{ExposeSecret, SecretString};

use crate::chain::{Endpoints, Rpc, RpcError};
use crate::config::NetworkConfig;

/// The RPC client of a configured network.
pub(crate) fn network_rpc(config: &NetworkConfig) -> Result<Rpc, RpcError> {
    rpc_with_urls(config, &config.rpc_urls)
}

/// The same with other URLs to read from.
pub(crate) fn rpc_with_urls(
    config: &NetworkConfig,
    urls: &[SecretString],
) -> Result<Rpc, RpcError> {
    let endpoints = Endpoints {
        urls: &exposed(urls),
        send_urls: &exposed(&config.send_urls),
        calls_per_second: config.calls_per_second,
        confirm_with: config.confirm_with,
    };
    Rpc::new(config.policy.network, endpoints)
}

fn exposed(urls: &[SecretString]) -> Vec<String> {
    let urls = urls.iter().map(|url| url.expose_secret().to_owned());
    urls.collect()
}
