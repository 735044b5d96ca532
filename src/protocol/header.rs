//! The HTTP headers of a paid request and their encoding (`docs/architecture.md#http-headers`).

use base64::Engine as _;
use base64::engine::{
    DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::STANDARD,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// v2, response: the challenge.
pub const PAYMENT_REQUIRED: &str = "payment-required";
/// v2, request: the payment.
pub const PAYMENT_SIGNATURE: &str = "payment-signature";
/// v2, response: the outcome.
pub const PAYMENT_RESPONSE: &str = "payment-response";
/// v1, request: the payment.
pub const X_PAYMENT: &str = "x-payment";
/// v1, response: the outcome.
pub const X_PAYMENT_RESPONSE: &str = "x-payment-response";

/// Response, from a seller's handler to its paywall and no farther: how much of a metered payment is charged.
pub const SETTLEMENT_OVERRIDES: &str = "settlement-overrides";

/// The longest header value that is read, in characters; a challenge with large extensions stays below.
pub const HEADER_CHARACTERS_MAX: usize = 64 * 1024;

/// Shipped encoders pad; some hand-written ones do not.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Why a header could not be read.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// More than [`HEADER_CHARACTERS_MAX`].
    #[error("the header is longer than {HEADER_CHARACTERS_MAX} characters")]
    TooLong,
    /// Neither alphabet of base64 (RFC 4648 §4 and §5).
    #[error("the header is not base64")]
    NotBase64,
    /// Not the JSON that was expected.
    #[error("the header does not hold the expected JSON: {0}")]
    NotJson(#[source] serde_json::Error),
}

/// Padded standard base64 over the JSON of `value`.
///
/// # Errors
/// When `value` has no JSON form, which our own types always have.
pub fn encode<T: Serialize>(value: &T) -> Result<String, serde_json::Error> {
    serde_json::to_vec(value).map(|json| STANDARD.encode(json))
}

/// Reads what [`encode`] wrote, with or without padding, and in the URL-safe alphabet too: no text means one thing in the one and another in
/// the other.
///
/// # Errors
/// [`HeaderError`] says which step failed.
pub fn decode<T: DeserializeOwned>(text: &str) -> Result<T, HeaderError> {
    serde_json::from_slice(&decode_base64(text)?).map_err(HeaderError::NotJson)
}

/// The text that the value of a header holds, which is meant to be JSON.
///
/// # Errors
/// [`HeaderError`] says which step failed.
pub(crate) fn decode_base64(text: &str) -> Result<Vec<u8>, HeaderError> {
    if text.len() > HEADER_CHARACTERS_MAX {
        return Err(HeaderError::TooLong);
    }
    let standard: String = text
        .trim()
        .chars()
        .map(|letter| match letter {
            '-' => '+',
            '_' => '/',
            other => other,
        })
        .collect();
    LENIENT.decode(standard).map_err(|_| HeaderError::NotBase64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn padding_is_written_and_not_asked_for() {
        let text = encode(&json!({"a": 1})).unwrap();
        assert_eq!(text, "eyJhIjoxfQ==");
        assert_eq!(decode::<Value>("eyJhIjoxfQ").unwrap(), json!({"a": 1}));
        assert!(matches!(
            decode::<Value>("eyJh*joxfQ"),
            Err(HeaderError::NotBase64)
        ));
        assert!(matches!(
            decode::<Value>("AAAA"),
            Err(HeaderError::NotJson(_))
        ));
    }

    #[test]
    fn both_alphabets_are_read_and_the_standard_one_is_written() {
        // Characters whose bytes need the two letters in which the alphabets differ.
        let value = json!({"a": "<<???>>~~~ÿþ"});
        let standard = encode(&value).unwrap();
        assert!(
            standard.contains('+') && standard.contains('/'),
            "{standard}"
        );
        let url_safe = standard.replace('+', "-").replace('/', "_");
        for text in [standard.as_str(), &url_safe, url_safe.trim_end_matches('=')] {
            assert_eq!(decode::<Value>(text).unwrap(), value, "{text}");
        }
    }
}
