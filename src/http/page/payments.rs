//! The list of payments, with search and filters.

use axum::extract::{Query, State};
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use time::OffsetDateTime;
use url::form_urlencoded::Serializer;
use uuid::Uuid;

use super::problem::PageProblem;
use super::viewer::Viewer;
use super::{layout, shown};
use crate::http::AppState;
use crate::http::payments::csv;
use crate::http::payments::query::{QueryReader, parsed};
use crate::ledger::{Entry, HistoryFilter, Page};
use crate::payment::PaymentState;
use crate::protocol::field::{parse_address, parse_hash};

/// Payments on a page.
const ROWS: u16 = 50;
/// The longest text that is looked for, in characters.
const SOUGHT_MAX: usize = 2_000;
/// Texts of others, in a row.
const TEXT_SHOWN: usize = 60;
/// The filters with a text field: name in the query, and what stands before the field.
const FIELDS: [(&str, &str); 12] = [
    ("payee", "Payee"),
    ("payer", "Payer"),
    ("transaction", "Transaction"),
    ("clientReference", "Reference"),
    ("resource", "Resource"),
    ("session", "Session"),
    ("network", "Network"),
    ("asset", "Token"),
    ("minAmount", "At least (atomic units)"),
    ("maxAmount", "At most (atomic units)"),
    ("from", "From (UTC)"),
    ("to", "Before (UTC)"),
];

/// The pairs of a query that have a value: a form sends its empty fields as well.
#[derive(Debug)]
struct Asked(Vec<(String, String)>);

impl Asked {
    fn new(Query(pairs): Query<Vec<(String, String)>>) -> Self {
        let mut pairs: Vec<_> = pairs
            .into_iter()
            .map(|(name, value)| (name, value.trim().to_owned()))
            .filter(|(_, value)| !value.is_empty())
            .collect();
        for (name, value) in &mut pairs {
            if matches!(name.as_str(), "from" | "to") {
                whole_moment(value);
            }
        }
        Self(pairs)
    }

    fn value(&self, name: &str) -> &str {
        let found = self.0.iter().find(|(known, _)| known == name);
        found.map_or("", |(_, value)| value)
    }

    fn filter(&self, also: &[&str]) -> Result<HistoryFilter, PageProblem> {
        let pairs = self.0.iter();
        let pairs = pairs.filter(|(name, _)| !also.contains(&name.as_str()));
        let mut query = QueryReader::new(Ok(Query(pairs.cloned().collect())))?;
        let filter = query.filter()?;
        query.end()?;
        Ok(filter)
    }

    /// The same query in an address, without some names and with one more pair.
    fn address(&self, path: &str, without: &[&str], with: Option<(&str, &str)>) -> String {
        let mut query = Serializer::new(String::new());
        let kept = self.0.iter();
        let kept = kept.filter(|(name, _)| !without.contains(&name.as_str()));
        query.extend_pairs(kept);
        query.extend_pairs(with);
        match query.finish() {
            none if none.is_empty() => path.to_owned(),
            query => format!("{path}?{query}"),
        }
    }
}

/// A day, or a time without seconds or zone, as fields for them give it.
fn whole_moment(text: &mut String) {
    match text.len() {
        10 => text.push_str("T00:00:00Z"),
        16 => text.push_str(":00Z"),
        19 => text.push('Z'),
        _ => {}
    }
}

/// `GET /page/payments`
pub(super) async fn list(
    viewer: Viewer,
    State(state): State<AppState>,
    query: Query<Vec<(String, String)>>,
) -> Result<Response, PageProblem> {
    let asked = Asked::new(query);
    let sought = asked.value("q");
    if !sought.is_empty() {
        let found = find(&state, sought).await?;
        return Ok(Redirect::to(&found).into_response());
    }
    let filter = asked.filter(&["cursor"])?;
    let cursor = asked.value("cursor");
    let after = (!cursor.is_empty()).then(|| parsed(cursor)).transpose();
    let after = after.map_err(|why| PageProblem::invalid(&format!("cursor: {why}")))?;
    let page = Page { after, limit: ROWS };
    let entries = state.facilitator.ledger.history(&filter, page).await?;
    let now = state.facilitator.clock.now();
    let next = entries.last().map(Entry::cursor);
    let next = next.filter(|_| entries.len() == usize::from(ROWS));
    let next = next.map(|next| {
        let cursor = next.to_string();
        asked.address("/page/payments", &["cursor"], Some(("cursor", &cursor)))
    });
    let content = html! {
        h1 { "Payments" }
        (search())
        (filters(&asked))
        (layout::live(&html! {
            (rows(&entries, now))
            p.pages {
                @if after.is_some() { a href=(asked.address("/page/payments", &["cursor"], None)) { "Newest" } }
                @if let Some(next) = next { a rel="next" href=(next) { "Older" } }
                a href=(asked.address("/page/payments.csv", &["cursor"], None)) { "All of these as CSV" }
            }
        }))
    };
    Ok(layout::page(&viewer, ("/page/payments", "Payments"), &content).into_response())
}

/// `GET /page/payments.csv`: what the list shows, whole.
pub(super) async fn table(
    _: Viewer,
    State(state): State<AppState>,
    query: Query<Vec<(String, String)>>,
) -> Result<Response, PageProblem> {
    let filter = Asked::new(query).filter(&[])?;
    let table = csv::table(state, filter).await?;
    Ok((csv::HEADERS, table).into_response())
}

/// The address of what a text means: a payment, or the list with a filter.
async fn find(state: &AppState, sought: &str) -> Result<String, PageProblem> {
    if sought.chars().count() > SOUGHT_MAX || sought.contains('\0') {
        return Err(PageProblem::invalid("this is too long to look for"));
    }
    let with = |name: &str| {
        let asked = Asked(vec![(name.to_owned(), sought.to_owned())]);
        asked.address("/page/payments", &[], None)
    };
    if let Ok(id) = Uuid::try_parse(sought) {
        return Ok(format!("/page/payments/{id}"));
    }
    if let Ok(hash) = parse_hash(sought) {
        let mut found = Vec::new();
        for served in state.facilitator.served_networks.iter() {
            let network = served.policy.network;
            let ledger = &state.facilitator.ledger;
            found.extend(ledger.payments_of_transaction(network, hash).await?);
        }
        return Ok(match found.as_slice() {
            [only] => format!("/page/payments/{}", only.id),
            _ => with("transaction"),
        });
    }
    if let Ok(address) = parse_address(sought) {
        let as_payee = HistoryFilter {
            payee: Some(address),
            ..HistoryFilter::default()
        };
        let is_paid = exists(state, &as_payee).await?;
        return Ok(with(if is_paid { "payee" } else { "payer" }));
    }
    if sought.starts_with("ps_") {
        return Ok(with("session"));
    }
    let by_reference = HistoryFilter {
        client_reference: Some(sought.to_owned()),
        ..HistoryFilter::default()
    };
    let is_reference = !sought.contains("://") || exists(state, &by_reference).await?;
    Ok(with(if is_reference {
        "clientReference"
    } else {
        "resource"
    }))
}

async fn exists(state: &AppState, filter: &HistoryFilter) -> Result<bool, PageProblem> {
    let one = Page {
        after: None,
        limit: 1,
    };
    let found = state.facilitator.ledger.history(filter, one).await?;
    Ok(!found.is_empty())
}

fn search() -> Markup {
    html! {
        form.search role="search" method="get" action="/page/payments" {
            label for="q" { "Search" }
            input #q type="search" name="q" placeholder="hash, address, id or reference" autocomplete="off" spellcheck="false";
            button type="submit" { "Search" }
        }
    }
}

fn filters(asked: &Asked) -> Markup {
    let is_narrow = asked.0.iter().any(|(name, _)| name != "cursor");
    html! {
        details open[is_narrow] {
            summary { "Filters" }
            form.filters method="get" action="/page/payments" {
                div {
                    label for="state" { "State" }
                    select #state name="state" {
                        option value="" { "any" }
                        @for name in PaymentState::NAMES {
                            option value=(name) selected[asked.value("state") == name] { (name) }
                        }
                    }
                }
                @for (name, label) in FIELDS {
                    div {
                        label for=(name) { (label) }
                        input id=(name) name=(name) value=(asked.value(name)) autocomplete="off" spellcheck="false";
                    }
                }
                div.buttons {
                    button type="submit" { "Show" }
                    @if is_narrow { a href="/page/payments" { "Without filters" } }
                }
            }
        }
    }
}

/// A table of payments.
pub(super) fn rows(entries: &[Entry], now: OffsetDateTime) -> Markup {
    let rows = entries.iter().map(|entry| {
        let reference = entry.session.as_ref();
        let reference = reference.and_then(|session| session.client_reference.as_deref());
        let about = reference.or(entry.resource.as_deref());
        html! {
            td { a href={ "/page/payments/" (entry.id) } { (shown::time(entry.created_at, now)) } }
            td { (shown::state(&entry.state)) @if entry.quarantine.is_some() { " " (shown::state("quarantined")) } }
            td.number { (shown::money(&entry.network, &entry.asset, &entry.amount)) }
            td { (shown::copyable(&entry.payer)) }
            td { (shown::copyable(&entry.payee)) }
            td { (shown::network(&entry.network)) }
            td { @if let Some(about) = about { (shown::foreign(about, TEXT_SHOWN)) } }
        }
    });
    let columns = [
        "Accepted",
        "State",
        "Amount",
        "Payer",
        "Payee",
        "Network",
        "Reference or resource",
    ];
    shown::table("Payments", &columns, &rows.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(pairs: &[(&str, &str)]) -> Asked {
        let pairs = pairs.iter();
        let pairs = pairs.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Asked::new(Query(pairs.collect()))
    }

    #[test]
    fn empty_fields_are_no_filters() {
        let asked = asked(&[
            ("payer", ""),
            ("state", " "),
            ("from", "2026-01-31"),
            ("cursor", "1.2"),
        ]);
        let filter = asked.filter(&["cursor"]).unwrap();
        assert_eq!((filter.payer, filter.state), (None, None));
        assert!(filter.from.is_some());
        assert!(asked.filter(&[]).is_err());
        let address = asked.address("/page/payments", &["cursor"], Some(("cursor", "a&b")));
        assert_eq!(
            address,
            "/page/payments?from=2026-01-31T00%3A00%3A00Z&cursor=a%26b"
        );
    }
}
