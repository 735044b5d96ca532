//! `x402d networks`: the table of networks and tokens, and the check of the configured ones against their chains.

mod check;

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use serde_json::json;

use crate::command::{CommandError, say};
use crate::config::{Config, Flags, ProcessEnvironment};
use crate::protocol::assets::{DefaultAsset, TransferMethod, default_assets};
use crate::protocol::networks::{KnownNetwork, NETWORKS};
use crate::protocol::response::checksummed;

#[derive(Debug, Args)]
pub(super) struct NetworksOptions {
    /// Ask the chains of the configured networks whether they agree with the configuration, as `serve` does when it starts.
    #[arg(long)]
    check: bool,
    /// The configuration that is checked; x402d.toml in the working directory unless given.
    #[arg(long, value_name = "FILE", requires = "check")]
    config: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(options: NetworksOptions) -> Result<(), CommandError> {
    if !options.check {
        let table: Vec<_> = NETWORKS.iter().map(NetworkView::new).collect();
        say(&if options.json {
            json!({ "networks": table }).to_string()
        } else {
            formatted(&table)
        });
        return Ok(());
    }
    let flags = Flags {
        file: options.config,
        ..Flags::default()
    };
    let config = Config::read(&flags, &ProcessEnvironment)?;
    let mut reports = Vec::new();
    for network in &config.networks {
        let report = check::check(network).await;
        if !options.json {
            say(&report.formatted());
        }
        reports.push(report);
    }
    if options.json {
        say(&json!({ "networks": reports }).to_string());
    }
    let wrong = reports.iter().filter(|report| !report.agrees()).count();
    if wrong > 0 {
        let all = reports.len();
        return Err(format!("{wrong} of {all} networks cannot be served as configured").into());
    }
    Ok(())
}

/// A row of the table.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NetworkView {
    network: String,
    name: &'static str,
    names: &'static [&'static str],
    v1_name: Option<&'static str>,
    test_network: bool,
    native_symbol: &'static str,
    block_time_ms: u32,
    confirmations: u32,
    explorer: Option<&'static str>,
    assets: Vec<AssetView>,
}

/// A default token of a row.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AssetView {
    symbol: &'static str,
    address: String,
    name: &'static str,
    version: &'static str,
    decimals: u8,
    transfer_method: TransferMethod,
    eip2612: bool,
    in_sdk: bool,
}

impl NetworkView {
    fn new(known: &KnownNetwork) -> Self {
        Self {
            network: known.network().to_string(),
            name: known.name,
            names: known.names,
            v1_name: known.v1_name(),
            test_network: known.test,
            native_symbol: known.native_symbol,
            block_time_ms: known.block_time_ms,
            confirmations: known.confirmations,
            explorer: known.explorer,
            assets: default_assets(known.network())
                .map(AssetView::new)
                .collect(),
        }
    }
}

impl AssetView {
    fn new(known: &DefaultAsset) -> Self {
        Self {
            symbol: known.symbol,
            address: checksummed(known.address),
            name: known.name,
            version: known.version,
            decimals: known.decimals,
            transfer_method: known.method,
            eip2612: known.eip2612,
            in_sdk: known.in_sdk,
        }
    }
}

/// Each network on a line, its tokens below it.
fn formatted(table: &[NetworkView]) -> String {
    let mut text = format!(
        "{:<17} {:<21} {:<34} {:<5} {:<7} {:>7} {:>6}  {}\n{:<10} {:<43} {:>9} {:<8} {:<8} {:<3} {}\n",
        "NETWORK",
        "",
        "NAMES",
        "WORTH",
        "GAS",
        "BLOCK",
        "CONF.",
        "EXPLORER",
        "  TOKEN",
        "ADDRESS",
        "DECIMALS",
        "BY",
        "",
        "SDK",
        "EIP-712 NAME AND VERSION",
    );
    for row in table {
        // Writing to a `String` cannot fail.
        row.write_to(&mut text).ok();
    }
    text + "\nNAMES are for [networks.NAME] and X402D_NETWORK, * as in x402 v1; CONF. is the default of confirmations; SDK: whether SDK buyers pay with the token unasked."
}

impl NetworkView {
    fn write_to(&self, text: &mut String) -> std::fmt::Result {
        let worth = if self.test_network { "test" } else { "main" };
        writeln!(
            text,
            "\n{:<17} {:<21} {:<34} {:<5} {:<7} {:>7} {:>6}  {}",
            self.network,
            self.name,
            self.spelled_names(),
            worth,
            self.native_symbol,
            duration(self.block_time_ms),
            self.confirmations,
            self.explorer.unwrap_or("-"),
        )?;
        for asset in &self.assets {
            writeln!(
                text,
                "  {:<8} {:<43} {:>9} {:<8} {:<8} {:<3} {:?} {}",
                asset.symbol,
                asset.address,
                asset.decimals,
                asset.transfer_method,
                if asset.eip2612 { "eip2612" } else { "-" },
                if asset.in_sdk { "yes" } else { "no" },
                asset.name,
                asset.version,
            )?;
        }
        Ok(())
    }

    fn spelled_names(&self) -> String {
        let names = self.names.iter().map(|name| {
            let mark = if self.v1_name == Some(*name) { "*" } else { "" };
            format!("{name}{mark}")
        });
        names.collect::<Vec<_>>().join(", ")
    }
}

fn duration(milliseconds: u32) -> String {
    match (milliseconds / 1000, milliseconds % 1000 / 100) {
        (0, _) => format!("{milliseconds} ms"),
        (seconds, 0) => format!("{seconds} s"),
        (seconds, tenths) => format!("{seconds}.{tenths} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_times_are_shown_in_readable_units() {
        for (milliseconds, expected) in [
            (250, "250 ms"),
            (12_000, "12 s"),
            (1_700, "1.7 s"),
            (1_000, "1 s"),
        ] {
            assert_eq!(duration(milliseconds), expected);
        }
    }

    #[test]
    fn every_network_and_token_has_a_line() {
        let table: Vec<_> = NETWORKS.iter().map(NetworkView::new).collect();
        let text = formatted(&table);
        for row in &table {
            let line = text
                .lines()
                .find(|line| line.contains(&format!("{} ", row.network)));
            let line = line.expect(row.name);
            assert!(
                line.contains(row.name) && line.contains(row.native_symbol),
                "{line}"
            );
            for asset in &row.assets {
                assert!(text.contains(&asset.address), "{}", asset.address);
            }
        }
    }
}
