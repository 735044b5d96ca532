//! Texts from requests that are stored and displayed.

use std::ops::Deref;

/// A text of bounded length without control characters, safe to store and to print in a terminal, a table or a log.
///
/// Postgres rejects NUL in `text`; without this check such a request would look like a database failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlainText(String);

impl PlainText {
    /// Accepts a text unchanged.
    ///
    /// # Errors
    /// A message with the expected form when the text is too long or contains control characters.
    pub fn parse(text: &str, characters_max: usize) -> Result<Self, String> {
        if text.chars().count() > characters_max || text.chars().any(char::is_control) {
            return Err(format!(
                "expected at most {characters_max} characters and no control characters"
            ));
        }
        Ok(Self(text.to_owned()))
    }

    /// Removes control characters and cuts the text at `characters_max`. For texts that no check depends on.
    pub fn cleaned(text: &str, characters_max: usize) -> Self {
        let printable = text.chars().filter(|letter| !letter.is_control());
        Self(printable.take(characters_max).collect())
    }
}

impl Deref for PlainText {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl From<PlainText> for String {
    fn from(text: PlainText) -> Self {
        text.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_rejected_or_removed() {
        for text in ["a\0b", "a\nb", "a\u{7f}b", "a\u{85}b"] {
            assert!(PlainText::parse(text, 10).is_err(), "{text:?}");
            assert_eq!(&*PlainText::cleaned(text, 10), "ab", "{text:?}");
        }
        assert_eq!(&*PlainText::parse("größe", 5).unwrap(), "größe");
        assert!(PlainText::parse("größer", 5).is_err());
        assert_eq!(&*PlainText::cleaned("größer", 5), "größe");
    }
}
