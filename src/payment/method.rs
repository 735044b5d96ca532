//! The two transfer methods: EIP-3009 of the token itself, or Permit2 through the proxy of a scheme.
//!
//! Their differences are here and in `chain`; all other code treats payments alike.

use alloy::primitives::{Address, Bytes};

use crate::payment::UnixSeconds;
use crate::protocol::permit2::{PERMIT2, proxy_of};
use crate::protocol::{Amount, Reason, Rejection, Scheme, X402Version};

/// The transfer method of a payment, with the data that its contract needs besides the terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Method {
    /// EIP-3009: a call of the token contract.
    Eip3009,
    /// Permit2: a call of the scheme's proxy.
    Permit2(Permit2),
}

/// The data of a Permit2 payment besides the terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permit2 {
    /// The maximum amount that the payer signed. The terms hold the amount to transfer.
    pub permitted: Amount,
    /// The only account that may settle. `Some` in scheme `upto`, `None` in `exact`.
    pub facilitator: Option<Address>,
    /// The signed allowance to Permit2 that the facilitator submits, if there is one.
    pub sponsored: Option<Sponsored>,
}

/// A signed allowance to Permit2, whose gas the facilitator pays.
#[derive(Clone, PartialEq, Eq)]
pub enum Sponsored {
    /// An EIP-2612 permit, submitted together with the payment.
    Permit {
        /// The permit must be mined by then.
        deadline: UnixSeconds,
        /// Signed for exactly the permitted amount; `v` is 27 or 28.
        signature: [u8; 65],
    },
    /// A signed `approve` transaction, submitted before the payment.
    Approval(Bytes),
}

/// The kinds of faults of a payment. Each method and scheme has its own code for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The accepted and the required scheme differ.
    Scheme,
    /// The accepted and the required network differ.
    Network,
    /// The signature is not the payer's.
    Signature,
    /// The authorization pays another payee.
    Payee,
    /// The authorization has expired, or expires too soon or too late.
    ValidBefore,
    /// The authorization is not valid yet.
    ValidAfter,
    /// The authorized amount is not the required one.
    Amount,
    /// The nonce is used, or belongs to another payment.
    NonceUsed,
    /// The payer's balance is too low.
    Balance,
    /// The simulation failed for an unrecognised reason.
    Simulation,
    /// The transaction was mined without effect.
    Transaction,
    /// The transaction was mined without exactly this transfer.
    Transfer,
}

impl Method {
    /// The scheme of the payment.
    pub const fn scheme(&self) -> Scheme {
        match self {
            Self::Permit2(Permit2 {
                facilitator: Some(_),
                ..
            }) => Scheme::Upto,
            Self::Eip3009 | Self::Permit2(_) => Scheme::Exact,
        }
    }

    /// The contract that records used nonces.
    pub const fn nonce_domain(&self, asset: Address) -> Address {
        match self {
            Self::Eip3009 => asset,
            Self::Permit2(_) => PERMIT2,
        }
    }

    /// The contract that is called to settle.
    pub const fn settler(&self, asset: Address) -> Address {
        match self {
            Self::Eip3009 => asset,
            Self::Permit2(_) => proxy_of(self.scheme()),
        }
    }

    /// The only account that may settle; `None` if any account may.
    pub const fn settling_signer(&self) -> Option<Address> {
        match self {
            Self::Eip3009 => None,
            Self::Permit2(permit) => permit.facilitator,
        }
    }

    pub const fn permit2(&self) -> Option<&Permit2> {
        match self {
            Self::Eip3009 => None,
            Self::Permit2(permit) => Some(permit),
        }
    }

    /// The signed allowance to Permit2 that the facilitator submits, if there is one.
    pub fn sponsored(&self) -> Option<&Sponsored> {
        self.permit2()?.sponsored.as_ref()
    }

    /// The reason code for a fault. v1 has its own code for a wrong amount.
    pub const fn reason(&self, version: X402Version, fault: Fault) -> Reason {
        match (self, fault) {
            (Self::Eip3009, Fault::Amount) => match version {
                X402Version::V1 => Reason::ExactValueV1,
                X402Version::V2 => Reason::ExactValueMismatch,
            },
            (Self::Eip3009, Fault::Signature) => Reason::ExactSignature,
            (Self::Eip3009, Fault::Payee) => Reason::ExactRecipientMismatch,
            (Self::Eip3009, Fault::ValidBefore) => Reason::ExactValidBefore,
            (Self::Eip3009, Fault::ValidAfter) => Reason::ExactValidAfter,
            (Self::Eip3009, Fault::NonceUsed) => Reason::ExactNonceUsed,
            (Self::Eip3009, Fault::Balance) => Reason::ExactInsufficientBalance,
            (Self::Eip3009, Fault::Simulation) => Reason::ExactSimulationFailed,
            (Self::Permit2(_), Fault::Amount) => Reason::Permit2AmountMismatch,
            (Self::Permit2(_), Fault::Signature) => Reason::Permit2Signature,
            (Self::Permit2(_), Fault::Payee) => Reason::Permit2RecipientMismatch,
            (Self::Permit2(_), Fault::ValidBefore) => Reason::Permit2DeadlineExpired,
            (Self::Permit2(_), Fault::ValidAfter) => Reason::Permit2NotYetValid,
            (Self::Permit2(_), Fault::NonceUsed) => Reason::Permit2InvalidNonce,
            (Self::Permit2(_), Fault::Balance) => Reason::Permit2InsufficientBalance,
            (Self::Permit2(_), Fault::Simulation) => Reason::Permit2SimulationFailed,
            (_, Fault::Transfer) => Reason::ExactTransferMismatch,
            (_, Fault::Scheme | Fault::Network | Fault::Transaction) => {
                scheme_reason(self.scheme(), fault)
            }
        }
    }

    /// A rejection with the code for a fault.
    pub fn rejection(
        &self,
        version: X402Version,
        fault: Fault,
        message: impl Into<String>,
    ) -> Rejection {
        Rejection::new(self.reason(version, fault), message)
    }
}

const fn scheme_reason(scheme: Scheme, fault: Fault) -> Reason {
    match (scheme, fault) {
        (Scheme::Exact, Fault::Scheme) => Reason::ExactScheme,
        (Scheme::Exact, Fault::Network) => Reason::ExactNetworkMismatch,
        (Scheme::Exact, _) => Reason::ExactTransactionFailed,
        (Scheme::Upto, Fault::Scheme) => Reason::UptoScheme,
        (Scheme::Upto, Fault::Network) => Reason::UptoNetworkMismatch,
        (Scheme::Upto, _) => Reason::UptoTransactionFailed,
    }
}

impl std::fmt::Debug for Sponsored {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Bearer value: anyone who holds these bytes can submit them, so they must not reach a log.
        formatter.write_str(match self {
            Self::Permit { .. } => "Permit",
            Self::Approval(_) => "Approval",
        })
    }
}
