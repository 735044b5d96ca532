//! Who can reach the service, and what they may do there.

use std::net::SocketAddr;

use super::database::Examined;
use crate::command::finding::Finding;
use crate::config::Config;
use crate::payment::AccessMode;
use crate::server::check_address;

pub(super) async fn examine(config: &Config, examined: &Examined) -> Vec<Finding> {
    let mut findings = vec![listen("listen", config.listen, examined).await];
    if let Some(address) = config.metrics_listen {
        findings.push(listen("metrics listen", address, examined).await);
        if !address.ip().is_loopback() {
            findings.push(Finding::warning(
                "metrics",
                format!(
                    "are for whoever reaches {address}: they show balances and how much is sold"
                ),
                "let a firewall admit Prometheus alone",
            ));
        }
    }
    let has_operator = config.admin_token.is_some() || examined.has_admin_key;
    let is_local = config.listen.ip().is_loopback();
    let proxied = !config.connections.trusted_proxies.is_empty();
    findings.push(match (has_operator, is_local && !proxied) {
        (true, _) => Finding::ok("operator", "needs the token or a key of scope admin"),
        (false, true) => Finding::warning(
            "operator",
            "is every program on this machine that names localhost",
            "behind a proxy set X402D_ADMIN_TOKEN, or create a key with `x402d keys create NAME --scope admin`",
        ),
        (false, false) => Finding::warning(
            "operator",
            "has no token and no key: from elsewhere nobody can read the history",
            "set X402D_ADMIN_TOKEN, or create a key with `x402d keys create NAME --scope admin`",
        ),
    });
    let mut networks = config.networks.iter();
    let main = networks.any(|network| !network.policy.network.is_test());
    findings.push(match config.access {
        AccessMode::Keys => Finding::ok("settle", "is for holders of a key"),
        AccessMode::Open if main => Finding::warning(
            "settle",
            "is open to everybody, on a network where gas costs money",
            "set settle = \"keys\" in [access], and make a key for each seller with `x402d keys create`",
        ),
        AccessMode::Open => Finding::ok("settle", "is open to everybody, on test networks"),
    });
    findings
}

/// Whether the address is free, unless a process of x402d runs and may have it.
async fn listen(name: &'static str, address: SocketAddr, examined: &Examined) -> Finding {
    match examined.running {
        Some(0) => {}
        Some(_) => return Finding::ok(name, format!("{address}; the service runs")),
        None => return Finding::ok(name, address.to_string()),
    }
    match check_address(address).await {
        Ok(()) => Finding::ok(name, format!("{address} is free")),
        Err(error) => Finding::wrong(name, error.to_string()),
    }
}
