//! The stable codes by which a payment is refused (`docs/architecture.md#refusal-codes`).

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $code:literal,)+) => {
        /// Why a payment was refused or failed: the closed list of codes that this facilitator utters.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason {
            $($(#[doc = $doc])+ $variant,)+
            /// A code that this version does not utter by itself: a later one has written it into a ledger that both use.
            OfALaterVersion(&'static str),
        }

        impl Reason {
            /// Every code, for documentation and tests.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The code on the wire and in the ledger.
            pub const fn code(self) -> &'static str {
                match self {
                    $(Self::$variant => $code,)+
                    Self::OfALaterVersion(code) => code,
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
    /// The spender is not the proxy of the scheme.
    Permit2Spender = "invalid_permit2_spender",
    /// The witness pays somebody else than `payTo`.
    Permit2RecipientMismatch = "invalid_permit2_recipient_mismatch",
    /// The deadline has passed, is too near, or is farther away than we keep records.
    Permit2DeadlineExpired = "permit2_deadline_expired",
    /// The witness is not valid yet.
    Permit2NotYetValid = "permit2_not_yet_valid",
    /// The permitted amount is not the required one.
    Permit2AmountMismatch = "permit2_amount_mismatch",
    /// The permitted token is not the required asset.
    Permit2TokenMismatch = "permit2_token_mismatch",
    /// The signature is not the payer's.
    Permit2Signature = "invalid_permit2_signature",
    /// The payer has not allowed Permit2 to take this much of the token. Sellers answer 412 to it.
    Permit2AllowanceRequired = "permit2_allowance_required",
    /// The payer holds less than the amount.
    Permit2InsufficientBalance = "permit2_insufficient_balance",
    /// The proxy has no code on this network.
    Permit2ProxyNotDeployed = "permit2_proxy_not_deployed",
    /// The simulated settlement reverted for no reason that we recognise.
    Permit2SimulationFailed = "permit2_simulation_failed",
    /// The proxy refuses the amount.
    Permit2InvalidAmount = "permit2_invalid_amount",
    /// The proxy refuses the payee.
    Permit2InvalidDestination = "permit2_invalid_destination",
    /// The proxy refuses the payer.
    Permit2InvalidOwner = "permit2_invalid_owner",
    /// The chain's time is before the witness's `validAfter`.
    Permit2PaymentTooEarly = "permit2_payment_too_early",
    /// The nonce was used or invalidated, or belongs to another payment.
    Permit2InvalidNonce = "permit2_invalid_nonce",
    /// The token's permit is for another amount than Permit2's.
    Permit2612AmountMismatch = "permit2_2612_amount_mismatch",
    /// The accepted or the required scheme is not `upto`.
    UptoScheme = "invalid_upto_evm_scheme",
    /// The accepted network is not the required one.
    UptoNetworkMismatch = "invalid_upto_evm_network_mismatch",
    /// The witness names an account that is none of this facilitator's.
    UptoFacilitatorMismatch = "upto_facilitator_mismatch",
    /// More is to be charged than the payer permitted.
    UptoExceedsAmount = "invalid_upto_evm_payload_settlement_exceeds_amount",
    /// The transaction was mined without effect.
    UptoTransactionFailed = "invalid_upto_evm_transaction_failed",
    /// The proxy says that more was to be charged than the payer permitted.
    UptoAmountExceedsPermitted = "upto_amount_exceeds_permitted",
    /// The proxy was called by somebody else than the facilitator of the witness.
    UptoUnauthorizedFacilitator = "upto_unauthorized_facilitator",
    /// `eip2612GasSponsoring` has the wrong shape.
    Eip2612Format = "invalid_eip2612_extension_format",
    /// The permit is another account's than the payer's.
    Eip2612FromMismatch = "eip2612_from_mismatch",
    /// The permit is for another token.
    Eip2612AssetMismatch = "eip2612_asset_mismatch",
    /// The permit allows somebody else than Permit2.
    Eip2612Spender = "eip2612_spender_not_permit2",
    /// The permit has expired or expires too soon.
    Eip2612DeadlineExpired = "eip2612_deadline_expired",
    /// `erc20ApprovalGasSponsoring` has the wrong shape.
    ApprovalFormat = "invalid_erc20_approval_extension_format",
    /// The approval is another account's than the payer's.
    ApprovalFromMismatch = "erc20_approval_from_mismatch",
    /// The approval is for another token.
    ApprovalAssetMismatch = "erc20_approval_asset_mismatch",
    /// The approval allows somebody else than Permit2.
    ApprovalSpender = "erc20_approval_spender_not_permit2",
    /// The signed transaction calls something else than the token.
    ApprovalWrongTarget = "erc20_approval_tx_wrong_target",
    /// The signed transaction calls something else than `approve`.
    ApprovalWrongSelector = "erc20_approval_tx_wrong_selector",
    /// The signed transaction approves somebody else than Permit2.
    ApprovalWrongSpender = "erc20_approval_tx_wrong_spender",
    /// The signed transaction's calldata is no call of `approve`.
    ApprovalInvalidCalldata = "erc20_approval_tx_invalid_calldata",
    /// The signed transaction was signed by somebody else than the payer.
    ApprovalSignerMismatch = "erc20_approval_tx_signer_mismatch",
    /// The signed transaction's signature cannot be recovered.
    ApprovalInvalidSignature = "erc20_approval_tx_invalid_signature",
    /// The signed transaction cannot be read.
    ApprovalParseFailed = "erc20_approval_tx_parse_failed",
    /// The approval can never be mined, or was mined without effect.
    ApprovalFailed = "erc20_approval_tx_failed",
    /// The approval could not be sent.
    ApprovalBroadcastFailed = "erc20_approval_broadcast_failed",
    /// The payer lacks the native money for its approval's gas, and this facilitator gives no more of it.
    ApprovalInsufficientGas = "erc20_approval_insufficient_eth_for_gas",
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
