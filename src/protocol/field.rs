//! How single fields of the wire are read and written: addresses, hashes and byte strings, strictly.

use std::fmt;

use alloy::primitives::{Address, B256, Bytes};
use serde::de::{self, Visitor};
use serde::{Deserializer, Serializer};

/// The longest signature that is read, in bytes. EOAs need 65; the longest known wallet signatures stay below 4 KiB.
pub const SIGNATURE_BYTES_MAX: usize = 8 * 1024;

/// Reads a JSON string with `parse`. The error never repeats the value, which may be a signature.
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
    struct Text<F>(&'static str, F);
    impl<T, F: FnOnce(&str) -> Result<T, String>> Visitor<'_> for Text<F> {
        type Value = T;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str(self.0)
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
            (self.1)(text).map_err(|why| E::custom(format!("expected {}: {why}", self.0)))
        }
    }
    deserializer.deserialize_str(Text(expected, parse))
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
    use super::{Bytes, Deserializer, Serializer, parse_bytes, parse_text};

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
        parse_text(deserializer, "a signature", parse_bytes)
    }
}
