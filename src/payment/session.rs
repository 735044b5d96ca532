//! A session as stored in the ledger, and the checks of a payment against it.

use alloy::primitives::{Address, B256, Bytes, U256};
use time::OffsetDateTime;

use crate::payment::{PaymentId, PaymentState, signature};
use crate::protocol::session::{Rail, SessionId, claim_digest, transfer_tag};
use crate::protocol::{
    Amount, Authorization, Network, PaymentRequirements, PlainText, Reason, Rejection, X402Version,
};

/// A payment session: terms fixed before any money moves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    pub id: SessionId,
    /// The protocol version of the accepted entry.
    pub version: X402Version,
    pub rail: Rail,
    pub network: Network,
    /// The token contract.
    pub asset: Address,
    pub payer: Address,
    pub payee: Address,
    /// The price in atomic units.
    pub amount: Amount,
    /// The accepted entry as canonical JSON.
    pub accepted: String,
    /// Keccak-256 of `accepted`.
    pub requirements_hash: B256,
    /// The nonce of the authorization, or the tag of the transfer.
    pub nonce: B256,
    /// The seller's route: `extra.resourceId` of the entry, if there is one.
    pub resource_id: Option<PlainText>,
    /// The resource that the buyer named. No check depends on it.
    pub resource: Option<PlainText>,
    /// The buyer's own reference for the purchase.
    pub client_reference: Option<PlainText>,
    /// The first block in which a transfer counts as payment.
    pub accept_from_block: u64,
    /// The confirmations that the payment needs to be settled.
    pub confirmations: u32,
    /// The latest block time at which a payment counts.
    pub expires_at: OffsetDateTime,
    /// The part of the state that the payment does not show.
    pub status: SessionStatus,
    /// The session's payment, once one was submitted.
    pub payment: Option<PaymentId>,
    /// Success is told only to a request with the session's id: the authorization was submitted or presented with it, and is public by now.
    pub needs_id: bool,
    pub created_at: OffsetDateTime,
}

/// The stored state of a session. The rest of the state follows from its payment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionStatus {
    /// The session can be paid.
    Open,
    /// The buyer cancelled: nothing is broadcast before the seller settles.
    Cancelled,
    /// The block time passed `expires_at`, and no transfer was mined in time.
    Expired,
}

impl SessionStatus {
    /// The name in the ledger.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }
}

/// A transaction that should pay a session; the fields are read from the signed transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transfer {
    /// The transaction hash.
    pub hash: B256,
    /// The EIP-155 chain id in the signature.
    pub chain_id: Option<u64>,
    /// The sender, recovered from the signature.
    pub from: Address,
    /// The sender's account nonce.
    pub account_nonce: u64,
    /// The called contract; `None` for a contract creation.
    pub to: Option<Address>,
    /// Native currency transferred, in wei.
    pub value: U256,
    /// The calldata.
    pub input: Bytes,
}

impl Session {
    /// Checks that the seller's requirements equal the session's terms. Members of `extra` are not compared, except the route.
    ///
    /// # Errors
    /// [`Reason::SessionRequirementsMismatch`] with the first difference.
    pub fn check_requirements(&self, required: &PaymentRequirements) -> Result<(), Rejection> {
        let difference = |field: &str,
                          opened: &dyn std::fmt::Display,
                          asked: &dyn std::fmt::Display| {
            let why = format!(
                "the session was opened for the {field} {opened}, the seller asks for {asked}; the session stays usable"
            );
            Err(Rejection::new(Reason::SessionRequirementsMismatch, why))
        };
        if required.network != self.network {
            return difference("network", &self.network, &required.network);
        }
        if required.asset != self.asset {
            return difference("asset", &self.asset, &required.asset);
        }
        if required.pay_to != self.payee {
            return difference("payee", &self.payee, &required.pay_to);
        }
        if required.amount != self.amount {
            return difference("amount", &self.amount, &required.amount);
        }
        if let Some(route) = &self.resource_id
            && required.extra_text("resourceId") != Some(&**route)
        {
            let asked = required.extra_text("resourceId").unwrap_or("none");
            return difference(
                "resourceId",
                &&**route,
                &asked.chars().take(200).collect::<String>(),
            );
        }
        Ok(())
    }

    /// Checks the session's id in a presentation of its authorization. Without it, nonce and signature may have been read on the chain.
    ///
    /// # Errors
    /// [`Reason::SessionIdRequired`] when it is missing although it is needed, or is another session's.
    pub fn check_presented_id(
        &self,
        presented: Option<&SessionId>,
        payment: Option<&PaymentState>,
    ) -> Result<(), Rejection> {
        let found = match presented {
            Some(id) if *id == self.id => return Ok(()),
            None if !self.needs_id => return Ok(()),
            Some(_) => "the id of another session",
            None => "none",
        };
        let moved = match payment.and_then(PaymentState::location) {
            Some(location) => format!("The money moved in transaction {}", location.transaction),
            None => "The money may still move".to_owned(),
        };
        let why = format!(
            "expected in payload.sessionId, beside authorization and signature, the id of the session that this authorization was submitted for; got {found}. {moved}; present the same authorization with the id"
        );
        Err(Rejection::new(Reason::SessionIdRequired, why))
    }

    /// Checks that an authorization has the session's payer, nonce and expiry.
    ///
    /// # Errors
    /// [`Reason::SessionTransferMismatch`] with the expected value.
    pub fn check_authorization(&self, signed: &Authorization) -> Result<(), Rejection> {
        let end = U256::from(self.expires_at.unix_timestamp().max(0).unsigned_abs());
        let expected = if self.rail != Rail::Authorization {
            "a transaction, because the session was opened on rail transfer".to_owned()
        } else if signed.from != self.payer {
            format!("the payer {}", self.payer)
        } else if signed.nonce != self.nonce {
            format!("the nonce {}", self.nonce)
        } else if signed.valid_before.atomic() > end {
            format!("validBefore of at most {end}, when the session ends")
        } else {
            return Ok(());
        };
        Err(Rejection::new(
            Reason::SessionTransferMismatch,
            format!("expected {expected}"),
        ))
    }

    /// Checks that a transaction is a direct token transfer with the session's terms. Returns whether it carries the session's tag;
    /// if so, no claim is needed, because the sender has signed the tag.
    ///
    /// # Errors
    /// [`Reason::SessionTransferMismatch`] with the expected value.
    pub fn check_transfer(&self, transfer: &Transfer) -> Result<bool, Rejection> {
        let tag = transfer_tag(&transfer.input, self.payee, self.amount);
        let expected = if self.rail != Rail::Transfer {
            "an authorization, because the session was opened on rail authorization".to_owned()
        } else if transfer.chain_id != Some(self.network.chain_id()) {
            format!("a transaction for chain {}", self.network.chain_id())
        } else if transfer.from != self.payer {
            format!(
                "a transaction sent by {}, got one of {}",
                self.payer, transfer.from
            )
        } else if transfer.to != Some(self.asset) {
            format!("a direct call of the token {}", self.asset)
        } else if !transfer.value.is_zero() {
            "a transaction that transfers no native currency".to_owned()
        } else if let Ok(tag) = tag {
            return Ok(tag == Some(self.nonce));
        } else {
            format!(
                "transfer({}, {}) with at most a 32-byte tag after it",
                self.payee, self.amount
            )
        };
        Err(Rejection::new(
            Reason::SessionTransferMismatch,
            format!("expected {expected}"),
        ))
    }

    /// The EIP-712 digest that the payer signs to claim a transaction for this session.
    pub fn claim_digest(&self, transaction: B256) -> B256 {
        claim_digest(&self.id, self.requirements_hash, transaction, self.network)
    }

    /// Checks that the payer signed `claim`. The payer of a transfer is always an account with a key, so the chain is not needed.
    ///
    /// # Errors
    /// [`Reason::SessionClaimInvalid`] with the expected form.
    pub fn check_claim(&self, transaction: B256, claim: &[u8]) -> Result<(), Rejection> {
        let digest = self.claim_digest(transaction);
        let signer = signature::normalised(claim)
            .and_then(|normal| signature::recover_signer(&normal, digest));
        if signer == Some(self.payer) {
            return Ok(());
        }
        let why = format!(
            "expected {}'s EIP-712 signature over SessionClaim(session, requirementsHash, transaction) in the domain \"x402d session\", version 1, chain {}",
            self.payer,
            self.network.chain_id()
        );
        Err(Rejection::new(Reason::SessionClaimInvalid, why))
    }
}

#[cfg(test)]
mod tests;
