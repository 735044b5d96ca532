//! The stable reason codes of rejected and failed payments (x402 v2 specification §9, with additions of the SDKs and of x402d).

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// The rejection of a payment or session: a stable code, and a message with the expected and the received value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// The stable code.
    pub reason: Reason,
    /// The message for people. Never contains a signature.
    pub message: String,
}

impl Rejection {
    /// A rejection with this code and message.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $code:literal,)+) => {
        /// Why a payment was rejected or failed: the closed list of codes that this facilitator returns.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason {
            $($(#[doc = $doc])+ $variant,)+
            /// A code unknown to this version, written to a shared ledger by a newer one.
            FromNewerVersion(&'static str),
        }

        impl Reason {
            /// Every code that this version returns.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The code as it is written on the wire and in the ledger.
            pub const fn code(self) -> &'static str {
                match self {
                    $(Self::$variant => $code,)+
                    Self::FromNewerVersion(code) => code,
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
    /// The payment requirements have the wrong shape, or cannot be paid here.
    InvalidPaymentRequirements = "invalid_payment_requirements",
    /// The scheme is not served by this facilitator.
    UnsupportedScheme = "unsupported_scheme",
    /// The network is unknown or not configured.
    InvalidNetwork = "invalid_network",
    /// The scheme has no such payload shape, or the shape contradicts `extra.assetTransferMethod`.
    UnsupportedPayloadType = "unsupported_payload_type",
    /// The token address has no code.
    AssetNotDeployedContract = "asset_not_deployed_contract",
    /// The facilitator could not verify the payment; it says nothing about the payment itself.
    UnexpectedVerifyError = "unexpected_verify_error",
    /// The facilitator could not settle the payment; nothing was broadcast.
    UnexpectedSettleError = "unexpected_settle_error",
    /// The transaction was broadcast and its outcome is not known yet.
    SettlementPending = "settlement_pending",
    /// This payment was already granted to a request, or is being granted to another one.
    DuplicateSettlement = "duplicate_settlement",
    /// The accepted or the required scheme is not `exact`.
    ExactScheme = "invalid_exact_evm_scheme",
    /// The accepted network is not the required one.
    ExactNetworkMismatch = "invalid_exact_evm_network_mismatch",
    /// `extra.name` or `extra.version` is absent.
    ExactMissingDomain = "invalid_exact_evm_missing_eip712_domain",
    /// The EIP-3009 signature is not the payer's.
    ExactSignature = "invalid_exact_evm_signature",
    /// The authorization's payee is not `payTo`.
    ExactRecipientMismatch = "invalid_exact_evm_recipient_mismatch",
    /// The authorization has expired, expires too soon, or is valid for longer than records are kept.
    ExactValidBefore = "invalid_exact_evm_payload_authorization_valid_before",
    /// The authorization is not valid yet.
    ExactValidAfter = "invalid_exact_evm_payload_authorization_valid_after",
    /// The authorization's value is not the required amount (v2).
    ExactValueMismatch = "invalid_exact_evm_payload_authorization_value_mismatch",
    /// The authorization's value is not the required amount (v1).
    ExactValueV1 = "invalid_exact_evm_authorization_value",
    /// The authorization's nonce was used or cancelled, or belongs to another payment.
    ExactNonceUsed = "invalid_exact_evm_nonce_already_used",
    /// The payer's token balance is below the amount (EIP-3009).
    ExactInsufficientBalance = "invalid_exact_evm_insufficient_balance",
    /// `extra.name` is not the token's EIP-712 name.
    ExactTokenName = "invalid_exact_evm_token_name_mismatch",
    /// `extra.version` is not the token's EIP-712 version.
    ExactTokenVersion = "invalid_exact_evm_token_version_mismatch",
    /// The token does not implement EIP-3009.
    ExactEip3009Unsupported = "invalid_exact_evm_eip3009_not_supported",
    /// The simulated transfer reverted for an unrecognised reason.
    ExactSimulationFailed = "invalid_exact_evm_transaction_simulation_failed",
    /// The factory of an undeployed wallet (ERC-6492) is not in the configured list.
    FactoryNotAllowed = "eip6492_factory_not_allowed",
    /// The factory's call did not deploy the wallet (ERC-6492).
    WalletDeploymentFailed = "smart_wallet_deployment_failed",
    /// The transaction of an `exact` payment was mined without effect.
    ExactTransactionFailed = "invalid_exact_evm_transaction_failed",
    /// The transaction was mined, but its logs do not contain exactly this payment's transfer.
    ExactTransferMismatch = "invalid_exact_evm_transfer_event_mismatch",
    /// The spender is not the proxy of the scheme.
    Permit2Spender = "invalid_permit2_spender",
    /// The witness's payee is not `payTo`.
    Permit2RecipientMismatch = "invalid_permit2_recipient_mismatch",
    /// The deadline has passed, is too near, or is later than records are kept.
    Permit2DeadlineExpired = "permit2_deadline_expired",
    /// The witness's `validAfter` is in the future.
    Permit2NotYetValid = "permit2_not_yet_valid",
    /// The permitted amount is not the required one.
    Permit2AmountMismatch = "permit2_amount_mismatch",
    /// The permitted token is not the required asset.
    Permit2TokenMismatch = "permit2_token_mismatch",
    /// The Permit2 signature is not the payer's.
    Permit2Signature = "invalid_permit2_signature",
    /// The payer's token allowance to Permit2 is below the amount. Sellers return HTTP 412 for it.
    Permit2AllowanceRequired = "permit2_allowance_required",
    /// The payer's token balance is below the amount (Permit2).
    Permit2InsufficientBalance = "permit2_insufficient_balance",
    /// The proxy has no code on this network.
    Permit2ProxyNotDeployed = "permit2_proxy_not_deployed",
    /// The simulated settlement reverted for an unrecognised reason.
    Permit2SimulationFailed = "permit2_simulation_failed",
    /// The proxy reverts with `InvalidAmount`.
    Permit2InvalidAmount = "permit2_invalid_amount",
    /// The proxy reverts with `InvalidDestination`: the payee is refused.
    Permit2InvalidDestination = "permit2_invalid_destination",
    /// The proxy reverts with `InvalidOwner`: the payer is refused.
    Permit2InvalidOwner = "permit2_invalid_owner",
    /// The proxy reverts with `PaymentTooEarly`: the block's time is before the witness's `validAfter`.
    Permit2PaymentTooEarly = "permit2_payment_too_early",
    /// The Permit2 nonce was used or invalidated, or belongs to another payment.
    Permit2InvalidNonce = "permit2_invalid_nonce",
    /// The EIP-2612 permit is for another amount than the Permit2 authorization.
    Permit2612AmountMismatch = "permit2_2612_amount_mismatch",
    /// The accepted or the required scheme is not `upto`.
    UptoScheme = "invalid_upto_evm_scheme",
    /// The accepted network is not the required one.
    UptoNetworkMismatch = "invalid_upto_evm_network_mismatch",
    /// The witness names an account that is not a signer of this facilitator.
    UptoFacilitatorMismatch = "upto_facilitator_mismatch",
    /// The charge exceeds the amount that the payer permitted.
    UptoExceedsAmount = "invalid_upto_evm_payload_settlement_exceeds_amount",
    /// The transaction of an `upto` payment was mined without effect.
    UptoTransactionFailed = "invalid_upto_evm_transaction_failed",
    /// The proxy reverts with `AmountExceedsPermitted`: the charge exceeds the permitted amount.
    UptoAmountExceedsPermitted = "upto_amount_exceeds_permitted",
    /// The proxy reverts with `UnauthorizedFacilitator`: the caller is not the witness's facilitator.
    UptoUnauthorizedFacilitator = "upto_unauthorized_facilitator",
    /// `eip2612GasSponsoring` has the wrong shape.
    Eip2612Format = "invalid_eip2612_extension_format",
    /// The owner of the EIP-2612 permit is not the payer.
    Eip2612FromMismatch = "eip2612_from_mismatch",
    /// The EIP-2612 permit is for another token.
    Eip2612AssetMismatch = "eip2612_asset_mismatch",
    /// The spender of the EIP-2612 permit is not Permit2.
    Eip2612Spender = "eip2612_spender_not_permit2",
    /// The EIP-2612 permit has expired or expires too soon.
    Eip2612DeadlineExpired = "eip2612_deadline_expired",
    /// `erc20ApprovalGasSponsoring` has the wrong shape.
    ApprovalFormat = "invalid_erc20_approval_extension_format",
    /// The owner in the approval extension is not the payer.
    ApprovalFromMismatch = "erc20_approval_from_mismatch",
    /// The token in the approval extension is not the required asset.
    ApprovalAssetMismatch = "erc20_approval_asset_mismatch",
    /// The spender in the approval extension is not Permit2.
    ApprovalSpender = "erc20_approval_spender_not_permit2",
    /// The signed transaction does not call the token contract.
    ApprovalWrongTarget = "erc20_approval_tx_wrong_target",
    /// The signed transaction does not call `approve`.
    ApprovalWrongSelector = "erc20_approval_tx_wrong_selector",
    /// The signed transaction's spender is not Permit2.
    ApprovalWrongSpender = "erc20_approval_tx_wrong_spender",
    /// The calldata is not a valid `approve`, its amount is too small, or the transaction transfers native currency.
    ApprovalInvalidCalldata = "erc20_approval_tx_invalid_calldata",
    /// The signer of the signed transaction is not the payer.
    ApprovalSignerMismatch = "erc20_approval_tx_signer_mismatch",
    /// The signer of the signed transaction cannot be recovered.
    ApprovalInvalidSignature = "erc20_approval_tx_invalid_signature",
    /// The signed transaction cannot be decoded, or is for another chain.
    ApprovalParseFailed = "erc20_approval_tx_parse_failed",
    /// The approval transaction can never be mined, or was mined without effect.
    ApprovalFailed = "erc20_approval_tx_failed",
    /// The approval transaction could not be broadcast.
    ApprovalBroadcastFailed = "erc20_approval_broadcast_failed",
    /// The payer lacks native currency for the gas of its approval, and this facilitator's limit for funding it is reached.
    ApprovalInsufficientGas = "erc20_approval_insufficient_eth_for_gas",
    /// No session with this id exists.
    SessionNotFound = "session_not_found",
    /// The session expired, or its transfer was mined after the expiry.
    SessionExpired = "session_expired",
    /// The session was cancelled.
    SessionCancelled = "session_cancelled",
    /// A payment was already submitted for the session.
    SessionInUse = "session_in_use",
    /// The authorization was submitted for a session, and `payload.sessionId` does not name that session. Whoever reads the chain knows the
    /// rest of the payload.
    SessionIdRequired = "session_id_required",
    /// The seller's requirements differ from the session's.
    SessionRequirementsMismatch = "session_requirements_mismatch",
    /// A transfer by the payer needs `extra.paymentFlow = "upfront"`.
    SessionFlowRequired = "session_flow_required",
    /// The claim signature of a transfer is missing or not the payer's.
    SessionClaimInvalid = "session_claim_invalid",
    /// The submitted authorization or transfer does not match the session's terms.
    SessionTransferMismatch = "session_transfer_mismatch",
    /// The transfer was already used for another payment.
    TransferAlreadyUsed = "transfer_already_used",
    /// The transfer was mined before the session was opened.
    TransferTooOld = "transfer_too_old",
    /// The transfer's transaction was not found, or was replaced by another transaction.
    TransferNotFound = "transfer_not_found",
    /// The facilitator does not broadcast a session's authorization before the seller settles it.
    SponsorshipRefused = "sponsorship_refused",
}

/// The text is not a reason code of this version.
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
    fn every_code_parses_to_its_reason() {
        for reason in Reason::ALL {
            assert_eq!(reason.code().parse(), Ok(*reason));
        }
    }
}
