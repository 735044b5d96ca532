//! Payments as the history shows them.

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use utoipa::ToSchema;

use crate::http::AppState;
use crate::ledger::{AttemptDetail, Entry, EntryDetail, Event};
use crate::protocol::session::Rail;
use crate::protocol::{Network, Scheme};
use crate::settlement::ServedNetwork;

/// The currency of every EVM chain has units of 10^-18.
const NATIVE_DECIMALS: u8 = 18;

/// A payment as the history shows it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(in crate::http) struct PaymentView {
    /// The ledger's id, as in `extra.paymentId` of `/settle` answers.
    pub(super) id: String,
    /// The x402 version in which it was presented first.
    x402_version: u8,
    /// `authorization`: the facilitator sends it; `transfer`: the payer sent it.
    pub(super) rail: String,
    /// `exact`, or `upto` where the seller charges a part of `permitted`.
    pub(super) scheme: &'static str,
    /// The payment method: `eip3009`, `permit2`, or `transfer` for one that the payer sent.
    pub(super) method: &'static str,
    /// Network in CAIP-2.
    pub(super) network: String,
    /// Address of the token.
    pub(super) asset: String,
    /// Address of the payer.
    pub(super) payer: String,
    /// Address of the payee.
    pub(super) payee: String,
    /// In atomic units.
    pub(super) amount: String,
    /// The most that the payer permitted, in atomic units; with `permit2`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) permitted: Option<String>,
    /// How many decimals the token has; absent for a token that is not configured any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) decimals: Option<u8>,
    /// Its state in the ledger.
    pub(super) state: String,
    /// The stable code of a refusal or failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<String>,
    /// The reason in a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    /// Hash of its transaction, once there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) transaction: Option<String>,
    /// Page of that transaction, on networks whose explorer is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    explorer_url: Option<String>,
    /// Position of the Transfer log in its block.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) log_index: Option<u64>,
    /// Height of its block.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) block_number: Option<u64>,
    /// Time of its block, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) block_time: Option<String>,
    /// Confirmations of its block now, 1 = the newest; absent while this process does not know the chain's head.
    #[serde(skip_serializing_if = "Option::is_none")]
    confirmations: Option<u64>,
    /// The confirmations that were required when it was accepted.
    confirmations_required: u32,
    /// The bought resource, as the buyer or seller named it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) resource: Option<String>,
    /// The session that it pays.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) session: Option<String>,
    /// The buyer's own name for the purchase.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) client_reference: Option<String>,
    /// Whose `/settle` accepted it: the id of a key, `operator` or `anonymous`; absent before the first `/settle`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) caller: Option<String>,
    /// Why the money does not count although it was transferred, if that is so: the payment was never granted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) unmatched: Option<String>,
    /// Why it is quarantined, if it is: the operator has to look at it.
    #[serde(skip_serializing_if = "Option::is_none")]
    quarantine: Option<String>,
    /// The payer's nonce in the authorization.
    nonce: String,
    /// When it was accepted, RFC 3339.
    pub(super) created_at: String,
    /// When it last changed, RFC 3339.
    pub(super) updated_at: String,
}

/// A payment and its history.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct PaymentDetail {
    /// The payment.
    #[serde(flatten)]
    payment: PaymentView,
    /// Its timeline, oldest first.
    events: Vec<EventView>,
    /// Every signed transaction that was to transfer its money, oldest first.
    attempts: Vec<AttemptView>,
    /// The cost of its transactions so far; absent before one is mined, and where the payer pays for gas.
    #[serde(skip_serializing_if = "Option::is_none")]
    gas: Option<GasView>,
}

/// One entry of a timeline.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(in crate::http) struct EventView {
    /// Time of the entry, RFC 3339.
    at: String,
    /// `state`, `granted`, `answered`, `voided`, `quarantined` or `reorged`.
    kind: String,
    /// State before.
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    /// State after.
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<String>,
    /// Code, request id or explanation.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// The transaction at that time.
    #[serde(skip_serializing_if = "Option::is_none")]
    transaction: Option<String>,
}

/// A signed transaction.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(in crate::http) struct AttemptView {
    /// Its hash.
    transaction: String,
    /// Address that signed it and pays for its gas.
    signer: String,
    /// The signer's account nonce.
    nonce: u64,
    /// When it was recorded, RFC 3339: before it was sent.
    written_at: String,
    /// The gas limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    gas_limit: Option<u64>,
    /// The highest price in wei per gas.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_fee_wei: Option<String>,
    /// The highest tip for the block's producer, in wei per gas.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_priority_fee_wei: Option<String>,
    /// The last reply of the endpoints to its broadcast: `accepted`, `rejected`, or `unknown`, which is no failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    broadcast: Option<String>,
    /// Why it was rejected.
    #[serde(skip_serializing_if = "Option::is_none")]
    broadcast_reason: Option<String>,
    /// Since when that is their reply, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    broadcast_at: Option<String>,
    /// Its result and cost, if it is in a block.
    #[serde(skip_serializing_if = "Option::is_none")]
    mined: Option<MinedView>,
}

/// A transaction of this ledger in a block.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(in crate::http) struct MinedView {
    /// Height of the block.
    block_number: u64,
    /// Status of the receipt.
    succeeded: bool,
    /// Its result for this payment: `transferred`, `elsewhere` or `without_effect`; absent while undecided.
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<String>,
    /// Gas used by the whole transaction.
    gas_used: u64,
    /// Effective wei per gas.
    gas_price_wei: String,
    /// Cost of the whole transaction, with the data fee of a rollup; where the chain charges the gas limit, for all of that.
    fee_wei: String,
    /// Number of payments in it, which share the cost.
    payments: u64,
}

/// Gas in the chain's own currency.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(in crate::http) struct GasView {
    /// Gas used by all mined transactions of the payment.
    used: u64,
    /// Their cost together, with the data fees of rollups.
    fee_wei: String,
    /// Decimals of the chain's own currency.
    decimals: u8,
    /// Its symbol, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    symbol: Option<&'static str>,
}

impl PaymentView {
    pub(super) fn new(entry: Entry, state: &AppState) -> Self {
        let network: Option<Network> = entry.network.parse().ok();
        let served = network.and_then(|network| served_network(state, network));
        let head = served.and_then(|served| served.view.head());
        let transaction = entry.transaction;
        let session = entry.session;
        let scheme = match &entry.permitted {
            Some(_) if entry.names_its_signer => Scheme::Upto,
            Some(_) | None => Scheme::Exact,
        };
        Self {
            id: entry.id.to_string(),
            x402_version: entry.x402_version,
            scheme: scheme.name(),
            method: match &entry.permitted {
                _ if entry.rail == Rail::Transfer.name() => "transfer",
                None => "eip3009",
                Some(_) => "permit2",
            },
            rail: entry.rail,
            network: entry.network,
            decimals: served
                .and_then(|served| served.policy.asset(entry.asset.parse().ok()?))
                .map(|asset| asset.decimals),
            asset: entry.asset,
            payer: entry.payer,
            payee: entry.payee,
            amount: entry.amount,
            permitted: entry.permitted,
            caller: entry.caller,
            state: entry.state,
            reason: entry.reason,
            message: entry.message,
            transaction: transaction.map(|hash| hash.to_string()),
            explorer_url: network
                .zip(transaction)
                .and_then(|(network, hash)| network.explorer_url(hash)),
            log_index: entry.log_index,
            block_number: entry.block_number,
            block_time: entry.block_time.map(rfc3339),
            // A head below the block is older than the ledger's knowledge.
            confirmations: entry.block_number.zip(head).and_then(|(block, head)| {
                let above = head.number.checked_sub(block)?;
                above.checked_add(1)
            }),
            confirmations_required: entry.confirmations,
            resource: entry.resource,
            session: session.as_ref().map(|session| session.id.clone()),
            client_reference: session.and_then(|session| session.client_reference),
            unmatched: entry.unmatched,
            quarantine: entry.quarantine,
            nonce: entry.nonce,
            created_at: rfc3339(entry.created_at),
            updated_at: rfc3339(entry.updated_at),
        }
    }
}

impl PaymentDetail {
    pub(super) fn new(detail: EntryDetail, state: &AppState) -> Self {
        let gas = gas(&detail);
        Self {
            payment: PaymentView::new(detail.entry, state),
            events: detail.events.into_iter().map(EventView::from).collect(),
            attempts: detail.attempts.into_iter().map(AttemptView::from).collect(),
            gas,
        }
    }
}

fn gas(detail: &EntryDetail) -> Option<GasView> {
    let network: Option<Network> = detail.entry.network.parse().ok();
    let mined: Vec<_> = detail
        .attempts
        .iter()
        .filter_map(|attempt| attempt.mined.as_ref())
        .collect();
    let fees = mined
        .iter()
        .map(|mined| mined.fee_wei.parse::<u128>().unwrap_or_default());
    (!mined.is_empty()).then(|| GasView {
        used: mined.iter().map(|mined| mined.gas_used).sum(),
        fee_wei: fees.sum::<u128>().to_string(),
        decimals: NATIVE_DECIMALS,
        symbol: network.and_then(Network::native_symbol),
    })
}

impl From<Event> for EventView {
    fn from(event: Event) -> Self {
        Self {
            at: rfc3339(event.at),
            kind: event.kind,
            from: event.from_state,
            to: event.to_state,
            reason: event.reason,
            transaction: event.transaction.map(|hash| hash.to_string()),
        }
    }
}

impl From<AttemptDetail> for AttemptView {
    fn from(attempt: AttemptDetail) -> Self {
        Self {
            transaction: attempt.hash,
            signer: attempt.signer,
            nonce: attempt.nonce,
            written_at: rfc3339(attempt.written_at),
            gas_limit: attempt.gas_limit,
            max_fee_wei: attempt.max_fee_wei,
            max_priority_fee_wei: attempt.max_priority_fee_wei,
            broadcast: attempt.broadcast,
            broadcast_reason: attempt.broadcast_reason,
            broadcast_at: attempt.broadcast_at.map(rfc3339),
            mined: attempt.mined.map(|mined| MinedView {
                block_number: mined.block_number,
                succeeded: mined.succeeded,
                outcome: mined.outcome,
                gas_used: mined.gas_used,
                gas_price_wei: mined.gas_price_wei,
                fee_wei: mined.fee_wei,
                payments: mined.payments,
            }),
        }
    }
}

/// The configured network, if it still is configured.
pub(super) fn served_network(state: &AppState, network: Network) -> Option<&ServedNetwork> {
    let mut served_networks = state.facilitator.served_networks.iter();
    served_networks
        .find(|served| served.policy.network == network)
        .map(AsRef::as_ref)
}

fn rfc3339(moment: OffsetDateTime) -> String {
    moment.format(&Rfc3339).unwrap_or_default()
}
