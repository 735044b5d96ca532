//! How values are shown. What others have written is bounded, and without characters that turn or hide text; markup is escaped everywhere.

use maud::{Markup, html};
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{OffsetDateTime, UtcOffset};

use crate::protocol::text::escaped_start;
use crate::protocol::{Network, assets};

/// Characters at both ends of a shortened address or hash, with its `0x`.
const HEAD: usize = 6;
const TAIL: usize = 4;

/// A time, relative, with the exact one behind it. The script keeps it up to date.
pub(super) fn time(at: OffsetDateTime, now: OffsetDateTime) -> Markup {
    let exact = at.format(&Rfc3339).unwrap_or_default();
    html! { time datetime=(exact) title=(clock_time(at)) { (ago((now - at).whole_seconds())) } }
}

/// Such as `2026-11-28 00:33:31 UTC`.
pub(super) fn clock_time(at: OffsetDateTime) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second] UTC");
    at.to_offset(UtcOffset::UTC)
        .format(format)
        .unwrap_or_default()
}

/// The same words as in the script.
pub(super) fn ago(seconds: i64) -> String {
    let (number, unit) = length(seconds.abs());
    match seconds {
        -4..=4 => "now".to_owned(),
        5.. => format!("{number} {unit} ago"),
        _ => format!("in {number} {unit}"),
    }
}

fn length(seconds: i64) -> (i64, &'static str) {
    match seconds {
        ..60 => (seconds, "s"),
        60..3_600 => (seconds / 60, "min"),
        3_600..86_400 => (seconds / 3_600, "h"),
        _ => (seconds / 86_400, "d"),
    }
}

/// An address or hash, shortened; it copies the whole.
pub(super) fn copyable(text: &str) -> Markup {
    let short = shortened(text);
    html! {
        button.copy type="button" data-copy=(text) title=(text) aria-label={ (short) ", copy" } { (short) }
    }
}

pub(super) fn shortened(text: &str) -> String {
    let letters = text.chars().count();
    if letters <= HEAD + TAIL + 1 {
        return text.to_owned();
    }
    let head: String = text.chars().take(HEAD).collect();
    let tail: String = text.chars().skip(letters - TAIL).collect();
    format!("{head}…{tail}")
}

/// `1 payment`, `2 payments`.
pub(super) fn count(number: u64, one: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {one}{plural}")
}

/// A text that somebody else has written.
pub(super) fn foreign(text: &str, characters_max: usize) -> Markup {
    let start = escaped_start(text, characters_max);
    let is_cut = text.chars().nth(characters_max).is_some();
    html! { bdi.foreign { (start) @if is_cut { "…" } } }
}

/// The name of a network for people.
pub(super) fn network(caip2: &str) -> String {
    let known = caip2.parse::<Network>().ok().and_then(Network::known);
    known.map_or_else(|| caip2.to_owned(), |known| known.name.to_owned())
}

/// An amount, such as `0.01 USDC`.
pub(super) fn money(network: &str, asset: &str, units: &str) -> Markup {
    html! { span.amount { (assets::money(network, asset, units)) } }
}

/// The state of a payment, signer, key or delivery, with a colour for those that are well, wrong or open.
pub(super) fn state(name: &str) -> Markup {
    let class = match name {
        "mined" | "settled" | "final" | "late_settled" | "working" | "good" | "delivered"
        | "ok" => "well",
        "refused" | "failed" | "stopped" | "unowned" | "revoked" | "expired" | "dead" | "down" => {
            "wrong"
        }
        _ => "open",
    };
    html! { span class={ "state " (class) } { (name) } }
}

/// A table that scrolls where it is wider than the screen.
pub(super) fn table(name: &str, columns: &[&str], rows: &[Markup]) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label=(name) {
            table {
                thead { tr { @for column in columns { th scope="col" { (column) } } } }
                tbody { @for row in rows { tr { (row) } } }
            }
        }
        @if rows.is_empty() { p.hint { "None." } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_in_one_unit() {
        for (seconds, expected) in [
            (0, "now"),
            (4, "now"),
            (59, "59 s ago"),
            (60, "1 min ago"),
            (7_199, "1 h ago"),
            (172_800, "2 d ago"),
            (-3_600, "in 1 h"),
        ] {
            assert_eq!(ago(seconds), expected, "{seconds}");
        }
    }

    #[test]
    fn long_texts_are_shortened() {
        let address = format!("0x{}", "ab".repeat(20));
        assert_eq!(shortened(&address), "0xabab…abab");
        assert_eq!(shortened("0xabababab"), "0xabababab");
        assert_eq!(shortened("ääääääääääää"), "ääääää…ääää");
    }

    #[test]
    fn foreign_text_is_escaped_and_bounded() {
        let shown = foreign("<script>\u{202e}&\"", 100).into_string();
        assert!(
            shown.contains("&lt;script&gt;\\u202e&amp;&quot;"),
            "{shown}"
        );
        let shown = foreign(&"x".repeat(500), 10).into_string();
        assert!(shown.contains("xxxxxxxxxx…") && !shown.contains(&"x".repeat(11)));
    }
}
