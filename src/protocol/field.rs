//! Strict parsing and writing of single wire fields: addresses, hashes and byte strings.

use std::fmt;

use alloy::primitives::{Address, B256, Bytes};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serializer};

/// The longest accepted signature, in bytes. EOAs need 65; the longest known wallet signatures stay below 4 KiB.
pub const SIGNATURE_BYTES_MAX: usize = 8 * 1024;

/// How many characters of a received value an error message repeats.
const ECHOED_CHARACTERS_MAX: usize = 50;

/// Parses JSON. The error names the member by its path, with the received and the expected value, and is truncated.
///
/// # Errors
/// The bytes are not JSON, or not JSON of this type.
pub fn read_text<'de, T: Deserialize<'de>>(json: &'de [u8]) -> Result<T, String> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let read = serde_path_to_error::deserialize(&mut deserializer);
    let value = read.map_err(|error| {
        let path = error.path().to_string();
        let why = error_message(&error.into_inner());
        if path == "." {
            why
        } else {
            format!("{path}: {why}")
        }
    })?;
    match deserializer.end() {
        Ok(()) => Ok(value),
        Err(error) => Err(error_message(&error)),
    }
}

/// Parses one part of a request. The error begins with the path of that part, `place`.
///
/// # Errors
/// The text is not JSON of this type.
pub fn read_part<'de, T: Deserialize<'de>>(place: &str, json: &'de str) -> Result<T, String> {
    read_text(json.as_bytes()).map_err(|why| {
        // An error about a member begins with its path, which continues `place`; an error about the whole part does not.
        let of_member = why.split_once(": ").is_some_and(|(path, _)| is_path(path));
        let joint = if of_member { "." } else { ": " };
        format!("{place}{joint}{why}")
    })
}

fn is_path(text: &str) -> bool {
    text.bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"._[]".contains(&byte))
}

/// The message of a JSON error. Line and column of a type error are dropped: `text` may be only a part of the request.
fn error_message(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let text = match text.rsplit_once(" at line ") {
        Some((why, _)) if error.is_data() => why,
        Some(_) | None => &text,
    };
    text.chars().take(4 * ECHOED_CHARACTERS_MAX).collect()
}

/// Parses a JSON string with `parse`. The error repeats the beginning of the value.
///
/// # Errors
/// The value is not a string, or `parse` rejects it.
pub fn parse_text<'de, D, T>(
    deserializer: D,
    expected: &'static str,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
{
    deserializer.deserialize_str(Text {
        expected,
        secret: false,
        parse,
    })
}

/// Parses a JSON string that holds a bearer value, such as a signature: the error never repeats it.
///
/// # Errors
/// The value is not a string, or `parse` rejects it.
pub fn parse_secret<'de, D, T>(
    deserializer: D,
    expected: &'static str,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
{
    deserializer.deserialize_str(Text {
        expected,
        secret: true,
        parse,
    })
}

struct Text<F> {
    expected: &'static str,
    secret: bool,
    parse: F,
}

impl<T, F: FnOnce(&str) -> Result<T, String>> Visitor<'_> for Text<F> {
    type Value = T;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.expected)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        let (expected, secret) = (self.expected, self.secret);
        (self.parse)(text).map_err(|why| {
            let beginning: String = text.chars().take(ECHOED_CHARACTERS_MAX).collect();
            if secret {
                E::custom(format!("expected {expected}: {why}"))
            } else {
                E::custom(format!("expected {expected}, got {beginning:?}: {why}"))
            }
        })
    }
}

/// Serde for optional members: `null` reads as the default value.
pub mod optional {
    use super::Deserializer;
    use serde::Deserialize;

    /// Reads a value of type `T`, or its default from `null`.
    ///
    /// # Errors
    /// The value is neither `null` nor a `T`.
    pub fn deserialize<'de, D, T>(deserializer: D) -> Result<T, D::Error>
    where
        D: Deserializer<'de>,
        T: Deserialize<'de> + Default,
    {
        Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
    }
}

/// Serde for durations in whole seconds.
pub mod seconds {
    use super::{Deserializer, Visitor, de, fmt};

    struct Seconds;

    impl Visitor<'_> for Seconds {
        type Value = u64;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a whole number of seconds")
        }

        fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<u64, E> {
            Ok(seconds)
        }

        fn visit_i64<E: de::Error>(self, seconds: i64) -> Result<u64, E> {
            let negative = || E::invalid_value(de::Unexpected::Signed(seconds), &self);
            u64::try_from(seconds).map_err(|_| negative())
        }
    }

    /// Reads a JSON number.
    ///
    /// # Errors
    /// The value is not a whole number of at least 0.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        deserializer.deserialize_u64(Seconds)
    }
}

/// Parses `0x` and exactly 40 hex digits of any case. The EIP-55 checksum is not verified, because sellers write lower case.
///
/// # Errors
/// A message with the expected form.
pub fn parse_address(text: &str) -> Result<Address, String> {
    fixed_hex::<20>(text).map(Address::from)
}

/// Parses `0x` and exactly 64 hex digits.
///
/// # Errors
/// A message with the expected form.
pub fn parse_hash(text: &str) -> Result<B256, String> {
    fixed_hex::<32>(text).map(B256::from)
}

fn fixed_hex<const N: usize>(text: &str) -> Result<[u8; N], String> {
    let digits = text
        .strip_prefix("0x")
        .filter(|digits| digits.len() == 2 * N);
    let mut bytes = [0; N];
    digits
        .ok_or(())
        .and_then(|digits| alloy::hex::decode_to_slice(digits, &mut bytes).map_err(|_| ()))
        .map_err(|()| format!("it is not 0x and {} hex digits", 2 * N))?;
    Ok(bytes)
}

fn parse_bytes(text: &str) -> Result<Bytes, String> {
    let digits = text
        .strip_prefix("0x")
        .ok_or_else(|| "it does not begin with 0x".to_owned())?;
    if digits.len() > 2 * SIGNATURE_BYTES_MAX {
        return Err(format!("it is longer than {SIGNATURE_BYTES_MAX} bytes"));
    }
    let bytes = alloy::hex::decode(digits)
        .map_err(|_| "it is not an even number of hex digits".to_owned())?;
    Ok(Bytes::from(bytes))
}

/// Serde for addresses: any case is read, the EIP-55 checksum is written.
pub mod address {
    use super::{Address, Deserializer, Serializer, parse_address, parse_text};

    /// Writes the EIP-55 form.
    ///
    /// # Errors
    /// Only those of the serializer.
    pub fn serialize<S: Serializer>(address: &Address, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&address.to_checksum(None))
    }

    /// Reads `0x` and 40 hex digits.
    ///
    /// # Errors
    /// The value has another form.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Address, D::Error> {
        parse_text(deserializer, "an address", parse_address)
    }
}

/// Serde for optional addresses: `null` reads as `None`.
pub mod optional_address {
    use super::{Address, Deserializer, Serializer};
    use serde::Deserialize;

    #[derive(Deserialize)]
    struct Wrapped(#[serde(with = "super::address")] Address);

    /// Writes the EIP-55 form.
    ///
    /// # Errors
    /// Only those of the serializer.
    pub fn serialize<S: Serializer>(
        address: &Option<Address>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match address {
            Some(address) => super::address::serialize(address, serializer),
            None => serializer.serialize_none(),
        }
    }

    /// Reads `0x` and 40 hex digits, or `null`.
    ///
    /// # Errors
    /// The value has another form.
    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Address>, D::Error> {
        Ok(Option::<Wrapped>::deserialize(deserializer)?.map(|wrapped| wrapped.0))
    }
}

/// Serde for 32-byte values.
pub mod hash {
    use super::{B256, Deserializer, Serializer, parse_hash, parse_text};

    /// Writes `0x` and 64 lower-case digits.
    ///
    /// # Errors
    /// Only those of the serializer.
    pub fn serialize<S: Serializer>(hash: &B256, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(hash)
    }

    /// Reads `0x` and 64 hex digits.
    ///
    /// # Errors
    /// The value has another form.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<B256, D::Error> {
        parse_text(deserializer, "32 bytes", parse_hash)
    }
}

/// Serde for signatures of any length up to [`SIGNATURE_BYTES_MAX`].
pub mod signature {
    use super::{Bytes, Deserializer, Serializer, parse_bytes, parse_secret};

    /// Writes `0x` and hex digits.
    ///
    /// # Errors
    /// Only those of the serializer.
    pub fn serialize<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(bytes)
    }

    /// Reads `0x` and an even number of hex digits.
    ///
    /// # Errors
    /// The value has another form, or is longer than [`SIGNATURE_BYTES_MAX`](super::SIGNATURE_BYTES_MAX).
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        parse_secret(deserializer, "a signature", parse_bytes)
    }
}
