//! Decoding of revert data.

use alloy::primitives::Bytes;
use alloy::sol;
use alloy::sol_types::SolError;

use crate::protocol::{Reason, Rejection};

sol! {
    error InvalidAmount();
    error AmountExceedsPermitted();
    error InvalidDestination();
    error InvalidOwner();
    error PaymentTooEarly();
    error Permit2612AmountMismatch();
    error UnauthorizedFacilitator();
    error InvalidNonce();
    error InvalidSigner();
    error InvalidSignature();
    error InvalidSignatureLength();
    error InvalidContractSignature();
    error SignatureExpired(uint256 deadline);
}

/// The errors of the proxies and of Permit2, by selector.
const PERMIT2_ERRORS: &[([u8; 4], Reason, &str)] = &[
    (
        InvalidAmount::SELECTOR,
        Reason::Permit2InvalidAmount,
        "the proxy refuses the amount",
    ),
    (
        AmountExceedsPermitted::SELECTOR,
        Reason::UptoAmountExceedsPermitted,
        "the charge exceeds the amount that the payer permitted",
    ),
    (
        InvalidDestination::SELECTOR,
        Reason::Permit2InvalidDestination,
        "the proxy refuses the payee",
    ),
    (
        InvalidOwner::SELECTOR,
        Reason::Permit2InvalidOwner,
        "the proxy refuses the payer",
    ),
    (
        PaymentTooEarly::SELECTOR,
        Reason::Permit2PaymentTooEarly,
        "the block time is before the witness's validAfter",
    ),
    (
        Permit2612AmountMismatch::SELECTOR,
        Reason::Permit2612AmountMismatch,
        "the token's permit is for another amount than the payment permits",
    ),
    (
        UnauthorizedFacilitator::SELECTOR,
        Reason::UptoUnauthorizedFacilitator,
        "the caller of the proxy is not the facilitator named in the witness",
    ),
    (
        InvalidNonce::SELECTOR,
        Reason::Permit2InvalidNonce,
        "the nonce was used or invalidated at Permit2",
    ),
    (
        SignatureExpired::SELECTOR,
        Reason::Permit2DeadlineExpired,
        "the deadline has passed on the chain",
    ),
    (
        InvalidSigner::SELECTOR,
        Reason::Permit2Signature,
        NOT_THE_PAYERS,
    ),
    (
        InvalidSignature::SELECTOR,
        Reason::Permit2Signature,
        NOT_THE_PAYERS,
    ),
    (
        InvalidSignatureLength::SELECTOR,
        Reason::Permit2Signature,
        NOT_THE_PAYERS,
    ),
    (
        InvalidContractSignature::SELECTOR,
        Reason::Permit2Signature,
        NOT_THE_PAYERS,
    ),
];

const NOT_THE_PAYERS: &str = "Permit2 does not accept the signature as the payer's";

/// The rejection for an error of Permit2 or a proxy; `None` for any other revert data.
pub(super) fn permit2_rejection(revert: &Bytes) -> Option<Rejection> {
    let selector = revert.get(..4)?;
    let (_, reason, why) = PERMIT2_ERRORS
        .iter()
        .find(|(known, ..)| known == selector)?;
    Some(Rejection::new(*reason, *why))
}

/// The text of `Error(string)`, or else the data as hex. Cut at 160 characters, without control characters.
pub(super) fn printable(revert: &Bytes) -> String {
    let text = alloy::sol_types::decode_revert_reason(revert).unwrap_or_else(|| revert.to_string());
    text.chars()
        .filter(|letter| !letter.is_control())
        .take(160)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy::primitives::hex;

    #[test]
    fn permit2_error_selectors_map_to_their_codes() {
        for (selector, code) in [
            ("2c5211c6", "permit2_invalid_amount"),
            ("fe64b4c7", "upto_amount_exceeds_permitted"),
            ("ac6b05f5", "permit2_invalid_destination"),
            ("49e27cff", "permit2_invalid_owner"),
            ("a65539fa", "permit2_payment_too_early"),
            ("050cda49", "permit2_2612_amount_mismatch"),
            ("0f6fae87", "upto_unauthorized_facilitator"),
            ("756688fe", "permit2_invalid_nonce"),
            ("815e1d64", "invalid_permit2_signature"),
            ("cd21db4f", "permit2_deadline_expired"),
            ("b0669cbc", "invalid_permit2_signature"),
        ] {
            let revert = Bytes::from(hex::decode(selector).unwrap());
            let found = permit2_rejection(&revert).map(|found| found.reason.code());
            assert_eq!(found, Some(code), "{selector}");
        }
        assert_eq!(permit2_rejection(&Bytes::from_static(&[1, 2, 3, 4])), None);
        assert_eq!(permit2_rejection(&Bytes::new()), None);
    }
}
