//! `x402d networks`: the table of networks and tokens, and the check of the configured ones against their chains.

pub(super) mod check;

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use serde_json::json;

use crate::command::shown::{aligned, parse_network, row};
use crate::command::{CommandError, say};
use crate::config::{Config, Flags, ProcessEnvironment};
use crate::protocol::Network;
use crate::protocol::assets::{DefaultAsset, TransferMethod, default_assets};
use crate::protocol::networks::{KnownNetwork, NETWORKS};
use crate::protocol::response::checksummed;

#[derive(Debug, Args)]
pub(super) struct NetworksOptions {
    /// Show this network alone, with its tokens; such as base or eip155:8453.
    #[arg(value_name = "NETWORK", value_parser = parse_network, conflicts_with = "check")]
    network: Option<Network>,
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
        return show(options.network, options.json);
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

/// Shows a network, or all of them.
fn show(network: Option<Network>, json: bool) -> Result<(), CommandError> {
    let wanted = |known: &&KnownNetwork| network.is_none_or(|network| known.network() == network);
    let views = NETWORKS.iter().filter(wanted).map(NetworkView::new);
    let views: Vec<_> = views.collect();
    if let (Some(network), true) = (network, views.is_empty()) {
        return Err(format!("{network} is not in the table; it can be configured all the same, with its tokens in assets").into());
    }
    say(&match views.as_slice() {
        views if json => json!({ "networks": views }).to_string(),
        [one] if network.is_some() => one.details(),
        views => table(views),
    });
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

/// Each network on a line, with the symbols of its tokens.
fn table(networks: &[NetworkView]) -> String {
    let mut rows = vec![row([
        "NAME", "NETWORK", "", "WORTH", "GAS", "BLOCK", "CONF.", "TOKENS",
    ])];
    rows.extend(networks.iter().map(|network| {
        let name = network.names.first().copied().unwrap_or_default();
        let tokens = network.assets.iter().map(|asset| asset.symbol);
        let tokens = tokens.collect::<Vec<_>>().join(", ");
        vec![
            name.to_owned(),
            network.network.clone(),
            network.name.to_owned(),
            network.worth().to_owned(),
            network.native_symbol.to_owned(),
            duration(network.block_time_ms),
            network.confirmations.to_string(),
            if tokens.is_empty() {
                "-".to_owned()
            } else {
                tokens
            },
        ]
    }));
    aligned(&rows)
        + "\n\nNAME is for [networks.NAME] and X402D_NETWORK; CONF. is the default of confirmations. `x402d networks NAME` shows a network with its tokens."
}

impl NetworkView {
    const fn worth(&self) -> &'static str {
        if self.test_network { "test" } else { "main" }
    }

    /// A property on each line, then the tokens.
    fn details(&self) -> String {
        let properties = [
            ("network", self.network.clone()),
            ("name", self.name.to_owned()),
            ("names", self.names.join(", ")),
            ("in x402 v1", self.v1_name.unwrap_or("-").to_owned()),
            ("worth", self.worth().to_owned()),
            ("gas in", self.native_symbol.to_owned()),
            ("block time", duration(self.block_time_ms)),
            ("confirmations", self.confirmations.to_string()),
            ("explorer", self.explorer.unwrap_or("-").to_owned()),
        ];
        let properties = properties.map(|(name, value)| vec![name.to_owned(), value]);
        if self.assets.is_empty() {
            return aligned(&properties) + "\n\nno known token: write its tokens into assets";
        }
        let mut rows = vec![row([
            "TOKEN",
            "ADDRESS",
            "DECIMALS",
            "BY",
            "EIP-2612",
            "SDK",
            "EIP-712 NAME AND VERSION",
        ])];
        rows.extend(self.assets.iter().map(AssetView::row));
        format!(
            "{}\n\n{}\n\nSDK: whether SDK buyers pay with the token unasked.",
            aligned(&properties),
            aligned(&rows)
        )
    }
}

impl AssetView {
    fn row(&self) -> Vec<String> {
        let yes = |is: bool| if is { "yes" } else { "no" };
        vec![
            self.symbol.to_owned(),
            self.address.clone(),
            self.decimals.to_string(),
            self.transfer_method.to_string(),
            yes(self.eip2612).to_owned(),
            yes(self.in_sdk).to_owned(),
            format!("{:?} {}", self.name, self.version),
        ]
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
    fn every_network_has_a_line_and_every_token_is_in_the_details() {
        let views: Vec<_> = NETWORKS.iter().map(NetworkView::new).collect();
        let text = table(&views);
        let longest = text.lines().map(|line| line.chars().count()).max();
        assert!(longest.is_some_and(|longest| longest <= 160), "{text}");
        for view in &views {
            let line = text
                .lines()
                .find(|line| line.contains(&format!("{} ", view.network)));
            let line = line.expect(view.name);
            assert!(
                line.contains(view.name) && line.contains(view.native_symbol),
                "{line}"
            );
            let details = view.details();
            for asset in &view.assets {
                assert!(line.contains(asset.symbol), "{line}");
                assert!(details.contains(&asset.address), "{details}");
            }
        }
    }
}
