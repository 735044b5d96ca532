//! `x402d signers`: pauses, drains and resumes lanes. Works on the database of the configuration; the running service notices within
//! seconds.

mod drain;

use std::time::Duration;

use alloy::primitives::Address;
use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::json;
use time::OffsetDateTime;

use crate::command::database::LedgerOptions;
use crate::command::shown::{aligned, clock_time, count, moment, network_name, parse_network, row};
use crate::command::{CommandError, say};
use crate::ledger::{LaneKey, LaneView, Ledger};
use crate::protocol::Network;
use crate::protocol::field::parse_address;
use crate::protocol::response::checksummed;

#[derive(Debug, Args)]
pub(super) struct SignersOptions {
    #[command(flatten)]
    ledger: LedgerOptions,
    #[command(subcommand)]
    command: SignersCommand,
}

#[derive(Debug, Subcommand)]
enum SignersCommand {
    /// List the signers, what they have under way, and why one is stopped.
    List,
    /// Have a signer write no new transactions. What it has sent is followed to its end.
    Pause(OneSigner),
    /// End a signer's pause, or put one back to work that x402d has stopped. The reason is printed first.
    Resume(OneSigner),
    /// Have a signer take no new payments, and wait until nothing of it is under way. It stays paused.
    Drain {
        #[command(flatten)]
        signer: OneSigner,
        /// How long to wait, such as 90s or 10m.
        #[arg(long, value_name = "TIME", default_value = "10m", value_parser = humantime::parse_duration)]
        timeout: Duration,
    },
}

#[derive(Debug, Clone, Copy, Args)]
struct OneSigner {
    /// Its address.
    #[arg(value_parser = parse_address)]
    address: Address,
    /// On which network, such as base or eip155:8453; needed where it signs on several.
    #[arg(long, value_name = "NETWORK", value_parser = parse_network)]
    network: Option<Network>,
}

pub(super) async fn run(options: SignersOptions) -> Result<(), CommandError> {
    let SignersOptions { ledger, command } = options;
    let json = ledger.json;
    let work = async move |ledger: &Ledger| match command {
        SignersCommand::List => list(ledger, json).await,
        SignersCommand::Pause(signer) => pause(ledger, signer, json).await,
        SignersCommand::Resume(signer) => resume(ledger, signer, json).await,
        SignersCommand::Drain { signer, timeout } => {
            let lane = signer.find(ledger).await?.lane;
            drain::drain(ledger, lane, timeout, json).await?;
            show(ledger, lane, json).await
        }
    };
    ledger.on_ledger(work).await
}

impl OneSigner {
    async fn find(self, ledger: &Ledger) -> Result<LaneView, CommandError> {
        let mut lanes = ledger.lanes().await?;
        lanes.retain(|view| view.lane.signer == self.address);
        let on: Vec<_> = lanes
            .iter()
            .map(|view| network_name(view.lane.network))
            .collect();
        lanes.retain(|view| {
            self.network
                .is_none_or(|network| view.lane.network == network)
        });
        let address = checksummed(self.address);
        if lanes.len() > 1 {
            let on = on.join(", ");
            return Err(format!("{address} signs on {on}: say which with --network").into());
        }
        lanes.pop().ok_or_else(|| match self.network {
            Some(network) if !on.is_empty() => format!(
                "{address} does not sign on {}: expected --network {}",
                network_name(network),
                on.join(" or ")
            )
            .into(),
            Some(_) | None => format!(
                "{address} is no signer of this ledger: expected one that `x402d signers list` shows; it has a row once the service has started with its key"
            )
            .into(),
        })
    }
}

/// A signer, as `--json` has it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct SignerView {
    network: String,
    signer: String,
    /// `working`, `draining`, `paused`, `stopped`, or `unowned`: no process has its lane.
    state: &'static str,
    stopped_reason: Option<String>,
    paused_at: Option<String>,
    transactions_in_flight: u64,
    payments_in_flight: u64,
    next_nonce: u64,
    owner: Option<String>,
}

impl SignerView {
    fn new(view: &LaneView, now: OffsetDateTime) -> Self {
        let owner = view.owner.filter(|_| view.lease_until > now);
        Self {
            network: view.lane.network.to_string(),
            signer: checksummed(view.lane.signer),
            state: view.state(now),
            stopped_reason: view.stopped_reason.clone(),
            paused_at: view.pause.map(|pause| moment(pause.at)),
            transactions_in_flight: view.open,
            payments_in_flight: view.payments,
            next_nonce: view.next_nonce,
            owner: owner.map(|owner| owner.0.to_string()),
        }
    }
}

/// What a lane has under way, in words.
fn under_way(view: &LaneView) -> String {
    if view.open == 0 {
        return "nothing".to_owned();
    }
    format!(
        "{} with {}",
        count(view.open, "transaction"),
        count(view.payments, "payment")
    )
}

fn named(lane: LaneKey) -> String {
    format!(
        "{} on {}",
        checksummed(lane.signer),
        network_name(lane.network)
    )
}

async fn list(ledger: &Ledger, json: bool) -> Result<(), CommandError> {
    let now = ledger.server_facts().await?.now;
    let lanes = ledger.lanes().await?;
    let views: Vec<_> = lanes
        .iter()
        .map(|view| SignerView::new(view, now))
        .collect();
    if json {
        say(&json!({ "signers": views }).to_string());
        return Ok(());
    }
    let mut rows = vec![row([
        "SIGNER",
        "NETWORK",
        "STATE",
        "UNDER WAY",
        "NEXT NONCE",
        "PAUSED SINCE (UTC)",
    ])];
    rows.extend(lanes.iter().zip(&views).map(|(lane, view)| {
        let paused = lane.pause.map(|pause| clock_time(pause.at));
        vec![
            view.signer.clone(),
            network_name(lane.lane.network),
            view.state.to_owned(),
            under_way(lane),
            lane.next_nonce.to_string(),
            paused.unwrap_or_else(|| "-".to_owned()),
        ]
    }));
    say(&aligned(&rows));
    for lane in &lanes {
        if let Some(why) = &lane.stopped_reason {
            say(&format!("{} is stopped: {why}", named(lane.lane)));
        }
    }
    Ok(())
}

/// Prints the lane as JSON.
async fn show(ledger: &Ledger, lane: LaneKey, json: bool) -> Result<(), CommandError> {
    if json {
        let now = ledger.server_facts().await?.now;
        let lanes = ledger.lanes().await?;
        let view = lanes.iter().find(|view| view.lane == lane);
        let view = view.map(|view| SignerView::new(view, now));
        say(&serde_json::to_string(&view)?);
    }
    Ok(())
}

async fn pause(ledger: &Ledger, signer: OneSigner, json: bool) -> Result<(), CommandError> {
    let lane = signer.find(ledger).await?.lane;
    let paused = ledger.pause_lane(lane, false).await?;
    if json {
        return show(ledger, lane, json).await;
    }
    let already = if paused { "" } else { " already" };
    let view = signer.find(ledger).await?;
    say(&format!(
        "{} is paused{already} and writes no new transactions; under way: {}",
        named(lane),
        under_way(&view)
    ));
    let naming = ledger.waiting_for(lane).await?.naming;
    if naming > 0 {
        say(&format!(
            "{} in the queue can be sent by this signer alone, and will be refused once expired; `x402d signers drain` sends them first",
            count(naming, "payment")
        ));
    }
    Ok(())
}

async fn resume(ledger: &Ledger, signer: OneSigner, json: bool) -> Result<(), CommandError> {
    let view = signer.find(ledger).await?;
    let name = named(view.lane);
    let stopped = view.stopped_reason.as_deref();
    if !json && let Some(why) = stopped {
        say(&format!("{name} is stopped: {why}"));
    }
    let was_held = stopped.is_some() || view.pause.is_some();
    if was_held && !ledger.resume_lane(view.lane, stopped).await? {
        return Err(format!(
            "{name} was stopped, paused or resumed by somebody else just now: nothing was changed; look at `x402d signers list` and try again"
        )
        .into());
    }
    if json {
        return show(ledger, view.lane, json).await;
    }
    say(&if was_held {
        format!(
            "{name} is resumed; a running service compares its nonces with the chain and puts it to work within seconds"
        )
    } else {
        format!("{name} is neither stopped nor paused")
    });
    Ok(())
}
