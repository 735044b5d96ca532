//! `GET /signers`: the lanes, for the operator.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use time::format_description::well_known::Rfc3339;
use utoipa::ToSchema;

use crate::http::operator::Operator;
use crate::http::{AppState, Problem};
use crate::ledger::LaneView;
use crate::protocol::response::checksummed;
use crate::settlement::ServedNetwork;

/// The signers and their lanes.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Signers {
    signers: Vec<SignerView>,
}

/// One signer on one network.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct SignerView {
    /// Network in CAIP-2.
    network: String,
    /// Address that transactions are sent from.
    signer: String,
    /// Whether this process has its key.
    configured: bool,
    /// Wei at the newest block; absent when the chain does not answer, or the key is not configured here.
    #[serde(skip_serializing_if = "Option::is_none")]
    balance_wei: Option<String>,
    /// Payments that its balance pays for at the present gas price, at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    payments_left: Option<u64>,
    /// The account nonce at the newest block.
    #[serde(skip_serializing_if = "Option::is_none")]
    head_nonce: Option<u64>,
    /// The account nonce with the transactions in the node's pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pending_nonce: Option<u64>,
    /// The lowest nonce for which the ledger has no transaction.
    next_nonce: u64,
    /// Transactions whose outcome is open.
    transactions_in_flight: u64,
    /// Payments in these transactions.
    payments_in_flight: u64,
    /// Id of the process that owns the lane, while its lease runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
    /// Whether that is the answering process.
    owned_here: bool,
    /// When the lease ends unless it is renewed.
    lease_until: String,
    /// Increases by one with each new owner.
    epoch: i64,
    /// Why the lane signs nothing new until the operator runs `x402d signers resume`.
    #[serde(skip_serializing_if = "Option::is_none")]
    stopped_reason: Option<String>,
    /// Since when the operator has paused it.
    #[serde(skip_serializing_if = "Option::is_none")]
    paused_at: Option<String>,
    /// Whether a paused lane still sends what is queued.
    draining: bool,
}

/// Show the signers
///
/// Every signer that the ledger has ever seen: its balance, its nonces, the process that owns its lane, and whether the lane waits for the
/// operator. A pending nonce above the next one means that the key is used outside of this ledger.
#[utoipa::path(get, path = "/signers", operation_id = "signers", tag = "health", security(("operator" = [])), responses(
    (status = 200, description = "the signers", body = Signers),
    (status = 401, description = "not the operator", body = Problem, content_type = "application/problem+json"),
    (status = 503, description = "the ledger does not answer", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn signers(
    _: Operator,
    State(state): State<AppState>,
) -> Result<Json<Signers>, Problem> {
    let facilitator = &state.facilitator;
    let mut signers = Vec::new();
    for lane in facilitator.ledger.lanes().await? {
        let is_configured = facilitator.signers.iter().any(|(network, signers)| {
            *network == lane.lane.network && signers.contains(&lane.lane.signer)
        });
        let served = facilitator
            .served_networks
            .iter()
            .find(|served| served.policy.network == lane.lane.network)
            .filter(|_| is_configured);
        let owned_here = lane.owner == Some(facilitator.ledger.process());
        signers.push(view(lane, served.map(AsRef::as_ref), owned_here).await);
    }
    Ok(Json(Signers { signers }))
}

async fn view(lane: LaneView, served: Option<&ServedNetwork>, owned_here: bool) -> SignerView {
    let signer = lane.lane.signer;
    let chain = match served {
        Some(served) => tokio::try_join!(
            served.rpc.balance(signer),
            served.rpc.transaction_count(signer, "latest"),
            served.rpc.transaction_count(signer, "pending"),
        )
        .ok(),
        None => None,
    };
    SignerView {
        network: lane.lane.network.to_string(),
        signer: checksummed(signer),
        configured: served.is_some(),
        balance_wei: chain.map(|(balance, ..)| balance.to_string()),
        payments_left: chain
            .zip(served)
            .and_then(|((balance, ..), served)| served.payments_left(balance)),
        head_nonce: chain.map(|(_, head, _)| head),
        pending_nonce: chain.map(|(.., pending)| pending),
        next_nonce: lane.next_nonce,
        transactions_in_flight: lane.open,
        payments_in_flight: lane.payments,
        owner: lane.owner.map(|owner| owner.0.to_string()),
        owned_here,
        lease_until: lane.lease_until.format(&Rfc3339).unwrap_or_default(),
        epoch: lane.epoch,
        stopped_reason: lane.stopped_reason,
        paused_at: lane
            .pause
            .map(|pause| pause.at.format(&Rfc3339).unwrap_or_default()),
        draining: lane.pause.is_some_and(|pause| pause.draining),
    }
}
