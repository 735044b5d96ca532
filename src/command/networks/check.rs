//! Compares a configuration with the chains.

use alloy::primitives::Address;
use serde::Serialize;
use time::OffsetDateTime;

use crate::chain::MULTICALL3;
use crate::chain::{Rpc, RpcError};
use crate::clock::{Clock as _, SystemClock};
use crate::command::finding::{Finding, Outcome};
use crate::command::probe::{self, Endpoint, Runway};
use crate::command::shown::{count, length};
use crate::config::NetworkConfig;
use crate::payment::Asset;
use crate::protocol::Network;
use crate::protocol::assets::TransferMethod;
use crate::protocol::permit2::{EXACT_PROXY, PERMIT2, UPTO_PROXY};
use crate::server::{NetworkProblem, network_rpc};

/// A provider that allows fewer blocks in a call for logs makes searches slow, or fail.
const LOG_BLOCKS_LOW: u64 = 100;

/// A contract that has the same address on every chain where it is deployed.
struct Contract {
    name: &'static str,
    address: Address,
    /// Whether payments by Permit2 need it.
    for_permit2: bool,
}

const CONTRACTS: [Contract; 4] = [
    Contract {
        name: "Multicall3",
        address: MULTICALL3,
        for_permit2: false,
    },
    Contract {
        name: "Permit2",
        address: PERMIT2,
        for_permit2: true,
    },
    Contract {
        name: "x402ExactPermit2Proxy",
        address: EXACT_PROXY,
        for_permit2: true,
    },
    Contract {
        name: "x402UptoPermit2Proxy",
        address: UPTO_PROXY,
        for_permit2: false,
    },
];

/// The result of checking a configured network.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::command) struct Report {
    network: String,
    name: Option<&'static str>,
    confirmations: u32,
    pub(in crate::command) findings: Vec<Finding>,
}

/// Checks everything that is configured of a network. If its endpoints serve another chain or do not answer, nothing else is checked.
pub(in crate::command) async fn check(config: &NetworkConfig) -> Report {
    let network = config.policy.network;
    let mut report = Report {
        network: network.to_string(),
        name: network.known().map(|known| known.name),
        confirmations: config.policy.confirmations,
        findings: Vec::new(),
    };
    match checked_rpc(config).await {
        Ok(rpc) => {
            let says = format!("chain id {}", network.chain_id());
            report.findings.push(Finding::new("chain", None, Ok(says)));
            let overrides = rpc.check_overrides().await;
            let overrides = overrides.map(|()| "state overrides of eth_call".to_owned());
            let overrides = overrides.map_err(NetworkProblem::from);
            report.findings.push(Finding::new("rpc", None, overrides));
            report.check_urls(config).await;
            report.check_all(&rpc, config).await;
        }
        Err(problem) => {
            let refused = Err(problem.into());
            report.findings.push(Finding::new("chain", None, refused));
        }
    }
    report
}

async fn checked_rpc(config: &NetworkConfig) -> Result<Rpc, RpcError> {
    let rpc = network_rpc(config)?;
    rpc.check_chain().await?;
    Ok(rpc)
}

impl Report {
    /// Asks each URL alone: `serve` starts without those that fail.
    async fn check_urls(&mut self, config: &NetworkConfig) {
        let now = SystemClock.now();
        for endpoint in probe::endpoints(config).await {
            self.findings
                .push(url(config.policy.network, endpoint, now));
        }
    }

    async fn check_all(&mut self, rpc: &Rpc, config: &NetworkConfig) {
        for asset in &config.policy.assets {
            let found = token(rpc, asset).await;
            let finding = Finding::new("token", Some(asset.address), found);
            self.findings.push(finding);
        }
        let found = gas(rpc, config).await;
        self.findings.push(Finding::new("gas", None, found));
        self.findings.push(logs(rpc).await);
        for key in &config.signers {
            let finding = signer(rpc, config, key.address()).await;
            self.findings.push(finding);
        }
        let mut assets = config.policy.assets.iter();
        let by_permit2 = assets.any(|asset| asset.method == TransferMethod::Permit2);
        for expected in CONTRACTS {
            let finding = contract(rpc, &expected, by_permit2).await;
            self.findings.push(finding);
        }
    }

    /// Whether the network can be served as it is configured.
    pub(super) fn agrees(&self) -> bool {
        let mut findings = self.findings.iter();
        findings.all(|finding| !finding.outcome.is_failure())
    }

    /// The network on a line, its findings below it.
    pub(super) fn formatted(&self) -> String {
        let mut text = format!(
            "{} {}, confirmations {}",
            self.network,
            self.name.unwrap_or("(not in the table)"),
            self.confirmations
        );
        for finding in &self.findings {
            text.push('\n');
            text.push_str(&finding.formatted());
        }
        text
    }
}

async fn token(rpc: &Rpc, asset: &Asset) -> Result<String, NetworkProblem> {
    if let Some(problem) = rpc.token_problem(asset).await? {
        return Err(problem.into());
    }
    let Asset {
        name,
        version,
        decimals,
        method,
        ..
    } = asset;
    let permit = if asset.eip2612 { ", eip2612" } else { "" };
    let domain = if asset.uses_own_domain() {
        format!(", EIP-712 domain {name:?} {version:?}")
    } else {
        String::new()
    };
    Ok(format!(
        "code, {decimals} decimals{domain}; {method}{permit}"
    ))
}

/// One of the URLs: the age of its newest block, and how fast it answers.
fn url(network: Network, endpoint: Endpoint, now: OffsetDateTime) -> Finding {
    let about = "rpc";
    let number = endpoint.number;
    let (head, took) = match endpoint.found {
        Ok(found) => found,
        Err(error) => {
            let wrong_chain = matches!(error, RpcError::WrongChain { .. });
            let mut finding = Finding::new(about, None, Err(error.into()));
            if !wrong_chain {
                finding.says = format!("RPC URL number {number}: {}", finding.says);
            }
            return finding;
        }
    };
    let answered = format!("answers in {} ms", took.as_millis());
    match probe::age(&head, now) {
        None => Finding::warning(
            about,
            format!("RPC URL number {number} {answered}; its newest block is of the future"),
            "set the clock of this machine; x402d itself goes by the clocks of chain and database",
        ),
        Some(age) if age > probe::late_after(network) => Finding::warning(
            about,
            format!(
                "RPC URL number {number} {answered}; its newest block is {} old",
                length(age)
            ),
            "if the chain goes on elsewhere, use another endpoint; a test chain may make blocks on demand",
        ),
        Some(age) => Finding::ok(
            about,
            format!(
                "RPC URL number {number} {answered}; block {}, {} old",
                head.number,
                length(age)
            ),
        ),
    }
}

/// How many blocks a call for logs may cover.
async fn logs(rpc: &Rpc) -> Finding {
    let about = "logs";
    let allowed = async {
        let head = rpc.newest().await?;
        Ok::<_, RpcError>((head.number, rpc.log_blocks(&head).await?))
    };
    match allowed.await {
        Ok((height, blocks)) if blocks < LOG_BLOCKS_LOW && blocks <= height => Finding::warning(
            about,
            format!(
                "the RPC allows {} in a call for logs",
                count(blocks, "block")
            ),
            "use an endpoint that allows a thousand: what others submit is searched for over an hour of the chain",
        ),
        Ok((_, blocks)) => Finding::ok(
            about,
            format!("{} in a call for logs", count(blocks, "block")),
        ),
        Err(error) => Finding::new(about, None, Err(error.into())),
    }
}

/// A signer has to be a plain account with money for gas. `serve` starts with a signer without money, but it cannot send.
async fn signer(rpc: &Rpc, config: &NetworkConfig, signer: Address) -> Finding {
    let about = "signer";
    let network = config.policy.network;
    let state = async {
        if rpc.has_code(signer).await? {
            return Err(NetworkProblem::SignerHasCode(signer));
        }
        let head = rpc.newest().await?;
        let fees = probe::fees(rpc, config, &head).await?;
        Ok((rpc.balance(signer).await?, fees.quote(&head)))
    };
    let (balance, fees) = match state.await {
        Ok(state) => state,
        Err(problem) => return Finding::new(about, Some(signer), Err(problem)),
    };
    let has = probe::native(network, balance);
    let plain = format!("a plain account with {has}");
    let Ok(fees) = fees else {
        return Finding::ok(about, plain).of(signer);
    };
    let runway = Runway::new(balance, fees.max_fee_wei);
    if let Some(problem) = runway.problem(network) {
        return Finding::wrong(about, problem).of(signer);
    }
    let left = runway.payments_left();
    let left = left.map(|left| format!(", gas for {left} payments"));
    Finding::ok(about, plain + &left.unwrap_or_default()).of(signer)
}

/// Compares the price of gas in the newest block with the configured limit.
async fn gas(rpc: &Rpc, config: &NetworkConfig) -> Result<String, NetworkProblem> {
    let head = rpc.newest().await?;
    let fees = probe::fees(rpc, config, &head).await?;
    fees.quote(&head)?;
    Ok(fees.describe(&head))
}

async fn contract(rpc: &Rpc, expected: &Contract, by_permit2: bool) -> Finding {
    let Contract { name, address, .. } = *expected;
    let found = rpc.has_code(address).await;
    let is_deployed = *found.as_ref().unwrap_or(&true);
    let says = found.map(|_| name.to_owned()).map_err(NetworkProblem::from);
    let mut finding = Finding::new("contract", Some(address), says);
    if !is_deployed && by_permit2 && expected.for_permit2 {
        finding.outcome = Outcome::Wrong;
        finding.says = format!("{name} is not deployed, and a configured token moves by Permit2");
    } else if !is_deployed {
        finding.outcome = Outcome::Missing;
        if address == MULTICALL3 {
            finding.says = format!(
                "{name} is not deployed: each payment gets its own transaction, and wallets that are not deployed yet cannot pay"
            );
        }
    }
    finding
}
