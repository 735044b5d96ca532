//! An accepted payment, as stored in the ledger.

use std::fmt;

use alloy::primitives::{Address, B256, Bytes};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::payment::method::Fault;
use crate::payment::{Method, PaymentState, Signed, Wallet, Who};
use crate::protocol::session::Rail;
use crate::protocol::{Authorization, Network, Reason, X402Version};

/// The ledger's id of a payment: unique, assigned at acceptance, ordered by time of acceptance (UUID v7).
///
/// Other facilitators call the transaction hash *payment id*. Here several payments can share one transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PaymentId(pub Uuid);

impl fmt::Display for PaymentId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// An accepted payment.
#[derive(Clone, PartialEq, Eq)]
pub struct Payment {
    pub id: PaymentId,
    /// The protocol version of the first request.
    pub version: X402Version,
    pub rail: Rail,
    pub network: Network,
    /// The token contract.
    pub asset: Address,
    /// The signed payer, payee, validity window and nonce, and the amount to transfer. On rail `transfer`: the terms of the session.
    pub authorization: Authorization,
    /// The transfer method. Without meaning on rail `transfer`.
    pub method: Method,
    /// The signed EIP-712 digest.
    pub digest: B256,
    /// The signature without ERC-6492 wrapper.
    pub signature: Bytes,
    /// The deployment of the payer's wallet, if it had no code at acceptance.
    pub wallet: Option<Wallet>,
    /// The URL of the resource, if the request named one.
    pub resource: Option<String>,
    pub state: PaymentState,
    /// Whose `/settle` accepted it; `None`: nobody's so far.
    pub caller: Option<Who>,
    /// The confirmations that the payment needs to be settled, fixed at acceptance.
    pub confirmations: u32,
    /// Why the payment is quarantined for the operator, if it is.
    pub quarantine: Option<String>,
    /// Why the transfer does not pay for anything, such as a transfer after the session's expiry. Such a payment is never granted.
    pub unmatched: Option<String>,
    pub created_at: OffsetDateTime,
    /// When the row last changed.
    pub updated_at: OffsetDateTime,
}

impl Payment {
    /// The signed terms with everything needed to settle them.
    pub const fn signed(&self) -> Signed<'_> {
        Signed {
            asset: self.asset,
            terms: &self.authorization,
            method: &self.method,
            digest: self.digest,
            signature: &self.signature,
            wallet: self.wallet.as_ref(),
            signed_by: None,
        }
    }

    /// Whether another caller than `who` has had the payment accepted.
    pub fn belongs_to_another(&self, who: Who) -> bool {
        self.caller.is_some_and(|owner| owner != who)
    }

    /// The reason code for a fault of this payment.
    pub const fn reason(&self, fault: Fault) -> Reason {
        self.method.reason(self.version, fault)
    }

    /// The only signer that may settle this payment; `None` if any may.
    pub const fn signer(&self) -> Option<Address> {
        self.method.facilitator()
    }
}

impl fmt::Debug for Payment {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Payment")
            .field("id", &self.id)
            .field("network", &self.network)
            .field("authorization", &self.authorization)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}
