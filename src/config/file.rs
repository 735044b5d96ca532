//! The format of `x402d.toml`. Unknown keys are refused: a misspelt limit would not limit anything.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;

use crate::payment::AccessMode;
use crate::protocol::assets::TransferMethod;

/// The whole file; every key is optional.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    pub(super) listen: Option<SocketAddr>,
    pub(super) metrics_listen: Option<SocketAddr>,
    pub(super) database_url: Option<String>,
    pub(super) data_dir: Option<PathBuf>,
    pub(super) admin_token: Option<String>,
    pub(super) settle_wait_s: Option<u64>,
    pub(super) verify_lease_s: Option<u32>,
    pub(super) body_bytes_max: Option<usize>,
    pub(super) connections_max: Option<usize>,
    pub(super) connections_max_per_client: Option<usize>,
    pub(super) connections_max_per_proxy: Option<usize>,
    pub(super) trusted_proxies: Vec<String>,
    pub(super) database_connections_max: Option<u32>,
    pub(super) access: AccessFile,
    pub(super) limits: LimitsFile,
    pub(super) sessions: SessionsFile,
    pub(super) networks: BTreeMap<String, NetworkFile>,
}

impl File {
    /// Whether private keys are in the file itself.
    pub(super) fn has_keys(&self) -> bool {
        let mut networks = self.networks.values();
        networks.any(|network| !network.signer_keys.is_empty())
    }
}

/// `[access]`.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct AccessFile {
    pub(super) settle: Option<AccessMode>,
}

/// `[limits]`.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LimitsFile {
    pub(super) verify_per_second: Option<u32>,
    pub(super) settle_per_second: Option<u32>,
    pub(super) sessions_per_second: Option<u32>,
    pub(super) unattended_per_caller: Option<usize>,
    pub(super) waits_per_caller: Option<usize>,
    pub(super) deny_list: Option<PathBuf>,
    pub(super) policy_url: Option<String>,
    pub(super) policy_fail: Option<String>,
}

/// `[sessions]`.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct SessionsFile {
    pub(super) open_max: Option<u32>,
    pub(super) open_max_per_client: Option<u32>,
    pub(super) open_max_per_party: Option<u32>,
    pub(super) sponsor: Option<bool>,
    pub(super) sponsor_minimum: Option<String>,
}

/// One `[networks.NAME]`.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct NetworkFile {
    pub(super) rpc_urls: Vec<String>,
    pub(super) send_urls: Vec<String>,
    pub(super) rpc_calls_per_second: Option<u32>,
    pub(super) confirm_with: Option<usize>,
    pub(super) signer_keys: Vec<String>,
    pub(super) signer_keys_file: Option<PathBuf>,
    pub(super) signer_keystores: Vec<PathBuf>,
    pub(super) signer_keystore_password_file: Option<PathBuf>,
    pub(super) signer_aws_kms: Vec<String>,
    pub(super) payees: Vec<String>,
    pub(super) minimum_dollars: Option<String>,
    pub(super) eip6492_factories: Vec<String>,
    pub(super) assets: Vec<AssetFile>,
    pub(super) approvals: Option<ApprovalsFile>,
    pub(super) budget: BudgetFile,
    pub(super) confirmations: Option<u32>,
    pub(super) validity_min_s: Option<u32>,
    pub(super) validity_max_s: Option<u32>,
    pub(super) max_fee_wei: Option<u64>,
    pub(super) priority_fee_wei: Option<u64>,
    pub(super) gas_cap: Option<u64>,
    pub(super) wallet_gas_cap: Option<u64>,
    pub(super) queue_max: Option<usize>,
    pub(super) queue_max_per_payer: Option<usize>,
    pub(super) inflight_max: Option<usize>,
    pub(super) poll_ms: Option<u64>,
    pub(super) batch_wait_ms: Option<u64>,
    pub(super) batch_rows_max: Option<usize>,
    pub(super) batch_gas_max: Option<u64>,
}

/// `[networks.NAME.approvals]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ApprovalsFile {
    pub(super) wei_per_payer: u64,
    pub(super) wei_per_day: u64,
}

/// `[networks.NAME.budget]`.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct BudgetFile {
    #[serde(rename = "wei_per_day")]
    pub(super) in_all: Option<WeiFile>,
    #[serde(rename = "wei_per_day_per_payee")]
    pub(super) per_payee: Option<WeiFile>,
    #[serde(rename = "wei_per_day_per_payer")]
    pub(super) per_payer: Option<WeiFile>,
}

/// An amount of native currency.
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "expected wei as a whole number, or text such as \"0.01eth\""
)]
pub(super) enum WeiFile {
    Wei(u64),
    /// A number with its unit, or wei that TOML has no number for.
    Text(String),
}

/// One `[[networks.NAME.assets]]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AssetFile {
    pub(super) address: String,
    pub(super) name: String,
    pub(super) version: String,
    pub(super) decimals: u8,
    pub(super) transfer_method: Option<TransferMethod>,
    pub(super) eip2612: Option<bool>,
    pub(super) minimum_units: Option<u64>,
}
