//! The configuration of callers' connections, and of the proxies before the service.

use std::net::IpAddr;

use ipnet::IpNet;

use super::Settings;
use super::file::File;

/// Limits of callers' connections, and who may say for whom it asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionsConfig {
    /// Connections at a time, at most.
    pub max: usize,
    /// Of one client: an IPv4 address, or a /56 of IPv6.
    pub max_per_client: usize,
    /// Of one trusted proxy or loopback address.
    pub max_per_proxy: usize,
    /// Proxies whose `X-Forwarded-For` and `Forwarded` are believed.
    pub trusted_proxies: Vec<IpNet>,
}

pub(super) fn read(settings: &mut Settings<'_>, file: &mut File) -> ConnectionsConfig {
    let limits = 1..=1_000_000;
    let max = settings.between("connections_max", file.connections_max, limits.clone());
    let per_client = settings.between(
        "connections_max_per_client",
        file.connections_max_per_client,
        limits.clone(),
    );
    let per_proxy = settings.between(
        "connections_max_per_proxy",
        file.connections_max_per_proxy,
        limits,
    );
    let mut proxies = settings.list("X402D_TRUSTED_PROXIES");
    if proxies.is_empty() {
        proxies = std::mem::take(&mut file.trusted_proxies);
    }
    ConnectionsConfig {
        max: max.unwrap_or(8192),
        max_per_client: per_client.unwrap_or(256),
        max_per_proxy: per_proxy.unwrap_or(4096),
        trusted_proxies: trusted_proxies(settings, &proxies),
    }
}

fn trusted_proxies(settings: &mut Settings<'_>, texts: &[String]) -> Vec<IpNet> {
    let mut networks = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        let key = format!("trusted_proxies (X402D_TRUSTED_PROXIES)[{index}]");
        match network(text) {
            Some(network) if network.prefix_len() == 0 => settings.problems.push(format!(
                "{key}: {text} is everybody, so that each caller could choose its address; name the networks of your proxies"
            )),
            Some(network) => networks.push(network),
            None => settings.problems.push(format!(
                "{key}: expected an address or a network such as \"10.0.0.0/8\", got {text:?}"
            )),
        }
    }
    networks
}

fn network(text: &str) -> Option<IpNet> {
    let address = || {
        let address: IpAddr = text.parse().ok()?;
        Some(address.to_canonical().into())
    };
    text.parse().ok().or_else(address)
}

#[cfg(test)]
mod tests {
    use crate::config::tests::{base_sepolia, flags_with};
    use crate::config::{Config, Flags};

    #[test]
    fn proxies_are_networks_or_addresses() {
        let (flags, _file) =
            flags_with("trusted_proxies = [\"10.0.0.0/8\", \"::ffff:192.0.2.1\", \"fd00::/8\"]");
        let config = Config::read(&flags, &base_sepolia()).unwrap();
        let expected = ["10.0.0.0/8", "192.0.2.1/32", "fd00::/8"];
        let expected = expected.map(|text| text.parse().unwrap());
        assert_eq!(config.connections.trusted_proxies, expected);

        let mut environment = base_sepolia();
        environment.insert("X402D_TRUSTED_PROXIES", "172.16.0.0/12, 192.0.2.2");
        let config = Config::read(&flags, &environment).unwrap();
        let expected = ["172.16.0.0/12", "192.0.2.2/32"];
        let expected = expected.map(|text| text.parse().unwrap());
        assert_eq!(config.connections.trusted_proxies, expected);
    }

    #[test]
    fn everybody_is_no_proxy() {
        for text in ["0.0.0.0/0", "::/0", "nginx", "10.0.0.0/33", "private"] {
            let mut environment = base_sepolia();
            environment.insert("X402D_TRUSTED_PROXIES", text);
            let error = Config::read(&Flags::default(), &environment).unwrap_err();
            let error = error.to_string();
            assert!(
                error.contains("(X402D_TRUSTED_PROXIES)[0]: "),
                "{text}: {error}"
            );
        }
    }
}
