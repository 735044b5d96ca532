//! Who calls the facilitator, as payments record it.

use std::fmt;
use std::str::FromStr;

/// The public part of a key: it names the key in the ledger, in logs and in commands, and is no secret.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId([u8; KeyId::LENGTH]);

/// The text is not the id of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected the id of a key: 12 of 0-9 and a-z without i, l, o and u")]
pub struct InvalidKeyId;

impl KeyId {
    /// Characters of an id: 60 bits.
    pub const LENGTH: usize = 12;
    /// Crockford's base 32, as in the ids of sessions.
    const ALPHABET: [u8; 32] = *b"0123456789abcdefghjkmnpqrstvwxyz";

    /// An id from random bytes.
    pub fn from_entropy(bytes: [u8; Self::LENGTH]) -> Self {
        Self(bytes.map(|byte| {
            let digit = Self::ALPHABET.get(usize::from(byte % 32));
            digit.copied().unwrap_or(b'0')
        }))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        // Only ASCII can be in it.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl FromStr for KeyId {
    type Err = InvalidKeyId;

    fn from_str(text: &str) -> Result<Self, InvalidKeyId> {
        let bytes: [u8; Self::LENGTH] = text.as_bytes().try_into().map_err(|_| InvalidKeyId)?;
        let is_valid = bytes.iter().all(|byte| Self::ALPHABET.contains(byte));
        is_valid.then_some(Self(bytes)).ok_or(InvalidKeyId)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.as_str())
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// Who makes a request. Its text is what `payments.caller` holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Who {
    /// The holder of a key.
    Key(KeyId),
    /// The operator.
    Operator,
    /// Everybody without a key: one caller.
    Anonymous,
}

impl Who {
    const OPERATOR: &str = "operator";
    const ANONYMOUS: &str = "anonymous";

    /// The name in the ledger and in logs. Neither of the two words is the id of a key: they are shorter.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Key(id) => id.as_str(),
            Self::Operator => Self::OPERATOR,
            Self::Anonymous => Self::ANONYMOUS,
        }
    }

    /// The key that is held, if any.
    pub const fn key(self) -> Option<KeyId> {
        match self {
            Self::Key(id) => Some(id),
            Self::Operator | Self::Anonymous => None,
        }
    }
}

impl FromStr for Who {
    type Err = InvalidKeyId;

    fn from_str(text: &str) -> Result<Self, InvalidKeyId> {
        match text {
            Self::OPERATOR => Ok(Self::Operator),
            Self::ANONYMOUS => Ok(Self::Anonymous),
            id => id.parse().map(Self::Key),
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_callers_are_read_as_they_are_written() {
        let id = KeyId::from_entropy([0, 31, 32, 255, 8, 9, 10, 11, 12, 13, 14, 15]);
        assert_eq!(id.as_str(), "0z0z89abcdef");
        for who in [Who::Key(id), Who::Operator, Who::Anonymous] {
            assert_eq!(who.to_string().parse(), Ok(who));
        }
        for wrong in [
            "",
            "0z0z89abcde",
            "0z0z89abcdef0",
            "0z0z89abcdeo",
            "OPERATOR",
            "0Z0z89abcdef",
        ] {
            assert!(wrong.parse::<Who>().is_err(), "{wrong}");
        }
    }
}
