//! Texts of strangers that are kept and shown.

use std::ops::Deref;

/// A text of bounded length without control characters: the ledger can store it, and a terminal, a table or a log shows it as it is.
/// Postgres has no NUL in its texts, so that one in a statement would look like an outage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlainText(String);

impl PlainText {
    /// Takes a text as it is.
    ///
    /// # Errors
    /// Says what was expected when it is too long or holds control characters.
    pub fn parse(text: &str, characters_max: usize) -> Result<Self, String> {
        if text.chars().count() > characters_max || text.chars().any(char::is_control) {
            return Err(format!(
                "expected at most {characters_max} characters and no control characters"
            ));
        }
        Ok(Self(text.to_owned()))
    }

    /// Takes what is good of a text, where nothing depends on the rest.
    pub fn cleaned(text: &str, characters_max: usize) -> Self {
        let shown = text.chars().filter(|letter| !letter.is_control());
        Self(shown.take(characters_max).collect())
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
    fn control_characters_are_refused_or_left_out() {
        for text in ["a\0b", "a\nb", "a\u{7f}b", "a\u{85}b"] {
            assert!(PlainText::parse(text, 10).is_err(), "{text:?}");
            assert_eq!(&*PlainText::cleaned(text, 10), "ab", "{text:?}");
        }
        assert_eq!(&*PlainText::parse("größe", 5).unwrap(), "größe");
        assert!(PlainText::parse("größer", 5).is_err());
        assert_eq!(&*PlainText::cleaned("größer", 5), "größe");
    }
}
