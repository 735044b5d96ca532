//! The history as a stream of RFC 4180 lines, for spreadsheets.
//!
//! One batch of rows is in memory at a time: the next one is read when the connection has taken the one before. A failure in between breaks
//! the connection, so that an incomplete table does not look complete.

use std::borrow::Cow;

use axum::body::{Body, Bytes};
use axum::http::{HeaderName, HeaderValue, header};
use futures_util::stream::{self, StreamExt as _};

use super::view::PaymentView;
use crate::http::AppState;
use crate::ledger::{Cursor, HistoryFilter, LedgerError, Page};
use crate::telemetry::causes;

/// Rows that are read and sent at a time.
const BATCH: u16 = 500;
/// The usual length of a line, in bytes.
const LINE_BYTES: usize = 700;
/// First characters of a text that a spreadsheet evaluates instead of showing it.
const FORMULA: [char; 6] = ['=', '+', '-', '@', '\t', '\r'];

/// The columns, in order. New ones are added at the end.
const COLUMNS: &str = "id,createdAt,updatedAt,state,reason,network,asset,payer,payee,amount,decimals,transaction,logIndex,\
    blockNumber,blockTime,rail,session,clientReference,resource,unmatched,scheme,method,permitted,caller\r\n";

/// The headers of a table.
pub(in crate::http) const HEADERS: [(HeaderName, HeaderValue); 3] = [
    (
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/csv; charset=utf-8; header=present"),
    ),
    (
        header::CONTENT_DISPOSITION,
        HeaderValue::from_static("attachment; filename=\"payments.csv\""),
    ),
    (header::VARY, HeaderValue::from_static("accept")),
];

/// Some lines, and the cursor of the next ones.
struct Batch {
    lines: String,
    next: Option<Cursor>,
}

/// Every payment that matches `filter`. The first batch is read at once, so that a failure of the ledger can still be answered with a
/// status.
pub(in crate::http) async fn table(
    state: AppState,
    filter: HistoryFilter,
) -> Result<Body, LedgerError> {
    let first = batch(&state, &filter, None).await?;
    let head = Bytes::from(COLUMNS.to_owned() + &first.lines);
    let rest = stream::try_unfold(first.next, move |next| {
        let (state, filter) = (state.clone(), filter.clone());
        async move {
            let Some(next) = next else {
                return Ok(None);
            };
            let batch = batch(&state, &filter, Some(next)).await;
            let batch = batch.inspect_err(|error| {
                tracing::error!(
                    error = causes(error),
                    "table broken off: ledger unavailable"
                );
            })?;
            // Empty: the batch before was full, and was the last one.
            Ok((!batch.lines.is_empty()).then(|| (Bytes::from(batch.lines), batch.next)))
        }
    });
    let head = stream::once(std::future::ready(Ok::<_, LedgerError>(head)));
    Ok(Body::from_stream(head.chain(rest)))
}

async fn batch(
    state: &AppState,
    filter: &HistoryFilter,
    after: Option<Cursor>,
) -> Result<Batch, LedgerError> {
    let page = Page {
        after,
        limit: BATCH,
    };
    let entries = state.facilitator.ledger.history(filter, page).await?;
    let full = entries.len() == usize::from(BATCH);
    let next = entries
        .last()
        .filter(|_| full)
        .map(crate::ledger::Entry::cursor);
    let mut lines = String::with_capacity(entries.len() * LINE_BYTES);
    for entry in entries {
        write_line(&mut lines, &PaymentView::new(entry, state));
    }
    Ok(Batch { lines, next })
}

fn write_line(lines: &mut String, payment: &PaymentView) {
    let number = |number: Option<u64>| number.map(|number| number.to_string());
    let decimals = payment.decimals.map(u64::from);
    let cells: [Option<Cow<'_, str>>; 24] = [
        Some((&payment.id).into()),
        Some((&payment.created_at).into()),
        Some((&payment.updated_at).into()),
        Some((&payment.state).into()),
        payment.reason.as_deref().map(Into::into),
        Some((&payment.network).into()),
        Some((&payment.asset).into()),
        Some((&payment.payer).into()),
        Some((&payment.payee).into()),
        Some((&payment.amount).into()),
        number(decimals).map(Into::into),
        payment.transaction.as_deref().map(Into::into),
        number(payment.log_index).map(Into::into),
        number(payment.block_number).map(Into::into),
        payment.block_time.as_deref().map(Into::into),
        Some((&payment.rail).into()),
        payment.session.as_deref().map(Into::into),
        payment.client_reference.as_deref().map(Into::into),
        payment.resource.as_deref().map(Into::into),
        payment.unmatched.as_deref().map(Into::into),
        Some(payment.scheme.into()),
        Some(payment.method.into()),
        payment.permitted.as_deref().map(Into::into),
        payment.caller.as_deref().map(Into::into),
    ];
    for (index, cell) in cells.iter().enumerate() {
        if index > 0 {
            lines.push(',');
        }
        if let Some(text) = cell {
            write_cell(lines, text);
        }
    }
    lines.push_str("\r\n");
}

/// Writes a cell that every reader takes for the same text. Our own and not the crate `csv`, whose writer quotes where it must, not where a
/// spreadsheet would trim the text or evaluate it. A text that a spreadsheet would evaluate as a formula gets an apostrophe in
/// front, as people do by hand; no value of this ledger's own columns begins like that.
pub fn write_cell(lines: &mut String, text: &str) {
    let is_formula = text.trim_start_matches(' ').starts_with(FORMULA) || text.starts_with('\n');
    let quoted = is_formula || text.contains(['"', ',', '\r', '\n']) || text.trim() != text;
    if !quoted {
        lines.push_str(text);
        return;
    }
    lines.push('"');
    if is_formula {
        lines.push('\'');
    }
    for letter in text.chars() {
        if letter == '"' {
            lines.push('"');
        }
        lines.push(letter);
    }
    lines.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_quoted_where_rfc_4180_requires_it() {
        for (text, expected) in [
            ("", ""),
            (
                "https://seller.test/a?b=1&c=2",
                "https://seller.test/a?b=1&c=2",
            ),
            ("a,b", "\"a,b\""),
            ("say \"hi\"", "\"say \"\"hi\"\"\""),
            ("two\r\nlines", "\"two\r\nlines\""),
            (" kept ", "\" kept \""),
        ] {
            let mut line = String::new();
            write_cell(&mut line, text);
            assert_eq!(line, expected, "{text:?}");
        }
    }

    #[test]
    fn cell_never_starts_a_formula() {
        for text in [
            "=1+1",
            "+1",
            "-1",
            "@sum(a1)",
            "\t=1",
            "\r=1",
            "\n=1",
            " =1",
            "=hyperlink(\"https://evil.test\",\"x\")",
        ] {
            let mut line = String::new();
            write_cell(&mut line, text);
            assert!(line.starts_with("\"'"), "{line}");
            assert!(line.ends_with('"'), "{line}");
        }
    }
}
