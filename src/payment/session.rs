//! A session as the ledger keeps it, and what may pay it.

use alloy::primitives::{Address, B256, Bytes, U256};
use time::OffsetDateTime;

use crate::payment::{PaymentId, signature};
use crate::protocol::session::{Rail, SessionId, claim_digest, transfer_tag};
use crate::protocol::{
    Amount, Authorization, Network, PaymentRequirements, PlainText, Reason, X402Version,
};

/// One negotiation: terms that were fixed before any money moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Its name.
    pub id: SessionId,
    /// The dialect of the accepted entry.
    pub version: X402Version,
    /// How the money moves.
    pub rail: Rail,
    /// Where.
    pub network: Network,
    /// Which token.
    pub asset: Address,
    /// Whose money.
    pub payer: Address,
    /// Who is paid.
    pub payee: Address,
    /// How much, in atomic units.
    pub amount: Amount,
    /// The accepted entry as canonical JSON.
    pub accepted: String,
    /// Its keccak-256.
    pub requirements_hash: B256,
    /// Nonce of the authorization, tag of the transfer.
    pub nonce: B256,
    /// The seller's route, when the entry names one.
    pub resource_id: Option<PlainText>,
    /// What is bought, as the buyer said.
    pub resource: Option<PlainText>,
    /// The buyer's own name for the purchase.
    pub client_reference: Option<PlainText>,
    /// A transfer counts from this block on.
    pub accept_from_block: u64,
    /// Depth that was promised.
    pub confirmations: u32,
    /// Money that moves later does not count.
    pub expires_at: OffsetDateTime,
    /// What is not to be seen from its payment.
    pub standing: SessionStanding,
    /// Its payment, once there is one.
    pub payment: Option<PaymentId>,
    /// When it was opened.
    pub created_at: OffsetDateTime,
}

/// What a session itself remembers; everything else follows from its payment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionStanding {
    /// May be paid.
    Open,
    /// Whoever opened it wants no early broadcast any more.
    Cancelled,
    /// The chain's time has passed its end, and nothing had moved.
    Expired,
}

impl SessionStanding {
    /// The name in the ledger.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }
}

/// A transaction that shall pay a session, as far as it says so itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transfer {
    /// Its hash.
    pub hash: B256,
    /// The chain that it is signed for.
    pub chain_id: Option<u64>,
    /// Whose account sends it.
    pub from: Address,
    /// Its account nonce.
    pub account_nonce: u64,
    /// What it calls; `None` creates a contract.
    pub to: Option<Address>,
    /// Native currency that it moves.
    pub value: U256,
    /// Calldata.
    pub input: Bytes,
}

/// Why something does not pay a session.
pub type Objection = (Reason, String);

impl Session {
    /// Whether a seller asks for what the session was opened for, by value: what sellers add to `extra` meanwhile does not matter,
    /// except for the route.
    ///
    /// # Errors
    /// [`Reason::SessionRequirementsMismatch`] with the first difference.
    pub fn is_asked_for(&self, required: &PaymentRequirements) -> Result<(), Objection> {
        let difference = |what: &str,
                          opened: &dyn std::fmt::Display,
                          asked: &dyn std::fmt::Display| {
            let why = format!(
                "the session was opened for the {what} {opened}, the seller asks for {asked}; the session stays usable"
            );
            Err((Reason::SessionRequirementsMismatch, why))
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

    /// Whether an authorization is the one that this session asks for.
    ///
    /// # Errors
    /// [`Reason::SessionTransferMismatch`] with what was expected.
    pub fn is_paid_by_authorization(&self, signed: &Authorization) -> Result<(), Objection> {
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
        Err((
            Reason::SessionTransferMismatch,
            format!("expected {expected}"),
        ))
    }

    /// Whether a transaction is a plain transfer that pays exactly this session. Returns whether it carries the session's tag, by
    /// which its sender has said so.
    ///
    /// # Errors
    /// [`Reason::SessionTransferMismatch`] with what was expected.
    pub fn is_paid_by(&self, transfer: &Transfer) -> Result<bool, Objection> {
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
            "a transaction that moves no native currency".to_owned()
        } else if let Ok(tag) = tag {
            return Ok(tag == Some(self.nonce));
        } else {
            format!(
                "transfer({}, {}) with at most a 32-byte tag behind it",
                self.payee, self.amount
            )
        };
        Err((
            Reason::SessionTransferMismatch,
            format!("expected {expected}"),
        ))
    }

    /// What the payer signs to claim a transaction for this session.
    pub fn claim_digest(&self, transaction: B256) -> B256 {
        claim_digest(&self.id, self.requirements_hash, transaction, self.network)
    }

    /// Whether `claim` is the payer's. The payer of a transfer is an account with a key, so that nobody needs to be asked.
    ///
    /// # Errors
    /// [`Reason::SessionClaimInvalid`] with what was expected.
    pub fn is_claimed(&self, transaction: B256, claim: &[u8]) -> Result<(), Objection> {
        let digest = self.claim_digest(transaction);
        let signer =
            signature::normalised(claim).and_then(|normal| signature::signer(&normal, digest));
        if signer == Some(self.payer) {
            return Ok(());
        }
        let why = format!(
            "expected {}'s EIP-712 signature over SessionClaim(session, requirementsHash, transaction) in the domain \"x402d session\", version 1, chain {}",
            self.payer,
            self.network.chain_id()
        );
        Err((Reason::SessionClaimInvalid, why))
    }
}

#[cfg(test)]
mod tests;
