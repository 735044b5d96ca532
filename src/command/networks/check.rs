//! Compares a configuration with the chains.

use std::fmt::Write as _;

use alloy::primitives::{Address, U256};
use serde::Serialize;

use crate::chain::MULTICALL3;
use crate::chain::{Rpc, RpcError};
use crate::config::NetworkConfig;
use crate::payment::Asset;
use crate::protocol::assets::TransferMethod;
use crate::protocol::permit2::{EXACT_PROXY, PERMIT2, UPTO_PROXY};
use crate::protocol::response::checksummed;
use crate::server::{NetworkProblem, network_rpc, rpc_with_urls};
use crate::settlement::{GAS_RESERVE_PAYMENTS, native_amount, payment_cost};

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
pub(super) struct Report {
    network: String,
    name: Option<&'static str>,
    confirmations: u32,
    findings: Vec<Finding>,
}

/// The result of one check.
#[derive(Debug, Serialize)]
struct Finding {
    about: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    outcome: Outcome,
    says: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    /// The chain agrees with the configuration.
    Agrees,
    /// It is not deployed, and the configuration does not need it.
    Missing,
    /// `serve` would refuse to start, or could not settle.
    Wrong,
    /// The RPC did not answer.
    Unanswered,
}

impl Outcome {
    const fn word(self) -> &'static str {
        match self {
            Self::Agrees => "ok",
            Self::Missing => "missing",
            Self::Wrong => "WRONG",
            Self::Unanswered => "UNKNOWN",
        }
    }
}

impl Finding {
    fn new(
        about: &'static str,
        address: Option<Address>,
        found: Result<String, NetworkProblem>,
    ) -> Self {
        let (outcome, says) = match found {
            Ok(says) => (Outcome::Agrees, says),
            Err(problem) if problem.is_transient() => (Outcome::Unanswered, problem.to_string()),
            Err(problem) => (Outcome::Wrong, problem.to_string()),
        };
        Self {
            about,
            address: address.map(checksummed),
            outcome,
            says,
        }
    }
}

/// Checks everything that is configured of a network. If its endpoints serve another chain or do not answer, nothing else is checked.
pub(super) async fn check(config: &NetworkConfig) -> Report {
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
    /// Where there are several URLs, checks each alone: `serve` starts without those that fail.
    async fn check_urls(&mut self, config: &NetworkConfig) {
        if config.rpc_urls.len() < 2 {
            return;
        }
        for (index, url) in config.rpc_urls.iter().enumerate() {
            let alone = rpc_with_urls(config, std::slice::from_ref(url));
            let checked = async { alone?.check_chain().await };
            if let Err(mut error) = checked.await {
                // Its number among all URLs, not among the one that was checked.
                if let RpcError::WrongChain { number, .. } = &mut error {
                    *number = index + 1;
                }
                let wrong_chain = matches!(error, RpcError::WrongChain { .. });
                let mut finding = Finding::new("rpc", None, Err(error.into()));
                if !wrong_chain {
                    finding.says = format!("RPC URL number {}: {}", index + 1, finding.says);
                }
                self.findings.push(finding);
            }
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
        self.findings.iter().all(|finding| match finding.outcome {
            Outcome::Agrees | Outcome::Missing => true,
            Outcome::Wrong | Outcome::Unanswered => false,
        })
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
            let (word, about, says) = (finding.outcome.word(), finding.about, &finding.says);
            let address = finding.address.as_deref().unwrap_or_default();
            // Writing to a `String` cannot fail.
            write!(text, "\n  {word:<8} {about:<9} {address:<42} {says}").ok();
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

/// A signer has to be a plain account with money for gas. `serve` starts with a signer without money, but it cannot send.
async fn signer(rpc: &Rpc, config: &NetworkConfig, signer: Address) -> Finding {
    let about = "signer";
    let state = async {
        if rpc.has_code(signer).await? {
            return Err(NetworkProblem::SignerHasCode(signer));
        }
        Ok((rpc.balance(signer).await?, rpc.newest().await?))
    };
    let (balance, head) = match state.await {
        Ok(state) => state,
        Err(problem) => return Finding::new(about, Some(signer), Err(problem)),
    };
    let known = config.policy.network.known();
    let native = |wei| native_amount(wei, known.map_or("ETH", |known| known.native_symbol));
    let has = native(balance);
    let Ok(fees) = config.fees.quote(&head) else {
        let says = format!("a plain account with {has}");
        return Finding::new(about, Some(signer), Ok(says));
    };
    let cost = payment_cost(fees.max_fee_wei);
    let left = balance.checked_div(cost);
    let says = left.map_or_else(
        || format!("a plain account with {has}"),
        |left| format!("a plain account with {has}, gas for {left} payments"),
    );
    let mut finding = Finding::new(about, Some(signer), Ok(says));
    let needs = cost.saturating_mul(U256::from(GAS_RESERVE_PAYMENTS));
    if balance < needs {
        finding.outcome = Outcome::Wrong;
        finding.says = format!(
            "has {has}, and a payment costs about {}: it sends nothing below {} (gas for {GAS_RESERVE_PAYMENTS} payments); refill it",
            native(cost),
            native(needs)
        );
    }
    finding
}

/// Compares the price of gas in the newest block with the configured limit.
async fn gas(rpc: &Rpc, config: &NetworkConfig) -> Result<String, NetworkProblem> {
    let head = rpc.newest().await?;
    let fees = match head.base_fee_wei {
        Some(_) => config.fees,
        None => config.fees.with_gas_price(rpc.gas_price().await?),
    };
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
