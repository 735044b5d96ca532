//! The HTTP headers of a paid request and their encoding (x402 HTTP transport, versions 1 and 2).

use base64::Engine as _;
use base64::engine::{
    DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::STANDARD,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// v2 response header: the payment requirements of a 402.
pub const PAYMENT_REQUIRED: &str = "payment-required";
/// v2 request header: the payment.
pub const PAYMENT_SIGNATURE: &str = "payment-signature";
/// v2 response header: the settlement result.
pub const PAYMENT_RESPONSE: &str = "payment-response";
/// v1 request header: the payment.
pub const X_PAYMENT: &str = "x-payment";
/// v1 response header: the settlement result.
pub const X_PAYMENT_RESPONSE: &str = "x-payment-response";

/// Response header from a seller's handler to its payment layer, which removes it: how much of a metered payment to charge.
pub const SETTLEMENT_OVERRIDES: &str = "settlement-overrides";

/// The longest accepted header value, in characters. A 402 with large extensions stays below.
pub const HEADER_CHARACTERS_MAX: usize = 64 * 1024;

/// Accepts base64 without padding: SDK encoders pad, some hand-written ones do not.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Why a header value could not be decoded.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// Longer than [`HEADER_CHARACTERS_MAX`].
    #[error("the header is longer than {HEADER_CHARACTERS_MAX} characters")]
    TooLong,
    /// Not base64 in the standard or the URL-safe alphabet (RFC 4648 §4 and §5).
    #[error("the header is not base64")]
    NotBase64,
    /// Not JSON of the expected type.
    #[error("the header does not hold the expected JSON: {0}")]
    NotJson(#[source] serde_json::Error),
}

/// Encodes the JSON of `value` as padded standard base64.
///
/// # Errors
/// `value` has no JSON form. The types of this crate always have one.
pub fn encode<T: Serialize>(value: &T) -> Result<String, serde_json::Error> {
    serde_json::to_vec(value).map(|json| STANDARD.encode(json))
}

/// Decodes the output of [`encode`], with or without padding, also in the URL-safe alphabet. The two alphabets differ in two characters
/// only, so no text has two meanings.
///
/// # Errors
/// A [`HeaderError`] for the step that failed.
pub fn decode<T: DeserializeOwned>(text: &str) -> Result<T, HeaderError> {
    serde_json::from_slice(&decode_base64(text)?).map_err(HeaderError::NotJson)
}

/// Decodes the base64 of a header value; the result should be JSON.
///
/// # Errors
/// [`HeaderError::TooLong`] or [`HeaderError::NotBase64`].
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
    fn padding_is_written_but_not_required() {
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
    fn both_base64_alphabets_are_decoded() {
        // The bytes of these characters encode to the two letters in which the alphabets differ.
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
