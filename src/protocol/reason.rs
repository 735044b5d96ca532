//! The stable codes by which a payment is refused (`protocol.md` §2.7).

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $code:literal,)+) => {
        /// Why a payment was refused or failed: the closed list of codes that this facilitator utters.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Reason {
            /// Every code, for documentation and tests.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The code on the wire and in the ledger.
            pub const fn code(self) -> &'static str {
                match self {
                    $(Self::$variant => $code,)+
                }
            }
        }

        impl FromStr for Reason {
            type Err = UnknownReason;

            fn from_str(code: &str) -> Result<Self, Self::Err> {
                match code {
                    $($code => Ok(Self::$variant),)+
                    _ => Err(UnknownReason),
                }
            }
        }
    };
}

reasons! {
    /// The version is neither 1 nor 2.
    InvalidX402Version = "invalid_x402_version",
    /// The payment payload has the wrong shape.
    InvalidPayload = "invalid_payload",
    /// The payment requirements have the wrong shape, or ask for something that cannot be paid.
    InvalidPaymentRequirements = "invalid_payment_requirements",
    /// A scheme that this facilitator does not serve.
    UnsupportedScheme = "unsupported_scheme",
    /// A network that is unknown or not configured here.
    InvalidNetwork = "invalid_network",
    /// A payload shape that the scheme does not know, or one that contradicts `extra.assetTransferMethod`.
    UnsupportedPayloadType = "unsupported_payload_type",
    /// The token address has no code.
    AssetNotDeployedContract = "asset_not_deployed_contract",
    /// An outage on our side while verifying; says nothing about the payment.
    UnexpectedVerifyError = "unexpected_verify_error",
    /// An outage on our side while settling; nothing was broadcast.
    UnexpectedSettleError = "unexpected_settle_error",
    /// The transaction was handed to the chain and its outcome is not known yet.
    SettlementPending = "settlement_pending",
    /// This payment has bought its resource already, or is being bought right now.
    DuplicateSettlement = "duplicate_settlement",
    /// The accepted or the required scheme is not `exact`.
    ExactScheme = "invalid_exact_evm_scheme",
    /// The accepted network is not the required one.
    ExactNetworkMismatch = "invalid_exact_evm_network_mismatch",
    /// `extra.name` or `extra.version` is absent.
    ExactMissingDomain = "invalid_exact_evm_missing_eip712_domain",
    /// The signature is not the payer's.
    ExactSignature = "invalid_exact_evm_signature",
    /// The authorization pays somebody else than `payTo`.
    ExactRecipientMismatch = "invalid_exact_evm_recipient_mismatch",
    /// The authorization has expired, expires too soon, or is valid for longer than we keep records.
    ExactValidBefore = "invalid_exact_evm_payload_authorization_valid_before",
    /// The authorization is not valid yet.
    ExactValidAfter = "invalid_exact_evm_payload_authorization_valid_after",
    /// The authorization's value is not the required amount (v2).
    ExactValueMismatch = "invalid_exact_evm_payload_authorization_value_mismatch",
    /// The authorization's value is not the required amount (v1).
    ExactValueV1 = "invalid_exact_evm_authorization_value",
    /// The authorization's nonce was used or cancelled, or belongs to another payment.
    ExactNonceUsed = "invalid_exact_evm_nonce_already_used",
    /// The payer holds less than the amount.
    ExactInsufficientBalance = "invalid_exact_evm_insufficient_balance",
    /// `extra.name` is not the token's EIP-712 name.
    ExactTokenName = "invalid_exact_evm_token_name_mismatch",
    /// `extra.version` is not the token's EIP-712 version.
    ExactTokenVersion = "invalid_exact_evm_token_version_mismatch",
    /// The token does not speak EIP-3009.
    ExactEip3009Unsupported = "invalid_exact_evm_eip3009_not_supported",
    /// The simulated transfer reverted for no reason that we recognise.
    ExactSimulationFailed = "invalid_exact_evm_transaction_simulation_failed",
    /// The wallet's factory is not on this facilitator's list.
    FactoryNotAllowed = "eip6492_factory_not_allowed",
    /// The wallet could not be deployed by its factory.
    WalletDeploymentFailed = "smart_wallet_deployment_failed",
    /// The transaction was mined without effect.
    ExactTransactionFailed = "invalid_exact_evm_transaction_failed",
    /// The transaction was mined, but its logs hold no transfer of exactly this payment.
    ExactTransferMismatch = "invalid_exact_evm_transfer_event_mismatch",
    /// No session has this id here.
    SessionNotFound = "session_not_found",
    /// The session's time has passed, or its transfer was mined too late.
    SessionExpired = "session_expired",
    /// The session was cancelled.
    SessionCancelled = "session_cancelled",
    /// Something was submitted for the session already.
    SessionInUse = "session_in_use",
    /// The seller asks for something else than the session was opened for.
    SessionRequirementsMismatch = "session_requirements_mismatch",
    /// A transfer by the payer needs `extra.paymentFlow = "upfront"`.
    SessionFlowRequired = "session_flow_required",
    /// The claim of a transfer is missing, or is not the payer's.
    SessionClaimInvalid = "session_claim_invalid",
    /// What was submitted is not what the session asks for.
    SessionTransferMismatch = "session_transfer_mismatch",
    /// The transfer has paid for something else already.
    TransferAlreadyUsed = "transfer_already_used",
    /// The transfer was mined before the session was opened.
    TransferTooOld = "transfer_too_old",
    /// The chain does not know the transfer, or another transaction has taken its place.
    TransferNotFound = "transfer_not_found",
    /// The facilitator does not pay for gas before the seller asks.
    SponsorshipRefused = "sponsorship_refused",
}

/// The text is none of our codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a reason code of x402d")]
pub struct UnknownReason;

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.code())
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_reads_back_as_itself() {
        for reason in Reason::ALL {
            assert_eq!(reason.code().parse(), Ok(*reason));
        }
    }
}
