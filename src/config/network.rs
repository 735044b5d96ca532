//! The configuration of one network.

mod signers;
mod spending;

use std::collections::BTreeMap;
use std::time::Duration;

use alloy::primitives::{Address, U256};
use secrecy::SecretString;

use super::Settings;
use super::file::{AssetFile, NetworkFile};
use crate::chain::{FeePolicy, SignerKey};
use crate::payment::{Asset, NetworkPolicy};
use crate::protocol::assets::{TransferMethod, default_assets};
use crate::protocol::field::parse_address;
use crate::protocol::networks::NETWORKS;
use crate::protocol::{Amount, DomainSeparator, Network};

/// A week, because some sellers ask for days, and a day for clock differences. An authorization that is signed for longer stays open
/// longer.
const VALIDITY_MAX_S: u32 = 8 * 24 * 3600;

/// The settings of one network.
#[derive(Debug)]
pub struct NetworkConfig {
    pub policy: NetworkPolicy,
    /// Limits of the gas price.
    pub fees: FeePolicy,
    /// RPC endpoints; secret, because their URLs may hold keys.
    pub rpc_urls: Vec<SecretString>,
    /// Endpoints that are used only for sending; secret as well.
    pub send_urls: Vec<SecretString>,
    /// RPC calls a second, at most, over all endpoints.
    pub calls_per_second: Option<u32>,
    /// Endpoints that must show the same receipt in the same block before it is used.
    pub confirm_with: usize,
    /// The keys of the signers; each has a lane.
    pub signers: Vec<SignerKey>,
    /// Payments that may wait in memory, at most.
    pub queue_max: usize,
    /// Payments of one payer that may wait in memory, at most.
    pub queue_max_per_payer: usize,
    /// Unmined transactions of one signer, at most; nodes keep about 16 of one sender.
    pub inflight_max: usize,
    /// How often to look for a new block while a transaction is open.
    pub poll: Duration,
    /// How long a payment waits for others to share a transaction while other transactions are open.
    pub batch_wait: Duration,
    /// Payments in one transaction, at most.
    pub batch_rows_max: usize,
    /// Gas of one transaction with several payments, at most.
    pub batch_gas_max: u64,
}

/// The networks of the file, and the one of the environment, whose values override the file's entry of the same network.
pub(super) fn read(
    settings: &mut Settings<'_>,
    file: BTreeMap<String, NetworkFile>,
) -> Vec<NetworkConfig> {
    let mut wanted: Vec<(String, NetworkFile)> = file.into_iter().collect();
    if let Some(name) = settings.environment.get("X402D_NETWORK") {
        let position = wanted.iter().position(|(other, _)| {
            Network::from_name(other).is_some()
                && Network::from_name(other) == Network::from_name(&name)
        });
        let base = position
            .map(|position| wanted.remove(position).1)
            .unwrap_or_default();
        let merged = with_environment(settings, base);
        wanted.push((name, merged));
    }
    if wanted.is_empty() {
        settings.problems.push(
            "no network: set X402D_NETWORK, X402D_RPC_URL and X402D_SIGNER_KEYS, or write [networks.base-sepolia] into x402d.toml; `x402d dev` needs none"
                .to_owned(),
        );
    }
    let mut networks: Vec<NetworkConfig> = Vec::new();
    for (name, entry) in wanted {
        if let Some(config) = validated(&name, &entry, settings.problems) {
            if networks
                .iter()
                .any(|other| other.policy.network == config.policy.network)
            {
                settings.problems.push(format!(
                    "networks.{name}: {} is configured twice",
                    config.policy.network
                ));
            }
            networks.push(config);
        }
    }
    networks
}

fn with_environment(settings: &mut Settings<'_>, mut base: NetworkFile) -> NetworkFile {
    for (variable, list) in [
        ("X402D_RPC_URL", &mut base.rpc_urls),
        ("X402D_PAYEES", &mut base.payees),
        ("X402D_EIP6492_FACTORIES", &mut base.eip6492_factories),
    ] {
        let given = settings.list(variable);
        if !given.is_empty() {
            *list = given;
        }
    }
    with_signers_of_environment(settings, &mut base);
    base.confirmations = settings
        .parsed("X402D_CONFIRMATIONS", "a number of blocks")
        .or(base.confirmations);
    base
}

/// Variables that name signers take the place of all signers of the file.
fn with_signers_of_environment(settings: &mut Settings<'_>, base: &mut NetworkFile) {
    let keys = settings.list("X402D_SIGNER_KEYS");
    let keys_file = settings.environment.get("X402D_SIGNER_KEYS_FILE");
    let keystores = settings.list("X402D_SIGNER_KEYSTORES");
    let kms = settings.list("X402D_SIGNER_AWS_KMS");
    if !(keys.is_empty() && keys_file.is_none() && keystores.is_empty() && kms.is_empty()) {
        base.signer_keys = keys;
        base.signer_keys_file = keys_file.map(Into::into);
        base.signer_keystores = keystores.into_iter().map(Into::into).collect();
        base.signer_aws_kms = kms;
    }
    if let Some(password) = settings
        .environment
        .get("X402D_SIGNER_KEYSTORE_PASSWORD_FILE")
    {
        base.signer_keystore_password_file = Some(password.into());
    }
}

fn validated(name: &str, entry: &NetworkFile, problems: &mut Vec<String>) -> Option<NetworkConfig> {
    let Some(network) = Network::from_name(name) else {
        problems.push(format!("networks.{name}: {}", unknown_network(name)));
        return None;
    };
    let mut reader = Reader { name, problems };
    reader.check_urls(entry);
    reader.needs(
        entry.rpc_calls_per_second.is_none_or(|calls| calls >= 5),
        "rpc_calls_per_second",
        "5 or more",
    );
    let confirm_with = reader.confirm_with(network, entry);
    let signers = reader.signers(entry);
    let policy = NetworkPolicy {
        signers: signers.iter().map(SignerKey::address).collect(),
        ..reader.policy(network, entry)
    };
    let fees = reader.fees(network, entry);
    let inflight_max = entry.inflight_max.unwrap_or(12);
    reader.needs((1..=64).contains(&inflight_max), "inflight_max", "1 to 64");
    let queue_max = entry.queue_max.unwrap_or(8192);
    reader.needs(
        (1..=1_000_000).contains(&queue_max),
        "queue_max",
        "1 to 1000000",
    );
    let queue_max_per_payer = entry.queue_max_per_payer.unwrap_or(64);
    reader.needs(
        (1..=1_000_000).contains(&queue_max_per_payer),
        "queue_max_per_payer",
        "1 to 1000000",
    );
    let poll_ms = entry.poll_ms.unwrap_or(150);
    reader.needs((20..=10_000).contains(&poll_ms), "poll_ms", "20 to 10000");
    let batch_wait_ms = entry.batch_wait_ms.unwrap_or(200);
    reader.needs(batch_wait_ms <= 5_000, "batch_wait_ms", "0 to 5000");
    let (batch_rows_max, batch_gas_max) = reader.batches(network, entry);
    Some(NetworkConfig {
        policy,
        fees,
        rpc_urls: secret(&entry.rpc_urls),
        send_urls: secret(&entry.send_urls),
        calls_per_second: entry.rpc_calls_per_second,
        confirm_with,
        signers,
        queue_max,
        queue_max_per_payer,
        inflight_max,
        poll: Duration::from_millis(poll_ms),
        batch_wait: Duration::from_millis(batch_wait_ms),
        batch_rows_max,
        batch_gas_max,
    })
}

fn unknown_network(name: &str) -> String {
    if name.starts_with("solana") {
        return "x402d serves EVM networks only".to_owned();
    }
    let names = NETWORKS
        .iter()
        .flat_map(|known| known.names.iter().copied());
    let hint = super::nearest(name, names)
        .map(|meant| format!("; did you mean {meant}?"))
        .unwrap_or_default();
    format!(
        "expected a CAIP-2 name such as \"eip155:8453\" or one of the names that `x402d networks` shows, such as base-sepolia{hint}"
    )
}

fn secret(urls: &[String]) -> Vec<SecretString> {
    urls.iter().cloned().map(SecretString::from).collect()
}

struct Reader<'a> {
    name: &'a str,
    problems: &'a mut Vec<String>,
}

impl Reader<'_> {
    fn check_urls(&mut self, entry: &NetworkFile) {
        let (rpc_urls, send_urls) = ("rpc_urls (X402D_RPC_URL)", "send_urls");
        self.needs(!entry.rpc_urls.is_empty(), rpc_urls, "at least one URL");
        for (key, urls) in [(rpc_urls, &entry.rpc_urls), (send_urls, &entry.send_urls)] {
            let usable = |url: &String| {
                url.parse::<url::Url>()
                    .is_ok_and(|url| matches!(url.scheme(), "http" | "https"))
            };
            self.needs(
                urls.iter().all(usable),
                key,
                "http or https URLs (WebSocket is not used)",
            );
        }
    }

    fn needs(&mut self, holds: bool, key: &str, expected: &str) {
        if !holds {
            self.problems
                .push(format!("networks.{}.{key}: expected {expected}", self.name));
        }
    }

    /// With two endpoints, the operator of one cannot invent payments. On test networks they are worth nothing, so one is enough.
    fn confirm_with(&mut self, network: Network, entry: &NetworkFile) -> usize {
        let endpoints = entry.rpc_urls.len();
        let default = if network.is_test() || endpoints < 2 {
            1
        } else {
            2
        };
        let confirm_with = entry.confirm_with.unwrap_or(default);
        self.needs(
            (1..=endpoints.max(1)).contains(&confirm_with),
            "confirm_with",
            &format!("1 to {endpoints}, the number of rpc_urls"),
        );
        confirm_with
    }

    fn addresses(&mut self, key: &str, texts: &[String]) -> Vec<Address> {
        let mut addresses = Vec::new();
        for (index, text) in texts.iter().enumerate() {
            addresses.extend(self.address(&format!("{key}[{index}]"), text));
        }
        addresses
    }

    fn address(&mut self, key: &str, text: &str) -> Option<Address> {
        match parse_address(text) {
            Ok(address) => {
                self.needs(
                    has_its_checksum(text, address),
                    key,
                    "an address whose small and capital letters are its checksum (EIP-55); is a digit mistyped? In small letters alone it is not checked",
                );
                Some(address)
            }
            Err(why) => {
                self.needs(false, key, &format!("an address, but {why}"));
                None
            }
        }
    }

    fn policy(&mut self, network: Network, entry: &NetworkFile) -> NetworkPolicy {
        let dollars = self.minimum_dollars(network, entry);
        let assets = self.assets(network, &entry.assets, &dollars);
        let known = !assets.is_empty();
        self.needs(
            known,
            "assets",
            "at least one token: x402d knows no default for this network",
        );
        let payees = self.addresses("payees (X402D_PAYEES)", &entry.payees);
        let limited = network.is_test() || !entry.payees.is_empty();
        self.needs(
            limited,
            "payees (X402D_PAYEES)",
            "the addresses that may be paid: this is not a known test network, and without the list any caller could spend your gas",
        );
        let confirmations = entry
            .confirmations
            .unwrap_or_else(|| network.default_confirmations());
        self.needs(
            (1..=1000).contains(&confirmations),
            "confirmations (X402D_CONFIRMATIONS)",
            "1 to 1000",
        );
        let (validity_min_s, validity_max_s) = (
            entry.validity_min_s.unwrap_or(6),
            entry.validity_max_s.unwrap_or(VALIDITY_MAX_S),
        );
        self.needs(
            validity_min_s < validity_max_s,
            "validity_min_s",
            "less than validity_max_s",
        );
        NetworkPolicy {
            network,
            assets,
            payees,
            signers: Vec::new(),
            permit2: DomainSeparator::of_permit2(network),
            approvals: self.approvals(entry.approvals.as_ref()),
            budget: self.budget(&entry.budget),
            factories: self.addresses(
                "eip6492_factories (X402D_EIP6492_FACTORIES)",
                &entry.eip6492_factories,
            ),
            validity_min: time::Duration::seconds(i64::from(validity_min_s)),
            validity_max: time::Duration::seconds(i64::from(validity_max_s)),
            confirmations,
        }
    }

    fn assets(&mut self, network: Network, entries: &[AssetFile], dollars: &str) -> Vec<Asset> {
        // Every token of the table is worth a dollar.
        let known = |address| default_assets(network).find(|known| known.address == address);
        let minimum = |decimals| Amount::from_dollars(dollars, decimals).unwrap_or_default();
        if entries.is_empty() {
            let all = default_assets(network).map(Asset::from);
            let all = all.map(|asset| (minimum(asset.decimals), asset));
            return all
                .map(|(minimum, asset)| asset.from_minimum(minimum))
                .collect();
        }
        let mut assets = Vec::new();
        for (index, entry) in entries.iter().enumerate() {
            let key = |member: &str| format!("assets[{index}].{member}");
            let Some(address) = self.address(&key("address"), &entry.address) else {
                continue;
            };
            let units = entry.minimum_units.map(U256::from).map(Amount::from_atomic);
            let is_known = network.is_test() || known(address).is_some();
            self.needs(
                is_known || units.is_some(),
                &key("minimum_units"),
                "the smallest payment in the token's smallest unit: x402d does not know what this token is worth, and anybody could spend your gas on payments of 1; 0 admits that",
            );
            let minimum = units.unwrap_or_else(|| minimum(entry.decimals));
            assets.push(asset(network, address, entry).from_minimum(minimum));
        }
        assets
    }

    /// Rows and gas of one transaction: below the limits of nodes' pools (128 KiB; Arbitrum's sequencer 95,000 bytes) and of blocks (2^24
    /// gas, EIP-7825).
    fn batches(&mut self, network: Network, entry: &NetworkFile) -> (usize, u64) {
        let default_rows = match network.chain_id() {
            42_161 | 421_614 => 150,
            _ => 190,
        };
        let rows = entry.batch_rows_max.unwrap_or(default_rows);
        self.needs((1..=190).contains(&rows), "batch_rows_max", "1 to 190");
        let gas = entry.batch_gas_max.unwrap_or(15_000_000);
        self.needs(
            (1_000_000..=16_000_000).contains(&gas),
            "batch_gas_max",
            "1000000 to 16000000",
        );
        (rows, gas)
    }

    fn fees(&mut self, network: Network, entry: &NetworkFile) -> FeePolicy {
        let gas_cap = entry.gas_cap.unwrap_or(500_000);
        self.needs(
            (100_000..=5_000_000).contains(&gas_cap),
            "gas_cap",
            "100000 to 5000000",
        );
        self.needs(
            entry.eip6492_factories.is_empty() || gas_cap >= 450_000,
            "gas_cap",
            "450000 or more when eip6492_factories are listed: deploying a wallet costs that much",
        );
        let max_fee_cap_wei = u128::from(
            entry
                .max_fee_wei
                .unwrap_or_else(|| network.default_fee_cap_wei()),
        );
        let priority_fee_wei = u128::from(entry.priority_fee_wei.unwrap_or(1_000_000));
        self.needs(
            priority_fee_wei <= max_fee_cap_wei,
            "priority_fee_wei",
            "at most max_fee_wei",
        );
        let wallet_gas_cap = entry.wallet_gas_cap.unwrap_or_else(|| gas_cap.min(200_000));
        self.needs(
            (50_000..=gas_cap.max(50_000)).contains(&wallet_gas_cap),
            "wallet_gas_cap",
            "50000 to gas_cap",
        );
        FeePolicy {
            max_fee_cap_wei,
            priority_fee_wei,
            gas_cap,
            wallet_gas_cap,
            gas_price_wei: None,
        }
    }
}

/// Small and capital letters of an address are its checksum (EIP-55); in small or in capital letters alone there is none.
fn has_its_checksum(text: &str, address: Address) -> bool {
    let is = |test: fn(&char) -> bool| text.chars().skip(2).any(|letter| test(&letter));
    let is_mixed = is(char::is_ascii_lowercase) && is(char::is_ascii_uppercase);
    !is_mixed || address.to_checksum(None) == text
}

/// A configured token. What the file leaves out is taken from the table, else from what is usual for the token's version.
fn asset(network: Network, address: Address, entry: &AssetFile) -> Asset {
    let (name, version, decimals) = (&entry.name, &entry.version, entry.decimals);
    let asset = Asset::new(network, address, name, version, decimals);
    let known = default_assets(network).find(|known| known.address == address);
    let method = known.map(|known| known.method);
    let method = entry.transfer_method.or(method).unwrap_or_default();
    let eip2612 = known.map_or(
        method == TransferMethod::Eip3009 && asset.eip2612,
        |known| known.eip2612,
    );
    asset.paid_with(method, entry.eip2612.unwrap_or(eip2612))
}
