//! An accepted payment, as the ledger keeps it.

use std::fmt;

use alloy::primitives::{Address, B256, Bytes};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::payment::method::Fault;
use crate::payment::{Method, PaymentState, Signed, Wallet};
use crate::protocol::session::Rail;
use crate::protocol::{Authorization, Network, Reason, X402Version};

/// The ledger's id of a payment: unique, known from the first insert, ordered by time of acceptance (UUID v7).
///
/// Not the *payment id* of the field, which is the transaction hash: several payments can share one transaction.
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
    /// The ledger's id.
    pub id: PaymentId,
    /// The dialect in which it was presented first.
    pub version: X402Version,
    /// How its money moves.
    pub rail: Rail,
    /// Where it moves money.
    pub network: Network,
    /// Which token.
    pub asset: Address,
    /// Payer, payee, window and nonce as the payer signed them, and the amount that is to be moved. Of a transfer: what its session asks for.
    pub authorization: Authorization,
    /// By which contract the money moves; of no meaning for a transfer.
    pub method: Method,
    /// The 32 signed bytes.
    pub digest: B256,
    /// The signature without wrapper.
    pub signature: Bytes,
    /// How to deploy the payer's wallet, if it has none yet.
    pub wallet: Option<Wallet>,
    /// What was bought, as somebody said.
    pub resource: Option<String>,
    /// How far it got.
    pub state: PaymentState,
    /// Depth that was promised at acceptance.
    pub confirmations: u32,
    /// Why it was set aside for the operator, if it was.
    pub quarantine: Option<String>,
    /// Why its money does not count although it moved, if that is so: it is never granted.
    pub unmatched: Option<String>,
    /// When it was accepted.
    pub created_at: OffsetDateTime,
    /// When it last changed.
    pub updated_at: OffsetDateTime,
}

impl Payment {
    /// What the payer signed, with all that settles it.
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

    /// The code for a fault of it.
    pub const fn reason(&self, fault: Fault) -> Reason {
        self.method.reason(self.version, fault)
    }

    /// The only signer that may settle it; `None`: any.
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
