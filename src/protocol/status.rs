//! The response of `POST /status`: what became of a payment. An addition of x402d to the three standard calls.

use serde::{Deserialize, Serialize};

use crate::protocol::Amount;

/// What the ledger knows of a payment. Paying in another way is safe when `moneyMoved` and `moneyMayMove` are both false, unless the payment
/// was presented to another facilitator too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts, not states"
)]
pub struct StatusResponse {
    /// Whether the ledger has the payment. If not, no transaction of this facilitator carries it.
    pub known: bool,
    /// The ledger's id of the payment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payment_id: Option<String>,
    /// `queued`, `inflight`, `mined`, `settled`, `final`, `late_settled`, `refused` or `failed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// The stable code, when the payment was refused or has failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The message for people that belongs to `reason`, or why the payment waits for the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The hash of the transaction that has moved the money or is meant to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transaction: Option<String>,
    /// The block with the transfer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_number: Option<u64>,
    /// The blocks from that one to the newest, both counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmations: Option<u64>,
    /// The confirmations that the payment needs to be settled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmations_required: Option<u32>,
    /// The amount to transfer, in atomic units; in scheme `upto` the charge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schema(value_type = Option<String>))]
    pub amount: Option<Amount>,
    /// Whether the money is transferred, in a block that is in the chain as far as the ledger knows.
    pub money_moved: bool,
    /// Whether the money may still move: by this facilitator, or by a transaction of the payer that it was shown.
    pub money_may_move: bool,
    /// Whether a request was told success, so that the payment has bought its resource.
    pub success_told: bool,
    /// The id of that request: its `X-Request-Id`, or the one in the header of its response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub granted_to: Option<String>,
    /// What to do next, for people.
    pub next: String,
}
