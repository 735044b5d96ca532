//! What operators write when they make a key.

use crate::payment::KeyId;
use crate::protocol::{Amount, PlainText};

/// The longest name, in characters.
const NAME_CHARACTERS_MAX: usize = 64;

/// The operator's name for a key.
///
/// # Errors
/// What was expected.
pub fn key_name(text: &str) -> Result<String, String> {
    let name = PlainText::parse(text, NAME_CHARACTERS_MAX)?;
    if text.is_empty() || text.parse::<KeyId>().is_ok() {
        return Err("expected a name that does not look like an id".to_owned());
    }
    Ok(name.into())
}

/// An amount of the native currency with its unit.
///
/// # Errors
/// What was expected.
pub fn native_wei(text: &str) -> Result<Amount, String> {
    const UNITS: [(&str, u8); 3] = [("gwei", 9), ("wei", 0), ("eth", 18)];
    let unit = UNITS
        .iter()
        .find_map(|(unit, decimals)| Some((text.strip_suffix(unit)?, *decimals)));
    let amount = unit.and_then(|(number, decimals)| {
        let number = number.trim_end();
        let is_number = number.starts_with(|first: char| first.is_ascii_digit());
        let amount = Amount::from_dollars(number, decimals).ok();
        amount.filter(|_| is_number)
    });
    amount.ok_or_else(|| {
        "expected an amount with its unit, such as 0.01eth, 5gwei or 1000wei".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gas_is_given_with_its_unit() {
        for (text, expected) in [
            ("0.01eth", Some("10000000000000000")),
            ("5gwei", Some("5000000000")),
            ("7 wei", Some("7")),
            ("0eth", Some("0")),
            ("0.5wei", None),
            ("1", None),
            ("$1eth", None),
            ("-1eth", None),
            ("eth", None),
        ] {
            let read = native_wei(text).ok().map(|amount| amount.to_string());
            assert_eq!(read.as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn names_are_readable_and_no_ids() {
        assert_eq!(key_name("Shop of Ada"), Ok("Shop of Ada".to_owned()));
        for wrong in [
            "",
            "0123456789ab",
            "two\nlines",
            "\u{1b}[2J",
            &"x".repeat(65),
        ] {
            assert!(key_name(wrong).is_err(), "{wrong:?}");
        }
    }
}
