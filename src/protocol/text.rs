//! Texts from requests that are stored and displayed.

use std::fmt::Write as _;
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

/// Escapes what a terminal obeys or hides: control characters, and characters that change the direction of text or are invisible. They are
/// written as JSON writes them, `\u001b`, so JSON stays JSON. Use it wherever text of others meets a terminal.
pub fn escaped(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for letter in text.chars() {
        if is_plain(letter) {
            plain.push(letter);
            continue;
        }
        for unit in letter.encode_utf16(&mut [0; 2]) {
            // Writing to a string does not fail.
            write!(plain, "\\u{unit:04x}").ok();
        }
    }
    plain
}

/// The same for a text that is cut at `characters_max`.
pub fn escaped_start(text: &str, characters_max: usize) -> String {
    let start: String = text.chars().take(characters_max).collect();
    escaped(&start)
}

/// Whether a terminal shows a character and does nothing else.
pub const fn is_plain(letter: char) -> bool {
    !matches!(letter,
        '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}'
        // Soft hyphen, marks and overrides of direction, zero-width characters, separators of lines, tags.
        | '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
        | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
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

    #[test]
    fn what_a_terminal_obeys_is_escaped_and_json_stays_json() {
        for (text, expected) in [
            ("größe 50 € 日本 🙂", "größe 50 € 日本 🙂"),
            ("a\u{1b}[2K\u{1b}[1Ab", "a\\u001b[2K\\u001b[1Ab"),
            ("\u{1b}]52;c;eA==\u{7}", "\\u001b]52;c;eA==\\u0007"),
            ("a\r\nb\tc", "a\\u000d\\u000ab\\u0009c"),
            ("\u{9b}2K\u{7f}", "\\u009b2K\\u007f"),
            ("\u{202e}evil\u{2066}", "\\u202eevil\\u2066"),
            ("\u{e0041}", "\\udb40\\udc41"),
        ] {
            assert_eq!(escaped(text), expected);
            let json = serde_json::Value::from(text).to_string();
            let read: serde_json::Value = serde_json::from_str(&escaped(&json)).unwrap();
            assert_eq!(read, text);
        }
        assert_eq!(escaped_start("\u{1b}ab", 2), "\\u001ba");
    }
}
