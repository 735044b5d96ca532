//! The lanes of a network's signers: whether the operator or x402d has stopped one, and whether a key is used elsewhere.

use alloy::primitives::Address;

use crate::chain::Rpc;
use crate::command::finding::Finding;
use crate::command::shown::network_name;
use crate::config::NetworkConfig;
use crate::ledger::{LaneKey, LaneView, Ledger, LedgerError};
use crate::protocol::response::checksummed;
use crate::server::network_rpc;
use crate::telemetry::causes;

const ABOUT: &str = "lane";

pub(super) async fn examine(ledger: &Ledger, config: &NetworkConfig) -> Vec<Finding> {
    let mut findings = Vec::new();
    let rpc = network_rpc(config).ok();
    for key in &config.signers {
        let lane = LaneKey {
            network: config.policy.network,
            signer: key.address(),
        };
        if let Err(error) = key.check().await {
            let away = Finding::wrong("key", causes(&error));
            let fix = "check the id of the key, its region, and that the credentials may call kms:GetPublicKey and kms:Sign; until then the lane sends nothing";
            findings.push(away.with_fix(fix).of(lane.signer));
        }
        match examine_one(ledger, rpc.as_ref(), lane).await {
            Ok(finding) => findings.push(finding.of(lane.signer)),
            Err(error) => findings.push(Finding::wrong(ABOUT, causes(&error)).of(lane.signer)),
        }
    }
    findings
}

async fn examine_one(
    ledger: &Ledger,
    rpc: Option<&Rpc>,
    lane: LaneKey,
) -> Result<Finding, LedgerError> {
    // The chain first: the ledger writes a nonce before the chain can know it.
    let nonces = match rpc {
        Some(rpc) => nonces(rpc, lane.signer).await,
        None => None,
    };
    let lanes = ledger.lanes().await?;
    let Some(view) = lanes.into_iter().find(|view| view.lane == lane) else {
        return Ok(Finding::ok(
            ABOUT,
            "new: it has a row once the service has started",
        ));
    };
    let resume = format!(
        "x402d signers resume {} --network {}",
        checksummed(lane.signer),
        network_name(lane.network)
    );
    if let Some(why) = &view.stopped_reason {
        let stopped = Finding::wrong(ABOUT, format!("stopped: {why}"));
        return Ok(stopped.with_fix(&format!("find the cause, then {resume}")));
    }
    if let Some(pause) = view.pause {
        let held = if pause.draining { "draining" } else { "paused" };
        return Ok(Finding::warning(
            ABOUT,
            format!("{held} by the operator"),
            &resume,
        ));
    }
    Ok(compared(&view, nonces))
}

/// The account nonce in the newest block, and with the pool.
async fn nonces(rpc: &Rpc, signer: Address) -> Option<(u64, u64)> {
    let mined = rpc.transaction_count(signer, "latest").await.ok()?;
    let pending = rpc.transaction_count(signer, "pending").await.ok()?;
    Some((mined, pending))
}

fn compared(view: &LaneView, nonces: Option<(u64, u64)>) -> Finding {
    let next = view.next_nonce;
    let elsewhere = "use the key for nothing else; if the database was restored from a dump, that is the reason, and `x402d signers` shows whether the lane stopped";
    match nonces {
        Some((mined, _)) if mined > next => Finding::wrong(
            ABOUT,
            format!(
                "the chain has used its nonces up to {}, the ledger has none from {next} on",
                mined - 1
            ),
        )
        .with_fix(elsewhere),
        Some((_, pending)) if pending > next => Finding::warning(
            ABOUT,
            format!("a transaction in the pool uses nonce {next} and is not in the ledger"),
            elsewhere,
        ),
        Some(_) => Finding::ok(
            ABOUT,
            format!(
                "next nonce {next}, as on the chain; {} under way",
                view.open
            ),
        ),
        None => Finding::ok(ABOUT, format!("next nonce {next}; {} under way", view.open)),
    }
}
