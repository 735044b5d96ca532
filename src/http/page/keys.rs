//! The keys of callers: makes and revokes them.

use alloy::primitives::FixedBytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Redirect, Response};
use maud::{Markup, html};
use time::{Duration, OffsetDateTime};

use super::form::{Fields, Form};
use super::problem::PageProblem;
use super::viewer::{Viewer, no_randomness};
use super::{layout, shown};
use crate::http::AppState;
use crate::http::operator::OperatorBy;
use crate::ledger::Created;
use crate::payment::{Key, KeyId, PresentedKey, Scope, key_name, native_wei};
use crate::protocol::Network;
use crate::protocol::field::parse_address;
use crate::protocol::response::checksummed;

/// What a key can be for, as the form offers it.
const KINDS: [(&str, &str); 4] = [
    (
        "settle",
        "settle: verify, settle and sessions for its payees",
    ),
    ("settle,history", "settle and history"),
    ("history", "history: read the payments of its payees"),
    ("admin", "admin: everything that the operator may"),
];
/// The longest life of a key, in days; none has no end.
const DAYS_MAX: i64 = 3_650;

/// `GET /page/keys`
pub(super) async fn list(
    viewer: Viewer,
    State(state): State<AppState>,
) -> Result<Html<String>, PageProblem> {
    let stored = state.facilitator.ledger.keys().await?;
    let now = state.facilitator.clock.now();
    // The newest first, and those that are good before the others.
    let mut keys: Vec<Key> = stored.into_iter().rev().map(|stored| stored.key).collect();
    keys.sort_by_key(|key| !key.is_live(now));
    let rows: Vec<_> = keys.iter().map(|key| row(key, &viewer, now)).collect();
    let columns = [
        "Name",
        "Id",
        "State",
        "Scopes",
        "Payees",
        "Networks",
        "Gas in 24 hours",
        "Made",
        "Expires",
        "Revoke",
    ];
    let content = html! {
        h1 { "Keys" }
        (layout::live(&shown::table("Keys", &columns, &rows)))
        section aria-labelledby="new" {
            h2 #new { "Make a key" }
            @if viewer.may_change() { (new_key(&viewer)) }
        }
    };
    Ok(layout::page(&viewer, ("/page/keys", "Keys"), &content))
}

fn row(key: &Key, viewer: &Viewer, now: OffsetDateTime) -> Markup {
    let state = match key.revoked_at {
        Some(_) => "revoked",
        None if key.is_live(now) => "good",
        None => "expired",
    };
    let scopes: Vec<_> = key.scopes.iter().map(|scope| scope.name()).collect();
    let is_own = matches!(viewer.by, OperatorBy::Key(own) if own.id == key.id);
    html! {
        td { (shown::foreign(&key.name, 64)) @if is_own { " (yours)" } }
        td { (shown::copyable(key.id.as_str())) }
        td { (shown::state(state)) }
        td { (scopes.join(", ")) }
        td { ul.plain { @for payee in &key.payees { li { (shown::copyable(&checksummed(*payee))) } } } }
        td { @if key.networks.is_empty() { "every one" } @for network in &key.networks { (shown::network(&network.to_string())) " " } }
        td.number { @match key.gas_wei_per_day { Some(wei) => { (wei) " wei" }, None => "no limit" } }
        td { (shown::time(key.created_at, now)) }
        td { @match key.expires_at { Some(at) => (shown::time(at, now)), None => "never" } }
        td { @if state == "good" && viewer.may_change() {
            form method="post" action="/page/keys/revoke" {
                (layout::token(viewer))
                input type="hidden" name="id" value=(key.id.as_str());
                button type="submit" aria-label={ "Revoke " (key.name) } { "Revoke" }
            }
        } }
    }
}

fn new_key(viewer: &Viewer) -> Markup {
    html! {
        form.filters method="post" action="/page/keys" autocomplete="off" {
            (layout::token(viewer))
            div { label for="name" { "Name, such as the seller's" } input #name name="name" required maxlength="64"; }
            div {
                label for="scopes" { "For" }
                select #scopes name="scopes" { @for (value, label) in KINDS { option value=(value) { (label) } } }
            }
            div { label for="payees" { "Payees, an address on each line; none for admin" } textarea #payees name="payees" rows="2" spellcheck="false" {} }
            div { label for="networks" { "Networks, such as base; every one if empty" } input #networks name="networks" spellcheck="false"; }
            div { label for="gas" { "Gas in 24 hours, such as 0.01eth; no limit if empty" } input #gas name="gas" spellcheck="false"; }
            div { label for="days" { "Good for so many days; without end if empty" } input #days name="days" inputmode="numeric"; }
            div.buttons { button type="submit" { "Make the key" } }
        }
    }
}

/// `POST /page/keys`: the answer shows the key, this once.
pub(super) async fn create(
    State(state): State<AppState>,
    form: Form,
) -> Result<Response, PageProblem> {
    let (now, ledger) = (state.facilitator.clock.now(), &state.facilitator.ledger);
    let entropy = FixedBytes::<{ KeyId::LENGTH }>::try_random().ok();
    let secret = FixedBytes::<32>::try_random().ok();
    let (entropy, secret) = entropy.zip(secret).ok_or_else(no_randomness)?;
    let (text, presented) = PresentedKey::new(KeyId::from_entropy(entropy.0), secret.0);
    let key = read(&form.fields, presented.id, now).map_err(|why| PageProblem::invalid(&why))?;
    if ledger.create_key(&key, &presented).await? == Created::NameTaken {
        let why = "a key that is good has this name already: take another one, or revoke that key";
        return Err(PageProblem::new(StatusCode::CONFLICT, why));
    }
    tracing::info!(key = %key.id, "page: key made by the operator");
    let content = html! {
        h1 { "The key of " (shown::foreign(&key.name, 64)) }
        p { "It is shown only now. It is sent as " code { "Authorization: Bearer …" } " or as " code { "X-API-Key: …" } ", and is good within seconds." }
        p { code.secret #secret { (text) } }
        p { button type="button" data-copy=(text) { "Copy the key" } }
        @if key.has(Scope::Admin) { p { "From now on programs on this machine are not the operator any more: log in with this key." } }
        p { a href="/page/keys" { "To the keys" } }
    };
    let page = layout::page(&form.viewer, ("/page/keys", "New key"), &content);
    Ok(page.into_response())
}

/// What the form says, or what is wrong with it.
fn read(fields: &Fields, id: KeyId, now: OffsetDateTime) -> Result<Key, String> {
    let of = |field: &str, why: String| format!("{field}: {why}");
    let scopes = fields.words("scopes").map(str::parse);
    let scopes: Vec<Scope> = scopes
        .collect::<Result<_, _>>()
        .map_err(|why| of("for", why))?;
    let payees = fields.words("payees").map(parse_address);
    let payees: Vec<_> = payees
        .collect::<Result<_, _>>()
        .map_err(|why| of("payees", why))?;
    let network = |text: &str| {
        let why = || "networks: expected names such as base or eip155:8453".to_owned();
        Network::from_name(text).ok_or_else(why)
    };
    let networks: Vec<_> = fields
        .words("networks")
        .map(network)
        .collect::<Result<_, _>>()?;
    let filled = |name: &str| Some(fields.text(name).trim()).filter(|text| !text.is_empty());
    let gas_wei_per_day = filled("gas").map(native_wei).transpose();
    let gas_wei_per_day = gas_wei_per_day.map_err(|why| of("gas", why))?;
    let days = |text: &str| {
        let days = text
            .parse()
            .ok()
            .filter(|days| (1..=DAYS_MAX).contains(days));
        let days = days.ok_or_else(|| format!("days: expected 1 to {DAYS_MAX}"))?;
        Ok::<_, String>(now + Duration::days(days))
    };
    let expires_at = filled("days").map(days).transpose()?;
    let is_admin = scopes.contains(&Scope::Admin);
    let is_limited = !payees.is_empty() || !networks.is_empty() || gas_wei_per_day.is_some();
    if is_admin && (is_limited || scopes.len() > 1) {
        return Err(
            "a key for admin is the operator's: it takes no payee, network or gas limit".to_owned(),
        );
    }
    if !is_admin && payees.is_empty() {
        return Err("payees: expected the address that this seller is paid at".to_owned());
    }
    if scopes.is_empty() {
        return Err("for: expected what the key is for".to_owned());
    }
    Ok(Key {
        id,
        name: key_name(fields.text("name").trim()).map_err(|why| of("name", why))?,
        scopes,
        payees,
        networks,
        gas_wei_per_day,
        created_at: now,
        expires_at,
        revoked_at: None,
    })
}

/// `POST /page/keys/revoke`
pub(super) async fn revoke(
    State(state): State<AppState>,
    form: Form,
) -> Result<Response, PageProblem> {
    let id: KeyId = form
        .fields
        .text("id")
        .parse()
        .map_err(|_| PageProblem::invalid("id: expected that of a key"))?;
    if !state.facilitator.ledger.revoke_key(id).await? {
        let why = "there is no such key, or it is revoked already";
        return Err(PageProblem::new(StatusCode::CONFLICT, why));
    }
    tracing::info!(key = %id, "page: key revoked by the operator");
    Ok(Redirect::to("/page/keys").into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAYEE: &str = "0x5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e";

    fn read_pairs(pairs: &[(&str, &str)]) -> Result<Key, String> {
        let pairs = pairs.iter();
        let pairs = pairs.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let id = KeyId::from_entropy([7; KeyId::LENGTH]);
        read(&Fields::of(pairs.collect()), id, OffsetDateTime::UNIX_EPOCH)
    }

    #[test]
    fn form_of_a_seller_makes_a_key_of_its_payees() {
        let payees = format!("{PAYEE}\r\n0x6f6f6f6f6f6f6f6f6f6f6f6f6f6f6f6f6f6f6f6f\r\n");
        let key = read_pairs(&[
            ("name", " shop "),
            ("scopes", "settle,history"),
            ("payees", &payees),
            ("networks", "base"),
            ("gas", "0.01eth"),
            ("days", "90"),
        ]);
        let key = key.unwrap();
        assert_eq!((key.name.as_str(), key.payees.len()), ("shop", 2));
        assert_eq!(key.scopes, [Scope::Settle, Scope::History]);
        assert_eq!(key.networks, [Network::from_chain_id(8453)]);
        assert_eq!(
            key.expires_at,
            Some(OffsetDateTime::UNIX_EPOCH + Duration::days(90))
        );
    }

    #[test]
    fn form_that_means_nothing_says_what_was_expected() {
        for (pairs, expected) in [
            (&[("name", "shop"), ("scopes", "settle")][..], "payees"),
            (
                &[("name", "shop"), ("scopes", "all"), ("payees", PAYEE)],
                "for",
            ),
            (&[("name", "shop"), ("payees", PAYEE)], "for"),
            (
                &[("name", "ops"), ("scopes", "admin"), ("payees", PAYEE)],
                "admin",
            ),
            (&[("name", ""), ("scopes", "admin")], "name"),
            (&[("name", "a"), ("scopes", "admin"), ("days", "0")], "days"),
            (
                &[("name", "a"), ("scopes", "settle"), ("payees", "0x5e")],
                "payees",
            ),
            (
                &[
                    ("name", "a"),
                    ("scopes", "settle"),
                    ("payees", PAYEE),
                    ("gas", "1"),
                ],
                "gas",
            ),
            (
                &[
                    ("name", "a"),
                    ("scopes", "settle"),
                    ("payees", PAYEE),
                    ("networks", "x"),
                ],
                "networks",
            ),
        ] {
            let why = read_pairs(pairs).unwrap_err();
            assert!(why.contains(expected), "{pairs:?}: {why}");
        }
    }
}
