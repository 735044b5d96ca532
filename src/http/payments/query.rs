//! Reads a query: every key is known and given once and every value is valid, or the response names the key.

use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};
use utoipa::IntoParams;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{ObjectBuilder, Type};

use crate::http::Problem;
use crate::ledger::HistoryFilter;
use crate::payment::PaymentState;
use crate::protocol::field::{parse_address, parse_hash};
use crate::protocol::{Amount, Network};

/// The longest text that can be searched for, in bytes; resources are URLs.
const TEXT_BYTES_MAX: usize = 4096;
/// The longest code that can be searched for, in bytes.
const CODE_BYTES_MAX: usize = 128;
/// Rows on a page, at most.
const PAGE_MAX: u16 = 500;
/// How much of an unknown key is shown, in characters.
const KEY_CHARACTERS_SHOWN: usize = 40;

/// The pairs of a query, unread.
pub(in crate::http) type RawQuery = Result<Query<Vec<(String, String)>>, QueryRejection>;

/// The filters of every history query, with their text in the API specification.
pub(in crate::http) struct Filters;

const FILTERS: [(&str, &str); 14] = [
    ("payer", "Address of the payer."),
    ("payee", "Address of the payee."),
    (
        "network",
        "CAIP-2 or name, such as `eip155:8453` or `base`.",
    ),
    ("asset", "Address of the token."),
    (
        "state",
        "One of `queued`, `inflight`, `mined`, `settled`, `final`, `late_settled`, `refused`, `failed`.",
    ),
    ("status", "The same as `state`."),
    ("from", "Accepted at this time or later, RFC 3339."),
    ("to", "Accepted before this time, RFC 3339."),
    ("minAmount", "This many atomic units or more."),
    ("maxAmount", "This many atomic units or less."),
    (
        "resource",
        "The bought resource: exactly this text, as buyer or seller gave it.",
    ),
    ("session", "The session that the payment pays, `ps_…`."),
    (
        "clientReference",
        "The buyer's own name for the purchase, from its session.",
    ),
    (
        "transaction",
        "Hash of the transaction that transferred the money or is meant to.",
    ),
];

impl IntoParams for Filters {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let text = || ObjectBuilder::new().schema_type(Type::String);
        FILTERS
            .into_iter()
            .map(|(name, description)| {
                ParameterBuilder::new()
                    .name(name)
                    .parameter_in(ParameterIn::Query)
                    .description(Some(description))
                    .required(utoipa::openapi::Required::False)
                    .schema(Some(text()))
                    .build()
            })
            .collect()
    }
}

/// A query that is being read, key by key.
#[derive(Debug)]
pub(in crate::http) struct QueryReader {
    unread: Vec<(String, String)>,
    known: Vec<&'static str>,
}

impl QueryReader {
    pub(in crate::http) fn new(query: RawQuery) -> Result<Self, Problem> {
        let Query(unread) = query.map_err(|error| Problem::invalid_parameter(error.body_text()))?;
        Ok(Self {
            unread,
            known: Vec::new(),
        })
    }

    /// The value of `key`, if it is present.
    pub(in crate::http) fn member<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, Problem> {
        self.known.push(key);
        let mut found = self.unread.extract_if(.., |(name, _)| name == key);
        let (first, second) = (found.next(), found.next());
        drop(found);
        if second.is_some() {
            return Err(Problem::invalid_parameter(format!(
                "{key}: expected once, got it several times"
            )));
        }
        let value = first.map(|(_, value)| read(&value)).transpose();
        value.map_err(|why| Problem::invalid_parameter(format!("{key}: {why}")))
    }

    /// All filters.
    pub(in crate::http) fn filter(&mut self) -> Result<HistoryFilter, Problem> {
        let state = self.member("state", state)?;
        let status = self.member("status", self::state)?;
        if state.is_some() && status.is_some() {
            return Err(Problem::invalid_parameter(
                "status: it means the same as state; give one of them",
            ));
        }
        Ok(HistoryFilter {
            payer: self.member("payer", parse_address)?,
            payee: self.member("payee", parse_address)?,
            network: self.member("network", network)?,
            asset: self.member("asset", parse_address)?,
            state: state.or(status),
            from: self.member("from", moment)?,
            to: self.member("to", moment)?,
            amount_min: self.member("minAmount", parsed::<Amount>)?,
            amount_max: self.member("maxAmount", parsed::<Amount>)?,
            resource: self.member("resource", text)?,
            session: self.member("session", parsed)?,
            client_reference: self.member("clientReference", text)?,
            transaction: self.member("transaction", parse_hash)?,
            payees: None,
        })
    }

    /// Fails when a key was not read: it is unknown.
    pub(in crate::http) fn end(self) -> Result<(), Problem> {
        let Some((key, _)) = self.unread.first() else {
            return Ok(());
        };
        let shown: String = key.chars().take(KEY_CHARACTERS_SHOWN).collect();
        Err(Problem::invalid_parameter(format!(
            "{shown}: unknown; expected one of {}",
            self.known.join(", ")
        )))
    }
}

/// Parses a network: CAIP-2, or a name that the configuration knows.
pub(in crate::http) fn network(text: &str) -> Result<Network, String> {
    Network::from_name(text).ok_or_else(|| {
        let shown: String = text.chars().take(KEY_CHARACTERS_SHOWN).collect();
        format!("expected CAIP-2 such as eip155:8453, or a name such as base, got {shown:?}")
    })
}

/// Parses a value by its `FromStr`, whose error says what was expected.
pub(in crate::http) fn parsed<T>(text: &str) -> Result<T, String>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    text.parse().map_err(|why: T::Err| why.to_string())
}

fn state(name: &str) -> Result<&'static str, String> {
    let known = PaymentState::NAMES.into_iter().find(|known| *known == name);
    known.ok_or_else(|| format!("expected one of {}", PaymentState::NAMES.join(", ")))
}

/// Parses a time.
pub(in crate::http) fn moment(text: &str) -> Result<OffsetDateTime, String> {
    // Converted to UTC, a time at either end of the calendar may not be representable.
    OffsetDateTime::parse(text, &Rfc3339)
        .ok()
        .and_then(|moment| moment.checked_to_offset(UtcOffset::UTC))
        .ok_or_else(|| "expected a time such as 2026-01-31T12:00:00Z".to_owned())
}

/// Parses the number of rows on a page.
pub(in crate::http) fn page_limit(text: &str) -> Result<u16, String> {
    let limit = text.parse().ok();
    limit
        .filter(|limit| (1..=PAGE_MAX).contains(limit))
        .ok_or_else(|| format!("expected 1 to {PAGE_MAX}"))
}

/// Parses a reason code, also one of another version.
pub(in crate::http) fn code(text: &str) -> Result<String, String> {
    let is_code = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if text.is_empty() || text.len() > CODE_BYTES_MAX || !text.bytes().all(is_code) {
        return Err("expected a code such as invalid_payload".to_owned());
    }
    Ok(text.to_owned())
}

/// A text that the ledger can store.
fn text(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > TEXT_BYTES_MAX || text.contains('\0') {
        return Err(format!(
            "expected a text of 1 to {TEXT_BYTES_MAX} bytes without NUL"
        ));
    }
    Ok(text.to_owned())
}
