//! Addresses whose payments are refused, as a list in a text.

use std::collections::HashSet;

use alloy::primitives::Address;

use crate::protocol::field::parse_address;

/// Addresses that may neither pay nor be paid.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DenyList(HashSet<Address>);

/// A line that is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: expected one address, but {why}")]
pub struct DenyListError {
    line: usize,
    why: String,
}

impl DenyList {
    /// Reads one address a line. What follows `#` is a comment.
    ///
    /// # Errors
    /// The first line that is no address: a list with a line missing would admit somebody.
    pub fn parse(text: &str) -> Result<Self, DenyListError> {
        let mut denied = HashSet::new();
        for (line, text) in (1..).zip(text.lines()) {
            let entry = text.split('#').next().unwrap_or_default().trim();
            if entry.is_empty() {
                continue;
            }
            let address = parse_address(entry).map_err(|why| DenyListError { line, why })?;
            denied.insert(address);
        }
        Ok(Self(denied))
    }

    pub fn contains(&self, address: Address) -> bool {
        self.0.contains(&address)
    }

    /// The number of addresses.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_stand_one_on_a_line_with_comments() {
        let one = Address::repeat_byte(0xab);
        let text = format!("# denied\n\n  {one}  # why\n{:#x}\n", Address::ZERO);
        let list = DenyList::parse(&text).unwrap();
        assert!(list.contains(one) && list.contains(Address::ZERO));
        assert!(!list.contains(Address::repeat_byte(1)));
        assert_eq!(list.len(), 2);
    }

    #[test]
    fn wrong_line_is_named() {
        for wrong in ["0x12", "0xab, 0xcd", "everybody"] {
            let text = format!("{}\n{wrong}\n", Address::ZERO);
            let error = DenyList::parse(&text).unwrap_err();
            assert_eq!(error.line, 2, "{error}");
        }
    }
}
