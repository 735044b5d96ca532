//! How commands show things to people: tables, times, amounts and networks.

use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;

use crate::protocol::Network;

/// Rows with columns of equal width; the last one is not padded.
pub(super) fn aligned(rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or_default()
    };
    let lines = rows.iter().map(|row| {
        let last = row.len().saturating_sub(1);
        let cells = row.iter().enumerate().map(|(column, cell)| {
            let width = if column == last { 0 } else { width(column) };
            format!("{cell:<width$}")
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// A row of a table.
pub(super) fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

/// RFC 3339 in whole seconds, for JSON.
pub(super) fn moment(at: OffsetDateTime) -> String {
    let at = at.replace_nanosecond(0).unwrap_or(at);
    at.format(&Rfc3339).unwrap_or_default()
}

/// Such as `2026-11-28 00:33:31`, which spreadsheets take for a time; in UTC.
pub(super) fn clock_time(at: OffsetDateTime) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second]");
    at.to_offset(time::UtcOffset::UTC)
        .format(format)
        .unwrap_or_default()
}

/// A length of time in one or two units, such as `3m 20s`.
pub(super) fn length(time: Duration) -> String {
    let text = humantime::format_duration(Duration::from_secs(time.as_secs())).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// `1 payment`, `2 payments`.
pub(super) fn count(number: u64, one: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {one}{plural}")
}

/// The name of a network for the configuration, or its CAIP-2 name.
pub(super) fn network_name(network: Network) -> String {
    let known = network.known().and_then(|known| known.names.first());
    known.map_or_else(|| network.to_string(), |name| (*name).to_owned())
}

/// Parses a network: CAIP-2, or a name that the configuration knows.
pub(super) fn parse_network(text: &str) -> Result<Network, String> {
    let expected = || "expected a network such as base or eip155:8453".to_owned();
    Network::from_name(text).ok_or_else(expected)
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn columns_of_a_table_are_aligned() {
        let rows = [row(["ID", "NAME", "X"]), row(["1", "größer", "y"])];
        assert_eq!(aligned(&rows), "ID  NAME    X\n1   größer  y");
    }

    #[test]
    fn times_are_readable() {
        let at = datetime!(2026-11-28 00:33:31.549805 UTC);
        assert_eq!(moment(at), "2026-11-28T00:33:31Z");
        assert_eq!(clock_time(at), "2026-11-28 00:33:31");
        assert_eq!(length(Duration::from_millis(93_784_500)), "1day 2h");
        assert_eq!(
            count(1, "payment") + ", " + &count(2, "payment"),
            "1 payment, 2 payments"
        );
    }
}
