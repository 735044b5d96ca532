//! How single fields of the wire are read and written: addresses, hashes and byte strings, strictly.

use std::fmt;

use alloy::primitives::{Address, B256, Bytes};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serializer};

/// The longest signature that is read, in bytes. EOAs need 65; the longest known wallet signatures stay below 4 KiB.
pub const SIGNATURE_BYTES_MAX: usize = 8 * 1024;

/// How much of a text is repeated in a message.
const CHARACTERS_SHOWN: usize = 50;

/// Reads JSON. The error names the member by its path, says what came and what was expected, and is cut to a bearable length.
///
/// # Errors
/// When the text is no JSON, or none of this type.
pub fn read_text<'de, T: Deserialize<'de>>(json: &'de [u8]) -> Result<T, String> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let read = serde_path_to_error::deserialize(&mut deserializer);
    let value = read.map_err(|error| {
        let path = error.path().to_string();
        let why = explained(&error.into_inner());
        if path == "." {
            why
        } else {
            format!("{path}: {why}")
        }
    })?;
    match deserializer.end() {
        Ok(()) => Ok(value),
        Err(error) => Err(explained(&error)),
    }
}

/// The same of a part of a request, `place`, which the error names too.
///
/// # Errors
/// When the text is none of this type.
pub fn read_part<'de, T: Deserialize<'de>>(place: &str, json: &'de str) -> Result<T, String> {
    read_text(json.as_bytes()).map_err(|why| {
        // A path goes on where the place ends; what is said of the part as a whole does not.
        let of_member = why.split_once(": ").is_some_and(|(path, _)| is_path(path));
        let joint = if of_member { "." } else { ": " };
        format!("{place}{joint}{why}")
    })
}

fn is_path(text: &str) -> bool {
    text.bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"._[]".contains(&byte))
}

/// An error of the reader. Where in the text a wrong type stands is no help: the text may be a part of the request.
fn explained(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let text = match text.rsplit_once(" at line ") {
        Some((why, _)) if error.is_data() => why,
        Some(_) | None => &text,
    };
    text.chars().take(4 * CHARACTERS_SHOWN).collect()
}

/// Reads a JSON string with `parse`. The error repeats the beginning of the value.
///
/// # Errors
/// When the value is no string or `parse` refuses it.
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

/// The same for values that are money in the wrong hands, such as signatures: the error never repeats one.
///
/// # Errors
/// When the value is no string or `parse` refuses it.
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
            let shown: String = text.chars().take(CHARACTERS_SHOWN).collect();
            if secret {
                E::custom(format!("expected {expected}: {why}"))
            } else {
                E::custom(format!("expected {expected}, got {shown:?}: {why}"))
            }
        })
    }
}

/// Serde for members that may be absent: `null` and absence are the default.
pub mod optional {
    use super::Deserializer;
    use serde::Deserialize;

    /// Reads a value, or nothing.
    ///
    /// # Errors
    /// When the value is anything else.
    pub fn deserialize<'de, D, T>(deserializer: D) -> Result<T, D::Error>
    where
        D: Deserializer<'de>,
        T: Deserialize<'de> + Default,
    {
        Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
    }
}

/// Serde for numbers of seconds.
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

    /// Reads a number.
    ///
    /// # Errors
    /// When the value is anything else.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        deserializer.deserialize_u64(Seconds)
    }
}

/// `0x` and exactly 40 hex digits of any case: checksums are not asked for, because sellers write addresses in lower case.
///
/// # Errors
/// Says what was expected when the text is anything else.
pub fn parse_address(text: &str) -> Result<Address, String> {
    fixed_hex::<20>(text).map(Address::from)
}

/// `0x` and exactly 64 hex digits.
///
/// # Errors
/// Says what was expected when the text is anything else.
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
    let bytes =
        alloy::hex::decode(digits).map_err(|_| "it is not hex of whole bytes".to_owned())?;
    Ok(Bytes::from(bytes))
}

/// Serde for addresses: read in any case, written checksummed.
pub mod address {
    use super::{Address, Deserializer, Serializer, parse_address, parse_text};

    /// Writes the EIP-55 form.
    ///
    /// # Errors
    /// Only those of the serializer.
    pub fn serialize<S: Serializer>(address: &Address, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&address.to_checksum(None))
    }

    /// Reads 0x and 40 hex digits.
    ///
    /// # Errors
    /// When the value is anything else.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Address, D::Error> {
        parse_text(deserializer, "an address", parse_address)
    }
}

/// Serde for addresses that may be absent; `null` is absent too.
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

    /// Reads 0x and 40 hex digits, or nothing.
    ///
    /// # Errors
    /// When the value is anything else.
    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Address>, D::Error> {
        Ok(Option::<Wrapped>::deserialize(deserializer)?.map(|wrapped| wrapped.0))
    }
}

/// Serde for 32-byte values.
pub mod hash {
    use super::{B256, Deserializer, Serializer, parse_hash, parse_text};

    /// Writes 0x and 64 lower-case digits.
    ///
    /// # Errors
    /// Only those of the serializer.
    pub fn serialize<S: Serializer>(hash: &B256, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(hash)
    }

    /// Reads 0x and 64 hex digits.
    ///
    /// # Errors
    /// When the value is anything else.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<B256, D::Error> {
        parse_text(deserializer, "32 bytes", parse_hash)
    }
}

/// Serde for signatures of any length up to [`SIGNATURE_BYTES_MAX`].
pub mod signature {
    use super::{Bytes, Deserializer, Serializer, parse_bytes, parse_secret};

    /// Writes 0x and hex digits.
    ///
    /// # Errors
    /// Only those of the serializer.
    pub fn serialize<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(bytes)
    }

    /// Reads 0x and an even number of hex digits.
    ///
    /// # Errors
    /// When the value is anything else or too long.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        parse_secret(deserializer, "a signature", parse_bytes)
    }
}
